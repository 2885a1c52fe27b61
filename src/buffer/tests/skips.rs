//! Numbers that hold no record and are no hole: the frame behind them says so.

use std::path::Path;

use super::super::format::SEGMENT_HEADER;
use super::super::offline::Start;
use super::super::offline::carry::export_on;
use super::bench::{Bench, body, config, dir};

/// Its last record is torn, so that the next number leaves out what had been reserved; two more records follow.
fn with_numbers_left_out() -> (Bench, u64) {
    let mut bench = Bench::new(config());
    bench.put_all(0, 10);
    bench.disk.kill();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| bytes.truncate(bytes.len() - 50));
    let mut bench = bench.reopen();
    let next = bench.shared.stats().next.0;
    assert!(next > 10, "{next}");
    for n in [next, next + 1] {
        bench.put(&body(n)).unwrap();
        bench.turn();
    }
    (bench, next)
}

fn lose_the_cursor(bench: &Bench) {
    bench.disk.kill();
    bench.disk.change(&dir().join("cursors"), |bytes| bytes.fill(0xff));
}

#[test]
fn the_first_frame_behind_numbers_left_out_by_a_crash_says_how_many() {
    let (bench, next) = with_numbers_left_out();
    let path = bench.disk.segments().pop().unwrap();
    assert_eq!(path, dir().join("00000000000000000009.seg"), "its segment begins where the last one ended");
    let bytes = bench.disk.read(&path);
    let frame = &bytes[SEGMENT_HEADER..];
    assert_eq!(frame[24..32], next.to_le_bytes(), "base");
    assert_eq!(frame[56..64], (next - 9).to_le_bytes(), "skipped");
}

#[test]
fn numbers_left_out_are_no_damage_where_the_cursor_is_lost_too() {
    for closed in [false, true] {
        let (bench, next) = with_numbers_left_out();
        let bench = if closed { bench.close_and_reopen() } else { bench };
        lose_the_cursor(&bench);
        let bench = bench.reopen();
        let expected: Vec<u64> = (0..9).chain([next, next + 1]).collect();
        assert_eq!(bench.recovery.damaged, [], "closed: {closed}");
        assert_eq!(bench.offsets(), expected, "closed: {closed}");
        let ledger = bench.ledger();
        assert_eq!((ledger.accepted, ledger.dropped_damaged), (11, 0), "closed: {closed}: {ledger:?}");
    }
}

#[test]
fn an_export_does_not_miss_numbers_that_were_left_out() {
    for lost in [false, true] {
        let (bench, _) = with_numbers_left_out();
        if lost {
            lose_the_cursor(&bench);
        }
        let manifest = export_on(&bench.disk, dir(), "ship", Start::Cursor, Path::new("/stick/far.tgx")).unwrap();
        assert_eq!((manifest.records, manifest.missing), (11, 0), "without the cursor: {lost}");
    }
}
