//! Filters to subscribers.

use std::collections::BTreeMap;
use std::slice;

use smallvec::{SmallVec, smallvec};

use super::tree::{NodeId, Tree};
use crate::topic::{TopicFilter, TopicName};

/// Who subscribed to what: for each pair of a filter and a subscriber one value (options, subscription identifier).
///
/// `K` names a subscriber: small and cheap to clone.
#[derive(Clone, Debug)]
pub struct Subscriptions<K, V> {
    tree: Tree<Entries<K, V>>,
    /// For each subscriber where its subscriptions are, sorted.
    places: BTreeMap<K, Vec<Place>>,
    len: usize,
    generation: u64,
}

/// Sorted by key, each key once.
type List<K, V> = Vec<(K, V)>;

#[derive(Clone, Debug)]
struct Entries<K, V> {
    /// Of filters that end at this level.
    here: List<K, V>,
    /// Of filters that go on with a last `#`.
    below: List<K, V>,
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self { here: Vec::new(), below: Vec::new() }
    }
}

impl<K, V> Entries<K, V> {
    const fn is_empty(&self) -> bool {
        self.here.is_empty() && self.below.is_empty()
    }

    const fn list_mut(&mut self, below: bool) -> &mut List<K, V> {
        if below { &mut self.below } else { &mut self.here }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: NodeId,
    below: bool,
}

impl<K: Ord + Clone, V> Default for Subscriptions<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone, V> Subscriptions<K, V> {
    /// Without any.
    #[must_use]
    pub fn new() -> Self {
        Self { tree: Tree::new(), places: BTreeMap::new(), len: 0, generation: 0 }
    }

    /// How many subscriptions there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Another number after each change: what was remembered of [`Subscriptions::matches`] holds while it stands.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds a subscription, or replaces the value of the one that `key` has on the same filter, and gives the old.
    pub fn subscribe(&mut self, filter: &TopicFilter, key: K, value: V) -> Option<V> {
        self.generation += 1;
        let (levels, below) = levels(filter);
        let node = self.tree.find_or_grow(levels);
        let list = self.tree.content_mut(node)?.list_mut(below);
        match list.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => list.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                list.insert(at, (key.clone(), value));
                self.len += 1;
                let place = Place { node, below };
                let places = self.places.entry(key).or_default();
                if let Err(at) = places.binary_search(&place) {
                    places.insert(at, place);
                }
                None
            }
        }
    }

    /// The value that `key` has on exactly this filter.
    #[must_use]
    pub fn get(&self, filter: &TopicFilter, key: &K) -> Option<&V> {
        let (levels, below) = levels(filter);
        let entries = self.tree.content(self.tree.find(levels)?)?;
        let list = if below { &entries.below } else { &entries.here };
        let at = list.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        list.get(at).map(|(_, value)| value)
    }

    /// Takes away the subscription of `key` on exactly this filter.
    pub fn unsubscribe(&mut self, filter: &TopicFilter, key: &K) -> Option<V> {
        let (levels, below) = levels(filter);
        let place = Place { node: self.tree.find(levels)?, below };
        let value = self.take(place, key)?;
        if let Some(places) = self.places.get_mut(key) {
            if let Ok(at) = places.binary_search(&place) {
                places.remove(at);
            }
            if places.is_empty() {
                self.places.remove(key);
            }
        }
        Some(value)
    }

    /// Takes away all subscriptions of `key`, and says how many there were.
    pub fn remove_all(&mut self, key: &K) -> usize {
        let places = self.places.remove(key).unwrap_or_default();
        places.into_iter().filter(|place| self.take(*place, key).is_some()).count()
    }

    /// All subscriptions whose filter matches: a subscriber comes once for each of its filters that does.
    pub fn matches<'a>(&'a self, topic: &'a TopicName) -> SubscriptionMatches<'a, K, V> {
        SubscriptionMatches {
            tree: &self.tree,
            left: smallvec![(self.tree.root(), Some(topic.as_str()))],
            here: [].iter(),
            below: [].iter(),
            visited: 0,
        }
    }

    fn take(&mut self, place: Place, key: &K) -> Option<V> {
        let list = self.tree.content_mut(place.node)?.list_mut(place.below);
        let at = list.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        let (_, value) = list.remove(at);
        self.len -= 1;
        self.generation += 1;
        self.tree.prune(place.node, Entries::is_empty);
        Some(value)
    }
}

