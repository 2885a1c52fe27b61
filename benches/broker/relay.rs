//! The raw relay: what sockets cost here with next to nothing around them. It reads all that is there, parses header and topic,
//! looks the topic up in a hash map, copies the packet to each subscriber, acknowledges, and sends once a socket and round.
//!
//! It keeps no promise: no sessions, no windows, no ids of its own, one process, all in memory.

use std::collections::HashMap;
use std::net::TcpListener;

use super::net::Net;
use super::packets::{CONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, SUBACK, SUBSCRIBE, ack};

/// The listener's number.
const LISTENER: u64 = u64::MAX;

#[derive(Default)]
struct Relay {
    /// By topic.
    exact: HashMap<Vec<u8>, Vec<usize>>,
    /// Those who asked for all.
    all: Vec<usize>,
}

/// Serves on `port` until it is killed.
pub(super) fn run(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut net = Net::new();
    net.watch(&listener, LISTENER);
    let mut relay = Relay::default();
    loop {
        for ready in net.wait(u8::MAX) {
            if ready == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    net.add(stream);
                }
                continue;
            }
            let number = usize::try_from(ready).unwrap();
            if !net.read(number, |net, packet| relay.handle(net, number, packet)) {
                relay.forget(number);
            }
        }
        net.flush();
    }
}

impl Relay {
    fn handle(&mut self, net: &mut Net, number: usize, packet: Packet<'_>) {
        match packet.kind {
            PUBLISH => {
                let (topic, id, _) = packet.publish();
                let subscribers = self.exact.get(topic).map(Vec::as_slice).unwrap_or_default();
                for subscriber in subscribers.iter().chain(&self.all) {
                    put(net, *subscriber, packet.whole);
                }
                match packet.qos() {
                    0 => {}
                    1 => put(net, number, &ack(PUBACK, id)),
                    _ => put(net, number, &ack(PUBREC, id)),
                }
            }
            PUBREC => put(net, number, &ack(PUBREL, packet.id())),
            PUBREL => put(net, number, &ack(PUBCOMP, packet.id())),
            CONNECT => put(net, number, &[0x20, 2, 0, 0]),
            SUBSCRIBE => {
                let (filter, qos) = packet.subscribe();
                if filter.ends_with(b"#") {
                    self.all.push(number);
                } else {
                    self.exact.entry(filter.to_vec()).or_default().push(number);
                }
                put(net, number, &[SUBACK << 4, 3, packet.body[0], packet.body[1], qos]);
            }
            _ => {}
        }
    }

    fn forget(&mut self, number: usize) {
        self.all.retain(|other| *other != number);
        self.exact.retain(|_, subscribers| {
            subscribers.retain(|other| *other != number);
            !subscribers.is_empty()
        });
    }
}

fn put(net: &mut Net, number: usize, bytes: &[u8]) {
    if let Some(output) = net.output(number) {
        output.extend_from_slice(bytes);
    }
}
