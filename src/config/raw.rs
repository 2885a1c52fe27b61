//! `routes.yaml` as it is written: a tree of values that know their places. It says nothing about which keys exist or what
//! values mean, that is `resolve`'s part; so one pass can report every mistake.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::hidden;
use super::quotes::Written;
use super::source::{Place, Source};
use super::unclosed::{self, Unclosed};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing behind the key.
    Null,
    /// Text, a number or a boolean, as it is written, without quotes.
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file, keys that come twice included.
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) kind: ScalarKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScalarKind {
    Text,
    Bool(bool),
    Number,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

/// Text that is no YAML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) text: String,
    pub(super) place: Place,
    pub(super) hint: Option<String>,
}

impl Node {
    /// What the value is, for messages about what it should have been.
    pub(super) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Scalar(Scalar { kind: ScalarKind::Text, .. }) => "text",
            Value::Scalar(Scalar { kind: ScalarKind::Bool(_), .. }) => "true or false",
            Value::Scalar(Scalar { kind: ScalarKind::Number, .. }) => "a number",
            Value::List(_) => "a list",
            Value::Map(_) => "a section with keys",
        }
    }

    /// Nothing, or a section without keys.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Map(entries) => entries.is_empty(),
            Value::Scalar(_) | Value::List(_) => false,
        }
    }

    /// Whether YAML takes what stands behind it for a comment.
    pub(super) fn has_comment(&self) -> bool {
        let is_plain = !self.place.text().starts_with(['"', '\'', '|', '>']);
        is_plain && self.place.source.text.get(self.place.span.end..).is_some_and(|rest| rest.starts_with(" #"))
    }

    /// The place of bytes of the scalar's text, where the file holds that text as it is; else the whole scalar.
    pub(super) fn part(&self, part: Range<usize>) -> Place {
        let Value::Scalar(scalar) = &self.value else { return self.place.clone() };
        match self.place.text().find(scalar.text.as_str()) {
            Some(offset) => self.place.part(part.start + offset..part.end + offset),
            None => self.place.clone(),
        }
    }
}

/// Sections within sections. Ours are six deep; reading is recursive, and 60 overflow a thread's 2 MiB in a debug build.
const DEPTH_MAX: usize = 16;

/// Reads one file.
pub(super) fn parse(source: &Arc<Source>) -> Result<Node, SyntaxError> {
    // The default budget stops at about 19,000 routes; this one at about a million.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 50_000_000, max_nodes: 12_500_000, max_depth: DEPTH_MAX },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
    };
    let whole = || Place { source: Arc::clone(source), span: 0..0 };
    if source.text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node { value: Value::Null, place: whole() });
    }
    match serde_saphyr::from_str_with_options::<Spanned<Repr>>(&source.text, options) {
        Ok(tree) => {
            let root = node(tree, source);
            source.hide(hidden::in_tree(&root));
            Ok(root)
        }
        Err(error) => Err(syntax_error(&error, source)),
    }
}

/// The files of a folder as if they were one: their links and routes together; other sections stand in one of them.
pub(super) fn merged(trees: Vec<Node>, place: Place) -> Node {
    let mut all: Vec<Entry> = Vec::new();
    for tree in trees {
        let entries = match tree.value {
            Value::Map(entries) => entries,
            Value::Null => Vec::new(),
            // Whoever resolves it says what a file should hold.
            Value::Scalar(_) | Value::List(_) => return tree,
        };
        for entry in entries {
            let earlier = all
                .iter_mut()
                .find(|earlier| earlier.key == entry.key && !Arc::ptr_eq(&earlier.place.source, &entry.place.source));
            match (entry.key.as_str(), earlier.map(|earlier| &mut earlier.value.value), entry.value.value) {
                ("links", Some(Value::Map(links)), Value::Map(more)) => links.extend(more),
                ("routes", Some(Value::List(routes)), Value::List(more)) => routes.extend(more),
                (_, _, value) => all.push(Entry { value: Node { value, place: entry.value.place }, ..entry }),
            }
        }
    }
    Node { value: Value::Map(all), place }
}

fn syntax_error(error: &serde_saphyr::Error, source: &Arc<Source>) -> SyntaxError {
    let text = error.without_snippet().to_string();
    // The place is told apart from the text.
    let text = text.split_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_owned();
    let text = match text.strip_prefix("budget breached: ") {
        Some(what) if what.starts_with("Depth") => format!("sections are nested more than {DEPTH_MAX} deep"),
        Some(_) => "the file is too large, or repeats itself too often by aliases".to_owned(),
        None => match text.strip_prefix("non-finite float ").and_then(|text| text.split_once(" rejected by ")) {
            Some((number, _)) => format!("the number {number} is not finite"),
            None => text,
        },
    };
    let as_index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let start = error.location().map_or(0, |at| source.byte_at(as_index(at.line()), as_index(at.column())));
    let (_, line) = source.line_of(start);
    let written = source.text.get(line.clone()).unwrap_or_default();
    let before = source.text.get(line.start..start).unwrap_or_default();
    let hint = if is_said_otherwise(&text) {
        general_hint(&text, written, before, above(source, &line)).map(str::to_owned)
    } else {
        let Unclosed { quote, bracket } = Unclosed::before(&source.text, start);
        let quotes = || quotes_hint(written, before, &hidden::in_line(source, &line));
        let general = || general_hint(&text, written, before, above(source, &line)).map(str::to_owned);
        quote.map(unclosed::hint).or_else(quotes).or_else(|| bracket.map(unclosed::hint)).or_else(general)
    };
    SyntaxError { text, place: Place { source: Arc::clone(source), span: start..start.max(line.end) }, hint }
}

