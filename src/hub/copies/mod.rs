//! Copies of what other gateways stamped: a message that has come is not taken again (R12). So what comes by two ways, or again
//! because an acknowledgement was lost, is delivered once, and rings and meshes of gateways come to rest.
//!
//! Known by `tg-id`: its site, run and counter. An *origin* is one run of one site, and one part where a route makes several of a
//! message (R11). Of each origin a high mark and a window of bits are kept ([`seen`]); what is further behind is let through: twice is
//! better than never.
//!
//! **Nothing is dropped before the first one is safe.** A message counts as come when its receipt has settled. Until then a copy
//! of it waits: first for the hub to take the first one, or to refuse it, and then the copy is the first; then it gets the first one's own
//! receipt, so that nobody is acknowledged for what may still be lost.
//!
//! **Kept** in the broker's store, by [`Copies::keep`], each second: after a kill, copies of what came in the last second are let through.
//! Bounded: [`ORIGINS_MAX`]; the one that was silent for longest is forgotten.

pub(super) mod seen;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use self::seen::{Known, PAGE_WORDS, Page, Seen};
use super::Receipt;
use crate::message::{Message, headers};
use crate::telemetry::shown::Shown;

/// Origins that are told apart. Full, they take 36 MiB; a site has one for each of its starts.
const ORIGINS_MAX: usize = 4_096;

/// Names of a site, and parts, are no longer than this where a gateway made them (16 hops): what is longer is not told apart.
const NAME_BYTES_MAX: usize = 1_280;

/// Bytes of a page as it is kept.
const PAGE_BYTES: usize = PAGE_WORDS * 8;

/// One run of one site, and which part of its messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginKey {
    /// The site.
    pub site: Arc<str>,
    /// Its run.
    pub run: u64,
    /// What stands behind the message id: empty as a rule.
    pub part: Box<str>,
}

/// A part of what is known of an origin, for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPage {
    /// Of whom.
    pub origin: OriginKey,
    /// Which part.
    pub page: u8,
    /// The highest counter when it was kept.
    pub high: u64,
    /// Its bits.
    pub bits: Vec<u8>,
}

/// What the store is to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptChanges {
    /// Not any more.
    pub forgotten: Vec<OriginKey>,
    /// In place of what it has of them.
    pub pages: Vec<KeptPage>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Copies {
    inner: Mutex<Inner>,
    /// An offer that others wait for has an answer.
    decided: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Its keys are chosen by whoever publishes, so the map keeps std's keyed hash.
    origins: HashMap<OriginKey, Origin>,
    /// Counts up with each use.
    now: u64,
    /// Of those that the store has: others leave nothing behind.
    forgotten: Vec<OriginKey>,
}

#[derive(Debug, Default)]
struct Origin {
    seen: Seen,
    /// The store has some of it.
    is_kept: bool,
    /// Not yet safe.
    open: BTreeMap<u64, Open>,
    used: u64,
}

#[derive(Debug)]
enum Open {
    /// The hub has not answered yet.
    Offered,
    /// It is on its way to the disk.
    Accepted(Receipt),
}

/// What a message is.
pub(super) enum Arrival {
    /// The first. Whoever has the claim tells what becomes of it.
    First(Claim),
    /// A copy, which is acknowledged when the first is safe.
    Copy(Receipt),
    /// A copy of one that the hub has not answered for: ask again when [`Copies::decided`] says so.
    Undecided,
}

/// The first of its kind, being offered. Dropped, it was not accepted.
pub(super) struct Claim {
    copies: Arc<Copies>,
    origin: OriginKey,
    counter: u64,
    accepted: bool,
}

impl Claim {
    pub(super) fn accepted(mut self, receipt: Receipt) {
        self.accepted = true;
        self.decide(Some(receipt));
    }

    fn decide(&self, receipt: Option<Receipt>) {
        let mut inner = self.copies.inner.lock();
        if let Some(origin) = inner.origins.get_mut(&self.origin) {
            origin.open.remove(&self.counter);
            if let Some(receipt) = receipt {
                origin.open.insert(self.counter, Open::Accepted(receipt));
            }
            origin.settle_first();
        }
        drop(inner);
        self.copies.decided.notify_waiters();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.accepted {
            self.decide(None);
        }
    }
}

