//! Three gateways in a ring and in a mesh, each pair joined by another kind of link: every message arrives everywhere once, and dies
//! out (R12).

use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions, PublishProperties, QoS};
use tidegate::telemetry::board::{HalfStatus, Status};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::process::free_port;
use crate::support::remote::{Kafka, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until, until_true};

/// What each gateway's publisher publishes.
const MESSAGES: usize = 300;

const SITES: [&str; 3] = ["alpha", "bravo", "charlie"];

/// alpha and bravo are joined by MQTT 5, bravo and charlie by RabbitMQ, charlie and alpha by Kafka.
struct Three {
    gateways: [Gateway; 3],
    subscribers: Vec<Subscriber>,
    _kafka: Kafka,
}

impl Three {
    /// What each sends and takes: lists of `to` and of `from`.
    async fn start(vhost: &str, routes: [(&str, &[&str]); 3]) -> Self {
        let (rabbit, kafka) = (Rabbit::start(vhost).await, Kafka::start().await);
        rabbit.declare("from-bravo", "to-charlie").await;
        rabbit.declare("from-charlie", "to-bravo").await;
        for topic in ["from-alpha", "from-charlie"] {
            kafka.create_topic(topic, 2).await;
        }
        // Each has to know the other's port before it runs.
        let bravo = free_port();
        let amqp = rabbit.url(rabbit.port);
        let lake = format!("  lake: {{ kafka: {{ brokers: [\"127.0.0.1:{}\"] }} }}\n", kafka.port);
        let patient = "retry: { min: 50ms, max: 500ms }";
        let mqtt = |name: &str, port: u16| {
            format!("  {name}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}, {patient} }}\n")
        };
        let configuration = |links: &[String], (to, from): (&str, &[&str])| {
            let sources = from.iter().map(|from| format!("  - {{ from: {from}, to: \"broker/{{topic}}\" }}\n"));
            let routes = format!("  - {{ from: \"broker/line/#\", to: [ {to} ] }}\n{}", sources.collect::<String>());
            format!("links:\n{}routes:\n{routes}", links.concat())
        };
        let queues = |site: &str| format!("  queues: {{ rabbitmq: {{ url: \"{amqp}\", exchange: from-{site} }} }}\n");
        let [alpha_s, bravo_s, charlie_s] = routes;
        let alpha = Gateway::start_site("alpha", &configuration(&[mqtt("bravo", bravo), lake.clone()], alpha_s)).await;
        let bravo_links = [mqtt("alpha", alpha.port), queues("bravo")];
        let bravo = Gateway::start_site_on("bravo", bravo, &configuration(&bravo_links, bravo_s)).await;
        let charlie = Gateway::start_site("charlie", &configuration(&[queues("charlie"), lake], charlie_s)).await;
        let gateways = [alpha, bravo, charlie];
        let mut subscribers = Vec::new();
        for gateway in &gateways {
            subscribers.push(Subscriber::start(gateway.port, "hmi", "line/#", QoS::AtLeastOnce).await);
        }
        Self { gateways, subscribers, _kafka: kafka }
    }

    /// Each publishes; each gets all of it.
    async fn publish(&self) {
        let publishers = SITES.iter().zip(&self.gateways).map(|(site, gateway)| {
            let publishers = Publishers::start(Work {
                port: gateway.port,
                publishers: 1,
                messages: MESSAGES,
                qos: QoS::AtLeastOnce,
                window: 20,
                topic: format!("line/{site}"),
            });
            publishers.allow(MESSAGES);
            publishers
        });
        for publishers in publishers.collect::<Vec<_>>() {
            assert_eq!(publishers.finish().await.len(), MESSAGES);
        }
        let all = MESSAGES * SITES.len();
        for (site, subscriber) in SITES.iter().zip(&self.subscribers) {
            until(&format!("all arrives at {site}"), PATIENCE, async || match subscriber.count() {
                count if count >= all => Ok(()),
                count => Err(format!("{count} of {all}")),
            })
            .await;
        }
        self.die_out().await;
        for (site, subscriber) in SITES.iter().zip(&self.subscribers) {
            let arrived = subscriber.arrived();
            for origin in SITES {
                let of_it = |delivery: &&Delivery| delivery.topic == format!("line/{origin}/0");
                let arrived: Vec<_> = arrived.iter().filter(of_it).collect();
                let marks = (0..MESSAGES).map(|number| Mark { publisher: 0, number });
                Ledger::compare(marks, arrived).assert_exact(&format!("from {origin} at {site}"));
            }
        }
    }

