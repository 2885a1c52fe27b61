//! What a route lets through of the messages that it takes: the first of a topic in a while, or what is new.
//!
//! A message that is held back is not accepted for the route's targets: it is counted (`suppressed`) and goes nowhere (R28). What has gone
//! through is remembered in three steps, so that nothing is held back on the strength of a message that was then refused:
//!
//! 1. [`ask`](super::Table::ask) decides and remembers nothing.
//! 2. [`enter`](super::Table::enter): every target has room for it. From here on it holds back those that come behind it in the same offer.
//! 3. [`settle`](super::Table::settle): it is in the logs, and holds back everybody's. Or [`withdraw`](super::Table::withdraw).
//!
//! That a retained message is deleted passes `throttle` and `dedup` by what messages say, and the next one behind it does too (R21). A sample
//! lets it go as the last of its topic like any other.
//!
//! A sample ([`Gate::Sample`]) holds nothing back for good: what it takes waits in the hub until its time is over, or another takes its place.
//!
//! Two offers at the same time may so both let a message through where one would have done: too much rather than too little.
//! Memory is bounded: of each route the last [`TOPICS_MAX`] topics (or ids) are remembered, as numbers of 128 bits, half of them at least;
//! one that is forgotten lets its next message through.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::change::{FieldPath, canonical};
use super::view::View;
use crate::message::headers;
use crate::units::show_duration;

/// Topics or message ids that a route remembers at most: 80 bytes each, so about 5 MiB.
pub const TOPICS_MAX: usize = 65_536;

/// What a deleted topic says: no other value.
const DELETED: u128 = u128::MAX;

/// What a route lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The first message of a topic, and then none for so long.
    Throttle(Duration),
    /// The last message of a topic within so long, when that time is over.
    Sample(Duration),
    /// No message whose id has gone through. What is replayed goes through always (R12).
    NewIds,
    /// No message that says the same as the last one of its topic that has gone through.
    Changes {
        /// What is compared: these fields of a JSON payload; the whole payload, byte by byte, where there are none.
        fields: Vec<FieldPath>,
        /// After so long the same goes through once more.
        again: Option<Duration>,
    },
}

/// What a gate says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// There is no gate, or nothing by which the message could be held back.
    Free,
    /// It goes through, and is to be remembered when it has.
    Passes(Pass),
    /// It is held back.
    Held,
    /// It waits for so long, and goes then unless another of its topic has come.
    Waits(Duration),
}

/// One message that goes through a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The route's place in the table.
    pub(super) route: usize,
    key: u128,
    entry: Entry,
}

/// The last that has gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// When it was accepted, by the boot clock.
    at_ms: u64,
    /// What it said.
    value: u128,
    /// In which offer.
    offer: u64,
    settled: bool,
}

/// What has gone through one route's gate.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Drawn at the start, so that nobody can choose topics or payloads that count as the same.
    keys: [RandomState; 2],
    young: HashMap<u128, Entry>,
    /// What was young before; what is not asked for until the young ones are many is forgotten.
    old: HashMap<u128, Entry>,
}

impl Gate {
    /// Its key in `routes.yaml`.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Throttle(_) => "throttle",
            Self::Sample(_) => "sample",
            Self::NewIds | Self::Changes { .. } => "dedup",
        }
    }
}

impl fmt::Display for Gate {
    /// As in `routes.yaml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttle(every) => write!(f, "throttle: {}", show_duration(*every)),
            Self::Sample(every) => write!(f, "sample: {}", show_duration(*every)),
            Self::NewIds => f.write_str("dedup: id"),
            Self::Changes { fields, again } => {
                let named = fields.iter().map(|field| format!("payload.{field}")).collect::<Vec<_>>().join(", ");
                let by = if fields.is_empty() { "payload" } else { &*named };
                match again {
                    None => write!(f, "dedup: {by}"),
                    Some(again) => write!(f, "dedup: {by}, again after {}", show_duration(*again)),
                }
            }
        }
    }
}

impl Seen {
    /// Whether a message that arrived on `topic` goes through the gate of the route at this place.
    pub(super) fn ask(&mut self, gate: &Gate, route: usize, topic: &str, view: View<'_, '_>, offer: u64) -> Asked {
        let message = view.subject.message();
        let (key, value, every) = match gate {
            // It passes, and so does what comes next.
            Gate::Throttle(_) | Gate::Changes { .. } if view.is_delete => {
                let entry = Entry { at_ms: message.accepted.up_ms, value: DELETED, offer, settled: false };
                return Asked::Passes(Pass { route, key: self.number(topic), entry });
            }
            Gate::Throttle(every) => (self.number(topic), 0, Some(*every)),
            Gate::Sample(every) => return Asked::Waits(*every),
            Gate::NewIds if headers::replay(message).is_some() => return Asked::Free,
            Gate::NewIds => (self.number(&message.id), 0, None),
            Gate::Changes { fields, again } => {
                let value =
                    if fields.is_empty() { Some(self.number(&*message.payload)) } else { self.fields(fields, view) };
                // A message that has none of the fields says nothing that could be the same.
                let Some(value) = value else { return Asked::Free };
                (self.number(topic), value, *again)
            }
        };
        let at_ms = message.accepted.up_ms;
        let last = self.last(key).filter(|last| last.settled || last.offer == offer);
        let is_recent =
            |last: &Entry| every.is_none_or(|every| Duration::from_millis(at_ms.saturating_sub(last.at_ms)) < every);
        if last.is_some_and(|last| last.value == value && is_recent(&last)) {
            return Asked::Held;
        }
        Asked::Passes(Pass { route, key, entry: Entry { at_ms, value, offer, settled: false } })
    }

