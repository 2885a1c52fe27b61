//! Subscribing with QoS 2, so that a message that the remote sends again, on a new connection or after a kill of the gateway, is known as the
//! one that it is (R25).
//!
//! The crates tell neither a PUBREL nor when its PUBCOMP goes, so here the packets are `wire`'s, as in [`exact`](super::exact). What must be on disk first
//! waits for it: a new QoS 2 message for its id, a PUBCOMP for its packet id to be forgotten. All that came together is saved together, and
//! nothing overtakes what waits.
//!
//! The hub drops copies of what has come (R12), and a kill takes that knowledge of the last second. So with what is under way it is noted how far the
//! logs were, and after a kill it is looked there for what comes again: what a log has is not appended once more.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::arrivals::{Arrivals, Known, Released};
use super::client::{Attempt, Dial, OFFLINE, ONLINE, Settings, Subscribed};
use super::exchanges::Owner;
use super::packets::{Packets, cannot_keep, disconnected, good_bye_until, saved, unexpected, unsaid};
use super::written::{Written, blocking};
use crate::hub::{Hub, KnownAs, Logged, Tails};
use crate::links::LinkError;
use crate::message::{MessageId, Properties, Qos};
use crate::router::LinkId;
use crate::wire::{
    AckKind, Packet, PacketId, Publish, PublishParts, ReasonCode, RetainHandling, Subscribe, SubscribeOptions,
    Subscription, encode, encode_ack, encode_publish,
};

/// Messages received and not yet taken by the runner. More than our Receive Maximum, for QoS 0 has no window.
const WAITING_MAX: usize = 1024;

/// Our own packet ids: the one SUBSCRIBE of a connection, and what the link announces.
const SUBSCRIBE_ID: u16 = 1;
const ONLINE_ID: u16 = 2;
const OFFLINE_ID: u16 = 3;

/// A link's arrivals as they are written down. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Book {
    written: Written<Arrivals>,
    site: Arc<str>,
    /// Where they are offered.
    hub: Option<Arc<Hub>>,
    /// What of them the logs have since before a kill. A search that a slow connection gives up goes on in the next one.
    search: Arc<Mutex<Option<Search>>>,
}

type Search = Shared<BoxFuture<'static, Arc<Logged>>>;

impl Book {
    /// In this file.
    pub(super) fn new(path: &Path, site: &Arc<str>) -> Self {
        let none = Arrivals::new(rand::random());
        let written = Written::new(path.to_owned(), none);
        Self { written, site: Arc::clone(site), hub: None, search: Arc::default() }
    }

    /// To be offered there.
    pub(super) fn offered_to(self, hub: &Arc<Hub>) -> Self {
        Self { hub: Some(Arc::clone(hub)), ..self }
    }

    /// From the link's old name.
    pub(super) fn take_over(&self, old: &LinkId) {
        let path = self.written.path();
        let before = path.with_file_name(old.as_str());
        if !before.exists() {
            return;
        }
        if path.exists() {
            tracing::warn!(path = %path.display(), left = %before.display(), "the link knows QoS 2 messages under way by its own name already: those of the old name are left, and may come twice");
            return;
        }
        if let Err(error) = std::fs::rename(&before, path) {
            tracing::error!(path = %before.display(), %error, "the QoS 2 messages under way of the old name cannot be taken over");
        }
    }

    /// Reads, once, what an earlier process left.
    async fn read(&self) -> io::Result<()> {
        let folder = self.written.path().parent().unwrap_or_else(|| Path::new(".")).to_owned();
        blocking(tokio::task::spawn_blocking(move || std::fs::create_dir_all(folder))).await?;
        self.written.read(|_| false).await?;
        self.search().await;
        Ok(())
    }

    /// Looks, once, for what was under way before a kill.
    fn search(&self) -> Search {
        let begin = || {
            let (counters, tails) = self.with(|arrivals| arrivals.sought());
            let ids = counters.into_iter().map(|counter| self.id(counter));
            let wanted: Vec<(MessageId, Tails)> = ids.map(|id| (id, tails.clone())).collect();
            let hub = self.hub.clone().filter(|_| !wanted.is_empty());
            async move {
                let Some(hub) = hub else { return Arc::default() };
                Arc::new(hub.find(&wanted).await)
            }
            .boxed()
            .shared()
        };
        self.search.lock().get_or_insert_with(begin).clone()
    }

    /// Writes down what is under way as it is now: see [`Written::save`].
    fn save(&self) -> JoinHandle<io::Result<()>> {
        if let Some(hub) = &self.hub {
            let tails = hub.tails();
            self.with(|arrivals| arrivals.note(&tails));
        }
        self.written.save()
    }

    fn with<T>(&self, look: impl FnOnce(&mut Arrivals) -> T) -> T {
        look(&mut self.written.table())
    }

    fn id(&self, counter: u64) -> MessageId {
        MessageId { site: Arc::clone(&self.site), run: self.with(|arrivals| arrivals.run()), counter }
    }
}

