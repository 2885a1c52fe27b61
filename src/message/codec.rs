//! The bytes of an [`Envelope`] in a record, format 1. Little endian; a text or byte string is its length (u32) and
//! its bytes; an absent optional one has length `u32::MAX`.
//!
//! ```text
//! envelope: version u8 = 1 (2: with the reason of a failure behind the key; 3: with the route of a batch there) · ordinal u16 · destination text · key text? · message
//! message:  id (site text, run u64, counter u64) · topic text · flags u8 (qos 0-1, retain 2, utf8 3, expiry 4,
//!           time unsynchronised 5) · time u64 · accepted (wall u64, up u64, boot u32) · [expiry_s u32] · site text · client_id text? · user text? · hops u8
//!           path (count u16, texts) · content_type text? · response_topic text? · correlation bytes?
//!           user properties (count u32, pairs of texts) · payload bytes
//! ```
//!
//! The message is encoded once for all targets that get the same; only the head before it differs. Decoding shares the payload
//! with the record's buffer. The bytes come from our own disk behind a checksum, and are still never trusted: a
//! length beyond the end is an error, and no allocation follows a length before the bytes are there.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{Envelope, Message, MessageId, Origin, Properties, Qos};
use crate::clock::{Moment, WallMs};
use crate::topic::TopicName;

const VERSION: u8 = 1;
/// The same with a reason why it cannot be sent. Written only then, so that all others are read by earlier programs too.
const VERSION_FAILED: u8 = 2;
/// The same with the route whose batch it is a part of.
const VERSION_BATCHED: u8 = 3;
const ABSENT: u32 = u32::MAX;

/// A record that holds no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length points past the end.
    #[error("the record ends in the middle of its {0}")]
    Short(&'static str),
    /// Not UTF-8, or not a topic.
    #[error("the record's {0} is not valid")]
    Invalid(&'static str),
    /// Written by a later version of Tidegate.
    #[error("the record has format {0}; this program reads formats 1 to 3")]
    Version(u8),
}

/// Where encoded bytes go.
trait Out {
    fn put(&mut self, bytes: &[u8]);
}

impl Out for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Only how many there are.
struct Count(usize);

impl Out for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// What stands before the message in a record, in parts.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// See [`Envelope::destination`].
    pub destination: &'a str,
    /// See [`Envelope::key`].
    pub key: Option<&'a str>,
    /// See [`Envelope::ordinal`].
    pub ordinal: u16,
    /// See [`Envelope::failure`].
    pub failure: Option<&'a str>,
    /// See [`Envelope::batch`]; what failed is a part of none.
    pub batch: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// Of a message's first record there, without anything more.
    #[must_use]
    pub const fn to(destination: &'a str) -> Self {
        Self { destination, key: None, ordinal: 0, failure: None, batch: None }
    }

    /// Appends its bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.put_to(out);
    }

    /// How many that are.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let mut count = Count(0);
        self.put_to(&mut count);
        count.0
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.put(&mut out);
        out.into()
    }

    fn put_to(&self, out: &mut impl Out) {
        let (version, more) = match (self.failure, self.batch) {
            (None, None) => (VERSION, None),
            (Some(reason), _) => (VERSION_FAILED, Some(reason)),
            (None, Some(route)) => (VERSION_BATCHED, Some(route)),
        };
        out.put(&[version]);
        out.put(&self.ordinal.to_le_bytes());
        put_bytes(out, self.destination.as_bytes());
        put_optional(out, self.key.map(str::as_bytes));
        if let Some(more) = more {
            put_bytes(out, more.as_bytes());
        }
    }
}

impl Envelope {
    /// The bytes before the message's own: see [`Message::encode`].
    #[must_use]
    pub fn encode_head(destination: &str, key: Option<&str>, ordinal: u16) -> Bytes {
        Head { key, ordinal, ..Head::to(destination) }.encode()
    }

    /// The head of this one.
    #[must_use]
    pub fn head(&self) -> Bytes {
        let Self { destination, key, ordinal, failure, batch, message: _ } = self;
        let (key, failure, batch) = (key.as_deref(), failure.as_deref(), batch.as_deref());
        Head { destination, key, ordinal: *ordinal, failure, batch }.encode()
    }

    /// Reads what [`Envelope::encode_head`] and [`Message::encode`] wrote, one behind the other.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are none of ours.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes = &mut bytes;
        let version = take_u8(bytes, "version")?;
        if !matches!(version, VERSION | VERSION_FAILED | VERSION_BATCHED) {
            return Err(DecodeError::Version(version));
        }
        let ordinal = take_u16(bytes, "ordinal")?;
        let destination = take_text(bytes, "destination")?;
        let key = take_optional_text(bytes, "key")?;
        let failure = if version == VERSION_FAILED { Some(take_text(bytes, "failure")?) } else { None };
        let batch = if version == VERSION_BATCHED { Some(take_text(bytes, "batch")?) } else { None };
        Ok(Self { destination, key, ordinal, failure, batch, message: Message::decode(bytes)? })
    }
}

