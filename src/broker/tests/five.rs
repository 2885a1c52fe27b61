//! What MQTT 5 adds, packet by packet.

use std::num::{NonZeroU16, NonZeroU32};

use super::support::*;
use crate::broker::Config;
use crate::message::Qos;
use crate::router::Table;
use crate::topic::TopicFilter;
use crate::wire::{
    Disconnect, DisconnectProperties, Packet, PacketId, ReasonCode, Subscribe, SubscribeOptions, Subscription, Version,
    Will, WillProperties,
};

async fn rig_with(dir: &tempfile::TempDir, config: Config) -> Rig {
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

/// Subscribes and answers the codes.
async fn codes(peer: &mut Peer, filters: &[&str]) -> (Vec<ReasonCode>, Option<String>) {
    let options = SubscribeOptions::default();
    let subscriptions = filters.iter().map(|filter| Subscription { filter: (*filter).into(), options }).collect();
    let id = PacketId::new(1).unwrap();
    peer.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
    let Packet::Suback(suback) = peer.receive().await else { panic!("no SUBACK") };
    (suback.codes, suback.properties.reason.map(Into::into))
}

fn last_words(topic: &str) -> Will {
    Will {
        topic: topic.into(),
        payload: bytes::Bytes::from_static(b"gone"),
        qos: Qos::AtMostOnce,
        retain: true,
        properties: WillProperties::default(),
    }
}

async fn ended_with(peer: &mut Peer) -> ReasonCode {
    let packet = peer.receive().await;
    let Packet::Disconnect(told) = packet else { panic!("expected a DISCONNECT, got {packet:?}") };
    assert_eq!(peer.next().await, None);
    told.code
}

#[tokio::test]
async fn a_client_gets_topic_aliases_up_to_its_maximum() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut aliased = kept("aliased");
    aliased.properties.topic_alias_maximum = Some(2);
    let mut one = rig.peer("one").await;
    for _ in 0..2 {
        let mut two = Peer::open(rig.address, aliased.clone()).await.0;
        two.subscribe("+", Qos::ExactlyOnce).await;
        let mut seen = Vec::new();
        for (id, topic) in [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "b"), (6, "c")] {
            one.deliver(topic, "", Qos::AtMostOnce, id).await;
            let got = two.publication().await;
            seen.push((got.topic.as_str().to_owned(), got.properties.topic_alias.map(NonZeroU16::get)));
        }
        let expected = [("a", Some(1)), ("b", Some(2)), ("", Some(1)), ("c", None), ("", Some(2)), ("c", None)];
        // The second time round shows that a connection begins without any.
        assert_eq!(seen, expected.map(|(topic, alias)| (topic.to_owned(), alias)));
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_packet_above_the_clients_maximum_sets_no_alias() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut small = connect("small");
    small.properties.topic_alias_maximum = Some(2);
    small.properties.maximum_packet_size = NonZeroU32::new(64);
    let mut small = Peer::open(rig.address, small).await.0;
    small.subscribe("a", Qos::AtMostOnce).await;
    let mut one = rig.peer("one").await;
    one.deliver("a", &"x".repeat(100), Qos::AtLeastOnce, 1).await;
    one.deliver("a", "fits", Qos::AtLeastOnce, 2).await;
    let got = small.publication().await;
    assert_eq!((got.topic.as_str(), got.properties.topic_alias), ("a", NonZeroU16::new(1)));
    rig.stop().await;
}

