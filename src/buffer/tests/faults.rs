//! One kind of damage or failure a test, named by what comes of it.

use std::sync::Arc;

use futures_util::FutureExt;

use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::offline::Trouble;
use super::super::offline::audit::audit_on;
use super::super::state::Verdict;
use super::super::*;
use super::bench::{Bench, HandClock, WINDOW, body, config, dir, try_open};
use super::disk::{Dice, Faults, SimDisk};
use super::offline::audit;
use crate::units::ByteSize;

/// Length of a frame with one record of [`body`].
const FRAME: usize = FRAME_HEADER + 16 + 104;

fn bodies_match(bench: &Bench) {
    for record in bench.read_all() {
        assert_eq!(record.body, body(record.offset.0));
    }
}

#[test]
fn a_segment_is_the_documented_bytes() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 2);
    let path = bench.disk.segments().remove(0);
    assert_eq!(path, dir().join("00000000000000000000.seg"));
    let bytes = bench.disk.read(&path);
    assert_eq!(bytes.len(), SEGMENT_HEADER + 2 * FRAME);
    assert_eq!(&bytes[..8], b"tgsegmnt");
    let frame = &bytes[SEGMENT_HEADER + FRAME..];
    assert_eq!(&frame[..8], b"TGFR\x01\x00\x00\x00");
    assert_eq!(&frame[8..20], b"\x78\0\0\0\x78\0\0\0\x01\0\0\0", "stored and raw length, count");
    assert_eq!(&frame[24..40], b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", "base, durable");
    assert_eq!(frame[40..48], 1_000_000_u64.to_le_bytes(), "wall clock");
    assert_eq!(frame[48..56], 10_000_u64.to_le_bytes(), "boot clock, not synchronised");
    assert_eq!(bytes[56..60], 1_u32.to_le_bytes(), "boot");
    let record = &frame[FRAME_HEADER..];
    assert_eq!(&record[..16], b"\x64\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(&record[16..116], body(1));
}

#[test]
fn a_file_that_is_written_is_longer_than_what_it_holds_until_it_is_closed() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 1);
    let path = bench.disk.segments().remove(0);
    assert_eq!(bench.disk.shown_len(&path), bench.disk.len(&path), "nothing of it was durable");
    for n in 1..6 {
        // The last ends with zeros.
        bench.put(&[u8::from(n < 5); 100]).unwrap();
        bench.log.commit();
    }
    let held = bench.disk.len(&path);
    assert_eq!(held, (SEGMENT_HEADER + 6 * FRAME) as u64, "the disk has no more to hold");
    let longer = bench.disk.shown_len(&path);
    assert!(longer > held && longer <= bench.shared.limits.segment_bytes, "{longer}");
    assert_eq!(bench.shared.stats().disk_bytes, held);
    // However it ends, the zeros are nothing that was torn, and no number is left out.
    for power in [false, true] {
        let disk = bench.disk.copy();
        if power {
            disk.cut_power(&mut Dice(7));
        }
        let looked = audit(&disk);
        assert_eq!((looked.ok, looked.found, looked.torn_bytes), (true, 6, 0), "power: {power}, {looked:?}");
        let again = Bench::open(disk, Arc::clone(&bench.clock), config());
        assert_eq!(again.recovery, Recovery { buffered: 6, ..Recovery::default() }, "power: {power}");
        assert_eq!(again.offsets(), (0..6).collect::<Vec<_>>());
        assert_eq!(again.put(&body(6)).unwrap(), 6);
        assert_eq!(again.disk.shown_len(&path), again.disk.len(&path), "and they are cut");
    }
    let bench = bench.close_and_reopen();
    assert_eq!(bench.disk.shown_len(&path), bench.disk.len(&path));
    assert_eq!(bench.offsets(), (0..6).collect::<Vec<_>>());
}

#[test]
fn a_file_is_not_made_longer_where_its_writes_are_not_synced() {
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_secs(1))] {
        let mut bench = Bench::new(Config { sync, ..config() });
        bench.put_all(0, 5);
        let path = bench.disk.segments().remove(0);
        assert_eq!(bench.disk.shown_len(&path), bench.disk.len(&path), "{sync:?}");
    }
}

