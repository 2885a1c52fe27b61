//! What goes first when a link is back after an outage.

use std::collections::{BTreeMap, BTreeSet};

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
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
    // What a publisher sent again after the kill stands in the log twice, and the border of the streams may come between: the first
    // copy of one and the second of the one before it are no disorder.
    let mut ids: BTreeMap<Mark, BTreeSet<Option<&str>>> = BTreeMap::new();
    for delivery in arrived {
        ids.entry(delivery.mark()).or_default().insert(delivery.property("tg-id"));
    }
    let once = arrived.iter().filter(|delivery| ids.get(&delivery.mark()).is_some_and(|ids| ids.len() == 1));
    let (filled, live): (Vec<Delivery>, Vec<Delivery>) = once.cloned().partition(is_backfilled);
    assert!(filled.len() + live.len() > arrived.len() / 2, "nearly all were published once");
    assert_eq!(Ledger::compare([], &filled).out_of_order, [], "the backlog is in order");
    assert_eq!(Ledger::compare([], &live).out_of_order, [], "the live records are in order");
}

/// Alarms behind a backlog, a SIGKILL on top of it, and bulk data in the lowest lane: the alarms arrive first, the bulk
/// last, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn r14_an_alarm_behind_a_backlog_of_20_000_arrives_first() {
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
    in_flight: {WINDOW}
    retry: {{ min: 50ms, max: 200ms }}
routes:
  - {{ from: broker/line/#, to: "far/plant/{{rest}}" }}
  - {{ from: broker/bulk/#, to: "far/plant/{{rest}}", priority: low }}
  - {{ from: broker/alarm/#, to: "far/plant/{{rest}}", priority: high }}
"#,
        proxy.port()
    ))
    .await;
    let bulk = Mark { publisher: 100, number: 0 };
    publish_once(gateway.port, "bulk", "bulk/b", bulk.payload(64)).await.unwrap();
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: PUBLISHERS,
        messages: BACKLOG,
        qos: QoS::AtLeastOnce,
        window: 50,
        topic: "line".into(),
    });
    let mut acknowledged = publishers.finish().await;
    let alarms: Vec<Mark> = (0..3).map(|number| Mark { publisher: 200, number }).collect();
    publish_once(gateway.port, "alarms", "alarm/a", alarms[0].payload(64)).await.unwrap();
    publish_once(gateway.port, "alarms", "alarm/a", alarms[1].payload(64)).await.unwrap();
    let kept = gateway.wait_for_link("far", "all is kept", |link| link.depth == 20_003).await;
    let lanes: Vec<(&str, u64)> = kept.lanes.iter().map(|(lane, depth)| (lane.as_str(), *depth)).collect();
    assert_eq!(lanes, [("high", 2), ("low", 1), ("normal", 20_000)]);
    gateway.kill_9();
    for folder in ["links/far/high", "links/far/low"] {
        assert!(gateway.data().join(folder).is_dir(), "{folder}");
    }
    gateway.start_again().await;

    proxy.set(Mode::Pass).await;
    until("some of the backlog has arrived", PATIENCE, async || {
        let count = far.count();
        if count > 0 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    publish_once(gateway.port, "alarms", "alarm/a", alarms[2].payload(64)).await.unwrap();
    acknowledged.extend(alarms.iter().copied());
    acknowledged.push(bulk);
    let drained = gateway.wait_until_drained("far").await;
    assert_eq!(drained.ledger["delivered"], 20_004, "{:?}", drained.ledger);
    let arrived = far.receive(&acknowledged).await;

    Ledger::compare(acknowledged.iter().copied(), &arrived).assert_exact("far");
    let place = |mark: Mark| arrived.iter().position(|delivery| delivery.mark() == mark).unwrap();
    assert_eq!((place(alarms[0]), place(alarms[1])), (0, 1), "before the backlog");
    assert!(place(alarms[2]) < BACKLOG / 2, "{}: behind no more than was in flight", place(alarms[2]));
    assert_eq!(place(bulk), arrived.len() - 1, "after everything else");
    let seq = |mark: Mark| arrived[place(mark)].property("tg-seq").unwrap().to_owned();
    let id = seq(bulk).split('-').next().unwrap().to_owned();
    assert_eq!((seq(alarms[0]), seq(bulk)), (format!("{id}-1-0"), format!("{id}-2-0")));
    assert_eq!(seq(Mark { publisher: 0, number: 0 }).split('-').take(2).collect::<Vec<_>>(), [id.as_str(), "0"]);
    gateway.terminate().await;
}
