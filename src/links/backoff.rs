//! How long to wait before the next try: exponential with full jitter, so that a thousand gateways that lost the same
//! remote do not come back in the same second. Pure: the caller brings the random number.

use std::time::Duration;

/// The delays of one link half. A success starts them anew.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// Delays between `min` and `max`; a `max` below `min` counts as `min`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), tries: 0 }
    }

    /// The next delay: between `min` and a ceiling that doubles with each try. `fraction` is a random number in `0..1`.
    pub(super) fn next(&mut self, fraction: f64) -> Duration {
        let doublings = self.tries.min(31) + 1;
        self.tries = self.tries.saturating_add(1);
        let ceiling = self.min.saturating_mul(1 << doublings.min(30)).min(self.max);
        self.min + ceiling.saturating_sub(self.min).mul_f64(fraction.clamp(0.0, 1.0))
    }

    /// Something worked: the next delay is a short one again.
    pub(super) const fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn the_ceiling_doubles_up_to_the_limit_and_a_success_starts_anew() {
        let mut backoff = Backoff::new(MIN, MAX);
        let ceilings = std::iter::repeat_with(|| backoff.next(1.0).as_secs()).take(8).collect::<Vec<_>>();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 30, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn every_delay_is_between_the_limits(fractions in proptest::collection::vec(0.0..1.0_f64, 1..100)) {
            let mut backoff = Backoff::new(MIN, MAX);
            for fraction in fractions {
                let delay = backoff.next(fraction);
                prop_assert!(delay >= MIN && delay <= MAX);
            }
        }
    }
}
