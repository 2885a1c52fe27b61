//! Export, import and repair: what is carried arrives once, whatever is interrupted; what is sound stays.

use std::sync::Arc;

use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::offline::audit::audit_on;
use super::super::offline::carry::{export_on, read_file};
use super::super::offline::import::import_on;
use super::super::offline::{CarryError, Imported, Start};
use super::super::storage::Storage;
use super::super::*;
use super::bench::{Bench, HandClock, body, config, dir};
use super::disk::{Faults, SimDisk};
use super::face;
use crate::units::ByteSize;

fn file() -> &'static std::path::Path {
    std::path::Path::new("/stick/far.tgx")
}

fn there() -> Config {
    Config { dir: PathBuf::from("/other/far"), max_size: ByteSize(1 << 20), ..config() }
}

/// A file of records 5 to `count` of a log, and the bytes of it.
fn exported(count: u64) -> (Bench, Vec<u8>) {
    let mut bench = Bench::new(Config { max_size: ByteSize(1 << 20), ..config() });
    bench.put_all(0, count);
    bench.settle(0..5);
    bench.log.save_cursor(true).unwrap();
    let manifest = export_on(&bench.disk, dir(), "ship", Start::Cursor, file()).unwrap();
    assert_eq!((manifest.records, manifest.range), (count - 5, Some((Offset(5), Offset(count - 1)))));
    let bytes = bench.disk.read(file());
    (bench, bytes)
}

fn import(disk: &SimDisk) -> Result<Imported, CarryError> {
    import_into(disk, &there())
}

fn import_into(disk: &SimDisk, config: &Config) -> Result<Imported, CarryError> {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    import_on(&storage, config, 8, HandClock::new(), file(), |_, body| body)
}

/// What the other log holds, in order; each body must be there once.
fn arrived(disk: &SimDisk) -> Vec<Vec<u8>> {
    let bench = Bench::open(disk.clone(), HandClock::new(), there());
    let bodies = bench.read_all().iter().map(|record| record.body.to_vec()).collect();
    bench.log.finish();
    assert!(audit_on(disk, &there().dir, false).unwrap().ok);
    bodies
}

#[test]
fn what_is_exported_is_imported_once_and_stays_where_it_was() {
    let (source, bytes) = exported(600);
    assert_eq!(source.ledger().buffered, 595, "an export settles nothing");
    let disk = SimDisk::default();
    disk.put(file(), &bytes);
    let first = import(&disk).unwrap();
    assert_eq!((first.taken, first.before, &*first.manifest.site, &*first.manifest.link), (595, 0, "ship", "log"));
    let again = import(&disk).unwrap();
    assert_eq!((again.taken, again.before), (0, 595));
    assert_eq!(arrived(&disk), (5..600).map(body).collect::<Vec<_>>());
    // A later export that holds the same records and more.
    let mut source = source;
    source.put_all(600, 610);
    export_on(&source.disk, dir(), "ship", Start::Cursor, file()).unwrap();
    disk.put(file(), &source.disk.read(file()));
    let more = import(&disk).unwrap();
    assert_eq!((more.taken, more.before), (10, 595));
    assert_eq!(arrived(&disk).len(), 605);
}

#[test]
fn what_is_imported_is_durable_whatever_the_link_s_way_to_sync() {
    let (source, bytes) = exported(600);
    let sent: Vec<Vec<u8>> = source.read_all().iter().map(|record| record.body.to_vec()).collect();
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_secs(1)), SyncMode::Spill(Duration::from_secs(2))] {
        let disk = SimDisk::default();
        disk.put(file(), &bytes);
        let imported = import_into(&disk, &Config { sync, ..there() }).unwrap();
        assert_eq!((imported.taken, imported.before), (595, 0), "{sync:?}");
        let syncs_of = |calls: &[String], end: &str| {
            calls.iter().filter(|call| call.starts_with("sync ") && call.ends_with(end)).count()
        };
        let disk = SimDisk::default();
        disk.put(file(), &bytes);
        drop(disk.calls());
        import_into(&disk, &Config { sync, ..there() }).unwrap();
        let calls = disk.calls();
        assert!(syncs_of(&calls, ".seg") >= 595 / 256, "a sync of the log for each batch: {calls:?}");
        assert_eq!(arrived(&disk), sent, "{sync:?}");
    }
}

