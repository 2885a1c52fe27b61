//! `rate` and `active` of a link: how much it moves, and when it is up.

use std::time::Duration;

use super::Resolver;
use super::value::Item;
use crate::config::keys;
use crate::config::raw::Value;
use crate::links::{Active, RateLimit, Span};

impl Resolver<'_> {
    /// `{ messages: 2000/s, bytes: 1MiB/s, burst: 1s }`.
    pub(super) fn link_rate(&mut self, item: Option<Item<'_>>) -> Option<RateLimit> {
        let item = item?;
        let section = self.section(&item, &keys::RATE);
        let (messages, bytes) = (section.get("messages"), section.get("bytes"));
        if messages.is_none() && bytes.is_none() && !section.is_wrong {
            let hint = "such as `{ messages: 2000/s }` or `{ bytes: 1MiB/s }`".to_owned();
            self.mistakes.error(&section.place, "`rate` limits nothing", hint);
        }
        let burst = self.duration(section.get("burst"), Duration::ZERO..=Duration::from_secs(3_600));
        let limit = RateLimit {
            messages: self.count_rate(messages),
            bytes: self.byte_rate(bytes),
            burst: burst.unwrap_or(RateLimit::BURST_DEFAULT),
        };
        (limit.messages.is_some() || limit.bytes.is_some()).then_some(limit)
    }

    /// `"22:00-06:00"`, or a list of such.
    pub(super) fn active(&mut self, item: Option<Item<'_>>) -> Option<Active> {
        let item = item?;
        let is_nothing = matches!(&item.node.value, Value::List(items) if items.is_empty());
        if is_nothing || matches!(item.node.value, Value::Null) {
            let hint = "such as `\"22:00-06:00\"`, or leave it out".to_owned();
            self.mistakes.error(item.place(), "`active` names no time: the link would never be up", hint);
            return None;
        }
        let mut spans = Vec::new();
        for item in self.items(&item) {
            let Some(text) = self.text(Some(item)) else { continue };
            match text.value.parse::<Span>() {
                Ok(span) => spans.push(span),
                Err(error) => self.mistakes.error(text.place(), error.to_string(), None),
            }
        }
        Active::new(spans)
    }
}
