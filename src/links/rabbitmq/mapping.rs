//! How a message looks in AMQP 0-9-1, both ways (DESIGN.md section 6). Pure.
//!
//! **Routing key.** An MQTT topic's `/` becomes `.`, and back. Without `topic_escape` a topic that holds a dot is refused
//! (R27), because the way back would be another topic. With it `%`, `.`, `*` and `#` inside a level are written as `%25`,
//! `%2E`, `%2A` and `%23`, and exactly these four are read back. To the default exchange the destination is a
//! queue's name and is taken as it is; the message's topic then travels in the header `x-mqtt-topic`, which a source
//! prefers to the routing key.
//!
//! **Properties.** As RabbitMQ's MQTT plugin does it: `delivery_mode` 1 for QoS 0, else 2; `expiration` in ms from what is left
//! of the message's expiry; `content_type`; `content_encoding` from and to the user property `content-encoding`; header `x-reply-to-topic`; `correlation_id` where the data is short UTF-8, else
//! header `x-correlation-id`. User properties are headers, repeated names an array (the order across different
//! names is not kept: an AMQP table has none). Ours: `x-mqtt-qos`, `x-mqtt-retain`, `x-mqtt-utf8`, the `tg-` stamps,
//! `message_id` = `tg-id`, `timestamp` in seconds. The user properties `CC` and `BCC` become `x-user-CC` and `x-user-BCC`,
//! because RabbitMQ would read them as further routing keys. `x-received-from` names the gateways that the message has passed as
//! RabbitMQ's federation would; what a federation wrote there itself is a user property on the way, and a table again.
//!
//! What is read back has QoS 1 unless `x-mqtt-qos` says otherwise: a queue with acknowledgements is at-least-once,
//! whatever the publisher wrote into `delivery_mode`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::Value as Json;

use crate::hub::Publication;
use crate::links::Outgoing;
use crate::message::{Message, Properties, Qos, headers};
use crate::topic::TopicName;

/// The longest short string: routing keys, header names, `message_id`.
const SHORT_BYTES_MAX: usize = 255;
/// RabbitMQ closes the channel above it (`rabbit_misc:check_expiry`). A message that may live longer than these 49 days goes
/// without an expiration rather than with a shorter one.
const EXPIRATION_MS_MAX: u64 = 4_294_967_295;
/// What the fixed properties and the frame take beside the headers, generously.
const HEADER_FRAME_RESERVE: usize = 2_048;
/// How deep tables in headers are read; RabbitMQ's own (`x-death`) are two deep.
const NESTING_MAX: u8 = 16;
/// RabbitMQ's, for a delivery that stays over a restart.
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

const REPLY_TO_TOPIC: &str = "x-reply-to-topic";
const CORRELATION_ID: &str = "x-correlation-id";
/// What a gateway's `uri` begins with there.
const GATEWAY: &str = "tidegate://";
/// As many as the sites of `tg-path`, and as many hops of a federation.
const RECEIVED_FROM_MAX: usize = 32;
const QOS: &str = "x-mqtt-qos";
const RETAIN: &str = "x-mqtt-retain";
const UTF8: &str = "x-mqtt-utf8";
const TOPIC: &str = "x-mqtt-topic";
/// Who a message came through, as RabbitMQ's federation has it: tables, the latest first.
const RECEIVED_FROM: &str = "x-received-from";
/// AMQP's `content_encoding`, under the name that it has everywhere else.
const CONTENT_ENCODING: &str = "content-encoding";
/// Headers that the gateway writes itself, over a user property of that name; and the `tg-` stamps.
pub const WRITTEN_HEADERS: [&str; 3] = [QOS, RETAIN, RECEIVED_FROM];
/// Headers that RabbitMQ itself acts upon, and what we write instead.
const ROUTED_HEADERS: [(&str, &str); 2] = [("CC", "x-user-CC"), ("BCC", "x-user-BCC")];

/// A message ready for `basic.publish`.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Where to.
    pub(super) routing_key: ShortString,
    /// Everything but the payload.
    pub(super) properties: BasicProperties,
    /// What a return is known by.
    pub(super) message_id: String,
}

