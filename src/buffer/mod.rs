//! Store-and-forward log of one link: what is owed to the remote, on disk, until the remote has confirmed it.
//! Stores opaque bytes; does not know what a message, a route or a link is.
//!
//! # Constraints
//! - Nothing is reported as durable before it is synced ([`SyncMode::Group`]); nothing is deleted before the cursor that
//!   passed it is synced.
//! - Memory does not grow with the backlog, and opening does not read it: only a segment without a footer is scanned, after a kill
//!   the last one. Others have none where the disk was full when they were closed, or where damage has hit it: each costs that
//!   start a scan of it (64 MiB at most) and gets a footer by it, so the next start does not pay again.
//! - The segments are the only truth for data. There is no index or list of files beside them that could disagree; the
//!   cursor is a lower bound and is clamped, never fatal.
//! - Damage is counted, reported as an exact range and skipped. It never keeps a log from opening, never cuts what
//!   follows it, and never makes the log fall back to memory.
//! - Disk bytes stay within `max_size`, for all lanes of a link together (segments; `meta`, `cursors` and dead letters have their own small limits).
//!
//! # On disk
//! ```text
//! LOCK                    held while the log is open
//! meta, cursors           two slots each (module `slots`): identity and reserved numbers; cursor, streams and ledger (R7)
//! <20-digit base>.seg     header (64 B), frames, and when it is complete a footer (module `format`)
//! dead-letters/letters    what the remote refused (module `dead_letters`)
//! imports                 which records of other logs have been taken (module `offline::carry`)
//! <base>[.N].seg.damaged  a segment that a start or a repair put aside: not looked at any more
//! accepted-damage.json    damage that the operator has said is known (module `offline`)
//! high/, low/             further lanes of the link, each a log by itself with all of the above (module `lanes`)
//! ```
//! A frame is one group commit or a part of it. Its checksums are seeded with the segment's salt, so that no payload can
//! forge a frame; it says how far the log was durable when it was written, by which recovery tells damage from a torn
//! tail. A number (offset) is given once: where a crash may have taken records that somebody has seen, the sequence goes
//! on behind the numbers that had been reserved, and those between are in no sum. A frame says how many numbers directly
//! before it hold no record, so that they are told from a hole. `accepted` follows from the sequence.
//!
//! # Format, version 1
//! Enough to write a reader from; `tests/buffer_format.rs` is one that was, and `tests/fixtures/buffer-v1` is what every later
//! version still has to read. Integers are little endian; lengths and positions are bytes. `pad` is zeros up to a multiple of 8.
//! `crc` is CRC-32C (Castagnoli); `crc(s, x)` goes on from the value `s`, as if `s` were the checksum of what was before, and
//! `crc(x)` is `crc(0, x)`. Wall times are milliseconds since 1970 in UTC. `up` is the boot clock: milliseconds since the machine
//! started, doubled, plus 1 where the wall clock was synchronised. What is called zero is written as zero and not looked at.
//!
//! **Segment** `<base in 20 decimal digits>.seg`: a header, frames one behind the other, and once it is complete a footer frame at its
//! end. Numbers are in no two segments, and rise within one and from one to the next.
//! ```text
//! segment header, 64 bytes
//!  0 magic[8] = "tgsegmnt"    8 version u16 = 1       10 header_len u16 = 64   12 flags u32 = 0
//! 16 uuid[16] of the log     32 base u64, its first number, as in the name     40 epoch u32
//! 44 salt u32                48 created u64, wall    56 boot u32, names the boot; 0: not known
//! 60 crc u32 = crc(bytes 0..60)
//!
//! frame header, 72 bytes; its body follows, then pad
//!  0 magic u32 = "TGFR"       4 version u8 = 1        5 codec u8 (0 none, 1 zstd, 2 LZ4 block)
//!  6 flags u8 (1: footer)     7 lane u8 = 0
//!  8 stored_len u32           12 raw_len u32          16 count u32, records    20 body_crc u32 = crc(salt, stored body)
//! 24 base u64, the first record's number              32 durable u64: all below was durable when this was written
//! 40 wall u64, of the first record                    48 up u64, of the first record
//! 56 skipped u64: so many numbers directly before base hold no record
//! 64 expiry_max_s u32: seconds since 1970 when the last record expires; 2^32-1: one never does
//! 68 header_crc u32 = crc(salt, bytes 0..68)
//! ```
//! The salt is the one in the segment's header; where that is damaged it is
//! `crc(crc(secret, base as u64), epoch as u32)` with `secret` from `meta` and an epoch up to the one there. `codec` 0 has
//! `stored_len` = `raw_len`, which is at most 2^30; the others are shorter than `raw_len`, and become exactly `raw_len` bytes: one
//! zstd frame, or one LZ4 block without a length before it. A frame with several records has at most 256 KiB raw. A reader
//! that finds no sound frame where one should be tries again 8 bytes on. The body holds `count` records:
//! ```text
//! record:  body_len u32 · time_delta i32, ms from the frame's wall to when it was appended · flags u32 (1: expires) · zero u32
//!          [expires u64, wall, if flagged] · body[body_len] · pad
//! footer:  next u64, behind its last number · payload u64, bytes of bodies, about · last_wall u64 · last_up u64, of the last frame
//!          points u32 · zero u32 · points times { number u64 · position u64 of a frame's header · wall u64 · up u64 }
//!          position u64 of the footer's own header: the last 8 bytes of a complete segment
//! ```
//! While a segment is written, zeros may follow its last frame, as far as the file is longer than what it holds; they are cut when it is closed, at the
//! latest by the next start. They are a hole: zeros behind the last frame that the file system has stored are a torn tail, or damage.
//!
//! A footer frame has `count` 0 and `base` = `next`. Its points are in order, at most 64, the first at the first frame. Where a number
//! stands in two segments (a write was repeated after a failure), the one of the later segment counts, and what a segment has at or
//! above its successor's base is not looked at.
//!
//! **`meta`, `cursors`**: two slots of 16 KiB; the sound one with the larger generation counts.
//! ```text
//! slot:    magic u32 = "TGSL" · version u16 = 1 · zero u16 · generation u64 · len u32 · crc u32 · payload[len]
//!          crc = crc(crc(bytes 0..20), payload)
//! meta:    uuid[16] · secret u32 · epoch u32, of the newest segment at most · reserved u64: numbers below may have been given
//!          state u8: 1, closed in good order; 2, records may have been seen before they were durable. Without 1, where 2 is set or the
//!          tail is torn, numbers below `reserved` may have been given, and the next record gets that
//! cursors: floor u64: all below is settled · durable u64: all below was durable · skipped u64: numbers that no record has · unnumbered u64:
//!          records dropped without a number · delivered u64 · dropped_when_full u64 · dropped_age u64 · dropped_damaged u64 ·
//!          dropped_min_free u64 · expired u64 · dead_lettered u64 · confirmed_after_drop u64 · replayed u64 ·
//!          holes u64 · holes times { from u64 · to u64, exclusive }: numbers above the floor that hold no record that is owed ·
//!          streams u64, at most 7 · streams times { start u64 · pos u64, exclusive }: settled too, above the floor ("Two streams") ·
//!          returned u64: dead letters that were sent again, as far as `dead_lettered` and `skipped` account for them
//!          A payload may end behind the holes, or behind the streams, as earlier programs wrote it: then there are none of what follows
//! ```
//! **`dead-letters/letters`**: letters and their fates, one behind the other; then zeros up to the end of the file, a reserve. Where something
//! else stands, a reader tries again 8 bytes on. `salt` is `crc(secret, "letters")`, with `secret` from `meta`; a row of another one is none.
//! Where no row has it, `meta` was lost, and the salt of the first row that checks by its own is that of all.
//! ```text
//! letter:  magic u32 = "TGDL" · len u32 · salt u32 · crc u32 = crc(salt, the len bytes behind the header) · header_crc u32 = crc(salt, bytes 0..16)
//!          attempts u32 · offset u64, its record's number · time u64, wall · reason_len u32 · zero u32 · reason (UTF-8) · body · pad
//! fate:    magic u32 = "TGDM" · len u32 = 24 · salt, crc, header_crc, as a letter's · kind u32 · zero u32 · first u64 · second u64 · pad
//!          kind 1: letter `first` is about to be in the log again, as `second` or later · 2: it is, as `second` · 3: it is not
//!          4: letter `first` was dropped · 5: `first` were sent again and `second` dropped before this file was written anew
//! ```
//! `len` counts from `attempts` to the end of the body. A letter of kind 2 or 4 is gone; one that comes again is a new one.
//!
//! # Writing
//! [`Buffer::admit`] applies the limits, [`Buffer::append`] encodes into memory under a short lock, and one thread a log
//! takes all that is staged: one write, one sync, then the mark moves and receipts settle. A lone record is committed at
//! once; under load the batch grows while the disk is busy, so no timer is needed. Where each write is synced the file is made longer ahead
//! of what it holds, by a hole that takes no room (up to 4 MiB): the file system then has no new length to make durable with each sync. With `sync: spill` what is staged waits
//! in memory for the remote's confirmation instead (module `spill`): what that passes is never written, its publisher is
//! acknowledged when the cursor that passed it is saved, and the next frame says how many numbers it skipped. After a failed write or sync the file
//! is not used again: what is not durable is written once more, from memory, into a new segment. If that fails too the
//! buffer has failed and refuses offers. A full disk is no failure: the file is cut to its last good length, the batch
//! waits in memory, `when_full` decides about new offers, confirming and deleting go on. With `drop_newest` the batch is dropped instead: its
//! numbers are holes of the cursor, which is synced before its publishers are acknowledged, and the next frame says that it skips them.
//!
//! # Time
//! A frame is stamped with the wall clock and with the boot clock, its segment's header names the boot, and a stamp says
//! whether the wall clock was synchronised ([`Moment`]). Ages follow [`Moment::since`] (R8): within a boot, across any number of
//! restarts, no step of the wall clock makes a record older; across boots the wall clock counts only if it was right both
//! times, and otherwise a record is as old as the present boot. What that cannot prove to be too old is kept.
//!
//! # Compression
//! With `compress` the writer compresses each frame by itself, where that makes it shorter (module `codec`). The memory tail has it
//! uncompressed. Every frame says how it is stored, so a log may hold all kinds.
//!
//! # Reading
//! One [`Reader`] for each of the sink's [`Streams`]. From the tail in memory, or from disk with read-ahead; on a thread that may block
//! where there is a tokio runtime. It sees only what the mark has passed; with `sync: spill` also what is
//! staged, as far as the numbers are reserved in `meta`, so that none is given twice.
//!
//! # Two streams
//! With `drain: live_first` what is owed when the link comes back is backlog, and live records are delivered before it (R13):
//! the cursor is then a floor and up to seven streams above it, each a start and a cursor of its own, saved in the same
//! slot (module `cursor`). At most eight ranges are owed: floor to the first start, each cursor to the next start, the
//! last cursor to the end. Limits give up the oldest first, so the backlog; a segment goes when no range reaches into it,
//! also out of the middle.
//!
//! # Deleting
//! [`Buffer::settle`] moves the cursor over the contiguous settled part. It is saved when `window` confirmations are
//! unsaved, synced each second while it changes, and synced before segments below it are deleted (R9). With `sync: spill` it
//! is saved before a confirmation acknowledges, so a kill forgets nothing of the ledger; it is synced before a frame that skips numbers,
//! and each minute while nothing on disk is owed: a power cut may then forget so much of what was accepted and delivered.
//! With `keep_delivered` they stay for their age and size (module `retention`), and go before anything that is owed when space is
//! needed (R2, R4). [`History`] reads them from any offset or time, for replay.
//!
//! # Recovering
//! See module `recovery`. A recovered file is closed with a footer and never appended to; the next record begins a new
//! segment of a later epoch.

