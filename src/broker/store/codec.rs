//! A body in the store: four bytes of CRC-32C, then what it protects. SQLite itself would give back a flipped bit.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::message::Message;

/// Puts the checksum in front.
pub(super) fn seal(content: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(content.len() + 4);
    out.put_u32_le(crc32c::crc32c(content));
    out.put_slice(content);
    out.freeze()
}

/// Checks and takes off the checksum; `None` where it is damaged.
pub(super) fn unseal(body: &[u8]) -> Option<Bytes> {
    let mut bytes = Bytes::copy_from_slice(body);
    let sum = bytes.try_get_u32_le().ok()?;
    (crc32c::crc32c(&bytes) == sum).then_some(bytes)
}

/// Checks and reads a message; `None` for a damaged one.
pub(super) fn open(body: &[u8]) -> Option<Message> {
    Message::decode(&mut unseal(body)?).ok()
}
