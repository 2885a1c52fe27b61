//! Exactly once (R26): records go in transactions, and how far the log is goes with them ([`Positions`]).
//!
//! A transaction begins with its first record. It ends [`LINGER`] later, or when a window is full; while it ends no record is taken.
//! Records are confirmed when it is committed, all at once. One that fails ends the transaction by an abort, and all its
//! records are told to go again: none of them is seen by a consumer that reads what is committed.
//!
//! After a kill, or on a new connection, the group's committed offset says what is in Kafka. It is asked for only
//! when `init_transactions` has ended what the producer before us had left open, so nothing of it can change any more.
//!
//! librdkafka blocks on all of this, and the group's metadata may not leave its thread: each connection has one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::{ClientConfig, ClientContext, Offset as Position, TopicPartitionList};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client::{self, GivenUp, GivenUpGuard, Tokens, Watch};
use super::lives::Lives;
use super::positions::Positions;
use super::sink::Producer;
use crate::buffer::Place;
use crate::links::{Confirmed, LinkError, Outgoing, witness};

/// How long a transaction waits for more records. Each costs a marker in every partition that it touches, and some milliseconds;
/// Kafka Streams has the same.
const LINGER: Duration = Duration::from_millis(100);
/// One try of a step that waits for brokers; between two of them is looked whether anybody still waits.
const STEP: Duration = Duration::from_secs(1);
/// `transaction.timeout.ms`, as librdkafka has it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Payload bytes after which a transaction takes no more. All its records have to be in Kafka within [`TIMEOUT`] (librdkafka holds
/// `message.timeout.ms` to it), also over a line of some 20 kB/s.
const BYTES_MAX: usize = 1 << 20;
/// Kafka's own topics: no record of ours goes there.
const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];
/// The pause between tries that fail at once.
const PAUSE: Duration = Duration::from_millis(50);

/// What a connection needs for its transactions.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// `transactional.id`, and the name of the group that keeps the positions.
    pub(super) id: String,
    /// Settings of a consumer in that group.
    pub(super) group: ClientConfig,
    /// Records of one transaction at most.
    pub(super) records_max: usize,
    pub(super) tokens: Tokens,
    pub(super) lives: Arc<Mutex<Lives>>,
}

/// The group's client, which only asks for its position.
pub(super) struct Asking(pub(super) Tokens);

impl ClientContext for Asking {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.next()
    }
}

impl ConsumerContext for Asking {}

/// A connection's transactions.
#[derive(Debug)]
pub(super) struct Transactions {
    id: String,
    records_max: usize,
    orders: SyncSender<Order>,
    /// Committed, and what is open on top of it in `next`.
    positions: Positions,
    next: Positions,
    buffer: Box<str>,
    open: Vec<Place>,
    /// Payload bytes of it.
    bytes: usize,
    /// A topic of the open transaction.
    topic: String,
    began: Option<Instant>,
    /// It is to end now.
    hurried: bool,
    /// What librdkafka gave up of the open transaction.
    failed: BTreeMap<Place, Failure>,
    ending: Option<oneshot::Receiver<Result<Ended, Fatal>>>,
    lives: Arc<Mutex<Lives>>,
    _given_up: GivenUpGuard,
}

/// Why a record was not taken.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) topic: String,
    pub(super) code: RDKafkaErrorCode,
}

/// How a transaction ended.
#[derive(Debug)]
enum Ended {
    Committed,
    Aborted(Option<(RDKafkaErrorCode, String)>),
}

/// The producer is at its end.
#[derive(Debug)]
struct Fatal(Option<RDKafkaErrorCode>, String);

impl From<KafkaError> for Fatal {
    fn from(error: KafkaError) -> Self {
        Self(error.rdkafka_error_code(), error.to_string())
    }
}

/// What became of the records of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// They are in Kafka.
    Committed(Vec<Place>),
    /// None of them is. Those that were the reason are in the second part.
    Aborted(Vec<Place>, BTreeMap<Place, Failure>, Option<(RDKafkaErrorCode, String)>),
}

