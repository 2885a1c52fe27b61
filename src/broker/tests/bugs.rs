//! Classes of bugs that were filed against other brokers in 2026, where no other test has them. `tests/conformance/bugs.tsv` lists
//! all of them with their tests.

use super::support::*;
use crate::broker::Config;
use crate::message::Qos;
use crate::router::Table;
use crate::wire::{Packet, SubscribeOptions};

#[tokio::test]
async fn retain_as_published_survives_the_offline_queue_and_a_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let options = SubscribeOptions { qos: Qos::AtLeastOnce, retain_as_published: true, ..SubscribeOptions::default() };
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe_with("a", options, Some(9)).await;
    drop(two);
    let mut one = rig.peer("one").await;
    for (id, retain) in [(1, true), (2, false)] {
        let mut sent = publish("a", &id.to_string(), Qos::AtLeastOnce, id);
        sent.retain = retain;
        one.send(Packet::Publish(sent)).await;
        assert_eq!(one.receive().await, Packet::Puback(ack(id)));
    }
    let copy = rig.crash(dir.path());
    for rig in [rig, Rig::start(copy.path()).await] {
        let mut two = Peer::open(rig.address, kept("two")).await.0;
        for retain in [true, false] {
            let got = two.publication().await;
            assert_eq!((got.retain, got.properties.subscription_ids[0].get()), (retain, 9));
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_session_expires_as_granted_and_not_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let max = std::time::Duration::from_secs(100);
    let config = Config { session_expiry_max: max, ..Config::default() };
    let rig = Rig::with(dir.path(), config, Table::default(), Vec::new()).await;
    for (passes, present) in [(90, true), (110, false)] {
        drop(Peer::open(rig.address, kept("one")).await);
        rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
        rig.clock.pass(std::time::Duration::from_secs(passes));
        assert_eq!(Peer::open(rig.address, kept("one")).await.1.session_present, present, "after {passes} s");
        rig.until("it is away", |rig| rig.broker.figures().sessions_offline == 1).await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_same_packet_id_in_both_directions_is_two_exchanges() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.subscribe("a", Qos::ExactlyOnce).await;
    rig.peer("two").await.deliver("a", "in", Qos::ExactlyOnce, 7).await;
    assert_eq!(one.publication().await.id.unwrap().get(), 1);
    one.send(Packet::Publish(publish("b", "out", Qos::ExactlyOnce, 1))).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(1)));
    one.send(Packet::Pubrel(ack(1))).await;
    assert_eq!(one.receive().await, Packet::Pubcomp(ack(1)));
    // The other direction's exchange is where it was.
    let copy = rig.crash(dir.path());
    for rig in [rig, Rig::start(copy.path()).await] {
        let mut one = Peer::open(rig.address, kept("one")).await.0;
        let again = one.publication().await;
        assert_eq!((again.dup, again.id.unwrap().get(), &again.payload[..]), (true, 1, &b"in"[..]));
        one.send(Packet::Pubrec(ack(1))).await;
        assert_eq!(one.receive().await, Packet::Pubrel(ack(1)));
        one.send(Packet::Pubcomp(ack(1))).await;
        one.expect_silence().await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_topic_that_begins_with_a_byte_order_mark_is_a_topic_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    two.subscribe("\u{FEFF}/+", Qos::AtLeastOnce).await;
    drop(two);
    let mut one = rig.peer("one").await;
    let mut sent = publish("\u{FEFF}/\u{FEFF}", "x", Qos::AtLeastOnce, 1);
    sent.retain = true;
    one.send(Packet::Publish(sent)).await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    let copy = rig.crash(dir.path());
    let rig = Rig::start(copy.path()).await;
    let mut two = Peer::open(rig.address, kept("two")).await.0;
    assert_eq!(two.publication().await.topic.as_str(), "\u{FEFF}/\u{FEFF}");
    assert_eq!(rig.broker.figures().retained, 1);
    rig.stop().await;
}
