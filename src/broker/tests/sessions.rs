//! Sessions over reconnects and over crashes.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::*;
use crate::broker::client::Delivery;
use crate::broker::{Config, Listener};
use crate::message::Qos;
use crate::message::tests_support::message;
use crate::router::Table;
use crate::units::ByteSize;
use crate::wire::{
    Connect, Disconnect, DisconnectProperties, Packet, PacketId, ReasonCode, Subscribe, SubscribeOptions, Subscription,
    Version, Will, WillProperties,
};

fn will(topic: &str, delay_s: u32) -> Will {
    let properties = WillProperties { delay_s: Some(delay_s), ..WillProperties::default() };
    Will { topic: topic.into(), payload: "gone".into(), qos: Qos::AtLeastOnce, retain: false, properties }
}

fn disconnect(code: ReasonCode) -> Packet {
    Packet::Disconnect(Disconnect { code, properties: DisconnectProperties::default() })
}

#[tokio::test]
async fn r1_subscriptions_retained_messages_and_what_is_owed_survive_a_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut two, connack) = Peer::open(rig.address, kept("two")).await;
    assert!(!connack.session_present);
    two.subscribe("a/#", Qos::ExactlyOnce).await;
    drop(two);
    let mut one = rig.peer("one").await;
    for id in 1..=300 {
        let qos = if id % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        one.deliver("a/b", &id.to_string(), qos, id).await;
    }
    let mut retained = publish("r", "kept", Qos::AtLeastOnce, 1);
    retained.retain = true;
    one.send(Packet::Publish(retained)).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    let copy = rig.crash(dir.path());

    let rig = Rig::start(copy.path()).await;
    assert_eq!((rig.broker.figures().owed, rig.broker.figures().retained), (300, 1));
    let (mut two, connack) = Peer::open(rig.address, kept("two")).await;
    assert!(connack.session_present);
    for number in 1..=300 {
        let got = two.publication().await;
        assert_eq!(got.payload, number.to_string().as_bytes());
        let id = got.id.unwrap().get();
        match got.qos {
            Qos::ExactlyOnce => {
                two.send(Packet::Pubrec(ack(id))).await;
                // Others may come between.
                two.finish(id).await;
            }
            Qos::AtMostOnce | Qos::AtLeastOnce => two.send(Packet::Puback(ack(id))).await,
        }
    }
    two.expect_silence().await;
    two.subscribe("r", Qos::AtLeastOnce).await;
    assert_eq!(two.publication().await.payload, &b"kept"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn redelivery_after_a_resume_has_dup_and_the_same_id_and_an_owed_pubrel_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::ExactlyOnce).await;
    let mut one = rig.peer("one").await;
    one.deliver("a", "first", Qos::ExactlyOnce, 1).await;
    one.deliver("a", "second", Qos::AtLeastOnce, 2).await;
    one.deliver("a", "third", Qos::ExactlyOnce, 3).await;
    let first = two.publication().await.id.unwrap().get();
    let second = two.publication().await.id.unwrap().get();
    let third = two.publication().await.id.unwrap().get();
    two.send(Packet::Pubrec(ack(first))).await;
    assert_eq!(two.receive().await, Packet::Pubrel(ack(first)));
    let copy = rig.crash(dir.path());
    drop(two);
    for rig in [rig, Rig::start(copy.path()).await] {
        let mut two = Peer::open(rig.address, kept("two")).await.0;
        assert_eq!(two.receive().await, Packet::Pubrel(ack(first)));
        for (id, payload) in [(second, "second"), (third, "third")] {
            let again = two.publication().await;
            assert_eq!((again.dup, again.id.unwrap().get()), (true, id));
            assert_eq!(again.payload, payload.as_bytes());
        }
        two.send(Packet::Pubcomp(ack(first))).await;
        two.expect_silence().await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn r18_a_replayed_qos_2_publish_is_not_delivered_twice_even_across_a_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::ExactlyOnce).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.send(Packet::Publish(publish("a", "x", Qos::ExactlyOnce, 4))).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    two.publication().await;
    let copy = rig.crash(dir.path());

    let rig = Rig::start(copy.path()).await;
    let (mut one, connack) = Peer::open(rig.address, kept("one")).await;
    assert!(connack.session_present);
    let mut again = publish("a", "x", Qos::ExactlyOnce, 4);
    again.dup = true;
    one.send(Packet::Publish(again)).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    for _ in 0..2 {
        one.send(Packet::Pubrel(ack(4))).await;
        assert_eq!(one.receive().await, Packet::Pubcomp(ack(4)), "a resent PUBREL gets PUBCOMP 0x00");
    }
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    assert!(two.publication().await.dup);
    two.expect_silence().await;
    rig.stop().await;
}

