//! Every metric name in one place, and the page that Prometheus scrapes: made of a [`Status`] at each scrape, so that the
//! page and `tidegate status` cannot disagree.
//!
//! Counters count since the start of the process, except the ledger and what comes of it, which count since the link's
//! buffer was made (promise 3 holds across restarts).

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::board::{HalfStatus, LinkState, LinkStatus, RouteStatus, Status};
use super::memory::MemoryStatus;

/// The media type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All states, in R22's order.
pub const STATES: [LinkState; 9] = [
    LinkState::Connecting,
    LinkState::Online,
    LinkState::Stalled,
    LinkState::Blocked,
    LinkState::BackingOff,
    LinkState::Paused,
    LinkState::Misconfigured,
    LinkState::DeadLettersFull,
    LinkState::BufferFailed,
];

/// A state in R22's spelling: in metrics, in `status`, in JSON.
#[must_use]
pub const fn state_name(state: LinkState) -> &'static str {
    match state {
        LinkState::Connecting => "connecting",
        LinkState::Online => "online",
        LinkState::Stalled => "stalled",
        LinkState::Blocked => "blocked",
        LinkState::BackingOff => "backing_off",
        LinkState::Paused => "paused",
        LinkState::Misconfigured => "misconfigured",
        LinkState::DeadLettersFull => "dead_letters_full",
        LinkState::BufferFailed => "buffer_failed",
    }
}

/// The page in the Prometheus text format.
#[must_use]
pub fn page(status: &Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(status.clone())));
    let mut text = String::new();
    match prometheus_text::encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing into a String does not fail; if encoding ever does, half a page would be a wrong page.
        Err(fmt::Error) => String::new(),
    }
}

#[derive(Debug)]
struct Page(Status);

/// Labels of one sample.
type Labels<'a> = Vec<(&'static str, &'a str)>;

impl prometheus_client::collector::Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut families = Families(&mut encoder);
        families.gateway(&self.0)?;
        families.links(&self.0.links)?;
        families.halves(&self.0.links)?;
        families.broker(&self.0)
    }
}

struct Families<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Families<'_, '_> {
    fn gateway(&mut self, status: &Status) -> fmt::Result {
        let build = vec![("version", status.version.as_str()), ("site", status.site.as_str())];
        self.gauge("tidegate_build_info", "The program and the site; always 1", [(build, 1)])?;
        self.gauge(
            "tidegate_ready",
            "Whether listeners, buffers and store are open",
            [(vec![], u64::from(status.ready))],
        )?;
        let started = status.started_ms / 1_000;
        self.gauge("tidegate_start_time_seconds", "When the process began, seconds since 1970", [(vec![], started)])?;
        let loops = [(vec![], status.loops_stopped)];
        self.counter("tidegate_loops_stopped", "Messages that came back to this site and went no further", loops)?;
        let copies = [(vec![], status.copies_dropped)];
        self.counter("tidegate_copies_dropped", "Messages of other gateways that had come already", copies)?;
        let unrouted = [(vec![], status.unrouted)];
        self.counter("tidegate_unrouted", "Messages of sources that matched no route and went nowhere", unrouted)?;
        self.memory(status.memory)?;
        self.routes(&status.routes)
    }

    fn memory(&mut self, memory: MemoryStatus) -> fmt::Result {
        let one = |value: u64| [(vec![], value)];
        self.gauge("tidegate_memory_resident_bytes", "Memory of the process", one(memory.used_bytes))?;
        self.gauge("tidegate_memory_limit_bytes", "`max_memory`", one(memory.limit_bytes))?;
        let short = one(u64::from(memory.short));
        self.gauge("tidegate_memory_short", "Whether publishers are held back, since memory is short", short)?;
        let shortages = one(memory.shortages);
        self.counter("tidegate_memory_shortages", "How often memory has become short", shortages)
    }

    fn routes(&mut self, routes: &[RouteStatus]) -> fmt::Result {
        let figure = |value: fn(&RouteStatus) -> u64| {
            let counted = routes.iter().filter(move |route| value(route) > 0);
            counted.map(move |route| (vec![("route", route.name.as_str())], value(route)))
        };
        let filtered = figure(|route| route.filtered);
        self.counter("tidegate_route_filtered", "Messages of which a route's `where` was not true", filtered)?;
        let suppressed = figure(|route| route.suppressed);
        let help = "Messages that a route's `throttle`, `sample` or `dedup` held back";
        self.counter("tidegate_route_suppressed", help, suppressed)?;
        let failed = figure(|route| route.failed);
        self.counter("tidegate_route_failed", "What a route could not make of a message that it took", failed)
    }

