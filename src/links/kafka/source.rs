//! The inbound half: a consumer in a group.
//!
//! librdkafka commits by itself, each [`COMMIT_INTERVAL_MS`], the offsets that were *stored*; stored is only what has settled, with all
//! before it in its partition (R24). A payload is copied out at once, so that no record of ours holds librdkafka's memory.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, Statistics, TopicPartitionList};

use super::client::{self, GivenUp, Offloaded, Tokens, Watch};
use super::mapping::{self, Incoming};
use super::offsets::{Offsets, Partition};
use super::{Config, Start};
use crate::links::{Identity, LinkError, Received, Source, SourceConnection};

/// R24.
const COMMIT_INTERVAL_MS: &str = "50";
/// How many records one `receive` hands out: enough to share the cost of an offer, few enough to stay responsive.
const BATCH_MAX: usize = 256;
/// What librdkafka may fetch ahead of us, in all partitions.
const QUEUED_KIB_MAX: &str = "4096";
/// Who does not ask for records for so long only looks after the group. librdkafka leaves it when it is not polled for `max.poll.interval.ms` (5 minutes),
/// and a rate, or a full buffer, may hold a batch for longer.
const POLL_EACH: Duration = Duration::from_secs(1);
/// How long a good-bye may take: leaving the group needs a broker that answers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

type Consumer = StreamConsumer<Group>;

/// Consumes topics of a Kafka cluster.
#[derive(Clone, Debug)]
pub struct KafkaSource {
    config: Config,
    topics: Vec<String>,
    identity: Identity,
}

impl KafkaSource {
    /// For `topics`, which must exist; connects only when asked.
    #[must_use]
    pub fn new(config: &Config, topics: Vec<String>, identity: &Identity) -> Self {
        Self { config: config.clone(), topics, identity: identity.clone() }
    }

    pub(super) fn settings(&self) -> rdkafka::ClientConfig {
        let Identity { site, link } = &self.identity;
        let group = self.config.group.clone().unwrap_or_else(|| format!("{site}-{link}"));
        let fetch_bytes_max = self.config.message_bytes_max.max(4 << 20).to_string();
        let ours = [
            ("auto.offset.reset", if self.config.start == Start::Latest { "latest" } else { "earliest" }),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("queued.max.messages.kbytes", QUEUED_KIB_MAX),
            ("queued.min.messages", "1000"),
            ("fetch.max.bytes", fetch_bytes_max.as_str()),
        ];
        let last = [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "true"),
            ("auto.commit.interval.ms", COMMIT_INTERVAL_MS),
            ("enable.auto.offset.store", "false"),
        ];
        client::settings(&self.config, &self.identity, &ours, &last)
    }
}

impl Source for KafkaSource {
    type Connection = KafkaSourceConnection;

    async fn connect(&mut self) -> Result<KafkaSourceConnection, LinkError> {
        let shared = Arc::new(Shared::default());
        let context = Group(Arc::clone(&shared), Tokens::new(&self.config));
        let start = self.config.start;
        let (settings, topics) = (self.settings(), self.topics.clone());
        let given_up = GivenUp::default();
        let _guard = given_up.guard();
        let consumer = client::blocking(move || {
            let shared = Arc::clone(&context.0);
            let consumer: Consumer =
                settings.create_with_context(context).map_err(|error| client::not_created(&error))?;
            let offloaded = Offloaded::new(consumer);
            let Some(consumer) = offloaded.get() else { return Err(closed()) };
            for topic in &topics {
                client::await_cluster(&shared.watch, &given_up, |look| {
                    hear_errors(consumer);
                    client::topic_error(consumer.client(), topic, look)
                })??;
            }
            if let Start::Time(ms) = start {
                client::await_cluster(&shared.watch, &given_up, |look| begin_at(consumer, &topics, ms, look))?;
            }
            let names: Vec<_> = topics.iter().map(String::as_str).collect();
            consumer.subscribe(&names).map_err(|error| LinkError::Misconfigured(error.to_string()))?;
            Ok(offloaded)
        });
        let consumer = consumer.await?;
        shared.watch.clear();
        let polled = crate::clock::now();
        Ok(KafkaSourceConnection {
            consumer,
            shared,
            over: None,
            unreadable: 0,
            polled,
            is_paused: false,
            early: Vec::new(),
        })
    }
}

