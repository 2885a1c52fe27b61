//! `tidegate doctor` at real remotes and bad certificates: what it says, what it advises, and its exit code.

use std::fs;
use std::sync::Arc;

use rumqttc_v5::QoS;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::{Gateway, configuration, run};
use crate::support::ledger::{Ledger, Mark};
use crate::support::pki::{Authority, Identity};
use crate::support::process::{Room, free_port};
use crate::support::remote::{Kafka, Mosquitto, Rabbit, left_out};
use crate::support::server::Server;
use crate::support::wait::{PATIENCE, until_true};

/// What it says, with the ports that differ from run to run taken out, and its exit code.
async fn doctor(links: &str, arguments: &[&str], ports: &[u16]) -> String {
    let room = Room::new("doctor");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("edge", &room.file("data"), free_port(), links)).unwrap();
    let all = [&["doctor", "-c", file.to_str().unwrap()], arguments].concat();
    let ended = run(&all).await;
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let said = ports.iter().fold(said, |said, port| said.replace(&port.to_string(), "PORT"));
    assert!(!room.file("data").exists(), "nothing was made");
    format!("{said}exit code {}", ended.status.code().unwrap())
}

fn rabbit_link(url: &str) -> String {
    format!(
        "links:\n  cloud: {{ rabbitmq: {{ url: \"{url}\", exchange: telemetry }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"cloud/line/{{rest}}\" }}\n  - {{ from: cloud/orders, to: broker/orders }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_rabbitmq() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("doctor").await;
    let (good, ports) = (rabbit.url(rabbit.port), [rabbit.port]);
    insta::assert_snapshot!("doctor_rabbitmq_exchange", doctor(&rabbit_link(&good), &[], &ports).await);
    rabbit.declare("telemetry", "all").await;
    rabbit.declare_queue("orders").await;
    insta::assert_snapshot!("doctor_rabbitmq_good", doctor(&rabbit_link(&good), &["cloud"], &ports).await);
    let wrong = good.replace("guest:guest@", "guest:gust@");
    let said = doctor(&rabbit_link(&wrong), &[], &ports).await;
    assert!(!said.contains("gust@"), "a password is told: {said}");
    insta::assert_snapshot!("doctor_rabbitmq_password", said);
    let nowhere = good.replace("/doctor", "/nowhere");
    insta::assert_snapshot!("doctor_rabbitmq_vhost", doctor(&rabbit_link(&nowhere), &[], &ports).await);
    let probe = ["cloud", "--probe", "line.probe"];
    insta::assert_snapshot!("doctor_rabbitmq_probe", doctor(&rabbit_link(&good), &probe, &ports).await);
    assert_eq!(rabbit.depth("all").await, 1, "one message, and only with --probe");
    rabbit.user("reader", "reader", ["", "", ".*"]).await;
    let reader = good.replace("guest:guest@", "reader:reader@");
    insta::assert_snapshot!("doctor_rabbitmq_permission", doctor(&rabbit_link(&reader), &probe, &ports).await);
}

/// What a link declares is declared; what stands in its way is told, with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_rabbitmq_declares_queues_as_the_link_would() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("doctor-queues").await;
    let (url, ports) = (rabbit.url(rabbit.port), [rabbit.port]);
    let link = |url: &str, more: &str| {
        format!(
            "links:\n  cloud: {{ rabbitmq: {{ url: \"{url}\", exchange: telemetry, declare: {{ type: topic }}, queues: {{ orders: {{ bindings: [ {{ key: orders }} ] }}{more} }} }} }}\nroutes:\n  - {{ from: cloud/orders, to: broker/orders }}\n"
        )
    };
    insta::assert_snapshot!("doctor_rabbitmq_queues", doctor(&link(&url, ""), &[], &ports).await);
    rabbit.declare_queue("other").await;
    let wrong = ", other: { type: quorum }, unbound: { bindings: [ { exchange: nowhere } ] }";
    insta::assert_snapshot!("doctor_rabbitmq_queues_wrong", doctor(&link(&url, wrong), &[], &ports).await);
    rabbit.user("declarer", "declarer", ["telemetry", ".*", ".*"]).await;
    let limited = url.replace("guest:guest@", "declarer:declarer@");
    insta::assert_snapshot!("doctor_rabbitmq_queues_permission", doctor(&link(&limited, ""), &[], &ports).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_kafka() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    let link = format!(
        "links:\n  lake: {{ kafka: {{ brokers: [ \"127.0.0.1:{}\" ] }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: lake/lake }}\n",
        kafka.port
    );
    insta::assert_snapshot!("doctor_kafka_topic", doctor(&link, &[], &[kafka.port]).await);
    kafka.create_topic("lake", 1).await;
    insta::assert_snapshot!("doctor_kafka_good", doctor(&link, &["lake", "--probe", "lake"], &[kafka.port]).await);
}

/// The rights to a group and to a transactional id show without taking either from a gateway that runs.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_kafka_throws_nobody_out() {
    if left_out(&["kafka"]) {
        return;
    }
    let kafka = Kafka::start().await;
    for topic in ["lake", "commands"] {
        kafka.create_topic(topic, 1).await;
    }
    let link = format!(
        "links:\n  lake: {{ kafka: {{ brokers: [ \"127.0.0.1:{}\" ], exactly_once: true }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: lake/lake }}\n  - {{ from: lake/commands, to: \"broker/cmd\" }}\n",
        kafka.port
    );
    insta::assert_snapshot!("doctor_kafka_exactly_once", doctor(&link, &[], &[kafka.port]).await);
    assert_eq!(kafka.committed("edge-lake", "commands", 1), 0, "the group has no position that nobody gave it");
    let gateway = Gateway::start(&link).await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd", QoS::AtLeastOnce).await;
    let marks: Vec<_> = (0..20).map(|number| Mark { publisher: 0, number }).collect();
    kafka.publish("commands", &marks[..10]).await;
    machine.receive(&marks[..10]).await;
    assert!(doctor(&link, &[], &[kafka.port]).await.ends_with("exit code 0"));
    kafka.publish("commands", &marks[10..]).await;
    Ledger::compare(marks.iter().copied(), &machine.receive(&marks).await).assert_exact("nothing is read twice");
    let work = Work {
        port: gateway.port,
        publishers: 1,
        messages: 10,
        qos: QoS::AtLeastOnce,
        window: 1,
        topic: "line".into(),
    };
    Publishers::start(work).finish().await;
    let link = gateway.wait_until_drained("lake").await;
    let connects = [link.sink.as_ref(), link.source.as_ref()].map(|half| half.map(|half| half.connects));
    assert_eq!((link.state, connects), (LinkState::Online, [Some(1), Some(1)]), "{link:?}");
}

