//! A JSON payload as a tree that is changed and written again: fields stay in their order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Number;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Doc {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

/// Fields on the way to a value, the outermost first.
pub(super) type Path = Box<[Box<str>]>;

impl Doc {
    /// Only what the paths lead to, in the order of the payload.
    pub(super) fn pick(self, paths: &[Path]) -> Self {
        let paths: Vec<&[Box<str>]> = paths.iter().map(|path| &**path).collect();
        self.picked(&paths)
    }

    fn picked(self, paths: &[&[Box<str>]]) -> Self {
        let Self::Map(fields) = self else { return self };
        let kept = fields.into_iter().filter_map(|(name, value)| {
            let inner: Vec<&[Box<str>]> = paths.iter().filter_map(|path| behind(path, &name)).collect();
            let whole = inner.iter().any(|path| path.is_empty());
            match value {
                _ if inner.is_empty() => None,
                value if whole => Some((name, value)),
                value @ Self::Map(_) => Some((name, value.picked(&inner))),
                // A path that goes deeper than the payload does leads to nothing.
                Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => None,
            }
        });
        Self::Map(kept.collect())
    }

    /// Takes out what the path leads to, if it is there.
    pub(super) fn remove(&mut self, path: &[Box<str>]) {
        let (Self::Map(fields), [name, rest @ ..]) = (self, path) else { return };
        if rest.is_empty() {
            fields.retain(|(known, _)| **known != **name);
        } else {
            let inner = fields.iter_mut().filter(|(known, _)| **known == **name);
            inner.for_each(|(_, value)| value.remove(rest));
        }
    }

    /// Puts a value where the path leads; sections that are missing on the way are made. What is there and is no section
    /// gives way.
    pub(super) fn put(&mut self, path: &[Box<str>], value: Self) {
        let [name, rest @ ..] = path else {
            *self = value;
            return;
        };
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(fields) = self else { return };
        match fields.iter_mut().find(|(known, _)| **known == **name) {
            Some((_, inner)) => inner.put(rest, value),
            None => {
                let mut made = Self::Null;
                made.put(rest, value);
                fields.push((name.to_string(), made));
            }
        }
    }
}

/// What is left of a path inside of the field `name`.
fn behind<'p>(path: &'p [Box<str>], name: &str) -> Option<&'p [Box<str>]> {
    path.split_first().filter(|(first, _)| ***first == *name).map(|(_, rest)| rest)
}

impl Serialize for Doc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => items.serialize(serializer),
            Self::Map(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Doc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Doc;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Doc, E> {
        Ok(Doc::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Doc, E> {
        Ok(Doc::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Doc, E> {
        Ok(Doc::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Doc, E> {
        Ok(Doc::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Doc, E> {
        Ok(Number::from_f64(value).map_or(Doc::Null, Doc::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Doc, E> {
        Ok(Doc::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Doc, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Doc::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Doc, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Doc::Map(map))
    }
}