    pub(super) fn enter(&mut self, pass: &Pass) {
        self.keep(pass.key, pass.entry);
    }

    fn keep(&mut self, key: u128, entry: Entry) {
        if self.young.len() >= TOPICS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }

    pub(super) fn settle(&mut self, pass: &Pass) {
        for kept in [&mut self.young, &mut self.old] {
            if let Some(entry) = kept.get_mut(&pass.key).filter(|entry| **entry == pass.entry) {
                entry.settled = true;
            }
        }
    }

    pub(super) fn withdraw(&mut self, pass: &Pass) {
        for kept in [&mut self.young, &mut self.old] {
            if kept.get(&pass.key) == Some(&pass.entry) {
                kept.remove(&pass.key);
            }
        }
    }

    /// One that is asked for stays young.
    fn last(&mut self, key: u128) -> Option<Entry> {
        if let Some(entry) = self.young.get(&key) {
            return Some(*entry);
        }
        let entry = self.old.remove(&key)?;
        self.keep(key, entry);
        Some(entry)
    }

    /// What the fields say; `None` where the payload has none of them.
    fn fields(&self, fields: &[FieldPath], view: View<'_, '_>) -> Option<u128> {
        let found: Vec<_> = fields.iter().map(|field| view.subject.payload(field.steps()).map(canonical)).collect();
        found.iter().any(Option::is_some).then(|| self.number(&found))
    }

