//! A client that keeps to the specification, one packet at a time: what it is owed and owes, and what it has to send again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::path::Path;

use bytes::Bytes;
use tokio::net::UnixStream;

use super::super::support::*;
use super::action::{Action, Again, LastWord, Name, Post, Sub, Terms};
use super::reference::{Arrived, Heard};
use crate::message::Qos;
use crate::wire::{
    Connect, ConnectProperties, Disconnect, DisconnectProperties, Packet, PacketId, Publish, ReasonCode, Subscribe,
    SubscribeOptions, Subscription, SubscriptionId, Unsubscribe, Version, Will, WillProperties,
};

/// An exchange of its own that has not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u16,
    pub(super) post: Post,
    /// Its PUBREC has come.
    pub(super) received: bool,
}

pub(super) struct Device {
    pub(super) name: Name,
    pub(super) version: Version,
    peer: Option<Peer>,
    pub(super) expiry_s: u64,
    last_id: u16,
    pub(super) open: Vec<Open>,
    /// What of its own was acknowledged.
    pub(super) acknowledged: Vec<String>,
    /// QoS 2 ids between PUBLISH and PUBREL.
    taken: BTreeSet<u16>,
    /// What each id was last used for.
    texts: BTreeMap<u16, String>,
    /// Ids of messages that it has had, and has not sent its last acknowledgement for.
    unended: BTreeMap<u16, Qos>,
    /// PUBACKs and PUBRECs that it owes.
    pub(super) publishes: VecDeque<Packet>,
    /// PUBCOMPs.
    pub(super) releases: VecDeque<Packet>,
    /// Answers that are to come, and what has come meanwhile.
    awaited: usize,
    held: Vec<Packet>,
}

impl Device {
    pub(super) fn new(name: Name, version: Version) -> Self {
        Self {
            name,
            version,
            peer: None,
            expiry_s: 0,
            last_id: 0,
            open: Vec::new(),
            acknowledged: Vec::new(),
            taken: BTreeSet::new(),
            texts: BTreeMap::new(),
            unended: BTreeMap::new(),
            publishes: VecDeque::new(),
            releases: VecDeque::new(),
            awaited: 0,
            held: Vec::new(),
        }
    }

    pub(super) fn is_online(&self) -> bool {
        self.peer.is_some()
    }

    pub(super) fn next_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn hang_up(&mut self) {
        self.peer = None;
        self.awaited = 0;
        self.held.clear();
    }

    /// The broker was killed. It knows no more of a QoS 1 message that it has given up meanwhile, and may use its id again.
    pub(super) fn outlive_broker(&mut self) {
        self.hang_up();
        self.unended.retain(|_, qos| *qos == Qos::ExactlyOnce);
    }

    /// Asks for its session, and waits for nothing.
    pub(super) async fn begin(&mut self, socket: &Path, terms: &Terms) {
        let stream = UnixStream::connect(socket).await.unwrap();
        self.peer = Some(Peer::begin_over(Box::new(stream), connect_of(self.name, terms)).await);
    }

    /// Whether its session is still there: CONNACK says so, but for MQTT 3.1, whose clients have to know (`is_there`).
    pub(super) async fn connect(&mut self, socket: &Path, terms: &Terms, is_there: bool) -> bool {
        let before = self.peer.take();
        let stream = UnixStream::connect(socket).await.unwrap();
        let (peer, connack) = Peer::over(Box::new(stream), connect_of(self.name, terms)).await;
        assert_eq!(connack.code, ReasonCode::Success);
        let is_there = if self.version == Version::V31 { is_there } else { connack.session_present };
        if let Some(mut before) = before {
            // Nothing but the word for it.
            if self.version.is_v5() {
                let Packet::Disconnect(told) = before.receive().await else {
                    panic!("it is not told of the take-over")
                };
                assert_eq!(told.code, ReasonCode::SessionTakenOver);
            }
            assert_eq!(before.next().await, None);
        }
        self.hang_up();
        (self.peer, self.expiry_s) = (Some(peer), terms.expiry_s);
        self.publishes.clear();
        self.releases.clear();
        if !is_there {
            self.open.clear();
            self.taken.clear();
            self.unended.clear();
        }
        is_there
    }

    /// What it sends again when its session is still there (MQTT-4.4.0-1).
    pub(super) fn again(&self) -> Vec<Again> {
        let again = |open: &Open| match open.received {
            true => Again::Release(open.id),
            false => Again::Publish(open.id, open.post.clone()),
        };
        self.open.iter().map(again).collect()
    }

