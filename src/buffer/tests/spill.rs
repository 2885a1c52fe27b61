//! `sync: spill`: what the remote confirms in time never touches the disk, and is counted all the same; what it does not is
//! as safe as ever.

use std::time::Duration;

use super::super::*;
use super::bench::{Bench, body, config, dir};
use super::disk::Dice;
use crate::units::ByteSize;

const AFTER: Duration = Duration::from_secs(2);

fn spilling() -> Bench {
    Bench::new(Config { sync: SyncMode::Spill(AFTER), ..config() })
}

fn roomy() -> Bench {
    Bench::new(Config { sync: SyncMode::Spill(AFTER), max_size: ByteSize(64 << 20), ..config() })
}

fn put(bench: &mut Bench, from: u64, to: u64) {
    for n in from..to {
        assert_eq!(bench.put(&body(n)).unwrap(), n);
    }
    bench.turn();
}

/// Reads and confirms everything, as a link in good health does.
fn deliver(bench: &mut Bench) -> Vec<u64> {
    let read = bench.offsets();
    bench.settle(read.clone());
    bench.turn();
    read
}

fn segment_calls(bench: &Bench) -> Vec<String> {
    bench.disk.calls().into_iter().filter(|call| call.contains(".seg")).collect()
}

#[test]
fn r01_what_is_confirmed_in_time_is_acknowledged_and_never_written() {
    let mut bench = spilling();
    bench.disk.calls();
    for round in 0..50 {
        put(&mut bench, round * 4, round * 4 + 4);
        assert_eq!(bench.durable(), round * 4, "neither confirmed nor written: not acknowledged");
        bench.clock.pass(AFTER - Duration::from_millis(1));
        bench.turn();
        assert_eq!(bench.durable(), round * 4);
        assert_eq!(deliver(&mut bench), (round * 4..round * 4 + 4).collect::<Vec<_>>());
        assert_eq!(bench.durable(), round * 4 + 4, "its confirmation acknowledges");
    }
    assert_eq!(segment_calls(&bench), Vec::<String>::new());
    assert_eq!(bench.ledger(), Ledger { accepted: 200, delivered: 200, ..Ledger::default() });
}

#[test]
fn r01_what_is_not_confirmed_in_time_is_written_synced_and_only_then_acknowledged() {
    let mut bench = spilling();
    put(&mut bench, 0, 10);
    bench.settle(0..4);
    bench.turn();
    assert_eq!(bench.durable(), 4);
    bench.disk.calls();
    bench.clock.pass(AFTER);
    bench.turn();
    assert_eq!(bench.durable(), 10);
    let calls = bench.disk.calls();
    let at = |what: &str| calls.iter().position(|call| call == what).unwrap_or_else(|| panic!("{what}: {calls:?}"));
    assert!(at("sync cursors") < at("write 00000000000000000000.seg"), "{calls:?}");
    assert!(at("write 00000000000000000000.seg") < at("sync 00000000000000000000.seg"), "{calls:?}");
    let mut dice = Dice(1);
    bench.disk.cut_power(&mut dice);
    let bench = bench.reopen();
    assert_eq!(bench.recovery.damaged, []);
    let records = bench.read_all();
    assert_eq!(records.iter().map(|record| record.offset.0).collect::<Vec<_>>(), (4..10).collect::<Vec<_>>());
    assert_eq!(records[5].body, body(9));
    let ledger = bench.ledger();
    assert_eq!((ledger.accepted, ledger.delivered, ledger.buffered), (10, 4, 6));
}

#[test]
fn the_remote_sees_records_before_they_are_durable_only_with_spill() {
    for (sync, seen) in [(SyncMode::Spill(AFTER), 3), (SyncMode::Group, 0), (SyncMode::Interval(AFTER), 0)] {
        let bench = Bench::new(Config { sync, ..config() });
        (0..3).for_each(|n| assert!(bench.put(&body(n)).is_ok()));
        assert_eq!(bench.offsets().len(), seen, "{sync:?}");
    }
}

