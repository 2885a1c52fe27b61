//! Publishing at QoS 2 in a session that the remote keeps, so that neither a reconnect nor a restart doubles what the remote holds (R25).
//!
//! The crates keep nothing over a restart, and tell nobody a packet id before it is on its way. So here the packets are `wire`'s, and what
//! must be on disk first waits for it: a PUBLISH for its packet id, a PUBREL for its PUBREC. All that came together is saved together.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::Version;
use super::client::{Attempt, Dial, Granted, OFFLINE, ONLINE, Publish, Settings};
use super::exchanges::{Holder, Known, Named, Owner};
use super::kept::Kept;
use super::packets::{Packets, cannot_keep, disconnected, good_bye_until, saved, unexpected};
use super::written::blocking;
use crate::buffer::Place;
use crate::links::line::Line;
use crate::links::{Answer, LinkError, Outgoing, Sent, witness};
use crate::message::{Properties, Qos, headers};
use crate::wire::{AckKind, Connack, Packet, PacketId, PublishParts, ReasonCode, encode_ack, encode_publish};

/// Publishes that may be open: as many packet ids are on disk. Few records are large, and a line with a long way is filled by it.
pub(super) const WINDOW: usize = 512;

/// The same towards 3.1.1, unless configured: its remotes cannot say how many they take. Mosquitto's `max_inflight_messages` is 20 by default, and
/// beyond it 2.0.11 answers PUBREC, forgets the message and hangs up.
pub(super) const WINDOW_V4: usize = 20;

/// Topics that are sent as a number, where the remote takes so many.
pub(super) const ALIASES_MAX: u16 = 256;

/// A longer topic is sent as it is: its number would keep it in memory.
const ALIASED_BYTES_MAX: usize = 1_024;

/// Makes such connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByExchanges<'a>(pub(super) &'a Kept);

/// A connection whose exchanges outlive it.
pub(super) struct Exact {
    kept: Kept,
    packets: Packets,
    pub(super) granted: Granted,
    retains: bool,
    /// Waits for the save that is under way.
    covered: BytesMut,
    saving: Option<JoinHandle<io::Result<()>>>,
    /// Waits for the next one.
    staged: BytesMut,
    ready: VecDeque<Answer>,
    aliases: Aliases,
    line: Line,
    state_topic: Option<String>,
}

impl std::fmt::Debug for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exact").field("kept", &self.kept).field("granted", &self.granted).finish_non_exhaustive()
    }
}

impl Dial for ByExchanges<'_> {
    type Live = Exact;

    async fn attempt(&self, settings: &Settings, attempt: Attempt) -> Result<Exact, LinkError> {
        let Self(kept) = *self;
        kept.read().await.map_err(|error| cannot_keep(&error))?;
        let address = attempt.way.address.to_string();
        let owner = Owner::new(kept.buffer(), &settings.client_id, &address);
        let goes_on = kept.exchanges().is_of(owner);
        let is_v5 = settings.config.version == Version::V5;
        if !goes_on && !is_v5 {
            // Its clean sessions end with the connection: this ends what the remote may have kept, the next one begins it.
            let (forgotten, _) = Packets::log_in(settings, &attempt, true).await?;
            forgotten.end(good_bye_until()).await?;
        }
        let (packets, connack) = Packets::log_in(settings, &attempt, !goes_on && is_v5).await?;
        let aliases_max = connack.properties.topic_alias_maximum.unwrap_or(0).min(ALIASES_MAX);
        let mut exact = Exact {
            kept: kept.clone(),
            packets,
            granted: granted(&connack),
            retains: connack.properties.retain_available.unwrap_or(true),
            covered: BytesMut::new(),
            saving: None,
            staged: BytesMut::new(),
            ready: VecDeque::new(),
            aliases: Aliases { most: aliases_max, ..Aliases::default() },
            line: attempt.line,
            state_topic: settings.state_topic.clone(),
        };
        exact.begin(owner, goes_on && connack.session_present);
        Ok(exact)
    }
}

