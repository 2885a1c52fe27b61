//! What a link may move, and when: `rate` and `active`, both ways.

use std::time::Duration;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{HalfStatus, LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::remote::{Mosquitto, left_out};

const MESSAGES: usize = 100;

/// A second, and what may come at once.
const RATE: usize = 40;
const BURST: usize = 10;

fn work(port: u16, topic: &str) -> Work {
    Work { port, publishers: 1, messages: MESSAGES, qos: QoS::AtLeastOnce, window: MESSAGES, topic: topic.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_keeps_to_its_rate_in_both_directions_and_drops_nothing() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&format!(
        "links:\n  far:\n    mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}\n    rate: {{ messages: {RATE}/s, burst: 250ms }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"far/line/{{rest}}\" }}\n  - {{ from: \"far/cmd/#\", to: \"broker/cmd/{{rest}}\" }}\n",
        mosquitto.port
    ))
    .await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd/#", QoS::AtLeastOnce).await;
    gateway.wait_for_state("far", LinkState::Online).await;
    let began = tidegate::clock::now();
    let out = Publishers::start(work(gateway.port, "line"));
    let back = Publishers::start(work(mosquitto.port, "cmd"));
    out.allow(MESSAGES);
    back.allow(MESSAGES);
    let half = |half: &Option<HalfStatus>| half.as_ref().is_some_and(|half| half.held_by_rate && half.rate_waits > 0);
    let held = |link: &LinkStatus| half(&link.sink) || half(&link.source);
    gateway.wait_for_link("far", "held by its rate", held).await;
    let (sent, commanded) = (out.finish().await, back.finish().await);
    Ledger::compare(sent.iter().copied(), &far.receive(&sent).await).assert_exact("out");
    Ledger::compare(commanded.iter().copied(), &machine.receive(&commanded).await).assert_exact("in");
    // However slow the machine is, it is no faster than this.
    let least = Duration::from_millis(u64::try_from((MESSAGES - BURST - 1) * 1_000 / RATE).unwrap());
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    let free = |link: &LinkStatus| [&link.sink, &link.source].into_iter().flatten().all(|half| !half.held_by_rate);
    let link = gateway.wait_for_link("far", "no more held", free).await;
    assert!([link.sink, link.source].into_iter().flatten().all(|half| half.rate_waits > 0));
}

/// A span of three hours in UTC that begins so many hours from now.
fn span(hours: u64) -> String {
    let minute = tidegate::clock::wall().0 / 60_000 + hours * 60;
    let text = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    format!("{}-{} UTC", text(minute), text(minute + 180))
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_outside_of_its_times_a_link_is_paused_and_collects() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let routes = |span: &str| {
        format!(
            "links:\n  far:\n    mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }}\n    active: {span}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"far/line/{{rest}}\" }}\n  - {{ from: \"far/cmd/#\", to: \"broker/cmd/{{rest}}\" }}\n",
            mosquitto.port
        )
    };
    // The remote keeps for us what comes once we have been there.
    let now = span(22);
    let mut gateway = Gateway::start(&routes(&now)).await;
    gateway.wait_for_state("far", LinkState::Online).await;
    let machine = Subscriber::start(gateway.port, "machine", "cmd/#", QoS::AtLeastOnce).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    assert!(gateway.terminate().await.success());
    let later = span(2);
    gateway.configure(&routes(&later));
    gateway.start_again().await;
    let link = gateway.wait_for_state("far", LinkState::Paused).await;
    for half in [link.sink, link.source].into_iter().flatten() {
        assert_eq!((half.state, half.connects), (LinkState::Paused, 0));
        assert_eq!(half.reason, Some(format!("outside of `active: {later}`")));
        let ahead_ms = half.next_try_ms.unwrap() - half.since_ms;
        assert!((90 * 60_000..=120 * 60_000).contains(&ahead_ms), "the start is known: {ahead_ms}");
    }
    let sent = Publishers::start(work(gateway.port, "line")).finish().await;
    let commanded = Publishers::start(work(mosquitto.port, "cmd")).finish().await;
    let link = gateway.wait_for_link("far", "collected", |link| link.depth == MESSAGES as u64).await;
    assert_eq!((link.state, far.count(), machine.count()), (LinkState::Paused, 0, 0));
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes(&now));
    gateway.start_again().await;
    Ledger::compare(sent.iter().copied(), &far.receive(&sent).await).assert_exact("out");
    Ledger::compare(commanded.iter().copied(), &machine.receive(&commanded).await).assert_exact("in");
    gateway.wait_until_drained("far").await;
}
