//! Both runners against a scripted kind; the buffer is the real one, in a throw-away folder.

mod accounts;
mod replays;
mod sinks;
mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::{Moment, WallMs};
use crate::links::RateLimit;
use crate::telemetry::board::{HalfBoard, HalfStatus};

/// Short delays, so that a test takes milliseconds; long enough to be told apart.
const TIMING: Timing = Timing {
    connect_timeout: Duration::from_millis(500),
    retry_delay_min: Duration::from_millis(2),
    retry_delay_max: Duration::from_millis(20),
    stall_after: Duration::from_millis(100),
    misconfigured_delay: Duration::from_millis(30),
};

fn common(timing: Timing) -> Common {
    Common {
        link: LinkId::new("hq"),
        timing,
        active: None,
        takes_copies: false,
        board: Arc::<HalfBoard>::default(),
        clock: crate::clock::system(),
        token: CancellationToken::new(),
    }
}

/// The machine's clock, but for the time of the day.
#[derive(Debug)]
struct SetClock(AtomicU64);

impl SetClock {
    fn at(hour: u64) -> Arc<Self> {
        let clock = Arc::new(Self(AtomicU64::new(0)));
        clock.set(hour);
        clock
    }

    fn set(&self, hour: u64) {
        self.0.store(1_000 * 86_400_000 + hour * 3_600_000, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Instant {
        crate::clock::now()
    }

    fn moment(&self) -> Moment {
        Moment { wall: WallMs(self.0.load(Ordering::Relaxed)), ..crate::clock::moment() }
    }

    fn local_offset_s(&self, _at: WallMs) -> i32 {
        0
    }
}

/// A night, by a clock.
fn at_night(clock: &Arc<SetClock>) -> Common {
    let clock: Arc<dyn Clock> = Arc::<SetClock>::clone(clock);
    Common { active: Active::new(vec!["22:00-06:00".parse().unwrap()]), clock, ..common(TIMING) }
}

/// So many messages a second, and what may come at once.
fn rate(per_s: u64, burst: Duration) -> SharedRate {
    let messages = crate::units::Rate::parse_count(&format!("{per_s}/s")).unwrap();
    let limit = RateLimit { messages: Some(messages), bytes: None, burst };
    SharedRate::new(Some(&limit), &crate::clock::system())
}

/// Whether what came at these times is no more than the rate and one burst of `burst` gave. However slow the machine is, that holds.
fn assert_no_faster(per_s: u64, burst: u64, times: &[Instant]) {
    let first = times[0];
    for (before, at) in times.iter().enumerate() {
        let ms = u64::try_from(at.duration_since(first).as_millis()).unwrap() + 1;
        let most = burst + ms * per_s / 1_000 + 1;
        assert!(u64::try_from(before).unwrap() < most, "{} within {ms} ms", before + 1);
    }
}

fn status(board: &HalfBoard) -> HalfStatus {
    board.snapshot()
}

/// Looks until it is so. The board and the buffer have no events to wait for; ten seconds mean never.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
