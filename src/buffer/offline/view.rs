//! A link's folder as it lies on disk, read without changing anything: what the segments, the cursor file and `meta` say.
//! A gateway may be writing to it meanwhile: files only grow, and one that has gone since was delivered.

use std::io;
use std::path::{Path, PathBuf};

use super::super::OpenError;
use super::super::cursor::Tracker;
use super::super::format::{FORMAT, HeaderRead, SEGMENT_HEADER, SegmentHeader};
use super::super::log::Identity;
use super::super::recovery::ASIDE;
use super::super::salt::guess_salt;
use super::super::scan::FrameScan;
use super::super::slots::{self, Look};
use super::super::storage::{Handle, Storage, end_behind, read_past_bad_pages};
use super::super::wide;

/// See the module.
#[derive(Debug)]
pub(in crate::buffer) struct View {
    pub(in crate::buffer) meta: Look,
    pub(in crate::buffer) identity: Option<Identity>,
    pub(in crate::buffer) cursors: Look,
    /// The cursor and ledger, and how far the log was durable when they were saved.
    pub(in crate::buffer) saved: Option<(Tracker, u64)>,
    /// In order.
    pub(in crate::buffer) segments: Vec<SegmentFile>,
    /// Segments that a repair or a start has put aside because nothing in them could be read.
    pub(in crate::buffer) aside: Vec<String>,
}

/// A segment's file.
#[derive(Clone, Debug)]
pub(in crate::buffer) struct SegmentFile {
    pub(in crate::buffer) path: PathBuf,
    pub(in crate::buffer) base: u64,
    /// When it was looked at, and without what it was made longer by: a gateway may write on meanwhile.
    pub(in crate::buffer) len: u64,
    /// `None`: damaged.
    pub(in crate::buffer) header: Option<SegmentHeader>,
    /// From the header or, failing that, from `meta`; `None`: its frames cannot be checked.
    pub(in crate::buffer) salt: Option<u32>,
}

impl SegmentFile {
    /// The name without its folder.
    pub(in crate::buffer) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl View {
    /// Reads the folder. A file of a later version is an error (R36), damage is not.
    pub(in crate::buffer) fn read(storage: &dyn Storage, dir: &Path) -> Result<Self, OpenError> {
        let (meta, identity) = slot_file(storage, &dir.join("meta"))?;
        let identity = identity.as_deref().and_then(Identity::decode);
        let (cursors, saved) = slot_file(storage, &dir.join("cursors"))?;
        let saved = saved.as_deref().and_then(Tracker::decode);
        let mut view = Self { meta, identity, cursors, saved, segments: Vec::new(), aside: Vec::new() };
        for name in storage.list(dir).map_err(at(dir))? {
            let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20);
            if let Some(base) = digits.and_then(|digits| digits.parse().ok()) {
                view.segments.extend(segment_file(storage, dir.join(&name), base, view.identity.as_ref())?);
            }
        }
        view.segments.sort_by_key(|segment| segment.base);
        view.aside = aside(storage, dir).map_err(at(dir))?;
        Ok(view)
    }
}

/// Names of the segments in the folder that were put aside, in order.
pub(in crate::buffer) fn aside(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<String>> {
    let mut aside: Vec<_> = storage.list(dir)?.into_iter().filter(|name| name.ends_with(ASIDE)).collect();
    aside.sort();
    Ok(aside)
}

fn at(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |error| OpenError::Io { path: path.to_owned(), error }
}

fn slot_file(storage: &dyn Storage, path: &Path) -> Result<(Look, Option<Vec<u8>>), OpenError> {
    let (look, payload) = slots::look(storage, path).map_err(at(path))?;
    match look.later {
        Some(found) => Err(OpenError::Version { path: path.to_owned(), found, known: FORMAT }),
        None => Ok((look, payload)),
    }
}

/// `None`: it has gone meanwhile.
fn segment_file(
    storage: &dyn Storage,
    path: PathBuf,
    base: u64,
    identity: Option<&Identity>,
) -> Result<Option<SegmentFile>, OpenError> {
    let file = match storage.open_to_read(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::Io { path, error }),
    };
    let len = file.len().map_err(at(&path))?;
    // One that cannot be read is damaged like any other, as for a start.
    let head = read_past_bad_pages(&*file, 0, SEGMENT_HEADER).unwrap_or_default();
    let header = match SegmentHeader::decode(&head) {
        HeaderRead::Ours(header) => Some(header),
        HeaderRead::Later(found) => return Err(OpenError::Version { path, found, known: FORMAT }),
        HeaderRead::Unreadable => None,
    };
    let guessed = || identity.and_then(|identity| guess_salt(&*file, base, identity));
    let salt = header.map(|header| header.salt).or_else(guessed);
    let len = salt.map_or(Ok(len), |salt| held_len(file, salt, len)).map_err(at(&path))?;
    Ok(Some(SegmentFile { path, base, len, header, salt }))
}

/// How much of a file of `len` bytes a log has written: while it does it is longer (module `log`).
fn held_len(file: Box<dyn Handle>, salt: u32, len: u64) -> io::Result<u64> {
    let end = file.filled()?.end;
    // A footer and a frame without a hole behind them end it.
    let last = read_past_bad_pages(&*file, len.saturating_sub(8), 8)?;
    if end >= len && last.iter().any(|byte| *byte != 0) {
        return Ok(len);
    }
    let mut scan = FrameScan::new(file, salt, wide(SEGMENT_HEADER), len);
    let mut held = wide(SEGMENT_HEADER);
    while let Some(found) = scan.next()? {
        held = found.pos + found.header.frame_len();
    }
    end_behind(scan.file(), held).map(|end| end.min(len))
}

/// The header of a segment that may have gone meanwhile; `None`: damaged, or gone.
pub(super) fn header_of(storage: &dyn Storage, path: &Path) -> io::Result<Option<SegmentHeader>> {
    let file = match storage.open_to_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let head = read_past_bad_pages(&*file, 0, SEGMENT_HEADER).unwrap_or_default();
    Ok(match SegmentHeader::decode(&head) {
        HeaderRead::Ours(header) => Some(header),
        HeaderRead::Later(_) | HeaderRead::Unreadable => None,
    })
}
