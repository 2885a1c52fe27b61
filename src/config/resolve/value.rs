//! Reading single values: each function reports what is wrong with a value at its place and answers `None` then, so that
//! the caller goes on with the default and finds the next mistake.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Resolver;
use super::broker::YEAR;
use crate::config::hidden;
use crate::config::keys::{self, Keys};
use crate::config::quotes::Written;
use crate::config::raw::{Entry, Node, ScalarKind, Value};
use crate::config::source::Place;
use crate::units::{ByteSize, Rate, UnitError, parse_duration, show_duration};

/// A value with the words for it in messages.
#[derive(Clone, Debug)]
pub(super) struct Item<'n> {
    pub(super) node: &'n Node,
    /// Where to point if the value itself has no extent: its key.
    key: &'n Place,
    /// `max_size`, as in "`max_size` needs ...".
    pub(super) name: &'n str,
    /// One of several behind that name.
    in_list: bool,
}

/// A scalar's text, secrets filled in.
#[derive(Clone, Debug)]
pub(super) struct Text<'n> {
    pub(super) item: Item<'n>,
    /// With secrets: never to be shown.
    pub(super) value: String,
    /// As the file has it: for messages.
    pub(super) given: &'n str,
}

/// A map whose keys have been checked.
#[derive(Debug)]
pub(super) struct Section<'n> {
    keys: &'static Keys,
    /// By the key that was meant: what stands behind a misspelled one is checked too.
    entries: Vec<(&'static str, &'n Entry)>,
    /// Where to point at when something is missing.
    pub(super) place: Place,
    /// What stands there is no section, which has been reported: nothing is to be missed in it.
    pub(super) is_wrong: bool,
}

impl Entry {
    pub(super) fn item(&self) -> Item<'_> {
        Item { node: &self.value, key: &self.place, name: &self.key, in_list: false }
    }
}

impl<'n> Item<'n> {
    /// One of a list's.
    pub(super) fn of_list(list: &Self, node: &'n Node) -> Self {
        Self { node, key: list.key, name: list.name, in_list: true }
    }

    pub(super) fn place(&self) -> &'n Place {
        // What has no extent (nothing behind the key) or begins further down (lists, sections) is shown by its key.
        if self.in_list || matches!(self.node.value, Value::Scalar(_)) { &self.node.place } else { self.key }
    }
}

impl<'n> Item<'n> {
    /// As it stands in the line of its key, and where.
    fn written(&self) -> Option<(Written<'n>, Place)> {
        if self.in_list || self.key.span.is_empty() {
            return None;
        }
        let line = self.key.source.line_at(self.key.span.start);
        let text = self.key.source.text.get(line.clone())?;
        let written = Written::behind_key(text, self.key.span.end.checked_sub(line.start)?)?;
        let start = line.start + written.start;
        let place = Place { source: Arc::clone(&self.key.source), span: start..start + written.value.len() };
        (written.key == self.name).then_some((written, place))
    }
}

impl Text<'_> {
    /// Whether secrets were filled in.
    pub(super) fn is_substituted(&self) -> bool {
        self.value != self.given
    }

    pub(super) fn place(&self) -> &Place {
        self.item.place()
    }

    /// As the file has it, for messages, but for passwords that stand in it.
    pub(super) fn shown(&self) -> String {
        hidden::shown(self.item.name, self.given)
    }

    /// The place of bytes of [`Text::value`]; the whole value where secrets were filled in.
    pub(super) fn part(&self, part: Range<usize>) -> Place {
        if self.is_substituted() { self.place().clone() } else { self.item.node.part(part) }
    }
}