#[tokio::test]
async fn keep_alives_above_the_maximum_are_answered_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { keep_alive_max: Some(std::time::Duration::from_secs(60)), ..Config::default() };
    let rig = rig_with(&dir, config).await;
    for (asked, version, told) in [
        (120, Version::V5, Some(60)),
        (0, Version::V5, Some(60)),
        (60, Version::V5, None),
        (10, Version::V5, None),
        (120, Version::V311, None),
    ] {
        let mut one = connect("one");
        (one.keep_alive_s, one.version) = (asked, version);
        let connack = Peer::open(rig.address, one).await.1;
        assert_eq!(connack.properties.server_keep_alive_s, told, "{asked} in {version}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_client_without_an_id_gets_one_and_response_information_if_it_asks() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut nameless = connect("");
    nameless.properties.request_response_information = Some(true);
    let (first, second) = (Peer::open(rig.address, nameless.clone()).await, Peer::open(rig.address, nameless).await);
    let ids = [&first.1, &second.1].map(|connack| connack.properties.assigned_client_id.clone().unwrap());
    assert_ne!(ids[0], ids[1]);
    assert_eq!(first.1.properties.response_information.unwrap(), format!("response/{}", ids[0]).into());
    let plain = Peer::open(rig.address, connect("named")).await.1;
    assert_eq!((plain.properties.assigned_client_id, plain.properties.response_information), (None, None));
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_names_the_other_server() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { server_reference: Some("other:1883".into()), ..Config::default() }).await;
    let mut one = rig.peer("one").await;
    rig.stop().await;
    let Some(Packet::Disconnect(told)) = one.next().await else { panic!("not told") };
    assert_eq!(
        (told.code, told.properties.server_reference.as_deref()),
        (ReasonCode::UseAnotherServer, Some("other:1883"))
    );
}

#[tokio::test]
async fn more_open_qos_2_messages_than_the_receive_maximum_end_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_with(&dir, Config { receive_maximum: 3, ..Config::default() }).await;
    let (mut one, connack) = Peer::open(rig.address, connect("one")).await;
    assert_eq!(connack.properties.receive_maximum, NonZeroU16::new(3));
    for round in 0..3 {
        // A completed one makes room, and one that comes again takes none.
        one.deliver("a", "", Qos::ExactlyOnce, 10 + round).await;
    }
    for id in [1, 2, 3, 3] {
        one.send(Packet::Publish(publish("a", "", Qos::ExactlyOnce, id))).await;
        assert_eq!(one.receive().await, Packet::Pubrec(ack(id)));
    }
    one.send(Packet::Publish(publish("a", "", Qos::ExactlyOnce, 4))).await;
    assert_eq!(ended_with(&mut one).await, ReasonCode::ReceiveMaximumExceeded);
    rig.stop().await;
}

#[tokio::test]
async fn a_session_expiry_at_disconnect_counts_but_cannot_begin_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let leave = |expiry_s| {
        let properties = DisconnectProperties { session_expiry_s: Some(expiry_s), ..DisconnectProperties::default() };
        Packet::Disconnect(Disconnect { code: ReasonCode::Success, properties })
    };
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.send(leave(0)).await;
    assert_eq!(one.next().await, None);
    let (mut one, connack) = Peer::open(rig.address, kept("one")).await;
    assert!(!connack.session_present, "0 at the end: the session was gone at once");
    one.send(leave(1_000)).await;
    assert_eq!(one.next().await, None);
    assert!(Peer::open(rig.address, kept("one")).await.1.session_present);
    let mut clean = rig.peer("clean").await;
    clean.send(leave(10)).await;
    assert_eq!(ended_with(&mut clean).await, ReasonCode::ProtocolError);
    rig.stop().await;
}

#[tokio::test]
async fn the_session_expiry_granted_is_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let max = std::time::Duration::from_secs(100);
    let rig = rig_with(&dir, Config { session_expiry_max: max, ..Config::default() }).await;
    let connack = Peer::open(rig.address, kept("one")).await.1;
    assert_eq!(connack.properties.session_expiry_s, Some(100));
    rig.stop().await;
}

