//! Clients that are slow, gone, wrong or hostile: what each costs is bounded, and nobody else notices.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use crate::broker::Config;
use crate::broker::connection::{FILTERS_MAX, SHARES_MAX};
use crate::broker::transport::Socket;
use crate::message::Qos;
use crate::router::Table;
use crate::units::ByteSize;
use crate::wire::{
    Connect, Packet, PacketId, ReasonCode, Subscribe, SubscribeOptions, Subscription, SubscriptionId, Unsubscribe,
    Version, Will, WillProperties, encode,
};

async fn rig_with(dir: &tempfile::TempDir, config: Config) -> Rig {
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

fn bytes_of(packet: &Packet, version: Version) -> BytesMut {
    let mut bytes = BytesMut::new();
    encode(packet, version, &mut bytes).unwrap();
    bytes
}

/// A client that others must not harm.
async fn is_served(rig: &Rig) {
    let mut one = rig.peer("bystander").await;
    one.subscribe("bystander", Qos::AtLeastOnce).await;
    one.deliver("bystander", "x", Qos::AtMostOnce, 1).await;
    assert_eq!(one.publication().await.payload, &b"x"[..]);
}

#[tokio::test]
async fn slow_handshakes_end_at_the_timeout_and_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { connect_timeout: Duration::from_millis(300), ..Config::default() }).await;
    let mut slow = Vec::new();
    for n in 0..50 {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        // Nothing at all, a byte, and all but the last byte.
        let connect = bytes_of(&Packet::Connect(Box::new(connect("slow"))), Version::V5);
        let sent = [0, 1, connect.len() - 1][n % 3];
        stream.write_all(&connect[..sent]).await.unwrap();
        slow.push(stream);
    }
    is_served(&rig).await;
    for mut stream in slow {
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{rest:02X?}");
    }
    assert_eq!(rig.board.snapshot().refused["no_connect"], 50);
    rig.stop().await;
}

#[tokio::test]
async fn a_flood_of_connections_waits_outside_and_is_let_in_as_others_leave() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { connections_max: 3, ..Config::default() }).await;
    let mut inside = Vec::new();
    for n in 0..3 {
        inside.push(rig.peer(&format!("in-{n}")).await);
    }
    let address = rig.address;
    let waiting = async move { Peer::open(address, connect("out")).await.0 };
    tokio::pin!(waiting);
    // Those inside are served meanwhile.
    tokio::select! {
        biased;
        _let_in = &mut waiting => panic!("a fourth was let in"),
        () = async { for peer in &mut inside { peer.expect_silence().await; } } => {}
    }
    assert_eq!(rig.board.snapshot().clients, 3);
    inside.pop();
    waiting.await.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn who_opens_connections_and_says_nothing_keeps_no_client_out() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than the test waits for anything.
    let connect_timeout = Duration::from_secs(600);
    let config = Config { connections_max: 3, handshakes_max: 6, connect_timeout, ..Config::default() };
    let rig = rig_with(&dir, config).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut inside = Vec::new();
    for n in 0..3 {
        inside.push(rig.peer(&format!("in-{n}")).await);
    }
    for peer in &mut inside {
        peer.expect_silence().await;
    }
    // There is no place any more for one of those that were silent; as soon as there is it gets it.
    let mut late = silent.pop().unwrap();
    late.write_all(&bytes_of(&Packet::Connect(Box::new(connect("late"))), Version::V5)).await.unwrap();
    inside.pop();
    let mut answer = [0; 2];
    soon(late.read_exact(&mut answer)).await.unwrap();
    assert_eq!((answer[0], rig.board.snapshot().clients), (0x20, 3));
    rig.stop().await;
}

