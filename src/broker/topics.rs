//! Who subscribed to what, and what is retained: the index with the broker's own values in it, behind one lock that many
//! may read at once.

use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::client::Client;
use super::index::{Retained, Subscriptions};
use super::store::SessionId;
use crate::message::{Message, Qos};
use crate::topic::{TopicFilter, TopicName};
use crate::wire::SubscribeOptions;

/// One client's subscription to one filter.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub(super) client: Arc<Client>,
    pub(super) options: SubscribeOptions,
    pub(super) subscription_id: Option<u32>,
}

/// What a client gets of one message: all of its subscriptions that match, taken together.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub(super) client: Arc<Client>,
    pub(super) qos: Qos,
    pub(super) retain_as_published: bool,
    pub(super) ids: SmallVec<[u32; 1]>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Topics {
    subscriptions: RwLock<Subscriptions<SessionId, Subscriber>>,
    retained: RwLock<Retained<Arc<Message>>>,
}

impl Topics {
    /// Adds or replaces a subscription.
    pub(super) fn subscribe(&self, filter: &TopicFilter, subscriber: Subscriber) {
        self.subscriptions.write().subscribe(filter, subscriber.client.id, subscriber);
    }

    /// Removes one.
    pub(super) fn unsubscribe(&self, filter: &TopicFilter, client: SessionId) {
        self.subscriptions.write().unsubscribe(filter, &client);
    }

    /// Removes all of a client's.
    pub(super) fn forget(&self, client: SessionId) {
        self.subscriptions.write().remove_all(&client);
    }

    /// Who gets a message on `topic` that `publisher` published.
    pub(super) fn matches(&self, topic: &TopicName, publisher: Option<&str>) -> Vec<Match> {
        let mut found: Vec<Match> = Vec::new();
        // A fan-out is long and has few repeats; looking each client up in a list would be quadratic.
        let mut at: FxHashMap<SessionId, usize> = FxHashMap::default();
        for (id, subscriber) in self.subscriptions.read().matches(topic) {
            let Subscriber { client, options, subscription_id } = subscriber;
            if options.no_local && publisher == Some(&*client.name) {
                continue;
            }
            let slot = *at.entry(*id).or_insert_with(|| {
                let client = Arc::clone(client);
                found.push(Match { client, qos: Qos::AtMostOnce, retain_as_published: false, ids: SmallVec::new() });
                found.len() - 1
            });
            if let Some(one) = found.get_mut(slot) {
                one.qos = one.qos.max(options.qos);
                one.retain_as_published |= options.retain_as_published;
                one.ids.extend(*subscription_id);
            }
        }
        found
    }

    /// Sets or clears (`None`) what is retained on `topic`. Whether something changed.
    pub(super) fn retain(&self, topic: &TopicName, message: Option<Arc<Message>>) -> bool {
        let mut retained = self.retained.write();
        match message {
            Some(message) => {
                retained.insert(topic, message);
                true
            }
            None => retained.remove(topic).is_some(),
        }
    }

    /// Which topics that match have a retained message.
    pub(super) fn retained_topics(&self, filter: &TopicFilter) -> Vec<TopicName> {
        self.retained.read().matches(filter).map(|(topic, _)| topic.clone()).collect()
    }

    /// What is retained on `topic`.
    pub(super) fn retained(&self, topic: &TopicName) -> Option<Arc<Message>> {
        self.retained.read().get(topic).cloned()
    }

    /// How many topics have a retained message.
    pub(super) fn retained_count(&self) -> usize {
        self.retained.read().len()
    }
}
