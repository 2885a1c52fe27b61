//! The bytes of `dead-letters/letters`: rows of letters, and of fates that say what became of one. Pure but for reading.

use std::io;

use bytes::{Buf, BufMut, Bytes};

use super::super::Offset;
use super::super::format::aligned;
use super::super::storage::{Handle, read_past_bad_pages};
use super::super::wide;
use super::DeadLetter;
use crate::clock::WallMs;

const LETTER: u32 = u32::from_le_bytes(*b"TGDL");
const FATE: u32 = u32::from_le_bytes(*b"TGDM");
const HEADER: usize = 20;
const FIXED: usize = 28;
/// What is searched for the next row at once.
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
    /// As it goes to the file, padding included. The header has a checksum of its own, so that one that is damaged is known
    /// without reading what it says the length of; and both are seeded with the log's salt, so that no message can hold what would
    /// be taken for a row where the one around it is damaged.
    pub(super) fn encode(&self, salt: u32) -> Vec<u8> {
        let (magic, rest) = match self {
            Self::Letter(letter) => (LETTER, letter_bytes(letter)),
            Self::Fate(fate) => (FATE, fate_bytes(*fate)),
        };
        let mut out = Vec::with_capacity(aligned(HEADER + rest.len()));
        out.put_u32_le(magic);
        out.put_u32_le(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        out.put_u32_le(salt);
        out.put_u32_le(crc32c::crc32c_append(salt, &rest));
        out.put_u32_le(crc32c::crc32c_append(salt, &out));
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

/// A row that was found.
pub(super) struct Found {
    pub(super) row: Row,
    /// Its length without padding.
    pub(super) size: usize,
    salt: u32,
}

/// The row at `pos`, if one of this salt (or any) is there.
pub(super) fn read(file: &dyn Handle, pos: u64, end: u64, salt: Option<u32>) -> io::Result<Option<Found>> {
    let bytes = read_past_bad_pages(file, pos, HEADER)?;
    let mut head = bytes.as_slice();
    if head.len() < HEADER {
        return Ok(None);
    }
    let (magic, len, own) = (head.get_u32_le(), head.get_u32_le(), head.get_u32_le());
    let (crc, head_crc) = (head.get_u32_le(), head.get_u32_le());
    let is_ours = matches!(magic, LETTER | FATE) && salt.is_none_or(|salt| salt == own);
    let checked = bytes.get(..HEADER - 4).unwrap_or_default();
    if !is_ours || crc32c::crc32c_append(own, checked) != head_crc || pos + wide(HEADER) + u64::from(len) > end {
        return Ok(None);
    }
    let Ok(len) = usize::try_from(len) else { return Ok(None) };
    let rest = read_past_bad_pages(file, pos + wide(HEADER), len)?;
    if rest.len() != len || crc32c::crc32c_append(own, &rest) != crc {
        return Ok(None);
    }
    let row = if magic == LETTER { letter(rest.into()).map(Row::Letter) } else { fate(&rest).map(Row::Fate) };
    Ok(row.map(|row| Found { row, size: HEADER + len, salt: own }))
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

/// What [`scan`] found beside the rows.
pub(super) struct Scan {
    /// Ranges between rows that are none.
    pub(super) damaged: Vec<(u64, u64)>,
    /// Where the last row ends.
    pub(super) end: u64,
    /// The salt of its rows.
    pub(super) salt: u32,
}

/// Shows all sound rows with their place and length. Their salt is `expected`; where none has it, since `meta` was lost, it is that
/// of the first row that checks by its own.
pub(super) fn scan(
    file: &dyn Handle,
    len: u64,
    expected: u32,
    mut each: impl FnMut(Row, u64, usize),
) -> io::Result<Scan> {
    let salt = match next_row(file, 0, len, Some(expected))? {
        Some(_) => expected,
        None => next_row(file, 0, len, None)?.map_or(expected, |(_, found)| found.salt),
    };
    let mut scan = Scan { damaged: Vec::new(), end: 0, salt };
    while let Some((at, Found { row, size, .. })) = next_row(file, scan.end, len, Some(salt))? {
        if at > scan.end {
            scan.damaged.push((scan.end, at));
        }
        each(row, at, size);
        scan.end = at + wide(aligned(size));
    }
    Ok(scan)
}

/// The first row at `from` or behind it, and where it begins. Each byte is looked at once, and once more in a row whose body does not
/// check: nothing but our own rows has a header with our salt that does.
fn next_row(file: &dyn Handle, from: u64, len: u64, salt: Option<u32>) -> io::Result<Option<(u64, Found)>> {
    if let Some(found) = read(file, from, len, salt)? {
        return Ok(Some((from, found)));
    }
    let begins =
        |eight: &[u8]| eight.first_chunk::<4>().is_some_and(|m| [LETTER, FATE].contains(&u32::from_le_bytes(*m)));
    for at in (from..len).step_by(LOOK) {
        let bytes = read_past_bad_pages(file, at, LOOK)?;
        for (_, pos) in bytes.chunks(8).zip((at..).step_by(8)).filter(|(eight, _)| begins(eight)) {
            if let Some(found) = read(file, pos, len, salt)? {
                return Ok(Some((pos, found)));
            }
        }
    }
    Ok(None)
}
