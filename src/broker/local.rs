//! The broker as the hub's outlet: subscribers, kept sessions and the retained store (R1, R17, R18).
//!
//! A delivery that has to be stored for anyone (a kept session, the retained store, the inbound id of a kept publisher)
//! is staged as one unit, so that it is stored wholly or not at all. All others touch no lock but the receivers'.
//!
//! One message may lead through thousands of filters, and to thousands of subscribers. What a batch costs is counted in steps, and its
//! turn ends behind the message with which that is enough: the hub brings the others again, once others had their turns.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::Broker;
use super::client::{AtMostOnce, Client, Delivery, Encoded, PushTerms, State};
use super::memory::Allowance;
use super::store::{Op, Unit, encode_body};
use super::topics::Match;
use crate::clock::Moment;
use crate::hub::{HeldRow, KeptChanges, Local, LocalDelivery, Mark, Stored, Turn};
use crate::message::{Message, Qos};
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::topic::TopicName;

/// Of what is not retained, so often one is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a turn may cost, in QoS 0 messages for one subscriber each: some milliseconds.
const TURN_STEPS: usize = 1 << 16;

/// A unit of tokio's budget of a task, in the same measure: a task has two turns before others have theirs.
const BUDGET_STEPS: usize = TURN_STEPS / 64;

/// What a node of the tree, or a subscription, that was looked at costs.
const WALKED_STEPS: usize = 4;

/// What a QoS 1 or 2 message for one subscriber costs.
const QUEUED_STEPS: usize = 4;

/// One step more for so many bytes of a payload.
const BYTES_A_STEP: usize = 1_024;

/// So much memory is taken for subscribers of a batch before it is told of ([`crate::telemetry::memory::Memory::brought`]).
const BROUGHT_MAX: u64 = 1 << 20;

tokio::task_local! {
    /// There while a will is offered: its client is gone, and nobody can be told that it is refused.
    pub(super) static OFFERS_A_WILL: ();
}

/// Whether a delivery has the room that it needs.
enum Room {
    Enough,
    /// The store takes nothing new.
    NotInStore,
    /// As much is retained as may be.
    NotRetained,
}

impl Local for Broker {
    fn deliver(&self, batch: &[LocalDelivery<'_>]) -> Turn {
        let (now, room) = (self.clock.moment(), self.allowance());
        let mut round = Round { now, room, last: None, refused: None, steps: 0, sent: 0, sent_bytes: 0, brought: 0 };
        let mut stored = Vec::with_capacity(batch.len());
        for delivery in batch {
            if delivery.begins && round.steps >= TURN_STEPS {
                break;
            }
            stored.push(self.deliver_one(delivery, &mut round));
        }
        self.board.sent.fetch_add(round.sent, Ordering::Relaxed);
        self.board.publish_bytes_out.fetch_add(round.sent_bytes, Ordering::Relaxed);
        self.hub.memory().brought(round.brought);
        Turn { stored, cost: u32::try_from(round.steps / BUDGET_STEPS).unwrap_or(u32::MAX) }
    }

    fn keep_copies(&self, changes: KeptChanges) -> bool {
        let (is_kept, _) = self.store.stage(|unit| {
            let has_room = unit.has_room();
            if has_room {
                unit.push(Op::Copies(Box::new(changes)));
            }
            has_room
        });
        is_kept
    }

    fn staged(&self) -> Option<(Mark, u64)> {
        Some((self.store_mark.clone(), self.store.last_staged()?))
    }

    fn hold(&self, row: HeldRow, gave_way: Option<String>) -> Stored {
        let (has_room, position) = self.store.stage(|unit| {
            let has_room = unit.has_room();
            if has_room {
                unit.push(Op::Hold(Box::new(row), gave_way));
            }
            has_room
        });
        if has_room { self.stored(position) } else { Stored::NoRoom }
    }

    fn unhold(&self, route: &Arc<str>, topic: &Arc<str>, id: String) {
        self.store.stage_one(Op::Unhold(Arc::clone(route), Arc::clone(topic), id));
    }
}

/// What the deliveries of one batch have in common.
struct Round<'a> {
    now: Moment,
    /// What a slow subscriber may hold.
    room: Allowance,
    /// Whom the last topic led to: a client's batch has runs of one.
    last: Option<(&'a TopicName, Arc<[Match]>)>,
    /// The message that was refused last: what routes made of it is refused with it.
    refused: Option<&'a Arc<Message>>,
    /// What it has cost, see [`TURN_STEPS`].
    steps: usize,
    /// QoS 0 messages that were pushed, and the bytes of their payloads.
    sent: u64,
    sent_bytes: u64,
    /// Bytes that were taken for subscribers and not told of yet.
    brought: u64,
}

/// A delivery under way.
struct Job<'a> {
    delivery: &'a LocalDelivery<'a>,
    /// The publisher, for its inbound QoS 2 exchange.
    publisher: Option<(Arc<Client>, u16)>,
    /// The publisher's exchange is stored.
    publisher_kept: bool,
    matches: &'a [Match],
    body: Option<Bytes>,
    /// As much is retained as may be: it is delivered, and not retained.
    is_retained_full: bool,
    /// At QoS 0 what most subscribers get is the same to the last byte.
    encoded: Encoded,
    now: Moment,
}

