//! A file of routes as it was read, and places in it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::hidden;

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// As the operator named it, so that a terminal can jump to it.
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Bytes that are not to be shown, in their order: by what `raw` made of the file.
    secrets: OnceLock<Vec<Range<usize>>>,
}

/// Bytes of a file, for a diagnostic to point at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    pub(super) span: Range<usize>,
}

impl Source {
    pub(super) const fn new(path: PathBuf, text: String) -> Self {
        Self { path, text, secrets: OnceLock::new() }
    }

    /// One without a text: for what is wrong with the file itself.
    pub(super) fn named(path: &Path) -> Self {
        Self::new(path.to_owned(), String::new())
    }

    /// What is secret of a file that has been read.
    pub(super) fn hide(&self, secrets: Vec<Range<usize>>) {
        // Read twice, it says the same.
        let _same = self.secrets.set(secrets);
    }

    /// Where secrets stand; by the text alone where the file is no YAML.
    pub(super) fn secrets(&self) -> &[Range<usize>] {
        self.secrets.get_or_init(|| hidden::in_text(&self.text))
    }

    /// The byte at a line and column that both count from 1, the column in characters.
    pub(super) fn byte_at(&self, line: usize, col: usize) -> usize {
        let start: usize = self.text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let text = self.text.get(start..).unwrap_or_default();
        start + text.char_indices().nth(col.saturating_sub(1)).map_or(text.len(), |(at, _)| at)
    }

    /// The line that holds byte `at`, counted from 1, and where it begins and ends without its line break.
    pub(super) fn line_of(&self, at: usize) -> (usize, Range<usize>) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        (before.matches('\n').count() + 1, self.line_at(at))
    }

    /// Where the line that holds byte `at` begins and ends. Of a long file the lines before are not counted.
    pub(super) fn line_at(&self, at: usize) -> Range<usize> {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text.get(start..).and_then(|text| text.find('\n')).map_or(self.text.len(), |len| start + len);
        start..end
    }
}

impl Place {
    /// A part of this place, given in bytes from its start.
    pub(super) fn part(&self, part: Range<usize>) -> Self {
        let at = |offset: usize| (self.span.start + offset).min(self.span.end);
        Self { source: Arc::clone(&self.source), span: at(part.start)..at(part.end) }
    }

    /// Where it begins, both counted from 1, the column in characters.
    pub(super) fn line_and_column(&self) -> (usize, usize) {
        let (line, bounds) = self.source.line_of(self.span.start);
        let before = self.source.text.get(bounds.start..self.span.start).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    pub(super) fn text(&self) -> &str {
        self.source.text.get(self.span.clone()).unwrap_or_default()
    }
}
