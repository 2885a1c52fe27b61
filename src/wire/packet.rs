//! What travels: one type a packet, with only the properties that MQTT 5 allows in it.
//!
//! The same types serve all versions: what a version does not have stays at its default and is not written.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;

use super::reason::ReasonCode;
use crate::message::{Properties, Qos};

/// User properties, in order, repeats kept.
pub type UserProperties = Vec<(Box<str>, Box<str>)>;

/// One MQTT control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A client asks for a session.
    Connect(Box<Connect>),
    /// The server's answer to it.
    Connack(Box<Connack>),
    /// A message.
    Publish(Publish),
    /// QoS 1: taken over.
    Puback(Ack),
    /// QoS 2: taken over.
    Pubrec(Ack),
    /// QoS 2: the id may be forgotten.
    Pubrel(Ack),
    /// QoS 2: it is forgotten.
    Pubcomp(Ack),
    /// A client asks for messages.
    Subscribe(Subscribe),
    /// The server's answer to it.
    Suback(Suback),
    /// A client wants no more of them.
    Unsubscribe(Unsubscribe),
    /// The server's answer to it.
    Unsuback(Unsuback),
    /// A client asks whether the server is there.
    Pingreq,
    /// It is.
    Pingresp,
    /// The end, and why.
    Disconnect(Disconnect),
    /// A step of an enhanced authentication (MQTT 5).
    Auth(Auth),
}

impl Packet {
    /// Leaves out what a packet may do without: Reason String and User Properties of anything but a PUBLISH.
    pub fn strip_reason(&mut self) {
        let (reason, user) = match self {
            Self::Connack(packet) => (&mut packet.properties.reason, &mut packet.properties.user),
            Self::Disconnect(packet) => (&mut packet.properties.reason, &mut packet.properties.user),
            Self::Auth(packet) => (&mut packet.properties.reason, &mut packet.properties.user),
            Self::Puback(ack) | Self::Pubrec(ack) | Self::Pubrel(ack) | Self::Pubcomp(ack) => {
                (&mut ack.properties.reason, &mut ack.properties.user)
            }
            Self::Suback(packet) => (&mut packet.properties.reason, &mut packet.properties.user),
            Self::Unsuback(packet) => (&mut packet.properties.reason, &mut packet.properties.user),
            Self::Connect(_)
            | Self::Publish(_)
            | Self::Subscribe(_)
            | Self::Unsubscribe(_)
            | Self::Pingreq
            | Self::Pingresp => return,
        };
        *reason = None;
        user.clear();
    }

    /// Which packet it is.
    #[must_use]
    pub fn kind(&self) -> PacketKind {
        match self {
            Self::Connect(_) => PacketKind::Connect,
            Self::Connack(_) => PacketKind::Connack,
            Self::Publish(_) => PacketKind::Publish,
            Self::Puback(_) => PacketKind::Puback,
            Self::Pubrec(_) => PacketKind::Pubrec,
            Self::Pubrel(_) => PacketKind::Pubrel,
            Self::Pubcomp(_) => PacketKind::Pubcomp,
            Self::Subscribe(_) => PacketKind::Subscribe,
            Self::Suback(_) => PacketKind::Suback,
            Self::Unsubscribe(_) => PacketKind::Unsubscribe,
            Self::Unsuback(_) => PacketKind::Unsuback,
            Self::Pingreq => PacketKind::Pingreq,
            Self::Pingresp => PacketKind::Pingresp,
            Self::Disconnect(_) => PacketKind::Disconnect,
            Self::Auth(_) => PacketKind::Auth,
        }
    }
}

/// The packet type: the upper four bits of the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PacketKind {
    /// CONNECT.
    Connect = 1,
    /// CONNACK.
    Connack = 2,
    /// PUBLISH.
    Publish = 3,
    /// PUBACK.
    Puback = 4,
    /// PUBREC.
    Pubrec = 5,
    /// PUBREL.
    Pubrel = 6,
    /// PUBCOMP.
    Pubcomp = 7,
    /// SUBSCRIBE.
    Subscribe = 8,
    /// SUBACK.
    Suback = 9,
    /// UNSUBSCRIBE.
    Unsubscribe = 10,
    /// UNSUBACK.
    Unsuback = 11,
    /// PINGREQ.
    Pingreq = 12,
    /// PINGRESP.
    Pingresp = 13,
    /// DISCONNECT.
    Disconnect = 14,
    /// AUTH.
    Auth = 15,
}

impl PacketKind {
    /// From the upper four bits of the first byte; `None` for 0.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Connect,
            2 => Self::Connack,
            3 => Self::Publish,
            4 => Self::Puback,
            5 => Self::Pubrec,
            6 => Self::Pubrel,
            7 => Self::Pubcomp,
            8 => Self::Subscribe,
            9 => Self::Suback,
            10 => Self::Unsubscribe,
            11 => Self::Unsuback,
            12 => Self::Pingreq,
            13 => Self::Pingresp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The lower four bits of the first byte, for all but PUBLISH (MQTT 5.0 table 2-2).
    pub(super) const fn flags(self) -> u8 {
        if matches!(self, Self::Pubrel | Self::Subscribe | Self::Unsubscribe) { 0x02 } else { 0x00 }
    }

