//! The outbound half: an idempotent producer.
//!
//! A record's delivery report says what became of it. librdkafka retries on its own for as long as the producer lives
//! (the buffer is the retry policy, so no record times out inside it); only what it gives up is answered here.
//!
//! With `exactly_once` all of this happens in transactions (`transaction`): a record is confirmed when its transaction is committed.
//!
//! A refusal for size or content hits a whole batch, the innocent with the guilty: all are told `Retry`, and those that failed are
//! sent one at a time from then on; what fails alone is refused (R16).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::Statistics;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;

use super::Config;
use super::client::{self, GivenUp, Offloaded, Tokens, Watch};
use super::lives::Lives;
use super::mapping;
use super::transaction::{Failure, Outcome, Setup, Transactions};
use crate::buffer::{Lane, Offset, Place};
use crate::links::{Answer, Confirmed, Identity, LinkError, Outgoing, Sent, Sink, SinkConnection};

/// Some batches: one is on its way, the next ones fill; what a crash repeats is bounded by it (R9).
const WINDOW: usize = 4_096;
/// librdkafka's own queue: more than the window, so that `Full` stays the exception.
const QUEUE_MESSAGES_MAX: &str = "16384";
/// Its bytes: the runner keeps fewer in flight.
const QUEUE_KIB_MAX: &str = "65536";
/// An idempotent producer of librdkafka has one request of a partition on its way: so much goes in a round trip, and while more is ready than that,
/// its thread looks for the answer without a pause (measured: two thirds of the link's time with 128 KiB). A batch is refused as a whole where the
/// topic's limit is lower than it; this is half of what clusters allow unless told otherwise.
const BATCH_BYTES: &str = "524288";
/// How long a good-bye waits for what is still on its way.
const FLUSH: Duration = Duration::from_secs(2);

pub(super) type Producer = ThreadedProducer<Reports>;

/// Produces to a Kafka cluster.
#[derive(Clone, Debug)]
pub struct KafkaSink {
    config: Config,
    identity: Identity,
    /// In transactions, each of so many records at most (R26).
    transactions: Option<usize>,
    lives: Arc<Mutex<Lives>>,
}

impl KafkaSink {
    /// For the cluster of `config`, without transactions; connects only when asked.
    #[must_use]
    pub fn new(config: &Config, identity: &Identity) -> Self {
        Self { config: config.clone(), identity: identity.clone(), transactions: None, lives: Arc::default() }
    }

    /// The same for a link's own log, whose records go in transactions where the link is set up so; `in_flight` of them at most.
    #[must_use]
    pub fn of_link(config: &Config, identity: &Identity, in_flight: Option<usize>) -> Self {
        let records_max = in_flight.map_or(WINDOW, |most| most.min(WINDOW));
        Self { transactions: config.exactly_once.then_some(records_max), ..Self::new(config, identity) }
    }

    /// One for each log: who has the same takes over.
    fn transactional_id(&self) -> String {
        let Identity { site, link } = &self.identity;
        self.config.transactional_id.clone().unwrap_or_else(|| format!("tidegate-{site}-{link}"))
    }

    fn setup(&self) -> Option<Setup> {
        let records_max = self.transactions?;
        let (id, group) = self.transactional();
        Some(Setup { id, group, records_max, tokens: Tokens::new(&self.config), lives: Arc::clone(&self.lives) })
    }

    /// The transactional id, and the settings of a consumer in the group that keeps the positions.
    pub(super) fn transactional(&self) -> (String, rdkafka::ClientConfig) {
        let id = self.transactional_id();
        // What is still being committed counts as not yet known, and is asked for again.
        let last = [("group.id", id.as_str()), ("isolation.level", "read_committed"), ("enable.auto.commit", "false")];
        let group = client::settings(&self.config, &self.identity, &[], &last);
        (id, group)
    }