#[tokio::test]
async fn who_is_refused_keeps_nobody_out_while_it_reads_why() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { handshakes_max: 1, ..Config::default() }).await;
    // Each stays for as long as it may: one after the other they would take longer than the test waits.
    let refused = (0..20).map(|_| async {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        // A session that is kept needs a client id.
        stream.write_all(b"\x10\x0C\0\x04MQTT\x04\0\0\x3C\0\0").await.unwrap();
        let mut answer = [0; 4];
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, [0x20, 2, 0, 2]);
        stream
    });
    let _staying = soon(futures_util::future::join_all(refused)).await;
    is_served(&rig).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_connect_is_small_whatever_packets_may_be_later() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { max_packet_size: ByteSize(1 << 20), ..Config::default() }).await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    // 200 KB are announced, and only the announcement is sent.
    stream.write_all(b"\x10\xC0\x9A\x0C\x00\x04MQTT\x05").await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "before the version is known no answer can be written: {rest:02X?}");
    let mut one = rig.peer("one").await;
    one.deliver("a", &"x".repeat(200_000), Qos::AtLeastOnce, 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_refused_at_its_announcement() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { max_packet_size: ByteSize(1 << 10), ..Config::default() }).await;
    for version in [Version::V311, Version::V5] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let connect = Connect { version, ..connect("large") };
        let mut bytes = bytes_of(&Packet::Connect(Box::new(connect)), version);
        // 256 MB to come.
        bytes.extend_from_slice(b"\x30\xFF\xFF\xFF\x7F");
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        let told = answer.windows(3).any(|bytes| bytes[0] == 0xE0 && bytes[2] == 0x95);
        assert_eq!((answer[0], told), (0x20, version.is_v5()), "{answer:02X?}");
    }
    is_served(&rig).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_topic_that_is_too_deep_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let deep = "/".repeat(60_000);
    let mut one = rig.peer("one").await;
    let options = SubscribeOptions::default();
    let subscriptions = vec![Subscription { filter: deep.as_str().into(), options }];
    let id = PacketId::new(1).unwrap();
    one.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
    let Packet::Suback(suback) = one.receive().await else { panic!("no SUBACK") };
    assert_eq!(suback.codes, [ReasonCode::TopicFilterInvalid]);
    let filters = vec![deep.as_str().into()];
    one.send(Packet::Unsubscribe(Unsubscribe { id, user: Vec::new(), filters })).await;
    let Packet::Unsuback(unsuback) = one.receive().await else { panic!("no UNSUBACK") };
    assert_eq!(unsuback.codes, [ReasonCode::TopicFilterInvalid]);
    one.send(Packet::Publish(publish(&deep, "", Qos::AtLeastOnce, 1))).await;
    let Packet::Disconnect(told) = one.receive().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::TopicNameInvalid);
    is_served(&rig).await;
    rig.stop().await;
}

/// `count` filters that all match [`TOPIC`].
fn overlapping(count: u16) -> Vec<String> {
    let level = |n: u16, level: u16| if n >> level & 1 == 1 { "+" } else { "l" };
    (0..count).map(|n| (0..12).map(|at| level(n, at)).collect::<Vec<_>>().join("/")).collect()
}

const TOPIC: &str = "l/l/l/l/l/l/l/l/l/l/l/l";

fn subscribe_to<S: AsRef<str>>(filters: impl IntoIterator<Item = S>) -> Packet {
    subscribe_as(filters, None)
}

fn subscribe_as<S: AsRef<str>>(filters: impl IntoIterator<Item = S>, id: Option<u32>) -> Packet {
    let options = SubscribeOptions { qos: Qos::AtLeastOnce, ..SubscribeOptions::default() };
    let of = |filter: S| Subscription { filter: filter.as_ref().into(), options };
    let subscription_id = id.and_then(SubscriptionId::new);
    let (id, subscriptions) = (PacketId::new(1).unwrap(), filters.into_iter().map(of).collect());
    Packet::Subscribe(Subscribe { id, subscription_id, user: Vec::new(), subscriptions })
}

async fn suback(peer: &mut Peer) -> Vec<ReasonCode> {
    let Packet::Suback(suback) = peer.receive().await else { panic!("no SUBACK") };
    suback.codes
}

