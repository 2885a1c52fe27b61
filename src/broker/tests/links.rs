//! What a client sees of the links' buffers: acknowledgements, refusals, back-pressure.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;

use super::support::*;
use crate::broker::Config;
use crate::buffer::{Buffer, Compression, Config as BufferConfig, SyncMode, WhenFull};
use crate::clock;
use crate::message::Qos;
use crate::router::{Form, From, LinkId, Route, Table, To};
use crate::units::ByteSize;
use crate::wire::{Packet, ReasonCode, Version};

pub(super) fn buffer(dir: &Path, when_full: WhenFull, size: u64) -> Buffer {
    buffer_that_syncs(dir, when_full, size, SyncMode::Group)
}

fn buffer_that_syncs(dir: &Path, when_full: WhenFull, size: u64, sync: SyncMode) -> Buffer {
    let config = BufferConfig {
        dir: dir.join("cloud"),
        max_size: ByteSize(size),
        max_age: None,
        when_full,
        sync,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    };
    Buffer::open(config, 16, clock::system()).unwrap().0
}

pub(super) fn to_cloud(from: &str) -> Table {
    let from = vec![From::parse(from, Form::Topic).unwrap()];
    Table::new(vec![Route::new("all", from, vec![To::parse("cloud/x").unwrap()])])
}

async fn rig(dir: &Path, buffer: &Buffer) -> Rig {
    Rig::with(dir, Config::default(), to_cloud("broker/cloud/#"), vec![(LinkId::new("cloud"), buffer.clone())]).await
}

/// Fills it until it refuses or blocks.
fn large() -> String {
    "x".repeat(100_000)
}

#[tokio::test]
async fn r5_a_full_buffer_that_rejects_is_told_to_mqtt_5_and_closes_mqtt_3() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = buffer(logs.path(), WhenFull::Reject, 300_000);
    let rig = rig(dir.path(), &buffer).await;
    let mut watcher = rig.peer("watcher").await;
    let mut one = rig.peer("one").await;
    let mut accepted = 0;
    loop {
        one.send(Packet::Publish(publish("cloud/a", &large(), Qos::AtLeastOnce, 7))).await;
        let Packet::Puback(ack) = one.receive().await else { panic!("no PUBACK") };
        if ack.code == ReasonCode::QuotaExceeded {
            break;
        }
        assert_eq!(ack.code, ReasonCode::Success);
        accepted += 1;
    }
    assert!(accepted >= 1);
    watcher.subscribe("#", Qos::AtLeastOnce).await;
    one.send(Packet::Publish(publish("cloud/a", &large(), Qos::ExactlyOnce, 8))).await;
    let Packet::Pubrec(ack) = one.receive().await else { panic!("no PUBREC") };
    assert_eq!(ack.code, ReasonCode::QuotaExceeded);
    let mut old = connect("old");
    old.version = Version::V311;
    let mut old = Peer::open(rig.address, old).await.0;
    old.send(Packet::Publish(publish("cloud/a", &large(), Qos::AtLeastOnce, 9))).await;
    assert_eq!(old.next().await, None);
    watcher.expect_silence().await;
    assert_eq!(rig.board.snapshot().refused["full"], 3);
    rig.stop().await;
}

#[tokio::test]
async fn r6_a_blocked_link_holds_its_publisher_alone_without_a_keep_alive_kick_and_ends_at_take_over() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = buffer(logs.path(), WhenFull::Block, 300_000);
    let config = Config { receive_maximum: 8, ..Config::default() };
    let links = vec![(LinkId::new("cloud"), buffer.clone())];
    let rig = Rig::with(dir.path(), config, to_cloud("broker/cloud/#"), links).await;
    let mut held = kept("held");
    held.keep_alive_s = 1;
    let mut old = Peer::open(rig.address, held.clone()).await.0;
    let mut sent = 0_u16;
    // Until as many are unacknowledged as it takes: then it is blocked and not read.
    while rig.board.snapshot().received + 8 > u64::from(sent) && sent < 40 {
        sent += 1;
        old.send(Packet::Publish(publish("cloud/a", &large(), Qos::AtLeastOnce, sent))).await;
        if sent.is_multiple_of(8) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut free = rig.peer("free").await;
    free.deliver("local/a", "x", Qos::AtLeastOnce, 1).await;
    // Two keep-alive periods and a half: the time itself is what is tested.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(rig.board.snapshot().clients, 2, "kicked while it was not read");
    let (mut new, connack) = Peer::open(rig.address, held).await;
    assert!(connack.session_present);
    new.deliver("local/a", "x", Qos::AtLeastOnce, 1).await;
    // It is blocked again, and that does not hold up the end.
    new.send_all((2..10).map(|id| Packet::Publish(publish("cloud/a", &large(), Qos::AtLeastOnce, id)))).await;
    rig.stop().await;
}

