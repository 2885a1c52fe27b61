//! The file system as the log sees it: a trait, so that the tests can put a disk behind it that tears writes, loses
//! what was not synced, fails, fills up and flips bits. Knows no format.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::unistd::Whence;

/// Bytes up to which parts are joined before they are written.
const PARTS_COPIED: usize = 64 << 10;
/// What Linux takes in one call (`IOV_MAX`).
const PARTS_AT_ONCE: usize = 1024;

/// Room on the file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    /// What an unprivileged process can still use.
    pub(super) free: u64,
    /// The whole.
    pub(super) total: u64,
}

/// Where a file's last hole begins, or the file ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    pub(super) end: u64,
    /// Holes are in multiples of it.
    pub(super) unit: u64,
}

/// Files and folders.
pub(super) trait Storage: Send + Sync + Debug {
    /// Makes the folder and its parents.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names of what is in the folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a file that is not there yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>>;
    /// Opens a file that is there, to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>>;
    /// Opens a file that is there, to read.
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn Handle>>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the entries of a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Room on the file system that the folder is on.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Takes the lock file for as long as the answer lives; `WouldBlock` when somebody else has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
}

/// An open file. Positions are explicit, so that a reader and the writer never share one.
pub(super) trait Handle: Send + Sync + Debug {
    /// Reads up to a buffer's worth; 0 at the end.
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize>;
    /// Writes all.
    fn write_at(&self, bytes: &[u8], pos: u64) -> io::Result<()>;
    /// Writes all parts, one behind the other.
    fn write_parts_at(&self, parts: &[&[u8]], pos: u64) -> io::Result<()> {
        self.write_at(&parts.concat(), pos)
    }
    /// Cuts (or extends).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// What of it is no hole.
    fn filled(&self) -> io::Result<Filled> {
        self.len().map(|end| Filled { end, unit: 1 })
    }
    /// Makes the file longer than what is in it, by zeros that take no room. `false`: here they would, and the file is as it was.
    fn stretch(&self, len: u64) -> io::Result<bool> {
        self.set_len(len).map(|()| true)
    }
    /// Makes the contents durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Its length.
    fn len(&self) -> io::Result<u64>;
}

/// Reads `len` bytes at `pos`, fewer only where the file ends.
pub(super) fn read_up_to(file: &dyn Handle, pos: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut got = 0;
    while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, pos + super::wide(got)) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// How long a file is without what it was made longer by, if what is sound in it ends at `data_end`. Zeros behind that count where something
/// was there: a disk that has lost what it held shows zeros, or cannot be read, and has no hole there.
pub(super) fn end_behind(file: &dyn Handle, data_end: u64) -> io::Result<u64> {
    let Filled { end, unit } = file.filled()?;
    let tail = end.saturating_sub(data_end).min(unit);
    let Ok(len) = usize::try_from(tail) else { return Ok(end) };
    // The rest of the last unit is zeros although nothing was there.
    let Ok(bytes) = read_up_to(file, end - tail, len) else { return Ok(end) };
    let zeros = super::wide(bytes.iter().rev().take_while(|byte| **byte == 0).count());
    Ok(if zeros < unit { (end - zeros).max(data_end) } else { end })
}

/// What a disk reads at once, and loses at once where it cannot.
const PAGE: u64 = 4_096;

/// Reads `len` bytes at `pos`, as [`read_up_to`] does; pages that cannot be read, tried again, are zeros: damage, which the checksums
/// find. An error only where nothing of the file can be read.
pub(super) fn read_past_bad_pages(file: &dyn Handle, pos: u64, len: usize) -> io::Result<Vec<u8>> {
    match read_up_to(file, pos, len) {
        Ok(bytes) => return Ok(bytes),
        Err(error) => tracing::warn!(%error, pos, "a read failed; it is tried again, page by page"),
    }
    let whole = file.len()?.saturating_sub(pos).min(super::wide(len));
    let (mut bytes, mut read, mut trouble) = (Vec::new(), false, None);
    while super::wide(bytes.len()) < whole {
        let at = pos + super::wide(bytes.len());
        let page = (PAGE - at % PAGE).min(whole - super::wide(bytes.len()));
        let page = usize::try_from(page).unwrap_or(len);
        match read_up_to(file, at, page).or_else(|_once| read_up_to(file, at, page)) {
            Ok(got) if got.is_empty() => break,
            Ok(got) => {
                read = true;
                bytes.extend(got);
            }
            Err(error) => {
                tracing::error!(%error, at, "a page cannot be read: what lies in it is lost");
                bytes.resize(bytes.len() + page, 0);
                trouble = Some(error);
            }
        }
    }
    // Where another place of the file can be read it is this one that is broken, however much of it.
    let elsewhere = [0, file.len()?.saturating_sub(8)];
    match trouble {
        Some(error) if !read && elsewhere.iter().all(|at| read_up_to(file, *at, 8).is_err()) => Err(error),
        _ => Ok(bytes),
    }
}

