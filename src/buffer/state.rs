//! What publishers, the reader and the writer share: one short lock, never held over I/O or an `.await`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::batch::{Batch, Frame, Taken};
use super::catalogue::Catalogue;
use super::cursor::{Drop, Passed, Tracker};
use super::format::{FRAME_HEADER, record_len};
use super::log::RESERVE;
use super::quota::Siblings;
use super::retention::Retention;
use super::segment::Segment;
use super::spill::Spill;
use super::tail::Tail;
use super::{Config, MarkSender, Outcome, Refused, Stats, Streams, SyncMode, WhenFull, wide};
use crate::buffer::Offset;
use crate::clock::{Clock, Moment, WallMs};

/// Staged bytes that the writer has not written yet, at most: more makes offers wait, whatever the policy. Some tens
/// of milliseconds of a fast disk.
pub(super) const STAGED_BYTES_MAX: u64 = 8 << 20;
/// What closing a segment and beginning another may take on disk.
const CLOSING_BYTES: u64 = 2 << 10;
/// How often the same trouble is logged.
pub(super) const LOG_EVERY: Duration = Duration::from_secs(10);
/// Largest segment.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Smallest segment, where the quota allows it.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// What the configuration comes to.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) max_size: u64,
    pub(super) max_age: Option<Duration>,
    pub(super) when_full: WhenFull,
    pub(super) min_free: Option<u64>,
    pub(super) sync: SyncMode,
    pub(super) segment_bytes: u64,
    pub(super) staged_bytes: u64,
    /// Confirmations that may be unsaved (R9).
    pub(super) window: u64,
}

impl Limits {
    pub(super) fn of(config: &Config, window: usize) -> Self {
        let max_size = config.max_size.0;
        let least = SEGMENT_BYTES_MIN.min(max_size / 8).max(4096);
        let segment_bytes = (max_size / 32).clamp(least, SEGMENT_BYTES_MAX.max(least));
        Self {
            max_size,
            max_age: config.max_age,
            when_full: config.when_full,
            min_free: config.min_free.map(|size| size.0),
            sync: config.sync,
            segment_bytes,
            // A batch must not be larger than what a segment of a small log can be.
            staged_bytes: STAGED_BYTES_MAX.min((max_size / 8).max(4096)),
            window: wide(window.max(1)),
        }
    }
}

/// Why the disk is short, apart from `max_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pressure {
    #[default]
    None,
    /// Less than `min_free` is left, or the disk said that it is full.
    Short,
    /// Short, and something was given up; the writer will see whether that is enough.
    Freeing,
}

/// What admission answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted(u64),
    Wait,
    DroppedNewest,
    Refused(Refused),
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) next: u64,
    pub(super) staged: Batch,
    /// With `sync: spill`.
    pub(super) spill: Option<Spill>,
    /// Bytes that the writer has in hand.
    pub(super) in_write: u64,
    /// Bytes of permits that are out.
    pub(super) granted: u64,
    pub(super) tracker: Tracker,
    /// In order; the last one is being written while `active`.
    pub(super) segments: Catalogue,
    pub(super) active: bool,
    pub(super) retention: Retention,
    /// The active segment is to be closed although it is not full, so that it can go.
    pub(super) roll: bool,
    pub(super) tail: Tail,
    pub(super) pressure: Pressure,
    pub(super) failed: Option<Arc<str>>,
    /// Why the cursor could not be saved when it was last tried.
    pub(super) cursor_error: Option<Arc<str>>,
    /// Of delivered segments that cannot be deleted.
    pub(super) stuck_bytes: u64,
    pub(super) closing: bool,
    /// No more offers, and what has room already may still come: before a close in a gateway that goes on.
    pub(super) sealed: bool,
    pub(super) turned_away: TurnedAway,
    /// Something for the writer to look at.
    pub(super) poked: bool,
}

/// Offers that were refused or dropped since this was last logged.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    count: u64,
    logged: Option<Instant>,
}

impl TurnedAway {
    fn note(&mut self, offers: u64, now: Instant, policy: WhenFull, why: Drop) {
        self.count += offers;
        if self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY) {
            tracing::warn!(count = self.count, ?policy, ?why, "the buffer is full: offers are refused or dropped");
            *self = Self { count: 0, logged: Some(now) };
        }
    }
}

impl State {
    /// What is staged, for the writer.
    pub(super) fn take_staged(&mut self) -> Option<Taken> {
        if self.staged.is_empty() {
            return None;
        }
        let spare = self.tail.spare.take();
        self.staged.take(spare)
    }