#[tokio::test]
async fn one_subscribe_cannot_ask_for_all_that_is_retained_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut publisher = rig.peer("publisher").await;
    let mut kept_one = publish(TOPIC, "x", Qos::AtLeastOnce, 1);
    kept_one.retain = true;
    publisher.send(Packet::Publish(kept_one)).await;
    assert_eq!(publisher.receive().await, Packet::Puback(ack(1)));
    let mut one = rig.peer("clean").await;
    one.send(subscribe_to(overlapping(1_100))).await;
    let codes = suback(&mut one).await;
    let granted = codes.iter().filter(|code| !code.is_error()).count();
    assert_eq!(granted, 1_025, "1,024 wait, and one more may");
    assert!(codes[granted..].iter().all(|code| *code == ReasonCode::QuotaExceeded));
    for _ in 0..granted {
        let id = one.publication().await.id.unwrap().get();
        one.send(Packet::Puback(ack(id))).await;
    }
    one.send(subscribe_to(["+/#"])).await;
    assert!(!suback(&mut one).await[0].is_error(), "what has left makes room");
    for connect in [connect("clean"), kept("kept")] {
        let mut one = Peer::open(rig.address, connect).await.0;
        one.send(subscribe_to(vec!["#"; 50_000])).await;
        assert!(suback(&mut one).await.iter().all(|code| !code.is_error()));
        one.publication().await;
        one.expect_silence().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_subscribe_has_a_most_of_filters_and_repeated_ones_count_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for version in [Version::V5, Version::V311] {
        let mut one = Peer::open(rig.address, Connect { version, ..connect("one") }).await.0;
        let filters = (0..FILTERS_MAX + 2).map(|n| format!("a/{}", n.saturating_sub(1)));
        one.send(subscribe_to(filters)).await;
        let codes = suback(&mut one).await;
        let refused = if version == Version::V5 { ReasonCode::QuotaExceeded } else { ReasonCode::UnspecifiedError };
        assert_eq!(codes.iter().position(|code| code.is_error()), Some(FILTERS_MAX + 1));
        assert_eq!(codes[FILTERS_MAX + 1], refused);
    }
    rig.stop().await;
}

/// 1,000 filters, each through 1,000 topics, and nothing found: others are served meanwhile, and often.
#[tokio::test]
async fn a_subscribe_that_looks_at_much_lets_others_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut publisher = rig.peer("publisher").await;
    for n in 0..1_000 {
        let mut retained = publish(&format!("r/{n}"), "x", Qos::AtMostOnce, 0);
        retained.retain = true;
        publisher.send(Packet::Publish(retained)).await;
    }
    publisher.expect_silence().await;
    for connect in [connect("clean"), kept("kept")] {
        let mut storm = Peer::open(rig.address, connect).await.0;
        storm.send(subscribe_to((0..1_000).map(|n| format!("+/+/{n}")))).await;
        for _ in 0..20 {
            publisher.expect_silence().await;
        }
        assert_eq!(storm.waiting(), (Vec::new(), false), "its SUBACK has cost others their turns");
        assert_eq!(suback(&mut storm).await.len(), 1_000);
    }
    rig.stop().await;
}

#[tokio::test]
async fn subscriptions_of_kept_sessions_do_not_go_round_the_store_s_bound() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("a", Qos::AtLeastOnce).await;
    let before = rig.broker.store.last_staged();
    // What it has costs nothing.
    one.send_all((0..100).map(|_| subscribe_to(["a"; 100]))).await;
    for _ in 0..100 {
        assert!(!suback(&mut one).await[0].is_error());
    }
    assert_eq!(rig.broker.store.last_staged(), before);
    // With no room for more nothing is staged, nothing answered, and nothing more read.
    rig.broker.store.fill(true);
    one.send_all([subscribe_to(["b", "c"]), Packet::Pingreq]).await;
    let mut other = rig.peer("other").await;
    other.expect_silence().await;
    assert_eq!((one.waiting(), rig.broker.store.last_staged()), ((Vec::new(), false), before));
    rig.broker.store.fill(false);
    // Anybody's commit wakes it.
    let _another = Peer::open(rig.address, kept("another")).await;
    // SUBACK waits for the store, PINGRESP does not.
    assert_eq!(one.receive().await, Packet::Pingresp);
    assert_eq!(suback(&mut one).await.len(), 2);
    rig.stop().await;
}

