//! `sync: spill` with a real remote: what it confirms in time costs the disk nothing, and nothing that was acknowledged is ever lost.

use rumqttc_v5::QoS;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};

const PUBLISHERS: usize = 4;
const WINDOW: usize = 50;
const IN_FLIGHT: usize = 100;

fn configuration(port: u16, spill_after: &str) -> String {
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}" }}
    in_flight: {IN_FLIGHT}
    retry: {{ min: 100ms, max: 1s }}
    buffer: {{ sync: spill, spill_after: {spill_after} }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    )
}

/// Segments of the link's buffer.
fn segments(gateway: &Gateway) -> usize {
    let dir = gateway.data().join("links/far");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_spill_writes_only_what_is_late_and_loses_nothing_acknowledged() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    // Longer than any test waits: whatever is acknowledged here was confirmed.
    let mut gateway = Gateway::start(&configuration(proxy.port(), "1m")).await;
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: PUBLISHERS,
        messages: 5_000,
        qos: QoS::AtLeastOnce,
        window: WINDOW,
        topic: "line".into(),
    });

    publishers.allow(2_000);
    publishers.reach(2_000).await;
    let link = gateway.wait_until_drained("far").await;
    assert_eq!((segments(&gateway), link.disk_bytes), (0, 0), "a healthy link writes no record");
    assert!(link.note.unwrap().contains("sync: spill"));

    // The remote takes records and does not confirm them: nobody is acknowledged.
    proxy.set(Mode::BlackHole).await;
    publishers.allow(2_400);
    let full = u64::try_from(PUBLISHERS * WINDOW).unwrap();
    gateway.wait_for_link("far", "all windows wait", |link| link.depth >= full).await;
    assert_eq!((publishers.acknowledged(), segments(&gateway)), (2_000, 0));
    proxy.set(Mode::Pass).await;
    publishers.reach(2_400).await;
    gateway.wait_until_drained("far").await;
    assert_eq!(segments(&gateway), 0);

    // A kill forgets nothing that a publisher was told of.
    gateway.kill_9();
    gateway.start_again().await;
    assert!(gateway.wait_until_drained("far").await.ledger["delivered"] >= 2_400);

    // What is not confirmed by the time that it stops is written.
    proxy.set(Mode::Refuse).await;
    publishers.allow(2_800);
    gateway.wait_for_link("far", "all windows wait", |link| link.depth >= full).await;
    assert_eq!((publishers.acknowledged(), segments(&gateway)), (2_400, 0));
    assert!(gateway.terminate().await.success());
    gateway.configure(&configuration(proxy.port(), "200ms"));
    gateway.start_again().await;
    let kept = gateway.wait_for_link("far", "what was written is there", |link| link.depth >= full).await;
    assert!(kept.disk_bytes > 0 && kept.balanced, "{kept:?}");

    // During an outage publishers are served from the disk, over a kill.
    publishers.allow(4_000);
    publishers.reach(3_000).await;
    gateway.kill_9();
    gateway.start_again().await;
    publishers.reach(4_000).await;
    assert!(segments(&gateway) > 0);

    proxy.set(Mode::Pass).await;
    let acknowledged = publishers.finish().await;
    let link = gateway.wait_until_drained("far").await;
    assert!(link.ledger["delivered"] >= 5_000, "{:?}", link.ledger);
    let arrived = far.receive(&acknowledged).await;
    // Records in flight at the stall and at two kills.
    Ledger::compare(acknowledged.iter().copied(), &arrived).assert_kept("MQTT 5", 3 * 2 * IN_FLIGHT);
}
