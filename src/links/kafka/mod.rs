//! A Kafka cluster.
mod config;
pub use config::Config;
