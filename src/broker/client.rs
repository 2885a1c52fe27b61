//! One session as the whole broker shares it: the pure state, the outbox of its connection, and what pages in what the
//! store keeps for it. Short locks only; nothing here waits.
//!
//! A publisher's task pushes into [`State`] and wakes the session's own connection, which writes. Lock order: the
//! store's staging lock, then one session's; never two sessions' locks at once.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};

use bytes::BytesMut;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::aliases::Aliases;
use super::auth::Granted;
use super::auth::acl::{Rights, Verdicts};
use super::bell::Bell;
use super::index::Share;
use super::limits::UserLimits;
use super::limits::usage::{KeptAt, UserHeld};
use super::memory::Allowance;
use super::owed::Owed;
use super::session::{Assigned, Entry, Inbound, Outbound, Row, Transmit, Window};
use super::store::{Op, SessionId, SessionRow, SubscriptionRow, Unit};
use super::wills::Will;
use crate::clock::Moment;
use crate::hub::Receipt;
use crate::message::{Message, Qos};
use crate::telemetry::board::BrokerBoard;
use crate::topic::{TopicFilter, TopicName};
use crate::wire::{AckKind, PacketId, PublishParts, ReasonCode, SubscriptionId, Version, encode_ack, encode_publish};

/// QoS 1 and 2 messages are encoded while the outbox is below this; the window bounds them besides.
const OUTBOX_BYTES_FILL: usize = 256 << 10;

/// Messages in memory that wait for the window: for a kept session the rest stays in the store, for a clean one it is
/// dropped and counted. The number is Mosquitto's default; [`Allowance`] bounds their bytes.
const QUEUE_MESSAGES_MAX: usize = 1_000;

/// Rows that are paged in at a time, if their bytes are not too many before (the store's `PAGE_BYTES_MAX`).
pub(super) const PAGE_ROWS: usize = 128;

/// A session.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: SessionId,
    pub(super) name: Arc<str>,
    state: Mutex<State>,
    /// Something was pushed, or the connection is to end.
    pub(super) bell: Bell,
}

/// See [`Client`].
#[derive(Debug)]
pub(super) struct State {
    pub(super) terms: Terms,
    /// Whether the store has a row of it.
    pub(super) stored: bool,
    pub(super) online: Option<Online>,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    /// Who it is, since its last CONNECT; `None`: it has not been here since the start.
    pub(super) granted: Option<Arc<Granted>>,
    /// `None`: it may do everything.
    rights: Option<Box<Judged>>,
    /// Receipts of QoS 2 messages that a connection left open (R19).
    pub(super) receipts: Vec<(u16, Receipt)>,
    /// `Some`: the start finishes exchanges of the life before (R18). Held by who offers one to the links: the start, or the connection
    /// that repeats it.
    finishing: Option<Turn>,
    /// `Some`: the store holds rows that are not in memory.
    pub(super) tail: Option<Tail>,
    /// Rows that it is owed.
    pub(super) owed: Owed,
    /// Its user's limits, where there are any.
    pub(super) limits: Option<Arc<UserLimits>>,
    /// What it counts as among its user's kept sessions.
    pub(super) held: Option<UserHeld>,
    /// What it counts as among the kept sessions of the listener where it came in.
    pub(super) kept_at: Option<KeptAt>,
    pub(super) subscriptions: HashMap<Arc<str>, SubscriptionRow>,
    /// What their filters count for.
    pub(super) filter_bytes: usize,
    /// When the last connection ended.
    pub(super) ended: Option<Moment>,
    /// So many seconds after `ended` its will is to be published, unless it comes back.
    pub(super) will_due: Option<u32>,
}

/// See [`State::turn`].
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

/// What a session may do, and what was found to be so for topics that it used.
#[derive(Debug)]
struct Judged {
    rights: Arc<Rights>,
    reads: Verdicts,
    publishes: Verdicts,
}

impl Judged {
    fn may_read(&mut self, topic: &TopicName) -> bool {
        self.rights.may_read_from(topic, &mut self.reads)
    }
}

