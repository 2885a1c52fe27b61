//! What is retained, for the operator: seen, and dropped. Whoever can come in can do the same by MQTT; this is for when memory is so
//! short of it that no client is let in (R36).

use serde::{Deserialize, Serialize};

use super::Broker;
use super::store::Op;
use crate::hub::Rejected;
use crate::telemetry::shown::Shown;
use crate::topic::{TopicError, TopicFilter, TopicName};

/// Nodes of the tree that are looked at, or messages that are dropped, in one step, under a lock.
const STEP: usize = 1_000;

/// A topic with a retained message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedTopic {
    /// Which.
    pub topic: String,
    /// Of its payload.
    pub payload_bytes: u64,
    /// What it counts for in `retained_bytes_max`, but for the levels of its topic.
    pub bytes: u64,
}

/// Why retained messages are not dropped, or may come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropError {
    /// Nothing was touched.
    #[error("{0}")]
    Filter(#[from] TopicError),
    /// See [`Broker::drop_retained`].
    #[error("they are dropped until the next start, and then there again: {0}")]
    Store(#[from] Rejected),
}

impl Broker {
    /// What clients and routes have retained on topics that `filter` matches, in the order of topics.
    ///
    /// # Errors
    /// `filter` is none.
    pub fn retained_on(&self, filter: &str) -> Result<Vec<RetainedTopic>, TopicError> {
        let shown = |topic: TopicName| {
            let (payload_bytes, bytes) = self.topics.retained_size(&topic)?;
            Some(RetainedTopic { topic: topic.to_string(), payload_bytes, bytes })
        };
        Ok(self.topics_retained(filter)?.into_iter().filter_map(shown).collect())
    }

    /// Drops it for good, and says how many there were; subscribers are told nothing. Counted (`retained_dropped`).
    ///
    /// # Errors
    /// `filter` is none. Or the store has failed: they are dropped in memory, and come back with the next start.
    pub async fn drop_retained(&self, filter: &str) -> Result<u64, DropError> {
        let topics = self.topics_retained(filter)?;
        let (now, mut dropped, mut last) = (self.clock.moment(), 0, None);
        for some in topics.chunks(STEP) {
            // As where one is retained or removed: under the store's lock, so that memory and store agree in which is the later.
            let (gone, position) = self.store.stage(|unit| {
                let gone = some.iter().filter(|topic| self.topics.retain(topic, None, now));
                gone.map(|topic| unit.push(Op::Unretain(topic.as_str().into()))).count()
            });
            dropped += gone as u64;
            last = position.or(last);
        }
        self.board.dropped_many("retained_dropped", dropped);
        if dropped > 0 {
            tracing::warn!(filter = %Shown(filter), dropped, "retained messages are dropped, as the operator asked");
        }
        if let Some(position) = last {
            self.store_mark.clone().passed(position).await?;
        }
        Ok(dropped)
    }

    fn topics_retained(&self, filter: &str) -> Result<Vec<TopicName>, TopicError> {
        let filter = TopicFilter::new(filter)?;
        let (mut topics, mut place) = (Vec::new(), None);
        loop {
            (_, place) = self.topics.retained_topics(&filter, place.as_ref(), STEP, &mut topics);
            if place.is_none() {
                // The gateway's own values are not anybody's to drop.
                topics.retain(|topic| !topic.is_own());
                return Ok(topics);
            }
        }
    }
}
