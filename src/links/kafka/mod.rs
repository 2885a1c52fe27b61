//! A Kafka cluster, by librdkafka (rdkafka).
//!
//! - [`KafkaSink`] produces, idempotently, with a delivery report for each record (`sink`).
//! - [`KafkaSource`] consumes in a group and commits only what has settled (`source`, `offsets`).
//! - With `exactly_once` records go in transactions, and how far the log is with them (`transaction`, `positions`).
//! - `client` builds the settings, keeps the best of librdkafka's errors, and says what an error means.
//! - `mapping` says how a message looks in Kafka, both ways. It is pure.
//!
//! Invariants: a record is `Confirmed` only by its delivery report; an offset is committed only when it and all before it in
//! its partition have settled (R24); nothing here blocks the async runtime: what librdkafka blocks on (metadata, flush,
//! closing, dropping) runs on threads of its own.
//!
//! librdkafka reconnects by itself, and a producer's life is where its idempotence holds (R26): so a lost broker is *not* the
//! end of a sink's connection. It is told as silence (the runner's stall), and only fatal errors end it.
//!
//! What this module must not know: buffers, backoff, windows, dead letters. The runner does those for all kinds.

use super::Outgoing;

mod client;
mod config;
mod examine;
mod lives;
mod mapping;
mod offsets;
mod positions;
mod sink;
mod source;
mod transaction;

pub use config::{Config, Start};
pub(super) use examine::{Looks, examine};
pub use mapping::WRITTEN_HEADERS;
#[cfg(test)]
pub(super) use mapping::tests::back as hop;
pub use sink::{KafkaSink, KafkaSinkConnection};
pub use source::{KafkaSource, KafkaSourceConnection, KafkaToken};

impl Config {
    /// The Kafka topic that a record has there.
    ///
    /// # Errors
    /// It can never be sent: the reason of its dead letter.
    pub fn judge(&self, record: &Outgoing, site: &str) -> Result<String, String> {
        mapping::outgoing(record, site, self.message_bytes_max).map(|mapped| mapped.topic)
    }
}
