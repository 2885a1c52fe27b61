//! MQTT 3.1, 3.1.1 and 5 on the wire: bytes in, packets out, and back.
//!
//! A [`Decoder`] takes what a connection has read and gives whole packets; [`encode()`] appends a packet to an output
//! buffer. What a peer sends wrong becomes a [`DecodeError`] that carries the MQTT 5 reason code to answer with.
//!
//! Invariants: no input panics; a packet above the allowed size is refused before it is buffered; what is allocated
//! grows with the bytes that came, never with a length that they claim (at worst a twelvefold, for a SUBSCRIBE of empty
//! filters); a packet that was decoded is one that the specification permits in itself. What needs state (topic aliases, packet ids in
//! use, the order of packets) is for the broker's connection and session.
//!
//! This module knows no socket, no clock, no session and no routing.

mod decode;
mod encode;
mod error;
mod packet;
mod primitives;
mod property;
mod reason;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, PACKET_BYTES_MAX};
pub use encode::{AckKind, PublishParts, SharedPublish, encode, encode_ack, encode_publish, encoded_len};
pub use error::{DecodeError, EncodeError};
pub use packet::{
    Ack, Auth, AuthProperties, Connack, ConnackProperties, Connect, ConnectProperties, Disconnect,
    DisconnectProperties, Packet, PacketId, PacketKind, Password, Publish, PublishProperties, ReasonProperties,
    RetainHandling, Suback, Subscribe, SubscribeOptions, Subscription, SubscriptionId, Text, Unsuback, Unsubscribe,
    UserProperties, Version, Will, WillProperties,
};
pub use reason::ReasonCode;
