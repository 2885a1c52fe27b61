//! The log without its writer thread: who appends also commits. For tools that work on a log while no gateway does, and
//! for measuring what the log costs by itself.

use std::sync::Arc;

use super::log::Log;
use super::state::Verdict;
use super::storage::{Disk, Storage};
use super::{Config, Offset, OpenError, Recovery, Refused, Stats, recovery};
use crate::clock::{Clock, WallMs};

/// Turns of the writer's work after which an offer that still has to wait is refused: two make space where there is any.
const TURNS_MAX: usize = 4;

/// See the module. Dropped without [`Direct::close`] it is a log whose process was killed.
#[derive(Debug)]
pub struct Direct {
    log: Log,
}

impl Direct {
    /// Opens or makes the log in `config.dir` and recovers it. `window` as for [`super::Buffer::open`].
    ///
    /// # Errors
    /// [`OpenError`]; never because of damage.
    pub fn open(config: &Config, window: usize, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), OpenError> {
        Self::open_on(Arc::new(Disk), config, window, clock)
    }

    fn open_on(
        storage: Arc<dyn Storage>,
        config: &Config,
        window: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), OpenError> {
        let (log, recovery) = recovery::open(storage, config, window, clock)?;
        Ok((Self { log }, recovery))
    }

    /// Stages one record, the parts one behind the other; what was staged before is committed where it has to make
    /// room. `None`: `when_full: drop_newest` has dropped it, counted.
    ///
    /// # Errors
    /// [`Refused`]; with `when_full: block` an offer that would wait is refused as well.
    pub fn append(&mut self, parts: &[&[u8]], expires: Option<WallMs>) -> Result<Option<Offset>, Refused> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        for _ in 0..TURNS_MAX {
            match self.log.shared.judge(bytes) {
                Verdict::Granted(need) => return Ok(Some(self.log.shared.append(need, parts, expires))),
                Verdict::DroppedNewest => return Ok(None),
                Verdict::Refused(refused) => return Err(refused),
                Verdict::Wait => self.turn(),
            }
        }
        Err(Refused::Full)
    }

    /// Writes and syncs what is staged, as `sync` says. Answers the mark: everything below is as safe as the mode
    /// promises. Where the disk is full it is behind the last record, and the next commit tries again.
    ///
    /// # Errors
    /// [`Refused::Failed`].
    pub fn commit(&mut self) -> Result<Offset, Refused> {
        self.turn();
        let progress = self.log.shared.mark.progress();
        progress.failed.map_or(Ok(Offset(progress.done)), |reason| Err(Refused::Failed(reason)))
    }

    /// See [`Stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.log.shared.stats()
    }

    fn turn(&mut self) {
        self.log.commit();
        self.log.tend();
    }

    /// Writes and syncs what is staged and says in the files that the log was closed in good order.
    pub fn close(self) {
        self.log.finish();
    }
}