    fn links(&mut self, links: &[LinkStatus]) -> fmt::Result {
        let states = links.iter().flat_map(|link| {
            STATES.iter().map(|state| {
                let labels =
                    vec![("link", link.name.as_str()), ("kind", link.kind.as_str()), ("state", state_name(*state))];
                (labels, u64::from(link.state == *state))
            })
        });
        self.gauge("tidegate_link_state", "1 for the state that the link is in, 0 for the others", states)?;
        let figure = |value: fn(&LinkStatus) -> u64| links.iter().map(move |link| (name(link), value(link)));
        self.gauge("tidegate_link_depth_messages", "Messages not yet delivered", figure(|link| link.depth))?;
        let lanes = links.iter().flat_map(|link| {
            link.lanes.iter().map(|(lane, depth)| (vec![("link", link.name.as_str()), ("lane", lane.as_str())], *depth))
        });
        self.gauge("tidegate_link_lane_depth_messages", "Of these, by lane, where a link has several", lanes)?;
        self.gauge("tidegate_link_depth_bytes", "Their bytes", figure(|link| link.depth_bytes))?;
        self.gauge("tidegate_link_disk_bytes", "Bytes of the link's buffer on disk", figure(|link| link.disk_bytes))?;
        let letters = figure(|link| link.dead_letters);
        self.gauge("tidegate_link_dead_letters", "Messages in the link's dead-letter log", letters)?;
        let oldest = links.iter().map(|link| (name(link), seconds(link.oldest_age_ms.unwrap_or_default())));
        self.gauge("tidegate_link_oldest_age_seconds", "Age of the oldest message not yet delivered", oldest)?;
        let left = links.iter().filter_map(|link| Some((name(link), seconds(link.time_left_ms?))));
        self.gauge("tidegate_link_time_left_seconds", "At the present rate, time until the buffer is empty", left)?;
        let ledger = links.iter().flat_map(|link| {
            link.ledger
                .iter()
                .map(|(kind, value)| (vec![("link", link.name.as_str()), ("kind", kind.as_str())], *value))
        });
        // A gauge: `buffered` falls, and a dead letter that is sent again leaves its account.
        self.gauge("tidegate_link_ledger", "The link's ledger, across restarts", ledger)?;
        let balanced = figure(|link| u64::from(link.balanced));
        self.gauge("tidegate_link_ledger_balanced", "Whether every message is accounted for", balanced)
    }

    fn halves(&mut self, links: &[LinkStatus]) -> fmt::Result {
        let figure = |value: fn(&HalfStatus) -> u64| halves(links).map(move |(labels, half)| (labels, value(half)));
        let messages = figure(|half| half.messages);
        self.counter("tidegate_link_messages", "Messages confirmed by the remote (out) or accepted (in)", messages)?;
        self.counter("tidegate_link_bytes", "Payload bytes of those", figure(|half| half.bytes))?;
        self.counter("tidegate_link_resent", "Messages sent or received again", figure(|half| half.resent))?;
        self.counter("tidegate_link_connects", "Connections made", figure(|half| half.connects))?;
        let dropped = halves(links).flat_map(|(labels, half)| {
            half.dropped.iter().map(move |(reason, count)| {
                let labels = labels.iter().copied().chain([("reason", reason.as_str())]).collect();
                (labels, *count)
            })
        });
        self.counter("tidegate_link_dropped", "Messages of the remote that were lost on arrival", dropped)?;
        let in_flight = figure(|half| half.in_flight);
        self.gauge(
            "tidegate_link_in_flight_messages",
            "Messages sent or received, and not yet acknowledged",
            in_flight,
        )?;
        let held = figure(|half| u64::from(half.held_by_rate));
        self.gauge("tidegate_link_held_by_rate", "Whether the link's `rate` holds it back", held)?;
        self.counter("tidegate_link_rate_waits", "How often it did", figure(|half| half.rate_waits))?;
        let rates = halves(links).map(|(labels, half)| (labels, half.rate));
        self.gauge("tidegate_link_rate_messages_per_second", "Messages a second, over the last seconds", rates)
    }

