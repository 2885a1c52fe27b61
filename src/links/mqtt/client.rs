//! What both directions and both protocol versions share: who we are at the remote, the socket, the poll task, and
//! the neutral words in which the version modules answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::dial::{Leave, Stream, Way, fail_back};
use super::{Config, Version, v4, v5};
use crate::buffer::Place;
use crate::hub::Publication;
use crate::links::line::Line;
use crate::links::tls::{Roots, client_config};
use crate::links::{Answer, Identity, LinkError, Outgoing, secret};
use crate::message::{Properties, Qos, headers};
use crate::topic::TopicName;

/// Publishes that may be open towards one remote, whatever is configured: bounds the client's tables.
pub(super) const IN_FLIGHT_MAX: u16 = 4096;

/// Our Receive Maximum: unacknowledged QoS 1 and 2 messages that the remote may have sent us.
pub(super) const RECEIVE_MAX: u16 = 512;

/// Messages received and not yet taken by the runner. More than [`RECEIVE_MAX`], for QoS 0 has no window.
const INBOUND_MAX: usize = 1024;

/// Requests that the crate takes up in one go: without it half the speed (STACK.md).
pub(super) const REQUEST_BATCH: usize = 64;

/// How long the remote keeps the subscribing session while we are away: a week, so that a long weekend loses nothing.
/// Remotes may grant less.
pub(super) const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;

/// How long a good-bye waits for publishes that are still open. It queues behind the acknowledgements, which an immediate
/// DISCONNECT would overtake.
pub(super) const GOOD_BYE_WAIT: Duration = Duration::from_millis(400);

/// What a link announces, and what its will says.
pub(super) const ONLINE: &str = "online";
pub(super) const OFFLINE: &str = "offline";

/// Packet length that the fixed header can tell (MQTT 5.0 section 1.5.5), for remotes that name no maximum.
const PACKET_BYTES_MAX: u64 = 268_435_455;

/// Which of a link's two clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

/// Everything that one client needs to connect.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) client_id: String,
    pub(super) direction: Direction,
    /// Where this client says `online` and `offline`.
    pub(super) state_topic: Option<String>,
    /// The address that an attempt is under way at. One that was given up without an answer is passed over by the next.
    trying: Option<usize>,
    /// How often the first address was returned to and did not let us in.
    in_vain: u32,
    /// It was left to return to the first address.
    returning: bool,
    /// What survives of the subscribing session between connections of one process.
    pub(super) session: Arc<v5::KeptSession>,
}

/// What the remote's CONNACK allows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    pub(super) receive_max: Option<u16>,
    pub(super) packet_max: Option<u32>,
    pub(super) qos_max: Option<u8>,
}

/// A PUBLISH to be sent.
#[derive(Clone, Debug)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) expiry_s: Option<u32>,
    pub(super) properties: Properties,
    pub(super) stamps: Vec<(&'static str, String)>,
}

impl Publish {
    /// A record's, stamped by the site where the version has a place for stamps.
    pub(super) fn of(record: &Outgoing, stamped_by: Option<&str>, qos_max: Qos) -> Self {
        let message = &record.envelope.message;
        Self {
            topic: record.envelope.destination.to_string(),
            payload: message.payload.clone(),
            qos: message.qos.min(qos_max).max(Qos::AtLeastOnce),
            retain: message.retain,
            expiry_s: record.expiry_left_s,
            properties: stamped_by.map(|_| counted(&message.properties)).unwrap_or_default(),
            stamps: stamped_by.map(|site| record.stamps(site)).unwrap_or_default(),
        }
    }
}

/// With one more hop, where a bridge of HiveMQ counts them.
fn counted(properties: &Properties) -> Properties {
    let mut properties = properties.clone();
    headers::count_hmq_hop(&mut properties);
    properties
}

/// A PUBLISH that was received.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) again: bool,
    pub(super) expiry_s: Option<u32>,
    pub(super) properties: Properties,
    pub(super) ack: Option<Ack>,
}

impl Inbound {
    /// What the hub takes, on this topic.
    pub(super) fn publication(self, topic: TopicName) -> Publication {
        Publication {
            topic,
            payload: self.payload,
            qos: self.qos,
            retain: self.retain,
            expiry_s: self.expiry_s,
            time_ms: None,
            properties: self.properties,
            client_id: None,
            user: None,
            packet_id: None,
            id: None,
        }
    }
}

