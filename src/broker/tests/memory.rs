//! R36: what the broker does while memory is short.

use std::num::NonZeroU16;
use std::time::Duration;

use super::support::*;
use crate::message::Qos;
use crate::telemetry::memory::Change;
use crate::units::ByteSize;
use crate::wire::{Connect, Packet, ReasonCode, Version, Will, WillProperties};

/// As if the process held as much as it may.
fn is_short(rig: &Rig) {
    rig.hub.memory().limit_to(ByteSize(800));
    assert_eq!(rig.hub.memory().note(800), Some(Change::Short));
}

fn is_relieved(rig: &Rig) {
    assert_eq!(rig.hub.memory().note(100), Some(Change::Relieved));
}

#[tokio::test]
async fn r36_a_publisher_is_held_back_until_there_is_memory_again_and_nobody_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut other) = (rig.peer("one").await, rig.peer("other").await);
    other.subscribe("a", Qos::AtLeastOnce).await;
    is_short(&rig);
    // What has come is taken; the pause follows it.
    one.deliver("a", "1", Qos::AtLeastOnce, 1).await;
    one.send(Packet::Publish(publish("a", "2", Qos::AtLeastOnce, 2))).await;
    let first = other.publication().await;
    assert_eq!(first.payload, &b"1"[..]);
    other.send(Packet::Puback(ack(first.id.unwrap().get()))).await;
    other.expect_silence().await;
    let board = rig.board.snapshot();
    assert_eq!((board.received, board.limited["max_memory"]), (1, 1));
    is_relieved(&rig);
    assert_eq!(one.receive().await, Packet::Puback(ack(2)));
    assert_eq!(other.publication().await.payload, &b"2"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn r36_while_it_lasts_a_publisher_is_read_a_little_and_is_not_ended_for_its_silence() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, _) = Peer::open(rig.address, Connect { keep_alive_s: 1, ..connect("one") }).await;
    is_short(&rig);
    for id in 1..=3 {
        one.deliver("a", "x", Qos::AtLeastOnce, id).await;
    }
    assert_eq!(rig.board.snapshot().limited["max_memory"], 3);
    rig.stop().await;
}

#[tokio::test]
async fn r36_new_clients_are_refused_in_the_words_of_their_version() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut inside = rig.peer("inside").await;
    is_short(&rig);
    for (version, code) in [(Version::V5, ReasonCode::QuotaExceeded), (Version::V311, ReasonCode::ServerUnavailable)] {
        let (_, connack) = Peer::open(rig.address, Connect { version, ..connect("one") }).await;
        assert_eq!(connack.code, code, "{version}");
    }
    inside.expect_silence().await;
    assert_eq!(rig.board.snapshot().limited["max_memory_connections"], 2);
    is_relieved(&rig);
    rig.peer("one").await.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn r36_who_holds_much_and_takes_nothing_is_ended_at_last_and_a_kept_session_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    // It never acknowledges.
    let mut stuck = Peer::open(rig.address, kept("stuck")).await.0;
    stuck.subscribe("a", Qos::AtLeastOnce).await;
    let mut small = Peer::open(rig.address, kept("small")).await.0;
    small.subscribe("b", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    one.deliver("b", "x", Qos::AtLeastOnce, 1).await;
    for id in 1..=10 {
        one.deliver("a", &"x".repeat(2_000), Qos::AtLeastOnce, id).await;
    }
    for _ in 0..10 {
        stuck.publication().await;
    }
    is_short(&rig);
    rig.broker.end_who_holds_most();
    assert_eq!(rig.board.snapshot().limited.get("max_memory_ended"), None, "it has just been seen");
    for (_, since) in rig.broker.stuck.lock().values_mut() {
        *since -= Duration::from_secs(5);
    }
    rig.broker.end_who_holds_most();
    let Packet::Disconnect(told) = stuck.receive().await else { panic!("not told") };
    assert_eq!((told.code, rig.board.snapshot().limited["max_memory_ended"]), (ReasonCode::QuotaExceeded, 1));
    assert_eq!(small.publication().await.payload, &b"x"[..]);
    small.expect_silence().await;
    is_relieved(&rig);
    rig.until("its connection is over", |rig| rig.broker.figures().sessions_offline == 1).await;
    let (mut again, connack) = Peer::open(rig.address, kept("stuck")).await;
    assert!(connack.session_present);
    for _ in 0..10 {
        assert!(again.publication().await.dup);
    }
    rig.stop().await;
}

