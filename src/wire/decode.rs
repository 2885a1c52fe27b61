//! Bytes to packets.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};

use super::error::DecodeError;
use super::packet::{
    Ack, Auth, AuthProperties, Connack, ConnackProperties, Connect, ConnectProperties, Disconnect,
    DisconnectProperties, Packet, PacketId, PacketKind, Password, Publish, PublishProperties, ReasonProperties,
    RetainHandling, Suback, Subscribe, SubscribeOptions, Subscription, Text, Unsuback, Unsubscribe, UserProperties,
    Version, Will, WillProperties,
};
use super::primitives::{NOT_MINIMAL, Reader, VARINT_MAX, ZERO_PACKET_ID, varint, varint_len};
use super::property;
use super::reason::ReasonCode;
use crate::message::Qos;

/// The longest that a packet can be: five bytes of fixed header and the largest remaining length.
pub const PACKET_BYTES_MAX: usize = VARINT_MAX + 5;

/// Who we are: what may arrive depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Takes what a connection has read and gives whole packets.
///
/// It holds no bytes. After an error it gives that error for ever: the stream has no next packet.
#[derive(Clone, Debug)]
pub struct Decoder {
    role: Role,
    version: Option<Version>,
    size_max: usize,
    missing: usize,
    failed: Option<DecodeError>,
}

/// What the fixed header says.
#[derive(Clone, Copy)]
struct Head {
    kind: PacketKind,
    flags: u8,
    len: usize,
    remaining: usize,
}

impl Decoder {
    /// For a server's end of a connection: the first packet is a CONNECT, and it decides the version. Packets of
    /// more than `size_max` bytes, fixed header included, are refused as soon as their length is read.
    #[must_use]
    pub const fn server(size_max: usize) -> Self {
        Self { role: Role::Server, version: None, size_max, missing: 1, failed: None }
    }

