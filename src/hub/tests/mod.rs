//! The hub against real buffers on a temporary disk and a scripted broker.

mod chains;
mod known;
mod samples;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::buffer::{Compression, Config as BufferConfig, Lane, Offset, Outcome, SyncMode, WhenFull};
use crate::clock;
use crate::message::{Envelope, Properties};
use crate::router::{Form, From, Gate, Route, Template, To};
use crate::topic::TopicName;
use crate::units::ByteSize;

/// A broker that notes what it is given, and stores up to a mark that the test moves.
#[derive(Debug)]
struct Scripted {
    delivered: Mutex<Vec<String>>,
    store: MarkSender,
    stores: bool,
    no_room: AtomicBool,
}

impl Scripted {
    fn new(stores: bool) -> Arc<Self> {
        Arc::new(Self {
            delivered: Mutex::default(),
            store: MarkSender::new(0),
            stores,
            no_room: AtomicBool::new(false),
        })
    }
}

impl Local for Scripted {
    fn deliver(&self, batch: &[LocalDelivery<'_>]) -> Turn {
        let mut delivered = self.delivered.lock();
        batch
            .iter()
            .map(|delivery| {
                if self.no_room.load(Ordering::Relaxed) {
                    return Stored::NoRoom;
                }
                delivered.push(delivery.topic.to_string());
                if self.stores { Stored::At(self.store.mark(), delivered.len() as u64 - 1) } else { Stored::Nothing }
            })
            .collect::<Vec<_>>()
            .into()
    }

    fn keep_copies(&self, _changes: KeptChanges) -> bool {
        true
    }

    fn staged(&self) -> Option<(Mark, u64)> {
        let last = (self.delivered.lock().len() as u64).checked_sub(1)?;
        Some((self.store.mark(), last))
    }

    fn hold(&self, _row: HeldRow, _gave_way: Option<String>) -> Stored {
        Stored::Nothing
    }

    fn unhold(&self, _route: &Arc<str>, _topic: &Arc<str>, _id: String) {}
}

struct Bench {
    hub: Arc<Hub>,
    buffers: Vec<Buffer>,
    local: Arc<Scripted>,
    _dir: tempfile::TempDir,
}

fn bench(routes: &[(&str, &str)], links: &[(&str, WhenFull, u64)], stores: bool) -> Bench {
    let route = |(from, to): &(&str, &str)| {
        Route::new(from, vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
    };
    bench_of(routes.iter().map(route).collect(), links, stores, SyncMode::Group)
}

fn bench_of(routes: Vec<Route>, links: &[(&str, WhenFull, u64)], stores: bool, sync: SyncMode) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let buffers: Vec<_> =
        links.iter().map(|(name, when_full, size)| open(dir.path(), name, *when_full, *size, sync)).collect();
    let logs = links.iter().zip(&buffers).map(|((name, ..), buffer)| (LinkId::new(name), buffer.clone().into()));
    let ids = IdSource::new("test".into(), 1);
    let hub = Arc::new(Hub::new(ids, Table::new(routes), logs.collect(), clock::system()));
    let local = Scripted::new(stores);
    hub.attach(Arc::<Scripted>::clone(&local));
    Bench { hub, buffers, local, _dir: dir }
}

fn open(dir: &std::path::Path, name: &str, when_full: WhenFull, size: u64, sync: SyncMode) -> Buffer {
    let config = BufferConfig {
        dir: dir.join(name),
        max_size: ByteSize(size),
        max_age: None,
        when_full,
        sync,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    };
    Buffer::open(config, 16, clock::system()).unwrap().0
}

fn publication(topic: &str, payload: &'static [u8]) -> Publication {
    Publication {
        topic: TopicName::new(topic).unwrap(),
        payload: Bytes::from_static(payload),
        qos: Qos::AtLeastOnce,
        retain: false,
        expiry_s: None,
        time_ms: None,
        properties: Properties::default(),
        client_id: Some("press".into()),
        user: None,
        packet_id: None,
        id: None,
    }
}

fn from_broker() -> Source {
    Source { from: Endpoint::Broker, channel: None, takes_copies: false }
}

async fn records(buffer: &Buffer, count: usize) -> Vec<Envelope> {
    let mut reader = buffer.reader();
    let mut found = Vec::new();
    while found.len() < count {
        let batch = reader.next(100, 1 << 20).await.unwrap();
        found.extend(batch.into_iter().map(|record| Envelope::decode(record.body).unwrap()));
    }
    found
}

const BIG: u64 = 64 << 20;

#[tokio::test]
async fn r01_the_receipt_settles_only_when_every_target_and_the_store_are_durable() {
    let routes = [("broker/a/#", "cloud/x/{rest}"), ("broker/#", "lake/t")];
    let bench = bench(&routes, &[("cloud", WhenFull::DropOldest, BIG), ("lake", WhenFull::DropOldest, BIG)], true);
    let mut answers = bench.hub.offer(&from_broker(), vec![publication("a/b", b"1")]).await;
    let mut receipt = answers.remove(0).unwrap();
    let envelopes = records(&bench.buffers[0], 1).await;
    assert_eq!(&*envelopes[0].destination, "x/b");
    assert_eq!(records(&bench.buffers[1], 1).await[0].message.id, envelopes[0].message.id);
    assert_eq!(receipt.decided(), None, "the store has not committed");
    bench.local.store.advance(1);
    receipt.settled().await.unwrap();
}

#[tokio::test]
async fn r05_a_refused_publication_leaves_no_trace_anywhere() {
    let routes = [("broker/#", "roomy/t"), ("broker/#", "tight/t")];
    let links = [("roomy", WhenFull::DropOldest, BIG), ("tight", WhenFull::Reject, 1 << 20)];
    let bench = bench(&routes, &links, false);
    let payload: &'static [u8] = Box::leak(vec![7; 60_000].into_boxed_slice());
    let mut accepted = 0_u64;
    let refused = loop {
        let answer = bench.hub.offer(&from_broker(), vec![publication("a", payload)]).await.remove(0);
        match answer {
            Ok(mut receipt) => receipt.settled().await.unwrap(),
            Err(refused) => break refused,
        }
        accepted += 1;
        assert!(accepted < 1_000, "a megabyte never fills");
    };
    assert_eq!(refused, OfferError::Full { link: LinkId::new("tight") });
    assert_eq!(bench.local.delivered.lock().len() as u64, accepted);
    assert_eq!(bench.buffers[0].stats().ledger.accepted, accepted);
}

#[tokio::test]
async fn r18_a_qos_2_publish_reaches_the_logs_only_after_the_store_has_committed() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], true);
    let mut publish = publication("a", b"1");
    (publish.qos, publish.packet_id) = (Qos::ExactlyOnce, Some(1));
    let source = from_broker();
    let mut offer = Box::pin(bench.hub.offer(&source, vec![publish]));
    assert!(offer.as_mut().now_or_never().is_none());
    assert_eq!(bench.buffers[0].stats().next.0, 0, "nothing is in the log before the commit");
    bench.local.store.advance(1);
    offer.await.remove(0).unwrap().settled().await.unwrap();
    assert_eq!(bench.buffers[0].stats().ledger.accepted, 1);
}

