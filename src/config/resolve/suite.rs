//! A file of tests for routes: its keys and values. Nothing is filled in here: `${..}` stands for itself.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value as Json;

use super::Resolver;
use super::value::{Item, Section};
use crate::config::Env;
use crate::config::diagnostic::Mistakes;
use crate::config::keys;
use crate::config::raw::{Node, ScalarKind, Value};
use crate::config::source::Place;
use crate::config::suite::{Case, Expected, Given, Named, Suite, What};
use crate::topic::TopicName;

pub(in crate::config) fn suite(root: &Node, env: &Env) -> (Suite, Mistakes) {
    let mut resolver = Resolver::new(env, Mistakes::default());
    let suite = resolver.suite(root);
    (suite, resolver.mistakes)
}

impl Resolver<'_> {
    fn suite(&mut self, root: &Node) -> Suite {
        let entry = super::top_entry(root);
        let top = self.section(&entry.item(), &keys::SUITE);
        if top.is_wrong {
            return Suite::default();
        }
        let config_place = top.get("config").map(|item| item.place().clone());
        let config = self.plain(top.get("config")).map(Into::into);
        let Some(tests) = top.get("tests") else {
            let hint = "such as `tests: [ { name: .., message: { topic: .. }, expect: [] } ]`";
            self.mistakes.error(&root.place, "this file has no `tests`", hint.to_owned());
            return Suite { config, config_place, ..Suite::default() };
        };
        let mut names = Vec::new();
        let items = self.items(&tests);
        if items.is_empty() {
            let hint = "take the file out where there is nothing to test";
            self.mistakes.error(tests.place(), "`tests` lists no test", hint.to_owned());
        }
        self.check_titles(&items);
        let tests = items.iter().filter_map(|item| self.case(item, &mut names)).collect();
        Suite { config, config_place, tests, names, mistakes: Vec::new() }
    }

    /// By its name a test is found.
    fn check_titles(&mut self, items: &[Item<'_>]) {
        let mut seen: HashMap<&str, Place> = HashMap::new();
        for item in items {
            let Value::Map(entries) = &item.node.value else { continue };
            let Some(name) = entries.iter().find(|entry| entry.key == "name") else { continue };
            let Value::Scalar(scalar) = &name.value.value else { continue };
            match seen.get(scalar.text.as_str()) {
                Some(first) => {
                    let (line, _) = first.line_and_column();
                    let hint = format!("the first is at {}:{line}", first.source.path.display());
                    self.mistakes.error(&name.value.place, format!("two tests are named `{}`", scalar.text), hint);
                }
                None => {
                    seen.insert(&scalar.text, name.value.place.clone());
                }
            }
        }
    }

    fn case(&mut self, item: &Item<'_>, names: &mut Vec<Named>) -> Option<Case> {
        let section = self.section(item, &keys::CASE);
        let name = self.plain_needed(&section, item, "name", "say in a few words what it shows");
        let before = section.get("before").map(|before| self.items(&before)).unwrap_or_default();
        let before = before.iter().filter_map(|item| self.given_message(item, names)).collect();
        let message = match section.get("message") {
            Some(message) => self.given_message(&message, names),
            None => self.lacking(
                &section,
                item,
                "message",
                "such as `message: { topic: factory/a, payload: { temp: 20 } }`",
            ),
        };
        let expect = match section.get("expect") {
            Some(expect) if !matches!(expect.node.value, Value::Null) => Some(self.items(&expect)),
            Some(_) | None => self.lacking(&section, item, "expect", "`expect: []` where nothing is to leave"),
        };
        let expect = expect?.iter().filter_map(|item| self.expected(item, names)).collect();
        Some(Case { name: name?, before, message: message?, expect })
    }

    fn given_message(&mut self, item: &Item<'_>, names: &mut Vec<Named>) -> Option<Given> {
        let section = self.section(item, &keys::GIVEN);
        names.extend(link_named(section.get("from")));
        let topic = self.plain_needed(&section, item, "topic", "the topic that it is published to");
        if let (Some(topic), Some(item)) = (&topic, section.get("topic"))
            && let Err(error) = TopicName::new(topic)
        {
            self.mistakes.error(item.place(), format!("`{topic}`: {error}"), None);
        }
        let mut payload = section.get("payload").and_then(|item| self.json(&item)).map(|json| bytes_of(&json));
        if let Some(item) = section.get("payload_base64") {
            if payload.is_some() {
                self.mistakes.error(item.place(), "a message has one of `payload` and `payload_base64`", None);
            }
            let decoded = self.plain(Some(item.clone())).map(|text| BASE64_STANDARD.decode(text));
            if let Some(Err(error)) = &decoded {
                let hint = "such as `3q2+7w==`: letters, digits, `+` and `/`, filled up with `=` to a multiple of four; a text stands in `payload`";
                self.mistakes.error(item.place(), format!("`payload_base64` is no base64: {error}"), hint.to_owned());
            }
            payload = decoded.and_then(Result::ok);
        }
        Some(Given {
            topic: topic?,
            from: self.plain(section.get("from")),
            payload: payload.unwrap_or_default(),
            qos: self.bits(section.get("qos")).unwrap_or(1),
            retain: self.boolean(section.get("retain")).unwrap_or_default(),
            client_id: self.plain(section.get("client_id")),
            user: self.plain(section.get("user")),
            time: self.number(section.get("time"), 0..=u64::MAX),
            content_type: self.plain(section.get("content_type")),
            response_topic: self.plain(section.get("response_topic")),
            properties: self.plain_pairs(section.get("properties")),
        })
    }

    fn expected(&mut self, item: &Item<'_>, names: &mut Vec<Named>) -> Option<Expected> {
        let section = self.section(item, &keys::EXPECTED);
        // What is no address is told below.
        names.extend(link_named(section.get("to").filter(is_address)));
        names.extend(named(section.get("route"), What::Route));
        let to = self.plain_needed(&section, item, "to", "where it goes: `LINK/DESTINATION` or `broker/TOPIC`");
        if let (Some(to), Some(item)) = (&to, section.get("to"))
            && !is_address(&item)
        {
            let wrong = format!("`{to}` is no address: `LINK/DESTINATION` or `broker/TOPIC`");
            self.mistakes.error(item.place(), wrong, None);
        }
        let contains = section.get("contains").map(|item| self.items(&item)).unwrap_or_default();
        let priorities = [("high", "high"), ("normal", "normal"), ("low", "low")];
        let expected = Expected {
            to: to.clone().unwrap_or_default(),
            route: self.plain(section.get("route")),
            key: self.plain(section.get("key")),
            payload: section.get("payload").and_then(|item| self.json(&item)),
            decompressed: section.get("decompressed").and_then(|item| self.json(&item)),
            contains: contains.into_iter().filter_map(|item| self.plain(Some(item))).collect(),
            qos: self.bits(section.get("qos")),
            retain: self.boolean(section.get("retain")),
            priority: self.choice(section.get("priority"), &priorities),
            content_type: self.plain(section.get("content_type")),
            response_topic: self.plain(section.get("response_topic")),
            batch: self.plain(section.get("batch")),
            properties: self.plain_pairs(section.get("properties")),
            dead_letter: self.plain(section.get("dead_letter")),
        };
        to.map(|_| expected)
    }

    fn bits(&mut self, item: Option<Item<'_>>) -> Option<u8> {
        self.number(item, 0..=2).and_then(|bits| u8::try_from(bits).ok())
    }

    /// A scalar as it stands there, empty too.
    fn plain(&mut self, item: Option<Item<'_>>) -> Option<String> {
        let item = item?;
        let Value::Scalar(scalar) = &item.node.value else {
            self.wrong_type(&item, "a text", None);
            return None;
        };
        Some(scalar.text.clone())
    }

    fn plain_needed(
        &mut self,
        section: &Section<'_>,
        whole: &Item<'_>,
        key: &'static str,
        hint: &str,
    ) -> Option<String> {
        match section.get(key) {
            Some(item) => self.plain(Some(item)),
            None => self.lacking(section, whole, key, hint),
        }
    }

    fn lacking<T>(&mut self, section: &Section<'_>, whole: &Item<'_>, key: &str, hint: &str) -> Option<T> {
        if !section.is_wrong {
            self.mistakes.error(&whole.node.place, format!("`{key}` is missing"), hint.to_owned());
        }
        None
    }

    fn plain_pairs(&mut self, item: Option<Item<'_>>) -> Vec<(String, String)> {
        let Some(item) = item else { return Vec::new() };
        let mut pairs: Vec<(String, String)> = Vec::new();
        let entries = self.entries(&item);
        for (at, entry) in entries.iter().enumerate() {
            if let Some(first) = entries.iter().take(at).find(|earlier| earlier.key == entry.key) {
                self.repeated(entry, first, "key");
            } else if let Some(value) = self.plain(Some(entry.item())) {
                pairs.push((entry.key.clone(), value));
            }
        }
        pairs
    }

    /// A text is a text, anything else as JSON has it.
    fn json(&mut self, item: &Item<'_>) -> Option<Json> {
        match &item.node.value {
            Value::Null => Some(Json::Null),
            Value::Scalar(scalar) => match scalar.kind {
                ScalarKind::Text => Some(Json::String(scalar.text.clone())),
                ScalarKind::Bool(value) => Some(Json::Bool(value)),
                ScalarKind::Number => {
                    let number = number_of(&scalar.text);
                    if number.is_none() {
                        let wrong = format!("`{}` is no number that JSON has", scalar.text);
                        self.mistakes.error(item.place(), wrong, "a text needs quotes".to_owned());
                    }
                    number
                }
            },
            Value::List(nodes) => {
                let items: Vec<_> = nodes.iter().map(|node| self.json(&Item::of_list(item, node))).collect();
                items.into_iter().collect::<Option<_>>().map(Json::Array)
            }
            Value::Map(entries) => {
                let mut map = serde_json::Map::new();
                for (at, entry) in entries.iter().enumerate() {
                    if let Some(first) = entries.iter().take(at).find(|earlier| earlier.key == entry.key) {
                        self.repeated(entry, first, "key");
                    }
                    map.insert(entry.key.clone(), self.json(&entry.item())?);
                }
                Some(Json::Object(map))
            }
        }
    }
}

