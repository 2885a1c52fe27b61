//! What `routes.yaml` says, key by key as it is written, so that the operator is told what a reload changes. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of the file that is told of by itself, in the order in which they are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// The keys at the top that are no sections.
    Top,
    /// `admin`.
    Admin,
    /// `broker`, but for its listeners.
    Broker,
    /// One of `broker.listeners`, by where it is bound.
    Listener(String),
    /// One of `links`, by its name.
    Link(String),
    /// One of `routes`, by its name.
    Route(String),
}

impl Entry {
    /// Without a word in the file too.
    const fn is_always_there(&self) -> bool {
        matches!(self, Self::Top | Self::Broker)
    }
}

/// As it stands in a message.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => f.write_str("the gateway"),
            Self::Admin => f.write_str("admin"),
            Self::Broker => f.write_str("broker"),
            Self::Listener(bind) => write!(f, "listener {bind}"),
            Self::Link(name) => write!(f, "link {name}"),
            Self::Route(name) => write!(f, "route {name}"),
        }
    }
}

/// The keys of each entry with their values, as written: a secret's place, never the secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// By entry, then by key (`buffer.max_size`).
    pub entries: BTreeMap<Entry, BTreeMap<String, String>>,
    /// By entry and key, a sum of what is not shown: of secrets that stand in the file, and of what its `${..}` stand for.
    pub hidden: Hidden,
}

/// Sums of secrets by entry and key. They are never shown either.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden(pub BTreeMap<(Entry, String), u64>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What happens to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another.
    Changed,
    /// It has another name.
    Renamed,
}

/// One line of a diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happens.
    pub sign: Sign,
    /// To what.
    pub what: String,
    /// In words: the keys that are others, with both values.
    pub details: Vec<String>,
}

/// `~ link cloud: buffer.max_size 1GiB -> 10GiB`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.sign {
            Sign::Added => '+',
            Sign::Removed => '-',
            Sign::Changed => '~',
            Sign::Renamed => '>',
        };
        write!(f, "{sign} {}", self.what)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details.join(", ")) }
    }
}

impl Outline {
    /// What is to be told of a change from this to `next`. `other` are entries that are others although they are written alike: a
    /// secret, or a file, that they name has changed. `notes` say what else has become of entries.
    #[must_use]
    pub fn changes(&self, next: &Self, other: &[Entry], notes: &BTreeMap<Entry, Vec<String>>) -> Vec<Change> {
        let none = BTreeMap::new();
        let known = self.entries.keys().chain(next.entries.keys());
        let mut all: Vec<&Entry> = known.chain(other).chain(notes.keys()).collect();
        all.sort();
        all.dedup();
        let renamed: Vec<(&str, &str)> = self.renamed(next, notes).collect();
        let mut changes = Vec::new();
        for entry in all {
            let (before, after) = (self.entries.get(entry), next.entries.get(entry));
            let name = match entry {
                Entry::Link(name) => name.as_str(),
                Entry::Top | Entry::Admin | Entry::Broker | Entry::Listener(_) | Entry::Route(_) => "",
            };
            let old = renamed.iter().find(|(_, new)| *new == name).map(|(old, _)| *old);
            let noted = || notes.get(entry).cloned().unwrap_or_default();
            let change = match (before, after, old) {
                (Some(_), None, _) if renamed.iter().any(|(old, _)| *old == name) => continue,
                (None, Some(after), Some(old)) => {
                    let before = self.entries.get(&Entry::Link(old.to_owned())).unwrap_or(&none);
                    let what = format!("link {old} is link {name} now");
                    let details = details(before, after).into_iter().chain(noted()).collect();
                    Change { sign: Sign::Renamed, what, details }
                }
                (None, Some(_), None) if !entry.is_always_there() => {
                    Change { sign: Sign::Added, what: entry.to_string(), details: noted() }
                }
                (Some(_), None, _) if !entry.is_always_there() => {
                    Change { sign: Sign::Removed, what: entry.to_string(), details: noted() }
                }
                (before, after, _) => {
                    let mut details = details(before.unwrap_or(&none), after.unwrap_or(&none));
                    details.extend(self.other_secrets(next, entry));
                    if details.is_empty() && other.contains(entry) {
                        details.push("a secret or a file that it names".to_owned());
                    }
                    details.extend(noted());
                    if details.is_empty() {
                        continue;
                    }
                    Change { sign: Sign::Changed, what: entry.to_string(), details }
                }
            };
            changes.push(change);
        }
        changes
    }

