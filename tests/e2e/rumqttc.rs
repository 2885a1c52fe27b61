//! The broker towards rumqttc (its maintained line, for 3.1.1 and for 5.0): what the scripts below `tests/peers/` check with other
//! libraries, see `interop`. All tests that count messages use it too, for 5.0.

use rumqttc_v5::QoS::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};
use rumqttc_v5::{PublishOptions, PublishProperties, SubscribeProperties};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::gateway::Gateway;
use crate::support::wait::PATIENCE;

const EVERY_QOS: [QoS; 3] = [AtMostOnce, AtLeastOnce, ExactlyOnce];

const BOTH: [Version; 2] = [Version::Four, Version::Five];

#[derive(Clone, Copy, Debug)]
enum Version {
    /// 3.1.1.
    Four,
    /// 5.0.
    Five,
}

/// What has arrived.
#[derive(Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: QoS,
    retain: bool,
    properties: PublishProperties,
}

/// How a client connects.
#[derive(Debug, Default)]
struct Terms {
    /// A session that outlives the connection.
    kept: bool,
    /// Topic and payload; QoS 1.
    will: Option<(&'static str, &'static str)>,
}

enum Handle {
    Four(rumqttc_v4::AsyncClient),
    Five(rumqttc_v5::AsyncClient),
}

/// A client with one connection. Nothing here sleeps: every wait is for an event, and has an end.
struct Client {
    handle: Handle,
    messages: mpsc::Receiver<Message>,
    session_present: bool,
    polling: JoinSet<()>,
}

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

impl Client {
    async fn open(gateway: &Gateway, version: Version, name: &str, terms: Terms) -> Self {
        let (arrived, messages) = mpsc::channel(1_024);
        let (up, connected) = oneshot::channel();
        let mut polling = JoinSet::new();
        let handle = match version {
            Version::Four => four(gateway.port, name, terms, (up, arrived), &mut polling),
            Version::Five => five(gateway.port, name, terms, (up, arrived), &mut polling),
        };
        let session_present = soon("a connection", connected).await.expect("the broker lets it in");
        Self { handle, messages, session_present, polling }
    }

    async fn plain(gateway: &Gateway, version: Version, name: &str) -> Self {
        Self::open(gateway, version, name, Terms::default()).await
    }

    async fn subscribe(&self, filter: &str, qos: QoS) {
        let granted = async {
            match &self.handle {
                Handle::Four(client) => {
                    let suback = client.subscribe_tracked(filter, qos).await.unwrap().wait_async().await.unwrap();
                    assert_eq!(suback.return_codes, [rumqttc_v4::SubscribeReasonCode::Success(qos)]);
                }
                Handle::Five(client) => {
                    let suback = client.subscribe_tracked(filter, qos).await.unwrap().wait_async().await.unwrap();
                    assert_eq!(suback.return_codes, [rumqttc_v5::SubscribeReasonCode::Success(qos)]);
                }
            }
        };
        soon("SUBACK", granted).await;
    }

    /// Returns at the end of its exchange.
    async fn publish(&self, topic: &str, payload: &[u8], qos: QoS, retain: bool) {
        let done = async {
            match &self.handle {
                Handle::Four(client) => {
                    let options = rumqttc_v4::PublishOptions::new(qos).retain(retain);
                    let notice = client.publish_tracked(topic, payload.to_vec(), options).await.unwrap();
                    notice.wait_completion_async().await.unwrap();
                }
                Handle::Five(client) => {
                    let options = PublishOptions::new(qos).retain(retain);
                    let notice = client.publish_tracked(topic, payload.to_vec(), options).await.unwrap();
                    notice.wait_completion_async().await.unwrap();
                }
            }
        };
        soon("an acknowledgement", done).await;
    }

    async fn next(&mut self) -> Message {
        soon("a message", self.messages.recv()).await.expect("it is connected")
    }

