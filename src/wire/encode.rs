//! Packets to bytes.
//!
//! Every packet is first counted, then written, by the same code: a length cannot differ from what follows it, and
//! a packet that cannot be written leaves nothing behind.

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};

use super::error::EncodeError;
use super::packet::{
    Ack, AuthProperties, Connack, Connect, DisconnectProperties, Packet, PacketId, PacketKind, Publish,
    ReasonProperties, Suback, Subscribe, SubscribeOptions, SubscriptionId, Unsuback, Unsubscribe, Version,
};
use super::primitives::{Count, Out, varint_len};
use super::property;
use super::reason::ReasonCode;
use crate::message::{Properties, Qos};

/// Appends `packet` as `version` writes it. What the version does not have (properties, reason codes) is left out.
///
/// # Errors
/// The packet cannot be written in this version, or at all; `out` is as it was.
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    if let Packet::Publish(publish) = packet {
        return encode_publish(&PublishParts::of(publish), version, out);
    }
    let remaining = remaining_len(packet, version)?;
    out.reserve(1 + varint_len(remaining) + remaining);
    Out::u8(out, first_byte(packet.kind()));
    Out::varint(out, remaining);
    write_body(packet, version, out);
    Ok(())
}

/// The size of `packet` as `version` writes it, fixed header included: what a peer's Maximum Packet Size limits.
///
/// # Errors
/// The packet cannot be written in this version, or at all.
pub fn encoded_len(packet: &Packet, version: Version) -> Result<usize, EncodeError> {
    if let Packet::Publish(publish) = packet {
        return PublishParts::of(publish).encoded_len(version);
    }
    remaining_len(packet, version).map(|remaining| 1 + varint_len(remaining) + remaining)
}

/// One of the four acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// QoS 1: taken over.
    Puback,
    /// QoS 2: taken over.
    Pubrec,
    /// QoS 2: the id may be forgotten.
    Pubrel,
    /// QoS 2: it is forgotten.
    Pubcomp,
}

/// Appends an acknowledgement without properties: 4 bytes, or 5 where MQTT 5 has something else than success to
/// say. MQTT 3.x cannot say it: do not acknowledge there what was refused.
pub fn encode_ack(kind: AckKind, id: PacketId, code: ReasonCode, version: Version, out: &mut BytesMut) {
    let kind = match kind {
        AckKind::Puback => PacketKind::Puback,
        AckKind::Pubrec => PacketKind::Pubrec,
        AckKind::Pubrel => PacketKind::Pubrel,
        AckKind::Pubcomp => PacketKind::Pubcomp,
    };
    let [high, low] = id.get().to_be_bytes();
    let first = first_byte(kind);
    if version.is_v5() && code != ReasonCode::Success {
        out.put_slice(&[first, 3, high, low, code.byte()]);
    } else {
        out.put_slice(&[first, 2, high, low]);
    }
}

/// What a PUBLISH is made of, borrowed from wherever it lives.
#[derive(Clone, Copy, Debug)]
pub struct PublishParts<'a> {
    /// Empty only with an alias.
    pub topic: &'a str,
    /// Opaque.
    pub payload: &'a [u8],
    /// The guarantee.
    pub qos: Qos,
    /// Sent before.
    pub dup: bool,
    /// As the receiver is to see it.
    pub retain: bool,
    /// Needed above QoS 0; not written at QoS 0.
    pub id: Option<PacketId>,
    /// MQTT 5: Message Expiry Interval, what is left of it.
    pub expiry_s: Option<u32>,
    /// MQTT 5: Topic Alias.
    pub topic_alias: Option<NonZeroU16>,
    /// MQTT 5: of all subscriptions that match.
    pub subscription_ids: &'a [SubscriptionId],
    /// MQTT 5: the rest.
    pub properties: &'a Properties,
}

impl<'a> PublishParts<'a> {
    /// Those of a packet.
    #[must_use]
    pub fn of(publish: &'a Publish) -> Self {
        Self {
            topic: publish.topic.as_str(),
            payload: &publish.payload,
            qos: publish.qos,
            dup: publish.dup,
            retain: publish.retain,
            id: publish.id,
            expiry_s: publish.properties.expiry_s,
            topic_alias: publish.properties.topic_alias,
            subscription_ids: &publish.properties.subscription_ids,
            properties: &publish.properties.application,
        }
    }