    fn settings(&self) -> rdkafka::ClientConfig {
        let idempotent = matches!(self.config.acks.as_str(), "all" | "-1");
        let mut ours = vec![
            ("linger.ms", "5"),
            ("batch.size", BATCH_BYTES),
            // As Kafka's own clients do it, so that a key lands in the same partition whoever sends it.
            ("partitioner", "murmur2_random"),
            ("queue.buffering.max.messages", QUEUE_MESSAGES_MAX),
            ("queue.buffering.max.kbytes", QUEUE_KIB_MAX),
        ];
        ours.extend(self.config.compression.as_deref().map(|codec| ("compression.type", codec)));
        let id = self.transactional_id();
        let mut last = vec![
            ("acks", self.config.acks.as_str()),
            ("enable.idempotence", if idempotent { "true" } else { "false" }),
        ];
        if self.transactions.is_some() {
            // librdkafka gives a record the time of its transaction; what it gives up is aborted with all others of it.
            last.push(("transactional.id", &id));
        } else {
            // The buffer is the retry policy; librdkafka's five minutes would let a record be overtaken.
            last.push(("message.timeout.ms", "0"));
        }
        if !idempotent {
            // Without idempotence a retry would overtake the next batch.
            last.push(("max.in.flight.requests.per.connection", "1"));
        }
        client::settings(&self.config, &self.identity, &ours, &last)
    }
}

impl Sink for KafkaSink {
    type Connection = KafkaSinkConnection;

    fn window(&self) -> usize {
        WINDOW
    }

    /// R23: the requests of a producer that is given up could land after those of the next.
    fn cut_after(&self, stall_after: Duration) -> Duration {
        stall_after.saturating_mul(10)
    }

    async fn connect(&mut self) -> Result<KafkaSinkConnection, LinkError> {
        let shared = Arc::new(Shared::default());
        let context = Reports(Arc::clone(&shared), Tokens::new(&self.config));
        let settings = self.settings();
        let given_up = GivenUp::default();
        let _guard = given_up.guard();
        let producer = client::blocking(move || {
            let watch = Arc::clone(&context.0);
            let producer: Producer =
                settings.create_with_context(context).map_err(|error| client::not_created(&error))?;
            let producer = Offloaded::new(producer);
            client::await_cluster(&watch.watch, &given_up, |look| producer.get()?.client().fetch_cluster_id(look))?;
            Ok(producer)
        });
        let producer = producer.await?;
        let transactions = match (self.setup(), producer.get()) {
            (Some(setup), Some(producer)) => {
                Some(Transactions::begin(setup, Arc::clone(producer), Arc::clone(&shared.watch)).await?)
            }
            (None, _) | (_, None) => None,
        };
        shared.watch.clear();
        Ok(KafkaSinkConnection {
            transactions,
            answers: VecDeque::new(),
            producer,
            shared,
            site: Arc::clone(&self.identity.site),
            message_bytes_max: self.config.message_bytes_max,
            tombstones: self.config.tombstones,
            open: 0,
            solo: None,
            suspects: BTreeSet::new(),
            over: None,
        })
    }
}

/// A live producer.
pub struct KafkaSinkConnection {
    producer: Offloaded<Producer>,
    /// With `exactly_once`.
    transactions: Option<Transactions>,
    /// Of the transaction that has ended.
    answers: VecDeque<Answer>,
    shared: Arc<Shared>,
    site: Arc<str>,
    message_bytes_max: u32,
    /// An empty payload is no value.
    tombstones: bool,
    /// Records without a report.
    open: usize,
    /// The record that was sent with none before it open, while none followed: its batch is its own.
    solo: Option<Place>,
    /// They were in a batch that was refused: each is sent alone.
    suspects: BTreeSet<Place>,
    /// Why the producer is at its end.
    over: Option<LinkError>,
}

/// What the producer's threads tell.
#[derive(Debug, Default)]
pub(super) struct Shared {
    watch: Arc<Watch>,
    /// At most one for each record in flight.
    reports: Mutex<VecDeque<Report>>,
    news: Notify,
    /// Told once an outage.
    down: AtomicBool,
}

#[derive(Clone, Debug)]
struct Report {
    place: Place,
    topic: String,
    /// `None`: delivered.
    error: Option<RDKafkaErrorCode>,
}

