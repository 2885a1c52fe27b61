//! Topic aliases, those that we set for a client and those that it sets (MQTT 5.0 section 3.3.2.3.4): names that stay in memory
//! for as long as it is connected, so they are bounded in bytes, and not in number alone (R36).

use std::collections::HashMap;
use std::num::NonZeroU16;

use crate::topic::TopicName;

/// Aliases that we set for one client at most: each keeps a topic in memory.
const OURS_MAX: u16 = 64;

/// A longer topic gets none: it would be kept until the client leaves.
const OUR_BYTES_MAX: usize = 1_024;

/// Bytes of the names that a client may set: the longest topic fits.
pub(super) const THEIR_BYTES_MAX: usize = 64 << 10;

/// Those that we set. The first topics get one: a subscriber sees the same few topics as a rule.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    max: u16,
    /// Keys are chosen by clients, so the map keeps std's keyed hash.
    known: HashMap<TopicName, NonZeroU16>,
}

impl Aliases {
    /// `peer_max`: Topic Alias Maximum of the CONNECT.
    pub(super) fn new(peer_max: u16) -> Self {
        Self { max: peer_max.min(OURS_MAX), known: HashMap::new() }
    }

    /// Whether it takes none.
    pub(super) const fn is_off(&self) -> bool {
        self.max == 0
    }

    /// The alias of a topic, and whether the client knows it already.
    pub(super) fn of(&self, topic: &TopicName) -> Option<(NonZeroU16, bool)> {
        if self.max == 0 || topic.as_str().len() > OUR_BYTES_MAX {
            return None;
        }
        if let Some(alias) = self.known.get(topic) {
            return Some((*alias, true));
        }
        let next = u16::try_from(self.known.len() + 1).ok().filter(|next| *next <= self.max)?;
        NonZeroU16::new(next).map(|alias| (alias, false))
    }

    /// The client was told of one.
    pub(super) fn note(&mut self, topic: &TopicName, alias: NonZeroU16) {
        self.known.insert(topic.clone(), alias);
    }

    /// Of the names.
    pub(super) fn bytes(&self) -> usize {
        self.known.keys().map(|topic| topic.as_str().len()).sum()
    }
}

/// Those that a client has set.
#[derive(Debug, Default)]
pub(super) struct TheirAliases {
    known: HashMap<u16, TopicName>,
    bytes: usize,
}

impl TheirAliases {
    /// What it stands for.
    pub(super) fn get(&self, alias: u16) -> Option<&TopicName> {
        self.known.get(&alias)
    }

    /// Sets it. `false`: the names would be too long together; it stands for what it did.
    pub(super) fn set(&mut self, alias: u16, topic: &TopicName) -> bool {
        let old = self.known.get(&alias).map_or(0, |old| old.as_str().len());
        let bytes = self.bytes - old + topic.as_str().len();
        let fits = bytes <= THEIR_BYTES_MAX;
        if fits {
            self.bytes = bytes;
            self.known.insert(alias, topic.clone());
        }
        fits
    }

    /// Of the names.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(len: usize) -> TopicName {
        TopicName::new(&"x".repeat(len)).unwrap()
    }

    #[test]
    fn long_topics_get_no_alias_r36() {
        let of = |len| Aliases::new(9).of(&name(len));
        let first = NonZeroU16::new(1).map(|alias| (alias, false));
        assert_eq!((of(OUR_BYTES_MAX), of(OUR_BYTES_MAX + 1)), (first, None));
    }

    #[test]
    fn r36_what_a_client_sets_is_bounded_in_bytes_of_all_names_together() {
        let mut aliases = TheirAliases::default();
        for (alias, len, fits, bytes) in [
            (1, 40_000, true, 40_000),
            (2, 25_536, true, THEIR_BYTES_MAX),
            (3, 1, false, THEIR_BYTES_MAX),
            // Another name for one that is set: only what it is longer counts.
            (1, 40_001, false, THEIR_BYTES_MAX),
            (1, 40_000, true, THEIR_BYTES_MAX),
            (1, 30_000, true, 55_536),
            (3, 10_000, true, THEIR_BYTES_MAX),
        ] {
            assert_eq!((aliases.set(alias, &name(len)), aliases.bytes()), (fits, bytes), "{alias}: {len}");
        }
        assert_eq!(aliases.get(1).map(|topic| topic.as_str().len()), Some(30_000));
    }
}
