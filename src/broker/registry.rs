//! Which client id is which session: resumption, take-over, expiry, and wills.
//!
//! A session has at most one connection. Whoever connects under a client id that is in use kicks the other, and waits
//! until that one's task has stopped offering and has handed the session back (R19).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;

use super::Broker;
use super::aliases::Aliases;
use super::auth::{By, Changes, Granted};
use super::client::{Client, Delivery, Kick, Online, PAGE_ROWS, State, Tail, Terms};
use super::config::Listener;
use super::convert;
use super::index::{Share, Wanted};
use super::limits::UserLimits;
use super::limits::usage::{KeptAt, UserHeld};
use super::local::OFFERS_A_WILL;
use super::session::{Entry, Row};
use super::store::{Op, OwedRow, Page, SessionId, encode_body};
use super::wills::Will;
use crate::clock::Moment;
use crate::hub::{Answers, OfferError};
use crate::message::Message;
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::topic::TopicName;
use crate::wire::ReasonCode;

/// Retained messages that are expired in one step, under the store's lock.
const RETAINED_STEP: usize = 1_000;

/// Of what clients cause, so often one line of a kind is logged; docs/limits.md promises it.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A connection's hold on its session.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) client: Arc<Client>,
    pub(super) kick: Arc<Kick>,
    /// Session Present.
    pub(super) resumed: bool,
    /// The store position that must be durable before CONNACK.
    pub(super) position: Option<u64>,
    /// What it has in flight could not be read: it must not go on, since its packet ids are not known.
    pub(super) unreadable: bool,
    /// Until CONNACK is written: what a resumed session was before, and is again if its client is not let in after all.
    pub(super) before: Option<Box<Before>>,
}

/// See [`Attached::before`].
#[derive(Clone, Debug)]
pub(super) struct Before {
    terms: Terms,
    ended: Option<Moment>,
    will_due: Option<u32>,
}

/// What a CONNECT asks for.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) name: Arc<str>,
    pub(super) clean_start: bool,
    pub(super) terms: Terms,
    pub(super) granted: Arc<Granted>,
    pub(super) window: usize,
    pub(super) packet_bytes_max: usize,
    pub(super) alias_max: u16,
    /// Its user's limits, where there are any.
    pub(super) limits: Option<Arc<UserLimits>>,
    /// For a new session that is kept.
    pub(super) held: Mutex<Option<UserHeld>>,
    /// The same, of its listener's.
    pub(super) kept_at: Mutex<Option<KeptAt>>,
}

/// Why a client is not let in after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTheirs {
    /// The client id is that of another user's session.
    Session,
    /// Its user's entry was changed or removed while it logged in.
    Login,
}

/// What a user has under a client id already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// A connection.
    pub(super) is_connected: bool,
    /// A session that is kept.
    pub(super) is_kept: bool,
    /// A session that is kept is there, whoever's it is.
    pub(super) is_there: bool,
    /// It came in at this listener.
    pub(super) is_at_listener: bool,
}

/// Why a session cannot be had now.
enum Held {
    /// Its connection is ending, and will say when it has.
    Until(Arc<Kick>),
    /// See [`NotTheirs::Session`].
    ByAnother,
    /// See [`NotTheirs::Login`].
    Stale,
}

/// What the store forgets when a will is safe.
#[derive(Debug)]
enum After {
    Nothing,
    /// The will in the session's row.
    Row(Arc<Client>),
    /// The session, and how many rows it was owed.
    Gone(SessionId, u64),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By a DISCONNECT: no will.
    Orderly,
    /// In any other way.
    Abnormal,
}

