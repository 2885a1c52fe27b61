//! One run: its steps on the lanes of a link, and what holds for all of them together.

use std::sync::Arc;
use std::time::Duration;

use super::super::super::state::{Pressure, Verdict};
use super::super::super::*;
use super::super::bench::{Bench, HandClock, WINDOW};
use super::super::disk::{Dice, Faults, SimDisk};
use super::own::Own;
use super::plan::Plan;
use super::reference::{Fate, Kept};
use crate::clock::Clock;

/// A run under way.
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    pub(super) disk: SimDisk,
    pub(super) clock: Arc<HandClock>,
    /// In the order in which they are read.
    pub(super) lanes: Vec<Own>,
    pub(super) life: Life,
    /// Its steps are printed.
    pub(super) shown: bool,
}

/// What has happened so far, as far as it bears on what may be expected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// Milliseconds since the run began, as an onlooker counts them.
    pub(super) now_ms: u64,
    /// In this life of the process something failed that was to go well: the limits may be off by what was written twice, and
    /// the cursor by what was not saved.
    pub(super) troubled: bool,
    /// The same in an earlier life.
    pub(super) trouble_before: bool,
    /// In this life room was needed, so that what is kept may have gone before its time.
    pub(super) pressed: bool,
}

pub(super) fn run(seed: u64, shown: bool) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995);
    let plan = Plan::of(&mut dice);
    let (disk, clock) = (SimDisk::default(), HandClock::new());
    clock.synced(plan.good_clock);
    let lanes = plan.lanes.iter().map(|lane| Own::new(*lane, open(&disk, &clock, &plan, *lane))).collect();
    let mut run = Run { plan, dice, disk, clock, lanes, life: Life::default(), shown };
    run.share();
    run.show(|run| format!("{:?}", run.plan));
    for _ in 0..run.plan.steps {
        run = run.step();
    }
    run.disk.capacity(None);
    run.disk.faults(Faults::default());
    run.turn();
    run.turn();
    run.compare();
    run.restart().compare();
}

/// Opens a lane's log.
pub(super) fn open(disk: &SimDisk, clock: &Arc<HandClock>, plan: &Plan, lane: Lane) -> Bench {
    Bench::open_lane(disk.clone(), Arc::clone(clock), plan.config_of(lane), plan.window())
}

impl Run {
    /// The lanes are those of one link.
    pub(super) fn share(&self) {
        quota::share(self.lanes.iter().map(|own| (own.lane, Arc::clone(&own.bench.shared))), WINDOW);
    }

    fn step(mut self) -> Self {
        let at = self.dice.roll(self.lanes.len() as u64) as usize;
        let kind = self.dice.roll(26);
        self.show(|run| format!("step {kind} in {:?}: {}", run.lanes[at].lane, run.lanes[at].state()));
        match kind {
            0..=5 => self.append(at),
            6 => self.turn(),
            7..=8 => self.turn_one(at),
            9..=11 => self.read(at),
            12..=14 => self.confirm(at),
            15 => self.lanes.iter_mut().for_each(Own::reconnect),
            16 => self.pass_time(),
            17 if self.plan.full => self.fill_or_free(),
            18 if self.plan.failures => self.fail_soon(),
            19 if self.plan.damage => self.lanes[at].damage(&mut self.dice),
            20 => self.compare(),
            21..=22 => return self.restart(),
            23 | 24 => self.lanes[at].replay(&mut self.dice, &self.plan, &self.life),
            _ => {}
        }
        self.observe();
        self
    }

    pub(super) fn show(&self, text: impl FnOnce(&Self) -> String) {
        if self.shown {
            eprintln!("{}", text(self));
        }
    }

