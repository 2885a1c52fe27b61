//! Routes with `batch` to a real broker over a line that breaks (R28): what waits for others is not in flight, and what is sent again is
//! known as a copy.

use std::collections::BTreeSet;
use std::path::Path;

use rumqttc_v5::QoS;
use serde_json::Value;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::gateway::{Gateway, run};
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::proxy::{Proxy, Way};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until};

async fn publish(gateway: &Gateway, topic: &str, payload: &str) {
    publish_once(gateway.port, "press", topic, payload.as_bytes().to_vec()).await.unwrap();
}

fn texts(far: &Subscriber) -> Vec<String> {
    let text = |delivery: Delivery| format!("{} {}", delivery.topic, String::from_utf8_lossy(&delivery.payload));
    far.arrived().into_iter().map(text).collect()
}

async fn arrives(far: &Subscriber, text: &str) {
    let there = async || {
        let texts = texts(far);
        if texts.iter().any(|found| found == text) { Ok(()) } else { Err(format!("{texts:?}")) }
    };
    until(&format!("`{text}` arrives"), PATIENCE, there).await;
}

async fn connects(gateway: &Gateway, times: u64) {
    let what = format!("it has connected {times} times");
    gateway.wait_for_link("far", &what, |link| link.sink.as_ref().is_some_and(|half| half.connects >= times)).await;
}

async fn audit_is_ok(gateway: &Gateway) {
    let audit = run(&["audit", "-c", gateway.config().to_str().unwrap()]).await;
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_part_that_waits_lives_through_lost_connections_and_what_passed_it_comes_once() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::start(mosquitto.port).await;
    let far = Subscriber::start(mosquitto.port, "far", "out/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&format!(
        r#"
links:
  far: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}" }}, retry: {{ min: 20ms, max: 100ms }} }}
routes:
  - {{ name: batched, from: broker/b, batch: {{ count: 3, linger: 1h }}, to: far/out/b }}
  - {{ name: single, from: broker/s, to: far/out/s }}
"#,
        proxy.port()
    ))
    .await;
    connects(&gateway, 1).await;
    publish(&gateway, "b", "0").await;
    for times in 2..10 {
        publish(&gateway, "s", &times.to_string()).await;
        arrives(&far, &format!("out/s {times}")).await;
        // The next offset is read when this one's answer is there.
        gateway
            .wait_for_link("far", "answered", |link| link.sink.as_ref().is_some_and(|half| half.in_flight == 0))
            .await;
        proxy.cut();
        connects(&gateway, times).await;
    }
    publish(&gateway, "b", "1").await;
    publish(&gateway, "b", "2").await;
    arrives(&far, "out/b [0,1,2]").await;
    let link = gateway.wait_until_drained("far").await;
    assert_eq!((link.dead_letters, link.ledger["delivered"], link.sink.unwrap().resent), (0, 11, 0));
    let expected = (2..10).map(|number| format!("out/s {number}")).chain(["out/b [0,1,2]".to_owned()]);
    assert_eq!(texts(&far), expected.collect::<Vec<_>>(), "each once");
    audit_is_ok(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r28_a_batch_is_one_message_of_what_the_remote_allows() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let few = folder.path().join("few.conf");
    std::fs::write(&few, "max_inflight_messages 2\n").unwrap();
    let mosquitto = Mosquitto::start_with(&[format!("conf={}", few.display())]).await;
    let far = Subscriber::start(mosquitto.port, "far", "out/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&format!(
        r#"
links:
  far: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}" }} }}
routes:
  - {{ name: batched, from: broker/b, batch: {{ count: 30, linger: 1h }}, to: far/out/b }}
"#,
        mosquitto.port
    ))
    .await;
    connects(&gateway, 1).await;
    for number in 0..30 {
        publish(&gateway, "b", &number.to_string()).await;
    }
    let all: Vec<_> = (0..30).map(|number| number.to_string()).collect();
    arrives(&far, &format!("out/b [{}]", all.join(","))).await;
    assert_eq!(far.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r28_with_spill_what_waits_is_written_when_its_time_has_passed_and_a_kill_loses_none() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "out/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}" }}, buffer: {{ sync: spill, spill_after: 50ms }} }}
routes:
  - {{ name: batched, from: broker/b, batch: {{ count: 3, linger: 1h }}, to: far/out/b }}
"#,
        mosquitto.port
    ))
    .await;
    connects(&gateway, 1).await;
    // Acknowledged, though they wait.
    publish(&gateway, "b", "0").await;
    publish(&gateway, "b", "1").await;
    gateway.kill_9();
    gateway.start_again().await;
    publish(&gateway, "b", "2").await;
    arrives(&far, "out/b [0,1,2]").await;
    gateway.wait_until_drained("far").await;
    assert_eq!(far.count(), 1);
    audit_is_ok(&gateway).await;
}

/// What each batch holds, as if it had come by itself.
fn parts(delivery: &Delivery) -> Vec<Delivery> {
    let all: Vec<String> = serde_json::from_slice(&delivery.payload).unwrap();
    let topic = &delivery.topic;
    all.into_iter()
        .map(|text| Delivery { topic: topic.clone(), payload: text.into_bytes(), ..Delivery::default() })
        .collect()
}

