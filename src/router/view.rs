//! A message as routes look at it: its parts under the names that templates and conditions use.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

use super::json::{Found, Json, Leaf, Number, Step};
use super::pattern::Captures;
use super::syntax::Problem;
use crate::clock::WallMs;
use crate::message::Message;

/// The names of what every message may have, beside `payload.FIELD` and `property.NAME`.
pub const FIELDS: [&str; 11] =
    ["topic", "client_id", "user", "site", "id", "qos", "retain", "size", "time", "content_type", "response_topic"];

/// A message that routes are asked for. Its payload is parsed at most once, when the first route asks for a field of it.
#[derive(Debug)]
pub struct Subject<'a> {
    message: &'a Message,
    json: OnceCell<Option<Json<'a>>>,
}

/// A message and what one route's pattern captured of its topic.
#[derive(Clone, Copy, Debug)]
pub struct View<'v, 'a> {
    pub(super) subject: &'v Subject<'a>,
    pub(super) captures: &'v Captures<'v>,
    /// To the route's targets it deletes a retained message (R21).
    pub(super) is_delete: bool,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// One of [`FIELDS`], or a capture of that name.
    Name(Box<str>),
    /// `time:%Y-%m-%d`, in UTC.
    Time(time::format_description::OwnedFormatItem),
    /// The payload, or a value in it if it is JSON.
    Payload(Box<[Step]>),
    /// The first user property of that name.
    Property(Box<str>),
}

/// The value of a part.
#[derive(Clone, Debug)]
pub(super) enum Part<'v, 'a> {
    Bool(bool),
    Number(Number),
    Text(Cow<'v, str>),
    /// In the payload.
    Json(Found<'v, 'a>),
}

impl<'a> Subject<'a> {
    /// Nothing is parsed yet.
    #[must_use]
    pub const fn new(message: &'a Message) -> Self {
        Self { message, json: OnceCell::new() }
    }

    /// The message itself.
    #[must_use]
    pub const fn message(&self) -> &'a Message {
        self.message
    }

    /// The value in the payload that `path` leads to. `None` also where the payload is no JSON.
    pub(super) fn payload(&self, path: &[Step]) -> Option<Found<'_, 'a>> {
        self.json.get_or_init(|| Json::parse(&self.message.payload)).as_ref()?.find(path)
    }

    pub(super) fn property(&self, name: &str) -> Option<&'a str> {
        let properties = &self.message.properties.user;
        properties.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

impl<'v, 'a> View<'v, 'a> {
    /// `captures` are those of one route's pattern.
    #[must_use]
    pub const fn new(subject: &'v Subject<'a>, captures: &'v Captures<'v>) -> Self {
        Self { subject, captures, is_delete: false }
    }

    /// The same, where the message deletes a retained one for those who get it by the route: nothing is known of its payload then.
    #[must_use]
    pub const fn deleting(self, is_delete: bool) -> Self {
        Self { is_delete, ..self }
    }

    /// The message.
    #[must_use]
    pub const fn message(self) -> &'a Message {
        self.subject.message
    }

    /// What stands under a plain name: a capture first, so that a route's own names mean what they say.
    fn named(self, name: &str) -> Option<Part<'v, 'a>> {
        if let Some(text) = self.captures.get(name) {
            return Some(Part::Text(Cow::Borrowed(text)));
        }
        let message = self.subject.message;
        let text = |text: &'v str| Part::Text(Cow::Borrowed(text));
        let whole = |number: i128| Part::Number(Number::Whole(number));
        Some(match name {
            "client_id" => text(message.origin.client_id.as_deref()?),
            "user" => text(message.origin.user.as_deref()?),
            "site" => text(&message.origin.site),
            "id" => Part::Text(Cow::Owned(message.id.to_string())),
            "qos" => whole(message.qos.bits().into()),
            "retain" => Part::Bool(message.retain),
            "size" => whole(i128::try_from(message.payload.len()).unwrap_or(i128::MAX)),
            "time" => whole(message.time.0.into()),
            "content_type" => text(message.properties.content_type.as_deref()?),
            "response_topic" => text(message.properties.response_topic.as_deref()?),
            _ => return None,
        })
    }
}

