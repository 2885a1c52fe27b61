//! The end of a life and the next start, in every way there is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::*;
use super::super::bench::{Bench, WINDOW, dir, try_open};
use super::super::disk::{Faults, SimDisk};
use super::run::{Run, Sink};

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Clean,
    Kill,
    PowerCut,
}

/// What the last life leaves to compare with.
struct Left {
    end: End,
    /// Everything below has to be there.
    safe: u64,
    unsaved: u64,
    /// The cursor in the files.
    saved: u64,
}

impl Run {
    /// Ends this life and begins the next one; all that is found is compared.
    pub(super) fn restart(mut self) -> Self {
        self.observe();
        let config = &self.plan.config;
        // Without a sync for each a power cut may leave damage: see [`Plan::damage`].
        let countable = config.sync == SyncMode::Group || config.when_full != WhenFull::DropNewest;
        let end = match self.dice.roll(3) {
            0 => End::Clean,
            1 if countable => End::PowerCut,
            _ => End::Kill,
        };
        if self.dice.roll(2) == 0 {
            self.bench.disk.capacity(None);
        }
        let left = self.left(end);
        self.show(|_| format!("{end:?}, safe below {}, {} unsaved", left.safe, left.unsaved));
        let Self { plan, mut dice, bench, mut reference, sink, mut now_ms, troubled, trouble_before, shown, .. } = self;
        drop(sink);
        let Bench { disk, clock, config, log, shared, .. } = bench;
        let left = match end {
            End::Clean => {
                log.finish();
                let stats = shared.stats();
                reference.pass(stats.cursor.0);
                let safe = left.safe.max(shared.mark.progress().done);
                Left { safe, unsaved: 0, ..left }
            }
            End::Kill => {
                disk.kill();
                left
            }
            End::PowerCut => {
                disk.cut_power(&mut dice);
                let away = dice.roll(20_000);
                now_ms += away;
                clock.reboot(Duration::from_millis(away));
                clock.synced(plan.good_clock);
                left
            }
        };
        drop(shared);
        if end == End::Clean {
            disk.faults(Faults::default());
        }
        let left = Left { saved: saved_cursor(&disk), ..left };
        disk.capacity(None);
        // An opening that fails half-way loses nothing either.
        if plan.failures && dice.roll(2) == 0 {
            disk.faults(Faults { after: Some(dice.roll(12) as usize), failing: 1, ..Faults::default() });
            drop(try_open(&disk, &clock, &config));
            disk.kill();
        }
        let bench = Bench::open(disk, Arc::clone(&clock), config);
        let sink = Sink::on(&bench);
        let trouble_before = trouble_before || troubled;
        let mut run = Self {
            plan,
            dice,
            bench,
            reference,
            sink,
            now_ms,
            staged_ms: None,
            troubled: false,
            trouble_before,
            shown,
        };
        run.show(|run| format!("{:?} from {}: {}", run.bench.recovery, left.saved, run.state()));
        run.find(&left, troubled);
        run.compare();
        run
    }

    fn left(&self, end: End) -> Left {
        // A power cut takes what was acknowledged without a sync (R1).
        let synced = self.bench.log.synced;
        let safe = self.reference.acknowledged;
        let failed = self.bench.shared.stats().failed.is_some();
        let safe = match self.plan.config.sync {
            SyncMode::Never if end == End::PowerCut => 0,
            SyncMode::Interval(_) | SyncMode::Never if failed => safe.min(synced),
            SyncMode::Interval(_) if end == End::PowerCut => safe.min(synced),
            _ => safe,
        };
        let unsaved = self.bench.shared.state.lock().tracker.unsaved();
        Left { end, safe, unsaved, saved: 0 }
    }

    /// What the next life knows, against what the last one left.
    fn find(&mut self, left: &Left, troubled: bool) {
        if left.end == End::PowerCut && self.plan.config.sync != SyncMode::Group {
            // What was not synced may be found as damage: in a closed segment, or before something that did reach the disk.
            self.reference.hit.extend(self.reference.records.range(left.safe..).map(|(offset, _)| *offset));
        }
        let repeated = self.reference.forget_above(left.saved);
        if left.end != End::PowerCut && !troubled {
            let most = left.unsaved + WINDOW as u64;
            assert!(repeated <= most, "R9: {repeated} are repeated, {most} at most");
        }
        if self.reference.hit.is_empty() {
            assert_eq!(self.bench.recovery.damaged, [], "nothing was damaged");
        }
        let there: BTreeSet<u64> = self.bench.read_all().iter().map(|record| record.offset.0).collect();
        let stats = self.bench.shared.stats();
        self.reference.prune(left.safe, &there, &stats.ledger);
        self.reference.floor = stats.cursor.0;
        self.reference.ledger = stats.ledger;
        self.reference.acknowledged = self.bench.durable();
    }
}

/// The cursor in the newest sound slot.
fn saved_cursor(disk: &SimDisk) -> u64 {
    let bytes = disk.read(&dir().join("cursors"));
    let slots = bytes.chunks(slots::SLOT).filter_map(slots::decode);
    let newest = slots.max_by_key(|(_, generation, _)| *generation);
    newest.and_then(|(_, _, payload)| cursor::Tracker::decode(payload)).map_or(0, |(tracker, _)| tracker.floor())
}