#[test]
fn a_torn_tail_is_cut_and_its_size_reported() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 10);
    bench.disk.kill();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| bytes.truncate(SEGMENT_HEADER + 9 * FRAME + 50));
    let bench = bench.reopen();
    // Frame 8 says that everything below 8 was durable; 9 may have been acknowledged, and nothing on disk says so.
    assert_eq!(bench.recovery, Recovery { buffered: 9, torn_bytes: 50, ..Recovery::default() });
    assert_eq!(bench.offsets(), (0..9).collect::<Vec<_>>());
    assert!(bench.put(&body(0)).unwrap() > 10, "a number that somebody may have seen is not given again");
    assert_eq!(bench.ledger().accepted, 10);
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.recovery, Recovery { buffered: 9, ..Recovery::default() }, "cut once");
}

#[test]
fn r11_no_number_is_given_twice_where_the_start_that_cut_the_tail_failed() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 20);
    assert_eq!(bench.offsets().len(), 20, "the remote has seen them");
    let path = bench.disk.segments().remove(0);
    // Damage at the end cannot be told from a torn tail.
    bench.disk.change(&path, |bytes| bytes.truncate(bytes.len() - 50));
    bench.disk.kill();
    let mut failed = 0;
    for after in 0..30 {
        let disk = bench.disk.copy();
        disk.faults(Faults { after: Some(after), failing: 1, ..Faults::default() });
        // Some calls may fail, such as that of a footer.
        failed += u32::from(try_open(&disk, &bench.clock, &bench.config, WINDOW).is_err());
        disk.kill();
        let again = Bench::open(disk, Arc::clone(&bench.clock), bench.config.clone());
        assert!(again.shared.stats().next.0 >= 20, "{after}");
    }
    assert!(failed > 5, "{failed}");
}

/// A disk that has lost what it had synced shows zeros where there is no hole, or nothing.
#[test]
fn r11_no_number_is_given_twice_where_the_end_is_zeros() {
    for broken in [false, true] {
        let mut bench = Bench::new(Config { max_size: ByteSize(1 << 20), ..config() });
        bench.put_all(0, 100);
        let path = bench.disk.segments().remove(0);
        let (from, to) = (SEGMENT_HEADER + 98 * FRAME, SEGMENT_HEADER + 100 * FRAME);
        assert!(bench.disk.shown_len(&path) > bench.disk.len(&path), "there is a hole behind");
        bench.disk.change(&path, |bytes| bytes[from..].fill(0));
        if broken {
            bench.disk.break_sectors(&path, from as u64..to as u64);
        }
        bench.disk.kill();
        let looked = audit(&bench.disk);
        let again = bench.reopen();
        assert_eq!(looked.torn_bytes, again.recovery.torn_bytes, "broken: {broken}, {looked:?}");
        // What lies in a page with it cannot be read either.
        let torn = 2 * FRAME as u64;
        assert!(if broken { looked.torn_bytes > torn } else { looked.torn_bytes == torn }, "{looked:?}");
        assert!(again.put(&body(0)).unwrap() >= 100, "somebody may have seen them");
    }
}

#[test]
fn r07_damage_below_durable_is_skipped_and_reported_exactly_once() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 20);
    bench.disk.kill();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| {
        bytes[SEGMENT_HEADER + 3 * FRAME + 60] ^= 1;
        bytes[SEGMENT_HEADER + 4 * FRAME + 20] ^= 1;
        bytes[SEGMENT_HEADER + 9 * FRAME + 100] ^= 128;
    });
    let bench = bench.reopen();
    let damaged = vec![(Offset(3), Offset(4)), (Offset(9), Offset(9))];
    assert_eq!(bench.recovery, Recovery { buffered: 17, damaged, ..Recovery::default() });
    bodies_match(&bench);
    assert_eq!(bench.ledger(), Ledger { accepted: 20, buffered: 17, dropped_damaged: 3, ..Ledger::default() });
    let mut bench = bench.kill_and_reopen();
    assert_eq!(bench.recovery, Recovery { buffered: 17, ..Recovery::default() }, "counted already");
    bench.settle(0..20);
    bench.turn();
    assert_eq!(bench.ledger(), Ledger { accepted: 20, delivered: 17, dropped_damaged: 3, ..Ledger::default() });
}