/// What CONNECT settled.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) version: Version,
    /// Outlives its connection.
    pub(super) kept: bool,
    /// Seconds; `u32::MAX`: never.
    pub(super) expiry_s: u32,
    pub(super) user: Option<Arc<str>>,
    pub(super) will: Option<Will>,
    pub(super) will_delay_s: u32,
}

/// What a session has while it is connected.
#[derive(Debug)]
pub(super) struct Online {
    pub(super) kick: Arc<Kick>,
    pub(super) packet_bytes_max: usize,
    pub(super) aliases: Aliases,
    /// Bytes of the names that it has set aliases for.
    pub(super) alias_bytes: usize,
    /// In `outbox`, and not counted yet.
    pub(super) packets: u32,
    /// How often its connection has taken what was in `outbox`.
    pub(super) taken: u32,
    pub(super) outbox: BytesMut,
}

/// Ends a connection from outside, and says when it has ended.
#[derive(Debug, Default)]
pub(super) struct Kick {
    reason: Mutex<Option<ReasonCode>>,
    is_kicked: AtomicBool,
    is_over: AtomicBool,
    /// Those who wait for its end.
    over: Notify,
}

impl Kick {
    /// Asks the connection of `client` to end, for `reason`. The first reason counts.
    pub(super) fn with(&self, reason: ReasonCode, client: &Client) {
        self.reason.lock().get_or_insert(reason);
        self.is_kicked.store(true, Ordering::Release);
        client.bell.ring();
    }

    /// Waits until it is to end, for the connection of `client` itself: the bell has one listener. Cancel safe.
    pub(super) async fn kicked(&self, client: &Client) {
        poll_fn(|context| {
            loop {
                if self.is_kicked() {
                    return Poll::Ready(());
                }
                // It rings for what is pushed too.
                ready!(client.bell.poll_rung(context));
            }
        })
        .await;
    }

    /// The connection's task has stopped offering and has handed the session back.
    pub(super) fn note_over(&self) {
        self.is_over.store(true, Ordering::Release);
        self.over.notify_waiters();
    }

    /// Waits for that.
    pub(super) async fn over(&self) {
        // Made before the look: whoever is told between the two is told.
        let told = self.over.notified();
        if !self.is_over.load(Ordering::Acquire) {
            told.await;
        }
    }

    /// Whether it is to end. The bell rings when that comes to be.
    pub(super) fn is_kicked(&self) -> bool {
        self.is_kicked.load(Ordering::Acquire)
    }

    /// Why.
    pub(super) fn reason(&self) -> ReasonCode {
        self.reason.lock().unwrap_or(ReasonCode::ServerShuttingDown)
    }
}

/// Rows in the store that are not in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    /// Rows up to here are in memory, or done.
    pub(super) after: u64,
    /// The highest row that was left to the store.
    pub(super) high: u64,
}

/// One message for one subscriber, before it has a row or an id.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) topic: TopicName,
    pub(super) message: Arc<Message>,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) ids: smallvec::SmallVec<[u32; 1]>,
    pub(super) share: Option<Arc<Share>>,
}

/// A QoS 0 message for one subscriber.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtMostOnce<'a> {
    pub(super) topic: &'a TopicName,
    pub(super) message: &'a Message,
    pub(super) retain: bool,
    pub(super) ids: &'a [u32],
    /// Others get it too: then it is worth keeping its bytes.
    pub(super) is_one_of_many: bool,
    pub(super) room: Allowance,
}

/// A QoS 0 packet as the last subscriber got it: for the next one with the same version and retain flag it is the same to the
/// last byte, where neither has subscription identifiers or topic aliases.
#[derive(Debug, Default)]
pub(super) struct Encoded(Option<(Version, bool, Vec<u8>)>);

impl Encoded {
    fn of(&self, version: Version, retain: bool) -> Option<&[u8]> {
        self.0.as_ref().filter(|(of, with, _)| *of == version && *with == retain).map(|(.., bytes)| bytes.as_slice())
    }

    fn keep(&mut self, version: Version, retain: bool, bytes: &[u8]) {
        self.0 = Some((version, retain, bytes.to_vec()));
    }
}

