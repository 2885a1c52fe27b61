//! What the operator's limits do, each drop counted.

use std::time::Duration;

use futures_util::FutureExt;

use super::super::state::{Pressure, Verdict};
use super::super::*;
use super::bench::{Bench, HandClock, WINDOW, body, config};
use crate::clock::Clock;
use crate::units::ByteSize;

fn fill(bench: &mut Bench) -> u64 {
    let mut n = 0;
    while bench.put_patiently(&body(n)).is_ok() {
        bench.turn();
        n += 1;
        assert!(n < 10_000);
    }
    n
}

#[test]
fn r02_drop_oldest_gives_up_the_oldest_segment_and_counts_its_records() {
    let mut bench = Bench::new(config());
    for n in 0..2_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
        assert!(bench.shared.stats().disk_bytes <= 64 << 10, "max_size holds");
    }
    let ledger = bench.ledger();
    assert!(ledger.dropped_when_full > 1_000, "{ledger:?}");
    assert_eq!(ledger.accepted, 2_000);
    assert_eq!(bench.offsets(), (ledger.dropped_when_full..2_000).collect::<Vec<_>>());
}

#[test]
fn r07_a_record_dropped_in_flight_changes_only_confirmed_after_drop() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 100);
    bench.settle([3]);
    for n in 100..1_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
    }
    let before = bench.ledger();
    assert_eq!(before.delivered, 1, "confirmed out of order before the drop");
    bench.settle([0, 1, 3]);
    let after = bench.ledger();
    assert_eq!(after, Ledger { confirmed_after_drop: 3, ..before });
}

#[test]
fn r02_drop_newest_counts_and_keeps_what_is_there() {
    let mut bench = Bench::new(Config { when_full: WhenFull::DropNewest, ..config() });
    let mut taken = 0;
    while bench.put_patiently(&body(taken)).is_ok() {
        bench.turn();
        taken += 1;
    }
    assert_eq!(bench.put(&body(taken)), Err(Verdict::DroppedNewest));
    let ledger = bench.ledger();
    assert_eq!((ledger.accepted, ledger.dropped_when_full), (taken + 2, 2));
    assert_eq!(bench.offsets().len() as u64, taken);
    let bench = bench.close_and_reopen();
    assert_eq!(bench.ledger(), ledger);
}

#[test]
fn r05_reject_refuses_until_something_is_delivered() {
    let mut bench = Bench::new(Config { when_full: WhenFull::Reject, ..config() });
    let taken = fill(&mut bench);
    assert_eq!(bench.put(&body(taken)), Err(Verdict::Refused(Refused::Full)));
    bench.settle(0..taken / 2);
    bench.turn();
    bench.put_patiently(&body(taken)).unwrap();
    assert_eq!(bench.ledger().accepted, taken + 1);
}

#[test]
fn r06_block_waits_until_something_is_delivered() {
    let mut bench = Bench::new(Config { when_full: WhenFull::Block, ..config() });
    let taken = fill(&mut bench);
    assert_eq!(bench.put(&body(taken)), Err(Verdict::Wait));
    bench.settle(0..taken / 2);
    bench.turn();
    bench.put(&body(taken)).unwrap();
}

#[test]
fn a_delivered_segment_is_rolled_out_of_the_way_when_it_is_the_only_one() {
    let mut bench = Bench::new(Config { when_full: WhenFull::Reject, ..config() });
    let large = vec![1; 25_000];
    for _ in 0..10 {
        let offset = bench.put_patiently(&large).unwrap();
        bench.turn();
        bench.settle([offset]);
    }
    assert_eq!(bench.ledger().delivered, 10);
}

#[test]
fn a_record_that_could_never_fit_is_refused_and_drops_nothing() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 10);
    assert_eq!(bench.put(&vec![0; 40 << 10]), Err(Verdict::Refused(Refused::Full)));
    assert_eq!(bench.ledger().buffered, 10);
}

#[test]
fn staged_bytes_are_bounded_whatever_the_policy() {
    let bench = Bench::new(config());
    let mut staged = 0;
    while bench.put(&body(staged)).is_ok() {
        staged += 1;
    }
    assert_eq!(bench.put(&body(staged)), Err(Verdict::Wait));
    assert!(staged < 64 << 10 >> 3, "{staged}");
}

