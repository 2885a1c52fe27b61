//! What a link to RabbitMQ can do beside publishing to a topic exchange: exchanges of every type, quorum queues, streams, certificates.

use std::fs;
use std::time::Duration;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::pki::Authority;
use crate::support::process::Room;
use crate::support::remote::{Argument, Node, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until_true};

fn marks(messages: usize) -> Vec<Mark> {
    (0..messages).map(|number| Mark { publisher: 0, number }).collect()
}

fn is_online(link: &LinkStatus) -> bool {
    link.state == LinkState::Online
}

/// The publishers' property `number` is a header: a headers exchange routes by it.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_every_type_is_declared_with_its_arguments_and_routes() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("exchanges").await;
    rabbit.declare("spare", "unrouted").await;
    for (kind, key, arguments, expected) in [
        ("direct", "line.0", &[][..], 20),
        ("fanout", "", &[], 20),
        ("topic", "line.*", &[], 20),
        ("headers", "", &[("x-match", Argument::Text("all")), ("number", Argument::Text("7"))], 1),
    ] {
        let gateway = Gateway::start(&format!(
            "links:\n  cloud: {{ rabbitmq: {{ url: \"{}\", exchange: by-{kind}, declare: {{ type: {kind}, arguments: {{ alternate-exchange: spare }} }} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"cloud/line/{{rest}}\" }}\n",
            rabbit.url(rabbit.port)
        ))
        .await;
        gateway.wait_for_link("cloud", "online", is_online).await;
        let queue = format!("of-{kind}");
        rabbit.declare_queue(&queue).await;
        rabbit.bind(&queue, &format!("by-{kind}"), key, arguments).await;
        let work = Work {
            port: gateway.port,
            publishers: 1,
            messages: 20,
            qos: QoS::AtLeastOnce,
            window: 10,
            topic: "line".into(),
        };
        let acknowledged = Publishers::start(work).finish().await;
        let link = gateway.wait_until_drained("cloud").await;
        assert_eq!(link.ledger["delivered"], 20, "{kind}: what no binding takes goes to the alternate exchange");
        let expected: Vec<Mark> = if expected == 1 { vec![acknowledged[7]] } else { acknowledged };
        Ledger::compare(expected.clone(), &rabbit.receive(&queue, &expected).await).assert_exact(kind);
    }
    assert_eq!(rabbit.depth("unrouted").await, 19, "all but one of the headers exchange");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_queue_is_filled_by_the_default_exchange_and_read() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("quorum").await;
    rabbit.declare_queue_with("orders", &[("x-queue-type", Argument::Text("quorum"))]).await;
    let url = rabbit.url(rabbit.port);
    let routes = format!(
        "links:\n  out: {{ rabbitmq: {{ url: \"{url}\", exchange: \"\" }} }}\n  in: {{ rabbitmq: {{ url: \"{url}\" }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: out/orders }}\n"
    );
    let mut gateway = Gateway::start(&routes).await;
    let work = Work {
        port: gateway.port,
        publishers: 2,
        messages: 200,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    };
    let acknowledged = Publishers::start(work).finish().await;
    gateway.wait_until_drained("out").await;
    assert!(gateway.terminate().await.success());
    // A message that has passed this site would end here.
    let reader = Gateway::start_site(
        "reader",
        &format!("links:\n  in: {{ rabbitmq: {{ url: \"{url}\" }} }}\nroutes:\n  - {{ from: in/orders, to: \"broker/read/{{topic}}\" }}\n"),
    )
    .await;
    let machine = Subscriber::start(reader.port, "machine", "read/#", QoS::AtLeastOnce).await;
    Ledger::compare(acknowledged.clone(), &machine.receive(&acknowledged).await).assert_exact("a quorum queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_from_its_beginning_and_goes_on_where_it_was_over_a_kill() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("streams").await;
    rabbit.declare_queue_with("events", &[("x-queue-type", Argument::Text("stream"))]).await;
    rabbit.publish("events", &marks(300)).await;
    let routes = format!(
        "links:\n  cloud: {{ rabbitmq: {{ url: \"{}\", streams: {{ events: first }}, prefetch: 50 }} }}\nroutes:\n  - {{ from: cloud/events, to: broker/events }}\n",
        rabbit.url(rabbit.port)
    );
    let (mut gateway, machine) = Subscriber::before(&routes, "events").await;
    Ledger::compare(marks(300), &machine.receive(&marks(300)).await).assert_kept("from its beginning", 0);
    let written = gateway.data().join("streams/cloud.json");
    until_true("the position is written", PATIENCE, || {
        fs::read_to_string(&written).is_ok_and(|text| text.contains("\"events\":300"))
    })
    .await;
    gateway.kill_9();
    let more: Vec<Mark> = (300..400).map(|number| Mark { publisher: 0, number }).collect();
    rabbit.publish("events", &more).await;
    let before = machine.count();
    gateway.start_again().await;
    let arrived = machine.receive(&more).await;
    let after: Vec<_> = arrived[before..].iter().map(|delivery| delivery.mark().number).collect();
    assert_eq!(after, (300..400).collect::<Vec<_>>(), "it goes on where it was, and nothing comes twice");
    // Asked to end, it writes at once how far it is.
    assert!(gateway.terminate().await.success());
    assert!(fs::read_to_string(&written).unwrap().contains("\"events\":400"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_a_renamed_link_goes_on_in_its_streams_where_it_was() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("renamed").await;
    rabbit.declare_queue_with("events", &[("x-queue-type", Argument::Text("stream"))]).await;
    let routes = |name: &str, old: &str| {
        format!(
            "links:\n  {name}: {{ rabbitmq: {{ url: \"{}\", streams: {{ events: first }} }}{old} }}\nroutes:\n  - {{ from: {name}/events, to: broker/events }}\n",
            rabbit.url(rabbit.port)
        )
    };
    let part = |from: usize| marks(from + 100).split_off(from);
    rabbit.publish("events", &part(0)).await;
    let (mut gateway, machine) = Subscriber::before(&routes("cloud", ""), "events").await;
    machine.receive(&part(0)).await;
    gateway.configure(&routes("remote", ", renamed_from: cloud"));
    assert_eq!(gateway.reload().await.0, 0, "{}", gateway.log());
    rabbit.publish("events", &part(100)).await;
    machine.receive(&part(100)).await;
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes("far", ", renamed_from: remote"));
    rabbit.publish("events", &part(200)).await;
    gateway.start_again().await;
    let arrived: Vec<_> = machine.receive(&part(200)).await.iter().map(|delivery| delivery.mark().number).collect();
    assert_eq!(arrived, (0..300).collect::<Vec<_>>(), "it goes on where it was, and nothing comes twice");
    let left: Vec<_> =
        fs::read_dir(gateway.data().join("streams")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["far.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_logs_in_by_itself_and_a_stranger_s_does_not() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let (room, ca, strangers) = (Room::new("pki"), Authority::new("ca of rmq"), Authority::new("somebody"));
    let (server, plant, stranger) = (ca.server(), ca.client("edge-1"), strangers.client("edge-1"));
    for (name, text) in [
        ("ca.pem", &ca.pem),
        ("server.pem", &server.cert),
        ("server.key", &server.key),
        ("plant.pem", &plant.cert),
        ("plant.key", &plant.key),
        ("stranger.pem", &stranger.cert),
        ("stranger.key", &stranger.key),
    ] {
        fs::write(room.file(name), text).unwrap();
    }
    let dir = room.file("").display().to_string();
    let (node, port) = Node::start_tls(&room.file("")).await;
    let rabbit = node.vhost("plant").await;
    rabbit.user_without_password("edge-1").await;
    rabbit.declare("telemetry", "all").await;
    let link = |url: &str, more: &str| {
        format!(
            "links:\n  cloud: {{ rabbitmq: {{ url: \"{url}\", exchange: telemetry, ca: \"{dir}ca.pem\"{more} }} }}\nroutes:\n  - {{ from: \"broker/line/#\", to: \"cloud/line/{{rest}}\" }}\n"
        )
    };
    let certificate = |name: &str| format!(", cert: \"{dir}{name}.pem\", key: \"{dir}{name}.key\"");
    let by_certificate = format!("amqps://127.0.0.1:{port}/plant");
    let by_password = format!("amqps://guest:guest@localhost:{port}/plant");
    for (number, (url, more)) in [
        (&by_certificate, format!("{}, server_name: localhost", certificate("plant"))),
        (&by_password, certificate("plant")),
        (&by_password, String::new()),
    ]
    .iter()
    .enumerate()
    {
        let gateway = Gateway::start(&link(url, more)).await;
        publish_once(gateway.port, "one", "line/0", Mark { publisher: 0, number }.payload(64)).await.unwrap();
        gateway.wait_until_drained("cloud").await;
    }
    let sent = marks(3);
    Ledger::compare(sent.clone(), &rabbit.receive("all", &sent).await).assert_exact("over TLS");
    for (more, words) in [
        (certificate("stranger"), "fatal alert"),
        (format!("{}, server_name: rmq.example", certificate("plant")), "not valid for name"),
    ] {
        let gateway = Gateway::start(&link(&by_certificate, &more)).await;
        let told = gateway.wait_for_link("cloud", "refused", |link| {
            link.sink.as_ref().is_some_and(|sink| sink.last_error.as_deref().is_some_and(|error| error.contains(words)))
        });
        let told = tokio::time::timeout(Duration::from_secs(60), told).await.expect("in its words");
        assert_ne!(told.state, LinkState::Online);
    }
}