/// What a push into the store is bounded by and counted in.
#[derive(Clone, Copy, Debug)]
pub(super) struct PushTerms<'a> {
    /// Rows owed at most.
    pub(super) rows_max: u64,
    /// Their bytes at most.
    pub(super) bytes_max: u64,
    pub(super) now: Moment,
    pub(super) room: Allowance,
    pub(super) board: &'a Arc<BrokerBoard>,
}

impl Delivery {
    pub(super) fn entry(self, seq: Option<u64>, ready: Option<u64>) -> Entry {
        let Self { topic, message, qos, retain, ids, share } = self;
        Entry { topic, message, qos, retain, ids, seq, ready, share }
    }
}

impl Client {
    pub(super) fn new(id: SessionId, name: Arc<str>, terms: Terms, window: Window) -> Self {
        let state = State {
            terms,
            stored: false,
            online: None,
            outbound: Outbound::new(window),
            inbound: Inbound::default(),
            granted: None,
            rights: None,
            receipts: Vec::new(),
            finishing: None,
            tail: None,
            owed: Owed::default(),
            limits: None,
            held: None,
            kept_at: None,
            subscriptions: HashMap::new(),
            filter_bytes: 0,
            ended: None,
            will_due: None,
        };
        Self { id, name, state: Mutex::new(state), bell: Bell::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What its connection is to send and has not taken yet.
    pub(super) fn outbox_bytes(&self) -> usize {
        self.lock().online.as_ref().map_or(0, |online| online.outbox.len())
    }
}

impl State {
    /// What it may do from now on; `None`: everything.
    pub(super) fn set_rights(&mut self, rights: Option<Arc<Rights>>) {
        let judged = |rights| Judged { rights, reads: Verdicts::default(), publishes: Verdicts::default() };
        self.rights = rights.map(|rights| Box::new(judged(rights)));
    }

    /// What the start has to finish, and whose turn it is from now on.
    pub(super) fn begin_finishing(&mut self) -> (Vec<(u16, Arc<Message>)>, Turn) {
        let unfinished = self.inbound.unfinished();
        let turn =
            if unfinished.is_empty() { Arc::default() } else { Arc::clone(self.finishing.get_or_insert_default()) };
        (unfinished, turn)
    }

    /// What is to be held to offer an unfinished exchange to the links; `None`: nobody else does.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.finishing.clone()
    }

    /// Whether no connection is about to finish it, or has.
    pub(super) fn is_to_be_finished(&self, id: u16, message: &Arc<Message>) -> bool {
        self.inbound.is_interrupted(id, message) && self.receipts.iter().all(|(other, _)| *other != id)
    }

    /// The receipt that a connection, or the start, has left for the exchange `id`.
    pub(super) fn take_receipt(&mut self, id: u16) -> Option<Receipt> {
        let at = self.receipts.iter().position(|(other, _)| *other == id)?;
        Some(self.receipts.swap_remove(at).1)
    }

    /// Whether there are rules for it.
    pub(super) const fn has_rights(&self) -> bool {
        self.rights.is_some()
    }

    /// Whether some of what `filter` brings may be for it.
    pub(super) fn may_subscribe(&self, filter: &TopicFilter) -> bool {
        self.rights.as_ref().is_none_or(|judged| judged.rights.may_subscribe(filter))
    }

    /// Whether it may publish to `topic`.
    pub(super) fn may_publish(&mut self, topic: &TopicName) -> bool {
        self.rights.as_mut().is_none_or(|judged| judged.rights.may_publish_to(topic, &mut judged.publishes))
    }

    /// Whether it may have what is on `topic`. A session that has not been here since the start gets what it is owed checked when it
    /// comes.
    pub(super) fn may_read(&mut self, topic: &TopicName) -> bool {
        self.rights.as_mut().is_none_or(|judged| judged.may_read(topic))
    }

    /// Whether what it is owed goes by the store: it is kept, or was when it came to be owed what is still read from there. What is new would
    /// overtake that.
    pub(super) const fn owes_by_store(&self) -> bool {
        self.terms.kept || self.tail.is_some()
    }

    /// Whether packet ids are noted in the store: while there are rows that may have one. What was sent with QoS 2 must not go to another
    /// member of a shared subscription when the session ends (MQTT-4.8.2-5), kept or not.
    pub(super) const fn notes_ids(&self) -> bool {
        self.terms.kept || self.owed.has_rows()
    }

    /// The session's row as it is now.
    pub(super) fn row(&self, client: &Client) -> SessionRow {
        let Terms { version, kept, expiry_s, user, will, will_delay_s } = self.terms.clone();
        let version = match version {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        };
        let (id, name, will) = (client.id, Arc::clone(&client.name), will.map(|will| will.message));
        let listener = self.kept_at.as_ref().map(|at| Arc::clone(at.name()));
        SessionRow { id, client: name, version, kept, expiry_s, ended: self.ended, user, will, will_delay_s, listener }
    }

    /// Whether its time is over at `now`.
    pub(super) fn has_lapsed(&self, now: Moment) -> bool {
        let Some(ended) = self.ended.filter(|_| self.online.is_none()) else { return false };
        !self.terms.kept
            || (self.terms.expiry_s != u32::MAX && now.since(ended).as_secs() >= u64::from(self.terms.expiry_s))
    }

    /// Whether its will is due at `now`.
    pub(super) fn is_will_due(&self, now: Moment) -> bool {
        let waited = self.ended.map_or(0, |ended| now.since(ended).as_secs());
        self.online.is_none() && self.will_due.is_some_and(|delay_s| waited >= u64::from(delay_s))
    }

    /// Bytes that its outbox has taken, used or not.
    pub(super) fn outbox_capacity(&self) -> usize {
        self.online.as_ref().map_or(0, |online| online.outbox.capacity())
    }

    /// A QoS 0 message: into the outbox, or dropped for the reason given. `false`: it is not connected, and QoS 0 is not kept;
    /// nobody expects it (MQTT 5.0 section 4.3.1).
    pub(super) fn push_at_most_once(
        &mut self,
        parts: AtMostOnce<'_>,
        encoded: &mut Encoded,
        now: Moment,
    ) -> Result<bool, &'static str> {
        let version = self.terms.version;
        let Some(online) = &mut self.online else { return Ok(false) };
        let AtMostOnce { topic, message, retain, ids, is_one_of_many, room } = parts;
        if online.outbox.len() >= room.outbox_bytes {
            return Err(room.reason(online.outbox.len() >= Allowance::USUAL.outbox_bytes));
        }
        let is_common = is_one_of_many && ids.is_empty() && online.aliases.is_off();
        if is_common && let Some(bytes) = encoded.of(version, retain) {
            if bytes.len() > online.packet_bytes_max {
                return Err("too_large");
            }
            online.outbox.extend_from_slice(bytes);
            online.packets += 1;
            return Ok(true);
        }
        let before = online.outbox.len();
        let how = PublishHow { qos: Qos::AtMostOnce, retain, id: None, dup: false };
        put_publish(online, version, topic, message, ids, now, how)?;
        if is_common {
            encoded.keep(version, retain, online.outbox.get(before..).unwrap_or_default());
        }
        Ok(true)
    }

