//! What others chose, in a line of the log: client ids, user names, topics.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Characters that are shown at most.
const CHARS_MAX: usize = 200;

/// A text that a client or a remote chose, for a line of the log or for people: what could begin a line of its own, or move a terminal's
/// cursor, is escaped, and a long one is cut, with its length.
///
/// ```
/// # use tidegate::telemetry::shown::Shown;
/// assert_eq!(Shown("press-7\nERROR forged").to_string(), r"press-7\nERROR forged");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl<'a> Shown<'a> {
    /// The text itself, cut: for a field of its own in a line of the log, which every format escapes by itself.
    #[must_use]
    pub fn cut(self) -> Cow<'a, str> {
        match self.0.char_indices().nth(CHARS_MAX) {
            Some((at, _)) => format!("{}.. ({} bytes)", self.0.get(..at).unwrap_or_default(), self.0.len()).into(),
            None => self.0.into(),
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(CHARS_MAX) {
            match char {
                // What is readable as it is; a backslash may be an escape's that the text has already.
                '\'' | '"' | '\\' => f.write_char(char)?,
                _ => write!(f, "{}", char.escape_debug())?,
            }
        }
        if chars.as_str().is_empty() { Ok(()) } else { write!(f, ".. ({} bytes)", self.0.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_forges_a_line_and_nothing_floods_one() {
        for (text, shown) in [
            ("press-7/Größe", "press-7/Größe"),
            ("a\nb\r\u{1b}[2J\u{2028}", r"a\nb\r\u{1b}[2J\u{2028}"),
            ("it's \"x\"", "it's \"x\""),
            (r"a\n", r"a\n"),
        ] {
            assert_eq!(Shown(text).to_string(), shown);
        }
        assert_eq!(Shown("a\nb").cut(), "a\nb", "a field is escaped by the log's format");
        let cut = Shown(&"ä".repeat(60_000)).cut().into_owned();
        assert_eq!((cut.chars().count(), cut.ends_with(".. (120000 bytes)")), (CHARS_MAX + 17, true));
        let long = Shown(&"\n".repeat(60_000)).to_string();
        assert_eq!((long.len(), long.ends_with(".. (60000 bytes)")), (2 * CHARS_MAX + 16, true));
    }
}
