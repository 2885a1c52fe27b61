//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a subscription brings.
//!
//! A SUBSCRIBE may name thousands of filters, and each may lead through all that is retained. So it is gone through in turns of a
//! bounded length, with others' turns between them; until it is answered nothing more of its client is read.

use std::collections::HashMap;
use std::sync::Arc;

use super::acks::{Reply, Wait};
use super::{Connection, Outcome, no_properties};
use crate::broker::Broker;
use crate::broker::client::Delivery;
use crate::broker::convert::options_byte;
use crate::broker::index::{Place, Wanted};
use crate::broker::memory::FILTERS_PART;
use crate::broker::store::{Op, SubscriptionRow, Trouble, encode_body};
use crate::broker::topics::{Subscriber, filter_bytes};
use crate::clock::Moment;
use crate::message::Qos;
use crate::topic::TopicName;
use crate::wire::{
    Packet, ReasonCode, ReasonProperties, RetainHandling, Suback, Subscribe, SubscribeOptions, Subscription, Unsuback,
    Unsubscribe,
};

/// Bytes in a clean session's outbox up to which retained messages are added.
const RETAINED_FILL: usize = 64 << 10;

/// Subscriptions of one session at most.
const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Shared ones among them at most: each that matches brings its client the message once more, where all others together bring it once.
pub(in crate::broker) const SHARES_MAX: usize = 1_000;

/// What their filters count for at most (`filter_bytes`), and at most half of what those of all clients may.
const FILTER_BYTES_MAX: usize = 16 << 20;

/// What a client's filters may count for whatever others have: a machine's few. Connections and kept sessions bound their number.
const SMALL_FILTER_BYTES: usize = 4 << 10;

/// Filters of one SUBSCRIBE at most, repeated ones counted once.
pub(in crate::broker) const FILTERS_MAX: usize = 2_000;

/// What a connection may do of SUBSCRIBEs in a turn, in nodes of the tree of retained messages: well under a millisecond.
pub(super) const TURN_STEPS: u32 = 2_048;

/// What a filter costs besides, in the same measure.
const FILTER_STEPS: usize = 32;

/// The same, of a retained message that is staged; and one step more for so many bytes.
const STAGED_STEPS: usize = 8;

/// See [`STAGED_STEPS`].
const BYTES_A_STEP: usize = 64;

/// Its queue up to which retained messages are sent to a clean session.
const RETAINED_QUEUE: usize = 256;

/// Retained messages that may wait for a client, of each that there is: its filters may overlap, but not without end.
const WISHES_PER_TOPIC: usize = 4;

/// The same, however few there are.
const WISHES_MIN: usize = 1_024;

/// A topic whose retained message a client is to get, and how it subscribed.
pub(super) type Wish = (TopicName, SubscribeOptions, Option<u32>);

/// A SUBSCRIBE that is being gone through.
#[derive(Debug)]
pub(super) struct Subscribing {
    packet: Subscribe,
    /// For each filter: it is repeated, and this one counts.
    last: Vec<usize>,
    /// The filter to look at next.
    at: usize,
    /// Filters that were looked at, repeated ones once.
    taken: usize,
    codes: Vec<ReasonCode>,
    /// Why the first that is refused is.
    reason: Option<Box<str>>,
    /// Through what is retained, for the filter before `at`.
    walk: Option<Walk>,
    /// Retained messages that are not staged yet.
    found: Vec<Wish>,
    /// Those that follow the SUBACK, as the socket takes them.
    later: Vec<Wish>,
    /// The last that was staged: SUBACK waits for it.
    position: Option<u64>,
    /// The store has no room now: it is looked at again when it has moved.
    pub(super) waits_for_room: bool,
}

/// See [`Subscribing::walk`].
#[derive(Debug)]
struct Walk {
    wanted: Wanted,
    options: SubscribeOptions,
    place: Option<Place>,
}

/// What came of a filter.
enum Granted {
    /// It is subscribed to; with a walk where it brings retained messages.
    Now(Option<Walk>),
    /// The store has no room now.
    NotNow,
}