    /// Sends what an action says, and waits for nothing.
    pub(super) async fn send(&mut self, action: &Action) {
        let packets = self.packets(action);
        if let Some(peer) = &mut self.peer {
            peer.send_all(packets).await;
        }
    }

    fn packets(&mut self, action: &Action) -> Vec<Packet> {
        match action {
            Action::Again(_, items) => items.iter().map(|item| self.again_of(item)).collect(),
            Action::Disconnect { with_will, expiry_s, .. } => {
                let code = if *with_will { ReasonCode::DisconnectWithWill } else { ReasonCode::Success };
                let session_expiry_s = expiry_s.map(|s| u32::try_from(s).unwrap());
                let properties = DisconnectProperties { session_expiry_s, ..DisconnectProperties::default() };
                vec![Packet::Disconnect(Disconnect { code, properties })]
            }
            Action::Subscribe(_, filter, sub) => {
                self.awaited += 1;
                vec![subscribe_of(self.next_id(), filter, *sub)]
            }
            Action::Unsubscribe(_, filter) => {
                self.awaited += 1;
                let (id, filters) = (PacketId::new(self.next_id()).unwrap(), vec![(*filter).into()]);
                vec![Packet::Unsubscribe(Unsubscribe { id, user: Vec::new(), filters })]
            }
            Action::Publish(_, id, post) => {
                if post.qos != Qos::AtMostOnce {
                    self.awaited += 1;
                    self.open.push(Open { id: *id, post: post.clone(), received: false });
                }
                vec![publish_of(*id, post, false)]
            }
            Action::Release(_, id) => {
                self.awaited += 1;
                vec![Packet::Pubrel(ack(*id))]
            }
            Action::Ack(_, count) => self.ended(|device| &mut device.publishes, *count),
            Action::Complete(_, count) => self.ended(|device| &mut device.releases, *count),
            Action::Connect(..) | Action::Drop(_) | Action::Pass(_) | Action::Cut(_) | Action::Crash(_) => Vec::new(),
        }
    }

    fn ended(&mut self, of: impl Fn(&mut Self) -> &mut VecDeque<Packet>, count: usize) -> Vec<Packet> {
        let owed = of(self);
        let packets: Vec<Packet> = owed.drain(..owed.len().min(count)).collect();
        for packet in &packets {
            if let Packet::Puback(last) | Packet::Pubcomp(last) = packet {
                self.unended.remove(&last.id.get());
            }
        }
        packets
    }

    fn again_of(&mut self, item: &Again) -> Packet {
        self.awaited += 1;
        match item {
            Again::Publish(id, post) => publish_of(*id, post, true),
            Again::Release(id) => Packet::Pubrel(ack(*id)),
        }
    }

    /// Waits for the answers to what it has sent.
    pub(super) async fn answered(&mut self) {
        while self.awaited > 0 {
            let packet = self.peer.as_mut().unwrap().receive().await;
            self.awaited -= usize::from(is_answer(&packet));
            self.held.push(packet);
        }
    }

    /// What has come, without waiting.
    pub(super) fn hear(&mut self, heard: &mut Heard) {
        let Some(peer) = &mut self.peer else { return };
        let (packets, is_over) = peer.waiting();
        assert!(!is_over, "the broker closed a connection of {}", self.name);
        let mut held = std::mem::take(&mut self.held);
        held.extend(packets);
        held.into_iter().for_each(|packet| self.take(packet, heard));
    }

