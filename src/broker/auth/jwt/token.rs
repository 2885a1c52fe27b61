//! A JSON Web Token in compact form (RFC 7515, RFC 7519): from a password's bytes to whom it names, or why it is refused.
//!
//! PURE: keys and the time come in as arguments.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::keys::{Algorithm, Key};
use super::{Claims, Terms};
use crate::broker::auth::rules;
use crate::clock::WallMs;

/// A token's bytes at most: a password may have 64 KiB, and real tokens stay under 8.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// A token whose signature has not been checked yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// Header and payload, as they were signed.
    signed: &'a str,
    signature: Vec<u8>,
    payload: Vec<u8>,
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token's algorithm is `{0}`, which is not accepted")]
    Algorithm(String),
    #[error("the token asks for a header extension (`crit`) that is not known")]
    Critical,
    #[error("the token is damaged: {0}")]
    Malformed(&'static str),
    #[error("the token names a key that is not known (`kid`: {})", .0.as_deref().unwrap_or("none"))]
    UnknownKey(Option<String>),
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is over since {} s", .0.as_secs())]
    Expired(Duration),
    #[error("the token is valid only in {} s; are the clocks right?", .0.as_secs())]
    NotYet(Duration),
    #[error("the token has no expiry (`exp`), and `require_expiry` is set")]
    NoExpiry,
    #[error("the token's issuer is {0}, not the one of `issuer`")]
    Issuer(String),
    #[error("the token is for the audience {0}, which `audience` does not name")]
    Audience(String),
    #[error("the token's claim `{0}` is {1}")]
    Claim(String, &'static str),
    #[error("the token is for another user than the user name says")]
    OtherUser,
}

/// Whether a password has a token's form: then it is judged as one, and only then.
pub(super) fn looks_like_one(password: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(password) else { return false };
    let mut parts = text.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    decoded(header).is_some_and(|header| serde_json::from_slice::<Value>(&header).is_ok_and(|value| value.is_object()))
}

impl<'a> Token<'a> {
    /// Takes the token apart. Nothing of it may be believed before [`Token::verify`].
    pub(super) fn parse(password: &'a [u8]) -> Result<Self, TokenError> {
        if password.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed("it is longer than 16 KiB"));
        }
        let text = std::str::from_utf8(password).map_err(|_error| TokenError::Malformed("it is no text"))?;
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed("it has no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed("it has no payload"))?;
        let bytes = |part| decoded(part).ok_or(TokenError::Malformed("a part of it is not base64url"));
        let header: Value =
            serde_json::from_slice(&bytes(header)?).map_err(|_error| TokenError::Malformed("its header is no JSON"))?;
        if header.get("crit").is_some() {
            return Err(TokenError::Critical);
        }
        let name = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let algorithm = Algorithm::named(name).ok_or_else(|| TokenError::Algorithm(shown(name)))?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Malformed("its `kid` is no text")),
        };
        Ok(Self { algorithm, key_id, signed, signature: bytes(signature)?, payload: bytes(payload)? })
    }

    /// Whether one of `keys` signed it.
    ///
    /// # Errors
    /// [`TokenError::UnknownKey`]: no key has the name that the token gives, so a newer set may help.
    pub(super) fn verify(&self, keys: &[Key], terms: &Terms) -> Result<(), TokenError> {
        if !terms.algorithms.is_empty() && !terms.algorithms.contains(&self.algorithm) {
            return Err(TokenError::Algorithm(self.algorithm.name().to_owned()));
        }
        let id = self.key_id.as_deref();
        if !keys.iter().any(|key| key.is_meant_by(id)) {
            return Err(TokenError::UnknownKey(self.key_id.as_deref().map(shown)));
        }
        let mut fitting = keys.iter().filter(|key| key.fits(id, self.algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::Algorithm(self.algorithm.name().to_owned()));
        }
        let is_signed = fitting.any(|key| key.verifies(self.algorithm, self.signed.as_bytes(), &self.signature));
        if is_signed { Ok(()) } else { Err(TokenError::Signature) }
    }

    /// What it says, at `now`, for a client that calls itself `user`. After [`Token::verify`].
    pub(super) fn claims(&self, terms: &Terms, now: WallMs, user: Option<&str>) -> Result<Claims, TokenError> {
        let payload: Value =
            serde_json::from_slice(&self.payload).map_err(|_error| TokenError::Malformed("its payload is no JSON"))?;
        if !payload.is_object() {
            return Err(TokenError::Malformed("its payload is no JSON object"));
        }
        let expires = check_time(&payload, terms, now)?;
        check_issuer(&payload, terms)?;
        check_audience(&payload, terms)?;
        let name = match find(&payload, &terms.user_claim) {
            Some(Value::String(name)) if !name.is_empty() && !name.contains('\0') => name.as_str(),
            Some(_) => return Err(TokenError::Claim(terms.user_claim.to_string(), "no text that can name a user")),
            None => return Err(TokenError::Claim(terms.user_claim.to_string(), "missing; it names the user")),
        };
        if user.is_some_and(|user| user != name) {
            return Err(TokenError::OtherUser);
        }
        let groups = match &terms.groups_claim {
            Some(claim) => groups(find(&payload, claim))
                .ok_or_else(|| TokenError::Claim(claim.to_string(), "neither a text nor a list of texts"))?,
            None => Vec::new(),
        };
        let rules = match terms.acl_claim.as_ref().map(|claim| (claim, find(&payload, claim))) {
            Some((claim, Some(value))) => Some(rules::acl_of(value).map(Arc::new).map_err(|_error| {
                TokenError::Claim(
                    claim.to_string(),
                    "no rules such as {\"publish\": [\"a/#\"], \"subscribe\": [\"b/+\"]}",
                )
            })?),
            Some((_, None)) | None => None,
        };
        Ok(Claims { user: name.into(), groups, rules, expires })
    }
}

