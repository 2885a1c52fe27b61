//! The damage matrix: each file of a log, each way to damage it, each place. After each: it opens; what is read is what was
//! written; what is missing is exactly what the ledger says is damaged, and only that whose bytes were hit; the next start
//! finds nothing new; and it goes on.
//!
//! Which test covers which fault of issue 4, point 11 ("Faults"), and of BUFFER.md, "How others broke":
//!
//! | fault | test |
//! |---|---|
//! | torn write, lost unsynced data, short write | `model` (power cuts, failing writes); `faults::a_torn_tail_is_cut_and_its_size_reported`; [`truncations`] |
//! | failed `fdatasync` | `faults::after_a_failed_sync_*`, `after_a_second_failure_*`, `an_interval_that_fails_to_sync_*`; `model` |
//! | disk full, space coming back | `faults::a_full_disk_*`; `limits::r04_*`; `model`; e2e `kills`, `mistakes` |
//! | read error | [`bad_sectors_cost_what_lies_in_them`], [`whichever_read_fails_nothing_is_lost`] |
//! | bit flips in any byte of any file | [`flips`], [`letters_survive_any_flip_and_truncation`]; `faults::whatever_is_damaged_it_opens_and_counts` |
//! | zero pages, all-NUL files (Mosquitto) | [`zero_pages`], [`large_frames`] |
//! | missing files | [`missing_files`], [`r11_without_cursors_no_number_is_given_twice`], [`r15_a_drained_log_without_cursors_keeps_its_letters`]; `faults::a_segment_that_is_gone_is_counted_as_damage`, `lost_meta_and_cursor_files_*` |
//! | foreign files | [`foreign_bytes_in_our_files`]; `faults::foreign_files_*`, `a_file_in_the_way_*` |
//! | two processes on one folder | `face::a_second_open_on_a_folder_is_refused_with_a_clear_error`; e2e `mistakes::r36_a_data_folder_in_use_is_named` |
//! | clock steps | `limits::r08_*`; `model` |
//! | a link renamed or removed | `gateway::rename`; e2e `folders::r34_*` |
//! | every n-th call fails | `faults::whichever_call_fails_nothing_acknowledged_is_lost`, [`whichever_read_fails_nothing_is_lost`] |
//! | two truths that disagree (Vector, RabbitMQ) | no list of files or index is kept beside the segments; [`missing_files`], [`flips`] |
//! | unlinked before the ledger was synced (Vector) | `limits::r09_the_cursor_is_written_*`, `r02_what_the_cursor_passes_*`; e2e `syscalls` |
//! | lost wake-ups (Vector), backlog idle until the next publish (NanoMQ) | `face::four_appending_tasks_and_a_reader_agree` |
//! | whole buffer read at start (Vector) | `face::a_backlog_of_many_segments_*`; `benches/` |
//! | acknowledges before it syncs (NATS) | e2e `syscalls::r01_*`; `model` (power cuts) |
//! | truncates at the first bad record (NATS) | `faults::r07_damage_below_durable_*`; [`flips`] |
//! | panics on a corrupt log (Telegraf), will not start (RabbitMQ, EMQX, Mosquitto) | this module; `fuzzed` |
//! | sends all history again (Telegraf) | `faults::r09_a_kill_repeats_at_most_two_windows`; e2e `kills` |
//! | rename or create without a folder sync (EMQX) | e2e `syscalls::r01_*`; `model` (power cuts take folder entries) |
//! | deletes before sending (NanoMQ) | `limits::r02_*`; `model` |
//! | falls back to memory in silence (Azure) | `faults::after_a_second_failure_receipts_are_rejected_*` |
//! | space not freed (Azure), bad chunks never deleted (Fluent Bit) | `limits::r09_*`; `face::a_backlog_of_many_segments_*`; [`flips`] (the log drains to nothing) |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::super::format::{FRAME_HEADER, SEGMENT_HEADER};
use super::super::*;
use super::bench::{Bench, HandClock, WINDOW, body, config, dir, try_open};
use super::disk::{Faults, SimDisk};
use super::offline::audit;
use crate::units::ByteSize;

/// Length of a frame with one record of [`body`].
const FRAME: usize = FRAME_HEADER + 16 + 104;
const SETTLED: u64 = 5;

