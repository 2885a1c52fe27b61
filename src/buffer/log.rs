//! The log's core: writes what is staged, syncs it, moves the mark, saves the cursor, deletes what is settled. One owner
//! (the writer thread, or a test that drives it by hand); synchronous over [`Storage`]; starts nothing and waits for
//! nothing.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::batch::{Frame, Taken};
use super::codec::Packer;
use super::cursor::{Drop, Passed};
use super::format::{Footer, SEGMENT_HEADER, SegmentHeader};
use super::pace::{LOOKS_MAX, Pace};
use super::segment::{FrameMeta, Segment};
use super::slots::Slots;
use super::state::{Pressure, Shared};
use super::storage::{Handle, Storage, is_no_space};
use super::{SyncMode, WhenFull, wide};
use crate::clock::Moment;

/// A changed cursor is synced at the latest after this (R9).
const CURSOR_SYNC: Duration = Duration::from_secs(1);
/// The same where nothing on disk is owed, so that no record can be repeated (`sync: spill`): only a power cut forgets so
/// much of the ledger, and flash is spared.
const CURSOR_SYNC_IDLE: Duration = Duration::from_secs(60);
/// How often a full disk is tried again, and `min_free` and `max_age` are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often the age of what is kept is looked at, at the latest.
const KEPT_LOOK: Duration = Duration::from_secs(60);
/// Numbers that are reserved ahead, so that none is given twice where a crash took records that somebody has seen.
pub(super) const RESERVE: u64 = 1 << 16;
/// Written bytes that are not synced yet and stay in memory for a second attempt (`sync: <interval>`).
const UNSYNCED_BYTES_MAX: u64 = 8 << 20;
/// Default of `min_free`: this part of the disk, and at least that much (R3).
const MIN_FREE_PART: u64 = 20;
const MIN_FREE_BYTES: u64 = 256 << 20;

/// Why a write did not succeed.
#[derive(Debug)]
enum Trouble {
    /// The disk is full: nothing is broken, it can be tried again.
    NoSpace,
    /// This file is not to be trusted any more.
    Broken(String),
}

impl Trouble {
    fn of(what: &str, error: &io::Error) -> Self {
        if is_no_space(error) { Self::NoSpace } else { Self::Broken(format!("{what}: {error}")) }
    }
}

/// What the log is, beside its records; saved in `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uuid: [u8; 16],
    /// What the segments' salts are made from, so that a damaged segment header costs nothing.
    pub(super) secret: u32,
    pub(super) epoch: u32,
    /// Numbers below may have been given.
    pub(super) reserved: u64,
    /// Closed in good order.
    pub(super) clean: bool,
    /// Records may have been seen before they were durable: numbers may have been given beyond those in the files.
    pub(super) ahead: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    pub(super) meta: Slots,
    pub(super) cursors: Slots,
    pub(super) _lock: Box<dyn Any + Send + Sync>,
    pub(super) upkeep: Upkeep,
    pub(super) active: Option<Active>,
    /// Everything below is synced.
    pub(super) synced: u64,
    /// Behind the last record that was taken to be written; numbers between it and the next one are skipped.
    pub(super) taken: u64,
    /// Written and not synced.
    pub(super) unsynced: Vec<Taken>,
    /// Taken, and not written because the disk was full; in order.
    pub(super) held: VecDeque<Taken>,
    pub(super) packer: Packer,
    pub(super) pace: Pace,
}

/// When what was last done.
#[derive(Debug)]
pub(super) struct Upkeep {
    cursor_synced: Instant,
    cursor_unsynced: bool,
    /// Where the cursor was when it was last synced.
    cursor_floor: u64,
    data_synced: Instant,
    looked: Option<Instant>,
}

impl Upkeep {
    pub(super) const fn new(now: Instant) -> Self {
        Self { cursor_synced: now, cursor_unsynced: false, cursor_floor: 0, data_synced: now, looked: None }
    }
}

/// The file that is being written.
#[derive(Debug)]
pub(super) struct Active {
    file: Box<dyn Handle>,
    len: u64,
    base: u64,
    salt: u32,
}

