//! Sockets that accept, and the order in which serving ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::places::{self, Place, Places};
use super::transport::{Certificates, Door, Entrance, Peer, Socket};
use super::{Bind, Broker, Listener, connection};
use crate::telemetry::board::ListenerStatus;

/// How often wills and expiries are looked at: both are given in seconds.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// What follows a failed `accept` (no file descriptors left): trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    listeners: Vec<(Door, Listening)>,
}

/// A listener that is bound.
#[derive(Clone, Debug)]
pub struct Listening {
    bound: Bind,
    entrance: Arc<Entrance>,
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

impl Broker {
    /// Binds all listeners, or none.
    ///
    /// # Errors
    /// [`BindError`]: which address, and why.
    pub async fn bind(self: &Arc<Self>) -> Result<Bound, BindError> {
        let mut listeners = Vec::new();
        for listener in &self.config.listeners {
            let fail = |source| BindError { address: listener.bind.clone(), source };
            let certificates = self.certificates(listener).map_err(|text| fail(io::Error::other(text)))?;
            let (door, bound) = Door::bind(&listener.bind).await.map_err(fail)?;
            let entrance = Arc::new(Entrance::new(Arc::new(listener.clone()), certificates));
            listeners.push((door, Listening { bound, entrance }));
        }
        Ok(Bound { broker: Arc::clone(self), listeners })
    }

    /// Reads a listener's TLS files, and watches them from now on.
    fn certificates(&self, listener: &Listener) -> Result<Option<Arc<Certificates>>, String> {
        let Some(tls) = &listener.tls else { return Ok(None) };
        let (name, clock) = (listener.bind.to_string(), Arc::clone(&self.clock));
        let certificates = Arc::new(Certificates::load(tls, name, listener.websocket.is_some(), clock)?);
        self.reloader.watch(Arc::<Certificates>::clone(&certificates));
        Ok(Some(certificates))
    }
}

impl Bound {
    /// Where it listens.
    #[must_use]
    pub fn listening(&self) -> Vec<Listening> {
        self.listeners.iter().map(|(_, listening)| listening.clone()).collect()
    }

    /// Accepts and serves clients until `stop`, then ends them in order: nothing more is read, what was received gets its
    /// acknowledgements under a deadline, MQTT 5 clients are told, and wills that are under way are published.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { broker, listeners } = self;
        let connections = TaskTracker::new();
        let all = places::places(broker.config.connections_max);
        let mut tasks = JoinSet::new();
        for (door, Listening { bound, entrance }) in listeners {
            tracing::info!(address = %bound, layers = ?entrance.status(&bound).layers, "the broker listens");
            let own = entrance.listener.limits.connections;
            let acceptor = Acceptor {
                broker: Arc::clone(&broker),
                door,
                entrance,
                places: Arc::new(Places::new(broker.config.handshakes_max, own, Arc::clone(&all))),
                connections: connections.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(acceptor.run());
        }
        tasks.spawn(keep_house(Arc::clone(&broker), stop.clone()));
        tasks.spawn(Arc::clone(&broker.reloader).run(stop.clone()));
        tasks.spawn(super::sys::run(Arc::clone(&broker), stop.clone()));
        tasks.spawn(finish_exchanges(Arc::clone(&broker), stop.clone()));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the broker panicked");
            }
        }
        connections.close();
        connections.wait().await;
        broker.tasks.close();
        // A will whose link blocks must not hold up the end; it is published after the next start.
        if tokio::time::timeout(Duration::from_secs(1), broker.tasks.wait()).await.is_err() {
            tracing::warn!("wills are still under way at the broker's end");
        }
    }
}

struct Acceptor {
    broker: Arc<Broker>,
    door: Door,
    entrance: Arc<Entrance>,
    places: Arc<Places>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Acceptor {
    async fn run(self) {
        loop {
            // A place before accepting: beyond the limits clients wait in the system's queue.
            let (place, socket, peer) = tokio::select! {
                () = self.stop.cancelled() => return,
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
                    tracing::warn!(%error, "a connection cannot be accepted");
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
