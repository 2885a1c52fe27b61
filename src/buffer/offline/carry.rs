//! Carrying a buffer's records to another gateway in a file: export and import.
//!
//! # The file, format 1
//! `header (record | loss)* trailer`, little endian. Each part is `magic:u32 len:u32 crc:u32` and `len` bytes, over which `crc` goes.
//! ```text
//! TGXH  version:u16 zero:u16 created_ms:u64 uuid[16] site:text link:text       text: len:u32 and its bytes
//! TGXR  offset:u64 appended_ms:u64 expires_ms:u64 (u64::MAX: never) body
//! TGXL  from:u64 to:u64 (exclusive): records that are owed and could not be read, because they are damaged where they lie
//! TGXE  records:u64 crc:u32 (over the checksums of all between header and trailer, in order) zero:u32
//! ```
//! It is written beside its place and moved there when it is whole and synced.
//!
//! # What an export does to its source
//! Nothing: everything stays buffered, since only a confirmation of the remote settles a record (promise 2). What is
//! exported and later delivered over the line as well arrives twice, under one message id.
//!
//! # Why an import adds nothing twice
//! The whole file is verified before anything is taken. The folder of the link keeps, in the file `imports` (two slots, module
//! `slots`), which records of which log have been taken. A batch is first noted there as intended, with the number that
//! its first record will get; then appended and synced; then noted as taken. After a kill in between, whoever opens the log
//! next sees from the sequence how much of the batch is in it: nobody else can have appended meanwhile. Numbers between those of a
//! file count as taken too, since they were delivered, dropped or never given; not what the file says was lost: a later file may have it.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};

use super::super::format::FORMAT;
use super::super::slots::{Held, PAYLOAD_MAX, Slots, look};
use super::super::storage::{Disk, Handle, Storage, read_up_to};
use super::super::{Offset, OpenError, Record, wide};
use super::ranges::Ranges;
use super::records::{Seen, Start, each_number, saved};
use super::view::View;
use super::walk::{Bounds, walk};
use crate::clock::WallMs;

const HEAD: u32 = u32::from_le_bytes(*b"TGXH");
const RECORD: u32 = u32::from_le_bytes(*b"TGXR");
const LOSS: u32 = u32::from_le_bytes(*b"TGXL");
const TRAILER: u32 = u32::from_le_bytes(*b"TGXE");
const PART: usize = 12;
/// A part larger than this is not believed in: as a record's frame.
const PART_MAX: u32 = 1 << 30;
/// The file beside the log.
pub(in crate::buffer) const IMPORTS: &str = "imports";

/// Why a file was not written or not taken.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not whole, or not ours. Nothing was taken.
    #[error("{path} is no whole export ({why}); nothing was taken; copy it again from where it was made")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It holds records of the buffer itself.
    #[error("{0} was exported from this very buffer: its records are there")]
    Own(PathBuf),
    /// The log.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No room.
    #[error(
        "the buffer is full after {taken} records; import the file again when there is room, and it goes on where it stopped"
    )]
    Full {
        /// How many were taken this time.
        taken: u64,
    },
    /// The log, or its `imports`, cannot be written.
    #[error("not stored: {0}; import the file again when that is mended")]
    Failed(String),
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The site that it was made at.
    pub site: String,
    /// The link whose buffer it was.
    pub link: String,
    /// Names the log.
    pub uuid: [u8; 16],
    /// When it was made.
    pub created: WallMs,
    /// How many records.
    pub records: u64,
    /// Records that are owed and not in it: damaged where it was made.
    pub missing: u64,
    /// The first and the last one's offset.
    pub range: Option<(Offset, Offset)>,
}

fn part(magic: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PART + body.len());
    out.put_u32_le(magic);
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_u32_le(crc32c::crc32c(body));
    out.put_slice(body);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let len = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
    (len <= bytes.len()).then(|| String::from_utf8(bytes.split_to(len).to_vec()).ok()).flatten()
}

/// Writes what the buffer in `dir` owes, from `start` on, to `file`. Changes nothing in the buffer.
///
/// # Errors
/// [`CarryError`]; the file is not there then.
pub fn export(dir: &Path, site: &str, start: Start, file: &Path) -> Result<Manifest, CarryError> {
    export_on(&Disk, dir, site, start, file)
}

