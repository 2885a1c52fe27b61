//! Frames compressed at rest: what is read is the same, damage stays as local, and any segment is readable under any setting.

use std::ops::ControlFlow;
use std::path::Path;

use super::super::format::{FRAME_HEADER, FrameHeader, HeaderRead, SEGMENT_HEADER, SegmentHeader};
use super::super::*;
use super::bench::{Bench, body, config};

const ALL: [Compression; 3] = [Compression::None, Compression::Zstd, Compression::Lz4];

fn with(compress: Compression) -> Config {
    Config { compress, ..config() }
}

/// Stages `[from, to)` and commits them as one batch.
fn batch(bench: &mut Bench, from: u64, to: u64) {
    for n in from..to {
        bench.put(&body(n)).unwrap();
    }
    bench.turn();
}

fn assert_whole(bench: &Bench, records: u64) {
    let read = bench.read_all();
    assert_eq!(read.iter().map(|record| record.offset.0).collect::<Vec<_>>(), (0..records).collect::<Vec<_>>());
    assert!(read.iter().all(|record| record.body == body(record.offset.0)));
}

#[test]
fn what_is_compressed_takes_less_room_and_reads_the_same() {
    let mut sizes = Vec::new();
    for compress in ALL {
        let mut bench = Bench::new(with(compress));
        batch(&mut bench, 0, 30);
        batch(&mut bench, 30, 60);
        let stats = bench.shared.stats();
        sizes.push(stats.disk_bytes);
        let on_disk: u64 = bench.disk.segments().iter().map(|path| bench.disk.read(path).len() as u64).sum();
        assert_eq!(stats.disk_bytes, on_disk, "{compress:?}: the quota counts what is really there");
        let bench = bench.kill_and_reopen();
        assert_eq!(bench.recovery, Recovery { buffered: 60, ..Recovery::default() });
        assert_whole(&bench, 60);
        assert_eq!(bench.shared.stats().depth_bytes.abs_diff(stats.depth_bytes) / 60, 4, "by uncompressed bytes");
    }
    assert!(sizes[1] * 4 < sizes[0] && sizes[2] * 4 < sizes[0], "none, zstd, lz4: {sizes:?}");
}

#[test]
fn segments_of_every_codec_are_readable_whatever_is_set_now() {
    let mut bench = Bench::new(with(Compression::Zstd));
    let mut written = 0;
    for compress in [Compression::Lz4, Compression::None, Compression::Zstd] {
        batch(&mut bench, written, written + 20);
        written += 20;
        bench.config.compress = compress;
        bench = bench.close_and_reopen();
        assert_eq!(bench.recovery, Recovery { buffered: written, ..Recovery::default() });
        assert_whole(&bench, written);
    }
    assert_eq!(bench.disk.segments().len(), 3);
}

/// The frames of the only segment: where each begins, and its header.
fn frames(bytes: &[u8]) -> (u32, Vec<(usize, FrameHeader)>) {
    let HeaderRead::Ours(SegmentHeader { salt, .. }) = SegmentHeader::decode(bytes) else { panic!("no segment") };
    let (mut at, mut frames) = (SEGMENT_HEADER, Vec::new());
    while let Some(header) = bytes.get(at..).and_then(|bytes| FrameHeader::decode(bytes, salt)) {
        frames.push((at, header));
        at += header.frame_len() as usize;
    }
    (salt, frames)
}

