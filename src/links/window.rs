//! What is in flight on one connection, and how much may be. Pure bookkeeping: no clock, no network.
//!
//! The window is counted from the oldest unconfirmed record to the newest sent, not by how many are open: so packet ids of
//! a kind that counts them can never collide, and a crash repeats at most this many records (R9).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::buffer::Offset;

/// A record on its way.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    /// Its place in the log.
    pub(super) offset: Offset,
    /// The record as the log holds it, for a dead letter.
    pub(super) body: Bytes,
    /// Bytes of the message's payload, for the board.
    pub(super) payload_bytes: u64,
    /// `None`: no answer yet.
    fate: Option<Fate>,
}

/// What an answer means for a record in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Confirmed: settled as delivered when all before it are done too.
    Delivered,
    /// Settled elsewhere (a dead letter).
    Elsewhere,
    /// To be sent again, and all behind it, so that the last copies are in order (R10): nothing passes it.
    Again,
}

impl InFlight {
    pub(super) const fn new(offset: Offset, body: Bytes, payload_bytes: u64) -> Self {
        Self { offset, body, payload_bytes, fate: None }
    }
}

/// The records in flight, in the order in which they were sent, which is the order of their offsets.
#[derive(Debug, Default)]
pub(super) struct Flight {
    records: VecDeque<InFlight>,
    open: usize,
    bytes: usize,
}

impl Flight {
    /// One more is on its way.
    pub(super) fn push(&mut self, record: InFlight) {
        debug_assert!(self.records.back().is_none_or(|last| last.offset < record.offset), "sent in order");
        self.open += 1;
        self.bytes += record.body.len();
        self.records.push_back(record);
    }

    /// The remote has answered for `offset`: what it was, or `None` where nothing waits for this answer.
    pub(super) fn answer(&mut self, offset: Offset, fate: Fate) -> Option<InFlight> {
        let at = self.records.binary_search_by_key(&offset, |record| record.offset).ok()?;
        let record = self.records.get_mut(at).filter(|record| record.fate.is_none())?;
        record.fate = Some(fate);
        self.open -= 1;
        Some(record.clone())
    }

    /// The next record that is delivered with all before it. What lies behind an unanswered record, or behind one that is
    /// to be sent again, stays: it may have to be repeated so that order holds.
    pub(super) fn next_delivered(&mut self) -> Option<InFlight> {
        while let Some(fate) = self.records.front().and_then(|front| front.fate) {
            if fate == Fate::Again {
                return None;
            }
            let done = self.records.pop_front()?;
            self.bytes -= done.body.len();
            if fate == Fate::Delivered {
                return Some(done);
            }
        }
        None
    }

    /// From the oldest unconfirmed to the newest sent.
    pub(super) fn span(&self) -> usize {
        self.records.len()
    }

    /// How many wait for an answer.
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// Bytes held for a possible dead letter or resend.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest that waits for an answer.
    pub(super) fn head(&self) -> Option<&InFlight> {
        self.records.iter().find(|record| record.fate.is_none())
    }

    /// The oldest that is not settled.
    pub(super) fn front(&self) -> Option<Offset> {
        self.records.front().map(|record| record.offset)
    }

    /// All that would be sent again if the connection were lost now.
    pub(super) fn offsets(&self) -> impl Iterator<Item = Offset> + '_ {
        self.records.iter().filter(|record| record.fate != Some(Fate::Elsewhere)).map(|record| record.offset)
    }

    /// Forgets all: the connection is gone, or everything is to be sent again.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How many records may be in flight. After a stall it begins at one and doubles with each window confirmed (R23).
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    limit: usize,
    size: usize,
    confirmed: usize,
}