/// Filters of 200 levels that share none.
fn deep(count: u16) -> Vec<String> {
    (0..count).map(|n| format!("{n:04}{}", "/".repeat(199))).collect()
}

#[tokio::test]
async fn subscriptions_of_all_clients_together_are_bounded_and_a_few_are_never_refused_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { connections_max: 10, ..Config::default() };
    let rig = rig_with(&dir, config.clone()).await;
    let limit = |rig: &Rig| {
        // Filters may take a mebibyte of it, those of one client half.
        rig.hub.memory().limit_to(ByteSize(8 << 20));
        assert_eq!(rig.hub.memory().note(0), None);
    };
    limit(&rig);
    let granted = async |peer: &mut Peer, filters: Vec<String>| {
        peer.send(subscribe_to(filters)).await;
        let codes = suback(peer).await;
        assert!(codes.iter().all(|code| !code.is_error() || *code == ReasonCode::QuotaExceeded), "{codes:?}");
        codes.iter().filter(|code| !code.is_error()).count()
    };
    let (mut one, mut two) = (rig.peer("one").await, Peer::open(rig.address, kept("two")).await.0);
    assert_eq!(granted(&mut one, deep(20)).await, 16);
    assert_eq!(granted(&mut two, deep(20)).await, 16);
    drop(two);
    let mut three = rig.peer("three").await;
    assert_eq!(granted(&mut three, deep(1)).await, 0);
    assert_eq!(granted(&mut three, vec!["a/b".into(), "c/+".into()]).await, 2);
    assert_eq!(rig.board.snapshot().limited["subscriptions"], 1);
    let copy = rig.crash(dir.path());
    drop(one);
    rig.until("its subscriptions are gone", |rig| rig.broker.topics.subscription_counts().0 == 18).await;
    assert_eq!(granted(&mut three, deep(20)).await, 16);
    rig.stop().await;
    // The kept session's count from the start on.
    let rig = rig_with(&copy, config).await;
    limit(&rig);
    let mut one = rig.peer("one").await;
    assert_eq!(granted(&mut one, deep(20)).await, 16);
    assert_eq!(granted(&mut rig.peer("three").await, deep(1)).await, 0);
    drop(rig.peer("two").await);
    one.unsubscribe(&deep(1)[0]).await;
    rig.until("all are gone but its own", |rig| rig.broker.topics.filter_bytes() == 15 * 32_662).await;
    drop(one);
    rig.until("all are gone", |rig| rig.broker.topics.filter_bytes() == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn subscriptions_are_bounded_in_number_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let options = SubscribeOptions::default();
    for (filters, fits) in [
        ((0..10_100).map(|n| format!("{n}/+")).collect::<Vec<_>>(), 10_000),
        // Each of their 200 levels may cost a node: it counts for 32,662 bytes.
        (deep(520), 513),
    ] {
        let mut one = rig.peer("storm").await;
        let mut granted = 0;
        for batch in filters.chunks(FILTERS_MAX) {
            let subscriptions =
                batch.iter().map(|filter| Subscription { filter: filter.as_str().into(), options }).collect();
            let id = PacketId::new(1).unwrap();
            one.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
            let Packet::Suback(suback) = one.receive().await else { panic!("no SUBACK") };
            granted += suback.codes.iter().filter(|code| **code == ReasonCode::Success).count();
            let refused = suback.codes.iter().find(|code| code.is_error());
            assert!(refused.is_none_or(|code| *code == ReasonCode::QuotaExceeded), "{refused:?}");
        }
        assert_eq!(granted, fits);
        assert_eq!(rig.broker.topics.subscription_counts().0, fits);
        // What is given back may be used anew, and replacing costs nothing.
        one.unsubscribe(&filters[0]).await;
        one.subscribe(&filters[1], Qos::AtLeastOnce).await;
        one.subscribe("new", Qos::AtMostOnce).await;
        drop(one);
        rig.until("its subscriptions are gone", |rig| rig.broker.topics.subscription_counts().0 == 0).await;
    }
    rig.stop().await;
}

