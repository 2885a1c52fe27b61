//! Remote MQTT broker → hub: subscribes with a session that the remote keeps, acknowledges in order what is durable here.

use std::collections::VecDeque;
use std::time::Duration;

use super::Config;
use super::client::{Ack, Asked, Direction, Inbound, Live, Settings};
use crate::hub::Publication;
use crate::links::{Identity, LinkError, Received, Source, SourceConnection};
use crate::message::Qos;
use crate::topic::TopicName;

/// Messages of one batch for the runner.
const BATCH_MAX: usize = 256;

/// How soon acknowledgements that found the client's queue full are tried again.
const ACK_RETRY: Duration = Duration::from_millis(5);

/// Makes subscribing connections.
#[derive(Debug)]
pub struct MqttSource {
    settings: Settings,
    filters: Vec<String>,
}

/// A subscribing connection.
#[derive(Debug)]
pub struct MqttSourceConnection {
    live: Live,
    acks: Acks,
    /// In order, not yet taken by the client.
    due: VecDeque<Ack>,
}

/// Identifies a received message of one connection.
#[derive(Debug)]
pub struct MqttToken(u64);

impl MqttSource {
    /// `both`: the link has a sink half too, so that the client id needs its `-in` (R25).
    #[must_use]
    pub fn new(config: &Config, filters: Vec<String>, identity: &Identity, both: bool) -> Self {
        Self { settings: Settings::new(config, identity, Direction::In, both), filters }
    }
}

impl Source for MqttSource {
    type Connection = MqttSourceConnection;

    async fn connect(&mut self) -> Result<Self::Connection, LinkError> {
        let mut live = self.settings.connect().await?;
        let qos = self.settings.config.qos.max(Qos::AtLeastOnce);
        let client = live.client.clone();
        let answers = tokio::select! {
            biased;
            error = live.ended() => return Err(error),
            answers = client.subscribe(&self.filters, qos) => answers.map_err(LinkError::Transient)?,
        };
        for (filter, answer) in self.filters.iter().zip(answers) {
            match answer {
                Ok(Qos::AtMostOnce) => {
                    let words = "the remote grants only QoS 0: messages are lost while the link is down";
                    tracing::warn!(client_id = %self.settings.client_id, %filter, "{words}");
                }
                Ok(Qos::AtLeastOnce | Qos::ExactlyOnce) => {}
                Err(why) => {
                    let words = format!("the remote refuses the subscription to `{filter}`: {why}");
                    return Err(LinkError::Misconfigured(words));
                }
            }
        }
        Ok(MqttSourceConnection { live, acks: Acks::default(), due: VecDeque::new() })
    }
}

impl SourceConnection for MqttSourceConnection {
    type Token = MqttToken;

    async fn receive(&mut self) -> Result<Vec<Received<MqttToken>>, LinkError> {
        loop {
            self.flush()?;
            let Live { inbound, .. } = &mut self.live;
            let Some(first) = inbound.recv().await else { return Err(self.live.ended().await) };
            let mut batch = Vec::new();
            let mut next = Some(first);
            while let Some(message) = next {
                self.take(message, &mut batch)?;
                next = if batch.len() < BATCH_MAX { self.live.inbound.try_recv().ok() } else { None };
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn settled(&mut self, token: MqttToken) -> Result<(), LinkError> {
        self.acks.settled(&token, &mut self.due);
        self.flush()
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        if self.due.is_empty() {
            // The runner does not receive meanwhile, so the end of the connection shows here.
            return Err(self.live.ended().await);
        }
        tokio::time::sleep(ACK_RETRY).await;
        self.flush()
    }

    async fn close(mut self) {
        // What finds no room is sent again by the remote.
        let _flushed = self.flush().is_ok();
        self.live.close().await;
    }
}

impl MqttSourceConnection {
    fn take(&mut self, message: Inbound, batch: &mut Vec<Received<MqttToken>>) -> Result<(), LinkError> {
        let token = self.acks.received(message.ack);
        let topic = std::str::from_utf8(&message.topic).ok().and_then(|topic| TopicName::new(topic).ok());
        let Some(topic) = topic else {
            tracing::warn!(topic = ?message.topic, "a message with an impossible topic is acknowledged and left out");
            return self.settled(token);
        };
        batch.push(Received {
            channel: None,
            publication: Publication {
                topic,
                payload: message.payload,
                qos: message.qos,
                retain: message.retain,
                expiry_s: message.expiry_s,
                time_ms: None,
                properties: message.properties,
                client_id: None,
                user: None,
                packet_id: None,
            },
            token,
            again: message.again,
        });
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(ack) = self.due.pop_front() {
            match self.live.client.acknowledge(ack) {
                Asked::Taken(None) => {}
                Asked::Taken(Some(back)) => {
                    self.due.push_front(back);
                    break;
                }
                Asked::QueueFull | Asked::Gone | Asked::Invalid(_) => {
                    return Err(LinkError::Transient("the connection ended".to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// Acknowledgements leave in the order in which the messages came (MQTT-4.6.0-2), whatever the order of settling.
#[derive(Debug, Default)]
struct Acks {
    first: u64,
    waiting: VecDeque<Owed>,
}

#[derive(Debug)]
struct Owed {
    ack: Option<Ack>,
    settled: bool,
}

impl Acks {
    fn received(&mut self, ack: Option<Ack>) -> MqttToken {
        let number = self.first + u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.waiting.push_back(Owed { ack, settled: false });
        MqttToken(number)
    }

    fn settled(&mut self, token: &MqttToken, due: &mut VecDeque<Ack>) {
        let at = token.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(owed) = at.and_then(|at| self.waiting.get_mut(at)) {
            owed.settled = true;
        }
        while self.waiting.front().is_some_and(|front| front.settled) {
            self.first += 1;
            due.extend(self.waiting.pop_front().and_then(|front| front.ack));
        }
    }
}

#[cfg(test)]
mod acks {
    use super::*;

    fn ids(due: &VecDeque<Ack>) -> Vec<u16> {
        due.iter()
            .map(|ack| match ack {
                Ack::V5(rumqttc_v5::ManualAck::PubAck(ack)) => ack.pkid,
                Ack::V4(_) | Ack::V5(_) => panic!("{ack:?}"),
            })
            .collect()
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_arrival() {
        let (mut acks, mut due) = (Acks::default(), VecDeque::new());
        let ack = |id| Some(Ack::V5(rumqttc_v5::ManualAck::PubAck(rumqttc_v5::PubAck::new(id, None))));
        let tokens = [ack(1), None, ack(2), ack(3)].map(|ack| acks.received(ack));
        acks.settled(&tokens[3], &mut due);
        acks.settled(&tokens[0], &mut due);
        assert_eq!(ids(&due), [1]);
        acks.settled(&tokens[2], &mut due);
        assert_eq!(ids(&due), [1]);
        acks.settled(&tokens[1], &mut due);
        assert_eq!(ids(&due), [1, 2, 3]);
    }
}
