//! What a link to a remote MQTT broker can do beside publishing on one plain address: other addresses, every transport, tokens that are
//! looked up, its state on a topic, shares of one stream.

use std::fs;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::pki::Authority;
use crate::support::process::{Room, free_port};
use crate::support::remote::{Ending, Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until, until_true};

const MESSAGES: usize = 200;

fn work(port: u16) -> Work {
    Work { port, publishers: 2, messages: MESSAGES, qos: QoS::AtLeastOnce, window: 20, topic: "line".into() }
}

fn link(mqtt: &str) -> String {
    format!(
        "links:\n  hq:\n    mqtt: {{ {mqtt} }}\n    retry: {{ min: 10ms, max: 200ms }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"hq/line/{{rest}}\" }}\n"
    )
}

fn is_online(link: &LinkStatus) -> bool {
    link.state == LinkState::Online
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_goes_to_its_next_address_and_comes_back_to_the_first() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let (mut home, other) = (Mosquitto::start().await, Mosquitto::start().await);
    let at_home = Subscriber::start(home.port, "far", "line/#", QoS::AtLeastOnce).await;
    let elsewhere = Subscriber::start(other.port, "far", "line/#", QoS::AtLeastOnce).await;
    let urls =
        format!("url: [ \"mqtt://127.0.0.1:{}\", \"mqtt://127.0.0.1:{}\" ], fail_back: 1s", home.port, other.port);
    let gateway = Gateway::start(&link(&urls)).await;
    let publishers = Publishers::start(work(gateway.port));
    publishers.allow(MESSAGES / 4);
    until_true("the home has some", PATIENCE, || at_home.count() == MESSAGES / 4).await;
    home.end(Ending::Asked).await;
    publishers.allow(MESSAGES / 2);
    until_true("the other has the rest", PATIENCE, || elsewhere.count() >= MESSAGES / 4).await;
    home.start_again().await;
    until("the link is home", PATIENCE, async || {
        let log = gateway.log();
        if log.contains(&format!("back to 127.0.0.1:{}", home.port)) { Ok(()) } else { Err(log) }
    })
    .await;
    gateway.wait_for_link("hq", "online", is_online).await;
    let before = elsewhere.count();
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("hq").await;
    let all = || [at_home.arrived(), elsewhere.arrived()].concat();
    until("all arrive", PATIENCE, async || {
        let lost = Ledger::compare(acknowledged.clone(), &all()).lost;
        if lost.is_empty() { Ok(()) } else { Err(format!("{} missing", lost.len())) }
    })
    .await;
    assert_eq!(elsewhere.count(), before, "nothing goes elsewhere once the home is back");
}

