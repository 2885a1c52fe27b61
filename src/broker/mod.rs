//! The built-in MQTT broker.

mod config;

pub use config::{Config, Listener};
