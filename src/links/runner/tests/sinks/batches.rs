//! `batch`: what goes together, what an answer means for the parts, and what is found guilty.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::message::{Head, IdSource, MessageId};
use crate::router::{Batch, BatchForm, Form, From, Route, Table, To};

const BY_COUNT: Batch = Batch {
    form: BatchForm::Json,
    count: 4,
    bytes: ByteSize(1 << 20),
    linger: Duration::from_secs(3_600),
    compress: None,
};

/// What came, and under which id.
type Sent = Arc<Mutex<Vec<(String, String, MessageId, u16)>>>;

fn remote(mut script: impl FnMut(u64, &Outgoing) -> Reaction + Send + 'static) -> (Arc<Remote>, Sent) {
    let sent = Sent::default();
    let seen = Arc::clone(&sent);
    let remote = Remote::new(move |connection, record| {
        let Envelope { destination, ordinal, message, .. } = &record.envelope;
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        seen.lock().push((destination.to_string(), payload, message.id.clone(), *ordinal));
        script(connection, record)
    });
    (remote, sent)
}

fn payloads(sent: &Sent) -> Vec<String> {
    sent.lock().iter().map(|(_, payload, ..)| payload.clone()).collect()
}

fn start(remote: &Arc<Remote>, timing: Timing, batch: Option<Batch>) -> Running {
    start_all(remote, timing, &[("r", batch)])
}

fn start_all(remote: &Arc<Remote>, timing: Timing, routes: &[(&str, Option<Batch>)]) -> Running {
    start_made(remote, timing, routes, &[])
}

fn start_lanes(remote: &Arc<Remote>, routes: &[(&str, Option<Batch>)], used: &[Lane]) -> Running {
    start_made(remote, PATIENT, routes, used)
}

fn start_made(remote: &Arc<Remote>, timing: Timing, routes: &[(&str, Option<Batch>)], used: &[Lane]) -> Running {
    start_to(remote, timing, routes, used, "hq/a")
}

fn start_to(
    remote: &Arc<Remote>,
    timing: Timing,
    routes: &[(&str, Option<Batch>)],
    used: &[Lane],
    to: &str,
) -> Running {
    start_with_hub(remote, timing, routes, used, to).0
}

fn table(routes: &[(&str, Option<Batch>)], to: &str) -> Table {
    let from = vec![From::parse("broker/a", Form::Topic).unwrap()];
    let route = |(name, batch): &(&str, Option<Batch>)| Route {
        batch: *batch,
        ..Route::new(name, from.clone(), vec![To::parse(to).unwrap()])
    };
    Table::new(routes.iter().map(route).collect())
}

fn start_with_hub(
    remote: &Arc<Remote>,
    timing: Timing,
    routes: &[(&str, Option<Batch>)],
    used: &[Lane],
    to: &str,
) -> (Running, Arc<Hub>) {
    let (ids, table) = (IdSource::new("test".into(), 1), table(routes, to));
    let hub = Arc::new(Hub::new(ids, table, Vec::new(), crate::clock::system()));
    let (sink, drain) = (FakeSink(Arc::clone(remote)), Drain::Fifo);
    let running =
        Running::start_made(sink, common(timing), &SharedRate::default(), drain, used, |runner| runner.remade_by(&hub));
    (running, hub)
}

impl Running {
    async fn append_part(&self, destination: &str, payload: &str) {
        self.append_part_of("r", destination, payload).await;
    }

    async fn append_part_of(&self, route: &str, destination: &str, payload: &str) {
        self.append_part_to(Lane::Normal, route, destination, payload).await;
    }

    async fn append_part_to(&self, lane: Lane, route: &str, destination: &str, payload: &str) {
        // A batch of one is known by its part's id.
        static PARTS: AtomicU64 = AtomicU64::new(1);
        let mut message = message("a", b"");
        message.id.counter = PARTS.fetch_add(1, Ordering::Relaxed);
        message.payload = Bytes::copy_from_slice(payload.as_bytes());
        let (head, body) = (Head { batch: Some(route), ..Head::to(destination) }.encode(), message.encode());
        let buffer = self.lanes.lane(lane);
        let Admission::Granted(permit) = buffer.admit(head.len() + body.len()).await.unwrap() else { panic!("full") };
        let _offset = buffer.append(permit, &[&head, &body], None);
    }

