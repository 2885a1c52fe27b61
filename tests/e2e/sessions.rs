//! The built-in broker towards its clients: exactly once over kills, and Mosquitto's own command-line clients.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::client::{Subscriber, Work, publish_exactly_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::process::free_port;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

#[tokio::test(flavor = "multi_thread")]
async fn r18_qos_2_from_publisher_to_subscriber_is_exactly_once_over_kills() {
    // Where the kills come is by seed. More of them: TIDEGATE_SEEDS=100.
    let seeds = std::env::var("TIDEGATE_SEEDS").map_or(6, |seeds| seeds.parse().expect("TIDEGATE_SEEDS is a number"));
    for seed in 0..seeds {
        exactly_once_over_kills(seed).await;
    }
}

async fn exactly_once_over_kills(seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    // A link whose remote is away: its log shows what the publisher's half came to (R18).
    let away = free_port();
    let link = format!(
        "links:\n  far:\n    mqtt: {{ url: \"mqtt://127.0.0.1:{away}\" }}\nroutes:\n  - {{ from: \"broker/exact/#\", to: \"far/{{rest}}\" }}\n"
    );
    let mut gateway = Gateway::start(&link).await;
    let subscriber = Subscriber::start(gateway.port, "once", "exact/#", QoS::ExactlyOnce).await;
    let work = Work {
        port: gateway.port,
        publishers: 1,
        messages: 1_000,
        qos: QoS::ExactlyOnce,
        window: 20,
        topic: "exact".into(),
    };
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let publishing = publish_exactly_once(work, Arc::clone(&acknowledged));
    let killing = async {
        let mut kill_at = 0;
        for _ in 0..3 {
            kill_at += dice.random_range(1..300);
            until_true("exchanges complete", PATIENCE, || acknowledged.load(Ordering::Relaxed) >= kill_at).await;
            // Not always right behind an acknowledgement.
            for _ in 0..dice.random_range(0..300) {
                tokio::task::yield_now().await;
            }
            gateway.kill_9();
            gateway.start_again().await;
        }
    };
    let (published, ()) = tokio::join!(publishing, killing);
    let arrived = subscriber.receive(&published).await;
    // A copy would have been sent before the last message's acknowledgement.
    gateway.wait_for("nothing is owed", |status| status.broker.owed == 0).await;
    Ledger::compare(published, &arrived).assert_exact(&format!("QoS 2 to QoS 2, seed {seed}"));
    assert_eq!(arrived.len(), 1_000);
    assert_eq!(subscriber.sessions(), 1, "the session was kept, and so not subscribed anew");
    let far = gateway.status().await.links.into_iter().find(|link| link.name == "far").unwrap();
    assert_eq!(far.ledger["accepted"], 1_000, "each is in the link's log once, seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_clients_publish_and_subscribe_at_every_qos_in_both_versions() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let gateway = Gateway::start("").await;
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("{version}/{qos}");
            let mut sub = Sub::start(&gateway, version, &["-q", qos, "-t", &format!("{topic}/#")]).await;
            publish(&gateway, version, &["-q", qos, "-t", &format!("{topic}/first"), "-r", "-m", "retained"]).await;
            assert_eq!(sub.line().await, format!("{topic}/first {qos} 0 retained"), "live: not marked as retained");
            let mut late = Sub::start(&gateway, version, &["-q", "2", "-t", &format!("{topic}/#")]).await;
            assert_eq!(late.line().await, format!("{topic}/first {qos} 1 retained"), "late: marked as retained");
            publish(&gateway, version, &["-q", qos, "-t", &format!("{topic}/second"), "-m", "live"]).await;
            assert_eq!(sub.line().await, format!("{topic}/second {qos} 0 live"));
            assert_eq!(late.line().await, format!("{topic}/second {qos} 0 live"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_will_is_published_when_its_client_is_killed() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let gateway = Gateway::start("").await;
    for version in ["mqttv311", "mqttv5"] {
        let mut watcher = Sub::start(&gateway, version, &["-q", "1", "-t", "wills"]).await;
        let will = ["-t", "nothing", "--will-topic", "wills", "--will-payload", "gone", "--will-qos", "1"];
        let mut client = Sub::start(&gateway, version, &will).await;
        client.child.kill().await.unwrap();
        assert_eq!(watcher.line().await, "wills 1 0 gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_subscriptions_owed_and_retained_messages_survive_a_kill() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mut gateway = Gateway::start("").await;
    let keep = |version| -> Vec<&str> {
        let expiry: &[&str] = if version == "mqttv5" { &["-x", "3600"] } else { &[] };
        [&["-c", "-i", version, "-q", "2", "-t", "kept/#"], expiry].concat()
    };
    for version in ["mqttv311", "mqttv5"] {
        // Connects, subscribes, and leaves its session behind.
        let leaving = [keep(version), vec!["-E"]].concat();
        assert!(client(&gateway, "mosquitto_sub", version, &leaving).status().await.unwrap().success());
    }
    for qos in ["1", "2"] {
        publish(&gateway, "mqttv5", &["-q", qos, "-t", "kept/owed", "-m", qos]).await;
    }
    publish(&gateway, "mqttv311", &["-q", "1", "-r", "-t", "state", "-m", "on"]).await;
    let before = gateway.status().await.broker;
    gateway.kill_9();
    gateway.start_again().await;
    let after = gateway.status().await.broker;
    assert_eq!((after.sessions_offline, after.owed, after.retained), (2, 4, 1));
    assert_eq!((before.sessions_offline, before.owed, before.retained), (2, 4, 1));
    publish(&gateway, "mqttv5", &["-q", "1", "-t", "kept/later", "-m", "subscribed still"]).await;
    for version in ["mqttv311", "mqttv5"] {
        let mut sub = Sub::start(&gateway, version, &keep(version)).await;
        let arrived = [sub.line().await, sub.line().await, sub.line().await];
        // Order holds within a QoS: mosquitto_sub shows a QoS 2 message only at the end of its exchange.
        let at = |wanted: &str| arrived.iter().position(|line| line == wanted);
        let [first, second, later] = ["kept/owed 1 0 1", "kept/owed 2 0 2", "kept/later 1 0 subscribed still"].map(at);
        assert!(second.is_some() && first.is_some() && first < later, "{version}: {arrived:?}");
    }
    let mut sub = Sub::start(&gateway, "mqttv5", &["-q", "1", "-t", "state"]).await;
    assert_eq!(sub.line().await, "state 1 1 on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_mqtt_client_sees_each_links_state_and_the_brokers_figures_below_sys() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let remote = Mosquitto::start().await;
    let mut proxy = Proxy::start(remote.port).await;
    proxy.set(Mode::Refuse).await;
    let links = format!(
        "links:\n  far:\n    mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}\n    retry: {{ min: 50ms, max: 100ms }}\nroutes:\n  - {{ name: far, from: \"broker/line/#\", to: \"far/line/{{rest}}\" }}\n",
        proxy.port()
    );
    let gateway = Gateway::start(&links).await;
    gateway.wait_for_state("far", LinkState::BackingOff).await;
    let mut sub = Sub::start(&gateway, "mqttv5", &["-t", "$SYS/tidegate/links/#"]).await;
    let first = sub.line().await;
    assert!(first.starts_with("$SYS/tidegate/links/far/state 0 1 "), "retained: {first}");
    proxy.set(Mode::Pass).await;
    while sub.line().await != "$SYS/tidegate/links/far/state 0 0 online" {}
    proxy.set(Mode::Refuse).await;
    while sub.line().await != "$SYS/tidegate/links/far/state 0 0 backing_off" {}
    let mut sub = Sub::start(&gateway, "mqttv311", &["-t", "$SYS/broker/version"]).await;
    assert_eq!(sub.line().await, concat!("$SYS/broker/version 0 1 tidegate version ", env!("CARGO_PKG_VERSION")));
}

fn client(gateway: &Gateway, program: &str, version: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &gateway.port.to_string(), "-V", version]).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Returns when `mosquitto_pub` has its acknowledgement.
async fn publish(gateway: &Gateway, version: &str, arguments: &[&str]) {
    let ended = client(gateway, "mosquitto_pub", version, arguments).output().await.unwrap();
    assert!(ended.status.success(), "mosquitto_pub {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// A `mosquitto_sub` that prints topic, QoS, retain and payload.
struct Sub {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What a kept session was owed may arrive before its subscription is confirmed.
    early: VecDeque<String>,
}

impl Sub {
    /// Returns when it is subscribed: it says so on its debug output, which is line-buffered by `stdbuf`.
    async fn start(gateway: &Gateway, version: &str, arguments: &[&str]) -> Self {
        let plain = client(gateway, "mosquitto_sub", version, arguments);
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg("mosquitto_sub").args(plain.as_std().get_args()).args(["-d", "-F", "%t %q %r %p"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut sub = Self { lines, child, early: VecDeque::new() };
        loop {
            match sub.any_line().await {
                line if line.starts_with("Subscribed (") => return sub,
                line if is_message(&line) => sub.early.push_back(line),
                _debug => {}
            }
        }
    }

    /// The next message.
    async fn line(&mut self) -> String {
        if let Some(early) = self.early.pop_front() {
            return early;
        }
        let message = async {
            loop {
                let line = self.any_line().await;
                if is_message(&line) {
                    return line;
                }
            }
        };
        tokio::time::timeout(PATIENCE, message).await.expect("mosquitto_sub gets a message")
    }

    async fn any_line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("mosquitto_sub says something");
        line.unwrap().expect("mosquitto_sub runs")
    }
}

/// Not one of the lines that `mosquitto_sub -d` says of itself.
fn is_message(line: &str) -> bool {
    !["Client ", "Subscribed "].iter().any(|debug| line.starts_with(debug))
}
