//! MQTT 5 by `rumqttc-v5-next`, in the neutral words of `client`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rumqttc_v5::{
    AckMode, AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, LastWill,
    ManualAck, MqttOptions, MqttState, PersistedAckMode, PersistedSession, PubAckReason, PubRecReason,
    PublishNoticeError, PublishOptions, PublishProperties, PublishResult, QoS, RetainForwardRule, SessionStore,
    SessionStoreKey, StateError, SubscribeFilterInput, SubscribeReasonCode, TopicAliasPolicy,
};
use tokio::sync::{mpsc, oneshot};

use super::client::{
    Ack, Asked, Attempt, Direction, Granted, IN_FLIGHT_MAX, Inbound, OFFLINE, Pending, Publish, RECEIVE_MAX,
    REQUEST_BATCH, SESSION_EXPIRY_S, Settings, Subscribed, hand_over,
};
use super::exact::ALIASES_MAX;
use crate::buffer::Place;
use crate::links::tls;
use crate::links::{Answer, LinkError};
use crate::message::{Properties, Qos, headers};

/// A subscribing client sends only SUBSCRIBE: its table of own packet ids may be small.
const SUBSCRIBER_IN_FLIGHT_MAX: u16 = 16;

/// The runner's timeout decides, not the crate's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3600);

/// A client and its poll loop, not yet connected.
pub(super) fn client(settings: &Settings, attempt: Attempt) -> (AsyncClient, EventLoop) {
    let config = &settings.config;
    let mut options = MqttOptions::new(settings.client_id.clone(), attempt.way.address());
    options.set_keep_alive(config.keep_alive_s);
    options.set_connect_timeout(CONNECT_TIMEOUT);
    options.set_max_request_batch(REQUEST_BATCH);
    options.set_max_packet_size(Some(u32::try_from(config.max_packet_size.0).unwrap_or(u32::MAX)));
    let dialling = attempt.dialling();
    options.set_socket_connector(move |_address, _options| dialling());
    if let Some((user, password)) = attempt.login {
        options.set_credentials(user, password);
    }
    if let Some(topic) = &settings.state_topic {
        options.set_last_will(LastWill::new(topic.clone(), OFFLINE, QoS::AtLeastOnce, true, None));
    }
    match settings.direction {
        Direction::Out => {
            options.set_clean_start(true);
            // Long topics cost their length once.
            options.set_topic_alias_policy(TopicAliasPolicy::Lru);
            options.set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX);
        }
        Direction::In => {
            options.set_clean_start(false);
            options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
            options.set_receive_maximum(Some(RECEIVE_MAX));
            options.set_ack_mode(AckMode::Manual);
            options.set_outgoing_inflight_upper_limit(SUBSCRIBER_IN_FLIGHT_MAX);
            let session: Arc<dyn SessionStore> = Arc::<KeptSession>::clone(&settings.session);
            options.set_session_store_arc(session);
        }
    }
    AsyncClient::builder(options).capacity(usize::from(IN_FLIGHT_MAX)).build()
}

/// Drives one connection to its end. Never connects a second time: that is the runner's business.
pub(super) async fn poll(
    mut eventloop: EventLoop,
    up: oneshot::Sender<Granted>,
    inbound: mpsc::Sender<Inbound>,
) -> LinkError {
    let mut up = Some(up);
    loop {
        match eventloop.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(connack))) => {
                bound_aliases(&mut eventloop.state);
                let properties = connack.properties.as_ref();
                let granted = Granted {
                    receive_max: properties.and_then(|granted| granted.receive_max),
                    packet_max: properties.and_then(|granted| granted.max_packet_size),
                    qos_max: properties.and_then(|granted| granted.max_qos),
                };
                if let Some(Err(_gone)) = up.take().map(|up| up.send(granted)) {
                    return LinkError::Transient("given up".to_owned());
                }
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                if let Err(error) = hand_over(&inbound, received(publish), eventloop.options.keep_alive()).await {
                    return error;
                }
            }
            Ok(_) => {}
            Err(error) => return explain(&error),
        }
    }
}

/// Some remotes take 65,535 topic aliases, and each keeps a topic in memory.
fn bound_aliases(state: &mut MqttState) {
    state.set_broker_topic_alias_max(state.broker_topic_alias_max().min(ALIASES_MAX));
}

/// See [`super::client::Client::publish`].
pub(super) fn publish(client: &AsyncClient, place: Place, publish: Publish) -> Asked<Pending> {
    let (topic, payload, qos, retain) = (publish.topic.clone(), publish.payload.clone(), publish.qos, publish.retain);
    let options = PublishOptions::new(wire_qos(qos)).retain(retain).properties(properties(publish));
    match client.try_publish_tracked(topic, payload, options) {
        Ok(notice) => Asked::Taken(Box::pin(async move { judge(place, notice.wait_async().await) })),
        Err(ClientError::RequestChannelFull(_)) => Asked::QueueFull,
        Err(ClientError::InvalidRequest(_)) => Asked::Invalid("no topic that MQTT can carry".to_owned()),
        Err(_) => Asked::Gone,
    }
}

