//! QoS 2 exchanges that are under way towards one remote, and how they are written down (R25). Pure.
//!
//! A record has its packet id until its exchange is over, on this connection and the next ones, and what is known of it is on disk before the
//! remote is told:
//!
//! | on disk | before | after a kill |
//! |---|---|---|
//! | `Published`: record ↔ packet id | its PUBLISH goes | PUBLISH again, DUP, the same id: the remote knows whether it has it |
//! | `Released`: PUBREC has come | its PUBREL goes | PUBREL again, never the PUBLISH, whatever the record's age (R8) |
//! | `Completed`: PUBCOMP has come | its id is given to another | nothing: it is confirmed |
//!
//! An exchange whose record is not owed any more (dropped, expired, a dead letter) is *orphaned*: a PUBREL ends it, so that its id comes free.
//! What a lane's cursor has passed is one number, with what names the last record below it, and how many below it had lapsed: the file is
//! ahead of the cursor's after a kill, and the ledger has to tell them from what was delivered.
//!
//! As bytes, numbers little-endian: `format:u8 owner:3×u32 lanes:u8 (lane:u8 below:u64 witness:u32 expired:u64)… exchanges:u16
//! (lane|phase<<4:u8 id:u16 offset:u64 witness:u32)… orphans:u16 id:u16…`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Buf, BufMut};

use super::written::Table;
use crate::buffer::{Lane, Offset, Place};
use crate::links::Confirmed;
use crate::wire::PacketId;

const FORMAT: u8 = 2;

/// It did not say how many had lapsed.
const FORMAT_BEFORE: u8 = 1;

/// Instead of how many had lapsed.
const UNKNOWN: u64 = u64::MAX;

/// Exchanges that are open at most, orphans included: with [`COMPLETED_MAX`] they fit the file.
pub(super) const OPEN_MAX: usize = 600;

/// Completed ones above the cursor that are remembered, the newest. With `live_first` there may be more: those are in the saved cursor
/// by R9.
const COMPLETED_MAX: usize = 450;

/// Whose exchanges they are: with another remote or client id none of them goes on. By checksums, which have a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    buffer: u32,
    client_id: u32,
    address: u32,
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Published,
    Released,
    Completed,
}

/// One record's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exchange {
    id: PacketId,
    phase: Phase,
    /// Names the record beside its place.
    witness: u32,
    /// How many records before it in its lane had lapsed, ever; `None`: since the restart nobody has looked at it.
    expired: Option<u64>,
}

/// What a lane's cursor has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Below {
    /// All before this one.
    offset: Offset,
    /// Of the last of them that the remote has.
    witness: u32,
    /// How many of them had lapsed; `None`: that is not known.
    expired: Option<u64>,
}

/// What names a record beside its place, and what is to be noted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) witness: u32,
    /// How many records before it in its lane have lapsed, ever.
    pub(super) expired_before: u64,
}

/// Who has a packet id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A QoS 2 exchange of this record.
    Exchange(Place),
    /// A QoS 1 publish of this record, until the connection ends.
    Plain(Place),
    /// What the link announces of itself, until the connection ends.
    Announcement,
    /// An exchange that nobody owes any more.
    Orphan,
}

/// What is known of a record that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It has no exchange.
    New,
    /// PUBLISH again, with this id and DUP.
    Published(PacketId),
    /// PUBREL again, with this id.
    Released(PacketId),
    /// The remote has it.
    Completed,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    owner: Owner,
    below: BTreeMap<Lane, Below>,
    all: BTreeMap<Place, Exchange>,
    orphans: BTreeSet<PacketId>,
    /// In the order in which they were.
    completed: VecDeque<Place>,
    holders: BTreeMap<PacketId, Holder>,
    last_id: u16,
}

impl Owner {
    pub(super) fn new(buffer: &str, client_id: &str, address: &str) -> Self {
        let sum = |text: &str| crc32c::crc32c(text.as_bytes());
        Self { buffer: sum(buffer), client_id: sum(client_id), address: sum(address) }
    }

    /// As it is written down.
    pub(super) const fn sums(self) -> [u32; 3] {
        [self.buffer, self.client_id, self.address]
    }

    pub(super) const fn of_sums([buffer, client_id, address]: [u32; 3]) -> Self {
        Self { buffer, client_id, address }
    }
}

impl Exchanges {
    // Whose they are.

    /// Whether an exchange of `owner` can go on: the remote is to keep its session.
    pub(super) fn is_of(&self, owner: Owner) -> bool {
        self.owner == owner
    }

