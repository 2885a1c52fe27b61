//! What one message brings to the broker's own clients, and to the routes that begin there. Pure.
//!
//! Routes that write other messages to one topic are all heard; the very same comes there once. A circle of routes ends with that where
//! they change nothing, and else where a route would write to a topic what it made there itself: on its own way each route writes to a
//! topic once. So what two ways bring to one route goes on from there twice, as it is two messages.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::message::Message;
use crate::topic::TopicName;

/// Messages for the broker that are made of one. Ways of a circle that change a message each time branch: some routes on one topic could
/// make thousands before [`CHAIN_MAX`](super::plan::CHAIN_MAX) ends them.
pub(super) const LOCALS_MAX: usize = 1_024;

/// One message for local subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalTarget {
    pub(super) topic: TopicName,
    /// What a route made of the message; `None`: the message as it came.
    pub(super) message: Option<Arc<Message>>,
    /// The route's place in the table; `None` for a client's own publish.
    pub(super) by: Option<usize>,
    /// The place of the local, an earlier one, that the route took; `None` where it took the message as it came.
    pub(super) behind: Option<usize>,
}

/// What has become of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    New,
    /// The very same is there, or it has come round in a circle: nothing is lacking.
    Known,
    /// There are [`LOCALS_MAX`].
    TooMany,
}

/// Adds one, if it is new. `came`: the message as it came.
pub(super) fn add(locals: &mut SmallVec<[LocalTarget; 1]>, local: LocalTarget, came: &Message) -> Added {
    // Not looked for among so many.
    if locals.len() >= LOCALS_MAX {
        return Added::TooMany;
    }
    if locals.iter().any(|other| is_same(other, &local, came)) || comes_round(locals, &local) {
        return Added::Known;
    }
    locals.push(local);
    Added::New
}

/// How many routes it has passed behind the first; 0 for what the first one wrote.
pub(super) fn depth(locals: &[LocalTarget], at: usize) -> usize {
    let first = locals.get(at);
    std::iter::successors(first, |local| locals.get(local.behind?)).count().saturating_sub(1)
}

fn is_same(one: &LocalTarget, other: &LocalTarget, came: &Message) -> bool {
    // The payload is what differs most.
    let is_equal = |one: &Message, other: &Message| one.payload == other.payload && one == other;
    one.topic == other.topic
        && match (&one.message, &other.message) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || is_equal(one, other),
            (Some(made), None) | (None, Some(made)) => is_equal(made, came),
        }
}

