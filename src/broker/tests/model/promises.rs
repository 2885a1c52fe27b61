//! Whole sessions against a small reference model: a publisher and a subscriber that keep their sessions, lose their connections,
//! acknowledge late, and a broker that is killed in between, in any order. What the model knows is what MQTT promises: QoS 2 exactly once,
//! QoS 1 at least once, in order, and a copy only where one side had to send again.

#![expect(clippy::wildcard_enum_match_arm, reason = "a packet that no rule expects fails the test, whatever it is")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::links;
use super::super::support::*;
use super::run::dir;
use crate::broker::Config;
use crate::buffer::{Buffer, Offset, WhenFull};
use crate::message::{Envelope, Qos};
use crate::router::LinkId;
use crate::wire::{Connect, Packet, Version};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The publisher publishes.
    Publish(Qos),
    /// The publisher takes what is there for it.
    PublisherReads,
    /// The subscriber takes what is there for it, and acknowledges the first so many of what it has not.
    SubscriberReads(usize),
    PublisherDrops,
    SubscriberDrops,
    /// SIGKILL, and a start on what the disk held. Before it the broker's tasks run so many times more.
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)].prop_map(Step::Publish),
        4 => Just(Step::PublisherReads),
        6 => (0..4_usize).prop_map(Step::SubscriberReads),
        1 => Just(Step::PublisherDrops),
        2 => Just(Step::SubscriberDrops),
        1 => (0..30_usize).prop_map(Step::Crash),
    ]
}

/// A publisher as the specification wants it: what is unacknowledged is sent again after a reconnect, in order.
#[derive(Default)]
struct Publisher {
    peer: Option<Peer>,
    next_id: u16,
    /// Id, number, QoS, and whether PUBREL has gone.
    open: VecDeque<(u16, u32, Qos, bool)>,
    published: Vec<(u32, Qos)>,
    /// Numbers that were sent twice.
    repeated: BTreeSet<u32>,
}

/// A subscriber likewise.
#[derive(Default)]
struct Subscriber {
    peer: Option<Peer>,
    subscribed: bool,
    /// QoS 2 ids between PUBLISH and PUBREL.
    received: BTreeSet<u16>,
    /// Acknowledgements that it owes.
    owed: VecDeque<Packet>,
    arrived: Vec<(u32, Qos, bool)>,
}

fn kept_as(name: &str, version: Version) -> Connect {
    let mut connect = kept(name);
    connect.version = version;
    if !version.is_v5() {
        connect.properties = Default::default();
    }
    connect
}

/// All that is there, up to the answer to a PINGREQ. `None`: the connection is gone.
async fn read(peer: &mut Peer) -> Option<Vec<Packet>> {
    peer.send(Packet::Pingreq).await;
    let mut packets = Vec::new();
    loop {
        match peer.next().await? {
            Packet::Pingresp => return Some(packets),
            packet => packets.push(packet),
        }
    }
}

fn publication(id: u16, number: u32, qos: Qos, dup: bool) -> Packet {
    let mut publish = publish("t", &number.to_string(), qos, id);
    publish.dup = dup;
    Packet::Publish(publish)
}

impl Publisher {
    async fn peer(&mut self, rig: &Rig, version: Version) -> &mut Peer {
        if self.peer.is_none() {
            let (mut peer, connack) = Peer::open(rig.address, kept_as("p", version)).await;
            // A session that the broker does not know has no exchanges: then all is sent anew.
            let again: Vec<Packet> = self
                .open
                .iter()
                .map(|(id, number, qos, released)| match released {
                    true => Packet::Pubrel(ack(*id)),
                    false => publication(*id, *number, *qos, true),
                })
                .collect();
            assert!(connack.session_present || self.open.is_empty(), "its session was acknowledged");
            self.repeated.extend(self.open.iter().map(|(_, number, ..)| *number));
            peer.send_all(again).await;
            self.peer = Some(peer);
        }
        self.peer.as_mut().unwrap()
    }

