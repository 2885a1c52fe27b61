//! What a buffer holds, told from its files: lists, frames, records.

use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::batch::Frame;
use super::super::cursor::Tracker;
use super::super::format::{SEGMENT_HEADER, decode_record};
use super::super::scan::{Found, FrameScan};
use super::super::storage::{Disk, Storage};
use super::super::{Ledger, Offset, OpenError, Record, wide};
use super::ranges::Ranges;
use super::view::{SegmentFile, View};
use super::walk::{Bounds, walk};
use crate::clock::WallMs;

/// A link's buffer at one glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferList {
    /// The link, or the folder of one that is no more.
    pub link: String,
    /// 8 hex digits that name the log: the first part of `tg-seq`.
    pub id: String,
    /// As the cursor file has it.
    pub ledger: Ledger,
    /// The first record that is owed, or the next one.
    pub cursor: u64,
    /// The next record's offset.
    pub next: u64,
    /// Everything below was durable when the cursor was last saved.
    pub durable: u64,
    /// When the oldest owed record was appended (wall ms).
    pub oldest_ms: Option<u64>,
    /// How often the log was opened.
    pub epoch: u32,
    /// It was closed in good order.
    pub clean: bool,
    /// Bytes of all segments.
    pub bytes: u64,
    /// In order.
    pub segments: Vec<SegmentList>,
    /// Segments that were put aside.
    pub aside: Vec<String>,
}

/// A segment at one glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentList {
    /// Its file.
    pub file: String,
    /// Its first record.
    pub base: u64,
    /// Behind its last one.
    pub next: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Sound frames.
    pub frames: u64,
    /// It has a footer.
    pub sealed: bool,
    /// Its header and frames can be read.
    pub readable: bool,
    /// The log's epoch when it was begun.
    pub epoch: Option<u32>,
    /// When it was begun (wall ms).
    pub created_ms: Option<u64>,
    /// Bytes that do not check, with those of a torn tail.
    pub unreadable_bytes: u64,
}

/// A frame, as its header has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameList {
    /// Where it begins in the file.
    pub pos: u64,
    /// Bytes, header included.
    pub bytes: u64,
    /// Its first record.
    pub base: u64,
    /// How many.
    pub count: u32,
    /// So many numbers before it hold no record.
    pub skipped: u64,
    /// Everything below was durable when it was written.
    pub durable: u64,
    /// When its first record was appended (wall ms).
    pub wall_ms: u64,
}

