//! What time and settling make due: the cursor, ages, deletions, the disk's free space.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::SyncMode;
use super::cursor::Passed;
use super::log::{Log, Trouble};
use super::state::{LOG_EVERY, Pressure};
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
/// Default of `min_free`: this part of the disk, and at least that much (R3).
const MIN_FREE_PART: u64 = 20;
const MIN_FREE_BYTES: u64 = 256 << 20;

/// When what was last done.
#[derive(Debug)]
pub(super) struct Upkeep {
    cursor_synced: Instant,
    cursor_unsynced: bool,
    /// When it last could not be saved, until it can.
    cursor_failed: Option<Instant>,
    /// Where the cursor was when it was last synced.
    pub(super) cursor_floor: u64,
    pub(super) data_synced: Instant,
    looked: Option<Instant>,
    /// Delivered segments that could not be deleted, with their bytes; tried again.
    stuck: Vec<(PathBuf, u64)>,
    stuck_tried: Option<Instant>,
    logged: Option<Instant>,
}

impl Upkeep {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            cursor_synced: now,
            cursor_unsynced: false,
            cursor_failed: None,
            cursor_floor: 0,
            data_synced: now,
            looked: None,
            stuck: Vec::new(),
            stuck_tried: None,
            logged: None,
        }
    }

    /// Whether trouble is to be logged now: at most so often.
    fn is_news(&mut self, now: Instant) -> bool {
        let news = self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY);
        if news {
            self.logged = Some(now);
        }
        news
    }
}

impl Log {
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
        let full = unsaved >= self.shared.limits.window;
        let failed = self.upkeep.cursor_failed;
        if failed.is_some_and(|failed| now.saturating_duration_since(failed) < CURSOR_SYNC) {
            // It is tried once a second; the link goes on meanwhile, as if it had been tried now.
            if full {
                self.shared.saved(unsaved);
            }
        } else if (sync || full)
            && let Ok(passed) = self.save_cursor(sync)
            && deletable
        {
            self.delete_settled(&passed, moment);
        }
        if self.upkeep.stuck_tried.is_some_and(|tried| now.saturating_duration_since(tried) >= LOG_EVERY) {
            self.delete_stuck();
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
    pub(super) fn give_up_active(&mut self) {
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

    /// Saves cursor and ledger, in one write. Answers the cursor that was saved. A failure is logged, and shown in `status` until one
    /// succeeds: after a crash records may be sent again, and the ledger may be behind.
    pub(super) fn save_cursor(&mut self, sync: bool) -> io::Result<Passed> {
        let saved = self.try_save_cursor(sync);
        match &saved {
            Ok(_) if self.upkeep.cursor_failed.is_some() => {
                self.upkeep.cursor_failed = None;
                self.shared.state.lock().cursor_error = None;
                tracing::info!("the cursor is saved again");
            }
            Ok(_) => {}
            Err(error) => {
                let now = self.shared.now();
                self.upkeep.cursor_failed = Some(now);
                self.shared.state.lock().cursor_error = Some(error.to_string().into());
                if self.upkeep.is_news(now) {
                    tracing::error!(%error, "the cursor was not saved; records may be sent again after a crash, and the ledger be behind");
                }
            }
        }
        saved
    }

    fn try_save_cursor(&mut self, sync: bool) -> io::Result<Passed> {
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
            let segment = {
                let mut state = self.shared.state.lock();
                let Some(at) = state.deletable(passed, now) else { break };
                state.retention.gave_up();
                state.segments.remove(at)
            };
            let Some(segment) = segment else { break };
            self.delete(segment.path, segment.bytes);
        }
        self.deleted();
        if !self.held.is_empty() {
            self.shared.poke_locked(&mut self.shared.state.lock());
        }
    }

    /// Deletes a delivered segment. One that cannot be deleted is no part of the log any more, and holds nobody up; its bytes still count as
    /// on disk.
    fn delete(&mut self, path: PathBuf, bytes: u64) {
        match self.storage.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let now = self.shared.now();
                if self.upkeep.is_news(now) {
                    tracing::error!(%error, path = %path.display(), "a delivered segment cannot be deleted; it is tried again");
                }
                self.upkeep.stuck_tried = Some(now);
                self.upkeep.stuck.push((path, bytes));
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn delete_stuck(&mut self) {
        self.upkeep.stuck_tried = None;
        for (path, bytes) in std::mem::take(&mut self.upkeep.stuck) {
            self.delete(path, bytes);
        }
        self.deleted();
    }

    fn deleted(&self) {
        self.shared.state.lock().stuck_bytes = self.upkeep.stuck.iter().map(|(_, bytes)| bytes).sum();
        if let Err(error) = self.storage.sync_dir(&self.dir) {
            tracing::warn!(%error, "the buffer's folder was not synced");
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
            let since = |then| self.shared.now().saturating_duration_since(then);
            let due = self.cursor_interval().saturating_sub(since(self.upkeep.cursor_synced));
            let again =
                self.upkeep.cursor_failed.map_or(Duration::ZERO, |failed| CURSOR_SYNC.saturating_sub(since(failed)));
            at_most(due.max(again).max(Duration::from_millis(1)));
        }
        if !self.upkeep.stuck.is_empty() {
            at_most(LOG_EVERY);
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
}