    /// From now on packets may have `size_max` bytes.
    pub const fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
    }

    /// For a client's end of a connection that speaks `version`.
    #[must_use]
    pub const fn client(version: Version, size_max: usize) -> Self {
        Self { role: Role::Client, version: Some(version), size_max, missing: 1, failed: None }
    }

    /// What the connection speaks: known from the CONNECT on, even if that was wrong further on. With a version
    /// that we do not speak it stays `None`, and the answer that all clients understand is a CONNACK of 3.1.1.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// After [`Decoder::decode`] gave `None`: how many bytes at least are missing for a packet. It is a hint for
    /// the size of the next read, and never more than `size_max`.
    #[must_use]
    pub const fn missing(&self) -> usize {
        self.missing
    }

    /// The next packet, if it is there as a whole; it is taken off the front of `input`. Payload and topic share
    /// the bytes of `input` and keep that whole read alive: what is kept for long is copied.
    ///
    /// # Errors
    /// What the peer did wrong. Nothing more will come out of this decoder.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.next(input).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn next(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(head) = self.head(input)? else { return Ok(None) };
        let total = head.len + head.remaining;
        if input.len() < total {
            self.missing = total - input.len();
            return Ok(None);
        }
        if let Some(packet) = plain_ack(head, input)? {
            input.advance(total);
            return Ok(Some(packet));
        }
        let frame = input.split_to(total).freeze();
        let mut reader = Reader::new(&frame, head.len);
        let packet = self.body(head, &mut reader).and_then(|packet| reader.finish().map(|()| packet));
        packet.map(Some).map_err(|error| error.within(head.kind))
    }

    /// `None`: more bytes are needed.
    fn head(&mut self, input: &[u8]) -> Result<Option<Head>, DecodeError> {
        self.missing = 2_usize.saturating_sub(input.len()).max(1);
        let Some((&first, rest)) = input.split_first() else { return Ok(None) };
        let kind = self.kind(first)?;
        let (remaining, bytes) = match varint(rest) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => return Err(error.within(kind)),
        };
        let len = 1 + bytes;
        if len + remaining > self.size_max {
            return Err(self.too_large(len + remaining).within(kind));
        }
        let head = Head { kind, flags: first & 0x0F, len, remaining };
        self.shortest(head).map_err(|error| error.within(kind))?;
        Ok(Some(head))
    }

    /// Refuses a length in more bytes than it needs (MQTT-1.5.5-1). 3.x does not ask for the shortest form, and which version it is a
    /// CONNECT says itself.
    fn shortest(&self, head: Head) -> Result<(), DecodeError> {
        let is_long = head.len != 1 + varint_len(head.remaining);
        if is_long && self.version == Some(Version::V5) { Err(NOT_MINIMAL) } else { Ok(()) }
    }

    fn too_large(&self, size: usize) -> DecodeError {
        let text = format!("the packet has {size} bytes, and {} are allowed", self.size_max);
        DecodeError { code: ReasonCode::PacketTooLarge, packet: None, text: Cow::Owned(text) }
    }

    /// The packet type, if it may come here at all, with the flags that belong to it (MQTT-2.1.3-1).
    fn kind(&self, first: u8) -> Result<PacketKind, DecodeError> {
        let kind = PacketKind::from_bits(first >> 4)
            .ok_or(DecodeError::malformed("the packet type is 0; types are 1 to 15"))?;
        self.expected(kind).map_err(|error| error.within(kind))?;
        // 3.1 sets DUP where it sends one of the three packets with flags again.
        let mask = if self.version == Some(Version::V31) && kind.flags() != 0 { 0x07 } else { 0x0F };
        if kind == PacketKind::Publish || first & mask == kind.flags() {
            Ok(kind)
        } else {
            Err(DecodeError::malformed("the flags in the first byte are not those of this packet type").within(kind))
        }
    }

    fn expected(&self, kind: PacketKind) -> Result<(), DecodeError> {
        use PacketKind::{
            Auth, Connack, Connect, Disconnect, Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe,
        };
        match (self.role, self.version, kind) {
            (Role::Server, None, Connect) => Ok(()),
            (Role::Server, None, _) => Err(DecodeError::protocol("the first packet has to be CONNECT")),
            (Role::Server, Some(_), Connect) => Err(DecodeError::protocol("a second CONNECT")),
            (Role::Server, _, Connack | Suback | Unsuback | Pingresp) => {
                Err(DecodeError::protocol("only a server sends this packet"))
            }
            (Role::Client, _, Connect | Subscribe | Unsubscribe | Pingreq) => {
                Err(DecodeError::protocol("only a client sends this packet"))
            }
            (_, Some(Version::V31 | Version::V311), Auth) => {
                Err(DecodeError::malformed("packet type 15 does not exist in MQTT 3.x"))
            }
            (Role::Client, Some(Version::V31 | Version::V311), Disconnect) => {
                Err(DecodeError::protocol("in MQTT 3.x only a client sends this packet"))
            }
            _ => Ok(()),
        }
    }

    fn body(&mut self, head: Head, reader: &mut Reader<'_>) -> Result<Packet, DecodeError> {
        if head.kind == PacketKind::Connect {
            let packet = connect(reader, &mut self.version)?;
            return self.shortest(head).map(|()| packet);
        }
        // Only a server's decoder has no version yet, and that takes only a CONNECT.
        let version = self.version.unwrap_or(Version::V311);
        match head.kind {
            PacketKind::Connect => Err(DecodeError::protocol("a second CONNECT")),
            PacketKind::Connack => connack(reader, version),
            PacketKind::Publish => publish(head.flags, reader, version, self.role),
            PacketKind::Puback => ack(head.kind, reader, version).map(Packet::Puback),
            PacketKind::Pubrec => ack(head.kind, reader, version).map(Packet::Pubrec),
            PacketKind::Pubrel => ack(head.kind, reader, version).map(Packet::Pubrel),
            PacketKind::Pubcomp => ack(head.kind, reader, version).map(Packet::Pubcomp),
            PacketKind::Subscribe => subscribe(reader, version),
            PacketKind::Suback => suback(reader, version),
            PacketKind::Unsubscribe => unsubscribe(reader, version),
            PacketKind::Unsuback => unsuback(reader, version),
            PacketKind::Pingreq => Ok(Packet::Pingreq),
            PacketKind::Pingresp => Ok(Packet::Pingresp),
            PacketKind::Disconnect => disconnect(reader, version, self.role),
            PacketKind::Auth => auth(reader),
        }
    }
}