    /// Bytes that are staged and not written yet.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.staged.bytes() + self.in_write + self.spill.as_ref().map_or(0, Spill::bytes)
    }

    /// The frame with `offset`, as far as it is in memory and a reader may see it.
    pub(super) fn frame_in_memory(&mut self, offset: u64) -> Option<&Frame> {
        let Self { tail, spill, staged, .. } = self;
        tail.frame_with(offset).or_else(|| spill.as_mut()?.frame_with(offset, staged))
    }

    /// The cursor has moved.
    fn floor_moved(&mut self) {
        let floor = self.tracker.floor();
        self.tail.forget_below(floor);
        if let Some(spill) = &mut self.spill {
            spill.settled_below(floor, &mut self.staged);
        }
    }

    /// A record was confirmed: perhaps the remote is not behind any more.
    fn confirmed(&mut self, offset: u64, now: Moment) {
        let at = self.frame_in_memory(offset).map(|frame| frame.at);
        if let (Some(at), Some(spill)) = (at, &mut self.spill) {
            spill.confirmed(at, now);
        }
    }

    /// How long what is staged may still wait (`sync: spill`).
    pub(super) fn spill_due_in(&self, now: Moment) -> Option<Duration> {
        self.spill.as_ref().and_then(|spill| spill.due_in(&self.staged, now))
    }

    /// What is staged cannot stay in memory.
    fn urge(&mut self) {
        if let Some(spill) = &mut self.spill {
            spill.urge();
        }
    }

    /// Bytes that have been taken and are not written.
    fn unwritten(&self) -> u64 {
        self.staged_bytes() + self.granted
    }

    fn in_use(&self) -> u64 {
        self.disk_bytes() + self.unwritten() + CLOSING_BYTES
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.bytes()
    }

    /// Segments of which everything is settled, for a cursor that has passed this much, and that are not being written; the
    /// oldest first. With streams there may be others between them that are still owed (R13).
    fn settled<'a>(&'a self, passed: &'a Passed) -> impl Iterator<Item = (usize, &'a Segment)> + Clone + 'a {
        let closed = self.segments.len() - usize::from(self.active && !self.segments.is_empty());
        let is_done = |segment: &Segment| passed.covers(segment.base, segment.next);
        let in_order = passed.is_in_order();
        let reached = self.segments.iter().enumerate().take(closed);
        reached
            .take_while(move |(_, segment)| !in_order || is_done(segment))
            .filter(move |(_, segment)| is_done(segment))
    }

    /// Whether there is a segment that is to go at `now`.
    pub(super) fn is_deletable(&self, now: Moment) -> bool {
        self.deletable(&self.tracker.passed(), now).is_some()
    }

    /// Where the first segment stands that is to go at `now`, for a cursor that has passed this much.
    pub(super) fn deletable(&self, passed: &Passed, now: Moment) -> Option<usize> {
        let settled = self.settled(passed);
        let due = self.retention.due(settled.clone().map(|(_, segment)| segment), now);
        settled.take(due).next().map(|(at, _)| at)
    }

    /// Bytes of segments that are settled and still there.
    pub(super) fn settled_bytes(&self) -> u64 {
        self.settled(&self.tracker.passed()).map(|(_, segment)| segment.bytes).sum()
    }

    /// Whether space will come back by itself: the writer has only to be asked. What is kept although it is delivered goes then.
    pub(super) fn reclaimable(&mut self) -> bool {
        if self.settled(&self.tracker.passed()).next().is_some() {
            self.retention.need_one();
            return true;
        }
        let floor = self.tracker.floor();
        let settled = self.segments.len() == 1
            && self.active
            && self.segments.front().is_some_and(|only| only.next > only.base && only.next <= floor);
        self.roll |= settled;
        settled
    }

    /// Gives up the oldest segment. `false`: there is nothing to give up.
    pub(super) fn drop_oldest(&mut self, why: Drop) -> bool {
        let only = self.segments.len() == 1 && self.active;
        match self.segments.front().map(|oldest| (oldest.base, oldest.next)) {
            Some((base, next)) if only => {
                self.roll |= next > base;
                next > base
            }
            Some((_, next)) => {
                if self.pressure == Pressure::Short {
                    self.pressure = Pressure::Freeing;
                }
                let dropped = self.tracker.drop_to(next, why);
                tracing::warn!(dropped, below = next, ?why, "the oldest buffered records are dropped");
                self.floor_moved();
                true
            }
            None => false,
        }
    }

    pub(super) fn drop_aged(&mut self, max_age: Duration, now: Moment) {
        let mut below = 0;
        for segment in self.segments.iter() {
            below = below.max(segment.aged_below(max_age, now));
            if below < segment.next {
                break;
            }
        }
        if below > self.tracker.floor() {
            let dropped = self.tracker.drop_to(below, Drop::Age);
            self.floor_moved();
            if dropped > 0 {
                tracing::warn!(dropped, below, "records older than max_age are dropped");
            }
        }
    }

    fn oldest(&self) -> Option<Moment> {
        let floor = self.tracker.floor();
        if self.tracker.owed(self.next) == 0 {
            return None;
        }
        if let Some(frame) = self.tail.frame_with(floor) {
            return Some(frame.at);
        }
        let segment = self.segments.iter().find(|segment| segment.next > floor);
        segment.map_or_else(
            || self.spill.as_ref().map_or_else(|| self.staged.at(), |spill| spill.oldest(&self.staged)),
            |segment| {
                let at = segment.points.partition_point(|point| point.offset <= floor);
                let point = segment.points.get(at.saturating_sub(1));
                point.map(|point| point.at).or(segment.last)
            },
        )
    }

    fn depth_bytes(&self) -> u64 {
        let floor = self.tracker.floor();
        let from = |at| -> u64 {
            let stored: u64 = self.segments.iter().map(|segment| segment.payload_from(at)).sum();
            stored + self.spill.as_ref().map_or(0, |spill| spill.payload_from(at))
        };
        let streamed: u64 = self.tracker.streamed_ranges().map(|(start, pos)| from(start) - from(pos)).sum();
        from(floor).saturating_sub(streamed) + self.staged.payload()
    }
}