pub(in crate::buffer) fn export_on(
    storage: &dyn Storage,
    dir: &Path,
    site: &str,
    start: Start,
    path: &Path,
) -> Result<Manifest, CarryError> {
    let failed = |error| CarryError::File { path: path.to_owned(), error };
    let view = View::read(storage, dir)?;
    let (tracker, durable) = saved(&view);
    let uuid = view.identity.map(|identity| identity.uuid);
    let uuid = uuid.or_else(|| view.segments.iter().find_map(|segment| Some(segment.header?.uuid)));
    let link = super::super::lanes::label(dir);
    let manifest = Manifest {
        site: site.to_owned(),
        link,
        uuid: uuid.unwrap_or_default(),
        created: crate::clock::wall(),
        ..Manifest::default()
    };
    let beside = path.with_added_extension("part");
    let written = remove_if_there(storage, &beside)
        .and_then(|()| storage.create(&beside))
        .map(|file| Out { file, held: Vec::new(), end: 0 })
        .and_then(|mut out| head(&mut out, &manifest).map(|()| out))
        .map_err(failed)?;
    let (from, since) = match start {
        Start::Cursor => (0, WallMs(0)),
        Start::Offset(offset) => (offset.0, WallMs(0)),
        Start::Time(time) => (0, time),
    };
    let from = from.max(tracker.floor());
    let owed = tracker.owed_below(u64::MAX);
    let mut body =
        Body { out: written, manifest, crc: 0, outcome: Ok(()), since, owed, next: from, lost: Ranges::default() };
    let read = each_number(storage, &view, from, |seen| body.take(seen));
    body.end(storage, &view, durable.max(tracker.known_end()));
    let Body { mut out, mut manifest, crc, outcome, lost, .. } = body;
    let done = outcome.and_then(|()| {
        // What a gateway has delivered and deleted meanwhile is not lost.
        let after = View::read(storage, dir).map_err(|error| io::Error::other(error.to_string()))?;
        manifest.missing = lost.common(&saved(&after).0.owed_below(u64::MAX)).len();
        let mut end = Vec::new();
        end.put_u64_le(manifest.records);
        end.put_u32_le(crc);
        end.put_u32_le(0);
        out.write(&part(TRAILER, &end))?;
        out.finish()?;
        read.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        storage.rename(&beside, path)?;
        storage.sync_dir(path.parent().unwrap_or_else(|| Path::new("")))
    });
    if let Err(error) = done {
        // Half a file helps nobody.
        let _gone = storage.remove(&beside);
        return Err(failed(error));
    }
    Ok(manifest)
}

fn remove_if_there(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    match storage.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn head(out: &mut Out, manifest: &Manifest) -> io::Result<()> {
    let mut head = Vec::new();
    head.put_u16_le(FORMAT);
    head.put_u16_le(0);
    head.put_u64_le(manifest.created.0);
    head.put_slice(&manifest.uuid);
    put_text(&mut head, &manifest.site);
    put_text(&mut head, &manifest.link);
    out.write(&part(HEAD, &head))
}

/// The records of a file that is being written.
struct Body {
    out: Out,
    manifest: Manifest,
    crc: u32,
    outcome: io::Result<()>,
    /// Older ones are not asked for.
    since: WallMs,
    owed: Ranges,
    /// All that is owed below is in the file, or in `lost`.
    next: u64,
    lost: Ranges,
}

impl Body {
    fn take(&mut self, seen: Seen) -> ControlFlow<()> {
        match seen {
            Seen::Skipped(from, to) => self.owed.remove(from, to),
            Seen::Record(record) if record.appended < self.since => self.next = record.offset.0 + 1,
            Seen::Record(record) if !self.owed.contains(record.offset.0) => {}
            Seen::Record(record) => {
                self.lose_to(record.offset.0);
                self.next = record.offset.0 + 1;
                self.manifest.records += 1;
                let first = self.manifest.range.map_or(record.offset, |(first, _)| first);
                self.manifest.range = Some((first, record.offset));
                self.write(RECORD, &record_bytes(&record));
            }
        }
        if self.outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// What is owed from here to `to` was in no sound frame.
    fn lose_to(&mut self, to: u64) {
        let lost = self.owed.common(&Ranges::one(self.next, to));
        for (from, to) in lost.iter() {
            self.lost.add(from, to);
            self.write(LOSS, &[from.to_le_bytes(), to.to_le_bytes()].concat());
        }
    }

    /// Nothing more is in the segments; records below `durable` were in them.
    fn end(&mut self, storage: &dyn Storage, view: &View, durable: u64) {
        let bounds = |bytes| Bounds { bytes, number: u64::MAX, durable: u64::MAX };
        match view.segments.last().map(|last| walk(storage, last, bounds(last.len), |_| {})).transpose() {
            Ok(last) => self.lose_to(last.map_or(durable, |last| last.next.max(durable))),
            Err(error) => self.outcome = std::mem::replace(&mut self.outcome, Ok(())).and(Err(error)),
        }
    }

    fn write(&mut self, magic: u32, body: &[u8]) {
        let bytes = part(magic, body);
        self.crc = crc32c::crc32c_append(self.crc, bytes.get(8..PART).unwrap_or_default());
        if self.outcome.is_ok() {
            self.outcome = self.out.write(&bytes);
        }
    }
}

fn record_bytes(record: &Record) -> Vec<u8> {
    let mut body = Vec::with_capacity(24 + record.body.len());
    body.put_u64_le(record.offset.0);
    body.put_u64_le(record.appended.0);
    body.put_u64_le(record.expires.map_or(u64::MAX, |at| at.0));
    body.put_slice(&record.body);
    body
}

/// A file that is written from its beginning to its end, a megabyte at a time.
struct Out {
    file: Box<dyn Handle>,
    held: Vec<u8>,
    end: u64,
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= 1 << 20 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.held, self.end)?;
        self.end += wide(self.held.len());
        self.held.clear();
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()
    }
}

