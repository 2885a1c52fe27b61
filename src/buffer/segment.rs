//! What is known in memory of a segment: where it lies, what it holds, and a few places to begin reading at. Its size
//! does not grow with the segment.

use std::path::PathBuf;
use std::time::Duration;

use super::batch::Frame;
use super::format::{Mileage, SEGMENT_HEADER};
use super::wide;
use crate::clock::Moment;

/// Places to begin at that a segment keeps; when there are more, every second one goes.
const POINTS_MAX: usize = 64;

/// A place to begin at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) offset: u64,
    pub(super) pos: u64,
    /// When the frame's first record was appended.
    pub(super) at: Moment,
    /// Of the last frame before the next point.
    pub(super) last: Moment,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) base: u64,
    /// Offset behind its last record.
    pub(super) next: u64,
    pub(super) salt: u32,
    /// Length of the file that is accounted for.
    pub(super) bytes: u64,
    /// Where its frames end.
    pub(super) data_end: u64,
    pub(super) payload: u64,
    pub(super) last: Option<Moment>,
    /// Names the boot of the machine that it was written in (R8).
    pub(super) boot: u32,
    pub(super) points: Vec<Point>,
    /// Bytes between points; doubles as they are thinned out.
    stride: u64,
    /// When its file was made, in this process.
    pub(super) made: Option<Moment>,
}

impl Segment {
    pub(super) fn new(path: PathBuf, base: u64, salt: u32) -> Self {
        let header = wide(SEGMENT_HEADER);
        Self {
            path,
            base,
            next: base,
            salt,
            bytes: header,
            data_end: header,
            payload: 0,
            last: None,
            boot: 0,
            points: Vec::new(),
            stride: 1,
            made: None,
        }
    }

    /// Takes note of a frame at the end of the data.
    pub(super) fn push(&mut self, frame: &FrameMeta) {
        let at = Moment { boot: self.boot, ..frame.at };
        if self.points.last().is_none_or(|last| frame.pos >= last.pos + self.stride) {
            if self.points.len() >= POINTS_MAX {
                self.thin_out();
            }
            self.points.push(Point { offset: frame.base, pos: frame.pos, at, last: at });
        } else if let Some(point) = self.points.last_mut() {
            point.last = at;
        }
        self.next = frame.next;
        self.data_end = frame.pos + frame.len;
        self.bytes = self.bytes.max(self.data_end);
        self.payload += frame.payload;
        self.last = Some(at);
    }

    fn thin_out(&mut self) {
        let merged = self.points.chunks(2).filter_map(|pair| {
            let (first, second) = (pair.first()?, pair.last()?);
            Some(Point { last: second.last, ..*first })
        });
        self.points = merged.collect();
        let span = self.points.last().zip(self.points.first()).map_or(0, |(last, first)| last.pos - first.pos);
        self.stride = span.checked_div(wide(self.points.len().saturating_sub(1))).unwrap_or(0).max(1);
    }

    /// Where to begin reading for `offset`.
    pub(super) fn start_for(&self, offset: u64) -> (u64, u64) {
        let at = self.points.partition_point(|point| point.offset <= offset);
        at.checked_sub(1)
            .and_then(|at| self.points.get(at))
            .map_or((self.base, wide(SEGMENT_HEADER)), |point| (point.offset, point.pos))
    }

    /// Payload bytes at or above `offset`, in proportion to the bytes of the file: numbers may be skipped, bytes are not.
    pub(super) fn payload_from(&self, offset: u64) -> u64 {
        let header = wide(SEGMENT_HEADER);
        let at = self.points.partition_point(|point| point.offset <= offset);
        let place = |point: &Point| (point.offset, point.pos);
        let (from, pos) = at.checked_sub(1).and_then(|at| self.points.get(at)).map_or((self.base, header), place);
        let (to, end) = self.points.get(at).map_or((self.next, self.data_end), place);
        let passed = share(end - pos, offset.saturating_sub(from).min(to - from), to - from);
        share(self.payload, self.data_end - pos - passed, self.data_end - header)
    }

    /// The offset below which every record is older than `max_age`.
    pub(super) fn aged_below(&self, max_age: Duration, now: Moment) -> u64 {
        if self.last.is_none() {
            return self.base;
        }
        let young = self.points.iter().find(|point| now.since(point.last) <= max_age);
        young.map_or(self.next, |point| point.offset)
    }

    pub(super) fn mileage(&self) -> Vec<Mileage> {
        let points = self.points.iter();
        points.map(|point| Mileage { offset: point.offset, pos: point.pos, at: point.at }).collect()
    }
}

/// The part `of` by `all` of a number.
fn share(number: u64, of: u64, all: u64) -> u64 {
    u64::try_from(u128::from(number) * u128::from(of) / u128::from(all.max(1))).unwrap_or(number)
}

/// A frame as a segment takes note of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameMeta {
    pub(super) base: u64,
    pub(super) next: u64,
    pub(super) pos: u64,
    pub(super) len: u64,
    pub(super) payload: u64,
    pub(super) at: Moment,
}

impl FrameMeta {
    pub(super) const fn of(frame: &Frame, pos: u64, len: u64) -> Self {
        Self { base: frame.base, next: frame.next(), pos, len, payload: frame.payload, at: frame.at }
    }
}
