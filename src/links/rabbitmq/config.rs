//! Settings of a RabbitMQ.

/// Where an exchange is to be declared (R27: expected to exist, declared only with `declare:`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declare {
    /// `topic`, `direct`, `fanout`, `headers`.
    pub kind: String,
    /// Default true.
    pub durable: bool,
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
    /// Default true.
    pub mandatory: bool,
    /// See [`Unroutable`].
    pub unroutable: Unroutable,
    /// Unacknowledged messages of the consumer; default 512.
    pub prefetch: u16,
    /// `/` in topics becomes `.` in routing keys; with this, dots and the AMQP wildcards are escaped so that the way back is exact.
    pub topic_escape: bool,
    /// PEM file of an own authority for `amqps://`, added to the web's roots.
    pub ca: Option<std::path::PathBuf>,
}

impl std::fmt::Debug for Config {
    /// Without the URL, which holds the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
