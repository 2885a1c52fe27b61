//! R34 as an operator meets it: a link gets another name, with `renamed_from` or without, in time or too late, and what the gateway says
//! of it is what happens.

use std::fs;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkState;
use tidegate::telemetry::replay::{ReplayState, ReplayStatus};

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::gateway::{Gateway, link, run};
use crate::support::ledger::{Delivery, Ledger, Mark};
use crate::support::process::free_port;
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until};

/// The link `name` to that port, and a route to it.
fn routes(name: &str, port: u16, more: &str) -> String {
    format!(
        "links:\n  {name}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}, retry: {{ min: 50ms, max: 500ms }}{more} }}\n\
         routes:\n  - {{ name: up, from: \"broker/line/#\", to: \"{name}/far/line/{{rest}}\" }}\n"
    )
}

/// Exit code, standard output, standard error.
async fn tool(gateway: &Gateway, arguments: &[&str]) -> (i32, String, String) {
    let config = gateway.config().display().to_string();
    let output = run(&[&["-c", &config], arguments].concat()).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn reload_to(gateway: &Gateway, rest: &str) -> (String, String) {
    gateway.configure(rest);
    let (code, said, complained) = tool(gateway, &["reload"]).await;
    assert_eq!(code, 0, "{said}{complained}\n{rest}\n{}", gateway.log());
    (said, complained)
}

async fn publish(gateway: &Gateway, publisher: usize, messages: usize) -> Vec<Mark> {
    let mut marks = Vec::new();
    for number in 0..messages {
        let mark = Mark { publisher, number };
        publish_once(gateway.port, "machine", "line/1", mark.payload(64)).await.unwrap();
        marks.push(mark);
    }
    marks
}

async fn audit_is_ok(gateway: &Gateway) {
    let (code, said, complained) = tool(gateway, &["audit"]).await;
    assert_eq!(code, 0, "{said}{complained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_a_reload_says_what_becomes_of_a_buffer_that_was_left_behind_and_is_taken_over_later() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&routes("old", free_port(), "")).await;
    let mut all = publish(&gateway, 1, 3).await;

    // Without `renamed_from` the backlog stays behind, and that is said, with what to do.
    let new = |more: &str| routes("new", mosquitto.port, more);
    let (said, _) = reload_to(&gateway, &new("")).await;
    let left = "- link old: its buffer is kept: 3 records wait in it; `renamed_from: old` on new takes it over; `tidegate replay old --into new` sends copies; ";
    assert!(said.contains("+ link new\n") && said.contains(left), "{said}");
    all.extend(publish(&gateway, 2, 2).await);
    gateway.wait_until_drained("new").await;

    // A name that no buffer has.
    let (said, complained) = reload_to(&gateway, &new(", renamed_from: odl")).await;
    assert_eq!(said, "reloaded: nothing has changed\n");
    let warned = "link `new`: warning: `renamed_from: odl`: no buffer has that name, so none is taken over; buffers without a link: `old` (3 records wait in it)";
    assert!(complained.contains(warned), "{complained}");
    assert!(gateway.log().contains(warned), "{}", gateway.log());

    // The right one: what the link itself has delivered meanwhile is in nobody's way, and not lost either.
    gateway.configure(&new(", renamed_from: old"));
    let (code, said, _) = tool(&gateway, &["reload", "--json"]).await;
    assert_eq!(code, 0, "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let details =
        ["takes over the buffer of old: 3 records wait in it", "its own is kept as new_1: nothing waits in it"];
    assert_eq!(report["changes"][0]["what"], "link new", "{report}");
    assert_eq!(report["changes"][0]["details"], serde_json::json!(details), "{report}");
    assert!(gateway.log().contains("~ link new: takes over the buffer of old: 3 records wait in it"));
    let drained = gateway.wait_until_drained("new").await;
    assert_eq!((drained.ledger["accepted"], drained.ledger["delivered"]), (3, 3));
    let status = gateway.status().await;
    let aside = link(&status, "new_1");
    assert_eq!((&*aside.kind, aside.ledger["delivered"], aside.balanced), ("orphaned", 2, true));
    assert!(status.links.iter().all(|link| link.name != "old"));
    audit_is_ok(&gateway).await;

    // The key may stay.
    let (code, said, complained) = tool(&gateway, &["reload"]).await;
    assert_eq!((code, &*said, complained.contains("renamed_from")), (0, "reloaded: nothing has changed\n", false));
    assert!(gateway.terminate().await.success());
    gateway.start_again().await;
    assert_eq!(gateway.wait_until_drained("new").await.ledger["delivered"], 3);
    assert!(!gateway.log().contains("not a file of this buffer"), "{}", gateway.log());

    // And once more another name.
    let (said, _) = reload_to(&gateway, &routes("newer", mosquitto.port, ", renamed_from: new")).await;
    assert!(said.contains("> link new is link newer now: its buffer comes along: nothing waits in it\n"), "{said}");
    all.extend(publish(&gateway, 3, 1).await);
    assert_eq!(gateway.wait_until_drained("newer").await.ledger["delivered"], 4);
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_exact("by all four names");
}

/// Nobody is refused a start for what is delivered already.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_start_takes_over_what_waits_and_is_not_refused_for_what_does_not() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    const KEEP: &str = ", buffer: { keep_delivered: 1h }";
    let mut gateway = Gateway::start(&routes("new", mosquitto.port, KEEP)).await;
    let mut all = publish(&gateway, 1, 2).await;
    gateway.wait_until_drained("new").await;
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes("old", free_port(), ""));
    gateway.start_again().await;
    all.extend(publish(&gateway, 2, 3).await);
    gateway.kill_9();

    let renamed = routes("new", mosquitto.port, &format!("{KEEP}, renamed_from: old"));
    gateway.configure(&renamed);
    // About where the folders move; what is delivered before a kill may come once more.
    const KILLS: usize = 3;
    for _ in 0..KILLS {
        gateway.kill_9_while_starting().await;
    }
    gateway.start_again().await;
    gateway.wait_until_drained("new").await;
    let status = gateway.status().await;
    assert_eq!((link(&status, "new").ledger["accepted"], link(&status, "new_1").ledger["accepted"]), (3, 2));
    assert!(status.links.iter().all(|link| !["old", "new_2"].contains(&&*link.name)), "{status:?}");
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_kept("under two names", 3 * KILLS);

    // What is kept of both can be sent again.
    let (code, said, complained) = tool(&gateway, &["replay", "new_1", "--into", "new", "--dry-run"]).await;
    assert!(code == 0 && said.contains("records 2\n"), "{said}{complained}");

    // A second one of that name of which nothing waits: both stay.
    assert!(gateway.terminate().await.success());
    fs::rename(gateway.data().join("links/new_1"), gateway.data().join("links/old")).unwrap();
    gateway.start_again().await;
    let status = gateway.status().await;
    assert_eq!((link(&status, "old").ledger["delivered"], link(&status, "new").ledger["delivered"]), (2, 3));
    assert!(gateway.log().contains("both stay"), "{}", gateway.log());

    // A reload says so too, where it is asked for that.
    reload_to(&gateway, &routes("new", mosquitto.port, KEEP)).await;
    let (said, complained) = reload_to(&gateway, &renamed).await;
    assert_eq!(said, "reloaded: nothing has changed\n");
    assert!(complained.contains("nothing waits in the buffer of `old`, and `new` has one of its own"), "{complained}");
}

/// What is only in flight is no backlog.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_buffer_is_taken_over_by_a_link_that_is_busy() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&routes("old", free_port(), "")).await;
    let mut all = publish(&gateway, 9, 3).await;
    reload_to(&gateway, &routes("new", mosquitto.port, "")).await;
    gateway.wait_for_state("new", LinkState::Online).await;
    let work = Work {
        port: gateway.port,
        publishers: 2,
        messages: 4_000,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(4_000);
    publishers.reach(500).await;
    let (said, _) = reload_to(&gateway, &routes("new", mosquitto.port, ", renamed_from: old")).await;
    assert!(said.contains("takes over the buffer of old: "), "{said}");
    all.extend(publishers.finish().await);
    gateway.wait_until_drained("new").await;
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_exact("from both buffers");
}

/// What was moved goes back where another part of the file cannot be put in force.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_reload_that_fails_after_a_buffer_was_taken_over_gives_it_back() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start(&routes("old", free_port(), "")).await;
    let mut all = publish(&gateway, 1, 3).await;
    reload_to(&gateway, &routes("new", mosquitto.port, "")).await;
    all.extend(publish(&gateway, 2, 2).await);
    gateway.wait_until_drained("new").await;
    // A link whose buffer cannot be opened.
    let bad = gateway.data().join("links/bad/cursors");
    fs::create_dir_all(&bad).unwrap();
    let renamed = routes("new", mosquitto.port, ", renamed_from: old");
    let with_bad = format!("  bad: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }} }}\nroutes:", free_port());
    gateway.configure(&renamed.replace("routes:", &with_bad));
    let (code, _, complained) = tool(&gateway, &["reload"]).await;
    assert_eq!(code, 74, "{complained}");
    all.extend(publish(&gateway, 3, 2).await);
    gateway.wait_until_drained("new").await;
    let status = gateway.status().await;
    let (old, new) = (link(&status, "old"), link(&status, "new"));
    assert_eq!((&*old.kind, old.depth, new.ledger["delivered"]), ("orphaned", 3, 4));
    assert!(status.links.iter().all(|link| link.name != "new_1"), "{status:?}");
    audit_is_ok(&gateway).await;

    reload_to(&gateway, &renamed).await;
    gateway.wait_until_drained("new").await;
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_exact("after both");

    // A name that no buffer has is told at a start too, by a link that has none.
    assert!(gateway.terminate().await.success());
    gateway.configure(&routes("newest", mosquitto.port, ", renamed_from: odl"));
    gateway.start_again().await;
    let log = gateway.log();
    assert!(log.contains("no buffer has the old name") && log.contains(r#"["bad", "new", "new_1"]"#), "{log}");
}

/// Both have what is owed: nothing is changed, publishers go on.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_reload_onto_a_buffer_that_waits_too_is_refused_and_changes_nothing() {
    let nowhere = free_port();
    let gateway = Gateway::start(&routes("old", nowhere, "")).await;
    publish(&gateway, 1, 3).await;
    reload_to(&gateway, &routes("new", nowhere, "")).await;
    publish(&gateway, 2, 2).await;
    gateway.configure(&routes("new", nowhere, ", renamed_from: old"));
    let (code, _, complained) = tool(&gateway, &["reload"]).await;
    assert_eq!(code, 65, "{complained}");
    assert!(complained.contains("both hold what is not delivered: take `renamed_from` away"), "{complained}");
    publish(&gateway, 3, 1).await;
    let status = gateway.status().await;
    assert_eq!((link(&status, "old").depth, link(&status, "new").depth), (3, 3));
}

/// A replay by the tool: as it ends.
async fn replay(gateway: &Gateway, arguments: &[&str]) -> ReplayStatus {
    let (code, said, complained) = tool(gateway, &[&["replay"], arguments, &["--json"]].concat()).await;
    assert_eq!(code, 0, "{said}{complained}");
    let begun: ReplayStatus = serde_json::from_str(&said).unwrap();
    ended(gateway, &begun.id).await
}

async fn ended(gateway: &Gateway, id: &str) -> ReplayStatus {
    until("the replay has ended", PATIENCE, async || {
        let (_, said, _) = tool(gateway, &["replay", "list", "--json"]).await;
        let all: Vec<ReplayStatus> = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        let found = all.into_iter().find(|replay| replay.id == id);
        found.filter(|replay| replay.state != ReplayState::Running).ok_or(said)
    })
    .await
}

fn two(old: &str, remote: u16, rename: &str) -> String {
    format!(
        "links:\n{old}  other: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{remote}\", client_id: other }}{rename} }}\n\
         routes:\n  - {{ name: else, from: broker/else, to: other/else }}\n"
    )
}

/// The name that the route gave, not the topic that it was published to.
#[tokio::test(flavor = "multi_thread")]
async fn r34_what_a_link_that_is_gone_has_left_keeps_its_names_on_a_link_of_its_kind() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let watch = Subscriber::start(mosquitto.port, "watch", "#", QoS::AtLeastOnce).await;
    let old = format!("  old: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{}\" }} }}\n", free_port());
    let both = two(&old, mosquitto.port, "") + "  - { name: up, from: broker/line/#, to: \"old/far/{rest}\" }\n";
    let mut gateway = Gateway::start(&both).await;
    publish(&gateway, 1, 3).await;
    reload_to(&gateway, &two("", mosquitto.port, "")).await;
    let topics = async |count: usize| {
        until("it arrives", PATIENCE, async || {
            let arrived: Vec<Delivery> = watch.arrived();
            if arrived.len() >= count {
                Ok(arrived.into_iter().map(|one| one.topic).collect())
            } else {
                Err(arrived.len().to_string())
            }
        })
        .await
    };
    for (round, expected) in ["far/1", "far/1", "line/1"].into_iter().enumerate() {
        assert_eq!(replay(&gateway, &["old", "--into", "other"]).await.replayed, 3);
        let arrived: Vec<String> = topics(3 * (round + 1)).await;
        assert_eq!(arrived[3 * round..], [expected; 3], "round {round}");
        assert!(gateway.terminate().await.success());
        // As an earlier version left it: nobody knows what the names were for.
        if round == 1 {
            fs::remove_file(gateway.data().join("links/old/kind")).unwrap();
        }
        gateway.start_again().await;
    }
    // It was replayed through the link's ledger, which stays where it is when the buffer is taken over: nothing of it is lost.
    let (said, _) = reload_to(&gateway, &two("", mosquitto.port, ", renamed_from: old")).await;
    assert!(said.contains("its own is kept as other_1"), "{said}");
    gateway.wait_until_drained("other").await;
    let status = gateway.status().await;
    let (own, aside) = (link(&status, "other"), link(&status, "other_1"));
    assert_eq!((own.ledger["delivered"], own.ledger["replayed"]), (3, 0));
    assert_eq!((aside.ledger["accepted"], aside.ledger["replayed"], aside.balanced), (0, 9, true));
    audit_is_ok(&gateway).await;
}