impl Message {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.put_fields(&mut out);
        out.put(&self.payload);
        out.into()
    }

    /// How many that are.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let mut count = Count(0);
        self.put_to(&mut count);
        count.0 + self.payload.len()
    }

    /// Appends all of them but the payload's own, which follow.
    pub fn put_fields(&self, out: &mut Vec<u8>) {
        self.put_to(out);
    }

    fn put_to(&self, out: &mut impl Out) {
        put_bytes(out, self.id.site.as_bytes());
        out.put(&self.id.run.to_le_bytes());
        out.put(&self.id.counter.to_le_bytes());
        put_bytes(out, self.topic.as_str().as_bytes());
        let flags = self.qos.bits()
            | (u8::from(self.retain) << 2)
            | (u8::from(self.properties.payload_is_utf8) << 3)
            | (u8::from(self.expiry_s.is_some()) << 4)
            | (u8::from(self.time_unsync) << 5);
        out.put(&[flags]);
        out.put(&self.time.0.to_le_bytes());
        out.put(&self.accepted.wall.0.to_le_bytes());
        out.put(&self.accepted.packed().to_le_bytes());
        out.put(&self.accepted.boot.to_le_bytes());
        if let Some(seconds) = self.expiry_s {
            out.put(&seconds.to_le_bytes());
        }
        put_origin(out, &self.origin);
        put_properties(out, &self.properties);
        put_len(out, self.payload.len());
    }

    /// Reads what [`Message::encode`] wrote from the front of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are none of ours.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, DecodeError> {
        let site: Arc<str> = take_text(bytes, "id")?.into();
        let id = MessageId { site, run: take_u64(bytes, "id")?, counter: take_u64(bytes, "id")? };
        let topic =
            TopicName::new(&take_text(bytes, "topic")?).map_err(|_not_a_topic| DecodeError::Invalid("topic"))?;
        let flags = take_u8(bytes, "flags")?;
        let qos = Qos::from_bits(flags & 3).ok_or(DecodeError::Invalid("qos"))?;
        let time = WallMs(take_u64(bytes, "time")?);
        let accepted = WallMs(take_u64(bytes, "time")?);
        let accepted = Moment::unpacked(accepted, take_u64(bytes, "time")?, take_u32(bytes, "time")?);
        let expiry_s = if flags & 16 == 0 { None } else { Some(take_u32(bytes, "expiry")?) };
        let origin = take_origin(bytes)?;
        let properties = take_properties(bytes, flags & 8 != 0)?;
        let payload = take_bytes(bytes, "payload")?;
        Ok(Self {
            id,
            topic,
            payload,
            qos,
            retain: flags & 4 != 0,
            time,
            time_unsync: flags & 32 != 0,
            expiry_s,
            accepted,
            origin,
            properties,
        })
    }
}

fn put_origin(out: &mut impl Out, origin: &Origin) {
    put_bytes(out, origin.site.as_bytes());
    put_optional(out, origin.client_id.as_ref().map(|text| text.as_bytes()));
    put_optional(out, origin.user.as_ref().map(|text| text.as_bytes()));
    out.put(&[origin.hops]);
    // A path is at most 16 sites long (R12): longer ones are not accepted, so the cut never happens.
    let count = u16::try_from(origin.path.len()).unwrap_or(u16::MAX);
    out.put(&count.to_le_bytes());
    for site in origin.path.iter().take(usize::from(count)) {
        put_bytes(out, site.as_bytes());
    }
}

fn take_origin(bytes: &mut Bytes) -> Result<Origin, DecodeError> {
    let site = take_text(bytes, "site")?.into();
    let client_id = take_optional_text(bytes, "client id")?.map(Into::into);
    let user = take_optional_text(bytes, "user")?.map(Into::into);
    let hops = take_u8(bytes, "hops")?;
    let count = take_u16(bytes, "path")?;
    let path = (0..count).map(|_| take_text(bytes, "path")).collect::<Result<_, _>>()?;
    Ok(Origin { site, client_id, user, path, hops })
}

