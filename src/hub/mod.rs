//! Where an accepted message is routed and offered to buffers. A value, not a task: `offer` runs in the publisher's
//! own task.
//!
//! CONTRACT: filled in by the integrator; broker and links code against these names.

mod receipt;

pub use crate::buffer::{Mark, MarkSender, Rejected};
pub use receipt::Receipt;

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{Message, Properties, Qos};
use crate::router::Endpoint;
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
}

/// Where a batch comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The broker, or a link.
    pub from: Endpoint,
    /// The RabbitMQ queue or Kafka topic.
    pub channel: Option<Arc<str>>,
}

/// One message for the built-in broker's subscribers.
#[derive(Clone, Debug)]
pub struct LocalDelivery {
    /// The topic to deliver on (a route may have changed it; `message.topic` is the original).
    pub topic: TopicName,
    /// Shared by all receivers.
    pub message: Arc<Message>,
    /// The publishing client (No Local; QoS 2 inbound state), for a client's own publish only.
    pub client_id: Option<Arc<str>>,
    /// See [`Publication::packet_id`].
    pub packet_id: Option<u16>,
}

/// The built-in broker as the hub sees it: one more outlet.
pub trait Local: Send + Sync {
    /// Delivers to subscribers, stores what kept sessions and the retained store are owed. Does not wait: the answer holds,
    /// for each delivery, the store position that must be durable before its publisher is acknowledged (R1), or
    /// `None` where nothing was stored. Deliveries come in order.
    fn deliver(&self, batch: &[LocalDelivery]) -> Vec<Option<(Mark, u64)>>;
}

/// Why a publication was not accepted; nothing of it was delivered or stored anywhere (R5).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// A target's buffer is full and its policy is `reject`: MQTT 5 reason 0x97.
    #[error("link `{link}` refuses: its buffer is full")]
    Full {
        /// Which.
        link: crate::router::LinkId,
    },
    /// A target's buffer failed: MQTT 5 reason 0x80 (or 0x83).
    #[error("link `{link}` refuses: {reason}")]
    Failed {
        /// Which.
        link: crate::router::LinkId,
        /// Why.
        reason: Arc<str>,
    },
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {/* private */}

impl Hub {
    /// Routes, admits, stamps, delivers locally and appends each publication of the batch, in order. Waits only for
    /// `when_full: block` (and, for QoS 2, for the store: R18). One answer for each publication: a receipt that settles
    /// when it is durable everywhere it must be, or why it was refused.
    pub async fn offer(&self, source: &Source, batch: Vec<Publication>) -> Vec<Result<Receipt, OfferError>> {
        let _ = (source, batch);
        unimplemented!()
    }
}
