//! `sample`: what is held, when it goes, and what a kill leaves of it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::router::Change;

/// A clock that only a test moves.
#[derive(Debug)]
struct Hand(AtomicU64);

impl Hand {
    fn pass(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn moment(&self) -> Moment {
        let up_ms = self.0.load(Ordering::Relaxed);
        Moment { wall: WallMs(up_ms), up_ms, boot: 1, synced: true }
    }
}

/// A store that has durable what was staged before the last commit.
#[derive(Debug)]
struct Keeper {
    rows: Mutex<Rows>,
    mark: MarkSender,
    is_full: AtomicBool,
    /// It has no room for local deliveries.
    refuses: AtomicBool,
}

type Row = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Rows {
    staged: Vec<Staged>,
    next: u64,
    durable: Vec<HeldRow>,
}

impl Rows {
    fn remove(&mut self, (route, topic): &Row, id: &str) {
        self.durable.retain(|row| (&row.route, &row.topic, &*row.id) != (route, topic, id));
    }
}

#[derive(Debug)]
enum Staged {
    Hold(HeldRow, Option<String>),
    Unhold(Row, String),
}

impl Keeper {
    fn commit(&self) {
        let mut rows = self.rows.lock();
        for staged in std::mem::take(&mut rows.staged) {
            match staged {
                Staged::Hold(row, gave_way) => {
                    let key = (Arc::clone(&row.route), Arc::clone(&row.topic));
                    for id in [Some(row.id.clone()), gave_way].into_iter().flatten() {
                        rows.remove(&key, &id);
                    }
                    rows.durable.push(row);
                }
                Staged::Unhold(key, id) => rows.remove(&key, &id),
            }
        }
        self.mark.advance(rows.next);
    }

    fn durable(&self) -> Vec<HeldRow> {
        self.rows.lock().durable.clone()
    }
}

impl Local for Keeper {
    fn deliver(&self, batch: &[LocalDelivery<'_>]) -> Turn {
        let stored = if self.refuses.load(Ordering::Relaxed) { Stored::NoRoom } else { Stored::Nothing };
        batch.iter().map(|_| stored.clone()).collect::<Vec<_>>().into()
    }

    fn keep_copies(&self, _changes: KeptChanges) -> bool {
        true
    }

    fn staged(&self) -> Option<(Mark, u64)> {
        Some((self.mark.mark(), self.rows.lock().next.checked_sub(1)?))
    }

    fn hold(&self, row: HeldRow, gave_way: Option<String>) -> Stored {
        if self.is_full.load(Ordering::Relaxed) {
            return Stored::NoRoom;
        }
        let mut rows = self.rows.lock();
        rows.staged.push(Staged::Hold(row, gave_way));
        rows.next += 1;
        Stored::At(self.mark.mark(), rows.next - 1)
    }

    fn unhold(&self, route: &Arc<str>, topic: &Arc<str>, id: String) {
        let mut rows = self.rows.lock();
        rows.staged.push(Staged::Unhold((Arc::clone(route), Arc::clone(topic)), id));
        rows.next += 1;
    }
}

/// One run of a gateway on a disk that outlives it.
struct Run {
    hub: Hub,
    cloud: Buffer,
    keeper: Arc<Keeper>,
    clock: Arc<Hand>,
}

fn sampled(name: &str, from: &str, to: &str) -> Route {
    let mut route = Route::new(name, vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()]);
    route.gate = Some(Gate::Sample(Duration::from_secs(10)));
    route
}

fn plain(name: &str, from: &str, to: &str) -> Route {
    Route { gate: None, ..sampled(name, from, to) }
}

fn start(dir: &std::path::Path, run: u64, routes: Vec<Route>, kept: Vec<HeldRow>, size: u64) -> Run {
    start_synced(dir, run, routes, kept, size, SyncMode::Group)
}

/// With a log that has nothing durable before it is closed.
fn start_slow(dir: &std::path::Path, routes: Vec<Route>) -> Run {
    start_synced(dir, 1, routes, Vec::new(), BIG, SyncMode::Spill(Duration::from_secs(3_600)))
}

fn start_synced(
    dir: &std::path::Path,
    run: u64,
    routes: Vec<Route>,
    kept: Vec<HeldRow>,
    size: u64,
    sync: SyncMode,
) -> Run {
    let cloud = open(dir, "cloud", WhenFull::Reject, size, sync);
    let logs = vec![(LinkId::new("cloud"), cloud.clone().into())];
    let clock = Arc::new(Hand(AtomicU64::new(run * 1_000_000)));
    let ids = IdSource::new("test".into(), run);
    let hub = Hub::new(ids, Table::new(routes), logs, Arc::<Hand>::clone(&clock));
    let keeper = Arc::new(Keeper {
        rows: Mutex::default(),
        mark: MarkSender::new(0),
        is_full: AtomicBool::new(false),
        refuses: AtomicBool::new(false),
    });
    keeper.rows.lock().durable.clone_from(&kept);
    hub.attach(Arc::<Keeper>::clone(&keeper));
    hub.restore_samples(kept);
    Run { hub, cloud, keeper, clock }
}

impl Run {
    async fn publish(&self, topic: &str, payload: u64, qos: Qos) -> Answer {
        let publication = Publication { payload: payload.to_string().into(), qos, ..publication(topic, b"") };
        self.hub.offer(&from_broker(), vec![publication]).await.remove(0)
    }

