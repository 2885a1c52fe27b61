//! QoS 2 messages that are under way from one remote to us, and how they are written down (R25). Pure.
//!
//! A message has its id before it is offered to the hub, and that id is on disk with its packet id: what the remote sends again, on a new
//! connection or to the next start of the gateway, is the same message, and whoever has it drops the copy (R12). A packet id is free for
//! another message when the remote has its PUBCOMP, so that it is forgotten goes to disk before.
//!
//! | on disk | before | after a kill |
//! |---|---|---|
//! | packet id ↔ message id | the message is offered | PUBLISH again: offered again, with the same id; PUBREL: it is taken |
//! | nothing | its PUBCOMP goes | the packet id is another message's |
//!
//! As bytes, numbers little-endian: `format:u8 owner:3×u32 run:u64 next:u64 count:u16 (packet id:u16 counter:u64 taken:u8)…`.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

use super::exchanges::Owner;
use super::written::Table;
use crate::wire::PacketId;

const FORMAT: u8 = 1;

/// So many are written down, the oldest. More can only come from a 3.1.1 remote, which knows no Receive Maximum; what is beyond has
/// another id when it comes again after a kill.
const KEPT_MAX: usize = 1024;

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// On this connection, and not yet safe.
    Offered,
    /// On an earlier connection; whether it is safe is not known here.
    Interrupted,
    /// Safe: PUBREC.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    /// Of its message id.
    counter: u64,
    phase: Phase,
}

/// What a PUBLISH is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A new message: the counter of its id.
    New(u64),
    /// One that came on an earlier connection: the same counter.
    Again(u64),
    /// It came on this connection and is under way.
    UnderWay,
    /// It is safe: PUBREC.
    Taken,
}

/// What a PUBREL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// The end of its exchange: PUBCOMP, when that is on disk.
    Ended,
    /// Of nothing that is known here.
    Unknown,
    /// Before its PUBREC.
    TooEarly,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    owner: Owner,
    /// Of the message ids: these are told from those of the gateway's own starts.
    run: u64,
    next: u64,
    all: BTreeMap<PacketId, Arrival>,
}

impl Arrivals {
    /// None yet. `run`: 64 random bits.
    pub(super) fn new(run: u64) -> Self {
        Self { run, next: 1, ..Self::default() }
    }

    pub(super) const fn run(&self) -> u64 {
        self.run
    }

    /// A new connection. `goes_on`: the remote still has the session. Answers `true` where that is not the one that these are of: they are
    /// forgotten, which has to be on disk before anything else.
    pub(super) fn begin(&mut self, owner: Owner, goes_on: bool) -> bool {
        if !goes_on || self.owner != owner {
            self.owner = owner;
            self.all.clear();
            return true;
        }
        for arrival in self.all.values_mut().filter(|arrival| arrival.phase == Phase::Offered) {
            arrival.phase = Phase::Interrupted;
        }
        false
    }

    /// PUBLISH.
    pub(super) fn arrived(&mut self, id: PacketId) -> Known {
        let Some(known) = self.all.get_mut(&id) else {
            let counter = self.next;
            self.next += 1;
            self.all.insert(id, Arrival { counter, phase: Phase::Offered });
            return Known::New(counter);
        };
        match known.phase {
            Phase::Offered => Known::UnderWay,
            Phase::Taken => Known::Taken,
            Phase::Interrupted => {
                known.phase = Phase::Offered;
                Known::Again(known.counter)
            }
        }
    }

    /// It is safe.
    pub(super) fn taken(&mut self, id: PacketId) {
        if let Some(known) = self.all.get_mut(&id) {
            known.phase = Phase::Taken;
        }
    }

    /// PUBREL. After a kill it says by itself that our PUBREC had come.
    pub(super) fn released(&mut self, id: PacketId) -> Released {
        match self.all.get(&id).map(|known| known.phase) {
            None => Released::Unknown,
            Some(Phase::Offered) => Released::TooEarly,
            Some(Phase::Interrupted | Phase::Taken) => {
                self.all.remove(&id);
                Released::Ended
            }
        }
    }
}

impl Table for Arrivals {
    // Nothing is lost by it: what was under way comes again as what is new.
    const DAMAGED: &'static str =
        "the QoS 2 messages that were under way are not known any more: what was not acknowledged may come twice";