    /// Returns when nothing moves any more: nothing is buffered or in flight, and the counters stand.
    async fn die_out(&self) {
        let (mut before, mut quiet) = (Vec::new(), 0);
        until("all is quiet", PATIENCE, async || {
            let mut now = Vec::new();
            for gateway in &self.gateways {
                now.push(moved(&gateway.status().await));
            }
            let is_quiet = now.iter().all(|(open, _)| *open == 0) && now == before;
            before = now;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            // Looked at for longer than anything waits before it goes on.
            if quiet < 40 { Err(format!("{before:?}")) } else { Ok(()) }
        })
        .await;
    }
}

/// What is under way, and what has moved.
fn moved(status: &Status) -> (u64, Vec<u64>) {
    let halves = status.links.iter().flat_map(|link| [&link.sink, &link.source]).flatten();
    let (open, done): (Vec<u64>, Vec<u64>) = halves.map(|half: &HalfStatus| (half.in_flight, half.messages)).unzip();
    let depth = status.links.iter().map(|link| link.depth).sum::<u64>();
    (depth + open.iter().sum::<u64>(), [done, vec![status.broker.received, status.broker.owed]].concat())
}

/// In a ring each message comes back to where it began, and ends there.
#[tokio::test(flavor = "multi_thread")]
async fn r12_in_a_ring_every_message_arrives_everywhere_once_and_dies_out() {
    if left_out(&["rabbitmq", "kafka"]) {
        return;
    }
    let routes: [(&str, &[&str]); 3] = [
        ("\"bravo/line/{rest}\"", &["lake/from-charlie"]),
        ("\"queues/line/{rest}\"", &[]),
        ("lake/from-charlie", &["queues/to-charlie"]),
    ];
    let three = Three::start("ring", routes).await;
    three.publish().await;
    for (site, gateway) in SITES.iter().zip(&three.gateways) {
        let status = gateway.status().await;
        assert_eq!((status.loops_stopped, status.copies_dropped), (MESSAGES as u64, 0), "{site}");
    }
}

/// In a mesh each message comes to each gateway by two ways.
#[tokio::test(flavor = "multi_thread")]
async fn r12_in_a_mesh_every_message_arrives_everywhere_once_and_dies_out() {
    if left_out(&["rabbitmq", "kafka"]) {
        return;
    }
    let routes: [(&str, &[&str]); 3] = [
        ("\"bravo/line/{rest}\", lake/from-alpha", &["lake/from-charlie"]),
        ("\"alpha/line/{rest}\", \"queues/line/{rest}\"", &["queues/to-bravo"]),
        ("\"queues/line/{rest}\", lake/from-charlie", &["queues/to-charlie", "lake/from-alpha"]),
    ];
    let mut three = Three::start("mesh", routes).await;
    three.publish().await;
    let arrived = three.subscribers[1].arrived();
    let mut copies = 0;
    for gateway in &three.gateways {
        copies += gateway.status().await.copies_dropped;
    }
    // One of the other two at least has each by both ways: who gets it over the other first does not send it back there.
    assert!(copies >= 3 * MESSAGES as u64, "{copies}");
    // What has come is known after a stop, and after a kill: not the last second's, and nothing has come for longer.
    let of_alpha = arrived.iter().find(|delivery| delivery.topic == "line/alpha/0").unwrap();
    for kill in [false, true] {
        let bravo = &mut three.gateways[1];
        if kill {
            bravo.kill_9();
        } else {
            assert!(bravo.terminate().await.success());
        }
        bravo.start_again().await;
        assert_eq!(bravo.status().await.copies_dropped, 0);
        publish_copy(bravo.port, of_alpha).await;
        bravo.wait_for("the copy is dropped", |status| status.copies_dropped == 1).await;
    }
    until_true("all is well again", PATIENCE, || three.subscribers[1].sessions() > 0).await;
    three.die_out().await;
    let again = three.subscribers.iter().map(|subscriber| {
        let of_it = |delivery: &&Delivery| delivery.topic == of_alpha.topic && delivery.mark() == of_alpha.mark();
        subscriber.arrived().iter().filter(of_it).count()
    });
    assert_eq!(again.collect::<Vec<_>>(), [1, 1, 1]);
}

/// The same once more, as a gateway would bring it that had not heard of the acknowledgement.
async fn publish_copy(port: u16, delivery: &Delivery) {
    let options = MqttOptions::new("another-gateway", ("127.0.0.1", port));
    let (client, mut events) = AsyncClient::builder(options).capacity(1).build();
    let mut polling = JoinSet::new();
    polling.spawn(async move { while events.poll().await.is_ok() {} });
    let user_properties = delivery.properties.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let properties = PublishProperties { user_properties, ..PublishProperties::default() };
    let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
    let notice = client.publish_tracked(delivery.topic.clone(), delivery.payload.clone(), options).await.unwrap();
    timeout(PATIENCE, notice.wait_completion_async()).await.expect("the broker answers").expect("it takes it");
}