/// The acknowledgement of two bytes, which is nearly every one: read without taking a share of the input.
fn plain_ack(head: Head, input: &[u8]) -> Result<Option<Packet>, DecodeError> {
    let wrap = if head.kind == PacketKind::Puback {
        Packet::Puback
    } else if head.kind == PacketKind::Pubrec {
        Packet::Pubrec
    } else if head.kind == PacketKind::Pubrel {
        Packet::Pubrel
    } else if head.kind == PacketKind::Pubcomp {
        Packet::Pubcomp
    } else {
        return Ok(None);
    };
    let Some(&id) = input.get(head.len..).and_then(<[u8]>::first_chunk::<2>).filter(|_| head.remaining == 2) else {
        return Ok(None);
    };
    let id = PacketId::new(u16::from_be_bytes(id)).ok_or_else(|| ZERO_PACKET_ID.within(head.kind))?;
    Ok(Some(wrap(Ack::success(id))))
}

fn connect(reader: &mut Reader<'_>, chosen: &mut Option<Version>) -> Result<Packet, DecodeError> {
    let version = protocol(reader)?;
    *chosen = Some(version);
    let flags = ConnectFlags::read(reader.u8()?, version)?;
    let keep_alive_s = reader.u16()?;
    let properties = if version.is_v5() { property::read_connect(reader)? } else { ConnectProperties::default() };
    let client_id = reader.boxed()?;
    let will = match flags.will {
        Some((qos, retain)) => Some(will(reader, version, qos, retain)?),
        None => None,
    };
    let user = if flags.user { Some(reader.boxed()?) } else { None };
    let password = if flags.password { Some(Password(own(&reader.binary()?))) } else { None };
    let clean_start = flags.clean_start;
    Ok(Packet::Connect(Box::new(Connect {
        version,
        clean_start,
        keep_alive_s,
        client_id,
        will,
        user,
        password,
        properties,
    })))
}

/// What lives as long as the session must not keep the read alive.
fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn protocol(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let name = reader.text()?;
    match (name.as_bytes(), reader.u8()?) {
        (b"MQIsdp", 3) => Ok(Version::V31),
        (b"MQTT", 4) => Ok(Version::V311),
        (b"MQTT", 5) => Ok(Version::V5),
        (_, level) => Err(DecodeError {
            code: ReasonCode::UnsupportedProtocolVersion,
            packet: None,
            text: Cow::Owned(format!(
                "protocol {:?} level {level}; spoken here are \"MQIsdp\" 3, \"MQTT\" 4 and \"MQTT\" 5",
                name.as_str().chars().take(16).collect::<String>(),
            )),
        }),
    }
}

struct ConnectFlags {
    clean_start: bool,
    will: Option<(Qos, bool)>,
    user: bool,
    password: bool,
}

impl ConnectFlags {
    fn read(bits: u8, version: Version) -> Result<Self, DecodeError> {
        let bit = |at: u8| bits & (1 << at) != 0;
        if bit(0) {
            return Err(DecodeError::malformed("the reserved connect flag is set"));
        }
        let qos = Qos::from_bits((bits >> 3) & 3).ok_or(DecodeError::malformed("the will has QoS 3"))?;
        let (will, retain, user, password) = (bit(2), bit(5), bit(7), bit(6));
        if !will && (qos != Qos::AtMostOnce || retain) {
            return Err(DecodeError::malformed("will flags are set without a will"));
        }
        if password && !user && !version.is_v5() {
            return Err(DecodeError::malformed("a password is there without a user name, as only MQTT 5 allows"));
        }
        Ok(Self { clean_start: bit(1), will: will.then_some((qos, retain)), user, password })
    }
}

fn will(reader: &mut Reader<'_>, version: Version, qos: Qos, retain: bool) -> Result<Will, DecodeError> {
    let mut properties = if version.is_v5() { property::read_will(reader)? } else { WillProperties::default() };
    let data = &mut properties.application.correlation_data;
    *data = data.take().map(|data| own(&data));
    let topic = Text::from(&*reader.boxed()?);
    check_topic(&topic, "the will's topic is empty", "the will's topic holds a wildcard")?;
    Ok(Will { topic, payload: own(&reader.binary()?), qos, retain, properties })
}

