//! Passwords as files keep them: never themselves, only what checks them.
//!
//! ```text
//! $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH     made by `tidegate passwd` (RFC 9106, PHC string)
//! $7$ITERATIONS$SALT$HASH                      mosquitto_passwd: PBKDF2 with HMAC-SHA-512
//! $scram-sha-256$ITERATIONS$SALT$KEYS         made by `tidegate passwd --scram`: checks a password too (see `scram`)
//! $6$SALT$HASH                                 mosquitto_passwd -H sha512: SHA-512 of password and salt
//! ```

use std::fmt;
use std::num::NonZeroU32;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher as _, PasswordVerifier as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, pbkdf2};

use super::scram::{Entry, EntryError};

/// Memory that checking one password may take: a file must not make the gateway's memory its own.
const MEMORY_KIB_MAX: u32 = 256 << 10;

/// Passes over that memory.
const PASSES_MAX: u32 = 64;

/// A second or so of one processor.
const ITERATIONS_MAX: u32 = 5_000_000;

/// What checks one password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    Argon2id(Box<PasswordHash>),
    Pbkdf2 { iterations: NonZeroU32, salt: Box<[u8]>, hash: Box<[u8]> },
    Sha512 { salt: Box<[u8]>, hash: Box<[u8]> },
    Scram(Box<Entry>),
}

/// Why a text is no such check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Plain text, most likely; it is not repeated.
    #[error("the password is not hashed: `tidegate passwd FILE USER` writes such a line")]
    Plain,
    /// A scheme that is not known here.
    #[error("`${0}$` is none of the schemes known here: `$argon2id$`, `$scram-sha-256$`, `$7$` and `$6$`")]
    Scheme(String),
    /// What is behind the scheme.
    #[error("the `${0}$` entry is damaged: {1}")]
    Damaged(&'static str, &'static str),
    /// A proof's entry.
    #[error("{0}")]
    Scram(#[from] EntryError),
    /// It would cost too much to check.
    #[error("checking it would cost too much: at most 256 MiB, 64 passes and 5,000,000 iterations")]
    TooCostly,
}

/// A password could not be hashed: the system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the password cannot be hashed: {0}")]
pub struct HashError(argon2::password_hash::Error);

impl Secret {
    /// Reads what stands behind the user's name and `:`.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let Some(("", rest)) = text.split_once('$') else { return Err(SecretError::Plain) };
        let (scheme, rest) = rest.split_once('$').unwrap_or((rest, ""));
        match scheme {
            "argon2id" => argon2id(text),
            "7" => pbkdf2_sha512(rest),
            "6" => sha512(rest),
            "scram-sha-256" => Ok(Self(Form::Scram(Box::new(Entry::parse(text)?)))),
            // What may be a password is not repeated in a message.
            other if other.len() <= 20 && other.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
                Err(SecretError::Scheme(other.to_owned()))
            }
            _ => Err(SecretError::Plain),
        }
    }

    /// Whether this is the password. Costs milliseconds of a processor and, for argon2id, the memory that the entry says.
    #[must_use]
    pub fn verify(&self, password: &[u8]) -> bool {
        match &self.0 {
            Form::Argon2id(hash) => Argon2::default().verify_password(password, &**hash).is_ok(),
            Form::Pbkdf2 { iterations, salt, hash } => {
                pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, *iterations, salt, password, hash).is_ok()
            }
            Form::Sha512 { salt, hash } => {
                let mut context = digest::Context::new(&digest::SHA512);
                context.update(password);
                context.update(salt);
                is_same(context.finish().as_ref(), hash)
            }
            Form::Scram(entry) => std::str::from_utf8(password).is_ok_and(|password| entry.is_of(password)),
        }
    }
}

impl Secret {
    /// What checks a proof, if this is that.
    #[must_use]
    pub fn proof(&self) -> Option<&Entry> {
        match &self.0 {
            Form::Scram(entry) => Some(entry),
            Form::Argon2id(_) | Form::Pbkdf2 { .. } | Form::Sha512 { .. } => None,
        }
    }
}

/// The text that checks `password`: argon2id with the parameters of OWASP's cheat sheet (19 MiB, 2 passes), 16 bytes of salt.
///
/// # Errors
/// [`HashError`].
pub fn hash(password: &[u8]) -> Result<String, HashError> {
    let params = Params::new(19_456, 2, 1, None).map_err(|error| HashError(error.into()))?;
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    argon2.hash_password(password).map(|hash| hash.to_string()).map_err(HashError)
}

/// Says which form it is, nothing of what it holds.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Form::Argon2id(_) => "argon2id",
            Form::Pbkdf2 { .. } => "pbkdf2-sha512",
            Form::Sha512 { .. } => "sha512",
            Form::Scram(_) => "scram-sha-256",
        })
    }
}