    async fn publish(&mut self, rig: &Rig, version: Version, qos: Qos) {
        self.peer(rig, version).await;
        self.next_id += 1;
        let number = u32::from(self.next_id);
        self.open.push_back((self.next_id, number, qos, false));
        self.published.push((number, qos));
        let packet = publication(self.next_id, number, qos, false);
        self.peer(rig, version).await.send(packet).await;
    }

    async fn read(&mut self, rig: &Rig, version: Version) {
        let packets = read(self.peer(rig, version).await).await.expect("the broker keeps the connection");
        for packet in packets {
            match packet {
                Packet::Puback(ack) => self.open.retain(|(id, ..)| *id != ack.id.get()),
                Packet::Pubrec(received) => {
                    let id = received.id.get();
                    if let Some(open) = self.open.iter_mut().find(|(other, ..)| *other == id) {
                        open.3 = true;
                    }
                    self.peer(rig, version).await.send(Packet::Pubrel(ack(id))).await;
                }
                Packet::Pubcomp(ack) => self.open.retain(|(id, ..)| *id != ack.id.get()),
                other => panic!("a publisher got {other:?}"),
            }
        }
    }
}

impl Subscriber {
    async fn peer(&mut self, rig: &Rig, version: Version) -> &mut Peer {
        if self.peer.is_none() {
            let (mut peer, connack) = Peer::open(rig.address, kept_as("s", version)).await;
            assert_eq!(connack.session_present, self.subscribed, "its session was acknowledged");
            if !std::mem::replace(&mut self.subscribed, true) {
                peer.subscribe("t", Qos::ExactlyOnce).await;
            }
            self.peer = Some(peer);
            // What it owed went with its connection: the broker sends all of it again.
            self.owed.clear();
        }
        self.peer.as_mut().unwrap()
    }

    async fn read(&mut self, rig: &Rig, version: Version, acknowledges: usize) {
        let packets = read(self.peer(rig, version).await).await.expect("the broker keeps the connection");
        for packet in packets {
            match packet {
                Packet::Publish(publish) => {
                    let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
                    let id = publish.id.unwrap().get();
                    if publish.qos == Qos::AtLeastOnce {
                        self.arrived.push((number, publish.qos, publish.dup));
                        self.owed.push_back(Packet::Puback(ack(id)));
                    } else {
                        if self.received.insert(id) {
                            self.arrived.push((number, publish.qos, publish.dup));
                        } else {
                            assert!(publish.dup, "{number} came again under {id} without DUP");
                        }
                        self.owed.push_back(Packet::Pubrec(ack(id)));
                    }
                }
                Packet::Pubrel(released) => {
                    self.received.remove(&released.id.get());
                    self.owed.push_back(Packet::Pubcomp(released));
                }
                other => panic!("a subscriber got {other:?}"),
            }
        }
        let due: Vec<Packet> = self.owed.drain(..acknowledges.min(self.owed.len())).collect();
        self.peer(rig, version).await.send_all(due).await;
    }
}

/// A broker with a link that every message goes to, and whose remote is away: its log holds them all.
async fn start(dir: &std::path::Path) -> (Rig, Buffer) {
    let log = links::buffer(dir, WhenFull::Block, 64 << 20);
    let buffers = vec![(LinkId::new("cloud"), log.clone())];
    (Rig::with(dir, Config::default(), links::to_cloud("broker/#"), buffers).await, log)
}

/// Far more than it takes to end what 60 steps begin.
const ROUNDS_MAX: usize = 100_000;

struct Play {
    version: Version,
    dirs: Vec<TempDir>,
    rig: Option<Rig>,
    log: Buffer,
    crashed: bool,
    publisher: Publisher,
    subscriber: Subscriber,
}

