//! Building: opens, locks and binds everything, and says what cannot be had.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;

use super::reload::Origin;
use super::rename::{Holds, holds};
use super::{Config, Crews, Gateway, Link, Orphan, Parts, Replays, Shared, files, rename};
use crate::broker::{self, Broker};
use crate::buffer::{self, KIND, Lane, Lanes, Recovery};
use crate::clock::Clock;
use crate::hub::Hub;
use crate::links::{self, SharedRate};
use crate::message::IdSource;
use crate::router::{LinkId, Table};
use crate::telemetry::board::{BrokerBoard, SharedHalf};
use crate::units::ByteSize;

/// Why a gateway could not be built. Nothing was taken or changed, but for what recovery repaired.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The data folder, or a file in it.
    #[error("data folder {path}: {error}; it has to be a folder that this user may write to")]
    Data {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// R36.
    #[error("data folder {path} is in use by another gateway; stop that one, or give this one a `data_dir` of its own")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A link's log.
    #[error("the buffer of link `{link}`: {error}")]
    Buffer {
        /// Which.
        link: LinkId,
        /// Why.
        error: buffer::OpenError,
    },
    /// R34: the buffer of a link's old name.
    #[error(
        "link `{link}`: `renamed_from: {old}`: the buffer of `{old}` cannot be opened, so it is not taken over: {error}; make that good, or take \
         `renamed_from` away"
    )]
    Heir {
        /// The link.
        link: LinkId,
        /// Its former name.
        old: LinkId,
        /// Why.
        error: buffer::OpenError,
    },
    /// R34: two buffers with what is owed cannot become one.
    #[error(
        "link `{link}`: `renamed_from: {old}` would put {} in the place of {}, and both hold what is not delivered: take `renamed_from` away \
         and keep a link `{old}` in routes.yaml until that is delivered (no route has to lead to it; dead letters are sent or dropped), or \
         move one of the two folders away; as soon as one of them has delivered all it can be done as it is",
        from.display(), to.display()
    )]
    Renamed {
        /// The link.
        link: LinkId,
        /// Its former name.
        old: LinkId,
        /// That one's folder.
        from: PathBuf,
        /// Its own.
        to: PathBuf,
    },
    /// R34: the records of another kind of link have names that mean nothing to this one.
    #[error(
        "link `{link}`: `renamed_from: {old}`: what is in the buffer of `{old}` was named for a {was} link, and `{link}` is {is}: it is not taken \
         over; take `renamed_from` away, and `tidegate replay {old} --into {link}` sends copies by their topics"
    )]
    OtherKind {
        /// The link.
        link: LinkId,
        /// Its former name.
        old: LinkId,
        /// The kind that the buffer was made for.
        was: String,
        /// The link's.
        is: &'static str,
    },
    /// The broker's store.
    #[error("the broker's store: {0}")]
    Store(broker::StoreError),
    /// A listener of the broker.
    #[error("{0}")]
    Listener(broker::BindError),
    /// A file that logins or rules are in.
    #[error("{0}")]
    Auth(broker::PrepareError),
    /// The admin page's address.
    #[error("admin: cannot listen on {address}: {error}")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

impl From<broker::PrepareError> for BuildError {
    fn from(error: broker::PrepareError) -> Self {
        match error {
            broker::PrepareError::Listener(error) => Self::Listener(error),
            wrong @ broker::PrepareError::Auth(_) => Self::Auth(wrong),
        }
    }
}

impl BuildError {
    /// DESIGN.md section 5's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Data { error, .. }
            | Self::Admin { error, .. }
            | Self::Listener(broker::BindError { source: error, .. })
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Self::Data { .. } | Self::Buffer { .. } | Self::Heir { .. } | Self::Store(_) => 74,
            Self::Renamed { .. } | Self::OtherKind { .. } | Self::Auth(_) => 65,
            Self::Locked { .. } | Self::Listener(_) | Self::Admin { .. } => 69,
        }
    }
}