    fn encode(&self) -> Vec<u8> {
        let mut oldest: Vec<(&PacketId, &Arrival)> = self.all.iter().collect();
        oldest.sort_unstable_by_key(|(_, arrival)| arrival.counter);
        oldest.truncate(KEPT_MAX);
        let mut out = vec![FORMAT];
        self.owner.sums().into_iter().for_each(|sum| out.put_u32_le(sum));
        out.put_u64_le(self.run);
        out.put_u64_le(self.next);
        out.put_u16_le(u16::try_from(oldest.len()).unwrap_or(u16::MAX));
        for (id, arrival) in oldest {
            out.put_u16_le(id.get());
            out.put_u64_le(arrival.counter);
            out.put_u8(u8::from(arrival.phase == Phase::Taken));
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        if input.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let mut sum = || input.try_get_u32_le().ok();
        let owner = Owner::of_sums([sum()?, sum()?, sum()?]);
        let (run, next) = (input.try_get_u64_le().ok()?, input.try_get_u64_le().ok()?);
        let mut all = BTreeMap::new();
        for _ in 0..input.try_get_u16_le().ok()? {
            let id = PacketId::new(input.try_get_u16_le().ok()?)?;
            let counter = input.try_get_u64_le().ok()?;
            let phase = if input.try_get_u8().ok()? == 0 { Phase::Interrupted } else { Phase::Taken };
            all.insert(id, Arrival { counter, phase });
        }
        input.is_empty().then_some(Self { owner, run, next, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::SlotFile;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    fn owner() -> Owner {
        Owner::new("", "edge-in", "hq:1883")
    }

    fn restarted(table: &Arrivals) -> Arrivals {
        Arrivals::decode(&table.encode()).unwrap()
    }

    #[test]
    fn r25_what_comes_again_has_the_id_that_it_had_over_connections_and_restarts() {
        let mut table = Arrivals::new(7);
        table.begin(owner(), false);
        assert_eq!([1, 2, 3].map(|n| table.arrived(id(n))), [1, 2, 3].map(Known::New));
        table.taken(id(3));
        assert_eq!((table.arrived(id(1)), table.arrived(id(3))), (Known::UnderWay, Known::Taken));
        assert!(!table.begin(owner(), true));
        assert_eq!((table.arrived(id(1)), table.arrived(id(3))), (Known::Again(1), Known::Taken));
        let mut table = restarted(&table);
        assert!(!table.begin(owner(), true));
        assert_eq!([1, 2, 3].map(|n| table.arrived(id(n))), [Known::Again(1), Known::Again(2), Known::Taken]);
        assert_eq!((table.arrived(id(4)), table.run()), (Known::New(4), 7));
    }

    #[test]
    fn r25_a_packet_id_is_another_messages_once_it_is_released() {
        let mut table = Arrivals::new(7);
        table.begin(owner(), false);
        table.arrived(id(1));
        assert_eq!(table.released(id(1)), Released::TooEarly);
        table.taken(id(1));
        assert_eq!([table.released(id(1)), table.released(id(1))], [Released::Ended, Released::Unknown]);
        assert_eq!(table.arrived(id(1)), Known::New(2));
        // After a kill the PUBREL alone says that our PUBREC was on its way.
        let mut table = restarted(&table);
        table.begin(owner(), true);
        assert_eq!((table.released(id(1)), table.arrived(id(1))), (Released::Ended, Known::New(3)));
    }

    #[test]
    fn another_session_or_remote_has_packet_ids_of_its_own() {
        for (next, goes_on) in [(owner(), false), (Owner::new("", "edge-in", "hq:1884"), true)] {
            let mut table = Arrivals::new(7);
            table.begin(owner(), false);
            table.arrived(id(1));
            assert!(table.begin(next, goes_on));
            assert_eq!(table.arrived(id(1)), Known::New(2), "and a number is never given twice");
        }
    }

    #[test]
    fn the_fullest_table_fits_the_file_and_damage_is_no_table() {
        let mut table = Arrivals::new(7);
        for n in 1..=u16::MAX {
            table.arrived(id(n));
        }
        let bytes = table.encode();
        assert!(bytes.len() <= SlotFile::BYTES_MAX, "{}", bytes.len());
        let mut kept = restarted(&table);
        assert_eq!(kept.arrived(id(1024)), Known::Again(1024), "the oldest are kept");
        assert_eq!(kept.arrived(id(1025)), Known::New(65_536));
        for len in 0..bytes.len() {
            assert!(Arrivals::decode(&bytes[..len]).is_none(), "{len}");
        }
    }
}
