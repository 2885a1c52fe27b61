//! What a file says, key by key as it is written, for the diff of a reload. Passwords that stand in it are blotted out.

use std::collections::BTreeMap;

use super::hidden;
use super::raw::{Entry as Pair, Node, Value};
use crate::gateway::{Entry, Outline};

/// Of the whole file.
pub(super) fn of(root: &Node) -> Outline {
    let mut outline = Outline::default();
    for pair in pairs(root) {
        match pair.key.as_str() {
            "links" => {
                for link in pairs(&pair.value) {
                    outline.add(Entry::Link(link.key.clone()), "", &link.value);
                }
            }
            "routes" => {
                for (at, route) in items(&pair.value).iter().enumerate() {
                    let name = text_of(route, "name").unwrap_or_else(|| format!("route-{}", at + 1));
                    outline.add(Entry::Route(name), "", route);
                }
            }
            "broker" => {
                for part in pairs(&pair.value) {
                    if part.key == "listeners" {
                        for (at, listener) in items(&part.value).iter().enumerate() {
                            let bind = text_of(listener, "bind").unwrap_or_else(|| format!("{}", at + 1));
                            outline.add(Entry::Listener(bind), "", listener);
                        }
                    } else {
                        outline.add(Entry::Broker, &part.key, &part.value);
                    }
                }
            }
            "admin" => outline.add(Entry::Admin, "", &pair.value),
            key => outline.add(Entry::Top, key, &pair.value),
        }
    }
    outline
}

impl Outline {
    fn add(&mut self, entry: Entry, path: &str, node: &Node) {
        flatten(path, node, self.entries.entry(entry).or_default());
    }
}

/// Sections by their keys; what a list holds stands together.
fn flatten(path: &str, node: &Node, into: &mut BTreeMap<String, String>) {
    let is_section = matches!(&node.value, Value::Map(pairs) if !pairs.is_empty());
    if !is_section {
        into.insert(path.to_owned(), shown(path, node));
        return;
    }
    for pair in pairs(node) {
        let path = if path.is_empty() { pair.key.clone() } else { format!("{path}.{}", pair.key) };
        flatten(&path, &pair.value, into);
    }
}

/// A value on one line.
fn shown(key: &str, node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".to_owned(),
        Value::Scalar(scalar) => hidden::shown(key, &scalar.text).split_whitespace().collect::<Vec<_>>().join(" "),
        Value::List(items) => items.iter().map(|item| shown(key, item)).collect::<Vec<_>>().join(", "),
        Value::Map(pairs) => {
            let pairs = pairs.iter().map(|pair| format!("{}: {}", pair.key, shown(&pair.key, &pair.value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

fn pairs(node: &Node) -> &[Pair] {
    match &node.value {
        Value::Map(pairs) => pairs,
        Value::Null | Value::Scalar(_) | Value::List(_) => &[],
    }
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        Value::Null | Value::Scalar(_) | Value::Map(_) => &[],
    }
}

fn text_of(node: &Node, key: &str) -> Option<String> {
    let pair = pairs(node).iter().find(|pair| pair.key == key)?;
    match &pair.value.value {
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::raw;
    use super::super::source::Source;
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let source = Arc::new(Source::new("routes.yaml".into(), text.to_owned()));
        let outline = of(&raw::parse(&source).unwrap());
        let line = |(entry, keys): (Entry, BTreeMap<String, String>)| {
            let keys: Vec<_> = keys.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{entry}: {}", keys.join(" | "))
        };
        outline.entries.into_iter().map(line).collect()
    }

    #[test]
    fn each_entry_has_its_keys_and_no_password() {
        let text = r#"
site: plant-7
broker:
  connections_max: 7
  listeners:
    - { bind: "127.0.0.1:1883", anonymous: true, tls: { cert: a.pem, key: a.key } }
  auth: { acl: [ { user: "*", publish: ["a", "b"] } ], jwt: { secret: hunter2 } }
admin: { bind: "127.0.0.1:9090" }
links:
  hq: { mqtt: { url: "mqtt://u:hunter2@h" }, buffer: { max_size: 1GiB } }
  lake: { kafka: { brokers: [ "k:9092", "l:9092" ], options: { sasl.password: hunter2 } } }
  safe: { mqtt: { url: "mqtt://u:${env:P}@h" } }
routes:
  - { name: up, from: broker/#, to: [ "hq/{topic}", lake/t ] }
  - { from: broker/a, to: hq/b }
"#;
        let expected = [
            "the gateway: site=plant-7",
            "admin: bind=127.0.0.1:9090",
            "broker: auth.acl={ user: *, publish: a, b } | auth.jwt.secret=*** | connections_max=7",
            "listener 127.0.0.1:1883: anonymous=true | bind=127.0.0.1:1883 | tls.cert=a.pem | tls.key=a.key",
            "link hq: buffer.max_size=1GiB | mqtt.url=mqtt://u:***@h",
            "link lake: kafka.brokers=k:9092, l:9092 | kafka.options.sasl.password=***",
            "link safe: mqtt.url=mqtt://u:${env:P}@h",
            "route route-2: from=broker/a | to=hq/b",
            "route up: from=broker/# | name=up | to=hq/{topic}, lake/t",
        ];
        assert_eq!(told(text), expected);
    }
}
