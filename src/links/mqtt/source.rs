//! Remote MQTT broker → hub: subscribes with a session that the remote keeps, acknowledges in order what is durable here.
//!
//! A remote that kept the session may send all that it owes before it answers our SUBSCRIBE, beyond our Receive Maximum too
//! (Mosquitto 2.0.11 does, tens of thousands of messages). So the answer is awaited beside what comes, never before it.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Config;
use super::client::{Ack, Asked, Direction, Inbound, Live, Settings, Subscribed};
use super::dial::Leave;
use crate::links::{Identity, LinkError, Received, Source, SourceConnection};
use crate::message::Qos;
use crate::topic::TopicName;

/// Messages of one batch for the runner.
const BATCH_MAX: usize = 256;

/// Messages taken before the SUBACK. A remote that sends more is plainly serving the session it kept: the link is online, and
/// the SUBACK is looked at when it comes.
const EARLY_MAX: usize = 256;

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
    leave: Leave,
    acks: Acks,
    /// In order, not yet taken by the client.
    due: VecDeque<Ack>,
    /// What came before the SUBACK.
    early: VecDeque<Inbound>,
    /// While the SUBACK is still to come.
    subscribing: Option<Subscribing>,
    /// Why the connection ended, while what needs no acknowledgement is still handed on.
    over: Option<LinkError>,
    unreadable: u64,
}

/// A SUBSCRIBE that is on its way.
struct Subscribing {
    client_id: String,
    filters: Vec<String>,
    answers: BoxFuture<'static, Result<Vec<Subscribed>, String>>,
}

impl fmt::Debug for Subscribing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribing").field("filters", &self.filters).finish_non_exhaustive()
    }
}

impl Subscribing {
    /// Ends with the SUBACK. Cancel safe; not to be called again after it has answered.
    async fn answered(&mut self) -> Result<(), LinkError> {
        let answers = self.answers.as_mut().await.map_err(LinkError::Transient)?;
        for (filter, answer) in self.filters.iter().zip(answers) {
            match answer {
                Ok(Qos::AtMostOnce) => {
                    let words = "the remote grants only QoS 0: messages are lost while the link is down";
                    tracing::warn!(client_id = %self.client_id, %filter, "{words}");
                }
                Ok(Qos::AtLeastOnce | Qos::ExactlyOnce) => {}
                Err(why) => {
                    let words = format!("the remote refuses the subscription to `{filter}`: {why}");
                    return Err(LinkError::Misconfigured(words));
                }
            }
        }
        Ok(())
    }
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
        let (live, leave) = self.settings.connect().await?;
        let mut subscribing = self.subscribe(&live);
        let mut connection = MqttSourceConnection {
            live,
            leave,
            acks: Acks::default(),
            due: VecDeque::new(),
            early: VecDeque::new(),
            subscribing: None,
            over: None,
            unreadable: 0,
        };
        while connection.early.len() < EARLY_MAX {
            tokio::select! {
                biased;
                error = connection.live.polling.ended() => return Err(error),
                answered = subscribing.answered() => return answered.map(|()| connection),
                Some(message) = connection.live.inbound.recv() => connection.early.push_back(message),
            }
        }
        connection.subscribing = Some(subscribing);
        Ok(connection)
    }
}

impl MqttSource {
    fn subscribe(&self, live: &Live) -> Subscribing {
        let qos = self.settings.config.qos.max(Qos::AtLeastOnce);
        let (client, filters) = (live.client.clone(), self.filters.clone());
        Subscribing {
            client_id: self.settings.client_id.clone(),
            filters: self.filters.clone(),
            answers: Box::pin(async move { client.subscribe(&filters, qos).await }),
        }
    }
}

impl SourceConnection for MqttSourceConnection {
    type Token = MqttToken;

    async fn receive(&mut self) -> Result<Vec<Received<MqttToken>>, LinkError> {
        loop {
            if let Some(error) = self.over.take() {
                return Err(error);
            }
            self.flush();
            let mut next = self.early.pop_front();
            if next.is_none() {
                let Self { live: Live { inbound, polling, .. }, leave, .. } = self;
                next = tokio::select! {
                    biased;
                    error = polling.ended() => return self.last(error),
                    answered = answered(&mut self.subscribing) => {
                        self.subscribing = None;
                        answered?;
                        continue;
                    }
                    words = leave.due() => return self.last(LinkError::Transient(words)),
                    first = inbound.recv() => first,
                };
            }
            let mut batch = Vec::new();
            while let Some(message) = next {
                self.take(message, &mut batch)?;
                next = if batch.len() < BATCH_MAX { self.next_here() } else { None };
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn settled(&mut self, token: MqttToken) -> Result<(), LinkError> {
        self.acks.settled(&token, &mut self.due);
        self.flush();
        Ok(())
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        if self.due.is_empty() {
            // The runner does not receive meanwhile, so the end of the connection shows here.
            return Err(self.live.polling.ended().await);
        }
        tokio::time::sleep(ACK_RETRY).await;
        self.flush();
        Ok(())
    }

    fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    async fn close(mut self) {
        // What finds no room is sent again by the remote.
        self.flush();
        self.live.close().await;
    }
}

/// The SUBACK, if one is still to come; else never.
async fn answered(subscribing: &mut Option<Subscribing>) -> Result<(), LinkError> {
    match subscribing {
        Some(subscribing) => subscribing.answered().await,
        None => std::future::pending().await,
    }
}

impl MqttSourceConnection {
    /// A message that is here already.
    fn next_here(&mut self) -> Option<Inbound> {
        self.early.pop_front().or_else(|| self.live.inbound.try_recv().ok())
    }

    fn take(&mut self, message: Inbound, batch: &mut Vec<Received<MqttToken>>) -> Result<(), LinkError> {
        let (once, again) = (message.ack.is_none(), message.again);
        let mut message = message;
        let token = self.acks.received(message.ack.take());
        let topic = std::str::from_utf8(&message.topic).ok().and_then(|topic| TopicName::new(topic).ok());
        let Some(topic) = topic else {
            tracing::warn!(topic = ?message.topic, "a message with an impossible topic is acknowledged and left out");
            self.unreadable += 1;
            return self.settled(token);
        };
        batch.push(Received { channel: None, publication: message.publication(topic), token, again, once });
        Ok(())
    }

    /// The connection is over. What the remote will send again is left to it, so that it does not come twice; what it will
    /// not (QoS 0) is handed on.
    fn last(&mut self, error: LinkError) -> Result<Vec<Received<MqttToken>>, LinkError> {
        let mut batch = Vec::new();
        while let Some(message) = self.next_here() {
            if message.ack.is_none() {
                self.take(message, &mut batch)?;
            }
        }
        if batch.is_empty() {
            return Err(error);
        }
        self.over = Some(error);
        Ok(batch)
    }

    /// Hands acknowledgements to the client as far as it takes them. That the connection is over is told by `receive` and
    /// `upkeep`, which know why.
    fn flush(&mut self) {
        while let Some(ack) = self.due.pop_front() {
            match self.live.client.acknowledge(ack) {
                Asked::Taken(None) => {}
                Asked::Taken(Some(back)) => {
                    self.due.push_front(back);
                    return;
                }
                Asked::QueueFull | Asked::Gone | Asked::Invalid(_) => self.due.clear(),
            }
        }
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