impl Play {
    async fn act(&mut self, step: Step) {
        let (rig, version) = (self.rig.as_ref().unwrap(), self.version);
        match step {
            Step::Publish(qos) => self.publisher.publish(rig, version, qos).await,
            Step::PublisherReads => self.publisher.read(rig, version).await,
            Step::SubscriberReads(acknowledges) => self.subscriber.read(rig, version, acknowledges).await,
            Step::PublisherDrops => self.publisher.peer = None,
            Step::SubscriberDrops => self.subscriber.peer = None,
            Step::Crash(turns) => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                let copy = dir();
                rig.crash_into(self.dirs.last().unwrap().path(), copy.path());
                (self.publisher.peer, self.subscriber.peer) = (None, None);
                self.rig.take().unwrap().stop().await;
                self.log.close().await;
                let (rig, log) = start(copy.path()).await;
                (self.rig, self.log) = (Some(rig), log);
                self.dirs.push(copy);
                self.crashed = true;
            }
        }
    }

    async fn finish(&mut self) {
        let is_done = |play: &Self| {
            play.publisher.open.is_empty()
                && play.subscriber.owed.is_empty()
                && play.rig.as_ref().unwrap().broker.figures().owed == 0
        };
        for round in 0.. {
            if is_done(self) {
                break;
            }
            // Each is a question and an answer: what goes on without end is a fault, and what is slow is none.
            assert!(round < ROUNDS_MAX, "{:?} {:?}", self.publisher.open, self.subscriber.owed);
            self.act(Step::PublisherReads).await;
            self.act(Step::SubscriberReads(usize::MAX)).await;
        }
    }
}

async fn play(version: Version, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let first = dir();
    let (rig, log) = start(first.path()).await;
    let (publisher, subscriber) = (Publisher::default(), Subscriber::default());
    let mut play = Play { version, dirs: vec![first], rig: Some(rig), log, crashed: false, publisher, subscriber };
    play.act(Step::SubscriberReads(0)).await;
    for step in steps {
        play.act(step).await;
    }
    play.finish().await;
    play.rig.take().unwrap().stop().await;
    judge(&play)?;
    judge_log(&play).await
}

/// R18: what the publisher sent is in the link's log, with QoS 2 exactly once.
async fn judge_log(play: &Play) -> Result<(), TestCaseError> {
    let mut copies: BTreeMap<u32, usize> = BTreeMap::new();
    let mut history = play.log.history(Offset(0), Offset(u64::MAX));
    loop {
        let records = history.next(100, 1 << 20).await.unwrap();
        if records.is_empty() {
            break;
        }
        for record in records {
            let payload = Envelope::decode(record.body).unwrap().message.payload;
            *copies.entry(std::str::from_utf8(&payload).unwrap().parse().unwrap()).or_default() += 1;
        }
    }
    for (number, qos) in &play.publisher.published {
        let count = copies.get(number).copied().unwrap_or(0);
        prop_assert!(count >= 1, "{} is not in the log", number);
        let may_repeat = *qos == Qos::AtLeastOnce && play.publisher.repeated.contains(number);
        prop_assert!(count == 1 || may_repeat, "{} is in the log {} times", number, count);
    }
    Ok(())
}

fn judge(play: &Play) -> Result<(), TestCaseError> {
    let Play { publisher, subscriber, crashed, .. } = play;
    let mut copies: BTreeMap<u32, usize> = BTreeMap::new();
    let mut firsts = Vec::new();
    for (number, qos, dup) in &subscriber.arrived {
        let count = copies.entry(*number).or_default();
        *count += 1;
        if *count == 1 {
            firsts.push(*number);
        } else {
            // A QoS 1 message may leave before the disk knows that it did: after a kill it is sent as new.
            let may_be_new = *crashed && *qos == Qos::AtLeastOnce;
            let repeated = publisher.repeated.contains(number);
            prop_assert!(*dup || repeated || may_be_new, "{} came twice and nobody had to repeat it", number);
        }
    }
    prop_assert!(firsts.is_sorted(), "out of order: {:?}", firsts);
    for (number, qos) in &publisher.published {
        let count = copies.get(number).copied().unwrap_or(0);
        prop_assert!(count >= 1, "{} is lost", number);
        prop_assert!(count == 1 || *qos == Qos::AtLeastOnce, "{} came {} times at QoS 2", number, count);
    }
    Ok(())
}

proptest! {
    // A case is up to 60 steps against a real listener and store; more of them: PROPTEST_CASES.
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").map_or(24, |cases| cases.parse().unwrap()), max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn sessions_keep_their_promises_over_drops_and_crashes(
        version in prop_oneof![Just(Version::V311), Just(Version::V5)],
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(version, steps))?;
    }
}