fn check_topic(topic: &Text, empty: &'static str, wildcard: &'static str) -> Result<(), DecodeError> {
    if topic.is_empty() {
        return Err(DecodeError::new(ReasonCode::TopicNameInvalid, empty));
    }
    if topic.as_bytes().iter().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(DecodeError::new(ReasonCode::TopicNameInvalid, wildcard));
    }
    Ok(())
}

fn connack(reader: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    let flags = reader.u8()?;
    if flags > 1 && version != Version::V31 {
        return Err(DecodeError::malformed("a reserved acknowledge flag is set"));
    }
    let byte = reader.u8()?;
    let (code, properties) = if version.is_v5() {
        (reason(byte, PacketKind::Connack)?, property::read_connack(reader)?)
    } else {
        let code = ReasonCode::from_connack_return_code(byte);
        let code = code.ok_or(DecodeError::malformed("the return code is reserved; codes are 0 to 5"))?;
        (code, ConnackProperties::default())
    };
    let session_present = flags & 1 == 1 && version != Version::V31;
    if session_present && code.is_error() {
        return Err(DecodeError::protocol("a refusal says that a session is present"));
    }
    Ok(Packet::Connack(Box::new(Connack { session_present, code, properties })))
}

/// A reason code that may stand in this packet.
fn reason(byte: u8, kind: PacketKind) -> Result<ReasonCode, DecodeError> {
    let code = ReasonCode::from_byte(byte)
        .ok_or(DecodeError::malformed("the reason code is one that MQTT 5.0 does not know"))?;
    if code.belongs_in(kind) {
        Ok(code)
    } else {
        Err(DecodeError::protocol("the reason code is not one of this packet type"))
    }
}

fn publish(flags: u8, reader: &mut Reader<'_>, version: Version, role: Role) -> Result<Packet, DecodeError> {
    let (dup, retain) = (flags & 0x08 != 0, flags & 0x01 != 0);
    let qos = Qos::from_bits((flags >> 1) & 3).ok_or(DecodeError::malformed("the QoS is 3; it is 0, 1 or 2"))?;
    if dup && qos == Qos::AtMostOnce {
        return Err(DecodeError::malformed("DUP is set with QoS 0, which is never sent again"));
    }
    let topic = reader.text()?;
    let id = if qos == Qos::AtMostOnce { None } else { Some(reader.packet_id()?) };
    let properties = if version.is_v5() { property::read_publish(reader, role)? } else { PublishProperties::default() };
    if topic.is_empty() && version.is_v5() {
        if properties.topic_alias.is_none() {
            return Err(DecodeError::protocol("the topic is empty and there is no topic alias"));
        }
    } else {
        check_topic(&topic, "the topic is empty", "the topic holds a wildcard; those belong to filters")?;
    }
    Ok(Packet::Publish(Publish { topic, payload: reader.rest(), qos, dup, retain, id, properties }))
}

fn ack(kind: PacketKind, reader: &mut Reader<'_>, version: Version) -> Result<Ack, DecodeError> {
    let mut ack = Ack::success(reader.packet_id()?);
    // The reason code may be left out, and the properties too.
    if version.is_v5() && !reader.is_done() {
        ack.code = reason(reader.u8()?, kind)?;
        if !reader.is_done() {
            ack.properties = property::read_reason(reader)?;
        }
    }
    Ok(ack)
}

fn subscribe(reader: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    let id = reader.packet_id()?;
    let (subscription_id, user) =
        if version.is_v5() { property::read_subscribe(reader)? } else { (None, UserProperties::new()) };
    let mut subscriptions = Vec::new();
    while !reader.is_done() {
        let filter = reader.text()?;
        let options = subscribe_options(reader.u8()?, version)?;
        if options.no_local && filter.as_bytes().starts_with(b"$share/") {
            return Err(DecodeError::protocol("No Local is set on a shared subscription"));
        }
        subscriptions.push(Subscription { filter, options });
    }
    if subscriptions.is_empty() {
        return Err(DecodeError::protocol("there is no topic filter; there is at least one"));
    }
    Ok(Packet::Subscribe(Subscribe { id, subscription_id, user, subscriptions }))
}

