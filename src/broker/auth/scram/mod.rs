//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: a client proves that it knows a password, and we prove that we know
//! what was made of it; neither is ever sent. Without channel binding.
//!
//! ```text
//! client-first   n,,n=user,r=NONCE                 ── Begun::parse
//! server-first   r=NONCE+OURS,s=SALT,i=ITERATIONS  ── Begun::challenge
//! client-final   c=biws,r=NONCE+OURS,p=PROOF       ── Challenge::finish
//! server-final   v=SIGNATURE
//! ```
//!
//! PURE: nonces and entries come in as arguments.

mod entry;
#[cfg(test)]
pub(in crate::broker) mod tests;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac};

pub use self::entry::{Entry, EntryError, ITERATIONS_DEFAULT, ITERATIONS_MAX, ITERATIONS_MIN, SALT_BYTES};

/// The method's name in MQTT's Authentication Method.
pub const METHOD: &str = "SCRAM-SHA-256";

/// Bytes of our part of the nonce.
pub(super) const NONCE_BYTES: usize = 18;

/// A message of a client at most; real ones have under 200 bytes.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// Why an exchange fails. The client learns nothing of it but that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that is not as RFC 5802 section 7 says.
    #[error("a SCRAM message is malformed: {0}")]
    Malformed(&'static str),
    /// The client asks for channel binding, which is not offered.
    #[error("the client asks for channel binding, which is not offered")]
    ChannelBinding,
    /// The client wants to act as somebody else (`a=`).
    #[error("the client asks to act as another user, which nobody may")]
    ActAs,
    /// The proof is wrong: another password, or no such user.
    #[error("the proof is wrong: no such user, or another password")]
    Proof,
}

/// A client-first message that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Begun {
    user: Box<str>,
    /// The part of the message that proofs are made over.
    bare: Box<str>,
    nonce: Box<str>,
    /// The GS2 header, which the client repeats in its last message.
    header: Box<str>,
}

/// An exchange that waits for client-final.
pub struct Challenge {
    entry: Entry,
    /// An exchange with somebody who does not exist: it fails however the proof is.
    is_fake: bool,
    header: Box<str>,
    nonce: String,
    /// client-first-bare and server-first, joined as the proof needs them.
    messages: String,
}

/// Whom it is about, not what it holds.
impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge").finish_non_exhaustive()
    }
}

impl Begun {
    /// Reads client-first.
    ///
    /// # Errors
    /// [`ScramError`]: it is malformed, or asks for what is not offered.
    pub fn parse(message: &[u8]) -> Result<Self, ScramError> {
        let text = text_of(message)?;
        let malformed = ScramError::Malformed;
        let (flag, rest) = text.split_once(',').ok_or_else(|| malformed("it has no GS2 header"))?;
        match flag {
            // `y`: the client could bind, and has seen that we do not offer it. So it is.
            "n" | "y" => {}
            _ if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(malformed("its GS2 header begins with neither n, y nor p")),
        }
        let (act_as, bare) = rest.split_once(',').ok_or_else(|| malformed("its GS2 header has no end"))?;
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|part| part.strip_prefix("n="));
        // RFC 5802 section 5.1: an extension before the user name is one that must be understood.
        let user = user_name(name.ok_or_else(|| malformed("it names no user (n=)"))?)?;
        let nonce = attributes
            .next()
            .and_then(|part| part.strip_prefix("r="))
            .ok_or_else(|| malformed("it has no nonce (r=)"))?;
        if nonce.is_empty() || !nonce.bytes().all(|byte| matches!(byte, 0x21..=0x7E)) {
            return Err(malformed("its nonce is not of printable characters"));
        }
        if !act_as.is_empty() && act_as.strip_prefix("a=").map(user_name) != Some(Ok(user.clone())) {
            return Err(ScramError::ActAs);
        }
        let header = format!("{flag},{act_as},");
        Ok(Self { user, bare: bare.into(), nonce: nonce.into(), header: header.into() })
    }

    /// Who the client says it is.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// server-first, and what is needed to judge the answer. Without an entry, `fake` stands in for it, so that nobody learns
    /// who exists; that exchange fails at its end.
    #[must_use]
    pub fn challenge(self, entry: Option<Entry>, fake: impl FnOnce() -> Entry, ours: &str) -> (String, Challenge) {
        let is_fake = entry.is_none();
        let entry = entry.unwrap_or_else(fake);
        let nonce = format!("{}{ours}", self.nonce);
        let first = format!("r={nonce},s={},i={}", STANDARD.encode(entry.salt()), entry.iterations());
        let messages = format!("{},{first}", self.bare);
        (first, Challenge { entry, is_fake, header: self.header, nonce, messages })
    }
}