/// Each brings a kept session the message once more.
#[tokio::test]
async fn shared_subscriptions_of_a_client_are_bounded_and_one_publish_stores_its_message_once() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut storm = Peer::open(rig.address, kept("storm")).await.0;
    let mut granted = 0;
    for from in [0, SHARES_MAX / 2, SHARES_MAX] {
        storm.send(subscribe_to((from..from + SHARES_MAX / 2).map(|n| format!("$share/g{n}/z")))).await;
        let codes = suback(&mut storm).await;
        granted += codes.iter().filter(|code| !code.is_error()).count();
        assert!(codes.iter().all(|code| !code.is_error() || *code == ReasonCode::QuotaExceeded), "{codes:?}");
    }
    assert_eq!(granted, SHARES_MAX);
    // What it has it may change, what it gives back it may use anew, and others are as they were.
    storm.subscribe("$share/g0/z", Qos::AtLeastOnce).await;
    storm.unsubscribe("$share/g0/z").await;
    storm.subscribe("$share/g0/z", Qos::AtLeastOnce).await;
    storm.subscribe("own", Qos::AtLeastOnce).await;
    drop(storm);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut one = rig.peer("one").await;
    one.deliver("z", &"x".repeat(100_000), Qos::AtLeastOnce, 1).await;
    let connection = rusqlite::Connection::open(dir.path().join("broker.db")).unwrap();
    let ask = |what: &str| connection.query_row(&format!("SELECT {what}"), [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(ask("count(*) FROM owed"), 1_000);
    let bodies = "sum(length(body)) FROM (SELECT body FROM owed UNION ALL SELECT body FROM body)";
    assert!(ask(bodies) < 101_000);
    // So it is when the session ends, and all of it goes to another member.
    let mut heir = Peer::open(rig.address, kept("heir")).await.0;
    heir.send(subscribe_to((0..SHARES_MAX).map(|n| format!("$share/g{n}/z")))).await;
    assert!(suback(&mut heir).await.iter().all(|code| !code.is_error()));
    drop(heir);
    rig.until("both are away", |rig| rig.broker.figures().sessions_offline == 2).await;
    let _anew = rig.peer("storm").await;
    let heirs = "count(*) FROM owed JOIN session ON session.id = owed.session WHERE client = 'heir'";
    rig.until("it has moved", |_| ask(heirs) == 1_000 && ask("count(*) FROM owed") == 1_000).await;
    assert!(ask(bodies) < 101_000, "{}", ask(bodies));
    rig.stop().await;
}

/// Each message leads through 8,191 nodes to 4,096 subscriptions of one client.
#[tokio::test]
async fn a_storm_of_publishes_through_many_wildcards_lets_others_go_first() {
    const MESSAGES: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut storm = rig.peer("storm").await;
    for filters in overlapping(4_096).chunks(FILTERS_MAX) {
        storm.send(subscribe_to(filters.iter().map(|filter| format!("{filter}/#")))).await;
        assert!(suback(&mut storm).await.iter().all(|code| !code.is_error()));
    }
    let (mut publisher, mut other) = (rig.peer("publisher").await, rig.peer("other").await);
    let fresh = |n: u64| Packet::Publish(publish(&format!("{TOPIC}/{n}"), &n.to_string(), Qos::AtMostOnce, 0));
    publisher.send_all((0..MESSAGES).map(fresh)).await;
    while rig.board.snapshot().sent == 0 {
        tokio::task::yield_now().await;
    }
    // They have come at once, and are under way.
    other.expect_silence().await;
    let sent = rig.board.snapshot().sent;
    assert!(sent < MESSAGES, "another waited for {sent} of {MESSAGES}");
    for n in 0..MESSAGES {
        assert_eq!(storm.publication().await.payload, n.to_string().as_bytes(), "in order");
    }
    rig.stop().await;
}

/// It is not read, since it does not read: that is no sign of life.
#[tokio::test]
async fn a_client_that_reads_nothing_is_ended_after_its_keep_alive_and_its_will_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("will", Qos::AtMostOnce).await;
    let properties = WillProperties::default();
    let will = Will { topic: "will".into(), payload: "gone".into(), qos: Qos::AtMostOnce, retain: false, properties };
    let stuck = Connect { keep_alive_s: 1, will: Some(will), ..connect("stuck") };
    let mut stuck = Peer::open(rig.address, stuck).await.0;
    stuck.subscribe("stuck", Qos::AtMostOnce).await;
    // What the sockets hold, and what waits behind them.
    let large = bytes_of(&Packet::Publish(publish("stuck", &"x".repeat(60_000), Qos::AtMostOnce, 0)), Version::V5);
    let asked = b"\xC0\x00".repeat(32 << 10);
    let flood = async {
        let mut parts = std::iter::repeat_n(&large[..], 200).chain(std::iter::repeat(&asked[..]));
        while stuck.stream.write_all(parts.next().unwrap()).await.is_ok() {}
    };
    let ((), gone) = tokio::join!(flood, watcher.publication());
    assert_eq!(&*gone.payload, b"gone");
    rig.stop().await;
}

