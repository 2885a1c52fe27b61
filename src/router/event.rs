//! CloudEvents 1.0: a message as an event, with its attributes beside the payload (binary) or around it (structured).
//!
//! Binary: <https://github.com/cloudevents/spec/tree/v1.0.2/cloudevents/bindings>, where MQTT calls the attributes by their names, AMQP
//! with `cloudEvents_` before them and Kafka with `ce_`. Structured: the JSON format of 1.0.2.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::de::IgnoredAny;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::change::ChangeError;
use super::template::Template;
use super::view::{View, utc};
use crate::clock::WallMs;
use crate::message::{Message, Properties};

/// The type of an event whose route names none.
const TYPE_DEFAULT: &str = "tidegate.message";
const STRUCTURED: &str = "application/cloudevents+json";
/// The header that the Kafka binding has for it; ours is `content_type`.
const KAFKA_CONTENT_TYPE: &str = "content-type";

/// What no URI holds as it is (RFC 3986); the rest of ASCII stays, `%` too, so that what is encoded already stays so.
const NOT_IN_URI: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// How a route's messages become events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Where the attributes stand.
    pub mode: Mode,
    /// `source`; without it `/SITE`.
    pub source: Option<Template>,
    /// `type`; without it `tidegate.message`.
    pub kind: Option<Template>,
    /// `subject`; without it the topic.
    pub subject: Option<Template>,
    /// `id`; without it the message's.
    pub id: Option<Template>,
    /// `time`, RFC 3339 or milliseconds since 1970; without it when the message was taken.
    pub time: Option<Template>,
}

/// CloudEvents' content modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Beside the payload, which stays as it is.
    #[default]
    Binary,
    /// Around the payload, as JSON.
    Structured,
}

/// Whose names binary attributes have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Binding {
    /// User properties.
    #[default]
    Mqtt,
    /// Application properties: RabbitMQ's headers.
    Amqp,
    /// Record headers.
    Kafka,
}

impl Binding {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Mqtt => "",
            Self::Amqp => "cloudEvents_",
            Self::Kafka => "ce_",
        }
    }
}

/// Context attributes, without `datacontenttype`.
type Attributes<'v> = Vec<(&'static str, Cow<'v, str>)>;

impl Event {
    /// Makes an event of `message`, which is what earlier steps made of the one in `view`. The empty payload of a retained message, which
    /// deletes what is retained, stays empty.
    pub(super) fn wrap(&self, view: View<'_, '_>, binding: Binding, message: &mut Message) -> Result<(), ChangeError> {
        if message.retain && message.payload.is_empty() {
            return Ok(());
        }
        let attributes = self.attributes(view, message)?;
        match self.mode {
            Mode::Binary => {
                for (name, value) in attributes {
                    put(&mut message.properties, &format!("{}{name}", binding.prefix()), &value);
                }
            }
            Mode::Structured => {
                message.payload = structured(&attributes, message).into();
                message.properties.content_type = Some(STRUCTURED.into());
                message.properties.payload_is_utf8 = true;
            }
        }
        if let (Binding::Kafka, Some(text)) = (binding, message.properties.content_type.clone()) {
            put(&mut message.properties, KAFKA_CONTENT_TYPE, &text);
        }
        Ok(())
    }

    fn attributes<'v>(&'v self, view: View<'v, '_>, message: &Message) -> Result<Attributes<'v>, ChangeError> {
        let filled = |template: &'v Option<Template>| template.as_ref().map(|text| text.fill_text(view)).transpose();
        let source = filled(&self.source)?.unwrap_or_else(|| Cow::Owned(format!("/{}", message.origin.site)));
        let source = Cow::Owned(utf8_percent_encode(&source, NOT_IN_URI).to_string());
        let id = filled(&self.id)?.unwrap_or_else(|| Cow::Owned(message.id.to_string()));
        let kind = filled(&self.kind)?.unwrap_or(Cow::Borrowed(TYPE_DEFAULT));
        let subject = filled(&self.subject)?.unwrap_or(Cow::Borrowed(view.captures.topic));
        let time = match filled(&self.time)? {
            Some(text) => Some(read_time(&text)?),
            None => rfc3339(message.time),
        };
        let needed = [("specversion", Cow::Borrowed("1.0")), ("id", id), ("source", source), ("type", kind)];
        let mut attributes = Vec::from(needed);
        // These may be absent, and then are not there at all.
        attributes.extend((!subject.is_empty()).then_some(("subject", subject)));
        attributes.extend(time.map(|time| ("time", Cow::Owned(time))));
        match attributes.iter().find(|(_, value)| value.is_empty() || value.contains(char::is_control)) {
            Some((name, value)) => Err(ChangeError::Attribute(name, value.clone().into_owned())),
            None => Ok(attributes),
        }
    }
}

