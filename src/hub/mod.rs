//! Where an accepted message is routed and offered to buffers. A value, not a task: [`Hub::offer`] runs in the
//! publisher's own task, so that a full buffer whose policy is `block` pushes back on exactly that publisher.
//!
//! One offer goes through these steps, in this order (R5, R18):
//!
//! 1. **Stamp**: id, event time, origin; the stamps of earlier gateways are taken over. What has passed this site
//!    already is a loop and ends here, counted (R12). So does a copy of what has come before ([`copies`]).
//! 2. **Plan** ([`plan`]): which local topics, which links; pure but for what the gates of routes (`throttle`, `dedup`) remember.
//! 3. **Admit**: every target's buffer is asked for room before anything is done. A refused publication leaves no
//!    trace anywhere.
//! 4. **Deliver** locally: the broker's subscribers, its retained store, its kept sessions.
//! 5. **Append** to the links' logs; for an inbound QoS 2 publish only after the broker's store has committed it.
//! 6. The **receipt** settles when all of these are durable. Nobody is acknowledged before that. One that a gate holds back waits for
//!    what its route's logs hold already, since what it is held back for is among that.
//!
//! Routes and logs change while it runs ([`Hub::replace`]): an offer goes by one reading of both, and one that meets a log that is
//! being taken away, or that waits for room while they change, is planned once more by the new ones. Receipts that are out settle
//! as they would have.
//!
//! Invariants: the hub does no I/O, holds no lock across an `.await`, starts no task and knows no protocol.

mod answers;
mod copies;
mod explain;
mod gated;
mod locals;
mod logged;
mod looped;
mod ordinals;
mod plan;
mod receipt;
mod records;
mod remake;
mod reused;
mod samples;
mod terms;
#[cfg(test)]
mod tests;
mod turns;

pub use crate::buffer::{Mark, MarkSender, Rejected, Watcher};
pub use crate::router::Batch;
pub use answers::{Answer, Answers};
pub use copies::{KeptChanges, KeptPage, OriginKey};
pub use explain::{Arrived, Explanation, Judge, Output, Question, Said, Step, WrongMessage, explain};
pub use logged::{Logged, Tails};
pub use receipt::Receipt;
pub use samples::{HELD_BYTES_MAX, HELD_MAX, HeldRow};
pub use terms::{KnownAs, Local, LocalDelivery, OfferError, Publication, Source, Stored, Turn};

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::watch;

use self::answers::Given;
use self::copies::{Arrival, Claim, Copies};
use self::gated::Gated;
use self::locals::{LOCALS_MAX, LocalTarget};
use self::plan::{BadTopic, CHAIN_MAX, Gates, LinkTarget, Plan, Sampled};
use self::records::{Append, append, bytes_of, expires};
use self::reused::Reused;
use self::samples::Samples;
use self::turns::give_way;
use crate::buffer::{Admission, Buffer, Lanes, Offset, Refused};
use crate::clock::{Clock, Moment, WallMs};
use crate::message::{IdSource, Message, MessageId, Origin, Qos, headers};
use crate::router::{Counts, Endpoint, Held, LinkId, Table};
use crate::telemetry::memory::Memory;
use crate::telemetry::shown::Shown;

/// Of a topic that may be very long, so much is logged.
const TOPIC_CHARS_LOGGED: usize = 200;

/// See the module.
pub struct Hub {
    ids: IdSource,
    clock: Arc<dyn Clock>,
    targets: ArcSwap<Targets>,
    /// Counts the changes of `targets`.
    changes: watch::Sender<u64>,
    /// The change that is about to come.
    announced: watch::Sender<u64>,
    local: OnceLock<Arc<dyn Local>>,
    copies: Arc<Copies>,
    stopping: AtomicBool,
    loops_stopped: AtomicU64,
    unrouted: AtomicU64,
    bad_topics: AtomicU64,
    memory: Arc<Memory>,
    /// Names the next offer: see [`Table::ask`].
    offers: AtomicU64,
    samples: Samples,
}

/// What offers go by, of one reading of `routes.yaml`.
struct Targets {
    /// Which change it came with.
    change: u64,
    table: Arc<Table>,
    buffers: FxHashMap<LinkId, Lanes>,
}

