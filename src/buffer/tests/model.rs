//! Random runs against a reference: a list of what was acknowledged, and what was settled. After any mixture of
//! appends, deliveries, kills, power cuts and clean restarts nothing acknowledged is missing, what is read is what was
//! written, and the ledger balances. One seed is one run; a failure prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::*;
use super::bench::{Bench, config};
use super::disk::{Dice, Faults};
use crate::units::ByteSize;

#[derive(Debug, Default)]
struct Reference {
    /// Bodies by offset, as they were appended; a number may be given again only if nobody was told of it.
    bodies: BTreeMap<u64, Vec<u8>>,
    acknowledged: u64,
    settled: BTreeSet<u64>,
}

impl Reference {
    fn check(&self, bench: &Bench, seed: u64) {
        let records = bench.read_all();
        let floor = bench.shared.stats().cursor.0;
        for record in &records {
            assert_eq!(Some(&record.body[..]), self.bodies.get(&record.offset.0).map(|b| &b[..]), "seed {seed}");
        }
        let read: BTreeSet<u64> = records.iter().map(|record| record.offset.0).collect();
        assert_eq!(read.len(), records.len(), "seed {seed}: read twice");
        for offset in self.bodies.range(floor..self.acknowledged).map(|(offset, _)| offset) {
            assert!(self.settled.contains(offset) || read.contains(offset), "seed {seed}: {offset} is missing");
        }
        for offset in self.bodies.range(..floor.min(self.acknowledged)).map(|(offset, _)| offset) {
            assert!(self.settled.contains(offset), "seed {seed}: {offset} was passed unsettled");
        }
        let ledger = bench.ledger();
        assert_eq!(ledger.dropped_damaged, 0, "seed {seed}");
        assert_eq!(bench.recovery.damaged, [], "seed {seed}");
        assert_eq!(ledger.buffered, read.len() as u64 + bench.settled_above_floor(), "seed {seed}");
    }
}

impl Bench {
    fn settled_above_floor(&self) -> u64 {
        let state = self.shared.state.lock();
        let floor = state.tracker.floor();
        let owed = (floor..state.next).filter(|offset| state.tracker.is_owed(*offset)).count() as u64;
        state.tracker.owed(state.next) - owed
    }
}

fn run(seed: u64, sync: SyncMode) {
    let mut dice = Dice(seed);
    let mut bench = Bench::new(Config { max_size: ByteSize(256 << 10), when_full: WhenFull::Block, sync, ..config() });
    let mut reference = Reference::default();
    for _ in 0..40 {
        match dice.roll(12) {
            0..=4 => append(&mut bench, &mut reference, &mut dice),
            5..=7 => settle(&mut bench, &mut reference, &mut dice),
            8 => bench.clock.pass(Duration::from_millis(dice.roll(1_500))),
            9 => bench.disk.faults(Faults { syncs: dice.roll(2) as usize, ..Faults::default() }),
            10 => {
                bench.disk.kill();
                if sync == SyncMode::Group && dice.roll(2) == 0 {
                    bench.disk.cut_power(&mut dice);
                }
                bench = reopen(bench, &mut reference, false);
                reference.check(&bench, seed);
            }
            _ => {
                bench = reopen(bench, &mut reference, true);
                reference.check(&bench, seed);
            }
        }
        if dice.roll(3) == 0 {
            bench.turn();
            reference.acknowledged = reference.acknowledged.max(bench.durable());
        }
    }
    bench.turn();
    reference.acknowledged = reference.acknowledged.max(bench.durable());
    reference.check(&bench, seed);
}

fn append(bench: &mut Bench, reference: &mut Reference, dice: &mut Dice) {
    for _ in 0..dice.roll(20) {
        let mut body = dice.roll(u64::MAX).to_le_bytes().to_vec();
        body.resize(8 + dice.roll(600) as usize, 1);
        if let Ok(offset) = bench.put(&body) {
            assert!(offset >= reference.acknowledged, "a number that was acknowledged is given again");
            reference.bodies.insert(offset, body);
        }
    }
    if dice.roll(2) == 0 {
        bench.log.commit();
        reference.acknowledged = reference.acknowledged.max(bench.durable());
    }
}

fn settle(bench: &mut Bench, reference: &mut Reference, dice: &mut Dice) {
    for record in bench.read_all().into_iter().take(dice.roll(40) as usize) {
        if dice.roll(5) > 0 {
            bench.settle([record.offset.0]);
            reference.settled.insert(record.offset.0);
        }
    }
}

fn reopen(bench: Bench, reference: &mut Reference, clean: bool) -> Bench {
    let bench = if clean { bench.close_and_reopen() } else { bench.reopen() };
    if clean {
        let next = bench.shared.stats().next.0;
        reference.acknowledged = reference.acknowledged.max(next);
    }
    bench
}

#[test]
fn random_runs_agree_with_the_reference() {
    for seed in 0..300 {
        run(seed, SyncMode::Group);
    }
}

#[test]
fn random_runs_without_power_cuts_agree_in_every_sync_mode() {
    for seed in 0..100 {
        run(seed, SyncMode::Interval(Duration::from_millis(300)));
        run(seed, SyncMode::Never);
    }
}
