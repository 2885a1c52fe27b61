//! Against a remote that takes its time, so that the file can be looked at between any two packets (R25).

use std::path::Path;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::exchanges::{Exchanges, Known, Named};
use super::super::written::Table as _;
use super::super::*;
use super::scripted::{Far, SOON};
use super::{address, config_of, identity, outgoing};
use crate::buffer::{self, EXCHANGES, Lanes, Place, SlotFile};
use crate::links::{Answer, Outgoing, Sent, Sink, SinkConnection, witness};
use crate::message::Qos;
use crate::units::ByteSize;
use crate::wire::{Ack, Packet, PacketId, ReasonCode};

/// A link's folder, and its remote's door.
struct Rig {
    dir: TempDir,
    lanes: Lanes,
    listener: TcpListener,
    config: Config,
}

impl Rig {
    async fn new(version: Version) -> Self {
        let dir = TempDir::new().unwrap();
        let buffer = buffer::Config {
            dir: dir.path().to_owned(),
            max_size: ByteSize(1 << 20),
            max_age: None,
            when_full: buffer::WhenFull::Reject,
            sync: buffer::SyncMode::Group,
            min_free: Some(ByteSize(0)),
            compress: buffer::Compression::None,
            keep_delivered: None,
        };
        let (lanes, _) = Lanes::open(&buffer, 1, &[], &crate::clock::system()).unwrap();
        for _ in 0..3 {
            let buffer::Admission::Granted(permit) = lanes.lane(buffer::Lane::Normal).admit(1).await.unwrap() else {
                panic!("there is room")
            };
            lanes.lane(buffer::Lane::Normal).append(permit, &[b"x"], None);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Config { addresses: vec![address(port)], qos: Qos::ExactlyOnce, ..config_of(port, version) };
        Self { dir, lanes, listener, config }
    }

    /// A connection of a process that has just begun.
    async fn connect(&self, session_present: bool) -> (MqttSinkConnection, Far, bool) {
        let mut sink = MqttSink::of_link(&self.config, &identity(), false, self.dir.path(), &self.lanes);
        let connecting = async { timeout(SOON, sink.connect()).await.unwrap().unwrap() };
        let accepting = async {
            let (mut far, mut connect) = Far::accept(&self.listener, session_present).await;
            if connect.clean_start && self.config.version == Version::V4 {
                // The one that only ends the session.
                (far, connect) = Far::accept(&self.listener, session_present).await;
            }
            (far, connect.clean_start)
        };
        let (connection, (far, clean)) = tokio::join!(connecting, accepting);
        (connection, far, clean)
    }

    /// What a kill would leave.
    fn on_disk(&self, record: &Outgoing) -> Known {
        let copy = self.dir.path().join("copy");
        std::fs::copy(self.dir.path().join(EXCHANGES), &copy).unwrap();
        known_in(&copy, record)
    }
}

fn known_in(path: &Path, record: &Outgoing) -> Known {
    let (_, held) = SlotFile::open(path).unwrap();
    let mut exchanges = held.as_deref().and_then(Exchanges::decode).unwrap_or_default();
    let witness = witness(&record.envelope.message.id);
    exchanges.look(record.place, Named { witness, expired_before: record.expired_before })
}

fn record(offset: u64) -> Outgoing {
    let mut record = outgoing(offset, "a/b");
    record.envelope.message.qos = Qos::ExactlyOnce;
    record
}

/// The packet that comes while the connection is driven.
async fn arrives(connection: &mut MqttSinkConnection, far: &mut Far) -> Packet {
    tokio::select! {
        packet = far.next() => packet,
        answer = connection.answer() => panic!("{answer:?}"),
    }
}

async fn answered(connection: &mut MqttSinkConnection) -> Answer {
    loop {
        match timeout(SOON, connection.answer()).await.unwrap().unwrap() {
            Answer::Alive => {}
            answer @ (Answer::Confirmed(_) | Answer::Refused(..) | Answer::Retry(..) | Answer::Blocked(_)) => {
                return answer;
            }
        }
    }
}

fn publish(packet: &Packet) -> (PacketId, bool) {
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    (publish.id.unwrap(), publish.dup)
}

#[tokio::test]
async fn r25_what_the_remote_is_told_is_on_disk_first_and_goes_on_with_its_id_after_a_restart() {
    for version in [Version::V5, Version::V4] {
        let rig = Rig::new(version).await;
        let (mut connection, mut far, clean) = rig.connect(false).await;
        assert_eq!(clean, version == Version::V5, "what an earlier gateway left there is ended");
        let (first, second) = (record(0), record(1));
        for record in [&first, &second] {
            assert!(matches!(connection.send(record.clone()).unwrap(), Sent::Queued));
        }
        let (id, dup) = publish(&arrives(&mut connection, &mut far).await);
        assert!(!dup);
        assert_eq!(rig.on_disk(&first), Known::Published(id));
        let (other, _) = publish(&arrives(&mut connection, &mut far).await);
        far.say(&Packet::Pubrec(Ack::success(id))).await;
        let released = arrives(&mut connection, &mut far).await;
        assert!(matches!(&released, Packet::Pubrel(ack) if ack.id == id), "{released:?}");
        assert_eq!(rig.on_disk(&first), Known::Released(id));
        assert!(connection.has_taken(first.place) && !connection.has_taken(second.place));
        drop((connection, far));

        let (mut connection, mut far, clean) = rig.connect(true).await;
        assert!(!clean, "{version:?}");
        for record in [first, second] {
            assert!(matches!(connection.send(record).unwrap(), Sent::Queued));
        }
        let again = arrives(&mut connection, &mut far).await;
        assert!(matches!(&again, Packet::Pubrel(ack) if ack.id == id), "{again:?}");
        assert_eq!(publish(&arrives(&mut connection, &mut far).await), (other, true));
        far.say(&Packet::Pubcomp(Ack::success(id))).await;
        assert_eq!(answered(&mut connection).await, Answer::Confirmed(Place::default()));
        if version == Version::V5 {
            far.say(&Packet::Pubrec(Ack::new(other, ReasonCode::QuotaExceeded))).await;
            let answer = answered(&mut connection).await;
            assert!(matches!(&answer, Answer::Retry(place, _) if place.offset.0 == 1), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn r07_after_a_kill_what_had_lapsed_before_the_last_confirmed_record_is_known() {
    let rig = Rig::new(Version::V5).await;
    let (mut connection, mut far, _) = rig.connect(false).await;
    let log = rig.lanes.lane(buffer::Lane::Normal);
    (0..2).for_each(|lapsed| log.settle(buffer::Offset(lapsed), buffer::Outcome::Expired));
    let delivered = Outgoing { expired_before: 2, ..record(2) };
    assert!(matches!(connection.send(delivered).unwrap(), Sent::Queued));
    let (id, _) = publish(&arrives(&mut connection, &mut far).await);
    far.say(&Packet::Pubrec(Ack::success(id))).await;
    arrives(&mut connection, &mut far).await;
    far.say(&Packet::Pubcomp(Ack::success(id))).await;
    assert!(matches!(answered(&mut connection).await, Answer::Confirmed(_)));
    log.settle(buffer::Offset(2), buffer::Outcome::Delivered);
    // What is saved with the next one is ahead of the cursor's file, which is written later.
    assert!(matches!(connection.send(record(3)).unwrap(), Sent::Queued));
    arrives(&mut connection, &mut far).await;
    drop((connection, far));
    let (connection, _far, _) = rig.connect(true).await;
    let said = connection.confirmed_below(rig.lanes.id());
    assert_eq!(said.iter().map(|said| (said.below.offset.0, said.expired)).collect::<Vec<_>>(), [(3, Some(2))]);
}

#[tokio::test]
async fn r25_a_remote_that_has_forgotten_the_session_is_published_anew_what_it_had_taken_over() {
    for version in [Version::V5, Version::V4] {
        let rig = Rig::new(version).await;
        let (mut connection, mut far, _) = rig.connect(false).await;
        assert!(matches!(connection.send(record(0)).unwrap(), Sent::Queued));
        let (id, _) = publish(&arrives(&mut connection, &mut far).await);
        far.say(&Packet::Pubrec(Ack::success(id))).await;
        arrives(&mut connection, &mut far).await;
        drop((connection, far));
        let (mut connection, mut far, _) = rig.connect(false).await;
        assert!(matches!(connection.send(record(0)).unwrap(), Sent::Queued));
        let (_, dup) = publish(&arrives(&mut connection, &mut far).await);
        assert!(!dup, "{version:?}");
    }
}

#[tokio::test]
async fn r25_what_was_never_saved_is_saved_before_the_next_connection_acts_upon_it() {
    let rig = Rig::new(Version::V5).await;
    let mut sink = MqttSink::of_link(&rig.config, &identity(), false, rig.dir.path(), &rig.lanes);
    for session_present in [false, true] {
        let (connection, (mut far, _)) = tokio::join!(sink.connect(), Far::accept(&rig.listener, session_present));
        let mut connection = connection.unwrap();
        assert!(matches!(connection.send(record(0)).unwrap(), Sent::Queued));
        if session_present {
            let (id, _) = publish(&arrives(&mut connection, &mut far).await);
            assert_eq!(rig.on_disk(&record(0)), Known::Published(id));
        }
        // The first one ends before it has come to anything.
    }
}
