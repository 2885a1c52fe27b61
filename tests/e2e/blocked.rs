//! A RabbitMQ that has no memory left for publishers (`connection.blocked`), and one that does not wait for acknowledgements (`consumer_timeout`).

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, Node, left_out};
use crate::support::wait::{PATIENCE, until};

const MESSAGES: usize = 600;

/// Records in flight at most.
const WINDOW: usize = 50;

/// Of a source.
const PREFETCH: usize = 64;

/// What a lost connection of the other link may repeat.
const WINDOWS: usize = 2 * 1024;

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

/// While a full buffer holds the source up, RabbitMQ loses patience and closes its channel. The link says so, and goes on when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn r06_a_source_whose_channel_rabbitmq_closes_while_it_waits_says_so_comes_back_and_loses_nothing() {
    if left_out(&["rabbitmq", "mosquitto"]) {
        return;
    }
    let (node, mosquitto) = tokio::join!(Node::start(), Mosquitto::start());
    let impatient =
        "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 200).";
    node.ctl(&["eval", impatient]).await;
    let rabbit = node.vhost("impatient").await;
    rabbit.declare_queue("orders").await;
    let far = Subscriber::start(mosquitto.port, "far", "orders/#", QoS::AtLeastOnce).await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  shop: {{ rabbitmq: {{ url: "{}", prefetch: {PREFETCH} }}, retry: {{ min: 10ms, max: 100ms }} }}
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    buffer: {{ max_size: 1MiB, when_full: block }}
    retry: {{ min: 10ms, max: 100ms }}
routes:
  - {{ from: shop/orders, to: far/orders/all }}
"#,
        rabbit.url(rabbit.port),
        proxy.port()
    ))
    .await;
    gateway.wait_for_state("shop", LinkState::Online).await;
    let marks: Vec<Mark> = (0..10_000).map(|number| Mark { publisher: 0, number }).collect();
    rabbit.publish("orders", &marks).await;
    until("RabbitMQ has ended the consumer", PATIENCE, async || match rabbit.consumers("orders").await {
        0 => Ok(()),
        consumers => Err(format!("{consumers} consumers")),
    })
    .await;
    let told = |link: &LinkStatus| {
        let words = link.source.as_ref().and_then(|source| source.last_error.as_deref()).unwrap_or_default();
        words.contains("406 PRECONDITION_FAILED") && words.contains("timed out")
    };
    gateway.wait_for_link("shop", "says why it gets nothing", told).await;
    assert!(far.count() == 0 && rabbit.depth("orders").await > 0);
    proxy.set(Mode::Pass).await;
    let ledger = Ledger::compare(marks.iter().copied(), &far.receive(&marks).await);
    // What was fetched comes again once, at each time that the buffer filled up.
    ledger.assert_kept("a channel that was closed", 5 * (PREFETCH + WINDOWS));
    let all = |link: &LinkStatus| {
        link.state == LinkState::Online && link.source.as_ref().is_some_and(|source| source.in_flight == 0)
    };
    gateway.wait_for_link("shop", "online, and all acknowledged", all).await;
    assert!(gateway.terminate().await.success());
    assert_eq!(rabbit.depth("orders").await, 0);
}
