//! Buffer → remote MQTT broker: publishes at QoS 1 at least, one answer for each PUBACK or PUBCOMP.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::client::{Asked, Direction, Granted, IN_FLIGHT_MAX, Live, Pending, Publish, Settings};
use super::dial::Leave;
use super::exact::{self, ByExchanges, Exact};
use super::kept::Kept;
use super::packets;
use super::{Config, Version, v4, v5};
use crate::buffer::{EXCHANGES, Lanes, Place};
use crate::links::{Answer, Confirmed, Identity, LinkError, Outgoing, Sent, Sink, SinkConnection};
use crate::message::{Envelope, Qos};
use crate::telemetry::shown::Shown;
use crate::topic::TopicName;

/// In flight at most unless configured. A clean line confirms a thousand in some milliseconds; remotes that can take
/// less say so by their Receive Maximum.
const WINDOW: usize = 1024;

/// Makes publishing connections.
#[derive(Debug)]
pub struct MqttSink {
    settings: Settings,
    site: Arc<str>,
    /// Of a link with QoS 2.
    kept: Option<Kept>,
}

/// A publishing connection.
#[derive(Debug)]
pub struct MqttSinkConnection {
    carrier: Carrier,
    leave: Leave,
    site: Arc<str>,
    qos_max: Qos,
    packet_max: u64,
    stamped: bool,
    /// Why the connection is given up as soon as nothing is in flight.
    leaving: Option<String>,
}

/// What carries it.
#[derive(Debug)]
enum Carrier {
    Crate { live: Live, pending: FuturesUnordered<Pending> },
    Exact { exact: Box<Exact>, kept: Kept, open: usize },
}

impl MqttSink {
    /// One that knows nothing of earlier connections. `both`: the link has a source half too, so that the client id needs its `-out` (R25).
    #[must_use]
    pub fn new(config: &Config, identity: &Identity, both: bool) -> Self {
        let settings = Settings::new(config, identity, Direction::Out, both);
        Self { settings, site: Arc::clone(&identity.site), kept: None }
    }

    /// The one of a link whose buffer lies in `dir`: its QoS 2 exchanges go on over connections and restarts (R25).
    #[must_use]
    pub fn of_link(config: &Config, identity: &Identity, both: bool, dir: &Path, lanes: &Lanes) -> Self {
        let kept = (config.qos == Qos::ExactlyOnce).then(|| Kept::new(dir.join(EXCHANGES), lanes));
        Self { kept, ..Self::new(config, identity, both) }
    }
}

impl Sink for MqttSink {
    type Connection = MqttSinkConnection;

    fn window(&self) -> usize {
        match (self.settings.config.qos, self.settings.config.version) {
            (Qos::ExactlyOnce, Version::V5) => exact::WINDOW,
            (Qos::ExactlyOnce, Version::V4) => exact::WINDOW_V4,
            (Qos::AtMostOnce | Qos::AtLeastOnce, _) => WINDOW,
        }
    }

    async fn connect(&mut self) -> Result<Self::Connection, LinkError> {
        let (carrier, leave) = match self.kept.clone() {
            None => {
                let (live, leave) = self.settings.connect().await?;
                (Carrier::Crate { live, pending: FuturesUnordered::new() }, leave)
            }
            Some(kept) => {
                let (exact, leave) = self.settings.connect_by(&ByExchanges(&kept)).await?;
                (Carrier::Exact { exact: Box::new(exact), kept, open: 0 }, leave)
            }
        };
        let granted = carrier.granted();
        let qos_max = granted.qos_max.and_then(Qos::from_bits).unwrap_or(Qos::ExactlyOnce);
        if qos_max == Qos::AtMostOnce {
            let words = "the remote takes only QoS 0, which it never confirms".to_owned();
            return Err(LinkError::Misconfigured(words));
        }
        Ok(MqttSinkConnection {
            packet_max: self.settings.config.packet_max(granted.packet_max),
            qos_max: self.settings.config.qos.min(qos_max).max(Qos::AtLeastOnce),
            stamped: self.settings.config.version == Version::V5,
            site: Arc::clone(&self.site),
            leaving: None,
            carrier,
            leave,
        })
    }
}

impl SinkConnection for MqttSinkConnection {
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError> {
        if self.leaving.is_some() {
            return Ok(Sent::Full(Box::new(record)));
        }
        if let Some(reason) = unfit(&record.envelope) {
            return Ok(Sent::Refused(reason));
        }
        let publish = Publish::of(&record, self.stamped.then_some(&*self.site), self.qos_max);
        if let Some(reason) = too_large(self.size(&publish), self.packet_max) {
            return Ok(Sent::Refused(reason));
        }
        match &mut self.carrier {
            Carrier::Crate { live, pending } => match live.client.publish(record.place, publish) {
                Asked::Taken(answer) => {
                    pending.push(answer);
                    Ok(Sent::Queued)
                }
                Asked::QueueFull => Ok(Sent::Full(Box::new(record))),
                Asked::Invalid(reason) => Ok(Sent::Refused(reason)),
                // The reason is known to the poll task: the next `answer` tells it.
                Asked::Gone => Ok(Sent::Full(Box::new(record))),
            },
            Carrier::Exact { exact, open, .. } => {
                let sent = exact.send(record, &publish);
                *open += usize::from(matches!(sent, Sent::Queued));
                Ok(sent)
            }
        }
    }