impl Field {
    /// Reads what stands between braces, or a dotted name.
    ///
    /// # Errors
    /// No name of anything.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(format) = text.strip_prefix("time:") {
            // The library counts the days of `%w` from 1, and `date` from 0; `%u` is right.
            if format.replace("%%", "").contains("%w") {
                return Err(Problem::TimeFormat("%w".to_owned()));
            }
            let parsed = time::format_description::parse_strftime_owned(format);
            let format = parsed.map_err(|_words| Problem::TimeFormat(format.to_owned()))?;
            // What formats one moment formats all.
            let works = utc(WallMs(0)).is_some_and(|at| at.format(&format).is_ok_and(|text| !text.is_empty()));
            return if works { Ok(Self::Time(format)) } else { Err(Problem::TimeFormat(text.to_owned())) };
        }
        if let Some(name) = text.strip_prefix("property.").filter(|name| !name.is_empty()) {
            return Ok(Self::Property(name.into()));
        }
        if text == "payload" {
            return Ok(Self::Payload(Box::default()));
        }
        if let Some(path) = text.strip_prefix("payload.")
            && path.split('.').all(|step| !step.is_empty())
        {
            return Ok(Self::Payload(path.split('.').map(Step::from).collect()));
        }
        if super::syntax::is_capture_name(text) {
            return Ok(Self::Name(text.into()));
        }
        let problem = if text.contains('.') { Problem::PartName } else { Problem::CaptureName };
        Err(problem(text.to_owned()))
    }

    /// What a form of a time makes of one; `None` of other parts.
    pub(super) fn at(&self, time: WallMs) -> Option<String> {
        let Self::Time(format) = self else { return None };
        utc(time)?.format(format).ok()
    }

    /// The value for one message; `None` where it has none.
    pub(super) fn of<'v, 'a>(&self, view: View<'v, 'a>) -> Option<Part<'v, 'a>> {
        match self {
            Self::Name(name) => view.named(name),
            Self::Time(_) => self.at(view.subject.message.time).map(|text| Part::Text(Cow::Owned(text))),
            Self::Payload(path) => view.subject.payload(path).map(Part::Json),
            Self::Property(name) => view.subject.property(name).map(|text| Part::Text(Cow::Borrowed(text))),
        }
    }

    /// The value as text. A list or section of the payload has none.
    pub(super) fn text<'v>(&self, view: View<'v, '_>) -> Option<Cow<'v, str>> {
        if let Self::Payload(path) = self
            && path.is_empty()
        {
            return std::str::from_utf8(&view.subject.message.payload).ok().map(Cow::Borrowed);
        }
        match self.of(view)? {
            Part::Text(text) => Some(text),
            Part::Bool(value) => Some(Cow::Borrowed(if value { "true" } else { "false" })),
            Part::Number(number) => Some(Cow::Owned(number.to_string())),
            Part::Json(found) => match found.leaf() {
                Leaf::Text(text) => Some(Cow::Borrowed(text)),
                Leaf::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
                Leaf::Number(number) => Some(Cow::Owned(number.to_string())),
                Leaf::Null | Leaf::List | Leaf::Map => None,
            },
        }
    }
}

/// `None`: later than the year 9999.
pub(super) fn utc(at: WallMs) -> Option<time::OffsetDateTime> {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok()
}

impl fmt::Display for Part<'_, '_> {
    /// As `explain` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => fmt::Debug::fmt(text, f),
            Self::Json(found) => match found.leaf() {
                Leaf::Null => f.write_str("null"),
                Leaf::Bool(value) => value.fmt(f),
                Leaf::Number(number) => number.fmt(f),
                Leaf::Text(text) => fmt::Debug::fmt(text, f),
                Leaf::List => f.write_str("a list"),
                Leaf::Map => f.write_str("a section"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;

    #[test]
    fn the_parts_of_a_message_have_names() {
        let mut message = message("a/b", br#"{"line":"x","n":[1.5,{"t":true}],"none":null}"#);
        message.origin.client_id = Some("press-7".into());
        message.retain = true;
        message.time = WallMs(1_796_083_200_123);
        message.properties.user =
            vec![("k".into(), "v".into()), ("k".into(), "w".into()), ("x-y.z".into(), "1".into())];
        let subject = Subject::new(&message);
        let captures = Captures::of("a/b");
        let view = View::new(&subject, &captures);
        for (name, expected) in [
            ("topic", Some("a/b")),
            ("client_id", Some("press-7")),
            ("user", None),
            ("site", Some("test")),
            ("id", Some("test-0000000000000007-1")),
            ("qos", Some("1")),
            ("retain", Some("true")),
            ("size", Some("45")),
            ("time", Some("1796083200123")),
            ("time:%Y-%m-%d", Some("2026-12-01")),
            ("time:%H%M%S", Some("000000")),
            ("content_type", None),
            ("payload.line", Some("x")),
            ("payload.n.0", Some("1.5")),
            ("payload.n.1.t", Some("true")),
            ("payload.n", None),
            ("payload.none", None),
            ("payload.line.x", None),
            ("property.k", Some("v")),
            ("property.x-y.z", Some("1")),
            ("property.other", None),
        ] {
            assert_eq!(Field::parse(name).unwrap().text(view).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn r29_a_route_s_own_capture_goes_before_the_message_s_part_of_that_name() {
        let message = message("a/b", b"");
        let pattern = crate::router::Pattern::parse("{site}/{qos}").unwrap();
        let (subject, captures) = (Subject::new(&message), pattern.captures("a/b").unwrap());
        let view = View::new(&subject, &captures);
        assert_eq!(Field::parse("site").unwrap().text(view).as_deref(), Some("a"));
        assert_eq!(Field::parse("qos").unwrap().text(view).as_deref(), Some("b"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["", "1", "a b", "payload.", "payload..a", "property.", "time:", "time:%Q", "other.x", "a-b"] {
            assert!(Field::parse(text).is_err(), "{text}");
        }
    }
}
