//! Where a file spells out secrets: behind keys that are named like one, in headers, and in URLs. Pure.
//!
//! More is masked than is warned of: any parameter of a URL and any header may hold a secret, but only of those that are named like one
//! it is sure enough to tell the operator.

use std::ops::Range;

use percent_encoding::percent_decode_str;

use super::raw::{Entry, Node, Value};
use super::source::{Place, Source};

/// Parts of the names of keys whose values are secret.
const SECRET_KEYS: [&str; 14] = [
    "password",
    "passphrase",
    "passwd",
    "secret",
    "token",
    "jaas.config",
    "key.pem",
    "private.key",
    "oauthbearer.config",
    "oauthbearer.extensions",
    "authorization",
    "cookie",
    "api-key",
    "api_key",
];

/// Ends of the names of those among them that say where a secret is, not what.
const PLACES: [&str; 4] = ["_file", ".file", ".location", ".url"];

/// Ends of the names of secret parameters of URLs, beside those of keys.
const SECRET_PARAMETERS: [&str; 14] = [
    "key",
    "sig",
    "signature",
    "auth",
    "pass",
    "pwd",
    "jwt",
    "code",
    "credential",
    "credentials",
    "sas",
    "bearer",
    "session",
    "sessionid",
];

/// Names of parameters of URLs whose values are shown; those of all others are not.
const HARMLESS_PARAMETERS: [&str; 8] =
    ["api-version", "format", "heartbeat", "region", "site", "tenant", "v", "version"];

/// Parts of the names of headers that are secret.
const SECRET_HEADERS: [&str; 10] =
    ["auth", "key", "token", "secret", "cookie", "session", "pass", "signature", "credential", "jwt"];

/// Before the names of headers, where their values are judged as those of a key: all are masked.
const HEADERS: &str = "headers.";

/// How a certificate or a key begins that stands where its file's name should.
const PEM: &str = "-----BEGIN ";

/// What is shown instead: always three, so that not even the length shows.
const MASK: &str = "***";

/// Whether the values of a key are secret, by its name.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let is_named = SECRET_KEYS.iter().any(|word| key.contains(word)) && !PLACES.iter().any(|end| key.ends_with(end));
    is_named || key.contains(HEADERS)
}

/// Whether a key is, or was meant as, the one with headers below.
fn is_headers(key: &str) -> bool {
    key.to_ascii_lowercase().starts_with("header")
}

