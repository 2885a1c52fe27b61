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
//! What the gateway had appended to its logs before a kill it would append once more. So it is written down too how far the logs were durable
//! when the oldest message that is not yet safe came: its record, and those of the later ones, lie behind, and only there they are looked
//! for.
//!
//! As bytes, numbers little-endian: `format:u8 owner:3×u32 run:u64 next:u64 count:u16 (packet id:u16 counter:u64 taken:u8)… len:u16 tails`.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut};

use super::exchanges::Owner;
use super::written::Table;
use crate::hub::Tails;
use crate::wire::PacketId;

const FORMAT: u8 = 2;

/// Without tails.
const FORMAT_BEFORE: u8 = 1;

/// Of the tails, as text. More than a hundred logs; what is in others may be appended twice.
const TAILS_BYTES_MAX: usize = 5_000;

/// Notes of tails that are told apart; with more the earlier one holds, which is further back.
const TAILS_MAX: usize = 16;

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
    /// How far the logs were durable before any message with such a counter, or a later one, was offered.
    tails: VecDeque<(u64, Tails)>,
    /// What `next` was then.
    noted: u64,
}

impl Arrivals {
    /// None yet. `run`: 64 random bits.
    pub(super) fn new(run: u64) -> Self {
        Self { run, next: 1, noted: 1, ..Self::default() }
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

    /// How far the logs are durable, before what has come since the last time is offered.
    pub(super) fn note(&mut self, tails: &Tails) {
        let Some(oldest) = self.open().min() else {
            self.tails.clear();
            self.noted = self.next;
            return;
        };
        if self.next > self.noted {
            self.tails.push_back((self.noted, tails.clone()));
            self.noted = self.next;
        }
        while self.tails.get(1).is_some_and(|(from, _)| *from <= oldest) {
            self.tails.pop_front();
        }
        if self.tails.len() > TAILS_MAX {
            self.tails.remove(1);
        }
    }

    /// Of those that are not known to be safe, by their counters.
    fn open(&self) -> impl Iterator<Item = u64> + '_ {
        self.all.values().filter(|arrival| arrival.phase != Phase::Taken).map(|arrival| arrival.counter)
    }

    /// What may be in the logs already, and behind where it is then: to be asked before the first connection.
    pub(super) fn sought(&self) -> (Vec<u64>, Tails) {
        (self.open().collect(), self.tails())
    }

    fn tails(&self) -> Tails {
        self.tails.iter().fold(Tails::default(), |mut all, (_, later)| {
            all.add(later);
            all
        })
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
        let tails = self.tails().encode();
        let lines = tails.split_inclusive('\n').scan(0, |len, line| {
            *len += line.len();
            Some(line).filter(|_| *len <= TAILS_BYTES_MAX)
        });
        let tails: String = lines.collect();
        out.put_u16_le(u16::try_from(tails.len()).unwrap_or(0));
        out.put_slice(tails.as_bytes());
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        let format = input.try_get_u8().ok()?;
        if !matches!(format, FORMAT_BEFORE | FORMAT) {
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
        let mut tails = VecDeque::new();
        if format == FORMAT {
            let len = usize::from(input.try_get_u16_le().ok()?);
            let (text, rest) = input.split_at_checked(len)?;
            tails.push_back((0, Tails::decode(std::str::from_utf8(text).ok()?)));
            *input = rest;
        }
        input.is_empty().then_some(Self { owner, run, next, all, tails, noted: next })
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

    fn durable(end: u64) -> Tails {
        Tails::decode(&format!("normal {end} lake 00000001\n"))
    }

    #[test]
    fn r25_what_was_under_way_is_looked_for_behind_what_was_durable_when_the_oldest_of_it_came() {
        let mut table = Arrivals::new(7);
        table.begin(owner(), false);
        table.arrived(id(1));
        table.note(&durable(10));
        assert_eq!([2, 3].map(|n| table.arrived(id(n))), [2, 3].map(Known::New));
        table.note(&durable(20));
        // Nothing new.
        table.note(&durable(25));
        assert_eq!(restarted(&table).sought(), (vec![1, 2, 3], durable(10)));
        table.taken(id(1));
        table.taken(id(3));
        table.note(&durable(30));
        let mut table = restarted(&table);
        assert_eq!(table.sought(), (vec![2], durable(20)));
        // It is still there after another start, also behind others.
        table.begin(owner(), true);
        table.arrived(id(4));
        let mut later = durable(40);
        later.add(&Tails::decode("low 7 cloud 00000002\n"));
        table.note(&later);
        let mut all = durable(20);
        all.add(&later);
        assert_eq!(restarted(&table).sought(), (vec![2, 4], all));
        [2, 4].into_iter().for_each(|n| table.taken(id(n)));
        table.note(&durable(50));
        assert_eq!(restarted(&table).sought(), (vec![], Tails::default()));
        // However many saves there are while one message is open.
        table.arrived(id(5));
        table.note(&durable(60));
        for n in 100..200 {
            table.arrived(id(n));
            table.taken(id(n - 1));
            table.note(&durable(u64::from(n)));
        }
        assert_eq!((table.sought().1, table.tails.len()), (durable(60), TAILS_MAX));
    }

    #[test]
    fn what_an_earlier_program_wrote_down_says_nothing_of_logs() {
        let mut table = Arrivals::new(7);
        table.arrived(id(1));
        let mut bytes = table.encode();
        bytes[0] = FORMAT_BEFORE;
        bytes.truncate(bytes.len() - 2);
        let mut read = Arrivals::decode(&bytes).unwrap();
        assert_eq!((read.sought(), read.arrived(id(1))), ((vec![1], Tails::default()), Known::Again(1)));
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
        // With as many logs as there is room for, and more.
        let log = |n| format!("normal {n} link{n} 0000{n:04}\n");
        let tails = Tails::decode(&(0..1_000).map(log).collect::<String>());
        table.note(&tails);
        let bytes = table.encode();
        assert!(bytes.len() <= SlotFile::BYTES_MAX, "{}", bytes.len());
        assert!(tails.encode().starts_with(&restarted(&table).tails().encode()));
        let mut kept = restarted(&table);
        assert_eq!(kept.arrived(id(1024)), Known::Again(1024), "the oldest are kept");
        assert_eq!(kept.arrived(id(1025)), Known::New(65_536));
        for len in 0..bytes.len() {
            assert!(Arrivals::decode(&bytes[..len]).is_none(), "{len}");
        }
    }
}
