//! The status board: what `tidegate status`, `/readyz` and `/metrics` show. Each part writes its own entry; nobody
//! waits for a reader. The serialised form of [`Status`] is what `tidegate status --json` prints.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::memory::MemoryStatus;
use super::replay::ReplayStatus;
use crate::clock::WallMs;

/// R22: the closed list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// A connection is being made.
    #[default]
    Connecting,
    /// Connected, and what is in flight moves.
    Online,
    /// Connected, but nothing moves.
    Stalled,
    /// The remote asked us to hold back (RabbitMQ `connection.blocked`).
    Blocked,
    /// The last try failed; the next one is set.
    BackingOff,
    /// By the operator.
    Paused,
    /// The remote says that trying again cannot help; tried again slowly all the same.
    Misconfigured,
    /// R15.
    DeadLettersFull,
    /// Its log cannot be written.
    BufferFailed,
}

/// One half of a link at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HalfStatus {
    /// What it is doing.
    pub state: LinkState,
    /// When it came into this state (wall ms).
    pub since_ms: u64,
    /// The last error, in the remote's own words.
    pub last_error: Option<String>,
    /// Why it is in this state, where that is no error: what pauses it.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why the last record became a dead letter, since the start.
    pub last_dead_letter: Option<String>,
    /// When the next try is due (wall ms), while backing off; when it begins again, while paused.
    pub next_try_ms: Option<u64>,
    /// Records sent (sink) or received (source) and not yet confirmed or acknowledged.
    pub in_flight: u64,
    /// Confirmed by the remote (sink) or accepted by the hub (source) since the start.
    pub messages: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Sent again after a reconnect (sink), received again (source), since the start.
    pub resent: u64,
    /// Connections made since the start.
    pub connects: u64,
    /// Messages a second, over the last seconds.
    pub rate: f64,
    /// It has something to move, and its `rate` holds it back.
    #[serde(default)]
    pub held_by_rate: bool,
    /// How often that was so since the start.
    #[serde(default)]
    pub rate_waits: u64,
    /// Received and lost (source), by reason, since the start: only what the remote does not send again, and what nothing
    /// can be made of.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
}

/// A half's entry: the runner writes, the status page reads.
#[derive(Debug, Default)]
pub struct HalfBoard {
    state: Mutex<HalfStatus>,
    messages: AtomicU64,
    bytes: AtomicU64,
    resent: AtomicU64,
    in_flight: AtomicU64,
    held_by_rate: AtomicBool,
    rate_waits: AtomicU64,
    rate: Mutex<RateWindow>,
    /// Who hears of a change of the state.
    changed: OnceLock<Arc<Notify>>,
}

impl HalfBoard {
    /// Enters a state. `error` is kept as the last error where one is given.
    pub fn enter(&self, state: LinkState, error: Option<String>, next_try_ms: Option<u64>, now: WallMs) {
        let mut status = self.state.lock();
        if status.state != state || status.since_ms == 0 {
            status.since_ms = now.0;
            if let Some(changed) = self.changed.get() {
                changed.notify_one();
            }
        }
        status.state = state;
        status.reason = None;
        status.next_try_ms = next_try_ms;
        if error.is_some() {
            status.last_error = error;
        }
    }

    /// Pauses for a reason that is no error, until `next_ms` (wall) where that is known.
    pub fn pause(&self, reason: String, next_ms: Option<u64>, now: WallMs) {
        self.enter(LinkState::Paused, None, next_ms, now);
        self.state.lock().reason = Some(reason);
    }

