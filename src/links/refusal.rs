//! What a refusal or a lost connection means for the record that it hit (R15, R16). Pure.

use crate::buffer::Offset;

/// R15: so many refusals in a row without a success say that the link is wrong, not the records.
pub(super) const REFUSALS_IN_A_ROW_MAX: u32 = 20;

/// R16: so many connections lost at the same head say that the record is guilty.
pub(super) const LOSSES_AT_ONE_HEAD_MAX: u32 = 3;

/// What becomes of a refused record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes to the dead letters.
    DeadLetter,
    /// It stays in the buffer and is tried again slowly.
    Keep,
}

/// R15: the first twenty refusals in a row become dead letters; from then on refused records stay where they are, until
/// one is confirmed. What the link itself cannot send (too large for it, a topic that has no form there) counts too: a limit that
/// is too small says the same of every record. A damaged record is a fact about that record alone and does not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RefusalRun {
    run: u32,
}

impl RefusalRun {
    /// The remote refused a record, or the link cannot send it.
    pub(super) const fn refused(&mut self) -> Verdict {
        if self.is_suspicious() {
            return Verdict::Keep;
        }
        self.run += 1;
        Verdict::DeadLetter
    }

    /// The remote confirmed a record.
    pub(super) const fn confirmed(&mut self) {
        self.run = 0;
    }

    /// The link is taken to be misconfigured: one record at a time, slowly.
    pub(super) const fn is_suspicious(self) -> bool {
        self.run >= REFUSALS_IN_A_ROW_MAX
    }
}

/// R16: finds the record at which connections die. Losses at the same head are counted; after three the link sends one at
/// a time; three losses with the head alone in flight make it guilty. A stall is no loss: a mute peer says nothing about
/// a record. Nor does a line that breaks by itself: before the loss that would accuse a record a connection is left idle for a moment,
/// and if it is lost like that, the count begins anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossWatch {
    head: Option<Offset>,
    losses: u32,
    losses_alone: u32,
}

impl LossWatch {
    /// The connection was lost with `head` as the oldest of `open` records in flight. `true`: `head` is guilty.
    pub(super) fn lost(&mut self, head: Offset, open: usize) -> bool {
        if self.head != Some(head) {
            *self = Self { head: Some(head), losses: 0, losses_alone: 0 };
        }
        self.losses += 1;
        if open == 1 {
            self.losses_alone += 1;
        }
        self.losses_alone >= LOSSES_AT_ONE_HEAD_MAX
    }

    /// `offset` got an answer: it does not kill connections.
    pub(super) fn answered(&mut self, offset: Offset) {
        if self.head == Some(offset) {
            *self = Self::default();
        }
    }

    /// Whether one more loss may accuse a record, or sends one at a time: the next connection has to live without it first.
    pub(super) const fn suspects(self) -> bool {
        self.losses + 1 >= LOSSES_AT_ONE_HEAD_MAX
    }

    /// A connection was lost with nothing in flight: it is the line.
    pub(super) fn lost_idle(&mut self) {
        *self = Self::default();
    }

    /// Whether the link sends one at a time to find the guilty record.
    pub(super) const fn one_at_a_time(self) -> bool {
        self.losses >= LOSSES_AT_ONE_HEAD_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r15_a_run_of_refusals_makes_twenty_dead_letters_and_no_more() {
        let mut run = RefusalRun::default();
        let verdicts = std::iter::repeat_with(|| run.refused()).take(100).collect::<Vec<_>>();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::DeadLetter).count(), 20);
        assert!(verdicts[20..].iter().all(|verdict| *verdict == Verdict::Keep));
        assert!(run.is_suspicious());
        run.confirmed();
        assert!(!run.is_suspicious());
        assert_eq!(run.refused(), Verdict::DeadLetter);
    }

    #[test]
    fn r16_losses_at_one_head_lead_to_one_at_a_time_and_then_to_the_guilty_record() {
        let mut watch = LossWatch::default();
        for _ in 0..2 {
            assert!(!watch.lost(Offset(5), 40));
            assert!(!watch.one_at_a_time());
        }
        assert!(!watch.lost(Offset(5), 40));
        assert!(watch.one_at_a_time());
        assert!(!watch.lost(Offset(5), 1));
        assert!(!watch.lost(Offset(5), 1));
        assert!(watch.lost(Offset(5), 1));
    }

    #[test]
    fn r16_a_connection_that_is_lost_idle_accuses_the_line_and_no_record() {
        let mut watch = LossWatch::default();
        assert!(!watch.lost(Offset(5), 1) && !watch.suspects());
        assert!(!watch.lost(Offset(5), 1) && watch.suspects());
        watch.lost_idle();
        assert!(!watch.suspects());
        assert!(!watch.lost(Offset(5), 1) && !watch.lost(Offset(5), 1) && watch.lost(Offset(5), 1));
    }

    #[test]
    fn r16_another_head_or_an_answer_starts_the_count_anew() {
        let mut watch = LossWatch::default();
        assert!(!watch.lost(Offset(5), 1));
        assert!(!watch.lost(Offset(5), 1));
        watch.answered(Offset(6));
        watch.answered(Offset(5));
        assert!(!watch.lost(Offset(5), 1));
        assert!(!watch.lost(Offset(6), 1));
        assert!(!watch.one_at_a_time());
    }
}
