//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a subscription brings.

use std::sync::Arc;

use super::acks::{Reply, Wait};
use super::{Connection, Outcome, no_properties};
use crate::broker::Broker;
use crate::broker::client::Delivery;
use crate::broker::index::Wanted;
use crate::broker::registry::options_byte;
use crate::broker::store::{Op, SubscriptionRow, encode_body};
use crate::broker::topics::Subscriber;
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

/// Bytes of their filters at most: each level may cost a node in the tree.
const FILTER_BYTES_MAX: usize = 1 << 20;

/// Retained messages that are staged for a kept session in one step.
const RETAINED_STEP: usize = 256;

/// Its queue up to which they are.
const RETAINED_QUEUE: usize = 256;

/// Retained messages that may wait for a client, of each that there is: its filters may overlap, but not without end.
const WISHES_PER_TOPIC: usize = 4;

/// The same, however few there are.
const WISHES_MIN: usize = 1_024;

/// A topic whose retained message a client is to get, and how it subscribed.
pub(super) type Wish = (TopicName, SubscribeOptions, Option<u32>);

impl Connection {
    pub(super) fn handle_subscribe(&mut self, subscribe: &Subscribe) -> Outcome {
        let subscription_id = subscribe.subscription_id.map(|id| id.get());
        let mut ops = Vec::new();
        let mut codes = Vec::with_capacity(subscribe.subscriptions.len());
        let mut retained: Vec<Wish> = Vec::new();
        let mut reason: Option<Box<str>> = None;
        for Subscription { filter, options } in &subscribe.subscriptions {
            let wanted = self.wanted(filter.as_str());
            match wanted.and_then(|wanted| self.with_room(wanted, options.retain_handling, retained.len())) {
                Err((code, words)) => {
                    codes.push(code);
                    reason.get_or_insert_with(|| format!("`{filter}`: {words}").into());
                }
                Ok(wanted) => {
                    let is_new = self.subscribe(filter.as_str(), &wanted, *options, subscription_id, &mut ops);
                    if brings_retained(&wanted, options.retain_handling, is_new) {
                        let topics = self.broker.topics.retained_topics(wanted.filter());
                        retained.extend(topics.into_iter().map(|topic| (topic, *options, subscription_id)));
                    }
                    codes.push(ReasonCode::granted(options.qos));
                }
            }
        }
        let position = self.stage_subscribed(ops, &mut retained);
        let properties = ReasonProperties { reason: reason.filter(|_| self.wants_reasons), user: Vec::new() };
        let suback = Suback { id: subscribe.id, codes, properties };
        self.others.push(Reply::Packet(Box::new(Packet::Suback(suback))), Wait::Store(position));
        self.retained.extend(retained);
        Ok(())
    }

    /// What a filter asks for, or why it is refused.
    fn wanted(&self, filter: &str) -> Result<Wanted, (ReasonCode, String)> {
        let wanted = Wanted::parse(filter).map_err(|error| (ReasonCode::TopicFilterInvalid, error.to_string()))?;
        let denied = &self.broker.config.deny_subscribe;
        if denied.iter().any(|denied| denied.covers(wanted.filter())) {
            return Err((ReasonCode::UnspecifiedError, "it is not to be had".to_owned()));
        }
        let state = self.attached.client.lock();
        if !state.may_subscribe(wanted.filter()) {
            drop(state);
            self.broker.board.refused("not_allowed");
            return Err((ReasonCode::NotAuthorized, "this client may read nothing of it".to_owned()));
        }
        let is_new = !state.subscriptions.contains_key(filter);
        if is_new
            && (state.subscriptions.len() >= SUBSCRIPTIONS_MAX || state.filter_bytes + filter.len() > FILTER_BYTES_MAX)
        {
            return Err((ReasonCode::QuotaExceeded, "the client has too many subscriptions".to_owned()));
        }
        Ok(wanted)
    }

    /// Refuses a filter whose retained messages would wait behind too many that wait already: one SUBSCRIBE can name `#` a hundred
    /// thousand times. `more`: those of this SUBSCRIBE.
    fn with_room(&self, wanted: Wanted, handling: RetainHandling, more: usize) -> Result<Wanted, (ReasonCode, String)> {
        let most = self.broker.topics.retained_count().saturating_mul(WISHES_PER_TOPIC).max(WISHES_MIN);
        if brings_retained(&wanted, handling, true) && self.retained.len() + more > most {
            let words = "too many retained messages wait for the client already; subscribe again later";
            return Err((ReasonCode::QuotaExceeded, words.to_owned()));
        }
        Ok(wanted)
    }

    /// Whether the subscription is new.
    fn subscribe(
        &self,
        filter: &str,
        wanted: &Wanted,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
        ops: &mut Vec<Op>,
    ) -> bool {
        let client = &self.attached.client;
        let name: Arc<str> = filter.into();
        let row = SubscriptionRow { filter: Arc::clone(&name), options: options_byte(options), subscription_id };
        let mut state = client.lock();
        let is_new = state.subscriptions.insert(name, row.clone()).is_none();
        if is_new {
            state.filter_bytes += filter.len();
        }
        if state.terms.kept {
            ops.push(Op::Subscribe(client.id, row));
        }
        drop(state);
        self.broker.topics.subscribe(wanted, Subscriber { client: Arc::clone(client), options, subscription_id });
        is_new
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
                state.filter_bytes = state.filter_bytes.saturating_sub(filter.len());
            }
            drop(state);
            codes.push(match existed {
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
        self.others.push(Reply::Packet(Box::new(Packet::Unsuback(unsuback))), Wait::Store(position));
        Ok(())
    }

    /// Stages the subscriptions of a kept session together with the retained messages that they bring, as far as the session's limits
    /// allow: who has its SUBACK is owed them, whatever happens then (R17). The rest, and what goes with QoS 0, follows as the
    /// socket takes it.
    fn stage_subscribed(&self, ops: Vec<Op>, retained: &mut Vec<Wish>) -> Option<u64> {
        let (broker, client) = (&self.broker, &self.attached.client);
        let mut position = broker.store.stage(|unit| ops.into_iter().for_each(|op| unit.push(op))).1;
        if !client.lock().terms.kept {
            return position;
        }
        let now = broker.clock.moment();
        let terms = broker.push_terms(&client.lock(), now);
        let mut later = Vec::new();
        // Other publishers wait for the store's lock meanwhile, so they are staged in steps. SUBACK waits for the last.
        for step in retained.chunks(RETAINED_STEP) {
            let stored = broker.store.stage(|unit| {
                for wish in step {
                    let (topic, options, subscription_id) = wish;
                    let delivery = broker.retained_delivery(topic, *options, *subscription_id, now);
                    let Some(delivery) = delivery else { continue };
                    let mut state = client.lock();
                    let has_room = unit.has_room() && state.has_room_for(&delivery, terms);
                    if delivery.qos == Qos::AtMostOnce || !has_room {
                        later.push(wish.clone());
                        continue;
                    }
                    let body = encode_body(&delivery.message);
                    state.push_stored(client.id, delivery, body, unit, terms);
                }
            });
            position = stored.1.or(position);
        }
        *retained = later;
        position
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
        if let Some(delivery) = broker.retained_delivery(&topic, options, subscription_id, now) {
            broker.push_alone(client, delivery);
        }
    }
}

impl Broker {
    /// What is retained on `topic` now, as a subscriber gets it.
    fn retained_delivery(
        &self,
        topic: &TopicName,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
        now: Moment,
    ) -> Option<Delivery> {
        let message = self.topics.retained(topic).filter(|message| !message.has_expired(now))?;
        if self.is_denied(topic) {
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
