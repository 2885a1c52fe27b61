//! Reads records in order: from the tail in memory where the reader is near the end, from the segments with read-ahead
//! where it is not. It sees only what is durable; with `sync: spill` also what is staged.

use std::io;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::batch::Frame;
use super::handing::{Current, Handful, Stop};
use super::scan::FrameScan;
use super::state::Shared;
use super::storage::Storage;
use super::{Offset, Record, Refused, Watcher};

/// Reads records in order. It sees only what is durable, or with [`super::SyncMode::Spill`] what may become so.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    mark: Watcher,
    closed: tokio::sync::watch::Receiver<bool>,
    /// With `sync: spill` records are read before they are durable: everything below.
    staged: tokio::sync::watch::Receiver<u64>,
    saves: tokio::sync::watch::Receiver<()>,
    /// The next record to hand out.
    pos: u64,
    /// Nothing at or beyond is handed out.
    until: u64,
    current: Option<Current>,
    disk: Option<SegmentScan>,
    /// A read under way on a thread that may block. Kept here, so that `next` can be dropped at any time.
    reading: Option<JoinHandle<(SegmentScan, io::Result<Option<Frame>>)>>,
}

/// A segment that is being read from disk.
#[derive(Debug)]
struct SegmentScan {
    base: u64,
    /// Behind the last record that the scan may find.
    next: u64,
    scan: FrameScan,
}

