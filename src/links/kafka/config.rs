//! Settings of a Kafka cluster.

use std::collections::BTreeMap;

use crate::links::Secret;

/// Where a group without positions begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first record that is still there.
    #[default]
    Earliest,
    /// With what comes from then on.
    Latest,
    /// With what was written from then on; milliseconds since 1970.
    Time(i64),
}

/// A Kafka cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `host:port`, at least one.
    pub brokers: Vec<String>,
    /// `all` (default), `1`, `0`.
    pub acks: String,
    /// `none` (default), `gzip`, `snappy`, `lz4`, `zstd`.
    pub compression: Option<String>,
    /// The consumer group; default `SITE-LINK`.
    pub group: Option<String>,
    /// Any librdkafka property; wins over ours, but for the ones that the promise stands on. Values may be secrets: never shown.
    pub options: BTreeMap<String, String>,
    /// Largest message; librdkafka's `message.max.bytes`. Default 1 MiB.
    pub message_bytes_max: u32,
    /// Records go in transactions, and how far the log is with them (R26). Needs `acks: all`, a log that is synced before it is
    /// sent, and records in their order. Default false.
    pub exactly_once: bool,
    /// Default `tidegate-SITE-LINK`.
    pub transactional_id: Option<String>,
    /// An empty payload is a null value: in a compacted topic it deletes. Default false.
    pub tombstones: bool,
    /// Where a group without positions begins.
    pub start: Start,
    /// The token of SASL OAUTHBEARER; none: librdkafka's own ways.
    pub token: Secret,
}

impl std::fmt::Debug for Config {
    /// Without the options' values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("brokers", &self.brokers).field("acks", &self.acks).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Config {
    /// All by default.
    pub(crate) fn of(brokers: &[&str]) -> Self {
        Self {
            brokers: brokers.iter().map(|broker| (*broker).to_owned()).collect(),
            acks: "all".to_owned(),
            compression: None,
            group: None,
            options: BTreeMap::new(),
            message_bytes_max: 1 << 20,
            exactly_once: false,
            transactional_id: None,
            tombstones: false,
            start: Start::default(),
            token: Secret::None,
        }
    }
}
