//! What the broker does while memory is short (R36): publishers are read less ([`super::connection`]), new clients are refused, slow
//! subscribers hold less ([`Allowance`]), and at last those are ended that hold most and take nothing ([`Broker::end_who_holds_most`]).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Broker;
use super::client::{Online, State};
use super::store::SessionId;
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::units::ByteSize;
use crate::wire::ReasonCode;

/// Of `max_memory`, what the filters of all clients may count for together.
pub(super) const FILTERS_PART: u64 = 8;

/// The same, of wills that are not small.
pub(super) const WILLS_PART: u64 = 16;

/// The same, of what is retained where nothing is said, but no more than [`RETAINED_MOST`].
const RETAINED_PART: u64 = 8;

/// See [`RETAINED_PART`].
const RETAINED_MOST: u64 = 256 << 20;

/// What a gateway takes that holds nothing.
const IDLE_BYTES: u64 = 20 << 20;

/// `retained_bytes_max` where nothing is said.
#[must_use]
pub fn retained_by_default(max_memory: ByteSize) -> ByteSize {
    ByteSize((max_memory.0 / RETAINED_PART).min(RETAINED_MOST))
}

/// As much as may be retained for memory not to be short for good, whatever filters and wills take of theirs: it ends to be short at
/// three quarters.
#[must_use]
pub fn retained_that_fits(max_memory: ByteSize) -> ByteSize {
    let ByteSize(all) = max_memory;
    ByteSize((all / 4 * 3 - all / FILTERS_PART - all / WILLS_PART).saturating_sub(IDLE_BYTES))
}

/// While memory is short, who takes nothing for so long is ended.
const STUCK_MAX: Duration = Duration::from_secs(5);

/// Less than this that waits for it is not worth a connection.
const WAITING_MIN: usize = 16 << 10;

/// The same, of what a client has set up and may well use: most have less.
const STANDING_MIN: usize = 32 << 10;

/// Of those that are ended, so often one is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a slow subscriber may hold in memory, besides what is in flight to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Bytes that wait for its socket; beyond it QoS 0 is dropped and counted.
    pub(super) outbox_bytes: usize,
    /// Bytes of QoS 1 and 2 messages that wait for the window.
    pub(super) queue_bytes: usize,
}

impl Allowance {
    /// A megabyte is a second of what a field bus gateway takes, and ten thousand such clients are still bounded by their number.
    pub(super) const USUAL: Self = Self { outbox_bytes: 1 << 20, queue_bytes: 4 << 20 };
    /// While memory is short.
    pub(super) const SHORT: Self = Self { outbox_bytes: 64 << 10, queue_bytes: 256 << 10 };

    /// Why a message has none of it.
    pub(super) const fn reason(self, is_full_as_usual: bool) -> &'static str {
        if is_full_as_usual || self.outbox_bytes == Self::USUAL.outbox_bytes { "slow_subscriber" } else { "max_memory" }
    }
}

/// What would be free if a client's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// What it is to be sent.
    waiting: usize,
    /// Its names of aliases, its filters, its will.
    standing: usize,
}

impl Held {
    fn of(state: &State, online: &Online) -> Self {
        let waiting = online.outbox.len() + state.outbound.queued_bytes() + state.outbound.in_flight_bytes();
        let aliases = online.alias_bytes + online.aliases.bytes();
        // A session that is kept keeps its filters, and its will for as long as that is delayed.
        let filters = if state.terms.kept { 0 } else { state.filter_bytes };
        let goes = !state.terms.kept || state.terms.will_delay_s.min(state.terms.expiry_s) == 0;
        let will = state.terms.will.as_ref().filter(|_| goes).map(|will| will.message.kept_bytes(&will.message.topic));
        Self { waiting, standing: aliases + filters + will.unwrap_or(0) }
    }

    const fn is_much(self) -> bool {
        self.waiting >= WAITING_MIN || self.standing >= STANDING_MIN
    }

    const fn bytes(self) -> usize {
        self.waiting + self.standing
    }
}

/// Since when a client has taken nothing, and how often it had taken something by then.
pub(super) type Stuck = HashMap<SessionId, (u32, Instant)>;

impl Broker {
    /// Whether less is to be taken in.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.hub.memory().is_short()
    }

    /// What a slow subscriber may hold now.
    pub(super) fn allowance(&self) -> Allowance {
        if self.is_short_of_memory() { Allowance::SHORT } else { Allowance::USUAL }
    }

    /// While memory is short nobody brings much, so who has something to take and takes none of it for seconds is what memory waits for:
    /// those that hold most are ended (MQTT 5: reason 0x97), until what they hold makes up for what is too much. So is who has set up much
    /// and is silent. A kept session has its messages in the store. Called now and then.
    pub(super) fn end_who_holds_most(&self) {
        let mut stuck = self.stuck.lock();
        if !self.is_short_of_memory() {
            *stuck = Stuck::new();
            return;
        }
        let now = self.clock.now();
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        let (mut seen, mut worst) = (Stuck::new(), Vec::new());
        for client in clients {
            let state = client.lock();
            let Some(online) = state.online.as_ref().filter(|online| !online.kick.is_kicked()) else { continue };
            let held = Held::of(&state, online);
            if !held.is_much() {
                continue;
            }
            let before = stuck.get(&client.id).filter(|(taken, _)| *taken == online.taken);
            let since = before.map_or(now, |(_, since)| *since);
            seen.insert(client.id, (online.taken, since));
            let kick = std::sync::Arc::clone(&online.kick);
            drop(state);
            if now.saturating_duration_since(since) >= STUCK_MAX {
                worst.push((held.bytes(), client, kick));
            }
        }
        *stuck = seen;
        drop(stuck);
        worst.sort_unstable_by_key(|(held, ..)| std::cmp::Reverse(*held));
        let mut excess = self.hub.memory().excess();
        for (held, client, kick) in worst {
            if excess == 0 {
                return;
            }
            excess = excess.saturating_sub(held as u64);
            self.board.limited("max_memory_ended");
            static LOGGED: Limited = Limited::new(LOG_EVERY);
            if let Some(held_back) = LOGGED.pass(now) {
                let (client, held) = (Shown(&client.name), ByteSize(held as u64));
                tracing::warn!(%client, %held, held_back, "a client is ended: memory is short, it holds much of it, and takes nothing that it is sent");
            }
            kick.with(ReasonCode::QuotaExceeded, &client);
        }
    }
}