/// The levels down to the node, and whether a `#` follows there.
fn levels(filter: &TopicFilter) -> (impl Iterator<Item = &str>, bool) {
    let text = filter.as_str();
    let (text, below) = match text.strip_suffix('#') {
        Some("") => (None, true),
        // What stands before a `#` that is not alone is a `/`.
        Some(front) => (front.strip_suffix('/'), true),
        None => (Some(text), false),
    };
    (text.into_iter().flat_map(|text| text.split('/')), below)
}

/// See [`Subscriptions::matches`].
#[derive(Clone, Debug)]
pub struct SubscriptionMatches<'a, K, V> {
    tree: &'a Tree<Entries<K, V>>,
    /// Nodes to look at, each with the levels of the topic that lie below it. It holds two entries a level at most,
    /// so it stays small without a limit; most topics have fewer levels than fit without an allocation.
    left: SmallVec<[(NodeId, Option<&'a str>); 12]>,
    here: slice::Iter<'a, (K, V)>,
    below: slice::Iter<'a, (K, V)>,
    visited: usize,
}

impl<'a, K, V> Iterator for SubscriptionMatches<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.below.next().or_else(|| self.here.next()) {
                return Some((key, value));
            }
            let (node, rest) = self.left.pop()?;
            self.visit(node, rest);
        }
    }
}

impl<'a, K, V> SubscriptionMatches<'a, K, V> {
    /// How many nodes were looked at so far.
    #[must_use]
    pub const fn visited(&self) -> usize {
        self.visited
    }

