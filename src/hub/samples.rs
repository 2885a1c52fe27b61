//! What routes with `sample` hold: of each topic the last message of an interval, until that is over.
//!
//! **Nothing acknowledged is lost.** What is held above QoS 0 is kept in the broker's store, a row a route and topic, and its publisher's
//! receipt waits for that; so it need not wait for the interval. A message that takes the place of another counts the other as
//! `suppressed`. When the interval is over the last one goes through its route like any message, and its row goes when it is
//! durable where it went to, whatever is held of its topic by then: a kill in between sends it once more, with the same id.
//!
//! **At an orderly stop** everything goes, by the routes that it came by: those of the next start may be others. What finds no room stays in
//! the store, QoS 0 too. What the store has at a start goes at once, its interval is over: by its route; where that is no more, by
//! another that samples the same; else it is lost and counted (`unrouted`). At a reload the route before comes in between.
//!
//! A link that has no room (`reject`, `block`) leaves the message where it is, for [`TRY_AGAIN`]; what comes meanwhile takes its place.
//! Bounded: beyond [`HELD_MAX`] messages or [`HELD_BYTES_MAX`] what comes on another topic goes at once; as much again may be on its way to
//! the disk, then what is due waits. So is what a start finds, which is no more than that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::ordinals::Ordinals;
use super::plan::{self, Gates, Plan, Sampled};
use super::{Admitted, Answers, Given, Hub, Receipt, Source, Stored, Targets};
use crate::clock::Moment;
use crate::message::{Envelope, Message, Qos};
use crate::router::{Endpoint, Held, LinkId, Table};
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;

/// Messages held at most, of all routes.
pub const HELD_MAX: usize = 65_536;

/// Bytes of payloads held at most, of all routes.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// How long what finds no room stays before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked whether what went is durable.
const LOOK: Duration = Duration::from_millis(50);

/// What is lost is counted, and so often said.
static LOST: Limited = Limited::new(Duration::from_secs(10));

/// So is what does not read back.
static DAMAGED: Limited = Limited::new(Duration::from_secs(10));

/// A held message as the broker's store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRow {
    /// The route's name.
    pub route: Arc<str>,
    /// The topic that it arrived on there.
    pub topic: Arc<str>,
    /// The message's.
    pub id: String,
    /// The message, and where it came from.
    pub body: Bytes,
}

/// What a row's body says beside its message.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    from: String,
    channel: Option<String>,
    is_chained: bool,
    takes_copies: bool,
    round: usize,
    every_ms: u64,
    #[serde(default)]
    ordinals: Option<Ordinals>,
}

/// Route and topic.
type Key = (Arc<str>, Arc<str>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Samples {
    state: Mutex<State>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Key, Waiting>,
    /// When each is due, by the boot clock in ms; the number tells those of one moment apart.
    due: BTreeMap<Due, Key>,
    numbered: u64,
    bytes: usize,
    /// Gone, and not durable everywhere yet.
    leaving: Vec<Leaving>,
    leaving_bytes: usize,
    /// Of the run before: it was on its way when another of its topic came, and goes before that.
    earlier: VecDeque<(Key, Waiting)>,
    /// Of the run before: the ids of QoS 2 messages, with what held them.
    restored: FxHashSet<(Key, String)>,
    /// The routes before the last change: what was on its way into a sample then may come in after it.
    before: Option<Arc<Table>>,
}

type Due = (u64, u64);

#[derive(Clone, Debug)]
struct Waiting {
    sampled: Sampled,
    message: Arc<Message>,
    due: Due,
    /// The id of the row that the store has for it, or for what it took the place of.
    in_store: Option<String>,
    /// When the message of that row was accepted.
    stored: Option<Moment>,
    /// The routes that it goes by, where those of now do not take it.
    by: Option<Arc<Table>>,
}

#[derive(Debug)]
struct Leaving {
    key: Key,
    waiting: Waiting,
    receipt: Receipt,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.message.kept_bytes(&self.message.topic)
    }
}

/// What has become of what was due.
enum Gone {
    Left(Receipt),
    /// There is no room for it.
    Stays,
    /// There is no such route any more.
    Nowhere,
}

