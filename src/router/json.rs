//! A JSON payload as a row of values: parsed once, when somebody first asks, and into no allocation while it is as small as
//! telemetry is.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

/// Values of one payload that are looked at. More is as if it were no JSON: 64 bytes each, so at most 4 MiB a message.
pub(super) const VALUES_MAX: usize = 65_536;

/// A number of any kind that JSON has. Integers stay exact.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    /// Any `i64` or `u64`.
    Whole(i128),
    Float(f64),
}

/// A value of a payload; of a list or section only that it is one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Leaf<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List,
    Map,
}

/// One step from a value to one inside of it: a field by its name; in a list the place, if the name is a number.
pub(super) type Step = Box<str>;

/// The values in the order of the text: each stands before those that it holds.
#[derive(Debug, Default)]
pub(super) struct Json<'a> {
    values: SmallVec<[Value<'a>; 24]>,
}

#[derive(Debug)]
struct Value<'a> {
    /// Its name in the section that holds it.
    key: Cow<'a, str>,
    leaf: Leaf<'a>,
    /// Behind the last value that it holds.
    end: usize,
}

/// A value in its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'j, 'a> {
    json: &'j Json<'a>,
    at: usize,
}

impl<'a> Json<'a> {
    /// `None`: no JSON, or too many values.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        let mut json = Self::default();
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        Row { json: &mut json, key: Cow::Borrowed("") }.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        Some(json)
    }

    /// The value that `path` leads to.
    pub(super) fn find(&self, path: &[Step]) -> Option<Found<'_, 'a>> {
        path.iter().try_fold(Found { json: self, at: 0 }, |found, step| found.step(step))
    }
}

impl<'j, 'a> Found<'j, 'a> {
    pub(super) fn leaf(self) -> &'j Leaf<'a> {
        self.json.values.get(self.at).map_or(&Leaf::Null, |value| &value.leaf)
    }

    fn step(self, step: &Step) -> Option<Self> {
        match self.leaf() {
            // The last of two fields of one name, as most programs take it.
            Leaf::Map => self.children().filter(|child| child.key() == &**step).last(),
            Leaf::List => self.children().nth(step.parse().ok()?),
            Leaf::Null | Leaf::Bool(_) | Leaf::Number(_) | Leaf::Text(_) => None,
        }
    }

    /// What a list or section holds, one level deep.
    pub(super) fn children(self) -> impl Iterator<Item = Self> {
        let end = self.json.values.get(self.at).map_or(0, |value| value.end);
        let mut at = self.at + 1;
        std::iter::from_fn(move || {
            let child = self.json.values.get(at).filter(|_| at < end)?;
            let found = Self { at, ..self };
            at = child.end;
            Some(found)
        })
    }

    pub(super) fn key(self) -> &'j str {
        self.json.values.get(self.at).map_or("", |value| &value.key)
    }
}

impl Number {
    /// Whole numbers beyond 2^53 lose their last digits.
    #[expect(clippy::cast_precision_loss, reason = "what is compared with a float is one")]
    pub(super) const fn as_float(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(std::cmp::Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(b)),
            _ => self.as_float().partial_cmp(&other.as_float()),
        }
    }
}

impl fmt::Display for Number {
    /// As JSON writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            // `1e3` came in as 1000.0, which is how it goes out.
            Self::Float(number) => fmt::Debug::fmt(number, f),
        }
    }
}

/// Puts the next value at the end of the row.
struct Row<'r, 'a> {
    json: &'r mut Json<'a>,
    key: Cow<'a, str>,
}

impl<'a> Row<'_, 'a> {
    fn put<E: Error>(self, leaf: Leaf<'a>) -> Result<usize, E> {
        let at = self.json.values.len();
        if at >= VALUES_MAX {
            return Err(E::custom("too many values"));
        }
        self.json.values.push(Value { key: self.key, leaf, end: at + 1 });
        Ok(at)
    }
}

fn close(json: &mut Json<'_>, at: usize) {
    let end = json.values.len();
    if let Some(value) = json.values.get_mut(at) {
        value.end = end;
    }
}

