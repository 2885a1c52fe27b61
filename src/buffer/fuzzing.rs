//! The decoders of what lies on disk, for `fuzz/` and for the tests that run its corpora: any bytes in, no panic, no endless loop,
//! no more memory than a few times the bytes. Not an interface: it changes with the format.

use std::io;

use bytes::Bytes;

use super::cursor::Tracker;
use super::dead_letters;
use super::format::{
    FRAME_HEADER, Footer, FrameHeader, HeaderRead, SEGMENT_HEADER, SegmentHeader, aligned, decode_record,
};
use super::log::Identity;
use super::scan::FrameScan;
use super::slots;
use super::storage::Handle;
use super::wide;

/// A file that is a piece of memory.
#[derive(Debug)]
struct Memory(Bytes);

impl Handle for Memory {
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let from = usize::try_from(pos).unwrap_or(usize::MAX);
        let rest = self.0.get(from..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, _bytes: &[u8], _pos: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(wide(self.0.len()))
    }
}

/// What the fuzzed bytes were taken for; a target that finds nothing in good files would be a check that cannot fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Frames, slots, letters.
    pub parts: usize,
    /// Records in the frames, holes in the cursor.
    pub items: usize,
}

/// A segment file: header, frames, records, footer. Also the same bytes as the body of a frame and of a footer whose checksums
/// are right, so that what lies behind them is reached.
#[must_use]
pub fn segment(data: &[u8]) -> Found {
    let mut found = Found::default();
    let bytes = Bytes::copy_from_slice(data);
    let salt = match SegmentHeader::decode(&bytes) {
        HeaderRead::Ours(header) => header.salt,
        HeaderRead::Later(_) | HeaderRead::Unreadable => 0,
    };
    let start = wide(SEGMENT_HEADER);
    let mut frames = FrameScan::new(Box::new(Memory(bytes.clone())), salt, start, wide(bytes.len()));
    while let Ok(Some(frame)) = frames.next() {
        found.parts += 1;
        found.items += frame.frame().map_or(0, |frame| records(&frame.body));
    }
    drop(Footer::decode(data));
    let _records = records(&bytes);
    let _sealed = sealed(data).map(|body| records(&body));
    found
}

/// Every record of a frame's body.
fn records(body: &Bytes) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(record) = decode_record(body, at) {
        (at, count) = (record.end, count + 1);
    }
    count
}

/// The bytes as a frame: the first 68 as its header, with checksums that are right.
fn sealed(data: &[u8]) -> Option<Bytes> {
    let (head, body) = data.split_at_checked(FRAME_HEADER - 4)?;
    let mut out = Vec::with_capacity(FRAME_HEADER + aligned(body.len()));
    FrameHeader::of(body, 7, 3, 1).encode(7, &mut out);
    // Count, base, stamps and the like as fuzzed; what says what the bytes are, how many and whether they are whole, is right.
    for (at, byte) in head.iter().enumerate().filter(|(at, _)| (16..20).contains(at) || *at >= 24) {
        *out.get_mut(at)? = *byte;
    }
    let sum = crc32c::crc32c_append(7, out.get(..FRAME_HEADER - 4)?);
    out.get_mut(FRAME_HEADER - 4..)?.copy_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(body);
    out.resize(FRAME_HEADER + aligned(body.len()), 0);
    let end = wide(out.len());
    let mut frames = FrameScan::new(Box::new(Memory(out.into())), 7, 0, end);
    Some(frames.next().ok()??.frame()?.body)
}

/// A file of two slots, `meta` or `cursors`; and the same bytes as a payload whose checksum is right.
#[must_use]
pub fn slots(data: &[u8]) -> Found {
    let mut found = Found::default();
    for slot in data.chunks(slots::SLOT) {
        if let Some((_, _, payload)) = slots::decode(slot) {
            found.parts += 1;
            found.items += payloads(payload);
        }
    }
    let _payload = payloads(data);
    found
}

fn payloads(payload: &[u8]) -> usize {
    if let Some(identity) = Identity::decode(payload) {
        let _salt = identity.salt(identity.reserved, identity.epoch);
    }
    let Some((tracker, durable)) = Tracker::decode(payload) else { return 0 };
    // What was read can be counted with, and written again.
    let _balances = tracker.ledger(durable).balances();
    let written = tracker.encode(durable);
    usize::from(Tracker::decode(&written).is_some())
}

/// A dead-letter log.
#[must_use]
pub fn letters(data: &[u8]) -> Found {
    let file = Memory(Bytes::copy_from_slice(data));
    let (mut at, mut found) = (0, Found::default());
    while at < wide(data.len()) {
        match dead_letters::row_len(&file, at, wide(data.len())) {
            Ok(Some(size)) => {
                found.parts += 1;
                at += wide(aligned(size));
            }
            Ok(None) => at += 8,
            Err(_) => break,
        }
    }
    found
}