fn rfc3339(at: WallMs) -> Option<String> {
    utc(at)?.format(&Rfc3339).ok()
}

/// What a template made of `time`.
fn read_time(text: &str) -> Result<String, ChangeError> {
    let made = match text.parse() {
        Ok(ms) => rfc3339(WallMs(ms)),
        // Written anew: the parser takes more than RFC 3339 has, such as a blank before the hour.
        Err(_) => OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|time| time.format(&Rfc3339).ok()),
    };
    made.ok_or_else(|| ChangeError::Time(text.to_owned()))
}

/// Sets a property; one of that name is replaced.
pub(super) fn put(properties: &mut Properties, name: &str, value: &str) {
    properties.user.retain(|(known, _)| **known != *name);
    properties.user.push((name.into(), value.into()));
}

/// The event as JSON. A payload that is JSON itself stands in it as it came, byte for byte.
fn structured(attributes: &Attributes<'_>, message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + message.payload.len() * 4 / 3);
    out.push(b'{');
    for (name, value) in attributes {
        member(&mut out, name, value);
    }
    let payload = &*message.payload;
    let given = message.properties.content_type.as_deref();
    let text = std::str::from_utf8(payload).ok();
    let json = text.filter(|text| given.is_none_or(is_json) && serde_json::from_str::<IgnoredAny>(text).is_ok());
    let kind = given.unwrap_or(match (json, text) {
        (Some(_), _) => "application/json",
        (None, Some(_)) => "text/plain",
        (None, None) => "application/octet-stream",
    });
    if payload.is_empty() {
        given.into_iter().for_each(|kind| member(&mut out, "datacontenttype", kind));
    } else {
        member(&mut out, "datacontenttype", kind);
        match (json, text) {
            (Some(json), _) => {
                out.extend_from_slice(b",\"data\":");
                out.extend_from_slice(json.trim().as_bytes());
            }
            // A text in the place of JSON would be taken for a JSON text.
            (None, Some(text)) if !is_json(kind) => member(&mut out, "data", text),
            (None, _) => member(&mut out, "data_base64", &BASE64_STANDARD.encode(payload)),
        }
    }
    out.push(b'}');
    out
}

fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(format!("\"{name}\":{}", Value::from(value)).as_bytes());
}