#[tokio::test]
async fn r18_a_resumed_message_goes_only_to_the_logs_that_lack_it() {
    let routes = [("broker/#", "lake/t"), ("broker/#", "lake/u"), ("broker/#", "cloud/x")];
    let links = [("lake", WhenFull::DropOldest, BIG), ("cloud", WhenFull::DropOldest, BIG)];
    let bench = bench(&routes, &links, false);
    bench
        .hub
        .offer(&from_broker(), vec![publication("before", b"1")])
        .await
        .remove(0)
        .unwrap()
        .settled()
        .await
        .unwrap();
    let mut tails = Tails::default();
    tails.note(LinkId::new("lake"), Lane::Normal, &bench.buffers[0]);
    tails.note(LinkId::new("cloud"), Lane::Normal, &bench.buffers[1]);
    let tails = Tails::decode(&tails.encode());
    bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await.remove(0).unwrap().settled().await.unwrap();
    let message = records(&bench.buffers[0], 4).await[3].message.clone();
    // The lake's log has both of its records; the other link's is made to look as if it had none.
    let mut wanted = vec![(message.id.clone(), tails.clone())];
    let logged = bench.hub.find(&wanted).await;
    wanted[0].1 = Tails::decode("normal 2 lake\nnormal 2 cloud\nnormal 0 gone\n");
    let resume = async |logged: &Logged| {
        let answers = Answers::default();
        bench.hub.resume(message.clone(), logged, &answers).await;
        answers.take().remove(0).1.unwrap().settled().await.unwrap();
        bench.buffers.iter().map(|buffer| buffer.end().0).collect::<Vec<_>>()
    };
    assert_eq!(resume(&logged).await, [4, 2], "all of them are there");
    let logged = bench.hub.find(&wanted).await;
    assert_eq!(resume(&logged).await, [4, 3], "one log lacked it");
    assert_eq!(resume(&Logged::default()).await, [6, 4]);
}

/// A kill takes back what is not durable, and the message itself may have such a number after the next start.
#[tokio::test]
async fn r18_a_message_is_looked_for_behind_what_is_durable_and_not_behind_the_logs_end() {
    let route =
        Route::new("on", vec![From::parse("broker/#", Form::Topic).unwrap()], vec![To::parse("lake/t").unwrap()]);
    let links = [("lake", WhenFull::DropOldest, BIG)];
    let bench = bench_of(vec![route], &links, false, SyncMode::Spill(Duration::from_secs(3_600)));
    drop(bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await);
    assert_eq!(bench.buffers[0].end(), Offset(1));
    let mut tails = Tails::default();
    tails.note(LinkId::new("lake"), Lane::Normal, &bench.buffers[0]);
    assert_eq!(tails.encode(), format!("normal 0 lake {}\n", bench.buffers[0].id()));
}

