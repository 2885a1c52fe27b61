//! How fast messages arrive at the far server.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate::clock;

use super::far::Far;
use super::process::{Stuck, cpu_seconds};

/// Between two looks: some dozen messages.
const LOOK_EACH: Duration = Duration::from_millis(2);

/// Nothing more will come after so long without anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The part of the messages that arrives before figures count: connections are made, caches are warm.
const WARM_UP_PART: u64 = 10;

/// What publishers are told while they publish.
#[derive(Debug, Default)]
pub(super) struct Progress {
    arrived: AtomicU64,
    given_up: AtomicBool,
}

impl Progress {
    /// As if all arrived at once.
    pub(super) fn unbounded() -> Self {
        Self { arrived: AtomicU64::new(u64::MAX), given_up: AtomicBool::default() }
    }

    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// What came of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// Messages a second.
    pub(super) rate: f64,
    /// CPU time of the edge for each of them, µs.
    pub(super) cpu_us: Option<f64>,
}

/// Returns when `total` messages have arrived, or no more do.
pub(super) fn until_all(far: &mut Far, total: u64, edge: Option<u32>, progress: &Progress) -> Told {
    let cpu = || edge.map_or(0.0, cpu_seconds);
    let mut from = None;
    let mut stuck = Stuck::new();
    loop {
        let arrived = far.arrived();
        progress.arrived.store(arrived, Ordering::Relaxed);
        let now = clock::now();
        if arrived >= total / WARM_UP_PART {
            let (before, since, used) = *from.get_or_insert_with(|| (arrived, now, cpu()));
            if arrived >= total {
                let count = arrived.saturating_sub(before) as f64;
                let rate = count / since.elapsed().as_secs_f64();
                return Told { rate, cpu_us: edge.map(|_| (cpu() - used) * 1e6 / count) };
            }
        }
        if stuck.is_stuck(arrived, PATIENCE) {
            progress.given_up.store(true, Ordering::Relaxed);
            return Told::default();
        }
        std::thread::sleep(LOOK_EACH);
    }
}
