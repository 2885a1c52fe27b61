//! Links: the contract of a link kind, and the runner that drives every kind. The runner (`runner`) owns everything that all kinds share: connecting with backoff, reading
//! the buffer, the window in flight, confirmations out of order, dead letters, stall detection, the status board. A kind only
//! knows how to connect, send, and tell outcomes (sink), or how to receive and acknowledge (source).
//! `links` never names `broker`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::{Config as BufferConfig, Lane, Place};
use crate::hub::Publication;
use crate::message::{Envelope, MessageId, headers};
use crate::router::LinkId;

mod active;
mod backoff;
pub mod doctor;
pub mod kafka;
mod line;
#[cfg(test)]
mod matrix;
pub mod mqtt;
pub mod rabbitmq;
mod rate;
mod refusal;
mod runner;
mod secret;
mod tls;
mod window;

pub use active::{Active, LocalOffset, Span, SpanError};
pub use rate::{RateLimit, SharedRate};
pub use runner::replay::{Pick, Picked, Replay, ReplayEnd, ReplayKeeper, ReplayProgress};
pub use runner::{Outflow, run_replay, run_sink, run_source, window};
pub use secret::Secret;
pub use tls::Tls;

/// About as long as a record's in its log.
const SEQ: &str = "0123456789abcdef-1-100000";

/// A link as `routes.yaml` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub id: LinkId,
    /// The remote.
    pub kind: Kind,
    /// Its log (used where a route leads to the link).
    pub buffer: BufferConfig,
    /// The lanes that routes lead to; the normal one is there anyway.
    pub lanes: Vec<Lane>,
    /// Whether a route leads to it.
    pub has_sink: bool,
    /// What its source consumes: MQTT topic filters, RabbitMQ queues, Kafka topics. Empty: no source half.
    pub sources: Vec<String>,
    /// See [`Timing`].
    pub timing: Timing,
    /// What each of its directions may move at most.
    pub rate: Option<RateLimit>,
    /// When it is up; `None`: always.
    pub active: Option<Active>,
    /// What it brings is taken also where it has come before, by this link or another way (R12).
    pub takes_copies: bool,
    /// See [`Drain`].
    pub drain: Drain,
    /// Records in flight at most; `None`: the kind's default.
    pub in_flight: Option<usize>,
    /// What it was called before: the buffer of that name becomes its own at the next start (R34).
    pub renamed_from: Option<LinkId>,
}

/// The remote's kind and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A remote MQTT broker.
    Mqtt(mqtt::Config),
    /// A RabbitMQ.
    Rabbitmq(rabbitmq::Config),
    /// A Kafka cluster.
    Kafka(kafka::Config),
}

impl Config {
    /// Whether it is published to and consumed from: then two clients are two identities (R25).
    #[must_use]
    pub const fn uses_both_halves(&self) -> bool {
        self.has_sink && !self.sources.is_empty()
    }
}

impl Kind {
    /// `mqtt`, `rabbitmq`, `kafka`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mqtt(_) => "mqtt",
            Self::Rabbitmq(_) => "rabbitmq",
            Self::Kafka(_) => "kafka",
        }
    }

    /// Where a record goes to there, as the remote names it. What only the remote knows (its own limits and rights) is not looked at.
    ///
    /// # Errors
    /// It can never be sent: the reason of its dead letter, in the words of the link itself.
    pub fn judge(&self, envelope: Envelope, site: &Arc<str>) -> Result<String, String> {
        let record = Outgoing {
            place: Place::default(),
            seq: SEQ.to_owned(),
            backfill: false,
            envelope,
            expiry_left_s: None,
            expired_before: 0,
        };
        match self {
            Self::Mqtt(mqtt) => mqtt.judge(&record, site).map(|()| record.envelope.destination.into()),
            Self::Rabbitmq(rabbitmq) => rabbitmq.judge(&record, site),
            Self::Kafka(kafka) => kafka.judge(&record, site),
        }
    }
}

