//! `${env:NAME}` and `${file:PATH}` in values (R30).

use std::ops::Range;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Resolver;
use super::value::{Item, beside};
use crate::config::Env;
use crate::config::raw::Node;

/// All but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where containers find their secrets: readable by all, and there are no others in a container.
const CONTAINER_SECRETS: &str = "/run/secrets";

/// Stands for a login with `--no-secrets`.
const NOT_LOOKED_UP: &str = "not-looked-up";

impl Resolver<'_> {
    /// `given` with its references filled in; percent-encoded where they are only a part of a URL. `None` if one of them
    /// has no value, which is reported, or is not to be looked up.
    pub(super) fn substituted(&mut self, item: &Item<'_>, given: &str, url: bool) -> Option<String> {
        let mut filled = String::with_capacity(given.len());
        let mut complete = true;
        let mut at = 0;
        while let Some(span) = next_reference(given, at) {
            filled.push_str(given.get(at..span.start).unwrap_or_default());
            let whole = span == (0..given.len());
            // A login makes no difference to what is checked; a host would.
            let is_login = url && given.get(span.end..).is_some_and(|behind| behind.contains('@'));
            match self.reference(item, given, &span) {
                None if is_login && self.env.no_secrets => filled.push_str(NOT_LOOKED_UP),
                Some(text) if url && !whole => filled.extend(utf8_percent_encode(&text, ENCODED)),
                Some(text) => filled.push_str(&text),
                None => complete = false,
            }
            at = span.end;
        }
        filled.push_str(given.get(at..).unwrap_or_default());
        complete.then_some(filled)
    }

    fn reference(&mut self, item: &Item<'_>, given: &str, span: &Range<usize>) -> Option<String> {
        let reference = given.get(span.clone()).unwrap_or_default();
        let inner = reference.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
        let found = match inner.and_then(|inner| inner.split_once(':')) {
            Some(("env" | "file", _)) if self.env.no_secrets => {
                self.unread += 1;
                return None;
            }
            Some(("env", name)) => (self.env.variable)(name)
                .map(|text| text.trim().to_owned())
                .ok_or_else(|| format!("the environment variable `{name}` is not set")),
            Some(("file", path)) => {
                let path = beside(item.place(), Path::new(path));
                let read = (self.env.file)(&path).map(|text| text.trim().to_owned());
                if read.is_ok() && (self.env.is_public)(&path) && !path.starts_with(CONTAINER_SECRETS) {
                    let wrong = format!("the secret in {} can be read by every user of this machine", path.display());
                    let hint = format!("`chmod o-r {}`", path.display());
                    self.mistakes.warning(&item.node.part(span.clone()), wrong, Some(hint));
                }
                read.map_err(|error| format!("the secret in {} cannot be read: {error}", path.display()))
            }
            _ => Err(format!("`{reference}` is neither `${{env:NAME}}` nor `${{file:PATH}}`")),
        };
        let hint = "`tidegate check --no-secrets` checks the rest of the file without secrets";
        match found {
            Ok(text) if text.is_empty() => {
                self.mistakes.error(&item.node.part(span.clone()), format!("`{reference}` is empty"), None);
                None
            }
            Ok(text) => Some(text),
            Err(wrong) => {
                let missing = inner.is_some_and(|inner| inner.starts_with("env:") || inner.starts_with("file:"));
                self.mistakes.error(&item.node.part(span.clone()), wrong, missing.then(|| hint.to_owned()));
                None
            }
        }
    }
}

/// A value's text with what its references stand for; those that have nothing stay as they are.
pub(in crate::config) fn filled(node: &Node, given: &str, env: &Env) -> String {
    let mut filled = String::with_capacity(given.len());
    let mut at = 0;
    while let Some(span) = next_reference(given, at) {
        filled.push_str(given.get(at..span.start).unwrap_or_default());
        let reference = given.get(span.clone()).unwrap_or_default();
        let inner = reference.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
        let found = match inner.and_then(|inner| inner.split_once(':')) {
            Some(("env", name)) => (env.variable)(name),
            Some(("file", path)) => (env.file)(&beside(&node.place, Path::new(path))).ok(),
            _ => None,
        };
        filled.push_str(found.as_deref().map_or(reference, str::trim));
        at = span.end;
    }
    filled.push_str(given.get(at..).unwrap_or_default());
    filled
}

/// The next `${...}` from byte `start` on, up to the end of the text where it is not closed.
fn next_reference(text: &str, start: usize) -> Option<Range<usize>> {
    let open = start + text.get(start..)?.find("${")?;
    let end = text.get(open..)?.find('}').map_or(text.len(), |len| open + len + 1);
    Some(open..end)
}
