//! Compression at rest, a frame at a time, so that damage stays local and a reader can begin at any frame. A frame that
//! would not get shorter is stored as it is. Pure.

use std::fmt;

use bytes::Bytes;

use super::Compression;
use super::format::aligned;

/// Fastest: on telemetry it already gets most of what the slower levels do.
const ZSTD_LEVEL: i32 = 1;
/// Raw bytes that one stored byte can stand for at most: LZ4 lengthens a match by 255 a byte, zstd has blocks of 128 KiB that take
/// four. What a header says beyond that is not believed.
const LZ4_RATIO_MAX: usize = 255;
const ZSTD_RATIO_MAX: usize = 32 << 10;

/// Compresses frames; keeps the compressor's working memory from one frame to the next.
pub(super) struct Packer {
    compress: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Packer").field(&self.compress).finish()
    }
}

impl Packer {
    pub(super) const fn new(compress: Compression) -> Self {
        Self { compress, zstd: None }
    }

    /// `raw` compressed; `None` where that takes no less room, or nothing is to be compressed.
    pub(super) fn pack(&mut self, raw: &[u8]) -> Option<(Compression, Bytes)> {
        let most = aligned(raw.len()).checked_sub(8)?;
        let packed = match self.compress {
            Compression::None => None,
            Compression::Zstd => self.pack_zstd(raw, most),
            Compression::Lz4 => {
                let packed = lz4_flex::block::compress(raw);
                (packed.len() <= most).then_some(packed)
            }
        }?;
        let stored = raw.len() <= packed.len().saturating_mul(ratio_max(self.compress));
        stored.then(|| (self.compress, packed.into()))
    }

    fn pack_zstd(&mut self, raw: &[u8], most: usize) -> Option<Vec<u8>> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let mut packed = Vec::with_capacity(most);
        // It fails where the room does not suffice, which is the answer.
        self.zstd.as_mut()?.compress_to_buffer(raw, &mut packed).ok()?;
        Some(packed)
    }
}

const fn ratio_max(codec: Compression) -> usize {
    match codec {
        Compression::None => 1,
        Compression::Zstd => ZSTD_RATIO_MAX,
        Compression::Lz4 => LZ4_RATIO_MAX,
    }
}

/// What [`Packer::pack`] compressed; `None` for anything that does not become `raw_len` bytes exactly. Allocates those at most,
/// and only where so few bytes can become so many.
pub(super) fn unpack(codec: Compression, stored: &Bytes, raw_len: usize) -> Option<Bytes> {
    if raw_len > stored.len().saturating_mul(ratio_max(codec)) {
        return None;
    }
    let raw = match codec {
        Compression::None => return (stored.len() == raw_len).then(|| stored.clone()),
        Compression::Zstd => zstd::bulk::decompress(stored, raw_len).ok()?,
        Compression::Lz4 => lz4_flex::block::decompress(stored, raw_len).ok()?,
    };
    (raw.len() == raw_len).then(|| raw.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Compression; 2] = [Compression::Zstd, Compression::Lz4];

    #[test]
    fn telemetry_gets_much_shorter_and_comes_back() {
        let raw: Bytes =
            (0..500).map(|n| format!("{{\"line\":{},\"temp\":{}.5}}", n % 7, n)).collect::<String>().into();
        for codec in BOTH {
            let (by, packed) = Packer::new(codec).pack(&raw).unwrap();
            assert_eq!(by, codec);
            assert!(packed.len() * 3 < raw.len(), "{codec:?}: {} of {}", packed.len(), raw.len());
            assert_eq!(unpack(codec, &packed, raw.len()), Some(raw.clone()));
            for wrong in [0, raw.len() - 1, raw.len() + 1, 1 << 30] {
                assert_eq!(unpack(codec, &packed, wrong), None, "{codec:?} to {wrong}");
            }
        }
    }

    #[test]
    fn what_does_not_get_shorter_is_stored_as_it_is() {
        let raw: Vec<u8> = (0..1_000).map(|_| rand::random()).collect();
        for codec in [Compression::None, Compression::Zstd, Compression::Lz4] {
            for len in [0, 1, 8, 16, 1_000] {
                assert_eq!(Packer::new(codec).pack(&raw[..len]), None, "{codec:?}, {len} bytes");
            }
        }
        let zeros = vec![0; 100_000];
        assert!(Packer::new(Compression::None).pack(&zeros).is_none());
        for codec in BOTH {
            let (_, packed) = Packer::new(codec).pack(&zeros).unwrap();
            assert_eq!(unpack(codec, &packed, zeros.len()).as_deref(), Some(&zeros[..]), "{codec:?}: longest runs");
        }
    }

    proptest! {
        #[test]
        fn unpacking_never_panics_and_never_gives_another_length(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            raw_len in 0_usize..100_000,
        ) {
            for codec in BOTH {
                let raw = unpack(codec, &Bytes::from(bytes.clone()), raw_len);
                prop_assert!(raw.is_none_or(|raw| raw.len() == raw_len));
            }
        }

        #[test]
        fn what_is_packed_comes_back(words in proptest::collection::vec("[a-d]{1,4}", 0..300)) {
            let raw = Bytes::from(words.concat());
            for codec in BOTH {
                if let Some((codec, packed)) = Packer::new(codec).pack(&raw) {
                    prop_assert!(aligned(packed.len()) < aligned(raw.len()));
                    prop_assert_eq!(unpack(codec, &packed, raw.len()), Some(raw.clone()));
                }
            }
        }
    }
}