/// Whether an error says that the disk (or the quota on it) is full.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a folder, and those above it that are not there, and syncs the entry of each: a power cut does not take what is in them.
///
/// # Errors
/// What the system says.
pub fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), make_dir)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    sync_dir(parent.unwrap_or_else(|| Path::new(".")))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// The machine's file system.
#[derive(Debug)]
pub(super) struct Disk;

impl Storage for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        make_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).create_new(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(File::open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = nix::sys::statvfs::statvfs(dir).map_err(io::Error::from)?;
        let unit: u64 = stat.fragment_size();
        Ok(Space { free: stat.blocks_available() * unit, total: stat.blocks() * unit })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(Locked(file))),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A lock file that is held. It is given back by name, and not by closing the file: a program that is just being started (a link's
/// `command`) holds a copy of each open file until it begins, and with it the lock.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "a buffer's lock could not be given back; it ends with the file");
        }
    }
}

impl Handle for File {
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, pos)
    }

    fn write_at(&self, bytes: &[u8], pos: u64) -> io::Result<()> {
        self.write_all_at(bytes, pos)
    }

    fn write_parts_at(&self, parts: &[&[u8]], mut pos: u64) -> io::Result<()> {
        // Little is copied faster than it is described to the kernel.
        if parts.iter().map(|part| part.len()).sum::<usize>() <= PARTS_COPIED {
            return Handle::write_at(self, &parts.concat(), pos);
        }
        for group in parts.chunks(PARTS_AT_ONCE) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
            let mut left = slices.as_mut_slice();
            while !left.is_empty() {
                let at = i64::try_from(pos).map_err(io::Error::other)?;
                match nix::sys::uio::pwritev(self, left, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        pos += super::wide(written);
                        IoSlice::advance_slices(&mut left, written);
                    }
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn filled(&self) -> io::Result<Filled> {
        let (len, unit) = self.metadata().map(|metadata| (metadata.len(), metadata.blksize()))?;
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).ok()?;
            nix::unistd::lseek(self, at, whence).ok().and_then(|at| u64::try_from(at).ok())
        };
        let mut at = 0;
        // A file system that knows no holes has one at the end.
        while let Some(hole) = seek(at, Whence::SeekHole).filter(|hole| *hole < len) {
            match seek(hole, Whence::SeekData).filter(|data| *data < len) {
                Some(data) => at = data,
                None => return Ok(Filled { end: hole, unit }),
            }
        }
        Ok(Filled { end: len, unit })
    }

    fn stretch(&self, len: u64) -> io::Result<bool> {
        let before = self.metadata()?;
        Self::set_len(self, len)?;
        // FAT has no holes: it writes the zeros.
        let taken = self.metadata()?.blocks().saturating_sub(before.blocks()) * 512;
        let is_hole = taken < len.saturating_sub(before.len()) / 2;
        if !is_hole {
            Self::set_len(self, before.len())?;
        }
        Ok(is_hole)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_longer_by_what_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let file = Disk.create(&dir.path().join("file")).unwrap();
        file.write_at(&[7; 100], 0).unwrap();
        let room = |dir: &Path| std::fs::metadata(dir.join("file")).unwrap().blocks();
        let before = room(dir.path());
        // Where the file system writes the zeros it is as it was.
        let is_longer = file.stretch(1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), if is_longer { 1 << 20 } else { 100 });
        assert!(room(dir.path()) < before.max(8) + 1024, "{before}, then {}", room(dir.path()));
        assert_eq!(end_behind(&*file, 96).unwrap(), 100);
        assert_eq!(end_behind(&*file, 104).unwrap(), if is_longer { 104 } else { 100 });
        // What is zeros, and no hole, was something.
        file.write_at(&[0; 1 << 16], 1 << 17).unwrap();
        assert_eq!(end_behind(&*file, 104).unwrap(), (1 << 17) + (1 << 16));
    }

    #[test]
    fn a_lock_is_given_back_although_a_program_that_is_being_started_has_a_copy_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let held = Disk.lock(&path).unwrap();
        let copy = held.downcast_ref::<Locked>().unwrap().0.try_clone().unwrap();
        assert_eq!(Disk.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(Disk.lock(&path).is_ok());
        drop(copy);
    }
}
