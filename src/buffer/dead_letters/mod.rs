//! The dead-letter log of one link: what the remote refused for good, with the reason. One file, appended and synced
//! row by row; a letter is keyed by its record's offset, so that a crash between the letter and the cursor doubles nothing
//! (R15). Refusals are rare; one that is not becomes `misconfigured` (R15), so one sync a letter is enough.
//!
//! # On disk
//! `dead-letters/letters` is a row of letters:
//! `magic:u32 len:u32 salt:u32 crc:u32 header_crc:u32 attempts:u32 offset:u64 time_ms:u64 reason_len:u32 zero:u32 reason body padding`,
//! where `len` counts what follows the first 20 bytes, without the padding to 8 bytes, and `crc` is over those; and of fates with
//! the same first 20 bytes, which say what became of a letter. A row of another salt than the log's is none.
//!
//! # Sending again
//! `Sending` is synced, the record is appended to the log and synced, `Sent` is synced; then the letter is gone and the
//! ledger moves its record from `dead_lettered` back to `buffered` (R7). After a kill in between, the next start looks for
//! the record in the log from where `Sending` says, and finishes or takes back. So no letter is lost; one comes twice only
//! if its record was delivered and its segment deleted before `Sent` was durable.
//!
//! # Space
//! What is gone stays in the file until half of it is; then the rest is written into a new file that takes its place. A letter
//! that has become damaged meanwhile is not in it: the old file stays beside it then, as `letters.N.damaged`. It stays as `letters.N.kept`
//! where a record has the number of a letter of another one.
//! Behind the last row stand zeros, written ahead while the disk has room: a reserve (R4), so that on a full disk the link is not
//! stopped by a refusal, and letters can be looked after. (A file system that copies on write, as btrfs, still needs room.)

mod reserve;
mod row;
mod sending;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::reserve::Reserve;
use self::row::{Fate, Row};
use super::format::aligned;
use super::log::Identity;
use super::storage::{Handle, Storage, is_no_space, read_past_bad_pages};
use super::{Offset, Refused, wide};
use crate::clock::WallMs;

pub use sending::SendError;

/// Bytes of letters at most: far more than a person reads, little enough to keep beside the log.
const BYTES_MAX: u64 = 64 << 20;
/// Room that is there ahead: for a record of the default `max_packet_size`, or for many that are usual.
const RESERVE_BYTES: u64 = (1 << 20) + (128 << 10);
/// What is copied at once.
const COPIED: usize = 64 << 10;
/// So many bytes of what is gone are not worth writing the file anew.
const GONE_BYTES_MIN: u64 = 1 << 20;

/// A record that the remote refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its offset in the link's log: the key, so that a crash does not double it (R15).
    pub offset: Offset,
    /// When it was refused.
    pub time: WallMs,
    /// In the remote's words.
    pub reason: String,
    /// How often it was put on its way to the remote since the gateway's start, the refused time included; 0: never, since
    /// it cannot be sent at all.
    pub attempts: u32,
    /// The record's body.
    pub body: Bytes,
}

/// What was a letter and does not read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedLetter {
    /// The offset of its record; `None`: that is damaged too.
    pub offset: Option<Offset>,
    /// Where it lies, or what the disk says.
    pub text: String,
}

/// Letters, as far as they read back: one that does not hides no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadLetters {
    /// Oldest first.
    pub letters: Vec<DeadLetter>,
    /// The others.
    pub damaged: Vec<DamagedLetter>,
}

/// The dead-letter log of one link, in its folder beneath the link's.
#[derive(Debug)]
pub struct DeadLetters {
    letters: Arc<Mutex<Letters>>,
    /// One is sent again at a time.
    sending: tokio::sync::Mutex<()>,
    /// What waits for the log while it is sent again waits no longer: the next start finishes it, or takes it back.
    closing: CancellationToken,
}

#[derive(Debug)]
struct Letters {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    file: Option<Box<dyn Handle>>,
    salt: u32,
    /// Behind the last row.
    end: u64,
    reserve: Reserve,
    bytes_max: u64,
    index: Index,
    /// Bytes of the file that were no rows at the start.
    damaged: Vec<(u64, u64)>,
    /// The file has been copied as it was, since a letter had to give its number to another record.
    is_kept: bool,
    /// Why no row is written any more.
    failed: Option<Refused>,
}