/// How a backlog goes out when the link is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// In the order in which it came, new records behind it.
    #[default]
    Fifo,
    /// New records at once, the backlog behind and between them, marked (R13).
    LiveFirst {
        /// Per cent of the window in flight that backlog takes at most, and of the records sent while there are live
        /// ones to send as well. 1 to 99.
        share: u8,
    },
}

impl Drain {
    /// `live_first` without a `share`: a live record finds most of the window free, and a backlog is through in four
    /// times the time that it would take alone.
    pub const SHARE_DEFAULT: u8 = 25;
}

/// How patient a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A connection that is not up after this is given up. Default 10 s.
    pub connect_timeout: Duration,
    /// First delay of the exponential backoff with full jitter. Default 500 ms.
    pub retry_delay_min: Duration,
    /// Its limit. Default 30 s.
    pub retry_delay_max: Duration,
    /// Nothing back for this long while something is in flight: stalled, then cut. Default 10 s.
    pub stall_after: Duration,
    /// How slowly a `misconfigured` link is tried. Default 30 s.
    pub misconfigured_delay: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            retry_delay_min: Duration::from_millis(500),
            retry_delay_max: Duration::from_secs(30),
            stall_after: Duration::from_secs(10),
            misconfigured_delay: Duration::from_secs(30),
        }
    }
}

/// Who we are, for stamps and default client ids.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `site:` of routes.yaml.
    pub site: Arc<str>,
    /// The link.
    pub link: LinkId,
}

/// Why a connection ended or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// May pass by itself: refused, reset, timed out, closed.
    #[error("{0}")]
    Transient(String),
    /// Trying again cannot help until somebody changes something: wrong password, missing exchange, no permission.
    #[error("{0}")]
    Misconfigured(String),
}

/// A record for the sink's connection.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its place in the link's logs.
    pub place: Place,
    /// `BUFFERID-LANE-NUMBER` for `tg-seq`.
    pub seq: String,
    /// It was backlog when the link came back, and live records go before it (R13).
    pub backfill: bool,
    /// The message with its destination.
    pub envelope: Envelope,
    /// Seconds that are left of the record's expiry (the message's own, or the route's `ttl`).
    pub expiry_left_s: Option<u32>,
    /// How many records before it in its lane have lapsed, ever: what a remote that keeps an account of the log has to say too.
    pub expired_before: u64,
}

impl Outgoing {
    /// The stamps that travel with it from this site.
    #[must_use]
    pub fn stamps(&self, here: &str) -> Vec<(&'static str, String)> {
        headers::stamps(&self.envelope, here, headers::Sending { seq: &self.seq, backfill: self.backfill })
    }
}

/// What a sink's connection answers to a send.
#[derive(Debug)]
pub enum Sent {
    /// On its way; an [`Answer`] will follow.
    Queued,
    /// The client's own queue is full: here it is back; offer it again after the next answer.
    Full(Box<Outgoing>),
    /// It can never be sent (too large for the peer, a topic that has no form there): a dead letter with this reason.
    Refused(String),
}

/// What the remote said of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Confirmed.
    Confirmed(Place),
    /// Refused for good, in the remote's words: a dead letter.
    Refused(Place, String),
    /// Not now (nack, quota): everything from this record on is sent again after a pause, on the same connection or a new one.
    Retry(Place, String),
    /// The remote asks us to hold back, or no longer (RabbitMQ blocked/unblocked).
    Blocked(bool),
    /// The peer's TCP takes what waits for it, without confirming anything (counts as progress for stall detection: R23).
    Alive,
}

/// Makes sink connections of one kind.
pub trait Sink: Send + 'static {
    /// A connection.
    type Connection: SinkConnection;

    /// How many records in flight at most unless configured.
    fn window(&self) -> usize;

    /// How long nothing may come back before the connection is cut; it counts as stalled after `stall_after`. Longer for
    /// a kind whose late requests could land out of order (R23: Kafka, ten times).
    fn cut_after(&self, stall_after: Duration) -> Duration {
        stall_after
    }

    /// Connects and logs in, and checks what can be checked (exchange exists, topic exists). The runner puts a timeout around it.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Connection, LinkError>> + Send;
}

