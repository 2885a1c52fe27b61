//! Taking an export into a link's buffer: see module `carry`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::log::Log;
use super::super::state::Verdict;
use super::super::storage::{Disk, Storage};
use super::super::{Config, Offset, Record, Refused, SyncMode, WhenFull, recovery};
use super::carry::{CarryError, Imports, Intent, Item, Manifest, read_file};
use super::ranges::Ranges;
use crate::clock::Clock;

/// Records and bytes of a batch: one sync of the log and two of `imports` for each.
const BATCH_RECORDS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Turns of the writer's work after which a record that still has to wait is refused.
const TURNS_MAX: usize = 4;

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// What the file holds.
    pub manifest: Manifest,
    /// Records that were appended.
    pub taken: u64,
    /// Records that were there already, by an earlier import.
    pub before: u64,
}

/// Verifies the whole file, then appends what has not been taken before. `map` may change a record's body on its way. The
/// log must not be open; nothing is dropped to make room.
///
/// # Errors
/// [`CarryError`]. What was taken until then is, and a repeat goes on from there.
pub fn import(
    config: &Config,
    window: usize,
    clock: Arc<dyn Clock>,
    file: &Path,
    map: impl FnMut(&Manifest, Bytes) -> Bytes,
) -> Result<Imported, CarryError> {
    import_on(&(Arc::new(Disk) as Arc<dyn Storage>), config, window, clock, file, map)
}

pub(in crate::buffer) fn import_on(
    storage: &Arc<dyn Storage>,
    config: &Config,
    window: usize,
    clock: Arc<dyn Clock>,
    path: &Path,
    mut map: impl FnMut(&Manifest, Bytes) -> Bytes,
) -> Result<Imported, CarryError> {
    let manifest = read_file(&**storage, path, |_| ControlFlow::Continue(()))?;
    // Whatever the link's own way to sync is: `imports` says that a record is here only when it is durable.
    let config = Config { when_full: WhenFull::Reject, sync: SyncMode::Group, ..config.clone() };
    let (log, _recovery) = recovery::open(Arc::clone(storage), &config, window, clock)?;
    let end = log.shared.state.lock().next;
    let imports = match Imports::open(&**storage, &config.dir, end) {
        Ok(imports) => imports,
        Err(error) => {
            log.finish();
            return Err(CarryError::Failed(error.to_string()));
        }
    };
    let own = log.identity.uuid == manifest.uuid;
    let mut import = Import { log, imports, manifest, batch: Vec::new(), bytes: 0, since: None, taken: 0, before: 0 };
    let mut outcome = if own { Err(CarryError::Own(path.to_owned())) } else { Ok(()) };
    if outcome.is_ok() {
        let read = read_file(&**storage, path, |item| {
            outcome = match item {
                Item::Record(record) => {
                    let body = map(&import.manifest, record.body);
                    import.offer(Record { body, ..record })
                }
                Item::Loss => import.pass_loss(),
            };
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome = outcome.and_then(|()| read.map(drop)).and_then(|()| import.flush());
    }
    let Import { log, manifest, taken, before, .. } = import;
    log.finish();
    outcome.map(|()| Imported { manifest, taken, before })
}

/// An import under way.
struct Import {
    log: Log,
    imports: Imports,
    manifest: Manifest,
    batch: Vec<Record>,
    bytes: usize,
    /// The offset behind the last record that is dealt with.
    since: Option<u64>,
    taken: u64,
    before: u64,
}

impl Import {
    fn offer(&mut self, record: Record) -> Result<(), CarryError> {
        if self.imports.has(self.manifest.uuid, record.offset.0) {
            self.flush()?;
            self.since = Some(record.offset.0 + 1);
            self.before += 1;
            return Ok(());
        }
        self.since.get_or_insert(record.offset.0);
        self.bytes += record.body.len();
        self.batch.push(record);
        if self.batch.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Records are missing here, and may still come in another file.
    fn pass_loss(&mut self) -> Result<(), CarryError> {
        self.flush()?;
        self.since = None;
        Ok(())
    }

    /// Notes, appends, syncs, notes.
    fn flush(&mut self) -> Result<(), CarryError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let Some(last) = batch.last().map(|record| record.offset) else { return Ok(()) };
        let failed = |error: std::io::Error| CarryError::Failed(error.to_string());
        let at = self.log.shared.state.lock().next;
        let intent = |offsets| Intent { uuid: self.manifest.uuid, at, offsets };
        let mut offsets = Ranges::default();
        batch.iter().for_each(|record| offsets.add(record.offset.0, record.offset.0 + 1));
        self.imports.intend(intent(offsets)).map_err(failed)?;
        let mut appended = Ranges::default();
        let mut refused = None;
        for record in &batch {
            match self.append(record) {
                Ok(()) => appended.add(record.offset.0, record.offset.0 + 1),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        self.log.commit();
        self.log.tend();
        let count = appended.len();
        let progress = self.log.shared.mark.progress();
        if progress.done < at + count {
            let why = progress.failed.map_or_else(|| "the disk is full".to_owned(), |reason| reason.to_string());
            return Err(CarryError::Failed(why));
        }
        let since = self.since.unwrap_or(last.0);
        if refused.is_some() {
            self.imports.intend(Intent { uuid: self.manifest.uuid, at, offsets: appended }).map_err(failed)?;
        }
        self.imports.done(since).map_err(failed)?;
        self.since = Some(last.0 + 1);
        self.taken += count;
        match refused {
            None => Ok(()),
            Some(Refused::Full) => Err(CarryError::Full { taken: self.taken }),
            Some(other) => Err(CarryError::Failed(other.to_string())),
        }
    }

    fn append(&mut self, record: &Record) -> Result<(), Refused> {
        for _ in 0..TURNS_MAX {
            match self.log.shared.judge(record.body.len()) {
                Verdict::Granted(need) => {
                    let _offset: Offset = self.log.shared.append(need, &[&record.body], record.expires);
                    return Ok(());
                }
                Verdict::Refused(refused) => return Err(refused),
                Verdict::DroppedNewest => return Err(Refused::Full),
                Verdict::Wait => {
                    self.log.commit();
                    self.log.tend();
                }
            }
        }
        Err(Refused::Full)
    }
}
