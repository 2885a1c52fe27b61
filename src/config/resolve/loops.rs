//! Routes whose messages would come back to where they began.
//!
//! Longer rings are stopped at run time by `tg-path` (R12); what is found here are the rings of one link, which
//! nobody means, and those over MQTT 3.1.1, which carries no `tg-path`.

use super::Resolver;
use super::link::Draft;
use super::route::Draught;
use crate::links::Kind;
use crate::links::mqtt::Version;
use crate::router::{Endpoint, From, To};

impl Resolver<'_> {
    pub(super) fn check_loops(&mut self, routes: &[Draught], links: &[Draft<'_>]) {
        for route in routes {
            for (to, place) in route.route.to.iter().zip(&route.to) {
                if route.route.from.iter().any(|from| feeds_itself(from, to)) {
                    let wrong = format!("this leads from `{0}` back to the same topics of `{0}`", to.endpoint);
                    self.mistakes.error(place, wrong, "give what is written another first level".to_owned());
                } else if let Some(reader) = reader_without_properties(to, routes, links) {
                    let wrong =
                        format!("route `{}` reads back what this writes to `{}`", reader.route.name, to.endpoint);
                    let hint = "MQTT 3.1.1 carries no properties that would stop it: use disjoint first levels, or `version: 5`";
                    self.mistakes.warning(place, wrong, hint.to_owned());
                }
            }
        }
    }
}

/// Within the broker a message is routed once, by where it arrived, so only its very own topic is a mistake there.
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

fn reader_without_properties<'r>(to: &To, routes: &'r [Draught], links: &[Draft<'_>]) -> Option<&'r Draught> {
    let Endpoint::Link(link) = &to.endpoint else { return None };
    let draft = links.iter().find(|draft| draft.name == link.as_str())?;
    let Kind::Mqtt(config) = &draft.config.as_ref()?.kind else { return None };
    let reads = |from: &From| {
        from.endpoint == to.endpoint && from.pattern.as_ref().is_some_and(|pattern| to.template.can_reach(pattern))
    };
    let mut readers = routes.iter().filter(|route| route.route.from.iter().any(reads));
    readers.next().filter(|_| config.version == Version::V4)
}
