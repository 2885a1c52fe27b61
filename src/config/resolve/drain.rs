//! `drain` of a link: how a backlog goes out, and for which routes that is a mistake (R13).

use super::Resolver;
use super::link::{Draft, KindName};
use super::route::Draught;
use super::sparkplug::is_meant_text;
use super::value::{Item, Text};
use crate::buffer::SyncMode;
use crate::config::keys;
use crate::config::raw::Value;
use crate::links::mqtt::Version;
use crate::links::{Drain, Kind};
use crate::router::{Endpoint, Route, To};

impl Resolver<'_> {
    /// `fifo`, `live_first`, or `{ live_first: { share: 25% } }`.
    pub(super) fn drain(&mut self, item: Option<Item<'_>>) -> Option<Drain> {
        let item = item?;
        let live_first = Drain::LiveFirst { share: Drain::SHARE_DEFAULT };
        if !matches!(item.node.value, Value::Map(_)) {
            return self.choice(Some(item), &[("fifo", Drain::Fifo), ("live_first", live_first)]);
        }
        let section = self.section(&item, &keys::DRAIN);
        let live = section.get("live_first")?;
        let live = self.section(&live, &keys::LIVE_FIRST);
        let share = self.text(live.get("share")).and_then(|text| self.share(&text));
        Some(share.map_or(live_first, |share| Drain::LiveFirst { share }))
    }

    fn share(&mut self, text: &Text<'_>) -> Option<u8> {
        let number = text.value.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
        let share = number.filter(|share| (1..=99).contains(share));
        if share.is_none() {
            let wrong = format!("`{}` is no share: from 1% to 99%", text.shown());
            self.mistakes.error(text.place(), wrong, "such as `share: 25%`".to_owned());
        }
        share
    }

    /// Where the order over an outage counts, or the receiver could not tell, `live_first` is a mistake.
    pub(super) fn check_drain(&mut self, routes: &[Draught], links: &[Draft<'_>]) {
        for link in links {
            let Some(place) = &link.live_first_place else { continue };
            if link.config.as_ref().is_some_and(|config| matches!(config.buffer.sync, SyncMode::Spill(_))) {
                let wrong = "while there is a backlog, `sync: spill` acknowledges by the disk alone: publishers wait for `spill_after`, \
                             and what the remote confirms at once is written all the same";
                let hint = "use `sync: group` with `drain: live_first`, or `drain: fifo`".to_owned();
                self.mistakes.warning(place, wrong, hint);
            }
            let kind = link.config.as_ref().map(|config| &config.kind);
            if matches!(kind, Some(Kind::Mqtt(mqtt)) if mqtt.version == Version::V4) {
                let wrong = "MQTT 3.1.1 carries no properties: the receiver cannot tell what was filled in later";
                self.mistakes.warning(place, wrong, "use `version: 5`, or `drain: fifo`".to_owned());
            }
            for route in routes {
                let is_here = |to: &To| matches!(&to.endpoint, Endpoint::Link(id) if id.as_str() == link.name);
                let targets = route.route.to.iter().zip(&route.to).filter(|(to, _)| is_here(to));
                for (to, place) in targets {
                    let hint = || format!("give it a link with `drain: fifo` instead of `{}`", link.name);
                    if is_sparkplug(&route.route, to) {
                        let wrong = "Sparkplug needs the order of its messages, and `drain: live_first` breaks it after an outage";
                        self.mistakes.warning(place, wrong, hint());
                    } else if link.kind == Some(KindName::Kafka) && route.route.key.is_some() {
                        let wrong = "with a `key` the last record of each counts, in a compacted topic for ever, and \
                                     after an outage `drain: live_first` sends older ones last";
                        self.mistakes.warning(place, wrong, hint());
                    }
                }
            }
        }
    }
}

fn is_sparkplug(route: &Route, to: &To) -> bool {
    let patterns = route.from.iter().filter_map(|from| from.pattern.as_ref());
    is_meant_text(to.template.as_str()) || patterns.into_iter().any(|pattern| is_meant_text(pattern.as_str()))
}
