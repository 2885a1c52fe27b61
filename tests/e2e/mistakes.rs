//! What goes wrong outside the gateway, each with its clear error or link state; and nothing is lost by it.

use std::fs;

use rumqttc_v5::{PubAckReason, PublishNoticeError, QoS};
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::disk::SmallDisk;
use crate::support::gateway::{Gateway, configuration, run};
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::{Room, did_not_run, free_port};
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until_true};

fn work(port: u16, messages: usize) -> Work {
    Work { port, publishers: 2, messages, qos: QoS::AtLeastOnce, window: 20, topic: "line".into() }
}

#[tokio::test]
async fn every_mistake_of_a_file_is_reported_in_one_run_with_its_line() {
    let room = Room::new("mistakes");
    let file = room.file("routes.yaml");
    let text = configuration(
        "edge",
        &room.file("data"),
        free_port(),
        r#"links:
  cloud:
    rabbitmq: { url: "amqp://guest:${env:TIDEGATE_NO_SUCH_SECRET}@127.0.0.1:1/%2f", exchange: telemetry }
routes:
  - { name: first, from: "broker/line/#", to: "clod/line/{rest}" }
  - { name: second, from: "broker/li#ne/+", to: "cloud/line" }
"#,
    );
    fs::write(&file, &text).unwrap();
    let line_of = |needle: &str| text.lines().position(|line| line.contains(needle)).unwrap() + 1;
    for command in [["check", "-c"], ["run", "-c"]] {
        let ended = run(&[command[0], command[1], file.to_str().unwrap()]).await;
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(ended.status.code(), Some(65), "{command:?}:\n{said}");
        for (needle, word) in [("TIDEGATE_NO_SUCH", "TIDEGATE_NO_SUCH_SECRET"), ("clod", "cloud"), ("li#ne", "#")] {
            let place = format!("routes.yaml:{}:", line_of(needle));
            let reported = said.lines().any(|line| line.contains(&place) && line.contains(": error: "));
            assert!(reported && said.contains(word), "{command:?}: no error at {place} about {word}:\n{said}");
        }
    }
    assert!(!room.file("data").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_misconfigured_in_the_remotes_words_and_loses_nothing() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("password").await;
    rabbit.declare("telemetry", "all").await;
    let good = routes(&rabbit.url(rabbit.port));
    let mut gateway = Gateway::start(&good.replace("guest:guest@", "guest:gust@")).await;
    misconfigured_until(&mut gateway, &rabbit, "access_refused", async |gateway| gateway.configure(&good)).await;
    assert!(!gateway.log().contains("gust@"), "a password in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_is_misconfigured_in_the_remotes_words_and_loses_nothing() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("exchange").await;
    let mut gateway = Gateway::start(&routes(&rabbit.url(rabbit.port))).await;
    misconfigured_until(&mut gateway, &rabbit, "no exchange", async |_: &Gateway| {
        rabbit.declare("telemetry", "all").await;
    })
    .await;
}

fn routes(url: &str) -> String {
    format!(
        "links:\n  cloud:\n    rabbitmq: {{ url: \"{url}\", exchange: telemetry }}\nroutes:\n  - {{ name: up, from: \"broker/line/#\", to: \"cloud/line/{{rest}}\" }}\n"
    )
}

/// Publishers are served while the link says what is wrong; once it is mended, all that they published arrives.
async fn misconfigured_until(gateway: &mut Gateway, rabbit: &Rabbit, words: &str, mend: impl AsyncFn(&Gateway)) {
    let seen = gateway.wait_for_state("cloud", LinkState::Misconfigured).await;
    let error = seen.sink.and_then(|sink| sink.last_error).unwrap_or_default();
    assert!(error.to_lowercase().contains(words), "{error}");
    let acknowledged = Publishers::start(work(gateway.port, 500)).finish().await;
    let seen = gateway.wait_for_state("cloud", LinkState::Misconfigured).await;
    assert_eq!((seen.depth, seen.dead_letters), (500, 0), "R15: a wrong permission makes no dead letters");
    mend(gateway).await;
    assert!(gateway.terminate().await.success());
    gateway.start_again().await;
    gateway.wait_until_drained("cloud").await;
    Ledger::compare(acknowledged.clone(), &rabbit.receive("all", &acknowledged).await).assert_exact("once mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let gateway = Gateway::start("").await;
    let room = Room::new("second");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("second", &room.file("data"), gateway.port, "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(matches!(ended.status.code(), Some(69 | 74)), "{}: {said}", ended.status);
    assert!(said.contains(&format!("127.0.0.1:{}", gateway.port)) && said.to_lowercase().contains("in use"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r36_a_data_folder_in_use_is_named() {
    let gateway = Gateway::start("").await;
    let room = Room::new("second");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("second", gateway.data(), free_port(), "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code().is_some_and(|code| code != 0 && code != 70), "{}: {said}", ended.status);
    assert!(said.contains(gateway.data().to_str().unwrap()), "{said}");
    assert!(gateway.status().await.ready, "the first is not disturbed");
}

#[tokio::test]
async fn an_unwritable_data_folder_is_named() {
    let room = Room::new("unwritable");
    let in_the_way = room.file("file");
    fs::write(&in_the_way, "not a folder").unwrap();
    let data = in_the_way.join("data");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("edge", &data, free_port(), "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(matches!(ended.status.code(), Some(74 | 77)), "{}: {said}", ended.status);
    assert!(said.contains(data.to_str().unwrap()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_publishers_and_loses_nothing() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some(disk) = SmallDisk::mount("96m") else { return did_not_run("this user may not mount a small disk") };
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start_at(
        &disk.path().join("data"),
        &format!(
            r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    buffer: {{ max_size: 32MiB, min_free: 8MiB, when_full: reject }}
    retry: {{ min: 100ms, max: 500ms }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#,
            proxy.port()
        ),
    )
    .await;
    let publishers = Publishers::start(work(gateway.port, 1_000));
    publishers.allow(500);
    publishers.reach(500).await;

    let ballast = disk.fill();
    publishers.allow(1_000);
    // What was admitted before the disk said that it is full waits, unacknowledged; who comes later is told why.
    until_true("the disk is seen to be full", PATIENCE, || gateway.log().contains("the disk is short")).await;
    let probe = Mark { publisher: 9, number: 0 }.payload(64);
    let answer = publish_once(gateway.port, "probe", "line/9", probe).await;
    assert_eq!(answer, Err(PublishNoticeError::V5PubAck(PubAckReason::QuotaExceeded)));
    let status = gateway.status().await;
    assert!(status.ready && !status.broker.refused.is_empty(), "{status:?}");

    // Room again: it goes on by itself, and drains.
    fs::remove_file(ballast).unwrap();
    until_true("publishers are served again", PATIENCE, || publishers.acknowledged() == 1_000).await;
    proxy.set(Mode::Pass).await;
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    let ledger = Ledger::compare(acknowledged.clone(), &far.receive(&acknowledged).await);
    // Not in order: what was refused is published again behind what its publisher had already sent and was taken.
    assert_eq!((ledger.lost, ledger.duplicates), (Vec::new(), 0));
}
