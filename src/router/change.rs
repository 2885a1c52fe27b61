//! What a route makes of a message on its way: another QoS, other fields, another payload. Pure: the message as it came, and
//! out comes the one that the route's targets get.
//!
//! The steps go in this order, whatever the order in the file: `decompress`, `decode`; `pick`, `drop`, `set`, `payload`, `envelope`,
//! `compress`, then `qos` and `retain`. Templates see the message as it came, its payload decompressed and decoded.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Number;

use super::coding::{CONTENT_ENCODING, Coding, CodingError, Unpack};
use super::doc::{Doc, Path};
use super::event::{self, Binding, Event};
use super::json::{self, Leaf};
use super::sparkplug::{self, Births, SparkplugError};
use super::template::{Template, Unfilled};
use super::view::{Part, View};
use crate::message::{Message, Properties, Qos, UnfitText};

/// What a route changes; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What the payload is taken out of first.
    pub decompress: Option<Unpack>,
    /// What the payload is written in, and is made JSON of.
    pub decode: Option<Decode>,
    /// Only these fields of a JSON payload stay.
    pub pick: Vec<FieldPath>,
    /// These fields go.
    pub drop: Vec<FieldPath>,
    /// These are set, in this order.
    pub set: Vec<(Place, Given)>,
    /// The payload as a text.
    pub payload: Option<Template>,
    /// The message as an event of CloudEvents.
    pub envelope: Option<Event>,
    /// What the payload is put into last.
    pub compress: Option<Coding>,
    /// The QoS that its targets see.
    pub qos: Option<Qos>,
    /// Whether its targets keep it.
    pub retain: Option<bool>,
}

/// What a payload is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decode {
    /// Eclipse Sparkplug 3.0.
    SparkplugB,
}

/// A way into a payload: `a.b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(Path);

/// What `set` sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A field of a JSON payload.
    Payload(FieldPath),
    /// A user property or header; one of that name is replaced.
    Property(Box<str>),
    /// MQTT 5's Content Type.
    ContentType,
    /// MQTT 5's Response Topic.
    ResponseTopic,
}

/// To what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// `true`, `false`.
    Bool(bool),
    /// As written in the file.
    Number(Number),
    /// A text. One that is a single part of the message keeps that part's type.
    Template(Template),
}

