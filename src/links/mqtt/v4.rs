//! MQTT 3.1.1 by `rumqttc-v4-next`, in the neutral words of `client`. It carries no properties and no reasons: a remote's
//! refusal of a message cannot be seen (R16).

use std::time::Duration;

use rumqttc_v4::{
    AckMode, AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, LastWill,
    ManualAck, MqttOptions, NetworkOptions, PublishOptions, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::{mpsc, oneshot};

use super::client::{
    Ack, Asked, Attempt, Direction, Granted, IN_FLIGHT_MAX, Inbound, OFFLINE, Pending, Publish, REQUEST_BATCH,
    Settings, Subscribed, hand_over,
};
use crate::buffer::Place;
use crate::links::tls;
use crate::links::{Answer, LinkError};
use crate::message::{Properties, Qos};

/// The runner's timeout decides, not the crate's. Seconds.
const CONNECT_TIMEOUT_S: u64 = 3600;

/// A client and its poll loop, not yet connected.
pub(super) fn client(settings: &Settings, attempt: Attempt) -> (AsyncClient, EventLoop) {
    let config = &settings.config;
    let mut options = MqttOptions::new(settings.client_id.clone(), attempt.way.address());
    options.set_keep_alive(config.keep_alive_s);
    options.set_max_request_batch(REQUEST_BATCH);
    let packet_max = usize::try_from(config.max_packet_size.0).unwrap_or(usize::MAX);
    options.set_max_packet_size(packet_max, packet_max);
    options.set_inflight(IN_FLIGHT_MAX);
    let dialling = attempt.dialling();
    options.set_socket_connector(move |_address, _options| dialling());
    if let Some((user, password)) = attempt.login {
        options.set_credentials(user, password);
    }
    if let Some(topic) = &settings.state_topic {
        options.set_last_will(LastWill::new(topic.clone(), OFFLINE, QoS::AtLeastOnce, true));
    }
    match settings.direction {
        // An empty id cannot keep a session; ours never is: it is made of the site and the link.
        Direction::In if !settings.client_id.is_empty() => {
            options.set_clean_session(false);
            options.set_ack_mode(AckMode::Manual);
        }
        Direction::Out | Direction::In => {
            options.set_clean_session(true);
        }
    }
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(usize::from(IN_FLIGHT_MAX)).build();
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT_S);
    eventloop.set_network_options(network);
    (client, eventloop)
}

/// Drives one connection to its end. Never connects a second time: that is the runner's business.
pub(super) async fn poll(
    mut eventloop: EventLoop,
    up: oneshot::Sender<Granted>,
    inbound: mpsc::Sender<Inbound>,
) -> LinkError {
    let keep_alive: Duration = eventloop.mqtt_options.keep_alive();
    let mut up = Some(up);
    loop {
        match eventloop.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                if let Some(Err(_gone)) = up.take().map(|up| up.send(Granted::default())) {
                    return LinkError::Transient("given up".to_owned());
                }
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                if let Err(error) = hand_over(&inbound, received(publish), keep_alive).await {
                    return error;
                }
            }
            Ok(_) => {}
            Err(error) => return explain(&error),
        }
    }
}

/// See [`super::client::Client::publish`].
pub(super) fn publish(client: &AsyncClient, place: Place, publish: Publish) -> Asked<Pending> {
    let options = PublishOptions::new(wire_qos(publish.qos)).retain(publish.retain);
    match client.try_publish_tracked(publish.topic, publish.payload, options) {
        Ok(notice) => {
            Asked::Taken(Box::pin(
                async move { notice.wait_async().await.ok().map(|_completed| Answer::Confirmed(place)) },
            ))
        }
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

/// Encoded size with a packet id: fixed header (at most 5), topic behind its length, packet id, payload.
pub(super) fn size(publish: &Publish) -> u64 {
    u64::try_from(5 + 2 + publish.topic.len() + 2 + publish.payload.len()).unwrap_or(u64::MAX)
}

/// One answer for each filter.
pub(super) async fn subscribe(client: &AsyncClient, filters: &[String], qos: Qos) -> Result<Vec<Subscribed>, String> {
    let wanted = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), wire_qos(qos)));
    let notice = client.subscribe_many_tracked(wanted).await.map_err(|error| error.to_string())?;
    let suback = notice.wait_async().await.map_err(|error| error.to_string())?;
    let answers = suback.return_codes.iter().map(|code| match code {
        SubscribeReasonCode::Success(granted) => Ok(our_qos(*granted)),
        SubscribeReasonCode::Failure => Err("refused".to_owned()),
    });
    Ok(answers.collect())
}

pub(super) fn received(publish: rumqttc_v4::Publish) -> Inbound {
    let ack = match publish.qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce => Some(ManualAck::PubAck(rumqttc_v4::PubAck::new(publish.pkid))),
        QoS::ExactlyOnce => Some(ManualAck::PubRec(rumqttc_v4::PubRec::new(publish.pkid))),
    };
    Inbound {
        topic: publish.topic,
        payload: publish.payload,
        qos: our_qos(publish.qos),
        retain: publish.retain,
        again: publish.dup,
        expiry_s: None,
        properties: Properties::default(),
        ack: ack.map(Ack::V4),
    }
}

/// The end of a connection in words a person can act on, and whether a retry can help.
#[expect(clippy::wildcard_enum_match_arm, reason = "the crate's own list, which grows: all others are transient")]
fn explain(error: &ConnectionError) -> LinkError {
    match error {
        ConnectionError::ConnectionRefused(code) => {
            let words = format!("the remote refuses the connection: {code:?}");
            match code {
                ConnectReturnCode::Success | ConnectReturnCode::ServiceUnavailable => LinkError::Transient(words),
                ConnectReturnCode::RefusedProtocolVersion
                | ConnectReturnCode::BadClientId
                | ConnectReturnCode::BadUserNamePassword
                | ConnectReturnCode::NotAuthorized => LinkError::Misconfigured(words),
            }
        }
        error if tls::is_refusal(error) => LinkError::Misconfigured(error.to_string()),
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
            LinkError::Transient(error.to_string())
        }
        error => LinkError::Transient(error.to_string()),
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