impl Identity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.uuid.to_vec();
        out.extend(self.secret.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.reserved.to_le_bytes());
        out.push(u8::from(self.clean) | (u8::from(self.ahead) << 1));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (uuid, rest) = bytes.split_first_chunk::<16>()?;
        let (secret, rest) = rest.split_first_chunk::<4>()?;
        let (epoch, rest) = rest.split_first_chunk::<4>()?;
        let (reserved, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            uuid: *uuid,
            secret: u32::from_le_bytes(*secret),
            epoch: u32::from_le_bytes(*epoch),
            reserved: u64::from_le_bytes(*reserved),
            clean: *rest.first()? & 1 != 0,
            ahead: *rest.first()? & 2 != 0,
        })
    }

    /// The salt of a segment.
    pub(super) fn salt(&self, base: u64, epoch: u32) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.secret, &base.to_le_bytes()), &epoch.to_le_bytes())
    }
}

impl Log {
    /// 8 hex digits of its name.
    pub(super) fn id(&self) -> String {
        self.identity.uuid.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes and syncs everything that is staged.
    pub(super) fn commit(&mut self) {
        self.reserve_ahead();
        self.acknowledge_settled();
        while !self.has_failed() {
            let Some(batch) = self.held.pop_front().or_else(|| self.take_staged()) else { return };
            let stuck = !self.store(batch);
            self.shared.state.lock().in_write = self.held.iter().map(Taken::bytes).sum();
            self.shared.make_room();
            if stuck {
                return;
            }
        }
    }

    /// With `sync: spill` numbers are seen before they are durable: they are reserved well before they are given.
    fn reserve_ahead(&mut self) {
        if !self.spills() {
            return;
        }
        let next = self.shared.state.lock().next;
        if next + RESERVE / 2 > self.identity.reserved
            && let Err(trouble) = self.reserve_to(next + RESERVE)
        {
            tracing::error!(
                ?trouble,
                "no more numbers could be reserved: new records are sent only when they are written"
            );
        }
    }

    /// With `sync: spill` what the cursor has passed is acknowledged. The cursor is saved first, so that a kill forgets
    /// nothing of the ledger that a publisher was told of.
    fn acknowledge_settled(&mut self) {
        let done = self.shared.mark.progress().done;
        if !self.spills() || self.shared.state.lock().tracker.floor() <= done {
            return;
        }
        match self.save_cursor(false) {
            Ok(passed) => self.shared.mark.advance(passed.floor()),
            Err(error) => {
                tracing::error!(%error, "the cursor was not saved; the ledger may be behind after a crash");
                // The remote has them (R1).
                let floor = self.shared.state.lock().tracker.floor();
                self.shared.mark.advance(floor);
            }
        }
    }

    fn spills(&self) -> bool {
        matches!(self.shared.limits.sync, SyncMode::Spill(_))
    }

    fn take_staged(&mut self) -> Option<Taken> {
        let mut batch = if self.spills() {
            self.take_spilled()?
        } else {
            self.gather();
            let mut state = self.shared.state.lock();
            self.shared.staged.store(0, Ordering::Relaxed);
            state.take_staged()?
        };
        self.shared.state.lock().in_write = batch.bytes();
        batch.skipped = batch.base.saturating_sub(self.taken);
        self.taken = batch.next;
        batch.pack(&mut self.packer);
        Some(batch)
    }

    /// Waits for publishers that come back (see [`Pace`]).
    fn gather(&self) {
        let began = self.shared.now();
        let (mut seen, mut moved) = (0, began);
        for _ in 0..LOOKS_MAX {
            let (staged, now) = (self.shared.staged.load(Ordering::Relaxed), self.shared.now());
            if staged > seen {
                (seen, moved) = (staged, now);
            }
            let since = |then| now.saturating_duration_since(then);
            if self.pace.is_over(staged, since(began), since(moved)) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// What the remote has not confirmed in time.
    fn take_spilled(&self) -> Option<Taken> {
        let now = self.shared.clock.moment();
        let (due, floor) = {
            let mut state = self.shared.state.lock();
            let state = &mut *state;
            let due = state.spill.as_mut()?.take_due(&mut state.staged, now);
            // A reader still finds them while they are being written.
            due.iter().for_each(|frame| state.tail.push(frame.clone()));
            state.in_write = due.iter().map(Frame::disk_bytes).sum();
            (due, state.tracker.floor())
        };
        Taken::of(&due, floor)
    }

    fn has_failed(&self) -> bool {
        self.shared.state.lock().failed.is_some()
    }

    /// `false`: it has to wait for space.
    fn store(&mut self, batch: Taken) -> bool {
        let began = self.shared.now();
        match self.write_and_sync(&batch) {
            Ok(came) => {
                let took = self.shared.now().saturating_duration_since(began);
                self.pace.note(batch.next - batch.base, came, took);
                true
            }
            Err(Trouble::NoSpace) => self.hold(vec![batch]),
            Err(Trouble::Broken(reason)) => {
                tracing::error!(reason, "a segment failed; what is not durable is written once more into a new one");
                let mut again = std::mem::take(&mut self.unsynced);
                if again.last().is_none_or(|last| last.next <= batch.base) {
                    again.push(batch);
                }
                self.write_again(again)
            }
        }
    }

    /// The disk is full: the batches stay in memory, and what `when_full` allows makes room. `true`: nothing has to wait.
    fn hold(&mut self, batches: Vec<Taken>) -> bool {
        for batch in batches.into_iter().rev() {
            self.held.push_front(batch);
        }
        let mut state = self.shared.state.lock();
        let is_news = state.pressure == Pressure::None;
        state.pressure = Pressure::Short;
        let reclaimable = state.reclaimable();
        drop(state);
        // Asked whatever the policy is: what is settled, or only kept, goes first, in any lane (R4).
        let may_drop = !(self.shared.reclaim_elsewhere() || reclaimable);
        let dropped = may_drop && self.shared.limits.when_full == WhenFull::DropNewest && self.drop_held();
        if is_news && !dropped {
            tracing::error!("the disk is full: new records wait in memory until there is room");
        }
        if may_drop && self.shared.limits.when_full == WhenFull::DropOldest {
            self.shared.drop_lowest(Drop::MinFree);
        }
        dropped
    }

    /// With `drop_newest` what was let in and has no room is given up: counted, and its publishers are acknowledged, as for what
    /// is not let in. The next frame skips its numbers. `false`: some of it has been acknowledged or confirmed already, so all of it
    /// waits.
    fn drop_held(&mut self) -> bool {
        let (Some(first), Some(last)) = (self.held.front(), self.held.back()) else { return true };
        let (from, base, next) = (first.from(), first.base, last.next);
        if base < self.shared.mark.done() || !self.shared.drop_newest(base, next) {
            return false;
        }
        self.held.clear();
        self.taken = from;
        // A crash forgets nothing of the ledger that a publisher was told of.
        if let Err(error) = self.save_cursor(true) {
            tracing::error!(%error, "the cursor was not saved; the ledger may be behind after a crash");
        }
        self.shared.mark.advance(next);
        true
    }

    /// Answers how many records came meanwhile.
    fn write_and_sync(&mut self, batch: &Taken) -> Result<u64, Trouble> {
        self.reserve(batch.next)?;
        if self.spills() && batch.skipped > 0 && self.upkeep.cursor_floor < batch.base {
            // What this frame skips is in the ledger before it is in the file.
            if let Err(error) = self.save_cursor(true) {
                tracing::error!(%error, "the cursor was not saved; the ledger may be behind after a crash");
            }
        }
        let full = self.active.as_ref().is_some_and(|active| {
            active.len > wide(SEGMENT_HEADER) && active.len + batch.bytes() > self.shared.limits.segment_bytes
        });
        if full {
            self.seal()?;
        }
        self.write(batch)?;
        match self.shared.limits.sync {
            SyncMode::Group | SyncMode::Spill(_) => self.sync_active().map_err(|error| poisoned(&error))?,
            SyncMode::Never => {}
            SyncMode::Interval(_) => {
                self.unsynced.push(batch.clone());
                if self.unsynced.iter().map(Taken::bytes).sum::<u64>() > UNSYNCED_BYTES_MAX {
                    self.sync_active().map_err(|error| poisoned(&error))?;
                }
            }
        }
        if matches!(self.shared.limits.sync, SyncMode::Group | SyncMode::Spill(_)) {
            self.synced = batch.next;
        }
        // Looked at before those are woken who then come too.
        let came = self.shared.staged.load(Ordering::Relaxed);
        self.publish(std::slice::from_ref(batch));
        Ok(came)
    }

    /// Sees to it that `meta` says that numbers below `next` may have been given.
    fn reserve(&mut self, next: u64) -> Result<(), Trouble> {
        if next <= self.identity.reserved {
            return Ok(());
        }
        self.reserve_to(next + RESERVE)
    }

    fn reserve_to(&mut self, reserved: u64) -> Result<(), Trouble> {
        let identity = Identity { reserved, clean: false, ..self.identity };
        let saved = self.meta.save(&identity.encode()).and_then(|()| self.meta.sync());
        saved.map_err(|error| Trouble::of("meta", &error))?;
        self.identity = identity;
        let mut state = self.shared.state.lock();
        let next = state.next;
        if let Some(spill) = &mut state.spill {
            spill.reserve(reserved);
            self.shared.readable.send_replace(next);
        }
        Ok(())
    }

    /// Appends to the active file, which is made where there is none. Leaves it as it was where the disk is full.
    fn write(&mut self, batch: &Taken) -> Result<(), Trouble> {
        if self.active.is_none() {
            self.make_segment(batch.from())?;
        }
        let Some(active) = &mut self.active else { return Err(Trouble::Broken("no segment".to_owned())) };
        let headers = batch.headers(active.salt, self.synced);
        let parts = batch.parts(&headers);
        if let Err(error) = active.file.write_parts_at(&parts, active.len) {
            let cut = active.file.set_len(active.len);
            let trouble = Trouble::of("write", &error);
            return Err(match cut {
                Ok(()) => trouble,
                Err(error) => Trouble::Broken(format!("write, and then cutting the file: {error}")),
            });
        }
        active.len += parts.iter().map(|part| wide(part.len())).sum::<u64>();
        Ok(())
    }

    fn make_segment(&mut self, base: u64) -> Result<(), Trouble> {
        let path = self.dir.join(segment_name(base));
        let epoch = self.identity.epoch;
        let salt = self.identity.salt(base, epoch);
        let now = self.shared.clock.moment();
        let (uuid, created, boot) = (self.identity.uuid, now.wall, now.boot);
        let header = SegmentHeader { uuid, base, epoch, salt, created, boot };
        let made = self.storage.create(&path).and_then(|file| {
            file.write_at(&header.encode(), 0)?;
            self.storage.sync_dir(&self.dir)?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                // What may have been made holds nothing; it would only stand in the way of the next attempt.
                if error.kind() != io::ErrorKind::AlreadyExists {
                    let _gone = self.storage.remove(&path);
                }
                return Err(Trouble::of(&path.display().to_string(), &error));
            }
        };
        let mut segment = Segment::new(path, base, salt);
        (segment.made, segment.boot) = (Some(now), boot);
        let mut state = self.shared.state.lock();
        state.segments.push_back(segment);
        state.active = true;
        drop(state);
        self.active = Some(Active { file, len: wide(SEGMENT_HEADER), base, salt });
        Ok(())
    }

    fn sync_active(&mut self) -> io::Result<()> {
        if let Some(active) = &self.active {
            active.file.sync()?;
        }
        if let Some(last) = self.unsynced.last() {
            self.synced = self.synced.max(last.next);
        }
        self.unsynced.clear();
        self.upkeep.data_synced = self.shared.now();
        Ok(())
    }

    /// Tells the world of batches that are as safe as the mode promises.
    fn publish(&mut self, batches: &[Taken]) {
        let Some(last) = batches.last() else { return };
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if let Some(segment) = state.segments.back_mut() {
            for batch in batches {
                for (frame, len) in batch.frames() {
                    segment.push(&FrameMeta::of(&frame, segment.data_end, len));
                    state.tail.push(frame);
                }
            }
        }
        state.in_write = 0;
        // Under the lock, so that whoever sees the mark also finds the records. Those who wait are woken behind it: they take it next.
        let step = self.shared.mark.step(last.next);
        drop(guard);
        drop(step);
    }

    /// Closes the active segment with its footer. A footer that cannot be written is made up for at the next start.
    fn seal(&mut self) -> Result<(), Trouble> {
        if self.shared.limits.sync != SyncMode::Never {
            self.sync_active().map_err(|error| poisoned(&error))?;
        }
        let Some(active) = self.active.take() else { return Ok(()) };
        let mut state = self.shared.state.lock();
        state.active = false;
        state.roll = false;
        let Some(segment) = state.segments.back_mut() else { return Ok(()) };
        let (next, footer) = (segment.next, footer_of(segment));
        drop(state);
        let frame = footer.encode(active.salt, next);
        let written = active.file.write_at(&frame, active.len).and_then(|()| match self.shared.limits.sync {
            SyncMode::Never => Ok(()),
            SyncMode::Group | SyncMode::Spill(_) | SyncMode::Interval(_) => active.file.sync(),
        });
        if let Err(error) = written {
            tracing::warn!(%error, base = active.base, "a segment's footer was not written");
            return Ok(());
        }
        if let Some(segment) = self.shared.state.lock().segments.back_mut() {
            segment.bytes = active.len + wide(frame.len());
        }
        Ok(())
    }

    /// The one attempt after a failed write or sync: everything that is not synced goes into a new segment. `false`: it
    /// has to wait for space.
    fn write_again(&mut self, again: Vec<Taken>) -> bool {
        let Some(from) = again.first().map(Taken::from) else { return true };
        let trouble = match self.write_to_new_segment(&again, from) {
            Ok(()) => return true,
            Err(trouble) => trouble,
        };
        // What was begun is no part of the log.
        self.active = None;
        self.unsynced.clear();
        match trouble {
            Trouble::NoSpace => match self.cut_catalogue(from) {
                Ok(()) => return self.hold(again),
                Err(error) => self.shared.fail(&format!("the failed segment cannot be put aside: {error}")),
            },
            Trouble::Broken(reason) => {
                // The file stays, and what was published of it can be read: with an interval it may hold the only copy of what was
                // acknowledged. The next start looks at it again.
                let mut state = self.shared.state.lock();
                state.active = false;
                if let Some(segment) = state.segments.back_mut().filter(|last| last.base >= from) {
                    for (frame, len) in again.iter().flat_map(Taken::frames) {
                        segment.push(&FrameMeta::of(&frame, segment.data_end, len));
                    }
                }
                drop(state);
                self.shared.fail(&reason);
            }
        }
        false
    }

    fn write_to_new_segment(&mut self, again: &[Taken], from: u64) -> Result<(), Trouble> {
        self.active = None;
        self.cut_catalogue(from).map_err(|error| Trouble::of("putting the failed segment aside", &error))?;
        for batch in again {
            self.write(batch)?;
        }
        if self.shared.limits.sync != SyncMode::Never {
            self.sync_active().map_err(|error| Trouble::of("sync", &error))?;
            self.synced = again.last().map_or(self.synced, |last| last.next.max(self.synced));
        }
        self.publish(again);
        Ok(())
    }

    /// Forgets, of the newest segment, what is at or above `from`: its file is not trusted with it.
    fn cut_catalogue(&mut self, from: u64) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.active = false;
        let Some(last) = state.segments.back_mut() else { return Ok(()) };
        if last.base < from {
            last.next = last.next.min(from);
            last.points.retain(|point| point.offset < from);
            return Ok(());
        }
        // It holds nothing else, and the new segment gets its name.
        let path = last.path.clone();
        state.segments.pop_back();
        drop(state);
        self.storage.remove(&path)
    }

    /// Everything that time or settling makes due: ages, the cursor, deletions, `min_free`.
    pub(super) fn tend(&mut self) {
        let (now, moment) = (self.shared.now(), self.shared.clock.moment());
        if let SyncMode::Interval(interval) = self.shared.limits.sync
            && !self.unsynced.is_empty()
            && now.duration_since(self.upkeep.data_synced) >= interval
        {
            self.sync_in_time();
        }
        let (roll, deletable, unsaved, changed) = {
            let mut state = self.shared.state.lock();
            if let Some(max_age) = self.shared.limits.max_age {
                state.drop_aged(max_age, moment);
            }
            if state.pressure != Pressure::None {
                let _asked_for = state.reclaimable();
            }
            (state.roll, state.is_deletable(moment), state.tracker.unsaved(), state.tracker.is_changed())
        };
        if (roll || self.is_stale())
            && let Err(Trouble::Broken(reason)) = self.seal()
        {
            tracing::error!(reason, "a segment could not be closed; its file is not used again");
            self.give_up_active();
        }
        let deletable = deletable || self.shared.state.lock().is_deletable(moment);
        let sync = deletable
            || ((changed || self.upkeep.cursor_unsynced)
                && now.saturating_duration_since(self.upkeep.cursor_synced) >= self.cursor_interval());
        if sync || unsaved >= self.shared.limits.window {
            match self.save_cursor(sync) {
                Ok(passed) if deletable => self.delete_settled(&passed, moment),
                Ok(_passed) => {}
                Err(error) => {
                    tracing::error!(%error, "the cursor was not saved; records may be sent again after a crash");
                }
            }
        }
        self.look_at_the_disk(now);
    }

    /// How old a changed cursor may become before it is synced.
    fn cursor_interval(&self) -> Duration {
        let nothing_to_repeat = self.spills() && self.upkeep.cursor_floor >= self.synced;
        if nothing_to_repeat { CURSOR_SYNC_IDLE } else { CURSOR_SYNC }
    }

    fn sync_in_time(&mut self) {
        if let Err(error) = self.sync_active() {
            tracing::error!(%error, "a sync failed; what is not durable is written once more into a new segment");
            self.give_up_active();
        }
    }

    /// After a sync that failed: the file is not used again, and what it holds that is not durable is written into a new one.
    fn give_up_active(&mut self) {
        self.active = None;
        let again = std::mem::take(&mut self.unsynced);
        if again.is_empty() {
            let mut state = self.shared.state.lock();
            state.active = false;
            state.roll = false;
        } else {
            let _done = self.write_again(again);
        }
    }

    /// With `max_age`, or an age in `keep_delivered`, a segment is closed after a part of it, so that a slow link's records go
    /// about in time.
    fn is_stale(&self) -> bool {
        let state = self.shared.state.lock();
        let kept = state.retention.keep().and_then(|keep| keep.age);
        let Some(max_age) = self.shared.limits.max_age.into_iter().chain(kept).min() else { return false };
        let made = state.segments.back().filter(|last| state.active && last.next > last.base).and_then(|s| s.made);
        made.is_some_and(|made| self.shared.clock.moment().since(made) > max_age / 8)
    }

    /// Saves cursor and ledger, in one write. Answers the cursor that was saved.
    pub(super) fn save_cursor(&mut self, sync: bool) -> io::Result<Passed> {
        let (payload, passed, confirmations) = {
            let mut state = self.shared.state.lock();
            state.tracker.saving();
            (state.tracker.encode(self.synced), state.tracker.passed(), state.tracker.unsaved())
        };
        // What fails now is due again with the next look.
        self.upkeep.cursor_unsynced = true;
        let saved = self.cursors.save(&payload);
        self.shared.saved(confirmations);
        saved?;
        if sync {
            self.cursors.sync()?;
            self.upkeep.cursor_unsynced = false;
            self.upkeep.cursor_floor = passed.floor();
            self.upkeep.cursor_synced = self.shared.now();
            self.shared.saved.send_replace(passed.clone());
        }
        Ok(passed)
    }

    /// Deletes the segments that the cursor which has been synced has passed. It may have moved on meanwhile: what it passed since stays
    /// until the next save, or a kill would find a gap above the saved cursor and take it for damage.
    fn delete_settled(&mut self, passed: &Passed, now: Moment) {
        loop {
            let path = {
                let mut state = self.shared.state.lock();
                let Some(at) = state.deletable(passed, now) else { break };
                state.retention.gave_up();
                state.segments.remove(at).map(|segment| segment.path)
            };
            let Some(path) = path else { break };
            if let Err(error) = self.storage.remove(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::error!(%error, path = %path.display(), "a delivered segment cannot be deleted");
            }
        }
        if let Err(error) = self.storage.sync_dir(&self.dir) {
            tracing::warn!(%error, "the buffer's folder was not synced");
        }
        if !self.held.is_empty() {
            self.shared.poke_locked(&mut self.shared.state.lock());
        }
    }

    fn look_at_the_disk(&mut self, now: Instant) {
        let was = self.shared.state.lock().pressure;
        let recent = self.upkeep.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_AGAIN);
        if recent && self.held.is_empty() && was == Pressure::None {
            return;
        }
        self.upkeep.looked = Some(now);
        let Ok(space) = self.storage.space(&self.dir) else { return };
        let min_free = self.shared.limits.min_free;
        let min_free = min_free.unwrap_or_else(|| (space.total / MIN_FREE_PART).max(MIN_FREE_BYTES));
        let short = space.free < min_free || !self.held.is_empty();
        self.shared.state.lock().pressure = if short { Pressure::Short } else { Pressure::None };
        if short && was == Pressure::None {
            tracing::error!(free = space.free, min_free, "the disk is short: `min_free` is reached");
        }
    }

    /// When to look again although nobody pokes.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let state = self.shared.state.lock();
        let short = state.pressure != Pressure::None;
        let dirty = state.tracker.is_changed() || self.upkeep.cursor_unsynced;
        let aging = state.tracker.owed(state.next) > 0;
        let spill = state.spill_due_in(self.shared.clock.moment()).filter(|_| state.failed.is_none());
        let kept = state.retention.keep().and_then(|keep| keep.age).filter(|_| !state.segments.is_empty());
        drop(state);
        let mut look = None;
        let mut at_most = |wish: Duration| look = Some(look.map_or(wish, |look: Duration| look.min(wish)));
        if !self.held.is_empty() || short {
            at_most(LOOK_AGAIN);
        }
        if let Some(due) = spill.filter(|_| self.held.is_empty()) {
            at_most(due.max(Duration::from_millis(1)));
        }
        if dirty {
            let since = self.shared.now().saturating_duration_since(self.upkeep.cursor_synced);
            at_most(self.cursor_interval().saturating_sub(since).max(Duration::from_millis(1)));
        }
        if let Some(max_age) = self.shared.limits.max_age.filter(|_| aging) {
            at_most((max_age / 8).clamp(Duration::from_millis(10), CURSOR_SYNC));
        }
        if let Some(age) = kept {
            at_most((age / 8).clamp(Duration::from_millis(10), KEPT_LOOK));
        }
        if let SyncMode::Interval(interval) = self.shared.limits.sync
            && !self.unsynced.is_empty()
        {
            at_most(interval.max(Duration::from_millis(1)));
        }
        look
    }

