//! What routes held back or could not make, by route, since the start.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a route that matched made nothing of a message, or less than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its `where` is not true of the message.
    Filtered,
    /// Its gate (`throttle`, `sample`, `dedup`) does not let it through.
    Suppressed,
    /// Its message lacks what the route makes of it: a dead letter for a link, nothing for the broker's clients (R28).
    Failed,
    /// It is one more behind others by the broker than are followed.
    TooFar,
    /// The broker gets so much of this one message already.
    TooMany,
}

/// The counters of one route.
#[derive(Debug, Default)]
pub(super) struct Counters {
    filtered: AtomicU64,
    suppressed: AtomicU64,
    failed: AtomicU64,
}

/// What they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// See [`Held::Filtered`].
    pub filtered: u64,
    /// See [`Held::Suppressed`].
    pub suppressed: u64,
    /// See [`Held::Failed`], [`Held::TooFar`] and [`Held::TooMany`]; records and local deliveries.
    pub failed: u64,
}

impl Counters {
    /// Counts one more; answers how many there are now.
    pub(super) fn note(&self, held: Held) -> u64 {
        let counter = match held {
            Held::Filtered => &self.filtered,
            Held::Suppressed => &self.suppressed,
            Held::Failed | Held::TooFar | Held::TooMany => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { filtered: read(&self.filtered), suppressed: read(&self.suppressed), failed: read(&self.failed) }
    }
}
