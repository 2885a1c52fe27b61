//! What both halves share: settings, the errors that come only by callback, and clients that are closed off the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::{Client, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics};

use super::Config;
use crate::links::{Identity, LinkError, Secret, secret};

/// How often librdkafka reports its counters.
const STATISTICS_INTERVAL_MS: &str = "2000";
/// How long a token holds that does not say when it ends.
const TOKEN_LIFE_S: u64 = 3600;
/// One look at the cluster while connecting; between two of them the errors are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A connect that nobody waits for any more ends by itself. The runner's own timeout is shorter.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Settings for one half: ours, then the operator's, then those that the promise stands on (`last`).
pub(super) fn settings(
    config: &Config,
    identity: &Identity,
    ours: &[(&str, &str)],
    last: &[(&str, &str)],
) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("client.id", format!("tidegate-{}-{}", identity.site, identity.link))
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS)
        .set("message.max.bytes", config.message_bytes_max.to_string())
        // librdkafka's 10 s is long for a link whose state people look at.
        .set("reconnect.backoff.max.ms", "2000")
        // A topic that was just created may be unknown for a moment; librdkafka's 30 s would look like a stall.
        .set("topic.metadata.propagation.max.ms", "5000");
    let operators = config.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in ours.iter().copied().chain(operators).chain(last.iter().copied()) {
        settings.set(name, value);
    }
    settings.set("bootstrap.servers", config.brokers.join(",")).set_log_level(RDKafkaLogLevel::Warning);
    settings
}

/// Errors, liveness and logs of one client. librdkafka tells a wrong password or certificate only here, among
/// many `AllBrokersDown`.
#[derive(Debug, Default)]
pub(super) struct Watch {
    worst: Mutex<Option<Heard>>,
    alive: AtomicBool,
    traffic: Mutex<Vec<Traffic>>,
}

/// An error by callback.
#[derive(Clone, Debug)]
struct Heard {
    rank: u8,
    words: String,
}

/// One broker that holds records of ours, at the last report.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traffic {
    broker: i32,
    sent_bytes: u64,
    /// Requests waited for room in the socket.
    held_up: bool,
    connects: i64,
    retries: u64,
}

impl Watch {
    /// Takes note of an error by callback.
    pub(super) fn hear(&self, code: Option<RDKafkaErrorCode>, words: &str) {
        let rank = rank(code, words);
        tracing::debug!(?code, words, "kafka says");
        let mut worst = self.worst.lock();
        // Equal ranks: the newest words.
        if worst.as_ref().is_none_or(|worst| worst.rank <= rank) {
            *worst = Some(Heard { rank, words: words.to_owned() });
        }
    }

    /// What a link that does not come up should say, if anything was heard.
    pub(super) fn reason(&self) -> Option<LinkError> {
        let heard = self.worst.lock().clone()?;
        Some(if heard.rank >= RANK_HOPELESS {
            LinkError::Misconfigured(heard.words)
        } else {
            LinkError::Transient(heard.words)
        })
    }

    /// The best words for "it does not answer".
    pub(super) fn words_or(&self, otherwise: &str) -> String {
        self.worst.lock().as_ref().map_or_else(|| otherwise.to_owned(), |heard| heard.words.clone())
    }

    /// Forgets: what is heard from now on is news.
    pub(super) fn clear(&self) {
        *self.worst.lock() = None;
    }

    /// Whether brokers have taken bytes of our records since the last call (R23).
    pub(super) fn take_alive(&self) -> bool {
        self.alive.swap(false, Ordering::Relaxed)
    }

    /// Bytes that a broker's TCP has taken though its socket had been full, on a connection that stayed, without a retry among them:
    /// progress. What goes into a buffer with room is none (a frozen broker's takes megabytes), and answers to
    /// other requests are none either (a frozen leader has healthy neighbours). Returns whether there was any.
    pub(super) fn observe(&self, statistics: &Statistics) -> bool {
        let busy = statistics.brokers.values().filter(|broker| broker.outbuf_msg_cnt + broker.waitresp_msg_cnt > 0);
        let now: Vec<_> = busy
            .map(|broker| Traffic {
                broker: broker.nodeid,
                sent_bytes: broker.txbytes,
                held_up: broker.outbuf_cnt > 0,
                connects: broker.connects.unwrap_or_default(),
                retries: broker.txretries,
            })
            .collect();
        let before = std::mem::replace(&mut *self.traffic.lock(), now.clone());
        let moved = now.iter().any(|now| before.iter().any(|before| now.has_moved_since(before)));
        if moved {
            self.alive.store(true, Ordering::Relaxed);
        }
        moved
    }
}

impl Traffic {
    fn has_moved_since(&self, before: &Self) -> bool {
        self.broker == before.broker
            && before.held_up
            && self.sent_bytes > before.sent_bytes
            && self.connects == before.connects
            && self.retries == before.retries
    }
}

/// Errors of this rank stay until somebody changes something.
const RANK_HOPELESS: u8 = 8;