impl Copies {
    /// With what the store kept.
    pub(super) fn restore(&self, pages: Vec<KeptPage>) {
        let mut inner = self.inner.lock();
        for KeptPage { origin, page, high, bits } in pages {
            if let Some(bits) = from_bytes(&bits) {
                let origin = inner.origins.entry(origin).or_default();
                origin.is_kept = true;
                origin.seen.restore(page, high, bits);
            }
        }
        while inner.origins.len() > ORIGINS_MAX {
            inner.forget_one();
        }
    }

    /// Whether this can be a gateway's id, whose copies are dropped.
    pub(super) fn can_tell(message: &Message) -> bool {
        message.id.site.len() + headers::part(message).len() <= NAME_BYTES_MAX
    }

    /// What this message of another gateway is.
    pub(super) fn arrive(self: &Arc<Self>, message: &Message) -> Arrival {
        let site = Arc::clone(&message.id.site);
        let origin = OriginKey { site, run: message.id.run, part: headers::part(message).into() };
        let counter = message.id.counter;
        let mut inner = self.inner.lock();
        inner.now += 1;
        if inner.origins.len() >= ORIGINS_MAX && !inner.origins.contains_key(&origin) {
            inner.forget_one();
        }
        let now = inner.now;
        let known = inner.origins.entry(origin.clone()).or_default();
        known.used = now;
        known.settle(counter);
        let copy = match known.open.get(&counter) {
            Some(Open::Offered) => return Arrival::Undecided,
            Some(Open::Accepted(receipt)) => Some(receipt.clone()),
            None => (known.seen.knows(counter) == Known::Yes).then(Receipt::default),
        };
        if let Some(receipt) = copy {
            drop(inner);
            self.note_copy(message);
            return Arrival::Copy(receipt);
        }
        known.open.insert(counter, Open::Offered);
        Arrival::First(Claim { copies: Arc::clone(self), origin, counter, accepted: false })
    }

    /// Returns when an offer is answered after this was first polled or enabled. Cancel safe.
    pub(super) fn decided(&self) -> Notified<'_> {
        self.decided.notified()
    }

    /// How many copies were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Hands what has changed to `keep`, which says whether it is kept.
    pub(super) fn keep(&self, keep: impl FnOnce(KeptChanges) -> bool) {
        let mut inner = self.inner.lock();
        let mut changes = KeptChanges { forgotten: std::mem::take(&mut inner.forgotten), pages: Vec::new() };
        for (key, origin) in &mut inner.origins {
            origin.settle_all();
            let high = origin.seen.high();
            let kept = |(page, bits)| KeptPage { origin: key.clone(), page, high, bits: to_bytes(&bits) };
            changes.pages.extend(origin.seen.take_changed().into_iter().map(kept));
        }
        // Not under the lock: the store has one of its own.
        drop(inner);
        if changes == KeptChanges::default() {
            return;
        }
        let again: Vec<_> = changes.pages.iter().map(|page| (page.origin.clone(), page.page)).collect();
        let forgotten = changes.forgotten.clone();
        let is_kept = keep(changes);
        let mut inner = self.inner.lock();
        for (key, page) in again {
            match inner.origins.get_mut(&key) {
                Some(origin) if is_kept => origin.is_kept = true,
                Some(origin) => origin.seen.put_back_changed(page),
                // Forgotten meanwhile.
                None if is_kept => inner.forgotten.push(key),
                None => {}
            }
        }
        if !is_kept {
            inner.forgotten.extend(forgotten);
        }
    }

    fn note_copy(&self, message: &Message) {
        let count = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        // As with loops: the first, and each time the count doubles.
        if count.is_power_of_two() {
            let topic = Shown(message.topic.as_str());
            tracing::info!(%topic, id = %message.id, count, "a copy of a message that had come already was dropped (tg-id)");
        }
    }
}

