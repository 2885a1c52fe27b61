//! From route to route: where what a route sends is taken by another one, in the same gateway or behind a remote.

use std::collections::BTreeMap;

use super::{Meet, Sketch};
use crate::config::resolve::Draught;
use crate::links::{Kind, rabbitmq};
use crate::router::{Endpoint, From, Pattern, Reach, To};

/// Levels behind those that any pattern looks at: topics that templates make longer and longer are the same from there on.
const GROWTH_MAX: usize = 40;

/// A `from` of a route of a site, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Begin {
    pub(super) site: usize,
    pub(super) route: usize,
    from: usize,
}

/// Messages on their way into a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inflow {
    pub(super) begin: Begin,
    /// Where they came into the gateway.
    pub(super) entry: Endpoint,
    /// A route of the same gateway wrote them to its broker.
    pub(super) is_chained: bool,
    pub(super) topics: Reach,
}

/// One step: what a route sends by one of its `to`s, and who takes it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) to: usize,
    /// As it goes out.
    pub(super) topics: Reach,
    /// What takes it, and what of it.
    pub(super) inflow: Inflow,
    /// Whether it gets there is up to how the remote is set up: which queues are bound to an exchange.
    pub(super) is_perhaps: bool,
}

/// All routes by where they begin.
#[derive(Debug)]
pub(super) struct Ways<'s> {
    sites: &'s [&'s Sketch],
    /// The place of each site's endpoints; see [`Meet::place_of`].
    places: BTreeMap<(usize, String), usize>,
    /// So many levels of topics are followed.
    depth: usize,
    /// By place and the levels that the pattern spells out first.
    begins: BTreeMap<(usize, Vec<&'s str>), Vec<Begin>>,
}

