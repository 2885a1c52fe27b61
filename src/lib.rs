//! Tidegate.
#![cfg_attr(test, allow(clippy::let_underscore_must_use, clippy::allow_attributes, reason = "tests"))]
pub mod clock;
pub mod message;
pub mod topic;
pub mod units;
