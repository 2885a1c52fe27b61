//! The outbound half: one connection, one channel, one exchange, and the queues that the link declares: from the first message on they take what is
//! `mandatory`.
//!
//! `send` starts a publish and polls it once, which takes its delivery tag and hands its frames to lapin; `answer` awaits the confirms
//! in the order of sending. A refusal that closes the channel names what it refuses, so the guilty record is found even with
//! many in flight (R16): the topic that may not be written, or the size that is too large.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Event};

use super::client::{self, Client};
use super::confirm::{Confirms, Outcome, Published, Returned, Verdict};
use super::mapping::{self, Mapping};
use super::{Config, Unroutable, topology};
use crate::links::{Answer, Identity, LinkError, Outgoing, Sent, Sink, SinkConnection};

/// Where the rate stops growing with the window (measured: STACK.md); some 1 MiB of small messages.
const WINDOW: usize = 1_024;

/// Publishes to the exchange of a RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitSink {
    config: Config,
    identity: Identity,
}

impl RabbitSink {
    /// For the exchange of `config`; connects only when asked.
    #[must_use]
    pub fn new(config: &Config, identity: &Identity) -> Self {
        Self { config: config.clone(), identity: identity.clone() }
    }
}

impl Sink for RabbitSink {
    type Connection = RabbitSinkConnection;

    fn window(&self) -> usize {
        WINDOW
    }

    async fn connect(&mut self) -> Result<RabbitSinkConnection, LinkError> {
        let exchange = ShortString::try_new(self.config.exchange.as_str())
            .map_err(|error| LinkError::Misconfigured(format!("the exchange's name is too long: {error}")))?;
        let client = client::connect(&self.config, &self.identity, "out").await?;
        let events = Box::pin(client.connection.events_listener());
        let channel = client.connection.create_channel().await.map_err(|error| client::classify(&error))?;
        topology::prepare_exchange(&channel, &self.config).await?;
        for queue in &self.config.queues {
            topology::prepare_queue(&channel, queue).await?;
        }
        let confirming = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirming.map_err(|error| client::classify(&error))?;
        let frame_max = client.connection.configuration().frame_max();
        let mapping = self.config.mapping(&self.identity.site, usize::try_from(frame_max).unwrap_or(usize::MAX));
        Ok(RabbitSinkConnection {
            exchange,
            mandatory: self.config.mandatory,
            unroutable: self.config.unroutable,
            mapping,
            confirms: Confirms::default(),
            events,
            over: None,
            channel,
            client,
        })
    }
}

/// A live connection with its channel in confirm mode.
pub struct RabbitSinkConnection {
    exchange: ShortString,
    mandatory: bool,
    unroutable: Unroutable,
    mapping: Mapping,
    confirms: Confirms,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// Why the connection ended, once it has.
    over: Option<LinkError>,
    channel: Channel,
    client: Client,
}

impl SinkConnection for RabbitSinkConnection {
    fn send(&mut self, record: Outgoing) -> Result<Sent, LinkError> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        let mapped = match mapping::outgoing(&record, &self.mapping) {
            Ok(mapped) => mapped,
            Err(reason) => return Ok(Sent::Refused(reason)),
        };
        let payload = record.envelope.message.payload;
        let published = Published {
            place: record.place,
            message_id: mapped.message_id,
            routing_key: mapped.routing_key.to_string(),
            payload_bytes: payload.len(),
        };
        let (channel, exchange) = (self.channel.clone(), self.exchange.clone());
        let options = BasicPublishOptions { mandatory: self.mandatory, immediate: false };
        let confirming = Box::pin(async move {
            let sent = channel.basic_publish(exchange, mapped.routing_key, options, &payload, mapped.properties).await;
            match sent {
                Ok(confirm) => outcome(confirm.await),
                Err(error) => Outcome::Lost(client::classify(&error)),
            }
        });
        self.confirms.push(published, confirming);
        Ok(Sent::Queued)
    }

    async fn answer(&mut self) -> Result<Answer, LinkError> {
        let line = self.client.line.clone();
        tokio::select! {
            biased;
            answer = poll_fn(|cx| self.poll_answer(cx)) => answer,
            () = line.moved() => Ok(Answer::Alive),
        }
    }

    async fn close(self) {
        self.client.close().await;
    }
}

