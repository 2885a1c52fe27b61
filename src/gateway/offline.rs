//! What the operator's tools do while no gateway runs. Each takes the data folder's lock (R36) first: [`Locked::take`]
//! says whether a gateway has it, and then the tools ask that one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::build::{BuildError, lock_data};
use super::commands::{PAYLOAD_IN_LIST, PAYLOAD_SHOWN, each_counts, settle_letters};
use super::{Config, LetterList, SettledLetter};
use crate::buffer::offline::{self, AuditReport, CarryError, Imported, Manifest};
use crate::buffer::{self, Lane, Lanes, OpenError, SendError};
use crate::message::Envelope;
use crate::units::ByteSize;
use crate::{clock, links};

/// Why a tool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The folder cannot be used.
    #[error("data folder {path}: {error}")]
    Data {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No such link.
    #[error("there is no link `{link}` with a buffer in {dir}; there are: {known}")]
    NoLink {
        /// As it was asked for.
        link: String,
        /// Where links have their folders.
        dir: PathBuf,
        /// What is there.
        known: String,
    },
    /// One lane has to be named.
    #[error("{0}")]
    Lanes(String),
    /// Its data has no link to be sent on.
    #[error("routes.yaml has no link `{0}`: its data is kept, and cannot be changed by this tool")]
    Orphaned(String),
    /// A buffer cannot be read.
    #[error("the buffer of link `{link}`: {error}")]
    Buffer {
        /// Which.
        link: String,
        /// Why.
        error: OpenError,
    },
    /// Reading or writing failed.
    #[error("the buffer of link `{link}`: {error}")]
    Io {
        /// Which.
        link: String,
        /// Why.
        error: io::Error,
    },
    /// A letter cannot be had.
    #[error(transparent)]
    Letter(#[from] SendError),
    /// An export or import.
    #[error(transparent)]
    Carry(#[from] CarryError),
    /// The file's link is none of ours.
    #[error("routes.yaml has no link `{link}` to import into; it has: {known}; --link names one")]
    NoTarget {
        /// As the file or the operator says.
        link: String,
        /// The links there are.
        known: String,
    },
}

impl ToolError {
    /// DESIGN.md section 5's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let of_io = |error: &io::Error| if error.kind() == io::ErrorKind::PermissionDenied { 77 } else { 74 };
        match self {
            Self::Data { error, .. }
            | Self::Io { error, .. }
            | Self::Buffer { error: OpenError::Io { error, .. }, .. } => of_io(error),
            Self::Buffer { .. } => 74,
            Self::Carry(CarryError::File { error, .. } | CarryError::Open(OpenError::Io { error, .. })) => of_io(error),
            Self::Carry(CarryError::Full { .. }) => 1,
            Self::Carry(CarryError::Own(_)) => 64,
            Self::Carry(_) => 74,
            Self::NoLink { .. } | Self::Lanes(_) | Self::Orphaned(_) | Self::NoTarget { .. } => 64,
            Self::Letter(SendError::Refused(_) | SendError::Damaged(..)) => 74,
            Self::Letter(_) => 1,
        }
    }
}

/// The data folder, locked: no gateway uses it.
#[derive(Debug)]
pub struct Locked {
    data_dir: PathBuf,
    _lock: File,
}

impl Locked {
    /// Takes the lock. `None`: a gateway, or another tool, has it.
    ///
    /// # Errors
    /// There is no such folder, or it is not ours to use.
    pub fn take(data_dir: &Path) -> Result<Option<Self>, ToolError> {
        let data = |error| ToolError::Data { path: data_dir.to_owned(), error };
        if !data_dir.is_dir() {
            return Err(data(io::Error::new(
                io::ErrorKind::NotFound,
                "there is no such folder: no gateway has run there",
            )));
        }
        match lock_data(data_dir) {
            Ok(lock) => Ok(Some(Self { data_dir: data_dir.to_owned(), _lock: lock })),
            Err(BuildError::Locked { .. }) => Ok(None),
            Err(BuildError::Data { path, error }) => Err(ToolError::Data { path, error }),
            Err(other) => Err(data(io::Error::other(other.to_string()))),
        }
    }

    /// See [`log_folder`].
    ///
    /// # Errors
    /// No such link, or it has several lanes.
    pub fn log(&self, link: &str) -> Result<PathBuf, ToolError> {
        Ok(log_folder(&self.data_dir, link)?.1)
    }

    /// See [`link_folders`].
    ///
    /// # Errors
    /// No such link.
    pub fn links(&self, link: Option<&str>) -> Result<Vec<(Lane, PathBuf)>, ToolError> {
        link_folders(&self.data_dir, link)
    }

    /// Audits all buffers, or one.
    ///
    /// # Errors
    /// A buffer cannot be read.
    pub fn audit(&self, link: Option<&str>, accept: bool) -> Result<AuditReport, ToolError> {
        let audits = self.links(link)?.into_iter().map(|(_, dir)| {
            offline::audit(&dir, accept).map_err(|error| ToolError::Buffer { link: name_of(&dir), error })
        });
        Ok(AuditReport::of(audits.collect::<Result<_, _>>()?))
    }

    /// The dead letters of all lanes of a link, with the beginning of their payloads, or `in_full`; or some of one lane.
    ///
    /// # Errors
    /// No such link, no such letter, several lanes, or it cannot be read.
    pub fn letters(&self, link: &str, ids: Option<&[u64]>, in_full: bool) -> Result<LetterList, ToolError> {
        let read = |dir: &Path| offline::letters(dir).map_err(|error| ToolError::Io { link: link.to_owned(), error });
        let most = if in_full { PAYLOAD_SHOWN } else { PAYLOAD_IN_LIST };
        let mut list = LetterList::default();
        let Some(ids) = ids else {
            for (lane, dir) in self.links(Some(link))? {
                list.add(lane, &read(&dir)?, most);
            }
            return Ok(list);
        };
        let (lane, dir) = self.log_of_letters(link, ids)?;
        let mut found = read(&dir)?;
        // What is damaged has no ids any more: it may be one of these.
        if let Some(id) = ids.iter().find(|id| !found.letters.iter().any(|letter| letter.offset.0 == **id)) {
            return Err(SendError::NotThere(*id).into());
        }
        found.damaged.clear();
        found.letters.retain(|letter| ids.contains(&letter.offset.0));
        list.add(lane, &found, most);
        Ok(list)
    }

    /// The one log of a link that has all of these letters.
    fn log_of_letters(&self, link: &str, ids: &[u64]) -> Result<(Lane, PathBuf), ToolError> {
        let logs = self.links(Some(link))?;
        if logs.len() > 1 {
            let mut holders = Vec::new();
            for (lane, dir) in &logs {
                let read = offline::letters(dir).map_err(|error| ToolError::Io { link: link.to_owned(), error })?;
                if ids.iter().all(|id| read.letters.iter().any(|letter| letter.offset.0 == *id)) {
                    holders.push((*lane, dir.clone()));
                }
            }
            if let (Some(only), true) = (holders.pop(), holders.is_empty()) {
                return Ok(only);
            }
        }
        log_folder(&self.data_dir, link)
    }

    /// Sends letters of a link again, or drops them: some, or all. Answers as the running gateway does.
    ///
    /// # Errors
    /// Those before the one that is named are done.
    pub async fn settle_letters(
        &self,
        config: &Config,
        link: &str,
        send: bool,
        ids: Option<Vec<u64>>,
    ) -> Result<Vec<SettledLetter>, ToolError> {
        let chosen = match &ids {
            Some(ids) => vec![self.log_of_letters(link, ids)?],
            None => self.links(Some(link))?,
        };
        let lanes = open(config, Lane::split(link).0)?;
        let logs: Vec<_> = chosen.iter().map(|(lane, _)| (*lane, lanes.lane(*lane).clone())).collect();
        let done = settle_letters(&logs, send, ids).await;
        lanes.close().await;
        Ok(done?)
    }

    /// Takes an exported file into the buffer of `link`, or of the link that it was exported from. Message ids and times stay;
    /// the site that it comes from joins the messages' path (R12).
    ///
    /// # Errors
    /// What was taken until then is, and a repeat goes on from there.
    pub fn import(&self, config: &Config, file: &Path, link: Option<&str>) -> Result<Imported, ToolError> {
        let name = match link {
            Some(link) => link.to_owned(),
            None => offline::origin(file)?.link,
        };
        let (own, lane) = Lane::split(&name);
        let found = config.links.iter().find(|found| found.id.as_str() == own).ok_or_else(|| {
            let known: Vec<_> = config.links.iter().map(|link| link.id.as_str()).collect();
            ToolError::NoTarget { link: name.clone(), known: known.join(", ") }
        })?;
        let target = alone(&found.buffer, lane.unwrap_or_default())?;
        let map = |manifest: &Manifest, body: Bytes| {
            if *manifest.site == *config.site { body } else { passed(&manifest.site, body) }
        };
        Ok(offline::import(&target, links::window(found), clock::system(), file, map)?)
    }
}

/// What an imported record says of its way: it has passed the site that it was exported at (R12).
fn passed(site: &str, body: Bytes) -> Bytes {
    let Ok(mut envelope) = Envelope::decode(body.clone()) else { return body };
    let origin = &mut envelope.message.origin;
    origin.path.push(site.into());
    origin.hops = origin.hops.saturating_add(1);
    [envelope.head(), envelope.message.encode()].concat().into()
}

/// One lane's log by itself: its quota is what the other lanes leave of the link's (R14).
fn alone(link: &buffer::Config, lane: Lane) -> Result<buffer::Config, ToolError> {
    let mut others = 0_u64;
    for (_, dir) in Lane::found_in(&link.dir).into_iter().filter(|(own, _)| *own != lane) {
        if dir.is_dir() {
            others += offline::list(&dir).map_err(CarryError::Open)?.bytes;
        }
    }
    let max_size = ByteSize(link.max_size.0.saturating_sub(others));
    Ok(buffer::Config { dir: lane.folder(&link.dir), max_size, ..link.clone() })
}

/// The folder of one log: `LINK` where that has one lane, or `LINK/LANE`.
///
/// # Errors
/// No such link, or it has several lanes.
pub fn log_folder(data_dir: &Path, link: &str) -> Result<(Lane, PathBuf), ToolError> {
    let mut logs = link_folders(data_dir, Some(link))?;
    if logs.len() > 1 {
        return Err(ToolError::Lanes(each_counts(link, logs.iter().map(|(lane, _)| *lane))));
    }
    Ok(logs.pop().unwrap_or_default())
}

/// The folders of the lanes of all links beneath a data folder, in the order of the links' names, the normal lane first; or of
/// one link (`LINK`), or one lane (`LINK/LANE`).
///
/// # Errors
/// No such link.
pub fn link_folders(data_dir: &Path, link: Option<&str>) -> Result<Vec<(Lane, PathBuf)>, ToolError> {
    let dir = data_dir.join("links");
    let mut folders: Vec<PathBuf> = match std::fs::read_dir(&dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(ToolError::Data { path: dir, error }),
    };
    folders.sort();
    let logs = folders.iter().flat_map(|dir| {
        let mut lanes = Lane::found_in(dir);
        lanes.sort_by_key(|(lane, _)| lane.number());
        lanes.into_iter().map(|(lane, log)| (name_of(dir), lane, log))
    });
    let chosen = link.map(Lane::split);
    let is_chosen =
        |name: &str, lane: Lane| chosen.is_none_or(|(own, only)| own == name && only.is_none_or(|only| only == lane));
    let logs: Vec<_> =
        logs.filter(|(name, lane, _)| is_chosen(name, *lane)).map(|(_, lane, log)| (lane, log)).collect();
    match link {
        Some(link) if logs.is_empty() => {
            let known: Vec<_> = folders.iter().map(|dir| name_of(dir)).collect();
            Err(ToolError::NoLink { link: link.to_owned(), dir, known: known.join(", ") })
        }
        Some(_) | None => Ok(logs),
    }
}

fn name_of(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The lanes of a link of routes.yaml.
fn open(config: &Config, link: &str) -> Result<Lanes, ToolError> {
    let found = config.links.iter().find(|found| found.id.as_str() == link);
    let found = found.ok_or_else(|| ToolError::Orphaned(link.to_owned()))?;
    let opened = Lanes::open(&found.buffer, links::window(found), &found.lanes, &clock::system());
    let (lanes, _recoveries) = opened.map_err(|error| ToolError::Buffer { link: link.to_owned(), error })?;
    Ok(lanes)
}
