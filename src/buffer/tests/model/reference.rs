//! The list that the log is compared with.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::*;

/// What became of a record, as far as the reference knows. The first one decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Owed,
    Settled(Outcome),
    /// By the log, below its cursor.
    Dropped,
    /// Let in, and dropped since there was no room to write it (`drop_newest`): it is nowhere.
    NoRoom,
    /// Found to be damaged, at or above the cursor.
    Damaged,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) body: Vec<u8>,
    pub(super) expires: Option<WallMs>,
    pub(super) wall: WallMs,
    /// Milliseconds since the run began, by a clock that is always right: not later than the stamp of the frame that it is in.
    pub(super) at_ms: u64,
    pub(super) fate: Fate,
    /// A crash has left it to chance whether it is in a file: with `sync: spill` the remote had confirmed it (R1); or it had been dropped
    /// for want of room, which no cursor file knows.
    pub(super) may_go: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reference {
    /// By offset: all that were taken and not lost before anybody was told.
    pub(super) records: BTreeMap<u64, Kept>,
    /// Everything below was reported as durable.
    pub(super) acknowledged: u64,
    /// The log's cursor when it was last looked at.
    pub(super) floor: u64,
    /// Taken and dropped without a number.
    pub(super) unnumbered: u64,
    /// Everything that the remote has seen is below.
    pub(super) shown: u64,
    /// Records that were replayed.
    pub(super) replayed: u64,
    /// Records in frames that were damaged.
    pub(super) hit: BTreeSet<u64>,
    /// What the ledger said when it was last looked at.
    pub(super) ledger: Ledger,
}

impl Reference {
    /// A record was taken.
    pub(super) fn append(&mut self, offset: u64, kept: Kept) {
        assert!(offset >= self.acknowledged, "{offset} was acknowledged and is given again");
        assert!(offset >= self.shown, "the remote has seen {offset}, and it is given again");
        assert!(self.records.insert(offset, kept).is_none(), "{offset} is given twice");
    }

    /// Settles what is still owed.
    pub(super) fn settle(&mut self, offset: u64, outcome: Outcome) {
        if let Some(kept) = self.records.get_mut(&offset)
            && matches!(kept.fate, Fate::Owed)
            && offset >= self.floor
        {
            kept.fate = Fate::Settled(outcome);
        }
    }

    /// The cursor has moved to `floor`: what it passed unsettled was dropped. Answers which, and when they were appended.
    pub(super) fn pass(&mut self, floor: u64) -> Vec<(u64, u64)> {
        assert!(floor >= self.floor, "the cursor went back from {} to {floor}", self.floor);
        let passed = self.records.range_mut(self.floor..floor);
        let dropped = passed.filter(|(_, kept)| kept.fate == Fate::Owed).map(|(offset, kept)| {
            kept.fate = Fate::Dropped;
            (*offset, kept.at_ms)
        });
        let dropped = dropped.collect();
        self.floor = floor;
        dropped
    }

    /// With `drop_newest`: which of those that are acknowledged by now had no room, as the log says. Answers whether there are some.
    pub(super) fn take_no_room(&mut self, durable: u64, is_owed: impl Fn(u64) -> bool) -> bool {
        let mut some = false;
        for (offset, kept) in self.records.range_mut(self.acknowledged..durable.max(self.acknowledged)) {
            if kept.fate == Fate::Owed && !is_owed(*offset) {
                kept.fate = Fate::NoRoom;
                some = true;
            }
        }
        some
    }

    /// A crash leaves this cursor: what it has not passed is owed again, but for what had no room. Answers how many of those
    /// the remote had confirmed below the cursor as it was, and how many had no room that it does not know of.
    pub(super) fn forget_unsaved(&mut self, saved: &cursor::Tracker, spills: bool) -> (u64, u64) {
        let floor = saved.floor();
        assert!(floor <= self.floor, "the saved cursor {floor} is ahead of what was settled, {}", self.floor);
        let (mut repeated, mut forgotten) = (0, 0);
        for (offset, kept) in self.records.range_mut(floor..) {
            let had_no_room = kept.fate == Fate::NoRoom;
            if had_no_room && !saved.is_owed(*offset) {
                continue;
            }
            let settled = matches!(kept.fate, Fate::Settled(_));
            kept.may_go = had_no_room || (spills && settled);
            repeated += u64::from(*offset < self.floor && settled);
            forgotten += u64::from(had_no_room);
            kept.fate = Fate::Owed;
        }
        self.floor = floor;
        (repeated, forgotten)
    }

