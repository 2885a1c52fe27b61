//! A remote MQTT broker with a subscriber, which is where messages arrive.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions, QoS};
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
    subscriber: Option<Subscriber>,
    _process: Process,
}

impl Mosquitto {
    pub(super) fn start(port: u16, dir: &Path) -> Self {
        let conf = dir.join("more.conf");
        std::fs::write(&conf, "set_tcp_nodelay true\nlog_type none\n").unwrap();
        let arguments = [port.to_string(), format!("conf={}", conf.display())];
        let mut process = Process::peer("mosquitto", dir, &arguments);
        process.await_ready(|_| accepts(port));
        Self { runtime: Runtime::new().unwrap(), port, subscriber: None, _process: process }
    }
}

impl Server for Mosquitto {
    fn begin(&mut self) {
        self.subscriber = None;
        self.subscriber = Some(Subscriber::start(self.port));
    }

    fn arrived(&mut self) -> u64 {
        self.subscriber.as_ref().map_or(0, |subscriber| subscriber.shared.count.load(Ordering::Relaxed))
    }

    fn read(&mut self, seen: &mut Seen) {
        // What is still under way comes within this.
        std::thread::sleep(Duration::from_millis(200));
        let Some(mut subscriber) = self.subscriber.take() else { return };
        subscriber.end();
        subscriber.shared.marks.lock().unwrap().iter().for_each(|mark| seen.note(mark));
    }

    fn direct(&mut self, messages: u64) -> JoinHandle<()> {
        let (port, handle) = (self.port, self.runtime.handle().clone());
        std::thread::spawn(move || handle.block_on(direct(port, messages)))
    }

    fn link(&self, port: u16) -> (String, String) {
        (format!("mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}"), "bench/{n}/telemetry".to_owned())
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
        let (publisher, payload) = load::payload(n);
        let topic = format!("bench/{publisher}/telemetry");
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

/// Takes all at QoS 0, which costs the server least, in a thread of its own.
struct Subscriber {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    ends: AtomicBool,
    /// The first bytes of each payload.
    marks: Mutex<Vec<[u8; 8]>>,
}

impl Subscriber {
    fn start(port: u16) -> Self {
        let shared = Arc::<Shared>::default();
        let mut stream = load::greet(port, "subscriber");
        stream.write_all(&packets::subscribe("bench/#", 0)).unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let its = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut net = Net::new();
            net.add(stream);
            let mut marks = its.marks.lock().unwrap();
            while !its.ends.load(Ordering::Relaxed) {
                for _ready in net.wait(20) {
                    let is_alive = net.read(0, |_, packet| {
                        marks.push(packet.publish().2[..8].try_into().unwrap());
                    });
                    assert!(is_alive, "the server closed the subscriber's connection");
                    its.count.store(marks.len() as u64, Ordering::Relaxed);
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    fn end(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.end();
    }
}
