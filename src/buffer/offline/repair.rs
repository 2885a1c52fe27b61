//! Mending a buffer's files by hand, where one does not want to wait for the link to come to the damage: what is sound stays,
//! what is damaged is put aside whole, nothing is deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::OpenError;
use super::super::cursor::Tracker;
use super::super::dead_letters;
use super::super::format::SegmentHeader;
use super::super::log::{Identity, footer_of};
use super::super::recovery::aside_names;
use super::super::segment::{FrameMeta, Segment};
use super::super::slots::Slots;
use super::super::storage::{Disk, Storage, read_up_to};
use super::ranges::Ranges;
use super::records::saved;
use super::view::{SegmentFile, View};
use super::walk::{Bounds, Walk, walk};
use crate::clock::WallMs;

/// Repairs the buffer in `dir`, which nobody may have open; with `dry`, only tells. Answers what is (to be) done, a line each;
/// none: nothing is damaged.
///
/// # Errors
/// [`OpenError`]; what was done until then stays.
pub fn repair(dir: &Path, dry: bool) -> Result<Vec<String>, OpenError> {
    let failed = |error| OpenError::Io { path: dir.to_owned(), error };
    let view = View::read(&Disk, dir)?;
    let (mut tracker, durable) = saved(&view);
    let mut done = Vec::new();
    let (mut found, mut end) = (Ranges::default(), durable.max(tracker.known_end()));
    for (at, segment) in view.segments.iter().enumerate() {
        let number = view.segments.get(at + 1).map_or(u64::MAX, |next| next.base);
        let walked = walk_to_durable(segment, number, durable).map_err(failed)?;
        walked.found.iter().chain(walked.skipped.iter()).for_each(|(from, to)| found.add(from, to));
        end = end.max(walked.next);
        let is_last = number == u64::MAX;
        done.extend(mend(segment, &walked, is_last, view.identity.as_ref(), dry).map_err(failed)?);
    }
    done.extend(count_missing(dir, &view, &mut tracker, &found, end, dry).map_err(failed)?);
    done.extend(slots(dir, &view, dry).map_err(failed)?);
    done.extend(dead_letters::repair(dir, dry).map_err(failed)?);
    Ok(done)
}

/// As the audit walks it: the last segment's torn tail is none of a repair's business, the next start cuts it.
fn walk_to_durable(segment: &SegmentFile, number: u64, durable: u64) -> io::Result<Walk> {
    let bounds = Bounds { bytes: u64::MAX, number, durable: u64::MAX };
    let walked = walk(&Disk, segment, bounds, |_| {})?;
    let sealed = walked.footer.as_ref().map_or(0, |footer| footer.next);
    let durable = durable.max(walked.durable).max(sealed).max(segment.base);
    let is_torn = walked.damaged.iter().any(|damage| damage.next > damage.first && damage.first >= durable);
    if number == u64::MAX && is_torn { walk(&Disk, segment, Bounds { durable, ..bounds }, |_| {}) } else { Ok(walked) }
}

fn mend(
    segment: &SegmentFile,
    walked: &Walk,
    is_last: bool,
    identity: Option<&Identity>,
    dry: bool,
) -> io::Result<Option<String>> {
    let name = segment.name();
    if segment.salt.is_none() {
        let aside = free_name(&segment.path);
        if !dry {
            fs::rename(&segment.path, &aside)?;
            Disk.sync_dir(parent(&segment.path))?;
        }
        return Ok(Some(format!("{name}: nothing in it can be read; put aside as {}", show(&aside))));
    }
    let no_footer = !is_last && walked.footer.is_none();
    let damaged = !walked.damaged.is_empty() || walked.wrong_footer || segment.header.is_none();
    if !(damaged || no_footer) {
        return Ok(None);
    }
    let aside = free_name(&segment.path);
    if !dry {
        rebuild(segment, walked, identity, &aside)?;
    }
    let (records, bytes) = (walked.found.len(), walked.damaged.iter().map(|d| d.to - d.from).sum::<u64>());
    let aside = show(&aside);
    Ok(Some(format!(
        "{name}: written anew with its {records} sound records and a footer, without {bytes} damaged bytes; as it was: {aside}"
    )))
}

