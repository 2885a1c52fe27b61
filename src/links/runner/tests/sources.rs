//! The inbound runner.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;
use crate::hub::{Mark, MarkSender};
use crate::links::{LinkError, Received, Source, SourceConnection};
use crate::message::{Properties, Qos};
use crate::telemetry::board::LinkState;
use crate::topic::TopicName;

/// The far end and the hub in one: what a test scripts and reads.
struct World {
    /// What each new connection delivers, all that was not acknowledged.
    messages: Mutex<Vec<u64>>,
    arrived: Notify,
    acknowledged: Mutex<Vec<u64>>,
    offered: Mutex<Vec<(u64, Option<Arc<str>>)>>,
    times: Mutex<Vec<Instant>>,
    /// Answers to the next offers; without one they are taken.
    verdicts: Mutex<VecDeque<OfferError>>,
    blocked: Mutex<bool>,
    unblocked: Notify,
    log: MarkSender,
    connects: Mutex<u64>,
    upkeeps: Mutex<u64>,
    unreadable: Mutex<u64>,
    is_short: AtomicBool,
    /// The remote forgets what it has sent.
    once: bool,
}

struct FakeSource(Arc<World>);

struct FakeConnection {
    world: Arc<World>,
    given: Vec<u64>,
}

impl Source for FakeSource {
    type Connection = FakeConnection;

    async fn connect(&mut self) -> Result<FakeConnection, LinkError> {
        *self.0.connects.lock() += 1;
        Ok(FakeConnection { world: Arc::clone(&self.0), given: Vec::new() })
    }
}

impl SourceConnection for FakeConnection {
    type Token = u64;

    async fn receive(&mut self) -> Result<Vec<Received<u64>>, LinkError> {
        loop {
            let acknowledged = self.world.acknowledged.lock().clone();
            let new = |number: &u64| !self.given.contains(number) && !acknowledged.contains(number);
            let batch = self.world.messages.lock().iter().copied().filter(new).collect::<Vec<_>>();
            if !batch.is_empty() {
                self.given.extend(&batch);
                let again = *self.world.connects.lock() > 1;
                let once = self.world.once;
                return Ok(batch.into_iter().map(|number| Received { once, ..received(number, again) }).collect());
            }
            self.world.arrived.notified().await;
        }
    }

    fn settled(&mut self, token: u64) -> Result<(), LinkError> {
        self.world.acknowledged.lock().push(token);
        Ok(())
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        *self.world.upkeeps.lock() += 1;
        Ok(())
    }

    fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.world.unreadable.lock())
    }

    async fn close(self) {}
}

/// Odd numbers come from channel `odd`.
fn received(number: u64, again: bool) -> Received<u64> {
    Received {
        channel: (number % 2 == 1).then(|| "odd".into()),
        publication: Publication {
            topic: TopicName::new("a").unwrap(),
            payload: Bytes::from(number.to_string()),
            qos: Qos::AtLeastOnce,
            retain: false,
            expiry_s: None,
            time_ms: None,
            properties: Properties::default(),
            client_id: None,
            user: None,
            packet_id: None,
            id: None,
        },
        token: number,
        again,
        once: false,
    }
}

impl Intake for World {
    async fn offer(self: Arc<Self>, origin: Arc<Origin>, publication: Publication) -> Result<Receipt, OfferError> {
        while *self.blocked.lock() {
            self.unblocked.notified().await;
        }
        let number = std::str::from_utf8(&publication.payload).unwrap().parse().unwrap();
        if let Some(refused) = self.verdicts.lock().pop_front() {
            return Err(refused);
        }
        self.offered.lock().push((number, origin.channel.clone()));
        self.times.lock().push(crate::clock::now());
        let mut receipt = Receipt::default();
        let mark: Mark = self.log.mark();
        receipt.add(mark, number);
        Ok(receipt)
    }

    fn is_short_of_memory(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }
}

struct Running {
    world: Arc<World>,
    common: Common,
    tasks: JoinSet<()>,
}

impl Running {
    fn start(messages: std::ops::Range<u64>) -> Self {
        Self::with(messages, false)
    }

    fn with(messages: std::ops::Range<u64>, once: bool) -> Self {
        let world = Arc::new(World {
            messages: Mutex::new(messages.collect()),
            arrived: Notify::new(),
            acknowledged: Mutex::default(),
            offered: Mutex::default(),
            times: Mutex::default(),
            verdicts: Mutex::default(),
            blocked: Mutex::default(),
            unblocked: Notify::new(),
            log: MarkSender::new(0),
            connects: Mutex::default(),
            upkeeps: Mutex::default(),
            unreadable: Mutex::default(),
            is_short: AtomicBool::new(false),
            once,
        });
        Self { world, common: common(TIMING), tasks: JoinSet::new() }
    }

    fn go(self) -> Self {
        self.go_blocked_at_most(Duration::from_secs(300))
    }

    fn go_blocked_at_most(self, blocked_max: Duration) -> Self {
        self.go_with(blocked_max, &SharedRate::default())
    }

