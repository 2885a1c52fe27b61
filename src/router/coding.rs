//! Compressed payloads: gzip, zstd and LZ4 frames, as `content-encoding` names them. What comes out of one is bounded, whatever it
//! claims to be.

use std::io::Read;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use crate::message::Properties;

/// What one payload may become: sixteen times what a packet may be by default.
pub const UNPACKED_BYTES_MAX: usize = 16 << 20;

/// The user property or header; RabbitMQ has a property of its own for it.
pub const CONTENT_ENCODING: &str = "content-encoding";

/// A frame may ask for so large a window (2 to this): as much as there may come out of it.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// The library's default; higher ones cost a publisher's acknowledgement more time than they save bytes of telemetry.
const ZSTD_LEVEL: i32 = 3;
/// zlib's default.
const DEFLATE_LEVEL: u8 = 6;
/// Of the output at a time.
const CHUNK_BYTES: usize = 32 << 10;

/// RFC 1952: magic and deflate, the only method.
const GZIP_MAGIC: [u8; 3] = [0x1F, 0x8B, 8];
/// No flags, no time, unknown system.
const GZIP_HEAD: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255];
const GZIP_HEAD_CRC: u8 = 2;
const GZIP_EXTRA: u8 = 4;
const GZIP_NAME: u8 = 8;
const GZIP_COMMENT: u8 = 16;

/// Of an LZ4 frame.
const LZ4_MAGIC: u32 = 0x184D_2204;
/// The same of one that is skipped, but for its last four bits.
const LZ4_SKIPPED: u32 = 0x184D_2A50;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Frames of LZ4, as the program `lz4` writes them.
    Lz4,
}

/// What a route takes its messages' payloads out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack {
    /// Each has to be so.
    From(Coding),
    /// As its `content-encoding` says; one without stays as it is.
    AsTold,
}

/// Why a payload could not be taken out of its coding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodingError {
    /// Damaged, or never was.
    #[error("the payload is no {}", .0.name())]
    Not(Coding),
    /// Larger than [`UNPACKED_BYTES_MAX`].
    #[error("the payload would have more than {UNPACKED_BYTES_MAX} bytes decompressed")]
    TooLarge,
    /// Another `content-encoding`.
    #[error("the payload's content-encoding is {0:?}: gzip, zstd and lz4 are known")]
    Unknown(String),
}

impl Coding {
    /// As `content-encoding` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let name = name.trim().to_ascii_lowercase();
        let name = name.strip_prefix("x-").unwrap_or(&name);
        [Self::Gzip, Self::Zstd, Self::Lz4].into_iter().find(|coding| coding.name() == name)
    }

    /// Compresses. `None` only where a library fails, which none of them does in memory.
    pub(super) fn pack(self, plain: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Gzip => Some(gzip(plain)),
            Self::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL).ok(),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                std::io::Write::write_all(&mut encoder, plain).ok()?;
                encoder.finish().ok()
            }
        }
    }

    /// Decompresses.
    pub(super) fn unpack(self, packed: &[u8]) -> Result<Vec<u8>, CodingError> {
        match self {
            Self::Gzip => gunzip(packed),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|_error| CodingError::Not(self))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|_error| CodingError::Not(self))?;
                self.read(decoder)
            }
            Self::Lz4 => self.read_frames(packed),
        }
    }

    fn read(self, decoder: impl Read) -> Result<Vec<u8>, CodingError> {
        let mut plain = Vec::new();
        self.read_behind(decoder, &mut plain)?;
        Ok(plain)
    }

    /// Adds what comes out to what is there.
    fn read_behind(self, decoder: impl Read, plain: &mut Vec<u8>) -> Result<(), CodingError> {
        let most = u64::try_from(UNPACKED_BYTES_MAX.saturating_sub(plain.len())).unwrap_or(u64::MAX);
        decoder.take(most + 1).read_to_end(plain).map_err(|_error| CodingError::Not(self))?;
        if plain.len() > UNPACKED_BYTES_MAX { Err(CodingError::TooLarge) } else { Ok(()) }
    }

    /// One frame behind the other, each to its end. The library ends in silence at the first frame's end, and where it is cut between
    /// two blocks.
    fn read_frames(self, mut packed: &[u8]) -> Result<Vec<u8>, CodingError> {
        let mut plain = Vec::new();
        loop {
            let (length, is_data) = lz4_frame(packed).ok_or(CodingError::Not(self))?;
            let (frame, behind) = packed.split_at_checked(length).ok_or(CodingError::Not(self))?;
            if is_data {
                self.read_behind(lz4_flex::frame::FrameDecoder::new(frame), &mut plain)?;
            }
            if behind.is_empty() {
                return Ok(plain);
            }
            packed = behind;
        }
    }
}

