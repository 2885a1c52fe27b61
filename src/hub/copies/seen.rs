//! Which messages of one origin have come: the highest counter, and a bit for each of the 65,536 up to it (R12). PURE.
//!
//! The bits are a ring: a counter's bit is at the counter modulo the ring's length, and those that the highest passes are cleared. They lie
//! in pages, so that what is kept is only the page that changed. A page is there only once one of its bits is set.

/// So many counters, up to the highest, are told apart.
pub(in crate::hub) const WINDOW: u64 = 65_536;

/// Words of a page.
pub(in crate::hub) const PAGE_WORDS: usize = 64;
const PAGE_BITS: u64 = 64 * PAGE_WORDS as u64;
const PAGES: usize = 16;

/// A page's bits.
pub(in crate::hub) type Page = [u64; PAGE_WORDS];

/// What is known of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Known {
    /// It has come.
    Yes,
    /// It has not.
    No,
    /// It is too far behind the highest to tell.
    TooOld,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(in crate::hub) struct Seen {
    high: u64,
    pages: [Option<Box<Page>>; PAGES],
    /// Bit by page: not kept as it is now.
    changed: u16,
}

/// Where a counter's bit is: page, word, mask.
fn place(counter: u64) -> (usize, usize, u64) {
    let bit = counter % WINDOW;
    // Both are far below any `usize`.
    let (page, word) = (bit / PAGE_BITS, bit % PAGE_BITS / 64);
    (usize::try_from(page).unwrap_or(0), usize::try_from(word).unwrap_or(0), 1 << (bit % 64))
}

impl Seen {
    pub(in crate::hub) const fn high(&self) -> u64 {
        self.high
    }

    pub(in crate::hub) fn knows(&self, counter: u64) -> Known {
        if counter > self.high {
            return Known::No;
        }
        if self.high - counter >= WINDOW {
            return Known::TooOld;
        }
        if self.bit(counter) { Known::Yes } else { Known::No }
    }

    /// It has come. One that is too old to be told leaves no trace.
    pub(in crate::hub) fn note(&mut self, counter: u64) {
        if counter > self.high {
            self.pass(counter);
        } else if self.high - counter >= WINDOW {
            return;
        }
        let (page, word, mask) = place(counter);
        self.changed |= 1 << page;
        if let Some(bits) = self.pages.get_mut(page)
            && let Some(word) = bits.get_or_insert_with(|| Box::new([0; PAGE_WORDS])).get_mut(word)
        {
            *word |= mask;
        }
    }

    /// The pages that have changed since the last call, with their bits.
    pub(in crate::hub) fn take_changed(&mut self) -> Vec<(u8, Page)> {
        let changed = std::mem::take(&mut self.changed);
        let bits = |(page, bits): (u8, &Option<Box<Page>>)| (page, bits.as_deref().copied().unwrap_or([0; PAGE_WORDS]));
        (0..).zip(&self.pages).filter(|(page, _)| changed >> page & 1 == 1).map(bits).collect()
    }

    /// What was taken was not kept.
    pub(in crate::hub) fn put_back_changed(&mut self, page: u8) {
        self.changed |= 1_u16.checked_shl(page.into()).unwrap_or(0);
    }

    /// Takes up a page as it was kept when `high` was the highest.
    pub(in crate::hub) fn restore(&mut self, page: u8, high: u64, bits: Page) {
        self.high = self.high.max(high);
        if let Some(kept) = self.pages.get_mut(usize::from(page)) {
            *kept = Some(Box::new(bits));
        }
    }

    fn bit(&self, counter: u64) -> bool {
        let (page, word, mask) = place(counter);
        let word = self.pages.get(page).and_then(Option::as_ref).and_then(|bits| bits.get(word));
        word.is_some_and(|word| word & mask != 0)
    }

    /// The highest becomes `counter`: what is between has not come.
    fn pass(&mut self, counter: u64) {
        if counter - self.high >= WINDOW {
            self.pages = Default::default();
            self.changed = u16::MAX;
        } else {
            (self.high + 1..=counter).for_each(|between| self.clear(between));
        }
        self.high = counter;
    }

