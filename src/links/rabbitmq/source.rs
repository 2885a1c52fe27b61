//! The inbound half: one connection, and for each queue a channel with a consumer.
//!
//! Deliveries of a channel are numbered 1, 2, 3, ... ; what has settled is acknowledged up to the first that has not, with one
//! `basic.ack multiple` for many (R24): each time a quarter of the prefetch has settled, and at the latest [`ACK_DELAY`]
//! after. A delivery that is not acknowledged when the connection ends comes again, marked `redelivered`.
//!
//! Who does not acknowledge within RabbitMQ's `consumer_timeout` (30 min, or what the operator says), as while an offer waits for a full target, loses its
//! channel. That is looked for while nothing is received, and said. The connection is given up with the next acknowledgement, no
//! sooner: all that is open comes again each time, and a quorum queue counts that (`x-delivery-limit`).
//!
//! A stream keeps no position for us: `streams` does.
//!
//! A queue that is not there, or may not be read, costs the others nothing: RabbitMQ closes its channel, and it is tried again on a
//! new one each [`REOPEN_AFTER`]. Meanwhile the link says which one it is ([`SourceConnection::trouble`]). Only where no queue can be
//! read the connection is given up. So it is with one that the link declares and that RabbitMQ refuses. One that is gone is declared anew.

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, Stream};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use parking_lot::Mutex;

use super::Config;
use super::client::{self, Client};
use super::streams::{self, Positions};
use super::{mapping, topology};
use crate::links::{Identity, LinkError, RateLimit, Received, Source, SourceConnection};
use crate::router::LinkId;

/// R24: an acknowledgement waits this long for company.
const ACK_DELAY: Duration = Duration::from_millis(50);
/// How many deliveries one `receive` hands out: enough to share the cost of an offer, few enough to stay responsive.
const BATCH_MAX: usize = 256;
/// How often a queue that cannot be read is tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// When one is tried whose consumer was cancelled: it may be back at once, on another node of the cluster or declared anew.
const REOPEN_CANCELLED_AFTER: Duration = Duration::from_millis(500);

/// How often is looked whether RabbitMQ has closed a channel, while nothing is received.
const LOOK_EACH: Duration = Duration::from_millis(500);

/// So long a delivery may wait for the link's `rate`: a sixth of RabbitMQ's `consumer_timeout` (30 min by default), after which it ends a consumer
/// that does not acknowledge (R6).
const HELD_MAX: Duration = Duration::from_secs(300);
/// What a delivery is taken to have, where the rate is one of bytes: half of what the largest may have is far more than most.
const HELD_BYTES: u64 = 64 << 10;

/// Consumes queues of a RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitSource {
    config: Config,
    queues: Vec<String>,
    identity: Identity,
    /// Over all connections: looked at and noted, never held across a wait.
    positions: Arc<Mutex<Positions>>,
}

impl RabbitSource {
    /// For `queues`, which must exist unless the link declares them; connects only when asked. `old`: what the link was called before, whose positions it takes over (R34).
    #[must_use]
    pub fn new(config: &Config, queues: Vec<String>, identity: &Identity, old: Option<&LinkId>) -> Self {
        let path = config.positions.as_deref();
        let place = client::place(config);
        if let Some((path, old)) = path.zip(old) {
            streams::take_over(path, old, &place);
        }
        let positions = Arc::new(Mutex::new(Positions::open(path, &place)));
        Self { config: config.clone(), queues, identity: identity.clone(), positions }
    }

    /// For a link that moves no more than this: no more is fetched ahead than passes in time.
    #[must_use]
    pub fn paced(mut self, rate: Option<&RateLimit>) -> Self {
        self.config.prefetch = prefetch_within(self.config.prefetch, self.queues.len(), rate);
        self
    }
}

/// How many deliveries of each of so many queues pass within [`HELD_MAX`]: at least one, and no more than is configured.
fn prefetch_within(configured: u16, queues: usize, rate: Option<&RateLimit>) -> u16 {
    let queues = u64::try_from(queues.max(1)).unwrap_or(u64::MAX);
    let rates = rate.map(|rate| [(rate.messages, 1), (rate.bytes, HELD_BYTES)]).into_iter().flatten();
    let passes = rates.filter_map(|(rate, each)| {
        let round = rate?.time_of(queues.saturating_mul(each)).as_nanos().max(1);
        Some(u16::try_from(HELD_MAX.as_nanos() / round).unwrap_or(u16::MAX))
    });
    passes.fold(configured, u16::min).max(1)
}

