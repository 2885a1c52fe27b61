//! Which addresses of several files are the same remote, and which are the built-in broker of one of them.

use std::collections::HashMap;
use std::net::IpAddr;

use url::Url;

use super::Sketch;
use crate::links::{Kind, mqtt};
use crate::router::{Endpoint, LinkId};

/// What the operator says about addresses where the files cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ties {
    /// Loopback addresses are those of one machine, on which all sites run.
    pub one_machine: bool,
    /// Two that are the same: a site, for its built-in broker, or `HOST:PORT`.
    pub same: Vec<(String, String)>,
}

/// What a tie names that is neither a site nor an address that some file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Untied(pub(in crate::config) String);

/// An address as files write it. Loopback ones are of a machine, by the number of its site.
type Address = (String, u16, Option<usize>);

/// Remotes by number: first the sites' own brokers, in their order, then addresses. Those that are the same have one root.
#[derive(Debug)]
pub(in crate::config) struct Meet {
    parents: Vec<usize>,
    addresses: HashMap<Address, usize>,
    /// By site and link.
    links: HashMap<(usize, LinkId), usize>,
    /// What to call each number.
    names: Vec<String>,
}

impl Meet {
    pub(in crate::config) fn of(sites: &[&Sketch], ties: &Ties) -> Result<Self, Untied> {
        let mut meet = Self {
            parents: (0..sites.len()).collect(),
            addresses: HashMap::new(),
            links: HashMap::new(),
            names: sites.iter().map(|site| format!("the broker of {}", site.shown())).collect(),
        };
        for (at, site) in sites.iter().enumerate() {
            for link in &site.links {
                let mut numbers = Vec::new();
                for (host, port) in addresses_of(&link.config.kind) {
                    let number = meet.number(&host, port, (!ties.one_machine).then_some(at));
                    if matches!(link.config.kind, Kind::Mqtt(_))
                        && let Some(own) = listening(sites, &host, port, (!ties.one_machine).then_some(at))
                    {
                        meet.join(own, number);
                    }
                    numbers.push(number);
                }
                // All addresses of a link are one remote.
                let Some(first) = numbers.first().copied() else { continue };
                numbers.into_iter().for_each(|other| meet.join(first, other));
                meet.links.insert((at, link.config.id.clone()), first);
            }
        }
        for (one, other) in &ties.same {
            let [one, other] = [one, other].map(|name| meet.named(name, sites));
            let (one, other) = (one?, other?);
            one.iter().chain(&other).for_each(|number| meet.join(one.first().copied().unwrap_or(*number), *number));
        }
        Ok(meet)
    }

    /// Where a route's side is: a number that those in the same place share.
    pub(super) fn place_of(&mut self, site: usize, endpoint: &Endpoint) -> Option<usize> {
        let number = match endpoint {
            Endpoint::Broker => site,
            Endpoint::Link(link) => *self.links.get(&(site, link.clone()))?,
        };
        Some(self.root(number))
    }

    /// What people call it.
    pub(super) fn name(&self, number: usize) -> &str {
        self.names.get(number).map_or("", String::as_str)
    }

    /// Where several sites meet, one line each: `the broker of hq: plant-7 (hq)`.
    pub(in crate::config) fn shown(&mut self, sites: &[&Sketch]) -> Vec<String> {
        let mut guests: Vec<(usize, usize, String)> = Vec::new();
        for (at, site) in sites.iter().enumerate() {
            for link in &site.links {
                let Some(number) = self.place_of(at, &Endpoint::Link(link.config.id.clone())) else { continue };
                guests.push((number, at, format!("{} ({})", site.shown(), link.config.id)));
            }
        }
        let mut lines = Vec::new();
        let mut roots: Vec<usize> = guests.iter().map(|(root, ..)| *root).collect();
        roots.sort_unstable();
        roots.dedup();
        for root in roots {
            let here: Vec<_> = guests.iter().filter(|(number, ..)| *number == root).collect();
            let Some((_, first, _)) = here.first() else { continue };
            if here.iter().any(|(_, site, _)| site != first) || (root < sites.len() && *first != root) {
                let names: Vec<&str> = here.iter().map(|(.., name)| name.as_str()).collect();
                lines.push(format!("{}: {}", self.name(root), names.join(", ")));
            }
        }
        lines
    }

    fn number(&mut self, host: &str, port: u16, machine: Option<usize>) -> usize {
        let (host, machine) =
            if is_loopback(host) { ("localhost".to_owned(), machine) } else { (host.to_ascii_lowercase(), None) };
        let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let next = self.parents.len();
        let number = *self.addresses.entry((host, port, machine)).or_insert(next);
        if number == next {
            self.parents.push(next);
            self.names.push(shown);
        }
        number
    }

    /// The numbers that a name in a tie means: several for a loopback address of several machines.
    fn named(&self, name: &str, sites: &[&Sketch]) -> Result<Vec<usize>, Untied> {
        if let Some(site) = sites.iter().position(|site| site.site.as_deref() == Some(name)) {
            return Ok(vec![site]);
        }
        let unknown = || Untied(name.to_owned());
        let (host, port) = host_and_port(name).ok_or_else(unknown)?;
        let host = if is_loopback(&host) { "localhost".to_owned() } else { host.to_ascii_lowercase() };
        let is_it = |address: &Address| address.0 == host && address.1 == port;
        let mut numbers: Vec<usize> =
            self.addresses.iter().filter(|(address, _)| is_it(address)).map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        if numbers.is_empty() { Err(unknown()) } else { Ok(numbers) }
    }

    /// The least number of those that are the same: a site's broker before an address.
    fn root(&self, number: usize) -> usize {
        let mut at = number;
        while let Some(parent) = self.parents.get(at).copied().filter(|parent| *parent != at) {
            at = parent;
        }
        at
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        if let Some(parent) = self.parents.get_mut(one.max(other)) {
            *parent = one.min(other);
        }
    }
}

/// Hosts and ports of a remote.
fn addresses_of(kind: &Kind) -> Vec<(String, u16)> {
    match kind {
        Kind::Mqtt(config) => {
            config.addresses.iter().map(|mqtt::Address { host, port, .. }| (host.clone(), *port)).collect()
        }
        Kind::Rabbitmq(config) => {
            let Ok(url) = Url::parse(&config.url) else { return Vec::new() };
            let default = if url.scheme() == "amqps" { 5671 } else { 5672 };
            let port = url.port().unwrap_or(default);
            let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned());
            host.map(|host| (host, port)).into_iter().collect()
        }
        Kind::Kafka(config) => config.brokers.iter().filter_map(|broker| host_and_port(broker)).collect(),
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?)).filter(|_| !host.is_empty())
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The site that listens on an address; `machine`: the only one on the machine of a loopback address. A listener on all networks
/// has no address that others could be compared with.
fn listening(sites: &[&Sketch], host: &str, port: u16, machine: Option<usize>) -> Option<usize> {
    let ip = host.parse::<IpAddr>().ok();
    sites.iter().enumerate().position(|(at, site)| {
        let mut bound = site.listeners.iter().filter_map(|listener| listener.bind.address());
        bound.any(|bound| {
            let here = is_loopback(host)
                && machine.is_none_or(|machine| machine == at)
                && (bound.ip().is_loopback() || bound.ip().is_unspecified());
            bound.port() == port && port != 0 && (here || (Some(bound.ip()) == ip && !bound.ip().is_loopback()))
        })
    })
}
