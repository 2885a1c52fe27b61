//! What an operator does with the tools: proves the ledger, looks after dead letters, mends and carries data.

use std::process::Output;

use rumqttc_v5::QoS;
use serde_json::Value;

use crate::support::client::{Publishers, Work, publish_once};
use crate::support::gateway::{Gateway, run};
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::free_port;
use crate::support::remote::{Rabbit, left_out};

async fn tool(gateway: &Gateway, arguments: &[&str]) -> Output {
    let config = gateway.config();
    run(&[&["-c", config.to_str().unwrap()], arguments].concat()).await
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// Runs a tool; its text, if it ended with this code.
async fn expect(gateway: &Gateway, code: i32, arguments: &[&str]) -> String {
    let output = tool(gateway, arguments).await;
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
}

/// A gateway whose link leads nowhere, with `count` messages in its buffer.
async fn cut_off(count: usize) -> Gateway {
    let port = free_port();
    let gateway = Gateway::start(&format!(
        "links:\n  far:\n    rabbitmq: {{ url: \"amqp://127.0.0.1:{port}/%2f\", exchange: x }}\nroutes:\n  - {{ name: far, from: \"broker/line/#\", to: \"far/{{rest}}\" }}\n"
    ))
    .await;
    for number in 0..count {
        let payload = Mark { publisher: 0, number }.payload(64);
        publish_once(gateway.port, "machine", &format!("line/{number}"), payload).await.unwrap();
    }
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_audit_proves_the_ledger_in_use_and_after_a_kill_and_fails_on_damage_until_it_is_known() {
    let mut gateway = cut_off(12).await;
    let figures = expect(&gateway, 0, &["audit"]).await;
    has(&figures, "far accepted 12");
    has(&figures, "far found 12");
    has(&figures, "audit ok yes");
    gateway.kill_9();
    has(&expect(&gateway, 0, &["audit", "--link", "far"]).await, "far found 12");
    let answer = expect(&gateway, 64, &["audit", "--link", "fra"]).await;
    assert!(answer.contains("there are: far"), "{answer}");

    let path = gateway.data().join("links/far/00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[150] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = expect(&gateway, 1, &["audit"]).await;
    has(&found, "far gap 1");
    has(&found, "far missing 1");
    assert!(found.contains("records 0 to 0"), "{found}");
    has(&expect(&gateway, 0, &["audit", "--accept"]).await, "far ok yes");
    gateway.start_again().await;
    let counted = expect(&gateway, 0, &["audit"]).await;
    has(&counted, "far dropped_damaged 1");
    has(&counted, "far accepted_damaged 1");
    let output = tool(&gateway, &["audit", "--json"]).await;
    assert_eq!(json(&output)["links"][0]["ledger"]["buffered"], 11, "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_refused_message_is_listed_shown_and_sent_again_when_the_remote_takes_it() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("letters").await;
    let link = format!("rabbitmq: {{ url: \"{}\" }}", rabbit.url(rabbit.port));
    let routes = format!(
        "links:\n  far:\n    {link}\nroutes:\n  - {{ name: far, from: \"broker/line/#\", to: \"far/{{rest}}\" }}\n"
    );
    let mut gateway = Gateway::start(&routes).await;
    // The default exchange: there is no queue of this name yet.
    let marks = [0, 1, 2].map(|number| Mark { publisher: 0, number });
    for mark in marks {
        publish_once(gateway.port, "machine", "line/late", mark.payload(64)).await.unwrap();
    }
    let refused = |link: &tidegate::telemetry::board::LinkStatus| link.ledger["dead_lettered"] == 3;
    gateway.wait_for_link("far", "three dead letters", refused).await;
    let list = expect(&gateway, 0, &["dead-letters", "list", "far"]).await;
    has(&list, "dead_letters 3");
    assert!(list.contains("NO_ROUTE") && list.contains("line/late -> late") && list.contains("attempts 1"), "{list}");
    let shown = expect(&gateway, 0, &["dead-letters", "show", "far", "0"]).await;
    has(&shown, "topic line/late");
    assert!(shown.contains(&String::from_utf8(marks[0].payload(64)).unwrap()), "{shown}");

    let path = gateway.data().join("links/far/dead-letters/letters");
    let sound = std::fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damaged[60] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let list = expect(&gateway, 1, &["dead-letters", "list", "far"]).await;
    has(&list, "dead_letters 2");
    assert!(list.contains("tidegate: letter 0 cannot be read: the letter at byte 0"), "{list}");
    expect(&gateway, 1, &["dead-letters", "show", "far", "0"]).await;
    std::fs::write(&path, sound).unwrap();

    expect(&gateway, 1, &["dead-letters", "send", "far", "7"]).await;
    rabbit.declare_queue("late").await;
    has(&expect(&gateway, 0, &["dead-letters", "send", "far", "0"]).await, "sent 1");
    gateway.wait_until_drained("far").await;
    has(&expect(&gateway, 0, &["dead-letters", "drop", "far", "1"]).await, "dropped 1");
    // The rest while the gateway is away.
    gateway.kill_9();
    has(&expect(&gateway, 0, &["dead-letters", "list", "far"]).await, "dead_letters 1");
    has(&expect(&gateway, 0, &["dead-letters", "send", "far", "--all"]).await, "sent 1");
    has(&expect(&gateway, 0, &["audit"]).await, "far dead_letters_sent 2");
    gateway.start_again().await;
    let end = gateway.wait_until_drained("far").await;
    assert_eq!((end.ledger["accepted"], end.ledger["delivered"], end.ledger["dead_lettered"]), (3, 2, 1));
    assert_eq!(end.dead_letters, 0);
    let arrived = [marks[0], marks[2]];
    Ledger::compare(arrived, &rabbit.receive("late", &arrived).await).assert_kept("RabbitMQ", 2);
    let figures = expect(&gateway, 0, &["audit"]).await;
    has(&figures, "far dead_letters_dropped 1");
    has(&figures, "audit ok yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_the_tools_go_over_all_lanes_of_a_link() {
    if left_out(&["rabbitmq"]) {
        return;
    }
    let rabbit = Rabbit::start("lanes").await;
    let mut gateway = Gateway::start(&format!(
        r#"
links:
  far:
    rabbitmq: {{ url: "{}" }}
    buffer: {{ keep_delivered: 1h }}
routes:
  - {{ from: "broker/line/#", to: "far/{{rest}}" }}
  - {{ from: "broker/alarm/#", to: "far/{{rest}}", priority: high }}
"#,
        rabbit.url(rabbit.port)
    ))
    .await;
    // The default exchange: there is no queue of this name yet.
    let marks = [0, 1, 2].map(|publisher| Mark { publisher, number: 0 });
    for (mark, topic) in marks.iter().zip(["line/late", "alarm/late", "alarm/late"]) {
        publish_once(gateway.port, "machine", topic, mark.payload(64)).await.unwrap();
    }
    let refused = |link: &tidegate::telemetry::board::LinkStatus| link.ledger["dead_lettered"] == 3;
    gateway.wait_for_link("far", "three dead letters", refused).await;
    seen_in_both_lanes(&gateway).await;
    assert!(gateway.terminate().await.success());
    seen_in_both_lanes(&gateway).await;
    let depth = expect(&gateway, 0, &["buffer", "ls"]).await;
    has(&depth, "far/high depth 0");
    rabbit.declare_queue("late").await;
    let sent = expect(&gateway, 0, &["dead-letters", "send", "far/high", "1"]).await;
    has(&sent, "letter high 1 sent again, as record 2");
    gateway.start_again().await;
    // One that does not read back is passed over and said, and stays.
    let path = gateway.data().join("links/far/high/dead-letters/letters");
    let sound = std::fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damaged[60] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let sent = expect(&gateway, 1, &["dead-letters", "send", "far", "--all"]).await;
    has(&sent, "sent 1");
    has(&sent, "damaged 1");
    assert!(sent.contains("letter 0 cannot be read") && sent.contains("it stays, and can be dropped"), "{sent}");
    std::fs::write(&path, sound).unwrap();
    has(&expect(&gateway, 0, &["dead-letters", "send", "far", "--all"]).await, "sent 1");
    let end = gateway.wait_until_drained("far").await;
    assert_eq!((end.ledger["accepted"], end.ledger["delivered"], end.ledger["dead_lettered"]), (3, 3, 0));
    Ledger::compare(marks, &rabbit.receive("late", &marks).await).assert_kept("RabbitMQ", 2);
    let figures = expect(&gateway, 0, &["audit"]).await;
    has(&figures, "far/high dead_letters_sent 2");
    has(&figures, "far dead_letters_sent 1");
    has(&figures, "audit ok yes");

    // Damage in a lane is damage of the link.
    assert!(gateway.terminate().await.success());
    let path = gateway.data().join("links/far/high/00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[150] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let figures = expect(&gateway, 1, &["audit"]).await;
    has(&figures, "far ok yes");
    has(&figures, "far/high ok no");
}

/// Three letters, two of them of the high lane.
async fn seen_in_both_lanes(gateway: &Gateway) {
    let figures = expect(gateway, 0, &["audit", "--link", "far"]).await;
    has(&figures, "far dead_letters 1");
    has(&figures, "far/high dead_letters 2");
    has(&figures, "audit links 1");
    has(&figures, "audit logs 2");
    let figures = expect(gateway, 0, &["audit", "--link", "far/high"]).await;
    has(&figures, "far/high dead_lettered 2");
    has(&figures, "audit links 1");
    let list = expect(gateway, 0, &["dead-letters", "list", "far"]).await;
    has(&list, "dead_letters 3");
    let begins: Vec<_> = list.lines().filter_map(|line| Some(line.split_once("  ")?.0)).collect();
    assert_eq!(begins, ["far/normal 0", "far/high 0", "far/high 1"], "{list}");
    has(&expect(gateway, 0, &["dead-letters", "list", "far/normal"]).await, "dead_letters 1");
    has(&expect(gateway, 0, &["dead-letters", "show", "far/high", "0"]).await, "topic alarm/late");
    // One lane alone has a letter 1, so it needs no name.
    has(&expect(gateway, 0, &["dead-letters", "show", "far", "1"]).await, "lane high");
    // Which of the two letters 0 is meant is not guessed.
    let output = tool(gateway, &["dead-letters", "drop", "far", "0"]).await;
    assert!(!output.status.success() && text(&output).contains("far/high"), "{}", text(&output));
}

/// The messages of this gateway's link, by `peek --json`.
async fn peeked(gateway: &Gateway, log: &str) -> Vec<(String, String)> {
    let output = tool(gateway, &["buffer", "peek", log, "-n", "10000", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = json(&output);
    let part = |record: &Value, name: &str| record["message"][name].as_str().unwrap().to_owned();
    shown.as_array().unwrap().iter().map(|record| (part(record, "id"), part(record, "payload"))).collect()
}

/// So many that an import takes some thirty batches: kills come in its middle.
const CARRIED: usize = 8_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_is_carried_to_another_gateway_once_whatever_is_killed() {
    let source = cut_off(0).await;
    let (port, qos) = (source.port, QoS::AtLeastOnce);
    let work = Work { port, publishers: 2, messages: CARRIED, qos, window: 200, topic: "line".into() };
    Publishers::start(work).finish().await;
    let file = source.config().with_file_name("far.tgx");
    let file = file.to_str().unwrap();
    has(&expect(&source, 0, &["buffer", "export", "far", file]).await, &format!("exported {CARRIED}"));
    let refused = expect(&source, 74, &["buffer", "export", "far", file]).await;
    assert!(refused.contains("is there already"), "{refused}");
    has(&expect(&source, 0, &["buffer", "export", "far", file, "--force"]).await, &format!("exported {CARRIED}"));
    let carried = peeked(&source, "far").await;
    assert_eq!(carried.len(), CARRIED);

    let mut target = cut_off(2).await;
    let refused = expect(&target, 69, &["buffer", "import", file]).await;
    assert!(refused.contains("stop it first"), "{refused}");
    assert!(target.terminate().await.success());
    // Killed again and again, later each time, until one comes to its end.
    let config = target.config();
    let imports = target.data().join("links/far/imports");
    let (mut kills, mut halfway) = (0, 0);
    loop {
        let mut import = tokio::process::Command::new(crate::support::gateway::PROGRAM)
            .args(["-c", config.to_str().unwrap(), "buffer", "import", file])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut seen = std::fs::read(&imports).unwrap_or_default();
        let mut writes = 0;
        // Without a pause: a batch takes some milliseconds, and two writes of this file.
        let ended = loop {
            if let Some(status) = import.try_wait().unwrap() {
                break Some(status);
            }
            let now = std::fs::read(&imports).unwrap_or_default();
            writes += u64::from(now != seen);
            seen = now;
            if writes > 2 * kills {
                break None;
            }
            tokio::task::yield_now().await;
        };
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
        import.kill().await.unwrap();
        kills += 1;
        let depth = expect(&target, 0, &["buffer", "ls", "far"]).await;
        let depth = depth.lines().find_map(|line| line.strip_prefix("far depth ")).unwrap().parse::<usize>().unwrap();
        halfway += usize::from((3..CARRIED + 2).contains(&depth));
    }
    assert!(halfway >= 3, "kills in the middle: {halfway} of {kills}");
    let again = expect(&target, 0, &["buffer", "import", file]).await;
    has(&again, "imported 0");
    has(&again, &format!("there_already {CARRIED}"));
    has(&expect(&target, 0, &["audit"]).await, &format!("far found {}", CARRIED + 2));
    let arrived = peeked(&target, "far").await;
    assert_eq!(arrived[2..], carried, "each once, in order, with its id");

    let mut torn = std::fs::read(file).unwrap();
    torn.pop();
    std::fs::write(file, torn).unwrap();
    let refused = expect(&target, 74, &["buffer", "import", file]).await;
    assert!(refused.contains("is no whole export"), "{refused}");
}

/// A gateway whose link leads nowhere and has two lanes, with these messages in it.
async fn cut_off_in_lanes(normal: usize, high: usize) -> Gateway {
    let port = free_port();
    let gateway = Gateway::start(&format!(
        r#"
links:
  far:
    rabbitmq: {{ url: "amqp://127.0.0.1:{port}/%2f", exchange: x }}
routes:
  - {{ from: "broker/line/#", to: "far/{{rest}}" }}
  - {{ from: "broker/alarm/#", to: "far/{{rest}}", priority: high }}
"#
    ))
    .await;
    for (publisher, topic, count) in [(0, "line/a", normal), (1, "alarm/a", high)] {
        for number in 0..count {
            publish_once(gateway.port, "machine", topic, Mark { publisher, number }.payload(64)).await.unwrap();
        }
    }
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_single_lane_is_carried_and_mended() {
    let source = cut_off_in_lanes(5, 3).await;
    let file = source.config().with_file_name("far.tgx");
    let file = file.to_str().unwrap();
    let refused = tool(&source, &["buffer", "export", "far", file]).await;
    assert!(!refused.status.success() && text(&refused).contains("far/high"), "{}", text(&refused));
    has(&expect(&source, 0, &["buffer", "export", "far/high", file]).await, "exported 3");
    let carried = peeked(&source, "far/high").await;
    // All lanes, the normal one first.
    let all = [peeked(&source, "far/normal").await, carried.clone()].concat();
    assert_eq!((peeked(&source, "far").await, all.len()), (all, 8));
    let refused = tool(&source, &["buffer", "peek", "far", "--from", "1"]).await;
    assert!(!refused.status.success() && text(&refused).contains("far/high"), "{}", text(&refused));

    let mut target = cut_off_in_lanes(1, 2).await;
    let normal = peeked(&target, "far/normal").await;
    assert!(target.terminate().await.success());
    has(&expect(&target, 0, &["buffer", "import", file]).await, "imported 3");
    has(&expect(&target, 0, &["buffer", "import", file]).await, "there_already 3");
    assert_eq!(peeked(&target, "far/high").await[2..], carried, "into the lane that it came from, once");
    assert_eq!(peeked(&target, "far/normal").await, normal);

    // The damage of one lane is mended, and the other is not touched.
    let damage = |lane: &str| {
        let path = target.data().join("links/far").join(lane).join("00000000000000000000.seg");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[150] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    };
    let ((high, _), (other, as_it_was)) = (damage("high"), damage(""));
    has(&expect(&target, 1, &["buffer", "verify"]).await, "damaged 2");
    let refused = tool(&target, &["buffer", "repair", "far", "--yes"]).await;
    assert!(!refused.status.success() && text(&refused).contains("far/high"), "{}", text(&refused));
    expect(&target, 0, &["buffer", "repair", "far/high", "--yes"]).await;
    has(&expect(&target, 1, &["buffer", "verify"]).await, "damaged 1");
    assert!(high.with_extension("seg.damaged").exists());
    assert_eq!(std::fs::read(other).unwrap(), as_it_was);
    expect(&target, 0, &["buffer", "repair", "far/normal", "--yes"]).await;
    has(&expect(&target, 0, &["buffer", "verify"]).await, "damaged 0");
    target.start_again().await;
    assert_eq!(target.status().await.links[0].depth, 1 + 2 + 3 - 2, "a record of each lane was lost to the damage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_buffer_is_seen_told_of_and_mended() {
    let mut gateway = cut_off(10).await;
    let shown = expect(&gateway, 0, &["buffer", "ls"]).await;
    has(&shown, "far depth 10");
    has(&expect(&gateway, 0, &["buffer", "verify"]).await, "damaged 0");
    let some = expect(&gateway, 0, &["buffer", "peek", "far", "--from", "3", "--topic", "line/+", "-n", "2"]).await;
    has(&some, "topic line/3");
    has(&some, "topic line/4");
    has(&some, "messages 2, and more: -n shows more");
    assert!(gateway.terminate().await.success());
    let path = gateway.data().join("links/far/00000000000000000000.seg");
    let name = "00000000000000000000.seg";
    has(&expect(&gateway, 0, &["buffer", "inspect", "far", name]).await, "frames 10");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[150] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    has(&expect(&gateway, 1, &["buffer", "verify"]).await, "damaged 1");
    let some = expect(&gateway, 1, &["buffer", "peek", "far", "-n", "2"]).await;
    has(&some, "tidegate: records 0 to 0 are owed, and lost to damage of the files");
    has(&some, "topic line/2");
    has(&some, "messages 2, and more: -n shows more");
    expect(&gateway, 0, &["buffer", "peek", "far", "--from", "1"]).await;
    has(&expect(&gateway, 1, &["buffer", "repair", "far"]).await, "nothing was changed: --yes does it");
    has(&expect(&gateway, 1, &["buffer", "verify"]).await, "damaged 1");
    expect(&gateway, 0, &["buffer", "repair", "far", "--yes"]).await;
    has(&expect(&gateway, 0, &["buffer", "verify"]).await, "damaged 0");
    let figures = expect(&gateway, 1, &["audit"]).await;
    has(&figures, "far dropped_damaged 1");
    has(&figures, "far gap 0");
    gateway.start_again().await;
    assert_eq!(gateway.status().await.links[0].depth, 9);
}
