//! Limits of listeners and users, as clients see them.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::*;
use crate::broker::Config;
use crate::broker::auth::acl::Glob;
use crate::broker::limits::{ListenerLimits, OverRate, Rates, UserLimits, Whom};
use crate::message::Qos;
use crate::router::{Form, From, Route, Table, To};
use crate::units::{ByteSize, Rate};
use crate::wire::{Connect, Packet, ReasonCode, Version, Will, WillProperties};

async fn rig_for(dir: &tempfile::TempDir, listener: ListenerLimits, users: Option<UserLimits>) -> Rig {
    let mut config = Config::default();
    config.listeners[0].limits = listener;
    config.limits = users.map(Arc::new).into_iter().collect();
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

/// So many at once, and then one an hour: no test waits for it.
fn rates(messages: u32, over: OverRate) -> Rates {
    let burst = Duration::from_secs(3_600) * messages;
    Rates { messages: Rate::parse_count("1/h").ok(), bytes: None, burst, over }
}

fn anonymous() -> UserLimits {
    UserLimits::of(Whom::Anonymous)
}

fn old(client_id: &str) -> Connect {
    Connect { version: Version::V311, ..connect(client_id) }
}

#[tokio::test]
async fn who_is_over_its_rate_is_not_read_and_nobody_else_is_held_up() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { rates: rates(3, OverRate::Delay), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let mut fast = rig.peer("fast").await;
    fast.send_all((1..=9).map(|id| Packet::Publish(publish("a", "x", Qos::AtLeastOnce, id)))).await;
    // The one that is too many is taken: the pause follows it.
    for id in 1..=4 {
        assert_eq!(fast.receive().await, Packet::Puback(ack(id)));
    }
    rig.until("it is held back", |rig| rig.board.snapshot().limited.get("message_rate") == Some(&1)).await;
    let mut other = rig.peer("other").await;
    other.subscribe("a", Qos::AtMostOnce).await;
    other.deliver("a", "y", Qos::AtLeastOnce, 1).await;
    assert_eq!(other.publication().await.payload, &b"y"[..]);
    assert_eq!(rig.board.snapshot().received, 5, "nothing more of the fast one was read");
    // A new connection takes its place: its rate is its own.
    rig.peer("fast").await.deliver("a", "z", Qos::AtLeastOnce, 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn bytes_are_held_back_likewise() {
    let dir = tempfile::tempdir().unwrap();
    let rates = Rates { bytes: Rate::parse_bytes("1KiB/h").ok(), ..Rates::default() };
    let rig = rig_for(&dir, ListenerLimits { rates, ..ListenerLimits::unlimited() }, None).await;
    let mut fast = rig.peer("fast").await;
    fast.deliver("a", &"x".repeat(2_000), Qos::AtLeastOnce, 1).await;
    rig.until("it is held back", |rig| rig.board.snapshot().limited.get("byte_rate") == Some(&1)).await;
    fast.send(Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 2))).await;
    rig.peer("other").await.deliver("a", "y", Qos::AtLeastOnce, 1).await;
    assert_eq!(rig.board.snapshot().received, 2);
    rig.stop().await;
}

#[tokio::test]
async fn who_is_over_its_rate_is_refused_or_ended_where_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { rates: rates(2, OverRate::Refuse), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let mut fast = rig.peer("fast").await;
    fast.send(Packet::Publish(publish("a", "x", Qos::ExactlyOnce, 7))).await;
    assert_eq!(fast.receive().await, Packet::Pubrec(ack(7)));
    fast.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    fast.send(Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 2))).await;
    let Packet::Puback(told) = fast.receive().await else { panic!("no PUBACK") };
    assert_eq!(told.code, ReasonCode::QuotaExceeded);
    assert!(told.properties.reason.unwrap().contains("over its rate"));
    fast.send(Packet::Publish(publish("a", "x", Qos::ExactlyOnce, 3))).await;
    let Packet::Pubrec(told) = fast.receive().await else { panic!("no PUBREC") };
    assert_eq!(told.code, ReasonCode::QuotaExceeded);
    // An exchange that is open goes on.
    let mut again = publish("a", "x", Qos::ExactlyOnce, 7);
    again.dup = true;
    fast.send(Packet::Publish(again)).await;
    assert_eq!(fast.receive().await, Packet::Pubrec(ack(7)));
    fast.send(Packet::Publish(publish("a", "x", Qos::AtMostOnce, 1))).await;
    fast.expect_silence().await;
    let mut old = Peer::open(rig.address, old("old")).await.0;
    old.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    old.deliver("a", "x", Qos::AtLeastOnce, 2).await;
    old.send(Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 3))).await;
    assert_eq!(old.next().await, None, "MQTT 3.1.1 has no other word for it");
    let board = rig.board.snapshot();
    assert_eq!((board.received, board.refused["over_rate"], board.dropped["over_rate"]), (4, 3, 1));
    rig.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { rates: rates(1, OverRate::Disconnect), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let mut fast = rig.peer("fast").await;
    fast.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    fast.send(Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 2))).await;
    let Packet::Disconnect(told) = fast.receive().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::MessageRateTooHigh);
    rig.stop().await;
}

