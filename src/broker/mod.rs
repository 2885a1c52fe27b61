//! The built-in MQTT broker: 3.1, 3.1.1 and 5.0.
//!
//! ```text
//! listener ── a task a connection ──┬─ hub.offer(what was read)  ── hub ── Local::deliver (here) ── other sessions' outboxes
//!                                   └─ writes its session's outbox and the acknowledgements that are due
//! ```
//!
//! - [`listener`], [`places`]: sockets that accept, and how many may be connected.
//! - [`transport`]: what carries a client's bytes, and who the client is as far as that can tell.
//! - [`connection`]: one task a client: one read, many packets, one offer, one write. Acknowledgements are held in a FIFO
//!   until their receipts settle; its length is the Receive Maximum, which is the back-pressure.
//! - [`memory`]: what is done while memory is short.
//! - [`ended`]: what the log says of clients that are refused or ended.
//! - [`reload`]: files that are read again while it runs. [`change`]: other settings while it runs.
//! - [`registry`]: which client id is which session; take-over, resumption, expiry, wills. [`restore`]: what the store held at the start.
//! - [`local`]: what the hub delivers here, to subscribers, kept sessions and the retained store.
//! - [`auth`]: who may come in, and what they may publish and read.
//! - [`sys`]: the broker's figures below `$SYS/`.
//! - [`store`]: all state by key, durable. [`session`]: the protocol's state, pure. [`topics`]: who subscribed to what.
//!
//! Invariants: no acknowledgement leaves before its receipt has settled; what a kept session is owed is in the store
//! before it is sent and until it is acknowledged; a slow client costs no other client anything. It must not know links,
//! routes or buffers: the hub stands between.

mod aliases;
pub mod auth;
mod bell;
mod change;
mod client;
mod config;
mod connection;
mod convert;
mod ended;
#[doc(hidden)]
pub mod fuzzing;
pub mod index;
pub mod limits;
mod listener;
mod local;
mod memory;
mod owed;
mod places;
mod registry;
mod reload;
mod remembered;
mod restore;
mod retained;
mod session;
mod store;
mod sys;
#[cfg(test)]
mod tests;
mod topics;
mod transport;
mod wills;

pub use change::{PrepareError, Prepared};
pub use config::{
    Bind, CertificateUser, ClientCert, Config, Listener, ProxyTerms, TlsConfig, TlsVersions, WebSocketTerms,
};
pub use listener::{BindError, Bound, Listening};
pub use memory::{retained_by_default, retained_that_fits};
pub use reload::Reread;
pub use retained::{DropError, RetainedTopic};
pub use store::{StoreError, Trouble};
pub use transport::{
    AlternativeName, Network, NetworkError, Peer, PeerCertificate, TlsClientSources, TlsFinding, TlsMaterial, TlsPart,
    TlsSources, examine_tls, examine_tls_client,
};

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};
use tokio_util::task::TaskTracker;

use self::auth::{Authenticator, OwnSecret};
use self::client::Client;
use self::ended::Ended;
use self::limits::usage::{Arrivals, Users};
use self::listener::{Open, Serving};
use self::memory::Stuck;
use self::places::Pool;
use self::reload::{Part, Reloader};
use self::store::Store;
use self::topics::Topics;
use self::wills::Wills;
use crate::clock::Clock;
use crate::hub::{Hub, Logged, Mark, Tails};
use crate::message::MessageId;
use crate::telemetry::board::BrokerBoard;

/// The broker: its state, without its sockets. See the module.
pub struct Broker {
    /// For the tasks that it starts.
    me: Weak<Self>,
    config: ArcSwap<Config>,
    auth: ArcSwap<Authenticator>,
    hub: Arc<Hub>,
    board: Arc<BrokerBoard>,
    clock: Arc<dyn Clock>,
    store: Store,
    store_mark: Mark,
    clients: Mutex<HashMap<Arc<str>, Arc<Client>>>,
    topics: Topics,
    next_session: AtomicU64,
    /// Kept sessions whose time was over, since the start.
    expired: AtomicU64,
    /// Wills and exchanges that outlive their connection.
    tasks: TaskTracker,
    /// QoS 2 exchanges that were unfinished at the start, and where their logs ended (R18).
    unfinished: Mutex<Vec<(MessageId, Tails)>>,
    /// Which of them are in the logs: looked for once, when it is first asked.
    logged: OnceCell<Arc<Logged>>,
    /// Sessions whose client had begun another when the gateway was killed.
    superseded: Mutex<Vec<Arc<Client>>>,
    /// What users hold of their limits.
    users: Users,
    /// What clients of each listener hold of its limits, by where the listener lies in memory.
    arrivals: Mutex<HashMap<usize, Arc<Arrivals>>>,
    reloader: Arc<Reloader>,
    /// Of all listeners together.
    all_places: Pool,
    /// In the order of the configuration.
    open: Mutex<Vec<Open>>,
    /// Once it serves.
    serving: OnceLock<Serving>,
    interval_changed: Notify,
    /// What the log has said of clients that are refused or ended.
    ended: Ended,
    /// Clients that take nothing while memory is short.
    stuck: Mutex<Stuck>,
    wills: Wills,
}