#[test]
fn damage_in_a_closed_segment_is_found_and_counted_by_the_reader() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 100);
    let path = bench.disk.segments().remove(0);
    let mut bench = bench.close_and_reopen();
    bench.disk.change(&path, |bytes| bytes[SEGMENT_HEADER + 5 * FRAME + 70] ^= 4);
    let offsets = bench.offsets();
    assert_eq!(offsets, (0..100).filter(|n| *n != 5).collect::<Vec<_>>());
    assert_eq!(bench.ledger().dropped_damaged, 1);
    bench.read_all();
    assert_eq!(bench.ledger().dropped_damaged, 1, "once");
    bench.settle(0..100);
    bench.turn();
    assert_eq!(bench.ledger(), Ledger { accepted: 100, delivered: 99, dropped_damaged: 1, ..Ledger::default() });
}

#[test]
fn damage_in_the_segment_that_is_being_written_does_not_stop_the_reader() {
    let mut bench = Bench::new(Config { max_size: ByteSize(64 << 20), ..config() });
    for n in 0..6 {
        bench.put_patiently(&vec![n; 1 << 20]).unwrap();
        bench.turn();
    }
    let path = bench.disk.segments().pop().unwrap();
    bench.disk.change(&path, |bytes| {
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
    });
    // The newest 4 MiB are read from memory, the first from disk.
    assert_eq!(bench.offsets(), (0..6).collect::<Vec<_>>());
    let first = bench.disk.segments().remove(0);
    bench.disk.change(&first, |bytes| bytes[SEGMENT_HEADER + FRAME_HEADER + 100] ^= 1);
    assert_eq!(bench.offsets(), (1..6).collect::<Vec<_>>());
    assert_eq!(bench.ledger().dropped_damaged, 1);
}

#[test]
fn a_segment_that_is_gone_is_counted_as_damage() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 200);
    let gone = bench.disk.segments().remove(1);
    let last: u64 = bench.disk.segments()[2].file_stem().unwrap().to_string_lossy().parse().unwrap();
    let first: u64 = gone.file_stem().unwrap().to_string_lossy().parse().unwrap();
    bench.disk.kill();
    Storage::remove(&bench.disk, &gone).unwrap();
    let bench = bench.reopen();
    assert_eq!(bench.recovery.damaged, [(Offset(first), Offset(last - 1))]);
    assert_eq!(bench.ledger().buffered, 200 - (last - first));
    assert_eq!(bench.offsets().len() as u64, 200 - (last - first));
}

#[test]
fn a_damaged_segment_header_costs_nothing() {
    for closed in [false, true] {
        let mut bench = Bench::new(config());
        bench.put_all(0, 10);
        let path = bench.disk.segments().remove(0);
        if closed {
            bench = bench.close_and_reopen();
        }
        bench.disk.kill();
        bench.disk.change(&path, |bytes| bytes[..SEGMENT_HEADER].fill(0));
        let bench = bench.reopen();
        assert_eq!(bench.offsets(), (0..10).collect::<Vec<_>>(), "closed: {closed}");
    }
}

/// Six records of 100 kB, each in a frame of its own, after a kill.
fn large(records: u64) -> Bench {
    let mut bench = Bench::new(Config { max_size: ByteSize(64 << 20), ..config() });
    for n in 0..records {
        bench.put_patiently(&vec![n as u8; 100_000]).unwrap();
        bench.log.commit();
    }
    bench.disk.kill();
    bench
}