/// Whether a header with this value is surely a secret.
pub(super) fn is_secret_header(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let scheme = value.split_once(' ').map_or("", |(scheme, _)| scheme);
    SECRET_HEADERS.iter().any(|part| name.contains(part))
        || ["bearer", "basic"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// Whether something at a place is not to be shown.
pub(super) fn is_at(place: &Place) -> bool {
    place.source.secrets().iter().any(|secret| secret.start < place.span.end && place.span.start < secret.end)
}

/// Whether a value is a certificate or a key itself.
pub(super) fn is_pem(value: &str) -> bool {
    value.contains(PEM)
}

/// Whether something of a key's value is not to be shown.
pub(super) fn is_hidden(key: &str, value: &str) -> bool {
    !in_value(key, value).is_empty()
}

/// A key's value as it may be shown.
pub(super) fn shown(key: &str, value: &str) -> String {
    masked(value, &in_value(key, value))
}

/// What a text says of a key's value, without the secrets in that value.
pub(super) fn without(key: &str, value: &str, text: &str) -> String {
    let secrets = in_value(key, value);
    let secrets = secrets.into_iter().filter_map(|secret| value.get(secret));
    secrets.fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
}

/// A message about a file, without passwords in what it quotes: a key may be a URL that lacks its quotes.
pub(super) fn said(text: String) -> String {
    if !text.contains('@') && !text.contains("://") {
        return text;
    }
    let quoted = text.split('`').enumerate().map(|(at, part)| {
        let mut secrets = if at % 2 == 1 { in_text(part) } else { Vec::new() };
        // Ours, in a hint.
        secrets.retain(|secret| part.get(secret.clone()) != Some("PASSWORD"));
        masked(part, &secrets)
    });
    quoted.collect::<Vec<_>>().join("`")
}

fn masked(text: &str, secrets: &[Range<usize>]) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut at = 0;
    for secret in secrets {
        shown.push_str(text.get(at..secret.start).unwrap_or_default());
        shown.push_str(MASK);
        at = secret.end;
    }
    shown.push_str(text.get(at..).unwrap_or_default());
    shown
}

/// Of a key's value.
fn in_value(key: &str, value: &str) -> Vec<Range<usize>> {
    let is_secret = is_secret_key(key) || is_headers(key);
    if !value.is_empty() && ((is_secret && !is_reference(value)) || is_pem(value)) {
        return std::iter::once(0..value.len()).collect();
    }
    let mut secrets = in_urls(value);
    if !value.contains("://") && ["url", "jwks"].iter().any(|end| key.ends_with(end)) {
        // Its scheme has been forgotten.
        secrets.extend(masked_parameters(value, 0));
    }
    joined(secrets)
}

/// Of a line of a file, in bytes of that line.
pub(super) fn in_line(source: &Source, line: &Range<usize>) -> Vec<Range<usize>> {
    let text = source.text.get(line.clone()).unwrap_or_default();
    let here = source.secrets().iter().filter(|secret| secret.start < line.end && line.start < secret.end);
    let mut secrets: Vec<_> = here
        .map(|secret| secret.start.max(line.start) - line.start..secret.end.min(line.end) - line.start)
        .filter_map(|secret| trimmed(text, secret))
        .collect();
    // A comment is in no tree.
    if let Some(comment) = text.find(" #") {
        let more = in_text(text.get(comment..).unwrap_or_default());
        secrets.extend(more.into_iter().map(|secret| comment + secret.start..comment + secret.end));
    }
    joined(secrets)
}

/// Of a file that could be read.
pub(super) fn in_tree(root: &Node) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    of_node("", root, &mut secrets);
    joined(secrets)
}

fn of_node(key: &str, node: &Node, secrets: &mut Vec<Range<usize>>) {
    match &node.value {
        // To YAML there is nothing: what was written there may be a mark of its own.
        Value::Null => secrets.extend(in_part(&node.place.source, node.place.source.line_at(node.place.span.start))),
        Value::Scalar(scalar) => {
            secrets.extend(in_value(key, &scalar.text).into_iter().map(|secret| node.part(secret).span));
            // A pair whose colon has been forgotten.
            let is_plain = !node.place.text().starts_with(['"', '\'', '|', '>']);
            secrets
                .extend(is_plain.then(|| in_part(&node.place.source, node.place.span.clone())).into_iter().flatten());
        }
        Value::List(items) => items.iter().for_each(|item| of_node(key, item, secrets)),
        Value::Map(entries) => {
            for entry in entries {
                let name = if is_headers(key) { format!("{HEADERS}{}", entry.key) } else { entry.key.clone() };
                // A key that is none: text in braces without quotes.
                secrets.extend(in_urls(&entry.key).into_iter().map(|secret| entry.place.part(secret).span));
                secrets.extend(in_part(&entry.place.source, marks_of(entry)));
                secrets.extend(is_secret_key(&name).then(|| behind(entry)).flatten());
                of_node(&name, &entry.value, secrets);
            }
        }
    }
}

/// What is between a key and what YAML takes for its value.
fn marks_of(entry: &Entry) -> Range<usize> {
    let (key_end, value) = (entry.place.span.end, &entry.value.place.span);
    let is_there = value.start > key_end && !value.is_empty();
    key_end..if is_there { value.start } else { entry.place.source.line_at(key_end).end }
}

fn in_part(source: &Source, part: Range<usize>) -> Vec<Range<usize>> {
    let text = source.text.get(part.clone()).filter(|text| text.len() > 3).unwrap_or_default();
    in_text(text).into_iter().map(|secret| part.start + secret.start..part.start + secret.end).collect()
}

