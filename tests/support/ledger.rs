//! The comparison at a test's end: what publishers were promised against what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who published a message, and its place among that publisher's. Travels in the payload, so that it survives every protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mark {
    pub(crate) publisher: usize,
    pub(crate) number: usize,
}

impl Mark {
    /// A payload of at least `length` bytes that says it all twice over: the rest is derived from the mark, so a torn payload shows.
    pub(crate) fn payload(self, length: usize) -> Vec<u8> {
        let mut payload = format!("{self} ").into_bytes();
        let mut next = self.number.wrapping_mul(31).wrapping_add(self.publisher);
        while payload.len() < length {
            next = next.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            payload.push(b'a' + u8::try_from((next >> 16) % 26).unwrap());
        }
        payload
    }

    /// Reads a payload, every byte of it.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let head = payload.split(|byte| *byte == b' ').next()?;
        let (publisher, number) = std::str::from_utf8(head).ok()?.split_once(':')?;
        let mark = Self { publisher: publisher.parse().ok()?, number: number.parse().ok()? };
        (mark.payload(payload.len()) == payload).then_some(mark)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.publisher, self.number)
    }
}

/// A message as it arrived somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// MQTT topic, or the AMQP routing key or Kafka header that stands for it.
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    /// User properties or headers, the gateway's stamps among them.
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) content_type: Option<String>,
    /// Kafka key.
    pub(crate) key: Option<String>,
}

impl Delivery {
    /// # Panics
    /// On a payload that is not exactly one of ours.
    pub(crate) fn mark(&self) -> Mark {
        let text = || String::from_utf8_lossy(&self.payload[..self.payload.len().min(80)]).into_owned();
        Mark::read(&self.payload).unwrap_or_else(|| panic!("a payload that nobody published: {:?}", text()))
    }

    pub(crate) fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Acknowledged and not among what arrived.
    pub(crate) lost: Vec<Mark>,
    /// Copies under a message id that had arrived before: what the gateway sent twice.
    pub(crate) duplicates: usize,
    /// Copies under an id of their own: what a publisher, not acknowledged, sent again.
    pub(crate) published_again: usize,
    /// Of a publisher's last copies, those that arrived before the one they follow.
    pub(crate) out_of_order: Vec<Mark>,
}

impl Ledger {
    pub(crate) fn compare<'a>(
        acknowledged: impl IntoIterator<Item = Mark>,
        arrived: impl IntoIterator<Item = &'a Delivery>,
    ) -> Self {
        let mut ledger = Self::default();
        let (mut last, mut ids) = (BTreeMap::new(), BTreeSet::new());
        for (place, delivery) in arrived.into_iter().enumerate() {
            let mark = delivery.mark();
            let id = delivery.property("tg-id").map(str::to_owned);
            let again = last.insert(mark, place).is_some();
            match id {
                Some(id) if !ids.insert(id.clone()) => ledger.duplicates += 1,
                None if again => ledger.duplicates += 1,
                _ => ledger.published_again += usize::from(again),
            }
        }
        ledger.lost = acknowledged.into_iter().filter(|mark| !last.contains_key(mark)).collect();
        let mut before: Option<(Mark, usize)> = None;
        for (mark, place) in last {
            if before.is_some_and(|(b, at)| b.publisher == mark.publisher && at > place) {
                ledger.out_of_order.push(mark);
            }
            before = Some((mark, place));
        }
        ledger
    }

    /// Everything arrived, in order, and nothing twice.
    pub(crate) fn assert_exact(&self, where_to: &str) {
        assert_eq!(*self, Self::default(), "{where_to}");
    }

    /// Everything arrived, last copies in order, and the gateway repeated no more than `duplicates_max`.
    pub(crate) fn assert_kept(&self, where_to: &str, duplicates_max: usize) {
        let first: Vec<&Mark> = self.lost.iter().take(5).collect();
        assert!(self.lost.is_empty(), "{where_to}: {} acknowledged messages lost, first {first:?}", self.lost.len());
        let first: Vec<&Mark> = self.out_of_order.iter().take(5).collect();
        assert!(self.out_of_order.is_empty(), "{where_to}: {} out of order: {first:?}", self.out_of_order.len());
        assert!(
            self.duplicates <= duplicates_max,
            "{where_to}: {} duplicates, at most {duplicates_max}",
            self.duplicates
        );
    }
}

mod tests {
    use super::*;

    fn delivery(number: usize, id: &str) -> Delivery {
        let properties = [("tg-id".to_owned(), id.to_owned())].into();
        Delivery { payload: Mark { publisher: 1, number }.payload(40), properties, ..Delivery::default() }
    }

    fn marks(numbers: &[usize]) -> Vec<Mark> {
        numbers.iter().map(|number| Mark { publisher: 1, number: *number }).collect()
    }

    #[test]
    fn a_damaged_payload_is_no_mark() {
        let mut payload = Mark { publisher: 3, number: 14 }.payload(40);
        assert_eq!(Mark::read(&payload), Some(Mark { publisher: 3, number: 14 }));
        payload[39] ^= 1;
        assert_eq!(Mark::read(&payload), None);
    }

    #[test]
    fn the_ledger_tells_losses_copies_and_disorder_apart() {
        let exact = [delivery(0, "a"), delivery(1, "b")];
        Ledger::compare(marks(&[0, 1]), &exact).assert_exact("as it should be");
        assert_eq!(Ledger::compare(marks(&[0, 1, 2]), &exact).lost, marks(&[2]));
        let arrived = [delivery(0, "a"), delivery(0, "a"), delivery(2, "c"), delivery(1, "b"), delivery(0, "d")];
        let ledger = Ledger::compare(marks(&[0, 1, 2]), &arrived);
        assert_eq!((ledger.duplicates, ledger.published_again), (1, 1));
        assert_eq!(ledger.out_of_order, marks(&[1, 2]));
        let healed = [delivery(1, "b"), delivery(0, "a"), delivery(1, "b")];
        Ledger::compare(marks(&[0, 1]), &healed).assert_kept("last copies decide", 1);
    }
}
