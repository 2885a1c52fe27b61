//! The bytes on disk: segment header, frame header, record, footer. Pure: bytes in, values out, and back. Decoders
//! answer `None` for whatever is not exactly what an encoder writes; they never panic.

use bytes::{Buf, BufMut, Bytes};

use super::{Compression, wide};
use crate::clock::{Moment, WallMs};

/// The format that this program writes.
pub(super) const FORMAT: u16 = 1;
/// Length of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Length of a frame's header.
pub(super) const FRAME_HEADER: usize = 72;
/// Bytes of it that its checksum is over.
const FRAME_CHECKED: usize = FRAME_HEADER - 4;
/// Length of a record's header, without its expiry.
pub(super) const RECORD_HEADER: usize = 16;
/// Raw bytes of a frame at most; a larger record is a frame alone. Bounds what one damaged page takes along.
pub(super) const FRAME_BYTES_MAX: usize = 256 << 10;
/// Largest body of a frame that a decoder believes in, so that a forged length allocates nothing absurd.
pub(super) const FRAME_BODY_MAX: usize = 1 << 30;

const SEGMENT_MAGIC: &[u8; 8] = b"tgsegmnt";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TGFR");
/// The frame is a segment's footer.
const FLAG_FOOTER: u8 = 1;
/// The record has an expiry behind its header.
const RECORD_EXPIRES: u32 = 1;

/// The length rounded up to the format's alignment.
pub(super) const fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// First 64 bytes of a segment:
/// `magic[8] version:u16 header_len:u16 flags:u32 uuid[16] base:u64 epoch:u32 salt:u32 created_ms:u64 boot:u32 crc:u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) uuid: [u8; 16],
    pub(super) base: u64,
    pub(super) epoch: u32,
    pub(super) salt: u32,
    pub(super) created: WallMs,
    /// Names the boot of the machine that all its frames were written in (R8); 0: not known.
    pub(super) boot: u32,
}

/// What the first bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Ours(SegmentHeader),
    /// Sound, and of a later format.
    Later(u16),
    /// Damaged, torn or foreign.
    Unreadable,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER);
        out.put_slice(SEGMENT_MAGIC);
        out.put_u16_le(FORMAT);
        out.put_u16_le(64);
        out.put_u32_le(0);
        out.put_slice(&self.uuid);
        out.put_u64_le(self.base);
        out.put_u32_le(self.epoch);
        out.put_u32_le(self.salt);
        out.put_u64_le(self.created.0);
        out.put_u32_le(self.boot);
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> HeaderRead {
        let Some((head, mut crc)) = bytes.get(..SEGMENT_HEADER).and_then(|bytes| bytes.split_at_checked(60)) else {
            return HeaderRead::Unreadable;
        };
        let mut rest = match head.strip_prefix(SEGMENT_MAGIC.as_slice()) {
            Some(rest) if crc32c::crc32c(head) == crc.get_u32_le() => rest,
            _ => return HeaderRead::Unreadable,
        };
        let version = rest.get_u16_le();
        if version > FORMAT {
            return HeaderRead::Later(version);
        }
        rest.advance(6);
        let mut uuid = [0; 16];
        rest.copy_to_slice(&mut uuid);
        HeaderRead::Ours(Self {
            uuid,
            base: rest.get_u64_le(),
            epoch: rest.get_u32_le(),
            salt: rest.get_u32_le(),
            created: WallMs(rest.get_u64_le()),
            boot: rest.get_u32_le(),
        })
    }
}

/// A frame's header, 72 bytes:
/// `magic:u32 version:u8 codec:u8 flags:u8 lane:u8 stored_len:u32 raw_len:u32 count:u32 body_crc:u32 base:u64
/// durable:u64 wall_ms:u64 up:u64 skipped:u64 expiry_max_s:u32 header_crc:u32`. `up` counts half milliseconds of the boot
/// clock, whose boot the segment's header names; it is odd where the wall clock was synchronised ([`Moment::packed`]). Both
/// checksums are seeded with the segment's salt, so that no payload can forge a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) footer: bool,
    /// How the body is stored; a footer is never compressed.
    pub(super) codec: Compression,
    /// Bytes of body in the file, without padding.
    pub(super) stored_len: u32,
    /// Bytes of the body uncompressed.
    pub(super) raw_len: u32,
    pub(super) count: u32,
    pub(super) body_crc: u32,
    pub(super) base: u64,
    /// Everything below was durable when this frame was written.
    pub(super) durable: u64,
    /// When its first record was appended. The boot is the segment's.
    pub(super) at: Moment,
    /// So many numbers directly before `base` hold no record, and are no hole: what was confirmed before it was written
    /// (`sync: spill`), and what a crash left out.
    pub(super) skipped: u64,
    /// Seconds since the epoch when the last of its records has expired; `u32::MAX`: one never does.
    pub(super) expiry_max_s: u32,
}