/// An acknowledgement, prepared when the message came.
#[derive(Debug)]
pub(super) enum Ack {
    V4(rumqttc_v4::ManualAck),
    V5(rumqttc_v5::ManualAck),
}

/// The answer to a publish, when it comes; `None` when the connection ended first.
pub(super) type Pending = BoxFuture<'static, Option<Answer>>;

/// What became of a request to the crate.
pub(super) enum Asked<T> {
    Taken(T),
    QueueFull,
    Gone,
    /// The crate says that the request can never be sent.
    Invalid(String),
}

/// A filter's answer in a SUBACK: the granted QoS, or the remote's word.
pub(super) type Subscribed = Result<Qos, String>;

/// A handle to the poll task's client.
#[derive(Clone, Debug)]
pub(super) enum Client {
    V4(rumqttc_v4::AsyncClient),
    V5(rumqttc_v5::AsyncClient),
}

/// A connection that is up. Dropping it ends the poll task and closes the socket.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) granted: Granted,
    pub(super) inbound: mpsc::Receiver<Inbound>,
    pub(super) line: Line,
    pub(super) polling: Polling,
    state_topic: Option<String>,
}

/// What one attempt logs in with.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) way: Way,
    pub(super) line: Line,
    /// User and password.
    pub(super) login: Option<(String, String)>,
}

/// The poll task. Dropping it ends the task, and with it the socket.
#[derive(Debug)]
pub(super) struct Polling(JoinSet<LinkError>);

impl Settings {
    /// The client id is the configured one, or `SITE-LINK`; with `-out` and `-in` where both directions are used (R25).
    pub(super) fn new(config: &Config, identity: &Identity, direction: Direction, both: bool) -> Self {
        let id = config.client_id.clone().unwrap_or_else(|| format!("{}-{}", identity.site, identity.link));
        let client_id = match direction {
            Direction::Out if both => format!("{id}-out"),
            Direction::In if both => format!("{id}-in"),
            Direction::Out | Direction::In => id,
        };
        let session = Arc::new(v5::KeptSession::new(&client_id));
        // One of both tells; the publishing one, since its is the buffer.
        let announces = direction == Direction::Out || !both;
        let state_topic = config.state_topic.clone().filter(|_| announces);
        let config = config.clone();
        Self { config, client_id, direction, session, state_topic, trying: None, in_vain: 0, returning: false }
    }

    /// Connects and logs in by the crate.
    pub(super) async fn connect(&mut self) -> Result<(Live, Leave), LinkError> {
        self.connect_by(&ByCrate).await
    }

    /// Connects and logs in, at the first of the addresses that lets us. The caller puts a timeout around it.
    pub(super) async fn connect_by<D: Dial>(&mut self, by: &D) -> Result<(D::Live, Leave), LinkError> {
        let tls = self.config.addresses.iter().any(|address| address.tls);
        let tls = tls.then(|| client_config(&self.config.tls, Roots::Instead)).transpose()?;
        let mut password = self.config.password.look_up().await?;
        let refused = match self.connect_with(by, tls.as_ref(), password.as_deref()).await {
            Err(refused @ LinkError::Misconfigured(_)) if self.config.password.may_change() => refused,
            other => return other,
        };
        // It may have been renewed since: another one is tried at once.
        let again = self.config.password.look_up().await?;
        if again == password {
            return Err(refused);
        }
        password = again;
        self.connect_with(by, tls.as_ref(), password.as_deref()).await
    }

    async fn connect_with<D: Dial>(
        &mut self,
        by: &D,
        tls: Option<&Arc<rustls::ClientConfig>>,
        password: Option<&str>,
    ) -> Result<(D::Live, Leave), LinkError> {
        let login = match (&self.config.user, password) {
            (None, None) => None,
            (user, password) => Some((user.clone().unwrap_or_default(), password.unwrap_or_default().to_owned())),
        };
        let count = self.config.addresses.len();
        let begin = self.trying.map_or(0, |given_up| given_up + 1);
        let mut failed = Vec::new();
        for at in (begin..begin + count).map(|at| at % count.max(1)) {
            self.trying = Some(at);
            let way = self.way(at, tls)?;
            let attempt = Attempt { way, line: Line::default(), login: login.clone() };
            let address = attempt.way.address.to_string();
            match by.attempt(self, attempt).await {
                Ok(live) => {
                    self.trying = None;
                    return Ok((live, self.plan_leave(at, tls, password)?));
                }
                Err(error) => failed.push(at_remote(&address, error)),
            }
        }
        self.trying = None;
        Err(all_failed(failed))
    }

