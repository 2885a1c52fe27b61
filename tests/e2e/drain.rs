//! What goes first when a link is back after an outage.

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until};

const BACKLOG: usize = 20_000;
const LIVE: usize = 4_000;
const PUBLISHERS: usize = 4;
const WINDOW: usize = 200;

/// The outage, and live records from the moment that the link is back; the gateway is killed while both are on their
/// way, and publishers go on publishing.
#[tokio::test(flavor = "multi_thread")]
async fn r13_after_an_outage_new_records_go_at_once_and_the_backlog_is_filled_in() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let far = Subscriber::start(mosquitto.port, "far", "plant/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    drain: live_first
    in_flight: {WINDOW}
    retry: {{ min: 50ms, max: 200ms }}
routes:
  - from: broker/line/#
    to: "far/plant/{{rest}}"
"#,
        proxy.port()
    ))
    .await;
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: PUBLISHERS,
        messages: BACKLOG + LIVE,
        qos: QoS::AtLeastOnce,
        window: 50,
        topic: "line".into(),
    });
    publishers.allow(BACKLOG);
    publishers.reach(BACKLOG).await;

    proxy.set(Mode::Pass).await;
    gateway.wait_for_state("far", LinkState::Online).await;
    publishers.allow(BACKLOG + LIVE / 2);
    let live = |deliveries: &[Delivery]| deliveries.iter().filter(|delivery| !is_backfilled(delivery)).count();
    until("live records arrive", PATIENCE, async || {
        let count = live(&far.arrived());
        if count >= LIVE / 8 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    gateway.kill_9();
    let before = far.count();
    gateway.start_again().await;
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    let arrived = far.receive(&acknowledged).await;

    check(&acknowledged, &arrived);
    assert!(before < BACKLOG, "{before}: the live records waited for the backlog");
    let is_old = |delivery: &Delivery| delivery.mark().number < BACKLOG / PUBLISHERS;
    assert!(
        arrived.iter().all(|delivery| is_backfilled(delivery) || !is_old(delivery)),
        "the outage is told by its mark"
    );
    assert!(arrived[before..].iter().any(is_old), "the backlog was not through at the kill");
    gateway.terminate().await;
}

fn is_backfilled(delivery: &Delivery) -> bool {
    delivery.property("tg-backfill") == Some("1")
}

/// Nothing is lost, little comes twice, and each stream is in order.
fn check(acknowledged: &[Mark], arrived: &[Delivery]) {
    let all = Ledger::compare(acknowledged.iter().copied(), arrived);
    assert_eq!(all.lost, []);
    assert!(all.duplicates <= 2 * WINDOW, "{} duplicates", all.duplicates);
    let (filled, live): (Vec<Delivery>, Vec<Delivery>) = arrived.iter().cloned().partition(is_backfilled);
    assert_eq!(Ledger::compare([], &filled).out_of_order, [], "the backlog is in order");
    assert_eq!(Ledger::compare([], &live).out_of_order, [], "the live records are in order");
}