impl State {
    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// Answers whether it is now the first to be due.
    fn put(&mut self, key: Key, waiting: Waiting) -> bool {
        let due = waiting.due;
        let is_first = self.due.first_key_value().is_none_or(|(first, _)| due < *first);
        self.bytes += waiting.bytes();
        self.due.insert(due, key.clone());
        self.held.insert(key, waiting);
        is_first
    }

    fn take(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.held.remove(key)?;
        self.due.remove(&waiting.due);
        self.bytes -= waiting.bytes();
        Some(waiting)
    }

    /// What is to go now, as far as there is room on the way.
    fn take_due(&mut self, now: u64) -> Option<(Key, Waiting)> {
        if self.is_way_full() {
            return None;
        }
        if let Some(earlier) = self.earlier.pop_front() {
            return Some(earlier);
        }
        let key = self.due.first_key_value().filter(|((due, _), _)| *due <= now).map(|(_, key)| key.clone())?;
        let waiting = self.take(&key)?;
        Some((key, waiting))
    }

    fn is_way_full(&self) -> bool {
        self.leaving.len() >= HELD_MAX || self.leaving_bytes >= HELD_BYTES_MAX
    }

    fn note_leaving(&mut self, leaving: Leaving) {
        self.leaving_bytes += leaving.waiting.bytes();
        self.leaving.push(leaving);
    }
}

impl Samples {
    /// Whether all of these can be held. What takes the place of another needs room only for what it has more.
    pub(super) fn has_room(&self, sampled: &[Sampled], message: &Message) -> bool {
        let state = self.state.lock();
        let (mut count, mut bytes) = (state.held.len(), state.bytes);
        for one in sampled {
            let given_up = state.held.get(&(Arc::clone(&one.route), Arc::clone(&one.topic)));
            count += usize::from(given_up.is_none());
            let message = one.message.as_deref().unwrap_or(message);
            bytes = (bytes + message.kept_bytes(&message.topic)).saturating_sub(given_up.map_or(0, Waiting::bytes));
        }
        count <= HELD_MAX && (bytes <= HELD_BYTES_MAX || bytes <= state.bytes)
    }

    /// Whether a sample had this QoS 2 message when the run before ended: then it has gone, or goes.
    pub(super) fn was_restored(&self, sampled: &Sampled, message: &Message) -> bool {
        let state = self.state.lock();
        let key = (Arc::clone(&sampled.route), Arc::clone(&sampled.topic));
        !state.restored.is_empty() && state.restored.contains(&(key, message.id.to_string()))
    }

    /// Before the routes change.
    pub(super) fn note_before(&self, table: &Arc<Table>) {
        self.state.lock().before = Some(Arc::clone(table));
    }
}

fn row(key: &Key, sampled: &Sampled, message: &Message) -> HeldRow {
    let Sampled { source, is_chained, round, every, ordinals, .. } = sampled;
    let about = About {
        from: source.from.to_string(),
        channel: source.channel.as_deref().map(str::to_owned),
        is_chained: *is_chained,
        takes_copies: source.takes_copies,
        round: *round,
        every_ms: millis(*every),
        ordinals: Some(*ordinals),
    };
    // Texts, flags and numbers: that cannot fail.
    let about = serde_json::to_string(&about).unwrap_or_default();
    let head = Envelope::encode_head(&key.1, Some(&about), ordinals.first);
    let body = [head, message.encode()].concat().into();
    HeldRow { route: Arc::clone(&key.0), topic: Arc::clone(&key.1), id: message.id.to_string(), body }
}

fn read(row: &HeldRow, number: u64) -> Option<Waiting> {
    let Envelope { key, ordinal, message, .. } = Envelope::decode(row.body.clone()).ok()?;
    let about: About = serde_json::from_str(&key?).ok()?;
    let from = if about.from == "broker" { Endpoint::Broker } else { Endpoint::Link(LinkId::new(&about.from)) };
    let source = Source { from, channel: about.channel.map(Into::into), takes_copies: about.takes_copies };
    let sampled = Sampled {
        route: Arc::clone(&row.route),
        topic: Arc::clone(&row.topic),
        every: Duration::from_millis(about.every_ms),
        message: None,
        source,
        is_chained: about.is_chained,
        ordinals: about.ordinals.unwrap_or_else(|| Ordinals::from(ordinal)),
        round: about.round,
    };
    let (in_store, stored) = (Some(row.id.clone()), Some(message.accepted));
    Some(Waiting { sampled, message: Arc::new(message), due: (0, number), in_store, stored, by: None })
}

