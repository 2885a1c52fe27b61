//! What is in flight on one connection, and how much may be. Pure bookkeeping: no clock, no network.
//!
//! The window is counted from the oldest unconfirmed message to the newest sent, not by how many are open: so packet ids of
//! a kind that counts them can never collide, and a crash repeats at most this many messages (R9).
//!
//! Messages settle in the order in which they were sent. That is the order of their offsets, but for batches: a record that waits for
//! others is not in flight, and those behind it are sent, and settled, before it. It *holds* what a crash would repeat: how many messages
//! were sent since is counted too ([`Flight::ahead`]), each for [`WHOLE`], and a batch that is not full for so much less.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::buffer::Offset;
use crate::message::MessageId;

/// What a message counts for in what a crash repeats. A batch counts for the part of it that it has of the records it may have: more
/// destinations than a window has messages make small batches, and these must not hold each other up.
pub(super) const WHOLE: u64 = 1 << 20;

/// A message on its way: one record, or several that are sent as one.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    /// Its place in the log; of several that of the last.
    pub(super) offset: Offset,
    /// The record as the log holds it, for a dead letter. Of several none is one: they go one by one before.
    pub(super) body: Bytes,
    /// Bytes of the message's payload, for the board.
    pub(super) payload_bytes: u64,
    /// Of a batch.
    pub(super) cut: Option<Arc<Cut>>,
    /// What it counts for, of [`WHOLE`].
    weight: u64,
    /// The highest offset that was sent up to it: what the flight is sorted by.
    order: Offset,
    /// `None`: no answer yet.
    fate: Option<Fate>,
}

/// Records that are sent as one message: where a batch was cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The message's.
    pub(super) id: MessageId,
    /// Their offsets, and the bytes of their payloads. At least one.
    pub(super) parts: Box<[(Offset, u64)]>,
    /// Bytes of the records.
    pub(super) bytes: usize,
}

impl Cut {
    /// Whether it is of these.
    pub(super) fn is_of(&self, offsets: impl ExactSizeIterator<Item = Offset>) -> bool {
        offsets.len() == self.parts.len() && self.parts.iter().map(|part| part.0).eq(offsets)
    }

    pub(super) fn offsets(&self) -> impl Iterator<Item = Offset> + '_ {
        self.parts.iter().map(|part| part.0)
    }

    /// The last of them.
    pub(super) fn last(&self) -> Offset {
        self.parts.last().map_or(Offset(0), |part| part.0)
    }
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
        Self { offset, body, payload_bytes, cut: None, weight: WHOLE, order: offset, fate: None }
    }

    /// A batch that counts for `weight`; `body` is its record where it has only one.
    pub(super) fn batch(cut: Arc<Cut>, body: Bytes, weight: u64) -> Self {
        let last = cut.last();
        Self { cut: Some(cut), weight, ..Self::new(last, body, 0) }
    }

    /// Where it was cut, if it is of several records.
    pub(super) fn several(&self) -> Option<&Arc<Cut>> {
        self.cut.as_ref().filter(|cut| cut.parts.len() > 1)
    }

    /// The first of its records.
    pub(super) fn first(&self) -> Offset {
        self.cut.as_ref().and_then(|cut| cut.parts.first()).map_or(self.offset, |part| part.0)
    }

    /// Its records, with the bytes of their payloads.
    pub(super) fn records(&self) -> impl Iterator<Item = (Offset, u64)> + '_ {
        let several = self.cut.as_ref().map(|cut| &*cut.parts).unwrap_or_default();
        let one = self.cut.is_none().then_some((self.offset, self.payload_bytes));
        several.iter().copied().chain(one)
    }

    fn bytes(&self) -> usize {
        self.cut.as_ref().map_or(self.body.len(), |cut| cut.bytes)
    }
}

/// The messages in flight, in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Flight {
    records: VecDeque<InFlight>,
    /// So many were in it and have left it.
    gone: u64,
    /// Where those stand that were sent behind records of higher offsets, counted from the first that ever was in flight.
    late: BTreeMap<Offset, u64>,
    /// Records that wait, or waited, for others, by the first of each batch: [`Flight::sent`] when it came.
    held: BTreeMap<Offset, u64>,
    open: usize,
    bytes: usize,
    /// What those in it count for, and all that ever were in it.
    weight: u64,
    sent: u64,
}

impl Flight {
    /// One more is on its way.
    pub(super) fn push(&mut self, mut record: InFlight) {
        if let Some(order) = self.records.back().map(|last| last.order).filter(|order| record.offset <= *order) {
            record.order = order;
            self.late.insert(record.offset, self.gone + u64::try_from(self.records.len()).unwrap_or(u64::MAX));
        }
        self.open += 1;
        self.bytes += record.bytes();
        self.weight += record.weight;
        self.sent += record.weight;
        self.records.push_back(record);
    }

    /// What all count for that were sent since it was empty and nothing was known.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// A record waits for others since so much had been sent.
    pub(super) fn hold(&mut self, first: Offset, since: u64) {
        self.held.insert(first, since);
    }

    /// It does not wait any more, and was not sent.
    pub(super) fn release(&mut self, first: Offset) {
        self.held.remove(&first);
    }

    /// The oldest that waits, or waited and is in flight.
    pub(super) fn holder(&self) -> Option<Offset> {
        self.held.first_key_value().map(|(first, _)| *first)
    }

    /// What was sent since the oldest record came that is not settled, and a crash repeats, counts for.
    pub(super) fn ahead(&self) -> u64 {
        let held = self.held.first_key_value().map_or(0, |(_, since)| self.sent.saturating_sub(*since));
        self.weight.max(held)
    }