    /// The size of the packet as `version` writes it, fixed header included.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn encoded_len(&self, version: Version) -> Result<usize, EncodeError> {
        self.remaining_len(version).map(|remaining| 1 + varint_len(remaining) + remaining)
    }

    fn remaining_len(&self, version: Version) -> Result<usize, EncodeError> {
        let mut count = Count::of(|count| self.write_head(version, None, count));
        count.skip(self.payload.len() + self.id_len());
        count.checked()
    }

    const fn id_len(&self) -> usize {
        if matches!(self.qos, Qos::AtMostOnce) { 0 } else { 2 }
    }

    fn first_byte(&self) -> u8 {
        let dup = self.dup && self.qos != Qos::AtMostOnce;
        0x30 | u8::from(dup) << 3 | self.qos.bits() << 1 | u8::from(self.retain)
    }

    /// From the topic to the properties.
    fn write_head<O: Out>(&self, version: Version, id: Option<PacketId>, out: &mut O) {
        out.text(self.topic);
        if let Some(id) = id {
            out.u16(id.get());
        }
        if version.is_v5() {
            property::write_publish(self.expiry_s, self.topic_alias, self.subscription_ids, self.properties, out);
        }
    }

    fn write_all_but_payload(&self, version: Version, id: Option<PacketId>, remaining: usize, out: &mut BytesMut) {
        Out::u8(out, self.first_byte());
        Out::varint(out, remaining);
        self.write_head(version, id, out);
    }
}

/// Appends a PUBLISH as `version` writes it.
///
/// # Errors
/// It cannot be written, or has no packet id above QoS 0; `out` is as it was.
pub fn encode_publish(parts: &PublishParts<'_>, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    let id = parts.id.filter(|_| parts.qos != Qos::AtMostOnce);
    if id.is_none() && parts.qos != Qos::AtMostOnce {
        return Err(EncodeError::NoPacketId);
    }
    let remaining = parts.remaining_len(version)?;
    out.reserve(1 + varint_len(remaining) + remaining);
    parts.write_all_but_payload(version, id, remaining, out);
    out.put_slice(parts.payload);
    Ok(())
}

/// A PUBLISH that is encoded once for all receivers with the same version, QoS, retain flag and subscription ids:
/// only packet id and DUP differ between them, and are set while it is appended. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedPublish {
    /// Fixed header to properties, with a packet id to be written over where there is one.
    head: Bytes,
    /// Where in `head` the packet id stands; `None` at QoS 0.
    id_at: Option<usize>,
    payload: Bytes,
}

impl SharedPublish {
    /// Encodes the head; the payload is shared. `parts.payload` is not looked at, nor are packet id and DUP.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(parts: &PublishParts<'_>, payload: Bytes, version: Version) -> Result<Self, EncodeError> {
        let parts = PublishParts { payload: &payload, dup: false, ..*parts };
        let remaining = parts.remaining_len(version)?;
        let mut head = BytesMut::with_capacity(1 + varint_len(remaining) + remaining - payload.len());
        let needs_id = parts.qos != Qos::AtMostOnce;
        // Any id: each receiver's own is written over it.
        let id = needs_id.then_some(PacketId(NonZeroU16::MIN));
        parts.write_all_but_payload(version, id, remaining, &mut head);
        let id_at = needs_id.then_some(1 + varint_len(remaining) + 2 + parts.topic.len());
        Ok(Self { head: head.freeze(), id_at, payload })
    }

    /// The size of the packet, fixed header included.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Whether a packet id has to be given.
    #[must_use]
    pub const fn needs_id(&self) -> bool {
        self.id_at.is_some()
    }

    /// What follows the head.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Appends the whole packet: for a small payload.
    ///
    /// # Errors
    /// [`EncodeError::NoPacketId`]; `out` is as it was.
    pub fn append(&self, id: Option<PacketId>, dup: bool, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.append_head(id, dup, out)?;
        out.put_slice(&self.payload);
        Ok(())
    }

    /// Appends all but the payload: for a large one that is shared and written behind it.
    ///
    /// # Errors
    /// [`EncodeError::NoPacketId`]; `out` is as it was.
    pub fn append_head(&self, id: Option<PacketId>, dup: bool, out: &mut BytesMut) -> Result<(), EncodeError> {
        let Some(id_at) = self.id_at else {
            out.put_slice(&self.head);
            return Ok(());
        };
        let id = id.ok_or(EncodeError::NoPacketId)?;
        let start = out.len();
        out.put_slice(&self.head);
        let written = out.get_mut(start..).unwrap_or_default();
        if let Some(first) = written.first_mut().filter(|_| dup) {
            *first |= 0x08;
        }
        if let Some(place) = written.get_mut(id_at..).and_then(<[u8]>::first_chunk_mut::<2>) {
            *place = id.get().to_be_bytes();
        }
        Ok(())
    }
}

/// Type and flags, for all but PUBLISH.
const fn first_byte(kind: PacketKind) -> u8 {
    (kind as u8) << 4 | kind.flags()
}

fn remaining_len(packet: &Packet, version: Version) -> Result<usize, EncodeError> {
    if matches!(packet, Packet::Auth(_)) && !version.is_v5() {
        return Err(EncodeError::NotInVersion { packet: PacketKind::Auth, version });
    }
    Count::of(|count| write_body(packet, version, count)).checked()
}