impl Exact {
    /// `goes_on`: in the session that has the exchanges.
    fn begin(&mut self, owner: Owner, goes_on: bool) {
        let orphans = {
            let mut exchanges = self.kept.exchanges();
            let open = if goes_on { 0 } else { exchanges.begin_anew(owner) };
            if open > 0 {
                tracing::warn!(
                    open,
                    "the remote has no session of ours, or it is another remote: QoS 2 exchanges that were open begin anew"
                );
            }
            exchanges.resume(&self.kept.floors())
        };
        // What the last connection did not come to save is no more than in memory, and from now on it is acted upon.
        self.saving = Some(self.kept.save());
        for id in orphans {
            encode_ack(AckKind::Pubrel, id, ReasonCode::Success, self.packets.version, &mut self.covered);
        }
        self.announce(ONLINE);
    }

    /// See [`crate::links::SinkConnection::send`].
    pub(super) fn send(&mut self, record: Outgoing, publish: &Publish) -> Sent {
        if publish.retain && !self.retains {
            return Sent::Refused("the remote keeps no retained messages".to_owned());
        }
        let place = record.place;
        if publish.qos != Qos::ExactlyOnce {
            let id = self.kept.exchanges().lend(Holder::Plain(place));
            return match id {
                Some(id) => self.put(publish, id, false, Saved::Needless),
                None => Sent::Full(Box::new(record)),
            };
        }
        let witness = witness(&record.envelope.message.id);
        let named = Named { witness, expired_before: record.expired_before };
        let (known, id) = {
            let mut exchanges = self.kept.exchanges();
            let known = exchanges.look(place, named);
            (known, if known == Known::New { exchanges.publish(place, named) } else { None })
        };
        match known {
            Known::New => match id {
                Some(id) => self.put(publish, id, false, Saved::First),
                None => Sent::Full(Box::new(record)),
            },
            Known::Published(id) => self.put(publish, id, true, Saved::Needless),
            Known::Released(id) => {
                let version = self.packets.version;
                encode_ack(AckKind::Pubrel, id, ReasonCode::Success, version, self.out(Saved::Needless));
                Sent::Queued
            }
            Known::Completed => {
                self.ready.push_back(Answer::Confirmed(place));
                Sent::Queued
            }
        }
    }

    fn put(&mut self, publish: &Publish, id: PacketId, dup: bool, saved: Saved) -> Sent {
        let (topic, topic_alias) = self.aliases.of(&publish.topic);
        let properties = properties(publish);
        let parts = PublishParts { id: Some(id), dup, topic_alias, topic, ..parts(publish, &properties) };
        let version = self.packets.version;
        match encode_publish(&parts, version, self.out(saved)) {
            Ok(()) => Sent::Queued,
            Err(error) => {
                self.kept.exchanges().refused(id);
                self.aliases.forget(&publish.topic);
                Sent::Refused(error.to_string())
            }
        }
    }

    /// Where the next packet goes to. Nothing overtakes what waits for the disk.
    fn out(&mut self, saved: Saved) -> &mut BytesMut {
        let waits = self.saving.is_some() || !self.staged.is_empty();
        if saved == Saved::First || waits { &mut self.staged } else { &mut self.packets.output }
    }

    /// See [`crate::links::SinkConnection::answer`]: the next one, if it has come.
    pub(super) fn answered(&mut self) -> Option<Answer> {
        self.ready.pop_front()
    }

    /// Encoded size of a PUBLISH.
    pub(super) fn size(&self, publish: &Publish) -> u64 {
        size(publish, self.packets.version)
    }

    /// Waits for one thing to happen, and does what it asks for. Cancel safe.
    pub(super) async fn step(&mut self) -> Result<(), LinkError> {
        self.save_if_due();
        let Self { packets, saving, line, .. } = self;
        tokio::select! {
            saved = saved(saving) => {
                self.saving = None;
                saved.map_err(|error| cannot_keep(&error))?;
                self.packets.output.unsplit(std::mem::take(&mut self.covered));
            }
            has_come = packets.moved(true) => if has_come? {
                self.take_packets()?;
            },
            () = line.moved() => self.ready.push_back(Answer::Alive),
        }
        Ok(())
    }

