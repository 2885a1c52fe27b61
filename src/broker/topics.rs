//! Who subscribed to what, and what is retained: the index with the broker's own values in it, behind one lock that many
//! may read at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::client::Client;
use super::index::{NODE_BYTES, Place, Retained, Share, Subscriptions, Wanted};
use super::remembered::Remembered;
use super::store::SessionId;
use crate::clock::Moment;
use crate::message::{Message, Qos};
use crate::topic::{OWN, TopicFilter, TopicName};
use crate::wire::SubscribeOptions;

/// One client's subscription to one filter.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    pub(super) client: Arc<Client>,
    pub(super) options: SubscribeOptions,
    pub(super) subscription_id: Option<u32>,
}

/// What a client gets of one message: all of its own subscriptions that match, taken together; or one shared one.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub(super) client: Arc<Client>,
    pub(super) qos: Qos,
    pub(super) retain_as_published: bool,
    pub(super) ids: SmallVec<[u32; 1]>,
    pub(super) share: Option<Arc<Share>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Topics {
    tables: RwLock<Tables>,
    /// Another number after each change of `tables`; written under its lock.
    generation: AtomicU64,
    /// What topics matched: publishers repeat theirs.
    remembered: Remembered<Arc<[Match]>>,
    retained: RwLock<Kept>,
    /// The gateway's own values below `$SYS/`.
    own_values: RwLock<Retained<Arc<Message>>>,
    /// What the filters of all clients count for.
    filter_bytes: AtomicUsize,
}

/// What a subscription takes besides its filter's text and levels: with its client, and in the tree.
const SUBSCRIPTION_BYTES: usize = 256;

/// What a filter counts for: its text, which is there twice, and a node for each of its levels, as if no other filter shared them.
pub(super) fn filter_bytes(filter: &str) -> usize {
    SUBSCRIPTION_BYTES + 2 * filter.len() + NODE_BYTES * filter.split('/').count()
}

/// What a retained message takes beyond what it counts for where it is owed to a session: it is there as a whole, and not as text.
const RETAINED_BYTES: u64 = 256;

/// What clients retained.
#[derive(Debug, Default)]
struct Kept {
    tree: Retained<Arc<Message>>,
    /// What they count for, but for the tree.
    bytes: u64,
    /// Those with an expiry, by the second of [`Moment::up_ms`] in which it is to be looked at.
    due: BTreeSet<(u64, TopicName)>,
    /// The same by topic: what a later message on it takes out of `due`.
    due_at: HashMap<TopicName, u64>,
}

impl Kept {
    /// What one counts for, but for the tree.
    fn bytes_of(topic: &TopicName, message: &Message) -> u64 {
        message.kept_bytes(topic) as u64 + RETAINED_BYTES
    }

    /// What all count for.
    fn all_bytes(&self) -> u64 {
        self.bytes + self.tree.tree_bytes() as u64
    }

    /// Sets or removes. Whether something changed.
    fn set(&mut self, topic: &TopicName, message: Option<Arc<Message>>) -> bool {
        let added = message.as_ref().map_or(0, |message| Self::bytes_of(topic, message));
        let (changes, old) = match message {
            Some(message) => (true, self.tree.insert(topic, message)),
            None => {
                let old = self.tree.remove(topic);
                (old.is_some(), old)
            }
        };
        let gone = old.map_or(0, |message| Self::bytes_of(topic, &message));
        self.bytes = (self.bytes + added).saturating_sub(gone);
        changes
    }

