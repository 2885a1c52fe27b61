//! Clients over TLS: versions, certificates, revocation, what is read again, and handshakes that never end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::{Authority, Identity};
use super::support::*;
use super::websocket;
use crate::broker::{CertificateUser, ClientCert, Config, Listener, TlsConfig, TlsVersions, WebSocketTerms, auth};
use crate::message::Qos;
use crate::router::Table;
use crate::wire::{Connect, Disconnect, DisconnectProperties, Packet, ReasonCode};

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];
const ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A folder with a server's files.
struct Files {
    dir: tempfile::TempDir,
    ca: Authority,
}

impl Files {
    fn new() -> Self {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new("Servers"));
        let files = Self { dir, ca };
        files.serve(&files.ca.server());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a server's certificate and key in place.
    fn serve(&self, server: &Identity) {
        fs::write(self.path("cert"), &server.cert).unwrap();
        fs::write(self.path("key"), &server.key).unwrap();
    }

    fn terms(&self) -> TlsConfig {
        TlsConfig {
            cert: self.path("cert"),
            key: self.path("key"),
            client_ca: None,
            crl: None,
            client_cert: ClientCert::Required,
            versions: TlsVersions::From12,
        }
    }

    /// The same with an authority of clients.
    fn mutual(&self, clients: &Authority) -> TlsConfig {
        fs::write(self.path("client_ca"), &clients.pem).unwrap();
        TlsConfig { client_ca: Some(self.path("client_ca")), ..self.terms() }
    }

    async fn rig(&self, tls: TlsConfig) -> Rig {
        let listener = Listener { anonymous: true, tls: Some(tls), ..Listener::tcp(([127, 0, 0, 1], 0).into()) };
        let config = Config { listeners: vec![listener], ..Config::default() };
        rig(self.dir.path(), config).await
    }
}

async fn rig(dir: &Path, config: Config) -> Rig {
    let store = dir.join("store");
    fs::create_dir_all(&store).unwrap();
    Rig::with(&store, config, Table::default(), Vec::new()).await
}

fn client(ca: &Authority, identity: Option<&Identity>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key, .. }) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    }
}