#[tokio::test]
async fn r18_a_log_is_looked_into_also_where_its_link_has_another_name_by_now() {
    let routes = [("broker/#", "lake/t"), ("broker/#", "cloud/x")];
    let bench = bench(&routes, &[("lake", WhenFull::DropOldest, BIG), ("cloud", WhenFull::DropOldest, BIG)], false);
    let mut tails = Tails::default();
    tails.note(LinkId::new("lake"), Lane::Normal, &bench.buffers[0]);
    tails.note(LinkId::new("cloud"), Lane::Normal, &bench.buffers[1]);
    bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await.remove(0).unwrap().settled().await.unwrap();
    let message = records(&bench.buffers[0], 1).await[0].message.clone();
    let wanted = [(message.id.clone(), tails)];
    // Looked for before one change of names, and after another; then the names are swapped.
    let mut logged = bench.hub.find(&wanted).await;
    for names in [["sea", "cloud"], ["cloud", "lake"]] {
        let route = |name: &str, to: &str| {
            Route::new(name, vec![From::parse("broker/#", Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
        };
        let [lake, cloud] = names;
        let routes = vec![route("a", &format!("{lake}/t")), route("b", &format!("{cloud}/x"))];
        let logs = names.iter().zip(&bench.buffers).map(|(name, log)| (LinkId::new(name), Lanes::from(log.clone())));
        bench.hub.replace(Some(Table::new(routes)), logs.collect());
        for _ in 0..2 {
            let answers = Answers::default();
            bench.hub.resume(message.clone(), &logged, &answers).await;
            answers.take().remove(0).1.unwrap().settled().await.unwrap();
            logged = bench.hub.find(&wanted).await;
        }
        assert_eq!(bench.buffers.iter().map(|log| log.end().0).collect::<Vec<_>>(), [1, 1], "{names:?}");
    }
}

#[tokio::test]
async fn r18_routes_that_have_changed_since_neither_repeat_a_record_nor_hide_that_one_is_missing() {
    let (first, second, third) = (("broker/#", "lake/t"), ("broker/#", "lake/u"), ("broker/#", "lake/v"));
    let bench = bench(&[second, third], &[("lake", WhenFull::DropOldest, BIG)], false);
    let replace = |routes: &[(&str, &str)]| {
        let made = routes.iter().enumerate().map(|(n, (from, to))| {
            Route::new(&format!("r{n}"), vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
        });
        let logs = [(LinkId::new("lake"), Lanes::from(bench.buffers[0].clone()))];
        bench.hub.replace(Some(Table::new(made.collect())), logs.into_iter().collect());
    };
    bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await.remove(0).unwrap().settled().await.unwrap();
    let message = records(&bench.buffers[0], 2).await[0].message.clone();
    let destinations = async || {
        let end = usize::try_from(bench.buffers[0].end().0).unwrap();
        records(&bench.buffers[0], end).await.into_iter().map(|record| record.destination).collect::<Vec<_>>()
    };
    let resume = async || {
        let logged = bench.hub.find(&[(message.id.clone(), Tails::decode("normal 0 lake\n"))]).await;
        let answers = Answers::default();
        bench.hub.resume(message.clone(), &logged, &answers).await;
        answers.take().remove(0).1.unwrap().settled().await.unwrap();
    };
    // A route before them takes the first ordinal: what is missing is its record alone.
    replace(&[first, second, third]);
    resume().await;
    assert_eq!(destinations().await, ["u".into(), "v".into(), "t".into()]);
    // One is gone, and another one has its ordinal: that one's record is not there.
    replace(&[("broker/#", "lake/w"), third]);
    resume().await;
    assert_eq!(destinations().await, ["u".into(), "v".into(), "t".into(), "w".into()]);
    // Two that say the same are two.
    replace(&[third, third]);
    resume().await;
    assert_eq!(bench.buffers[0].end().0, 5);
}

#[tokio::test]
async fn r05_what_the_store_refuses_reaches_no_log_but_at_qos_0() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], true);
    bench.local.store.fail("its disk is gone");
    let answers = bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await;
    let broker = LinkId::new("broker");
    assert_eq!(
        answers[0].as_ref().unwrap_err(),
        &OfferError::Failed { link: broker, reason: "its disk is gone".into() }
    );
    assert_eq!(bench.buffers[0].stats().next.0, 0, "its publisher repeats it: one more record each time");
    let mut forgotten = publication("a", b"2");
    forgotten.qos = Qos::AtMostOnce;
    assert!(bench.hub.offer(&from_broker(), vec![forgotten]).await.remove(0).is_ok());
    assert_eq!(bench.buffers[0].stats().next.0, 1, "nobody repeats it");
}

#[tokio::test]
async fn r04_what_the_store_has_no_room_for_is_told_so_and_reaches_no_log_but_at_qos_0() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], true);
    bench.local.no_room.store(true, Ordering::Relaxed);
    let answers = bench.hub.offer(&from_broker(), vec![publication("a", b"1")]).await;
    assert_eq!(answers[0].as_ref().unwrap_err(), &OfferError::StoreFull);
    assert_eq!(bench.buffers[0].stats().next.0, 0, "its publisher repeats it: one more record each time");
    let mut forgotten = publication("a", b"2");
    forgotten.qos = Qos::AtMostOnce;
    assert!(bench.hub.offer(&from_broker(), vec![forgotten]).await.remove(0).is_ok());
    assert_eq!(bench.buffers[0].stats().next.0, 1, "nobody repeats it");
}

