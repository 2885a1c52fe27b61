//! `sync: spill`: what is staged waits in memory for the remote's confirmation and is written only when that comes too
//! late. Pure: frames and moments in, what is due out.
//!
//! What is written is always all that is staged at or above the cursor, so what never touches the disk is a run of numbers
//! directly below a frame, and that frame says how many they were. Once something was late the remote is taken to be
//! behind: new records then wait a tenth as long, so that publishers do not pay `spill_after` for each message of an
//! outage, until a record is confirmed in time again or nothing that was written is owed any more.

use std::collections::VecDeque;
use std::time::Duration;

use super::batch::{Batch, Frame};
use crate::clock::Moment;

/// While the remote is behind, a record waits this part of `spill_after`.
const BEHIND_PART: u32 = 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Spill {
    after: Duration,
    /// In order, without gaps; newer ones are still in the open batch.
    frames: VecDeque<Frame>,
    bytes: u64,
    /// Numbers below may be shown to the remote: `meta` says that they may have been given.
    reserved: u64,
    /// Behind the last number that was handed to the writer.
    taken: u64,
    behind: bool,
    /// All that is staged is to be written at the next turn.
    urged: bool,
    /// So from now on at every turn: the gateway is stopping.
    hurried: bool,
}

impl Spill {
    pub(super) const fn new(after: Duration, reserved: u64, taken: u64) -> Self {
        Self { after, frames: VecDeque::new(), bytes: 0, reserved, taken, behind: false, urged: false, hurried: false }
    }