/// Makes such connections, which subscribe to these.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByArrivals<'a>(pub(super) &'a Book, pub(super) &'a [String]);

/// A message, and what its publisher is owed.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) publish: Publish,
    /// Of a QoS 2 message.
    pub(super) id: Option<KnownAs>,
    pub(super) again: bool,
    pub(super) owed: Owed,
}

/// What acknowledges a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    Nothing,
    Puback(PacketId),
    Pubrec(PacketId),
}

/// What waits for a save.
#[derive(Debug, Default)]
struct Waiting {
    arrived: Vec<Arrived>,
    /// PUBCOMPs.
    output: BytesMut,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.output.is_empty()
    }
}

/// A connection whose arrivals are known when they come again.
pub(super) struct ExactSource {
    book: Book,
    packets: Packets,
    /// Waits for the save that is under way.
    covered: Waiting,
    saving: Option<JoinHandle<io::Result<()>>>,
    /// Waits for the next one.
    staged: Waiting,
    ready: VecDeque<Arrived>,
    state_topic: Option<String>,
    /// The SUBACK, when it has come.
    pub(super) subscribed: Option<Vec<Subscribed>>,
}

impl std::fmt::Debug for ExactSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExactSource").field("book", &self.book).finish_non_exhaustive()
    }
}

impl Dial for ByArrivals<'_> {
    type Live = ExactSource;

    async fn attempt(&self, settings: &Settings, attempt: Attempt) -> Result<ExactSource, LinkError> {
        let Self(book, filters) = *self;
        book.read().await.map_err(|error| cannot_keep(&error))?;
        let owner = Owner::new("", &settings.client_id, &attempt.way.address.to_string());
        let (packets, connack) = Packets::log_in(settings, &attempt, false).await?;
        let is_anew = book.with(|arrivals| arrivals.begin(owner, connack.session_present));
        // What the last connection did not come to save is no more than in memory, and from now on it is acted upon.
        let mut saving = Some(book.save());
        if is_anew {
            saved(&mut saving).await.map_err(|error| cannot_keep(&error))?;
            saving = None;
        }
        let mut source = ExactSource {
            book: book.clone(),
            packets,
            covered: Waiting::default(),
            saving,
            staged: Waiting::default(),
            ready: VecDeque::new(),
            state_topic: settings.state_topic.clone(),
            subscribed: None,
        };
        source.announce(ONLINE, ONLINE_ID);
        source.subscribe(filters, settings.config.qos)?;
        // What came with the CONNACK.
        source.take_packets()?;
        Ok(source)
    }
}

impl ExactSource {
    /// R21: Retain Handling 1 and Retain As Published, so that a reconnect does not send everything again and a retained message stays one.
    fn subscribe(&mut self, filters: &[String], qos: Qos) -> Result<(), LinkError> {
        let Some(id) = PacketId::new(SUBSCRIBE_ID) else { return Ok(()) };
        let retain_handling = RetainHandling::SendIfNew;
        let options = SubscribeOptions { qos, no_local: false, retain_as_published: true, retain_handling };
        let subscription = |filter: &String| Subscription { filter: filter.as_str().into(), options };
        let subscriptions = filters.iter().map(subscription).collect();
        let subscribe = Subscribe { id, subscription_id: None, user: Vec::new(), subscriptions };
        encode(&Packet::Subscribe(subscribe), self.packets.version, &mut self.packets.output)
            .map_err(|error| unsaid(&error))
    }

    fn announce(&mut self, state: &'static str, id: u16) {
        let (Some(topic), Some(id)) = (&self.state_topic, PacketId::new(id)) else { return };
        let parts = PublishParts {
            topic,
            payload: state.as_bytes(),
            qos: Qos::AtLeastOnce,
            dup: false,
            retain: true,
            id: Some(id),
            expiry_s: None,
            topic_alias: None,
            subscription_ids: &[],
            properties: &Properties::default(),
        };
        if let Err(error) = encode_publish(&parts, self.packets.version, &mut self.packets.output) {
            tracing::warn!(topic, state, %error, "the link's state could not be announced");
        }
    }

    /// A message that may be offered.
    pub(super) fn next_here(&mut self) -> Option<Arrived> {
        self.ready.pop_front()
    }

