//! What a link to Kafka can do beside the plain one: every codec, every login, tombstones, where a group begins.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::pki::Authority;
use crate::support::process::Room;
use crate::support::remote::{Kafka, left_out};
use crate::support::wait::{PATIENCE, until_true};

fn link(port: u16, more: &str) -> String {
    format!(
        "links:\n  lake: {{ kafka: {{ brokers: \"127.0.0.1:{port}\"{more} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: lake/lake }}\n"
    )
}

fn marks(numbers: std::ops::Range<usize>) -> Vec<Mark> {
    numbers.map(|number| Mark { publisher: 0, number }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_is_read_by_another_client() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        kafka.create_topic(codec, 1).await;
        let routes =
            link(kafka.port, &format!(", compression: {codec}")).replace("lake/lake", &format!("lake/{codec}"));
        let gateway = Gateway::start(&routes).await;
        let work = Work {
            port: gateway.port,
            publishers: 1,
            messages: 100,
            qos: QoS::AtLeastOnce,
            window: 50,
            topic: "line".into(),
        };
        let acknowledged = Publishers::start(work).finish().await;
        Ledger::compare(acknowledged.clone(), &kafka.receive(codec, &acknowledged).await).assert_exact(codec);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_lets_in_and_a_wrong_one_is_told_in_the_remotes_words() {
    if left_out(&["kafka"]) {
        return;
    }
    let (room, ca, strangers) = (Room::new("pki"), Authority::new("ca of lake"), Authority::new("somebody"));
    let (server, plant) = (ca.server(), ca.client("plant-7"));
    let claims = format!(
        "{{\"sub\":\"plant-7\",\"iat\":{0},\"exp\":{1}}}",
        tidegate::clock::wall().0 / 1_000 - 5,
        tidegate::clock::wall().0 / 1_000 + 900
    );
    let jwt = format!("{}.{}.", URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"), URL_SAFE_NO_PAD.encode(claims));
    for (name, text) in [
        ("ca.pem", &ca.pem),
        ("strangers.pem", &strangers.pem),
        ("server.pem", &server.cert),
        ("server.key", &server.key),
        ("plant.pem", &plant.cert),
        ("plant.key", &plant.key),
        ("token", &jwt),
    ] {
        fs::write(room.file(name), text).unwrap();
    }
    let (kafka, [mutual, login]) = Kafka::start_secure(&room.file("")).await;
    kafka.create_topic("lake", 1).await;
    let dir = |text: &str| text.replace("DIR", &room.file("").display().to_string());
    let sasl = |mechanism: &str, password: &str, ca: &str| {
        format!(
            "options: {{ security.protocol: SASL_SSL, ssl.ca.location: DIR{ca}, sasl.mechanism: {mechanism}, sasl.username: plant-7, sasl.password: {password} }}"
        )
    };
    let certificate = "options: { security.protocol: SSL, ssl.ca.location: DIRca.pem, ssl.certificate.location: DIRplant.pem, ssl.key.location: DIRplant.key }";
    let token = "token_file: DIRtoken, options: { security.protocol: SASL_SSL, ssl.ca.location: DIRca.pem, sasl.mechanism: OAUTHBEARER }";
    let ways = [
        (mutual, certificate.to_owned()),
        (login, sasl("PLAIN", "secret", "ca.pem")),
        (login, sasl("SCRAM-SHA-256", "secret", "ca.pem")),
        (login, sasl("SCRAM-SHA-512", "secret", "ca.pem")),
        (login, token.to_owned()),
        (login, format!("exactly_once: true, {token}")),
    ];
    for (number, (port, way)) in ways.iter().enumerate() {
        let routes = format!("{}  - {{ from: lake/lake, to: broker/read }}\n", link(*port, &format!(", {}", dir(way))));
        let gateway = Gateway::start_site("writer", &routes).await;
        publish_once(gateway.port, "one", "line/0", Mark { publisher: 0, number }.payload(64)).await.unwrap();
        gateway.wait_until_drained("lake").await;
        let reads = |link: &LinkStatus| link.source.as_ref().is_some_and(|source| source.state == LinkState::Online);
        gateway.wait_for_link("lake", "it reads by the same login", reads).await;
    }
    let sent = marks(0..ways.len());
    Ledger::compare(sent.clone(), &kafka.receive("lake", &sent).await).assert_exact("every login");
    for (way, words) in [
        (sasl("SCRAM-SHA-512", "wrong", "ca.pem"), "uthentication"),
        (sasl("PLAIN", "secret", "strangers.pem"), "certificate verify failed"),
    ] {
        let gateway = Gateway::start(&link(login, &format!(", {}", dir(&way)))).await;
        let told = gateway.wait_for_state("lake", LinkState::Misconfigured).await;
        let said = told.sink.and_then(|sink| sink.last_error).unwrap_or_default();
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_payload_is_a_tombstone_where_it_is_asked_for() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("lake", 1).await;
    for (tombstones, expected) in [(true, vec![None]), (false, vec![None, Some(0)])] {
        let gateway = Gateway::start(&link(kafka.port, &format!(", tombstones: {tombstones}"))).await;
        publish_once(gateway.port, "one", "line/0", Vec::new()).await.unwrap();
        gateway.wait_until_drained("lake").await;
        let values: Vec<Option<usize>> =
            kafka.values("lake", expected.len()).await.into_iter().map(|value| value.map(|v| v.len())).collect();
        assert_eq!(values, expected, "tombstones: {tombstones}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_begins_where_it_is_told_and_goes_on_from_there() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    // One partition: between several there is no order to hold.
    kafka.create_topic("orders", 1).await;
    kafka.publish_at("orders", &marks(0..20), 1_700_000_000_000).await;
    kafka.publish_at("orders", &marks(20..40), 1_790_000_000_000).await;
    let routes = |group: &str, start: &str| {
        format!(
            "links:\n  lake: {{ kafka: {{ brokers: \"127.0.0.1:{}\", group: {group}, start: \"{start}\" }} }}\nroutes:\n  - {{ from: lake/orders, to: broker/orders }}\n",
            kafka.port
        )
    };
    for (group, start, expected) in [("all", "earliest", marks(0..40)), ("some", "2026-01-01T00:00:00Z", marks(20..40))]
    {
        let (_gateway, machine) = Subscriber::before(&routes(group, start), "orders").await;
        let arrived = machine.receive(&expected).await;
        Ledger::compare(expected, &arrived).assert_kept(group, 0);
        assert!(arrived.iter().all(|delivery| group == "all" || delivery.mark().number >= 20), "{arrived:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_not_left_while_a_rate_holds_a_batch() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    kafka.create_topic("orders", 1).await;
    let all = marks(0..300);
    kafka.publish("orders", &all).await;
    // A batch of 256 takes longer than librdkafka may go without a poll here.
    let routes = format!(
        "links:\n  lake:\n    kafka: {{ brokers: \"127.0.0.1:{}\", group: slow, options: {{ max.poll.interval.ms: 6000, session.timeout.ms: 6000 }} }}\n    rate: {{ messages: 25/s, burst: 200ms }}\nroutes:\n  - {{ from: lake/orders, to: broker/orders }}\n",
        kafka.port
    );
    let (gateway, machine) = Subscriber::before(&routes, "orders").await;
    let arrived = machine.receive(&all).await;
    until_true("all is committed", PATIENCE, || kafka.committed("slow", "orders", 1) == 300).await;
    Ledger::compare(all, &arrived).assert_exact("under a rate");
    assert_eq!(machine.count(), 300, "nothing came twice");
    assert!(!gateway.log().contains("connection lost"), "{}", gateway.log());
}