    async fn sent(&self) -> Vec<(String, u64)> {
        let end = usize::try_from(self.cloud.end().0).unwrap();
        let sent = records(&self.cloud, end).await;
        let number = |sent: &Envelope| std::str::from_utf8(&sent.message.payload).unwrap().parse().unwrap();
        sent.iter().map(|sent| (sent.destination.to_string(), number(sent))).collect()
    }

    fn suppressed(&self) -> Vec<u64> {
        self.hub.route_counts().into_iter().map(|(_, counts)| counts.suppressed).collect()
    }

    /// What is in the log stays there: a kill is one for what samples hold.
    async fn end(self) {
        self.end_log().await;
    }

    /// All of it is durable.
    async fn end_log(&self) {
        self.cloud.close().await;
    }

    /// Until all that went is durable, and its rows are gone.
    async fn settled(&self) {
        if let Some(last) = self.cloud.end().0.checked_sub(1) {
            self.cloud.mark().passed(last).await.unwrap();
        }
        self.hub.let_go();
        self.keeper.commit();
    }
}

const QOS_1: Qos = Qos::AtLeastOnce;

#[tokio::test]
async fn r28_the_last_message_of_a_topic_goes_when_its_interval_is_over_and_those_before_it_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), 1, vec![sampled("s", "broker/t/{x}", "cloud/{x}")], Vec::new(), BIG);
    let mut receipts = Vec::new();
    for (topic, payload, later) in [("t/a", 1, 4_000), ("t/a", 2, 4_000), ("t/b", 3, 1_000), ("t/a", 4, 999)] {
        receipts.push(run.publish(topic, payload, QOS_1).await.unwrap());
        run.clock.pass(later);
    }
    assert!(receipts.iter().all(|receipt| receipt.decided().is_none()), "the store has not committed");
    run.keeper.commit();
    assert!(receipts.iter().all(|receipt| receipt.decided() == Some(Ok(()))));
    assert_eq!(run.hub.let_go(), Some(Duration::from_millis(1)));
    assert_eq!((run.cloud.end().0, run.suppressed()), (0, vec![2]));
    run.clock.pass(1);
    run.hub.let_go();
    assert_eq!(run.sent().await, [("a".to_owned(), 4)]);
    run.settled().await;
    assert_eq!(run.keeper.durable().len(), 1, "the other topic's");
    run.clock.pass(8_000);
    run.hub.let_go();
    assert_eq!(run.sent().await, [("a".to_owned(), 4), ("b".to_owned(), 3)]);
    run.settled().await;
    assert_eq!((run.keeper.durable(), run.hub.let_go()), (Vec::new(), None));
    assert_eq!(run.suppressed(), [2]);
}