fn rank(code: Option<RDKafkaErrorCode>, words: &str) -> u8 {
    match code {
        Some(code) if is_hopeless(code) => 9,
        // A handshake that breaks off may be a broker's restart; a certificate stays what it is.
        Some(RDKafkaErrorCode::SSL) if words.contains("certificate") => RANK_HOPELESS,
        Some(RDKafkaErrorCode::SSL) => 5,
        Some(RDKafkaErrorCode::Resolve) => 4,
        Some(RDKafkaErrorCode::BrokerTransportFailure) => 3,
        Some(RDKafkaErrorCode::AllBrokersDown) => 1,
        Some(_) | None => 2,
    }
}

/// What no new attempt can change.
pub(super) fn is_hopeless(code: RDKafkaErrorCode) -> bool {
    [
        RDKafkaErrorCode::Authentication,
        RDKafkaErrorCode::SaslAuthenticationFailed,
        RDKafkaErrorCode::UnsupportedSASLMechanism,
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::GroupAuthorizationFailed,
        RDKafkaErrorCode::ClusterAuthorizationFailed,
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::UnknownTopicOrPartition,
        RDKafkaErrorCode::InvalidRequiredAcks,
        RDKafkaErrorCode::UnsupportedCompressionType,
    ]
    .contains(&code)
}

/// A client could not be made: a setting is wrong. Its value stays out of the words, since it may be a secret.
pub(super) fn not_created(error: &KafkaError) -> LinkError {
    LinkError::Misconfigured(if let KafkaError::ClientConfig(_, _, name, _) = error {
        format!("kafka option `{name}` is unknown or has a wrong value")
    } else {
        error.to_string()
    })
}

/// `librdkafka`'s log lines as ours. Its complaints about connections come as errors too, and are told with the link's state.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice
        | RDKafkaLogLevel::Info
        | RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// Waits, on a blocking thread, until `poll` says that the cluster has answered. `None`: not yet. Ends early with an
/// error that no waiting changes, or when all brokers have been tried in vain.
pub(super) fn await_cluster<T>(
    watch: &Watch,
    given_up: &GivenUp,
    mut poll: impl FnMut(Duration) -> Option<T>,
) -> Result<T, LinkError> {
    let begin = crate::clock::now();
    loop {
        if let Some(answer) = poll(LOOK) {
            return Ok(answer);
        }
        if let Some(error @ LinkError::Misconfigured(_)) = watch.reason() {
            return Err(error);
        }
        if given_up.is_set() || crate::clock::now().duration_since(begin) > CONNECT_LIMIT {
            return Err(LinkError::Transient(watch.words_or("no answer from any broker")));
        }
        if let Some(error) = refused_everywhere(watch, begin) {
            return Err(error);
        }
    }
}

/// Nothing came up within two seconds and librdkafka has a reason: better told than waited for.
fn refused_everywhere(watch: &Watch, begin: Instant) -> Option<LinkError> {
    (crate::clock::now().duration_since(begin) > Duration::from_secs(2)).then(|| watch.reason())?
}

/// Whether `topic` exists and may be seen, as the cluster's answer to a question for its metadata says.
pub(super) fn topic_error<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Option<Result<(), LinkError>> {
    let metadata = client.fetch_metadata(Some(topic), timeout).ok()?;
    let error = metadata.topics().iter().find(|found| found.name() == topic).and_then(|found| found.error());
    Some(match error {
        None => Ok(()),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => return None,
        Some(error) => Err(topic_refused(topic, error.into())),
    })
}

/// The words for a topic that is not there or not for us.
pub(super) fn topic_refused(topic: &str, code: RDKafkaErrorCode) -> LinkError {
    let missing =
        [RDKafkaErrorCode::UnknownTopic, RDKafkaErrorCode::UnknownTopicOrPartition, RDKafkaErrorCode::UnknownPartition];
    if missing.contains(&code) {
        LinkError::Misconfigured(format!("topic '{topic}' does not exist ({code}): create it"))
    } else if is_hopeless(code) {
        LinkError::Misconfigured(format!("topic '{topic}': {code}"))
    } else {
        LinkError::Transient(format!("topic '{topic}': {code}"))
    }
}

/// Told to the blocking half of a connect whose future was dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Set when the guard goes.
    pub(super) fn guard(&self) -> GivenUpGuard {
        GivenUpGuard(self.clone())
    }
}

/// See [`GivenUp::guard`].
#[derive(Debug)]
pub(super) struct GivenUpGuard(GivenUp);

impl Drop for GivenUpGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs what blocks on a thread of its own, and makes of a panic there a lost connection. Not on the runtime's blocking
/// threads: those are waited for at the end of the process, and a dead broker would hold it up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LinkError> + Send + 'static,
) -> Result<T, LinkError> {
    let (done, result) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("kafka-wait".to_owned()).spawn(move || {
        // rdkafka's consumer starts a small task of its own.
        let _entered = runtime.enter();
        // Nobody may be waiting any more: then the result is dropped here, where it may block.
        drop(done.send(work()));
    });
    thread.map_err(|error| LinkError::Transient(format!("no thread for the kafka client: {error}")))?;
    result.await.unwrap_or_else(|_dropped| Err(LinkError::Transient("the kafka client's thread ended".to_owned())))
}

