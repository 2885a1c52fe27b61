//! The outbound runner.

mod batches;
mod losses;
mod paced;

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;
use crate::buffer::{self, Admission, Buffer, DeadLetter, Lane, Lanes, Offset, Place};
use crate::clock::{Moment, WallMs};
use crate::links::{Answer, Drain, LinkError, Outgoing, Sent, SinkConnection};
use crate::message::tests_support::message;
use crate::message::{Envelope, Head, Message};
use crate::telemetry::board::LinkState;
use crate::units::ByteSize;

/// What the remote does with one record.
#[derive(Clone, Debug)]
pub(super) enum Reaction {
    Confirm,
    Refuse,
    Retry,
    Silence,
    Die,
    TooLarge,
    /// The client's queue has no room.
    Full,
}

/// Of the normal lane.
pub(super) const fn at(offset: u64) -> Place {
    Place { lane: Lane::Normal, offset: Offset(offset) }
}

pub(super) type Script = Box<dyn FnMut(u64, &Outgoing) -> Reaction + Send>;

/// A remote that a test scripts and reads.
pub(super) struct Remote {
    script: Mutex<Script>,
    pub(super) connects: Mutex<VecDeque<Result<(), LinkError>>>,
    pub(super) connections: Mutex<u64>,
    /// Connection number and offset of all that was sent.
    sent: Mutex<Vec<(u64, u64)>>,
    /// The same with their lanes, and their `tg-seq`.
    told: Mutex<Vec<Place>>,
    seqs: Mutex<Vec<String>>,
    /// Answers that a test gives by hand, on the present connection.
    answers: Mutex<VecDeque<Answer>>,
    answered: Notify,
    window_max: Option<usize>,
    /// The link's, whatever a remote allows.
    window: usize,
    /// So many connections break by themselves, whatever is sent.
    breaking: u64,
}

impl Remote {
    pub(super) fn new(script: impl FnMut(u64, &Outgoing) -> Reaction + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(script)),
            connects: Mutex::default(),
            connections: Mutex::default(),
            sent: Mutex::default(),
            told: Mutex::default(),
            seqs: Mutex::default(),
            answers: Mutex::default(),
            answered: Notify::new(),
            window_max: None,
            window: 64,
            breaking: 0,
        })
    }

    pub(super) fn give(&self, answer: Answer) {
        self.answers.lock().push_back(answer);
        self.answered.notify_one();
    }

    pub(super) fn places(&self) -> Vec<(Lane, u64)> {
        self.told.lock().iter().map(|place| (place.lane, place.offset.0)).collect()
    }

    pub(super) fn sent(&self) -> Vec<u64> {
        self.sent.lock().iter().map(|(_, offset)| *offset).collect()
    }
}

pub(super) struct FakeSink(pub(super) Arc<Remote>);

pub(super) struct FakeConnection {
    remote: Arc<Remote>,
    number: u64,
    dead: bool,
}

impl Sink for FakeSink {
    type Connection = FakeConnection;

    fn window(&self) -> usize {
        self.0.window
    }

    async fn connect(&mut self) -> Result<FakeConnection, LinkError> {
        self.0.connects.lock().pop_front().unwrap_or(Ok(()))?;
        let mut number = self.0.connections.lock();
        *number += 1;
        self.0.answers.lock().clear();
        Ok(FakeConnection { remote: Arc::clone(&self.0), number: *number, dead: false })
    }
}

impl SinkConnection for FakeConnection {
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError> {
        let reaction = (self.remote.script.lock())(self.number, &record);
        let place = record.place;
        if matches!(reaction, Reaction::TooLarge) {
            return Ok(Sent::Refused("too large".into()));
        }
        if matches!(reaction, Reaction::Full) {
            return Ok(Sent::Full(Box::new(record)));
        }
        self.remote.told.lock().push(place);
        self.remote.seqs.lock().push(record.seq);
        self.remote.sent.lock().push((self.number, place.offset.0));
        match reaction {
            Reaction::Confirm => self.remote.give(Answer::Confirmed(place)),
            Reaction::Refuse => self.remote.give(Answer::Refused(place, "not authorised".into())),
            Reaction::Retry => self.remote.give(Answer::Retry(place, "quota".into())),
            Reaction::Die => self.dead = true,
            Reaction::Silence | Reaction::TooLarge | Reaction::Full => {}
        }
        Ok(Sent::Queued)
    }

