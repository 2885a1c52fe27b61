//! Each limit that a listener and a user may have, with the reason code that who passes it gets.

use std::sync::Arc;
use std::time::Duration;

use super::support::*;
use crate::broker::limits::{ListenerLimits, OverRate, Rates, UserLimits, Whom};
use crate::broker::{Bind, Config, Listener};
use crate::message::Qos;
use crate::router::Table;
use crate::units::{ByteSize, Rate};
use crate::wire::{Connect, Packet, ReasonCode, Version};

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Listener,
    User,
}

const BOTH: [Of; 2] = [Of::Listener, Of::User];

/// With the limits on one of the two.
fn limited(of: Of, limits: ListenerLimits) -> Config {
    let mut config = Config::default();
    if of == Of::Listener {
        config.listeners[0].limits = limits;
        return config;
    }
    config.limits = vec![Arc::new(UserLimits {
        rates: limits.rates,
        packet_bytes_max: limits.packet_bytes_max,
        sessions: limits.sessions,
        session_messages_max: limits.session_messages_max,
        session_bytes_max: limits.session_bytes_max,
        ..UserLimits::of(Whom::Anonymous)
    })];
    config
}

async fn rig(dir: &tempfile::TempDir, config: Config) -> Rig {
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

fn old(client_id: &str) -> Connect {
    Connect { version: Version::V311, clean_start: false, ..connect(client_id) }
}

/// One message, or 1 KiB, and then no more within an hour: no test waits for it.
fn rates(of_bytes: bool, over: OverRate) -> Rates {
    let messages = Rate::parse_count("1/h").ok().filter(|_| !of_bytes);
    let bytes = Rate::parse_bytes("1KiB/h").ok().filter(|_| of_bytes);
    Rates { messages, bytes, burst: Duration::from_secs(3_600), over }
}

/// What comes behind the acknowledgements of what was within the rate.
async fn after_acks(peer: &mut Peer) -> Option<Packet> {
    loop {
        let next = peer.next().await;
        if !matches!(next, Some(Packet::Puback(_))) {
            return next;
        }
    }
}

#[tokio::test]
async fn who_is_over_a_rate_of_messages_or_bytes_gets_0x97_or_0x96() {
    for (of, of_bytes) in [(Of::Listener, false), (Of::Listener, true), (Of::User, false), (Of::User, true)] {
        let payload = "x".repeat(1_500);
        let refuse = ListenerLimits { rates: rates(of_bytes, OverRate::Refuse), ..ListenerLimits::unlimited() };
        let dir = tempfile::tempdir().unwrap();
        let rig = rig(&dir, limited(of, refuse)).await;
        let mut fast = rig.peer("fast").await;
        // What was read is counted before it is judged: of bytes the first one is too many by itself.
        if !of_bytes {
            fast.deliver("a", &payload, Qos::AtLeastOnce, 1).await;
        }
        fast.send(Packet::Publish(publish("a", &payload, Qos::AtLeastOnce, 2))).await;
        let Packet::Puback(told) = fast.receive().await else { panic!("no PUBACK") };
        assert_eq!((told.id.get(), told.code), (2, ReasonCode::QuotaExceeded), "{of:?} {of_bytes}");
        let mut older = Peer::open(rig.address, Connect { clean_start: true, ..old("old") }).await.0;
        older.send_all((1..=2).map(|id| Packet::Publish(publish("a", &payload, Qos::AtLeastOnce, id)))).await;
        assert_eq!(after_acks(&mut older).await, None, "MQTT 3.1.1 has no other word for it: {of:?} {of_bytes}");
        rig.stop().await;

        let end = ListenerLimits { rates: rates(of_bytes, OverRate::Disconnect), ..ListenerLimits::unlimited() };
        let dir = tempfile::tempdir().unwrap();
        let rig = self::rig(&dir, limited(of, end)).await;
        let mut fast = rig.peer("fast").await;
        fast.send_all((1..=2).map(|id| Packet::Publish(publish("a", &payload, Qos::AtLeastOnce, id)))).await;
        let Some(Packet::Disconnect(told)) = after_acks(&mut fast).await else { panic!("not told") };
        assert_eq!(told.code, ReasonCode::MessageRateTooHigh, "{of:?} {of_bytes}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_packet_that_is_too_large_ends_the_connection_with_0x95() {
    for of in BOTH {
        let limits = ListenerLimits { packet_bytes_max: Some(ByteSize(2 << 10)), ..ListenerLimits::unlimited() };
        let dir = tempfile::tempdir().unwrap();
        let rig = rig(&dir, limited(of, limits)).await;
        let (mut one, connack) = Peer::open(rig.address, connect("one")).await;
        assert_eq!(connack.properties.maximum_packet_size.unwrap().get(), 2 << 10);
        one.send(Packet::Publish(publish("a", &"x".repeat(2_100), Qos::AtLeastOnce, 1))).await;
        let Packet::Disconnect(told) = one.receive().await else { panic!("not told") };
        assert_eq!(told.code, ReasonCode::PacketTooLarge, "{of:?}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn one_kept_session_too_many_is_refused_with_0x97() {
    for (of, counted) in [(Of::Listener, "listener_sessions"), (Of::User, "user_sessions")] {
        let limits = ListenerLimits { sessions: Some(1), ..ListenerLimits::unlimited() };
        let dir = tempfile::tempdir().unwrap();
        let rig = rig(&dir, limited(of, limits)).await;
        let _one = Peer::open(rig.address, kept("one")).await;
        let (_, connack) = Peer::open(rig.address, kept("two")).await;
        assert_eq!(connack.code, ReasonCode::QuotaExceeded, "{of:?}");
        let (_, connack) = Peer::open(rig.address, old("two")).await;
        assert_eq!(connack.code, ReasonCode::ServerUnavailable, "the nearest that MQTT 3.1.1 has");
        assert_eq!(rig.board.snapshot().limited[counted], 2);
        rig.peer("two").await.expect_silence().await;
        assert_eq!(Peer::open(rig.address, kept("one")).await.1.code, ReasonCode::Success, "its own goes on");
        rig.stop().await;
    }
}

#[tokio::test]
async fn what_a_session_is_owed_has_limits_in_messages_and_bytes_also_after_a_kill() {
    let messages = ListenerLimits { session_messages_max: Some(3), ..ListenerLimits::unlimited() };
    let bytes = ListenerLimits { session_bytes_max: Some(ByteSize(1 << 10)), ..ListenerLimits::unlimited() };
    for (of, limits) in BOTH.into_iter().flat_map(|of| [(of, messages), (of, bytes)]) {
        let dir = tempfile::tempdir().unwrap();
        let rig = rig(&dir, limited(of, limits)).await;
        let mut away = Peer::open(rig.address, kept("away")).await.0;
        away.subscribe("a", Qos::AtLeastOnce).await;
        drop(away);
        rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
        // Of 300 bytes and what each has besides 1 KiB takes two.
        let most = if limits.session_messages_max.is_some() { 3 } else { 2 };
        send_five(&rig).await;
        assert_eq!((rig.broker.figures().owed, rig.board.snapshot().dropped["session_full"]), (most, 5 - most));
        let copy = rig.crash(dir.path());
        rig.stop().await;
        let rig = self::rig(&copy, limited(of, limits)).await;
        assert_eq!(rig.broker.figures().owed, most);
        send_five(&rig).await;
        assert_eq!((rig.broker.figures().owed, rig.board.snapshot().dropped["session_full"]), (most, 5), "{of:?}");
        rig.stop().await;
    }
}

async fn send_five(rig: &Rig) {
    let mut one = rig.peer("one").await;
    for id in 1..=5 {
        one.deliver("a", &"x".repeat(300), Qos::AtLeastOnce, id).await;
    }
}

#[tokio::test]
async fn a_session_belongs_to_the_listener_where_it_came_in_last_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = limited(Of::Listener, ListenerLimits { sessions: Some(1), ..ListenerLimits::unlimited() });
    let socket = Bind::Unix { path: dir.path().join("mqtt.sock"), mode: 0o600 };
    let second = Listener { anonymous: true, ..Listener::tcp(([127, 0, 0, 1], 0).into()) };
    config.listeners.push(Listener { bind: socket, ..second });
    let rig = Rig::with(dir.path(), config.clone(), Table::default(), Vec::new()).await;
    let second = async |rig: &Rig, connect| {
        let Bind::Unix { path, .. } = &rig.addresses[1] else { panic!("no Unix socket") };
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        Peer::over(Box::new(stream), connect).await
    };
    let full = ReasonCode::QuotaExceeded;
    assert_eq!(Peer::open(rig.address, kept("one")).await.1.code, ReasonCode::Success);
    assert_eq!(Peer::open(rig.address, kept("two")).await.1.code, full);
    assert_eq!(second(&rig, kept("two")).await.1.code, ReasonCode::Success, "the other has room");
    assert_eq!(Peer::open(rig.address, kept("two")).await.1.code, full, "it has no place here");
    let (_, connack) = second(&rig, kept("one")).await;
    assert_eq!((connack.code, connack.session_present), (ReasonCode::Success, true), "it moves");
    let (_, connack) = Peer::open(rig.address, kept("two")).await;
    assert_eq!((connack.code, connack.session_present), (ReasonCode::Success, true), "into the place that is free");
    rig.until("both are away", |rig| rig.broker.figures().sessions_offline == 2).await;
    rig.stop().await;
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    assert_eq!(Peer::open(rig.address, kept("one")).await.1.code, full);
    assert_eq!(Peer::open(rig.address, kept("two")).await.1.code, ReasonCode::Success);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_session_may_be_owed_follows_a_reload_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ListenerLimits { session_messages_max: Some(4), ..ListenerLimits::unlimited() };
    let rig = rig(&dir, limited(Of::Listener, limits)).await;
    let mut away = Peer::open(rig.address, kept("away")).await.0;
    away.subscribe("a", Qos::AtLeastOnce).await;
    drop(away);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    send_five(&rig).await;
    assert_eq!(rig.broker.figures().owed, 4);
    let mut config = (*rig.broker.config.load_full()).clone();
    config.limits = vec![Arc::new(UserLimits { session_messages_max: Some(2), ..UserLimits::of(Whom::Anonymous) })];
    let prepared = rig.broker.prepare(config.clone()).await.unwrap();
    rig.broker.change(prepared).await;
    send_five(&rig).await;
    assert_eq!(rig.broker.figures().owed, 2, "the smallest of both counts");
    config.listeners[0].limits.session_messages_max = Some(1);
    let prepared = rig.broker.prepare(config).await.unwrap();
    rig.broker.change(prepared).await;
    send_five(&rig).await;
    assert_eq!(rig.broker.figures().owed, 1);
    rig.stop().await;
}
