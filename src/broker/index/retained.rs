//! Topics to retained values, asked by filter.

use smallvec::{SmallVec, smallvec};

use super::tree::{ChildIter, NodeId, Tree};
use crate::topic::{TopicFilter, TopicName};

/// One value for each topic.
#[derive(Clone, Debug)]
pub struct Retained<V> {
    tree: Tree<Option<(TopicName, V)>>,
    len: usize,
}

impl<V> Default for Retained<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Retained<V> {
    /// Without any.
    #[must_use]
    pub fn new() -> Self {
        Self { tree: Tree::new(), len: 0 }
    }

    /// How many topics have a value.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none has.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the topic's value and gives the old one.
    pub fn insert(&mut self, topic: &TopicName, value: V) -> Option<V> {
        let node = self.tree.find_or_grow(topic.as_str().split('/'));
        let old = self.tree.content_mut(node)?.replace((topic.clone(), value));
        self.len += usize::from(old.is_none());
        old.map(|(_, value)| value)
    }

    /// Takes the topic's value away.
    pub fn remove(&mut self, topic: &TopicName) -> Option<V> {
        let node = self.tree.find(topic.as_str().split('/'))?;
        let (_, value) = self.tree.content_mut(node)?.take()?;
        self.len -= 1;
        self.tree.prune(node, Option::is_none);
        Some(value)
    }

    /// The topic's value.
    #[must_use]
    pub fn get(&self, topic: &TopicName) -> Option<&V> {
        let node = self.tree.find(topic.as_str().split('/'))?;
        self.tree.content(node)?.as_ref().map(|(_, value)| value)
    }

    /// All topics that the filter matches, with their values: a topic before those below it, equal levels together.
    pub fn matches<'a>(&'a self, filter: &'a TopicFilter) -> RetainedMatches<'a, V> {
        let start = Left::Node(self.tree.root(), Wanted::Levels(filter.as_str()));
        RetainedMatches { tree: &self.tree, left: smallvec![start] }
    }
}

/// See [`Retained::matches`].
#[derive(Clone, Debug)]
pub struct RetainedMatches<'a, V> {
    tree: &'a Tree<Option<(TopicName, V)>>,
    /// At most two entries for each level of the deepest topic.
    left: SmallVec<[Left<'a>; 8]>,
}

/// What is still to be looked at.
#[derive(Clone, Debug)]
enum Left<'a> {
    Node(NodeId, Wanted<'a>),
    Children(ChildIter<'a>, Wanted<'a>),
}

/// Which of the topics below a node.
#[derive(Clone, Copy, Debug)]
enum Wanted<'a> {
    /// Those below it by these levels.
    Levels(&'a str),
    /// Its own.
    This,
    /// Its own, and all below it.
    All,
}

impl<'a, V> Iterator for RetainedMatches<'a, V> {
    type Item = (&'a TopicName, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.left.pop()? {
                Left::Children(mut children, wanted) => {
                    if let Some(child) = children.next() {
                        self.left.push(Left::Children(children, wanted));
                        if !self.is_hidden(child) {
                            self.left.push(Left::Node(child, wanted));
                        }
                    }
                }
                Left::Node(node, wanted) => {
                    if let Some((topic, value)) = self.visit(node, wanted) {
                        return Some((topic, value));
                    }
                }
            }
        }
    }
}

