//! The section `broker`.

use std::time::Duration;

use super::Resolver;
use super::value::{Item, Section};
use crate::broker::{Config, retained_by_default, retained_that_fits};
use crate::config::keys;
use crate::topic::TopicFilter;
use crate::units::ByteSize;

/// MQTT's own limit: a Remaining Length of 268,435,455 and the fixed header (MQTT 5.0 section 2.1.4).
pub(super) const PACKET_BYTES_MAX: ByteSize = ByteSize(268_435_460);
/// Below this not even a topic and its properties fit.
pub(super) const PACKET_BYTES_MIN: ByteSize = ByteSize(1 << 10);
pub(super) const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Resolver<'_> {
    pub(super) fn broker(&mut self, item: Option<Item<'_>>, max_memory: ByteSize) -> Config {
        let mut config = Config { retained_bytes_max: retained_by_default(max_memory), ..Config::default() };
        let Some(item) = item else { return config };
        let section = self.section(&item, &keys::BROKER);
        config.auth = self.auth(section.get("auth"));
        if let Some(listeners) = section.get("listeners") {
            config.listeners = self.listeners(&listeners, &config.auth);
        }
        if let Some(size) = self.size(section.get("max_packet_size"), PACKET_BYTES_MIN..=PACKET_BYTES_MAX) {
            config.max_packet_size = size;
        }
        if let Some(maximum) = self.count(&section, "receive_maximum") {
            config.receive_maximum = maximum;
        }
        if let Some(window) = self.count(&section, "in_flight") {
            config.in_flight = window;
        }
        if let Some(bytes) = self.size(section.get("in_flight_bytes"), PACKET_BYTES_MIN..=ByteSize(1 << 40)) {
            config.in_flight_bytes = bytes;
        }
        if let Some(expiry) = self.duration(section.get("session_expiry_max"), Duration::ZERO..=100 * YEAR) {
            config.session_expiry_max = expiry;
        }
        if let Some(messages) = self.number(section.get("session_messages_max"), 1..=1_000_000_000) {
            config.session_messages_max = messages;
        }
        if let Some(bytes) = self.size(section.get("session_bytes_max"), PACKET_BYTES_MIN..=ByteSize(1 << 50)) {
            config.session_bytes_max = bytes;
        }
        if let Some(messages) = self.number(section.get("retained_messages_max"), 1..=1_000_000_000) {
            config.retained_messages_max = messages;
        }
        if let Some(item) = section.get("retained_bytes_max") {
            self.retained_bytes(&item, &mut config, max_memory);
        }
        let second = Duration::from_secs(1);
        if let Some(timeout) = self.duration(section.get("connect_timeout"), second..=600 * second) {
            config.connect_timeout = timeout;
        }
        let connections = self.number(section.get("connections_max"), 1..=10_000_000);
        if let Some(connections) = connections.and_then(|connections| usize::try_from(connections).ok()) {
            config.connections_max = connections;
        }
        let sessions = self.number(section.get("sessions_max"), 1..=10_000_000);
        if let Some(sessions) = sessions.and_then(|sessions| usize::try_from(sessions).ok()) {
            config.sessions_max = sessions;
        }
        let handshakes = self.number(section.get("handshakes_max"), 1..=1_000_000);
        if let Some(handshakes) = handshakes.and_then(|handshakes| usize::try_from(handshakes).ok()) {
            config.handshakes_max = handshakes;
        }
        self.protocol(&section, &mut config);
        config
    }

    /// R36: retained messages are in memory for as long as they are retained.
    fn retained_bytes(&mut self, item: &Item<'_>, config: &mut Config, max_memory: ByteSize) {
        let Some(bytes) = self.size(Some(item.clone()), PACKET_BYTES_MIN..=ByteSize(1 << 50)) else { return };
        let (default, most) = (config.retained_bytes_max, retained_that_fits(max_memory));
        config.retained_bytes_max = bytes;
        if bytes > most {
            let wrong = format!(
                "{bytes} of retained messages do not fit into a `max_memory` of {max_memory}: once there are so many memory is short for good, and no client is let in"
            );
            let hint = format!("at most {most}, or a larger `max_memory`; without the key it is {default}");
            self.mistakes.warning(item.place(), wrong, hint);
        }
    }

    /// What MQTT 5 clients are told, and what nobody may subscribe to.
    fn protocol(&mut self, section: &Section<'_>, config: &mut Config) {
        let second = Duration::from_secs(1);
        config.keep_alive_max = self.duration(section.get("keep_alive_max"), second..=u32::from(u16::MAX) * second);
        config.server_reference = self.text(section.get("server_reference")).map(|text| text.value.into());
        if let Some(every) = self.duration(section.get("sys_interval"), Duration::ZERO..=3_600 * second) {
            config.sys_interval = every;
        }
        config.limits = self.user_limits(section.get("limits"));
        let Some(list) = section.get("deny_subscribe") else { return };
        for item in self.items(&list) {
            let Some(text) = self.text(Some(item.clone())) else { continue };
            match TopicFilter::new(&text.value) {
                Ok(filter) => config.deny_subscribe.push(filter),
                Err(error) => {
                    let wrong = format!("`{}` is no topic filter: {error}", text.shown());
                    self.mistakes.error(item.place(), wrong, "such as `secret/#`".to_owned());
                }
            }
        }
    }

    /// What packet ids can number: 1 to 65,535.
    fn count(&mut self, section: &Section<'_>, key: &'static str) -> Option<u16> {
        let number = self.number(section.get(key), 1..=u64::from(u16::MAX))?;
        u16::try_from(number).ok()
    }
}
