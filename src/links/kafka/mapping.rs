//! How a message looks in Kafka, both ways (DESIGN.md section 6). Pure.
//!
//! The destination is the Kafka topic (a few characters are legal there, and no `/`), the key is the route's or the MQTT
//! topic, the timestamp is the event time. Headers, in this order, repeats kept: `mqtt.topic`, `x-mqtt-qos`,
//! `x-mqtt-retain`, `x-mqtt-utf8` and `expiration` (ms, what is left) where they say something, `content_type`,
//! `x-reply-to-topic`, `correlation_id` (raw bytes), the `tg-` stamps, the user properties.
//!
//! An empty payload is an empty value, never a tombstone: a retained message that is deleted on the MQTT side deletes nothing in
//! a compacted topic.
//!
//! What is read back is published on `mqtt.topic` where that is a topic, else on the Kafka topic's name, with QoS 1 unless
//! `x-mqtt-qos` says otherwise. The first header of a known name is ours; further ones and all others are user
//! properties. A value that is no UTF-8 is read with replacement characters, since MQTT properties are text.

use bytes::Bytes;

use crate::hub::Publication;
use crate::links::Outgoing;
use crate::message::{Properties, Qos, headers};
use crate::topic::TopicName;

/// Kafka's own limit for topic names.
const TOPIC_BYTES_MAX: usize = 249;
/// What a record takes beside key, value and headers (librdkafka's `RD_KAFKAP_MESSAGE_V2_MAX_OVERHEAD` and the batch's head,
/// generously).
const RECORD_OVERHEAD: usize = 128;
const HEADER_OVERHEAD: usize = 10;

const TOPIC: &str = "mqtt.topic";
const QOS: &str = "x-mqtt-qos";
const RETAIN: &str = "x-mqtt-retain";
const UTF8: &str = "x-mqtt-utf8";
const EXPIRATION: &str = "expiration";
const CONTENT_TYPE: &str = "content_type";
const CONTENT_TYPE_OF_OTHERS: &str = "content-type";
const REPLY_TO_TOPIC: &str = "x-reply-to-topic";
const CORRELATION_ID: &str = "correlation_id";
/// Headers that the gateway writes itself, before a user property of that name; and the `tg-` stamps.
pub const WRITTEN_HEADERS: [&str; 2] = [TOPIC, QOS];

/// A record for the producer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) topic: String,
    pub(super) key: Vec<u8>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) timestamp_ms: i64,
}

/// The Kafka form of a record, or why it has none: the reason of its dead letter.
pub(super) fn outgoing(record: &Outgoing, site: &str, bytes_max: u32) -> Result<Mapped, String> {
    let envelope = &record.envelope;
    let message = &envelope.message;
    let topic = legal_topic(&envelope.destination)?;
    let key = envelope.key.as_deref().unwrap_or_else(|| message.topic.as_str()).as_bytes().to_vec();
    let mut out: Vec<(String, Vec<u8>)> = Vec::with_capacity(16 + message.properties.user.len());
    let mut put = |name: &str, value: &[u8]| out.push((name.to_owned(), value.to_vec()));
    put(TOPIC, message.topic.as_str().as_bytes());
    put(QOS, message.qos.bits().to_string().as_bytes());
    if message.retain {
        put(RETAIN, b"true");
    }
    if message.properties.payload_is_utf8 {
        put(UTF8, b"true");
    }
    if let Some(seconds) = record.expiry_left_s {
        put(EXPIRATION, (u64::from(seconds) * 1_000).to_string().as_bytes());
    }
    if let Some(text) = &message.properties.content_type {
        put(CONTENT_TYPE, text.as_bytes());
    }
    if let Some(text) = &message.properties.response_topic {
        put(REPLY_TO_TOPIC, text.as_bytes());
    }
    if let Some(data) = &message.properties.correlation_data {
        put(CORRELATION_ID, data);
    }
    for (name, value) in record.stamps(site) {
        put(name, value.as_bytes());
    }
    for (name, value) in headers::unstamped(&message.properties) {
        put(name, value.as_bytes());
    }
    let beside: usize = out.iter().map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD).sum();
    let bytes = message.payload.len() + key.len() + beside + RECORD_OVERHEAD;
    if bytes > usize::try_from(bytes_max).unwrap_or(usize::MAX) {
        return Err(format!("too large: {bytes} bytes with key and headers, and this link takes {bytes_max}"));
    }
    let timestamp_ms = i64::try_from(message.time.0).unwrap_or(i64::MAX);
    Ok(Mapped { topic, key, headers: out, timestamp_ms })
}

