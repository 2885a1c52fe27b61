//! The end of a life and the next start, in every way there is.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::*;
use super::super::bench::{Bench, WINDOW, try_open};
use super::super::disk::{Faults, SimDisk};
use super::own::Own;
use super::plan::Plan;
use super::reference::Reference;
use super::run::{Life, Run, open};

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Clean,
    Kill,
    PowerCut,
}

/// What the last life leaves of a lane to compare with.
struct Left {
    lane: Lane,
    reference: Reference,
    /// Everything below has to be there.
    safe: u64,
}

impl Run {
    /// Ends this life and begins the next one; all that is found is compared.
    pub(super) fn restart(mut self) -> Self {
        self.observe();
        // Without a sync for each a power cut may leave damage: see [`Plan::damage`].
        let countable = !self.plan.acknowledges_ahead() || !self.plan.drops_unnumbered();
        let end = match self.dice.roll(3) {
            0 => End::Clean,
            1 if countable => End::PowerCut,
            _ => End::Kill,
        };
        if self.dice.roll(2) == 0 {
            self.disk.capacity(None);
        }
        let unsaved = if end == End::Clean { 0 } else { self.unsaved() };
        self.show(|_| format!("{end:?}, {unsaved} unsaved"));
        let Self { plan, mut dice, disk, clock, lanes, mut life, shown } = self;
        let left: Vec<Left> = lanes.into_iter().map(|own| own.end(end, &plan)).collect();
        match end {
            End::Clean => disk.faults(Faults::default()),
            End::Kill => disk.kill(),
            End::PowerCut => {
                disk.cut_power(&mut dice);
                let away = dice.roll(20_000);
                life.now_ms += away;
                clock.reboot(Duration::from_millis(away));
                clock.synced(plan.good_clock);
            }
        }
        let saved: Vec<cursor::Tracker> =
            left.iter().map(|left| saved_cursor(&disk, &plan.config_of(left.lane).dir)).collect();
        disk.capacity(None);
        // An opening that fails half-way loses nothing either.
        if plan.failures && dice.roll(2) == 0 {
            disk.faults(Faults { after: Some(dice.roll(12) as usize), failing: 1, ..Faults::default() });
            let lane = plan.lanes[dice.roll(plan.lanes.len() as u64) as usize];
            drop(try_open(&disk, &clock, &plan.config_of(lane), plan.window()));
            disk.kill();
        }
        let before = life;
        let life = Life {
            troubled: false,
            trouble_before: before.trouble_before || before.troubled,
            pressed: false,
            ..before
        };
        let mut repeated = 0;
        let mut lanes = Vec::new();
        for (left, saved) in left.into_iter().zip(saved) {
            let bench = open(&disk, &clock, &plan, left.lane);
            let (own, again) = begin(bench, left, &saved, end, &plan, before.troubled);
            if shown {
                eprintln!("{:?} from {}: {}", own.bench.recovery, saved.floor(), own.state());
            }
            repeated += again;
            lanes.push(own);
        }
        if end != End::PowerCut && !before.troubled {
            let most = unsaved + WINDOW as u64;
            assert!(repeated <= most, "R9: {repeated} are repeated, {most} at most");
        }
        let mut run = Self { plan, dice, disk, clock: Arc::clone(&clock), lanes, life, shown };
        run.share();
        run.compare();
        run
    }
}

impl Own {
    fn end(self, end: End, plan: &Plan) -> Left {
        let Self { lane, bench, mut reference, sink, .. } = self;
        drop(sink);
        // A power cut takes what was acknowledged without a sync (R1).
        let synced = bench.log.synced;
        let failed = bench.shared.stats().failed.is_some();
        let ahead = plan.acknowledges_ahead();
        let safe = match plan.config.sync {
            SyncMode::Never if end == End::PowerCut => 0,
            _ if ahead && (failed || end == End::PowerCut) => reference.acknowledged.min(synced),
            _ => reference.acknowledged,
        };
        if end != End::Clean {
            return Left { lane, reference, safe };
        }
        let Bench { log, shared, .. } = bench;
        log.finish();
        let durable = shared.mark.progress().done;
        if plan.config.when_full == WhenFull::DropNewest && plan.full {
            // Or what was too old: it is as gone.
            let state = shared.state.lock();
            let _some = reference.take_no_room(durable, |offset| state.tracker.is_owed(offset));
        }
        reference.pass(shared.stats().cursor.0);
        Left { lane, reference, safe: safe.max(durable) }
    }
}

/// The next life of a lane, and how much of what the remote had confirmed is owed again: what it knows, against what the last
/// one left.
fn begin(bench: Bench, left: Left, saved: &cursor::Tracker, end: End, plan: &Plan, troubled: bool) -> (Own, u64) {
    let Left { lane, mut reference, safe } = left;
    if end == End::PowerCut && plan.acknowledges_ahead() {
        // What was not synced may be found as damage: in a closed segment, or before something that did reach the disk.
        reference.hit.extend(reference.records.range(safe..).map(|(offset, _)| *offset));
    }
    let (repeated, forgotten) = reference.forget_unsaved(saved, plan.spills());
    assert!(forgotten == 0 || troubled, "{forgotten} were acknowledged, dropped and forgotten");
    if reference.hit.is_empty() {
        assert_eq!(bench.recovery.damaged, [], "nothing was damaged");
    }
    let there: BTreeSet<u64> = bench.read_all().iter().map(|record| record.offset.0).collect();
    let stats = bench.shared.stats();
    reference.prune(safe, &there, &stats.ledger);
    assert!(stats.ledger.replayed <= reference.replayed, "{:?}", stats.ledger);
    assert!(end != End::Clean || troubled || stats.ledger.replayed == reference.replayed, "{:?}", stats.ledger);
    reference.replayed = stats.ledger.replayed;
    reference.floor = stats.cursor.0;
    reference.ledger = stats.ledger;
    reference.acknowledged = bench.durable();
    (Own::again(lane, bench, reference), repeated)
}

/// The cursor in the newest sound slot.
fn saved_cursor(disk: &SimDisk, dir: &Path) -> cursor::Tracker {
    let bytes = disk.read(&dir.join("cursors"));
    let slots = bytes.chunks(slots::SLOT).filter_map(slots::decode);
    let newest = slots.max_by_key(|(_, generation, _)| *generation);
    newest
        .and_then(|(_, _, payload)| cursor::Tracker::decode(payload))
        .map_or_else(Default::default, |(saved, _)| saved)
}
