//! The ordered streams of one link, and whose turn it is.
//!
//! With `drain: fifo` there is one a lane: what is owed, in order. With `drain: live_first` there are two (R13): live
//! records, and the backlog that is filled in behind them. Order holds within each; the window in flight is one for all.
//!
//! **Lanes** (R14) are served in their order: nothing of a lower one is sent while a higher one has something to send. What
//! is in flight already is not called back. With `live_first` that holds among the live streams and among the backlogs: a
//! high record of the backlog goes before a low one of it, and takes its turn with what is live.
//!
//! **What is backlog** is decided when the link can send again: when a connection has been made, when a remote that
//! asked us to hold back lets go, and when records are sent again after a pause. If more than a window is owed by then,
//! all of that is backlog and live records begin behind it; up to a window goes at once anyway. A live stream that falls
//! behind while the link sends stays live: then the link is too slow, and order is worth more than haste.
//!
//! **The share** bounds the backlog twice: it takes at most that part of the window, so that a live record never waits for
//! more than that on the line; and while there are live records to send as well, at most that part of what is sent. What
//! live records leave free it may use within its part of the window, so it comes to an end on any line that is not
//! full for ever.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use futures_util::future::select_all;

use super::super::Drain;
use super::super::refusal::LossWatch;
use super::super::window::{Cut, Fate, Flight, InFlight};
use super::super::{Confirmed, LinkError, witness};
use crate::buffer::{Buffer, Lane, Lanes, Mark, Offset, Outcome, Place, Reader, Record, Refused};
use crate::message::Envelope;

/// Bytes read from a buffer at once: enough for full speed with small messages, little to hold.
const READ_BYTES_MAX: usize = 1 << 20;

/// One ordered stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) lane: Lane,
    pub(super) buffer: Buffer,
    /// Backlog behind live records, and marked as such.
    pub(super) backfill: bool,
    reader: Reader,
    mark: Mark,
    flight: Flight,
    /// Read, not yet sent.
    unsent: VecDeque<Record>,
    losses: LossWatch,
    /// The highest offset ever sent in this process: what is sent at or below it again counts as resent.
    sent_high: Option<Offset>,
    /// How often records that are not settled were put on their way before, where they were.
    tries: BTreeMap<Offset, u32>,
    expired: Expired,
}

/// How many records of a stream have lapsed, ever, before the one that is looked at. The stream is looked at in order.
#[derive(Debug, Default)]
struct Expired {
    before: u64,
    /// Lapsed at an earlier look, and not reached yet in this one.
    ahead: VecDeque<Offset>,
}

impl Expired {
    /// Where everything that is not settled is looked at anew.
    fn begin(buffer: &Buffer) -> Self {
        let (before, ahead) = buffer.expired();
        Self { before, ahead: ahead.into() }
    }

    fn before(&mut self, offset: Offset) -> u64 {
        while self.ahead.pop_front_if(|next| *next < offset).is_some() {
            self.before += 1;
        }
        self.before
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    /// In the order in which they are served: live ones before backlog, and the lanes in their order.
    all: Vec<Stream>,
    /// Names the link's buffer: the first part of `tg-seq` (R11).
    pub(super) id: Box<str>,
    drain: Drain,
    /// What the backlog has coming, in per cent of a record, for the live records that went before it.
    credit: u32,
}

/// The first of the streams that has something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// And has it at hand.
    Ready(usize),
    /// And is reading it: nothing may pass it.
    Reading,
    Nothing,
}

impl Stream {
    fn new(lane: Lane, buffer: Buffer, backfill: bool) -> Self {
        Self {
            lane,
            reader: buffer.reader(),
            mark: buffer.mark(),
            buffer,
            backfill,
            flight: Flight::default(),
            unsent: VecDeque::new(),
            losses: LossWatch::default(),
            sent_high: None,
            tries: BTreeMap::new(),
            expired: Expired::default(),
        }
    }

