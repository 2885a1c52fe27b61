//! A link's lanes (R14): up to three logs, each a segment chain with a cursor and a ledger of its own, that share the
//! link's quota, and the window of confirmations that may be unsaved (R9). A record of a high lane never waits behind a backlog of a lower one; order holds within a lane.
//!
//! The normal lane is the link's folder itself, `high/` and `low/` are folders in it. A lane exists when some route uses
//! it, or its folder is there. When the quota is used up and `when_full` is `drop_oldest`, the lowest lane gives up its
//! oldest records first; a new record of a lane that has nothing to give up, while higher ones fill the quota, is itself
//! what is dropped. No other policy gives up anything.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Buffer, Config, Ledger, Offset, OpenError, Recovery, quota, storage};
use crate::clock::Clock;

/// Which of a link's logs a record is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Read first.
    High,
    /// The link's folder itself.
    #[default]
    Normal,
    /// Read last, dropped first.
    Low,
}

impl Lane {
    /// In the order in which they are read.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// `high`, `normal`, `low`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The lane of this [`Lane::name`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }

    /// `LINK` or `LINK/LANE`, as the operator's tools name logs, taken apart; without a lane where that names none.
    #[must_use]
    pub fn split(named: &str) -> (&str, Option<Self>) {
        let parts = named.rsplit_once('/').and_then(|(link, lane)| Some((link, Some(Self::named(lane)?))));
        parts.unwrap_or((named, None))
    }

    /// The middle part of `tg-seq` (R11).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::High => 1,
            Self::Low => 2,
        }
    }

    /// Where the lane of the link in `link_dir` lies.
    #[must_use]
    pub fn folder(self, link_dir: &Path) -> PathBuf {
        match self {
            Self::Normal => link_dir.to_owned(),
            Self::High | Self::Low => link_dir.join(self.name()),
        }
    }

    /// The lanes that lie in a link's folder, in the order in which they are read; each is a log by itself.
    #[must_use]
    pub fn found_in(link_dir: &Path) -> Vec<(Self, PathBuf)> {
        let lanes = Self::ALL.into_iter().map(|lane| (lane, lane.folder(link_dir)));
        lanes.filter(|(_, folder)| folder.is_dir()).collect()
    }
}

/// How the operator's tools name the log in `dir`: `LINK`, or `LINK/LANE` for a lane beside the normal one. A lane lies in a
/// log's folder, so that a link may be called `high`.
pub(super) fn label(dir: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = name(dir);
    let is_log = |parent: &&Path| parent.join("meta").exists() || parent.join("cursors").exists();
    match dir.parent().filter(is_log) {
        Some(link) if Lane::named(&own).is_some_and(|lane| lane != Lane::Normal) => format!("{}/{own}", name(link)),
        Some(_) | None => own,
    }
}

/// How many confirmations of one lane may be unsaved before it saves them, so that one of them does when `window` are in all (R9).
pub(super) fn part_of(window: usize, lanes: usize) -> usize {
    window.checked_div(lanes).unwrap_or(window).max(1)
}

/// A record's place in its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which log.
    pub lane: Lane,
    /// Its place there.
    pub offset: Offset,
}

/// The lanes of one link. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// In the order in which they are read.
    lanes: Arc<[(Lane, Buffer)]>,
    normal: Buffer,
}

impl From<Buffer> for Lanes {
    /// A link without priorities.
    fn from(normal: Buffer) -> Self {
        Self { lanes: [(Lane::Normal, normal.clone())].into(), normal }
    }
}

impl Lanes {
    /// Opens or makes the normal lane, those of `used`, and those whose folder is there. `window` is how many
    /// confirmations may be unsaved in all of them together (R9).
    ///
    /// # Errors
    /// [`OpenError`]; never because of damage.
    pub fn open(
        config: &Config,
        window: usize,
        used: &[Lane],
        clock: &Arc<dyn Clock>,
    ) -> Result<(Self, Vec<(Lane, Recovery)>), OpenError> {
        let is_needed = |lane: &Lane| *lane == Lane::Normal || used.contains(lane) || lane.folder(&config.dir).is_dir();
        let needed: Vec<Lane> = Lane::ALL.into_iter().filter(is_needed).collect();
        let own_window = part_of(window, needed.len());
        let name = config.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (mut lanes, mut recoveries, mut normal): (Vec<(Lane, Buffer)>, _, _) = (Vec::new(), Vec::new(), None);
        for lane in needed {
            let own = Config { dir: lane.folder(&config.dir), ..config.clone() };
            let thread = if lane == Lane::Normal { name.clone() } else { format!("{name}-{}", lane.name()) };
            let opened = Buffer::open_as(&thread, Arc::new(storage::Disk), &own, own_window, Arc::clone(clock));
            let (buffer, recovery) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    // Whoever opens the link again finds none of them locked.
                    lanes.iter().for_each(|(_, buffer)| buffer.close_here());
                    return Err(error);
                }
            };
            if lane == Lane::Normal {
                normal = Some(buffer.clone());
            }
            lanes.push((lane, buffer));
            recoveries.push((lane, recovery));
        }
        quota::share(lanes.iter().map(|(lane, buffer)| (*lane, Arc::clone(&buffer.inner.shared))), window);
        let Some(normal) = normal else {
            let error = std::io::Error::other("no lane was opened");
            return Err(OpenError::Io { path: config.dir.clone(), error });
        };
        Ok((Self { lanes: lanes.into(), normal }, recoveries))
    }

    /// The log of a lane; the normal one where that lane does not exist.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> &Buffer {
        self.lanes.iter().find(|(own, _)| *own == lane).map_or(&self.normal, |(_, buffer)| buffer)
    }

    /// In the order in which they are read.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Lane, &Buffer)> {
        self.lanes.iter().map(|(lane, buffer)| (*lane, buffer))
    }

    /// Names the link's buffer for ever: the first part of `tg-seq` (R11).
    #[must_use]
    pub fn id(&self) -> &str {
        self.normal.id()
    }

    /// The sum of the lanes' ledgers. It balances when each of them does.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.iter().fold(Ledger::default(), |sum, (_, buffer)| sum.plus(&buffer.stats().ledger))
    }

    /// Counts records of a replay, see [`Buffer::count_replayed`].
    pub fn count_replayed(&self, records: u64) {
        self.normal.count_replayed(records);
    }

    /// The gateway is stopping, see [`Buffer::hurry`].
    pub fn hurry(&self) {
        self.iter().for_each(|(_, buffer)| buffer.hurry());
    }

    /// Seals all of them at once, see [`Buffer::seal`]: what has room in one may wait for room in another.
    pub async fn seal(&self) {
        self.iter().for_each(|(_, buffer)| buffer.inner.shared.seal(true));
        for (_, buffer) in self.iter() {
            buffer.seal().await;
        }
    }

    /// See [`Buffer::unseal`].
    pub fn unseal(&self) {
        self.iter().for_each(|(_, buffer)| buffer.unseal());
    }

    /// Whether all lanes of `used` are there.
    #[must_use]
    pub fn has_all(&self, used: &[Lane]) -> bool {
        used.iter().all(|lane| self.iter().any(|(own, _)| own == *lane))
    }

    /// Closes all of them, see [`Buffer::close`].
    pub async fn close(&self) {
        for (_, buffer) in self.iter() {
            buffer.close().await;
        }
    }

    /// The same for logs that nobody has used, on a thread that may block.
    pub fn close_here(&self) {
        self.iter().for_each(|(_, buffer)| buffer.close_here());
    }
}