#[test]
fn r07_a_damaged_first_page_costs_the_record_in_it_however_large_that_is() {
    for closed in [false, true] {
        let mut bench = large(6);
        if closed {
            bench = bench.reopen();
            bench.disk.kill();
        }
        let path = bench.disk.segments().remove(0);
        bench.disk.change(&path, |bytes| bytes[..4_096].fill(0));
        let looked = audit(&bench.disk);
        assert_eq!((looked.found, looked.missing, looked.ok), (5, 1, false), "closed: {closed}, {looked:?}");
        let bench = bench.reopen();
        assert_eq!(bench.offsets(), [1, 2, 3, 4, 5], "closed: {closed}");
        assert_eq!((bench.recovery.torn_bytes, bench.ledger().dropped_damaged), (0, 1), "closed: {closed}");
    }
}

#[test]
fn r07_a_last_segment_that_cannot_be_read_is_no_torn_tail_but_a_finding() {
    let bench = large(1);
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| bytes.fill(0));
    let mut bench = bench.reopen();
    assert_eq!(bench.recovery.torn_bytes, 0, "it was acknowledged, and nothing on disk says so");
    let notes = &bench.recovery.notes;
    assert!(notes.iter().any(|note| note.contains("how many is not known, and they are in no figure")), "{notes:?}");
    let next = bench.put_patiently(&body(0)).unwrap();
    assert!(next > 1, "{next} may have been given");
    bench.turn();
    bench.disk.kill();
    let looked = audit(&bench.disk);
    let found: Vec<_> = looked.findings.iter().map(|finding| (finding.trouble, finding.file.as_deref())).collect();
    assert_eq!(found, [(Trouble::PutAside, Some("00000000000000000000.seg.damaged"))]);
    assert!(!looked.ok && looked.put_aside == 1);
    assert!(audit_on(&bench.disk, dir(), true).unwrap().ok);
    let bench = bench.kill_and_reopen();
    assert!(bench.recovery.notes.iter().any(|note| note.contains("was put aside as damaged")), "it is not forgotten");
    bench.disk.kill();
    assert!(audit(&bench.disk).ok, "it is known");
}

#[test]
fn r11_a_segment_that_was_put_aside_by_hand_has_its_numbers_for_itself() {
    let bench = large(1);
    let path = bench.disk.segments().remove(0);
    Storage::rename(&bench.disk, &path, &path.with_extension("seg.damaged")).unwrap();
    let bench = bench.reopen();
    assert!(bench.put(&body(0)).unwrap() > 1);
}

#[test]
fn lost_meta_and_cursor_files_repeat_records_and_lose_none() {
    for lost in ["meta", "cursors"] {
        for zeroed in [false, true] {
            let mut bench = Bench::new(config());
            bench.put_all(0, 30);
            bench.settle(0..5);
            let uuid = bench.log.identity.uuid;
            let bench = bench.close_and_reopen();
            bench.disk.kill();
            let path = dir().join(lost);
            if zeroed {
                bench.disk.change(&path, |bytes| bytes.fill(0xff));
            } else {
                Storage::remove(&bench.disk, &path).unwrap();
            }
            let bench = bench.reopen();
            assert!(!bench.recovery.notes.is_empty(), "{lost}");
            assert_eq!(bench.recovery.damaged, []);
            let from = if lost == "meta" { 5 } else { 0 };
            assert_eq!(bench.offsets(), (from..30).collect::<Vec<_>>());
            assert_eq!(bench.log.identity.uuid, uuid);
            bench.ledger();
        }
    }
}

#[test]
fn foreign_files_are_noted_and_left_alone() {
    let disk = SimDisk::default();
    for name in ["notes.txt", "1.seg", "99999999999999999999.seg"] {
        disk.put(&dir().join(name), b"not ours");
    }
    let mut bench = Bench::open(disk, HandClock::new(), config());
    assert_eq!(bench.recovery.notes.len(), 3, "{:?}", bench.recovery.notes);
    bench.put_all(0, 3);
    assert_eq!(bench.offsets(), [0, 1, 2]);
    assert_eq!(bench.disk.read(&dir().join("1.seg")), b"not ours");
}