#[test]
fn r08_max_age_drops_by_the_monotonic_clock_and_counts() {
    let mut bench = Bench::new(Config { max_age: Some(Duration::from_secs(60)), ..config() });
    bench.put_all(0, 10);
    bench.turn();
    bench.clock.pass(Duration::from_secs(30));
    bench.put_all(10, 20);
    bench.turn();
    bench.clock.step_wall(7_200_000);
    bench.turn();
    assert_eq!(bench.ledger().dropped_age, 0, "a step of the clock expires nothing");
    bench.clock.pass(Duration::from_secs(31));
    bench.turn();
    assert_eq!(bench.ledger().dropped_age, 10);
    assert_eq!(bench.offsets(), (10..20).collect::<Vec<_>>());
    let mut bench = bench.close_and_reopen();
    bench.clock.pass(Duration::from_secs(61));
    bench.turn();
    assert_eq!(bench.ledger(), Ledger { accepted: 20, dropped_age: 20, ..Ledger::default() });
    assert_eq!(bench.disk.segments().len(), 0);
}

fn aging() -> Bench {
    let mut bench = Bench::new(Config { max_age: Some(Duration::from_secs(3_600)), ..config() });
    bench.put_all(0, 20);
    bench.turn();
    bench
}

/// Half a century, in either direction, before and after a restart, and said to be right or not.
#[test]
fn r08_no_step_of_the_clock_expires_anything_within_a_boot() {
    const TODAY: i64 = 1_790_000_000_000;
    for step in [TODAY, -900_000, 3_600_001, -TODAY] {
        for synced in [false, true] {
            let mut bench = aging();
            bench.clock.step_wall(step);
            bench.clock.synced(synced);
            bench.turn();
            let mut bench = bench.kill_and_reopen();
            bench.clock.step_wall(-step);
            bench.turn();
            assert_eq!(bench.ledger().buffered, 20, "{step} {synced}");
            bench.clock.pass(Duration::from_secs(3_599));
            bench.turn();
            assert_eq!(bench.ledger().buffered, 20, "{step} {synced}");
            bench.clock.pass(Duration::from_secs(2));
            bench.turn();
            assert_eq!(bench.ledger().dropped_age, 20, "{step} {synced}: the boot clock goes on across restarts");
        }
    }
}

#[test]
fn r08_across_boots_an_age_needs_two_clocks_that_were_right() {
    for (before, after) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut bench = Bench::new(Config { max_age: Some(Duration::from_secs(3_600)), ..config() });
        bench.clock.synced(before);
        bench.put_all(0, 20);
        bench.turn();
        bench.disk.kill();
        bench.clock.reboot(Duration::from_secs(86_400));
        let mut bench = bench.reopen();
        bench.turn();
        assert_eq!(bench.ledger().buffered, 20, "nobody has said what time it is");
        bench.clock.synced(after);
        bench.turn();
        let certain = before && after;
        assert_eq!(bench.ledger().dropped_age, if certain { 20 } else { 0 }, "{before} {after}");
        bench.clock.pass(Duration::from_secs(3_601));
        bench.turn();
        assert_eq!(bench.ledger().dropped_age, 20, "older than the boot, whatever the clock says");
    }
}

/// A Raspberry Pi without a battery: 1970 at each start, and the right time some seconds later.
#[test]
fn r08_the_first_ntp_after_a_start_in_1970_drops_nothing() {
    let bench = aging();
    bench.disk.kill();
    bench.clock.reboot(Duration::from_secs(30));
    bench.clock.step_wall(-1_000_000);
    let mut bench = bench.reopen();
    bench.put_all(20, 40);
    bench.clock.pass(Duration::from_secs(10));
    bench.clock.step_wall(1_790_000_000_000);
    bench.clock.synced(true);
    bench.put_all(40, 60);
    bench.turn();
    let mut bench = bench.close_and_reopen();
    bench.turn();
    assert_eq!(bench.offsets(), (0..60).collect::<Vec<_>>());
    let oldest = bench.shared.stats().oldest.unwrap();
    assert_eq!(bench.clock.moment().since(oldest), Duration::from_secs(10), "as old as the boot: more is not certain");
}

/// A damaged header takes the boot's name along: what then is not certain is kept.
#[test]
fn r08_a_record_of_an_unknown_boot_is_kept() {
    let bench = aging();
    let path = bench.disk.segments().remove(0);
    bench.disk.kill();
    bench.disk.change(&path, |bytes| bytes[..64].fill(0));
    bench.clock.pass(Duration::from_secs(7_200));
    let mut bench = bench.reopen();
    bench.turn();
    assert_eq!(bench.offsets(), (0..20).collect::<Vec<_>>());
}