    /// Whether the last record that the remote speaks of is the one that has this number here. One that was dropped or is damaged
    /// speaks for nobody: then the number alone counts.
    async fn has_sent(&self, said: &Confirmed) -> Result<bool, LinkError> {
        let below = said.below.offset;
        if below > self.buffer.end() {
            return Ok(false);
        }
        let last = self.buffer.history(Offset(below.0.saturating_sub(1)), below).next(1, 1).await;
        let last = last.map_err(|error| LinkError::Transient(format!("the buffer cannot be read: {error}")))?;
        let sent = last.into_iter().find_map(|record| Envelope::decode(record.body).ok());
        Ok(sent.is_none_or(|sent| witness(&sent.message.id) == said.witness))
    }

    /// Forgets what it has read and sent.
    fn clear(&mut self) {
        for (offset, _) in self.flight.unsettled().flat_map(InFlight::records) {
            *self.tries.entry(offset).or_default() += 1;
        }
        self.flight.clear();
        self.unsent.clear();
    }
}

impl Streams {
    pub(super) fn new(lanes: &Lanes, drain: Drain) -> Self {
        let backfills: &[bool] = if drain == Drain::Fifo { &[false] } else { &[false, true] };
        let streams = backfills
            .iter()
            .flat_map(|backfill| lanes.iter().map(move |(lane, buffer)| Stream::new(lane, buffer.clone(), *backfill)));
        Self { all: streams.collect(), id: lanes.id().into(), drain, credit: 0 }
    }

    /// Why a lane's log failed, if one did.
    pub(super) fn failed(&self) -> Option<String> {
        self.all.iter().find_map(|stream| stream.mark.progress().failed).map(|reason| reason.to_string())
    }

    pub(super) fn get(&self, at: usize) -> Option<&Stream> {
        self.all.get(at)
    }

    /// The remote has all this, by its own account (R26): what the cursor does not know of yet is settled
    /// without being sent again. What became a dead letter meanwhile stays one, and what had lapsed counts as that.
    ///
    /// # Errors
    /// It speaks of records that the log does not have, or not under these numbers: of another state of it.
    pub(super) async fn settle_below(&self, confirmed: &[Confirmed]) -> Result<(), LinkError> {
        for stream in self.all.iter().filter(|stream| !stream.backfill) {
            let Some(said) = confirmed.iter().find(|said| said.below.lane == stream.lane) else { continue };
            let (place, from) = (said.below, stream.reader.cursor());
            if place.offset <= from {
                continue;
            }
            if !stream.has_sent(said).await? {
                return Err(LinkError::Misconfigured(format!(
                    "the remote has records of this buffer ({}, lane {}) up to number {}, and here other ones have these numbers, or none yet: the buffer was put back to an earlier state, or another gateway has a copy of it. With another `transactional_id` (MQTT: `client_id`) it goes on, and what it holds may be there already",
                    self.id,
                    stream.lane.name(),
                    place.offset.0,
                )));
            }
            let letters: BTreeSet<Offset> = stream.buffer.dead_letters().offsets().into_iter().collect();
            // The ledger has numbers, so it is the same to it which ones of them have lapsed.
            let known = Expired::begin(&stream.buffer).before(place.offset);
            let mut expired = said.expired.map_or(0, |expired| expired.saturating_sub(known));
            for offset in stream.buffer.owed_below(place.offset) {
                let outcome = if letters.contains(&offset) {
                    Outcome::DeadLettered
                } else if expired > 0 {
                    expired -= 1;
                    Outcome::Expired
                } else {
                    Outcome::Delivered
                };
                stream.buffer.settle(offset, outcome);
            }
            let (lane, records) = (stream.lane.name(), place.offset.0 - from.0);
            tracing::info!(lane, records, "the remote has them already, by its own account");
        }
        Ok(())
    }

    /// How many records of a stream have lapsed before this one, ever. To be asked in the order in which they are sent.
    pub(super) fn expired_before(&mut self, at: usize, offset: Offset) -> u64 {
        self.all.get_mut(at).map_or(0, |stream| stream.expired.before(offset))
    }

