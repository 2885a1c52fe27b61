//! Each kind of link through a bad day: refused, restored, open but dead, and the gateway killed in the middle of it. What was
//! acknowledged to a publisher arrives; what arrives twice stays within R9's bound.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::process::free_port;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Kafka, Mosquitto, Rabbit, left_out};

const MESSAGES: usize = 20_000;

/// Records in flight on the link.
const WINDOW: usize = 200;

/// R9: two windows for each of the two cuts and the kill.
const DUPLICATES_MAX: usize = 3 * 2 * WINDOW;

#[tokio::test(flavor = "multi_thread")]
async fn r09_a_rabbitmq_link_loses_nothing_on_a_bad_day() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("outage").await;
    rabbit.declare("telemetry", "all").await;
    let mut proxy = Proxy::start(rabbit.port).await;
    let link = format!("rabbitmq: {{ url: \"{}\", exchange: telemetry }}", rabbit.url(proxy.port()));
    let acknowledged = bad_day(&mut proxy, &link, "far/line/{rest}").await;
    check("RabbitMQ", &acknowledged, &rabbit.receive("all", &acknowledged).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_a_kafka_link_loses_nothing_on_a_bad_day() {
    if left_out(&["kafka"]) {
        return;
    }
    let behind = free_port();
    let mut proxy = Proxy::start(behind).await;
    let kafka = Kafka::start_behind(behind, proxy.port()).await;
    kafka.create_topic("lake", 3).await;
    let link = format!("kafka: {{ brokers: [\"127.0.0.1:{}\"], acks: all }}", proxy.port());
    let acknowledged = bad_day(&mut proxy, &link, "far/lake").await;
    check("Kafka", &acknowledged, &kafka.receive("lake", &acknowledged).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_an_mqtt_5_link_loses_nothing_on_a_bad_day() {
    mqtt_link_on_a_bad_day("5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_an_mqtt_3_1_1_link_loses_nothing_on_a_bad_day() {
    mqtt_link_on_a_bad_day("3.1.1").await;
}

async fn mqtt_link_on_a_bad_day(version: &str) {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    let far = Subscriber::start(mosquitto.port, "far", "plant/#", QoS::AtLeastOnce).await;
    let link = format!("mqtt: {{ url: \"mqtt://127.0.0.1:{}\", version: {version}, qos: 1 }}", proxy.port());
    let acknowledged = bad_day(&mut proxy, &link, "far/plant/{rest}").await;
    let arrived = far.receive(&acknowledged).await;
    if version == "5" {
        check("MQTT 5", &acknowledged, &arrived);
    } else {
        // 3.1.1 carries no message id: what the publishers sent again cannot be told from what the gateway did.
        let ledger = Ledger::compare(acknowledged.iter().copied(), &arrived);
        ledger.assert_kept("MQTT 3.1.1", DUPLICATES_MAX + 4 * PUBLISHER_WINDOW);
    }
}

/// What each of four publishers has unacknowledged at most, and so sends again after the kill.
const PUBLISHER_WINDOW: usize = 50;

fn check(remote: &str, acknowledged: &[Mark], arrived: &[Delivery]) {
    assert_eq!(acknowledged.len(), MESSAGES);
    let ledger = Ledger::compare(acknowledged.iter().copied(), arrived);
    ledger.assert_kept(remote, DUPLICATES_MAX);
    let again = ledger.published_again;
    assert!(
        again <= 4 * PUBLISHER_WINDOW,
        "{remote}: {again} sent again by publishers: more than they had unacknowledged"
    );
}

/// The day itself. Returns what was acknowledged, once the link has drained.
async fn bad_day(proxy: &mut Proxy, link: &str, to: &str) -> Vec<Mark> {
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far:
    {link}
    in_flight: {WINDOW}
    retry: {{ min: 100ms, max: 1s }}
    stall_after: 2s
    connect_timeout: 2s
routes:
  - name: far
    from: broker/line/#
    to: "{to}"
"#
    ))
    .await;
    let work = Work {
        port: gateway.port,
        publishers: 4,
        messages: MESSAGES,
        qos: QoS::AtLeastOnce,
        window: PUBLISHER_WINDOW,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(5_000);
    publishers.reach(4_000).await;

    // Refused, with records in flight. Publishers are served all the same.
    proxy.set(Mode::Refuse).await;
    gateway.wait_for_link("far", "backing off", |link| link.state == LinkState::BackingOff).await;
    publishers.allow(8_000);
    publishers.reach(8_000).await;
    assert!(gateway.wait_for_state("far", LinkState::BackingOff).await.depth >= 3_000, "kept while the remote is away");
    proxy.set(Mode::Pass).await;
    gateway.wait_until_drained("far").await;

    // Open but dead, with records in flight; found by itself.
    publishers.allow(12_000);
    publishers.reach(8_500).await;
    proxy.set(Mode::BlackHole).await;
    publishers.reach(12_000).await;
    let dead = [LinkState::Stalled, LinkState::BackingOff, LinkState::Connecting];
    gateway.wait_for_link("far", "seen to be dead", |link| dead.contains(&link.state)).await;

    // Killed while publishers publish and the remote is away.
    publishers.allow(16_000);
    publishers.reach(13_000).await;
    gateway.kill_9();
    gateway.start_again().await;
    publishers.reach(16_000).await;

    proxy.set(Mode::Pass).await;
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    acknowledged
}
