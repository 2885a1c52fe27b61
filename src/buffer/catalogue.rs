//! A log's segments, the oldest first, and how much room they take: asked with each offer, so it is not counted anew from a
//! backlog of thousands of them.

use std::collections::VecDeque;
use std::ops::Deref;

use super::segment::Segment;

/// See the module. All but the newest are as large as they will ever be.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    all: VecDeque<Segment>,
    /// Bytes of all but the newest.
    older: u64,
}

impl Catalogue {
    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.older + self.newest_bytes()
    }

    fn newest_bytes(&self) -> u64 {
        self.all.back().map_or(0, |newest| newest.bytes)
    }

    pub(super) fn push(&mut self, newest: Segment) {
        self.older = self.bytes();
        self.all.push_back(newest);
    }

    /// The only one that may grow.
    pub(super) fn newest_mut(&mut self) -> Option<&mut Segment> {
        self.all.back_mut()
    }

    pub(super) fn pop_newest(&mut self) -> Option<Segment> {
        let gone = self.all.pop_back();
        self.older -= self.newest_bytes();
        gone
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<Segment> {
        if at + 1 == self.all.len() {
            return self.pop_newest();
        }
        let gone = self.all.remove(at)?;
        self.older -= gone.bytes;
        Some(gone)
    }
}

impl Deref for Catalogue {
    type Target = VecDeque<Segment>;

    fn deref(&self) -> &VecDeque<Segment> {
        &self.all
    }
}

impl FromIterator<Segment> for Catalogue {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        segments.into_iter().fold(Self::default(), |mut all, segment| {
            all.push(segment);
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn its_bytes_are_those_of_its_segments(steps in proptest::collection::vec((0_u8..4, any::<prop::sample::Index>(), 0_u64..1000), 0..60)) {
            let mut catalogue = Catalogue::default();
            for (kind, at, bytes) in steps {
                match kind {
                    0 => catalogue.push(Segment::new(PathBuf::new(), 0, 0)),
                    1 => catalogue.newest_mut().into_iter().for_each(|newest| newest.bytes += bytes),
                    2 => drop(catalogue.pop_newest()),
                    _ if catalogue.is_empty() => {}
                    _ => drop(catalogue.remove(at.index(catalogue.len()))),
                }
                prop_assert_eq!(catalogue.bytes(), catalogue.iter().map(|segment| segment.bytes).sum::<u64>());
            }
        }
    }
}
