//! The properties of MQTT 5.0 (section 2.2.2): identifiers, reading with the rules for repeats and places, writing.
//!
//! One function a packet reads its properties and one writes them; they stand side by side and hold the list of what
//! is allowed there.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;

use super::decode::Role;
use super::error::DecodeError;
use super::packet::{
    AuthProperties, ConnackProperties, ConnectProperties, DisconnectProperties, PublishProperties, ReasonProperties,
    SubscriptionId, UserProperties, WillProperties,
};
use super::primitives::{Count, Out, Reader};
use super::reason::ReasonCode;
use crate::message::{Properties, Qos};

const PAYLOAD_FORMAT: u8 = 0x01;
const MESSAGE_EXPIRY: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
const SUBSCRIPTION_ID: u8 = 0x0B;
const SESSION_EXPIRY: u8 = 0x11;
const ASSIGNED_CLIENT_ID: u8 = 0x12;
const SERVER_KEEP_ALIVE: u8 = 0x13;
const AUTH_METHOD: u8 = 0x15;
const AUTH_DATA: u8 = 0x16;
const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
const WILL_DELAY: u8 = 0x18;
const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
const RESPONSE_INFORMATION: u8 = 0x1A;
const SERVER_REFERENCE: u8 = 0x1C;
const REASON_STRING: u8 = 0x1F;
const RECEIVE_MAXIMUM: u8 = 0x21;
const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
const TOPIC_ALIAS: u8 = 0x23;
const MAXIMUM_QOS: u8 = 0x24;
const RETAIN_AVAILABLE: u8 = 0x25;
const USER_PROPERTY: u8 = 0x26;
const MAXIMUM_PACKET_SIZE: u8 = 0x27;
const WILDCARD_SUBSCRIPTIONS: u8 = 0x28;
const SUBSCRIPTION_IDS: u8 = 0x29;
const SHARED_SUBSCRIPTIONS: u8 = 0x2A;

/// The properties of one packet, one after the other.
struct List<'a> {
    reader: Reader<'a>,
    /// A bit for each identifier that was there.
    seen: u64,
}

impl<'a> List<'a> {
    fn new(packet: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let len = packet.varint()?;
        Ok(Self { reader: packet.part(len)?, seen: 0 })
    }

    /// The next identifier. Only user properties and subscription identifiers may come again; whether the latter
    /// may is for the caller.
    fn next(&mut self) -> Result<Option<u8>, DecodeError> {
        if self.reader.is_done() {
            return Ok(None);
        }
        let id = self.reader.u8()?;
        if id > SHARED_SUBSCRIPTIONS {
            return Err(UNKNOWN);
        }
        let bit = 1_u64 << id;
        if self.seen & bit != 0 && id != USER_PROPERTY && id != SUBSCRIPTION_ID {
            return Err(TWICE);
        }
        self.seen |= bit;
        Ok(Some(id))
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::protocol("a property that is 0 or 1 has another value")),
        }
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.reader.u16()
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.reader.u32()
    }

    fn text(&mut self) -> Result<Box<str>, DecodeError> {
        self.reader.boxed()
    }

    fn binary(&mut self) -> Result<Bytes, DecodeError> {
        self.reader.binary()
    }

    fn user(&mut self, into: &mut UserProperties) -> Result<(), DecodeError> {
        let name = self.text()?;
        into.push((name, self.text()?));
        Ok(())
    }

    fn receive_maximum(&mut self) -> Result<NonZeroU16, DecodeError> {
        NonZeroU16::new(self.u16()?).ok_or(DecodeError::protocol("the receive maximum is 0; it is 1 to 65535"))
    }

    fn maximum_packet_size(&mut self) -> Result<NonZeroU32, DecodeError> {
        NonZeroU32::new(self.u32()?).ok_or(DecodeError::protocol("the maximum packet size is 0; it is at least 1"))
    }

    fn subscription_id(&mut self) -> Result<SubscriptionId, DecodeError> {
        let id = u32::try_from(self.reader.varint()?).unwrap_or_default();
        SubscriptionId::new(id).ok_or(DecodeError::protocol("the subscription identifier is 0; it is at least 1"))
    }
}

