//! Batches on their way (R28): records whose route has `batch` are sent several as one message.
//!
//! A part that was read waits for others of its route, destination and key. It is not in flight: what is behind it goes on, and is settled. A batch
//! goes when it is full, when its first part has waited for `linger`, when the link stops, and sooner where what waits would become too
//! much: [`PARTS_MAX`], [`PARTS_BYTES_MAX`], or half a window of messages that were sent since its first part came, which a kill would
//! repeat (R9). Where as many wait as three eighths of a window of full batches have, the oldest goes: the last of more would hold all that is
//! sent before it, and one could go at a time. The window in flight counts it as one message. The remote's answer for it is the answer for each of its parts. It is
//! known by the place of its last part.
//!
//! **Sent again** (R11, R12) it is cut where it was cut before, and has the same id, so that a gateway that receives it knows the copy. Where that is not
//! possible, since the process has begun anew or a part has lapsed, it is another message with an id of its own: what has other parts
//! is no copy.
//!
//! A batch that the remote refuses, or at which connections are lost, goes again part by part, each a batch of its own, to find the
//! guilty one: only that becomes a dead letter.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::super::window::{Cut, Fate, InFlight, WHOLE};
use super::super::super::{LinkError, Outgoing, Sent, Sink, SinkConnection};
use super::SinkRunner;
use crate::buffer::{Lane, Offset, Outcome, Place, Record};
use crate::hub::Batch;
use crate::message::{Envelope, MessageId};

/// Records that wait for others, in all batches of a link: ten of the largest.
const PARTS_MAX: usize = 10_000;

/// Bytes of them.
const PARTS_BYTES_MAX: usize = 16 << 20;

/// Records of batches that were sent, or refused, that are known as such, of each kind: all that a window of thousands may have in flight.
/// Of more those of the highest offsets are forgotten, which are needed last: they are cut anew, or refused once more.
const KNOWN_MAX: usize = 1 << 18;

/// What can go together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Group {
    /// The stream.
    at: usize,
    route: Box<str>,
    destination: Box<str>,
    key: Option<Box<str>>,
    /// The sites that they have passed.
    path: Vec<Box<str>>,
}

/// Parts that wait for others, or for room in the window.
#[derive(Debug)]
struct Forming {
    batch: Batch,
    /// The stream, and its lane.
    at: usize,
    lane: Lane,
    backfill: bool,
    /// What had been sent of the stream when the first part came.
    since: u64,
    /// When its first part came.
    began: Instant,
    envelopes: Vec<Envelope>,
    records: Vec<Waiting>,
    bytes: usize,
    payload_bytes: usize,
    /// As these were cut when they were sent before, or are now that they are sent.
    cut: Option<Arc<Cut>>,
    was_sent: bool,
    /// As the client's full queue has given it back.
    packed: Option<Box<Outgoing>>,
}

/// A part's record.
#[derive(Debug)]
struct Waiting {
    record: Record,
    expires: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batches {
    forming: HashMap<Group, Forming>,
    /// In the order in which they go.
    ready: VecDeque<Forming>,
    /// Parts in both, and their bytes.
    parts: usize,
    bytes: usize,
    /// What those count for that wait for others and were not sent before.
    weight: u64,
    /// When parts came that have never been sent: a lost connection does not begin `linger` anew.
    came: BTreeMap<Place, Instant>,
    /// How they were cut that were sent and may have to be sent again.
    cuts: BTreeMap<Place, Arc<Cut>>,
    /// How often routes had changed when these came.
    route_changes: u64,
    /// Parts that go alone: of batches that were refused.
    alone: BTreeSet<Place>,
}

/// A part that was read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) at: usize,
    pub(super) place: Place,
    pub(super) backfill: bool,
    pub(super) envelope: Envelope,
    pub(super) expiry_left_s: Option<u32>,
}

/// When a part came, by all counts.
#[derive(Clone, Copy, Debug)]
struct Came {
    now: Instant,
    /// It was never sent.
    is_new: bool,
    /// So much of its stream had been sent.
    since: u64,
}