fn put_properties(out: &mut impl Out, properties: &Properties) {
    put_optional(out, properties.content_type.as_ref().map(|text| text.as_bytes()));
    put_optional(out, properties.response_topic.as_ref().map(|text| text.as_bytes()));
    put_optional(out, properties.correlation_data.as_deref());
    put_len(out, properties.user.len());
    for (name, value) in &properties.user {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn take_properties(bytes: &mut Bytes, payload_is_utf8: bool) -> Result<Properties, DecodeError> {
    let content_type = take_optional_text(bytes, "content type")?;
    let response_topic = take_optional_text(bytes, "response topic")?;
    let correlation_data = take_optional(bytes, "correlation data")?;
    let count = take_u32(bytes, "user properties")?;
    let mut user = Vec::new();
    for _ in 0..count {
        user.push((take_text(bytes, "user property")?, take_text(bytes, "user property")?));
    }
    Ok(Properties { payload_is_utf8, content_type, response_topic, correlation_data, user })
}

fn put_bytes(out: &mut impl Out, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put(bytes);
}

fn put_len(out: &mut impl Out, len: usize) {
    // A packet is at most 256 MiB (MQTT 2.1.4), so a length always fits; a longer one could not have come in.
    out.put(&u32::try_from(len).unwrap_or(ABSENT).to_le_bytes());
}

fn put_optional(out: &mut impl Out, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => put_bytes(out, bytes),
        None => out.put(&ABSENT.to_le_bytes()),
    }
}

fn take_u8(bytes: &mut Bytes, what: &'static str) -> Result<u8, DecodeError> {
    bytes.try_get_u8().map_err(|_short| DecodeError::Short(what))
}

fn take_u16(bytes: &mut Bytes, what: &'static str) -> Result<u16, DecodeError> {
    bytes.try_get_u16_le().map_err(|_short| DecodeError::Short(what))
}

fn take_u32(bytes: &mut Bytes, what: &'static str) -> Result<u32, DecodeError> {
    bytes.try_get_u32_le().map_err(|_short| DecodeError::Short(what))
}

fn take_u64(bytes: &mut Bytes, what: &'static str) -> Result<u64, DecodeError> {
    bytes.try_get_u64_le().map_err(|_short| DecodeError::Short(what))
}

fn take_bytes(bytes: &mut Bytes, what: &'static str) -> Result<Bytes, DecodeError> {
    take_optional(bytes, what)?.ok_or(DecodeError::Invalid(what))
}

fn take_optional(bytes: &mut Bytes, what: &'static str) -> Result<Option<Bytes>, DecodeError> {
    let length = take_u32(bytes, what)?;
    if length == ABSENT {
        return Ok(None);
    }
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() => Ok(Some(bytes.split_to(length))),
        _ => Err(DecodeError::Short(what)),
    }
}

fn take_text(bytes: &mut Bytes, what: &'static str) -> Result<Box<str>, DecodeError> {
    take_optional_text(bytes, what)?.ok_or(DecodeError::Invalid(what))
}

fn take_optional_text(bytes: &mut Bytes, what: &'static str) -> Result<Option<Box<str>>, DecodeError> {
    let Some(raw) = take_optional(bytes, what)? else { return Ok(None) };
    let text = std::str::from_utf8(&raw).map_err(|_not_utf8| DecodeError::Invalid(what))?;
    Ok(Some(text.into()))
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::message;
    use super::*;

    fn full() -> Envelope {
        let mut message = message("factory/1/press/telemetry", b"\0\xFFpayload");
        message.qos = Qos::ExactlyOnce;
        message.retain = true;
        message.expiry_s = Some(60);
        message.origin.client_id = Some("press-1".into());
        message.origin.path = vec!["a".into(), "b".into()];
        message.origin.hops = 2;
        message.properties = Properties {
            payload_is_utf8: true,
            content_type: Some("application/json".into()),
            response_topic: Some("re/ply".into()),
            correlation_data: Some(Bytes::from_static(b"\x01\x02")),
            user: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
        };
        Envelope {
            destination: "x/y".into(),
            key: Some("press".into()),
            ordinal: 3,
            failure: None,
            batch: None,
            message,
        }
    }

    fn bytes_of(envelope: &Envelope) -> Bytes {
        let (head, body) = (envelope.head(), envelope.message.encode());
        assert_eq!(body.len(), envelope.message.encoded_len());
        [head, body].concat().into()
    }

    #[test]
    fn an_envelope_reads_back_as_it_was_written() {
        assert_eq!(Envelope::decode(bytes_of(&full())), Ok(full()));
        let failed = Envelope { failure: Some("transform: no `{payload.line}`".into()), ..full() };
        assert_eq!(Envelope::decode(bytes_of(&failed)), Ok(failed));
        let batched = Envelope { batch: Some("route".into()), ..full() };
        assert_eq!(Envelope::decode(bytes_of(&batched)), Ok(batched));
    }

    #[test]
    fn every_truncation_is_an_error_and_no_flip_panics() {
        let bytes = bytes_of(&Envelope { failure: Some("why".into()), ..full() });
        for end in 0..bytes.len() {
            assert!(Envelope::decode(bytes.slice(..end)).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            let _whatever = Envelope::decode(flipped.into());
        }
    }
}
