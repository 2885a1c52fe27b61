//! The salt of a segment whose header is damaged, from its frames: `meta` says which it can be, and a frame that checks says
//! which it is. The whole file is searched, since damage may take along a first frame of any length. A place costs one checksum
//! however many salts there are ([`FrameHeader::mark`]), so a payload full of what looks like frames costs no more than reading it.

use std::collections::HashMap;

use super::format::{FRAME_HEADER, FrameHeader, SEGMENT_HEADER};
use super::log::Identity;
use super::storage::{Handle, read_past_bad_pages};
use super::wide;

/// So many starts of the gateway ago the segment was begun at most.
const EPOCHS_MAX: usize = 1 << 16;
/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Where the next piece begins: no header is cut in two.
const STEP: usize = PIECE - FRAME_HEADER + 8;

/// The salt that the first sound frame has, footers included; failing that, the first sound header. `None`: there is neither, or
/// nothing can be read.
pub(super) fn guess_salt(handle: &dyn Handle, base: u64, identity: &Identity) -> Option<u32> {
    let end = handle.len().ok()?;
    let epochs = (0..=identity.epoch).rev().take(EPOCHS_MAX);
    let salts = epochs.map(|epoch| identity.salt(base, epoch));
    let salts: HashMap<u32, u32> = salts.map(|salt| (FrameHeader::mark_of(salt), salt)).collect();
    let mut lone = None;
    for at in (wide(SEGMENT_HEADER)..end).step_by(STEP) {
        let Ok(piece) = read_past_bad_pages(handle, at, PIECE) else { break };
        for from in (0..piece.len()).step_by(8) {
            let Some(bytes) = piece.get(from..from + FRAME_HEADER) else { break };
            let Some(salt) = FrameHeader::mark(bytes).and_then(|mark| salts.get(&mark)).copied() else { continue };
            let Some(header) = FrameHeader::decode(bytes, salt) else { continue };
            if has_body(handle, &header, at + wide(from + FRAME_HEADER), salt) {
                return Some(salt);
            }
            lone.get_or_insert(salt);
        }
    }
    lone
}

/// Whether the body at `pos` is the header's.
fn has_body(handle: &dyn Handle, header: &FrameHeader, mut pos: u64, salt: u32) -> bool {
    let (mut left, mut crc) = (header.stored(), salt);
    while left > 0 {
        let bytes = read_past_bad_pages(handle, pos, left.min(PIECE)).unwrap_or_default();
        if bytes.is_empty() {
            return false;
        }
        crc = crc32c::crc32c_append(crc, &bytes);
        left -= bytes.len();
        pos += wide(bytes.len());
    }
    crc == header.body_crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_a_header_is_that_of_its_salt() {
        for (salt, base) in [(0, 0), (1, 7), (0xdead_beef, u64::MAX), (u32::MAX, 1 << 40)] {
            let mut bytes = Vec::new();
            FrameHeader::of(b"body", salt, base, 3).encode(salt, &mut bytes);
            assert_eq!(FrameHeader::mark(&bytes), Some(FrameHeader::mark_of(salt)));
            bytes[70] ^= 1;
            assert_ne!(FrameHeader::mark(&bytes), Some(FrameHeader::mark_of(salt)));
        }
    }
}
