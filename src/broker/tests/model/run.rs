//! One run: real clients do it to a real broker, and what they see is compared with all ways in which the reference says that it may go.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::super::links;
use super::super::support::*;
use super::action::{Action, Name, Terms};
use super::device::Device;
use super::plan::{self, Dice, NAMES, Step, TOPICS};
use super::reference::{Fate, Heard, Reference, Seen};
use crate::broker::{Bind, Config, Listener};
use crate::buffer::{Buffer, Offset, WhenFull};
use crate::clock::Clock as _;
use crate::message::{Envelope, Qos};
use crate::router::LinkId;
use crate::topic::TopicName;
use crate::wire::Version;

/// Rounds of the runtime each time that the store and the log have caught up, and how often in a row nothing new may come of it: all that is
/// under way has come about then, however slow the machine is.
const ROUNDS: usize = 8;
const QUIET: usize = 4;

/// More would mean that the reference knows too little.
const WAYS_MAX: usize = 4_000;

/// So many of them are shown where none came true.
const FORETOLD_SHOWN: usize = 4;

struct Run {
    dice: Dice,
    dirs: Vec<TempDir>,
    rig: Option<Rig>,
    log: Buffer,
    clock: Arc<Later>,
    devices: Vec<Device>,
    ways: Vec<Reference>,
    /// Messages so far.
    number: u32,
    /// How often each message was sent.
    sent: BTreeMap<String, (Qos, usize)>,
    shown: bool,
}

pub(super) fn run(seed: u64, shown: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(seed, shown).await;
        let steps = 10 + run.dice.roll(50);
        for _ in 0..steps {
            let who = run.dice.one(&NAMES);
            run.step(who).await;
        }
        run.finish().await;
    });
}

/// The store syncs at each commit; the model asks for an order, not for a disk.
pub(super) fn dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("mqtt.sock")
}

/// A broker with a link that every message goes to, and whose remote is away: its log holds them all. Its clients come over a Unix
/// socket, where what one side has written is there for the other at once.
async fn start(dir: &Path, clock: &Arc<Later>) -> (Rig, Buffer) {
    // Far more than a run publishes, and so little that its reserve is soon read at each start.
    let log = links::buffer(dir, WhenFull::Block, 256 << 10);
    let buffers = vec![(LinkId::new("cloud"), log.clone())];
    let mut config = Config::default();
    let unix = Listener { bind: Bind::Unix { path: socket(dir), mode: 0o600 }, ..config.listeners[0].clone() };
    config.listeners.push(unix);
    (Rig::at(Arc::clone(clock), dir, config, links::to_cloud("broker/#"), buffers).await, log)
}