    fn find(&self, offset: Offset) -> Option<usize> {
        let at = self.records.partition_point(|record| record.order < offset);
        if self.records.get(at).is_some_and(|record| record.offset == offset) {
            return Some(at);
        }
        usize::try_from(self.late.get(&offset)?.checked_sub(self.gone)?).ok()
    }

    /// The message that waits for an answer under this offset.
    pub(super) fn open_at(&self, offset: Offset) -> Option<&InFlight> {
        self.records.get(self.find(offset)?).filter(|record| record.fate.is_none())
    }

    /// The remote has answered for `offset`: what it was, or `None` where nothing waits for this answer.
    pub(super) fn answer(&mut self, offset: Offset, fate: Fate) -> Option<InFlight> {
        let at = self.find(offset)?;
        let record = self.records.get_mut(at).filter(|record| record.fate.is_none())?;
        record.fate = Some(fate);
        self.open -= 1;
        Some(record.clone())
    }

    fn pop(&mut self) -> Option<InFlight> {
        let done = self.records.pop_front()?;
        self.gone += 1;
        self.bytes -= done.bytes();
        self.weight -= done.weight;
        if done.order != done.offset {
            self.late.remove(&done.offset);
        }
        if !self.held.is_empty() {
            self.held.remove(&done.first());
        }
        Some(done)
    }

    /// The next message that is delivered with all before it. What lies behind an unanswered record, or behind one that is
    /// to be sent again, stays: it may have to be repeated so that order holds.
    pub(super) fn next_delivered(&mut self) -> Option<InFlight> {
        while let Some(fate) = self.records.front().and_then(|front| front.fate) {
            if fate == Fate::Again {
                return None;
            }
            let done = self.pop()?;
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
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &InFlight> {
        self.records.iter().filter(|record| record.fate != Some(Fate::Elsewhere))
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
    fn r28_what_waited_for_others_is_sent_behind_higher_offsets_and_settles_in_that_order() {
        let id = MessageId { site: "here".into(), run: 1, counter: 1 };
        let cut = Arc::new(Cut { id, parts: [(Offset(1), 1), (Offset(4), 2)].into(), bytes: 6 });
        let mut flight = Flight::default();
        flight.hold(Offset(1), flight.sent());
        for offset in [2, 3] {
            flight.push(InFlight::new(Offset(offset), Bytes::from_static(b"1234"), 4));
            assert!(flight.answer(Offset(offset), Fate::Delivered).is_some());
        }
        assert_eq!(delivered(&mut flight), [2, 3], "what waits is not in flight");
        flight.push(InFlight::new(Offset(6), Bytes::from_static(b"1234"), 4));
        flight.push(InFlight::batch(cut, Bytes::new(), WHOLE / 2));
        flight.push(InFlight::new(Offset(5), Bytes::from_static(b"1234"), 4));
        flight.push(InFlight::new(Offset(7), Bytes::from_static(b"1234"), 4));
        assert_eq!((flight.span(), flight.open(), flight.bytes()), (4, 4, 18));
        assert_eq!(flight.ahead(), 5 * WHOLE + WHOLE / 2, "half a batch counts for half a message");
        assert_eq!(flight.holder(), Some(Offset(1)));
        for nothing in [1, 2, 8] {
            assert!(flight.answer(Offset(nothing), Fate::Delivered).is_none(), "{nothing}");
        }
        for offset in [7, 5, 4] {
            assert_eq!(flight.open_at(Offset(offset)).unwrap().offset, Offset(offset));
            assert_eq!(flight.answer(Offset(offset), Fate::Delivered).unwrap().offset, Offset(offset));
            assert!(flight.open_at(Offset(offset)).is_none() && delivered(&mut flight).is_empty());
        }
        assert!(flight.answer(Offset(6), Fate::Delivered).is_some());
        let records: Vec<_> = std::iter::from_fn(|| flight.next_delivered())
            .flat_map(|done| done.records().collect::<Vec<_>>())
            .collect();
        assert_eq!(records.iter().map(|(offset, _)| offset.0).collect::<Vec<_>>(), [6, 1, 4, 5, 7]);
        assert_eq!((flight.span(), flight.ahead(), flight.bytes(), flight.holder()), (0, 0, 0, None));
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
        fn whatever_order_they_are_sent_and_answered_in_each_is_found_and_settles_as_sent(
            sent in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle(),
            answered in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle(),
            early in 0..40_usize,
        ) {
            let (mut flight, mut all) = (Flight::default(), Vec::new());
            let mut answers = answered.into_iter();
            for (nth, offset) in sent.iter().enumerate() {
                flight.push(InFlight::new(Offset(*offset), Bytes::from_static(b"1234"), 4));
                if nth == early {
                    // Some are answered, and gone, before the others come.
                    for offset in answers.by_ref().take(early / 2) {
                        let is_sent = sent[..=nth].contains(&offset);
                        prop_assert_eq!(flight.answer(Offset(offset), Fate::Delivered).is_some(), is_sent);
                    }
                    all.extend(delivered(&mut flight));
                }
            }
            for offset in 0..40 {
                let is_open = flight.open_at(Offset(offset)).is_some();
                prop_assert_eq!(flight.answer(Offset(offset), Fate::Delivered).is_some(), is_open);
                all.extend(delivered(&mut flight));
            }
            prop_assert_eq!(all, sent);
            prop_assert_eq!((flight.open(), flight.bytes(), flight.ahead()), (0, 0, 0));
        }

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