    fn look_at(&mut self, topic: &TopicName, second: Option<u64>) {
        let earlier = match second {
            Some(second) => {
                self.due.insert((second, topic.clone()));
                self.due_at.insert(topic.clone(), second)
            }
            None => self.due_at.remove(topic),
        };
        if let Some(earlier) = earlier.filter(|earlier| second != Some(*earlier)) {
            self.due.remove(&(earlier, topic.clone()));
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    own: Subscriptions<SessionId, Subscriber>,
    /// By ShareName.
    shared: Subscriptions<Arc<str>, Group>,
    /// The groups that a session is in.
    memberships: FxHashMap<SessionId, Vec<Arc<Share>>>,
}

/// Those who share a filter under one name.
#[derive(Debug)]
struct Group {
    share: Arc<Share>,
    members: Vec<Subscriber>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

impl Group {
    /// The next member that is connected and keeps up; else one that is connected, else one whose session is kept. Those who may not
    /// read `topic` are passed over.
    /// With how many were looked at.
    fn pick(&self, topic: &TopicName) -> (Option<Match>, usize) {
        let (count, mut looked_at) = (self.members.len(), 0);
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut best: Option<(u8, &Subscriber)> = None;
        for n in 0..count {
            let Some(member) = self.members.get(first.wrapping_add(n) % count) else { continue };
            looked_at += 1;
            let Some(rank) = member.client.lock().rank(topic) else { continue };
            if best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, member));
            }
            if rank == 0 {
                break;
            }
        }
        let best = best.map(|(_, member)| Match {
            client: Arc::clone(&member.client),
            qos: member.options.qos,
            retain_as_published: member.options.retain_as_published,
            ids: member.subscription_id.into_iter().collect(),
            share: Some(Arc::clone(&self.share)),
        });
        (best, looked_at)
    }
}

impl Tables {
    /// Who gets a message, whether that is so for every publisher and each time, and how many nodes and subscriptions were looked at.
    fn matches(&self, topic: &TopicName, publisher: Option<&str>) -> (Vec<Match>, bool, usize) {
        let mut found: Vec<Match> = Vec::new();
        let mut is_general = true;
        // A fan-out is long and has few repeats; looking each client up in a list would be quadratic.
        let mut at: FxHashMap<SessionId, usize> = FxHashMap::default();
        let (mut own, mut walked) = (self.own.matches(topic), 0);
        for (id, subscriber) in own.by_ref() {
            walked += 1;
            let Subscriber { client, options, subscription_id } = subscriber;
            is_general &= !options.no_local;
            if options.no_local && publisher == Some(&*client.name) {
                continue;
            }
            let slot = *at.entry(*id).or_insert_with(|| {
                let client = Arc::clone(client);
                let (qos, ids) = (Qos::AtMostOnce, SmallVec::new());
                found.push(Match { client, qos, retain_as_published: false, ids, share: None });
                found.len() - 1
            });
            if let Some(one) = found.get_mut(slot) {
                one.qos = one.qos.max(options.qos);
                one.retain_as_published |= options.retain_as_published;
                one.ids.extend(*subscription_id);
            }
        }
        let mut shared = self.shared.matches(topic);
        for (_, group) in shared.by_ref() {
            is_general = false;
            let (picked, looked_at) = group.pick(topic);
            walked += looked_at;
            found.extend(picked);
        }
        (found, is_general, walked + own.visited() + shared.visited())
    }

    fn join(&mut self, share: &Share, subscriber: Subscriber) {
        let id = subscriber.client.id;
        let group = self.shared.unsubscribe(&share.filter, &share.name);
        let mut group = group.unwrap_or_else(|| {
            let (share, turn) = (Arc::new(share.clone()), AtomicUsize::new(0));
            Group { share, members: Vec::new(), turn }
        });
        match group.members.iter_mut().find(|member| member.client.id == id) {
            Some(member) => *member = subscriber,
            None => {
                group.members.push(subscriber);
                self.memberships.entry(id).or_default().push(Arc::clone(&group.share));
            }
        }
        self.shared.subscribe(&share.filter, Arc::clone(&share.name), group);
    }

    fn leave(&mut self, share: &Share, id: SessionId) {
        let Some(mut group) = self.shared.unsubscribe(&share.filter, &share.name) else { return };
        group.members.retain(|member| member.client.id != id);
        if !group.members.is_empty() {
            self.shared.subscribe(&share.filter, Arc::clone(&share.name), group);
        }
    }
}

