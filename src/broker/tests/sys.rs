//! What the broker says of itself below `$SYS/`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::support::*;
use crate::broker::Config;
use crate::message::Qos;
use crate::router::Table;

/// Takes values until all of `wanted` came.
async fn wait_for(watcher: &mut Peer, wanted: &[(&str, &str)]) {
    let mut missing: BTreeMap<_, _> = wanted.iter().copied().collect();
    while !missing.is_empty() {
        let got = watcher.publication().await;
        let topic = got.topic.as_str().strip_prefix("$SYS/broker/").unwrap();
        if missing.get(topic).is_some_and(|value| value.as_bytes() == &got.payload[..]) {
            missing.remove(topic);
        }
    }
}

#[tokio::test]
async fn figures_have_mosquittos_names_are_retained_and_follow_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { sys_interval: Duration::from_millis(20), ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("$SYS/broker/#", Qos::AtLeastOnce).await;
    let version = concat!("tidegate version ", env!("CARGO_PKG_VERSION"));
    wait_for(&mut watcher, &[("version", version), ("clients/connected", "1"), ("subscriptions/count", "1")]).await;
    Peer::open(rig.address, kept("away")).await.0.subscribe("$share/g/a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    rig.until("one is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    let mut retained = publish("a", "12345", Qos::AtLeastOnce, 1);
    retained.retain = true;
    one.send(crate::wire::Packet::Publish(retained)).await;
    assert_eq!(one.receive().await, crate::wire::Packet::Puback(ack(1)));
    let figures = [
        ("clients/total", "3"),
        ("clients/connected", "2"),
        ("clients/disconnected", "1"),
        ("clients/maximum", "2"),
        ("subscriptions/count", "2"),
        ("shared_subscriptions/count", "1"),
        ("retained messages/count", "1"),
        ("messages/stored", "2"),
        ("publish/messages/received", "1"),
        ("publish/bytes/received", "5"),
    ];
    wait_for(&mut watcher, &figures).await;
    // A later subscriber is told the last values at once.
    let mut late = rig.peer("late").await;
    late.subscribe("$SYS/broker/publish/#", Qos::AtMostOnce).await;
    let got = late.publication().await;
    assert!(got.retain && got.topic.as_str().starts_with("$SYS/broker/publish/"), "{got:?}");
    rig.stop().await;
}

/// All that Mosquitto 2.0.11 publishes, its bridges' own excepted.
#[tokio::test]
async fn no_name_of_mosquittos_is_missing() {
    const OTHERS: &str = "version uptime clients/total clients/inactive clients/disconnected clients/active clients/connected clients/expired \
        clients/maximum messages/stored messages/received messages/sent store/messages/count store/messages/bytes subscriptions/count \
        shared_subscriptions/count heap/current heap/maximum publish/messages/dropped publish/messages/received \
        publish/messages/sent publish/bytes/received publish/bytes/sent bytes/received bytes/sent";
    const LOADS: &str = "messages/received messages/sent publish/dropped publish/received publish/sent bytes/received bytes/sent sockets connections";
    let dir = tempfile::tempdir().unwrap();
    let config = Config { sys_interval: Duration::from_millis(20), ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("$SYS/broker/#", Qos::AtMostOnce).await;
    let loads =
        LOADS.split_whitespace().flat_map(|load| ["1min", "5min", "15min"].map(|span| format!("load/{load}/{span}")));
    let mut missing: Vec<_> = OTHERS.split_whitespace().map(str::to_owned).chain(loads).collect();
    missing.push("retained messages/count".into());
    while !missing.is_empty() {
        let got = watcher.publication().await;
        missing.retain(|name| got.topic.as_str().strip_prefix("$SYS/broker/") != Some(name));
    }
    rig.stop().await;
}

#[tokio::test]
async fn packets_and_bytes_are_those_of_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { sys_interval: Duration::ZERO, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    let mut one = rig.peer("one").await;
    one.subscribe("$SYS/#", Qos::AtMostOnce).await;
    one.deliver("a", "12345", Qos::ExactlyOnce, 1).await;
    one.expect_silence().await;
    let before = rig.board.traffic();
    // CONNECT, SUBSCRIBE, PUBLISH, PUBREL, PINGREQ, and an answer to each.
    assert_eq!((before.packets_in, before.packets_out, before.connects, before.sockets), (5, 5, 1, 1));
    one.subscribe("b", Qos::AtMostOnce).await;
    one.deliver("b", "12345", Qos::AtMostOnce, 1).await;
    one.publication().await;
    let after = rig.board.traffic();
    assert_eq!((after.packets_in, after.packets_out), (7, 7));
    // SUBSCRIBE 9 bytes, PUBLISH 11; SUBACK 6, and the same PUBLISH.
    assert_eq!((after.bytes_in - before.bytes_in, after.bytes_out - before.bytes_out), (9 + 11, 6 + 11));
    assert_eq!((after.publish_bytes_in, after.publish_bytes_out), (10, 5));
    rig.stop().await;
}

#[tokio::test]
async fn the_gateways_own_values_reach_those_who_ask_for_them_and_no_wildcard() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    rig.broker.announce("$SYS/tidegate/links/hq/state", "connecting").await;
    let (mut watcher, mut all) = (rig.peer("watcher").await, rig.peer("all").await);
    all.subscribe("#", Qos::AtMostOnce).await;
    watcher.subscribe("$SYS/tidegate/links/+/state", Qos::AtLeastOnce).await;
    let got = watcher.publication().await;
    assert_eq!((got.retain, &got.payload[..]), (true, &b"connecting"[..]));
    rig.broker.announce("$SYS/tidegate/links/hq/state", "online").await;
    let got = watcher.publication().await;
    assert_eq!((got.retain, &got.payload[..]), (false, &b"online"[..]));
    all.expect_silence().await;
    assert_eq!(rig.broker.figures().retained, 0, "they are nobody's retained messages");
    rig.stop().await;
}
