//! Reads what the log still holds, delivered or not, from any offset or time on: for replay. Beside the link's own reader and
//! without a word to the ledger: what is missing here (deleted, damaged, skipped) is counted by who found or dropped it.
//!
//! A place to begin at comes from the segments' sparse index in memory, which their footers or recovery's scan filled; from
//! there on it is one sequential read. Memory is one read-ahead and one frame, whatever the log holds.

use std::io;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::batch::Frame;
use super::handing::{Current, Handful, Stop};
use super::scan::FrameScan;
use super::segment::Segment;
use super::state::{Shared, State};
use super::storage::Storage;
use super::{Offset, Record};
use crate::clock::WallMs;

/// See the module.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    /// The next record to hand out.
    pos: u64,
    until: u64,
    disk: Option<Open>,
    current: Option<Current>,
    /// A read under way on a thread that may block, and where its segment ends. Kept here, so that `next` can be dropped at any
    /// time.
    reading: Option<(u64, JoinHandle<io::Result<FrameRead>>)>,
}

/// A segment that is being read.
#[derive(Debug)]
struct Open {
    base: u64,
    scan: FrameScan,
}

/// A frame of a segment, and the segment to go on with; `None`: it has no more.
type FrameRead = Option<(Open, Frame)>;

/// Where the next records are.
enum Place {
    Memory(Frame),
    Disk(Box<Segment>),
    /// Nothing is there before this offset.
    Beyond(u64),
}

impl History {
    pub(super) fn new(shared: Arc<Shared>, storage: Arc<dyn Storage>, from: Offset, until: Offset) -> Self {
        let until = until.0.min(shared.mark.progress().done);
        Self { shared, storage, pos: from.0, until, disk: None, current: None, reading: None }
    }

    /// The next records, at most `records_max` and about `bytes_max` (one may exceed it); none at the end. Offsets rise; what is
    /// not there any more is passed over. Reads the disk on a thread that may block, where there is a tokio runtime. Cancel safe.
    ///
    /// # Errors
    /// A segment that cannot be read; the next call goes on behind it only if it can be.
    pub async fn next(&mut self, records_max: usize, bytes_max: usize) -> io::Result<Vec<Record>> {
        let mut handful = Handful::of(records_max, bytes_max);
        loop {
            self.hand_out(&mut handful);
            if self.pos >= self.until || handful.is_full() {
                return Ok(handful.records);
            }
            if self.current.is_some() {
                continue;
            }
            if self.reading.is_some() {
                self.finish_reading().await?;
                continue;
            }
            match self.place() {
                Place::Memory(frame) => self.begin(frame),
                Place::Beyond(pos) => self.pos = pos,
                // What is at hand goes out before the disk is waited for.
                Place::Disk(_) if !handful.records.is_empty() => return Ok(handful.records),
                Place::Disk(segment) => self.read(*segment).await?,
            }
        }
    }

    /// The offset that the next record has at least.
    #[must_use]
    pub const fn position(&self) -> Offset {
        Offset(self.pos)
    }

    /// Where it ends: what was durable when it was made, or the end that was asked for.
    #[must_use]
    pub const fn end(&self) -> Offset {
        Offset(self.until)
    }