#[test]
fn r04_min_free_drops_the_oldest_as_min_free_and_stops_when_there_is_room() {
    let mut bench = Bench::new(Config { min_free: Some(ByteSize(100_000)), ..config() });
    bench.put_all(0, 200);
    bench.turn();
    let used = bench.disk.used();
    bench.disk.capacity(Some(used + 100_000 - 1));
    bench.clock.pass(Duration::from_secs(1));
    bench.turn();
    bench.put_patiently(&body(200)).unwrap();
    let ledger = bench.ledger();
    assert!(ledger.dropped_min_free > 0 && ledger.dropped_min_free < 100, "{ledger:?}");
    assert_eq!(ledger.dropped_when_full, 0);
}

#[test]
fn r04_min_free_refuses_when_nothing_can_be_freed() {
    let mut bench = Bench::new(Config { min_free: Some(ByteSize(100_000)), ..config() });
    bench.disk.capacity(Some(100_000));
    bench.turn();
    assert_eq!(bench.put(&body(0)), Err(Verdict::Refused(Refused::Full)));
    bench.disk.capacity(None);
    bench.clock.pass(Duration::from_secs(1));
    bench.turn();
    bench.put(&body(0)).unwrap();
}

/// A log with kept records that are delivered, and 100 behind them that are owed, on a disk that stays short when all delivered ones are
/// gone. Answers how many are delivered.
/// Ten records that are stored, and five that were let in and found no room.
fn without_room_for_five(config: Config) -> Bench {
    let mut bench = Bench::new(Config { when_full: WhenFull::DropNewest, ..config });
    bench.put_all(0, 10);
    bench.disk.capacity(Some(bench.disk.used() + 50));
    for n in 10..15 {
        bench.put(&body(n)).unwrap();
    }
    bench.turn();
    bench
}

#[test]
fn r04_a_full_disk_with_drop_newest_holds_no_publisher_up() {
    for compress in [Compression::None, Compression::Zstd] {
        for delivered in [0, 10] {
            let mut bench = without_room_for_five(Config { compress, ..config() });
            assert_eq!(bench.durable(), 15, "all are acknowledged");
            let dropped = Ledger { accepted: 15, buffered: 10, dropped_min_free: 5, ..Ledger::default() };
            assert_eq!(bench.ledger(), dropped);
            assert_eq!(bench.offsets(), (0..10).collect::<Vec<_>>());
            // What is forgotten by a power cut is not what somebody was told of.
            let cut = Bench::open(bench.disk.copy(), HandClock::new(), bench.config.clone());
            assert_eq!((cut.recovery.damaged.len(), cut.ledger()), (0, dropped));
            assert!(cut.shared.stats().next.0 >= 15, "no number is given twice");
            assert!(super::offline::audit(&cut.disk).ok);
            bench.settle(0..delivered);
            bench.disk.capacity(None);
            bench.turn();
            bench.put_all(15, 20);
            let left: Vec<u64> = (delivered..10).chain(15..20).collect();
            assert_eq!(bench.offsets(), left);
            let after = Ledger { accepted: 20, buffered: 15 - delivered, delivered, ..dropped };
            assert_eq!(bench.ledger(), after);
            bench.settle([12]);
            assert_eq!(bench.ledger(), Ledger { confirmed_after_drop: 1, ..after });
            for again in 0..2 {
                bench.clock.pass(Duration::from_secs(2));
                bench.turn();
                bench = if again == 0 { bench.kill_and_reopen() } else { bench.close_and_reopen() };
                assert_eq!(bench.recovery.damaged, []);
                assert_eq!(
                    (bench.ledger(), bench.offsets()),
                    (Ledger { confirmed_after_drop: 1, ..after }, left.clone())
                );
                let audit = super::offline::audit(&bench.disk);
                assert!(audit.ok, "{audit:?}");
            }
        }
    }
}

#[test]
fn r02_what_was_acknowledged_ahead_of_its_sync_is_not_dropped_as_the_newest() {
    let sync = SyncMode::Interval(Duration::from_secs(1));
    let mut bench = Bench::new(Config { when_full: WhenFull::DropNewest, sync, ..config() });
    bench.put_all(0, 10);
    bench.disk.faults(super::disk::Faults { syncs: 1, ..Default::default() });
    bench.disk.capacity(Some(bench.disk.used()));
    bench.clock.pass(Duration::from_secs(2));
    bench.turn();
    assert_eq!((bench.durable(), bench.ledger().dropped_min_free), (10, 0));
    bench.disk.capacity(None);
    bench.turn();
    assert_eq!(bench.kill_and_reopen().offsets(), (0..10).collect::<Vec<_>>());
}

