//! The records that a message makes for links.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Receipt;
use crate::buffer::{Buffer, Lane, Permit};
use crate::clock::WallMs;
use crate::message::Message;
use crate::router::LinkId;

/// One record to be appended.
pub(super) struct Append {
    pub(super) link: LinkId,
    pub(super) lane: Lane,
    pub(super) buffer: Buffer,
    pub(super) permit: Permit,
    pub(super) head: Bytes,
    pub(super) body: Bytes,
    pub(super) expires: Option<WallMs>,
}

pub(super) fn append(appends: Vec<Append>, receipt: &mut Receipt) {
    for Append { buffer, permit, head, body, expires, .. } in appends {
        let offset = buffer.append(permit, &[&head, &body], expires);
        receipt.add(buffer.mark(), offset.0);
    }
}

/// The bytes of a message, encoded once for all targets that get the same.
#[derive(Default)]
pub(super) struct Bodies {
    as_it_came: Option<Bytes>,
    /// A route's targets follow each other.
    made: Option<(Arc<Message>, Bytes)>,
}

impl Bodies {
    pub(super) fn of(&mut self, message: &Message, made: Option<&Arc<Message>>) -> Bytes {
        let Some(made) = made else { return self.as_it_came.get_or_insert_with(|| message.encode()).clone() };
        match &self.made {
            Some((known, body)) if Arc::ptr_eq(known, made) => body.clone(),
            Some(_) | None => {
                let body = made.encode();
                self.made = Some((Arc::clone(made), body.clone()));
                body
            }
        }
    }
}

/// When a record for a route with this `ttl` is not worth sending any more: by its publisher or by the route, whichever
/// is earlier.
pub(super) fn expires(message: &Message, ttl: Option<Duration>) -> Option<WallMs> {
    let by_publisher = message.expiry_s.map(|seconds| Duration::from_secs(u64::from(seconds)));
    let lasts = by_publisher.into_iter().chain(ttl).min()?;
    let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    Some(WallMs(message.accepted.wall.0.saturating_add(lasts)))
}