impl Unpack {
    /// What a payload is decompressed; `None` where it is not compressed.
    ///
    /// # Errors
    /// It is not what it should be, or too large.
    pub fn plain(self, payload: &[u8], properties: &Properties) -> Result<Option<Vec<u8>>, CodingError> {
        self.of(properties)?.map(|coding| coding.unpack(payload)).transpose()
    }

    /// Which coding a message's payload is taken out of.
    pub(super) fn of(self, properties: &Properties) -> Result<Option<Coding>, CodingError> {
        if let Self::From(coding) = self {
            return Ok(Some(coding));
        }
        let told = properties.user.iter().find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_ENCODING));
        match told.map(|(_, value)| &**value) {
            None | Some("" | "identity") => Ok(None),
            Some(name) => Coding::named(name).map(Some).ok_or_else(|| CodingError::Unknown(name.to_owned())),
        }
    }
}

/// How long the LZ4 frame is that begins here, and whether it has data: one may be skipped. `None`: it is none, or does not end
/// (LZ4 frame format 1.6.3).
fn lz4_frame(packed: &[u8]) -> Option<(usize, bool)> {
    let word = |at: usize| packed.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let size = |word: u32| usize::try_from(word).ok();
    let magic = word(0)?;
    if magic & !0xF == LZ4_SKIPPED {
        return Some((size(word(4)?)?.checked_add(8)?, false));
    }
    let flags = *packed.get(4).filter(|_| magic == LZ4_MAGIC)?;
    let has = |bit: u8, bytes: usize| if flags & bit == 0 { 0 } else { bytes };
    // Magic, flags, block size, the content's size, a dictionary's id, the header's checksum.
    let mut at = 4 + 1 + 1 + has(0x08, 8) + has(0x01, 4) + 1;
    loop {
        let block = word(at)?;
        at += 4;
        if block == 0 {
            let end = at + has(0x04, 4);
            return packed.get(..end).map(|_all| (end, true));
        }
        // The highest bit says that it is not compressed.
        at = at.checked_add(size(block & 0x7FFF_FFFF)?)?.checked_add(has(0x10, 4))?;
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut packed = GZIP_HEAD.to_vec();
    packed.extend(miniz_oxide::deflate::compress_to_vec(plain, DEFLATE_LEVEL));
    packed.extend(crc32(plain).to_le_bytes());
    packed.extend(size(plain).to_le_bytes());
    packed
}

/// One member behind the other, as RFC 1952 has it.
fn gunzip(mut packed: &[u8]) -> Result<Vec<u8>, CodingError> {
    let not = || CodingError::Not(Coding::Gzip);
    let mut plain = Vec::new();
    while !packed.is_empty() || plain.is_empty() {
        packed = behind_head(packed).ok_or_else(not)?;
        let begin = plain.len();
        packed = inflated(packed, &mut plain)?;
        let member = plain.get(begin..).unwrap_or_default();
        let (crc, rest) = packed.split_first_chunk().ok_or_else(not)?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(not)?;
        if u32::from_le_bytes(*crc) != crc32(member) || u32::from_le_bytes(*length) != size(member) {
            return Err(not());
        }
        packed = rest;
        if member.is_empty() && packed.is_empty() {
            break;
        }
    }
    Ok(plain)
}

/// Behind a member's header.
fn behind_head(packed: &[u8]) -> Option<&[u8]> {
    let flags = *packed.strip_prefix(&GZIP_MAGIC)?.first()?;
    let mut rest = packed.get(GZIP_HEAD.len()..)?;
    if flags & GZIP_EXTRA != 0 {
        let (length, behind) = rest.split_first_chunk()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for flag in [GZIP_NAME, GZIP_COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & GZIP_HEAD_CRC == 0 { Some(rest) } else { rest.get(2..) }
}

/// Adds what one deflate stream holds; answers what follows it.
fn inflated<'p>(mut packed: &'p [u8], plain: &mut Vec<u8>) -> Result<&'p [u8], CodingError> {
    let mut state = InflateState::new_boxed(DataFormat::Raw);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let step = inflate(&mut state, packed, &mut chunk, MZFlush::None);
        packed = packed.get(step.bytes_consumed..).unwrap_or_default();
        plain.extend_from_slice(chunk.get(..step.bytes_written).unwrap_or_default());
        if plain.len() > UNPACKED_BYTES_MAX {
            return Err(CodingError::TooLarge);
        }
        match step.status {
            Ok(MZStatus::StreamEnd) => return Ok(packed),
            Ok(_) | Err(MZError::Buf) if step.bytes_consumed + step.bytes_written > 0 => {}
            Ok(_) | Err(_) => return Err(CodingError::Not(Coding::Gzip)),
        }
    }
}

