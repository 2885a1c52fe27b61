//! Which offsets of a partition may be committed (R24), across rebalances. Pure.
//!
//! Offsets of a partition are not contiguous (compaction, transactions), so what counts is the order of delivery: an offset may
//! be stored when it and all that were delivered before it have settled. A partition that is taken away and given
//! back is another one: each assignment has a number, and tokens of an earlier one are ignored.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    pub(super) number: i32,
}

/// The partitions that are ours now.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    partitions: HashMap<Partition, Delivered>,
    assignments: u64,
}

/// What was delivered of a partition and not yet passed.
#[derive(Debug)]
struct Delivered {
    assignment: u64,
    /// In the order of delivery, which is that of the offsets; `true`: settled.
    open: VecDeque<(i64, bool)>,
}

impl Offsets {
    /// A record was delivered; the assignment for its token. A partition that is seen for the first time begins one.
    pub(super) fn deliver(&mut self, partition: &Partition, offset: i64) -> u64 {
        let delivered = self.partitions.entry(partition.clone()).or_insert_with(|| {
            self.assignments += 1;
            Delivered { assignment: self.assignments, open: VecDeque::new() }
        });
        // After a seek backwards (an offset reset) offsets begin again: what was open is delivered again.
        if delivered.open.back().is_some_and(|(last, _)| *last >= offset) {
            delivered.open.clear();
        }
        delivered.open.push_back((offset, false));
        delivered.assignment
    }

    /// The partition is no longer ours.
    pub(super) fn revoke(&mut self, partition: &Partition) {
        self.partitions.remove(partition);
    }

    /// A record has settled; the offset of the last record that is passed now, where that is a new one.
    pub(super) fn settle(&mut self, partition: &Partition, offset: i64, assignment: u64) -> Option<i64> {
        let delivered = self.partitions.get_mut(partition).filter(|delivered| delivered.assignment == assignment)?;
        let at = delivered.open.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        delivered.open.get_mut(at)?.1 = true;
        let mut passed = None;
        while let Some((offset, true)) = delivered.open.front().copied() {
            delivered.open.pop_front();
            passed = Some(offset);
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32) -> Partition {
        Partition { topic: "t".into(), number }
    }

    #[test]
    fn r24_an_offset_passes_only_when_all_delivered_before_it_have_settled() {
        let mut offsets = Offsets::default();
        let one = partition(1);
        let assignment = [3, 4, 9].map(|offset| offsets.deliver(&one, offset))[0];
        let other = offsets.deliver(&partition(2), 0);
        assert_eq!(offsets.settle(&one, 9, assignment), None);
        assert_eq!(offsets.settle(&one, 3, assignment), Some(3));
        assert_eq!(offsets.settle(&one, 4, assignment), Some(9), "the gap is Kafka's own");
        assert_eq!(offsets.settle(&one, 4, assignment), None);
        assert_eq!(offsets.settle(&partition(2), 0, other), Some(0));
    }

    #[test]
    fn r24_tokens_of_a_revoked_assignment_change_nothing() {
        let mut offsets = Offsets::default();
        let one = partition(1);
        let before = offsets.deliver(&one, 5);
        offsets.revoke(&one);
        assert_eq!(offsets.settle(&one, 5, before), None);
        let after = offsets.deliver(&one, 5);
        assert_eq!(offsets.settle(&one, 5, before), None);
        assert_eq!(offsets.settle(&one, 5, after), Some(5));
    }

    #[test]
    fn after_a_reset_to_an_earlier_offset_only_what_is_delivered_again_counts() {
        let mut offsets = Offsets::default();
        let one = partition(1);
        offsets.deliver(&one, 7);
        let assignment = offsets.deliver(&one, 2);
        assert_eq!(offsets.settle(&one, 7, assignment), None);
        assert_eq!(offsets.settle(&one, 2, assignment), Some(2));
    }
}
