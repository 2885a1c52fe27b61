//! What topics led to, for publishers that repeat theirs: valid while the index's generation stands.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::topic::TopicName;

/// Parts with a lock each, so that two connections seldom meet.
const PARTS: usize = 16;

/// Bytes that a part holds at most: 32 MiB in all. It begins anew when that is full: what is asked for again comes back, and a
/// flood of topics costs no more than this.
const WEIGHT_MAX: usize = 2 << 20;

/// What one topic costs beside its name and what it led to: its place in a map that is half full, and what its parts are counted by.
const ENTRY_BYTES: usize = 128;

/// A longer topic is not remembered.
pub(super) const TOPIC_BYTES_MAX: usize = 256;

/// A bounded memory, by topic. Clients choose the topics, so the maps keep std's keyed hash.
#[derive(Debug)]
pub(super) struct Remembered<V> {
    hasher: RandomState,
    parts: [Mutex<Part<V>>; PARTS],
}

#[derive(Debug)]
struct Part<V> {
    generation: u64,
    weight: usize,
    known: HashMap<TopicName, V>,
}

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        let part = |_| Mutex::new(Part { generation: 0, weight: 0, known: HashMap::new() });
        Self { hasher: RandomState::new(), parts: std::array::from_fn(part) }
    }
}

impl<V: Clone> Remembered<V> {
    /// What is known of `topic` in this generation.
    pub(super) fn get(&self, topic: &TopicName, generation: u64) -> Option<V> {
        let part = self.part(topic)?.lock();
        if part.generation == generation { part.known.get(topic).cloned() } else { None }
    }

    /// Remembers what was found in `generation`, which takes `weight` bytes.
    pub(super) fn insert(&self, topic: &TopicName, generation: u64, value: V, weight: usize) {
        let Some(part) = self.part(topic) else { return };
        let mut part = part.lock();
        let weight = weight + topic.as_str().len() + ENTRY_BYTES;
        if generation < part.generation || weight > WEIGHT_MAX {
            return;
        }
        if generation > part.generation || part.weight + weight > WEIGHT_MAX {
            *part = Part { generation, weight: 0, known: HashMap::new() };
        }
        part.weight += weight;
        part.known.insert(topic.clone(), value);
    }

    fn part(&self, topic: &TopicName) -> Option<&Mutex<Part<V>>> {
        if topic.as_str().len() > TOPIC_BYTES_MAX {
            return None;
        }
        let hash = usize::try_from(self.hasher.hash_one(topic) % PARTS as u64).unwrap_or_default();
        self.parts.get(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    #[test]
    fn what_was_found_holds_for_its_generation_only() {
        let remembered = Remembered::default();
        remembered.insert(&topic("a"), 1, 'a', 1);
        assert_eq!(remembered.get(&topic("a"), 1), Some('a'));
        assert_eq!((remembered.get(&topic("a"), 2), remembered.get(&topic("b"), 1)), (None, None));
        remembered.insert(&topic("a"), 2, 'b', 1);
        assert_eq!((remembered.get(&topic("a"), 1), remembered.get(&topic("a"), 2)), (None, Some('b')));
        remembered.insert(&topic("a"), 1, 'c', 1);
        assert_eq!(remembered.get(&topic("a"), 2), Some('b'), "one that was slow does not bring back what is over");
    }

    /// What the maps hold, as large as they have grown.
    fn held(remembered: &Remembered<usize>) -> usize {
        let of_part = |part: &Mutex<Part<usize>>| {
            let part = part.lock();
            // Two counts stand before each name.
            let topics = part.known.keys().map(|topic| topic.as_str().len() + 16).sum::<usize>();
            topics + part.known.capacity() * 8 / 7 * (size_of::<(TopicName, usize)>() + 1)
        };
        remembered.parts.iter().map(of_part).sum()
    }

    #[test]
    fn a_flood_of_topics_or_of_receivers_is_bounded_in_bytes_r36() {
        for (len, flood) in [(10, 400_000), (TOPIC_BYTES_MAX - 10, 100_000)] {
            let (remembered, name) = (Remembered::default(), "x".repeat(len));
            for n in 0..flood {
                remembered.insert(&topic(&format!("{name}{n}")), 1, n, 48);
            }
            let held = held(&remembered);
            assert!(held > WEIGHT_MAX && held <= PARTS * WEIGHT_MAX, "{len}: {held}");
        }
        let (remembered, long) = (Remembered::default(), "x".repeat(60_000));
        for n in 0..500 {
            remembered.insert(&topic(&format!("{long}{n}")), 1, n, 0);
        }
        assert_eq!((held(&remembered), remembered.get(&topic(&format!("{long}1")), 1)), (0, None));
        remembered.insert(&topic("wide"), 1, 0, WEIGHT_MAX);
        assert_eq!(remembered.get(&topic("wide"), 1), None);
    }
}
