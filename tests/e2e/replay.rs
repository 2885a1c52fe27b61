//! Sending again what was delivered: chosen by time and topic, to the same link or another, through a kill, and cancelled.

use std::collections::BTreeMap;

use rumqttc_v5::QoS;
use tidegate::telemetry::replay::{ReplayState, ReplayStatus};

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::gateway::{Gateway, link, run};
use crate::support::ledger::{Delivery, Mark};
use crate::support::process::free_port;
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until};

/// Records in flight on the links; a replay has a quarter.
const WINDOW: usize = 64;

fn configuration(remote: u16) -> String {
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{remote}", client_id: far }}
    buffer: {{ keep_delivered: 1h, compress: zstd, max_size: 64MiB }}
    in_flight: {WINDOW}
    retry: {{ min: 50ms, max: 500ms }}
  other:
    mqtt: {{ url: "mqtt://127.0.0.1:{remote}", client_id: other }}
    in_flight: {WINDOW}
routes:
  - {{ name: far, from: broker/line/#, to: "far/plant/{{rest}}" }}
  - {{ name: other, from: broker/elsewhere, to: other/elsewhere }}
"#
    )
}

async fn publish(port: u16, topic: &str, messages: usize) -> Vec<Mark> {
    let work = Work { port, publishers: 2, messages, qos: QoS::AtLeastOnce, window: 50, topic: topic.into() };
    Publishers::start(work).finish().await
}

/// Exit code and output of `tidegate replay`.
async fn replay(gateway: &Gateway, arguments: &[&str]) -> (i32, String) {
    let config = gateway.config().display().to_string();
    let all: Vec<&str> = ["-c", &config, "replay"].iter().chain(arguments).copied().collect();
    let output = run(&all).await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

async fn start(gateway: &Gateway, arguments: &[&str]) -> ReplayStatus {
    let all: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
    let (code, text) = replay(gateway, &all).await;
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The replay, once `wanted` accepts it.
async fn wait_for(gateway: &Gateway, id: &str, what: &str, wanted: impl Fn(&ReplayStatus) -> bool) -> ReplayStatus {
    until(what, PATIENCE, async || {
        let (code, text) = replay(gateway, &["list", "--json"]).await;
        let all: Vec<ReplayStatus> = serde_json::from_str(&text).map_err(|error| format!("{code}: {error}: {text}"))?;
        let found = all.into_iter().find(|replay| replay.id == id);
        found.filter(|replay| wanted(replay)).ok_or(text)
    })
    .await
}

/// What arrived by a replay, and the messages' ids.
fn replayed<'a>(arrived: &'a [Delivery], id: &str) -> Vec<&'a Delivery> {
    arrived.iter().filter(|delivery| delivery.properties.get("tg-replay").is_some_and(|mark| mark == id)).collect()
}

fn ids(arrived: &[Delivery]) -> BTreeMap<(String, Mark), String> {
    let live = arrived.iter().filter(|delivery| !delivery.properties.contains_key("tg-replay"));
    live.map(|delivery| ((delivery.topic.clone(), delivery.mark()), delivery.properties["tg-id"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_what_was_delivered_is_replayed_by_time_and_topic_into_another_link() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let subscriber = Subscriber::start(mosquitto.port, "watch", "#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&configuration(mosquitto.port)).await;
    let early = publish(gateway.port, "line/early", 400).await;
    gateway.wait_until_drained("far").await;
    // Offsets and times agree: the second half begins here.
    let between = tidegate::clock::wall().0 + 1;
    until("the clock has moved on", PATIENCE, async || {
        if tidegate::clock::wall().0 > between { Ok(()) } else { Err(String::new()) }
    })
    .await;
    let late = publish(gateway.port, "line/late", 400).await;
    gateway.wait_until_drained("far").await;
    until("all have arrived", PATIENCE, async || {
        let count = subscriber.count();
        if count >= early.len() + late.len() { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    let live = ids(&subscriber.arrived());

    let since = format!("{}.{:03}Z", rfc3339(between), between % 1_000);
    let filter = ["far", "--from", &since, "--topic", "line/{which}/1"];
    let (code, counts) = replay(&gateway, &[&filter[..], &["--dry-run"]].concat()).await;
    assert_eq!((code, counts.contains("records 200\n")), (0, true), "{counts}");
    assert_eq!(subscriber.count(), 800, "a dry run sends nothing");

    let begun = start(&gateway, &[&filter[..], &["--into", "other/again/{which}"]].concat()).await;
    let done = wait_for(&gateway, &begun.id, "done", |replay| replay.state == ReplayState::Done).await;
    assert_eq!((done.replayed, done.refused), (200, 0), "{done:?}");
    until("all of it has arrived", PATIENCE, async || {
        let count = subscriber.count();
        if count >= 1_000 { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    let arrived = subscriber.arrived();
    let again = replayed(&arrived, &begun.id);
    assert_eq!((again.len(), arrived.len()), (200, 1_000), "each once, and nothing else");
    for (at, delivery) in again.iter().enumerate() {
        assert_eq!((delivery.topic.as_str(), delivery.mark()), ("again/late", Mark { publisher: 1, number: at }));
        let key = ("plant/late/1".to_owned(), delivery.mark());
        assert_eq!(delivery.properties["tg-id"], live[&key], "the message's own id");
    }
    let status = gateway.status().await;
    let (far, other) = (link(&status, "far"), link(&status, "other"));
    assert_eq!((far.ledger["replayed"], far.ledger["delivered"], far.balanced), (0, 800, true));
    assert_eq!((other.ledger["replayed"], other.ledger["accepted"], other.balanced), (200, 0, true));
    assert!(far.kept_bytes > 0 || far.disk_bytes > 0, "{far:?}");
}

/// To the second.
fn rfc3339(ms: u64) -> String {
    let seconds = format!("@{}", ms / 1_000);
    let output =
        std::process::Command::new("date").args(["-u", "-d", &seconds, "+%Y-%m-%dT%H:%M:%S"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_a_replay_goes_on_after_a_sigkill_while_live_traffic_does() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let subscriber = Subscriber::start(mosquitto.port, "watch", "#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&configuration(mosquitto.port)).await;
    let delivered = publish(gateway.port, "line/old", 3_000).await;
    gateway.wait_until_drained("far").await;

    let begun = start(&gateway, &["far", "--rate", "600/s"]).await;
    gateway.wait_for("shown in status", |status| status.replays.iter().any(|replay| replay.id == begun.id)).await;
    let live = publish(gateway.port, "line/new", 500).await;
    gateway.wait_until_drained("far").await;
    wait_for(&gateway, &begun.id, "under way", |replay| replay.replayed >= 600).await;
    gateway.kill_9();
    gateway.start_again().await;
    let again = wait_for(&gateway, &begun.id, "known after the kill", |_| true).await;
    assert!(again.position >= 600, "it does not begin anew: {again:?}");
    let done = wait_for(&gateway, &begun.id, "done", |replay| replay.state == ReplayState::Done).await;
    assert_eq!(done.until, begun.until, "and ends where it was to end");

    let arrived = subscriber.receive(&[&delivered[..], &live[..]].concat()).await;
    let again = replayed(&arrived, &begun.id);
    let mut copies: BTreeMap<Mark, usize> = BTreeMap::new();
    for delivery in &again {
        assert!(delivery.topic.starts_with("plant/old/"), "what came later is not part of it: {}", delivery.topic);
        *copies.entry(delivery.mark()).or_default() += 1;
    }
    assert_eq!(copies.len(), 3_000, "all of it");
    let repeated = again.len() - copies.len();
    assert!(repeated <= 2 * WINDOW / 4, "R9: {repeated} twice, more than two windows");
    let far = gateway.wait_until_drained("far").await;
    assert_eq!((far.ledger["accepted"], far.ledger["delivered"]), (3_500, 3_500), "{:?}", far.ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_cancelled_and_stays_cancelled_and_mistakes_are_said() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&configuration(mosquitto.port)).await;
    publish(gateway.port, "line/old", 500).await;
    gateway.wait_until_drained("far").await;
    let begun = start(&gateway, &["far", "--rate", "5/s", "--from", "100", "--until", "400"]).await;
    assert_eq!((begun.from, begun.until), (100, 400));
    wait_for(&gateway, &begun.id, "under way", |replay| replay.replayed > 0).await;
    let (code, text) = replay(&gateway, &["cancel", &begun.id]).await;
    assert_eq!((code, text.contains("cancelled")), (0, true), "{text}");
    let ended = wait_for(&gateway, &begun.id, "ended", |replay| replay.ended_ms.is_some()).await;
    assert_eq!(ended.state, ReplayState::Cancelled);
    assert!(gateway.terminate().await.success());
    gateway.start_again().await;
    let again = wait_for(&gateway, &begun.id, "known", |_| true).await;
    assert_eq!((again.state, again.replayed), (ReplayState::Cancelled, ended.replayed));

    for (arguments, code, words) in [
        (&["cancel", &begun.id][..], 1, "has ended already"),
        (&["cancel", "nothing"], 1, "there is no replay `nothing`"),
        (&["near"], 1, "there is no link `near` with a buffer; there are: far, other"),
        (&["far", "--into", "near"], 1, "there is no link `near`; there are: far, other"),
        (&["far", "--into", "other/{line}"], 1, "nothing captures `{line}`"),
        (&["far", "--topic", "line/#/x"], 1, "--topic: "),
        (&["far", "--from", "yesterday"], 64, "or how long ago, such as `2h`"),
        (&["far", "--rate", "0"], 64, "such as `100/s`"),
        (&["far", "--topic", "nobody/#", "--dry-run"], 1, "records 0"),
        (&[], 64, "Usage"),
    ] {
        let (found, text) = replay(&gateway, arguments).await;
        assert_eq!((found, text.contains(words)), (code, true), "{arguments:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_what_a_link_that_is_gone_has_left_is_replayed_into_another() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let subscriber = Subscriber::start(mosquitto.port, "watch", "rescued/#", QoS::AtLeastOnce).await;
    let whole = configuration(mosquitto.port);
    // Nobody listens there: everything is still owed.
    let nobody = free_port();
    let mut gateway = Gateway::start(&whole.replacen(&mosquitto.port.to_string(), &nobody.to_string(), 1)).await;
    let owed = publish(gateway.port, "line/old", 200).await;
    assert!(gateway.terminate().await.success());

    let (_, other) = whole.split_once("  other:\n").unwrap();
    let lines = other.lines().filter(|line| !line.contains("name: far"));
    let only_other = lines.fold("\nlinks:\n  other:\n".to_owned(), |text, line| text + line + "\n");
    gateway.configure(&only_other);
    gateway.start_again().await;
    let orphan = link(&gateway.status().await, "far").clone();
    assert_eq!((orphan.kind.as_str(), orphan.depth), ("orphaned", 200));
    let (code, text) = replay(&gateway, &["far"]).await;
    assert_eq!((code, text.contains("name another with --into")), (1, true), "{text}");
    let begun = start(&gateway, &["far", "--topic", "line/#", "--into", "other/rescued/{rest}"]).await;
    let done = wait_for(&gateway, &begun.id, "done", |replay| replay.state == ReplayState::Done).await;
    assert_eq!(done.replayed, 200);
    let arrived = subscriber.receive(&owed).await;
    assert_eq!(replayed(&arrived, &begun.id).len(), 200);
    assert!(arrived.iter().all(|delivery| delivery.topic.starts_with("rescued/old/")));
    let left = link(&gateway.status().await, "far").clone();
    assert_eq!((left.depth, left.balanced), (200, true), "it is still there: a replay takes nothing away");
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_replay_goes_over_all_lanes_in_their_order_or_over_one() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far-side", "plant/#", QoS::AtLeastOnce).await;
    let routes = configuration(mosquitto.port)
        + "  - { from: broker/bulk/#, to: \"far/plant/{rest}\", priority: low }\n  - { from: broker/alarm/#, to: \"far/plant/{rest}\", priority: high }\n";
    let mut gateway = Gateway::start(&routes).await;
    let mut all = Vec::new();
    for (publisher, topic) in [(300, "bulk/b"), (301, "line/l"), (302, "alarm/a")] {
        for number in 0..3 {
            let mark = Mark { publisher, number };
            publish_once(gateway.port, "machine", topic, mark.payload(64)).await.unwrap();
            all.push(mark);
        }
    }
    gateway.wait_until_drained("far").await;
    let first = far.receive(&all).await.len();

    let (code, text) = replay(&gateway, &["far", "--from", "0", "--dry-run"]).await;
    assert!(code != 0 && text.contains("--lane"), "offsets of which lane? {code}: {text}");
    let (code, text) = replay(&gateway, &["far", "--from", "1", "--lane", "high", "--dry-run"]).await;
    assert!(code == 0 && text.lines().any(|line| line == "records 2"), "{code}: {text}");

    let begun = start(&gateway, &["far"]).await;
    let ended = wait_for(&gateway, &begun.id, "it is done", |replay| replay.state == ReplayState::Done).await;
    assert_eq!((ended.replayed, ended.passed()), (9, (9, 9)), "{ended:?}");
    until(
        "the copies arrive",
        PATIENCE,
        async || if far.count() >= first + 9 { Ok(()) } else { Err(far.count().to_string()) },
    )
    .await;
    let copies = far.receive(&all).await.split_off(first);
    let seqs: Vec<String> = copies.iter().map(|copy| copy.property("tg-seq").unwrap().to_owned()).collect();
    let tails: Vec<&str> = seqs.iter().map(|seq| seq.split_once('-').unwrap().1).collect();
    assert_eq!(tails, ["1-0", "1-1", "1-2", "0-0", "0-1", "0-2", "2-0", "2-1", "2-2"]);
    gateway.terminate().await;
}
