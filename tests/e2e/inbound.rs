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

/// What one hop has unacknowledged at most: a RabbitMQ source's prefetch, the sink's window.
const WINDOW: usize = 100;

/// The same of an MQTT source: the Receive Maximum that it gives.
const MQTT_WINDOW: usize = 512;

/// The same of a Kafka source, which has no key for it: the half of what may be unsettled, so that two are all.
const KAFKA_WINDOW: usize = 4_096 / 2;

/// What the built-in broker has unacknowledged at a client (`broker.in_flight`, and the subscriber's own Receive Maximum).
const CLIENT_WINDOW: usize = 256;

/// R9: a kill repeats at most two windows of each hop. What the origin sends again has a new id at the remote, and none at an edge client.
fn within_r9(story: &str, ledger: &Ledger, [source, outlet]: [usize; 2]) {
    let copies = ledger.duplicates + ledger.published_again;
    eprintln!("{story}: {copies} copies");
    ledger.assert_kept(story, 2 * (source + outlet));
    assert!(copies <= 2 * (source + outlet), "{story}: {copies} copies");
}

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
        "links:\n  cloud:\n    rabbitmq: {{ url: \"{}\", exchange: amq.topic, prefetch: {WINDOW} }}\nroutes:\n  - {{ name: commands, from: cloud/commands, to: broker/cmd }}\n",
        rabbit.url(rabbit.port)
    ))
    .await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd", QoS::AtLeastOnce).await;
    rabbit.publish("commands", &marks()).await;
    kill_in_the_middle(&mut gateway, &machine).await;
    let arrived = machine.receive(&marks()).await;
    within_r9("RabbitMQ to the edge", &Ledger::compare(marks(), &arrived), [WINDOW, CLIENT_WINDOW]);
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
async fn a_queue_that_is_not_there_is_said_and_costs_the_others_nothing() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("missing").await;
    rabbit.declare_queue("there").await;
    let gateway = Gateway::start(&format!(
        "links:\n  cloud:\n    rabbitmq: {{ url: \"{}\" }}\nroutes:\n  - {{ from: cloud/late, to: broker/late }}\n  - {{ from: cloud/there, to: broker/there }}\n",
        rabbit.url(rabbit.port)
    ))
    .await;
    let machine = Subscriber::start(gateway.port, "machine", "#", QoS::AtLeastOnce).await;
    let some: Vec<_> = (0..100).map(|number| Mark { publisher: 0, number }).collect();
    rabbit.publish("there", &some).await;
    Ledger::compare(some.clone(), &machine.receive(&some).await).assert_exact("the queue that is there");
    let error = |link: &tidegate::telemetry::board::LinkStatus| {
        link.source.as_ref().and_then(|source| source.last_error.clone()).unwrap_or_default()
    };
    let seen = gateway.wait_for_link("cloud", "it says which", |link| error(link).contains("no queue 'late'")).await;
    assert_eq!(seen.source.unwrap().state, LinkState::Online, "the other is read");

    // Declared, it is read; deleted and declared anew, it is read again, while the other goes on.
    let more = |publisher| -> Vec<_> { (0..50).map(|number| Mark { publisher, number }).collect() };
    for publisher in [1, 2] {
        rabbit.declare_queue("late").await;
        rabbit.publish("late", &more(publisher)).await;
        machine.receive(&more(publisher)).await;
        let said = || gateway.log().matches("all of it is read").count() >= publisher;
        until_true("it says that nothing is wrong", PATIENCE, said).await;
        let all =
            |link: &tidegate::telemetry::board::LinkStatus| link.source.as_ref().is_some_and(|s| s.in_flight == 0);
        gateway.wait_for_link("cloud", "all is acknowledged", all).await;
        rabbit.delete_queue("late").await;
        let said = || gateway.log().matches("cancelled the consumer of queue 'late'").count() >= publisher;
        until_true("it says so", PATIENCE, said).await;
        rabbit.publish("there", &more(10 + publisher)).await;
        machine.receive(&more(10 + publisher)).await;
    }
    assert_eq!(gateway.status().await.links[0].source.as_ref().unwrap().state, LinkState::Online);
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
    within_r9("Kafka to the edge", &Ledger::compare(marks(), &arrived), [KAFKA_WINDOW, CLIENT_WINDOW]);
    assert!(gateway.terminate().await.success());
    assert_eq!(kafka.committed("edge-commands", "commands", 1), i64::try_from(MESSAGES).unwrap(), "all were committed");
}