    fn broker(&mut self, status: &Status) -> fmt::Result {
        let broker = &status.broker;
        let one = |value: u64| [(vec![], value)];
        self.gauge("tidegate_broker_clients", "Clients connected", one(broker.clients))?;
        let sound = one(u64::from(broker.store_error.is_none()));
        self.gauge("tidegate_broker_store_ok", "Whether the store of sessions takes what it should", sound)?;
        let offline = one(broker.sessions_offline);
        self.gauge("tidegate_broker_sessions_offline", "Kept sessions without a connection", offline)?;
        self.gauge("tidegate_broker_owed_messages", "Messages owed to kept sessions", one(broker.owed))?;
        self.gauge("tidegate_broker_retained_messages", "Retained messages", one(broker.retained))?;
        self.counter("tidegate_broker_received", "Messages accepted from clients", one(broker.received))?;
        self.counter("tidegate_broker_sent", "Messages sent to clients", one(broker.sent))?;
        let by_reason = |(reason, value): (&'_ String, &u64)| (reason.clone(), *value);
        let dropped: Vec<_> = broker.dropped.iter().map(by_reason).collect();
        let samples = dropped.iter().map(|(reason, value)| (vec![("reason", reason.as_str())], *value));
        self.counter("tidegate_broker_dropped", "Messages to clients that were dropped", samples)?;
        let refused: Vec<_> = broker.refused.iter().map(by_reason).collect();
        let samples = refused.iter().map(|(reason, value)| (vec![("reason", reason.as_str())], *value));
        self.counter("tidegate_broker_refused", "Publishes and connections that were refused", samples)?;
        let limited: Vec<_> = broker.limited.iter().map(by_reason).collect();
        let samples = limited.iter().map(|(limit, value)| (vec![("limit", limit.as_str())], *value));
        self.counter(
            "tidegate_broker_limited",
            "Clients held back or refused by a limit of their listener or user",
            samples,
        )?;
        let ends = broker.listeners.iter().filter_map(|listener| {
            let ends_s = u64::try_from(listener.certificate_ends_s?).unwrap_or_default();
            Some((vec![("listener", listener.bind.as_str())], ends_s))
        });
        let help = "When a listener's certificate ends, seconds since 1970";
        self.gauge("tidegate_broker_certificate_end_seconds", help, ends)?;
        let wrong = one(u64::try_from(broker.reload_errors.len()).unwrap_or(u64::MAX));
        self.gauge("tidegate_broker_reload_errors", "Files that have changed and cannot be used", wrong)?;
        let reload = &status.reload;
        let outcomes = [("taken", reload.taken), ("refused", reload.refused)];
        let reloads = outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], count));
        self.counter("tidegate_reloads", "How often routes.yaml was read again", reloads)?;
        let failed = one(u64::from(reload.error.is_some()));
        self.gauge("tidegate_reload_failed", "Whether routes.yaml was refused when it was last read", failed)
    }

    fn gauge<'l, V>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.family(name, help, samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    /// `name` without `_total`: the encoder adds it.
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        self.family(name, help, samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    /// One metric with its HELP and TYPE, which stand once, before all its samples.
    fn family<'l, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (Labels<'l>, M)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        let Some((_, first)) = samples.peek() else { return Ok(()) };
        let mut encoder = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        for (labels, metric) in samples {
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn name(link: &LinkStatus) -> Labels<'_> {
    vec![("link", &link.name)]
}

/// Both halves of all links, with their labels.
fn halves(links: &[LinkStatus]) -> impl Iterator<Item = (Labels<'_>, &HalfStatus)> {
    links.iter().flat_map(|link| {
        let both = [("out", link.sink.as_ref()), ("in", link.source.as_ref())];
        both.into_iter()
            .filter_map(|(direction, half)| Some((vec![("link", link.name.as_str()), ("direction", direction)], half?)))
    })
}