type Refusal = (ReasonCode, String);

impl Subscribing {
    fn new(packet: Subscribe) -> Self {
        let filters = packet.subscriptions.iter().map(|one| one.filter.as_str());
        let latest: HashMap<&str, usize> = filters.clone().zip(0..).collect();
        let last = filters.zip(0..).map(|(filter, at)| latest.get(filter).copied().unwrap_or(at)).collect();
        Self {
            packet,
            last,
            at: 0,
            taken: 0,
            codes: Vec::new(),
            reason: None,
            walk: None,
            found: Vec::new(),
            later: Vec::new(),
            position: None,
            waits_for_room: false,
        }
    }

    /// One code for each filter; a repeated one has the fate of its last.
    fn codes(&self) -> Vec<ReasonCode> {
        let code = |(at, last): (usize, &usize)| {
            let (own, last) = (self.codes.get(at).copied(), self.codes.get(*last).copied());
            last.filter(|code| code.is_error()).or(own).unwrap_or(ReasonCode::UnspecifiedError)
        };
        self.last.iter().enumerate().map(code).collect()
    }
}

impl Connection {
    pub(super) fn handle_subscribe(&mut self, subscribe: Subscribe) -> Outcome {
        self.subscribing = Some(Box::new(Subscribing::new(subscribe)));
        self.go_on_subscribing();
        Ok(())
    }

    /// Whether a SUBSCRIBE has its next turn as soon as others had theirs.
    pub(super) fn is_subscribing(&self) -> bool {
        self.subscribing.as_ref().is_some_and(|subscribing| !subscribing.waits_for_room)
    }

    /// Goes on with a SUBSCRIBE as far as this turn allows.
    pub(super) fn go_on_subscribing(&mut self) {
        let Some(mut subscribing) = self.subscribing.take() else { return };
        subscribing.waits_for_room = false;
        while self.steps > 0 {
            if let Some(walk) = subscribing.walk.take() {
                subscribing.walk = self.walk(walk, &mut subscribing);
            } else if !subscribing.found.is_empty() {
                self.stage_found(&mut subscribing);
            } else if subscribing.at < subscribing.packet.subscriptions.len() {
                self.take_filter(&mut subscribing);
                if subscribing.waits_for_room {
                    break;
                }
            } else {
                return self.answer_subscribe(*subscribing);
            }
        }
        self.subscribing = Some(subscribing);
    }

    fn spend(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
    }

    /// Looks on for what is retained. `None`: it is through.
    fn walk(&mut self, mut walk: Walk, subscribing: &mut Subscribing) -> Option<Walk> {
        let (mut topics, id) = (Vec::new(), subscribing.packet.subscription_id.map(|id| id.get()));
        let filter = walk.wanted.filter();
        let (steps, place) = self.broker.topics.retained_topics(
            filter,
            walk.place.as_ref(),
            usize::try_from(self.steps).unwrap_or(usize::MAX),
            &mut topics,
        );
        self.spend(steps.max(1));
        subscribing.found.extend(topics.into_iter().map(|topic| (topic, walk.options, id)));
        walk.place = place;
        walk.place.is_some().then_some(walk)
    }

    /// Subscribes to the next filter, or says why not.
    fn take_filter(&mut self, subscribing: &mut Subscribing) {
        let at = subscribing.at;
        let Some(Subscription { filter, options }) = subscribing.packet.subscriptions.get(at) else { return };
        let is_last = subscribing.last.get(at) == Some(&at);
        let granted = match is_last {
            true => {
                self.spend(FILTER_STEPS + filter.len() / BYTES_A_STEP);
                self.grant(filter.as_str(), *options, subscribing)
            }
            false => {
                self.spend(1);
                Ok(Granted::Now(None))
            }
        };
        match granted {
            Ok(Granted::NotNow) => {
                subscribing.waits_for_room = true;
                return;
            }
            Ok(Granted::Now(walk)) => {
                subscribing.codes.push(ReasonCode::granted(options.qos));
                subscribing.walk = walk;
            }
            Err((code, words)) => {
                subscribing.codes.push(code);
                subscribing.reason.get_or_insert_with(|| format!("`{filter}`: {words}").into());
            }
        }
        subscribing.at += 1;
        subscribing.taken += usize::from(is_last);
    }