    fn clear(&mut self, counter: u64) {
        let (page, word, mask) = place(counter);
        if let Some(bits) = self.pages.get_mut(page).and_then(Option::as_mut)
            && let Some(word) = bits.get_mut(word)
            && *word & mask != 0
        {
            *word &= !mask;
            self.changed |= 1 << page;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// All that ever came, by its definition.
    #[derive(Default)]
    struct Naive {
        high: u64,
        all: BTreeSet<u64>,
    }

    impl Naive {
        fn knows(&self, counter: u64) -> Known {
            match self.all.contains(&counter) {
                _ if counter + WINDOW <= self.high => Known::TooOld,
                true => Known::Yes,
                false => Known::No,
            }
        }

        fn note(&mut self, counter: u64) {
            if self.knows(counter) != Known::TooOld {
                self.high = self.high.max(counter);
                self.all.insert(counter);
            }
        }
    }

    #[test]
    fn r12_the_window_ends_where_it_ends() {
        use Known::{No, TooOld, Yes};
        let mut seen = Seen::default();
        let knows = |seen: &Seen, counters: [u64; 4]| counters.map(|counter| seen.knows(counter));
        assert_eq!(seen.knows(1), No);
        seen.note(1);
        seen.note(WINDOW);
        assert_eq!(knows(&seen, [1, 2, WINDOW, WINDOW + 1]), [Yes, No, Yes, No]);
        seen.note(WINDOW + 1);
        assert_eq!(knows(&seen, [1, 2, WINDOW, WINDOW + 1]), [TooOld, No, Yes, Yes]);
        seen.note(u64::MAX);
        assert_eq!(knows(&seen, [2, WINDOW, u64::MAX - 1, u64::MAX]), [TooOld, TooOld, No, Yes]);
        seen.note(7);
        assert_eq!(seen.knows(7), TooOld, "it leaves no trace");
    }

    /// Mostly near the highest, sometimes far away.
    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => (0..6_u64, 0..4_u64),
            2 => (0..5_000_u64, 0..70_000_u64),
            1 => (0..200_000_u64, 0..200_000_u64),
        ];
        prop::collection::vec(step, 1..300).prop_map(|steps| {
            let mut high = 0_u64;
            let counter = |(ahead, behind): (u64, u64)| {
                high += ahead;
                high.saturating_sub(behind).max(1)
            };
            steps.into_iter().map(counter).collect()
        })
    }

    proptest! {
        #[test]
        fn r12_it_knows_what_a_set_knows_also_from_what_was_kept(counters in counters(), keep_each in 1..40_usize) {
            let (mut seen, mut naive) = (Seen::default(), Naive::default());
            let mut kept: BTreeMap<u8, (u64, Page)> = BTreeMap::new();
            for (nth, counter) in counters.iter().enumerate() {
                prop_assert_eq!(seen.knows(*counter), naive.knows(*counter), "{} before", counter);
                seen.note(*counter);
                naive.note(*counter);
                prop_assert_eq!(seen.high(), naive.high);
                if nth % keep_each == 0 || nth + 1 == counters.len() {
                    let high = seen.high();
                    kept.extend(seen.take_changed().into_iter().map(|(page, bits)| (page, (high, bits))));
                }
            }
            let mut restored = Seen::default();
            kept.into_iter().for_each(|(page, (high, bits))| restored.restore(page, high, bits));
            prop_assert_eq!(restored.high(), naive.high);
            let near = counters.iter().flat_map(|counter| counter.saturating_sub(3)..=counter + 3);
            for counter in near.chain([naive.high + WINDOW, naive.high.saturating_sub(WINDOW)]) {
                prop_assert_eq!(seen.knows(counter), naive.knows(counter), "{}", counter);
                prop_assert_eq!(restored.knows(counter), naive.knows(counter), "{} restored", counter);
            }
        }
    }
}
