//! The only part that knows all others: builds them from a [`Config`], runs them, and ends them in order.
//!
//! `routes.yaml` is read again while it runs, see [`reload`]: what has not changed is not touched.
//!
//! Start: lock the data folder, open every link's buffer, open the broker's store, bind all listeners, and only then take
//! the first packet; QoS 2 exchanges that a kill interrupted (R18) are finished beside that, since a link that blocks must not
//! keep clients out. Whatever cannot be had is reported before anything runs. End: DESIGN.md section 9, in [`run`].
//!
//! No other module names this one, `cli` excepted.

mod announce;
mod build;
mod commands;
mod crew;
pub mod explain;
mod files;
mod heir;
mod memory;
pub mod offline;
mod outline;
mod reload;
mod rename;
mod replay;
mod run;
mod shown;
mod status;

pub use build::BuildError;
pub use outline::{Change, Entry, Hidden, Outline, Sign};
pub use reload::{Loaded, Origin, ReloadReport};
pub use run::RunError;
pub use shown::{Letter, LetterList, RetainedList, SettledLetter, ShownMessage, ShownRecord, UnreadLetter};

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::crew::{Crew, Lost};
use self::reload::Running;
use self::rename::Carried;
use self::replay::Replays;
use crate::broker::{self, Broker};
use crate::buffer::Lanes;
use crate::clock::{Clock, WallMs};
use crate::hub::Hub;
use crate::links;
use crate::router::Route;
use crate::telemetry::board::{BrokerBoard, HalfBoard, ReloadStatus};
use crate::units::ByteSize;

/// Everything that `routes.yaml` says, resolved: values that cannot be wrong.
#[derive(Clone, Debug)]
pub struct Config {
    /// `site:`; default: the host name.
    pub site: Arc<str>,
    /// `data_dir:`; default `./tidegate-data` beside the file.
    pub data_dir: PathBuf,
    /// `reload:`.
    pub reload: ReloadWhen,
    /// `broker:` (R30: 127.0.0.1:1883, anonymous, without the section).
    pub broker: broker::Config,
    /// `links:`.
    pub links: Vec<links::Config>,
    /// `routes:`.
    pub routes: Vec<Route>,
    /// `admin: { bind: .. }`.
    pub admin: Option<SocketAddr>,
    /// `max_memory:` (R36).
    pub max_memory: ByteSize,
    /// All of it as it is written.
    pub outline: Outline,
}

/// When the files are read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReloadWhen {
    /// SIGHUP, and `tidegate reload`.
    #[default]
    Asked,
    /// Also when they have changed and stand still.
    Changed,
}

/// A built gateway: everything is open and bound, nothing is taken yet. [`Gateway::run`] runs it.
pub struct Gateway {
    shared: Arc<Shared>,
    bound: broker::Bound,
    admin: Option<tokio::net::TcpListener>,
    config: Config,
    /// Buffers that have got another name with this start.
    carried: Vec<Carried>,
    /// R36: held as long as the gateway lives.
    _lock: File,
}

/// Has a running gateway read the files again that it was made of: `routes.yaml`, its secrets, certificates, keys, authorities,
/// revocation lists, users and rules. Within its runtime.
#[derive(Clone)]
pub struct Reload(Arc<Shared>);

impl Reload {
    /// Soon, changed or not. What is wrong is logged, shown by `status`, and leaves in force what was before.
    pub fn now(&self) {
        self.0.asked.notify_one();
    }
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

/// What the status page and the running parts share.
struct Shared {
    site: Arc<str>,
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
    started: WallMs,
    hub: Arc<Hub>,
    broker: Arc<Broker>,
    broker_board: Arc<BrokerBoard>,
    parts: ArcSwap<Parts>,
    replays: Replays,
    /// The state of a link has changed.
    links_changed: Arc<Notify>,
    ready: AtomicBool,
    stopping: AtomicBool,
    crews: Crews,
    /// Where the configuration can be read again.
    origin: Option<Arc<dyn Origin>>,
    /// By SIGHUP.
    asked: Notify,
    reloads: Mutex<ReloadStatus>,
    /// What a reload changes; none until it runs. Whoever has it is alone in changing it.
    running: tokio::sync::Mutex<Option<Running>>,
}

/// What a reload may replace, as it is at one moment.
struct Parts {
    links: Vec<Arc<Link>>,
    orphans: Vec<Arc<Orphan>>,
    listeners: Vec<broker::Listening>,
    admin: Option<SocketAddr>,
}

/// The stages' tasks, in the order in which they end.
struct Crews {
    /// Listeners and sources: nothing new is taken.
    intake: Crew,
    sinks: Crew,
    /// The status page: last, so that the end can be watched.
    admin: Crew,
    lost: Arc<Lost>,
}

impl Default for Crews {
    fn default() -> Self {
        let lost = Arc::default();
        Self { intake: Crew::new(&lost), sinks: Crew::new(&lost), admin: Crew::new(&lost), lost }
    }
}

/// A link as it runs.
struct Link {
    config: links::Config,
    lanes: Option<Lanes>,
    /// Why its buffer, which it had, could not be opened again: its offers are refused.
    failed: Option<String>,
    /// Of all that goes out: the sink's and the replays'.
    rate: links::SharedRate,
    sink: Option<Arc<HalfBoard>>,
    source: Option<Arc<HalfBoard>>,
}

/// Data of a link that `routes.yaml` no longer has: kept, said at start, shown in `status` (R34).
struct Orphan {
    name: String,
    /// Of the link that it was, where that is known.
    kind: Option<String>,
    /// Or why they cannot be opened.
    lanes: Result<Lanes, String>,
}

impl Gateway {
    /// What asks the running gateway to read its files again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload(Arc::clone(&self.shared))
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("site", &self.shared.site).finish_non_exhaustive()
    }
}

impl Shared {
    fn parts(&self) -> Arc<Parts> {
        self.parts.load_full()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_gateway_that_cannot_start_or_ends_by_itself_says_whose_fault_it_is_by_its_exit_code() {
        let data = |kind| BuildError::Data { path: "data".into(), error: io::Error::from(kind) }.exit_code();
        assert_eq!(data(io::ErrorKind::PermissionDenied), 77);
        assert_eq!(data(io::ErrorKind::StorageFull), 74);
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        for (kind, code) in [(io::ErrorKind::PermissionDenied, 77), (io::ErrorKind::AddrInUse, 69)] {
            let source = io::Error::from(kind);
            let bind = broker::BindError { address: broker::Bind::Tcp(address), source };
            assert_eq!(BuildError::Listener(bind).exit_code(), code);
            assert_eq!(BuildError::Admin { address, error: io::Error::from(kind) }.exit_code(), code);
        }
        assert_eq!(BuildError::Locked { path: "data/LOCK".into() }.exit_code(), 69);
        assert_eq!(RunError::Ended("the broker".to_owned()).exit_code(), 70);
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(RunError::Socket { path: "data/admin.sock".into(), error }.exit_code(), 74);
    }
}
