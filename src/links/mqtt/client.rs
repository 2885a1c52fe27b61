//! What both directions and both protocol versions share: who we are at the remote, the socket, the poll task, and
//! the neutral words in which the version modules answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{Config, Version, tls, v4, v5};
use crate::buffer::Place;
use crate::links::line::Line;
use crate::links::{Answer, Identity, LinkError};
use crate::message::{Properties, Qos};

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
const GOOD_BYE_WAIT: Duration = Duration::from_millis(400);

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
    pub(super) tls: Option<Arc<ClientConfig>>,
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
        Self { config: config.clone(), client_id, direction, tls: None, session }
    }

    /// Connects and logs in. The caller puts a timeout around it.
    pub(super) async fn connect(&mut self) -> Result<Live, LinkError> {
        self.tls = self.config.tls.as_ref().map(tls::client_config).transpose()?;
        let line = Line::default();
        let (inbound_tx, inbound) = mpsc::channel(INBOUND_MAX);
        let (up_tx, up) = oneshot::channel();
        let mut polling = JoinSet::new();
        let client = match self.config.version {
            Version::V4 => {
                let (client, eventloop) = v4::client(self, &line);
                polling.spawn(v4::poll(eventloop, up_tx, inbound_tx));
                Client::V4(client)
            }
            Version::V5 => {
                let (client, eventloop) = v5::client(self, &line);
                polling.spawn(v5::poll(eventloop, up_tx, inbound_tx));
                Client::V5(client)
            }
        };
        match up.await {
            Ok(granted) => Ok(Live { client, granted, inbound, line, polling: Polling(polling) }),
            Err(_ended) => Err(self.at_remote(Polling(polling).ended().await)),
        }
    }

    /// Opens a socket, which `line` looks at.
    pub(super) fn socket(
        &self,
        line: &Line,
    ) -> impl Fn() -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync + use<> {
        let (host, port, line) = (self.config.host.clone(), self.config.port, line.clone());
        move || {
            let (host, line) = (host.clone(), line.clone());
            Box::pin(async move {
                let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
                stream.set_nodelay(true)?;
                line.watch(&stream)?;
                Ok(stream)
            })
        }
    }

    /// Largest packet that may be sent: ours and the remote's limit.
    pub(super) fn packet_max(&self, granted: Granted) -> u64 {
        let remote = granted.packet_max.map_or(PACKET_BYTES_MAX, u64::from);
        self.config.max_packet_size.0.min(remote)
    }

    fn at_remote(&self, error: LinkError) -> LinkError {
        let at = |words: String| format!("{}:{}: {words}", self.config.host, self.config.port);
        match error {
            LinkError::Transient(words) => LinkError::Transient(at(words)),
            LinkError::Misconfigured(words) => LinkError::Misconfigured(at(words)),
        }
    }
}

impl Live {
    /// DISCONNECT, and the end of the poll task.
    pub(super) async fn close(mut self) {
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

    /// Encoded size of a PUBLISH, packet id included.
    pub(super) fn size(&self, publish: &Publish) -> u64 {
        let size = match self {
            Self::V4(_) => v4::size(publish),
            Self::V5(_) => v5::size(publish),
        };
        u64::try_from(size).unwrap_or(u64::MAX)
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