/// A log as a kill leaves it: closed segments and one that was being written, a cursor that was synced last.
struct Sample {
    disk: SimDisk,
    clock: Arc<HandClock>,
    config: Config,
    records: u64,
    body: fn(u64) -> Vec<u8>,
    /// Its segments and what they hold.
    segments: Vec<(PathBuf, u64, u64)>,
}

impl Sample {
    fn new() -> Self {
        Self::of(ByteSize(32 << 10), 46, body)
    }

    /// Of frames that are larger than what is searched or read at once.
    fn large() -> Self {
        Self::of(ByteSize(32 << 20), 21, |n| {
            let mut body = body(n);
            body.resize([90_000, 300_000, 70_000, 500][n as usize % 4], b'.');
            body
        })
    }

    fn of(max_size: ByteSize, records: u64, body: fn(u64) -> Vec<u8>) -> Self {
        let config = Config { max_size, ..config() };
        let mut bench = Bench::new(config.clone());
        for n in 0..records {
            bench.put_patiently(&body(n)).unwrap();
            bench.log.commit();
        }
        bench.settle(0..SETTLED);
        bench.clock.pass(Duration::from_secs(2));
        bench.turn();
        let known = bench.shared.state.lock().segments.clone();
        let segments: Vec<_> = known.into_iter().map(|segment| (segment.path, segment.base, segment.next)).collect();
        assert!(
            segments.len() == 3 && segments[2].2 - segments[2].1 > 2,
            "two closed, one being written: {segments:?}"
        );
        bench.disk.kill();
        let Bench { disk, clock, .. } = bench;
        Self { disk, clock, config, records, body, segments }
    }

    fn file(&self, name: &str) -> PathBuf {
        dir().join(name)
    }

    /// Offsets whose frames lie in bytes `[from, to)` of a segment.
    fn hit(&self, path: &Path, from: usize, to: usize) -> BTreeSet<u64> {
        let Some((_, base, next)) = self.segments.iter().find(|(known, ..)| known == path) else {
            return BTreeSet::new();
        };
        let mut place = SEGMENT_HEADER;
        let is_hit = |offset: &u64| {
            let begins = place;
            place += FRAME_HEADER + 16 + (self.body)(*offset).len().next_multiple_of(8);
            begins < to && from < place
        };
        (*base..*next).filter(is_hit).collect()
    }

    /// Damages a copy and looks at what comes of it. `hit`: what may be missing.
    fn check(&self, case: &str, hit: &BTreeSet<u64>, damage: impl FnOnce(&SimDisk)) {
        let disk = self.disk.copy();
        damage(&disk);
        let mut bench = Bench::open(disk, Arc::clone(&self.clock), self.config.clone());
        let mut lost = None;
        for life in 0..2 {
            let records = bench.read_all();
            assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "{case}: out of order or twice");
            for record in &records {
                assert_eq!(record.body, (self.body)(record.offset.0), "{case}");
            }
            let there: BTreeSet<u64> = records.iter().map(|record| record.offset.0).collect();
            let floor = bench.shared.stats().cursor.0;
            assert!(floor <= SETTLED.max(self.records), "{case}");
            let missing: BTreeSet<u64> = (floor.max(SETTLED)..self.records).filter(|n| !there.contains(n)).collect();
            assert!(missing.is_subset(hit), "{case}: {missing:?} are missing, {hit:?} were hit");
            let passed: BTreeSet<u64> = (SETTLED..floor).collect();
            assert!(passed.is_subset(hit), "{case}: the cursor passed {passed:?}");
            let gone = (missing.len() + passed.len()) as u64;
            let ledger = bench.ledger();
            assert_eq!(ledger.dropped_damaged, gone, "{case}: {ledger:?}");
            assert_eq!(*lost.get_or_insert(gone), gone, "{case}: counted again in life {life}");
            bench = bench.kill_and_reopen();
        }
        assert_eq!(bench.recovery.damaged, [], "{case}: reported again");
        // It goes on, and drains to nothing.
        let next = bench.shared.stats().next.0;
        for n in next..next + 3 {
            bench.put_patiently(&(self.body)(n)).unwrap();
            bench.log.commit();
        }
        bench.settle(0..next + 3);
        for _ in 0..2 {
            bench.clock.pass(Duration::from_secs(2));
            bench.turn();
        }
        assert_eq!(bench.ledger().buffered, 0, "{case}");
        assert!(bench.disk.segments().len() <= 1, "{case}: {:?}", bench.disk.segments());
    }

    /// Where there is something in a file: all of a segment, the beginnings of the slots.
    fn places(&self, path: &Path) -> Vec<usize> {
        let len = self.disk.len(path) as usize;
        if path.extension().is_some() {
            // The headers, a frame, the footer, and every few bytes. `TIDEGATE_MATRIX=full`: each byte, which takes minutes, so no script
            // asks for it; it is for who changes the format or the recovery.
            let all = std::env::var_os("TIDEGATE_MATRIX").is_some_and(|value| value == "full");
            let close = |at: usize| at < SEGMENT_HEADER + FRAME || at + 120 > len;
            return (0..len).filter(|at| all || close(*at) || at % 37 == 0).collect();
        }
        (0..len).filter(|at| at % (16 << 10) < 200 || at % 1_024 == 0).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let segments = self.segments.iter().map(|(path, ..)| path.clone());
        segments.chain(["meta", "cursors"].map(|name| self.file(name))).collect()
    }
}