/// Writes the sound frames into a new file that takes the segment's place at once; the old one stays under another name.
fn rebuild(segment: &SegmentFile, walked: &Walk, identity: Option<&Identity>, aside: &Path) -> io::Result<()> {
    let salt = segment.salt.unwrap_or_default();
    let header = segment.header.unwrap_or_else(|| header_for(segment.base, salt, identity));
    let old = Disk.open_to_read(&segment.path)?;
    let new = segment.path.with_extension("seg.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = Disk.create(&new)?;
    file.write_at(&header.encode(), 0)?;
    let mut written = Segment::new(segment.path.clone(), segment.base, salt);
    written.boot = header.boot;
    let mut copied = Ok(());
    let bounds = Bounds { bytes: walked.data_end, number: u64::MAX, durable: u64::MAX };
    walk(&Disk, segment, bounds, |found| {
        if copied.is_err() || !walked.found.contains(found.header.base) || found.header.base < written.next {
            return;
        }
        let (pos, len) = (written.data_end, found.header.frame_len());
        copied = usize::try_from(len).map_err(io::Error::other).and_then(|len| {
            let bytes = read_up_to(&*old, found.pos, len)?;
            file.write_at(&bytes, pos)
        });
        written.push(&FrameMeta { pos, ..found.meta() });
    })?;
    copied?;
    // What the segment accounts for stays, also where its last records are gone.
    written.next = written.next.max(walked.next);
    file.write_at(&footer_of(&written).encode(salt, written.next), written.data_end)?;
    file.sync()?;
    keep(&segment.path, aside)?;
    fs::rename(&new, &segment.path)?;
    Disk.sync_dir(parent(&segment.path))
}

/// A second name for the file, or a copy where the file system knows no second names.
fn keep(path: &Path, aside: &Path) -> io::Result<()> {
    if fs::hard_link(path, aside).is_err() {
        fs::copy(path, aside)?;
        Disk.open(aside)?.sync()?;
    }
    Disk.sync_dir(parent(path))
}

/// A header that fits the frames; when it was begun is not known any more.
fn header_for(base: u64, salt: u32, identity: Option<&Identity>) -> SegmentHeader {
    let epoch =
        identity.and_then(|identity| (0..=identity.epoch).rev().find(|epoch| identity.salt(base, *epoch) == salt));
    SegmentHeader {
        uuid: identity.map_or([0; 16], |identity| identity.uuid),
        base,
        epoch: epoch.unwrap_or_default(),
        salt,
        created: WallMs(0),
        boot: 0,
    }
}

/// Lost records are counted now, in the ledger, and not only when the link comes to them.
fn count_missing(
    dir: &Path,
    view: &View,
    tracker: &mut Tracker,
    found: &Ranges,
    end: u64,
    dry: bool,
) -> io::Result<Vec<String>> {
    let missing = tracker.owed_below(end).without(found);
    let mut done = Vec::new();
    for (from, to) in missing.iter() {
        tracker.damage(from, to);
        done.push(format!("cursors: records {from} to {} are lost, counted as dropped_damaged", to - 1));
    }
    if !done.is_empty() && !dry && view.saved.is_some() {
        let (mut slots, _) = Slots::open(&Disk, &dir.join("cursors"))?;
        slots.save(&tracker.encode(end))?;
        slots.sync()?;
    }
    let has_begun = !view.segments.is_empty() || view.identity.is_some_and(|identity| identity.reserved > 0);
    if view.saved.is_none() && has_begun {
        done.push(
            "cursors: lost; what was delivered cannot be told any more: the next start sends all that is left again"
                .to_owned(),
        );
    }
    Ok(done)
}

/// A slot that does not check, beside one that does, is written anew.
fn slots(dir: &Path, view: &View, dry: bool) -> io::Result<Vec<String>> {
    let mut done = Vec::new();
    for (name, look) in [("meta", view.meta), ("cursors", view.cursors)] {
        if look.unsound == 0 || look.sound == 0 {
            continue;
        }
        done.push(format!("{name}: a slot that does not check is written anew"));
        if dry {
            continue;
        }
        let (mut slots, held) = Slots::open(&Disk, &dir.join(name))?;
        if let super::super::slots::Held::Payload(payload) = held {
            for _ in 0..2 {
                slots.save(&payload)?;
                slots.sync()?;
            }
        }
    }
    Ok(done)
}

/// `<base>.seg.damaged`, or the first such name that is free.
fn free_name(path: &Path) -> PathBuf {
    aside_names(path).find(|path| !path.exists()).unwrap_or_else(|| path.with_extension("seg.damaged"))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

fn show(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
