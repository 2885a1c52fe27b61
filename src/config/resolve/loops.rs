//! Routes that lead back to where they begin, which nobody means. Those that do so by way of others are found by
//! [`sites`](crate::config::sites).

use super::Resolver;
use super::route::Draught;
use crate::router::{Endpoint, From, Reach, Route, To};

impl Resolver<'_> {
    pub(super) fn check_loops(&mut self, routes: &[Draught]) {
        for Draught { route, to: places, .. } in routes {
            for (to, place) in route.to.iter().zip(places) {
                let mut begins = route.from.iter().filter(|from| from.endpoint == to.endpoint);
                if begins.clone().any(|from| feeds_itself(route, from, to)) {
                    let wrong = format!("this leads from `{0}` back to the same topics of `{0}`", to.endpoint);
                    self.mistakes.error(place, wrong, "give what is written another first level".to_owned());
                } else if to.endpoint == Endpoint::Broker && begins.any(|from| comes_back(route, from, to)) {
                    let wrong = "the broker gives what this writes to the same route again";
                    let hint = "give what is written another first level, or name it in `except`";
                    self.mistakes.warning(place, wrong, hint.to_owned());
                }
            }
        }
    }
}

/// Whether the route takes what it makes of what it takes by `from`, but for what is the very same. The hub ends such a ring of the broker: what a route
/// made does not pass it to the same topic again, and templates that grow are followed some times only. So it can be used, and is seldom meant.
fn comes_back(route: &Route, from: &From, to: &To) -> bool {
    let Some(pattern) = &from.pattern else { return false };
    let made = Reach::of(pattern).through(Some(pattern), &to.template);
    let begins = route.from.iter().filter(|begin| begin.endpoint == to.endpoint && begin.channel.is_none());
    let mut taken = begins.filter_map(|begin| made.within(begin.pattern.as_ref()?));
    taken.any(|taken| !route.except.iter().any(|except| taken.is_covered_by(except)))
}

/// From the broker to the broker's very same topics, or from a link to topics that it is read from.
fn feeds_itself(route: &Route, from: &From, to: &To) -> bool {
    match (&from.endpoint, &from.channel, &from.pattern) {
        (Endpoint::Broker, _, Some(pattern)) => to.template.is_identity_of(pattern),
        (_, Some(channel), _) => to.template.as_str() == channel,
        (_, None, Some(_)) => comes_back(route, from, to),
        (_, None, None) => false,
    }
}
