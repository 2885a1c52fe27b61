//! LDAP: a simple bind as the user, to a directory that knows who may log in (RFC 4511 section 4.2).
//!
//! Two ways to a user's entry: by a template of its name (`bind_dn`), or by a search with a service account (`search`).
//! What a client says is escaped wherever it goes (RFC 4514 section 2.4 in names, RFC 4515 section 3 in filters). An
//! empty password never reaches the directory, which would take it for an anonymous bind and say yes (RFC 4513
//! section 5.1.2).

mod ask;
mod template;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub(super) use self::ask::{Ldap, Verdict};
pub use self::template::{Template, TemplateError};
use super::hidden::Hidden;

/// Settings of `auth.ldap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `ldap://HOST:PORT` or `ldaps://HOST:PORT`.
    pub url: Url,
    /// TLS is asked for on a plain connection before anything is said (RFC 4511 section 4.14).
    pub starttls: bool,
    /// The authority of the directory's certificate, in place of the web's.
    pub ca: Option<PathBuf>,
    /// How long a login may take, waiting for its turn included. Default 5 s.
    pub timeout: Duration,
    /// Logins asked for at the same time; more wait. Default 16.
    pub connections_max: usize,
    /// How long what the directory said of a login is remembered. Default: it is not.
    pub cache: Duration,
    /// How a user's entry is found.
    pub find: Find,
    /// Where its groups are. Default: none are asked for.
    pub groups: Option<Groups>,
}

/// How a user's entry is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Find {
    /// Its name follows from the user's, such as `uid={user},ou=people,dc=plant`.
    ByName(Template),
    /// A service account looks for it.
    BySearch {
        /// The account.
        account: Account,
        /// Below which entry.
        base: Box<str>,
        /// Which, such as `(&(objectClass=person)(uid={user}))`. One entry has to match.
        filter: Template,
    },
}

/// A service account: allowed to search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub dn: Box<str>,
    /// Its password.
    pub password: Hidden,
}

/// Where a user's groups are. They are asked for by the service account where there is one, else by the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Below which entry.
    pub base: Box<str>,
    /// Which, such as `(member={dn})`.
    pub filter: Template,
    /// Whose values are the groups' names. Default `cn`.
    pub attribute: Box<str>,
}