impl SinkConnection for KafkaSinkConnection {
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let Some(producer) = self.producer.get() else { return Err(closed()) };
        if !self.has_room(record.place) {
            return Ok(Sent::Full(Box::new(record)));
        }
        let mapped = match mapping::outgoing(&record, &self.site, self.message_bytes_max) {
            Ok(mapped) => mapped,
            Err(reason) => return Ok(Sent::Refused(reason)),
        };
        let Some(opaque) = packed(record.place) else {
            return Err(LinkError::Transient(format!("offset {} does not fit", record.place.offset.0)));
        };
        let headers =
            mapped.headers.iter().fold(OwnedHeaders::new_with_capacity(mapped.headers.len()), |out, header| {
                out.insert(Header { key: &header.0, value: Some(header.1.as_slice()) })
            });
        let payload = &*record.envelope.message.payload;
        let out = BaseRecord::with_opaque_to(&mapped.topic, opaque)
            .key(mapped.key.as_slice())
            .timestamp(mapped.timestamp_ms)
            .headers(headers);
        let out = if self.tombstones && payload.is_empty() { out } else { out.payload(payload) };
        match producer.send(out) {
            Ok(()) => {
                self.solo = (self.open == 0).then_some(record.place);
                self.open += 1;
                if let Some(transactions) = &mut self.transactions {
                    let now = tokio::time::Instant::from_std(crate::clock::now());
                    let alone = self.suspects.contains(&record.place);
                    transactions.took(&record, alone, &mapped.topic, now);
                }
                Ok(Sent::Queued)
            }
            Err((KafkaError::MessageProduction(code), _)) => self.not_taken(code, &mapped.topic, record),
            Err((error, _)) => Err(LinkError::Transient(error.to_string())),
        }
    }

    /// Reports stay in their queue until they are answered: a dropped `answer` loses nothing.
    async fn answer(&mut self) -> Result<Answer, LinkError> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(answer);
            }
            let report = self.shared.reports.lock().pop_front();
            if let Some(report) = report {
                match self.answer_to(&report) {
                    Ok(Some(answer)) => return Ok(answer),
                    // In a transaction it is answered with all others.
                    Ok(None) => continue,
                    // The end is told when the reports that are here are: what is confirmed need not come again.
                    Err(error) => {
                        self.over.get_or_insert(error);
                        continue;
                    }
                }
            }
            if let Some(error) = &self.over {
                return Err(error.clone());
            }
            // A password or certificate that has become wrong: no silence, and no use in waiting.
            if let Some(error @ LinkError::Misconfigured(_)) = self.shared.watch.reason() {
                self.over = Some(error.clone());
                return Err(error);
            }
            if self.shared.watch.take_alive() && self.open > 0 {
                return Ok(Answer::Alive);
            }
            let Self { shared, transactions, .. } = self;
            tokio::select! {
                biased;
                ended = async {
                    match transactions {
                        Some(transactions) => transactions.ended().await,
                        None => std::future::pending().await,
                    }
                } => match ended {
                    Ok(outcome) => self.settle(outcome),
                    Err(error) => self.over = Some(error),
                },
                () = shared.news.notified() => {}
            }
        }
    }

    fn confirmed_below(&self, buffer: &str) -> Vec<Confirmed> {
        self.transactions.as_ref().map(|transactions| transactions.positions(buffer)).unwrap_or_default()
    }

    async fn close(self) {
        let Some(producer) = self.producer.get().map(Arc::clone) else { return };
        let flushed = client::blocking(move || {
            let left = producer.flush(FLUSH);
            // Dropped here, on the blocking thread, should the connection be gone by then.
            drop(producer);
            left.map_err(|error| LinkError::Transient(error.to_string()))
        });
        if let Err(error) = flushed.await {
            tracing::debug!(%error, "the kafka producer was closed with records on their way");
        }
    }
}