/// What a remote says of a lane: everything below `below` is with it, or was settled otherwise. The last record below it is named by
/// its [`witness`], so that a log that was put back to an earlier state, and has given the same numbers to other records since, is
/// told from the one that the remote speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The first place that the remote does not have.
    pub below: Place,
    /// Of the record before it.
    pub witness: u32,
    /// How many records below `below` had lapsed, ever; `None`: it does not say.
    pub expired: Option<u64>,
}

/// What names a record apart from its number: a checksum (CRC-32C) of its message's id.
#[must_use]
pub fn witness(id: &MessageId) -> u32 {
    crc32c::crc32c(id.to_string().as_bytes())
}

/// A live outbound connection. Dropping it closes it at once.
pub trait SinkConnection: Send {
    /// Puts one record on its way. Never waits, never blocks.
    ///
    /// # Errors
    /// The connection is over.
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError>;

    /// The next answer. Cancel safe.
    fn answer(&mut self) -> impl Future<Output = Result<Answer, LinkError>> + Send;

    /// How many records the remote allows in flight (MQTT Receive Maximum), where it says so.
    fn window_max(&self) -> Option<usize> {
        None
    }

    /// The remote has taken this record over, and only waits to be told that it may pass it on (QoS 2, after PUBREC): it does not expire any
    /// more (R8).
    fn has_taken(&self, _place: Place) -> bool {
        false
    }

    /// How far the log with this id is by the remote's own account, in each lane that it knows of (R26).
    fn confirmed_below(&self, _buffer: &str) -> Vec<Confirmed> {
        Vec::new()
    }

    /// A clean good-bye.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A message from a source.
#[derive(Debug)]
pub struct Received<Token> {
    /// The queue or Kafka topic it came from; `None` for MQTT.
    pub channel: Option<Arc<str>>,
    /// The message.
    pub publication: Publication,
    /// To acknowledge it with.
    pub token: Token,
    /// The remote says that it has been delivered before (redelivered, DUP).
    pub again: bool,
    /// The remote forgets it once it is sent (MQTT QoS 0): what is not taken now is lost, and counted.
    pub once: bool,
}

/// Makes source connections of one kind.
pub trait Source: Send + 'static {
    /// A connection.
    type Connection: SourceConnection;

    /// Connects, logs in, subscribes.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Connection, LinkError>> + Send;
}

/// A live inbound connection.
pub trait SourceConnection: Send {
    /// What identifies a message towards the remote (delivery tag, packet id, partition and offset).
    type Token: Send + 'static;

    /// The next messages (at least one; what has already arrived, up to a sensible batch). Cancel safe.
    fn receive(&mut self) -> impl Future<Output = Result<Vec<Received<Self::Token>>, LinkError>> + Send;

    /// The receipt of this message has settled: it may be acknowledged. Called in any order across messages of a
    /// connection; the kind itself commits only contiguous low-water marks (R24). Does not wait.
    ///
    /// # Errors
    /// The connection is over.
    fn settled(&mut self, token: Self::Token) -> Result<(), LinkError>;

    /// Time-driven upkeep, such as a pending batch of acknowledgements that is due (R24: at the latest 50 ms after the last). Cancel safe:
    /// the runner selects over it; return `pending` where nothing is ever due.
    fn upkeep(&mut self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// How many messages nothing could be made of since the last call. They were acknowledged or passed over, each with a
    /// line in the log, and are counted by the runner.
    fn take_unreadable(&mut self) -> u64;

    /// What is wrong with a part of it while the rest goes on (a queue that is not there): shown as the link's last error.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Acknowledges what is settled and says good-bye.
    fn close(self) -> impl Future<Output = ()> + Send;
}