/// A replay that does not end while a test goes on.
async fn slow(gateway: &Gateway, from: &str) -> String {
    let slow = ["replay", from, "--into", "other", "--rate", "0.01/s", "--json"];
    let (code, said, complained) = tool(gateway, &slow).await;
    assert_eq!(code, 0, "{said}{complained}");
    let begun: ReplayStatus = serde_json::from_str(&said).unwrap();
    begun.id
}

/// What it reads now.
async fn reads(gateway: &Gateway, id: &str) -> (ReplayState, String, String) {
    let (_, said, _) = tool(gateway, &["replay", "list", "--json"]).await;
    let all: Vec<ReplayStatus> = serde_json::from_str(&said).unwrap();
    let found = all.into_iter().find(|replay| replay.id == id).expect("it is listed");
    (found.state, found.request.link, found.request.into.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn r34_a_replay_goes_on_where_what_it_reads_gets_another_name() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let file = |name: &str, port: u16, more: &str| read_file(name, port, mosquitto.port, more);
    let mut gateway = Gateway::start(&file("old", mosquitto.port, "")).await;
    publish(&gateway, 1, 20).await;
    gateway.wait_until_drained("old").await;
    // Each time that it goes on one message may go at once.
    let first = slow(&gateway, "old").await;
    assert!(gateway.terminate().await.success());

    // At a start.
    let running = |link: &str| (ReplayState::Running, link.to_owned(), "other".to_owned());
    gateway.configure(&file("new", mosquitto.port, ", renamed_from: old"));
    gateway.start_again().await;
    assert_eq!(reads(&gateway, &first).await, running("new"));

    // Its buffer makes room for another one: at a reload, and at a start.
    reload_to(&gateway, &file("back", free_port(), "")).await;
    publish(&gateway, 2, 10).await;
    let second = slow(&gateway, "back").await;
    reload_to(&gateway, &file("new", mosquitto.port, ", renamed_from: back")).await;
    gateway.wait_until_drained("new").await;
    assert_eq!(reads(&gateway, &first).await, running("new_1"));
    assert_eq!(reads(&gateway, &second).await, running("new"));
    assert!(gateway.terminate().await.success());
    gateway.configure(&file("back", free_port(), ""));
    gateway.start_again().await;
    publish(&gateway, 3, 1).await;
    assert!(gateway.terminate().await.success());
    gateway.configure(&file("new", mosquitto.port, ", renamed_from: back"));
    gateway.start_again().await;
    assert_eq!(reads(&gateway, &first).await, running("new_1"));
    assert_eq!(reads(&gateway, &second).await, running("new_2"));
    audit_is_ok(&gateway).await;
}

/// Also where the buffer of the name that it had before is there still, and what waits is no more than what may be in flight.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_link_that_gets_its_first_name_back_takes_what_waits_along() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let gateway = Gateway::start(&routes("cloud", mosquitto.port, "")).await;
    let mut all = publish(&gateway, 1, 3).await;
    gateway.wait_until_drained("cloud").await;
    reload_to(&gateway, &routes("hq", mosquitto.port, ", rate: { messages: 30/m }")).await;
    gateway.wait_for_state("hq", LinkState::Online).await;
    all.extend(publish(&gateway, 2, 20).await);
    let (said, complained) = reload_to(&gateway, &routes("cloud", mosquitto.port, ", renamed_from: hq")).await;
    assert!(said.contains("> link hq is link cloud now: ") && said.contains("its buffer comes along: "), "{said}");
    assert!(said.contains(" wait in it, its own is kept as cloud_1: nothing waits in it\n"), "{said}");
    assert_eq!(complained, "");
    let drained = gateway.wait_until_drained("cloud").await;
    assert_eq!(drained.ledger["accepted"], 20);
    let status = gateway.status().await;
    assert_eq!(link(&status, "cloud_1").ledger["delivered"], 3);
    assert!(status.links.iter().all(|link| link.name != "hq"), "{status:?}");
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_exact("by three names");
}