#[tokio::test]
async fn wildcards_that_all_match_bring_one_copy_to_each_client() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut storm = rig.peer("storm").await;
    // Each of 10 levels literal or `+`: 1,024 filters that all match one topic.
    for high in 0..4_u16 {
        let filter = |n: u16| {
            let levels = (0..10).map(|level| if (high << 8 | n) >> level & 1 == 1 { "+" } else { "l" });
            levels.collect::<Vec<_>>().join("/")
        };
        let options = SubscribeOptions::default();
        let subscriptions =
            (0..256).map(|n| Subscription { filter: filter(n).as_str().into(), options }).collect::<Vec<_>>();
        let id = PacketId::new(1).unwrap();
        storm.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
        assert!(matches!(storm.receive().await, Packet::Suback(_)));
    }
    let mut one = rig.peer("one").await;
    for _ in 0..20 {
        one.deliver("l/l/l/l/l/l/l/l/l/l", "x", Qos::AtMostOnce, 1).await;
        storm.publication().await;
    }
    storm.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_bounded_memory_and_slows_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut stuck = rig.peer("stuck").await;
    stuck.subscribe("a", Qos::AtMostOnce).await;
    let mut other = rig.peer("other").await;
    other.subscribe("a", Qos::AtMostOnce).await;
    let mut one = rig.peer("one").await;
    let large = "x".repeat(64 << 10);
    // Until the sockets' buffers are full, whatever their size, and the outbox is too.
    let mut sent = 0;
    while rig.board.snapshot().dropped.get("slow_subscriber").is_none_or(|count| *count < 100) {
        sent += 1;
        assert!(sent < 2_000, "nothing was dropped after {sent} messages");
        one.deliver("a", &large, Qos::AtMostOnce, 1).await;
        other.publication().await;
    }
    let held = rig.broker.clients.lock().get("stuck").unwrap().lock().online.as_ref().unwrap().outbox.len();
    assert!(held <= (1 << 20) + large.len() + 100, "{held} bytes wait for it");
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_acknowledges_nothing_costs_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { in_flight: 10, ..Config::default() }).await;
    let mut stuck = rig.peer("stuck").await;
    stuck.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    one.send_all((1..=1_100).map(|id| Packet::Publish(publish("a", "x", Qos::AtLeastOnce, id)))).await;
    for id in 1..=1_100 {
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
    for _ in 0..10 {
        stuck.publication().await;
    }
    stuck.expect_silence().await;
    assert_eq!(rig.board.snapshot().dropped["slow_subscriber"], 1_100 - 1_000 - 10);
    rig.stop().await;
}

