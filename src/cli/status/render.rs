//! The status board as text for people. Pure.

use crate::cli::text::{self, Span, Style, grouped, ms, since, until};
use crate::cli::{replay, tool};
use crate::clock::WallMs;
use crate::telemetry::board::{BrokerStatus, HalfStatus, LinkState, LinkStatus, Status};
use crate::telemetry::memory::MemoryStatus;
use crate::units::ByteSize;

/// The ledger's accounts in the order of the equation; others follow by name.
const ACCOUNTS: [&str; 3] = ["accepted", "delivered", "buffered"];

/// The whole gateway.
pub(super) fn lines(status: &Status, now: WallMs) -> Vec<Vec<Span>> {
    let mut lines = vec![head(status, now), broker(&status.broker)];
    lines.extend(counts("dropped", &status.broker.dropped));
    lines.extend(counts("refused", &status.broker.refused));
    lines.extend(counts("limited", &status.broker.limited));
    if let Some(error) = &status.broker.store_error {
        lines.push(vec![Span::new(Style::Bad, format!("       store: {error}"))]);
    }
    lines.extend(memory(status.memory));
    for error in &status.broker.reload_errors {
        lines.push(vec![Span::new(Style::Bad, format!("       not reloaded: {error}"))]);
    }
    if let (Some(error), Some(at)) = (&status.reload.error, status.reload.last_ms) {
        let ago = since(at, now);
        lines.push(vec![Span::new(Style::Bad, format!("reload failed at {} ({ago} ago):", text::utc(WallMs(at))))]);
        lines.extend(error.lines().map(|line| vec![Span::new(Style::Bad, format!("       {}", tool::plain(line)))]));
    }
    if status.loops_stopped > 0 {
        let loops = format!("       loops stopped: {}", grouped(status.loops_stopped));
        lines.push(vec![Span::new(Style::Warn, loops)]);
    }
    if status.copies_dropped > 0 {
        let copies = format!("       copies dropped: {}", grouped(status.copies_dropped));
        lines.push(vec![Span::plain(copies)]);
    }
    if status.unrouted > 0 {
        let unrouted = format!("       matched no route: {}", grouped(status.unrouted));
        lines.push(vec![Span::new(Style::Warn, unrouted)]);
    }
    for route in &status.routes {
        let of_route = [("filtered", route.filtered), ("suppressed", route.suppressed), ("failed", route.failed)];
        let of_route = of_route.into_iter().filter(|(_, count)| *count > 0);
        let text: Vec<_> = of_route.map(|(what, count)| format!("{what} {}", grouped(count))).collect();
        let style = if route.failed > 0 { Style::Warn } else { Style::Plain };
        lines.push(vec![Span::new(style, format!("route  {}: {}", route.name, text.join(", ")))]);
    }
    if let Some(admin) = &status.admin {
        lines.push(vec![Span::plain(format!("admin  http://{admin}"))]);
    }
    for replay in &status.replays {
        lines.push(vec![Span::plain(replay::in_list(replay))]);
    }
    for link in &status.links {
        lines.push(Vec::new());
        lines.extend(self::link(link, now));
    }
    lines
}

fn head(status: &Status, now: WallMs) -> Vec<Span> {
    let ready = match (status.ready, status.memory.short) {
        (false, _) => Span::new(Style::Bad, "not ready"),
        (true, true) => Span::new(Style::Bad, "short of memory"),
        (true, false) => Span::new(Style::Good, "ready"),
    };
    let up = since(status.started_ms, now);
    vec![
        Span::new(Style::Strong, format!("site {}", status.site)),
        Span::plain(format!("  {} for {up}, ", status.phase)),
        ready,
        Span::new(Style::Faint, format!("  tidegate {}, pid {}", status.version, status.pid)),
    ]
}

fn broker(broker: &BrokerStatus) -> Vec<Span> {
    let listeners: Vec<String> = broker.listeners.iter().map(ToString::to_string).collect();
    vec![Span::plain(format!(
        "broker {}  clients {}  received {}  sent {}  offline sessions {} (owed {})  retained {}",
        listeners.join(" "),
        grouped(broker.clients),
        grouped(broker.received),
        grouped(broker.sent),
        grouped(broker.sessions_offline),
        grouped(broker.owed),
        grouped(broker.retained),
    ))]
}