impl Broker {
    /// Takes the session of `claim` over, or begins one. Waits for a connection that holds it to let go.
    ///
    /// # Errors
    /// [`NotTheirs`]: nothing of it was touched.
    pub(super) async fn attach(&self, claim: Claim) -> Result<Attached, NotTheirs> {
        let kick = Arc::new(Kick::default());
        let (client, before) = loop {
            match self.try_attach(&claim, &kick) {
                Ok(attached) => break attached,
                Err(Held::Until(kick)) => kick.over().await,
                Err(Held::ByAnother) => return Err(NotTheirs::Session),
                Err(Held::Stale) => return Err(NotTheirs::Login),
            }
        };
        let position = self.note_connected(&client);
        let resumed = before.is_some();
        let unreadable = resumed && !self.load_in_flight(&client).await;
        self.board.clients.fetch_add(1, Ordering::Relaxed);
        self.board.connects.fetch_add(1, Ordering::Relaxed);
        Ok(Attached { client, kick, resumed, position, unreadable, before })
    }

    /// What `user` has under this client id, and whether `listener` has it.
    pub(super) fn session_of(&self, name: &str, user: Option<&Arc<str>>, listener: &Listener) -> Own {
        let Some(client) = self.clients.lock().get(name).cloned() else { return Own::default() };
        let state = client.lock();
        let is_theirs = state.terms.user.as_ref() == user;
        // It is counted as a session if it is kept, and as this user's only then.
        let is_kept = is_theirs && state.held.as_ref().is_some_and(|held| held.key().as_ref() == user);
        Own {
            is_connected: is_theirs && state.online.is_some(),
            is_kept,
            is_there: state.held.is_some(),
            is_at_listener: state.kept_at.as_ref().is_some_and(|at| at.listener.bind.is_at(&listener.bind)),
        }
    }

    /// With what a resumed session was before. `Err`: somebody holds it.
    fn try_attach(&self, claim: &Claim, kick: &Arc<Kick>) -> Result<(Arc<Client>, Option<Box<Before>>), Held> {
        let mut clients = self.clients.lock();
        // Under this lock: a reload ends those who are connected after it has the new users, and this one would come behind it.
        if self.auth.load().is_stale(&claim.granted) {
            return Err(Held::Stale);
        }
        let mut resumed = None;
        if let Some(client) = clients.get(&claim.name).cloned() {
            let mut state = client.lock();
            if self.is_anothers(&state, claim) {
                return Err(Held::ByAnother);
            }
            if let Some(online) = &state.online {
                online.kick.with(ReasonCode::SessionTakenOver, &client);
                return Err(Held::Until(Arc::clone(&online.kick)));
            }
            let lapsed = state.has_lapsed(self.clock.moment());
            if claim.clean_start || lapsed || !state.terms.kept {
                let will = state.will_due.take().and_then(|_| state.terms.will.clone());
                drop(state);
                let after = self.forget(&client);
                match will {
                    Some(will) => self.publish_will(&client, will, after),
                    None => self.settle(&after),
                }
            } else {
                drop(state);
                resumed = Some(client);
            }
        }
        let is_resumed = resumed.is_some();
        let client = resumed.unwrap_or_else(|| {
            let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
            let client = Client::new(id, Arc::clone(&claim.name), claim.terms.clone(), self.config.load().window());
            Arc::new(client)
        });
        clients.insert(Arc::clone(&claim.name), Arc::clone(&client));
        let mut state = client.lock();
        let terms = std::mem::replace(&mut state.terms, claim.terms.clone());
        let before = Before { terms, ended: state.ended.take(), will_due: state.will_due.take() };
        state.set_rights(self.auth.load().rights(&claim.granted, &claim.name));
        state.granted = Some(Arc::clone(&claim.granted));
        state.limits.clone_from(&claim.limits);
        // A user who takes over what an anonymous client left has it from now on.
        let is_counted = state.held.as_ref().is_some_and(|held| *held.key() == claim.terms.user);
        if claim.terms.kept && !is_counted {
            state.held = claim.held.lock().take();
        }
        if claim.terms.kept {
            state.kept_at = claim.kept_at.lock().take();
        }
        state.outbound.handle_connect(claim.window);
        // Until the store has been looked at, new messages are left to it, behind what is there.
        state.tail = is_resumed.then(Tail::default);
        state.online = Some(Online {
            kick: Arc::clone(kick),
            packet_bytes_max: claim.packet_bytes_max,
            aliases: Aliases::new(claim.alias_max),
            alias_bytes: 0,
            packets: 0,
            taken: 0,
            outbox: BytesMut::new(),
        });
        drop(state);
        Ok((client, is_resumed.then(|| Box::new(before))))
    }