    fn save_if_due(&mut self) {
        if self.saving.is_none() && !self.staged.is_empty() {
            self.covered = std::mem::take(&mut self.staged);
            self.saving = Some(self.kept.save());
        }
    }

    fn take_packets(&mut self) -> Result<(), LinkError> {
        while let Some(packet) = self.packets.next()? {
            match packet {
                Packet::Puback(ack) => self.finished(ack.id, ack.code, ack.properties.reason.as_deref()),
                Packet::Pubrec(ack) if ack.code.is_error() => {
                    self.finished(ack.id, ack.code, ack.properties.reason.as_deref());
                }
                Packet::Pubrec(ack) => self.received(ack.id),
                // What it does not know (0x92) it has forgotten after it had it.
                Packet::Pubcomp(ack) => {
                    let confirmed = self.kept.exchanges().completed(ack.id);
                    self.ready.extend(confirmed.map(Answer::Confirmed));
                }
                Packet::Disconnect(disconnect) => return Err(disconnected(&disconnect)),
                // Of a session in which the same client id once subscribed. Unacknowledged they are soon no more.
                Packet::Publish(_) | Packet::Pingresp => {}
                Packet::Connect(_)
                | Packet::Connack(_)
                | Packet::Pubrel(_)
                | Packet::Subscribe(_)
                | Packet::Suback(_)
                | Packet::Unsubscribe(_)
                | Packet::Unsuback(_)
                | Packet::Pingreq
                | Packet::Auth(_) => return Err(unexpected(&packet)),
            }
        }
        Ok(())
    }

    /// PUBREC: the PUBREL goes when it is on disk.
    fn received(&mut self, id: PacketId) {
        let holder = self.kept.exchanges().holder(id);
        let (saved, code) = match holder {
            Some(Holder::Exchange(place)) => {
                let first = self.kept.exchanges().received(place);
                (if first { Saved::First } else { Saved::Needless }, ReasonCode::Success)
            }
            Some(Holder::Orphan) => (Saved::Needless, ReasonCode::Success),
            Some(Holder::Plain(_) | Holder::Announcement) | None => {
                (Saved::Needless, ReasonCode::PacketIdentifierNotFound)
            }
        };
        let version = self.packets.version;
        encode_ack(AckKind::Pubrel, id, code, version, self.out(saved));
    }

    /// PUBACK, or a PUBREC that refuses.
    fn finished(&mut self, id: PacketId, code: ReasonCode, reason: Option<&str>) {
        let place = self.kept.exchanges().refused(id);
        self.ready.extend(place.map(|place| judge(place, code, reason)));
    }

    fn announce(&mut self, state: &'static str) {
        let Some(topic) = self.state_topic.clone() else { return };
        let Some(id) = self.kept.exchanges().lend(Holder::Announcement) else { return };
        let publish = Publish {
            topic,
            payload: Bytes::from_static(state.as_bytes()),
            qos: Qos::AtLeastOnce,
            retain: true,
            expiry_s: None,
            properties: Properties::default(),
            stamps: Vec::new(),
        };
        if let Sent::Refused(error) = self.put(&publish, id, false, Saved::Needless) {
            tracing::warn!(topic = publish.topic, state, error, "the link's state could not be announced");
        }
    }

    /// Lets what is on its way go, and says good-bye. The session stays.
    pub(super) async fn close(mut self) {
        self.announce(OFFLINE);
        let until = good_bye_until();
        while self.has_something_open() && matches!(tokio::time::timeout_at(until, self.step()).await, Ok(Ok(()))) {}
        if let Some(saving) = self.saving.take() {
            drop(blocking(saving).await);
        }
        drop(self.packets.end(until).await);
    }

    fn has_something_open(&self) -> bool {
        self.saving.is_some()
            || !self.staged.is_empty()
            || !self.packets.is_flushed()
            || self.kept.exchanges().has_announcement()
    }
}

/// What has to be on disk before a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    /// Something that is not yet.
    First,
    /// Nothing that is not already.
    Needless,
}

