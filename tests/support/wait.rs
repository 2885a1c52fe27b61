//! Waiting for a state under a deadline.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

/// Long enough for a loaded machine with two cores; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How often a state is looked at where no event tells of it.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks until `look` finds what it wants; until then it answers what it saw instead, which a failure shows.
///
/// # Panics
/// At the deadline.
pub(crate) async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut seen = String::from("nothing yet");
    let looking = async {
        let mut every = interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match look().await {
                Ok(found) => return found,
                Err(instead) => seen = instead,
            }
        }
    };
    match timeout(limit, looking).await {
        Ok(found) => found,
        Err(_) => panic!("not within {limit:?}: {what}; last seen: {seen}"),
    }
}

/// The same for a plain condition.
pub(crate) async fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> bool) {
    until(what, limit, async || if look() { Ok(()) } else { Err("not so".to_owned()) }).await;
}