/// Who may see the topics, and no more; and then each right that is missing, one by one.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_a_kafka_with_rules() {
    if left_out(&["kafka"]) {
        return;
    }
    let (room, ca) = (Room::new("pki"), Authority::new("ca of lake"));
    let server = ca.server();
    for (name, text) in [("ca.pem", &ca.pem), ("server.pem", &server.cert), ("server.key", &server.key)] {
        fs::write(room.file(name), text).unwrap();
    }
    let (kafka, [_, login]) = Kafka::start_secure(&room.file("")).await;
    for topic in ["lake", "commands"] {
        kafka.create_topic(topic, 1).await;
    }
    let link = format!(
        "links:\n  lake: {{ kafka: {{ brokers: [ \"127.0.0.1:{login}\" ], exactly_once: true, options: {{ security.protocol: SASL_SSL, ssl.ca.location: \"{}\", sasl.mechanism: PLAIN, sasl.username: reader, sasl.password: secret }} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: lake/lake }}\n  - {{ from: lake/commands, to: \"broker/cmd\" }}\n",
        room.file("ca.pem").display()
    );
    for (name, rule) in [
        ("doctor_kafka_group", "--operation Describe --topic lake --topic commands"),
        ("doctor_kafka_group_read", "--operation Describe --group edge-lake"),
        ("doctor_kafka_group_topic", "--operation Read --group edge-lake"),
        ("doctor_kafka_transaction", "--operation Read --topic commands --topic lake --group tidegate-edge-lake"),
        ("doctor_kafka_rights", "--operation Write --transactional-id tidegate-edge-lake"),
    ] {
        kafka.allow(&format!("--allow-principal User:reader {rule}")).await;
        let said = steady(&doctor(&link, &[], &[login]).await);
        let said =
            said.lines().filter(|line| !line.contains("password stands in the file")).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(name, said);
    }
}

