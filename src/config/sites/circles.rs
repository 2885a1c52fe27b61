//! Messages that come back: to the gateway that sent them, and to routes that they have taken before.
//!
//! While the gateways run such messages die out: the hub ends what comes round to a route that made it, and `tg-path` (R12) stops what comes
//! to a site again, but only where properties are carried. What is found here is therefore a warning, and told as far as files
//! can tell: captures may be anything, and conditions are not looked into, but for those that are true of nothing.

use std::collections::HashSet;

use super::ways::{Inflow, Step, Ways};
use super::{Meet, Sketch};
use crate::config::diagnostic::Mistakes;
use crate::config::source::Place;
use crate::router::Endpoint;

/// Ways that are followed from one route.
const WAYS_MAX: usize = 4_096;
/// Steps that are looked at in all, some seconds' worth.
const STEPS_MAX: usize = 1 << 20;
/// More are seldom causes of their own.
const CIRCLES_MAX: usize = 10;

/// What a route writes to a remote and another one of the same gateway reads there.
pub(super) fn check_echoes(site: &Sketch, meet: &mut Meet, mistakes: &mut Mistakes) {
    let sites = [site];
    let ways = Ways::of(&sites, meet);
    for (at, draught) in site.routes.iter().enumerate() {
        let mut told = HashSet::new();
        for step in ways.inflows(0, at).iter().flat_map(|inflow| ways.steps(inflow)) {
            let Some((to, place)) = draught.route.to.get(step.to).zip(draught.to.get(step.to)) else { continue };
            let is_own = step.inflow.begin.route == at && to.endpoint == step.inflow.entry;
            if to.endpoint == Endpoint::Broker || step.is_perhaps || is_own || !told.insert(step.to) {
                continue;
            }
            let Some(reader) = ways.draught(step.inflow.begin) else { continue };
            let wrong = format!("route `{}` reads back what this writes to `{}`", reader.route.name, to.endpoint);
            let is_blind = [&to.endpoint, &step.inflow.entry].iter().any(|end| site.is_without_properties(end));
            let hint = if is_blind {
                "MQTT 3.1.1 carries no properties that would stop it: use disjoint first levels, or `version: 5`"
            } else {
                "`tg-path` stops it here, when it has taken the line twice: use disjoint first levels, or `except`"
            };
            mistakes.warning(place, wrong, hint.to_owned());
        }
    }
}

/// Routes that lead back to where they begin: of one site, by its own broker alone, or of several.
pub(super) fn check(sites: &[&Sketch], meet: &mut Meet, mistakes: &mut Mistakes) {
    let ways = Ways::of(sites, meet);
    let mut search = Search { ways, is_between: sites.len() > 1, left: STEPS_MAX, is_cut: false };
    let mut found: HashSet<(usize, usize)> = HashSet::new();
    let mut circles = 0;
    for (at, site) in sites.iter().enumerate() {
        for route in 0..site.routes.len() {
            if found.contains(&(at, route)) {
                continue;
            }
            let Some(circle) = search.circle(at, route) else { continue };
            found.extend(circle.iter().map(|hop| (hop.from.begin.site, hop.from.begin.route)));
            circles += 1;
            if circles > CIRCLES_MAX {
                let wrong = format!("there are more than {CIRCLES_MAX} such circles: the others are not shown");
                return mistakes.warning(&site.place, wrong, None);
            }
            tell(&circle, sites, &search.ways, meet, mistakes);
        }
    }
    if let Some(site) = sites.first().filter(|_| search.is_cut) {
        let wrong = "routes lead to routes in more ways than were followed: some may lead back and are not shown";
        mistakes.warning(&site.place, wrong, None);
    }
}

/// One hop of a circle: what comes into a route, and how it goes on.
#[derive(Clone, Debug)]
struct Hop {
    from: Inflow,
    step: Step,
}

struct Search<'s> {
    ways: Ways<'s>,
    /// Only what passes several sites counts: the rest is told of each file alone.
    is_between: bool,
    /// Of [`STEPS_MAX`].
    left: usize,
    /// Not all was looked at.
    is_cut: bool,
}

/// A place in the search, with the one that it was reached from.
struct Visit {
    inflow: Inflow,
    came: Option<(usize, Step)>,
    hops: usize,
    has_crossed: bool,
}