    fn grant(&self, filter: &str, options: SubscribeOptions, subscribing: &Subscribing) -> Result<Granted, Refusal> {
        if subscribing.taken >= FILTERS_MAX {
            let words = format!("a SUBSCRIBE may have {FILTERS_MAX} filters; send the others in one of their own");
            return Err((ReasonCode::QuotaExceeded, words));
        }
        let wanted = self.wanted(filter)?;
        let wanted = self.with_room(wanted, options.retain_handling, subscribing.later.len())?;
        let id = subscribing.packet.subscription_id.map(|id| id.get());
        let Some(is_new) = self.subscribe(filter, &wanted, options, id)? else { return Ok(Granted::NotNow) };
        let walk = brings_retained(&wanted, options.retain_handling, is_new);
        Ok(Granted::Now(walk.then_some(Walk { wanted, options, place: None })))
    }

    /// SUBACK follows when all of it is durable: who has it is owed what it brings, whatever happens then (R1, R17).
    fn answer_subscribe(&mut self, subscribing: Subscribing) {
        let codes = subscribing.codes();
        let Subscribing { packet, reason, later, position, .. } = subscribing;
        let is_kept = self.attached.client.lock().terms.kept;
        // A row that was there already may still be on its way to the disk.
        let position = position.or_else(|| self.broker.store.last_staged()).filter(|_| is_kept);
        let properties = ReasonProperties { reason: reason.filter(|_| self.wants_reasons), user: Vec::new() };
        let suback = Suback { id: packet.id, codes, properties };
        self.hold(Reply::Packet(Box::new(Packet::Suback(suback))), Wait::Store(position));
        self.retained.extend(later);
    }

    /// What a filter asks for, or why it is refused.
    fn wanted(&self, filter: &str) -> Result<Wanted, Refusal> {
        let wanted = Wanted::parse(filter).map_err(|error| (ReasonCode::TopicFilterInvalid, error.to_string()))?;
        let config = self.broker.config.load();
        if config.deny_subscribe.iter().any(|denied| denied.covers(wanted.filter())) {
            return Err((ReasonCode::UnspecifiedError, "it is not to be had".to_owned()));
        }
        let client = &self.attached.client;
        let state = client.lock();
        if !state.may_subscribe(wanted.filter()) {
            drop(state);
            self.broker.board.refused("not_allowed");
            return Err((ReasonCode::NotAuthorized, "this client may read nothing of it".to_owned()));
        }
        let is_new = !state.subscriptions.contains_key(filter);
        let (count, bytes) = (state.subscriptions.len(), state.filter_bytes + filter_bytes(filter));
        drop(state);
        if is_new {
            self.has_room_for_filter(count, bytes, filter)?;
        }
        if is_new && matches!(wanted, Wanted::Shared(_)) && self.broker.topics.shares_of(client.id) >= SHARES_MAX {
            let words = format!("a client may have {SHARES_MAX} shared subscriptions");
            return Err((ReasonCode::QuotaExceeded, words));
        }
        Ok(wanted)
    }

    /// Whether a client with so many filters, which count for `bytes` with this new one, may have it.
    fn has_room_for_filter(&self, count: usize, bytes: usize, filter: &str) -> Result<(), Refusal> {
        let most = usize::try_from(self.broker.hub.memory().part(FILTERS_PART)).unwrap_or(usize::MAX);
        if count >= SUBSCRIPTIONS_MAX || bytes > FILTER_BYTES_MAX.min(most / 2) {
            return Err((ReasonCode::QuotaExceeded, "the client has too many subscriptions".to_owned()));
        }
        if bytes > SMALL_FILTER_BYTES && self.broker.topics.filter_bytes().saturating_add(filter_bytes(filter)) > most {
            self.broker.board.limited("subscriptions");
            let words = "the subscriptions of all clients take as much memory as they may (an eighth of `max_memory`)";
            return Err((ReasonCode::QuotaExceeded, words.to_owned()));
        }
        Ok(())
    }