impl Topics {
    /// Adds or replaces a subscription.
    pub(super) fn subscribe(&self, wanted: &Wanted, subscriber: Subscriber) {
        let mut tables = self.tables.write();
        match wanted {
            Wanted::Own(filter) => drop(tables.own.subscribe(filter, subscriber.client.id, subscriber)),
            Wanted::Shared(share) => tables.join(share, subscriber),
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Removes one.
    pub(super) fn unsubscribe(&self, wanted: &Wanted, client: SessionId) {
        let mut tables = self.tables.write();
        match wanted {
            Wanted::Own(filter) => drop(tables.own.unsubscribe(filter, &client)),
            Wanted::Shared(share) => {
                tables.leave(share, client);
                if let Some(shares) = tables.memberships.get_mut(&client) {
                    shares.retain(|other| **other != *share);
                    if shares.is_empty() {
                        tables.memberships.remove(&client);
                    }
                }
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Removes all of a client's.
    pub(super) fn forget(&self, client: SessionId) {
        let mut tables = self.tables.write();
        let own = tables.own.remove_all(&client);
        let shares = tables.memberships.remove(&client).unwrap_or_default();
        shares.iter().for_each(|share| tables.leave(share, client));
        // One that only published changes nothing.
        if own > 0 || !shares.is_empty() {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// A client's filters count for more, or for less.
    pub(super) fn note_filters(&self, added: usize, gone: usize) {
        self.filter_bytes.fetch_add(added, Ordering::Relaxed);
        self.filter_bytes.fetch_sub(gone, Ordering::Relaxed);
    }

    /// What those of all clients count for.
    pub(super) fn filter_bytes(&self) -> usize {
        self.filter_bytes.load(Ordering::Relaxed)
    }

    /// How many subscriptions there are, and how many of them are shared.
    pub(super) fn subscription_counts(&self) -> (usize, usize) {
        let tables = self.tables.read();
        let shared = tables.memberships.values().map(Vec::len).sum::<usize>();
        (tables.own.len() + shared, shared)
    }

    /// How many shared subscriptions a client has.
    pub(super) fn shares_of(&self, client: SessionId) -> usize {
        self.tables.read().memberships.get(&client).map_or(0, Vec::len)
    }

    /// Who gets a message on `topic` that `publisher` published. The tree is walked only for a topic that was not asked for since
    /// the last change: that answers too how many nodes and subscriptions it led to.
    /// `last` is the caller's own memory of one topic, for runs of it within a batch.
    pub(super) fn matches<'a>(
        &self,
        topic: &'a TopicName,
        publisher: Option<&str>,
        last: &mut Option<(&'a TopicName, Arc<[Match]>)>,
    ) -> (Arc<[Match]>, usize) {
        if let Some((_, found)) = last.as_ref().filter(|(other, _)| *other == topic) {
            return (Arc::clone(found), 0);
        }
        if let Some(found) = self.remembered.get(topic, self.generation.load(Ordering::Acquire)) {
            *last = Some((topic, Arc::clone(&found)));
            return (found, 0);
        }
        let tables = self.tables.read();
        let generation = self.generation.load(Ordering::Acquire);
        let (found, is_general, walked) = tables.matches(topic, publisher);
        drop(tables);
        let found: Arc<[Match]> = found.into();
        if is_general {
            let bytes = found.iter().map(|one| size_of::<Match>() + size_of_val(&*one.ids)).sum();
            self.remembered.insert(topic, generation, Arc::clone(&found), bytes);
            *last = Some((topic, Arc::clone(&found)));
        }
        (found, walked)
    }

    /// Who of a group is next to get what is on `topic`.
    pub(super) fn pick(&self, share: &Share, topic: &TopicName) -> Option<Match> {
        self.tables.read().shared.get(&share.filter, &share.name).and_then(|group| group.pick(topic).0)
    }

    /// Sets or clears (`None`) what is retained on `topic`. Whether something changed.
    pub(super) fn retain(&self, topic: &TopicName, message: Option<Arc<Message>>, now: Moment) -> bool {
        let mut retained = self.retained.write();
        let left_s = message.as_ref().and_then(|message| message.expiry_left_s(now));
        let second = left_s.map(|left_s| now.up_ms / 1_000 + u64::from(left_s) + 1);
        if second.is_some() || !retained.due_at.is_empty() {
            retained.look_at(topic, second);
        }
        retained.set(topic, message)
    }

    /// Whether `message` may be retained on `topic` where so many and so many bytes may be: always if neither grows by it.
    pub(super) fn may_retain(&self, topic: &TopicName, message: &Message, messages_max: u64, bytes_max: u64) -> bool {
        let retained = self.retained.read();
        let bytes = Kept::bytes_of(topic, message);
        let old = retained.tree.get(topic).map(|old| Kept::bytes_of(topic, old));
        let has_place = old.is_some() || (retained.tree.len() as u64) < messages_max;
        let grows_by = bytes.saturating_sub(old.unwrap_or(0)) + retained.tree.tree_grows_by(topic) as u64;
        has_place && (grows_by == 0 || retained.all_bytes() + grows_by <= bytes_max)
    }

    /// Topics whose retained message has expired as far as is known, at most `count`.
    pub(super) fn retained_due(&self, now: Moment, count: usize) -> Vec<TopicName> {
        let retained = self.retained.read();
        let is_due = |second: u64| second <= now.up_ms / 1_000;
        retained
            .due
            .iter()
            .take_while(|(second, _)| is_due(*second))
            .take(count)
            .map(|(_, topic)| topic.clone())
            .collect()
    }

    /// Removes what is retained on `topic` if it has expired. Whether it has; if not, it is looked at again when its time is over.
    pub(super) fn expire_retained(&self, topic: &TopicName, now: Moment) -> bool {
        let mut retained = self.retained.write();
        let left_s = retained.tree.get(topic).and_then(|message| message.expiry_left_s(now));
        let has_expired = left_s == Some(0);
        if has_expired {
            retained.set(topic, None);
        }
        let again = left_s.filter(|_| !has_expired).map(|left_s| now.up_ms / 1_000 + u64::from(left_s) + 1);
        retained.look_at(topic, again);
        has_expired
    }

    /// Which topics that match have a retained message, as a [`Retained::walk`] finds them: how many nodes that took, and where to go on.
    pub(super) fn retained_topics(
        &self,
        filter: &TopicFilter,
        place: Option<&Place>,
        most: usize,
        found: &mut Vec<TopicName>,
    ) -> (usize, Option<Place>) {
        // Only a filter that names it gets there (MQTT-4.7.2-1). The gateway's own values are few.
        if place.is_none() && filter.as_str().starts_with(OWN) {
            found.extend(self.own_values.read().matches(filter).map(|(topic, _)| topic.clone()));
        }
        self.retained.read().tree.walk(filter, place, most, |topic, _| found.push(topic.clone()))
    }

    /// What is retained on `topic`.
    pub(super) fn retained(&self, topic: &TopicName) -> Option<Arc<Message>> {
        if topic.is_own() {
            return self.own_values.read().get(topic).cloned();
        }
        self.retained.read().tree.get(topic).cloned()
    }

    /// The payload's bytes of what is retained on `topic`, and what it counts for, but for the tree.
    pub(super) fn retained_size(&self, topic: &TopicName) -> Option<(u64, u64)> {
        let retained = self.retained.read();
        let message = retained.tree.get(topic)?;
        Some((message.payload.len() as u64, Kept::bytes_of(topic, message)))
    }

    /// Sets one of the gateway's own values.
    pub(super) fn keep_own(&self, topic: &TopicName, message: Arc<Message>) {
        self.own_values.write().insert(topic, message);
    }

    /// How many topics have a retained message.
    pub(super) fn retained_count(&self) -> usize {
        self.retained.read().tree.len()
    }

    /// What they count for.
    pub(super) fn retained_bytes(&self) -> u64 {
        self.retained.read().all_bytes()
    }
}