/// By each transport a remote gateway is reached and what is published arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_speaks_every_transport_with_certificates_both_ways() {
    let (room, ca, clients) = (Room::new("pki"), Authority::new("ca of hq"), Authority::new("ca of plants"));
    let (server, plant) = (ca.server(), clients.client("plant-7"));
    let files = [
        ("ca.pem", &ca.pem),
        ("clients.pem", &clients.pem),
        ("server.pem", &server.cert),
        ("server.key", &server.key),
        ("plant.pem", &plant.cert),
        ("plant.key", &plant.key),
    ];
    for (name, text) in files {
        fs::write(room.file(name), text).unwrap();
    }
    let dir = |text: &str| text.replace("DIR", &room.file("").display().to_string());
    let ports: [u16; 4] = std::array::from_fn(|_| free_port());
    let terms = [
        "tls: { cert: DIRserver.pem, key: DIRserver.key }",
        "tls: { cert: DIRserver.pem, key: DIRserver.key, client_ca: DIRclients.pem }",
        "websocket: true",
        "tls: { cert: DIRserver.pem, key: DIRserver.key }, websocket: { path: /hq }",
    ];
    let listeners = ports
        .iter()
        .zip(terms)
        .map(|(port, terms)| format!("    - {{ bind: \"127.0.0.1:{port}\", anonymous: true, {} }}\n", dir(terms)));
    let hq = Gateway::start_site("hq", &listeners.collect::<String>()).await;
    let [tls, mutual, plain_ws, wss] = ports;
    for (version, way, url, more) in [
        ("5", "mqtts", format!("mqtts://127.0.0.1:{tls}"), "ca: DIRca.pem, alpn: mqtt"),
        (
            "3.1.1",
            "mutual",
            format!("mqtts://127.0.0.1:{mutual}"),
            "ca: DIRca.pem, cert: DIRplant.pem, key: DIRplant.key",
        ),
        ("5", "ws", format!("ws://127.0.0.1:{plain_ws}"), "keep_alive: 30s"),
        ("3.1.1", "wss", format!("wss://127.0.0.1:{wss}/hq"), "ca: DIRca.pem, server_name: localhost"),
    ] {
        let far = Subscriber::start(hq.port, &format!("far-{way}"), &format!("{way}/line/#"), QoS::AtLeastOnce).await;
        let mqtt = dir(&format!("url: \"{url}\", version: {version}, client_id: {way}, {more}"));
        let routes = link(&mqtt).replace("hq/line", &format!("hq/{way}/line"));
        let gateway = Gateway::start(&routes).await;
        let acknowledged = Publishers::start(work(gateway.port)).finish().await;
        let mut arrived = far.receive(&acknowledged).await;
        if version == "3.1.1" {
            arrived.iter_mut().for_each(|delivery| delivery.properties.clear());
        }
        Ledger::compare(acknowledged, &arrived).assert_exact(way);
    }
    let no_certificate = format!("url: \"mqtts://127.0.0.1:{mutual}\", ca: DIRca.pem");
    let gateway = Gateway::start(&link(&dir(&no_certificate))).await;
    let told = gateway.wait_for_state("hq", LinkState::Misconfigured).await;
    let words = told.sink.and_then(|sink| sink.last_error).unwrap_or_default();
    assert!(words.contains("ertificate"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_looked_up_anew_when_it_is_refused_and_before_it_ends() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let room = Room::new("token");
    let users = room.file("users");
    let user = |name: &str, token: &str| {
        let made =
            std::process::Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args([name, token]).status();
        assert!(made.unwrap().success());
    };
    let now = || tidegate::clock::wall().0 / 1_000;
    // It ends soon, so it is looked up again soon.
    let token = format!("SharedAccessSignature sr=hq&sig=a&se={}", now() + 4);
    user("plant", &token);
    let mosquitto = Mosquitto::start_with(&[format!("users={}", users.display())]).await;
    fs::write(room.file("0"), "an old token").unwrap();
    fs::write(room.file("1"), &token).unwrap();
    fs::write(room.file("count"), "0").unwrap();
    let script = room.file("token.sh");
    // Its first answer is refused.
    fs::write(&script, "cd \"$1\"; n=$(cat count); cat $n; echo 1 >count\n").unwrap();
    let mqtt = format!(
        "url: \"mqtt://plant@127.0.0.1:{}\", password_command: [ sh, {}, {} ]",
        mosquitto.port,
        script.display(),
        room.file("").display()
    );
    let gateway = Gateway::start(&link(&mqtt)).await;
    gateway.wait_for_link("hq", "in by the second look", is_online).await;
    let again = |link: &LinkStatus| is_online(link) && link.sink.as_ref().is_some_and(|sink| sink.connects > 1);
    gateway.wait_for_link("hq", "in by the third", again).await;
    let log = gateway.log();
    assert!(log.contains("the token ends") && !log.contains("SharedAccessSignature"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_says_on_a_topic_how_it_is_and_its_will_says_it_when_it_cannot() {
    if left_out(&["mosquitto"]) {
        return;
    }
    for version in ["5", "3.1.1"] {
        let mosquitto = Mosquitto::start().await;
        let states = Subscriber::start(mosquitto.port, "states", "state/#", QoS::AtLeastOnce).await;
        let mqtt =
            format!("url: \"mqtt://127.0.0.1:{}\", version: {version}, state_topic: state/plant-7", mosquitto.port);
        let mut gateway = Gateway::start(&link(&mqtt)).await;
        let said = || states.arrived().into_iter().map(|Delivery { payload, .. }| String::from_utf8(payload).unwrap());
        let says = async |what: &str, all: &[&str]| {
            until(what, PATIENCE, async || {
                let said: Vec<String> = said().collect();
                if said == all { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        };
        says("it came", &["online"]).await;
        gateway.kill_9();
        says("it was killed", &["online", "offline"]).await;
        gateway.start_again().await;
        says("it is back", &["online", "offline", "online"]).await;
        assert!(gateway.terminate().await.success());
        says("it took leave", &["online", "offline", "online", "offline"]).await;
        let late = Subscriber::start(mosquitto.port, "late", "state/#", QoS::AtLeastOnce).await;
        until_true("the last word is kept", PATIENCE, || late.count() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_one_stream_and_each_message_goes_to_one_of_them() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let routes = |id: &str| {
        format!(
            "links:\n  hq: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\", client_id: {id} }} }}\nroutes:\n  - {{ from: \"hq/$share/plants/line/#\", to: \"broker/line/{{rest}}\" }}\n",
            mosquitto.port
        )
    };
    let (one, two) = (Gateway::start(&routes("one")).await, Gateway::start_site("other", &routes("two")).await);
    let at_one = Subscriber::start(one.port, "machine", "line/#", QoS::AtLeastOnce).await;
    let at_two = Subscriber::start(two.port, "machine", "line/#", QoS::AtLeastOnce).await;
    for gateway in [&one, &two] {
        gateway.wait_for_link("hq", "online", is_online).await;
    }
    let published: Vec<Mark> = Publishers::start(work(mosquitto.port)).finish().await;
    until_true("all arrive", PATIENCE, || at_one.count() + at_two.count() >= MESSAGES).await;
    let all = [at_one.arrived(), at_two.arrived()].concat();
    let ledger = Ledger::compare(published, &all);
    assert!(ledger.lost.is_empty() && all.len() == MESSAGES, "{} arrived: {ledger:?}", all.len());
    assert!(at_one.count() > 0 && at_two.count() > 0, "both take part: {} and {}", at_one.count(), at_two.count());
}