/// Who is told what each step has made, under its key.
pub type Told<'t> = Option<&'t mut dyn FnMut(&'static str, &Message)>;

/// Why a route could not make its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Its template needs what is not there.
    #[error(transparent)]
    Unfilled(#[from] Unfilled),
    /// `pick`, `drop` and `set` of fields need one.
    #[error("the payload is no JSON section, so it has no fields")]
    NoSection,
    /// It cannot be decompressed.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// It cannot be decoded.
    #[error(transparent)]
    Sparkplug(#[from] SparkplugError),
    /// A library failed.
    #[error("the payload cannot be compressed")]
    Pack,
    /// No remote takes it.
    #[error("`{0}` would be {1}")]
    Property(String, UnfitText),
    /// CloudEvents has no such value.
    #[error("the event's `{0}` would be {1:?}: it has to be a text without control characters, and not empty")]
    Attribute(&'static str, String),
    /// Of an event.
    #[error("the event's `time` would be {0:?}: neither RFC 3339 nor milliseconds since 1970")]
    Time(String),
}

impl FieldPath {
    /// Reads `a.b`; `None` where a name is empty.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let path: Path = text.split('.').map(Into::into).collect();
        (!path.iter().any(|name| name.is_empty())).then_some(Self(path))
    }

    /// The names on the way.
    pub(super) const fn steps(&self) -> &[Box<str>] {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl Place {
    /// Reads `payload.FIELD`, `property.NAME`, `content_type`, `response_topic`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("payload.") {
            return FieldPath::parse(path).map(Self::Payload);
        }
        match (text, text.strip_prefix("property.")) {
            (_, Some(name)) if !name.is_empty() => Some(Self::Property(name.into())),
            ("content_type", _) => Some(Self::ContentType),
            ("response_topic", _) => Some(Self::ResponseTopic),
            _ => None,
        }
    }
}

impl Change {
    /// Whether it leaves every message as it is.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether its targets are told by it to delete what they retain: what they see of it decides what an empty payload means (R21).
    #[must_use]
    pub fn deletes(&self, message: &Message) -> bool {
        message.payload.is_empty() && self.retain.unwrap_or(message.retain)
    }

    /// Whether what it makes depends on who gets it.
    #[must_use]
    pub const fn is_by_binding(&self) -> bool {
        self.envelope.is_some()
    }

    /// The message with the payload that all else is about: decompressed and decoded. `None`: as it came. `topic`: the one that it
    /// arrived on.
    ///
    /// # Errors
    /// The payload is not as the route, or the message, says.
    pub fn unpack(
        &self,
        message: &Message,
        topic: &str,
        births: &Mutex<Births>,
        mut told: Told<'_>,
    ) -> Result<Option<Message>, ChangeError> {
        let is_empty = message.payload.is_empty();
        let coding = self.decompress.filter(|_| !is_empty).map(|unpack| unpack.of(&message.properties)).transpose()?;
        let mut plain = None;
        if let Some(coding) = coding.flatten() {
            let message = plain.insert(message.clone());
            message.payload = coding.unpack(&message.payload)?.into();
            message.properties.user.retain(|(name, _)| !name.eq_ignore_ascii_case(CONTENT_ENCODING));
            tell(&mut told, "decompress", message);
        }
        let Some(Decode::SparkplugB) = self.decode else { return Ok(plain) };
        let payload = &plain.as_ref().unwrap_or(message).payload;
        if let Some(json) = sparkplug::decode(topic, payload, &mut births.lock())? {
            let message = plain.get_or_insert_with(|| message.clone());
            message.payload = json.into();
            message.properties.content_type = Some("application/json".into());
            message.properties.payload_is_utf8 = true;
            tell(&mut told, "decode", message);
        }
        Ok(plain)
    }

    /// The message that the route's targets of this binding get. `view` is of what [`Change::unpack`] gave.
    ///
    /// # Errors
    /// The message lacks what is made of it.
    pub fn make(&self, view: View<'_, '_>, binding: Binding) -> Result<Message, ChangeError> {
        self.make_in_steps(view, binding, None)
    }

    /// The same, step by step.
    ///
    /// # Errors
    /// The message lacks what is made of it. The steps before are told.
    pub fn make_in_steps(
        &self,
        view: View<'_, '_>,
        binding: Binding,
        mut told: Told<'_>,
    ) -> Result<Message, ChangeError> {
        let mut message = view.subject.message().clone();
        // That a retained message is deleted passes (R21).
        let is_delete = self.deletes(&message);
        if !is_delete {
            self.change_fields(view, &mut message, &mut told)?;
        }
        if !self.set.is_empty() {
            self.set_properties(view, &mut message.properties, is_delete)?;
            tell(&mut told, "set", &message);
        }
        if let Some(template) = self.payload.as_ref().filter(|_| !is_delete) {
            message.payload = Bytes::from(template.fill_text(view)?.into_owned());
            tell(&mut told, "payload", &message);
        }
        message.retain = self.retain.unwrap_or(message.retain);
        if let Some(event) = &self.envelope {
            event.wrap(view, binding, &mut message)?;
            tell(&mut told, "envelope", &message);
        }
        if let Some(coding) = self.compress.filter(|_| !message.payload.is_empty()) {
            message.payload = coding.pack(&message.payload).ok_or(ChangeError::Pack)?.into();
            message.properties.payload_is_utf8 = false;
            event::put(&mut message.properties, CONTENT_ENCODING, coding.name());
            tell(&mut told, "compress", &message);
        }
        message.qos = self.qos.unwrap_or(message.qos);
        Ok(message)
    }

    fn set_properties(
        &self,
        view: View<'_, '_>,
        properties: &mut Properties,
        is_delete: bool,
    ) -> Result<(), ChangeError> {
        for (place, given) in &self.set {
            if matches!(place, Place::Payload(_)) {
                continue;
            }
            let text = given.text(view).map_err(ChangeError::from);
            let text = match text.and_then(|text| check_property(place, &text).map(|()| text)) {
                Ok(text) => text,
                // It lacks what others have, and passes all the same.
                Err(_) if is_delete => continue,
                Err(error) => return Err(error),
            };
            match place {
                Place::Payload(_) => {}
                Place::Property(name) => event::put(properties, name, &text),
                Place::ContentType => properties.content_type = Some(text.into()),
                Place::ResponseTopic => properties.response_topic = Some(text.into()),
            }
        }
        Ok(())
    }

    /// `pick`, `drop` and `set` of the payload's fields.
    fn change_fields(&self, view: View<'_, '_>, message: &mut Message, told: &mut Told<'_>) -> Result<(), ChangeError> {
        let sets = self.set.iter().any(|(place, _)| matches!(place, Place::Payload(_)));
        if self.pick.is_empty() && self.drop.is_empty() && !sets {
            return Ok(());
        }
        // Asked of the parsed payload first, which has its limit.
        let is_section = view.subject.payload(&[]).is_some_and(|root| *root.leaf() == Leaf::Map);
        let doc = if is_section { Doc::parse(&message.payload).ok() } else { None };
        let mut doc = doc.ok_or(ChangeError::NoSection)?;
        if !self.pick.is_empty() {
            let paths: Vec<Path> = self.pick.iter().map(|path| path.0.clone()).collect();
            doc = doc.pick(&paths);
            tell_fields(told, "pick", &doc, message)?;
        }
        if !self.drop.is_empty() {
            self.drop.iter().for_each(|path| doc.remove(&path.0));
            tell_fields(told, "drop", &doc, message)?;
        }
        for (place, given) in &self.set {
            if let Place::Payload(path) = place {
                doc.put(&path.0, given.value(view)?);
            }
        }
        write(&doc, message)
    }
}

/// Refused here and not by the remote, which would end the connection for it, and take nothing behind it.
fn check_property(place: &Place, text: &str) -> Result<(), ChangeError> {
    let unfit = match place {
        Place::ResponseTopic => UnfitText::of_topic(text),
        Place::Payload(_) | Place::Property(_) | Place::ContentType => UnfitText::of(text),
    };
    let Some(unfit) = unfit else { return Ok(()) };
    let name = match place {
        Place::Payload(path) => format!("payload.{path}"),
        Place::Property(name) => format!("property.{name}"),
        Place::ContentType => "content_type".to_owned(),
        Place::ResponseTopic => "response_topic".to_owned(),
    };
    Err(ChangeError::Property(name, unfit))
}

impl Given {
    fn text<'v>(&'v self, view: View<'v, '_>) -> Result<Cow<'v, str>, Unfilled> {
        match self {
            Self::Bool(value) => Ok(Cow::Borrowed(if *value { "true" } else { "false" })),
            Self::Number(number) => Ok(Cow::Owned(number.to_string())),
            Self::Template(template) => template.fill_text(view),
        }
    }

    fn value(&self, view: View<'_, '_>) -> Result<Doc, Unfilled> {
        match self {
            Self::Bool(value) => Ok(Doc::Bool(*value)),
            Self::Number(number) => Ok(Doc::Number(number.clone())),
            Self::Template(template) => match template.single(view) {
                Some(Part::Bool(value)) => Ok(Doc::Bool(value)),
                Some(Part::Number(value)) => Ok(number(value)),
                Some(Part::Json(found)) => Ok(copied(found)),
                Some(Part::Text(text)) => Ok(Doc::Text(text.into_owned())),
                None => Ok(Doc::Text(template.fill_text(view)?.into_owned())),
            },
        }
    }
}

