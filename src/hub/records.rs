//! The records that a message makes for links.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::Receipt;
use super::plan::LinkTarget;
use super::reused::Reused;
use crate::buffer::{Buffer, Permit};
use crate::clock::WallMs;
use crate::message::Message;

/// Bytes of encoded fields that a thread keeps room for. More come with many properties only: the payload is not among them.
const SCRATCH_MAX: usize = 16 << 10;

thread_local! {
    /// The fields of a message and the head of its record, on their way into a log.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One record to be appended.
pub(super) struct Append {
    pub(super) target: LinkTarget,
    pub(super) buffer: Buffer,
    pub(super) permit: Permit,
    pub(super) expires: Option<WallMs>,
}

/// The bytes that a record takes; see [`append`].
pub(super) fn bytes_of(message: &Message, target: &LinkTarget) -> usize {
    target.head().encoded_len() + target.message.as_deref().unwrap_or(message).encoded_len()
}

/// Encodes the records into the memory of their logs. `message`: as it came.
pub(super) fn append(appends: Reused<Vec<Append>>, message: &Message, receipt: &mut Receipt) {
    // It is at home in this function alone.
    SCRATCH.with_borrow_mut(|scratch| append_by(scratch, appends, message, receipt));
}

/// `scratch`: the fields of a message, encoded once for all targets that get the same, and behind them the head of one record.
fn append_by(scratch: &mut Vec<u8>, mut appends: Reused<Vec<Append>>, message: &Message, receipt: &mut Receipt) {
    scratch.clear();
    // What has its fields there, and their end. A route's targets follow each other.
    let mut encoded: Option<(Option<Arc<Message>>, usize)> = None;
    for Append { target, buffer, permit, expires } in appends.drain(..) {
        let sent = target.message.as_deref().unwrap_or(message);
        let end = match &encoded {
            Some((known, end)) if known.as_ref().map(Arc::as_ptr) == target.message.as_ref().map(Arc::as_ptr) => *end,
            Some(_) | None => {
                scratch.clear();
                sent.put_fields(scratch);
                scratch.len()
            }
        };
        scratch.truncate(end);
        target.head().put(scratch);
        let (fields, head) = scratch.split_at(end);
        let offset = buffer.append(permit, &[head, fields, &sent.payload], expires);
        receipt.add(buffer.mark(), offset.0);
        encoded = Some((target.message.clone(), end));
    }
    if scratch.capacity() > SCRATCH_MAX {
        *scratch = Vec::new();
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
