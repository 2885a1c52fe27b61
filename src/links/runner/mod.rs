//! The life of a link, the same for all kinds: [`run_sink`] and [`run_source`] each drive one half until it is cancelled. They end
//! apart from each other: sources stop taking before sinks stop sending (DESIGN.md section 9).
//!
//! - [`sink`]: buffer → remote. Reads in order, keeps a window in flight, takes answers in any order, and tells the buffer
//!   what became of each record.
//! - [`streams`]: the orders in which a sink sends, and whose turn it is.
//! - [`source`]: remote → hub. Acknowledges only what is durable everywhere it must be.
//!
//! Each is `connect`, `online`, `back_off` as methods, and each method ends when its state ends. The states of R22 go to
//! the [`HalfBoard`](crate::telemetry::board::HalfBoard) as they are entered.
//!
//! Invariants: no record is settled before the remote confirmed it (or it is durable among the dead letters, or its expiry
//! lapsed); no message of a source is acknowledged before its receipt has settled; a half's failure stays in that half.
//! What it must not know: protocols, the built-in broker, files.

pub(super) mod replay;
mod sink;
mod source;
mod streams;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::replay::{Replay, ReplayEnd, ReplayRunner};
use self::sink::SinkRunner;
use self::source::SourceRunner;
use super::{Active, Config, Identity, Kind, SharedRate, Sink, Timing, kafka, mqtt, rabbitmq};
use crate::buffer::Lanes;
use crate::clock::Clock;
use crate::hub::{Hub, OfferError, Publication, Receipt, Source as Origin};
use crate::router::{Endpoint, LinkId};
use crate::telemetry::board::SharedHalf;

/// How often a half that has times to be up looks at the clock, which may be set at any time.
const ACTIVE_LOOK: Duration = Duration::from_secs(1);

/// What both halves need.
#[derive(Clone, Debug)]
struct Common {
    link: LinkId,
    timing: Timing,
    active: Option<Active>,
    /// Of a source: copies are taken too (R12).
    takes_copies: bool,
    board: SharedHalf,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
}

/// What a link's outbound half sends from.
#[derive(Clone, Debug)]
pub struct Outflow {
    /// The link's logs.
    pub lanes: Lanes,
    /// No faster than this.
    pub rate: SharedRate,
    /// Its routes are asked for what they could not make of a message when it came.
    pub hub: Arc<Hub>,
}

/// Runs a link's outbound half until `token` is cancelled: what is in its logs goes to the remote.
///
/// Never fails: what goes wrong is a state on `board`. After the cancellation it returns within about three seconds.
pub async fn run_sink(
    config: Config,
    outflow: Outflow,
    identity: Identity,
    board: SharedHalf,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
) {
    let common = Common::new(&config, board, clock, token);
    let Outflow { lanes, rate, hub } = outflow;
    let (most, drain) = (config.in_flight, config.drain);
    match &config.kind {
        Kind::Mqtt(remote) => {
            let sink =
                mqtt::MqttSink::of_link(remote, &identity, config.uses_both_halves(), &config.buffer.dir, &lanes);
            Box::pin(SinkRunner::new(common, sink, &lanes, drain, most).paced(&rate).remade_by(&hub).run()).await;
        }
        Kind::Rabbitmq(remote) => {
            let sink = rabbitmq::RabbitSink::new(remote, &identity);
            Box::pin(SinkRunner::new(common, sink, &lanes, drain, most).paced(&rate).remade_by(&hub).run()).await;
        }
        Kind::Kafka(remote) => {
            let sink = kafka::KafkaSink::of_link(remote, &identity, config.in_flight);
            Box::pin(SinkRunner::new(common, sink, &lanes, drain, most).paced(&rate).remade_by(&hub).run()).await;
        }
    }
}

/// Sends again what a log still holds, on a connection of its own to the remote of `config`, until it is done or `token` is cancelled.
///
/// Never fails: what goes wrong is a state on `board`. After the cancellation it returns within about three seconds.
pub async fn run_replay(
    config: Config,
    replay: Replay,
    rate: SharedRate,
    identity: Identity,
    board: SharedHalf,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
) -> ReplayEnd {
    let common = Common::new(&config, board, clock, token);
    let most = config.in_flight;
    match &config.kind {
        Kind::Mqtt(remote) => {
            // Two clients of one id would throw each other out.
            let link = remote.client_id.clone().unwrap_or_else(|| format!("{}-{}", identity.site, identity.link));
            let remote = remote.as_client(format!("{link}-replay-{}", replay.id));
            let sink = mqtt::MqttSink::new(&remote, &identity, false);
            Box::pin(ReplayRunner::new(common, sink, replay, most).paced(&rate).run()).await
        }
        Kind::Rabbitmq(remote) => {
            let sink = rabbitmq::RabbitSink::new(remote, &identity);
            Box::pin(ReplayRunner::new(common, sink, replay, most).paced(&rate).run()).await
        }
        Kind::Kafka(remote) => {
            let sink = kafka::KafkaSink::new(remote, &identity);
            Box::pin(ReplayRunner::new(common, sink, replay, most).paced(&rate).run()).await
        }
    }
}