/// Where both owe something a reload that asks for it is refused, also where the remote of the old name confirms just now; a start with that
/// key is not, and no later reload either; and it is done as soon as it can be.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_conflict_stops_no_start_and_passes_when_the_links_own_is_delivered() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let nowhere = free_port();
    let mut gateway = Gateway::start(&routes("cloud", nowhere, "")).await;
    let mut all = publish(&gateway, 1, 3).await;
    reload_to(&gateway, &routes("hq", mosquitto.port, ", rate: { messages: 1/m }")).await;
    gateway.wait_for_state("hq", LinkState::Online).await;
    all.extend(publish(&gateway, 2, 20).await);
    // It confirms one a minute: that is waited for, but not for long, and who publishes meanwhile is acknowledged then.
    let work = Work {
        port: gateway.port,
        publishers: 1,
        messages: 200,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    };
    let publishers = Publishers::start(work);
    publishers.allow(100);
    publishers.reach(1).await;
    let renamed = |port: u16| routes("cloud", port, ", renamed_from: hq");
    gateway.configure(&renamed(nowhere));
    let (code, _, complained) = tool(&gateway, &["reload"]).await;
    assert_eq!(code, 65, "{complained}");
    assert!(complained.contains("both hold what is not delivered: take `renamed_from` away"), "{complained}");
    all.extend(publishers.finish().await);

    gateway.kill_9();
    gateway.start_again().await;
    let status = gateway.status().await;
    let (old, own) = (link(&status, "hq"), link(&status, "cloud"));
    assert!(old.kind == "orphaned" && old.depth > 0 && own.depth == 3, "{old:?} {own:?}");
    assert!(gateway.log().contains("both hold what is not delivered"), "{}", gateway.log());

    // It tells so, and is not refused.
    let (said, complained) = reload_to(&gateway, &renamed(mosquitto.port)).await;
    assert!(said.contains("~ link cloud: mqtt.url"), "{said}");
    assert!(complained.contains("the buffer of `hq` stays where it is, orphaned: "), "{complained}");
    gateway.wait_until_drained("cloud").await;
    let (said, complained) = reload_to(&gateway, &renamed(mosquitto.port)).await;
    assert!(said.contains("~ link cloud: takes over the buffer of hq: "), "{said}{complained}");
    gateway.wait_until_drained("cloud").await;
    audit_is_ok(&gateway).await;
    // What the kill found confirmed and not saved.
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_kept("by both names", 2);
}

