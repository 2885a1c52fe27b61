//! Opening a log: what is there, what is missing, and what that means for the ledger. Damage never keeps a log from
//! opening; it is counted, reported and skipped.
//!
//! Segments with a footer are taken at its word (a reader meets damage inside them later, and reports it then). A segment
//! without one is scanned and gets one: the last one after a kill, and those whose footer found no room or was damaged. `D` is how
//! far the log was durable, by the newest sound frame or the cursor file: a hole that begins below `D` was acknowledged and is
//! damage; one that begins at `D` or above is a torn tail, which nobody was promised, and is cut.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::Packer;
use super::cursor::Tracker;
use super::dead_letters;
use super::format::{FRAME_HEADER, FrameHeader, HeaderRead, SEGMENT_HEADER, SegmentHeader};
use super::log::{Identity, Log, RESERVE, footer_of};
use super::offline::{ACCEPTED, IMPORTS, resolve};
use super::pace::Pace;
use super::retention::Retention;
use super::salt::guess_salt;
use super::scan::FrameScan;
use super::segment::{Point, Segment};
use super::slots::{EXCHANGES, Held, KIND, Slots};
use super::spill::Spill;
use super::state::{Limits, Pressure, Shared, State, TurnedAway};
use super::storage::{Handle, Storage, end_behind, is_no_space, read_past_bad_pages, read_up_to};
use super::tail::Tail;
use super::upkeep::Upkeep;
use super::{Config, Offset, OpenError, Recovery, SyncMode, wide};
use crate::buffer::batch::Batch;
use crate::buffer::format::FORMAT;
use crate::clock::{Clock, Moment};

/// Footers larger than this are not believed in.
pub(super) const FOOTER_MAX: u64 = 64 << 10;
/// Bytes that are written over themselves at once.
const PIECE: usize = 1 << 20;

/// Opens or makes the log.
pub(super) fn open(
    storage: Arc<dyn Storage>,
    config: &Config,
    window: usize,
    clock: Arc<dyn Clock>,
) -> Result<(Log, Recovery), OpenError> {
    let dir = config.dir.clone();
    storage.create_dir(&dir).map_err(at(&dir))?;
    let lock_path = dir.join("LOCK");
    let lock = storage.lock(&lock_path).map_err(|error| {
        let taken = "this buffer is open already: another gateway uses the same data folder";
        let busy = error.kind() == io::ErrorKind::WouldBlock;
        at(&lock_path)(if busy { io::Error::new(io::ErrorKind::WouldBlock, taken) } else { error })
    })?;
    let mut found = Finding::new(&*storage);
    let (mut meta, stored) = found.slots(&dir.join("meta"))?;
    let stored = stored.as_deref().and_then(Identity::decode);
    let (cursors, saved) = found.slots(&dir.join("cursors"))?;
    let saved = saved.as_deref().and_then(Tracker::decode);
    storage.sync_dir(&dir).map_err(at(&dir))?;

    let files = found.segment_files(&dir)?;
    let fresh = stored.is_none() && saved.is_none() && files.is_empty();
    let mut identity = stored.unwrap_or_else(fresh_identity);
    found.durable = saved.as_ref().map_or(0, |(_, durable)| *durable);
    let headers = found.headers(&files, stored.is_none(), &mut identity)?;
    let mut segments = found.segments(headers, &identity)?;
    let first = segments.front().map_or(0, |segment| segment.base);
    let has_cursor = saved.is_some();
    let mut tracker = match saved {
        Some((tracker, _)) => tracker,
        None => {
            if !fresh {
                found.note("the cursor file is lost or damaged: all records that are left are sent again".to_owned());
            }
            Tracker::starting_at(first)
        }
    };
    let accounted = found.settle_holes(&mut segments, &mut tracker)?;
    let is_unread = unread_tail(&segments).is_some();
    if !identity.ahead && (torn_tail(&segments) > 0 || is_unread) {
        // What is cut now the next start will not see, should this one fail: that numbers may have been given is said before.
        identity.ahead = true;
        meta.save(&identity.encode()).and_then(|()| meta.sync()).map_err(at(&dir))?;
    }
    found.seal_scanned(&mut segments)?;

    let end = accounted.max(tracker.live());
    let given = found.given(&dir, end, has_cursor, &mut tracker)?;
    let clean = fresh || (identity.clean && has_cursor);
    found.more_given |= is_unread || !has_cursor;
    let next = found.next_number(given, &identity, clean, &mut tracker);
    identity.epoch += 1;
    identity.clean = false;
    identity.ahead = config.sync != SyncMode::Group;
    identity.reserved = identity.reserved.max(next + RESERVE);
    let recovery = Recovery { buffered: tracker.owed(next), ..found.recovery };
    let mut log =
        assemble(Parts { storage, config, window, clock, lock, meta, cursors, identity, end }, segments, tracker, next);
    log.save_opening().map_err(at(&dir))?;
    resolve(&*log.storage, &dir, end).map_err(at(&dir))?;
    Ok((log, recovery))
}

