//! What a real remote refuses for good: a dead letter with the reason, counted, and no hindrance to what comes behind it.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkStatus;

use crate::support::client::{Subscriber, publish_once};
use crate::support::disk::SmallDisk;
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::did_not_run;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Kafka, Mosquitto, Rabbit, left_out};

/// A bad one between two good ones; `bad` is `(topic, bytes of payload)`. The good ones' marks.
async fn publish(gateway: &Gateway, bad: (&str, usize)) -> [Mark; 2] {
    let marks = [0, 1, 2].map(|number| Mark { publisher: 0, number });
    for (mark, (topic, bytes)) in marks.into_iter().zip([("line/good", 64), bad, ("line/good", 64)]) {
        publish_once(gateway.port, "machine", topic, mark.payload(bytes)).await.unwrap();
    }
    [marks[0], marks[2]]
}

/// Two delivered, one refused, none kept. A kill right after may repeat the good ones (R9), and doubles no dead letter.
async fn accounted_for(gateway: &mut Gateway) {
    let settled = |link: &LinkStatus| link.ledger["delivered"] + link.ledger["dead_lettered"] == 3;
    let seen = gateway.wait_for_link("far", "all three are settled", settled).await;
    assert_eq!((seen.ledger["delivered"], seen.ledger["dead_lettered"], seen.depth), (2, 1, 0), "{:?}", seen.ledger);
    assert!(seen.balanced && seen.dead_letters == 1);
    gateway.kill_9();
    gateway.start_again().await;
    let seen = gateway.wait_for_link("far", "all three are settled", settled).await;
    assert!(seen.balanced && seen.dead_letters == 1, "R15: {:?}", seen.ledger);
}

fn routes(link: &str, to: &str) -> String {
    format!("links:\n  far:\n    {link}\nroutes:\n  - {{ name: far, from: \"broker/line/#\", to: \"{to}\" }}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn r27_what_no_queue_takes_is_a_dead_letter() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("refusals").await;
    rabbit.declare_queue("good").await;
    // The default exchange: a message goes to the queue of its routing key, and there is no other.
    let link = format!("rabbitmq: {{ url: \"{}\" }}", rabbit.url(rabbit.port));
    let mut gateway = Gateway::start(&routes(&link, "far/{rest}")).await;
    let good = publish(&gateway, ("line/nowhere", 64)).await;
    accounted_for(&mut gateway).await;
    assert!(gateway.log().contains("NO_ROUTE"), "the remote's own words");
    Ledger::compare(good, &rabbit.receive("good", &good).await).assert_kept("RabbitMQ", 2);
}

/// What is owed leaves although nothing can be written any more but in the room that was set aside.
#[tokio::test(flavor = "multi_thread")]
async fn r04_on_a_full_disk_a_refusal_does_not_stop_the_link() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let Some(disk) = SmallDisk::mount("64m") else { return did_not_run("this user may not mount a small disk") };
    let rabbit = Rabbit::start("refusals-full").await;
    rabbit.declare_queue("good").await;
    let mut proxy = Proxy::start(rabbit.port).await;
    proxy.set(Mode::Refuse).await;
    let link = format!(
        "rabbitmq: {{ url: \"{}\" }}\n    buffer: {{ max_size: 8MiB, min_free: 1MiB }}\n    retry: {{ min: 100ms, max: 1s }}",
        rabbit.url(proxy.port())
    );
    let mut gateway = Gateway::start_at(&disk.path().join("data"), &routes(&link, "far/{rest}")).await;
    let good = publish(&gateway, ("line/nowhere", 50_000)).await;
    let ballast = disk.fill();
    proxy.set(Mode::Pass).await;
    let settled = |link: &LinkStatus| link.ledger["delivered"] + link.ledger["dead_lettered"] == 3;
    let seen = gateway.wait_for_link("far", "all three are settled on the full disk", settled).await;
    assert_eq!((seen.ledger["dead_lettered"], seen.dead_letters, seen.depth), (1, 1, 0), "{:?}", seen.ledger);
    std::fs::remove_file(ballast).unwrap();
    accounted_for(&mut gateway).await;
    Ledger::compare(good, &rabbit.receive("good", &good).await).assert_kept("RabbitMQ", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_kafka_is_a_dead_letter() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("lake", 1).await;
    let link = format!("kafka: {{ brokers: [\"127.0.0.1:{}\"], max_message: 8KiB }}", kafka.port);
    let mut gateway = Gateway::start(&routes(&link, "far/lake")).await;
    let good = publish(&gateway, ("line/good", 20_000)).await;
    accounted_for(&mut gateway).await;
    Ledger::compare(good, &kafka.receive("lake", &good).await).assert_kept("Kafka", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_an_mqtt_remote_is_a_dead_letter() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let subscriber = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let link = format!("mqtt: {{ url: \"mqtt://127.0.0.1:{}\", max_packet_size: 8KiB }}", mosquitto.port);
    let mut gateway = Gateway::start(&routes(&link, "far/line/{rest}")).await;
    let good = publish(&gateway, ("line/good", 20_000)).await;
    accounted_for(&mut gateway).await;
    Ledger::compare(good, &subscriber.receive(&good).await).assert_kept("MQTT", 2);
}