mod batch;
mod catalogue;
mod codec;
mod cursor;
mod dead_letters;
mod direct;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod handing;
mod history;
mod lanes;
mod log;
pub mod mark;
pub mod offline;
mod pace;
mod quota;
mod reader;
mod recovery;
mod retention;
mod salt;
mod scan;
mod segment;
mod slots;
mod spill;
mod state;
mod storage;
mod tail;
mod upkeep;
mod writer;

pub use dead_letters::{DamagedLetter, DeadLetter, DeadLetters, ReadLetters, SendError};
pub use direct::Direct;
pub use history::History;
pub use lanes::{Lane, Lanes, Place};
pub use mark::{Mark, MarkSender, Progress, Rejected, Watcher};
pub use reader::Reader;
pub use slots::{EXCHANGES, KIND, SlotFile};
pub use storage::make_dir;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::state::{Shared, Verdict};
use self::storage::Storage;
use crate::clock::{Clock, Moment, WallMs};
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
    /// As [`SyncMode::Group`], but only what the remote has not confirmed after this time, or by the close: its
    /// confirmation acknowledges too (R1).
    Spill(Duration),
    /// At this interval; acknowledged at once.
    Interval(Duration),
    /// Never by us.
    Never,
}

/// How what is buffered lies on disk. Each frame says it of itself: what is there already stays readable when this changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// zstd, level 1: six to eight times less for telemetry in JSON.
    Zstd,
    /// LZ4: three to four times less, at a fraction of the work.
    Lz4,
}

