//! A RabbitMQ.
mod config;
pub use config::{Config, Declare, Unroutable};