    async fn append_parts(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.append_part("a", &number.to_string()).await;
        }
    }
}

fn has_five(record: &Outgoing) -> bool {
    record.envelope.message.payload.contains(&b'5')
}

fn is_batch(record: &Outgoing) -> bool {
    record.envelope.message.payload.starts_with(b"[")
}

/// Of the remote.
const WINDOW: u64 = 64;

const PATIENT: Timing = Timing { stall_after: Duration::from_secs(60), ..TIMING };

#[tokio::test]
async fn r28_so_many_go_together_their_answer_is_for_all_and_the_rest_goes_when_the_link_stops() {
    let (remote, sent) = remote(|_, _| Reaction::Silence);
    let running = start(&remote, PATIENT, Some(BY_COUNT));
    running.append_parts(0..10).await;
    eventually("two batches", || sent.lock().len() == 2).await;
    assert_eq!(payloads(&sent), ["[0,1,2,3]", "[4,5,6,7]"]);
    assert_eq!(remote.sent(), [3, 7], "by the places of their last parts");
    remote.give(Answer::Confirmed(at(7)));
    remote.give(Answer::Confirmed(at(3)));
    eventually("the cursor passes all parts", || running.buffer.stats().cursor == Offset(8)).await;
    assert_eq!(sent.lock().len(), 2, "the others wait");
    let seen = Arc::clone(&remote);
    let answer = async {
        eventually("the rest", || seen.sent().len() == 3).await;
        seen.give(Answer::Confirmed(at(9)));
    };
    let (buffer, ()) = tokio::join!(running.stop(), answer);
    assert_eq!(payloads(&sent)[2..], ["[8,9]"]);
    assert_eq!((buffer.stats().ledger.delivered, buffer.stats().ledger.buffered), (10, 0));
}

#[tokio::test]
async fn r28_a_batch_goes_when_its_first_part_has_waited_or_its_bytes_are_full() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { linger: Duration::from_millis(20), count: 1_000, ..BY_COUNT }));
    running.append_parts(0..3).await;
    running.drained().await;
    let together = payloads(&sent).join("").replace("][", ",");
    assert_eq!(together, "[0,1,2]");
    running.stop().await;

    let (remote, sent) = self::remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { count: 1_000, bytes: ByteSize(10), ..BY_COUNT }));
    for payload in ["1234", "12345", "12", "12345678901", "7"] {
        running.append_part("a", payload).await;
    }
    eventually("what is full", || sent.lock().len() == 3).await;
    running.stop().await;
    assert_eq!(payloads(&sent).concat(), "[1234,12345][12][12345678901][7]");
}

#[tokio::test]
async fn r28_each_destination_has_batches_of_its_own_and_what_is_no_part_passes_them() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { count: 2, ..BY_COUNT }));
    for (destination, payload) in [("a", "1"), ("b", "2")] {
        running.append_part(destination, payload).await;
    }
    running.append(&message("x", b"single")).await;
    for (destination, payload) in [("b", "3"), ("a", "4")] {
        running.append_part(destination, payload).await;
    }
    running.drained().await;
    let sent: Vec<_> = sent.lock().iter().map(|(to, payload, ..)| format!("{to} {payload}")).collect();
    assert_eq!(sent, ["a single", "b [2,3]", "a [1,4]"]);
    running.stop().await;
}

/// What is due in lanes is as much as the window has, behind parts that wait for long.
#[tokio::test]
async fn r09_what_waits_longest_goes_before_it_holds_all_others_up() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let fast = Batch { linger: Duration::from_millis(20), count: 2, ..BY_COUNT };
    let running = start_lanes(&remote, &[("slow", Some(BY_COUNT)), ("fast", Some(fast))], &[Lane::High, Lane::Low]);
    let mut all = 0;
    // Each counts for half a message; a lane alone has less of them than would let its slow one go.
    for (lane, many) in [(Lane::High, 44), (Lane::Normal, 44), (Lane::Low, 44)] {
        running.append_part_to(lane, "slow", "slow", "0").await;
        for number in 0..many {
            running.append_part_to(lane, "fast", &format!("{}-{number}", lane.name()), &number.to_string()).await;
        }
        all += many;
        let destinations = || {
            let fast = sent.lock().iter().map(|(to, ..)| to.clone()).filter(|to| to != "slow").collect::<Vec<_>>();
            fast.into_iter().collect::<std::collections::HashSet<_>>().len()
        };
        eventually("what is due goes", || destinations() == all).await;
    }
    assert!(payloads(&sent).contains(&"[0]".to_owned()), "one that waited went, to let them go");
    running.stop().await;
}

