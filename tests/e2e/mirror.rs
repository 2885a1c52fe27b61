//! A factory mirrored into RabbitMQ, Kafka and a remote MQTT broker at once, by one route.

use std::collections::BTreeMap;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkStatus;
use tokio::process::Command;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::remote::{Kafka, Mosquitto, Rabbit, left_out};

const MESSAGES: usize = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn one_route_carries_every_message_to_three_remotes_in_order_and_intact() {
    if left_out(&["mosquitto", "rabbitmq", "kafka"]) {
        return;
    }
    let (rabbit, kafka, mosquitto) = tokio::join!(Rabbit::start("mirror"), Kafka::start(), Mosquitto::start());
    rabbit.declare("telemetry", "all").await;
    kafka.create_topic("lake", 3).await;
    let hq = Subscriber::start(mosquitto.port, "hq", "plant/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&routes(&rabbit, &kafka, &mosquitto)).await;

    let work = Work {
        port: gateway.port,
        publishers: 4,
        messages: MESSAGES,
        qos: QoS::AtLeastOnce,
        window: 100,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(MESSAGES);
    for link in ["cloud", "lake", "hq"] {
        let moves = |link: &LinkStatus| link.sink.as_ref().is_some_and(|sink| sink.rate > 0.0);
        gateway.wait_for_link(link, "a rate is shown", moves).await;
    }
    let acknowledged = publishers.finish().await;
    assert_eq!(acknowledged.len(), MESSAGES);
    for link in ["cloud", "lake", "hq"] {
        let status = gateway.wait_until_drained(link).await;
        assert_eq!(
            (status.ledger["accepted"], status.ledger["delivered"]),
            (MESSAGES as u64, MESSAGES as u64),
            "{link}"
        );
    }

    let at_rabbit = rabbit.receive("all", &acknowledged).await;
    let at_kafka = kafka.receive("lake", &acknowledged).await;
    let at_hq = hq.receive(&acknowledged).await;
    for (remote, arrived) in [("RabbitMQ", &at_rabbit), ("Kafka", &at_kafka), ("MQTT", &at_hq)] {
        Ledger::compare(acknowledged.iter().copied(), arrived).assert_exact(remote);
        arrived.iter().for_each(|delivery| assert_intact(remote, delivery));
    }
    assert!(at_rabbit.iter().all(|delivery| delivery.topic == format!("line.{}", delivery.mark().publisher)));
    assert!(at_hq.iter().all(|delivery| delivery.topic == format!("plant/line/{}", delivery.mark().publisher)));
    assert!(at_kafka.iter().all(|delivery| delivery.topic == format!("line/{}", delivery.mark().publisher)));
    assert!(at_kafka.iter().all(|delivery| delivery.key.as_ref() == Some(&delivery.topic)), "the key is the topic");

    assert_eq!(kcat_counts(kafka.port, "lake").await, MESSAGES, "a client that shares nothing with ours sees the same");

    let ids = ids(&at_rabbit);
    assert_eq!(ids, self::ids(&at_kafka), "R11: a message has one id on all links");
    assert_eq!(ids, self::ids(&at_hq), "R11: a message has one id on all links");
}

fn routes(rabbit: &Rabbit, kafka: &Kafka, mosquitto: &Mosquitto) -> String {
    format!(
        r#"
links:
  cloud:
    rabbitmq: {{ url: "{}", exchange: telemetry }}
  lake:
    kafka: {{ brokers: ["127.0.0.1:{}"], acks: all }}
  hq:
    mqtt: {{ url: "mqtt://127.0.0.1:{}", version: 5, qos: 1, client_id: edge }}
routes:
  - name: mirror
    from: broker/line/#
    to: [ "cloud/line/{{rest}}", "lake/lake", "hq/plant/line/{{rest}}" ]
"#,
        rabbit.url(rabbit.port),
        kafka.port,
        mosquitto.port,
    )
}

/// The publisher's properties and the gateway's stamps.
fn assert_intact(remote: &str, delivery: &Delivery) {
    let Mark { publisher, number } = delivery.mark();
    let want =
        |name, value: String| assert_eq!(delivery.property(name), Some(&*value), "{remote}: {name} of {delivery:?}");
    want("number", number.to_string());
    want("tg-site", "edge".into());
    want("tg-client", format!("line-{publisher}"));
    want("tg-path", "edge".into());
    assert_eq!(delivery.content_type.as_deref(), Some("text/plain"), "{remote}: {delivery:?}");
    for stamp in ["tg-id", "tg-seq", "tg-time", "tg-hops"] {
        assert!(delivery.property(stamp).is_some(), "{remote}: no {stamp} in {delivery:?}");
    }
}

fn ids(arrived: &[Delivery]) -> BTreeMap<Mark, String> {
    arrived
        .iter()
        .map(|delivery| (delivery.mark(), delivery.property("tg-id").unwrap_or_default().to_owned()))
        .collect()
}

async fn kcat_counts(port: u16, topic: &str) -> usize {
    let mut kcat = Command::new("kcat");
    kcat.args(["-b", &format!("127.0.0.1:{port}"), "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%o\n"]);
    let ended = kcat.kill_on_drop(true).output().await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ended.stdout.iter().filter(|byte| **byte == b'\n').count()
}