impl KafkaSinkConnection {
    /// Whether a topic is there and may be seen.
    pub(super) async fn look_at_topic(&self, topic: String) -> Result<(), LinkError> {
        let Some(producer) = self.producer.get().map(Arc::clone) else { return Err(closed()) };
        let shared = Arc::clone(&self.shared);
        let given_up = GivenUp::default();
        let _guard = given_up.guard();
        client::blocking(move || {
            client::await_cluster(&shared.watch, &given_up, |look| {
                client::topic_error(producer.client(), &topic, look)
            })?
        })
        .await
    }

    /// The producer did not take the record.
    fn not_taken(&mut self, code: RDKafkaErrorCode, topic: &str, record: Outgoing) -> Result<Sent, LinkError> {
        // A transaction that failed takes no more; its end is near.
        let ends = code == RDKafkaErrorCode::State
            && self.transactions.as_mut().is_some_and(Transactions::hurry)
            && self.producer.get().is_some_and(|producer| producer.client().fatal_error().is_none());
        if code == RDKafkaErrorCode::QueueFull || ends {
            Ok(Sent::Full(Box::new(record)))
        } else if code == RDKafkaErrorCode::MessageSizeTooLarge {
            Ok(Sent::Refused(format!("too large: the limit of this link is {} bytes", self.message_bytes_max)))
        } else {
            let error = self.end_by(topic, code);
            self.over = Some(error.clone());
            Err(error)
        }
    }

    /// Whether a record may be sent now. A suspect shares neither batch nor transaction.
    fn has_room(&self, place: Place) -> bool {
        let is_suspect = |place: Place| self.suspects.contains(&place);
        match &self.transactions {
            None => self.open == 0 || !(is_suspect(place) || self.solo.is_some_and(is_suspect)),
            Some(transactions) => transactions.takes(is_suspect(place) || transactions.only().is_some_and(is_suspect)),
        }
    }

    /// `None`: the record's transaction has not ended.
    fn answer_to(&mut self, report: &Report) -> Result<Option<Answer>, LinkError> {
        let alone = self.solo == Some(report.place);
        self.open = self.open.saturating_sub(1);
        if let Some(transactions) = &mut self.transactions {
            if let Some(code) = report.error {
                transactions.failed(report.place, Failure { topic: report.topic.clone(), code });
            }
            return Ok(None);
        }
        self.suspects.remove(&report.place);
        let Some(code) = report.error else { return Ok(Some(Answer::Confirmed(report.place))) };
        self.judge(report.place, &report.topic, code, alone).map(Some)
    }

    fn judge(&mut self, place: Place, topic: &str, code: RDKafkaErrorCode, alone: bool) -> Result<Answer, LinkError> {
        let reason = format!("topic '{topic}': {code}");
        match verdict(code) {
            Verdict::Record if alone => Ok(Answer::Refused(place, reason)),
            Verdict::Record => {
                self.suspects.insert(place);
                Ok(Answer::Retry(place, reason))
            }
            Verdict::Later => Ok(Answer::Retry(place, reason)),
            Verdict::Link => Err(self.end_by(topic, code)),
        }
    }

    /// A transaction has ended: what its records are told.
    fn settle(&mut self, outcome: Outcome) {
        // All reports of it are in: a commit and an abort both wait for them.
        self.shared.reports.lock().clear();
        self.open = 0;
        match outcome {
            Outcome::Committed(places) => {
                self.suspects.retain(|suspect| !places.contains(suspect));
                self.answers.extend(places.into_iter().map(Answer::Confirmed));
            }
            Outcome::Aborted(places, failed, why) => self.aborted(&places, &failed, why),
        }
    }

    fn aborted(
        &mut self,
        places: &[Place],
        failed: &BTreeMap<Place, Failure>,
        why: Option<(RDKafkaErrorCode, String)>,
    ) {
        if let Some((code, words)) = &why
            && failed.is_empty()
            && client::is_hopeless(*code)
        {
            self.over = Some(LinkError::Misconfigured(format!("transaction: {words}")));
            return;
        }
        let alone = places.len() == 1;
        let words = why.map_or_else(|| "a record of its transaction was not taken".to_owned(), |(_, words)| words);
        for place in places {
            self.suspects.remove(place);
            let answer = match failed.get(place) {
                Some(Failure { topic, code }) => self.judge(*place, topic, *code, alone),
                None => Ok(Answer::Retry(*place, format!("transaction aborted: {words}"))),
            };
            match answer {
                Ok(answer) => self.answers.push_back(answer),
                Err(error) => {
                    self.answers.clear();
                    self.over = Some(error);
                    return;
                }
            }
        }
    }