/// What [`assemble`] needs beside the findings.
struct Parts<'a> {
    storage: Arc<dyn Storage>,
    config: &'a Config,
    window: usize,
    clock: Arc<dyn Clock>,
    lock: Box<dyn std::any::Any + Send + Sync>,
    meta: Slots,
    cursors: Slots,
    identity: Identity,
    /// Behind the last number that the files account for.
    end: u64,
}

fn assemble(parts: Parts<'_>, segments: VecDeque<Known>, tracker: Tracker, next: u64) -> Log {
    let state = State {
        next,
        staged: Batch::default(),
        cursor_error: None,
        stuck_bytes: 0,
        spill: match parts.config.sync {
            SyncMode::Spill(after) => Some(Spill::new(after, parts.identity.reserved, parts.end)),
            SyncMode::Group | SyncMode::Interval(_) | SyncMode::Never => None,
        },
        in_write: 0,
        granted: 0,
        tracker,
        segments: segments.into_iter().map(|known| known.segment).collect(),
        active: false,
        retention: Retention::new(parts.config.keep_delivered),
        roll: false,
        tail: Tail::of(parts.config.sync),
        pressure: Pressure::None,
        failed: None,
        closing: false,
        sealed: false,
        turned_away: TurnedAway::default(),
        poked: true,
    };
    let limits = Limits::of(parts.config, parts.window);
    let upkeep = Upkeep::new(parts.clock.now());
    Log {
        storage: parts.storage,
        shared: Arc::new(Shared::new(state, next, limits, parts.clock)),
        dir: parts.config.dir.clone(),
        identity: parts.identity,
        meta: parts.meta,
        cursors: parts.cursors,
        _lock: parts.lock,
        upkeep,
        active: None,
        synced: next,
        taken: parts.end,
        unsynced: Vec::new(),
        held: VecDeque::new(),
        packer: Packer::new(parts.config.compress),
        pace: Pace::default(),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |error| OpenError::Io { path: path.to_owned(), error }
}

fn fresh_identity() -> Identity {
    Identity { uuid: rand::random(), secret: rand::random(), epoch: 0, reserved: 0, clean: false, ahead: false }
}

/// A segment file whose name is ours.
#[derive(Debug)]
struct Listed {
    path: PathBuf,
    base: u64,
    salt: Option<u32>,
    /// See [`SegmentHeader`].
    boot: u32,
}

/// A segment, and what scanning it found.
#[derive(Debug)]
pub(super) struct Known {
    segment: Segment,
    scanned: bool,
    /// Its header or, failing that, `meta` said how to check its frames.
    readable: bool,
    holes: Vec<Hole>,
    /// Numbers that its frames say were skipped.
    skips: Vec<(u64, u64)>,
    /// Length of the file as it was found, without what it was made longer by.
    len: u64,
}

impl std::ops::Deref for Known {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

/// Records that are missing between two sound frames.
#[derive(Clone, Copy, Debug)]
struct Hole {
    from: u64,
    to: u64,
    /// Where sound data ends before it.
    pos: u64,
}

struct Finding<'a> {
    storage: &'a dyn Storage,
    recovery: Recovery,
    /// Everything below was durable.
    durable: u64,
    /// The highest first number of the segments that were put aside earlier.
    aside: Option<u64>,
    /// There may have been more records than the files tell.
    more_given: bool,
}

/// How the name of a segment that was put aside ends.
pub(super) const ASIDE: &str = ".seg.damaged";
/// What lies in a log's folder beside its segments.
const NAMES: [&str; 10] =
    ["LOCK", "meta", "cursors", "dead-letters", ACCEPTED, IMPORTS, "high", "low", EXCHANGES, KIND];

impl<'a> Finding<'a> {
    fn new(storage: &'a dyn Storage) -> Self {
        Self { storage, recovery: Recovery::default(), durable: 0, aside: None, more_given: false }
    }

    fn note(&mut self, text: String) {
        self.recovery.notes.push(text);
    }

    fn slots(&mut self, path: &Path) -> Result<(Slots, Option<Vec<u8>>), OpenError> {
        let (slots, held) = Slots::open(self.storage, path).map_err(at(path))?;
        match held {
            Held::Payload(payload) => Ok((slots, Some(payload))),
            Held::Nothing => Ok((slots, None)),
            Held::Damaged => {
                self.note(format!("{}: damaged; it is written anew", path.display()));
                Ok((slots, None))
            }
            Held::Later(found) => Err(OpenError::Version { path: path.to_owned(), found, known: FORMAT }),
        }
    }

    fn segment_files(&mut self, dir: &Path) -> Result<Vec<Listed>, OpenError> {
        let mut files = Vec::new();
        for name in self.storage.list(dir).map_err(at(dir))? {
            let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20);
            let base = digits.and_then(|digits| digits.parse().ok());
            match base {
                Some(base) => files.push(Listed { path: dir.join(&name), base, salt: None, boot: 0 }),
                None if NAMES.contains(&name.as_str()) => {}
                None if name.ends_with(ASIDE) => {
                    let path = dir.join(&name);
                    self.aside = self.aside.max(name.get(..20).and_then(|digits| digits.parse().ok()));
                    self.note(format!("{}: was put aside as damaged; it is kept, and not used", path.display()));
                }
                None => {
                    self.note(format!("{}: not a file of this buffer; it is left alone", dir.join(&name).display()));
                }
            }
        }
        files.sort_by_key(|file| file.base);
        Ok(files)
    }

    /// Reads the segments' headers. Without a `meta` the log's identity is taken from them.
    fn headers(
        &mut self,
        files: &[Listed],
        adopt: bool,
        identity: &mut Identity,
    ) -> Result<Vec<(Listed, Option<SegmentHeader>)>, OpenError> {
        let mut read = Vec::new();
        for file in files {
            let opened = self.storage.open_to_read(&file.path).map_err(at(&file.path))?;
            // One that cannot be read is damaged like any other.
            let bytes = read_past_bad_pages(&*opened, 0, SEGMENT_HEADER).unwrap_or_default();
            let header = match SegmentHeader::decode(&bytes) {
                HeaderRead::Ours(header) => Some(header),
                HeaderRead::Later(found) => {
                    return Err(OpenError::Version { path: file.path.clone(), found, known: FORMAT });
                }
                HeaderRead::Unreadable => None,
            };
            if let Some(header) = header.filter(|_| adopt) {
                identity.uuid = header.uuid;
                identity.epoch = identity.epoch.max(header.epoch);
            }
            let (salt, boot) = (header.map(|header| header.salt), header.map_or(0, |header| header.boot));
            read.push((Listed { path: file.path.clone(), base: file.base, salt, boot }, header));
        }
        if adopt && !files.is_empty() {
            self.note("the file `meta` is lost or damaged: the log's name is taken from its segments".to_owned());
        }
        Ok(read)
    }

    /// Footers where there are any; scans the others.
    fn segments(
        &mut self,
        files: Vec<(Listed, Option<SegmentHeader>)>,
        identity: &Identity,
    ) -> Result<VecDeque<Known>, OpenError> {
        let ends: Vec<u64> = files.iter().skip(1).map(|(file, _)| file.base).chain(std::iter::once(u64::MAX)).collect();
        let mut segments = VecDeque::new();
        for ((file, _), end) in files.into_iter().zip(ends) {
            let handle = self.storage.open_to_read(&file.path).map_err(at(&file.path))?;
            let len = handle.len().map_err(at(&file.path))?;
            let Some(salt) = file.salt.or_else(|| guess_salt(&*handle, file.base, identity)) else {
                segments.push_back(Self::unreadable(file, len));
                continue;
            };
            let known = match read_footer(&*handle, &file, salt, len).filter(|footed| footed.next <= end) {
                Some(segment) => {
                    self.durable = self.durable.max(segment.next);
                    Known { segment, scanned: false, readable: true, holes: Vec::new(), skips: Vec::new(), len }
                }
                None => match self.scan(handle, &file, salt, len, end) {
                    Ok(known) => {
                        let again = self.storage.open_to_read(&file.path).map_err(at(&file.path))?;
                        Known { len: end_behind(&*again, known.segment.data_end).unwrap_or(len), ..known }
                    }
                    Err(error) => {
                        self.note(format!("{}: cannot be read: {error}", file.path.display()));
                        Self::unreadable(file, len)
                    }
                },
            };
            segments.push_back(known);
        }
        Ok(segments)
    }

    fn unreadable(file: Listed, len: u64) -> Known {
        let mut segment = Segment::new(file.path, file.base, 0);
        segment.bytes = len;
        Known { segment, scanned: true, readable: false, holes: Vec::new(), skips: Vec::new(), len }
    }

    fn scan(&mut self, handle: Box<dyn Handle>, file: &Listed, salt: u32, len: u64, end: u64) -> io::Result<Known> {
        let mut segment = Segment::new(file.path.clone(), file.base, salt);
        segment.boot = file.boot;
        let (mut holes, mut skips) = (Vec::new(), Vec::new());
        let mut frames = FrameScan::new(handle, salt, wide(SEGMENT_HEADER), len);
        while let Some(found) = frames.next()? {
            self.durable = self.durable.max(found.header.durable.min(found.header.base));
            if found.header.base >= end || found.header.base < segment.next {
                continue;
            }
            let from = found.header.from().max(segment.next);
            if from > segment.next {
                holes.push(Hole { from: segment.next, to: from, pos: segment.data_end });
            }
            if found.header.base > from {
                skips.push((from, found.header.base));
            }
            segment.push(&found.meta());
        }
        segment.bytes = segment.data_end;
        Ok(Known { segment, scanned: true, readable: true, holes, skips, len })
    }

    /// Cuts the torn tail, counts damage, and clamps what disagrees. Answers where the numbers end that are accounted for by then: by
    /// records, damage, or the beginning of a segment that holds nothing.
    fn settle_holes(&mut self, segments: &mut VecDeque<Known>, tracker: &mut Tracker) -> Result<u64, OpenError> {
        let durable = self.durable;
        for known in segments.iter_mut() {
            let torn = known.holes.iter().position(|hole| hole.from >= durable);
            if let Some(hole) = torn.and_then(|at| known.holes.get(at).copied()) {
                let (path, salt) = (known.path.clone(), known.salt);
                let handle = self.storage.open_to_read(&path).map_err(at(&path))?;
                let listed = Listed { path: path.clone(), base: known.base, salt: Some(salt), boot: known.boot };
                let len = known.len;
                *known = self.scan(handle, &listed, salt, hole.pos, u64::MAX).map_err(at(&path))?;
                known.len = len;
            }
        }
        let mut expected = tracker.floor();
        for known in segments.iter() {
            self.lost(tracker, expected, known.base);
            for (from, to) in &known.skips {
                tracker.skip(*from, *to);
            }
            for hole in &known.holes {
                self.lost(tracker, hole.from, hole.to);
            }
            expected = expected.max(known.next);
        }
        self.lost(tracker, expected, durable);
        Ok(expected.max(durable))
    }

    fn lost(&mut self, tracker: &mut Tracker, from: u64, to: u64) {
        for (from, to) in tracker.damage(from, to) {
            self.recovery.damaged.push((Offset(from), Offset(to - 1)));
        }
    }

    /// Closes what was scanned, so that the next start need not scan it again. Data is never appended to it.
    fn seal_scanned(&mut self, segments: &mut VecDeque<Known>) -> Result<(), OpenError> {
        self.recovery.torn_bytes += torn_tail(segments);
        if let Some(last) = unread_tail(segments).filter(|last| last.base < self.durable) {
            let (path, to) = (last.path.display().to_string(), self.durable - 1);
            self.note(format!(
                "{path}: cannot be read. Records up to {to} were acknowledged, and are counted; whether there were more behind them is not known"
            ));
        }
        for known in segments.iter_mut().filter(|known| known.scanned) {
            if !known.readable || (known.next == known.base && known.base >= self.durable) {
                continue;
            }
            let footer = footer_of(known).encode(known.salt, known.next);
            let file = self.storage.open(&known.path).map_err(at(&known.path))?;
            let cut = file.set_len(known.data_end);
            match write_once_more(&*file, known, self.durable) {
                // A file system that writes elsewhere needs room for it.
                Err(error) if !is_no_space(&error) => return Err(at(&known.path)(error)),
                Ok(()) | Err(_) => {}
            }
            // After a kill its records may be only in memory; from now on they count as durable.
            file.sync().map_err(at(&known.path))?;
            // The footer comes after that: where it is found, what it closes is durable.
            match cut.and_then(|()| file.write_at(&footer, known.data_end)).and_then(|()| file.sync()) {
                Ok(()) => known.segment.bytes = known.data_end + wide(footer.len()),
                Err(error) => {
                    let path = known.path.display();
                    self.recovery
                        .notes
                        .push(format!("{path}: cannot be closed ({error}); it is scanned again next time"));
                }
            }
        }
        segments.retain(|known| {
            let holds_nothing = known.scanned && known.next == known.base && known.base >= self.durable;
            !(holds_nothing && self.put_away(known))
        });
        Ok(())
    }

    /// Moves a file that holds no record out of the way of a new segment with its name.
    fn put_away(&mut self, known: &Known) -> bool {
        if known.readable || known.len <= wide(SEGMENT_HEADER) {
            return self.storage.remove(&known.path).is_ok();
        }
        let aside = self.free_name(&known.path);
        self.recovery.notes.push(format!(
            "{}: cannot be read; it is kept as {}. It may have held records from {} on that had been acknowledged: how many is not known, and they are in no figure",
            known.path.display(),
            aside.display(),
            known.base
        ));
        self.storage.rename(&known.path, &aside).is_ok()
    }

    /// A name beside the segment's that no file has: what was put aside once is not written over.
    fn free_name(&self, path: &Path) -> PathBuf {
        let there = path.parent().and_then(|dir| self.storage.list(dir).ok()).unwrap_or_default();
        let is_free = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            !there.iter().any(|there| Some(there.as_str()) == name.as_deref())
        };
        aside_names(path).find(is_free).unwrap_or_else(|| path.with_extension("seg.damaged"))
    }

    /// Behind the last number that is known to have been given.
    fn given(&self, dir: &Path, end: u64, has_cursor: bool, tracker: &mut Tracker) -> Result<u64, OpenError> {
        // Behind what the segments account for there may be numbers whose records were dropped for want of room.
        let given = end.max(tracker.known_end());
        if has_cursor {
            return Ok(given);
        }
        // Without a cursor it may be that only a letter tells.
        let letters = dead_letters::look(self.storage, dir).map_err(at(dir))?.next();
        tracker.skip(given, letters);
        Ok(given.max(letters))
    }

    /// The number of the next record. Where records may have been lost that somebody has seen (a torn tail that was
    /// acknowledged damage, or a mode that shows them before they are synced), or nothing says what was settled and deleted, numbers
    /// that may have been given are left out.
    fn next_number(&mut self, end: u64, identity: &Identity, clean: bool, tracker: &mut Tracker) -> u64 {
        // A segment that was put aside by hand is not there any more to say so.
        let more_given = self.more_given || self.aside.is_some_and(|base| base >= end);
        let safe = clean || !(identity.ahead || more_given || self.recovery.torn_bytes > 0);
        if safe || identity.reserved <= end {
            return end;
        }
        tracker.skip(end, identity.reserved);
        identity.reserved
    }
}

