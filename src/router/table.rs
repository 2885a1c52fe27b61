//! The index over all routes: a tree of topic levels for each place that messages arrive from.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::pattern::{Captures, Level, Pattern};
use super::{Arrival, Decision, Endpoint, LinkId, Route};

/// All routes, indexed.
///
/// Asking walks the levels of one topic; it costs what branches on the way (a literal level, `+`), not what other routes
/// exist. The tree's maps are keyed by what the operator wrote, never by what clients send.
#[derive(Debug, Default)]
pub struct Table {
    routes: Vec<Route>,
    broker: Origin,
    links: FxHashMap<LinkId, Origin>,
}

/// Routes from one endpoint.
#[derive(Debug, Default)]
struct Origin {
    /// Of the broker and of MQTT links.
    plain: Index,
    /// Of RabbitMQ queues and Kafka topics.
    channels: FxHashMap<Box<str>, Index>,
}

#[derive(Debug, Default)]
struct Index {
    /// Without a pattern.
    any: Vec<Hit>,
    root: Node,
}

/// One level of the tree. As deep as the longest pattern.
#[derive(Debug, Default)]
struct Node {
    exact: FxHashMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    /// Patterns that end with `#` below this level.
    rest: Vec<Hit>,
    /// Patterns that end here.
    here: Vec<Hit>,
}

/// A `from` of a route; ordered by route, so that decisions come in the order of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hit {
    route: usize,
    from: usize,
}

/// Eight routes at once fit without an allocation; a message that more routes take pays one.
type Hits = SmallVec<[Hit; 8]>;

impl Table {
    /// Indexes the routes.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        let mut table = Self::default();
        for (route, described) in routes.iter().enumerate() {
            for (from, begins) in described.from.iter().enumerate() {
                let origin = match &begins.endpoint {
                    Endpoint::Broker => &mut table.broker,
                    Endpoint::Link(link) => table.links.entry(link.clone()).or_default(),
                };
                let index = match &begins.channel {
                    None => &mut origin.plain,
                    Some(channel) => origin.channels.entry(channel.as_str().into()).or_default(),
                };
                index.insert(begins.pattern.as_ref(), Hit { route, from });
            }
        }
        table.routes = routes;
        table
    }

    /// The routes, as given.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What is to be done with a message that arrived thus, in the order of the routes and their targets. Allocates
    /// nothing if that is nothing.
    #[must_use]
    pub fn route(&self, arrival: Arrival<'_>) -> Vec<Decision> {
        let mut hits = Hits::new();
        if let Some(index) = self.index(arrival) {
            index.find(arrival.topic, &mut hits);
        }
        hits.sort_unstable();
        hits.dedup_by_key(|hit| hit.route);
        let mut decisions = Vec::new();
        for hit in hits {
            self.decide(hit, arrival.topic, &mut decisions);
        }
        decisions
    }

    fn index(&self, arrival: Arrival<'_>) -> Option<&Index> {
        let origin = match arrival.from {
            Endpoint::Broker => &self.broker,
            Endpoint::Link(link) => self.links.get(link)?,
        };
        match arrival.channel {
            None => Some(&origin.plain),
            Some(channel) => origin.channels.get(channel),
        }
    }

    fn decide(&self, hit: Hit, topic: &str, decisions: &mut Vec<Decision>) {
        let Some(route) = self.routes.get(hit.route) else { return };
        let pattern = route.from.get(hit.from).and_then(|from| from.pattern.as_ref());
        let captures = pattern.and_then(|pattern| pattern.captures(topic)).unwrap_or_else(|| Captures::of(topic));
        decisions.extend(route.to.iter().map(|to| Decision {
            route: route.name.clone(),
            target: to.endpoint.clone(),
            destination: to.template.fill(&captures),
            key: route.key.as_ref().map(|key| key.fill(&captures)),
            ttl: route.ttl,
            priority: route.priority,
        }));
    }
}

impl Index {
    fn insert(&mut self, pattern: Option<&Pattern>, hit: Hit) {
        let Some(pattern) = pattern else {
            self.any.push(hit);
            return;
        };
        let mut node = &mut self.root;
        for level in &pattern.levels {
            node = match level {
                Level::Exact(text) => node.exact.entry(text.clone()).or_default(),
                Level::One(_) => node.one.get_or_insert_default(),
                Level::Rest => {
                    node.rest.push(hit);
                    return;
                }
            };
        }
        node.here.push(hit);
    }

    fn find(&self, topic: &str, hits: &mut Hits) {
        hits.extend_from_slice(&self.any);
        if topic.starts_with('$') {
            // A leading wildcard does not match such a topic (MQTT-4.7.2-1).
            let (level, left) = first_level(topic);
            if let Some(node) = self.root.exact.get(level) {
                node.find(left, hits);
            }
        } else {
            self.root.find(Some(topic), hits);
        }
    }
}