    /// Whether its `rate` holds it back now.
    pub fn set_held_by_rate(&self, held: bool) {
        self.held_by_rate.store(held, Ordering::Relaxed);
        if held {
            self.rate_waits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has each change of the state noticed by `changed`. Once; a second call changes nothing.
    pub fn report_to(&self, changed: Arc<Notify>) {
        drop(self.changed.set(changed));
    }

    /// One more connection was made.
    pub fn connected(&self) {
        self.state.lock().connects += 1;
    }

    /// Takes a reading for the rate. The gateway does so each second, whether or not anybody looks.
    pub fn sample(&self, now: Instant) {
        self.rate.lock().sample(now, self.messages.load(Ordering::Relaxed));
    }

    /// One more message done.
    pub fn done(&self, bytes: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One more message sent or received again.
    pub fn again(&self) {
        self.resent.fetch_add(1, Ordering::Relaxed);
    }

    /// So many messages of the remote were lost, for this reason.
    pub fn dropped(&self, reason: &'static str, count: u64) {
        if count > 0 {
            *self.state.lock().dropped.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// A record became a dead letter.
    pub fn dead_letter(&self, reason: &str) {
        self.state.lock().last_dead_letter = Some(reason.to_owned());
    }

    /// How much is in flight.
    pub fn set_in_flight(&self, count: u64) {
        self.in_flight.store(count, Ordering::Relaxed);
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state.lock().state
    }

    /// All of it, now.
    #[must_use]
    pub fn snapshot(&self) -> HalfStatus {
        let mut status = self.state.lock().clone();
        status.messages = self.messages.load(Ordering::Relaxed);
        status.bytes = self.bytes.load(Ordering::Relaxed);
        status.resent = self.resent.load(Ordering::Relaxed);
        status.in_flight = self.in_flight.load(Ordering::Relaxed);
        status.held_by_rate = self.held_by_rate.load(Ordering::Relaxed);
        status.rate_waits = self.rate_waits.load(Ordering::Relaxed);
        status.rate = self.rate.lock().rate();
        status
    }
}

/// Readings that a rate is made of: at one a second, those of the last five seconds.
const READINGS: usize = 6;

/// Messages a second over the last readings.
#[derive(Debug, Default)]
struct RateWindow {
    readings: VecDeque<(Instant, u64)>,
}

impl RateWindow {
    fn sample(&mut self, now: Instant, count: u64) {
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back((now, count));
    }

    fn rate(&self) -> f64 {
        let (Some((from, before)), Some((to, after))) = (self.readings.front(), self.readings.back()) else {
            return 0.0;
        };
        let elapsed = to.saturating_duration_since(*from).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let messages = after.saturating_sub(*before) as f64;
        if elapsed > 0.0 { messages / elapsed } else { 0.0 }
    }
}

/// A link at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// `mqtt`, `rabbitmq` or `kafka`; `orphaned` for data without a link.
    pub kind: String,
    /// The worse of the two halves' states.
    pub state: LinkState,
    /// The outbound half, where a route leads to the link.
    pub sink: Option<HalfStatus>,
    /// The inbound half, where a route begins at it.
    pub source: Option<HalfStatus>,
    /// Undelivered records.
    pub depth: u64,
    /// Undelivered records of each lane, where there are several (R14).
    #[serde(default)]
    pub lanes: BTreeMap<String, u64>,
    /// Their bytes.
    pub depth_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Of these, delivered records that are kept (`keep_delivered`).
    #[serde(default)]
    pub kept_bytes: u64,
    /// Age of the oldest undelivered record, ms.
    pub oldest_age_ms: Option<u64>,
    /// At the present drain rate, ms until empty.
    pub time_left_ms: Option<u64>,
    /// Promise 3, by name; `balanced` says whether the equation holds.
    pub ledger: BTreeMap<String, u64>,
    /// See `ledger`.
    pub balanced: bool,
    /// Letters in the dead-letter log.
    pub dead_letters: u64,
    /// Segments that were put aside as damaged, by a start or a repair.
    #[serde(default)]
    pub put_aside: u64,
    /// What a durable acknowledgement means here where it is weaker than promise 1 (R1).
    pub note: Option<String>,
}

/// The built-in broker at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Where it listens.
    pub listeners: Vec<ListenerStatus>,
    /// Clients connected.
    pub clients: u64,
    /// Kept sessions without a connection.
    pub sessions_offline: u64,
    /// Messages owed to kept sessions.
    pub owed: u64,
    /// Retained messages.
    pub retained: u64,
    /// Publishes accepted from clients since the start.
    pub received: u64,
    /// Messages sent to clients since the start.
    pub sent: u64,
    /// Dropped, by reason, since the start.
    pub dropped: BTreeMap<String, u64>,
    /// Publishes refused (not acknowledged, or with a reason code), by reason, since the start.
    pub refused: BTreeMap<String, u64>,
    /// How often clients were held back or refused by a limit of their listener or user, by limit, since the start.
    #[serde(default)]
    pub limited: BTreeMap<String, u64>,
    /// Why what must be stored (kept sessions, retained messages, QoS 2) is refused, if it is.
    #[serde(default)]
    pub store_error: Option<String>,
    /// Files that have changed and cannot be used, and why: what was before them is in force.
    #[serde(default)]
    pub reload_errors: Vec<String>,
}

/// A listener of the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `127.0.0.1:1883`, `unix:/run/tidegate/mqtt.sock`.
    pub bind: String,
    /// What lies between the socket and MQTT, from below: `proxy`, `tls`, `websocket`.
    pub layers: Vec<String>,
    /// When its certificate ends, seconds since 1970.
    pub certificate_ends_s: Option<i64>,
}

/// `0.0.0.0:8884 (tls, websocket)`.
impl fmt::Display for ListenerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bind)?;
        if self.layers.is_empty() { Ok(()) } else { write!(f, " ({})", self.layers.join(", ")) }
    }
}

/// The whole gateway at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of `routes.yaml`.
    pub site: String,
    /// Of the program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Wall ms.
    pub started_ms: u64,
    /// Listeners bound, buffers open, store open.
    pub ready: bool,
    /// `running`, `stopping`.
    pub phase: String,
    /// By name.
    pub links: Vec<LinkStatus>,
    /// Replays that run.
    #[serde(default)]
    pub replays: Vec<ReplayStatus>,
    /// The built-in broker.
    pub broker: BrokerStatus,
    /// Where the admin page is bound, if it is.
    pub admin: Option<String>,
    /// Messages that came back to this site and went no further (R12).
    pub loops_stopped: u64,
    /// Messages of other gateways that had come already and were not taken again (R12).
    #[serde(default)]
    pub copies_dropped: u64,
    /// Messages of sources that matched no route and went nowhere.
    #[serde(default)]
    pub unrouted: u64,
    /// What routes held back or could not make: those that did.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// How `routes.yaml` was read again.
    #[serde(default)]
    pub reload: ReloadStatus,
    /// What the process holds of `max_memory`.
    #[serde(default)]
    pub memory: MemoryStatus,
}