impl Source for RabbitSource {
    type Connection = RabbitSourceConnection;

    async fn connect(&mut self) -> Result<RabbitSourceConnection, LinkError> {
        let client = client::connect(&self.config, &self.identity, "in").await?;
        topology::prepare_beside(&client, &self.config, &self.queues).await?;
        let mut slots = Vec::new();
        for name in &self.queues {
            let name: Arc<str> = name.as_str().into();
            let arguments = self.positions.lock().arguments(&self.config, &name);
            let state = match consume(&client, &self.config, &name, 0, arguments).await {
                Ok(queue) => State::Read(Box::new(queue)),
                Err(LinkError::Misconfigured(words)) => State::missing(words, REOPEN_AFTER),
                Err(lost @ LinkError::Transient(_)) => return Err(lost),
            };
            slots.push(Slot { name, state });
        }
        let (config, client) = (self.config.clone(), Arc::new(client));
        let positions = Arc::clone(&self.positions);
        let connection = RabbitSourceConnection {
            slots,
            next: 0,
            unreadable: 0,
            opened: 0,
            opening: None,
            config,
            client,
            positions,
        };
        connection.any_left()?;
        Ok(connection)
    }
}

async fn consume(
    client: &Client,
    config: &Config,
    name: &str,
    opened: u64,
    arguments: FieldTable,
) -> Result<Queue, LinkError> {
    let queue = ShortString::try_new(name)
        .map_err(|error| LinkError::Misconfigured(format!("the queue's name `{name}` is too long: {error}")))?;
    let refused = |error: lapin::Error| match client::classify(&error) {
        LinkError::Misconfigured(words) if words.starts_with("404") => LinkError::Misconfigured(format!(
            "no queue '{name}' in vhost '{}': {words}; declare and bind it, or let the link do so with `queues:`",
            client::vhost(config)
        )),
        other @ (LinkError::Misconfigured(_) | LinkError::Transient(_)) => other,
    };
    let channel = client.connection.create_channel().await.map_err(refused)?;
    if let Some(declare) = config.queues.iter().find(|queue| queue.name == name) {
        topology::prepare_queue(&channel, declare).await?;
    }
    // 0 would mean no limit at all, and with it no limit to memory.
    let prefetch = config.prefetch.max(1);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(refused)?;
    let consumer = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), arguments).await;
    let ack_every = u64::from(prefetch / 4).max(1);
    let settling = Settling::new(ack_every);
    let (consumer, offsets) = (consumer.map_err(refused)?, VecDeque::new());
    Ok(Queue { name: name.into(), opened, consumer, channel, settling, offsets, over: None })
}

/// A delivery: which of the link's queues, on which of its channels, and its tag there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RabbitToken {
    queue: usize,
    opened: u64,
    tag: u64,
}

/// A live connection with its consumers.
pub struct RabbitSourceConnection {
    slots: Vec<Slot>,
    /// The queue that is looked at first, so that none starves the others.
    next: usize,
    unreadable: u64,
    /// Channels opened again so far: each has numbers of its own.
    opened: u64,
    opening: Option<Opening>,
    config: Config,
    client: Arc<Client>,
    positions: Arc<Mutex<Positions>>,
}

/// A queue that is being tried again.
struct Opening {
    slot: usize,
    done: Pin<Box<dyn Future<Output = Result<Queue, LinkError>> + Send>>,
}

/// One of the link's queues.
struct Slot {
    name: Arc<str>,
    state: State,
}

enum State {
    Read(Box<Queue>),
    /// It cannot be read: why, and when it is tried again.
    Missing(String, Instant),
}

impl State {
    fn missing(words: String, again: Duration) -> Self {
        Self::Missing(words, crate::clock::now() + again)
    }
}

struct Queue {
    name: Arc<str>,
    opened: u64,
    consumer: Consumer,
    channel: Channel,
    settling: Settling,
    /// Of a stream: tags that are not settled with all before them, and where in the stream they are.
    offsets: VecDeque<(u64, u64)>,
    /// RabbitMQ has closed the channel, in its own words.
    over: Option<LinkError>,
}

impl SourceConnection for RabbitSourceConnection {
    type Token = RabbitToken;

    /// Also sends the acknowledgements that fall due while it waits, since nobody can call `upkeep` meanwhile.
    async fn receive(&mut self) -> Result<Vec<Received<RabbitToken>>, LinkError> {
        loop {
            let due = self.due();
            let received = poll_fn(|cx| self.poll_receive(cx));
            match due {
                None => return received.await,
                Some(due) => {
                    if let Ok(received) = tokio::time::timeout_at(due.into(), received).await {
                        return received;
                    }
                    self.attend()?;
                }
            }
        }
    }