/// A buffer has the lanes that its records are in, and gets those that its new link's routes need.
#[tokio::test(flavor = "multi_thread")]
async fn r34_r14_a_buffer_is_taken_over_by_a_link_of_other_lanes() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "far/#", QoS::AtLeastOnce).await;
    let by = |name: &str, port: u16, priorities: [&str; 2], more: &str| {
        let route = |(n, priority): (usize, &&str)| {
            format!("  - {{ name: r{n}, from: broker/line/{n}, to: \"{name}/far/line/{n}\", priority: {priority} }}\n")
        };
        let link = routes(name, port, more);
        let link = link.split("routes:").next().unwrap();
        format!("{link}routes:\n{}", priorities.iter().enumerate().map(route).collect::<String>())
    };
    let gateway = Gateway::start(&by("old", free_port(), ["high", "normal"], "")).await;
    let mut all = Vec::new();
    // Each a publisher of its own: what a link left behind comes late.
    let mut publish = async |time: usize| {
        for line in [0, 1] {
            let mark = Mark { publisher: 2 * time + line, number: 0 };
            publish_once(gateway.port, "machine", &format!("line/{line}"), mark.payload(64)).await.unwrap();
            all.push(mark);
        }
    };
    publish(0).await;
    let (said, _) = reload_to(&gateway, &by("new", mosquitto.port, ["low", "low"], ", renamed_from: old")).await;
    assert!(said.contains("its buffer comes along: 2 records wait in it\n"), "{said}");
    publish(1).await;
    let drained = gateway.wait_until_drained("new").await;
    assert_eq!((drained.ledger["accepted"], drained.ledger["delivered"]), (4, 4));
    let lanes = |name: &str| ["high", "low"].map(|lane| gateway.data().join("links").join(name).join(lane).is_dir());
    assert_eq!(lanes("new"), [true, true]);

    // Onto one that has a buffer of its own, with fewer lanes, of which all is delivered.
    reload_to(&gateway, &by("away", free_port(), ["high", "low"], "")).await;
    publish(2).await;
    reload_to(&gateway, &by("last", mosquitto.port, ["normal", "normal"], "")).await;
    publish(3).await;
    gateway.wait_until_drained("last").await;
    let (said, _) = reload_to(&gateway, &by("last", mosquitto.port, ["normal", "high"], ", renamed_from: away")).await;
    assert!(said.contains("takes over the buffer of away: 2 records wait in it"), "{said}");
    publish(4).await;
    assert_eq!(gateway.wait_until_drained("last").await.ledger["delivered"], 4);
    assert_eq!((lanes("last"), lanes("last_1")), ([true, true], [false, false]));
    audit_is_ok(&gateway).await;
    Ledger::compare(all.clone(), &far.receive(&all).await).assert_exact("by all lanes");
}

