//! What travels through the gateway: a [`Message`] with its id, origin, event time and properties, and the
//! [`Envelope`] that a link's buffer keeps: a message with the address that a route gave it.
//!
//! This module knows no protocol: MQTT, AMQP and Kafka are mapped in `links` and `broker` (DESIGN.md section 6).

mod codec;
pub mod headers;
mod id;

pub use codec::{DecodeError, Head};
pub use id::{IdSource, MessageId, MessageIdError};

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::{Moment, WallMs};
use crate::topic::TopicName;

/// The delivery guarantee that was asked for (MQTT 5.0 section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0: nobody waits, nothing is repeated.
    #[default]
    AtMostOnce = 0,
    /// QoS 1: acknowledged, perhaps repeated.
    AtLeastOnce = 1,
    /// QoS 2: acknowledged, never repeated.
    ExactlyOnce = 2,
}

impl Qos {
    /// From the two bits on the wire; `None` for 3.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// The two bits on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// What MQTT 5 calls application properties of a PUBLISH, in the names of the MQTT 5.0 specification (3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Payload Format Indicator: the payload is UTF-8 text.
    pub payload_is_utf8: bool,
    /// Content Type.
    pub content_type: Option<Box<str>>,
    /// Response Topic.
    pub response_topic: Option<Box<str>>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// User Properties, in order, repeats kept.
    pub user: Vec<(Box<str>, Box<str>)>,
}

/// Why MQTT has no such text in a property (MQTT 5.0 sections 1.5.4 and 3.3.2.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitText {
    /// It ends a connection.
    #[error("a text with a NUL character, which MQTT has none of")]
    Nul,
    /// Its length has two bytes.
    #[error("a text of {0} bytes: MQTT takes {TEXT_BYTES_MAX}")]
    TooLong(usize),
    /// Where messages are published to.
    #[error("a topic with wildcards: nobody can publish to it")]
    Wildcard,
}

/// Of a text in a packet.
pub const TEXT_BYTES_MAX: usize = 65_535;

impl UnfitText {
    /// Of any text.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            Some(Self::TooLong(text.len()))
        } else {
            text.contains('\0').then_some(Self::Nul)
        }
    }

    /// Of a response topic.
    #[must_use]
    pub fn of_topic(text: &str) -> Option<Self> {
        Self::of(text).or_else(|| text.contains(['+', '#']).then_some(Self::Wildcard))
    }
}

impl Properties {
    /// What they take in memory, about: many short user properties take far more than their texts.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        let Self { content_type, response_topic, correlation_data, user, .. } = self;
        let pairs = user.iter().map(|(name, value)| name.len() + value.len() + PAIR_BYTES).sum::<usize>();
        let texts = [content_type, response_topic].into_iter().flatten().map(|text| text.len()).sum::<usize>();
        pairs + texts + correlation_data.as_ref().map_or(0, Bytes::len)
    }

    /// What of them MQTT cannot carry, as it is called there. Other protocols' headers may be anything.
    #[must_use]
    pub fn unfit(&self) -> Option<(&str, UnfitText)> {
        let content_type = self.content_type.as_deref().and_then(UnfitText::of).map(|unfit| ("content type", unfit));
        let topic = || self.response_topic.as_deref().and_then(UnfitText::of_topic);
        let correlation = || self.correlation_data.as_ref().map(Bytes::len).filter(|bytes| *bytes > TEXT_BYTES_MAX);
        let named = |(name, value): &'_ (Box<str>, Box<str>)| UnfitText::of(name).or_else(|| UnfitText::of(value));
        content_type
            .or_else(|| topic().map(|unfit| ("response topic", unfit)))
            .or_else(|| correlation().map(|bytes| ("correlation data", UnfitText::TooLong(bytes))))
            .or_else(|| self.user.iter().find_map(|pair| Some((&*pair.0, named(pair)?))))
    }
}

/// What a user property takes besides its texts: where they are, and what an allocation of each costs.
const PAIR_BYTES: usize = 80;