    fn go_with(mut self, blocked_max: Duration, rate: &SharedRate) -> Self {
        let world = Arc::clone(&self.world);
        let runner = SourceRunner::new(self.common.clone(), FakeSource(Arc::clone(&world)), world);
        let mut runner = runner.paced(rate);
        runner.blocked_max = blocked_max;
        self.tasks.spawn(runner.run());
        self
    }

    fn offered(&self) -> Vec<u64> {
        self.world.offered.lock().iter().map(|(number, _)| *number).collect()
    }

    async fn acknowledged(&self, count: usize) -> Vec<u64> {
        eventually("acknowledged", || self.world.acknowledged.lock().len() == count).await;
        self.world.acknowledged.lock().clone()
    }

    async fn stop(mut self) {
        self.common.token.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), self.tasks.join_next()).await;
        ended.expect("stops in time").unwrap().unwrap();
    }
}

fn full() -> OfferError {
    OfferError::Full { link: LinkId::new("cloud") }
}

#[tokio::test]
async fn a_message_is_acknowledged_only_when_its_receipt_has_settled() {
    let running = Running::start(0..10).go();
    eventually("offered", || running.offered().len() == 10).await;
    assert!(running.world.acknowledged.lock().is_empty());
    assert_eq!(status(&running.common.board).in_flight, 10);
    running.world.log.advance(4);
    assert_eq!(running.acknowledged(4).await, [0, 1, 2, 3]);
    running.world.log.advance(10);
    assert_eq!(running.acknowledged(10).await, (0..10).collect::<Vec<_>>());
    let offered = running.world.offered.lock().clone();
    assert!(offered.iter().all(|(number, channel)| channel.is_some() == (number % 2 == 1)), "{offered:?}");
    eventually("counted", || status(&running.common.board).messages == 10).await;
    running.stop().await;
}

#[tokio::test]
async fn r5_a_full_target_makes_a_source_wait_in_order_and_without_acknowledging() {
    let running = Running::start(0..5);
    running.world.verdicts.lock().extend([full(), full(), full()]);
    let running = running.go();
    eventually("told", || status(&running.common.board).last_error.is_some()).await;
    assert_eq!(running.common.board.state(), LinkState::Online);
    eventually("offered", || running.offered().len() == 5).await;
    assert_eq!(running.offered(), [0, 1, 2, 3, 4]);
    running.world.log.advance(5);
    assert_eq!(running.acknowledged(5).await, [0, 1, 2, 3, 4]);
    assert_eq!(*running.world.connects.lock(), 1);
    running.stop().await;
}

#[tokio::test]
async fn r36_while_memory_is_short_a_source_receives_seldom_and_its_upkeep_and_acknowledgements_go_on() {
    let running = Running::start(0..2);
    running.world.is_short.store(true, Ordering::Relaxed);
    let running = running.go();
    eventually("offered", || running.offered().len() == 2).await;
    running.world.messages.lock().push(2);
    running.world.arrived.notify_one();
    let before = *running.world.upkeeps.lock();
    running.world.log.advance(2);
    assert_eq!(running.acknowledged(2).await, [0, 1]);
    eventually("upkeep", || *running.world.upkeeps.lock() > before + 3).await;
    assert_eq!(running.offered(), [0, 1]);
    eventually("offered", || running.offered() == [0, 1, 2]).await;
    running.stop().await;
}

#[tokio::test]
async fn r6_upkeep_and_acknowledgements_go_on_while_an_offer_waits() {
    let running = Running::start(0..2).go();
    eventually("offered", || running.offered().len() == 2).await;
    *running.world.blocked.lock() = true;
    running.world.messages.lock().push(2);
    running.world.arrived.notify_one();
    eventually("in the offer", || status(&running.common.board).in_flight == 3).await;
    let before = *running.world.upkeeps.lock();
    running.world.log.advance(2);
    assert_eq!(running.acknowledged(2).await, [0, 1]);
    eventually("upkeep", || *running.world.upkeeps.lock() > before + 3).await;
    *running.world.blocked.lock() = false;
    running.world.unblocked.notify_waiters();
    running.world.log.advance(3);
    assert_eq!(running.acknowledged(3).await, [0, 1, 2]);
    running.stop().await;
}

#[tokio::test]
async fn r6_a_source_that_is_blocked_for_long_comes_back_later() {
    let running = Running::start(0..2);
    *running.world.blocked.lock() = true;
    let running = running.go_blocked_at_most(Duration::from_millis(20));
    eventually("connected anew", || *running.world.connects.lock() >= 2).await;
    let told = status(&running.common.board).last_error.unwrap();
    assert_eq!(told, "a target's buffer is full, for 20ms");
    *running.world.blocked.lock() = false;
    running.world.unblocked.notify_waiters();
    running.world.log.advance(2);
    assert_eq!(running.acknowledged(2).await, [0, 1]);
    running.stop().await;
}

