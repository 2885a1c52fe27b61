//! What a route makes of a message: `pick`, `drop`, `set`, `payload`, `qos`, `retain`.

use super::Resolver;
use super::value::{Item, Section};
use crate::config::raw::{Entry, Scalar, ScalarKind, Value};
use crate::message::Qos;
use crate::router::{Change, FieldPath, From, Given, Place, Template};

impl Resolver<'_> {
    pub(super) fn change(&mut self, route: &Section<'_>, from: &[&From]) -> Change {
        let qos = self.number(route.get("qos"), 0..=2).and_then(|bits| u8::try_from(bits).ok());
        Change {
            pick: self.field_paths(route.get("pick")),
            drop: self.field_paths(route.get("drop")),
            set: self.set(route.get("set"), from),
            payload: self.text_template(route.get("payload"), from),
            qos: qos.and_then(Qos::from_bits),
            retain: self.boolean(route.get("retain")),
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