/// Nothing where it is not known.
fn memory(memory: MemoryStatus) -> Option<Vec<Span>> {
    let MemoryStatus { used_bytes, limit_bytes, short, shortages } = memory;
    if used_bytes == 0 {
        return None;
    }
    let (used, limit) = (ByteSize(used_bytes), ByteSize(limit_bytes));
    let mut line = vec![Span::plain(format!("memory {used} of {limit}"))];
    if short {
        line.push(Span::new(Style::Bad, "  short: publishers are held back, new clients are refused"));
    } else if shortages > 0 {
        line.push(Span::new(Style::Warn, format!("  was short {} times", grouped(shortages))));
    }
    Some(line)
}

fn counts(what: &str, counts: &std::collections::BTreeMap<String, u64>) -> Option<Vec<Span>> {
    if counts.is_empty() {
        return None;
    }
    let counts: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {}", grouped(*count))).collect();
    Some(vec![Span::new(Style::Warn, format!("       {what}: {}", counts.join(", ")))])
}

fn link(link: &LinkStatus, now: WallMs) -> Vec<Vec<Span>> {
    let mut lines = vec![vec![
        Span::new(Style::Strong, format!("link {}", link.name)),
        Span::plain(format!(" ({})  ", link.kind)),
        Span::new(text::style(link.state), text::state(link.state)),
    ]];
    if let Some(sink) = &link.sink {
        lines.extend(half("out", sink, now));
    }
    if let Some(source) = &link.source {
        lines.extend(half("in", source, now));
    }
    // A link that only receives has no buffer of its own.
    if link.sink.is_some() || link.depth > 0 || !link.ledger.is_empty() {
        lines.push(buffer(link));
        lines.extend(lanes(link));
        lines.push(ledger(link));
    }
    if link.dead_letters > 0 {
        let why = link.sink.as_ref().and_then(|sink| sink.last_dead_letter.as_ref());
        let why = why.map_or_else(String::new, |reason| format!(", the last: {reason}"));
        lines.push(vec![Span::new(Style::Warn, format!("  dead letters {}{why}", grouped(link.dead_letters)))]);
    }
    if link.put_aside > 0 {
        let aside = grouped(link.put_aside);
        let line =
            format!("  damaged segments put aside {aside}: what they held may be in no figure (`tidegate audit`)");
        lines.push(vec![Span::new(Style::Warn, line)]);
    }
    if let Some(note) = &link.note {
        lines.push(vec![Span::new(Style::Warn, format!("  note: {note}"))]);
    }
    lines
}

fn half(direction: &str, half: &HalfStatus, now: WallMs) -> Vec<Vec<Span>> {
    let (done, again) = if direction == "out" { ("confirmed", "sent again") } else { ("accepted", "received again") };
    let mut lines = vec![vec![
        Span::plain(format!("  {direction:<4} ")),
        Span::new(text::style(half.state), text::state(half.state)),
        Span::plain(format!(
            " for {}  {done} {}  {:.1}/s  in flight {}  {again} {}  connects {}",
            since(half.since_ms, now),
            grouped(half.messages),
            half.rate,
            grouped(half.in_flight),
            grouped(half.resent),
            grouped(half.connects),
        )),
    ]];
    lines.extend(counts("dropped", &half.dropped));
    if half.held_by_rate {
        let held = format!("       held by its rate, {} times so far", grouped(half.rate_waits));
        lines.push(vec![Span::plain(held)]);
    }
    if let Some(reason) = &half.reason {
        lines.push(vec![Span::plain(format!("       {reason}"))]);
    }
    if let Some(next) = half.next_try_ms {
        let what = if half.state == LinkState::Paused { "goes on" } else { "next try" };
        lines.push(vec![Span::plain(format!("       {what} in {}", until(next, now)))]);
    }
    if let Some(error) = &half.last_error {
        // Of a link that is online it is history.
        let when = if half.state == LinkState::Online { "earlier" } else { "last" };
        lines.push(vec![Span::plain(format!("       {when} error: {error}"))]);
    }
    lines
}

fn buffer(link: &LinkStatus) -> Vec<Span> {
    let mut line = format!(
        "  kept {}  {}  on disk {}",
        grouped(link.depth),
        ByteSize(link.depth_bytes),
        ByteSize(link.disk_bytes)
    );
    if link.kept_bytes > 0 {
        line += &format!(" (delivered {})", ByteSize(link.kept_bytes));
    }
    if let Some(oldest) = link.oldest_age_ms {
        line += &format!("  oldest {}", ms(oldest));
    }
    if let Some(left) = link.time_left_ms.filter(|_| link.depth > 0) {
        line += &format!("  empty in {}", ms(left));
    }
    vec![Span::plain(line)]
}