    async fn answer(&mut self) -> Result<Answer, LinkError> {
        if self.number <= self.remote.breaking {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Err(LinkError::Transient("reset by peer".into()));
        }
        loop {
            if let Some(answer) = self.remote.answers.lock().pop_front() {
                return Ok(answer);
            }
            if self.dead {
                return Err(LinkError::Transient("reset by peer".into()));
            }
            self.remote.answered.notified().await;
        }
    }

    fn window_max(&self) -> Option<usize> {
        self.remote.window_max
    }

    async fn close(self) {}
}

/// A running sink over a real buffer.
struct Running {
    lanes: Lanes,
    /// The normal lane.
    buffer: Buffer,
    common: Common,
    tasks: JoinSet<()>,
    _dir: TempDir,
}

impl Running {
    fn start(remote: &Arc<Remote>, timing: Timing) -> Self {
        Self::start_kind(FakeSink(Arc::clone(remote)), timing, Drain::Fifo)
    }

    fn start_kind(sink: impl Sink, timing: Timing, drain: Drain) -> Self {
        Self::start_lanes(sink, timing, drain, &[])
    }

    fn start_lanes(sink: impl Sink, timing: Timing, drain: Drain, used: &[Lane]) -> Self {
        Self::start_with(sink, common(timing), &SharedRate::default(), drain, used)
    }

    fn start_with(sink: impl Sink, common: Common, rate: &SharedRate, drain: Drain, used: &[Lane]) -> Self {
        Self::start_made(sink, common, rate, drain, used, |runner| runner)
    }

    fn start_made<S: Sink>(
        sink: S,
        common: Common,
        rate: &SharedRate,
        drain: Drain,
        used: &[Lane],
        make: impl FnOnce(SinkRunner<S>) -> SinkRunner<S>,
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let config = buffer::Config {
            dir: dir.path().join("hq"),
            max_size: ByteSize(64 << 20),
            max_age: None,
            when_full: buffer::WhenFull::Block,
            sync: buffer::SyncMode::Group,
            min_free: Some(ByteSize(0)),
            compress: buffer::Compression::None,
            keep_delivered: None,
        };
        let window = sink.window();
        let (lanes, _) = Lanes::open(&config, window, used, &crate::clock::system()).unwrap();
        let runner = SinkRunner::new(common.clone(), sink, &lanes, drain, None).paced(rate);
        let mut tasks = JoinSet::new();
        tasks.spawn(make(runner).run());
        Self { buffer: lanes.lane(Lane::Normal).clone(), lanes, common, tasks, _dir: dir }
    }

    async fn append_bytes(&self, parts: &[&[u8]], expires: Option<WallMs>) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let Admission::Granted(permit) = self.buffer.admit(bytes).await.unwrap() else { panic!("full") };
        let _offset = self.buffer.append(permit, parts, expires);
    }

    async fn append(&self, message: &Message) {
        self.append_expiring(message, None).await;
    }

    async fn append_expiring(&self, message: &Message, expires: Option<WallMs>) {
        self.append_bytes(&[&Envelope::encode_head("a", None, 0), &message.encode()], expires).await;
    }

    async fn append_many(&self, count: u64) {
        for number in 0..count {
            let mut message = message("a", b"");
            message.payload = Bytes::from(number.to_string());
            self.append(&message).await;
        }
    }

    async fn drained(&self) {
        eventually("drained", || self.lanes.ledger().buffered == 0).await;
        assert!(self.buffer.stats().ledger.balances(), "{:?}", self.buffer.stats());
    }

    async fn state(&self, state: LinkState) -> HalfStatus {
        eventually(&format!("{state:?}"), || self.common.board.state() == state).await;
        status(&self.common.board)
    }

    fn letters(&self) -> Vec<DeadLetter> {
        self.buffer.dead_letters().list().letters
    }

    async fn stop(mut self) -> Buffer {
        self.common.token.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), self.tasks.join_next()).await;
        ended.expect("stops in time").unwrap().unwrap();
        self.buffer.clone()
    }
}

