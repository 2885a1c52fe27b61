//! A gateway's life: the demo, an ordered end, a second start, what operators and probes see.

use std::process::Stdio;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, Status};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::{Gateway, PROGRAM, run};
use crate::support::http;
use crate::support::ledger::Ledger;
use crate::support::process::free_port;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_loses_nothing() {
    let ended = run(&["demo"]).await;
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{}\n{said}\n{complained}", ended.status);
    let figure = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(&format!("{name} ")));
        let figure = line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
        figure.unwrap_or_else(|| panic!("no line `{name} NUMBER` in:\n{said}"))
    };
    assert_eq!(figure("lost"), 0);
    assert_eq!(figure("out of order"), 0, "{said}");
    assert!(figure("published") >= figure("acknowledged") && figure("acknowledged") > 0, "{said}");
    assert!(figure("delivered") >= figure("acknowledged"), "{said}");
    // What it is about did happen: messages waited out a line that was cut, and were found again after the kill.
    assert!(figure("duplicated") < figure("delivered"), "{said}");
    let longest = said.lines().find_map(|line| line.trim().strip_prefix("longest age ")?.strip_suffix('s'));
    assert!(longest.and_then(|text| text.parse::<f64>().ok()).is_some_and(|seconds| seconds >= 5.0), "{said}");
    assert!(said.contains("The edge gateway is killed (SIGKILL)") && said.contains(" found on disk"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_in_order_and_the_next_start_finds_everything() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    retry: {{ min: 100ms, max: 1s }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#,
        proxy.port()
    ))
    .await;
    let work = Work {
        port: gateway.port,
        publishers: 4,
        messages: 4_000,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(2_000);
    publishers.reach(1_000).await;
    let ended = gateway.terminate().await;
    assert_eq!(ended.code(), Some(0), "{}", gateway.log());
    assert!(!gateway.data().join("admin.sock").exists(), "the socket is gone");
    let acknowledged = publishers.acknowledged() as u64;

    gateway.start_again().await;
    let found = gateway.wait_for_state("far", LinkState::BackingOff).await;
    assert!(found.ledger["accepted"] >= acknowledged, "{acknowledged} acknowledged: {:?}", found.ledger);
    proxy.set(Mode::Pass).await;
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    let arrived = far.receive(&acknowledged).await;
    let ledger = Ledger::compare(acknowledged, &arrived);
    ledger.assert_kept("after an ordered end", 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    buffer: {{ max_size: 4MiB, when_full: block }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#,
        free_port()
    ))
    .await;
    let work = Work {
        port: gateway.port,
        publishers: 1,
        messages: 60_000,
        qos: QoS::AtLeastOnce,
        window: 200,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(60_000);
    // Its publisher is held up by then, and with it the ordered end.
    gateway.wait_for_link("far", "full", |link| link.disk_bytes > (4 << 20) - (16 << 10)).await;
    gateway.ask_to_end();
    until_true("the first is heard", PATIENCE, || gateway.log().contains("a second signal stops at once")).await;
    let ended = gateway.terminate().await;
    assert_eq!(ended.code(), Some(143), "{}", gateway.log());
    assert!(gateway.log().contains("stopping at once"));
    let acknowledged = publishers.acknowledged() as u64;
    drop(publishers);
    gateway.start_again().await;
    let found = gateway.wait_for_state("far", LinkState::BackingOff).await;
    assert!(found.ledger["accepted"] >= acknowledged && found.balanced, "{acknowledged} acknowledged: {found:?}");
    assert_eq!(found.depth, found.ledger["accepted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_data_of_a_link_that_is_gone_is_shown_and_kept_and_delivered_when_the_link_is_back() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let routes = |port| {
        format!(
            "links:\n  far: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }} }}\nroutes:\n  - {{ name: far, from: \"broker/line/#\", to: \"far/line/{{rest}}\" }}\n"
        )
    };
    let mut gateway = Gateway::start(&routes(free_port())).await;
    let work = Work {
        port: gateway.port,
        publishers: 1,
        messages: 100,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    };
    let acknowledged = Publishers::start(work).finish().await;
    assert!(gateway.terminate().await.success());

    gateway.configure("");
    gateway.start_again().await;
    let shown = gateway.wait_for_link("far", "orphaned", |link| link.kind == "orphaned").await;
    assert!(shown.depth == 100 && shown.balanced && shown.sink.is_none(), "{shown:?}");
    assert!(gateway.log().contains("it is kept, and shown as orphaned"));
    gateway.kill_9();

    gateway.configure(&routes(mosquitto.port));
    gateway.start_again().await;
    gateway.wait_until_drained("far").await;
    Ledger::compare(acknowledged.clone(), &far.receive(&acknowledged).await).assert_exact("from the orphan");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_probes_tell_the_truth() {
    let admin = free_port();
    let dead = free_port();
    let gateway = Gateway::start(&format!(
        r#"
admin: {{ bind: "127.0.0.1:{admin}" }}
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{dead}" }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    ))
    .await;
    gateway.wait_for_state("far", LinkState::BackingOff).await;
    let config = gateway.config();
    let printed = run(&["status", "--json", "-c", config.to_str().unwrap()]).await;
    let status: Status = serde_json::from_slice(&printed.stdout).unwrap();
    let far = status.links.first().unwrap();
    assert_eq!((&*far.name, &*far.kind, far.state), ("far", "mqtt", LinkState::BackingOff));
    let error = far.sink.as_ref().and_then(|sink| sink.last_error.clone()).unwrap_or_default();
    assert!(error.to_lowercase().contains("refused"), "{error}");
    assert!(far.balanced);

    let table = run(&["status", "-c", config.to_str().unwrap()]).await;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("far") && table.contains("backing"), "{table}");

    let mut watching = Command::new(PROGRAM);
    watching.args(["status", "--watch", "--json", "-c"]).arg(&config).stdout(Stdio::piped()).kill_on_drop(true);
    let mut watching = watching.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let twice = async {
        let mut times = 0;
        while times < 2 {
            times += usize::from(lines.next_line().await.unwrap().expect("it goes on") == "{");
        }
    };
    tokio::time::timeout(PATIENCE, twice).await.expect("it asks again and again");

    let checked = run(&["check", config.to_str().unwrap()]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));

    for (path, want) in [("/livez", ""), ("/readyz", ""), ("/metrics", "tidegate_")] {
        let stream = TcpStream::connect(("127.0.0.1", admin)).await.unwrap();
        let (code, body) = http::request(stream, "GET", path, "").await.unwrap();
        assert_eq!(code, 200, "{path}: {body}");
        assert!(body.contains(want), "{path}: {body}");
    }
}
