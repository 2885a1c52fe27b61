//! How far the remote has confirmed, and the ledger with it: one value, saved as one (R7). Pure.
//!
//! Everything below `floor` is settled. Above it, what was settled out of order waits in `settled`, and `holes` are
//! ranges that hold no record any more: numbers that were skipped after a crash, and records that damage took (counted
//! when they were found). A cursor that is older than the log is only a lower bound: it repeats, it never loses.
//!
//! With `drain: live_first` there are further cursors above the floor, one a stream (R13): what is settled between a
//! stream's start and its cursor is counted like what the floor passed. What is owed are the ranges between them: from
//! the floor to the first start, from each cursor to the next start, and from the last cursor on, where the live records
//! are. When a cursor reaches the next start the two become one.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut};

use super::offline::Ranges;
use super::{Ledger, Outcome};

/// Holes that are saved at most: what fits a slot. Of more, some that are nothing but damage are left out, and their records
/// are no part of the figures that are saved: they are found again, and counted then.
pub(super) const HOLES_SAVED_MAX: usize = (super::slots::PAYLOAD_MAX - 128) / 16 - STREAMS_MAX;
/// Streams beside the floor: with it they leave eight ranges that are owed (R13).
pub(super) const STREAMS_MAX: usize = 7;
/// Ranges dropped while in flight that are remembered, to tell a late confirmation from a repeated one.
const DROPS_REMEMBERED: usize = 64;

/// Why records went without being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    WhenFull,
    Age,
    MinFree,
}

/// What was settled from `start` on; its cursor is `pos`. Nothing yet: the two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stream {
    start: u64,
    pos: u64,
}

/// What a saved cursor says is done with.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    floor: u64,
    /// Ranges above it, in order, none touching the next.
    ranges: Vec<(u64, u64)>,
}