fn tell(told: &mut Told<'_>, step: &'static str, message: &Message) {
    if let Some(told) = told {
        told(step, message);
    }
}

/// Written for who wants to see it; else once, behind the last step.
fn tell_fields(told: &mut Told<'_>, step: &'static str, doc: &Doc, message: &mut Message) -> Result<(), ChangeError> {
    if told.is_some() {
        write(doc, message)?;
        tell(told, step, message);
    }
    Ok(())
}

fn write(doc: &Doc, message: &mut Message) -> Result<(), ChangeError> {
    message.payload = serde_json::to_vec(doc).map_err(|_never| ChangeError::NoSection)?.into();
    Ok(())
}

/// A value of the payload in the one form that equal values have.
pub(super) fn canonical(found: json::Found<'_, '_>) -> Vec<u8> {
    serde_json::to_vec(&copied(found)).unwrap_or_default()
}

/// A value of the payload, whole.
fn copied(found: json::Found<'_, '_>) -> Doc {
    match found.leaf() {
        Leaf::Null => Doc::Null,
        Leaf::Bool(value) => Doc::Bool(*value),
        Leaf::Number(value) => number(*value),
        Leaf::Text(text) => Doc::Text(text.to_string()),
        Leaf::List => Doc::List(found.children().map(copied).collect()),
        Leaf::Map => Doc::Map(found.children().map(|child| (child.key().to_owned(), copied(child))).collect()),
    }
}

