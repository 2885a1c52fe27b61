//! The log's core: writes what is staged, syncs it, moves the mark, saves the cursor, deletes what is settled. One owner
//! (the writer thread, or a test that drives it by hand); synchronous over [`Storage`]; starts nothing and waits for
//! nothing.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::{Frame, Taken};
use super::codec::Packer;
use super::cursor::Drop;
use super::format::{Footer, SEGMENT_HEADER, SegmentHeader};
use super::pace::{LOOK_SPINS, LOOKS_MAX, Pace};
use super::segment::{FrameMeta, Segment};
use super::slots::Slots;
use super::state::{Pressure, Shared};
use super::storage::{Handle, Storage, is_no_space};
use super::upkeep::Upkeep;
use super::{SyncMode, WhenFull, wide};

/// Numbers that are reserved ahead, so that none is given twice where a crash took records that somebody has seen.
pub(super) const RESERVE: u64 = 1 << 16;
/// Written bytes that are not synced yet and stay in memory for a second attempt (`sync: <interval>`).
const UNSYNCED_BYTES_MAX: u64 = 8 << 20;

/// Bytes by which the file that is being written is longer than what it holds.
const STRETCH_MIN: u64 = 64 << 10;
const STRETCH_MAX: u64 = 4 << 20;

/// Why a write did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
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

/// The file that is being written.
#[derive(Debug)]
pub(super) struct Active {
    file: Box<dyn Handle>,
    len: u64,
    base: u64,
    salt: u32,
    /// How long the file is; behind `len` are zeros. A sync that need not write a new length waits for less of the file system
    /// (docs/performance.md).
    stretched: u64,
    /// Each write is synced, and zeros take no room.
    may_stretch: bool,
}

impl Active {
    /// Sees to it that the file is longer than what it holds with `bytes` more, by about as much as it holds. Not before something of it is
    /// durable: a file of nothing but zeros has lost what it held.
    fn stretch(&mut self, bytes: u64, segment_bytes: u64) {
        let end = self.len + bytes;
        if end <= self.stretched || !self.may_stretch || self.len <= wide(SEGMENT_HEADER) {
            return;
        }
        let to = (end + end.clamp(STRETCH_MIN, STRETCH_MAX)).min(segment_bytes);
        if to > end {
            let stretched = self.file.stretch(to);
            // Where it cannot be done nothing is lost but the time; a failure may leave it longer.
            self.stretched = if matches!(stretched, Ok(false)) { self.len } else { to };
            self.may_stretch = matches!(stretched, Ok(true));
        }
    }

