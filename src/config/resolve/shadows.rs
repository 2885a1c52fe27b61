//! What a route is told to do and never will, or what is done already: a `from` that its own `except` or an earlier `from`
//! takes all of, and a destination that another route sends the very same to.
//!
//! Only what is sure is said. Several patterns that together cover another one are not looked for.

use std::collections::HashMap;

use super::Resolver;
use super::route::Draught;
use crate::router::{Change, Endpoint, From, Pattern, Route, Template, To};

/// A `from` of a route, by their numbers.
type Begin = (usize, usize);

/// Where a `from` begins, and the levels that it spells out before its first wildcard.
type Stem<'r> = (&'r Endpoint, Option<&'r str>, Vec<&'r str>);

impl Resolver<'_> {
    /// Not said of routes in which something is wrong or not read: a `where` that cannot be read would look like none.
    pub(super) fn check_shadows(&mut self, routes: &[Draught]) {
        let routes: Vec<&Draught> = routes.iter().filter(|route| route.is_right && route.is_read).collect();
        for route in &routes {
            self.check_unreached(route);
        }
        let begins = by_stem(&routes);
        for (at, route) in routes.iter().enumerate() {
            for (to, place) in route.route.to.iter().zip(&route.to) {
                // The broker takes the very same on a topic once, whatever leads there.
                if to.endpoint == Endpoint::Broker {
                    continue;
                }
                let Some(other) = sent_already(&routes, &begins, at, to) else { continue };
                let wrong = format!("route `{}` sends the same there: what comes here arrives twice", other.name);
                let hint = "take one of them out, or tell them apart by `from`, `except` or `where`";
                self.mistakes.warning(place, wrong, hint.to_owned());
            }
        }
    }

    fn check_unreached(&mut self, route: &Draught) {
        let Draught { route, from: places, to: to_places, .. } = route;
        for (at, (from, place)) in route.from.iter().zip(places).enumerate() {
            let of_except = |except: &&Pattern| from.pattern.as_ref().is_some_and(|pattern| except.covers(pattern));
            if let Some(except) = route.except.iter().find(of_except) {
                let wrong = format!("nothing comes from here: `except: {except}` takes all of it away");
                self.mistakes.warning(place, wrong, "leave out the one or the other".to_owned());
            } else if let Some(earlier) = route.from.iter().take(at).find(|earlier| covers(earlier, from)) {
                let all = earlier.pattern.as_ref().map_or_else(|| "#".to_owned(), ToString::to_string);
                let wrong = format!("this is never reached: the `from` with `{all}` before it takes all of it");
                self.mistakes.warning(place, wrong, "leave it out, or name it first".to_owned());
            }
        }
        for (at, (to, place)) in route.to.iter().zip(to_places).enumerate() {
            if to.endpoint != Endpoint::Broker && route.to.iter().take(at).any(|earlier| earlier == to) {
                let wrong = "this route leads there already: each message arrives twice";
                self.mistakes.warning(place, wrong, "leave one of them out".to_owned());
            }
        }
    }
}

/// All that routes begin with, so that a `from` is compared with those alone that can cover it.
fn by_stem<'r>(routes: &[&'r Draught]) -> HashMap<Stem<'r>, Vec<Begin>> {
    let mut begins: HashMap<Stem<'r>, Vec<Begin>> = HashMap::new();
    for (route, draught) in routes.iter().enumerate() {
        for (at, from) in draught.route.from.iter().enumerate() {
            let stem = from.pattern.as_ref().map(Pattern::stem).unwrap_or_default();
            begins.entry((&from.endpoint, from.channel.as_deref(), stem)).or_default().push((route, at));
        }
    }
    begins
}

/// The other route that brings `to` everything that the route at this place brings there by one of its `from`s. Of two that
/// do the same, the later one has it from the earlier.
fn sent_already<'r>(
    routes: &[&'r Draught],
    begins: &HashMap<Stem<'r>, Vec<Begin>>,
    at: usize,
    to: &To,
) -> Option<&'r Route> {
    let route = &routes.get(at)?.route;
    for from in &route.from {
        let stem = from.pattern.as_ref().map(Pattern::stem).unwrap_or_default();
        for length in 0..=stem.len() {
            let shorter: Vec<&str> = stem.iter().take(length).copied().collect();
            let found = begins.get(&(&from.endpoint, from.channel.as_deref(), shorter)).into_iter().flatten();
            for &(other_at, begin) in found.filter(|(other, _)| *other != at) {
                let Some(other) = routes.get(other_at).map(|other| &other.route) else { continue };
                let Some(wide) = other.from.get(begin) else { continue };
                let sends = |target: &&To| repeats(other, wide, target, route, from, to);
                let Some(target) = other.to.iter().find(sends) else { continue };
                if other_at < at || !repeats(route, from, to, other, wide, target) {
                    return Some(other);
                }
            }
        }
    }
    None
}

/// Whether `wide` of `other` brings `target` all that `narrow` of `route` brings `to`, and in the same form.
fn repeats(other: &Route, wide: &From, target: &To, route: &Route, narrow: &From, to: &To) -> bool {
    if target.endpoint != to.endpoint || !covers(wide, narrow) {
        return false;
    }
    let (wide, narrow) = (wide.pattern.as_ref(), narrow.pattern.as_ref());
    let same = |theirs: &Template, ours: &Template| theirs.placed(wide, narrow) == ours.placed(narrow, narrow);
    let same_key = match (&other.key, &route.key) {
        (Some(theirs), Some(ours)) => same(theirs, ours),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    // Names of captures mean the same only in the same pattern.
    let same_names = wide == narrow;
    let is_filtered = other.filter.is_some() && !(same_names && other.filter == route.filter);
    let is_changed = other.change != route.change || !(same_names || other.change == Change::default());
    let is_gated = other.gate.is_some() && other.gate != route.gate;
    let leaves_out = |except: &Pattern| {
        narrow.is_none_or(|narrow| narrow.meets(except)) && !route.except.iter().any(|ours| ours.covers(except))
    };
    same_key
        && !is_filtered
        && !is_changed
        && !is_gated
        && !other.except.iter().any(leaves_out)
        && same(&target.template, &to.template)
}

/// Whether `wide` takes all that `narrow` takes.
fn covers(wide: &From, narrow: &From) -> bool {
    let same_source = wide.endpoint == narrow.endpoint && wide.channel == narrow.channel && wide.share == narrow.share;
    same_source
        && match (&wide.pattern, &narrow.pattern) {
            (None, _) => true,
            (Some(wide), Some(narrow)) => wide.covers(narrow),
            (Some(_), None) => false,
        }
}
