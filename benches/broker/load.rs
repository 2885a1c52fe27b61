//! The load generator: a process of its own with one thread. In a closed loop each publisher keeps its window full: what it
//! has sent is acknowledged and delivered before more is sent. Each payload says who sent it and as which in order, so that
//! what a subscriber misses, or gets twice or in another order, is seen.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::clock;

use super::contender::cpu_seconds;
use super::net::Net;
use super::packets::{self, CONNACK, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, SUBACK, ack};
use super::rows::{self, Row};

/// Payload bytes: number of the publisher (4), of the message (4), when it was sent (8, ns), nothing.
const PAYLOAD: usize = 256;
/// Before figures count.
const WARM_UP: Duration = Duration::from_millis(250);
/// What is still under way at the end has so long to arrive, counted anew whenever something does.
const DRAIN: Duration = Duration::from_millis(700);
/// A publisher that is told its pace does not send more than this beyond what was delivered.
const OPEN_MAX: u64 = 900;

/// What to do.
pub(super) struct Job {
    pub(super) port: u16,
    /// Of the broker, for its CPU time.
    pub(super) pid: u32,
    pub(super) row: String,
    pub(super) round: Duration,
    /// Messages a second of all publishers; `None`: as many as are taken.
    pub(super) pace: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Deliveries a second, or acknowledgements where nobody subscribes.
    pub(super) rate: f64,
    /// CPU time of the broker for each of them, µs.
    pub(super) cpu_us: f64,
    /// All of them, from the first on.
    pub(super) total: f64,
    /// Messages that did not arrive.
    pub(super) missing: f64,
    /// Messages that arrived twice, or behind a later one.
    pub(super) disorder: f64,
    /// Time under way, µs.
    pub(super) p50_us: f64,
    /// See `p50_us`.
    pub(super) p99_us: f64,
}

impl Job {
    pub(super) fn from_args(args: &[String]) -> Self {
        let pace: f64 = args[4].parse().unwrap();
        Self {
            port: args[0].parse().unwrap(),
            pid: args[1].parse().unwrap(),
            row: args[2].clone(),
            round: Duration::from_secs_f64(args[3].parse().unwrap()),
            pace: (pace > 0.0).then_some(pace),
        }
    }

    /// The same program once more, as the generator.
    pub(super) fn run_as_process(&self) -> Told {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["load", &self.port.to_string(), &self.pid.to_string(), &self.row])
            .args([&self.round.as_secs_f64().to_string(), &self.pace.unwrap_or(0.0).to_string()])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let figures: Vec<f64> = text.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
        let &[rate, cpu_us, total, missing, disorder, p50_us, p99_us] = figures.as_slice() else {
            panic!("the generator ended early ({}): {}", self.row, output.status)
        };
        Told { rate, cpu_us, total, missing, disorder, p50_us, p99_us }
    }
}

/// The generator's part of [`Job::run_as_process`].
pub(super) fn run(job: &Job) {
    let mut net = Net::new();
    let mut load = Load::connect(job, &mut net);
    load.drive_for(&mut net, WARM_UP);
    load.latencies.clear();
    let (cpu, count, began) = (cpu_seconds(job.pid), load.count, clock::now());
    load.drive_for(&mut net, job.round);
    let (cpu, count, took) = (cpu_seconds(job.pid) - cpu, load.count - count, began.elapsed());
    let mut latencies = std::mem::take(&mut load.latencies);
    load.drain(&mut net);
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        let at = latencies.len() * percent / 100;
        latencies.get(at).map_or(0.0, |ns| *ns as f64 / 1e3)
    };
    println!(
        "{} {} {} {} {} {} {}",
        count as f64 / took.as_secs_f64(),
        cpu * 1e6 / (count as f64).max(1.0),
        load.count,
        load.missing(),
        load.disorder,
        percentile(50),
        percentile(99),
    );
}

struct Publisher {
    number: usize,
    /// The packet, to be filled in.
    packet: Vec<u8>,
    id_at: usize,
    payload_at: usize,
    sent: u64,
    acknowledged: u64,
    /// Over all subscribers.
    arrived: u64,
    is_due: bool,
    /// When it sends next, where it is told its pace.
    next: Instant,
}