fn short_of_room(when_full: WhenFull) -> (Bench, u64) {
    let keep = Keep { age: Some(Duration::from_secs(3_600)), size: None };
    let config = Config { min_free: Some(ByteSize(100_000)), when_full, keep_delivered: Some(keep), ..config() };
    let mut bench = Bench::new(config);
    bench.put_all(0, 200);
    bench.settle(0..200);
    bench.put_all(200, 300);
    bench.turn();
    let kept = bench.shared.stats().kept_bytes;
    assert!(kept > 20_000, "{kept}");
    bench.disk.capacity(Some(bench.disk.used() + 100_000 - kept - 100));
    for _ in 0..10 {
        bench.clock.pass(Duration::from_secs(1));
        bench.turn();
    }
    let stats = bench.shared.stats();
    assert_eq!(
        (stats.kept_bytes, stats.ledger.buffered),
        (0, 100),
        "{when_full:?}: delivered ones go first, and alone"
    );
    (bench, 200)
}

/// The order of R4: what is delivered, then what `when_full` says, then refusing.
#[test]
fn r04_at_min_free_each_when_full_does_its_own_once_delivered_segments_are_gone() {
    for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Reject, WhenFull::Block] {
        let (mut bench, delivered) = short_of_room(when_full);
        let answer = bench.put_patiently(&body(300));
        let (expected, dropped, owed) = match when_full {
            WhenFull::DropOldest => (Ok(300), bench.ledger().dropped_min_free, 300),
            WhenFull::DropNewest => (Err(Verdict::DroppedNewest), 1, 300),
            WhenFull::Reject => (Err(Verdict::Refused(Refused::Full)), 0, 300),
            WhenFull::Block => (Err(Verdict::Wait), 0, 300),
        };
        assert_eq!(answer, expected, "{when_full:?}");
        let ledger = bench.ledger();
        assert_eq!((ledger.dropped_min_free, ledger.dropped_when_full), (dropped, 0), "{when_full:?}");
        match when_full {
            WhenFull::DropOldest => {
                assert!((1..100).contains(&dropped), "no more than it takes: {dropped}");
                bench.turn();
                assert_eq!(bench.offsets(), (delivered + dropped..=owed).collect::<Vec<_>>());
                // And when there is nothing left to drop:
                bench.disk.capacity(Some(1_000));
                for n in 0..20 {
                    bench.clock.pass(Duration::from_secs(1));
                    bench.turn();
                    if bench.put(&body(n)) == Err(Verdict::Refused(Refused::Full)) {
                        break;
                    }
                }
                assert_eq!(bench.put(&body(0)), Err(Verdict::Refused(Refused::Full)));
                assert_eq!(bench.ledger().buffered, 0);
            }
            WhenFull::DropNewest | WhenFull::Reject | WhenFull::Block => {
                assert_eq!(
                    bench.offsets(),
                    (delivered..owed).collect::<Vec<_>>(),
                    "{when_full:?}: nothing owed is given up"
                );
            }
        }
        bench.disk.capacity(None);
        bench.clock.pass(Duration::from_secs(1));
        bench.turn();
        bench.put_patiently(&body(301)).unwrap();
    }
}

/// Delivering gives room back at `min_free` too, to those who wait.
#[test]
fn r04_at_min_free_a_blocked_publisher_goes_on_when_records_are_delivered() {
    let (mut bench, delivered) = short_of_room(WhenFull::Block);
    assert_eq!(bench.put_patiently(&body(300)), Err(Verdict::Wait));
    bench.settle(delivered..delivered + 100);
    for _ in 0..5 {
        bench.clock.pass(Duration::from_secs(1));
        bench.turn();
    }
    assert_eq!(bench.put_patiently(&body(300)), Ok(300));
}

#[test]
fn space_is_given_back_as_a_backlog_drains_whatever_the_sync_mode() {
    let modes = [SyncMode::Group, SyncMode::Interval(Duration::from_secs(1)), SyncMode::Never];
    for sync in modes.into_iter().chain([SyncMode::Spill(Duration::from_secs(1))]) {
        let mut bench = Bench::new(Config { sync, ..config() });
        let empty = bench.disk.used();
        for n in 0..300 {
            bench.put_patiently(&body(n)).unwrap();
            bench.turn();
        }
        bench.clock.pass(Duration::from_secs(3));
        bench.turn();
        let segment = bench.shared.limits.segment_bytes;
        let full = bench.shared.stats().disk_bytes;
        assert!(full > 3 * segment, "{sync:?}: {full}");
        for n in 0..300 {
            bench.settle([n]);
            bench.turn();
            // What is owed, and a segment that is done in part, and one that is being written.
            let stats = bench.shared.stats();
            let bound = full * (300 - n) / 300 + 2 * segment;
            assert!(stats.disk_bytes <= bound, "{sync:?}, {n}: {} bytes", stats.disk_bytes);
        }
        assert!(bench.disk.segments().len() <= 1, "{sync:?}: {:?}", bench.disk.segments());
        assert!(bench.disk.used() <= empty + segment + 200, "{sync:?}: {} of {empty}", bench.disk.used());
        let bench = bench.close_and_reopen();
        assert_eq!(bench.ledger().buffered, 0);
        assert!(bench.disk.used() <= empty + segment + 200, "{sync:?}: after a restart");
    }
}