/// Whether quotes around what stands in the line are most likely missing.
fn quotes_hint(line: &str, before: &str, secrets: &[Range<usize>]) -> Option<String> {
    let written = Written::at(line, before.len()).filter(|_| !before.trim().is_empty());
    let written = written.filter(Written::needs_quotes)?;
    let end = written.start + written.value.len();
    let is_secret = secrets.iter().any(|secret| secret.start < end && written.start < secret.end);
    Some(if is_secret { Written::hint_without(written.key) } else { written.hint() })
}

/// What is wrong is no matter of quotes and brackets.
fn is_said_otherwise(text: &str) -> bool {
    ["tab", " is not finite", " is too large", " nested "].iter().any(|words| text.contains(words))
}

/// The nearest line above one that is as far to the right, or less, and holds more than a comment.
fn above<'s>(source: &'s Source, line: &Range<usize>) -> &'s str {
    let text = source.text.get(line.clone()).unwrap_or_default();
    let before = source.text.get(..line.start).unwrap_or_default();
    let mut lines = before.lines().rev().filter(|line| !matches!(line.trim_start().chars().next(), None | Some('#')));
    lines.find(|above| indentation(above) <= indentation(text)).unwrap_or_default()
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What is most likely wrong, from the library's words, the line, what of it is before the place, and the line above.
fn general_hint(text: &str, line: &str, before: &str, above: &str) -> Option<&'static str> {
    let is_beside = !above.is_empty() && indentation(above) == indentation(line);
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    let indentation = indentation(line);
    if text.contains("tab") || line.get(..indentation).is_some_and(|indentation| indentation.contains('\t')) {
        Some("YAML is indented with spaces only, not with tabs")
    } else if text.ends_with(" is not finite") {
        Some("a text needs quotes")
    } else if is_beside && is_item(line) && !is_item(above) && matches!(before.trim(), "" | "-") {
        Some("its neighbours are keys: take the `- ` away, or indent it as what it belongs to")
    } else if is_beside && !is_item(line) && is_item(above) && before.trim().is_empty() {
        Some("its neighbours begin with `- `: put one before it, or indent it as the keys of the one above")
    } else if ["expected key", "expected '-'"].iter().any(|end| text.contains(end)) && before.trim().is_empty() {
        Some("is this line as far to the right as its neighbours?")
    } else if line.matches(['{', '[']).count() > 1 {
        Some("between `{ }` and `[ ]` text that holds one of `{}[],` needs quotes; and each bracket its partner")
    } else if text.starts_with("mapping values") && !before.contains(": ") {
        Some("is this line as far to the right as its neighbours?")
    } else if text.starts_with("mapping values") {
        Some("keys of a section stand on lines of their own below it, or in braces: `mqtt: { url: .. }`")
    } else if text.contains("expected ':'") {
        Some("a key ends with `:` and a space")
    } else {
        None
    }
}

/// What the library gives us, before scalars are taken from the source as written.
enum Repr {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Repr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReprVisitor)
    }
}

struct ReprVisitor;

