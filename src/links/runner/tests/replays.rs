//! The replay runner.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::sinks::{FakeSink, Reaction, Remote, at};
use super::*;
use crate::buffer::{self, Admission, Buffer, History, Lane, Lanes, Ledger, Offset, Outcome, Record};
use crate::links::runner::replay::{Pace, Picked, Replay, ReplayEnd, ReplayKeeper, ReplayProgress, ReplayRunner};
use crate::links::{Answer, LinkError};
use crate::message::tests_support::message;
use crate::message::{Envelope, headers};
use crate::telemetry::board::LinkState;
use crate::units::ByteSize;

/// Where positions are kept: all that were.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<(ReplayProgress, bool)>>>);

impl ReplayKeeper for Kept {
    fn keep(&mut self, progress: ReplayProgress, sync: bool) -> std::io::Result<()> {
        self.0.lock().push((progress, sync));
        Ok(())
    }
}

impl Kept {
    fn last(&self) -> ReplayProgress {
        self.0.lock().last().map_or_else(ReplayProgress::default, |(progress, _)| *progress)
    }
}

/// A log with delivered records, and a replay of it.
struct Scene {
    buffer: Buffer,
    kept: Kept,
    progress: Arc<Mutex<ReplayProgress>>,
    common: Common,
    tasks: JoinSet<ReplayEnd>,
    _dir: TempDir,
}

fn pick(record: Record) -> Picked {
    let mut envelope = Envelope::decode(record.body).unwrap();
    match record.offset.0 % 10 {
        7 => Picked::PassedOver,
        8 => Picked::Expired,
        9 => Picked::Unsendable("no".into()),
        _ => {
            headers::mark_replay(&mut envelope.message, "r1");
            Picked::Send(Box::new(envelope), None)
        }
    }
}

impl Scene {
    async fn new(records: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let config = buffer::Config {
            dir: dir.path().join("hq"),
            max_size: ByteSize(64 << 20),
            max_age: None,
            when_full: buffer::WhenFull::Block,
            sync: buffer::SyncMode::Group,
            min_free: Some(ByteSize(0)),
            compress: buffer::Compression::Zstd,
            keep_delivered: Some(buffer::Keep { age: None, size: None }),
        };
        let (buffer, _) = Buffer::open(config, 64, crate::clock::system()).unwrap();
        for number in 0..records {
            let mut message = message("a", b"");
            message.payload = Bytes::from(format!("{number:08}"));
            let parts: [&[u8]; 2] = [&Envelope::encode_head("a", None, 0), &message.encode()];
            let bytes = parts.iter().map(|part| part.len()).sum();
            let Admission::Granted(permit) = buffer.admit(bytes).await.unwrap() else { panic!("full") };
            let offset = buffer.append(permit, &parts, None);
            buffer.settle(offset, Outcome::Delivered);
        }
        if records > 0 {
            buffer.mark().passed(records - 1).await.unwrap();
        }
        let (kept, progress) = (Kept::default(), Arc::default());
        Self { buffer, kept, progress, common: common(TIMING), tasks: JoinSet::new(), _dir: dir }
    }

    fn start(&mut self, remote: &Arc<Remote>, rate: Option<f64>) {
        let replay = Replay {
            id: "r1".into(),
            history: self.buffer.history(Offset(self.progress.lock().position), Offset(u64::MAX)),
            source_id: "cafe".to_owned(),
            later: VecDeque::new(),
            target: self.buffer.clone().into(),
            rate,
            pick: Box::new(pick),
            keeper: Some(Box::new(self.kept.clone())),
            progress: Arc::clone(&self.progress),
        };
        self.tasks.spawn(ReplayRunner::new(self.common.clone(), FakeSink(Arc::clone(remote)), replay, None).run());
    }

    async fn end(&mut self) -> ReplayEnd {
        let end = tokio::time::timeout(Duration::from_secs(20), self.tasks.join_next()).await;
        end.expect("it ends").unwrap().unwrap()
    }

    fn ledger(&self) -> Ledger {
        self.buffer.stats().ledger
    }
}

