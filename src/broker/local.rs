//! The broker as the hub's outlet: subscribers, kept sessions and the retained store (R1, R17, R18).
//!
//! A delivery that has to be stored for anyone (a kept session, the retained store, the inbound id of a kept publisher)
//! is staged as one unit, so that it is stored wholly or not at all. All others touch no lock but the receivers'.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Broker;
use super::client::{Client, Delivery, PushTerms, State};
use super::store::{Op, Unit, encode_body};
use super::topics::Match;
use crate::clock::Moment;
use crate::hub::{Local, LocalDelivery, Stored};
use crate::message::Qos;
use crate::topic::TopicName;

impl Local for Broker {
    fn deliver(&self, batch: &[LocalDelivery]) -> Vec<Stored> {
        batch.iter().map(|delivery| self.deliver_one(delivery)).collect()
    }
}

/// A delivery under way.
struct Job<'a> {
    delivery: &'a LocalDelivery,
    /// The publisher, for its inbound QoS 2 exchange.
    publisher: Option<(Arc<Client>, u16)>,
    /// The publisher's exchange is stored.
    publisher_kept: bool,
    matches: Vec<Match>,
    body: Option<Bytes>,
    now: Moment,
}

impl Broker {
    fn deliver_one(&self, delivery: &LocalDelivery) -> Stored {
        let publisher = self.publisher(delivery);
        let mut publisher_kept = false;
        if let Some((client, id)) = &publisher {
            let state = client.lock();
            if let Some(done) = state.inbound.delivered(*id) {
                return self.stored(done);
            }
            publisher_kept = state.terms.kept;
        }
        let matches = match self.is_denied(&delivery.topic) {
            true => Vec::new(),
            false => self.topics.matches(&delivery.topic, delivery.client_id.as_deref()),
        };
        let is_stored = publisher_kept
            || delivery.message.retain
            || (delivery.message.qos != Qos::AtMostOnce
                && matches.iter().any(|one| one.qos != Qos::AtMostOnce && one.client.lock().terms.kept));
        let mut job = Job { delivery, publisher, publisher_kept, matches, body: None, now: self.clock.moment() };
        if !is_stored {
            self.hand_out(&mut job, None);
            return Stored::Nothing;
        }
        let (has_room, position) = self.store.stage(|unit| {
            let has_room = unit.has_room();
            if has_room {
                self.hand_out(&mut job, Some(unit));
            }
            has_room
        });
        if !has_room {
            // Above QoS 0 its publisher is told, and brings it again.
            if delivery.message.qos == Qos::AtMostOnce {
                self.board.dropped("store_full");
            }
            return Stored::NoRoom;
        }
        self.stored(position)
    }

    fn stored(&self, position: Option<u64>) -> Stored {
        position.map_or(Stored::Nothing, |position| Stored::At(self.store_mark.clone(), position))
    }

    /// The client whose inbound exchange this delivery is.
    fn publisher(&self, delivery: &LocalDelivery) -> Option<(Arc<Client>, u16)> {
        let (name, id) = (delivery.client_id.as_ref()?, delivery.packet_id?);
        self.clients.lock().get(name).map(|client| (Arc::clone(client), id))
    }

    fn hand_out(&self, job: &mut Job<'_>, mut unit: Option<&mut Unit<'_>>) {
        if job.delivery.message.retain {
            self.keep_retained(job, unit.as_deref_mut());
        }
        let inbound = unit.as_ref().filter(|_| job.publisher_kept).map(|unit| unit.position());
        for one in std::mem::take(&mut job.matches) {
            self.hand_to(job, one, unit.as_deref_mut(), inbound);
        }
        let Some((client, id)) = job.publisher.take() else { return };
        if let Some(unit) = unit.filter(|_| job.publisher_kept) {
            unit.push(Op::Inbound(client.id, id, body_of(job), job.delivery.tails.encode()));
        }
        client.lock().inbound.handle_delivered(id, Arc::clone(&job.delivery.message), inbound);
    }