/// Two gateways share a group: one joins while the other reads, and is killed while both do. Nothing is missing, and what comes twice is what was
/// not committed when a partition changed hands.
#[tokio::test(flavor = "multi_thread")]
async fn r24_a_group_of_two_gateways_loses_nothing_when_one_joins_and_is_killed() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("commands", 4).await;
    let links = format!(
        "links:\n  lake:\n    kafka: {{ brokers: [\"127.0.0.1:{}\"], group: plant, options: {{ session.timeout.ms: 6000 }} }}\nroutes:\n  - {{ name: commands, from: lake/commands, to: broker/cmd }}\n",
        kafka.port
    );
    let all: Vec<Mark> =
        (0..MESSAGES).flat_map(|number| (0..4).map(move |publisher| Mark { publisher, number })).collect();
    let (first, rest) = all.split_at(all.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let stays = Gateway::start_site("stays", &links).await;
    let here = Subscriber::start(stays.port, "machine", "cmd", QoS::AtLeastOnce).await;
    stays.wait_for_state("lake", LinkState::Online).await;
    kafka.publish("commands", first).await;
    until_true("a part has arrived", PATIENCE, || here.count() > 0).await;
    let mut goes = Gateway::start_site("goes", &links).await;
    let there = Subscriber::start(goes.port, "machine", "cmd", QoS::AtLeastOnce).await;
    goes.wait_for_state("lake", LinkState::Online).await;
    let mut published = first.len();
    // It has partitions only when the group has agreed on that.
    for some in second.chunks(1_000) {
        kafka.publish("commands", some).await;
        published += some.len();
    }
    let (mut left, mut more) = (third, Vec::new());
    until("the second one reads too", PATIENCE, async || {
        let (some, others) = left.split_at(left.len().min(200));
        kafka.publish("commands", some).await;
        more.extend_from_slice(some);
        left = others;
        if there.count() > 0 { Ok(()) } else { Err(format!("{} published", published + more.len())) }
    })
    .await;
    goes.kill_9();
    kafka.publish("commands", left).await;
    goes.start_again().await;
    let both = || here.arrived().into_iter().chain(there.arrived()).collect::<Vec<_>>();
    until("all are at one of both", PATIENCE, async || {
        let marks: std::collections::BTreeSet<_> = both().iter().map(|delivery| delivery.mark()).collect();
        if marks.len() == all.len() { Ok(()) } else { Err(format!("{} of {}", marks.len(), all.len())) }
    })
    .await;
    // Joining, dying, coming back: each time partitions change hands.
    let changes = 3;
    let ledger = Ledger::compare(all.iter().copied(), &both());
    let copies = ledger.duplicates + ledger.published_again;
    eprintln!("a group of two: {copies} copies");
    assert_eq!(ledger.lost.len(), 0, "{} lost", ledger.lost.len());
    assert!(copies <= changes * 2 * (KAFKA_WINDOW + CLIENT_WINDOW), "{copies} copies");
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
    in_flight: {WINDOW}
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
    within_r9("MQTT to RabbitMQ", &ledger, [MQTT_WINDOW, WINDOW]);
    assert!(arrived.iter().all(|delivery| delivery.topic == format!("up.{}", delivery.mark().publisher)));
}

async fn kill_in_the_middle(gateway: &mut Gateway, machine: &Subscriber) {
    until_true("a good part has arrived", PATIENCE, || machine.count() >= 500).await;
    gateway.kill_9();
    gateway.start_again().await;
    assert_eq!(machine.sessions(), 1, "the session was kept, and so not subscribed anew");
}
