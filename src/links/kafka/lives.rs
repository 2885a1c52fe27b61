//! Who fenced us (R26): another gateway with the same transactional id, or an earlier producer of this very link, whose request for the id
//! reached the broker after that of the next one. Pure.
//!
//! A connection that is given up while it asks for the id (a slow line, `connect_timeout`) takes its request back no more: it may be in a
//! socket on its way. Then it is nobody's mistake, and the next producer mends it. Who is fenced for the second time within
//! [`WHILE`] has a rival.

use std::time::{Duration, Instant};

/// How long a request may be on its way: as long as a transaction may take.
const WHILE: Duration = Duration::from_secs(60);

/// What is known of a link's producers.
#[derive(Debug, Default)]
pub(super) struct Lives {
    /// When one before the present one was begun.
    before: Option<Instant>,
    /// When the present one was.
    present: Option<Instant>,
    fenced: Option<Instant>,
}

impl Lives {
    /// A producer begins to ask for the id.
    pub(super) fn begin(&mut self, now: Instant) {
        self.before = self.present.replace(now);
    }

    /// It was fenced. Whether an earlier one of ours may have done it.
    pub(super) fn is_fenced(&mut self, now: Instant) -> bool {
        let lately = |at: Option<Instant>| at.is_some_and(|at| now.duration_since(at) < WHILE);
        let again = lately(self.fenced.replace(now));
        lately(self.before) && !again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r26_a_link_that_was_fenced_by_its_own_earlier_producer_tries_again_and_a_rival_is_told() {
        let start = crate::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lives = Lives::default();
        lives.begin(at(0));
        assert!(!lives.is_fenced(at(5)), "there was no other of ours");
        let mut lives = Lives::default();
        lives.begin(at(0));
        lives.begin(at(11));
        assert!(lives.is_fenced(at(12)), "the request of the first came late");
        lives.begin(at(13));
        assert!(!lives.is_fenced(at(14)), "twice is a rival");
        lives.begin(at(44));
        lives.begin(at(200));
        assert!(!lives.is_fenced(at(300)), "the one before has been gone for long");
    }
}