    /// A session belongs to the user who made it: nobody else resumes it, ends it, or is sent what it is owed. One that an anonymous
    /// client made is anybody's; what its next user may not read is not sent. Where names are not checked they mean nothing.
    fn is_anothers(&self, state: &State, claim: &Claim) -> bool {
        let lives = state.online.is_some() || (state.terms.kept && !state.has_lapsed(self.clock.moment()));
        let (owner, user) = (&state.terms.user, &claim.terms.user);
        let is_anothers = lives && owner.is_some() && owner != user && !self.auth.load().takes_any_name();
        if is_anothers {
            static LOGGED: Limited = Limited::new(LOG_EVERY);
            if let Some(held_back) = LOGGED.pass(self.clock.now()) {
                let shown = |user| tracing::field::display(Shown(user));
                let (client, owner, user) =
                    (Shown(&claim.name), owner.as_deref().map(shown), user.as_deref().map(shown));
                tracing::warn!(%client, owner, user, held_back, "a client id is refused: its session belongs to another user");
            }
        }
        is_anothers
    }

    /// A kept session, or one with a will, has a row from CONNECT on. A resumed one that is no longer kept keeps its row
    /// until it ends.
    fn note_connected(&self, client: &Client) -> Option<u64> {
        self.store
            .stage(|unit| {
                let mut state = client.lock();
                if state.terms.kept || state.terms.will.is_some() || state.stored {
                    state.stored = true;
                    unit.push(Op::Session(Box::new(state.row(client))));
                }
            })
            .1
    }

    /// What was sent and not acknowledged is in memory again before anything is sent. `false`: it cannot be read.
    async fn load_in_flight(&self, client: &Client) -> bool {
        let Ok(page) = self.store.in_flight(client.id).await else { return false };
        self.drop_damaged(client, &page.damaged);
        self.note_brought(&page);
        let mut state = client.lock();
        for row in page.rows {
            // It is asked for by having one.
            if let Some(id) = row.packet_id {
                let received = row.received;
                state.outbound.restore(id, entry_of(row), received);
            }
        }
        true
    }

    /// What is read for one client is in memory until it is acknowledged. What is in flight has its bound where it is put in flight; many clients
    /// that come back at once have theirs here: the next of them are refused while memory is short (R36).
    fn note_brought(&self, page: &Page) {
        let bytes = page.rows.iter().map(|row| row.message.payload.len() as u64).sum();
        self.hub.memory().brought(bytes);
    }

    /// Rows that do not read back will never: they are dropped, counted.
    fn drop_damaged(&self, client: &Client, rows: &[(u64, u64)]) {
        if rows.is_empty() {
            return;
        }
        self.board.dropped_many("damaged", rows.len() as u64);
        self.store.stage(|unit| {
            let mut state = client.lock();
            for (seq, bytes) in rows.iter().copied() {
                state.owed.settle(Row { seq, bytes });
                unit.push(Op::Settle(seq));
            }
        });
    }

    /// Asks for the next rows that are left to the store.
    pub(super) fn ask_page(&self, client: &Client) -> Option<(Tail, tokio::sync::oneshot::Receiver<Page>)> {
        let tail = client.lock().wants_page(self.allowance())?;
        Some((tail, self.store.waiting(client.id, tail.after, PAGE_ROWS)))
    }

    /// Takes rows in. `asked` is what was known when they were asked for.
    pub(super) fn take_page(&self, client: &Client, asked: Tail, page: Page) {
        self.drop_damaged(client, &page.damaged);
        self.note_brought(&page);
        let mut state = client.lock();
        let Some(tail) = &mut state.tail else { return };
        tail.after = page.last.unwrap_or(tail.after).max(tail.after);
        // All that was staged by then has been read; the tail ends if nothing came since.
        if !page.more && tail.high <= asked.high.max(tail.after) {
            state.tail = None;
        }
        page.rows.into_iter().for_each(|row| state.outbound.push(entry_of(row)));
    }