impl RabbitSinkConnection {
    /// All that is known lives in `self`: a dropped `answer` loses nothing.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, LinkError>> {
        if let Some(error) = &self.over {
            return Poll::Ready(Err(error.clone()));
        }
        if let Poll::Ready(verdict) = self.confirms.poll_oldest(cx) {
            return Poll::Ready(self.answer_to(verdict));
        }
        while let Poll::Ready(event) = self.events.as_mut().poll_next(cx) {
            match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "rabbitmq blocks this connection");
                    return Poll::Ready(Ok(Answer::Blocked(true)));
                }
                Some(Event::ConnectionUnblocked) => return Poll::Ready(Ok(Answer::Blocked(false))),
                Some(Event::Error(error)) => return Poll::Ready(self.end(client::classify(&error))),
                Some(_other) => {}
                None => return Poll::Ready(self.end(LinkError::Transient("the connection has ended".to_owned()))),
            }
        }
        Poll::Pending
    }

    fn answer_to(&mut self, verdict: Verdict) -> Result<Answer, LinkError> {
        match verdict {
            Verdict::Confirmed(published) => Ok(Answer::Confirmed(published.place)),
            Verdict::Nacked(published) => {
                Ok(Answer::Retry(published.place, "the broker answered with a nack".to_owned()))
            }
            Verdict::Unroutable(published, words) => {
                let reason = format!(
                    "unroutable: {words}, exchange '{}', routing key '{}'",
                    self.exchange, published.routing_key
                );
                Ok(match self.unroutable {
                    Unroutable::DeadLetter => Answer::Refused(published.place, reason),
                    Unroutable::Retry => Answer::Retry(published.place, reason),
                })
            }
            Verdict::Lost(error) => self.end(error),
        }
    }

    /// The channel is over. Where the remote's words name one record as the reason, that record is refused first; the
    /// connection's end is told with the next answer.
    fn end(&mut self, error: LinkError) -> Result<Answer, LinkError> {
        let guilty = self.confirms.open().find(|published| is_named_in(published, &error)).map(|p| p.place);
        match (guilty, error) {
            (Some(place), LinkError::Misconfigured(words) | LinkError::Transient(words)) => {
                self.over = Some(LinkError::Transient(format!("closed over a refused message: {words}")));
                Ok(Answer::Refused(place, words))
            }
            (None, error) => {
                self.over = Some(error.clone());
                Err(error)
            }
        }
    }
}

/// Whether the broker closed the channel over this record: `403 ... access to topic 'KEY' in exchange ...`, or
/// `406 ... message size N is larger than ...`.
fn is_named_in(published: &Published, error: &LinkError) -> bool {
    let (LinkError::Misconfigured(words) | LinkError::Transient(words)) = error;
    if words.starts_with("406") {
        return words.contains(&format!("message size {} is larger", published.payload_bytes));
    }
    let Some((_, topic)) = words.split_once("access to topic '").filter(|_| words.starts_with("403")) else {
        return false;
    };
    match topic.split_once("' in exchange") {
        Some((topic, _)) => topic == published.routing_key,
        // AMQP's reply texts have at most 255 bytes: a long key is cut.
        None => published.routing_key.starts_with(topic.trim_end_matches("...")),
    }
}

fn outcome(confirmation: lapin::Result<Confirmation>) -> Outcome {
    match confirmation {
        Ok(Confirmation::Ack(returned)) => Outcome::Ack(returned.map(|message| returned_by(&message))),
        Ok(Confirmation::Nack(returned)) => Outcome::Nack(returned.map(|message| returned_by(&message))),
        Ok(Confirmation::NotRequested) => {
            Outcome::Lost(LinkError::Transient("the channel confirms nothing".to_owned()))
        }
        Err(error) => Outcome::Lost(client::classify(&error)),
    }
}

fn returned_by(message: &lapin::message::BasicReturnMessage) -> Returned {
    let message_id = message.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    Returned { message_id, words: format!("{} {}", message.reply_code, message.reply_text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Place;

    #[test]
    fn r16_the_record_that_closed_the_channel_is_known_by_the_remote_s_words() {
        let published = Published {
            place: Place::default(),
            message_id: "m".to_owned(),
            routing_key: "a.b".to_owned(),
            payload_bytes: 2_000,
        };
        for (words, guilty) in [
            (
                "403 ACCESS_REFUSED - access to topic 'a.b' in exchange 'amq.topic' in vhost '/' refused for user 'u'",
                true,
            ),
            (
                "403 ACCESS_REFUSED - access to topic 'a.bc' in exchange 'amq.topic' in vhost '/' refused for user 'u'",
                false,
            ),
            ("403 ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'", false),
            ("406 PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000", true),
            ("406 PRECONDITION_FAILED - message size 3000 is larger than configured max size 1000", false),
            ("403 ACCESS_REFUSED - access to topic 'a.", true),
            ("404 NOT_FOUND - no exchange 'x' in vhost '/'", false),
        ] {
            assert_eq!(is_named_in(&published, &LinkError::Transient(words.to_owned())), guilty, "{words}");
        }
    }
}
