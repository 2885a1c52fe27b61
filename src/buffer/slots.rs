//! A small file that is overwritten in place and never torn: two prewritten slots with a generation and a checksum.
//! A save goes to the slot that does *not* hold what was synced last, also when it is the second save since: two
//! unsynced saves to two slots could both be torn by one power cut. Overwriting costs no new blocks, so it works while
//! the disk is full.
//!
//! A slot: `magic:u32 version:u16 zero:u16 generation:u64 len:u32 crc:u32 payload`, padded to the slot's length.

use std::any::Any;
use std::io;
use std::path::Path;

use bytes::{Buf, BufMut};

use super::format::FORMAT;
use super::storage::{Disk, Handle, Storage, read_past_bad_pages, read_up_to};
use super::wide;

/// Length of a slot; one block of most file systems is 4 KiB.
pub(super) const SLOT: usize = 16 << 10;
const HEADER: usize = 24;
/// Bytes of payload at most.
pub(super) const PAYLOAD_MAX: usize = SLOT - HEADER;
const MAGIC: u32 = u32::from_le_bytes(*b"TGSL");

/// See the module.
#[derive(Debug)]
pub(super) struct Slots {
    file: Box<dyn Handle>,
    generation: u64,
    /// The slot that holds what was synced last: 0 or 1.
    safe: u64,
}

/// What a slot file held.
#[derive(Debug)]
pub(super) enum Held {
    /// The newest sound payload.
    Payload(Vec<u8>),
    /// The file is new.
    Nothing,
    /// There was one, and no slot of it is sound.
    Damaged,
    /// A sound slot of a later format.
    Later(u16),
}

/// What a slot file looks like to one who only reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The file is there.
    pub(super) exists: bool,
    /// Slots that are sound.
    pub(super) sound: u64,
    /// Slots that hold something and do not check, torn by a power cut or damaged, or cannot be read.
    pub(super) unsound: u64,
    /// Of the newest sound slot.
    pub(super) generation: u64,
    /// A sound slot of a later format.
    pub(super) later: Option<u16>,
}

/// Reads the newest sound payload and changes nothing.
pub(super) fn look(storage: &dyn Storage, path: &Path) -> io::Result<(Look, Option<Vec<u8>>)> {
    let file = match storage.open_to_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Look::default(), None)),
        Err(error) => return Err(error),
    };
    let mut look = Look { exists: true, ..Look::default() };
    let bytes = read_up_to(&*file, 0, SLOT * 2).unwrap_or_else(|_bad_pages| {
        look.unsound += 1;
        read_past_bad_pages(&*file, 0, SLOT * 2).unwrap_or_default()
    });
    let mut newest = None;
    for slot in bytes.chunks(SLOT) {
        match decode(slot) {
            Some((version, _, _)) if version > FORMAT => look.later = Some(version),
            Some((_, generation, payload)) => {
                look.sound += 1;
                if generation > look.generation {
                    look.generation = generation;
                    newest = Some(payload.to_vec());
                }
            }
            None => look.unsound += u64::from(slot.iter().any(|byte| *byte != 0)),
        }
    }
    Ok((look, newest))
}

impl Slots {
    /// Opens or makes the file.
    pub(super) fn open(storage: &dyn Storage, path: &Path) -> io::Result<(Self, Held)> {
        let file = match storage.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = storage.create(path)?;
                // Written out, so that later saves need no new blocks.
                file.write_at(&vec![0; SLOT * 2], 0)?;
                file.sync()?;
                return Ok((Self { file, generation: 0, safe: 0 }, Held::Nothing));
            }
            Err(error) => return Err(error),
        };
        let bytes = read_past_bad_pages(&*file, 0, SLOT * 2)?;
        let mut held = if bytes.iter().all(|byte| *byte == 0) { Held::Nothing } else { Held::Damaged };
        let (mut generation, mut safe) = (0, 0);
        for (slot, at) in bytes.chunks(SLOT).zip(0..) {
            match decode(slot) {
                Some((version, _, _)) if version > FORMAT => {
                    return Ok((Self { file, generation, safe }, Held::Later(version)));
                }
                Some((_, found, payload)) if found > generation => {
                    generation = found;
                    safe = at;
                    held = Held::Payload(payload.to_vec());
                }
                _ => {}
            }
        }
        if bytes.len() < SLOT * 2 {
            file.write_at(&vec![0; SLOT * 2 - bytes.len()], wide(bytes.len()))?;
        }
        // After a kill the newest slot may be only in memory, and from now on it is relied upon. It is written over itself, because
        // after a sync that failed Linux holds its page for clean.
        if let (Held::Payload(_), Some(newest)) = (&held, bytes.chunks(SLOT).zip(0..).find(|(_, at)| *at == safe)) {
            file.write_at(newest.0, safe * wide(SLOT))?;
        }
        file.sync()?;
        Ok((Self { file, generation, safe }, held))
    }

    /// Overwrites the slot that nobody relies on. Not synced.
    pub(super) fn save(&mut self, payload: &[u8]) -> io::Result<()> {
        let generation = self.generation + 1;
        let mut slot = Vec::with_capacity(HEADER + payload.len());
        slot.put_u32_le(MAGIC);
        slot.put_u16_le(FORMAT);
        slot.put_u16_le(0);
        slot.put_u64_le(generation);
        slot.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        slot.put_u32_le(crc32c::crc32c_append(crc32c::crc32c(&slot), payload));
        slot.put_slice(payload);
        self.file.write_at(&slot, (1 - self.safe) * wide(SLOT))?;
        self.generation = generation;
        Ok(())
    }

    /// Makes the last save durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.safe = 1 - self.safe;
        Ok(())
    }
}

