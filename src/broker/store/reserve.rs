//! Room on the disk that is set aside for when it is full (R4): a file beside the store, deleted then, and made anew when there is
//! room for it twice, so that a disk that is just full does not have it come and go.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Its size. The log's 4 MiB have to fit into the file, and then what is written anew into the log and once more into the file.
pub(super) const RESERVE: u64 = 8 << 20;

/// What is written at once where the file system cannot allocate.
const CHUNK: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Reserve {
    dir: PathBuf,
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// The one of the store in `dir`, as an earlier run left it.
    pub(super) fn beside(dir: &Path) -> Self {
        let path = dir.join("broker.reserve");
        let held = fs::metadata(&path).is_ok_and(|file| file.len() == RESERVE && file.blocks() * 512 >= RESERVE);
        Self { dir: dir.to_owned(), path, held }
    }

    /// Whether the room is set aside.
    pub(super) const fn is_held(&self) -> bool {
        self.held
    }

    /// Gives the room to whoever writes next. Answers whether there was any.
    pub(super) fn give_up(&mut self) -> bool {
        self.held && {
            self.held = false;
            self.remove()
        }
    }

    /// Sets the room aside if there is enough. Answers whether it is.
    pub(super) fn make(&mut self) -> bool {
        if !self.held {
            self.held = self.try_make().unwrap_or_else(|error| {
                tracing::warn!(%error, path = %self.path.display(), "the reserve of the broker's store cannot be made");
                self.remove();
                false
            });
        }
        self.held
    }

    fn try_make(&self) -> io::Result<bool> {
        // What a crash left half made counts as room.
        self.remove();
        let disk = nix::sys::statvfs::statvfs(&self.dir)?;
        let unit: u64 = disk.fragment_size();
        if disk.blocks_available() * unit < 2 * RESERVE {
            return Ok(false);
        }
        let mut file = File::create_new(&self.path)?;
        allocate(&mut file)?;
        file.sync_all()?;
        Ok(true)
    }

    /// Whether there was a file and is none now.
    fn remove(&self) -> bool {
        match fs::remove_file(&self.path) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %self.path.display(), "the reserve of the broker's store cannot be deleted");
                }
                false
            }
        }
    }
}

/// Room on the disk, and not only a length: by the system where it can, else bytes that no file system packs.
fn allocate(file: &mut File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};
        let len = i64::try_from(RESERVE).map_err(io::Error::other)?;
        match fallocate(&*file, FallocateFlags::empty(), 0, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    let mut written = 0;
    while written < RESERVE {
        let chunk: Vec<u8> =
            std::iter::repeat_with(rand::random::<u64>).take(CHUNK / 8).flat_map(u64::to_le_bytes).collect();
        file.write_all(&chunk)?;
        written += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r04_room_is_set_aside_found_again_and_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::beside(dir.path());
        assert!(!reserve.is_held() && reserve.make() && reserve.is_held());
        let file = dir.path().join("broker.reserve");
        assert!(fs::metadata(&file).unwrap().blocks() * 512 >= RESERVE, "really allocated");
        let mut found = Reserve::beside(dir.path());
        assert!(found.is_held() && found.give_up() && !file.exists());
        assert!(!found.give_up() && !found.is_held(), "there is nothing left to give");
        assert!(found.make() && file.exists());
    }

    #[test]
    fn r04_a_file_that_is_no_room_is_none_and_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker.reserve");
        for len in [RESERVE, RESERVE / 2] {
            // A hole of that length takes nothing from the disk.
            File::create(&path).unwrap().set_len(len).unwrap();
            let mut reserve = Reserve::beside(dir.path());
            assert!(!reserve.is_held() && !reserve.give_up(), "{len}");
            assert!(reserve.make() && fs::metadata(&path).unwrap().blocks() * 512 >= RESERVE);
        }
    }

    #[test]
    fn a_reserve_that_cannot_be_made_is_not_held() {
        let mut reserve = Reserve::beside(Path::new("/nonexistent/tidegate"));
        assert!(!reserve.make() && !reserve.is_held());
    }
}
