//! Clients over WebSocket, by raw frames: MQTT's packets and WebSocket's frames need not begin and end together.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use crate::broker::{Config, Listener, WebSocketTerms};
use crate::message::Qos;
use crate::router::Table;
use crate::units::ByteSize;
use crate::wire::{Decoder, Packet, PacketId, ReasonCode, Subscribe, SubscribeOptions, Subscription, Version, encode};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const FINAL: u8 = 0x80;

async fn rig(dir: &tempfile::TempDir, terms: WebSocketTerms) -> Rig {
    let listener = Listener { anonymous: true, websocket: Some(terms), ..Listener::tcp(([127, 0, 0, 1], 0).into()) };
    let config = Config { listeners: vec![listener], max_packet_size: ByteSize(1 << 20), ..Config::default() };
    Rig::with(dir.path(), config, Table::default(), Vec::new()).await
}

/// The lines of a request that may be left out or changed.
fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

const MQTT: &str = "Sec-WebSocket-Protocol: mqtt\r\n";

/// A frame as clients send it: masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let mut out = vec![first];
    match payload.len() {
        short @ 0..126 => out.push(0x80 | u8::try_from(short).unwrap()),
        middle @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(middle).unwrap().to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend(u64::try_from(long).unwrap().to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    out
}

fn bytes_of(packets: &[Packet]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for packet in packets {
        encode(packet, Version::V5, &mut out).unwrap();
    }
    out.to_vec()
}

/// A client of WebSocket.
pub(super) struct Client {
    stream: Box<dyn Pipe>,
    input: BytesMut,
    mqtt: BytesMut,
    decoder: Decoder,
}

impl Client {
    /// The answer to a request, and what comes after it.
    async fn ask(rig: &Rig, request: &str) -> (Self, String) {
        let stream = TcpStream::connect(rig.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::ask_over(Box::new(stream), request).await
    }

    async fn ask_over(mut stream: Box<dyn Pipe>, request: &str) -> (Self, String) {
        stream.write_all(request.as_bytes()).await.unwrap();
        let decoder = Decoder::client(Version::V5, 1 << 24);
        let mut client = Self { stream, input: BytesMut::new(), mqtt: BytesMut::new(), decoder };
        loop {
            if let Some(end) = client.input.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = client.input.split_to(end + 4);
                return (client, String::from_utf8(head.to_vec()).unwrap());
            }
            assert_ne!(soon(client.stream.read_buf(&mut client.input)).await.unwrap(), 0, "{:?}", client.input);
        }
    }

    async fn open(rig: &Rig, id: &str) -> Self {
        let stream = TcpStream::connect(rig.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(Box::new(stream), id).await
    }

    /// Over TCP or TLS: the request, and a CONNECT.
    pub(super) async fn over(stream: Box<dyn Pipe>, id: &str) -> Self {
        let (mut client, answer) = Self::ask_over(stream, &request("/mqtt", MQTT)).await;
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
        client.send(&frame(FINAL | BINARY, &bytes_of(&[Packet::Connect(Box::new(connect(id)))]))).await;
        let Packet::Connack(connack) = client.packet().await else { panic!("no CONNACK") };
        assert_eq!(connack.code, ReasonCode::Success);
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame: its first byte and its payload.
    async fn frame(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some((head, length)) = header(&self.input)
                && self.input.len() >= head + length
            {
                let first = self.input[0];
                self.input.advance(head);
                return Some((first, self.input.split_to(length)));
            }
            match soon(self.stream.read_buf(&mut self.input)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends a packet as a message of its own.
    pub(super) async fn send_packet(&mut self, packet: Packet) {
        self.send(&frame(FINAL | BINARY, &bytes_of(&[packet]))).await;
    }

    /// The next packet of MQTT.
    pub(super) async fn packet(&mut self) -> Packet {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.mqtt).unwrap() {
                return packet;
            }
            let (first, payload) = self.frame().await.expect("the connection ended");
            assert_eq!(first, FINAL | BINARY, "MQTT comes in binary messages");
            self.mqtt.extend_from_slice(&payload);
        }
    }

    /// The code of the close frame that has to come next.
    async fn closed(&mut self) -> u16 {
        let (first, payload) = self.frame().await.expect("it is told");
        assert_eq!(first, FINAL | CLOSE, "{payload:?}");
        u16::from_be_bytes([payload[0], payload[1]])
    }
}

/// The lengths of a frame's header and payload.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    match input.get(1)? {
        126 => Some((4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().unwrap())))),
        127 => Some((10, usize::try_from(u64::from_be_bytes(input.get(2..10)?.try_into().unwrap())).unwrap())),
        short => Some((2, usize::from(*short))),
    }
}