impl Hub {
    /// Knows what the store kept of samples, in the order in which it came: it goes at once. Before the first offer.
    pub fn restore_samples(&self, rows: Vec<HeldRow>) {
        let mut state = self.samples.state.lock();
        for row in rows {
            let number = state.number();
            let Some(waiting) = read(&row, number) else {
                if let Some(held_back) = DAMAGED.pass(self.clock.now()) {
                    tracing::error!(route = %row.route, topic = %Shown(&row.topic), held_back, "what a sample held is damaged and was skipped");
                }
                continue;
            };
            let key = (row.route, row.topic);
            if waiting.message.qos == Qos::ExactlyOnce {
                state.restored.insert((key.clone(), row.id));
            }
            if let Some(earlier) = state.take(&key) {
                state.earlier.push_back((key.clone(), earlier));
            }
            state.put(key, waiting);
        }
    }

    /// The gateway stops, and nothing is offered any more: what samples hold goes, by the routes that it came by. Before the logs are closed.
    pub fn let_all_go(&self) {
        let now = self.clock.moment().up_ms;
        // What comes into a sample on its way goes in the next round; what finds no room is asked once more in each, and stays.
        for _ in 0..=plan::CHAIN_MAX {
            let targets = self.targets.load_full();
            let mut state = self.samples.state.lock();
            let mut all: Vec<_> = state.earlier.drain(..).collect();
            let due = std::mem::take(&mut state.due);
            all.extend(due.into_values().filter_map(|key| Some((key.clone(), state.take(&key)?))));
            drop(state);
            if all.is_empty() {
                break;
            }
            all.into_iter().for_each(|(key, waiting)| self.go(&targets, key, waiting, now));
        }
    }

    /// Returns when what samples have let go is durable, or will not be. Cancel safe.
    pub async fn samples_settled(&self) {
        let receipts: Vec<_> = self.samples.state.lock().leaving.iter().map(|one| one.receipt.clone()).collect();
        for mut receipt in receipts {
            // What is rejected is looked at when it is kept.
            drop(receipt.settled().await);
        }
    }

    /// The logs are closed: what has come into them is forgotten, and the broker's store keeps all else, QoS 0 too.
    pub fn keep_samples(&self) {
        self.settle_samples(self.clock.moment().up_ms);
        let Some(local) = self.local.get() else { return };
        let mut state = self.samples.state.lock();
        // In the order in which they are due, which the next start takes up.
        let keys: Vec<_> = state.due.values().cloned().collect();
        for key in &keys {
            let Some(waiting) = state.held.get_mut(key) else { continue };
            let id = waiting.message.id.to_string();
            let is_kept = waiting.in_store.as_ref() == Some(&id);
            let row = (!is_kept).then(|| row(key, &waiting.sampled, &waiting.message));
            if row.is_some_and(|row| !matches!(local.hold(row, waiting.in_store.clone()), Stored::NoRoom)) {
                (waiting.in_store, waiting.stored) = (Some(id), Some(waiting.message.accepted));
            }
        }
    }

    /// Returns when something is due sooner than what [`Hub::let_go`] has said. Cancel safe.
    pub async fn due_sooner(&self) {
        self.samples.earlier.notified().await;
    }

