//! A JSON payload as a tree that is changed and written again: fields stay in their order.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Number;
use serde_json::value::RawValue;

/// Levels of a payload at most, as `serde_json` has it.
const DEPTH_MAX: usize = 127;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Doc {
    Null,
    Bool(bool),
    Number(Number),
    /// A number as its sender wrote it, which no type of ours may hold.
    Written(Written),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

/// See [`Doc::Written`].
#[derive(Clone, Debug)]
pub(super) struct Written(Box<RawValue>);

impl PartialEq for Written {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
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
                Self::Null | Self::Bool(_) | Self::Number(_) | Self::Written(_) | Self::Text(_) | Self::List(_) => None,
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
    /// gives way. Where a section has the name several times there is one afterwards, so that no reader finds another.
    pub(super) fn put(&mut self, path: &[Box<str>], value: Self) {
        let [name, rest @ ..] = path else {
            *self = value;
            return;
        };
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(fields) = self else { return };
        // The last counts, as for most readers, our own included.
        match fields.iter().rposition(|(known, _)| **known == **name) {
            Some(last) => {
                let mut at = 0..;
                fields.retain(|(known, _)| at.next() == Some(last) || **known != **name);
                if let Some((_, inner)) = fields.iter_mut().find(|(known, _)| **known == **name) {
                    inner.put(rest, value);
                }
            }
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
            Self::Written(number) => number.0.serialize(serializer),
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

impl Doc {
    /// Of a text that is JSON. Numbers keep their digits: what a double has no room for is somebody's serial number or fixed-point sum.
    ///
    /// # Errors
    /// It is no JSON, or is nested too deep.
    pub(super) fn parse(payload: &[u8]) -> serde_json::Result<Self> {
        Self::of(serde_json::from_slice(payload)?, DEPTH_MAX)
    }

    /// Each level is looked through once for its end and once for what is in it.
    fn of(raw: &RawValue, depth: usize) -> serde_json::Result<Self> {
        let text = raw.get();
        let Some(depth) = depth.checked_sub(1) else { return Err(de::Error::custom("it is nested too deep")) };
        match text.as_bytes().first() {
            Some(b'{') => {
                let Fields(fields) = serde_json::from_str(text)?;
                let fields = fields.into_iter().map(|(name, value)| Ok((name, Self::of(value, depth)?)));
                fields.collect::<serde_json::Result<_>>().map(Self::Map)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                items.into_iter().map(|item| Self::of(item, depth)).collect::<serde_json::Result<_>>().map(Self::List)
            }
            Some(b'"') => serde_json::from_str(text).map(Self::Text),
            Some(b't' | b'f') => serde_json::from_str(text).map(Self::Bool),
            Some(b'n') => Ok(Self::Null),
            _ => Ok(match text.parse::<i64>() {
                Ok(number) if text != "-0" => Self::Number(number.into()),
                _ => Self::Written(Written(raw.to_owned())),
            }),
        }
    }
}

/// The fields of a map, in their order.
struct Fields<'p>(Vec<(String, &'p RawValue)>);

impl<'de: 'p, 'p> Deserialize<'de> for Fields<'p> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(payload: &str) -> String {
        serde_json::to_string(&Doc::parse(payload.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn what_nothing_touches_is_written_as_it_was() {
        for payload in [
            "null",
            "[true,false]",
            r#"{"b":1,"a":{"z":[],"y":{}},"b2":"\"\\\n"}"#,
            r#"{"n":[0,-0,-1,9223372036854775807,18446744073709551615,-9223372036854775809]}"#,
            r#"{"n":[123456789012345678901234567890,0.1000000000000000000001,21.50,1e400,-1E-7,1.0]}"#,
        ] {
            assert_eq!(again(payload), payload);
        }
        assert_eq!(again(" { \"a\" : [ 1 , 2.50 ] } "), r#"{"a":[1,2.50]}"#, "but for the spaces");
        assert_eq!(again(r#"{"\u00e9":"\u00e9"}"#), r#"{"é":"é"}"#, "and escapes");
    }

    #[test]
    fn what_is_put_is_the_only_one_of_its_name() {
        let mut doc = Doc::parse(br#"{"site":"a","n":{"x":1,"x":{"y":2}},"site":"b"}"#).unwrap();
        doc.put(&["site".into()], Doc::Text("s".to_owned()));
        doc.put(&["n".into(), "x".into(), "z".into()], Doc::Bool(true));
        assert_eq!(serde_json::to_string(&doc).unwrap(), r#"{"n":{"x":{"y":2,"z":true}},"site":"s"}"#);
    }

    #[test]
    fn what_is_no_json_or_too_deep_is_refused() {
        for payload in ["", "{", "[1,]", "01", "1.", "nul", "{\"a\":}", "\"\\x\""] {
            assert!(Doc::parse(payload.as_bytes()).is_err(), "{payload}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Doc::parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(Doc::parse(nested(DEPTH_MAX + 1).as_bytes()).is_err());
    }
}