#[tokio::test]
async fn r28_what_a_kill_leaves_of_a_sample_goes_at_the_next_start_with_the_same_id() {
    let dir = tempfile::tempdir().unwrap();
    let routes = || vec![sampled("s", "broker/t/{x}", "cloud/{x}")];
    let run = start(dir.path(), 1, routes(), Vec::new(), BIG);
    for (topic, payload, qos) in [("t/a", 1, QOS_1), ("t/b", 2, Qos::AtMostOnce), ("t/a", 3, Qos::AtMostOnce)] {
        drop(run.publish(topic, payload, qos).await);
    }
    run.keeper.commit();
    let ids = |rows: &[HeldRow]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    let killed = run.keeper.durable();
    run.hub.keep_samples();
    run.keeper.commit();
    let stopped = run.keeper.durable();
    run.end().await;
    let after = start(dir.path(), 2, routes(), killed.clone(), BIG);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 1)], "QoS 0 is nowhere after a kill");
    assert_eq!(records(&after.cloud, 1).await[0].message.id.to_string(), ids(&killed)[0]);
    after.settled().await;
    assert_eq!(after.keeper.durable(), []);
    after.end().await;
    let dir = tempfile::tempdir().unwrap();
    let after = start(dir.path(), 2, routes(), stopped, BIG);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 3), ("b".to_owned(), 2)], "and is there after a stop");
}

#[tokio::test]
async fn r28_a_sample_whose_link_has_no_room_stays_until_it_has_or_another_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![sampled("s", "broker/t/{x}", "cloud/{x}"), plain("fill", "broker/fill", "cloud/fill")];
    let run = start(dir.path(), 1, routes, Vec::new(), 1 << 20);
    drop(run.publish("t/a", 1, QOS_1).await);
    let large: &'static [u8] = Box::leak(vec![b'1'; 60_000].into_boxed_slice());
    while run.hub.offer(&from_broker(), vec![publication("fill", large)]).await.remove(0).is_ok() {}
    let full = run.cloud.end();
    run.clock.pass(10_000);
    // What is large does not go in any more; what is small may.
    let large = Publication { qos: QOS_1, ..publication("t/a", large) };
    assert!(run.hub.offer(&from_broker(), vec![large]).await.remove(0).is_ok());
    assert_eq!(run.suppressed(), [1, 0]);
    assert_eq!(run.hub.let_go(), Some(Duration::from_secs(1)));
    assert_eq!(run.cloud.end(), full);
    drop(run.publish("t/a", 2, QOS_1).await);
    (0..full.0).for_each(|offset| run.cloud.settle(Offset(offset), Outcome::Delivered));
    run.clock.pass(1_000);
    run.hub.let_go();
    assert_eq!((run.cloud.end().0, run.suppressed()), (full.0 + 1, vec![2, 0]));
    run.keeper.is_full.store(true, Ordering::Relaxed);
    assert_eq!(run.publish("t/c", 3, QOS_1).await.unwrap_err(), OfferError::StoreFull);
    assert!(run.publish("t/c", 3, Qos::AtMostOnce).await.is_ok());
}