/// See [`super::client::Client::announce`].
pub(super) fn announce(client: &AsyncClient, topic: &str, state: &'static str) {
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
    if let Err(error) = client.try_publish_tracked(topic, state, options) {
        tracing::warn!(topic, state, %error, "the link's state could not be announced");
    }
}

/// Encoded size with a packet id.
pub(super) fn size(publish: &Publish) -> u64 {
    let properties = Some(properties(publish.clone()));
    let mut packet =
        rumqttc_v5::Publish::new(publish.topic.clone(), wire_qos(publish.qos), publish.payload.clone(), properties);
    packet.pkid = 1;
    u64::try_from(packet.size()).unwrap_or(u64::MAX)
}

/// R21: Retain Handling 1 and Retain As Published, so that a reconnect does not send everything again and a retained
/// message stays one.
#[expect(clippy::wildcard_enum_match_arm, reason = "the crate's own list, which grows: all others are refusals")]
pub(super) async fn subscribe(client: &AsyncClient, filters: &[String], qos: Qos) -> Result<Vec<Subscribed>, String> {
    let wanted = filters.iter().map(|filter| {
        SubscribeFilterInput::new(filter.clone(), wire_qos(qos))
            .preserve_retain(true)
            .retain_forward_rule(RetainForwardRule::OnNewSubscribe)
    });
    let notice = client.subscribe_many_tracked(wanted).await.map_err(|error| error.to_string())?;
    let suback = notice.wait_async().await.map_err(|error| error.to_string())?;
    let why = suback.properties.and_then(|properties| properties.reason_string);
    let answers = suback.return_codes.iter().map(|code| match code {
        SubscribeReasonCode::Success(granted) => Ok(our_qos(*granted)),
        refused => Err(why.clone().unwrap_or_else(|| format!("{refused:?}"))),
    });
    Ok(answers.collect())
}

/// What the remote's answer to a publish means. `0x80` and `0x83` name no reason, so they may pass: retried. A quota
/// passes. The others are about this message or our rights.
fn judge(place: Place, result: Result<PublishResult, PublishNoticeError>) -> Option<Answer> {
    let refused = |code: &dyn std::fmt::Debug, why: Option<String>| {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        Some(Answer::Refused(place, format!("{code:?}{why}")))
    };
    let retry = |code: &dyn std::fmt::Debug, why: Option<String>| {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        Some(Answer::Retry(place, format!("the remote answers {code:?}{why}")))
    };
    match result {
        Ok(PublishResult::Qos1(ack)) => {
            let why = ack.properties.and_then(|properties| properties.reason_string);
            match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Some(Answer::Confirmed(place)),
                code @ (PubAckReason::NotAuthorized
                | PubAckReason::TopicNameInvalid
                | PubAckReason::PayloadFormatInvalid) => refused(&code, why),
                code @ (PubAckReason::UnspecifiedError
                | PubAckReason::ImplementationSpecificError
                | PubAckReason::PacketIdentifierInUse
                | PubAckReason::QuotaExceeded) => retry(&code, why),
            }
        }
        Ok(PublishResult::Qos2PubRecRejected(rec)) => {
            let why = rec.properties.and_then(|properties| properties.reason_string);
            match rec.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => Some(Answer::Confirmed(place)),
                code @ (PubRecReason::NotAuthorized
                | PubRecReason::TopicNameInvalid
                | PubRecReason::PayloadFormatInvalid) => refused(&code, why),
                code @ (PubRecReason::UnspecifiedError
                | PubRecReason::ImplementationSpecificError
                | PubRecReason::PacketIdentifierInUse
                | PubRecReason::QuotaExceeded) => retry(&code, why),
            }
        }
        Ok(PublishResult::Qos2Completed(_) | PublishResult::Qos0Flushed) => Some(Answer::Confirmed(place)),
        Err(PublishNoticeError::RetainNotSupported) => {
            Some(Answer::Refused(place, "the remote keeps no retained messages".to_owned()))
        }
        Err(_connection_over) => None,
    }
}

/// The properties of a PUBLISH: the message's own without stamps of earlier hops, and our stamps behind them.
pub(super) fn properties(publish: Publish) -> PublishProperties {
    let own = headers::unstamped(&publish.properties).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let stamps = publish.stamps.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    PublishProperties {
        payload_format_indicator: publish.properties.payload_is_utf8.then_some(1),
        message_expiry_interval: publish.expiry_s,
        topic_alias: None,
        response_topic: publish.properties.response_topic.as_deref().map(ToOwned::to_owned),
        correlation_data: publish.properties.correlation_data.clone(),
        user_properties: own.chain(stamps).collect(),
        subscription_identifiers: Vec::new(),
        content_type: publish.properties.content_type.as_deref().map(ToOwned::to_owned),
    }
}