/// On its way the same route wrote to the same topic before.
fn comes_round(locals: &[LocalTarget], local: &LocalTarget) -> bool {
    let first = local.behind.and_then(|at| locals.get(at));
    let mut before = std::iter::successors(first, |local| locals.get(local.behind?));
    before.any(|before| before.by == local.by && before.topic == local.topic)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::plan::{CHAIN_MAX, Gates, Plan, plan};
    use super::super::{Source, explain};
    use super::*;
    use crate::message::Envelope;
    use crate::message::tests_support::message;
    use crate::router::{Change, Endpoint, Form, From, Gate, Held, LinkId, Route, Table, Template, To};

    /// `payload`: what the route makes of it.
    fn route(name: &str, from: &[&str], to: &[&str], payload: Option<&str>) -> Route {
        let payload = payload.map(|payload| Template::parse(payload).unwrap());
        Route {
            change: Change { payload, ..Change::default() },
            ..Route::new(
                name,
                from.iter().map(|from| From::parse(from, Form::Topic).unwrap()).collect(),
                to.iter().map(|to| To::parse(to).unwrap()).collect(),
            )
        }
    }

    /// A link that takes whatever there is.
    fn anywhere(_link: &LinkId, envelope: Envelope) -> Result<String, String> {
        Ok(envelope.destination.into())
    }

    fn from_broker() -> Source {
        Source { from: Endpoint::Broker, channel: None, takes_copies: false }
    }

    fn planned(table: &Table, topic: &str, payload: &'static [u8]) -> Plan {
        plan(table, &from_broker(), &message(topic, payload), Gates::OPEN)
    }

    /// Topics with their payloads; `*`: the message as it came.
    fn locals(plan: &Plan) -> Vec<String> {
        let payload = |message: &Arc<Message>| String::from_utf8(message.payload.to_vec()).unwrap();
        let shown = |local: &LocalTarget| {
            format!("{} {}", local.topic, local.message.as_ref().map_or_else(|| "*".to_owned(), payload))
        };
        plan.locals.iter().map(shown).collect()
    }

    fn chain(routes: usize) -> Table {
        let step = |at: usize| {
            let to = if at == routes { "hq/end".to_owned() } else { format!("broker/c{}", at + 1) };
            route(&format!("r{at}"), &[&format!("broker/c{at}")], &[&to], None)
        };
        Table::new((1..=routes).map(step).collect())
    }

    #[test]
    fn routes_that_write_other_messages_to_one_topic_are_all_heard_there_and_behind_it() {
        let table = Table::new(vec![
            route("hot", &["broker/t"], &["broker/alarm"], Some("hot")),
            route("pressure", &["broker/t"], &["broker/alarm"], Some("pressure")),
            route("again", &["broker/t"], &["broker/alarm", "broker/alarm"], Some("hot")),
            route("plain", &["broker/t"], &["broker/alarm"], None),
            route("plain again", &["broker/t"], &["broker/alarm"], Some("{payload}")),
            route("out", &["broker/alarm"], &["hq/alarm"], None),
        ]);
        let plan = planned(&table, "t", b"1");
        assert_eq!(locals(&plan), ["t *", "alarm hot", "alarm pressure", "alarm *"], "the very same once");
        let sent: Vec<_> = plan.links.iter().map(|to| to.message.as_ref().map(|made| made.payload.to_vec())).collect();
        assert_eq!(sent, [Some(b"hot".to_vec()), Some(b"pressure".to_vec()), None]);
        assert!(plan.held.is_empty());
    }

    #[test]
    fn two_messages_that_meet_at_one_route_both_go_on() {
        let table = Table::new(vec![
            route("x", &["broker/in"], &["broker/s/1"], Some("x")),
            route("y", &["broker/in"], &["broker/s/2"], Some("y")),
            route("out", &["broker/s/+"], &["broker/out"], None),
        ]);
        let plan = planned(&table, "in", b"1");
        assert_eq!(locals(&plan), ["in *", "s/1 x", "s/2 y", "out x", "out y"]);
    }

    #[test]
    fn circles_end_and_are_no_failure() {
        let to_itself = |payload| Table::new(vec![route("self", &["broker/a"], &["broker/a"], payload)]);
        assert_eq!(locals(&planned(&to_itself(None), "a", b"1")), ["a *"], "a client's own is not repeated");
        assert_eq!(locals(&planned(&to_itself(Some("{payload}")), "a", b"1")), ["a *"], "the very same");
        assert_eq!(locals(&planned(&to_itself(Some("{payload}!")), "a", b"1")), ["a *", "a 1!"]);
        let ring = Table::new(vec![
            route("there", &["broker/a"], &["broker/b"], Some("{payload}>")),
            route("back", &["broker/b"], &["broker/a"], Some("{payload}<")),
        ]);
        let plan = planned(&ring, "a", b"");
        assert_eq!((locals(&plan), plan.held.len()), (vec!["a *".into(), "b >".into(), "a ><".into()], 0));
        // What comes round behind the last one that is followed is not lacking, and what would go on is.
        for (steps, there, lacking) in [(9, 9, 0), (10, 10, 0), (11, 10, 1)] {
            let step = |at| route("r", &[&format!("broker/{at}")], &[&format!("broker/{}", (at + 1) % steps)], None);
            let plan = planned(&Table::new((0..steps).map(step).collect()), "0", b"");
            assert_eq!((plan.locals.len(), plan.held.len()), (there, lacking), "{steps} steps");
        }
    }

    #[test]
    fn of_what_routes_write_to_a_topic_that_is_sampled_the_last_is_held_and_the_other_counted() {
        let table = Table::new(vec![
            route("hot", &["broker/t"], &["broker/alarm"], Some("hot")),
            route("pressure", &["broker/t"], &["broker/alarm"], Some("pressure")),
            Route {
                gate: Some(Gate::Sample(Duration::from_secs(1))),
                ..route("out", &["broker/alarm"], &["hq/alarm"], None)
            },
        ]);
        let plan = planned(&table, "t", b"1");
        let held: Vec<_> = plan.sampled.iter().map(|one| one.message.as_ref().unwrap().payload.to_vec()).collect();
        assert_eq!((held, plan.held.to_vec()), (vec![b"pressure".to_vec()], vec![(2, Held::Suppressed)]));
    }

    #[test]
    fn r28_a_chain_that_is_too_long_is_told_of_the_route_that_is_not_followed() {
        let whole = planned(&chain(CHAIN_MAX + 1), "c1", b"");
        assert_eq!((whole.links.len(), whole.held.len()), (1, 0));
        let table = chain(CHAIN_MAX + 2);
        let cut = planned(&table, "c1", b"");
        assert_eq!((cut.links.len(), cut.held.to_vec()), (0, vec![(CHAIN_MAX + 1, Held::TooFar)]));
        assert!(cut.locals.iter().any(|local| local.topic.as_str() == "c10"));
        let told = explain(&"test".into(), &table, &from_broker(), &message("c1", b""), &anywhere);
        let verdicts: Vec<_> = told.arrivals.iter().flat_map(|at| &at.routes).map(|said| said.verdict).collect();
        let count = |word| verdicts.iter().filter(|verdict| **verdict == word).count();
        assert_eq!((count("taken"), count("too_far")), (CHAIN_MAX + 1, 1));
        let last = told.arrivals.last().unwrap().routes.iter().find(|said| said.verdict == "too_far").unwrap();
        assert_eq!(last.route, "r10");
        assert!(last.because.contains("at most 8 routes"), "{}", last.because);
    }

    #[test]
    fn what_would_only_lead_back_to_its_link_behind_the_last_route_is_not_lacking() {
        let mut routes = chain(CHAIN_MAX + 2).routes().to_vec();
        routes.insert(0, route("in", &["hq/c"], &["broker/c2"], None));
        let table = Table::new(routes);
        let source = Source { from: Endpoint::of_address("hq/x").unwrap(), ..from_broker() };
        let plan = plan(&table, &source, &message("c", b""), Gates::OPEN);
        assert_eq!((plan.locals.len(), plan.links.len(), plan.held.len()), (CHAIN_MAX + 1, 0, 0));
    }

    #[test]
    fn routes_that_branch_in_circles_make_so_many_messages_and_no_more_and_the_others_are_counted() {
        let names: Vec<String> = (0..9).map(|at| at.to_string()).collect();
        let routes =
            names.iter().map(|name| route(name, &["broker/t"], &["broker/t"], Some(&format!("{{payload}}{name}"))));
        let table = Table::new(routes.collect());
        let plan = planned(&table, "t", b"");
        assert_eq!(plan.locals.len(), LOCALS_MAX);
        assert!(plan.held.iter().any(|(_, held)| *held == Held::TooMany));
        let told = explain(&"test".into(), &table, &from_broker(), &message("t", b""), &anywhere);
        assert!(told.arrivals.iter().flat_map(|at| &at.routes).any(|said| said.verdict == "too_many"));
    }

    proptest! {
        #[test]
        fn whatever_routes_lead_where_it_ends_and_nothing_comes_twice(
            routes in prop::collection::vec((0..4_u8, 0..4_u8, prop::option::of(0..3_u8), any::<bool>()), 1..5),
        ) {
            let routes = routes.iter().enumerate().map(|(at, (from, to, payload, grows))| {
                let payload = payload.map(|payload| format!("{}{payload}", if *grows { "{payload}" } else { "" }));
                route(&format!("r{at}"), &[&format!("broker/{from}")], &[&format!("broker/{to}")], payload.as_deref())
            });
            let table = Table::new(routes.collect());
            let came = message("0", b"");
            let plan = plan(&table, &from_broker(), &came, Gates::OPEN);
            prop_assert!(plan.locals.len() <= LOCALS_MAX);
            for (at, local) in plan.locals.iter().enumerate() {
                prop_assert!(depth(&plan.locals, at) <= CHAIN_MAX);
                prop_assert!(!plan.locals.iter().skip(at + 1).any(|other| is_same(local, other, &came)));
                // What a route makes of what is there, is there: nothing that is new was left out.
                let goes_on = local.by.is_none() || depth(&plan.locals, at) < CHAIN_MAX;
                let takes = |one: &Route| one.from[0].pattern.as_ref().unwrap().as_str() == local.topic.as_str();
                for (by, one) in table.routes().iter().enumerate().filter(|(_, one)| goes_on && takes(one)) {
                    let payload = local.message.as_deref().map_or(&came.payload, |made| &made.payload);
                    let text = String::from_utf8(payload.to_vec()).unwrap();
                    let made = one.change.payload.as_ref().map_or_else(|| text.clone(), |made| made.as_str().replace("{payload}", &text));
                    let topic = one.to[0].template.as_str();
                    let way = std::iter::successors(Some(local), |one| plan.locals.get(one.behind?));
                    let came_round = way.into_iter().any(|one| one.by == Some(by) && one.topic.as_str() == topic);
                    let is_there = plan.locals.iter().any(|other| {
                        let payload = other.message.as_deref().map_or(&came.payload, |made| &made.payload);
                        other.topic.as_str() == topic && **payload == *made.as_bytes()
                    });
                    prop_assert!(came_round || is_there || plan.held.iter().any(|(_, held)| *held == Held::TooMany));
                }
            }
        }
    }
}