/// What [`outgoing`] needs to know of the link and the connection.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    /// This site, for the stamps.
    pub(super) site: Arc<str>,
    /// Whether the exchange is the default one.
    pub(super) default_exchange: bool,
    /// `topic_escape`.
    pub(super) escape: bool,
    /// The connection's largest frame: all properties of a message must fit into one.
    pub(super) frame_bytes_max: usize,
}

/// The AMQP form of a record, or why it has none: the reason of its dead letter.
pub(super) fn outgoing(record: &Outgoing, mapping: &Mapping) -> Result<Mapped, String> {
    let message = &record.envelope.message;
    let destination = &record.envelope.destination;
    let routing_key = routing_key(destination, mapping)?;
    let stamps = record.stamps(&mapping.site);
    let message_id = stamps.iter().find(|(name, _)| *name == headers::ID).map(|(_, id)| id.clone()).unwrap_or_default();
    let mut table = Table::default();
    let mut encoding = None;
    for (name, value) in headers::unstamped(&message.properties).filter(|(name, _)| *name != RECEIVED_FROM) {
        if name.eq_ignore_ascii_case(CONTENT_ENCODING) && encoding.is_none() {
            encoding = Some(short("content encoding", value)?);
            continue;
        }
        let name = ROUTED_HEADERS.iter().find(|(ours, _)| *ours == name).map_or(name, |(_, renamed)| renamed);
        table.append(name, value)?;
    }
    for (name, value) in stamps {
        table.set(name, long(&value))?;
    }
    table.set(RECEIVED_FROM, received_from(message, &mapping.site))?;
    table.set(QOS, AMQPValue::ShortShortUInt(message.qos.bits()))?;
    table.set(RETAIN, AMQPValue::Boolean(message.retain))?;
    if message.properties.payload_is_utf8 {
        table.set(UTF8, AMQPValue::Boolean(true))?;
    }
    if mapping.default_exchange {
        table.set(TOPIC, long(message.topic.as_str()))?;
    }
    let delivery_mode = if message.qos == Qos::AtMostOnce { TRANSIENT } else { PERSISTENT };
    let mut properties =
        BasicProperties::default().with_delivery_mode(delivery_mode).with_timestamp(message.time.0 / 1_000);
    if let Ok(id) = ShortString::try_new(message_id.as_str()) {
        properties = properties.with_message_id(id);
    }
    if let Some(ms) = record.expiry_left_s.map(|s| u64::from(s) * 1_000).filter(|ms| *ms <= EXPIRATION_MS_MAX) {
        properties = properties.with_expiration(ms.to_string().into());
    }
    if let Some(text) = &message.properties.content_type {
        properties = properties.with_content_type(short("content type", text)?);
    }
    if let Some(encoding) = encoding {
        properties = properties.with_content_encoding(encoding);
    }
    if let Some(text) = &message.properties.response_topic {
        table.set(REPLY_TO_TOPIC, long(text))?;
    }
    if let Some(data) = &message.properties.correlation_data {
        match std::str::from_utf8(data).ok().and_then(|text| ShortString::try_new(text).ok()) {
            Some(id) => properties = properties.with_correlation_id(id),
            None => table.set(CORRELATION_ID, AMQPValue::LongString(data.to_vec().into()))?,
        }
    }
    let properties = properties.with_headers(table.finish(mapping.frame_bytes_max)?);
    Ok(Mapped { routing_key, properties, message_id })
}

/// A delivery as a publication. `None` only where neither routing key nor queue name gives a topic, which a queue's name
/// (never empty) always does in the end.
pub(super) fn incoming(
    queue: &str,
    routing_key: &str,
    properties: &BasicProperties,
    payload: Vec<u8>,
    escape: bool,
) -> Option<Publication> {
    let mut read = Read { qos: Qos::AtLeastOnce, retain: false, topic: None, properties: Properties::default() };
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        read.header(name.as_str(), value);
    }
    read.fixed(properties);
    let topic = read.topic.take().or_else(|| topic_of(queue, routing_key, escape))?;
    let expiration_ms = properties.expiration().as_ref().and_then(|text| text.as_str().parse::<u64>().ok());
    Some(Publication {
        topic,
        payload: Bytes::from(payload),
        qos: read.qos,
        retain: read.retain,
        expiry_s: expiration_ms.map(|ms| u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX)),
        time_ms: properties.timestamp().map(|seconds| seconds.saturating_mul(1_000)),
        properties: read.properties,
        client_id: None,
        user: None,
        packet_id: None,
        id: None,
    })
}

