//! Random runs against a reference: an in-memory list per lane of what was appended and of what became of each record. Any sequence of
//! append, commit, read, confirm, expire, replay, limits (each `when_full`, `max_size`, `max_age`, `min_free`, `keep_delivered`), crash
//! (process or power: what was not synced is lost, torn or out of order), clean end, a failing call, a short write, a full disk
//! and room again, a clock that steps, a flipped bit; in each `sync`, `spill` too, and in links of one to three lanes. After each
//! run, and at each start in it:
//!
//! - what was acknowledged is there, unless it was settled or a counted drop says so;
//! - what is read is what was written, in order, and nothing is read twice without a crash or a reconnect;
//! - a replay finds what the segments hold, delivered or not, as it was;
//! - the limits hold, of all lanes together, and nothing is dropped that no limit drops, nor deleted before its time;
//! - no more than a window of confirmations is unsaved in all lanes together (R9);
//! - the ledger is exactly what the reference says, and balances.
//!
//! One seed is one run. `TIDEGATE_MODEL_SEED=N cargo test --lib buffer::tests::model` runs that one alone
//! and shows its steps (with `-- --nocapture`);
//! `TIDEGATE_MODEL_RUNS=N` says how many seeds are run instead of the few of a plain `cargo test`.

mod own;
mod plan;
mod reference;
mod restart;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of a plain `cargo test`: some seconds. `tests/run.sh` sets 100,000.
const RUNS: u64 = 1_500;

#[test]
fn any_sequence_agrees_with_the_reference() {
    if let Some(seed) = number("TIDEGATE_MODEL_SEED") {
        return run::run(seed, true);
    }
    let runs = number("TIDEGATE_MODEL_RUNS").unwrap_or(RUNS);
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
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
    let again = format!("TIDEGATE_MODEL_SEED={seed} cargo test --lib buffer::tests::model");
    assert_eq!(seed, u64::MAX, "seed {seed} failed, as shown above; by itself: {again}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