/// A record from Kafka.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) timestamp_ms: Option<i64>,
}

/// A record as a publication. `None` only where neither header nor Kafka topic give an MQTT topic; a legal Kafka topic always does.
pub(super) fn incoming<'a>(
    record: Incoming<'_>,
    headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Option<Publication> {
    let mut read = Read { qos: Qos::AtLeastOnce, ..Read::default() };
    for (name, value) in headers {
        read.header(name, value.unwrap_or_default());
    }
    let topic = read.topic.or_else(|| TopicName::new(record.topic).ok())?;
    Some(Publication {
        topic,
        payload: Bytes::copy_from_slice(record.payload),
        qos: read.qos,
        retain: read.retain,
        expiry_s: read.expiry_s,
        time_ms: record.timestamp_ms.and_then(|ms| u64::try_from(ms).ok()),
        properties: read.properties,
        client_id: None,
        user: None,
        packet_id: None,
        id: None,
    })
}

/// What the headers have said so far.
#[derive(Default)]
struct Read {
    seen: Vec<&'static str>,
    topic: Option<TopicName>,
    qos: Qos,
    retain: bool,
    expiry_s: Option<u32>,
    properties: Properties,
}

impl Read {
    fn header(&mut self, name: &str, value: &[u8]) {
        let text = String::from_utf8_lossy(value);
        match self.first_of_known(name) {
            Some(TOPIC) => self.topic = TopicName::new(&text).ok(),
            Some(QOS) => self.qos = text.parse().ok().and_then(Qos::from_bits).unwrap_or(self.qos),
            Some(RETAIN) => self.retain = text == "true",
            Some(UTF8) => self.properties.payload_is_utf8 = text == "true",
            Some(EXPIRATION) => self.expiry_s = text.parse::<u64>().ok().map(seconds),
            Some(CONTENT_TYPE) => self.properties.content_type = Some(text.into()),
            Some(REPLY_TO_TOPIC) => self.properties.response_topic = Some(text.into()),
            Some(CORRELATION_ID) => self.properties.correlation_data = Some(Bytes::copy_from_slice(value)),
            // As other clients, and CloudEvents, name it; ours says the same beside it.
            None if name == CONTENT_TYPE_OF_OTHERS && self.is_content_type(&text) => {
                self.properties.content_type = Some(text.into());
            }
            Some(_) | None => self.properties.user.push((name.into(), text.into())),
        }
    }

    /// Whether it is the content type as far as is known by now.
    fn is_content_type(&self, text: &str) -> bool {
        self.properties.content_type.as_deref().is_none_or(|known| known == text)
    }

