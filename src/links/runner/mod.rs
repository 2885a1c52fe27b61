//! The life of a link, the same for all kinds: [`run`] drives both halves until it is cancelled.
//!
//! - [`sink`]: buffer → remote. Reads in order, keeps a window in flight, takes answers in any order, and tells the buffer
//!   what became of each record.
//! - [`source`]: remote → hub. Acknowledges only what is durable everywhere it must be.
//!
//! Each is `connect`, `online`, `back_off` as methods, and each method ends when its state ends. The states of R22 go to
//! the [`HalfBoard`](crate::telemetry::board::HalfBoard) as they are entered.
//!
//! Invariants: no record is settled before the remote confirmed it (or it is durable among the dead letters, or its expiry
//! lapsed); no message of a source is acknowledged before its receipt has settled; a half's failure stays in that half.
//! What it must not know: protocols, the built-in broker, files.

mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::sink::SinkRunner;
use self::source::SourceRunner;
use super::{Config, Identity, Kind, Sink, Source, Timing, kafka, mqtt, rabbitmq};
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::hub::{Hub, OfferError, Publication, Receipt, Source as Origin};
use crate::router::{Endpoint, LinkId};
use crate::telemetry::board::SharedHalf;

/// Where the two halves write what they are doing.
#[derive(Clone, Debug, Default)]
pub struct LinkBoards {
    /// The outbound half.
    pub sink: SharedHalf,
    /// The inbound half.
    pub source: SharedHalf,
}

/// What both halves need.
#[derive(Clone, Debug)]
struct Common {
    link: LinkId,
    timing: Timing,
    board: SharedHalf,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
}

/// Runs a link's halves until `token` is cancelled. `buffer` is the link's log, where a route leads to the link.
///
/// Never fails: what goes wrong is a state of the half that it hits. After the cancellation it returns within about three
/// seconds.
pub async fn run(
    config: Config,
    buffer: Option<Buffer>,
    hub: Arc<Hub>,
    identity: Identity,
    boards: LinkBoards,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
) {
    let halves = Halves { config: &config, buffer, hub, boards, clock, token };
    let sources = config.sources.clone();
    match &config.kind {
        Kind::Mqtt(remote) => {
            let both = config.has_sink && !sources.is_empty();
            let sink = mqtt::MqttSink::new(remote, &identity, both);
            let source = mqtt::MqttSource::new(remote, sources, &identity, both);
            halves.run(sink, source).await;
        }
        Kind::Rabbitmq(remote) => {
            let sink = rabbitmq::RabbitSink::new(remote, &identity);
            let source = rabbitmq::RabbitSource::new(remote, sources, &identity);
            halves.run(sink, source).await;
        }
        Kind::Kafka(remote) => {
            let sink = kafka::KafkaSink::new(remote, &identity);
            let source = kafka::KafkaSource::new(remote, sources, &identity);
            halves.run(sink, source).await;
        }
    }
}

/// One link, before its kind is chosen.
struct Halves<'a> {
    config: &'a Config,
    buffer: Option<Buffer>,
    hub: Arc<Hub>,
    boards: LinkBoards,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
}

impl Halves<'_> {
    async fn run<Out: Sink, In: Source>(self, sink: Out, source: In) {
        let common = |board: &SharedHalf| Common {
            link: self.config.id.clone(),
            timing: self.config.timing,
            board: Arc::clone(board),
            clock: Arc::clone(&self.clock),
            token: self.token.clone(),
        };
        let outbound = async {
            if let Some(buffer) = self.buffer.clone().filter(|_| self.config.has_sink) {
                let runner = SinkRunner::new(common(&self.boards.sink), sink, buffer, self.config.in_flight);
                Box::pin(runner.run()).await;
            }
        };
        let inbound = async {
            if !self.config.sources.is_empty() {
                let runner = SourceRunner::new(common(&self.boards.source), source, Arc::clone(&self.hub));
                Box::pin(runner.run()).await;
            }
        };
        tokio::join!(outbound, inbound);
    }
}

/// The hub as a source sees it: one publication at a time, so that a refused one is never overtaken by those behind it.
trait Intake: Send + Sync + 'static {
    /// See [`Hub::offer`].
    fn offer(
        self: Arc<Self>,
        origin: Arc<Origin>,
        publication: Publication,
    ) -> impl Future<Output = Result<Receipt, OfferError>> + Send;
}

impl Intake for Hub {
    async fn offer(self: Arc<Self>, origin: Arc<Origin>, publication: Publication) -> Result<Receipt, OfferError> {
        let mut answers = Self::offer(&self, &origin, vec![publication]).await;
        answers.pop().unwrap_or(Err(OfferError::Stopping))
    }
}

/// Where messages of `link` from `channel` come from.
fn origin(link: &LinkId, channel: Option<Arc<str>>) -> Arc<Origin> {
    Arc::new(Origin { from: Endpoint::Link(link.clone()), channel })
}

impl Common {
    /// Monotonic now, for timers.
    fn now(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.clock.now())
    }

    /// The wall clock's reading after `pause`, for the board.
    fn wall_in(&self, pause: Duration) -> u64 {
        self.clock.wall().0.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
    }
}
