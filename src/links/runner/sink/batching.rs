//! Batches on their way (R28): records whose route has `batch` are in flight one by one, and sent several as one message.
//!
//! A part takes its place in the window when it is read, so nothing passes it; then it waits for others of its route, destination and
//! key. A batch goes when it is full, when its first part has waited for `linger`, when the window has no room for more parts,
//! and when the link stops. The remote's answer for it is the answer for each of its parts: what was confirmed is settled part by
//! part, and a kill costs what it costs for single records (R9). It is known by the place of its last part.
//!
//! A batch that the remote refuses is sent again part by part, each a batch of its own, to find the guilty one: only that
//! becomes a dead letter.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::super::super::window::Fate;
use super::super::super::{LinkError, Outgoing, Sent, Sink, SinkConnection};
use super::SinkRunner;
use crate::buffer::{Lane, Offset, Place, Record};
use crate::hub::Batch;
use crate::message::{Envelope, MessageId};

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

/// Parts that wait for others.
#[derive(Debug)]
struct Forming {
    batch: Batch,
    lane: Lane,
    backfill: bool,
    due: Instant,
    parts: Vec<Envelope>,
    offsets: Vec<Offset>,
    bytes: usize,
    /// When the last of them expires; `None`: one of them never.
    expires: Option<Instant>,
}

/// Taken out, to be sent.
type Taken = Option<(Group, Forming)>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batches {
    forming: HashMap<Group, Forming>,
    /// The parts of those in flight, by the place of the last.
    sent: BTreeMap<Place, Vec<Offset>>,
    /// Up to here parts go alone.
    alone: BTreeMap<Lane, Offset>,
}

/// A part that is in flight, and to be sent.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) at: usize,
    pub(super) place: Place,
    pub(super) backfill: bool,
    pub(super) envelope: Envelope,
    pub(super) expiry_left_s: Option<u32>,
}

impl Batches {
    /// How many records are in flight that the remote has not been sent.
    pub(super) fn waiting(&self) -> usize {
        self.forming.values().map(|forming| forming.parts.len()).sum()
    }

    /// When the first batch is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.forming.values().map(|forming| forming.due).min()
    }

    /// What was in flight is to be read again.
    pub(super) fn forget(&mut self) {
        self.forming.clear();
        self.sent.clear();
    }

    /// The other parts of the batch that the remote has answered for.
    pub(super) fn answered(&mut self, place: Place) -> Vec<Offset> {
        let mut offsets = self.sent.remove(&place).unwrap_or_default();
        offsets.pop();
        offsets
    }

    fn go_alone(&mut self, lane: Lane, until: Offset) {
        let alone = self.alone.entry(lane).or_insert(until);
        *alone = (*alone).max(until);
    }

    fn goes_alone(&self, place: Place) -> bool {
        self.alone.get(&place.lane).is_some_and(|until| place.offset <= *until)
    }

    /// Takes a part; answers what has to go before it, and what is full with it.
    fn take(&mut self, part: Part, batch: Batch, now: Instant) -> [Taken; 2] {
        let Part { at, place, backfill, envelope, expiry_left_s } = part;
        let group = Group {
            at,
            route: envelope.batch.clone().unwrap_or_default(),
            destination: envelope.destination.clone(),
            key: envelope.key.clone(),
            path: envelope.message.origin.path.clone(),
        };
        let count = if self.goes_alone(place) { 1 } else { batch.count };
        let (bytes, most) = (envelope.message.payload.len(), usize::try_from(batch.bytes.0).unwrap_or(usize::MAX));
        let is_over = |forming: &Forming| forming.bytes.saturating_add(bytes) > most || count == 1;
        let before = self.forming.get(&group).is_some_and(is_over).then(|| self.forming.remove_entry(&group)).flatten();
        let expires = expiry_left_s.map(|left| now + Duration::from_secs(u64::from(left)));
        let forming = self.forming.entry(group.clone()).or_insert_with(|| Forming {
            batch,
            lane: place.lane,
            backfill,
            due: now + batch.linger,
            parts: Vec::new(),
            offsets: Vec::new(),
            bytes: 0,
            expires,
        });
        forming.expires = forming.expires.zip(expires).map(|(one, other)| one.max(other));
        forming.bytes = forming.bytes.saturating_add(bytes);
        forming.parts.push(envelope);
        forming.offsets.push(place.offset);
        let is_full = forming.parts.len() >= count || forming.bytes >= most;
        [before, is_full.then(|| self.forming.remove_entry(&group)).flatten()]
    }

    /// It could not go after all. What has come meanwhile goes with it.
    fn put_back(&mut self, group: Group, mut forming: Forming) {
        if let Some(newer) = self.forming.remove(&group) {
            forming.parts.extend(newer.parts);
            forming.offsets.extend(newer.offsets);
            forming.bytes = forming.bytes.saturating_add(newer.bytes);
            forming.expires = forming.expires.zip(newer.expires).map(|(one, other)| one.max(other));
        }
        self.forming.insert(group, forming);
    }

    /// Takes out what is due by `now`, or all, the oldest first.
    fn take_due(&mut self, now: Option<Instant>) -> Vec<(Group, Forming)> {
        let is_due = |_: &Group, forming: &mut Forming| now.is_none_or(|now| forming.due <= now);
        let mut due: Vec<_> = self.forming.extract_if(is_due).collect();
        due.sort_by_key(|(_, forming)| forming.offsets.first().copied());
        due
    }
}

