//! The built-in MQTT broker.

mod config;
pub mod index;

pub use config::{Config, Listener};