#[tokio::test]
async fn a_failed_target_drops_the_connection_and_the_remote_sends_again() {
    let running = Running::start(0..3);
    running.world.verdicts.lock().push_back(OfferError::Failed { link: LinkId::new("cloud"), reason: "disk".into() });
    let running = running.go();
    eventually("offered", || running.offered().len() == 3).await;
    assert_eq!(*running.world.connects.lock(), 2);
    let shown = status(&running.common.board);
    assert_eq!((shown.last_error.as_deref(), shown.resent), (Some("link `cloud` refuses: disk"), 3));
    running.world.log.advance(3);
    assert_eq!(running.acknowledged(3).await, [0, 1, 2]);
    running.stop().await;
}

#[tokio::test]
async fn a_rejected_receipt_is_never_acknowledged() {
    let running = Running::start(0..3).go();
    eventually("offered", || running.offered().len() == 3).await;
    running.world.log.fail("disk");
    eventually("connected anew", || *running.world.connects.lock() >= 2).await;
    assert!(running.world.acknowledged.lock().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn stopping_waits_for_open_receipts() {
    let running = Running::start(0..3).go();
    eventually("offered", || running.offered().len() == 3).await;
    running.common.token.cancel();
    running.world.log.advance(3);
    let world = Arc::clone(&running.world);
    running.stop().await;
    assert_eq!(*world.acknowledged.lock(), [0, 1, 2]);
}

#[tokio::test]
async fn what_a_remote_does_not_send_again_is_counted_where_it_is_lost() {
    let running = Running::with(0..5, true);
    *running.world.blocked.lock() = true;
    let running = running.go_blocked_at_most(Duration::from_millis(20));
    eventually("connected anew", || *running.world.connects.lock() >= 2).await;
    // The one in the offer and the four behind it.
    assert_eq!(status(&running.common.board).dropped["connection_ended"] % 5, 0);
    running.stop().await;
    let running = Running::with(0..1, true);
    running.world.verdicts.lock().push_back(OfferError::Failed { link: LinkId::new("cloud"), reason: "disk".into() });
    *running.world.unreadable.lock() = 3;
    let running = running.go();
    eventually("offered", || running.offered().len() == 1).await;
    let dropped = status(&running.common.board).dropped;
    assert_eq!((dropped.len(), dropped["not_stored"], dropped["unreadable"]), (2, 1, 3), "{dropped:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_comes_again_is_not_counted_as_lost() {
    let running = Running::start(0..5);
    running.world.verdicts.lock().push_back(OfferError::Failed { link: LinkId::new("cloud"), reason: "disk".into() });
    let running = running.go();
    eventually("offered", || running.offered().len() == 5).await;
    assert!(status(&running.common.board).dropped.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn upkeep_goes_on_while_the_rate_holds_what_came() {
    let one_an_hour = RateLimit {
        messages: Some(crate::units::Rate::parse_count("1/h").unwrap()),
        bytes: None,
        burst: Duration::from_secs(1),
    };
    let rate = SharedRate::new(Some(&one_an_hour), &crate::clock::system());
    let running = Running::start(0..3).go_with(Duration::from_secs(300), &rate);
    running.world.log.advance(3);
    eventually("told", || status(&running.common.board).held_by_rate).await;
    let before = *running.world.upkeeps.lock();
    eventually("upkeep", || *running.world.upkeeps.lock() > before + 3).await;
    assert!(status(&running.common.board).held_by_rate);
    running.stop().await;
}

#[tokio::test]
async fn what_comes_in_keeps_to_the_rate() {
    let running = Running::start(0..60).go_with(Duration::from_secs(300), &rate(200, Duration::from_millis(50)));
    running.world.log.advance(60);
    assert_eq!(running.acknowledged(60).await, (0..60).collect::<Vec<_>>(), "nothing is dropped, and in order");
    assert_no_faster(200, 10, &running.world.times.lock());
    eventually("no more", || !status(&running.common.board).held_by_rate).await;
    assert!((1..=60).contains(&status(&running.common.board).rate_waits));
    assert_eq!((running.common.board.state(), *running.world.connects.lock()), (LinkState::Online, 1));
    running.stop().await;
}

#[tokio::test]
async fn r22_outside_of_its_times_a_source_takes_nothing() {
    let clock = SetClock::at(12);
    let running = Running { common: at_night(&clock), ..Running::start(0..3) }.go();
    eventually("paused", || running.common.board.state() == LinkState::Paused).await;
    assert_eq!(*running.world.connects.lock(), 0);
    clock.set(22);
    eventually("offered", || running.offered().len() == 3).await;
    clock.set(6);
    running.world.log.advance(2);
    // What is durable is acknowledged before the connection goes; the rest comes again.
    eventually("paused", || running.common.board.state() == LinkState::Paused).await;
    assert_eq!(*running.world.acknowledged.lock(), [0, 1]);
    clock.set(23);
    running.world.log.advance(3);
    assert_eq!(running.acknowledged(3).await, [0, 1, 2]);
    assert_eq!(*running.world.connects.lock(), 2);
    running.stop().await;
}