impl Window {
    /// At most `limit`, and all of it from the start.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self { limit, size: limit, confirmed: 0 }
    }

    /// A new connection's limit; a window that is still growing goes on growing.
    pub(super) fn set_limit(&mut self, limit: usize) {
        let limit = limit.max(1);
        let grown = self.size >= self.limit;
        self.limit = limit;
        self.size = if grown { limit } else { self.size.min(limit) };
    }

    /// How many records the span may hold now.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// How many it may hold at most.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// One at a time, until it has shown that it moves.
    pub(super) const fn restart(&mut self) {
        (self.size, self.confirmed) = (1, 0);
    }

    /// One more was confirmed.
    pub(super) fn confirmed(&mut self) {
        if self.size >= self.limit {
            return;
        }
        self.confirmed += 1;
        if self.confirmed >= self.size {
            (self.size, self.confirmed) = ((self.size * 2).min(self.limit), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flight(offsets: impl IntoIterator<Item = u64>) -> Flight {
        let mut flight = Flight::default();
        for offset in offsets {
            flight.push(InFlight::new(Offset(offset), Bytes::from_static(b"1234"), 4));
        }
        flight
    }

    fn delivered(flight: &mut Flight) -> Vec<u64> {
        std::iter::from_fn(|| flight.next_delivered()).map(|record| record.offset.0).collect()
    }

    #[test]
    fn the_span_counts_from_the_oldest_unconfirmed_to_the_newest_sent() {
        let mut flight = flight([3, 4, 7]);
        assert!(flight.answer(Offset(4), Fate::Delivered).is_some());
        assert!(delivered(&mut flight).is_empty());
        assert_eq!((flight.span(), flight.open(), flight.bytes()), (3, 2, 12));
        assert!(flight.answer(Offset(3), Fate::Delivered).is_some());
        assert_eq!(delivered(&mut flight), [3, 4]);
        assert_eq!((flight.span(), flight.open(), flight.bytes()), (1, 1, 4));
        assert_eq!(flight.head().map(|head| head.offset), Some(Offset(7)));
    }

    #[test]
    fn an_answer_counts_once_and_only_for_what_is_in_flight() {
        let mut flight = flight([3, 4]);
        assert!(flight.answer(Offset(9), Fate::Delivered).is_none());
        assert!(flight.answer(Offset(4), Fate::Delivered).is_some());
        assert!(flight.answer(Offset(4), Fate::Delivered).is_none());
        assert_eq!(flight.open(), 1);
    }

    #[test]
    fn r10_nothing_passes_a_record_that_is_to_be_sent_again() {
        let mut flight = flight(1..6);
        assert!(flight.answer(Offset(3), Fate::Again).is_some());
        for offset in [1, 4, 5] {
            assert!(flight.answer(Offset(offset), Fate::Delivered).is_some());
        }
        assert!(flight.answer(Offset(2), Fate::Elsewhere).is_some());
        assert_eq!(delivered(&mut flight), [1]);
        assert_eq!((flight.span(), flight.open()), (3, 0));
    }

    #[test]
    fn r23_after_a_stall_the_window_begins_at_one_and_doubles_per_confirmed_window() {
        let mut window = Window::new(6);
        assert_eq!(window.size(), 6);
        window.restart();
        let sizes = std::iter::repeat_with(|| {
            let size = window.size();
            window.confirmed();
            size
        });
        assert_eq!(sizes.take(9).collect::<Vec<_>>(), [1, 2, 2, 4, 4, 4, 4, 6, 6]);
    }

    #[test]
    fn a_reconnect_with_another_limit_keeps_a_growing_window_growing() {
        let mut window = Window::new(8);
        window.restart();
        window.set_limit(4);
        assert_eq!(window.size(), 1);
        for _ in 0..3 {
            window.confirmed();
        }
        assert_eq!(window.size(), 4);
        window.set_limit(100);
        assert_eq!(window.size(), 100);
    }

    proptest! {
        #[test]
        fn answers_in_any_order_empty_the_flight(order in Just((0..50_u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut flight = flight(0..50);
            let mut all = Vec::new();
            for (answered, offset) in order.into_iter().enumerate() {
                prop_assert!(flight.answer(Offset(offset), Fate::Delivered).is_some());
                prop_assert_eq!(flight.open(), 49 - answered);
                prop_assert!(flight.span() >= flight.open());
                all.extend(delivered(&mut flight));
            }
            prop_assert_eq!(all, (0..50).collect::<Vec<_>>());
            prop_assert_eq!((flight.span(), flight.bytes()), (0, 0));
        }
    }
}
