//! Records of a frame, handed out one by one, within what the caller asked for at once. Pure.

use super::Record;
use super::batch::Frame;
use super::format::decode_record;

/// What is handed out at once.
#[derive(Debug)]
pub(super) struct Handful {
    pub(super) records: Vec<Record>,
    /// Of their bodies.
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
}

impl Handful {
    /// At most `records_max` records (one at least) and about `bytes_max` bytes (one record may exceed it).
    pub(super) fn of(records_max: usize, bytes_max: usize) -> Self {
        Self { records: Vec::new(), bytes: 0, records_max: records_max.max(1), bytes_max }
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= self.records_max || (self.bytes >= self.bytes_max && !self.records.is_empty())
    }
}

/// The frame that is being handed out.
#[derive(Debug)]
pub(super) struct Current {
    frame: Frame,
    /// The next record in it, and where it begins.
    offset: u64,
    at: usize,
}

/// Why no more is handed out of a frame for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The handful is full.
    Full,
    /// The next record is at or beyond the end that was given.
    End,
    /// The frame has no more.
    Done,
    /// Its checksum holds, and it holds fewer records than it says: our own mistake. From this one on.
    Short(u64),
}

impl Current {
    pub(super) const fn new(frame: Frame) -> Self {
        Self { offset: frame.base, at: 0, frame }
    }

    /// The offset of the next record.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Behind the frame's last record.
    pub(super) const fn next(&self) -> u64 {
        self.frame.next()
    }

    /// Hands out the records from `pos` on and below `end` that are `wanted`; `pos` goes behind them.
    pub(super) fn hand_out(
        &mut self,
        pos: &mut u64,
        end: u64,
        handful: &mut Handful,
        wanted: impl Fn(u64) -> bool,
    ) -> Stop {
        while self.offset < self.frame.next() {
            if self.offset >= end {
                return Stop::End;
            }
            if handful.is_full() {
                return Stop::Full;
            }
            let Some(decoded) = decode_record(&self.frame.body, self.at) else { return Stop::Short(self.offset) };
            let offset = self.offset;
            self.offset += 1;
            self.at = decoded.end;
            if offset < *pos {
                continue;
            }
            *pos = offset + 1;
            if wanted(offset) {
                handful.bytes += decoded.body.len();
                handful.records.push(self.frame.record(offset, decoded));
            }
        }
        Stop::Done
    }
}
