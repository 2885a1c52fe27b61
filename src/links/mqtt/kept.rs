//! The file that a link's QoS 2 exchanges are kept in (R25): `exchanges`, beside the cursor of its buffer, as small, and as safe from a torn
//! write and a full disk.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use super::exchanges::Exchanges;
use crate::buffer::{Lane, Lanes, Offset, SlotFile};

/// A link's exchanges and their file. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Kept(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    lanes: Lanes,
    table: Mutex<Table>,
    file: Mutex<File>,
}

#[derive(Debug, Default)]
struct Table {
    exchanges: Exchanges,
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

/// A look at the exchanges.
pub(super) struct Held<'a>(MutexGuard<'a, Table>);

impl std::ops::Deref for Held<'_> {
    type Target = Exchanges;
    fn deref(&self) -> &Exchanges {
        &self.0.exchanges
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Exchanges {
        &mut self.0.exchanges
    }
}

impl Kept {
    /// Of the link with these logs, in whose folder `path` lies.
    pub(super) fn new(path: PathBuf, lanes: &Lanes) -> Self {
        let inner = Inner { path, lanes: lanes.clone(), table: Mutex::default(), file: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// The exchanges. Not to be held across an `.await`.
    pub(super) fn exchanges(&self) -> Held<'_> {
        Held(self.0.table.lock())
    }

    /// Names the link's buffer.
    pub(super) fn buffer(&self) -> &str {
        self.0.lanes.id()
    }

    /// How far each lane's cursor is.
    pub(super) fn floors(&self) -> Vec<(Lane, Offset)> {
        let floor = |(lane, buffer): (Lane, &crate::buffer::Buffer)| {
            let streams = buffer.streams(None);
            (lane, streams.backlog.map_or(streams.live, |(from, _)| from))
        };
        self.0.lanes.iter().map(floor).collect()
    }

    /// Reads, once, what an earlier process left.
    ///
    /// # Errors
    /// The file can be neither read nor made.
    pub(super) async fn read(&self) -> io::Result<()> {
        let kept = self.clone();
        blocking(tokio::task::spawn_blocking(move || kept.read_here())).await
    }

    /// Writes down the exchanges as they are now. When it ends well, a power cut does not take it back. It goes on where the handle is dropped.
    pub(super) fn save(&self) -> JoinHandle<io::Result<()>> {
        let floors = self.floors();
        let (snapshot, bytes) = {
            let mut table = self.0.table.lock();
            table.exchanges.pass(&floors);
            table.snapshot += 1;
            (table.snapshot, table.exchanges.encode())
        };
        let kept = self.clone();
        tokio::task::spawn_blocking(move || kept.save_here(snapshot, &bytes))
    }

    fn read_here(&self) -> io::Result<()> {
        let mut file = self.0.file.lock();
        if file.is_read {
            return Ok(());
        }
        let (mut slots, held) = match SlotFile::open(&self.0.path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // Nothing is lost by it: what was under way is sent again.
                let aside = self.0.path.with_extension("damaged");
                tracing::error!(%error, aside = %aside.display(), "the QoS 2 exchanges that were under way are not known any more: what the remote had not confirmed may come to it twice");
                std::fs::rename(&self.0.path, aside)?;
                SlotFile::open(&self.0.path)?
            }
            other => other?,
        };
        let mut found = held.as_deref().and_then(Exchanges::decode).unwrap_or_default();
        let ends: Vec<(Lane, Offset)> = self.0.lanes.iter().map(|(lane, buffer)| (lane, buffer.end())).collect();
        if found.forget_beyond(&ends) {
            // At once: soon other records have these numbers.
            slots.save(&found.encode(), true)?;
        }
        self.0.table.lock().exchanges = found;
        (file.slots, file.is_read) = (Some(slots), true);
        Ok(())
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
