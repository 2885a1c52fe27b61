//! Messages to the client with QoS 1 and 2: a queue that waits for the window, and what is in flight.
//!
//! An entry gets its packet id when the window has room ([`Outbound::poll_assign`]) and is sent when its store position
//! is durable ([`Outbound::poll_send`]); entries leave in the order in which they came, so a position that is not durable
//! holds back what is behind it. What is in flight stays there over connections, and is sent again in its order: a
//! PUBLISH with DUP, or the PUBREL if the PUBREC has come.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::broker::index::Share;
use crate::clock::Moment;
use crate::message::{Message, Qos};
use crate::topic::TopicName;

/// One message for one subscriber.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// To deliver on.
    pub(crate) topic: TopicName,
    /// Shared by all receivers.
    pub(crate) message: Arc<Message>,
    /// To deliver with: 1 or 2.
    pub(crate) qos: Qos,
    /// To deliver with.
    pub(crate) retain: bool,
    /// Subscription identifiers.
    pub(crate) ids: SmallVec<[u32; 1]>,
    /// The store's row, for kept sessions.
    pub(crate) seq: Option<u64>,
    /// The store position that must be durable before it leaves (R17); `None`: at once.
    pub(crate) ready: Option<u64>,
    /// The shared subscription that brought it.
    pub(crate) share: Option<Arc<Share>>,
}

/// An entry's row in the store, and what it counts for in the session's limit of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Which.
    pub(crate) seq: u64,
    /// See [`Entry::bytes`].
    pub(crate) bytes: u64,
}

impl Entry {
    /// What it counts for, in memory and in the store.
    pub(crate) fn bytes(&self) -> usize {
        self.message.kept_bytes(&self.topic) + size_of_val(&*self.ids)
    }

    /// Its row, for kept sessions.
    pub(crate) fn row(&self) -> Option<Row> {
        self.seq.map(|seq| Row { seq, bytes: self.bytes() as u64 })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbound {
    queue: VecDeque<Entry>,
    queue_bytes: usize,
    /// Oldest first.
    flights: VecDeque<Flight>,
    /// How many flights, from the front, have been sent on this connection.
    sent: usize,
    /// PUBRELs to send, with the position that must be durable before.
    pubrels: VecDeque<(u16, Option<u64>)>,
    window: Window,
    /// Bytes of `flights`, about.
    flight_bytes: usize,
    last_id: u16,
    /// So many ids behind `last_id` are known not to be in flight.
    free_ids: u16,
}

/// What is less than half a lap of ids ahead of another is later, and else it is earlier: ids are given in their order.
const ID_AHEAD_MAX: u16 = 0x8000;

/// How much may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// In number.
    pub(crate) messages: usize,
    /// No further message is put in flight from here on: so it is exceeded by one message at most, and one always may be.
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Flight {
    id: u16,
    entry: Entry,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Never sent.
    Fresh,
    /// Sent, on this connection or an earlier one.
    Sent,
    /// QoS 2: the PUBREC has come.
    Received,
}

/// What [`Outbound::poll_assign`] did with the head of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assigned {
    /// It has a packet id. `seq`: the row to note it in.
    Id(u16, Option<u64>),
    /// Its expiry lapsed before it was sent: the row to remove.
    Expired(Option<Row>),
}

/// What [`Outbound::poll_send`] wants sent.
#[derive(Debug)]
pub(crate) enum Transmit<'a> {
    /// A PUBLISH.
    Publish {
        /// Its packet id.
        id: u16,
        /// It may have been sent before.
        dup: bool,
        /// What.
        entry: &'a Entry,
    },
    /// A PUBREL.
    Pubrel(u16),
    /// Nothing: its expiry lapsed before it was sent again. The row to remove.
    Expired(Option<Row>),
    /// Nothing: the client may not have it any more. The row to remove.
    Barred(Option<Row>),
}

/// What a PUBREC means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pubrec {
    /// To be answered by PUBREL ([`Outbound::release`]), once the row `seq` notes it (R17).
    Release(Option<u64>),
    /// It carried an error: the exchange is over, without PUBREL. The row to remove.
    Ended(Option<Row>),
    /// No such exchange.
    Unknown,
}

impl Outbound {
    /// With this window.
    pub(crate) const fn new(window: Window) -> Self {
        Self {
            queue: VecDeque::new(),
            queue_bytes: 0,
            flights: VecDeque::new(),
            sent: 0,
            pubrels: VecDeque::new(),
            window,
            flight_bytes: 0,
            last_id: 0,
            free_ids: 0,
        }
    }