    /// Keys that are written alike and stand for another secret.
    fn other_secrets(&self, next: &Self, entry: &Entry) -> Vec<String> {
        let written = |outline: &Self, key: &String| outline.entries.get(entry).and_then(|keys| keys.get(key).cloned());
        let is_other = |(of, key): &(Entry, String), sum: &u64| {
            let before = self.hidden.0.get(&(of.clone(), key.clone()));
            of == entry && before.is_some_and(|before| before != sum) && written(self, key) == written(next, key)
        };
        let others = next.hidden.0.iter().filter(|(at, sum)| is_other(at, sum));
        others.map(|((_, key), _)| format!("{key}: another secret")).collect()
    }

    /// Links that are new here under another name, old and new. One whose old name has left something is a link that is gone, and one that is
    /// new.
    fn renamed<'o>(
        &'o self,
        next: &'o Self,
        notes: &BTreeMap<Entry, Vec<String>>,
    ) -> impl Iterator<Item = (&'o str, &'o str)> {
        next.entries.iter().filter_map(|(entry, keys)| {
            let Entry::Link(name) = entry else { return None };
            let old = keys.get("renamed_from").filter(|old| !notes.contains_key(&Entry::Link((*old).clone())))?;
            let is_new = !self.entries.contains_key(entry) && !next.entries.contains_key(&Entry::Link(old.clone()));
            (is_new && self.entries.contains_key(&Entry::Link(old.clone()))).then_some((old.as_str(), name.as_str()))
        })
    }
}