/// Records of so many groups in turn, through a window of so many messages, which are all answered when it is full.
async fn in_turn(groups: u64, window: u64, batch: Batch) {
    let (mut remote, _) = remote(|_, _| Reaction::Silence);
    let count = batch.count as u64;
    let parts = Arc::new(Mutex::new(Vec::new()));
    let (seen, is_over) = (Arc::clone(&parts), Arc::new(Mutex::new(false)));
    let over = Arc::clone(&is_over);
    *remote.script.lock() = Box::new(move |_, record| {
        let offsets: Vec<u64> = serde_json::from_slice(&record.envelope.message.payload).unwrap();
        seen.lock().push(offsets);
        if *over.lock() { Reaction::Confirm } else { Reaction::Silence }
    });
    Arc::get_mut(&mut remote).unwrap().window = usize::try_from(window).unwrap();
    remote.connects.lock().extend((0..100_000).map(|_| Err(LinkError::Transient("away".into()))));
    let running = start(&remote, PATIENT, Some(batch));
    let records = 3 * window * count + 2 * groups.max(window * count);
    for number in 0..records {
        running.append_part(&format!("to-{}", number % groups), &number.to_string()).await;
    }
    running.buffer.mark().passed(records - 1).await.unwrap();
    remote.connects.lock().clear();
    let waiting = window.div_ceil(2) * count;
    let sum = || parts.lock().iter().map(|parts| parts.len() as u64).sum::<u64>();
    let (mut answered, mut trips) = (0, 0_u64);
    while sum() + waiting + window * count <= records {
        let sent = || parts.lock().len() as u64;
        let case =
            format!("{groups} groups, a window of {window}, {count} in a batch: full again after {trips} round trips");
        eventually(&case, || sent() == answered + window).await;
        let cursor = running.buffer.stats().cursor.0;
        let again = parts.lock().iter().filter(|parts| parts.last() >= Some(&cursor)).map(Vec::len).sum::<usize>();
        assert!(again as u64 <= (window + 1) * count, "a kill repeats {again} records");
        let open = remote.sent().split_off(usize::try_from(answered).unwrap());
        open.into_iter().for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
        (answered, trips) = (answered + window, trips + 1);
    }
    assert!(trips >= 2, "{trips}");
    // What is waiting may be half a window of full batches: each group's part of it goes together.
    let together = (window * count / 2 / groups).clamp(1, count);
    let messages = parts.lock().len() as u64;
    assert!(sum() * 10 >= messages * together * 7, "{} parts in {messages} batches, not {together} in each", sum());
    *is_over.lock() = true;
    let open = remote.sent().split_off(usize::try_from(answered).unwrap());
    open.into_iter().for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
    eventually("the rest, but for what waits", || sum() + waiting >= records).await;
    let stats = running.stop().await.stats();
    assert!(stats.ledger.balances() && stats.ledger.buffered <= waiting, "what was not read yet: {stats:?}");
}

#[tokio::test]
async fn r09_more_groups_than_the_window_has_messages_keep_it_full_and_a_kill_repeats_no_more_for_it() {
    for (groups, window, count) in [(24, 16, 4), (64, 16, 4), (64, 16, 20), (3, 1, 4), (40, 1, 2)] {
        in_turn(groups, window, Batch { count, ..BY_COUNT }).await;
    }
}