/// Reads a file part by part.
struct In {
    file: Box<dyn Handle>,
    pos: u64,
    chunk: Bytes,
    chunk_pos: u64,
}

impl In {
    fn bytes(&mut self, len: usize) -> io::Result<Option<Bytes>> {
        let from = usize::try_from(self.pos - self.chunk_pos).unwrap_or(usize::MAX);
        let is_held = from.checked_add(len).is_some_and(|to| to <= self.chunk.len());
        if !is_held {
            self.chunk = read_up_to(&*self.file, self.pos, len.max(1 << 20))?.into();
            self.chunk_pos = self.pos;
        }
        let from = usize::try_from(self.pos - self.chunk_pos).unwrap_or(usize::MAX);
        let Some(to) = from.checked_add(len).filter(|to| *to <= self.chunk.len()) else { return Ok(None) };
        self.pos += wide(len);
        Ok(Some(self.chunk.slice(from..to)))
    }

    fn header(&mut self, path: &Path) -> Result<Manifest, CarryError> {
        let damaged = |why: String| CarryError::Damaged { path: path.to_owned(), why };
        let part = self.part().map_err(|error| CarryError::File { path: path.to_owned(), error })?;
        let (magic, _, head) = part.map_err(damaged)?;
        let manifest = (magic == HEAD).then(|| header(path, head)).flatten();
        manifest.ok_or_else(|| damaged("it does not begin as one".to_owned()))?
    }