impl Node {
    /// `left`: the levels still to match; `None` if there are no more.
    fn find(&self, left: Option<&str>, hits: &mut Hits) {
        hits.extend_from_slice(&self.rest);
        let Some(topic) = left else {
            hits.extend_from_slice(&self.here);
            return;
        };
        let (level, left) = first_level(topic);
        if let Some(node) = self.exact.get(level) {
            node.find(left, hits);
        }
        if let Some(node) = &self.one {
            node.find(left, hits);
        }
    }
}

fn first_level(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(level, left)| (level, Some(left)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::router::{Form, From, Priority, Template, To};

    fn route(name: &str, from: &[From], to: &[&str]) -> Route {
        let to = to.iter().map(|to| To::parse(to).unwrap()).collect();
        Route { name: name.into(), from: from.to_vec(), to, key: None, ttl: None, priority: Priority::default() }
    }

    fn on_topic(address: &str) -> From {
        From::parse(address, Form::Topic).unwrap()
    }

    fn ask(table: &Table, from: &str, channel: Option<&str>, topic: &str) -> Vec<String> {
        let from = Endpoint::of_address(&format!("{from}/x")).unwrap();
        let decisions = table.route(Arrival { from: &from, channel, topic });
        decisions.iter().map(|d| format!("{}: {}/{}", d.route, d.target, d.destination)).collect()
    }

    #[test]
    fn decisions_come_in_the_order_of_routes_and_targets() {
        let table = Table::new(vec![
            route("all", &[on_topic("broker/#")], &["lake/raw"]),
            route("line", &[on_topic("broker/factory/{line}/#")], &["cloud/{line}.{rest}", "hq/up/{topic}"]),
            route("other", &[on_topic("broker/office/#")], &["lake/office"]),
        ]);
        let expected = ["all: lake/raw", "line: cloud/a.temp", "line: hq/up/factory/a/temp"];
        assert_eq!(ask(&table, "broker", None, "factory/a/temp"), expected);
        assert!(ask(&table, "hq", None, "factory/a/temp").is_empty());
    }

    #[test]
    fn r29_broker_hash_leaves_dollar_topics_out() {
        let table = Table::new(vec![
            route("all", &[on_topic("broker/#")], &["lake/raw"]),
            route("sys", &[on_topic("broker/$SYS/#")], &["lake/sys"]),
        ]);
        assert_eq!(ask(&table, "broker", None, "$SYS/x"), ["sys: lake/sys"]);
        assert!(ask(&table, "broker", None, "$share").is_empty());
    }

    #[test]
    fn a_message_takes_a_route_once_with_the_captures_of_its_first_match() {
        let table =
            Table::new(vec![route("r", &[on_topic("broker/{a}/x"), on_topic("broker/#")], &["lake/{a}-{rest}"])]);
        assert_eq!(ask(&table, "broker", None, "1/x"), ["r: lake/1-"]);
        assert_eq!(ask(&table, "broker", None, "1/y"), ["r: lake/-1/y"]);
    }

    #[test]
    fn queues_and_kafka_topics_are_told_apart_and_may_have_a_pattern() {
        let table = Table::new(vec![
            route("orders", &[From::parse("mq/orders", Form::Channel).unwrap()], &["broker/o/{topic}"]),
            route("some", &[From::parse("mq/orders/eu/{id}", Form::Channel).unwrap()], &["broker/eu/{id}"]),
        ]);
        assert_eq!(ask(&table, "mq", Some("orders"), "eu/7"), ["orders: broker/o/eu/7", "some: broker/eu/7"]);
        assert_eq!(ask(&table, "mq", Some("orders"), "$x"), ["orders: broker/o/$x"]);
        assert!(ask(&table, "mq", Some("bills"), "eu/7").is_empty());
        assert!(ask(&table, "mq", None, "eu/7").is_empty());
    }

    #[test]
    fn the_key_is_filled_in() {
        let mut keyed = route("k", &[on_topic("broker/{a}/{b}")], &["lake/t"]);
        keyed.key = Some(Template::parse("{b}").unwrap());
        let table = Table::new(vec![keyed]);
        let decisions = table.route(Arrival { from: &Endpoint::Broker, channel: None, topic: "1/2" });
        assert_eq!(decisions.first().unwrap().key.as_deref(), Some("2"));
    }

    proptest! {
        #[test]
        fn the_table_finds_what_the_naive_reference_finds(
            filters in prop::collection::vec("\\$?(([abc]|\\+|)/){0,3}([abc]|\\+|#)", 0..12),
            topic in "\\$?[abc/]{1,7}",
        ) {
            let filters: Vec<_> = filters.iter().filter(|filter| Pattern::parse(filter).is_ok()).collect();
            let routes = filters.iter().enumerate();
            let routes = routes.map(|(at, filter)| route(&at.to_string(), &[on_topic(&format!("broker/{filter}"))], &["x/y"]));
            let table = Table::new(routes.collect());
            let found: Vec<_> = table
                .route(Arrival { from: &Endpoint::Broker, channel: None, topic: &topic })
                .into_iter()
                .map(|decision| decision.route.to_string())
                .collect();
            let expected = filters.iter().enumerate().filter(|(_, filter)| crate::topic::matches(filter, &topic));
            let expected: Vec<_> = expected.map(|(at, _)| at.to_string()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
