//! Unix sockets, and clients behind a proxy.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::support::*;
use crate::broker::{Bind, Config, Listener, ProxyTerms};
use crate::message::Qos;
use crate::router::Table;

/// TCP, and the listener under test.
async fn rig(dir: &tempfile::TempDir, config: Config) -> Rig {
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

fn anonymous() -> Listener {
    Listener { anonymous: true, ..Listener::tcp(([127, 0, 0, 1], 0).into()) }
}

#[tokio::test]
async fn a_unix_socket_carries_large_messages_to_clients_of_tcp_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt.sock");
    let unix = Listener { bind: Bind::Unix { path: path.clone(), mode: 0o600 }, ..anonymous() };
    let rig = rig(&dir, Config { listeners: vec![anonymous(), unix], ..Config::default() }).await;
    let stream = UnixStream::connect(&path).await.unwrap();
    let mut local = Peer::over(Box::new(stream), connect("local")).await.0;
    let mut remote = rig.peer("remote").await;
    local.subscribe("down", Qos::AtMostOnce).await;
    remote.subscribe("up", Qos::AtMostOnce).await;
    let payload = "x".repeat(900 << 10);
    local.deliver("up", &payload, Qos::AtLeastOnce, 1).await;
    assert_eq!(remote.publication().await.payload.len(), payload.len());
    remote.deliver("down", &payload, Qos::AtLeastOnce, 1).await;
    assert_eq!(local.publication().await.payload.len(), payload.len());
    rig.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_in_use_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt.sock");
    let _live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let rig = Rig::start(dir.path()).await;
    let unix = Listener { bind: Bind::Unix { path: path.clone(), mode: 0o600 }, ..anonymous() };
    let other = tempfile::tempdir().unwrap();
    let config = Config { listeners: vec![unix], ..Config::default() };
    let (hub, board) = (std::sync::Arc::clone(&rig.hub), std::sync::Arc::clone(&rig.board));
    let broker = crate::broker::Broker::open(config, other.path(), hub, board, crate::clock::system()).unwrap();
    let error = broker.bind().await.unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()) && error.contains("another process serves"), "{error}");
    rig.stop().await;
}

async fn proxied(rig: &Rig, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(header).await.unwrap();
    stream
}

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\x0A\0\0\x01\xC0\0\x07\x5B";

#[tokio::test]
async fn behind_a_proxy_each_connection_begins_with_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener { proxy_protocol: Some(ProxyTerms::default()), ..anonymous() };
    let rig = rig(&dir, Config { listeners: vec![listener], ..Config::default() }).await;
    for header in [&b"PROXY TCP4 192.0.2.7 10.0.0.1 49152 1883\r\n"[..], b"PROXY UNKNOWN\r\n", V2] {
        let stream = proxied(&rig, header).await;
        Peer::over(Box::new(stream), connect("one")).await.0.expect_silence().await;
    }
    // In pieces.
    let mut stream = proxied(&rig, &V2[..5]).await;
    stream.set_nodelay(true).unwrap();
    for byte in &V2[5..] {
        stream.write_all(&[*byte]).await.unwrap();
    }
    Peer::over(Box::new(stream), connect("one")).await.0.expect_silence().await;
    for wrong in
        [&b"\x10\x0C\0\x04MQTT\x05\x02\0\x3C\0\0\0"[..], b"PROXY TCP9 a b c d\r\n", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0"]
    {
        let mut stream = proxied(&rig, wrong).await;
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty(), "{answer:02X?}");
    }
    assert_eq!(rig.board.snapshot().refused.get("proxy_header"), Some(&3));
    rig.stop().await;
}

#[tokio::test]
async fn a_header_that_does_not_come_ends_the_connection_at_the_timeout_and_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener { proxy_protocol: Some(ProxyTerms::default()), ..anonymous() };
    let connect_timeout = Duration::from_millis(300);
    let config = Config { listeners: vec![anonymous(), listener], connect_timeout, ..Config::default() };
    let rig = rig(&dir, config).await;
    let mut slow = Vec::new();
    for n in 0..30 {
        let mut stream = TcpStream::connect(rig.addresses[1].address().unwrap()).await.unwrap();
        stream.write_all([&b""[..], b"PROXY TCP4 1.2.3.4", &V2[..20]][n % 3]).await.unwrap();
        slow.push(stream);
    }
    rig.peer("quick").await.expect_silence().await;
    for mut stream in slow {
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{rest:02X?}");
    }
    assert_eq!(rig.board.snapshot().refused.get("handshake_timeout"), Some(&30));
    rig.stop().await;
}

#[tokio::test]
async fn a_header_from_who_is_no_proxy_of_ours_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let terms = |from: &[&str]| ProxyTerms { from: from.iter().map(|network| network.parse().unwrap()).collect() };
    let listener = |from: &[&str]| Listener { proxy_protocol: Some(terms(from)), ..anonymous() };
    let listeners = vec![listener(&["192.0.2.0/24", "::1"]), listener(&["192.0.2.0/24", "127.0.0.0/8"])];
    let rig = rig(&dir, Config { listeners, ..Config::default() }).await;
    // Closed before it has said a word, whatever it would have said.
    for header in [&b""[..], V2] {
        let mut stream = proxied(&rig, header).await;
        let mut answer = Vec::new();
        // What it sent and nobody read may come back as a reset.
        drop(soon(stream.read_to_end(&mut answer)).await);
        assert!(answer.is_empty(), "{answer:02X?}");
    }
    let mut trusted = TcpStream::connect(rig.addresses[1].address().unwrap()).await.unwrap();
    trusted.write_all(V2).await.unwrap();
    Peer::over(Box::new(trusted), connect("one")).await.0.expect_silence().await;
    let refused = rig.board.snapshot().refused;
    assert_eq!((refused.get("proxy_untrusted"), refused.get("proxy_header")), (Some(&2), None));
    rig.stop().await;
}