#[tokio::test]
async fn a_source_s_message_without_a_route_is_counted_and_a_client_s_is_not() {
    let bench = bench(&[("hq/cmd/#", "broker/cmd/{rest}")], &[], false);
    let hq = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: false };
    let answers = bench.hub.offer(&hq, vec![publication("cmd/a", b""), publication("else", b"")]).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().decided() == Some(Ok(()))));
    bench.hub.offer(&from_broker(), vec![publication("else", b"")]).await.remove(0).unwrap().settled().await.unwrap();
    assert_eq!(bench.hub.unrouted(), 1);
    assert_eq!(*bench.local.delivered.lock(), ["cmd/a", "else"]);
}

#[tokio::test]
async fn a_local_topic_that_a_route_makes_too_long_is_counted_and_the_publisher_s_own_is_delivered() {
    let bench = bench(&[("broker/#", "broker/copy/{rest}")], &[], false);
    let long = "a".repeat(65_533);
    assert!(bench.hub.offer(&from_broker(), vec![publication(&long, b"")]).await.remove(0).is_ok());
    assert_eq!(bench.hub.bad_topics(), 1);
    assert_eq!(*bench.local.delivered.lock(), [long]);
}

#[tokio::test]
async fn r12_what_has_passed_this_site_goes_no_further_and_is_counted() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
    let mut looped = publication("a", b"1");
    looped.properties.user = vec![(headers::PATH.into(), "ship,test".into())];
    let answers = bench.hub.offer(&from_broker(), vec![looped]).await;
    assert_eq!(answers[0].as_ref().unwrap().decided(), Some(Ok(())));
    assert_eq!(bench.hub.loops_stopped(), 1);
    assert!(bench.local.delivered.lock().is_empty());
    assert_eq!(bench.buffers[0].stats().ledger.accepted, 0);
}

#[test]
fn r08_a_record_expires_by_its_publisher_or_by_its_route_whichever_is_earlier() {
    let ttl = |ms| Some(Duration::from_millis(ms));
    for (expiry_s, ttl, expected) in [
        (None, None, None),
        (Some(60), None, Some(61_000)),
        (None, ttl(1_500), Some(2_500)),
        (Some(60), ttl(1_500), Some(2_500)),
        (Some(60), ttl(90_000), Some(61_000)),
        (Some(u32::MAX), ttl(u64::MAX), Some(1_000 + u64::from(u32::MAX) * 1_000)),
    ] {
        let message = Message { expiry_s, ..crate::message::tests_support::message("a", b"") };
        assert_eq!(expires(&message, ttl), expected.map(WallMs), "{expiry_s:?} {ttl:?}");
    }
}

#[tokio::test]
async fn r28_what_a_route_cannot_make_is_a_record_with_its_reason_and_counted() {
    let routes =
        [("broker/#", "cloud/{payload.line}"), ("broker/a", "broker/by/{payload.line}"), ("broker/+", "cloud/all")];
    let bench = bench(&routes, &[("cloud", WhenFull::DropOldest, BIG)], false);
    let batch =
        vec![publication("a", b"{\"line\":\"x\"}"), publication("a", b"21.5"), publication("a", b"{\"line\":\"x/y\"}")];
    for answer in bench.hub.offer(&from_broker(), batch).await {
        answer.unwrap().settled().await.unwrap();
    }
    let records = records(&bench.buffers[0], 7).await;
    let told: Vec<_> = records.iter().map(|one| (&*one.destination, one.failure.as_deref())).collect();
    let missing = "transform: route `broker/#`: the message has no `{payload.line}`";
    let deep = "transform: route `broker/#`: `{payload.line}` is \"x/y\", and a destination takes one level of it: not empty, without `/`, `+`, `#`";
    let all = ("all", None);
    assert_eq!(
        told,
        [("x", None), all, ("x", None), ("{payload.line}", Some(missing)), all, ("{payload.line}", Some(deep)), all]
    );
    assert_eq!(*bench.local.delivered.lock(), ["a", "by/x", "a", "a"]);
    let counts = bench.hub.route_counts();
    assert_eq!(counts.iter().map(|(_, counts)| counts.failed).collect::<Vec<_>>(), [2, 2, 0]);
}

#[tokio::test]
async fn a_routes_ttl_is_for_its_own_records_and_leaves_other_targets_alone() {
    let bench = bench(&[], &[("cloud", WhenFull::DropOldest, BIG), ("lake", WhenFull::DropOldest, BIG)], false);
    let route = |to: &str, ttl| {
        let from = From::parse("broker/#", Form::Topic).unwrap();
        Route { ttl, ..Route::new(to, vec![from], vec![To::parse(to).unwrap()]) }
    };
    let logs = ["cloud", "lake"].map(LinkId::new).into_iter().zip(bench.buffers.iter().cloned().map(Lanes::from));
    let routes = vec![route("cloud/t", Some(Duration::from_secs(300))), route("lake/t", None)];
    bench.hub.replace(Some(Table::new(routes)), logs.collect());
    let answers = bench.hub.offer(&from_broker(), vec![publication("a", b"")]).await;
    answers.into_iter().next().unwrap().unwrap().settled().await.unwrap();
    let record = |buffer: &Buffer| buffer.reader().next(1, 1).now_or_never().unwrap().unwrap().remove(0);
    let cloud = record(&bench.buffers[0]);
    let accepted = Envelope::decode(cloud.body).unwrap().message.accepted;
    assert_eq!(cloud.expires, Some(WallMs(accepted.wall.0 + 300_000)));
    assert_eq!(record(&bench.buffers[1]).expires, None);
}