    /// How many have come that the runner has not.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.covered.arrived.len() + self.staged.arrived.len()
    }

    /// It is safe here.
    pub(super) fn acknowledge(&mut self, owed: Owed) {
        match owed {
            Owed::Nothing => {}
            Owed::Puback(id) => self.packets.acknowledge(AckKind::Puback, id, ReasonCode::Success),
            Owed::Pubrec(id) => {
                self.book.with(|arrivals| arrivals.taken(id));
                self.packets.acknowledge(AckKind::Pubrec, id, ReasonCode::Success);
            }
        }
    }

    /// Waits for one thing to happen, and does what it asks for. Cancel safe.
    pub(super) async fn step(&mut self) -> Result<(), LinkError> {
        if self.saving.is_none() && !self.staged.is_empty() {
            self.covered = std::mem::take(&mut self.staged);
            self.saving = Some(self.book.save());
        }
        let reads = self.waiting() < WAITING_MAX;
        let Self { packets, saving, .. } = self;
        tokio::select! {
            saved = saved(saving) => {
                self.saving = None;
                saved.map_err(|error| cannot_keep(&error))?;
                let Waiting { arrived, output } = std::mem::take(&mut self.covered);
                self.ready.extend(arrived);
                self.packets.output.unsplit(output);
            }
            has_come = packets.moved(reads) => if has_come? {
                self.take_packets()?;
            },
        }
        Ok(())
    }

    fn take_packets(&mut self) -> Result<(), LinkError> {
        while let Some(packet) = self.packets.next()? {
            match packet {
                Packet::Publish(publish) => self.arrived(publish),
                Packet::Pubrel(ack) => self.released(ack.id)?,
                Packet::Suback(suback) => {
                    let why = suback.properties.reason;
                    let answer = |code: &ReasonCode| {
                        if code.is_error() {
                            return Err(why.as_deref().map_or_else(|| format!("{code:?}"), ToOwned::to_owned));
                        }
                        let mut granted = [Qos::ExactlyOnce, Qos::AtLeastOnce].into_iter();
                        Ok(granted.find(|qos| ReasonCode::granted(*qos) == *code).unwrap_or_default())
                    };
                    self.subscribed = Some(suback.codes.iter().map(answer).collect());
                }
                Packet::Disconnect(disconnect) => return Err(disconnected(&disconnect)),
                // The PUBACK is of what the link announces.
                Packet::Puback(_) | Packet::Pingresp => {}
                Packet::Connect(_)
                | Packet::Connack(_)
                | Packet::Pubrec(_)
                | Packet::Pubcomp(_)
                | Packet::Subscribe(_)
                | Packet::Unsubscribe(_)
                | Packet::Unsuback(_)
                | Packet::Pingreq
                | Packet::Auth(_) => return Err(unexpected(&packet)),
            }
        }
        Ok(())
    }

    fn arrived(&mut self, publish: Publish) {
        let again = publish.dup;
        match (publish.qos, publish.id) {
            (Qos::AtLeastOnce, Some(id)) => {
                self.behind_others(Arrived { publish, id: None, again, owed: Owed::Puback(id) });
            }
            (Qos::ExactlyOnce, Some(id)) => match self.book.with(|arrivals| arrivals.arrived(id)) {
                Known::New(counter) => {
                    let known_as = self.book.id(counter).into();
                    self.staged.arrived.push(exactly_once(publish, id, known_as));
                }
                Known::Again(counter) => {
                    let logged = self.book.search().peek().cloned();
                    let known_as = KnownAs { id: self.book.id(counter), logged };
                    self.behind_others(exactly_once(publish, id, known_as));
                }
                Known::UnderWay => {}
                Known::Taken => {
                    self.packets.acknowledge(AckKind::Pubrec, id, ReasonCode::Success);
                }
            },
            (Qos::AtMostOnce, _) | (_, None) => {
                self.behind_others(Arrived { publish, id: None, again, owed: Owed::Nothing });
            }
        }
    }

    /// What waits for no save itself waits with those that came before it (R10).
    fn behind_others(&mut self, arrived: Arrived) {
        if !self.staged.is_empty() {
            self.staged.arrived.push(arrived);
        } else if self.saving.is_some() {
            self.covered.arrived.push(arrived);
        } else {
            self.ready.push_back(arrived);
        }
    }

    fn released(&mut self, id: PacketId) -> Result<(), LinkError> {
        let (code, output) = match self.book.with(|arrivals| arrivals.released(id)) {
            Released::Ended => (ReasonCode::Success, &mut self.staged.output),
            Released::Unknown => (ReasonCode::PacketIdentifierNotFound, &mut self.packets.output),
            Released::TooEarly => {
                return Err(LinkError::Transient("the remote sent PUBREL before it had our PUBREC".to_owned()));
            }
        };
        encode_ack(AckKind::Pubcomp, id, code, self.packets.version, output);
        Ok(())
    }

    /// Lets the acknowledgements go, and says good-bye. The session stays.
    pub(super) async fn close(mut self) {
        self.announce(OFFLINE, OFFLINE_ID);
        let until = good_bye_until();
        while (self.saving.is_some() || !self.staged.is_empty() || !self.packets.is_flushed())
            && matches!(tokio::time::timeout_at(until, self.step()).await, Ok(Ok(())))
        {}
        // With what was taken since: what is sent again then needs no second look.
        drop(blocking(self.book.save()).await);
        drop(self.packets.end(until).await);
    }
}

fn exactly_once(publish: Publish, id: PacketId, known_as: KnownAs) -> Arrived {
    let again = publish.dup;
    Arrived { publish, id: Some(known_as), again, owed: Owed::Pubrec(id) }
}
