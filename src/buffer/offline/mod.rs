//! A buffer seen from its files: what the operator's tools need. Beside [`Buffer`](super::Buffer), and for the most part
//! without one: the files of a log that no gateway has open are read as they lie.
//!
//! # Parts
//! - `view`: the folder as it is; changes nothing.
//! - `walk`: every byte of a segment, with the damage in it as exact ranges.
//! - [`audit`]: promise 3 proved from the files; `accepted` remembers what the operator said is known.
//! - `ranges`: sets of record numbers.
//!
//! # Invariants
//! Reading changes nothing. What changes something is called only by one who holds the data folder's lock (R36), or by
//! the gateway itself. Nothing here deletes a record.

mod accepted;
pub(super) mod audit;
mod ranges;
mod view;
mod walk;

pub(super) use accepted::ACCEPTED;
pub use audit::{AuditReport, Finding, LinkAudit, Trouble, audit};
pub(super) use ranges::Ranges;

use std::io;
use std::path::Path;

use super::DeadLetter;
use super::storage::Disk;

/// The dead letters of the link in `dir`, oldest first; changes nothing.
///
/// # Errors
/// Reading failed.
pub fn letters(dir: &Path) -> io::Result<Vec<DeadLetter>> {
    super::dead_letters::read_all(&Disk, dir)
}