#[tokio::test]
async fn records_go_in_order_and_are_delivered_when_confirmed() {
    let remote = Remote::new(|_, _| Reaction::Confirm);
    let running = Running::start(&remote, TIMING);
    running.append_many(500).await;
    running.drained().await;
    assert_eq!(remote.sent(), (0..500).collect::<Vec<_>>());
    let status = running.state(LinkState::Online).await;
    assert_eq!((status.messages, status.resent, status.connects), (500, 0, 1));
    assert_eq!(running.buffer.stats().ledger.delivered, 500);
    running.stop().await;
}

#[tokio::test]
async fn confirmations_come_in_any_order_and_the_window_counts_from_the_oldest() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    let running = Running::start(&remote, Timing { stall_after: Duration::from_secs(60), ..TIMING });
    running.append_many(100).await;
    eventually("a window of 64", || remote.sent().len() == 64).await;
    (1..64).rev().for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
    eventually("63 answered", || status(&running.common.board).in_flight == 1).await;
    assert_eq!(remote.sent().len(), 64, "the oldest is still open");
    assert_eq!(running.buffer.stats().cursor, Offset(0));
    remote.give(Answer::Confirmed(at(0)));
    eventually("the rest goes", || remote.sent().len() == 100).await;
    eventually("the cursor passes", || running.buffer.stats().cursor == Offset(64)).await;
    running.stop().await;
}

#[tokio::test]
async fn r15_a_refused_record_is_a_dead_letter_and_the_others_go_on() {
    let remote = Remote::new(|_, record| match record.place.offset.0 {
        3 => Reaction::Refuse,
        5 => Reaction::TooLarge,
        _ => Reaction::Confirm,
    });
    let running = Running::start(&remote, TIMING);
    running.append_many(10).await;
    running.drained().await;
    let letters = running.letters();
    let told = letters.iter().map(|letter| (letter.offset.0, &*letter.reason, letter.attempts)).collect::<Vec<_>>();
    assert_eq!(told, [(3, "not authorised", 1), (5, "too large", 0)]);
    let shown = running.state(LinkState::Online).await.last_dead_letter;
    assert!(told.iter().any(|(_, reason, _)| shown.as_deref() == Some(*reason)), "{shown:?}");
    assert_eq!(running.buffer.stats().ledger.dead_lettered, 2);
    running.stop().await;
}

#[tokio::test]
async fn r15_a_wrong_permission_never_turns_a_backlog_into_dead_letters() {
    let allowed = Arc::new(Mutex::new(false));
    let gate = Arc::clone(&allowed);
    let remote = Remote::new(move |_, _| if *gate.lock() { Reaction::Confirm } else { Reaction::Refuse });
    let running = Running::start(&remote, TIMING);
    running.append_many(300).await;
    let shown = running.state(LinkState::Misconfigured).await;
    assert!(shown.last_error.is_none_or(|words| words == "not authorised"));
    let probes = remote.sent().len();
    eventually("slow probes", || remote.sent().len() >= probes + 3).await;
    assert_eq!(running.letters().len(), 20);
    assert_eq!(running.buffer.stats().ledger.buffered, 280);
    let probed = remote.sent().split_off(probes + 1);
    assert!(probed.iter().all(|offset| *offset == 20), "one at a time, the first kept one: {probed:?}");
    *allowed.lock() = true;
    running.drained().await;
    running.state(LinkState::Online).await;
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.delivered), (20, 280));
    running.stop().await;
}