#[test]
fn r09_the_cursor_is_written_each_window_and_synced_each_second_and_before_every_unlink() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 250);
    bench.turn();
    bench.clock.pass(Duration::from_secs(5));
    bench.turn();
    bench.disk.calls();
    bench.settle(0..7);
    bench.turn();
    let calls = bench.disk.calls();
    assert!(calls.iter().any(|call| call == "sync cursors"), "a second has passed: {calls:?}");
    bench.settle(7..14);
    bench.turn();
    assert_eq!(bench.disk.calls(), Vec::<String>::new(), "less than a window, within the second");
    bench.settle([14]);
    bench.turn();
    assert_eq!(bench.disk.calls(), ["write cursors"]);
    bench.settle(15..200);
    bench.turn();
    let calls = bench.disk.calls();
    let first_remove = calls.iter().position(|call| call.starts_with("remove")).unwrap();
    assert!(calls[..first_remove].ends_with(&["write cursors".to_owned(), "sync cursors".to_owned()]), "{calls:?}");
    assert_eq!(calls.last().unwrap(), "syncdir log");
}

/// However long the writer waits for the disk: a kill now repeats what is not saved, and what is in flight.
#[test]
fn r09_nothing_is_handed_out_while_a_window_of_confirmations_is_unsaved() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 100);
    bench.log.tend();
    let mut reader = bench.reader();
    let mut handed_out = 0;
    let mut unsaved = 0;
    while let Some(records) = reader.next(WINDOW, 1 << 20).now_or_never() {
        for record in records.unwrap() {
            assert_eq!(record.offset.0, handed_out);
            handed_out += 1;
        }
        // The writer is busy: it saves nothing.
        bench.settle(unsaved..handed_out);
        unsaved = handed_out;
    }
    assert_eq!(handed_out, wide(WINDOW), "no more than a window beyond what is saved");
    bench.log.tend();
    assert!(reader.next(WINDOW, 1 << 20).now_or_never().is_some(), "goes on once it is saved");
}

#[test]
fn r02_what_the_cursor_passes_while_it_is_saved_is_not_deleted_by_that_save() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 250);
    bench.turn();
    let segments = bench.disk.segments().len();
    assert!(segments > 4);
    let first_two = bench.shared.state.lock().segments[1].next;
    bench.settle(0..first_two);
    let shared = Arc::clone(&bench.shared);
    // The remote goes on confirming while the writer thread waits for the disk.
    bench.disk.while_syncing("cursors", move || {
        (first_two..290).for_each(|offset| shared.settle(Offset(offset), Outcome::Delivered));
    });
    bench.turn();
    assert_eq!(bench.disk.segments().len(), segments - 2, "only what the synced cursor has passed");
    let mut bench = bench.kill_and_reopen();
    assert_eq!(bench.recovery, Recovery { buffered: 250 - first_two, ..Recovery::default() }, "repeated, not lost");
    bench.settle(first_two..250);
    bench.turn();
    assert_eq!(bench.ledger(), Ledger { accepted: 250, delivered: 250, ..Ledger::default() });
}

#[test]
fn r08_records_that_waited_for_a_full_disk_have_each_its_own_age() {
    let max_age = Some(Duration::from_secs(60));
    let mut bench = Bench::new(Config { max_age, when_full: WhenFull::Block, ..config() });
    bench.put_all(0, 1);
    bench.disk.capacity(Some(bench.disk.used()));
    // Staged while the one before it is held.
    bench.put(&body(1)).unwrap();
    bench.log.commit();
    bench.shared.state.lock().pressure = Pressure::None;
    bench.put(&body(2)).unwrap();
    bench.clock.pass(Duration::from_secs(50));
    bench.put(&body(3)).unwrap();
    bench.disk.capacity(None);
    bench.turn();
    assert_eq!(bench.offsets(), [0, 1, 2, 3]);
    bench.clock.pass(Duration::from_secs(20));
    bench.turn();
    assert_eq!((bench.offsets(), bench.ledger().dropped_age), (vec![3], 3), "the last is 20 s old");
    bench.clock.pass(Duration::from_secs(41));
    bench.turn();
    assert_eq!(bench.ledger().dropped_age, 4);
}
