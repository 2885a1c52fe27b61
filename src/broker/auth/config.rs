//! Settings of who may come in, and what they may do.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::acl::Acl;
use super::{http, jwt, ldap};

/// `broker.auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file of users and their passwords. Re-read when it changes.
    pub users: Option<PathBuf>,
    /// Tokens as passwords. Default: none are taken.
    pub jwt: Option<jwt::Config>,
    /// A program that decides. Default: none is asked.
    pub http: Option<http::Config>,
    /// A directory. Default: none is asked.
    pub ldap: Option<ldap::Config>,
    /// From so many failed logins of an address on, of which one is healed in 2 s, its logins are refused without a look at them;
    /// `None`: never. Default 100.
    pub failed_logins_max: Option<NonZeroU32>,
    /// How long a login by a certificate, a token, a program or a directory lives at most: then the client is ended, and logs in again.
    /// Default: as long as its connection.
    pub login_max: Option<Duration>,
    /// Groups by user.
    pub groups: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// What clients may publish and read. Default: everything.
    pub acl: AclSource,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            users: None,
            jwt: None,
            http: None,
            ldap: None,
            failed_logins_max: NonZeroU32::new(100),
            login_max: None,
            groups: BTreeMap::new(),
            acl: AclSource::Everything,
        }
    }
}

/// Where the rules are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AclSource {
    /// There are none: whoever is in may publish and read everything.
    #[default]
    Everything,
    /// In `routes.yaml`.
    Rules(Acl),
    /// In a file in Mosquitto's format. Re-read when it changes.
    File(PathBuf),
}

impl Config {
    /// Whether clients can log in: some method is there that knows users.
    #[must_use]
    pub const fn has_logins(&self) -> bool {
        self.users.is_some() || self.jwt.is_some() || self.http.is_some() || self.ldap.is_some()
    }
}