    fn way(&self, at: usize, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<Way, LinkError> {
        let missing = || LinkError::Misconfigured("there is no address".to_owned());
        let address = self.config.addresses.get(at).cloned().ok_or_else(missing)?;
        let name = address.tls.then(|| self.config.tls.name(&address.host)).transpose()?;
        let bytes_max = usize::try_from(self.config.max_packet_size.0).unwrap_or(usize::MAX);
        Ok(Way { address, tls: tls.cloned().zip(name), bytes_max })
    }

    /// What should end this connection although it is well.
    fn plan_leave(
        &mut self,
        at: usize,
        tls: Option<&Arc<rustls::ClientConfig>>,
        password: Option<&str>,
    ) -> Result<Leave, LinkError> {
        let mut leave = Leave::default();
        self.in_vain = if at == 0 { 0 } else { self.in_vain + u32::from(self.returning) };
        self.returning = at != 0;
        if at != 0 {
            let address = self.config.addresses.get(at).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(client_id = %self.client_id, address, "connected to another address than the first");
            leave.when_back(self.way(0, tls)?, fail_back(self.config.fail_back, self.in_vain));
        }
        if self.config.password.may_change()
            && let Some(pause) = password.and_then(|token| secret::renewal(token, crate::clock::wall().0 / 1_000))
        {
            leave.renew_after(pause);
        }
        Ok(leave)
    }
}

impl Config {
    /// Largest packet that may be sent: ours and the remote's limit.
    pub(super) fn packet_max(&self, granted: Option<u32>) -> u64 {
        let remote = granted.map_or(PACKET_BYTES_MAX, u64::from);
        self.max_packet_size.0.min(remote)
    }
}

/// How a connection is made of an attempt.
pub(super) trait Dial: Sync {
    type Live: Send;

    /// Connects and logs in.
    fn attempt(
        &self,
        settings: &Settings,
        attempt: Attempt,
    ) -> impl Future<Output = Result<Self::Live, LinkError>> + Send;
}

/// By the crate of the version.
#[derive(Clone, Copy, Debug)]
struct ByCrate;

impl Dial for ByCrate {
    type Live = Live;

    async fn attempt(&self, settings: &Settings, attempt: Attempt) -> Result<Live, LinkError> {
        let (inbound_tx, inbound) = mpsc::channel(INBOUND_MAX);
        let (up_tx, up) = oneshot::channel();
        let mut polling = JoinSet::new();
        let line = attempt.line.clone();
        let client = match settings.config.version {
            Version::V4 => {
                let (client, eventloop) = v4::client(settings, attempt);
                polling.spawn(v4::poll(eventloop, up_tx, inbound_tx));
                Client::V4(client)
            }
            Version::V5 => {
                let (client, eventloop) = v5::client(settings, attempt);
                polling.spawn(v5::poll(eventloop, up_tx, inbound_tx));
                Client::V5(client)
            }
        };
        let (mut polling, state_topic) = (Polling(polling), settings.state_topic.clone());
        match up.await {
            Ok(granted) => {
                if let Some(topic) = &state_topic {
                    client.announce(topic, ONLINE);
                }
                Ok(Live { client, granted, inbound, line, polling, state_topic })
            }
            Err(_ended) => Err(polling.ended().await),
        }
    }
}

impl Attempt {
    /// Opens the stream.
    pub(super) fn dialling(
        &self,
    ) -> impl Fn() -> BoxFuture<'static, std::io::Result<Box<dyn Stream>>> + Send + Sync + use<> {
        let (way, line) = (self.way.clone(), self.line.clone());
        move || {
            let (way, line) = (way.clone(), line.clone());
            Box::pin(async move { way.dial(&line).await })
        }
    }
}

fn at_remote(address: &str, error: LinkError) -> LinkError {
    let at = |words: String| format!("{address}: {words}");
    match error {
        LinkError::Transient(words) => LinkError::Transient(at(words)),
        LinkError::Misconfigured(words) => LinkError::Misconfigured(at(words)),
    }
}

