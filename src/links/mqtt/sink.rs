//! Buffer → remote MQTT broker: publishes at QoS 1 at least, one answer for each PUBACK or PUBCOMP.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::client::{Asked, Client, Direction, IN_FLIGHT_MAX, Live, Pending, Publish, Settings};
use super::{Config, Version};
use crate::links::{Answer, Identity, LinkError, Outgoing, Sent, Sink, SinkConnection};
use crate::message::Qos;
use crate::topic::TopicName;

/// In flight at most unless configured. A clean line confirms a thousand in some milliseconds; remotes that can take
/// less say so by their Receive Maximum.
const WINDOW: usize = 1024;

/// Makes publishing connections.
#[derive(Debug)]
pub struct MqttSink {
    settings: Settings,
    site: std::sync::Arc<str>,
}

/// A publishing connection.
#[derive(Debug)]
pub struct MqttSinkConnection {
    live: Live,
    pending: FuturesUnordered<Pending>,
    site: std::sync::Arc<str>,
    qos_max: Qos,
    packet_max: u64,
    stamped: bool,
    /// Why the connection is given up as soon as nothing is in flight.
    leaving: Option<String>,
}

impl MqttSink {
    /// `both`: the link has a source half too, so that the client id needs its `-out` (R25).
    #[must_use]
    pub fn new(config: &Config, identity: &Identity, both: bool) -> Self {
        let settings = Settings::new(config, identity, Direction::Out, both);
        Self { settings, site: std::sync::Arc::clone(&identity.site) }
    }
}

impl Sink for MqttSink {
    type Connection = MqttSinkConnection;

    fn window(&self) -> usize {
        WINDOW
    }

    async fn connect(&mut self) -> Result<Self::Connection, LinkError> {
        let live = self.settings.connect().await?;
        let qos_max = live.granted.qos_max.and_then(Qos::from_bits).unwrap_or(Qos::ExactlyOnce);
        if qos_max == Qos::AtMostOnce {
            let words = "the remote takes only QoS 0, which it never confirms".to_owned();
            return Err(LinkError::Misconfigured(words));
        }
        Ok(MqttSinkConnection {
            packet_max: self.settings.packet_max(live.granted),
            qos_max: self.settings.config.qos.min(qos_max).max(Qos::AtLeastOnce),
            stamped: self.settings.config.version == Version::V5,
            site: std::sync::Arc::clone(&self.site),
            pending: FuturesUnordered::new(),
            leaving: None,
            live,
        })
    }
}

impl SinkConnection for MqttSinkConnection {
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError> {
        if self.leaving.is_some() {
            return Ok(Sent::Full(Box::new(record)));
        }
        if let Err(error) = TopicName::new(&record.envelope.destination) {
            return Ok(Sent::Refused(format!("`{}` is no topic: {error}", record.envelope.destination)));
        }
        let publish = Publish::of(&record, self.stamped.then_some(&*self.site), self.qos_max);
        let size = self.size(&publish);
        if size > self.packet_max {
            let most = self.packet_max;
            return Ok(Sent::Refused(format!("too large: a packet of {size} bytes, and at most {most} are taken")));
        }
        match self.live.client.publish(record.place, publish) {
            Asked::Taken(answer) => {
                self.pending.push(answer);
                Ok(Sent::Queued)
            }
            Asked::QueueFull => Ok(Sent::Full(Box::new(record))),
            Asked::Invalid(reason) => Ok(Sent::Refused(reason)),
            // The reason is known to the poll task: the next `answer` tells it.
            Asked::Gone => Ok(Sent::Full(Box::new(record))),
        }
    }

    async fn answer(&mut self) -> Result<Answer, LinkError> {
        loop {
            if let Some(words) = self.leaving.take_if(|_| self.pending.is_empty()) {
                return Err(LinkError::Transient(words));
            }
            let Self { live, pending, leaving, .. } = self;
            tokio::select! {
                biased;
                Some(answer) = pending.next() => {
                    // Without an answer the connection is over; its end is reported by the poll task.
                    if let Some(answer) = answer {
                        return Ok(answer);
                    }
                }
                error = live.polling.ended() => return Err(error),
                words = live.leave.due() => *leaving = Some(words),
                () = live.line.moved() => return Ok(Answer::Alive),
            }
        }
    }

    fn window_max(&self) -> Option<usize> {
        Some(usize::from(self.live.granted.receive_max.unwrap_or(IN_FLIGHT_MAX).min(IN_FLIGHT_MAX)))
    }

    async fn close(self) {
        self.live.close().await;
    }
}

impl MqttSinkConnection {
    /// Encoded size; not computed where even a generous estimate is small enough.
    fn size(&self, publish: &Publish) -> u64 {
        let user = publish.properties.user.iter().map(|(name, value)| name.len() + value.len() + 5).sum::<usize>();
        let stamps = publish.stamps.iter().map(|(name, value)| name.len() + value.len() + 5).sum::<usize>();
        let texts = [&publish.properties.content_type, &publish.properties.response_topic];
        let texts = texts.into_iter().flatten().map(|text| text.len()).sum::<usize>();
        let correlation = publish.properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len);
        let estimate = 64 + publish.topic.len() + publish.payload.len() + user + stamps + texts + correlation;
        let estimate = u64::try_from(estimate).unwrap_or(u64::MAX);
        let client: &Client = &self.live.client;
        if estimate <= self.packet_max { estimate } else { client.size(publish) }
    }
}