/// A link of which nothing waits keeps its buffer under its old name; who reads that goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_replay_stays_with_its_buffer_where_a_link_gets_another_name_without_it() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let gateway = Gateway::start(&read_file("cloud", mosquitto.port, mosquitto.port, "")).await;
    publish(&gateway, 1, 2).await;
    gateway.wait_until_drained("cloud").await;
    reload_to(&gateway, &read_file("hq", mosquitto.port, mosquitto.port, "")).await;
    publish(&gateway, 2, 20).await;
    gateway.wait_until_drained("hq").await;
    let replay = slow(&gateway, "hq").await;
    let (said, complained) =
        reload_to(&gateway, &read_file("cloud", mosquitto.port, mosquitto.port, ", renamed_from: hq")).await;
    assert!(said.contains("- link hq: its buffer is kept: nothing waits in it\n"), "{said}");
    assert!(!said.contains("is link cloud now"), "{said}");
    assert!(complained.contains("nothing waits in the buffer of `hq`, and `cloud` has one of its own"), "{complained}");
    assert_eq!(reads(&gateway, &replay).await, (ReplayState::Running, "hq".to_owned(), "other".to_owned()));
    audit_is_ok(&gateway).await;
}

/// A link that is replayed, and `other`, which replays go to.
fn read_file(name: &str, port: u16, other: u16, more: &str) -> String {
    let url = format!("mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}");
    let link = format!("  {name}: {{ {url}, buffer: {{ keep_delivered: 1h }}{more} }}\n");
    two(&link, other, "") + &format!("  - {{ name: up, from: broker/line/#, to: \"{name}/far/{{rest}}\" }}\n")
}