#[tokio::test]
async fn a_user_s_connections_share_one_rate() {
    let dir = tempfile::tempdir().unwrap();
    let users = UserLimits { rates: rates(2, OverRate::Refuse), ..anonymous() };
    let rig = rig_for(&dir, ListenerLimits::unlimited(), Some(users)).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    one.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    two.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    drop(two);
    for peer in [&mut one, &mut rig.peer("three").await] {
        peer.send(Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 2))).await;
        let Packet::Puback(told) = peer.receive().await else { panic!("no PUBACK") };
        assert_eq!(told.code, ReasonCode::QuotaExceeded);
    }
    rig.stop().await;
}

#[tokio::test]
async fn connections_of_one_address_and_their_rate_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { connections_per_address: Some(2), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let (one, _two) = (rig.peer("one").await, rig.peer("two").await);
    let (_, connack) = Peer::open(rig.address, connect("three")).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    assert!(connack.properties.reason.unwrap().contains("from this address"));
    // Those that say nothing wait for their turn to be told, and the ones beyond them are closed at once.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut rest = [0];
    assert_eq!(soon(waiting.last_mut().unwrap().read(&mut rest)).await.unwrap_or(0), 0);
    assert!(rig.board.snapshot().limited["connections_per_address"] >= 9);
    drop(waiting);
    drop(one);
    rig.until("there is room again", |rig| rig.board.snapshot().clients == 1).await;
    rig.peer("three").await.expect_silence().await;
    rig.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { connection_rate: Rate::parse_count("1/h").ok(), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let _one = rig.peer("one").await;
    let (_, connack) = Peer::open(rig.address, connect("two")).await;
    assert_eq!(connack.code, ReasonCode::ConnectionRateExceeded);
    rig.stop().await;
}

#[tokio::test]
async fn a_listener_s_own_limit_of_connections_leaves_others_in_the_system_s_queue() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { connections: Some(1), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, None).await;
    let mut one = rig.peer("one").await;
    let address = rig.address;
    let waiting = async move { Peer::open(address, connect("two")).await.0 };
    tokio::pin!(waiting);
    tokio::select! {
        biased;
        _let_in = &mut waiting => panic!("a second was let in"),
        () = one.expect_silence() => {}
    }
    drop(one);
    waiting.await.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_user_s_connections_and_kept_sessions_are_bounded_and_its_own_may_be_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let users = UserLimits { connections: Some(2), sessions: Some(1), ..anonymous() };
    let rig = rig_for(&dir, ListenerLimits::unlimited(), Some(users.clone())).await;
    let one = Peer::open(rig.address, kept("one")).await.0;
    let (_, connack) = Peer::open(rig.address, kept("two")).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    assert!(connack.properties.reason.unwrap().contains("1 sessions"));
    let two = rig.peer("two").await;
    let (_, connack) = Peer::open(rig.address, connect("three")).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    // What it takes over counts once.
    let (again, connack) = Peer::open(rig.address, kept("one")).await;
    assert_eq!((connack.code, connack.session_present), (ReasonCode::Success, true));
    drop((one, two, again));
    rig.until("all are away", |rig| rig.board.snapshot().clients == 0).await;
    // A session that is away counts, also after a kill.
    let copy = rig.crash(dir.path());
    let config = Config { limits: vec![Arc::new(users)], ..Config::default() };
    let rig = Rig::with(copy.path(), config, Table::default(), Vec::new()).await;
    let (_, connack) = Peer::open(rig.address, kept("two")).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    // It ends its session: there is room for another.
    drop(rig.peer("one").await);
    rig.until("it is away", |rig| rig.board.snapshot().clients == 0).await;
    let (_, connack) = Peer::open(rig.address, kept("two")).await;
    assert_eq!(connack.code, ReasonCode::Success);
    let limited = rig.board.snapshot().limited;
    assert_eq!(limited["user_sessions"], 1);
    rig.stop().await;
}