#[test]
fn a_file_in_the_way_of_the_next_segment_is_kept_aside() {
    let disk = SimDisk::default();
    disk.put(&dir().join("00000000000000000000.seg"), &[7; 500]);
    let mut bench = Bench::open(disk, HandClock::new(), config());
    bench.put_all(0, 3);
    assert_eq!(bench.disk.read(&dir().join("00000000000000000000.seg.damaged")), [7; 500]);
}

#[test]
fn r36_a_folder_of_a_later_format_is_refused_in_clear_words() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 3);
    bench.disk.kill();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| {
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    let error = try_open(&bench.disk, &bench.clock, &bench.config, WINDOW).unwrap_err();
    assert!(error.to_string().contains("later version of Tidegate (format 9; this program knows 1)"), "{error}");
}

#[test]
fn after_a_failed_sync_the_records_are_written_again_and_receipts_settle() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 5);
    bench.disk.faults(Faults { syncs: 1, ..Faults::default() });
    let offset = bench.put(&body(5)).unwrap();
    bench.turn();
    assert_eq!(bench.shared.mark.mark().decided(offset), Some(Ok(())));
    assert_eq!(bench.disk.segments().len(), 2, "the failed file is not used again");
    bench.put_all(6, 8);
    assert_eq!(bench.offsets(), (0..8).collect::<Vec<_>>());
    bench.disk.cut_power(&mut Dice(1));
    let bench = bench.reopen();
    assert_eq!(bench.recovery.damaged, []);
    assert_eq!(bench.offsets(), (0..8).collect::<Vec<_>>());
    bodies_match(&bench);
}

#[test]
fn after_a_second_failure_receipts_are_rejected_and_offers_refused_and_reading_goes_on() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 5);
    bench.disk.faults(Faults { syncs: 2, ..Faults::default() });
    let offset = bench.put(&body(5)).unwrap();
    bench.turn();
    assert!(matches!(bench.shared.mark.mark().decided(offset), Some(Err(_))));
    assert!(matches!(bench.put(&body(6)), Err(Verdict::Refused(Refused::Failed(_)))));
    assert!(bench.shared.stats().failed.is_some());
    let mut reader = bench.reader();
    assert_eq!(reader.next(10, 1 << 20).now_or_never().unwrap().unwrap().len(), 5);
    bench.settle(0..5);
    bench.turn();
    assert_eq!(bench.ledger().delivered, 5);
    let bench = bench.close_and_reopen();
    assert_eq!(bench.ledger().delivered, 5);
    bench.put(&body(5)).unwrap();
}

#[test]
fn an_interval_that_fails_to_sync_writes_everything_unsynced_again() {
    let interval = Duration::from_millis(200);
    let mut bench = Bench::new(Config { sync: SyncMode::Interval(interval), ..config() });
    bench.put_all(0, 5);
    assert_eq!(bench.durable(), 5, "acknowledged at once");
    bench.clock.pass(interval);
    bench.turn();
    bench.put_all(5, 9);
    bench.disk.faults(Faults { syncs: 1, ..Faults::default() });
    bench.clock.pass(interval);
    bench.turn();
    assert_eq!(bench.offsets(), (0..9).collect::<Vec<_>>());
    bench.disk.cut_power(&mut Dice(3));
    let bench = bench.reopen();
    assert_eq!(bench.offsets(), (0..9).collect::<Vec<_>>());
    assert_eq!(bench.ledger().dropped_damaged, 0);
}

#[test]
fn an_interval_s_last_sync_that_fails_at_the_end_writes_it_once_more() {
    let mut bench = Bench::new(Config { sync: SyncMode::Interval(Duration::from_secs(1)), ..config() });
    bench.put_all(0, 5);
    bench.disk.faults(Faults { syncs: 1, ..Faults::default() });
    let Bench { disk, clock, config, log, .. } = bench;
    log.finish();
    disk.cut_power(&mut Dice(3));
    let bench = Bench::open(disk, clock, config);
    assert_eq!(bench.offsets(), (0..5).collect::<Vec<_>>());
    assert_eq!(bench.recovery.damaged, []);
}