/// Lists the buffer in `dir`; reads all of it.
///
/// # Errors
/// [`OpenError`].
pub fn list(dir: &Path) -> Result<BufferList, OpenError> {
    let view = View::read(&Disk, dir)?;
    let (tracker, durable) = saved(&view);
    let mut list = BufferList {
        link: super::super::lanes::label(dir),
        cursor: tracker.floor(),
        durable,
        aside: view.aside.clone(),
        ..BufferList::default()
    };
    if let Some(identity) = view.identity {
        list.id = identity.uuid.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        (list.epoch, list.clean) = (identity.epoch, identity.clean);
    }
    let mut next = durable.max(tracker.known_end());
    for (at, segment) in view.segments.iter().enumerate() {
        let number = view.segments.get(at + 1).map_or(u64::MAX, |next| next.base);
        let bounds = Bounds { bytes: u64::MAX, number, durable: u64::MAX };
        let walked = walk(&Disk, segment, bounds, |_| {}).map_err(at_path(&segment.path))?;
        next = next.max(walked.next);
        list.bytes += segment.len;
        list.segments.push(SegmentList {
            file: segment.name(),
            base: segment.base,
            next: walked.next,
            bytes: segment.len,
            frames: walked.frames,
            sealed: walked.footer.is_some(),
            readable: segment.header.is_some(),
            epoch: segment.header.map(|header| header.epoch),
            created_ms: segment.header.map(|header| header.created.0),
            unreadable_bytes: walked.tail + walked.damaged.iter().map(|place| place.to - place.from).sum::<u64>(),
        });
    }
    list.next = next;
    list.ledger = tracker.ledger(next);
    let owed = tracker.owed_below(next);
    each_record(&Disk, &view, tracker.floor(), |record| {
        if owed.contains(record.offset.0) {
            list.oldest_ms = Some(record.appended.0);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(list)
}

/// The frames of one segment of the buffer in `dir`, by its file's name or its first record.
///
/// # Errors
/// [`OpenError`]. `None`: there is no such segment.
pub fn frames(dir: &Path, segment: &str) -> Result<Option<Vec<FrameList>>, OpenError> {
    let view = View::read(&Disk, dir)?;
    let is_it = |found: &&SegmentFile| found.name() == segment || found.base.to_string() == segment;
    let Some(found) = view.segments.iter().find(is_it) else { return Ok(None) };
    let mut frames = Vec::new();
    let bounds = Bounds { bytes: u64::MAX, number: u64::MAX, durable: u64::MAX };
    walk(&Disk, found, bounds, |found| frames.push(frame_of(found))).map_err(at_path(&found.path))?;
    Ok(Some(frames))
}

fn frame_of(found: &Found) -> FrameList {
    let header = &found.header;
    FrameList {
        pos: found.pos,
        bytes: header.frame_len(),
        base: header.base,
        count: header.count,
        skipped: header.skipped,
        durable: header.durable,
        wall_ms: header.at.wall.0,
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first record that is owed.
    Cursor,
    /// At this offset; below the cursor lies what is delivered and not deleted yet.
    Offset(Offset),
    /// At the first record that was appended then or later.
    Time(WallMs),
}

/// Shows the records of the buffer in `dir` in order, from `start` on, until `each` breaks off. Answers which owed ones are missing
/// among them, first and last, since bytes of a segment are damaged. What may be missing behind the last that is sound is not
/// known here: the audit says it.
///
/// # Errors
/// [`OpenError`].
pub fn records(
    dir: &Path,
    start: Start,
    mut each: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<Vec<(Offset, Offset)>, OpenError> {
    let view = View::read(&Disk, dir)?;
    let (tracker, _) = saved(&view);
    let (from, since) = match start {
        Start::Cursor => (tracker.floor(), WallMs(0)),
        Start::Offset(offset) => (offset.0, WallMs(0)),
        Start::Time(time) => (0, time),
    };
    // By time, what comes before the first record of that time is not asked for.
    let mut next = (since == WallMs(0)).then_some(from.max(tracker.floor()));
    let mut missing = Ranges::default();
    each_number(&Disk, &view, from, |seen| match seen {
        Seen::Skipped(from, to) => {
            next = next.map(|next| {
                missing.add(next, from.max(next));
                to.max(next)
            });
            ControlFlow::Continue(())
        }
        Seen::Record(record) if record.appended < since => ControlFlow::Continue(()),
        Seen::Record(record) => {
            let number = record.offset.0;
            let before = next.unwrap_or(number);
            missing.add(before, number.max(before));
            next = Some(before.max(number + 1));
            each(record)
        }
    })?;
    let missing = missing.common(&tracker.owed_below(next.unwrap_or(0)));
    Ok(missing.iter().map(|(from, to)| (Offset(from), Offset(to - 1))).collect())
}

/// The saved cursor; without one, what the next start would begin with.
pub(in crate::buffer) fn saved(view: &View) -> (Tracker, u64) {
    let fresh = || (Tracker::starting_at(view.segments.first().map_or(0, |first| first.base)), 0);
    view.saved.clone().unwrap_or_else(fresh)
}

/// What a log's numbers are, in order.
pub(in crate::buffer) enum Seen {
    /// Numbers `[from, to)` hold no record, and are no hole.
    Skipped(u64, u64),
    /// A record.
    Record(Record),
}

fn each_record(
    storage: &dyn Storage,
    view: &View,
    from: u64,
    mut each: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    each_number(storage, view, from, |seen| match seen {
        Seen::Record(record) => each(record),
        Seen::Skipped(..) => ControlFlow::Continue(()),
    })
}

/// Shows what sound frames say of the numbers at or above `from`.
pub(in crate::buffer) fn each_number(
    storage: &dyn Storage,
    view: &View,
    from: u64,
    mut each: impl FnMut(Seen) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    for (at, segment) in view.segments.iter().enumerate() {
        let end = view.segments.get(at + 1).map_or(u64::MAX, |next| next.base);
        if end <= from {
            continue;
        }
        let read = records_of(storage, segment, from, end, &mut each).map_err(at_path(&segment.path))?;
        if read.is_break() {
            break;
        }
    }
    Ok(())
}

fn records_of(
    storage: &dyn Storage,
    segment: &SegmentFile,
    from: u64,
    end: u64,
    each: &mut impl FnMut(Seen) -> ControlFlow<()>,
) -> std::io::Result<ControlFlow<()>> {
    let Some(salt) = segment.salt else { return Ok(ControlFlow::Continue(())) };
    let file = match storage.open_to_read(&segment.path) {
        Ok(file) => file,
        // Delivered meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ControlFlow::Continue(())),
        Err(error) => return Err(error),
    };
    let mut scan = FrameScan::new(file, salt, wide(SEGMENT_HEADER), segment.len);
    let mut next = from;
    while let Some(found) = scan.next()? {
        if found.header.base >= end || found.header.next() <= next {
            continue;
        }
        let Some(frame) = found.frame() else { continue };
        if frame.skipped > 0 && each(Seen::Skipped(frame.from(), frame.base)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for record in records_in(&frame) {
            if record.offset.0 < next {
                continue;
            }
            next = record.offset.0 + 1;
            if each(Seen::Record(record)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The records of a frame.
fn records_in(frame: &Frame) -> impl Iterator<Item = Record> + '_ {
    let mut at = 0;
    (frame.base..frame.next()).map_while(move |offset| {
        let decoded = decode_record(&frame.body, at)?;
        at = decoded.end;
        let appended = WallMs(frame.at.wall.0.saturating_add_signed(i64::from(decoded.delta_ms)));
        Some(Record { offset: Offset(offset), appended, expires: decoded.expires, body: decoded.body })
    })
}

fn at_path(path: &Path) -> impl Fn(std::io::Error) -> OpenError + '_ {
    move |error| OpenError::Io { path: path.to_owned(), error }
}
