//! Wills: each is in memory for as long as its client is there, and after that for its delay. What they take is bounded (R36), one by
//! one and together; small ones always have their place, so that no client's large will keeps out others'.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::Message;

/// What one counts for at most: any will of MQTT 3.x does.
const WILL_BYTES_MAX: u64 = 256 << 10;

/// One that counts for no more is never refused for others; connections and kept sessions bound their number.
const SMALL_BYTES: u64 = 4 << 10;

/// A client's will, and its place among them.
#[derive(Clone, Debug)]
pub(super) struct Will {
    pub(super) message: Arc<Message>,
    _place: Option<Arc<Place>>,
}

/// What all larger ones count for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wills {
    bytes: Arc<AtomicU64>,
}

/// It is given back when it is dropped.
#[derive(Debug)]
struct Place {
    of: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a will is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    /// For itself.
    #[error("the will is too large: with its properties it may count for 256KiB")]
    TooLarge,
    /// For those that there are.
    #[error("the wills of all clients together take as much memory as they may (a sixteenth of `max_memory`)")]
    TooMany,
}

impl Wills {
    /// Takes one in, where larger ones may count for `most` together.
    pub(super) fn take_in(&self, message: Message, most: u64) -> Result<Will, NoPlace> {
        let bytes = message.kept_bytes(&message.topic) as u64;
        if bytes > WILL_BYTES_MAX {
            return Err(NoPlace::TooLarge);
        }
        if bytes > SMALL_BYTES {
            let add = |all: u64| Some(all + bytes).filter(|all| *all <= most);
            self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_full| NoPlace::TooMany)?;
        }
        Ok(self.will(Arc::new(message), bytes))
    }

    /// One that the store kept: it is there, whatever they count for.
    pub(super) fn restored(&self, message: Arc<Message>) -> Will {
        let bytes = message.kept_bytes(&message.topic) as u64;
        if bytes > SMALL_BYTES {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.will(message, bytes)
    }

    fn will(&self, message: Arc<Message>, bytes: u64) -> Will {
        let place = (bytes > SMALL_BYTES).then(|| Arc::new(Place { of: Arc::clone(&self.bytes), bytes }));
        Will { message, _place: place }
    }

    /// What the larger ones count for now.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;

    fn of(bytes: usize) -> Message {
        let one = message("w", b"");
        let rest = bytes - one.kept_bytes(&one.topic);
        Message { payload: vec![0; rest].into(), ..one }
    }

    #[test]
    fn r36_wills_are_bounded_each_and_together_and_small_ones_always_have_their_place() {
        let wills = Wills::default();
        assert_eq!(wills.take_in(of((256 << 10) + 1), u64::MAX).err(), Some(NoPlace::TooLarge));
        let first = wills.take_in(of(6_000), 10_000).unwrap();
        assert_eq!(wills.take_in(of(4_097), 10_000).err(), Some(NoPlace::TooMany));
        let small = (0..10).map(|_| wills.take_in(of(4_096), 10_000)).collect::<Result<Vec<_>, _>>();
        assert_eq!((small.map(|small| small.len()), wills.bytes()), (Ok(10), 6_000));
        let copy = first.clone();
        drop(first);
        assert_eq!(wills.bytes(), 6_000, "it is there until the last who has it is done");
        drop(copy);
        let restored = [(); 2].map(|()| wills.restored(Arc::new(of(6_000))));
        assert_eq!(wills.bytes(), 12_000, "what the store kept is there");
        assert_eq!(wills.take_in(of(5_000), 10_000).err(), Some(NoPlace::TooMany));
        drop(restored);
        assert!(wills.take_in(of(5_000), 10_000).is_ok());
    }
}