/// What the rows come to.
#[derive(Debug, Default)]
struct Index {
    /// Where each letter lies, and how long it is.
    places: BTreeMap<Offset, (u64, usize)>,
    /// Bytes of those.
    bytes: u64,
    /// Letters that were sent again, ever.
    sent: u64,
    /// Letters that were dropped, ever.
    dropped: u64,
    /// A letter that was being sent, and from where in the log.
    sending: Option<(Offset, u64)>,
}

/// The log as the audit sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LettersLook {
    pub(super) count: u64,
    pub(super) sent: u64,
    pub(super) dropped: u64,
    pub(super) damaged: Vec<(u64, u64)>,
    /// Bytes of the file that count.
    end: u64,
    salt: u32,
    offsets: Vec<u64>,
}

impl LettersLook {
    /// Behind the highest record that has a letter.
    pub(super) fn next(&self) -> u64 {
        self.offsets.last().map_or(0, |last| last.saturating_add(1))
    }

    /// Letters of records that a cursor has passed.
    pub(super) fn count_passed(&self, has_passed: impl Fn(u64) -> bool) -> u64 {
        wide(self.offsets.iter().filter(|offset| has_passed(**offset)).count())
    }

    /// Verifies the checksums of the file up to where it was.
    pub(super) fn check(mut self, storage: &dyn Storage, link_dir: &Path) -> io::Result<Self> {
        if let Some((file, len)) = open_to_read(storage, link_dir)? {
            let found = row::scan(&*file, len.min(self.end), self.salt, |_, _, _| {})?;
            self.damaged = found.damaged;
            if found.end < len.min(self.end) {
                self.damaged.push((found.end, len.min(self.end)));
            }
        }
        Ok(self)
    }
}

/// The length of the row at `pos`, if a sound one is there.
pub(super) fn row_len(file: &dyn Handle, pos: u64, end: u64) -> io::Result<Option<usize>> {
    Ok(row::read(file, pos, end, None)?.map(|found| found.size))
}

/// The salt of the letters of the log in `link_dir`, from its `meta`.
fn salt_of(storage: &dyn Storage, link_dir: &Path) -> io::Result<u32> {
    let (_look, meta) = super::slots::look(storage, &link_dir.join("meta"))?;
    Ok(crc32c::crc32c_append(
        meta.as_deref().and_then(Identity::decode).map_or(0, |identity| identity.secret),
        b"letters",
    ))
}

/// Reads the log beneath the link's folder and changes nothing.
pub(super) fn look(storage: &dyn Storage, link_dir: &Path) -> io::Result<LettersLook> {
    let Some((file, len)) = open_to_read(storage, link_dir)? else { return Ok(LettersLook::default()) };
    let mut index = Index::default();
    let salt = salt_of(storage, link_dir)?;
    let found = row::scan(&*file, len, salt, |row, pos, size| index.apply(&row, pos, size))?;
    Ok(LettersLook { damaged: found.damaged, ..index.look(found.end, found.salt) })
}

/// All letters beneath the link's folder; changes nothing.
pub(super) fn read_all(storage: &dyn Storage, link_dir: &Path) -> io::Result<ReadLetters> {
    let Some((file, len)) = open_to_read(storage, link_dir)? else { return Ok(ReadLetters::default()) };
    let mut index = Index::default();
    let mut letters = BTreeMap::new();
    let found = row::scan(&*file, len, salt_of(storage, link_dir)?, |row, pos, size| {
        index.apply(&row, pos, size);
        if let Row::Letter(letter) = row {
            letters.insert(letter.offset, letter);
        }
    })?;
    letters.retain(|offset, _| index.places.contains_key(offset));
    let mut damaged: Vec<_> = found.damaged.into_iter().map(unread).collect();
    // Behind the last row that checks there are zeros, or one that does not.
    if !reserve::is_zeros(&*file, found.end, len)? {
        let end = found.end;
        let text = format!("bytes from {end} on of dead-letters/letters do not check: written at a kill, or damaged");
        damaged.push(DamagedLetter { offset: None, text });
    }
    Ok(ReadLetters { letters: letters.into_values().collect(), damaged })
}

/// Bytes that are no rows.
fn unread((from, to): (u64, u64)) -> DamagedLetter {
    DamagedLetter { offset: None, text: format!("bytes {from}..{to} of dead-letters/letters do not check") }
}

