//! What a route makes of a message: `pick`, `drop`, `set`, `payload`, `envelope`, `qos`, `retain`, `compress`,
//! `decompress`, `decode`.

use super::Resolver;
use super::link::Draft;
use super::value::{Item, Section, Text};
use crate::config::keys;
use crate::config::raw::{Entry, Scalar, ScalarKind, Value};
use crate::links::Kind;
use crate::links::mqtt::Version;
use crate::message::Qos;
use crate::router::{
    Change, Coding, Decode, Endpoint, Event, FieldPath, From, Given, Mode, Place, Template, To, Unpack,
};

impl Resolver<'_> {
    pub(super) fn change(&mut self, route: &Section<'_>, from: &[&From]) -> Change {
        let qos = self.number(route.get("qos"), 0..=2).and_then(|bits| u8::try_from(bits).ok());
        let codings = [("gzip", Coding::Gzip), ("zstd", Coding::Zstd), ("lz4", Coding::Lz4)];
        let unpack = codings.map(|(name, coding)| (name, Unpack::From(coding)));
        let unpack: Vec<_> = unpack.into_iter().chain([("auto", Unpack::AsTold)]).collect();
        Change {
            decompress: self.choice(route.get("decompress"), &unpack),
            decode: self.choice(route.get("decode"), &[("sparkplug-b", Decode::SparkplugB)]),
            compress: self.choice(route.get("compress"), &codings),
            pick: self.field_paths(route.get("pick")),
            drop: self.field_paths(route.get("drop")),
            set: self.set(route.get("set"), from),
            payload: self.text_template(route.get("payload"), from),
            envelope: self.envelope(route.get("envelope"), from),
            qos: qos.and_then(Qos::from_bits),
            retain: self.boolean(route.get("retain")),
        }
    }

    /// `cloudevents-binary`, or `{ format: cloudevents-binary, source: .. }`.
    fn envelope(&mut self, item: Option<Item<'_>>, from: &[&From]) -> Option<Event> {
        let item = item?;
        let modes = [("cloudevents-binary", Mode::Binary), ("cloudevents-structured", Mode::Structured)];
        if matches!(item.node.value, Value::Scalar(_)) {
            return self.choice(Some(item), &modes).map(|mode| Event { mode, ..Event::default() });
        }
        let section = self.section(&item, &keys::ENVELOPE);
        if section.is_wrong {
            return None;
        }
        let format = section.get("format");
        if format.is_none() {
            let hint = "`cloudevents-binary` or `cloudevents-structured`".to_owned();
            self.mistakes.error(&section.place, "`envelope` needs a `format`", hint);
        }
        let mode = self.choice(format, &modes).unwrap_or_default();
        let mut template = |key| self.text_template(section.get(key), from);
        Some(Event {
            mode,
            source: template("source"),
            kind: template("type"),
            subject: template("subject"),
            id: template("id"),
            time: template("time"),
        })
    }

    /// MQTT 3.1.1 has no place for what stands beside a payload.
    pub(super) fn check_envelope(
        &mut self,
        item: Option<Item<'_>>,
        change: &Change,
        to: &[(To, &Text<'_>)],
        links: &[Draft<'_>],
    ) {
        let Some(item) = item.filter(|_| change.envelope.as_ref().is_some_and(|event| event.mode == Mode::Binary))
        else {
            return;
        };
        for (to, _) in to {
            let Endpoint::Link(name) = &to.endpoint else { continue };
            let link = links.iter().find(|draft| draft.name == name.as_str()).and_then(Draft::known);
            if matches!(link.map(|link| &link.kind), Some(Kind::Mqtt(mqtt)) if mqtt.version == Version::V4) {
                let wrong = format!("`{name}` speaks MQTT 3.1.1, which has no place for an event's attributes");
                let hint = "use `cloudevents-structured`, or `version: 5` at the link".to_owned();
                self.mistakes.error(item.place(), wrong, hint);
            }
        }
    }

    fn field_paths(&mut self, item: Option<Item<'_>>) -> Vec<FieldPath> {
        let Some(item) = item else { return Vec::new() };
        let mut paths = Vec::new();
        for item in self.items(&item) {
            let Some(text) = self.text(Some(item)) else { continue };
            match FieldPath::parse(&text.value) {
                Some(path) => {
                    if let Some(field) = text.value.strip_prefix("payload.") {
                        let wrong = "this is the field `payload` inside of the payload";
                        self.mistakes.warning(text.place(), wrong, format!("write `{field}`"));
                    }
                    paths.push(path);
                }
                None => {
                    let wrong = "this is no field of a payload: names with `.` between them, such as `axis.x`";
                    self.mistakes.error(text.place(), wrong, None);
                }
            }
        }
        paths
    }

    fn set(&mut self, item: Option<Item<'_>>, from: &[&From]) -> Vec<(Place, Given)> {
        let Some(item) = item else { return Vec::new() };
        let mut set: Vec<(Place, Given)> = Vec::new();
        let entries = self.entries(&item);
        for (at, entry) in entries.iter().enumerate() {
            if let Some(first) = entries.iter().take(at).find(|earlier| earlier.key == entry.key) {
                self.repeated(entry, first, "key");
                continue;
            }
            let Some(place) = Place::parse(&entry.key) else {
                let wrong = format!("`{}` cannot be set", entry.key);
                let hint = "`payload.FIELD`, `property.NAME`, `content_type` and `response_topic` can";
                self.mistakes.error(&entry.place, wrong, hint.to_owned());
                continue;
            };
            if let Some(given) = self.given(entry, from) {
                set.push((place, given));
            }
        }
        set
    }

    /// Numbers, `true` and `false` are what they are; a text is a template.
    fn given(&mut self, entry: &Entry, from: &[&From]) -> Option<Given> {
        match &entry.value.value {
            Value::Scalar(Scalar { kind: ScalarKind::Bool(value), .. }) => Some(Given::Bool(*value)),
            Value::Scalar(Scalar { kind: ScalarKind::Number, text }) => match serde_json::from_str(text) {
                Ok(number) => Some(Given::Number(number)),
                // Such as `007`: as text.
                Err(_) => self.text_template(Some(entry.item()), from).map(Given::Template),
            },
            Value::Scalar(_) | Value::Null | Value::List(_) | Value::Map(_) => {
                self.text_template(Some(entry.item()), from).map(Given::Template)
            }
        }
    }

    fn text_template(&mut self, item: Option<Item<'_>>, from: &[&From]) -> Option<Template> {
        let text = self.text(item)?;
        match Template::parse_text(&text.value) {
            Ok(template) => {
                self.check_captures(&text, &template, 0, from);
                Some(template)
            }
            Err(error) => self.bad_address(&text, &error),
        }
    }
}
