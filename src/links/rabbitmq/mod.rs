//! A RabbitMQ, by AMQP 0-9-1 (lapin).
//!
//! - [`RabbitSink`] publishes to one exchange with publisher confirms, many in flight (`sink`, `confirm`).
//! - [`RabbitSource`] consumes queues with manual acknowledgement (`source`).
//! - `client` connects, for both: each half has a connection of its own, because a connection that RabbitMQ has blocked
//!   carries no acknowledgements either.
//! - `topology` declares what the link is told to: its exchange, its queues, their bindings.
//! - `mapping` says how a message looks in AMQP, both ways. It is pure.
//!
//! Invariants: nothing is answered `Confirmed` before the broker's ack *and* before every return that could be the
//! message's own has been looked at; a consumer acknowledges only the contiguous settled prefix of its channel (R24).
//! lapin's own reconnecting is off: a lost connection ends, and the runner makes a new one.
//!
//! Known weak: lapin's parser recurses into nested header tables without a limit, on a thread of the default stack size. A
//! delivery with thousands of nested arrays in its headers (16 kB of them in a release build) ends the process. A
//! process started with `RUST_MIN_STACK=67108864` survives whatever fits into RabbitMQ's frame of 128 KiB.
//!
//! What this module must not know: buffers, backoff, windows, dead letters. The runner does those for all kinds.

use std::sync::Arc;

use super::Outgoing;

mod client;
mod config;
mod confirm;
mod examine;
mod mapping;
mod sink;
mod source;
mod streams;
mod topology;

pub(super) use client::endpoint;
pub use config::{Argument, Config, Declare, QueueBinding, QueueDeclare, QueueKind, StreamStart, Unroutable};
pub(super) use examine::examine;
pub use mapping::WRITTEN_HEADERS;
#[cfg(test)]
pub(super) use mapping::tests::hop;
pub use sink::{RabbitSink, RabbitSinkConnection};
pub use source::{RabbitSource, RabbitSourceConnection, RabbitToken};

impl Config {
    /// The routing key that a record has there. How many properties fit into a frame RabbitMQ says when it is connected to.
    ///
    /// # Errors
    /// It can never be sent: the reason of its dead letter (R27).
    pub fn judge(&self, record: &Outgoing, site: &Arc<str>) -> Result<String, String> {
        let mapping = self.mapping(site, usize::MAX);
        mapping::outgoing(record, &mapping).map(|mapped| mapped.routing_key.to_string())
    }

    /// How records are mapped, on a connection whose frames have so many bytes at most.
    fn mapping(&self, site: &Arc<str>, frame_bytes_max: usize) -> mapping::Mapping {
        mapping::Mapping {
            site: Arc::clone(site),
            default_exchange: self.exchange.is_empty(),
            escape: self.topic_escape,
            frame_bytes_max,
        }
    }
}
