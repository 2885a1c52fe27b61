//! One run: its steps on the log and on the reference, and what is compared when.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::FutureExt;

use super::super::super::scan::FrameScan;
use super::super::super::state::Verdict;
use super::super::super::*;
use super::super::bench::{Bench, HandClock, WINDOW};
use super::super::disk::{Dice, Faults, SimDisk};
use super::plan::Plan;
use super::reference::{Fate, Kept, Reference};
use crate::clock::Clock;

/// A run under way.
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    pub(super) bench: Bench,
    pub(super) reference: Reference,
    pub(super) sink: Sink,
    /// Milliseconds since it began, as an onlooker counts them.
    pub(super) now_ms: u64,
    /// When the oldest record that is staged was staged.
    pub(super) staged_ms: Option<u64>,
    /// In this life of the process something failed that was to go well: the limits may be off by what was written twice, and
    /// the cursor by what was not saved.
    pub(super) troubled: bool,
    /// The same in an earlier life.
    pub(super) trouble_before: bool,
    /// Its steps are printed.
    pub(super) shown: bool,
}

/// The link's sink: reads, has a window in flight, confirms in any order.
pub(super) struct Sink {
    reader: Reader,
    in_flight: Vec<u64>,
    /// Handed out since the last connect.
    seen: BTreeSet<u64>,
}

impl Sink {
    pub(super) fn on(bench: &Bench) -> Self {
        Self { reader: bench.reader(), in_flight: Vec::new(), seen: BTreeSet::new() }
    }
}

pub(super) fn run(seed: u64, shown: bool) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995);
    let plan = Plan::of(&mut dice);
    let bench = Bench::open(SimDisk::default(), HandClock::new(), plan.config.clone());
    bench.clock.synced(plan.good_clock);
    let sink = Sink::on(&bench);
    let mut run = Run {
        plan,
        dice,
        bench,
        reference: Reference::default(),
        sink,
        now_ms: 0,
        staged_ms: None,
        troubled: false,
        trouble_before: false,
        shown,
    };
    run.show(|run| format!("{:?}", run.plan));
    for _ in 0..run.plan.steps {
        run = run.step();
    }
    run.bench.disk.capacity(None);
    run.bench.disk.faults(Faults::default());
    run.turn();
    run.turn();
    run.compare();
    run.restart().compare();
}

impl Run {
    fn step(mut self) -> Self {
        let kind = self.dice.roll(24);
        self.show(|run| format!("step {kind}: {}", run.state()));
        match kind {
            0..=5 => self.append(),
            6..=8 => self.turn(),
            9..=11 => self.read(),
            12..=14 => self.confirm(),
            15 => self.reconnect(),
            16 => self.pass_time(),
            17 if self.plan.full => self.fill_or_free(),
            18 if self.plan.failures => self.fail_soon(),
            19 if self.plan.damage => self.damage(),
            20 => self.compare(),
            21..=22 => return self.restart(),
            _ => {}
        }
        self.observe();
        self
    }

    pub(super) fn show(&self, text: impl FnOnce(&Self) -> String) {
        if self.shown {
            eprintln!("{}", text(self));
        }
    }

    pub(super) fn state(&self) -> String {
        let stats = self.bench.shared.stats();
        let segments = self.bench.shared.state.lock().segments.clone();
        let segments: Vec<_> = segments.iter().map(|known| (known.base, known.next, known.bytes)).collect();
        let (next, floor, failed) = (stats.next.0, stats.cursor.0, stats.failed.is_some());
        let (acknowledged, synced) = (self.reference.acknowledged, self.bench.log.synced);
        format!(
            "cursor {floor}, synced {synced}, acknowledged {acknowledged}, next {next}, failed {failed}, {segments:?}"
        )
    }

    fn append(&mut self) {
        for _ in 0..1 + self.dice.roll(12) {
            let mut body = self.dice.roll(u64::MAX).to_le_bytes().to_vec();
            body.resize(8 + self.dice.roll(self.plan.body_max) as usize, 1);
            let now = self.bench.clock.moment();
            let expires = (self.dice.roll(4) == 0).then(|| WallMs(now.wall.0 + self.dice.roll(5_000)));
            match self.bench.shared.judge(body.len()) {
                Verdict::Granted(need) => {
                    let offset = self.bench.shared.append(need, &[&body], expires).0;
                    let at_ms = *self.staged_ms.get_or_insert(self.now_ms);
                    let kept = Kept { body, expires, wall: now.wall, at_ms, fate: Fate::Owed };
                    assert!(offset >= self.reference.acknowledged, "{offset} was acknowledged and is given again");
                    assert!(self.reference.records.insert(offset, kept).is_none(), "{offset} is given twice");
                }
                Verdict::DroppedNewest => {
                    assert_eq!(self.plan.config.when_full, WhenFull::DropNewest);
                    self.reference.unnumbered += 1;
                }
                Verdict::Refused(Refused::Full) => {
                    assert_ne!(self.plan.config.when_full, WhenFull::DropNewest);
                }
                Verdict::Refused(Refused::Failed(_)) => assert!(self.troubled, "it failed without a failure"),
                Verdict::Refused(Refused::Closed) => panic!("it is open"),
                // The writer is behind.
                Verdict::Wait => self.turn(),
            }
            self.observe();
        }
        if self.dice.roll(2) == 0 {
            self.commit();
        }
    }

