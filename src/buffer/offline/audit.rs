//! The proof of promise 3 from the files: every byte of every segment is read, every checksum verified, the records that
//! are really there are counted, and `accepted = delivered + buffered + dropped + expired + dead_lettered` is checked with
//! that count in the place of `buffered`.
//!
//! `accepted` follows from the sequence in the segments, the other figures are the cursor file's ledger. So a record that is
//! gone without a counted reason is a gap, with the exact range of its numbers, and so is a figure that is wrong. Damage to
//! what nobody is owed any more is reported all the same: the medium is failing.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::cursor::Tracker;
use super::super::dead_letters::{self, LettersLook};
use super::super::format::SEGMENT_HEADER;
use super::super::storage::{Disk, Storage};
use super::super::{Buffer, Ledger, OpenError, wide};
use super::accepted::Accepted;
use super::ranges::Ranges;
use super::view::{SegmentFile, View, aside};
use super::walk::{Bounds, Damage, Walk, walk};

/// Places of one segment that are reported one by one; the others are taken together.
const PLACES_MAX: usize = 100;

/// What kind of trouble a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// Records that are owed and not in the files, and that no figure accounts for.
    Missing,
    /// Bytes of a file that do not check.
    Damaged,
    /// Figures that do not add up.
    Ledger,
    /// The dead-letter log and the ledger disagree.
    DeadLetters,
    /// A segment that a start or a repair put aside.
    PutAside,
}

/// One thing that is wrong, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub trouble: Trouble,
    /// The file, within the link's folder.
    pub file: Option<String>,
    /// The bytes of it: from, to (exclusive).
    pub bytes: Option<(u64, u64)>,
    /// The records that are concerned: first, last.
    pub records: Option<(u64, u64)>,
    /// In words.
    pub text: String,
    /// `audit --accept` has said that this is known.
    #[serde(default)]
    pub accepted: bool,
}

impl Finding {
    pub(super) const fn new(trouble: Trouble, text: String) -> Self {
        Self { trouble, file: None, bytes: None, records: None, text, accepted: false }
    }

    fn in_file(self, file: &str) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }
}

/// What the audit of one link's buffer found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAudit {
    /// The link, or the folder of one that is no more.
    pub link: String,
    /// As the cursor file has it; `accepted` and `buffered` follow from the sequence.
    pub ledger: Ledger,
    /// Owed records that are in the files, counted one by one.
    pub found: u64,
    /// Owed records that a running gateway has not written yet.
    pub in_memory: u64,
    /// Owed records that are nowhere.
    pub missing: u64,
    /// `accepted` less all that is accounted for: 0.
    pub gap: i64,
    /// Records in the segments, the delivered ones included.
    pub records: u64,
    /// Frames in the segments.
    pub frames: u64,
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Bytes of files that do not check.
    pub damaged_bytes: u64,
    /// Bytes behind the last record that were being written at a kill; nobody was told that they are safe. The next start cuts them.
    pub torn_bytes: u64,
    /// Segments that were put aside by a start or a repair; what they held is lost to the log and counted.
    #[serde(default)]
    pub put_aside: u64,
    /// Letters in the dead-letter log.
    pub dead_letters: u64,
    /// Letters that the operator has dropped; they stay in `dead_lettered`.
    pub dead_letters_dropped: u64,
    /// Letters that were sent again; they are in `dead_lettered` no more.
    pub dead_letters_sent: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Lost records (`dropped_damaged`) that `--accept` has said are known.
    pub accepted_damaged: u64,
    /// When `--accept` was last said (wall ms).
    pub accepted_at_ms: Option<u64>,
    /// No gap, and no damage but what is known.
    pub ok: bool,
}

/// The audit of a data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Each link's.
    pub links: Vec<LinkAudit>,
    /// All of them are in order.
    pub ok: bool,
}

impl AuditReport {
    /// Of these.
    #[must_use]
    pub fn of(links: Vec<LinkAudit>) -> Self {
        let ok = links.iter().all(|link| link.ok);
        Self { links, ok }
    }
}

/// Audits the buffer in `dir` while no gateway uses it. Changes nothing unless `accept` says that what is wrong is known;
/// that is kept in the folder.
///
/// # Errors
/// [`OpenError`]: the folder cannot be read, or a later version wrote it. Damage is no error but a finding.
pub fn audit(dir: &Path, accept: bool) -> Result<LinkAudit, OpenError> {
    audit_on(&Disk, dir, accept)
}