/// `exp`, `nbf` and `iat` (RFC 7519 section 4.1). Until when it is valid, leeway included.
fn check_time(payload: &Value, terms: &Terms, now: WallMs) -> Result<Option<WallMs>, TokenError> {
    let leeway_ms = millis(terms.leeway);
    for claim in ["nbf", "iat"] {
        let begins_ms = date_ms(payload, claim)?;
        if let Some(begins_ms) = begins_ms
            && begins_ms > now.0.saturating_add(leeway_ms)
        {
            return Err(TokenError::NotYet(Duration::from_millis(begins_ms - now.0)));
        }
    }
    match date_ms(payload, "exp")? {
        Some(ends_ms) => {
            let last = WallMs(ends_ms.saturating_add(leeway_ms));
            if now >= last { Err(TokenError::Expired(now.since(WallMs(ends_ms)))) } else { Ok(Some(last)) }
        }
        None if terms.require_expiry => Err(TokenError::NoExpiry),
        None => Ok(None),
    }
}

/// A NumericDate: seconds since 1970, possibly with a fraction.
fn date_ms(payload: &Value, claim: &str) -> Result<Option<u64>, TokenError> {
    let Some(value) = payload.get(claim) else { return Ok(None) };
    let wrong = || TokenError::Claim(claim.to_owned(), "no number of seconds since 1970");
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds.saturating_mul(1_000)));
    }
    let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0).ok_or_else(wrong)?;
    // A duration that is out of range would be beyond any date.
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_error| wrong())?;
    Ok(Some(millis(duration)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn check_issuer(payload: &Value, terms: &Terms) -> Result<(), TokenError> {
    let Some(wanted) = &terms.issuer else { return Ok(()) };
    match payload.get("iss").and_then(Value::as_str) {
        Some(issuer) if *issuer == **wanted => Ok(()),
        Some(other) => Err(TokenError::Issuer(format!("`{}`", shown(other)))),
        None => Err(TokenError::Issuer("not named".to_owned())),
    }
}

/// A token that is made for somebody must be refused by everybody else (RFC 7519 section 4.1.3), so one with an audience is
/// refused where none is configured.
fn check_audience(payload: &Value, terms: &Terms) -> Result<(), TokenError> {
    let named: Vec<&str> = match payload.get("aud") {
        None if terms.audience.is_empty() => return Ok(()),
        None => return Err(TokenError::Audience("that it does not name".to_owned())),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(TokenError::Claim("aud".to_owned(), "neither a text nor a list of texts")),
    };
    if named.iter().any(|audience| terms.audience.iter().any(|own| **own == **audience)) {
        return Ok(());
    }
    Err(TokenError::Audience(named.iter().map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>().join(", ")))
}

/// A claim by its name, or by a path with dots (`realm_access.roles`) where no claim has the whole as its name.
fn find<'v>(payload: &'v Value, claim: &str) -> Option<&'v Value> {
    payload.get(claim).or_else(|| claim.split('.').try_fold(payload, |value, part| value.get(part)))
}

/// A list of texts, or one text with names between spaces (as `scope` has them). A claim that is missing: no groups.
fn groups(value: Option<&Value>) -> Option<Vec<Box<str>>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(names)) => Some(names.split_whitespace().map(Into::into).collect()),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(Into::into)).collect(),
        Some(_) => None,
    }
}

fn decoded(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// A stranger's words for the log: short, without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
