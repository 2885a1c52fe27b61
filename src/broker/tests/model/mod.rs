//! Whole sessions against small reference models, in random runs.
//!
//! - `run`, the wide one: four clients of all versions connect, take each other over, hang up, say good-bye, subscribe and unsubscribe
//!   (No Local, Retain As Published, Retain Handling, subscription identifiers, shared subscriptions), publish with every QoS, retained
//!   and with an expiry, acknowledge late or in part, have wills with and without a delay, and windows of one message; time passes; sockets are closed and
//!   the broker is killed at any point, also within a CONNECT or a DISCONNECT. After each step all that there is to see is exactly what one of
//!   the ways says that the `reference` leaves open: every packet with its flags, its properties and its order, rows owed, retained messages.
//! - [`promises`], the narrow one: a publisher and a subscriber that wait for nothing. Judged at the end, by what MQTT promises.
//!
//! One seed is one run of the wide one. `TIDEGATE_SESSIONS_SEED=N cargo test --lib broker::tests::model::any` runs that one alone and shows its
//! steps (with `-- --nocapture`); `TIDEGATE_SESSIONS_RUNS=N` says how many seeds are run instead of those of a plain `cargo test`.

#![expect(clippy::wildcard_enum_match_arm, reason = "what is not named is what the rest of it does, or fails the test")]

mod action;
mod device;
mod plan;
mod promises;
mod reference;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of a plain `cargo test`: some seconds. `tests/run.sh` sets more.
const RUNS: u64 = 200;

#[test]
fn any_sequence_agrees_with_the_reference() {
    if let Some(seed) = number("TIDEGATE_SESSIONS_SEED") {
        return run::run(seed, true);
    }
    let runs = number("TIDEGATE_SESSIONS_RUNS").unwrap_or(RUNS);
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        while failed.load(Ordering::Relaxed) == u64::MAX {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| run::run(seed, false))).is_err() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let seed = failed.into_inner();
    let again = format!("TIDEGATE_SESSIONS_SEED={seed} cargo test --lib broker::tests::model::any -- --nocapture");
    assert_eq!(seed, u64::MAX, "seed {seed} failed, as shown above; by itself: {again}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
