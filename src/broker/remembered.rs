//! What topics led to, for publishers that repeat theirs: valid while the index's generation stands.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::topic::TopicName;

/// Parts with a lock each, so that two connections seldom meet.
const PARTS: usize = 16;

/// What a part holds at most, each topic counted as one and its weight. It begins anew when that is full: what is asked for
/// again comes back, and a flood of topics costs no more than this.
const WEIGHT_MAX: usize = 16_384;

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

    /// Remembers what was found in `generation`, whose size is `weight`.
    pub(super) fn insert(&self, topic: &TopicName, generation: u64, value: V, weight: usize) {
        let Some(part) = self.part(topic) else { return };
        let mut part = part.lock();
        let weight = weight + 1;
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

    #[test]
    fn a_flood_of_topics_or_of_receivers_is_bounded() {
        let remembered = Remembered::default();
        for n in 0..PARTS * WEIGHT_MAX * 2 {
            remembered.insert(&topic(&n.to_string()), 1, n, 3);
        }
        let held: usize = remembered.parts.iter().map(|part| part.lock().known.len()).sum();
        assert!(held > PARTS && held <= PARTS * WEIGHT_MAX / 4, "{held}");
        remembered.insert(&topic("wide"), 1, 0, WEIGHT_MAX);
        assert_eq!(remembered.get(&topic("wide"), 1), None);
    }
}