#[tokio::test]
async fn each_filter_of_a_subscribe_is_answered_by_itself_and_a_refusal_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let deny_subscribe = vec![TopicFilter::new("secret/#").unwrap()];
    let rig = rig_with(&dir, Config { deny_subscribe, ..Config::default() }).await;
    let mut one = rig.peer("one").await;
    let (given, reason) = codes(&mut one, &["a", "a#", "$share/g", "secret/a", "#"]).await;
    use ReasonCode::{Success, TopicFilterInvalid, UnspecifiedError};
    assert_eq!(given, [Success, TopicFilterInvalid, TopicFilterInvalid, UnspecifiedError, Success]);
    assert!(reason.unwrap().starts_with("`a#`"), "the first that was refused");
    one.deliver("secret/a", "", Qos::AtLeastOnce, 1).await;
    one.expect_silence().await;
    let mut quiet = connect("quiet");
    quiet.properties.request_problem_information = Some(false);
    let mut quiet = Peer::open(rig.address, quiet).await.0;
    assert_eq!(codes(&mut quiet, &["a#"]).await, (vec![TopicFilterInvalid], None));
    let mut small = connect("small");
    small.properties.maximum_packet_size = NonZeroU32::new(64);
    let mut small = Peer::open(rig.address, small).await.0;
    let long = format!("{}#", "x".repeat(50));
    assert_eq!(codes(&mut small, &[&long]).await, (vec![TopicFilterInvalid], None), "left out where it does not fit");
    let many: Vec<String> = (0..80).map(|n| format!("{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let options = SubscribeOptions::default();
    let subscriptions = many.iter().map(|filter| Subscription { filter: (*filter).into(), options }).collect();
    let id = PacketId::new(1).unwrap();
    small.send(Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions })).await;
    assert_eq!(ended_with(&mut small).await, ReasonCode::PacketTooLarge, "a SUBACK that cannot be made smaller");
    rig.stop().await;
}

#[tokio::test]
async fn only_the_broker_publishes_below_sys() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut watcher) = (rig.peer("one").await, rig.peer("watcher").await);
    watcher.subscribe("$SYS/broker/mine", Qos::AtLeastOnce).await;
    one.send(Packet::Publish(publish("$SYS/broker/mine", "", Qos::AtMostOnce, 0))).await;
    one.send(Packet::Publish(publish("$SYS/broker/mine", "", Qos::AtLeastOnce, 1))).await;
    let Packet::Puback(puback) = one.receive().await else { panic!("no PUBACK") };
    assert_eq!((puback.code, puback.properties.reason.is_some()), (ReasonCode::NotAuthorized, true));
    one.send(Packet::Publish(publish("$SYS/broker/mine", "", Qos::ExactlyOnce, 2))).await;
    let Packet::Pubrec(pubrec) = one.receive().await else { panic!("no PUBREC") };
    assert_eq!(pubrec.code, ReasonCode::NotAuthorized);
    for version in [Version::V5, Version::V311] {
        let mut doomed = connect("doomed");
        (doomed.version, doomed.will) = (version, Some(last_words("$SYS/broker/mine")));
        let (_doomed, connack) = Peer::open(rig.address, doomed).await;
        assert_eq!(connack.code, ReasonCode::NotAuthorized, "nor by a will");
    }
    watcher.expect_silence().await;
    assert_eq!(rig.board.snapshot().refused["not_allowed"], 5);
    rig.stop().await;
}

