//! Against a remote that takes its time, so that the file can be looked at between any two packets (R25).

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::arrivals::{Arrivals, Known};
use super::super::written::Table as _;
use super::super::*;
use super::scripted::{Far, SOON};
use super::{config_of, identity};
use crate::buffer::{self, Lanes, SlotFile};
use crate::hub::{self, Hub};
use crate::links::{Received, Source, SourceConnection};
use crate::message::{IdSource, Qos};
use crate::router::{Endpoint, Form, From, LinkId, Route, Table, To};
use crate::units::ByteSize;
use crate::wire::{Ack, Packet, PacketId, Publish, PublishProperties, ReasonCode, ReasonProperties, Suback};

/// A link's file, and its remote's door.
struct Rig {
    dir: TempDir,
    listener: TcpListener,
    config: Config,
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

fn message(n: u16, dup: bool) -> Packet {
    Packet::Publish(message_of(n, Qos::ExactlyOnce, dup))
}

fn message_of(n: u16, qos: Qos, dup: bool) -> Publish {
    Publish {
        topic: "cmd/a".into(),
        payload: format!("{n}").into(),
        qos,
        dup,
        retain: false,
        id: (qos != Qos::AtMostOnce).then(|| id(n)),
        properties: PublishProperties::default(),
    }
}

impl Rig {
    async fn new(version: Version) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrivals = Some(dir.path().join("arrivals").join("hq"));
        let config = Config { qos: Qos::ExactlyOnce, arrivals, ..config_of(port, version) };
        Self { dir, listener, config }
    }

    /// A connection of a process that has just begun.
    async fn connect(&self, session_present: bool) -> (MqttSourceConnection, Far) {
        self.connect_by(&mut self.source(), session_present, &[]).await
    }

    fn source(&self) -> MqttSource {
        MqttSource::new(&self.config, vec!["cmd/#".to_owned()], &identity(), false)
    }

    /// The remote says `more` with its SUBACK.
    async fn connect_by(
        &self,
        source: &mut MqttSource,
        session_present: bool,
        more: &[&Packet],
    ) -> (MqttSourceConnection, Far) {
        let connecting = async { timeout(SOON, source.connect()).await.unwrap().unwrap() };
        let accepting = async {
            let (mut far, connect) = Far::accept(&self.listener, session_present).await;
            assert!(!connect.clean_start);
            let Packet::Subscribe(subscribe) = far.next().await else { panic!("no SUBSCRIBE") };
            let codes = vec![ReasonCode::GrantedQos2];
            let suback = Packet::Suback(Suback { id: subscribe.id, codes, properties: ReasonProperties::default() });
            far.say_at_once(&[&[&suback], more].concat()).await;
            far
        };
        tokio::join!(connecting, accepting)
    }

    /// What a kill would leave.
    fn on_disk(&self) -> Arrivals {
        let copy: PathBuf = self.dir.path().join("copy");
        std::fs::copy(self.config.arrivals.as_ref().unwrap(), &copy).unwrap();
        let (_, held) = SlotFile::open(&copy).unwrap();
        Arrivals::decode(&held.unwrap()).unwrap()
    }
}

async fn receive(connection: &mut MqttSourceConnection) -> Received<MqttToken> {
    let mut batch = timeout(SOON, connection.receive()).await.unwrap().unwrap();
    assert_eq!(batch.len(), 1);
    batch.pop().unwrap()
}

/// What the remote hears next.
async fn heard(connection: &mut MqttSourceConnection, far: &mut Far) -> Packet {
    tokio::select! {
        heard = far.next() => heard,
        received = connection.receive() => panic!("{received:?}"),
    }
}

#[tokio::test]
async fn r25_a_message_has_its_id_on_disk_before_it_is_offered_and_the_same_one_when_it_comes_again() {
    for version in [Version::V5, Version::V4] {
        let rig = Rig::new(version).await;
        let (mut connection, mut far) = rig.connect(false).await;
        far.say(&message(7, false)).await;
        let first = receive(&mut connection).await;
        let given = first.publication.id.clone().unwrap().id;
        assert_eq!(&*given.site, "here");
        assert_eq!(rig.on_disk().arrived(id(7)), Known::Again(given.counter));
        // Killed before it was safe.
        drop(connection);
        let (mut connection, mut far) = rig.connect(true).await;
        far.say(&message(7, true)).await;
        let again = receive(&mut connection).await;
        assert_eq!((again.publication.id.unwrap().id, again.again), (given, true));
        connection.settled(again.token).unwrap();
        assert_eq!(heard(&mut connection, &mut far).await, Packet::Pubrec(Ack::success(id(7))));
        // What is safe is acknowledged once more, and not offered.
        far.say(&message(7, true)).await;
        assert_eq!(heard(&mut connection, &mut far).await, Packet::Pubrec(Ack::success(id(7))));
    }
}