    /// Refuses a filter whose retained messages would wait behind too many that wait already: filters may overlap. `more`: those of this SUBSCRIBE.
    fn with_room(&self, wanted: Wanted, handling: RetainHandling, more: usize) -> Result<Wanted, Refusal> {
        let most = self.broker.topics.retained_count().saturating_mul(WISHES_PER_TOPIC).max(WISHES_MIN);
        if brings_retained(&wanted, handling, true) && self.retained.len() + more > most {
            let words = "too many retained messages wait for the client already; subscribe again later";
            return Err((ReasonCode::QuotaExceeded, words.to_owned()));
        }
        Ok(wanted)
    }

    /// Whether the subscription is new. `None`: the store has no room for it now.
    ///
    /// # Errors
    /// The store takes nothing new until its disk has room.
    fn subscribe(
        &self,
        filter: &str,
        wanted: &Wanted,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
    ) -> Result<Option<bool>, Refusal> {
        let client = &self.attached.client;
        let name: Arc<str> = filter.into();
        let row = SubscriptionRow { filter: Arc::clone(&name), options: options_byte(options), subscription_id };
        let state = client.lock();
        // A client that subscribes anew to what it has, at each connection, costs the store nothing.
        let is_to_be_stored = state.terms.kept && state.subscriptions.get(filter) != Some(&row);
        drop(state);
        if is_to_be_stored {
            if let Some(trouble @ (Trouble::OnReserve | Trouble::Full)) = self.broker.store.trouble() {
                return Err((ReasonCode::QuotaExceeded, trouble.to_string()));
            }
            let op = Op::Subscribe(client.id, row.clone());
            let is_staged = self.broker.store.stage(|unit| unit.has_room().then(|| unit.push(op)).is_some()).0;
            if !is_staged {
                return Ok(None);
            }
        }
        let mut state = client.lock();
        let is_new = state.subscriptions.insert(name, row).is_none();
        if is_new {
            state.filter_bytes += filter_bytes(filter);
            self.broker.topics.note_filters(filter_bytes(filter), 0);
        }
        drop(state);
        self.broker.topics.subscribe(wanted, Subscriber { client: Arc::clone(client), options, subscription_id });
        Ok(Some(is_new))
    }