/// What one part counts for: so many of them make a message in what a kill repeats.
fn share(batch: &Batch) -> u64 {
    WHOLE / u64::try_from(batch.count.max(1)).unwrap_or(WHOLE)
}

impl Forming {
    /// What it counts for in what a kill repeats, of [`WHOLE`].
    fn weight(&self) -> u64 {
        share(&self.batch).saturating_mul(u64::try_from(self.records.len()).unwrap_or(u64::MAX))
    }

    fn place(&self) -> Place {
        Place { lane: self.lane, offset: self.records.last().map_or(Offset(0), |last| last.record.offset) }
    }

    fn first(&self) -> Offset {
        self.records.first().map_or(Offset(0), |first| first.record.offset)
    }

    fn due(&self) -> Instant {
        self.began + self.batch.linger
    }

    /// The longest that is left of them; `None`: one of them lasts for ever.
    fn expiry_left_s(&self, now: Instant) -> Option<u32> {
        let last = self.records.iter().map(|part| part.expires).reduce(|one, other| Some(one?.max(other?)))??;
        let left = last.saturating_duration_since(now).as_secs().max(1);
        Some(u32::try_from(left).unwrap_or(u32::MAX))
    }

    fn cut(&self, id: MessageId) -> Cut {
        let payload = |envelope: &Envelope| u64::try_from(envelope.message.payload.len()).unwrap_or(u64::MAX);
        let offsets = self.records.iter().map(|part| part.record.offset);
        Cut { id, parts: offsets.zip(self.envelopes.iter().map(payload)).collect(), bytes: self.bytes }
    }

    /// Takes out what has lapsed by `now`.
    fn take_lapsed(&mut self, now: Instant) -> Vec<Record> {
        let is_left = |part: &Waiting| part.expires.is_none_or(|expires| expires > now);
        if self.records.iter().all(is_left) {
            return Vec::new();
        }
        let (mut lapsed, envelopes, records) =
            (Vec::new(), std::mem::take(&mut self.envelopes), std::mem::take(&mut self.records));
        for (envelope, part) in envelopes.into_iter().zip(records) {
            if is_left(&part) {
                self.envelopes.push(envelope);
                self.records.push(part);
            } else {
                self.bytes = self.bytes.saturating_sub(part.record.body.len());
                lapsed.push(part.record);
            }
        }
        lapsed
    }

    /// Each part as a batch of its own.
    fn split(self) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        let Self { batch, at, lane, backfill, since, began, .. } = self;
        self.envelopes.into_iter().zip(self.records).map(move |(envelope, part)| Self {
            batch,
            at,
            lane,
            backfill,
            since,
            began,
            bytes: part.record.body.len(),
            payload_bytes: envelope.message.payload.len(),
            envelopes: vec![envelope],
            records: vec![part],
            cut: None,
            was_sent: false,
            packed: None,
        })
    }
}

impl Batches {
    /// Whether some wait for others.
    pub(super) fn is_forming(&self) -> bool {
        !self.forming.is_empty()
    }

    /// Whether parts of one that was sent before are still to come. All that is read until then was sent before, or waited.
    pub(super) fn is_restoring(&self) -> bool {
        self.forming.values().any(|forming| forming.cut.is_some())
    }