    /// Cuts what nothing was written to.
    fn fit(&mut self) -> io::Result<()> {
        if self.stretched > self.len {
            self.file.set_len(self.len)?;
            self.stretched = self.len;
        }
        Ok(())
    }
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
            Err(_logged) => {
                // The remote has them (R1).
                let floor = self.shared.state.lock().tracker.floor();
                self.shared.mark.advance(floor);
            }
        }
    }

    pub(super) fn spills(&self) -> bool {
        matches!(self.shared.limits.sync, SyncMode::Spill(_))
    }

    fn take_staged(&mut self) -> Option<Taken> {
        let mut batch = if self.spills() {
            self.take_spilled()?
        } else {
            self.gather();
            let mut state = self.shared.state.lock();
            self.shared.staged.store(0, Ordering::Relaxed);
            let batch = state.take_staged()?;
            // Under the same lock, so that no offer sees it neither staged nor being written.
            state.in_write = batch.bytes();
            batch
        };
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
            (0..LOOK_SPINS).for_each(|_| std::hint::spin_loop());
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
        let _logged = self.save_cursor(true);
        self.shared.mark.advance(next);
        true
    }

    /// Answers how many records came meanwhile.
    fn write_and_sync(&mut self, batch: &Taken) -> Result<u64, Trouble> {
        self.reserve(batch.next)?;
        if self.spills() && batch.skipped > 0 && self.upkeep.cursor_floor < batch.base {
            // What this frame skips is in the ledger before it is in the file.
            let _logged = self.save_cursor(true);
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
        let bytes = parts.iter().map(|part| wide(part.len())).sum::<u64>();
        active.stretch(bytes, self.shared.limits.segment_bytes);
        if let Err(error) = active.file.write_parts_at(&parts, active.len) {
            let cut = active.file.set_len(active.len);
            active.stretched = active.len;
            let trouble = Trouble::of("write", &error);
            return Err(match cut {
                Ok(()) => trouble,
                Err(error) => Trouble::Broken(format!("write, and then cutting the file: {error}")),
            });
        }
        active.len += bytes;
        active.stretched = active.stretched.max(active.len);
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
        state.segments.push(segment);
        state.active = true;
        drop(state);
        let len = wide(SEGMENT_HEADER);
        let may_stretch = matches!(self.shared.limits.sync, SyncMode::Group | SyncMode::Spill(_));
        self.active = Some(Active { file, len, base, salt, stretched: len, may_stretch });
        Ok(())
    }

    pub(super) fn sync_active(&mut self) -> io::Result<()> {
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
        if let Some(segment) = state.segments.newest_mut() {
            for batch in batches {
                for (frame, len) in batch.frames() {
                    segment.push(&FrameMeta::of(&frame, segment.data_end, len));
                    state.tail.push(frame);
                }
            }
        }
        state.in_write = 0;
        // Under the lock, so that whoever sees the mark also finds the records.
        let step = self.shared.mark.step(last.next);
        // They take the lock next. Few are woken under it: so they come together, and are one batch again. Of many the first would stand
        // before it while the others are still being woken (docs/performance.md has both).
        let (under, behind) = if step.wakes_few() { (Some(step), None) } else { (None, Some(step)) };
        drop(under);
        drop(guard);
        drop(behind);
    }

    /// Closes the active segment with its footer. A footer that cannot be written is made up for at the next start.
    pub(super) fn seal(&mut self) -> Result<(), Trouble> {
        if let Some(active) = &mut self.active {
            // Before the sync, so that a power cut leaves no footer in front of zeros.
            active.fit().map_err(|error| Trouble::of("cutting the file", &error))?;
        }
        if self.shared.limits.sync != SyncMode::Never {
            self.sync_active().map_err(|error| poisoned(&error))?;
        }
        let Some(active) = self.active.take() else { return Ok(()) };
        let mut state = self.shared.state.lock();
        state.active = false;
        state.roll = false;
        let Some(segment) = state.segments.newest_mut() else { return Ok(()) };
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
        if let Some(segment) = self.shared.state.lock().segments.newest_mut() {
            segment.bytes = active.len + wide(frame.len());
        }
        Ok(())
    }

    /// The one attempt after a failed write or sync: everything that is not synced goes into a new segment. `false`: it
    /// has to wait for space.
    pub(super) fn write_again(&mut self, again: Vec<Taken>) -> bool {
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
                if let Some(segment) = state.segments.newest_mut().filter(|last| last.base >= from) {
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
        let Some(last) = state.segments.newest_mut() else { return Ok(()) };
        if last.base < from {
            last.next = last.next.min(from);
            last.points.retain(|point| point.offset < from);
            return Ok(());
        }
        // It holds nothing else, and the new segment gets its name.
        let path = last.path.clone();
        state.segments.pop_newest();
        drop(state);
        self.storage.remove(&path)
    }

    /// The last words: everything is written, synced and saved.
    pub(super) fn finish(mut self) {
        self.shared.hurry();
        self.commit();
        self.tend();
        if let Err(trouble) = self.seal() {
            tracing::error!(
                ?trouble,
                "the last segment was not closed in good order; what it held that is not durable is written once more"
            );
            self.give_up_active();
        }
        let whole = self.held.is_empty() && self.unsynced.is_empty() && !self.has_failed();
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