impl<'de> Visitor<'de> for ReprVisitor {
    type Value = Repr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Repr, E> {
        Ok(Repr::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Repr, E> {
        Ok(Repr::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Repr, E> {
        Ok(Repr::Number)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Repr, E> {
        Ok(Repr::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Repr, E> {
        Ok(Repr::Number)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Repr, E> {
        Ok(Repr::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Repr, E> {
        Ok(Repr::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Repr, E> {
        Ok(Repr::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Repr, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Repr::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Repr, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Repr::Map(map))
    }
}

fn node(tree: Spanned<Repr>, source: &Arc<Source>) -> Node {
    let place = place(tree.defined, source);
    let scalar = |kind| Value::Scalar(Scalar { text: place.text().trim().to_owned(), kind });
    let value = match tree.value {
        Repr::Null => Value::Null,
        Repr::Bool(value) => scalar(ScalarKind::Bool(value)),
        Repr::Number => scalar(ScalarKind::Number),
        Repr::Text(text) => Value::Scalar(Scalar { text, kind: ScalarKind::Text }),
        Repr::List(items) => Value::List(items.into_iter().map(|item| node(item, source)).collect()),
        Repr::Map(entries) => Value::Map(entries.into_iter().map(|(key, value)| entry(key, value, source)).collect()),
    };
    Node { value, place }
}

fn entry(key: Spanned<String>, value: Spanned<Repr>, source: &Arc<Source>) -> Entry {
    Entry { key: key.value, place: place(key.defined, source), value: node(value, source) }
}

fn place(location: Location, source: &Arc<Source>) -> Place {
    let span = location.span();
    let start = span.byte_offset().and_then(|at| usize::try_from(at).ok()).unwrap_or_default();
    let len = span.byte_len().and_then(|len| usize::try_from(len).ok()).unwrap_or_default();
    let end = (start + len).min(source.text.len());
    Place { source: Arc::clone(source), span: start.min(end)..end }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn source(text: &str) -> Arc<Source> {
        Arc::new(Source::new("x.yaml".into(), text.to_owned()))
    }

    /// Each value behind its key, and in brackets how the file writes it.
    fn show(node: &Node, out: &mut String) {
        match &node.value {
            Value::Null => out.push('~'),
            Value::Scalar(scalar) => write!(out, "{}<{}>", scalar.text, node.place.text()).unwrap(),
            Value::List(items) => {
                for item in items {
                    out.push('-');
                    show(item, out);
                    out.push(' ');
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    assert_eq!(entry.place.text(), entry.key);
                    write!(out, "{}=", entry.key).unwrap();
                    show(&entry.value, out);
                    out.push(' ');
                }
            }
        }
    }

    #[test]
    fn values_and_keys_know_their_places() {
        for (text, expected) in [
            ("a: 1\nb: 'x y'\né: \"q\\\"z\"\n", r#"a=1<1> b=x y<'x y'> é=q"z<"q\"z"> "#),
            ("l:\n  - 007\n  - true\n  - no\n", "l=-007<007> -true<true> -no<no>  "),
            ("m: { k: v, b: \"127.0.0.1:1\" }\nn:\n", "m=k=v<v> b=127.0.0.1:1<\"127.0.0.1:1\">  n=~ "),
            (
                "v: 3.1.1\nc: 1_000\nx: 99999999999999999999999999\n",
                "v=3.1.1<3.1.1> c=1_000<1_000> x=99999999999999999999999999<99999999999999999999999999> ",
            ),
            ("a: 1\na: 2\n", "a=1<1> a=2<2> "),
            ("a: &x foo\nb: *x\n", "a=foo<foo> b=foo<foo> "),
            ("# nothing\n\n", "~"),
            ("---\n", "~"),
            ("\u{feff}a: 1\r\nb: x\r\n", "a=1<1> b=x<x> "),
        ] {
            let mut out = String::new();
            show(&parse(&source(text)).unwrap(), &mut out);
            assert_eq!(out, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_yaml_has_its_place() {
        let deep: String = (0..3_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        for (text, line, col) in [
            (deep.as_str(), 17, 17),
            ("a: [1, 2\nb: 3\n", 2, 2),
            ("é: b: c\n", 1, 5),
            ("a: 1\n---\nb: 1\n", 3, 1),
            ("a: .inf", 1, 4),
        ] {
            let error = parse(&source(text)).unwrap_err();
            assert_eq!(error.place.span.start, error.place.source.byte_at(line, col), "{text}: {}", error.text);
            assert!(!error.text.contains(" at line "), "{}", error.text);
        }
    }

    #[test]
    fn what_is_no_yaml_has_a_hint_where_the_reason_is_likely() {
        for (text, hint) in [
            ("a:\n\tb: 1\n", "tab"),
            ("a:\n  b: 1\n \tc: 2\n", "tab"),
            ("a: { b: { c: 1 ]\n", "quotes"),
            ("a: 1\nb c\nd: 1\n", "`:` and a space"),
            ("a:\n  b: 1\n c: 2\n", "as far to the right"),
            ("a:\n  - b: 1\n  c: 2\n", "put one before it"),
            ("a:\n  b: 1\n  - c: 2\n", "take the `- ` away"),
            ("a:\n  - b: 1\n      c: 2\n", "as far to the right"),
            ("a: b: 1\n", "`mqtt: { url: .. }`"),
            ("l: { h: { u: 1 }\nr:\n  - { a: 1 }\n", "the `{` of line 1 is not closed"),
            ("a:\n  - { b: \"1, c: 2 }\n  - { b: \"3\" }\n", "the `\"` of line 2 is not closed"),
            ("a:\n  where: 'on' == x\n", "put it in quotes: `where: \"'on' == x\"`"),
        ] {
            let error = parse(&source(text)).unwrap_err();
            assert!(error.hint.as_ref().is_some_and(|given| given.contains(hint)), "{text}: {error:?}");
        }
    }

    #[test]
    fn the_part_of_a_scalar_is_found_inside_its_quotes_and_not_where_it_is_escaped() {
        for (text, part) in
            [("a: \"hq/{x}\"", "{x}"), ("a: hq/{x}", "{x}"), ("a: \"hq\\u002f{x}\"", "\"hq\\u002f{x}\"")]
        {
            let Value::Map(entries) = parse(&source(text)).unwrap().value else { panic!() };
            assert_eq!(entries[0].value.part(3..6).text(), part, "{text}");
        }
    }
}