/// Its client has left with a message unread, so that its socket is reset: a write is first to see that.
#[tokio::test]
async fn what_a_client_sent_before_it_closed_its_socket_counts_also_when_a_write_fails_first() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    one.subscribe("will", Qos::AtMostOnce).await;
    let (mut two, _) = Peer::open(rig.address, Connect { will: Some(will("will", 0)), ..kept("two") }).await;
    two.subscribe("a", Qos::AtLeastOnce).await;
    one.deliver("a", "first", Qos::AtLeastOnce, 1).await;
    let id = two.publication().await.id.unwrap().get();
    let client = rig.broker.clients.lock().get("two").cloned().unwrap();
    let push = || {
        let message = Arc::new(message("a", b"more"));
        let (topic, qos, ids) = (message.topic.clone(), Qos::AtMostOnce, smallvec::SmallVec::new());
        rig.broker.push_alone(&client, Delivery { topic, message, qos, retain: false, ids, share: None });
    };
    let written = || rig.board.bytes_out.load(Ordering::Relaxed);
    let before = written();
    push();
    rig.until("it is written", |_| client.outbox_bytes() == 0 && written() > before).await;
    two.send_all([Packet::Puback(ack(id)), disconnect(ReasonCode::Success)]).await;
    drop(two);
    push();
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    assert_eq!(rig.broker.figures().owed, 0, "its PUBACK counts");
    one.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn r19_a_take_over_tells_the_old_connection_and_resumes_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut old = Peer::open(rig.address, kept("one")).await.0;
    old.subscribe("a", Qos::AtLeastOnce).await;
    let (mut new, connack) = Peer::open(rig.address, kept("one")).await;
    assert!(connack.session_present);
    let Some(Packet::Disconnect(told)) = old.next().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::SessionTakenOver);
    assert_eq!(old.next().await, None);
    new.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    assert_eq!(new.publication().await.payload, &b"x"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn a_clean_start_forgets_the_session_durably() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    Peer::open(rig.address, kept("one")).await.0.subscribe("a", Qos::AtLeastOnce).await;
    let mut clean = kept("one");
    clean.clean_start = true;
    let (_one, connack) = Peer::open(rig.address, clean).await;
    assert!(!connack.session_present);
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    let (_one, connack) = Peer::open(rig.address, kept("one")).await;
    assert!(connack.session_present, "the new session is kept");
    rig.peer("two").await.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    assert_eq!(rig.broker.figures().owed, 0, "the old subscription is not");
    rig.stop().await;
}

