//! Memory that is used again: what one message needed for its records and their destinations, the next one of the same thread takes. So
//! the way of a message that no route changes costs one allocation, its own (`tests/hub_alloc.rs`).

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use super::plan::LinkTarget;
use super::records::Append;

/// Pieces of each kind that stay with a thread: about what one read of a busy client needs at once.
const PIECES_MAX: usize = 256;
/// Bytes of a piece that stays.
const BYTES_MAX: usize = 2 << 10;

/// A list or text that leaves its memory to the next one.
#[derive(PartialEq, Eq)]
pub(super) struct Reused<T: Piece>(T);

/// What has memory.
pub(super) trait Piece: Default + 'static {
    /// Lets go what is in it.
    fn empty(&mut self);

    /// Of its memory.
    fn bytes(&self) -> usize;

    /// Those of this thread.
    fn spare() -> &'static LocalKey<RefCell<Vec<Self>>>;
}

impl<T: Piece> Reused<T> {
    /// Empty, with the memory of an earlier one, if there is some.
    fn taken() -> Self {
        Self(T::spare().with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl<T> Reused<Vec<T>>
where
    Vec<T>: Piece,
{
    pub(super) fn push(&mut self, one: T) {
        // Few messages go to no link, and these take nothing.
        if self.0.capacity() == 0 {
            *self = Self::taken();
        }
        self.0.push(one);
    }
}

impl Reused<String> {
    /// What `fill` makes of an empty text.
    pub(super) fn text<E>(fill: impl FnOnce(&mut String) -> Result<(), E>) -> Result<Self, E> {
        let mut text = Self::taken();
        fill(&mut text)?;
        Ok(text)
    }
}

impl From<String> for Reused<String> {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl<T: Piece> Drop for Reused<T> {
    fn drop(&mut self) {
        if !(1..=BYTES_MAX).contains(&self.0.bytes()) {
            return;
        }
        self.0.empty();
        let piece = std::mem::take(&mut self.0);
        let keep = |spare: &RefCell<Vec<T>>| {
            let mut spare = spare.borrow_mut();
            if spare.len() < PIECES_MAX {
                spare.push(piece);
            }
        };
        // A thread that ends keeps nothing any more.
        let _kept_or_gone = T::spare().try_with(keep);
    }
}

impl<T: Piece> Default for Reused<T> {
    fn default() -> Self {
        Self(T::default())
    }
}

impl<T: Piece> Deref for Reused<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Piece> DerefMut for Reused<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Piece + fmt::Debug> fmt::Debug for Reused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What each kind has, of its own thread.
macro_rules! piece {
    ($kind:ty, $bytes_each:expr) => {
        impl Piece for $kind {
            fn empty(&mut self) {
                self.clear();
            }

            fn bytes(&self) -> usize {
                self.capacity() * $bytes_each
            }

            fn spare() -> &'static LocalKey<RefCell<Vec<Self>>> {
                thread_local! {
                    static SPARE: RefCell<Vec<$kind>> = const { RefCell::new(Vec::new()) };
                }
                &SPARE
            }
        }
    };
}

piece!(String, 1);
piece!(Vec<LinkTarget>, size_of::<LinkTarget>());
piece!(Vec<Append>, size_of::<Append>());

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reused<String> {
        Reused::text(|out| {
            out.push_str(text);
            Ok::<_, ()>(())
        })
        .unwrap()
    }

    #[test]
    fn memory_is_used_again_and_what_was_in_it_is_gone() {
        let long = text(&"x".repeat(1_000));
        let at = long.as_ptr();
        drop(long);
        let short = text("y");
        assert_eq!((short.as_ptr(), short.as_str()), (at, "y"));
    }

    #[test]
    fn a_thread_keeps_so_many_pieces_and_none_that_is_large() {
        drop(text(&"x".repeat(BYTES_MAX + 1)));
        String::spare().with_borrow(|spare| assert!(spare.is_empty()));
        let many: Vec<_> = (0..2 * PIECES_MAX).map(|_| text("x")).collect();
        drop(many);
        String::spare().with_borrow(|spare| assert_eq!(spare.len(), PIECES_MAX));
    }
}
