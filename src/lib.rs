//! Tidegate.
pub mod admin;
pub mod broker;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod config;
pub mod gateway;
pub mod hub;
pub mod links;
pub mod message;
pub mod router;
pub mod telemetry;
pub mod topic;
pub mod units;
pub mod wire;
