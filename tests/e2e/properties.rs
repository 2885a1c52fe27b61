//! Properties of MQTT 5 over other kinds of remotes and back to MQTT 5, by Mosquitto's own clients.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::gateway::Gateway;
use crate::support::remote::{Kafka, Rabbit, left_out};
use crate::support::wait::PATIENCE;

const SENT: &[&str] = &[
    "-t",
    "line/press-7",
    "-q",
    "2",
    "-r",
    "-m",
    "{\"temp\":81.5}",
    "-D",
    "publish",
    "content-type",
    "application/json",
    "-D",
    "publish",
    "response-topic",
    "answers/press-7",
    "-D",
    "publish",
    "correlation-data",
    "call-7",
    "-D",
    "publish",
    "message-expiry-interval",
    "3600",
    "-D",
    "publish",
    "payload-format-indicator",
    "1",
    "-D",
    "publish",
    "user-property",
    "colour",
    "blue",
    "-D",
    "publish",
    "user-property",
    "shift",
    "early",
    "-D",
    "publish",
    "user-property",
    "shift",
    "late",
    "-D",
    "publish",
    "user-property",
    "traceparent",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
];

/// Publishes at `from` and reads at `to` what arrives: topic, payload, QoS, and what a message carries beside.
async fn carried(from: &Gateway, to: &Gateway) -> Vec<String> {
    let form = "%t\n%p\nqos %q\nretain %r\n%C\n%R\n%D\nutf8 %F\nexpires %E\n%P\nend";
    let port = to.port.to_string();
    let mut subscriber = Command::new("mosquitto_sub")
        .args(["-V", "5", "-p", &port, "-t", "line/#", "-q", "2", "-F", form, "--retain-as-published"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let port = from.port.to_string();
    let mut publisher = Command::new("mosquitto_pub");
    publisher.args(["-V", "5", "-p", &port, "-i", "press-7"]).args(SENT).kill_on_drop(true);
    assert!(timeout(PATIENCE, publisher.status()).await.unwrap().unwrap().success());
    let mut lines = BufReader::new(subscriber.stdout.take().unwrap()).lines();
    let mut read = Vec::new();
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await.expect("it arrives").unwrap() {
        if line == "end" {
            break;
        }
        read.push(line);
    }
    read
}

fn check(how: &str, carried: &[String], in_order: bool) {
    let has = |line: &str| assert!(carried.iter().any(|found| found == line), "{how}: no `{line}` in {carried:#?}");
    for line in ["line/press-7", "{\"temp\":81.5}", "qos 2", "application/json", "answers/press-7", "call-7", "utf8 1"]
    {
        has(line);
    }
    let expires =
        carried.iter().find_map(|line| line.strip_prefix("expires ")?.parse::<u32>().ok()).unwrap_or_default();
    assert!((3_000..=3_600).contains(&expires), "{how}: {expires}");
    let pairs = carried.join(" ");
    for pair in ["colour:blue", "shift:early", "shift:late", "tg-client:press-7", "tg-site:edge", "tg-path:edge"] {
        assert!(pairs.contains(pair), "{how}: no `{pair}` in {pairs}");
    }
    assert!(pairs.contains("traceparent:00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), "{how}: {pairs}");
    let at = |pair: &str| pairs.find(pair);
    assert!(at("shift:early") < at("shift:late"), "{how}: {pairs}");
    assert!(!in_order || at("colour:blue") < at("shift:early"), "{how}: {pairs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_mqtt_5_cross_rabbitmq_and_kafka() {
    if left_out(&["mosquitto", "rabbitmq", "kafka"]) {
        return;
    }
    let (rabbit, kafka) = tokio::join!(Rabbit::start("properties"), Kafka::start());
    rabbit.declare("telemetry", "all").await;
    kafka.create_topic("lake", 1).await;
    let cloud = format!("cloud: {{ rabbitmq: {{ url: \"{}\", exchange: telemetry }} }}", rabbit.url(rabbit.port));
    let lake = format!("lake: {{ kafka: {{ brokers: \"127.0.0.1:{}\" }} }}", kafka.port);
    for (how, link, to, from, in_order) in [
        ("RabbitMQ", &cloud, "cloud/line/{rest}", "cloud/all", false),
        ("Kafka", &lake, "lake/lake", "lake/lake", true),
    ] {
        let out = format!("links:\n  {link}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"{to}\" }}\n");
        let back = format!("links:\n  {link}\nroutes:\n  - {{ from: {from}, to: \"broker/{{topic}}\" }}\n");
        let edge = Gateway::start(&out).await;
        let hq = Gateway::start_site("hq", &back).await;
        check(how, &carried(&edge, &hq).await, in_order);
    }
}