#[tokio::test]
async fn packets_span_frames_and_frames_hold_several() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let mut client = Client::open(&rig, "one").await;
    let packets = [
        Packet::Publish(publish("a", "1", Qos::AtLeastOnce, 1)),
        Packet::Publish(publish("a", &"2".repeat(70_000), Qos::AtLeastOnce, 2)),
        Packet::Pingreq,
    ];
    let mqtt = bytes_of(&packets);
    // All in one message; a message in fragments with a ping between; a frame for each some bytes, cut anywhere, byte by byte.
    client.send(&frame(FINAL | BINARY, &mqtt)).await;
    let (a, b) = mqtt.split_at(3);
    client.send(&[frame(BINARY, a), frame(FINAL | PING, b"now"), frame(FINAL | CONTINUATION, b)].concat()).await;
    let pieces: Vec<u8> = mqtt.chunks(9_999).flat_map(|piece| frame(FINAL | BINARY, piece)).collect();
    let (slow, quick) = pieces.split_at(40);
    for byte in slow {
        client.send(&[*byte]).await;
    }
    client.send(quick).await;
    let mut pongs = 0;
    let mut answers = Vec::new();
    while answers.len() < 9 || pongs < 1 {
        let (first, payload) = client.frame().await.unwrap();
        if first == FINAL | PONG {
            assert_eq!(&payload[..], b"now");
            pongs += 1;
            continue;
        }
        client.mqtt.extend_from_slice(&payload);
        while let Some(packet) = client.decoder.decode(&mut client.mqtt).unwrap() {
            answers.push(packet);
        }
    }
    let round = [Packet::Puback(ack(1)), Packet::Puback(ack(2)), Packet::Pingresp];
    for answer in &round {
        assert_eq!(answers.iter().filter(|got| *got == answer).count(), 3, "{answer:?} in {answers:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn large_messages_come_whole_to_a_client_that_reads_late() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let mut client = Client::open(&rig, "one").await;
    let options = SubscribeOptions { qos: Qos::AtLeastOnce, ..SubscribeOptions::default() };
    let subscribe = Subscribe {
        id: PacketId::new(1).unwrap(),
        subscription_id: None,
        user: Vec::new(),
        subscriptions: vec![Subscription { filter: "large".into(), options }],
    };
    client.send(&frame(FINAL | BINARY, &bytes_of(&[Packet::Subscribe(subscribe)]))).await;
    assert!(matches!(client.packet().await, Packet::Suback(_)));
    let payload = "x".repeat(900 << 10);
    for id in 1..=6 {
        let mqtt = bytes_of(&[Packet::Publish(publish("large", &payload, Qos::AtLeastOnce, id))]);
        client.send(&frame(FINAL | BINARY, &mqtt)).await;
    }
    let (mut acknowledged, mut received) = (0, 0);
    while (acknowledged, received) != (6, 6) {
        let packet = client.packet().await;
        if let Packet::Publish(publish) = &packet {
            assert!(publish.payload == payload.as_bytes());
            received += 1;
        } else {
            assert!(matches!(packet, Packet::Puback(_)), "{packet:?}");
            acknowledged += 1;
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_mqtt_over_websocket_is_closed_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let announced = |bytes: u64| [&[FINAL | BINARY, 0x80 | 127][..], &bytes.to_be_bytes(), &[0; 4]].concat();
    let unmasked = [&[FINAL | BINARY, 2][..], b"\xC0\x00"].concat();
    for (sent, code) in [
        (frame(FINAL | TEXT, b"hello"), 1003),
        (announced(2 << 20), 1009),
        (announced(u64::MAX), 1009),
        ([frame(BINARY, &[0; 1 << 20]), frame(CONTINUATION, &[0; 1 << 20])].concat(), 1009),
        (unmasked, 1002),
        (frame(FINAL | CONTINUATION, b""), 1002),
        (frame(FINAL | 0x40 | BINARY, b""), 1002),
        (frame(FINAL | 0x3, b""), 1002),
        (frame(FINAL | PING, &[0; 126]), 1002),
        (frame(FINAL | CLOSE, &1000_u16.to_be_bytes()), 1000),
    ] {
        let mut client = Client::open(&rig, "one").await;
        // The broker may have had enough before the last byte.
        drop(client.stream.write_all(&sent).await);
        assert_eq!(client.closed().await, code, "{:02X?}", &sent[..2]);
        assert!(client.frame().await.is_none(), "and nothing follows");
    }
    // Before a CONNECT nobody may make us hold much.
    let (mut stranger, _) = Client::ask(&rig, &request("/", MQTT)).await;
    stranger.send(&announced(256 << 10)).await;
    assert_eq!(stranger.closed().await, 1009);
    rig.until("all are gone", |rig| rig.board.snapshot().clients == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_flood_of_pings_from_one_who_does_not_read_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let mut flood = Client::open(&rig, "flood").await;
    let pings: Vec<u8> = (0..1_000).flat_map(|_| frame(FINAL | PING, &[b'x'; 125])).collect();
    for _ in 0..40 {
        flood.send(&pings).await;
    }
    let mut other = Client::open(&rig, "other").await;
    other.send(&frame(FINAL | BINARY, &bytes_of(&[Packet::Pingreq]))).await;
    assert_eq!(other.packet().await, Packet::Pingresp);
    flood.send(&frame(FINAL | BINARY, &bytes_of(&[Packet::Pingreq]))).await;
    loop {
        let (first, _payload) = flood.frame().await.expect("it lives");
        if first == FINAL | BINARY {
            break;
        }
    }
    rig.stop().await;
}

/// Paho for Python closes the socket right behind its DISCONNECT, without a close frame.
#[tokio::test]
async fn what_comes_right_before_an_abrupt_end_counts() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let mut client = Client::open(&rig, "one").await;
    let mut last = publish("last", "words", Qos::AtMostOnce, 1);
    last.retain = true;
    // One thread runs all: the broker reads both in one turn.
    client.send_packet(Packet::Publish(last)).await;
    drop(client);
    rig.until("it has gone", |rig| rig.board.snapshot().clients == 0).await;
    assert_eq!(rig.broker.figures().retained, 1);
    rig.stop().await;
}

#[tokio::test]
async fn the_end_is_said_in_mqtt_and_by_a_close_frame() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&dir, WebSocketTerms::default()).await;
    let mut client = Client::open(&rig, "one").await;
    let stopping = rig.stop();
    let watching = async {
        assert!(matches!(client.packet().await, Packet::Disconnect(_)));
        assert_eq!(client.closed().await, 1000);
    };
    tokio::join!(stopping, watching);
}

#[tokio::test]
async fn requests_are_answered_by_what_they_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let terms = WebSocketTerms { path: Some("/mqtt".into()), origins: vec!["https://hmi.example".into()] };
    let rig = rig(&dir, terms).await;
    let long = format!("X-Long: {}\r\n", "x".repeat(9 << 10));
    for (request, status) in [
        (request("/mqtt", MQTT), "101 "),
        (request("/mqtt?token=x", MQTT), "101 "),
        (request("/mqtt", "Sec-WebSocket-Protocol: wamp, mqttv3.1\r\n"), "101 "),
        (request("/mqtt", ""), "101 "),
        (request("/mqtt", &format!("{MQTT}Origin: https://HMI.example\r\n")), "101 "),
        (request("/mqtt", &format!("{MQTT}Origin: https://evil.example\r\n")), "403 "),
        (request("/other", MQTT), "404 "),
        (request("/mqtt", "Sec-WebSocket-Protocol: wamp\r\n"), "400 "),
        ("GET /mqtt HTTP/1.1\r\nHost: edge\r\n\r\n".to_owned(), "426 "),
        ("POST /mqtt HTTP/1.1\r\nHost: edge\r\n\r\n".to_owned(), "400 "),
        ("\x10\x0C\0\x04MQTT\x05\x02\0\x3C\0\0\r\n\r\n".to_owned(), "400 "),
    ] {
        let (_, answer) = Client::ask(&rig, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}{answer}");
    }
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(request("/mqtt", &long).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(soon(stream.read_to_end(&mut answer)).await);
    assert!(answer.is_empty(), "{answer:?}");
    assert_eq!(rig.board.snapshot().refused.get("websocket_handshake"), Some(&7));
    rig.stop().await;
}