impl SegmentScan {
    /// The next frame that reaches beyond `pos`.
    fn frame_beyond(&mut self, pos: u64) -> io::Result<Option<Frame>> {
        while let Some(found) = self.scan.next()? {
            if found.header.next() > pos
                && let Some(frame) = found.frame()
            {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// Where the next record comes from.
enum Place {
    Memory(Frame),
    Disk,
    /// Nothing is left of what was asked for; look again from here.
    Beyond(u64),
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, storage: Arc<dyn Storage>) -> Self {
        let (mark, closed, staged) = (shared.mark.watch(), shared.closed.subscribe(), shared.readable.subscribe());
        let saves = shared.saves.subscribe();
        let pos = shared.state.lock().tracker.floor();
        let until = u64::MAX;
        Self { shared, storage, mark, closed, staged, saves, pos, until, current: None, disk: None, reading: None }
    }

    /// The next records, at least one: waits until there is one. At most `records_max` and about `bytes_max`
    /// (one record may exceed it). Offsets rise; a gap is what was dropped or damaged, already counted.
    /// Cancel safe.
    ///
    /// While a window's worth of confirmations is not in the cursor files of the link's lanes, nothing is handed out: with what is in flight, a kill
    /// repeats at most two windows (R9), however long the writer waits for the disk.
    ///
    /// # Errors
    /// [`Refused::Failed`] when the log cannot be read at all any more, [`Refused::Closed`] at the end.
    pub async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Vec<Record>, Refused> {
        self.wait_for_cursor().await?;
        self.read(records_max, bytes_max).await
    }

    /// [`Reader::next`] whatever the cursor file holds.
    pub(super) async fn read(&mut self, records_max: usize, bytes_max: usize) -> Result<Vec<Record>, Refused> {
        loop {
            self.wait_for_records().await?;
            if self.current.is_none() {
                match self.place() {
                    Place::Memory(frame) => self.begin(frame),
                    Place::Beyond(pos) => {
                        self.pos = pos;
                        continue;
                    }
                    Place::Disk => match self.read_frame().await? {
                        Some(frame) => self.begin(frame),
                        None => continue,
                    },
                }
            }
            let records = self.hand_out(records_max, bytes_max);
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Goes back (or on) to `offset`, and from there to the end; below the cursor it begins at the cursor.
    pub fn seek(&mut self, offset: Offset) {
        self.seek_range(offset, Offset(u64::MAX));
    }

    /// The same, and hands out nothing at or beyond `until`: [`Reader::next`] waits there until it is told to go elsewhere.
    pub fn seek_range(&mut self, offset: Offset, until: Offset) {
        self.until = until.0;
        self.pos = offset.0.max(self.cursor().0);
        self.current = None;
        self.disk = None;
        self.reading = None;
    }

    /// The next record to hand out has this offset or a higher one.
    #[must_use]
    pub const fn position(&self) -> Offset {
        Offset(self.pos)
    }

    /// Whether durable records are left to hand out, as far as is known without reading them.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let end = self.mark.done().max(*self.staged.borrow()).min(self.until);
        if end <= self.pos {
            return false;
        }
        let state = self.shared.state.lock();
        let mut pos = self.pos.max(state.tracker.floor());
        while let Some(next) = state.tracker.gone_at(pos).filter(|_| pos < end) {
            pos = next;
        }
        pos < end
    }

    /// The offset of the first undelivered record: where a new connection begins.
    #[must_use]
    pub fn cursor(&self) -> Offset {
        Offset(self.shared.state.lock().tracker.floor())
    }

    /// Until what was confirmed is in the cursor files of all lanes, but for less than a window.
    async fn wait_for_cursor(&mut self) -> Result<(), Refused> {
        loop {
            self.saves.mark_unchanged();
            if *self.closed.borrow() {
                return Err(Refused::Closed);
            }
            if !self.shared.is_unsaved() {
                return Ok(());
            }
            tokio::select! {
                biased;
                changed = self.closed.changed() => if changed.is_err() { return Err(Refused::Closed) },
                alive = self.mark.changed() => if !alive { return Err(Refused::Closed) },
                changed = self.saves.changed() => if changed.is_err() { return Err(Refused::Closed) },
            }
        }
    }

    /// Until something that may be read lies at or beyond `pos`. Looks at the state again after each wake-up.
    async fn wait_for_records(&mut self) -> Result<(), Refused> {
        loop {
            if *self.closed.borrow() {
                return Err(Refused::Closed);
            }
            let progress = self.mark.progress();
            if progress.done.max(*self.staged.borrow_and_update()).min(self.until) > self.pos {
                return Ok(());
            }
            if let Some(reason) = progress.failed {
                return Err(Refused::Failed(reason));
            }
            tokio::select! {
                biased;
                changed = self.closed.changed() => if changed.is_err() { return Err(Refused::Closed) },
                alive = self.mark.changed() => if !alive { return Err(Refused::Closed) },
                changed = self.staged.changed() => if changed.is_err() { return Err(Refused::Closed) },
            }
        }
    }

    fn begin(&mut self, frame: Frame) {
        self.report_gap(frame.from());
        if frame.base > self.pos {
            self.shared.state.lock().tracker.skip(self.pos, frame.base);
            self.pos = frame.base;
        }
        self.current = Some(Current::new(frame));
    }

    /// Records from `pos` to `to` are not where they should be.
    fn report_gap(&mut self, to: u64) {
        if to <= self.pos {
            return;
        }
        if self.shared.state.lock().tracker.unknown_in(self.pos, to) {
            self.shared.damaged(self.pos, to);
        }
        self.pos = self.pos.max(to);
    }

    fn place(&mut self) -> Place {
        let mut state = self.shared.state.lock();
        let pos = self.pos.max(state.tracker.floor());
        if pos > self.pos {
            return Place::Beyond(pos);
        }
        if self.reading.is_some() {
            return Place::Disk;
        }
        if let Some(frame) = state.frame_in_memory(pos).cloned() {
            drop(state);
            self.disk = None;
            return Place::Memory(frame);
        }
        Place::Disk
    }

    /// The next frame from the segment that `pos` lies in; `None`: look again.
    async fn read_frame(&mut self) -> Result<Option<Frame>, Refused> {
        if self.reading.is_none() {
            let Some(mut scan) = self.segment_scan()? else { return Ok(None) };
            let pos = self.pos;
            match tokio::runtime::Handle::try_current() {
                // What lies in memory already needs no other thread.
                Ok(runtime) if !scan.scan.has_more_in_memory() => {
                    self.reading = Some(runtime.spawn_blocking(move || {
                        let frame = scan.frame_beyond(pos);
                        (scan, frame)
                    }));
                }
                _ => {
                    let frame = scan.frame_beyond(pos);
                    return self.finish_read(scan, frame);
                }
            }
        }
        let Some(reading) = &mut self.reading else { return Ok(None) };
        let done = reading.await;
        self.reading = None;
        match done {
            Ok((scan, frame)) => self.finish_read(scan, frame),
            Err(error) => Err(Refused::Failed(error.to_string().into())),
        }
    }

    fn finish_read(&mut self, scan: SegmentScan, frame: io::Result<Option<Frame>>) -> Result<Option<Frame>, Refused> {
        let frame = frame.map_err(|error| Refused::Failed(format!("read: {error}").into()))?;
        match frame {
            Some(frame) => {
                self.disk = Some(scan);
                Ok(Some(frame))
            }
            None => {
                // The segment has no more: what it should have held beyond here is gone.
                self.disk = None;
                self.report_gap(scan.next);
                Ok(None)
            }
        }
    }

    /// Goes on in the segment that is open, or opens the one that `pos` lies in.
    fn segment_scan(&mut self) -> Result<Option<SegmentScan>, Refused> {
        let state = self.shared.state.lock();
        let at = state.segments.partition_point(|segment| segment.next <= self.pos);
        let segment = state.segments.get(at).cloned();
        drop(state);
        let Some(segment) = segment else {
            // Nothing durable is left of it: numbers that were skipped, or damage that was found at the start.
            let done = self.mark.progress().done;
            self.report_gap(done);
            return Ok(None);
        };
        if segment.base > self.pos {
            self.report_gap(segment.base);
        }
        if let Some(mut open) = self.disk.take().filter(|open| open.base == segment.base) {
            open.scan.extend(segment.data_end);
            open.next = segment.next;
            return Ok(Some(open));
        }
        let file = match self.storage.open_to_read(&segment.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Deleted since (the cursor has passed it), or taken away by somebody.
                self.report_gap(segment.next);
                return Ok(None);
            }
            Err(error) => return Err(Refused::Failed(format!("{}: {error}", segment.path.display()).into())),
        };
        let (_, pos) = segment.start_for(self.pos);
        Ok(Some(SegmentScan {
            base: segment.base,
            next: segment.next,
            scan: FrameScan::new(file, segment.salt, pos, segment.data_end),
        }))
    }

    fn hand_out(&mut self, records_max: usize, bytes_max: usize) -> Vec<Record> {
        let mut handful = Handful::of(records_max, bytes_max);
        // A frame behind skipped numbers may begin beyond what is durable, where its sync failed.
        let end = self.until.min(self.mark.done().max(*self.staged.borrow()));
        let mut state = self.shared.state.lock();
        self.pos = self.pos.max(state.tracker.floor());
        while let Some(current) = &mut self.current {
            match current.hand_out(&mut self.pos, end, &mut handful, |offset| state.tracker.is_owed(offset)) {
                Stop::Full => break,
                Stop::End => {
                    self.pos = self.pos.max(current.offset());
                    break;
                }
                Stop::Done => {}
                Stop::Short(offset) => {
                    // No reason to stop.
                    let lost = state.tracker.damage(offset.max(self.pos), current.next());
                    tracing::error!(?lost, "a frame that checks holds fewer records than it says");
                    self.pos = self.pos.max(current.next());
                }
            }
            self.current = state.frame_in_memory(self.pos).map(|frame| Current::new(frame.clone()));
            if self.current.is_some() {
                self.disk = None;
            }
        }
        handful.records
    }
}
