//! What clients publish: from packets to offers, and from the hub's answers to acknowledgements.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use super::acks::{Reply, Wait};
use super::throttle::Pace;
use super::{Connection, End, Outcome};
use crate::broker::aliases::THEIR_BYTES_MAX;
use crate::broker::convert;
use crate::broker::ended::What;
use crate::broker::remembered::TOPIC_BYTES_MAX;
use crate::broker::session::Arrived;
use crate::hub::{Answer, Answers, OfferError, Publication, Receipt};
use crate::message::{Message, Qos};
use crate::topic::{LEVELS_MAX, TopicName, is_too_deep};
use crate::wire::{Publish, ReasonCode};

/// Topic aliases that a client may set: enough for what one machine publishes.
pub(super) const TOPIC_ALIASES: u16 = 16;

/// Publications that wait to be offered, in number and bytes: a round's batch, and what `block` holds at QoS 0.
const PENDING_MAX: usize = 2_048;

/// See [`PENDING_MAX`].
const PENDING_BYTES_MAX: usize = 1 << 20;

/// What waits to be offered, in order.
#[derive(Debug, Default)]
pub(super) struct Pending {
    jobs: VecDeque<Job>,
    /// Publications, and about how many bytes they have.
    messages: usize,
    bytes: usize,
    /// How many the last batch had: the next one has about as many.
    usual: usize,
}

/// Something to be offered.
#[derive(Debug)]
enum Job {
    Batch(Batch),
    /// A QoS 2 exchange whose local half is done (R18).
    Resume(u16, Arc<Message>, Slot),
}

/// Publications that are offered together, and whose answers each of them brings.
#[derive(Debug, Default)]
struct Batch {
    publications: Vec<Publication>,
    slots: Vec<Option<Slot>>,
    bytes: usize,
}

impl Pending {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Whether there is room for what one more read brings.
    pub(super) const fn has_room(&self) -> bool {
        self.messages < PENDING_MAX && self.bytes < PENDING_BYTES_MAX
    }

    fn push(&mut self, publication: Publication, slot: Slot) {
        if !matches!(self.jobs.back(), Some(Job::Batch(_))) {
            let (publications, slots) = (Vec::with_capacity(self.usual), Vec::with_capacity(self.usual));
            self.jobs.push_back(Job::Batch(Batch { publications, slots, bytes: 0 }));
        }
        let Some(Job::Batch(batch)) = self.jobs.back_mut() else { return };
        let bytes = publication.payload.len() + publication.properties.kept_bytes() + 64;
        (self.messages, self.bytes, batch.bytes) = (self.messages + 1, self.bytes + bytes, batch.bytes + bytes);
        batch.publications.push(publication);
        batch.slots.push(Some(slot));
    }

    fn resume(&mut self, id: u16, message: Arc<Message>, slot: Slot) {
        self.jobs.push_back(Job::Resume(id, message, slot));
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        if let Job::Batch(batch) = &job {
            self.usual = batch.publications.len();
            self.messages -= batch.publications.len();
            self.bytes -= batch.bytes;
        }
        Some(job)
    }
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// QoS 0: nobody's.
    Nobody,
    /// QoS 1: the acknowledgement of this number.
    Puback(u64),
    /// QoS 2: the same, and the packet id.
    Pubrec(u64, u16),
}

/// An offer under way.
pub(super) struct Offer {
    /// Whose answers it brings; `None`: it has brought this one.
    slots: Vec<Option<Slot>>,
    answers: Arc<Answers>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Answers of an offer.
pub(super) struct Offered {
    answers: Vec<(usize, Answer)>,
    /// There are no more.
    is_over: bool,
}

impl Offer {
    /// Waits for the hub: for its end, or for answers to the first ones while a later one waits (R6). Cancel safe.
    pub(super) async fn done(&mut self) -> Offered {
        let is_over = tokio::select! {
            biased;
            () = self.work.as_mut() => true,
            () = self.answers.more() => false,
        };
        Offered { answers: self.answers.take(), is_over }
    }
}

impl Connection {
    pub(super) fn handle_publish(&mut self, publish: Publish) -> Outcome {
        let topic = self.topic_of(&publish)?;
        let id = publish.id.map_or(0, |id| id.get());
        if topic.is_own() || !self.may_publish(&topic) {
            self.forbid(&topic, publish.qos, id);
            return Ok(());
        }
        if self.note_message()? == Pace::TooMany && self.refuse_over_rate(publish.qos, id) {
            return Ok(());
        }
        let slot = match publish.qos {
            Qos::AtMostOnce => Slot::Nobody,
            Qos::AtLeastOnce => Slot::Puback(self.publishes.push(Reply::Puback(id), Wait::Offer)),
            Qos::ExactlyOnce => {
                let arrived = self.begin_exchange(id)?;
                match arrived {
                    Arrived::New => Slot::Pubrec(self.publishes.push(Reply::Pubrec(id), Wait::Offer), id),
                    Arrived::Finished => {
                        self.publishes.push(Reply::Pubrec(id), Wait::Code(ReasonCode::Success));
                        return Ok(());
                    }
                    Arrived::UnderWay => return Ok(()),
                    Arrived::Interrupted(message) => {
                        self.resume(id, message);
                        return Ok(());
                    }
                }
            }
        };
        self.broker.board.publish_bytes_in.fetch_add(publish.payload.len() as u64, Ordering::Relaxed);
        let packet_id = matches!(slot, Slot::Pubrec(..)).then_some(id);
        let (client, user) = (&self.attached.client.name, self.user.as_ref());
        let publication = convert::publication(publish, topic, client, user, packet_id, self.input_held);
        self.pending.push(publication, slot);
        Ok(())
    }