impl Gateway {
    /// Opens the data folder, the buffers and the store, and binds every address. `origin` is where the configuration can be read
    /// again.
    ///
    /// # Errors
    /// [`BuildError`]: what cannot be had, where, and what would be right.
    pub async fn build(
        config: Config,
        origin: Option<Arc<dyn Origin>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BuildError> {
        let lock = lock_data(&config.data_dir)?;
        let carried = rename::carry(&config, &clock)?;
        let orphans = open_orphans(&config, &clock);
        let links = open_links(&config.links, &clock)?;
        let logs = links.iter().filter_map(|link| Some((link.config.id.clone(), link.lanes.clone()?))).collect();
        let ids = IdSource::new(Arc::clone(&config.site), rand::random());
        let hub = Arc::new(Hub::new(ids, Table::new(config.routes.clone()), logs, Arc::clone(&clock)));
        hub.memory().limit_to(config.max_memory);
        files::allow(&config.broker);
        let broker_board = Arc::new(BrokerBoard::default());
        let store = config.data_dir.join("broker");
        buffer::make_dir(&store).map_err(|error| BuildError::Data { path: store.clone(), error })?;
        let board = Arc::clone(&broker_board);
        let broker = Broker::open(config.broker.clone(), &store, Arc::clone(&hub), board, Arc::clone(&clock))
            .map_err(BuildError::Store)?;
        let outlet: Arc<Broker> = Arc::clone(&broker);
        hub.attach(outlet);
        let bound = broker.bind().await.map_err(BuildError::Listener)?;
        let admin = bind_admin(config.admin).await?;
        let links_changed = Arc::default();
        links.iter().for_each(|link| link.report_to(&links_changed));
        let parts = Parts {
            links: links.into_iter().map(Arc::new).collect(),
            orphans: orphans.into_iter().map(Arc::new).collect(),
            listeners: bound.listening(),
            admin: admin.as_ref().and_then(|listener| listener.local_addr().ok()),
        };
        let shared = Arc::new(Shared {
            site: Arc::clone(&config.site),
            replays: Replays::new(&config.data_dir),
            data_dir: config.data_dir.clone(),
            started: clock.wall(),
            clock,
            hub,
            broker,
            broker_board,
            parts: ArcSwap::from_pointee(parts),
            links_changed,
            ready: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            crews: Crews::default(),
            origin,
            asked: tokio::sync::Notify::new(),
            reloads: parking_lot::Mutex::default(),
            running: tokio::sync::Mutex::default(),
        });
        Ok(Self { shared, bound, admin, config, carried, _lock: lock })
    }
}

pub(super) fn lock_data(dir: &Path) -> Result<File, BuildError> {
    let data = |path: &Path, error| BuildError::Data { path: path.to_owned(), error };
    buffer::make_dir(dir).map_err(|error| data(dir, error))?;
    let path = dir.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| data(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BuildError::Locked { path }),
        Err(TryLockError::Error(error)) => Err(data(&path, error)),
    }
}

fn open_links(configs: &[links::Config], clock: &Arc<dyn Clock>) -> Result<Vec<Link>, BuildError> {
    let open = |config: &links::Config| Ok(Link::new(config.clone(), open_lanes(config, clock)?, None, clock));
    configs.iter().map(open).collect()
}

/// A link's buffer, where it needs one.
pub(super) fn open_lanes(config: &links::Config, clock: &Arc<dyn Clock>) -> Result<Option<Lanes>, BuildError> {
    // Data that an earlier run left is delivered also when no route leads to the link any more.
    if !config.has_sink && !config.buffer.dir.exists() {
        return Ok(None);
    }
    let opened = Lanes::open(&config.buffer, links::window(config), &config.lanes, clock);
    let (lanes, recoveries) = opened.map_err(|error| BuildError::Buffer { link: config.id.clone(), error })?;
    report(config.id.as_str(), &recoveries);
    let (is, was) = (config.kind.name(), kept_kind(&config.buffer.dir));
    if let Some(was) = was.filter(|was| *was != is)
        && holds(&lanes) == Holds::Owed
    {
        tracing::warn!(link = %config.id, "{}", named_for(&was, is));
    }
    if let Err(error) = keep_kind(&config.buffer.dir, config.kind.name()) {
        tracing::warn!(link = %config.id, %error, "what kind of link this is cannot be kept beside its buffer: when the link is gone, a replay of it goes by topics");
    }
    Ok(Some(lanes))
}

/// What is said of a link that has become one of another kind while records wait in its buffer.
pub(super) fn named_for(was: &str, is: &str) -> String {
    format!(
        "what waits in its buffer was named for a {was} link, and is sent to a {is} one by these names: what they do not fit becomes a dead letter; \
         a link of another name would leave it where it is, and `tidegate replay` would send it by its topics"
    )
}

/// By it a replay of what a link has left knows whether the names that routes gave are names to the link that it goes to. A torn one is as
/// good as none, and written anew.
fn keep_kind(dir: &Path, kind: &str) -> io::Result<()> {
    if kept_kind(dir).as_deref() == Some(kind) {
        return Ok(());
    }
    let mut file = File::create(dir.join(KIND))?;
    file.write_all(kind.as_bytes())?;
    file.sync_data()
}