    /// Hands the session back. `ending` decides over the will, unless its client was not let in: then all is as before it came.
    pub(super) fn detach(&self, attached: &Attached, ending: Ending) {
        let client = &attached.client;
        let mut state = client.lock();
        // Whoever took over is not to be touched.
        let Some(online) = state.online.take_if(|online| Arc::ptr_eq(&online.kick, &attached.kick)) else { return };
        let now = self.clock.moment();
        state.inbound.handle_disconnect();
        state.ended = Some(now);
        if ending == Ending::Orderly {
            state.terms.will = None;
        }
        let before = attached.before.as_deref().cloned();
        let has_come = before.is_none();
        if let Some(before) = before {
            (state.terms, state.ended, state.will_due) = (before.terms, before.ended, before.will_due);
        }
        let (kept, stored) = (state.terms.kept, state.stored);
        // What is in the store is handed on from there.
        let mut shared = if kept { Vec::new() } else { state.outbound.take_shared() };
        shared.retain(|entry| entry.seq.is_none());
        if kept {
            // The store has it all.
            state.outbound.clear();
            state.tail = None;
        }
        let delay_s = state.terms.will_delay_s.min(state.terms.expiry_s);
        let is_delayed = kept && delay_s > 0;
        let mut will = state.terms.will.clone().filter(|_| has_come);
        if is_delayed && will.take().is_some() {
            state.will_due = Some(delay_s);
        }
        drop(state);
        if kept && stored {
            self.note_row(client);
        }
        if !kept {
            let mut clients = self.clients.lock();
            if clients.get(&client.name).is_some_and(|other| other.id == client.id) {
                clients.remove(&client.name);
            }
        }
        self.board.clients.fetch_sub(1, Ordering::Relaxed);
        let after = if kept { After::Row(Arc::clone(client)) } else { self.forget(client) };
        shared.into_iter().for_each(|entry| self.hand_on(entry));
        match will {
            Some(will) => self.publish_will(client, will, after),
            None => self.settle(&after),
        }
        online.kick.note_over();
    }

    /// A message of a shared subscription goes to another member when the session that had it ends (MQTT 5.0 section 4.8.2).
    fn hand_on(&self, entry: Entry) {
        let Entry { topic, message, retain, share, .. } = entry;
        let Some(one) = share.and_then(|share| self.topics.pick(&share, &topic)) else {
            return self.board.dropped("no_member_left");
        };
        let qos = one.qos.min(message.qos);
        self.push_alone(&one.client, Delivery { topic, message, qos, retain, ids: one.ids, share: one.share });
    }

    /// Writes the session's row as it is, unless it is connected again or gone.
    fn note_row(&self, client: &Client) {
        self.store.stage(|unit| {
            let state = client.lock();
            if state.online.is_none() && state.stored {
                unit.push(Op::Session(Box::new(state.row(client))));
            }
        });
    }

    /// Forgets a session in memory. What the store has of it goes with the answer.
    fn forget(&self, client: &Client) -> After {
        let mut state = client.lock();
        state.outbound.clear();
        let owed = std::mem::take(&mut state.owed).rows();
        (state.held, state.kept_at) = (None, None);
        state.subscriptions.clear();
        self.topics.note_filters(0, std::mem::take(&mut state.filter_bytes));
        let stored = std::mem::take(&mut state.stored);
        drop(state);
        self.topics.forget(client.id);
        if stored {
            return After::Gone(client.id, owed);
        }
        self.board.dropped_many("session_ended", owed);
        After::Nothing
    }