fn is_address(item: &Item<'_>) -> bool {
    matches!(&item.node.value, Value::Scalar(scalar) if scalar.text.contains('/'))
}

/// The name that an address begins with.
fn link_named(item: Option<Item<'_>>) -> Option<Named> {
    let whole = named(item.clone(), What::Link)?;
    let name = whole.name.split('/').next().unwrap_or_default().to_owned();
    let place = item?.node.part(0..name.len());
    Some(Named { name, place, ..whole })
}

fn named(item: Option<Item<'_>>, what: What) -> Option<Named> {
    let item = item?;
    let Value::Scalar(scalar) = &item.node.value else { return None };
    Some(Named { what, name: scalar.text.clone(), place: item.place().clone() })
}

/// YAML writes some numbers in more ways than JSON: `+1`, `1_000`, `.5`, `0x1f`.
fn number_of(text: &str) -> Option<Json> {
    if let Ok(number) = serde_json::from_str(text) {
        return Some(number);
    }
    let plain = text.replace('_', "");
    let hexadecimal = plain.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let octal = || plain.strip_prefix("0o").and_then(|digits| u64::from_str_radix(digits, 8).ok());
    if let Some(number) = hexadecimal.or_else(octal) {
        return Some(number.into());
    }
    match plain.parse::<i64>() {
        Ok(number) => Some(number.into()),
        Err(_) => serde_json::Number::from_f64(plain.parse().ok()?).map(Json::Number),
    }
}

fn bytes_of(payload: &Json) -> Vec<u8> {
    match payload {
        Json::String(text) => text.clone().into_bytes(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => {
            payload.to_string().into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_yaml_writes_them() {
        for (text, expected) in [
            ("81.5", Some("81.5")),
            ("-3", Some("-3")),
            ("18446744073709551615", Some("18446744073709551615")),
            ("+1", Some("1")),
            ("1_000", Some("1000")),
            (".5", Some("0.5")),
            ("0x1f", Some("31")),
            ("0o17", Some("15")),
            ("007", Some("7")),
            (".inf", None),
        ] {
            assert_eq!(number_of(text).map(|number| number.to_string()).as_deref(), expected, "{text}");
        }
    }
}
