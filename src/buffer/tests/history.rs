//! Reading what is still there, delivered or not, from anywhere.

use std::time::Duration;

use futures_util::FutureExt;

use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::history::between;
use super::super::*;
use super::bench::{Bench, body, config};

fn keeping(compress: Compression) -> Config {
    let keep = Keep { age: None, size: Some(ByteSize(1 << 30)) };
    Config { max_size: ByteSize(1 << 20), compress, keep_delivered: Some(keep), ..config() }
}

/// Records 0 to 3000, of which `delivered` are, in many segments.
fn full(compress: Compression, delivered: u64) -> Bench {
    let mut bench = Bench::new(keeping(compress));
    for n in 0..3_000 {
        bench.put_patiently(&body(n)).unwrap();
        if n % 5 == 0 {
            bench.turn();
        }
    }
    bench.turn();
    bench.settle(0..delivered);
    bench.turn();
    bench
}

fn history(bench: &Bench, from: u64, until: u64) -> History {
    History::new(Arc::clone(&bench.shared), Arc::new(bench.disk.clone()), Offset(from), Offset(until))
}

fn read(mut history: History) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let read = history.next(7, 1 << 20).now_or_never().unwrap().unwrap();
        if read.is_empty() {
            assert_eq!(history.position().max(history.end()), history.position(), "it is at its end");
            return records;
        }
        records.extend(read);
    }
}

fn offsets(records: &[Record]) -> Vec<u64> {
    assert!(records.iter().all(|record| record.body == body(record.offset.0)));
    records.iter().map(|record| record.offset.0).collect()
}

#[test]
fn it_begins_and_ends_anywhere_delivered_or_not() {
    for compress in [Compression::None, Compression::Zstd, Compression::Lz4] {
        let bench = full(compress, 2_000);
        let segments = bench.shared.state.lock().segments.len();
        assert!(compress != Compression::None || segments > 3, "{segments}");
        for bench in [bench, full(compress, 2_000).kill_and_reopen()] {
            let ledger = bench.ledger();
            for (from, until) in [(0, u64::MAX), (1_999, 2_001), (2_999, 9_000), (3_000, 9_000), (17, 17), (700, 1_300)]
            {
                let expected = (from.min(3_000)..until.min(3_000)).collect::<Vec<_>>();
                assert_eq!(offsets(&read(history(&bench, from, until))), expected, "{from}..{until}");
            }
            for from in (0..3_000).step_by(61) {
                assert_eq!(
                    offsets(&read(history(&bench, from, from + 3))),
                    (from..(from + 3).min(3_000)).collect::<Vec<_>>()
                );
            }
            assert_eq!(bench.ledger(), ledger, "reading says nothing of what is owed");
        }
    }
}

#[test]
fn a_place_to_begin_is_found_without_reading_the_segment_from_its_start() {
    let bench = full(Compression::None, 3_000);
    let state = bench.shared.state.lock();
    for segment in state.segments.iter() {
        assert!((1..=64).contains(&segment.points.len()), "a few places, however long it is");
        let (_, pos) = segment.start_for(segment.next - 1);
        assert!(pos * 4 > segment.data_end * 3, "{pos} of {}", segment.data_end);
    }
}

#[test]
fn what_is_damaged_or_gone_is_passed_over_and_the_ledger_does_not_change() {
    let mut bench = full(Compression::None, 3_000);
    let paths = bench.disk.segments();
    let bases: Vec<u64> = bench.shared.state.lock().segments.iter().map(|segment| segment.base).collect();
    bench.disk.change(&paths[1], |bytes| bytes[SEGMENT_HEADER + FRAME_HEADER + 20] ^= 1);
    let mut reader = history(&bench, 0, u64::MAX);
    let mut seen = reader.next(3, 1 << 20).now_or_never().unwrap().unwrap();
    // Deleted by its age or for its room while it is read.
    bench.disk.remove(&paths[2]).unwrap();
    seen.extend(read(reader));
    let seen = offsets(&seen);
    let first_frame = bases[1]..bases[1] + 5;
    let missing: Vec<u64> = (0..3_000).filter(|n| !seen.contains(n)).collect();
    let expected: Vec<u64> = first_frame.chain(bases[2]..bases[3]).collect();
    assert_eq!(missing, expected);
    assert_eq!(bench.ledger(), Ledger { accepted: 3_000, delivered: 3_000, ..Ledger::default() });
    bench.turn();
}

