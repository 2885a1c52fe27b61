//! Mistakes in a file of routes, and how they are shown (R32).

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::hidden;
use super::source::{Place, Source};

/// Of a drawn line; more wraps on any terminal.
const LINE_CHARS_MAX: usize = 200;

/// Whether a file can be used in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can; the operator should know.
    Warning,
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// See [`Severity`].
    pub severity: Severity,
    /// As it was named to [`load`](super::load), or below the folder that was.
    pub file: PathBuf,
    /// Counts from 1.
    pub line: usize,
    /// In characters, counts from 1.
    pub col: usize,
    /// Bytes of the file that are to blame.
    pub span: Range<usize>,
    /// One line: what is wrong. Never holds a substituted secret.
    pub text: String,
    /// What would be right.
    pub hint: Option<String>,
    /// Where it goes along, step by step; most mistakes are in one place.
    pub hops: Vec<Hop>,
    /// For drawing.
    source: Arc<Source>,
}

/// A step of a mistake that is in several places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// As in [`Diagnostic`].
    pub file: PathBuf,
    /// Counts from 1.
    pub line: usize,
    /// In characters, counts from 1.
    pub col: usize,
    /// What happens there.
    pub text: String,
}

impl Severity {
    /// `error`, `warning`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// All mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    found: Vec<Diagnostic>,
    errors: usize,
}

impl Mistakes {
    pub(super) fn error(&mut self, place: &Place, text: impl Into<String>, hint: impl Into<Option<String>>) {
        self.push(Severity::Error, place, text.into(), hint.into(), Vec::new());
    }

    pub(super) fn warning(&mut self, place: &Place, text: impl Into<String>, hint: impl Into<Option<String>>) {
        self.push(Severity::Warning, place, text.into(), hint.into(), Vec::new());
    }

    /// One that goes along several places.
    pub(super) fn warning_along(&mut self, place: &Place, text: String, hint: String, hops: Vec<(Place, String)>) {
        let hop = |(place, text): (Place, String)| {
            let (line, col) = place.line_and_column();
            Hop { file: place.source.path.clone(), line, col, text: in_one_line(text) }
        };
        self.push(Severity::Warning, place, text, Some(hint), hops.into_iter().map(hop).collect());
    }

    /// How many errors there are so far: what was looked at since an earlier count is right if it is the same.
    pub(super) const fn errors(&self) -> usize {
        self.errors
    }

    /// In the order of the files.
    pub(super) fn sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by(|a, b| (&a.file, a.span.start, a.severity).cmp(&(&b.file, b.span.start, b.severity)));
        self.found
    }

    fn push(&mut self, severity: Severity, place: &Place, text: String, hint: Option<String>, hops: Vec<Hop>) {
        let (line, col) = place.line_and_column();
        self.errors += usize::from(severity == Severity::Error);
        self.found.push(Diagnostic {
            severity,
            file: place.source.path.clone(),
            line,
            col,
            span: place.span.clone(),
            text: in_one_line(text),
            hint: hint.map(in_one_line),
            hops,
            source: Arc::clone(&place.source),
        });
    }
}

/// Names from the file may hold what ends a line, or what a terminal obeys: it is shown as it would be written.
fn in_one_line(text: String) -> String {
    let text = hidden::said(text);
    if !text.contains(char::is_control) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Each diagnostic as `FILE:LINE:COL: error: text`, the drawn span below it, and its hint. Passwords that stand in the
/// file itself are not shown.
#[must_use]
pub fn render(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        // Writing to a string cannot fail.
        let _infallible = draw(diagnostic, &mut out);
    }
    out
}

/// `3 errors, 1 warning`.
#[must_use]
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let count = |severity: Severity| {
        let count = diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count();
        format!("{count} {}{}", severity.name(), if count == 1 { "" } else { "s" })
    };
    format!("{}, {}", count(Severity::Error), count(Severity::Warning))
}

fn draw(diagnostic: &Diagnostic, out: &mut String) -> std::fmt::Result {
    let Diagnostic { severity, file, line, col, span, text, hint, hops, source } = diagnostic;
    writeln!(out, "{}:{line}:{col}: {}: {text}", file.display(), severity.name())?;
    let (_, bounds) = source.line_of(span.start);
    let shown = source.text.get(bounds.clone()).unwrap_or_default();
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    if !shown.trim().is_empty() {
        let within = span.start - bounds.start..span.end.clamp(span.start, bounds.end) - bounds.start;
        let (shown, carets) = masked(shown, &within, &hidden::in_line(source, &bounds));
        let (shown, carets) = windowed(&shown, &carets);
        writeln!(out, " {margin} |\n {number} | {shown}\n {margin} | {carets}")?;
    }
    for Hop { file, line, col, text } in hops {
        writeln!(out, " {margin} = {}:{line}:{col}: {text}", file.display())?;
    }
    if let Some(hint) = hint {
        writeln!(out, " {margin} = hint: {hint}")?;
    }
    out.push('\n');
    Ok(())
}