#[tokio::test]
async fn r15_a_limit_that_is_too_small_never_turns_a_backlog_into_dead_letters() {
    let raised = Arc::new(Mutex::new(false));
    let gate = Arc::clone(&raised);
    let remote = Remote::new(move |_, _| if *gate.lock() { Reaction::Confirm } else { Reaction::TooLarge });
    let running = Running::start(&remote, TIMING);
    running.append_many(300).await;
    let shown = running.state(LinkState::Misconfigured).await;
    assert_eq!(shown.last_error.as_deref(), Some("too large"));
    assert!(shown.next_try_ms.is_some());
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.buffered), (20, 280));
    *raised.lock() = true;
    running.drained().await;
    running.state(LinkState::Online).await;
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.delivered), (20, 280));
    running.stop().await;
}

#[tokio::test]
async fn r15_what_cannot_be_sent_between_what_can_is_no_run_and_holds_up_nothing() {
    let odd = |record: &Outgoing| record.place.offset.0 % 2 == 1;
    let remote = Remote::new(move |_, record| if odd(record) { Reaction::TooLarge } else { Reaction::Confirm });
    let never = Duration::from_secs(3_600);
    let running = Running::start(&remote, Timing { misconfigured_delay: never, ..TIMING });
    running.append_many(200).await;
    running.drained().await;
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.delivered), (100, 100));
    assert_eq!(status(&running.common.board).resent, 0);
    running.stop().await;
}

#[tokio::test]
async fn r10_what_is_not_taken_now_is_sent_again_with_all_behind_it() {
    let mut refused = false;
    let remote = Remote::new(move |_, record| {
        if record.place.offset.0 == 3 && !std::mem::replace(&mut refused, true) {
            Reaction::Retry
        } else {
            Reaction::Confirm
        }
    });
    let running = Running::start(&remote, TIMING);
    running.append_many(20).await;
    running.drained().await;
    let sent = remote.sent();
    let again = sent.iter().rposition(|offset| *offset == 3).unwrap();
    assert!(again > 3, "{sent:?}");
    let last = sent[again..].to_vec();
    assert!(last.is_sorted() && last.last() == Some(&19), "{sent:?}");
    assert!(status(&running.common.board).resent >= 1);
    assert_eq!(running.buffer.stats().ledger.delivered, 20);
    running.stop().await;
}

#[tokio::test]
async fn r22_a_link_is_not_stalled_over_what_it_no_longer_owes() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    let running = Running::start(&remote, TIMING);
    running.append_many(1).await;
    running.state(LinkState::Stalled).await;
    running.buffer.settle(Offset(0), buffer::Outcome::Expired);
    running.state(LinkState::Online).await;
    running.stop().await;
}

#[tokio::test]
async fn r23_a_mute_remote_is_stalled_cut_and_begun_anew_with_one_record() {
    let remote = Remote::new(|connection, _| if connection == 1 { Reaction::Silence } else { Reaction::Confirm });
    let running = Running::start(&remote, TIMING);
    running.append_many(40).await;
    running.drained().await;
    running.state(LinkState::Online).await;
    let sent = remote.sent.lock().clone();
    let first = sent.iter().filter(|(connection, _)| *connection == 1).count();
    assert!(first >= 1, "{sent:?}");
    let second = sent.iter().filter(|(connection, _)| *connection == 2).map(|(_, offset)| *offset);
    assert_eq!(second.collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    assert_eq!(status(&running.common.board).resent, u64::try_from(first).unwrap());
    assert!(running.letters().is_empty(), "a stall accuses no record");
    running.stop().await;
}

#[tokio::test]
async fn r22_the_states_say_what_the_link_is_doing() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    let refused = LinkError::Transient("connection refused".into());
    let wrong = LinkError::Misconfigured("bad password".into());
    remote.connects.lock().extend([Err(refused), Err(wrong)]);
    let slow = Timing {
        retry_delay_min: Duration::from_millis(200),
        retry_delay_max: Duration::from_millis(200),
        misconfigured_delay: Duration::from_millis(200),
        ..TIMING
    };
    let running = Running::start(&remote, slow);
    let shown = running.state(LinkState::BackingOff).await;
    assert_eq!(shown.last_error.as_deref(), Some("connection refused"));
    assert!(shown.next_try_ms.is_some());
    let shown = running.state(LinkState::Misconfigured).await;
    assert_eq!(shown.last_error.as_deref(), Some("bad password"));
    running.state(LinkState::Online).await;
    remote.give(Answer::Blocked(true));
    running.state(LinkState::Blocked).await;
    running.append_many(1).await;
    remote.give(Answer::Blocked(false));
    running.state(LinkState::Online).await;
    running.state(LinkState::Stalled).await;
    running.stop().await;
}