fn subscribe_options(bits: u8, version: Version) -> Result<SubscribeOptions, DecodeError> {
    let reserved = match version {
        // 3.1 leaves them undefined.
        Version::V31 => 0,
        Version::V311 => 0b1111_1100,
        Version::V5 => 0b1100_0000,
    };
    if bits & reserved != 0 {
        return Err(DecodeError::malformed("reserved bits of the subscription options are set"));
    }
    let qos = Qos::from_bits(bits & 3).ok_or(match version {
        Version::V5 => DecodeError::protocol("the maximum QoS is 3; it is 0, 1 or 2"),
        Version::V31 | Version::V311 => DecodeError::malformed("the requested QoS is 3; it is 0, 1 or 2"),
    })?;
    if !version.is_v5() {
        return Ok(SubscribeOptions { qos, ..SubscribeOptions::default() });
    }
    let retain_handling = match (bits >> 4) & 3 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::DoNotSend,
        _ => return Err(DecodeError::protocol("the retain handling is 3; it is 0, 1 or 2")),
    };
    let (no_local, retain_as_published) = (bits & 0x04 != 0, bits & 0x08 != 0);
    Ok(SubscribeOptions { qos, no_local, retain_as_published, retain_handling })
}

fn suback(reader: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    let id = reader.packet_id()?;
    let properties = if version.is_v5() { property::read_reason(reader)? } else { ReasonProperties::default() };
    let mut codes = Vec::with_capacity(reader.left());
    while !reader.is_done() {
        let byte = reader.u8()?;
        if !version.is_v5() && !matches!(byte, 0 | 1 | 2 | 0x80) {
            return Err(DecodeError::malformed("the return code is not 0, 1, 2 or 0x80"));
        }
        codes.push(reason(byte, PacketKind::Suback)?);
    }
    if codes.is_empty() {
        return Err(DecodeError::protocol("there is no reason code; there is one for each filter"));
    }
    Ok(Packet::Suback(Suback { id, codes, properties }))
}

fn unsubscribe(reader: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    let id = reader.packet_id()?;
    let user = if version.is_v5() { property::read_unsubscribe(reader)? } else { UserProperties::new() };
    let mut filters = Vec::new();
    while !reader.is_done() {
        filters.push(reader.text()?);
    }
    if filters.is_empty() {
        return Err(DecodeError::protocol("there is no topic filter; there is at least one"));
    }
    Ok(Packet::Unsubscribe(Unsubscribe { id, user, filters }))
}

fn unsuback(reader: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    let id = reader.packet_id()?;
    let (mut codes, mut properties) = (Vec::new(), ReasonProperties::default());
    if version.is_v5() {
        properties = property::read_reason(reader)?;
        while !reader.is_done() {
            codes.push(reason(reader.u8()?, PacketKind::Unsuback)?);
        }
        if codes.is_empty() {
            return Err(DecodeError::protocol("there is no reason code; there is one for each filter"));
        }
    }
    Ok(Packet::Unsuback(Unsuback { id, codes, properties }))
}

fn disconnect(reader: &mut Reader<'_>, version: Version, role: Role) -> Result<Packet, DecodeError> {
    let mut found = Disconnect { code: ReasonCode::Success, properties: DisconnectProperties::default() };
    if version.is_v5() && !reader.is_done() {
        found.code = reason(reader.u8()?, PacketKind::Disconnect)?;
        if !reader.is_done() {
            found.properties = property::read_disconnect(reader, role)?;
        }
    }
    Ok(Packet::Disconnect(found))
}

fn auth(reader: &mut Reader<'_>) -> Result<Packet, DecodeError> {
    // The short form says success and nothing else (MQTT 5.0 section 3.15.2.1).
    if reader.is_done() {
        return Ok(Packet::Auth(Auth { code: ReasonCode::Success, properties: AuthProperties::default() }));
    }
    let code = reason(reader.u8()?, PacketKind::Auth)?;
    Ok(Packet::Auth(Auth { code, properties: property::read_auth(reader)? }))
}