    /// Why the producer is at its end.
    fn end_by(&self, topic: &str, code: RDKafkaErrorCode) -> LinkError {
        match self.producer.get().and_then(|producer| producer.client().fatal_error()) {
            Some((code, words)) => match &self.transactions {
                Some(transactions) => transactions.end_by(Some(code), format!("{code}: {words}")),
                None => LinkError::Transient(format!("{code}: {words}; a new producer is made")),
            },
            None => client::topic_refused(topic, code),
        }
    }
}

/// A place as the library carries it; the way back is [`unpacked`]. A log's offsets fit a pointer, less two bits, on the
/// 64-bit machines that this runs on.
fn packed(place: Place) -> Option<usize> {
    usize::try_from(place.offset.0).ok()?.checked_mul(4)?.checked_add(usize::from(place.lane.number()))
}

fn unpacked(opaque: usize) -> Place {
    let lane = Lane::ALL.into_iter().find(|lane| usize::from(lane.number()) == opaque % 4).unwrap_or_default();
    Place { lane, offset: Offset(u64::try_from(opaque / 4).unwrap_or(u64::MAX)) }
}

/// Whom a failed delivery concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A record of its batch, for good.
    Record,
    /// Nobody: it may pass.
    Later,
    /// The whole link: a topic or a permission that is missing, or the end of this producer.
    Link,
}

fn verdict(code: RDKafkaErrorCode) -> Verdict {
    let record = [
        RDKafkaErrorCode::MessageSizeTooLarge,
        RDKafkaErrorCode::MessageBatchTooLarge,
        RDKafkaErrorCode::InvalidMessage,
        RDKafkaErrorCode::InvalidMessageSize,
        RDKafkaErrorCode::InvalidTimestamp,
        RDKafkaErrorCode::InvalidRecord,
        RDKafkaErrorCode::InvalidTopic,
        RDKafkaErrorCode::PolicyViolation,
    ];
    let link = [
        RDKafkaErrorCode::Fatal,
        RDKafkaErrorCode::Fenced,
        RDKafkaErrorCode::ProducerFenced,
        RDKafkaErrorCode::OutOfOrderSequenceNumber,
        RDKafkaErrorCode::InvalidProducerEpoch,
        RDKafkaErrorCode::UnknownProducerId,
        RDKafkaErrorCode::GaplessGuarantee,
        RDKafkaErrorCode::PurgeQueue,
        RDKafkaErrorCode::PurgeInflight,
    ];
    if record.contains(&code) {
        Verdict::Record
    } else if link.contains(&code) || client::is_hopeless(code) {
        Verdict::Link
    } else {
        Verdict::Later
    }
}

fn closed() -> LinkError {
    LinkError::Transient("the producer is closed".to_owned())
}