#[test]
fn a_cursor_that_cannot_be_saved_is_shown_and_tried_once_a_second() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 40);
    bench.settle(0..20);
    bench.disk.faults(Faults { after: Some(0), failing: usize::MAX, ..Faults::default() });
    drop(bench.disk.calls());
    for _ in 0..50 {
        bench.turn();
    }
    assert_eq!(bench.disk.calls().len(), 1, "not at each turn");
    assert!(bench.log.next_look() >= Some(Duration::from_millis(999)), "{:?}", bench.log.next_look());
    assert!(bench.shared.stats().cursor_error.is_some());
    assert_eq!(bench.shared.stats().failed, None);
    let mut reader = bench.reader();
    assert_eq!(reader.next(100, 1 << 20).now_or_never().unwrap().unwrap().len(), 20, "the link goes on");
    bench.disk.faults(Faults::default());
    bench.clock.pass(Duration::from_secs(1));
    bench.turn();
    assert_eq!(bench.shared.stats().cursor_error, None);
    assert_eq!(bench.kill_and_reopen().ledger().delivered, 20);
}

#[test]
fn a_delivered_segment_that_cannot_be_deleted_still_counts_and_is_tried_again() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 200);
    let before = bench.disk.segments().len();
    assert!(before > 3);
    bench.settle(0..200);
    bench.disk.faults(Faults { removes: 2, ..Faults::default() });
    for _ in 0..3 {
        bench.turn();
    }
    let (stats, left) = (bench.shared.stats(), bench.disk.segments());
    let on_disk: u64 = left.iter().map(|path| bench.disk.len(path)).sum();
    assert!(stats.stuck_bytes > 0 && stats.disk_bytes == on_disk, "{stats:?}, and {on_disk} in {left:?}");
    bench.put(&body(200)).unwrap();
    bench.clock.pass(Duration::from_secs(10));
    bench.turn();
    assert_eq!((bench.shared.stats().stuck_bytes, bench.disk.segments().len()), (0, left.len() - 2));
}

#[test]
fn a_full_disk_keeps_the_batch_confirms_and_deletes_and_goes_on_when_there_is_room() {
    let mut bench = Bench::new(Config { when_full: WhenFull::Reject, max_size: ByteSize(1 << 20), ..config() });
    bench.put_all(0, 600);
    let used = bench.disk.used();
    bench.disk.capacity(Some(used + 100));
    let offset = bench.put_patiently(&body(600)).unwrap();
    bench.turn();
    assert_eq!(bench.shared.mark.mark().decided(offset), None, "neither stored nor refused");
    assert_eq!(bench.put(&body(601)), Err(Verdict::Refused(Refused::Full)));
    assert_eq!(bench.shared.stats().failed, None);
    assert_eq!(bench.read_all().len(), 600);
    bench.settle(0..600);
    bench.turn();
    bench.turn();
    assert_eq!(bench.shared.mark.mark().decided(offset), Some(Ok(())));
    bench.put_patiently(&body(601)).unwrap();
    bench.turn();
    assert_eq!(bench.offsets(), [600, 601]);
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.offsets(), [600, 601]);
    assert_eq!(bench.ledger(), Ledger { accepted: 602, delivered: 600, buffered: 2, ..Ledger::default() });
}

#[test]
fn a_full_disk_with_drop_oldest_goes_on_at_the_cost_of_the_oldest() {
    let mut bench = Bench::new(Config { max_size: ByteSize(1 << 20), ..config() });
    bench.put_all(0, 3_000);
    let used = bench.disk.used();
    bench.disk.capacity(Some(used + 100));
    for n in 3_000..5_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
    }
    for _ in 0..4 {
        bench.turn();
    }
    assert_eq!(bench.durable(), 5_000);
    let ledger = bench.ledger();
    assert_eq!(ledger.dropped_min_free + ledger.buffered, 5_000);
    assert!(ledger.buffered > 2_000, "{ledger:?}");
    assert_eq!(bench.offsets().len() as u64, ledger.buffered);
}