    fn hand_to(&self, job: &mut Job<'_>, one: Match, unit: Option<&mut Unit<'_>>, inbound: Option<u64>) {
        let message = &job.delivery.message;
        let delivery = Delivery {
            topic: job.delivery.topic.clone(),
            message: Arc::clone(message),
            qos: one.qos.min(message.qos),
            retain: message.retain && one.retain_as_published,
            ids: one.ids,
            share: one.share,
        };
        self.push(&one.client, delivery, unit, inbound, job.now, || body_of(job));
    }

    /// Pushes one message to one client. `inbound`: the position that a QoS 2 delivery to a clean session waits for.
    pub(super) fn push(
        &self,
        client: &Client,
        delivery: Delivery,
        unit: Option<&mut Unit<'_>>,
        inbound: Option<u64>,
        now: Moment,
        body: impl FnOnce() -> Bytes,
    ) {
        let mut state = client.lock();
        if !state.may_read(&delivery.topic) {
            return;
        }
        let pushed = match (delivery.qos, unit) {
            (Qos::AtMostOnce, _) => state.push_at_most_once(&delivery, now).inspect(|()| {
                if state.online.is_some() {
                    self.board.sent.fetch_add(1, Ordering::Relaxed);
                    let bytes = delivery.message.payload.len() as u64;
                    self.board.publish_bytes_out.fetch_add(bytes, Ordering::Relaxed);
                }
            }),
            (_, Some(unit)) if state.terms.kept => {
                let terms = self.push_terms(&state, now);
                state.push_stored(client.id, delivery, body(), unit, terms);
                Ok(())
            }
            // A session that became kept since the matches were made: it has not asked for this before.
            (qos, _) => state.push_unstored(delivery, inbound.filter(|_| qos == Qos::ExactlyOnce)),
        };
        if let Err(reason) = pushed {
            self.board.dropped(reason);
        }
        if !state.terms.kept {
            state.pump(None, self.store.durable(), now, &self.board);
        }
        let is_online = state.online.is_some();
        drop(state);
        if is_online {
            client.wake.notify_one();
        }
    }

    /// What a push into the store is bounded by.
    pub(super) fn push_terms(&self, state: &State, now: Moment) -> PushTerms<'_> {
        let limits = state.limits.as_deref();
        let rows_max =
            limits.and_then(|limits| limits.session_messages_max).unwrap_or(self.config.session_messages_max);
        let bytes_max = limits.and_then(|limits| limits.session_bytes_max).unwrap_or(self.config.session_bytes_max).0;
        PushTerms { rows_max, bytes_max, now, board: &self.board }
    }

    /// The same for one that is not part of a batch: in a unit of its own where it has to be stored.
    pub(super) fn push_alone(&self, client: &Client, delivery: Delivery) {
        let now = self.clock.moment();
        let message = Arc::clone(&delivery.message);
        let body = || encode_body(&message);
        if delivery.qos != Qos::AtMostOnce && client.lock().terms.kept {
            self.store.stage(|unit| self.push(client, delivery, Some(unit), None, now, body));
        } else {
            self.push(client, delivery, None, None, now, body);
        }
    }

    /// Whether no client may get what is on `topic`.
    pub(super) fn is_denied(&self, topic: &TopicName) -> bool {
        self.config.deny_subscribe.iter().any(|filter| filter.matches(topic))
    }

    /// An empty payload clears (MQTT-3.3.1-6).
    fn keep_retained(&self, job: &mut Job<'_>, unit: Option<&mut Unit<'_>>) {
        let (topic, message) = (&job.delivery.topic, &job.delivery.message);
        let kept = Some(Arc::clone(message)).filter(|message| !message.payload.is_empty());
        let op = match kept {
            Some(_) => Op::Retain(topic.as_str().into(), body_of(job)),
            None => Op::Unretain(topic.as_str().into()),
        };
        if self.topics.retain(topic, kept, job.now)
            && let Some(unit) = unit
        {
            unit.push(op);
        }
    }
}

/// The message's bytes for the store: made once, shared by all rows.
fn body_of(job: &mut Job<'_>) -> Bytes {
    job.body.get_or_insert_with(|| encode_body(&job.delivery.message)).clone()
}
