//! What clients publish: from packets to offers, and from the hub's answers to acknowledgements.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use super::acks::{Reply, Wait};
use super::throttle::Pace;
use super::{Connection, End, Outcome};
use crate::broker::convert;
use crate::broker::ended::What;
use crate::broker::session::Arrived;
use crate::hub::{Answer, Answers, OfferError, Publication, Receipt};
use crate::message::{Message, Qos};
use crate::topic::{LEVELS_MAX, TopicName, is_too_deep};
use crate::wire::{Publish, ReasonCode};

/// Topic aliases that a client may set: enough for what one machine publishes.
pub(super) const TOPIC_ALIASES: u16 = 16;

/// Something to be offered, in order.
#[derive(Debug)]
pub(super) enum Job {
    Publish(Box<Publication>, Slot),
    /// A QoS 2 exchange whose local half is done (R18).
    Resume(u16, Arc<Message>, Slot),
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
        let publication = convert::publication(publish, topic, client, user, packet_id);
        self.pending_bytes += publication.payload.len() + 64;
        self.pending.push_back(Job::Publish(Box::new(publication), slot));
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
        let most = usize::from(self.broker.config.receive_maximum);
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
                self.pending.push_back(Job::Resume(id, message, Slot::Pubrec(number, id)));
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
            let known = alias.and_then(|alias| self.aliases.get(&alias)).cloned();
            return known.ok_or_else(|| End::Told(ReasonCode::ProtocolError, "an alias that was not set".into()));
        }
        let topic = match &self.last_topic {
            Some(last) if last.as_str().as_bytes() == publish.topic.as_bytes() => last.clone(),
            _ if is_too_deep(publish.topic.as_str()) => {
                let words = format!("a topic has at most {LEVELS_MAX} levels");
                return Err(End::Told(ReasonCode::TopicNameInvalid, words));
            }
            _ => TopicName::new(publish.topic.as_str())
                .map_err(|error| End::Told(ReasonCode::TopicNameInvalid, error.to_string()))?,
        };
        self.last_topic = Some(topic.clone());
        if let Some(alias) = alias {
            self.aliases.insert(alias, topic.clone());
        }
        Ok(topic)
    }

    /// Offers what waits, if no offer is under way.
    pub(super) fn start_offers(&mut self) {
        while self.offer.is_none()
            && let Some(job) = self.pending.pop_front()
        {
            self.start_offer(job);
        }
    }

    /// Offers all publishes up to the next job that is none, as one batch.
    fn start_offer(&mut self, first: Job) {
        let answers = Arc::new(Answers::default());
        let to = Arc::clone(&answers);
        let (publication, slot) = match first {
            Job::Publish(publication, slot) => (publication, slot),
            Job::Resume(id, message, slot) => {
                let (broker, client) = (Arc::clone(&self.broker), Arc::clone(&self.attached.client));
                let work = Box::pin(async move { broker.resume_for(&client, id, &message, &to).await });
                return self.begin_offer(Offer { slots: vec![Some(slot)], answers, work });
            }
        };
        let (mut batch, mut slots) = (vec![*publication], vec![Some(slot)]);
        while let Some(Job::Publish(..)) = self.pending.front() {
            let Some(Job::Publish(publication, slot)) = self.pending.pop_front() else { break };
            batch.push(*publication);
            slots.push(Some(slot));
        }
        self.pending_bytes = 0;
        let hub = Arc::clone(&self.broker.hub);
        let work = Box::pin(async move { hub.offer_each(&convert::source(), batch, &to).await });
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
        let wait = if tells { Wait::Code(code) } else { Wait::Close };
        match slot {
            Slot::Nobody => {}
            Slot::Puback(number) => self.publishes.set(number, wait),
            Slot::Pubrec(number, id) => {
                // Nothing of it was delivered as a rule: then the id is free, and what comes again is new.
                if self.attached.client.lock().inbound.delivered(id).is_none() {
                    self.end_inbound(id);
                }
                self.publishes.set(number, wait);
            }
        }
    }

    /// The socket is gone: what was read from it is still offered. A take-over or the gateway's end cuts it short.
    pub(super) async fn finish_offers(&mut self) {
        let kick = Arc::clone(&self.attached.kick);
        loop {
            self.start_offers();
            let Some(offer) = &mut self.offer else { return };
            let offered = tokio::select! {
                offered = offer.done() => offered,
                () = kick.token.cancelled() => return,
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
        let waiting = self.pending.drain(..).map(|job| match job {
            Job::Publish(_, slot) | Job::Resume(_, _, slot) => slot,
        });
        // Publishers repeat what is above QoS 0.
        for _ in unanswered.into_iter().flatten().chain(waiting).filter(|slot| matches!(slot, Slot::Nobody)) {
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