    async fn expect(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Message {
        let message = self.next().await;
        let what = (message.topic.as_str(), message.payload.as_slice(), message.qos, message.retain);
        assert_eq!(what, (topic, payload, qos, retain));
        message
    }

    /// In order, and nothing has come that was not expected.
    async fn end(mut self) {
        match &self.handle {
            Handle::Four(client) => client.disconnect().await.unwrap(),
            Handle::Five(client) => client.disconnect().await.unwrap(),
        }
        soon("its end", self.polling.join_next()).await.unwrap().unwrap();
        assert!(self.messages.try_recv().is_err(), "a message too many");
    }

    /// Without a word, as a machine that loses its power does.
    async fn vanish(mut self) {
        self.polling.shutdown().await;
    }
}

/// Where a poll loop tells of its connection and its messages.
type Told = (oneshot::Sender<bool>, mpsc::Sender<Message>);

fn four(port: u16, name: &str, terms: Terms, (up, arrived): Told, polling: &mut JoinSet<()>) -> Handle {
    use rumqttc_v4::{AsyncClient, Event, Incoming, LastWill, MqttOptions};
    let mut options = MqttOptions::new(name, ("127.0.0.1", port));
    options.set_clean_session(!terms.kept).set_max_packet_size(1 << 20, 1 << 20);
    if let Some((topic, payload)) = terms.will {
        options.set_last_will(LastWill::new(topic, payload, AtLeastOnce, false));
    }
    let (client, mut events) = AsyncClient::builder(options).capacity(64).build();
    let mut up = Some(up);
    polling.spawn(async move {
        while let Ok(event) = events.poll().await {
            match event {
                Event::Incoming(Incoming::ConnAck(connack)) => {
                    up.take().unwrap().send(connack.session_present).unwrap();
                }
                Event::Incoming(Incoming::Publish(publish)) => {
                    let message = Message {
                        topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
                        payload: publish.payload.to_vec(),
                        qos: publish.qos,
                        retain: publish.retain,
                        properties: PublishProperties::default(),
                    };
                    arrived.send(message).await.unwrap();
                }
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
        }
    });
    Handle::Four(client)
}

fn five(port: u16, name: &str, terms: Terms, (up, arrived): Told, polling: &mut JoinSet<()>) -> Handle {
    use rumqttc_v5::{
        AsyncClient, BrokerSessionResumePolicy, Event, Incoming, LastWill, LastWillProperties, MqttOptions, SessionMode,
    };
    let mut options = MqttOptions::new(name, ("127.0.0.1", port));
    options.set_max_packet_size(Some(1 << 20));
    if terms.kept {
        options.set_session_mode(SessionMode::Persistent).set_session_expiry_interval(Some(3_600));
        options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
    }
    if let Some((topic, payload)) = terms.will {
        let properties = LastWillProperties {
            delay_interval: None,
            payload_format_indicator: Some(1),
            message_expiry_interval: Some(60),
            content_type: Some("text/plain".into()),
            response_topic: None,
            correlation_data: None,
            user_properties: vec![("will".into(), "yes".into())],
        };
        options.set_last_will(LastWill::new(topic, payload, AtLeastOnce, false, Some(properties)));
    }
    let (client, mut events) = AsyncClient::builder(options).capacity(64).build();
    let mut up = Some(up);
    polling.spawn(async move {
        while let Ok(event) = events.poll().await {
            match event {
                Event::Incoming(Incoming::ConnAck(connack)) => {
                    up.take().unwrap().send(connack.session_present).unwrap();
                }
                Event::Incoming(Incoming::Publish(publish)) => {
                    let message = Message {
                        topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
                        payload: publish.payload.to_vec(),
                        qos: publish.qos,
                        retain: publish.retain,
                        properties: publish.properties.unwrap_or_default(),
                    };
                    arrived.send(message).await.unwrap();
                }
                Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_) => {}
            }
        }
    });
    Handle::Five(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_qos_both_ways_in_order_and_large() {
    let gateway = Gateway::start("").await;
    for version in BOTH {
        let publisher = Client::plain(&gateway, version, "publisher").await;
        for granted in EVERY_QOS {
            let mut subscriber = Client::plain(&gateway, version, "subscriber").await;
            subscriber.subscribe("q/+", granted).await;
            for sent in EVERY_QOS {
                let topic = format!("q/{}", sent as u8);
                publisher.publish(&topic, b"x", sent, false).await;
                let arrives = if (sent as u8) < granted as u8 { sent } else { granted };
                subscriber.expect(&topic, b"x", arrives, false).await;
            }
            let large = vec![b'l'; 300_000];
            publisher.publish("q/large", &large, granted, false).await;
            subscriber.expect("q/large", &large, granted, false).await;
            for number in 0..100 {
                publisher.publish("q/many", format!("{number}").as_bytes(), granted, false).await;
            }
            for number in 0..100 {
                subscriber.expect("q/many", format!("{number}").as_bytes(), granted, false).await;
            }
            subscriber.end().await;
        }
        publisher.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_reach_who_comes_later_until_they_are_deleted() {
    let gateway = Gateway::start("").await;
    for version in BOTH {
        let publisher = Client::plain(&gateway, version, "publisher").await;
        for qos in EVERY_QOS {
            publisher.publish("state", b"on", qos, true).await;
            // Nothing answers QoS 0: what is acknowledged behind it says that it is there, and retained.
            publisher.publish("elsewhere", b"", AtLeastOnce, false).await;
            let mut late = Client::plain(&gateway, version, "late").await;
            late.subscribe("state", ExactlyOnce).await;
            late.expect("state", b"on", qos, true).await;
            publisher.publish("state", b"", qos, true).await;
            late.expect("state", b"", qos, false).await;
            late.end().await;
            let mut later = Client::plain(&gateway, version, "later").await;
            later.subscribe("state", ExactlyOnce).await;
            publisher.publish("state", b"live", qos, false).await;
            later.expect("state", b"live", qos, false).await;
            later.end().await;
        }
        publisher.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_will_comes_of_who_vanishes_and_not_of_who_takes_leave() {
    let gateway = Gateway::start("").await;
    for version in BOTH {
        let mut watcher = Client::plain(&gateway, version, "watcher").await;
        watcher.subscribe("wills/#", AtLeastOnce).await;
        let will = |topic| Terms { will: Some((topic, "gone")), ..Terms::default() };
        Client::open(&gateway, version, "orderly", will("wills/orderly")).await.end().await;
        Client::open(&gateway, version, "lost", will("wills/lost")).await.vanish().await;
        let message = watcher.expect("wills/lost", b"gone", AtLeastOnce, false).await;
        if matches!(version, Version::Five) {
            assert_eq!(message.properties.content_type.as_deref(), Some("text/plain"));
            assert_eq!(message.properties.user_properties, [("will".to_owned(), "yes".to_owned())]);
        }
        watcher.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_session_is_resumed_over_a_vanished_client_and_a_killed_gateway() {
    let mut gateway = Gateway::start("").await;
    for version in BOTH {
        let kept = || Terms { kept: true, ..Terms::default() };
        let first = Client::open(&gateway, version, "keeper", kept()).await;
        assert!(!first.session_present, "{version:?}: it is new");
        first.subscribe("kept/#", ExactlyOnce).await;
        first.vanish().await;
        let publisher = Client::plain(&gateway, version, "publisher").await;
        for qos in EVERY_QOS {
            publisher.publish(&format!("kept/{}", qos as u8), b"owed", qos, false).await;
        }
        publisher.end().await;
        gateway.kill_9();
        gateway.start_again().await;
        let mut again = Client::open(&gateway, version, "keeper", kept()).await;
        assert!(again.session_present, "{version:?}: it was kept");
        for qos in [AtLeastOnce, ExactlyOnce] {
            again.expect(&format!("kept/{}", qos as u8), b"owed", qos, false).await;
        }
        let publisher = Client::plain(&gateway, version, "publisher").await;
        publisher.publish("kept/later", b"subscribed still", AtLeastOnce, false).await;
        again.expect("kept/later", b"subscribed still", AtLeastOnce, false).await;
        again.end().await;
        publisher.end().await;
        // A clean start ends it.
        let clean = Client::plain(&gateway, version, "keeper").await;
        assert!(!clean.session_present);
        clean.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_mqtt_5_arrive_as_they_were_sent() {
    let gateway = Gateway::start("").await;
    let mut subscriber = Client::plain(&gateway, Version::Five, "subscriber").await;
    let publisher = Client::plain(&gateway, Version::Five, "publisher").await;
    let (Handle::Five(reader), Handle::Five(writer)) = (&subscriber.handle, &publisher.handle) else { unreachable!() };
    let wanted = SubscribeProperties { id: Some(7), user_properties: Vec::new() };
    let asked = reader.subscribe_with_properties_tracked("p/#", AtLeastOnce, wanted).await.unwrap();
    soon("SUBACK", asked.wait_async()).await.unwrap();
    let pair = |value: &str| ("k".to_owned(), value.to_owned());
    let sent = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(3_600),
        topic_alias: None,
        response_topic: Some("answers/1".into()),
        correlation_data: Some(vec![0, 1, 255].into()),
        user_properties: vec![pair("2"), pair("1"), pair("2")],
        subscription_identifiers: Vec::new(),
        content_type: Some("text/plain".into()),
    };
    // The second time by its alias, which the library puts in the place of the topic or beside it.
    for _ in 0..2 {
        let properties = PublishProperties { topic_alias: Some(1), ..sent.clone() };
        let options = PublishOptions::new(AtLeastOnce).properties(properties);
        let notice = writer.publish_tracked("p/x", b"body".to_vec(), options).await.unwrap();
        soon("an acknowledgement", notice.wait_completion_async()).await.unwrap();
    }
    for _ in 0..2 {
        let got = subscriber.expect("p/x", b"body", AtLeastOnce, false).await.properties;
        let left = got.message_expiry_interval.unwrap();
        assert!((3_500..=3_600).contains(&left), "{left} s");
        let expected = PublishProperties {
            message_expiry_interval: Some(left),
            subscription_identifiers: vec![7],
            topic_alias: got.topic_alias,
            ..sent.clone()
        };
        assert_eq!(got, expected);
    }
    subscriber.end().await;
    publisher.end().await;
}
