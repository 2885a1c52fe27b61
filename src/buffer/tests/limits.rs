//! What the operator's limits do, each drop counted.

use std::time::Duration;

use super::super::state::Verdict;
use super::super::*;
use super::bench::{Bench, body, config};
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

#[test]
fn r09_the_cursor_is_written_each_window_and_synced_each_second_and_before_every_unlink() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 300);
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

#[test]
fn r02_what_the_cursor_passes_while_it_is_saved_is_not_deleted_by_that_save() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 300);
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
    assert_eq!(bench.recovery, Recovery { buffered: 300 - first_two, ..Recovery::default() }, "repeated, not lost");
    bench.settle(first_two..300);
    bench.turn();
    assert_eq!(bench.ledger(), Ledger { accepted: 300, delivered: 300, ..Ledger::default() });
}