/// All that stands behind a secret key: with marks of YAML's that are part of a secret to who wrote it.
fn behind(entry: &Entry) -> Option<Range<usize>> {
    if matches!(&entry.value.value, Value::Scalar(scalar) if is_reference(&scalar.text)) {
        return None;
    }
    let text = &entry.place.source.text;
    let key_end = entry.place.span.end;
    let start = key_end + text.get(key_end..)?.find(':')? + 1;
    let end = end_of(&entry.value).filter(|end| *end > start);
    let is_scalar = matches!(entry.value.value, Value::Scalar(_)) && !entry.value.place.span.is_empty();
    match end {
        Some(end) if is_scalar => Some(start..end),
        // Brackets are closed behind the last that is in them; an alias may stand elsewhere.
        end => {
            let from = end.unwrap_or(start);
            let line_end = entry.place.source.line_at(from).end;
            let is_list = matches!(&entry.value.value, Value::List(items) if !items.is_empty());
            let close = text.get(from..line_end)?.find(']').filter(|_| is_list);
            Some(start..close.map_or(line_end, |close| from + close + 1))
        }
    }
    .and_then(|secret| trimmed(text, secret))
}

fn end_of(node: &Node) -> Option<usize> {
    let within = match &node.value {
        Value::Null | Value::Scalar(_) => None,
        Value::List(items) => items.iter().filter_map(end_of).max(),
        Value::Map(entries) => {
            entries.iter().flat_map(|entry| [Some(entry.place.span.end), end_of(&entry.value)]).flatten().max()
        }
    };
    within.max(Some(node.place.span.end))
}

/// Of a text that may be no YAML, or only nearly.
pub(super) fn in_text(text: &str) -> Vec<Range<usize>> {
    let mut secrets = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let body = line.trim_end_matches(['\n', '\r']);
        secrets.extend(in_urls(body).into_iter().map(|secret| start + secret.start..start + secret.end));
        // Tokens such as `user:password@host`.
        for token in body.split([' ', '\t', '"', '\'', ',', '[', ']']).filter(|token| token.contains('@')) {
            let token = token.trim_start_matches('{');
            let at = start + (token.as_ptr().addr() - body.as_ptr().addr());
            secrets.extend(passwords_in(token).into_iter().map(|secret| at + secret.start..at + secret.end));
        }
        // Addresses that lack their scheme.
        for token in body.split([' ', '\t', '"', '\'', ',', '[', ']']).filter(|token| token.contains('?')) {
            let at = start + (token.as_ptr().addr() - body.as_ptr().addr());
            let is_bare = !token.contains("://") && token.split_once('?').is_some_and(|(_, query)| query.contains('='));
            let parameters = is_bare.then(|| masked_parameters(token, 0)).into_iter().flatten();
            secrets.extend(parameters.map(|secret| at + secret.start..at + secret.end));
        }
        secrets.extend(pem_from(text, start, body));
        for end in secret_keys_in(body) {
            secrets.extend(behind_in_text(text, start, body, end));
        }
        start += line.len();
    }
    joined(secrets)
}

/// Where names of secret keys end in a line.
fn secret_keys_in(line: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    for name in line.split_inclusive(|c: char| !is_of_key(c)) {
        let key = name.trim_end_matches(|c: char| !is_of_key(c));
        // In a reference it is a word of the reference.
        let in_reference = line.get(..at).is_some_and(|before| before.ends_with("${"));
        if (is_secret_key(key) || is_headers(key)) && !in_reference {
            ends.push(at + key.len());
        }
        at += name.len();
    }
    ends
}