/// What the headers and properties of a delivery have said so far.
struct Read {
    qos: Qos,
    retain: bool,
    topic: Option<TopicName>,
    properties: Properties,
}

impl Read {
    fn header(&mut self, name: &str, value: &AMQPValue) {
        let Some(json) = json(value, NESTING_MAX) else { return };
        let text = || plain(&json);
        match name {
            QOS => self.qos = qos(&json).unwrap_or(self.qos),
            RECEIVED_FROM => {
                // Our own are in `tg-path`, and written anew from it.
                let ours = |value: &Json| value["uri"].as_str().is_some_and(|uri| uri.starts_with(GATEWAY));
                let others = json.as_array().into_iter().flatten().filter(|value| !ours(value));
                self.properties.user.extend(others.map(|value| (name.into(), plain(value).into())));
            }
            RETAIN => self.retain = json == Json::Bool(true) || json == Json::String("true".to_owned()),
            UTF8 => self.properties.payload_is_utf8 = json == Json::Bool(true),
            TOPIC => self.topic = TopicName::new(&text()).ok(),
            REPLY_TO_TOPIC => self.properties.response_topic = Some(text().into()),
            CORRELATION_ID => self.properties.correlation_data = Some(raw(value).unwrap_or_else(|| text().into())),
            _ => {
                let name = ROUTED_HEADERS.iter().find(|(_, renamed)| *renamed == name).map_or(name, |(ours, _)| ours);
                let values =
                    if let Json::Array(values) = &json { values.as_slice() } else { std::slice::from_ref(&json) };
                self.properties.user.extend(values.iter().map(|value| (name.into(), plain(value).into())));
            }
        }
    }

    /// The properties that AMQP has a place for. Those that MQTT has none for are kept as user properties, so that
    /// nothing of a message is lost on the way.
    fn fixed(&mut self, properties: &BasicProperties) {
        let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
        self.properties.content_type = text(properties.content_type()).map(Into::into);
        if let Some(id) = text(properties.correlation_id()) {
            self.properties.correlation_data = Some(id.into());
        }
        let stamped = self.properties.user.iter().any(|(name, _)| &**name == headers::ID);
        let message_id = text(properties.message_id()).filter(|_| !stamped);
        for (name, value) in [
            (CONTENT_ENCODING, text(properties.content_encoding())),
            ("amqp-reply-to", text(properties.reply_to())),
            ("amqp-message-id", message_id),
            ("amqp-type", text(properties.kind())),
            ("amqp-app-id", text(properties.app_id())),
        ] {
            self.properties.user.extend(value.map(|value| (name.into(), value.into())));
        }
    }
}

/// The gateways that the message has passed, this one first, and behind them what federation wrote before.
fn received_from(message: &Message, here: &str) -> AMQPValue {
    let passed = message.origin.path.iter().rev().map(|site| &**site);
    let gateways = std::iter::once(here).chain(passed).map(|site| {
        let texts = [("uri", format!("{GATEWAY}{site}")), ("cluster-name", site.to_owned())];
        let mut table: BTreeMap<ShortString, AMQPValue> =
            texts.into_iter().map(|(name, text)| (name.into(), long(&text))).collect();
        table.insert("redelivered".into(), AMQPValue::Boolean(false));
        table
    });
    let earlier = message.properties.user.iter().filter(|(name, _)| **name == *RECEIVED_FROM);
    let earlier = earlier.filter_map(|(_, text)| {
        let table: BTreeMap<String, Json> = serde_json::from_str(text).ok()?;
        let fields = table.into_iter().filter_map(|(name, value)| {
            let value = if let Json::Bool(value) = value { AMQPValue::Boolean(value) } else { long(&plain(&value)) };
            Some((ShortString::try_new(name.as_str()).ok()?, value))
        });
        Some(fields.collect())
    });
    let tables = gateways.chain(earlier).map(|table| AMQPValue::FieldTable(FieldTable::from(table)));
    AMQPValue::FieldArray(FieldArray::from(tables.take(RECEIVED_FROM_MAX).collect::<Vec<_>>()))
}

