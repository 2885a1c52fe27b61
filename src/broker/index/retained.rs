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

    /// What the tree takes, values not included.
    pub(in crate::broker) fn tree_bytes(&self) -> usize {
        self.tree.bytes()
    }

    /// What a value on `topic` would add to that: nothing where there is one.
    pub(in crate::broker) fn tree_grows_by(&self, topic: &TopicName) -> usize {
        self.tree.grows_by(topic.as_str().split('/'))
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
        RetainedMatches { tree: &self.tree, left: smallvec![start], visited: 0, last: self.tree.root() }
    }

    /// A part of [`Retained::matches`]: from behind `place` on, until as many nodes as `most` were visited, and one level or two more.
    /// Between two parts the tree may change: what is there all the time is found, and once.
    ///
    /// How many were visited, and where to go on; `None`: it is through.
    pub fn walk(
        &self,
        filter: &TopicFilter,
        place: Option<&Place>,
        most: usize,
        mut found: impl FnMut(&TopicName, &V),
    ) -> (usize, Option<Place>) {
        let mut matches = self.matches(filter);
        if let Some(place) = place {
            matches.go_behind(filter.as_str(), &place.0);
        }
        while matches.visited < most || matches.last == self.tree.root() {
            match matches.step() {
                None => return (matches.visited, None),
                Some(Some((topic, value))) => found(topic, value),
                Some(None) => {}
            }
        }
        (matches.visited, self.tree.path(matches.last).map(Place))
    }
}

/// How far a [`Retained::walk`] has come: the levels of the node that it visited last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(String);

/// See [`Retained::matches`].
#[derive(Clone, Debug)]
pub struct RetainedMatches<'a, V> {
    tree: &'a Tree<Option<(TopicName, V)>>,
    /// At most two entries for each level of the deepest topic.
    left: SmallVec<[Left<'a>; 8]>,
    /// Nodes that were looked at.
    visited: usize,
    /// The last of them.
    last: NodeId,
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
            if let Some(found) = self.step()? {
                return Some(found);
            }
        }
    }
}

impl<'a, V> RetainedMatches<'a, V> {
    /// Looks at one node at most. `None`: there is no more.
    fn step(&mut self) -> Option<Option<(&'a TopicName, &'a V)>> {
        match self.left.pop()? {
            Left::Children(mut children, wanted) => {
                if let Some(child) = children.next() {
                    self.left.push(Left::Children(children, wanted));
                    if self.is_hidden(child) {
                        self.note(child);
                    } else {
                        self.left.push(Left::Node(child, wanted));
                    }
                }
                Some(None)
            }
            Left::Node(node, wanted) => {
                self.note(node);
                Some(self.visit(node, wanted).map(|(topic, value)| (topic, value)))
            }
        }
    }

    fn note(&mut self, node: NodeId) {
        self.visited += 1;
        self.last = node;
    }

    /// Goes on behind the node at `path` as if it had come there by itself: to what is below it, then to what comes after it.
    fn go_behind(&mut self, filter: &'a str, path: &str) {
        self.left.clear();
        let (mut node, mut wanted) = (self.tree.root(), Wanted::Levels(filter));
        for level in path.split('/') {
            let below = match wanted {
                Wanted::This => return,
                Wanted::All | Wanted::Levels("#") => {
                    self.left.push(Left::Children(self.tree.children_after(node, level), Wanted::All));
                    Wanted::All
                }
                Wanted::Levels(levels) => {
                    let (first, below) = first_of(levels);
                    if first == "+" {
                        self.left.push(Left::Children(self.tree.children_after(node, level), below));
                    }
                    below
                }
            };
            let is_wild = matches!(self.left.last(), Some(Left::Children(..)));
            match self.tree.child(node, level) {
                // What a wildcard does not show has nothing below it either.
                Some(child) if !(is_wild && self.is_hidden(child)) => (node, wanted) = (child, below),
                Some(_) | None => return,
            }
        }
        self.last = node;
        self.visit(node, wanted);
    }

    fn visit(&mut self, node: NodeId, wanted: Wanted<'a>) -> Option<&'a (TopicName, V)> {
        match wanted {
            Wanted::This => self.content(node),
            // `a/#` is for `a` too.
            Wanted::All | Wanted::Levels("#") => {
                self.push_children(node, Wanted::All);
                self.content(node)
            }
            Wanted::Levels(levels) => {
                let (level, below) = first_of(levels);
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

/// The first level of a filter, and what is wanted below it.
fn first_of(levels: &str) -> (&str, Wanted<'_>) {
    match levels.split_once('/') {
        Some((level, below)) => (level, Wanted::Levels(below)),
        None => (levels, Wanted::This),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::broker::index::NODE_BYTES;
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
    fn r36_each_level_of_its_own_counts_and_a_shared_one_once() {
        let mut index = Retained::new();
        let mut grown = Vec::new();
        for topic in ["a/b", "a/b/cc", "a/b", "x", &"/".repeat(199)] {
            let (before, expected) = (index.tree_bytes(), index.tree_grows_by(&name(topic)));
            index.insert(&name(topic), 0);
            assert_eq!(index.tree_bytes(), before + expected, "{topic}");
            grown.push((expected / NODE_BYTES, expected % NODE_BYTES));
        }
        assert_eq!(grown, [(2, 2), (1, 2), (0, 0), (1, 1), (200, 0)]);
        for topic in ["a/b", "a/b/cc", "x", &"/".repeat(199)] {
            index.remove(&name(topic));
        }
        assert_eq!(index.tree_bytes(), 0);
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
    fn a_walk_goes_on_where_it_was_though_the_tree_has_changed() {
        let mut index = Retained::new();
        for topic in ["a", "b/c", "b/d", "c", "$x/y"] {
            index.insert(&name(topic), 0);
        }
        let mut walked = Vec::new();
        let all = filter("#");
        let (visited, place) = index.walk(&all, None, 4, |topic, _| walked.push(topic.to_string()));
        assert_eq!((visited, place.clone(), walked.len()), (4, Some(Place("b".into())), 1));
        // Where it stands is gone, what is before it is too late, what is behind it is found.
        index.remove(&name("b/c"));
        index.remove(&name("b/d"));
        index.insert(&name("a/late"), 0);
        index.insert(&name("bb"), 0);
        let (_, place) = index.walk(&all, place.as_ref(), 100, |topic, _| walked.push(topic.to_string()));
        assert_eq!((place, walked), (None, vec!["a".to_owned(), "bb".to_owned(), "c".to_owned()]));
        // What was looked at counts, not what was found.
        assert_eq!(index.walk(&filter("+/zz"), None, 3, |_, _| panic!()).0, 3);
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
                for most in 0..4 {
                    let (mut walked, mut place) = (Vec::new(), None);
                    loop {
                        let (_, next) = index.walk(&wanted, place.as_ref(), most, |topic, value| walked.push((topic.to_string(), *value)));
                        // With room for nothing new it stays where it is.
                        if next.is_none() || next == place {
                            break;
                        }
                        place = next;
                    }
                    if most > 0 {
                        prop_assert_eq!(walked.len(), expected.len(), "each once, {} at a time", most);
                        prop_assert_eq!(walked.into_iter().collect::<BTreeMap<_, _>>(), expected.clone());
                    }
                }
            }
            for topic in model.keys() {
                index.remove(&name(topic));
            }
            prop_assert_eq!(index.tree.nodes(), 1);
        }
    }
}
