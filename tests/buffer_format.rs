//! Format version 1 of the links' buffers: a log as this version wrote it, with all codecs, a torn tail and a damaged frame, which
//! every later version has to read (`tests/fixtures/buffer-v1`); and a second reader of it, made from the documentation of
//! `tidegate::buffer` alone.
//!
//! `TIDEGATE_WRITE_FIXTURE=1 cargo test --test buffer_format` writes the fixture anew: only for a format that nobody uses yet.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that panics has failed, which is its purpose; the files are small"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate::buffer::{
    Buffer, Compression, Config, DeadLetter, Direct, Keep, Offset, Outcome, Recovery, SyncMode, WhenFull,
};
use tidegate::clock::{self, WallMs};
use tidegate::units::ByteSize;

/// Records 0 to 39 are as they are, 40 to 79 with zstd, 80 to 119 with LZ4, 120 to 149 as they are, ten to a frame.
const RECORDS: u64 = 150;
/// Records of the frame that is damaged.
const DAMAGED: std::ops::Range<u64> = 90..100;
/// The last frame is torn: its records are not there.
const WHOLE: u64 = 140;
/// Everything below is delivered.
const FLOOR: u64 = 30;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/buffer-v1")
}

fn config(dir: &Path, compress: Compression) -> Config {
    Config {
        dir: dir.to_owned(),
        max_size: ByteSize(64 << 20),
        max_age: None,
        when_full: WhenFull::Block,
        sync: SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress,
        keep_delivered: Some(Keep { age: None, size: None }),
    }
}

fn body(number: u64) -> Vec<u8> {
    let length = 40 + usize::try_from(number % 11).unwrap();
    format!("{{\"record\":{number},\"temp\":{}.5,\"line\":\"{}\"}}", number % 90, "abc".repeat(length)).into_bytes()
}

fn expires(number: u64) -> Option<WallMs> {
    number.is_multiple_of(3).then(|| WallMs(1_900_000_000_000 + number))
}

/// A record as both readers tell it.
type Line = (u64, u64, Option<u64>, Vec<u8>);

/// One line a record: number, time, expiry.
fn shown(records: &[Line]) -> String {
    let line = |(number, at, expires, _): &Line| {
        format!("{number} {at} {}\n", expires.map_or_else(|| "-".to_owned(), |ms| ms.to_string()))
    };
    records.iter().map(line).collect()
}

/// What has to be found in the fixture.
fn expected() -> Vec<Line> {
    let text = fs::read_to_string(fixture().join("records.txt")).unwrap();
    let number = |text: &str| text.parse().unwrap();
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .map(|line| (number(line[0]), number(line[1]), line[2].parse().ok(), body(number(line[0]))))
        .filter(|(number, ..)| !DAMAGED.contains(number))
        .collect()
}