    /// From now on they are with `owner`, whose session is new: it knows of none. What was completed stays so. Answers how many were open.
    pub(super) fn begin_anew(&mut self, owner: Owner) -> usize {
        if self.owner.buffer != owner.buffer {
            *self = Self::default();
        }
        self.owner = owner;
        let before = self.all.len();
        self.all.retain(|_, exchange| exchange.phase == Phase::Completed);
        let open = before - self.all.len();
        self.orphans.clear();
        self.holders.clear();
        open
    }

    /// A new connection in the session that has them: ids of QoS 1 are free again, and what the cursors have passed is orphaned. Answers
    /// all orphans: each needs a PUBREL.
    pub(super) fn resume(&mut self, floors: &[(Lane, Offset)]) -> Vec<PacketId> {
        self.holders.retain(|_, holder| matches!(holder, Holder::Exchange(_) | Holder::Orphan));
        for &(lane, floor) in floors {
            let passed: Vec<Place> = self.of_lane(lane).filter(|place| place.offset < floor).collect();
            passed.into_iter().for_each(|place| self.orphan(place));
        }
        self.orphans.iter().copied().collect()
    }

    // Sending.

    /// What is known of the record at `place`. An exchange of another record that had this place once is orphaned.
    pub(super) fn look(&mut self, place: Place, named: Named) -> Known {
        let Some(known) = self.all.get_mut(&place) else { return Known::New };
        known.expired = Some(named.expired_before);
        match *known {
            Exchange { witness, .. } if witness != named.witness => {
                self.orphan(place);
                if self.all.remove(&place).is_some() {
                    self.completed.retain(|completed| *completed != place);
                }
                Known::New
            }
            Exchange { id, phase: Phase::Published, .. } => Known::Published(id),
            Exchange { id, phase: Phase::Released, .. } => Known::Released(id),
            Exchange { phase: Phase::Completed, .. } => Known::Completed,
        }
    }

    /// R8: whether the remote has taken it: it is not for us any more to let it expire.
    pub(super) fn is_taken(&self, place: Place) -> bool {
        self.all.get(&place).is_some_and(|exchange| exchange.phase != Phase::Published)
    }

    /// A packet id for a new QoS 2 exchange. `None`: there are too many.
    pub(super) fn publish(&mut self, place: Place, named: Named) -> Option<PacketId> {
        let open = self.all.len().saturating_sub(self.completed.len()) + self.orphans.len();
        let id = (open < OPEN_MAX).then(|| self.lend(Holder::Exchange(place))).flatten()?;
        let Named { witness, expired_before } = named;
        self.all.insert(place, Exchange { id, phase: Phase::Published, witness, expired: Some(expired_before) });
        Some(id)
    }

