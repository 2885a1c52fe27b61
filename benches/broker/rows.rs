//! What is measured: the rows of the first table of `BROKER.md`, each with the best that a peer reached there.

/// One pattern of traffic.
pub(super) struct Row {
    /// Also what `row=` is searched in.
    pub(super) name: &'static str,
    pub(super) publishers: usize,
    pub(super) subscribers: usize,
    pub(super) qos: u8,
    /// Messages of one publisher that may be unacknowledged or undelivered (closed loop: nothing is lost in queues, so the rate
    /// is what the broker sustains).
    pub(super) window: u64,
    /// At least this part of the raw relay's rate: the best peer's.
    pub(super) of_relay: f64,
    /// At most this CPU time a message, in µs: the best peer's.
    pub(super) cpu_us: f64,
}

impl Row {
    /// How many subscribers get each message.
    pub(super) const fn copies(&self) -> usize {
        match self.subscribers {
            0 => 0,
            subscribers if self.publishers == 1 => subscribers,
            _ => 1,
        }
    }

    /// What subscriber `n` asks for.
    pub(super) fn filter(&self, n: usize) -> String {
        match self.subscribers {
            1 => "bench/#".to_owned(),
            _ if self.publishers == 1 => topic(0),
            _ => topic(n),
        }
    }
}

/// What publisher `n` publishes to.
pub(super) fn topic(n: usize) -> String {
    format!("bench/{n}/telemetry")
}

/// The row of this name.
pub(super) fn named(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).unwrap()
}

const fn row(
    name: &'static str,
    (publishers, subscribers): (usize, usize),
    (qos, window): (u8, u64),
    (of_relay, cpu_us): (f64, f64),
) -> Row {
    Row { name, publishers, subscribers, qos, window, of_relay, cpu_us }
}

/// In the order of `BROKER.md`. Mosquitto drops above 1,000 messages queued for a subscriber and FlashMQ above 512: windows
/// keep below both.
pub(super) const ROWS: &[Row] = &[
    row("QoS 0 one to one", (4, 4), (0, 500), (0.19, 1.5)),
    row("QoS 1 one to one", (4, 4), (1, 100), (0.19, 2.2)),
    row("QoS 1 publish only", (4, 0), (1, 100), (0.24, 1.2)),
    row("QoS 2 one to one", (4, 4), (2, 100), (0.14, 3.6)),
    row("QoS 0 fan-in 50:1", (50, 1), (0, 10), (0.30, 1.5)),
    row("QoS 1 fan-in 50:1", (50, 1), (1, 10), (0.37, 2.2)),
    row("QoS 0 fan-out 1:500", (1, 500), (0, 20), (0.28, 1.5)),
    row("QoS 0 fan-out 1:1000", (1, 1000), (0, 20), (0.58, 1.5)),
    row("1,000 devices, window 1", (1000, 1), (1, 1), (0.59, 17.0)),
    row("4:4, window 1", (4, 4), (1, 1), (0.83, 26.0)),
];