/// What is done with one message once all targets have room for it.
struct Placed {
    /// What is delivered to the broker's subscribers.
    locals: SmallVec<[LocalTarget; 1]>,
    appends: Reused<Vec<Append>>,
    /// What is in logs already.
    found: Vec<(Mark, Offset)>,
    /// What few messages have.
    aside: Option<Box<Aside>>,
}

/// What gates and samples have to do with a message.
struct Aside {
    gated: Gated,
    /// Logs whose ends the receipt waits for: see [`Plan::behind`].
    behind: SmallVec<[Buffer; 1]>,
    /// See [`Plan::is_behind_store`].
    is_behind_store: bool,
    /// What comes into samples.
    sampled: Vec<Sampled>,
}

/// Why an offer has no room.
enum NoRoom {
    /// For good.
    Refused(OfferError),
    /// Routes and logs are others by now: it is to be planned once more.
    Changed,
}

/// A message and what is to be done with it, before its targets are asked for room.
struct Planned<'a> {
    source: &'a Source,
    message: &'a Message,
    /// Which logs may have it already.
    logged: Option<&'a Logged>,
    plan: Plan,
    /// What it was planned by.
    targets: &'a mut Arc<Targets>,
    offer: u64,
}

/// A publication that every target has room for.
struct Admitted {
    slot: usize,
    message: Arc<Message>,
    client_id: Option<Arc<str>>,
    packet_id: Option<u16>,
    placed: Placed,
    /// Where others may bring the same.
    claim: Option<Box<Claim>>,
}

impl Hub {
    /// A hub for these routes and logs. `ids` are this run's message ids.
    #[must_use]
    pub fn new(ids: IdSource, table: Table, buffers: Vec<(LinkId, Lanes)>, clock: Arc<dyn Clock>) -> Self {
        Self {
            ids,
            clock,
            targets: ArcSwap::from_pointee(Targets {
                change: 0,
                table: Arc::new(table),
                buffers: buffers.into_iter().collect(),
            }),
            changes: watch::Sender::new(0),
            announced: watch::Sender::new(0),
            local: OnceLock::new(),
            copies: Arc::default(),
            stopping: AtomicBool::new(false),
            loops_stopped: AtomicU64::new(0),
            unrouted: AtomicU64::new(0),
            bad_topics: AtomicU64::new(0),
            memory: Arc::default(),
            offers: AtomicU64::new(0),
            samples: Samples::default(),
        }
    }

    /// Knows what the store kept of messages that have come (R12). Before the first offer.
    pub fn restore_copies(&self, kept: Vec<KeptPage>) {
        self.copies.restore(kept);
    }

    /// Has the broker's store keep what has changed of it.
    pub fn keep_copies(&self) {
        let local = self.local.get();
        self.copies.keep(|changes| local.is_some_and(|local| local.keep_copies(changes)));
    }

    /// How many copies of messages that had come already were dropped (R12).
    #[must_use]
    pub fn copies_dropped(&self) -> u64 {
        self.copies.dropped()
    }

    /// Makes the built-in broker an outlet. Once, before the first offer; a second call changes nothing.
    pub fn attach(&self, local: Arc<dyn Local>) {
        // A second broker would be a mistake of the wiring, and the first one goes on to be right.
        drop(self.local.set(local));
    }