impl Run {
    async fn new(seed: u64, shown: bool) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995);
        let (first, clock) = (dir(), Arc::new(Later::stopped()));
        let (rig, log) = start(first.path(), &clock).await;
        let version = |dice: &mut Dice| match dice.roll(6) {
            0 => Version::V31,
            1 => Version::V311,
            _ => Version::V5,
        };
        let devices = NAMES.iter().map(|name| Device::new(name, version(&mut dice))).collect();
        Self {
            dice,
            dirs: vec![first],
            rig: Some(rig),
            log,
            clock,
            devices,
            ways: vec![Reference::default()],
            number: 0,
            sent: BTreeMap::new(),
            shown,
        }
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn device(&mut self, who: Name) -> &mut Device {
        self.devices.iter_mut().find(|device| device.name == who).unwrap()
    }

    async fn step(&mut self, who: Name) {
        match plan::step(&mut self.dice) {
            Step::Pass => {
                let seconds = plan::seconds(&mut self.dice);
                self.act(Action::Pass(seconds)).await;
            }
            Step::Crash => {
                let step = self.dice.one(&[
                    Step::Crash,
                    Step::Publish,
                    Step::Publish,
                    Step::Subscribe,
                    Step::Ack,
                    Step::Complete,
                    Step::Disconnect,
                    Step::Connect,
                ]);
                let is_online = self.device(who).is_online();
                let into = match step {
                    Step::Connect if !is_online => self.resumption(who),
                    // Of a session that goes with it more may have come about than one thing.
                    Step::Disconnect if self.device(who).expiry_s == 0 => None,
                    step if is_online => self.action(who, step),
                    _ => None,
                };
                self.act(Action::Crash(into.map(alone))).await;
            }
            Step::Connect => self.connect(who).await,
            _ if !self.device(who).is_online() => self.connect(who).await,
            step => {
                let Some(action) = self.action(who, step) else { return };
                let may_be_cut = !matches!(step, Step::Drop | Step::Disconnect);
                if may_be_cut && self.dice.hits(12) {
                    return self.act(Action::Cut(alone(action))).await;
                }
                let ends = match &action {
                    Action::Publish(_, id, post) if post.qos == Qos::ExactlyOnce && !self.dice.hits(3) => Some(*id),
                    _ => None,
                };
                self.act(action).await;
                if let Some(id) = ends {
                    self.act(Action::Release(who, id)).await;
                }
            }
        }
    }

    /// What a connected client does in a step, if it can.
    fn action(&mut self, who: Name, step: Step) -> Option<Action> {
        let device = self.devices.iter_mut().find(|device| device.name == who)?;
        let (dice, version) = (&mut self.dice, device.version);
        let count = if dice.hits(3) { usize::MAX } else { 1 };
        Some(match step {
            Step::Drop => Action::Drop(who),
            Step::Disconnect => {
                let with_will = version.is_v5() && dice.hits(3);
                let may_change = version.is_v5() && device.expiry_s > 0 && dice.hits(3);
                let expiry_s = may_change.then(|| dice.one(&[0, 6_500]));
                Action::Disconnect { who, with_will, expiry_s }
            }
            Step::Subscribe => {
                let filter = plan::filter(dice);
                Action::Subscribe(who, filter, plan::sub(dice, filter, version))
            }
            Step::Unsubscribe => Action::Unsubscribe(who, plan::filter(dice)),
            Step::Publish => {
                self.number += 1;
                let post = plan::post(dice, who, version, format!("{who}{}", self.number));
                let id = if post.qos == Qos::AtMostOnce { 0 } else { device.next_id() };
                Action::Publish(who, id, post)
            }
            Step::Release => Action::Release(who, device.open.iter().find(|open| open.received)?.id),
            Step::Ack if !device.publishes.is_empty() => Action::Ack(who, count),
            Step::Complete if !device.releases.is_empty() => Action::Complete(who, count),
            Step::Ack | Step::Complete | Step::Connect | Step::Pass | Step::Crash => return None,
        })
    }

    /// A CONNECT that goes on with a session, if there is one for sure.
    fn resumption(&mut self, who: Name) -> Option<Action> {
        let version = self.device(who).version;
        let terms = plan::terms(&mut self.dice, who, version, &mut self.number);
        let expiry_s =
            if terms.expiry_s == 0 { if version.is_v5() { 6_500 } else { 7 * 86_400 } } else { terms.expiry_s };
        let is_there = self.ways.iter().all(|way| way.has_session(who));
        is_there.then_some(Action::Connect(who, Terms { clean: false, expiry_s, ..terms }))
    }

    async fn connect(&mut self, who: Name) {
        let version = self.device(who).version;
        let terms = plan::terms(&mut self.dice, who, version, &mut self.number);
        self.connect_with(who, terms).await;
    }

    async fn connect_with(&mut self, who: Name, terms: Terms) {
        self.act(Action::Connect(who, terms)).await;
        let again = self.device(who).again();
        if !again.is_empty() {
            self.act(Action::Again(who, again)).await;
        }
    }

    /// Does it, and compares what is to be seen then.
    async fn act(&mut self, action: Action) {
        if self.shown {
            eprintln!("{action:?}");
        }
        self.note_sent(&action);
        let mut seen = Seen::default();
        self.perform(&action, &mut seen).await;
        self.settle().await;
        self.look(&mut seen).await;
        let mut ways: Vec<Reference> = Vec::new();
        let mut foretold = Vec::new();
        for before in &self.ways {
            let mut fate = Fate::default();
            loop {
                let mut way = before.clone();
                way.apply(&action, &mut fate);
                let expected = way.seen();
                if expected != seen {
                    foretold.push(expected);
                } else if !ways.contains(&way) {
                    ways.push(way);
                }
                if !fate.turn() {
                    break;
                }
            }
        }
        if ways.is_empty() {
            // Which of them is nearest nobody knows; the shortest are the easiest to read.
            let mut foretold: Vec<String> = foretold.iter().map(|expected| format!("{expected:?}")).collect();
            foretold.sort_by_key(String::len);
            foretold.dedup();
            let (all, few) = (foretold.len(), &foretold[..foretold.len().min(FORETOLD_SHOWN)]);
            panic!("after {action:?}\n    seen {seen:?}\nforetold {}\nthe shortest of {all}", few.join("\nforetold "));
        }
        assert!(ways.len() < WAYS_MAX, "too many ways lead to what was seen");
        self.ways = ways;
    }

    async fn perform(&mut self, action: &Action, seen: &mut Seen) {
        match action {
            Action::Connect(who, terms) => {
                let socket = socket(self.dirs.last().unwrap().path());
                let is_there = !terms.clean && self.keeps_session(who);
                let present = self.device(who).connect(&socket, terms, is_there).await;
                seen.heard.entry(who).or_default().present = Some(present);
            }
            Action::Pass(seconds) => {
                self.clock.pass(Duration::from_secs(*seconds));
                self.rig().broker.keep_house(self.clock.moment());
            }
            Action::Cut(cut) => {
                self.device(cut.who()).send(cut).await;
                self.turns().await;
                self.device(cut.who()).hang_up();
            }
            Action::Crash(cut) => {
                match cut.as_deref() {
                    None => {}
                    Some(Action::Connect(who, terms)) => {
                        let socket = socket(self.dirs.last().unwrap().path());
                        self.device(who).begin(&socket, terms).await;
                    }
                    Some(cut) => self.device(cut.who()).send(cut).await,
                }
                self.turns().await;
                self.crash().await;
            }
            Action::Drop(who) => self.device(who).hang_up(),
            Action::Disconnect { who, .. } => {
                self.device(who).send(action).await;
                self.device(who).hang_up();
            }
            _ => {
                let device = self.device(action.who());
                device.send(action).await;
                device.answered().await;
            }
        }
    }

    fn keeps_session(&self, who: Name) -> bool {
        let client = self.rig().broker.clients.lock().get(who).cloned();
        client.is_some_and(|client| client.lock().terms.kept)
    }

    /// Lets the broker get on with it, to some point or other.
    async fn turns(&mut self) {
        for _ in 0..self.dice.roll(30) {
            tokio::task::yield_now().await;
        }
    }

    async fn crash(&mut self) {
        let copy = dir();
        self.rig().crash_into(self.dirs.last().unwrap().path(), copy.path());
        self.devices.iter_mut().for_each(Device::outlive_broker);
        self.rig.take().unwrap().stop().await;
        self.log.close().await;
        let (rig, log) = start(copy.path(), &self.clock).await;
        (self.rig, self.log) = (Some(rig), log);
        self.dirs.push(copy);
        self.rig().broker.keep_house(self.clock.moment());
    }

    /// Until nothing is under way.
    async fn settle(&self) {
        let store = &self.rig().broker.store;
        let (mut before, mut quiet) = ((0, Offset(0)), 0);
        while quiet < QUIET {
            for _ in 0..ROUNDS {
                tokio::task::yield_now().await;
            }
            store.caught_up().await;
            let next = self.log.stats().next;
            if next.0 > 0 {
                self.log.mark().passed(next.0 - 1).await.unwrap();
            }
            let now = (store.durable(), next);
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
    }

    async fn look(&mut self, seen: &mut Seen) {
        for device in &mut self.devices {
            device.hear(seen.heard.entry(device.name).or_default());
        }
        for device in &mut self.devices {
            device.expect_silence().await;
        }
        seen.heard.retain(|_, heard| *heard != Heard::default());
        let broker = &self.rig().broker;
        for client in broker.clients.lock().values() {
            let mut state = client.lock();
            if state.terms.kept {
                let name = NAMES.iter().find(|name| **name == &*client.name).unwrap();
                seen.owed.insert(name, state.owed.rows());
            }
        }
        for topic in TOPICS {
            if let Some(message) = broker.topics.retained(&TopicName::new(topic).unwrap()) {
                let text = String::from_utf8(message.payload.to_vec()).unwrap();
                seen.retained.insert(topic.to_owned(), text);
            }
        }
    }

    fn note_sent(&mut self, action: &Action) {
        let mut note = |post: &super::action::Post| {
            self.sent.entry(post.text.clone()).or_insert((post.qos, 0)).1 += 1;
        };
        match action {
            Action::Publish(_, _, post) => note(post),
            Action::Again(_, items) => items.iter().for_each(|item| match item {
                super::action::Again::Publish(_, post) => note(post),
                super::action::Again::Release(_) => {}
            }),
            Action::Cut(cut) | Action::Crash(Some(cut)) => self.note_sent(cut),
            _ => {}
        }
    }

    /// All come back, and take and give what is owed.
    async fn finish(&mut self) {
        for who in NAMES {
            let version = self.device(who).version;
            if !self.device(who).is_online() {
                let (expiry_s, window) = (if version.is_v5() { 6_500 } else { 7 * 86_400 }, 256);
                self.connect_with(who, Terms { version, clean: false, expiry_s, window, will: None }).await;
            }
        }
        let owes = |device: &Device| !device.publishes.is_empty() || !device.releases.is_empty();
        while let Some(who) = self.devices.iter().find(|device| owes(device)).map(|device| device.name) {
            self.act(Action::Ack(who, usize::MAX)).await;
            self.act(Action::Complete(who, usize::MAX)).await;
        }
        for who in NAMES {
            while let Some(open) = self.device(who).open.first() {
                assert!(open.received, "{} has no answer", open.post.text);
                let id = open.id;
                self.act(Action::Release(who, id)).await;
            }
        }
        assert_eq!(self.rig().broker.figures().owed, 0, "nobody is owed anything");
        self.judge_log().await;
        self.rig.take().unwrap().stop().await;
    }

    /// R18: what was acknowledged is in the link's log, with QoS 2 exactly once.
    async fn judge_log(&self) {
        let mut copies: BTreeMap<String, usize> = BTreeMap::new();
        let mut history = self.log.history(Offset(0), Offset(u64::MAX));
        loop {
            let records = history.next(100, 1 << 20).await.unwrap();
            if records.is_empty() {
                break;
            }
            for record in records {
                let payload = Envelope::decode(record.body).unwrap().message.payload;
                *copies.entry(String::from_utf8(payload.to_vec()).unwrap()).or_default() += 1;
            }
        }
        let count = |text: &str| copies.get(text).copied().unwrap_or(0);
        for text in self.devices.iter().flat_map(|device| &device.acknowledged) {
            assert!(count(text) >= 1, "{text} was acknowledged and is not in the log");
        }
        for (text, (qos, sends)) in self.sent.iter().filter(|(text, _)| !text.is_empty()) {
            let most = if *qos == Qos::ExactlyOnce { 1 } else { *sends };
            assert!(count(text) <= most, "{text}, sent {sends} times, is in the log {} times", count(text));
        }
        let missing = |way: &Reference| way.wills.iter().find(|text| !text.is_empty() && count(text) != 1).cloned();
        let missing: Vec<String> = self.ways.iter().filter_map(missing).collect();
        assert!(missing.len() < self.ways.len(), "wills are not in the log once: {missing:?}");
    }
}

/// Where nobody sees what becomes of it, one thing at a time.
fn alone(action: Action) -> Box<Action> {
    Box::new(match action {
        Action::Ack(who, _) => Action::Ack(who, 1),
        Action::Complete(who, _) => Action::Complete(who, 1),
        Action::Disconnect { who, .. } => Action::Disconnect { who, with_will: false, expiry_s: None },
        other => other,
    })
}