    /// A QoS 1 or 2 message for a clean session: into the queue, or dropped for the reason given.
    pub(super) fn push_unstored(
        &mut self,
        delivery: Delivery,
        ready: Option<u64>,
        room: Allowance,
    ) -> Result<(), &'static str> {
        if self.online.is_none() {
            // It has ended since it was chosen. That another member might have had it is not forgotten.
            return if delivery.share.is_some() { Err("session_ended") } else { Ok(()) };
        }
        if !self.has_queue_room(room) {
            return Err(room.reason(!self.has_queue_room(Allowance::USUAL)));
        }
        self.outbound.push(delivery.entry(None, ready));
        Ok(())
    }

    /// A QoS 1 or 2 message for a kept session: a row in the store, and in memory if it may leave soon. `body` are its
    /// bytes, the same for all rows.
    pub(super) fn push_stored(
        &mut self,
        id: SessionId,
        delivery: Delivery,
        body: bytes::Bytes,
        unit: &mut Unit<'_>,
        terms: PushTerms<'_>,
    ) {
        let PushTerms { bytes_max, now, room, board, .. } = terms;
        let entry = delivery.entry(None, None);
        let bytes = entry.bytes() as u64;
        if bytes > bytes_max {
            return board.dropped("session_full");
        }
        self.make_room(id, unit, bytes, terms);
        let seq = unit.next_seq();
        let (topic, qos, retain, ids) = (entry.topic.as_str().into(), entry.qos, entry.retain, entry.ids.to_vec());
        let share = entry.share.as_ref().map(|share| share.to_string().into());
        let mut packet_id = None;
        if self.online.is_some() && self.tail.is_none() && self.has_queue_room(room) {
            let first = self.outbound.queued() == 0;
            self.outbound.push(Entry { seq: Some(seq), ready: Some(unit.position()), ..entry });
            if first {
                match self.outbound.poll_assign(Some(unit.position()), now) {
                    Some(Assigned::Id(id, _)) => packet_id = Some(id),
                    Some(Assigned::Expired(_)) => return board.dropped("expired"),
                    None => {}
                }
            }
        } else if self.online.is_some() {
            let tail = self.tail.get_or_insert(Tail { after: seq - 1, high: seq });
            tail.high = seq;
        }
        self.owed.add(bytes);
        let (session, of) = (id, None);
        let owe = super::store::OweOp { seq, session, qos, retain, ids, packet_id, share, bytes, topic, body, of };
        unit.push(Op::Owe(owe));
    }

    /// Whether it may be owed one more without another being dropped for it.
    pub(super) fn has_room_for(&mut self, delivery: &Delivery, terms: PushTerms<'_>) -> bool {
        let bytes = delivery.clone().entry(None, None).bytes() as u64;
        self.owed.rows() < terms.rows_max && self.owed.bytes() + bytes <= terms.bytes_max
    }

    /// Drops the oldest that are not in flight. A limit of messages that was lowered is reached over several of them.
    fn make_room(&mut self, id: SessionId, unit: &mut Unit<'_>, bytes: u64, terms: PushTerms<'_>) {
        let PushTerms { rows_max, bytes_max, board, .. } = terms;
        let mut dropped = 0;
        loop {
            let over = (self.owed.bytes() + bytes).saturating_sub(bytes_max);
            let is_over = over > 0 || (self.owed.rows() >= rows_max.max(1) && dropped < 16);
            if !is_over || self.owed.rows() == 0 {
                return;
            }
            dropped += 1;
            // What is in memory is older than what is only in the store.
            match self.outbound.pop_oldest().map(|entry| entry.row()) {
                Some(row) => {
                    if let Some(row) = row {
                        unit.push(Op::Settle(row.seq));
                        self.owed.settle(row);
                    }
                    board.dropped("session_full");
                }
                None if self.online.is_some() && self.tail.is_none() => return,
                None => self.owed.ask(id, over, unit, board),
            }
        }
    }

    /// How well it suits as the next receiver of a message on `topic` of a shared subscription; 0 is best, `None`: it may not have
    /// it.
    pub(super) fn rank(&mut self, topic: &TopicName) -> Option<u8> {
        if !self.may_read(topic) {
            return None;
        }
        Some(match &self.online {
            Some(online)
                if self.has_queue_room(Allowance::USUAL) && online.outbox.len() < Allowance::USUAL.outbox_bytes =>
            {
                0
            }
            Some(_) => 1,
            None if self.terms.kept => 2,
            None => 3,
        })
    }

    fn has_queue_room(&self, room: Allowance) -> bool {
        self.outbound.queued() < QUEUE_MESSAGES_MAX && self.outbound.queued_bytes() < room.queue_bytes
    }

    /// Whether the next page should be asked for: the queue is short, and the store has more.
    pub(super) fn wants_page(&self, room: Allowance) -> Option<Tail> {
        let is_short = self.outbound.queued() < PAGE_ROWS / 2 && self.outbound.queued_bytes() < room.queue_bytes / 2;
        self.tail.filter(|_| is_short)
    }

    /// Gives packet ids and encodes what may leave. `unit` notes ids of rows: without it a session that has such gets none.
    /// Answers the rows that are given up and could not be noted in `unit`.
    pub(super) fn pump(
        &mut self,
        mut unit: Option<&mut Unit<'_>>,
        durable: u64,
        now: Moment,
        board: &BrokerBoard,
    ) -> Vec<Row> {
        if self.online.is_none() {
            return Vec::new();
        }
        let assigns = unit.is_some() || !self.notes_ids();
        let mut given_up = Vec::new();
        loop {
            if assigns {
                self.assign(&mut unit, now, board);
            }
            given_up.extend(self.send(durable, now, board));
            // What was given up has left its place in the window, and no acknowledgement will ever call for the next.
            if !(assigns && self.outbound.can_assign()) {
                break;
            }
        }
        given_up.iter().for_each(|row| self.owed.settle(*row));
        match unit {
            Some(unit) => {
                given_up.into_iter().for_each(|row| unit.push(Op::Settle(row.seq)));
                Vec::new()
            }
            None => given_up,
        }
    }

    /// Gives packet ids as far as the window has room.
    fn assign(&mut self, unit: &mut Option<&mut Unit<'_>>, now: Moment, board: &BrokerBoard) {
        while self.outbound.can_assign() {
            let position = unit.as_ref().map(|unit| unit.position());
            match (self.outbound.poll_assign(position, now), &mut *unit) {
                (Some(Assigned::Id(id, Some(seq))), Some(unit)) => unit.push(Op::Assign(seq, id)),
                (Some(Assigned::Expired(row)), unit) => {
                    board.dropped("expired");
                    row.into_iter().for_each(|row| self.owed.settle(row));
                    if let (Some(row), Some(unit)) = (row, unit) {
                        unit.push(Op::Settle(row.seq));
                    }
                }
                _ => {}
            }
        }
    }

    /// Encodes what may leave into the outbox. Answers the rows that are given up.
    fn send(&mut self, durable: u64, now: Moment, board: &BrokerBoard) -> Vec<Row> {
        let version = self.terms.version;
        let mut given_up = Vec::new();
        loop {
            let Some(online) = self.online.as_mut().filter(|online| online.outbox.len() < OUTBOX_BYTES_FILL) else {
                return given_up;
            };
            let rights = &mut self.rights;
            let barred = |topic: &TopicName| !rights.as_mut().is_none_or(|judged| judged.may_read(topic));
            match self.outbound.poll_send(durable, now, barred) {
                None => return given_up,
                Some(Transmit::Pubrel(id)) => put_ack(online, AckKind::Pubrel, id, ReasonCode::Success, version),
                Some(Transmit::Expired(row)) => {
                    board.dropped("expired");
                    given_up.extend(row);
                }
                Some(Transmit::Barred(seq)) => {
                    board.dropped("not_allowed");
                    given_up.extend(seq);
                }
                Some(Transmit::Publish { id, dup, entry }) => {
                    let how = PublishHow { qos: entry.qos, retain: entry.retain, id: Some(id), dup };
                    let put = put_publish(online, version, &entry.topic, &entry.message, &entry.ids, now, how);
                    match put {
                        Ok(()) => {
                            board.sent.fetch_add(1, Relaxed);
                            board.publish_bytes_out.fetch_add(entry.message.payload.len() as u64, Relaxed);
                        }
                        Err(reason) => {
                            board.dropped(reason);
                            given_up.extend(self.outbound.give_up(id).and_then(|entry| entry.row()));
                        }
                    }
                }
            }
        }
    }
}