/// A number for the batches of one lane of one buffer (FNV-1a, 64 bits): with the number of the last record, and how many there are, it
/// makes an id that no other batch has.
fn run(buffer: &str, lane: Lane) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    buffer.bytes().chain([lane.number()]).fold(0xcbf2_9ce4_8422_2325, step)
}

impl<S: Sink> SinkRunner<S> {
    /// What the route of this record says of batches today.
    pub(super) fn batch_of(&self, envelope: &Envelope) -> Option<Batch> {
        self.hub.as_ref()?.batch(envelope.batch.as_deref()?)
    }

    /// Puts a record in flight, and into its batch.
    pub(super) fn gather(
        &mut self,
        connection: &mut S::Connection,
        part: Part,
        record: Record,
        batch: Batch,
    ) -> Result<(), LinkError> {
        let payload_bytes = u64::try_from(part.envelope.message.payload.len()).unwrap_or(u64::MAX);
        self.sent(part.at, record, payload_bytes);
        let taken = self.batches.take(part, batch, self.common.now());
        for (group, forming) in taken.into_iter().flatten() {
            self.send_batch(connection, group, forming)?;
        }
        Ok(())
    }

    /// Sends the batches that are due; all of them where the window has no room for more parts, or the link stops.
    pub(super) fn send_batches(&mut self, connection: &mut S::Connection, all: bool) -> Result<(), LinkError> {
        if self.batches.waiting() == 0 || self.may_not_send() {
            return Ok(());
        }
        let is_full = self.room() == 0;
        let now = (!all && !is_full).then(|| self.common.now());
        for (group, forming) in self.batches.take_due(now) {
            self.send_batch(connection, group, forming)?;
        }
        Ok(())
    }

    /// When to look whether batches are due.
    pub(super) fn batches_due(&self) -> Option<Instant> {
        self.batches.due().filter(|_| !self.may_not_send())
    }

    fn may_not_send(&self) -> bool {
        let on = &self.on;
        on.blocked || on.queue_full || on.rewind.is_some() || on.regroup || on.idle_until.is_some()
    }

    fn send_batch(&mut self, connection: &mut S::Connection, group: Group, forming: Forming) -> Result<(), LinkError> {
        let Some(last) = forming.offsets.last().copied() else { return Ok(()) };
        if self.may_not_send() {
            self.batches.put_back(group, forming);
            return Ok(());
        }
        let place = Place { lane: forming.lane, offset: last };
        let site = self.hub.as_ref().map(|hub| hub.site()).unwrap_or_default();
        let id = MessageId { site, run: run(&self.streams.id, forming.lane), counter: last.0 };
        let Some(envelope) = forming.batch.pack(&forming.parts, id) else {
            self.batch_refused(place, forming.offsets, "transform: the batch cannot be compressed".to_owned());
            return Ok(());
        };
        let now = self.common.now();
        let left = forming.expires.map(|expires| expires.saturating_duration_since(now).as_secs().max(1));
        let outgoing = Outgoing {
            place,
            seq: format!("{}-{}-{}", self.streams.id, forming.lane.number(), last.0),
            backfill: forming.backfill,
            expiry_left_s: left.map(|left| u32::try_from(left).unwrap_or(u32::MAX)),
            envelope,
        };
        match connection.send(outgoing)? {
            Sent::Queued => {
                if self.streams.open() == self.batches.waiting() + forming.offsets.len() {
                    self.on.progress = Some(now);
                }
                self.batches.sent.insert(place, forming.offsets);
            }
            Sent::Full(_same) => {
                self.on.queue_full = true;
                self.batches.put_back(group, forming);
            }
            Sent::Refused(reason) => self.batch_refused(place, forming.offsets, reason),
        }
        Ok(())
    }

    /// A batch of several parts goes again part by part.
    pub(super) fn batch_refused(&mut self, place: Place, offsets: Vec<Offset>, reason: String) {
        let (Some(first), true) = (offsets.first().copied(), offsets.len() > 1) else {
            return self.refused(place, reason);
        };
        self.batches.go_alone(place.lane, place.offset);
        let pause = self.backoff.next(rand::random());
        let reason = format!("a batch of {} was refused, and its parts go one by one: {reason}", offsets.len());
        self.batch_goes_again(place.lane, &offsets);
        self.send_again_from(Place { lane: place.lane, offset: first }, pause, reason);
    }

    /// None of these is taken; answers the first that waits for an answer.
    pub(super) fn batch_goes_again(&mut self, lane: Lane, offsets: &[Offset]) {
        for offset in offsets {
            self.streams.answer(Place { lane, offset: *offset }, Fate::Again);
        }
    }
}
