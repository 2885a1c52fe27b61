//! Zeros behind the last row, written ahead, so that a row needs no new room on the disk (R4).

use std::io;

use super::super::storage::{Handle, is_no_space, read_up_to};
use super::super::wide;

/// What is written or read at once.
const CHUNK: usize = 64 << 10;
/// Rows use up that much before new zeros are written: a write and a sync of its own.
const STEP: u64 = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Reserve {
    /// The file's length; what is behind its last row is zeros.
    pub(super) len: u64,
    /// Bytes that are to be there behind the last row.
    wanted: u64,
}

impl Reserve {
    pub(super) const fn of(wanted: u64) -> Self {
        Self { len: 0, wanted }
    }

    /// Sees to it that the file reaches to `end`: where it does, a row up to there needs no room. Where the disk is full the file is as it was,
    /// with what there is of the reserve.
    pub(super) fn grow(&mut self, file: &dyn Handle, end: u64) -> io::Result<()> {
        let before = self.len;
        while self.len < end {
            let size = usize::try_from(end - self.len).map_or(CHUNK, |left| left.min(CHUNK));
            if let Err(error) = file.write_at(&vec![0; size], self.len) {
                file.set_len(before)?;
                self.len = before;
                return Err(error);
            }
            self.len += wide(size);
        }
        Ok(())
    }

    /// Fills the reserve up, synced, if the disk has room. The last row ends at `end`; a log that may not grow beyond `most` needs none
    /// there.
    pub(super) fn top_up(&mut self, file: &dyn Handle, end: u64, most: u64) -> io::Result<()> {
        let target = (end + self.wanted).min(most.max(end));
        let missing = target.saturating_sub(self.len);
        if missing == 0 || (missing < STEP && missing < self.wanted / 2) {
            return Ok(());
        }
        match self.grow(file, target) {
            Ok(()) => file.sync(),
            Err(error) if is_no_space(&error) => {
                tracing::debug!(
                    left = self.len.saturating_sub(end),
                    "the disk is full: the reserve for dead letters is not filled up"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the file has nothing but zeros in `[from, to)`: not where that cannot be read.
pub(super) fn is_zeros(file: &dyn Handle, mut from: u64, to: u64) -> io::Result<bool> {
    while from < to {
        let size = usize::try_from(to - from).map_or(CHUNK, |left| left.min(CHUNK));
        let Ok(bytes) = read_up_to(file, from, size) else { return Ok(false) };
        if bytes.is_empty() {
            break;
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        from += wide(bytes.len());
    }
    Ok(true)
}
