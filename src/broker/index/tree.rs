//! Nodes by topic level, flat in a slab: links are numbers, so that walking up, pruning and dropping are loops.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;

use slab::Slab;
use smallvec::SmallVec;

/// Where a node stands in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(usize);

/// A tree of topic levels with a `T` at each node. The level `+` has a place of its own, as each look-up asks for it.
#[derive(Clone, Debug)]
pub(super) struct Tree<T> {
    nodes: Slab<Node<T>>,
    root: NodeId,
    /// Bytes of all levels' names.
    text: usize,
}

/// What a node takes besides its name: itself, its place in the slab, which may be half empty, and among its parent's children.
pub(in crate::broker) const NODE_BYTES: usize = 160;

#[derive(Clone, Debug)]
struct Node<T> {
    level: Box<str>,
    /// `None`: the root.
    parent: Option<NodeId>,
    plus: Option<NodeId>,
    children: Children,
    content: T,
}

/// Most nodes have one child or none: those need no map. Sorted, so that matches come in the order of topics, and so
/// that no choice of names by clients makes it slow.
#[derive(Clone, Debug, Default)]
enum Children {
    #[default]
    None,
    One(NodeId),
    Many(BTreeMap<Box<str>, NodeId>),
}

/// The children of one node.
#[derive(Clone, Debug)]
pub(super) enum ChildIter<'a> {
    Few(std::option::IntoIter<NodeId>),
    Many(btree_map::Range<'a, Box<str>, NodeId>),
}

impl Iterator for ChildIter<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        match self {
            Self::Few(nodes) => nodes.next(),
            Self::Many(nodes) => nodes.next().map(|(_, node)| *node),
        }
    }
}

impl<T: Default> Tree<T> {
    pub(super) fn new() -> Self {
        let mut nodes = Slab::new();
        let root = NodeId(nodes.insert(Node::new("", None)));
        Self { nodes, root, text: 0 }
    }

    /// How many nodes there are, the root included.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// What all nodes take, about: a chain of levels without branches takes as many as it is long.
    pub(super) fn bytes(&self) -> usize {
        (self.nodes.len() - 1) * NODE_BYTES + self.text
    }