#[tokio::test]
async fn after_stop_every_offer_is_refused() {
    let bench = bench(&[], &[], false);
    bench.hub.stop();
    let answers = bench.hub.offer(&from_broker(), vec![publication("a", b"")]).await;
    assert_eq!(answers[0].as_ref().unwrap_err(), &OfferError::Stopping);
}

/// The routes and logs of a bench, with one log under another name.
fn renamed(bench: &Bench, routes: &[(&str, &str)], names: &[&str]) {
    let routes = routes.iter().map(|(from, to)| {
        Route::new(from, vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
    });
    let logs = names.iter().map(|name| LinkId::new(name)).zip(bench.buffers.iter().cloned().map(Lanes::from));
    bench.hub.replace(Some(Table::new(routes.collect())), logs.collect());
}

#[tokio::test]
async fn r34_an_offer_that_meets_a_log_being_taken_away_is_planned_again_by_the_next_routes() {
    let links = [("old", WhenFull::DropOldest, BIG), ("lake", WhenFull::DropOldest, BIG)];
    let bench = bench(&[("broker/#", "lake/t"), ("broker/#", "old/t")], &links, false);
    bench.buffers[0].seal().await;
    let source = from_broker();
    let answers = Answers::default();
    let mut offer = Box::pin(bench.hub.offer_each(&source, vec![publication("a", b"1")], &answers));
    assert!(offer.as_mut().now_or_never().is_none(), "it waits for the next routes");
    assert_eq!(bench.buffers[1].stats().next.0, 0, "and nothing of it is anywhere");
    // What is sealed waits for nobody: the offer has given its room back.
    tokio::time::timeout(Duration::from_secs(5), bench.buffers[1].seal()).await.unwrap();
    bench.buffers.iter().for_each(Buffer::unseal);
    renamed(&bench, &[("broker/#", "new/u")], &["new", "lake"]);
    offer.await;
    answers.take().remove(0).1.unwrap().settled().await.unwrap();
    assert_eq!(&*records(&bench.buffers[0], 1).await[0].destination, "u");
    assert_eq!(bench.buffers[1].stats().next.0, 0);
    assert_eq!(bench.local.delivered.lock().len(), 1, "once, however often it was planned");
}

#[tokio::test]
async fn r06_an_offer_that_waits_for_room_is_planned_again_when_the_routes_change() {
    let links = [("tight", WhenFull::Block, 1 << 20), ("lake", WhenFull::DropOldest, BIG)];
    let bench = bench(&[("broker/#", "lake/t"), ("broker/#", "tight/t")], &links, false);
    let payload: &'static [u8] = Box::leak(vec![7; 60_000].into_boxed_slice());
    let source = from_broker();
    let mut before = 0;
    let (mut offer, answers) = loop {
        let answers = Arc::new(Answers::default());
        let (to, source) = (Arc::clone(&answers), source.clone());
        let hub = Arc::clone(&bench.hub);
        let mut offer = Box::pin(async move { hub.offer_each(&source, vec![publication("a", payload)], &to).await });
        if tokio::time::timeout(Duration::from_millis(200), &mut offer).await.is_err() {
            break (offer, answers);
        }
        answers.take().remove(0).1.unwrap().settled().await.unwrap();
        before += 1;
    };
    assert!(offer.as_mut().now_or_never().is_none());
    renamed(&bench, &[("broker/#", "lake/t")], &["tight", "lake"]);
    offer.await;
    answers.take().remove(0).1.unwrap().settled().await.unwrap();
    assert_eq!(bench.buffers[0].stats().ledger.accepted, before);
    assert_eq!(bench.buffers[1].stats().ledger.accepted, before + 1, "its first room there was given back");
}

#[tokio::test]
async fn a_seal_returns_when_what_had_room_has_come() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], true);
    let mut publish = publication("a", b"1");
    (publish.qos, publish.packet_id) = (Qos::ExactlyOnce, Some(1));
    let source = from_broker();
    let mut offer = Box::pin(bench.hub.offer(&source, vec![publish]));
    assert!(offer.as_mut().now_or_never().is_none(), "it has room, and waits for the store");
    let mut seal = Box::pin(bench.buffers[0].seal());
    assert!(seal.as_mut().now_or_never().is_none());
    bench.local.store.advance(1);
    let mut receipt = offer.await.remove(0).unwrap();
    seal.await;
    bench.buffers[0].close().await;
    receipt.settled().await.unwrap();
}