    /// The name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Connack => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::Puback => "PUBACK",
            Self::Pubrec => "PUBREC",
            Self::Pubrel => "PUBREL",
            Self::Pubcomp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::Suback => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::Unsuback => "UNSUBACK",
            Self::Pingreq => "PINGREQ",
            Self::Pingresp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        }
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The protocol version that a CONNECT chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`, 3).
    V31,
    /// MQTT 3.1.1 (`MQTT`, 4).
    V311,
    /// MQTT 5.0 (`MQTT`, 5).
    V5,
}

impl Version {
    /// Whether packets carry properties and reason codes.
    #[must_use]
    pub const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V31 => "3.1",
            Self::V311 => "3.1.1",
            Self::V5 => "5.0",
        })
    }
}

/// What ties an acknowledgement to what it acknowledges; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// `None` for 0.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A Subscription Identifier (MQTT 5.0 section 3.8.2.1.2): 1 to 268,435,455.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(NonZeroU32);

impl SubscriptionId {
    /// The largest: what a variable byte integer holds.
    pub const MAX: u32 = 268_435_455;

    /// `None` for 0 and beyond [`Self::MAX`].
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) if id.get() <= Self::MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Text that shares the bytes of the packet it came in: UTF-8 and without NUL, possibly empty. It keeps the whole
/// packet's bytes alive; what is kept for long is copied ([`Text::as_str`]).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Text(Bytes);

impl Text {
    /// For bytes that were checked already: the decoder's way.
    pub(super) const fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes: the key for a look-up without a check.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text. Costs a UTF-8 check (some nanoseconds for a topic), since this crate has no unsafe code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every way to make a `Text` goes through a check or a `&str`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Whether there is no character.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text.into_bytes()))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// By protocol name and level.
    pub version: Version,
    /// Clean Start (5), Clean Session (3.x).
    pub clean_start: bool,
    /// Seconds; 0: none.
    pub keep_alive_s: u16,
    /// May be empty: then the server gives one (5; 3.1.1 with a clean session) or refuses with 0x85.
    pub client_id: Box<str>,
    /// What to publish when the client is lost.
    pub will: Option<Will>,
    /// User Name.
    pub user: Option<Box<str>>,
    /// Password.
    pub password: Option<Password>,
    /// MQTT 5.
    pub properties: ConnectProperties,
}

/// A password: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub Bytes);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Properties of CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectProperties {
    /// Session Expiry Interval, seconds; absent: 0. `u32::MAX`: never.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum; absent: 65,535.
    pub receive_maximum: Option<NonZeroU16>,
    /// Maximum Packet Size; absent: no limit but the protocol's.
    pub maximum_packet_size: Option<NonZeroU32>,
    /// Topic Alias Maximum; absent: 0.
    pub topic_alias_maximum: Option<u16>,
    /// Request Response Information; absent: false.
    pub request_response_information: Option<bool>,
    /// Request Problem Information; absent: true.
    pub request_problem_information: Option<bool>,
    /// User Properties.
    pub user: UserProperties,
    /// Authentication Method.
    pub auth_method: Option<Box<str>>,
    /// Authentication Data; only with a method.
    pub auth_data: Option<Bytes>,
}

/// The will in a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// A topic name: not empty, no wildcard.
    pub topic: Text,
    /// Opaque.
    pub payload: Bytes,
    /// To publish with.
    pub qos: Qos,
    /// To publish with.
    pub retain: bool,
    /// MQTT 5.
    pub properties: WillProperties,
}

/// Will Properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WillProperties {
    /// Will Delay Interval, seconds; absent: 0.
    pub delay_s: Option<u32>,
    /// Message Expiry Interval, seconds.
    pub expiry_s: Option<u32>,
    /// Payload format, content type, response topic, correlation data, user properties.
    pub application: Properties,
}

/// CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connack {
    /// Session Present.
    pub session_present: bool,
    /// For 3.x it is written as the nearest return code (0 to 5).
    pub code: ReasonCode,
    /// MQTT 5.
    pub properties: ConnackProperties,
}

/// Properties of CONNACK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnackProperties {
    /// Session Expiry Interval, seconds; absent: as the client asked.
    pub session_expiry_s: Option<u32>,
    /// Receive Maximum; absent: 65,535.
    pub receive_maximum: Option<NonZeroU16>,
    /// Maximum QoS, 0 or 1; absent: 2.
    pub maximum_qos: Option<Qos>,
    /// Retain Available; absent: true.
    pub retain_available: Option<bool>,
    /// Maximum Packet Size.
    pub maximum_packet_size: Option<NonZeroU32>,
    /// Assigned Client Identifier.
    pub assigned_client_id: Option<Box<str>>,
    /// Topic Alias Maximum; absent: 0.
    pub topic_alias_maximum: Option<u16>,
    /// Reason String.
    pub reason: Option<Box<str>>,
    /// User Properties.
    pub user: UserProperties,
    /// Wildcard Subscription Available; absent: true.
    pub wildcard_subscriptions: Option<bool>,
    /// Subscription Identifiers Available; absent: true.
    pub subscription_ids: Option<bool>,
    /// Shared Subscription Available; absent: true.
    pub shared_subscriptions: Option<bool>,
    /// Server Keep Alive, seconds; absent: as the client asked.
    pub server_keep_alive_s: Option<u16>,
    /// Response Information.
    pub response_information: Option<Box<str>>,
    /// Server Reference.
    pub server_reference: Option<Box<str>>,
    /// Authentication Method.
    pub auth_method: Option<Box<str>>,
    /// Authentication Data.
    pub auth_data: Option<Bytes>,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// A topic name without wildcards; empty only with a topic alias (5).
    pub topic: Text,
    /// Opaque; shares the bytes of the read.
    pub payload: Bytes,
    /// The guarantee.
    pub qos: Qos,
    /// Sent before.
    pub dup: bool,
    /// To be kept as the topic's last value.
    pub retain: bool,
    /// Present exactly if the QoS is above 0.
    pub id: Option<PacketId>,
    /// MQTT 5.
    pub properties: PublishProperties,
}

/// Properties of PUBLISH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Message Expiry Interval, seconds.
    pub expiry_s: Option<u32>,
    /// Topic Alias.
    pub topic_alias: Option<NonZeroU16>,
    /// Subscription Identifiers; only from server to client.
    pub subscription_ids: Vec<SubscriptionId>,
    /// Payload format, content type, response topic, correlation data, user properties.
    pub application: Properties,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// What is acknowledged.
    pub id: PacketId,
    /// MQTT 5; `Success` in 3.x.
    pub code: ReasonCode,
    /// MQTT 5.
    pub properties: ReasonProperties,
}

impl Ack {
    /// Success, without properties.
    #[must_use]
    pub fn success(id: PacketId) -> Self {
        Self::new(id, ReasonCode::Success)
    }

    /// With `code`, without properties.
    #[must_use]
    pub fn new(id: PacketId, code: ReasonCode) -> Self {
        Self { id, code, properties: ReasonProperties::default() }
    }
}

/// Properties of the acknowledgements: a text for a person, and user properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasonProperties {
    /// Reason String.
    pub reason: Option<Box<str>>,
    /// User Properties.
    pub user: UserProperties,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// To be named by the SUBACK.
    pub id: PacketId,
    /// MQTT 5: Subscription Identifier, for all of its filters.
    pub subscription_id: Option<SubscriptionId>,
    /// MQTT 5: User Properties.
    pub user: UserProperties,
    /// At least one.
    pub subscriptions: Vec<Subscription>,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Not checked as a filter: a wrong one is answered by itself in the SUBACK (0x8F).
    pub filter: Text,
    /// How to deliver.
    pub options: SubscribeOptions,
}

/// Subscription options; in 3.x only the QoS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubscribeOptions {
    /// The highest to deliver with.
    pub qos: Qos,
    /// Not what this client published itself.
    pub no_local: bool,
    /// Deliver the retain flag as it was published.
    pub retain_as_published: bool,
    /// Whether retained messages are sent at subscribing.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent (MQTT 5.0 section 3.8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// 0: at each SUBSCRIBE.
    #[default]
    Send = 0,
    /// 1: only if the subscription is new.
    SendIfNew = 1,
    /// 2: not at all.
    DoNotSend = 2,
}

/// SUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suback {
    /// Of the SUBSCRIBE.
    pub id: PacketId,
    /// One for each filter, in its order. In 3.x every failure is written as 0x80.
    pub codes: Vec<ReasonCode>,
    /// MQTT 5.
    pub properties: ReasonProperties,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// To be named by the UNSUBACK.
    pub id: PacketId,
    /// MQTT 5: User Properties.
    pub user: UserProperties,
    /// At least one; not checked as filters.
    pub filters: Vec<Text>,
}

/// UNSUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsuback {
    /// Of the UNSUBSCRIBE.
    pub id: PacketId,
    /// MQTT 5: one for each filter, in its order; not written in 3.x.
    pub codes: Vec<ReasonCode>,
    /// MQTT 5.
    pub properties: ReasonProperties,
}

/// DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// MQTT 5; `Success` (normal disconnection) in 3.x.
    pub code: ReasonCode,
    /// MQTT 5.
    pub properties: DisconnectProperties,
}

/// Properties of DISCONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DisconnectProperties {
    /// Session Expiry Interval, seconds; only from client to server.
    pub session_expiry_s: Option<u32>,
    /// Reason String.
    pub reason: Option<Box<str>>,
    /// User Properties.
    pub user: UserProperties,
    /// Server Reference; only from server to client.
    pub server_reference: Option<Box<str>>,
}

/// AUTH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// `Success`, `ContinueAuthentication` or `ReAuthenticate`.
    pub code: ReasonCode,
    /// Beside it.
    pub properties: AuthProperties,
}

/// Properties of AUTH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthProperties {
    /// Authentication Method.
    pub method: Option<Box<str>>,
    /// Authentication Data.
    pub data: Option<Bytes>,
    /// Reason String.
    pub reason: Option<Box<str>>,
    /// User Properties.
    pub user: UserProperties,
}