pub(in crate::buffer) fn audit_on(storage: &dyn Storage, dir: &Path, accept: bool) -> Result<LinkAudit, OpenError> {
    let failed = |error| OpenError::Io { path: dir.to_owned(), error };
    let view = View::read(storage, dir)?;
    let letters = dead_letters::look(storage, dir).map_err(failed)?;
    let mut audit = Audit::new(storage, dir);
    audit.files_of(&view);
    audit.aside().map_err(failed)?;
    let (tracker, durable) = match view.saved.clone() {
        Some(saved) => saved,
        None => (Tracker::starting_at(view.segments.first().map_or(0, |first| first.base)), 0),
    };
    let walked = audit.segments(&view.segments, durable, None).map_err(failed)?;
    let is_clean = view.identity.is_some_and(|identity| identity.clean);
    audit.tail(&view.segments, &walked, is_clean);
    let next = walked.next.max(tracker.known_end()).max(durable);
    audit.letters(&letters, &tracker);
    audit.balance(tracker.ledger(next), &tracker.owed_below(next), &walked, 0);
    audit.finish(accept).map_err(failed)
}

impl Buffer {
    /// The audit of this log while it is in use, from its files up to what is durable at this moment. Reads all of them: call
    /// it where blocking is allowed. `accept` as in [`audit`].
    ///
    /// # Errors
    /// Reading failed.
    pub fn audit(&self, accept: bool) -> io::Result<LinkAudit> {
        let (storage, shared, dir) = (Arc::clone(&self.inner.storage), &self.inner.shared, &self.inner.dir);
        let mut audit = Audit::new(&*storage, dir);
        // One moment of the dead-letter log and the ledger together.
        let (letters, before, segments, next, written) = self.inner.dead_letters.with_look(|letters| {
            let state = shared.state.lock();
            let segments: Vec<_> =
                state.segments.iter().map(|s| (s.path.clone(), s.base, s.data_end, s.salt)).collect();
            (letters, state.tracker.clone(), segments, state.next, shared.mark.progress().done)
        });
        let segments = segments.into_iter().map(|(path, base, len, salt)| {
            let header = super::view::header_of(&*storage, &path)?;
            Ok(SegmentFile { path, base, len, header, salt: Some(salt) })
        });
        let segments: Vec<_> = segments.collect::<io::Result<_>>()?;
        audit.aside()?;
        let walked = audit.segments(&segments, u64::MAX, Some(()))?;
        let letters = letters.check(&*storage, dir)?;
        audit.letters(&letters, &before);
        // What was settled meanwhile may have been deleted under our eyes.
        let after = shared.state.lock().tracker.owed_below(next);
        let owed = before.owed_below(next);
        let in_memory = owed.common(&Ranges::one(written, u64::MAX)).without(&walked.found);
        let settled = owed.clone().without(&after).without(&walked.found).without(&in_memory);
        let mut walked = walked;
        settled.iter().for_each(|(from, to)| walked.found.add(from, to));
        in_memory.iter().for_each(|(from, to)| walked.found.add(from, to));
        audit.balance(before.ledger(next), &owed, &walked, in_memory.len());
        audit.finish(accept)
    }
}

/// What all segments hold.
#[derive(Debug, Default)]
struct Walked {
    found: Ranges,
    skipped: Ranges,
    next: u64,
    last: Option<Walk>,
}

/// An audit under way.
struct Audit<'a> {
    storage: &'a dyn Storage,
    dir: &'a Path,
    report: LinkAudit,
}

impl<'a> Audit<'a> {
    fn new(storage: &'a dyn Storage, dir: &'a Path) -> Self {
        let link = super::super::lanes::label(dir);
        Self { storage, dir, report: LinkAudit { link, ..LinkAudit::default() } }
    }