#[tokio::test]
async fn r06_an_offer_that_waits_for_room_holds_up_no_seal_once_a_change_is_announced() {
    let links = [("tight", WhenFull::Block, 1 << 20), ("lake", WhenFull::DropOldest, BIG)];
    let bench = bench(&[("broker/#", "lake/t"), ("broker/#", "tight/t")], &links, false);
    let payload: &'static [u8] = Box::leak(vec![7; 60_000].into_boxed_slice());
    let source = from_broker();
    let (mut offer, answers) = loop {
        let answers = Arc::new(Answers::default());
        let (to, source) = (Arc::clone(&answers), source.clone());
        let hub = Arc::clone(&bench.hub);
        let mut offer = Box::pin(async move { hub.offer_each(&source, vec![publication("a", payload)], &to).await });
        if tokio::time::timeout(Duration::from_millis(200), &mut offer).await.is_err() {
            break (offer, answers);
        }
    };
    let taken = bench.buffers[1].stats().next.0;
    let mut seal = Box::pin(bench.buffers[1].seal());
    assert!(seal.as_mut().now_or_never().is_none(), "it has room there, and waits for room in the other");
    bench.hub.announce();
    assert!(offer.as_mut().now_or_never().is_none());
    assert!(seal.now_or_never().is_some(), "it has given that back");
    bench.buffers[1].unseal();
    // Nothing has changed: it goes on to wait for room, with what it had.
    let buffers = [("tight", 0), ("lake", 1)].map(|(name, at)| (LinkId::new(name), bench.buffers[at].clone().into()));
    bench.hub.replace(None, buffers.into());
    assert!(offer.as_mut().now_or_never().is_none());
    for offset in 0..bench.buffers[0].stats().next.0 {
        bench.buffers[0].settle(Offset(offset), Outcome::Delivered);
    }
    offer.await;
    answers.take().remove(0).1.unwrap().settled().await.unwrap();
    assert_eq!(bench.buffers[1].stats().next.0, taken + 1, "once");
}

/// As another gateway's message comes, by one way or another.
fn of_a_gateway(counter: u64, path: &str) -> Publication {
    let mut publication = publication("a", b"1");
    let id = format!("ship-00000000000000ab-{counter}");
    publication.properties.user = vec![(headers::ID.into(), id.into()), (headers::PATH.into(), path.into())];
    publication
}

#[tokio::test]
async fn r12_what_comes_by_two_ways_is_taken_once_and_both_are_acknowledged() {
    let bench = bench(&[("broker/#", "lake/t"), ("hq/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], true);
    let hq = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: false };
    let batch = vec![of_a_gateway(1, "ship"), of_a_gateway(1, "ship,shore"), of_a_gateway(2, "ship")];
    let mut answers = bench.hub.offer(&from_broker(), batch).await;
    let mut again = bench.hub.offer(&hq, vec![of_a_gateway(2, "ship,shore"), of_a_gateway(1, "ship,dock")]).await;
    answers.append(&mut again);
    records(&bench.buffers[0], 2).await;
    let decided = |answers: &[Answer]| answers.iter().all(|answer| answer.as_ref().unwrap().decided() == Some(Ok(())));
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().decided().is_none()), "the store has not committed");
    bench.local.store.advance(2);
    assert!(decided(&answers));
    assert_eq!((bench.hub.copies_dropped(), bench.buffers[0].stats().ledger.accepted), (3, 2));
    assert_eq!(*bench.local.delivered.lock(), ["a", "a"]);
    let mut replay = of_a_gateway(1, "ship");
    replay.properties.user.push((headers::REPLAY.into(), "r1".into()));
    assert!(bench.hub.offer(&from_broker(), vec![replay]).await.remove(0).is_ok());
    assert_eq!((bench.hub.copies_dropped(), bench.buffers[0].stats().next.0), (3, 3), "a replay is no copy");
}

#[tokio::test]
async fn r12_a_copy_of_one_that_is_refused_is_taken_in_its_place() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
    bench.local.no_room.store(true, Ordering::Relaxed);
    let answers = bench.hub.offer(&from_broker(), vec![of_a_gateway(1, "ship"), of_a_gateway(1, "ship,shore")]).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    bench.local.no_room.store(false, Ordering::Relaxed);
    bench
        .hub
        .offer(&from_broker(), vec![of_a_gateway(1, "ship,shore")])
        .await
        .remove(0)
        .unwrap()
        .settled()
        .await
        .unwrap();
    assert_eq!((bench.hub.copies_dropped(), bench.buffers[0].stats().ledger.accepted), (0, 1));
}

#[tokio::test]
async fn r12_a_copy_waits_for_the_answer_to_the_first_and_goes_on_when_that_is_given_up() {
    let bench = bench(&[("broker/#", "tight/t")], &[("tight", WhenFull::Block, 1 << 20)], false);
    let payload: &'static [u8] = Box::leak(vec![7; 60_000].into_boxed_slice());
    let large = |counter| Publication { payload: Bytes::from_static(payload), ..of_a_gateway(counter, "ship") };
    let source = from_broker();
    let mut counter = 0;
    let mut first = loop {
        counter += 1;
        let mut offer = Box::pin(bench.hub.offer(&source, vec![large(counter)]));
        if offer.as_mut().now_or_never().is_none() {
            break offer;
        }
        assert!(counter < 1_000, "a megabyte never fills");
    };
    // The copy, with another before it that it must not hold back.
    let answers = Answers::default();
    let mut second =
        Box::pin(bench.hub.offer_each(&source, vec![of_a_gateway(5_000, "ship"), large(counter)], &answers));
    assert!(second.as_mut().now_or_never().is_none() && first.as_mut().now_or_never().is_none());
    assert_eq!(bench.hub.copies_dropped(), 0);
    drop(first);
    assert!(second.as_mut().now_or_never().is_none(), "now it is the first, and waits for room itself");
    for offset in 0..counter {
        bench.buffers[0].settle(Offset(offset), Outcome::Delivered);
    }
    second.await;
    assert!(answers.take().iter().all(|(_, answer)| answer.is_ok()));
    assert_eq!(bench.hub.copies_dropped(), 0);
}

