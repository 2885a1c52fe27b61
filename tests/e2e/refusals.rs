//! What a real remote refuses for good: a dead letter with the reason, counted, and no hindrance to what comes behind it.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::disk::SmallDisk;
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
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

/// A RabbitMQ where a user may publish to some routing keys of an exchange; its link's section.
async fn with_topic_permission(vhost: &str, write: &str) -> (Rabbit, String) {
    let rabbit = Rabbit::start(vhost).await;
    rabbit.declare("telemetry", "all").await;
    rabbit.user(vhost, "machine", ["", ".*", ""]).await;
    rabbit.topic_permission(vhost, "telemetry", write).await;
    let url = rabbit.url(rabbit.port).replace("guest:guest@", &format!("{vhost}:machine@"));
    let link = format!("rabbitmq: {{ url: \"{url}\", exchange: telemetry }}\n    retry: {{ min: 50ms, max: 500ms }}");
    (rabbit, link)
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_what_rabbitmq_does_not_permit_closes_the_channel_and_is_one_dead_letter() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let (rabbit, link) = with_topic_permission("refusals-one", "^line[.]good$").await;
    let mut gateway = Gateway::start(&routes(&link, "far/line/{rest}")).await;
    let good = publish(&gateway, ("line/forbidden", 64)).await;
    accounted_for(&mut gateway).await;
    assert!(gateway.log().contains("access to topic 'line.forbidden'"), "the remote's own words");
    Ledger::compare(good, &rabbit.receive("all", &good).await).assert_kept("RabbitMQ", 2 * 3);
}

/// R15: twenty at most; the others are kept, and go when it is mended.
async fn keeps_the_backlog(gateway: &Gateway) -> Vec<Mark> {
    let all = Publishers::start(work(gateway)).finish().await;
    let seen = gateway.wait_for_state("far", LinkState::Misconfigured).await;
    assert!(seen.sink.as_ref().is_some_and(|sink| sink.last_error.is_some()));
    let tried = |link: &LinkStatus| link.state == LinkState::Misconfigured && link.dead_letters > 0;
    let seen = gateway.wait_for_link("far", "some are dead letters", tried).await;
    assert!(
        seen.dead_letters <= 20 && seen.depth >= BACKLOG as u64 - 20,
        "{} letters, {}",
        seen.dead_letters,
        seen.depth
    );
    all
}

/// What was kept has arrived.
async fn nothing_is_lost(gateway: &Gateway, all: &[Mark], receive: impl AsyncFn(&[Mark]) -> Vec<Delivery>) {
    let drained = gateway.wait_until_drained("far").await;
    let letters = usize::try_from(drained.dead_letters).unwrap();
    assert!(letters <= 20 && drained.ledger["delivered"] == (BACKLOG - letters) as u64, "{:?}", drained.ledger);
    gateway.wait_for_state("far", LinkState::Online).await;
    // One publisher, in order: the first ones are the letters.
    let kept = &all[letters..];
    Ledger::compare(kept.iter().copied(), &receive(kept).await).assert_kept("what was kept", BACKLOG);
}

const BACKLOG: usize = 60;

fn work(gateway: &Gateway) -> Work {
    Work {
        port: gateway.port,
        publishers: 1,
        messages: BACKLOG,
        qos: QoS::AtLeastOnce,
        window: BACKLOG,
        topic: "line/good".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_wrong_permission_at_rabbitmq_does_not_turn_the_backlog_into_dead_letters() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let (rabbit, link) = with_topic_permission("refusals-all", "^nothing$").await;
    let gateway = Gateway::start(&routes(&link, "far/line/{rest}")).await;
    let all = keeps_the_backlog(&gateway).await;
    rabbit.topic_permission("refusals-all", "telemetry", ".*").await;
    nothing_is_lost(&gateway, &all, async |marks: &[Mark]| rabbit.receive("all", marks).await).await;
}

/// A remote broker where anybody may publish to some topics.
fn acl(publish: &str) -> String {
    format!("  auth:\n    acl:\n      - {{ anonymous: true, publish: \"{publish}\", subscribe: \"#\" }}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_mqtt_5_remote_does_not_permit_is_one_dead_letter() {
    let hq = Gateway::start_site("hq", &acl("line/good")).await;
    let subscriber = Subscriber::start(hq.port, "far", "line/#", QoS::AtLeastOnce).await;
    let link = format!("mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}", hq.port);
    let mut gateway = Gateway::start(&routes(&link, "far/line/{rest}")).await;
    let good = publish(&gateway, ("line/forbidden", 64)).await;
    accounted_for(&mut gateway).await;
    assert!(gateway.log().contains("NotAuthorized: this client may not publish"), "the remote's own words");
    Ledger::compare(good, &subscriber.receive(&good).await).assert_kept("MQTT", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_wrong_permission_at_an_mqtt_5_remote_does_not_turn_the_backlog_into_dead_letters() {
    let mut hq = Gateway::start_site("hq", &acl("nothing")).await;
    let subscriber = Subscriber::start(hq.port, "far", "line/#", QoS::AtLeastOnce).await;
    let link = format!("mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}\n    retry: {{ min: 50ms, max: 500ms }}", hq.port);
    let gateway = Gateway::start(&routes(&link, "far/line/{rest}")).await;
    let all = keeps_the_backlog(&gateway).await;
    assert!(hq.terminate().await.success());
    hq.configure(&acl("#"));
    hq.start_again().await;
    nothing_is_lost(&gateway, &all, async |marks: &[Mark]| subscriber.receive(marks).await).await;
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