/// What stands behind the key that ends at byte `end` of a line, which begins at byte `start` of the text.
fn behind_in_text(text: &str, start: usize, line: &str, end: usize) -> Vec<Range<usize>> {
    let rest = line.get(end..).unwrap_or_default();
    let unquoted = rest.strip_prefix(['"', '\'']).unwrap_or(rest);
    let separated = unquoted.trim_start();
    let key_start = line.get(..end).unwrap_or_default().trim_start_matches(['-', ' ', '\t', '"', '\'']);
    let is_first = key_start.chars().all(is_of_key);
    let value = match separated.strip_prefix([':', '=']) {
        // A comparison.
        Some(value) if separated.starts_with("==") || value.starts_with(':') => return Vec::new(),
        Some(value) => value,
        // The colon has been forgotten.
        None if is_first && unquoted.len() > separated.len() => separated,
        None => return Vec::new(),
    };
    let body = value.trim_start();
    let at = start + line.len() - body.len();
    let in_braces = line.get(..end).is_some_and(|before| before.contains(['{', '[']));
    let mut secrets = Vec::new();
    if !is_reference(body.trim_end().trim_end_matches([',', '}', ' ']).trim_matches(['"', '\''])) {
        let quoted = text.get(at..).and_then(quoted_len).unwrap_or_default();
        let behind = text.get(at + quoted..).unwrap_or_default();
        let behind = behind.split(['\n', '\r']).next().unwrap_or_default();
        let plain = behind.find([',', '}']).filter(|_| in_braces).unwrap_or(behind.len());
        let of_flow = text.get(at..).filter(|_| in_braces).and_then(flow_len);
        let secret = at..at + of_flow.unwrap_or(quoted + plain);
        let value = text.get(secret.clone()).unwrap_or_default().trim().trim_matches(['"', '\'']);
        secrets.extend(trimmed(text, secret).filter(|_| !is_reference(value)));
    }
    if !in_braces || body.is_empty() {
        let indent = if in_braces { None } else { Some(line.len() - line.trim_start().len()) };
        secrets.extend(indented(text, start + line.len(), indent, body.is_empty()));
    }
    secrets
}

/// The length of the section or list in brackets that a text begins with; all of it where it is not closed. `None`: it begins with none.
fn flow_len(text: &str) -> Option<usize> {
    text.starts_with(['{', '[']).then_some(())?;
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    Some(text.len())
}

/// Lines from byte `from` on that are further to the right than `indent`; where there is none only the first line.
fn indented(text: &str, from: usize, indent: Option<usize>, is_value: bool) -> Option<Range<usize>> {
    let mut end = from;
    let mut lines = 0;
    for line in text.get(from..)?.split_inclusive('\n') {
        let body = line.trim();
        let own = line.len() - line.trim_start().len();
        let is_within = body.is_empty() || indent.map_or(is_value && lines == 0, |indent| own > indent);
        if !is_within {
            break;
        }
        lines += usize::from(!body.is_empty());
        end += line.len();
    }
    trimmed(text, from..end)
}

/// A key in PEM, to where it ends or the text does.
fn pem_from(text: &str, start: usize, line: &str) -> Option<Range<usize>> {
    let from = start + line.find(PEM)?;
    let end = text.get(from..)?.find("-----END").map_or(text.len(), |len| from + len);
    Some(from..end)
}

const fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// Without white space around it; `None` where nothing is left.
fn trimmed(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let part = text.get(range.clone())?;
    let start = range.start + part.len() - part.trim_start().len();
    let part = part.trim();
    (!part.is_empty()).then(|| start..start + part.len())
}

/// In their order; those that overlap are one.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The length of the text in quotes that `value` begins with; all of it where they are not closed. `None`: it begins with none.
fn quoted_len(value: &str) -> Option<usize> {
    let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut chars = value.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        let doubled = quote == '\'' && c == quote && chars.peek().is_some_and(|(_, next)| *next == quote);
        if doubled || (quote == '"' && c == '\\') {
            chars.next();
        } else if c == quote {
            return Some(at + 1);
        }
    }
    Some(value.len())
}

/// Whether a value is `${..}` and no more, but for a word before it such as `Bearer`.
fn is_reference(value: &str) -> bool {
    let Some((before, rest)) = value.split_once("${") else { return false };
    let mut is_whole =
        before.is_empty() || before.strip_suffix(' ').is_some_and(|word| word.chars().all(|c| c.is_ascii_alphabetic()));
    let mut rest = Some(rest);
    while let Some(text) = rest {
        let behind = text.split_once('}').map_or("", |(_, behind)| behind);
        rest = behind.strip_prefix("${");
        is_whole &= behind.is_empty() || rest.is_some();
    }
    is_whole
}

/// Passwords, parameters and fragments of the URLs that a text spells out.
fn in_urls(text: &str) -> Vec<Range<usize>> {
    let parameters = starts_in(text).flat_map(|start| masked_parameters(text, start));
    joined(passwords_in(text).into_iter().chain(parameters).collect())
}

