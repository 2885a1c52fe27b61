//! What comes into the hub, what goes out of it, and why something does not.

use std::sync::Arc;

use bytes::Bytes;

use super::{HeldRow, KeptChanges, Logged, Mark, Tails};
use crate::message::{Message, MessageId, Properties, Qos};
use crate::router::{Endpoint, LinkId};
use crate::topic::TopicName;

/// What a publisher brings, before the hub stamps it (id, event time, origin) into a [`Message`].
#[derive(Clone, Debug)]
pub struct Publication {
    /// Its topic.
    pub topic: TopicName,
    /// Opaque.
    pub payload: Bytes,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// Message Expiry Interval, seconds.
    pub expiry_s: Option<u32>,
    /// Event time by the remote (AMQP timestamp, Kafka timestamp), ms since the epoch; `None`: now.
    pub time_ms: Option<u64>,
    /// Properties, stamps of earlier gateways included (the hub adopts them).
    pub properties: Properties,
    /// Who, for MQTT clients of the built-in broker.
    pub client_id: Option<Arc<str>>,
    /// The client's user name.
    pub user: Option<Arc<str>>,
    /// For an inbound QoS 2 PUBLISH of a client: its packet id, handed through to [`Local::deliver`], so that the
    /// store commits the inbound id and the outbound entries as one unit (R18).
    pub packet_id: Option<u16>,
    /// Of one that its source would know again, so that it has the id that it had (R25); `None`: it gets one.
    pub id: Option<KnownAs>,
}

/// What a source knows of a message.
#[derive(Clone, Debug)]
pub struct KnownAs {
    /// The id that it had when it first came.
    pub id: MessageId,
    /// Which logs may have it: it was under way when the gateway was killed.
    pub logged: Option<Arc<Logged>>,
}

impl From<MessageId> for KnownAs {
    /// It cannot be in a log, as far as the source knows.
    fn from(id: MessageId) -> Self {
        Self { id, logged: None }
    }
}

/// Where a batch comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The broker, or a link.
    pub from: Endpoint,
    /// The RabbitMQ queue or Kafka topic.
    pub channel: Option<Arc<str>>,
    /// What it brings is taken also where it has come before (R12).
    pub takes_copies: bool,
}

/// One message for the built-in broker's subscribers.
#[derive(Clone, Debug)]
pub struct LocalDelivery<'a> {
    /// The topic to deliver on (a route may have changed it; `message.topic` is the original).
    pub topic: &'a TopicName,
    /// Shared by all receivers.
    pub message: &'a Arc<Message>,
    /// The publishing client (No Local; QoS 2 inbound state), for a client's own publish only.
    pub client_id: Option<&'a Arc<str>>,
    /// See [`Publication::packet_id`].
    pub packet_id: Option<u16>,
    /// For an inbound QoS 2 PUBLISH: where the logs end that it is about to be appended to. The store keeps it with the inbound
    /// id, for [`Hub::find`](super::Hub::find).
    pub tails: Tails,
    /// It is the first of those that its message brings: all of them are of one turn.
    pub begins: bool,
}

/// The built-in broker as the hub sees it: one more outlet.
pub trait Local: Send + Sync {
    /// Delivers to subscribers, stores what kept sessions and the retained store are owed. Does not wait: one answer for
    /// each delivery of its turn. Deliveries come in order; those behind the turn come again, once others had theirs.
    fn deliver(&self, batch: &[LocalDelivery<'_>]) -> Turn;

    /// Keeps what is known of copies (R12), soon, and answers whether it will. Does not wait.
    fn keep_copies(&self, changes: KeptChanges) -> bool;

    /// The last position that anything was stored at so far.
    fn staged(&self) -> Option<(Mark, u64)>;

    /// Keeps what a sample holds, and forgets, at the same moment, the one of that route and topic with the id that gave way to it. Does
    /// not wait.
    fn hold(&self, row: HeldRow, gave_way: Option<String>) -> Stored;

    /// Forgets it, soon.
    fn unhold(&self, route: &Arc<str>, topic: &Arc<str>, id: String);
}

/// What one turn has done of a batch.
#[derive(Clone, Debug)]
pub struct Turn {
    /// One for each of the first deliveries: at least all that the first message brings, and of each message all or none.
    pub stored: Vec<Stored>,
    /// What it cost, in units of tokio's budget of a task: of 128, and one for a read or a write.
    pub cost: u32,
}

impl From<Vec<Stored>> for Turn {
    /// One that has cost next to nothing.
    fn from(stored: Vec<Stored>) -> Self {
        Self { stored, cost: 0 }
    }
}

/// What a delivery needed of the broker's store.
#[derive(Clone, Debug)]
pub enum Stored {
    /// Nothing.
    Nothing,
    /// This position must be durable before its publisher is acknowledged (R1).
    At(Mark, u64),
    /// Room, and there is none: nothing of the delivery was done.
    NoRoom,
    /// Room among what is retained, and there is none: nothing of it was done.
    RetainedFull,
}

impl Stored {
    /// For what waits without room too: nobody waits for it.
    #[must_use]
    pub(super) fn or_nothing(self) -> Self {
        if matches!(self, Self::NoRoom) { Self::Nothing } else { self }
    }
}

/// Why a publication was not accepted; nothing of it was delivered or stored anywhere (R5).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// A target's buffer is full and its policy is `reject`: MQTT 5 reason 0x97.
    #[error("link `{link}` refuses: its buffer is full")]
    Full {
        /// Which.
        link: LinkId,
    },
    /// A target's buffer failed: MQTT 5 reason 0x80 (or 0x83).
    #[error("link `{link}` refuses: {reason}")]
    Failed {
        /// Which.
        link: LinkId,
        /// Why.
        reason: Arc<str>,
    },
    /// The broker's store has no room, for now: MQTT 5 reason 0x97.
    #[error("the broker's store takes nothing new: its disk is full or too slow")]
    StoreFull,
    /// As much is retained as may be, and this would be more: MQTT 5 reason 0x97.
    #[error("as much is retained as may be: `retained_messages_max` or `retained_bytes_max` of the broker")]
    RetainedFull,
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}
