//! From remotes to the edge, and from one remote to another: acknowledged at the origin only once it is safe here. Killed in the middle,
//! nothing is missing.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::remote::{Kafka, Mosquitto, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until, until_true};

const MESSAGES: usize = 6_000;

/// After a kill the origin delivers again what was not acknowledged: at most what a source takes unacknowledged. Generous, because the
/// story is about losses.
const AGAIN_MAX: usize = 4_000;

fn marks() -> Vec<Mark> {
    (0..MESSAGES).map(|number| Mark { publisher: 0, number }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_queue_reaches_an_edge_subscriber_over_a_kill() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("commands").await;
    rabbit.declare_queue("commands").await;
    let mut gateway = Gateway::start(&format!(
        "links:\n  cloud:\n    rabbitmq: {{ url: \"{}\", exchange: amq.topic }}\nroutes:\n  - {{ name: commands, from: cloud/commands, to: broker/cmd }}\n",
        rabbit.url(rabbit.port)
    ))
    .await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd", QoS::AtLeastOnce).await;
    rabbit.publish("commands", &marks()).await;
    kill_in_the_middle(&mut gateway, &machine).await;
    let arrived = machine.receive(&marks()).await;
    Ledger::compare(marks(), &arrived).assert_kept("RabbitMQ to the edge", AGAIN_MAX);
    gateway
        .wait_for_link("cloud", "everything acknowledged", |link| {
            link.source.as_ref().is_some_and(|s| s.in_flight == 0)
        })
        .await;
    until("the queue is empty", PATIENCE, async || match rabbit.depth("commands").await {
        0 => Ok(()),
        depth => Err(format!("{depth} in it")),
    })
    .await;
    // What the source held unacknowledged would come back to the queue now.
    assert!(gateway.terminate().await.success());
    assert_eq!(rabbit.depth("commands").await, 0, "all were acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_reaches_an_edge_subscriber_over_a_kill() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("commands", 1).await;
    let mut gateway = Gateway::start(&format!(
        "links:\n  lake:\n    kafka: {{ brokers: [\"127.0.0.1:{}\"], group: edge-commands }}\nroutes:\n  - {{ name: commands, from: lake/commands, to: broker/cmd }}\n",
        kafka.port
    ))
    .await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd", QoS::AtLeastOnce).await;
    gateway.wait_for_state("lake", LinkState::Online).await;
    kafka.publish("commands", &marks()).await;
    kill_in_the_middle(&mut gateway, &machine).await;
    let arrived = machine.receive(&marks()).await;
    Ledger::compare(marks(), &arrived).assert_kept("Kafka to the edge", AGAIN_MAX);
    assert!(gateway.terminate().await.success());
    assert_eq!(kafka.committed("edge-commands", "commands", 1), i64::try_from(MESSAGES).unwrap(), "all were committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_mqtt_broker_reaches_rabbitmq_over_a_kill() {
    if left_out(&["mosquitto", "rabbitmq"]) {
        return;
    }
    let (rabbit, mosquitto) = tokio::join!(Rabbit::start("transit"), Mosquitto::start());
    rabbit.declare("telemetry", "all").await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  hq:
    mqtt: {{ url: "mqtt://127.0.0.1:{}", version: 5, qos: 1, client_id: edge }}
  cloud:
    rabbitmq: {{ url: "{}", exchange: telemetry }}
routes:
  - {{ name: transit, from: "hq/up/#", to: "cloud/up/{{rest}}" }}
"#,
        mosquitto.port,
        rabbit.url(rabbit.port)
    ))
    .await;
    gateway.wait_for_state("hq", LinkState::Online).await;
    let work = Work {
        port: mosquitto.port,
        publishers: 2,
        messages: MESSAGES,
        qos: QoS::AtLeastOnce,
        window: 50,
        topic: "up".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(MESSAGES);
    let accepted = |link: &tidegate::telemetry::board::LinkStatus| link.ledger["accepted"];
    gateway.wait_for_link("cloud", "some are through", |link| accepted(link) >= 500).await;
    gateway.kill_9();
    gateway.start_again().await;
    let acknowledged = publishers.finish().await;
    gateway.wait_for_link("cloud", "all taken", |link| accepted(link) >= MESSAGES as u64).await;
    gateway.wait_until_drained("cloud").await;
    let arrived = rabbit.receive("all", &acknowledged).await;
    let ledger = Ledger::compare(acknowledged, &arrived);
    ledger.assert_kept("MQTT to RabbitMQ", AGAIN_MAX);
    assert!(arrived.iter().all(|delivery| delivery.topic == format!("up.{}", delivery.mark().publisher)));
}

async fn kill_in_the_middle(gateway: &mut Gateway, machine: &Subscriber) {
    until_true("a good part has arrived", PATIENCE, || machine.count() >= 500).await;
    gateway.kill_9();
    gateway.start_again().await;
    assert_eq!(machine.sessions(), 1, "the session was kept, and so not subscribed anew");
}
