//! R36: memory in all is bounded, whatever clients do, and nothing that was acknowledged is lost for it.

use bytes::BytesMut;
use rumqttc_v5::QoS;
use tidegate::message::Qos;
use tidegate::wire::{
    Connect, ConnectProperties, Packet, PacketId, Publish, PublishProperties, Subscribe, SubscribeOptions,
    Subscription, Version, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::{Gateway, run};
use crate::support::ledger::Ledger;

const LIMIT: u64 = 160 << 20;

/// Together they may hold more than the limit: each a megabyte and a quarter.
const SUBSCRIBERS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn r36_subscribers_that_do_not_read_and_fast_publishers_do_not_grow_it_beyond_max_memory() {
    let mut gateway = Gateway::start(&format!("max_memory: {LIMIT}B\n")).await;
    let kept = Subscriber::start(gateway.port, "kept", "exact/#", QoS::AtLeastOnce).await;
    let mut silent = Vec::new();
    for n in 0..SUBSCRIBERS {
        silent.push(subscribe_and_read_no_more(gateway.port, n).await);
    }
    let mut publishing = Vec::new();
    for n in 0..4 {
        publishing.push(connected(TcpSocket::new_v4().unwrap(), gateway.port, format!("flood-{n}")).await);
    }
    let mut floods = JoinSet::new();
    publishing.into_iter().for_each(|stream| drop(floods.spawn(flood(stream))));
    let work = Work {
        port: gateway.port,
        publishers: 2,
        messages: 2_000,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "exact".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(2_000);
    gateway.wait_for("memory is short", |status| status.memory.shortages > 0).await;
    // Those that hold most are ended, and all goes on.
    gateway
        .wait_for("there is memory again", |status| {
            !status.memory.short && status.broker.limited.contains_key("max_memory_ended")
        })
        .await;
    let published = publishers.finish().await;
    let arrived = kept.receive(&published).await;
    Ledger::compare(published, &arrived).assert_kept("to a kept session", 2_000);
    let status = gateway.status().await;
    assert_eq!(status.memory.limit_bytes, LIMIT);
    assert!(status.broker.dropped["max_memory"] > 0 && status.broker.limited["max_memory"] > 0, "{:?}", status.broker);
    let peak = peak_bytes(status.pid);
    // What four publishers bring between two looks is on top.
    assert!(peak > LIMIT / 8 * 7 && peak < LIMIT / 8 * 10, "{peak} of {LIMIT}");
    assert!(gateway.log().contains("memory is short: publishers are held back"));
    floods.shutdown().await;
    drop(silent);
    assert!(gateway.terminate().await.success());
}

/// Who is not let in cannot delete what is retained: the operator can.
#[tokio::test(flavor = "multi_thread")]
async fn r36_retained_messages_that_fill_the_memory_are_told_of_and_the_operator_can_drop_them() {
    const COUNT: u16 = 120;
    let rest = |max: &str| format!("  retained_bytes_max: 200MiB\nmax_memory: {max}\n");
    let mut gateway = Gateway::start(&rest("900MiB")).await;
    let socket = || TcpSocket::new_v4().unwrap();
    let mut one = connected(socket(), gateway.port, "one".into()).await;
    for n in 1..=COUNT {
        let publish = Publish {
            topic: format!("big/{n}").as_str().into(),
            payload: vec![b'x'; 1_000_000].into(),
            qos: Qos::AtLeastOnce,
            dup: false,
            retain: true,
            id: PacketId::new(n),
            properties: PublishProperties::default(),
        };
        send(&mut one, &Packet::Publish(publish)).await;
        let mut puback = [0; 4];
        one.read_exact(&mut puback).await.unwrap();
        assert_eq!(puback, [0x40, 2, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    }
    gateway.kill_9();
    gateway.configure(&rest("128MiB"));
    gateway.start_again().await;
    let status = gateway.wait_for("memory is short", |status| status.memory.short).await;
    assert_eq!(status.broker.retained, u64::from(COUNT), "nothing that was acknowledged is dropped for it");
    assert_eq!(connack(socket(), gateway.port, "two".into()).await.1, 0x97);
    let config = gateway.config();
    let config = config.to_str().unwrap();
    let asked = async |arguments: &[&str]| {
        let output = run(&[&["--config", config], arguments].concat()).await;
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, shown) = asked(&["status"]).await;
    assert!(code == Some(1) && shown.contains(", short of memory  "), "{code:?} {shown}");
    let (code, listed) = asked(&["retained", "list", "big/1"]).await;
    assert_eq!((code, &*listed), (Some(0), "   1,000,000  big/1\nretained 1\npayload_bytes 1000000\n"));
    assert_eq!(asked(&["retained", "drop", "none/#"]).await, (Some(1), "dropped 0\n".to_owned()));
    assert_eq!(asked(&["retained", "drop", "a#"]).await.0, Some(64));
    assert_eq!(asked(&["retained", "drop", "big/#"]).await, (Some(0), format!("dropped {COUNT}\n")));
    let status = gateway.wait_for("there is memory again", |status| !status.memory.short).await;
    assert_eq!((status.broker.retained, status.broker.dropped["retained_dropped"]), (0, u64::from(COUNT)));
    connected(socket(), gateway.port, "two".into()).await;
    gateway.kill_9();
    gateway.start_again().await;
    assert_eq!(gateway.status().await.broker.retained, 0);
    assert!(gateway.terminate().await.success());
}

/// Returns when it is let in.
async fn connected(socket: TcpSocket, port: u16, client_id: String) -> TcpStream {
    let (stream, code) = connack(socket, port, client_id).await;
    assert_eq!(code, 0, "let in");
    stream
}

/// Returns with the answer's code.
async fn connack(socket: TcpSocket, port: u16, client_id: String) -> (TcpStream, u8) {
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let connect = Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: client_id.as_str().into(),
        will: None,
        user: None,
        password: None,
        properties: ConnectProperties::default(),
    };
    send(&mut stream, &Packet::Connect(Box::new(connect))).await;
    // CONNACK has less than 128 bytes.
    assert_eq!(stream.read_u8().await.unwrap(), 0x20);
    let mut rest = vec![0; usize::from(stream.read_u8().await.unwrap())];
    stream.read_exact(&mut rest).await.unwrap();
    (stream, rest[1])
}

async fn send(stream: &mut TcpStream, packet: &Packet) {
    let mut bytes = BytesMut::new();
    encode(packet, Version::V5, &mut bytes).unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn subscribe_and_read_no_more(port: u16, n: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // So that little is in the system's hands.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stream = connected(socket, port, format!("silent-{n}")).await;
    let options = SubscribeOptions { qos: Qos::AtMostOnce, ..SubscribeOptions::default() };
    let subscriptions = vec![Subscription { filter: "flood".into(), options }];
    let id = PacketId::new(1).unwrap();
    send(&mut stream, &Packet::Subscribe(Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions }))
        .await;
    assert_eq!(stream.read_u8().await.unwrap(), 0x90, "SUBACK");
    stream
}

/// As fast as it is let, for ever.
async fn flood(mut stream: TcpStream) {
    let publish = Publish {
        topic: "flood".into(),
        payload: vec![b'x'; 8 << 10].into(),
        qos: Qos::AtMostOnce,
        dup: false,
        retain: false,
        id: None,
        properties: PublishProperties::default(),
    };
    loop {
        send(&mut stream, &Packet::Publish(publish.clone())).await;
    }
}

/// The most that was ever resident.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}