/// The fixed part of a PUBLISH.
struct PublishHow {
    qos: Qos,
    retain: bool,
    id: Option<u16>,
    dup: bool,
}

/// Appends a PUBLISH, unless it is larger than the client takes (MQTT-3.1.2-24).
fn put_publish(
    online: &mut Online,
    version: Version,
    topic: &TopicName,
    message: &Message,
    ids: &[u32],
    now: Moment,
    how: PublishHow,
) -> Result<(), &'static str> {
    let ids: smallvec::SmallVec<[SubscriptionId; 1]> = ids.iter().filter_map(|id| SubscriptionId::new(*id)).collect();
    let alias = online.aliases.of(topic);
    let parts = PublishParts {
        topic: if alias.is_some_and(|(_, known)| known) { "" } else { topic.as_str() },
        payload: &message.payload,
        qos: how.qos,
        dup: how.dup,
        retain: how.retain,
        id: how.id.and_then(PacketId::new),
        expiry_s: message.expiry_left_s(now),
        topic_alias: alias.map(|(alias, _)| alias),
        subscription_ids: &ids,
        properties: &message.properties,
    };
    let before = online.outbox.len();
    if encode_publish(&parts, version, &mut online.outbox).is_err() {
        online.outbox.truncate(before);
        return Err("not_encodable");
    }
    if online.outbox.len() - before > online.packet_bytes_max {
        online.outbox.truncate(before);
        return Err("too_large");
    }
    online.packets += 1;
    if let Some((alias, false)) = alias {
        online.aliases.note(topic, alias);
    }
    Ok(())
}

