//! Text that YAML reads otherwise than it was meant, and how the line is written right. Pure.

use super::hidden;

/// A value that stands behind its key in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written<'l> {
    pub(super) key: &'l str,
    pub(super) value: &'l str,
    /// Where the value begins, in bytes of the line.
    pub(super) start: usize,
}

/// A longer line is not written out in a hint.
const SHOWN_BYTES_MAX: usize = 120;

impl<'l> Written<'l> {
    /// The value that a mistake at byte `at` of a line is in.
    pub(super) fn at(line: &'l str, at: usize) -> Option<Self> {
        let mut body = line.len() - line.trim_start().len();
        while let Some(rest) = line.get(body..).and_then(|text| text.strip_prefix("- ")) {
            body = line.len() - rest.trim_start().len();
        }
        let block = Self::behind(line, body, false);
        // A section in braces: what its last key before the mistake has.
        if block.is_none_or(|block| block.value.starts_with('{') && !is_capture(block.value)) {
            let before = line.get(..at)?;
            let starts = before.char_indices().filter(|(_, c)| matches!(c, '{' | ','));
            let mut found =
                starts.filter_map(|(open, _)| Self::behind(line, open + 1, true)).filter(|one| one.start <= at);
            return found.next_back();
        }
        block.filter(|one| one.start <= at)
    }

    /// What stands behind the key that ends at byte `end` of a line.
    pub(super) fn behind_key(line: &'l str, end: usize) -> Option<Self> {
        let before = line.get(..end)?;
        let start = before.rfind(|c: char| !is_of_key(c)).map_or(0, |at| at + 1);
        let depth = before.matches(['{', '[']).count().saturating_sub(before.matches(['}', ']']).count());
        Self::behind(line, start, depth > 0)
    }

    /// `from`: where the key begins, or white space before it.
    fn behind(line: &'l str, from: usize, in_braces: bool) -> Option<Self> {
        let text = line.get(from..)?.trim_start();
        let (key, rest) = text.split_once(':')?;
        let value = rest.strip_prefix(' ')?.trim();
        if key.is_empty() || value.is_empty() || !key.chars().all(is_of_key) {
            return None;
        }
        let start = line.len() - rest.trim_start().len();
        Some(Self { key, value: if in_braces { own(value) } else { without_comment(value) }, start })
    }

    /// Whether quotes make it the text that is meant.
    pub(super) fn needs_quotes(&self) -> bool {
        let Some(first) = self.value.chars().next() else { return false };
        match first {
            '"' | '\'' => {
                self.value.get(1..).and_then(|text| text.find(first)).is_some_and(|end| end + 2 < self.value.len())
            }
            '@' | '%' | '`' | '*' | '|' | '>' | '-' => true,
            '{' => is_capture(self.value),
            '[' => self.key == "where",
            _ => self.value.split_once(": ").is_some_and(|(text, _)| !text.chars().all(is_of_key)),
        }
    }

    /// The same without showing what is meant.
    pub(super) fn hint_without(key: &str) -> String {
        format!("put what stands behind `{key}` in quotes")
    }

    /// `put it in quotes: ..`, with the right line.
    pub(super) fn hint(&self) -> String {
        let Self { key, value, .. } = self;
        if value.len() > SHOWN_BYTES_MAX || hidden::is_hidden(key, value) {
            return Self::hint_without(key);
        }
        match inside(value) {
            Some(text) => format!("its quotes end it too early, take the others: `{key}: {}`", quoted(text)),
            None => format!("put it in quotes: `{key}: {}`", quoted(value)),
        }
    }
}

/// A text in those quotes that it does not hold itself.
fn quoted(text: &str) -> String {
    if text.contains(['"', '\\']) { format!("'{}'", text.replace('\'', "''")) } else { format!("\"{text}\"") }
}

/// What of `'a == 'b''` is meant: its first and last quote belong to YAML, and those within to the text.
fn inside(value: &str) -> Option<&str> {
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let text = value.get(1..)?.strip_suffix(quote)?;
    // Of `'a' == 'b'` all quotes are the text's: what follows the second is no part of a word.
    let (_, behind) = text.split_once(quote)?;
    behind.starts_with(|c: char| c.is_alphanumeric()).then_some(text)
}

const fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// `{payload.temp} C`: it begins with what a template is filled with.
fn is_capture(value: &str) -> bool {
    let name = value.strip_prefix('{').and_then(|text| text.split_once('}')).map(|(name, _)| name.trim());
    name.is_some_and(|name| !name.is_empty() && (name.starts_with("time:") || name.chars().all(is_of_key)))
}

/// What of a text belongs to its key, where others stand behind it in the same braces.
fn own(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' if depth > 0 => depth -= 1,
            '}' | ']' | ',' if depth == 0 => return text.get(..at).unwrap_or_default().trim(),
            _ => {}
        }
    }
    text
}

fn without_comment(text: &str) -> &str {
    text.split_once(" #").map_or(text, |(text, _)| text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_written_right() {
        for (line, at, right) in [
            ("    where: 'on' == x", 15, Some(r#"where: "'on' == x""#)),
            ("  - where: \"on\" == x # why", 15, Some(r#"where: '"on" == x'"#)),
            ("where: payload.s == 'a: b'", 20, Some(r#"where: "payload.s == 'a: b'""#)),
            ("where: \"it's\" == x", 15, Some(r#"where: '"it''s" == x'"#)),
            ("payload: {payload.temp} C", 24, Some(r#"payload: "{payload.temp} C""#)),
            ("  - { from: broker/a, where: 'on' == x, to: b }", 36, Some(r#"where: "'on' == x""#)),
            ("set: { payload.a: {payload.b} C }", 30, Some(r#"payload.a: "{payload.b} C""#)),
            ("where: 'on' == 'off'", 12, Some(r#"where: "'on' == 'off'""#)),
            ("where: [1,2].exists(x)", 12, Some(r#"where: "[1,2].exists(x)""#)),
            ("where: @x", 7, Some(r#"where: "@x""#)),
            ("password: 'a' b", 14, None),
            ("mqtt: url: mqtt://h", 9, None),
            ("to: [ a, b", 5, None),
            ("a: { b: { c: 1 ]", 15, None),
            ("where: x", 0, None),
            ("no key", 3, None),
            ("a: 1", 3, None),
        ] {
            let written = Written::at(line, at).filter(Written::needs_quotes);
            let told = written.map(|written| written.hint());
            match right {
                Some(right) => assert_eq!(told, Some(format!("put it in quotes: `{right}`")), "{line}"),
                None => assert!(told.is_none_or(|told| !told.contains(": `")), "{line}"),
            }
        }
    }

    #[test]
    fn the_outer_quotes_are_taken_off_where_others_are_within() {
        for (line, right) in [
            ("where: 'property.shift == 'early''", r#"`where: "property.shift == 'early'"`"#),
            ("where: 'a == 'b' && c == 'd''", r#"`where: "a == 'b' && c == 'd'"`"#),
            (r#"payload: "{"a": 1}""#, r#"`payload: '{"a": 1}'`"#),
        ] {
            let written = Written::at(line, line.len() - 1).filter(Written::needs_quotes).unwrap();
            assert_eq!(written.hint(), format!("its quotes end it too early, take the others: {right}"));
        }
    }

    #[test]
    fn a_secret_is_not_written_out() {
        let hint = |line| Written::at(line, 14).map(|written| written.hint());
        assert_eq!(hint("password: 'a' b").as_deref(), Some("put what stands behind `password` in quotes"));
        assert_eq!(hint("colour:   'a' b").as_deref(), Some("put it in quotes: `colour: \"'a' b\"`"));
    }

    #[test]
    fn the_value_of_a_key_ends_where_the_next_begins() {
        for (line, end, value) in [
            ("    where: !payload.a", 9, "!payload.a"),
            ("  - { where: !has(a) && b, to: x }", 11, "!has(a) && b"),
            ("  - where: !a # not", 9, "!a"),
        ] {
            assert_eq!(Written::behind_key(line, end).map(|written| written.value), Some(value), "{line}");
        }
    }
}
