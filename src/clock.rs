//! The one place that reads a clock. Everything else takes time as an argument or through a [`Clock`].
//!
//! Two clocks matter to a gateway: a monotonic one that no operator and no NTP daemon can step (ages, timeouts),
//! and the wall clock that travels with messages (event time). R8 says which decides what.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds of the wall clock since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub u64);

impl WallMs {
    /// Time from `earlier` to `self`; zero where the clock has stepped back.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for WallMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where time comes from: the machine in production, a hand-set value in tests.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Wall-clock time.
    fn wall(&self) -> WallMs;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        now()
    }

    fn wall(&self) -> WallMs {
        wall()
    }
}

/// The machine's clocks behind the trait.
#[must_use]
pub fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// Monotonic time, now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time, now. A clock before 1970 reads as zero.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
pub fn wall() -> WallMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