/// Parts of a batch that was sent come behind more that are due than the window has messages.
#[tokio::test]
async fn r09_what_was_sent_before_does_not_wait_behind_what_waits_for_it() {
    let is_long = |record: &Outgoing| *record.envelope.destination == *"long";
    let (remote, sent) = remote(move |connection, record| match connection {
        1 if is_long(record) => Reaction::Die,
        1 => Reaction::Silence,
        _ => Reaction::Confirm,
    });
    let two = Batch { count: 2, ..BY_COUNT };
    let fast = Batch { linger: Duration::from_secs(1), count: 1_000, ..BY_COUNT };
    let away = || (0..100_000).map(|_| Err(LinkError::Transient("away".into())));
    remote.connects.lock().extend(away());
    let running = start_all(&remote, PATIENT, &[("long", Some(two)), ("fast", Some(fast))]);
    let many = 2 * WINDOW;
    running.append_part_of("long", "long", "first").await;
    for number in 1..=many {
        running.append_part_of("fast", &format!("to-{number}"), &number.to_string()).await;
    }
    running.append_part_of("long", "long", "last").await;
    running.buffer.mark().passed(many + 1).await.unwrap();
    // All are read together, before any of the fast ones is due; and before there is a second connection all of them are.
    let connect_once = |mut connects: parking_lot::MutexGuard<'_, VecDeque<_>>| {
        connects.clear();
        connects.extend(std::iter::once(Ok(())).chain(away()));
    };
    connect_once(remote.connects.lock());
    eventually("it went and died", || sent.lock().iter().any(|(to, ..)| to == "long")).await;
    tokio::time::sleep(fast.linger).await;
    remote.connects.lock().clear();
    running.drained().await;
    let (buffer, letters) = (running.buffer.stats(), running.letters());
    assert_eq!((buffer.ledger.delivered, letters.len()), (many + 2, 0));
    let long: Vec<_> = sent.lock().iter().filter(|(to, ..)| to == "long").cloned().collect();
    assert_eq!((long.len(), long[0].1.as_str(), &long[1]), (2, r#"["first","last"]"#, &long[0]), "a copy, and whole");
    running.stop().await;
}

#[tokio::test]
async fn r28_of_a_batch_that_is_refused_only_the_guilty_part_becomes_a_dead_letter() {
    for reaction in [Reaction::Refuse, Reaction::TooLarge] {
        let (remote, sent) =
            remote(move |_, record| if has_five(record) { reaction.clone() } else { Reaction::Confirm });
        let running = start(&remote, PATIENT, Some(BY_COUNT));
        running.append_parts(0..8).await;
        running.drained().await;
        let letters: Vec<_> = running.letters().iter().map(|letter| letter.offset.0).collect();
        assert_eq!(letters, [5]);
        assert_eq!(payloads(&sent), ["[0,1,2,3]", "[4,5,6,7]", "[4]", "[5]", "[6]", "[7]"]);
        let letter = Envelope::decode(running.letters()[0].body.clone()).unwrap();
        assert_eq!(
            (letter.batch.as_deref(), &letter.message.payload[..]),
            (Some("r"), &b"5"[..]),
            "sent again it is a part"
        );
        running.append_parts(8..12).await;
        running.drained().await;
        assert_eq!(payloads(&sent).last().unwrap(), "[8,9,10,11]");
        running.stop().await;
    }
}

#[tokio::test]
async fn r16_of_a_batch_that_kills_connections_only_the_guilty_part_becomes_a_dead_letter() {
    let (remote, sent) = remote(|_, record| if has_five(record) { Reaction::Die } else { Reaction::Confirm });
    let running = start(&remote, TIMING, Some(BY_COUNT));
    running.append_parts(0..12).await;
    running.drained().await;
    let letters = running.letters();
    assert_eq!(letters.iter().map(|letter| letter.offset.0).collect::<Vec<_>>(), [5]);
    assert!(letters[0].reason.starts_with("connection lost at this message 3 times"), "{}", letters[0].reason);
    assert_eq!(running.buffer.stats().ledger.delivered, 11);
    assert!(payloads(&sent).contains(&"[4]".to_owned()), "{:?}", payloads(&sent));
    running.stop().await;
}

/// Breaks as often as that, whatever is sent.
fn breaking(remote: &mut Arc<Remote>, times: u64) {
    Arc::get_mut(remote).unwrap().breaking = times;
}

#[tokio::test]
async fn r16_a_part_that_waits_is_not_in_flight_and_no_lost_connection_accuses_it() {
    let (mut remote, sent) = remote(|_, _| Reaction::Confirm);
    breaking(&mut remote, 12);
    let running = start(&remote, TIMING, Some(BY_COUNT));
    running.append_parts(0..1).await;
    eventually("a connection that lives", || *remote.connections.lock() == 13).await;
    assert!(sent.lock().is_empty() && running.letters().is_empty());
    assert_eq!(status(&running.common.board).in_flight, 0);
    running.append_parts(1..4).await;
    running.drained().await;
    assert_eq!((payloads(&sent).as_slice(), running.letters().len()), (["[0,1,2,3]".to_owned()].as_slice(), 0));
    assert_eq!(status(&running.common.board).resent, 0);
    running.stop().await;
}

#[tokio::test]
async fn r28_linger_counts_from_when_a_part_came_whatever_connections_do() {
    let (mut remote, sent) = remote(|_, _| Reaction::Silence);
    // None lives for as long as a part has to wait.
    breaking(&mut remote, u64::MAX);
    let running = start(&remote, TIMING, Some(Batch { linger: Duration::from_millis(150), ..BY_COUNT }));
    running.append_parts(0..1).await;
    eventually("it goes", || !sent.lock().is_empty()).await;
    assert!(*remote.connections.lock() > 1);
    running.stop().await;
}

#[tokio::test]
async fn r09_what_is_confirmed_behind_a_part_that_waits_is_not_sent_again() {
    let (remote, sent) = remote(|connection, record| match (connection, record.place.offset.0) {
        (1..=2, 20) => Reaction::Die,
        _ => Reaction::Confirm,
    });
    let running = start(&remote, TIMING, Some(BY_COUNT));
    running.append_parts(0..1).await;
    running.append_many(25).await;
    eventually("all but the part", || sent.lock().len() >= 27).await;
    running.append_parts(26..29).await;
    running.drained().await;
    let mut times = std::collections::BTreeMap::<u64, usize>::new();
    remote.sent().into_iter().for_each(|offset| *times.entry(offset).or_default() += 1);
    // 28: the batch, by its last part.
    assert_eq!(times.keys().copied().collect::<Vec<_>>(), (1..26).chain([28]).collect::<Vec<_>>());
    assert!((1..20).all(|offset| times[&offset] == 1) && times[&28] == 1, "{times:?}");
    assert_eq!(payloads(&sent).last().unwrap(), "[0,26,27,28]");
    assert_eq!((running.buffer.stats().ledger.delivered, running.letters().len()), (29, 0));
    running.stop().await;
}

#[tokio::test]
async fn r09_no_more_than_a_window_is_sent_ahead_of_a_part_that_waits_or_of_its_batch() {
    let (remote, sent) = remote(|_, record| if is_batch(record) { Reaction::Silence } else { Reaction::Confirm });
    let running = start(&remote, PATIENT, Some(BY_COUNT));
    running.append_parts(0..1).await;
    running.append_many(31).await;
    eventually("all that passes it", || sent.lock().len() == 31).await;
    running.append_many(100).await;
    eventually("half a window has passed: it goes", || payloads(&sent).contains(&"[0]".to_owned())).await;
    // The batch counts for a quarter of what it may have.
    eventually("a window in all", || sent.lock().len() == 65).await;
    assert_eq!((running.buffer.stats().cursor, payloads(&sent)[32].as_str()), (Offset(0), "[0]"));
    remote.give(Answer::Confirmed(at(0)));
    running.drained().await;
    running.stop().await;
}

#[tokio::test]
async fn r28_the_window_counts_messages_and_not_their_parts() {
    let (mut remote, sent) = remote(|_, _| Reaction::Silence);
    Arc::get_mut(&mut remote).unwrap().window_max = Some(2);
    let running = start(&remote, PATIENT, Some(Batch { count: 100, ..BY_COUNT }));
    running.append_parts(0..400).await;
    eventually("two in flight", || sent.lock().len() == 2).await;
    eventually("told", || status(&running.common.board).in_flight == 2).await;
    assert_eq!(remote.sent(), [99, 199], "each of a hundred");
    remote.give(Answer::Confirmed(at(99)));
    eventually("the third", || remote.sent() == [99, 199, 299]).await;
    eventually("settled", || running.buffer.stats().cursor == Offset(100)).await;
    [199, 299].into_iter().for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
    eventually("the fourth", || remote.sent() == [99, 199, 299, 399]).await;
    remote.give(Answer::Confirmed(at(399)));
    running.drained().await;
    running.stop().await;
}

#[tokio::test]
async fn r28_what_lapses_while_it_waits_is_not_sent() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { linger: Duration::from_millis(1_500), ..BY_COUNT }));
    let soon = WallMs(crate::clock::moment().wall.0 + 1_000);
    for (payload, expires) in [("1", Some(soon)), ("2", None), ("3", Some(soon))] {
        let head = Head { batch: Some("r"), ..Head::to("a") }.encode();
        let mut message = message("a", payload.as_bytes());
        (message.time, message.accepted) = (crate::clock::moment().wall, crate::clock::moment());
        running.append_bytes(&[&head, &message.encode()], expires).await;
    }
    running.drained().await;
    assert_eq!(payloads(&sent), ["[2]"]);
    assert_eq!((running.buffer.stats().ledger.expired, running.buffer.stats().ledger.delivered), (2, 1));
    running.stop().await;
}