/// For the thread.
struct Order {
    /// `None`: abort.
    commit: Option<(String, Positions, Box<str>)>,
    done: oneshot::Sender<Result<Ended, Fatal>>,
}

impl Transactions {
    /// Ends what an earlier producer of this id left open, and finds out how far the log is.
    pub(super) async fn begin(setup: Setup, producer: Arc<Producer>, watch: Arc<Watch>) -> Result<Self, LinkError> {
        let (orders, inbox) = sync_channel(1);
        let given_up = GivenUp::default();
        let guard = given_up.guard();
        let (ready, begun) = oneshot::channel();
        let (id, records_max, lives) = (setup.id.clone(), setup.records_max, Arc::clone(&setup.lives));
        lives.lock().begin(crate::clock::now());
        let work = move || {
            let thread = Thread { producer, given_up };
            match thread.begin(&setup, &watch) {
                Ok((positions, group)) => {
                    // Nobody may be waiting any more: then the orders are over too.
                    drop(ready.send(Ok(positions)));
                    thread.serve(&group, &inbox);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("kafka-commit".to_owned()).spawn(work);
        thread.map_err(|error| LinkError::Transient(format!("no thread for kafka's transactions: {error}")))?;
        let positions = begun.await.unwrap_or_else(|_dropped| Err(over()))?;
        Ok(Self {
            id,
            records_max: records_max.max(1),
            orders,
            next: positions.clone(),
            positions,
            buffer: "".into(),
            open: Vec::new(),
            bytes: 0,
            topic: String::new(),
            began: None,
            hurried: false,
            failed: BTreeMap::new(),
            ending: None,
            lives,
            _given_up: guard,
        })
    }

    /// How far a log is in Kafka.
    pub(super) fn positions(&self, buffer: &str) -> Vec<Confirmed> {
        self.positions.of(buffer)
    }

    /// Whether a record may be put into the open transaction now. `alone`: only if it is its first.
    pub(super) fn takes(&self, alone: bool) -> bool {
        let is_full = self.is_full() || alone && !self.open.is_empty();
        self.ending.is_none() && self.failed.is_empty() && !is_full
    }

    const fn is_full(&self) -> bool {
        self.open.len() >= self.records_max || self.bytes >= BYTES_MAX
    }

    /// The one record of the transaction, if it has just one.
    pub(super) fn only(&self) -> Option<Place> {
        if let [only] = self.open.as_slice() { Some(*only) } else { None }
    }

    /// A record was produced. `alone`: no other one may join it, so nothing is waited for.
    pub(super) fn took(&mut self, record: &Outgoing, alone: bool, topic: &str, now: Instant) {
        if self.open.is_empty() {
            (self.bytes, self.hurried) = (0, alone);
            topic.clone_into(&mut self.topic);
            self.began = Some(now);
        }
        // `BUFFER-LANE-NUMBER`.
        let buffer = record.seq.split('-').next().unwrap_or_default();
        if *self.buffer != *buffer {
            self.buffer = buffer.into();
        }
        let message = &record.envelope.message;
        self.next.pass(buffer, record.place, witness(&message.id), record.expired_before);
        self.bytes += message.payload.len();
        self.open.push(record.place);
    }

    /// librdkafka gave a record up.
    pub(super) fn failed(&mut self, place: Place, failure: Failure) {
        // What an abort takes out of the queue is its consequence.
        let purged = [RDKafkaErrorCode::PurgeQueue, RDKafkaErrorCode::PurgeInflight].contains(&failure.code);
        if !purged && self.open.contains(&place) {
            self.failed.insert(place, failure);
        }
    }

    /// Ends the open transaction now. Whether there is one.
    pub(super) fn hurry(&mut self) -> bool {
        self.hurried = !self.open.is_empty();
        self.hurried
    }

    /// Ends the transaction when it is due, and says what became of it. Cancel safe; pending while nothing is open.
    pub(super) async fn ended(&mut self) -> Result<Outcome, LinkError> {
        if self.ending.is_none() {
            match self.due() {
                None => return std::future::pending().await,
                Some(due) => tokio::time::sleep_until(due).await,
            }
            self.end()?;
        }
        let Some(ending) = &mut self.ending else { return Err(over()) };
        let ended = ending.await.map_err(|_thread_gone| over())?;
        self.ending = None;
        self.hurried = false;
        match ended {
            Ok(Ended::Committed) => {
                self.positions = self.next.clone();
                self.failed.clear();
                Ok(Outcome::Committed(std::mem::take(&mut self.open)))
            }
            Ok(Ended::Aborted(why)) => {
                self.next = self.positions.clone();
                Ok(Outcome::Aborted(std::mem::take(&mut self.open), std::mem::take(&mut self.failed), why))
            }
            Err(Fatal(code, words)) => Err(self.end_by(code, words)),
        }
    }

    /// A producer that is at its end. One that was fenced long before its transaction could have timed out has a rival, unless an earlier one
    /// of this link did it ([`Lives`]).
    pub(super) fn end_by(&self, code: Option<RDKafkaErrorCode>, words: String) -> LinkError {
        let fenced =
            [RDKafkaErrorCode::Fenced, RDKafkaErrorCode::ProducerFenced, RDKafkaErrorCode::InvalidProducerEpoch];
        let early = self.began.is_none_or(|began| began.elapsed() < TIMEOUT / 2);
        if early && code.is_some_and(|code| fenced.contains(&code)) {
            let id = &self.id;
            if self.lives.lock().is_fenced(crate::clock::now()) {
                return LinkError::Transient(format!(
                    "fenced by an earlier producer of this link, or by another one of `transactional_id: {id}` ({words}); a new producer is made"
                ));
            }
            return LinkError::Misconfigured(format!(
                "fenced: another producer has taken over `transactional_id: {id}` ({words}): two gateways, or two links, must not share it"
            ));
        }
        LinkError::Transient(format!("{words}; a new producer is made"))
    }

    fn due(&self) -> Option<Instant> {
        let began = self.began.filter(|_| !self.open.is_empty())?;
        let now = self.hurried || !self.failed.is_empty() || self.is_full();
        Some(if now { began } else { began + LINGER })
    }

    fn end(&mut self) -> Result<(), LinkError> {
        let (done, ending) = oneshot::channel();
        let commit = self.failed.is_empty().then(|| (self.topic.clone(), self.next.clone(), self.buffer.clone()));
        match self.orders.try_send(Order { commit, done }) {
            Ok(()) => {
                self.ending = Some(ending);
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(over()),
        }
    }
}

fn over() -> LinkError {
    LinkError::Transient("kafka's transactions have ended".to_owned())
}

/// What may block.
struct Thread {
    producer: Arc<Producer>,
    given_up: GivenUp,
}

impl Thread {
    fn begin(&self, setup: &Setup, watch: &Watch) -> Result<(Positions, ConsumerGroupMetadata), LinkError> {
        self.while_waited_for(watch, |step| self.producer.init_transactions(step))?;
        let asking = Asking(setup.tokens.clone());
        let group: BaseConsumer<Asking> =
            setup.group.create_with_context(asking).map_err(|error| client::not_created(&error))?;
        if setup.tokens.any() {
            // It asks for its token when it is polled; nothing is subscribed to, so nothing else comes.
            drop(group.poll(STEP));
        }
        let all = self.while_waited_for(watch, |step| self.producer.client().fetch_metadata(None, step))?;
        let topics = all.topics().iter().filter(|topic| topic.error().is_none() && !INTERNAL.contains(&topic.name()));
        let mut asked = TopicPartitionList::new();
        for topic in topics.filter(|topic| !topic.partitions().is_empty()) {
            asked.add_partition(topic.name(), 0);
        }
        let mut positions = Positions::default();
        if asked.count() > 0 {
            let kept = self.while_waited_for(watch, |step| group.committed_offsets(asked.clone(), step))?;
            for kept in kept.elements() {
                match kept.error() {
                    Ok(()) => positions.read(kept.metadata()),
                    Err(KafkaError::OffsetFetch(code)) if is_of_the_topic(code) => {}
                    Err(error) => return Err(refused(&error)),
                }
            }
        }
        let metadata = group.group_metadata().ok_or_else(over)?;
        self.producer.begin_transaction().map_err(|error| refused(&error))?;
        Ok((positions, metadata))
    }

    /// Until it succeeds, or fails with what no new try mends, or nobody waits any more.
    fn while_waited_for<T>(&self, watch: &Watch, step: impl FnMut(Duration) -> KafkaResult<T>) -> Result<T, LinkError> {
        self.persist(step).map_err(|error| match watch.reason() {
            Some(heard @ LinkError::Misconfigured(_)) => heard,
            Some(LinkError::Transient(_)) | None => refused(&error),
        })
    }

    fn persist<T>(&self, mut step: impl FnMut(Duration) -> KafkaResult<T>) -> KafkaResult<T> {
        loop {
            match step(STEP) {
                Err(error) if is_retriable(&error) && !self.given_up.is_set() => std::thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    /// Until the connection has gone.
    fn serve(&self, group: &ConsumerGroupMetadata, inbox: &Receiver<Order>) {
        for Order { commit, done } in inbox {
            let ended = self.end(group, commit);
            let is_over = ended.is_err();
            // Nobody may be waiting any more.
            drop(done.send(ended));
            if is_over {
                return;
            }
        }
    }

    fn end(
        &self,
        group: &ConsumerGroupMetadata,
        commit: Option<(String, Positions, Box<str>)>,
    ) -> Result<Ended, Fatal> {
        let mut why = None;
        if let Some((topic, positions, buffer)) = commit {
            match self.commit(group, &topic, &positions, &buffer) {
                Ok(()) => return self.begin_next(Ended::Committed),
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                    why = Some((error.code(), error.string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.persist(|step| self.producer.abort_transaction(step))?;
        self.begin_next(Ended::Aborted(why))
    }

    fn begin_next(&self, ended: Ended) -> Result<Ended, Fatal> {
        // What was committed is so, also where this producer can do no more: the next send or commit tells.
        match (self.producer.begin_transaction(), ended) {
            (Ok(()), ended) | (Err(_), ended @ Ended::Committed) => Ok(ended),
            (Err(error), Ended::Aborted(_)) => Err(error.into()),
        }
    }

    fn commit(
        &self,
        group: &ConsumerGroupMetadata,
        topic: &str,
        positions: &Positions,
        buffer: &str,
    ) -> KafkaResult<()> {
        let (text, number) = positions.show(buffer);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition(topic, 0).set_offset(Position::Offset(number))?;
        if let Some(mut beside) = offsets.find_partition(topic, 0) {
            beside.set_metadata(text);
        }
        self.persist(|step| self.producer.send_offsets_to_transaction(&offsets, group, step))?;
        self.persist(|step| self.producer.commit_transaction(step))
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    if let KafkaError::Transaction(error) = error {
        return error.is_retriable() && !error.txn_requires_abort() && !error.is_fatal();
    }
    // A flush that has not ended within its step is no failure.
    let waits = matches!(error, KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
    waits || matches!(error, KafkaError::MetadataFetch(code) if !client::is_hopeless(*code))
}

/// It has gone meanwhile, or is not for us: then no record of ours went there.
fn is_of_the_topic(code: RDKafkaErrorCode) -> bool {
    let codes = [
        RDKafkaErrorCode::UnknownTopicOrPartition,
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::TopicAuthorizationFailed,
    ];
    codes.contains(&code)
}

fn refused(error: &KafkaError) -> LinkError {
    let hopeless = error.rdkafka_error_code().is_some_and(client::is_hopeless);
    let words = format!("transactions: {error}");
    if hopeless { LinkError::Misconfigured(words) } else { LinkError::Transient(words) }
}