#[test]
fn every_flipped_byte_of_a_compressed_frame_loses_that_frame_and_says_so() {
    for compress in [Compression::Zstd, Compression::Lz4] {
        let mut bench = Bench::new(with(compress));
        for from in [0, 20, 40] {
            batch(&mut bench, from, from + 20);
        }
        bench.disk.kill();
        let path = bench.disk.segments().remove(0);
        let bytes = bench.disk.read(&path);
        let (at, header) = frames(&bytes).1[1];
        assert_eq!((header.codec, header.base), (compress, 20));
        for flipped in at..at + FRAME_HEADER + header.stored() {
            let mut bench = Bench::new(with(compress));
            for from in [0, 20, 40] {
                batch(&mut bench, from, from + 20);
            }
            bench.disk.kill();
            let path = bench.disk.segments().remove(0);
            bench.disk.change(&path, |bytes| bytes[flipped] ^= 4);
            let bench = bench.reopen();
            assert_eq!(bench.recovery.damaged, [(Offset(20), Offset(39))], "{compress:?}, byte {}", flipped - at);
            assert_eq!(bench.offsets(), (0..20).chain(40..60).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_body_whose_checksum_holds_and_that_does_not_decompress_is_damage() {
    for compress in [Compression::Zstd, Compression::Lz4] {
        for lie in ["another length", "no such stream"] {
            let mut bench = Bench::new(with(compress));
            for from in [0, 20, 40] {
                batch(&mut bench, from, from + 20);
            }
            bench.disk.kill();
            let path = bench.disk.segments().remove(0);
            bench.disk.change(&path, |bytes| {
                let (salt, frames) = frames(bytes);
                let (at, mut header) = frames[1];
                let body = at + FRAME_HEADER..at + FRAME_HEADER + header.stored();
                match lie {
                    "another length" => header.raw_len -= 8,
                    _ => bytes[body.clone()].fill(0xf7),
                }
                header.body_crc = FrameHeader::of(&bytes[body], salt, 0, 0).body_crc;
                let mut forged = Vec::new();
                header.encode(salt, &mut forged);
                bytes[at..at + FRAME_HEADER].copy_from_slice(&forged);
            });
            let bench = bench.reopen();
            assert_eq!(bench.offsets(), (0..20).chain(40..60).collect::<Vec<_>>(), "{compress:?}: {lie}");
            assert_eq!(bench.ledger().dropped_damaged, 20);
        }
    }
}

#[test]
fn a_full_disk_and_a_failed_write_are_the_same_with_compression() {
    let mut bench = Bench::new(with(Compression::Zstd));
    batch(&mut bench, 0, 20);
    let used = bench.disk.used();
    bench.disk.capacity(Some(used + 10));
    batch(&mut bench, 20, 40);
    assert_eq!(bench.durable(), 20, "held in memory");
    bench.disk.capacity(None);
    bench.turn();
    assert_eq!(bench.durable(), 40);
    bench.disk.faults(super::disk::Faults { syncs: 1, ..super::disk::Faults::default() });
    batch(&mut bench, 40, 60);
    assert_eq!(bench.durable(), 60, "written again into a new segment");
    let bench = bench.kill_and_reopen();
    assert_whole(&bench, 60);
}

/// What the operator's tools see of a log that nobody has open: records by `peek`, and the audit, which `verify` shows.
fn peek(dir: &Path, from: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    let each = |record: Record| {
        assert_eq!(record.body, body(record.offset.0));
        seen.push(record.offset.0);
        ControlFlow::Continue(())
    };
    offline::records(dir, offline::Start::Offset(Offset(from)), each).unwrap();
    seen
}

#[test]
fn audit_verify_and_peek_see_through_compression() {
    for compress in ALL {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { compress, ..super::face::config(dir.path()) };
        let (mut log, _) = Direct::open(&config, 16, crate::clock::system()).unwrap();
        for n in 0..60 {
            log.append(&[&body(n)], None).unwrap();
            if n % 20 == 19 {
                log.commit().unwrap();
            }
        }
        log.close();
        assert_eq!(peek(dir.path(), 7), (7..60).collect::<Vec<_>>(), "{compress:?}");
        let audit = offline::audit(dir.path(), false).unwrap();
        assert_eq!((audit.frames, audit.records, audit.found, audit.ok), (3, 60, 60, true), "{compress:?}: {audit:?}");
        assert_eq!(offline::list(dir.path()).unwrap().ledger.buffered, 60);

        let frames = offline::frames(dir.path(), "0").unwrap().unwrap();
        let hit = frames[1];
        assert_eq!((frames.len(), hit.base, hit.count), (3, 20, 20));
        let path = dir.path().join(format!("{:020}.seg", 0));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[hit.pos as usize + FRAME_HEADER + 20] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let audit = offline::audit(dir.path(), false).unwrap();
        assert_eq!(
            (audit.missing, audit.gap, audit.damaged_bytes, audit.ok),
            (20, 20, hit.bytes, false),
            "{compress:?}"
        );
        let damage: Vec<_> = audit.findings.iter().map(|finding| (finding.records, finding.bytes)).collect();
        let there = Some((hit.pos, hit.pos + hit.bytes));
        assert_eq!(damage, [(Some((20, 39)), there), (Some((20, 39)), None)], "{compress:?}");
        assert_eq!(peek(dir.path(), 0), (0..20).chain(40..60).collect::<Vec<_>>(), "{compress:?}");
    }
}
