//! Queues that a link to RabbitMQ declares and binds: there before the first message, read by who declared them, refused in RabbitMQ's own words
//! where they are there as something else, and declared anew when they are gone.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::remote::{Argument, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until_true};

const QUORUM: &[(&str, Argument)] = &[("x-queue-type", Argument::Text("quorum"))];
const STREAM: &[(&str, Argument)] = &[("x-queue-type", Argument::Text("stream"))];

fn work(port: u16, publishers: usize, messages: usize) -> Work {
    Work { port, publishers, messages, qos: QoS::AtLeastOnce, window: 10, topic: "line".into() }
}

fn marks(publisher: usize, count: usize) -> Vec<Mark> {
    (0..count).map(|number| Mark { publisher, number }).collect()
}

fn last_error(link: &LinkStatus) -> String {
    let halves = [link.sink.as_ref(), link.source.as_ref()];
    halves.into_iter().flatten().filter_map(|half| half.last_error.clone()).collect::<Vec<_>>().join("; ")
}

/// What is published before the link has connected finds its queues all the same; a reload adds one.
#[tokio::test(flavor = "multi_thread")]
async fn queues_are_declared_and_bound_before_the_first_message() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("queues").await;
    let routes = |more: &str| {
        format!(
            r##"links:
  cloud:
    rabbitmq:
      url: "{}"
      exchange: telemetry
      declare: {{ type: topic }}
      queues:
        first: {{ type: quorum, bindings: [ {{ key: line.0 }} ] }}
        all: {{ type: classic, arguments: {{ x-max-length: 5000 }}, bindings: [ {{ key: "line.#" }} ] }}
        either: {{ bindings: [ {{ key: line.1 }}, {{ exchange: amq.fanout }} ] }}
{more}
routes:
  - {{ from: "broker/line/#", to: "cloud/line/{{rest}}" }}
"##,
            rabbit.url(rabbit.port)
        )
    };
    let gateway = Gateway::start(&routes("")).await;
    let acknowledged = Publishers::start(work(gateway.port, 2, 50)).finish().await;
    let link = gateway.wait_until_drained("cloud").await;
    assert_eq!((link.ledger["delivered"], link.dead_letters), (50, 0), "all were routable: {link:?}");
    // Declared as it is there a queue stays; as anything else RabbitMQ refuses it.
    rabbit.declare_queue_with("first", QUORUM).await;
    for (queue, publishers) in [("first", &[0][..]), ("all", &[0, 1]), ("either", &[1])] {
        let expected: Vec<_> =
            acknowledged.iter().copied().filter(|mark| publishers.contains(&mark.publisher)).collect();
        Ledger::compare(expected.clone(), &rabbit.receive(queue, &expected).await).assert_exact(queue);
    }

    let said = gateway.reload_to(&routes("        log: { type: stream, bindings: [ { key: line.0 } ] }")).await;
    assert!(said.contains("rabbitmq.queues.log"), "{said}");
    let acknowledged = Publishers::start(work(gateway.port, 1, 20)).finish().await;
    let link = gateway.wait_until_drained("cloud").await;
    assert_eq!((link.ledger["delivered"], link.dead_letters), (70, 0), "{link:?}");
    Ledger::compare(acknowledged.clone(), &rabbit.receive("first", &acknowledged).await).assert_exact("first");
    rabbit.declare_queue_with("log", STREAM).await;
}