    /// Whether one waits for room in the window: nothing passes it.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the first that waits for others is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.forming.values().filter(|forming| forming.cut.is_none()).map(Forming::due).min()
    }

    /// What is owed still is read again. `sent` is how it had been cut.
    pub(super) fn forget<'a>(
        &mut self,
        sent: impl Iterator<Item = (Lane, &'a Arc<Cut>)>,
        is_owed: impl Fn(Place) -> bool,
    ) {
        self.forming.clear();
        self.ready.clear();
        (self.parts, self.bytes, self.weight) = (0, 0, 0);
        for (lane, cut) in sent {
            self.cuts.extend(cut.parts.iter().map(|(offset, _)| (Place { lane, offset: *offset }, Arc::clone(cut))));
        }
        self.came.retain(|place, _| is_owed(*place));
        self.cuts.retain(|place, _| is_owed(*place));
        self.alone.retain(|place| is_owed(*place));
        while self.cuts.len() > KNOWN_MAX {
            let Some((Place { lane, .. }, cut)) = self.cuts.pop_last() else { break };
            // None is known by half.
            cut.offsets().for_each(|offset| drop(self.cuts.remove(&Place { lane, offset })));
        }
    }

    /// These parts of a lane go by themselves from now on, each.
    pub(super) fn go_alone(&mut self, lane: Lane, these: impl Iterator<Item = Offset>) {
        self.alone.extend(these.map(|offset| Place { lane, offset }));
        while self.alone.len() > KNOWN_MAX {
            self.alone.pop_last();
        }
    }

    /// Takes a part. Answers whether it is the first of its batch.
    fn take(&mut self, part: Part, record: Record, batch: Batch, alone: bool, came: Came) -> bool {
        let Part { at, place, backfill, envelope, expiry_left_s } = part;
        let began = if came.is_new { *self.came.entry(place).or_insert(came.now) } else { came.now };
        let alone = alone || self.alone.contains(&place);
        let cut = self.cuts.get(&place).filter(|_| !alone).cloned();
        let group = Group {
            at,
            route: envelope.batch.clone().unwrap_or_default(),
            destination: envelope.destination.clone(),
            key: envelope.key.clone(),
            path: envelope.message.origin.path.clone(),
        };
        let (payload, most) = (envelope.message.payload.len(), usize::try_from(batch.bytes.0).unwrap_or(usize::MAX));
        let is_other = |forming: &Forming| {
            let is_over = cut.is_none() && forming.payload_bytes.saturating_add(payload) > most;
            alone || forming.cut != cut || is_over
        };
        if self.forming.get(&group).is_some_and(is_other) {
            self.make_ready(&group);
        }
        let held = record.body.len();
        let forming = self.forming.entry(group.clone()).or_insert_with(|| Forming {
            batch,
            at,
            lane: place.lane,
            backfill,
            since: came.since,
            began,
            envelopes: Vec::new(),
            records: Vec::new(),
            bytes: 0,
            payload_bytes: 0,
            cut: cut.clone(),
            was_sent: cut.is_some(),
            packed: None,
        });
        let expires = expiry_left_s.map(|left| came.now + Duration::from_secs(u64::from(left)));
        forming.began = forming.began.min(began);
        forming.bytes = forming.bytes.saturating_add(held);
        forming.payload_bytes = forming.payload_bytes.saturating_add(payload);
        forming.envelopes.push(envelope);
        forming.records.push(Waiting { record, expires });
        let is_first = forming.records.len() == 1;
        let is_full = match &cut {
            Some(cut) => cut.last() == place.offset,
            None => alone || forming.records.len() >= batch.count || forming.payload_bytes >= most,
        };
        if cut.is_none() {
            self.weight = self.weight.saturating_add(share(&batch));
        }
        if is_full {
            self.make_ready(&group);
        }
        self.parts += 1;
        self.bytes = self.bytes.saturating_add(held);
        is_first
    }

    fn make_ready(&mut self, group: &Group) {
        let Some(forming) = self.forming.remove(group) else { return };
        self.does_not_form(&forming);
        self.ready.push_back(forming);
    }

    fn does_not_form(&mut self, forming: &Forming) {
        if forming.cut.is_none() {
            self.weight = self.weight.saturating_sub(forming.weight());
        }
    }

    /// Those of `these`, the oldest first, wait for room in the window from now on.
    fn let_go(&mut self, mut these: impl FnMut(&Group, &Forming) -> bool) -> bool {
        let mut gone: Vec<_> = self.forming.extract_if(|group, forming| these(group, forming)).collect();
        gone.sort_by_key(|(_, forming)| (forming.lane, forming.first()));
        let some = !gone.is_empty();
        for (_, forming) in gone {
            self.does_not_form(&forming);
            self.ready.push_back(forming);
        }
        some
    }

    /// Of a route that sends no batches any more: what comes behind them must not pass them.
    pub(super) fn let_go_of(&mut self, route: &str) -> bool {
        self.let_go(|group, _| *group.route == *route)
    }

    /// One of those with these first parts goes before all others, if it still waits: until it has gone nothing else may. `false`: all of them
    /// are in flight.
    fn bring_forward(&mut self, holders: impl Iterator<Item = (usize, Offset)>) -> bool {
        for (at, first) in holders {
            let is_it = |forming: &Forming| forming.at == at && forming.first() == first;
            let ready = self.ready.iter().position(is_it).and_then(|at| self.ready.remove(at));
            let holder = ready.or_else(|| {
                let (_, forming) = self.forming.extract_if(|_, forming| is_it(forming)).next()?;
                self.does_not_form(&forming);
                Some(forming)
            });
            if let Some(holder) = holder {
                self.ready.push_front(holder);
                return true;
            }
        }
        false
    }

    /// The one whose first part came first; one that was sent before only where there are no others: it is to be cut as it was.
    fn let_go_oldest(&mut self) {
        let age = |forming: &Forming| (forming.cut.is_some(), forming.began, forming.lane, forming.first());
        let oldest = self.forming.values().map(age).min();
        self.let_go(|_, forming| Some(age(forming)) == oldest);
    }

    /// It does not wait any more.
    fn leaves(&mut self, parts: usize, bytes: usize) {
        self.parts = self.parts.saturating_sub(parts);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// With bytes of its own: a part that waits must not keep the read that it came with, which may be thousands of times as large (R36). The
/// batch has no Correlation Data.
fn for_long(record: &mut Record, envelope: &mut Envelope) {
    let (own, payload) = (Bytes::copy_from_slice(&record.body), &mut envelope.message.payload);
    let from = payload.as_ptr().addr().checked_sub(record.body.as_ptr().addr());
    let within = from.filter(|from| from.saturating_add(payload.len()) <= own.len());
    *payload = match within {
        Some(from) => own.slice(from..from.saturating_add(payload.len())),
        // Made anew by its route (R28), or nothing.
        None => Bytes::copy_from_slice(payload),
    };
    envelope.message.properties.correlation_data = None;
    record.body = own;
}

impl<S: Sink> SinkRunner<S> {
    /// What the route of this name says of batches today. Of one that has come to lead elsewhere: nothing, since that link may send batches and
    /// this one none (`exactly_once`).
    pub(super) fn batch_of(&self, route: &str) -> Option<Batch> {
        self.hub.as_ref()?.batch_to(route, &self.common.link)
    }

    /// Routes have changed, and what waits is to go in another way than it came for: it is read again. Nobody wakes the link for that; it looks
    /// around often enough.
    pub(super) fn note_routes(&mut self) {
        let Some(changes) = self.hub.as_ref().map(|hub| hub.route_changes()) else { return };
        if std::mem::replace(&mut self.batches.route_changes, changes) == changes {
            return;
        }
        let is_as_it_came = |forming: &Forming| {
            let route = forming.envelopes.first().and_then(|first| first.batch.as_deref());
            route.and_then(|route| self.batch_of(route)) == Some(forming.batch)
        };
        let batches = &self.batches;
        self.on.regroup |= !batches.forming.values().chain(&batches.ready).all(is_as_it_came);
    }

    /// Puts a record into its batch.
    pub(super) fn gather(&mut self, mut part: Part, mut record: Record, batch: Batch) {
        for_long(&mut record, &mut part.envelope);
        self.pacer.spend(u64::try_from(record.body.len()).unwrap_or(u64::MAX));
        let (at, offset) = (part.at, part.place.offset);
        let since = self.streams.sent_of(at);
        let came = Came {
            now: self.common.now(),
            is_new: !self.streams.was_sent(at, offset) || self.batches.came.contains_key(&part.place),
            since,
        };
        let alone = self.refusals.is_suspicious() || self.streams.one_at_a_time();
        if self.batches.take(part, record, batch, alone, came) {
            self.streams.hold(at, offset, since);
        }
    }

    /// Lets go what is too much.
    pub(super) fn press(&mut self) {
        if !self.batches.is_forming() {
            return;
        }
        let half = (self.ahead_max / 2).max(WHOLE);
        // All of them may have to be sent before the last, and as much again is in flight then: that leaves the window room to be full.
        let are_many = self.batches.weight > (self.ahead_max / 8 * 3).max(WHOLE);
        let is_much = self.batches.parts >= PARTS_MAX || self.batches.bytes >= PARTS_BYTES_MAX;
        if is_much || are_many || (self.streams.ahead() >= self.ahead_max && !self.batches.is_restoring()) {
            self.batches.let_go_oldest();
        }
        // None has been passed by more.
        if self.streams.ahead() < half {
            return;
        }
        let Self { batches, streams, .. } = self;
        batches.let_go(|_, forming| {
            forming.cut.is_none() && streams.sent_of(forming.at).saturating_sub(forming.since) >= half
        });
    }

    /// Lets go what has waited for long enough; all of it where the link stops. One that was sent before waits for those that it had
    /// then: they are being read.
    pub(super) fn let_go_due(&mut self, all: bool) {
        if !self.batches.is_forming() {
            return;
        }
        let now = self.common.now();
        let Self { batches, streams, .. } = self;
        let is_due = |forming: &Forming| match &forming.cut {
            Some(cut) => !streams.may_come(forming.at, cut.last()),
            None => forming.due() <= now,
        };
        batches.let_go(|_, forming| all || is_due(forming));
    }

    /// Sends the batches that are ready, as far as there is room. Where no more messages may go before the oldest that waits has gone (R9), that one
    /// goes first, whole or not.
    pub(super) fn send_ready(&mut self, connection: &mut S::Connection) -> Result<(), LinkError> {
        self.on.waits_for_cursor = false;
        while self.slots() > 0 {
            let is_far_ahead = self.streams.ahead() >= self.ahead_max;
            let is_ready = self.batches.is_ready();
            // What was sent before waits for parts that are being read.
            let waits_for_more = !self.batches.is_forming() || self.batches.is_restoring();
            if !is_ready && (!is_far_ahead || waits_for_more) {
                break;
            }
            if self.streams.is_unsaved() {
                self.on.waits_for_cursor = true;
                break;
            }
            if !is_ready && !self.batches.bring_forward(self.streams.holders()) {
                break;
            }
            let Some(forming) = self.batches.ready.pop_front() else { break };
            let may_go = !is_far_ahead || forming.was_sent || self.streams.is_holder(forming.at, forming.first());
            if may_go {
                self.send_batch(connection, forming)?;
                continue;
            }
            self.batches.ready.push_front(forming);
            if !self.batches.bring_forward(self.streams.holders()) {
                break;
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, connection: &mut S::Connection, mut forming: Forming) -> Result<(), LinkError> {
        let has_lapsed = self.leave_out_lapsed(&mut forming);
        if forming.records.is_empty() {
            return Ok(());
        }
        // As the full queue has given it back, unless some of it is no more.
        let packed = forming.packed.take().filter(|_| !has_lapsed).or_else(|| self.pack(&mut forming));
        let Some(mut outgoing) = packed else {
            self.not_sendable(forming, "transform: the batch cannot be compressed".to_owned());
            return Ok(());
        };
        outgoing.expiry_left_s = forming.expiry_left_s(self.common.now());
        match connection.send(*outgoing)? {
            Sent::Queued => self.sent_batch(forming),
            Sent::Full(same) => {
                self.on.queue_full = true;
                forming.packed = Some(same);
                self.batches.ready.push_front(forming);
            }
            Sent::Refused(reason) => self.not_sendable(forming, reason),
        }
        Ok(())
    }

    /// What lapsed while it waited is not sent. Answers whether there is some.
    fn leave_out_lapsed(&mut self, forming: &mut Forming) -> bool {
        let first = forming.first();
        let lapsed = forming.take_lapsed(self.common.now());
        if lapsed.is_empty() {
            return false;
        }
        self.batches.leaves(lapsed.len(), lapsed.iter().map(|record| record.body.len()).sum());
        for record in &lapsed {
            self.batches.came.remove(&Place { lane: forming.lane, offset: record.offset });
        }
        if let Some(stream) = self.streams.get(forming.at) {
            lapsed.iter().for_each(|record| stream.buffer.settle(record.offset, Outcome::Expired));
        }
        if forming.first() != first || forming.records.is_empty() {
            self.streams.release(forming.at, first);
            if !forming.records.is_empty() {
                self.streams.hold(forming.at, forming.first(), forming.since);
            }
        }
        true
    }

    /// One message of all of them.
    fn pack(&self, forming: &mut Forming) -> Option<Box<Outgoing>> {
        let offsets = forming.records.iter().map(|part| part.record.offset);
        let same = forming.cut.take().filter(|cut| cut.is_of(offsets));
        let first = forming.envelopes.first()?.message.id.clone();
        let is_alone = forming.records.len() == 1;
        let cut = match same {
            Some(same) => same,
            None if is_alone => Arc::new(forming.cut(first)),
            None => Arc::new(forming.cut(self.hub.as_ref()?.new_id())),
        };
        let id = cut.id.clone();
        forming.cut = Some(cut);
        let envelope = forming.batch.pack(&forming.envelopes, id)?;
        let place = forming.place();
        Some(Box::new(Outgoing {
            place,
            seq: format!("{}-{}-{}", self.streams.id, place.lane.number(), place.offset.0),
            backfill: forming.backfill,
            // Told when it goes.
            expiry_left_s: None,
            // No remote keeps an account of batches.
            expired_before: 0,
            envelope,
        }))
    }

    fn sent_batch(&mut self, forming: Forming) {
        let weight = forming.weight();
        self.batches.leaves(forming.records.len(), forming.bytes);
        if self.streams.open() == 0 {
            self.on.progress = Some(self.common.now());
        }
        for part in &forming.records {
            let place = Place { lane: forming.lane, offset: part.record.offset };
            let is_new = self.batches.came.remove(&place).is_some();
            if !is_new && self.streams.was_sent(forming.at, place.offset) {
                self.common.board.again();
            }
        }
        let Some(cut) = forming.cut else { return };
        let body = forming.records.first().filter(|_| forming.records.len() == 1).map(|part| part.record.body.clone());
        let message = InFlight::batch(cut, body.unwrap_or_default(), weight);
        self.streams.sent(forming.at, message);
    }

    /// The link cannot send it as it is: of several each goes by itself.
    fn not_sendable(&mut self, forming: Forming, reason: String) {
        let (at, place, first) = (forming.at, forming.place(), forming.first());
        self.streams.release(at, first);
        if forming.records.len() > 1 {
            tracing::warn!(link = %self.common.link, parts = forming.records.len(), %reason, "a batch cannot be sent, and its parts go one by one");
            self.batches.go_alone(place.lane, forming.records.iter().map(|part| part.record.offset));
            for one in forming.split().rev() {
                self.streams.hold(at, one.first(), one.since);
                self.batches.ready.push_front(one);
            }
            return;
        }
        self.batches.leaves(forming.records.len(), forming.bytes);
        for part in forming.records {
            let before = self.streams.tries(at, part.record.offset);
            self.unsendable(at, place, part.record, reason.clone(), before);
        }
    }

    /// A batch of several goes again part by part.
    pub(super) fn batch_refused(&mut self, place: Place, cut: &Cut, reason: &str) {
        self.batches.go_alone(place.lane, cut.offsets());
        let pause = self.backoff.next(rand::random());
        let reason = format!("a batch of {} was refused, and its parts go one by one: {reason}", cut.parts.len());
        self.streams.answer(place, Fate::Again);
        let first = cut.parts.first().map_or(place.offset, |part| part.0);
        self.send_again_from(Place { lane: place.lane, offset: first }, pause, reason);
    }

    /// What was in flight is read again.
    pub(super) fn forget_batches(&mut self) {
        let Self { batches, streams, .. } = self;
        batches.forget(streams.cuts(), |place| streams.is_owed(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallMs;
    use crate::message::Head;
    use crate::message::tests_support::message;

    fn cut(offsets: impl IntoIterator<Item = u64>) -> Arc<Cut> {
        let id = MessageId { site: "here".into(), run: 1, counter: 1 };
        Arc::new(Cut { id, parts: offsets.into_iter().map(|offset| (Offset(offset), 1)).collect(), bytes: 1 })
    }

    fn at(offset: u64) -> Place {
        Place { lane: Lane::Normal, offset: Offset(offset) }
    }

    /// With `drain: live_first` the cursor stands below a backlog for as long as that lasts.
    #[test]
    fn what_is_settled_is_not_known_any_more_wherever_the_cursor_is() {
        let mut batches = Batches::default();
        let cuts = [cut([10, 12]), cut([11, 13])];
        batches.came.insert(at(10), crate::clock::now().into());
        batches.go_alone(Lane::Normal, [Offset(10), Offset(11)].into_iter());
        batches.forget(cuts.iter().map(|cut| (Lane::Normal, cut)), |place| place.offset.0 % 2 == 1);
        assert_eq!(batches.cuts.keys().map(|place| place.offset.0).collect::<Vec<_>>(), [11, 13]);
        assert_eq!((batches.came.len(), batches.alone.into_iter().collect::<Vec<_>>()), (0, vec![at(11)]));
    }

    #[test]
    fn what_is_known_of_batches_is_bounded_and_none_is_known_by_half() {
        let (mut batches, most) = (Batches::default(), KNOWN_MAX as u64);
        let (first, last) = (cut([0, most + 1]), cut(1..=most));
        batches.forget([&first, &last].into_iter().map(|cut| (Lane::Normal, cut)), |_| true);
        assert_eq!(batches.cuts.len(), KNOWN_MAX, "what is needed last is forgotten, the whole batch");
        assert!(!batches.cuts.contains_key(&at(0)));
        batches.go_alone(Lane::Normal, (0..most + 9).map(Offset));
        assert_eq!((batches.alone.len(), batches.alone.last()), (KNOWN_MAX, Some(&at(most - 1))));
    }

    #[test]
    fn r36_a_part_that_waits_keeps_its_own_bytes_alone() {
        let mut sent = message("t", b"");
        (sent.payload, sent.properties.correlation_data) = (b"81.5".to_vec().into(), Some(b"c".to_vec().into()));
        let head = Head { batch: Some("r"), ..Head::to("a") }.encode();
        let one = [&head[..], &sent.encode()].concat();
        let read = Bytes::from([vec![0; 1 << 20], one.clone()].concat());
        let body = read.slice(1 << 20..);
        let mut envelope = Envelope::decode(body.clone()).unwrap();
        let mut record = Record { offset: Offset(0), appended: WallMs(0), expires: None, body };
        for_long(&mut record, &mut envelope);
        let kept = [&record.body, &envelope.message.payload].map(|kept| kept.as_ptr().addr());
        let all = read.as_ptr().addr()..read.as_ptr().addr() + read.len();
        assert!(kept.iter().all(|at| !all.contains(at)) && read.is_unique(), "the read is kept");
        assert_eq!((&record.body[..], &envelope.message.payload[..]), (&one[..], &b"81.5"[..]));
        assert!((kept[0]..kept[0] + one.len()).contains(&kept[1]), "and nothing twice");
    }
}