#[tokio::test]
async fn sessions_that_are_kept_are_bounded_in_all_also_after_a_kill_and_a_full_store_takes_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config { sessions_max: 2, ..Config::default() };
    let rig = Rig::with(dir.path(), config(), Table::default(), Vec::new()).await;
    let _two = [Peer::open(rig.address, kept("one")).await, Peer::open(rig.address, kept("two")).await];
    let (_, connack) = Peer::open(rig.address, kept("three")).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    assert!(connack.properties.reason.unwrap().contains("sessions_max"));
    let three = Peer::open(rig.address, Connect { clean_start: false, ..old("three") }).await.1;
    assert_eq!(three.code, ReasonCode::ServerUnavailable, "3.x has no other word for it");
    // Clean ones are not counted, and one that is there may be gone on with, or begun anew.
    rig.peer("three").await.expect_silence().await;
    for connect in [kept("one"), Connect { clean_start: true, ..kept("two") }] {
        assert_eq!(Peer::open(rig.address, connect).await.1.code, ReasonCode::Success);
    }
    assert_eq!(rig.board.snapshot().limited["sessions_max"], 2);
    rig.until("both are away", |rig| rig.broker.figures().sessions_offline == 2).await;
    let copy = rig.crash(dir.path());
    rig.stop().await;
    let rig = Rig::with(copy.path(), config(), Table::default(), Vec::new()).await;
    assert_eq!(Peer::open(rig.address, kept("three")).await.1.code, ReasonCode::QuotaExceeded);
    // One ends: another has its place, unless the store takes nothing new.
    drop(rig.peer("one").await);
    rig.until("it is away", |rig| rig.board.snapshot().clients == 0).await;
    rig.broker.store.fill(true);
    let (_, connack) = Peer::open(rig.address, kept("three")).await;
    assert_eq!((connack.code, rig.board.snapshot().refused["store_full"]), (ReasonCode::QuotaExceeded, 1));
    assert_eq!(Peer::open(rig.address, kept("two")).await.1.code, ReasonCode::Success, "what is there goes on");
    rig.peer("clean").await.expect_silence().await;
    rig.broker.store.fill(false);
    assert_eq!(Peer::open(rig.address, kept("three")).await.1.code, ReasonCode::Success);
    rig.stop().await;
}

#[tokio::test]
async fn silent_connections_of_one_address_leave_places_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { handshakes_per_address: Some(2), ..ListenerLimits::unlimited() };
    let mut config = Config { connect_timeout: Duration::from_secs(600), handshakes_max: 12, ..Config::default() };
    config.listeners[0].limits = limits;
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    // Two may be under way, eight are to be told why not; others are closed at once.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut rest = [0];
    assert_eq!(soon(silent.last_mut().unwrap().read(&mut rest)).await.unwrap_or(0), 0);
    let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    elsewhere.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let elsewhere = elsewhere.connect(rig.address).await.unwrap();
    Peer::over(Box::new(elsewhere), connect("other")).await.0.expect_silence().await;
    assert!(rig.board.snapshot().limited["handshakes_per_address"] >= 9);
    drop(silent);
    rig.stop().await;
}

#[tokio::test]
async fn only_a_kept_session_of_its_own_spares_a_user_its_limit_of_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let anna = || UserLimits { sessions: Some(1), ..UserLimits::of(Whom::User(Glob::like("anna"))) };
    let rig = rig_for(&dir, ListenerLimits::unlimited(), Some(anna())).await;
    let of_anna = |connect: Connect| Connect { user: Some("anna".into()), ..connect };
    let _one = Peer::open(rig.address, of_anna(kept("one"))).await;
    let _clean = Peer::open(rig.address, of_anna(connect("two"))).await;
    let (_, connack) = Peer::open(rig.address, of_anna(kept("two"))).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded, "in the place of one that is not kept");
    // What an anonymous client left is hers from then on.
    let _free = Peer::open(rig.address, kept("free")).await;
    let (_, connack) = Peer::open(rig.address, of_anna(kept("free"))).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    drop(Peer::open(rig.address, of_anna(connect("one"))).await);
    rig.until("she is away", |rig| rig.broker.users.session(Some(&"anna".into()), Some(1), None).is_ok()).await;
    let (_, connack) = Peer::open(rig.address, of_anna(kept("free"))).await;
    assert_eq!((connack.code, connack.session_present), (ReasonCode::Success, true));
    let (_, connack) = Peer::open(rig.address, of_anna(kept("three"))).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded, "it is counted as hers");
    rig.stop().await;
}