    /// A message comes into a sample; one of its topic that is there already gives way, and is counted. The answer is what the
    /// store needs for it. Where that has no room for it, and it does not come again, it waits as one of QoS 0 does, in memory alone: a route
    /// may have made more than QoS 0 of it, but its publisher was promised no more.
    pub(super) fn hold(
        &self,
        table: &Table,
        mut sampled: Sampled,
        message: &Arc<Message>,
        comes_again: bool,
    ) -> Stored {
        let message = for_long(sampled.message.as_ref().unwrap_or(message));
        let key = (Arc::clone(&sampled.route), Arc::clone(&sampled.topic));
        // What a route has come to send at once must not wait behind that.
        let every = table.named(&key.0).and_then(|(_, route)| plan::sample_of(route)).unwrap_or_default();
        let mut state = self.samples.state.lock();
        let before = state.held.get(&key);
        // One that was interrupted by a kill, say, may come behind a newer one.
        if before.is_some_and(|before| is_later(before.message.accepted, message.accepted)) {
            let stored = self.hold_behind(&mut state, &key, sampled, message);
            drop(state);
            let stored = if comes_again { stored } else { stored.or_nothing() };
            if !matches!(stored, Stored::NoRoom) {
                self.gave_way(table, &key);
            }
            return stored;
        }
        let is_kept = message.qos != Qos::AtMostOnce;
        let due = before.map(|before| before.due);
        // What the moment was reckoned with: its routes may be others by now.
        sampled.every = before.map_or(every, |before| before.sampled.every);
        let (mut in_store, mut row_of) = before.map_or((None, None), |before| (before.in_store.clone(), before.stored));
        let due = due.unwrap_or_else(|| (message.accepted.up_ms.saturating_add(millis(every)), state.number()));
        // Within the lock, so that the store has the same one.
        let stored = match self.local.get().filter(|_| is_kept) {
            Some(local) => local.hold(row(&key, &sampled, &message), in_store.clone()),
            None => Stored::Nothing,
        };
        let has_room = !matches!(stored, Stored::NoRoom);
        if !has_room && comes_again {
            return stored;
        }
        if is_kept && has_room {
            (in_store, row_of) = (Some(message.id.to_string()), Some(message.accepted));
        }
        let gave_way = state.take(&key).is_some();
        let is_first = state.put(key.clone(), Waiting { sampled, message, due, in_store, stored: row_of, by: None });
        drop(state);
        if gave_way {
            self.gave_way(table, &key);
        }
        if is_first {
            self.samples.earlier.notify_one();
        }
        stored.or_nothing()
    }

    /// A message that comes behind a newer one gives way to it, and waits for what the store has of that. Where that is nothing, since the
    /// newer one is of QoS 0, or one that is older than this, which the newer one took the place of, the store keeps this one: a kill must
    /// not take both.
    fn hold_behind(&self, state: &mut State, key: &Key, sampled: Sampled, message: Arc<Message>) -> Stored {
        let (Some(local), Some(newer)) = (self.local.get(), state.held.get_mut(key)) else { return Stored::Nothing };
        if message.qos == Qos::AtMostOnce {
            return Stored::Nothing;
        }
        let is_own = || newer.in_store.as_deref() == Some(&*newer.message.id.to_string());
        if newer.in_store.is_some() && (is_own() || newer.stored.is_some_and(|row| is_later(row, message.accepted))) {
            return local.staged().map_or(Stored::Nothing, |(mark, last)| Stored::At(mark, last));
        }
        let stored = local.hold(row(key, &sampled, &message), newer.in_store.clone());
        if !matches!(stored, Stored::NoRoom) {
            (newer.in_store, newer.stored) = (Some(message.id.to_string()), Some(message.accepted));
        }
        stored
    }

    /// Sends on what samples held whose intervals are over. Answers when to look again.
    pub fn let_go(&self) -> Option<Duration> {
        let now = self.clock.moment().up_ms;
        // Each once: what stays is due again later.
        loop {
            let targets = self.targets.load_full();
            let Some((key, waiting)) = self.samples.state.lock().take_due(now) else { break };
            self.go(&targets, key, waiting, now);
        }
        self.settle_samples(now);
        let state = self.samples.state.lock();
        let look = (!state.leaving.is_empty()).then_some(LOOK);
        if state.is_way_full() {
            return look;
        }
        let due = state.due.first_key_value().map(|((due, _), _)| Duration::from_millis(due.saturating_sub(now)));
        look.into_iter().chain(due).min()
    }

    /// Routes have changed: what those of now do not take goes at once by those before, into the logs of now. What one has come to send at
    /// once goes too, since what follows on its topic does; and what waits, waits as long as its route says now.
    pub(super) fn let_go_by_routes_before(&self) {
        let (targets, now) = (self.targets.load_full(), self.clock.moment().up_ms);
        let mut state = self.samples.state.lock();
        let mut gone = Vec::new();
        let keys: Vec<Key> = state.due.values().cloned().collect();
        for key in keys {
            let Some(waiting) = state.held.get(&key) else { continue };
            let every = plan::still_waits(&targets.table, &waiting.sampled, &waiting.message);
            if every == Some(waiting.sampled.every) {
                continue;
            }
            let Some(mut waiting) = state.take(&key) else { continue };
            let Some(every) = every else {
                gone.push((key, waiting));
                continue;
            };
            let before = std::mem::replace(&mut waiting.sampled.every, every);
            waiting.due.0 = waiting.due.0.saturating_sub(millis(before)).saturating_add(millis(every));
            state.put(key, waiting);
        }
        drop(state);
        gone.into_iter().for_each(|(key, waiting)| self.go(&targets, key, waiting, now));
        self.samples.earlier.notify_one();
    }

