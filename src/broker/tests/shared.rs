//! Shared subscriptions.

use std::num::NonZeroU16;
use std::time::Duration;

use super::support::*;
use crate::message::Qos;
use crate::wire::{Ack, Packet, PacketId, ReasonCode, SubscribeOptions, Version};

async fn publish_many(rig: &Rig, topic: &str, qos: Qos, count: u16) {
    let mut publisher = rig.peer("publisher").await;
    for id in 1..=count {
        publisher.deliver(topic, &id.to_string(), qos, id).await;
    }
}

fn number(publish: &crate::wire::Publish) -> u16 {
    std::str::from_utf8(&publish.payload).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_message_goes_to_one_member_of_each_group_in_turn_and_to_all_other_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    let mut old = connect("old");
    old.version = Version::V311;
    let mut old = Peer::open(rig.address, old).await.0;
    let (mut other, mut all) = (rig.peer("other").await, rig.peer("all").await);
    for peer in [&mut one, &mut two, &mut old] {
        peer.subscribe("$share/g/a/+", Qos::AtLeastOnce).await;
    }
    other.subscribe("$share/h/a/#", Qos::AtMostOnce).await;
    all.subscribe("a/b", Qos::AtMostOnce).await;
    publish_many(&rig, "a/b", Qos::AtMostOnce, 9).await;
    let mut got = Vec::new();
    for peer in [&mut one, &mut two, &mut old] {
        for _ in 0..3 {
            got.push(number(&peer.publication().await));
        }
        peer.expect_silence().await;
    }
    got.sort_unstable();
    assert_eq!(got, (1..=9).collect::<Vec<_>>());
    for peer in [&mut other, &mut all] {
        for wanted in 1..=9 {
            assert_eq!(number(&peer.publication().await), wanted);
        }
        peer.expect_silence().await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_shared_subscription_has_its_own_qos_and_id_and_brings_nothing_retained() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    let mut kept = publish("a", "old", Qos::AtLeastOnce, 1);
    kept.retain = true;
    one.send(Packet::Publish(kept)).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    let options = SubscribeOptions { qos: Qos::AtMostOnce, ..SubscribeOptions::default() };
    one.subscribe_with("$share/g/a", options, Some(7)).await;
    one.expect_silence().await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 1).await;
    let got = one.publication().await;
    assert_eq!((got.qos, got.retain), (Qos::AtMostOnce, false));
    assert_eq!(got.properties.subscription_ids[0].get(), 7);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_member_had_goes_to_another_when_its_session_ends() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut slow = connect("slow");
    slow.properties.receive_maximum = NonZeroU16::new(2);
    let mut slow = Peer::open(rig.address, slow).await.0;
    slow.subscribe("$share/g/a", Qos::AtLeastOnce).await;
    publish_many(&rig, "a", Qos::AtLeastOnce, 5).await;
    let first = slow.publication().await.id.unwrap().get();
    slow.send(Packet::Puback(ack(first))).await;
    slow.publication().await;
    slow.publication().await;
    let mut other = rig.peer("other").await;
    other.subscribe("$share/g/a", Qos::AtLeastOnce).await;
    drop(slow);
    for wanted in 2..=5 {
        let got = other.publication().await;
        assert_eq!((number(&got), got.dup), (wanted, false));
    }
    other.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_qos_2_message_that_a_member_was_sent_goes_to_nobody_else_when_its_session_ends() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    one.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 1).await;
    one.publication().await;
    let mut other = rig.peer("other").await;
    other.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    drop(one);
    // Its session is over when its client id may be used anew.
    rig.peer("one").await.expect_silence().await;
    other.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_qos_2_message_of_a_kept_session_goes_to_nobody_else_either_when_it_was_sent_after_a_resume_without_expiry() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    drop(one);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 3).await;
    let mut once_more = kept("one");
    once_more.properties.session_expiry_s = None;
    // The third is not sent to it.
    once_more.properties.receive_maximum = NonZeroU16::new(2);
    let mut one = Peer::open(rig.address, once_more).await.0;
    let mut two = rig.peer("two").await;
    two.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    for wanted in 1..=2 {
        assert_eq!(number(&one.publication().await), wanted);
    }
    drop(one);
    assert_eq!(number(&two.publication().await), 3);
    two.expect_silence().await;
    rig.until("nothing is left of it", |rig| rig.broker.figures().owed == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_message_that_a_member_refuses_goes_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = rig.peer("one").await;
    one.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    publish_many(&rig, "a", Qos::AtLeastOnce, 1).await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 1).await;
    let refused = |id| Ack::new(PacketId::new(id).unwrap(), ReasonCode::ImplementationSpecificError);
    let (first, second) = (one.publication().await.id.unwrap(), one.publication().await.id.unwrap());
    let mut other = rig.peer("other").await;
    other.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    one.send_all([Packet::Puback(refused(first.get())), Packet::Pubrec(refused(second.get()))]).await;
    one.expect_silence().await;
    drop(one);
    rig.peer("one").await.expect_silence().await;
    other.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn members_that_are_away_get_messages_only_if_nobody_else_is_there_and_keep_them_over_a_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut away = Peer::open(rig.address, kept("away")).await.0;
    away.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    drop(away);
    let mut here = rig.peer("here").await;
    here.subscribe("$share/g/a", Qos::AtLeastOnce).await;
    rig.until("the member is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    publish_many(&rig, "a", Qos::AtLeastOnce, 3).await;
    for wanted in 1..=3 {
        let got = here.publication().await;
        assert_eq!(number(&got), wanted);
        here.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
    }
    here.expect_silence().await;
    drop(here);
    rig.peer("here").await.expect_silence().await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 2).await;
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    let (mut away, connack) = Peer::open(rig.address, kept("away")).await;
    assert!(connack.session_present);
    for wanted in 1..=2 {
        assert_eq!(number(&away.publication().await), wanted);
    }
    // The subscription is still a shared one: another member takes turns.
    let mut other = rig.peer("other").await;
    other.subscribe("$share/g/a", Qos::AtMostOnce).await;
    publish_many(&rig, "a", Qos::AtMostOnce, 2).await;
    other.publication().await;
    away.publication().await;
    other.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn an_unsubscribed_member_gets_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut one, mut two) = (rig.peer("one").await, rig.peer("two").await);
    one.subscribe("$share/g/a", Qos::AtMostOnce).await;
    two.subscribe("$share/g/a", Qos::AtMostOnce).await;
    assert_eq!(rig.broker.topics.subscription_counts(), (2, 2));
    one.unsubscribe("$share/g/a").await;
    publish_many(&rig, "a", Qos::AtMostOnce, 2).await;
    for wanted in 1..=2 {
        assert_eq!(number(&two.publication().await), wanted);
    }
    one.expect_silence().await;
    two.unsubscribe("$share/g/a").await;
    assert_eq!(rig.broker.topics.subscription_counts(), (0, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_qos_2_message_of_a_share_goes_on_with_the_member_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 1).await;
    let id = one.publication().await.id.unwrap().get();
    one.send(Packet::Pubrec(ack(id))).await;
    assert_eq!(one.receive().await, Packet::Pubrel(ack(id)));
    let mut other = rig.peer("other").await;
    other.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    drop(one);
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    assert_eq!(one.receive().await, Packet::Pubrel(ack(id)));
    one.send(Packet::Pubcomp(ack(id))).await;
    one.expect_silence().await;
    other.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn what_a_kept_member_was_owed_goes_to_another_when_its_time_is_over_also_after_a_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut away = Peer::open(rig.address, kept("away")).await.0;
    away.subscribe("$share/g/a", Qos::ExactlyOnce).await;
    // Its own: nobody else gets that.
    away.subscribe("own", Qos::AtLeastOnce).await;
    publish_many(&rig, "a", Qos::ExactlyOnce, 1).await;
    // A QoS 2 message that was sent goes to nobody else (MQTT-4.8.2-5).
    assert_eq!(number(&away.publication().await), 1);
    drop(away);
    rig.until("the member is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        publish_many(&rig, "a", qos, 200).await;
    }
    publish_many(&rig, "own", Qos::AtLeastOnce, 1).await;
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    assert_eq!(rig.broker.figures().owed, 402);
    let mut heir = Peer::open(rig.address, kept("heir")).await.0;
    heir.subscribe("$share/g/a", Qos::AtLeastOnce).await;
    rig.clock.pass(Duration::from_secs(7_200));
    for wanted in (1..=200).chain(1..=200) {
        let got = heir.publication().await;
        assert_eq!((number(&got), got.qos), (wanted, Qos::AtLeastOnce));
        heir.send(Packet::Puback(ack(got.id.unwrap().get()))).await;
    }
    heir.expect_silence().await;
    rig.until("its other messages are counted", |rig| rig.board.snapshot().dropped.contains_key("session_ended")).await;
    assert_eq!(rig.board.snapshot().dropped["session_ended"], 2);
    let copy = rig.crash(copy.path());
    let rig = Rig::start(copy.path()).await;
    assert_eq!((rig.broker.figures().owed, rig.broker.figures().sessions_offline), (0, 1), "the heir alone");
    rig.stop().await;
}

#[tokio::test]
async fn a_session_that_a_kill_left_behind_another_of_its_client_ends_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("a", Qos::AtLeastOnce).await;
    drop(one);
    rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    publish_many(&rig, "a", Qos::AtLeastOnce, 3).await;
    let copy = rig.crash(dir.path());
    // As if its client had begun anew, and the old session's end had not come to the disk.
    let connection = rusqlite::Connection::open(copy.path().join("broker.db")).unwrap();
    let again = "CREATE TEMP TABLE copy AS SELECT * FROM session; UPDATE copy SET id = id + 1; INSERT INTO session SELECT * FROM copy";
    connection.execute_batch(again).unwrap();
    drop(connection);
    let rig = Rig::start(copy.path()).await;
    rig.until("the old one has ended", |rig| rig.board.snapshot().dropped.get("session_ended") == Some(&3)).await;
    assert_eq!(rig.broker.topics.subscription_counts(), (0, 0));
    let (mut one, connack) = Peer::open(rig.address, kept("one")).await;
    assert!(connack.session_present);
    one.expect_silence().await;
    rig.stop().await;
}