fn number(value: json::Number) -> Doc {
    let number = match value {
        json::Number::Whole(whole) => Number::from_i128(whole),
        json::Number::Float(float) => Number::from_f64(float),
    };
    number.map_or(Doc::Null, Doc::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;
    use crate::router::{Captures, Subject};

    fn paths(texts: &[&str]) -> Vec<FieldPath> {
        texts.iter().map(|text| FieldPath::parse(text).unwrap()).collect()
    }

    fn template(text: &str) -> Given {
        Given::Template(Template::parse(text).unwrap())
    }

    fn set(pairs: &[(&str, Given)]) -> Vec<(Place, Given)> {
        pairs.iter().map(|(place, given)| (Place::parse(place).unwrap(), given.clone())).collect()
    }

    fn made(change: &Change, message: &Message) -> (Option<Message>, Option<ChangeError>) {
        let (subject, captures) = (Subject::new(message), Captures::of(message.topic.as_str()));
        match change.make(View::new(&subject, &captures), Binding::Mqtt) {
            Ok(message) => (Some(message), None),
            Err(error) => (None, Some(error)),
        }
    }

    const PRESS: &[u8] = br#"{"z":1,"temp":81.50,"a":{"b":[1,{"c":null}],"d":"x"},"big":18446744073709551615}"#;

    #[test]
    fn fields_are_picked_dropped_and_set_and_stay_in_their_order() {
        let change = |pick: &[&str], drop: &[&str], values: &[(&str, Given)]| Change {
            pick: paths(pick),
            drop: paths(drop),
            set: set(values),
            ..Change::default()
        };
        for (change, expected) in [
            (change(&["temp", "z"], &[], &[]), r#"{"z":1,"temp":81.50}"#),
            (change(&["a.d", "none", "temp.x"], &[], &[]), r#"{"a":{"d":"x"}}"#),
            (change(&["a", "a.d"], &[], &[]), r#"{"a":{"b":[1,{"c":null}],"d":"x"}}"#),
            (change(&[], &["a.b", "temp", "none.x"], &[]), r#"{"z":1,"a":{"d":"x"},"big":18446744073709551615}"#),
            (
                change(&["z"], &["z"], &[("payload.site", template("{site}")), ("payload.n.m", Given::Bool(true))]),
                r#"{"site":"test","n":{"m":true}}"#,
            ),
            (
                change(
                    &["z"],
                    &[],
                    &[
                        ("payload.t", template("{payload.temp}")),
                        ("payload.text", template("{payload.temp} C")),
                        ("payload.a", template("{payload.a.b}")),
                        ("payload.q", template("{qos}")),
                        ("payload.z.deep", Given::Number(5.into())),
                        ("payload.quoted", template("say \"{site}\"")),
                    ],
                ),
                r#"{"z":{"deep":5},"t":81.5,"text":"81.5 C","a":[1,{"c":null}],"q":1,"quoted":"say \"test\""}"#,
            ),
        ] {
            let made = made(&change, &message("a/b", PRESS)).0.unwrap();
            assert_eq!(std::str::from_utf8(&made.payload).unwrap(), expected, "{change:?}");
        }
    }

    #[test]
    fn properties_payload_qos_and_retain_are_set_and_the_rest_stays() {
        let mut before = message("a/b", PRESS);
        before.properties.user = vec![("k".into(), "v".into()), ("x".into(), "1".into()), ("x".into(), "2".into())];
        let change = Change {
            set: set(&[
                ("property.x", template("{topic}")),
                ("property.n", Given::Number(7.into())),
                ("content_type", template("text/plain")),
                ("response_topic", template("re/{payload.a.d}")),
            ]),
            payload: Some(Template::parse("{payload.temp} at {topic}").unwrap()),
            qos: Some(Qos::ExactlyOnce),
            retain: Some(true),
            ..Change::default()
        };
        let after = made(&change, &before).0.unwrap();
        assert_eq!(&after.payload[..], b"81.5 at a/b");
        let properties: Vec<_> = after.properties.user.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(properties, [("k", "v"), ("x", "a/b"), ("n", "7")]);
        assert_eq!(after.properties.content_type.as_deref(), Some("text/plain"));
        assert_eq!(after.properties.response_topic.as_deref(), Some("re/x"));
        assert_eq!((after.qos, after.retain), (Qos::ExactlyOnce, true));
        assert_eq!((after.id, after.topic, after.time), (before.id, before.topic, before.time));
        assert!(Change::default().is_nothing() && !change.is_nothing());
    }

    #[test]
    fn r28_what_cannot_be_made_says_why() {
        let drop = Change { drop: paths(&["a"]), ..Change::default() };
        for payload in [&b"21.5"[..], b"[1]", b"{", b""] {
            assert_eq!(made(&drop, &message("a", payload)).1, Some(ChangeError::NoSection), "{payload:?}");
        }
        let lacking = Change { set: set(&[("payload.x", template("{payload.none}"))]), ..Change::default() };
        let missing = ChangeError::Unfilled(Unfilled::Missing("{payload.none}".to_owned()));
        assert_eq!(made(&lacking, &message("a", PRESS)).1, Some(missing));
    }

    #[test]
    fn r21_that_a_retained_message_is_deleted_passes() {
        let mut delete = message("a/b", b"");
        delete.retain = true;
        let change = Change {
            pick: paths(&["z"]),
            drop: paths(&["y"]),
            set: set(&[("payload.x", template("{site}")), ("property.k", template("{topic}"))]),
            payload: Some(Template::parse("{payload.temp} C").unwrap()),
            compress: Some(Coding::Gzip),
            ..Change::default()
        };
        let after = made(&change, &delete).0.unwrap();
        assert_eq!((after.payload.len(), after.retain), (0, true));
        assert_eq!(after.properties.user, [("k".into(), "a/b".into())]);
        // What would be made of the payload is left out.
        let values = [
            ("property.k", template("{payload.t}")),
            ("content_type", template("{payload.kind}")),
            ("response_topic", template("{property.none}")),
            ("property.n", template("{topic}")),
        ];
        let lacking = Change { set: set(&values), ..change.clone() };
        let after = made(&lacking, &delete).0.unwrap();
        assert_eq!((after.payload.len(), after.retain), (0, true));
        assert_eq!(after.properties.user, [("n".into(), "a/b".into())]);
        assert_eq!((after.properties.content_type, after.properties.response_topic), (None, None));
        let missing = ChangeError::Unfilled(Unfilled::Missing("{payload.t}".to_owned()));
        let plain = Change { set: set(&values), ..Change::default() };
        assert_eq!(made(&plain, &message("a/b", b"")).1, Some(missing), "without retain it deletes nothing");
        let live = Change { retain: Some(false), ..change };
        assert_eq!(made(&live, &delete).1, Some(ChangeError::NoSection), "to its targets it is a message like others");
    }

    #[test]
    fn r28_a_text_that_no_remote_takes_is_not_set() {
        let long = format!(r#"{{"v":"{}"}}"#, "x".repeat(65_536));
        for (place, payload, unfit) in [
            ("property.x", r#"{"v":"a\u0000b"}"#, Some(UnfitText::Nul)),
            ("content_type", r#"{"v":"a\u0000b"}"#, Some(UnfitText::Nul)),
            ("property.x", &long, Some(UnfitText::TooLong(65_536))),
            ("response_topic", r#"{"v":"a/+/b"}"#, Some(UnfitText::Wildcard)),
            ("response_topic", r##"{"v":"a/#"}"##, Some(UnfitText::Wildcard)),
            ("property.x", r#"{"v":"a/+"}"#, None),
            ("response_topic", r#"{"v":"a/b"}"#, None),
        ] {
            let change = Change { set: set(&[(place, template("{payload.v}"))]), ..Change::default() };
            let expected = unfit.map(|unfit| ChangeError::Property(place.to_owned(), unfit));
            let mut before = message("a", b"");
            before.payload = Bytes::copy_from_slice(payload.as_bytes());
            assert_eq!(made(&change, &before).1, expected, "{place} {payload:.20}");
        }
    }

    fn unpacked(change: &Change, message: &Message) -> Result<Option<Message>, ChangeError> {
        change.unpack(message, message.topic.as_str(), &Mutex::default(), None)
    }

    #[test]
    fn a_payload_is_decompressed_first_and_compressed_last() {
        let properties = |message: &Message| {
            message.properties.user.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let mut before = message("a/b", b"");
        before.payload = Coding::Gzip.pack(PRESS).unwrap().into();
        before.properties.user = vec![("Content-Encoding".into(), "x-gzip".into()), ("k".into(), "v".into())];
        let change = Change { decompress: Some(Unpack::AsTold), pick: paths(&["z"]), ..Change::default() };
        let plain = unpacked(&change, &before).unwrap().unwrap();
        assert_eq!((&plain.payload[..], properties(&plain)), (PRESS, vec!["k=v".to_owned()]));
        let change = Change { compress: Some(Coding::Zstd), ..change };
        let after = made(&change, &plain).0.unwrap();
        assert_eq!(Coding::Zstd.unpack(&after.payload).unwrap(), br#"{"z":1}"#);
        assert_eq!(properties(&after), ["k=v", "content-encoding=zstd"]);
        // Nothing says that it is compressed; nothing is there to be compressed.
        let empty = message("a/b", b"");
        assert_eq!(unpacked(&change, &empty), Ok(None));
        assert_eq!(made(&Change { compress: Some(Coding::Gzip), ..Change::default() }, &empty).0, Some(empty));
        assert_eq!(unpacked(&change, &message("a/b", PRESS)), Ok(None));
        let mut unknown = message("a/b", PRESS);
        unknown.properties.user = vec![("content-encoding".into(), "br".into())];
        let refused = Err(ChangeError::Coding(CodingError::Unknown("br".to_owned())));
        assert_eq!(unpacked(&change, &unknown), refused);
        let decode = Change { decode: Some(Decode::SparkplugB), ..change };
        let mut before = message("spBv1.0/g/NDATA/n", b"");
        before.payload = Coding::Gzip.pack(b"\x18\x07").unwrap().into();
        before.properties.user = vec![("content-encoding".into(), "gzip".into())];
        let json = unpacked(&decode, &before).unwrap().unwrap();
        assert_eq!((&json.payload[..], properties(&json)), (&br#"{"metrics":[],"seq":7}"#[..], vec![]));
        assert_eq!(json.properties.content_type.as_deref(), Some("application/json"));
        let from = Change { decompress: Some(Unpack::From(Coding::Lz4)), ..Change::default() };
        let refused = Err(ChangeError::Coding(CodingError::Not(Coding::Lz4)));
        assert_eq!(unpacked(&from, &message("a/b", PRESS)), refused);
    }

    #[test]
    fn what_is_set_has_to_be_a_part_of_a_message() {
        for text in ["payload", "payload.", "payload.a..b", "property.", "topic", "qos", "other.x"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
        assert_eq!(FieldPath::parse(""), None);
    }
}