#[test]
fn an_import_that_is_killed_at_any_call_is_completed_by_a_repeat_and_doubles_nothing() {
    let (_, bytes) = exported(600);
    for after in (0..60).step_by(1) {
        let disk = SimDisk::default();
        disk.put(file(), &bytes);
        disk.faults(Faults { after: Some(after), failing: usize::MAX, ..Faults::default() });
        let first = import(&disk);
        disk.faults(Faults::default());
        disk.kill();
        if after % 3 == 0 {
            // A gateway runs in between, delivers what is there, and takes something else.
            let mut bench = Bench::open(disk.clone(), HandClock::new(), there());
            let before: Vec<_> = bench.read_all().iter().map(|record| record.body.to_vec()).collect();
            bench.put_patiently(b"a message of its own").unwrap();
            bench.turn();
            assert_eq!(before, (5..5 + before.len() as u64).map(body).collect::<Vec<_>>());
            let next = bench.shared.stats().next.0;
            bench.settle(0..next);
            bench.turn();
            bench.log.finish();
            disk.kill();
            let second = import(&disk).unwrap();
            assert_eq!(second.taken + before.len() as u64, 595, "after {after} calls");
        } else {
            let second = import(&disk).unwrap();
            assert!(first.is_err() || second.taken == 0, "after {after} calls");
            assert_eq!(arrived(&disk), (5..600).map(body).collect::<Vec<_>>(), "after {after} calls");
        }
    }
}

#[test]
fn a_file_that_is_not_whole_is_refused_before_anything_is_taken() {
    let (_, bytes) = exported(30);
    let disk = SimDisk::default();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        disk.put(file(), &flipped);
        let read = read_file(&disk, file(), |_| std::ops::ControlFlow::Continue(()));
        assert!(read.is_err(), "byte {at}");
        disk.put(file(), &bytes[..at]);
        assert!(read_file(&disk, file(), |_| std::ops::ControlFlow::Continue(())).is_err(), "cut at {at}");
    }
    disk.put(file(), &bytes[..bytes.len() - 1]);
    assert!(matches!(import(&disk), Err(CarryError::Damaged { .. })));
    assert!(disk.list(&there().dir).is_err() || disk.list(&there().dir).unwrap().is_empty(), "nothing was made");
}

#[test]
fn what_is_damaged_is_missed_in_the_file_and_a_later_file_brings_it() {
    // At the beginning, in the midst, at the end; in a segment that is being written and in one that is closed.
    for (record, closed) in [(0, false), (30, true), (30, false), (59, true), (59, false)] {
        let case = format!("record {record}, closed: {closed}");
        let mut bench = Bench::new(Config { max_size: ByteSize(1 << 20), ..config() });
        bench.put_all(0, 60);
        bench.log.save_cursor(true).unwrap();
        if closed {
            bench.log.finish();
        }
        let path = bench.disk.segments().pop().unwrap();
        let whole = bench.disk.read(&path);
        let frame = FRAME_HEADER + 16 + body(0).len().next_multiple_of(8);
        let at = SEGMENT_HEADER + record * frame + FRAME_HEADER + 20;
        bench.disk.change(&path, |bytes| bytes[at] ^= 1);
        let there = SimDisk::default();
        let export = || {
            let manifest = export_on(&bench.disk, dir(), "ship", Start::Cursor, file()).unwrap();
            there.put(file(), &bench.disk.read(file()));
            manifest
        };
        let some = export();
        assert_eq!((some.records, some.missing), (59, 1), "{case}: {some:?}");
        let first = import(&there).unwrap();
        assert_eq!((first.taken, first.manifest.missing), (some.records, some.missing), "{case}");
        // It was the reading, not the data.
        bench.disk.change(&path, |bytes| bytes.clone_from(&whole));
        assert_eq!(export().missing, 0, "{case}");
        let second = import(&there).unwrap();
        assert_eq!((second.taken, second.before), (some.missing, some.records), "{case}");
        let mut all = arrived(&there);
        all.sort();
        let mut expected: Vec<_> = (0..60).map(body).collect();
        expected.sort();
        assert_eq!(all, expected, "{case}");
        assert_eq!(import(&there).unwrap().taken, 0, "{case}");
    }
}

