//! What goes wrong outside the gateway, each with its clear error or link state; and nothing is lost by it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rumqttc_v5::{PubAckReason, PublishNoticeError, QoS};
use tidegate::telemetry::board::{LinkState, LinkStatus, Status};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::disk::SmallDisk;
use crate::support::gateway::{Gateway, PROGRAM, configuration, link, run};
use crate::support::http;
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::{Process, Room, did_not_run, free_port};
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, Rabbit, left_out};
use crate::support::wait::{PATIENCE, until_true};

fn work(port: u16, messages: usize) -> Work {
    Work { port, publishers: 2, messages, qos: QoS::AtLeastOnce, window: 20, topic: "line".into() }
}

#[tokio::test]
async fn every_mistake_of_a_file_is_reported_in_one_run_with_its_line() {
    let room = Room::new("mistakes");
    let file = room.file("routes.yaml");
    let text = configuration(
        "edge",
        &room.file("data"),
        free_port(),
        r#"links:
  cloud:
    rabbitmq: { url: "amqp://guest:${env:TIDEGATE_NO_SUCH_SECRET}@127.0.0.1:1/%2f", exchange: telemetry }
routes:
  - { name: first, from: "broker/line/#", to: "clod/line/{rest}" }
  - { name: second, from: "broker/li#ne/+", to: "cloud/line" }
"#,
    );
    fs::write(&file, &text).unwrap();
    let line_of = |needle: &str| text.lines().position(|line| line.contains(needle)).unwrap() + 1;
    for command in [["check", "-c"], ["run", "-c"]] {
        let ended = run(&[command[0], command[1], file.to_str().unwrap()]).await;
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(ended.status.code(), Some(65), "{command:?}:\n{said}");
        for (needle, word) in [("TIDEGATE_NO_SUCH", "TIDEGATE_NO_SUCH_SECRET"), ("clod", "cloud"), ("li#ne", "#")] {
            let place = format!("routes.yaml:{}:", line_of(needle));
            let reported = said.lines().any(|line| line.contains(&place) && line.contains(": error: "));
            assert!(reported && said.contains(word), "{command:?}: no error at {place} about {word}:\n{said}");
        }
    }
    assert!(!room.file("data").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_misconfigured_in_the_remotes_words_and_loses_nothing() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("password").await;
    rabbit.declare("telemetry", "all").await;
    let good = routes(&rabbit.url(rabbit.port));
    let mut gateway = Gateway::start(&good.replace("guest:guest@", "guest:gust@")).await;
    misconfigured_until(&mut gateway, &rabbit, "access_refused", async |gateway| gateway.configure(&good)).await;
    assert!(!gateway.log().contains("gust@"), "a password in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_is_misconfigured_in_the_remotes_words_and_loses_nothing() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("exchange").await;
    let mut gateway = Gateway::start(&routes(&rabbit.url(rabbit.port))).await;
    misconfigured_until(&mut gateway, &rabbit, "no exchange", async |_: &Gateway| {
        rabbit.declare("telemetry", "all").await;
    })
    .await;
}

fn routes(url: &str) -> String {
    format!(
        "links:\n  cloud:\n    rabbitmq: {{ url: \"{url}\", exchange: telemetry }}\nroutes:\n  - {{ name: up, from: \"broker/line/#\", to: \"cloud/line/{{rest}}\" }}\n"
    )
}

/// Publishers are served while the link says what is wrong; once it is mended, all that they published arrives.
async fn misconfigured_until(gateway: &mut Gateway, rabbit: &Rabbit, words: &str, mend: impl AsyncFn(&Gateway)) {
    let seen = gateway.wait_for_state("cloud", LinkState::Misconfigured).await;
    let error = seen.sink.and_then(|sink| sink.last_error).unwrap_or_default();
    assert!(error.to_lowercase().contains(words), "{error}");
    let acknowledged = Publishers::start(work(gateway.port, 500)).finish().await;
    let seen = gateway.wait_for_state("cloud", LinkState::Misconfigured).await;
    assert_eq!((seen.depth, seen.dead_letters), (500, 0), "R15: a wrong permission makes no dead letters");
    mend(gateway).await;
    assert!(gateway.terminate().await.success());
    gateway.start_again().await;
    gateway.wait_until_drained("cloud").await;
    Ledger::compare(acknowledged.clone(), &rabbit.receive("all", &acknowledged).await).assert_exact("once mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let gateway = Gateway::start("").await;
    let room = Room::new("second");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("second", &room.file("data"), gateway.port, "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(matches!(ended.status.code(), Some(69 | 74)), "{}: {said}", ended.status);
    assert!(said.contains(&format!("127.0.0.1:{}", gateway.port)) && said.to_lowercase().contains("in use"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r36_a_data_folder_in_use_is_named() {
    let gateway = Gateway::start("").await;
    let room = Room::new("second");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("second", gateway.data(), free_port(), "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code().is_some_and(|code| code != 0 && code != 70), "{}: {said}", ended.status);
    assert!(said.contains(gateway.data().to_str().unwrap()), "{said}");
    assert!(gateway.status().await.ready, "the first is not disturbed");
}

#[tokio::test]
async fn an_unwritable_data_folder_is_named() {
    let room = Room::new("unwritable");
    let in_the_way = room.file("file");
    fs::write(&in_the_way, "not a folder").unwrap();
    let data = in_the_way.join("data");
    let file = room.file("routes.yaml");
    fs::write(&file, configuration("edge", &data, free_port(), "")).unwrap();
    let ended = run(&["run", "-c", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(matches!(ended.status.code(), Some(74 | 77)), "{}: {said}", ended.status);
    assert!(said.contains(data.to_str().unwrap()), "{said}");
}

/// What a client of MQTT 3.1.1 gets for a publish with QoS 1 behind its CONNACK: `None`, the connection is closed.
async fn publish_in_3_1_1(port: u16, mark: Mark) -> Option<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connect = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03old";
    // 74 bytes: topic, packet id, payload.
    let publish = b"\x32\x4a\x00\x06line/9\x00\x07";
    stream.write_all(&[&connect[..], &publish[..], &mark.payload(64)].concat()).await.unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    stream.read_u8().await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_a_full_disk_refuses_publishers_lets_sources_wait_and_loses_nothing() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some(disk) = SmallDisk::mount("96m") else { return did_not_run("this user may not mount a small disk") };
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start_at(
        &disk.path().join("data"),
        &format!(
            r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
    buffer: {{ max_size: 32MiB, min_free: 8MiB, when_full: reject }}
    retry: {{ min: 100ms, max: 500ms }}
  near:
    mqtt: {{ url: "mqtt://127.0.0.1:{}" }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
  - {{ name: on, from: "near/up/#", to: "far/line/{{rest}}" }}
"#,
            proxy.port(),
            mosquitto.port
        ),
    )
    .await;
    let publishers = Publishers::start(work(gateway.port, 1_000));
    publishers.allow(500);
    publishers.reach(500).await;

    let ballast = disk.fill();
    publishers.allow(1_000);
    // What was admitted before the disk said that it is full waits, unacknowledged; who comes later is told why.
    // Whether a write found it full or a look at the disk was first depends on what still fitted into the last page.
    let seen = ["the disk is short", "the disk is full: new records wait"];
    until_true("the disk is seen to be full", PATIENCE, || seen.iter().any(|said| gateway.log().contains(said))).await;
    let probe = Mark { publisher: 9, number: 0 }.payload(64);
    let answer = publish_once(gateway.port, "probe", "line/9", probe).await;
    assert_eq!(answer, Err(PublishNoticeError::V5PubAck(PubAckReason::QuotaExceeded)));
    let old = Mark { publisher: 9, number: 1 };
    assert_eq!(publish_in_3_1_1(gateway.port, old).await, None, "MQTT 3.1.1 has no word for it");
    // What a source brings is held, and not acknowledged to its remote.
    let from_near: Vec<Mark> = (0..30).map(|number| Mark { publisher: 8, number }).collect();
    for mark in &from_near {
        publish_once(mosquitto.port, "machine", "up/8", mark.payload(64)).await.unwrap();
    }
    let holds = |link: &LinkStatus| link.source.as_ref().is_some_and(|source| source.in_flight > 0);
    gateway.wait_for_link("near", "the source waits", holds).await;
    let status = gateway.status().await;
    assert!(status.ready && !status.broker.refused.is_empty(), "{status:?}");
    let accepted = |status: &Status| link(status, "far").ledger["accepted"];
    assert!(accepted(&status) < 1_000 + 30, "{:?}", status.links);

    // Room again: it goes on by itself, and drains.
    fs::remove_file(ballast).unwrap();
    until_true("publishers are served again", PATIENCE, || publishers.acknowledged() == 1_000).await;
    let took = |link: &LinkStatus| link.source.as_ref().is_some_and(|source| source.in_flight == 0);
    gateway.wait_for_link("near", "the source goes on", took).await;
    assert_eq!(publish_in_3_1_1(gateway.port, old).await, Some(0x40), "PUBACK");
    proxy.set(Mode::Pass).await;
    let acknowledged = [publishers.finish().await, from_near, vec![old]].concat();
    gateway.wait_until_drained("far").await;
    let ledger = Ledger::compare(acknowledged.clone(), &far.receive(&acknowledged).await);
    // Not in order: what was refused is published again behind what its publisher had already sent and was taken.
    assert_eq!((ledger.lost, ledger.duplicates), (Vec::new(), 0));
}

/// A payload of a size that fills a small disk soon.
fn large(number: usize) -> Vec<u8> {
    Mark { publisher: 7, number }.payload(300_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_on_a_full_disk_what_kept_sessions_are_owed_goes_on_and_nothing_new_is_taken() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some(disk) = SmallDisk::mount("96m") else { return did_not_run("this user may not mount a small disk") };
    let mut gateway = Gateway::start_at(&disk.path().join("data"), "").await;
    let port = gateway.port;
    let session = ["-c", "-i", "keeper", "-V", "mqttv311", "-q", "1", "-t", "line/#", "-h", "127.0.0.1"];
    let keeper = |more: &[&str]| {
        let mut command = Command::new("mosquitto_sub");
        command.args(session).args(["-p", &port.to_string()]).args(more).kill_on_drop(true);
        command
    };
    // Takes all that is owed, and says what came. Not by `-C`: at the last message the client would hang up at once, with our SUBACK unread, and
    // the kernel then throws its last acknowledgement away where that still waits for the one before it (Nagle's algorithm).
    let take = async |gateway: &Gateway, count: usize| {
        let mut client = keeper(&["-F", "%p"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(client.stdout.take().unwrap());
        let mut got = String::new();
        while got.lines().count() < count {
            let read = tokio::time::timeout(PATIENCE, said.read_line(&mut got)).await;
            assert!(
                read.expect("all that is owed comes").unwrap() > 0,
                "the client ended with {} of {count}",
                got.lines().count()
            );
        }
        gateway.wait_for("all is confirmed", |status| status.broker.owed == 0).await;
        client.kill().await.unwrap();
        said.read_to_string(&mut got).await.unwrap();
        got.lines().map(|line| Mark::read(line.as_bytes()).unwrap().number).collect::<Vec<_>>()
    };
    assert!(keeper(&["-E"]).status().await.unwrap().success(), "connects, subscribes, and leaves its session behind");
    publish_once(port, "before", "line/7", large(0)).await.unwrap();

    let ballast = disk.fill();
    // All that is taken is safe: what found the disk full too, out of the store's reserve. Who comes later is told why.
    let mut taken = 1;
    let refused = loop {
        match publish_once(port, "filler", "line/7", large(taken)).await {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 100, "a full disk is never seen");
    };
    assert_eq!(refused, PublishNoticeError::V5PubAck(PubAckReason::QuotaExceeded));
    publish_once(port, "free", "elsewhere", b"x".to_vec()).await.unwrap();
    let status = gateway.status().await;
    assert!(status.ready && status.broker.refused["store_full"] >= 1, "{status:?}");
    assert!(status.broker.store_error.is_some_and(|words| words.contains("its disk is full")));
    // A restart changes nothing of that.
    gateway.kill_9();
    gateway.start_again().await;
    assert_eq!(gateway.status().await.broker.owed, taken as u64);
    let again = publish_once(port, "probe", "line/7", large(999)).await;
    assert_eq!(again, Err(PublishNoticeError::V5PubAck(PubAckReason::QuotaExceeded)));
    // The disk is as full as before, and the session gets what it is owed: once, as its confirmations are stored too.
    assert_eq!(take(&gateway, taken).await, (0..taken).collect::<Vec<_>>());
    assert!(gateway.status().await.broker.store_error.is_some(), "still full");

    fs::remove_file(ballast).unwrap();
    until_true("it takes all again", PATIENCE, || gateway.log().contains("the broker's store takes all")).await;
    for number in 0..3 {
        publish_once(port, "after", "line/7", large(number)).await.unwrap();
    }
    assert_eq!(gateway.status().await.broker.store_error, None);
    assert_eq!(take(&gateway, 3).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_said_and_whoever_does_not_need_it_is_served() {
    let admin = free_port();
    let gateway = Gateway::start(&format!("admin: {{ bind: \"127.0.0.1:{admin}\" }}\n")).await;
    let _keeper = Subscriber::start(gateway.port, "keeper", "line/#", QoS::AtLeastOnce).await;
    let store = rusqlite::Connection::open(gateway.data().join("broker/broker.db")).unwrap();
    store.execute_batch("DROP TABLE owed").unwrap();
    let refused = publish_once(gateway.port, "probe", "line/7", b"x".to_vec()).await;
    assert_eq!(refused, Err(PublishNoticeError::V5PubAck(PubAckReason::ImplementationSpecificError)));
    publish_once(gateway.port, "free", "elsewhere", b"x".to_vec()).await.unwrap();
    let status = gateway.status().await;
    assert!(!status.ready && status.broker.store_error.is_some_and(|words| words.contains("no such table")));
    let stream = TcpStream::connect(("127.0.0.1", admin)).await.unwrap();
    let (code, said) = http::request(stream, "GET", "/readyz", "").await.unwrap();
    assert!(code == 503 && said.contains("no such table"), "{code}: {said}");
}

/// The soft limit of open files, which shells commonly set to 1,024, is raised to what `connections_max` needs; where the hard one is below, that is said.
#[tokio::test]
async fn fewer_open_files_than_clients_may_need_are_raised_or_told() {
    for (ulimit, soft, is_told) in [("ulimit -Hn 2000; ulimit -Sn 300", 1_634, false), ("ulimit -n 400", 400, true)] {
        let room = Room::new("files");
        let (file, log) = (room.file("routes.yaml"), room.file("log"));
        let few = "  connections_max: 600\n  handshakes_max: 10\n";
        fs::write(&file, configuration("edge", &room.file("data"), free_port(), few)).unwrap();
        let script = format!("{ulimit}; exec \"$0\" run -c \"$1\"");
        let arguments = ["-c".as_ref(), script.as_ref(), PROGRAM.as_ref(), file.as_os_str()];
        let process = Process::start(Path::new("sh"), &arguments, &log);
        until_true("it is ready", PATIENCE, || process.log().contains("ready")).await;
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
        let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(open.split_whitespace().nth(3).unwrap(), soft.to_string(), "{open}");
        assert_eq!(process.log().contains("allows fewer open files"), is_told, "{}", process.log());
    }
}