impl Inner {
    /// The one that was silent for longest, and has nothing open.
    fn forget_one(&mut self) {
        let idle = self.origins.iter().filter(|(_, origin)| origin.open.is_empty());
        let Some((key, _)) = idle.min_by_key(|(_, origin)| origin.used) else { return };
        let key = key.clone();
        if self.origins.remove(&key).is_some_and(|origin| origin.is_kept) {
            self.forgotten.push(key);
        }
    }
}

impl Origin {
    /// What is safe has come; what never will be has not.
    fn settle(&mut self, counter: u64) {
        let Some(Open::Accepted(receipt)) = self.open.get(&counter) else { return };
        if let Some(decided) = receipt.decided() {
            self.open.remove(&counter);
            if decided.is_ok() {
                self.seen.note(counter);
            }
        }
    }

    /// From the lowest on, up to one that is still open: mostly they settle in their order.
    fn settle_first(&mut self) {
        while let Some((counter, Open::Accepted(_))) = self.open.first_key_value() {
            let (counter, before) = (*counter, self.open.len());
            self.settle(counter);
            if self.open.len() == before {
                return;
            }
        }
    }

    fn settle_all(&mut self) {
        let open: Vec<u64> = self.open.keys().copied().collect();
        open.into_iter().for_each(|counter| self.settle(counter));
    }
}