/// How long records stay on disk after they are settled, to be replayed. Whatever it says, they go first where space is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Older ones go.
    pub age: Option<Duration>,
    /// The oldest go where they take more than this.
    pub size: Option<ByteSize>,
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
    /// See [`Compression`].
    pub compress: Compression,
    /// See [`Keep`]; `None`: what is settled goes.
    pub keep_delivered: Option<Keep>,
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
    /// The gateway stops, or opens the log anew.
    #[error("the buffer is closed: the gateway stops, or reads its configuration again")]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Records that a replay sent to this link again and the remote confirmed; in no sum.
    pub replayed: u64,
}

impl Ledger {
    /// The sum of two ledgers.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            delivered: self.delivered + other.delivered,
            buffered: self.buffered + other.buffered,
            dropped_when_full: self.dropped_when_full + other.dropped_when_full,
            dropped_age: self.dropped_age + other.dropped_age,
            dropped_damaged: self.dropped_damaged + other.dropped_damaged,
            dropped_min_free: self.dropped_min_free + other.dropped_min_free,
            expired: self.expired + other.expired,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            confirmed_after_drop: self.confirmed_after_drop + other.confirmed_after_drop,
            replayed: self.replayed + other.replayed,
        }
    }

    /// Whether the equation holds.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.accepted == self.accounted()
    }

    /// The right side of the equation. Figures that were read from a file may be anything.
    #[must_use]
    pub const fn accounted(&self) -> u64 {
        self.delivered
            .saturating_add(self.buffered)
            .saturating_add(self.dropped_when_full)
            .saturating_add(self.dropped_age)
            .saturating_add(self.dropped_damaged)
            .saturating_add(self.dropped_min_free)
            .saturating_add(self.expired)
            .saturating_add(self.dead_lettered)
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
    /// Of these, segments that are settled as a whole and stay by `keep_delivered`.
    pub kept_bytes: u64,
    /// When the oldest undelivered record was appended.
    pub oldest: Option<Moment>,
    /// The oldest record that is still on disk, delivered or not.
    pub first: Offset,
    /// Everything below is delivered, dropped or expired.
    pub cursor: Offset,
    /// Everything below is durable.
    pub durable: Offset,
    /// The next record's offset.
    pub next: Offset,
    /// Why the buffer failed, if it did.
    pub failed: Option<Arc<str>>,
    /// Why the cursor and the ledger could not be saved when it was last tried: after a crash records would be sent again.
    pub cursor_error: Option<Arc<str>>,
    /// Of `disk_bytes`, delivered segments that cannot be deleted.
    pub stuck_bytes: u64,
}