/// A client whose drop blocks (a producer's for half a second, a consumer's until its group has let it go): dropped on
/// a thread of its own.
pub(super) struct Offloaded<T: Send + Sync + 'static>(Option<Arc<T>>);

impl<T: Send + Sync + 'static> Offloaded<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(Arc::new(client)))
    }

    /// The client; `None` never happens before the drop.
    pub(super) const fn get(&self) -> Option<&Arc<T>> {
        self.0.as_ref()
    }

    /// For one who drops it on a thread where it may block.
    pub(super) fn into_inner(mut self) -> Option<Arc<T>> {
        self.0.take()
    }
}

impl<T: Send + Sync + 'static> Drop for Offloaded<T> {
    fn drop(&mut self) {
        let Some(client) = self.0.take() else { return };
        if let Err(error) = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(client)) {
            tracing::warn!(%error, "no thread to close a kafka client on; it was closed in place");
        }
    }
}

/// Where SASL OAUTHBEARER's tokens come from. librdkafka asks for the next one before the last has ended.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    secret: Secret,
    runtime: Option<tokio::runtime::Handle>,
}

impl Tokens {
    pub(super) fn new(config: &Config) -> Self {
        Self { secret: config.token.clone(), runtime: tokio::runtime::Handle::try_current().ok() }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.secret != Secret::None
    }

    /// On a thread of its own, since librdkafka may ask on one of the runtime's.
    pub(super) fn next(&self) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let runtime = self.runtime.as_ref().ok_or("no runtime to look a token up")?;
        let looked_up = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(self.secret.look_up())).join());
        let token = looked_up.map_err(|_panicked| "looking the token up failed")??;
        let token = token.ok_or("`token_file` or `token_command` says where the token is")?;
        let now_s = crate::clock::wall().0 / 1_000;
        let end_s = secret::end_s(&token).unwrap_or(now_s + TOKEN_LIFE_S);
        let lifetime_ms = i64::try_from(end_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        Ok(OAuthToken { principal_name: secret::subject(&token).unwrap_or_default(), lifetime_ms, token })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cluster that nobody connects to.
    pub(in crate::links::kafka) fn config() -> Config {
        Config::of(&["a:1", "b:2"])
    }

    #[test]
    fn the_reason_that_helps_wins_over_the_many_that_follow_from_it() {
        let watch = Watch::default();
        assert_eq!(watch.reason(), None);
        watch.hear(Some(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(watch.reason(), Some(LinkError::Transient("1/1 brokers are down".to_owned())));
        watch.hear(Some(RDKafkaErrorCode::BrokerTransportFailure), "connection refused");
        watch.hear(Some(RDKafkaErrorCode::Authentication), "wrong password");
        watch.hear(Some(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(watch.reason(), Some(LinkError::Misconfigured("wrong password".to_owned())));
    }

    #[test]
    fn only_a_certificate_makes_a_tls_failure_hopeless() {
        let watch = Watch::default();
        watch.hear(Some(RDKafkaErrorCode::SSL), "SSL handshake failed: disconnected");
        assert!(matches!(watch.reason(), Some(LinkError::Transient(_))));
        watch.hear(Some(RDKafkaErrorCode::SSL), "SSL handshake failed: certificate verify failed");
        assert!(matches!(watch.reason(), Some(LinkError::Misconfigured(_))));
    }

    #[test]
    fn r23_bytes_that_a_full_socket_took_are_progress_and_retries_are_not() {
        let traffic =
            |sent_bytes, held_up, connects, retries| Traffic { broker: 1, sent_bytes, held_up, connects, retries };
        for (before, now, moved) in [
            (traffic(10, true, 1, 0), traffic(20, false, 1, 0), true),
            (traffic(10, false, 1, 0), traffic(20, true, 1, 0), false),
            (traffic(10, true, 1, 0), traffic(10, true, 1, 0), false),
            (traffic(10, true, 1, 0), traffic(20, true, 2, 0), false),
            (traffic(10, true, 1, 0), traffic(20, true, 1, 1), false),
        ] {
            assert_eq!(now.has_moved_since(&before), moved, "{now:?}");
        }
    }

    #[test]
    fn the_promise_s_settings_win_over_the_operator_s() {
        let options = [("linger.ms", "50"), ("enable.auto.offset.store", "true")];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let config = Config { options, ..config() };
        let identity = Identity { site: "s".into(), link: crate::router::LinkId::new("l") };
        let settings = settings(&config, &identity, &[("linger.ms", "5")], &[("enable.auto.offset.store", "false")]);
        assert_eq!(settings.get("linger.ms"), Some("50"));
        assert_eq!(settings.get("enable.auto.offset.store"), Some("false"));
        assert_eq!(settings.get("bootstrap.servers"), Some("a:1,b:2"));
    }
}