const TWICE: DecodeError = DecodeError::protocol("a property is there twice");
const UNKNOWN: DecodeError = DecodeError::malformed("a property has an identifier that MQTT 5.0 does not know");
// MQTT 5.0 section 2.2.2.2 calls this malformed, not a protocol error.
const MISPLACED: DecodeError = DecodeError::malformed("a property is there that is not allowed in this packet");

/// The length, then the properties.
fn put_list<O: Out>(out: &mut O, write: impl Fn(&mut dyn Out)) {
    out.varint(Count::of(|count| write(count)).len());
    write(out);
}

fn put_flag(out: &mut dyn Out, id: u8, value: Option<bool>) {
    if let Some(value) = value {
        out.u8(id);
        out.u8(u8::from(value));
    }
}

fn put_u16(out: &mut dyn Out, id: u8, value: Option<u16>) {
    if let Some(value) = value {
        out.u8(id);
        out.u16(value);
    }
}

fn put_u32(out: &mut dyn Out, id: u8, value: Option<u32>) {
    if let Some(value) = value {
        out.u8(id);
        out.u32(value);
    }
}

fn put_text(out: &mut dyn Out, id: u8, value: Option<&str>) {
    put_binary(out, id, value.map(str::as_bytes));
}

fn put_binary(out: &mut dyn Out, id: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.u8(id);
        out.binary(value);
    }
}

fn put_user(out: &mut dyn Out, user: &UserProperties) {
    for (name, value) in user {
        out.u8(USER_PROPERTY);
        out.text(name);
        out.text(value);
    }
}

pub(super) fn read_connect(packet: &mut Reader<'_>) -> Result<ConnectProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = ConnectProperties::default();
    while let Some(id) = list.next()? {
        match id {
            SESSION_EXPIRY => found.session_expiry_s = Some(list.u32()?),
            RECEIVE_MAXIMUM => found.receive_maximum = Some(list.receive_maximum()?),
            MAXIMUM_PACKET_SIZE => found.maximum_packet_size = Some(list.maximum_packet_size()?),
            TOPIC_ALIAS_MAXIMUM => found.topic_alias_maximum = Some(list.u16()?),
            REQUEST_RESPONSE_INFORMATION => found.request_response_information = Some(list.flag()?),
            REQUEST_PROBLEM_INFORMATION => found.request_problem_information = Some(list.flag()?),
            USER_PROPERTY => list.user(&mut found.user)?,
            AUTH_METHOD => found.auth_method = Some(list.text()?),
            AUTH_DATA => found.auth_data = Some(list.binary()?),
            _ => return Err(MISPLACED),
        }
    }
    if found.auth_data.is_some() && found.auth_method.is_none() {
        return Err(DecodeError::protocol("authentication data is there without an authentication method"));
    }
    Ok(found)
}

