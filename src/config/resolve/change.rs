//! What a route makes of a message: `pick`, `drop`, `set`, `payload`, `envelope`, `qos`, `retain`, `compress`,
//! `decompress`, `decode`.

use super::Resolver;
use super::link::Draft;
use super::value::{Item, Section, Text};
use crate::config::raw::{Entry, Scalar, ScalarKind, Value};
use crate::config::{hidden, keys};
use crate::links::Kind;
use crate::links::mqtt::Version;
use crate::links::{kafka, rabbitmq};
use crate::message::{Qos, headers};
use crate::router::{
    Binding, Change, Coding, Decode, Endpoint, Event, FieldPath, From, Given, Mode, Place, Problem, Template, To,
    Unpack,
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

    /// What is set and then not seen: headers that a link writes itself, and fields of a payload that is replaced.
    pub(super) fn check_unseen(&mut self, route: &Section<'_>, change: &Change, to: &[(To, &Text<'_>)]) {
        if change.payload.is_some() {
            let places = ["pick", "drop"].into_iter().filter_map(|key| route.get(key));
            let mut unseen: Vec<_> = places.map(|item| (item.place(), format!("`{}`", item.name))).collect();
            let set = route.get("set").map(|item| self.entries(&item)).unwrap_or_default();
            let fields = set.iter().filter(|entry| entry.key.starts_with("payload."));
            unseen.extend(fields.map(|entry| (&entry.place, format!("`{}`", entry.key))));
            for (place, name) in unseen {
                let wrong = format!("{name} is not seen: `payload` replaces the whole payload");
                let hint = "take one of them out; `payload` sees the message as it came".to_owned();
                self.mistakes.warning(place, wrong, hint);
            }
        }
        let Some(set) = route.get("set") else { return };
        for entry in self.entries(&set) {
            let Some(Place::Property(name)) = Place::parse(&entry.key) else { continue };
            let writes = |(to, _): &&(To, &Text<'_>)| match to.binding {
                Binding::Mqtt => false,
                Binding::Amqp => rabbitmq::WRITTEN_HEADERS.contains(&&*name),
                Binding::Kafka => kafka::WRITTEN_HEADERS.contains(&&*name),
            };
            if let Some((to, _)) = to.iter().find(writes) {
                let wrong = format!("the link `{}` writes the header `{name}` itself", to.endpoint);
                self.mistakes.warning(&entry.place, wrong, "choose another name".to_owned());
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
            if let Place::Property(name) = &place
                && name.starts_with(headers::PREFIX)
            {
                let wrong = format!("`{name}` is a name of the gateway's own: a link sends what it says itself");
                self.mistakes.error(
                    &entry.place,
                    wrong,
                    "names that begin with `tg-` are taken: choose another".to_owned(),
                );
            }
            if let Some(given) = self.given(entry, from) {
                let is_spelled = matches!(&given, Given::Template(template) if template.is_fixed());
                let is_reference = matches!(&entry.value.value, Value::Scalar(scalar) if scalar.text.contains("${"));
                if is_spelled && !is_reference && hidden::is_secret_key(&entry.key) {
                    self.plain_secret(entry.item().place());
                }
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
            Err(error) => {
                let is_brace = matches!(error.problem, Problem::NotClosed(_) | Problem::NotOpened(_));
                let hint =
                    is_brace.then(|| "a brace that means itself stands apart from names: `{ x`, `x }`".to_owned());
                self.wrong_part(&text, error.span.clone(), error.to_string(), hint);
                None
            }
        }
    }
}
