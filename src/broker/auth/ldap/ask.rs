//! A login at the directory: a connection of its own, a bind, and where it is asked for the user's groups.

use std::sync::Arc;
use std::time::Duration;

use ldap3::{
    Ldap as Handle, LdapConnAsync, LdapConnSettings, LdapError as WireError, Scope, SearchEntry, SearchOptions,
};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Account, Config, Find, Groups};
use crate::broker::auth::cache::{Cache, Remembered};
use crate::broker::auth::tls::{self, TlsError};
use crate::broker::reload::Watch;
use crate::clock::{Clock, WallMs};

/// A user name's bytes at most; directories have shorter ones.
const USER_BYTES_MAX: usize = 256;

/// Said of a name that [`is_spelt_plainly`] refuses.
pub(super) const PLAINLY: &str =
    "a user of a directory logs in by its name in small letters of ASCII, without spaces at the ends or in a row";

/// Groups of a user at most that are asked for.
const GROUPS_MAX: i32 = 1_000;

/// RFC 4511 section 4.1.9, and what each says of a bind as the user.
mod code {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const CONSTRAINT_VIOLATION: u32 = 19;
    pub(super) const NO_SUCH_OBJECT: u32 = 32;
    pub(super) const INAPPROPRIATE_AUTHENTICATION: u32 = 48;
    pub(super) const INVALID_CREDENTIALS: u32 = 49;
    pub(super) const INSUFFICIENT_ACCESS: u32 = 50;
    pub(super) const UNWILLING: u32 = 53;
}

/// The method.
#[derive(Debug)]
pub(in crate::broker::auth) struct Ldap {
    config: Config,
    /// Made as soon as the authority's file can be used, and again when it has changed.
    tls: Mutex<Option<Arc<ClientConfig>>>,
    watch: Mutex<Watch>,
    turns: Semaphore,
    cache: Cache<Verdict>,
    clock: Arc<dyn Clock>,
}

/// What this method says of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::broker::auth) enum Verdict {
    /// The directory knows nobody of that name.
    Unknown,
    /// It is right; in these groups.
    Good(Vec<Box<str>>),
    /// It is wrong; the words are for the log.
    Bad(String),
    /// The directory cannot be asked.
    Away(String),
}

impl Remembered for Verdict {
    fn is_yes(&self) -> Option<bool> {
        match self {
            Self::Good(_) => Some(true),
            Self::Unknown | Self::Bad(_) => Some(false),
            Self::Away(_) => None,
        }
    }

    fn is_over(&self, _wall: WallMs) -> bool {
        false
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Good(groups) => groups.iter().map(|group| group.len() + size_of::<Box<str>>()).sum(),
            Self::Bad(words) | Self::Away(words) => words.len(),
        }
    }
}

impl Ldap {
    pub(in crate::broker::auth) fn open(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let turns = Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS));
        let cache = Cache::new(config.cache);
        let watch = Mutex::new(Watch::taken(config.ca.as_deref()));
        Self { config: config.clone(), tls: Mutex::default(), watch, turns, cache, clock }
    }

    /// Whether it goes by these settings.
    pub(in crate::broker::auth) fn is_by(&self, config: &Config) -> bool {
        self.config == *config
    }

    /// Its authority's file is read again: if it has changed, or in any case (`always`).
    pub(in crate::broker::auth) fn reload(&self, always: bool) {
        if self.config.ca.is_some() && self.watch.lock().is_due(self.config.ca.as_deref(), always) {
            *self.tls.lock() = None;
        }
    }

    /// Whether that file is another than when this was asked last, and can be used.
    pub(in crate::broker::auth) fn take_news(&self) -> bool {
        self.watch.lock().take_news() && tls::client_config(self.config.ca.as_deref()).is_ok()
    }

    /// Judges a login, or remembers what the directory said of it.
    pub(in crate::broker::auth) async fn check(self: &Arc<Self>, user: &str, password: &[u8]) -> Verdict {
        if password.is_empty() {
            return Verdict::Bad("the password is empty".to_owned());
        }
        let Ok(password) = std::str::from_utf8(password) else {
            return Verdict::Bad("the password is no text, which LDAP asks for".to_owned());
        };
        if user.is_empty() || user.len() > USER_BYTES_MAX {
            return Verdict::Bad(format!("a user name has 1 to {USER_BYTES_MAX} bytes"));
        }
        if !is_spelt_plainly(user) {
            return Verdict::Bad(PLAINLY.to_owned());
        }
        let key = self.cache.key(&question(user, password));
        if let Some(verdict) = key.as_ref().and_then(|key| self.cache.get(key, self.clock.now(), self.clock.wall())) {
            return verdict;
        }
        let verdict = self.ask(user, password).await;
        if let Some(key) = key {
            self.cache.put(key, &verdict, self.clock.now());
        }
        verdict
    }

    async fn ask(self: &Arc<Self>, user: &str, password: &str) -> Verdict {
        // In a task of its own: the library panics on answers that are no LDAP, and that is the directory's fault alone.
        let (this, user, password) = (Arc::clone(self), user.to_owned(), password.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move { this.log_in(&user, &password).await });
        match tokio::time::timeout(self.config.timeout, task.join_next()).await {
            Ok(Some(Ok(Ok(verdict)))) => verdict,
            Ok(Some(Ok(Err(error)))) => Verdict::Away(error.to_string()),
            Ok(Some(Err(_)) | None) => Verdict::Away("it answers with something that is no LDAP".to_owned()),
            Err(_elapsed) => Verdict::Away(format!("no answer within {} ms", self.config.timeout.as_millis())),
        }
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<Verdict, AskError> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await.ok();
        let mut connection = self.connect().await?;
        let dn = match &self.config.find {
            Find::ByName(template) => template.filled(user, ""),
            Find::BySearch { account, base, filter } => {
                connection.bind_account(account).await?;
                match connection.find(base, &filter.filled(user, "")).await? {
                    Found::One(dn) => dn,
                    Found::None => return Ok(Verdict::Unknown),
                    Found::Many => return Ok(Verdict::Bad("more than one entry has this name".to_owned())),
                }
            }
        };
        let result = connection.ldap.simple_bind(&dn, password).await?;
        match result.rc {
            code::SUCCESS => {}
            code::INVALID_CREDENTIALS | code::NO_SUCH_OBJECT | code::INAPPROPRIATE_AUTHENTICATION => {
                return Ok(Verdict::Bad("no such user, or a wrong password".to_owned()));
            }
            // A locked account, or one whose password is over: by the directory's own rules.
            code::CONSTRAINT_VIOLATION | code::INSUFFICIENT_ACCESS | code::UNWILLING => {
                return Ok(Verdict::Bad(format!("the directory refuses this user: {result}")));
            }
            _ => return Err(AskError::Refused(format!("the directory does not take a bind: {result}"))),
        }
        let groups = match &self.config.groups {
            Some(groups) => {
                if let Find::BySearch { account, .. } = &self.config.find {
                    connection.bind_account(account).await?;
                }
                connection.groups(groups, user, &dn).await?
            }
            None => Vec::new(),
        };
        connection.close().await;
        Ok(Verdict::Good(groups))
    }

    async fn connect(&self) -> Result<Connection, AskError> {
        let known = self.tls.lock().clone();
        let tls = match known {
            Some(tls) => tls,
            None => Arc::clone(self.tls.lock().insert(tls::client_config(self.config.ca.as_deref())?)),
        };
        let settings = LdapConnSettings::new().set_config(tls).set_starttls(self.config.starttls);
        let (connection, ldap) = LdapConnAsync::from_url_with_settings(settings, &self.config.url).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection.drive());
        Ok(Connection { ldap, _driver: driver })
    }
}

