//! One lane of the link: its log, its reference, and the sink that reads it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;

use super::super::super::scan::FrameScan;
use super::super::super::*;
use super::super::bench::Bench;
use super::super::disk::Dice;
use super::plan::Plan;
use super::reference::{Fate, Reference};
use super::run::Life;

/// See the module.
pub(super) struct Own {
    pub(super) lane: Lane,
    pub(super) bench: Bench,
    pub(super) reference: Reference,
    pub(super) sink: Sink,
    /// When the oldest record that is staged was staged.
    pub(super) staged_ms: Option<u64>,
    /// The oldest record that was on disk when this was last looked at, if one was.
    first: Option<u64>,
}

/// The link's sink: reads, has a window in flight, confirms in any order.
pub(super) struct Sink {
    reader: Reader,
    pub(super) in_flight: Vec<u64>,
    /// Handed out since the last connect.
    seen: BTreeSet<u64>,
}

impl Sink {
    fn on(bench: &Bench) -> Self {
        Self { reader: bench.reader(), in_flight: Vec::new(), seen: BTreeSet::new() }
    }
}

fn first_on_disk(bench: &Bench) -> Option<u64> {
    bench.shared.state.lock().segments.front().map(|front| front.base)
}

impl Own {
    pub(super) fn new(lane: Lane, bench: Bench) -> Self {
        Self::again(lane, bench, Reference::default())
    }