/// Gives the group positions where it has none: the first record from that time on. Where others are in the group already, it is theirs to know.
/// `None`: no answer yet.
fn begin_at(consumer: &Consumer, topics: &[String], ms: i64, look: Duration) -> Option<()> {
    hear_errors(consumer);
    let mut asked = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), look).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic)?;
        for partition in found.partitions() {
            asked.add_partition(topic, partition.id());
        }
    }
    let committed = consumer.committed_offsets(asked, look).ok()?;
    let mut wanted = TopicPartitionList::new();
    for partition in committed.elements().iter().filter(|partition| partition.offset() == Offset::Invalid) {
        wanted.add_partition_offset(partition.topic(), partition.partition(), Offset::Offset(ms)).ok()?;
    }
    if wanted.count() == 0 {
        return Some(());
    }
    let found = consumer.offsets_for_times(wanted, look).ok()?;
    if let Err(error) = consumer.commit(&found, CommitMode::Sync) {
        tracing::debug!(%error, "the group has members already, or no place at that time");
    }
    Some(())
}

/// A consumer hears of errors only while it is polled. Nothing is subscribed to yet, so no record can come.
fn hear_errors(consumer: &Consumer) {
    let receiving = std::pin::pin!(consumer.recv());
    if let Poll::Ready(Err(error)) = receiving.poll(&mut Context::from_waker(Waker::noop())) {
        tracing::debug!(%error, "kafka consumer, while it connects");
    }
}

/// A record: where it is, and in which assignment of its partition it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaToken {
    partition: Partition,
    offset: i64,
    assignment: u64,
}

/// A live consumer.
pub struct KafkaSourceConnection {
    consumer: Offloaded<Consumer>,
    shared: Arc<Shared>,
    /// An error that came behind records: told with the next call.
    over: Option<LinkError>,
    unreadable: u64,
    polled: Instant,
    /// No records are fetched: nobody asks for them.
    is_paused: bool,
    /// Records that came all the same.
    early: Vec<Received<KafkaToken>>,
}

/// What the callbacks tell. They run inside of `receive`, on its thread.
#[derive(Debug, Default)]
struct Shared {
    watch: Watch,
    offsets: Mutex<Offsets>,
}

impl SourceConnection for KafkaSourceConnection {
    type Token = KafkaToken;

