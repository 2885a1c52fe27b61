//! Rates, as arithmetic on time. PURE.
//!
//! Each message (or byte) takes as long as the rate gives it. The *level* is how far what came is ahead of the clock: it rises by
//! what is spent and falls as time passes. Up to the burst nobody minds; beyond it one waits until the level has come down to it. So
//! a pause needs no timer of its own, and a limit that is changed counts from the next message on.

use std::time::{Duration, Instant};

use crate::units::Rate;

/// How far one is ahead of the clock. See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::broker) struct Level {
    ahead: Duration,
    /// When `ahead` was right.
    at: Option<Instant>,
}

impl Level {
    fn at(&self, now: Instant) -> Duration {
        let elapsed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.ahead.saturating_sub(elapsed)
    }

    /// Notes that so many have come.
    pub(in crate::broker) fn spend(&mut self, rate: Rate, count: u64, now: Instant) {
        *self = Self { ahead: self.at(now).saturating_add(rate.time_of(count)), at: Some(now) };
    }

    /// How long to wait until it is within the burst again; `None`: not at all.
    pub(in crate::broker) fn wait(&self, burst: Duration, now: Instant) -> Option<Duration> {
        self.at(now).checked_sub(burst).filter(|wait| !wait.is_zero())
    }

    /// Notes that so many have come if they are within the burst; whether they are. What is larger than a whole burst passes when
    /// nothing else has come for long.
    pub(in crate::broker) fn admit(&mut self, rate: Rate, count: u64, burst: Duration, now: Instant) -> bool {
        let (ahead, time) = (self.at(now), rate.time_of(count));
        let fits = ahead.is_zero() || ahead.saturating_add(time) <= burst;
        if fits {
            self.spend(rate, count, now);
        }
        fits
    }

    /// Whether nothing is left of it.
    pub(in crate::broker) fn is_spent(&self, now: Instant) -> bool {
        self.at(now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        Rate::parse_count(text).unwrap()
    }

    #[test]
    fn what_comes_faster_than_its_rate_waits_until_it_is_within_the_burst() {
        let start = crate::clock::now();
        let ms = Duration::from_millis;
        // Rate, burst, (after ms, count, then to wait ms).
        for (text, burst, steps) in [
            ("10/s", ms(1_000), &[(0, 10, 0), (0, 1, 100), (50, 0, 50), (100, 0, 0), (100, 1, 100)][..]),
            ("10/s", ms(0), &[(0, 1, 100), (100, 1, 100), (1_000, 1, 100)]),
            ("60/m", ms(2_000), &[(0, 2, 0), (0, 1, 1_000), (10_000, 2, 0)]),
            // Time that passed unused is not saved beyond the burst.
            ("1000/s", ms(10), &[(60_000, 10, 0), (60_000, 1, 1), (60_001, 1, 1)]),
            ("1/h", ms(0), &[(0, 1, 3_600_000), (3_599_999, 0, 1)]),
        ] {
            let mut level = Level::default();
            for (after, count, wait) in steps {
                let now = start + ms(*after);
                level.spend(rate(text), *count, now);
                let waits = level.wait(burst, now).unwrap_or_default();
                assert_eq!(waits, ms(*wait), "{text} {burst:?}: {count} after {after} ms");
            }
        }
    }

    #[test]
    fn what_is_refused_costs_nothing_and_one_that_is_larger_than_a_burst_passes_alone() {
        let start = crate::clock::now();
        let second = Duration::from_secs(1);
        let mut level = Level::default();
        let taken = (0..100).filter(|_| level.admit(rate("10/s"), 1, second, start)).count();
        assert_eq!(taken, 10);
        assert!(!level.admit(rate("10/s"), 1, second, start));
        assert!(level.admit(rate("10/s"), 1, second, start + second / 10));
        let quiet = start + 10 * second;
        assert!(level.is_spent(quiet) && level.admit(rate("10/s"), 1_000, second, quiet));
        assert!(!level.admit(rate("10/s"), 1, second, quiet + 99 * second));
        assert!(level.admit(rate("10/s"), 1, second, quiet + 100 * second));
    }

    #[test]
    fn neither_the_largest_counts_nor_a_clock_that_stands_overflow() {
        let now = crate::clock::now();
        let mut level = Level::default();
        for _ in 0..3 {
            level.spend(rate("1/h"), u64::MAX, now);
        }
        assert!(level.wait(Duration::ZERO, now).is_some());
        level.spend(Rate::parse_bytes("1TiB/s").unwrap(), 1, now);
    }

    proptest::proptest! {
        /// Over any time no more passes than the rate and one burst give.
        #[test]
        fn no_more_passes_than_the_rate_and_one_burst(
            steps in proptest::collection::vec((0..200_u64, 1..5_u64), 1..200),
            per_s in 1..100_u64,
        ) {
            let start = crate::clock::now();
            let (rate, burst) = (rate(&format!("{per_s}/s")), Duration::from_secs(1));
            let (mut level, mut elapsed, mut taken) = (Level::default(), 0, 0);
            for (after, count) in steps {
                elapsed += after;
                if count <= per_s && level.admit(rate, count, burst, start + Duration::from_millis(elapsed)) {
                    taken += count;
                }
            }
            proptest::prop_assert!(taken <= per_s + per_s * elapsed / 1_000 + 1, "{} in {} ms", taken, elapsed);
        }
    }
}