    /// Messages that wait for the window.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Their bytes, about.
    pub(crate) const fn queued_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Bytes in flight, about.
    pub(crate) const fn in_flight_bytes(&self) -> usize {
        self.flight_bytes
    }

    /// Messages in flight.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether [`Outbound::poll_assign`] would do something.
    pub(crate) fn can_assign(&self) -> bool {
        let Window { messages, bytes } = self.window;
        !self.queue.is_empty() && self.flights.len() < messages && self.flight_bytes < bytes
    }

    /// Whether neither [`Outbound::poll_assign`] nor [`Outbound::poll_send`] would do anything, whatever is durable.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.can_assign() && self.sent == self.flights.len() && self.pubrels.is_empty()
    }

    /// Whether something waits for a store position to become durable.
    pub(crate) fn waits_for_store(&self, durable: u64) -> bool {
        let next = self.flights.get(self.sent).and_then(|flight| flight.entry.ready);
        let pubrel = self.pubrels.front().and_then(|(_, ready)| *ready);
        next.is_some_and(|position| position >= durable) || pubrel.is_some_and(|position| position >= durable)
    }

    /// A connection takes over: what is in flight is sent again from the start, at most `window` messages at a time.
    pub(crate) fn handle_connect(&mut self, window: usize) {
        self.window.messages = window.max(1);
        self.sent = 0;
        self.pubrels.clear();
    }

    /// Takes up what was in flight at an earlier time, in order, behind what is there.
    pub(crate) fn restore(&mut self, id: u16, entry: Entry, received: bool) {
        // Never back to an id that was given since: what had it may be over here (lapsed, given up), and its client may acknowledge it yet.
        if self.last_id == 0 || id.wrapping_sub(self.last_id) < ID_AHEAD_MAX {
            self.last_id = id;
        }
        self.free_ids = 0;
        let phase = if received { Phase::Received } else { Phase::Sent };
        self.flight_bytes += entry.bytes();
        self.flights.push_back(Flight { id, entry, phase });
    }

    /// Queues a message.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.queue_bytes += entry.bytes();
        self.queue.push_back(entry);
    }

    /// Takes the oldest message that waits for the window.
    pub(crate) fn pop_oldest(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        self.queue_bytes = self.queue_bytes.saturating_sub(entry.bytes());
        Some(entry)
    }

    /// Takes what another member of a shared subscription may get when this session ends: what was not sent, and what was sent
    /// with QoS 1 and not acknowledged. A QoS 2 message that was sent goes to nobody else (MQTT-4.8.2-5).
    pub(crate) fn take_shared(&mut self) -> Vec<Entry> {
        let may_go = |flight: &Flight| flight.phase == Phase::Fresh || flight.entry.qos == Qos::AtLeastOnce;
        let flights = std::mem::take(&mut self.flights).into_iter().filter(may_go).map(|flight| flight.entry);
        let queue = std::mem::take(&mut self.queue);
        self.clear();
        flights.chain(queue).filter(|entry| entry.share.is_some()).collect()
    }

    /// Forgets all: the store has it.
    pub(crate) fn clear(&mut self) {
        *self = Self { last_id: self.last_id, ..Self::new(self.window) };
    }

    /// Gives the head of the queue a packet id if the window has room. `position` is that of the store unit that notes
    /// the id: a QoS 2 message waits for it (R17), since its id must be the same after a crash. A QoS 1 message does not.
    pub(crate) fn poll_assign(&mut self, position: Option<u64>, now: Moment) -> Option<Assigned> {
        if !self.can_assign() {
            return None;
        }
        let mut entry = self.pop_oldest()?;
        if entry.message.has_expired(now) {
            return Some(Assigned::Expired(entry.row()));
        }
        if entry.seq.is_some() && entry.qos == Qos::ExactlyOnce {
            entry.ready = entry.ready.max(position);
        }
        let (id, seq) = (self.free_id(), entry.seq);
        self.flight_bytes += entry.bytes();
        self.flights.push_back(Flight { id, entry, phase: Phase::Fresh });
        Some(Assigned::Id(id, seq))
    }

    /// The next packet to send. `durable`: the first store position that is not durable. `barred`: whether the client may not have
    /// what is on a topic.
    pub(crate) fn poll_send(
        &mut self,
        durable: u64,
        now: Moment,
        mut barred: impl FnMut(&TopicName) -> bool,
    ) -> Option<Transmit<'_>> {
        let is_durable = |ready: Option<u64>| ready.is_none_or(|position| position < durable);
        if self.pubrels.front().is_some_and(|(_, ready)| is_durable(*ready)) {
            return self.pubrels.pop_front().map(|(id, _)| Transmit::Pubrel(id));
        }
        let at = self.sent;
        let flight = self.flights.get(at)?;
        if at >= self.window.messages || !is_durable(flight.entry.ready) {
            return None;
        }
        if lapsed(flight, now) {
            return self.remove(at).map(|entry| Transmit::Expired(entry.row()));
        }
        if may_go(flight) && barred(&flight.entry.topic) {
            return self.remove(at).map(|entry| Transmit::Barred(entry.row()));
        }
        self.sent += 1;
        let flight = self.flights.get_mut(at)?;
        if flight.phase == Phase::Received {
            return Some(Transmit::Pubrel(flight.id));
        }
        let dup = flight.phase == Phase::Sent;
        flight.phase = Phase::Sent;
        Some(Transmit::Publish { id: flight.id, dup, entry: &flight.entry })
    }

    /// QoS 1: delivered. The entry, or `None` for an id that is not in flight as QoS 1.
    pub(crate) fn handle_puback(&mut self, id: u16) -> Option<Entry> {
        let at = self.find(id, |flight| flight.entry.qos == Qos::AtLeastOnce)?;
        self.remove(at)
    }

    /// QoS 2, first half.
    pub(crate) fn handle_pubrec(&mut self, id: u16, is_error: bool) -> Pubrec {
        let Some(at) = self.find(id, |flight| flight.entry.qos == Qos::ExactlyOnce) else { return Pubrec::Unknown };
        if is_error {
            return Pubrec::Ended(self.remove(at).and_then(|entry| entry.row()));
        }
        let Some(flight) = self.flights.get_mut(at) else { return Pubrec::Unknown };
        flight.phase = Phase::Received;
        Pubrec::Release(flight.entry.seq)
    }

    /// Queues the PUBREL of `id`, to leave when `position` is durable.
    pub(crate) fn release(&mut self, id: u16, position: Option<u64>) {
        self.pubrels.push_back((id, position));
    }

    /// QoS 2, second half: delivered. `None` for an id that has had no PUBREC.
    pub(crate) fn handle_pubcomp(&mut self, id: u16) -> Option<Entry> {
        let at = self.find(id, |flight| flight.phase == Phase::Received)?;
        self.remove(at)
    }

    /// Gives up on what was just sent as `id` (larger than the client takes).
    pub(crate) fn give_up(&mut self, id: u16) -> Option<Entry> {
        let at = self.find(id, |_| true)?;
        self.remove(at)
    }

    /// Acknowledgements come in order as a rule, so the search from the front is short.
    fn find(&self, id: u16, suits: impl Fn(&Flight) -> bool) -> Option<usize> {
        self.flights.iter().take(self.sent).position(|flight| flight.id == id && suits(flight))
    }

    fn remove(&mut self, at: usize) -> Option<Entry> {
        let flight = self.flights.remove(at)?;
        self.flight_bytes = self.flight_bytes.saturating_sub(flight.entry.bytes());
        if at < self.sent {
            self.sent -= 1;
        }
        Some(flight.entry)
    }

    /// The next id that is not in flight; 0 is none. The window is far below 65,535, so there is one. Ids are given in their order,
    /// so what is in flight is looked through once in a lap of ids, and not for each.
    fn free_id(&mut self) -> u16 {
        while self.free_ids == 0 {
            let ahead = |flight: &Flight| flight.id.wrapping_sub(self.last_id).wrapping_sub(1);
            self.free_ids = self.flights.iter().map(ahead).min().unwrap_or(u16::MAX);
            if self.free_ids == 0 {
                self.last_id = self.last_id.wrapping_add(1);
            }
        }
        self.free_ids -= 1;
        self.last_id = self.last_id.wrapping_add(1);
        if self.last_id == 0 { self.free_id() } else { self.last_id }
    }
}

/// R8. A QoS 2 message that may have been sent never lapses, PUBREC or not: the client may hold its id, and would take the
/// next message under that id for a copy (MQTT-4.3.3-7).
fn lapsed(flight: &Flight, now: Moment) -> bool {
    may_go(flight) && flight.entry.message.has_expired(now)
}

/// Whether it may be given up: the client holds no id of it.
fn may_go(flight: &Flight) -> bool {
    flight.phase == Phase::Fresh || flight.entry.qos == Qos::AtLeastOnce
}

#[cfg(test)]
mod tests;
