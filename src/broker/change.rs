//! Other settings while it runs. What is the same is not touched: a listener that has not changed keeps its clients. Clients of one that
//! has, or is gone, are ended in order, and come back by what there is then.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use super::auth::Authenticator;
use super::limits;
use super::listener::Open;
use super::{Bind, BindError, Broker, Config};

/// How long a listener may take to end. It waits for nothing.
const LISTENER_LIMIT: Duration = Duration::from_secs(5);

/// Why other settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A listener.
    #[error(transparent)]
    Listener(#[from] BindError),
    /// With a file that cannot be used nobody of it could log in, or nothing would be allowed.
    #[error("{0}; mend it, or leave `auth` as it was")]
    Auth(String),
}

/// Settings for which all is there that may not be had. Dropped, it is let go.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    /// Where logins are checked otherwise.
    auth: Option<Arc<Authenticator>>,
    /// In the order of `config`.
    listeners: Vec<Slot>,
}

/// A listener of the new settings.
#[derive(Debug)]
enum Slot {
    /// As it is.
    Kept(Open),
    /// On a socket that is there, or on a new one.
    New(Open),
}

impl Broker {
    /// Gets what other settings need: sockets and files. Nothing changes.
    ///
    /// # Errors
    /// [`PrepareError`]: which address or file, and why.
    pub async fn prepare(self: &Arc<Self>, config: Config) -> Result<Prepared, PrepareError> {
        let mut there: Vec<Open> = self.open.lock().clone();
        let mut listeners = Vec::new();
        for listener in &config.listeners {
            let own = |open: &Open| open.listening.entrance.listener.bind.is_at(&listener.bind);
            let same = there.iter().position(|open| *open.listening.entrance.listener == *listener);
            listeners.push(match (same, there.iter().position(own)) {
                (Some(at), _) => Slot::Kept(there.remove(at)),
                (None, Some(at)) => {
                    let old = there.remove(at);
                    let certificates = self.certificates(listener)?;
                    let bound = old.listening.bound.clone();
                    Slot::New(self.opened(old.door, bound, listener, certificates))
                }
                (None, None) => Slot::New(self.open_listener(listener).await?),
            });
        }
        let current = self.config.load_full();
        let is_same = config.auth == current.auth && config.names_count() == current.names_count();
        let auth = if is_same { None } else { self.other_auth(&config).await };
        let errors = auth.as_ref().map(|auth| auth.errors()).unwrap_or_default();
        if !errors.is_empty() {
            return Err(PrepareError::Auth(errors.join("; ")));
        }
        Ok(Prepared { config, auth, listeners })
    }

    /// It reads files.
    async fn other_auth(self: &Arc<Self>, config: &Config) -> Option<Arc<Authenticator>> {
        let (before, auth, names_count) = (self.auth.load_full(), config.auth.clone(), config.names_count());
        let open = move || Arc::new(before.successor(auth, names_count));
        let opened = tokio::task::spawn_blocking(open).await;
        opened.inspect_err(|error| tracing::error!(%error, "logins go on as before")).ok()
    }

    /// Goes by them from now on.
    pub async fn change(self: &Arc<Self>, prepared: Prepared) {
        let Prepared { config, auth, listeners } = prepared;
        self.all_places.resize(config.connections_max);
        let handshakes_max = config.handshakes_max;
        let interval = config.sys_interval;
        let before = self.config.swap(Arc::new(config));
        if before.sys_interval != interval {
            self.interval_changed.notify_one();
        }
        if let Some(auth) = auth {
            // Those who log in meanwhile are told to come again.
            let changes = auth.succeed(&self.auth.load());
            self.auth.store(auth);
            self.take_note_of(&changes);
        }
        self.limit_anew();
        let (mut next, mut new) = (Vec::new(), Vec::new());
        for slot in listeners {
            match slot {
                Slot::Kept(open) => {
                    open.places.handshakes.resize(handshakes_max);
                    next.push(open);
                }
                Slot::New(open) => {
                    new.push(open.clone());
                    next.push(open);
                }
            }
        }
        let earlier = std::mem::replace(&mut *self.open.lock(), next.clone());
        for gone in earlier.iter().filter(|old| next.iter().all(|open| !is_one(open, old))) {
            tracing::info!(address = %gone.listening.bound, "a listener ends, or begins anew");
            gone.stop.cancel();
            // Its socket is let go, or is its successor's alone.
            if tokio::time::timeout(LISTENER_LIMIT, gone.ended.cancelled()).await.is_err() {
                tracing::warn!(address = %gone.listening.bound, "a listener did not end in time");
            }
            self.arrivals.lock().remove(&Arc::as_ptr(&gone.listening.entrance.listener).addr());
        }
        for open in &new {
            open.places.handshakes.resize(handshakes_max);
            set_mode(&open.listening.entrance.listener.bind);
            self.watch(open);
            self.accept_by(open).await;
        }
    }

    /// What sessions that are there may be owed, by the limits that are in force now. The rates and the packet size of a connection stay
    /// until it ends.
    fn limit_anew(&self) {
        let (config, auth, listeners) = (self.config.load_full(), self.auth.load_full(), self.listeners_by_name());
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        for client in clients {
            let mut state = client.lock();
            if let Some(at) = &mut state.kept_at
                && let Some(listener) = listeners.get(&**at.name())
            {
                at.listener = Arc::clone(listener);
            }
            let groups = state.granted.as_ref().map(|granted| auth.groups_of(granted)).unwrap_or_default();
            state.limits = limits::rule_of(&config.limits, state.terms.user.as_deref(), &groups);
        }
    }

    /// Places that are to go do so when they are given back.
    pub(super) fn settle_places(&self) {
        self.all_places.settle();
        self.open.lock().iter().for_each(|open| open.places.handshakes.settle());
    }
}

fn is_one(a: &Open, b: &Open) -> bool {
    Arc::ptr_eq(&a.listening.entrance, &b.listening.entrance)
}

/// A socket that stays may have other permissions now.
fn set_mode(bind: &Bind) {
    if let Bind::Unix { path, mode } = bind
        && let Err(error) = fs::set_permissions(path, Permissions::from_mode(*mode))
    {
        tracing::warn!(path = %path.display(), %error, "the permissions of a Unix socket stay as they were");
    }
}