/// What of `0..records` is to be sent.
fn chosen(records: u64) -> Vec<u64> {
    (0..records).filter(|offset| offset % 10 < 7).collect()
}

#[tokio::test]
async fn r07_what_is_chosen_goes_in_order_with_its_mark_and_is_counted_in_replayed_alone() {
    let mut scene = Scene::new(1_000).await;
    let before = scene.ledger();
    let marks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&marks);
    let remote = Remote::new(move |_, record| {
        seen.lock().push((record.seq.clone(), headers::replay(&record.envelope.message).map(str::to_owned)));
        Reaction::Confirm
    });
    scene.start(&remote, None);
    assert_eq!(scene.end().await, ReplayEnd::Done);
    assert_eq!(remote.sent(), chosen(1_000));
    assert_eq!(marks.lock()[3], ("cafe-0-3".to_owned(), Some("r1".to_owned())));
    let progress = ReplayProgress {
        lane: Lane::Normal,
        position: 1_000,
        looked_at: 1_000,
        replayed: 700,
        bytes: 700 * 8,
        passed_over: 100,
        expired: 100,
        unsendable: 100,
        refused: 0,
    };
    assert_eq!(*scene.progress.lock(), progress);
    assert_eq!(scene.kept.0.lock().last(), Some(&(progress, true)), "kept at the end, synced");
    assert_eq!(scene.ledger(), Ledger { replayed: 700, ..before });
}

#[tokio::test]
async fn r09_a_kill_repeats_at_most_two_windows() {
    let mut scene = Scene::new(1_000).await;
    let remote =
        Remote::new(|_, record| if record.place.offset.0 < 500 { Reaction::Confirm } else { Reaction::Silence });
    scene.start(&remote, None);
    // The fake remote's window is 64, a quarter of it 16.
    eventually("a window beyond what is answered", || remote.sent().iter().filter(|o| **o >= 500).count() == 16).await;
    let sent = remote.sent();
    scene.tasks.abort_all();
    let position = scene.kept.last().position;
    let repeated = sent.iter().filter(|offset| **offset >= position).count();
    assert!(repeated <= 2 * 16, "{repeated}");
    assert!(sent.iter().all(|offset| *offset < position || *offset >= 400), "and loses nothing");

    *scene.progress.lock() = scene.kept.last();
    let remote = Remote::new(|_, _| Reaction::Confirm);
    scene.tasks = JoinSet::new();
    scene.start(&remote, None);
    assert_eq!(scene.end().await, ReplayEnd::Done);
    assert_eq!(remote.sent(), chosen(1_000).into_iter().filter(|offset| *offset >= position).collect::<Vec<_>>());
    let progress = *scene.progress.lock();
    assert_eq!((progress.position, progress.replayed), (1_000, 700), "each was counted once");
    assert_eq!(progress.passed_over + progress.expired + progress.unsendable, 300);
}

#[tokio::test]
async fn a_lost_connection_a_nack_and_a_mute_remote_repeat_from_the_position_in_order() {
    let mut scene = Scene::new(300).await;
    let (mut died, mut nacked, mut muted) = (false, false, false);
    let remote = Remote::new(move |_, record| {
        let first = |at: u64, done: &mut bool| {
            record.place.offset.0 == at && !std::mem::replace(done, record.place.offset.0 == at)
        };
        if first(50, &mut died) {
            Reaction::Die
        } else if first(120, &mut nacked) {
            Reaction::Retry
        } else if first(200, &mut muted) {
            Reaction::Silence
        } else {
            Reaction::Confirm
        }
    });
    remote.connects.lock().push_back(Err(LinkError::Transient("refused".into())));
    scene.start(&remote, None);
    assert_eq!(scene.end().await, ReplayEnd::Done);
    let mut last = remote.sent();
    last.reverse();
    let mut seen = std::collections::BTreeSet::new();
    last.retain(|offset| seen.insert(*offset));
    last.reverse();
    assert_eq!(last, chosen(300), "each one's last copy is in order");
    assert_eq!(scene.progress.lock().replayed, 210);
    assert!(*remote.connections.lock() >= 3);
}