    /// Compares what a new life has found with what it had to find: everything from the saved cursor on and below `safe`. What
    /// nobody was told of may be gone, and damage may have taken what lay in a frame that was hit; at the end of the log it
    /// cannot be told from a torn tail (module `recovery`), so the ledger leaves that out.
    pub(super) fn prune(&mut self, safe: u64, there: &BTreeSet<u64>, ledger: &Ledger) {
        // What is in a file now stays there.
        self.records.retain(|offset, kept| !std::mem::take(&mut kept.may_go) || there.contains(offset));
        let owed =
            self.records.range(self.floor..).filter(|(_, kept)| kept.fate == Fate::Owed).map(|(offset, _)| *offset);
        let missing: Vec<u64> = owed.filter(|offset| !there.contains(offset)).collect();
        for offset in &missing {
            assert!(*offset >= safe || self.hit.contains(offset), "{offset} was acknowledged and is gone");
        }
        let taken = self.records.len() as u64 + self.unnumbered;
        let uncounted =
            if self.unnumbered == 0 { taken.saturating_sub(ledger.accepted) as usize } else { missing.len() };
        let (counted, uncounted) = missing.split_at(missing.len().saturating_sub(uncounted));
        for offset in counted {
            assert!(self.hit.contains(offset), "{offset} is counted as damaged");
            self.records.get_mut(offset).unwrap().fate = Fate::Damaged;
        }
        for offset in uncounted {
            assert!(there.last().is_none_or(|last| last < offset), "{offset} is left out of the ledger");
            self.records.remove(offset);
        }
        // How many of those without a number are known depends on when the ledger was saved.
        let gone = self.count(|_, fate| matches!(fate, Fate::Dropped | Fate::NoRoom | Fate::Damaged));
        let unnumbered = dropped(ledger).checked_sub(gone).expect("the ledger knows of what was dropped");
        assert!(unnumbered <= self.unnumbered, "{unnumbered} dropped of {}", self.unnumbered);
        self.unnumbered = unnumbered;
    }

    fn count(&self, wanted: impl Fn(u64, Fate) -> bool) -> u64 {
        self.records.iter().filter(|(offset, kept)| wanted(**offset, kept.fate)).count() as u64
    }

    /// The ledger is exactly this.
    pub(super) fn compare_ledger(&self, ledger: &Ledger) {
        assert!(ledger.balances(), "{ledger:?}");
        let floor = self.floor;
        let settled = |outcome| self.count(|offset, fate| offset < floor && fate == Fate::Settled(outcome));
        assert_eq!(ledger.delivered, settled(Outcome::Delivered), "delivered: {ledger:?}");
        assert_eq!(ledger.expired, settled(Outcome::Expired), "expired: {ledger:?}");
        assert_eq!(ledger.dead_lettered, settled(Outcome::DeadLettered), "dead_lettered: {ledger:?}");
        let buffered = self.count(|offset, fate| offset >= floor && !matches!(fate, Fate::Damaged | Fate::NoRoom));
        assert_eq!(ledger.buffered, buffered, "buffered: {ledger:?}");
        let gone = self.count(|_, fate| matches!(fate, Fate::Dropped | Fate::NoRoom | Fate::Damaged));
        assert_eq!(ledger.replayed, self.replayed, "replayed: {ledger:?}");
        assert_eq!(dropped(ledger), gone + self.unnumbered, "dropped: {ledger:?}");
        assert_eq!(ledger.accepted, self.records.len() as u64 + self.unnumbered, "accepted: {ledger:?}");
    }

    /// What a reader may find now, in this order.
    pub(super) fn readable(&self, durable: u64) -> Vec<u64> {
        let owed = self.records.range(self.floor..durable.max(self.floor));
        owed.filter(|(_, kept)| kept.fate == Fate::Owed).map(|(offset, _)| *offset).collect()
    }

    /// Records of `[from, until)` that a replay has to find, where `is_held` says which numbers the segments cover. With
    /// `sync: spill` what is settled need not have been written.
    pub(super) fn replayable(&self, from: u64, until: u64, spills: bool, is_held: impl Fn(u64) -> bool) -> Vec<u64> {
        let records = self.records.range(from..until.max(from)).filter(|(offset, kept)| {
            let written = match kept.fate {
                Fate::Owed => true,
                Fate::Settled(_) | Fate::Dropped => !spills,
                Fate::NoRoom | Fate::Damaged => false,
            };
            written && !self.hit.contains(offset) && is_held(**offset)
        });
        records.map(|(offset, _)| *offset).collect()
    }

    /// A record is what was appended under its number.
    pub(super) fn compare(&self, record: &Record) {
        let offset = record.offset.0;
        let kept = self.records.get(&offset).unwrap_or_else(|| panic!("{offset} was never taken"));
        assert_eq!(record.body, kept.body, "the body of {offset}");
        assert_eq!(record.expires, kept.expires, "the expiry of {offset}");
        assert_eq!(record.appended, kept.wall, "the time of {offset}");
    }
}

const fn dropped(ledger: &Ledger) -> u64 {
    ledger.dropped_when_full + ledger.dropped_age + ledger.dropped_min_free + ledger.dropped_damaged
}
