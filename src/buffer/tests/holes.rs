//! More holes than the cursor file takes, of every kind, and what the ledger and the audit say of them after a kill.

use super::super::cursor::HOLES_SAVED_MAX;
use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::offline::Trouble;
use super::super::*;
use super::bench::{Bench, config};
use super::offline::audit;
use crate::units::ByteSize;

/// Length of a frame with one record of the bench.
const FRAME: usize = FRAME_HEADER + 16 + 104;

/// Damages every second frame of a file, from its second on. Answers how many.
fn riddle(bench: &Bench, path: &std::path::Path) -> u64 {
    let mut hits = 0;
    bench.disk.change(path, |bytes| {
        let frames = (bytes.len() - SEGMENT_HEADER) / FRAME;
        for frame in (1..frames.saturating_sub(1)).step_by(2) {
            bytes[SEGMENT_HEADER + frame * FRAME + 80] ^= 1;
            hits += 1;
        }
    });
    hits
}

/// What the audit finds missing is exactly what the figures do not have yet.
fn check(bench: &Bench, damaged: u64) {
    let found = audit(&bench.disk);
    let off: Vec<_> = found.findings.iter().filter(|finding| finding.trouble == Trouble::Ledger).collect();
    assert!(off.is_empty(), "{off:?}");
    assert_eq!(found.gap, i64::try_from(found.missing).unwrap());
    assert_eq!(found.ledger.dropped_damaged + found.missing, damaged, "{:?}", found.ledger);
}

#[test]
fn r07_more_damaged_ranges_than_the_cursor_file_takes_balance_after_every_kill() {
    let big = Config { max_size: ByteSize(4 << 20), ..config() };
    let mut bench = Bench::new(big);
    let count = 2 * HOLES_SAVED_MAX as u64 + 700;
    bench.put_all(0, count);
    // Two runs in the midst and at the end of what is delivered, beyond holes that stay owed.
    bench.settle(0..10);
    bench.log.save_cursor(true).unwrap();
    bench.disk.kill();
    let mut damaged = 0;
    for path in bench.disk.segments() {
        damaged += riddle(&bench, &path);
    }
    assert!(damaged > HOLES_SAVED_MAX as u64 + 200, "{damaged}");
    // Five of them were delivered before: 1, 3, 5, 7, 9.
    let damaged = damaged - 5;
    check(&bench, damaged);
    for _start in 0..3 {
        bench = bench.kill_and_reopen();
        let read = bench.read_all();
        assert_eq!(read.len() as u64, count - 10 - damaged, "what is sound is read, each time");
        let ledger = bench.ledger();
        assert_eq!((ledger.accepted, ledger.delivered, ledger.dropped_damaged), (count, 10, damaged));
        bench.log.save_cursor(true).unwrap();
        bench.disk.kill();
        check(&bench, damaged);
    }
    // More beside them, and new damage in what is new.
    let mut bench = bench.kill_and_reopen();
    bench.read_all();
    let next = bench.shared.stats().next.0;
    bench.put_all(next, next + 40);
    bench.log.save_cursor(true).unwrap();
    bench.disk.kill();
    let last = bench.disk.segments().pop().unwrap();
    let damaged = damaged + riddle(&bench, &last);
    check(&bench, damaged);
    let bench = bench.kill_and_reopen();
    bench.read_all();
    assert_eq!(bench.ledger().dropped_damaged, damaged);
    // All that is left is delivered: the holes go, and with them what they took.
    let owed: Vec<u64> = bench.offsets();
    bench.settle(owed);
    let ledger = bench.ledger();
    assert_eq!((ledger.buffered, ledger.dropped_damaged), (0, damaged));
    let bench = bench.close_and_reopen();
    assert_eq!(bench.ledger(), ledger);
    bench.disk.kill();
    let found = audit(&bench.disk);
    assert_eq!((found.gap, found.missing, found.ledger), (0, 0, ledger));
}

#[test]
fn a_permit_that_is_dropped_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let small = Config { max_size: ByteSize(64 << 10), when_full: WhenFull::Reject, ..super::face::config(dir.path()) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let buffer = Buffer::open(small, 16, crate::clock::system()).unwrap().0;
        let mut held = Vec::new();
        while let Ok(Admission::Granted(permit)) = buffer.admit(4_000).await {
            held.push(permit);
        }
        let most = held.len();
        assert!(most > 5 && matches!(buffer.admit(4_000).await, Err(Refused::Full)), "{most}");
        // Nothing was appended: all of the room is there again, permit by permit.
        drop(held.pop());
        let Ok(Admission::Granted(again)) = buffer.admit(4_000).await else { panic!("no room was given back") };
        assert!(matches!(buffer.admit(4_000).await, Err(Refused::Full)));
        drop((held, again));
        let mut held = Vec::new();
        while let Ok(Admission::Granted(permit)) = buffer.admit(4_000).await {
            held.push(permit);
        }
        assert_eq!((held.len(), buffer.stats().ledger), (most, Ledger::default()));
        drop(held);
        buffer.close().await;
    });
}