#[tokio::test]
async fn what_the_remote_refuses_is_counted_and_passed_over_until_twenty_in_a_row() {
    let mut scene = Scene::new(100).await;
    let remote =
        Remote::new(|_, record| if record.place.offset.0 % 10 == 3 { Reaction::Refuse } else { Reaction::Confirm });
    scene.start(&remote, None);
    assert_eq!(scene.end().await, ReplayEnd::Done);
    let progress = *scene.progress.lock();
    assert_eq!((progress.replayed, progress.refused), (60, 10));
    assert_eq!((scene.ledger().dead_lettered, scene.buffer.dead_letters().len()), (0, 0));

    let mut scene = Scene::new(100).await;
    let remote = Remote::new(|_, _| Reaction::Refuse);
    scene.start(&remote, None);
    eventually("it waits", || scene.common.board.state() == LinkState::BackingOff).await;
    assert_eq!(scene.progress.lock().refused, 20, "a wrong permission does not run through the log");
    scene.common.token.cancel();
    assert_eq!(scene.end().await, ReplayEnd::Stopped);
}

#[tokio::test]
async fn told_to_stop_it_takes_the_last_answers_and_keeps_its_position() {
    let mut scene = Scene::new(1_000).await;
    let remote =
        Remote::new(|_, record| if record.place.offset.0 < 20 { Reaction::Confirm } else { Reaction::Silence });
    scene.start(&remote, None);
    eventually("some are open", || remote.sent().len() > 20).await;
    scene.common.token.cancel();
    remote.give(Answer::Confirmed(at(20)));
    assert_eq!(scene.end().await, ReplayEnd::Stopped);
    assert_eq!(scene.kept.last().position, 21);
    assert_eq!(scene.kept.0.lock().last().map(|(_, sync)| *sync), Some(true));
}

#[tokio::test]
async fn live_traffic_is_in_front_while_the_link_is_behind() {
    let mut scene = Scene::new(600).await;
    let parts = [b"live".as_slice()];
    for _ in 0..200 {
        let Admission::Granted(permit) = scene.buffer.admit(4).await.unwrap() else { panic!("full") };
        let _owed = scene.buffer.append(permit, &parts, None);
    }
    let remote = Remote::new(|_, _| Reaction::Silence);
    scene.start(&remote, None);
    eventually("one is sent", || !remote.sent().is_empty()).await;
    for offset in [0, 1, 2] {
        eventually("the next is sent", || remote.sent().len() == offset + 1).await;
        assert_eq!(remote.sent().len(), offset + 1, "one at a time");
        remote.give(Answer::Confirmed(at(offset as u64)));
    }
    for offset in 600..800 {
        scene.buffer.settle(Offset(offset), Outcome::Delivered);
    }
    eventually("then with its own window", || remote.sent().len() >= 3 + 16).await;
}

/// The lanes of a log with so many delivered records each.
async fn delivered_in_lanes(dir: &TempDir, records: u64) -> Lanes {
    let config = buffer::Config {
        dir: dir.path().join("hq"),
        max_size: ByteSize(64 << 20),
        max_age: None,
        when_full: buffer::WhenFull::Block,
        sync: buffer::SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: buffer::Compression::None,
        keep_delivered: Some(buffer::Keep { age: None, size: None }),
    };
    let (lanes, _) = Lanes::open(&config, 64, &Lane::ALL, &crate::clock::system()).unwrap();
    let (head, body) = (Envelope::encode_head("a", None, 0), message("a", b"").encode());
    for (_, buffer) in lanes.iter() {
        for _ in 0..records {
            let admitted = buffer.admit(head.len() + body.len()).await.unwrap();
            let Admission::Granted(permit) = admitted else { panic!("full") };
            let offset = buffer.append(permit, &[&head, &body], None);
            buffer.settle(offset, Outcome::Delivered);
        }
        buffer.mark().passed(records - 1).await.unwrap();
    }
    lanes
}