    /// librdkafka keeps what is not taken out of it: a dropped `receive` loses nothing, since nothing is awaited after the
    /// first record.
    async fn receive(&mut self) -> Result<Vec<Received<KafkaToken>>, LinkError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        self.polled = crate::clock::now();
        self.go_on()?;
        if !self.early.is_empty() {
            return Ok(std::mem::take(&mut self.early));
        }
        let Some(consumer) = self.consumer.get() else { return Err(closed()) };
        loop {
            let mut batch = Vec::new();
            match consumer.recv().await {
                Ok(message) => self.shared.received(&message, &mut batch, &mut self.unreadable),
                Err(error) => self.shared.consumption_error(&error)?,
            }
            while self.over.is_none() && !batch.is_empty() && batch.len() < BATCH_MAX {
                let next = std::pin::pin!(consumer.recv());
                match next.poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(message)) => self.shared.received(&message, &mut batch, &mut self.unreadable),
                    Poll::Ready(Err(error)) => self.over = self.shared.consumption_error(&error).err(),
                    Poll::Pending => break,
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn settled(&mut self, token: KafkaToken) -> Result<(), LinkError> {
        let Some(consumer) = self.consumer.get() else { return Err(closed()) };
        let KafkaToken { partition, offset, assignment } = token;
        let Some(passed) = self.shared.offsets.lock().settle(&partition, offset, assignment) else { return Ok(()) };
        // It stores the offset of the record after it. A partition that was taken away meanwhile is another member's.
        if let Err(error) = consumer.store_offset(&partition.topic, partition.number, passed) {
            tracing::debug!(%error, topic = &*partition.topic, partition = partition.number, "offset not stored");
        }
        Ok(())
    }

    /// librdkafka commits by itself, as long as it is polled.
    async fn upkeep(&mut self) -> Result<(), LinkError> {
        tokio::time::sleep_until((self.polled + POLL_EACH).into()).await;
        self.polled = crate::clock::now();
        self.look_after()
    }

    fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    async fn close(self) {
        let Some(consumer) = self.consumer.get().map(Arc::clone) else { return };
        let Self { consumer: offloaded, .. } = self;
        let closing = client::blocking(move || {
            let committed = consumer.commit_consumer_state(CommitMode::Sync);
            // The last handle: leaving the group takes its time here.
            drop(offloaded.into_inner());
            drop(consumer);
            match committed {
                Err(error) if error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset) => {
                    Err(LinkError::Transient(error.to_string()))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        });
        match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the last offsets were not committed"),
            Err(_elapsed) => tracing::debug!("the kafka consumer is still closing"),
        }
    }
}

impl KafkaSourceConnection {
    /// Polls, without records.
    fn look_after(&mut self) -> Result<(), LinkError> {
        let Some(consumer) = self.consumer.get() else { return Err(closed()) };
        // Each time: partitions may have been assigned meanwhile.
        let assigned = consumer.assignment().and_then(|assigned| consumer.pause(&assigned));
        assigned.map_err(|error| LinkError::Transient(error.to_string()))?;
        self.is_paused = true;
        for _ in 0..BATCH_MAX {
            let next = std::pin::pin!(consumer.recv());
            match next.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(message)) => self.shared.received(&message, &mut self.early, &mut self.unreadable),
                Poll::Ready(Err(error)) => self.shared.consumption_error(&error)?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Fetches records again.
    fn go_on(&mut self) -> Result<(), LinkError> {
        if !std::mem::take(&mut self.is_paused) {
            return Ok(());
        }
        let Some(consumer) = self.consumer.get() else { return Err(closed()) };
        let assigned = consumer.assignment().and_then(|assigned| consumer.resume(&assigned));
        assigned.map_err(|error| LinkError::Transient(error.to_string()))
    }
}

impl Shared {
    fn received(&self, message: &BorrowedMessage<'_>, batch: &mut Vec<Received<KafkaToken>>, unreadable: &mut u64) {
        let topic: Arc<str> = message.topic().into();
        let record = Incoming {
            topic: &topic,
            payload: message.payload().unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
        };
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let partition = Partition { topic: Arc::clone(&topic), number: message.partition() };
        let offset = message.offset();
        // What is passed over here is passed over by the offsets too: the next that settles covers it.
        let Some(publication) = mapping::incoming(record, headers.map(|header| (header.key, header.value))) else {
            tracing::error!(topic = &*topic, offset, "passed over a record that gives no topic");
            *unreadable += 1;
            return;
        };
        let assignment = self.offsets.lock().deliver(&partition, offset);
        let token = KafkaToken { partition, offset, assignment };
        batch.push(Received { channel: Some(topic), publication, token, again: false, once: false });
    }

    /// Most errors librdkafka mends itself, and tells all the same.
    fn consumption_error(&self, error: &KafkaError) -> Result<(), LinkError> {
        let code = error.rdkafka_error_code();
        let lost = [RDKafkaErrorCode::AllBrokersDown, RDKafkaErrorCode::PollExceeded, RDKafkaErrorCode::Fatal];
        match (code, error) {
            (_, KafkaError::MessageConsumptionFatal(_)) => Err(LinkError::Transient(error.to_string())),
            (Some(code), _) if client::is_hopeless(code) => {
                let words = self.watch.words_or("refused");
                Err(LinkError::Misconfigured(words))
            }
            (Some(code), _) if lost.contains(&code) => {
                Err(LinkError::Transient(self.watch.words_or("all brokers are down")))
            }
            (_, error) => {
                tracing::debug!(%error, "kafka consumer");
                Ok(())
            }
        }
    }
}

fn closed() -> LinkError {
    LinkError::Transient("the consumer is closed".to_owned())
}

/// The consumer's callbacks.
struct Group(Arc<Shared>, Tokens);

impl ClientContext for Group {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.1.next()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.watch.hear(error.rdkafka_error_code(), reason);
    }

    fn stats(&self, _statistics: Statistics) {}
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let (what, list) = match rebalance {
            Rebalance::Assign(list) => ("assigned", list),
            Rebalance::Revoke(list) => ("revoked", list),
            Rebalance::Error(error) => {
                tracing::warn!(%error, "kafka group");
                return;
            }
        };
        for partition in partitions(list) {
            tracing::info!(topic = &*partition.topic, partition = partition.number, what, "kafka group");
            self.0.offsets.lock().revoke(&partition);
        }
    }
}

/// Assigned anew counts as revoked before: only what is delivered from now on is open.
fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements()
        .iter()
        .map(|element| Partition { topic: element.topic().into(), number: element.partition() })
        .collect()
}
