//! What publishers have staged: encoded records, cut into frames as they come, in memory until they are written.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::codec::Packer;
use super::format::{
    DecodedRecord, FRAME_BYTES_MAX, FRAME_HEADER, FrameHeader, aligned, decode_record, encode_record, record_len,
};
use super::{Compression, Offset, Record, wide};
use crate::clock::{Moment, WallMs};

/// Milliseconds of the wall clock that a frame covers at most: its age is that of its first record, and on a full disk, or with
/// `sync: spill`, a batch may be open for long.
pub(super) const FRAME_MS_MAX: u64 = 999;
/// Bytes that a batch makes room for before it has any: what may be staged (see `STAGED_BYTES_MAX` in `state`). Room that is not
/// written to costs no memory.
const CAPACITY_MAX: usize = 8 << 20;
/// The largest buffer that is kept for a later batch: memory that stays with an idle log.
const SPARE_MAX: usize = 2 << 20;

/// Records that become one write. Each frame carries the time of its first record; each record its own delta.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: BytesMut,
    /// One as a rule: it costs a publisher no memory of its own.
    cuts: SmallVec<[Cut; 1]>,
    /// Bytes that writing all frames but the last takes.
    whole: u64,
    base: u64,
    next: u64,
}

/// One frame to be.
#[derive(Clone, Debug)]
struct Cut {
    base: u64,
    /// When its first record was appended.
    at: Moment,
    count: u32,
    from: usize,
    to: usize,
    payload: u64,
    expiry_max_s: u32,
    /// Its body compressed, where that is shorter.
    packed: Option<(Compression, Bytes)>,
}

impl Cut {
    /// Bytes of body in the file.
    fn stored(&self) -> usize {
        self.packed.as_ref().map_or(self.to - self.from, |(_, packed)| packed.len())
    }

    /// Bytes of the whole frame in the file.
    fn frame_len(&self) -> u64 {
        wide(FRAME_HEADER + aligned(self.stored()))
    }
}

/// A batch that the writer has taken: it does not grow any more, and its bytes can be shared.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) base: u64,
    pub(super) next: u64,
    /// So many numbers before `base` are no records (see [`FrameHeader`]).
    pub(super) skipped: u64,
    bytes: Bytes,
    cuts: SmallVec<[Cut; 1]>,
}

/// Records in memory or read back: the body of one frame.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) base: u64,
    pub(super) skipped: u64,
    pub(super) count: u64,
    /// When its first record was appended; read back, its boot is not known.
    pub(super) at: Moment,
    pub(super) payload: u64,
    pub(super) body: Bytes,
}

impl Frame {
    pub(super) const fn next(&self) -> u64 {
        self.base.saturating_add(self.count)
    }

    /// Where what it accounts for begins.
    pub(super) const fn from(&self) -> u64 {
        self.base.saturating_sub(self.skipped)
    }

    /// Bytes that writing it takes.
    pub(super) fn disk_bytes(&self) -> u64 {
        wide(FRAME_HEADER + aligned(self.body.len()))
    }

    /// The memory of its batch, where nobody uses it any more.
    pub(super) fn into_spare(self) -> Option<BytesMut> {
        let mut spare = self.body.try_into_mut().ok()?;
        spare.clear();
        // Asks for the whole batch's room, not only what this frame had of it: one that has so much is too large to stay.
        let is_large = spare.try_reclaim(SPARE_MAX + 1);
        (!is_large).then_some(spare)
    }

    /// One of its records, as it is handed out.
    pub(super) fn record(&self, offset: u64, decoded: DecodedRecord) -> Record {
        let appended = self.at.wall.0.saturating_add_signed(i64::from(decoded.delta_ms));
        Record { offset: Offset(offset), appended: WallMs(appended), expires: decoded.expires, body: decoded.body }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Bytes that writing it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.whole + self.cuts.last().map_or(0, Cut::frame_len)
    }

    /// How many records it has.
    pub(super) fn count(&self) -> u64 {
        if self.is_empty() { 0 } else { self.next - self.base }
    }

    /// Behind its last record.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Payload bytes in it.
    pub(super) fn payload(&self) -> u64 {
        self.cuts.iter().map(|cut| cut.payload).sum()
    }

    /// When its first record came.
    pub(super) fn at(&self) -> Option<Moment> {
        self.cuts.first().map(|first| first.at)
    }

    /// The time of the last frame, where a record of `wall` goes into it as far as time decides.
    fn frame_at(&self, wall: WallMs) -> Option<Moment> {
        let covers = |at: &Moment| wall.0.checked_sub(at.wall.0).is_some_and(|ms| ms <= FRAME_MS_MAX);
        self.cuts.last().map(|last| last.at).filter(covers)
    }

    /// `wall` by all clocks, where that can be told from the last frame without asking them.
    pub(super) fn moment_of(&self, wall: WallMs) -> Option<Moment> {
        self.frame_at(wall).map(|first| later(first, wall))
    }