    /// The next life of a lane.
    pub(super) fn again(lane: Lane, bench: Bench, reference: Reference) -> Self {
        let (sink, first) = (Sink::on(&bench), first_on_disk(&bench));
        Self { lane, bench, reference, sink, staged_ms: None, first }
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

    /// The earliest stamp that the frame of a record that is staged now may have.
    pub(super) fn stamped_ms(&mut self, plan: &Plan, now_ms: u64) -> u64 {
        let oldest = *self.staged_ms.get_or_insert(now_ms);
        // A step of the wall clock may hide how much time a frame covers.
        if plan.good_clock { oldest.max(now_ms.saturating_sub(batch::FRAME_MS_MAX)) } else { oldest }
    }

    pub(super) fn commit(&mut self, plan: &Plan) {
        self.bench.log.commit();
        self.take_acknowledged(plan);
        if self.bench.durable() >= self.bench.shared.state.lock().next {
            self.staged_ms = None;
        }
    }

    /// What is acknowledged by now, and with `drop_newest` what of that had no room.
    pub(super) fn take_acknowledged(&mut self, plan: &Plan) {
        let durable = self.bench.durable();
        if plan.config.when_full == WhenFull::DropNewest {
            let state = self.bench.shared.state.lock();
            let some = self.reference.take_no_room(durable, |offset| state.tracker.is_owed(offset));
            assert!(!some || plan.full, "there was room");
        }
        self.reference.acknowledged = self.reference.acknowledged.max(durable);
    }

    /// One turn of the writer.
    pub(super) fn turn(&mut self, plan: &Plan) {
        self.commit(plan);
        self.bench.log.tend();
    }

    /// What a turn leaves where nothing failed.
    pub(super) fn check_turn(&self, plan: &Plan) {
        let state = self.bench.shared.state.lock();
        let (unsaved, kept) = (state.tracker.unsaved(), state.settled_bytes());
        assert!(unsaved < plan.window() as u64, "R9: {unsaved} confirmations are unsaved");
        let most = plan.config.keep_delivered.map_or(Some(0), |keep| keep.size.map(|size| size.0));
        assert!(most.is_none_or(|most| kept <= most), "{kept} bytes are kept of {most:?}");
    }

    pub(super) fn read(&mut self, room: usize, bytes_max: usize, plan: &Plan, life: &Life) {
        let before = self.sink.reader.cursor();
        match self.sink.reader.next(room, bytes_max).now_or_never() {
            None => {}
            Some(Err(refused)) => assert!(life.troubled, "{refused}"),
            Some(Ok(records)) => {
                assert!(!records.is_empty() && records.len() <= room);
                let end = if plan.spills() { self.bench.shared.stats().next.0 } else { self.reference.acknowledged };
                for record in records {
                    self.reference.compare(&record);
                    let offset = record.offset.0;
                    assert!(offset >= before.0 && offset < end, "{offset} is not to be read");
                    assert!(self.sink.seen.last().is_none_or(|last| *last < offset), "{offset} is out of order");
                    self.sink.seen.insert(offset);
                    self.sink.in_flight.push(offset);
                    self.reference.shown = self.reference.shown.max(offset + 1);
                }
            }
        }
    }

    /// Confirms one record; `false`: there is none in flight.
    pub(super) fn confirm(&mut self, dice: &mut Dice) -> bool {
        if self.sink.in_flight.is_empty() {
            return false;
        }
        let at = if dice.roll(3) == 0 { dice.roll(self.sink.in_flight.len() as u64) as usize } else { 0 };
        let offset = self.sink.in_flight.remove(at);
        let outcome = match dice.roll(12) {
            0 => Outcome::Expired,
            1 => Outcome::DeadLettered,
            _ => Outcome::Delivered,
        };
        self.bench.shared.settle(Offset(offset), outcome);
        self.reference.settle(offset, outcome);
        true
    }

    pub(super) fn reconnect(&mut self) {
        self.sink.in_flight.clear();
        self.sink.seen.clear();
        let cursor = self.sink.reader.cursor();
        self.sink.reader.seek(cursor);
    }

    /// Reads what the log still holds, delivered or not, from anywhere on, as a replay does, and counts it.
    pub(super) fn replay(&mut self, dice: &mut Dice, plan: &Plan, life: &Life) {
        let durable = self.bench.durable();
        let first = self.bench.shared.stats().first.0.min(durable).saturating_sub(3);
        let from = first + dice.roll(durable - first + 1);
        let until = from + dice.roll(80);
        let (shared, disk) = (Arc::clone(&self.bench.shared), Arc::new(self.bench.disk.clone()));
        let mut history = History::new(shared, disk, Offset(from), Offset(until));
        let mut read = Vec::new();
        loop {
            let (records_max, bytes_max) = (1 + dice.roll(20) as usize, 1 + dice.roll(8_000) as usize);
            match history.next(records_max, bytes_max).now_or_never().expect("nothing is awaited") {
                Ok(records) if records.is_empty() => break,
                Ok(records) => {
                    assert!(records.len() <= records_max);
                    records.iter().for_each(|record| self.reference.compare(record));
                    read.extend(records.iter().map(|record| record.offset.0));
                }
                Err(error) => {
                    assert!(life.troubled, "{error}");
                    return;
                }
            }
        }
        let until = until.min(durable);
        assert!(read.is_sorted_by(|a, b| a < b), "replayed out of order or twice: {read:?}");
        assert!(read.iter().all(|offset| (from..until).contains(offset)), "{read:?} of {from}..{until}");
        let mut state = self.bench.shared.state.lock();
        let held = |offset| state.segments.iter().any(|segment| (segment.base..segment.next).contains(&offset));
        let there: BTreeSet<u64> = read.iter().copied().collect();
        let expected = self.reference.replayable(from, until, plan.spills(), held);
        let missing = expected.into_iter().find(|offset| !there.contains(offset));
        assert_eq!(missing, None, "not replayed, in {from}..{until}");
        state.tracker.count_replayed(read.len() as u64);
        self.reference.replayed += read.len() as u64;
    }

    /// Flips a bit or zeroes a page of a segment, and takes note of the records whose frames it lies in.
    pub(super) fn damage(&mut self, dice: &mut Dice) {
        let known: Vec<(PathBuf, u32)> =
            self.bench.shared.state.lock().segments.iter().map(|known| (known.path.clone(), known.salt)).collect();
        if known.is_empty() {
            return;
        }
        let (path, salt) = known[dice.roll(known.len() as u64) as usize].clone();
        let len = self.bench.disk.len(&path);
        if len == 0 {
            return;
        }
        let from = dice.roll(len);
        let to = if dice.roll(3) == 0 { (from + 512).min(len) } else { from + 1 };
        let file = Storage::open_to_read(&self.bench.disk, &path).unwrap();
        let mut frames = FrameScan::new(file, salt, wide(format::SEGMENT_HEADER), len);
        while let Some(found) = frames.next().unwrap() {
            if found.pos < to && from < found.pos + found.header.frame_len() {
                self.reference.hit.extend(found.header.base..found.header.next());
            }
        }
        let bit = 1 << dice.roll(8);
        self.bench.disk.change(&path, |bytes| {
            let range = &mut bytes[from as usize..to as usize];
            if range.len() == 1 { range[0] ^= bit } else { range.fill(0) }
        });
    }

    /// Looks at the cursor, the ledger and the oldest record: what was dropped or deleted, was it for a reason?
    pub(super) fn observe(&mut self, plan: &Plan, life: &Life) {
        let stats = self.bench.shared.stats();
        let (now, was) = (stats.ledger, std::mem::replace(&mut self.reference.ledger, stats.ledger));
        assert!(now.balances(), "{now:?}");
        let synced = self.bench.log.synced;
        if stats.failed.is_some() && plan.acknowledges_ahead() {
            // What was acknowledged ahead of its sync went with the file that failed, where no other could be written (R1).
            self.reference.hit.extend(self.reference.records.range(synced..).map(|(offset, _)| *offset));
        }
        let dropped = self.reference.pass(stats.cursor.0);
        let gives_up = matches!(plan.config.when_full, WhenFull::DropOldest | WhenFull::DropNewest);
        assert!(gives_up || now.dropped_when_full == was.dropped_when_full, "{now:?}");
        if now.dropped_min_free > was.dropped_min_free {
            assert!(plan.full, "there was room: {now:?}");
            assert!(gives_up, "{now:?}");
        }
        if self.reference.hit.is_empty() {
            assert_eq!(now.dropped_damaged, 0, "nothing was damaged");
        }
        let by_room = now.dropped_when_full > was.dropped_when_full || now.dropped_min_free > was.dropped_min_free;
        let (by_age, by_damage) = (now.dropped_age > was.dropped_age, now.dropped_damaged > was.dropped_damaged);
        if by_age {
            let max_age = plan.config.max_age.expect("no limit of age");
            let young = dropped.iter().find(|(_, at)| u128::from(life.now_ms - *at) <= max_age.as_millis());
            assert!(by_room || by_damage || young.is_none(), "dropped before its age: {young:?} at {}", life.now_ms);
        }
        if by_damage {
            let whole = dropped.iter().find(|(offset, _)| !self.reference.hit.contains(offset));
            assert!(by_room || by_age || whole.is_none(), "dropped as damaged, and was not: {whole:?}");
        }
        // Damage above the cursor was counted when it was found; the cursor passes it later.
        let was_damaged = dropped.iter().all(|(offset, _)| self.reference.hit.contains(offset));
        assert!(by_room || by_age || by_damage || was_damaged, "dropped for no reason: {dropped:?}");
        self.look_at_deletions(plan, life);
    }

    /// What is kept goes by its age, its size, or where room is needed.
    fn look_at_deletions(&mut self, plan: &Plan, life: &Life) {
        let first = first_on_disk(&self.bench);
        let Some(before) = std::mem::replace(&mut self.first, first) else { return };
        let first = first.unwrap_or_else(|| self.bench.durable());
        let Some(keep) = plan.config.keep_delivered.filter(|keep| keep.size.is_none() && !life.pressed) else { return };
        let age = keep.age.map_or(u128::MAX, |age| age.as_millis());
        // A file of which nothing can be read goes with the next.
        let hit = &self.reference.hit;
        let mut gone = self.reference.records.range(before..first.max(before)).filter(|(at, _)| !hit.contains(at));
        let young = gone.find(|(_, kept)| u128::from(life.now_ms - kept.at_ms) <= age);
        assert!(young.is_none(), "deleted before its age: {:?} at {}", young.map(|(at, _)| at), life.now_ms);
    }

    /// Everything that can be read, and the ledger, against the reference.
    pub(super) fn compare(&mut self, plan: &Plan, life: &Life) {
        let records = self.bench.read_all();
        for record in &records {
            self.reference.compare(record);
        }
        let read: Vec<u64> = records.iter().map(|record| record.offset.0).collect();
        assert!(read.is_sorted_by(|a, b| a < b), "out of order or twice: {read:?}");
        let end = self.bench.durable().max(*self.bench.shared.readable.borrow());
        self.take_damage(&read, end);
        self.observe(plan, life);
        assert_eq!(read, self.reference.readable(end), "what is read");
        self.reference.compare_ledger(&self.bench.shared.stats().ledger);
    }

    /// What should be there and is not: damage has taken it, which has to be in the ledger by now.
    fn take_damage(&mut self, read: &[u64], end: u64) {
        let there: BTreeSet<u64> = read.iter().copied().collect();
        for offset in self.reference.readable(end) {
            if !there.contains(&offset) {
                assert!(self.reference.hit.contains(&offset), "{offset} is missing");
                self.reference.records.get_mut(&offset).unwrap().fate = Fate::Damaged;
            }
        }
    }
}
