//! The publishers at the edge: MQTT 3.1.1, QoS 1, one thread. Each keeps its window full; all together keep no more under way than
//! the row allows. Each payload says who sent it and as which. Every sixteenth message has another topic, so that an MQTT server can tell
//! how far it has come without sending all of them to somebody.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::net::Net;
use super::packets::{self, CONNACK, PUBACK};
use super::watch::Progress;

/// Connections.
pub(super) const PUBLISHERS: u64 = 4;
/// Messages of one publisher that are not acknowledged. All together have as many as the direct publisher has.
const WINDOW: u64 = 256;
/// Each so many messages of a publisher is a tick.
pub(super) const TICK_EACH: u64 = 16;
/// Payload bytes: number of the publisher (4), of the message (4), nothing.
const PAYLOAD: usize = 256;

/// How much is published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// A multiple of [`PUBLISHERS`].
    pub(super) messages: u64,
    /// Published, and not arrived.
    pub(super) open_max: u64,
}

struct Publisher {
    number: usize,
    reading: Packet,
    tick: Packet,
    sent: u64,
    acknowledged: u64,
}

/// To be filled in.
struct Packet {
    bytes: Vec<u8>,
    id_at: usize,
    payload_at: usize,
}

/// The last level of the topic of a publisher's `nth` message.
pub(super) const fn level(nth: u64) -> &'static str {
    if nth.is_multiple_of(TICK_EACH) { "tick" } else { "telemetry" }
}

/// Who sent it, and as which.
pub(super) fn mark(payload: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
    (word(0), word(4))
}

/// The topic's levels, joined by this, and the payload of the `n`-th message of all.
pub(super) fn message(n: u64, separator: char) -> (String, [u8; PAYLOAD]) {
    let (publisher, nth) = (n % PUBLISHERS, n / PUBLISHERS);
    let mut payload = [0; PAYLOAD];
    payload[..4].copy_from_slice(&u32::try_from(publisher).unwrap().to_le_bytes());
    payload[4..8].copy_from_slice(&u32::try_from(nth).unwrap().to_le_bytes());
    (format!("bench{separator}{publisher}{separator}{}", level(nth)), payload)
}

impl Load {
    /// Returns when all are acknowledged, or the watcher has given up.
    pub(super) fn publish(self, port: u16, progress: &Progress) {
        let mut net = Net::new();
        let mut publishers: Vec<Publisher> = (0..PUBLISHERS).map(|n| Publisher::connect(port, n, &mut net)).collect();
        let share = self.messages / PUBLISHERS;
        while publishers.iter().any(|publisher| publisher.acknowledged < share) && !progress.is_given_up() {
            let sent: u64 = publishers.iter().map(|publisher| publisher.sent).sum();
            let room = self.open_max.saturating_sub(sent.saturating_sub(progress.arrived())) / PUBLISHERS;
            for publisher in &mut publishers {
                let window = WINDOW - (publisher.sent - publisher.acknowledged);
                for _ in 0..window.min(room).min(share - publisher.sent) {
                    publisher.send(&mut net);
                }
            }
            net.flush();
            for ready in net.wait(1) {
                let number = usize::try_from(ready).unwrap();
                let is_alive = net.read(number, |_, packet| {
                    assert_eq!(packet.kind, PUBACK);
                    publishers[number].acknowledged += 1;
                });
                assert!(is_alive, "the edge closed the connection");
            }
        }
    }
}

impl Publisher {
    fn connect(port: u16, n: u64, net: &mut Net) -> Self {
        let packet = |nth: u64| {
            let (topic, payload) = message(nth * PUBLISHERS + n, '/');
            let (bytes, id_at, payload_at) = packets::publish(&topic, 1, &payload);
            Packet { bytes, id_at, payload_at }
        };
        let number = net.add(greet(port, &packets::connect(&format!("pub-{n}"))));
        Self { number, reading: packet(1), tick: packet(0), sent: 0, acknowledged: 0 }
    }

    fn send(&mut self, net: &mut Net) {
        let is_tick = self.sent.is_multiple_of(TICK_EACH);
        let packet = if is_tick { &mut self.tick } else { &mut self.reading };
        // Windows are small: no id of 1 to 50,000 comes again while it is in use.
        let id = u16::try_from(self.sent % 50_000 + 1).unwrap();
        packet.bytes[packet.id_at..packet.id_at + 2].copy_from_slice(&id.to_be_bytes());
        let at = packet.payload_at + 4;
        packet.bytes[at..at + 4].copy_from_slice(&u32::try_from(self.sent).unwrap().to_le_bytes());
        self.sent += 1;
        net.output(self.number).unwrap().extend_from_slice(&packet.bytes);
    }
}

/// A connection after its CONNACK.
pub(super) fn greet(port: u16, connect: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(connect).unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes[0] >> 4 == CONNACK && bytes[3] == 0, "CONNACK was expected, and not {bytes:?}");
    stream
}