/// What is kept in each lane, in the order in which they are sent.
fn lanes(link: &LinkStatus) -> Option<Vec<Span>> {
    let depths: Vec<String> = link.lanes.iter().map(|(lane, depth)| format!("{lane} {}", grouped(*depth))).collect();
    (!depths.is_empty()).then(|| vec![Span::plain(format!("  lanes {}", depths.join("  ")))])
}

fn ledger(link: &LinkStatus) -> Vec<Span> {
    let known = ACCOUNTS.iter().filter_map(|name| Some((*name, *link.ledger.get(*name)?)));
    // Accounts at zero say nothing to a person; `--json` has them all.
    let others = link.ledger.iter().filter(|(name, value)| !ACCOUNTS.contains(&name.as_str()) && **value > 0);
    let all = known.chain(others.map(|(name, value)| (name.as_str(), *value)));
    let accounts: Vec<String> = all.map(|(name, value)| format!("{name} {}", grouped(value))).collect();
    let verdict =
        if link.balanced { Span::new(Style::Good, "balanced") } else { Span::new(Style::Bad, "DOES NOT BALANCE") };
    vec![Span::plain(format!("  ledger {}  ", accounts.join("  "))), verdict]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::telemetry::board::{ListenerStatus, RouteStatus};

    fn ledger(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn status() -> Status {
        let sink = HalfStatus {
            state: LinkState::BackingOff,
            since_ms: 97_000,
            last_error: Some("connection refused".to_owned()),
            next_try_ms: Some(100_400),
            messages: 4_000,
            resent: 12,
            connects: 2,
            ..HalfStatus::default()
        };
        let cloud = LinkStatus {
            name: "cloud".to_owned(),
            kind: "mqtt".to_owned(),
            state: LinkState::BackingOff,
            sink: Some(sink),
            depth: 2_900,
            depth_bytes: 300 << 10,
            disk_bytes: 1 << 20,
            oldest_age_ms: Some(6_100),
            time_left_ms: Some(2_000),
            ledger: ledger(&[("accepted", 6_900), ("delivered", 4_000), ("buffered", 2_900), ("dropped_age", 0)]),
            balanced: true,
            ..LinkStatus::default()
        };
        let dropped = BTreeMap::from([("unreadable".to_owned(), 2)]);
        let source =
            HalfStatus { state: LinkState::Online, since_ms: 40_000, rate: 12.34, dropped, ..HalfStatus::default() };
        let hq = LinkStatus {
            name: "hq".to_owned(),
            kind: "rabbitmq".to_owned(),
            state: LinkState::Online,
            source: Some(source),
            balanced: true,
            ..LinkStatus::default()
        };
        Status {
            site: "plant-7".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 42,
            started_ms: 40_000,
            ready: true,
            phase: "running".to_owned(),
            links: vec![cloud, hq],
            broker: BrokerStatus {
                listeners: vec![ListenerStatus { bind: "127.0.0.1:1883".to_owned(), ..ListenerStatus::default() }],
                clients: 4,
                received: 6_900,
                dropped: BTreeMap::from([("session_full".to_owned(), 3)]),
                ..BrokerStatus::default()
            },
            ..Status::default()
        }
    }

    fn shown(status: &Status) -> String {
        let lines = lines(status, WallMs(100_000));
        lines.iter().map(|line| text::render(line, usize::MAX, false)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn everything_that_promise_6_names_is_on_the_page() {
        let expected = "\
site plant-7  running for 1m, ready  tidegate 0.1.0, pid 42
broker 127.0.0.1:1883  clients 4  received 6,900  sent 0  offline sessions 0 (owed 0)  retained 0
       dropped: session_full 3

link cloud (mqtt)  backing_off
  out  backing_off for 3s  confirmed 4,000  0.0/s  in flight 0  sent again 12  connects 2
       next try in 400ms
       last error: connection refused
  kept 2,900  300KiB  on disk 1MiB  oldest 6.1s  empty in 2s
  ledger accepted 6,900  delivered 4,000  buffered 2,900  balanced

link hq (rabbitmq)  online
  in   online for 1m  accepted 0  12.3/s  in flight 0  received again 0  connects 0
       dropped: unreadable 2";
        assert_eq!(shown(&status()), expected);
    }

    #[test]
    fn an_error_that_is_over_is_called_so() {
        let mut status = status();
        assert!(shown(&status).contains("\n       last error: connection refused\n"));
        status.links[0].sink.as_mut().unwrap().state = LinkState::Online;
        assert!(shown(&status).contains("\n       earlier error: connection refused\n"));
    }

    #[test]
    fn what_pauses_a_link_and_what_holds_it_back_is_on_the_page() {
        let mut status = status();
        let sink = status.links[0].sink.as_mut().unwrap();
        (sink.state, sink.next_try_ms, sink.last_error) = (LinkState::Paused, Some(3_700_000), None);
        sink.reason = Some("outside of `active: 22:00-06:00`".to_owned());
        let page = shown(&status);
        assert!(page.contains("\n       outside of `active: 22:00-06:00`\n       goes on in 1h\n"), "{page}");
        assert!(!page.contains("held"), "{page}");
        let source = status.links[1].source.as_mut().unwrap();
        (source.held_by_rate, source.rate_waits) = (true, 1_234);
        assert!(shown(&status).contains("\n       held by its rate, 1,234 times so far"), "{}", shown(&status));
    }

    #[test]
    fn what_limits_of_listeners_and_users_held_back_is_on_the_page() {
        let mut status = status();
        assert!(!shown(&status).contains("limited"));
        status.broker.limited =
            [("message_rate", 1_200), ("connections", 3)].map(|(limit, n)| (limit.into(), n)).into();
        assert!(shown(&status).contains("\n       limited: connections 3, message_rate 1,200\n"), "{}", shown(&status));
    }

    #[test]
    fn what_routes_held_back_is_on_the_page() {
        let mut status = status();
        assert!(!shown(&status).contains("copies"));
        status.copies_dropped = 1_200;
        assert!(shown(&status).contains("\n       copies dropped: 1,200\n"), "{}", shown(&status));
        status.routes = vec![RouteStatus { name: "day".to_owned(), filtered: 7, suppressed: 2, failed: 1_234 }];
        let page = shown(&status);
        assert!(page.contains("\nroute  day: filtered 7, suppressed 2, failed 1,234\n"), "{page}");
    }

    #[test]
    fn what_is_kept_and_what_is_replayed_is_on_the_page() {
        let mut status = status();
        assert!(!shown(&status).contains("delivered 3"), "{}", shown(&status));
        status.links[0].kept_bytes = 300 << 10;
        status.replays = vec![crate::telemetry::replay::ReplayStatus { id: "7f3a91c2".into(), ..Default::default() }];
        let text = shown(&status);
        assert!(
            text.contains("on disk 1MiB (delivered 300KiB)") && text.contains("\nreplay 7f3a91c2  running"),
            "{text}"
        );
    }

    #[test]
    fn an_unbalanced_ledger_cannot_be_overlooked() {
        let mut status = status();
        status.links[0].balanced = false;
        status.links[0].note = Some("sync: never: acknowledged before it is safe".to_owned());
        status.links[0].dead_letters = 2;
        status.links[0].put_aside = 1;
        status.broker.store_error = Some("the broker's store waits: its disk is full".to_owned());
        status.broker.reload_errors = vec!["the certificates of :8883 are as they were: no key".to_owned()];
        status.broker.listeners[0].layers = vec!["tls".to_owned(), "websocket".to_owned()];
        status.links[0].sink.as_mut().unwrap().last_dead_letter = Some("312 NO_ROUTE".to_owned());
        let text = shown(&status);
        assert!(text.contains("\n       store: the broker's store waits"), "{text}");
        assert!(text.contains("\n       not reloaded: the certificates of :8883"), "{text}");
        assert!(text.contains("broker 127.0.0.1:1883 (tls, websocket)  clients"), "{text}");
        assert!(text.contains("buffered 2,900  DOES NOT BALANCE"), "{text}");
        assert!(text.contains("\n  damaged segments put aside 1: "), "{text}");
        assert!(
            text.contains("  note: sync: never") && text.contains("\n  dead letters 2, the last: 312 NO_ROUTE"),
            "{text}"
        );
    }
}
