//! The numbers that tell the records of one message for one link apart (R11).

use serde::{Deserialize, Serialize};

/// Numbers for what one plan makes of a message. Where some of it goes at once and some comes into samples, the former has the first half and
/// the samples share the other, so that what a sample lets go later, and what that brings into samples again, has numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ordinals {
    /// The first.
    pub(super) first: u16,
    /// How many there are; one at least.
    count: u32,
}

impl Ordinals {
    /// From `first` on, as the rows of earlier programs have it.
    pub(super) const fn from(first: u16) -> Self {
        Self { first, count: 256 }
    }

    /// That of the record that has `earlier` ones before it.
    pub(super) fn nth(self, earlier: usize) -> u16 {
        u16::try_from(earlier).unwrap_or(u16::MAX).saturating_add(self.first)
    }

    /// Those of so many samples. `goes_at_once`: some of the message is not for samples.
    pub(super) fn shares(self, samples: usize, goes_at_once: bool) -> impl Iterator<Item = Self> {
        let kept = if goes_at_once { self.count / 2 } else { 0 };
        let samples = u32::try_from(samples).unwrap_or(u32::MAX).max(1);
        let count = ((self.count - kept) / samples).max(1);
        (0..samples).map(move |place| {
            let behind = kept.saturating_add(place.saturating_mul(count));
            let first = u16::try_from(u32::from(self.first).saturating_add(behind)).unwrap_or(u16::MAX);
            Self { first, count }
        })
    }
}

impl Default for Ordinals {
    fn default() -> Self {
        Self { first: 0, count: 1 << 16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(of: Ordinals, samples: usize, goes_at_once: bool) -> Vec<u16> {
        of.shares(samples, goes_at_once).map(|share| share.first).collect()
    }

    #[test]
    fn r11_shares_do_not_overlap_each_other_nor_what_goes_at_once_however_deep() {
        let all = Ordinals::default();
        assert_eq!(firsts(all, 1, false), [0]);
        assert_eq!(firsts(all, 1, true), [0x8000]);
        assert_eq!(firsts(all, 2, true), [0x8000, 0xc000]);
        assert_eq!(firsts(all, 2, false), [0, 0x8000]);
        assert_eq!(firsts(all, 70_000, true).last(), Some(&u16::MAX), "it ends at the last number");
        // Each of eight samples in a row lets go something at once too.
        let mut share = all;
        for round in 0..8 {
            assert_eq!(u32::from(share.first) + share.count, 1 << 16, "round {round}");
            let next = share.shares(1, true).next().unwrap();
            assert!(u32::from(next.first) >= u32::from(share.first) + share.count / 2 && next.count >= 256);
            share = next;
        }
        assert_eq!(Ordinals::from(7).nth(3), 10);
    }
}