#[test]
fn r09_a_kill_repeats_at_most_two_windows() {
    const WINDOW: u64 = 8;
    for extra in 0..2 * WINDOW {
        let mut bench = Bench::new(config());
        bench.put_all(0, 100);
        for from in (0..40).step_by(5) {
            bench.settle(from..from + 5);
            bench.turn();
        }
        bench.settle(40..40 + extra);
        if extra >= WINDOW {
            bench.turn();
        }
        let bench = bench.kill_and_reopen();
        let repeated = 40 + extra - bench.shared.stats().cursor.0;
        assert!(repeated <= 2 * WINDOW, "{repeated} after {extra}");
        bench.ledger();
    }
}

/// Flipped bits and zeroed pages anywhere: it opens, what is read is what was written, nothing is read twice, and what is
/// missing is in the ledger.
#[test]
fn whatever_is_damaged_it_opens_and_counts() {
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut bench = Bench::new(config());
        bench.put_all(0, 40 + dice.roll(160));
        bench.settle(0..dice.roll(60));
        bench.turn();
        let mut bench = if dice.roll(2) == 0 { bench.close_and_reopen() } else { bench };
        bench.disk.kill();
        let mut files = bench.disk.segments();
        files.extend(["meta", "cursors"].map(|name| dir().join(name)));
        for _ in 0..=dice.roll(6) {
            let file = &files[dice.roll(files.len() as u64) as usize];
            bench.disk.change(file, |bytes| {
                let at = dice.roll(bytes.len() as u64) as usize;
                if dice.roll(3) == 0 {
                    let end = bytes.len().min(at + 512);
                    bytes[at..end].fill(0);
                } else {
                    bytes[at] ^= 1 << dice.roll(8);
                }
            });
        }
        for _ in 0..2 {
            bench = bench.kill_and_reopen();
            let records = bench.read_all();
            assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "seed {seed}");
            bodies_match(&bench);
            let ledger = bench.ledger();
            assert_eq!(ledger.buffered, records.len() as u64, "seed {seed}: {ledger:?}");
        }
        let next = bench.shared.stats().next.0;
        bench.put_all(next, next + 5);
        bench.settle(0..next + 5);
        bench.turn();
        assert_eq!(bench.ledger().buffered, 0, "seed {seed}");
    }
}

/// Every changing call fails in turn, once or for good; what was acknowledged survives a power cut, and damage is never
/// reported, because there is none.
#[test]
fn whichever_call_fails_nothing_acknowledged_is_lost() {
    for failing in [1, 2, usize::MAX] {
        for nth in 0..90 {
            let (disk, clock) = (SimDisk::default(), HandClock::new());
            let mut bench = Bench::open(
                disk,
                clock,
                Config { max_size: ByteSize(40 << 10), when_full: WhenFull::Block, ..config() },
            );
            bench.disk.faults(Faults { after: Some(nth), failing, ..Faults::default() });
            let mut settled = 0;
            for n in 0..120 {
                let _taken = bench.put(&body(n));
                bench.turn();
                if n % 10 == 9 {
                    let half = bench.durable() / 2;
                    bench.settle(settled..half);
                    settled = half;
                }
            }
            let durable = bench.durable();
            bench.disk.cut_power(&mut Dice(nth as u64));
            let bench = bench.reopen();
            let floor = bench.shared.stats().cursor.0;
            let case = format!("{failing} from {nth}");
            // Beyond it only over numbers that were left out.
            assert!(floor <= settled || (durable == settled && floor > durable), "{case}: {floor} {settled}");
            assert_eq!(bench.recovery.damaged, [], "{case}");
            let offsets = bench.offsets();
            assert!(
                offsets.starts_with(&(floor..durable).collect::<Vec<_>>()),
                "{case}: {floor} {durable} {offsets:?}"
            );
            bodies_match(&bench);
            bench.ledger();
        }
    }
}
