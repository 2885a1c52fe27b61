//! The dead-letter log of one link: what the remote refused for good, with the reason. One file, appended and synced
//! letter by letter; keyed by the record's offset, so that a crash between the letter and the cursor doubles nothing
//! (R15). Refusals are rare; one that is not becomes `misconfigured` (R15), so one sync a letter is enough.
//!
//! `dead-letters/letters` is a row of letters:
//! `magic:u32 len:u32 crc:u32 attempts:u32 offset:u64 time_ms:u64 reason_len:u32 zero:u32 reason body padding`, where
//! `len` counts what follows the first 12 bytes, without the padding to 8 bytes, and `crc` is over those.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;

use super::format::aligned;
use super::storage::{Handle, Storage, is_no_space, read_up_to};
use super::{Offset, Refused, wide};
use crate::clock::WallMs;

/// Bytes of letters at most: far more than a person reads, little enough to keep beside the log.
const BYTES_MAX: u64 = 64 << 20;
const MAGIC: u32 = u32::from_le_bytes(*b"TGDL");
const HEADER: usize = 12;
const FIXED: usize = 28;

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
pub struct DeadLetters {
    letters: Arc<Mutex<Letters>>,
}

#[derive(Debug)]
struct Letters {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// Made with the first letter.
    file: Option<Box<dyn Handle>>,
    end: u64,
    bytes_max: u64,
    /// Where each letter lies, and how long it is.
    places: BTreeMap<Offset, (u64, usize)>,
    failed: Option<Arc<str>>,
}

impl DeadLetters {
    /// Opens the log beneath the link's folder. Answers also what was odd about it.
    pub(super) fn open(storage: Arc<dyn Storage>, link_dir: &Path) -> io::Result<(Self, Vec<String>)> {
        let mut letters = Letters {
            storage,
            dir: link_dir.join("dead-letters"),
            file: None,
            end: 0,
            bytes_max: BYTES_MAX,
            places: BTreeMap::new(),
            failed: None,
        };
        let notes = letters.load()?;
        Ok((Self { letters: Arc::new(Mutex::new(letters)) }, notes))
    }

    /// Stores and syncs; returns when it is durable. A letter that is there already (same offset) is not stored twice.
    ///
    /// # Errors
    /// [`Refused::Full`]: the link stops, state `dead_letters_full` (R15); [`Refused::Failed`].
    pub async fn put(&self, letter: DeadLetter) -> Result<(), Refused> {
        let letters = Arc::clone(&self.letters);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let put = runtime.spawn_blocking(move || letters.lock().put(&letter)).await;
                put.unwrap_or_else(|error| Err(Refused::Failed(error.to_string().into())))
            }
            Err(_no_runtime) => letters.lock().put(&letter),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        wide(self.letters.lock().places.len())
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
        self.letters.lock().list().map_err(|error| Refused::Failed(error.to_string().into()))
    }

    #[cfg(test)]
    fn limit(&self, bytes_max: u64) {
        self.letters.lock().bytes_max = bytes_max;
    }
}

impl Letters {
    fn path(&self) -> PathBuf {
        self.dir.join("letters")
    }

    fn load(&mut self) -> io::Result<Vec<String>> {
        let file = match self.storage.open(&self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut notes = Vec::new();
        let len = file.len()?;
        let (mut at, mut sound_end) = (0, 0);
        while at + wide(HEADER) <= len {
            if let Some((letter, size)) = read_letter(&*file, at, len)? {
                if at > sound_end {
                    notes.push(format!("{}: {} damaged bytes at {sound_end}", self.path().display(), at - sound_end));
                }
                self.places.insert(letter.offset, (at, size));
                at += wide(aligned(size));
                sound_end = at;
            } else {
                at += 8;
            }
        }
        if len > sound_end {
            notes.push(format!("{}: a torn tail of {} bytes was cut", self.path().display(), len - sound_end));
            file.set_len(sound_end)?;
            file.sync()?;
        }
        self.end = sound_end;
        self.file = Some(file);
        Ok(notes)
    }

    fn put(&mut self, letter: &DeadLetter) -> Result<(), Refused> {
        if let Some(reason) = &self.failed {
            return Err(Refused::Failed(Arc::clone(reason)));
        }
        if self.places.contains_key(&letter.offset) {
            return Ok(());
        }
        let mut bytes = encode(letter);
        let size = bytes.len();
        bytes.resize(aligned(size), 0);
        if self.end + wide(bytes.len()) > self.bytes_max {
            return Err(Refused::Full);
        }
        match self.write(&bytes) {
            Ok(()) => {
                self.places.insert(letter.offset, (self.end, size));
                self.end += wide(bytes.len());
                Ok(())
            }
            Err(error) if is_no_space(&error) => Err(Refused::Full),
            Err(error) => {
                // After a failed sync nobody knows what the file holds: it is not used again before the next start.
                let reason: Arc<str> = format!("{}: {error}", self.path().display()).into();
                self.failed = Some(Arc::clone(&reason));
                Err(Refused::Failed(reason))
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                self.storage.create_dir(&self.dir)?;
                let file = self.storage.create(&self.path())?;
                self.storage.sync_dir(&self.dir)?;
                file
            }
        };
        let file = self.file.insert(file);
        if let Err(error) = file.write_at(bytes, self.end) {
            file.set_len(self.end)?;
            return Err(error);
        }
        file.sync()
    }

    fn list(&self) -> io::Result<Vec<DeadLetter>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let mut letters = Vec::with_capacity(self.places.len());
        for (pos, _) in self.places.values() {
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("the letter at {pos} is damaged"));
            let (letter, _) = read_letter(&**file, *pos, self.end)?.ok_or_else(damaged)?;
            letters.push(letter);
        }
        Ok(letters)
    }
}

