//! The index over all routes: a tree of topic levels for each place that messages arrive from.

use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::batch::Batch;
use super::change::{ChangeError, Told as StepTold};
use super::counts::{Counters, Counts, Held};
use super::gate::{Asked, Pass, Seen};
use super::pattern::{Level, Pattern};
use super::sparkplug::Births;
use super::{Arrival, Captures, Endpoint, LinkId, Route, Verdict};
use crate::message::Message;

/// All routes, indexed.
///
/// Asking walks the levels of one topic; it costs what branches on the way (a literal level, `+`), not what other routes
/// exist. The tree's maps are keyed by what the operator wrote, never by what clients send.
#[derive(Debug, Default)]
pub struct Table {
    routes: Vec<Route>,
    /// The places of routes by their names.
    names: FxHashMap<Arc<str>, usize>,
    /// One for each route.
    counters: Vec<Arc<Counters>>,
    /// What has gone through the gates of those routes that have one.
    seen: FxHashMap<usize, Arc<Mutex<Seen>>>,
    /// By the names of routes.
    batches: FxHashMap<Arc<str>, Batch>,
    /// What the BIRTHs of Sparkplug's edge nodes have said to routes that decode them.
    births: Arc<Mutex<Births>>,
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

/// So many routes at once fit without an allocation; a message that more routes take pays one.
type Hits = SmallVec<[Hit; 16]>;

/// A route that takes a message.
#[derive(Debug)]
pub struct Taken<'t, 'v> {
    /// Its place in the table.
    pub at: usize,
    /// The route.
    pub route: &'t Route,
    /// What its pattern captured.
    pub captures: Captures<'v>,
}

/// What a table says of one message: one for each route whose pattern matches, but for what `except` leaves out.
#[derive(Debug)]
pub enum Told<'t, 'v> {
    /// The route takes it.
    Taken(Taken<'t, 'v>),
    /// The route at this place holds it back.
    Held(usize, Held),
}

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
        table.seen =
            (0..).zip(&routes).filter(|(_, route)| route.gate.is_some()).map(|(at, _)| (at, Arc::default())).collect();
        let batches = routes.iter().filter_map(|route| Some((Arc::clone(&route.name), route.batch?)));
        table.batches = batches.collect();
        table.counters = routes.iter().map(|_| Arc::default()).collect();
        for (at, route) in routes.iter().enumerate() {
            table.names.entry(Arc::clone(&route.name)).or_insert(at);
        }
        table.routes = routes;
        table
    }

    /// Counts what the route at this place held back; answers how often that was.
    pub fn note(&self, at: usize, held: Held) -> u64 {
        self.counters.get(at).map_or(0, |counters| counters.note(held))
    }

    /// What each route held back.
    pub fn counts(&self) -> impl Iterator<Item = (&Route, Counts)> {
        self.routes.iter().zip(self.counters.iter().map(|counters| counters.read()))
    }

    /// Counts on with the table before it, for routes that have kept their names; and remembers with it what has gone through, for gates
    /// that are as they were, and BIRTHs. Both share that from now on: what is on its way by the one before is treated and counted as ever.
    pub fn take_over(&mut self, earlier: &Self) {
        self.births = Arc::clone(&earlier.births);
        for (at, (route, counters)) in (0..).zip(self.routes.iter().zip(&mut self.counters)) {
            let Some((before, was)) = earlier.named(&route.name) else { continue };
            if let Some(earlier) = earlier.counters.get(before) {
                *counters = Arc::clone(earlier);
            }
            if let (true, Some(earlier)) = (was.gate == route.gate, earlier.seen.get(&before)) {
                self.seen.insert(at, Arc::clone(earlier));
            }
        }
    }

    /// The route of this name, and its place.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<(usize, &Route)> {
        let at = *self.names.get(name)?;
        Some((at, self.routes.get(at)?))
    }

    /// Whether a message that a route takes goes through its gate. `offer`: see [`gate`](super::gate).
    pub fn ask(&self, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>, offer: u64) -> Asked {
        let (Some(gate), Some(seen)) = (&taken.route.gate, self.seen.get(&taken.at)) else { return Asked::Free };
        seen.lock().ask(gate, taken.at, arrival.topic, taken.route.view(arrival, &taken.captures), offer)
    }

    /// Every target has room for what goes through.
    pub fn enter(&self, pass: &Pass) {
        self.with_seen(pass, Seen::enter);
    }

    /// It is in the logs.
    pub fn settle(&self, pass: &Pass) {
        self.with_seen(pass, Seen::settle);
    }

    /// It was refused after all.
    pub fn withdraw(&self, pass: &Pass) {
        self.with_seen(pass, Seen::withdraw);
    }

    /// What a route that takes a message takes out of its payload first: see [`Change::unpack`](super::Change::unpack).
    ///
    /// # Errors
    /// The payload is not as the route says.
    pub fn unpack(
        &self,
        route: &Route,
        arrival: &Arrival<'_, '_>,
        told: StepTold<'_>,
    ) -> Result<Option<Message>, ChangeError> {
        route.change.unpack(arrival.subject.message(), arrival.topic, &self.births, told)
    }

    /// Forgets what has gone through all gates, and all BIRTHs.
    pub fn forget(&self) {
        *self.births.lock() = Births::default();
        self.seen.values().for_each(|seen| *seen.lock() = Seen::default());
    }

    fn with_seen(&self, pass: &Pass, change: fn(&mut Seen, &Pass)) {
        if let Some(seen) = self.seen.get(&pass.route) {
            change(&mut seen.lock(), pass);
        }
    }

    /// How records of the route of this name are sent together.
    #[must_use]
    pub fn batch(&self, route: &str) -> Option<Batch> {
        self.batches.get(route).copied()
    }

    /// The routes, as given.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Tells which routes take a message that arrived thus, and which hold it back, in their order. Allocates nothing.
    pub fn route<'v>(&'v self, arrival: &Arrival<'v, '_>, mut tell: impl FnMut(Told<'v, 'v>)) {
        let mut hits = Hits::new();
        if let Some(index) = self.index(arrival) {
            index.find(arrival.topic, &mut hits);
        }
        if hits.len() > 1 {
            hits.sort_unstable();
            hits.dedup_by_key(|hit| hit.route);
        }
        for hit in hits {
            let Some(route) = self.routes.get(hit.route) else { continue };
            match route.judge_from(hit.from, arrival) {
                Verdict::Taken(captures) => tell(Told::Taken(Taken { at: hit.route, route, captures })),
                Verdict::Filtered(_) => tell(Told::Held(hit.route, Held::Filtered)),
                Verdict::OtherSource | Verdict::OtherTopic | Verdict::Excepted(_) => {}
            }
        }
    }

    fn index(&self, arrival: &Arrival<'_, '_>) -> Option<&Index> {
        let origin = match arrival.from {
            Endpoint::Broker => &self.broker,
            Endpoint::Link(link) => self.links.get(link)?,
        };
        match arrival.channel {
            None => Some(&origin.plain),
            Some(channel) => origin.channels.get(channel),
        }
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
        if !self.any.is_empty() {
            hits.extend_from_slice(&self.any);
        }
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
        if !self.rest.is_empty() {
            hits.extend_from_slice(&self.rest);
        }
        if self.exact.is_empty() && self.one.is_none() && left.is_some() {
            return;
        }
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
    // Levels are short: a search for a character that is set up first costs more than it saves.
    let slash = topic.bytes().position(|byte| byte == b'/').and_then(|at| topic.split_at_checked(at));
    slash.map_or((topic, None), |(level, left)| (level, left.get(1..)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::tests_support::message;
    use crate::router::{Form, From, Subject, Template, To, View};

    fn route(name: &str, from: &[From], to: &[&str]) -> Route {
        Route::new(name, from.to_vec(), to.iter().map(|to| To::parse(to).unwrap()).collect())
    }

    fn on_topic(address: &str) -> From {
        From::parse(address, Form::Topic).unwrap()
    }

    fn ask(table: &Table, from: &str, channel: Option<&str>, topic: &str) -> Vec<String> {
        let from = Endpoint::of_address(&format!("{from}/x")).unwrap();
        let message = message(topic, b"");
        let subject = Subject::new(&message);
        let mut told = Vec::new();
        table.route(&Arrival { from: &from, channel, topic, subject: &subject }, |told_of| {
            let Told::Taken(taken) = told_of else { return };
            let view = View::new(&subject, &taken.captures);
            let key = taken.route.key.as_ref().map(|key| format!(" {}", key.fill_text(view).unwrap()));
            told.extend(taken.route.to.iter().map(|to| {
                let destination = to.template.fill(view).unwrap();
                format!("{}: {}/{destination}{}", taken.route.name, to.endpoint, key.as_deref().unwrap_or_default())
            }));
        });
        told
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
        let table = Table::new(vec![route("r", &[on_topic("broker/{a}/x"), on_topic("broker/#")], &["lake/{topic}"])]);
        assert_eq!(ask(&table, "broker", None, "1/x"), ["r: lake/1/x"]);
        assert_eq!(ask(&table, "broker", None, "1/y"), ["r: lake/1/y"]);
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
        assert_eq!(ask(&Table::new(vec![keyed]), "broker", None, "1/2"), ["k: lake/t 2"]);
    }

    #[test]
    fn r34_counts_go_on_where_a_route_has_kept_its_name() {
        let table = |names: &[&str]| {
            Table::new(names.iter().map(|name| route(name, &[on_topic("broker/#")], &["lake/t"])).collect())
        };
        let (before, mut after) = (table(&["a", "b"]), table(&["b", "c"]));
        before.note(1, Held::Failed);
        assert_eq!(before.note(1, Held::Failed), 2);
        after.take_over(&before);
        let failed: Vec<_> = after.counts().map(|(route, counts)| (&*route.name, counts.failed)).collect();
        assert_eq!(failed, [("b", 2), ("c", 0)]);
        before.note(1, Held::Failed);
        assert_eq!(after.note(0, Held::Failed), 4, "what was on its way counts too");
    }

    #[test]
    fn what_is_on_its_way_by_the_table_before_knows_the_births_and_gates_of_both() {
        use crate::router::change::Decode;
        use crate::router::{Change, Gate};
        let table = || {
            let change = Change { decode: Some(Decode::SparkplugB), ..Change::default() };
            let gate = Some(Gate::Throttle(std::time::Duration::from_secs(10)));
            Table::new(vec![Route { change, gate, ..route("s", &[on_topic("broker/#")], &["lake/t"]) }])
        };
        let decoded = |table: &Table, topic: &str, payload: &[u8]| {
            let mut message = message(topic, b"");
            message.payload = payload.to_vec().into();
            let subject = Subject::new(&message);
            let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic, subject: &subject };
            let plain = table.unpack(&table.routes()[0], &arrival, None).unwrap().unwrap();
            String::from_utf8(plain.payload.to_vec()).unwrap()
        };
        // A metric `T` with the alias 3, then one that has the alias alone.
        let birth = [0x12, 0x09, 0x0a, 0x01, b'T', 0x10, 0x03, 0x20, 0x03, 0x50, 0x01];
        let data = [0x12, 0x04, 0x10, 0x03, 0x50, 0x07];
        let (before, mut after) = (table(), table());
        decoded(&before, "spBv1.0/g/NBIRTH/a", &birth);
        after.take_over(&before);
        decoded(&before, "spBv1.0/g/NBIRTH/b", &birth);
        for (table, node) in [(&before, "a"), (&before, "b"), (&after, "a"), (&after, "b")] {
            let said = decoded(table, &format!("spBv1.0/g/NDATA/{node}"), &data);
            assert!(said.contains(r#""name":"T""#), "{node}: {said}");
        }
        let asks = |table: &Table, topic: &str| {
            let message = message(topic, b"");
            let subject = Subject::new(&message);
            let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic, subject: &subject };
            let mut asked = Vec::new();
            table.route(&arrival, |told| {
                if let Told::Taken(taken) = told {
                    asked.push(table.ask(&taken, &arrival, 1));
                }
            });
            asked.remove(0)
        };
        let Asked::Passes(pass) = asks(&before, "t") else { panic!() };
        before.enter(&pass);
        before.settle(&pass);
        assert_eq!((asks(&before, "t"), asks(&after, "t")), (Asked::Held, Asked::Held));
    }

    #[test]
    fn what_except_names_is_not_taken_by_any_from() {
        let mut most = route("most", &[on_topic("broker/a/#"), on_topic("broker/b/{x}")], &["lake/t"]);
        most.except = ["a/test/#", "+/x"].map(|text| Pattern::parse(text).unwrap()).into();
        let table = Table::new(vec![most]);
        for (topic, taken) in [("a", true), ("a/y", true), ("a/test", false), ("a/test/1", false), ("b/x", false)] {
            assert_eq!(!ask(&table, "broker", None, topic).is_empty(), taken, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn the_table_finds_what_the_naive_reference_finds(
            filters in prop::collection::vec("\\$?(([abc]|\\+|\\{x\\}|)/){0,3}([abc]|\\+|#)", 0..12),
            except in prop::option::of("(([abc]|\\+)/){0,2}([abc]|\\+|#)"),
            topic in "\\$?[abc/]{1,7}",
        ) {
            let except: Vec<_> = except.iter().filter_map(|text| Pattern::parse(text).ok()).collect();
            // Three filters a route, so that a message may come by several of one.
            let filters: Vec<_> = filters.iter().filter_map(|text| Pattern::parse(text).ok()).collect();
            let routes = filters.chunks(3).enumerate().map(|(at, filters)| {
                let from: Vec<_> = filters.iter().map(|filter| on_topic(&format!("broker/{filter}"))).collect();
                Route { except: except.clone(), ..route(&at.to_string(), &from, &["x/y"]) }
            });
            let table = Table::new(routes.collect());
            let matches = |filter: &Pattern| crate::topic::matches(&filter.filter(), &topic);
            let expected = filters.chunks(3).enumerate().filter(|(_, filters)| filters.iter().any(matches));
            let expected = expected.filter(|_| !except.iter().any(matches));
            let expected: Vec<_> = expected.map(|(at, _)| format!("{at}: x/y")).collect();
            prop_assert_eq!(ask(&table, "broker", None, &topic), expected.clone());
            // The verdict on each single route is the same as the index's.
            let message = message(&topic, b"");
            let subject = Subject::new(&message);
            let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic: &topic, subject: &subject };
            let judged = table.routes().iter().filter(|route| matches!(route.judge(&arrival), Verdict::Taken(_)));
            let judged: Vec<_> = judged.map(|route| format!("{}: x/y", route.name)).collect();
            prop_assert_eq!(judged, expected);
        }
    }
}