/// Writes the log beneath the link's folder anew where bytes of it do not check, and keeps it as it was beside it. Nobody may
/// have it open. Answers what is (to be) done.
pub(super) fn repair(link_dir: &Path, dry: bool) -> io::Result<Option<String>> {
    let storage: Arc<dyn Storage> = Arc::new(super::storage::Disk);
    let look = look(&*storage, link_dir)?;
    if look.damaged.is_empty() {
        return Ok(None);
    }
    let dir = link_dir.join("dead-letters");
    let bytes: u64 = look.damaged.iter().map(|(from, to)| to - from).sum();
    let aside = (1_u64..).map(|n| dir.join(format!("letters.{n}.damaged"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_default();
    if !dry {
        std::fs::copy(dir.join("letters"), &aside)?;
        storage.open(&aside)?.sync()?;
        let (letters, _notes) = DeadLetters::open(storage, link_dir, RESERVE_BYTES)?;
        letters.letters.lock().write_anew().map_err(|error| io::Error::other(error.to_string()))?;
    }
    let (count, aside) = (look.count, aside.file_name().unwrap_or_default().to_string_lossy().into_owned());
    Ok(Some(format!(
        "dead-letters/letters: written anew with its {count} sound letters, without {bytes} damaged bytes; as it was: {aside}"
    )))
}

fn open_to_read(storage: &dyn Storage, link_dir: &Path) -> io::Result<Option<(Box<dyn Handle>, u64)>> {
    match storage.open_to_read(&link_dir.join("dead-letters").join("letters")) {
        Ok(file) => {
            let len = file.len()?;
            Ok(Some((file, len)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Index {
    fn apply(&mut self, row: &Row, pos: u64, size: usize) {
        match row {
            Row::Letter(letter) => self.insert(letter.offset, pos, size),
            Row::Fate(Fate::Sending { letter, from }) => self.sending = Some((*letter, *from)),
            Row::Fate(Fate::Sent { letter, .. }) => {
                self.sent += u64::from(self.remove(*letter));
                self.sending = None;
            }
            Row::Fate(Fate::Kept { .. }) => self.sending = None,
            Row::Fate(Fate::Dropped { letter }) => self.dropped += u64::from(self.remove(*letter)),
            Row::Fate(Fate::Totals { sent, dropped }) => (self.sent, self.dropped) = (*sent, *dropped),
        }
    }

    fn insert(&mut self, offset: Offset, pos: u64, size: usize) {
        self.remove(offset);
        self.bytes += wide(aligned(size));
        self.places.insert(offset, (pos, size));
    }

    fn remove(&mut self, offset: Offset) -> bool {
        let removed = self.places.remove(&offset);
        self.bytes -= removed.map_or(0, |(_, size)| wide(aligned(size)));
        removed.is_some()
    }

    fn look(&self, end: u64, salt: u32) -> LettersLook {
        LettersLook {
            count: wide(self.places.len()),
            sent: self.sent,
            dropped: self.dropped,
            damaged: Vec::new(),
            end,
            salt,
            offsets: self.places.keys().map(|offset| offset.0).collect(),
        }
    }
}

impl DeadLetters {
    /// The reserve of a log for records of up to so many bytes.
    pub(super) fn reserve_for(record_max: u64) -> u64 {
        RESERVE_BYTES.min(record_max.saturating_add(4 << 10))
    }

    /// Opens the log beneath the link's folder, with so many bytes of reserve if the disk has them. Answers also what was odd about it.
    pub(super) fn open(storage: Arc<dyn Storage>, link_dir: &Path, reserve: u64) -> io::Result<(Self, Vec<String>)> {
        let mut letters = Letters {
            salt: salt_of(&*storage, link_dir)?,
            storage,
            dir: link_dir.join("dead-letters"),
            file: None,
            end: 0,
            reserve: Reserve::of(reserve),
            bytes_max: BYTES_MAX,
            index: Index::default(),
            damaged: Vec::new(),
            is_kept: false,
            failed: None,
        };
        let mut notes = letters.load()?;
        notes.extend(letters.reserve_at_start());
        let letters = Arc::new(Mutex::new(letters));
        Ok((Self { letters, sending: tokio::sync::Mutex::default(), closing: CancellationToken::new() }, notes))
    }

    /// Stores and syncs; returns when it is durable. A letter that is there already (same offset, same record) is not stored twice; one of
    /// another record is replaced, and the file as it was stays beside the log (`letters.N.kept`).
    ///
    /// # Errors
    /// [`Refused::Full`]: the link stops, state `dead_letters_full` (R15); [`Refused::Failed`].
    pub async fn put(&self, letter: DeadLetter) -> Result<(), Refused> {
        self.with(move |letters| letters.put(&letter)).await
    }

    /// Does something to the file, on a thread that may block where there is a runtime.
    async fn with<T, F>(&self, act: F) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: FnOnce(&mut Letters) -> Result<T, Refused> + Send + 'static,
    {
        let letters = Arc::clone(&self.letters);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let done = runtime.spawn_blocking(move || act(&mut letters.lock())).await;
                done.unwrap_or_else(|error| Err(Refused::Failed(error.to_string().into())))
            }
            Err(_no_runtime) => act(&mut letters.lock()),
        }
    }

    /// Writes no row any more when this returns, whoever still has the log: the file may be opened again. What is under way ends before.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        let _last = self.sending.lock().await;
        let fence = |letters: &mut Letters| {
            letters.failed.get_or_insert(Refused::Closed);
            Ok(())
        };
        drop(self.with(fence).await);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        wide(self.letters.lock().index.places.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records' offsets, oldest first.
    #[must_use]
    pub fn offsets(&self) -> Vec<Offset> {
        self.letters.lock().index.places.keys().copied().collect()
    }

    /// The letter of a record. `None`: there is none. Reads the disk.
    ///
    /// # Errors
    /// [`Refused::Failed`].
    pub fn get(&self, offset: Offset) -> Result<Option<DeadLetter>, Refused> {
        self.letters.lock().get(offset).map_err(|error| Refused::Failed(error.to_string().into()))
    }

    /// All of them. Reads the disk.
    #[must_use]
    pub fn list(&self) -> ReadLetters {
        let letters = self.letters.lock();
        let damaged = letters.damaged.iter().copied().map(unread).collect();
        let mut read = ReadLetters { letters: Vec::new(), damaged };
        for offset in letters.index.places.keys() {
            match letters.get(*offset) {
                Ok(letter) => read.letters.extend(letter),
                Err(error) => {
                    read.damaged.push(DamagedLetter { offset: Some(*offset), text: error.to_string() });
                }
            }
        }
        read
    }

    /// Drops a letter for good: counted, and its record stays in `dead_lettered`. `false`: there is none.
    ///
    /// # Errors
    /// [`Refused::Failed`]; [`Refused::Full`] where the disk is.
    pub async fn drop_letter(&self, letter: Offset) -> Result<bool, Refused> {
        self.with(move |letters| {
            let is_there = letters.index.places.contains_key(&letter);
            if is_there {
                letters.note(Fate::Dropped { letter })?;
            }
            Ok(is_there)
        })
        .await
    }

    /// How many were dropped by the operator, ever.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.letters.lock().index.dropped
    }

    /// The log and whatever `see` looks at, at one moment.
    pub(super) fn with_look<T>(&self, see: impl FnOnce(LettersLook) -> T) -> T {
        let letters = self.letters.lock();
        see(letters.index.look(letters.end, letters.salt))
    }

    #[cfg(test)]
    fn limit(&self, bytes_max: u64) {
        self.letters.lock().bytes_max = bytes_max;
    }

    #[cfg(test)]
    fn append_row(&self, row: &Row) {
        let mut letters = self.letters.lock();
        let bytes = row.encode(letters.salt);
        letters.append(row, &bytes).unwrap();
    }
}

impl Letters {
    fn path(&self) -> PathBuf {
        self.dir.join("letters")
    }

    fn load(&mut self) -> io::Result<Vec<String>> {
        // What a kill left of a file that was being written anew.
        match self.storage.remove(&self.dir.join("letters.new")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = match self.storage.open(&self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let len = file.len()?;
        let index = &mut self.index;
        let found = row::scan(&*file, len, self.salt, |row, pos, size| index.apply(&row, pos, size))?;
        let (path, sound_end) = (self.path(), found.end);
        self.salt = found.salt;
        let damaged = found.damaged.iter();
        let mut notes: Vec<_> =
            damaged.map(|(from, to)| format!("{}: {} damaged bytes at {from}", path.display(), to - from)).collect();
        self.reserve.len = len;
        if !reserve::is_zeros(&*file, sound_end, len)? {
            notes.push(format!("{}: a torn tail of {} bytes was cut", path.display(), len - sound_end));
            file.set_len(sound_end)?;
            file.sync()?;
            self.reserve.len = sound_end;
        }
        self.end = sound_end;
        self.file = Some(file);
        self.damaged = found.damaged;
        Ok(notes)
    }

    fn put(&mut self, letter: &DeadLetter) -> Result<(), Refused> {
        self.is_sound()?;
        match self.get(letter.offset) {
            Ok(None) => {}
            // The record came again after a crash.
            Ok(Some(there)) if there.body == letter.body => return Ok(()),
            // Or its number did: the ledger of an earlier log was lost, and what it counted from.
            Ok(Some(_)) | Err(_) => self.keep_replaced(letter.offset)?,
        }
        let row = Row::Letter(letter.clone());
        let bytes = row.encode(self.salt);
        let fits = |letters: &Self| letters.end + wide(bytes.len()) <= letters.bytes_max;
        if !fits(self) && self.gone_bytes() > 0 {
            self.write_anew()?;
        }
        if !fits(self) {
            return Err(Refused::Full);
        }
        self.append(&row, &bytes)
    }

    /// Fates are small and must go in where letters do not any more: they make room.
    fn note(&mut self, fate: Fate) -> Result<(), Refused> {
        self.is_sound()?;
        let row = Row::Fate(fate);
        let bytes = row.encode(self.salt);
        self.append(&row, &bytes)?;
        if self.gone_bytes() > GONE_BYTES_MIN.max(self.end / 2)
            && let Err(error) = self.write_anew()
        {
            tracing::warn!(%error, path = %self.path().display(), "the dead-letter log was not written anew; it goes on as it is");
        }
        Ok(())
    }

    fn is_sound(&self) -> Result<(), Refused> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn append(&mut self, row: &Row, bytes: &[u8]) -> Result<(), Refused> {
        match self.write(bytes) {
            Ok(()) => {
                let pos = self.end;
                self.end += wide(bytes.len());
                self.index.apply(row, pos, bytes.len());
                Ok(())
            }
            Err(error) if is_no_space(&error) => Err(Refused::Full),
            Err(error) => {
                // After a failed sync nobody knows what the file holds: it is not used again before the next start.
                let reason: Arc<str> = format!("{}: {error}", self.path().display()).into();
                let failed = Refused::Failed(reason);
                self.failed = Some(failed.clone());
                Err(failed)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.make_file()?;
        let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let end = self.end + wide(bytes.len());
        self.reserve.grow(&**file, end)?;
        if let Err(error) = file.write_at(bytes, self.end) {
            file.set_len(self.end)?;
            self.reserve.len = self.end;
            return Err(error);
        }
        file.sync()?;
        self.reserve.top_up(&**file, end, self.bytes_max)
    }

    fn make_file(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.storage.create_dir(&self.dir)?;
            let file = self.storage.create(&self.path())?;
            if let Err(error) = self.storage.sync_dir(&self.dir) {
                // It would stand in the way of the next attempt.
                let _gone = self.storage.remove(&self.path());
                return Err(error);
            }
            self.file = Some(file);
        }
        Ok(())
    }

    /// Without its reserve the log is as good as ever until the disk is full.
    fn reserve_at_start(&mut self) -> Option<String> {
        let reserved = self.make_file().and_then(|()| match &self.file {
            Some(file) => self.reserve.top_up(&**file, self.end, self.bytes_max),
            None => Ok(()),
        });
        let error = reserved.err()?;
        Some(format!("{}: no room could be set aside for dead letters: {error}", self.path().display()))
    }

    fn gone_bytes(&self) -> u64 {
        self.end.saturating_sub(self.index.bytes)
    }

    /// Writes what is left into a new file, which takes the old one's place. Until then the old one is as good as before.
    fn write_anew(&mut self) -> Result<(), Refused> {
        let failed = |error: io::Error| {
            if is_no_space(&error) { Refused::Full } else { Refused::Failed(error.to_string().into()) }
        };
        let (file, end, index) = self.copy_rest().map_err(failed)?;
        self.damaged.clear();
        self.reserve.len = end;
        let reserved = self.reserve.top_up(&*file, end, self.bytes_max);
        (self.file, self.end, self.index) = (Some(file), end, index);
        reserved.map_err(failed)
    }

    fn copy_rest(&self) -> io::Result<(Box<dyn Handle>, u64, Index)> {
        let new = self.dir.join("letters.new");
        match self.storage.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.storage.create(&new)?;
        let mut index = Index::default();
        let mut end = 0;
        let mut write = |row: Row| -> io::Result<()> {
            let bytes = row.encode(self.salt);
            file.write_at(&bytes, end)?;
            index.apply(&row, end, bytes.len());
            end += wide(bytes.len());
            Ok(())
        };
        write(Row::Fate(Fate::Totals { sent: self.index.sent, dropped: self.index.dropped }))?;
        let mut lost = Vec::new();
        for offset in self.index.places.keys() {
            match self.get(*offset) {
                Ok(letter) => letter.map_or(Ok(()), |letter| write(Row::Letter(letter)))?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => lost.push(offset.0),
                Err(error) => return Err(error),
            }
        }
        if let Some((letter, from)) = self.index.sending {
            write(Row::Fate(Fate::Sending { letter, from }))?;
        }
        file.sync()?;
        if !lost.is_empty() {
            let aside = self.put_aside("damaged")?;
            tracing::error!(letters = ?lost, aside = %aside.display(), "dead letters are damaged; the log goes on without them, and is kept aside as it was");
        }
        self.storage.rename(&new, &self.path())?;
        self.storage.sync_dir(&self.dir)?;
        Ok((file, end, index))
    }

    /// Another record takes a letter's number, or the letter of this one does not read back: the log is kept beside itself as it was.
    /// All such letters are of earlier lives, so once is enough.
    fn keep_replaced(&mut self, offset: Offset) -> Result<(), Refused> {
        if self.is_kept {
            return Ok(());
        }
        let aside = self.put_aside("kept").map_err(|error| {
            if is_no_space(&error) { Refused::Full } else { Refused::Failed(error.to_string().into()) }
        })?;
        self.is_kept = true;
        tracing::error!(letter = offset.0, aside = %aside.display(), "a dead letter of an earlier record has the number of this one, or does not read back: it is replaced, and the log as it was is kept aside");
        Ok(())
    }

    /// Copies the file as it is beside it: what is in it may be worth something to somebody.
    fn put_aside(&self, why: &str) -> io::Result<PathBuf> {
        let there = self.storage.list(&self.dir)?;
        let name = (1_u64..).map(|n| format!("letters.{n}.{why}")).find(|name| !there.contains(name));
        let aside = self.dir.join(name.unwrap_or_default());
        let Some(file) = &self.file else { return Ok(aside) };
        let copied = self.copy_to(&**file, &aside).and_then(|()| self.storage.sync_dir(&self.dir));
        if copied.is_err() {
            // Where the disk is full, each attempt would leave one.
            let _gone = self.storage.remove(&aside);
        }
        copied.map(|()| aside)
    }

    fn copy_to(&self, file: &dyn Handle, aside: &Path) -> io::Result<()> {
        let copy = self.storage.create(aside)?;
        let (mut at, len) = (0, self.end);
        while at < len {
            let size = usize::try_from(len - at).map_or(COPIED, |left| left.min(COPIED));
            let bytes = read_past_bad_pages(file, at, size)?;
            if bytes.is_empty() {
                break;
            }
            copy.write_at(&bytes, at)?;
            at += wide(bytes.len());
        }
        copy.sync()
    }

    fn get(&self, offset: Offset) -> io::Result<Option<DeadLetter>> {
        let (Some(file), Some((pos, _))) = (&self.file, self.index.places.get(&offset)) else { return Ok(None) };
        match row::read(&**file, *pos, self.end, Some(self.salt))?.map(|found| found.row) {
            Some(Row::Letter(letter)) => Ok(Some(letter)),
            Some(Row::Fate(_)) | None => {
                let damaged = format!("the letter at byte {pos} of {} is damaged", self.path().display());
                Err(io::Error::new(io::ErrorKind::InvalidData, damaged))
            }
        }
    }
}

#[cfg(test)]
mod tests;
