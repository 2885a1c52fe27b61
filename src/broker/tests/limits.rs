//! Limits of listeners and users, as clients see them.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::*;
use crate::broker::Config;
use crate::broker::limits::{ListenerLimits, OverRate, Rates, UserLimits, Whom};
use crate::message::Qos;
use crate::router::Table;
use crate::units::{ByteSize, Rate};
use crate::wire::{Packet, ReasonCode, Version};

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

fn old(client_id: &str) -> crate::wire::Connect {
    crate::wire::Connect { version: Version::V311, ..connect(client_id) }
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