    /// The next part, its checksum verified: magic, checksum, body. `Err` within: why not.
    fn part(&mut self) -> io::Result<Result<(u32, u32, Bytes), String>> {
        let at = self.pos;
        let Some(mut head) = self.bytes(PART)? else { return Ok(Err(format!("it ends at byte {at}"))) };
        let (magic, len, crc) = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
        if !matches!(magic, HEAD | RECORD | LOSS | TRAILER) || len > PART_MAX {
            return Ok(Err(format!("byte {at} is damaged")));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let left = self.file.len()?.saturating_sub(self.pos);
        if wide(len) > left {
            return Ok(Err(format!("it ends in the middle of what begins at byte {at}")));
        }
        let Some(body) = self.bytes(len)? else { return Ok(Err(format!("it ends at byte {at}"))) };
        if crc32c::crc32c(&body) != crc {
            return Ok(Err(format!("the checksum at byte {at} is wrong")));
        }
        Ok(Ok((magic, crc, body)))
    }
}

/// Where a file was made: its beginning alone.
///
/// # Errors
/// It is none of ours.
pub fn origin(path: &Path) -> Result<Manifest, CarryError> {
    let file = Disk.open_to_read(path).map_err(|error| CarryError::File { path: path.to_owned(), error })?;
    let mut input = In { file, pos: 0, chunk: Bytes::new(), chunk_pos: 0 };
    input.header(path)
}

/// What stands in a file between its header and its trailer.
pub(in crate::buffer) enum Item {
    Record(Record),
    /// Records of its source are missing here.
    Loss,
}

/// Reads a whole export, verifying everything, and shows what is in it.
pub(in crate::buffer) fn read_file(
    storage: &dyn Storage,
    path: &Path,
    mut each: impl FnMut(Item) -> ControlFlow<()>,
) -> Result<Manifest, CarryError> {
    let failed = |error| CarryError::File { path: path.to_owned(), error };
    let damaged = |why: String| CarryError::Damaged { path: path.to_owned(), why };
    let file = storage.open_to_read(path).map_err(failed)?;
    let mut input = In { file, pos: 0, chunk: Bytes::new(), chunk_pos: 0 };
    let mut manifest = input.header(path)?;
    let mut all = 0;
    loop {
        let (magic, crc, mut body) = input.part().map_err(failed)?.map_err(damaged)?;
        if magic == TRAILER {
            let whole = body.len() == 16 && body.get_u64_le() == manifest.records && body.get_u32_le() == all;
            return if whole { Ok(manifest) } else { Err(damaged("records are missing".to_owned())) };
        }
        all = crc32c::crc32c_append(all, &crc.to_le_bytes());
        if magic == LOSS && body.len() == 16 {
            let from = body.get_u64_le();
            manifest.missing = manifest.missing.saturating_add(body.get_u64_le().saturating_sub(from));
            if each(Item::Loss).is_break() {
                return Ok(manifest);
            }
            continue;
        }
        if magic != RECORD || body.len() < 24 {
            return Err(damaged(format!("no record before byte {}", input.pos)));
        }
        let (offset, appended) = (Offset(body.get_u64_le()), WallMs(body.get_u64_le()));
        let expires = Some(body.get_u64_le()).filter(|at| *at != u64::MAX).map(WallMs);
        manifest.records += 1;
        manifest.range = Some((manifest.range.map_or(offset, |(first, _)| first), offset));
        if each(Item::Record(Record { offset, appended, expires, body })).is_break() {
            return Ok(manifest);
        }
    }
}

fn header(path: &Path, mut head: Bytes) -> Option<Result<Manifest, CarryError>> {
    let version = head.try_get_u16_le().ok()?;
    if version > FORMAT {
        let path = path.to_owned();
        return Some(Err(CarryError::Open(OpenError::Version { path, found: version, known: FORMAT })));
    }
    let _zero = head.try_get_u16_le().ok()?;
    let created = WallMs(head.try_get_u64_le().ok()?);
    if head.len() < 16 {
        return None;
    }
    let mut uuid = [0; 16];
    head.copy_to_slice(&mut uuid);
    let (site, link) = (take_text(&mut head)?, take_text(&mut head)?);
    Some(Ok(Manifest { site, link, uuid, created, ..Manifest::default() }))
}

/// What has been taken of other logs: see the module.
#[derive(Debug)]
pub(super) struct Imports {
    slots: Slots,
    state: Taken,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    sources: BTreeMap<[u8; 16], Ranges>,
    intent: Option<Intent>,
}

/// A batch that is about to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) uuid: [u8; 16],
    /// The number that its first record gets.
    pub(super) at: u64,
    /// Its records' offsets in their log.
    pub(super) offsets: Ranges,
}

