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
        let (snapshot, bytes) = {
            let mut now = self.0.now.lock();
            now.snapshot += 1;
            (now.snapshot, now.table.encode())
        };
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.save_here(snapshot, &bytes))
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