impl<'n> Section<'n> {
    /// The value behind `key`, which the section's table has to name.
    pub(super) fn get(&self, key: &'static str) -> Option<Item<'n>> {
        debug_assert!(self.keys.accepted.contains(&key), "`{key}` is missing in config::keys");
        self.entries.iter().find(|(meant, _)| *meant == key).map(|(_, entry)| entry.item())
    }
}

impl Resolver<'_> {
    /// Opens a section and reports its unknown, repeated and not yet built keys.
    pub(super) fn section<'n>(&mut self, item: &Item<'n>, keys: &'static Keys) -> Section<'n> {
        let place = item.place().clone();
        let entries = self.entries(item);
        let is_wrong = matches!(item.node.value, Value::Scalar(_) | Value::List(_));
        let mut section = Section { keys, entries: Vec::new(), place, is_wrong };
        let is_wrong = is_wrong || self.is_hollow(item.key);
        section.is_wrong = is_wrong;
        let mut unknown = Vec::new();
        let mut beside: Vec<(&Entry, Vec<&Entry>)> = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let key = entry.key.as_str();
            if let Some((_, first)) = section.entries.iter().find(|(_, earlier)| earlier.key == key) {
                self.repeated(entry, first, "key");
            } else if let Some(known) = keys.accepted.iter().find(|known| **known == key) {
                section.entries.push((known, entry));
            } else if keys.planned.contains(&key) {
                self.not_built(&entry.place, key);
            } else if let Some(parent) = empty_parent(entries.get(..at).unwrap_or_default(), key, keys) {
                match beside.iter_mut().find(|(known, _)| known.key == parent.key) {
                    Some((_, children)) => children.push(entry),
                    None => beside.push((parent, vec![entry])),
                }
            } else {
                self.unknown_key(entry, keys);
                unknown.push(entry);
            }
        }
        for (parent, children) in beside {
            self.stand_beside(parent, &children);
            // What it is without its keys is not to be told too.
            section.entries.retain(|(key, _)| *key != parent.key || keys::is_kind(key));
        }
        for entry in unknown {
            // What a known key of another program says is not looked at: its values are others.
            let is_foreign = keys::habit(keys, &entry.key).is_some();
            let meant = keys::nearest(&entry.key, keys.accepted.iter().copied()).filter(|_| !is_foreign);
            if let Some(meant) = meant.filter(|meant| section.get(meant).is_none()) {
                section.entries.push((meant, entry));
            }
        }
        section
    }

    /// Keys that are not indented as what they belong to.
    fn stand_beside(&mut self, parent: &Entry, children: &[&Entry]) {
        let Some(first) = children.first() else { return };
        let (stand, belong) = if children.len() == 1 { ("stands", "belongs") } else { ("stand", "belong") };
        let names = listed(children.iter().map(|child| &child.key));
        let wrong = format!("{names} {stand} beside `{}:`, and {belong} beneath it", parent.key);
        self.mistakes.error(&first.place, wrong, format!("indent it further to the right than `{}:`", parent.key));
        self.hollow.push(parent.place.clone());
    }

    fn is_hollow(&self, key: &Place) -> bool {
        self.hollow.iter().any(|place| Arc::ptr_eq(&place.source, &key.source) && place.span == key.span)
    }

    /// The entries of a map; none where nothing stands behind the key.
    pub(super) fn entries<'n>(&mut self, item: &Item<'n>) -> &'n [Entry] {
        match &item.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Scalar(_) | Value::List(_) => {
                let hint = match item.name {
                    "links" => Some("write each link as `NAME:` with its keys below, without a `-`"),
                    "mqtt" | "rabbitmq" => Some("such as `{ url: \"...\" }`"),
                    "rate" => Some("such as `{ messages: 2000/s, bytes: 1MiB/s }`"),
                    name if keys::is_of_remote(name) => {
                        Some("if it is a key of the link above, indent it further to the right")
                    }
                    "kafka" => Some("such as `{ brokers: [\"127.0.0.1:9092\"] }`"),
                    _ => None,
                };
                self.wrong_type(item, "a section with keys", hint.map(str::to_owned));
                &[]
            }
        }
    }

    /// The items of a list; a single value is a list of one.
    pub(super) fn items<'n>(&mut self, item: &Item<'n>) -> Vec<Item<'n>> {
        match &item.node.value {
            Value::List(nodes) => nodes.iter().map(|node| Item::of_list(item, node)).collect(),
            Value::Null => Vec::new(),
            Value::Scalar(_) | Value::Map(_) => vec![item.clone()],
        }
    }

    pub(super) fn repeated(&mut self, entry: &Entry, first: &Entry, what: &str) {
        let (line, _) = first.place.source.line_of(first.place.span.start);
        let file = first.place.source.path.display();
        let text = format!("the {what} `{}` is there twice", entry.key);
        self.mistakes.error(&entry.place, text, format!("the first is at {file}:{line}"));
    }

    pub(super) fn not_built(&mut self, place: &Place, what: &str) {
        let text = format!("`{what}` is not built yet in this version");
        self.mistakes.error(place, text, "take it out; docs/routes.md names what this version knows".to_owned());
    }

    fn unknown_key(&mut self, entry: &Entry, keys: &'static Keys) {
        let key = entry.key.as_str();
        let meant = keys::nearest(key, keys.accepted.iter().copied());
        let of_routes = keys::ALL.iter().filter(|_| keys::ALL.iter().any(|own| own.section == keys.section));
        // Of a quite different part of the file only the name is the same.
        let part = |section: &'static str| section.split('.').next().unwrap_or_default();
        let is_near = |other: &Keys| {
            keys.section.is_empty() || other.section.is_empty() || part(other.section) == part(keys.section)
        };
        let elsewhere = || {
            let mut others = of_routes.clone().filter(|other| is_near(other));
            others.find(|other| other.accepted.contains(&key)).map(|other| other.section)
        };
        let hint = match (meant, elsewhere()) {
            _ if keys::habit(keys, key).is_some() => keys::habit(keys, key).unwrap_or_default().to_owned(),
            (Some(meant), _) => format!("did you mean `{meant}`?"),
            _ if keys.section.is_empty() && looks_like_link(entry) => {
                format!("if `{key}` is a link, indent it below `links:`")
            }
            (None, Some("")) => format!("`{key}` stands at the top level, not in a section"),
            (None, Some(section)) => format!("`{key}` belongs to `{section}`"),
            (None, None) => format!("known here: {}", listed(keys.accepted)),
        };
        let of = match keys.section {
            "" => "at the top level".to_owned(),
            section if section == keys::SUITE.section => format!("in {section}"),
            section => format!("in `{section}`"),
        };
        self.mistakes.error(&entry.place, format!("unknown key `{key}` {of}"), hint);
    }

    pub(super) fn wrong_type(&mut self, item: &Item<'_>, wanted: &str, hint: Option<String>) {
        let name = item.name;
        let text = match &item.node.value {
            _ if item.in_list => format!("what `{name}` lists needs to be {wanted}, not {}", item.node.describe()),
            Value::Null => format!("nothing stands behind `{name}`: it needs {wanted}"),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => {
                format!("`{name}` needs {wanted}, not {}", item.node.describe())
            }
        };
        self.mistakes.error(item.place(), text, hint);
    }

    /// Any scalar, as text with secrets filled in. `None` also where a secret is missing, which is reported, or not
    /// looked up.
    pub(super) fn text<'n>(&mut self, item: Option<Item<'n>>) -> Option<Text<'n>> {
        self.text_with(item, false)
    }

    /// Text that is a URL: what is filled into it is percent-encoded.
    pub(super) fn url_text<'n>(&mut self, item: Option<Item<'n>>) -> Option<Text<'n>> {
        let text = self.text_with(item, true)?;
        for secret in hidden::secret_parameters_in(text.given) {
            self.plain_secret(&text.item.node.part(secret));
        }
        Some(text)
    }

    fn text_with<'n>(&mut self, item: Option<Item<'n>>, url: bool) -> Option<Text<'n>> {
        let item = item?;
        let written = item.written();
        if let Some((written, place)) = written.as_ref().filter(|(written, _)| is_tag(written.value)) {
            let Written { key, value, .. } = written;
            let sigil = value.split(|c: char| c.is_whitespace()).next().unwrap_or_default();
            let is_secret = hidden::is_at(place);
            let mark = if is_secret || hidden::is_hidden(key, sigil) {
                // The mark is the secret.
                sigil.chars().take_while(|c| matches!(c, '!' | '&')).collect::<String>() + ".."
            } else {
                sigil.to_owned()
            };
            let wrong = format!("`{key}`: YAML takes `{mark}` for a mark of its own, not for a part of the text");
            let hint = if is_secret { Written::hint_without(key) } else { written.hint() };
            self.mistakes.error(place, wrong, hint);
            return None;
        }
        let Value::Scalar(scalar) = &item.node.value else {
            let quotes =
                || written.filter(|(written, _)| TEXTS.contains(&written.key)).map(|(written, _)| written.hint());
            self.wrong_type(&item, "a value", unquoted_capture(&item).or_else(quotes));
            return None;
        };
        let given = scalar.text.as_str();
        let value = self.substituted(&item, given, url)?;
        if value.is_empty() {
            self.mistakes.error(item.place(), format!("`{}` is empty", item.name), None);
            return None;
        }
        Some(Text { item, value, given })
    }

    pub(super) fn boolean(&mut self, item: Option<Item<'_>>) -> Option<bool> {
        let item = item?;
        if let Value::Scalar(scalar) = &item.node.value
            && let ScalarKind::Bool(value) = scalar.kind
        {
            return Some(value);
        }
        let mut meant = None;
        if matches!(item.node.value, Value::Scalar(_)) {
            let text = self.text(Some(item.clone()))?;
            meant = match text.value.to_ascii_lowercase().as_str() {
                "true" => return Some(true),
                "false" => return Some(false),
                "yes" | "on" | "1" => Some("true"),
                "no" | "off" | "0" => Some("false"),
                _ => None,
            };
        }
        self.wrong_type(&item, "`true` or `false`", meant.map(|meant| format!("write `{meant}`")));
        None
    }

    /// A whole number without a unit.
    pub(super) fn number(&mut self, item: Option<Item<'_>>, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(item)?;
        match text.value.replace('_', "").parse::<u64>() {
            Ok(number) if range.contains(&number) => Some(number),
            Ok(_) | Err(_) => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                self.mistakes.error(text.place(), format!("`{}` needs {wanted}", text.item.name), None);
                None
            }
        }
    }

    pub(super) fn size(&mut self, item: Option<Item<'_>>, range: RangeInclusive<ByteSize>) -> Option<ByteSize> {
        self.unit(item, ByteSize::parse, range, ByteSize::to_string)
    }

    pub(super) fn duration(&mut self, item: Option<Item<'_>>, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.unit(item, parse_duration, range, |duration| match duration.as_secs() / YEAR.as_secs() {
            years if years >= 2 => format!("{} ({years} years)", show_duration(*duration)),
            _ => show_duration(*duration),
        })
    }

    /// `100/s`.
    pub(super) fn count_rate(&mut self, item: Option<Item<'_>>) -> Option<Rate> {
        self.rate(item, Rate::parse_count)
    }

    /// `64KiB/s`.
    pub(super) fn byte_rate(&mut self, item: Option<Item<'_>>) -> Option<Rate> {
        self.rate(item, Rate::parse_bytes)
    }

    fn rate(&mut self, item: Option<Item<'_>>, parse: fn(&str) -> Result<Rate, UnitError>) -> Option<Rate> {
        let text = self.text(item)?;
        let parsed = parse(&text.value).ok();
        if parsed.is_none() {
            // By the text of the file, as for a unit.
            let error = parse(text.given).err().map_or_else(|| "no value with a unit".to_owned(), |e| e.to_string());
            let error = hidden::without(text.item.name, text.given, &error);
            // An amount without a time.
            let meant = format!("{}/s", text.given);
            let hint = parse(&meant).is_ok().then(|| format!("did you mean `{meant}`?"));
            self.mistakes.error(text.place(), format!("`{}`: {error}", text.item.name), hint);
        }
        parsed
    }

    fn unit<T: PartialOrd>(
        &mut self,
        item: Option<Item<'_>>,
        parse: fn(&str) -> Result<T, UnitError>,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let text = self.text(item)?;
        let name = text.item.name;
        match parse(&text.value) {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => {
                let wanted = format!("`{name}` has to be from {} to {}", show(range.start()), show(range.end()));
                self.mistakes.error(text.place(), wanted, None);
                None
            }
            Err(_) => {
                // By the text of the file, since the value may be a secret that landed in the wrong place.
                let error =
                    parse(text.given).err().map_or_else(|| "no value with a unit".to_owned(), |e| e.to_string());
                let error = hidden::without(name, text.given, &error);
                self.mistakes.error(text.place(), format!("`{name}`: {error}"), None);
                None
            }
        }
    }

    /// A mistake in a part of a text, described by words of that text: kept back where they may be a secret's.
    pub(super) fn wrong_part(&mut self, text: &Text<'_>, part: Range<usize>, wrong: String, hint: Option<String>) {
        if text.is_substituted() {
            let wrong = format!("`{}` is wrong once its `${{..}}` is filled in", text.shown());
            self.mistakes.error(text.place(), wrong, NOT_SHOWN.to_owned());
        } else if hidden::is_pem(text.given) {
            let wrong = format!("`{}` needs the path of a file, not what stands in it", text.item.name);
            self.mistakes.error(text.place(), wrong, None);
        } else {
            let without = |words: &str| hidden::without(text.item.name, text.given, words);
            let (wrong, hint) = (without(&wrong), hint.as_deref().map(without));
            self.mistakes.error(&text.part(part), wrong, hint);
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Clone>(&mut self, item: Option<Item<'_>>, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(item)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.value) {
            return Some(value.clone());
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let hint = keys::nearest(text.given, words.iter().copied()).map(|word| format!("did you mean `{word}`?"));
        let wrong = format!("`{}` is none of the choices for `{}`: {}", text.shown(), text.item.name, listed(&words));
        self.mistakes.error(text.place(), wrong, hint);
        None
    }

    /// `127.0.0.1:1883`.
    pub(super) fn socket_addr(&mut self, item: Option<Item<'_>>) -> Option<SocketAddr> {
        let text = self.text(item)?;
        if let Ok(addr) = text.value.parse() {
            return Some(addr);
        }
        let hint = if text.value.parse::<u16>().is_ok() {
            Some(format!("write `127.0.0.1:{0}`, or `0.0.0.0:{0}` for all networks", text.shown()))
        } else {
            Some("such as `127.0.0.1:1883` or `[::1]:1883`; names are not looked up here".to_owned())
        };
        let wrong = format!("`{}` is no address and port", text.shown());
        self.mistakes.error(text.place(), wrong, hint);
        None
    }

    /// A path, relative ones from the folder of the file (R30).
    pub(super) fn path(&mut self, item: Option<Item<'_>>) -> Option<PathBuf> {
        let text = self.text(item)?;
        Some(beside(text.place(), Path::new(&text.value)))
    }

    /// A path to a file that has to be there.
    pub(super) fn readable(&mut self, item: Option<Item<'_>>) -> Option<PathBuf> {
        let text = self.text(item)?;
        let path = beside(text.place(), Path::new(&text.value));
        if !self.env.no_secrets
            && let Err(error) = (self.env.file)(&path)
        {
            let wrong = format!("{}: {error}", path.display());
            self.wrong_part(&text, 0..text.given.len(), wrong, None);
        }
        Some(path)
    }
}

/// `path` as seen from the file that `place` is in, without the `./` that would only make messages longer.
pub(in crate::config) fn beside(place: &Place, path: &Path) -> PathBuf {
    let path = place.source.path.parent().unwrap_or_else(|| Path::new("")).join(path);
    let short: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    if short.as_os_str().is_empty() { PathBuf::from(".") } else { short }
}

/// The section before `key` that has nothing in it and should have `key`.
fn empty_parent<'n>(before: &'n [Entry], key: &str, keys: &Keys) -> Option<&'n Entry> {
    let parent = before.iter().rev().find(|entry| matches!(entry.value.value, Value::Null))?;
    let dot = if keys.section.is_empty() { "" } else { "." };
    let name = format!("{}{dot}{}", keys.section, parent.key);
    let below = keys::ALL.iter().find(|below| below.section == name)?;
    below.accepted.contains(&key).then_some(parent)
}

