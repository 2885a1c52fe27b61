//! What a peer can send wrong, and what cannot be written.

use std::borrow::Cow;
use std::fmt;

use super::packet::{PacketKind, Version};
use super::reason::ReasonCode;

/// What a peer sent wrong. The connection is beyond repair: answer with the code where the version allows it (a
/// CONNACK before the session is open, a DISCONNECT afterwards, nothing in MQTT 3.x), then close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What to answer.
    pub code: ReasonCode,
    /// In which packet, where that is known.
    pub packet: Option<PacketKind>,
    /// For a person: what is wrong, and what would be right.
    pub text: Cow<'static, str>,
}

impl DecodeError {
    pub(super) const fn new(code: ReasonCode, text: &'static str) -> Self {
        Self { code, packet: None, text: Cow::Borrowed(text) }
    }

    /// 0x81: the bytes cannot be read as the specification says.
    pub(super) const fn malformed(text: &'static str) -> Self {
        Self::new(ReasonCode::MalformedPacket, text)
    }

    /// 0x82: they can be read, but are not allowed.
    pub(super) const fn protocol(text: &'static str) -> Self {
        Self::new(ReasonCode::ProtocolError, text)
    }

    pub(super) fn within(mut self, packet: PacketKind) -> Self {
        self.packet = Some(packet);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packet {
            Some(packet) => write!(f, "{} in {packet}: {}", self.code, self.text),
            None => write!(f, "{}: {}", self.code, self.text),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Why a packet cannot be written. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A text, or binary data other than a payload, is longer than its 16-bit length can say.
    #[error("a text or a property is longer than 65535 bytes")]
    FieldTooLong,
    /// The packet is longer than its length can say.
    #[error("the packet is longer than 268435455 bytes")]
    PacketTooLong,
    /// A PUBLISH with QoS 1 or 2 has no packet id.
    #[error("a PUBLISH above QoS 0 has a packet id")]
    NoPacketId,
    /// AUTH exists only in MQTT 5.
    #[error("{packet} does not exist in MQTT {version}")]
    NotInVersion {
        /// Which.
        packet: PacketKind,
        /// Where.
        version: Version,
    },
}