    pub(super) fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Outcome {
        let client = Arc::clone(&self.attached.client);
        let mut ops = Vec::new();
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let mut state = client.lock();
            let existed = state.subscriptions.remove(filter.as_str());
            let stored = state.stored;
            if existed.is_some() {
                state.filter_bytes -= filter_bytes(filter.as_str());
                self.broker.topics.note_filters(0, filter_bytes(filter.as_str()));
            }
            drop(state);
            codes.push(match existed {
                None if Wanted::parse(filter.as_str()).is_err() => ReasonCode::TopicFilterInvalid,
                None => ReasonCode::NoSubscriptionExisted,
                Some(row) => {
                    if let Ok(wanted) = Wanted::parse(&row.filter) {
                        self.broker.topics.unsubscribe(&wanted, client.id);
                    }
                    if stored {
                        ops.push(Op::Unsubscribe(client.id, row.filter));
                    }
                    ReasonCode::Success
                }
            });
        }
        let position = self.stage(ops);
        let unsuback = Unsuback { id: unsubscribe.id, codes, properties: no_properties() };
        self.hold(Reply::Packet(Box::new(Packet::Unsuback(unsuback))), Wait::Store(position));
        Ok(())
    }

    /// Stages retained messages that a kept session's SUBSCRIBE has found, as far as its limits and this turn allow. What goes with
    /// QoS 0, and what finds no room, follows as the socket takes it.
    fn stage_found(&mut self, subscribing: &mut Subscribing) {
        let (broker, client) = (Arc::clone(&self.broker), Arc::clone(&self.attached.client));
        if !client.lock().terms.kept {
            subscribing.later.append(&mut subscribing.found);
            return;
        }
        let now = broker.clock.moment();
        let terms = broker.push_terms(&client.lock(), now);
        let mut done = 0;
        // Other publishers wait for the store's lock meanwhile.
        let (_, position) = broker.store.stage(|unit| {
            for wish in &subscribing.found {
                if self.steps == 0 {
                    break;
                }
                done += 1;
                let (topic, options, subscription_id) = wish;
                let delivery = broker.retained_delivery(&client.name, topic, *options, *subscription_id, now);
                self.spend(STAGED_STEPS);
                let Some(delivery) = delivery else { continue };
                let mut state = client.lock();
                let has_room = unit.has_room() && state.has_room_for(&delivery, terms);
                if delivery.qos == Qos::AtMostOnce || !has_room {
                    subscribing.later.push(wish.clone());
                    continue;
                }
                self.spend(delivery.message.payload.len() / BYTES_A_STEP);
                let body = encode_body(&delivery.message);
                state.push_stored(client.id, delivery, body, unit, terms);
            }
        });
        subscribing.found.drain(..done);
        subscribing.position = position.or(subscribing.position);
    }

    /// R1: SUBACK and UNSUBACK of kept sessions wait for the store.
    fn stage(&self, ops: Vec<Op>) -> Option<u64> {
        self.broker.store.stage(|unit| ops.into_iter().for_each(|op| unit.push(op))).1
    }

    /// Sends retained messages as far as there is room. What is retained is looked up now, so that an older one never
    /// comes behind a newer.
    pub(super) fn feed_retained(&mut self) {
        // They follow the SUBACK.
        if !self.others.is_empty() {
            return;
        }
        while !self.retained.is_empty() {
            let state = self.attached.client.lock();
            let has_room = state.online.as_ref().is_some_and(|online| online.outbox.len() < RETAINED_FILL)
                && (state.terms.kept || state.outbound.queued() < RETAINED_QUEUE);
            drop(state);
            if !has_room {
                return;
            }
            let Some((topic, options, subscription_id)) = self.retained.pop_front() else { return };
            self.send_retained(topic, options, subscription_id);
        }
    }

    fn send_retained(&self, topic: TopicName, options: SubscribeOptions, subscription_id: Option<u32>) {
        let (broker, client) = (&self.broker, &self.attached.client);
        let now = broker.clock.moment();
        if let Some(delivery) = broker.retained_delivery(&client.name, &topic, options, subscription_id, now) {
            broker.push_alone(client, delivery);
        }
    }
}

impl Broker {
    /// What is retained on `topic` now, as a subscriber gets it; with No Local not what it has published itself (MQTT-3.8.3-3).
    fn retained_delivery(
        &self,
        client: &str,
        topic: &TopicName,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
        now: Moment,
    ) -> Option<Delivery> {
        let message = self.topics.retained(topic).filter(|message| !message.has_expired(now))?;
        let is_own = message.origin.hops == 0 && message.origin.client_id.as_deref() == Some(client);
        if self.is_denied(topic) || (options.no_local && is_own) {
            return None;
        }
        let (qos, ids) = (options.qos.min(message.qos), subscription_id.into_iter().collect());
        Some(Delivery { topic: topic.clone(), message, qos, retain: true, ids, share: None })
    }
}

/// A shared subscription brings no retained messages (MQTT 5.0 section 4.8.2).
const fn brings_retained(wanted: &Wanted, handling: RetainHandling, is_new: bool) -> bool {
    let sends = match handling {
        RetainHandling::Send => true,
        RetainHandling::SendIfNew => is_new,
        RetainHandling::DoNotSend => false,
    };
    sends && matches!(wanted, Wanted::Own(_))
}