fn write_body<O: Out>(packet: &Packet, version: Version, out: &mut O) {
    match packet {
        // A CONNECT says its own version: it decides that of the connection.
        Packet::Connect(connect) => write_connect(connect, out),
        Packet::Connack(connack) => write_connack(connack, version, out),
        Packet::Publish(publish) => {
            PublishParts::of(publish).write_head(version, publish.id, out);
            out.put(&publish.payload);
        }
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            write_ack(ack, version, out);
        }
        Packet::Subscribe(subscribe) => write_subscribe(subscribe, version, out),
        Packet::Suback(suback) => write_suback(suback, version, out),
        Packet::Unsubscribe(unsubscribe) => write_unsubscribe(unsubscribe, version, out),
        Packet::Unsuback(unsuback) => write_unsuback(unsuback, version, out),
        Packet::Pingreq | Packet::Pingresp => {}
        Packet::Disconnect(disconnect) => {
            let plain = disconnect.properties == DisconnectProperties::default();
            if version.is_v5() && !(plain && disconnect.code == ReasonCode::Success) {
                out.u8(disconnect.code.byte());
                if !plain {
                    property::write_disconnect(&disconnect.properties, out);
                }
            }
        }
        Packet::Auth(auth) => {
            let plain = auth.properties == AuthProperties::default();
            if !(plain && auth.code == ReasonCode::Success) {
                out.u8(auth.code.byte());
                property::write_auth(&auth.properties, out);
            }
        }
    }
}

fn write_connect<O: Out>(connect: &Connect, out: &mut O) {
    let (name, level) = match connect.version {
        Version::V31 => ("MQIsdp", 3),
        Version::V311 => ("MQTT", 4),
        Version::V5 => ("MQTT", 5),
    };
    out.text(name);
    out.u8(level);
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.user.is_some()) << 7;
    out.u8(flags);
    out.u16(connect.keep_alive_s);
    if connect.version.is_v5() {
        property::write_connect(&connect.properties, out);
    }
    out.text(&connect.client_id);
    if let Some(will) = &connect.will {
        if connect.version.is_v5() {
            property::write_will(&will.properties, out);
        }
        out.text(will.topic.as_str());
        out.binary(&will.payload);
    }
    if let Some(user) = &connect.user {
        out.text(user);
    }
    if let Some(password) = &connect.password {
        out.binary(&password.0);
    }
}

fn write_connack<O: Out>(connack: &Connack, version: Version, out: &mut O) {
    // 3.1 has no such flag, and no version has it in a refusal.
    let present = connack.session_present && version != Version::V31 && !connack.code.is_error();
    out.u8(u8::from(present));
    if version.is_v5() {
        out.u8(connack.code.byte());
        property::write_connack(&connack.properties, out);
    } else {
        out.u8(connack.code.connack_return_code());
    }
}

fn write_ack<O: Out>(ack: &Ack, version: Version, out: &mut O) {
    out.u16(ack.id.get());
    let plain = ack.properties == ReasonProperties::default();
    if version.is_v5() && !(plain && ack.code == ReasonCode::Success) {
        out.u8(ack.code.byte());
        if !plain {
            property::write_reason(&ack.properties, out);
        }
    }
}

fn write_subscribe<O: Out>(subscribe: &Subscribe, version: Version, out: &mut O) {
    out.u16(subscribe.id.get());
    if version.is_v5() {
        property::write_subscribe(subscribe.subscription_id, &subscribe.user, out);
    }
    for subscription in &subscribe.subscriptions {
        out.text(subscription.filter.as_str());
        out.u8(options_byte(subscription.options, version));
    }
}

fn options_byte(options: SubscribeOptions, version: Version) -> u8 {
    let qos = options.qos.bits();
    if !version.is_v5() {
        return qos;
    }
    let flags = u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
    qos | flags | (options.retain_handling as u8) << 4
}

fn write_suback<O: Out>(suback: &Suback, version: Version, out: &mut O) {
    out.u16(suback.id.get());
    if version.is_v5() {
        property::write_reason(&suback.properties, out);
    }
    for code in &suback.codes {
        let code = if code.is_error() && !version.is_v5() { ReasonCode::UnspecifiedError } else { *code };
        out.u8(code.byte());
    }
}

fn write_unsubscribe<O: Out>(unsubscribe: &Unsubscribe, version: Version, out: &mut O) {
    out.u16(unsubscribe.id.get());
    if version.is_v5() {
        property::write_unsubscribe(&unsubscribe.user, out);
    }
    for filter in &unsubscribe.filters {
        out.text(filter.as_str());
    }
}

fn write_unsuback<O: Out>(unsuback: &Unsuback, version: Version, out: &mut O) {
    out.u16(unsuback.id.get());
    if version.is_v5() {
        property::write_reason(&unsuback.properties, out);
        for code in &unsuback.codes {
            out.u8(code.byte());
        }
    }
}
