//! Routes that lead back to where they begin, which nobody means. Those that do so by way of others are found by
//! [`sites`](crate::config::sites).

use super::Resolver;
use super::route::Draught;
use crate::router::{Endpoint, From, To};

impl Resolver<'_> {
    pub(super) fn check_loops(&mut self, routes: &[Draught]) {
        for route in routes {
            for (to, place) in route.route.to.iter().zip(&route.to) {
                if route.route.from.iter().any(|from| echoes_locally(from, to)) {
                    let wrong = "the broker gives what this writes to the same route again";
                    self.mistakes.warning(place, wrong, "give what is written another first level".to_owned());
                } else if route.route.from.iter().any(|from| feeds_itself(from, to)) {
                    let wrong = format!("this leads from `{0}` back to the same topics of `{0}`", to.endpoint);
                    self.mistakes.error(place, wrong, "give what is written another first level".to_owned());
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