/// Where to read from (R13): what is owed is the backlog, which a link with `drain: live_first` fills in bit by bit, and
/// everything from `live` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// From and until (exclusive); `None` where everything is sent in order. Ranges in it may have been delivered already.
    pub backlog: Option<(Offset, Offset)>,
    /// The first live record that is not delivered.
    pub live: Offset,
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

impl Record {
    /// Seconds until it expires at `now`, begun ones counted: `Some(0)` when it has, `None` where it never does. `accepted`
    /// is when its life began: how long that is ago decides, not what the wall clock says by now (R8).
    #[must_use]
    pub fn expiry_left_s(&self, accepted: Moment, now: Moment) -> Option<u32> {
        let left = self.expires?.since(accepted.wall).saturating_sub(now.since(accepted));
        Some(u32::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX))
    }
}

/// Room for one record, taken by [`Buffer::admit`] and used by [`Buffer::append`]; dropped, the room is given back.
#[derive(Debug)]
#[must_use = "room that is not used is given back"]
pub struct Permit {
    shared: Option<Arc<Shared>>,
    need: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.give_back(self.need);
        }
    }
}

/// What admission answers.
#[derive(Debug)]
pub enum Admission {
    /// Append with this.
    Granted(Permit),
    /// `drop_newest` and full: count it, do not append, go on as if it had been taken.
    /// (The drop is already counted: as accepted and dropped.)
    DroppedNewest,
}

