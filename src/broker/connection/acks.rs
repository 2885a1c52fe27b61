//! Acknowledgements: held until what they promise is true, and what the client's own ones mean.

use super::{Connection, End, Outcome, packet_id};
use crate::broker::session::{Pubrec, Row};
use crate::broker::store::Op;
use crate::hub::Receipt;
use crate::wire::{Ack, AckKind, Packet, ReasonCode, Suback, Unsuback, encode_ack};

/// What goes out when its wait is over.
#[derive(Debug)]
pub(super) enum Reply {
    Puback(u16),
    Pubrec(u16),
    Pubcomp(u16, ReasonCode),
    /// SUBACK or UNSUBACK.
    Packet(Box<Packet>),
}

impl Reply {
    /// What it holds in memory, about.
    fn bytes(&self) -> u32 {
        let Self::Packet(packet) = self else { return 0 };
        let codes = if let Packet::Suback(Suback { codes, .. }) | Packet::Unsuback(Unsuback { codes, .. }) = &**packet {
            codes.len()
        } else {
            0
        };
        REPLY_BYTES.saturating_add(u32::try_from(codes).unwrap_or(u32::MAX))
    }
}

/// What a SUBACK or UNSUBACK holds besides its codes.
const REPLY_BYTES: u32 = 256;

/// What a reply waits for.
#[derive(Debug)]
pub(super) enum Wait {
    /// The hub has not answered yet.
    Offer,
    /// To be durable everywhere.
    Receipt(Receipt),
    /// Nothing: it is durable everywhere.
    Durable,
    /// Nothing: it will never be.
    Refused,
    /// Nothing: it goes with this code.
    Code(ReasonCode),
    /// Nothing: it goes with this code, and these words.
    Told(ReasonCode, Box<str>),
    /// Nothing: the client is over its rate.
    OverRate,
    /// The store's commit; `None`: nothing was stored.
    Store(Option<u64>),
    /// It never goes: the connection is closed in its place (R5).
    Close,
}

/// What has become of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Durable,
    Code(ReasonCode),
    Told(ReasonCode, Box<str>),
    OverRate,
    Refused,
    Close,
}

impl Connection {
    /// Sends what is due, in order.
    pub(super) fn release_acks(&mut self) -> Outcome {
        while let Some((reply, due)) = self.publishes.poll(decide_publish) {
            self.reply_to_publish(&reply, &due)?;
        }
        if self.others.is_empty() {
            return Ok(());
        }
        let mark = self.broker.store_mark.clone();
        let decide = |wait: &Wait| match wait {
            Wait::Store(Some(position)) => mark.decided(*position).map(|decided| decided.is_ok()),
            Wait::Offer
            | Wait::Receipt(_)
            | Wait::Durable
            | Wait::Refused
            | Wait::Code(_)
            | Wait::Told(..)
            | Wait::OverRate
            | Wait::Close => Some(true),
            Wait::Store(None) => Some(true),
        };
        while let Some((reply, stored)) = self.others.poll(decide) {
            self.others_bytes = self.others_bytes.saturating_sub(reply.bytes());
            if !stored {
                return Err(End::Told(ReasonCode::ImplementationSpecificError, "the broker's store has failed".into()));
            }
            match reply {
                Reply::Packet(packet) => self.put(*packet),
                Reply::Pubcomp(id, code) => self.put_ack(AckKind::Pubcomp, id, code),
                Reply::Puback(_) | Reply::Pubrec(_) => {}
            }
        }
        Ok(())
    }

    /// Holds a reply other than to a PUBLISH.
    pub(super) fn hold(&mut self, reply: Reply, wait: Wait) {
        self.others_bytes = self.others_bytes.saturating_add(reply.bytes());
        self.others.push(reply, wait);
    }

    fn reply_to_publish(&mut self, reply: &Reply, due: &Due) -> Outcome {
        let code = match due {
            Due::Durable => ReasonCode::Success,
            Due::Code(code) | Due::Told(code, _) => *code,
            Due::OverRate => ReasonCode::QuotaExceeded,
            Due::Refused => {
                self.broker.board.refused("not_stored");
                ReasonCode::ImplementationSpecificError
            }
            Due::Close => return Err(End::Told(ReasonCode::ServerBusy, "a message could not be accepted".into())),
        };
        // MQTT 3.x has no word for a refusal but the end of the connection (R5). A QoS 2 exchange stays open then: it is
        // delivered here already, and goes on at the links when it comes again. In MQTT 5 a PUBREC that says no would end the exchange,
        // and what comes again would be delivered here twice (R18).
        let stays_open = *due == Due::Refused && matches!(reply, Reply::Pubrec(id) if self.has_delivered(*id));
        if code.is_error() && (stays_open || !self.version.is_v5()) {
            return Err(End::Told(code, "a message could not be accepted".into()));
        }
        match reply {
            Reply::Puback(id) if code.is_error() => self.put_refusal(Packet::Puback, *id, code, words_of(code, due)),
            Reply::Puback(id) => self.put_ack(AckKind::Puback, *id, code),
            Reply::Pubrec(id) => {
                if *due == Due::Durable {
                    self.broker.note_durable(&self.attached.client, *id);
                } else if code.is_error() {
                    self.end_inbound(*id);
                    self.put_refusal(Packet::Pubrec, *id, code, words_of(code, due));
                    return Ok(());
                }
                self.put_ack(AckKind::Pubrec, *id, code);
            }
            Reply::Pubcomp(..) | Reply::Packet(_) => {}
        }
        Ok(())
    }

