//! Failed logins by address: who guesses is answered later and later, and then not asked at all for a while.
//!
//! Each failure is a point, and points go away with time. Only a login that failed waits, so that a machine with a wrong
//! password slows itself down and not those that share its address; a client that is let in never waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::broker::limits::usage::network;

/// How long a point lasts. A machine that fails and waits [`DELAY_MAX`] each time never comes near the default.
const POINT: Duration = Duration::from_secs(2);

/// Failures that cost nothing: people mistype.
const FREE: u32 = 3;

/// The first delay; each further failure doubles it.
const DELAY: Duration = Duration::from_millis(250);

/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// Addresses that are remembered; beyond it the one with the fewest points is forgotten.
const ADDRESSES_MAX: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(super) struct Attempts {
    /// From so many points on logins from the address are refused without a look at them; `None`: never.
    points_max: Option<NonZeroU32>,
    failed: Mutex<HashMap<Option<IpAddr>, Score>>,
}

#[derive(Clone, Copy, Debug)]
struct Score {
    points: u32,
    at: Instant,
}

impl Score {
    fn now(self, now: Instant) -> u32 {
        let gone = now.saturating_duration_since(self.at).as_secs() / POINT.as_secs();
        self.points.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX))
    }
}

impl Attempts {
    pub(super) fn new(points_max: Option<NonZeroU32>) -> Self {
        Self { points_max, failed: Mutex::default() }
    }

    /// What `before` knows of addresses counts here too.
    pub(super) fn go_on_from(&self, before: &Self) {
        let known = before.failed.lock().clone();
        *self.failed.lock() = known;
    }

    /// Whether a login from `address` is looked at. `None`: a Unix socket.
    pub(super) fn may_try(&self, address: Option<IpAddr>, now: Instant) -> bool {
        let Some(most) = self.points_max else { return true };
        self.failed.lock().get(&address.map(network)).is_none_or(|score| score.now(now) < most.get())
    }

    /// Notes a failure, and says how long its answer is to wait.
    pub(super) fn note_failure(&self, address: Option<IpAddr>, now: Instant) -> Duration {
        let mut failed = self.failed.lock();
        let key = address.map(network);
        if failed.len() >= ADDRESSES_MAX && !failed.contains_key(&key) {
            failed.retain(|_, score| score.now(now) > 0);
            if failed.len() >= ADDRESSES_MAX
                && let Some(least) = failed.iter().min_by_key(|(_, score)| score.now(now)).map(|(key, _)| *key)
            {
                failed.remove(&least);
            }
        }
        let score = failed.entry(key).or_insert(Score { points: 0, at: now });
        let most = self.points_max.map_or(u32::MAX, |most| most.get().saturating_add(FREE));
        *score = Score { points: score.now(now).saturating_add(1).min(most), at: now };
        delay(score.points)
    }
}

fn delay(points: u32) -> Duration {
    match points.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => DELAY.saturating_mul(1 << doublings.min(10)).min(DELAY_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts() -> Attempts {
        Attempts::new(NonZeroU32::new(100))
    }

    #[test]
    fn answers_to_failures_wait_longer_and_longer_and_time_heals() {
        let (attempts, start) = (attempts(), crate::clock::now());
        let address = Some(IpAddr::from([10, 0, 0, 1]));
        let waits: Vec<_> = (0..12).map(|_| attempts.note_failure(address, start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 250, 500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000, 5_000]);
        assert_eq!(
            attempts.note_failure(Some(IpAddr::from([10, 0, 0, 2])), start),
            Duration::ZERO,
            "others do not wait"
        );
        assert_eq!(attempts.note_failure(address, start + Duration::from_secs(24)), Duration::ZERO);
    }

    #[test]
    fn a_flood_of_failures_is_not_looked_at_until_some_time_has_passed() {
        let (attempts, start) = (attempts(), crate::clock::now());
        let address = "2001:db8::1".parse().ok();
        for _ in 0..200 {
            attempts.note_failure(address, start);
        }
        let neighbour = "2001:db8::2:1".parse().ok();
        assert!(!attempts.may_try(neighbour, start), "of the same /64");
        assert!(attempts.may_try("2001:db8:0:1::1".parse().ok(), start));
        assert!(!attempts.may_try(address, start + Duration::from_secs(6)));
        assert!(attempts.may_try(address, start + Duration::from_secs(8)));
    }

    #[test]
    fn what_takes_their_place_knows_the_failures_too() {
        let (attempts, start) = (attempts(), crate::clock::now());
        let address = Some(IpAddr::from([10, 0, 0, 1]));
        for _ in 0..200 {
            attempts.note_failure(address, start);
        }
        let next = self::attempts();
        assert!(next.may_try(address, start));
        next.go_on_from(&attempts);
        assert!(!next.may_try(address, start));
    }

    #[test]
    fn a_machine_with_a_wrong_password_never_locks_its_address() {
        let (attempts, mut now) = (attempts(), crate::clock::now());
        for _ in 0..10_000 {
            assert!(attempts.may_try(None, now));
            now += attempts.note_failure(None, now);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (attempts, now) = (attempts(), crate::clock::now());
        for n in 0..10_000_u32 {
            attempts.note_failure(Some(IpAddr::from(n.to_be_bytes())), now);
        }
        assert_eq!(attempts.failed.lock().len(), ADDRESSES_MAX);
    }

    #[test]
    fn when_logins_are_not_looked_at_any_more_is_the_operator_s_choice() {
        let now = crate::clock::now();
        for (most, failures, may_try) in
            [(Some(5), 4, true), (Some(5), 5, false), (Some(1), 1, false), (None, 5_000, true)]
        {
            let attempts = Attempts::new(most.and_then(NonZeroU32::new));
            for _ in 0..failures {
                attempts.note_failure(None, now);
            }
            assert_eq!(attempts.may_try(None, now), may_try, "{failures} of {most:?}");
        }
    }
}
