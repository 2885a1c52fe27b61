//! What several records of a route are sent as: one message, a JSON array or a line each (R28). Pure: records in, a message out.
//!
//! What the parts do not have in common does not survive: see [`Batch::pack`].

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::IgnoredAny;

use super::coding::{CONTENT_ENCODING, Coding};
use super::event;
use crate::message::headers::PREFIX;
use crate::message::{Envelope, Message, MessageId, Properties, Qos};
use crate::topic::TopicName;
use crate::units::{ByteSize, show_duration};

/// A route's `batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How they stand in it.
    pub form: BatchForm,
    /// Parts at most.
    pub count: usize,
    /// Bytes of the parts' payloads at most; a part that is larger goes alone.
    pub bytes: ByteSize,
    /// How long the first part waits for others.
    pub linger: Duration,
    /// What the whole is put into.
    pub compress: Option<Coding>,
}

/// How parts stand in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchForm {
    /// One JSON array.
    Json,
    /// JSON, one a line.
    Ndjson,
}

impl Batch {
    /// A small message of a machine, some hundred times.
    pub const COUNT: usize = 100;
    /// Less than most remotes take.
    pub const BYTES: ByteSize = ByteSize(256 << 10);
    /// What people do not notice on a screen that is far away.
    pub const LINGER: Duration = Duration::from_secs(1);

    /// One message of records of one destination and key. It has `id`, the time and the acceptance of its last part, the highest QoS,
    /// and is retained if the last part is. Publisher, user, user properties and headers are those that all parts have; Response
    /// Topic and Correlation Data go. Its topic is its destination, so that all batches of one have the same Kafka key where the
    /// route names none. A batch of one is its part in other clothes: it keeps the part's own id, whatever `id` is. `None`: there are no
    /// parts, or a library failed to compress them.
    #[must_use]
    pub fn pack(&self, parts: &[Envelope], id: MessageId) -> Option<Envelope> {
        let (first, last) = (parts.first()?, parts.last()?);
        let is_alone = parts.len() == 1;
        let mut message = last.message.clone();
        if !is_alone {
            message.id = id;
        }
        message.topic = TopicName::new(&first.destination).unwrap_or(message.topic);
        message.qos = parts.iter().map(|part| part.message.qos).max().unwrap_or(Qos::AtLeastOnce);
        let all = |same: fn(&Message, &Message) -> bool| parts.iter().all(|part| same(&part.message, &first.message));
        let origin = &mut message.origin;
        origin.hops = parts.iter().map(|part| part.message.origin.hops).max().unwrap_or(origin.hops);
        origin.client_id.take_if(|_| !all(|a, b| a.origin.client_id == b.origin.client_id));
        origin.user.take_if(|_| !all(|a, b| a.origin.user == b.origin.user));
        message.properties = self.properties(parts, first);
        let payload = self.payload(parts);
        message.payload = match self.compress {
            Some(coding) => {
                event::put(&mut message.properties, CONTENT_ENCODING, coding.name());
                message.properties.payload_is_utf8 = false;
                coding.pack(&payload)?.into()
            }
            None => payload,
        };
        // Of several it is a message of its own, the only one with this id (R11).
        let ordinal = if is_alone { last.ordinal } else { 0 };
        let (destination, key) = (first.destination.clone(), first.key.clone());
        Some(Envelope { destination, key, ordinal, failure: None, batch: None, message })
    }

    fn properties(&self, parts: &[Envelope], first: &Envelope) -> Properties {
        // What one part brought of an earlier gateway's stamps says which part of its message it was there, and that it was replayed.
        let is_alone = parts.len() == 1;
        let has = |part: &Envelope, property: &(Box<str>, Box<str>)| part.message.properties.user.contains(property);
        let user = first.message.properties.user.iter().filter(|property| {
            is_alone || !property.0.starts_with(PREFIX) && parts.iter().all(|part| has(part, property))
        });
        let content_type = match self.form {
            BatchForm::Json if parts.iter().all(is_event) => "application/cloudevents-batch+json",
            BatchForm::Json => "application/json",
            BatchForm::Ndjson => "application/x-ndjson",
        };
        Properties {
            payload_is_utf8: true,
            content_type: Some(content_type.into()),
            user: user.cloned().collect(),
            ..Properties::default()
        }
    }