impl Search<'_> {
    /// The shortest way from a route back to it that could be gone again.
    fn circle(&mut self, site: usize, route: usize) -> Option<Vec<Hop>> {
        let starts = self.ways.inflows(site, route).into_iter();
        let mut visits: Vec<Visit> =
            starts.map(|inflow| Visit { inflow, came: None, hops: 0, has_crossed: false }).collect();
        let mut known: HashSet<(Inflow, bool)> = HashSet::new();
        let mut at = 0;
        while let Some(visit) = visits.get(at) {
            if visits.len() > WAYS_MAX || self.left == 0 {
                self.is_cut = true;
                break;
            }
            let (hops, has_crossed) = (visit.hops + 1, visit.has_crossed);
            for step in self.ways.steps(&visit.inflow) {
                self.left = self.left.saturating_sub(1);
                let begin = step.inflow.begin;
                let has_crossed = has_crossed || begin.site != site;
                if !self.is_between && !self.is_local(at, &visits, &step) {
                    continue;
                }
                if (begin.site, begin.route) == (site, route) {
                    // A route that leads to itself is told of with that route.
                    if (hops > 1 || self.is_between)
                        && has_crossed == self.is_between
                        && let Some(circle) = self.closed(at, &visits, &step)
                    {
                        return Some(circle);
                    }
                } else if known.insert((step.inflow.clone(), has_crossed)) {
                    let inflow = step.inflow.clone();
                    visits.push(Visit { inflow, came: Some((at, step)), hops, has_crossed });
                }
            }
            at += 1;
        }
        None
    }

    fn is_local(&self, at: usize, visits: &[Visit], step: &Step) -> bool {
        let draught = visits.get(at).and_then(|visit| self.ways.draught(visit.inflow.begin));
        let to = draught.and_then(|draught| draught.route.to.get(step.to));
        to.is_some_and(|to| to.endpoint == Endpoint::Broker)
    }

    /// The hops from a start to the last step, if a message that has gone them goes them again.
    fn closed(&self, at: usize, visits: &[Visit], last: &Step) -> Option<Vec<Hop>> {
        let mut hops = vec![Hop { from: visits.get(at)?.inflow.clone(), step: last.clone() }];
        let mut visit = visits.get(at)?;
        while let Some((before, step)) = &visit.came {
            visit = visits.get(*before)?;
            hops.push(Hop { from: visit.inflow.clone(), step: step.clone() });
        }
        hops.reverse();
        let mut inflow = last.inflow.clone();
        for hop in &hops {
            let same = |step: &Step| {
                let (begin, known) = (step.inflow.begin, hop.step.inflow.begin);
                step.to == hop.step.to && (begin.site, begin.route) == (known.site, known.route)
            };
            inflow = self.ways.steps(&inflow).into_iter().find(same)?.inflow;
        }
        Some(hops)
    }
}

fn tell(circle: &[Hop], sites: &[&Sketch], ways: &Ways<'_>, meet: &Meet, mistakes: &mut Mistakes) {
    let is_between = sites.len() > 1;
    let mut blind = None;
    let mut lines: Vec<(Place, String)> = Vec::new();
    for Hop { from, step } in circle {
        let (Some(site), Some(draught)) = (sites.get(from.begin.site), ways.draught(from.begin)) else { return };
        let Some((to, place)) = draught.route.to.get(step.to).zip(draught.to.get(step.to)) else { return };
        let there = match (&to.endpoint, ways.place(from.begin.site, &to.endpoint)) {
            (Endpoint::Link(link), Some(place)) => format!("`{link}`, {}", meet.name(place)),
            (Endpoint::Link(link), None) => format!("`{link}`"),
            (Endpoint::Broker, _) if is_between => "its broker".to_owned(),
            (Endpoint::Broker, _) => "the broker".to_owned(),
        };
        let of = if is_between { format!("{}: ", site.shown()) } else { String::new() };
        let perhaps = if step.is_perhaps { ", and a queue that is bound there has it" } else { "" };
        let line = format!("{of}route `{}` sends `{}` to {there}{perhaps}", draught.route.name, step.topics);
        lines.push((place.clone(), line));
        let reader = sites.get(step.inflow.begin.site).map(|site| (site, &step.inflow.entry));
        let ends =
            [Some((site, &to.endpoint)), reader.filter(|_| to.endpoint != Endpoint::Broker || !step.inflow.is_chained)];
        let mut old = ends.into_iter().flatten().filter(|(site, end)| site.is_without_properties(end));
        blind = blind.or_else(|| old.next().map(|(site, end)| format!("`{end}` of {}", site.shown())));
    }
    let Some(((place, _), first)) = lines.first().zip(circle.first()) else { return };
    let Some(draught) = ways.draught(first.from.begin) else { return };
    let name = &draught.route.name;
    let (wrong, hint) = match (is_between, blind) {
        (false, _) => (
            format!("what route `{name}` writes to the broker comes back to it"),
            "the gateway ends it after a round: give what is written another first level, or use `except`".to_owned(),
        ),
        (true, None) => (
            format!("what route `{name}` sends comes back to it"),
            "`tg-path` stops a message that comes to a site again, when it has gone all the way: give what each site sends a first level of its own, or use `except`".to_owned(),
        ),
        (true, Some(link)) => (
            format!("what route `{name}` sends comes back to it, and nothing ends it"),
            format!("MQTT 3.1.1 ({link}) carries no `tg-path`: use `version: 5`, give what each site sends a first level of its own, or use `except`"),
        ),
    };
    let place = place.clone();
    mistakes.warning_along(&place, wrong, hint, lines);
}