#[tokio::test]
async fn r28_what_lapses_while_the_clients_queue_is_full_is_not_sent() {
    let left = Arc::<Mutex<Vec<Option<u32>>>>::default();
    let (seen, mut since) = (Arc::clone(&left), None);
    let (remote, sent) = remote(move |_, record| {
        seen.lock().push(record.expiry_left_s);
        // They were read before this, and last a second.
        let since = since.get_or_insert_with(crate::clock::now);
        let have_lapsed = since.elapsed() > Duration::from_millis(1_100);
        if have_lapsed { Reaction::Confirm } else { Reaction::Full }
    });
    let running = start(&remote, PATIENT, Some(Batch { count: 3, ..BY_COUNT }));
    for (payload, lasts_s) in [("1", 1), ("2", 60), ("3", 1)] {
        let mut message = message("a", payload.as_bytes());
        (message.time, message.accepted) = (crate::clock::moment().wall, crate::clock::moment());
        let expires = WallMs(message.accepted.wall.0 + lasts_s * 1_000);
        let head = Head { batch: Some("r"), ..Head::to("a") }.encode();
        running.append_bytes(&[&head, &message.encode()], Some(expires)).await;
    }
    running.drained().await;
    let (sent, left) = (sent.lock().clone(), left.lock().clone());
    assert_eq!((sent[0].1.as_str(), sent.last().unwrap().1.as_str()), ("[1,2,3]", "[2]"));
    assert_ne!(sent[0].2, sent.last().unwrap().2, "what has other parts is no copy");
    assert!(left.last() < left.first(), "what is left of it is told as it is then: {left:?}");
    assert_eq!((running.buffer.stats().ledger.expired, running.buffer.stats().ledger.delivered), (2, 1));
    running.stop().await;
}

