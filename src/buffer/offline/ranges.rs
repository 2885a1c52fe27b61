//! Sets of record numbers as ranges: memory follows the number of gaps, not of records. Pure.

use std::collections::BTreeMap;

/// Ranges `[from, to)`, apart from each other and in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::buffer) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(in crate::buffer) fn one(from: u64, to: u64) -> Self {
        let mut ranges = Self::default();
        ranges.add(from, to);
        ranges
    }

    pub(in crate::buffer) fn add(&mut self, mut from: u64, mut to: u64) {
        if from >= to {
            return;
        }
        while let Some((at, end)) = self.0.range(..=to).next_back().map(|(at, end)| (*at, *end)) {
            if end < from {
                break;
            }
            from = from.min(at);
            to = to.max(end);
            self.0.remove(&at);
        }
        self.0.insert(from, to);
    }

    pub(in crate::buffer) fn remove(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        while let Some((at, end)) = self.0.range(..to).next_back().map(|(at, end)| (*at, *end)) {
            if end <= from {
                break;
            }
            self.0.remove(&at);
            if end > to {
                self.0.insert(to, end);
            }
            if at < from {
                self.0.insert(at, from);
            }
        }
    }

    /// What is in both.
    pub(in crate::buffer) fn common(&self, other: &Self) -> Self {
        let mut common = Self::default();
        let mut others = other.iter().peekable();
        for (from, to) in self.iter() {
            while let Some((low, high)) = others.peek().copied() {
                common.add(from.max(low), to.min(high));
                if high > to {
                    break;
                }
                others.next();
            }
        }
        common
    }

    /// What of this is not in the other.
    pub(in crate::buffer) fn without(mut self, other: &Self) -> Self {
        for (from, to) in other.iter() {
            self.remove(from, to);
        }
        self
    }

    pub(in crate::buffer) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(from, to)| (*from, *to))
    }

    pub(in crate::buffer) fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    /// How many numbers.
    pub(in crate::buffer) fn len(&self) -> u64 {
        self.iter().map(|(from, to)| to - from).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn numbers(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(from, to)| from..to).collect()
    }

    fn any_ranges() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        proptest::collection::vec((any::<bool>(), 0_u64..40, 0_u64..12), 0..12)
    }

    fn both(steps: &[(bool, u64, u64)]) -> (Ranges, BTreeSet<u64>) {
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        for (add, from, len) in steps {
            let to = from + len;
            if *add {
                ranges.add(*from, to);
                set.extend(*from..to);
            } else {
                ranges.remove(*from, to);
                set.retain(|n| !(*from..to).contains(n));
            }
        }
        (ranges, set)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn ranges_are_the_set_of_their_numbers(a in any_ranges(), b in any_ranges()) {
            let ((a, set_a), (b, set_b)) = (both(&a), both(&b));
            prop_assert_eq!(numbers(&a), set_a.clone());
            let apart: Vec<_> = a.iter().collect();
            prop_assert!(apart.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", apart);
            prop_assert_eq!(a.len(), set_a.len() as u64);
            prop_assert!((0..60).all(|n| a.contains(n) == set_a.contains(&n)));
            prop_assert_eq!(numbers(&a.common(&b)), set_a.intersection(&set_b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(numbers(&a.without(&b)), set_a.difference(&set_b).copied().collect::<BTreeSet<_>>());
        }
    }
}
