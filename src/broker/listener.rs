//! Sockets that accept, and the order in which serving ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::places::{Place, Places};
use super::reload::Reloadable;
use super::transport::{Certificates, Door, Entrance, Peer, Socket};
use super::{Bind, Broker, Listener, connection};
use crate::telemetry::board::ListenerStatus;
use crate::telemetry::limited::Limited;

/// How often wills and expiries are looked at: both are given in seconds.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// What follows a failed `accept` (no file descriptors left): trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Of failed `accept`s, so often one is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Listeners that begin at once; more wait for their turn.
const ACCEPTORS_AHEAD: usize = 16;

/// A listener that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the broker cannot listen on {address}: {source}{}", hint(.address, .source))]
pub struct BindError {
    /// Where.
    pub address: Bind,
    /// Why.
    pub source: io::Error,
}

fn hint(address: &Bind, error: &io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(address, Bind::Unix { .. }) {
        return if kind == io::ErrorKind::AddrInUse {
            "; stop that one, or choose another `bind:`"
        } else if kind == io::ErrorKind::NotFound {
            "; its folder has to be there"
        } else if kind == io::ErrorKind::PermissionDenied {
            "; this user has to be able to write to its folder"
        } else {
            ""
        };
    }
    if kind == io::ErrorKind::AddrInUse {
        "; another program uses this port: stop it, or choose another `bind:`"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; ports below 1024 need a permission: choose a higher one"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "; this machine has no such address"
    } else {
        ""
    }
}

/// Listeners that are bound and do not accept yet.
#[derive(Debug)]
pub struct Bound {
    broker: Arc<Broker>,
}

/// A listener that is bound.
#[derive(Clone, Debug)]
pub struct Listening {
    pub(super) bound: Bind,
    pub(super) entrance: Arc<Entrance>,
}

impl Listening {
    /// Where: the real port.
    #[must_use]
    pub const fn address(&self) -> &Bind {
        &self.bound
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> ListenerStatus {
        self.entrance.status(&self.bound)
    }
}

/// A listener with all that is its own.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) door: Arc<Door>,
    pub(super) listening: Listening,
    pub(super) places: Arc<Places>,
    /// Ends its acceptor and its clients.
    pub(super) stop: CancellationToken,
    /// Its acceptor has ended.
    pub(super) ended: CancellationToken,
}

/// What serves.
#[derive(Debug)]
pub(super) struct Serving {
    stop: CancellationToken,
    acceptors: mpsc::Sender<Acceptor>,
    connections: TaskTracker,
}

impl Broker {
    /// Binds all listeners, or none.
    ///
    /// # Errors
    /// [`BindError`]: which address, and why.
    pub async fn bind(self: &Arc<Self>) -> Result<Bound, BindError> {
        let mut open = Vec::new();
        for listener in &self.config.load_full().listeners {
            open.push(self.open_listener(listener).await?);
        }
        open.iter().for_each(|open| self.watch(open));
        *self.open.lock() = open;
        Ok(Bound { broker: Arc::clone(self) })
    }

    /// Where it listens.
    #[must_use]
    pub fn listening(&self) -> Vec<Listening> {
        self.open.lock().iter().map(|open| open.listening.clone()).collect()
    }

    /// Whether all of it ends.
    pub(super) fn is_stopping(&self) -> bool {
        self.serving.get().is_none_or(|serving| serving.stop.is_cancelled())
    }

    pub(super) async fn open_listener(&self, listener: &Listener) -> Result<Open, BindError> {
        let certificates = self.certificates(listener)?;
        let bound = Door::bind(&listener.bind).await;
        let (door, bound) = bound.map_err(|source| BindError { address: listener.bind.clone(), source })?;
        Ok(self.opened(Arc::new(door), bound, listener, certificates))
    }

    pub(super) fn opened(
        &self,
        door: Arc<Door>,
        bound: Bind,
        listener: &Listener,
        certificates: Option<Arc<Certificates>>,
    ) -> Open {
        let (own, all) = (listener.limits.connections, Arc::clone(&self.all_places.places));
        let places = Arc::new(Places::new(self.config.load().handshakes_max, own, all));
        let entrance = Arc::new(Entrance::new(Arc::new(listener.clone()), certificates));
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        Open { door, listening: Listening { bound, entrance }, places, stop, ended }
    }

    /// Reads a listener's TLS files.
    pub(super) fn certificates(&self, listener: &Listener) -> Result<Option<Arc<Certificates>>, BindError> {
        let Some(tls) = &listener.tls else { return Ok(None) };
        let (name, clock) = (listener.bind.to_string(), Arc::clone(&self.clock));
        let loaded = Certificates::load(tls, name, listener.websocket.is_some(), clock);
        let fail = |text| BindError { address: listener.bind.clone(), source: io::Error::other(text) };
        Ok(Some(Arc::new(loaded.map_err(fail)?)))
    }

