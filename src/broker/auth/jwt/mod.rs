//! JSON Web Tokens as passwords: signed by an identity provider, checked here without asking it.
//!
//! - [`keys`]: what can check a signature, pinned to the algorithms of its kind. [`token`]: from bytes to claims, pure.
//! - [`source`]: where the keys come from: a secret, a file that is read again when it changes, or a JWK set behind an address.
//!
//! A password that has no token's form is none of this method's business: the next one is asked.

mod keys;
mod source;
#[cfg(test)]
pub(in crate::broker) mod tests;
mod token;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::keys::{Algorithm, KeyError, SECRET_BYTES_MIN};
pub(super) use self::source::{Jwt, Verdict};
use super::acl::Acl;
use super::hidden::{Address, Hidden};
use crate::clock::WallMs;

/// Settings of `auth.jwt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the keys come from.
    pub keys: KeySource,
    /// What a token has to say.
    pub terms: Terms,
}

/// Where the keys that check tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A shared secret: HMAC.
    Secret(Hidden),
    /// A file of PEM public keys or certificates, read again when it changes.
    Pem(PathBuf),
    /// A file with a JWK set, read again when it changes.
    JwksFile(PathBuf),
    /// The address of a JWK set: `https://..`.
    JwksUrl {
        /// Where.
        url: Address,
        /// The authority of its certificate, in place of the web's.
        ca: Option<PathBuf>,
        /// How long an answer may take. Default 5 s.
        timeout: Duration,
        /// After which time the set is fetched again. Default 1 h.
        refresh: Duration,
    },
}

/// How many keys a file holds: for `check`.
///
/// # Errors
/// [`KeyError`]: none that could check a token.
pub fn count_keys(text: &str, is_jwks: bool) -> Result<usize, KeyError> {
    let keys = if is_jwks { keys::of_jwks(text.as_bytes(), true) } else { keys::of_pem(text.as_bytes()) };
    keys.map(|keys| keys.len())
}

/// What a token has to say to let a client in, and where it says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The algorithms that are accepted, of those that the keys allow. Empty: all of those.
    pub algorithms: Vec<Algorithm>,
    /// What `iss` has to be. Default: it is not asked.
    pub issuer: Option<Box<str>>,
    /// Of what `aud` has to name one. Empty: tokens with an audience are refused (RFC 7519 section 4.1.3).
    pub audience: Vec<Box<str>>,
    /// By how much clocks may differ. Default 30 s.
    pub leeway: Duration,
    /// The claim that names the user; a user name in CONNECT has to be the same. Default `sub`.
    pub user_claim: Box<str>,
    /// The claim that lists groups. Default: none.
    pub groups_claim: Option<Box<str>>,
    /// The claim that holds rules for topics. Default: none.
    pub acl_claim: Option<Box<str>>,
    /// Tokens without `exp` are refused. Default `true`.
    pub require_expiry: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            algorithms: Vec::new(),
            issuer: None,
            audience: Vec::new(),
            leeway: Duration::from_secs(30),
            user_claim: "sub".into(),
            groups_claim: None,
            acl_claim: None,
            require_expiry: true,
        }
    }
}

/// What a token says of its client.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claims {
    pub(super) user: Arc<str>,
    pub(super) groups: Vec<Box<str>>,
    pub(super) rules: Option<Arc<Acl>>,
    /// When the connection ends, leeway included.
    pub(super) expires: Option<WallMs>,
}