fn granted(connack: &Connack) -> Granted {
    Granted {
        receive_max: connack.properties.receive_maximum.map(NonZeroU16::get),
        packet_max: connack.properties.maximum_packet_size.map(NonZeroU32::get),
        qos_max: connack.properties.maximum_qos.map(Qos::bits),
    }
}

/// The message's own without stamps of earlier hops, and our stamps behind them.
fn properties(publish: &Publish) -> Properties {
    let own = headers::unstamped(&publish.properties).map(|(name, value)| (name.into(), value.into()));
    let stamps = publish.stamps.iter().map(|(name, value)| ((*name).into(), value.as_str().into()));
    Properties { user: own.chain(stamps).collect(), ..publish.properties.clone() }
}

/// Encoded size of a PUBLISH.
pub(super) fn size(publish: &Publish, version: crate::wire::Version) -> u64 {
    let properties = properties(publish);
    let bytes = parts(publish, &properties).encoded_len(version);
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(u64::MAX)
}

fn parts<'a>(publish: &'a Publish, properties: &'a Properties) -> PublishParts<'a> {
    PublishParts {
        topic: &publish.topic,
        payload: &publish.payload,
        qos: publish.qos,
        dup: false,
        retain: publish.retain,
        id: None,
        expiry_s: publish.expiry_s,
        topic_alias: None,
        subscription_ids: &[],
        properties,
    }
}

/// Numbers for topics (MQTT 5): the first ones that come have them until others take them over in turn.
#[derive(Debug, Default)]
struct Aliases {
    most: u16,
    last: u16,
    numbers: HashMap<Box<str>, NonZeroU16>,
    topics: HashMap<NonZeroU16, Box<str>>,
}

impl Aliases {
    /// The topic to send, empty where its number alone says it, and the number.
    fn of<'a>(&mut self, topic: &'a str) -> (&'a str, Option<NonZeroU16>) {
        if topic.len() > ALIASED_BYTES_MAX {
            return (topic, None);
        }
        if let Some(number) = self.numbers.get(topic) {
            return ("", Some(*number));
        }
        self.last = if self.last >= self.most { 1 } else { self.last + 1 };
        let Some(number) = NonZeroU16::new(self.last).filter(|_| self.most > 0) else { return (topic, None) };
        if let Some(before) = self.topics.insert(number, topic.into()) {
            self.numbers.remove(&before);
        }
        self.numbers.insert(topic.into(), number);
        (topic, Some(number))
    }

    /// It was not sent after all.
    fn forget(&mut self, topic: &str) {
        self.numbers.remove(topic).map(|number| self.topics.remove(&number));
    }
}

/// What the remote's answer to a publish means: as `v5::judge` has it.
fn judge(place: Place, code: ReasonCode, reason: Option<&str>) -> Answer {
    let why = reason.map(|why| format!(": {why}")).unwrap_or_default();
    if !code.is_error() {
        return Answer::Confirmed(place);
    }
    use ReasonCode as Code;
    if matches!(code, Code::NotAuthorized | Code::TopicNameInvalid | Code::PayloadFormatInvalid) {
        return Answer::Refused(place, format!("{code:?}{why}"));
    }
    Answer::Retry(place, format!("the remote answers {code:?}{why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_keeps_its_number_until_others_need_it() {
        let mut aliases = Aliases { most: 2, ..Aliases::default() };
        let number = NonZeroU16::new;
        assert_eq!(aliases.of("a"), ("a", number(1)));
        assert_eq!(aliases.of("b"), ("b", number(2)));
        assert_eq!((aliases.of("a"), aliases.of("b")), (("", number(1)), ("", number(2))));
        assert_eq!(aliases.of("c"), ("c", number(1)));
        assert_eq!((aliases.of("a"), aliases.of("c")), (("a", number(2)), ("", number(1))));
        assert_eq!(Aliases::default().of("a"), ("a", None));
        let long = "x".repeat(ALIASED_BYTES_MAX + 1);
        assert_eq!((aliases.of(&long), aliases.of("c")), ((&*long, None), ("", number(1))), "it takes no number over");
        assert!(!aliases.numbers.contains_key(&*long));
    }
}