fn to_bytes(bits: &Page) -> Vec<u8> {
    bits.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Option<Page> {
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    (bytes.len() == PAGE_BYTES).then(|| words.try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::MarkSender;
    use super::*;
    use crate::message::tests_support::message;

    fn of(run: u64, counter: u64) -> Message {
        let mut message = message("a", b"");
        (message.id.run, message.id.counter) = (run, counter);
        message
    }

    fn claim(copies: &Arc<Copies>, message: &Message) -> Claim {
        match copies.arrive(message) {
            Arrival::First(claim) => claim,
            Arrival::Copy(_) | Arrival::Undecided => panic!("it is the first"),
        }
    }

    /// Whether it is safe; `None`: not yet.
    fn copy(copies: &Arc<Copies>, message: &Message) -> Option<bool> {
        match copies.arrive(message) {
            Arrival::Copy(receipt) => receipt.decided().map(|decided| decided.is_ok()),
            Arrival::First(_) | Arrival::Undecided => panic!("it is a copy"),
        }
    }

    fn is_first(copies: &Arc<Copies>, message: &Message) -> bool {
        matches!(copies.arrive(message), Arrival::First(_))
    }

    fn at(log: &MarkSender, position: u64) -> Receipt {
        let mut receipt = Receipt::default();
        receipt.add(log.mark(), position);
        receipt
    }

    /// As the store has it.
    type Store = HashMap<(OriginKey, u8), KeptPage>;

    fn keep(copies: &Copies, store: &mut Store) {
        copies.keep(|changes| {
            store.retain(|(origin, _), _| !changes.forgotten.contains(origin));
            store.extend(changes.pages.into_iter().map(|page| ((page.origin.clone(), page.page), page)));
            true
        });
    }

    fn after_a_kill(store: &Store) -> Arc<Copies> {
        let copies = Arc::<Copies>::default();
        copies.restore(store.values().cloned().collect());
        copies
    }

    #[test]
    fn r12_a_copy_is_dropped_only_when_the_first_one_is_safe() {
        let (copies, log) = (Arc::<Copies>::default(), MarkSender::new(0));
        let first = claim(&copies, &of(1, 7));
        assert!(matches!(copies.arrive(&of(1, 7)), Arrival::Undecided), "not before the hub has answered");
        first.accepted(at(&log, 0));
        assert_eq!(copy(&copies, &of(1, 7)), None, "the copy's publisher waits for the first one's disk");
        log.advance(1);
        assert_eq!(copy(&copies, &of(1, 7)), Some(true));
        assert_eq!(copies.dropped(), 2);
        assert!(is_first(&copies, &of(1, 8)) && is_first(&copies, &of(2, 7)), "other messages");
    }

    #[test]
    fn r12_what_was_refused_or_never_became_safe_has_not_come() {
        let (copies, log) = (Arc::<Copies>::default(), MarkSender::new(0));
        drop(claim(&copies, &of(1, 1)));
        assert!(is_first(&copies, &of(1, 1)), "the first was refused");
        claim(&copies, &of(1, 2)).accepted(at(&log, 0));
        log.fail("disk");
        assert!(is_first(&copies, &of(1, 2)), "its log failed");
        assert_eq!(copies.dropped(), 0);
    }

    #[test]
    fn r12_what_is_kept_is_what_is_safe() {
        let (copies, log, mut store) = (Arc::<Copies>::default(), MarkSender::new(0), Store::new());
        claim(&copies, &of(1, 1)).accepted(Receipt::default());
        claim(&copies, &of(1, 2)).accepted(at(&log, 0));
        let open = claim(&copies, &of(1, 3));
        keep(&copies, &mut store);
        let restarted = after_a_kill(&store);
        assert_eq!(copy(&restarted, &of(1, 1)), Some(true));
        assert!(is_first(&restarted, &of(1, 2)) && is_first(&restarted, &of(1, 3)));
        log.advance(1);
        drop(open);
        copies.keep(|_| false);
        keep(&copies, &mut store);
        let restarted = after_a_kill(&store);
        assert_eq!(copy(&restarted, &of(1, 2)), Some(true), "what was not kept is handed out again");
        assert!(is_first(&restarted, &of(1, 3)));
    }

    #[test]
    fn r12_the_origin_that_was_silent_for_longest_is_forgotten_also_in_the_store() {
        let (copies, mut store) = (Arc::<Copies>::default(), Store::new());
        for run in 0..ORIGINS_MAX as u64 {
            claim(&copies, &of(run, 1)).accepted(Receipt::default());
        }
        keep(&copies, &mut store);
        assert_eq!(copy(&copies, &of(0, 1)), Some(true), "heard of again");
        claim(&copies, &of(u64::MAX, 1)).accepted(Receipt::default());
        keep(&copies, &mut store);
        assert_eq!((copies.inner.lock().origins.len(), store.len()), (ORIGINS_MAX, ORIGINS_MAX));
        assert!(!after_a_kill(&store).inner.lock().origins.keys().any(|origin| origin.run == 1));
        assert!(is_first(&copies, &of(1, 1)), "forgotten");
        assert_eq!(copy(&copies, &of(0, 1)), Some(true));
    }

    #[test]
    fn what_the_store_never_had_leaves_nothing_behind_r36() {
        let (copies, mut store) = (Arc::<Copies>::default(), Store::new());
        let flood = |runs: std::ops::Range<usize>| {
            runs.for_each(|run| claim(&copies, &of(run as u64, 1)).accepted(Receipt::default()));
        };
        flood(0..ORIGINS_MAX + 500);
        assert_eq!(copies.inner.lock().forgotten.len(), 0);
        copies.keep(|_| {
            flood(10_000..10_500);
            false
        });
        assert_eq!(copies.inner.lock().forgotten.len(), 0, "its disk is full");
        copies.keep(|changes| {
            flood(20_000..20_500);
            store.extend(changes.pages.into_iter().map(|page| ((page.origin.clone(), page.page), page)));
            true
        });
        assert_eq!(copies.inner.lock().forgotten.len(), 500, "forgotten while they were kept");
        keep(&copies, &mut store);
        assert_eq!((copies.inner.lock().forgotten.len(), store.len()), (0, ORIGINS_MAX));
    }

    #[test]
    fn r12_parts_of_one_message_are_no_copies_of_each_other() {
        let copies = Arc::<Copies>::default();
        let part = |part: &str| {
            let mut message = of(1, 1);
            let id = format!("{}{part}", message.id);
            message.properties.user.push((headers::ID.into(), id.into()));
            message
        };
        for text in ["", ".1", ".1.2@ship", ".2"] {
            claim(&copies, &part(text)).accepted(Receipt::default());
        }
        assert_eq!(copy(&copies, &part(".1.2@ship")), Some(true));
    }

    #[test]
    fn what_is_no_page_is_left_out() {
        let copies = Copies::default();
        let origin = OriginKey { site: "a".into(), run: 1, part: "".into() };
        copies.restore(vec![KeptPage { origin, page: 0, high: 9, bits: vec![0; 7] }]);
        assert!(copies.inner.lock().origins.is_empty());
    }
}