    /// Bytes that writing the closed frames would take.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn reserve(&mut self, reserved: u64) {
        self.reserved = self.reserved.max(reserved);
    }

    pub(super) const fn urge(&mut self) {
        self.urged = true;
    }

    pub(super) const fn hurry(&mut self) {
        self.hurried = true;
    }

    /// To be called before the record `offset` is staged: closes the open batch where a frame must end, so that no frame
    /// reaches beyond what is reserved, nor covers more time than its age may be off by.
    pub(super) fn before(&mut self, offset: u64, staged: &mut Batch, now: Moment) {
        let long = staged.at().is_some_and(|at| now.since(at) >= self.after / BEHIND_PART);
        if long || offset == self.reserved {
            self.close(staged);
        }
    }

    fn close(&mut self, staged: &mut Batch) {
        let Some(taken) = staged.take(None) else { return };
        for (frame, len) in taken.frames() {
            self.bytes += len;
            self.frames.push_back(frame);
        }
    }

    /// The frame with `offset`, if the remote may see it.
    pub(super) fn frame_with(&mut self, offset: u64, staged: &mut Batch) -> Option<&Frame> {
        if staged.next() > offset && staged.next() <= self.reserved {
            self.close(staged);
        }
        let at = self.frames.partition_point(|frame| frame.next() <= offset);
        self.frames.get(at).filter(|frame| frame.base <= offset && frame.next() <= self.reserved)
    }

    /// The cursor has moved to `floor`.
    pub(super) fn settled_below(&mut self, floor: u64, staged: &mut Batch) {
        while self.frames.front().is_some_and(|front| front.next() <= floor) {
            self.pop();
        }
        if !staged.is_empty() && staged.next() <= floor {
            *staged = Batch::default();
        }
        if floor >= self.taken {
            self.behind = false;
        }
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.disk_bytes();
        Some(frame)
    }

    pub(super) const fn is_behind(&self) -> bool {
        self.behind
    }

    /// A record that was staged at `at` has been confirmed.
    pub(super) fn confirmed(&mut self, at: Moment, now: Moment) {
        if now.since(at) < self.after {
            self.behind = false;
        }
    }

    /// When the oldest record was staged.
    pub(super) fn oldest(&self, staged: &Batch) -> Option<Moment> {
        self.frames.front().map(|front| front.at).or_else(|| staged.at())
    }

    /// How long it may still wait; `None`: nothing is staged.
    pub(super) fn due_in(&self, staged: &Batch, now: Moment) -> Option<Duration> {
        let oldest = self.oldest(staged)?;
        let patience = match (self.urged || self.hurried, self.behind) {
            (true, _) => Duration::ZERO,
            (false, true) => self.after / BEHIND_PART,
            (false, false) => self.after,
        };
        Some(patience.saturating_sub(now.since(oldest)))
    }

    /// What is to be written now: all that is staged, where the oldest of it is due. It is no longer staged then.
    pub(super) fn take_due(&mut self, staged: &mut Batch, now: Moment) -> Vec<Frame> {
        if self.due_in(staged, now).is_none_or(|left| !left.is_zero()) {
            return Vec::new();
        }
        // What was written because memory is short, or at the end, says nothing of the remote.
        self.behind |= !(self.urged || self.hurried);
        self.urged = false;
        self.close(staged);
        let due: Vec<Frame> = std::iter::from_fn(|| self.pop()).collect();
        self.taken = due.last().map_or(self.taken, Frame::next);
        due
    }

    /// Payload bytes at or above `floor`, in proportion to the records.
    pub(super) fn payload_from(&self, floor: u64) -> u64 {
        let owed = |frame: &Frame| {
            let left = frame.next().saturating_sub(floor.max(frame.base));
            frame.payload.saturating_mul(left) / frame.count.max(1)
        };
        self.frames.iter().map(owed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallMs;

    const AFTER: Duration = Duration::from_secs(2);

    fn at(up_ms: u64) -> Moment {
        Moment { wall: WallMs(up_ms), up_ms, boot: 1, synced: false }
    }

    struct Staging {
        spill: Spill,
        staged: Batch,
        next: u64,
    }

    impl Staging {
        fn new(reserved: u64) -> Self {
            Self { spill: Spill::new(AFTER, reserved, 0), staged: Batch::default(), next: 0 }
        }

        fn put(&mut self, up_ms: u64) {
            self.spill.before(self.next, &mut self.staged, at(up_ms));
            self.staged.push(self.next, &[b"body"], None, at(up_ms));
            self.next += 1;
        }

        fn due(&mut self, up_ms: u64) -> Vec<u64> {
            let due = self.spill.take_due(&mut self.staged, at(up_ms));
            due.iter().flat_map(|frame| frame.base..frame.next()).collect()
        }

        fn settle(&mut self, floor: u64) {
            self.spill.settled_below(floor, &mut self.staged);
        }
    }

    #[test]
    fn what_is_late_takes_all_that_is_staged_along() {
        let mut staging = Staging::new(100);
        staging.put(0);
        staging.put(1_500);
        assert!(staging.due(1_999).is_empty());
        assert_eq!(staging.due(2_000), [0, 1]);
        assert_eq!(staging.spill.bytes(), 0);
    }

    #[test]
    fn a_remote_that_is_behind_shortens_the_wait_until_it_is_in_time_again() {
        let mut staging = Staging::new(100);
        staging.put(0);
        assert_eq!(staging.due(2_000), [0]);
        staging.put(3_000);
        assert!(staging.due(3_199).is_empty());
        assert_eq!(staging.due(3_200), [1]);
        // Confirmed, but late: nothing changes.
        staging.spill.confirmed(at(0), at(2_000));
        assert!(staging.spill.is_behind());
        staging.spill.confirmed(at(3_000), at(4_999));
        staging.put(5_000);
        assert!(staging.due(6_999).is_empty());
        assert_eq!(staging.due(7_000), [2]);
        staging.settle(3);
        assert!(!staging.spill.is_behind(), "nothing that was written is owed");
    }

    #[test]
    fn no_frame_crosses_what_is_reserved_and_none_beyond_is_shown() {
        let mut staging = Staging::new(3);
        (0..5).for_each(|_| staging.put(0));
        let shown = |staging: &mut Staging, offset| {
            let frame = staging.spill.frame_with(offset, &mut staging.staged);
            frame.map(|frame| (frame.base, frame.next()))
        };
        assert_eq!(shown(&mut staging, 1), Some((0, 3)));
        assert_eq!(shown(&mut staging, 3), None);
        staging.spill.reserve(10);
        assert_eq!(shown(&mut staging, 3), Some((3, 5)));
    }

    #[test]
    fn what_is_settled_leaves_memory_and_is_not_due() {
        let mut staging = Staging::new(100);
        (0..4).for_each(|n| staging.put(n * 500));
        staging.settle(4);
        assert_eq!((staging.spill.bytes(), staging.staged.is_empty()), (0, true));
        assert!(staging.due(9_000).is_empty());
        assert_eq!(staging.spill.oldest(&staging.staged), None);
    }

    #[test]
    fn memory_that_is_short_and_a_stop_wait_for_nobody() {
        let mut staging = Staging::new(100);
        staging.put(0);
        staging.spill.urge();
        assert_eq!(staging.due(0), [0]);
        staging.put(0);
        assert!(staging.due(0).is_empty(), "urged once");
        staging.spill.hurry();
        assert_eq!(staging.due(0), [1]);
        staging.put(0);
        assert_eq!(staging.due(0), [2], "hurried for good");
        assert!(!staging.spill.is_behind());
    }
}
