//! Each kind of link through a bad day: refused, restored, open but dead, and the gateway killed in the middle of it. What was
//! acknowledged to a publisher arrives; what arrives twice stays within R9's bound.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

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

/// One route with three targets, each with its own bad weather at the same time: none holds up another, and none loses.
#[tokio::test(flavor = "multi_thread")]
async fn r09_three_links_of_one_route_lose_nothing_while_each_has_its_own_bad_day() {
    if left_out(&["mosquitto", "rabbitmq", "kafka"]) {
        return;
    }
    let behind = free_port();
    let mut to_lake = Proxy::start(behind).await;
    let (rabbit, kafka, mosquitto) =
        tokio::join!(Rabbit::start("three"), Kafka::start_behind(behind, to_lake.port()), Mosquitto::start());
    rabbit.declare("telemetry", "all").await;
    kafka.create_topic("lake", 3).await;
    let (mut to_cloud, mut to_hq) = (Proxy::start(rabbit.port).await, Proxy::start(mosquitto.port).await);
    let hq = Subscriber::start(mosquitto.port, "hq", "plant/#", QoS::AtLeastOnce).await;
    let patience =
        format!("in_flight: {WINDOW}, retry: {{ min: 100ms, max: 1s }}, stall_after: 2s, connect_timeout: 2s");
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  cloud: {{ rabbitmq: {{ url: "{}", exchange: telemetry }}, {patience} }}
  lake: {{ kafka: {{ brokers: ["127.0.0.1:{}"], acks: all }}, {patience} }}
  hq: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}", version: 5, qos: 1 }}, {patience} }}
routes:
  - name: mirror
    from: broker/line/#
    to: [ "cloud/line/{{rest}}", "lake/lake", "hq/plant/{{rest}}" ]
"#,
        rabbit.url(to_cloud.port()),
        to_lake.port(),
        to_hq.port(),
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

    // One refused, one open but dead; the third does not notice.
    to_cloud.set(Mode::Refuse).await;
    to_lake.set(Mode::BlackHole).await;
    publishers.allow(10_000);
    publishers.reach(10_000).await;
    let delivered = |link: &LinkStatus| link.ledger["delivered"] >= 10_000;
    gateway.wait_for_link("hq", "all of it", delivered).await;
    let cloud = gateway.wait_for_link("cloud", "backing off", |link| link.state == LinkState::BackingOff).await;
    let dead = [LinkState::Stalled, LinkState::BackingOff];
    let lake = gateway.wait_for_link("lake", "seen to be dead", |link| dead.contains(&link.state)).await;
    assert!(cloud.depth >= 5_000 && lake.depth >= 5_000, "{} and {} kept", cloud.depth, lake.depth);

    // Now the third, and a kill while all three are away.
    to_hq.set(Mode::BlackHole).await;
    publishers.allow(15_000);
    publishers.reach(12_000).await;
    gateway.kill_9();
    gateway.start_again().await;
    publishers.reach(15_000).await;
    for proxy in [&mut to_cloud, &mut to_lake, &mut to_hq] {
        proxy.set(Mode::Pass).await;
    }
    let acknowledged = publishers.finish().await;
    for link in ["cloud", "lake", "hq"] {
        gateway.wait_until_drained(link).await;
    }
    check("RabbitMQ", &acknowledged, &rabbit.receive("all", &acknowledged).await);
    check("Kafka", &acknowledged, &kafka.receive("lake", &acknowledged).await);
    check("MQTT", &acknowledged, &hq.receive(&acknowledged).await);
}