fn seconds(ms: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
    let ms = ms as f64;
    ms / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::telemetry::board::{BrokerStatus, ListenerStatus};

    fn status() -> Status {
        let sink = HalfStatus { state: LinkState::BackingOff, messages: 7, rate: 2.5, ..HalfStatus::default() };
        let dropped = BTreeMap::from([("unreadable".to_owned(), 2)]);
        let source = HalfStatus { dropped, ..HalfStatus::default() };
        let link = |name: &str| LinkStatus {
            name: name.to_owned(),
            kind: "mqtt".to_owned(),
            state: LinkState::BackingOff,
            sink: Some(sink.clone()),
            source: Some(source.clone()),
            depth: 42,
            lanes: BTreeMap::from([("high".to_owned(), 2), ("normal".to_owned(), 40)]),
            oldest_age_ms: Some(1_500),
            ledger: BTreeMap::from([("accepted".to_owned(), 49), ("delivered".to_owned(), 7)]),
            balanced: true,
            ..LinkStatus::default()
        };
        Status {
            site: "plant \"7\"\\north\nhall".to_owned(),
            version: "0.1.0".to_owned(),
            ready: true,
            links: vec![link("cloud"), link("lake")],
            routes: vec![
                RouteStatus { name: "telemetry".to_owned(), filtered: 9, suppressed: 3, failed: 4 },
                RouteStatus { name: "quiet".to_owned(), ..RouteStatus::default() },
            ],
            memory: MemoryStatus { used_bytes: 30, limit_bytes: 100, short: false, shortages: 2 },
            broker: BrokerStatus {
                received: 100,
                dropped: BTreeMap::from([("session_full".to_owned(), 3)]),
                listeners: vec![ListenerStatus {
                    bind: "0.0.0.0:8883".to_owned(),
                    layers: vec!["tls".to_owned()],
                    certificate_ends_s: Some(1_796_083_200),
                }],
                ..BrokerStatus::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn figures_carry_their_labels() {
        let page = page(&status());
        for line in [
            "tidegate_link_state{link=\"cloud\",kind=\"mqtt\",state=\"backing_off\"} 1",
            "tidegate_link_state{link=\"cloud\",kind=\"mqtt\",state=\"online\"} 0",
            "tidegate_link_depth_messages{link=\"lake\"} 42",
            "tidegate_link_lane_depth_messages{link=\"cloud\",lane=\"high\"} 2",
            "tidegate_link_oldest_age_seconds{link=\"cloud\"} 1.5",
            "tidegate_link_ledger{link=\"cloud\",kind=\"accepted\"} 49",
            "tidegate_link_messages_total{link=\"cloud\",direction=\"out\"} 7",
            "tidegate_link_dropped_total{link=\"lake\",direction=\"in\",reason=\"unreadable\"} 2",
            "tidegate_route_filtered_total{route=\"telemetry\"} 9",
            "tidegate_route_suppressed_total{route=\"telemetry\"} 3",
            "tidegate_route_failed_total{route=\"telemetry\"} 4",
            "tidegate_memory_resident_bytes 30",
            "tidegate_memory_limit_bytes 100",
            "tidegate_memory_short 0",
            "tidegate_memory_shortages_total 2",
            "tidegate_broker_store_ok 1",
            "tidegate_broker_received_total 100",
            "tidegate_broker_certificate_end_seconds{listener=\"0.0.0.0:8883\"} 1796083200",
            "tidegate_broker_reload_errors 0",
            "tidegate_reloads_total{outcome=\"taken\"} 0",
            "tidegate_reload_failed 0",
            "tidegate_broker_dropped_total{reason=\"session_full\"} 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_label_with_quotes_and_line_ends_is_escaped() {
        let page = page(&status());
        assert!(page.contains(r#"site="plant \"7\"\\north\nhall""#), "{page}");
    }

    /// The rules of the text format: HELP and TYPE once and before the samples, no sample twice, names and values well formed.
    #[test]
    fn the_page_is_valid_prometheus_text() {
        let page = page(&status());
        let (mut types, mut samples, mut current) = (BTreeSet::new(), BTreeSet::new(), String::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(types.insert(name.to_owned()), "{name} stands twice");
                assert!(["gauge", "counter"].contains(&kind), "{line}");
                current = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(rest.split_once(' ').is_some_and(|(_, help)| !help.is_empty()), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                assert_eq!(name, current, "a sample stands under its own TYPE");
                assert!(
                    name.starts_with("tidegate_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                    "{name}"
                );
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(samples.insert(series.to_owned()), "{series} stands twice");
            }
        }
        assert!(types.len() > 20, "{types:?}");
    }

    #[test]
    fn r22_each_state_is_spelled_as_in_json() {
        for state in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), state_name(state));
        }
    }
}
