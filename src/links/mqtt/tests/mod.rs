//! Against a real Mosquitto (Debian's package; `/usr/sbin/mosquitto` or in the PATH).

mod exact;
mod exact_source;
mod scripted;

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::client::{self, Direction, Settings};
use super::*;
use crate::buffer::{Offset, Place};
use crate::links::{
    Answer, Identity, LinkError, Outgoing, Received, Sent, Sink, SinkConnection, Source, SourceConnection,
};
use crate::message::tests_support::message;
use crate::message::{Envelope, Qos};
use crate::router::LinkId;
use crate::units::ByteSize;

const SOON: Duration = Duration::from_secs(10);

/// A private broker that ends with the test. No `max_queued_messages 0`: with it, Mosquitto 2.0.11 closes the connection
/// behind each PUBACK that refuses.
pub(in crate::links) struct Mosquitto {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Mosquitto {
    pub(in crate::links) async fn start(more: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = TempDir::new().unwrap();
        let config = format!(
            "user root\nlistener {port} 127.0.0.1\nlog_dest stderr\nlog_type information\nlog_type error\n\
             persistence true\npersistence_location {}/\n{more}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let child = Self::spawn(&dir).await;
        Self { child, dir, port }
    }

    async fn spawn(dir: &TempDir) -> Child {
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("mosquitto")
            .env("PATH", path)
            .arg("-c")
            .arg(dir.path().join("mosquitto.conf"))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto (apt-get install mosquitto)");
        let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
        let running = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("running") {
                    return;
                }
            }
            panic!("mosquitto ended");
        };
        timeout(SOON, running).await.unwrap();
        child
    }

    pub(in crate::links) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(in crate::links) async fn start_again(&mut self) {
        self.child = Self::spawn(&self.dir).await;
    }

    pub(in crate::links) fn config(&self, version: Version) -> Config {
        config_of(self.port, version)
    }
}

pub(super) fn address(port: u16) -> Address {
    Address { host: "127.0.0.1".into(), port, tls: false, websocket: None }
}

pub(super) fn config_of(port: u16, version: Version) -> Config {
    Config {
        addresses: vec![address(port)],
        fail_back: Duration::from_secs(60),
        tls: crate::links::Tls::default(),
        version,
        qos: Qos::AtLeastOnce,
        client_id: None,
        user: None,
        password: crate::links::Secret::None,
        state_topic: None,
        keep_alive_s: 30,
        max_packet_size: ByteSize(1 << 20),
        arrivals: None,
    }
}

/// Whether to do without a Mosquitto, because `TIDEGATE_WITHOUT` names it (`tests/run.sh --without mosquitto`). It is said in
/// the file that `tests/run.sh` shows at its end.
pub(in crate::links) fn left_out() -> bool {
    let without = std::env::var("TIDEGATE_WITHOUT").unwrap_or_default();
    if !without.split([',', ' ']).any(|name| name == "mosquitto") {
        return false;
    }
    if let Some(list) = std::env::var_os("TIDEGATE_TESTS_LEFT_OUT") {
        let mut list = std::fs::File::options().create(true).append(true).open(list).unwrap();
        let thread = std::thread::current();
        let line = format!("{}: without mosquitto\n", thread.name().unwrap_or("a test"));
        std::io::Write::write_all(&mut list, line.as_bytes()).unwrap();
    }
    true
}

/// To a remote broker of this version, and from there.
pub(in crate::links) fn hop(record: &Outgoing, version: Version) -> crate::hub::Publication {
    let site = (version == Version::V5).then_some("here");
    let publish = client::Publish::of(record, site, Qos::ExactlyOnce);
    let (topic, payload, retain) = (publish.topic.clone(), publish.payload.clone(), publish.retain);
    let inbound = match version {
        Version::V5 => {
            let qos = v5::wire_qos(publish.qos);
            let mut packet = rumqttc_v5::Publish::new(topic, qos, payload, Some(v5::properties(publish)));
            packet.retain = retain;
            v5::received(packet)
        }
        Version::V4 => {
            let mut packet = rumqttc_v4::Publish::new(topic, v4::wire_qos(publish.qos), payload);
            packet.retain = retain;
            v4::received(packet)
        }
    };
    let topic = crate::topic::TopicName::new(std::str::from_utf8(&inbound.topic).unwrap()).unwrap();
    inbound.publication(topic)
}

