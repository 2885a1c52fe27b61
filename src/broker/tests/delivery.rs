//! What connected clients get of each other.

use super::support::*;
use crate::broker::Config;
use crate::hub::{Publication, Source};
use crate::message::{Properties, Qos};
use crate::router::{Endpoint, Form, From, LinkId, Route, Table, To};
use crate::topic::TopicName;
use crate::wire::{Packet, SubscribeOptions, Version};

#[tokio::test]
async fn a_message_of_each_qos_reaches_a_subscriber_with_the_lesser_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    two.subscribe("a/+", Qos::AtLeastOnce).await;
    for (id, qos) in [(1, Qos::AtMostOnce), (2, Qos::AtLeastOnce), (3, Qos::ExactlyOnce)] {
        one.deliver("a/b", "x", qos, id).await;
        let got = two.publication().await;
        assert_eq!((got.qos, got.topic.as_str(), &got.payload[..]), (qos.min(Qos::AtLeastOnce), "a/b", &b"x"[..]));
        if let Some(id) = got.id {
            two.send(Packet::Puback(ack(id.get()))).await;
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn qos_2_goes_through_in_both_halves() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    two.subscribe("#", Qos::ExactlyOnce).await;
    one.deliver("a", "x", Qos::ExactlyOnce, 9).await;
    let id = two.publication().await.id.unwrap().get();
    two.send(Packet::Pubrec(ack(id))).await;
    assert_eq!(two.receive().await, Packet::Pubrel(ack(id)));
    two.send(Packet::Pubcomp(ack(id))).await;
    two.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn many_publishes_of_one_write_are_acknowledged_and_delivered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    two.subscribe("a", Qos::AtMostOnce).await;
    one.send_all((1..=500).map(|id| Packet::Publish(publish("a", &id.to_string(), Qos::AtLeastOnce, id)))).await;
    for id in 1..=500 {
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
        assert_eq!(two.publication().await.payload, id.to_string().as_bytes());
    }
    rig.stop().await;
}

#[tokio::test]
async fn overlapping_subscriptions_bring_one_copy_with_all_ids_and_the_highest_qos() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    let with = |qos| SubscribeOptions { qos, ..SubscribeOptions::default() };
    two.subscribe_with("a/#", with(Qos::AtMostOnce), Some(1)).await;
    two.subscribe_with("a/+", with(Qos::AtLeastOnce), Some(2)).await;
    one.deliver("a/b", "x", Qos::AtLeastOnce, 1).await;
    let got = two.publication().await;
    let mut ids = got.properties.subscription_ids.iter().map(|id| id.get()).collect::<Vec<_>>();
    ids.sort_unstable();
    assert_eq!((got.qos, ids), (Qos::AtLeastOnce, vec![1, 2]));
    two.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn no_local_keeps_a_client_from_its_own_messages() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    one.subscribe_with("a", SubscribeOptions { no_local: true, ..SubscribeOptions::default() }, None).await;
    one.deliver("a", "x", Qos::AtLeastOnce, 1).await;
    one.expect_silence().await;
    // Nor from what is retained.
    let mut two = rig.peer("two").await;
    for (peer, topic) in [(&mut one, "r/one"), (&mut two, "r/two")] {
        let mut retained = publish(topic, topic, Qos::AtLeastOnce, 1);
        retained.retain = true;
        peer.send(Packet::Publish(retained)).await;
        assert_eq!(peer.receive().await, Packet::Puback(ack(1)));
    }
    one.subscribe_with("r/#", SubscribeOptions { no_local: true, ..SubscribeOptions::default() }, None).await;
    assert_eq!(one.publication().await.topic.as_str(), "r/two");
    one.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn retained_messages_come_at_subscribing_with_id_and_lesser_qos_and_an_empty_payload_clears_them() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    let mut kept = publish("r/1", "last", Qos::AtLeastOnce, 1);
    kept.retain = true;
    one.send(Packet::Publish(kept.clone())).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    two.subscribe_with("r/#", SubscribeOptions::default(), Some(5)).await;
    let got = two.publication().await;
    assert_eq!((got.retain, got.qos, &got.payload[..]), (true, Qos::AtMostOnce, &b"last"[..]));
    assert_eq!(got.properties.subscription_ids[0].get(), 5);
    one.send(Packet::Publish(kept.clone())).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    assert!(!two.publication().await.retain, "an existing subscription sees no retain flag");
    kept.payload = bytes::Bytes::new();
    one.send(Packet::Publish(kept)).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    assert_eq!(rig.broker.figures().retained, 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_publishers_topic_alias_never_reaches_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    two.subscribe("a/b", Qos::AtMostOnce).await;
    let mut aliased = publish("a/b", "1", Qos::AtMostOnce, 0);
    aliased.properties.topic_alias = std::num::NonZeroU16::new(3);
    one.send(Packet::Publish(aliased.clone())).await;
    aliased.topic = "".into();
    one.send(Packet::Publish(aliased)).await;
    for _ in 0..2 {
        let got = two.publication().await;
        assert_eq!((got.topic.as_str(), got.properties.topic_alias), ("a/b", None));
    }
    rig.stop().await;
}

#[tokio::test]
async fn versions_meet_and_properties_survive_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut old = connect("old");
    old.version = Version::V311;
    let mut oldest = connect("oldest");
    oldest.version = Version::V31;
    let mut old = Peer::open(rig.address, old).await.0;
    let mut oldest = Peer::open(rig.address, oldest).await.0;
    let (mut new, mut publisher) = (rig.peer("new").await, rig.peer("publisher").await);
    for peer in [&mut old, &mut oldest, &mut new] {
        peer.subscribe("a", Qos::AtLeastOnce).await;
    }
    let mut sent = publish("a", "x", Qos::AtLeastOnce, 1);
    let application = &mut sent.properties.application;
    application.user = vec![("k".into(), "1".into()), ("a".into(), "2".into()), ("k".into(), "3".into())];
    application.response_topic = Some("re".into());
    application.correlation_data = Some(bytes::Bytes::from_static(b"\0\x01"));
    publisher.send(Packet::Publish(sent.clone())).await;
    assert_eq!(publisher.receive().await, Packet::Puback(ack(1)));
    assert_eq!(new.publication().await.properties.application, sent.properties.application);
    assert_eq!(old.publication().await.payload, sent.payload);
    assert_eq!(oldest.publication().await.payload, sent.payload);
    rig.stop().await;
}