#[tokio::test]
async fn r34_a_reload_lets_go_what_a_route_held_that_is_no_more_and_keeps_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![sampled("stays", "broker/t/{x}", "cloud/old/{x}"), sampled("goes", "broker/u/{x}", "cloud/{x}")];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    drop((run.publish("t/a", 1, QOS_1).await, run.publish("u/b", 2, QOS_1).await));
    let logs = || vec![(LinkId::new("cloud"), Lanes::from(run.cloud.clone()))];
    run.hub.replace(Some(Table::new(vec![sampled("stays", "broker/t/{x}", "cloud/new/{x}")])), logs());
    assert_eq!(run.sent().await, [("b".to_owned(), 2)]);
    run.clock.pass(10_000);
    run.hub.let_go();
    assert_eq!(run.sent().await[1..], [("new/a".to_owned(), 1)]);
    run.settled().await;
    assert_eq!((run.keeper.durable(), run.hub.unrouted()), (Vec::new(), 0));
    // What an earlier run held for a route that is gone by now is counted.
    run.hub.replace(Some(Table::new(vec![sampled("x", "broker/t/{x}", "cloud/{x}")])), logs());
    drop(run.publish("t/a", 3, QOS_1).await);
    run.keeper.commit();
    let (rows, other) = (run.keeper.durable(), tempfile::tempdir().unwrap());
    let after = start(other.path(), 2, Vec::new(), rows, BIG);
    after.hub.let_go();
    assert_eq!((after.hub.unrouted(), after.cloud.end().0), (1, 0));
    after.settled().await;
    assert_eq!(after.keeper.durable(), []);
}

#[tokio::test]
async fn r10_what_waits_longer_than_its_route_says_now_does_not_come_behind_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), 1, vec![sampled("s", "broker/t/{x}", "cloud/{x}")], Vec::new(), BIG);
    let replace = |gate| {
        let table = Table::new(vec![Route { gate, ..plain("s", "broker/t/{x}", "cloud/{x}") }]);
        run.hub.replace(Some(table), vec![(LinkId::new("cloud"), Lanes::from(run.cloud.clone()))]);
    };
    drop(run.publish("t/a", 1, QOS_1).await);
    run.clock.pass(500);
    replace(Some(Gate::Sample(Duration::from_secs(1))));
    assert_eq!(run.hub.let_go(), Some(Duration::from_millis(500)));
    replace(Some(Gate::Sample(Duration::from_secs(3_600))));
    assert_eq!(run.hub.let_go(), Some(Duration::from_millis(3_599_500)));
    assert_eq!(run.cloud.end().0, 0);
    let planned = run.hub.targets.load_full();
    replace(None);
    assert_eq!(run.sent().await, [("a".to_owned(), 1)], "what follows goes at once");
    // So does what was on its way into the sample then.
    let hour = || Some(Gate::Sample(Duration::from_secs(3_600)));
    let message = records(&run.cloud, 1).await.remove(0).message;
    let plan = plan::plan(&planned.table, &from_broker(), &message, Gates::of(9));
    let mut receipt = Receipt::default();
    assert!(run.hub.hold_all(plan.sampled, &Arc::new(message), true, &mut receipt));
    run.hub.let_go();
    assert_eq!(run.cloud.end().0, 2);
    // What was planned by one interval and comes into another waits for that, and then for what follows.
    let message = records(&run.cloud, 2).await.remove(0).message;
    replace(Some(Gate::Sample(Duration::from_secs(1))));
    let planned = run.hub.targets.load_full();
    replace(hour());
    let plan = plan::plan(&planned.table, &from_broker(), &message, Gates::of(9));
    assert!(run.hub.hold_all(plan.sampled, &Arc::new(message), true, &mut receipt));
    replace(Some(Gate::Sample(Duration::from_secs(2))));
    replace(hour());
    replace(Some(Gate::Sample(Duration::from_secs(1))));
    run.settled().await;
    let looks = run.hub.let_go().unwrap();
    assert!(looks <= Duration::from_secs(1), "{looks:?}");
    run.clock.pass(1_000);
    run.hub.let_go();
    assert_eq!(run.cloud.end().0, 3);
}

