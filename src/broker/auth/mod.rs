//! Who may come in, and what they may do.
//!
//! ```text
//! CONNECT ── Authenticator::authenticate: methods in their order ──► Verdict ── Granted ── Policy::rights ──► Rights of the session
//!                                                                                                              │
//!                                              checked at subscribe, at publish, at each delivery, at wills ◄──┘
//! ```
//!
//! - [`passwords`], [`users`]: the file of users. [`hashing`]: where passwords are checked. [`attempts`]: who guesses is slowed down.
//! - [`jwt`], [`http`], [`ldap`]: logins that others vouch for; [`vouched`] makes one kind of answer of theirs.
//! - [`scram`], [`enhanced`], [`proofs`]: a proof in place of a password (MQTT 5, AUTH packets).
//! - [`acl`]: rules and rights, pure. [`acl_file`]: Mosquitto's format of them, pure.
//!
//! Invariants: the first method that knows the user decides, and one that cannot be asked lets nobody in: nothing falls through
//! to a weaker method. A user that no method knows costs the time of one that is known. A file with a mistake changes nothing.
//! No password is kept, logged or shown.

pub mod acl;
pub mod acl_file;
mod attempts;
mod cache;
mod config;
pub(super) mod enhanced;
mod hashing;
mod hidden;
pub mod http;
mod http_client;
pub mod jwt;
pub mod ldap;
pub mod passwords;
mod proofs;
mod rules;
pub mod scram;
#[cfg(test)]
#[path = "../../../tests/support/server.rs"]
mod server;
#[cfg(test)]
mod services;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod users;
mod vouched;
mod watched;

pub use config::{AclSource, Config};
pub use hidden::{Address, Hidden};
pub(super) use proofs::OwnSecret;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use self::acl::{Acl, Rights, Subject};
use self::attempts::Attempts;
use self::hashing::{Busy, Hashing};
use self::users::Users;
use self::watched::Watched;
use super::reload::Reread;
use super::transport::Peer;
use crate::clock::Clock;
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::wire::{ReasonCode, Version};

/// Lines of the log about refused logins.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A mistake in a file of users or rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Counts from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// What a client shows at CONNECT, and where it comes from. Its password is not for Debug.
#[derive(Clone, Copy)]
pub(super) struct Login<'a> {
    /// As it asked; may be empty.
    pub(super) client_id: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a [u8]>,
    /// The user of its verified certificate, where the listener takes users from there.
    pub(super) certificate_user: Option<&'a str>,
    /// `None`: a Unix socket.
    pub(super) address: Option<IpAddr>,
    /// The listener takes clients without a login.
    pub(super) anonymous: bool,
    /// Where it came in, and what it showed there.
    pub(super) peer: &'a Peer,
    pub(super) version: Version,
}

/// A client that is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    /// `None`: anonymous.
    pub(super) user: Option<Arc<str>>,
    /// Groups that the method knows; those of `auth.groups` come beside them.
    pub(super) groups: Vec<Arc<str>>,
    /// Rules that came with the identity, in the place of those of the configuration.
    pub(super) rules: Option<Arc<Acl>>,
    /// When the login ends, and the connection with it.
    pub(super) expires: Option<Instant>,
    /// Which method let it in.
    pub(super) by: By,
    /// What was known of the file of users when it was asked, see [`Authenticator::moment_of_users`].
    pub(super) since: u64,
}

/// What let a client in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum By {
    /// Nothing: it is anonymous, or names are not checked.
    #[default]
    Nobody,
    /// Its certificate.
    Certificate,
    /// The file of users.
    Users,
    /// Somebody else's word: a token, a program, a directory.
    Others,
}

/// What becomes of a CONNECT.
#[derive(Debug)]
pub(super) enum Verdict {
    Granted(Granted),
    /// `text` is for the client and the log.
    Refused {
        code: ReasonCode,
        text: &'static str,
    },
}