impl Imports {
    /// Opens the file and makes it where there is none. `end`: behind the last record that is in the log.
    pub(super) fn open(storage: &dyn Storage, dir: &Path, end: u64) -> io::Result<Self> {
        let path = dir.join(IMPORTS);
        let (slots, held) = Slots::open(storage, &path)?;
        // The very first save, torn by a power cut: nothing is appended before it is whole.
        let is_begun = look(storage, &path)?.0.unsound < 2;
        let state = match held {
            Held::Payload(payload) => Taken::decode(&payload),
            Held::Nothing => Some(Taken::default()),
            Held::Damaged if is_begun => Some(Taken::default()),
            Held::Damaged | Held::Later(_) => None,
        };
        let unreadable = || {
            let text = format!(
                "{}: no slot of it can be read, so what was imported before is not known; move it away if records may come twice",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let mut imports = Self { slots, state: state.ok_or_else(unreadable)? };
        if let Some(intent) = imports.state.intent.take() {
            let landed = end.saturating_sub(intent.at).min(intent.offsets.len());
            let mut left = landed;
            for (from, to) in intent.offsets.iter() {
                let some = left.min(to - from);
                imports.add(intent.uuid, from, from + some);
                left -= some;
            }
            imports.save()?;
        }
        Ok(imports)
    }

    fn add(&mut self, uuid: [u8; 16], from: u64, to: u64) {
        self.state.sources.entry(uuid).or_default().add(from, to);
    }

    pub(super) fn has(&self, uuid: [u8; 16], offset: u64) -> bool {
        self.state.sources.get(&uuid).is_some_and(|taken| taken.contains(offset))
    }

    pub(super) fn intend(&mut self, intent: Intent) -> io::Result<()> {
        self.state.intent = Some(intent);
        self.save()
    }

    /// The intended batch is durable. What lies between its records, and before it back to `since`, is not in the file and will
    /// not come.
    pub(super) fn done(&mut self, since: u64) -> io::Result<()> {
        if let Some(intent) = self.state.intent.take()
            && let Some((_, last)) = intent.offsets.iter().last()
        {
            self.add(intent.uuid, since, last);
        }
        self.save()
    }

    fn save(&mut self) -> io::Result<()> {
        let payload = self.state.encode();
        if payload.len() > PAYLOAD_MAX {
            return Err(io::Error::other(format!("{IMPORTS} has no room for another log's records")));
        }
        self.slots.save(&payload)?;
        self.slots.sync()
    }
}

/// At the opening of a log: finds out how much of an interrupted batch is in it, before anything else is appended.
pub(in crate::buffer) fn resolve(storage: &dyn Storage, dir: &Path, end: u64) -> io::Result<()> {
    match storage.open_to_read(&dir.join(IMPORTS)) {
        Ok(_there) => match Imports::open(storage, dir, end) {
            Ok(_resolved) => Ok(()),
            // Damage never keeps a log from opening; an import says it again, and takes nothing.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "what was imported cannot be read");
                Ok(())
            }
            Err(error) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Taken {
    /// `sources:u32 { uuid[16] ranges }* intent:u32 [ uuid[16] at:u64 ranges ]`, ranges: `count:u32 { from:u64 to:u64 }*`.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(u32::try_from(self.sources.len()).unwrap_or(u32::MAX));
        for (uuid, ranges) in &self.sources {
            out.put_slice(uuid);
            put_ranges(&mut out, ranges);
        }
        out.put_u32_le(u32::from(self.intent.is_some()));
        if let Some(intent) = &self.intent {
            out.put_slice(&intent.uuid);
            out.put_u64_le(intent.at);
            put_ranges(&mut out, &intent.offsets);
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut taken = Self::default();
        for _ in 0..bytes.try_get_u32_le().ok()? {
            let uuid = take_uuid(&mut bytes)?;
            taken.sources.insert(uuid, take_ranges(&mut bytes)?);
        }
        if bytes.try_get_u32_le().ok()? > 0 {
            let uuid = take_uuid(&mut bytes)?;
            let at = bytes.try_get_u64_le().ok()?;
            taken.intent = Some(Intent { uuid, at, offsets: take_ranges(&mut bytes)? });
        }
        Some(taken)
    }
}

fn put_ranges(out: &mut Vec<u8>, ranges: &Ranges) {
    out.put_u32_le(u32::try_from(ranges.iter().count()).unwrap_or(u32::MAX));
    for (from, to) in ranges.iter() {
        out.put_u64_le(from);
        out.put_u64_le(to);
    }
}

fn take_uuid(bytes: &mut &[u8]) -> Option<[u8; 16]> {
    let (uuid, rest) = bytes.split_first_chunk::<16>()?;
    *bytes = rest;
    Some(*uuid)
}

fn take_ranges(bytes: &mut &[u8]) -> Option<Ranges> {
    let mut ranges = Ranges::default();
    for _ in 0..bytes.try_get_u32_le().ok()? {
        ranges.add(bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
    }
    Some(ranges)
}