/// The state, and those who wait for it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// How many records are staged, for a writer that looks at it without standing in the publishers' way.
    pub(super) staged: AtomicU64,
    poke: Condvar,
    pub(super) mark: MarkSender,
    /// With `sync: spill`: records below may be read, durable or not.
    pub(super) readable: watch::Sender<u64>,
    /// Moves with each save of the cursor.
    pub(super) saves: watch::Sender<()>,
    /// Moves when space may have come back.
    pub(super) room: watch::Sender<u64>,
    /// Closed to offers and readers.
    pub(super) closed: watch::Sender<bool>,
    /// The writer has ended.
    pub(super) ended: watch::Sender<bool>,
    /// What the cursor that was synced last has passed.
    pub(super) saved: watch::Sender<Passed>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    /// The other lanes of the link, where it has some.
    siblings: OnceLock<Siblings>,
}

/// What the first look at an offer says.
enum Look {
    Decided(Verdict),
    /// There is no room, for this reason.
    Short(Drop),
}

impl Shared {
    pub(super) fn new(state: State, durable: u64, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::new(state),
            staged: AtomicU64::new(0),
            poke: Condvar::new(),
            mark: MarkSender::new(durable),
            readable: watch::Sender::new(0),
            saves: watch::Sender::new(()),
            room: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            saved: watch::Sender::new(Passed::default()),
            clock,
            limits,
            siblings: OnceLock::new(),
        }
    }

    /// From now on the quota is that of these lanes together. Once, before the first offer.
    pub(super) fn share_quota(&self, siblings: Siblings) {
        // A second call would be a mistake of the wiring, and the first one goes on to be right.
        drop(self.siblings.set(siblings));
    }

    /// Bytes that a record of `bytes` takes at most.
    pub(super) const fn need(bytes: usize) -> u64 {
        (record_len(bytes, true) + FRAME_HEADER) as u64
    }

    /// Decides one offer, by the rules that stand beside [`Refused`], [`WhenFull`], R4 and R14.
    pub(super) fn judge(&self, bytes: usize) -> Verdict {
        self.judge_by(self.limits.when_full, bytes)
    }

    /// The same by another policy than the link's.
    pub(super) fn judge_by(&self, policy: WhenFull, bytes: usize) -> Verdict {
        let _gate = self.siblings.get().map(Siblings::gate);
        match self.look(policy, bytes) {
            Look::Decided(verdict) => verdict,
            Look::Short(why) => self.make_way(policy, why),
        }
    }

    fn look(&self, policy: WhenFull, bytes: usize) -> Look {
        let need = Self::need(bytes);
        let elsewhere = self.siblings.get().map_or(0, Siblings::in_use);
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(reason) = &state.failed {
            return Look::Decided(Verdict::Refused(Refused::Failed(Arc::clone(reason))));
        }
        if state.closing || state.sealed {
            return Look::Decided(Verdict::Refused(Refused::Closed));
        }
        // It would not fit if everything else went.
        if need.saturating_mul(2) > self.limits.max_size || bytes >= super::format::FRAME_BODY_MAX - 64 {
            return Look::Decided(self.turn_away(state, policy, Drop::WhenFull));
        }
        let staged = state.staged_bytes();
        // Room that is granted counts little here: its holder may be waiting for another link.
        let behind = staged > 0 && staged + need > self.limits.staged_bytes;
        if behind || state.granted > self.limits.staged_bytes.saturating_mul(8) {
            if behind && state.spill.is_some() {
                state.urge();
                self.poke_locked(state);
            }
            return Look::Decided(Verdict::Wait);
        }
        match state.pressure {
            Pressure::Short => Look::Short(Drop::MinFree),
            Pressure::Freeing => Look::Decided(Verdict::Wait),
            Pressure::None if state.in_use() + need + elsewhere > self.limits.max_size => Look::Short(Drop::WhenFull),
            Pressure::None => {
                state.granted += need;
                Look::Decided(Verdict::Granted(need))
            }
        }
    }

    /// There is no room: what costs nothing goes, then what `when_full` gives up.
    fn make_way(&self, policy: WhenFull, why: Drop) -> Verdict {
        let siblings = self.siblings.get();
        let elsewhere = self.reclaim_elsewhere();
        if self.reclaim() || elsewhere {
            return Verdict::Wait;
        }
        match policy {
            WhenFull::Block => return Verdict::Wait,
            WhenFull::DropOldest if self.drop_lowest(why) => return Verdict::Wait,
            WhenFull::DropOldest | WhenFull::DropNewest | WhenFull::Reject => {}
        }
        // What higher lanes hold is not given up for it: it is the lowest itself.
        let yields = policy == WhenFull::DropOldest && siblings.is_some_and(Siblings::higher_hold_some);
        let policy = if yields { WhenFull::DropNewest } else { policy };
        self.turn_away(&mut self.state.lock(), policy, why)
    }

    /// Lets the lowest lane that has something give up its oldest records. Whether one did, or will once it is written.
    pub(super) fn drop_lowest(&self, why: Drop) -> bool {
        if self.siblings.get().is_some_and(|siblings| siblings.drop_from_lower(why)) {
            let mut state = self.state.lock();
            if state.pressure == Pressure::Short {
                state.pressure = Pressure::Freeing;
            }
            return true;
        }
        let mut state = self.state.lock();
        let some = state.drop_oldest(why) || state.unwritten() > 0;
        if some {
            state.urge();
            self.poke_locked(&mut state);
        }
        some
    }

    /// Gives up the records `[from, to)`, which were let in and have no room (`drop_newest`). `false`: not possible.
    pub(super) fn drop_newest(&self, from: u64, to: u64) -> bool {
        let mut state = self.state.lock();
        let Some(dropped) = state.tracker.drop_range(from, to, Drop::MinFree) else { return false };
        state.turned_away.note(dropped, self.clock.now(), WhenFull::DropNewest, Drop::MinFree);
        state.floor_moved();
        true
    }

    /// The same for this lane alone, asked by a higher one. What waits for a full disk cannot be given up.
    pub(super) fn give_up(&self, why: Drop) -> bool {
        let mut state = self.state.lock();
        let being_written = state.staged_bytes() > 0 && state.pressure == Pressure::None;
        let some = state.drop_oldest(why) || being_written;
        if some {
            state.urge();
            self.poke_locked(&mut state);
        }
        some
    }

    /// Asks the writer for what is settled. Whether that is something.
    pub(super) fn reclaim(&self) -> bool {
        let mut state = self.state.lock();
        let some = state.reclaimable();
        if some {
            self.poke_locked(&mut state);
        }
        some
    }

    /// The same of the other lanes.
    pub(super) fn reclaim_elsewhere(&self) -> bool {
        self.siblings.get().is_some_and(Siblings::reclaim)
    }

    /// Bytes on disk, and those that may still be written.
    pub(super) fn in_use(&self) -> u64 {
        self.state.lock().in_use()
    }

    /// Whether records are owed.
    pub(super) fn owes(&self) -> bool {
        let state = self.state.lock();
        state.tracker.owed(state.next) > 0
    }

    fn turn_away(&self, state: &mut State, policy: WhenFull, why: Drop) -> Verdict {
        state.turned_away.note(1, self.clock.now(), policy, why);
        if policy == WhenFull::DropNewest {
            state.tracker.drop_unnumbered(why);
            return Verdict::DroppedNewest;
        }
        Verdict::Refused(Refused::Full)
    }

    /// Gives a permit's room back.
    pub(super) fn give_back(&self, need: u64) {
        self.state.lock().granted -= need;
        self.make_room();
    }

    /// Stages one record with a permit of `need`.
    pub(super) fn append(&self, need: u64, parts: &[&[u8]], expires: Option<WallMs>) -> Offset {
        let mut state = self.state.lock();
        let state = &mut *state;
        let offset = state.next;
        state.next += 1;
        state.granted -= need;
        if state.sealed {
            self.make_own_room();
        }
        if state.spill.is_some() {
            self.append_to_spill(state, offset, parts, expires, self.clock.moment());
            return Offset(offset);
        }
        let is_first = state.staged.is_empty();
        // A frame has the time of its first record by all clocks, its records their distance from it by one.
        let wall = self.clock.wall_of_tick();
        let now = state.staged.moment_of(wall).unwrap_or_else(|| Moment { wall, ..self.clock.moment() });
        state.staged.push(offset, parts, expires, now);
        self.staged.store(state.staged.count(), Ordering::Relaxed);
        if is_first {
            self.poke_locked(state);
        }
        Offset(offset)
    }

    /// Stages a record that the remote may confirm before it is written.
    fn append_to_spill(&self, state: &mut State, offset: u64, parts: &[&[u8]], expires: Option<WallMs>, now: Moment) {
        let Some(spill) = &mut state.spill else { return };
        let first = spill.oldest(&state.staged).is_none();
        spill.before(offset, &mut state.staged, now);
        state.staged.push(offset, parts, expires, now);
        let much = spill.bytes() + state.staged.bytes() > self.limits.staged_bytes / 2;
        if much {
            spill.urge();
        }
        let running_out = offset + RESERVE / 2 > spill.reserved();
        if offset < spill.reserved() {
            self.readable.send_replace(offset + 1);
        }
        if first || much || running_out {
            self.poke_locked(state);
        }
    }

    /// See [`super::Buffer::owed_below`].
    pub(super) fn owed_below(&self, below: Offset) -> Vec<Offset> {
        let state = self.state.lock();
        (state.tracker.floor()..below.0).filter(|at| state.tracker.is_owed(*at)).map(Offset).collect()
    }

    /// See [`super::Buffer::expired`].
    pub(super) fn expired(&self) -> (u64, Vec<Offset>) {
        let state = self.state.lock();
        let (passed, waiting) = state.tracker.expired();
        (passed, waiting.map(Offset).collect())
    }

    pub(super) fn settle(&self, offset: Offset, outcome: Outcome) {
        let mut state = self.state.lock();
        let was_changed = state.tracker.is_changed();
        let floor = state.tracker.floor();
        if offset.0 >= state.next {
            return;
        }
        state.tracker.settle(offset.0, outcome);
        let new_floor = state.tracker.floor();
        if outcome == Outcome::Delivered && state.spill.as_ref().is_some_and(Spill::is_behind) {
            state.confirmed(offset.0, self.clock.moment());
        }
        if new_floor > floor {
            state.floor_moved();
        }
        let acknowledges = state.spill.is_some() && new_floor > floor;
        let due = state.tracker.unsaved() >= self.limits.window;
        let first = !was_changed && state.tracker.is_changed();
        let closed_segment = state.segments.front().is_some_and(|front| front.next <= new_floor && front.next > floor);
        if due || first || closed_segment || acknowledges {
            self.poke_locked(&mut state);
        }
    }

    /// The cursor file holds so many more confirmations: readers may go on (R9), those of the other lanes too.
    pub(super) fn saved(&self, confirmations: u64) {
        self.state.lock().tracker.saved(confirmations);
        self.wake_reader();
        if let Some(siblings) = self.siblings.get() {
            siblings.saved();
        }
    }

    pub(super) fn wake_reader(&self) {
        self.saves.send_replace(());
    }

    /// Whether a window's worth of confirmations is unsaved, in all lanes of the link together, so that nothing more may be read
    /// before they are (R9). A lane saves when its part of the window is, so one of them is about to.
    pub(super) fn is_unsaved(&self) -> bool {
        if self.state.lock().failed.is_some() {
            return false;
        }
        let (elsewhere, window) =
            self.siblings.get().map_or((0, self.limits.window), |siblings| (siblings.unsaved(), siblings.window()));
        self.unsaved() + elsewhere >= window
    }

    pub(super) fn is_owed(&self, offset: Offset) -> bool {
        self.state.lock().tracker.is_owed(offset.0)
    }

    /// Confirmations that are not saved. A log that has failed holds nobody up.
    pub(super) fn unsaved(&self) -> u64 {
        let state = self.state.lock();
        if state.failed.is_some() { 0 } else { state.tracker.unsaved() }
    }

    /// Where the streams are, after a new one has begun if more than `most` records are owed from the last one on.
    pub(super) fn streams(&self, most: Option<u64>) -> Streams {
        let mut state = self.state.lock();
        let durable = self.mark.progress().done;
        if most.is_some_and(|most| state.tracker.begin_stream(durable, most)) {
            let backlog = state.tracker.owed(durable);
            tracing::info!(backlog, live_from = durable, "live records go first; the backlog is filled in behind them");
            self.poke_locked(&mut state);
        }
        let end = state.tracker.backlog_end();
        Streams {
            backlog: end.map(|end| (Offset(state.tracker.floor()), Offset(end))),
            live: Offset(state.tracker.live()),
        }
    }

    /// So many dead letters were sent again, in all: their records are owed once more (R7).
    pub(super) fn account_sent(&self, total: u64) {
        let mut state = self.state.lock();
        state.tracker.return_letters(total);
        self.poke_locked(&mut state);
    }

    /// Takes note of damage that the reader met in `[from, to)`.
    pub(super) fn damaged(&self, from: u64, to: u64) {
        let mut state = self.state.lock();
        for (from, to) in state.tracker.damage(from, to) {
            tracing::error!(first = from, last = to - 1, "buffered records are damaged and lost");
        }
        self.poke_locked(&mut state);
    }

    pub(super) fn poke_locked(&self, state: &mut State) {
        if !state.poked {
            state.poked = true;
            self.poke.notify_one();
        }
    }

    /// Sleeps until somebody pokes or the time is up. Answers whether the log is closing.
    pub(super) fn wait_for_work(&self, at_most: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        while !state.poked && !state.closing {
            match at_most {
                None => self.poke.wait(&mut state),
                Some(at_most) => {
                    let _timed_out = self.poke.wait_for(&mut state, at_most);
                    break;
                }
            }
        }
        state.poked = false;
        state.closing
    }

    /// Wakes the offers that wait, to all lanes.
    pub(super) fn make_room(&self) {
        self.make_own_room();
        if let Some(siblings) = self.siblings.get() {
            siblings.make_room();
        }
    }

    /// Wakes those to this lane.
    pub(super) fn make_own_room(&self) {
        self.room.send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    /// No more offers, or offers again.
    pub(super) fn seal(&self, sealed: bool) {
        self.state.lock().sealed = sealed;
        self.make_room();
    }

    /// Whether room is granted that is neither used nor given back.
    pub(super) fn has_granted(&self) -> bool {
        self.state.lock().granted > 0
    }

    /// No more offers, no more reading; the writer finishes.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        self.poke_locked(&mut state);
        drop(state);
        self.closed.send_replace(true);
        self.make_room();
    }

    /// See [`super::Buffer::hurry`].
    pub(super) fn hurry(&self) {
        let mut state = self.state.lock();
        if let Some(spill) = &mut state.spill {
            spill.hurry();
        }
        self.poke_locked(&mut state);
    }

    /// Nothing more will be durable here.
    pub(super) fn fail(&self, reason: &str) {
        tracing::error!(reason, "the buffer failed: its offers are refused from now on");
        self.state.lock().failed.get_or_insert_with(|| reason.into());
        self.mark.fail(reason);
        self.make_room();
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            ledger: state.tracker.ledger(state.next),
            depth_bytes: state.depth_bytes(),
            disk_bytes: state.disk_bytes() + state.stuck_bytes,
            stuck_bytes: state.stuck_bytes,
            cursor_error: state.cursor_error.clone(),
            kept_bytes: if state.retention.keep().is_some() { state.settled_bytes() } else { 0 },
            oldest: state.oldest(),
            first: Offset(state.segments.front().map_or(state.next, |segment| segment.base)),
            cursor: Offset(state.tracker.floor()),
            durable: Offset(self.mark.progress().done),
            next: Offset(state.next),
            failed: state.failed.clone(),
        }
    }

    /// Time by the monotonic clock.
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }
}
