//! Where the keys come from, and when they are read again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::keys::{self, Key};
use super::token::{self, Token, TokenError};
use super::{Claims, Config, KeySource};
use crate::broker::auth::hidden::Address;
use crate::broker::auth::http_client::{HttpClient, HttpError};
use crate::broker::auth::watched::Watched;
use crate::clock::Clock;

/// Between two fetches of a JWK set, whatever tokens come: one with an unknown key costs no more than this.
const FETCH_FLOOR: Duration = Duration::from_secs(10);

/// A JWK set's bytes at most: those of large providers have 10 KiB.
const JWKS_BYTES_MAX: usize = 256 << 10;

/// The method. Keys are shared by all logins; whoever needs newer ones fetches them for all.
#[derive(Debug)]
pub(in crate::broker::auth) struct Jwt {
    config: Config,
    origin: Origin,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// One fetch at a time.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum Origin {
    Fixed,
    File { file: Watched, is_pem: bool },
    Url { url: Address, client: Box<HttpClient>, refresh: Duration },
}

#[derive(Debug, Default)]
struct State {
    /// The last set that was good.
    keys: Option<Arc<[Key]>>,
    /// When the source was asked last.
    tried: Option<Instant>,
    /// When it answered well last.
    read: Option<Instant>,
    /// Why it did not answer well, if it did not.
    trouble: Option<String>,
}

/// What this method says of a password.
#[derive(Debug)]
pub(in crate::broker::auth) enum Verdict {
    /// It is no token.
    NotMine,
    /// A good token.
    Good(Claims),
    /// A bad one; the words are for the log.
    Bad(String),
    /// There are no keys that could tell.
    NoKeys(String),
}

impl Jwt {
    /// With the keys of a secret. Those in a file are there after [`Jwt::reload`]; those behind an address are fetched when the first
    /// token comes. While there are none no token gets in.
    pub(in crate::broker::auth) fn open(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let mut state = State::default();
        let origin = match &config.keys {
            KeySource::Secret(secret) => {
                match keys::of_secret(secret.reveal().as_bytes()) {
                    Ok(keys) => state.keys = Some(keys.into()),
                    Err(error) => state.trouble = Some(error.to_string()),
                }
                Origin::Fixed
            }
            KeySource::Pem(path) => Origin::File { file: Watched::new(path.clone()), is_pem: true },
            KeySource::JwksFile(path) => Origin::File { file: Watched::new(path.clone()), is_pem: false },
            KeySource::JwksUrl { url, ca, timeout, refresh } => Origin::Url {
                url: url.clone(),
                client: Box::new(HttpClient::new(ca.clone(), *timeout)),
                refresh: *refresh,
            },
        };
        let (config, state) = (config.clone(), Mutex::new(state));
        Self { config, origin, clock, state, fetching: tokio::sync::Mutex::default() }
    }

    /// Whether it goes by these settings.
    pub(in crate::broker::auth) fn is_by(&self, config: &Config) -> bool {
        self.config == *config
    }

    /// Reads a file of keys again: if it has changed, or in any case (`always`). One with a mistake leaves the old keys in force. Of keys
    /// behind an address the same goes for its authority.
    pub(in crate::broker::auth) fn reload(&self, always: bool) {
        match &self.origin {
            Origin::Fixed => {}
            Origin::Url { client, .. } => client.reload(always),
            Origin::File { file, is_pem } => {
                if let Some(read) = read_file(file, *is_pem, always) {
                    self.take_file(file, read);
                }
            }
        }
    }

    /// Whether the authority of an address is another than when this was asked last.
    pub(in crate::broker::auth) fn take_news(&self) -> bool {
        matches!(&self.origin, Origin::Url { client, .. } if client.take_news())
    }

    /// The file of its keys, if they are in one.
    pub(in crate::broker::auth) const fn file(&self) -> Option<&Watched> {
        match &self.origin {
            Origin::File { file, .. } => Some(file),
            Origin::Fixed | Origin::Url { .. } => None,
        }
    }