fn encode(letter: &DeadLetter) -> Vec<u8> {
    let mut rest = Vec::with_capacity(FIXED + letter.reason.len() + letter.body.len());
    rest.put_u32_le(letter.attempts);
    rest.put_u64_le(letter.offset.0);
    rest.put_u64_le(letter.time.0);
    rest.put_u32_le(u32::try_from(letter.reason.len()).unwrap_or(u32::MAX));
    rest.put_u32_le(0);
    rest.put_slice(letter.reason.as_bytes());
    rest.put_slice(&letter.body);
    let mut out = Vec::with_capacity(HEADER + rest.len());
    out.put_u32_le(MAGIC);
    out.put_u32_le(u32::try_from(rest.len()).unwrap_or(u32::MAX));
    out.put_u32_le(crc32c::crc32c(&rest));
    out.extend(rest);
    out
}

/// The letter at `pos` and its length, if one is there.
pub(super) fn read_letter(file: &dyn Handle, pos: u64, end: u64) -> io::Result<Option<(DeadLetter, usize)>> {
    let head = read_up_to(file, pos, HEADER)?;
    let mut head = head.as_slice();
    if head.len() < HEADER || head.get_u32_le() != MAGIC {
        return Ok(None);
    }
    let (len, crc) = (head.get_u32_le(), head.get_u32_le());
    if pos + wide(HEADER) + u64::from(len) > end {
        return Ok(None);
    }
    let Ok(len) = usize::try_from(len) else { return Ok(None) };
    let rest = read_up_to(file, pos + wide(HEADER), len)?;
    let sound = rest.len() == len && crc32c::crc32c(&rest) == crc;
    Ok(if sound { decode(rest.into()).map(|letter| (letter, HEADER + len)) } else { None })
}

fn decode(mut rest: Bytes) -> Option<DeadLetter> {
    if rest.len() < FIXED {
        return None;
    }
    let (attempts, offset, time) = (rest.get_u32_le(), Offset(rest.get_u64_le()), WallMs(rest.get_u64_le()));
    let reason_len = usize::try_from(rest.get_u32_le()).ok()?;
    rest.advance(4);
    if rest.len() < reason_len {
        return None;
    }
    let reason = String::from_utf8_lossy(&rest.split_to(reason_len)).into_owned();
    Some(DeadLetter { offset, time, reason, attempts, body: rest })
}

#[cfg(test)]
mod tests {
    use super::super::storage::Disk;
    use super::*;

    fn letter(offset: u64) -> DeadLetter {
        DeadLetter {
            offset: Offset(offset),
            time: WallMs(1_000 + offset),
            reason: "NOT_AUTHORIZED".to_owned(),
            attempts: 3,
            body: Bytes::from(vec![7; 21]),
        }
    }

    fn open(dir: &Path) -> (DeadLetters, Vec<String>) {
        DeadLetters::open(Arc::new(Disk), dir).unwrap()
    }

    #[tokio::test]
    async fn r15_a_letter_is_there_after_a_restart_and_never_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (letters, _) = open(dir.path());
        assert!(letters.is_empty());
        letters.put(letter(4)).await.unwrap();
        letters.put(letter(9)).await.unwrap();
        drop(letters);
        let (letters, notes) = open(dir.path());
        assert_eq!(notes, Vec::<String>::new());
        letters.put(letter(4)).await.unwrap();
        assert_eq!(letters.list().unwrap(), [letter(4), letter(9)]);
        assert_eq!(letters.len(), 2);
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_and_the_sound_letters_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (letters, _) = open(dir.path());
        letters.put(letter(1)).await.unwrap();
        letters.put(letter(2)).await.unwrap();
        drop(letters);
        let path = dir.path().join("dead-letters/letters");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
        let (letters, notes) = open(dir.path());
        assert_eq!(letters.list().unwrap(), [letter(1)]);
        assert!(notes[0].contains("torn tail"), "{notes:?}");
        letters.put(letter(2)).await.unwrap();
        drop(letters);
        assert_eq!(open(dir.path()).0.len(), 2);
    }

    #[tokio::test]
    async fn r15_a_full_dead_letter_log_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let (letters, _) = open(dir.path());
        letters.limit(100);
        letters.put(letter(1)).await.unwrap();
        assert_eq!(letters.put(letter(2)).await, Err(Refused::Full));
        assert_eq!(letters.len(), 1);
    }
}