#[test]
fn a_buffer_does_not_take_its_own_records_twice() {
    let (source, _) = exported(30);
    let Bench { disk, log, config, .. } = source;
    log.finish();
    disk.kill();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let own = import_on(&storage, &config, 8, HandClock::new(), file(), |_, body| body);
    assert!(matches!(own, Err(CarryError::Own(_))), "{own:?}");
}

#[test]
fn an_import_into_a_full_buffer_stops_and_goes_on_when_there_is_room() {
    let (_, bytes) = exported(600);
    let small = Config { max_size: ByteSize(32 << 10), ..there() };
    let disk = SimDisk::default();
    disk.put(file(), &bytes);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let (mut all, mut rounds) = (Vec::new(), 0);
    loop {
        let imported = import_on(&storage, &small, 8, HandClock::new(), file(), |_, body| body);
        let mut bench = Bench::open(disk.clone(), HandClock::new(), small.clone());
        all.extend(bench.read_all().iter().map(|record| record.body.to_vec()));
        let next = bench.shared.stats().next.0;
        bench.settle(0..next);
        bench.turn();
        bench.log.finish();
        disk.kill();
        rounds += 1;
        match imported {
            Ok(_) => break,
            Err(CarryError::Full { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(rounds < 100);
    }
    assert!(rounds > 1);
    assert_eq!(all, (5..600).map(body).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_repair_keeps_what_is_sound_and_puts_the_rest_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("00000000000000000000.seg");
    let frame = FRAME_HEADER + 16 + 400;
    let open = || Buffer::open(face::config(folder.path()), 16, crate::clock::system()).unwrap();
    let (buffer, _) = open();
    for n in 0..20_u8 {
        let last = face::put(&buffer, &[n; 400]).await;
        buffer.mark().passed(last.0).await.unwrap();
    }
    buffer.close().await;
    assert_eq!(offline::repair(folder.path(), false).unwrap(), Vec::<String>::new(), "nothing to do");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] ^= 1;
    bytes[SEGMENT_HEADER + 3 * frame + 100] ^= 1;
    bytes[SEGMENT_HEADER + 7 * frame + 10] ^= 1;
    bytes[SEGMENT_HEADER + 19 * frame + 90] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let told = offline::repair(folder.path(), true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "only told");
    let done = offline::repair(folder.path(), false).unwrap();
    assert_eq!(told, done);
    assert!(done[0].contains("17 sound records"), "{done:?}");
    assert_eq!(std::fs::read(folder.path().join("00000000000000000000.seg.damaged")).unwrap(), bytes);
    assert_eq!(offline::repair(folder.path(), false).unwrap(), Vec::<String>::new(), "all is done");
    let audit = offline::audit(folder.path(), false).unwrap();
    assert_eq!((audit.damaged_bytes, audit.gap, audit.found, audit.ledger.dropped_damaged), (0, 0, 17, 3), "{audit:?}");
    let (buffer, recovery) = open();
    assert_eq!((recovery.buffered, recovery.damaged), (17, vec![]));
    let mut reader = buffer.reader();
    let mut read = Vec::new();
    while read.len() < 17 {
        read.extend(reader.next(99, 1 << 20).await.unwrap().iter().map(|record| (record.offset.0, record.body[0])));
    }
    assert!(read.iter().all(|(offset, n)| *offset == u64::from(*n)), "{read:?}");
    assert!(buffer.stats().ledger.balances());
    buffer.close().await;
}