pub(in crate::links) fn identity() -> Identity {
    Identity { site: "here".into(), link: LinkId::new("hq") }
}

fn sink(config: &Config) -> MqttSink {
    MqttSink::new(config, &identity(), true)
}

fn source(config: &Config, filters: &[&str]) -> MqttSource {
    MqttSource::new(config, filters.iter().map(|&filter| filter.to_owned()).collect(), &identity(), true)
}

async fn connect_sink(config: &Config) -> MqttSinkConnection {
    timeout(SOON, sink(config).connect()).await.unwrap().unwrap()
}

async fn connect_source(config: &Config, filters: &[&str]) -> MqttSourceConnection {
    timeout(SOON, source(config, filters).connect()).await.unwrap().unwrap()
}

pub(super) fn outgoing(offset: u64, topic: &str) -> Outgoing {
    let mut message = message(topic, b"");
    message.payload = Bytes::from(offset.to_string());
    message.properties.user = vec![("colour".into(), "blue".into()), ("tg-hops".into(), "3".into())];
    message.properties.content_type = Some("text/plain".into());
    let envelope = Envelope { destination: topic.into(), key: None, ordinal: 0, failure: None, batch: None, message };
    let (place, seq) = (Place { offset: Offset(offset), ..Place::default() }, format!("cafe0001-0-{offset}"));
    Outgoing { place, seq, backfill: false, envelope, expiry_left_s: Some(60), expired_before: 0 }
}

fn send(connection: &mut MqttSinkConnection, record: Outgoing) {
    let sent = connection.send(record).unwrap();
    assert!(matches!(sent, Sent::Queued), "{sent:?}");
}

/// The next answer that is more than a sign of life.
async fn answer(connection: &mut MqttSinkConnection) -> Result<Answer, LinkError> {
    loop {
        match timeout(SOON, connection.answer()).await.unwrap() {
            Ok(Answer::Alive) => {}
            other => return other,
        }
    }
}

async fn confirmed(connection: &mut MqttSinkConnection, offsets: std::ops::Range<u64>) {
    let mut open = offsets.collect::<std::collections::BTreeSet<_>>();
    while !open.is_empty() {
        match answer(connection).await.unwrap() {
            Answer::Confirmed(place) => assert!(open.remove(&place.offset.0)),
            other @ (Answer::Refused(..) | Answer::Retry(..) | Answer::Blocked(_) | Answer::Alive) => {
                panic!("{other:?}")
            }
        }
    }
}

/// `count` messages; acknowledges those whose index `acknowledge` names.
async fn receive(connection: &mut MqttSourceConnection, count: usize) -> Vec<Received<MqttToken>> {
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(timeout(SOON, connection.receive()).await.unwrap().unwrap());
    }
    received
}