/// A start that moves folders and then cannot be brought to its end, and a kill right after a reload that moved some.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_replay_finds_its_buffer_after_a_start_that_failed_and_after_a_kill() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let file = |name: &str, port: u16, more: &str| read_file(name, port, mosquitto.port, more);
    let mut gateway = Gateway::start(&file("new", mosquitto.port, "")).await;
    publish(&gateway, 1, 20).await;
    gateway.wait_until_drained("new").await;
    let replay = slow(&gateway, "new").await;
    reload_to(&gateway, &file("old", free_port(), "")).await;
    publish(&gateway, 2, 20).await;
    assert!(gateway.terminate().await.success());

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let renamed = file("new", mosquitto.port, ", renamed_from: old");
    gateway.configure(&format!("admin: {{ bind: \"{}\" }}\n{renamed}", taken.local_addr().unwrap()));
    let (code, _, complained) = tool(&gateway, &["run"]).await;
    assert_eq!(code, 69, "{complained}");
    assert!(gateway.data().join("links/new_1").exists(), "it has moved");
    gateway.configure(&renamed);
    gateway.start_again().await;
    let running = |link: &str| (ReplayState::Running, link.to_owned(), "other".to_owned());
    assert_eq!(reads(&gateway, &replay).await, running("new_1"));
    gateway.wait_until_drained("new").await;

    // The next: of this buffer.
    let second = slow(&gateway, "new").await;
    reload_to(&gateway, &file("old", free_port(), "")).await;
    publish(&gateway, 3, 2).await;
    reload_to(&gateway, &renamed).await;
    gateway.kill_9();
    gateway.start_again().await;
    assert_eq!(reads(&gateway, &replay).await, running("new_1"));
    assert_eq!(reads(&gateway, &second).await, running("new_2"));

    // What is gone, with another in its place.
    assert!(gateway.terminate().await.success());
    fs::remove_dir_all(gateway.data().join("links/new_1")).unwrap();
    fs::create_dir_all(gateway.data().join("links/new_1")).unwrap();
    gateway.start_again().await;
    assert_eq!(ended(&gateway, &replay).await.state, ReplayState::Failed);
    audit_is_ok(&gateway).await;
}