/// Runs a link's inbound half until `token` is cancelled: what the remote has goes to the hub.
///
/// Never fails: what goes wrong is a state on `board`. After the cancellation it returns within about three seconds.
pub async fn run_source(
    config: Config,
    hub: Arc<Hub>,
    identity: Identity,
    board: SharedHalf,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
) {
    let rate = SharedRate::new(config.rate.as_ref(), &clock);
    let common = Common::new(&config, board, clock, token);
    let from = config.sources.clone();
    match &config.kind {
        Kind::Mqtt(remote) => {
            let source = mqtt::MqttSource::new(remote, from, &identity, config.uses_both_halves())
                .taking_over(config.renamed_from.as_ref())
                .into_hub(&hub);
            Box::pin(SourceRunner::new(common, source, hub).paced(&rate).run()).await;
        }
        Kind::Rabbitmq(remote) => {
            let source = rabbitmq::RabbitSource::new(remote, from, &identity, config.renamed_from.as_ref())
                .paced(config.rate.as_ref());
            Box::pin(SourceRunner::new(common, source, hub).paced(&rate).run()).await;
        }
        Kind::Kafka(remote) => {
            let source = kafka::KafkaSource::new(remote, from, &identity);
            Box::pin(SourceRunner::new(common, source, hub).paced(&rate).run()).await;
        }
    }
}

/// R9: how many confirmations of this link may be unsaved: its window in flight.
#[must_use]
pub fn window(config: &Config) -> usize {
    let identity = Identity { site: "".into(), link: config.id.clone() };
    config.in_flight.unwrap_or_else(|| match &config.kind {
        Kind::Mqtt(remote) => mqtt::MqttSink::new(remote, &identity, false).window(),
        Kind::Rabbitmq(remote) => rabbitmq::RabbitSink::new(remote, &identity).window(),
        Kind::Kafka(remote) => kafka::KafkaSink::new(remote, &identity).window(),
    })
}

/// The hub as a source sees it: one publication at a time, so that a refused one is never overtaken by those behind it.
trait Intake: Send + Sync + 'static {
    /// See [`Hub::offer`].
    fn offer(
        self: Arc<Self>,
        origin: Arc<Origin>,
        publication: Publication,
    ) -> impl Future<Output = Result<Receipt, OfferError>> + Send;

    /// Whether less is to be taken in (R36).
    fn is_short_of_memory(&self) -> bool;
}

impl Intake for Hub {
    async fn offer(self: Arc<Self>, origin: Arc<Origin>, publication: Publication) -> Result<Receipt, OfferError> {
        let mut answers = Self::offer(&self, &origin, vec![publication]).await;
        answers.pop().unwrap_or(Err(OfferError::Stopping))
    }

    fn is_short_of_memory(&self) -> bool {
        self.memory().is_short()
    }
}

/// Where messages of a link from `channel` come from.
fn origin(common: &Common, channel: Option<Arc<str>>) -> Arc<Origin> {
    Arc::new(Origin { from: Endpoint::Link(common.link.clone()), channel, takes_copies: common.takes_copies })
}

impl Common {
    fn new(config: &Config, board: SharedHalf, clock: Arc<dyn Clock>, token: CancellationToken) -> Self {
        let (link, timing, active) = (config.id.clone(), config.timing, config.active.clone());
        Self { link, timing, active, takes_copies: config.takes_copies, board, clock, token }
    }

    /// Whether now is outside of the times to be up.
    fn is_outside(&self) -> bool {
        let offset = |at| self.clock.local_offset_s(at);
        self.active.as_ref().is_some_and(|active| !active.is_open(self.clock.wall(), &offset))
    }

    /// Whether the times to be up have ended. `look` is when to look at the clock again: it is not the same call for each message.
    fn has_left_its_times(&self, look: &mut Option<tokio::time::Instant>) -> bool {
        let now = self.now();
        if self.active.is_none() || look.is_some_and(|look| look > now) {
            return false;
        }
        *look = Some(now + ACTIVE_LOOK);
        self.is_outside()
    }

    /// Outside of the times to be up: state `paused` until they begin. Answers whether to go on; `false`: cancelled.
    async fn pause_until_active(&self) -> bool {
        let mut paused = false;
        while self.is_outside() {
            let Some(active) = &self.active else { break };
            let now = self.clock.wall();
            let next = active.next_start(now, &|at| self.clock.local_offset_s(at)).map(|start| start.0);
            let reason = format!("outside of `active: {active}`");
            if !paused {
                tracing::info!(link = %self.link, %reason, "paused");
            }
            paused = true;
            self.board.pause(reason, next, now);
            if self.token.run_until_cancelled(tokio::time::sleep(ACTIVE_LOOK)).await.is_none() {
                return false;
            }
        }
        !self.token.is_cancelled()
    }

    /// Monotonic now, for timers.
    fn now(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.clock.now())
    }

    /// The wall clock's reading after `pause`, for the board.
    fn wall_in(&self, pause: Duration) -> u64 {
        self.clock.wall().0.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
    }
}