/// What all addresses say. Where one may be well the next time, it is worth trying.
fn all_failed(failed: Vec<LinkError>) -> LinkError {
    let hopeless = failed.iter().all(|error| matches!(error, LinkError::Misconfigured(_)));
    let words: Vec<String> = failed.iter().map(ToString::to_string).collect();
    if hopeless { LinkError::Misconfigured(words.join("; ")) } else { LinkError::Transient(words.join("; ")) }
}

impl Live {
    /// DISCONNECT, and the end of the poll task.
    pub(super) async fn close(mut self) {
        if let Some(topic) = &self.state_topic {
            self.client.announce(topic, OFFLINE);
        }
        if self.client.disconnect().await {
            self.polling.ended().await;
        }
    }
}

impl Polling {
    /// Waits for the end of the connection, and says why. Cancel safe.
    pub(super) async fn ended(&mut self) -> LinkError {
        match self.0.join_next().await {
            Some(Ok(error)) => error,
            Some(Err(error)) => LinkError::Transient(format!("the client failed: {error}")),
            None => LinkError::Transient("the connection is closed".to_owned()),
        }
    }
}

impl Client {
    /// Puts one PUBLISH on its way.
    pub(super) fn publish(&self, place: Place, publish: Publish) -> Asked<Pending> {
        match self {
            Self::V4(client) => v4::publish(client, place, publish),
            Self::V5(client) => v5::publish(client, place, publish),
        }
    }

    /// Says how the link is, retained. Nothing waits for it.
    fn announce(&self, topic: &str, state: &'static str) {
        match self {
            Self::V4(client) => v4::announce(client, topic, state),
            Self::V5(client) => v5::announce(client, topic, state),
        }
    }

    /// Encoded size of a PUBLISH, packet id included.
    pub(super) fn size(&self, publish: &Publish) -> u64 {
        match self {
            Self::V4(_) => v4::size(publish),
            Self::V5(_) => v5::size(publish),
        }
    }

    /// Subscribes; the answers are in the order of `filters`.
    pub(super) async fn subscribe(&self, filters: &[String], qos: Qos) -> Result<Vec<Subscribed>, String> {
        match self {
            Self::V4(client) => v4::subscribe(client, filters, qos).await,
            Self::V5(client) => v5::subscribe(client, filters, qos).await,
        }
    }

    /// Hands an acknowledgement to the poll task; `Ok(Some)` gives it back: the queue is full.
    pub(super) fn acknowledge(&self, ack: Ack) -> Asked<Option<Ack>> {
        match (self, ack) {
            (Self::V4(client), Ack::V4(ack)) => match client.try_manual_ack(ack.clone()) {
                Ok(()) => Asked::Taken(None),
                Err(rumqttc_v4::ClientError::RequestChannelFull(_)) => Asked::Taken(Some(Ack::V4(ack))),
                Err(_) => Asked::Gone,
            },
            (Self::V5(client), Ack::V5(ack)) => match client.try_manual_ack(ack.clone()) {
                Ok(()) => Asked::Taken(None),
                Err(rumqttc_v5::ClientError::RequestChannelFull(_)) => Asked::Taken(Some(Ack::V5(ack))),
                Err(_) => Asked::Gone,
            },
            (Self::V4(_), Ack::V5(_)) | (Self::V5(_), Ack::V4(_)) => Asked::Gone,
        }
    }

    async fn disconnect(&self) -> bool {
        match self {
            Self::V4(client) => client.disconnect_with_timeout(GOOD_BYE_WAIT).await.is_ok(),
            Self::V5(client) => client.disconnect_with_timeout(GOOD_BYE_WAIT).await.is_ok(),
        }
    }
}

/// Hands a received message to the runner. A PUBLISH with a window always finds room; without one (QoS 0, or a 3.1.1
/// remote that sends ahead without limit) the socket is left unread until there is room, for at most half the
/// keep-alive, so that nothing is dropped; after that the connection ends and the remote sends again.
pub(super) async fn hand_over(
    inbound: &mpsc::Sender<Inbound>,
    message: Inbound,
    keep_alive: Duration,
) -> Result<(), LinkError> {
    match inbound.try_send(message) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Closed(_)) => Err(LinkError::Transient("closed".to_owned())),
        Err(mpsc::error::TrySendError::Full(message)) => {
            let patience = if keep_alive.is_zero() { Duration::from_secs(15) } else { keep_alive / 2 };
            match tokio::time::timeout(patience, inbound.send(message)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => {
                    Err(LinkError::Transient("the remote sends faster than the targets take".to_owned()))
                }
            }
        }
    }
}
