//! Walks every byte of a segment: each frame's checksums, each record in it, the footer; and says where bytes are that
//! are none of these.

use std::io;

use super::super::format::{FRAME_HEADER, Footer, FrameHeader, SEGMENT_HEADER, decode_record};
use super::super::recovery::FOOTER_MAX;
use super::super::scan::{Found, FrameScan};
use super::super::storage::{Handle, Storage, read_past_bad_pages};
use super::super::wide;
use super::ranges::Ranges;
use super::view::SegmentFile;

/// What a segment's bytes are.
#[derive(Clone, Debug, Default)]
pub(in crate::buffer) struct Walk {
    /// Sound frames, the footer not counted.
    pub(in crate::buffer) frames: u64,
    /// Records that are really in them.
    pub(in crate::buffer) found: Ranges,
    /// Numbers that frames say hold no record.
    pub(in crate::buffer) skipped: Ranges,
    /// Payload bytes of those records.
    pub(in crate::buffer) payload: u64,
    /// Bytes that are nothing: from, to, and which records could have been there (`[from, to)`).
    pub(in crate::buffer) damaged: Vec<Damage>,
    /// Where the last sound frame ends.
    pub(in crate::buffer) data_end: u64,
    /// Behind the last record of a sound frame.
    pub(in crate::buffer) next: u64,
    /// Everything below was durable, by its frames.
    pub(in crate::buffer) durable: u64,
    /// What it says of itself, if that is sound and in its place.
    pub(in crate::buffer) footer: Option<Footer>,
    /// A footer that is sound and says what is not so.
    pub(in crate::buffer) wrong_footer: bool,
    /// Bytes behind the last sound frame that are no footer.
    pub(in crate::buffer) tail: u64,
    /// The file is gone: delivered and deleted meanwhile.
    pub(in crate::buffer) gone: bool,
}

/// Bytes `[from, to)` of a file that do not check; `first..next`: records that were in them, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::buffer) struct Damage {
    pub(in crate::buffer) from: u64,
    pub(in crate::buffer) to: u64,
    pub(in crate::buffer) first: u64,
    pub(in crate::buffer) next: u64,
}

/// How far to look.
#[derive(Clone, Copy, Debug)]
pub(in crate::buffer) struct Bounds {
    /// Bytes of the file that count; what is being written behind them does not.
    pub(in crate::buffer) bytes: u64,
    /// Records at or above belong to the next segment: what this one holds of them was written once more there.
    pub(in crate::buffer) number: u64,
    /// Holes that begin at or above were never durable: the first one ends the walk.
    pub(in crate::buffer) durable: u64,
}

/// Walks a segment; `each` is shown every sound frame that counts.
pub(in crate::buffer) fn walk(
    storage: &dyn Storage,
    segment: &SegmentFile,
    bounds: Bounds,
    mut each: impl FnMut(&Found),
) -> io::Result<Walk> {
    let head = wide(SEGMENT_HEADER);
    let mut walk = Walk { next: segment.base, data_end: head, ..Walk::default() };
    let open = || match storage.open_to_read(&segment.path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(file), Some(again)) = (open()?, open()?) else {
        walk.gone = true;
        return Ok(walk);
    };
    let Some(salt) = segment.salt else {
        walk.damaged.push(Damage { from: 0, to: segment.len, first: segment.base, next: segment.base });
        return Ok(walk);
    };
    if segment.header.is_none() {
        walk.damaged.push(Damage { from: 0, to: head.min(segment.len), first: segment.base, next: segment.base });
    }
    let end = bounds.bytes.min(segment.len);
    let mut scan = FrameScan::new(file, salt, head, end);
    while let Some(found) = scan.next()? {
        if !walk.take(&found, bounds) {
            return Ok(walk);
        }
        if found.header.base >= segment.base && found.header.base < bounds.number {
            each(&found);
        }
    }
    walk.end(&*again, salt, end)?;
    Ok(walk)
}

impl Walk {
    /// `false`: a torn tail begins before it.
    fn take(&mut self, found: &Found, bounds: Bounds) -> bool {
        let header = &found.header;
        if header.base >= bounds.number || header.base < self.next {
            // Written once more elsewhere, or twice here.
            self.data_end = found.pos + header.frame_len();
            return true;
        }
        let from = header.from().max(self.next);
        if from > self.next && self.next >= bounds.durable {
            self.tail = found.pos - self.data_end;
            return false;
        }
        if found.pos > self.data_end {
            self.damaged.push(Damage { from: self.data_end, to: found.pos, first: self.next, next: from });
        }
        self.skipped.add(from, header.base);
        self.durable = self.durable.max(header.durable.min(header.base));
        self.frames += 1;
        self.data_end = found.pos + header.frame_len();
        self.next = header.next();
        self.records(found);
        true
    }

    /// Counts the records one by one: a header only says how many there should be.
    fn records(&mut self, found: &Found) {
        let to = found.pos + found.header.frame_len();
        let Some(frame) = found.frame() else {
            self.damaged.push(Damage { from: found.pos, to, first: found.header.base, next: found.header.next() });
            return;
        };
        let mut at = 0;
        for number in frame.base..frame.next() {
            let Some(record) = decode_record(&frame.body, at) else {
                self.damaged.push(Damage { from: found.pos, to, first: number, next: frame.next() });
                return;
            };
            at = record.end;
            self.payload += wide(record.body.len());
            self.found.add(number, number + 1);
        }
    }

    /// What is behind the last frame: a footer, nothing, or a tail.
    fn end(&mut self, file: &dyn Handle, salt: u32, end: u64) -> io::Result<()> {
        let left = end.saturating_sub(self.data_end);
        if left == 0 {
            return Ok(());
        }
        self.tail = left;
        // A footer ends with its own place: it is found also behind frames that are damaged.
        let own = read_past_bad_pages(file, end.saturating_sub(8), 8)?;
        let pos = own.first_chunk::<8>().map_or(0, |own| u64::from_le_bytes(*own));
        let pos = if (self.data_end..end).contains(&pos) && end - pos <= FOOTER_MAX { pos } else { self.data_end };
        let Some(size) = usize::try_from(end - pos).ok().filter(|_| end - pos <= FOOTER_MAX) else { return Ok(()) };
        let Some(footer) = sound_footer(&read_past_bad_pages(file, pos, size)?, salt) else { return Ok(()) };
        self.tail = 0;
        if pos > self.data_end {
            let next = footer.next.max(self.next);
            self.damaged.push(Damage { from: self.data_end, to: pos, first: self.next, next });
            self.next = next;
        }
        self.wrong_footer = footer.pos != pos || footer.next < self.next;
        self.data_end = pos;
        self.footer = Some(footer);
        Ok(())
    }
}

/// The footer that these bytes are, all of them.
fn sound_footer(bytes: &[u8], salt: u32) -> Option<Footer> {
    let header = FrameHeader::decode(bytes, salt).filter(|header| header.footer)?;
    let body = bytes.get(FRAME_HEADER..)?;
    header.checks(body, salt).then(|| Footer::decode(body)).flatten()
}