    fn payload(&self, parts: &[Envelope]) -> Bytes {
        let (open, between, close) = match self.form {
            BatchForm::Json => ("[", ",", "]"),
            BatchForm::Ndjson => ("", "\n", "\n"),
        };
        let size = parts.iter().map(|part| part.message.payload.len() + 1).sum::<usize>();
        let mut out = Vec::with_capacity(size + 2);
        out.extend_from_slice(open.as_bytes());
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                out.extend_from_slice(between.as_bytes());
            }
            out.extend_from_slice(&self.part(&part.message.payload));
        }
        out.extend_from_slice(close.as_bytes());
        out.into()
    }

    /// JSON as it is; a text as a JSON text, and bytes that are none in base64.
    fn part<'p>(&self, payload: &'p [u8]) -> Cow<'p, [u8]> {
        let text = std::str::from_utf8(payload).ok();
        // The parser does not look into texts that nobody asks for.
        if text.is_none_or(|text| serde_json::from_str::<IgnoredAny>(text).is_err()) {
            let text = text.map_or_else(|| Cow::Owned(BASE64_STANDARD.encode(payload)), Cow::Borrowed);
            return Cow::Owned(serde_json::Value::String(text.into_owned()).to_string().into_bytes());
        }
        let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
        if self.form == BatchForm::Ndjson && payload.iter().any(is_break) {
            // Within JSON texts there are none: control characters are escaped there.
            return Cow::Owned(payload.iter().map(|byte| if is_break(byte) { b' ' } else { *byte }).collect());
        }
        Cow::Borrowed(payload)
    }
}

fn is_event(part: &Envelope) -> bool {
    part.message.properties.content_type.as_deref() == Some("application/cloudevents+json")
}

impl BatchForm {
    /// In `routes.yaml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
        }
    }
}

