//! Sparkplug numbers the messages of each edge node (`seq`): its births, data and deaths have to arrive in the order in which they were sent,
//! and none may be missing (Sparkplug 3.0, 6.4.4). What routes do against that is warned of: whether a message really takes two of
//! them, files cannot tell.

use super::Resolver;
use super::link::Draft;
use super::route::Draught;
use crate::config::source::Place;
use crate::links::Kind;
use crate::links::mqtt::Version;
use crate::router::{Binding, Endpoint, From, Gate, Pattern, Reach, Route, Template, To};

/// What every topic of Sparkplug B begins with; then group, type, node and, for what is a device's, device.
const NAMESPACE: &str = "spBv1.0";

/// The types of messages that have an order among themselves, as patterns: what nodes send, and what is sent to them. The `STATE` of a host has none.
const FLOWS: [&[&str]; 2] = [
    &[
        "spBv1.0/+/NBIRTH/+",
        "spBv1.0/+/NDATA/+",
        "spBv1.0/+/NDEATH/+",
        "spBv1.0/+/DBIRTH/+/+",
        "spBv1.0/+/DDATA/+/+",
        "spBv1.0/+/DDEATH/+/+",
    ],
    &["spBv1.0/+/NCMD/+", "spBv1.0/+/DCMD/+/+"],
];

const GROUP: usize = 1;
const NODE: usize = 3;

/// Messages of nodes that a route brings to one of its targets.
struct Lead<'r> {
    draught: &'r Draught,
    to: &'r To,
    place: &'r Place,
    flows: Vec<Flow<'r>>,
}

/// Messages of one kind that come from one place, or have such topics where they go to.
#[derive(PartialEq, Eq)]
struct Flow<'r> {
    /// `None`: by the topic at the target.
    from: Option<&'r From>,
    kind: usize,
    group: String,
    node: String,
    /// It is Sparkplug by its own words, and not among everything else.
    is_meant: bool,
}

impl Resolver<'_> {
    pub(super) fn check_sparkplug(&mut self, routes: &[Draught], links: &[Draft<'_>]) {
        let mut leads: Vec<Lead<'_>> = Vec::new();
        for draught in routes.iter().filter(|draught| draught.is_right && draught.is_read && !draught.takes_nothing) {
            self.check_gaps(draught);
            for (to, place) in draught.route.to.iter().zip(&draught.to) {
                if to.endpoint == Endpoint::Broker {
                    continue;
                }
                let flows = flows(&draught.route, to);
                if flows.is_empty() {
                    continue;
                }
                let lead = Lead { draught, to, place, flows };
                self.check_batches(&lead);
                if let Some((other, why)) = leads.iter().find_map(|other| Some((other, parts(other, &lead)?))) {
                    let wrong = format!(
                        "route `{}` brings messages of the same Sparkplug nodes there {why}: they change their order on the way",
                        other.draught.route.name
                    );
                    let hint = "hosts take that for loss: let one route take all that a node sends, or give both one `priority` and no `batch`";
                    self.mistakes.warning(place, wrong, hint.to_owned());
                }
                leads.push(lead);
            }
        }
        for link in links {
            self.check_refusals(&leads, link);
        }
    }

    /// What a remote refuses for now is sent again behind what was in flight with it. Told once for a link, since `in_flight` is the link's.
    fn check_refusals(&mut self, leads: &[Lead<'_>], link: &Draft<'_>) {
        let Some(config) = link.config.as_ref().filter(|config| config.in_flight != Some(1)) else { return };
        let who = match &config.kind {
            Kind::Mqtt(remote) if remote.version == Version::V5 => "a remote with MQTT 5",
            Kind::Rabbitmq(_) => "RabbitMQ",
            // 3.1.1 has no words for it, and Kafka's producer sends again in order by itself.
            Kind::Mqtt(_) | Kind::Kafka(_) => return,
        };
        let is_meant = |lead: &&Lead<'_>| {
            let leads_here = matches!(&lead.to.endpoint, Endpoint::Link(id) if *id == config.id);
            leads_here && lead.flows.iter().any(|flow| flow.is_meant)
        };
        if let Some(lead) = leads.iter().find(is_meant) {
            let wrong = format!(
                "{who} may refuse a message for now: it is sent again behind others of its Sparkplug node, which were on their way"
            );
            let hint = format!(
                "where hosts take that for loss, write `in_flight: 1` for link `{}`: it sends one at a time then, slowly on a long line",
                link.name
            );
            self.mistakes.warning(lead.place, wrong, hint);
        }
    }

    /// What a gate holds back is missing in `seq`; and since a node sends what has changed alone, values are missing with it.
    fn check_gaps(&mut self, draught: &Draught) {
        let what = match &draught.route.gate {
            Some(Gate::Throttle(_)) => "`throttle` leaves some of them out",
            Some(Gate::Sample(_)) => "`sample` leaves some of them out, and sends the others late",
            Some(Gate::NewIds | Gate::Changes { .. }) | None => return,
        };
        for (from, place) in draught.route.from.iter().zip(&draught.from) {
            if from.pattern.as_ref().is_some_and(is_meant) && !taken(&draught.route, from).is_empty() {
                let wrong = format!("Sparkplug numbers a node's messages, and {what}");
                let hint = "a message has the metrics alone that have changed: let all through, or have the nodes send less often";
                self.mistakes.warning(place, wrong, hint.to_owned());
            }
        }
    }

    /// A batch is of one destination and key: those of one node are several unless they are made of group and node alone.
    fn check_batches(&mut self, lead: &Lead<'_>) {
        let route = &lead.draught.route;
        if route.batch.is_none() || !lead.flows.iter().any(|flow| flow.is_meant) {
            return;
        }
        let patterns = || route.from.iter().map(|from| from.pattern.as_ref());
        let varies = |template: &Template| patterns().any(|pattern| varies_within_a_node(template, pattern));
        if varies(&lead.to.template) || route.key.as_ref().is_some_and(varies) {
            let wrong =
                "each destination and key has a batch of its own, in which a node's messages overtake each other";
            let hint = "Sparkplug needs their order: make it of group and node alone, or leave `batch` out";
            self.mistakes.warning(lead.place, wrong, hint.to_owned());
        }
    }
}