impl<'s> Ways<'s> {
    pub(super) fn of(sites: &'s [&'s Sketch], meet: &mut Meet) -> Self {
        let routes = sites.iter().flat_map(|site| &site.routes).map(|draught| &draught.route);
        let patterns =
            routes.flat_map(|route| route.from.iter().filter_map(|from| from.pattern.as_ref()).chain(&route.except));
        let depth = patterns.map(Pattern::depth).max().unwrap_or_default() + GROWTH_MAX;
        let mut ways = Self { sites, places: BTreeMap::new(), depth, begins: BTreeMap::new() };
        for (site, sketch) in sites.iter().enumerate() {
            let links = sketch.links.iter().map(|link| Endpoint::Link(link.config.id.clone()));
            for endpoint in links.chain([Endpoint::Broker]) {
                let place = meet.place_of(site, &endpoint);
                ways.places.extend(place.map(|place| ((site, endpoint.to_string()), place)));
            }
            for (route, draught) in sketch.routes.iter().enumerate() {
                for (from, begins) in draught.route.from.iter().enumerate() {
                    let Some(place) = ways.place(site, &begins.endpoint) else { continue };
                    // Of a queue or a Kafka topic any message may have any topic.
                    let stem = begins.pattern.as_ref().filter(|_| begins.channel.is_none());
                    let stem = stem.map(Pattern::stem).unwrap_or_default();
                    ways.begins.entry((place, stem)).or_default().push(Begin { site, route, from });
                }
            }
        }
        ways
    }

    pub(super) fn draught(&self, begin: Begin) -> Option<&'s Draught> {
        self.sites.get(begin.site)?.routes.get(begin.route)
    }

    pub(super) fn place(&self, site: usize, endpoint: &Endpoint) -> Option<usize> {
        self.places.get(&(site, endpoint.to_string())).copied()
    }

    /// All that a route can take, by each of its `from`s.
    pub(super) fn inflows(&self, site: usize, route: usize) -> Vec<Inflow> {
        let all = |from| Begin { site, route, from };
        let count = self.draught(all(0)).map_or(0, |draught| draught.route.from.len());
        let begins = (0..count).filter_map(|from| {
            let entry = self.from(all(from))?.endpoint.clone();
            self.inflow(all(from), entry, false, &Reach::any())
        });
        begins.collect()
    }

    /// Where what comes into a route goes next.
    pub(super) fn steps(&self, inflow: &Inflow) -> Vec<Step> {
        let Some((draught, from)) = self.draught(inflow.begin).zip(self.from(inflow.begin)) else { return Vec::new() };
        let mut steps = Vec::new();
        for (at, to) in draught.route.to.iter().enumerate() {
            // As the hub has it: what a remote sent us is not echoed to it.
            if inflow.is_chained && to.endpoint != Endpoint::Broker && to.endpoint == inflow.entry {
                continue;
            }
            let topics = inflow.topics.through(from.pattern.as_ref(), &to.template);
            let Some(place) = self.place(inflow.begin.site, &to.endpoint) else { continue };
            for begin in self.candidates(place, &topics) {
                steps.extend(self.step(inflow, at, to, &topics, begin));
            }
        }
        steps
    }

    fn step(&self, inflow: &Inflow, at: usize, to: &To, topics: &Reach, begin: Begin) -> Option<Step> {
        let from = self.from(begin)?;
        let is_same_site = begin.site == inflow.begin.site;
        let is_chained = is_same_site && to.endpoint == Endpoint::Broker && from.endpoint == Endpoint::Broker;
        let entry = if is_chained { inflow.entry.clone() } else { from.endpoint.clone() };
        let (taken, is_perhaps) = self.carried(inflow.begin.site, to, topics, begin.site, from)?;
        let next = self.inflow(begin, entry, is_chained, &taken)?;
        Some(Step { to: at, topics: topics.clone(), inflow: next, is_perhaps })
    }

    /// With which topics a reader gets what is written to the same place, if it does; and whether that is sure.
    fn carried(&self, writer: usize, to: &To, topics: &Reach, reader: usize, from: &From) -> Option<(Reach, bool)> {
        let Some(channel) = &from.channel else {
            // From a broker of MQTT, or RabbitMQ as one.
            return (!self.is_kafka(writer, &to.endpoint)).then(|| (topics.clone(), false));
        };
        if self.is_kafka(reader, &from.endpoint) {
            let fits = self.is_kafka(writer, &to.endpoint) && topics.may_be(channel);
            return fits.then(|| (Reach::any(), false));
        }
        match self.rabbitmq(writer, &to.endpoint) {
            Some(there) if !self.rabbitmq(reader, &from.endpoint).is_some_and(|here| same_vhost(there, here)) => None,
            Some(there) if there.exchange.is_empty() => topics.may_be(channel).then(|| (Reach::any(), false)),
            Some(_) => Some((topics.clone(), true)),
            None if self.is_kafka(writer, &to.endpoint) => None,
            None => Some((topics.clone(), true)),
        }
    }

    fn inflow(&self, begin: Begin, entry: Endpoint, is_chained: bool, topics: &Reach) -> Option<Inflow> {
        let (draught, from) = (self.draught(begin)?, self.from(begin)?);
        let topics = match &from.pattern {
            Some(pattern) => topics.within(pattern)?,
            None => topics.clone(),
        };
        let topics = topics.widened(self.depth);
        let is_excepted = draught.route.except.iter().any(|except| topics.is_covered_by(except));
        (!is_excepted && !draught.takes_nothing).then_some(Inflow { begin, entry, is_chained, topics })
    }

    /// Those that begin at a place and may take some of these topics: what they spell out begins what the topics have in
    /// common, or goes on from there.
    fn candidates(&self, place: usize, topics: &Reach) -> Vec<Begin> {
        let stem: Vec<&str> = topics.stem().collect();
        let mut found = Vec::new();
        for length in 0..stem.len() {
            let shorter = stem.get(..length).unwrap_or_default().to_vec();
            found.extend(self.begins.get(&(place, shorter)).into_iter().flatten());
        }
        let longer = self.begins.range((place, stem.clone())..);
        let longer = longer.take_while(|((other, spelled), _)| *other == place && spelled.starts_with(&stem));
        found.extend(longer.flat_map(|(_, begins)| begins));
        found.sort_unstable();
        found
    }

    fn from(&self, begin: Begin) -> Option<&'s From> {
        self.draught(begin)?.route.from.get(begin.from)
    }

    fn kind(&self, site: usize, endpoint: &Endpoint) -> Option<&'s Kind> {
        let Endpoint::Link(id) = endpoint else { return None };
        Some(&self.sites.get(site)?.link(id)?.config.kind)
    }

    fn is_kafka(&self, site: usize, endpoint: &Endpoint) -> bool {
        matches!(self.kind(site, endpoint), Some(Kind::Kafka(_)))
    }

    fn rabbitmq(&self, site: usize, endpoint: &Endpoint) -> Option<&'s rabbitmq::Config> {
        match self.kind(site, endpoint)? {
            Kind::Rabbitmq(config) => Some(config),
            Kind::Mqtt(_) | Kind::Kafka(_) => None,
        }
    }
}

fn same_vhost(one: &rabbitmq::Config, other: &rabbitmq::Config) -> bool {
    vhost(&one.url).is_some_and(|vhost| Some(vhost) == self::vhost(&other.url))
}

/// As the remote is asked for it: `%2f` and `%2F` are the same, capitals and small letters of a name are not.
fn vhost(url: &str) -> Option<Vec<u8>> {
    let url = url::Url::parse(url).ok()?;
    // Without a path RabbitMQ takes the default vhost.
    let name = url.path().strip_prefix('/').unwrap_or("%2f");
    Some(percent_encoding::percent_decode_str(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_vhost_counts_and_not_how_a_url_spells_it() {
        for (one, other, same) in [
            ("amqp://h", "amqp://h/%2f", true),
            ("amqp://h/%2f", "amqp://h/%2F", true),
            ("amqp://h/plant%2D7", "amqp://h/plant-7", true),
            ("amqp://h/Plant", "amqp://h/plant", false),
            ("amqp://h/%2f", "amqp://h/plant", false),
            ("amqp://h/", "amqp://h/%2f", false),
            ("amqp://h/pl%C3%A4nt", "amqp://h/pl%c3%a4nt", true),
        ] {
            assert_eq!(vhost(one) == vhost(other), same, "{one} {other}");
        }
    }
}