/// RFC 1952's ISIZE: modulo 2^32.
fn size(plain: &[u8]) -> u32 {
    u32::try_from(plain.len() & 0xFFFF_FFFF).unwrap_or_default()
}

/// RFC 1952's CRC-32 (ISO 3309), a byte at a time.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    let step = |crc: u32, byte: &u8| {
        let [low, ..] = crc.to_le_bytes();
        TABLE.get(usize::from(low ^ byte)).map_or(crc, |entry| entry ^ (crc >> 8))
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "256 places, counted out at compile time"
)]
const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = (at as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Zstd, Coding::Lz4];

    #[test]
    fn what_other_programs_write_is_read() {
        // printf hello | gzip -n9; with -N of a file `h`; printf hello | zstd; printf hello | lz4.
        let gzip = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";
        let named = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03h\0\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";
        let twice = [&gzip[..], &named[..]].concat();
        let zstd = b"\x28\xb5\x2f\xfd\x04\x58\x29\0\0hello\xa3\x6d\x9f\x88";
        let lz4 = b"\x04\x22\x4d\x18\x64\x40\xa7\x05\0\0\x80hello\0\0\0\0\xf9\x77\0\xfb";
        for (coding, packed, plain) in [
            (Coding::Gzip, &gzip[..], "hello"),
            (Coding::Gzip, &named[..], "hello"),
            (Coding::Gzip, &twice, "hellohello"),
            (Coding::Zstd, &zstd[..], "hello"),
            (Coding::Lz4, &lz4[..], "hello"),
            (Coding::Lz4, &[&lz4[..], b"\x5f\x2a\x4d\x18\x02\0\0\0xx", &lz4[..]].concat(), "hellohello"),
        ] {
            assert_eq!(
                coding.unpack(packed).map(|plain| String::from_utf8(plain).unwrap()),
                Ok(plain.to_owned()),
                "{coding:?}"
            );
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        for coding in ALL {
            let most = coding.pack(&vec![0; UNPACKED_BYTES_MAX]).unwrap();
            assert_eq!(coding.unpack(&most).map(|plain| plain.len()), Ok(UNPACKED_BYTES_MAX));
            let bomb = coding.pack(&vec![0; UNPACKED_BYTES_MAX + 1]).unwrap();
            assert!(bomb.len() < 128 << 10, "{coding:?}: {}", bomb.len());
            assert_eq!(coding.unpack(&bomb), Err(CodingError::TooLarge), "{coding:?}");
        }
    }

    #[test]
    fn what_is_cut_off_damaged_or_something_else_is_told() {
        let plain = br#"{"temp":81.5,"state":"running","temps":[81.5,81.5,81.5,81.5,81.5]}"#;
        for coding in ALL {
            let packed = coding.pack(plain).unwrap();
            assert_eq!(coding.unpack(&packed).as_deref(), Ok(&plain[..]));
            assert_eq!(coding.unpack(plain), Err(CodingError::Not(coding)));
            for end in 0..packed.len() {
                let cut = coding.unpack(&packed[..end]);
                assert_eq!(cut, Err(CodingError::Not(coding)), "{coding:?} cut at {end}");
            }
        }
        let behind = |coding: Coding| [coding.pack(plain).unwrap(), b"junk".to_vec()].concat();
        for coding in ALL {
            assert_eq!(coding.unpack(&behind(coding)), Err(CodingError::Not(coding)), "{coding:?}");
        }
        let mut flipped = Coding::Gzip.pack(plain).unwrap();
        let end = flipped.len() - 5;
        flipped[end] ^= 1;
        assert_eq!(Coding::Gzip.unpack(&flipped), Err(CodingError::Not(Coding::Gzip)));
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(plain in prop::collection::vec(0_u8..4, 0..3_000)) {
            for coding in ALL {
                prop_assert_eq!(coding.unpack(&coding.pack(&plain).unwrap()).unwrap(), plain.clone());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for (coding, head) in ALL.into_iter().zip([&GZIP_HEAD[..], b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"]) {
                let _either = coding.unpack(&bytes);
                let _either = coding.unpack(&[head, &bytes].concat());
            }
        }
    }
}