impl fmt::Display for Batch {
    /// As in `routes.yaml`, all of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, count, bytes, linger, compress } = self;
        write!(f, "{}, at most {count} messages and {bytes}, {} after the first", form.name(), show_duration(*linger))?;
        compress.map_or(Ok(()), |coding| write!(f, ", {}", coding.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::headers;
    use crate::message::tests_support::message;
    use crate::router::Unpack;

    const JSON: Batch =
        Batch { form: BatchForm::Json, count: 10, bytes: Batch::BYTES, linger: Batch::LINGER, compress: None };
    const NDJSON: Batch = Batch { form: BatchForm::Ndjson, ..JSON };

    fn part(payload: &[u8]) -> Envelope {
        let mut message = message("t/a", b"");
        message.payload = Bytes::copy_from_slice(payload);
        Envelope { destination: "all/x".into(), key: None, ordinal: 7, failure: None, batch: Some("r".into()), message }
    }

    fn id(counter: u64) -> MessageId {
        MessageId { site: "here".into(), run: 1, counter }
    }

    #[test]
    fn parts_stand_in_their_order_as_json_whatever_they_are() {
        let cases: [(&[&[u8]], &str, &str); 7] = [
            (&[b"{\"a\": 1}", b"2", b"[]"], "[{\"a\": 1},2,[]]", "{\"a\": 1}\n2\n[]\n"),
            (&[b"1"], "[1]", "1\n"),
            (&[b"81.5 C", b""], "[\"81.5 C\",\"\"]", "\"81.5 C\"\n\"\"\n"),
            (&[b"{\"a\":\"\xff\"}", b"1"], "[\"eyJhIjoi/yJ9\",1]", "\"eyJhIjoi/yJ9\"\n1\n"),
            (&[b"\xff\x00"], "[\"/wA=\"]", "\"/wA=\"\n"),
            (&[b"{\r\n\"a\":\n\"\\n\"}"], "[{\r\n\"a\":\n\"\\n\"}]", "{  \"a\": \"\\n\"}\n"),
            (&[b"a\nb", b"{\"a\":"], "[\"a\\nb\",\"{\\\"a\\\":\"]", "\"a\\nb\"\n\"{\\\"a\\\":\"\n"),
        ];
        for (parts, array, lines) in cases {
            let parts: Vec<_> = parts.iter().map(|payload| part(payload)).collect();
            let packed = |batch: Batch| batch.pack(&parts, id(1)).unwrap().message.payload;
            assert_eq!((&packed(JSON)[..], &packed(NDJSON)[..]), (array.as_bytes(), lines.as_bytes()));
            assert!(serde_json::from_slice::<Vec<IgnoredAny>>(&packed(JSON)).is_ok_and(|all| all.len() == parts.len()));
        }
        assert!(JSON.pack(&[], id(1)).is_none());
    }

    #[test]
    fn a_batch_says_what_all_its_parts_say_and_is_as_young_as_the_last() {
        let (mut one, mut two) = (part(b"1"), part(b"2"));
        let user =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        one.message.properties.user = user(&[("shift", "early"), ("line", "a"), ("tg-id", "x")]);
        two.message.properties.user = user(&[("line", "a"), ("shift", "late"), ("tg-id", "x")]);
        one.message.properties.response_topic = Some("re".into());
        (one.message.qos, two.message.qos) = (Qos::ExactlyOnce, Qos::AtMostOnce);
        (one.message.origin.hops, two.message.origin.hops) = (3, 1);
        (one.message.origin.client_id, two.message.origin.client_id) = (Some("p".into()), Some("q".into()));
        (one.message.origin.user, two.message.origin.user) = (Some("u".into()), Some("u".into()));
        two.message.time.0 += 5;
        let Envelope { destination, key, ordinal, failure, batch, message } =
            JSON.pack(&[one, two.clone()], id(9)).unwrap();
        assert_eq!((&*destination, key, ordinal, failure, batch), ("all/x", None, 0, None, None));
        assert_eq!((message.id, message.topic.as_str(), message.qos), (id(9), "all/x", Qos::ExactlyOnce));
        assert_eq!((message.time, message.origin.hops), (two.message.time, 3));
        assert_eq!((message.origin.client_id, message.origin.user.as_deref()), (None, Some("u")));
        assert_eq!(message.properties.user, user(&[("line", "a")]));
        assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
        assert_eq!(message.properties.response_topic, None);
    }

    #[test]
    fn r12_a_batch_of_one_is_known_as_its_part_and_one_of_several_as_itself() {
        let id_of = |envelope: &Envelope| {
            let stamps = headers::stamps(envelope, "here", headers::Sending { seq: "1", backfill: false });
            stamps.into_iter().find(|(name, _)| *name == headers::ID).unwrap().1
        };
        let mut relayed = part(b"1");
        relayed.message.origin.path = vec!["ship".into()];
        relayed.message.properties.user = vec![(headers::ID.into(), format!("{}.2@ship", relayed.message.id).into())];
        let other = part(b"2");
        for one in [&relayed, &other] {
            let alone = JSON.pack(std::slice::from_ref(one), id(9)).unwrap();
            assert_eq!(id_of(&alone), id_of(one));
        }
        assert_ne!(id_of(&relayed), id_of(&other), "parts of one message");
        let both = JSON.pack(&[relayed, other], id(9)).unwrap();
        assert_eq!(id_of(&both), id(9).to_string(), "nothing behind it: the same origin whatever its size");
    }

    #[test]
    fn events_make_a_batch_of_events_and_the_whole_is_compressed() {
        let mut event = part(b"{}");
        event.message.properties.content_type = Some("application/cloudevents+json".into());
        let content_type = |batch: Batch, parts: &[Envelope]| {
            batch.pack(parts, id(1)).unwrap().message.properties.content_type.unwrap().to_string()
        };
        assert_eq!(content_type(JSON, &[event.clone(), event.clone()]), "application/cloudevents-batch+json");
        assert_eq!(content_type(JSON, &[event.clone(), part(b"{}")]), "application/json");
        assert_eq!(content_type(NDJSON, &[event]), "application/x-ndjson");
        let zipped = Batch { compress: Some(Coding::Gzip), ..JSON };
        let message = zipped.pack(&[part(b"1"), part(b"2")], id(1)).unwrap().message;
        let coding = Unpack::AsTold.of(&message.properties).unwrap().unwrap();
        assert_eq!(coding.unpack(&message.payload).unwrap(), b"[1,2]");
    }
}
