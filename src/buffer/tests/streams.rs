//! `drain: live_first` on the disk that fails: two streams are delivered from one log, each in order, through kills and
//! power cuts, and what both have delivered is given back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::FutureExt;

use super::super::*;
use super::bench::{Bench, body, config};
use super::disk::Dice;
use crate::units::ByteSize;

/// As the bench opens the log.
const WINDOW: u64 = 8;

/// Reads what is there now of one stream.
fn read(bench: &Bench, backlog: bool, most: usize) -> Vec<Record> {
    let streams = bench.shared.streams(None);
    let mut reader = bench.reader();
    match (backlog, streams.backlog) {
        (true, None) => return Vec::new(),
        (true, Some((from, until))) => reader.seek_range(from, until),
        (false, _) => reader.seek(streams.live),
    }
    let mut records = Vec::new();
    while let Some(read) = reader.next(most - records.len(), 1 << 20).now_or_never() {
        records.extend(read.unwrap());
        if records.len() >= most {
            break;
        }
    }
    records
}

/// Everything that is acknowledged, and what became of it.
#[derive(Debug, Default)]
struct Reference {
    bodies: BTreeMap<u64, Vec<u8>>,
    acknowledged: u64,
    /// And not owed again since a crash.
    delivered: BTreeSet<u64>,
}

impl Reference {
    fn deliver(&mut self, bench: &mut Bench, backlog: bool, most: u64, seed: u64) {
        let records = read(bench, backlog, most as usize);
        assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "seed {seed}");
        for record in records {
            assert_eq!(self.bodies.get(&record.offset.0).map(Vec::as_slice), Some(&record.body[..]), "seed {seed}");
            assert!(self.delivered.insert(record.offset.0), "seed {seed}: {} comes twice", record.offset.0);
            bench.settle([record.offset.0]);
        }
        bench.turn();
        bench.ledger();
    }

    /// Answers how many are owed again.
    fn check(&mut self, bench: &Bench, seed: u64) -> u64 {
        let owed: BTreeSet<u64> = bench.read_all().iter().map(|record| record.offset.0).collect();
        for offset in self.bodies.range(..self.acknowledged).map(|(offset, _)| offset) {
            assert!(owed.contains(offset) || self.delivered.contains(offset), "seed {seed}: {offset} is missing");
        }
        assert_eq!(bench.recovery.damaged, [], "seed {seed}");
        assert_eq!(bench.ledger().dropped_damaged, 0, "seed {seed}");
        let (backlog, live) = (read(bench, true, usize::MAX), read(bench, false, usize::MAX));
        let both: Vec<u64> = backlog.iter().chain(&live).map(|record| record.offset.0).collect();
        let before = self.delivered.len();
        self.delivered.retain(|offset| !owed.contains(offset));
        assert_eq!(both, owed.into_iter().collect::<Vec<_>>(), "seed {seed}: the streams are all that is owed");
        (before - self.delivered.len()) as u64
    }
}

fn run(seed: u64, sync: SyncMode) {
    let mut dice = Dice(seed);
    let mut bench = Bench::new(Config { max_size: ByteSize(1 << 20), when_full: WhenFull::Block, sync, ..config() });
    let mut reference = Reference::default();
    for _ in 0..60 {
        bench.clock.pass(Duration::from_millis(dice.roll(200)));
        match dice.roll(12) {
            0..=3 => {
                for _ in 0..dice.roll(30) {
                    let mut body = dice.roll(u64::MAX).to_le_bytes().to_vec();
                    body.resize(8 + dice.roll(900) as usize, 1);
                    if let Ok(offset) = bench.put(&body) {
                        reference.bodies.insert(offset, body);
                    }
                }
                bench.turn();
                reference.acknowledged = bench.durable();
            }
            4..=5 => {
                bench.shared.streams(Some(WINDOW));
            }
            6..=7 => reference.deliver(&mut bench, false, dice.roll(WINDOW + 1), seed),
            8..=9 => reference.deliver(&mut bench, true, dice.roll(WINDOW + 1), seed),
            10 => {
                bench.disk.kill();
                let cut = dice.roll(2) == 0;
                if cut {
                    bench.disk.cut_power(&mut dice);
                }
                bench = bench.reopen();
                let again = reference.check(&bench, seed);
                assert!(cut || again <= WINDOW, "seed {seed}: {again} are sent again after a kill");
                // What nobody was told of may be gone; what is there counts from now on.
                let found: BTreeSet<u64> = bench.read_all().iter().map(|record| record.offset.0).collect();
                let acknowledged = reference.acknowledged;
                reference.bodies.retain(|offset, _| *offset < acknowledged || found.contains(offset));
            }
            _ => {
                bench = bench.close_and_reopen();
                assert_eq!(reference.check(&bench, seed), 0, "seed {seed}");
            }
        }
    }
    for _ in 0..2_000 {
        reference.deliver(&mut bench, false, WINDOW, seed);
        reference.deliver(&mut bench, true, WINDOW, seed);
        if bench.ledger().buffered == 0 {
            break;
        }
    }
    let stats = bench.shared.stats();
    assert_eq!((stats.ledger.buffered, stats.cursor), (0, stats.next), "seed {seed}");
    assert_eq!(bench.shared.streams(None).backlog, None, "seed {seed}: the streams have joined");
}

#[test]
fn r13_random_runs_of_two_streams_agree_with_the_reference() {
    for seed in 0..250 {
        run(seed, SyncMode::Group);
        run(seed, SyncMode::Spill(Duration::from_millis(300)));
    }
}

#[test]
fn r13_what_live_records_took_is_given_back_while_the_backlog_waits() {
    let mut bench = Bench::new(Config { max_size: ByteSize(256 << 10), ..config() });
    bench.put_all(0, 100);
    bench.shared.streams(Some(WINDOW));
    for n in 100..20_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.log.commit();
        bench.settle([n]);
        if n % 50 == 0 {
            bench.turn();
        }
    }
    bench.turn();
    let stats = bench.shared.stats();
    assert_eq!((stats.ledger.delivered, stats.ledger.buffered, stats.ledger.dropped_when_full), (19_900, 100, 0));
    assert!(stats.disk_bytes < 64 << 10, "{stats:?}");
    assert_eq!(stats.depth_bytes, 100 * 100);
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.recovery.damaged, [], "what was deleted is no damage");
    assert_eq!(read(&bench, true, usize::MAX).len(), 100);
    assert!(read(&bench, false, usize::MAX).len() <= WINDOW as usize);
}

#[test]
fn r13_a_limit_drops_the_backlog_first() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 200);
    bench.shared.streams(Some(WINDOW));
    bench.put_all(200, 700);
    let ledger = bench.ledger();
    assert!(ledger.dropped_when_full > 200, "{ledger:?}");
    assert_eq!(read(&bench, true, usize::MAX), []);
    let live = read(&bench, false, usize::MAX);
    assert_eq!(live.last().map(|record| record.offset.0), Some(699));
    assert_eq!(live.len() as u64, ledger.buffered);
}