/// A section that says what a remote is.
fn looks_like_link(entry: &Entry) -> bool {
    let Value::Map(entries) = &entry.value.value else { return false };
    entries.iter().any(|entry| matches!(entry.key.as_str(), "mqtt" | "rabbitmq" | "kafka"))
}

/// What is filled in is not shown, and not to be written into the file either.
pub(super) const NOT_SHOWN: &str =
    "look at what `${..}` stands for: it may be a secret, so it is not shown here, and does not belong into the file";

/// Keys of texts that look like something else to YAML.
const TEXTS: [&str; 2] = ["where", "payload"];

/// A tag or an anchor to YAML, to people the first word of a condition.
fn is_tag(value: &str) -> bool {
    (value.starts_with('!') && !value.starts_with("!!")) || value.starts_with("&&")
}

/// `to: {rest}` without quotes is a section to YAML.
fn unquoted_capture(item: &Item<'_>) -> Option<String> {
    let Value::Map(entries) = &item.node.value else { return None };
    match entries.as_slice() {
        [Entry { key, place, value: Node { value: Value::Null, .. } }]
            if !hidden::is_hidden(item.name, key) && !hidden::is_at(place) =>
        {
            Some(format!("text that begins with `{{` needs quotes: `\"{{{key}}}\"`"))
        }
        _ => None,
    }
}

/// "`a`, `b`, `c`".
pub(in crate::config) fn listed<T: Display>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
