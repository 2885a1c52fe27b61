//! Logging set-up, every metric name in one file, the status board. It knows no other part: each part enters what it has to
//! tell, and readers make text of it.

pub mod board;
pub mod limited;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod replay;
pub mod shown;