#[tokio::test]
async fn r34_what_a_removed_route_held_for_a_removed_link_goes_by_no_route_that_had_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let both = vec![sampled("stays", "broker/t/{x}", "cloud/{x}"), sampled("goes", "broker/t/{x}", "gone/{x}")];
    let run = start(dir.path(), 1, both, Vec::new(), BIG);
    drop(run.publish("t/a", 1, QOS_1).await);
    let logs = || vec![(LinkId::new("cloud"), Lanes::from(run.cloud.clone()))];
    run.hub.replace(Some(Table::new(vec![sampled("stays", "broker/t/{x}", "cloud/{x}")])), logs());
    assert_eq!((run.cloud.end().0, run.hub.unrouted()), (0, 1));
    // Route and link have other names.
    let logs = vec![(LinkId::new("sea"), Lanes::from(run.cloud.clone()))];
    run.hub.replace(Some(Table::new(vec![sampled("other", "broker/t/{x}", "sea/{x}")])), logs);
    assert_eq!((run.sent().await, run.hub.unrouted()), (vec![("a".to_owned(), 1)], 1));
}

#[tokio::test]
async fn r11_what_a_sample_lets_go_has_a_number_of_its_own_where_its_message_went_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![
        sampled("s", "broker/t/#", "cloud/sampled"),
        sampled("r", "broker/t/both", "cloud/again"),
        plain("p", "broker/t/both", "cloud/plain"),
    ];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    drop((run.publish("t/both", 1, QOS_1).await, run.publish("t/one", 2, QOS_1).await));
    run.clock.pass(10_000);
    run.hub.let_go();
    let sent = records(&run.cloud, 4).await;
    let numbers: Vec<_> = sent.iter().map(|sent| (&*sent.destination, sent.ordinal)).collect();
    assert_eq!(numbers, [("plain", 0), ("sampled", 0x8000), ("again", 0xc000), ("sampled", 0)]);
}

#[tokio::test]
async fn r11_what_a_sample_behind_a_sample_lets_go_has_a_number_of_its_own_too() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![
        plain("p", "broker/t/#", "cloud/plain"),
        sampled("a", "broker/t/#", "broker/u/{rest}"),
        plain("q", "broker/u/#", "cloud/first"),
        sampled("b", "broker/u/#", "cloud/second"),
    ];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    drop(run.publish("t/x", 1, QOS_1).await);
    for _ in 0..2 {
        run.clock.pass(10_000);
        run.hub.let_go();
    }
    let sent = records(&run.cloud, 3).await;
    let numbers: Vec<_> = sent.iter().map(|sent| (&*sent.destination, sent.ordinal)).collect();
    assert_eq!(numbers, [("plain", 0), ("first", 0x8000), ("second", 0xc000)]);
}

#[tokio::test]
async fn r1_what_a_sample_has_let_go_is_kept_until_a_log_has_it_whatever_comes_behind_it() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let routes = || vec![sampled("s", "broker/t/{x}", "cloud/{x}")];
    let run = start_slow(dir.path(), routes());
    drop(run.publish("t/a", 1, QOS_1).await);
    run.clock.pass(10_000);
    run.hub.let_go();
    assert_eq!(run.cloud.end().0, 1, "it has gone");
    let behind = run.publish("t/a", 2, QOS_1).await.unwrap();
    run.keeper.commit();
    assert_eq!(behind.decided(), Some(Ok(())));
    // Killed before the log is synced: its records are no more.
    let after = start(other.path(), 2, routes(), run.keeper.durable(), BIG);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 1), ("a".to_owned(), 2)]);
    after.settled().await;
    assert_eq!((after.keeper.durable(), after.suppressed()), (Vec::new(), vec![0]));
    // What is durable has no row any more; what came behind it has.
    run.end_log().await;
    run.hub.let_go();
    run.keeper.commit();
    assert_eq!(run.keeper.durable().len(), 1);
}

