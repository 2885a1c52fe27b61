//! The gateway as the status page shows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Link, Orphan, Parts, Shared};
use crate::admin::{self, CommandError};
use crate::broker::{self, Trouble};
use crate::buffer::{Lanes, Ledger, SyncMode};
use crate::clock::Moment;
use crate::router::Counts;
use crate::telemetry::board::{BrokerStatus, HalfStatus, LinkState, LinkStatus, RouteStatus, Status};
use crate::units::ByteSize;

impl admin::Control for Shared {
    fn status(&self) -> Status {
        let now = self.clock.moment();
        let parts = self.parts();
        let links = parts.links.iter().map(|link| link.status(now));
        Status {
            site: self.site.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ms: self.started.0,
            ready: self.ready.load(Ordering::Acquire) && !self.is_stopping() && !self.has_store_failed(),
            phase: if self.is_stopping() { "stopping" } else { "running" }.to_owned(),
            links: links.chain(parts.orphans.iter().map(|orphan| orphan.status(now))).collect(),
            replays: self.replays.running(),
            broker: self.broker_status(&parts),
            admin: parts.admin.map(|address| address.to_string()),
            loops_stopped: self.hub.loops_stopped(),
            copies_dropped: self.hub.copies_dropped(),
            unrouted: self.hub.unrouted(),
            routes: self.route_status(),
            reload: self.reloads.lock().clone(),
            memory: self.hub.memory().snapshot(),
        }
    }

    fn command(self: Arc<Self>, name: String, arguments: Value) -> BoxFuture<'static, Result<Value, CommandError>> {
        Box::pin(async move { self.obey(&name, arguments).await })
    }
}

impl Shared {
    /// A store that only waits for room goes on by itself: not ready is who needs a restart.
    fn has_store_failed(&self) -> bool {
        matches!(self.broker.store_trouble(), Some(Trouble::Failed(_)))
    }

    fn route_status(&self) -> Vec<RouteStatus> {
        let counted = self.hub.route_counts().into_iter().filter(|(_, counts)| *counts != Counts::default());
        let shown = |(name, Counts { filtered, suppressed, failed }): (Arc<str>, Counts)| RouteStatus {
            name: name.to_string(),
            filtered,
            suppressed,
            failed,
        };
        counted.map(shown).collect()
    }

    fn broker_status(&self, parts: &Parts) -> BrokerStatus {
        let figures = self.broker.figures();
        let mut counted = self.broker_board.snapshot();
        match self.hub.bad_topics() {
            0 => {}
            bad => drop(counted.dropped.insert("bad_topic".to_owned(), bad)),
        }
        BrokerStatus {
            listeners: parts.listeners.iter().map(broker::Listening::status).collect(),
            reload_errors: self.broker.reload_errors(),
            sessions_offline: figures.sessions_offline,
            owed: figures.owed,
            retained: figures.retained,
            store_error: self.broker.store_trouble().map(|trouble| trouble.to_string()),
            ..counted
        }
    }
}

impl Link {
    pub(super) fn status(&self, now: Moment) -> LinkStatus {
        let sink = self.sink.as_ref().map(|board| board.snapshot());
        let source = self.source.as_ref().map(|board| board.snapshot());
        let mut status = LinkStatus {
            name: self.config.id.to_string(),
            kind: self.config.kind.name().to_owned(),
            note: other_promise(self.config.buffer.sync),
            balanced: true,
            ..LinkStatus::default()
        };
        if let Some(lanes) = &self.lanes {
            fill_from_lanes(&mut status, lanes, now);
            status.time_left_ms = sink.as_ref().and_then(|half| time_left_ms(status.depth, half.rate));
        }
        if let Some(why) = &self.failed {
            status.state = LinkState::BufferFailed;
            status.note = Some(format!("{why}; its messages are refused until a reload or a restart can open it"));
        }
        let failed = status.state == LinkState::BufferFailed;
        let states = [&sink, &source].into_iter().flatten().map(|half: &HalfStatus| half.state);
        let worst = states.max_by_key(|state| severity(*state)).unwrap_or_default();
        status.state = if failed { LinkState::BufferFailed } else { worst };
        (status.sink, status.source) = (sink, source);
        status
    }
}