struct Load {
    row: &'static Row,
    /// Connections 0 to `subscribers` are subscribers; each knows which message of each publisher comes next.
    expected: Vec<Vec<u32>>,
    publishers: Vec<Publisher>,
    due: Vec<usize>,
    pause: Option<Duration>,
    is_sending: bool,
    began: Instant,
    /// Deliveries, or acknowledgements where nobody subscribes.
    count: u64,
    disorder: u64,
    latencies: Vec<u64>,
}

impl Load {
    fn connect(job: &Job, net: &mut Net) -> Self {
        let row = rows::named(&job.row);
        for n in 0..row.subscribers {
            let mut stream = greet(job.port, &format!("sub-{n}"));
            stream.write_all(&packets::subscribe(&row.filter(n), row.qos)).unwrap();
            expect(&mut stream, SUBACK, 5);
            net.add(stream);
        }
        let now = clock::now();
        let pause = job.pace.map(|pace| Duration::from_secs_f64(row.publishers as f64 / pace));
        let publishers = (0..row.publishers).map(|n| {
            let mut payload = vec![0; PAYLOAD];
            payload[..4].copy_from_slice(&u32::try_from(n).unwrap().to_le_bytes());
            let (packet, id_at, payload_at) = packets::publish(&rows::topic(n), row.qos, &payload);
            let number = net.add(greet(job.port, &format!("pub-{n}")));
            let next = now + pause.unwrap_or_default().mul_f64(n as f64 / row.publishers as f64);
            Publisher { number, packet, id_at, payload_at, sent: 0, acknowledged: 0, arrived: 0, is_due: true, next }
        });
        let publishers: Vec<_> = publishers.collect();
        let expected = vec![vec![0; row.publishers]; row.subscribers];
        let due = (0..row.publishers).collect();
        let (count, disorder, latencies) = (0, 0, Vec::new());
        let (is_sending, began) = (true, now);
        Self { row, expected, publishers, due, pause, is_sending, began, count, disorder, latencies }
    }

    fn drive_for(&mut self, net: &mut Net, time: Duration) {
        let began = clock::now();
        while began.elapsed() < time {
            self.round(net);
        }
    }

    /// Sends no more, and waits for what is under way.
    fn drain(&mut self, net: &mut Net) {
        self.is_sending = false;
        let (mut moved, mut count) = (clock::now(), self.count);
        while self.publishers.iter().any(|publisher| self.done(publisher) < publisher.sent) && moved.elapsed() < DRAIN {
            self.round(net);
            if self.count != count {
                (moved, count) = (clock::now(), self.count);
            }
        }
    }

    /// Deliveries that are owed.
    fn missing(&self) -> u64 {
        let copies = self.row.copies() as u64;
        let sent: u64 = self.publishers.iter().map(|publisher| publisher.sent * copies).sum();
        // `arrived` also counts what was skipped; only `count` is what came.
        if copies == 0 { 0 } else { sent.saturating_sub(self.count) }
    }

    fn round(&mut self, net: &mut Net) {
        // A pace is kept to the microsecond, by looking all the time.
        let timeout_ms = if self.pause.is_some() { 0 } else { 20 };
        for ready in net.wait(timeout_ms) {
            let number = usize::try_from(ready).unwrap();
            let is_alive = net.read(number, |net, packet| self.handle(net, number, packet));
            assert!(is_alive, "{}: the broker closed connection {number}", self.row.name);
        }
        if self.is_sending {
            self.publish(net);
        }
        net.flush();
    }

    fn handle(&mut self, net: &mut Net, number: usize, packet: Packet<'_>) {
        let mut answer = |bytes: &[u8]| net.output(number).unwrap().extend_from_slice(bytes);
        match packet.kind {
            PUBLISH => {
                let (_, id, payload) = packet.publish();
                match packet.qos() {
                    0 => {}
                    1 => answer(&ack(PUBACK, id)),
                    _ => answer(&ack(PUBREC, id)),
                }
                self.arrived(number, payload);
            }
            PUBACK | PUBCOMP => self.acknowledged(number),
            PUBREC => answer(&ack(PUBREL, packet.id())),
            PUBREL => answer(&ack(PUBCOMP, packet.id())),
            kind => panic!("packet type {kind}"),
        }
    }

    fn acknowledged(&mut self, number: usize) {
        let n = number - self.row.subscribers;
        self.publishers[n].acknowledged += 1;
        self.count += u64::from(self.row.subscribers == 0);
        self.note_due(n);
    }