/// Whether two bring messages of the same nodes to where they may be read as one, by different ways.
fn parts(one: &Lead<'_>, other: &Lead<'_>) -> Option<&'static str> {
    if one.to.endpoint != other.to.endpoint || std::ptr::eq(one.draught, other.draught) {
        return None;
    }
    let (ours, theirs) = (&one.draught.route, &other.draught.route);
    let why = if ours.priority != theirs.priority {
        "with another `priority`"
    } else if ours.batch.is_some() || theirs.batch.is_some() {
        "in batches of its own"
    } else {
        return None;
    };
    let meet = |one: &Flow<'_>, other: &Flow<'_>| {
        let same_source = match (one.from, other.from) {
            (Some(one), Some(other)) => one.endpoint == other.endpoint && one.channel == other.channel,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let may_be = |one: &str, other: &str| one == other || one == "+" || other == "+";
        same_source
            && one.kind == other.kind
            && (one.is_meant || other.is_meant)
            && may_be(&one.group, &other.group)
            && may_be(&one.node, &other.node)
    };
    let same_nodes = one.flows.iter().any(|flow| other.flows.iter().any(|theirs| meet(flow, theirs)));
    (same_nodes && !are_apart(one, other)).then_some(why)
}

/// Whether nobody reads both as one: two Kafka topics, or destinations that begin differently.
fn are_apart(one: &Lead<'_>, other: &Lead<'_>) -> bool {
    let (ours, theirs) = (&one.to.template, &other.to.template);
    if one.to.binding == Binding::Kafka {
        return ours.is_fixed() && theirs.is_fixed() && ours != theirs;
    }
    let [ours, theirs] = [one, other].map(|lead| {
        let made = lead.draught.route.from.iter().map(|from| made(from, lead.to));
        made.map(|made| made.stem().next().map(str::to_owned)).collect::<Vec<_>>()
    });
    let differs =
        |first: &Option<String>| first.is_some() && theirs.iter().all(|other| other.is_some() && other != first);
    ours.iter().all(differs)
}

/// The topics at a target.
fn made(from: &From, to: &To) -> Reach {
    let topics = from.pattern.as_ref().map_or_else(Reach::any, Reach::of);
    topics.through(from.pattern.as_ref(), &to.template)
}

/// What a route takes of Sparkplug by its patterns, and what it sends with such topics.
fn flows<'r>(route: &'r Route, to: &To) -> Vec<Flow<'r>> {
    let mut flows: Vec<Flow<'r>> = Vec::new();
    for from in &route.from {
        let is_meant = from.pattern.as_ref().is_some_and(is_meant);
        let made = made(from, to);
        let is_made = made.stem().next() == Some(NAMESPACE);
        let made = if is_made { kinds_of(&made, |_| false) } else { Vec::new() };
        let begun = taken(route, from);
        let begun = begun.into_iter().map(|(kind, group, node)| Flow { from: Some(from), kind, group, node, is_meant });
        let made = made.into_iter().map(|(kind, group, node)| Flow { from: None, kind, group, node, is_meant: true });
        for flow in begun.chain(made) {
            if !flows.contains(&flow) {
                flows.push(flow);
            }
        }
    }
    flows
}

/// Kind, group and node of what a route takes.
fn taken(route: &Route, from: &From) -> Vec<(usize, String, String)> {
    let Some(pattern) = &from.pattern else { return Vec::new() };
    kinds_of(&Reach::of(pattern), |taken| route.except.iter().any(|except| taken.is_covered_by(except)))
}

fn kinds_of(topics: &Reach, is_excepted: impl Fn(&Reach) -> bool) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    for (kind, shapes) in FLOWS.iter().enumerate() {
        let shapes = shapes.iter().filter_map(|text| Pattern::parse(text).ok());
        for taken in shapes.filter_map(|shape| topics.within(&shape)).filter(|taken| !is_excepted(taken)) {
            let text = taken.to_string();
            let level = |at: usize| text.split('/').nth(at).unwrap_or("+").to_owned();
            let flow = (kind, level(GROUP), level(NODE));
            if !found.contains(&flow) {
                found.push(flow);
            }
        }
    }
    found
}

fn is_meant(pattern: &Pattern) -> bool {
    is_meant_text(pattern.as_str())
}

/// Of a pattern or a destination.
pub(super) fn is_meant_text(text: &str) -> bool {
    text.split('/').next() == Some(NAMESPACE)
}

/// Whether messages of one node get several texts.
fn varies_within_a_node(template: &Template, pattern: Option<&Pattern>) -> bool {
    let placed = template.placed(pattern, pattern);
    // Levels that are not spelled out stand there as their numbers, between NULs.
    let varies = |level: &str| ![GROUP.to_string(), NODE.to_string()].iter().any(|of_node| of_node == level);
    let fields = placed.replace("{site}", "").replace("{client_id}", "").replace("{user}", "");
    fields.contains('{') || placed.split('\0').skip(1).step_by(2).any(varies)
}