/// What of a URL is surely a secret and spelled out, in parameters and fragment: by their names.
pub(super) fn secret_parameters_in(url: &str) -> Vec<Range<usize>> {
    let pairs = starts_in(url).flat_map(|start| parameters_from(url, start));
    let secret = pairs.filter(|(name, value)| {
        is_secret_parameter(name) && url.get(value.clone()).is_some_and(|value| !value.contains("${"))
    });
    secret.map(|(_, value)| value).collect()
}

/// Where the URLs of a text begin, behind their schemes.
fn starts_in(text: &str) -> impl Iterator<Item = usize> {
    text.match_indices("://").map(|(at, mark)| at + mark.len())
}

/// Of the URL that begins at byte `start`: all parameters that are not known to be harmless and no references.
fn masked_parameters(text: &str, start: usize) -> impl Iterator<Item = Range<usize>> {
    let pairs = parameters_from(text, start).into_iter();
    pairs.filter(|(name, _)| !HARMLESS_PARAMETERS.contains(&&**name)).map(|(_, value)| value)
}

/// Names and values of what stands behind `?` and `#` of a URL (`?token=..#sig=..`), but for values that are references. What has no name is
/// all value.
fn parameters_from(text: &str, start: usize) -> Vec<(String, Range<usize>)> {
    let rest = text.get(start..).unwrap_or_default();
    let url = rest.split([' ', '"', '\'', '`', '\t', '\n']).next().unwrap_or_default();
    let Some(query) = url.find(['?', '#']).map(|at| at + 1) else { return Vec::new() };
    let mut found = Vec::new();
    let mut at = start + query;
    for pair in url.get(query..).unwrap_or_default().split(['&', '?', '#']) {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) if !value.trim_matches('=').is_empty() => (name, value),
            Some(_) | None => ("", pair),
        };
        if !value.is_empty() && !is_reference(value) {
            let name = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
            found.push((name, at + pair.len() - value.len()..at + pair.len()));
        }
        at += pair.len() + 1;
    }
    found
}

/// Whether the values of a URL's parameter are secret, by its name.
fn is_secret_parameter(name: &str) -> bool {
    name == "st" || is_secret_key(name) || SECRET_PARAMETERS.iter().any(|end| name.ends_with(end))
}

/// Passwords of the URLs that a text spells out; none that is a reference such as `${env:X}`.
pub(super) fn passwords_in(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(scheme) = text.get(from..).and_then(|rest| rest.find("://")).map(|at| from + at + 3) {
        let authority = text.get(scheme..).unwrap_or_default();
        let authority = authority.split([' ', '"', '\'', '\t', '\n']).next().unwrap_or_default();
        let password = password_of(authority);
        found.extend(password.map(|password| scheme + password.start..scheme + password.end));
        from = scheme;
    }
    let start = text.len() - text.trim_start().len();
    let bare = text.trim();
    // `user:password@host`: its scheme has been forgotten.
    if found.is_empty() && from == 0 && !bare.contains(char::is_whitespace) {
        let password = password_of(bare).filter(|password| {
            let user = bare.get(..password.start).unwrap_or_default();
            let host = bare.get(password.end + 1..).unwrap_or_default();
            (user.contains("${") || !user.contains('/')) && !host.is_empty()
        });
        found.extend(password.map(|password| start + password.start..start + password.end));
    }
    joined(found)
}

/// Of `user:password@host`.
fn password_of(authority: &str) -> Option<Range<usize>> {
    let at = authority.rfind('@')?;
    // The colon of `${env:USER}` is not the one before the password.
    let mut depth = 0_usize;
    let mut colon = None;
    for (here, c) in authority.get(..at)?.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => {
                colon = Some(here);
                break;
            }
            _ => {}
        }
    }
    let password = colon? + 1..at;
    let spelled = authority.get(password.clone())?;
    let reference = spelled.starts_with("${") && spelled.ends_with('}') && spelled.matches("${").count() == 1;
    (!spelled.is_empty() && !reference).then_some(password)
}
