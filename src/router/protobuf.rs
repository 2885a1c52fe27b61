//! The wire format of protocol buffers: fields one behind the other, each with its number. Enough for Sparkplug's five kinds of
//! messages; what they mean is [`sparkplug`](super::sparkplug)'s part.

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotWire;

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message that is left to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    /// Number and value. Ends behind the first mistake.
    type Item = Result<(u64, Wire<'a>), NotWire>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(NotWire))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let number = tag >> 3;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(*self.chunk()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(*self.chunk()?)),
            // Groups, which nobody writes any more.
            _ => return None,
        };
        (number > 0).then_some((number, value))
    }

    /// One number, as packed lists have them too.
    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for place in 0..10 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if place == 9 && *byte > 1 {
                return None;
            }
            number |= u64::from(byte & 0x7F) << (place * 7);
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_in_their_order_and_what_is_none_ends_them() {
        let bytes = b"\x08\x96\x01\x11\x01\0\0\0\0\0\0\0\x1a\x02ab\x25\x02\0\0\0";
        let fields: Vec<_> = Fields(bytes).collect();
        let expected =
            [(1, Wire::Varint(150)), (2, Wire::Fixed64(1)), (3, Wire::Bytes(b"ab")), (4, Wire::Fixed32(2))].map(Ok);
        assert_eq!(fields, expected);
        for bad in [&b"\x08"[..], b"\x1a\x03ab", b"\x0b", b"\x00\x01", b"\x25\0\0", &[0xFF; 11]] {
            assert_eq!(Fields(bad).last(), Some(Err(NotWire)), "{bad:?}");
        }
        assert_eq!(Fields(&[&[0xFF; 9][..], &[1]].concat()).varint(), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Fields(&bytes).count() <= bytes.len());
        }
    }
}