    /// Refuses every offer from now on (DESIGN.md section 9).
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Whoever waits for a change hears of the end.
        self.changes.send_modify(|change| *change += 1);
    }

    /// A [`Hub::replace`] follows soon, and logs are sealed for it: from now on an offer that waits for room in one log keeps no room in
    /// others, which would hold the seal up.
    pub fn announce(&self) {
        self.announced.send_replace(self.targets.load().change + 1);
    }

    /// From now on offers go by these routes (`None`: the same) and these logs, all at once. What routes of the same name have counted
    /// goes on. Logs that are left out have to be sealed before ([`Lanes::seal`]).
    pub fn replace(&self, table: Option<Table>, buffers: Vec<(LinkId, Lanes)>) {
        let earlier = self.targets.load_full();
        let table = table.map_or_else(
            || Arc::clone(&earlier.table),
            |mut table| {
                table.take_over(&earlier.table);
                Arc::new(table)
            },
        );
        self.samples.note_before(&earlier.table);
        let change = earlier.change + 1;
        self.targets.store(Arc::new(Targets { change, table, buffers: buffers.into_iter().collect() }));
        self.changes.send_modify(|changes| *changes += 1);
        self.let_go_by_routes_before();
    }

    /// Returns when the targets are others than those of `change`, or the end has come. Cancel safe.
    async fn changed_since(&self, change: u64) {
        let mut changes = self.changes.subscribe();
        // The sender lives as long as this hub, so waiting cannot fail.
        drop(changes.wait_for(|changes| *changes > change).await);
    }

    /// Returns when a change after `change` is about to come. Cancel safe.
    async fn announced_since(&self, change: u64) {
        let mut announced = self.announced.subscribe();
        // As above.
        drop(announced.wait_for(|announced| *announced > change).await);
    }

    /// What the gateway holds in memory: whoever brings messages asks it whether more may come (R36).
    #[must_use]
    pub const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// How many messages ended here because they had passed this site, or too many, already (R12).
    #[must_use]
    pub fn loops_stopped(&self) -> u64 {
        self.loops_stopped.load(Ordering::Relaxed)
    }

    /// How many messages of sources matched no route, and so went nowhere. (A client's publish always has the built-in
    /// broker's subscribers to go to.)
    #[must_use]
    pub fn unrouted(&self) -> u64 {
        self.unrouted.load(Ordering::Relaxed)
    }

    /// What each route held back.
    #[must_use]
    pub fn route_counts(&self) -> Vec<(Arc<str>, Counts)> {
        self.targets.load().table.counts().map(|(route, counts)| (Arc::clone(&route.name), counts)).collect()
    }

    /// How many local deliveries were dropped because nobody may publish to what a route made of the topic.
    #[must_use]
    pub fn bad_topics(&self) -> u64 {
        self.bad_topics.load(Ordering::Relaxed)
    }

    /// Routes, admits, stamps, delivers locally and appends each publication of the batch, in order. Waits only for
    /// `when_full: block` (and, for QoS 2, for the broker's store: R18). One answer for each publication: a receipt that
    /// settles when it is durable everywhere it must be, or why it was refused. Dropping the future gives up what was
    /// not appended yet; its publisher has no receipt for it and must not be acknowledged.
    pub async fn offer(&self, source: &Source, batch: Vec<Publication>) -> Vec<Answer> {
        let (answers, count) = (Answers::default(), batch.len());
        self.offer_each(source, batch, &answers).await;
        answers.in_order(count)
    }

    /// The same, and the answers come as they are known: what was accepted before one that waits has its receipt while that one
    /// still waits (R6). They are in `answers` too when the future is dropped.
    pub async fn offer_each(&self, source: &Source, batch: Vec<Publication>, answers: &Answers) {
        let mut given = Given::new(answers, batch.len());
        let mut ready = Vec::with_capacity(batch.len());
        let mut accepted = Moment::default();
        let mut targets = self.targets.load_full();
        let offer = self.next_offer();
        for (slot, publication) in batch.into_iter().enumerate() {
            // One reading for all that need not wait: what waits for room has had all before it accepted.
            if ready.is_empty() {
                accepted = self.clock.moment();
            }
            let (client_id, packet_id) = (publication.client_id.clone(), publication.packet_id);
            let known = publication.id.clone();
            let message = Arc::new(self.stamp(publication, accepted));
            if self.has_looped(&message) {
                given.give(slot, Ok(Receipt::default()));
                continue;
            }
            let claim = if self.may_be_a_copy(source, &message, known.as_ref().map(|known| &known.id)) {
                match self.first_of_its_kind(&message, &mut ready, &mut given).await {
                    Ok(claim) => Some(claim),
                    Err(firsts) => {
                        given.give(slot, Ok(firsts));
                        continue;
                    }
                }
            } else {
                None
            };
            let plan = self.plan(&targets, source, &message, offer);
            let placed = if plan.links.is_empty() && !self.stopping.load(Ordering::Acquire) {
                if plan.is_nothing() {
                    self.note_unrouted(source, &message);
                }
                Ok(self.placed(&targets, source, &message, plan, (Reused::default(), 0)))
            } else {
                let logged = known.as_ref().and_then(|known| known.logged.as_deref());
                let planned = Planned { source, message: &message, logged, plan, targets: &mut targets, offer };
                self.place(planned, &mut ready, &mut given).await
            };
            match placed {
                Ok(placed) => ready.push(Admitted { slot, message, client_id, packet_id, placed, claim }),
                Err(refused) => given.give(slot, Err(refused)),
            }
        }
        let cost = self.accept(&mut ready, &mut given).await;
        drop(given);
        give_way(cost).await;
    }

    fn next_offer(&self) -> u64 {
        self.offers.fetch_add(1, Ordering::Relaxed)
    }

    fn plan(&self, targets: &Targets, source: &Source, message: &Message, offer: u64) -> Plan {
        let plan = plan::plan(&targets.table, source, message, Gates::of(offer));
        if plan.sampled.is_empty() || self.samples.has_room(&plan.sampled, message) {
            return plan;
        }
        plan::plan(&targets.table, source, message, Gates { offer: Some(offer), has_samples: false })
    }

    /// Asks for room for what was planned; plans once more, by the new targets, where they change meanwhile.
    async fn place(
        &self,
        planned: Planned<'_>,
        ready: &mut Vec<Admitted>,
        given: &mut Given<'_>,
    ) -> Result<Placed, OfferError> {
        let Planned { source, message, logged, mut plan, targets, offer } = planned;
        let mut dropped = Vec::new();
        loop {
            let is_nothing = plan.is_nothing();
            let mut links = std::mem::take(&mut plan.links);
            let found = logged.map(|logged| logged.take(message, &mut links, &targets.buffers)).unwrap_or_default();
            let wanted = links.len();
            match self.admit(targets, message, links, &mut dropped, ready, given).await {
                Err(NoRoom::Changed) => {
                    *targets = self.targets.load_full();
                    plan = self.plan(targets, source, message, offer);
                }
                Err(NoRoom::Refused(error)) => {
                    self.note_planned(targets, source, message, &plan);
                    return Err(error);
                }
                Ok(appends) => {
                    if is_nothing {
                        self.note_unrouted(source, message);
                    }
                    let placed = self.placed(targets, source, message, plan, (appends, wanted));
                    return Ok(Placed { found, ..placed });
                }
            }
        }
    }

    /// What becomes of a plan whose records have room, as many of the wanted as no full buffer dropped.
    fn placed(
        &self,
        targets: &Targets,
        source: &Source,
        message: &Message,
        plan: Plan,
        (appends, wanted): (Reused<Vec<Append>>, usize),
    ) -> Placed {
        self.note_planned(targets, source, message, &plan);
        let Plan { locals, mut passes, behind, is_behind_store, sampled, .. } = plan;
        if passes.is_empty() && behind.is_empty() && !is_behind_store && sampled.is_empty() {
            return Placed { locals, appends, found: Vec::new(), aside: None };
        }
        // What a full buffer dropped (`drop_newest`) holds nothing back.
        if appends.len() < wanted {
            passes.clear();
        }
        let logs = behind.iter().filter_map(|(link, lane)| Some(targets.buffers.get(link)?.lane(*lane).clone()));
        let (behind, gated) = (logs.collect(), Gated::enter(&targets.table, passes));
        let aside = Some(Box::new(Aside { gated, behind, is_behind_store, sampled }));
        Placed { locals, appends, found: Vec::new(), aside }
    }

    /// Counts what routes held back of a message or could not make.
    fn note_planned(&self, targets: &Targets, source: &Source, message: &Message, plan: &Plan) {
        note_held(&targets.table, &plan.held, message);
        self.note_bad_topics(source, &plan.bad_topics);
    }

    /// Offers once more, to the links alone, a QoS 2 message that the broker's store had committed when its connection or the gateway
    /// ended (R18). It keeps its id, so that a copy in a log is known as one. The one answer is in `answers`.
    /// What `logged` says is in a log already is not appended there again. The gates of routes are open: a gate may have been passed, and
    /// the log not reached.
    pub async fn resume(&self, message: Message, logged: &Logged, answers: &Answers) {
        let source = Source { from: Endpoint::Broker, channel: None, takes_copies: false };
        let message = Arc::new(message);
        let (mut given, mut dropped) = (Given::new(answers, 1), Vec::new());
        let answer = loop {
            let targets = self.targets.load_full();
            let mut plan = plan::plan(&targets.table, &source, &message, Gates::OPEN);
            let mut receipt = Receipt::default();
            logged
                .take(&message, &mut plan.links, &targets.buffers)
                .into_iter()
                .for_each(|(mark, offset)| receipt.add(mark, offset.0));
            let mut sampled = std::mem::take(&mut plan.sampled);
            sampled.retain(|one| !self.samples.was_restored(one, &message));
            match self.admit(&targets, &message, plan.links, &mut dropped, &mut Vec::new(), &mut given).await {
                Ok(appends) => {
                    if !self.hold_all(sampled, &message, true, &mut receipt) {
                        break Err(OfferError::StoreFull);
                    }
                    append(appends, &message, &mut receipt);
                    break Ok(receipt);
                }
                Err(NoRoom::Refused(refused)) => break Err(refused),
                Err(NoRoom::Changed) => {}
            }
        };
        given.give(0, answer);
    }

    fn stamp(&self, publication: Publication, accepted: Moment) -> Message {
        let mut message = Message {
            id: publication.id.map_or_else(|| self.ids.next(), |known| known.id),
            topic: publication.topic,
            payload: publication.payload,
            qos: publication.qos,
            retain: publication.retain,
            time: publication.time_ms.map_or(accepted.wall, WallMs),
            time_unsync: publication.time_ms.is_none() && !accepted.synced,
            expiry_s: publication.expiry_s,
            accepted,
            origin: Origin {
                site: Arc::clone(self.ids.site()),
                client_id: publication.client_id,
                user: publication.user,
                ..Origin::default()
            },
            properties: publication.properties,
        };
        headers::adopt(&mut message);
        message
    }

    /// R12: what comes back to a site that it has passed goes no further, nor does what has passed too many.
    fn has_looped(&self, message: &Message) -> bool {
        let looped = looped::looped(message, self.ids.site()).is_some();
        if looped {
            let path = &message.origin.path;
            let before = self.loops_stopped.fetch_add(1, Ordering::Relaxed);
            // The first and then each time the count doubles: a loop is said, and does not flood the log.
            if (before + 1).is_power_of_two() {
                let count = before + 1;
                tracing::warn!(topic = %Shown(message.topic.as_str()), id = %message.id, path = ?path, count, "a message came back to a site that it had passed, or had passed too many, and was stopped (tg-path, hmq-bridge-hop-count)");
            }
        }
        looped
    }

    /// Whether another gateway stamped it, or its source knows it again (R25). A replay is no copy.
    fn may_be_a_copy(&self, source: &Source, message: &Message, known_as: Option<&MessageId>) -> bool {
        let is_other = !self.ids.is_mine(&message.id) && headers::replay(message).is_none();
        let is_taken_anyway = source.takes_copies && known_as != Some(&message.id);
        is_other && !is_taken_anyway && Copies::can_tell(message)
    }

    /// R12: of what other gateways stamped only the first of its kind goes on; a copy has that one's receipt. Where the first
    /// one still waits for its answer, what was admitted before is accepted first: it may be what that one waits for.
    async fn first_of_its_kind(
        &self,
        message: &Message,
        ready: &mut Vec<Admitted>,
        given: &mut Given<'_>,
    ) -> Result<Box<Claim>, Receipt> {
        let mut has_waited = false;
        loop {
            let mut decided = std::pin::pin!(self.copies.decided());
            decided.as_mut().enable();
            match self.copies.arrive(message) {
                Arrival::First(claim) => return Ok(Box::new(claim)),
                Arrival::Copy(firsts) => return Err(firsts),
                Arrival::Undecided if has_waited => decided.await,
                Arrival::Undecided => {
                    has_waited = true;
                    self.accept(ready, given).await;
                    given.show();
                }
            }
        }
    }

    /// A message that no route takes is gone once its origin has its acknowledgement: counted, and said.
    fn note_unrouted(&self, source: &Source, message: &Message) {
        let count = self.unrouted.fetch_add(1, Ordering::Relaxed) + 1;
        // As with loops: the first, and each time the count doubles.
        if count.is_power_of_two() {
            tracing::warn!(from = %source.from, topic = %Shown(message.topic.as_str()), count, "a message of a source matched no route and went nowhere");
        }
    }

    /// What a route leads to the broker under a topic that clients may not publish to either is not delivered there.
    fn note_bad_topics(&self, source: &Source, bad_topics: &[BadTopic]) {
        for BadTopic { route, topic, why } in bad_topics {
            let count = self.bad_topics.fetch_add(1, Ordering::Relaxed) + 1;
            // As with loops: the first, and each time the count doubles.
            if count.is_power_of_two() {
                let topic: String = topic.chars().take(TOPIC_CHARS_LOGGED).collect();
                tracing::warn!(from = %source.from, %route, topic, count, "a message is not delivered to the broker: {why}");
            }
        }
    }

    /// Asks every target for room. Where one has to be waited for, what was admitted before it is accepted first: a
    /// blocked message holds back its successors, never its predecessors. Nor does it hold back a change ([`Hub::announce`]).
    /// `dropped`: targets that have dropped it already, which counts once.
    async fn admit(
        &self,
        among: &Targets,
        message: &Message,
        mut targets: Reused<Vec<LinkTarget>>,
        dropped: &mut Vec<(LinkId, u16)>,
        ready: &mut Vec<Admitted>,
        given: &mut Given<'_>,
    ) -> Result<Reused<Vec<Append>>, NoRoom> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(NoRoom::Refused(OfferError::Stopping));
        }
        let mut appends: Reused<Vec<Append>> = Reused::default();
        for target in targets.drain(..) {
            let expires = expires(message, target.ttl);
            // A route to a link without a log cannot be configured; were it, refusing keeps the promise.
            let Some(lanes) = among.buffers.get(&target.link) else {
                let (link, reason) = (target.link, "the link has no buffer".into());
                return Err(NoRoom::Refused(OfferError::Failed { link, reason }));
            };
            if dropped.iter().any(|(link, ordinal)| *link == target.link && *ordinal == target.ordinal) {
                continue;
            }
            let buffer = lanes.lane(target.lane);
            let bytes = bytes_of(message, &target);
            let admission = match buffer.admit(bytes).now_or_never() {
                Some(admission) => admission,
                None => {
                    self.accept(ready, given).await;
                    given.show();
                    let has_room = !appends.is_empty();
                    tokio::select! {
                        biased;
                        admission = buffer.admit(bytes) => admission,
                        () = self.changed_since(among.change) => return Err(NoRoom::Changed),
                        () = self.announced_since(among.change), if has_room => {
                            drop(appends);
                            self.changed_since(among.change).await;
                            return Err(NoRoom::Changed);
                        }
                    }
                }
            };
            match admission {
                Ok(Admission::Granted(permit)) => {
                    let buffer = buffer.clone();
                    appends.push(Append { target, buffer, permit, expires });
                }
                Ok(Admission::DroppedNewest) => dropped.push((target.link, target.ordinal)),
                Err(Refused::Closed) => {
                    // What has room already is not held back by this: it may be what the log's end waits for.
                    drop(appends);
                    self.accept(ready, given).await;
                    given.show();
                    self.changed_since(among.change).await;
                    return Err(NoRoom::Changed);
                }
                Err(refused) => return Err(NoRoom::Refused(refusal(target.link, refused))),
            }
        }
        Ok(appends)
    }

    /// Steps 4 to 6 for one, whose answers of the broker come next.
    async fn accept_one(&self, admitted: Admitted, stored: &mut impl Iterator<Item = Stored>, given: &mut Given<'_>) {
        let Admitted { slot, message, packet_id, placed, claim, .. } = admitted;
        let Placed { locals, appends, found, mut aside } = placed;
        let mut receipt = Receipt::default();
        let mut refused = None;
        for stored in stored.take(locals.len()) {
            match stored {
                Stored::Nothing => {}
                Stored::At(mark, position) => receipt.add(mark, position),
                Stored::NoRoom => refused = Some(OfferError::StoreFull),
                Stored::RetainedFull => refused = Some(OfferError::RetainedFull),
            }
        }
        // What comes again, since its publisher is not acknowledged, goes to the links then. Nobody repeats QoS 0.
        let comes_again = message.qos != Qos::AtMostOnce;
        if let Some(refused) = refused.filter(|_| comes_again) {
            return given.give(slot, Err(refused));
        }
        let in_store = match receipt.decided() {
            Some(decided) => decided,
            None if packet_id.is_some() && !appends.is_empty() => {
                given.show();
                receipt.settled().await
            }
            None => Ok(()),
        };
        if let Err(Rejected(reason)) = in_store
            && comes_again
        {
            let link = LinkId::new("broker");
            return given.give(slot, Err(OfferError::Failed { link, reason }));
        }
        let sampled = aside.as_mut().map(|aside| std::mem::take(&mut aside.sampled)).unwrap_or_default();
        if !self.hold_all(sampled, &message, comes_again, &mut receipt) {
            return given.give(slot, Err(OfferError::StoreFull));
        }
        found.into_iter().for_each(|(mark, offset)| receipt.add(mark, offset.0));
        append(appends, &message, &mut receipt);
        if let Some(aside) = aside {
            self.settle_aside(*aside, &mut receipt);
        }
        if let Some(claim) = claim {
            claim.accepted(receipt.clone());
        }
        given.give(slot, Ok(receipt));
    }

    /// Whether samples hold all of these, and the store has room for that. What does not come again is held always.
    fn hold_all(
        &self,
        sampled: Vec<Sampled>,
        message: &Arc<Message>,
        comes_again: bool,
        receipt: &mut Receipt,
    ) -> bool {
        if sampled.is_empty() {
            return true;
        }
        let targets = self.targets.load();
        sampled.into_iter().all(|one| match self.hold(&targets.table, one, message, comes_again) {
            Stored::Nothing => true,
            Stored::At(mark, position) => {
                receipt.add(mark, position);
                true
            }
            Stored::NoRoom | Stored::RetainedFull => false,
        })
    }

    /// It is in the logs.
    fn settle_aside(&self, aside: Aside, receipt: &mut Receipt) {
        aside.gated.settle();
        wait_behind(&aside.behind, receipt);
        let local = self.local.get().filter(|_| aside.is_behind_store);
        if let Some((mark, last)) = local.and_then(|local| local.staged()) {
            receipt.add(mark, last);
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("site", self.ids.site())
            .field("links", &self.targets.load().buffers.len())
            .finish_non_exhaustive()
    }
}