    /// This one has.
    pub(super) fn has_expired(&mut self, at: usize, offset: Offset) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.expired.before(offset);
            stream.expired.before += 1;
            stream.buffer.settle(offset, Outcome::Expired);
        }
    }

    /// The link can send (again): nothing is in flight, and everything that is not settled is read anew. More than
    /// `window` owed records become backlog, where the link is to send live ones first.
    pub(super) fn begin(&mut self, window: usize) {
        self.credit = 0;
        let split = match self.drain {
            Drain::Fifo => None,
            Drain::LiveFirst { .. } => Some(u64::try_from(window).unwrap_or(u64::MAX)),
        };
        for stream in &mut self.all {
            stream.clear();
            stream.expired = Expired::begin(&stream.buffer);
            // What is settled is not tried again.
            stream.tries = stream.tries.split_off(&stream.reader.cursor());
            let streams = stream.buffer.streams(split.filter(|_| !stream.backfill));
            match (stream.backfill, streams.backlog) {
                (true, Some((from, until))) => stream.reader.seek_range(from, until),
                (true, None) => stream.reader.seek_range(Offset(0), Offset(0)),
                (false, _) if split.is_some() => stream.reader.seek(streams.live),
                (false, _) => stream.reader.seek(stream.reader.cursor()),
            }
        }
    }

    /// Whether [`Streams::begin`] would find more than a `window` to be backlog.
    pub(super) fn is_far_behind(&self, window: usize) -> bool {
        let window = u64::try_from(window).unwrap_or(u64::MAX);
        let live = self.all.iter().filter(|stream| !stream.backfill && self.drain != Drain::Fifo);
        live.map(|stream| stream.mark.done().saturating_sub(stream.buffer.streams(None).live.0))
            .any(|owed| owed > window)
    }

    /// The connection is gone, and what was in flight is unknown.
    pub(super) fn forget(&mut self) {
        self.all.iter_mut().for_each(Stream::clear);
    }

    /// The next records of the first stream that has some, for those that have none at hand. Cancel safe.
    pub(super) async fn read(&mut self, most: usize) -> (usize, Result<Vec<Record>, Refused>) {
        let wanting = self.all.iter_mut().enumerate().filter(|(_, stream)| stream.unsent.is_empty());
        let reads: Vec<_> = wanting
            .map(|(at, stream)| Box::pin(async move { (at, stream.reader.next(most, READ_BYTES_MAX).await) }))
            .collect();
        if reads.is_empty() {
            return std::future::pending().await;
        }
        select_all(reads).await.0
    }

    /// Takes what was read.
    pub(super) fn took(&mut self, at: usize, records: Vec<Record>) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.unsent.extend(records);
        }
    }

    /// How often a record was put on its way before the present connection.
    pub(super) fn tries(&self, at: usize, offset: Offset) -> u32 {
        self.all.get(at).and_then(|stream| stream.tries.get(&offset)).copied().unwrap_or(0)
    }

    /// Whether anything is at hand to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.all.iter().any(|stream| !stream.unsent.is_empty())
    }

    /// The record that goes next, and of which stream it is, with a window of this `size`. `None`: there is nothing to
    /// send, or what should go first is being read.
    pub(super) fn pop(&mut self, size: usize) -> Option<(usize, Record)> {
        let at = self.turn(size)?;
        let record = self.all.get_mut(at)?.unsent.pop_front()?;
        Some((at, record))
    }

    fn turn(&mut self, size: usize) -> Option<usize> {
        let live = self.first(false);
        let Drain::LiveFirst { share } = self.drain else {
            return if let First::Ready(at) = live { Some(at) } else { None };
        };
        let taken: usize = self.all.iter().filter(|stream| stream.backfill).map(|stream| stream.flight.span()).sum();
        let room = taken < (size * usize::from(share) / 100).max(1);
        let backfill = if room { self.first(true) } else { First::Nothing };
        let (share, price) = (u32::from(share), 100_u32.saturating_sub(u32::from(share)));
        match (live, backfill) {
            (First::Ready(_) | First::Reading, First::Ready(at)) if self.credit >= price => {
                self.credit -= price;
                Some(at)
            }
            (First::Ready(at), First::Ready(_) | First::Reading) => {
                self.credit = (self.credit + share).min(100);
                Some(at)
            }
            (First::Ready(at), First::Nothing) | (First::Nothing, First::Ready(at)) => Some(at),
            (First::Reading, _) | (First::Nothing, First::Reading | First::Nothing) => None,
        }
    }

    fn first(&self, backfill: bool) -> First {
        for (at, stream) in self.all.iter().enumerate().filter(|(_, stream)| stream.backfill == backfill) {
            if !stream.unsent.is_empty() {
                return First::Ready(at);
            }
            if stream.reader.is_behind() {
                return First::Reading;
            }
        }
        First::Nothing
    }

    /// The client had no place for it after all.
    pub(super) fn put_back(&mut self, at: usize, record: Record) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.unsent.push_front(record);
        }
    }

    /// It is on its way. Answers whether it was once before.
    pub(super) fn sent(&mut self, at: usize, message: InFlight) -> bool {
        let again = self.was_sent(at, message.offset);
        let Some(stream) = self.all.get_mut(at) else { return false };
        stream.sent_high = stream.sent_high.max(Some(message.offset));
        stream.flight.push(message);
        again
    }

    /// Whether it, or one behind it, was on its way before.
    pub(super) fn was_sent(&self, at: usize, offset: Offset) -> bool {
        self.all.get(at).is_some_and(|stream| stream.sent_high >= Some(offset))
    }

    /// Whether records up to this one are still to be taken.
    pub(super) fn may_come(&self, at: usize, last: Offset) -> bool {
        self.all.get(at).is_some_and(|stream| {
            let is_read = stream.unsent.front().is_some_and(|next| next.offset <= last);
            is_read || (stream.reader.position() <= last && stream.reader.is_behind())
        })
    }

    /// What all messages of a stream count for that were sent on this connection.
    pub(super) fn sent_of(&self, at: usize) -> u64 {
        self.all.get(at).map_or(0, |stream| stream.flight.sent())
    }

    /// A record, the first of a batch, waits for others since so much had been sent.
    pub(super) fn hold(&mut self, at: usize, first: Offset, since: u64) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.flight.hold(first, since);
        }
    }

    /// It does not wait any more, and was not sent.
    pub(super) fn release(&mut self, at: usize, first: Offset) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.flight.release(first);
        }
    }

    /// The oldest of each stream that waits, or waited and is in flight.
    pub(super) fn holders(&self) -> impl Iterator<Item = (usize, Offset)> + '_ {
        self.all.iter().enumerate().filter_map(|(at, stream)| Some((at, stream.flight.holder()?)))
    }

    /// Whether nothing that waits, or waited and is in flight, is older in its stream.
    pub(super) fn is_holder(&self, at: usize, first: Offset) -> bool {
        self.all.get(at).is_some_and(|stream| stream.flight.holder() == Some(first))
    }

    /// What was sent since the oldest record came that is not settled counts for, in all streams: what a kill repeats (R9).
    pub(super) fn ahead(&self) -> u64 {
        self.all.iter().map(|stream| stream.flight.ahead()).sum()
    }

    /// Where the batches were cut that are in flight, or would be sent again.
    pub(super) fn cuts(&self) -> impl Iterator<Item = (Lane, &Arc<Cut>)> {
        let messages =
            self.all.iter().flat_map(|stream| stream.flight.unsettled().map(|message| (stream.lane, message)));
        messages.filter_map(|(lane, message)| Some((lane, message.cut.as_ref()?)))
    }

    /// Whether a record is not settled.
    pub(super) fn is_owed(&self, place: Place) -> bool {
        self.all.iter().find(|stream| stream.lane == place.lane).is_some_and(|own| own.buffer.is_owed(place.offset))
    }

    /// Any of the link's logs.
    pub(super) fn any(&self) -> Option<&Buffer> {
        self.all.first().map(|stream| &stream.buffer)
    }

    /// Whether a window's worth of confirmations is not in the cursor files (R9).
    pub(super) fn is_unsaved(&self) -> bool {
        self.any().is_some_and(Buffer::is_unsaved)
    }

    /// The remote has answered for one: what it was, and of which stream; `None` where nothing waits for this answer.
    pub(super) fn answer(&mut self, place: Place, fate: Fate) -> Option<(usize, InFlight)> {
        let own = self.all.iter_mut().enumerate().filter(|(_, stream)| stream.lane == place.lane);
        let (at, stream, record) = own.into_iter().find_map(|(at, stream)| {
            let record = stream.flight.answer(place.offset, fate)?;
            Some((at, stream, record))
        })?;
        stream.losses.answered(record.first());
        Some((at, record))
    }

    /// Of the message in flight that is known by this place: where it was cut, if it is of several records.
    pub(super) fn cut_at(&self, place: Place) -> Option<Arc<Cut>> {
        let own = self.all.iter().filter(|stream| stream.lane == place.lane);
        own.filter_map(|stream| stream.flight.open_at(place.offset)).find_map(|message| message.several().cloned())
    }

    /// Settles, in each stream, what is confirmed with all that was sent before it; tells each record's payload bytes. What was
    /// confirmed behind an open message is not settled yet: if the open one must be sent again, so must they, for the
    /// last copies to be in order (R10).
    pub(super) fn settle_delivered(&mut self, mut done: impl FnMut(u64)) {
        for stream in &mut self.all {
            while let Some(message) = stream.flight.next_delivered() {
                for (offset, payload_bytes) in message.records() {
                    stream.buffer.settle(offset, Outcome::Delivered);
                    done(payload_bytes);
                }
            }
        }
    }

    /// From the oldest unconfirmed to the newest sent, in all streams.
    pub(super) fn span(&self) -> usize {
        self.all.iter().map(|stream| stream.flight.span()).sum()
    }

    /// How many wait for an answer.
    pub(super) fn open(&self) -> usize {
        self.all.iter().map(|stream| stream.flight.open()).sum()
    }

    /// Bytes held for a possible dead letter or resend.
    pub(super) fn bytes(&self) -> usize {
        self.all.iter().map(|stream| stream.flight.bytes()).sum()
    }

    /// Whether nothing is owed, in flight or elsewhere.
    pub(super) fn is_empty(&self) -> bool {
        self.all.iter().all(|stream| {
            stream.flight.open() == 0 && stream.unsent.is_empty() && stream.buffer.stats().ledger.buffered == 0
        })
    }

    /// R16: the connection was lost with these in flight. The guilty one, if it is found.
    pub(super) fn lost(&mut self) -> Option<(usize, InFlight)> {
        let open = self.open();
        if open == 0 {
            self.all.iter_mut().for_each(|stream| stream.losses.lost_idle());
        }
        let mut guilty = None;
        for (at, stream) in self.all.iter_mut().enumerate() {
            let Some(head) = stream.flight.head().cloned() else { continue };
            if stream.losses.lost(head.first(), open) {
                guilty = Some((at, head));
            }
        }
        guilty
    }

    /// R16: this record's losses are dealt with.
    pub(super) fn acquit(&mut self, at: usize, offset: Offset) {
        if let Some(stream) = self.all.get_mut(at) {
            stream.losses.answered(offset);
        }
    }

    /// R16: whether the next connection has to show first that it lives while nothing is sent.
    pub(super) fn suspects(&self) -> bool {
        self.all.iter().any(|stream| stream.losses.suspects())
    }

    /// R16: the batches at which connections are lost: they go part by part from now on, to find the guilty one.
    pub(super) fn suspect_batches(&self) -> Vec<(Lane, Arc<Cut>)> {
        let suspect = |stream: &Stream| {
            let head = stream.flight.head().filter(|_| stream.losses.one_at_a_time())?;
            Some((stream.lane, Arc::clone(head.several()?)))
        };
        self.all.iter().filter_map(suspect).collect()
    }

    /// R16: whether one record at a time is sent, to find the guilty one.
    pub(super) fn one_at_a_time(&self) -> bool {
        self.all.iter().any(|stream| stream.losses.one_at_a_time())
    }
}
