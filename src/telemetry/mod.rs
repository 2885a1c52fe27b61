//! Logging set-up, every metric name in one file, the status board.

pub mod board;