/// The producer's callbacks; they run on its own threads and only hand over.
pub(super) struct Reports(Arc<Shared>, Tokens);

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.1.next()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        self.0.watch.hear(code, reason);
        if code == Some(RDKafkaErrorCode::AllBrokersDown) && !self.0.down.swap(true, Ordering::Relaxed) {
            let reason = self.0.watch.words_or(reason);
            tracing::warn!(reason, "all kafka brokers are down; the producer keeps its records and reconnects");
        }
        self.0.news.notify_one();
    }

    fn stats(&self, statistics: Statistics) {
        if self.0.watch.observe(&statistics) {
            self.0.news.notify_one();
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        let place = unpacked(place);
        let report = match result {
            Ok(_) => {
                self.0.down.store(false, Ordering::Relaxed);
                Report { place, topic: String::new(), error: None }
            }
            Err((error, message)) => Report {
                place,
                topic: message.topic().to_owned(),
                error: Some(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
            },
        };
        self.0.reports.lock().push_back(report);
        self.0.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_from_the_library_as_it_went() {
        for lane in Lane::ALL {
            for offset in [0, 1, 7, u64::from(u32::MAX) + 5, u64::MAX >> 3] {
                let place = Place { lane, offset: Offset(offset) };
                assert_eq!(packed(place).map(unpacked), Some(place));
            }
        }
        assert_eq!(packed(Place { lane: Lane::Low, offset: Offset(u64::MAX) }), None);
    }

    #[test]
    fn a_failed_delivery_concerns_its_record_the_link_or_nobody() {
        use RDKafkaErrorCode as Code;
        let record = [
            Code::MessageSizeTooLarge,
            Code::MessageBatchTooLarge,
            Code::InvalidMessageSize,
            Code::InvalidTimestamp,
            Code::InvalidRecord,
            Code::InvalidTopic,
            Code::PolicyViolation,
        ];
        let later = [
            // A quota, and who is short of something.
            Code::ThrottlingQuotaExceeded,
            Code::NotEnoughReplicas,
            Code::NotEnoughReplicasAfterAppend,
            Code::KafkaStorageError,
            // Not the leader, or not any more.
            Code::NotLeaderForPartition,
            Code::LeaderNotAvailable,
            Code::PreferredLeaderNotAvailable,
            Code::FencedLeaderEpoch,
            Code::ReplicaNotAvailable,
            Code::BrokerNotAvailable,
            // The line.
            Code::RequestTimedOut,
            Code::MessageTimedOut,
            Code::NetworkException,
            Code::BrokerTransportFailure,
            Code::AllBrokersDown,
            Code::Unknown,
        ];
        let link = [
            // Fenced, or this producer's end.
            Code::Fenced,
            Code::ProducerFenced,
            Code::InvalidProducerEpoch,
            Code::OutOfOrderSequenceNumber,
            Code::UnknownProducerId,
            Code::Fatal,
            Code::PurgeQueue,
            Code::PurgeInflight,
            // What somebody has to make, to allow or to change.
            Code::UnknownTopicOrPartition,
            Code::UnknownTopic,
            Code::UnknownPartition,
            Code::TopicAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::TransactionalIdAuthorizationFailed,
            Code::SaslAuthenticationFailed,
            Code::UnsupportedCompressionType,
            Code::InvalidRequiredAcks,
        ];
        for (codes, expected) in
            [(&record[..], Verdict::Record), (&later[..], Verdict::Later), (&link[..], Verdict::Link)]
        {
            for code in codes {
                assert_eq!(verdict(*code), expected, "{code:?}");
            }
        }
    }

    #[test]
    fn r26_the_producer_is_idempotent_and_no_option_changes_that() {
        let settings = |acks: &str| {
            let options = [("enable.idempotence", "false"), ("message.timeout.ms", "1000"), ("linger.ms", "50")];
            let options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let config = Config { acks: acks.to_owned(), options, ..client::tests::config() };
            let identity = Identity { site: "s".into(), link: crate::router::LinkId::new("l") };
            KafkaSink::new(&config, &identity).settings()
        };
        let safe = settings("all");
        assert_eq!((safe.get("enable.idempotence"), safe.get("message.timeout.ms")), (Some("true"), Some("0")));
        assert_eq!((safe.get("linger.ms"), safe.get("max.in.flight.requests.per.connection")), (Some("50"), None));
        let weaker = settings("1");
        let one_by_one = weaker.get("max.in.flight.requests.per.connection");
        assert_eq!(
            (weaker.get("enable.idempotence"), one_by_one),
            (Some("false"), Some("1")),
            "a retry overtakes nothing"
        );
    }

    #[test]
    fn a_missing_topic_or_permission_is_the_link_s_misconfiguration() {
        for code in [RDKafkaErrorCode::UnknownTopicOrPartition, RDKafkaErrorCode::TopicAuthorizationFailed] {
            let LinkError::Misconfigured(words) = client::topic_refused("lake", code) else { panic!("{code:?}") };
            assert!(words.contains("topic 'lake'"), "{words}");
        }
    }
}
