//! A RabbitMQ that has no memory left for publishers (`connection.blocked`).

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::remote::{Node, left_out};

const MESSAGES: usize = 600;

/// Records in flight at most.
const WINDOW: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn r22_a_rabbitmq_that_blocks_publishers_is_blocked_and_not_stalled_and_gets_everything_after() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let node = Node::start().await;
    let rabbit = node.vhost("blocked").await;
    rabbit.declare("telemetry", "all").await;
    let gateway = Gateway::start(&format!(
        "links:\n  far:\n    rabbitmq: {{ url: \"{}\", exchange: telemetry }}\n    in_flight: {WINDOW}\n    stall_after: 500ms\nroutes:\n  - {{ from: \"broker/line/#\", to: \"far/line/{{rest}}\" }}\n",
        rabbit.url(rabbit.port)
    ))
    .await;
    gateway.wait_for_state("far", LinkState::Online).await;
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: 2,
        messages: MESSAGES,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    });
    publishers.allow(100);
    publishers.reach(100).await;
    gateway.wait_until_drained("far").await;
    node.ctl(&["set_vm_memory_high_watermark", "0.000001"]).await;
    // It says so to who publishes.
    publishers.allow(MESSAGES);
    let blocked = gateway.wait_for_state("far", LinkState::Blocked).await;
    publishers.reach(MESSAGES).await;
    let since_ms = |link: &LinkStatus| link.sink.as_ref().map_or(0, |sink| sink.since_ms);
    // For longer than it takes to be stalled and cut.
    let held = |link: &LinkStatus| {
        assert_eq!(link.state, LinkState::Blocked);
        tidegate::clock::wall().0 > since_ms(link) + 3_000
    };
    let held = gateway.wait_for_link("far", "blocked for long", held).await;
    assert_eq!(since_ms(&held), since_ms(&blocked), "all the time");
    let sink = held.sink.unwrap();
    assert!(sink.in_flight <= WINDOW as u64 && held.depth >= (MESSAGES - 100 - 2 * WINDOW) as u64, "{}", held.depth);
    assert_eq!((sink.connects, sink.last_error.as_deref()), (1, Some("the remote asked us to hold back")));
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    let acknowledged = publishers.finish().await;
    let drained = gateway.wait_until_drained("far").await;
    assert_eq!(drained.sink.map(|sink| (sink.connects, sink.resent)), Some((1, 0)));
    gateway.wait_for_state("far", LinkState::Online).await;
    Ledger::compare(acknowledged.iter().copied(), &rabbit.receive("all", &acknowledged).await).assert_exact("RabbitMQ");
    assert!(!gateway.log().contains("stalled"), "{}", gateway.log());
}