impl<'a> DeserializeSeed<'a> for Row<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Row<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put(Leaf::Null).map(drop)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.put(Leaf::Bool(value)).map(drop)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put(Leaf::Number(Number::Whole(value.into()))).map(drop)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put(Leaf::Number(Number::Whole(value.into()))).map(drop)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.put(Leaf::Number(Number::Float(value))).map(drop)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'a str) -> Result<(), E> {
        self.put(Leaf::Text(Cow::Borrowed(value))).map(drop)
    }

    /// A text with escapes.
    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.put(Leaf::Text(Cow::Owned(value.to_owned()))).map(drop)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        let Row { json, key } = self;
        let at = Row { json: &mut *json, key }.put(Leaf::List)?;
        while items.next_element_seed(Row { json: &mut *json, key: Cow::Borrowed("") })?.is_some() {}
        close(json, at);
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut entries: A) -> Result<(), A::Error> {
        let Row { json, key } = self;
        let at = Row { json: &mut *json, key }.put(Leaf::Map)?;
        while let Some(key) = entries.next_key_seed(Key)? {
            entries.next_value_seed(Row { json: &mut *json, key })?;
        }
        close(json, at);
        Ok(())
    }
}

struct Key;

impl<'a> DeserializeSeed<'a> for Key {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Key {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Vec<Step> {
        text.split('.').filter(|step| !step.is_empty()).map(Step::from).collect()
    }

    fn shown(json: &str, at: &str) -> Option<String> {
        let json = Json::parse(json.as_bytes())?;
        let found = json.find(&path(at))?;
        Some(match found.leaf() {
            Leaf::Text(text) => format!("{text:?}"),
            Leaf::Number(number) => number.to_string(),
            other @ (Leaf::Null | Leaf::Bool(_) | Leaf::List | Leaf::Map) => format!("{other:?}"),
        })
    }

    #[test]
    fn values_are_found_by_their_path() {
        let json = r#"{"a":1,"b":{"c":[true,{"d":"x\n"},null],"e":-1.50},"f":18446744073709551615,"a":2,"é":"ü"}"#;
        for (at, expected) in [
            ("a", Some("2")),
            ("b.c.0", Some("Bool(true)")),
            ("b.c.1.d", Some("\"x\\n\"")),
            ("b.c.2", Some("Null")),
            ("b.c.3", None),
            ("b.e", Some("-1.5")),
            ("b", Some("Map")),
            ("b.c", Some("List")),
            ("f", Some("18446744073709551615")),
            ("é", Some("\"ü\"")),
            ("a.b", None),
            ("c", None),
            ("", Some("Map")),
        ] {
            assert_eq!(shown(json, at).as_deref(), expected, "{at}");
        }
    }

    #[test]
    fn what_is_no_json_or_too_much_of_it_is_none() {
        for text in ["", "{", "21.5 C", "{\"a\":1} x", "\u{feff}{}", "{'a':1}"] {
            assert!(Json::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Json::parse(b"{\"a\":\"\xff\"}").is_none());
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(Json::parse(list(VALUES_MAX - 1).as_bytes()).is_some());
        assert!(Json::parse(list(VALUES_MAX).as_bytes()).is_none());
        // Deeper than a small stack can walk.
        assert!(Json::parse("[".repeat(10_000).as_bytes()).is_none());
    }

    #[test]
    fn numbers_compare_by_value_and_whole_ones_exactly() {
        use Number::{Float, Whole};
        assert_eq!(Whole(1), Float(1.0));
        assert!(Whole(9_007_199_254_740_993) > Whole(9_007_199_254_740_992));
        assert!(Float(0.5) < Whole(1));
    }

    /// Every value of the library's own tree is found at its path, and nothing beside it.
    fn same(tree: &serde_json::Value, found: Found<'_, '_>) -> bool {
        use serde_json::Value as V;
        match (tree, found.leaf()) {
            (V::Null, Leaf::Null) => true,
            (V::Bool(a), Leaf::Bool(b)) => a == b,
            (V::Number(a), Leaf::Number(b)) => a.as_f64() == Some(b.as_float()),
            (V::String(a), Leaf::Text(b)) => a == b,
            (V::Array(items), Leaf::List) => {
                items.len() == found.children().count() && items.iter().zip(found.children()).all(|(a, b)| same(a, b))
            }
            (V::Object(fields), Leaf::Map) => {
                fields.iter().all(|(key, a)| found.step(&key.as_str().into()).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_row_holds_what_the_tree_holds(text in "[\\[\\]{},:\"a01. -]{0,30}|\\{\"a\":(1|\\[\\]|\\[[01],2\\]|\"\\\\u00e9\"),\"b\":(null|true|-1.5e3)\\}") {
            let tree = serde_json::from_str::<serde_json::Value>(&text).ok();
            let row = Json::parse(text.as_bytes());
            prop_assert_eq!(tree.is_some(), row.is_some(), "{}", text);
            if let (Some(tree), Some(row)) = (tree, row) {
                prop_assert!(same(&tree, row.find(&[]).unwrap()), "{}", text);
            }
        }
    }
}