#[tokio::test]
async fn r18_an_exchange_that_a_sigkill_left_unfinished_goes_to_the_links_and_not_to_subscribers_again() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let blocked = buffer(logs.path(), WhenFull::Block, 1_000_000);
    let first = rig(dir.path(), &blocked).await;
    let mut two = Peer::open(first.address, kept("two")).await.0;
    two.subscribe("#", Qos::ExactlyOnce).await;
    let mut one = Peer::open(first.address, kept("one")).await.0;
    one.send(Packet::Publish(publish("cloud/a", "x", Qos::ExactlyOnce, 4))).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    let id = two.publication().await.id.unwrap().get();
    two.send(Packet::Pubrec(ack(id))).await;
    assert_eq!(two.receive().await, Packet::Pubrel(ack(id)));
    two.send(Packet::Pubcomp(ack(id))).await;
    two.expect_silence().await;
    let position = first.broker.store.stage_one(crate::broker::store::Op::Settle(u64::MAX));
    soon(first.broker.store.mark().passed(position)).await.unwrap();
    let copy = first.crash(dir.path());
    // The kill came before the log had it and before that was noted.
    let message = crate::message::tests_support::message("cloud/a", b"x");
    let (connection, body) = (copy.path().join("broker.db"), crate::broker::store::encode_body(&message));
    let connection = rusqlite::Connection::open(connection).unwrap();
    connection.execute("UPDATE inbound SET finished = 0, body = ?1", [&*body]).unwrap();
    drop(connection);

    let logs = tempfile::tempdir().unwrap();
    let empty = buffer(logs.path(), WhenFull::Block, 1_000_000);
    let second = rig(copy.path(), &empty).await;
    let mut one = Peer::open(second.address, kept("one")).await.0;
    let mut again = publish("cloud/a", "x", Qos::ExactlyOnce, 4);
    again.dup = true;
    one.send(Packet::Publish(again)).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    assert!(soon(empty.reader().next(1, 1 << 20)).await.is_ok());
    assert_eq!(empty.stats().next.0, 1, "offered by the start or by its client, not by both");
    let mut two = Peer::open(second.address, kept("two")).await.0;
    two.expect_silence().await;
    second.stop().await;
    first.stop().await;
}

/// Its log fails when the message is delivered here already, and each time that it comes again.
#[tokio::test]
async fn r18_an_exchange_whose_log_fails_behind_the_local_delivery_stays_open_and_is_delivered_once() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer =
        buffer_that_syncs(logs.path(), WhenFull::Block, 1_000_000, SyncMode::Spill(Duration::from_secs(3_600)));
    let rig = rig(dir.path(), &buffer).await;
    let mut two = rig.peer("two").await;
    two.subscribe("#", Qos::AtMostOnce).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.send(Packet::Publish(publish("cloud/a", "x", Qos::ExactlyOnce, 4))).await;
    assert_eq!(two.publication().await.topic.as_str(), "cloud/a");
    // Nothing of it is on the disk yet, and nothing can be put there any more.
    std::fs::remove_dir_all(logs.path().join("cloud")).unwrap();
    buffer.hurry();
    for _ in 0..2 {
        let Some(Packet::Disconnect(end)) = one.next().await else { panic!("no DISCONNECT") };
        assert!(end.code.is_error());
        assert_eq!(one.next().await, None);
        one = Peer::open(rig.address, kept("one")).await.0;
        let mut again = publish("cloud/a", "x", Qos::ExactlyOnce, 4);
        again.dup = true;
        one.send(Packet::Publish(again)).await;
    }
    two.expect_silence().await;
    assert_eq!(buffer.stats().ledger.accepted, 1);
    rig.stop().await;
}

/// A link that is full holds the start up, so that the client comes while it offers what the last life left unfinished.
#[tokio::test]
async fn r18_an_unfinished_exchange_that_its_client_repeats_while_the_start_offers_it_is_in_the_log_once() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = rig(dir.path(), &buffer(logs.path(), WhenFull::Block, 1_000_000)).await;
    let mut one = Peer::open(first.address, kept("one")).await.0;
    one.send(Packet::Publish(publish("cloud/a", &large(), Qos::ExactlyOnce, 4))).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    let position = first.broker.store.stage_one(crate::broker::store::Op::Settle(u64::MAX));
    soon(first.broker.store.mark().passed(position)).await.unwrap();
    let copy = first.crash(dir.path());
    // The kill came before the log had it and before that was noted.
    let mut message = crate::message::tests_support::message("cloud/a", b"");
    message.payload = large().into();
    let body = crate::broker::store::encode_body(&message);
    let connection = rusqlite::Connection::open(copy.path().join("broker.db")).unwrap();
    connection.execute("UPDATE inbound SET finished = 0, body = ?1", [&*body]).unwrap();
    drop(connection);

    let logs = tempfile::tempdir().unwrap();
    let full = buffer(logs.path(), WhenFull::Block, 300_000);
    fill(&full, 50_000).await;
    let before = full.stats().next.0;
    let second = rig(copy.path(), &full).await;
    let mut one = Peer::open(second.address, kept("one")).await.0;
    let mut again = publish("cloud/a", &large(), Qos::ExactlyOnce, 4);
    again.dup = true;
    one.send(Packet::Publish(again)).await;
    one.expect_silence().await;
    for offset in 0..before {
        full.settle(crate::buffer::Offset(offset), crate::buffer::Outcome::Delivered);
    }
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    one.send(Packet::Pubrel(ack(4))).await;
    assert_eq!(one.receive().await, Packet::Pubcomp(ack(4)));
    one.deliver("cloud/b", "x", Qos::AtLeastOnce, 5).await;
    assert_eq!(full.stats().next.0, before + 2, "it once, and the one behind it");
    second.stop().await;
    first.stop().await;
}