pub(super) fn received(publish: rumqttc_v5::Publish) -> Inbound {
    let ack = match publish.qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce => Some(ManualAck::PubAck(rumqttc_v5::PubAck::new(publish.pkid, None))),
        QoS::ExactlyOnce => Some(ManualAck::PubRec(rumqttc_v5::PubRec::new(publish.pkid, None))),
    };
    let properties = publish.properties.unwrap_or_default();
    Inbound {
        topic: publish.topic,
        payload: publish.payload,
        qos: our_qos(publish.qos),
        retain: publish.retain,
        again: publish.dup,
        expiry_s: properties.message_expiry_interval,
        ack: ack.map(Ack::V5),
        properties: Properties {
            payload_is_utf8: properties.payload_format_indicator == Some(1),
            content_type: properties.content_type.map(Into::into),
            response_topic: properties.response_topic.map(Into::into),
            correlation_data: properties.correlation_data,
            user: properties.user_properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        },
    }
}

/// The end of a connection in words a person can act on, and whether a retry can help.
#[expect(clippy::wildcard_enum_match_arm, reason = "the crate's own list, which grows: all others are transient")]
fn explain(error: &ConnectionError) -> LinkError {
    match error {
        ConnectionError::ConnectionRefused(code) => refusal(*code),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            use rumqttc_v5::DisconnectReasonCode as Code;
            let why = reason_string.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let words = format!("the remote disconnected us: {reason_code:?}{why}");
            match reason_code {
                Code::NotAuthorized | Code::SessionTakenOver => LinkError::Misconfigured(words),
                _ => LinkError::Transient(words),
            }
        }
        error if tls::is_refusal(error) => LinkError::Misconfigured(error.to_string()),
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
            LinkError::Transient(error.to_string())
        }
        error => LinkError::Transient(error.to_string()),
    }
}

fn refusal(code: ConnectReturnCode) -> LinkError {
    use ConnectReturnCode as Code;
    let words = format!("the remote refuses the connection: {code:?}");
    match code {
        Code::Success
        | Code::ServiceUnavailable
        | Code::ServerUnavailable
        | Code::ServerBusy
        | Code::UnspecifiedError
        | Code::ImplementationSpecificError
        | Code::QuotaExceeded
        | Code::ConnectionRateExceeded => LinkError::Transient(words),
        Code::RefusedProtocolVersion
        | Code::BadClientId
        | Code::MalformedPacket
        | Code::ProtocolError
        | Code::UnsupportedProtocolVersion
        | Code::ClientIdentifierNotValid
        | Code::BadUserNamePassword
        | Code::NotAuthorized
        | Code::Banned
        | Code::BadAuthenticationMethod
        | Code::TopicNameInvalid
        | Code::PacketTooLarge
        | Code::PayloadFormatInvalid
        | Code::RetainNotSupported
        | Code::QoSNotSupported
        | Code::UseAnotherServer
        | Code::ServerMoved => LinkError::Misconfigured(words),
    }
}

pub(super) const fn wire_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

const fn our_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// What the crate must know of the subscribing session to go on with one that the remote kept.
///
/// Without any local state the crate either refuses a kept session, or (its permissive policy) accepts it and then
/// refuses our SUBSCRIBE, so that changed routes would never reach the remote. With this store it always finds a state:
/// empty after a start of the process, and within a process the inbound QoS 2 ids that are past PUBREC. Our own requests
/// are not kept: SUBSCRIBE is sent anew on each connection.
#[derive(Debug)]
pub(super) struct KeptSession {
    client_id: String,
    saved: Mutex<Option<PersistedSession>>,
}

type StoreAnswer<'a, T> =
    std::pin::Pin<Box<dyn Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>> + Send + 'a>>;

impl KeptSession {
    pub(super) fn new(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), saved: Mutex::new(None) }
    }

    fn empty(&self) -> PersistedSession {
        PersistedSession {
            format_version: 1,
            client_id: self.client_id.clone(),
            clean_start: false,
            session_expiry_interval: Some(SESSION_EXPIRY_S),
            outgoing_inflight_upper_limit: Some(SUBSCRIBER_IN_FLIGHT_MAX),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        }
    }
}

impl SessionStore for KeptSession {
    fn load<'a>(&'a self, _key: &'a SessionStoreKey) -> StoreAnswer<'a, Option<PersistedSession>> {
        let session = self.saved.lock().clone().unwrap_or_else(|| self.empty());
        Box::pin(std::future::ready(Ok(Some(session))))
    }

    fn save<'a>(&'a self, _key: &'a SessionStoreKey, session: &'a PersistedSession) -> StoreAnswer<'a, ()> {
        let kept = PersistedSession { incoming_qos2: session.incoming_qos2.clone(), ..self.empty() };
        *self.saved.lock() = Some(kept);
        Box::pin(std::future::ready(Ok(())))
    }

    fn clear<'a>(&'a self, _key: &'a SessionStoreKey) -> StoreAnswer<'a, ()> {
        *self.saved.lock() = None;
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_topics_are_held_for_a_remote_that_takes_many_aliases_r36() {
        for (remote, ours) in [(u16::MAX, ALIASES_MAX), (10, 10), (0, 0)] {
            let mut state = MqttState::builder(1).build();
            state.set_broker_topic_alias_max(remote);
            bound_aliases(&mut state);
            assert_eq!(state.broker_topic_alias_max(), ours);
        }
    }
}