/// The line with its secrets replaced, and a line of carets below `span`.
fn masked(line: &str, span: &Range<usize>, secrets: &[Range<usize>]) -> (String, String) {
    let (mut shown, mut carets) = (String::new(), String::new());
    for (at, c) in line.char_indices() {
        let marked = span.contains(&at);
        match secrets.iter().find(|secret| secret.contains(&at)) {
            // Always three, so that not even the length shows.
            Some(secret) if secret.start == at => {
                let marked = marked || (span.start < secret.end && secret.start < span.end);
                shown.push_str("***");
                carets.push_str(if marked { "^^^" } else { "   " });
            }
            Some(_) => {}
            None => {
                shown.push(if c.is_control() { ' ' } else { c });
                carets.push(if marked { '^' } else { ' ' });
            }
        }
    }
    if !carets.contains('^') {
        carets = format!("{}^", " ".repeat(line.get(..span.start).unwrap_or_default().chars().count()));
    }
    (shown.trim_end().to_owned(), carets.trim_end().to_owned())
}

/// The part of a very long line that the carets are about.
fn windowed(shown: &str, carets: &str) -> (String, String) {
    let first = carets.chars().take_while(|c| *c == ' ').count();
    if shown.chars().count() <= LINE_CHARS_MAX {
        return (shown.to_owned(), carets.to_owned());
    }
    let from = first.saturating_sub(LINE_CHARS_MAX / 2);
    let part = |text: &str| text.chars().skip(from).take(LINE_CHARS_MAX).collect::<String>();
    (part(shown), part(carets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_line_is_shown_around_what_is_wrong() {
        let line = format!("{}wrong{}", "a".repeat(1_000), "b".repeat(1_000));
        let (shown, carets) = masked(&line, &(1_000..1_005), &[]);
        let (shown, carets) = windowed(&shown, &carets);
        assert_eq!(shown.chars().count(), LINE_CHARS_MAX);
        assert_eq!(shown.get(carets.find('^').unwrap()..carets.len()), Some("wrong"));
    }

    #[test]
    fn passwords_in_the_file_are_not_shown() {
        for (line, span, shown, carets) in [
            ("url: amqp://u:secret@h/x", 5..24, "url: amqp://u:***@h/x", "     ^^^^^^^^^^^^^^^^"),
            ("url: amqp://u:s@h", 14..15, "url: amqp://u:***@h", "              ^^^"),
            ("url: amqp://${env:U}:s@h", 0..3, "url: amqp://${env:U}:***@h", "^^^"),
            ("url: amqp://u:${env:P}@h", 0..3, "url: amqp://u:${env:P}@h", "^^^"),
            ("url: amqp://u:a/b@c@h", 0..3, "url: amqp://u:***@h", "^^^"),
            ("sasl.password: hunter2", 0..3, "sasl.password: ***", "^^^"),
            (
                "h: { Authorization: Bearer s, B: \"${env:P}\" }",
                0..1,
                "h: { Authorization: ***, B: \"${env:P}\" }",
                "^",
            ),
            (
                "o: { sasl.password: hunter2, x: 1 }",
                29..30,
                "o: { sasl.password: ***, x: 1 }",
                "                         ^",
            ),
            (
                "o: { sasl.password: a, ssl.key.password: b }",
                0..1,
                "o: { sasl.password: ***, ssl.key.password: *** }",
                "^",
            ),
            ("url: [ mqtt://a:s@h, \"mqtts://b:s2@h\" ]", 0..3, "url: [ mqtt://a:***@h, \"mqtts://b:***@h\" ]", "^^^"),
            ("o: { password: \"hun,ter2\", x: 1 }", 0..1, "o: { password: ***, x: 1 }", "^"),
            ("o: { password: \"a\\\"b}c\", x: 1 }", 0..1, "o: { password: ***, x: 1 }", "^"),
            ("o: { password: 'a'',b}c', x: 1 }", 0..1, "o: { password: ***, x: 1 }", "^"),
            ("o: { password: 'a, b: 1 }", 0..1, "o: { password: ***", "^"),
            ("ssl.key.pem: -----BEGIN", 0..3, "ssl.key.pem: ***", "^^^"),
            ("\ta:\u{1b}[2J", 1..2, " a: [2J", " ^"),
            ("url: mqtt://h:1883", 5..18, "url: mqtt://h:1883", "     ^^^^^^^^^^^^^"),
        ] {
            assert_eq!(masked(line, &span, &hidden::in_text(line)), (shown.to_owned(), carets.to_owned()), "{line}");
        }
    }
}