    /// The session is asked: rules may change while it is connected.
    fn may_publish(&self, topic: &TopicName) -> bool {
        !self.has_rights || self.attached.client.lock().may_publish(topic)
    }

    fn forbid(&mut self, topic: &TopicName, qos: Qos, id: u16) {
        self.broker.board.refused("not_allowed");
        let text = format!("it may not publish to {topic:?}");
        self.broker.log_ended(What::NotTaken, self.whom(), ReasonCode::NotAuthorized, &text);
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => drop(self.publishes.push(Reply::Puback(id), Wait::Code(ReasonCode::NotAuthorized))),
            Qos::ExactlyOnce => drop(self.publishes.push(Reply::Pubrec(id), Wait::Code(ReasonCode::NotAuthorized))),
        }
    }

    /// Whether it was refused: a QoS 2 exchange that is open goes on.
    fn refuse_over_rate(&mut self, qos: Qos, id: u16) -> bool {
        match qos {
            Qos::AtMostOnce => self.broker.board.dropped("over_rate"),
            Qos::AtLeastOnce => drop(self.publishes.push(Reply::Puback(id), Wait::OverRate)),
            Qos::ExactlyOnce if self.attached.client.lock().inbound.knows(id) => return false,
            Qos::ExactlyOnce => drop(self.publishes.push(Reply::Pubrec(id), Wait::OverRate)),
        }
        if qos != Qos::AtMostOnce {
            self.broker.board.refused("over_rate");
        }
        true
    }

    /// A QoS 2 PUBLISH. MQTT 3.x has no Receive Maximum: its packet ids are the bound.
    fn begin_exchange(&self, id: u16) -> Result<Arrived, End> {
        let mut state = self.attached.client.lock();
        let arrived = state.inbound.handle_publish(id);
        let most = usize::from(self.config.receive_maximum);
        if arrived == Arrived::New && self.version.is_v5() && state.inbound.len() > most {
            state.inbound.handle_end(id);
            let words = format!("{most} QoS 2 messages may be open at a time");
            return Err(End::Told(ReasonCode::ReceiveMaximumExceeded, words));
        }
        Ok(arrived)
    }

    /// An exchange that an earlier connection left open: its receipt, if there is one, or once more to the links.
    fn resume(&mut self, id: u16, message: Arc<Message>) {
        let left = self.attached.client.lock().take_receipt(id);
        match left {
            Some(receipt) => drop(self.publishes.push(Reply::Pubrec(id), Wait::Receipt(receipt))),
            None => {
                let number = self.publishes.push(Reply::Pubrec(id), Wait::Offer);
                self.pending.resume(id, message, Slot::Pubrec(number, id));
            }
        }
    }

    /// The topic, by name or by alias (MQTT 5.0 section 3.3.2.3.4).
    fn topic_of(&mut self, publish: &Publish) -> Result<TopicName, End> {
        let alias = publish.properties.topic_alias.map(|alias| alias.get());
        if alias.is_some_and(|alias| alias > TOPIC_ALIASES) {
            return Err(End::Told(ReasonCode::TopicAliasInvalid, format!("aliases go up to {TOPIC_ALIASES}")));
        }
        if publish.topic.is_empty() {
            let known = alias.zip(self.aliases.as_ref()).and_then(|(alias, aliases)| aliases.get(alias)).cloned();
            return known.ok_or_else(|| End::Told(ReasonCode::ProtocolError, "an alias that was not set".into()));
        }
        let topic = match &self.last_topic {
            Some(last) if last.as_str().as_bytes() == publish.topic.as_bytes() => {
                let topic = last.clone();
                self.note_alias(alias, &topic)?;
                return Ok(topic);
            }
            _ if is_too_deep(publish.topic.as_str()) => {
                let words = format!("a topic has at most {LEVELS_MAX} levels");
                return Err(End::Told(ReasonCode::TopicNameInvalid, words));
            }
            _ => TopicName::new(publish.topic.as_str())
                .map_err(|error| End::Told(ReasonCode::TopicNameInvalid, error.to_string()))?,
        };
        self.last_topic = (topic.as_str().len() <= TOPIC_BYTES_MAX).then(|| topic.clone());
        self.note_alias(alias, &topic)?;
        Ok(topic)
    }

