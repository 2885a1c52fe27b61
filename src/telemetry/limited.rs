//! Repeated warnings, rate limited: the first passes at once, then one in an interval, which says how many were held back.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One warning's limit. A `static` beside the place that warns, or a field of the part that does.
///
/// ```
/// # use std::time::Duration;
/// # use tidegate::telemetry::limited::Limited;
/// static REFUSED: Limited = Limited::new(Duration::from_secs(10));
/// if let Some(held_back) = REFUSED.pass(tidegate::clock::now()) {
///     tracing::warn!(held_back, "the buffer is full: publishers are refused");
/// }
/// ```
#[derive(Debug)]
pub struct Limited {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Limited {
    /// At most one in `every`.
    #[must_use]
    pub const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(State { last: None, held_back: 0 }) }
    }

    /// Whether the warning may be given now; if so, how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_passes_at_once_and_a_later_one_counts_what_was_held_back() {
        let limited = Limited::new(Duration::from_secs(10));
        let start = crate::clock::now();
        assert_eq!(limited.pass(start), Some(0));
        for second in 1..10 {
            assert_eq!(limited.pass(start + Duration::from_secs(second)), None);
        }
        assert_eq!(limited.pass(start + Duration::from_secs(10)), Some(9));
        assert_eq!(limited.pass(start + Duration::from_secs(30)), Some(0));
    }
}
