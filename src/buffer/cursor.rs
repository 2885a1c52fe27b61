//! How far the remote has confirmed, and the ledger with it: one value, saved as one (R7). Pure.
//!
//! Everything below `floor` is settled. Above it, what was settled out of order waits in `settled`, and `holes` are
//! ranges that hold no record any more: numbers that were skipped after a crash, and records that damage took (counted
//! when they were found). A cursor that is older than the log is only a lower bound: it repeats, it never loses.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut};

use super::{Ledger, Outcome};

/// Holes that are saved at most: what fits a slot.
const HOLES_SAVED_MAX: usize = (super::slots::PAYLOAD_MAX - 128) / 16;
/// Ranges dropped while in flight that are remembered, to tell a late confirmation from a repeated one.
const DROPS_REMEMBERED: usize = 64;

/// Why records went without being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    WhenFull,
    Age,
    MinFree,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracker {
    floor: u64,
    settled: BTreeMap<u64, Outcome>,
    /// First to end (exclusive); all at or above the floor.
    holes: BTreeMap<u64, u64>,
    hole_records: u64,
    /// `accepted` and `buffered` are derived and stay zero here.
    counts: Ledger,
    /// Numbers that no record was ever taken under.
    skipped: u64,
    /// Records that were taken and dropped without a number (`drop_newest`).
    unnumbered: u64,
    dropped: VecDeque<(u64, u64)>,
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

    pub(super) const fn saved(&mut self) {
        self.unsaved = 0;
        self.changed = false;
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
        next.saturating_sub(self.floor).saturating_sub(self.hole_records)
    }

    /// Whether the record is still owed: not settled, not dropped, not in a hole.
    pub(super) fn is_owed(&self, offset: u64) -> bool {
        offset >= self.floor && !self.settled.contains_key(&offset) && self.hole_at(offset).is_none()
    }

    #[cfg(test)]
    pub(super) fn settled_out_of_order(&self) -> u64 {
        super::wide(self.settled.len())
    }

    fn hole_at(&self, offset: u64) -> Option<(u64, u64)> {
        let (from, to) = self.holes.range(..=offset).next_back()?;
        (offset < *to).then_some((*from, *to))
    }

    /// What became of one record; in any order; a second time changes nothing.
    pub(super) fn settle(&mut self, offset: u64, outcome: Outcome) {
        if offset < self.floor {
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
            self.settled.insert(offset, outcome);
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

    /// Passes what is settled and what is a hole, as far as they are contiguous.
    fn advance(&mut self) {
        loop {
            if let Some(entry) = self.holes.first_entry().filter(|hole| *hole.key() <= self.floor) {
                let (from, to) = entry.remove_entry();
                self.hole_records -= to - from;
                self.floor = self.floor.max(to);
            } else if let Some(entry) = self.settled.first_entry().filter(|entry| *entry.key() <= self.floor) {
                let (offset, outcome) = entry.remove_entry();
                if offset == self.floor {
                    self.count(outcome);
                    self.floor += 1;
                }
            } else {
                return;
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
            if until > self.floor {
                dropped += until - self.floor;
                self.floor = until;
            }
        }
        self.advance();
        let counter = match why {
            Drop::WhenFull => &mut self.counts.dropped_when_full,
            Drop::Age => &mut self.counts.dropped_age,
            Drop::MinFree => &mut self.counts.dropped_min_free,
        };
        *counter += dropped;
        if self.floor > from {
            self.changed = true;
        }
        if dropped > 0 {
            if self.dropped.len() == DROPS_REMEMBERED {
                self.dropped.pop_front();
            }
            self.dropped.push_back((from, to));
        }
        dropped
    }

    /// Counts a record that was taken and dropped at once.
    pub(super) const fn drop_unnumbered(&mut self, why: Drop) {
        self.unnumbered += 1;
        self.changed = true;
        match why {
            Drop::WhenFull => self.counts.dropped_when_full += 1,
            Drop::Age => self.counts.dropped_age += 1,
            Drop::MinFree => self.counts.dropped_min_free += 1,
        }
    }

    /// A replay sent so many records again.
    pub(super) const fn count_replayed(&mut self, records: u64) {
        self.counts.replayed += records;
        self.changed = true;
    }

    /// Records `[from, to)` are damaged. Answers the ranges that were not known and are still owed.
    pub(super) fn damage(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let lost = self.dig(from, to);
        self.counts.dropped_damaged += lost.iter().map(|(from, to)| to - from).sum::<u64>();
        lost
    }

    /// Numbers `[from, to)` were never given to a record.
    pub(super) fn skip(&mut self, from: u64, to: u64) {
        let skipped = self.dig(from, to);
        self.skipped += skipped.iter().map(|(from, to)| to - from).sum::<u64>();
    }

    /// Makes holes of what is owed in the range.
    fn dig(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut dug = Vec::new();
        let mut at = from.max(self.floor);
        while at < to {
            if let Some((_, end)) = self.hole_at(at) {
                at = end;
                continue;
            }
            if self.settled.contains_key(&at) {
                at += 1;
                continue;
            }
            let end = self.holes.range(at..).next().map_or(to, |(next, _)| to.min(*next));
            let end = self.settled.range(at..).next().map_or(end, |(next, _)| end.min(*next));
            dug.push((at, end));
            at = end;
        }
        for (from, to) in &dug {
            self.holes.insert(*from, *to);
            self.hole_records += to - from;
            self.changed = true;
        }
        self.advance();
        dug
    }

    /// The ranges of `[from, to)` that are neither below the floor nor a known hole.
    pub(super) fn unknown_in(&self, from: u64, to: u64) -> bool {
        let mut at = from.max(self.floor);
        while at < to {
            match self.hole_at(at) {
                Some((_, end)) => at = end,
                None => return true,
            }
        }
        false
    }

    /// As it is saved, with how far the log was durable.
    pub(super) fn encode(&self, durable: u64) -> Vec<u8> {
        let c = &self.counts;
        let mut out = Vec::with_capacity(128 + 16 * self.holes.len());
        for number in [
            self.floor,
            durable,
            self.skipped,
            self.unnumbered,
            c.delivered,
            c.dropped_when_full,
            c.dropped_age,
            c.dropped_damaged,
            c.dropped_min_free,
            c.expired,
            c.dead_lettered,
            c.confirmed_after_drop,
            c.replayed,
        ] {
            out.put_u64_le(number);
        }
        let holes = self.holes.len().min(HOLES_SAVED_MAX);
        out.put_u64_le(super::wide(holes));
        for (from, to) in self.holes.iter().take(holes) {
            out.put_u64_le(*from);
            out.put_u64_le(*to);
        }
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
        Some((tracker, durable))
    }
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
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..60).prop_map(Step::Settle),
            1 => (0_u64..60).prop_map(Step::Drop),
            1 => (0_u64..60, 0_u64..9).prop_map(|(from, len)| Step::Damage(from, from + len)),
            1 => (0_u64..60, 0_u64..9).prop_map(|(from, len)| Step::Skip(from, from + len)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// The reference keeps a fate for each record; the first one decides.
        #[test]
        fn r07_the_tracker_agrees_with_a_fate_for_each_record(steps in proptest::collection::vec(step(), 0..40)) {
            const NEXT: u64 = 70;
            let mut tracker = Tracker::default();
            let mut fates = vec![' '; 70];
            for step in steps {
                let (range, fate) = match step {
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
                };
                for at in range {
                    let at = usize::try_from(at).unwrap();
                    if fates[at] == ' ' {
                        fates[at] = fate;
                    }
                }
                let floor = fates.iter().position(|fate| *fate == ' ').unwrap();
                prop_assert_eq!(tracker.floor(), super::super::wide(floor));
                let count = |wanted, until: usize| super::super::wide(fates[..until].iter().filter(|f| **f == wanted).count());
                let ledger = tracker.ledger(NEXT);
                prop_assert!(ledger.balances());
                prop_assert_eq!(ledger.delivered, count('d', floor));
                prop_assert_eq!(ledger.dropped_age, count('a', 70));
                prop_assert_eq!(ledger.dropped_damaged, count('x', 70));
                prop_assert_eq!(ledger.accepted, NEXT - count('s', 70));
            }
            let (read, durable) = Tracker::decode(&tracker.encode(5)).unwrap();
            prop_assert_eq!((read.ledger(NEXT), read.floor(), durable), (tracker.ledger(NEXT), tracker.floor(), 5));
        }

        #[test]
        fn the_decoder_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Tracker::decode(&bytes));
        }
    }
}