#[tokio::test]
async fn a_connection_that_does_not_come_up_is_given_up() {
    struct Never;
    impl Sink for Never {
        type Connection = FakeConnection;
        fn window(&self) -> usize {
            1
        }
        async fn connect(&mut self) -> Result<FakeConnection, LinkError> {
            std::future::pending().await
        }
    }
    let running = Running::start(&Remote::new(|_, _| Reaction::Confirm), TIMING);
    let common = common(Timing { connect_timeout: Duration::from_millis(10), ..TIMING });
    let runner = SinkRunner::new(common.clone(), Never, &running.buffer.clone().into(), Drain::Fifo, None);
    let mut tasks = JoinSet::new();
    tasks.spawn(runner.run());
    eventually("backing off", || common.board.state() == LinkState::BackingOff).await;
    assert_eq!(status(&common.board).last_error.as_deref(), Some("no connection within 10ms"));
    running.stop().await;
}

#[tokio::test]
async fn r08_a_lapsed_record_expires_and_the_remote_gets_what_is_left_of_the_shorter_life() {
    let remote = Remote::new(|_, record| {
        assert_eq!(record.envelope.message.expiry_s, Some(600), "as published");
        assert!(record.expiry_left_s.is_some_and(|left| (50..=60).contains(&left)), "{record:?}");
        Reaction::Confirm
    });
    let running = Running::start(&remote, TIMING);
    let now = crate::clock::moment();
    let published = Message { expiry_s: Some(600), accepted: now, ..message("a", b"x") };
    let waited = Message { accepted: Moment { up_ms: now.up_ms - 6_000, ..now }, ..published.clone() };
    running.append_expiring(&waited, Some(WallMs(now.wall.0 + 5_999))).await;
    running.append_expiring(&published, Some(WallMs(now.wall.0 + 60_000))).await;
    running.drained().await;
    assert_eq!(remote.sent(), [1]);
    let ledger = running.buffer.stats().ledger;
    assert_eq!((ledger.expired, ledger.delivered), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_record_that_does_not_read_is_a_dead_letter_and_blocks_nothing() {
    let remote = Remote::new(|_, _| Reaction::Confirm);
    let running = Running::start(&remote, TIMING);
    running.append_bytes(&[b"rubbish"], None).await;
    running.append_many(1).await;
    running.drained().await;
    let letters = running.letters();
    assert!(letters[0].reason.starts_with("damaged record"), "{}", letters[0].reason);
    assert_eq!(&letters[0].body[..], b"rubbish");
    assert_eq!(remote.sent(), [1]);
    running.stop().await;
}

#[tokio::test]
async fn r28_a_record_that_its_route_could_not_make_is_a_dead_letter_with_the_reason() {
    let remote = Remote::new(|_, _| Reaction::Confirm);
    let running = Running::start(&remote, TIMING);
    let head = Head { failure: Some("transform: no `{payload.line}`"), ..Head::to("{payload.line}") }.encode();
    running.append_bytes(&[&head, &message("a", b"21.5").encode()], None).await;
    running.append_many(1).await;
    running.drained().await;
    let letters = running.letters();
    assert_eq!((&*letters[0].reason, letters[0].attempts), ("transform: no `{payload.line}`", 0));
    assert_eq!(remote.sent(), [1], "it is never sent, and blocks nothing");
    running.stop().await;
}

#[tokio::test]
async fn the_sequence_names_the_log_and_counts_on() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    *remote.script.lock() = Box::new(move |_, record| {
        kept.lock().push(record.seq.clone());
        Reaction::Confirm
    });
    let running = Running::start(&remote, TIMING);
    running.append_many(2).await;
    running.drained().await;
    let id = running.buffer.id();
    assert_eq!(*seen.lock(), [format!("{id}-0-0"), format!("{id}-0-1")]);
    running.stop().await;
}

#[tokio::test]
async fn stopping_takes_the_answers_that_still_come() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    let running = Running::start(&remote, Timing { stall_after: Duration::from_secs(60), ..TIMING });
    running.append_many(3).await;
    eventually("all in flight", || remote.sent().len() == 3).await;
    running.common.token.cancel();
    tokio::task::yield_now().await;
    (0..3).for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
    let buffer = running.stop().await;
    eventually("delivered", || buffer.stats().ledger.delivered == 3).await;
}