    fn settled(&mut self, token: RabbitToken) -> Result<(), LinkError> {
        let Some(State::Read(queue)) = self.slots.get_mut(token.queue).map(|slot| &mut slot.state) else {
            return Ok(());
        };
        if queue.opened != token.opened {
            return Ok(());
        }
        let now = crate::clock::now();
        let due = queue.settling.settle(token.tag, now);
        queue.pass(&self.positions, now);
        match due {
            Some(tag) => queue.acknowledge(tag),
            None => Ok(()),
        }
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        let look = crate::clock::now() + LOOK_EACH;
        tokio::time::sleep_until(self.due().map_or(look, |due| due.min(look)).into()).await;
        self.read().for_each(Queue::look);
        self.attend()
    }

    fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    fn trouble(&self) -> Option<String> {
        let missing = self.missing().map(|(words, _)| words.to_owned());
        let over = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Read(queue) => Some(format!("queue '{}': {}", slot.name, queue.over.as_ref()?)),
            State::Missing(..) => None,
        });
        let words: Vec<String> = missing.chain(over).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    async fn close(mut self) {
        for queue in self.read() {
            if let Err(error) = queue.acknowledge_settled() {
                tracing::debug!(%error, queue = &*queue.name, "the last acknowledgements could not be sent");
            }
        }
        let writing = {
            let mut positions = self.positions.lock();
            positions.save(crate::clock::now());
            positions.take_writing()
        };
        if let Some(Err(error)) = match writing {
            Some(writing) => Some(writing.await),
            None => None,
        } {
            tracing::debug!(%error, "the streams' positions");
        }
        // The good-bye goes through the same connection behind the acknowledgements.
        self.opening = None;
        if let Some(client) = Arc::into_inner(self.client) {
            client.close().await;
        }
    }
}

impl RabbitSourceConnection {
    fn read(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            State::Read(queue) => Some(&mut **queue),
            State::Missing(..) => None,
        })
    }

    fn missing(&self) -> impl Iterator<Item = (&str, Instant)> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Read(_) => None,
            State::Missing(words, again) => Some((words.as_str(), *again)),
        })
    }

    /// An error where no queue can be read.
    fn any_left(&self) -> Result<(), LinkError> {
        let all = self.missing().count() == self.slots.len();
        match self.missing().next() {
            Some((words, _)) if all => Err(LinkError::Misconfigured(words.to_owned())),
            _ => Ok(()),
        }
    }

    /// When acknowledgements are due, or a queue is to be tried again: one at a time.
    fn due(&self) -> Option<Instant> {
        let acknowledgements = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Read(queue) => queue.settling.due(),
            State::Missing(..) => None,
        });
        let again = self.missing().map(|(_, again)| again).filter(|_| self.opening.is_none());
        acknowledgements.chain(again).chain(self.positions.lock().due()).min()
    }

    /// Does what is due.
    fn attend(&mut self) -> Result<(), LinkError> {
        let now = crate::clock::now();
        for queue in self.read().filter(|queue| queue.settling.due().is_some_and(|due| due <= now)) {
            queue.acknowledge_settled()?;
        }
        if self.positions.lock().due().is_some_and(|due| due <= now) {
            self.positions.lock().save(now);
        }
        let is_due = |slot: &Slot| matches!(slot.state, State::Missing(_, again) if again <= now);
        if self.opening.is_none()
            && let Some(slot) = self.slots.iter().position(is_due)
        {
            self.opening = Some(self.open(slot));
        }
        Ok(())
    }

    fn open(&mut self, slot: usize) -> Opening {
        self.opened += 1;
        let (client, config, opened) = (Arc::clone(&self.client), self.config.clone(), self.opened);
        let name = self.slots.get(slot).map(|slot| Arc::clone(&slot.name)).unwrap_or_default();
        let arguments = self.positions.lock().arguments(&config, &name);
        Opening { slot, done: async move { consume(&client, &config, &name, opened, arguments).await }.boxed() }
    }

    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let Some(Opening { slot, done }) = &mut self.opening else { return Ok(()) };
        let Poll::Ready(opened) = done.as_mut().poll(cx) else { return Ok(()) };
        let slot = *slot;
        self.opening = None;
        let state = match opened {
            Ok(queue) => {
                tracing::info!(queue = &*queue.name, "the queue is read");
                State::Read(Box::new(queue))
            }
            Err(LinkError::Misconfigured(words)) => State::missing(words, REOPEN_AFTER),
            Err(lost @ LinkError::Transient(_)) => return Err(lost),
        };
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.state = state;
        }
        Ok(())
    }

    /// The consumer of a queue was cancelled by the broker: what is settled is acknowledged, the rest comes again.
    fn cancelled(&mut self, slot: usize) -> Result<(), LinkError> {
        let Some(slot) = self.slots.get_mut(slot) else { return Ok(()) };
        let words = format!("the broker cancelled the consumer of queue '{}'", slot.name);
        if let State::Read(queue) = &mut slot.state {
            queue.acknowledge_settled()?;
        }
        slot.state = State::missing(words, REOPEN_CANCELLED_AFTER);
        self.any_left()
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Received<RabbitToken>>, LinkError>> {
        if let Err(lost) = self.poll_opening(cx) {
            return Poll::Ready(Err(lost));
        }
        let mut batch = Vec::new();
        let mut cancelled = None;
        let count = self.slots.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            let Some(State::Read(queue)) = self.slots.get_mut(index).map(|slot| &mut slot.state) else { continue };
            while batch.len() < BATCH_MAX {
                match Pin::new(&mut queue.consumer).poll_next(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(delivery))) => {
                        if queue.is_behind(&self.positions, &delivery) {
                            continue;
                        }
                        match queue.received(index, delivery, self.config.topic_escape) {
                            Some(received) => batch.push(received),
                            None => self.unreadable += 1,
                        }
                    }
                    // What came before the end is given up with it: it could not be acknowledged, and comes again.
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(client::classify(&error))),
                    Poll::Ready(None) => {
                        cancelled = Some(index);
                        break;
                    }
                }
            }
        }
        self.next = self.next.wrapping_add(1) % count.max(1);
        if let Some(Err(lost)) = cancelled.map(|index| self.cancelled(index)) {
            return Poll::Ready(Err(lost));
        }
        if batch.is_empty() { Poll::Pending } else { Poll::Ready(Ok(batch)) }
    }
}