#[tokio::test]
async fn r20_a_will_is_published_on_abnormal_close_and_on_disconnect_0x04_and_not_on_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("will/#", Qos::AtLeastOnce).await;
    for (client, code) in [("a", None), ("b", Some(ReasonCode::Success)), ("c", Some(ReasonCode::DisconnectWithWill))] {
        let mut connect = connect(client);
        connect.will = Some(will(&format!("will/{client}"), 0));
        let mut peer = Peer::open(rig.address, connect).await.0;
        if let Some(code) = code {
            peer.send(disconnect(code)).await;
            assert_eq!(peer.next().await, None);
        }
        drop(peer);
        if code != Some(ReasonCode::Success) {
            assert_eq!(watcher.publication().await.topic.as_str(), format!("will/{client}"));
        }
    }
    watcher.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_ended_after_its_keep_alive_and_its_will_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("will", Qos::AtLeastOnce).await;
    let mut silent = connect("silent");
    (silent.keep_alive_s, silent.will) = (1, Some(will("will", 0)));
    let begun = crate::clock::now();
    let mut silent = Peer::open(rig.address, silent).await.0;
    let Some(Packet::Disconnect(told)) = silent.next().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::KeepAliveTimeout);
    assert!(begun.elapsed() >= Duration::from_millis(1_500), "MQTT-3.1.2-22: not before one and a half");
    assert_eq!(watcher.publication().await.payload, &b"gone"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn r20_wills_of_clients_connected_at_a_sigkill_are_published_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut watcher = Peer::open(rig.address, kept("watcher")).await.0;
    watcher.subscribe("will/#", Qos::AtLeastOnce).await;
    let (mut clean, mut resumed, mut lost) = (connect("clean"), kept("resumed"), kept("lost"));
    clean.will = Some(will("will/clean", 0));
    resumed.will = Some(will("will/resumed", 3_600));
    lost.will = Some(will("will/lost", 0));
    let mut _open = Vec::new();
    for connect in [clean, resumed.clone(), lost] {
        _open.push(Peer::open(rig.address, connect).await);
    }
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    let (_resumed, connack) = Peer::open(rig.address, resumed).await;
    assert!(connack.session_present);
    let mut watcher = Peer::open(rig.address, kept("watcher")).await.0;
    let mut topics = Vec::new();
    for _ in 0..2 {
        let got = watcher.publication().await;
        watcher.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
        topics.push(got.topic.as_str().to_owned());
    }
    topics.sort();
    assert_eq!(topics, ["will/clean", "will/lost"]);
    watcher.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_tells_mqtt_5_clients_and_leaves_sessions_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("a", Qos::AtLeastOnce).await;
    rig.stop().await;
    let Some(Packet::Disconnect(told)) = one.next().await else { panic!("not told") };
    assert_eq!(told.code, ReasonCode::ServerShuttingDown);
    let rig = Rig::start(dir.path()).await;
    assert_eq!(rig.broker.figures().sessions_offline, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_listener_that_is_not_anonymous_refuses_with_the_versions_own_code() {
    let dir = tempfile::tempdir().unwrap();
    let listeners = vec![Listener::tcp(([127, 0, 0, 1], 0).into())];
    let config = Config { listeners, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    assert_eq!(Peer::open(rig.address, connect("a")).await.1.code, ReasonCode::NotAuthorized);
    let mut old = connect("a");
    old.version = Version::V311;
    assert_eq!(Peer::open(rig.address, old).await.1.code, ReasonCode::NotAuthorized);
    rig.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let config = Config { listeners: vec![Listener::tcp(address)], ..Config::default() };
    let other = tempfile::tempdir().unwrap();
    let hub = Arc::clone(&rig.hub);
    let board = Arc::clone(&rig.board);
    let broker = crate::broker::Broker::open(config, other.path(), hub, board, crate::clock::system()).unwrap();
    let error = broker.bind().await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("another program"), "{error}");
    rig.stop().await;
}

#[tokio::test]
async fn what_is_owed_to_an_offline_session_beyond_its_limit_is_dropped_oldest_first_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { session_messages_max: 3, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    two.send(disconnect(ReasonCode::Success)).await;
    assert_eq!(two.next().await, None);
    let mut one = rig.peer("one").await;
    for id in 1..=5 {
        one.deliver("a", &id.to_string(), Qos::AtLeastOnce, id).await;
    }
    assert_eq!(rig.board.snapshot().dropped["session_full"], 2);
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    for number in 3..=5 {
        assert_eq!(two.publication().await.payload, number.to_string().as_bytes());
    }
    rig.stop().await;
}

/// Leaves a kept session `two` behind that is owed three messages.
async fn owed_three(dir: &std::path::Path) -> Rig {
    let rig = Rig::start(dir).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    two.send(disconnect(ReasonCode::Success)).await;
    assert_eq!(two.next().await, None);
    let mut one = rig.peer("one").await;
    for id in 1..=3 {
        one.deliver("a", &id.to_string(), Qos::AtLeastOnce, id).await;
    }
    rig
}

fn change_store(dir: &std::path::Path, sql: &str) {
    rusqlite::Connection::open(dir.join("broker.db")).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn who_is_not_let_in_after_all_leaves_the_delayed_will_of_the_connection_before() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("will/#", Qos::AtMostOnce).await;
    let doomed = |topic: &str| Connect { will: Some(will(topic, 3_000)), ..kept("doomed") };
    drop(Peer::open(rig.address, doomed("will/first")).await);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    // It resumes its session, and the store cannot note that.
    change_store(dir.path(), "DROP TABLE session");
    let (mut refused, connack) = Peer::open(rig.address, doomed("will/second")).await;
    assert_eq!((connack.code, refused.next().await), (ReasonCode::ServerUnavailable, None));
    rig.broker.keep_house(rig.broker.clock.moment());
    watcher.expect_silence().await;
    rig.clock.pass(Duration::from_secs(3_000));
    rig.broker.keep_house(rig.broker.clock.moment());
    assert_eq!(watcher.publication().await.topic.as_str(), "will/first");
    watcher.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_owed_and_does_not_read_back_is_dropped_and_counted_and_the_rest_arrives() {
    let second = "WHERE seq = (SELECT min(seq) + 1 FROM owed)";
    for change in [
        format!("UPDATE owed SET body = substr(body, 1, 20) {second}"),
        format!("UPDATE owed SET topic = 'a/#' {second}"),
        format!("UPDATE owed SET topic = '', packet_id = 9 {second}"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        owed_three(dir.path()).await.stop().await;
        change_store(dir.path(), &change);
        let rig = Rig::start(dir.path()).await;
        assert_eq!(rig.broker.figures().owed, 3);
        let mut two = Peer::open(rig.address, kept("two")).await.0;
        for payload in ["1", "3"] {
            let got = two.publication().await;
            assert_eq!(got.payload, payload.as_bytes());
            two.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
        }
        assert_eq!(rig.board.snapshot().dropped["damaged"], 1, "{change}");
        rig.until("all is settled", |rig| rig.broker.figures().owed == 0).await;
        rig.stop().await;
        let rig = Rig::start(dir.path()).await;
        assert_eq!(rig.broker.figures().owed, 0, "the damaged row is gone");
        rig.stop().await;
    }
}

/// What is left of a kept session is read page by page; what comes meanwhile waits behind it.
#[tokio::test]
async fn a_session_that_is_resumed_and_not_kept_any_more_gets_all_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    drop(two);
    let mut one = rig.peer("one").await;
    for id in 1..=300 {
        one.deliver("a", &id.to_string(), Qos::AtLeastOnce, id).await;
    }
    let mut once_more = kept("two");
    once_more.properties.session_expiry_s = None;
    once_more.properties.receive_maximum = NonZeroU16::new(5);
    let (mut two, connack) = Peer::open(rig.address, once_more).await;
    assert!(connack.session_present);
    for number in 1..=320_u16 {
        let got = two.publication().await;
        assert_eq!(got.payload, number.to_string().as_bytes());
        two.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
        // What waits in memory by then is the first page, or a later one.
        if number % 15 == 1 && number < 300 {
            let id = 301 + number / 15;
            one.deliver("a", &id.to_string(), Qos::AtLeastOnce, id).await;
        }
    }
    two.expect_silence().await;
    two.send(disconnect(ReasonCode::Success)).await;
    assert_eq!(two.next().await, None);
    rig.until("nothing is left of it", |rig| rig.broker.figures().owed == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_session_whose_store_cannot_be_read_is_not_resumed_and_its_client_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let rig = owed_three(dir.path()).await;
    change_store(dir.path(), "ALTER TABLE owed RENAME TO away");
    let (mut two, connack) = Peer::open(rig.address, kept("two")).await;
    assert_eq!((connack.code, connack.session_present), (ReasonCode::ServerUnavailable, false));
    assert_eq!(two.next().await, None);
    change_store(dir.path(), "ALTER TABLE away RENAME TO owed");
    let (mut two, connack) = Peer::open(rig.address, kept("two")).await;
    assert!(connack.session_present);
    for payload in ["1", "2", "3"] {
        assert_eq!(two.publication().await.payload, payload.as_bytes());
    }
    rig.stop().await;
}

#[tokio::test]
async fn r17_what_a_kept_sessions_subscription_brings_is_owed_once_it_has_its_suback() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    // More than one step, and more than the window and the queue in memory hold.
    const COUNT: u16 = 1_400;
    let retained = (1..=COUNT).map(|id| {
        let mut retained = publish(&format!("r/{id}"), "x", Qos::AtLeastOnce, id);
        retained.retain = true;
        Packet::Publish(retained)
    });
    one.send_all(retained).await;
    for id in 1..=COUNT {
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    let options = SubscribeOptions { qos: Qos::AtLeastOnce, ..SubscribeOptions::default() };
    let subscriptions = vec![Subscription { filter: "r/#".into(), options }];
    let (id, user) = (PacketId::new(1).unwrap(), Vec::new());
    two.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user, subscriptions })).await;
    // It is gone through in turns: what is stored already may come before SUBACK (MQTT-3.8.4), and stays owed.
    while !matches!(two.receive().await, Packet::Suback(_)) {}
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    assert_eq!(rig.broker.figures().owed, u64::from(COUNT));
    let (mut two, connack) = Peer::open(rig.address, kept("two")).await;
    assert!(connack.session_present);
    let mut topics = std::collections::BTreeSet::new();
    for _ in 0..COUNT {
        let got = two.publication().await;
        assert!(got.retain && topics.insert(got.topic.as_str().to_owned()));
        two.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
    }
    two.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn what_a_subscription_brings_beyond_a_sessions_limit_comes_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { session_messages_max: 10, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut one = rig.peer("one").await;
    for id in 1..=50 {
        let mut retained = publish(&format!("r/{id}"), "x", Qos::AtLeastOnce, id);
        retained.retain = true;
        one.send(Packet::Publish(retained)).await;
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("r/#", Qos::AtLeastOnce).await;
    for _ in 0..50 {
        let id = two.publication().await.id.unwrap().get();
        two.send(Packet::Puback(ack(id))).await;
    }
    two.expect_silence().await;
    assert!(!rig.board.snapshot().dropped.contains_key("session_full"));
    rig.stop().await;
}

#[tokio::test]
async fn a_retained_message_whose_time_is_over_leaves_memory_and_store() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    let mut retain = async |topic: &str, expiry_s: Option<u32>| {
        let mut retained = publish(topic, "x", Qos::AtLeastOnce, 1);
        (retained.retain, retained.properties.expiry_s) = (true, expiry_s);
        one.send(Packet::Publish(retained)).await;
        assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    };
    retain("short", Some(60)).await;
    retain("long", Some(600)).await;
    retain("replaced", Some(60)).await;
    retain("replaced", None).await;
    retain("longer", Some(60)).await;
    retain("longer", Some(600)).await;
    assert_eq!(rig.broker.figures().retained, 4);
    rig.clock.pass(Duration::from_secs(61));
    rig.until("one is gone", |rig| rig.broker.figures().retained == 3).await;
    assert_eq!(rig.board.snapshot().dropped["retained_expired"], 1);
    let position = rig.broker.store.stage_one(crate::broker::store::Op::Settle(u64::MAX));
    soon(rig.broker.store.mark().passed(position)).await.unwrap();
    let copy = rig.crash(dir.path());
    let again = Rig::start(copy.path()).await;
    assert_eq!(again.broker.figures().retained, 3);
    again.clock.pass(Duration::from_secs(601));
    again.until("the others are gone", |rig| rig.broker.figures().retained == 1).await;
    let mut two = again.peer("two").await;
    two.subscribe("#", Qos::AtLeastOnce).await;
    assert_eq!(two.publication().await.topic.as_str(), "replaced");
    two.expect_silence().await;
    again.stop().await;
}

#[tokio::test]
async fn what_an_offline_session_is_owed_is_bounded_in_bytes_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { session_bytes_max: ByteSize(100_000), ..Config::default() };
    let rig = Rig::with(dir.path(), config.clone(), Table::default(), Vec::new()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    drop(two);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut one = rig.peer("one").await;
    for id in 1..=600 {
        one.deliver("a", &format!("{id:0>100}"), Qos::AtLeastOnce, id).await;
    }
    // 100 bytes of payload count for 229.
    let left = 100_000 / 229;
    assert_eq!((rig.broker.figures().owed, rig.board.snapshot().dropped["session_full"]), (left, 600 - left));
    // One that takes the room of many, and one that never fits.
    one.deliver("a", &"x".repeat(90_000), Qos::AtLeastOnce, 1).await;
    let left = (100_000 - 90_129) / 229 + 1;
    rig.until("it is there", |rig| rig.broker.figures().owed == left).await;
    one.deliver("a", &"x".repeat(100_000), Qos::AtLeastOnce, 1).await;
    let dropped = rig.board.snapshot().dropped["session_full"];
    assert_eq!(dropped, 600 + 2 - left);
    let copy = rig.crash(dir.path());
    let rig = Rig::with(copy.path(), config, Table::default(), Vec::new()).await;
    assert_eq!(rig.broker.figures().owed, left);
    let mut one = rig.peer("one").await;
    one.deliver("a", &"x".repeat(20_000), Qos::AtLeastOnce, 1).await;
    rig.until("the restart knows the bytes", |rig| rig.broker.figures().owed == 1).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    assert_eq!(two.publication().await.payload.len(), 20_000);
    rig.stop().await;
}

/// A kept session `two` that takes so many at a time.
fn narrow(window: u16) -> Connect {
    let mut two = kept("two");
    two.properties.receive_maximum = NonZeroU16::new(window);
    two
}

async fn leave(rig: &Rig, peer: Peer) {
    drop(peer);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
}

/// Publishes them to `a`, each with how long it lives.
async fn publish_all(rig: &Rig, messages: &[(&str, Option<u32>)]) {
    let mut one = rig.peer("one").await;
    for (id, (payload, expiry_s)) in (1..).zip(messages) {
        let mut message = publish("a", payload, Qos::AtLeastOnce, id);
        message.properties.expiry_s = *expiry_s;
        one.send(Packet::Publish(message)).await;
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
}

#[tokio::test]
async fn r8_what_lapsed_in_flight_makes_room_for_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, narrow(2)).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    publish_all(&rig, &[("first", None), ("short", Some(60)), ("last", None)]).await;
    assert_eq!(two.publication().await.payload, &b"first"[..]);
    assert_eq!(two.publication().await.payload, &b"short"[..]);
    leave(&rig, two).await;
    rig.clock.pass(Duration::from_secs(61));
    let mut two = Peer::open(rig.address, narrow(1)).await.0;
    let first = two.publication().await;
    assert_eq!(first.payload, &b"first"[..]);
    let client = rig.broker.clients.lock().get("two").cloned().unwrap();
    rig.until("the last waits", |_| client.lock().outbound.queued() == 1).await;
    two.send(Packet::Puback(ack(first.id.unwrap().get()))).await;
    assert_eq!(two.publication().await.payload, &b"last"[..]);
    assert_eq!(rig.board.snapshot().dropped["expired"], 1);
    assert_eq!(rig.broker.figures().owed, 1);
    rig.stop().await;
}

#[tokio::test]
async fn what_an_offline_session_is_owed_arrives_behind_any_number_that_have_lapsed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    leave(&rig, two).await;
    // More than are read at a time.
    let mut messages = vec![("short", Some(60)); 300];
    messages.push(("last", None));
    publish_all(&rig, &messages).await;
    rig.clock.pass(Duration::from_secs(61));
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    assert_eq!(two.publication().await.payload, &b"last"[..]);
    assert_eq!(rig.board.snapshot().dropped["expired"], 300);
    rig.stop().await;
}

#[tokio::test]
async fn what_an_offline_session_is_owed_arrives_behind_what_is_too_large_for_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::AtLeastOnce).await;
    leave(&rig, two).await;
    let large = "x".repeat(100);
    publish_all(&rig, &[(&large, None), (&large, None), ("fits", None)]).await;
    let mut small = narrow(1);
    small.properties.maximum_packet_size = NonZeroU32::new(64);
    let mut two = Peer::open(rig.address, small).await.0;
    assert_eq!(two.publication().await.payload, &b"fits"[..]);
    assert_eq!(rig.board.snapshot().dropped["too_large"], 2);
    rig.stop().await;
}