#[tokio::test]
async fn r28_what_comes_behind_a_newer_message_is_counted_and_no_kill_takes_both() {
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), 1, vec![sampled("s", "broker/t/{x}", "cloud/{x}")], Vec::new(), BIG);
    run.clock.pass(5);
    drop((run.publish("t/a", 1, QOS_1).await, run.publish("t/b", 2, Qos::AtMostOnce).await));
    run.clock.0.fetch_sub(5, Ordering::Relaxed);
    let late = [run.publish("t/a", 3, QOS_1).await.unwrap(), run.publish("t/b", 4, QOS_1).await.unwrap()];
    assert!(late.iter().all(|late| late.decided().is_none()), "what it gave way to is not safe yet");
    assert_eq!(run.publish("t/b", 5, Qos::AtMostOnce).await.unwrap().decided(), Some(Ok(())));
    run.keeper.commit();
    assert!(late.iter().all(|late| late.decided() == Some(Ok(()))));
    assert_eq!(run.suppressed(), [3]);
    let other = tempfile::tempdir().unwrap();
    let after = start(other.path(), 2, vec![sampled("s", "broker/t/{x}", "cloud/{x}")], run.keeper.durable(), BIG);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 1), ("b".to_owned(), 4)]);
    run.clock.pass(10_005);
    run.hub.let_go();
    assert_eq!(run.sent().await, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    run.settled().await;
    assert_eq!(run.keeper.durable(), []);
    run.keeper.is_full.store(true, Ordering::Relaxed);
    drop(run.publish("t/c", 6, Qos::AtMostOnce).await);
    run.clock.0.fetch_sub(5, Ordering::Relaxed);
    assert_eq!(run.publish("t/c", 7, QOS_1).await.unwrap_err(), OfferError::StoreFull);
    assert_eq!(run.suppressed(), [3], "it comes again");
}

#[tokio::test]
async fn r28_what_comes_behind_one_of_qos_0_is_kept_in_place_of_what_is_older_still() {
    let dir = tempfile::tempdir().unwrap();
    let routes = || vec![sampled("s", "broker/t/{x}", "cloud/{x}")];
    let run = start(dir.path(), 1, routes(), Vec::new(), BIG);
    drop(run.publish("t/a", 1, QOS_1).await);
    run.clock.pass(9);
    drop(run.publish("t/a", 4, Qos::AtMostOnce).await);
    // In between, and then one that is older than what the store has by then.
    for (before, payload) in [(4, 2), (2, 3)] {
        run.clock.0.fetch_sub(before, Ordering::Relaxed);
        let late = run.publish("t/a", payload, QOS_1).await.unwrap();
        run.keeper.commit();
        assert_eq!(late.decided(), Some(Ok(())));
    }
    let other = tempfile::tempdir().unwrap();
    let after = start(other.path(), 2, routes(), run.keeper.durable(), BIG);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 2)], "the last that was acknowledged");
    run.clock.pass(10_000);
    run.hub.let_go();
    assert_eq!((run.sent().await, run.suppressed()), (vec![("a".to_owned(), 4)], vec![3]));
    run.settled().await;
    assert_eq!(run.keeper.durable(), []);
}

#[tokio::test]
async fn r28_what_a_route_made_of_qos_0_waits_in_memory_where_the_store_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut raise = plain("raise", "broker/u/{x}", "broker/t/{x}");
    raise.change.qos = Some(QOS_1);
    let routes = vec![raise, sampled("s", "broker/t/{x}", "cloud/s"), sampled("r", "broker/t/{x}", "cloud/r")];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    run.keeper.is_full.store(true, Ordering::Relaxed);
    for payload in [1, 2] {
        assert_eq!(run.publish("u/a", payload, Qos::AtMostOnce).await.unwrap().decided(), Some(Ok(())));
    }
    assert_eq!(run.publish("u/a", 3, QOS_1).await.unwrap_err(), OfferError::StoreFull);
    run.clock.pass(10_000);
    run.hub.let_go();
    let mut sent = run.sent().await;
    sent.sort();
    assert_eq!(sent, [("r".to_owned(), 2), ("s".to_owned(), 2)]);
    assert_eq!((run.suppressed(), run.hub.unrouted()), (vec![0, 1, 1], 0));
}