#[tokio::test]
async fn a_window_of_65_535_large_messages_costs_bounded_memory_and_none_is_lost_for_a_kept_session() {
    const BYTES: usize = 60_000;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { in_flight: u16::MAX, in_flight_bytes: ByteSize(1 << 20), ..Config::default() };
    let rig = rig_with(&dir, config).await;
    let mut stuck = Peer::open(rig.address, kept("stuck")).await.0;
    stuck.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    for id in 1..=200 {
        one.deliver("a", &format!("{id:0BYTES$}"), Qos::AtLeastOnce, id).await;
    }
    // What its memory holds, however far its socket has taken what is in flight.
    let held = |rig: &Rig| {
        let client = rig.broker.clients.lock().get("stuck").cloned().unwrap();
        let state = client.lock();
        (state.outbound.in_flight_bytes(), state.outbound.queued_bytes())
    };
    let slack = BYTES + 1_024;
    let (in_flight, queued) = held(&rig);
    assert!((1 << 20..(1 << 20) + slack).contains(&in_flight), "{in_flight} bytes are in flight");
    assert!((4 << 20..(4 << 20) + slack).contains(&queued), "{queued} bytes wait");
    // The same when it comes back and the store has to be asked.
    drop(stuck);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut stuck = Peer::open(rig.address, kept("stuck")).await.0;
    for id in 1..=200 {
        let next = stuck.publication().await;
        assert_eq!(next.payload, format!("{id:0BYTES$}"), "in order, and all of them");
        let (in_flight, queued) = held(&rig);
        assert!(in_flight < (1 << 20) + slack && queued < (4 << 20) + slack, "{in_flight} and {queued}");
        stuck.send(Packet::Puback(ack(next.id.unwrap().get()))).await;
    }
    stuck.expect_silence().await;
    rig.stop().await;
}

/// 2,000 overlapping filters with an identifier each: what one message carries of them is far more than the message.
#[tokio::test]
async fn subscription_identifiers_count_in_what_waits_for_a_client_in_memory_and_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { in_flight: 1, session_bytes_max: ByteSize(1 << 20), ..Config::default() }).await;
    let (mut clean, mut away) = (rig.peer("clean").await, Peer::open(rig.address, kept("away")).await.0);
    for peer in [&mut clean, &mut away] {
        peer.send(subscribe_as(overlapping(2_000), Some(7))).await;
        assert!(suback(peer).await.iter().all(|code| !code.is_error()));
    }
    drop(away);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut one = rig.peer("one").await;
    for id in 1..=600 {
        one.deliver(TOPIC, "x", Qos::AtLeastOnce, id).await;
    }
    // 128 bytes, topic, payload, and 4 bytes for each identifier.
    let each = 128 + TOPIC.len() as u64 + 1 + 4 * 2_000;
    let state = rig.broker.clients.lock().get("clean").cloned().unwrap();
    let queued = state.lock().outbound.queued() as u64;
    assert_eq!(queued, (4 << 20) / each + 1, "4 MiB wait, and one more");
    assert_eq!(rig.board.snapshot().dropped["slow_subscriber"], 600 - 1 - queued);
    assert_eq!(rig.broker.figures().owed, (1 << 20) / each);
    rig.stop().await;
}