/// What one method says.
#[derive(Debug)]
enum Answer {
    Granted(Granted),
    /// It knows the user, and this is not the password. The words are for the log.
    Wrong(Cow<'static, str>),
    /// It does not know the user: the next one is asked.
    Unknown,
    /// Too many ask at once.
    Busy,
    /// It cannot be asked: nobody knows. Its name, and the words for the log.
    Away(&'static str, String),
}

/// A way to tell who a client is.
#[derive(Debug)]
enum Method {
    /// The file of users.
    Users,
    /// Tokens.
    Jwt(Arc<jwt::Jwt>),
    /// A program.
    Http(Arc<http::Hook>),
    /// A directory.
    Ldap(Arc<ldap::Ldap>),
}

/// What reading the files again has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Users whose password is another now, or who are gone.
    pub(super) users: HashSet<Box<str>>,
    /// The rules are others now.
    pub(super) acl: bool,
}

/// See [`Authenticator::moment_of_users`].
#[derive(Debug, Default)]
struct Moved {
    /// How often the file was read again.
    count: u64,
    /// Users whose entries changed, or who went, and when last.
    users: HashMap<Box<str>, u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Authenticator {
    /// In the order in which they are asked.
    methods: Vec<Method>,
    /// User names are worth nothing, and hurt nothing: nobody is asked for a password, and no rule hangs on a name.
    takes_any_name: bool,
    users_file: Option<Watched>,
    users: ArcSwap<Users>,
    /// How they have changed since the start.
    moved: Mutex<Moved>,
    acl_file: Option<Watched>,
    /// `None`: everything is allowed.
    acl: ArcSwapOption<Acl>,
    groups: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    login_max: Option<Duration>,
    hashing: Hashing,
    attempts: Attempts,
    refusals: Limited,
    absences: Limited,
    own_secret: OwnSecret,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// With the files as they are now. One that cannot be read, or has a mistake, lets nobody in until it is mended, and says so.
    /// `names_count`: some listener takes users from certificates, so a name must never be taken on trust.
    pub(super) fn open(config: Config, names_count: bool, own_secret: OwnSecret, clock: Arc<dyn Clock>) -> Self {
        let methods = methods(&config, &clock, &[]);
        Self::with(methods, config, names_count, own_secret, clock)
    }

    /// The same for one that is to [succeed](Self::succeed) this one: a method whose settings are the same is the same, with the keys it has
    /// fetched and the answers it remembers.
    pub(super) fn successor(&self, config: Config, names_count: bool) -> Self {
        let methods = methods(&config, &self.clock, &self.methods);
        Self::with(methods, config, names_count, self.own_secret(), Arc::clone(&self.clock))
    }

    fn with(
        methods: Vec<Method>,
        config: Config,
        names_count: bool,
        own_secret: OwnSecret,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let Config { users, groups, acl, .. } = config;
        let has_rules = acl != AclSource::Everything;
        let (acl, acl_file) = match acl {
            AclSource::Everything => (None, None),
            AclSource::Rules(acl) => (Some(Arc::new(acl)), None),
            // Until it is read nothing is allowed.
            AclSource::File(path) => (Some(Arc::new(Acl::new(Vec::new(), acl::Asks::All))), Some(Watched::new(path))),
        };
        let opened = Self {
            takes_any_name: methods.is_empty() && !has_rules && !names_count,
            methods,
            users_file: users.map(Watched::new),
            users: ArcSwap::default(),
            moved: Mutex::default(),
            acl_file,
            acl: ArcSwapOption::new(acl),
            groups,
            login_max: config.login_max,
            hashing: Hashing::new(),
            attempts: Attempts::new(config.failed_logins_max),
            refusals: Limited::new(LOG_EVERY),
            absences: Limited::new(LOG_EVERY),
            own_secret,
            clock,
        };
        opened.reload(true);
        opened
    }

    /// Who a client is. `now` is when it asked. Waits for the check of a password, and longer for the answer to one that is wrong.
    pub(super) async fn authenticate(&self, login: &Login<'_>, now: Instant) -> Verdict {
        if let Some(user) = login.certificate_user {
            let (user, expires) = (Some(user.into()), self.end_of_login(None));
            return Verdict::Granted(Granted { user, by: By::Certificate, expires, ..Granted::default() });
        }
        let has_credentials = login.user.is_some() || login.password.is_some();
        if self.methods.is_empty() || !has_credentials {
            let user = login.user.filter(|_| self.takes_any_name).map(Into::into);
            return match login.anonymous {
                true => Verdict::Granted(Granted { user, ..Granted::default() }),
                false => Verdict::Refused {
                    code: ReasonCode::NotAuthorized,
                    text: "this listener takes no clients without a login",
                },
            };
        }
        if !self.attempts.may_try(login.address, now) {
            return Verdict::Refused {
                code: ReasonCode::ServerBusy,
                text: "too many logins from this address have failed",
            };
        }
        for method in &self.methods {
            match self.ask(method, login).await {
                Answer::Granted(granted) => return Verdict::Granted(granted),
                Answer::Wrong(why) => return self.wrong(login, &why, now).await,
                Answer::Busy => return busy(),
                Answer::Away(name, why) => return self.away(name, &why, now),
                Answer::Unknown => {}
            }
        }
        // A name that nobody knows costs what one costs that is known.
        let decoy = self.users.load().decoy(login.user.unwrap_or_default()).cloned();
        let password: Box<[u8]> = login.password.unwrap_or_default().into();
        if let Some(decoy) = decoy
            && self.hashing.run(move || decoy.verify(&password)).await.is_err()
        {
            return busy();
        }
        self.wrong(login, "nobody of that name is known", now).await
    }

    async fn ask(&self, method: &Method, login: &Login<'_>) -> Answer {
        match method {
            Method::Users => self.ask_users(login).await,
            Method::Jwt(method) => self.ask_jwt(method, login).await,
            Method::Http(method) => self.ask_http(method, login).await,
            Method::Ldap(method) => self.ask_ldap(method, login).await,
        }
    }

    async fn ask_users(&self, login: &Login<'_>) -> Answer {
        let Some(user) = login.user else { return Answer::Unknown };
        let since = self.moment_of_users();
        let Some(secret) = self.users.load().get(user).cloned() else { return Answer::Unknown };
        let password: Box<[u8]> = login.password.unwrap_or_default().into();
        match self.hashing.run(move || secret.verify(&password)).await {
            Ok(true) => {
                Answer::Granted(Granted { user: Some(user.into()), by: By::Users, since, ..Granted::default() })
            }
            Ok(false) => Answer::Wrong("the password is wrong".into()),
            Err(Busy) => Answer::Busy,
        }
    }

    /// Notes, tells and delays a failed login.
    async fn wrong(&self, login: &Login<'_>, why: &str, now: Instant) -> Verdict {
        let delay = self.attempts.note_failure(login.address, now);
        if let Some(held_back) = self.refusals.pass(now) {
            let address = login.address.map_or_else(|| "a Unix socket".to_owned(), |address| address.to_string());
            let (user, client) = (Shown(login.user.unwrap_or_default()), Shown(login.client_id));
            tracing::warn!(address, %user, %client, held_back, why = %Shown(why), "a login has failed");
        }
        tokio::time::sleep(delay).await;
        Verdict::Refused { code: ReasonCode::BadUserNameOrPassword, text: "unknown user or wrong password" }
    }

    /// The groups that a user is in: those that its method knows, and those of `auth.groups`.
    pub(super) fn groups_of(&self, granted: &Granted) -> Vec<Arc<str>> {
        let mut groups = granted.groups.clone();
        groups.extend(granted.user.as_ref().and_then(|user| self.groups.get(user)).into_iter().flatten().cloned());
        groups
    }

    /// Nobody knows whether the login is right: then it is not taken, and no other method is asked in the place of this one.
    fn away(&self, name: &str, why: &str, now: Instant) -> Verdict {
        if let Some(held_back) = self.absences.pass(now) {
            tracing::warn!(
                method = name,
                error = why,
                held_back,
                "logins cannot be checked: clients are told to come again"
            );
        }
        let text = "the login cannot be checked at this moment; come again";
        Verdict::Refused { code: ReasonCode::ServerUnavailable, text }
    }

    /// What a client may do; `None`: everything.
    pub(super) fn rights(&self, granted: &Granted, client_id: &str) -> Option<Arc<Rights>> {
        let acl = granted.rules.clone().or_else(|| self.acl.load_full())?;
        let user = granted.user.as_deref();
        let groups = self.groups_of(granted);
        Some(Arc::new(acl.rights(Subject { user, client_id, groups: &groups })))
    }

    /// What the rules that name a user say it may do; `None`: none names it, or there are no rules.
    pub(super) fn rights_by_name(&self, user: Option<&Arc<str>>, client_id: &str) -> Option<Rights> {
        let acl = self.acl.load_full()?;
        let groups = user.and_then(|user| self.groups.get(user)).map(Vec::as_slice).unwrap_or_default();
        let subject = Subject { user: user.map(|user| &**user), client_id, groups };
        acl.names(subject).then(|| acl.rights(subject))
    }

    /// The gateway's own.
    pub(super) fn own_secret(&self) -> OwnSecret {
        self.own_secret.clone()
    }

    /// A moment in the life of the file of users: to be asked for before an entry is.
    pub(super) fn moment_of_users(&self) -> u64 {
        self.moved.lock().count
    }

    /// Whether what let a client in is not true any more: its user's entry was changed or removed since.
    pub(super) fn is_stale(&self, granted: &Granted) -> bool {
        let Some(user) = granted.user.as_deref().filter(|_| granted.by == By::Users) else { return false };
        self.moved.lock().users.get(user).is_some_and(|at| *at > granted.since)
    }

    /// Whether user names mean nothing here.
    pub(super) const fn takes_any_name(&self) -> bool {
        self.takes_any_name
    }

    /// Takes the place of `before`. Answers what that changes for those whom `before` has let in; logins that others vouched for stay
    /// until their connections end.
    pub(super) fn succeed(&self, before: &Self) -> Changes {
        // Who guesses passwords does not begin anew because somebody edits a rule.
        self.attempts.go_on_from(&before.attempts);
        let (old, new) = (before.users.load(), self.users.load());
        let users: HashSet<Box<str>> = old.changed(&new).map(Into::into).collect();
        let (mut moved, earlier) = (self.moved.lock(), before.moved.lock());
        let count = earlier.count + 1;
        moved.users = earlier.users.clone();
        moved.users.extend(users.iter().map(|user| (user.clone(), count)));
        moved.count = count;
        let acl = *self.acl.load() != *before.acl.load() || self.groups != before.groups;
        Changes { users, acl }
    }

    /// Reads again what has changed, or everything (`always`). A file with a mistake changes nothing.
    pub(super) fn reload(&self, always: bool) -> Changes {
        let mut changes = Changes::default();
        if let Some(users) = read(self.users_file.as_ref(), always, "users", Users::parse) {
            let old = self.users.load_full();
            changes.users = old.changed(&users).map(Into::into).collect();
            tracing::info!(users = users.len(), changed = changes.users.len(), "the file of users was read");
            let mut moved = self.moved.lock();
            self.users.store(Arc::new(users));
            moved.count += 1;
            let count = moved.count;
            moved.users.extend(changes.users.iter().map(|user| (user.clone(), count)));
        }
        if let Some(acl) = read(self.acl_file.as_ref(), always, "rules", acl_file::parse) {
            changes.acl = self.acl.load().as_deref() != Some(&acl);
            tracing::info!(changed = changes.acl, "the file of rules was read");
            self.acl.store(Some(Arc::new(acl)));
        }
        for method in &self.methods {
            match method {
                Method::Users => {}
                Method::Jwt(method) => method.reload(always),
                Method::Http(method) => method.reload(always),
                Method::Ldap(method) => method.reload(always),
            }
        }
        changes
    }

    /// Files that cannot be used as they are now, and why.
    pub(super) fn errors(&self) -> Vec<String> {
        let wrong = self.files().filter_map(|(what, file)| Some((what, file.path().display(), file.error()?)));
        wrong.map(|(what, path, error)| format!("the {what} of {path} are as they were: {error}")).collect()
    }

    /// Files that are others than when this was asked last, and are in force.
    pub(super) fn take_news(&self) -> Vec<Reread> {
        let files = self.files().filter(|(_, file)| file.take_news()).map(|(what, _)| what);
        let authorities = self.methods.iter().filter_map(|method| match method {
            Method::Users => None,
            Method::Jwt(method) => method.take_news().then_some("auth.jwt.ca"),
            Method::Http(method) => method.take_news().then_some("auth.http.ca"),
            Method::Ldap(method) => method.take_news().then_some("auth.ldap.ca"),
        });
        files.chain(authorities).map(Reread::Logins).collect()
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &Watched)> {
        let keys = self.methods.iter().find_map(|method| match method {
            Method::Jwt(method) => method.file(),
            Method::Users | Method::Http(_) | Method::Ldap(_) => None,
        });
        let files = [("users", self.users_file.as_ref()), ("rules", self.acl_file.as_ref()), ("keys for tokens", keys)];
        files.into_iter().filter_map(|(what, file)| Some((what, file?)))
    }
}

/// In their order. Of `before` those that have the same settings are taken.
fn methods(config: &Config, clock: &Arc<dyn Clock>, before: &[Method]) -> Vec<Method> {
    let mut methods: Vec<Method> = config.users.iter().map(|_path| Method::Users).collect();
    if let Some(config) = &config.jwt {
        let same = before.iter().find_map(|method| match method {
            Method::Jwt(method) if method.is_by(config) => Some(Arc::clone(method)),
            Method::Users | Method::Jwt(_) | Method::Http(_) | Method::Ldap(_) => None,
        });
        methods.push(Method::Jwt(same.unwrap_or_else(|| Arc::new(jwt::Jwt::open(config, Arc::clone(clock))))));
    }
    if let Some(config) = &config.http {
        let same = before.iter().find_map(|method| match method {
            Method::Http(method) if method.is_by(config) => Some(Arc::clone(method)),
            Method::Users | Method::Jwt(_) | Method::Http(_) | Method::Ldap(_) => None,
        });
        methods.push(Method::Http(same.unwrap_or_else(|| Arc::new(http::Hook::open(config, Arc::clone(clock))))));
    }
    if let Some(config) = &config.ldap {
        let same = before.iter().find_map(|method| match method {
            Method::Ldap(method) if method.is_by(config) => Some(Arc::clone(method)),
            Method::Users | Method::Jwt(_) | Method::Http(_) | Method::Ldap(_) => None,
        });
        methods.push(Method::Ldap(same.unwrap_or_else(|| Arc::new(ldap::Ldap::open(config, Arc::clone(clock))))));
    }
    methods
}

const fn busy() -> Verdict {
    Verdict::Refused { code: ReasonCode::ServerBusy, text: "too many clients log in at this moment; come again" }
}

/// `None`: it is as it was, or of no use, which is logged.
fn read<T>(
    file: Option<&Watched>,
    always: bool,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, Vec<LineError>>,
) -> Option<T> {
    let file = file?;
    let path = file.path().display();
    let wrong = match file.read(always)? {
        Err(error) => {
            tracing::error!(%path, %error, "the file of {what} cannot be read: what was in force stays so");
            error.to_string()
        }
        Ok(text) => match parse(&text) {
            Ok(parsed) => {
                file.note(None);
                return Some(parsed);
            }
            Err(wrong) => {
                for LineError { line, text } in &wrong {
                    tracing::error!(%path, line, error = text, "the file of {what} has a mistake: what was in force stays so");
                }
                wrong.iter().map(LineError::to_string).collect::<Vec<_>>().join("; ")
            }
        },
    };
    file.note(Some(wrong));
    None
}