/// One bit of each byte, another one in each.
#[test]
fn flips() {
    let sample = Sample::new();
    for path in sample.files() {
        for at in sample.places(&path) {
            let case = format!("bit {} of byte {at} of {}", at % 8, path.display());
            sample.check(&case, &sample.hit(&path, at, at + 1), |disk| {
                disk.change(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            });
        }
    }
}

#[test]
fn zero_pages() {
    let sample = Sample::new();
    for path in sample.files() {
        let len = sample.disk.len(&path) as usize;
        for page in [512, 4_096, len] {
            for from in (0..len).step_by(page) {
                let to = (from + page).min(len);
                let case = format!("bytes {from} to {to} of {} are zero", path.display());
                sample.check(&case, &sample.hit(&path, from, to), |disk| {
                    disk.change(&path, |bytes| bytes[from..to].fill(0));
                });
            }
        }
    }
}

/// Where a segment begins, and at each of its frames: a page, a flipped bit, the end of the file.
#[test]
fn large_frames() {
    let sample = Sample::large();
    for (path, base, next) in &sample.segments {
        let len = sample.disk.len(path) as usize;
        let begins = (*base..*next).scan(SEGMENT_HEADER, |place, offset| {
            let begins = *place;
            *place += FRAME_HEADER + 16 + (sample.body)(offset).len().next_multiple_of(8);
            Some(begins)
        });
        for at in std::iter::once(0).chain(begins) {
            let page = at / 4_096 * 4_096;
            for (from, to) in [(page, (page + 4_096).min(len)), (0, (at + 100).min(len)), (at + 20, at + 21)] {
                let case = format!("bytes {from} to {to} of {} are changed", path.display());
                sample.check(&case, &sample.hit(path, from, to), |disk| {
                    disk.change(path, |bytes| bytes[from..to].iter_mut().for_each(|byte| *byte = !*byte));
                });
            }
            let case = format!("{} is cut at {at}", path.display());
            sample.check(&case, &sample.hit(path, at, len), |disk| disk.change(path, |bytes| bytes.truncate(at)));
        }
    }
}

#[test]
fn truncations() {
    let sample = Sample::new();
    for path in sample.files() {
        let len = sample.disk.len(&path) as usize;
        for at in sample.places(&path) {
            let case = format!("{} is cut at {at}", path.display());
            sample.check(&case, &sample.hit(&path, at, len), |disk| disk.change(&path, |bytes| bytes.truncate(at)));
        }
    }
}

#[test]
fn missing_files() {
    let sample = Sample::new();
    let files = sample.files();
    for first in &files {
        for second in &files {
            let both: BTreeSet<&PathBuf> = [first, second].into();
            let hit = both.iter().flat_map(|path| sample.hit(path, 0, usize::MAX)).collect();
            // Without its cursor a log knows nothing of segments before the first that is there: they may have been delivered.
            let known = !both.contains(&sample.file("cursors")) || !both.contains(&sample.segments[0].0);
            let last = &sample.segments[2].0;
            let known = known && (!both.contains(&sample.file("cursors")) || !both.contains(last));
            if known {
                let case = format!("{both:?} are gone");
                sample.check(&case, &hit, |disk| both.iter().for_each(|path| Storage::remove(disk, path).unwrap()));
            }
        }
    }
}

/// Without its cursor a log does not know what it gave up and deleted: it reads what is left, and gives no number twice.
#[test]
fn r11_without_cursors_no_number_is_given_twice() {
    let sample = Sample::new();
    let cursors = sample.file("cursors");
    let all: Vec<usize> = (0..sample.segments.len()).collect();
    for gone in [&all[..1], &all[2..], &all[1..], &all] {
        for lost in [false, true] {
            let case = format!("segments {gone:?} and the cursor are gone; damaged: {lost}");
            let disk = sample.disk.copy();
            if lost {
                disk.change(&cursors, |bytes| bytes.fill(0));
            } else {
                Storage::remove(&disk, &cursors).unwrap();
            }
            gone.iter().for_each(|at| Storage::remove(&disk, &sample.segments[*at].0).unwrap());
            let looked = audit(&disk);
            let says = |file: &str| looked.findings.iter().any(|finding| finding.file.as_deref() == Some(file));
            assert!(!looked.ok && says("cursors"), "{case}: {looked:?}");
            let mut bench = Bench::open(disk, Arc::clone(&sample.clock), sample.config.clone());
            let left = sample.segments.iter().zip(0..).filter(|(_, at)| !gone.contains(at));
            let left: Vec<u64> = left.flat_map(|((_, base, next), _)| *base..*next).collect();
            assert_eq!(bench.offsets(), left, "{case}");
            for _ in 0..2 {
                let next = bench.shared.stats().next.0;
                assert!(next >= sample.records, "{case}: {next} was given");
                bench.put_all(next, next + 1);
                bench.ledger();
                bench = bench.kill_and_reopen();
            }
        }
    }
}

/// All is delivered, and no segment is left: only `meta` and the letters know which numbers were given.
#[test]
fn r15_a_drained_log_without_cursors_keeps_its_letters() {
    for meta in [true, false] {
        let mut bench = Bench::new(config());
        bench.put_all(0, 3);
        let letter = |offset, n| DeadLetter {
            offset: Offset(offset),
            time: WallMs(1_000),
            reason: "NO_ROUTE".to_owned(),
            attempts: 1,
            body: body(n).into(),
        };
        let open = |disk: &SimDisk| DeadLetters::open(Arc::new(disk.clone()), dir(), RESERVE).unwrap().0;
        let put = |letters: &DeadLetters, letter| letters.put(letter).now_or_never().unwrap().unwrap();
        put(&open(&bench.disk), letter(2, 2));
        bench.settle(0..3);
        for _ in 0..2 {
            bench.clock.pass(Duration::from_secs(2));
            bench.turn();
            bench = bench.close_and_reopen();
        }
        assert_eq!(bench.disk.segments(), Vec::<PathBuf>::new());
        bench.disk.kill();
        Storage::remove(&bench.disk, &dir().join("cursors")).unwrap();
        if !meta {
            Storage::remove(&bench.disk, &dir().join("meta")).unwrap();
        }
        let bench = bench.reopen();
        let next = bench.put(&body(7)).unwrap();
        assert!(next > 2, "{next} was given");
        let letters = open(&bench.disk);
        put(&letters, letter(next, 7));
        assert_eq!(letters.list().letters, [letter(2, 2), letter(next, 7)]);
    }
}

#[test]
fn foreign_bytes_in_our_files() {
    let sample = Sample::new();
    for path in sample.files() {
        for len in [0, 1, 63, 64, 200, 5_000, 40_000] {
            let case = format!("{} holds {len} foreign bytes", path.display());
            sample.check(&case, &sample.hit(&path, 0, usize::MAX), |disk| {
                disk.change(&path, |bytes| *bytes = (0..len).map(|n: usize| (n * 31 % 251) as u8).collect());
            });
        }
    }
}

/// Sectors that cannot be read are damage like any other.
#[test]
fn bad_sectors_cost_what_lies_in_them() {
    let sample = Sample::new();
    for path in sample.files() {
        let len = sample.disk.len(&path) as usize;
        for from in (0..len).step_by(512) {
            let case = format!("bytes {from} to {} of {} cannot be read", from + 512, path.display());
            // What is read at once is a page.
            let page = from / 4_096 * 4_096;
            let hit = sample.hit(&path, page, page + 4_096);
            sample.check(&case, &hit, |disk| disk.break_sectors(&path, from as u64..from as u64 + 512));
        }
    }
}

/// Reads that fail once or for good, in turn: it opens or says why not; and without the failure everything is there.
#[test]
fn whichever_read_fails_nothing_is_lost() {
    let sample = Sample::new();
    for failing in [1, 2, usize::MAX] {
        for nth in 0..40 {
            let disk = sample.disk.copy();
            disk.faults(Faults { reads_after: Some(nth), reads_failing: failing, ..Faults::default() });
            let opened = try_open(&disk, &sample.clock, &sample.config, WINDOW);
            if failing == 1
                && let Err(error) = &opened
            {
                assert!(error.to_string().contains("/log"), "{error}");
            }
            drop(opened);
            disk.kill();
            let bench = Bench::open(disk, Arc::clone(&sample.clock), sample.config.clone());
            let ledger = bench.ledger();
            if failing == 1 {
                assert_eq!(ledger.dropped_damaged, 0, "{nth}");
                assert_eq!(bench.offsets(), (SETTLED..sample.records).collect::<Vec<_>>(), "{nth}");
            }
            assert_eq!(ledger.buffered, bench.offsets().len() as u64, "{failing} from {nth}");
        }
    }
}

async fn some_letters(disk: &SimDisk) -> Vec<DeadLetter> {
    let (letters, _) = DeadLetters::open(Arc::new(disk.clone()), dir(), RESERVE).unwrap();
    for n in 0..4 {
        let letter = DeadLetter {
            offset: Offset(n * 3),
            time: WallMs(1_000 + n),
            reason: "NOT_AUTHORIZED".to_owned(),
            attempts: 3,
            body: body(n).into(),
        };
        letters.put(letter).await.unwrap();
    }
    letters.list().letters
}

/// Of the dead-letter log.
const RESERVE: u64 = 64;

/// At most the letter that was hit is missing, and it can be written again.
#[tokio::test]
async fn letters_survive_any_flip_and_truncation() {
    let disk = SimDisk::default();
    let good = some_letters(&disk).await;
    let path = dir().join("dead-letters/letters");
    let len = disk.len(&path) as usize;
    let row = (len - RESERVE as usize) / good.len();
    for at in 0..len {
        for cut in [false, true] {
            let disk = disk.copy();
            disk.change(&path, |bytes| if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << (at % 8) });
            let (letters, notes) = DeadLetters::open(Arc::new(disk.clone()), dir(), RESERVE).unwrap();
            let there = letters.list().letters;
            let missing: Vec<_> = good.iter().filter(|letter| !there.contains(letter)).collect();
            let case = format!("{at}, cut: {cut}: {notes:?}");
            assert!(there.iter().all(|letter| good.contains(letter)), "{case}");
            let most = if cut { good.len() - at / row } else { 1 };
            assert!(missing.len() <= most, "{case}: {} are missing", missing.len());
            // Cut between two letters it is as if the later ones had never been.
            let between = cut && at % row == 0 || at % row >= 162;
            assert!(missing.is_empty() || between || !notes.is_empty(), "{case}: said nothing");
            assert!(cut || at < row * good.len() || !notes.is_empty(), "{case}: said nothing of the reserve");
            for letter in &good {
                letters.put(letter.clone()).await.unwrap();
            }
            drop(letters);
            let (letters, _) = DeadLetters::open(Arc::new(disk), dir(), RESERVE).unwrap();
            let mut there = letters.list().letters;
            there.sort_by_key(|letter| letter.offset);
            assert_eq!(there, good, "{case}");
        }
    }
}

/// A page that cannot be read costs the letter in it; the log opens.
#[tokio::test]
async fn letters_survive_pages_that_cannot_be_read() {
    let disk = SimDisk::default();
    let letter = |n: u64| DeadLetter {
        offset: Offset(n),
        time: WallMs(1_000),
        reason: "TOO_LARGE".to_owned(),
        attempts: 1,
        body: vec![7; 9_000].into(),
    };
    let (letters, _) = DeadLetters::open(Arc::new(disk.clone()), dir(), RESERVE).unwrap();
    for n in 0..3 {
        letters.put(letter(n)).await.unwrap();
    }
    let path = dir().join("dead-letters/letters");
    let len = disk.len(&path);
    for (broken, left) in
        [(0..4_096, vec![letter(1), letter(2)]), (len - 1..len, vec![letter(0), letter(1), letter(2)])]
    {
        let disk = disk.copy();
        disk.break_sectors(&path, broken);
        let (letters, notes) = DeadLetters::open(Arc::new(disk), dir(), RESERVE).unwrap();
        assert_eq!((letters.list().letters, notes.len()), (left, 1), "{notes:?}");
    }
}
