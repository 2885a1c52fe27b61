//! The section `links`: names, and what all kinds share.

use std::path::Path;
use std::time::Duration;

use super::Resolver;
use super::value::{Item, Section};
use crate::buffer::KIND;
use crate::config::keys;
use crate::config::raw::{Entry, Value};
use crate::config::source::Place;
use crate::links::rabbitmq::{self, QueueKind};
use crate::links::{Config, Drain, Kind, Timing};
use crate::router::{From, LinkId, Pattern};

/// A link as far as it is known: routes are checked against it even where its own section has mistakes.
#[derive(Debug)]
pub(super) struct Draft<'n> {
    pub(super) name: &'n str,
    /// Of the name.
    pub(super) place: Place,
    pub(super) kind: Option<KindName>,
    /// `None`: it has mistakes, or a secret that was not looked up.
    pub(super) config: Option<Config>,
    /// Neither its name nor the section that says what it is has a mistake.
    is_right: bool,
    /// Some address of a route has its name.
    pub(super) is_named: bool,
    /// What a route begins with there could not be read.
    pub(super) is_misread: bool,
    pub(super) max_size_place: Option<Place>,
    /// Where `drain` asks for `live_first`.
    pub(super) live_first_place: Option<Place>,
    /// A route leads to it.
    pub(super) has_sink: bool,
    /// A route begins there.
    pub(super) has_source: bool,
    /// The patterns that routes from an MQTT link begin with.
    pub(super) patterns: Vec<Pattern>,
    /// Shared subscriptions as they are asked for, with their patterns and where they stand.
    shared: Vec<(String, Pattern, Place)>,
    /// The queues or Kafka topics that routes begin with.
    channels: Vec<Channel>,
    /// What `renamed_from` names, and where.
    old: Option<(&'n str, Place)>,
}

#[derive(Debug)]
struct Channel {
    name: String,
    /// Of the first address that names it.
    place: Place,
    /// Some route takes every message of it.
    is_covered: bool,
}

/// The key that says what a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KindName {
    Mqtt,
    Rabbitmq,
    Kafka,
}

const KINDS: [(&str, KindName); 3] =
    [("mqtt", KindName::Mqtt), ("rabbitmq", KindName::Rabbitmq), ("kafka", KindName::Kafka)];

impl Draft<'_> {
    pub(super) fn rabbitmq(&self) -> Option<&rabbitmq::Config> {
        match &self.config.as_ref()?.kind {
            Kind::Rabbitmq(config) => Some(config),
            Kind::Mqtt(_) | Kind::Kafka(_) => None,
        }
    }

    /// Where what it says of the remote is sure.
    pub(super) fn known(&self) -> Option<&Config> {
        self.config.as_ref().filter(|_| self.is_right)
    }

    /// Adds what a route begins with to what the source consumes. A filter that another one covers is left out:
    /// a broker may deliver a message once for each filter that matches.
    /// Shared subscriptions stay apart: their messages are divided among the group.
    pub(super) fn consume(&mut self, from: &From, place: &Place) {
        self.has_source = true;
        let (channel, pattern) = (from.channel.as_deref(), from.pattern.as_ref());
        if let (Some(group), Some(pattern)) = (&from.share, pattern) {
            let shared = (format!("$share/{group}/{}", pattern.filter()), pattern.clone(), place.clone());
            if !self.shared.iter().any(|(filter, ..)| *filter == shared.0) {
                self.shared.push(shared);
            }
        }
        if let Some(name) = channel {
            let is_covered = pattern.is_none_or(|pattern| pattern.as_str() == "#");
            match self.channels.iter_mut().find(|channel| channel.name == name) {
                Some(channel) => channel.is_covered |= is_covered,
                None => self.channels.push(Channel { name: name.to_owned(), place: place.clone(), is_covered }),
            }
        }
        if channel.is_none()
            && from.share.is_none()
            && let Some(pattern) = pattern
            && !self.patterns.iter().any(|other| other.covers(pattern))
        {
            self.patterns.retain(|other| !pattern.covers(other));
            self.patterns.push(pattern.clone());
        }
        let Some(config) = &mut self.config else { return };
        match channel {
            Some(channel) if !config.sources.iter().any(|source| source == channel) => {
                config.sources.push(channel.to_owned());
            }
            Some(_) => {}
            None => {
                let shared = self.shared.iter().map(|(filter, ..)| filter.clone());
                config.sources = self.patterns.iter().map(Pattern::filter).chain(shared).collect();
            }
        }
    }
}