impl FrameHeader {
    /// A header for a body that is stored as `stored`, as it is.
    pub(super) fn of(stored: &[u8], salt: u32, base: u64, count: u32) -> Self {
        let len = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        Self {
            footer: false,
            codec: Compression::None,
            stored_len: len,
            raw_len: len,
            count,
            body_crc: crc32c::crc32c_append(salt, stored),
            base,
            durable: 0,
            at: Moment::default(),
            skipped: 0,
            expiry_max_s: u32::MAX,
        }
    }

    pub(super) fn encode(&self, salt: u32, out: &mut Vec<u8>) {
        let at = out.len();
        out.put_u32_le(FRAME_MAGIC);
        out.put_u8(1);
        out.put_u8(codec_byte(self.codec));
        out.put_u8(if self.footer { FLAG_FOOTER } else { 0 });
        out.put_u8(0);
        out.put_u32_le(self.stored_len);
        out.put_u32_le(self.raw_len);
        out.put_u32_le(self.count);
        out.put_u32_le(self.body_crc);
        out.put_u64_le(self.base);
        out.put_u64_le(self.durable);
        out.put_u64_le(self.at.wall.0);
        out.put_u64_le(self.at.packed());
        out.put_u64_le(self.skipped);
        out.put_u32_le(self.expiry_max_s);
        let crc = crc32c::crc32c_append(salt, out.get(at..).unwrap_or_default());
        out.put_u32_le(crc);
    }

    pub(super) fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let (mut head, mut crc) = bytes.get(..FRAME_HEADER)?.split_at_checked(FRAME_CHECKED)?;
        // The magic first: a resynchronising scan tries every eighth byte.
        let sound =
            head.get(..4)? == FRAME_MAGIC.to_le_bytes() && crc32c::crc32c_append(salt, head) == crc.get_u32_le();
        if !sound {
            return None;
        }
        head.advance(4);
        let (version, codec, flags, _lane) = (head.get_u8(), head.get_u8(), head.get_u8(), head.get_u8());
        let (stored_len, raw_len) = (head.get_u32_le(), head.get_u32_le());
        let (codec, footer) = (codec_of(codec)?, flags & FLAG_FOOTER != 0);
        let plain = codec == Compression::None;
        let fits = if plain { stored_len == raw_len } else { stored_len < raw_len && !footer };
        let known = version == 1 && fits && wide_u32(raw_len) <= wide(FRAME_BODY_MAX);
        known.then(|| Self {
            footer,
            codec,
            stored_len,
            raw_len,
            count: head.get_u32_le(),
            body_crc: head.get_u32_le(),
            base: head.get_u64_le(),
            durable: head.get_u64_le(),
            at: Moment::unpacked(WallMs(head.get_u64_le()), head.get_u64_le(), 0),
            skipped: head.get_u64_le(),
            expiry_max_s: head.get_u32_le(),
        })
    }

    /// What the salt alone makes of a header's checksum, for bytes that begin like a header: for inputs of one length
    /// `crc(s, x) ^ crc(0, x)` depends on `s` and not on `x`. So a look-up of it among [`Self::mark_of`] tells the salt.
    pub(super) fn mark(bytes: &[u8]) -> Option<u32> {
        let (head, mut crc) = bytes.get(..FRAME_HEADER)?.split_at_checked(FRAME_CHECKED)?;
        (head.get(..4)? == FRAME_MAGIC.to_le_bytes()).then(|| crc32c::crc32c(head) ^ crc.get_u32_le())
    }

    /// What [`Self::mark`] is for all headers with this salt.
    pub(super) fn mark_of(salt: u32) -> u32 {
        crc32c::crc32c_append(salt, &[0; FRAME_CHECKED]) ^ crc32c::crc32c(&[0; FRAME_CHECKED])
    }

    /// Bytes of body that follow the header, padding included.
    pub(super) fn padded_body(&self) -> usize {
        aligned(self.stored())
    }

    /// Bytes of body as it is stored.
    pub(super) fn stored(&self) -> usize {
        usize::try_from(self.stored_len).unwrap_or(FRAME_BODY_MAX)
    }

    /// Bytes of body as it was before it was stored.
    pub(super) fn raw(&self) -> usize {
        usize::try_from(self.raw_len).unwrap_or(FRAME_BODY_MAX)
    }

    /// The whole frame's length in the file.
    pub(super) fn frame_len(&self) -> u64 {
        wide(FRAME_HEADER + self.padded_body())
    }

    /// The offset behind its last record.
    pub(super) fn next(&self) -> u64 {
        self.base.saturating_add(wide_u32(self.count))
    }

    /// Where what it accounts for begins: its first record, or what was skipped before that.
    pub(super) const fn from(&self) -> u64 {
        self.base.saturating_sub(self.skipped)
    }

    /// Whether `stored` is what was written.
    pub(super) fn checks(&self, stored: &[u8], salt: u32) -> bool {
        stored.len() == self.stored() && crc32c::crc32c_append(salt, stored) == self.body_crc
    }
}