/// The old connection is told, and listened to for seconds; its client never closes it.
#[tokio::test]
async fn a_connection_that_was_taken_over_holds_no_place_while_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let users = UserLimits { connections: Some(2), ..anonymous() };
    let limits =
        ListenerLimits { connections: Some(2), connections_per_address: Some(2), ..ListenerLimits::unlimited() };
    let rig = rig_for(&dir, limits, Some(users)).await;
    let mut old = rig.peer("one").await;
    let mut new = rig.peer("one").await;
    assert!(matches!(old.receive().await, Packet::Disconnect(_)));
    let (mut other, connack) = Peer::open(rig.address, connect("other")).await;
    assert_eq!(connack.code, ReasonCode::Success);
    other.expect_silence().await;
    new.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn the_smallest_packet_size_of_all_limits_counts_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { packet_bytes_max: Some(ByteSize(4 << 10)), ..ListenerLimits::unlimited() };
    let users = UserLimits { packet_bytes_max: Some(ByteSize(2 << 10)), ..anonymous() };
    let rig = rig_for(&dir, limits, Some(users)).await;
    let (mut one, connack) = Peer::open(rig.address, connect("one")).await;
    assert_eq!(connack.properties.maximum_packet_size.unwrap().get(), 2 << 10);
    one.deliver("a", &"x".repeat(2_000), Qos::AtLeastOnce, 1).await;
    one.send(Packet::Publish(publish("a", &"x".repeat(2_100), Qos::AtLeastOnce, 2))).await;
    let Packet::Disconnect(told) = one.receive().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::PacketTooLarge);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_user_s_sessions_are_owed_has_limits_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let users = UserLimits { session_messages_max: Some(5), ..anonymous() };
    let rig = rig_for(&dir, ListenerLimits::unlimited(), Some(users)).await;
    let mut away = Peer::open(rig.address, kept("away")).await.0;
    away.subscribe("a", Qos::AtLeastOnce).await;
    drop(away);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut one = rig.peer("one").await;
    for id in 1..=9 {
        one.deliver("a", "x", Qos::AtLeastOnce, id).await;
    }
    assert_eq!((rig.broker.figures().owed, rig.board.snapshot().dropped["session_full"]), (5, 4));
    rig.stop().await;
}

fn retained(topic: &str, payload: &str, qos: Qos) -> crate::wire::Publish {
    let mut retained = publish(topic, payload, qos, 1);
    (retained.retain, retained.id) = (true, retained.id.filter(|_| qos != Qos::AtMostOnce));
    retained
}

/// The answer to a QoS 1 or 2 publish that is to be retained.
async fn retain(peer: &mut Peer, topic: &str, payload: &str, qos: Qos) -> ReasonCode {
    peer.send(Packet::Publish(retained(topic, payload, qos))).await;
    let answer = peer.receive().await;
    if let Packet::Puback(told) = &answer {
        return told.code;
    }
    let Packet::Pubrec(told) = answer else { panic!("no PUBACK or PUBREC but {answer:?}") };
    if !told.code.is_error() {
        peer.send(Packet::Pubrel(ack(1))).await;
        assert_eq!(peer.receive().await, Packet::Pubcomp(ack(1)));
    }
    told.code
}

/// What a new subscriber gets of what is retained.
async fn kept_values(rig: &Rig) -> Vec<(String, usize)> {
    let mut reader = rig.peer("reader").await;
    reader.subscribe("r/#", Qos::AtMostOnce).await;
    reader.send(Packet::Pingreq).await;
    let mut values = Vec::new();
    while let Packet::Publish(publish) = reader.receive().await {
        values.push((publish.topic.as_str().to_owned(), publish.payload.len()));
    }
    values.sort();
    values
}