/// One gateway reads what its own link has declared and bound; deleted under it, the queue is there again. What it does not read is declared too.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_reads_the_queue_that_its_own_link_declares() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("own-queues").await;
    let url = rabbit.url(rabbit.port);
    let reader = Gateway::start_site(
        "reader",
        &format!(
            r##"links:
  cloud:
    rabbitmq:
      url: "{url}"
      exchange: telemetry
      declare: {{ type: topic }}
      streams: {{ log: first }}
      queues:
        mine: {{ type: quorum, arguments: {{ x-dead-letter-exchange: "" }}, bindings: [ {{ key: "line.#" }} ] }}
        log: {{ type: stream, bindings: [ {{ exchange: amq.topic, key: "#" }} ] }}
        aside:
routes:
  - {{ from: cloud/mine, to: "broker/read/{{topic}}" }}
  - {{ from: cloud/log, to: "broker/log/{{topic}}" }}
"##
        ),
    )
    .await;
    let machine = Subscriber::start(reader.port, "machine", "read/#", QoS::AtLeastOnce).await;
    let logger = Subscriber::start(reader.port, "logger", "log/#", QoS::AtLeastOnce).await;
    reader.wait_for_state("cloud", LinkState::Online).await;
    assert_eq!(rabbit.depth("aside").await, 0, "it is there, and nobody reads it");
    let writer = Gateway::start(&format!(
        "links:\n  out: {{ rabbitmq: {{ url: \"{url}\", exchange: telemetry }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"out/line/{{rest}}\" }}\n"
    ))
    .await;
    let sent = Publishers::start(work(writer.port, 1, 30)).finish().await;
    Ledger::compare(sent.clone(), &machine.receive(&sent).await).assert_exact("its own queue");
    rabbit.publish("log", &marks(7, 10)).await;
    Ledger::compare(marks(7, 10), &logger.receive(&marks(7, 10)).await).assert_exact("its own stream");

    let nothing_open = |link: &LinkStatus| link.source.as_ref().is_some_and(|source| source.in_flight == 0);
    reader.wait_for_link("cloud", "all is acknowledged", nothing_open).await;
    rabbit.delete_queue("mine").await;
    until_true("it is read again", PATIENCE, || reader.log().contains("the queue is read")).await;
    let again = Publishers::start(work(writer.port, 1, 60)).finish().await.split_off(30);
    machine.receive(&again).await;
    let link = writer.wait_until_drained("out").await;
    assert_eq!((link.ledger["delivered"], link.dead_letters), (90, 0), "it was declared and bound anew: {link:?}");
}

/// RabbitMQ's words are the link's, in both directions, and what somebody puts right there is found without a word to the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn r15_a_queue_that_is_another_is_misconfigured_until_it_is_deleted() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("conflicts").await;
    for queue in ["orders", "commands"] {
        rabbit.declare_queue(queue).await;
    }
    let url = rabbit.url(rabbit.port);
    let gateway = Gateway::start(&format!(
        r##"links:
  out:
    rabbitmq: {{ url: "{url}", exchange: "", queues: {{ orders: {{ type: quorum }} }} }}
    retry: {{ min: 50ms, max: 200ms }}
  in:
    rabbitmq: {{ url: "{url}", queues: {{ commands: {{ arguments: {{ x-max-length: 7000 }} }} }} }}
    retry: {{ min: 50ms, max: 200ms }}
  unbound:
    rabbitmq: {{ url: "{url}", queues: {{ late: {{ bindings: [ {{ exchange: nowhere }} ] }} }} }}
    retry: {{ min: 50ms, max: 200ms }}
routes:
  - {{ from: "broker/line/#", to: out/orders }}
  - {{ from: in/commands, to: broker/commands }}
  - {{ from: unbound/late, to: broker/late }}
"##
    ))
    .await;
    let machine = Subscriber::start(gateway.port, "machine", "#", QoS::AtLeastOnce).await;
    for (name, words) in [
        ("out", "queue 'orders' cannot be declared: 406 PRECONDITION_FAILED - inequivalent arg 'x-queue-type'"),
        ("in", "queue 'commands' cannot be declared: 406 PRECONDITION_FAILED - inequivalent arg 'x-max-length'"),
        ("unbound", "queue 'late' cannot be bound to exchange 'nowhere': 404 NOT_FOUND - no exchange 'nowhere'"),
    ] {
        let link = gateway.wait_for_state(name, LinkState::Misconfigured).await;
        assert!(last_error(&link).contains(words), "{name}: {}", last_error(&link));
    }
    let acknowledged = Publishers::start(work(gateway.port, 1, 20)).finish().await;
    // All at once: each is tried again after 30 s.
    rabbit.delete_queue("orders").await;
    rabbit.delete_queue("commands").await;
    rabbit.declare("nowhere", "of-nowhere").await;
    let link = gateway.wait_until_drained("out").await;
    assert_eq!((link.ledger["delivered"], link.dead_letters), (20, 0), "a backlog is no dead letter: {link:?}");
    Ledger::compare(acknowledged.clone(), &rabbit.receive("orders", &acknowledged).await).assert_exact("orders");
    gateway.wait_for_state("in", LinkState::Online).await;
    rabbit.publish("commands", &marks(3, 10)).await;
    machine.receive(&marks(3, 10)).await;
    gateway.wait_for_state("unbound", LinkState::Online).await;
}