/// What a segment that is put aside may be called, in order.
pub(super) fn aside_names(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    let more = (2_u64..).map(|n| path.with_extension(format!("{n}.seg.damaged")));
    std::iter::once(path.with_extension("seg.damaged")).chain(more)
}

/// Bytes behind the last record of all. Behind an earlier segment's data lies only what was written again into its successor.
fn torn_tail(segments: &VecDeque<Known>) -> u64 {
    let last = segments.back().filter(|last| last.scanned && last.readable);
    last.map_or(0, |last| last.len.saturating_sub(last.data_end))
}

/// The last segment, if nothing of what it holds can be read: that may have been acknowledged, and how much it was nobody knows.
fn unread_tail(segments: &VecDeque<Known>) -> Option<&Known> {
    segments.back().filter(|last| !last.readable && last.len > wide(SEGMENT_HEADER))
}

/// Writes what is not known to be durable over itself. Where a start before this one failed in the sync, Linux holds these pages
/// for clean: only pages that are dirty again are written by the next sync.
fn write_once_more(file: &dyn Handle, known: &Segment, durable: u64) -> io::Result<()> {
    if known.next <= durable {
        return Ok(());
    }
    let (_, mut pos) = known.start_for(durable);
    while pos < known.data_end {
        let len = usize::try_from(known.data_end - pos).map_or(PIECE, |left| left.min(PIECE));
        let bytes = read_up_to(file, pos, len)?;
        if bytes.is_empty() {
            break;
        }
        file.write_at(&bytes, pos)?;
        pos += wide(bytes.len());
    }
    Ok(())
}