#[tokio::test]
async fn mqtt_3_1_1_may_open_every_packet_id_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let old = Connect { version: Version::V311, ..connect("old") };
    let mut old = Peer::open(rig.address, old).await.0;
    for from in (1..=u16::MAX).step_by(5_000) {
        let ids = from..=from.saturating_add(4_999);
        old.send_all(ids.clone().map(|id| Packet::Publish(publish("a", "", Qos::ExactlyOnce, id)))).await;
        for id in ids {
            assert_eq!(old.receive().await, Packet::Pubrec(ack(id)));
        }
    }
    // All are in use: each is a copy now, until it is completed.
    old.deliver("a", "", Qos::ExactlyOnce, 1).await;
    let received = rig.board.snapshot().received;
    assert_eq!(received, u64::from(u16::MAX));
    old.deliver("a", "", Qos::ExactlyOnce, 1).await;
    assert_eq!(rig.board.snapshot().received, received + 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_half_open_connection_is_probed_by_the_system() {
    use nix::sys::socket::{getsockopt, sockopt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let socket = Socket::Tcp(client);
    socket.prepare().unwrap();
    let Socket::Tcp(client) = socket else { panic!("it was one") };
    assert!(getsockopt(&client, sockopt::KeepAlive).unwrap());
    let probes = getsockopt(&client, sockopt::TcpKeepIdle).unwrap()
        + getsockopt(&client, sockopt::TcpKeepInterval).unwrap() * getsockopt(&client, sockopt::TcpKeepCount).unwrap();
    assert!(probes <= 180, "docs/broker.md says three minutes");
    assert!(client.nodelay().unwrap());
}

#[tokio::test]
async fn noise_ends_its_own_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for seed in 0..64_u64 {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let mut bytes = BytesMut::new();
        if seed % 2 == 0 {
            bytes = bytes_of(&Packet::Connect(Box::new(connect("noise"))), Version::V5);
        }
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for _ in 0..2_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        // The broker may have had enough of it already.
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        let mut rest = Vec::new();
        drop(soon(stream.read_to_end(&mut rest)).await);
    }
    is_served(&rig).await;
    rig.stop().await;
}

/// A whole session of one client, and where its CONNECT ends.
fn session_bytes(version: Version, seed: u64) -> (BytesMut, usize) {
    let connect = Connect { version, ..connect(&format!("mutant-{}", seed % 4)) };
    let mut bytes = bytes_of(&Packet::Connect(Box::new(connect)), version);
    let connect_len = bytes.len();
    let id = PacketId::new(1).unwrap();
    let options = SubscribeOptions { qos: Qos::ExactlyOnce, ..SubscribeOptions::default() };
    let subscriptions =
        ["m/#", "+/+", "$share/g/m/a"].map(|filter| Subscription { filter: filter.into(), options }).to_vec();
    let mut packets = vec![Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })];
    for n in 1..=4 {
        let mut retained = publish("m/a", "payload", Qos::from_bits(u8::try_from(n % 3).unwrap()).unwrap(), n);
        retained.retain = n == 2;
        packets.push(Packet::Publish(retained));
        packets.extend([
            Packet::Pubrel(ack(n)),
            Packet::Puback(ack(n)),
            Packet::Pubrec(ack(n)),
            Packet::Pubcomp(ack(n)),
        ]);
    }
    packets.push(Packet::Pingreq);
    packets.push(Packet::Unsubscribe(Unsubscribe { id, user: Vec::new(), filters: vec!["m/#".into()] }));
    packets.iter().for_each(|packet| bytes.extend_from_slice(&bytes_of(packet, version)));
    (bytes, connect_len)
}

#[tokio::test]
async fn mutated_sessions_end_their_own_connection_only_and_what_comes_back_is_mqtt() {
    // From bytes to effects: the real decoder, session, store and hub. More of them: TIDEGATE_FUZZ_RUNS.
    let runs = std::env::var("TIDEGATE_FUZZ_RUNS").map_or(200, |runs| runs.parse().unwrap());
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let rig = Rig::start(dir.path()).await;
    for seed in 0..runs {
        let version = [Version::V31, Version::V311, Version::V5][usize::try_from(seed % 3).unwrap()];
        let (mut bytes, connect_len) = session_bytes(version, seed);
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut roll = |sides: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 11).unwrap() % sides.max(1)
        };
        // What follows a CONNECT that is sound has to be answered in its version.
        let first = if seed % 4 == 0 { 0 } else { connect_len };
        for _ in 0..=roll(4) {
            let at = first + roll(bytes.len() - first);
            match roll(5) {
                0 => bytes[at] ^= 1 << roll(8),
                1 => bytes[at] = u8::try_from(roll(256)).unwrap(),
                2 => bytes.truncate(at.max(first + 1)),
                3 => bytes[at] = 0xFF,
                _ => {
                    let tail = bytes.split_off(at);
                    bytes.extend_from_slice(&tail[roll(tail.len())..]);
                    bytes.extend_from_slice(&tail);
                }
            }
        }
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        // The broker may have had enough of it already.
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(soon(stream.read_to_end(&mut answer)).await);
        if first > 0 {
            let mut decoder = crate::wire::Decoder::client(version, 1 << 20);
            let mut answer = BytesMut::from(&answer[..]);
            while decoder.decode(&mut answer).unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_some() {}
        }
    }
    is_served(&rig).await;
    rig.stop().await;
}