/// What came of reading `routes.yaml` again, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// How often it was taken, changed or not.
    pub taken: u64,
    /// How often it was refused.
    pub refused: u64,
    /// The last time (wall ms).
    pub last_ms: Option<u64>,
    /// Why the file as it was then is not in force; several lines, as `check` has them.
    pub error: Option<String>,
}

/// What one route held back since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Of `routes.yaml`.
    pub name: String,
    /// Messages of which its `where` was not true.
    #[serde(default)]
    pub filtered: u64,
    /// Messages that its `throttle`, `sample` or `dedup` held back (R28).
    #[serde(default)]
    pub suppressed: u64,
    /// What it could not make of messages: dead letters, and local deliveries that did not happen (R28).
    #[serde(default)]
    pub failed: u64,
}

/// What has passed the broker's sockets since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received.
    pub packets_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Payload bytes of publishes received.
    pub publish_bytes_in: u64,
    /// Payload bytes of messages sent to clients.
    pub publish_bytes_out: u64,
    /// Connections accepted.
    pub sockets: u64,
    /// Clients let in.
    pub connects: u64,
}

/// A place to count the broker's figures; shared.
#[derive(Debug, Default)]
pub struct BrokerBoard {
    /// Publishes accepted from clients.
    pub received: AtomicU64,
    /// Messages sent to clients.
    pub sent: AtomicU64,
    /// Clients connected.
    pub clients: AtomicU64,
    /// Packets received.
    pub packets_in: AtomicU64,
    /// Packets sent.
    pub packets_out: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
    /// Payload bytes of publishes received.
    pub publish_bytes_in: AtomicU64,
    /// Payload bytes of messages sent to clients.
    pub publish_bytes_out: AtomicU64,
    /// Connections accepted.
    pub sockets: AtomicU64,
    /// Clients let in.
    pub connects: AtomicU64,
    counts: Mutex<[BTreeMap<&'static str, u64>; 3]>,
}

impl BrokerBoard {
    /// Counts a drop under its reason.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped_many(reason, 1);
    }

    /// Counts so many drops under their reason.
    pub fn dropped_many(&self, reason: &'static str, count: u64) {
        if count > 0 {
            let [dropped, _, _] = &mut *self.counts.lock();
            *dropped.entry(reason).or_default() += count;
        }
    }

    /// Counts a refusal under its reason.
    pub fn refused(&self, reason: &'static str) {
        let [_, refused, _] = &mut *self.counts.lock();
        *refused.entry(reason).or_default() += 1;
    }

    /// Counts a client that a limit holds back or refuses.
    pub fn limited(&self, limit: &'static str) {
        let [_, _, limited] = &mut *self.counts.lock();
        *limited.entry(limit).or_default() += 1;
    }

    /// What has passed the sockets.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            packets_in: read(&self.packets_in),
            packets_out: read(&self.packets_out),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            publish_bytes_in: read(&self.publish_bytes_in),
            publish_bytes_out: read(&self.publish_bytes_out),
            sockets: read(&self.sockets),
            connects: read(&self.connects),
        }
    }

    /// The counted figures; the broker adds sessions, owed, retained and listeners.
    #[must_use]
    pub fn snapshot(&self) -> BrokerStatus {
        let [dropped, refused, limited] = self.counts.lock().clone();
        let own = |map: BTreeMap<&'static str, u64>| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        BrokerStatus {
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            clients: self.clients.load(Ordering::Relaxed),
            dropped: own(dropped),
            refused: own(refused),
            limited: own(limited),
            ..BrokerStatus::default()
        }
    }
}

/// A half's entry, shared between its runner and the page.
pub type SharedHalf = Arc<HalfBoard>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_five_seconds_however_seldom_somebody_looks() {
        let (board, start) = (HalfBoard::default(), crate::clock::now());
        let mut rates = Vec::new();
        for second in 0..10 {
            board.sample(start + Duration::from_secs(second));
            rates.push(board.snapshot().rate);
            (0..if second < 2 { 50 } else { 0 }).for_each(|_| board.done(1));
        }
        assert_eq!(rates, [0.0, 50.0, 50.0, 100.0 / 3.0, 25.0, 20.0, 10.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn only_a_connection_counts_as_one_whatever_states_follow() {
        let board = HalfBoard::default();
        board.connected();
        for state in
            [LinkState::Online, LinkState::Blocked, LinkState::Online, LinkState::BackingOff, LinkState::Online]
        {
            board.enter(state, None, None, WallMs(1));
        }
        assert_eq!(board.snapshot().connects, 1);
    }
}