impl Passed {
    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether there is nothing but the floor: what is done with is the front of the log.
    pub(super) const fn is_in_order(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether no record of `[from, to)` is owed.
    pub(super) fn covers(&self, from: u64, to: u64) -> bool {
        let from = from.max(self.floor);
        to <= self.floor || self.ranges.iter().any(|(first, end)| *first <= from && from < to && to <= *end)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracker {
    floor: u64,
    settled: BTreeMap<u64, Outcome>,
    /// First to end (exclusive); all at or above the floor.
    holes: BTreeMap<u64, u64>,
    hole_records: u64,
    /// Of holes that begin here so many records were found damaged since the start: they can be found again.
    damaged: BTreeMap<u64, u64>,
    /// In order; all begin above the floor, and each behind the cursor before it.
    streams: Vec<Stream>,
    /// `accepted` and `buffered` are derived and stay zero here.
    counts: Ledger,
    /// Numbers that no record was ever taken under.
    skipped: u64,
    /// Records that were taken and dropped without a number (`drop_newest`).
    unnumbered: u64,
    dropped: VecDeque<(u64, u64)>,
    /// Dead letters that were sent again: each took a new number, and is no new record.
    returned: u64,
    /// Confirmations since the last save.
    unsaved: u64,
    /// Whether anything changed since the last save.
    changed: bool,
}

impl Tracker {
    /// A cursor at `floor` for a log whose cursor file is lost: the ledger begins there.
    pub(super) fn starting_at(floor: u64) -> Self {
        Self { floor, skipped: floor, ..Self::default() }
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) const fn unsaved(&self) -> u64 {
        self.unsaved
    }

    pub(super) const fn is_changed(&self) -> bool {
        self.changed
    }

    /// What stands here now is being saved: what changes from now on is not in it.
    pub(super) const fn saving(&mut self) {
        self.changed = false;
    }

    /// So many of the unsaved confirmations have been saved (or will not be: a failed save is reported and made again with
    /// the next that is due).
    pub(super) const fn saved(&mut self, confirmations: u64) {
        self.unsaved = self.unsaved.saturating_sub(confirmations);
    }

    /// The equation of promise 3 for a log whose next record gets `next`.
    pub(super) fn ledger(&self, next: u64) -> Ledger {
        Ledger {
            accepted: next.saturating_add(self.unnumbered).saturating_sub(self.skipped),
            buffered: self.owed(next),
            ..self.counts
        }
    }

    /// Records at or above the floor that are still owed.
    pub(super) fn owed(&self, next: u64) -> u64 {
        next.saturating_sub(self.floor).saturating_sub(self.hole_records).saturating_sub(self.streamed())
    }

    fn streamed(&self) -> u64 {
        self.streams.iter().map(|stream| stream.pos - stream.start).sum()
    }

    /// The last cursor: where live records are read from. The floor where there is no other.
    pub(super) fn live(&self) -> u64 {
        self.streams.last().map_or(self.floor, |last| last.pos)
    }

    /// What is owed below the last stream begins at the floor and ends here.
    pub(super) fn backlog_end(&self) -> Option<u64> {
        self.streams.last().map(|last| last.start)
    }

    /// The ranges above the floor that streams have passed.
    pub(super) fn streamed_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.streams.iter().map(|stream| (stream.start, stream.pos))
    }

    /// Begins a stream at `at` if more than `more_than` records are owed between the last cursor and there: they are
    /// backlog from now on. `false` also where there are [`STREAMS_MAX`] already: then the last one goes on in order.
    pub(super) fn begin_stream(&mut self, at: u64, more_than: u64) -> bool {
        let live = self.live();
        let at = self.hole_at(at).map_or(at, |(_, to)| to);
        let gone: u64 = self.holes.range(live..at.max(live)).map(|(from, to)| to.min(&at) - from).sum();
        let settled = super::wide(self.settled.range(live..at.max(live)).count());
        if at.saturating_sub(live).saturating_sub(gone + settled) <= more_than {
            return false;
        }
        // One of which nothing was delivered is part of the backlog now.
        self.streams.pop_if(|last| last.start == last.pos);
        if self.streams.len() >= STREAMS_MAX {
            return false;
        }
        self.streams.push(Stream { start: at, pos: at });
        self.changed = true;
        true
    }

    /// Behind the last number that is known to hold no record, or to be passed.
    pub(super) fn known_end(&self) -> u64 {
        self.live().max(self.holes.values().next_back().copied().unwrap_or(0))
    }

    /// What deleting may rely on once this has been saved and synced.
    pub(super) fn passed(&self) -> Passed {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        if !self.streams.is_empty() {
            let holes = self.holes_saved().0;
            let mut all: Vec<(u64, u64)> = self.streamed_ranges().chain(holes).collect();
            all.sort_unstable();
            for (from, to) in all {
                match ranges.last_mut() {
                    Some(last) if last.1 >= from => last.1 = last.1.max(to),
                    _ => ranges.push((from, to)),
                }
            }
        }
        Passed { floor: self.floor, ranges }
    }

    /// Whether the record is still owed: not settled, not dropped, not in a hole.
    pub(super) fn is_owed(&self, offset: u64) -> bool {
        offset >= self.floor && !self.settled.contains_key(&offset) && self.gone_at(offset).is_none()
    }

    /// Whether a cursor has passed the record: its outcome is counted.
    pub(super) fn has_passed(&self, offset: u64) -> bool {
        offset < self.floor || self.streamed_ranges().any(|(start, pos)| (start..pos).contains(&offset))
    }

    /// Dead letters that were sent again, as far as they are accounted for.
    pub(super) const fn returned(&self) -> u64 {
        self.returned
    }

    /// `total` dead letters were sent again until now: each is owed once more under a new number, and `accepted` stays (R7).
    pub(super) fn return_letters(&mut self, total: u64) {
        let more = total.saturating_sub(self.returned);
        let known = more.min(self.counts.dead_lettered);
        self.counts.dead_lettered -= known;
        self.skipped += known;
        self.returned += more;
        self.changed |= more > 0;
    }

    /// The records below `next` that are still owed: what the files have to hold.
    pub(super) fn owed_below(&self, next: u64) -> Ranges {
        let mut owed = Ranges::one(self.floor, next);
        let holes = self.holes.iter().map(|(from, to)| (*from, *to));
        holes.chain(self.streamed_ranges()).for_each(|(from, to)| owed.remove(from, to));
        owed
    }

    /// How many records have lapsed, ever, and been passed; and those that wait for a cursor, in order.
    pub(super) fn expired(&self) -> (u64, impl Iterator<Item = u64> + '_) {
        let waiting = self.settled.iter().filter(|(_, outcome)| **outcome == Outcome::Expired);
        (self.counts.expired, waiting.map(|(at, _)| *at))
    }

    #[cfg(test)]
    pub(super) fn settled_out_of_order(&self) -> u64 {
        super::wide(self.settled.len())
    }

    fn hole_at(&self, offset: u64) -> Option<(u64, u64)> {
        let (from, to) = self.holes.range(..=offset).next_back()?;
        (offset < *to).then_some((*from, *to))
    }

    /// Where the hole or the settled part of a stream that `offset` lies in ends.
    pub(super) fn gone_at(&self, offset: u64) -> Option<u64> {
        let stream = self.streams.iter().find(|stream| (stream.start..stream.pos).contains(&offset));
        stream.map(|stream| stream.pos).or_else(|| self.hole_at(offset).map(|(_, to)| to))
    }

    /// What became of one record; in any order; a second time changes nothing.
    pub(super) fn settle(&mut self, offset: u64, outcome: Outcome) {
        if offset < self.floor || self.hole_at(offset).is_some() {
            let late = self.dropped.iter().any(|(from, to)| (*from..*to).contains(&offset));
            if late && outcome == Outcome::Delivered {
                self.counts.confirmed_after_drop += 1;
                self.changed = true;
            }
            return;
        }
        if !self.is_owed(offset) {
            return;
        }
        self.unsaved += 1;
        if offset == self.floor {
            self.count(outcome);
            self.floor += 1;
            self.advance();
        } else {
            let begins = self.streams.iter().any(|stream| stream.pos == offset);
            self.settled.insert(offset, outcome);
            if begins {
                self.advance();
            }
        }
    }

    const fn count(&mut self, outcome: Outcome) {
        self.changed = true;
        match outcome {
            Outcome::Delivered => self.counts.delivered += 1,
            Outcome::DeadLettered => self.counts.dead_lettered += 1,
            Outcome::Expired => self.counts.expired += 1,
        }
    }

    /// Moves every cursor over what is settled and what is a hole, as far as they are contiguous with it, and joins the
    /// cursors that meet.
    fn advance(&mut self) {
        self.floor = self.pass(self.floor);
        let mut kept: Vec<Stream> = Vec::new();
        for stream in std::mem::take(&mut self.streams) {
            let before = kept.last().map_or(self.floor, |last| last.pos);
            if stream.start > before {
                let pos = self.pass(stream.pos);
                kept.push(Stream { pos, ..stream });
                continue;
            }
            let joined = self.pass(before.max(stream.pos));
            match kept.last_mut() {
                Some(last) => last.pos = joined,
                None => self.floor = joined,
            }
        }
        self.streams = kept;
    }

    /// Where the settled part that begins at `at` ends; what lies in it is counted.
    fn pass(&mut self, mut at: u64) -> u64 {
        loop {
            if let Some(to) = self.holes.remove(&at) {
                self.damaged.remove(&at);
                self.hole_records -= to - at;
                at = to;
            } else if let Some(outcome) = self.settled.remove(&at) {
                self.count(outcome);
                at += 1;
            } else {
                return at;
            }
        }
    }

    /// Gives up everything below `to`; what the remote had confirmed out of order counts as that. Answers how many
    /// records were dropped.
    pub(super) fn drop_to(&mut self, to: u64, why: Drop) -> u64 {
        let from = self.floor;
        let mut dropped = 0;
        while self.floor < to {
            self.advance();
            let until = to.min(self.settled.keys().next().map_or(to, |at| *at));
            let until = until.min(self.holes.keys().next().map_or(to, |at| *at));
            let until = until.min(self.streams.first().map_or(to, |first| first.start));
            if until > self.floor {
                dropped += until - self.floor;
                self.floor = until;
            }
        }
        self.advance();
        self.changed |= self.floor > from;
        self.count_dropped(from, to, dropped, why);
        dropped
    }

    /// Gives up what is owed of `[from, to)`, in the midst of the log. Answers how many records were dropped; `None`: that is not
    /// possible, since some of them are confirmed, or no more holes can be saved.
    pub(super) fn drop_range(&mut self, from: u64, to: u64, why: Drop) -> Option<u64> {
        if self.holes.len() >= HOLES_SAVED_MAX || self.settled.range(from..to.max(from)).next().is_some() {
            return None;
        }
        let dropped = self.dig(from, to, false).iter().map(|(from, to)| to - from).sum();
        self.count_dropped(from, to, dropped, why);
        Some(dropped)
    }

    fn count_dropped(&mut self, from: u64, to: u64, records: u64, why: Drop) {
        if records == 0 {
            return;
        }
        *self.dropped_by(why) += records;
        if self.dropped.len() == DROPS_REMEMBERED {
            self.dropped.pop_front();
        }
        self.dropped.push_back((from, to));
    }

    const fn dropped_by(&mut self, why: Drop) -> &mut u64 {
        match why {
            Drop::WhenFull => &mut self.counts.dropped_when_full,
            Drop::Age => &mut self.counts.dropped_age,
            Drop::MinFree => &mut self.counts.dropped_min_free,
        }
    }

    /// Counts a record that was taken and dropped at once.
    pub(super) const fn drop_unnumbered(&mut self, why: Drop) {
        self.unnumbered += 1;
        self.changed = true;
        *self.dropped_by(why) += 1;
    }

    /// A replay sent so many records again.
    pub(super) const fn count_replayed(&mut self, records: u64) {
        self.counts.replayed += records;
        self.changed = true;
    }

    /// Records `[from, to)` are damaged. Answers the ranges that were not known and are still owed.
    pub(super) fn damage(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let lost = self.dig(from, to, true);
        self.counts.dropped_damaged += lost.iter().map(|(from, to)| to - from).sum::<u64>();
        lost
    }

    /// Numbers `[from, to)` were never given to a record.
    pub(super) fn skip(&mut self, from: u64, to: u64) {
        let skipped = self.dig(from, to, false);
        self.skipped += skipped.iter().map(|(from, to)| to - from).sum::<u64>();
    }

    /// Makes holes of what is owed in the range.
    fn dig(&mut self, from: u64, to: u64, is_damage: bool) -> Vec<(u64, u64)> {
        let mut dug = Vec::new();
        let mut at = from.max(self.floor);
        while at < to {
            if let Some(end) = self.gone_at(at) {
                at = end;
                continue;
            }
            if self.settled.contains_key(&at) {
                at += 1;
                continue;
            }
            let end = self.holes.range(at..).next().map_or(to, |(next, _)| to.min(*next));
            let end = self.settled.range(at..).next().map_or(end, |(next, _)| end.min(*next));
            // A stream's cursor is never inside a hole.
            let start = self.streams.iter().map(|stream| stream.start).find(|start| *start > at);
            let end = start.map_or(end, |start| end.min(start));
            dug.push((at, end));
            at = end;
        }
        for (from, to) in &dug {
            self.add_hole(*from, *to, is_damage);
            self.changed = true;
        }
        self.advance();
        dug
    }

    /// One that adjoins another becomes a part of it, since only so many are saved; but not where a stream begins.
    fn add_hole(&mut self, from: u64, to: u64, is_damage: bool) {
        let begins_stream = |at: u64| self.streams.iter().any(|stream| stream.start == at);
        let before = self.holes.range(..from).next_back().filter(|(_, end)| **end == from && !begins_stream(from));
        let first = before.map_or(from, |(first, _)| *first);
        let behind = self.holes.get(&to).copied().filter(|_| !begins_stream(to));
        let mut damaged = self.damaged.remove(&first).unwrap_or(0) + if is_damage { to - from } else { 0 };
        if behind.is_some() {
            self.holes.remove(&to);
            damaged += self.damaged.remove(&to).unwrap_or(0);
        }
        if damaged > 0 {
            self.damaged.insert(first, damaged);
        }
        self.holes.insert(first, behind.unwrap_or(to));
        self.hole_records += to - from;
    }

    /// The holes that are saved, and the damaged records that are in none of them.
    fn holes_saved(&self) -> (Vec<(u64, u64)>, u64) {
        let mut room = HOLES_SAVED_MAX;
        let mut left_out = self.holes.len().saturating_sub(room);
        let (mut saved, mut damaged) = (Vec::with_capacity(self.holes.len().min(room)), 0);
        // The last ones are left out: the cursor comes to them last.
        for (from, to) in self.holes.iter().rev() {
            let is_found_again = self.damaged.get(from) == Some(&(to - from));
            if left_out > 0 && is_found_again {
                left_out -= 1;
                damaged += to - from;
            } else if room > 0 {
                room -= 1;
                saved.push((*from, *to));
            }
        }
        saved.reverse();
        (saved, damaged)
    }

    /// Whether some of `[from, to)` is neither below the floor nor known to be gone.
    pub(super) fn unknown_in(&self, from: u64, to: u64) -> bool {
        let mut at = from.max(self.floor);
        while at < to {
            match self.gone_at(at) {
                Some(end) => at = end,
                None => return true,
            }
        }
        false
    }

    /// As it is saved, with how far the log was durable.
    pub(super) fn encode(&self, durable: u64) -> Vec<u8> {
        let c = &self.counts;
        let (holes, found_again) = self.holes_saved();
        let mut out = Vec::with_capacity(128 + 16 * self.holes.len());
        for number in [
            self.floor,
            durable,
            self.skipped,
            self.unnumbered,
            c.delivered,
            c.dropped_when_full,
            c.dropped_age,
            c.dropped_damaged.saturating_sub(found_again),
            c.dropped_min_free,
            c.expired,
            c.dead_lettered,
            c.confirmed_after_drop,
            c.replayed,
        ] {
            out.put_u64_le(number);
        }
        out.put_u64_le(super::wide(holes.len()));
        for (from, to) in holes {
            out.put_u64_le(from);
            out.put_u64_le(to);
        }
        out.put_u64_le(super::wide(self.streams.len()));
        for stream in &self.streams {
            out.put_u64_le(stream.start);
            out.put_u64_le(stream.pos);
        }
        out.put_u64_le(self.returned);
        out
    }

    /// From what was saved; and how far the log was durable then.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<(Self, u64)> {
        if bytes.len() < 14 * 8 {
            return None;
        }
        let mut number = || bytes.get_u64_le();
        let (floor, durable, skipped, unnumbered) = (number(), number(), number(), number());
        let counts = Ledger {
            delivered: number(),
            dropped_when_full: number(),
            dropped_age: number(),
            dropped_damaged: number(),
            dropped_min_free: number(),
            expired: number(),
            dead_lettered: number(),
            confirmed_after_drop: number(),
            replayed: number(),
            ..Ledger::default()
        };
        let holes = usize::try_from(number()).ok()?;
        if bytes.len() < holes.checked_mul(16)? {
            return None;
        }
        let mut tracker = Self { floor, skipped, unnumbered, counts, ..Self::default() };
        for _ in 0..holes {
            let (from, to) = (bytes.get_u64_le(), bytes.get_u64_le());
            if from < floor || from >= to {
                return None;
            }
            tracker.holes.insert(from, to);
            tracker.hole_records = tracker.hole_records.saturating_add(to - from);
        }
        tracker.streams = decode_streams(&mut bytes, floor)?;
        tracker.returned = bytes.try_get_u64_le().unwrap_or(0);
        Some((tracker, durable))
    }
}

/// The streams, at the end of what was saved; a cursor that was saved before there were any ends without them.
fn decode_streams(bytes: &mut &[u8], floor: u64) -> Option<Vec<Stream>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let count = usize::try_from(bytes.try_get_u64_le().ok()?).ok().filter(|count| *count <= STREAMS_MAX)?;
    let (mut streams, mut behind) = (Vec::with_capacity(count), floor);
    for _ in 0..count {
        let (start, pos) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        if start <= behind || pos < start {
            return None;
        }
        streams.push(Stream { start, pos });
        behind = pos;
    }
    Some(streams)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Settle(u64),
        Drop(u64),
        Damage(u64, u64),
        Skip(u64, u64),
        DropMidst(u64, u64),
        /// R13: whatever is owed from the last cursor on is backlog, live records begin here.
        Stream(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..60).prop_map(Step::Settle),
            1 => (0_u64..60).prop_map(Step::Drop),
            1 => (0_u64..60, 0_u64..9).prop_map(|(from, len)| Step::Damage(from, from + len)),
            1 => (0_u64..60, 0_u64..9).prop_map(|(from, len)| Step::Skip(from, from + len)),
            1 => (0_u64..60, 0_u64..9).prop_map(|(from, len)| Step::DropMidst(from, from + len)),
            1 => (0_u64..60).prop_map(Step::Stream),
        ]
    }

    /// Answers which records it is for, and the fate of those that have none yet.
    fn apply(step: Step, tracker: &mut Tracker, fates: &[char], starts: &mut Vec<u64>) -> (std::ops::Range<u64>, char) {
        match step {
            Step::Settle(at) => {
                tracker.settle(at, Outcome::Delivered);
                (at..at + 1, 'd')
            }
            Step::Drop(to) => {
                tracker.drop_to(to, Drop::Age);
                (0..to, 'a')
            }
            Step::Damage(from, to) => {
                tracker.damage(from, to);
                (from..to, 'x')
            }
            Step::Skip(from, to) => {
                tracker.skip(from, to);
                (from..to, 's')
            }
            Step::DropMidst(from, to) => {
                let before = tracker.clone();
                match tracker.drop_range(from, to, Drop::MinFree) {
                    Some(_dropped) => (from..to, 'm'),
                    None => {
                        assert_eq!(tracker.encode(0), before.encode(0));
                        (0..0, ' ')
                    }
                }
            }
            Step::Stream(at) => {
                // As in life: nothing from there on has been touched.
                let untouched = fates.iter().skip(usize::try_from(at).unwrap()).all(|fate| *fate == ' ');
                if untouched && at >= tracker.live() && tracker.begin_stream(at, 3) {
                    // One of which nothing was settled is no stream any more.
                    let last = usize::try_from(*starts.last().unwrap()).unwrap();
                    if last > 0 && fates[last] == ' ' {
                        starts.pop();
                    }
                    starts.push(at);
                }
                (0..0, ' ')
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// The reference keeps a fate for each record; the first one decides. A cursor is where nothing is open between
        /// its start and it.
        #[test]
        fn r07_r13_the_tracker_agrees_with_a_fate_for_each_record(steps in proptest::collection::vec(step(), 0..60)) {
            const NEXT: u64 = 70;
            let mut tracker = Tracker::default();
            let mut fates = vec![' '; 70];
            let mut starts = vec![0_u64];
            for step in steps {
                let (range, fate) = apply(step, &mut tracker, &fates, &mut starts);
                for at in range {
                    let at = usize::try_from(at).unwrap();
                    if fates[at] == ' ' {
                        fates[at] = fate;
                    }
                }
                let end_of = |start: u64| {
                    let from = usize::try_from(start).unwrap();
                    fates.iter().skip(from).position(|fate| *fate == ' ').unwrap() + from
                };
                let floor = end_of(0);
                prop_assert_eq!(tracker.floor(), super::super::wide(floor));
                prop_assert!(tracker.streams.len() <= STREAMS_MAX);
                let passed = |at: usize| starts.iter().any(|start| {
                    usize::try_from(*start).unwrap() <= at && at < end_of(*start)
                });
                let passed: Vec<bool> = (0..70).map(passed).collect();
                let count = |wanted: char| super::super::wide(fates.iter().filter(|fate| **fate == wanted).count());
                let counted = passed.iter().zip(&fates).filter(|(passed, fate)| **passed && **fate == 'd').count();
                let ledger = tracker.ledger(NEXT);
                prop_assert!(ledger.balances(), "{:?}", ledger);
                prop_assert_eq!(ledger.delivered, super::super::wide(counted));
                prop_assert_eq!(ledger.dropped_age, count('a'));
                prop_assert_eq!(ledger.dropped_min_free, count('m'));
                prop_assert_eq!(ledger.dropped_damaged, count('x'));
                prop_assert_eq!(ledger.accepted, NEXT - count('s'));
                for (at, fate) in (0..).zip(&fates) {
                    prop_assert_eq!(tracker.is_owed(at), *fate == ' ', "{}", at);
                }
                let done = tracker.passed();
                for at in 0..69 {
                    let here = usize::try_from(at).unwrap();
                    if done.covers(at, at + 2) {
                        prop_assert!(fates[here] != ' ' && fates[here + 1] != ' ');
                    }
                    if passed[here] && passed[here + 1] {
                        prop_assert!(done.covers(at, at + 2));
                    }
                }
            }
            let (read, durable) = Tracker::decode(&tracker.encode(5)).unwrap();
            prop_assert_eq!((read.ledger(NEXT), read.floor(), durable), (tracker.ledger(NEXT), tracker.floor(), 5));
            prop_assert_eq!((read.live(), read.streams), (tracker.live(), tracker.streams));
        }

        #[test]
        fn the_decoder_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Tracker::decode(&bytes));
        }
    }

    fn deliver(tracker: &mut Tracker, range: std::ops::Range<u64>) {
        range.for_each(|offset| tracker.settle(offset, Outcome::Delivered));
    }

    #[test]
    fn r13_a_live_stream_is_counted_beside_the_backlog_and_joins_it() {
        let mut tracker = Tracker::default();
        assert!(!tracker.begin_stream(100, 100), "no more than a window is no backlog");
        assert!(tracker.begin_stream(100, 99));
        deliver(&mut tracker, 100..150);
        assert_eq!((tracker.floor(), tracker.live(), tracker.ledger(150).delivered), (0, 150, 50));
        assert_eq!(tracker.owed(150), 100);
        assert!(tracker.passed().covers(110, 150) && !tracker.passed().covers(90, 150));
        deliver(&mut tracker, 0..100);
        assert_eq!((tracker.floor(), tracker.backlog_end(), tracker.ledger(150).delivered), (150, None, 150));
    }

    #[test]
    fn r07_more_holes_than_can_be_saved_balance_after_a_restart_and_are_counted_again() {
        let mut tracker = Tracker::default();
        let damaged = 2 * super::super::wide(HOLES_SAVED_MAX);
        let next = 2 * damaged + 100;
        // What a crash left out is told by no file but this one.
        tracker.skip(next - 50, next);
        let damage = |tracker: &mut Tracker| {
            (0..damaged).for_each(|n| {
                tracker.damage(2 * n + 1, 2 * n + 2);
            });
        };
        damage(&mut tracker);
        let before = tracker.ledger(next);
        assert_eq!((before.accepted, before.dropped_damaged), (next - 50, damaged));
        for _ in 0..3 {
            let saved = tracker.encode(next);
            assert!(saved.len() <= super::super::slots::PAYLOAD_MAX);
            (tracker, _) = Tracker::decode(&saved).unwrap();
            let ledger = tracker.ledger(next);
            assert!(ledger.balances(), "{ledger:?}");
            assert_eq!((ledger.accepted, tracker.holes.len()), (next - 50, HOLES_SAVED_MAX));
            damage(&mut tracker);
            assert_eq!(tracker.ledger(next), before);
        }
    }

    #[test]
    fn r13_eight_ranges_and_then_in_order() {
        let mut tracker = Tracker::default();
        for outage in 1..=7 {
            assert!(tracker.begin_stream(outage * 100, 50));
            deliver(&mut tracker, outage * 100..outage * 100 + 10);
        }
        assert!(!tracker.begin_stream(800, 50), "the ninth range");
        assert_eq!(tracker.live(), 710);
        deliver(&mut tracker, 0..100);
        assert_eq!(tracker.floor(), 110);
        assert!(tracker.begin_stream(800, 50), "one range is done: there is room for another");
    }

    #[test]
    fn r13_a_stream_of_which_nothing_was_delivered_becomes_backlog() {
        let mut tracker = Tracker::default();
        assert!(tracker.begin_stream(100, 50));
        assert!(tracker.begin_stream(300, 50));
        assert_eq!((tracker.backlog_end(), tracker.live(), tracker.streams.len()), (Some(300), 300, 1));
    }

    #[test]
    fn r13_a_cursor_from_before_there_were_streams_reads_as_one_without() {
        let mut tracker = Tracker::default();
        deliver(&mut tracker, 0..5);
        let mut saved = tracker.encode(9);
        saved.truncate(saved.len() - 8);
        let (read, durable) = Tracker::decode(&saved).unwrap();
        assert_eq!((read.floor(), read.live(), durable), (5, 5, 9));
    }
}
