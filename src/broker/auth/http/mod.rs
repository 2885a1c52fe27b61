//! A login that another program decides: a POST with what the client says, and an answer with what it may.
//!
//! - [`answer`]: what an answer means, pure.
//!
//! Passwords leave in the body alone, and stand in no log.

mod answer;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;
use tokio::sync::Semaphore;

pub(super) use self::answer::Answer;
use super::cache::{Cache, Remembered};
use super::hidden::Address;
use super::http_client::HttpClient;
use crate::clock::{Clock, WallMs};

/// An answer's bytes at most: rules for hundreds of topics fit.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Settings of `auth.http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `https://..`, or `http://..` to a program on this machine.
    pub url: Address,
    /// How long a login may take, waiting for its turn included. Default 5 s.
    pub timeout: Duration,
    /// Sent with each request, such as an authorization.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The authority of the server's certificate, in place of the web's.
    pub ca: Option<PathBuf>,
    /// How long an answer is remembered. Default: it is not.
    pub cache: Duration,
    /// Requests at the same time; more wait. Default 32.
    pub requests_max: usize,
}

/// What is asked. The names are those of the JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Question<'a> {
    pub(super) client_id: &'a str,
    /// User Name, where the client gave one.
    pub(super) user: Option<&'a str>,
    #[serde(flatten)]
    pub(super) password: PasswordText<'a>,
    /// `192.0.2.7:51234`; not for a Unix socket.
    pub(super) address: Option<String>,
    /// Where it came in, as `bind` has it.
    pub(super) listener: String,
    /// The common name of the client's certificate.
    pub(super) certificate: Option<&'a str>,
    /// `3.1`, `3.1.1` or `5.0`.
    pub(super) protocol: String,
}

/// A password is any bytes; JSON has only text.
#[derive(Clone, Serialize)]
pub(super) enum PasswordText<'a> {
    /// It is text.
    #[serde(rename = "password")]
    Text(Option<&'a str>),
    /// It is none: in base64.
    #[serde(rename = "password_base64")]
    Base64(String),
}

impl<'a> PasswordText<'a> {
    pub(super) fn of(password: Option<&'a [u8]>) -> Self {
        match password.map(std::str::from_utf8) {
            None => Self::Text(None),
            Some(Ok(text)) => Self::Text(Some(text)),
            Some(Err(_)) => Self::Base64(STANDARD.encode(password.unwrap_or_default())),
        }
    }
}

impl std::fmt::Debug for PasswordText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordText(..)")
    }
}

/// The method.
#[derive(Debug)]
pub(super) struct Hook {
    config: Config,
    client: HttpClient,
    turns: Semaphore,
    cache: Cache<Answer>,
    clock: Arc<dyn Clock>,
}

impl Remembered for Answer {
    fn is_yes(&self) -> Option<bool> {
        match self {
            Self::Allow(_) => Some(true),
            Self::Unknown | Self::Deny(_) => Some(false),
            Self::Away(_) => None,
        }
    }

    fn is_over(&self, wall: WallMs) -> bool {
        match self {
            Self::Allow(grant) => grant.expires.is_some_and(|expires| wall >= expires),
            Self::Unknown | Self::Deny(_) | Self::Away(_) => false,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Allow(grant) => grant.bytes(),
            Self::Deny(words) | Self::Away(words) => words.len(),
        }
    }
}

impl Hook {
    pub(super) fn open(config: &Config, clock: Arc<dyn Clock>) -> Self {
        Self {
            config: config.clone(),
            client: HttpClient::new(config.ca.clone(), config.timeout),
            turns: Semaphore::new(config.requests_max.clamp(1, Semaphore::MAX_PERMITS)),
            cache: Cache::new(config.cache),
            clock,
        }
    }

    /// Whether it goes by these settings.
    pub(super) fn is_by(&self, config: &Config) -> bool {
        self.config == *config
    }

    /// Its authority's file is read again: if it has changed, or in any case (`always`).
    pub(super) fn reload(&self, always: bool) {
        self.client.reload(always);
    }

    /// See [`HttpClient::take_news`].
    pub(super) fn take_news(&self) -> bool {
        self.client.take_news()
    }

    /// Asks, or remembers.
    pub(super) async fn check(&self, question: &Question<'_>) -> Answer {
        let body = match serde_json::to_vec(question) {
            Ok(body) => Bytes::from(body),
            Err(error) => return Answer::Away(error.to_string()),
        };
        // The port differs from one connection of a client to the next.
        let key = self.cache.key(&cached_part(question));
        if let Some(answer) = key.as_ref().and_then(|key| self.cache.get(key, self.clock.now(), self.clock.wall())) {
            return answer;
        }
        let answer = match tokio::time::timeout(self.config.timeout, self.ask(body)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Answer::Away(format!("no answer within {} ms", self.config.timeout.as_millis())),
        };
        if let Some(key) = key {
            self.cache.put(key, &answer, self.clock.now());
        }
        answer
    }

    async fn ask(&self, body: Bytes) -> Answer {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await.ok();
        let mut request = Request::post(self.config.url.reveal()).header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.config.headers {
            request = request.header(name, value);
        }
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return Answer::Away(error.to_string()),
        };
        match self.client.send(request, ANSWER_BYTES_MAX).await {
            Ok((status, body)) => Answer::read(status, &body, self.clock.wall()),
            Err(error) => Answer::Away(error.to_string()),
        }
    }
}

/// What has to be the same for an answer to be remembered.
fn cached_part(question: &Question<'_>) -> Vec<u8> {
    let address =
        question.address.as_deref().and_then(|address| address.rsplit_once(':')).map(|(host, _)| host.to_owned());
    serde_json::to_vec(&Question { address, ..question.clone() }).unwrap_or_default()
}

/// As a header of a request; the value is kept out of what is shown. `None`: it cannot be one.
#[must_use]
pub fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}