    /// What [`Tree::find_or_grow`] would add to that.
    pub(super) fn grows_by<'l>(&self, levels: impl Iterator<Item = &'l str>) -> usize {
        let (mut at, mut bytes) = (Some(self.root), 0);
        for level in levels {
            at = at.and_then(|at| self.child(at, level));
            bytes += if at.is_none() { NODE_BYTES + level.len() } else { 0 };
        }
        bytes
    }

    /// Above the first level.
    pub(super) const fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn is_first_level(&self, id: NodeId) -> bool {
        self.nodes.get(id.0).is_some_and(|node| node.parent == Some(self.root))
    }

    pub(super) fn level(&self, id: NodeId) -> &str {
        self.nodes.get(id.0).map_or("", |node| &node.level)
    }

    pub(super) fn content(&self, id: NodeId) -> Option<&T> {
        self.nodes.get(id.0).map(|node| &node.content)
    }

    pub(super) fn content_mut(&mut self, id: NodeId) -> Option<&mut T> {
        self.nodes.get_mut(id.0).map(|node| &mut node.content)
    }

    pub(super) fn plus(&self, id: NodeId) -> Option<NodeId> {
        self.nodes.get(id.0)?.plus
    }

    pub(super) fn child(&self, id: NodeId, level: &str) -> Option<NodeId> {
        let node = self.nodes.get(id.0)?;
        if level == "+" {
            return node.plus;
        }
        match &node.children {
            Children::None => None,
            Children::One(child) => Some(*child).filter(|child| self.level(*child) == level),
            Children::Many(children) => children.get(level).copied(),
        }
    }

    /// All children but `+`.
    pub(super) fn children(&self, id: NodeId) -> ChildIter<'_> {
        match self.nodes.get(id.0).map(|node| &node.children) {
            None | Some(Children::None) => ChildIter::Few(None.into_iter()),
            Some(Children::One(child)) => ChildIter::Few(Some(*child).into_iter()),
            Some(Children::Many(children)) => ChildIter::Many(children.range::<str, _>(..)),
        }
    }

    /// Those of them that come behind `level`, whether that is there or not.
    pub(super) fn children_after(&self, id: NodeId, level: &str) -> ChildIter<'_> {
        match self.nodes.get(id.0).map(|node| &node.children) {
            None | Some(Children::None) => ChildIter::Few(None.into_iter()),
            Some(Children::One(child)) => {
                ChildIter::Few(Some(*child).filter(|child| self.level(*child) > level).into_iter())
            }
            Some(Children::Many(children)) => {
                ChildIter::Many(children.range::<str, _>((Bound::Excluded(level), Bound::Unbounded)))
            }
        }
    }

    /// The levels down to `id`, with `/` between them. `None`: the root.
    pub(super) fn path(&self, id: NodeId) -> Option<String> {
        let mut levels = SmallVec::<[&str; 16]>::new();
        let mut at = self.nodes.get(id.0);
        while let Some(node) = at
            && let Some(parent) = node.parent
        {
            levels.push(&node.level);
            at = self.nodes.get(parent.0);
        }
        levels.reverse();
        (!levels.is_empty()).then(|| levels.join("/"))
    }

    pub(super) fn find<'l>(&self, levels: impl Iterator<Item = &'l str>) -> Option<NodeId> {
        let mut at = self.root;
        for level in levels {
            at = self.child(at, level)?;
        }
        Some(at)
    }

    pub(super) fn find_or_grow<'l>(&mut self, levels: impl Iterator<Item = &'l str>) -> NodeId {
        let mut at = self.root;
        for level in levels {
            at = self.child(at, level).unwrap_or_else(|| self.grow(at, level));
        }
        at
    }

    fn grow(&mut self, parent: NodeId, level: &str) -> NodeId {
        let child = NodeId(self.nodes.insert(Node::new(level, Some(parent))));
        self.text += level.len();
        // The first of two children goes into the map with the second, and so needs its own name there.
        let first = match self.nodes.get(parent.0).map(|node| &node.children) {
            Some(Children::One(first)) => Some((self.level(*first).into(), *first)),
            Some(Children::None | Children::Many(_)) | None => None,
        };
        let Some(node) = self.nodes.get_mut(parent.0) else { return child };
        if level == "+" {
            node.plus = Some(child);
            return child;
        }
        match &mut node.children {
            children @ Children::None => *children = Children::One(child),
            children @ Children::One(_) => {
                *children = Children::Many(first.into_iter().chain([(level.into(), child)]).collect());
            }
            Children::Many(children) => {
                children.insert(level.into(), child);
            }
        }
        child
    }

    /// Takes `id` away if `is_empty` says so and nothing hangs below it, then the same upwards.
    pub(super) fn prune(&mut self, id: NodeId, is_empty: impl Fn(&T) -> bool) {
        let mut at = id;
        while let Some(node) = self.nodes.get(at.0) {
            let Some(parent) = node.parent else { return };
            if !matches!(node.children, Children::None) || node.plus.is_some() || !is_empty(&node.content) {
                return;
            }
            let node = self.nodes.remove(at.0);
            self.text -= node.level.len();
            if let Some(above) = self.nodes.get_mut(parent.0) {
                above.forget(at, &node.level);
            }
            at = parent;
        }
    }
}

impl<T: Default> Node<T> {
    fn new(level: &str, parent: Option<NodeId>) -> Self {
        Self { level: level.into(), parent, plus: None, children: Children::None, content: T::default() }
    }

    fn forget(&mut self, child: NodeId, level: &str) {
        if self.plus == Some(child) {
            self.plus = None;
            return;
        }
        match &mut self.children {
            Children::None => {}
            Children::One(_) => self.children = Children::None,
            Children::Many(children) => {
                children.remove(level);
                if children.is_empty() {
                    self.children = Children::None;
                }
            }
        }
    }
}