#[tokio::test]
async fn a_real_remote_that_is_killed_in_the_middle_confirms_everything_when_it_is_back() {
    use crate::links::mqtt::tests::{Mosquitto, identity, left_out};
    use crate::links::mqtt::{MqttSink, Version};
    if left_out() {
        return;
    }
    for version in [Version::V5, Version::V4] {
        let mut mosquitto = Mosquitto::start("allow_anonymous true").await;
        let config = mosquitto.config(version);
        let running = Running::start_kind(MqttSink::new(&config, &identity(), true), TIMING, Drain::Fifo);
        let common = running.common.clone();
        running.append_many(1_000).await;
        eventually("some delivered", || status(&common.board).messages > 300).await;
        mosquitto.kill().await;
        running.state(LinkState::BackingOff).await;
        running.append_many(2_000).await;
        mosquitto.start_again().await;
        running.drained().await;
        assert_eq!(running.buffer.stats().ledger.delivered, 3_000);
        let shown = running.state(LinkState::Online).await;
        assert!(shown.resent <= 2 * 1024, "two windows at most: {}", shown.resent);
        running.stop().await;
    }
}

/// A link that was away while `backlog` records came, with a window of 64 of which 16 are the backlog's. What was sent is
/// told with its marks: offset, `tg-backfill`, retain.
async fn after_an_outage(
    backlog: u64,
    mut script: impl FnMut(&Outgoing) -> Reaction + Send + 'static,
) -> (Arc<Remote>, Running, Arc<Mutex<Vec<(u64, bool, bool)>>>) {
    let told = Arc::<Mutex<Vec<_>>>::default();
    let telling = Arc::clone(&told);
    let remote = Remote::new(move |_, record| {
        telling.lock().push((record.place.offset.0, record.backfill, record.envelope.message.retain));
        script(record)
    });
    remote.connects.lock().extend((0..100_000).map(|_| Err(LinkError::Transient("away".into()))));
    let patient = Timing { stall_after: Duration::from_secs(60), ..TIMING };
    let running = Running::start_kind(FakeSink(Arc::clone(&remote)), patient, Drain::LiveFirst { share: 25 });
    running.append_retained(backlog).await;
    running.buffer.mark().passed(backlog - 1).await.unwrap();
    remote.connects.lock().clear();
    running.state(LinkState::Online).await;
    (remote, running, told)
}

impl Running {
    async fn append_to(&self, lane: Lane, count: u64) {
        let (head, body) = (Envelope::encode_head("a", None, 0), message("a", b"").encode());
        for _ in 0..count {
            let buffer = self.lanes.lane(lane);
            let Admission::Granted(permit) = buffer.admit(head.len() + body.len()).await.unwrap() else {
                panic!("full")
            };
            let offset = buffer.append(permit, &[&head, &body], None);
            buffer.mark().passed(offset.0).await.unwrap();
        }
    }

