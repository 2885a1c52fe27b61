//! CONTRACT (the buffer's builder replaces this file's bodies; the public names and meanings stay).
//! Store-and-forward log of one link. Stores opaque bytes; does not know what a message is.

pub mod mark;
pub use mark::{Mark, MarkSender, Progress, Rejected};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::clock::{Clock, WallMs};
use crate::units::ByteSize;

/// A record's place in its link's sequence; counts from 0, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Offset(pub u64);

/// What happens to an offer that finds `max_size` used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest undelivered records go, counted.
    #[default]
    DropOldest,
    /// The new record is not taken, counted; its publisher is acknowledged.
    DropNewest,
    /// The offer is refused (MQTT 5 reason 0x97).
    Reject,
    /// The offer waits.
    Block,
}

/// When the log is synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Before the acknowledgement, shared by all who wait.
    #[default]
    Group,
    /// At this interval; acknowledged at once.
    Interval(Duration),
    /// Never by us.
    Never,
}

/// One link's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The log's own folder: `data_dir/links/<id>`.
    pub dir: PathBuf,
    /// Bytes on disk at most. Default 1 GiB (R3).
    pub max_size: ByteSize,
    /// Older undelivered records are dropped, counted.
    pub max_age: Option<Duration>,
    /// See [`WhenFull`].
    pub when_full: WhenFull,
    /// See [`SyncMode`].
    pub sync: SyncMode,
    /// Free bytes that stay on the file system; default: 5 % of it, at least 256 MiB (R3).
    pub min_free: Option<ByteSize>,
}

/// Why an offer was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `when_full: reject` (or `min_free` reached and nothing could be freed).
    #[error("the buffer is full")]
    Full,
    /// A failed write or sync that could not be mended: `buffer_failed`.
    #[error("the buffer failed: {0}")]
    Failed(Arc<str>),
    /// Stopping.
    #[error("the gateway is stopping")]
    Closed,
}

/// Why a buffer could not be opened. Damage is not among them: it is repaired and reported.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or a file in it cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Written by a later version (R36).
    #[error("{path} was written by a later version of Tidegate (format {found}; this program knows {known})")]
    Version {
        /// What.
        path: PathBuf,
        /// Its format.
        found: u16,
        /// Ours.
        known: u16,
    },
}

/// What opening found: each item is logged by the gateway and shown in `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Undelivered records found.
    pub buffered: u64,
    /// Bytes of a torn tail that were cut (never acknowledged).
    pub torn_bytes: u64,
    /// Ranges of acknowledged records that are damaged, first and last, inclusive.
    pub damaged: Vec<(Offset, Offset)>,
    /// Files that are not ours or cannot be used; left where they are.
    pub notes: Vec<String>,
}

/// Promise 3 in numbers: `accepted = delivered + buffered + dropped + expired + dead_lettered`, across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Records taken.
    pub accepted: u64,
    /// Confirmed by the remote, counted as the cursor passes.
    pub delivered: u64,
    /// Taken and still owed.
    pub buffered: u64,
    /// Dropped by `when_full`.
    pub dropped_when_full: u64,
    /// Dropped by `max_age`.
    pub dropped_age: u64,
    /// Lost to damage, reported.
    pub dropped_damaged: u64,
    /// Dropped by `min_free`.
    pub dropped_min_free: u64,
    /// Message expiry lapsed.
    pub expired: u64,
    /// Refused by the remote for good.
    pub dead_lettered: u64,
    /// Late confirmations of what was dropped meanwhile; in no sum.
    pub confirmed_after_drop: u64,
}

impl Ledger {
    /// Whether the equation holds.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.accepted
            == self.delivered
                + self.buffered
                + self.dropped_when_full
                + self.dropped_age
                + self.dropped_damaged
                + self.dropped_min_free
                + self.expired
                + self.dead_lettered
    }
}

/// A buffer at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// See [`Ledger`].
    pub ledger: Ledger,
    /// Payload bytes of the undelivered records (approximate within a frame).
    pub depth_bytes: u64,
    /// Bytes of files on disk.
    pub disk_bytes: u64,
    /// When the oldest undelivered record was appended.
    pub oldest: Option<WallMs>,
    /// Everything below is delivered, dropped or expired.
    pub cursor: Offset,
    /// Everything below is durable.
    pub durable: Offset,
    /// The next record's offset.
    pub next: Offset,
    /// Why the buffer failed, if it did.
    pub failed: Option<Arc<str>>,
}

/// What became of a record (R7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The remote confirmed it.
    Delivered,
    /// It is in the dead-letter log, synced.
    DeadLettered,
    /// Its message expiry lapsed.
    Expired,
}

