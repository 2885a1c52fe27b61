//! Routes whose messages would come back to where they began.
//!
//! Longer rings are stopped at run time, by `tg-path` (R12) between gateways and by the hub within this one; what is found
//! here are routes that lead back to where they begin, which nobody means, and readers over MQTT 3.1.1, which carries no
//! `tg-path`.

use super::Resolver;
use super::link::Draft;
use super::route::Draught;
use crate::links::Kind;
use crate::links::mqtt::Version;
use crate::router::{Endpoint, From, To};

impl Resolver<'_> {
    pub(super) fn check_loops(&mut self, routes: &[Draught], links: &[Draft<'_>]) {
        let readers = readers_without_properties(routes, links);
        for route in routes {
            for (to, place) in route.route.to.iter().zip(&route.to) {
                if route.route.from.iter().any(|from| echoes_locally(from, to)) {
                    let wrong = "the broker gives what this writes to the same route again";
                    self.mistakes.warning(place, wrong, "give what is written another first level".to_owned());
                } else if route.route.from.iter().any(|from| feeds_itself(from, to)) {
                    let wrong = format!("this leads from `{0}` back to the same topics of `{0}`", to.endpoint);
                    self.mistakes.error(place, wrong, "give what is written another first level".to_owned());
                } else if let Some(reader) = reader_of(to, &readers) {
                    let wrong =
                        format!("route `{}` reads back what this writes to `{}`", reader.route.name, to.endpoint);
                    let hint = "MQTT 3.1.1 carries no properties that would stop it: use disjoint first levels, or `version: 5`";
                    self.mistakes.warning(place, wrong, hint.to_owned());
                }
            }
        }
    }
}

/// The hub ends such a ring: each topic is delivered once, and templates that grow are followed some times only. So it
/// can be used, and is seldom meant.
fn echoes_locally(from: &From, to: &To) -> bool {
    let reached = from.pattern.as_ref().filter(|pattern| to.template.can_reach(pattern));
    from.endpoint == Endpoint::Broker
        && to.endpoint == Endpoint::Broker
        && reached.is_some_and(|pattern| !to.template.is_identity_of(pattern))
}

/// From the broker to the broker's very same topics, or from a link to topics that it is read from.
fn feeds_itself(from: &From, to: &To) -> bool {
    if from.endpoint != to.endpoint {
        return false;
    }
    match (&from.endpoint, &from.channel, &from.pattern) {
        (Endpoint::Broker, _, Some(pattern)) => to.template.is_identity_of(pattern),
        (_, Some(channel), _) => to.template.as_str() == channel,
        (_, None, Some(pattern)) => to.template.can_reach(pattern),
        (_, None, None) => false,
    }
}

/// The routes that begin at an MQTT 3.1.1 link.
fn readers_without_properties<'r>(routes: &'r [Draught], links: &[Draft<'_>]) -> Vec<&'r Draught> {
    let is_old = |draft: &Draft<'_>| {
        let kind = draft.config.as_ref().map(|config| &config.kind);
        matches!(kind, Some(Kind::Mqtt(config)) if config.version == Version::V4)
    };
    let old: Vec<&str> = links.iter().filter(|draft| is_old(draft)).map(|draft| draft.name).collect();
    let begins = |from: &From| matches!(&from.endpoint, Endpoint::Link(link) if old.contains(&link.as_str()));
    routes.iter().filter(|route| route.route.from.iter().any(begins)).collect()
}

/// The one that reads what is written `to` its link.
fn reader_of<'r>(to: &To, readers: &[&'r Draught]) -> Option<&'r Draught> {
    let reads = |from: &From| {
        from.endpoint == to.endpoint && from.pattern.as_ref().is_some_and(|pattern| to.template.can_reach(pattern))
    };
    readers.iter().find(|route| route.route.from.iter().any(reads)).copied()
}