/// Reads with the product: everything from 0 on.
async fn read(buffer: &Buffer) -> Vec<Line> {
    let mut history = buffer.history(Offset(0), Offset(u64::MAX));
    let mut records = Vec::new();
    loop {
        let read = history.next(100, 1 << 20).await.unwrap();
        if read.is_empty() {
            return records;
        }
        records.extend(read.into_iter().map(|r| (r.offset.0, r.appended.0, r.expires.map(|at| at.0), r.body.to_vec())));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn letter(offset: u64) -> DeadLetter {
    DeadLetter {
        offset: Offset(offset),
        time: WallMs(1_795_651_200_000 + offset),
        reason: "NOT_AUTHORIZED: no übung".to_owned(),
        attempts: 2,
        body: body(offset).into(),
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    found.sort();
    found
}

/// Writes the fixture, where that is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn the_fixture_is_written_only_when_asked_for() {
    if std::env::var_os("TIDEGATE_WRITE_FIXTURE").is_none() {
        assert!(fixture().join("link/meta").exists(), "the fixture is part of the source");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("link");
    let kinds = [Compression::None, Compression::Zstd, Compression::Lz4, Compression::None];
    let mut number = 0;
    for (compress, frames) in kinds.into_iter().zip([4, 4, 4, 3]) {
        let (mut direct, _) = Direct::open(&config(&log, compress), 16, clock::system()).unwrap();
        for _ in 0..frames {
            for n in number..number + 10 {
                let offset = direct.append(&[&body(n)], expires(n)).unwrap();
                assert_eq!(offset, Some(Offset(n)));
            }
            number += 10;
            direct.commit().unwrap();
        }
        if number < RECORDS {
            direct.close();
        }
        if number == 40 {
            settle(&config(&log, compress)).await;
        }
    }
    // As a kill leaves it: the last segment has no footer.
    let target = fixture();
    if target.exists() {
        fs::remove_dir_all(&target).unwrap();
    }
    copy(&log, &target.join("link"));
    let mut whole = independent::records(&target.join("link"));
    whole.retain(|(number, ..)| *number < WHOLE);
    assert_eq!(whole.len() as u64, WHOLE);
    fs::write(target.join("records.txt"), shown(&whole)).unwrap();
    damage(&target.join("link"));
}

/// The first records are done: two are dead letters.
async fn settle(config: &Config) {
    let (buffer, _) = Buffer::open(config.clone(), 16, clock::system()).unwrap();
    buffer.dead_letters().put(letter(3)).await.unwrap();
    buffer.dead_letters().put(letter(7)).await.unwrap();
    for offset in 0..FLOOR {
        let outcome = if [3, 7].contains(&offset) { Outcome::DeadLettered } else { Outcome::Delivered };
        buffer.settle(Offset(offset), outcome);
    }
    buffer.close().await;
}

/// Tears the last frame and flips a bit in the body of another.
fn damage(dir: &Path) {
    fs::remove_file(dir.join("LOCK")).unwrap();
    let files = segments(dir);
    let last = fs::read(files.last().unwrap()).unwrap();
    let (_, frames) = independent::segment(&last);
    let torn = frames.iter().find(|frame| frame.base <= WHOLE && WHOLE < frame.base + u64::from(frame.count)).unwrap();
    assert_eq!(torn.base, WHOLE, "frames of ten: write it again");
    fs::write(files.last().unwrap(), &last[..torn.at + 100]).unwrap();
    let mut third = fs::read(&files[2]).unwrap();
    let (_, frames) = independent::segment(&third);
    let hit = frames.iter().find(|frame| frame.base == DAMAGED.start && u64::from(frame.count) == 10);
    let Some(hit) = hit else { panic!("frames of ten: write it again") };
    third[hit.at + 72 + 20] ^= 0x10;
    fs::write(&files[2], third).unwrap();
}

#[tokio::test]
async fn version_1_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("link");
    copy(&fixture().join("link"), &log);
    let (buffer, recovery) = Buffer::open(config(&log, Compression::None), 16, clock::system()).unwrap();
    let torn = Recovery { buffered: WHOLE - FLOOR, torn_bytes: 100, ..Recovery::default() };
    assert_eq!(recovery, torn, "damage in a complete segment is met when it is read");
    assert_eq!(read(&buffer).await, expected());
    let mut owed = Vec::new();
    let mut reader = buffer.reader();
    while owed.len() < usize::try_from(WHOLE - FLOOR - 10).unwrap() {
        let next = tokio::time::timeout(Duration::from_secs(10), reader.next(100, 1 << 20)).await;
        owed.extend(next.expect("there are more").unwrap().into_iter().map(|record| record.offset.0));
    }
    assert_eq!(owed, (FLOOR..WHOLE).filter(|number| !DAMAGED.contains(number)).collect::<Vec<_>>());
    let ledger = buffer.stats().ledger;
    assert_eq!((ledger.delivered, ledger.dead_lettered, ledger.dropped_damaged), (FLOOR - 2, 2, 10));
    assert!(ledger.balances(), "{ledger:?}");
    assert_eq!(buffer.dead_letters().list().letters, [letter(3), letter(7)]);
    buffer.close().await;
}

#[test]
fn a_reader_made_from_the_documentation_gets_the_same_records() {
    let dir = fixture().join("link");
    assert_eq!(independent::records(&dir), expected());
    let codecs: Vec<Vec<u8>> = segments(&dir)
        .iter()
        .map(|path| independent::segment(&fs::read(path).unwrap()).1.iter().map(|frame| frame.codec).collect())
        .collect();
    assert_eq!(codecs, [vec![0; 4], vec![1; 4], vec![2; 3], vec![0; 2]], "all codecs, without what is damaged or torn");
    assert_eq!(independent::letters(&dir), [letter(3), letter(7)]);
}

#[test]
fn a_reader_made_from_the_documentation_knows_where_it_stands() {
    let dir = fixture().join("link");
    let (uuid, secret, reserved) = independent::meta(&dir);
    let cursors = independent::cursors(&dir);
    assert_eq!((cursors[0], cursors[2], cursors[4], cursors[10], cursors[12]), (FLOOR, 0, FLOOR - 2, 2, 0));
    assert!(cursors[1] <= RECORDS && reserved >= RECORDS, "{cursors:?}, {reserved}");
    for path in segments(&dir) {
        let bytes = fs::read(&path).unwrap();
        let (header, frames) = independent::segment(&bytes);
        assert_eq!(header.uuid, uuid);
        assert_eq!(header.salt, independent::salt(secret, header.base, header.epoch), "without its header");
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{:020}.seg", header.base));
        for (number, position) in independent::points(&bytes, header.salt) {
            let whole = frames.iter().any(|frame| frame.at as u64 == position && frame.base == number);
            assert!(whole || number == DAMAGED.start, "a point of the footer leads to a frame: {number} at {position}");
        }
    }
}

/// With two streams the cursor file says more than a floor: what is owed lies between.
#[tokio::test]
async fn a_reader_made_from_the_documentation_knows_what_is_owed_with_two_streams() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("link");
    let (mut direct, _) = Direct::open(&config(&log, Compression::None), 16, clock::system()).unwrap();
    for n in 0..60 {
        direct.append(&[&body(n)], expires(n)).unwrap();
    }
    direct.commit().unwrap();
    direct.close();
    let (buffer, _) = Buffer::open(config(&log, Compression::None), 16, clock::system()).unwrap();
    (0..10).for_each(|n| buffer.settle(Offset(n), Outcome::Delivered));
    let streams = buffer.streams(Some(16));
    assert_eq!((streams.backlog, streams.live), (Some((Offset(10), Offset(60))), Offset(60)));
    buffer.close().await;
    let (mut direct, _) = Direct::open(&config(&log, Compression::None), 16, clock::system()).unwrap();
    for n in 60..80 {
        direct.append(&[&body(n)], expires(n)).unwrap();
    }
    direct.commit().unwrap();
    direct.close();
    let (buffer, _) = Buffer::open(config(&log, Compression::None), 16, clock::system()).unwrap();
    (60..75).for_each(|n| buffer.settle(Offset(n), Outcome::Delivered));
    let ledger = buffer.stats().ledger;
    buffer.close().await;
    let (numbers, holes, streams, returned) = independent::cursors_in_full(&log);
    assert_eq!((numbers[0], holes, streams, returned), (10, vec![], vec![(60, 75)], 0));
    assert_eq!((numbers[4], ledger.delivered, ledger.buffered), (25, 25, 55));
}

/// A reader of the documented bytes. It knows nothing of `tidegate` but what the documentation says.
mod independent {
    use super::{BTreeMap, DeadLetter, Line, Offset, Path, WallMs, fs, segments};

    pub(super) struct Header {
        pub(super) uuid: [u8; 16],
        pub(super) base: u64,
        pub(super) epoch: u32,
        pub(super) salt: u32,
    }

    pub(super) struct Frame {
        pub(super) at: usize,
        pub(super) codec: u8,
        pub(super) base: u64,
        pub(super) count: u32,
        wall: u64,
        body: Vec<u8>,
        is_footer: bool,
    }

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// CRC-32C that goes on from `start`, bit by bit.
    fn crc(start: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!start, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        })
    }

    fn padded(len: usize) -> usize {
        len.div_ceil(8) * 8
    }

    pub(super) fn salt(secret: u32, base: u64, epoch: u32) -> u32 {
        crc(crc(secret, &base.to_le_bytes()), &epoch.to_le_bytes())
    }

    /// The header of a segment and its sound frames, footers left out.
    pub(super) fn segment(bytes: &[u8]) -> (Header, Vec<Frame>) {
        assert_eq!((&bytes[..8], u16_at(bytes, 8), u16_at(bytes, 10)), (&b"tgsegmnt"[..], 1, 64));
        assert_eq!(crc(0, &bytes[..60]), u32_at(bytes, 60));
        let header = Header {
            uuid: bytes[16..32].try_into().unwrap(),
            base: u64_at(bytes, 32),
            epoch: u32_at(bytes, 40),
            salt: u32_at(bytes, 44),
        };
        let (mut at, mut frames) = (64, Vec::new());
        while at + 72 <= bytes.len() {
            match frame(bytes, at, header.salt) {
                Some((frame, len)) => {
                    at += len;
                    if !frame.is_footer {
                        frames.push(frame);
                    }
                }
                None => at += 8,
            }
        }
        (header, frames)
    }

    /// The frame at `at`, if it is sound, and its length with all that belongs to it.
    fn frame(bytes: &[u8], at: usize, salt: u32) -> Option<(Frame, usize)> {
        let head = bytes.get(at..at + 72)?;
        if &head[..4] != b"TGFR" || head[4] != 1 || crc(salt, &head[..68]) != u32_at(head, 68) {
            return None;
        }
        let (stored_len, raw_len) = (u32_at(head, 8) as usize, u32_at(head, 12) as usize);
        let stored = bytes.get(at + 72..at + 72 + stored_len)?;
        if crc(salt, stored) != u32_at(head, 20) {
            return None;
        }
        let body = match head[5] {
            0 => stored.to_vec(),
            1 => zstd::bulk::decompress(stored, raw_len).ok()?,
            2 => lz4_flex::block::decompress(stored, raw_len).ok()?,
            _ => return None,
        };
        assert_eq!(body.len(), raw_len);
        let frame = Frame {
            at,
            codec: head[5],
            base: u64_at(head, 24),
            count: u32_at(head, 16),
            wall: u64_at(head, 40),
            body,
            is_footer: head[6] & 1 == 1,
        };
        Some((frame, 72 + padded(stored_len)))
    }

    /// All records of a log, by number.
    pub(super) fn records(dir: &Path) -> Vec<Line> {
        let mut found: BTreeMap<u64, Line> = BTreeMap::new();
        for path in segments(dir) {
            for frame in segment(&fs::read(path).unwrap()).1 {
                let mut at = 0;
                for number in frame.base..frame.base + u64::from(frame.count) {
                    let len = u32_at(&frame.body, at) as usize;
                    let delta = i64::from(u32_at(&frame.body, at + 4).cast_signed());
                    let expires = u32_at(&frame.body, at + 8) & 1 == 1;
                    let until = expires.then(|| u64_at(&frame.body, at + 16));
                    let start = at + if expires { 24 } else { 16 };
                    let line = (
                        number,
                        frame.wall.saturating_add_signed(delta),
                        until,
                        frame.body[start..start + len].to_vec(),
                    );
                    found.insert(number, line);
                    at = start + padded(len);
                }
                assert_eq!(at, frame.body.len());
            }
        }
        found.into_values().collect()
    }

    /// The places that a complete segment's footer names.
    pub(super) fn points(bytes: &[u8], salt: u32) -> Vec<(u64, u64)> {
        let own = u64_at(bytes, bytes.len() - 8) as usize;
        let Some((footer, _)) = (own < bytes.len()).then(|| frame(bytes, own, salt)).flatten() else {
            return Vec::new();
        };
        assert!(footer.is_footer && footer.base == u64_at(&footer.body, 0));
        let count = u32_at(&footer.body, 32) as usize;
        assert_eq!(footer.body.len(), 40 + count * 32 + 8);
        (0..count).map(|n| (u64_at(&footer.body, 40 + n * 32), u64_at(&footer.body, 48 + n * 32))).collect()
    }

    /// The newest sound payload of a slot file.
    fn slots(path: &Path) -> Vec<u8> {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len(), 2 * 16_384);
        let sound = bytes.chunks(16_384).filter_map(|slot| {
            let len = u32_at(slot, 16) as usize;
            let payload = slot.get(24..24 + len)?;
            let checks =
                &slot[..4] == b"TGSL" && u16_at(slot, 4) == 1 && crc(crc(0, &slot[..20]), payload) == u32_at(slot, 20);
            checks.then(|| (u64_at(slot, 8), payload.to_vec()))
        });
        sound.max().unwrap().1
    }

    /// The log's name, what its salts are made from, and the numbers that may have been given.
    pub(super) fn meta(dir: &Path) -> ([u8; 16], u32, u64) {
        let payload = slots(&dir.join("meta"));
        assert_eq!(payload.len(), 33);
        (payload[..16].try_into().unwrap(), u32_at(&payload, 16), u64_at(&payload, 24))
    }

    /// The numbers of the cursor file up to the count of holes.
    pub(super) fn cursors(dir: &Path) -> Vec<u64> {
        let payload = slots(&dir.join("cursors"));
        (0..14).map(|n| u64_at(&payload, n * 8)).collect()
    }

    /// First, and behind the last.
    pub(super) type Ranges = Vec<(u64, u64)>;

    /// Those numbers, the holes, the streams, and the dead letters that were sent again: all that is in it.
    pub(super) fn cursors_in_full(dir: &Path) -> (Vec<u64>, Ranges, Ranges, u64) {
        let payload = slots(&dir.join("cursors"));
        let numbers: Vec<u64> = (0..payload.len() / 8).map(|n| u64_at(&payload, n * 8)).collect();
        let pairs = |from: usize, count: u64| -> Ranges {
            numbers[from..from + 2 * count as usize].chunks(2).map(|pair| (pair[0], pair[1])).collect()
        };
        let holes = pairs(14, numbers[13]);
        let at = 14 + 2 * holes.len();
        let streams = pairs(at + 1, numbers[at]);
        let end = at + 1 + 2 * streams.len();
        assert_eq!(payload.len(), (end + 1) * 8, "nothing is in it that is not documented");
        (numbers[..14].to_vec(), holes, streams, numbers[end])
    }

    pub(super) fn letters(dir: &Path) -> Vec<DeadLetter> {
        let bytes = fs::read(dir.join("dead-letters/letters")).unwrap();
        let (mut at, mut letters) = (0, Vec::new());
        while at < bytes.len() && bytes[at..].iter().any(|byte| *byte != 0) {
            assert_eq!(&bytes[at..at + 4], b"TGDL");
            let len = u32_at(&bytes, at + 4) as usize;
            let salt = u32_at(&bytes, at + 8);
            assert_eq!(salt, crc(meta(dir).1, b"letters"));
            let rest = &bytes[at + 20..at + 20 + len];
            assert_eq!(crc(salt, rest), u32_at(&bytes, at + 12));
            assert_eq!(crc(salt, &bytes[at..at + 16]), u32_at(&bytes, at + 16));
            let reason_len = u32_at(rest, 20) as usize;
            letters.push(DeadLetter {
                offset: Offset(u64_at(rest, 4)),
                time: WallMs(u64_at(rest, 12)),
                reason: String::from_utf8(rest[28..28 + reason_len].to_vec()).unwrap(),
                attempts: u32_at(rest, 0),
                body: rest[28 + reason_len..].to_vec().into(),
            });
            at += padded(20 + len);
        }
        letters
    }
}