async fn open(rig: &Rig, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(rig.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn peer(rig: &Rig, config: ClientConfig, id: &str) -> Peer {
    Peer::over(Box::new(open(rig, config).await.unwrap()), connect(id)).await.0
}

/// In TLS 1.3 a client hears only after its own last word that it is refused.
async fn is_refused(rig: &Rig, config: ClientConfig) -> String {
    let mut stream = match open(rig, config).await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    soon(stream.read_u8()).await.expect_err("it is refused").to_string()
}

#[tokio::test]
async fn both_versions_carry_large_messages_both_ways() {
    let files = Files::new();
    let rig = files.rig(files.terms()).await;
    let payload = "x".repeat(900 << 10);
    for (n, versions) in [ONLY_12, &[&rustls::version::TLS13]].into_iter().enumerate() {
        let mut one = peer(&rig, client(&files.ca, None, versions), &format!("one-{n}")).await;
        one.subscribe("large", Qos::AtLeastOnce).await;
        for id in 1..=3 {
            one.send(Packet::Publish(publish("large", &payload, Qos::AtLeastOnce, id))).await;
        }
        let (mut acknowledged, mut received) = (0, 0);
        while (acknowledged, received) != (3, 3) {
            let packet = one.receive().await;
            if let Packet::Publish(publish) = &packet {
                assert_eq!(publish.payload.len(), payload.len());
                received += 1;
                one.send(Packet::Puback(crate::wire::Ack::success(publish.id.unwrap()))).await;
            } else {
                assert!(matches!(packet, Packet::Puback(_)), "{packet:?}");
                acknowledged += 1;
            }
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn only_1_3_is_only_1_3() {
    let files = Files::new();
    let rig = files.rig(TlsConfig { versions: TlsVersions::Only13, ..files.terms() }).await;
    let refused = open(&rig, client(&files.ca, None, ONLY_12)).await.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    peer(&rig, client(&files.ca, None, BOTH), "one").await.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn mqtt_is_named_to_a_client_that_asks_and_other_names_keep_nobody_out() {
    let files = Files::new();
    let rig = files.rig(files.terms()).await;
    for (offered, chosen) in [
        (&[&b"mqtt"[..]][..], Some(&b"mqtt"[..])),
        (&[b"x-amzn-mqtt-ca", b"mqtt"], Some(b"mqtt")),
        (&[b"x-amzn-mqtt-ca"], None),
        (&[], None),
    ] {
        let mut config = client(&files.ca, None, BOTH);
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let stream = open(&rig, config).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
    }
    rig.stop().await;
}

#[tokio::test]
async fn websocket_over_tls_carries_large_messages_and_is_named_as_http() {
    let files = Files::new();
    let listener = Listener {
        anonymous: true,
        tls: Some(files.terms()),
        websocket: Some(WebSocketTerms::default()),
        ..Listener::tcp(([127, 0, 0, 1], 0).into())
    };
    let rig = rig(files.dir.path(), Config { listeners: vec![listener], ..Config::default() }).await;
    let mut config = client(&files.ca, None, BOTH);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = open(&rig, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut one = websocket::Client::over(Box::new(stream), "one").await;
    let payload = "x".repeat(900 << 10);
    for id in 1..=3 {
        one.send_packet(Packet::Publish(publish("large", &payload, Qos::AtLeastOnce, id))).await;
        assert_eq!(one.packet().await, Packet::Puback(ack(id)));
    }
    rig.stop().await;
}

#[tokio::test]
async fn the_end_is_said_by_close_notify() {
    let files = Files::new();
    let rig = files.rig(files.terms()).await;
    let mut one = peer(&rig, client(&files.ca, None, BOTH), "one").await;
    let mut two = peer(&rig, client(&files.ca, None, ONLY_12), "two").await;
    let bye = Disconnect { code: ReasonCode::Success, properties: DisconnectProperties::default() };
    two.send(Packet::Disconnect(bye)).await;
    assert_eq!(soon(two.stream.read(&mut [0; 16])).await.unwrap(), 0);
    rig.stop().await;
    assert!(matches!(one.receive().await, Packet::Disconnect(_)));
    // Without it rustls answers UnexpectedEof.
    assert_eq!(soon(one.stream.read(&mut [0; 16])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_has_to_show_a_certificate_of_the_authority_that_is_neither_revoked_nor_over() {
    let (files, clients, others) = (Files::new(), Authority::new("Clients"), Authority::new("Others"));
    let (good, bad) = (clients.client("press-7"), clients.client("press-8"));
    fs::write(files.path("crl"), clients.revoke(&[&bad])).unwrap();
    let tls = TlsConfig { crl: Some(files.path("crl")), ..files.mutual(&clients) };
    let rig = files.rig(tls).await;
    for versions in [BOTH, ONLY_12] {
        let with = |identity: Option<&Identity>| client(&files.ca, identity, versions);
        peer(&rig, with(Some(&good)), "good").await.expect_silence().await;
        for (identity, words) in [
            (None, "CertificateRequired"),
            (Some(others.client("press-7")), "UnknownC"),
            (Some(bad.clone()), "CertificateRevoked"),
            (Some(clients.expired("press-9")), "CertificateExpired"),
        ] {
            let refused = is_refused(&rig, with(identity.as_ref())).await;
            // TLS 1.2 has no alert of its own for a missing certificate.
            let expected = refused.contains(words) || (identity.is_none() && refused.contains("HandshakeFailure"));
            assert!(expected, "{words}: {refused}");
        }
    }
    assert_eq!(rig.board.snapshot().refused.get("tls_handshake"), Some(&8));
    rig.stop().await;
}

#[tokio::test]
async fn an_optional_certificate_may_be_missing_but_not_wrong() {
    let (files, clients) = (Files::new(), Authority::new("Clients"));
    let rig = files.rig(TlsConfig { client_cert: ClientCert::Optional, ..files.mutual(&clients) }).await;
    peer(&rig, client(&files.ca, None, BOTH), "one").await.expect_silence().await;
    peer(&rig, client(&files.ca, Some(&clients.client("two")), BOTH), "two").await.expect_silence().await;
    is_refused(&rig, client(&files.ca, Some(&Authority::new("Others").client("three")), BOTH)).await;
    rig.stop().await;
}

#[tokio::test]
async fn r31_a_certificate_names_the_user_and_without_one_nobody_is_let_in_by_a_name() {
    let (files, clients) = (Files::new(), Authority::new("Clients"));
    let tls = TlsConfig { client_cert: ClientCert::Optional, ..files.mutual(&clients) };
    let listener = Listener {
        certificate_user: Some(CertificateUser::CommonName),
        tls: Some(tls),
        ..Listener::tcp(([127, 0, 0, 1], 0).into())
    };
    fs::write(files.path("acl"), "pattern write %u/#\n").unwrap();
    let acl = auth::AclSource::File(files.path("acl"));
    let auth = auth::Config { acl, ..auth::Config::default() };
    let rig = rig(files.dir.path(), Config { listeners: vec![listener], auth, ..Config::default() }).await;
    let claimed = Connect { user: Some("press-8".into()), ..connect("one") };
    let stream = open(&rig, client(&files.ca, Some(&clients.client("press-7")), BOTH)).await.unwrap();
    let (mut press, connack) = Peer::over(Box::new(stream), claimed.clone()).await;
    assert_eq!(connack.code, ReasonCode::Success);
    press.deliver("press-7/temp", "1", Qos::AtLeastOnce, 1).await;
    press.send(Packet::Publish(publish("press-8/temp", "2", Qos::AtLeastOnce, 2))).await;
    let Packet::Puback(refused) = press.receive().await else { panic!("no PUBACK") };
    assert_eq!(refused.code, ReasonCode::NotAuthorized);
    for (identity, code) in [(None, ReasonCode::NotAuthorized), (Some(clients.client("")), ReasonCode::NotAuthorized)] {
        let stream = open(&rig, client(&files.ca, identity.as_ref(), BOTH)).await.unwrap();
        assert_eq!(Peer::over(Box::new(stream), claimed.clone()).await.1.code, code);
    }
    rig.stop().await;
}

#[tokio::test]
async fn new_files_count_for_the_next_connection_and_wrong_ones_for_none() {
    let (files, clients) = (Files::new(), Authority::new("Clients"));
    let press = clients.client("press-7");
    fs::write(files.path("crl"), clients.revoke(&[])).unwrap();
    let rig = files.rig(TlsConfig { crl: Some(files.path("crl")), ..files.mutual(&clients) }).await;
    let config = |ca: &Authority| client(ca, Some(&press), BOTH);
    let mut first = peer(&rig, config(&files.ca), "first").await;

    // Another server's certificate, and the client's is revoked after that.
    let next = Authority::new("Servers, the next");
    files.serve(&next.server());
    rig.broker.reload();
    soon(async { while open(&rig, config(&next)).await.is_err() {} }).await;
    peer(&rig, config(&next), "second").await.expect_silence().await;
    first.expect_silence().await;

    // A key that does not belong to it leaves all as it is.
    fs::write(files.path("key"), &Authority::new("x").server().key).unwrap();
    rig.broker.reload();
    rig.until("the mistake is known", |rig| !rig.broker.reload_errors().is_empty()).await;
    let errors = rig.broker.reload_errors();
    assert!(errors[0].contains("this key does not belong to the certificate"), "{errors:?}");
    peer(&rig, config(&next), "third").await.expect_silence().await;

    files.serve(&next.server());
    fs::write(files.path("crl"), clients.revoke(&[&press])).unwrap();
    rig.broker.reload();
    rig.until("the mistake is gone", |rig| rig.broker.reload_errors().is_empty()).await;
    let refused = is_refused(&rig, config(&next)).await;
    assert!(refused.contains("CertificateRevoked"), "{refused}");
    first.expect_silence().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_thousand_slow_handshakes_keep_nobody_out() {
    let files = Files::new();
    let listener = Listener { anonymous: true, tls: Some(files.terms()), ..Listener::tcp(([127, 0, 0, 1], 0).into()) };
    let config = Config { listeners: vec![listener], connect_timeout: Duration::from_secs(600), ..Config::default() };
    let rig = rig(files.dir.path(), config).await;
    let slow = slow(&rig, 1_000).await;
    peer(&rig, client(&files.ca, None, BOTH), "quick").await.expect_silence().await;
    drop(slow);
    rig.stop().await;
}

#[tokio::test]
async fn slow_handshakes_end_at_the_timeout() {
    let files = Files::new();
    let listener = Listener { anonymous: true, tls: Some(files.terms()), ..Listener::tcp(([127, 0, 0, 1], 0).into()) };
    let timeout = Duration::from_millis(300);
    let config = Config { listeners: vec![listener], connect_timeout: timeout, ..Config::default() };
    let rig = rig(files.dir.path(), config).await;
    for mut stream in slow(&rig, 24).await {
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{rest:02X?}");
    }
    assert_eq!(rig.board.snapshot().refused.get("handshake_timeout"), Some(&24));
    rig.stop().await;
}

/// Connections that say nothing, or the beginning of a ClientHello of 512 bytes.
async fn slow(rig: &Rig, count: usize) -> Vec<TcpStream> {
    let mut slow = Vec::new();
    for n in 0..count {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let beginning = &b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03"[..n % 12];
        stream.write_all(beginning).await.unwrap();
        slow.push(stream);
    }
    slow
}

#[tokio::test]
async fn what_is_no_tls_is_refused_at_once_with_an_alert() {
    let files = Files::new();
    let rig = files.rig(files.terms()).await;
    for noise in [&b"\x10\x0C\0\x04MQTT\x05\x02\0\x3C\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xFF; 4_096]] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer.first(), Some(&0x15), "an alert: {answer:02X?}");
    }
    // A handshake that never comes to its end, but goes on and on.
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let record = [&b"\x16\x03\x01\x40\x00\x01\xFF\xFF\xFF"[..], &[0; 0x4000 - 4]].concat();
    let flood = async { while stream.write_all(&record).await.is_ok() {} };
    soon(flood).await;
    rig.stop().await;
}