#[tokio::test]
async fn r34_what_a_removed_route_held_for_two_links_goes_to_the_one_that_is_left_and_the_other_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = sampled("s", "broker/t/{x}", "cloud/{x}");
    both.to.push(To::parse("gone/{x}").unwrap());
    let run = start(dir.path(), 1, vec![both], Vec::new(), BIG);
    drop(run.publish("t/a", 1, QOS_1).await);
    let logs = vec![(LinkId::new("cloud"), Lanes::from(run.cloud.clone()))];
    run.hub.replace(Some(Table::new(Vec::new())), logs);
    assert_eq!((run.sent().await, run.hub.unrouted()), (vec![("a".to_owned(), 1)], 1));
}

#[tokio::test]
async fn at_a_stop_what_samples_hold_goes_once_by_the_routes_that_it_came_by() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![sampled("s", "broker/t/{x}", "cloud/{x}"), sampled("u", "broker/u/{x}", "broker/t/{x}")];
    let run = start_slow(dir.path(), routes);
    drop(run.publish("t/a", 1, QOS_1).await);
    run.clock.pass(10_000);
    run.hub.let_go();
    drop((run.publish("t/b", 2, Qos::AtMostOnce).await, run.publish("u/c", 3, QOS_1).await));
    run.hub.let_all_go();
    assert_eq!(run.cloud.end().0, 3);
    run.hub.stop();
    run.end_log().await;
    run.keeper.commit();
    run.hub.samples_settled().await;
    run.hub.keep_samples();
    run.keeper.commit();
    assert_eq!(run.keeper.durable(), [], "what the log has is not in the store too");
    let after = start(dir.path(), 2, Vec::new(), run.keeper.durable(), BIG);
    let sent = [("a", 1), ("b", 2), ("c", 3)].map(|(to, number)| (to.to_owned(), number));
    assert_eq!((after.sent().await, after.hub.unrouted()), (sent.into(), 0));
}

#[tokio::test]
async fn after_a_kill_what_a_route_held_goes_by_another_that_samples_the_same_or_is_counted() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = start(dir.path(), 1, vec![sampled("before", "broker/t/{x}", "cloud/{x}")], Vec::new(), BIG);
    drop((run.publish("t/a", 1, QOS_1).await, run.publish("t/b", 2, QOS_1).await));
    run.keeper.commit();
    let routes = vec![plain("every", "broker/#", "cloud/every"), sampled("after", "broker/t/a", "cloud/new")];
    let after = start(other.path(), 2, routes, run.keeper.durable(), BIG);
    after.hub.let_go();
    assert_eq!((after.sent().await, after.hub.unrouted()), (vec![("new".to_owned(), 1)], 1));
    after.settled().await;
    assert_eq!(after.keeper.durable(), []);
}

#[tokio::test]
async fn r18_an_unfinished_exchange_that_a_sample_has_already_comes_into_it_once() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let routes = || vec![sampled("s", "broker/t/{x}", "cloud/{x}"), sampled("r", "broker/t/{x}", "cloud/r")];
    let run = start(dir.path(), 1, vec![routes().remove(0)], Vec::new(), BIG);
    drop(run.publish("t/a", 1, Qos::ExactlyOnce).await);
    run.keeper.commit();
    let after = start(other.path(), 2, routes(), run.keeper.durable(), BIG);
    after.hub.let_go();
    let message = records(&after.cloud, 1).await.remove(0).message;
    after.settled().await;
    let answers = Answers::default();
    after.hub.resume(message, &Logged::default(), &answers).await;
    assert!(answers.take().remove(0).1.is_ok());
    after.clock.pass(10_000);
    after.hub.let_go();
    assert_eq!(after.sent().await, [("a".to_owned(), 1), ("r".to_owned(), 1)], "the other sample lacked it");
}