    fn settle(&self, after: &After) {
        match after {
            After::Nothing => {}
            After::Row(client) => self.note_row(client),
            After::Gone(id, 0) => drop(self.store.stage_one(Op::SessionGone(*id))),
            After::Gone(id, owed) => {
                let (Some(broker), id, owed) = (self.me.upgrade(), *id, *owed) else { return };
                self.tasks.spawn(async move { broker.end_session(id, owed).await });
            }
        }
    }

    /// Forgets a session in the store. What it was owed of shared subscriptions goes to other members first, each row in one step, so
    /// that a kill in between neither loses nor doubles it. If the store closes meanwhile, the next start goes on.
    async fn end_session(&self, id: SessionId, mut owed: u64) {
        loop {
            let Ok(page) = self.store.shared(id, PAGE_ROWS).await else { return };
            if page.rows.is_empty() && page.damaged.is_empty() {
                break;
            }
            self.store.stage(|unit| page.damaged.iter().for_each(|(seq, _)| unit.push(Op::Settle(*seq))));
            for row in page.rows {
                owed = owed.saturating_sub(u64::from(self.move_row(row)));
            }
        }
        self.store.stage_one(Op::SessionGone(id));
        self.board.dropped_many("session_ended", owed);
    }

    /// Moves a row to another member of its shared subscription; without one it is only removed. Whether there was one.
    fn move_row(&self, row: OwedRow) -> bool {
        let seq = row.seq;
        let Entry { topic, message, retain, share, .. } = entry_of(row);
        let one = share.and_then(|share| self.topics.pick(&share, &topic));
        let now = self.clock.moment();
        self.store
            .stage(|unit| {
                let Some(one) = one else {
                    unit.push(Op::Settle(seq));
                    return false;
                };
                let body = || encode_body(&message);
                let qos = one.qos.min(message.qos);
                let delivery =
                    Delivery { topic, message: Arc::clone(&message), qos, retain, ids: one.ids, share: one.share };
                self.push(&one.client, delivery, Some(unit), None, now, body);
                unit.moves(seq);
                unit.push(Op::Settle(seq));
                true
            })
            .0
    }