impl<'a, V> RetainedMatches<'a, V> {
    fn visit(&mut self, node: NodeId, wanted: Wanted<'a>) -> Option<&'a (TopicName, V)> {
        match wanted {
            Wanted::This => self.content(node),
            // `a/#` is for `a` too.
            Wanted::All | Wanted::Levels("#") => {
                self.push_children(node, Wanted::All);
                self.content(node)
            }
            Wanted::Levels(levels) => {
                let (level, below) = match levels.split_once('/') {
                    Some((level, below)) => (level, Wanted::Levels(below)),
                    None => (levels, Wanted::This),
                };
                if level == "+" {
                    self.push_children(node, below);
                } else if let Some(child) = self.tree.child(node, level) {
                    self.left.push(Left::Node(child, below));
                }
                None
            }
        }
    }

    fn push_children(&mut self, node: NodeId, wanted: Wanted<'a>) {
        self.left.push(Left::Children(self.tree.children(node), wanted));
    }

    /// MQTT-4.7.2-1: a leading wildcard is not for topics that begin with `$`.
    fn is_hidden(&self, child: NodeId) -> bool {
        self.tree.is_first_level(child) && self.tree.level(child).starts_with('$')
    }

    fn content(&self, node: NodeId) -> Option<&'a (TopicName, V)> {
        self.tree.content(node)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::topic::{TOPIC_BYTES_MAX, matches};

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn found(index: &Retained<u32>, text: &str) -> Vec<String> {
        index.matches(&filter(text)).map(|(topic, _)| topic.to_string()).collect()
    }

    #[test]
    fn a_topic_has_one_value_and_its_branch_goes_with_it() {
        let mut index = Retained::new();
        assert_eq!(index.insert(&name("a/b"), 1), None);
        assert_eq!(index.insert(&name("a/b"), 2), Some(1));
        assert_eq!((index.get(&name("a/b")), index.get(&name("a")), index.len()), (Some(&2), None, 1));
        assert_eq!(index.remove(&name("a")), None);
        assert_eq!(index.remove(&name("a/b")), Some(2));
        assert!(index.is_empty());
        assert_eq!(index.tree.nodes(), 1);
    }

    #[test]
    fn matches_come_in_the_order_of_topics() {
        let mut index = Retained::new();
        for topic in ["b", "a/c", "a", "$SYS/up", "a/b/c", "a/$x", "/"] {
            index.insert(&name(topic), 0);
        }
        assert_eq!(found(&index, "#"), ["/", "a", "a/$x", "a/b/c", "a/c", "b"]);
        assert_eq!(found(&index, "a/#"), ["a", "a/$x", "a/b/c", "a/c"]);
        assert_eq!(found(&index, "a/+"), ["a/$x", "a/c"]);
        assert_eq!(found(&index, "+"), ["a", "b"]);
        assert_eq!(found(&index, "+/up"), [""; 0]);
        assert_eq!(found(&index, "$SYS/+"), ["$SYS/up"]);
        assert_eq!(found(&index, "$SYS/#"), ["$SYS/up"]);
    }

    #[test]
    fn the_deepest_topic_overflows_no_stack() {
        let deepest = "/".repeat(TOPIC_BYTES_MAX);
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let mut index = Retained::new();
                index.insert(&name(&deepest), 1);
                for text in ["#", "+/#", &deepest, &("+/".repeat(TOPIC_BYTES_MAX / 2) + "#")] {
                    assert_eq!(index.matches(&filter(text)).count(), 1);
                }
                drop(index.clone());
                assert_eq!(index.remove(&name(&deepest)), Some(1));
                assert_eq!(index.tree.nodes(), 1);
                index.insert(&name(&deepest), 1);
                drop(index);
            })
            .unwrap()
            .join()
            .unwrap();
    }

    proptest! {
        #[test]
        fn the_index_finds_what_the_naive_search_finds(
            steps in prop::collection::vec(("((a|b|\\$s|)/){0,3}(a|b|\\$s)", any::<bool>()), 0..60),
            filters in prop::collection::vec("((a|b|\\$s|\\+|)/){0,4}(a|b|\\$s|\\+|#)", 1..12),
        ) {
            let mut index = Retained::new();
            let mut model = BTreeMap::new();
            for (value, (topic, insert)) in (0_u32..).zip(steps) {
                if insert {
                    prop_assert_eq!(index.insert(&name(&topic), value), model.insert(topic, value));
                } else {
                    prop_assert_eq!(index.remove(&name(&topic)), model.remove(&topic));
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for text in &filters {
                let wanted = filter(text);
                let found = index.matches(&wanted).map(|(topic, value)| (topic.to_string(), *value));
                let expected = model.iter().filter(|(topic, _)| matches(text, topic));
                let expected = expected.map(|(topic, value)| (topic.clone(), *value)).collect::<BTreeMap<_, _>>();
                let count = index.matches(&wanted).count();
                prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), expected.clone(), "{}", text);
                prop_assert_eq!(count, expected.len(), "each once");
            }
            for topic in model.keys() {
                index.remove(&name(topic));
            }
            prop_assert_eq!(index.tree.nodes(), 1);
        }
    }
}
