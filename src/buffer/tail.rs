//! The log's newest frames, in memory: what an online link reads, and what may have to be written once more.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::batch::Frame;
use super::state::STAGED_BYTES_MAX;
use super::{SyncMode, wide};

/// The newest durable frames.
#[derive(Debug, Default)]
pub(super) struct Tail {
    frames: VecDeque<Frame>,
    bytes: u64,
    bytes_max: u64,
    /// Memory of a frame that is gone.
    pub(super) spare: Option<BytesMut>,
}

impl Tail {
    /// Bytes of the log's tail that stay in memory, so that an online link does not read the disk.
    pub(super) const BYTES_MAX: u64 = 4 << 20;

    /// A tail for a log of this mode. What is not synced must stay, as its file may turn out to have failed, or be read
    /// before it is there (`sync: spill`).
    pub(super) fn of(sync: SyncMode) -> Self {
        let unsynced = match sync {
            SyncMode::Interval(_) | SyncMode::Spill(_) => 2 * STAGED_BYTES_MAX,
            SyncMode::Group | SyncMode::Never => 0,
        };
        Self { bytes_max: Self::BYTES_MAX + unsynced, ..Self::default() }
    }

    pub(super) fn push(&mut self, frame: Frame) {
        if self.frames.back().is_some_and(|last| frame.base < last.next()) {
            // Written a second time: it is here already.
            return;
        }
        self.bytes += wide(frame.body.len());
        self.frames.push_back(frame);
        while self.bytes > self.bytes_max && self.frames.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= wide(frame.body.len());
            self.spare = frame.into_spare().or_else(|| self.spare.take());
        }
    }

    /// What is settled need not stay.
    pub(super) fn forget_below(&mut self, floor: u64) {
        while self.frames.front().is_some_and(|frame| frame.next() <= floor) {
            self.pop();
        }
    }

    /// Where the first frame that reaches beyond `offset` begins.
    pub(super) fn first_beyond(&self, offset: u64) -> Option<u64> {
        let at = self.frames.partition_point(|frame| frame.next() <= offset);
        self.frames.get(at).map(|frame| frame.base.max(offset))
    }

    #[cfg(test)]
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The frame with `offset`.
    pub(super) fn frame_with(&self, offset: u64) -> Option<&Frame> {
        let at = self.frames.partition_point(|frame| frame.next() <= offset);
        self.frames.get(at).filter(|frame| frame.base <= offset)
    }
}