const fn codec_byte(codec: Compression) -> u8 {
    match codec {
        Compression::None => 0,
        Compression::Zstd => 1,
        Compression::Lz4 => 2,
    }
}

const fn codec_of(byte: u8) -> Option<Compression> {
    match byte {
        0 => Some(Compression::None),
        1 => Some(Compression::Zstd),
        2 => Some(Compression::Lz4),
        _ => None,
    }
}

const fn wide_u32(n: u32) -> u64 {
    n as u64
}

/// Length of a record with a body of `body` bytes.
pub(super) const fn record_len(body: usize, expires: bool) -> usize {
    RECORD_HEADER + if expires { 8 } else { 0 } + aligned(body)
}

/// Appends a record: `body_len:u32 time_delta_ms:i32 flags:u32 zero:u32 [expires_ms:u64] body padding`.
pub(super) fn encode_record(out: &mut impl BufMut, parts: &[&[u8]], delta_ms: i32, expires: Option<WallMs>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
    out.put_i32_le(delta_ms);
    out.put_u32_le(if expires.is_some() { RECORD_EXPIRES } else { 0 });
    out.put_u32_le(0);
    if let Some(expires) = expires {
        out.put_u64_le(expires.0);
    }
    for part in parts {
        out.put_slice(part);
    }
    out.put_bytes(0, aligned(len) - len);
}

/// A record of a frame, and where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DecodedRecord {
    pub(super) delta_ms: i32,
    pub(super) expires: Option<WallMs>,
    pub(super) body: Bytes,
    pub(super) end: usize,
}

/// Reads the record at `at` of a frame's body, without copying it.
pub(super) fn decode_record(frame: &Bytes, at: usize) -> Option<DecodedRecord> {
    let mut head = frame.get(at..at.checked_add(RECORD_HEADER)?)?;
    let len = usize::try_from(head.get_u32_le()).ok()?;
    let delta_ms = head.get_i32_le();
    let flags = head.get_u32_le();
    let mut body_at = at + RECORD_HEADER;
    let expires = if flags & RECORD_EXPIRES == 0 {
        None
    } else {
        let mut stamp = frame.get(body_at..body_at.checked_add(8)?)?;
        body_at += 8;
        Some(WallMs(stamp.get_u64_le()))
    };
    let body_end = body_at.checked_add(len)?;
    let end = body_at.checked_add(len.checked_next_multiple_of(8)?)?;
    (end <= frame.len()).then(|| DecodedRecord { delta_ms, expires, body: frame.slice(body_at..body_end), end })
}

/// A place in a segment where a frame begins: so that a reader need not begin at its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mileage {
    pub(super) offset: u64,
    pub(super) pos: u64,
    pub(super) at: Moment,
}

/// What a sealed segment says of itself, so that opening it reads nothing else. Body of the footer frame:
/// `next:u64 payload:u64 last_wall:u64 last_up:u64 count:u32 zero:u32 { offset:u64 pos:u64 wall:u64 up:u64 }*
/// own_position:u64`, where `up` is as in a frame's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) next: u64,
    pub(super) payload: u64,
    pub(super) last: Moment,
    pub(super) points: Vec<Mileage>,
    /// Where the footer frame begins: the end of the data.
    pub(super) pos: u64,
}

impl Footer {
    /// The whole frame.
    pub(super) fn encode(&self, salt: u32, durable: u64) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64_le(self.next);
        body.put_u64_le(self.payload);
        put_moment(&mut body, self.last);
        body.put_u32_le(u32::try_from(self.points.len()).unwrap_or(0));
        body.put_u32_le(0);
        for point in &self.points {
            body.put_u64_le(point.offset);
            body.put_u64_le(point.pos);
            put_moment(&mut body, point.at);
        }
        body.put_u64_le(self.pos);
        let mut out = Vec::new();
        let mut header = FrameHeader::of(&body, salt, self.next, 0);
        header.footer = true;
        header.durable = durable;
        header.at = self.last;
        header.encode(salt, &mut out);
        out.put_slice(&body);
        out
    }

    /// From the body of a footer frame.
    pub(super) fn decode(mut body: &[u8]) -> Option<Self> {
        if body.len() < 48 {
            return None;
        }
        let (next, payload, last) = (body.get_u64_le(), body.get_u64_le(), get_moment(&mut body));
        let count = usize::try_from(body.get_u32_le()).ok()?;
        body.advance(4);
        if body.len() != count.checked_mul(32)?.checked_add(8)? {
            return None;
        }
        let points = (0..count)
            .map(|_| Mileage { offset: body.get_u64_le(), pos: body.get_u64_le(), at: get_moment(&mut body) })
            .collect();
        Some(Self { next, payload, last, points, pos: body.get_u64_le() })
    }
}

