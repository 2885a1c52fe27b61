//! The audit: what it proves, and that it sees every kind of damage.

use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::offline::audit::audit_on;
use super::super::offline::records::each_number;
use super::super::offline::view::View;
use super::super::offline::walk::{Bounds, walk};
use super::super::offline::{LinkAudit, Trouble};
use super::super::*;
use super::bench::{Bench, config, dir};
use super::disk::SimDisk;
use super::face;
use crate::clock;
use crate::units::ByteSize;

/// Length of a frame with one record of the bench.
const FRAME: usize = FRAME_HEADER + 16 + 104;

pub(super) fn audit(disk: &SimDisk) -> LinkAudit {
    audit_on(disk, dir(), false).unwrap()
}

fn accept(disk: &SimDisk) -> LinkAudit {
    audit_on(disk, dir(), true).unwrap()
}

fn records(audit: &LinkAudit, trouble: Trouble) -> Vec<(u64, u64)> {
    audit.findings.iter().filter(|found| found.trouble == trouble).filter_map(|found| found.records).collect()
}

/// 20 records, the first 5 settled, then a kill.
fn killed() -> Bench {
    let mut bench = Bench::new(config());
    bench.put_all(0, 20);
    bench.settle(0..5);
    bench.log.save_cursor(true).unwrap();
    bench.disk.kill();
    bench
}

#[test]
fn r07_the_audit_counts_what_is_there_and_the_equation_holds() {
    let bench = killed();
    let audit = audit(&bench.disk);
    let ledger = Ledger { accepted: 20, delivered: 5, buffered: 15, ..Ledger::default() };
    assert_eq!((audit.ledger, audit.found, audit.records), (ledger, 15, 20));
    assert_eq!((audit.gap, audit.missing, audit.findings.len(), audit.ok), (0, 0, 0, true));
    let _so_far = bench.disk.calls();
    assert!(audit_on(&bench.disk, dir(), false).unwrap().ok);
    assert_eq!(bench.disk.calls(), Vec::<String>::new(), "it changes nothing");
}

/// A gateway writes on into a file that is longer than what it holds.
#[test]
fn what_is_written_while_tools_look_is_no_hole() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 5);
    let view = View::read(&bench.disk, dir()).unwrap();
    let path = bench.disk.segments().remove(0);
    assert!(bench.disk.shown_len(&path) > bench.disk.len(&path));
    assert_eq!(view.segments[0].len, bench.disk.len(&path));
    bench.put_all(5, 9);
    let bounds = Bounds { bytes: u64::MAX, number: u64::MAX, durable: u64::MAX };
    let walked = walk(&bench.disk, &view.segments[0], bounds, |_| {}).unwrap();
    assert_eq!((walked.next, walked.tail, walked.damaged.len()), (5, 0, 0));
    let mut seen = Vec::new();
    let numbers = each_number(&bench.disk, &view, 0, |number| {
        seen.push(number);
        std::ops::ControlFlow::Continue(())
    });
    numbers.unwrap();
    assert_eq!(seen.len(), 5);
}

#[test]
fn r07_a_hole_is_a_gap_with_its_exact_range_until_it_is_accepted() {
    let bench = killed();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| {
        bytes[SEGMENT_HEADER + 2 * FRAME + 60] ^= 1;
        bytes[SEGMENT_HEADER + 8 * FRAME + 60] ^= 1;
        bytes[SEGMENT_HEADER + 9 * FRAME + 100] ^= 1;
    });
    let found = audit(&bench.disk);
    assert_eq!(records(&found, Trouble::Missing), [(8, 9)], "2 was delivered");
    assert_eq!(records(&found, Trouble::Damaged), [(2, 2), (8, 9)]);
    assert_eq!((found.gap, found.missing, found.found, found.ok), (2, 2, 13, false));
    let damaged = found.findings.iter().find(|finding| finding.records == Some((2, 2))).unwrap();
    let from = (SEGMENT_HEADER + 2 * FRAME) as u64;
    assert_eq!(damaged.bytes, Some((from, from + FRAME as u64)));
    assert!(accept(&bench.disk).ok);
    assert!(audit(&bench.disk).ok, "it is remembered");
    // The next start counts it; that is the same damage.
    let bench = bench.kill_and_reopen();
    assert_eq!(bench.ledger().dropped_damaged, 2);
    assert_eq!(bench.recovery.notes, Vec::<String>::new(), "the file of what is accepted is one of ours");
    bench.disk.kill();
    let counted = audit(&bench.disk);
    assert!(counted.ok && counted.gap == 0 && counted.accepted_damaged == 2, "{counted:?}");
    bench.disk.change(&path, |bytes| bytes[SEGMENT_HEADER + 15 * FRAME + 60] ^= 1);
    let more = audit(&bench.disk);
    assert_eq!(records(&more, Trouble::Missing), [(15, 15)]);
    assert!(!more.ok, "new damage is not known");
}