    fn commit(&mut self) {
        self.bench.log.commit();
        let durable = self.bench.durable();
        self.reference.acknowledged = self.reference.acknowledged.max(durable);
        if durable >= self.bench.shared.state.lock().next {
            self.staged_ms = None;
        }
    }

    fn turn(&mut self) {
        self.commit();
        self.bench.log.tend();
        self.observe();
        if self.troubled {
            return;
        }
        let unsaved = self.bench.shared.state.lock().tracker.unsaved();
        assert!(unsaved < WINDOW as u64, "R9: {unsaved} confirmations are unsaved");
        if self.trouble_before {
            return;
        }
        let on_disk: u64 = self.bench.disk.segments().iter().map(|path| self.bench.disk.len(path)).sum();
        assert!(on_disk <= self.plan.config.max_size.0, "{on_disk} bytes on disk: more than max_size");
    }

    fn read(&mut self) {
        let (records_max, bytes_max) = (1 + self.dice.roll(20) as usize, 1 + self.dice.roll(8_000) as usize);
        let room = WINDOW.saturating_sub(self.sink.in_flight.len()).min(records_max);
        if room == 0 {
            return;
        }
        let before = self.sink.reader.cursor();
        match self.sink.reader.next(room, bytes_max).now_or_never() {
            None => {}
            Some(Err(refused)) => assert!(self.troubled, "{refused}"),
            Some(Ok(records)) => {
                assert!(!records.is_empty() && records.len() <= room);
                for record in records {
                    self.reference.compare(&record);
                    let offset = record.offset.0;
                    assert!(offset >= before.0 && offset < self.reference.acknowledged, "{offset} is not to be read");
                    assert!(self.sink.seen.last().is_none_or(|last| *last < offset), "{offset} is out of order");
                    self.sink.seen.insert(offset);
                    self.sink.in_flight.push(offset);
                }
            }
        }
    }

    fn confirm(&mut self) {
        for _ in 0..1 + self.dice.roll(WINDOW as u64) {
            if self.sink.in_flight.is_empty() {
                return;
            }
            let at = if self.dice.roll(3) == 0 { self.dice.roll(self.sink.in_flight.len() as u64) as usize } else { 0 };
            let offset = self.sink.in_flight.remove(at);
            let outcome = match self.dice.roll(12) {
                0 => Outcome::Expired,
                1 => Outcome::DeadLettered,
                _ => Outcome::Delivered,
            };
            self.bench.shared.settle(Offset(offset), outcome);
            self.reference.settle(offset, outcome);
            self.observe();
        }
    }

    fn reconnect(&mut self) {
        self.sink.in_flight.clear();
        self.sink.seen.clear();
        let cursor = self.sink.reader.cursor();
        self.sink.reader.seek(cursor);
    }

    fn pass_time(&mut self) {
        self.turn();
        let ms = self.dice.roll(3_000);
        self.now_ms += ms;
        self.bench.clock.pass(Duration::from_millis(ms));
        if !self.plan.good_clock && self.dice.roll(3) == 0 {
            let step = self.dice.roll(200_000).cast_signed() - 100_000;
            self.bench.clock.step_wall(step);
        }
    }

    fn fill_or_free(&mut self) {
        let more = self.dice.roll(5_000);
        let capacity = (self.dice.roll(2) == 0).then(|| self.bench.disk.used() + more);
        self.bench.disk.capacity(capacity);
    }

    fn fail_soon(&mut self) {
        self.troubled = true;
        let faults = match self.dice.roll(3) {
            0 => Faults { syncs: 1 + self.dice.roll(2) as usize, ..Faults::default() },
            _ => Faults {
                after: Some(self.dice.roll(9) as usize),
                failing: 1 + self.dice.roll(3) as usize,
                ..Faults::default()
            },
        };
        self.show(|_| format!("{faults:?}"));
        self.bench.disk.faults(faults);
    }