#[tokio::test]
async fn a_client_gets_no_packet_above_its_maximum_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut small = connect("small");
    small.properties.maximum_packet_size = std::num::NonZeroU32::new(64);
    let mut small = Peer::open(rig.address, small).await.0;
    small.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    one.deliver("a", &"x".repeat(100), Qos::AtLeastOnce, 1).await;
    one.deliver("a", &"x".repeat(100), Qos::AtMostOnce, 1).await;
    one.deliver("a", "fits", Qos::AtLeastOnce, 2).await;
    assert_eq!(small.publication().await.payload, &b"fits"[..]);
    assert_eq!(rig.board.snapshot().dropped["too_large"], 2);
    rig.stop().await;
}

#[tokio::test]
async fn the_receive_maximum_of_a_client_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut slow = connect("slow");
    slow.properties.receive_maximum = std::num::NonZeroU16::new(2);
    let mut slow = Peer::open(rig.address, slow).await.0;
    slow.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    for id in 1..=4 {
        one.deliver("a", &id.to_string(), Qos::AtLeastOnce, id).await;
    }
    let first = slow.publication().await.id.unwrap().get();
    slow.publication().await;
    slow.expect_silence().await;
    slow.send(Packet::Puback(ack(first))).await;
    assert_eq!(slow.publication().await.payload, &b"3"[..]);
    slow.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn what_is_too_large_for_a_client_leaves_its_place_in_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut small = connect("small");
    small.properties.receive_maximum = std::num::NonZeroU16::new(1);
    small.properties.maximum_packet_size = std::num::NonZeroU32::new(64);
    let mut small = Peer::open(rig.address, small).await.0;
    small.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    for (id, payload) in (1..).zip(["first".to_owned(), "x".repeat(100), "last".to_owned()]) {
        one.deliver("a", &payload, Qos::AtLeastOnce, id).await;
    }
    let first = small.publication().await;
    assert_eq!(first.payload, &b"first"[..]);
    small.send(Packet::Puback(ack(first.id.unwrap().get()))).await;
    assert_eq!(small.publication().await.payload, &b"last"[..]);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_link_brings_and_mqtt_cannot_carry_is_counted_and_reaches_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (From::parse("lake/t", Form::Channel).unwrap(), To::parse("broker/{topic}").unwrap());
    let table = Table::new(vec![Route::new("in", vec![from], vec![to])]);
    let rig = Rig::with(dir.path(), Config::default(), table, Vec::new()).await;
    let mut watcher = rig.peer("watcher").await;
    watcher.subscribe("#", Qos::AtLeastOnce).await;
    let source = Source { from: Endpoint::Link(LinkId::new("lake")), channel: Some("t".into()), takes_copies: false };
    let brought = |topic: &str, retain, properties| Publication {
        topic: TopicName::new(topic).unwrap(),
        payload: "x".into(),
        qos: Qos::AtLeastOnce,
        retain,
        expiry_s: None,
        time_ms: None,
        properties,
        client_id: None,
        user: None,
        packet_id: None,
        id: None,
    };
    let header = |value: &str| Properties { user: vec![("h".into(), value.into())], ..Properties::default() };
    let wild = Properties { response_topic: Some("a/+".into()), ..Properties::default() };
    let bad = [header("a\0b"), header(&"x".repeat(65_536)), wild];
    for (retain, properties) in bad.iter().flat_map(|one| [(false, one.clone()), (true, one.clone())]) {
        let answer = rig.hub.offer(&source, vec![brought("bad", retain, properties)]).await.remove(0);
        // The source acknowledges it: its remote would bring the very same again.
        soon(answer.unwrap().settled()).await.unwrap();
    }
    assert_eq!(rig.board.snapshot().dropped["not_encodable"], 6);
    let answer = rig.hub.offer(&source, vec![brought("good", false, header("a"))]).await.remove(0);
    soon(answer.unwrap().settled()).await.unwrap();
    assert_eq!(watcher.publication().await.topic.as_str(), "good", "nothing came before it");
    let mut later = rig.peer("later").await;
    later.subscribe("bad", Qos::AtMostOnce).await;
    later.expect_silence().await;
    rig.stop().await;
}