    /// Judges a password.
    pub(in crate::broker::auth) async fn check(&self, user: Option<&str>, password: &[u8]) -> Verdict {
        if !token::looks_like_one(password) {
            return Verdict::NotMine;
        }
        let token = match Token::parse(password) {
            Ok(token) => token,
            Err(error) => return Verdict::Bad(error.to_string()),
        };
        let keys = match self.keys(false).await {
            Ok(keys) => keys,
            Err(why) => return Verdict::NoKeys(why),
        };
        let verified = match token.verify(&keys, &self.config.terms) {
            Err(TokenError::UnknownKey(_)) => match self.keys(true).await {
                Ok(keys) => token.verify(&keys, &self.config.terms),
                Err(why) => return Verdict::NoKeys(why),
            },
            verified => verified,
        };
        match verified.and_then(|()| token.claims(&self.config.terms, self.clock.wall(), user)) {
            Ok(claims) => Verdict::Good(claims),
            Err(error) => Verdict::Bad(error.to_string()),
        }
    }

    /// The keys there are, read again if it is time; at once where `newer` ones are wanted, but for the floor.
    ///
    /// # Errors
    /// There are none; or newer ones are wanted and their source does not answer, so that nobody can tell.
    async fn keys(&self, newer: bool) -> Result<Arc<[Key]>, String> {
        if self.is_due(newer) {
            self.read_again(newer).await;
        }
        let state = self.state.lock();
        match (&state.keys, &state.trouble) {
            (Some(keys), None) => Ok(Arc::clone(keys)),
            // The last good set stands while its source is away: a token that it knows is good.
            (Some(keys), Some(_)) if !newer => Ok(Arc::clone(keys)),
            (_, trouble) => Err(trouble.clone().unwrap_or_else(|| "there are no keys yet".to_owned())),
        }
    }

    fn is_due(&self, newer: bool) -> bool {
        let state = self.state.lock();
        let now = self.clock.now();
        let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        match &self.origin {
            Origin::Fixed | Origin::File { .. } => false,
            Origin::Url { refresh, .. } => {
                let is_old = newer || since(state.read).is_none_or(|age| age >= *refresh);
                is_old && since(state.tried).is_none_or(|since| since >= FETCH_FLOOR)
            }
        }
    }

    async fn read_again(&self, newer: bool) {
        let has_keys = self.state.lock().keys.is_some();
        // Whoever can do with the old set does not wait for another's fetch.
        let permit = if has_keys && !newer { self.fetching.try_lock().ok() } else { Some(self.fetching.lock().await) };
        let Some(permit) = permit else { return };
        // Whoever waited for another's fetch has its keys now.
        if self.is_due(newer)
            && let Origin::Url { url, client, .. } = &self.origin
        {
            self.take(fetch(client, url).await, url);
        }
        drop(permit);
    }

    fn take_file(&self, file: &Watched, read: Result<Vec<Key>, String>) {
        let path = file.path().display();
        let mut state = self.state.lock();
        file.note(read.as_ref().err().cloned());
        match read {
            Ok(keys) => {
                tracing::info!(%path, keys = keys.len(), "the keys for tokens were read");
                (state.keys, state.trouble) = (Some(keys.into()), None);
            }
            Err(error) => {
                tracing::error!(%path, error, "the keys for tokens cannot be read: what was in force stays so");
                state.trouble = Some(format!("{path}: {error}"));
            }
        }
    }

    fn take(&self, fetched: Result<Vec<Key>, String>, url: &Address) {
        let mut state = self.state.lock();
        // Not before: who comes while a fetch is under way waits for it.
        state.tried = Some(self.clock.now());
        match fetched {
            Ok(keys) => {
                tracing::debug!(%url, keys = keys.len(), "the keys for tokens were fetched");
                (state.keys, state.read, state.trouble) = (Some(keys.into()), Some(self.clock.now()), None);
            }
            Err(error) => {
                tracing::warn!(%url, error, "the keys for tokens cannot be fetched");
                state.trouble = Some(format!("{url}: {error}"));
            }
        }
    }
}

async fn fetch(client: &HttpClient, url: &Address) -> Result<Vec<Key>, String> {
    let (status, body) =
        client.get(url.reveal(), JWKS_BYTES_MAX).await.map_err(|error: HttpError| error.to_string())?;
    if !status.is_success() {
        return Err(format!("the answer is {status}"));
    }
    keys::of_jwks(&body, false).map_err(|error| error.to_string())
}

/// `None`: the file is as it was when it was last read, and is not to be read `always`.
fn read_file(file: &Watched, is_pem: bool, always: bool) -> Option<Result<Vec<Key>, String>> {
    let text = match file.read(always)? {
        Ok(text) => text,
        Err(error) => return Some(Err(error.to_string())),
    };
    let keys = if is_pem { keys::of_pem(text.as_bytes()) } else { keys::of_jwks(text.as_bytes(), true) };
    Some(keys.map_err(|error| error.to_string()))
}
