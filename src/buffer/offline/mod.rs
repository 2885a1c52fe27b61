//! A buffer seen from its files: what the operator's tools need. Beside [`Buffer`](super::Buffer), and for the most part
//! without one: the files of a log that no gateway has open are read as they lie.
//!
//! # Parts
//! - `view`: the folder as it is; changes nothing.
//! - `walk`: every byte of a segment, with the damage in it as exact ranges.
//! - [`audit()`]: promise 3 proved from the files; `accepted` remembers what the operator said is known.
//! - [`list`], [`frames`], [`records()`]: what is in it.
//! - [`export`], [`import()`]: records carried to another gateway in a file (modules `carry`, `import`).
//! - [`repair()`]: what is sound written anew, what is damaged put aside.
//! - `ranges`: sets of record numbers.
//!
//! # Invariants
//! Reading changes nothing. What changes something is called only by one who holds the data folder's lock (R36), or by
//! the gateway itself. Nothing here deletes a record.

mod accepted;
pub(super) mod audit;
pub(super) mod carry;
pub(super) mod import;
mod ranges;
pub(super) mod records;
mod repair;
pub(super) mod view;
pub(super) mod walk;

pub(super) use accepted::ACCEPTED;
pub use audit::{AuditReport, Finding, LinkAudit, Trouble, audit};
pub use carry::{CarryError, Manifest, export, origin};
pub(super) use carry::{IMPORTS, resolve};
pub use import::{Imported, import};
pub(super) use ranges::Ranges;
pub use records::{BufferList, FrameList, SegmentList, Start, frames, list, records};
pub use repair::repair;
pub(super) use view::aside;

use std::io;
use std::path::Path;

use super::ReadLetters;
use super::storage::Disk;

/// The dead letters of the link in `dir`; changes nothing.
///
/// # Errors
/// Reading failed.
pub fn letters(dir: &Path) -> io::Result<ReadLetters> {
    super::dead_letters::read_all(&Disk, dir)
}
