//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a subscription brings.

use std::sync::Arc;

use super::acks::{Reply, Wait};
use super::{Connection, Outcome, no_properties};
use crate::broker::client::Delivery;
use crate::broker::registry::options_byte;
use crate::broker::store::{Op, SubscriptionRow, encode_body};
use crate::broker::topics::Subscriber;
use crate::message::Qos;
use crate::topic::{TopicFilter, TopicName};
use crate::wire::{
    Packet, ReasonCode, RetainHandling, Suback, Subscribe, SubscribeOptions, Subscription, Unsuback, Unsubscribe,
};

/// Bytes in a clean session's outbox up to which retained messages are added.
const RETAINED_FILL: usize = 64 << 10;

/// Its queue up to which they are.
const RETAINED_QUEUE: usize = 256;

impl Connection {
    pub(super) fn handle_subscribe(&mut self, subscribe: &Subscribe) -> Outcome {
        let subscription_id = subscribe.subscription_id.map(|id| id.get());
        let mut ops = Vec::new();
        let mut codes = Vec::with_capacity(subscribe.subscriptions.len());
        let mut retained = Vec::new();
        for Subscription { filter, options } in &subscribe.subscriptions {
            codes.push(match TopicFilter::new(filter.as_str()) {
                Err(_not_a_filter) => ReasonCode::TopicFilterInvalid,
                Ok(filter) if filter.as_str().starts_with("$share/") => ReasonCode::SharedSubscriptionsNotSupported,
                Ok(filter) => {
                    let is_new = self.subscribe(&filter, *options, subscription_id, &mut ops);
                    let sends = match options.retain_handling {
                        RetainHandling::Send => true,
                        RetainHandling::SendIfNew => is_new,
                        RetainHandling::DoNotSend => false,
                    };
                    if sends {
                        let topics = self.broker.topics.retained_topics(&filter);
                        retained.extend(topics.into_iter().map(|topic| (topic, *options, subscription_id)));
                    }
                    ReasonCode::granted(options.qos)
                }
            });
        }
        let position = self.stage(ops);
        let suback = Suback { id: subscribe.id, codes, properties: no_properties() };
        self.others.push(Reply::Packet(Box::new(Packet::Suback(suback))), Wait::Store(position));
        self.retained.extend(retained);
        Ok(())
    }

    /// Whether the subscription is new.
    fn subscribe(
        &self,
        filter: &TopicFilter,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
        ops: &mut Vec<Op>,
    ) -> bool {
        let client = &self.attached.client;
        let name: Arc<str> = filter.as_str().into();
        let row = SubscriptionRow { filter: Arc::clone(&name), options: options_byte(options), subscription_id };
        let mut state = client.lock();
        let is_new = state.subscriptions.insert(name, row.clone()).is_none();
        if state.terms.kept {
            ops.push(Op::Subscribe(client.id, row));
        }
        drop(state);
        self.broker.topics.subscribe(filter, Subscriber { client: Arc::clone(client), options, subscription_id });
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
            drop(state);
            codes.push(match existed {
                None => ReasonCode::NoSubscriptionExisted,
                Some(row) => {
                    if let Ok(filter) = TopicFilter::new(&row.filter) {
                        self.broker.topics.unsubscribe(&filter, client.id);
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
        let Some(message) = broker.topics.retained(&topic).filter(|message| !message.has_expired(now)) else { return };
        let qos = options.qos.min(message.qos);
        let ids = subscription_id.into_iter().collect();
        let delivery = Delivery { topic, message: Arc::clone(&message), qos, retain: true, ids };
        let body = || encode_body(&message);
        if qos != Qos::AtMostOnce && client.lock().terms.kept {
            broker.store.stage(|unit| broker.push(client, delivery, Some(unit), None, now, body));
        } else {
            broker.push(client, delivery, None, None, now, body);
        }
    }
}