/// What keys have become, by name. `renamed_from` says nothing but what the line itself says.
fn details(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).filter(|key| *key != "renamed_from").collect();
    keys.sort();
    keys.dedup();
    let told = keys.into_iter().filter_map(|key| match (before.get(key), after.get(key)) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) => Some(format!("{key} {old} -> {new}")),
        (Some(old), None) => Some(format!("{key} {old} -> default")),
        (None, new) => Some(format!("{key} default -> {}", new.map_or("", String::as_str))),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(entries: &[(Entry, &[(&str, &str)])]) -> Outline {
        let keys = |keys: &[(&str, &str)]| keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let entries = entries.iter().map(|(entry, of)| (entry.clone(), keys(of))).collect();
        Outline { entries, ..Outline::default() }
    }

    fn told(before: &Outline, after: &Outline, other: &[Entry]) -> Vec<String> {
        before.changes(after, other, &BTreeMap::new()).iter().map(Change::to_string).collect()
    }

    fn link(name: &str) -> Entry {
        Entry::Link(name.to_owned())
    }

    #[test]
    fn a_diff_names_what_is_new_gone_and_other_with_both_values() {
        let before = outline(&[
            (Entry::Top, &[("site", "a")]),
            (link("cloud"), &[("buffer.max_size", "1GiB"), ("drain", "fifo"), ("mqtt.url", "mqtt://h")]),
            (link("old"), &[("mqtt.url", "mqtt://h")]),
            (Entry::Route("r".to_owned()), &[("to", "cloud/x")]),
        ]);
        let after = outline(&[
            (Entry::Top, &[("site", "a")]),
            (link("cloud"), &[("buffer.max_size", "10GiB"), ("mqtt.url", "mqtt://h"), ("in_flight", "7")]),
            (link("lake"), &[("kafka.brokers", "k:9092")]),
            (Entry::Route("r".to_owned()), &[("to", "cloud/x, lake/y")]),
        ]);
        let expected = [
            "~ link cloud: buffer.max_size 1GiB -> 10GiB, drain fifo -> default, in_flight default -> 7",
            "+ link lake",
            "- link old",
            "~ route r: to cloud/x -> cloud/x, lake/y",
        ];
        assert_eq!(told(&before, &after, &[]), expected);
        assert_eq!(told(&after, &after, &[]), [""; 0]);
    }

    #[test]
    fn the_broker_is_there_also_where_the_file_says_nothing_of_it() {
        let (none, some) =
            (outline(&[]), outline(&[(Entry::Broker, &[("in_flight", "7")]), (Entry::Admin, &[("bind", "x")])]));
        assert_eq!(told(&none, &some, &[]), ["+ admin", "~ broker: in_flight default -> 7"]);
        assert_eq!(told(&some, &none, &[]), ["- admin", "~ broker: in_flight 7 -> default"]);
    }

    #[test]
    fn r34_a_link_with_another_name_is_one_line_and_its_key_that_stays_is_none() {
        let before = outline(&[(link("a"), &[("mqtt.url", "mqtt://h")])]);
        let after = outline(&[(link("b"), &[("mqtt.url", "mqtt://i"), ("renamed_from", "a")])]);
        assert_eq!(told(&before, &after, &[]), ["> link a is link b now: mqtt.url mqtt://h -> mqtt://i"]);
        let later = outline(&[(link("b"), &[("mqtt.url", "mqtt://i")])]);
        assert_eq!(told(&after, &later, &[]), [""; 0]);
        assert_eq!(told(&outline(&[]), &after, &[]), ["+ link b"], "there was none of that name");
    }

    #[test]
    fn r34_what_became_of_a_buffer_is_told_also_where_nothing_else_is() {
        let before = outline(&[(link("a"), &[]), (link("b"), &[]), (link("c"), &[("rate", "1")])]);
        let after =
            outline(&[(link("b"), &[("renamed_from", "x")]), (link("d"), &[("renamed_from", "c")]), (link("e"), &[])]);
        let notes = ["a", "b", "d", "e"].map(|name| (link(name), vec![format!("note {name}")])).into();
        let told: Vec<_> = before.changes(&after, &[], &notes).iter().map(Change::to_string).collect();
        let renamed = "> link c is link d now: rate 1 -> default, note d";
        assert_eq!(told, ["- link a: note a", "~ link b: note b", renamed, "+ link e: note e"]);
    }

    #[test]
    fn r34_a_link_whose_buffer_has_not_come_along_is_one_that_is_gone_and_a_new_one() {
        let before = outline(&[(link("a"), &[("mqtt.url", "mqtt://h")])]);
        let after = outline(&[(link("b"), &[("mqtt.url", "mqtt://h"), ("renamed_from", "a")])]);
        let notes = [(link("a"), vec!["its buffer is kept".to_owned()])].into();
        let told: Vec<_> = before.changes(&after, &[], &notes).iter().map(Change::to_string).collect();
        assert_eq!(told, ["- link a: its buffer is kept", "+ link b"]);
    }

    #[test]
    fn what_is_written_alike_and_is_another_is_told_too() {
        let same = outline(&[(link("a"), &[("mqtt.url", "mqtt://u:${env:P}@h")])]);
        assert_eq!(told(&same, &same, &[link("a")]), ["~ link a: a secret or a file that it names"]);
        assert_eq!(told(&same, &same, &[Entry::Broker]), ["~ broker: a secret or a file that it names"]);
        let with =
            |sum: u64| Outline { hidden: Hidden([((link("a"), "mqtt.url".to_owned()), sum)].into()), ..same.clone() };
        assert_eq!(told(&with(1), &with(2), &[link("a")]), ["~ link a: mqtt.url: another secret"]);
        assert_eq!(told(&with(1), &with(1), &[]), [""; 0]);
        assert!(!format!("{:?}", with(987)).contains("987"));
    }
}