    /// Goes back (or on) to `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.pos = offset.0;
        self.current = None;
        self.disk = None;
        self.reading = None;
    }

    fn place(&self) -> Place {
        let state = self.shared.state.lock();
        if let Some(frame) = state.tail.frame_with(self.pos) {
            return Place::Memory(frame.clone());
        }
        let at = state.segments.partition_point(|segment| segment.next <= self.pos);
        match state.segments.get(at) {
            Some(segment) => Place::Disk(Box::new(segment.clone())),
            // Numbers that no segment holds, or a tail that is only in memory and begins later.
            None => Place::Beyond(state.tail.first_beyond(self.pos).unwrap_or(self.until).min(self.until)),
        }
    }

    fn begin(&mut self, frame: Frame) {
        self.pos = self.pos.max(frame.base);
        self.current = Some(Current::new(frame));
    }

    /// Reads on in `segment` to the next frame that reaches beyond `pos`, or passes the segment.
    async fn read(&mut self, segment: Segment) -> io::Result<()> {
        self.pos = self.pos.max(segment.base);
        let (pos, next) = (self.pos, segment.next);
        let open = self.disk.take().filter(|open| open.base == segment.base);
        let at_hand = open.as_ref().is_some_and(|open| open.scan.has_more_in_memory());
        let storage = Arc::clone(&self.storage);
        let work = move || read_on(&*storage, &segment, open, pos);
        match tokio::runtime::Handle::try_current() {
            // What lies in memory already needs no other thread.
            Ok(runtime) if !at_hand => {
                self.reading = Some((next, runtime.spawn_blocking(work)));
                self.finish_reading().await
            }
            _ => {
                let read = work()?;
                self.take_up(read, next);
                Ok(())
            }
        }
    }

    async fn finish_reading(&mut self) -> io::Result<()> {
        let Some((next, reading)) = &mut self.reading else { return Ok(()) };
        let (next, read) = (*next, reading.await);
        self.reading = None;
        let read = read.map_err(io::Error::other)??;
        self.take_up(read, next);
        Ok(())
    }

    /// A frame of a segment that ends before `next`, or none any more.
    fn take_up(&mut self, read: FrameRead, next: u64) {
        match read {
            Some((open, frame)) => {
                self.disk = Some(open);
                self.begin(frame);
            }
            None => self.pos = self.pos.max(next),
        }
    }

    fn hand_out(&mut self, handful: &mut Handful) {
        let Some(current) = &mut self.current else { return };
        if current.hand_out(&mut self.pos, self.until, handful, |_| true) == Stop::Full {
            return;
        }
        // A frame that checks and holds fewer records than it says: the rest of it is passed over.
        self.pos = self.pos.max(current.next());
        self.current = None;
    }
}

/// The next frame of `segment` that reaches beyond `pos`. A segment that was deleted meanwhile has none.
fn read_on(storage: &dyn Storage, segment: &Segment, open: Option<Open>, pos: u64) -> io::Result<FrameRead> {
    let mut open = match open {
        Some(mut open) => {
            open.scan.extend(segment.data_end);
            open
        }
        None => match storage.open_to_read(&segment.path) {
            Ok(file) => {
                let (_, from) = segment.start_for(pos);
                Open { base: segment.base, scan: FrameScan::new(file, segment.salt, from, segment.data_end) }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    while let Some(found) = open.scan.next()? {
        if found.header.next() > pos
            && let Some(frame) = found.frame()
        {
            return Ok(Some((open, frame)));
        }
    }
    Ok(None)
}

/// The stretch of the log that can hold records appended in `[from, to)` by the wall clock: what the sparse index cannot rule
/// out. Steps of the clock make it longer, never shorter, but for those within one stretch of the index; so who wants exactly
/// those records looks at each one's time.
pub(super) fn between(state: &State, from: Option<WallMs>, to: Option<WallMs>) -> (u64, u64) {
    let (mut first, mut end) = (None, 0);
    let mut points = state.segments.iter().flat_map(|segment| &segment.points).peekable();
    while let Some(point) = points.next() {
        let next = points.peek();
        // A frame's records are stamped from its first on, before the next frame's first.
        let latest = next.map_or(WallMs(u64::MAX), |next| next.at.wall).max(point.at.wall).max(point.last.wall);
        if first.is_none() && from.is_none_or(|from| latest >= from) {
            first = Some(point.offset);
        }
        if to.is_none_or(|to| point.at.wall.min(point.last.wall) < to) {
            end = next.map_or(state.next, |next| next.offset);
        }
    }
    (first.unwrap_or(state.next), end)
}