pub(super) fn write_connect<O: Out>(properties: &ConnectProperties, out: &mut O) {
    put_list(out, |out| {
        put_u32(out, SESSION_EXPIRY, properties.session_expiry_s);
        put_u16(out, RECEIVE_MAXIMUM, properties.receive_maximum.map(NonZeroU16::get));
        put_u32(out, MAXIMUM_PACKET_SIZE, properties.maximum_packet_size.map(NonZeroU32::get));
        put_u16(out, TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
        put_flag(out, REQUEST_RESPONSE_INFORMATION, properties.request_response_information);
        put_flag(out, REQUEST_PROBLEM_INFORMATION, properties.request_problem_information);
        put_user(out, &properties.user);
        put_text(out, AUTH_METHOD, properties.auth_method.as_deref());
        put_binary(out, AUTH_DATA, properties.auth_data.as_deref());
    });
}

pub(super) fn read_connack(packet: &mut Reader<'_>) -> Result<ConnackProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = ConnackProperties::default();
    while let Some(id) = list.next()? {
        match id {
            SESSION_EXPIRY => found.session_expiry_s = Some(list.u32()?),
            RECEIVE_MAXIMUM => found.receive_maximum = Some(list.receive_maximum()?),
            MAXIMUM_QOS => {
                found.maximum_qos = Some(if list.flag()? { Qos::AtLeastOnce } else { Qos::AtMostOnce });
            }
            RETAIN_AVAILABLE => found.retain_available = Some(list.flag()?),
            MAXIMUM_PACKET_SIZE => found.maximum_packet_size = Some(list.maximum_packet_size()?),
            ASSIGNED_CLIENT_ID => found.assigned_client_id = Some(list.text()?),
            TOPIC_ALIAS_MAXIMUM => found.topic_alias_maximum = Some(list.u16()?),
            REASON_STRING => found.reason = Some(list.text()?),
            USER_PROPERTY => list.user(&mut found.user)?,
            WILDCARD_SUBSCRIPTIONS => found.wildcard_subscriptions = Some(list.flag()?),
            SUBSCRIPTION_IDS => found.subscription_ids = Some(list.flag()?),
            SHARED_SUBSCRIPTIONS => found.shared_subscriptions = Some(list.flag()?),
            SERVER_KEEP_ALIVE => found.server_keep_alive_s = Some(list.u16()?),
            RESPONSE_INFORMATION => found.response_information = Some(list.text()?),
            SERVER_REFERENCE => found.server_reference = Some(list.text()?),
            AUTH_METHOD => found.auth_method = Some(list.text()?),
            AUTH_DATA => found.auth_data = Some(list.binary()?),
            _ => return Err(MISPLACED),
        }
    }
    Ok(found)
}

pub(super) fn write_connack<O: Out>(properties: &ConnackProperties, out: &mut O) {
    put_list(out, |out| {
        put_u32(out, SESSION_EXPIRY, properties.session_expiry_s);
        put_u16(out, RECEIVE_MAXIMUM, properties.receive_maximum.map(NonZeroU16::get));
        // 2 is said by silence: the property may only be 0 or 1.
        let maximum_qos = properties.maximum_qos.filter(|&qos| qos != Qos::ExactlyOnce);
        put_flag(out, MAXIMUM_QOS, maximum_qos.map(|qos| qos == Qos::AtLeastOnce));
        put_flag(out, RETAIN_AVAILABLE, properties.retain_available);
        put_u32(out, MAXIMUM_PACKET_SIZE, properties.maximum_packet_size.map(NonZeroU32::get));
        put_text(out, ASSIGNED_CLIENT_ID, properties.assigned_client_id.as_deref());
        put_u16(out, TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
        put_text(out, REASON_STRING, properties.reason.as_deref());
        put_user(out, &properties.user);
        put_flag(out, WILDCARD_SUBSCRIPTIONS, properties.wildcard_subscriptions);
        put_flag(out, SUBSCRIPTION_IDS, properties.subscription_ids);
        put_flag(out, SHARED_SUBSCRIPTIONS, properties.shared_subscriptions);
        put_u16(out, SERVER_KEEP_ALIVE, properties.server_keep_alive_s);
        put_text(out, RESPONSE_INFORMATION, properties.response_information.as_deref());
        put_text(out, SERVER_REFERENCE, properties.server_reference.as_deref());
        put_text(out, AUTH_METHOD, properties.auth_method.as_deref());
        put_binary(out, AUTH_DATA, properties.auth_data.as_deref());
    });
}

pub(super) fn read_publish(packet: &mut Reader<'_>, role: Role) -> Result<PublishProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = PublishProperties::default();
    while let Some(id) = list.next()? {
        match id {
            MESSAGE_EXPIRY => found.expiry_s = Some(list.u32()?),
            TOPIC_ALIAS => {
                let zero = DecodeError::new(ReasonCode::TopicAliasInvalid, "the topic alias is 0; it is at least 1");
                found.topic_alias = Some(NonZeroU16::new(list.u16()?).ok_or(zero)?);
            }
            SUBSCRIPTION_ID if role == Role::Server => {
                return Err(DecodeError::protocol("a client sends no subscription identifier"));
            }
            SUBSCRIPTION_ID => found.subscription_ids.push(list.subscription_id()?),
            _ if read_application(&mut list, id, &mut found.application)? => {}
            _ => return Err(MISPLACED),
        }
    }
    Ok(found)
}

/// What a PUBLISH is written with.
pub(super) fn write_publish<O: Out>(
    expiry_s: Option<u32>,
    topic_alias: Option<NonZeroU16>,
    subscription_ids: &[SubscriptionId],
    application: &Properties,
    out: &mut O,
) {
    put_list(out, |out| {
        put_u32(out, MESSAGE_EXPIRY, expiry_s);
        put_u16(out, TOPIC_ALIAS, topic_alias.map(NonZeroU16::get));
        put_application(out, application);
        for id in subscription_ids {
            put_subscription_id(out, *id);
        }
    });
}

pub(super) fn read_will(packet: &mut Reader<'_>) -> Result<WillProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = WillProperties::default();
    while let Some(id) = list.next()? {
        match id {
            WILL_DELAY => found.delay_s = Some(list.u32()?),
            MESSAGE_EXPIRY => found.expiry_s = Some(list.u32()?),
            _ if read_application(&mut list, id, &mut found.application)? => {}
            _ => return Err(MISPLACED),
        }
    }
    Ok(found)
}

pub(super) fn write_will<O: Out>(properties: &WillProperties, out: &mut O) {
    put_list(out, |out| {
        put_u32(out, WILL_DELAY, properties.delay_s);
        put_u32(out, MESSAGE_EXPIRY, properties.expiry_s);
        put_application(out, &properties.application);
    });
}

/// Whether `id` is one of those that a message takes along (in PUBLISH and in a will).
fn read_application(list: &mut List<'_>, id: u8, found: &mut Properties) -> Result<bool, DecodeError> {
    match id {
        PAYLOAD_FORMAT => found.payload_is_utf8 = list.flag()?,
        CONTENT_TYPE => found.content_type = Some(list.text()?),
        RESPONSE_TOPIC => {
            let topic = list.text()?;
            if topic.contains(['+', '#']) {
                return Err(DecodeError::protocol("the response topic holds a wildcard"));
            }
            found.response_topic = Some(topic);
        }
        CORRELATION_DATA => found.correlation_data = Some(list.binary()?),
        USER_PROPERTY => list.user(&mut found.user)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn put_application(out: &mut dyn Out, properties: &Properties) {
    put_flag(out, PAYLOAD_FORMAT, properties.payload_is_utf8.then_some(true));
    put_text(out, CONTENT_TYPE, properties.content_type.as_deref());
    put_text(out, RESPONSE_TOPIC, properties.response_topic.as_deref());
    put_binary(out, CORRELATION_DATA, properties.correlation_data.as_deref());
    put_user(out, &properties.user);
}

/// Of PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK.
pub(super) fn read_reason(packet: &mut Reader<'_>) -> Result<ReasonProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = ReasonProperties::default();
    while let Some(id) = list.next()? {
        match id {
            REASON_STRING => found.reason = Some(list.text()?),
            USER_PROPERTY => list.user(&mut found.user)?,
            _ => return Err(MISPLACED),
        }
    }
    Ok(found)
}

pub(super) fn write_reason<O: Out>(properties: &ReasonProperties, out: &mut O) {
    put_list(out, |out| {
        put_text(out, REASON_STRING, properties.reason.as_deref());
        put_user(out, &properties.user);
    });
}

pub(super) fn read_subscribe(packet: &mut Reader<'_>) -> Result<(Option<SubscriptionId>, UserProperties), DecodeError> {
    let mut list = List::new(packet)?;
    let (mut subscription_id, mut user) = (None, UserProperties::new());
    while let Some(id) = list.next()? {
        match id {
            SUBSCRIPTION_ID if subscription_id.is_some() => return Err(TWICE),
            SUBSCRIPTION_ID => subscription_id = Some(list.subscription_id()?),
            USER_PROPERTY => list.user(&mut user)?,
            _ => return Err(MISPLACED),
        }
    }
    Ok((subscription_id, user))
}

pub(super) fn write_subscribe<O: Out>(id: Option<SubscriptionId>, user: &UserProperties, out: &mut O) {
    put_list(out, |out| {
        if let Some(id) = id {
            put_subscription_id(out, id);
        }
        put_user(out, user);
    });
}

fn put_subscription_id(out: &mut dyn Out, id: SubscriptionId) {
    out.u8(SUBSCRIPTION_ID);
    out.varint(usize::try_from(id.get()).unwrap_or_default());
}

pub(super) fn read_unsubscribe(packet: &mut Reader<'_>) -> Result<UserProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut user = UserProperties::new();
    while let Some(id) = list.next()? {
        match id {
            USER_PROPERTY => list.user(&mut user)?,
            _ => return Err(MISPLACED),
        }
    }
    Ok(user)
}

pub(super) fn write_unsubscribe<O: Out>(user: &UserProperties, out: &mut O) {
    put_list(out, |out| put_user(out, user));
}

pub(super) fn read_disconnect(packet: &mut Reader<'_>, role: Role) -> Result<DisconnectProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = DisconnectProperties::default();
    while let Some(id) = list.next()? {
        match id {
            SESSION_EXPIRY if role == Role::Client => {
                return Err(DecodeError::protocol("a server sends no session expiry interval"));
            }
            SESSION_EXPIRY => found.session_expiry_s = Some(list.u32()?),
            SERVER_REFERENCE if role == Role::Server => {
                return Err(DecodeError::protocol("a client sends no server reference"));
            }
            SERVER_REFERENCE => found.server_reference = Some(list.text()?),
            REASON_STRING => found.reason = Some(list.text()?),
            USER_PROPERTY => list.user(&mut found.user)?,
            _ => return Err(MISPLACED),
        }
    }
    Ok(found)
}

pub(super) fn write_disconnect<O: Out>(properties: &DisconnectProperties, out: &mut O) {
    put_list(out, |out| {
        put_u32(out, SESSION_EXPIRY, properties.session_expiry_s);
        put_text(out, REASON_STRING, properties.reason.as_deref());
        put_user(out, &properties.user);
        put_text(out, SERVER_REFERENCE, properties.server_reference.as_deref());
    });
}

pub(super) fn read_auth(packet: &mut Reader<'_>) -> Result<AuthProperties, DecodeError> {
    let mut list = List::new(packet)?;
    let mut found = AuthProperties::default();
    while let Some(id) = list.next()? {
        match id {
            AUTH_METHOD => found.method = Some(list.text()?),
            AUTH_DATA => found.data = Some(list.binary()?),
            REASON_STRING => found.reason = Some(list.text()?),
            USER_PROPERTY => list.user(&mut found.user)?,
            _ => return Err(MISPLACED),
        }
    }
    if found.method.is_none() {
        return Err(DecodeError::protocol("an authentication method is missing"));
    }
    Ok(found)
}

pub(super) fn write_auth<O: Out>(properties: &AuthProperties, out: &mut O) {
    put_list(out, |out| {
        put_text(out, AUTH_METHOD, properties.method.as_deref());
        put_binary(out, AUTH_DATA, properties.data.as_deref());
        put_text(out, REASON_STRING, properties.reason.as_deref());
        put_user(out, &properties.user);
    });
}