    fn go(&self, targets: &Arc<Targets>, key: Key, mut waiting: Waiting, now: u64) {
        match self.leave_somehow(targets, &mut waiting) {
            Gone::Left(receipt) => self.samples.state.lock().note_leaving(Leaving { key, waiting, receipt }),
            Gone::Stays => self.put_back(&targets.table, key, waiting, now),
            Gone::Nowhere => self.lose(&key, &waiting),
        }
    }

    /// By the routes of now, or by those before, or by another that samples the same.
    fn leave_somehow(&self, targets: &Arc<Targets>, waiting: &mut Waiting) -> Gone {
        if waiting.by.is_none() {
            match self.leave(targets, waiting) {
                Gone::Nowhere => waiting.by = self.samples.state.lock().before.clone(),
                gone @ (Gone::Left(_) | Gone::Stays) => return gone,
            }
        }
        if let Some(table) = waiting.by.clone() {
            let by = Targets { change: targets.change, table, buffers: targets.buffers.clone() };
            match self.leave(&Arc::new(by), waiting) {
                Gone::Nowhere => {}
                gone @ (Gone::Left(_) | Gone::Stays) => return gone,
            }
        }
        let Waiting { sampled, message, by, .. } = &*waiting;
        let Some(route) = plan::sampler(&targets.table, by.as_deref(), sampled, message) else { return Gone::Nowhere };
        waiting.sampled.route = route;
        waiting.by = None;
        self.leave(targets, waiting)
    }

    fn leave(&self, targets: &Arc<Targets>, waiting: &Waiting) -> Gone {
        let Waiting { sampled, message, .. } = waiting;
        let gates = Gates::of(self.next_offer());
        let Some(mut plan) = plan::plan_held(&targets.table, sampled, message, gates) else { return Gone::Nowhere };
        let (answers, mut dropped, mut ready) = (Answers::default(), Vec::new(), Vec::new());
        let mut given = Given::new(&answers, 1);
        // What would have to wait for room stays here: nobody else may wait for it.
        let mut links = std::mem::take(&mut plan.links);
        let all_links = links.len();
        // Routes before may lead to links that there are no more.
        links.retain(|to| targets.buffers.contains_key(&to.link));
        let gone = all_links.saturating_sub(links.len());
        if all_links > 0 && links.is_empty() && plan.locals.is_empty() {
            return Gone::Nowhere;
        }
        let wanted = links.len();
        let asked = self.admit(targets, message, links, &mut dropped, &mut ready, &mut given).now_or_never();
        let Some(Ok(appends)) = asked else { return Gone::Stays };
        // Counted once it has gone: what stays is asked again.
        let noted = Plan {
            held: std::mem::take(&mut plan.held),
            bad_topics: std::mem::take(&mut plan.bad_topics),
            ..Plan::default()
        };
        let placed = self.placed(targets, &sampled.source, message, plan, (appends, wanted));
        let admitted =
            Admitted { slot: 0, message: Arc::clone(message), client_id: None, packet_id: None, placed, claim: None };
        // Without a packet id there is nothing that it waits for.
        let accepted = self.accept(&mut vec![admitted], &mut given).now_or_never();
        drop(given);
        let answer = answers.take().pop().map(|(_, answer)| answer);
        match (accepted, answer) {
            (Some(_), Some(Ok(receipt))) => {
                self.note_planned(targets, &sampled.source, message, &noted);
                // All of them are the same to one who reads the log.
                (0..gone).for_each(|_| self.note_lost((&sampled.route, &sampled.topic), message));
                Gone::Left(receipt)
            }
            (Some(_) | None, Some(Ok(_) | Err(_)) | None) => Gone::Stays,
        }
    }