    /// Whether the local half of a QoS 2 exchange is done.
    pub(super) fn has_delivered(&self, id: u16) -> bool {
        self.attached.client.lock().inbound.delivered(id).is_some()
    }

    /// Frees an inbound id; the store position of that, if the store had it.
    pub(super) fn end_inbound(&self, id: u16) -> Option<u64> {
        let client = &self.attached.client;
        let mut state = client.lock();
        let known = state.inbound.handle_end(id);
        state.receipts.retain(|(other, _)| *other != id);
        let stored = known && state.stored;
        drop(state);
        stored.then(|| self.broker.store.stage_one(Op::InboundGone(client.id, id)))
    }

    /// An acknowledgement that says no, and why (MQTT 5).
    fn put_refusal(&mut self, packet: fn(Ack) -> Packet, id: u16, code: ReasonCode, words: &str) {
        let Some(id) = packet_id(id) else { return };
        let mut ack = Ack::new(id, code);
        ack.properties.reason = self.wants_reasons.then(|| words.into());
        self.put(packet(ack));
    }

    fn put_ack(&mut self, kind: AckKind, id: u16, code: ReasonCode) {
        if let Some(id) = packet_id(id) {
            self.packets_out += 1;
            encode_ack(kind, id, code, self.version, &mut self.output);
        }
    }

    pub(super) fn handle_pubrel(&mut self, ack: &Ack) -> Outcome {
        let id = ack.id.get();
        let known = self.attached.client.lock().inbound.knows(id);
        // The id is out of the durable set before PUBCOMP. One that is not in it was completed before a reconnect as a
        // rule: in 3.x there is no other answer, and in 5 a resent PUBREL deserves success too.
        let position = if known { self.end_inbound(id) } else { None };
        self.hold(Reply::Pubcomp(id, ReasonCode::Success), Wait::Store(position));
        Ok(())
    }

    pub(super) fn handle_puback(&mut self, ack: &Ack) -> Outcome {
        let settled = self.attached.client.lock().outbound.handle_puback(ack.id.get());
        if let Some(entry) = settled {
            self.settle(entry.row());
        }
        Ok(())
    }

    pub(super) fn handle_pubrec(&mut self, ack: &Ack) -> Outcome {
        let id = ack.id.get();
        let meaning = self.attached.client.lock().outbound.handle_pubrec(id, ack.code.is_error());
        match meaning {
            Pubrec::Release(seq) => {
                // R17: the PUBREC is stored before PUBREL goes.
                let position = seq.map(|seq| self.broker.store.stage_one(Op::Received(seq)));
                self.attached.client.lock().outbound.release(id, position);
            }
            Pubrec::Ended(row) => self.settle(row),
            Pubrec::Unknown if ack.code.is_error() => {}
            Pubrec::Unknown => {
                let code =
                    if self.version.is_v5() { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success };
                self.put_ack(AckKind::Pubrel, id, code);
            }
        }
        Ok(())
    }

    pub(super) fn handle_pubcomp(&mut self, ack: &Ack) -> Outcome {
        let settled = self.attached.client.lock().outbound.handle_pubcomp(ack.id.get());
        if let Some(entry) = settled {
            self.settle(entry.row());
        }
        Ok(())
    }

    /// A message is delivered, or given up by the client. Nobody waits for that commit: at worst it is sent again.
    fn settle(&self, row: Option<Row>) {
        let Some(row) = row else { return };
        self.attached.client.lock().owed.settle(row);
        self.broker.store.stage_one(Op::Settle(row.seq));
    }
}

fn words_of(code: ReasonCode, due: &Due) -> &str {
    if let Due::Told(_, words) = due {
        words
    } else if matches!(due, Due::OverRate) {
        "the client is over its rate"
    } else if matches!(code, ReasonCode::NotAuthorized) {
        "this client may not publish to this topic"
    } else {
        "the message could not be stored where it must be; send it again later"
    }
}

fn decide_publish(wait: &Wait) -> Option<Due> {
    match wait {
        Wait::Offer => None,
        Wait::Receipt(receipt) => receipt.decided().map(|decided| match decided {
            Ok(()) => Due::Durable,
            Err(_rejected) => Due::Refused,
        }),
        Wait::Code(code) => Some(Due::Code(*code)),
        Wait::Told(code, words) => Some(Due::Told(*code, words.clone())),
        Wait::OverRate => Some(Due::OverRate),
        Wait::Durable | Wait::Store(_) => Some(Due::Durable),
        Wait::Refused => Some(Due::Refused),
        Wait::Close => Some(Due::Close),
    }
}