/// Where and by whom a message was first accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The site whose gateway accepted it first (`tg-site`).
    pub site: Arc<str>,
    /// The MQTT client id of its publisher (`tg-client`); absent for what came from a RabbitMQ queue or a Kafka topic.
    pub client_id: Option<Arc<str>>,
    /// The user name of its publisher (`tg-user`).
    pub user: Option<Arc<str>>,
    /// The sites that it has passed, oldest first, this one not included (`tg-path`, R12).
    pub path: Vec<Box<str>>,
    /// How many gateways it has passed (`tg-hops`).
    pub hops: u8,
}

/// A message as the gateway accepted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The same on all links and in every resend (R11).
    pub id: MessageId,
    /// The topic that it was published to, before any route.
    pub topic: TopicName,
    /// Opaque.
    pub payload: Bytes,
    /// As published.
    pub qos: Qos,
    /// As published: to be kept as the topic's last value.
    pub retain: bool,
    /// Event time: the first gateway's wall clock at acceptance, in milliseconds since the epoch (`tg-time`).
    pub time: WallMs,
    /// The clock that `time` comes from was not synchronised (`tg-time-unsync`).
    pub time_unsync: bool,
    /// Message Expiry Interval in seconds, counted from `accepted` (MQTT-3.3.2-6).
    pub expiry_s: Option<u32>,
    /// When this gateway accepted it: what `expiry_s` counts from (R8).
    pub accepted: Moment,
    /// Where it comes from.
    pub origin: Origin,
    /// What MQTT 5 carries beside the payload.
    pub properties: Properties,
}

impl Message {
    /// What is left of the Message Expiry Interval at `now`: `None` without one, `Some(0)` when it has lapsed.
    #[must_use]
    pub fn expiry_left_s(&self, now: Moment) -> Option<u32> {
        let waited = u32::try_from(now.since(self.accepted).as_secs()).unwrap_or(u32::MAX);
        self.expiry_s.map(|seconds| seconds.saturating_sub(waited))
    }

    /// What it counts for where it is kept for a topic or a session: payload, topic and properties, and what each message costs
    /// besides, about. `topic`: the one that it is kept on.
    #[must_use]
    pub fn kept_bytes(&self, topic: &TopicName) -> usize {
        self.payload.len() + topic.as_str().len() + self.properties.kept_bytes() + 128
    }

    /// Whether the Message Expiry Interval has lapsed at `now`.
    #[must_use]
    pub fn has_expired(&self, now: Moment) -> bool {
        self.expiry_left_s(now) == Some(0)
    }
}

/// A message on its way to one link: what a buffer's record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the route made of its `to`: an MQTT topic, a RabbitMQ routing key (still with `/`), a Kafka topic.
    pub destination: Box<str>,
    /// The Kafka key, where the route names one; default is the message's topic.
    pub key: Option<Box<str>>,
    /// Which of several records of one message for one link this is; 0 for the first (R11).
    pub ordinal: u16,
    /// Why its route could not make of the message what it should: it is never sent but becomes a dead letter (R28).
    pub failure: Option<Box<str>>,
    /// The route whose `batch` it is a part of: its sink sends several as one (R28).
    pub batch: Option<Box<str>>,
    /// The message.
    pub message: Message,
}

#[cfg(test)]
pub(crate) mod tests_support {
    //! A message to start a test from.

    use super::*;

    /// QoS 1 on `topic`, accepted at 1,000 ms by site `test`.
    pub(crate) fn message(topic: &str, payload: &'static [u8]) -> Message {
        Message {
            id: MessageId { site: "test".into(), run: 7, counter: 1 },
            topic: TopicName::new(topic).unwrap(),
            payload: Bytes::from_static(payload),
            qos: Qos::AtLeastOnce,
            retain: false,
            time: WallMs(1_000),
            time_unsync: false,
            expiry_s: None,
            accepted: Moment { wall: WallMs(1_000), up_ms: 1_000, boot: 1, synced: true },
            origin: Origin { site: "test".into(), ..Origin::default() },
            properties: Properties::default(),
        }
    }
}