    /// The known name, where this header is the first to bear it.
    fn first_of_known(&mut self, name: &str) -> Option<&'static str> {
        let known = [TOPIC, QOS, RETAIN, UTF8, EXPIRATION, CONTENT_TYPE, REPLY_TO_TOPIC, CORRELATION_ID]
            .into_iter()
            .find(|known| *known == name && !self.seen.contains(known))?;
        self.seen.push(known);
        Some(known)
    }
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// Kafka's rule: letters, digits, `.`, `_`, `-`, at most 249, neither `.` nor `..`.
fn legal_topic(topic: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic == "." || topic == ".." || topic.len() > TOPIC_BYTES_MAX || !topic.chars().all(legal) {
        return Err(format!(
            "topic `{topic}` is no Kafka topic: those have 1 to 249 of a-z, A-Z, 0-9, `.`, `_` and `-`"
        ));
    }
    Ok(topic.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::buffer::Place;
    use crate::message::Envelope;
    use crate::message::tests_support::message;

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

    pub(in crate::links) fn back(record: &Outgoing) -> Publication {
        let mapped = outgoing(record, "here", 1 << 20).unwrap();
        let payload = &record.envelope.message.payload;
        let incoming_record = Incoming { topic: &mapped.topic, payload, timestamp_ms: Some(mapped.timestamp_ms) };
        incoming(incoming_record, mapped.headers.iter().map(|(name, value)| (&**name, Some(&**value)))).unwrap()
    }

    #[test]
    fn the_key_is_the_route_s_or_the_mqtt_topic() {
        let mut record = record("telemetry");
        assert_eq!(outgoing(&record, "s", 1 << 20).unwrap().key, b"a/b");
        record.envelope.key = Some("press-1".into());
        assert_eq!(outgoing(&record, "s", 1 << 20).unwrap().key, b"press-1");
    }

    #[test]
    fn names_that_kafka_does_not_take_are_refused_with_reason_topic() {
        for topic in ["", "a/b", ".", "..", "ü", "a b", &"x".repeat(250)] {
            assert!(outgoing(&record(topic), "s", 1 << 20).unwrap_err().starts_with("topic "), "{topic}");
        }
        assert!(outgoing(&record(&"x".repeat(249)), "s", 1 << 20).is_ok());
    }

    #[test]
    fn what_is_too_large_with_its_headers_is_refused_before_it_is_sent() {
        let mut record = record("t");
        assert!(outgoing(&record, "s", 600).is_ok());
        record.envelope.message.properties.user = vec![("n".into(), "v".repeat(600).into())];
        assert!(outgoing(&record, "s", 600).unwrap_err().starts_with("too large"));
    }

    #[test]
    fn headers_that_are_written_here_stand_before_properties_of_that_name() {
        let mut record = record("telemetry");
        record.envelope.message.properties.user =
            WRITTEN_HEADERS.iter().map(|name| ((*name).into(), "own".into())).collect();
        let headers = outgoing(&record, "s", 1 << 20).unwrap().headers;
        for name in WRITTEN_HEADERS {
            let first = headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
            assert_ne!(first, Some(&b"own"[..]), "{name}");
        }
    }

    #[test]
    fn r35_a_replayed_message_says_so_over_kafka_and_back() {
        let mut record = record("telemetry");
        let marks = |record: &Outgoing| {
            let user = back(record).properties.user;
            user.into_iter().filter(|(name, _)| **name == *headers::REPLAY).map(|(_, id)| id).collect::<Vec<_>>()
        };
        assert!(marks(&record).is_empty());
        headers::mark_replay(&mut record.envelope.message, "7f3a91c2");
        assert_eq!(marks(&record), ["7f3a91c2".into()]);
    }

    #[test]
    fn a_message_keeps_its_meaning_over_kafka_and_back() {
        let mut record = record("telemetry");
        let message = &mut record.envelope.message;
        message.qos = Qos::ExactlyOnce;
        message.retain = true;
        record.expiry_left_s = Some(60);
        message.properties = Properties {
            payload_is_utf8: true,
            content_type: Some("application/json".into()),
            response_topic: Some("re/ply".into()),
            correlation_data: Some(Bytes::from_static(b"\xFF\x00")),
            user: vec![("k".into(), "v".into()), ("a".into(), "b".into()), ("k".into(), "w".into())],
        };
        let publication = back(&record);
        assert_eq!((publication.topic.as_str(), publication.qos, publication.retain), ("a/b", Qos::ExactlyOnce, true));
        assert_eq!((publication.expiry_s, publication.time_ms), (Some(60), Some(1_000)));
        let mut received = publication.properties;
        assert!(received.user.iter().any(|(name, _)| &**name == headers::ID));
        received.user.retain(|(name, _)| !name.starts_with(headers::PREFIX));
        assert_eq!(received, record.envelope.message.properties);
    }

    #[test]
    fn the_content_type_is_known_by_the_name_that_others_give_it() {
        let read = |headers: &[(&str, &str)]| {
            let foreign = Incoming { topic: "t", payload: b"", timestamp_ms: None };
            let headers = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
            let properties = incoming(foreign, headers).unwrap().properties;
            (properties.content_type, properties.user)
        };
        let (ours, theirs, other) = (("content_type", "a/b"), ("content-type", "a/b"), ("content-type", "c/d"));
        for headers in [&[theirs][..], &[ours, theirs], &[theirs, ours]] {
            assert_eq!(read(headers), (Some("a/b".into()), vec![]), "{headers:?}");
        }
        assert_eq!(read(&[ours, other]), (Some("a/b".into()), vec![("content-type".into(), "c/d".into())]));
    }

    #[test]
    fn a_foreign_record_is_published_on_its_kafka_topic_and_its_headers_are_properties() {
        let foreign = Incoming { topic: "orders.v1", payload: b"", timestamp_ms: Some(-1) };
        let headers: [(&str, Option<&[u8]>); 4] =
            [("mqtt.topic", Some(b"bad/#")), ("content_type", Some(b"x")), ("content_type", Some(b"y")), ("n", None)];
        let publication = incoming(foreign, headers.into_iter()).unwrap();
        assert_eq!((publication.topic.as_str(), publication.qos), ("orders.v1", Qos::AtLeastOnce));
        assert_eq!((publication.time_ms, publication.payload.len()), (None, 0));
        assert_eq!(publication.properties.content_type.as_deref(), Some("x"));
        let user: Vec<_> = publication.properties.user.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(user, [("content_type", "y"), ("n", "")]);
    }
}