impl Resolver<'_> {
    pub(super) fn links<'n>(&mut self, item: Option<Item<'n>>, data_dir: &Path) -> Vec<Draft<'n>> {
        let Some(item) = item else { return Vec::new() };
        let entries = self.entries(&item);
        self.links_are_known &= matches!(item.node.value, Value::Map(_) | Value::Null);
        let mut drafts: Vec<Draft<'n>> = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            if let Some(first) = entries.iter().take(at).find(|earlier| earlier.key == entry.key) {
                self.repeated(entry, first, "link");
                drafts.iter_mut().filter(|draft| draft.name == entry.key).for_each(|draft| draft.is_right = false);
            } else {
                let errors = self.mistakes.errors();
                self.check_link_name(entry);
                let is_named_right = self.mistakes.errors() == errors;
                let mut draft = self.link(entry, data_dir);
                draft.is_right &= is_named_right;
                drafts.push(draft);
            }
        }
        self.check_renames(&drafts);
        drafts
    }

    /// R34: one buffer goes to one link, and only where no link of its own name keeps it.
    fn check_renames(&mut self, links: &[Draft<'_>]) {
        for (at, link) in links.iter().enumerate() {
            let Some((old, place)) = &link.old else { continue };
            let taken = links.iter().take(at).find(|other| other.old.as_ref().is_some_and(|(name, _)| name == old));
            if *old == "broker" {
                let wrong = "no link was ever called `broker`: that is the built-in broker, which has no buffer";
                self.mistakes.error(place, wrong, "`renamed_from` is what the link was called before".to_owned());
            } else if links.iter().any(|other| other.name == *old) {
                let wrong = format!("`{old}` is a link of this file: its buffer stays with it");
                self.mistakes.error(place, wrong, "`renamed_from` is a name that no link has any more".to_owned());
            } else if let Some(other) = taken {
                let wrong = format!("link `{}` is already renamed from `{old}`", other.name);
                self.mistakes.error(place, wrong, "a buffer can go to one link only".to_owned());
            }
        }
    }

    /// Names that a remote knows the link by come from the link's own, where the file does not say them: a new name makes new ones.
    pub(super) fn check_new_names(&mut self, site: &str, links: &[Draft<'_>]) {
        for link in links {
            let (Some((old, place)), Some(config)) = (&link.old, link.known()) else { continue };
            let is = config.kind.name();
            let kind = config.buffer.dir.with_file_name(old).join(KIND);
            // Without secrets nothing of this machine is looked at.
            let was = if self.env.no_secrets { None } else { (self.env.file)(&kind).ok() };
            if let Some(was) = was.filter(|was| *was != is) {
                let wrong = format!(
                    "the buffer of `{old}` was made for a {was} link, and this one is {is}: what is in it is not taken over"
                );
                let hint = format!("`tidegate replay {old} --into {}` sends copies by their topics", link.name);
                self.mistakes.warning(place, wrong, hint);
                continue;
            }
            let mut warn = |key: &str, was: String, lost: &str| {
                let wrong = format!("by its old name the link's `{key}` was `{was}`: {lost}");
                self.mistakes.warning(place, wrong, format!("set `{key}: {was}`"));
            };
            match &config.kind {
                Kind::Kafka(remote) => {
                    if remote.exactly_once && remote.transactional_id.is_none() && link.has_sink {
                        let lost =
                            "under the new one Kafka does not know how far the buffer is, and some may be sent twice";
                        warn("transactional_id", format!("tidegate-{site}-{old}"), lost);
                    }
                    if remote.group.is_none() && link.has_source {
                        let lost = "the new one has no positions, and begins at `start`";
                        warn("group", format!("{site}-{old}"), lost);
                    }
                }
                Kind::Mqtt(remote) if remote.client_id.is_none() && link.has_source => {
                    let lost =
                        "the new one has another session at the remote, and what waits in the old one is not read";
                    warn("client_id", format!("{site}-{old}"), lost);
                }
                Kind::Mqtt(_) | Kind::Rabbitmq(_) => {}
            }
        }
    }

    /// A link that no route names does nothing. Not said where an address tells no link: it may be this one.
    pub(super) fn check_unused(&mut self, links: &[Draft<'_>]) {
        if !self.addresses_are_known {
            return;
        }
        for link in links.iter().filter(|link| link.is_right && !link.is_named) {
            self.mistakes.warning(&link.place, format!("no route leads to or from `{}`", link.name), None);
        }
    }

    /// A queue or Kafka topic is consumed as a whole: what no route takes of it is acknowledged all the same.
    pub(super) fn check_channels(&mut self, links: &[Draft<'_>]) {
        if !self.addresses_are_known {
            return;
        }
        let links = links.iter().filter(|link| !link.is_misread);
        let channels = links.flat_map(|link| link.channels.iter().map(move |channel| (link.name, channel)));
        for (link, channel) in channels.filter(|(_, channel)| !channel.is_covered) {
            let wrong = "what no pattern takes of this queue or topic is acknowledged there and gone";
            let hint = format!("add a route `from: {link}/{}` for the rest, if there can be any", channel.name);
            self.mistakes.warning(&channel.place, wrong, hint);
        }
    }

    /// RabbitMQ takes no reader of a stream that does not say where it begins.
    pub(super) fn check_read_streams(&mut self, links: &[Draft<'_>]) {
        for link in links {
            let Some(Kind::Rabbitmq(remote)) = link.known().map(|config| &config.kind) else { continue };
            for channel in &link.channels {
                let name = &channel.name;
                let is = |queue: &rabbitmq::QueueDeclare| queue.name == *name && queue.kind == Some(QueueKind::Stream);
                if remote.queues.iter().any(is) && !remote.streams.contains_key(name) {
                    let wrong = format!("`{name}` is a stream, and nothing says where its reading begins");
                    let hint = format!("add `streams: {{ {name}: first }}` at link `{}`", link.name);
                    self.mistakes.error(&channel.place, wrong, hint);
                }
            }
        }
    }

    /// Of two producers with one `transactional.id` each ends the other, for ever (R26).
    pub(super) fn check_transactions(&mut self, links: &[Draft<'_>]) {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for link in links {
            let Some(Kind::Kafka(remote)) = link.config.as_ref().map(|config| &config.kind) else { continue };
            let Some(id) = remote.transactional_id.as_deref() else { continue };
            if let Some((_, other)) = seen.iter().find(|(known, _)| *known == id) {
                let wrong =
                    format!("link `{}` has the `transactional_id` of `{other}`: each would end the other", link.name);
                self.mistakes.error(&link.place, wrong, "each link and each gateway needs one of its own".to_owned());
            }
            if remote.group.as_deref() == Some(id) {
                let wrong = format!("the `group` and the `transactional_id` of link `{}` are one name", link.name);
                let hint = "the buffer's place is kept in a group of the name of the `transactional_id`: it would be taken for the source's";
                self.mistakes.error(&link.place, wrong, hint.to_owned());
            }
            seen.push((id, link.name));
        }
    }

    /// What two subscriptions of one link match comes twice, and would take every route twice.
    pub(super) fn check_shares(&mut self, links: &[Draft<'_>]) {
        for link in links {
            for (at, (_, pattern, place)) in link.shared.iter().enumerate() {
                let mut others = link.patterns.iter().chain(link.shared.iter().take(at).map(|(_, other, _)| other));
                if let Some(other) = others.find(|other| other.meets(pattern)) {
                    let wrong = format!("topics of this come by `{}/{}` too: each would come twice", link.name, other);
                    self.mistakes.warning(place, wrong, "let one subscription of the link have them".to_owned());
                }
            }
        }
    }

    /// The link's former name. It becomes a path, so it has to be a name.
    fn renamed_from<'n>(&mut self, item: Option<Item<'n>>) -> Option<(&'n str, Place)> {
        let text = self.text(item)?;
        if !is_name(text.given) {
            let wrong = format!("`{}` cannot be the name of a link: letters, digits, `-` and `_` can", text.shown());
            self.mistakes.error(text.place(), wrong, "it is what the link was called before".to_owned());
            return None;
        }
        Some((text.given, text.place().clone()))
    }

    fn check_link_name(&mut self, entry: &Entry) {
        let name = entry.key.as_str();
        if name == "broker" {
            let hint = "`broker` in addresses is the built-in broker; its settings stand at the top level";
            self.mistakes.error(&entry.place, "a link cannot be called `broker`", hint.to_owned());
        } else if !is_name(name) {
            let wrong = format!("`{name}` cannot name a link: letters, digits, `-` and `_` can");
            self.mistakes.error(&entry.place, wrong, "its buffer's folder has the same name".to_owned());
        }
    }

    fn link<'n>(&mut self, entry: &'n Entry, data_dir: &Path) -> Draft<'n> {
        let section = self.section(&entry.item(), &keys::LINK);
        let errors = self.mistakes.errors();
        let kind = self.kind_name(entry, &section);
        let remote = match kind.clone() {
            Some((KindName::Mqtt, item)) => {
                let arrivals = data_dir.join("arrivals").join(&entry.key);
                self.mqtt(&item, arrivals).map(Kind::Mqtt)
            }
            Some((KindName::Rabbitmq, item)) => {
                let positions = data_dir.join("streams").join(format!("{}.json", entry.key));
                self.rabbitmq(&item, positions).map(Kind::Rabbitmq)
            }
            Some((KindName::Kafka, item)) => self.kafka(&item).map(Kind::Kafka),
            None => None,
        };
        let kind = kind.map(|(kind, _)| kind);
        let is_right = kind.is_some() && self.mistakes.errors() == errors;
        let buffer = self.buffer(section.get("buffer"), data_dir.join("links").join(&entry.key));
        let timing = self.timing(&section);
        let drain = self.drain(section.get("drain"));
        let takes_copies = self.choice(section.get("copies"), &[("drop", false), ("keep", true)]);
        let (rate, active) = (self.link_rate(section.get("rate")), self.active(section.get("active")));
        // lapin slows down above (measured); MQTT and our Kafka window count with 16 bits.
        let window_max = if kind == Some(KindName::Rabbitmq) { 4_096 } else { 65_535 };
        let in_flight = self.number(section.get("in_flight"), 1..=window_max);
        let old = self.renamed_from(section.get("renamed_from"));
        let is_live_first = matches!(drain, Some(Drain::LiveFirst { .. }));
        let config = remote.map(|kind| Config {
            id: LinkId::new(&entry.key),
            kind,
            buffer,
            lanes: Vec::new(),
            has_sink: false,
            sources: Vec::new(),
            timing,
            rate,
            active,
            takes_copies: takes_copies.unwrap_or_default(),
            drain: drain.unwrap_or_default(),
            in_flight: in_flight.and_then(|window| usize::try_from(window).ok()),
            renamed_from: old.as_ref().map(|(name, _)| LinkId::new(name)),
        });
        if let Some(config) = &config {
            self.check_exactly_once(&section, config);
        }
        Draft {
            name: &entry.key,
            place: entry.place.clone(),
            kind,
            config,
            is_right,
            is_named: false,
            is_misread: false,
            max_size_place: max_size_place(&section),
            live_first_place: section.get("drain").map(|item| item.place().clone()).filter(|_| is_live_first),
            has_sink: false,
            has_source: false,
            patterns: Vec::new(),
            shared: Vec::new(),
            channels: Vec::new(),
            old,
        }
    }

    fn kind_name<'n>(&mut self, entry: &Entry, section: &Section<'n>) -> Option<(KindName, Item<'n>)> {
        let mut kinds = KINDS.iter().filter_map(|(key, kind)| section.get(key).map(|item| (*kind, item)));
        let Some(first) = kinds.next() else {
            if section.is_wrong {
                return None;
            }
            let wrong = format!("link `{}` does not say what it is", entry.key);
            let hint = "it needs one of `mqtt`, `rabbitmq`, `kafka`";
            self.mistakes.error(&entry.place, wrong, hint.to_owned());
            return None;
        };
        for (_, item) in kinds {
            let wrong = format!("link `{}` is already `{}`", entry.key, first.1.name);
            self.mistakes.error(item.place(), wrong, "a link is one remote: make two".to_owned());
        }
        Some(first)
    }

    fn timing(&mut self, section: &Section<'_>) -> Timing {
        let mut timing = Timing::default();
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(86_400));
        if let Some(timeout) = self.duration(section.get("connect_timeout"), short..=long) {
            timing.connect_timeout = timeout;
        }
        if let Some(stall) = self.duration(section.get("stall_after"), short..=long) {
            timing.stall_after = stall;
        }
        let Some(item) = section.get("retry") else { return timing };
        let retry = self.section(&item, &keys::RETRY);
        let (min, max) = (self.duration(retry.get("min"), short..=long), self.duration(retry.get("max"), short..=long));
        // One that is left out gives way to the one that is there.
        timing.retry_delay_min = min.unwrap_or_else(|| timing.retry_delay_min.min(max.unwrap_or(long)));
        timing.retry_delay_max = max.unwrap_or_else(|| timing.retry_delay_max.max(timing.retry_delay_min));
        if timing.retry_delay_min > timing.retry_delay_max {
            self.mistakes.error(&retry.place, "`retry`: `min` is longer than `max`", None);
        }
        timing
    }
}

/// It names a folder too.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn max_size_place(link: &Section<'_>) -> Option<Place> {
    let Value::Map(entries) = &link.get("buffer")?.node.value else { return None };
    entries.iter().find(|entry| entry.key == "max_size").map(|entry| entry.value.place.clone())
}
