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

    /// How many of the settled segments, oldest first, are to go at `now`.
    pub(super) fn due<'a>(&self, settled: impl Iterator<Item = &'a Segment> + Clone, now: Moment) -> usize {
        let count = settled.clone().count();
        let Some(keep) = self.keep else { return count };
        let mut over = keep.size.map_or(0, |size| {
            let bytes: u64 = settled.clone().map(|segment| segment.bytes).sum();
            bytes.saturating_sub(size.0)
        });
        let is_old = |segment: &Segment| {
            let lived = segment.last.map(|last| now.since(last));
            keep.age.zip(lived).is_some_and(|(age, lived)| lived > age)
        };
        let due = settled.take_while(|segment| {
            let goes = over > 0 || is_old(segment) || segment.last.is_none();
            over = over.saturating_sub(segment.bytes);
            goes
        });
        due.count().max(self.needed.min(count))
    }
}