#[test]
fn r07_damage_that_a_start_has_counted_is_a_no_until_it_is_accepted() {
    let bench = killed();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| bytes[SEGMENT_HEADER + 8 * FRAME + 60] ^= 1);
    let bench = bench.kill_and_reopen();
    bench.settle(5..20);
    let bench = bench.close_and_reopen();
    bench.disk.kill();
    let audit = audit(&bench.disk);
    assert_eq!((audit.ledger.dropped_damaged, audit.gap, audit.ok), (1, 0, false));
    assert!(accept(&bench.disk).ok);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let bench = killed();
    let path = bench.disk.segments().remove(0);
    bench.disk.change(&path, |bytes| bytes.truncate(SEGMENT_HEADER + 19 * FRAME + 50));
    // The cursor file says that 20 were durable: without it nothing on disk does.
    let audit = audit(&bench.disk);
    assert_eq!(records(&audit, Trouble::Missing), [(19, 19)]);
    let mut bench = Bench::new(config());
    bench.put_all(0, 20);
    bench.disk.kill();
    bench.disk.change(&path, |bytes| bytes.truncate(SEGMENT_HEADER + 19 * FRAME + 50));
    let audit = audit_on(&bench.disk, dir(), false).unwrap();
    assert_eq!((audit.torn_bytes, audit.found, audit.gap, audit.ok), (50, 19, 0, true), "{:?}", audit.findings);
}

#[test]
fn every_flipped_bit_of_a_segment_is_seen() {
    let mut bench = Bench::new(Config { max_size: ByteSize(32 << 10), ..config() });
    bench.put_all(0, 60);
    let Bench { disk, log, .. } = bench;
    log.finish();
    assert!(audit(&disk).ok);
    let segments = disk.segments();
    assert!(segments.len() > 1);
    for path in segments {
        for at in 0..disk.read(&path).len() {
            disk.change(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let audit = audit(&disk);
            assert!(!audit.ok && audit.damaged_bytes > 0, "byte {at} of {}: {audit:?}", path.display());
            disk.change(&path, |bytes| bytes[at] ^= 1 << (at % 8));
        }
    }
}

#[test]
fn a_segment_that_somebody_took_away_is_an_exact_gap() {
    let mut bench = Bench::new(Config { max_size: ByteSize(32 << 10), ..config() });
    bench.put_all(0, 60);
    bench.disk.kill();
    let segments = bench.disk.segments();
    let base = |at: usize| segments[at].file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let gone = (base(1), base(2) - 1);
    Storage::remove(&bench.disk, &segments[1]).unwrap();
    let found = audit(&bench.disk);
    assert_eq!(records(&found, Trouble::Missing), [gone]);
    assert_eq!(found.gap, (gone.1 - gone.0 + 1).cast_signed());
    disk_without_a_cursor(&bench.disk);
}

fn disk_without_a_cursor(disk: &SimDisk) {
    disk.change(&dir().join("cursors"), |bytes| bytes.fill(0xff));
    let found = audit(disk);
    assert!(found.findings.iter().any(|finding| finding.file.as_deref() == Some("cursors")), "{found:?}");
}

#[test]
fn r07_a_figure_that_is_wrong_is_seen_although_no_record_is_missing() {
    let mut bench = Bench::new(config());
    bench.put_all(0, 20);
    bench.settle(0..5);
    bench.shared.state.lock().tracker.drop_unnumbered(cursor::Drop::Age);
    // What a bug in the ledger would look like: a drop that nobody took.
    let mut saved = bench.shared.state.lock().tracker.encode(20);
    saved[3 * 8] = 0;
    bench.log.cursors.save(&saved).unwrap();
    bench.log.cursors.sync().unwrap();
    bench.disk.kill();
    let found = audit(&bench.disk);
    assert_eq!((found.gap, found.missing, found.ok), (-1, 0, false));
    assert_eq!(found.findings.iter().map(|finding| finding.trouble).collect::<Vec<_>>(), [Trouble::Ledger]);
}

fn face_config(path: &std::path::Path) -> Config {
    Config { max_size: ByteSize(1 << 20), ..face::config(path) }
}

#[tokio::test]
async fn r07_a_log_in_use_is_audited_while_records_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let (buffer, _) = Buffer::open(face_config(folder.path()), 16, clock::system()).unwrap();
    let (writing, audited) = (buffer.clone(), buffer.clone());
    let mut work = tokio::task::JoinSet::new();
    work.spawn(async move {
        for round in 0..40_u64 {
            for _ in 0..50 {
                let last = face::put(&writing, &[7; 400]).await;
                writing.mark().passed(last.0).await.unwrap();
            }
            (round * 50..round * 50 + 45).for_each(|at| writing.settle(Offset(at), Outcome::Delivered));
            (round * 50 + 45..round * 50 + 50).for_each(|at| writing.settle(Offset(at), Outcome::Expired));
        }
    });
    let mut audits = 0;
    while work.try_join_next().is_none() {
        let buffer = audited.clone();
        let audit = tokio::task::spawn_blocking(move || buffer.audit(false)).await.unwrap().unwrap();
        assert!(audit.ok && audit.gap == 0, "{audit:?}");
        audits += 1;
    }
    assert!(audits > 0);
    let audit = buffer.audit(false).unwrap();
    assert_eq!((audit.ledger.delivered, audit.ledger.expired, audit.found), (1_800, 200, 0));
    buffer.close().await;
    assert!(offline::audit(folder.path(), false).unwrap().ok);
}