    fn append(&mut self, at: usize) {
        for _ in 0..1 + self.dice.roll(12) {
            let mut body = self.dice.roll(u64::MAX).to_le_bytes().to_vec();
            body.resize(8 + self.dice.roll(self.plan.body_max) as usize, 1);
            let now = self.clock.moment();
            let expires = (self.dice.roll(4) == 0).then(|| WallMs(now.wall.0 + self.dice.roll(5_000)));
            let verdict = self.lanes[at].bench.shared.judge(body.len());
            self.life.pressed |= !matches!(verdict, Verdict::Granted(_));
            match verdict {
                Verdict::Granted(need) => {
                    let offset = self.lanes[at].bench.shared.append(need, &[&body], expires).0;
                    let at_ms = self.lanes[at].stamped_ms(&self.plan, self.life.now_ms);
                    let kept = Kept { body, expires, wall: now.wall, at_ms, fate: Fate::Owed, may_go: false };
                    self.lanes[at].reference.append(offset, kept);
                }
                Verdict::DroppedNewest => {
                    assert!(self.plan.drops_unnumbered(), "dropped as the newest");
                    self.lanes[at].reference.unnumbered += 1;
                }
                Verdict::Refused(Refused::Full) => {
                    assert_ne!(self.plan.config.when_full, WhenFull::DropNewest);
                }
                Verdict::Refused(Refused::Failed(_)) => assert!(self.life.troubled, "it failed without a failure"),
                Verdict::Refused(Refused::Closed) => panic!("it is open"),
                // A writer is behind.
                Verdict::Wait => self.turn(),
            }
            self.observe();
        }
        if self.dice.roll(2) == 0 {
            self.lanes[at].commit(&self.plan);
            self.observe();
        }
    }

    /// One turn of each lane's writer.
    fn turn(&mut self) {
        (0..self.lanes.len()).for_each(|at| self.turn_one(at));
    }

    fn turn_one(&mut self, at: usize) {
        self.lanes[at].turn(&self.plan);
        self.observe();
        if self.life.troubled {
            return;
        }
        self.lanes[at].check_turn(&self.plan);
        if self.life.trouble_before {
            return;
        }
        let on_disk: u64 = self.disk.segments().iter().map(|path| self.disk.len(path)).sum();
        assert!(on_disk <= self.plan.config.max_size.0, "{on_disk} bytes on disk: more than max_size");
    }

    fn in_flight(&self) -> usize {
        self.lanes.iter().map(|own| own.sink.in_flight.len()).sum()
    }

    /// Confirmations that no cursor file has.
    pub(super) fn unsaved(&self) -> u64 {
        self.lanes.iter().map(|own| own.bench.shared.state.lock().tracker.unsaved()).sum()
    }

    fn read(&mut self, at: usize) {
        let (records_max, bytes_max) = (1 + self.dice.roll(20) as usize, 1 + self.dice.roll(8_000) as usize);
        let room = WINDOW.saturating_sub(self.in_flight()).min(records_max);
        if room > 0 {
            self.lanes[at].read(room, bytes_max, &self.plan, &self.life);
        }
        if !self.life.troubled {
            let open = self.unsaved() as usize + self.in_flight();
            assert!(open < 2 * WINDOW, "R9: {open} would be sent again after a kill");
        }
    }

    fn confirm(&mut self, at: usize) {
        for _ in 0..1 + self.dice.roll(WINDOW as u64) {
            if !self.lanes[at].confirm(&mut self.dice) {
                return;
            }
            self.observe();
        }
    }

    fn pass_time(&mut self) {
        self.turn();
        let ms = self.dice.roll(3_000);
        self.life.now_ms += ms;
        self.clock.pass(Duration::from_millis(ms));
        if !self.plan.good_clock && self.dice.roll(3) == 0 {
            let step = self.dice.roll(200_000).cast_signed() - 100_000;
            self.clock.step_wall(step);
        }
    }

    fn fill_or_free(&mut self) {
        let more = self.dice.roll(5_000);
        let capacity = (self.dice.roll(2) == 0).then(|| self.disk.used() + more);
        self.disk.capacity(capacity);
    }

    fn fail_soon(&mut self) {
        self.life.troubled = true;
        let faults = match self.dice.roll(3) {
            0 => Faults { syncs: 1 + self.dice.roll(2) as usize, ..Faults::default() },
            _ => Faults {
                after: Some(self.dice.roll(9) as usize),
                failing: 1 + self.dice.roll(3) as usize,
                ..Faults::default()
            },
        };
        self.show(|_| format!("{faults:?}"));
        self.disk.faults(faults);
    }

    /// Looks at the lanes: what was dropped or deleted, was it for a reason?
    pub(super) fn observe(&mut self) {
        let short = self.lanes.iter().any(|own| own.bench.shared.state.lock().pressure != Pressure::None);
        self.life.pressed |= short || self.plan.may_be_short();
        for own in &mut self.lanes {
            own.observe(&self.plan, &self.life);
        }
    }

    /// Everything that can be read, and the ledgers, against the references.
    pub(super) fn compare(&mut self) {
        self.observe();
        for own in &mut self.lanes {
            own.compare(&self.plan, &self.life);
        }
    }
}