#[test]
fn it_begins_at_a_time_by_the_index() {
    let mut bench = Bench::new(keeping(Compression::None));
    let start = bench.shared.clock.wall().0;
    for n in 0..3_000 {
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
        bench.clock.pass(Duration::from_millis(100));
    }
    bench.settle(0..1_000);
    for _ in 0..2 {
        let state = bench.shared.state.lock();
        for n in [0, 1, 500, 1_500, 2_999] {
            let at = WallMs(start + n * 100);
            let (first, end) = between(&state, Some(at), Some(WallMs(at.0 + 1)));
            assert!(first <= n && n < end, "{n} in {first}..{end}");
            assert!(end - first < 60, "and little more: {first}..{end}");
        }
        assert_eq!(between(&state, None, None), (0, 3_000));
        assert_eq!(between(&state, None, Some(WallMs(start))).1, 0, "nothing is older than the first");
        let (first, _) = between(&state, Some(WallMs(start + 9_000_000)), None);
        assert!(first > 2_900, "only the last stretch may be that young: {first}");
        drop(state);
        // The same from footers, and from a scan.
        bench = bench.kill_and_reopen();
    }
}

#[test]
fn r08_a_step_of_the_clock_back_hides_nothing() {
    let mut bench = Bench::new(keeping(Compression::None));
    let start = bench.shared.clock.wall().0;
    for n in 0..1_000 {
        if n == 500 {
            bench.clock.step_wall(-40_000);
        }
        bench.put_patiently(&body(n)).unwrap();
        bench.turn();
        bench.clock.pass(Duration::from_millis(100));
    }
    // 45 s after the start was twice: record 450, and record 850.
    let at = WallMs(start + 45_000);
    let (first, end) = between(&bench.shared.state.lock(), Some(at), Some(WallMs(at.0 + 100)));
    let records = read(history(&bench, first, end));
    let found: Vec<u64> = records.iter().filter(|r| r.appended == at).map(|r| r.offset.0).collect();
    assert_eq!(found, [450, 850]);
}

#[test]
fn r07_replayed_records_are_counted_apart_and_survive_a_restart() {
    let mut bench = full(Compression::None, 3_000);
    bench.shared.state.lock().tracker.count_replayed(17);
    let counted = Ledger { accepted: 3_000, delivered: 3_000, replayed: 17, ..Ledger::default() };
    assert_eq!(bench.ledger(), counted);
    bench.clock.pass(Duration::from_secs(2));
    bench.turn();
    assert_eq!(bench.kill_and_reopen().ledger(), counted);
}

#[tokio::test]
async fn the_face_reads_what_the_link_has_delivered_already() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { age: Some(Duration::from_secs(3_600)), size: None };
    let config = Config { keep_delivered: Some(keep), ..super::face::config(dir.path()) };
    let (buffer, _) = Buffer::open(config.clone(), 8, crate::clock::system()).unwrap();
    for n in 0..200_u32 {
        let offset = super::face::put(&buffer, format!("record {n}").as_bytes()).await;
        buffer.mark().passed(offset.0).await.unwrap();
        buffer.settle(offset, Outcome::Delivered);
    }
    buffer.close().await;
    drop(buffer);
    let (buffer, _) = Buffer::open(config, 8, crate::clock::system()).unwrap();
    let (from, until) = buffer.between(Some(WallMs(1)), None);
    let mut history = buffer.history(from, until);
    let mut read = 0;
    loop {
        let records = history.next(64, 1 << 20).await.unwrap();
        if records.is_empty() {
            break;
        }
        for record in records {
            assert_eq!(record.body, format!("record {read}"));
            read += 1;
        }
    }
    assert_eq!(read, 200);
    assert_eq!(buffer.stats().first, Offset(0));
    buffer.close().await;
}

#[test]
fn a_slot_file_gives_back_what_was_saved_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let (mut file, held) = SlotFile::open(&path).unwrap();
    assert_eq!(held, None);
    file.save(b"one", true).unwrap();
    file.save(b"two", false).unwrap();
    assert!(file.save(&vec![0; SlotFile::BYTES_MAX + 1], false).is_err());
    drop(file);
    assert_eq!(SlotFile::open(&path).unwrap().1.as_deref(), Some(&b"two"[..]));
    std::fs::write(&path, vec![7; 40_000]).unwrap();
    let error = SlotFile::open(&path).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}
