//! What is kept of a password for SCRAM: enough to check a proof and to give one, not enough to log in with.
//!
//! In a users file: `name:$scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY`, the last three in base64.

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq;

/// Bytes of a salt that we make.
pub const SALT_BYTES: usize = 16;

/// The fewest iterations (RFC 7677 section 4).
pub const ITERATIONS_MIN: u32 = 4_096;

/// Iterations of an entry that we make: the client does that work at each login, and it may be a small machine.
pub const ITERATIONS_DEFAULT: u32 = 15_000;

/// More would keep the client busy for minutes.
pub const ITERATIONS_MAX: u32 = 10_000_000;

/// How an entry begins, behind the name.
const MARK: &str = "$scram-sha-256$";

/// Bytes of a key.
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    iterations: u32,
    salt: Box<[u8]>,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

/// Why text is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Not the form.
    #[error("a SCRAM entry is `$scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY`")]
    Form,
    /// Too few iterations, or too many.
    #[error("a SCRAM entry has {ITERATIONS_MIN} to {ITERATIONS_MAX} iterations (RFC 7677 section 4)")]
    Iterations,
    /// The salt.
    #[error("the salt of a SCRAM entry is base64 of 8 to 64 bytes")]
    Salt,
    /// A key.
    #[error("a key of a SCRAM entry is base64 of {KEY_BYTES} bytes")]
    Key,
    /// A password that SCRAM cannot be used with.
    #[error("the password holds characters that SCRAM cannot carry (RFC 4013)")]
    Password,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) const fn new(
        iterations: u32,
        salt: Box<[u8]>,
        stored_key: [u8; KEY_BYTES],
        server_key: [u8; KEY_BYTES],
    ) -> Self {
        Self { iterations, salt, stored_key, server_key }
    }

    /// From a password, which is prepared as RFC 4013 says. Takes as long as the iterations do: 10 ms for the default.
    ///
    /// # Errors
    /// [`EntryError`]: the password cannot be used, or the iterations are out of range.
    pub fn of_password(password: &str, salt: &[u8], iterations: u32) -> Result<Self, EntryError> {
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(EntryError::Iterations);
        }
        Self::derived(password, salt, iterations)
    }

    /// Without a bound, for tests that make many.
    #[cfg(test)]
    pub(super) fn quick(password: &str) -> Self {
        Self::derived(password, b"saltsalt", 1).unwrap()
    }

    fn derived(password: &str, salt: &[u8], iterations: u32) -> Result<Self, EntryError> {
        let password = stringprep::saslprep(password).map_err(|_error| EntryError::Password)?;
        let rounds = NonZeroU32::new(iterations).ok_or(EntryError::Iterations)?;
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = bytes(digest::digest(&digest::SHA256, &client_key).as_ref());
        Ok(Self::new(iterations, salt.into(), stored_key, sign(&salted, b"Server Key")))
    }

    /// Whether text is meant to be an entry.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with(MARK)
    }

    /// From what stands in a users file behind `name:`.
    ///
    /// # Errors
    /// [`EntryError`]: what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let mut parts = text.strip_prefix(MARK).ok_or(EntryError::Form)?.split('$');
        let (Some(iterations), Some(salt), Some(stored), Some(server), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(EntryError::Form);
        };
        let iterations = iterations.parse().map_err(|_error| EntryError::Iterations)?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(EntryError::Iterations);
        }
        let salt = STANDARD.decode(salt).map_err(|_error| EntryError::Salt)?;
        if !(8..=64).contains(&salt.len()) {
            return Err(EntryError::Salt);
        }
        let key = |text: &str| {
            let key = STANDARD.decode(text).map_err(|_error| EntryError::Key)?;
            <[u8; KEY_BYTES]>::try_from(key).map_err(|_error| EntryError::Key)
        };
        Ok(Self::new(iterations, salt.into(), key(stored)?, key(server)?))
    }

    /// Its salt.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// How often the client hashes.
    #[must_use]
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Whether whoever made `proof` over `messages` knows the password (RFC 5802 section 3).
    pub(super) fn is_proven_by(&self, proof: &[u8], messages: &[u8]) -> bool {
        let signature = sign(&self.stored_key, messages);
        let client_key: Vec<u8> = signature.iter().zip(proof).map(|(ours, theirs)| ours ^ theirs).collect();
        let stored = digest::digest(&digest::SHA256, &client_key);
        let is_same = same(stored.as_ref(), &self.stored_key);
        is_same && proof.len() == KEY_BYTES
    }

    /// What shows the client that we know its entry.
    pub(super) fn signature(&self, messages: &[u8]) -> [u8; KEY_BYTES] {
        sign(&self.server_key, messages)
    }

    /// Whether this entry was made of `password`: for `tidegate passwd --verify`, which asks for it in the clear.
    #[must_use]
    pub fn is_of(&self, password: &str) -> bool {
        Self::of_password(password, &self.salt, self.iterations)
            .is_ok_and(|made| same(&made.stored_key, &self.stored_key))
    }

    /// The text behind `name:` in a users file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let [salt, stored, server] =
            [&*self.salt, &self.stored_key, &self.server_key].map(|part| STANDARD.encode(part));
        format!("{MARK}{}${salt}${stored}${server}", self.iterations)
    }
}

fn sign(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    bytes(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref())
}

fn bytes(digest: &[u8]) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    bytes.copy_from_slice(digest);
    bytes
}

/// In a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