#[tokio::test]
async fn what_is_retained_is_bounded_in_number_and_replacing_and_removing_always_are_possible() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { retained_messages_max: 2, ..Config::default() };
    let rig = Rig::with(dir.path(), config.clone(), Table::default(), Vec::new()).await;
    let (mut one, mut live) = (rig.peer("one").await, rig.peer("live").await);
    let full = ReasonCode::QuotaExceeded;
    for (topic, payload, qos, code) in [
        ("r/a", "1", Qos::AtLeastOnce, ReasonCode::Success),
        ("r/b", "1", Qos::ExactlyOnce, ReasonCode::Success),
        ("r/c", "1", Qos::AtLeastOnce, full),
        ("r/c", "1", Qos::ExactlyOnce, full),
        ("r/a", "12345", Qos::AtLeastOnce, ReasonCode::Success),
        ("r/b", "", Qos::AtLeastOnce, ReasonCode::Success),
        ("r/c", "1", Qos::ExactlyOnce, ReasonCode::Success),
        ("r/b", "1", Qos::AtLeastOnce, full),
    ] {
        assert_eq!(retain(&mut one, topic, payload, qos).await, code, "{topic} {payload}");
    }
    one.send(Packet::Publish(retained("r/b", "1", Qos::AtLeastOnce))).await;
    let Packet::Puback(told) = one.receive().await else { panic!("no PUBACK") };
    assert!(told.properties.reason.unwrap().contains("`retained_messages_max`"), "the reason names what is full");
    live.subscribe("r/d", Qos::AtLeastOnce).await;
    // QoS 0 has no answer: it is delivered, and not retained. Nothing that was refused is.
    assert_eq!(retain(&mut one, "r/d", "1", Qos::AtLeastOnce).await, full);
    one.send(Packet::Publish(retained("r/d", "22", Qos::AtMostOnce))).await;
    assert_eq!(live.publication().await.payload, &b"22"[..]);
    assert_eq!(kept_values(&rig).await, [("r/a".to_owned(), 5), ("r/c".to_owned(), 1)]);
    let mut old = Peer::open(rig.address, old("old")).await.0;
    old.send(Packet::Publish(retained("r/e", "1", Qos::AtLeastOnce))).await;
    assert_eq!(old.next().await, None, "MQTT 3.1.1 has no other word for it");
    let board = rig.board.snapshot();
    assert_eq!((board.refused["retained_full"], board.dropped["retained_full"]), (6, 1));
    // What an earlier run has left counts, be it more than may be now.
    let copy = rig.crash(dir.path());
    let again = Config { retained_messages_max: 1, ..config };
    let again = Rig::with(copy.path(), again, Table::default(), Vec::new()).await;
    let mut one = again.peer("one").await;
    assert_eq!(retain(&mut one, "r/a", "2", Qos::AtLeastOnce).await, ReasonCode::Success);
    assert_eq!(retain(&mut one, "r/x", "2", Qos::AtLeastOnce).await, full);
    assert_eq!(retain(&mut one, "r/c", "", Qos::AtLeastOnce).await, ReasonCode::Success);
    assert_eq!(retain(&mut one, "r/x", "2", Qos::AtLeastOnce).await, full);
    assert_eq!(kept_values(&again).await, [("r/a".to_owned(), 1)]);
    again.stop().await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_retained_is_bounded_in_bytes_and_what_does_not_grow_always_is_possible() {
    let dir = tempfile::tempdir().unwrap();
    // Beside payloads: 384 bytes and the topic each, and a node of the tree for `r` and for what is below it.
    let besides = 3 * 160 + 3 + 2 * (128 + 256 + 3);
    let config = Config { retained_bytes_max: ByteSize(700 + 880 + besides), ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut one = rig.peer("one").await;
    let full = ReasonCode::QuotaExceeded;
    for (topic, bytes, code) in [
        ("r/a", 780, ReasonCode::Success),
        ("r/b", 780, ReasonCode::Success),
        ("r/c", 780, full),
        ("r/a", 1_100, full),
        ("r/a", 780, ReasonCode::Success),
        ("r/a", 700, ReasonCode::Success),
        ("r/b", 880, ReasonCode::Success),
        ("r/b", 881, full),
    ] {
        assert_eq!(retain(&mut one, topic, &"x".repeat(bytes), Qos::AtLeastOnce).await, code, "{topic} {bytes}");
    }
    assert_eq!(rig.broker.topics.retained_bytes(), 700 + 880 + besides);
    // What is not retained takes the place of nothing, and leaves nothing that is not true any more.
    one.send(Packet::Publish(retained("r/a", &"x".repeat(1_500), Qos::AtMostOnce))).await;
    one.expect_silence().await;
    assert_eq!(kept_values(&rig).await, [("r/b".to_owned(), 880)]);
    assert_eq!(retain(&mut one, "r/b", "", Qos::AtLeastOnce).await, ReasonCode::Success);
    assert_eq!(rig.broker.topics.retained_bytes(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn levels_of_retained_topics_count_as_what_they_take() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { retained_bytes_max: ByteSize(100_000), ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut one = rig.peer("one").await;
    // A node for each of 200 levels that no other topic has: 32,586 bytes.
    let deep = |n: u8| format!("{n}{}", "/".repeat(199));
    for n in 0..3 {
        assert_eq!(retain(&mut one, &deep(n), "x", Qos::AtLeastOnce).await, ReasonCode::Success);
    }
    assert_eq!(retain(&mut one, &deep(3), "x", Qos::AtLeastOnce).await, ReasonCode::QuotaExceeded);
    assert_eq!(retain(&mut one, &format!("0{}b", "/".repeat(190)), "x", Qos::AtLeastOnce).await, ReasonCode::Success);
    rig.stop().await;
}

#[tokio::test]
async fn a_will_is_delivered_and_not_retained_where_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { retained_messages_max: 1, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let (mut one, mut live) = (rig.peer("one").await, rig.peer("live").await);
    assert_eq!(retain(&mut one, "r/a", "1", Qos::AtLeastOnce).await, ReasonCode::Success);
    live.subscribe("w/#", Qos::AtLeastOnce).await;
    let will = Will {
        topic: "w/a".into(),
        payload: bytes::Bytes::from_static(b"gone"),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: WillProperties::default(),
    };
    drop(Peer::open(rig.address, Connect { will: Some(will), ..connect("lost") }).await);
    assert_eq!(live.publication().await.payload, &b"gone"[..]);
    let board = rig.board.snapshot();
    assert_eq!((rig.broker.figures().retained, board.dropped["retained_full"]), (1, 1));
    assert_eq!((board.refused.get("retained_full"), board.dropped.get("will_refused")), (None, None));
    // Who is there is still refused.
    assert_eq!(retain(&mut one, "w/a", "1", Qos::AtLeastOnce).await, ReasonCode::QuotaExceeded);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_route_makes_of_a_retained_message_is_delivered_and_not_retained_where_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let from = From::parse("broker/in/#", Form::Topic).unwrap();
    let copies = Route::new("copies", vec![from], vec![To::parse("broker/r/{rest}").unwrap()]);
    let config = Config { retained_messages_max: 1, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::new(vec![copies]), Vec::new()).await;
    let (mut one, mut live) = (rig.peer("one").await, rig.peer("live").await);
    live.subscribe("r/#", Qos::AtLeastOnce).await;
    assert_eq!(retain(&mut one, "in/a", "1", Qos::AtLeastOnce).await, ReasonCode::Success);
    assert_eq!(live.publication().await.topic.as_str(), "r/a");
    assert_eq!((rig.broker.figures().retained, rig.board.snapshot().dropped["retained_full"]), (1, 1));
    // Who is refused has nothing delivered, not what a route makes of it either.
    assert_eq!(retain(&mut one, "in/b", "1", Qos::AtLeastOnce).await, ReasonCode::QuotaExceeded);
    live.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn an_address_s_connections_are_counted_before_their_handshakes() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { connections_per_address: Some(2), ..ListenerLimits::unlimited() };
    let mut config = Config { connect_timeout: Duration::from_secs(600), ..Config::default() };
    config.listeners[0].limits = limits;
    config.listeners[0].websocket = Some(crate::broker::WebSocketTerms::default());
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    // None of them sends its request: two may stay, eight are to be told why not, and the last is closed at once.
    let mut silent = Vec::new();
    for _ in 0..11 {
        silent.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut rest = [0];
    assert_eq!(soon(silent.last_mut().unwrap().read(&mut rest)).await.unwrap_or(0), 0);
    assert_eq!(rig.board.snapshot().limited["connections_per_address"], 9);
    rig.stop().await;
}
