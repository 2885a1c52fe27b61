//! The data types of MQTT 5.0 section 1.5: integers, UTF-8 strings, binary data, variable byte integers; read from
//! a whole packet, and written to whatever is an [`Out`].

use bytes::{BufMut, Bytes, BytesMut};

use super::error::{DecodeError, EncodeError};
use super::packet::{PacketId, Text};

/// The largest variable byte integer, and so the largest remaining length.
pub(super) const VARINT_MAX: usize = 268_435_455;

/// Reads a part of one whole packet. Strings and binary data share the packet's bytes.
pub(super) struct Reader<'a> {
    frame: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// What follows the fixed header of `header_len` bytes.
    pub(super) fn new(frame: &'a Bytes, header_len: usize) -> Self {
        Self { frame, at: header_len.min(frame.len()), end: frame.len() }
    }

    /// Bytes that are left.
    pub(super) const fn left(&self) -> usize {
        self.end - self.at
    }

    /// Whether all is read.
    pub(super) const fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// A reader for the next `len` bytes, which this one passes.
    pub(super) fn part(&mut self, len: usize) -> Result<Self, DecodeError> {
        let at = self.at;
        self.skip(len)?;
        Ok(Self { frame: self.frame, at, end: self.at })
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16()?).ok_or(ZERO_PACKET_ID)
    }

    /// In the fewest bytes (MQTT-1.5.5-1).
    pub(super) fn varint(&mut self) -> Result<usize, DecodeError> {
        match varint(self.rest_ref())? {
            Some((value, len)) if len == varint_len(value) => {
                self.skip(len)?;
                Ok(value)
            }
            Some(_) => Err(NOT_MINIMAL),
            None => Err(TOO_SHORT),
        }
    }

    /// Binary data.
    pub(super) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::from(self.u16()?);
        let at = self.at;
        self.skip(len)?;
        Ok(self.frame.slice(at..self.at))
    }

    /// A UTF-8 string that shares the packet's bytes.
    pub(super) fn text(&mut self) -> Result<Text, DecodeError> {
        let bytes = self.binary()?;
        if !is_plain(&bytes) {
            check_text(&bytes)?;
        }
        Ok(Text::checked(bytes))
    }

    /// A UTF-8 string with bytes of its own.
    pub(super) fn boxed(&mut self) -> Result<Box<str>, DecodeError> {
        let len = usize::from(self.u16()?);
        let at = self.at;
        self.skip(len)?;
        check_text(self.frame.get(at..self.at).unwrap_or_default()).map(Into::into)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        let at = std::mem::replace(&mut self.at, self.end);
        self.frame.slice(at..self.end)
    }

    /// The packet must be read to its end.
    pub(super) const fn finish(&self) -> Result<(), DecodeError> {
        if self.is_done() { Ok(()) } else { Err(DecodeError::malformed("bytes are left over behind the last field")) }
    }

    fn rest_ref(&self) -> &'a [u8] {
        self.frame.get(self.at..self.end).unwrap_or_default()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let found = self.rest_ref().first_chunk::<N>().copied().ok_or(TOO_SHORT)?;
        self.at += N;
        Ok(found)
    }

    fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        if len > self.left() {
            return Err(TOO_SHORT);
        }
        self.at += len;
        Ok(())
    }
}

pub(super) const ZERO_PACKET_ID: DecodeError = DecodeError::protocol("the packet id is 0; ids are 1 to 65535");
const TOO_SHORT: DecodeError = DecodeError::malformed("a field reaches over the end of the packet");
pub(super) const NOT_MINIMAL: DecodeError =
    DecodeError::malformed("a length is not written in the fewest bytes possible");

/// A variable byte integer at the start of `bytes`: its value and length; `None` if it goes on behind them.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(DecodeError::malformed("a length has more than 4 bytes")) }
}

/// Bytes that a variable byte integer takes.
pub(super) const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// ASCII without control characters, as nearly every text is: good as it is. Without a way out of the loop it is a few vector instructions.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, byte| plain & (b' '..=b'~').contains(byte))
}

/// MQTT-1.5.4-1 and -2. A surrogate is not UTF-8 for Rust either.
fn check_text(bytes: &[u8]) -> Result<&str, DecodeError> {
    if bytes.contains(&0) {
        return Err(DecodeError::malformed("a text holds a NUL character"));
    }
    std::str::from_utf8(bytes).map_err(|_utf8| DecodeError::malformed("a text is not UTF-8"))
}

/// Where fields are written to: bytes, or only their number.
pub(super) trait Out {
    fn put(&mut self, bytes: &[u8]);

    /// A field is longer than its length can say.
    fn overlong(&mut self);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// `value` must not be above [`VARINT_MAX`]; what is has been refused by the counting that goes first.
    fn varint(&mut self, value: usize) {
        if value > VARINT_MAX {
            return self.overlong();
        }
        let mut left = value;
        loop {
            // Masked to seven bits: it fits.
            let byte = u8::try_from(left & 0x7F).unwrap_or_default();
            left >>= 7;
            if left == 0 {
                return self.u8(byte);
            }
            self.u8(byte | 0x80);
        }
    }

    fn binary(&mut self, bytes: &[u8]) {
        match u16::try_from(bytes.len()) {
            Ok(len) => {
                self.u16(len);
                self.put(bytes);
            }
            Err(_longer) => self.overlong(),
        }
    }

    fn text(&mut self, text: &str) {
        self.binary(text.as_bytes());
    }
}

impl Out for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }

    // Everything is counted before it is written, and an overlong field ends there.
    fn overlong(&mut self) {}
}

/// Counts what would be written.
#[derive(Default)]
pub(super) struct Count {
    len: usize,
    overlong: bool,
}

impl Count {
    /// The number of bytes that `write` writes.
    pub(super) fn of(write: impl FnOnce(&mut Self)) -> Self {
        let mut count = Self::default();
        write(&mut count);
        count
    }

    /// `len` bytes more, whatever they are.
    pub(super) const fn skip(&mut self, len: usize) {
        self.len += len;
    }

    /// Even if some field is overlong: for a length inside what is itself counted.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// For a whole packet's remaining length.
    pub(super) const fn checked(&self) -> Result<usize, EncodeError> {
        if self.overlong {
            Err(EncodeError::FieldTooLong)
        } else if self.len > VARINT_MAX {
            Err(EncodeError::PacketTooLong)
        } else {
            Ok(self.len)
        }
    }
}

impl Out for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
    }

    fn overlong(&mut self) {
        self.overlong = true;
    }
}