impl Queue {
    /// Takes note of where in its stream a delivery is. One that had settled before is passed over: streams hand out whole chunks.
    fn is_behind(&mut self, positions: &Mutex<Positions>, delivery: &Delivery) -> bool {
        let Some(offset) = streams::offset_of(&delivery.properties) else { return false };
        if positions.lock().has_passed(&self.name, offset) {
            self.settling.settled_elsewhere(delivery.delivery_tag);
            return true;
        }
        self.offsets.push_back((delivery.delivery_tag, offset));
        false
    }

    /// Of a stream: how far it was read.
    fn pass(&mut self, positions: &Mutex<Positions>, now: Instant) {
        while let Some((_, offset)) = self.offsets.pop_front_if(|(tag, _)| *tag <= self.settling.low) {
            positions.lock().passed(&self.name, offset, now);
        }
    }

    fn received(&mut self, index: usize, delivery: Delivery, escape: bool) -> Option<Received<RabbitToken>> {
        let tag = delivery.delivery_tag;
        let key = delivery.routing_key.as_str();
        let Some(publication) = mapping::incoming(&self.name, key, &delivery.properties, delivery.data, escape) else {
            self.reject(tag, key);
            return None;
        };
        Some(Received {
            channel: Some(Arc::clone(&self.name)),
            publication,
            token: RabbitToken { queue: index, opened: self.opened, tag },
            again: delivery.redelivered,
            once: false,
        })
    }

    /// Last resort: RabbitMQ dead-letters it where the queue has a dead-letter exchange.
    fn reject(&mut self, tag: u64, routing_key: &str) {
        tracing::error!(queue = &*self.name, routing_key, tag, "rejected a delivery that gives no topic");
        let channel = self.channel.clone();
        let rejecting = pin!(async move { channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await });
        // The first poll queues the frame; if the channel is over, the consumer tells.
        drop(rejecting.poll(&mut Context::from_waker(Waker::noop())));
        self.settling.settled_elsewhere(tag);
    }

    fn acknowledge_settled(&mut self) -> Result<(), LinkError> {
        match self.settling.take() {
            Some(tag) => self.acknowledge(tag),
            None => Ok(()),
        }
    }

    /// Whether RabbitMQ has closed the channel, and why. What it had delivered comes again.
    fn look(&mut self) {
        if self.over.is_some() || self.channel.status().connected() {
            return;
        }
        let mut over = LinkError::Transient("RabbitMQ closed the channel".to_owned());
        while let Poll::Ready(Some(next)) =
            Pin::new(&mut self.consumer).poll_next(&mut Context::from_waker(Waker::noop()))
        {
            if let Err(error) = next {
                over = client::classify(&error);
                break;
            }
        }
        self.over = Some(over);
    }

