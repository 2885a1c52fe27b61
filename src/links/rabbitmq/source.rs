//! The inbound half: one connection, and for each queue a channel with a consumer.
//!
//! Deliveries of a channel are numbered 1, 2, 3, ... ; what has settled is acknowledged up to the first that has not, with one
//! `basic.ack multiple` for many (R24): each time a quarter of the prefetch has settled, and at the latest [`ACK_DELAY`]
//! after. A delivery that is not acknowledged when the connection ends comes again, marked `redelivered`.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::Stream;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::Config;
use super::client::{self, Client};
use super::mapping;
use crate::links::{Identity, LinkError, Received, Source, SourceConnection};

/// R24: an acknowledgement waits this long for company.
const ACK_DELAY: Duration = Duration::from_millis(50);
/// How many deliveries one `receive` hands out: enough to share the cost of an offer, few enough to stay responsive.
const BATCH_MAX: usize = 256;

/// Consumes queues of a RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitSource {
    config: Config,
    queues: Vec<String>,
    identity: Identity,
}

impl RabbitSource {
    /// For `queues`, which must exist; connects only when asked.
    #[must_use]
    pub fn new(config: &Config, queues: Vec<String>, identity: &Identity) -> Self {
        Self { config: config.clone(), queues, identity: identity.clone() }
    }
}

impl Source for RabbitSource {
    type Connection = RabbitSourceConnection;

    async fn connect(&mut self) -> Result<RabbitSourceConnection, LinkError> {
        let client = client::connect(&self.config, &self.identity, "in").await?;
        let mut queues = Vec::new();
        for name in &self.queues {
            queues.push(consume(&client, &self.config, name).await?);
        }
        Ok(RabbitSourceConnection { queues, next: 0, unreadable: 0, escape: self.config.topic_escape, client })
    }
}

async fn consume(client: &Client, config: &Config, name: &str) -> Result<Queue, LinkError> {
    let queue = ShortString::try_new(name)
        .map_err(|error| LinkError::Misconfigured(format!("the queue's name `{name}` is too long: {error}")))?;
    let refused = |error: lapin::Error| match client::classify(&error) {
        LinkError::Misconfigured(words) if words.starts_with("404") => LinkError::Misconfigured(format!(
            "no queue '{name}' in vhost '{}': {words}; declare and bind it",
            client::vhost(config)
        )),
        other @ (LinkError::Misconfigured(_) | LinkError::Transient(_)) => other,
    };
    let channel = client.connection.create_channel().await.map_err(refused)?;
    // 0 would mean no limit at all, and with it no limit to memory.
    let prefetch = config.prefetch.max(1);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(refused)?;
    let consumer = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await;
    let ack_every = u64::from(prefetch / 4).max(1);
    Ok(Queue { name: name.into(), consumer: consumer.map_err(refused)?, channel, settling: Settling::new(ack_every) })
}

/// A delivery: which of the link's queues, and its tag there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RabbitToken {
    queue: usize,
    tag: u64,
}

/// A live connection with its consumers.
pub struct RabbitSourceConnection {
    queues: Vec<Queue>,
    /// The queue that is looked at first, so that none starves the others.
    next: usize,
    unreadable: u64,
    escape: bool,
    client: Client,
}

struct Queue {
    name: Arc<str>,
    consumer: Consumer,
    channel: Channel,
    settling: Settling,
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
                    self.acknowledge_due()?;
                }
            }
        }
    }

    fn settled(&mut self, token: RabbitToken) -> Result<(), LinkError> {
        let Some(queue) = self.queues.get_mut(token.queue) else { return Ok(()) };
        match queue.settling.settle(token.tag, crate::clock::now()) {
            Some(tag) => queue.acknowledge(tag),
            None => Ok(()),
        }
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        match self.due() {
            None => std::future::pending().await,
            Some(due) => {
                tokio::time::sleep_until(due.into()).await;
                self.acknowledge_due()
            }
        }
    }

    fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    async fn close(mut self) {
        for queue in &mut self.queues {
            if let Err(error) = queue.acknowledge_settled() {
                tracing::debug!(%error, queue = &*queue.name, "the last acknowledgements could not be sent");
            }
        }
        // The good-bye goes through the same connection behind the acknowledgements.
        self.client.close().await;
    }
}

impl RabbitSourceConnection {
    fn due(&self) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| queue.settling.due()).min()
    }

    fn acknowledge_due(&mut self) -> Result<(), LinkError> {
        let now = crate::clock::now();
        let mut due = self.queues.iter_mut().filter(|queue| queue.settling.due().is_some_and(|due| due <= now));
        due.try_for_each(Queue::acknowledge_settled)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Received<RabbitToken>>, LinkError>> {
        let mut batch = Vec::new();
        let count = self.queues.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            let Some(queue) = self.queues.get_mut(index) else { continue };
            while batch.len() < BATCH_MAX {
                match Pin::new(&mut queue.consumer).poll_next(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(delivery))) => match queue.received(index, delivery, self.escape) {
                        Some(received) => batch.push(received),
                        None => self.unreadable += 1,
                    },
                    // What came before the end is given up with it: it could not be acknowledged, and comes again.
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(client::classify(&error))),
                    Poll::Ready(None) => {
                        let reason = format!("the broker cancelled the consumer of queue '{}'", queue.name);
                        return Poll::Ready(Err(LinkError::Transient(reason)));
                    }
                }
            }
        }
        self.next = self.next.wrapping_add(1) % count.max(1);
        if batch.is_empty() { Poll::Pending } else { Poll::Ready(Ok(batch)) }
    }
}

impl Queue {
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
            token: RabbitToken { queue: index, tag },
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

    /// The first poll queues the frame; nothing is waited for, since AMQP answers nothing to it.
    fn acknowledge(&self, tag: u64) -> Result<(), LinkError> {
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