#[tokio::test]
async fn r12_a_batch_is_sent_again_as_it_was_cut_and_one_of_other_parts_has_another_id() {
    let (remote, sent) = remote(|connection, record| match connection {
        1 | 2 if has_five(record) => Reaction::Die,
        1 => Reaction::Silence,
        2 => Reaction::Retry,
        _ => Reaction::Confirm,
    });
    let running = start(&remote, PATIENT, Some(Batch { linger: Duration::from_millis(5), ..BY_COUNT }));
    // As time cuts them: fewer than four, and no more come with them when they are sent again.
    for parts in [0..2, 2..3, 3..5] {
        let before = sent.lock().len();
        running.append_parts(parts.clone()).await;
        eventually("it went", || sent.lock().len() > before).await;
    }
    eventually("all of them", || payloads(&sent).concat().contains('4')).await;
    let first = sent.lock().clone();
    running.append_parts(5..9).await;
    running.drained().await;
    running.stop().await;
    let sent = sent.lock();
    let mut by_id = std::collections::HashMap::new();
    for (_, payload, id, ordinal) in sent.iter() {
        let known = by_id.entry((id.clone(), *ordinal)).or_insert(payload);
        assert_eq!(*known, payload, "one id, one batch");
    }
    for batch in &first {
        assert!(sent.iter().filter(|again| *again == batch).count() > 1, "{batch:?} came again: {sent:?}");
    }
    let origins: std::collections::HashSet<_> = sent
        .iter()
        .filter(|(_, payload, ..)| payload.contains(','))
        .map(|(_, _, id, ordinal)| (id.site.clone(), id.run, *ordinal))
        .collect();
    assert_eq!(origins.len(), 1, "whatever their sizes: {origins:?}");
}