impl Orphan {
    fn status(&self, now: Moment) -> LinkStatus {
        let mut status = LinkStatus {
            name: self.name.clone(),
            kind: "orphaned".to_owned(),
            state: LinkState::Paused,
            note: Some("routes.yaml has no such link; its data is kept".to_owned()),
            ..LinkStatus::default()
        };
        match &self.lanes {
            Ok(lanes) => fill_from_lanes(&mut status, lanes, now),
            Err(error) => {
                status.state = LinkState::BufferFailed;
                status.balanced = true;
                status.note = Some(format!(
                    "routes.yaml has no such link; its data is kept and cannot be opened, so what it holds is not known: {error}"
                ));
            }
        }
        status
    }
}

/// The sums over the link's lanes; the depth of each where there are several.
fn fill_from_lanes(status: &mut LinkStatus, lanes: &Lanes, now: Moment) {
    let age = |oldest: Moment| u64::try_from(now.since(oldest).as_millis()).unwrap_or(u64::MAX);
    let mut sum = Ledger::default();
    status.balanced = true;
    for (lane, buffer) in lanes.iter() {
        let stats = buffer.stats();
        sum = sum.plus(&stats.ledger);
        status.depth_bytes += stats.depth_bytes;
        status.disk_bytes += stats.disk_bytes;
        status.kept_bytes += stats.kept_bytes;
        status.oldest_age_ms = status.oldest_age_ms.max(stats.oldest.map(age));
        status.balanced &= stats.ledger.balances();
        status.dead_letters += buffer.dead_letters().len();
        status.put_aside += buffer.put_aside();
        if lanes.iter().count() > 1 {
            status.lanes.insert(lane.name().to_owned(), stats.ledger.buffered);
        }
        if let Some(reason) = stats.cursor_error {
            status.note = Some(format!(
                "the cursor and the ledger cannot be saved, so records would be sent again after a crash: {reason}"
            ));
        } else if stats.stuck_bytes > 0 {
            let bytes = ByteSize(stats.stuck_bytes);
            status.note = Some(format!("delivered segments cannot be deleted ({bytes}); it is tried again"));
        }
        if let Some(reason) = stats.failed {
            status.state = LinkState::BufferFailed;
            status.note = Some(format!("the buffer failed: {reason}"));
        }
    }
    status.depth = sum.buffered;
    status.ledger = by_name(&sum);
}

fn by_name(ledger: &Ledger) -> BTreeMap<String, u64> {
    let figures = [
        ("accepted", ledger.accepted),
        ("delivered", ledger.delivered),
        ("buffered", ledger.buffered),
        ("dropped_when_full", ledger.dropped_when_full),
        ("dropped_age", ledger.dropped_age),
        ("dropped_damaged", ledger.dropped_damaged),
        ("dropped_min_free", ledger.dropped_min_free),
        ("expired", ledger.expired),
        ("dead_lettered", ledger.dead_lettered),
        ("confirmed_after_drop", ledger.confirmed_after_drop),
        ("replayed", ledger.replayed),
    ];
    figures.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// R1: `status` says where an acknowledgement is something else than a sync.
fn other_promise(sync: SyncMode) -> Option<String> {
    match sync {
        SyncMode::Group => None,
        SyncMode::Spill(after) => Some(format!(
            "sync: spill: what the remote confirms within {} is not written to disk",
            crate::units::show_duration(after)
        )),
        SyncMode::Interval(every) => Some(format!(
            "sync: {}: a power cut may lose what was acknowledged in the last interval",
            crate::units::show_duration(every)
        )),
        SyncMode::Never => Some("sync: never: a power cut may lose what was acknowledged".to_owned()),
    }
}

/// At the present rate, until nothing is left; unknown while nothing moves.
fn time_left_ms(depth: u64, rate: f64) -> Option<u64> {
    #[expect(clippy::cast_precision_loss, reason = "an estimate for people to read")]
    let seconds = depth as f64 / rate;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be finite and positive")]
    (rate > 0.0 && seconds.is_finite()).then_some((seconds * 1_000.0) as u64)
}

/// Which of two halves' states stands for the link.
const fn severity(state: LinkState) -> u8 {
    match state {
        LinkState::Online => 0,
        LinkState::Connecting => 1,
        LinkState::Paused => 2,
        LinkState::Blocked => 3,
        LinkState::Stalled => 4,
        LinkState::BackingOff => 5,
        LinkState::Misconfigured => 6,
        LinkState::DeadLettersFull => 7,
        LinkState::BufferFailed => 8,
    }
}
