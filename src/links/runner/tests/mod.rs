//! Both runners against a scripted kind; the buffer is the real one, in a throw-away folder.

mod replays;
mod sinks;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
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
        board: Arc::<HalfBoard>::default(),
        clock: crate::clock::system(),
        token: CancellationToken::new(),
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