/// The [`SlotFile`] in a log's folder in which its link may keep what is under way at the remote.
pub const EXCHANGES: &str = "exchanges";

/// The file in a link's folder that says in a word what the link is or was (`mqtt`, `rabbitmq`, `kafka`). The gateway writes it.
pub const KIND: &str = "kind";

/// A small file of its own for what another part has to keep across a kill or a power cut: overwritten in place, never torn.
pub struct SlotFile {
    slots: Slots,
    /// Nobody else writes to it until then.
    _lock: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for SlotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotFile").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl SlotFile {
    /// Bytes that it holds at most.
    pub const BYTES_MAX: usize = PAYLOAD_MAX;

    /// Opens or makes the file, whose folder has to be there. Answers what was saved last, if anything was. It is this one's alone until it is
    /// dropped.
    ///
    /// # Errors
    /// The file cannot be read or made, is damaged, was written by a later version, or another one has it ([`io::ErrorKind::WouldBlock`]).
    pub fn open(path: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let is_new = !path.exists();
        let lock = Disk.lock(path).map_err(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                return error;
            }
            io::Error::new(error.kind(), format!("{}: a save from before still goes on", path.display()))
        })?;
        let (slots, held) = Slots::open(&Disk, path)?;
        if is_new && let Some(folder) = path.parent() {
            Disk.sync_dir(folder)?;
        }
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        match held {
            Held::Payload(payload) => Ok((Self { slots, _lock: lock }, Some(payload))),
            Held::Nothing => Ok((Self { slots, _lock: lock }, None)),
            Held::Damaged => Err(wrong(format!("{}: damaged", path.display()))),
            Held::Later(version) => {
                Err(wrong(format!("{}: written by a later version (format {version})", path.display())))
            }
        }
    }

    /// Overwrites what was saved; with `sync` a power cut does not take it back.
    ///
    /// # Errors
    /// The write or the sync, or more than [`SlotFile::BYTES_MAX`].
    pub fn save(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than a slot holds"));
        }
        self.slots.save(bytes)?;
        if sync { self.slots.sync() } else { Ok(()) }
    }
}

/// Version, generation and payload of a sound slot.
pub(super) fn decode(slot: &[u8]) -> Option<(u16, u64, &[u8])> {
    let (mut head, rest) = slot.split_at_checked(HEADER)?;
    let sealed = head.get(..20)?;
    if head.get_u32_le() != MAGIC {
        return None;
    }
    let version = head.get_u16_le();
    head.advance(2);
    let generation = head.get_u64_le();
    let payload = rest.get(..usize::try_from(head.get_u32_le()).ok()?)?;
    let sound = crc32c::crc32c_append(crc32c::crc32c(sealed), payload) == head.get_u32_le();
    sound.then_some((version, generation, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> (Slots, Option<Vec<u8>>) {
        let (slots, held) = Slots::open(&Disk, path).unwrap();
        match held {
            Held::Payload(payload) => (slots, Some(payload)),
            Held::Nothing | Held::Damaged | Held::Later(_) => (slots, None),
        }
    }

    #[test]
    fn r07_the_last_synced_save_survives_any_number_of_torn_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let (mut slots, held) = open(&path);
        assert_eq!(held, None);
        for round in 0_u8..4 {
            slots.save(&[round; 9]).unwrap();
            slots.sync().unwrap();
            for later in [100, 101, 102] {
                slots.save(&[later; 9]).unwrap();
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let torn = usize::try_from(1 - slots.safe).unwrap() * SLOT;
            bytes[torn..torn + 40].fill(9);
            std::fs::write(&path, bytes).unwrap();
            let (reopened, held) = open(&path);
            assert_eq!(held, Some(vec![round; 9]));
            slots = reopened;
        }
        slots.save(b"the end").unwrap();
        drop(slots);
        assert_eq!(open(&path).1.as_deref(), Some(b"the end".as_slice()));
    }
}