    /// Nothing comes only because the client says something.
    pub(super) async fn expect_silence(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.expect_silence().await;
        }
    }

    fn take(&mut self, packet: Packet, heard: &mut Heard) {
        match packet {
            Packet::Publish(publish) => self.take_publish(&publish, heard),
            Packet::Pubrel(released) => {
                let id = released.id.get();
                self.taken.remove(&id);
                heard.released.push(self.texts.get(&id).cloned().unwrap_or_default());
                self.releases.push_back(Packet::Pubcomp(ack(id)));
            }
            Packet::Puback(answer) => {
                assert_eq!(answer.code, ReasonCode::Success);
                let at = self.open.iter().position(|open| open.id == answer.id.get());
                self.acknowledged.push(self.open.remove(at.expect("it is open")).post.text);
            }
            Packet::Pubrec(answer) => {
                assert_eq!(answer.code, ReasonCode::Success);
                let open = self.open.iter_mut().find(|open| open.id == answer.id.get()).expect("it is open");
                open.received = true;
                self.acknowledged.push(open.post.text.clone());
            }
            Packet::Pubcomp(answer) => self.open.retain(|open| open.id != answer.id.get()),
            Packet::Suback(suback) => assert!(suback.codes.iter().all(|code| !code.is_error()), "{suback:?}"),
            Packet::Unsuback(unsuback) => assert!(unsuback.codes.iter().all(|code| !code.is_error()), "{unsuback:?}"),
            other => panic!("{} got {other:?}", self.name),
        }
    }

    fn take_publish(&mut self, publish: &Publish, heard: &mut Heard) {
        let text = String::from_utf8(publish.payload.to_vec()).unwrap();
        let mut ids: Vec<u32> = publish.properties.subscription_ids.iter().map(|id| id.get()).collect();
        ids.sort_unstable();
        let Publish { qos, dup, retain, .. } = *publish;
        let (topic, left_s) = (publish.topic.to_string(), publish.properties.expiry_s);
        let arrived = Arrived { text: text.clone(), topic, qos, retain, dup, ids, left_s };
        let Some(id) = publish.id.map(|id| id.get()) else { return heard.at_most_once.push(arrived) };
        heard.above.push(arrived);
        if self.unended.insert(id, qos).is_some() {
            assert_eq!(self.texts.get(&id), Some(&text), "{}: id {id} for another message", self.name);
        }
        if qos == Qos::AtLeastOnce {
            self.publishes.push_back(Packet::Puback(ack(id)));
        } else {
            // It would be taken for a copy, and lost (MQTT-4.3.3-7).
            assert!(self.taken.insert(id) || dup, "{}: id {id} for another message before its PUBREL", self.name);
            self.publishes.push_back(Packet::Pubrec(ack(id)));
        }
        self.texts.insert(id, text);
    }
}

fn is_answer(packet: &Packet) -> bool {
    matches!(
        packet,
        Packet::Puback(_) | Packet::Pubrec(_) | Packet::Pubcomp(_) | Packet::Suback(_) | Packet::Unsuback(_)
    )
}

fn connect_of(name: Name, terms: &Terms) -> Connect {
    let properties = if terms.version.is_v5() {
        ConnectProperties {
            session_expiry_s: Some(u32::try_from(terms.expiry_s).unwrap()),
            receive_maximum: NonZeroU16::new(u16::try_from(terms.window).unwrap()),
            ..ConnectProperties::default()
        }
    } else {
        ConnectProperties::default()
    };
    let will = terms.will.as_ref().map(|LastWord { post, delay_s }| {
        let is_v5 = terms.version.is_v5();
        let delay_s = Some(u32::try_from(*delay_s).unwrap()).filter(|_| is_v5);
        let expiry_s = post.expiry_s.map(|s| u32::try_from(s).unwrap());
        Will {
            topic: post.topic.into(),
            payload: Bytes::copy_from_slice(post.text.as_bytes()),
            qos: post.qos,
            retain: post.retain,
            properties: WillProperties { delay_s, expiry_s, ..WillProperties::default() },
        }
    });
    // Silence must not count in a test that has no time.
    Connect { version: terms.version, clean_start: terms.clean, keep_alive_s: 0, will, properties, ..connect(name) }
}

fn subscribe_of(id: u16, filter: &str, sub: Sub) -> Packet {
    let Sub { qos, no_local, as_published, handling, id: subscription_id } = sub;
    let options = SubscribeOptions { qos, no_local, retain_as_published: as_published, retain_handling: handling };
    Packet::Subscribe(Subscribe {
        id: PacketId::new(id).unwrap(),
        subscription_id: subscription_id.and_then(SubscriptionId::new),
        user: Vec::new(),
        subscriptions: vec![Subscription { filter: filter.into(), options }],
    })
}

fn publish_of(id: u16, post: &Post, dup: bool) -> Packet {
    let id = if post.qos == Qos::AtMostOnce { 0 } else { id };
    let mut packet = publish(post.topic, &post.text, post.qos, id);
    (packet.dup, packet.retain) = (dup, post.retain);
    packet.properties.expiry_s = post.expiry_s.map(|s| u32::try_from(s).unwrap());
    Packet::Publish(packet)
}
