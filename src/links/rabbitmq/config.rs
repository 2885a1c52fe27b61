//! Settings of a RabbitMQ.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::links::Tls;

/// Where an exchange is to be declared (R27: expected to exist, declared only with `declare:`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declare {
    /// `topic`, `direct`, `fanout`, `headers`.
    pub kind: String,
    /// Default true.
    pub durable: bool,
    /// Such as `alternate-exchange`.
    pub arguments: Vec<(String, Argument)>,
}

/// A queue that the link declares and binds (R27: expected to exist, declared only where `queues` has it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDeclare {
    /// At most 255 bytes.
    pub name: String,
    /// `None`: what the vhost makes where nothing is said.
    pub kind: Option<QueueKind>,
    /// Default true.
    pub durable: bool,
    /// Such as `x-max-length`.
    pub arguments: Vec<(String, Argument)>,
    /// In the order of the file.
    pub bindings: Vec<QueueBinding>,
}

/// What a queue takes from an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueBinding {
    /// Never the default exchange, which takes no bindings.
    pub exchange: String,
    /// A routing key, or a pattern where the exchange is of the type topic. Default: empty.
    pub key: String,
    /// Such as `x-match` at an exchange of the type headers.
    pub arguments: Vec<(String, Argument)>,
}

/// The type of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// On one node.
    Classic,
    /// Kept by most nodes of a cluster.
    Quorum,
    /// A log, which readers leave as it is.
    Stream,
}

impl QueueKind {
    /// As RabbitMQ calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
            Self::Stream => "stream",
        }
    }
}

/// The value of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
}

/// Where a stream is read from when no position of ours is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamStart {
    /// Its first message that is still there.
    First,
    /// The last chunk that was written.
    Last,
    /// What comes from now on.
    Next,
    /// This offset.
    Offset(u64),
    /// What was written from then on; seconds since 1970.
    Time(u64),
}

/// What becomes of a message that no queue takes (R27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unroutable {
    /// A dead letter.
    #[default]
    DeadLetter,
    /// Sent again until a queue takes it.
    Retry,
}

/// A RabbitMQ.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `amqp://user:password@host:port/vhost`, secrets filled in and percent-encoded. Never shown.
    pub url: String,
    /// The exchange to publish to; empty: the default exchange, where a routing key is a queue's name.
    pub exchange: String,
    /// See [`Declare`].
    pub declare: Option<Declare>,
    /// See [`QueueDeclare`].
    pub queues: Vec<QueueDeclare>,
    /// Default true.
    pub mandatory: bool,
    /// See [`Unroutable`].
    pub unroutable: Unroutable,
    /// Unacknowledged messages of the consumer; default 512.
    pub prefetch: u16,
    /// `/` in topics becomes `.` in routing keys; with this, dots and the AMQP wildcards are escaped so that the way back is exact.
    pub topic_escape: bool,
    /// For `amqps://`; an own authority is added to the web's. With a client certificate and no user in the URL it logs in (SASL EXTERNAL).
    pub tls: Tls,
    /// The queues that are streams, and where each is read from at first.
    pub streams: BTreeMap<String, StreamStart>,
    /// Where it is written down how far streams were read.
    pub positions: Option<PathBuf>,
}

impl std::fmt::Debug for Config {
    /// Without the URL, which holds the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