#[tokio::test]
async fn a_will_has_no_more_levels_than_a_publish_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for (levels, code) in [(200, ReasonCode::Success), (201, ReasonCode::TopicNameInvalid)] {
        let mut doomed = connect("doomed");
        doomed.will = Some(last_words(&"/".repeat(levels - 1)));
        let (mut doomed, connack) = Peer::open(rig.address, doomed).await;
        assert_eq!(connack.code, code, "{levels} levels");
        if code == ReasonCode::Success {
            doomed.deliver(&"/".repeat(levels - 1), "", Qos::AtLeastOnce, 1).await;
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_refusal_leaves_its_reason_out_where_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for (maximum, has_reason) in [(1_000, true), (38, false)] {
        let mut one = connect("one");
        one.properties.maximum_packet_size = NonZeroU32::new(maximum);
        let mut one = Peer::open(rig.address, one).await.0;
        one.send(Packet::Publish(publish("$SYS/a", "", Qos::AtLeastOnce, 1))).await;
        let Packet::Puback(puback) = one.receive().await else { panic!("no PUBACK") };
        one.send(Packet::Publish(publish("$SYS/a", "", Qos::ExactlyOnce, 2))).await;
        let Packet::Pubrec(pubrec) = one.receive().await else { panic!("no PUBREC") };
        for answer in [puback, pubrec] {
            assert_eq!(answer.code, ReasonCode::NotAuthorized);
            assert_eq!(answer.properties.reason.is_some(), has_reason, "{maximum}: {answer:?}");
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_disconnect_leaves_its_reason_out_where_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for (maximum, has_reason) in [(1_000, true), (24, false)] {
        let mut one = connect("one");
        one.properties.maximum_packet_size = NonZeroU32::new(maximum);
        let mut one = Peer::open(rig.address, one).await.0;
        let mut aliased = publish("a", "", Qos::AtMostOnce, 0);
        aliased.properties.topic_alias = NonZeroU16::new(17);
        one.send(Packet::Publish(aliased)).await;
        let Packet::Disconnect(told) = one.receive().await else { panic!("no DISCONNECT") };
        assert_eq!((told.code, told.properties.reason.is_some()), (ReasonCode::TopicAliasInvalid, has_reason));
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_connect_leaves_its_reason_out_where_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for (maximum, has_reason) in [(1_000, true), (20, false)] {
        let mut one = connect("one");
        one.properties.maximum_packet_size = NonZeroU32::new(maximum);
        one.properties.auth_method = Some("unknown".into());
        let connack = Peer::open(rig.address, one).await.1;
        assert_eq!(connack.code, ReasonCode::BadAuthenticationMethod);
        assert_eq!(connack.properties.reason.is_some(), has_reason);
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_waited_is_sent_with_what_is_left_of_its_expiry() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    Peer::open(rig.address, kept("two")).await.0.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    for (id, expiry_s) in [(1, 1_000), (2, 100)] {
        let mut sent = publish("a", "x", Qos::AtLeastOnce, id);
        (sent.properties.expiry_s, sent.retain) = (Some(expiry_s), id == 1);
        one.send(Packet::Publish(sent)).await;
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
    rig.clock.pass(std::time::Duration::from_secs(300));
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    let left = two.publication().await.properties.expiry_s.unwrap();
    assert!((600..=700).contains(&left), "{left}");
    two.expect_silence().await;
    assert_eq!(rig.board.snapshot().dropped["expired"], 1);
    one.subscribe("a", Qos::AtMostOnce).await;
    let left = one.publication().await.properties.expiry_s.unwrap();
    assert!((600..=700).contains(&left), "{left}: a retained message too");
    rig.stop().await;
}

#[tokio::test]
async fn a_message_that_lapsed_at_once_is_acknowledged_and_delivered_to_nobody_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("a", Qos::ExactlyOnce).await;
    let mut one = rig.peer("one").await;
    let mut sent = publish("a", "", Qos::ExactlyOnce, 1);
    sent.properties.expiry_s = Some(0);
    one.send(Packet::Publish(sent)).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(1)));
    one.send(Packet::Pubrel(ack(1))).await;
    assert_eq!(one.receive().await, Packet::Pubcomp(ack(1)));
    two.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_session_that_lapsed_is_forgotten_and_what_it_was_owed_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    Peer::open(rig.address, kept("two")).await.0.subscribe("a", Qos::AtLeastOnce).await;
    let mut one = rig.peer("one").await;
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    one.deliver("a", "", Qos::AtLeastOnce, 1).await;
    rig.clock.pass(std::time::Duration::from_secs(3_599 - 600));
    assert_eq!((rig.broker.figures().sessions_offline, rig.broker.figures().owed), (1, 1));
    rig.clock.pass(std::time::Duration::from_secs(1_200));
    rig.until("it is forgotten", |rig| rig.broker.figures().sessions_offline == 0).await;
    rig.until("what it was owed is counted", |rig| rig.board.snapshot().dropped.get("session_ended") == Some(&1)).await;
    assert!(!Peer::open(rig.address, kept("two")).await.1.session_present);
    rig.stop().await;
}