/// A record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub offset: Offset,
    /// When it was appended.
    pub appended: WallMs,
    /// When its message expires, if it does.
    pub expires: Option<WallMs>,
    /// Opaque.
    pub body: Bytes,
}

/// Room for one record, taken by [`Buffer::admit`] and used by [`Buffer::append`]; dropped, the room is given back.
#[derive(Debug)]
pub struct Permit {/* private */}

/// What admission answers.
#[derive(Debug)]
pub enum Admission {
    /// Append with this.
    Granted(Permit),
    /// `drop_newest` and full: count it, do not append, go on as if it had been taken.
    /// (The drop is already counted: as accepted and dropped.)
    DroppedNewest,
}

/// A link's log. Cheap to clone; all clones are one log.
#[derive(Clone, Debug)]
pub struct Buffer {/* private */}

impl Buffer {
    /// Opens or makes the log in `config.dir`, recovers it, starts its writer thread. `window` is how many
    /// confirmations may be unsaved before the cursor is written (R9).
    ///
    /// # Errors
    /// [`OpenError`]; never because of damage.
    pub fn open(config: Config, window: usize, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), OpenError> {
        let _ = (config, window, clock);
        unimplemented!()
    }

    /// Asks for room for `bytes` (R5: all targets are asked before any is appended to). With `when_full: block` this
    /// waits; dropping the future gives up the place.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn admit(&self, bytes: usize) -> Result<Admission, Refused> {
        let _ = bytes;
        unimplemented!()
    }

    /// Stages one record, the parts one behind the other. Does no I/O and does not wait: the writer thread
    /// writes and syncs; the record is durable when [`Buffer::mark`] passes the returned offset.
    pub fn append(&self, permit: Permit, parts: &[&[u8]], expires: Option<WallMs>) -> Offset {
        let _ = (permit, parts, expires);
        unimplemented!()
    }

    /// How far the log is durable: everything below `Progress::done`.
    #[must_use]
    pub fn mark(&self) -> Mark {
        unimplemented!()
    }

    /// A reader that begins at the cursor. One at a time: the link's sink.
    #[must_use]
    pub fn reader(&self) -> Reader {
        unimplemented!()
    }

    /// Tells what became of a record, in any order; the cursor advances over the contiguous settled part, and
    /// the ledger counts as it passes. Does no I/O: the writer thread saves the cursor by R9's bound.
    pub fn settle(&self, offset: Offset, outcome: Outcome) {
        let _ = (offset, outcome);
        unimplemented!()
    }

    /// The dead-letter log of this link.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters {
        unimplemented!()
    }

    /// See [`Stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// 8 hex digits that name this log for ever: the first part of `tg-seq`.
    #[must_use]
    pub fn id(&self) -> &str {
        unimplemented!()
    }

    /// Refuses new offers, writes and syncs what is staged, saves the cursor, ends the writer thread. Idempotent.
    pub async fn close(&self) {
        unimplemented!()
    }
}

/// Reads records in order. It sees only what is durable.
#[derive(Debug)]
pub struct Reader {/* private */}

impl Reader {
    /// The next records, at least one: waits until there is one. At most `records_max` and about `bytes_max`
    /// (one record may exceed it). Offsets rise; a gap is what was dropped or damaged, already counted.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Refused::Failed`] when the log cannot be read at all any more, [`Refused::Closed`] at the end.
    pub async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Vec<Record>, Refused> {
        let _ = (records_max, bytes_max);
        unimplemented!()
    }

    /// Goes back (or on) to `offset`; below the cursor it begins at the cursor.
    pub fn seek(&mut self, offset: Offset) {
        let _ = offset;
        unimplemented!()
    }

    /// The offset of the first undelivered record: where a new connection begins.
    #[must_use]
    pub fn cursor(&self) -> Offset {
        unimplemented!()
    }
}

/// A record that the remote refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its offset in the link's log: the key, so that a crash does not double it (R15).
    pub offset: Offset,
    /// When it was refused.
    pub time: WallMs,
    /// In the remote's words.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The record's body.
    pub body: Bytes,
}

/// The dead-letter log of one link, in its folder beneath the link's.
#[derive(Debug)]
pub struct DeadLetters {/* private */}

impl DeadLetters {
    /// Stores and syncs; returns when it is durable. A letter that is there already (same offset) is not stored twice.
    ///
    /// # Errors
    /// [`Refused::Full`]: the link stops, state `dead_letters_full` (R15); [`Refused::Failed`].
    pub async fn put(&self, letter: DeadLetter) -> Result<(), Refused> {
        let _ = letter;
        unimplemented!()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        unimplemented!()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first (for tests and the operator's tools).
    ///
    /// # Errors
    /// [`Refused::Failed`].
    pub fn list(&self) -> Result<Vec<DeadLetter>, Refused> {
        unimplemented!()
    }
}