#[test]
fn during_an_outage_publishers_wait_a_tenth_and_with_its_end_the_disk_is_left_alone_again() {
    let mut bench = spilling();
    put(&mut bench, 0, 1);
    bench.clock.pass(AFTER);
    bench.turn();
    assert_eq!(bench.durable(), 1);
    put(&mut bench, 1, 2);
    bench.clock.pass(AFTER / 10);
    bench.turn();
    assert_eq!(bench.durable(), 2, "the remote is known to be behind");
    assert_eq!(deliver(&mut bench), [0, 1]);
    segment_calls(&bench);
    put(&mut bench, 2, 3);
    bench.clock.pass(AFTER / 2);
    bench.turn();
    assert_eq!((bench.durable(), deliver(&mut bench)), (2, vec![2]));
    assert_eq!(segment_calls(&bench), Vec::<String>::new());
}

#[test]
fn r07_a_kill_forgets_nothing_of_the_ledger_that_a_publisher_was_told_of() {
    let mut bench = spilling();
    let id = bench.log.id();
    put(&mut bench, 0, 30);
    bench.settle(0..20);
    bench.turn();
    assert_eq!(bench.durable(), 20);
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.log.id(), id);
    assert_eq!(bench.recovery, Recovery::default());
    // The other ten were promised to nobody, and are in no sum.
    assert_eq!(bench.ledger(), Ledger { accepted: 20, delivered: 20, ..Ledger::default() });
    let next = bench.shared.stats().next.0;
    assert!(next >= 30, "their numbers have been seen by the remote and are not given again: {next}");
    assert_eq!(bench.put(&body(next)).unwrap(), next);
}

#[test]
fn numbers_seen_by_the_remote_are_not_given_again_by_another_mode() {
    let mut bench = spilling();
    put(&mut bench, 0, 30);
    assert_eq!(bench.offsets().len(), 30);
    bench.disk.kill();
    bench.config.sync = SyncMode::Group;
    let mut bench = bench.reopen();
    let next = bench.shared.stats().next.0;
    assert!(next >= 30, "{next}");
    bench.put(&body(next)).unwrap();
    bench.turn();
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.shared.stats().next.0, next + 1, "a log of this mode shows only what is durable");
    assert_eq!(bench.offsets(), [next]);
}

#[test]
fn r09_a_power_cut_forgets_confirmations_and_repeats_nothing_that_was_never_written() {
    let mut bench = spilling();
    put(&mut bench, 0, 40);
    deliver(&mut bench);
    for seed in 0..20 {
        bench.disk.cut_power(&mut Dice(seed));
        bench = bench.reopen();
        assert_eq!((bench.recovery.damaged.len(), bench.offsets().len()), (0, 0), "seed {seed}");
        let ledger = bench.ledger();
        assert!(ledger.accepted == ledger.delivered && ledger.delivered <= 40, "seed {seed}: {ledger:?}");
    }
}

#[test]
fn the_cursor_of_a_healthy_link_is_synced_each_minute_and_of_one_with_a_backlog_each_second() {
    let syncs = |bench: &mut Bench, seconds: u64| {
        bench.disk.calls();
        for _ in 0..seconds {
            let next = bench.shared.stats().next.0;
            put(bench, next, next + 1);
            let oldest = bench.shared.stats().cursor.0;
            bench.settle([oldest]);
            bench.clock.pass(Duration::from_secs(1));
            bench.turn();
        }
        bench.disk.calls().iter().filter(|call| *call == "sync cursors").count()
    };
    let mut bench = spilling();
    bench.clock.pass(Duration::from_secs(60));
    assert!((2..=3).contains(&syncs(&mut bench, 120)));
    let next = bench.shared.stats().next.0;
    put(&mut bench, next, next + 40);
    bench.clock.pass(AFTER);
    bench.turn();
    assert!(syncs(&mut bench, 20) >= 20);
}

#[test]
fn at_the_end_what_is_not_confirmed_is_written() {
    let mut bench = spilling();
    put(&mut bench, 0, 10);
    bench.settle(0..3);
    let bench = bench.close_and_reopen();
    assert_eq!(bench.recovery, Recovery { buffered: 7, ..Recovery::default() });
    assert_eq!(bench.offsets(), (3..10).collect::<Vec<_>>());
    assert_eq!(bench.shared.stats().next.0, 10, "closed in good order: no number is left out");
    assert_eq!(bench.ledger(), Ledger { accepted: 10, delivered: 3, buffered: 7, ..Ledger::default() });
}