/// A link's log. Cheap to clone; all clones are one log. When the last clone goes without [`Buffer::close`], the writer
/// thread finishes by itself.
#[derive(Clone, Debug)]
pub struct Buffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    dead_letters: DeadLetters,
    id: String,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Buffer {
    /// Opens or makes the log in `config.dir`, recovers it, starts its writer thread. `window` is how many
    /// confirmations may be unsaved before the cursor is written (R9).
    ///
    /// # Errors
    /// [`OpenError`]; never because of damage.
    pub fn open(config: Config, window: usize, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), OpenError> {
        let name = config.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::open_as(&name, Arc::new(storage::Disk), &config, window, clock)
    }

    /// The same, with a name for its thread.
    fn open_as(
        name: &str,
        storage: Arc<dyn Storage>,
        config: &Config,
        window: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), OpenError> {
        let failed = |error| OpenError::Io { path: config.dir.clone(), error };
        let (log, mut recovery) = recovery::open(Arc::clone(&storage), config, window, clock)?;
        // A record takes half of `max_size` at most.
        let reserve = DeadLetters::reserve_for(config.max_size.0 / 2);
        let (dead_letters, notes) = DeadLetters::open(Arc::clone(&storage), &config.dir, reserve).map_err(failed)?;
        recovery.notes.extend(notes);
        let shared = Arc::clone(&log.shared);
        dead_letters.resume(&*storage, &shared).map_err(failed)?;
        let id = log.id();
        let writer = Mutex::new(Some(writer::start(log, name).map_err(failed)?));
        let dir = config.dir.clone();
        Ok((Self { inner: Arc::new(Inner { shared, storage, dir, dead_letters, id, writer }) }, recovery))
    }

    /// Asks for room for `bytes` (R5: all targets are asked before any is appended to). With `when_full: block` this
    /// waits; dropping the future gives up the place. Whatever the policy, it also waits while the writer is behind.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn admit(&self, bytes: usize) -> Result<Admission, Refused> {
        let shared = &self.inner.shared;
        let mut room = None;
        loop {
            match shared.judge(bytes) {
                Verdict::Granted(need) => {
                    return Ok(Admission::Granted(Permit { shared: Some(Arc::clone(shared)), need }));
                }
                Verdict::DroppedNewest => return Ok(Admission::DroppedNewest),
                Verdict::Refused(refused) => return Err(refused),
                Verdict::Wait => {}
            }
            // Subscribed before the state is looked at again, so that no wake-up is missed.
            match &mut room {
                None => room = Some(shared.room.subscribe()),
                Some(room) => {
                    if room.changed().await.is_err() {
                        return Err(Refused::Closed);
                    }
                }
            }
        }
    }

    /// Stages one record, the parts one behind the other. Does no I/O and does not wait: the writer thread
    /// writes and syncs; the record is durable when [`Buffer::mark`] passes the returned offset. `permit` must come
    /// from this buffer, for at least as many bytes.
    pub fn append(&self, mut permit: Permit, parts: &[&[u8]], expires: Option<WallMs>) -> Offset {
        permit.shared = None;
        self.inner.shared.append(permit.need, parts, expires)
    }

    /// How far the log is durable: everything below `Progress::done`.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.inner.shared.mark.mark()
    }

    /// The number of the next record: what is appended from now on has it, or a higher one.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.inner.shared.state.lock().next)
    }

    /// Everything below is durable: what a crash takes back has this number or a higher one, and so has whatever gets that number anew.
    #[must_use]
    pub fn durable(&self) -> Offset {
        Offset(self.inner.shared.mark.done())
    }

    /// Whether a window's worth of confirmations is not in the cursor files of the link's lanes: readers wait until it is (R9), and so has one
    /// to wait who sends what was read before.
    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.inner.shared.is_unsaved()
    }

    /// Whether this record is still owed: neither settled nor dropped.
    #[must_use]
    pub fn is_owed(&self, offset: Offset) -> bool {
        self.inner.shared.is_owed(offset)
    }

    /// Returns when it is. Cancel safe.
    pub async fn saved(&self) {
        let mut saves = self.inner.shared.saves.subscribe();
        while self.inner.shared.is_unsaved() && saves.changed().await.is_ok() {}
    }

    /// A reader that begins at the cursor. Each record belongs to one reader at a time: a link's sink has one for each of
    /// its [`Streams`].
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.inner.shared), Arc::clone(&self.inner.storage))
    }

    /// Tells what became of a record, in any order; the cursor advances over the contiguous settled part, and
    /// the ledger counts as it passes. Does no I/O: the writer thread saves the cursor by R9's bound. After
    /// [`Buffer::close`] it is not saved any more.
    pub fn settle(&self, offset: Offset, outcome: Outcome) {
        self.inner.shared.settle(offset, outcome);
    }

    /// The records below `below` that are still owed.
    #[must_use]
    pub fn owed_below(&self, below: Offset) -> Vec<Offset> {
        self.inner.shared.owed_below(below)
    }

    /// How many records have lapsed, ever, below the cursor; and those above it, in order.
    #[must_use]
    pub fn expired(&self) -> (u64, Vec<Offset>) {
        self.inner.shared.expired()
    }

    /// The gateway is stopping: from now on what is staged is written at once, also with `sync: spill`, so that no
    /// publisher waits for a remote.
    pub fn hurry(&self) {
        self.inner.shared.hurry();
    }

    /// What the log still holds from `from` until before `until`, delivered or not; nothing beyond what is durable now.
    #[must_use]
    pub fn history(&self, from: Offset, until: Offset) -> History {
        History::new(Arc::clone(&self.inner.shared), Arc::clone(&self.inner.storage), from, until)
    }

    /// The stretch of the log that can hold records appended from `from` until before `until` by the wall clock, from the
    /// segments' sparse index: no others do, but some in it may be of other times.
    #[must_use]
    pub fn between(&self, from: Option<WallMs>, until: Option<WallMs>) -> (Offset, Offset) {
        let (from, until) = history::between(&self.inner.shared.state.lock(), from, until);
        (Offset(from), Offset(until))
    }

    /// Counts records that a replay has sent to this link's remote and that it confirmed (R7: in `replayed` alone).
    pub fn count_replayed(&self, records: u64) {
        if records == 0 {
            return;
        }
        let mut state = self.inner.shared.state.lock();
        state.tracker.count_replayed(records);
        self.inner.shared.poke_locked(&mut state);
    }

    /// Where the streams of `drain: live_first` are (R13). With `split_above`, a new one begins behind the newest durable
    /// record if more than so many records are owed from the last one on: those are backlog from now on. There are at
    /// most eight ranges that are owed; then the last stream goes on in order.
    #[must_use]
    pub fn streams(&self, split_above: Option<u64>) -> Streams {
        self.inner.shared.streams(split_above)
    }

    /// The dead-letter log of this link.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters {
        &self.inner.dead_letters
    }

    /// How many segments lie in the folder that a start or a repair put aside as damaged; 0 where it cannot be read.
    #[must_use]
    pub fn put_aside(&self) -> u64 {
        offline::aside(&*self.inner.storage, &self.inner.dir).map_or(0, |names| wide(names.len()))
    }

    /// See [`Stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// 8 hex digits that name this log for ever: the first part of `tg-seq`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Refuses new offers from now on with [`Refused::Closed`], and returns when what had room before has come or will not: then
    /// nothing is lost by a [`Buffer::close`] while publishers go on. Cancel safe; [`Buffer::unseal`] takes it back.
    pub async fn seal(&self) {
        let shared = &self.inner.shared;
        // Subscribed before the state is looked at, so that no change is missed.
        let mut room = shared.room.subscribe();
        shared.seal(true);
        while shared.has_granted() && room.changed().await.is_ok() {}
    }

    /// Takes offers again.
    pub fn unseal(&self) {
        self.inner.shared.seal(false);
    }

    /// Refuses new offers, writes and syncs what is staged, saves the cursor, ends the writer thread. Idempotent.
    /// Readers end with [`Refused::Closed`]. Whoever still has the log, its files are not written when this returns: not its
    /// dead-letter log either.
    pub async fn close(&self) {
        self.inner.dead_letters.close().await;
        let mut ended = self.inner.shared.ended.subscribe();
        self.inner.shared.close();
        // The sender lives as long as this buffer, so waiting cannot fail.
        let _ended = ended.wait_for(|ended| *ended).await;
    }

    /// The same for a log that nobody has used, on a thread that may block.
    fn close_here(&self) {
        self.inner.shared.close();
        if let Some(writer) = self.inner.writer.lock().take() {
            // A writer that panicked has told so.
            drop(writer.join());
        }
    }
}

/// A length as the file's positions count.
const fn wide(n: usize) -> u64 {
    n as u64
}

#[cfg(test)]
mod tests;