/// librdkafka counts milliseconds and repeats, and the system names what did not fit in words of its own.
fn steady(said: &str) -> String {
    let mut steady = String::new();
    let mut rest = said;
    while let Some((before, after)) = rest.split_once(" (after ") {
        steady.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    steady + rest
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_a_kafka_that_asks_who_is_there() {
    if left_out(&["kafka"]) {
        return;
    }
    let (room, ca, strangers) = (Room::new("pki"), Authority::new("ca of lake"), Authority::new("somebody"));
    let server = ca.server();
    for (name, text) in [
        ("ca.pem", &ca.pem),
        ("strangers.pem", &strangers.pem),
        ("server.pem", &server.cert),
        ("server.key", &server.key),
    ] {
        fs::write(room.file(name), text).unwrap();
    }
    let (kafka, [_, login]) = Kafka::start_secure(&room.file("")).await;
    kafka.create_topic("lake", 1).await;
    for (name, user, password, authority) in [
        ("doctor_kafka_password", "plant-7", "wrong", "ca.pem"),
        ("doctor_kafka_authority", "plant-7", "secret", "strangers.pem"),
        ("doctor_kafka_permission", "reader", "secret", "ca.pem"),
    ] {
        let dir = room.file("").display().to_string();
        let link = format!(
            "links:\n  lake: {{ kafka: {{ brokers: [ \"127.0.0.1:{login}\" ], options: {{ security.protocol: SASL_SSL, ssl.ca.location: \"{dir}{authority}\", sasl.mechanism: PLAIN, sasl.username: {user}, sasl.password: {password} }} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: lake/lake }}\n"
        );
        let said = steady(&doctor(&link, &[], &[login]).await);
        let said =
            said.lines().filter(|line| !line.contains("password stands in the file")).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(name, said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_an_mqtt_broker_that_asks_who_is_there() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let room = Room::new("users");
    let made = std::process::Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(room.file("users"))
        .args(["plant", "secret"])
        .status();
    assert!(made.unwrap().success());
    fs::write(room.file("acl"), "user plant\ntopic write line/#\n").unwrap();
    fs::write(room.file("conf"), format!("acl_file {}\n", room.file("acl").display())).unwrap();
    let more = ["users", "conf"].map(|name| format!("{name}={}", room.file(name).display()));
    let mosquitto = Mosquitto::start_with(&more).await;
    fs::write(room.file("wrong"), "gust").unwrap();
    fs::write(room.file("right"), "secret").unwrap();
    for (name, password, to) in
        [("doctor_mqtt_password", "wrong", "line/probe"), ("doctor_mqtt_permission", "right", "other/probe")]
    {
        let file = format!(", password_file: \"{}\"", room.file(password).display());
        let link = mqtt_link(&format!("mqtt://plant@127.0.0.1:{}", mosquitto.port), &file);
        let said = doctor(&link, &["hq", "--probe", to], &[mosquitto.port]).await;
        assert!(!said.contains("gust") && !said.contains("secret"), "{said}");
        insta::assert_snapshot!(name, said);
    }
}

fn mqtt_link(url: &str, more: &str) -> String {
    format!(
        "links:\n  hq: {{ mqtt: {{ url: \"{url}\"{more} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"hq/line/{{rest}}\" }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_a_remote_mqtt_broker_throws_nobody_out() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let link = mqtt_link(&format!("mqtt://127.0.0.1:{}", mosquitto.port), "");
    let far = Subscriber::start(mosquitto.port, "far", "#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&link).await;
    insta::assert_snapshot!("doctor_mqtt_good", doctor(&link, &[], &[mosquitto.port]).await);
    assert_eq!(far.count(), 0, "nothing is published without --probe");
    insta::assert_snapshot!(
        "doctor_mqtt_probe",
        doctor(&link, &["hq", "--probe", "line/probe"], &[mosquitto.port]).await
    );
    until_true("the probe arrives", PATIENCE, || far.count() == 1).await;
    let status = gateway.status().await;
    assert_eq!(status.links[0].sink.as_ref().map(|sink| sink.connects), Some(1), "the gateway kept its connection");
    let closed = free_port();
    let link = mqtt_link(&format!("mqtt://127.0.0.1:{closed}"), "");
    insta::assert_snapshot!("doctor_refused", doctor(&link, &[], &[closed]).await);
    let unknown = doctor(&link, &["cloud"], &[closed]).await;
    assert!(unknown.contains("there is no link `cloud`; there are: hq") && unknown.ends_with("code 64"), "{unknown}");
}

fn tls(identity: &Identity) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_at_bad_certificates() {
    let room = Room::new("certificates");
    let (ca, other) = (Authority::new("ca of hq"), Authority::new("another ca"));
    let trusted = room.file("ca.pem");
    fs::write(&trusted, &ca.pem).unwrap();
    let ca_key = format!(", ca: \"{}\"", trusted.display());
    for (name, ip, identity) in [
        ("doctor_tls_expired", [127, 0, 0, 1], ca.expired("localhost")),
        ("doctor_tls_authority", [127, 0, 0, 1], other.server()),
        // It is for 127.0.0.1.
        ("doctor_tls_host", [127, 0, 0, 2], ca.server()),
    ] {
        let server = Server::start_at((ip, 0).into(), Some(tls(&identity)), |_| None);
        let link = mqtt_link(&format!("mqtts://user:secret@{}", server.address), &ca_key);
        let said = doctor(&link, &[], &[server.address.port()]).await;
        assert!(!said.contains("secret"), "{said}");
        insta::assert_snapshot!(name, said);
        let link = rabbit_link(&format!("amqps://user:secret@{}/%2f", server.address));
        let link = link.replace("exchange: telemetry", &format!("exchange: telemetry{ca_key}"));
        let said = doctor(&link, &[], &[server.address.port()]).await;
        assert!(!said.contains("secret"), "{said}");
        insta::assert_snapshot!(name.replace("doctor_", "doctor_rabbitmq_"), said);
        assert!(server.requests().is_empty(), "nothing goes to a server whose certificate does not hold");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_json_has_every_step() {
    let closed = free_port();
    let said = doctor(&mqtt_link(&format!("mqtt://127.0.0.1:{closed}"), ""), &["--json"], &[]).await;
    let json = said.rsplit_once("exit code ").unwrap().0;
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!((&json[0]["link"], &json[0]["kind"]), (&"hq".into(), &"mqtt".into()));
    let steps: Vec<_> =
        json[0]["steps"].as_array().unwrap().iter().map(|step| (&step["step"], &step["result"])).collect();
    assert_eq!(steps, [(&"name".into(), &"ok".into()), (&"tcp".into(), &"failed".into())]);
    assert_eq!(json[0]["steps"][1]["cause"], "remote");
}