impl Challenge {
    /// Reads client-final and answers with server-final.
    ///
    /// # Errors
    /// [`ScramError`]: it is malformed, or the proof is wrong.
    pub fn finish(self, message: &[u8]) -> Result<String, ScramError> {
        let text = text_of(message)?;
        let malformed = ScramError::Malformed;
        let (before, proof) = text.rsplit_once(",p=").ok_or_else(|| malformed("it has no proof (p=)"))?;
        let mut attributes = before.split(',');
        let binding =
            attributes.next().and_then(|part| part.strip_prefix("c=")).ok_or_else(|| malformed("it has no c="))?;
        if STANDARD.decode(binding).ok().as_deref() != Some(self.header.as_bytes()) {
            return Err(malformed("its c= is not the header of the first message"));
        }
        let nonce =
            attributes.next().and_then(|part| part.strip_prefix("r=")).ok_or_else(|| malformed("it has no r="))?;
        if nonce != self.nonce {
            return Err(malformed("its nonce is not the one of this exchange"));
        }
        let proof = STANDARD.decode(proof).map_err(|_error| malformed("its proof is not base64"))?;
        let messages = format!("{},{before}", self.messages);
        let is_right = self.entry.is_proven_by(&proof, messages.as_bytes());
        // Both are looked at, so that a wrong password takes as long as a user who does not exist.
        if !is_right || self.is_fake {
            return Err(ScramError::Proof);
        }
        Ok(format!("v={}", STANDARD.encode(self.entry.signature(messages.as_bytes()))))
    }
}

/// An entry for somebody who does not exist: its salt is the same each time that name is given (RFC 5802 section 9 leaves the rest
/// to us), and different for each, as with entries that are real. `secret` is this gateway's own.
#[must_use]
pub fn fake_entry(secret: &[u8], user: &str, iterations: u32) -> Entry {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let salt = hmac::sign(&key, user.as_bytes());
    let of = |what: &[u8]| {
        let digest = digest::digest(&digest::SHA256, &[what, salt.as_ref()].concat());
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    };
    let salt = salt.as_ref().iter().copied().take(SALT_BYTES).collect();
    Entry::new(iterations, salt, of(b"stored"), of(b"server"))
}

/// Our part of a nonce, as text, from chance.
#[must_use]
pub fn nonce_of(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn text_of(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::Malformed("it is longer than 2 KiB"));
    }
    std::str::from_utf8(message).map_err(|_error| ScramError::Malformed("it is no text"))
}

/// A user name as SASLprep (RFC 4013) makes it: spellings that look the same are the same name. RFC 5802 section 5.1 has a server
/// compare it so.
///
/// # Errors
/// [`ScramError`]: it holds what no name may hold, or nothing is left of it.
pub fn prepared(name: &str) -> Result<Box<str>, ScramError> {
    match stringprep::saslprep(name) {
        Ok(prepared) if !prepared.is_empty() => Ok((*prepared).into()),
        Ok(_) => Err(ScramError::Malformed("the user name is empty")),
        Err(_prohibited) => {
            Err(ScramError::Malformed("the user name holds characters that no name may hold (RFC 4013)"))
        }
    }
}

/// `saslname`: a comma is `=2C`, an equals sign `=3D`, and no other `=` may be there.
fn user_name(text: &str) -> Result<Box<str>, ScramError> {
    let mut parts = text.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (c, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return Err(ScramError::Malformed("a `=` in the user name is neither =2C nor =3D")),
        };
        name.push(c);
        name.push_str(rest);
    }
    prepared(&name)
}