#[tokio::test]
async fn r12_where_copies_are_kept_each_is_taken() {
    let bench = bench(&[("hq/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
    let hq = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: true };
    for _ in 0..2 {
        bench.hub.offer(&hq, vec![of_a_gateway(1, "ship")]).await.remove(0).unwrap().settled().await.unwrap();
    }
    assert_eq!((bench.hub.copies_dropped(), bench.buffers[0].stats().ledger.accepted), (0, 2));
}

/// One route to `cloud` with a gate.
fn gated(gate: Gate, sync: SyncMode) -> Bench {
    let mut route =
        Route::new("gated", vec![From::parse("broker/t/#", Form::Topic).unwrap()], vec![To::parse("cloud/t").unwrap()]);
    route.gate = Some(gate);
    bench_of(vec![route], &[("cloud", WhenFull::DropOldest, 1 << 20)], false, sync)
}

const CHANGES: Gate = Gate::Changes { fields: Vec::new(), again: None };

#[tokio::test]
async fn r28_what_a_gate_holds_back_is_counted_delivered_locally_and_waits_for_what_it_is_held_back_for() {
    let bench = gated(CHANGES, SyncMode::Group);
    let batch =
        vec![publication("t/a", b"1"), publication("t/a", b"1"), publication("t/b", b"1"), publication("t/a", b"2")];
    let answers = bench.hub.offer(&from_broker(), batch).await;
    assert_eq!(bench.buffers[0].end().0, 3);
    assert_eq!(*bench.local.delivered.lock(), ["t/a", "t/a", "t/b", "t/a"]);
    let counts: Vec<_> = bench.hub.route_counts().into_iter().map(|(_, counts)| counts).collect();
    assert_eq!(counts, [Counts { suppressed: 1, ..Counts::default() }]);
    for mut receipt in answers.into_iter().map(Result::unwrap) {
        assert_eq!(receipt.settled().await, Ok(()));
    }
    // Another offer, when all of it is durable: there is nothing to wait for.
    let answers = bench.hub.offer(&from_broker(), vec![publication("t/b", b"1")]).await;
    assert_eq!(answers[0].as_ref().unwrap().decided(), Some(Ok(())));
    assert_eq!(bench.buffers[0].end().0, 3);
}

#[tokio::test]
async fn r28_what_is_held_back_is_acknowledged_no_sooner_than_what_it_is_held_back_for() {
    // Nothing is durable before the remote confirms it, or an hour has passed.
    let bench = gated(CHANGES, SyncMode::Spill(Duration::from_secs(3_600)));
    let first = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await.pop().unwrap();
    let held = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await.pop().unwrap();
    let (mut first, mut held) = (first.unwrap(), held.unwrap());
    assert_eq!((first.decided(), held.decided()), (None, None));
    assert_eq!(records(&bench.buffers[0], 1).await.len(), 1);
    bench.buffers[0].settle(Offset(0), Outcome::Delivered);
    assert_eq!((first.settled().await, held.settled().await), (Ok(()), Ok(())));
    assert_eq!(bench.buffers[0].end().0, 1);
}

#[tokio::test]
async fn r28_what_is_held_back_waits_for_the_store_and_for_links_behind_the_broker_too() {
    let mut first = Route::new(
        "gated",
        vec![From::parse("broker/t/#", Form::Topic).unwrap()],
        vec![To::parse("broker/u").unwrap()],
    );
    first.gate = Some(CHANGES);
    let on = Route::new("on", vec![From::parse("broker/u", Form::Topic).unwrap()], vec![To::parse("cloud/u").unwrap()]);
    let links = [("cloud", WhenFull::DropOldest, BIG)];
    let bench = bench_of(vec![first, on], &links, true, SyncMode::Spill(Duration::from_secs(3_600)));
    let first = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await.remove(0).unwrap();
    let mut held = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await.remove(0).unwrap();
    assert_eq!(*bench.local.delivered.lock(), ["t/a", "u", "t/a"]);
    assert_eq!((first.decided(), held.decided()), (None, None));
    assert_eq!(records(&bench.buffers[0], 1).await.len(), 1);
    bench.local.store.advance(3);
    assert_eq!(held.decided(), None, "the log behind the broker has it not yet");
    bench.buffers[0].settle(Offset(0), Outcome::Delivered);
    assert_eq!(held.settled().await, Ok(()));
    // Where the store alone lacks what it is held back for.
    let held = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await.remove(0).unwrap();
    assert_eq!(held.decided(), None);
    bench.local.store.advance(4);
    assert_eq!(held.decided(), Some(Ok(())));
}

#[tokio::test]
async fn r28_a_message_that_was_refused_holds_nothing_back() {
    let bench = gated(CHANGES, SyncMode::Group);
    bench.local.no_room.store(true, Ordering::Relaxed);
    let answers = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await;
    assert!(matches!(answers[0], Err(OfferError::StoreFull)), "{answers:?}");
    bench.local.no_room.store(false, Ordering::Relaxed);
    let again = bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await;
    assert!(again[0].is_ok());
    assert_eq!(bench.buffers[0].end().0, 1, "the publisher's second try went through");
}

#[tokio::test]
async fn r18_a_resumed_exchange_is_held_back_by_no_gate() {
    let bench = gated(Gate::NewIds, SyncMode::Group);
    drop(bench.hub.offer(&from_broker(), vec![publication("t/a", b"1")]).await);
    let message = records(&bench.buffers[0], 1).await.pop().unwrap().message;
    let answers = Answers::default();
    bench.hub.resume(message, &Logged::default(), &answers).await;
    assert_eq!(bench.buffers[0].end().0, 2);
}

#[tokio::test]
async fn r28_what_a_route_could_not_make_is_made_by_the_route_as_it_is_now() {
    let route = |name: &str, to: &[&str], payload: Option<&str>| {
        let from = vec![From::parse("broker/t/{line}", Form::Topic).unwrap()];
        let mut route = Route::new(name, from, to.iter().map(|to| To::parse(to).unwrap()).collect());
        route.change.payload = payload.map(|text| Template::parse_text(text).unwrap());
        route
    };
    let links = [("cloud", WhenFull::DropOldest, BIG), ("lake", WhenFull::DropOldest, BIG)];
    let broken = vec![route("r`: x", &["lake/t", "cloud/{line}/{payload.kind}"], Some("{payload.temp} C"))];
    let bench = bench_of(broken, &links, false, SyncMode::Group);
    drop(bench.hub.offer(&from_broker(), vec![publication("t/a", b"21.5")]).await);
    let failed = records(&bench.buffers[0], 1).await.remove(0);
    let cloud = LinkId::new("cloud");
    let asked = |failed: &Envelope| bench.hub.remake(&cloud, failed);
    let replace = |routes: Vec<Route>| {
        let logs = [&cloud, &LinkId::new("lake")]
            .map(LinkId::clone)
            .into_iter()
            .zip(bench.buffers.iter().cloned().map(Lanes::from));
        bench.hub.replace(Some(Table::new(routes)), logs.collect());
    };
    let today = asked(&failed).unwrap_err();
    assert_eq!(today, failed.failure.as_deref().unwrap(), "it is as it was");
    let mended = || route("r`: x", &["lake/t", "cloud/{line}/x"], Some("{payload} C"));
    replace(vec![mended()]);
    let made = asked(&failed).unwrap();
    assert_eq!((&*made.destination, &made.message.payload[..], made.failure.clone()), ("a/x", &b"21.5 C"[..], None));
    assert_eq!((&made.message.id, made.ordinal), (&failed.message.id, failed.ordinal));
    // Which of two targets is meant tells the template, and where none tells nothing is guessed.
    replace(vec![route("r`: x", &["cloud/x", "cloud/y"], None)]);
    assert_eq!(asked(&failed).unwrap_err(), today);
    let known = Envelope { destination: "y".into(), ..failed.clone() };
    assert_eq!(&*asked(&known).unwrap().destination, "y");
    // No such route, or it takes another topic.
    replace(vec![route("other", &["cloud/x"], None)]);
    assert_eq!(asked(&failed).unwrap_err(), today);
    let elsewhere = vec![From::parse("broker/u/#", Form::Topic).unwrap()];
    replace(vec![Route { from: elsewhere, ..mended() }]);
    assert_eq!(asked(&failed).unwrap_err(), today);
}

#[tokio::test]
async fn r28_what_a_route_behind_another_could_not_make_is_made_on_the_topic_that_it_arrived_on() {
    let route = |name: &str, from: &str, to: &str, payload: Option<&str>| {
        let from = vec![From::parse(from, Form::Topic).unwrap()];
        let mut route = Route::new(name, from, vec![To::parse(to).unwrap()]);
        route.change.payload = payload.map(|text| Template::parse_text(text).unwrap());
        route
    };
    let first = || route("first", "broker/raw/{line}", "broker/clean/{line}/x", Some("<{payload}>"));
    let behind = |payload| route("behind", "broker/clean/{line}/{what}", "cloud/{line}.{what}", Some(payload));
    let links = [("cloud", WhenFull::DropOldest, BIG)];
    let bench = bench_of(vec![first(), behind("{payload.temp}")], &links, false, SyncMode::Group);
    drop(bench.hub.offer(&from_broker(), vec![publication("raw/a", b"21")]).await);
    let failed = records(&bench.buffers[0], 1).await.remove(0);
    assert!(failed.failure.is_some());
    let logs = vec![(LinkId::new("cloud"), Lanes::from(bench.buffers[0].clone()))];
    bench.hub.replace(Some(Table::new(vec![first(), behind("{payload} C")])), logs);
    let made = bench.hub.remake(&LinkId::new("cloud"), &failed).unwrap();
    assert_eq!((&*made.destination, &made.message.payload[..]), ("a.x", &b"<21> C"[..]), "as any other of its topic");
    assert_eq!((made.key, made.failure), (None, None));
    let again = bench.hub.offer(&from_broker(), vec![publication("raw/a", b"21")]).await;
    drop(again);
    let other = records(&bench.buffers[0], 2).await.remove(1);
    assert_eq!((other.destination, other.message.payload), (made.destination, made.message.payload));
}