    /// The last words: everything is written, synced and saved.
    pub(super) fn finish(mut self) {
        self.shared.hurry();
        self.commit();
        self.tend();
        if let Err(trouble) = self.seal() {
            tracing::error!(?trouble, "the last segment was not closed in good order");
        }
        let whole = self.held.is_empty() && !self.has_failed();
        let next = self.shared.state.lock().next;
        let identity = Identity { clean: whole, reserved: self.identity.reserved.max(next), ..self.identity };
        let saved = self.save_cursor(true).and_then(|_passed| {
            if whole { self.meta.save(&identity.encode()).and_then(|()| self.meta.sync()) } else { Ok(()) }
        });
        if let Err(error) = saved {
            tracing::error!(%error, "the cursor was not saved at the end; records may be sent again");
        }
    }
}

/// A sync that failed, for whatever reason: what the file holds is not known any more.
fn poisoned(error: &io::Error) -> Trouble {
    Trouble::Broken(format!("sync: {error}"))
}

/// The footer of a segment as it is.
pub(super) fn footer_of(segment: &Segment) -> Footer {
    Footer {
        next: segment.next,
        payload: segment.payload,
        last: segment.last.unwrap_or_default(),
        points: segment.mileage(),
        pos: segment.data_end,
    }
}

/// `<20-digit base>.seg`.
pub(super) fn segment_name(base: u64) -> String {
    format!("{base:020}.seg")
}