/// Headers under construction: names checked, size counted.
#[derive(Default)]
struct Table {
    fields: BTreeMap<ShortString, AMQPValue>,
    bytes: usize,
}

impl Table {
    fn set(&mut self, name: &str, value: AMQPValue) -> Result<(), String> {
        self.bytes += name.len() + size(&value);
        self.fields.insert(short("header name", name)?, value);
        Ok(())
    }

    /// Repeated names become an array.
    fn append(&mut self, name: &str, value: &str) -> Result<(), String> {
        let key = short("user property's name", name)?;
        self.bytes += name.len() + value.len() + 16;
        match self.fields.get_mut(&key) {
            None => drop(self.fields.insert(key, long(value))),
            Some(AMQPValue::FieldArray(values)) => values.push(long(value)),
            Some(first) => {
                let first_value = std::mem::replace(first, AMQPValue::Void);
                *first = AMQPValue::FieldArray(FieldArray::from(vec![first_value, long(value)]));
            }
        }
        Ok(())
    }

    /// A content header is one frame: a larger one would cost the connection, not the message.
    fn finish(self, frame_bytes_max: usize) -> Result<FieldTable, String> {
        let room = frame_bytes_max.saturating_sub(HEADER_FRAME_RESERVE);
        if self.bytes > room {
            return Err(format!("too large: {} bytes of properties, and this RabbitMQ takes {room}", self.bytes));
        }
        Ok(FieldTable::from(self.fields))
    }
}

fn routing_key(destination: &str, mapping: &Mapping) -> Result<ShortString, String> {
    let key = match (mapping.default_exchange, mapping.escape) {
        (true, _) => destination.to_owned(),
        (false, true) => escaped(destination),
        (false, false) if destination.contains('.') => {
            return Err(format!(
                "topic `{destination}` holds a dot, which RabbitMQ would read as `/`: set topic_escape"
            ));
        }
        (false, false) => destination.replace('/', "."),
    };
    let length = key.len();
    ShortString::try_new(key)
        .map_err(|_too_long| format!("topic: its routing key has {length} bytes, and RabbitMQ takes {SHORT_BYTES_MAX}"))
}

fn escaped(topic: &str) -> String {
    let mut out = String::with_capacity(topic.len() + 8);
    for c in topic.chars() {
        match c {
            '/' => out.push('.'),
            '.' => out.push_str("%2E"),
            '%' => out.push_str("%25"),
            '*' => out.push_str("%2A"),
            '#' => out.push_str("%23"),
            c => out.push(c),
        }
    }
    out
}

/// The inverse of [`escaped`]. One pass from the left, so that `%252E` is `%2E` and not a dot.
fn unescaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut rest = key;
    while let Some(c) = rest.chars().next() {
        let code = [("%2E", '.'), ("%25", '%'), ("%2A", '*'), ("%23", '#')];
        if let Some((tail, plain)) = code.iter().find_map(|(code, plain)| Some((rest.strip_prefix(code)?, *plain))) {
            out.push(plain);
            rest = tail;
        } else {
            out.push(if c == '.' { '/' } else { c });
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

/// The topic of a delivery: its routing key read back, else its queue's name, else that with what MQTT forbids replaced.
fn topic_of(queue: &str, routing_key: &str, escape: bool) -> Option<TopicName> {
    let topic = if escape { unescaped(routing_key) } else { routing_key.replace('.', "/") };
    let forbidden = |c| matches!(c, '+' | '#' | '\0');
    [topic, queue.to_owned(), queue.replace(forbidden, "_")].iter().find_map(|text| TopicName::new(text).ok())
}

fn qos(value: &Json) -> Option<Qos> {
    let bits = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    Qos::from_bits(u8::try_from(bits).ok()?)
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn short(what: &str, text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text)
        .map_err(|_too_long| format!("too large: a {what} of {} bytes, and AMQP takes {SHORT_BYTES_MAX}", text.len()))
}

fn size(value: &AMQPValue) -> usize {
    let inside = if let AMQPValue::LongString(text) = value {
        text.len()
    } else if let AMQPValue::FieldArray(values) = value {
        values.as_slice().iter().map(size).sum()
    } else if let AMQPValue::FieldTable(table) = value {
        table.inner().iter().map(|(name, value)| name.as_str().len() + size(value)).sum()
    } else {
        0
    };
    inside + 16
}

/// The bytes of a string value, UTF-8 or not.
fn raw(value: &AMQPValue) -> Option<Bytes> {
    if let AMQPValue::LongString(text) = value {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    } else if let AMQPValue::ByteArray(bytes) = value {
        Some(Bytes::copy_from_slice(bytes.as_slice()))
    } else {
        None
    }
}

/// Text as it is, all else as JSON writes it.
fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => value.to_string(),
    }
}