#[test]
fn a_stop_that_hurries_waits_for_no_remote() {
    let mut bench = spilling();
    put(&mut bench, 0, 3);
    assert_eq!(bench.durable(), 0);
    bench.shared.hurry();
    bench.turn();
    assert_eq!(bench.durable(), 3);
    put(&mut bench, 3, 4);
    assert_eq!(bench.durable(), 4);
}

#[test]
fn memory_is_bounded_what_is_too_much_is_written_at_once() {
    let mut bench = spilling();
    let limit = bench.shared.limits.staged_bytes;
    for n in 0..400 {
        bench.put_patiently(&body(n)).unwrap();
        assert!(bench.shared.state.lock().staged_bytes() <= limit);
    }
    assert!(bench.durable() > 300, "{}", bench.durable());
    assert!(bench.disk.used() > 100 * 300);
    assert_eq!(deliver(&mut bench), (0..400).collect::<Vec<_>>());
}

#[test]
fn numbers_are_reserved_before_the_remote_sees_them() {
    let mut bench = roomy();
    let mut next = 0;
    while next < bench.log.identity.reserved + 500 {
        (0..250).for_each(|n| assert!(bench.put(&body(next + n)).is_ok()));
        next += 250;
        if next < 40_000 {
            deliver(&mut bench);
        } else {
            // The writer is busy elsewhere: nothing beyond what is reserved is shown.
            bench.settle(bench.offsets());
        }
    }
    assert_eq!(bench.shared.stats().cursor.0, bench.log.identity.reserved);
    bench.turn();
    assert_eq!(deliver(&mut bench).last(), Some(&(next - 1)));
    assert_eq!(bench.ledger(), Ledger { accepted: next, delivered: next, ..Ledger::default() });
}

#[test]
fn numbers_that_were_never_written_are_no_damage_where_the_cursor_is_lost() {
    let mut bench = spilling();
    for round in 0..3 {
        deliver(&mut bench);
        let next = bench.shared.stats().next.0;
        put(&mut bench, next, next + 20);
        bench.settle(next..next + 15 + round);
        bench.clock.pass(AFTER);
        bench.turn();
    }
    assert_eq!(bench.offsets(), [57, 58, 59]);
    bench.disk.kill();
    bench.disk.change(&dir().join("cursors"), |bytes| bytes.fill(0xff));
    let bench = bench.reopen();
    assert_eq!(bench.recovery.damaged, []);
    assert_eq!(bench.offsets(), (15..20).chain(36..40).chain(57..60).collect::<Vec<_>>());
    assert_eq!(bench.ledger().buffered, 12);
}

#[test]
fn the_depth_counts_what_is_staged_and_what_is_written() {
    let mut bench = roomy();
    put(&mut bench, 0, 1_000);
    bench.settle(0..990);
    bench.clock.pass(AFTER);
    bench.turn();
    put(&mut bench, 1_000, 1_005);
    assert_eq!(bench.offsets().len(), 15);
    assert_eq!(bench.shared.stats().depth_bytes, 15 * 100);
    assert_eq!(bench.ledger().buffered, 15);
}

#[test]
fn a_failed_sync_of_what_was_late_is_written_once_more() {
    let mut bench = spilling();
    put(&mut bench, 0, 10);
    bench.disk.faults(super::disk::Faults { syncs: 1, ..Default::default() });
    bench.clock.pass(AFTER);
    bench.turn();
    assert_eq!(bench.durable(), 10);
    bench.disk.cut_power(&mut Dice(3));
    let bench = bench.reopen();
    assert_eq!(bench.offsets(), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_stops_no_link_that_keeps_up_and_holds_what_is_late() {
    let mut bench = spilling();
    put(&mut bench, 0, 5);
    bench.disk.capacity(Some(bench.disk.used()));
    deliver(&mut bench);
    assert_eq!(bench.durable(), 5);
    put(&mut bench, 5, 10);
    bench.clock.pass(AFTER);
    bench.turn();
    assert_eq!(bench.durable(), 5, "neither confirmed nor on disk");
    bench.settle(5..8);
    bench.turn();
    assert_eq!(bench.durable(), 8);
    bench.disk.capacity(None);
    bench.turn();
    assert_eq!((bench.durable(), bench.offsets()), (10, vec![8, 9]));
}
