//! What a program that decides logins may answer, and what it means.
//!
//! PURE.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

use crate::broker::auth::acl::Acl;
use crate::broker::auth::rules;
use crate::clock::WallMs;

/// The meaning of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::broker::auth) enum Answer {
    /// 404: it knows nobody of that name; the next method is asked.
    Unknown,
    /// 200 with `allow: true`.
    Allow(Grant),
    /// 200 with `allow: false`, or another 4xx. The words are for the log.
    Deny(String),
    /// Whatever else: nobody knows, and nobody is let in.
    Away(String),
}

/// What a client may that is let in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::broker::auth) struct Grant {
    /// Who it is, where the answer says another than the client did.
    pub(in crate::broker::auth) user: Option<Box<str>>,
    pub(in crate::broker::auth) groups: Vec<Box<str>>,
    pub(in crate::broker::auth) rules: Option<Arc<Acl>>,
    /// When the connection ends.
    pub(in crate::broker::auth) expires: Option<WallMs>,
}

/// The body of a 200.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    allow: bool,
    user: Option<Box<str>>,
    #[serde(default)]
    groups: Vec<Box<str>>,
    acl: Option<serde_json::Value>,
    /// Seconds.
    expires_in: Option<u64>,
    /// Why not: for the log.
    reason: Option<String>,
}

impl Grant {
    /// What it takes in memory, beside itself.
    pub(super) fn bytes(&self) -> usize {
        let groups = self.groups.iter().map(|group| group.len() + size_of::<Box<str>>()).sum::<usize>();
        groups + self.user.as_ref().map_or(0, |user| user.len()) + self.rules.as_ref().map_or(0, |rules| rules.bytes())
    }
}

impl Answer {
    /// An answer that came at `now`.
    pub(super) fn read(status: StatusCode, body: &[u8], now: WallMs) -> Self {
        match status {
            StatusCode::OK => Self::of_body(body, now).unwrap_or_else(Self::Away),
            StatusCode::NOT_FOUND => Self::Unknown,
            // Too many requests, or too slow: that says nothing about the client.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Self::Away(format!("the answer is {status}"))
            }
            _ if status.is_client_error() => Self::Deny(format!("the answer is {status}")),
            _ => Self::Away(format!("the answer is {status}, where 200 or 4xx decide")),
        }
    }

    fn of_body(body: &[u8], now: WallMs) -> Result<Self, String> {
        let body: Body =
            serde_json::from_slice(body).map_err(|error| format!("the answer is not what it should be: {error}"))?;
        if !body.allow {
            let reason =
                body.reason.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect::<String>();
            return Ok(Self::Deny(if reason.is_empty() { "the answer is no".to_owned() } else { reason }));
        }
        let rules = match &body.acl {
            Some(serde_json::Value::Null) | None => None,
            Some(value) => {
                Some(rules::acl_of(value).map(Arc::new).map_err(|error| format!("the answer's `acl`: {error}"))?)
            }
        };
        let user = body.user.filter(|user| !user.is_empty());
        if user.as_ref().is_some_and(|user| user.contains('\0')) {
            return Err("the answer's `user` holds a NUL".to_owned());
        }
        let expires = body.expires_in.map(|seconds| {
            let ms = u64::try_from(Duration::from_secs(seconds).as_millis()).unwrap_or(u64::MAX);
            WallMs(now.0.saturating_add(ms))
        });
        Ok(Self::Allow(Grant { user, groups: body.groups, rules, expires }))
    }
}