    /// Watches its TLS files from now on.
    pub(super) fn watch(&self, open: &Open) {
        if let Some(certificates) = &open.listening.entrance.certificates {
            let part: Arc<dyn Reloadable> = Arc::<Certificates>::clone(certificates);
            self.reloader.watch(&part);
        }
    }

    /// Lets clients in by a listener.
    pub(super) async fn accept_by(self: &Arc<Self>, open: &Open) {
        let Some(serving) = self.serving.get() else { return };
        let Open { door, listening: Listening { bound, entrance }, places, stop, ended } = open.clone();
        tracing::info!(address = %bound, layers = ?entrance.status(&bound).layers, "the broker listens");
        let connections = serving.connections.clone();
        let (broker, all) = (Arc::clone(self), serving.stop.clone());
        let acceptor = Acceptor { broker, door, entrance, places, connections, stop, all, _ended: ended.drop_guard() };
        // Who takes it lives as long as the broker serves.
        drop(serving.acceptors.send(acceptor).await);
    }
}

impl Bound {
    /// Where it listens.
    #[must_use]
    pub fn listening(&self) -> Vec<Listening> {
        self.broker.listening()
    }

    /// Accepts and serves clients until `stop`, then ends them in order: nothing more is read, what was received gets its
    /// acknowledgements under a deadline, MQTT 5 clients are told, and wills that are under way are published.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { broker } = self;
        let connections = TaskTracker::new();
        let (acceptors, mut begun) = mpsc::channel(ACCEPTORS_AHEAD);
        let serving = Serving { stop: stop.clone(), acceptors, connections: connections.clone() };
        // It serves once.
        drop(broker.serving.set(serving));
        let mut tasks = JoinSet::new();
        let (acceptor, opened): (_, Vec<Open>) = (Arc::clone(&broker), broker.open.lock().clone());
        let accept = async move {
            // Each is let go once it serves: a listener that a change takes away is gone then.
            for open in opened {
                acceptor.accept_by(&open).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(accept);
        tasks.spawn(keep_house(Arc::clone(&broker), stop.clone()));
        tasks.spawn(Arc::clone(&broker.reloader).run(stop.clone()));
        tasks.spawn(super::sys::run(Arc::clone(&broker), stop.clone()));
        tasks.spawn(finish_exchanges(Arc::clone(&broker), stop.clone()));
        loop {
            let ended = tokio::select! {
                () = &mut accept => continue,
                Some(acceptor) = begun.recv() => {
                    tasks.spawn(Acceptor::run(acceptor));
                    continue;
                }
                ended = tasks.join_next() => ended,
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::error!(%error, "a task of the broker panicked"),
                None => break,
            }
        }
        broker.open.lock().clear();
        connections.close();
        connections.wait().await;
        broker.tasks.close();
        // A will whose link blocks must not hold up the end; it is published after the next start.
        if tokio::time::timeout(Duration::from_secs(1), broker.tasks.wait()).await.is_err() {
            tracing::warn!("wills are still under way at the broker's end");
        }
    }
}

#[derive(Debug)]
struct Acceptor {
    broker: Arc<Broker>,
    door: Arc<Door>,
    entrance: Arc<Entrance>,
    places: Arc<Places>,
    connections: TaskTracker,
    /// Its own end.
    stop: CancellationToken,
    /// The end of all.
    all: CancellationToken,
    _ended: DropGuard,
}

impl Acceptor {
    async fn run(self) {
        loop {
            // A place before accepting: beyond the limits clients wait in the system's queue.
            let (place, socket, peer) = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.all.cancelled() => return self.stop.cancel(),
                next = self.next() => next,
            };
            self.broker.board.sockets.fetch_add(1, Ordering::Relaxed);
            let (broker, entrance, stop) = (Arc::clone(&self.broker), Arc::clone(&self.entrance), self.stop.clone());
            self.connections.spawn(connection::serve(broker, socket, peer, entrance, place, stop));
        }
    }

    async fn next(&self) -> (Place, Socket, Peer) {
        let place = self.places.one_more().await;
        loop {
            match self.door.accept().await {
                Ok((socket, address)) => {
                    let listener = Arc::clone(&self.entrance.listener);
                    return (place, socket, Peer { address, listener, certificate: None, is_secure: false });
                }
                Err(error) => {
                    static LOGGED: Limited = Limited::new(LOG_EVERY);
                    if let Some(held_back) = LOGGED.pass(self.broker.clock.now()) {
                        tracing::warn!(%error, held_back, "a connection cannot be accepted, and is tried again");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// R20, and session expiry.
async fn keep_house(broker: Arc<Broker>, stop: CancellationToken) {
    loop {
        broker.keep_house(broker.clock.moment());
        broker.settle_places();
        broker.end_who_holds_most();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
    }
}

/// R18. In a task of its own, since a link that blocks must not keep clients out.
async fn finish_exchanges(broker: Arc<Broker>, stop: CancellationToken) {
    tokio::select! {
        () = broker.finish_exchanges() => {}
        () = stop.cancelled() => {}
    }
}