    async fn answer(&mut self) -> Result<Answer, LinkError> {
        loop {
            if let Some(words) = self.leaving.take_if(|_| self.carrier.is_idle()) {
                return Err(LinkError::Transient(words));
            }
            let Self { carrier, leave, leaving, .. } = self;
            tokio::select! {
                biased;
                answer = carrier.answer() => return answer,
                words = leave.due() => *leaving = Some(words),
            }
        }
    }

    fn window_max(&self) -> Option<usize> {
        let granted = usize::from(self.carrier.granted().receive_max.unwrap_or(IN_FLIGHT_MAX).min(IN_FLIGHT_MAX));
        match &self.carrier {
            Carrier::Crate { .. } => Some(granted),
            Carrier::Exact { .. } => Some(granted.min(exact::WINDOW)),
        }
    }

    fn has_taken(&self, place: Place) -> bool {
        match &self.carrier {
            Carrier::Crate { .. } => false,
            Carrier::Exact { kept, .. } => kept.exchanges().is_taken(place),
        }
    }

    fn confirmed_below(&self, _buffer: &str) -> Vec<Confirmed> {
        match &self.carrier {
            Carrier::Crate { .. } => Vec::new(),
            Carrier::Exact { kept, .. } => kept.exchanges().confirmed(),
        }
    }

    async fn close(self) {
        match self.carrier {
            Carrier::Crate { live, .. } => live.close().await,
            Carrier::Exact { exact, .. } => exact.close().await,
        }
    }
}

impl Carrier {
    const fn granted(&self) -> Granted {
        match self {
            Self::Crate { live, .. } => live.granted,
            Self::Exact { exact, .. } => exact.granted,
        }
    }

    /// Whether no answer is to come.
    fn is_idle(&self) -> bool {
        match self {
            Self::Crate { pending, .. } => pending.is_empty(),
            Self::Exact { open, .. } => *open == 0,
        }
    }

    /// The next answer. Cancel safe.
    async fn answer(&mut self) -> Result<Answer, LinkError> {
        match self {
            Self::Crate { live, pending } => loop {
                tokio::select! {
                    biased;
                    Some(answer) = pending.next() => {
                        // Without an answer the connection is over; its end is reported by the poll task.
                        if let Some(answer) = answer {
                            return Ok(answer);
                        }
                    }
                    error = live.polling.ended() => return Err(error),
                    () = live.line.moved() => return Ok(Answer::Alive),
                }
            },
            Self::Exact { exact, open, .. } => loop {
                if let Some(answer) = exact.answered() {
                    *open = open.saturating_sub(usize::from(answer != Answer::Alive));
                    return Ok(answer);
                }
                exact.step().await?;
            },
        }
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
        if estimate <= self.packet_max {
            return estimate;
        }
        match &self.carrier {
            Carrier::Crate { live, .. } => live.client.size(publish),
            Carrier::Exact { exact, .. } => exact.size(publish),
        }
    }
}

impl Config {
    /// Whether such a remote can be sent a record, as far as this side knows: the remote may set lower limits when it is connected to.
    ///
    /// # Errors
    /// It can never be: the reason of its dead letter.
    pub fn judge(&self, record: &Outgoing, site: &str) -> Result<(), String> {
        if let Some(reason) = unfit(&record.envelope) {
            return Err(reason);
        }
        let stamped_by = (self.version == Version::V5).then_some(site);
        let publish = Publish::of(record, stamped_by, self.qos);
        let bytes = match (self.qos, self.version) {
            (Qos::ExactlyOnce, version) => exact::size(&publish, packets::version(version)),
            (Qos::AtMostOnce | Qos::AtLeastOnce, Version::V4) => v4::size(&publish),
            (Qos::AtMostOnce | Qos::AtLeastOnce, Version::V5) => v5::size(&publish),
        };
        too_large(bytes, self.packet_max(None)).map_or(Ok(()), Err)
    }
}

/// What of a record MQTT has no form for: the remote would end the connection for it.
fn unfit(envelope: &Envelope) -> Option<String> {
    if let Err(error) = TopicName::new(&envelope.destination) {
        return Some(format!("`{}` is no topic: {error}", envelope.destination));
    }
    let (name, unfit) = envelope.message.properties.unfit()?;
    Some(format!("`{}` is {unfit}", Shown(name)))
}

fn too_large(bytes: u64, most: u64) -> Option<String> {
    (bytes > most).then(|| format!("too large: a packet of {bytes} bytes, and at most {most} are taken"))
}