    fn number<T: std::hash::Hash + ?Sized>(&self, of: &T) -> u128 {
        let [high, low] = &self.keys;
        (u128::from(high.hash_one(of)) << 64) | u128::from(low.hash_one(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::message::tests_support::message;
    use crate::router::{Captures, Subject};

    fn ask(seen: &mut Seen, gate: &Gate, message: &Message, offer: u64) -> Asked {
        let (subject, captures) = (Subject::new(message), Captures::of(message.topic.as_str()));
        seen.ask(gate, 0, message.topic.as_str(), View::new(&subject, &captures), offer)
    }

    fn at(topic: &str, payload: &str, at_ms: u64) -> Message {
        let mut message = message(topic, b"");
        message.payload = payload.as_bytes().to_vec().into();
        message.accepted.up_ms = at_ms;
        message
    }

    /// Whether each goes through, those before it settled.
    fn through(gate: &Gate, messages: &[Message]) -> Vec<bool> {
        let mut seen = Seen::default();
        let mut one = |(offer, message): (usize, &Message)| match ask(&mut seen, gate, message, offer as u64) {
            Asked::Free => true,
            Asked::Held | Asked::Waits(_) => false,
            Asked::Passes(pass) => {
                seen.enter(&pass);
                seen.settle(&pass);
                true
            }
        };
        messages.iter().enumerate().map(&mut one).collect()
    }

    fn changes(fields: &[&str], again_s: Option<u64>) -> Gate {
        let fields = fields.iter().map(|field| FieldPath::parse(field).unwrap()).collect();
        Gate::Changes { fields, again: again_s.map(Duration::from_secs) }
    }

    #[test]
    fn r28_throttle_lets_the_first_of_a_topic_through_and_then_none_for_a_while() {
        let gate = Gate::Throttle(Duration::from_secs(10));
        let messages = [
            (at("a", "1", 1_000), true),
            (at("a", "2", 1_001), false),
            (at("b", "1", 1_001), true),
            (at("a", "3", 10_999), false),
            (at("a", "4", 11_000), true),
            (at("a", "5", 20_999), false),
            (at("a", "6", 90_000), true),
        ];
        let (messages, expected): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        assert_eq!(through(&gate, &messages), expected);
    }

    #[test]
    fn r28_dedup_lets_through_what_says_something_new_on_its_topic() {
        for (gate, messages) in [
            (
                changes(&[], None),
                vec![("a", "1", true), ("a", "1", false), ("b", "1", true), ("a", "2", true), ("a", "1", true)],
            ),
            (
                changes(&["s", "x.y"], None),
                vec![
                    ("a", r#"{"s":1,"n":1}"#, true),
                    ("a", r#"{"n":2,"s":1}"#, false),
                    ("a", r#"{"s":1,"x":{"y":[1,{"z":null}]}}"#, true),
                    ("a", r#"{"s":1, "x":{"y":[1, {"z":null}]}}"#, false),
                    ("a", r#"{"s":"1","x":{"y":[1,{"z":null}]}}"#, true),
                    ("a", r#"{"n":1}"#, true),
                    ("a", "no JSON", true),
                    ("a", r#"{"s":"1","x":{"y":[1,{"z":null}]}}"#, false),
                ],
            ),
        ] {
            let given: Vec<_> = messages.iter().map(|(topic, payload, _)| at(topic, payload, 0)).collect();
            let expected: Vec<_> = messages.iter().map(|(.., expected)| *expected).collect();
            assert_eq!(through(&gate, &given), expected, "{gate}");
        }
        let again = [at("a", "1", 0), at("a", "1", 59_999), at("a", "1", 60_000), at("a", "1", 119_999)];
        assert_eq!(through(&changes(&[], Some(60)), &again), [true, false, true, false]);
    }

    #[test]
    fn r21_what_deletes_a_retained_message_goes_through_and_so_does_what_comes_next() {
        for gate in [Gate::Throttle(Duration::from_secs(10)), changes(&[], None), changes(&["s"], None)] {
            let mut seen = Seen::default();
            let mut goes = |payload: &str, is_delete: bool| {
                let message = at("a", payload, 0);
                let (subject, captures) = (Subject::new(&message), Captures::of("a"));
                let view = View::new(&subject, &captures).deleting(is_delete);
                let Asked::Passes(pass) = seen.ask(&gate, 0, "a", view, 0) else { return false };
                seen.enter(&pass);
                seen.settle(&pass);
                true
            };
            let on = r#"{"s":1}"#;
            let asked = [(on, false), (on, false), ("", true), ("", true), (on, false), (on, false)];
            let went: Vec<_> = asked.map(|(payload, is_delete)| goes(payload, is_delete)).into();
            assert_eq!(went, [true, false, true, true, true, false], "{gate}");
        }
    }

    #[test]
    fn r12_dedup_by_id_holds_copies_back_and_no_replay() {
        let first = at("a", "1", 0);
        let (copy, mut other, mut replayed) = (at("b", "2", 1), at("a", "1", 2), at("a", "1", 3));
        other.id.counter = 2;
        headers::mark_replay(&mut replayed, "r1");
        assert_eq!(
            through(&Gate::NewIds, &[first, copy, other.clone(), replayed, other]),
            [true, false, true, true, false]
        );
    }

    #[test]
    fn r28_nothing_is_held_back_for_a_message_that_was_refused_or_is_still_on_its_way() {
        let gate = Gate::Throttle(Duration::from_secs(10));
        let mut seen = Seen::default();
        let Asked::Passes(first) = ask(&mut seen, &gate, &at("a", "1", 0), 1) else { panic!() };
        assert!(matches!(ask(&mut seen, &gate, &at("a", "2", 0), 1), Asked::Passes(_)), "it is not admitted yet");
        seen.enter(&first);
        assert_eq!(ask(&mut seen, &gate, &at("a", "2", 0), 1), Asked::Held, "behind it in the same offer");
        assert!(matches!(ask(&mut seen, &gate, &at("a", "2", 0), 2), Asked::Passes(_)), "another offer");
        seen.withdraw(&first);
        assert!(matches!(ask(&mut seen, &gate, &at("a", "2", 0), 1), Asked::Passes(_)), "it was refused");
        seen.enter(&first);
        seen.settle(&first);
        assert_eq!(ask(&mut seen, &gate, &at("a", "2", 0), 2), Asked::Held);
        seen.withdraw(&first);
        assert_eq!(ask(&mut seen, &gate, &at("a", "2", 0), 2), Asked::Held, "what is settled stays");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_asked_for_stays() {
        let gate = Gate::Throttle(Duration::from_secs(10));
        let mut seen = Seen::default();
        for n in 0..TOPICS_MAX * 2 {
            for topic in [format!("t/{n}"), "often".to_owned()] {
                if let Asked::Passes(pass) = ask(&mut seen, &gate, &at(&topic, "", 0), 0) {
                    assert!(topic != "often" || n == 0);
                    seen.enter(&pass);
                    seen.settle(&pass);
                }
            }
        }
        assert!(seen.young.len() + seen.old.len() <= TOPICS_MAX);
        assert_eq!(ask(&mut seen, &gate, &at(&format!("t/{}", TOPICS_MAX * 2 - 1), "", 0), 1), Asked::Held);
        assert!(matches!(ask(&mut seen, &gate, &at("t/0", "", 0), 1), Asked::Passes(_)));
    }
}
