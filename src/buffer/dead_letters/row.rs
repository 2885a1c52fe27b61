//! The bytes of `dead-letters/letters`: rows of letters, and of fates that say what became of one. Pure but for reading.

use std::io;

use bytes::{Buf, BufMut, Bytes};

use super::super::Offset;
use super::super::format::aligned;
use super::super::storage::{Handle, read_up_to};
use super::super::wide;
use super::DeadLetter;
use crate::clock::WallMs;

const LETTER: u32 = u32::from_le_bytes(*b"TGDL");
const FATE: u32 = u32::from_le_bytes(*b"TGDM");
const HEADER: usize = 12;
const FIXED: usize = 28;
/// Zeros that are passed over at once.
const LOOK: usize = 4 << 10;

/// What became of a letter. A row of `kind:u32 zero:u32 offset:u64 value:u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is about to be appended to the log, as `from` or later.
    Sending { letter: Offset, from: u64 },
    /// It is in the log again.
    Sent { letter: Offset, offset: u64 },
    /// It is not in the log: the letter stays.
    Kept { letter: Offset },
    /// The operator dropped it.
    Dropped { letter: Offset },
    /// How many were sent again and dropped before: the first row of a file that was written anew.
    Totals { sent: u64, dropped: u64 },
}

/// A sound row.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Letter(DeadLetter),
    Fate(Fate),
}

impl Row {
    /// As it goes to the file, padding included.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (magic, rest) = match self {
            Self::Letter(letter) => (LETTER, letter_bytes(letter)),
            Self::Fate(fate) => (FATE, fate_bytes(*fate)),
        };
        let mut out = Vec::with_capacity(aligned(HEADER + rest.len()));
        out.put_u32_le(magic);
        out.put_u32_le(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        out.put_u32_le(crc32c::crc32c(&rest));
        out.extend(rest);
        out.resize(aligned(out.len()), 0);
        out
    }
}

fn letter_bytes(letter: &DeadLetter) -> Vec<u8> {
    let mut rest = Vec::with_capacity(FIXED + letter.reason.len() + letter.body.len());
    rest.put_u32_le(letter.attempts);
    rest.put_u64_le(letter.offset.0);
    rest.put_u64_le(letter.time.0);
    rest.put_u32_le(u32::try_from(letter.reason.len()).unwrap_or(u32::MAX));
    rest.put_u32_le(0);
    rest.put_slice(letter.reason.as_bytes());
    rest.put_slice(&letter.body);
    rest
}

fn fate_bytes(fate: Fate) -> Vec<u8> {
    let (kind, first, second) = match fate {
        Fate::Sending { letter, from } => (1, letter.0, from),
        Fate::Sent { letter, offset } => (2, letter.0, offset),
        Fate::Kept { letter } => (3, letter.0, 0),
        Fate::Dropped { letter } => (4, letter.0, 0),
        Fate::Totals { sent, dropped } => (5, sent, dropped),
    };
    let mut rest = Vec::with_capacity(24);
    rest.put_u32_le(kind);
    rest.put_u32_le(0);
    rest.put_u64_le(first);
    rest.put_u64_le(second);
    rest
}

/// The row at `pos` and its length without padding, if one is there.
pub(super) fn read(file: &dyn Handle, pos: u64, end: u64) -> io::Result<Option<(Row, usize)>> {
    let head = read_up_to(file, pos, HEADER)?;
    let mut head = head.as_slice();
    if head.len() < HEADER {
        return Ok(None);
    }
    let (magic, len, crc) = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
    if !matches!(magic, LETTER | FATE) || pos + wide(HEADER) + u64::from(len) > end {
        return Ok(None);
    }
    let Ok(len) = usize::try_from(len) else { return Ok(None) };
    let rest = read_up_to(file, pos + wide(HEADER), len)?;
    if rest.len() != len || crc32c::crc32c(&rest) != crc {
        return Ok(None);
    }
    let row = if magic == LETTER { letter(rest.into()).map(Row::Letter) } else { fate(&rest).map(Row::Fate) };
    Ok(row.map(|row| (row, HEADER + len)))
}

fn letter(mut rest: Bytes) -> Option<DeadLetter> {
    if rest.len() < FIXED {
        return None;
    }
    let (attempts, offset, time) = (rest.get_u32_le(), Offset(rest.get_u64_le()), WallMs(rest.get_u64_le()));
    let reason_len = usize::try_from(rest.get_u32_le()).ok()?;
    rest.advance(4);
    if rest.len() < reason_len {
        return None;
    }
    let reason = String::from_utf8_lossy(&rest.split_to(reason_len)).into_owned();
    Some(DeadLetter { offset, time, reason, attempts, body: rest })
}

fn fate(mut rest: &[u8]) -> Option<Fate> {
    if rest.len() < 24 {
        return None;
    }
    let kind = rest.get_u32_le();
    rest.advance(4);
    let (first, second) = (rest.get_u64_le(), rest.get_u64_le());
    let letter = Offset(first);
    match kind {
        1 => Some(Fate::Sending { letter, from: second }),
        2 => Some(Fate::Sent { letter, offset: second }),
        3 => Some(Fate::Kept { letter }),
        4 => Some(Fate::Dropped { letter }),
        5 => Some(Fate::Totals { sent: first, dropped: second }),
        _ => None,
    }
}

/// Shows all sound rows with their place and length; answers the ranges between them that are none, and where the last
/// one ends.
pub(super) fn scan(
    file: &dyn Handle,
    len: u64,
    mut each: impl FnMut(Row, u64, usize),
) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut damaged = Vec::new();
    let (mut at, mut sound_end) = (0, 0);
    while at + wide(HEADER) <= len {
        if let Some((row, size)) = read(file, at, len)? {
            if at > sound_end {
                damaged.push((sound_end, at));
            }
            each(row, at, size);
            at += wide(aligned(size));
            sound_end = at;
        } else {
            at += zeros(file, at)?.max(8);
        }
    }
    Ok((damaged, sound_end))
}

/// How many zeros stand at `at`, as far as is looked at once, in eights: no row begins among them.
fn zeros(file: &dyn Handle, at: u64) -> io::Result<u64> {
    if read_up_to(file, at, 8)?.iter().any(|byte| *byte != 0) {
        return Ok(0);
    }
    let bytes = read_up_to(file, at, LOOK)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(wide(zeros) & !7)
}