    fn arrived(&mut self, number: usize, payload: &[u8]) {
        let word = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
        let (publisher, nth) = (word(0) as usize, word(4));
        self.count += 1;
        let expected = &mut self.expected[number][publisher];
        if nth < *expected {
            self.disorder += 1;
            return;
        }
        // What was skipped will not come, and its publisher must not wait for it.
        self.publishers[publisher].arrived += u64::from(nth - *expected) + 1;
        *expected = nth + 1;
        if self.pause.is_some() {
            let sent = u64::from_le_bytes(payload[8..16].try_into().unwrap());
            self.latencies.push(u64::try_from(self.began.elapsed().as_nanos()).unwrap().saturating_sub(sent));
        }
        self.note_due(publisher);
    }

    fn note_due(&mut self, n: usize) {
        if !std::mem::replace(&mut self.publishers[n].is_due, true) {
            self.due.push(n);
        }
    }

    /// How many of its messages are acknowledged and delivered.
    fn done(&self, publisher: &Publisher) -> u64 {
        let acknowledged = if self.row.qos == 0 { u64::MAX } else { publisher.acknowledged };
        let arrived = publisher.arrived.checked_div(self.row.copies() as u64).unwrap_or(u64::MAX);
        acknowledged.min(arrived)
    }

    fn publish(&mut self, net: &mut Net) {
        if let Some(pause) = self.pause {
            let now = clock::now();
            for n in 0..self.publishers.len() {
                while self.publishers[n].next <= now
                    && self.publishers[n].sent - self.done(&self.publishers[n]) < OPEN_MAX
                {
                    // When it was to be sent: a generator that is late must not make the broker look fast.
                    let meant = self.publishers[n].next.saturating_duration_since(self.began);
                    self.send(net, n, u64::try_from(meant.as_nanos()).unwrap());
                    self.publishers[n].next += pause;
                }
            }
            return;
        }
        while let Some(n) = self.due.pop() {
            self.publishers[n].is_due = false;
            let room =
                self.row.window - (self.publishers[n].sent - self.done(&self.publishers[n])).min(self.row.window);
            for _ in 0..room {
                self.send(net, n, 0);
            }
        }
    }

    fn send(&mut self, net: &mut Net, n: usize, time_ns: u64) {
        let publisher = &mut self.publishers[n];
        let nth = u32::try_from(publisher.sent).unwrap();
        publisher.sent += 1;
        if self.row.qos > 0 {
            // Windows are small: no id of 1 to 50,000 comes again while it is in use.
            let id = u16::try_from(nth % 50_000 + 1).unwrap();
            publisher.packet[publisher.id_at..publisher.id_at + 2].copy_from_slice(&id.to_be_bytes());
        }
        let at = publisher.payload_at;
        publisher.packet[at + 4..at + 8].copy_from_slice(&nth.to_le_bytes());
        publisher.packet[at + 8..at + 16].copy_from_slice(&time_ns.to_le_bytes());
        net.output(publisher.number).unwrap().extend_from_slice(&publisher.packet);
    }
}

/// A connection after its CONNACK.
fn greet(port: u16, client: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&packets::connect(client)).unwrap();
    expect(&mut stream, CONNACK, 4);
    stream
}

fn expect(stream: &mut TcpStream, kind: u8, len: usize) {
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes[..len]).unwrap();
    assert!(bytes[0] >> 4 == kind && bytes[len - 1] < 3, "packet type {kind} was expected, and not {bytes:?}");
}

/// When a broker takes clients: waits for its first CONNACK.
pub(super) fn wait_for_connack(port: u16) {
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_not_yet) => std::thread::sleep(Duration::from_micros(500)),
        }
    };
    stream.write_all(&packets::connect("first")).unwrap();
    expect(&mut stream, CONNACK, 4);
}

/// Idle connections, held by a process of their own.
pub(super) struct Held(Child);

impl Held {
    /// Returns when all of them have their CONNACK, and a moment after.
    pub(super) fn start(port: u16, count: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["idle", &port.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        Self(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// The child's part of [`Held`]: until standard input ends.
pub(super) fn hold_idle(port: u16, count: usize) {
    let held: Vec<_> = (0..count).map(|n| greet(port, &format!("idle-{n}"))).collect();
    print!(".");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(held);
}
