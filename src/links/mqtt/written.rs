//! A table of what is under way, and the small file that it is written down in (R25): overwritten in place, safe from a torn write and a full
//! disk.
//!
//! **An older state never replaces a newer one.** Saves of one table may end in any order: each has a number, and one that comes too late
//! writes nothing. One that hangs outlives its connection, and its link where that is read anew: as long as it may still write, the
//! file is locked, and the next table of that file is not to be read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use crate::buffer::SlotFile;

/// What is written down.
pub(super) trait Table: Send + Sized + 'static {
    /// What is said where the file is damaged, and begun anew.
    const DAMAGED: &'static str;

    /// As bytes: at most [`SlotFile::BYTES_MAX`].
    fn encode(&self) -> Vec<u8>;

    /// `None`: not what [`Table::encode`] makes, or of a later format.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// See the module. Clones are the same.
#[derive(Debug)]
pub(super) struct Written<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    path: PathBuf,
    now: Mutex<Now<T>>,
    file: Mutex<File>,
}

#[derive(Debug)]
struct Now<T> {
    table: T,
    /// Of the snapshot that was taken last.
    snapshot: u64,
}

#[derive(Debug, Default)]
struct File {
    /// `None`: to be opened (again).
    slots: Option<SlotFile>,
    /// What the file held has been read.
    is_read: bool,
    /// Of the snapshot that it holds.
    snapshot: u64,
}

/// A look at the table. Not to be held across an `.await`.
pub(super) struct Held<'a, T>(MutexGuard<'a, Now<T>>);

impl<T> std::ops::Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.table
    }
}

impl<T> std::ops::DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.table
    }
}

impl<T> Clone for Written<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Table> Written<T> {
    /// In this file, which is not looked into yet. Where it holds nothing, `table` it is.
    pub(super) fn new(path: PathBuf, table: T) -> Self {
        let now = Mutex::new(Now { table, snapshot: 0 });
        Self(Arc::new(Inner { path, now, file: Mutex::default() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    pub(super) fn table(&self) -> Held<'_, T> {
        Held(self.0.now.lock())
    }

    /// Reads, once, what an earlier process left. `mend` looks at it first, and says whether it is to be written down at once as it then is.
    ///
    /// # Errors
    /// The file can be neither read nor made, or a save of an earlier table may still write to it.
    pub(super) async fn read(&self, mend: impl FnOnce(&mut T) -> bool + Send + 'static) -> io::Result<()> {
        let this = self.clone();
        blocking(tokio::task::spawn_blocking(move || this.read_here(mend))).await
    }

    fn read_here(&self, mend: impl FnOnce(&mut T) -> bool) -> io::Result<()> {
        let mut file = self.0.file.lock();
        if file.is_read {
            return Ok(());
        }
        let (mut slots, held) = match SlotFile::open(&self.0.path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let aside = self.0.path.with_extension("damaged");
                tracing::error!(%error, aside = %aside.display(), "{}", T::DAMAGED);
                std::fs::rename(&self.0.path, aside)?;
                SlotFile::open(&self.0.path)?
            }
            other => other?,
        };
        let mut now = self.0.now.lock();
        if let Some(found) = held.as_deref().and_then(T::decode) {
            now.table = found;
        }
        let mended = mend(&mut now.table).then(|| now.table.encode());
        drop(now);
        if let Some(mended) = mended {
            slots.save(&mended, true)?;
        }
        (file.slots, file.is_read) = (Some(slots), true);
        Ok(())
    }

    /// Writes down the table as it is now. When it ends well, a power cut does not take it back. It goes on where the handle is dropped.
    pub(super) fn save(&self) -> JoinHandle<io::Result<()>> {
        let (snapshot, bytes) = self.snapshot();
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.save_here(snapshot, &bytes))
    }

    fn snapshot(&self) -> (u64, Vec<u8>) {
        let mut now = self.0.now.lock();
        now.snapshot += 1;
        (now.snapshot, now.table.encode())
    }

    fn save_here(&self, snapshot: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.0.file.lock();
        if file.snapshot >= snapshot {
            return Ok(());
        }
        // After a write or a sync that failed it is opened anew, which writes what it holds over itself.
        let mut slots = match file.slots.take() {
            Some(slots) => slots,
            None => SlotFile::open(&self.0.path)?.0,
        };
        slots.save(bytes, true)?;
        (file.slots, file.snapshot) = (Some(slots), snapshot);
        Ok(())
    }
}

/// The end of what runs on a thread that may block.
pub(super) async fn blocking(task: JoinHandle<io::Result<()>>) -> io::Result<()> {
    task.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Word(&'static str);

    impl Table for Word {
        const DAMAGED: &'static str = "damaged";

        fn encode(&self) -> Vec<u8> {
            self.0.into()
        }

        fn decode(bytes: &[u8]) -> Option<Self> {
            ["before", "old", "new"].into_iter().find(|word| word.as_bytes() == bytes).map(Self)
        }
    }

    fn read(path: &Path) -> io::Result<Written<Word>> {
        let written = Written::new(path.to_owned(), Word("before"));
        written.read_here(|_| false).map(|()| written)
    }

    /// What a save has to write, which hangs then.
    fn save_begun(written: &Written<Word>, word: &'static str) -> (u64, Vec<u8>) {
        *written.table() = Word(word);
        written.snapshot()
    }

    #[test]
    fn r25_a_save_that_comes_late_does_not_replace_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let written = read(&path).unwrap();
        let (late, next) = (save_begun(&written, "old"), save_begun(&written, "new"));
        written.save_here(next.0, &next.1).unwrap();
        written.save_here(late.0, &late.1).unwrap();
        drop(written);
        assert_eq!(*read(&path).unwrap().table(), Word("new"));
    }

    #[test]
    fn r25_a_save_that_outlives_its_link_is_waited_for_by_the_next_one_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let first = read(&path).unwrap();
        let late = save_begun(&first, "old");
        // A reload: what reads now goes by what is soon replaced.
        let busy = read(&path).map(|next| {
            let (snapshot, bytes) = save_begun(&next, "new");
            next.save_here(snapshot, &bytes).unwrap();
        });
        first.save_here(late.0, &late.1).unwrap();
        drop(first);
        assert_eq!(*read(&path).unwrap().table(), Word("old"), "{busy:?}");
        assert_eq!(busy.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