fn payloads(received: &[Received<MqttToken>]) -> Vec<String> {
    received.iter().map(|one| String::from_utf8(one.publication.payload.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn what_is_published_is_confirmed_and_arrives_in_order_with_its_properties() {
    if left_out() {
        return;
    }
    let remote = Mosquitto::start("allow_anonymous true").await;
    let config = remote.config(Version::V5);
    let mut inbound = connect_source(&config, &["a/#"]).await;
    let mut outbound = connect_sink(&config).await;
    let window = outbound.window_max().unwrap();
    assert_eq!(window, 20, "Mosquitto's Receive Maximum");
    for first in (0..100_u64).step_by(window) {
        let some = first..first + window as u64;
        some.clone().for_each(|offset| send(&mut outbound, outgoing(offset, "a/b")));
        confirmed(&mut outbound, some).await;
    }
    let received = receive(&mut inbound, 100).await;
    assert_eq!(payloads(&received), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    let first = &received[0].publication;
    assert_eq!((first.topic.as_str(), first.qos, first.expiry_s), ("a/b", Qos::AtLeastOnce, Some(60)));
    assert_eq!(first.properties.content_type.as_deref(), Some("text/plain"));
    let user = first.properties.user.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>();
    assert_eq!(user[0], ("colour", "blue"));
    assert!(user.contains(&("tg-seq", "cafe0001-0-0")) && user.contains(&("tg-path", "here")), "{user:?}");
    assert_eq!(user.iter().filter(|(name, _)| *name == "tg-hops").count(), 1, "{user:?}");
    for one in received {
        inbound.settled(one.token).unwrap();
    }
    outbound.close().await;
    inbound.close().await;
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_and_changed_filters_reach_a_kept_session() {
    if left_out() {
        return;
    }
    for version in [Version::V5, Version::V4] {
        let remote = Mosquitto::start("allow_anonymous true").await;
        let config = remote.config(version);
        let mut inbound = connect_source(&config, &["a/#"]).await;
        let mut outbound = connect_sink(&config).await;
        (0..4).for_each(|offset| send(&mut outbound, outgoing(offset, "a/b")));
        confirmed(&mut outbound, 0..4).await;
        let received = receive(&mut inbound, 4).await;
        assert!(received.iter().all(|one| !one.again));
        let (acknowledged, owed): (Vec<_>, Vec<_>) = received.into_iter().enumerate().partition(|(at, _)| *at < 2);
        acknowledged.into_iter().for_each(|(_, one)| inbound.settled(one.token).unwrap());
        inbound.close().await;
        drop(owed);
        // A fresh source knows nothing of the session, as after a restart of the process.
        let mut inbound = connect_source(&config, &["a/#", "c"]).await;
        send(&mut outbound, outgoing(4, "c"));
        confirmed(&mut outbound, 4..5).await;
        let again = receive(&mut inbound, 3).await;
        assert_eq!(payloads(&again), ["2", "3", "4"], "{version:?}");
        assert_eq!(again.iter().map(|one| one.again).collect::<Vec<_>>(), [true, true, false]);
    }
}

/// Mosquitto 2.0.11 sends all that a kept session is owed at once, and answers SUBSCRIBE behind it: a source that waits for the
/// answer first never comes online again.
#[tokio::test]
async fn what_a_kept_session_is_owed_may_come_before_the_suback() {
    const OWED: u64 = 3_000;
    for version in [Version::V5, Version::V4] {
        let remote = Mosquitto::start("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0").await;
        let config = remote.config(version);
        connect_source(&config, &["a/#"]).await.close().await;
        let mut outbound = connect_sink(&config).await;
        for first in (0..OWED).step_by(100) {
            (first..first + 100).for_each(|offset| send(&mut outbound, outgoing(offset, "a/b")));
            confirmed(&mut outbound, first..first + 100).await;
        }
        let mut inbound = connect_source(&config, &["a/#", "c"]).await;
        let mut expected = 0;
        while expected < OWED {
            for one in timeout(SOON, inbound.receive()).await.unwrap().unwrap() {
                assert_eq!(one.publication.payload, expected.to_string(), "{version:?}");
                inbound.settled(one.token).unwrap();
                expected += 1;
            }
        }
        // The SUBACK was looked at, too: what the new filter matches comes.
        send(&mut outbound, outgoing(OWED, "c"));
        confirmed(&mut outbound, OWED..OWED + 1).await;
        assert_eq!(payloads(&receive(&mut inbound, 1).await), [OWED.to_string()]);
    }
}

#[tokio::test]
async fn a_killed_remote_ends_the_connection_and_a_new_one_can_be_made() {
    if left_out() {
        return;
    }
    for version in [Version::V5, Version::V4] {
        let mut remote = Mosquitto::start("allow_anonymous true").await;
        let config = remote.config(version);
        let mut outbound = connect_sink(&config).await;
        send(&mut outbound, outgoing(0, "a"));
        confirmed(&mut outbound, 0..1).await;
        remote.kill().await;
        assert!(matches!(answer(&mut outbound).await, Err(LinkError::Transient(_))));
        let refused = timeout(SOON, sink(&config).connect()).await.unwrap().unwrap_err();
        assert!(matches!(&refused, LinkError::Transient(words) if words.contains("refused")), "{refused}");
        remote.start_again().await;
        let mut outbound = connect_sink(&config).await;
        send(&mut outbound, outgoing(1, "a"));
        confirmed(&mut outbound, 1..2).await;
    }
}

#[tokio::test]
async fn a_login_that_is_not_taken_is_a_misconfiguration_in_the_remotes_words() {
    if left_out() {
        return;
    }
    let remote = Mosquitto::start("allow_anonymous false").await;
    for version in [Version::V5, Version::V4] {
        let config = Config {
            user: Some("me".into()),
            password: crate::links::Secret::Text("wrong".into()),
            ..remote.config(version)
        };
        let refused = timeout(SOON, sink(&config).connect()).await.unwrap().unwrap_err();
        let LinkError::Misconfigured(words) = refused else { panic!("{refused:?}") };
        assert!(words.contains("NotAuthorized") || words.contains("BadUserNamePassword"), "{words}");
        assert!(!words.contains("wrong"), "{words}");
    }
}

#[tokio::test]
async fn what_the_remote_never_takes_is_refused_before_it_is_sent() {
    if left_out() {
        return;
    }
    let remote = Mosquitto::start("allow_anonymous true\nmax_packet_size 2000").await;
    let mut outbound = connect_sink(&remote.config(Version::V5)).await;
    let mut large = outgoing(0, "a");
    large.envelope.message.payload = Bytes::from(vec![b'x'; 2000]);
    assert!(matches!(outbound.send(large).unwrap(), Sent::Refused(reason) if reason.contains("2000")));
    let mut wildcard = outgoing(1, "a");
    wildcard.envelope.destination = "a/#".into();
    assert!(matches!(outbound.send(wildcard).unwrap(), Sent::Refused(_)));
    // From a header of RabbitMQ or Kafka, where it may be.
    let mut nul = outgoing(2, "a");
    nul.envelope.message.properties.user = vec![("k".into(), "a\0b".into())];
    assert!(
        matches!(outbound.send(nul).unwrap(), Sent::Refused(reason) if reason.contains("`k` is a text with a NUL"))
    );
    send(&mut outbound, outgoing(3, "a"));
    confirmed(&mut outbound, 3..4).await;
}

#[tokio::test]
async fn a_publish_without_permission_is_refused_with_the_remotes_reason() {
    if left_out() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let acl = dir.path().join("acl");
    std::fs::write(&acl, "topic readwrite open/#\n").unwrap();
    let remote = Mosquitto::start(&format!("allow_anonymous true\nacl_file {}", acl.display())).await;
    let mut outbound = connect_sink(&remote.config(Version::V5)).await;
    send(&mut outbound, outgoing(0, "closed"));
    let refused = answer(&mut outbound).await.unwrap();
    assert!(
        matches!(&refused, Answer::Refused(Place { offset: Offset(0), .. }, reason) if reason.contains("NotAuthorized")),
        "{refused:?}"
    );
    send(&mut outbound, outgoing(1, "open/a"));
    confirmed(&mut outbound, 1..2).await;
}

#[tokio::test]
async fn qos_2_links_publish_and_receive() {
    if left_out() {
        return;
    }
    for version in [Version::V5, Version::V4] {
        let remote = Mosquitto::start("allow_anonymous true").await;
        let config = Config { qos: Qos::ExactlyOnce, ..remote.config(version) };
        let mut inbound = connect_source(&config, &["a"]).await;
        let mut outbound = connect_sink(&config).await;
        let mut exact = outgoing(0, "a");
        exact.envelope.message.qos = Qos::ExactlyOnce;
        send(&mut outbound, exact);
        confirmed(&mut outbound, 0..1).await;
        for one in receive(&mut inbound, 1).await {
            assert_eq!(one.publication.qos, Qos::ExactlyOnce);
            inbound.settled(one.token).unwrap();
        }
        inbound.close().await;
        let mut inbound = connect_source(&config, &["a"]).await;
        send(&mut outbound, outgoing(1, "a"));
        assert_eq!(payloads(&receive(&mut inbound, 1).await), ["1"], "nothing comes twice");
    }
}

#[tokio::test]
async fn r21_a_reconnect_does_not_bring_retained_messages_again_and_they_keep_their_flag() {
    if left_out() {
        return;
    }
    let remote = Mosquitto::start("allow_anonymous true").await;
    let config = remote.config(Version::V5);
    let mut outbound = connect_sink(&config).await;
    let retained = |offset| {
        let mut record = outgoing(offset, "a/b");
        record.envelope.message.retain = true;
        record
    };
    send(&mut outbound, retained(0));
    confirmed(&mut outbound, 0..1).await;
    let mut inbound = connect_source(&config, &["a/#"]).await;
    let mut received = receive(&mut inbound, 1).await;
    send(&mut outbound, retained(1));
    confirmed(&mut outbound, 1..2).await;
    received.extend(receive(&mut inbound, 1).await);
    assert_eq!(payloads(&received), ["0", "1"]);
    assert!(received.iter().all(|one| one.publication.retain), "of a new subscription, and live");
    received.into_iter().for_each(|one| inbound.settled(one.token).unwrap());
    inbound.close().await;
    let mut inbound = connect_source(&config, &["a/#"]).await;
    send(&mut outbound, outgoing(2, "a/b"));
    confirmed(&mut outbound, 2..3).await;
    let received = receive(&mut inbound, 1).await;
    assert_eq!((payloads(&received), received[0].publication.retain), (vec!["2".to_owned()], false));
}

/// Reads an MQTT packet: its first byte and what follows the length.
async fn packet(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let head = stream.read_u8().await.unwrap();
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.unwrap();
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head, body)
}

/// A remote that takes two aliases.
#[tokio::test]
async fn a_topic_is_sent_once_and_its_alias_from_then_on() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Config { addresses: vec![address(port)], ..config_of(port, Version::V5) };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(packet(&mut stream).await.0, 0x10);
        // CONNACK, Topic Alias Maximum 2.
        stream.write_all(&[0x20, 6, 0, 0, 3, 0x22, 0, 2]).await.unwrap();
        let mut topics = Vec::new();
        for _ in 0..3 {
            let (head, body) = packet(&mut stream).await;
            assert_eq!(head & 0xF0, 0x30);
            topics.push(usize::from(u16::from_be_bytes([body[0], body[1]])));
        }
        topics
    };
    let client = async {
        let mut connection = connect_sink(&config).await;
        (0..3).for_each(|offset| send(&mut connection, outgoing(offset, "plant/line/7/telemetry")));
        answer(&mut connection).await
    };
    let topics = tokio::select! {
        topics = timeout(SOON, server) => topics.unwrap(),
        ended = client => panic!("{ended:?}"),
    };
    assert_eq!(topics, [22, 0, 0], "bytes of topic in each PUBLISH");
}

/// AWS IoT on port 443 tells MQTT from HTTP by the protocol that is offered.
#[tokio::test]
async fn the_protocols_and_the_name_that_are_configured_are_what_the_remote_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let params = rcgen::CertificateParams::new(["hq.example".to_owned()]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut tls =
        rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
    tls.alpn_protocols = vec![b"x-amzn-mqtt-ca".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    let config = Config {
        addresses: vec![Address { tls: true, ..address(port) }],
        tls: crate::links::Tls {
            ca: Some(dir.path().join("ca.pem")),
            identity: None,
            server_name: Some("hq.example".to_owned()),
            alpn: vec!["mqtt".to_owned(), "x-amzn-mqtt-ca".to_owned()],
        },
        ..config_of(port, Version::V5)
    };
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        assert_eq!(packet(&mut stream).await.0, 0x10, "CONNECT");
        let (_, session) = stream.get_ref();
        (session.alpn_protocol().map(<[u8]>::to_vec), session.server_name().map(str::to_owned))
    };
    let mut sink = sink(&config);
    let seen = tokio::select! {
        seen = timeout(SOON, server) => seen.unwrap(),
        connected = sink.connect() => panic!("{}", connected.unwrap_err()),
    };
    assert_eq!(seen, (Some(b"x-amzn-mqtt-ca".to_vec()), Some("hq.example".to_owned())));
}

#[test]
fn r25_a_link_that_is_used_both_ways_has_two_client_ids() {
    let config =
        |client_id: Option<&str>| Config { client_id: client_id.map(str::to_owned), ..config_of(1883, Version::V5) };
    for (client_id, direction, both, want) in [
        (None, Direction::Out, false, "here-hq"),
        (None, Direction::Out, true, "here-hq-out"),
        (Some("plant"), Direction::In, true, "plant-in"),
        (Some("plant"), Direction::In, false, "plant"),
    ] {
        assert_eq!(Settings::new(&config(client_id), &identity(), direction, both).client_id, want);
    }
}