impl Broker {
    fn deliver_one<'a>(&self, delivery: &'a LocalDelivery<'a>, round: &mut Round<'a>) -> Stored {
        if round.refused.is_some_and(|refused| Arc::ptr_eq(refused, delivery.message)) {
            return Stored::RetainedFull;
        }
        // Headers of other protocols may be what MQTT cannot carry: subscribers would end their connections for it.
        if delivery.packet_id.is_none() && delivery.message.properties.unfit().is_some() {
            self.board.dropped("not_encodable");
            return Stored::Nothing;
        }
        let publisher = self.publisher(delivery);
        let mut publisher_kept = false;
        if let Some((client, id)) = &publisher {
            let state = client.lock();
            if let Some(done) = state.inbound.delivered(*id) {
                return self.stored(done);
            }
            publisher_kept = state.terms.kept;
        }
        let matches = self.matches(delivery, round);
        let is_stored = publisher_kept
            || delivery.message.retain
            || (delivery.message.qos != Qos::AtMostOnce
                && matches.iter().any(|one| one.qos != Qos::AtMostOnce && one.client.lock().owes_by_store()));
        let (body, encoded, now) = (None, Encoded::default(), round.now);
        let (matches, is_retained_full) = (&*matches, false);
        let mut job = Job { delivery, publisher, publisher_kept, matches, body, is_retained_full, encoded, now };
        if !is_stored {
            self.hand_out(&mut job, round, None);
            return Stored::Nothing;
        }
        // Each may be owed it; and it may be retained, and its publisher's exchange noted.
        let rows = job.matches.len() + 2;
        let (room, position) = self.store.stage(|unit| {
            if !unit.has_room_for(rows) {
                return Room::NotInStore;
            }
            // Nothing else is retained or removed meanwhile: that takes the store's lock.
            job.is_retained_full = !self.may_retain(delivery);
            // A client's own publish is refused, so that it knows. What links and routes bring, QoS 0 and wills are delivered all the same.
            let is_told = delivery.client_id.is_some() && delivery.message.qos != Qos::AtMostOnce;
            if job.is_retained_full && is_told && OFFERS_A_WILL.try_with(|()| ()).is_err() {
                return Room::NotRetained;
            }
            self.hand_out(&mut job, round, Some(unit));
            Room::Enough
        });
        match room {
            Room::Enough => self.stored(position),
            Room::NotInStore => {
                // Above QoS 0 its publisher is told, and brings it again.
                if delivery.message.qos == Qos::AtMostOnce {
                    self.board.dropped("store_full");
                }
                Stored::NoRoom
            }
            Room::NotRetained => {
                round.refused = Some(delivery.message);
                self.note_retained_full(delivery, "a publisher is refused");
                Stored::RetainedFull
            }
        }
    }

    /// Removing always may be, and so may what takes no more than what it takes the place of.
    fn may_retain(&self, delivery: &LocalDelivery<'_>) -> bool {
        let LocalDelivery { topic, message, .. } = delivery;
        let config = self.config.load();
        let (messages_max, bytes_max) = (config.retained_messages_max, config.retained_bytes_max.0);
        !message.retain || message.payload.is_empty() || self.topics.may_retain(topic, message, messages_max, bytes_max)
    }

    fn note_retained_full(&self, delivery: &LocalDelivery<'_>, what: &str) {
        static LOGGED: Limited = Limited::new(LOG_EVERY);
        if let Some(held_back) = LOGGED.pass(self.clock.now()) {
            let topic = Shown(delivery.topic.as_str());
            let client = delivery.client_id.map(|name| tracing::field::display(Shown(name)));
            let config = self.config.load();
            let (messages_max, bytes_max) = (config.retained_messages_max, config.retained_bytes_max);
            tracing::warn!(%topic, client, messages_max, %bytes_max, held_back, "{what}: as much is retained as `retained_messages_max` and `retained_bytes_max` allow; raise them, or publish an empty retained message where one is not needed any more");
        }
    }

    fn stored(&self, position: Option<u64>) -> Stored {
        position.map_or(Stored::Nothing, |position| Stored::At(self.store_mark.clone(), position))
    }

    fn matches<'a>(&self, delivery: &LocalDelivery<'a>, round: &mut Round<'a>) -> Arc<[Match]> {
        if self.is_denied(delivery.topic) {
            return Arc::default();
        }
        let publisher = delivery.client_id.map(|name| &**name);
        let (found, walked) = self.topics.matches(delivery.topic, publisher, &mut round.last);
        let message = delivery.message;
        let each = if message.qos == Qos::AtMostOnce { 1 } else { QUEUED_STEPS };
        round.steps += 1 + walked * WALKED_STEPS + found.len() * (each + message.payload.len() / BYTES_A_STEP);
        found
    }

    /// The client whose inbound exchange this delivery is.
    fn publisher(&self, delivery: &LocalDelivery<'_>) -> Option<(Arc<Client>, u16)> {
        let (name, id) = (delivery.client_id?, delivery.packet_id?);
        self.clients.lock().get(name).map(|client| (Arc::clone(client), id))
    }

    fn hand_out(&self, job: &mut Job<'_>, round: &mut Round<'_>, mut unit: Option<&mut Unit<'_>>) {
        if job.delivery.message.retain {
            self.keep_retained(job, unit.as_deref_mut());
        }
        let inbound = unit.as_ref().filter(|_| job.publisher_kept).map(|unit| unit.position());
        for one in job.matches {
            if one.qos.min(job.delivery.message.qos) == Qos::AtMostOnce {
                self.push_at_most_once(job, round, one);
            } else {
                round.brought += job.delivery.message.payload.len() as u64;
                self.hand_to(job, one, unit.as_deref_mut(), inbound);
            }
            if round.brought >= BROUGHT_MAX {
                self.hub.memory().brought(std::mem::take(&mut round.brought));
                round.room = self.allowance();
            }
        }
        let Some((client, id)) = job.publisher.take() else { return };
        if let Some(unit) = unit.filter(|_| job.publisher_kept) {
            unit.push(Op::Inbound(client.id, id, body_of(job), job.delivery.tails.encode()));
        }
        client.lock().inbound.handle_delivered(id, Arc::clone(job.delivery.message), inbound);
    }

    /// The short way: nothing of it is kept anywhere.
    fn push_at_most_once(&self, job: &mut Job<'_>, round: &mut Round<'_>, one: &Match) {
        let (topic, message) = (job.delivery.topic, job.delivery.message);
        let retain = message.retain && one.retain_as_published;
        let (is_one_of_many, room) = (job.matches.len() > 1, round.room);
        let parts = AtMostOnce { topic, message, retain, ids: &one.ids, is_one_of_many, room };
        let mut state = one.client.lock();
        if !state.may_read(topic) {
            return;
        }
        let before = state.outbox_capacity();
        let pushed = state.push_at_most_once(parts, &mut job.encoded, job.now);
        let after = state.outbox_capacity();
        drop(state);
        // An outbox that grows is twice there until the allocator gives the old one back; and those of one topic's subscribers grow together.
        round.brought += if after > before { after as u64 } else { 0 };
        match pushed {
            Ok(true) => {
                round.sent += 1;
                round.sent_bytes += message.payload.len() as u64;
                one.client.bell.ring();
            }
            // It is not connected.
            Ok(false) => {}
            Err(reason) => self.board.dropped(reason),
        }
    }

    fn hand_to(&self, job: &mut Job<'_>, one: &Match, unit: Option<&mut Unit<'_>>, inbound: Option<u64>) {
        let message = job.delivery.message;
        let delivery = Delivery {
            topic: job.delivery.topic.clone(),
            message: Arc::clone(message),
            qos: one.qos.min(message.qos),
            retain: message.retain && one.retain_as_published,
            ids: one.ids.clone(),
            share: one.share.clone(),
        };
        self.push(&one.client, delivery, unit, inbound, job.now, || body_of(job));
    }

    /// Pushes one message to one client. `inbound`: the position that a QoS 2 delivery to a clean session waits for.
    pub(super) fn push(
        &self,
        client: &Client,
        delivery: Delivery,
        unit: Option<&mut Unit<'_>>,
        inbound: Option<u64>,
        now: Moment,
        body: impl FnOnce() -> Bytes,
    ) {
        let room = self.allowance();
        let mut state = client.lock();
        if !state.may_read(&delivery.topic) {
            return;
        }
        let pushed = match (delivery.qos, unit) {
            (Qos::AtMostOnce, _) => {
                let Delivery { topic, message, retain, ids, .. } = &delivery;
                let parts = AtMostOnce { topic, message, retain: *retain, ids, is_one_of_many: false, room };
                state.push_at_most_once(parts, &mut Encoded::default(), now).map(|is_pushed| {
                    self.board.sent.fetch_add(u64::from(is_pushed), Ordering::Relaxed);
                    let bytes = if is_pushed { message.payload.len() as u64 } else { 0 };
                    self.board.publish_bytes_out.fetch_add(bytes, Ordering::Relaxed);
                })
            }
            (_, Some(unit)) if state.owes_by_store() => {
                let terms = self.push_terms(&state, now);
                state.push_stored(client.id, delivery, body(), unit, terms);
                Ok(())
            }
            // Also one that was kept when the matches were made.
            (qos, _) => state.push_unstored(delivery, inbound.filter(|_| qos == Qos::ExactlyOnce), room),
        };
        if let Err(reason) = pushed {
            self.board.dropped(reason);
        }
        if !state.owes_by_store() {
            state.pump(None, self.store.durable(), now, &self.board);
        }
        let is_online = state.online.is_some();
        drop(state);
        if is_online {
            client.bell.ring();
        }
    }

    /// What a push into the store is bounded by.
    pub(super) fn push_terms(&self, state: &State, now: Moment) -> PushTerms<'_> {
        let (limits, config) = (state.limits.as_deref(), self.config.load());
        let here = state.kept_at.as_ref().map(|at| &at.listener.limits);
        let rows = [limits.and_then(|user| user.session_messages_max), here.and_then(|here| here.session_messages_max)];
        let bytes = [limits.and_then(|user| user.session_bytes_max), here.and_then(|here| here.session_bytes_max)];
        let rows_max = rows.into_iter().flatten().min().unwrap_or(config.session_messages_max);
        let bytes_max = bytes.into_iter().flatten().min().unwrap_or(config.session_bytes_max).0;
        PushTerms { rows_max, bytes_max, now, room: self.allowance(), board: &self.board }
    }

    /// The same for one that is not part of a batch: in a unit of its own where it has to be stored.
    pub(super) fn push_alone(&self, client: &Client, delivery: Delivery) {
        let now = self.clock.moment();
        let message = Arc::clone(&delivery.message);
        let body = || encode_body(&message);
        if delivery.qos != Qos::AtMostOnce && client.lock().owes_by_store() {
            self.store.stage(|unit| self.push(client, delivery, Some(unit), None, now, body));
        } else {
            self.push(client, delivery, None, None, now, body);
        }
    }

    /// Whether no client may get what is on `topic`.
    pub(super) fn is_denied(&self, topic: &TopicName) -> bool {
        self.config.load().deny_subscribe.iter().any(|filter| filter.matches(topic))
    }

    /// An empty payload clears (MQTT-3.3.1-6).
    fn keep_retained(&self, job: &mut Job<'_>, unit: Option<&mut Unit<'_>>) {
        let (topic, message) = (job.delivery.topic, job.delivery.message);
        if job.is_retained_full {
            self.board.dropped("retained_full");
            self.note_retained_full(job.delivery, "a message is delivered and not retained");
        }
        // What it was to take the place of is not true any more (MQTT 5.0 section 3.3.1.3).
        let is_kept = !job.is_retained_full && !message.payload.is_empty();
        let kept = is_kept.then(|| for_long(message));
        let op = match kept {
            Some(_) => Op::Retain(topic.as_str().into(), body_of(job)),
            None => Op::Unretain(topic.as_str().into()),
        };
        if self.topics.retain(topic, kept, job.now)
            && let Some(unit) = unit
        {
            unit.push(op);
        }
    }
}

/// The same message with a payload of its own: what is retained must not keep the read that it came with, which may be much larger.
fn for_long(message: &Arc<Message>) -> Arc<Message> {
    let payload = Bytes::copy_from_slice(&message.payload);
    Arc::new(Message { payload, ..Message::clone(message) })
}

/// The message's bytes for the store: made once, shared by all rows.
fn body_of(job: &mut Job<'_>) -> Bytes {
    job.body.get_or_insert_with(|| encode_body(job.delivery.message)).clone()
}