    /// A packet id for this connection.
    pub(super) fn lend(&mut self, holder: Holder) -> Option<PacketId> {
        // Ids go round, so that one is not used again at once; there are many more than may be open.
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.last_id).filter(|id| !self.holders.contains_key(id)) {
                self.holders.insert(id, holder);
                return Some(id);
            }
        }
        None
    }

    // Answers.

    /// Who has this id.
    pub(super) fn holder(&self, id: PacketId) -> Option<Holder> {
        self.holders.get(&id).copied()
    }

    /// Whether the remote has not answered yet to what the link announces of itself.
    pub(super) fn has_announcement(&self) -> bool {
        self.holders.values().any(|holder| *holder == Holder::Announcement)
    }

    /// PUBREC has come. `true`: for the first time, so that it has to be on disk before the PUBREL.
    pub(super) fn received(&mut self, place: Place) -> bool {
        let first = self.all.get_mut(&place).filter(|exchange| exchange.phase == Phase::Published);
        first.map(|exchange| exchange.phase = Phase::Released).is_some()
    }

    /// PUBCOMP, or the PUBACK of QoS 1, has come. Answers the record that is confirmed by it.
    pub(super) fn completed(&mut self, id: PacketId) -> Option<Place> {
        match self.holder(id)? {
            Holder::Exchange(place) => {
                let exchange = self.all.get_mut(&place).filter(|exchange| exchange.phase == Phase::Released)?;
                exchange.phase = Phase::Completed;
                self.completed.push_back(place);
                self.holders.remove(&id);
                while self.completed.len() > COMPLETED_MAX {
                    self.completed.pop_front().map(|oldest| self.all.remove(&oldest));
                }
                Some(place)
            }
            Holder::Plain(place) => {
                self.holders.remove(&id);
                Some(place)
            }
            Holder::Announcement | Holder::Orphan => {
                self.holders.remove(&id);
                self.orphans.remove(&id);
                None
            }
        }
    }

    /// The remote does not take it: the exchange is over. Answers its record.
    pub(super) fn refused(&mut self, id: PacketId) -> Option<Place> {
        let holder = self.holders.remove(&id)?;
        self.orphans.remove(&id);
        match holder {
            Holder::Exchange(place) => {
                self.all.remove(&place);
                Some(place)
            }
            Holder::Plain(place) => Some(place),
            Holder::Announcement | Holder::Orphan => None,
        }
    }

    fn orphan(&mut self, place: Place) {
        let open = self.all.get(&place).filter(|exchange| exchange.phase != Phase::Completed).copied();
        if let Some(Exchange { id, .. }) = open {
            self.all.remove(&place);
            self.orphans.insert(id);
            self.holders.insert(id, Holder::Orphan);
        }
    }

    // What the cursors know.

    /// Everything below `floors` is settled: of what was completed there only the last is remembered.
    pub(super) fn pass(&mut self, floors: &[(Lane, Offset)]) {
        for &(lane, floor) in floors {
            let passed: Vec<Place> = self.of_lane(lane).filter(|place| place.offset < floor).collect();
            for place in passed {
                let Some(done) = self.all.get(&place).filter(|exchange| exchange.phase == Phase::Completed) else {
                    continue;
                };
                let Exchange { witness, expired, .. } = *done;
                self.below.insert(lane, Below { offset: Offset(place.offset.0 + 1), witness, expired });
                self.all.remove(&place);
            }
        }
        let Self { completed, all, .. } = self;
        completed.retain(|place| all.contains_key(place));
    }

    /// What the remote has for certain, with all before it.
    pub(super) fn confirmed(&self) -> Vec<Confirmed> {
        let below = self.below.iter();
        let confirmed = |(&lane, &Below { offset, witness, expired })| Confirmed {
            below: Place { lane, offset },
            witness,
            expired,
        };
        below.map(confirmed).collect()
    }

    /// The logs end at `ends`: what lies behind them is of records that a power cut took. Answers whether there was such.
    pub(super) fn forget_beyond(&mut self, ends: &[(Lane, Offset)]) -> bool {
        let end_of = |lane: Lane| ends.iter().find(|(own, _)| *own == lane).map_or(Offset(0), |(_, end)| *end);
        let gone: Vec<Place> = self.all.keys().filter(|place| place.offset >= end_of(place.lane)).copied().collect();
        for place in &gone {
            self.orphan(*place);
            self.all.remove(place);
        }
        let lanes = self.below.len();
        self.below.retain(|lane, below| below.offset <= end_of(*lane));
        let Self { completed, all, .. } = self;
        completed.retain(|place| all.contains_key(place));
        !gone.is_empty() || self.below.len() < lanes
    }

    fn of_lane(&self, lane: Lane) -> impl Iterator<Item = Place> + '_ {
        let at = |offset| Place { lane, offset: Offset(offset) };
        self.all.range(at(0)..=at(u64::MAX)).map(|(place, _)| *place)
    }
}

impl Table for Exchanges {
    // Nothing is lost by it: what was under way is sent again.
    const DAMAGED: &'static str = "the QoS 2 exchanges that were under way are not known any more: what the remote had not confirmed may come to it twice";