/// None in a folder that an earlier version made.
pub(super) fn kept_kind(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(KIND)).ok()
}

impl Link {
    /// With the boards of the link that it was before, whose figures go on, and its rate, where that is the same.
    pub(super) fn new(
        config: links::Config,
        lanes: Option<Lanes>,
        before: Option<&Self>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let board = |board: Option<&SharedHalf>| board.map_or_else(Arc::default, Arc::clone);
        let sink = lanes.is_some().then(|| board(before.and_then(|before| before.sink.as_ref())));
        let source = (!config.sources.is_empty()).then(|| board(before.and_then(|before| before.source.as_ref())));
        let same = before.filter(|before| before.config.rate == config.rate);
        let rate = same.map_or_else(|| SharedRate::new(config.rate.as_ref(), clock), |before| before.rate.clone());
        Self { config, lanes, failed: None, rate, sink, source }
    }

    /// One whose buffer could not be opened again.
    pub(super) fn without_buffer(before: &Self, why: &BuildError, clock: &Arc<dyn Clock>) -> Self {
        Self { failed: Some(why.to_string()), ..Self::new(before.config.clone(), None, Some(before), clock) }
    }
}

/// R34: folders below `links/` that no link of the file owns. They are opened so that `status` can tell what they hold, and
/// with limits that drop nothing. One that does not open is said, shown and left alone: it is in nobody's way.
fn open_orphans(config: &Config, clock: &Arc<dyn Clock>) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir(config.data_dir.join("links")) else { return Vec::new() };
    let dirs = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let strays = dirs.filter(|dir| config.links.iter().all(|link| link.buffer.dir != **dir));
    strays.map(|dir| open_orphan(&dir, clock)).collect()
}

pub(super) fn open_orphan(dir: &Path, clock: &Arc<dyn Clock>) -> Orphan {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let kind = kept_kind(dir);
    match Lanes::open(&keeping(dir), 1, &[], clock) {
        Ok((lanes, recoveries)) => {
            report(&name, &recoveries);
            let messages = lanes.ledger().buffered;
            tracing::warn!(link = name, messages, folder = %dir.display(), "this folder holds data of a link that routes.yaml does not have; it is kept, and shown as orphaned; `renamed_from: {name}` on a link takes it over");
            Orphan { name, kind, lanes: Ok(lanes) }
        }
        Err(error) => {
            tracing::warn!(link = name, %error, "this folder holds data of a link that routes.yaml does not have, and cannot be opened; it is kept");
            Orphan { name, kind, lanes: Err(error.to_string()) }
        }
    }
}

/// Limits that drop nothing: for a log that is opened to see what it holds.
pub(super) fn keeping(dir: &Path) -> buffer::Config {
    buffer::Config {
        dir: dir.to_owned(),
        max_size: ByteSize(u64::MAX / 2),
        max_age: None,
        when_full: buffer::WhenFull::Reject,
        sync: buffer::SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: buffer::Compression::None,
        keep_delivered: Some(buffer::Keep { age: None, size: None }),
    }
}

fn report(link: &str, recoveries: &[(Lane, Recovery)]) {
    for (lane, recovery) in recoveries {
        report_lane(link, lane.name(), recovery);
    }
}

fn report_lane(link: &str, lane: &str, recovery: &Recovery) {
    let Recovery { buffered, torn_bytes, damaged, notes } = recovery;
    tracing::info!(link, lane, buffered, "buffer open");
    if *torn_bytes > 0 {
        tracing::warn!(
            link,
            lane,
            torn_bytes,
            "a torn tail was cut: what was being written at the end; nothing on disk says that any of it had been acknowledged"
        );
    }
    for (first, last) in damaged {
        tracing::error!(
            link,
            lane,
            first = first.0,
            last = last.0,
            "acknowledged records are damaged and were skipped; counted as dropped{{damaged}}"
        );
    }
    for note in notes {
        tracing::warn!(link, "{note}");
    }
}

pub(super) async fn bind_admin(address: Option<SocketAddr>) -> Result<Option<tokio::net::TcpListener>, BuildError> {
    let Some(address) = address else { return Ok(None) };
    let listener = tokio::net::TcpListener::bind(address).await;
    listener.map(Some).map_err(|error| BuildError::Admin { address, error })
}