    /// Adds the record `offset`.
    pub(super) fn push(&mut self, offset: u64, parts: &[&[u8]], expires: Option<WallMs>, now: Moment) {
        if self.cuts.is_empty() {
            self.base = offset;
        }
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let len = record_len(payload, expires.is_some());
        let from = self.bytes.len();
        let has_room = self.cuts.last().is_some_and(|cut| cut.to - cut.from + len <= FRAME_BYTES_MAX);
        let at = self.frame_at(now.wall).filter(|_| has_room).unwrap_or_else(|| {
            let (count, payload, expiry_max_s) = (0, 0, 0);
            self.whole = self.bytes();
            self.cuts.push(Cut { base: offset, at: now, count, from, to: from, payload, expiry_max_s, packed: None });
            now
        });
        // At most FRAME_MS_MAX.
        let delta = i32::try_from(now.wall.0.saturating_sub(at.wall.0)).unwrap_or(i32::MAX);
        encode_record(&mut self.bytes, parts, delta, expires);
        self.next = offset + 1;
        let to = self.bytes.len();
        if let Some(cut) = self.cuts.last_mut() {
            cut.to = to;
            cut.count += 1;
            cut.payload += wide(payload);
            let seconds = expires.map_or(u32::MAX, |at| u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX));
            cut.expiry_max_s = cut.expiry_max_s.max(seconds);
        }
    }

    /// Hands it to the writer. The next one goes into `spare`, an earlier one's memory: new memory is zeroed by the system
    /// page by page, which costs more than all that is done with the records.
    pub(super) fn take(&mut self, spare: Option<BytesMut>) -> Option<Taken> {
        if self.is_empty() {
            return None;
        }
        // The next one is about as large: it need not grow, and be copied, step by step.
        let len = self.bytes.len();
        let mut bytes = spare.unwrap_or_default();
        // In powers of two, so that the memory of one batch fits the next, which is seldom of the very same size.
        bytes.reserve((len + len / 8).next_power_of_two().min(CAPACITY_MAX));
        let Self { bytes, cuts, base, next, whole: _ } = std::mem::replace(self, Self { bytes, ..Self::default() });
        Some(Taken { base, next, skipped: 0, bytes: bytes.freeze(), cuts })
    }
}

/// `first` and some time later, by the wall clock.
const fn later(first: Moment, wall: WallMs) -> Moment {
    Moment { wall, up_ms: first.up_ms.saturating_add(wall.0.saturating_sub(first.wall.0)), ..first }
}

fn disk_bytes(cuts: &[Cut]) -> u64 {
    cuts.iter().map(Cut::frame_len).sum()
}

impl Taken {
    /// What these frames hold at or above `floor`, encoded anew into as few frames as there can be.
    pub(super) fn of(frames: &[Frame], floor: u64) -> Option<Self> {
        let mut batch = Batch::default();
        for frame in frames {
            let mut at = 0;
            for offset in frame.base..frame.next() {
                // What was staged by this process decodes.
                let Some(record) = decode_record(&frame.body, at) else { break };
                at = record.end;
                if offset >= floor {
                    let wall = WallMs(frame.at.wall.0.saturating_add_signed(i64::from(record.delta_ms)));
                    batch.push(offset, &[&record.body], record.expires, later(frame.at, wall));
                }
            }
        }
        batch.take(None)
    }

    /// Bytes that writing it takes.
    pub(super) fn bytes(&self) -> u64 {
        disk_bytes(&self.cuts)
    }

    /// Where what it accounts for begins.
    pub(super) const fn from(&self) -> u64 {
        self.base.saturating_sub(self.skipped)
    }

    /// Compresses the frames that get shorter by it.
    pub(super) fn pack(&mut self, packer: &mut Packer) {
        for cut in &mut self.cuts {
            cut.packed = self.bytes.get(cut.from..cut.to).and_then(|raw| packer.pack(raw));
        }
    }

    /// The headers of its frames, one behind the other.
    pub(super) fn headers(&self, salt: u32, durable: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.cuts.len() * FRAME_HEADER);
        let mut skipped = self.skipped;
        for cut in &self.cuts {
            let raw = self.bytes.get(cut.from..cut.to).unwrap_or_default();
            let (codec, stored) =
                cut.packed.as_ref().map_or((Compression::None, raw), |(codec, packed)| (*codec, packed));
            let header = FrameHeader {
                codec,
                raw_len: u32::try_from(raw.len()).unwrap_or(u32::MAX),
                durable,
                at: cut.at,
                skipped: std::mem::take(&mut skipped),
                expiry_max_s: cut.expiry_max_s,
                ..FrameHeader::of(stored, salt, cut.base, cut.count)
            };
            header.encode(salt, &mut out);
        }
        out
    }

    /// As it goes to the file, behind these headers.
    pub(super) fn parts<'a>(&'a self, headers: &'a [u8]) -> Vec<&'a [u8]> {
        const PADDING: &[u8] = &[0; 8];
        let bodies = self.cuts.iter().map(|cut| match &cut.packed {
            Some((_, packed)) => packed,
            None => self.bytes.get(cut.from..cut.to).unwrap_or_default(),
        });
        let frames = headers.chunks(FRAME_HEADER).zip(bodies).flat_map(|(header, body)| {
            [header, body, PADDING.get(..aligned(body.len()) - body.len()).unwrap_or_default()]
        });
        frames.filter(|part| !part.is_empty()).collect()
    }

    /// Its frames, and how long each is in the file.
    pub(super) fn frames(&self) -> impl Iterator<Item = (Frame, u64)> + '_ {
        self.cuts.iter().map(|cut| {
            let frame = Frame {
                base: cut.base,
                skipped: if cut.base == self.base { self.skipped } else { 0 },
                count: u64::from(cut.count),
                at: cut.at,
                payload: cut.payload,
                body: self.bytes.slice(cut.from..cut.to),
            };
            (frame, cut.frame_len())
        })
    }
}