    fn note_alias(&mut self, alias: Option<u16>, topic: &TopicName) -> Outcome {
        let Some(alias) = alias else { return Ok(()) };
        let aliases = self.aliases.get_or_insert_default();
        let before = aliases.bytes();
        if !aliases.set(alias, topic) {
            let words =
                format!("the names behind a client's topic aliases have at most {THEIR_BYTES_MAX} bytes together");
            return Err(End::Told(ReasonCode::QuotaExceeded, words));
        }
        let bytes = aliases.bytes();
        if bytes != before
            && let Some(online) = &mut self.attached.client.lock().online
        {
            online.alias_bytes = bytes;
        }
        Ok(())
    }

    /// Offers what waits, if no offer is under way.
    pub(super) fn start_offers(&mut self) {
        while self.offer.is_none()
            && let Some(job) = self.pending.pop()
        {
            self.start_offer(job);
        }
    }

    fn start_offer(&mut self, job: Job) {
        let answers = Arc::new(Answers::default());
        let to = Arc::clone(&answers);
        let (slots, work): (_, Pin<Box<dyn Future<Output = ()> + Send>>) = match job {
            Job::Batch(Batch { publications, slots, .. }) => {
                let hub = Arc::clone(&self.broker.hub);
                (slots, Box::pin(async move { hub.offer_each(&convert::source(), publications, &to).await }))
            }
            Job::Resume(id, message, slot) => {
                let (broker, client) = (Arc::clone(&self.broker), Arc::clone(&self.attached.client));
                (vec![Some(slot)], Box::pin(async move { broker.resume_for(&client, id, &message, &to).await }))
            }
        };
        self.begin_offer(Offer { slots, answers, work });
    }

    /// Nearly every offer has its answers at once; only one that a link holds up is waited for.
    fn begin_offer(&mut self, mut offer: Offer) {
        let offered = offer.done().now_or_never();
        self.offer = Some(offer);
        if let Some(offered) = offered {
            self.take_offered(offered);
        }
    }

    pub(super) fn take_offered(&mut self, offered: Offered) {
        let Some(mut offer) = self.offer.take() else { return };
        self.take_answers(&mut offer, offered.answers);
        self.offer = Some(offer).filter(|_| !offered.is_over);
    }

    fn take_answers(&mut self, offer: &mut Offer, answers: Vec<(usize, Answer)>) {
        for (at, answer) in answers {
            let Some(slot) = offer.slots.get_mut(at).and_then(Option::take) else { continue };
            match answer {
                Ok(receipt) => self.accepted(slot, receipt),
                Err(error) => self.refused(slot, &error),
            }
        }
    }

    fn accepted(&mut self, slot: Slot, receipt: Receipt) {
        self.broker.board.received.fetch_add(1, Ordering::Relaxed);
        if let Slot::Puback(number) | Slot::Pubrec(number, _) = slot {
            self.publishes.set(number, Wait::Receipt(receipt));
        }
    }

    /// R5: MQTT 5 is told, MQTT 3.x is closed without an acknowledgement.
    fn refused(&mut self, slot: Slot, error: &OfferError) {
        let (reason, code) = match error {
            OfferError::Full { .. } => ("full", ReasonCode::QuotaExceeded),
            OfferError::Failed { .. } => ("failed", ReasonCode::ImplementationSpecificError),
            OfferError::StoreFull => ("store_full", ReasonCode::QuotaExceeded),
            OfferError::RetainedFull => ("retained_full", ReasonCode::QuotaExceeded),
            OfferError::Stopping => ("stopping", ReasonCode::ServerShuttingDown),
        };
        self.broker.board.refused(reason);
        self.broker.log_ended(What::NotTaken, self.whom(), code, &error.to_string());
        let tells = self.version.is_v5() && *error != OfferError::Stopping;
        let wait = match (tells, error) {
            (false, _) => Wait::Close,
            // What has failed, and how, is its operator's to know.
            (true, OfferError::Failed { .. }) => Wait::Code(code),
            (true, _) => Wait::Told(code, error.to_string().into()),
        };
        match slot {
            Slot::Nobody => {}
            Slot::Puback(number) => self.publishes.set(number, wait),
            Slot::Pubrec(number, id) => {
                // Nothing of it was delivered as a rule: then the id is free, and what comes again is new. Otherwise the exchange stays
                // open, so that what comes again goes to the links alone (R18).
                let wait = if self.has_delivered(id) {
                    Wait::Close
                } else {
                    self.end_inbound(id);
                    wait
                };
                self.publishes.set(number, wait);
            }
        }
    }

