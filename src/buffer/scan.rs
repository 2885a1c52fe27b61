//! Walks the frames of a segment from its file, with read-ahead, and finds its way again behind damage.

use std::io;

use bytes::Bytes;

use super::batch::Frame;
use super::codec::unpack;
use super::format::{FRAME_HEADER, FrameHeader, RECORD_HEADER};
use super::segment::FrameMeta;
use super::storage::{Handle, read_past_bad_pages};
use super::wide;

/// Bytes that are read at once: large enough that a disk streams, small enough that many links can do it.
const READ_AHEAD: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct FrameScan {
    file: Box<dyn Handle>,
    salt: u32,
    pos: u64,
    end: u64,
    chunk: Bytes,
    chunk_pos: u64,
}

/// A sound frame, and where it lies.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: FrameHeader,
    pub(super) pos: u64,
    /// Its body as it is stored; the checksum holds.
    pub(super) stored: Bytes,
}

impl Found {
    /// Its records; `None` where what is stored does not become them, although its checksum holds.
    pub(super) fn frame(&self) -> Option<Frame> {
        let header = &self.header;
        let body = unpack(header.codec, &self.stored, header.raw())?;
        let (base, skipped, count) = (header.base, header.skipped, u64::from(header.count));
        Some(Frame { base, skipped, count, at: header.at, payload: self.payload(), body })
    }

    /// What a segment notes of it.
    pub(super) fn meta(&self) -> FrameMeta {
        let header = &self.header;
        FrameMeta {
            base: header.base,
            next: header.next(),
            pos: self.pos,
            len: header.frame_len(),
            payload: self.payload(),
            at: header.at,
        }
    }

    fn payload(&self) -> u64 {
        let records = usize::try_from(self.header.count).unwrap_or(0);
        wide(self.header.raw().saturating_sub(records.saturating_mul(RECORD_HEADER)))
    }
}

impl FrameScan {
    /// Frames that begin at or behind `pos` and end at or before `end`.
    pub(super) fn new(file: Box<dyn Handle>, salt: u32, pos: u64, end: u64) -> Self {
        Self { file, salt, pos, end, chunk: Bytes::new(), chunk_pos: 0 }
    }

    /// Lets it go on to what has been written meanwhile.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The next sound frame; what cannot be read is passed over, eight bytes at a time. Footers are left out.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        let mut at = self.pos;
        while at + wide(FRAME_HEADER) <= self.end {
            if let Some(found) = self.frame_at(at)? {
                self.pos = at + found.header.frame_len();
                if found.header.footer {
                    at = self.pos;
                    continue;
                }
                return Ok(Some(found));
            }
            at += 8;
        }
        Ok(None)
    }

    /// What it reads.
    pub(super) fn file(&self) -> &dyn Handle {
        &*self.file
    }

    /// Whether a read would need the disk.
    pub(super) fn has_more_in_memory(&self) -> bool {
        self.pos >= self.chunk_pos && self.pos + wide(FRAME_HEADER) <= self.chunk_pos + wide(self.chunk.len())
    }

    fn frame_at(&mut self, pos: u64) -> io::Result<Option<Found>> {
        let Some(head) = self.bytes_at(pos, FRAME_HEADER)? else { return Ok(None) };
        let Some(header) = FrameHeader::decode(&head, self.salt) else { return Ok(None) };
        let Some(body) = self.bytes_at(pos + wide(FRAME_HEADER), header.padded_body())? else { return Ok(None) };
        let stored = body.slice(..header.stored());
        Ok(header.checks(&stored, self.salt).then_some(Found { header, pos, stored }))
    }

    fn bytes_at(&mut self, pos: u64, len: usize) -> io::Result<Option<Bytes>> {
        if pos + wide(len) > self.end {
            return Ok(None);
        }
        let held = |chunk: &Bytes, chunk_pos: u64| {
            let from = usize::try_from(pos.checked_sub(chunk_pos)?).ok()?;
            let to = from.checked_add(len)?;
            (to <= chunk.len()).then(|| chunk.slice(from..to))
        };
        if let Some(bytes) = held(&self.chunk, self.chunk_pos) {
            return Ok(Some(bytes));
        }
        let ahead = usize::try_from(self.end - pos).map_or(READ_AHEAD, |left| left.min(READ_AHEAD));
        self.chunk = read_past_bad_pages(&*self.file, pos, len.max(ahead))?.into();
        self.chunk_pos = pos;
        if self.chunk.len() < len.max(ahead) {
            // Cut meanwhile: behind its end there is nothing to look for.
            self.end = self.end.min(pos + wide(self.chunk.len()));
        }
        Ok(held(&self.chunk, self.chunk_pos))
    }
}