fn put_moment(out: &mut Vec<u8>, at: Moment) {
    out.put_u64_le(at.wall.0);
    out.put_u64_le(at.packed());
}

/// The caller has seen to it that the bytes are there. The boot is the segment's.
fn get_moment(bytes: &mut &[u8]) -> Moment {
    Moment::unpacked(WallMs(bytes.get_u64_le()), bytes.get_u64_le(), 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_segment_header_is_what_the_documentation_says() {
        let header = SegmentHeader {
            uuid: [7; 16],
            base: 0x0102,
            epoch: 3,
            salt: 0xaabb_ccdd,
            created: WallMs(0x1234),
            boot: 9,
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER);
        assert_eq!(&bytes[..16], b"tgsegmnt\x01\x00\x40\x00\x00\x00\x00\x00");
        assert_eq!(&bytes[16..32], &[7; 16]);
        assert_eq!(&bytes[32..48], b"\x02\x01\0\0\0\0\0\0\x03\0\0\0\xdd\xcc\xbb\xaa");
        assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Ours(header));
    }

    #[test]
    fn r36_a_sound_header_of_a_later_format_is_told_from_damage() {
        let mut bytes =
            SegmentHeader { uuid: [0; 16], base: 0, epoch: 1, salt: 2, created: WallMs(0), boot: 0 }.encode();
        bytes[8] = 2;
        assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Unreadable);
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), HeaderRead::Later(2));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let body = b"12345678";
        let header = FrameHeader {
            durable: 5,
            at: Moment::unpacked(WallMs(9), 7, 0),
            skipped: 2,
            ..FrameHeader::of(body, 77, 4, 1)
        };
        let mut frame = Vec::new();
        header.encode(77, &mut frame);
        assert_eq!(frame.len(), FRAME_HEADER);
        assert_eq!(FrameHeader::decode(&frame, 77), Some(header));
        assert_eq!(FrameHeader::decode(&frame, 78), None, "another segment's salt");
        let segment = SegmentHeader { uuid: [1; 16], base: 9, epoch: 1, salt: 2, created: WallMs(0), boot: 0 }.encode();
        for bit in 0..FRAME_HEADER * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&frame, 77), None, "bit {bit}");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut damaged = segment.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged), HeaderRead::Unreadable, "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_what_the_documentation_says() {
        let mut out = Vec::new();
        encode_record(&mut out, &[b"ab", b"c"], -2, Some(WallMs(5)));
        assert_eq!(out, b"\x03\0\0\0\xfe\xff\xff\xff\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0abc\0\0\0\0\0");
        assert_eq!(out.len(), record_len(3, true));
        let decoded = decode_record(&Bytes::from(out), 0).unwrap();
        assert_eq!((decoded.delta_ms, decoded.expires, &decoded.body[..]), (-2, Some(WallMs(5)), &b"abc"[..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn decoders_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), salt: u32, at in 0_usize..300) {
            let _len = FrameHeader::decode(&bytes, salt).map(|header| header.frame_len());
            let _read = SegmentHeader::decode(&bytes);
            drop(Footer::decode(&bytes));
            drop(decode_record(&Bytes::from(bytes), at));
        }

        #[test]
        fn what_is_written_is_read_back(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            delta: i32,
            expires: Option<u64>,
            points in proptest::collection::vec(any::<(u64, u64, u64, u64)>(), 0..9),
        ) {
            let mut out = vec![0; 8];
            encode_record(&mut out, &[&body], delta, expires.map(WallMs));
            let decoded = decode_record(&Bytes::from(out.clone()), 8).unwrap();
            prop_assert_eq!(&decoded.body[..], &body[..]);
            prop_assert_eq!((decoded.delta_ms, decoded.expires, decoded.end), (delta, expires.map(WallMs), out.len()));
            let points = points.into_iter().map(|(offset, pos, wall, up)| Mileage { offset, pos, at: Moment::unpacked(WallMs(wall), up, 0) });
            let footer = Footer { next: 9, payload: 8, last: Moment::unpacked(WallMs(7), 15, 0), points: points.collect(), pos: 64 };
            let frame = footer.encode(3, 9);
            let header = FrameHeader::decode(&frame, 3).unwrap();
            prop_assert!(header.footer && header.checks(&frame[FRAME_HEADER..], 3));
            prop_assert_eq!(Footer::decode(&frame[FRAME_HEADER..]), Some(footer));
        }
    }
}