    fn put_back(&self, table: &Table, key: Key, waiting: Waiting, now: u64) {
        let mut state = self.samples.state.lock();
        if let Some(newer) = state.held.get_mut(&key) {
            // The store needs one of the two; it has the newer one, or none but this.
            let needs_both = newer.in_store.is_some();
            if !needs_both {
                newer.in_store.clone_from(&waiting.in_store);
                newer.stored = waiting.stored;
            }
            drop(state);
            if needs_both {
                self.forget_row(&key, &waiting);
            }
            return self.gave_way(table, &key);
        }
        let due = (now.saturating_add(millis(TRY_AGAIN)), state.number());
        state.put(key, Waiting { due, ..waiting });
    }

    /// Rows of what is durable elsewhere go; what a failed log took comes back.
    fn settle_samples(&self, now: u64) {
        let mut state = self.samples.state.lock();
        let leaving = std::mem::take(&mut state.leaving);
        state.leaving_bytes = 0;
        drop(state);
        let mut undecided = Vec::new();
        for Leaving { key, waiting, receipt } in leaving {
            match receipt.decided() {
                None => undecided.push(Leaving { key, waiting, receipt }),
                Some(Ok(())) => self.forget_row(&key, &waiting),
                Some(Err(_rejected)) => self.put_back(&self.targets.load().table, key, waiting, now),
            }
        }
        let mut state = self.samples.state.lock();
        undecided.into_iter().for_each(|leaving| state.note_leaving(leaving));
    }

    /// A link that it was to go to is no more.
    fn note_lost(&self, (route, topic): (&str, &str), message: &Message) {
        self.unrouted.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = LOST.pass(self.clock.now()) {
            tracing::warn!(%route, topic = %Shown(topic), id = %message.id, held_back, "what a sample held goes nowhere: its route, or a link of that, is no more");
        }
    }

    fn forget_row(&self, key: &Key, waiting: &Waiting) {
        if let (Some(local), Some(id)) = (self.local.get(), waiting.in_store.clone()) {
            local.unhold(&key.0, &key.1, id);
        }
    }

    /// Another has taken its place. Without its route it is counted as what goes nowhere.
    fn gave_way(&self, table: &Table, key: &Key) {
        match table.named(&key.0) {
            Some((at, _)) => drop(table.note(at, Held::Suppressed)),
            None => drop(self.unrouted.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Its route is no more, and where it led to is neither.
    fn lose(&self, key: &Key, waiting: &Waiting) {
        self.note_lost((&key.0, &key.1), &waiting.message);
        self.forget_row(key, waiting);
    }
}

fn millis(of: Duration) -> u64 {
    u64::try_from(of.as_millis()).unwrap_or(u64::MAX)
}

fn is_later(one: Moment, than: Moment) -> bool {
    one.boot == than.boot && one.up_ms > than.up_ms
}

/// With a payload of its own: what is held must not keep the read that it came with, which may be much larger.
fn for_long(message: &Arc<Message>) -> Arc<Message> {
    let payload = Bytes::copy_from_slice(&message.payload);
    Arc::new(Message { payload, ..Message::clone(message) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;

    #[test]
    fn what_is_on_its_way_to_the_disk_is_bounded_and_what_is_due_waits_for_it() {
        let waiting = |number: u64| {
            let source = Source { from: Endpoint::Broker, channel: None, takes_copies: false };
            let sampled = Sampled {
                route: "s".into(),
                topic: number.to_string().into(),
                every: Duration::ZERO,
                message: None,
                source,
                is_chained: false,
                ordinals: Ordinals::default(),
                round: 0,
            };
            let mut message = message("t", b"");
            message.payload = vec![0; HELD_BYTES_MAX / 8].into();
            Waiting { sampled, message: Arc::new(message), due: (0, number), in_store: None, stored: None, by: None }
        };
        let mut state = State::default();
        for number in 0..20 {
            let one = waiting(number);
            state.put((Arc::clone(&one.sampled.route), Arc::clone(&one.sampled.topic)), one);
        }
        while let Some((key, waiting)) = state.take_due(1) {
            state.note_leaving(Leaving { key, waiting, receipt: Receipt::default() });
        }
        assert_eq!((state.leaving.len(), state.held.len()), (8, 12));
    }
}
