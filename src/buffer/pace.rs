//! How long the writer waits for publishers that come back.
//!
//! Publishers that wait for each acknowledgement come back one by one after a commit. Were the first one's record written at once, all
//! others would wait for that sync and the next. So the writer waits until as many are there as there were: those that the last commit
//! settled, and those that came while it was under way. Thus publishers that took turns in two batches meet in one. It waits only for a part
//! of the time that a commit takes, only while they come, and for a lone publisher not at all.

use std::time::Duration;

/// They are waited for at most this part of the time that a commit takes, and while none comes for at most half of that.
const PART: u32 = 4;
/// And no longer than this, however slow the disk is: then they share the next sync.
const LIMIT_MAX: Duration = Duration::from_millis(5);
/// So often it is looked at most: the clock may stand still (in tests).
pub(super) const LOOKS_MAX: usize = 10_000;
/// Turns of a processor's pause between two looks: each look takes the counter's cache line from those who come.
pub(super) const LOOK_SPINS: usize = 64;

/// What the last commit was like, for a log with a thread of its own.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Its records may be awaited: there is a thread that does nothing else.
    pub(super) patient: bool,
    awaited: u64,
    took: Duration,
}

impl Pace {
    /// A commit of so many records took so long; `came` are those that were staged meanwhile.
    pub(super) fn note(&mut self, records: u64, came: u64, took: Duration) {
        (self.awaited, self.took) = (records + came, took);
    }

    /// Whether `staged` records are to be written now, `waited` after the first look and `still` after the last one came.
    pub(super) fn is_over(&self, staged: u64, waited: Duration, still: Duration) -> bool {
        let limit = (self.took / PART).min(LIMIT_MAX);
        !self.patient || staged == 0 || staged >= self.awaited || waited >= limit || still >= limit / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Duration = Duration::from_micros(400);

    fn after(records: u64, came: u64) -> Pace {
        let mut pace = Pace { patient: true, ..Pace::default() };
        pace.note(records, came, COMMIT);
        pace
    }

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn those_of_the_last_commit_and_those_that_came_meanwhile_are_awaited() {
        let pace = after(3, 5);
        assert!(!pace.is_over(7, us(1), us(1)), "two cohorts meet in one batch");
        assert!(pace.is_over(8, us(1), us(1)));
    }

    #[test]
    fn a_lone_publisher_is_waited_for_by_nobody() {
        assert!(after(1, 0).is_over(1, us(0), us(0)));
        assert!(Pace { patient: true, ..Pace::default() }.is_over(1, us(0), us(0)), "nor is the first of all");
    }

    #[test]
    fn who_does_not_come_back_costs_a_part_of_a_commit() {
        let pace = after(8, 0);
        assert!(!pace.is_over(2, us(49), us(49)));
        assert!(pace.is_over(2, us(50), us(50)), "nobody comes any more");
        assert!(!pace.is_over(7, us(99), us(1)));
        assert!(pace.is_over(7, us(100), us(1)), "they come too slowly");
    }

    #[test]
    fn a_disk_of_which_a_sync_takes_seconds_makes_nobody_wait_for_others_as_long() {
        let mut pace = after(8, 0);
        pace.note(8, 0, Duration::from_secs(2));
        assert!(!pace.is_over(7, us(4_999), us(1)));
        assert!(pace.is_over(7, us(5_000), us(1)));
    }

    #[test]
    fn without_a_thread_of_its_own_a_log_waits_for_nobody() {
        let mut pace = Pace::default();
        pace.note(8, 0, COMMIT);
        assert!(pace.is_over(1, us(0), us(0)));
    }
}