    fn encode(&self) -> Vec<u8> {
        let count = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        let mut out = vec![FORMAT];
        self.owner.sums().into_iter().for_each(|sum| out.put_u32_le(sum));
        out.put_u8(u8::try_from(self.below.len()).unwrap_or(u8::MAX));
        for (lane, below) in &self.below {
            out.put_u8(lane.number());
            out.put_u64_le(below.offset.0);
            out.put_u32_le(below.witness);
            out.put_u64_le(below.expired.unwrap_or(UNKNOWN));
        }
        out.put_u16_le(count(self.all.len()));
        for (place, exchange) in &self.all {
            let phase = match exchange.phase {
                Phase::Published => 0x10,
                Phase::Released => 0x20,
                Phase::Completed => 0x30,
            };
            out.put_u8(place.lane.number() | phase);
            out.put_u16_le(exchange.id.get());
            out.put_u64_le(place.offset.0);
            out.put_u32_le(exchange.witness);
        }
        out.put_u16_le(count(self.orphans.len()));
        self.orphans.iter().for_each(|id| out.put_u16_le(id.get()));
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let input = &mut bytes;
        let mut read = Self::default();
        let format = input.try_get_u8().ok()?;
        if !matches!(format, FORMAT_BEFORE | FORMAT) {
            return None;
        }
        let mut sum = || input.try_get_u32_le().ok();
        read.owner = Owner::of_sums([sum()?, sum()?, sum()?]);
        for _ in 0..input.try_get_u8().ok()? {
            let lane = lane(input.try_get_u8().ok()?)?;
            let (offset, witness) = (Offset(input.try_get_u64_le().ok()?), input.try_get_u32_le().ok()?);
            let expired = if format == FORMAT_BEFORE { UNKNOWN } else { input.try_get_u64_le().ok()? };
            let expired = Some(expired).filter(|expired| *expired != UNKNOWN);
            read.below.insert(lane, Below { offset, witness, expired });
        }
        for _ in 0..input.try_get_u16_le().ok()? {
            let head = input.try_get_u8().ok()?;
            let id = PacketId::new(input.try_get_u16_le().ok()?)?;
            let place = Place { lane: lane(head & 0x0F)?, offset: Offset(input.try_get_u64_le().ok()?) };
            let witness = input.try_get_u32_le().ok()?;
            let phase = match head & 0xF0 {
                0x10 => Phase::Published,
                0x20 => Phase::Released,
                0x30 => Phase::Completed,
                _ => return None,
            };
            if phase == Phase::Completed {
                read.completed.push_back(place);
            } else {
                read.holders.insert(id, Holder::Exchange(place));
                read.last_id = read.last_id.max(id.get());
            }
            read.all.insert(place, Exchange { id, phase, witness, expired: None });
        }
        for _ in 0..input.try_get_u16_le().ok()? {
            let id = PacketId::new(input.try_get_u16_le().ok()?)?;
            read.orphans.insert(id);
            read.holders.insert(id, Holder::Orphan);
        }
        input.is_empty().then_some(read)
    }
}