    async fn append_retained(&self, count: u64) {
        let retained = Message { retain: true, ..message("a", b"") };
        for _ in 0..count {
            self.append(&retained).await;
        }
    }
}

#[tokio::test]
async fn r13_live_records_go_at_once_and_the_backlog_takes_its_share() {
    let (remote, running, told) = after_an_outage(500, |_| Reaction::Silence).await;
    eventually("its part of the window", || remote.sent().len() == 16).await;
    running.append_retained(300).await;
    eventually("the rest is for live records", || remote.sent().len() == 64).await;
    assert_eq!(remote.sent(), (0..16).chain(500..548).collect::<Vec<_>>());
    // While both have something to send, every fourth is backlog.
    for n in 0..200 {
        let next = remote.sent()[n];
        remote.give(Answer::Confirmed(at(next)));
        eventually("the next is sent", || remote.sent().len() == 65 + n).await;
    }
    let filled = remote.sent()[64..].iter().filter(|offset| **offset < 500).count();
    assert!((45..=55).contains(&filled), "{filled} of 200");
    let mut n = 200;
    while running.buffer.stats().ledger.buffered > 0 {
        let sent = remote.sent();
        sent[n..].iter().for_each(|offset| remote.give(Answer::Confirmed(at(*offset))));
        n = sent.len();
        tokio::task::yield_now().await;
    }
    running.drained().await;
    for (offset, backfill, retain) in told.lock().iter() {
        assert_eq!((*backfill, *retain), (*offset < 500, *offset >= 500), "{offset}");
    }
    let (filled, live): (Vec<u64>, Vec<u64>) = remote.sent().into_iter().partition(|offset| *offset < 500);
    assert_eq!((filled, live), ((0..500).collect(), (500..800).collect()), "each once, and in order");
    assert_eq!(running.buffer.streams(None), buffer::Streams { backlog: None, live: Offset(800) });
    running.stop().await;
}

#[tokio::test]
async fn r13_up_to_a_window_is_no_backlog() {
    let (remote, running, told) = after_an_outage(64, |_| Reaction::Confirm).await;
    running.append_retained(100).await;
    running.drained().await;
    assert_eq!(remote.sent(), (0..164).collect::<Vec<_>>());
    assert!(told.lock().iter().all(|(_, backfill, retain)| !backfill && *retain));
    running.stop().await;
}

#[tokio::test]
async fn r13_what_came_while_the_remote_held_us_back_is_backlog_too() {
    let (remote, running, told) = after_an_outage(1, |_| Reaction::Confirm).await;
    running.drained().await;
    remote.give(Answer::Blocked(true));
    running.state(LinkState::Blocked).await;
    running.append_retained(200).await;
    running.buffer.mark().passed(200).await.unwrap();
    remote.give(Answer::Blocked(false));
    running.drained().await;
    assert!(told.lock()[1..].iter().all(|(_, backfill, _)| *backfill), "{:?}", told.lock());
    running.stop().await;
}

#[tokio::test]
async fn r13_a_backlog_record_that_is_not_taken_now_is_sent_again_in_its_stream() {
    let mut refused = false;
    let (remote, running, told) = after_an_outage(200, move |record| {
        let first = record.place.offset.0 == 9 && !std::mem::replace(&mut refused, true);
        if first { Reaction::Retry } else { Reaction::Confirm }
    })
    .await;
    running.append_retained(50).await;
    running.drained().await;
    let filled: Vec<u64> = remote.sent().into_iter().filter(|offset| *offset < 200).collect();
    let again = filled.iter().rposition(|offset| *offset == 9).unwrap();
    assert!(again > 9 && filled[again..].is_sorted() && filled.last() == Some(&199), "{filled:?}");
    assert!(told.lock().iter().all(|(offset, backfill, _)| *backfill || *offset >= 200));
    running.stop().await;
}