#[tokio::test]
async fn r14_all_lanes_are_replayed_in_their_order_and_a_kill_goes_on_in_the_right_one() {
    let dir = TempDir::new().unwrap();
    let lanes = delivered_in_lanes(&dir, 200).await;
    let (kept, progress) = (Kept::default(), Arc::<Mutex<ReplayProgress>>::default());
    *progress.lock() = ReplayProgress { lane: Lane::High, ..ReplayProgress::default() };
    let start = |remote: &Arc<Remote>| {
        let ReplayProgress { lane: begin, position, .. } = *progress.lock();
        let rest = lanes.iter().skip_while(|(lane, _)| *lane != begin);
        let mut later: VecDeque<(Lane, History)> = rest
            .map(|(lane, buffer)| {
                let from = if lane == begin { position } else { 0 };
                (lane, buffer.history(Offset(from), Offset(u64::MAX)))
            })
            .collect();
        let replay = Replay {
            id: "r1".into(),
            history: later.pop_front().unwrap().1,
            later,
            source_id: "cafe".to_owned(),
            target: lanes.clone(),
            rate: None,
            pick: Box::new(pick),
            keeper: Some(Box::new(kept.clone())),
            progress: Arc::clone(&progress),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(ReplayRunner::new(common(TIMING), FakeSink(Arc::clone(remote)), replay, None).run());
        tasks
    };
    let all = Lane::ALL.map(|lane| chosen(200).into_iter().map(move |offset| (lane, offset))).into_iter().flatten();
    let all: Vec<_> = all.collect();
    // It is killed with a window in flight in the second lane.
    let remote = Remote::new(|_, record| {
        let open = record.place.lane == Lane::Normal && record.place.offset.0 >= 100;
        if open { Reaction::Silence } else { Reaction::Confirm }
    });
    let mut tasks = start(&remote);
    eventually("a window is open in the second lane", || remote.places().len() == 140 + 70 + 16).await;
    assert_eq!(remote.places(), all[..226]);
    tasks.abort_all();
    *progress.lock() = kept.last();
    let ReplayProgress { lane, position, .. } = kept.last();
    assert_eq!(lane, Lane::Normal);
    assert!((68..=100).contains(&position), "within two windows: {position}");

    let remote = Remote::new(|_, _| Reaction::Confirm);
    let mut tasks = start(&remote);
    let end = tokio::time::timeout(Duration::from_secs(20), tasks.join_next()).await;
    assert_eq!(end.expect("it ends").unwrap().unwrap(), ReplayEnd::Done);
    let rest = all.into_iter().filter(|place| *place >= (Lane::Normal, position)).collect::<Vec<_>>();
    assert_eq!(remote.places(), rest);
    let progress = *progress.lock();
    assert_eq!((progress.lane, progress.position, progress.replayed), (Lane::Low, 200, 3 * 140));
    let ledger = lanes.ledger();
    assert_eq!((ledger.delivered, ledger.buffered), (600, 0), "a replay settles nothing");
    assert!(lanes.iter().all(|(_, buffer)| buffer.stats().ledger.balances()));
}

#[test]
fn a_rate_is_kept() {
    let begin = tokio::time::Instant::now();
    let mut pace = Pace::new(Some(100.0), begin);
    let (mut now, mut sent) = (begin, 0);
    while now < begin + Duration::from_secs(10) {
        match pace.due(now) {
            None => {
                pace.sent(now);
                sent += 1;
            }
            Some(due) => now = due,
        }
    }
    assert!((995..=1_011).contains(&sent), "{sent}");
    let idle = now + Duration::from_secs(60);
    let at_once = (0..100).take_while(|_| pace.due(idle).is_none().then(|| pace.sent(idle)).is_some()).count();
    assert!((9..=11).contains(&at_once), "a tenth of a second's worth after a pause, not a minute's: {at_once}");
    let mut any = Pace::new(None, begin);
    any.sent(begin);
    assert_eq!(any.due(begin), None);
}