fn lane(number: u8) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane.number() == number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::SlotFile;

    const HERE: [(Lane, Offset); 1] = [(Lane::Normal, Offset(0))];

    fn at(offset: u64) -> Place {
        Place { lane: Lane::Normal, offset: Offset(offset) }
    }

    fn floor(offset: u64) -> [(Lane, Offset); 1] {
        [(Lane::Normal, Offset(offset))]
    }

    /// Nothing had lapsed before it.
    fn named(witness: u32) -> Named {
        Named { witness, expired_before: 0 }
    }

    /// What a start of the process finds.
    fn restarted(table: &Exchanges) -> Exchanges {
        Exchanges::decode(&table.encode()).unwrap()
    }

    #[test]
    fn r25_a_record_keeps_its_packet_id_and_its_phase_over_a_restart() {
        let mut table = Exchanges::default();
        let ids: Vec<PacketId> = (0..4).map(|offset| table.publish(at(offset), named(7)).unwrap()).collect();
        assert!(table.received(at(1)) && table.received(at(2)) && !table.received(at(2)));
        assert_eq!(table.completed(ids[2]), Some(at(2)));
        assert_eq!(table.completed(ids[2]), None, "once");
        assert_eq!(table.completed(ids[0]), None, "without a PUBREC it is not with the remote");
        let mut table = restarted(&table);
        assert!(table.resume(&HERE).is_empty());
        let known: Vec<Known> = (0..5).map(|offset| table.look(at(offset), named(7))).collect();
        let expected =
            [Known::Published(ids[0]), Known::Released(ids[1]), Known::Completed, Known::Published(ids[3]), Known::New];
        assert_eq!(known, expected);
        assert_eq!((0..4).map(|offset| table.is_taken(at(offset))).collect::<Vec<_>>(), [false, true, true, false]);
        let fresh = table.publish(at(4), named(7)).unwrap();
        assert!(!ids.contains(&fresh), "{fresh} is still open");
    }

    #[test]
    fn what_nobody_owes_any_more_is_released_so_that_its_id_comes_free() {
        let mut table = Exchanges::default();
        let ids: Vec<PacketId> = (0..3).map(|offset| table.publish(at(offset), named(7)).unwrap()).collect();
        let mut table = restarted(&table);
        assert_eq!(table.resume(&floor(2)), [ids[0], ids[1]]);
        assert_eq!(table.holder(ids[0]), Some(Holder::Orphan));
        let mut table = restarted(&table);
        assert_eq!(table.resume(&floor(2)), [ids[0], ids[1]], "over a restart too");
        assert_eq!((table.completed(ids[0]), table.completed(ids[1])), (None, None));
        assert!(table.resume(&floor(2)).is_empty() && table.holder(ids[0]).is_none());
        // The place has another record now.
        assert_eq!((table.look(at(2), named(8)), table.resume(&floor(2))), (Known::New, vec![ids[2]]));
    }

    #[test]
    fn what_the_cursor_has_passed_is_one_number_and_a_shorter_log_takes_it_back() {
        let mut table = Exchanges::default();
        for offset in 0..5 {
            let id = table.publish(at(offset), named(u32::try_from(offset).unwrap())).unwrap();
            table.received(at(offset));
            table.completed(id);
        }
        table.pass(&floor(3));
        let mut table = restarted(&table);
        assert_eq!(table.confirmed(), [Confirmed { below: at(3), witness: 2, expired: Some(0) }]);
        assert_eq!((table.look(at(2), named(2)), table.look(at(3), named(3))), (Known::New, Known::Completed));
        assert!(!table.forget_beyond(&floor(5)));
        assert!(table.forget_beyond(&floor(4)), "the power cut took 4");
        assert_eq!((table.look(at(3), named(3)), table.look(at(4), named(4))), (Known::Completed, Known::New));
        assert!(table.forget_beyond(&floor(2)) && table.confirmed().is_empty());
    }

    #[test]
    fn r07_what_had_lapsed_before_the_last_one_that_the_remote_has_is_told_over_a_restart() {
        let mut table = Exchanges::default();
        let confirmed = |table: &Exchanges| table.confirmed().first().map(|said| (said.below, said.expired));
        // 0 to 2 and 4 have lapsed, the cursor has passed 3, and then 4 and 5.
        for (offset, expired_before, floor_then) in [(3, 3, 4), (5, 4, 6)] {
            let named = Named { witness: 7, expired_before };
            let id = table.publish(at(offset), named).unwrap();
            table.received(at(offset));
            table.completed(id);
            let mut table_then = restarted(&table);
            // It has not been looked at since: the cursor knows it, and what had lapsed.
            table_then.pass(&floor(floor_then));
            assert_eq!(confirmed(&table_then), Some((at(floor_then), None)));
            // It has.
            let mut table_then = restarted(&table);
            assert_eq!(table_then.look(at(offset), named), Known::Completed);
            table_then.pass(&floor(floor_then));
            assert_eq!(confirmed(&restarted(&table_then)), Some((at(floor_then), Some(expired_before))));
            table.pass(&floor(floor_then));
            assert_eq!(confirmed(&restarted(&table)), Some((at(floor_then), Some(expired_before))));
        }
        // As an earlier program wrote it down.
        let mut bytes = table.encode();
        bytes[0] = FORMAT_BEFORE;
        bytes.drain(27..35);
        assert_eq!(confirmed(&Exchanges::decode(&bytes).unwrap()), Some((at(6), None)));
    }

    #[test]
    fn a_session_that_is_gone_knows_of_none() {
        let (one, other) = (Owner::new("b", "c", "a:1"), Owner::new("b", "c", "a:2"));
        let mut table = Exchanges::default();
        table.begin_anew(one);
        let id = table.publish(at(0), named(7)).unwrap();
        table.received(at(0));
        table.completed(id);
        table.publish(at(1), named(7)).unwrap();
        let mut table = restarted(&table);
        assert!(table.is_of(one) && !table.is_of(other));
        table.begin_anew(other);
        assert_eq!((table.look(at(0), named(7)), table.look(at(1), named(7))), (Known::Completed, Known::New));
        table.begin_anew(Owner::new("other", "c", "a:2"));
        assert_eq!(table.look(at(0), named(7)), Known::New, "another buffer has other records");
    }

    #[test]
    fn ids_of_qos_1_end_with_the_connection_and_the_fullest_table_fits_the_file() {
        let mut table = Exchanges::default();
        let plain = table.lend(Holder::Plain(at(9))).unwrap();
        let own = table.lend(Holder::Announcement).unwrap();
        assert_eq!((table.completed(own), table.holder(own)), (None, None));
        table.resume(&HERE);
        assert_eq!(table.holder(plain), None);
        for offset in 0..2_000 {
            let id = table.publish(at(offset), named(7)).unwrap();
            table.received(at(offset));
            table.completed(id);
        }
        let opened = (2_000..4_000).map_while(|offset| table.publish(at(offset), named(7))).count();
        assert_eq!(opened, OPEN_MAX);
        for lane in Lane::ALL {
            table.below.insert(lane, Below { offset: Offset(1), witness: 1, expired: None });
        }
        assert!(table.encode().len() <= SlotFile::BYTES_MAX, "{}", table.encode().len());
        assert_eq!(restarted(&table).encode(), table.encode());
    }

    #[test]
    fn bytes_that_are_damaged_are_no_exchanges() {
        let mut table = Exchanges::default();
        table.publish(at(0), named(7)).unwrap();
        let bytes = table.encode();
        for len in 0..bytes.len() {
            assert!(Exchanges::decode(&bytes[..len]).is_none(), "{len}");
        }
    }
}
