//! The reference: what a broker owes to whom, as plain data. Where MQTT, or what we promise beyond it, leaves a choice open (who of a shared
//! subscription gets a message, in which order topics' retained messages come, whether a packet counted that a kill cut off), it asks its
//! [`Fate`], and the run tries all of its answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::action::{Action, Again, Name, Post, Sub, Terms};
use crate::message::Qos;
use crate::wire::{RetainHandling, Version};

/// Choices that are open: each of its scripts is one way that things may have gone.
#[derive(Debug, Default)]
pub(super) struct Fate {
    script: Vec<(usize, usize)>,
    at: usize,
}

impl Fate {
    fn pick(&mut self, of: usize) -> usize {
        if of < 2 {
            return 0;
        }
        if self.at == self.script.len() {
            self.script.push((0, of));
        }
        self.at += 1;
        self.script[self.at - 1].0
    }

    fn shuffle<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        let mut shuffled = Vec::new();
        while !items.is_empty() {
            shuffled.push(items.remove(self.pick(items.len())));
        }
        shuffled
    }

    /// Goes on to the next script. `false`: that was the last.
    pub(super) fn turn(&mut self) -> bool {
        self.at = 0;
        while let Some((picked, of)) = self.script.pop() {
            if picked + 1 < of {
                self.script.push((picked + 1, of));
                return true;
            }
        }
        false
    }
}

/// A PUBLISH that a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) text: String,
    pub(super) topic: String,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) dup: bool,
    /// Subscription identifiers, in order.
    pub(super) ids: Vec<u32>,
    pub(super) left_s: Option<u32>,
}

/// What a client gets by one action. Between the lists any order will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Session Present of its CONNACK.
    pub(super) present: Option<bool>,
    pub(super) at_most_once: Vec<Arrived>,
    pub(super) above: Vec<Arrived>,
    /// PUBRELs, by the text of the message.
    pub(super) released: Vec<String>,
}

/// What there is to see after an action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Of clients that got something.
    pub(super) heard: BTreeMap<Name, Heard>,
    /// Rows that the store owes to each kept session.
    pub(super) owed: BTreeMap<Name, u64>,
    /// Texts by topic.
    pub(super) retained: BTreeMap<String, String>,
}

/// A message for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    post: Post,
    qos: Qos,
    retain: bool,
    ids: Vec<u32>,
    /// The shared subscription that brought it.
    share: Option<&'static str>,
    /// It outlives the broker.
    stored: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Flight {
    entry: Entry,
    /// Its PUBREC has come.
    received: bool,
    /// It was in flight on an earlier connection.
    dup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    terms: Terms,
    online: bool,
    /// When its last connection ended.
    ended_s: u64,
    /// So long after that its will is due.
    will_due_s: Option<u64>,
    subs: BTreeMap<&'static str, Sub>,
    queue: VecDeque<Entry>,
    flights: Vec<Flight>,
    /// So many of them, from the front, were sent on this connection.
    sent: usize,
    /// QoS 2 ids of its own between PUBLISH and PUBREL.
    inbound: BTreeSet<u16>,
}

/// What the end of a session, or of a connection, brings to others.
enum Job {
    Will(Post),
    /// Messages of shared subscriptions, for other members.
    Move(Vec<Entry>),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    now_s: u64,
    sessions: BTreeMap<Name, Session>,
    retained: BTreeMap<&'static str, Post>,
    heard: BTreeMap<Name, Heard>,
    /// Wills that were published.
    pub(super) wills: BTreeSet<String>,
}

impl Session {
    fn is_kept(&self) -> bool {
        self.terms.expiry_s > 0
    }

    /// It lives on; what was in flight will be sent again.
    fn rest(&mut self, now_s: u64) {
        self.online = false;
        self.ended_s = now_s;
        self.flights.iter_mut().for_each(|flight| flight.dup = true);
    }

    fn will_delay_s(&self) -> u64 {
        self.terms.will.as_ref().map_or(0, |will| will.delay_s.min(self.terms.expiry_s))
    }