/// The first of each id.
fn without_copies(arrived: &[Delivery]) -> Vec<Delivery> {
    let mut ids = BTreeSet::new();
    let is_new = |delivery: &&Delivery| ids.insert(delivery.property("tg-id").unwrap().to_owned());
    arrived.iter().filter(is_new).cloned().collect()
}

const MESSAGES: usize = 8_000;
const CUTS: usize = 6;
const WINDOW: usize = 8;
const COUNT: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn r09_r12_batches_over_a_line_that_is_cut_all_arrive_in_order_and_each_copy_has_the_same_id() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let proxy = Proxy::start(mosquitto.port).await;
    let batched = Subscriber::start(mosquitto.port, "batched", "batched/#", QoS::AtLeastOnce).await;
    let single = Subscriber::start(mosquitto.port, "single", "single/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&format!(
        r#"
links:
  far: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}" }}, in_flight: {WINDOW}, retry: {{ min: 20ms, max: 100ms }} }}
routes:
  - {{ name: batched, from: broker/line/+, batch: {{ count: {COUNT}, linger: 100ms }}, to: "far/batched/{{topic}}" }}
  - {{ name: single, from: broker/line/0, to: "far/single/{{topic}}" }}
"#,
        proxy.port()
    ))
    .await;
    connects(&gateway, 1).await;
    let work = Work {
        port: gateway.port,
        publishers: 4,
        messages: MESSAGES,
        qos: QoS::AtLeastOnce,
        window: 50,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    for cut in 1..=CUTS {
        // Within a frame, and with more to come.
        proxy.cut_after(if cut % 2 == 0 { Way::ToServer } else { Way::ToClient }, 37 + 101 * cut);
        publishers.allow(cut * MESSAGES / (CUTS + 1));
        publishers.reach(cut * MESSAGES / (CUTS + 1) - 3).await;
        connects(&gateway, 1 + u64::try_from(cut).unwrap()).await;
    }
    let acknowledged = publishers.finish().await;
    let link = gateway.wait_until_drained("far").await;
    let of_first = |mark: &&Mark| mark.publisher == 0;
    let firsts: Vec<Mark> = acknowledged.iter().filter(of_first).copied().collect();
    assert_eq!((link.dead_letters, link.ledger["delivered"]), (0, (acknowledged.len() + firsts.len()) as u64));

    let singles = single.receive(&firsts).await;
    Ledger::compare(firsts.iter().copied(), &singles).assert_kept("single", CUTS * WINDOW);
    let whole = batched.arrived();
    let arrived: Vec<Delivery> = whole.iter().flat_map(parts).collect();
    let ledger = Ledger::compare(acknowledged.iter().copied(), &arrived);
    ledger.assert_kept("batched", CUTS * WINDOW * COUNT);
    let once: Vec<Delivery> = without_copies(&whole).iter().flat_map(parts).collect();
    Ledger::compare(acknowledged.iter().copied(), &once).assert_exact("what a receiver that knows copies has");
    let largest = whole.iter().map(|batch| parts(batch).len()).max();
    assert!(largest > Some(WINDOW) && largest <= Some(COUNT), "{largest:?}");
    audit_is_ok(&gateway).await;
}

/// The first fenced block of this kind below a heading of the reference.
fn example(heading: &str, kind: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/routes.md");
    let reference = std::fs::read_to_string(file).unwrap();
    let section = reference.split_once(&format!("\n{heading}\n")).unwrap().1.split("\n#").next().unwrap();
    let block = section.split_once(&format!("```{kind}\n")).unwrap().1;
    block.split("```").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn r28_the_reference_s_example_of_a_batch_does_what_it_says() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let (routes, lines) = (example("### `routes.batch`", "yaml"), example("### `routes.batch`", "text"));
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "telemetry/#", QoS::AtLeastOnce).await;
    let port = format!("127.0.0.1:{}", mosquitto.port);
    assert!(routes.contains("127.0.0.1:2883"), "{routes}");
    let mut gateway = Gateway::start(&routes.replace("127.0.0.1:2883", &port)).await;
    gateway
        .wait_for_link("cloud", "it is there", |link| link.sink.as_ref().is_some_and(|half| half.connects > 0))
        .await;
    let (given, made): (Vec<_>, Vec<_>) = lines.lines().partition(|line| line.starts_with("factory/"));
    assert!(given.len() > 1 && made.len() == 1, "{lines}");
    for line in given {
        let (topic, payload) = line.split_once(' ').unwrap();
        publish(&gateway, topic, payload).await;
    }
    // What waits goes as the gateway stops, at the latest.
    assert_eq!(gateway.terminate().await.code(), Some(0), "{}", gateway.log());
    until("the batch arrives", PATIENCE, async || if far.count() > 0 { Ok(()) } else { Err(gateway.log()) }).await;
    let (topic, payload) = made[0].split_once(' ').unwrap();
    let arrived = far.arrived();
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!((arrived.len(), arrived[0].topic.as_str()), (1, topic));
    assert_eq!(read(&arrived[0].payload), read(payload.as_bytes()));
}