#[tokio::test]
async fn what_a_route_behind_a_sample_holds_back_is_counted_once_however_often_it_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let celsius = Change { payload: Some(Template::parse("{payload.c} C").unwrap()), ..Change::default() };
    let routes = vec![
        sampled("s", "broker/t/{x}", "broker/u/{x}"),
        Route { change: celsius, ..plain("c", "broker/u/{x}", "broker/w/{x}") },
    ];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    drop(run.publish("t/a", 1, QOS_1).await);
    run.keeper.refuses.store(true, Ordering::Relaxed);
    let failed = || run.hub.route_counts()[1].1.failed;
    for _ in 0..3 {
        run.clock.pass(10_000);
        assert_eq!(run.hub.let_go(), Some(Duration::from_secs(1)));
    }
    assert_eq!(failed(), 0);
    run.keeper.refuses.store(false, Ordering::Relaxed);
    run.clock.pass(1_000);
    run.hub.let_go();
    assert_eq!(failed(), 1);
}

#[tokio::test]
async fn r28_what_samples_write_to_the_broker_comes_into_samples_there_and_a_cycle_of_them_ends() {
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![
        sampled("a", "broker/a/#", "broker/b/{rest}"),
        sampled("b", "broker/b/#", "broker/a/{rest}"),
        plain("out", "broker/b/#", "cloud/{rest}"),
    ];
    let run = start(dir.path(), 1, routes, Vec::new(), BIG);
    drop(run.publish("a/x", 1, QOS_1).await);
    for _ in 0..20 {
        run.clock.pass(10_000);
        run.hub.let_go();
        run.settled().await;
    }
    assert_eq!((run.hub.let_go(), run.keeper.durable()), (None, Vec::new()));
    assert_eq!(run.cloud.end().0, 4, "each time round once, and at most eight samples");
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    Pass(u16),
    LetGo,
    Commit,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8).prop_map(Step::Publish),
        3 => (1..8_000_u16).prop_map(Step::Pass),
        4 => Just(Step::LetGo),
        3 => Just(Step::Commit),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// R1, R28: of what was acknowledged on a topic the last is sent, or one behind it; without kills each message is sent once or counted.
    #[test]
    fn r28_no_acknowledged_value_is_lost_to_a_sample_unless_a_later_one_took_its_place(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let routes = || vec![sampled("s", "broker/t/{x}", "cloud/{x}")];
            let mut run = start(dir.path(), 1, routes(), Vec::new(), BIG);
            let (mut number, mut runs) = (0, 1);
            let mut open: Vec<(u8, u64, Receipt)> = Vec::new();
            let mut acknowledged: BTreeMap<u8, u64> = BTreeMap::new();
            let finish = [Step::Commit, Step::Pass(60_000), Step::LetGo];
            for step in steps.into_iter().chain(finish) {
                match step {
                    Step::Publish(topic) => {
                        number += 1;
                        open.push((topic, number, run.publish(&format!("t/{topic}"), number, QOS_1).await.unwrap()));
                    }
                    Step::Pass(ms) => run.clock.pass(u64::from(ms)),
                    Step::LetGo => drop(run.hub.let_go()),
                    Step::Commit => run.keeper.commit(),
                    Step::Kill => {
                        runs += 1;
                        open.clear();
                        let kept = run.keeper.durable();
                        run.end().await;
                        run = start(dir.path(), runs, routes(), kept, BIG);
                    }
                }
                open.retain(|(topic, number, receipt)| {
                    let is_open = receipt.decided().is_none();
                    if !is_open {
                        acknowledged.insert(*topic, *number);
                    }
                    is_open
                });
            }
            run.settled().await;
            assert_eq!(run.keeper.durable(), []);
            let sent = run.sent().await;
            for (topic, last) in acknowledged {
                let topic = topic.to_string();
                let newest = sent.iter().filter(|(to, _)| *to == topic).map(|(_, number)| *number).max();
                assert!(newest >= Some(last), "{topic}: {last} was acknowledged, {newest:?} was sent");
            }
            if runs == 1 {
                assert_eq!(sent.len() as u64 + run.suppressed()[0], number);
            }
        });
    }
}