    /// What another member of a shared subscription may get: not what was sent with QoS 2 (MQTT-4.8.2-5).
    fn movable(&self, stored: bool) -> Job {
        let flights = self.flights.iter().map(|flight| &flight.entry).filter(|entry| entry.qos == Qos::AtLeastOnce);
        let all = flights.chain(&self.queue);
        Job::Move(all.filter(|entry| entry.share.is_some() && entry.stored == stored).cloned().collect())
    }
}

impl Post {
    fn is_over(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|at| at <= now_s)
    }
}

pub(super) fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        match part {
            "#" => return true,
            "+" if levels.next().is_some() => {}
            part if levels.next() == Some(part) => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// The topics that a shared subscription takes.
fn shared(filter: &str) -> Option<&str> {
    filter.strip_prefix("$share/")?.split_once('/').map(|(_, filter)| filter)
}

impl Reference {
    /// What it says that there is to see; what was heard is forgotten.
    pub(super) fn seen(&mut self) -> Seen {
        let kept = self.sessions.iter().filter(|(_, session)| session.is_kept());
        let owed = kept.map(|(who, session)| {
            let entries = session.flights.iter().map(|flight| &flight.entry).chain(&session.queue);
            (*who, entries.filter(|entry| entry.stored).count() as u64)
        });
        let retained = self.retained.iter().map(|(topic, post)| ((*topic).to_owned(), post.text.clone()));
        let (owed, retained) = (owed.collect(), retained.collect());
        let mut heard = std::mem::take(&mut self.heard);
        heard.retain(|_, heard| *heard != Heard::default());
        Seen { heard, owed, retained }
    }

    pub(super) fn apply(&mut self, action: &Action, fate: &mut Fate) {
        match action {
            Action::Connect(who, terms) => self.connect(who, terms, true, fate),
            Action::Again(who, items) => {
                for item in items {
                    match item {
                        Again::Publish(id, post) => self.offer(who, *id, post, fate),
                        Again::Release(id) => self.release(who, *id),
                    }
                }
            }
            Action::Drop(who) => {
                let jobs = self.detach(who);
                self.run(jobs, fate);
            }
            Action::Disconnect { who, with_will, expiry_s } => {
                let session = self.session(who);
                session.terms.expiry_s = expiry_s.unwrap_or(session.terms.expiry_s);
                if !with_will {
                    session.terms.will = None;
                }
                let jobs = self.detach(who);
                self.run(jobs, fate);
            }
            Action::Subscribe(who, filter, sub) => self.subscribe(who, filter, *sub, true, fate),
            Action::Unsubscribe(who, filter) => drop(self.session(who).subs.remove(filter)),
            Action::Publish(who, id, post) => self.offer(who, *id, post, fate),
            Action::Release(who, id) => self.release(who, *id),
            Action::Ack(who, count) => {
                self.ack(who, *count);
                self.pump(who);
            }
            Action::Complete(who, count) => {
                self.complete(who, *count);
                self.pump(who);
            }
            Action::Pass(seconds) => self.pass(*seconds, fate),
            Action::Cut(cut) => {
                self.perhaps(cut, fate);
                let who = cut.who();
                self.heard.remove(who);
                let jobs = self.detach(who);
                self.run(jobs, fate);
            }
            Action::Crash(cut) => self.crash(cut.as_deref(), fate),
        }
    }

    fn session(&mut self, who: Name) -> &mut Session {
        self.sessions.get_mut(who).expect("it is connected")
    }

    /// What has become of an action whose end nobody saw.
    fn perhaps(&mut self, cut: &Action, fate: &mut Fate) {
        let steps = match cut {
            Action::Publish(..) | Action::Unsubscribe(..) | Action::Disconnect { .. } => 1,
            Action::Connect(..) => 3,
            _ => 2,
        };
        match (fate.pick(steps + 1), cut) {
            (0, _) => {}
            // What became possible by it may have come about, or not.
            (1, Action::Ack(who, count)) => self.ack(who, *count),
            (1, Action::Complete(who, count)) => self.complete(who, *count),
            (1, Action::Connect(who, terms)) => self.connect(who, terms, false, fate),
            // What was in flight has been looked through, and what waits has not.
            (2, Action::Connect(who, terms)) => {
                self.connect(who, terms, false, fate);
                self.send(who, false);
            }
            (1, Action::Subscribe(who, filter, sub)) => self.subscribe(who, filter, *sub, false, fate),
            (_, cut) => self.apply(cut, fate),
        }
    }

    /// `pumps`: and what it is owed is on its way.
    fn connect(&mut self, who: Name, terms: &Terms, pumps: bool, fate: &mut Fate) {
        let takes_over = self.sessions.get(who).is_some_and(|session| session.online);
        let mut jobs = if takes_over { self.detach(who) } else { Vec::new() };
        // The will of the connection that was taken over finds the session between two connections, or in the new one.
        if takes_over && fate.pick(2) == 0 {
            self.run(std::mem::take(&mut jobs), fate);
        }
        let resumes = !terms.clean && self.sessions.contains_key(who);
        if !resumes {
            jobs.extend(self.end(who));
        }
        let now_s = self.now_s;
        let session = self.sessions.entry(who).or_insert_with(|| Session {
            terms: terms.clone(),
            online: false,
            ended_s: now_s,
            will_due_s: None,
            subs: BTreeMap::new(),
            queue: VecDeque::new(),
            flights: Vec::new(),
            sent: 0,
            inbound: BTreeSet::new(),
        });
        (session.terms, session.online, session.will_due_s, session.sent) = (terms.clone(), true, None, 0);
        self.heard.entry(who).or_default().present = Some(resumes);
        if pumps {
            self.pump(who);
        }
        self.run(jobs, fate);
    }

    /// Whether a session of that name is there.
    pub(super) fn has_session(&self, who: Name) -> bool {
        self.sessions.contains_key(who)
    }

    /// A connection ends.
    fn detach(&mut self, who: Name) -> Vec<Job> {
        let now_s = self.now_s;
        let session = self.session(who);
        if !session.is_kept() {
            let will = session.terms.will.take().map(|will| Job::Will(will.post));
            let (unstored, stored) = (session.movable(false), session.movable(true));
            self.sessions.remove(who);
            return [unstored].into_iter().chain(will).chain([stored]).collect();
        }
        session.rest(now_s);
        let delay_s = session.will_delay_s();
        if delay_s > 0 {
            session.will_due_s = Some(delay_s);
            return Vec::new();
        }
        session.terms.will.take().map(|will| Job::Will(will.post)).into_iter().collect()
    }

    /// A session without a connection ends.
    fn end(&mut self, who: Name) -> Vec<Job> {
        let Some(session) = self.sessions.remove(who) else { return Vec::new() };
        let moved = session.movable(true);
        let will = session.terms.will.filter(|_| session.will_due_s.is_some());
        will.map(|will| Job::Will(will.post)).into_iter().chain([moved]).collect()
    }

    fn run(&mut self, jobs: Vec<Job>, fate: &mut Fate) {
        for job in jobs {
            match job {
                Job::Will(post) => {
                    self.wills.insert(post.text.clone());
                    self.publish(&post, fate);
                }
                Job::Move(entries) => {
                    for entry in entries {
                        let share = entry.share.unwrap_or_default();
                        let Some(who) = self.member(share, fate) else { continue };
                        let sub = self.session(who).subs[share];
                        let qos = sub.qos.min(entry.post.qos);
                        self.push(who, Entry { qos, ids: sub.id.into_iter().collect(), ..entry });
                    }
                }
            }
        }
    }

    /// One who is connected, if any is.
    fn member(&self, share: &str, fate: &mut Fate) -> Option<Name> {
        let members = self.sessions.iter().filter(|(_, session)| session.subs.contains_key(share));
        let (here, away): (Vec<_>, Vec<_>) = members.partition(|(_, session)| session.online);
        let able = if here.is_empty() { away } else { here };
        able.get(fate.pick(able.len())).map(|(who, _)| **who)
    }

    /// A client's own PUBLISH: one with QoS 2 counts once between PUBLISH and PUBREL.
    fn offer(&mut self, who: Name, id: u16, post: &Post, fate: &mut Fate) {
        if post.qos != Qos::ExactlyOnce || self.session(who).inbound.insert(id) {
            self.publish(post, fate);
        }
    }

    fn release(&mut self, who: Name, id: u16) {
        self.session(who).inbound.remove(&id);
    }

    fn publish(&mut self, post: &Post, fate: &mut Fate) {
        let post = Post { expires_s: post.expiry_s.map(|s| self.now_s + s), ..post.clone() };
        match (post.retain, post.text.is_empty()) {
            (true, true) => drop(self.retained.remove(post.topic)),
            (true, false) => drop(self.retained.insert(post.topic, post.clone())),
            (false, _) => {}
        }
        let names: Vec<Name> = self.sessions.keys().copied().collect();
        for who in names {
            let subs = self.session(who).subs.iter().filter(|(filter, sub)| {
                shared(filter).is_none() && matches(filter, post.topic) && !(sub.no_local && post.from == who)
            });
            let subs: Vec<Sub> = subs.map(|(_, sub)| *sub).collect();
            let Some(most) = subs.iter().map(|sub| sub.qos).max() else { continue };
            let retain = post.retain && subs.iter().any(|sub| sub.as_published);
            let mut ids: Vec<u32> = subs.iter().filter_map(|sub| sub.id).collect();
            ids.sort_unstable();
            let entry = Entry { qos: most.min(post.qos), retain, ids, share: None, stored: false, post: post.clone() };
            self.push(who, entry);
        }
        let shares = self.sessions.values().flat_map(|session| session.subs.keys().copied());
        let shares: BTreeSet<&str> =
            shares.filter(|filter| shared(filter).is_some_and(|own| matches(own, post.topic))).collect();
        for share in fate.shuffle(shares.into_iter().collect()) {
            let Some(who) = self.member(share, fate) else { continue };
            let sub = self.session(who).subs[share];
            let (qos, retain) = (sub.qos.min(post.qos), post.retain && sub.as_published);
            let ids = sub.id.into_iter().collect();
            self.push(who, Entry { qos, retain, ids, share: Some(share), stored: false, post: post.clone() });
        }
    }

    fn push(&mut self, who: Name, entry: Entry) {
        let now_s = self.now_s;
        let session = self.session(who);
        if entry.qos != Qos::AtMostOnce {
            if session.is_kept() || session.online {
                let stored = session.is_kept();
                session.queue.push_back(Entry { stored, ..entry });
                self.pump(who);
            }
        } else if session.online && !entry.post.is_over(now_s) {
            let arrived = arrived(&entry, session.terms.version, now_s, false);
            self.heard.entry(who).or_default().at_most_once.push(arrived);
        }
    }

    /// Sends what the window has room for.
    fn pump(&mut self, who: Name) {
        self.send(who, true);
    }

    /// `all`: also of what waits.
    fn send(&mut self, who: Name, all: bool) {
        let now_s = self.now_s;
        let Some(session) = self.sessions.get_mut(who).filter(|session| session.online) else { return };
        let (window, version) = (session.terms.window, session.terms.version);
        let heard = self.heard.entry(who).or_default();
        loop {
            if let Some(flight) = session.flights.get(session.sent).filter(|_| session.sent < window) {
                // R8: a QoS 2 message that may have been sent never lapses.
                let may_lapse = !flight.dup || flight.entry.qos == Qos::AtLeastOnce;
                if may_lapse && flight.entry.post.is_over(now_s) {
                    session.flights.remove(session.sent);
                    continue;
                }
                match flight.received {
                    true => heard.released.push(flight.entry.post.text.clone()),
                    false => heard.above.push(arrived(&flight.entry, version, now_s, flight.dup)),
                }
                session.sent += 1;
            } else if let Some(entry) = session.queue.front().filter(|_| all && session.flights.len() < window).cloned()
            {
                session.queue.pop_front();
                if !entry.post.is_over(now_s) {
                    session.flights.push(Flight { entry, received: false, dup: false });
                }
            } else {
                return;
            }
        }
    }

    /// PUBACK or PUBREC for the oldest messages that it has had.
    fn ack(&mut self, who: Name, count: usize) {
        let session = self.session(who);
        let mut released = Vec::new();
        for _ in 0..count {
            let Some(at) = session.flights.iter().take(session.sent).position(|flight| !flight.received) else { break };
            if session.flights[at].entry.qos == Qos::AtLeastOnce {
                session.flights.remove(at);
                session.sent -= 1;
            } else {
                session.flights[at].received = true;
                released.push(session.flights[at].entry.post.text.clone());
            }
        }
        self.heard.entry(who).or_default().released.extend(released);
    }

    /// PUBCOMP for the oldest that were released.
    fn complete(&mut self, who: Name, count: usize) {
        let session = self.session(who);
        for _ in 0..count {
            let Some(at) = session.flights.iter().take(session.sent).position(|flight| flight.received) else { break };
            session.flights.remove(at);
            session.sent -= 1;
        }
    }

    fn subscribe(&mut self, who: Name, filter: &'static str, sub: Sub, brings: bool, fate: &mut Fate) {
        let is_new = self.session(who).subs.insert(filter, sub).is_none();
        let is_asked = match sub.handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        if !brings || !is_asked {
            return;
        }
        let posts =
            self.retained.values().filter(|post| matches(filter, post.topic) && !(sub.no_local && post.from == who));
        let posts: Vec<Post> = posts.cloned().collect();
        for post in fate.shuffle(posts) {
            let (qos, ids) = (sub.qos.min(post.qos), sub.id.into_iter().collect());
            self.push(who, Entry { qos, retain: true, ids, share: None, stored: false, post });
        }
    }

    fn pass(&mut self, seconds: u64, fate: &mut Fate) {
        self.now_s += seconds;
        let now_s = self.now_s;
        self.retained.retain(|_, post| !post.is_over(now_s));
        let away = |session: &&mut Session| !session.online;
        let mut jobs = Vec::new();
        let is_over = |session: &Session| now_s - session.ended_s >= session.terms.expiry_s;
        let over = self.sessions.iter().filter(|(_, session)| !session.online && is_over(session));
        let over: Vec<Name> = over.map(|(who, _)| *who).collect();
        over.into_iter().for_each(|who| jobs.extend(self.end(who)));
        for session in self.sessions.values_mut().filter(away) {
            if session.will_due_s.is_some_and(|delay_s| now_s - session.ended_s >= delay_s) {
                session.will_due_s = None;
                jobs.extend(session.terms.will.take().map(|will| Job::Will(will.post)));
            }
        }
        let jobs = fate.shuffle(jobs);
        self.run(jobs, fate);
    }

    /// A kill, and the next start. `cut`: what it fell into.
    fn crash(&mut self, cut: Option<&Action>, fate: &mut Fate) {
        if let Some(cut) = cut {
            self.perhaps(cut, fate);
        }
        let now_s = self.now_s;
        let mut jobs = Vec::new();
        self.sessions.retain(|_, session| {
            if session.is_kept() {
                let delay_s = session.will_delay_s();
                if session.online {
                    session.will_due_s = session.terms.will.as_ref().map(|_| delay_s);
                    session.rest(now_s);
                }
                return true;
            }
            // R20: its will is published with the start.
            jobs.extend(session.terms.will.take().map(|will| Job::Will(will.post)));
            jobs.push(session.movable(true));
            false
        });
        self.heard.clear();
        // A will without a delay is due at once.
        for session in self.sessions.values_mut().filter(|session| session.will_due_s == Some(0)) {
            session.will_due_s = None;
            jobs.extend(session.terms.will.take().map(|will| Job::Will(will.post)));
        }
        let jobs = fate.shuffle(jobs);
        self.run(jobs, fate);
    }
}

fn arrived(entry: &Entry, version: Version, now_s: u64, dup: bool) -> Arrived {
    let Entry { post, qos, retain, ids, .. } = entry;
    let left_s = post.expires_s.filter(|_| version.is_v5()).map(|at| u32::try_from(at.saturating_sub(now_s)).unwrap());
    let (text, topic) = (post.text.clone(), post.topic.to_owned());
    Arrived { text, topic, qos: *qos, retain: *retain, dup, ids: ids.clone(), left_s }
}
