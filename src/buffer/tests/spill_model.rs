//! Random runs with `sync: spill`, which the [`model`](super::model) knows too. These stay apart since they ask the audit at each start, which reads
//! all files. The reference is a list of what was acknowledged, and what was settled. After any mixture of
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
        for offset in self.bodies.range(floor.min(self.acknowledged)..self.acknowledged).map(|(offset, _)| offset) {
            assert!(self.settled.contains(offset) || read.contains(offset), "seed {seed}: {offset} is missing");
        }
        for offset in self.bodies.range(..floor.min(self.acknowledged)).map(|(offset, _)| offset) {
            assert!(self.settled.contains(offset), "seed {seed}: {offset} was passed unsettled");
        }
        let ledger = bench.ledger();
        assert_eq!(ledger.dropped_damaged, 0, "seed {seed}");
        assert_eq!(bench.recovery.damaged, [], "seed {seed}");
        let out_of_order = bench.shared.state.lock().tracker.settled_out_of_order();
        assert_eq!(ledger.buffered, read.len() as u64 + out_of_order, "seed {seed}");
        let audit = super::offline::audit(&bench.disk);
        assert!(audit.ok && audit.gap == 0, "seed {seed}: {audit:?}");
    }
}

fn run(seed: u64, sync: SyncMode) {
    let mut dice = Dice(seed);
    let mut bench = Bench::new(Config { max_size: ByteSize(256 << 10), when_full: WhenFull::Block, sync, ..config() });
    let mut reference = Reference::default();
    for _ in 0..40 {
        match dice.roll(13) {
            0..=4 => append(&mut bench, &mut reference, &mut dice),
            5..=7 => settle(&mut bench, &mut reference, &mut dice),
            8 => bench.clock.pass(Duration::from_millis(dice.roll(1_500))),
            9 => bench.disk.faults(Faults { syncs: dice.roll(2) as usize, ..Faults::default() }),
            // A sync that fails while the disk is full may cost what an interval acknowledged ahead of it (R1).
            10 if matches!(sync, SyncMode::Interval(_)) => {}
            10 => {
                // The disk is full, or soon, or has room again.
                let capacity = bench.disk.used() + dice.roll(5_000);
                bench.disk.capacity((dice.roll(2) == 0).then_some(capacity));
            }
            11 => {
                bench.disk.capacity(None);
                bench.disk.kill();
                if matches!(sync, SyncMode::Group | SyncMode::Spill(_)) && dice.roll(2) == 0 {
                    bench.disk.cut_power(&mut dice);
                }
                bench = reopen(bench, &mut reference, false);
                reference.check(&bench, seed);
            }
            _ => {
                bench.disk.capacity(None);
                bench = reopen(bench, &mut reference, true);
                reference.check(&bench, seed);
            }
        }
        if dice.roll(3) == 0 {
            bench.turn();
            reference.acknowledged = reference.acknowledged.max(bench.durable());
        }
    }
    bench.disk.capacity(None);
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
    if clean {
        let bench = bench.close_and_reopen();
        reference.acknowledged = reference.acknowledged.max(bench.shared.stats().next.0);
        return bench;
    }
    let bench = bench.reopen();
    // What nobody was told of may be gone; what is there counts from now on.
    let found: BTreeSet<u64> = bench.read_all().iter().map(|record| record.offset.0).collect();
    let acknowledged = reference.acknowledged;
    reference.bodies.retain(|offset, _| *offset < acknowledged || found.contains(offset));
    bench
}

#[test]
fn r01_random_runs_agree_where_confirmations_acknowledge() {
    for seed in 0..300 {
        run(seed, SyncMode::Spill(Duration::from_millis(1_000)));
    }
}