fn argon2id(text: &str) -> Result<Secret, SecretError> {
    let damaged = |what| SecretError::Damaged("argon2id", what);
    let hash = PasswordHash::new(text).map_err(|_error| damaged("it is no PHC string"))?;
    if hash.hash.is_none() || hash.salt.is_none() {
        return Err(damaged("salt or hash are missing"));
    }
    let params = Params::try_from(&hash).map_err(|_error| damaged("its parameters are none of argon2id's"))?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
        return Err(SecretError::TooCostly);
    }
    Ok(Secret(Form::Argon2id(Box::new(hash))))
}

fn pbkdf2_sha512(rest: &str) -> Result<Secret, SecretError> {
    let damaged = |what| SecretError::Damaged("7", what);
    let mut parts = rest.split('$');
    let iterations = parts.next().and_then(|text| text.parse::<NonZeroU32>().ok());
    let iterations = iterations.ok_or_else(|| damaged("the number of iterations is missing"))?;
    if iterations.get() > ITERATIONS_MAX {
        return Err(SecretError::TooCostly);
    }
    let (salt, hash) = salt_and_hash(parts).map_err(damaged)?;
    Ok(Secret(Form::Pbkdf2 { iterations, salt, hash }))
}

fn sha512(rest: &str) -> Result<Secret, SecretError> {
    let (salt, hash) = salt_and_hash(rest.split('$')).map_err(|what| SecretError::Damaged("6", what))?;
    Ok(Secret(Form::Sha512 { salt, hash }))
}

type Bytes = Box<[u8]>;

fn salt_and_hash<'a>(mut parts: impl Iterator<Item = &'a str>) -> Result<(Bytes, Bytes), &'static str> {
    let mut next = || STANDARD.decode(parts.next().unwrap_or_default()).map_err(|_error| "it is no base64");
    let (salt, hash) = (next()?, next()?);
    if salt.is_empty() || hash.len() != digest::SHA512_OUTPUT_LEN {
        return Err("salt or hash have another length than mosquitto_passwd makes");
    }
    if parts.next().is_some() {
        return Err("something follows the hash");
    }
    Ok((salt.into(), hash.into()))
}

/// In the same time wherever they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by mosquitto_passwd 2.0.11 for `secret` and `hunter2`.
    const PBKDF2: &str = "$7$101$G+xQxOwZnuzij+by$jlIN16SxIEBFbr2hmqGghB2JlKt0FfU53FgbKE/VquuB6BDe8fIaoA/ItkZ25UnzZxHbHkvoTOYk+xpxL3NyBQ==";
    const SHA512: &str =
        "$6$v5qDkQxHL3qpNS6B$PQxvmdCXyaKBYsDUKG3aJj1s2xDvSeApZJPsvJ9FuLZpVrcctvfNEhFMR/t2ULOBmHkgLjcksGfZ1ZB9RFGZHA==";

    #[test]
    fn each_form_takes_its_password_and_no_other() {
        let own = hash("pässword".as_bytes()).unwrap();
        assert!(own.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{own}");
        for (text, password) in [(PBKDF2, "secret"), (SHA512, "hunter2"), (&own, "pässword")] {
            let secret = Secret::parse(text).unwrap();
            assert!(secret.verify(password.as_bytes()), "{text}");
            for other in ["", "Secret", "secret ", "hunter2\0"] {
                assert!(!secret.verify(other.as_bytes()), "{text} {other:?}");
            }
        }
        assert_ne!(own, hash("pässword".as_bytes()).unwrap(), "each has a salt of its own");
    }

    #[test]
    fn what_is_no_entry_is_refused_with_the_reason_and_never_shown() {
        for (text, words) in [
            ("secret", "not hashed"),
            ("", "not hashed"),
            ("$secret", "`$secret$` is none of"),
            ("$pa ss", "not hashed"),
            ("$5$abc$def", "`$5$` is none of"),
            ("$7$", "iterations"),
            ("$7$0$aaaa$aaaa", "iterations"),
            ("$7$101$aaaa$aaaa", "another length"),
            ("$7$101$a!$aaaa", "base64"),
            ("$7$4000000000$aaaa$aaaa", "too much"),
            ("$6$aaaa", "another length"),
            ("$argon2id$v=19$m=19456,t=2,p=1", "missing"),
            ("$argon2id$v=19$m=99999999,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG", "too much"),
            ("$argon2id$nonsense", "damaged"),
        ] {
            let error = Secret::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let secret = Secret::parse(SHA512).unwrap();
        assert_eq!(format!("{secret:?}"), "sha512");
    }
}
