//! Remote MQTT broker → hub: subscribes with a session that the remote keeps, acknowledges in order what is durable here. With QoS 2 it knows
//! what comes again ([`exact_source`](super::exact_source)).
//!
//! A remote that kept the session may send all that it owes before it answers our SUBSCRIBE, beyond our Receive Maximum too
//! (Mosquitto 2.0.11 does, tens of thousands of messages). So the answer is awaited beside what comes, never before it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Config;
use super::client::{Ack, Asked, Direction, Inbound, Live, Settings, Subscribed};
use super::dial::Leave;
use super::exact_source::{Arrived, Book, ByArrivals, ExactSource, Owed};
use crate::hub::{Hub, Publication};
use crate::links::{Identity, LinkError, Received, Source, SourceConnection};
use crate::message::Qos;
use crate::router::LinkId;
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
    /// Of a link with QoS 2.
    book: Option<Book>,
}

/// A subscribing connection.
#[derive(Debug)]
pub struct MqttSourceConnection(Carrier);

/// What carries it.
#[derive(Debug)]
enum Carrier {
    Crate(Box<CrateConnection>),
    Exact(Box<ExactConnection>),
}

/// By wire's packets, where QoS 2 is asked for.
#[derive(Debug)]
struct ExactConnection {
    source: ExactSource,
    leave: Leave,
    acks: Acks<Owed>,
    client_id: String,
    filters: Vec<String>,
    unreadable: u64,
}

/// By the crate.
#[derive(Debug)]
struct CrateConnection {
    live: Live,
    leave: Leave,
    acks: Acks<Ack>,
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
        judge(&self.client_id, &self.filters, answers)
    }
}