    /// Flips a bit or zeroes a page of a segment, and takes note of the records whose frames it lies in.
    fn damage(&mut self) {
        let paths = self.bench.disk.segments();
        if paths.is_empty() {
            return;
        }
        let path = paths[self.dice.roll(paths.len() as u64) as usize].clone();
        let len = self.bench.disk.len(&path);
        let salt = self.bench.shared.state.lock().segments.iter().find(|known| known.path == path).map(|s| s.salt);
        let (Some(salt), true) = (salt, len > 0) else { return };
        let from = self.dice.roll(len);
        let to = if self.dice.roll(3) == 0 { (from + 512).min(len) } else { from + 1 };
        let file = Storage::open_to_read(&self.bench.disk, &path).unwrap();
        let mut frames = FrameScan::new(file, salt, wide(format::SEGMENT_HEADER), len);
        while let Some(found) = frames.next().unwrap() {
            if found.pos < to && from < found.pos + found.header.frame_len() {
                self.reference.hit.extend(found.header.base..found.header.next());
            }
        }
        let bit = 1 << self.dice.roll(8);
        self.bench.disk.change(&path, |bytes| {
            let range = &mut bytes[from as usize..to as usize];
            if range.len() == 1 { range[0] ^= bit } else { range.fill(0) }
        });
    }

    /// Looks at the cursor and the ledger: what was dropped, was it for a reason?
    pub(super) fn observe(&mut self) {
        let stats = self.bench.shared.stats();
        let (now, was) = (stats.ledger, std::mem::replace(&mut self.reference.ledger, stats.ledger));
        assert!(now.balances(), "{now:?}");
        let synced = self.bench.log.synced;
        if stats.failed.is_some() && self.plan.config.sync != SyncMode::Group {
            // What was acknowledged ahead of its sync went with the file that failed, where no other could be written (R1).
            self.reference.hit.extend(self.reference.records.range(synced..).map(|(offset, _)| *offset));
        }
        let dropped = self.reference.pass(stats.cursor.0);
        let config = &self.plan.config;
        if now.dropped_when_full > was.dropped_when_full {
            assert!(matches!(config.when_full, WhenFull::DropOldest | WhenFull::DropNewest), "{now:?}");
        }
        if now.dropped_min_free > was.dropped_min_free {
            assert!(self.plan.full, "there was room: {now:?}");
            assert!(matches!(config.when_full, WhenFull::DropOldest | WhenFull::DropNewest), "{now:?}");
        }
        if self.reference.hit.is_empty() {
            assert_eq!(now.dropped_damaged, 0, "nothing was damaged");
        }
        let by_room = now.dropped_when_full > was.dropped_when_full || now.dropped_min_free > was.dropped_min_free;
        let (by_age, by_damage) = (now.dropped_age > was.dropped_age, now.dropped_damaged > was.dropped_damaged);
        if by_age {
            let max_age = config.max_age.expect("no limit of age");
            let young = dropped.iter().find(|(_, at)| u128::from(self.now_ms - *at) <= max_age.as_millis());
            assert!(by_room || by_damage || young.is_none(), "dropped before its age: {young:?} at {}", self.now_ms);
        }
        if by_damage {
            let whole = dropped.iter().find(|(offset, _)| !self.reference.hit.contains(offset));
            assert!(by_room || by_age || whole.is_none(), "dropped as damaged, and was not: {whole:?}");
        }
        // Damage above the cursor was counted when it was found; the cursor passes it later.
        let was_damaged = dropped.iter().all(|(offset, _)| self.reference.hit.contains(offset));
        assert!(by_room || by_age || by_damage || was_damaged, "dropped for no reason: {dropped:?}");
    }

    /// Everything that can be read, and the ledger, against the reference.
    pub(super) fn compare(&mut self) {
        self.observe();
        let records = self.bench.read_all();
        for record in &records {
            self.reference.compare(record);
        }
        let read: Vec<u64> = records.iter().map(|record| record.offset.0).collect();
        assert!(read.is_sorted_by(|a, b| a < b), "out of order or twice: {read:?}");
        self.take_damage(&read);
        self.observe();
        let durable = self.bench.durable();
        assert_eq!(read, self.reference.readable(durable), "what is read");
        self.reference.compare_ledger(&self.bench.shared.stats().ledger);
    }

    /// What should be there and is not: damage has taken it, which has to be in the ledger by now.
    fn take_damage(&mut self, read: &[u64]) {
        let there: BTreeSet<u64> = read.iter().copied().collect();
        for offset in self.reference.readable(self.bench.durable()) {
            if !there.contains(&offset) {
                assert!(self.reference.hit.contains(&offset), "{offset} is missing");
                self.reference.records.get_mut(&offset).unwrap().fate = Fate::Damaged;
            }
        }
    }
}
