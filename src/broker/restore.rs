//! What the store held at the start, taken up: sessions, what they subscribed to, what they are owed, and what is retained.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Broker;
use super::client::{Client, Terms};
use super::config::Listener;
use super::convert;
use super::index::Wanted;
use super::limits;
use super::owed::Owed;
use super::store::{Loaded, SessionRow};
use super::topics::{Subscriber, filter_bytes};
use crate::clock::Moment;
use crate::topic::TopicName;
use crate::wire::Version;

impl Broker {
    /// Takes up what the store held. A session that was connected when the gateway ended counts as disconnected now; so its
    /// will is due after its delay (R20).
    pub(super) fn restore(&self, loaded: Loaded) {
        let now = self.clock.moment();
        let mut by_id = HashMap::new();
        let listeners = self.listeners_by_name();
        let mut highest = 0;
        for row in loaded.sessions {
            highest = highest.max(row.id.0);
            let client = Arc::new(self.restored(row, now, &listeners));
            by_id.insert(client.id, Arc::clone(&client));
            // They come by their numbers: a later one took an earlier one's place, whose end the kill cut short.
            if let Some(earlier) = self.clients.lock().insert(Arc::clone(&client.name), client) {
                by_id.remove(&earlier.id);
                self.superseded.lock().push(earlier);
            }
        }
        for (id, row) in loaded.subscriptions {
            highest = highest.max(id.0);
            let (Some(client), Ok(wanted)) = (by_id.get(&id), Wanted::parse(&row.filter)) else { continue };
            let subscriber = Subscriber {
                client: Arc::clone(client),
                options: convert::options_from(row.options),
                subscription_id: row.subscription_id,
            };
            self.topics.subscribe(&wanted, subscriber);
            let mut state = client.lock();
            let bytes = filter_bytes(&row.filter);
            state.filter_bytes += bytes;
            self.topics.note_filters(bytes, 0);
            state.subscriptions.insert(Arc::clone(&row.filter), row);
        }
        for (topic, message) in loaded.retained {
            if let Ok(topic) = TopicName::new(&topic) {
                self.topics.retain(&topic, Some(message), now);
            }
        }
        for row in loaded.inbound {
            highest = highest.max(row.session.0);
            if let Some(client) = by_id.get(&row.session) {
                if let Some(message) = &row.unfinished {
                    self.unfinished.lock().push((message.id.clone(), row.tails));
                }
                client.lock().inbound.restore(row.packet_id, row.unfinished);
            }
        }
        let superseded = self.superseded.lock();
        for (id, rows, bytes) in loaded.owed {
            highest = highest.max(id.0);
            let client = by_id.get(&id).or_else(|| superseded.iter().find(|client| client.id == id));
            if let Some(client) = client {
                client.lock().owed = Owed::restored(rows, bytes);
            }
        }
        drop(superseded);
        self.next_session.store(highest + 1, Ordering::Relaxed);
    }

    /// Those of the configuration.
    pub(super) fn listeners_by_name(&self) -> HashMap<String, Arc<Listener>> {
        let config = self.config.load();
        let named = config.listeners.iter().map(|one| (one.bind.to_string(), Arc::new(one.clone())));
        named.collect()
    }

    fn restored(&self, row: SessionRow, now: Moment, listeners: &HashMap<String, Arc<Listener>>) -> Client {
        let version = match row.version {
            3 => Version::V31,
            4 => Version::V311,
            _ => Version::V5,
        };
        let terms = Terms {
            version,
            kept: row.kept,
            expiry_s: row.expiry_s,
            user: row.user,
            will: row.will.map(|will| self.wills.restored(will)),
            will_delay_s: row.will_delay_s,
        };
        let delay_s = if terms.kept { terms.will_delay_s.min(terms.expiry_s) } else { 0 };
        let client = Client::new(row.id, row.client, terms, self.config.load().window());
        let mut state = client.lock();
        state.stored = true;
        // The groups of who is not here are not known: a rule for one counts from its next CONNECT on.
        let user = state.terms.user.clone();
        state.limits = limits::rule_of(&self.config.load().limits, user.as_deref(), &[]);
        state.held =
            Some(user).filter(|_| state.terms.kept).and_then(|user| self.users.session(user.as_ref(), None, None).ok());
        // At a listener that is not there any more it counts for none.
        let listener = row.listener.filter(|_| state.terms.kept).and_then(|name| listeners.get(&*name));
        state.kept_at = listener.and_then(|listener| self.users.session_at(listener, None));
        state.ended = Some(row.ended.unwrap_or(now));
        state.will_due = state.terms.will.as_ref().map(|_| delay_s);
        drop(state);
        client
    }
}