    fn find(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    /// `meta` and `cursors`. One unsound slot is what a power cut leaves; after an ordered end it is damage.
    fn files_of(&mut self, view: &View) {
        let is_clean = view.identity.is_some_and(|identity| identity.clean);
        // A log whose first start was interrupted. The cursor is saved before `meta` reserves the first numbers.
        let has_begun = view.saved.is_some() || view.identity.is_some_and(|identity| identity.reserved > 0);
        let fresh = view.segments.is_empty() && !has_begun;
        for (name, look) in [("meta", view.meta), ("cursors", view.cursors)] {
            let text = match (look.exists, look.sound, look.unsound) {
                (false, ..) | (true, 0, 0) if fresh => continue,
                (false, ..) => format!("the file `{name}` is missing"),
                (true, 0, 0) => format!("the file `{name}` is empty"),
                (true, 0, _) => format!("no slot of the file `{name}` checks"),
                (true, _, 0) => continue,
                (true, ..) if !is_clean => continue,
                (true, ..) => format!("a slot of the file `{name}` does not check"),
            };
            self.find(Finding::new(Trouble::Damaged, text).in_file(name));
        }
    }

    /// What was put aside is shown until somebody has said that it is known: what was in it may be in no figure.
    fn aside(&mut self) -> io::Result<()> {
        let aside = aside(self.storage, self.dir)?;
        self.report.put_aside = wide(aside.len());
        for name in aside {
            let text = "was put aside, since it is damaged; records that nobody could count may have been in it";
            self.find(Finding::new(Trouble::PutAside, text.to_owned()).in_file(&name));
        }
        Ok(())
    }

    /// `live`: what counts of the files is known, and behind it is what is just being written.
    fn segments(&mut self, segments: &[SegmentFile], durable: u64, live: Option<()>) -> io::Result<Walked> {
        let mut all = Walked::default();
        for (at, segment) in segments.iter().enumerate() {
            let number = segments.get(at + 1).map_or(u64::MAX, |next| next.base);
            let is_last = number == u64::MAX;
            let bytes = if live.is_some() { segment.len } else { u64::MAX };
            let bounds = Bounds { bytes, number, durable: u64::MAX };
            let mut walked = walk(self.storage, segment, bounds, |_| {})?;
            let sealed = walked.footer.as_ref().map_or(0, |footer| footer.next);
            // Only what was durable can be damaged; the rest is a torn tail, which the next start cuts.
            let durable = durable.max(walked.durable).max(sealed).max(segment.base);
            if is_last && walked.damaged.iter().any(|damage| damage.next > damage.first && damage.first >= durable) {
                walked = walk(self.storage, segment, Bounds { durable, ..bounds }, |_| {})?;
            }
            if walked.gone {
                continue;
            }
            if live.is_none() && segment.salt.is_none() && segment.len <= wide(SEGMENT_HEADER) {
                // A power cut while it was begun: a header alone holds no record.
                walked.damaged.clear();
                self.report.torn_bytes += segment.len;
            }
            let report = &mut self.report;
            report.segments += 1;
            report.segment_bytes += segment.len;
            report.frames += walked.frames;
            report.records += walked.found.len();
            let name = segment.name();
            if !is_last && live.is_none() && walked.tail > 0 {
                let (from, to) = (walked.data_end, walked.data_end + walked.tail);
                walked.damaged.push(Damage { from, to, first: walked.next, next: walked.next });
            }
            if segment.salt.is_none() && segment.len > wide(SEGMENT_HEADER) {
                walked.damaged.clear();
                self.unreadable(&name, segment.len);
            }
            self.damaged(&name, &walked.damaged);
            if walked.wrong_footer {
                let text = "its footer does not fit its frames".to_owned();
                self.find(Finding::new(Trouble::Damaged, text).in_file(&name));
            }
            walked.found.iter().for_each(|(from, to)| all.found.add(from, to));
            walked.skipped.iter().for_each(|(from, to)| all.skipped.add(from, to));
            all.next = all.next.max(walked.next);
            all.last = is_last.then_some(walked);
        }
        Ok(all)
    }

    /// What lies behind the last frame of all.
    fn tail(&mut self, segments: &[SegmentFile], walked: &Walked, is_clean: bool) {
        let (Some(segment), Some(last)) = (segments.last(), &walked.last) else { return };
        if last.tail == 0 {
            return;
        }
        if is_clean {
            let (from, to) = (last.data_end, last.data_end + last.tail);
            self.damaged(&segment.name(), &[Damage { from, to, first: last.next, next: last.next }]);
        } else {
            self.report.torn_bytes += last.tail;
        }
    }

    fn unreadable(&mut self, file: &str, len: u64) {
        self.report.damaged_bytes += len;
        let text = "nothing in it can be read; which records it held, if any, is not known".to_owned();
        let finding = Finding::new(Trouble::Damaged, text).in_file(file);
        self.find(Finding { bytes: Some((0, len)), ..finding });
    }

    fn damaged(&mut self, file: &str, places: &[Damage]) {
        let listed = places.get(..PLACES_MAX).unwrap_or(places);
        let rest = places.get(PLACES_MAX..).unwrap_or_default();
        let joined =
            rest.first().zip(rest.last()).map(|(first, last)| Damage { to: last.to, next: last.next, ..*first });
        self.report.damaged_bytes += places.iter().map(|place| place.to - place.from).sum::<u64>();
        for place in listed.iter().chain(&joined) {
            let text = if place.next > place.first {
                format!("bytes {}..{} do not check, and records with them", place.from, place.to)
            } else {
                format!("bytes {}..{} do not check; no record was in them", place.from, place.to)
            };
            let records = (place.next > place.first).then(|| (place.first, place.next - 1));
            let bytes = Some((place.from, place.to));
            self.find(Finding { bytes, records, ..Finding::new(Trouble::Damaged, text).in_file(file) });
        }
    }

    fn letters(&mut self, letters: &LettersLook, tracker: &Tracker) {
        self.report.dead_letters = letters.count;
        self.report.dead_letters_dropped = letters.dropped;
        self.report.dead_letters_sent = letters.sent;
        for (from, to) in &letters.damaged {
            self.report.damaged_bytes += to - from;
            let text = format!("bytes {from}..{to} of the dead-letter log do not check");
            let finding = Finding::new(Trouble::Damaged, text).in_file("dead-letters/letters");
            self.find(Finding { bytes: Some((*from, *to)), ..finding });
        }
        // A letter is stored before the cursor passes its record (R15); what was sent again is counted with the next start.
        let passed = letters.count_passed(|offset| tracker.has_passed(offset));
        let unaccounted = letters.sent.saturating_sub(tracker.returned());
        let counted = tracker.ledger(0).dead_lettered.saturating_sub(unaccounted);
        if counted != passed + letters.dropped {
            let text = format!(
                "the ledger counts {counted} dead letters; the log holds {passed}, and {} were dropped",
                letters.dropped
            );
            self.find(Finding::new(Trouble::DeadLetters, text));
        }
    }

    /// The equation, with the records that are really there.
    fn balance(&mut self, ledger: Ledger, owed: &Ranges, walked: &Walked, in_memory: u64) {
        let missing = owed.clone().without(&walked.found).without(&walked.skipped);
        // Numbers that frames skip are in no sum, also where the cursor file does not know it yet.
        let skipped = owed.common(&walked.skipped).without(&walked.found).len();
        let ledger = Ledger {
            accepted: ledger.accepted.saturating_sub(skipped),
            buffered: ledger.buffered.saturating_sub(skipped),
            ..ledger
        };
        let there = owed.common(&walked.found).len();
        self.report.in_memory = in_memory;
        self.report.found = there.saturating_sub(in_memory);
        self.report.missing = missing.len();
        let accounted = Ledger { buffered: there, ..ledger }.accounted();
        self.report.gap = i64::try_from(i128::from(ledger.accepted) - i128::from(accounted)).unwrap_or(i64::MAX);
        self.report.ledger = ledger;
        for (from, to) in missing.iter() {
            let text = format!("{} owed records are not in the files, and no figure accounts for them", to - from);
            self.find(Finding { records: Some((from, to - 1)), ..Finding::new(Trouble::Missing, text) });
        }
        let off = i128::from(self.report.gap) - i128::from(self.report.missing);
        if off != 0 {
            let text = format!("the figures are off by {off} beside what is missing");
            self.find(Finding::new(Trouble::Ledger, text));
        }
    }

    fn finish(mut self, accept: bool) -> io::Result<LinkAudit> {
        let mut accepted = Accepted::load(self.storage, self.dir)?;
        if accept {
            accepted.take(&self.report);
            accepted.save(self.storage, self.dir)?;
        }
        for finding in &mut self.report.findings {
            finding.accepted = accepted.knows(finding);
        }
        self.report.accepted_damaged = accepted.dropped_damaged;
        self.report.accepted_at_ms = (accepted.at_ms > 0).then_some(accepted.at_ms);
        let counted = self.report.ledger.dropped_damaged <= accepted.dropped_damaged;
        self.report.ok = counted && self.report.findings.iter().all(|finding| finding.accepted);
        Ok(self.report)
    }
}