/// Appends an acknowledgement.
pub(super) fn put_ack(online: &mut Online, kind: AckKind, id: u16, code: ReasonCode, version: Version) {
    if let Some(id) = PacketId::new(id) {
        online.packets += 1;
        encode_ack(kind, id, code, version, &mut online.outbox);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn client() -> Client {
        let (will, user) = (None, None);
        let terms = Terms { version: Version::V5, kept: false, expiry_s: 0, user, will, will_delay_s: 0 };
        Client::new(SessionId(1), "c".into(), terms, Window { messages: 10, bytes: 1_000 })
    }

    #[test]
    fn r36_a_slow_subscriber_holds_less_while_memory_is_short_and_each_drop_has_its_reason() {
        let client = client();
        let message = crate::message::tests_support::message("a", &[0; 10_000]);
        client.lock().online = Some(Online {
            kick: Arc::default(),
            packet_bytes_max: usize::MAX,
            aliases: Aliases::new(0),
            alias_bytes: 0,
            packets: 0,
            taken: 0,
            outbox: BytesMut::new(),
        });
        let fill = |room| {
            let (topic, message) = (&message.topic, &message);
            let parts = AtMostOnce { topic, message, retain: false, ids: &[], is_one_of_many: false, room };
            let mut push = || client.lock().push_at_most_once(parts, &mut Encoded::default(), Moment::default());
            let reason = std::iter::repeat_with(&mut push).find_map(Result::err);
            (reason, client.outbox_bytes() / 10_000)
        };
        assert_eq!(fill(Allowance::SHORT), (Some("max_memory"), 7));
        assert_eq!(fill(Allowance::USUAL), (Some("slow_subscriber"), 105));
        assert_eq!(fill(Allowance::SHORT), (Some("slow_subscriber"), 105));
        let delivery = || Delivery {
            topic: message.topic.clone(),
            message: Arc::new(message.clone()),
            qos: Qos::AtLeastOnce,
            retain: false,
            ids: smallvec::SmallVec::new(),
            share: None,
        };
        let queue =
            |room| std::iter::repeat_with(|| client.lock().push_unstored(delivery(), None, room)).find_map(Result::err);
        assert_eq!(queue(Allowance::SHORT), Some("max_memory"));
        assert!(client.lock().outbound.queued_bytes() < 300 << 10);
        assert_eq!(queue(Allowance::USUAL), Some("slow_subscriber"));
    }

    #[tokio::test]
    async fn a_push_does_not_end_a_connection_and_a_kick_does() {
        let (client, kick) = (client(), Kick::default());
        client.bell.ring();
        assert_eq!(kick.kicked(&client).now_or_never(), None);
        let (kicked, ()) = tokio::join!(kick.kicked(&client), async { kick.with(ReasonCode::NotAuthorized, &client) });
        assert_eq!((kicked, kick.reason()), ((), ReasonCode::NotAuthorized));
        assert_eq!(kick.kicked(&client).now_or_never(), Some(()), "also for one who asks later");
    }

    #[tokio::test]
    async fn all_who_wait_for_a_connections_end_are_told_and_so_is_who_comes_later() {
        let kick = Kick::default();
        assert_eq!(kick.over().now_or_never(), None);
        tokio::join!(kick.over(), kick.over(), async { kick.note_over() });
        assert_eq!(kick.over().now_or_never(), Some(()));
    }
}