#[tokio::test]
async fn r07_a_log_in_use_whose_file_is_damaged_is_a_no() {
    let folder = tempfile::tempdir().unwrap();
    let (buffer, _) = Buffer::open(face_config(folder.path()), 16, clock::system()).unwrap();
    for _ in 0..10 {
        let last = face::put(&buffer, &[7; 400]).await;
        buffer.mark().passed(last.0).await.unwrap();
    }
    let path = folder.path().join("00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[SEGMENT_HEADER + 3 * (FRAME_HEADER + 416) + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let audit = buffer.audit(false).unwrap();
    assert_eq!(records(&audit, Trouble::Missing), [(3, 3)]);
    assert!(!audit.ok);
    assert!(buffer.audit(true).unwrap().ok);
    buffer.close().await;
    assert!(offline::audit(folder.path(), false).unwrap().ok);
}

/// Five records on a real disk; then the segment is something that cannot be read at all.
async fn with_an_unreadable_segment() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (buffer, _) = Buffer::open(face_config(folder.path()), 16, clock::system()).unwrap();
    for _ in 0..5 {
        let last = face::put(&buffer, &[7; 400]).await;
        buffer.mark().passed(last.0).await.unwrap();
    }
    buffer.close().await;
    let path = folder.path().join("00000000000000000000.seg");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    // However the file system counts, it is longer than a header.
    (0..9).for_each(|n| std::fs::write(path.join(n.to_string()), b"").unwrap());
    folder
}

#[tokio::test]
async fn tools_go_on_where_a_segment_cannot_be_read_as_a_start_does() {
    let folder = with_an_unreadable_segment().await;
    let found = offline::audit(folder.path(), false).unwrap();
    assert_eq!((records(&found, Trouble::Missing), found.ok), (vec![(0, 4)], false));
    let list = offline::list(folder.path()).unwrap();
    assert_eq!((list.segments.len(), list.segments[0].readable, list.next), (1, false, 5));
    let shown = offline::records(folder.path(), offline::Start::Cursor, |_| std::ops::ControlFlow::Continue(()));
    assert_eq!(shown.unwrap(), [], "what may be missing at the end the audit says");
    let done = offline::repair(folder.path(), false).unwrap();
    assert!(done[0].contains("nothing in it can be read; put aside as"), "{done:?}");
    let (buffer, recovery) = Buffer::open(face_config(folder.path()), 16, clock::system()).unwrap();
    assert_eq!((recovery.buffered, buffer.put_aside(), buffer.stats().ledger.dropped_damaged), (0, 1, 5));
    let found = buffer.audit(false).unwrap();
    assert_eq!(found.findings.iter().map(|finding| finding.trouble).collect::<Vec<_>>(), [Trouble::PutAside]);
    assert!(!found.ok && buffer.audit(true).unwrap().ok);
    buffer.close().await;
}

#[test]
fn pages_that_cannot_be_read_are_damage_for_the_audit() {
    let mut bench = Bench::new(Config { max_size: ByteSize(64 << 20), ..config() });
    for n in 0..6 {
        bench.put_patiently(&[n; 9_000]).unwrap();
        bench.log.commit();
    }
    let bench = bench.close_and_reopen();
    let path = bench.disk.segments().remove(0);
    let len = bench.disk.len(&path);
    for (broken, missing) in [(0..4_096, vec![(0, 0)]), (len - 1..len, vec![(5, 5)]), (24_000..24_001, vec![(2, 2)])] {
        let disk = bench.disk.copy();
        disk.break_sectors(&path, broken);
        let found = audit(&disk);
        assert!(!found.ok && found.damaged_bytes + found.torn_bytes > 0, "{found:?}");
        assert_eq!(records(&found, Trouble::Missing), missing);
    }
    for file in ["meta", "cursors"] {
        let disk = bench.disk.copy();
        disk.break_sectors(&dir().join(file), 0..40_000);
        let found = audit(&disk);
        assert!(found.findings.iter().any(|finding| finding.file.as_deref() == Some(file)), "{found:?}");
    }
}