/// Aliases, filters and a will are all that they hold, and nothing waits for them.
#[tokio::test]
async fn r36_who_has_set_up_much_and_is_silent_is_ended_too() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut aliases = rig.peer("aliases").await;
    let mut named = publish(&"x".repeat(60_000), "x", Qos::AtLeastOnce, 1);
    named.properties.topic_alias = NonZeroU16::new(1);
    aliases.send(Packet::Publish(named)).await;
    assert_eq!(aliases.receive().await, Packet::Puback(ack(1)));
    let mut filters = rig.peer("filters").await;
    filters.subscribe(&"y".repeat(60_000), Qos::AtLeastOnce).await;
    // What is kept is not free when its connection ends.
    let mut away = Peer::open(rig.address, kept("kept")).await.0;
    away.subscribe(&"z".repeat(60_000), Qos::AtLeastOnce).await;
    let mut wills = Vec::new();
    for connect in [connect("will"), kept("kept-will")] {
        let will = Will {
            topic: "w".into(),
            payload: vec![7; 60_000].into(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: WillProperties { delay_s: Some(60), ..WillProperties::default() },
        };
        wills.push(Peer::open(rig.address, Connect { will: Some(will), ..connect }).await.0);
    }
    let mut small = rig.peer("small").await;
    small.subscribe("s", Qos::AtLeastOnce).await;
    is_short(&rig);
    rig.broker.end_who_holds_most();
    assert_eq!(rig.broker.stuck.lock().len(), 3);
    for (_, since) in rig.broker.stuck.lock().values_mut() {
        *since -= Duration::from_secs(5);
    }
    // More than all of them hold.
    rig.hub.memory().limit_to(ByteSize(800_000));
    rig.hub.memory().note(1_000_000);
    rig.broker.end_who_holds_most();
    for peer in [&mut aliases, &mut filters, &mut wills[0]] {
        let Packet::Disconnect(told) = peer.receive().await else { panic!("not told") };
        assert_eq!(told.code, ReasonCode::QuotaExceeded);
    }
    for peer in [&mut away, &mut wills[1], &mut small] {
        peer.expect_silence().await;
    }
    rig.stop().await;
}

/// A PUBLISH that sets an alias for a name of so many bytes.
fn aliased(alias: u16, bytes: usize) -> Packet {
    let mut packet = publish(&format!("{alias:0bytes$}"), "x", Qos::AtLeastOnce, alias);
    packet.properties.topic_alias = NonZeroU16::new(alias);
    Packet::Publish(packet)
}

#[tokio::test]
async fn names_of_topic_aliases_are_bounded_in_bytes_all_together() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut greedy = rig.peer("greedy").await;
    greedy.send(aliased(1, 60_000)).await;
    assert_eq!(greedy.receive().await, Packet::Puback(ack(1)));
    let held = |rig: &Rig| {
        let client = rig.broker.clients.lock().get("greedy").cloned().unwrap();
        let state = client.lock();
        state.online.as_ref().unwrap().alias_bytes
    };
    assert_eq!(held(&rig), 60_000, "it counts as what the client holds");
    // Another name for the same alias takes its place.
    greedy.send(aliased(1, 65_000)).await;
    assert_eq!(greedy.receive().await, Packet::Puback(ack(1)));
    greedy.send(aliased(2, 500)).await;
    assert_eq!(greedy.receive().await, Packet::Puback(ack(2)));
    assert_eq!(held(&rig), 65_500);
    greedy.send(aliased(3, 65_000)).await;
    let Packet::Disconnect(told) = greedy.receive().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::QuotaExceeded);
    rig.peer("bystander").await.expect_silence().await;
    rig.stop().await;
}

/// With a will of so many bytes, and so many user properties.
fn mortal(client_id: &str, bytes: usize, pairs: usize) -> Connect {
    let mut properties = WillProperties::default();
    properties.application.user = vec![("a".into(), "b".into()); pairs];
    let payload = vec![7; bytes].into();
    let will = Will { topic: "w".into(), payload, qos: Qos::AtMostOnce, retain: false, properties };
    Connect { will: Some(will), ..connect(client_id) }
}

#[tokio::test]
async fn wills_are_bounded_each_and_together_and_a_small_one_is_never_refused_for_large_ones() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    // Wills may take half a mebibyte of it.
    rig.hub.memory().limit_to(ByteSize(8 << 20));
    assert_eq!(rig.hub.memory().note(0), None);
    let code = async |connect| Peer::open(rig.address, connect).await.1.code;
    // 118 KB on the wire would be a megabyte in memory.
    assert_eq!(code(mortal("pairs", 0, 17_000)).await, ReasonCode::QuotaExceeded);
    assert_eq!(code(mortal("pairs", 0, 2_000)).await, ReasonCode::Success);
    rig.until("it is gone", |rig| rig.broker.wills.bytes() == 0).await;
    let mut inside = Vec::new();
    for n in 0..8 {
        let (peer, connack) = Peer::open(rig.address, mortal(&format!("in-{n}"), 65_000, 0)).await;
        assert_eq!(connack.code, ReasonCode::Success);
        inside.push(peer);
    }
    assert_eq!(code(mortal("late", 65_000, 0)).await, ReasonCode::QuotaExceeded);
    let old = Connect { version: Version::V311, ..mortal("old", 65_000, 0) };
    assert_eq!(code(old).await, ReasonCode::ServerUnavailable);
    assert_eq!(code(mortal("small", 3_000, 0)).await, ReasonCode::Success);
    assert_eq!(rig.board.snapshot().limited["wills"], 3);
    rig.peer("bystander").await.expect_silence().await;
    drop(inside);
    rig.until("they are published", |rig| rig.broker.wills.bytes() == 0).await;
    assert_eq!(code(mortal("late", 65_000, 0)).await, ReasonCode::Success);
    rig.stop().await;
}

#[tokio::test]
async fn r36_what_sessions_have_in_flight_is_counted_as_it_comes_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    for id in 1..=5 {
        one.deliver("a", &"x".repeat(300_000), Qos::AtLeastOnce, id).await;
        two.publication().await;
    }
    drop(two);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    // Any look at what is resident finds more than this.
    rig.hub.memory().limit_to(ByteSize(8));
    assert_eq!(rig.hub.memory().note(0), None);
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    assert!(two.publication().await.dup);
    assert!(rig.hub.memory().is_short());
    rig.stop().await;
}