/// `application/json`, `application/vnd.x+json; charset=utf-8`.
fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.ends_with("/json") || media.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;
    use crate::router::{Pattern, Subject};

    /// What becomes of a message, or why nothing does.
    fn made(event: &Event, binding: Binding, before: &Message) -> Result<Message, ChangeError> {
        let Ok(pattern) = Pattern::parse("{line}/#") else { panic!() };
        let (subject, captures) = (Subject::new(before), pattern.captures(before.topic.as_str()));
        let Some(captures) = captures else { panic!() };
        let mut after = before.clone();
        event.wrap(View::new(&subject, &captures), binding, &mut after).map(|()| after)
    }

    fn template(text: &str) -> Option<Template> {
        Some(Template::parse_text(text).unwrap())
    }

    fn structured_of(content_type: Option<&str>, payload: &'static [u8]) -> String {
        let mut before = message("a/b", payload);
        before.properties.content_type = content_type.map(Into::into);
        let after = made(&Event { mode: Mode::Structured, ..Event::default() }, Binding::Mqtt, &before).unwrap();
        assert_eq!(after.properties.content_type.as_deref(), Some(STRUCTURED));
        assert!(serde_json::from_slice::<Value>(&after.payload).unwrap().is_object());
        String::from_utf8(after.payload.to_vec()).unwrap()
    }

    #[test]
    fn binary_attributes_have_the_names_of_each_binding_and_the_payload_stays() {
        let mut before = message("a/b", b"\0x");
        before.properties.content_type = Some("image/png".into());
        before.properties.user = vec![("id".into(), "its own".into()), ("k".into(), "v".into())];
        for (binding, own, names) in [
            (Binding::Mqtt, None, ["specversion", "id", "source", "type", "subject", "time"]),
            (
                Binding::Amqp,
                Some("its own"),
                [
                    "cloudEvents_specversion",
                    "cloudEvents_id",
                    "cloudEvents_source",
                    "cloudEvents_type",
                    "cloudEvents_subject",
                    "cloudEvents_time",
                ],
            ),
            (
                Binding::Kafka,
                Some("its own"),
                ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time"],
            ),
        ] {
            let after = made(&Event::default(), binding, &before).unwrap();
            let values = ["1.0", "test-0000000000000007-1", "/test", TYPE_DEFAULT, "a/b", "1970-01-01T00:00:01Z"];
            let own = own.map(|own| ("id", own)).into_iter().chain([("k", "v")]);
            let kafka = (binding == Binding::Kafka).then_some((KAFKA_CONTENT_TYPE, "image/png"));
            let expected: Vec<_> = own.chain(names.into_iter().zip(values)).chain(kafka).collect();
            let user: Vec<_> = after.properties.user.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(user, expected, "{binding:?}");
            assert_eq!(
                (after.payload, after.properties.content_type),
                (before.payload.clone(), Some("image/png".into()))
            );
        }
    }

    #[test]
    fn structured_data_is_json_text_or_base64_as_its_content_type_says() {
        let head = r#"{"specversion":"1.0","id":"test-0000000000000007-1","source":"/test","type":"tidegate.message","subject":"a/b","time":"1970-01-01T00:00:01Z""#;
        for (content_type, payload, tail) in [
            (
                None,
                &br#" {"n":1.50, "big":123456789012345678901} "#[..],
                r#","datacontenttype":"application/json","data":{"n":1.50, "big":123456789012345678901}}"#,
            ),
            (None, b"21.5", r#","datacontenttype":"application/json","data":21.5}"#),
            (None, b"on \"fire\"", r#","datacontenttype":"text/plain","data":"on \"fire\""}"#),
            (None, b"\xFF\x00", r#","datacontenttype":"application/octet-stream","data_base64":"/wA="}"#),
            (None, b"", "}"),
            (Some("text/plain"), b"1", r#","datacontenttype":"text/plain","data":"1"}"#),
            (Some("application/x+JSON; v=1"), b"[]", r#","datacontenttype":"application/x+JSON; v=1","data":[]}"#),
            (Some("application/json"), b"{", r#","datacontenttype":"application/json","data_base64":"ew=="}"#),
            (Some("application/json"), b"", r#","datacontenttype":"application/json"}"#),
        ] {
            assert_eq!(structured_of(content_type, payload), format!("{head}{tail}"), "{payload:?}");
        }
    }

    #[test]
    fn attributes_are_set_by_templates_and_what_they_cannot_be_is_said() {
        let event = |source: &str, subject: &str, time: &str| Event {
            mode: Mode::Binary,
            source: template(source),
            kind: template("com.example.{line}"),
            subject: template(subject),
            id: template("{payload.id}"),
            time: template(time),
        };
        let told = |event: &Event| {
            let before = message(
                "lathe/1",
                br#"{"id":"x7","n":"","t":"2026-12-01T01:00:00+01:00","ms":1796083200123,"bad":"a\nb"}"#,
            );
            let names = ["id", "source", "type", "subject", "time"];
            made(event, Binding::Mqtt, &before).map(|after| {
                let value = |name: &str| after.properties.user.iter().find(|(known, _)| **known == *name);
                names.map(|name| value(name).map(|(_, value)| value.to_string()).unwrap_or_default()).join(" ")
            })
        };
        for (source, subject, time, expected) in [
            (
                "//x/{line} ü",
                "{rest}",
                "{payload.t}",
                "x7 //x/lathe%20%C3%BC com.example.lathe 1 2026-12-01T01:00:00+01:00",
            ),
            ("x", "{payload.n}", "{payload.ms}", "x7 x com.example.lathe  2026-12-01T00:00:00.123Z"),
        ] {
            assert_eq!(told(&event(source, subject, time)), Ok(expected.to_owned()));
        }
        assert_eq!(told(&event("{payload.n}", "x", "1")), Err(ChangeError::Attribute("source", String::new())));
        assert_eq!(told(&event("x", "{payload.bad}", "1")), Err(ChangeError::Attribute("subject", "a\nb".to_owned())));
        assert_eq!(told(&event("x", "x", "noon")), Err(ChangeError::Time("noon".to_owned())));
        assert!(matches!(told(&event("x", "{payload.none}", "1")), Err(ChangeError::Unfilled(_))));
    }

    #[test]
    fn r21_what_deletes_a_retained_message_stays_empty() {
        let mut before = message("a/b", b"");
        before.retain = true;
        for mode in [Mode::Binary, Mode::Structured] {
            assert_eq!(made(&Event { mode, ..Event::default() }, Binding::Mqtt, &before), Ok(before.clone()));
        }
    }
}