#[tokio::test]
async fn r12_a_batch_is_whole_again_although_less_is_read_at_once_and_it_has_waited() {
    let (remote, sent) = remote(|connection, _| if connection == 1 { Reaction::Silence } else { Reaction::Confirm });
    remote.connects.lock().extend((0..100_000).map(|_| Err(LinkError::Transient("away".into()))));
    // What is read in one go goes together.
    let running = start(&remote, TIMING, Some(Batch { linger: Duration::ZERO, ..BY_COUNT }));
    running.append_parts(0..3).await;
    running.buffer.mark().passed(2).await.unwrap();
    remote.connects.lock().clear();
    // After the stall one record at a time is read.
    running.drained().await;
    running.stop().await;
    let sent = sent.lock();
    assert_eq!(sent.iter().map(|(_, payload, ..)| payload.as_str()).collect::<Vec<_>>(), ["[0,1,2]", "[0,1,2]"]);
    assert_eq!(sent[0], sent[1], "a copy");
}

#[tokio::test]
async fn r28_where_the_route_sends_no_batches_any_more_parts_go_as_they_are() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, None);
    running.append_parts(0..2).await;
    running.drained().await;
    assert_eq!(payloads(&sent), ["0", "1"]);
    running.stop().await;
}

/// The link that it leads to now may send batches, and this one none.
#[tokio::test]
async fn r28_where_the_route_leads_elsewhere_by_now_parts_go_as_they_are() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start_to(&remote, PATIENT, &[("r", Some(BY_COUNT))], &[], "elsewhere/a");
    running.append_parts(0..2).await;
    running.drained().await;
    assert_eq!(payloads(&sent), ["0", "1"]);
    running.stop().await;
}

#[tokio::test]
async fn r28_only_the_parts_of_a_batch_that_is_refused_go_one_by_one() {
    let (remote, sent) = remote(|_, record| if has_five(record) { Reaction::Refuse } else { Reaction::Confirm });
    let running = start(&remote, PATIENT, Some(BY_COUNT));
    for number in 1..=8_u64 {
        running.append_part(["even", "odd"][usize::from(number % 2 == 1)], &number.to_string()).await;
    }
    running.drained().await;
    let even: Vec<_> = payloads(&sent).into_iter().filter(|payload| payload.contains(['2', '4', '6', '8'])).collect();
    assert!(even.iter().all(|payload| payload == "[2,4,6,8]"), "the others stay together: {even:?}");
    let letters: Vec<_> = running.letters().iter().map(|letter| letter.offset.0).collect();
    assert_eq!((letters.as_slice(), running.buffer.stats().ledger.delivered), ([4].as_slice(), 7));
    running.stop().await;
}

#[tokio::test]
async fn r28_what_waits_when_its_route_changes_goes_as_that_says_now() {
    let soon = Batch { form: BatchForm::Ndjson, linger: Duration::from_millis(10), ..BY_COUNT };
    for (now, expected) in [(None, ["0", "1"].as_slice()), (Some(soon), &["0\n1\n"])] {
        let (remote, sent) = remote(|_, _| Reaction::Confirm);
        let (running, hub) = start_with_hub(&remote, PATIENT, &[("r", Some(BY_COUNT))], &[], "hq/a");
        running.append_parts(0..2).await;
        running.append(&message("x", b"single")).await;
        eventually("what is behind them, so that they wait", || payloads(&sent) == ["single"]).await;
        hub.replace(Some(table(&[("r", now)], "hq/a")), Vec::new());
        running.drained().await;
        assert_eq!(payloads(&sent)[1..], *expected);
        running.stop().await;
    }
}