/// What a SUBACK means.
fn judge(client_id: &str, filters: &[String], answers: Vec<Subscribed>) -> Result<(), LinkError> {
    for (filter, answer) in filters.iter().zip(answers) {
        match answer {
            Ok(Qos::AtMostOnce) => {
                let words = "the remote grants only QoS 0: messages are lost while the link is down";
                tracing::warn!(%client_id, %filter, "{words}");
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

/// Identifies a received message of one connection.
#[derive(Debug)]
pub struct MqttToken(u64);

impl MqttSource {
    /// `both`: the link has a sink half too, so that the client id needs its `-in` (R25).
    #[must_use]
    pub fn new(config: &Config, filters: Vec<String>, identity: &Identity, both: bool) -> Self {
        let is_exact = config.qos == Qos::ExactlyOnce;
        let path = config.arrivals.as_deref().filter(|_| is_exact);
        let book = path.map(|path| Book::new(path, &identity.site));
        Self { settings: Settings::new(config, identity, Direction::In, both), filters, book }
    }

    /// Of a link that was called `old` before: what was under way to it is its own now (R34).
    #[must_use]
    pub fn taking_over(self, old: Option<&LinkId>) -> Self {
        if let Some((book, old)) = self.book.as_ref().zip(old) {
            book.take_over(old);
        }
        self
    }

    /// What it brings is offered there (R25): see [`exact_source`](super::exact_source).
    #[must_use]
    pub fn into_hub(self, hub: &Arc<Hub>) -> Self {
        Self { book: self.book.map(|book| book.offered_to(hub)), ..self }
    }
}

impl Source for MqttSource {
    type Connection = MqttSourceConnection;

    async fn connect(&mut self) -> Result<Self::Connection, LinkError> {
        let carrier = match self.book.clone() {
            Some(book) => Carrier::Exact(Box::new(self.connect_exactly(&book).await?)),
            None => Carrier::Crate(Box::new(self.connect_by_crate().await?)),
        };
        Ok(MqttSourceConnection(carrier))
    }
}

impl MqttSource {
    async fn connect_exactly(&mut self, book: &Book) -> Result<ExactConnection, LinkError> {
        let (source, leave) = self.settings.connect_by(&ByArrivals(book, &self.filters)).await?;
        let mut connection = ExactConnection {
            source,
            leave,
            acks: Acks::default(),
            client_id: self.settings.client_id.clone(),
            filters: self.filters.clone(),
            unreadable: 0,
        };
        while !connection.has_subscribed()? && connection.source.waiting() < EARLY_MAX {
            connection.source.step().await?;
        }
        Ok(connection)
    }

    async fn connect_by_crate(&mut self) -> Result<CrateConnection, LinkError> {
        let (live, leave) = self.settings.connect().await?;
        let mut subscribing = self.subscribe(&live);
        let mut connection = CrateConnection {
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
        match &mut self.0 {
            Carrier::Crate(connection) => connection.receive().await,
            Carrier::Exact(connection) => connection.receive().await,
        }
    }

    fn settled(&mut self, token: MqttToken) -> Result<(), LinkError> {
        match &mut self.0 {
            Carrier::Crate(connection) => connection.settled(&token),
            Carrier::Exact(connection) => connection.settled(&token),
        }
        Ok(())
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        match &mut self.0 {
            Carrier::Crate(connection) => connection.upkeep().await,
            Carrier::Exact(connection) => connection.upkeep().await,
        }
    }

    fn take_unreadable(&mut self) -> u64 {
        let unreadable = match &mut self.0 {
            Carrier::Crate(connection) => &mut connection.unreadable,
            Carrier::Exact(connection) => &mut connection.unreadable,
        };
        std::mem::take(unreadable)
    }

    async fn close(self) {
        match self.0 {
            Carrier::Crate(mut connection) => {
                // What finds no room is sent again by the remote.
                connection.flush();
                connection.live.close().await;
            }
            Carrier::Exact(connection) => connection.source.close().await,
        }
    }
}

impl ExactConnection {
    /// Whether the SUBACK has come.
    fn has_subscribed(&mut self) -> Result<bool, LinkError> {
        let Some(answers) = self.source.subscribed.take() else { return Ok(false) };
        judge(&self.client_id, &self.filters, answers)?;
        Ok(true)
    }

    async fn receive(&mut self) -> Result<Vec<Received<MqttToken>>, LinkError> {
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH_MAX
                && let Some(arrived) = self.source.next_here()
            {
                batch.extend(self.take(arrived));
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
            let Self { source, leave, .. } = self;
            tokio::select! {
                biased;
                words = leave.due() => return Err(LinkError::Transient(words)),
                stepped = source.step() => stepped?,
            }
            self.has_subscribed()?;
        }
    }

    fn take(&mut self, arrived: Arrived) -> Option<Received<MqttToken>> {
        let Arrived { publish, id, again, owed } = arrived;
        let once = owed == Owed::Nothing;
        let token = self.acks.received(Some(owed));
        let Ok(topic) = TopicName::new(publish.topic.as_str()) else {
            tracing::warn!(topic = ?publish.topic, "a message with an impossible topic is acknowledged and left out");
            self.unreadable += 1;
            self.settled(&token);
            return None;
        };
        let mut properties = publish.properties.application;
        // Copies: a slice would keep all that came with it in memory.
        properties.correlation_data = properties.correlation_data.map(|data| Bytes::copy_from_slice(&data));
        let publication = Publication {
            topic,
            payload: Bytes::copy_from_slice(&publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            expiry_s: publish.properties.expiry_s,
            time_ms: None,
            properties,
            client_id: None,
            user: None,
            packet_id: None,
            id,
        };
        Some(Received { channel: None, publication, token, again, once })
    }

    fn settled(&mut self, token: &MqttToken) {
        let mut due = VecDeque::new();
        self.acks.settled(token, &mut due);
        due.into_iter().for_each(|owed| self.source.acknowledge(owed));
    }

    async fn upkeep(&mut self) -> Result<(), LinkError> {
        self.source.step().await
    }
}

impl CrateConnection {
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
                self.take(message, &mut batch);
                next = if batch.len() < BATCH_MAX { self.next_here() } else { None };
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn settled(&mut self, token: &MqttToken) {
        self.acks.settled(token, &mut self.due);
        self.flush();
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
}

/// The SUBACK, if one is still to come; else never.
async fn answered(subscribing: &mut Option<Subscribing>) -> Result<(), LinkError> {
    match subscribing {
        Some(subscribing) => subscribing.answered().await,
        None => std::future::pending().await,
    }
}

impl CrateConnection {
    /// A message that is here already.
    fn next_here(&mut self) -> Option<Inbound> {
        self.early.pop_front().or_else(|| self.live.inbound.try_recv().ok())
    }

    fn take(&mut self, message: Inbound, batch: &mut Vec<Received<MqttToken>>) {
        let (once, again) = (message.ack.is_none(), message.again);
        let mut message = message;
        let token = self.acks.received(message.ack.take());
        let topic = std::str::from_utf8(&message.topic).ok().and_then(|topic| TopicName::new(topic).ok());
        let Some(topic) = topic else {
            tracing::warn!(topic = ?message.topic, "a message with an impossible topic is acknowledged and left out");
            self.unreadable += 1;
            self.settled(&token);
            return;
        };
        batch.push(Received { channel: None, publication: message.publication(topic), token, again, once });
    }

    /// The connection is over. What the remote will send again is left to it, so that it does not come twice; what it will
    /// not (QoS 0) is handed on.
    fn last(&mut self, error: LinkError) -> Result<Vec<Received<MqttToken>>, LinkError> {
        let mut batch = Vec::new();
        while let Some(message) = self.next_here() {
            if message.ack.is_none() {
                self.take(message, &mut batch);
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
#[derive(Debug)]
struct Acks<A> {
    first: u64,
    waiting: VecDeque<Waiting<A>>,
}

#[derive(Debug)]
struct Waiting<A> {
    ack: Option<A>,
    settled: bool,
}

impl<A> Default for Acks<A> {
    fn default() -> Self {
        Self { first: 0, waiting: VecDeque::new() }
    }
}

impl<A> Acks<A> {
    fn received(&mut self, ack: Option<A>) -> MqttToken {
        let number = self.first + u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.waiting.push_back(Waiting { ack, settled: false });
        MqttToken(number)
    }

    fn settled(&mut self, token: &MqttToken, due: &mut VecDeque<A>) {
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