/// `None` for a value that is none, and for what is nested deeper than `depth` (which no header of good will is).
fn json(value: &AMQPValue, depth: u8) -> Option<Json> {
    let deeper = depth.checked_sub(1)?;
    Some(match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => format!("{}e-{}", value.value, value.scale).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => text.to_string().into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().filter_map(|value| json(value, deeper)).collect(),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::FieldTable(table) => {
            let fields =
                table.inner().iter().filter_map(|(name, value)| Some((name.to_string(), json(value, deeper)?)));
            Json::Object(fields.collect())
        }
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::Void => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::buffer::Place;
    use crate::message::Envelope;
    use crate::message::tests_support::message;

    fn mapping(default_exchange: bool, escape: bool) -> Mapping {
        Mapping { site: "here".into(), default_exchange, escape, frame_bytes_max: 131_072 }
    }

    fn record(destination: &str) -> Outgoing {
        let envelope = Envelope {
            destination: destination.into(),
            key: None,
            ordinal: 0,
            failure: None,
            batch: None,
            message: message("a/b", b"payload"),
        };
        Outgoing {
            place: Place::default(),
            seq: "buf-0-0".to_owned(),
            backfill: false,
            envelope,
            expiry_left_s: None,
            expired_before: 0,
        }
    }

    /// To a topic exchange, and from a queue of it.
    pub(in crate::links) fn hop(record: &Outgoing) -> Publication {
        back(record, &mapping(false, false))
    }

    fn back(record: &Outgoing, mapping: &Mapping) -> Publication {
        let mapped = outgoing(record, mapping).unwrap();
        let payload = record.envelope.message.payload.to_vec();
        incoming("queue", mapped.routing_key.as_str(), &mapped.properties, payload, mapping.escape).unwrap()
    }

    fn header(mapped: &Mapped, name: &str) -> Option<AMQPValue> {
        mapped.properties.headers().as_ref().and_then(|table| table.inner().get(name).cloned())
    }

    #[test]
    fn r27_a_topic_becomes_a_routing_key_and_reads_back() {
        for (topic, escape, key) in [
            ("a", false, "a"),
            ("factory/1/press", false, "factory.1.press"),
            ("/a//b/", false, ".a..b."),
            ("100%", false, "100%"),
            ("a.b/c", true, "a%2Eb.c"),
            ("%2E/*", true, "%252E.%2A"),
            ("ü/%", true, "ü.%25"),
        ] {
            let mapping = mapping(false, escape);
            assert_eq!(routing_key(topic, &mapping).unwrap().as_str(), key);
            assert_eq!(topic_of("q", key, escape).unwrap().as_str(), topic);
        }
    }

    #[test]
    fn r27_a_dot_without_topic_escape_and_a_long_key_are_refused_with_reason_topic() {
        let reason = outgoing(&record("a.b/c"), &mapping(false, false)).unwrap_err();
        assert!(reason.starts_with("topic ") && reason.contains("topic_escape"), "{reason}");
        let reason = outgoing(&record(&"x".repeat(256)), &mapping(false, false)).unwrap_err();
        assert!(reason.starts_with("topic") && reason.contains("256"), "{reason}");
        assert!(outgoing(&record(&"x".repeat(255)), &mapping(false, false)).is_ok());
    }

    #[test]
    fn to_the_default_exchange_the_queue_is_taken_as_it_is_and_the_topic_travels_beside() {
        let record = record("orders.new/7");
        let mapped = outgoing(&record, &mapping(true, false)).unwrap();
        assert_eq!(mapped.routing_key.as_str(), "orders.new/7");
        assert_eq!(back(&record, &mapping(true, false)).topic.as_str(), "a/b");
    }

    #[test]
    fn headers_that_are_written_here_are_not_what_a_property_of_that_name_says() {
        let mut record = record("x/y");
        record.envelope.message.properties.user =
            WRITTEN_HEADERS.iter().map(|name| ((*name).into(), "own".into())).collect();
        let mapped = outgoing(&record, &mapping(false, false)).unwrap();
        for name in WRITTEN_HEADERS {
            assert!(!format!("{:?}", header(&mapped, name).unwrap()).contains("own"), "{name}");
        }
    }

    #[test]
    fn r35_a_replayed_message_says_so_over_amqp_and_back() {
        let mut record = record("x/y");
        let mapping = mapping(false, false);
        assert_eq!(header(&outgoing(&record, &mapping).unwrap(), headers::REPLAY), None);
        headers::mark_replay(&mut record.envelope.message, "7f3a91c2");
        let mapped = outgoing(&record, &mapping).unwrap();
        assert_eq!(header(&mapped, headers::REPLAY), Some(AMQPValue::LongString("7f3a91c2".into())));
        let user = back(&record, &mapping).properties.user;
        assert_eq!(user.iter().filter(|(name, id)| (&**name, &**id) == (headers::REPLAY, "7f3a91c2")).count(), 1);
    }

    #[test]
    fn a_message_keeps_its_meaning_over_amqp_and_back() {
        let mut record = record("x/y");
        let message = &mut record.envelope.message;
        message.qos = Qos::ExactlyOnce;
        message.retain = true;
        message.time = crate::clock::WallMs(1_700_000_000_123);
        record.expiry_left_s = Some(60);
        message.properties = Properties {
            payload_is_utf8: true,
            content_type: Some("application/json".into()),
            response_topic: Some("re/ply".into()),
            correlation_data: Some(Bytes::from_static(b"\xFF\x00")),
            user: vec![
                ("k".into(), "v".into()),
                ("k".into(), "w".into()),
                ("k".into(), "x".into()),
                ("CC".into(), "q".into()),
            ],
        };
        let mapped = outgoing(&record, &mapping(false, false)).unwrap();
        assert_eq!(*mapped.properties.delivery_mode(), Some(2));
        assert_eq!(mapped.properties.expiration().as_ref().unwrap().as_str(), "60000");
        assert_eq!(mapped.properties.message_id().as_ref().unwrap().as_str(), mapped.message_id);
        assert_eq!(header(&mapped, "CC"), None);
        assert!(matches!(header(&mapped, "k"), Some(AMQPValue::FieldArray(values)) if values.as_slice().len() == 3));
        let publication = back(&record, &mapping(false, false));
        assert_eq!((publication.topic.as_str(), publication.qos, publication.retain), ("x/y", Qos::ExactlyOnce, true));
        assert_eq!((publication.expiry_s, publication.time_ms), (Some(60), Some(1_700_000_000_000)));
        let mut received = publication.properties;
        received.user.retain(|(name, _)| !name.starts_with(headers::PREFIX));
        let mut sent = record.envelope.message.properties;
        sent.user.sort();
        received.user.sort();
        assert_eq!(received, sent);
    }

    #[test]
    fn qos_0_is_transient_and_short_utf8_correlation_data_is_the_correlation_id() {
        let mut record = record("x");
        record.envelope.message.qos = Qos::AtMostOnce;
        record.envelope.message.properties.correlation_data = Some(Bytes::from_static(b"call-7"));
        let mapped = outgoing(&record, &mapping(false, false)).unwrap();
        assert_eq!(*mapped.properties.delivery_mode(), Some(1));
        assert_eq!(mapped.properties.correlation_id().as_ref().unwrap().as_str(), "call-7");
        assert_eq!(header(&mapped, CORRELATION_ID), None);
        assert_eq!(back(&record, &mapping(false, false)).qos, Qos::AtMostOnce);
    }

    #[test]
    fn a_federation_sees_the_gateways_that_a_message_passed_and_what_it_wrote_itself_stays() {
        let mut table = FieldTable::default();
        let mut by_federation = FieldTable::default();
        by_federation.insert("uri".into(), long("amqp://upstream"));
        by_federation.insert("exchange".into(), long("events"));
        by_federation.insert("redelivered".into(), AMQPValue::Boolean(true));
        let received = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(by_federation.clone())].into());
        table.insert(RECEIVED_FROM.into(), received);
        let properties = BasicProperties::default().with_headers(table);
        let publication = incoming("q", "a.b", &properties, Vec::new(), false).unwrap();
        let mut record = record("a/b");
        record.envelope.message.properties = publication.properties;
        record.envelope.message.origin.path = vec!["first".into(), "second".into()];
        for _ in 0..2 {
            let mapped = outgoing(&record, &mapping(false, false)).unwrap();
            let Some(AMQPValue::FieldArray(tables)) = header(&mapped, RECEIVED_FROM) else { panic!() };
            let text = |table: &AMQPValue, name: &str| {
                let AMQPValue::FieldTable(table) = table else { panic!("{table:?}") };
                table.inner().get(name).cloned()
            };
            let uris: Vec<_> = tables.as_slice().iter().map(|table| text(table, "uri")).collect();
            let ours = ["here", "second", "first"].map(|site| Some(long(&format!("tidegate://{site}"))));
            assert_eq!(uris, [&ours[..], &[Some(long("amqp://upstream"))]].concat());
            assert_eq!(tables.as_slice()[3], AMQPValue::FieldTable(by_federation.clone()));
            // Once more through a gateway: ours are in its path.
            let user = back(&record, &mapping(false, false)).properties.user;
            assert_eq!(user.iter().filter(|(name, _)| **name == *RECEIVED_FROM).count(), 1, "{user:?}");
            record.envelope.message.properties.user = user;
        }
    }

    #[test]
    fn an_expiration_that_rabbitmq_would_not_take_is_left_out() {
        let mut record = record("x");
        record.expiry_left_s = Some(u32::MAX);
        assert_eq!(*outgoing(&record, &mapping(false, false)).unwrap().properties.expiration(), None);
    }

    #[test]
    fn properties_that_fit_no_frame_or_no_short_string_are_refused_and_never_panic() {
        let mut record = record("x");
        record.envelope.message.properties.user = vec![("n".into(), "v".repeat(131_072).into())];
        assert!(outgoing(&record, &mapping(false, false)).unwrap_err().starts_with("too large"));
        record.envelope.message.properties.user = vec![("n".repeat(256).into(), "v".into())];
        assert!(outgoing(&record, &mapping(false, false)).unwrap_err().starts_with("too large"));
        record.envelope.message.properties.user.clear();
        record.envelope.message.properties.content_type = Some("c".repeat(256).into());
        assert!(outgoing(&record, &mapping(false, false)).unwrap_err().starts_with("too large"));
    }

    #[test]
    fn a_foreign_delivery_always_has_a_topic() {
        for (queue, key, topic) in
            [("q", "a.b", "a/b"), ("my.queue", "", "my.queue"), ("q#1", "a.#", "q_1"), ("ok", "with+plus", "ok")]
        {
            let publication = incoming(queue, key, &BasicProperties::default(), b"x".to_vec(), false).unwrap();
            assert_eq!(publication.topic.as_str(), topic, "{queue} {key}");
            assert_eq!((publication.qos, publication.time_ms), (Qos::AtLeastOnce, None));
        }
    }

    #[test]
    fn headers_of_every_type_become_text_and_unknown_properties_are_kept() {
        let mut table = FieldTable::default();
        table.insert("int".into(), AMQPValue::LongInt(-7));
        table.insert("list".into(), AMQPValue::FieldArray(vec![AMQPValue::Boolean(true), long("x")].into()));
        let mut nested = FieldTable::default();
        nested.insert("count".into(), AMQPValue::LongLongInt(2));
        table.insert("nested".into(), AMQPValue::FieldTable(nested));
        table.insert("void".into(), AMQPValue::Void);
        let properties = BasicProperties::default().with_headers(table).with_type("order".into());
        let publication = incoming("q", "k", &properties, Vec::new(), false).unwrap();
        let user: Vec<_> = publication.properties.user.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(
            user,
            [("int", "-7"), ("list", "true"), ("list", "x"), ("nested", "{\"count\":2}"), ("amqp-type", "order")]
        );
    }
}