#[tokio::test]
async fn r25_a_packet_id_is_forgotten_on_disk_before_its_pubcomp_goes() {
    let rig = Rig::new(Version::V5).await;
    let (mut connection, mut far) = rig.connect(false).await;
    far.say(&message(7, false)).await;
    let first = receive(&mut connection).await;
    connection.settled(first.token).unwrap();
    heard(&mut connection, &mut far).await;
    far.say(&Packet::Pubrel(Ack::success(id(7)))).await;
    assert_eq!(heard(&mut connection, &mut far).await, Packet::Pubcomp(Ack::success(id(7))));
    assert!(matches!(rig.on_disk().arrived(id(7)), Known::New(_)), "another message may have it");
    // The remote has not heard it, and asks again.
    far.say(&Packet::Pubrel(Ack::success(id(7)))).await;
    let unknown = Ack::new(id(7), ReasonCode::PacketIdentifierNotFound);
    assert_eq!(heard(&mut connection, &mut far).await, Packet::Pubcomp(unknown));
    far.say(&message(7, false)).await;
    let next = receive(&mut connection).await;
    assert_ne!(next.publication.id.unwrap().id, first.publication.id.unwrap().id);
}

#[tokio::test]
async fn r25_after_a_kill_a_pubrel_ends_what_was_offered_and_a_new_session_knows_of_nothing() {
    let rig = Rig::new(Version::V5).await;
    let (mut connection, mut far) = rig.connect(false).await;
    for n in [7, 8] {
        far.say(&message(n, false)).await;
        receive(&mut connection).await;
    }
    drop(connection);
    // Our PUBREC was on its way when the kill came.
    let (mut connection, mut far) = rig.connect(true).await;
    far.say(&Packet::Pubrel(Ack::success(id(7)))).await;
    assert_eq!(heard(&mut connection, &mut far).await, Packet::Pubcomp(Ack::success(id(7))));
    assert!(matches!(rig.on_disk().arrived(id(8)), Known::Again(_)));
    drop(connection);
    let (_connection, _far) = rig.connect(false).await;
    assert!(matches!(rig.on_disk().arrived(id(8)), Known::New(_)), "its packet ids are other messages'");
}

#[tokio::test]
async fn r10_what_waits_for_no_save_does_not_overtake_what_does() {
    let rig = Rig::new(Version::V5).await;
    let (mut connection, mut far) = rig.connect(false).await;
    let qos = [Qos::ExactlyOnce, Qos::AtLeastOnce, Qos::AtMostOnce, Qos::ExactlyOnce, Qos::AtLeastOnce];
    let sent: Vec<_> = (1..).zip(qos).map(|(n, qos)| Packet::Publish(message_of(n, qos, false))).collect();
    far.say_at_once(&sent.iter().collect::<Vec<_>>()).await;
    let mut came = Vec::new();
    while came.len() < sent.len() {
        let batch = timeout(SOON, connection.receive()).await.unwrap().unwrap();
        came.extend(batch.into_iter().map(|received| received.publication.payload));
    }
    assert_eq!(came, ["1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn r25_an_id_that_was_never_saved_is_saved_before_its_message_is_offered_on_the_next_connection() {
    let rig = Rig::new(Version::V5).await;
    let mut source = rig.source();
    // The first connection ends before it has come to anything.
    drop(rig.connect_by(&mut source, false, &[&message(7, false)]).await);
    let (mut connection, _far) = rig.connect_by(&mut source, true, &[&message(7, true)]).await;
    let given = receive(&mut connection).await.publication.id.unwrap().id;
    assert_eq!(rig.on_disk().arrived(id(7)), Known::Again(given.counter));
}

#[tokio::test]
async fn r25_after_a_kill_a_log_does_not_get_once_more_what_it_has() {
    let rig = Rig::new(Version::V5).await;
    let log = buffer::Config {
        dir: rig.dir.path().join("lake"),
        max_size: ByteSize(1 << 20),
        max_age: None,
        when_full: buffer::WhenFull::Reject,
        sync: buffer::SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: buffer::Compression::None,
        keep_delivered: None,
    };
    let (lanes, _) = Lanes::open(&log, 1, &[], &crate::clock::system()).unwrap();
    let from = hub::Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: false };
    let offer = async |hub: &Hub, publication| {
        hub.offer(&from, vec![publication]).await.remove(0).unwrap().settled().await.unwrap();
    };
    // Of three that had come only the first two were appended when the kill came, and none was acknowledged.
    for (session_present, offered, end) in [(false, 2, 2), (true, 3, 3)] {
        let route =
            Route::new("on", vec![From::parse("hq/#", Form::Topic).unwrap()], vec![To::parse("lake/t").unwrap()]);
        let logs = vec![(LinkId::new("lake"), lanes.clone())];
        let (ids, table) = (IdSource::new("here".into(), end), Table::new(vec![route]));
        let hub = Arc::new(Hub::new(ids, table, logs, crate::clock::system()));
        let mut source = rig.source().into_hub(&hub);
        let sent = [7, 8, 9].map(|n| message(n, session_present));
        let (mut connection, _far) = rig.connect_by(&mut source, session_present, &sent.each_ref()).await;
        let mut came = Vec::new();
        while came.len() < sent.len() {
            came.extend(timeout(SOON, connection.receive()).await.unwrap().unwrap());
        }
        for received in came.into_iter().take(offered) {
            offer(&hub, received.publication).await;
        }
        assert_eq!(lanes.lane(buffer::Lane::Normal).end().0, end);
    }
}
