//! A remote MQTT broker. What it has taken waits in the kept session of a subscriber that is away, which costs it next to nothing; one who is
//! there takes every sixteenth message at QoS 0, to tell how far it has come.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions, QoS};
use tidegate::clock;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::{Seen, Server, load};
use crate::net::Net;
use crate::packets;
use crate::process::{Process, accepts};

/// The link's own. Mosquitto itself allows less, and the library keeps to it.
const WINDOW: usize = 1_024;

pub(super) struct Mosquitto {
    runtime: Runtime,
    port: u16,
    ticks: Option<Ticks>,
    _process: Process,
}

impl Mosquitto {
    pub(super) fn start(port: u16, dir: &Path) -> Self {
        let conf = dir.join("more.conf");
        std::fs::write(&conf, "set_tcp_nodelay true\nlog_type none\n").unwrap();
        let arguments = [port.to_string(), format!("conf={}", conf.display())];
        let mut process = Process::peer("mosquitto", dir, &arguments);
        process.await_ready(|_| accepts(port));
        Self { runtime: Runtime::new().unwrap(), port, ticks: None, _process: process }
    }
}

impl Server for Mosquitto {
    fn begin(&mut self) {
        // What the round before left goes with its session.
        drop(load::greet(self.port, &packets::connect(COUNTER)));
        let mut stream = load::greet(self.port, &kept());
        subscribe(&mut stream, "bench/#", 1);
        self.ticks = Some(Ticks::start(self.port));
    }

    fn arrived(&mut self) -> u64 {
        self.ticks.as_ref().map_or(0, |ticks| ticks.shared.count.load(Ordering::Relaxed) * load::TICK_EACH)
    }

    fn read(&mut self, seen: &mut Seen) {
        self.ticks = None;
        let mut net = Net::new();
        let number = net.add(load::greet(self.port, &kept()));
        let mut moved = clock::now();
        while moved.elapsed() < QUIET {
            for _ready in net.wait(50) {
                let is_alive = net.read(number, |net, packet| {
                    let (_, id, payload) = packet.publish();
                    seen.note(payload);
                    net.output(number).unwrap().extend(packets::ack(packets::PUBACK, id));
                });
                assert!(is_alive, "the server closed the counter's connection");
                moved = clock::now();
            }
            net.flush();
        }
    }

    fn direct(&mut self, messages: u64, _stamped: bool) -> JoinHandle<()> {
        let (port, handle) = (self.port, self.runtime.handle().clone());
        std::thread::spawn(move || handle.block_on(direct(port, messages)))
    }

    fn link(&self, port: u16) -> (String, String) {
        (format!("mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}"), "bench/{n}/{what}".to_owned())
    }
}

/// As our link drives the library: a poll task, requests in batches of 64, a window of tracked publishes.
async fn direct(port: u16, messages: u64) {
    let mut options = MqttOptions::new("direct", ("127.0.0.1", port));
    options.set_max_request_batch(64);
    options.set_outgoing_inflight_upper_limit(4_096);
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(4_096).build();
    let mut polling = JoinSet::new();
    polling.spawn(async move { while eventloop.poll().await.is_ok() {} });
    let mut open = FuturesUnordered::new();
    for n in 0..messages {
        if open.len() >= WINDOW {
            let published: Option<Result<_, _>> = open.next().await;
            published.unwrap().unwrap();
        }
        let (topic, payload) = load::message(n, '/');
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let notice = client.publish_tracked(topic, payload.to_vec(), options).await.unwrap();
        open.push(notice.wait_async());
    }
    while let Some(published) = open.next().await {
        published.unwrap();
    }
    client.disconnect().await.unwrap();
    polling.join_next().await.unwrap().unwrap();
}

/// The client that is away.
const COUNTER: &str = "counter";
/// Nothing more comes after so long.
const QUIET: Duration = Duration::from_millis(1_500);

/// CONNECT of the counter, to the session that it has.
fn kept() -> Vec<u8> {
    /// Of the flags in a packet with one byte of length (MQTT 3.1.1 section 3.1.2.3); the clean session is the only one set.
    const FLAGS_AT: usize = 9;
    let mut packet = packets::connect(COUNTER);
    packet[FLAGS_AT] = 0;
    packet
}

fn subscribe(stream: &mut TcpStream, filter: &str, qos: u8) {
    stream.write_all(&packets::subscribe(filter, qos)).unwrap();
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).unwrap();
    assert!(suback[0] >> 4 == packets::SUBACK && suback[4] == qos, "SUBACK was expected, and not {suback:?}");
}

/// Counts ticks, in a thread of its own.
struct Ticks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    ends: AtomicBool,
}

impl Ticks {
    fn start(port: u16) -> Self {
        let shared = Arc::<Shared>::default();
        let mut stream = load::greet(port, &packets::connect("ticks"));
        subscribe(&mut stream, "bench/+/tick", 0);
        let its = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut net = Net::new();
            let number = net.add(stream);
            while !its.ends.load(Ordering::Relaxed) {
                for _ready in net.wait(20) {
                    let mut count = 0;
                    let is_alive = net.read(number, |_, _| count += 1);
                    assert!(is_alive, "the server closed the connection of ticks");
                    its.count.fetch_add(count, Ordering::Relaxed);
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