fn read_footer(handle: &dyn Handle, file: &Listed, salt: u32, len: u64) -> Option<Segment> {
    let own = read_up_to(handle, len.checked_sub(8)?, 8).ok()?;
    let pos = u64::from_le_bytes(own.first_chunk::<8>().copied()?);
    let size = len.checked_sub(pos).filter(|size| *size <= FOOTER_MAX)?;
    let bytes = read_up_to(handle, pos, usize::try_from(size).ok()?).ok()?;
    let header = FrameHeader::decode(&bytes, salt).filter(|header| header.footer)?;
    let body = bytes.get(FRAME_HEADER..)?;
    let footer = header.checks(body, salt).then(|| super::format::Footer::decode(body)).flatten()?;
    if footer.next < file.base || footer.pos != pos {
        return None;
    }
    let mut segment = Segment::new(file.path.clone(), file.base, salt);
    segment.boot = file.boot;
    let stamp = |at: Moment| Moment { boot: file.boot, ..at };
    segment.next = footer.next;
    segment.payload = footer.payload;
    segment.data_end = pos;
    segment.bytes = len;
    segment.last = Some(stamp(footer.last));
    // The last frame before a point is at most as young as the point.
    let lasts = footer.points.iter().skip(1).map(|point| point.at).chain(std::iter::once(footer.last));
    let points = footer.points.iter().zip(lasts);
    segment.points = points
        .map(|(point, last)| Point { offset: point.offset, pos: point.pos, at: stamp(point.at), last: stamp(last) })
        .collect();
    Some(segment)
}

impl Log {
    /// Says in the files that the log is open. The cursor first: only with it the numbers that are left out are known, should this
    /// start fail.
    fn save_opening(&mut self) -> io::Result<()> {
        self.save_cursor(true)?;
        self.meta.save(&self.identity.encode())?;
        self.meta.sync()
    }
}