/// It is in nobody's way, is not moved, and is shown all the time.
#[tokio::test(flavor = "multi_thread")]
async fn r34_a_buffer_that_cannot_be_opened_stops_no_start_and_is_never_out_of_sight() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let mut gateway = Gateway::start(&routes("old", mosquitto.port, "")).await;
    publish(&gateway, 1, 3).await;
    gateway.wait_until_drained("old").await;
    assert!(gateway.terminate().await.success());
    let (meta, away) = (gateway.data().join("links/old/meta"), gateway.data().join("links/old/meta.x"));
    let spoil = || {
        fs::rename(&meta, &away).unwrap();
        fs::create_dir(&meta).unwrap();
    };
    let mend = || {
        fs::remove_dir(&meta).unwrap();
        fs::rename(&away, &meta).unwrap();
    };
    spoil();
    let (plain, renamed) = (routes("new", mosquitto.port, ""), routes("new", mosquitto.port, ", renamed_from: old"));
    // With room, and without.
    for messages in [1, 2] {
        gateway.configure(&renamed);
        gateway.start_again().await;
        assert!(gateway.log().contains("the buffer of `old` cannot be opened"), "{}", gateway.log());
        publish(&gateway, 2, 1).await;
        assert_eq!(gateway.wait_until_drained("new").await.ledger["delivered"], messages);
        assert_eq!(link(&gateway.status().await, "old").state, LinkState::BufferFailed);
        assert!(gateway.terminate().await.success());
    }
    gateway.configure(&plain);
    gateway.start_again().await;
    gateway.configure(&renamed);
    let (code, _, complained) = tool(&gateway, &["reload"]).await;
    assert!(code == 74 && complained.contains("the buffer of `old` cannot be opened"), "{code} {complained}");
    // Made good, while it is shown as what cannot be opened.
    mend();
    let (said, complained) = reload_to(&gateway, &renamed).await;
    assert_eq!(said, "reloaded: nothing has changed\n");
    assert!(complained.contains("nothing waits in the buffer of `old`"), "{complained}");
    let status = gateway.status().await;
    assert_eq!((link(&status, "old").ledger["delivered"], link(&status, "new").ledger["delivered"]), (3, 2));
    audit_is_ok(&gateway).await;
}