#[tokio::test]
async fn r14_a_high_record_goes_before_whatever_is_not_yet_in_flight() {
    let remote = Remote::new(|_, _| Reaction::Silence);
    remote.connects.lock().extend((0..100_000).map(|_| Err(LinkError::Transient("away".into()))));
    let patient = Timing { stall_after: Duration::from_secs(60), ..TIMING };
    let used = [Lane::High, Lane::Low];
    let running = Running::start_lanes(FakeSink(Arc::clone(&remote)), patient, Drain::Fifo, &used);
    running.append_to(Lane::Low, 5).await;
    running.append_to(Lane::Normal, 100).await;
    running.append_to(Lane::High, 10).await;
    remote.connects.lock().clear();
    eventually("a window of 64", || remote.sent().len() == 64).await;
    assert_eq!(remote.sent(), (0..10).chain(0..54).collect::<Vec<_>>(), "the high ones, then the normal ones");
    running.append_to(Lane::High, 2).await;
    remote.give(Answer::Confirmed(at(0)));
    remote.give(Answer::Confirmed(at(1)));
    eventually("room for two", || remote.sent().len() == 66).await;
    assert_eq!(remote.sent()[64..], [10, 11], "not behind the 46 normal ones that were there before");
    let told = remote.told.lock().clone();
    let mut n = 66;
    told.iter()
        .filter(|place| **place != at(0) && **place != at(1))
        .for_each(|place| remote.give(Answer::Confirmed(*place)));
    while running.lanes.ledger().buffered > 0 {
        let told = remote.told.lock().clone();
        told[n..].iter().for_each(|place| remote.give(Answer::Confirmed(*place)));
        n = told.len();
        tokio::task::yield_now().await;
    }
    running.drained().await;
    let lanes = remote.told.lock().iter().map(|place| place.lane).collect::<Vec<_>>();
    assert_eq!(lanes[lanes.len() - 5..], [Lane::Low; 5], "the low ones are the last");
    assert_eq!(lanes.len(), 117, "each once");
    for (lane, buffer) in running.lanes.iter() {
        assert!(buffer.stats().ledger.balances(), "{lane:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn r11_the_sequence_says_which_lane() {
    let remote = Remote::new(|_, _| Reaction::Confirm);
    let used = [Lane::High, Lane::Low];
    let running = Running::start_lanes(FakeSink(Arc::clone(&remote)), TIMING, Drain::Fifo, &used);
    for lane in Lane::ALL {
        running.append_to(lane, 2).await;
        running.drained().await;
    }
    let id = running.lanes.id();
    let expected = [(1, 0), (1, 1), (0, 0), (0, 1), (2, 0), (2, 1)];
    assert_eq!(*remote.seqs.lock(), expected.map(|(lane, number)| format!("{id}-{lane}-{number}")));
    running.stop().await;
}

#[tokio::test]
async fn r13_with_lanes_live_records_go_first_and_the_backlog_in_the_order_of_its_lanes() {
    let remote = Remote::new(|_, _| Reaction::Confirm);
    remote.connects.lock().extend((0..100_000).map(|_| Err(LinkError::Transient("away".into()))));
    let (sink, used) = (FakeSink(Arc::clone(&remote)), [Lane::High, Lane::Low]);
    let running = Running::start_lanes(sink, TIMING, Drain::LiveFirst { share: 25 }, &used);
    for lane in [Lane::Low, Lane::Normal, Lane::High] {
        running.append_to(lane, 100).await;
    }
    remote.connects.lock().clear();
    running.drained().await;
    let lanes = remote.told.lock().iter().map(|place| place.lane).collect::<Vec<_>>();
    assert_eq!(lanes, Lane::ALL.map(|lane| [lane; 100]).concat(), "nothing was live, and the backlog is in order");
    running.stop().await;
}
