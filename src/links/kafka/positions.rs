//! How far a log is in Kafka by Kafka's own account (R26): kept as a group's committed offset, in the transaction that brings the
//! records themselves. Pure.
//!
//! Kafka keeps one number and a short text for a partition. The number says nothing of lanes, so what counts is the text:
//! `tidegate BUFFER 0:118:89ab12cd:3 1:7:00c0ffee:0`, everything below 118 in the normal lane and below 7 in the high one, each with the
//! [`witness`](crate::links::witness) of its last record in hex, and how many of those below had lapsed (earlier programs did not say). Each transaction writes all lanes, beside one of its own topics; each lane only ever rises, so of several
//! texts the highest holds.

use std::collections::BTreeMap;

use crate::buffer::{Lane, Offset, Place};
use crate::links::Confirmed;

/// What the texts begin with.
const BEGIN: &str = "tidegate";

/// Everything below, the last record's witness, how many lapsed.
type Said = (u64, u32, Option<u64>);

/// Of each log, by the id that begins its `tg-seq`: what is said of each lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Positions(BTreeMap<Box<str>, BTreeMap<Lane, Said>>);

impl Positions {
    /// Takes in what stands beside a topic. What is no text of ours says nothing.
    pub(super) fn read(&mut self, text: &str) {
        let mut words = text.split(' ');
        let (Some(BEGIN), Some(buffer)) = (words.next(), words.next()) else { return };
        for word in words {
            let mut parts = word.split(':');
            let lane =
                parts.next().and_then(|number| Lane::ALL.into_iter().find(|lane| lane.number().to_string() == number));
            let below = parts.next().and_then(|below| below.parse().ok());
            let witness = parts.next().and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let expired = parts.next().and_then(|expired| expired.parse().ok());
            if let (Some(lane), Some(below), Some(witness)) = (lane, below, witness) {
                self.raise(buffer, lane, (below, witness, expired));
            }
        }
    }

    /// A record is in Kafka, and everything before it in its lane is settled.
    pub(super) fn pass(&mut self, buffer: &str, place: Place, witness: u32, expired: u64) {
        self.raise(buffer, place.lane, (place.offset.0.saturating_add(1), witness, Some(expired)));
    }

    fn raise(&mut self, buffer: &str, lane: Lane, said: Said) {
        if !self.0.contains_key(buffer) {
            self.0.insert(buffer.into(), BTreeMap::new());
        }
        let lanes = self.0.get_mut(buffer).map(|lanes| lanes.entry(lane).or_default());
        if let Some(known) = lanes {
            *known = said.max(*known);
        }
    }

    /// In each lane of a log, how far Kafka has it.
    pub(super) fn of(&self, buffer: &str) -> Vec<Confirmed> {
        let lanes = self.0.get(buffer).into_iter().flatten();
        let confirmed = |(lane, (below, witness, expired)): (&Lane, &Said)| Confirmed {
            below: Place { lane: *lane, offset: Offset(*below) },
            witness: *witness,
            expired: *expired,
        };
        lanes.map(confirmed).collect()
    }

    /// The text for a log, and the number beside it, which is for who looks at the group.
    pub(super) fn show(&self, buffer: &str) -> (String, i64) {
        let said = self.of(buffer);
        let show = |Confirmed { below, witness, expired }: &Confirmed| {
            let expired = expired.map(|expired| format!(":{expired}")).unwrap_or_default();
            format!(" {}:{}:{witness:08x}{expired}", below.lane.number(), below.offset.0)
        };
        let lanes: Vec<_> = said.iter().map(show).collect();
        let all = said.iter().fold(0_u64, |all, said| all.saturating_add(said.below.offset.0));
        (format!("{BEGIN} {buffer}{}", lanes.concat()), i64::try_from(all).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(lane: Lane, offset: u64) -> Place {
        Place { lane, offset: Offset(offset) }
    }

    fn below(lane: Lane, offset: u64, witness: u32, expired: u64) -> Confirmed {
        Confirmed { below: place(lane, offset), witness, expired: Some(expired) }
    }

    #[test]
    fn r26_what_is_written_is_read_back_and_the_highest_of_several_holds() {
        let mut positions = Positions::default();
        positions.pass("cafe0001", place(Lane::Normal, 6), 0xa, 1);
        positions.pass("cafe0001", place(Lane::Low, 0), 0xb, 0);
        let (earlier, _) = positions.show("cafe0001");
        positions.pass("cafe0001", place(Lane::Normal, 117), 0x89ab_12cd, 3);
        let (later, number) = positions.show("cafe0001");
        assert_eq!((later.as_str(), number), ("tidegate cafe0001 0:118:89ab12cd:3 2:1:0000000b:0", 119));
        for order in [[&earlier, &later], [&later, &earlier]] {
            let mut read = Positions::default();
            order.into_iter().for_each(|text| read.read(text));
            assert_eq!(read, positions);
            assert_eq!(read.of("cafe0001"), [below(Lane::Normal, 118, 0x89ab_12cd, 3), below(Lane::Low, 1, 0xb, 0)]);
            assert_eq!(read.of("cafe0002"), [], "another log's numbers mean nothing here");
        }
    }

    #[test]
    fn what_an_earlier_program_wrote_says_nothing_of_what_lapsed() {
        let mut read = Positions::default();
        read.read("tidegate cafe0001 0:118:89ab12cd");
        assert_eq!(read.of("cafe0001"), [Confirmed { expired: None, ..below(Lane::Normal, 118, 0x89ab_12cd, 0) }]);
        assert_eq!(read.show("cafe0001").0, "tidegate cafe0001 0:118:89ab12cd");
    }

    #[test]
    fn what_others_wrote_beside_a_topic_says_nothing() {
        let mut read = Positions::default();
        for text in [
            "",
            "tidegate",
            "tidegate a",
            "tidegate a 0",
            "tidegate a 7:1:0 0:x:0 0:-1:0 0:1:x 0:1",
            "a b 0:1",
            "metadata",
        ] {
            read.read(text);
        }
        assert!(read.of("a").is_empty() && read.of("b").is_empty(), "{read:?}");
    }
}