    /// Publishes a will through the hub, in a task of its own: it outlives its connection. Only when it is safe does the
    /// store forget it (R20): a crash before that publishes it at the next start, at worst a second time.
    fn publish_will(&self, client: &Client, will: Will, after: After) {
        let may = self.may_publish_will(client, &will.message.topic);
        if let After::Row(client) = &after {
            let mut state = client.lock();
            if state.online.is_none() {
                state.terms.will = None;
                state.will_due = None;
            }
        }
        if !may {
            self.board.refused("not_allowed");
            static LOGGED: Limited = Limited::new(LOG_EVERY);
            if let Some(held_back) = LOGGED.pass(self.clock.now()) {
                let (client, topic) = (Shown(&client.name), Shown(will.message.topic.as_str()));
                tracing::warn!(%client, %topic, held_back, "a will is not published: its client may not publish there");
            }
            return self.settle(&after);
        }
        let Some(broker) = self.me.upgrade() else { return };
        self.tasks.spawn(async move {
            let (source, batch) = (convert::source(), vec![convert::will_publication(&will.message)]);
            for answer in OFFERS_A_WILL.scope((), broker.hub.offer(&source, batch)).await {
                let settled = match answer {
                    Ok(mut receipt) => receipt.settled().await.map_err(|error| error.to_string()),
                    // The store still has it: it is published after the next start.
                    Err(OfferError::Stopping) => return,
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = settled {
                    broker.board.dropped("will_refused");
                    static LOGGED: Limited = Limited::new(LOG_EVERY);
                    if let Some(held_back) = LOGGED.pass(broker.clock.now()) {
                        let topic = Shown(will.message.topic.as_str());
                        tracing::warn!(%topic, %error, held_back, "a will could not be stored everywhere");
                    }
                }
            }
            broker.settle(&after);
        });
    }

    /// Rules may have changed since CONNECT. A session that has not been here since the start has none of its own: those that name its
    /// user are asked, and where none does it was let in by what only a login shows.
    fn may_publish_will(&self, client: &Client, topic: &TopicName) -> bool {
        let mut state = client.lock();
        match (&state.granted, state.terms.user.clone()) {
            (Some(_), _) => state.may_publish(topic),
            (None, user) => self
                .auth
                .load()
                .rights_by_name(user.as_ref(), &client.name)
                .is_none_or(|rights| rights.may_publish(topic)),
        }
    }

    /// Users and rules are read again: those that have changed, or all (`always`). New rules hold from the next publish, subscribe
    /// and delivery on. Who came in by a password that is no longer theirs is ended (MQTT 5: 0x87), as Mosquitto does.
    /// It reads files: not for a thread of the runtime.
    pub(super) fn reload_auth(&self, always: bool) {
        let changes = self.auth.load_full().reload(always);
        if changes.acl || !changes.users.is_empty() {
            self.take_note_of(&changes);
        }
    }

    /// Has the clients that are there feel what has changed of users and rules.
    pub(super) fn take_note_of(&self, changes: &Changes) {
        let auth = self.auth.load_full();
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        for client in clients {
            let mut state = client.lock();
            let Some(granted) = state.granted.clone() else { continue };
            if changes.acl {
                let had_none = !state.has_rights();
                state.set_rights(auth.rights(&granted, &client.name));
                // Whether there are rules at all is settled at CONNECT.
                let is_new = had_none && state.has_rights();
                if let Some(online) = state.online.as_ref().filter(|_| is_new) {
                    online.kick.with(ReasonCode::AdministrativeAction, &client);
                }
            }
            let is_over =
                granted.by == By::Users && granted.user.as_ref().is_some_and(|user| changes.users.contains(&**user));
            if let Some(online) = state.online.as_ref().filter(|_| is_over) {
                let user = granted.user.as_deref().map(|user| tracing::field::display(Shown(user)));
                tracing::info!(client = %Shown(&client.name), user, "a client is ended: its user's entry has changed");
                online.kick.with(ReasonCode::NotAuthorized, &client);
            }
        }
    }

    /// What is due at `now`: wills whose delay has passed, sessions whose time is over.
    pub(super) fn keep_house(&self, now: Moment) {
        for client in std::mem::take(&mut *self.superseded.lock()) {
            let will = client.lock().terms.will.clone();
            let after = self.forget(&client);
            match will {
                Some(will) => self.publish_will(&client, will, after),
                None => self.settle(&after),
            }
        }
        self.expire_retained(now);
        self.users.forget_idle(self.clock.now());
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        for client in clients {
            self.settle_receipts(&client);
            let state = client.lock();
            let lapsed = state.has_lapsed(now);
            let due = state.is_will_due(now);
            drop(state);
            if lapsed {
                self.expire(&client);
            } else if due {
                let will = client.lock().terms.will.clone();
                if let Some(will) = will {
                    self.publish_will(&client, will, After::Row(Arc::clone(&client)));
                }
            }
        }
    }

    /// QoS 2 messages that have become durable since their connection went are noted, so that neither a restart nor the
    /// connection that repeats them offers them again. One step: an id may be used anew right after.
    fn settle_receipts(&self, client: &Client) {
        if client.lock().receipts.is_empty() {
            return;
        }
        self.store.stage(|unit| {
            let mut state = client.lock();
            let State { receipts, inbound, terms, .. } = &mut *state;
            receipts.retain(|(id, receipt)| {
                let decided = receipt.decided();
                if decided == Some(Ok(())) {
                    inbound.handle_durable(*id);
                    if terms.kept {
                        unit.push(Op::InboundFinished(client.id, *id));
                    }
                }
                decided.is_none()
            });
        });
    }

    /// Retained messages whose time is over leave memory and store. A later one on the same topic is staged before or behind it, under
    /// the same lock.
    fn expire_retained(&self, now: Moment) {
        loop {
            let due = self.topics.retained_due(now, RETAINED_STEP);
            if due.is_empty() {
                return;
            }
            let gone = self.store.stage(|unit| {
                let gone = due.iter().filter(|topic| self.topics.expire_retained(topic, now));
                gone.map(|topic| unit.push(Op::Unretain(topic.as_str().into()))).count()
            });
            self.board.dropped_many("retained_expired", gone.0 as u64);
        }
    }

    fn expire(&self, client: &Arc<Client>) {
        let mut clients = self.clients.lock();
        let state = client.lock();
        let is_current = clients.get(&client.name).is_some_and(|other| other.id == client.id);
        if !is_current || state.online.is_some() {
            return;
        }
        let will = state.terms.will.clone().filter(|_| state.will_due.is_some());
        drop(state);
        clients.remove(&client.name);
        drop(clients);
        self.expired.fetch_add(1, Ordering::Relaxed);
        let after = self.forget(client);
        match will {
            Some(will) => self.publish_will(client, will, after),
            None => self.settle(&after),
        }
    }

    /// R18: exchanges that were delivered here, and that links may lack, are offered to the links once more. Their receipts go to
    /// the session, so that a client that repeats one meanwhile waits for the same receipt, and does not offer it again.
    pub(super) async fn finish_exchanges(&self) {
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        for client in clients {
            let (unfinished, turn) = client.lock().begin_finishing();
            for (id, message) in unfinished {
                let _turn = turn.lock().await;
                self.finish_exchange(&client, id, &message).await;
            }
        }
    }

    async fn finish_exchange(&self, client: &Client, id: u16, message: &Arc<Message>) {
        // Its client was faster: then it is that connection's, or its receipt is there.
        if !client.lock().is_to_be_finished(id, message) {
            return;
        }
        let answers = Answers::default();
        self.resume((**message).clone(), &answers).await;
        match answers.take().pop().map_or(Err(OfferError::Stopping), |(_, answer)| answer) {
            Ok(receipt) => {
                let mut state = client.lock();
                // A connection that has repeated it meanwhile waits for its turn, and takes this.
                if state.inbound.is_unfinished(id, message) {
                    state.receipts.push((id, receipt));
                }
            }
            Err(error) => tracing::warn!(client = %Shown(&client.name), id, %error, "a QoS 2 exchange stays open"),
        }
    }

    /// For the connection that repeats an unfinished exchange: it goes to the links once, whoever is first, it or the start (R18).
    pub(super) async fn resume_for(&self, client: &Client, id: u16, message: &Message, answers: &Answers) {
        let turn = client.lock().turn();
        let _turn = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        let left = client.lock().take_receipt(id);
        match left {
            Some(receipt) => answers.give(Ok(receipt)),
            None => self.resume(message.clone(), answers).await,
        }
    }

    /// Offers the message of an unfinished exchange to the links that lack it (R18).
    pub(super) async fn resume(&self, message: Message, answers: &Answers) {
        let look = async || {
            let wanted = self.unfinished.lock().clone();
            Arc::new(self.hub.find(&wanted).await)
        };
        let logged = Arc::clone(self.logged.get_or_init(look).await);
        self.hub.resume(message, &logged, answers).await;
    }

    /// An inbound exchange is durable everywhere.
    pub(super) fn note_durable(&self, client: &Client, id: u16) {
        let mut state = client.lock();
        state.inbound.handle_durable(id);
        let kept = state.terms.kept;
        drop(state);
        if kept {
            self.store.stage_one(Op::InboundFinished(client.id, id));
        }
    }
}

fn entry_of(row: OwedRow) -> Entry {
    Entry {
        topic: row.topic,
        message: row.message,
        qos: row.qos,
        retain: row.retain,
        ids: row.ids.into(),
        seq: Some(row.seq),
        ready: None,
        share: row.share.as_deref().and_then(share_of),
    }
}

fn share_of(text: &str) -> Option<Arc<Share>> {
    match Wanted::parse(text) {
        Ok(Wanted::Shared(share)) => Some(Arc::new(share)),
        Ok(Wanted::Own(_)) | Err(_) => None,
    }
}
