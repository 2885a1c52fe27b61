//! A remote MQTT broker.
mod config;
pub use config::{Config, Tls, Version};
