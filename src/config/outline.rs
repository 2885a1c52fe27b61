//! What a file says, key by key as it is written, for the diff of a reload. Passwords that stand in it are blotted out; that one is
//! another than before is known by a sum of it, which is worth nothing outside this process.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

use super::env::Env;
use super::hidden;
use super::raw::{Entry as Pair, Node, Value};
use super::resolve;
use crate::gateway::{Entry, Outline};

/// Of the whole file.
pub(super) fn of(root: &Node, env: &Env) -> Outline {
    let mut outline = Outlining { env, outline: Outline::default() };
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
    outline.outline
}

/// An outline that is being made.
struct Outlining<'e> {
    env: &'e Env,
    outline: Outline,
}

impl Outlining<'_> {
    /// Sections by their keys; what a list holds stands together.
    fn add(&mut self, entry: Entry, path: &str, node: &Node) {
        let keys = self.outline.entries.entry(entry.clone()).or_default();
        let is_section = matches!(&node.value, Value::Map(pairs) if !pairs.is_empty());
        if !is_section {
            keys.insert(path.to_owned(), shown(path, node));
            let secrets = self.secrets(path, node);
            if !secrets.is_empty() {
                self.outline.hidden.0.insert((entry, path.to_owned()), sum(&secrets));
            }
            return;
        }
        for pair in pairs(node) {
            let path = if path.is_empty() { pair.key.clone() } else { format!("{path}.{}", pair.key) };
            self.add(entry.clone(), &path, &pair.value);
        }
    }

    /// All of a value that [`shown`] does not show.
    fn secrets(&self, key: &str, node: &Node) -> Vec<String> {
        match &node.value {
            Value::Null => Vec::new(),
            Value::Scalar(scalar) => {
                let text = scalar.text.as_str();
                let is_hidden = text.contains("${") || hidden::is_hidden(key, text);
                is_hidden.then(|| resolve::filled(node, text, self.env)).into_iter().collect()
            }
            Value::List(items) => items.iter().flat_map(|item| self.secrets(key, item)).collect(),
            Value::Map(pairs) => pairs.iter().flat_map(|pair| self.secrets(&pair.key, &pair.value)).collect(),
        }
    }
}

/// By a key that is made up anew in each process.
fn sum(secrets: &[String]) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one(secrets)
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
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::raw;
    use super::super::source::Source;
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let source = Arc::new(Source::new("routes.yaml".into(), text.to_owned()));
        let outline = of(&raw::parse(&source).unwrap(), &Env::real());
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
  auth: { acl: [ { user: "*", publish: ["a", "b"] } ], jwt: { secret: hunter2 }, http: { url: "https://h/x?site=1&x=hunter2#hunter2", headers: { X-A: hunter2 } } }
admin: { bind: "127.0.0.1:9090" }
links:
  hq: { mqtt: { url: "mqtt://u:hunter2@h" }, buffer: { max_size: 1GiB } }
  lake: { kafka: { brokers: [ "k:9092", "l:9092" ], options: { sasl.password: hunter2, sasl.oauthbearer.config: "secret=hunter2" } } }
  safe: { mqtt: { url: "mqtt://u:${env:P}@h" } }
routes:
  - { name: up, from: broker/#, to: [ "hq/{topic}", lake/t ] }
  - { from: broker/a, to: hq/b }
"#;
        let expected = [
            "the gateway: site=plant-7",
            "admin: bind=127.0.0.1:9090",
            "broker: auth.acl={ user: *, publish: a, b } | auth.http.headers.X-A=*** | auth.http.url=https://h/x?site=1&x=***#*** | auth.jwt.secret=*** | connections_max=7",
            "listener 127.0.0.1:1883: anonymous=true | bind=127.0.0.1:1883 | tls.cert=a.pem | tls.key=a.key",
            "link hq: buffer.max_size=1GiB | mqtt.url=mqtt://u:***@h",
            "link lake: kafka.brokers=k:9092, l:9092 | kafka.options.sasl.oauthbearer.config=*** | kafka.options.sasl.password=***",
            "link safe: mqtt.url=mqtt://u:${env:P}@h",
            "route route-2: from=broker/a | to=hq/b",
            "route up: from=broker/# | name=up | to=hq/{topic}, lake/t",
        ];
        assert_eq!(told(text), expected);
    }
    #[test]
    fn what_is_not_shown_has_a_sum_that_is_another_where_it_is_another() {
        let sums = |password: &str, token: &str| {
            let text = format!(
                "links:\n  a: {{ mqtt: {{ url: \"mqtt://u:{password}@h\" }}, tags: [x] }}\n  b: {{ mqtt: {{ url: \"mqtt://u:${{env:P}}@h\" }} }}\n"
            );
            let source = Arc::new(Source::new("routes.yaml".into(), text));
            let token = token.to_owned();
            let env = Env { variable: Box::new(move |_name| Some(token.clone())), ..Env::real() };
            of(&raw::parse(&source).unwrap(), &env).hidden.0
        };
        let (first, same, other) = (sums("one", "two"), sums("one", "two"), sums("another", "two"));
        let keys: Vec<_> = first.keys().map(|(entry, key)| format!("{entry}: {key}")).collect();
        assert_eq!(keys, ["link a: mqtt.url", "link b: mqtt.url"]);
        assert_eq!(first, same);
        let differ = |other: &BTreeMap<_, _>| first.iter().filter(|(key, sum)| other.get(*key) != Some(*sum)).count();
        assert_eq!((differ(&other), differ(&sums("one", "three"))), (1, 1));
    }
}
