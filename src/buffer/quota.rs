//! What the lanes of a link share: one quota (R14), and one window of confirmations that may be unsaved (R9).
//!
//! An offer is decided under one short lock for all lanes, the gate: so what each of them has in use cannot grow while
//! the others are counted, and `max_size` holds for the sum. The lanes' own locks are taken one at a time inside it.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::cursor::Drop;
use super::lanes::Lane;
use super::state::Shared;
use super::wide;

/// What a lane knows of the others.
#[derive(Debug)]
pub(super) struct Siblings {
    gate: Arc<Mutex<()>>,
    /// The lowest first.
    others: Vec<(Lane, Weak<Shared>)>,
    own: Lane,
    /// Confirmations that may be unsaved in all lanes together.
    window: u64,
}

/// Makes the lanes share what is now the quota of each, and `window`: so many confirmations may be unsaved in all of them together.
pub(super) fn share(lanes: impl Iterator<Item = (Lane, Arc<Shared>)>, window: usize) {
    let mut lanes: Vec<(Lane, Arc<Shared>)> = lanes.collect();
    if lanes.len() < 2 {
        return;
    }
    lanes.sort_by_key(|(lane, _)| std::cmp::Reverse(*lane));
    let gate = Arc::new(Mutex::new(()));
    for (own, shared) in &lanes {
        let others = lanes.iter().filter(|(lane, _)| lane != own);
        let others = others.map(|(lane, other)| (*lane, Arc::downgrade(other))).collect();
        shared.share_quota(Siblings { gate: Arc::clone(&gate), others, own: *own, window: wide(window) });
    }
}

impl Siblings {
    /// Nobody else decides an offer to this link meanwhile.
    pub(super) fn gate(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.gate.lock()
    }

    fn others(&self) -> impl Iterator<Item = (Lane, Arc<Shared>)> + '_ {
        self.others.iter().filter_map(|(lane, other)| Some((*lane, other.upgrade()?)))
    }

    /// Bytes that the other lanes have on disk or may still write.
    pub(super) fn in_use(&self) -> u64 {
        self.others().map(|(_, other)| other.in_use()).sum()
    }

    /// Asks the other lanes for what costs nothing: settled segments. Whether some come.
    pub(super) fn reclaim(&self) -> bool {
        // All of them are asked, as one may not be enough.
        self.others().fold(false, |some, (_, other)| other.reclaim() || some)
    }

    /// Lets the lowest of the lanes below that has something give up its oldest records. Whether one did.
    pub(super) fn drop_from_lower(&self, why: Drop) -> bool {
        self.others().filter(|(lane, _)| *lane > self.own).any(|(_, other)| other.give_up(why))
    }

    /// Whether lanes above owe something.
    pub(super) fn higher_hold_some(&self) -> bool {
        self.others().any(|(lane, other)| lane < self.own && other.owes())
    }

    /// See [`Shared::is_unsaved`].
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// Confirmations in the other lanes that are not saved.
    pub(super) fn unsaved(&self) -> u64 {
        self.others().map(|(_, other)| other.unsaved()).sum()
    }

    /// One lane's cursor was saved: the others' readers look again.
    pub(super) fn saved(&self) {
        self.others().for_each(|(_, other)| other.wake_reader());
    }

    /// Space may have come back for all.
    pub(super) fn make_room(&self) {
        self.others().for_each(|(_, other)| other.make_own_room());
    }
}
