//! Who subscribed to what, and what is retained: the index with the broker's own values in it, behind one lock that many
//! may read at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::client::Client;
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
    subscriptions: RwLock<BTreeMap<Arc<str>, (TopicFilter, Vec<Subscriber>)>>,
    retained: RwLock<BTreeMap<Arc<str>, (TopicName, Arc<Message>)>>,
}

impl Topics {
    /// Adds or replaces a subscription.
    pub(super) fn subscribe(&self, filter: &TopicFilter, subscriber: Subscriber) {
        let mut subscriptions = self.subscriptions.write();
        let (_, list) = subscriptions.entry(filter.as_str().into()).or_insert_with(|| (filter.clone(), Vec::new()));
        list.retain(|other| other.client.id != subscriber.client.id);
        list.push(subscriber);
    }

    /// Removes one.
    pub(super) fn unsubscribe(&self, filter: &str, client: SessionId) {
        let mut subscriptions = self.subscriptions.write();
        if let Some((_, list)) = subscriptions.get_mut(filter) {
            list.retain(|other| other.client.id != client);
            if list.is_empty() {
                subscriptions.remove(filter);
            }
        }
    }

    /// Who gets a message on `topic` that `publisher` published.
    pub(super) fn matches(&self, topic: &TopicName, publisher: Option<&str>) -> Vec<Match> {
        let mut found: Vec<Match> = Vec::new();
        let mut at: HashMap<SessionId, usize> = HashMap::new();
        for (filter, list) in self.subscriptions.read().values() {
            if !filter.matches(topic) {
                continue;
            }
            for Subscriber { client, options, subscription_id } in list {
                if options.no_local && publisher == Some(&*client.name) {
                    continue;
                }
                let slot = *at.entry(client.id).or_insert_with(|| {
                    let client = Arc::clone(client);
                    found.push(Match {
                        client,
                        qos: Qos::AtMostOnce,
                        retain_as_published: false,
                        ids: SmallVec::new(),
                    });
                    found.len() - 1
                });
                if let Some(one) = found.get_mut(slot) {
                    one.qos = one.qos.max(options.qos);
                    one.retain_as_published |= options.retain_as_published;
                    one.ids.extend(*subscription_id);
                }
            }
        }
        found
    }

    /// Sets or clears (`None`) what is retained on `topic`. Whether something changed.
    pub(super) fn retain(&self, topic: &TopicName, message: Option<Arc<Message>>) -> bool {
        let mut retained = self.retained.write();
        match message {
            Some(message) => {
                retained.insert(topic.as_str().into(), (topic.clone(), message));
                true
            }
            None => retained.remove(topic.as_str()).is_some(),
        }
    }

    /// Which topics that match have a retained message.
    pub(super) fn retained_topics(&self, filter: &TopicFilter) -> Vec<TopicName> {
        let retained = self.retained.read();
        retained.values().filter(|(topic, _)| filter.matches(topic)).map(|(topic, _)| topic.clone()).collect()
    }

    /// What is retained on `topic`.
    pub(super) fn retained(&self, topic: &TopicName) -> Option<Arc<Message>> {
        self.retained.read().get(topic.as_str()).map(|(_, message)| Arc::clone(message))
    }

    /// How many topics have a retained message.
    pub(super) fn retained_count(&self) -> usize {
        self.retained.read().len()
    }
}