    /// The first poll queues the frame; nothing is waited for, since AMQP answers nothing to it.
    fn acknowledge(&mut self, tag: u64) -> Result<(), LinkError> {
        self.look();
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let acknowledging = pin!(self.channel.basic_ack(tag, BasicAckOptions { multiple: true }));
        match acknowledging.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(client::classify(&error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

/// The contiguous settled prefix of a channel's deliveries (R24).
#[derive(Debug)]
struct Settling {
    /// All tags up to this one are settled.
    low: u64,
    /// Settled above it.
    early: BTreeSet<u64>,
    /// Acknowledged up to here.
    acknowledged: u64,
    ack_every: u64,
    /// When what is settled and not acknowledged is due.
    due: Option<Instant>,
}

impl Settling {
    const fn new(ack_every: u64) -> Self {
        Self { low: 0, early: BTreeSet::new(), acknowledged: 0, ack_every, due: None }
    }

    /// Takes note; the tag to acknowledge up to, where enough has come together.
    fn settle(&mut self, tag: u64, now: Instant) -> Option<u64> {
        self.settled_elsewhere(tag);
        if self.low == self.acknowledged {
            return None;
        }
        if self.low - self.acknowledged >= self.ack_every {
            return self.take();
        }
        self.due.get_or_insert(now + ACK_DELAY);
        None
    }

    /// A delivery that needs no acknowledgement of ours counts as settled. (A `multiple` that covers it is harmless:
    /// the broker passes over what it no longer holds.)
    fn settled_elsewhere(&mut self, tag: u64) {
        if tag > self.low {
            self.early.insert(tag);
        }
        while self.early.first() == Some(&(self.low + 1)) {
            self.early.pop_first();
            self.low += 1;
        }
    }

    const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is settled and not acknowledged, as acknowledged from now on.
    fn take(&mut self) -> Option<u64> {
        self.due = None;
        if self.low == self.acknowledged {
            return None;
        }
        self.acknowledged = self.low;
        Some(self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r24_only_the_contiguous_settled_prefix_is_acknowledged() {
        let now = crate::clock::now();
        let mut settling = Settling::new(3);
        assert_eq!(settling.settle(2, now), None);
        assert_eq!(settling.settle(3, now), None);
        assert_eq!((settling.due(), settling.take()), (None, None));
        assert_eq!(settling.settle(1, now), Some(3));
        assert_eq!(settling.settle(1, now), None, "a second time changes nothing");
    }

    #[test]
    fn r24_what_is_settled_is_due_50_ms_after_the_first() {
        let now = crate::clock::now();
        let mut settling = Settling::new(100);
        assert_eq!(settling.settle(1, now), None);
        assert_eq!(settling.settle(2, now + Duration::from_millis(20)), None);
        assert_eq!(settling.due(), Some(now + ACK_DELAY));
        assert_eq!(settling.take(), Some(2));
        assert_eq!(settling.due(), None);
    }
}

#[cfg(test)]
mod held {
    use super::*;
    use crate::units::Rate;

    #[test]
    fn r06_no_more_is_fetched_ahead_than_the_rate_lets_pass_before_rabbitmq_ends_the_consumer() {
        let limit = |messages: Option<&str>, bytes: Option<&str>| RateLimit {
            messages: messages.map(|text| Rate::parse_count(text).unwrap()),
            bytes: bytes.map(|text| Rate::parse_bytes(text).unwrap()),
            burst: RateLimit::BURST_DEFAULT,
        };
        assert_eq!(prefetch_within(512, 1, None), 512);
        for (messages, bytes, queues, expected) in [
            (Some("2000/s"), None, 1, 512),
            (Some("1/s"), None, 1, 300),
            (Some("1/s"), None, 3, 100),
            (Some("6/m"), None, 1, 30),
            // Nothing passes in time; one has to be there all the same.
            (Some("1/h"), None, 1, 1),
            (None, Some("1MiB/s"), 1, 512),
            (None, Some("64KiB/m"), 1, 5),
            (Some("1/s"), Some("64KiB/m"), 2, 2),
        ] {
            let got = prefetch_within(512, queues, Some(&limit(messages, bytes)));
            assert_eq!(got, expected, "{messages:?} {bytes:?} {queues}");
        }
    }
}