/// Counts what routes held back of a message. What they could not make, or were not asked for, is said too: the first, and each time the count
/// doubles.
fn note_held(table: &Table, held: &[(usize, Held)], message: &Message) {
    for (at, held) in held {
        let count = table.note(*at, *held);
        let route = table.routes().get(*at).map(|route| &route.name);
        let Some(route) = route.filter(|_| count.is_power_of_two()) else { continue };
        let (topic, id) = (Shown(message.topic.as_str()), &message.id);
        match held {
            Held::Filtered | Held::Suppressed => {}
            Held::Failed => {
                tracing::warn!(%route, %topic, %id, count, "a route cannot make of this message what it should: dead letters of its links (`transform`), and nothing for local clients");
            }
            Held::TooFar => {
                tracing::warn!(%route, %topic, %id, count, "a route does not take what others made of this message: by the broker at most {CHAIN_MAX} routes behind the first are followed");
            }
            Held::TooMany => {
                tracing::warn!(%route, %topic, %id, count, "what a route made of this message is not delivered to the broker: that has {LOCALS_MAX} messages of it");
            }
        }
    }
}

/// A message that a gate holds back since another went through is acknowledged no sooner than that one could be.
fn wait_behind(logs: &[Buffer], receipt: &mut Receipt) {
    for log in logs {
        if let Some(last) = log.end().0.checked_sub(1) {
            receipt.add(log.mark(), last);
        }
    }
}

fn refusal(link: LinkId, refused: Refused) -> OfferError {
    match refused {
        Refused::Full => OfferError::Full { link },
        Refused::Failed(reason) => OfferError::Failed { link, reason },
        Refused::Closed => OfferError::Stopping,
    }
}