/// Fills the log until a record of so many bytes has to wait.
async fn fill(buffer: &Buffer, bytes: usize) {
    while let Some(admission) =
        soon(tokio::time::timeout(Duration::from_millis(500), buffer.admit(bytes)).map(Result::ok)).await
    {
        let crate::buffer::Admission::Granted(permit) = admission.unwrap() else { panic!("it blocks when it is full") };
        let offset = buffer.append(permit, &[&vec![0; bytes]], None);
        soon(buffer.mark().passed(offset.0)).await.unwrap();
    }
}

#[tokio::test]
async fn r6_what_came_before_a_blocked_message_of_the_same_batch_is_acknowledged() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = buffer(logs.path(), WhenFull::Block, 300_000);
    let rig = rig(dir.path(), &buffer).await;
    fill(&buffer, 50_000).await;
    let mut one = rig.peer("one").await;
    one.send_all([
        Packet::Publish(publish("local/a", "x", Qos::AtLeastOnce, 1)),
        Packet::Publish(publish("cloud/a", "x", Qos::AtLeastOnce, 2)),
        Packet::Publish(publish("cloud/a", "x", Qos::ExactlyOnce, 3)),
        Packet::Publish(publish("cloud/a", &"x".repeat(50_000), Qos::AtLeastOnce, 4)),
        Packet::Publish(publish("local/a", "x", Qos::AtLeastOnce, 5)),
    ])
    .await;
    assert_eq!(one.receive().await, Packet::Puback(ack(1)));
    assert_eq!(one.receive().await, Packet::Puback(ack(2)));
    assert_eq!(one.receive().await, Packet::Pubrec(ack(3)));
    one.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn r19_what_a_batch_has_appended_is_not_appended_again_after_a_take_over() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = buffer(logs.path(), WhenFull::Block, 300_000);
    let rig = rig(dir.path(), &buffer).await;
    fill(&buffer, 50_000).await;
    let before = buffer.stats().next.0;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    let small = |dup| {
        let mut small = publish("cloud/a", "x", Qos::ExactlyOnce, 1);
        small.dup = dup;
        Packet::Publish(small)
    };
    one.send_all([small(false), Packet::Publish(publish("cloud/a", &"x".repeat(50_000), Qos::ExactlyOnce, 2))]).await;
    rig.until("the first is in the log", |_| buffer.stats().next.0 == before + 1).await;
    let mut one = Peer::open(rig.address, kept("one")).await.0;
    one.send(small(true)).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(1)));
    assert_eq!(buffer.stats().next.0, before + 1, "it is in the log once");
    rig.stop().await;
}

#[tokio::test]
async fn r18_what_a_log_has_of_an_unfinished_exchange_is_not_appended_again_after_a_sigkill() {
    let (dir, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let buffer = buffer(logs.path(), WhenFull::Block, 1_000_000);
    let first = rig(dir.path(), &buffer).await;
    let mut one = Peer::open(first.address, kept("one")).await.0;
    one.deliver("cloud/a", "before", Qos::AtLeastOnce, 1).await;
    one.send(Packet::Publish(publish("cloud/a", "x", Qos::ExactlyOnce, 4))).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    let position = first.broker.store.stage_one(crate::broker::store::Op::Settle(u64::MAX));
    soon(first.broker.store.mark().passed(position)).await.unwrap();
    let copy = first.crash(dir.path());
    // The kill came when the log had it, and before that was noted.
    let mut history = buffer.history(crate::buffer::Offset(1), crate::buffer::Offset(2));
    let record = soon(history.next(1, 1 << 20)).await.unwrap().remove(0);
    let body = crate::broker::store::encode_body(&crate::message::Envelope::decode(record.body).unwrap().message);
    let connection = rusqlite::Connection::open(copy.path().join("broker.db")).unwrap();
    let undo = "UPDATE inbound SET finished = 0, body = ?1, tails = 'normal 1 cloud\n'";
    assert_eq!(connection.execute(undo, [&*body]).unwrap(), 1);
    drop(connection);

    let second = rig(copy.path(), &buffer).await;
    let mut one = Peer::open(second.address, kept("one")).await.0;
    let mut again = publish("cloud/a", "x", Qos::ExactlyOnce, 4);
    again.dup = true;
    one.send(Packet::Publish(again)).await;
    assert_eq!(one.receive().await, Packet::Pubrec(ack(4)));
    one.send(Packet::Pubrel(ack(4))).await;
    assert_eq!(one.receive().await, Packet::Pubcomp(ack(4)));
    assert_eq!(buffer.stats().next.0, 2, "the one before, and this one once");
    second.stop().await;
    first.stop().await;
}
