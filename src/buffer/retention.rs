//! Which settled segments may go: all of them, or with `keep_delivered` those that are too old, or too much, or in the way (R2, R4).

use super::Keep;
use super::segment::Segment;
use crate::clock::Moment;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Retention {
    keep: Option<Keep>,
    /// Space is needed: so many of the oldest settled segments go before their time.
    needed: usize,
}

impl Retention {
    pub(super) const fn new(keep: Option<Keep>) -> Self {
        Self { keep, needed: 0 }
    }

    pub(super) const fn keep(&self) -> Option<Keep> {
        self.keep
    }

    /// Space is needed, and something settled is there to give up: the oldest goes whatever its age.
    pub(super) fn need_one(&mut self) {
        self.needed = self.needed.max(1);
    }

    /// One was given up.
    pub(super) const fn gave_up(&mut self) {
        self.needed = self.needed.saturating_sub(1);
    }

    /// How many of the settled segments, oldest first, are to go at `now`. Where some are kept it is one at most: this is asked at
    /// every turn of the writer, and again after each that went.
    pub(super) fn due<'a>(&self, settled: impl Iterator<Item = &'a Segment> + Clone, now: Moment) -> usize {
        let Some(keep) = self.keep else { return settled.count() };
        let Some(oldest) = settled.clone().next() else { return 0 };
        let is_old = keep.age.zip(oldest.last).is_some_and(|(age, last)| now.since(last) > age);
        let goes = self.needed > 0 || oldest.last.is_none() || is_old;
        // Only a limit by size needs to look at all of them.
        usize::from(goes || keep.size.is_some_and(|size| settled.map(|segment| segment.bytes).sum::<u64>() > size.0))
    }
}
