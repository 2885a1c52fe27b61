//! The sections `limits`, of a listener and of users.

use std::sync::Arc;
use std::time::Duration;

use super::Resolver;
use super::broker::{PACKET_BYTES_MAX, PACKET_BYTES_MIN};
use super::value::{Item, Section};
use crate::broker::auth::acl::Glob;
use crate::broker::limits::{ListenerLimits, OverRate, Rates, UserLimits, Whom};
use crate::config::keys;
use crate::units::ByteSize;

impl Resolver<'_> {
    /// `broker.listeners.limits`.
    pub(super) fn listener_limits(&mut self, item: Option<Item<'_>>) -> ListenerLimits {
        let mut limits = ListenerLimits::unlimited();
        let Some(item) = item else { return limits };
        let section = self.section(&item, &keys::LISTENER_LIMITS);
        limits.connections = self.how_many(&section, "connections");
        limits.connections_per_address = self.how_many(&section, "connections_per_address");
        limits.handshakes_per_address = self.how_many(&section, "handshakes_per_address");
        limits.connection_rate = self.count_rate(section.get("connection_rate"));
        limits.packet_bytes_max = self.size(section.get("max_packet_size"), PACKET_BYTES_MIN..=PACKET_BYTES_MAX);
        limits.sessions = self.how_many(&section, "sessions");
        (limits.session_messages_max, limits.session_bytes_max) = self.owed(&section);
        limits.rates = self.rates(&section);
        limits
    }

    /// `broker.limits`.
    pub(super) fn user_limits(&mut self, list: Option<Item<'_>>) -> Vec<Arc<UserLimits>> {
        let Some(list) = list else { return Vec::new() };
        let mut rules: Vec<Arc<UserLimits>> = Vec::new();
        for item in self.items(&list) {
            let section = self.section(&item, &keys::USER_LIMITS);
            let Some(whom) = self.whom(&item, &section) else { continue };
            let mut rule = UserLimits::of(whom);
            rule.connections = self.how_many(&section, "connections");
            rule.sessions = self.how_many(&section, "sessions");
            rule.packet_bytes_max = self.size(section.get("max_packet_size"), PACKET_BYTES_MIN..=PACKET_BYTES_MAX);
            (rule.session_messages_max, rule.session_bytes_max) = self.owed(&section);
            rule.rates = self.rates(&section);
            if rules.iter().any(|earlier| {
                earlier.whom == rule.whom
                    || earlier.whom == Whom::User(Glob::like("*")) && matches!(rule.whom, Whom::User(_))
            }) {
                let hint = "the first rule that fits counts: put it before that one, or leave it out".to_owned();
                self.mistakes.warning(
                    item.place(),
                    "this rule never counts: an earlier one fits all of its users",
                    hint,
                );
            }
            rules.push(Arc::new(rule));
        }
        rules
    }

    fn whom(&mut self, item: &Item<'_>, section: &Section<'_>) -> Option<Whom> {
        let user = self.text(section.get("user")).map(|text| Whom::User(Glob::like(&text.value)));
        let group = self.text(section.get("group")).map(|text| Whom::Group(text.value.into()));
        let anonymous = self.boolean(section.get("anonymous")).filter(|anonymous| *anonymous).map(|_| Whom::Anonymous);
        let mut given: Vec<Whom> = [user, group, anonymous].into_iter().flatten().collect();
        if given.len() != 1 {
            let hint = "write one of `user: \"press-*\"`, `group: operators` and `anonymous: true`".to_owned();
            self.mistakes.error(item.place(), "a rule of `limits` says whose limits they are, once", hint);
            return None;
        }
        given.pop()
    }

    fn rates(&mut self, section: &Section<'_>) -> Rates {
        let mut rates = Rates {
            messages: self.count_rate(section.get("message_rate")),
            bytes: self.byte_rate(section.get("byte_rate")),
            ..Rates::default()
        };
        if let Some(burst) = self.duration(section.get("burst"), Duration::ZERO..=Duration::from_secs(3_600)) {
            rates.burst = burst;
        }
        let choices = [("delay", OverRate::Delay), ("refuse", OverRate::Refuse), ("disconnect", OverRate::Disconnect)];
        if let Some(over) = self.choice(section.get("over_rate"), &choices) {
            rates.over = over;
        }
        let limited = section.get("message_rate").is_some() || section.get("byte_rate").is_some();
        for key in ["burst", "over_rate"] {
            if let Some(item) = section.get(key).filter(|_| !limited) {
                let wrong = format!("`{key}` has no effect: no rate is limited");
                self.mistakes.warning(
                    item.place(),
                    wrong,
                    "add `message_rate: 100/s` or `byte_rate: 64KiB/s`".to_owned(),
                );
            }
        }
        rates
    }

    /// What may be owed to a session: messages, and their bytes.
    fn owed(&mut self, section: &Section<'_>) -> (Option<u64>, Option<ByteSize>) {
        let messages = self.number(section.get("session_messages_max"), 1..=1_000_000_000);
        (messages, self.size(section.get("session_bytes_max"), PACKET_BYTES_MIN..=ByteSize(1 << 50)))
    }

    fn how_many(&mut self, section: &Section<'_>, key: &'static str) -> Option<usize> {
        let number = self.number(section.get(key), 1..=10_000_000)?;
        usize::try_from(number).ok()
    }
}