/// What has to be the same for a verdict to be remembered: no user and password make the same bytes as another pair.
fn question(user: &str, password: &str) -> Vec<u8> {
    [&(user.len() as u64).to_le_bytes()[..], user.as_bytes(), password.as_bytes()].concat()
}

/// Directories take a name in many spellings: without regard to case, spaces in a row, and much of Unicode (RFC 4517 section
/// 4.2.11, RFC 4518). Rules, limits and sessions take it byte by byte, so `ANNA` would be let in as somebody whom no rule for
/// `anna` meets. One spelling of each name may log in.
pub(super) fn is_spelt_plainly(user: &str) -> bool {
    let plain = |byte: u8| byte == b' ' || (byte.is_ascii_graphic() && !byte.is_ascii_uppercase());
    user.bytes().all(plain) && !user.starts_with(' ') && !user.ends_with(' ') && !user.contains("  ")
}

/// A connection and what moves its bytes, which ends with it.
struct Connection {
    ldap: Handle,
    _driver: JoinSet<Result<(), WireError>>,
}

enum Found {
    None,
    One(String),
    Many,
}

/// Why the directory could not be asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Refused(String),
}

impl Connection {
    async fn bind_account(&mut self, account: &Account) -> Result<(), AskError> {
        let result = self.ldap.simple_bind(&account.dn, account.password.reveal()).await?;
        if result.rc == code::SUCCESS {
            return Ok(());
        }
        Err(AskError::Refused(format!("the service account {} cannot log in: {result}", account.dn)))
    }

    async fn find(&mut self, base: &str, filter: &str) -> Result<Found, AskError> {
        // Two are enough to know that it is not one; a directory that stops there says so by a result code (4).
        let (entries, result) = self.search(base, filter, "1.1", 2).await?;
        let mut entries = entries.into_iter();
        match (entries.next(), entries.next()) {
            (Some(_), Some(_)) => Ok(Found::Many),
            (Some(entry), None) => Ok(Found::One(entry.dn)),
            (None, _) if result == code::SUCCESS => Ok(Found::None),
            (None, _) => Err(AskError::Refused(format!("the search below {base} fails with result code {result}"))),
        }
    }

    async fn groups(&mut self, groups: &Groups, user: &str, dn: &str) -> Result<Vec<Box<str>>, AskError> {
        let filter = groups.filter.filled(user, dn);
        let (entries, result) = self.search(&groups.base, &filter, &groups.attribute, GROUPS_MAX).await?;
        if result != code::SUCCESS {
            return Err(AskError::Refused(format!(
                "the search for groups below {} fails with result code {result}",
                groups.base
            )));
        }
        let named = |name: &str| name.eq_ignore_ascii_case(&groups.attribute);
        let values = entries.into_iter().flat_map(|entry| entry.attrs).filter(|(name, _)| named(name));
        Ok(values.flat_map(|(_, values)| values).map(String::into_boxed_str).collect())
    }

    async fn search(
        &mut self,
        base: &str,
        filter: &str,
        attribute: &str,
        most: i32,
    ) -> Result<(Vec<SearchEntry>, u32), AskError> {
        self.ldap.with_search_options(SearchOptions::new().sizelimit(most));
        let found = self.ldap.search(base, Scope::Subtree, filter, vec![attribute]).await?;
        // References to other directories and intermediate answers are no entries.
        let entries = found.0.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        Ok((entries.map(SearchEntry::construct).collect(), found.1.rc))
    }

    /// Says goodbye; a directory that does not listen is left without it.
    async fn close(mut self) {
        if tokio::time::timeout(Duration::from_secs(1), self.ldap.unbind()).await.is_err() {
            tracing::debug!("a directory did not take its unbind");
        }
    }
}