    fn visit(&mut self, node: NodeId, rest: Option<&'a str>) {
        self.visited += 1;
        // MQTT-4.7.2-1: a leading wildcard is not for topics that begin with `$`.
        let wild = node != self.tree.root() || !rest.is_some_and(|topic| topic.starts_with('$'));
        if let Some(entries) = self.tree.content(node) {
            if wild {
                self.below = entries.below.iter();
            }
            if rest.is_none() {
                self.here = entries.here.iter();
            }
        }
        let Some(rest) = rest else { return };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        let plus = self.tree.plus(node).filter(|_| wild);
        self.left.extend(plus.map(|child| (child, rest)));
        self.left.extend(self.tree.child(node, level).map(|child| (child, rest)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::{TOPIC_BYTES_MAX, matches};

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn found(index: &Subscriptions<u8, u32>, topic: &str) -> Vec<(u8, u32)> {
        let mut found = index.matches(&name(topic)).map(|(key, value)| (*key, *value)).collect::<Vec<_>>();
        found.sort_unstable();
        found
    }

    #[test]
    fn overlapping_subscriptions_of_one_subscriber_all_match() {
        let mut index = Subscriptions::new();
        for (at, text) in ["a/b", "a/+", "a/#", "#", "+/b", "a/b/#", "a/c", "b"].iter().enumerate() {
            assert_eq!(index.subscribe(&filter(text), 1, u32::try_from(at).unwrap()), None);
        }
        assert_eq!(found(&index, "a/b"), [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]);
        assert_eq!(found(&index, "a"), [(1, 2), (1, 3)]);
    }

    #[test]
    fn subscribing_again_replaces_and_gives_the_old_value() {
        let mut index = Subscriptions::new();
        assert_eq!(index.subscribe(&filter("a/#"), 1, 10), None);
        let before = index.generation();
        assert_eq!(index.subscribe(&filter("a/#"), 1, 11), Some(10));
        assert_ne!(index.generation(), before);
        assert_eq!((found(&index, "a/b"), index.len()), (vec![(1, 11)], 1));
        assert_eq!(index.unsubscribe(&filter("a/+"), &1), None);
        assert_eq!(index.unsubscribe(&filter("a/#"), &2), None);
        assert_eq!(index.unsubscribe(&filter("a/#"), &1), Some(11));
        assert!(index.is_empty() && found(&index, "a/b").is_empty());
    }

    #[test]
    fn topics_that_begin_with_a_dollar_are_not_for_leading_wildcards() {
        let mut index = Subscriptions::new();
        for (at, text) in ["#", "+/x", "+/#", "$SYS/#", "$SYS/+", "$SYS/x"].iter().enumerate() {
            index.subscribe(&filter(text), 0, u32::try_from(at).unwrap());
        }
        assert_eq!(found(&index, "$SYS/x"), [(0, 3), (0, 4), (0, 5)]);
        assert_eq!(found(&index, "a/x"), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(found(&index, "a/$x"), [(0, 0), (0, 2)]);
    }

    #[test]
    fn branches_that_hold_nothing_are_gone() {
        let mut index = Subscriptions::new();
        for text in ["a/b/c", "a/b", "a/+/c/#", "#", "/", "x/y"] {
            index.subscribe(&filter(text), 1, 0);
            index.subscribe(&filter(text), 2, 0);
        }
        assert_eq!(index.remove_all(&1), 6);
        assert_eq!(index.len(), 6);
        assert_eq!(index.remove_all(&2), 6);
        assert_eq!((index.tree.nodes(), index.places.len(), index.len()), (1, 0, 0));
    }

    #[test]
    fn the_deepest_topic_overflows_no_stack() {
        let deepest = "/".repeat(TOPIC_BYTES_MAX);
        let wild = "+/".repeat(TOPIC_BYTES_MAX / 2) + "#";
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let mut index = Subscriptions::new();
                index.subscribe(&filter(&deepest), 1, 1);
                index.subscribe(&filter(&wild), 1, 2);
                assert_eq!(found(&index, &deepest), [(1, 1), (1, 2)]);
                assert_eq!(index.unsubscribe(&filter(&deepest), &1), Some(1));
                assert_eq!(index.remove_all(&1), 1);
                assert_eq!(index.tree.nodes(), 1);
                index.subscribe(&filter(&deepest), 1, 1);
                drop(index.clone());
                drop(index);
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Subscribe(String, u8),
        Unsubscribe(String, u8),
        RemoveAll(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few names, so that filters meet.
        let filter = "((a|b|\\$s|\\+|)/){0,3}(a|b|\\$s|\\+|#)";
        prop_oneof![
            6 => (filter, 0..4_u8).prop_map(|(filter, key)| Step::Subscribe(filter, key)),
            3 => (filter, 0..4_u8).prop_map(|(filter, key)| Step::Unsubscribe(filter, key)),
            1 => (0..4_u8).prop_map(Step::RemoveAll),
        ]
    }

    proptest! {
        #[test]
        fn the_index_finds_what_the_naive_search_finds(
            steps in prop::collection::vec(step(), 0..60),
            topics in prop::collection::vec("((a|b|\\$s|)/){0,4}(a|b|\\$s)", 1..12),
        ) {
            let mut index = Subscriptions::new();
            let mut model = BTreeMap::new();
            for (value, step) in (0_u32..).zip(steps) {
                match step {
                    Step::Subscribe(text, key) => {
                        let old = index.subscribe(&filter(&text), key, value);
                        prop_assert_eq!(old, model.insert((text.clone(), key), value));
                        prop_assert_eq!(index.get(&filter(&text), &key), Some(&value));
                    }
                    Step::Unsubscribe(text, key) => {
                        prop_assert_eq!(index.get(&filter(&text), &key), model.get(&(text.clone(), key)));
                        prop_assert_eq!(index.unsubscribe(&filter(&text), &key), model.remove(&(text, key)));
                    }
                    Step::RemoveAll(key) => {
                        let before = model.len();
                        model.retain(|(_, other), _| *other != key);
                        prop_assert_eq!(index.remove_all(&key), before - model.len());
                    }
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for topic in &topics {
                let mut expected = model
                    .iter()
                    .filter(|((text, _), _)| matches(text, topic))
                    .map(|((_, key), value)| (*key, *value))
                    .collect::<Vec<_>>();
                expected.sort_unstable();
                prop_assert_eq!(found(&index, topic), expected, "{}", topic);
            }
            for key in 0..4 {
                index.remove_all(&key);
            }
            prop_assert_eq!(index.tree.nodes(), 1);
        }
    }
}