/// What the broker holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Kept sessions without a connection.
    pub sessions_offline: u64,
    /// Messages owed to kept sessions.
    pub owed: u64,
    /// Retained messages.
    pub retained: u64,
    /// What both count for, in bytes.
    pub stored_bytes: u64,
}

impl Broker {
    /// Opens the store in `dir` and takes up the sessions in it. The gateway then attaches the broker to `hub`
    /// ([`Hub::attach`]) and binds its listeners ([`Broker::bind`]).
    ///
    /// # Errors
    /// [`StoreError`]: the folder cannot be used. Damage is no error: what does not read back is skipped and logged.
    pub fn open(
        config: Config,
        dir: &Path,
        hub: Arc<Hub>,
        board: Arc<BrokerBoard>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StoreError> {
        let (store, mut loaded) = Store::open(dir)?;
        hub.restore_copies(std::mem::take(&mut loaded.copies));
        hub.restore_samples(std::mem::take(&mut loaded.held));
        let broker = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            auth: ArcSwap::from_pointee(Authenticator::open(
                config.auth.clone(),
                config.names_count(),
                OwnSecret::open(dir),
                Arc::clone(&clock),
            )),
            all_places: Pool::new(config.connections_max),
            config: ArcSwap::from_pointee(config),
            open: Mutex::default(),
            serving: OnceLock::new(),
            interval_changed: Notify::new(),
            hub,
            board,
            clock,
            store_mark: store.mark(),
            store,
            clients: Mutex::default(),
            topics: Topics::default(),
            next_session: AtomicU64::new(1),
            expired: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            unfinished: Mutex::default(),
            logged: OnceCell::new(),
            superseded: Mutex::default(),
            users: Users::default(),
            arrivals: Mutex::default(),
            reloader: Arc::default(),
            ended: Ended::default(),
            stuck: Mutex::default(),
            wills: Wills::default(),
        });
        broker.reloader.add(Arc::new(Logins(Arc::downgrade(&broker))));
        broker.board.dropped_many("damaged", loaded.damaged);
        broker.restore(loaded);
        Ok(broker)
    }

    /// What it holds.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        let (retained, stored_bytes) = (self.topics.retained_count() as u64, self.topics.retained_bytes());
        let mut figures = Figures { retained, stored_bytes, ..Figures::default() };
        for client in clients {
            let mut state = client.lock();
            figures.owed += state.owed.rows();
            figures.stored_bytes += state.owed.bytes();
            figures.sessions_offline += u64::from(state.terms.kept && state.online.is_none());
        }
        figures
    }

    /// Why QoS 1 and 2 publishers that need the store are refused, if they are.
    #[must_use]
    pub fn store_trouble(&self) -> Option<Trouble> {
        self.store.trouble()
    }

    /// Has all files that it was made of read again, changed or not: what is new counts from the next connection on,
    /// and at once for users and rules. It reads files: not for a thread of the runtime.
    pub fn reload(&self) {
        self.reloader.look(true);
    }

    /// Files that have changed and are in force since this was asked last, whoever had them read.
    #[must_use]
    pub fn take_reread(&self) -> Vec<Reread> {
        self.reloader.take_news()
    }

    /// Files that have changed and cannot be used, and why; what was before them is in force.
    #[must_use]
    pub fn reload_errors(&self) -> Vec<String> {
        self.reloader.errors()
    }

    /// Commits what is staged and closes the store. After [`Bound::serve`] has ended.
    pub async fn close(self: &Arc<Self>) {
        self.tasks.close();
        let broker = Arc::clone(self);
        if tokio::task::spawn_blocking(move || broker.store.close()).await.is_err() {
            tracing::error!("the broker's store could not be closed in order");
        }
    }
}

/// Users and rules, as what is read again.
struct Logins(Weak<Broker>);

impl Part for Logins {
    fn look(&self, is_asked: bool) {
        if let Some(broker) = self.0.upgrade() {
            broker.reload_auth(is_asked);
        }
    }

    fn take_news(&self) -> Vec<Reread> {
        self.0.upgrade().map(|broker| broker.auth.load().take_news()).unwrap_or_default()
    }

    fn errors(&self) -> Vec<String> {
        self.0.upgrade().map(|broker| broker.auth.load().errors()).unwrap_or_default()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("listeners", &self.config.load().listeners).finish_non_exhaustive()
    }
}
