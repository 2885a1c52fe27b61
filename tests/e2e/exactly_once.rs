//! R26: with `exactly_once` a consumer that reads what is committed sees each message once, whatever is killed and whenever.

use std::fs;
use std::path::Path;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Work, publish_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::remote::{Ending, Kafka, left_out};

const PUBLISHERS: usize = 4;
/// What a publisher has unacknowledged at most.
const WINDOW: usize = 20;
/// Acknowledgements between two kills, at least.
const STRIDE: usize = 200;

fn routes(kafka: &Kafka, more: &str) -> String {
    format!(
        r#"
links:
  lake:
    kafka: {{ brokers: ["127.0.0.1:{}"], exactly_once: true{more} }}
    retry: {{ min: 10ms, max: 200ms }}
routes:
  - {{ name: urgent, from: "broker/line/0", to: lake/lake, priority: high }}
  - {{ name: rest, from: "broker/line/{{n}}", except: line/0, to: lake/lake }}
"#,
        kafka.port
    )
}

fn work(port: u16, messages: usize) -> Work {
    Work { port, publishers: PUBLISHERS, messages, qos: QoS::AtLeastOnce, window: WINDOW, topic: "line".into() }
}

/// `TIDEGATE_KILLS` raises their number.
#[tokio::test(flavor = "multi_thread")]
async fn r26_kills_in_a_loop_never_double_what_kafka_has() {
    if left_out(&["kafka"]) {
        return;
    }
    let kills = std::env::var("TIDEGATE_KILLS").map_or(12, |text| text.parse().expect("TIDEGATE_KILLS is a number"));
    let mut kafka = Kafka::start().await;
    kafka.create_topic("lake", 3).await;
    let mut gateway = Gateway::start(&routes(&kafka, "")).await;
    let messages = (kills + 2) * 2 * STRIDE;
    let publishers = Publishers::start(work(gateway.port, messages));
    for kill in 1..=2 * kills {
        // Where a kill comes is chance: there are more of them until one came between a commit and the cursor.
        if kill > kills && gateway.log().contains("has them already") {
            break;
        }
        let next = (publishers.acknowledged() + STRIDE).min(messages);
        publishers.allow((next + STRIDE).min(messages));
        publishers.reach(next).await;
        if kill % 2 == 0 {
            // The cursor is as a rule behind by then: what is confirmed since is in Kafka's account alone.
            let before = std::cell::Cell::new(None);
            let more = |delivered| delivered > before.replace(before.get().or(Some(delivered))).unwrap_or(delivered);
            gateway
                .wait_for_link("lake", "something confirmed", |link| {
                    more(link.ledger["delivered"]) || (link.depth == 0 && link.ledger["delivered"] > 0)
                })
                .await;
        }
        gateway.kill_9();
        if kill == kills / 2 {
            kafka.end(Ending::Killed).await;
            kafka.start_again().await;
        }
        gateway.start_again().await;
    }
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("lake").await;
    let arrived = kafka.receive("lake", &acknowledged).await;
    let ledger = Ledger::compare(acknowledged, &arrived);
    eprintln!("{kills} kills, {messages} messages: {} published again", ledger.published_again);
    ledger.assert_kept("read committed", 0);
    assert!(gateway.log().contains("has them already"), "no kill came between a commit and the cursor");
    assert!(gateway.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn r26_what_the_topic_refuses_is_a_dead_letter_and_the_rest_of_its_transaction_goes_once() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic_with("lake", 1, &[("max.message.bytes", "4096")]).await;
    let mut gateway = Gateway::start(&routes(&kafka, "")).await;
    let marks: Vec<Mark> = (0..40).map(|number| Mark { publisher: 1, number }).collect();
    for mark in &marks {
        let length = if mark.number == 20 { 8_192 } else { 64 };
        publish_once(gateway.port, "one", "line/1", mark.payload(length)).await.unwrap();
    }
    let status = gateway.wait_for_link("lake", "all decided", |link| link.depth == 0).await;
    assert_eq!((status.ledger["dead_lettered"], status.ledger["delivered"]), (1, 39), "{:?}", status.ledger);
    let rest: Vec<Mark> = marks.into_iter().filter(|mark| mark.number != 20).collect();
    Ledger::compare(rest.clone(), &kafka.receive("lake", &rest).await).assert_exact("read committed");
    assert!(gateway.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn r26_two_gateways_of_one_transactional_id_are_told() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("lake", 1).await;
    let shared = routes(&kafka, ", transactional_id: plant");
    let first = Gateway::start(&shared).await;
    first.wait_for_state("lake", LinkState::Online).await;
    let second = Gateway::start_site("other", &shared).await;
    second.wait_for_state("lake", LinkState::Online).await;
    publish_once(first.port, "one", "line/1", Mark { publisher: 1, number: 0 }.payload(64)).await.unwrap();
    let told = first.wait_for_state("lake", LinkState::Misconfigured).await;
    let words = told.sink.and_then(|sink| sink.last_error).unwrap_or_default();
    assert!(words.contains("`transactional_id: plant`"), "{words}");
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &target),
            kind if kind.is_file() => drop(fs::copy(entry.path(), target).unwrap()),
            _socket => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r26_a_buffer_that_was_put_back_loses_nothing_to_the_numbers_that_kafka_knows() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("lake", 1).await;
    let mut gateway = Gateway::start(&routes(&kafka, "")).await;
    let mark = |number| Mark { publisher: 1, number };
    let backup = tempfile::tempdir().unwrap();
    for number in 0..20 {
        if number == 10 {
            gateway.wait_until_drained("lake").await;
            assert!(gateway.terminate().await.success());
            copy(gateway.data(), backup.path());
            gateway.start_again().await;
        }
        publish_once(gateway.port, "one", "line/1", mark(number).payload(64)).await.unwrap();
    }
    gateway.wait_until_drained("lake").await;
    gateway.kill_9();
    fs::remove_dir_all(gateway.data()).unwrap();
    copy(backup.path(), gateway.data());
    // Kafka knows twenty numbers, and this log gives ten of them again: to other messages, and then goes beyond.
    gateway.configure(&routes(&kafka, "").replace("retry:", "active: \"00:00-00:01\"\n    retry:"));
    gateway.start_again().await;
    let others: Vec<Mark> = (100..130).map(mark).collect();
    for other in &others {
        publish_once(gateway.port, "one", "line/1", other.payload(64)).await.unwrap();
    }
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes(&kafka, ""));
    gateway.start_again().await;
    let told = gateway.wait_for_state("lake", LinkState::Misconfigured).await;
    let words = told.sink.and_then(|sink| sink.last_error).unwrap_or_default();
    assert!(words.contains("other ones have these numbers"), "{words}");
    assert_eq!(told.depth, 30, "nothing is taken for delivered");
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes(&kafka, ", transactional_id: after-the-backup"));
    gateway.start_again().await;
    gateway.wait_until_drained("lake").await;
    let all: Vec<Mark> = (0..20).map(mark).chain(others).collect();
    Ledger::compare(all.clone(), &kafka.receive("lake", &all).await).assert_exact("read committed");
    assert!(gateway.terminate().await.success());
}