    /// The socket is gone: what was read from it is still offered. A take-over or the gateway's end cuts it short.
    pub(super) async fn finish_offers(&mut self) {
        let (kick, client) = (Arc::clone(&self.attached.kick), Arc::clone(&self.attached.client));
        loop {
            self.start_offers();
            let Some(offer) = &mut self.offer else { return };
            let offered = tokio::select! {
                offered = offer.done() => offered,
                () = kick.kicked(&client) => return,
            };
            self.take_offered(offered);
        }
    }

    /// R19: receipts of QoS 2 exchanges pass to the session, for the connection that repeats them.
    pub(super) fn hand_receipts_over(&mut self) {
        let mut unanswered = Vec::new();
        if let Some(mut offer) = self.offer.take() {
            // What it did is done, though nobody has looked since.
            let answers = offer.answers.take();
            self.take_answers(&mut offer, answers);
            unanswered = offer.slots;
        }
        let waiting = std::mem::take(&mut self.pending).jobs.into_iter().flat_map(|job| match job {
            Job::Batch(batch) => batch.slots,
            Job::Resume(_, _, slot) => vec![Some(slot)],
        });
        // Publishers repeat what is above QoS 0.
        for _ in unanswered.into_iter().chain(waiting).flatten().filter(|slot| matches!(slot, Slot::Nobody)) {
            self.broker.board.dropped("connection_ended");
        }
        let mut durable = Vec::new();
        let mut state = self.attached.client.lock();
        for (reply, wait) in self.publishes.drain() {
            let Reply::Pubrec(id) = reply else { continue };
            if let Wait::Receipt(receipt) = wait {
                state.receipts.retain(|(other, _)| *other != id);
                state.receipts.push((id, receipt));
            } else if matches!(wait, Wait::Durable) {
                durable.push(id);
            }
        }
        drop(state);
        durable.into_iter().for_each(|id| self.broker.note_durable(&self.attached.client, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;
    use crate::message::tests_support::message;

    fn publication(payload: &'static [u8]) -> Publication {
        let (topic, properties) = (TopicName::new("a").unwrap(), Properties::default());
        let (payload, qos) = (payload.into(), Qos::ExactlyOnce);
        let (retain, expiry_s, time_ms, client_id, user, packet_id, id) = Default::default();
        Publication { topic, payload, qos, retain, expiry_s, time_ms, properties, client_id, user, packet_id, id }
    }

    #[test]
    fn a_batch_ends_where_an_exchange_goes_on_and_what_waits_behind_it_still_counts() {
        let mut pending = Pending::default();
        for id in [1, 2] {
            pending.push(publication(b"abc"), Slot::Pubrec(0, id));
        }
        pending.resume(3, Arc::new(message("a", b"")), Slot::Pubrec(0, 3));
        pending.push(publication(b""), Slot::Pubrec(0, 4));
        assert_eq!((pending.messages, pending.bytes), (3, 3 * 64 + 6));
        let mut order = Vec::new();
        while let Some(job) = pending.pop() {
            order.push(match job {
                Job::Batch(batch) => batch.slots.len(),
                Job::Resume(..) => 0,
            });
            assert_eq!(pending.messages, if order.len() < 3 { 1 } else { 0 });
        }
        assert_eq!(order, [2, 0, 1]);
        assert!(pending.is_empty() && pending.bytes == 0);
    }

    #[test]
    fn there_is_room_for_so_many_messages_and_bytes() {
        let mut pending = Pending::default();
        for _ in 0..PENDING_MAX {
            assert!(pending.has_room());
            pending.push(publication(b""), Slot::Nobody);
        }
        assert!(!pending.has_room());
        assert!(pending.pop().is_some() && pending.has_room());
        pending.push(Publication { payload: vec![0; PENDING_BYTES_MAX].into(), ..publication(b"") }, Slot::Nobody);
        assert!(!pending.has_room());
        // What properties take counts, and they take far more than they have text.
        let mut pending = Pending::default();
        let properties =
            Properties { user: vec![("a".into(), "b".into()); PENDING_BYTES_MAX / 82], ..Properties::default() };
        pending.push(Publication { properties, ..publication(b"") }, Slot::Nobody);
        assert!(!pending.has_room());
    }
}
