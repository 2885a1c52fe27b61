//! The gateway killed time and again under load, and a disk that fills up under each `when_full`: nothing acknowledged is lost
//! but what a limit dropped and counted.

use std::fs;

use rumqttc_v5::QoS;
use tidegate::telemetry::board::LinkStatus;

use crate::support::client::{Publishers, Subscriber, Work, publish_once};
use crate::support::disk::SmallDisk;
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::process::did_not_run;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

/// Records in flight on the link: so few that R9's two windows are a bound that could be missed.
const WINDOW: usize = 20;

/// What a publisher has unacknowledged at most.
const PUBLISHER_WINDOW: usize = 20;

const PUBLISHERS: usize = 4;

/// Acknowledgements between two kills, at least.
const STRIDE: usize = 100;

fn work(port: u16, messages: usize) -> Work {
    let window = PUBLISHER_WINDOW;
    Work { port, publishers: PUBLISHERS, messages, qos: QoS::AtLeastOnce, window, topic: "line".into() }
}

fn routes(port: u16, buffer: &str) -> String {
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}" }}
    buffer: {{ {buffer} }}
    in_flight: {WINDOW}
    retry: {{ min: 10ms, max: 200ms }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    )
}

/// `TIDEGATE_KILLS` raises their number.
#[tokio::test(flavor = "multi_thread")]
async fn r09_kills_in_a_loop_under_load_lose_nothing_and_repeat_little() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let kills = std::env::var("TIDEGATE_KILLS").map_or(50, |text| text.parse().expect("TIDEGATE_KILLS is a number"));
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    // Small segments: kills hit their beginnings, ends and deletions too.
    let mut gateway = Gateway::start(&routes(mosquitto.port, "max_size: 1MiB, when_full: block")).await;
    let messages = (kills + 2) * 4 * STRIDE;
    let publishers = Publishers::start(work(gateway.port, messages));
    let mut killed = 0;
    while killed < kills {
        let next = (publishers.acknowledged() + STRIDE).min(messages);
        publishers.allow((next + STRIDE).min(messages));
        publishers.reach(next).await;
        gateway.kill_9();
        killed += 1;
        if killed % 5 == 0 && killed < kills {
            // In the middle of a start, recovery included.
            gateway.kill_9_while_starting().await;
            killed += 1;
        }
        gateway.start_again().await;
    }
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    let arrived = far.receive(&acknowledged).await;
    let ledger = Ledger::compare(acknowledged, &arrived);
    eprintln!(
        "{kills} kills, {messages} messages: {} duplicates, {} published again",
        ledger.duplicates, ledger.published_again
    );
    ledger.assert_kept("after the kills", kills * 2 * WINDOW);
    assert!(ledger.published_again <= kills * PUBLISHERS * PUBLISHER_WINDOW, "{}", ledger.published_again);
    assert!(!gateway.log().contains("damaged"), "a kill damages nothing: {}", gateway.log());
    assert!(gateway.terminate().await.success());
}

/// A full disk from the first record that does not fit until there is room again. Answers what was not delivered of what was
/// acknowledged, and the link at its end. `held_up`: publishers wait meanwhile.
async fn full_disk(when_full: &str, held_up: bool) -> Option<(usize, LinkStatus)> {
    let Some(disk) = SmallDisk::mount("64m") else {
        did_not_run("this user may not mount a small disk");
        return None;
    };
    let mosquitto = Mosquitto::start().await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let buffer = format!("max_size: 24MiB, min_free: 8MiB, when_full: {when_full}");
    let mut gateway = Gateway::start_at(&disk.path().join("data"), &routes(proxy.port(), &buffer)).await;
    let publishers = Publishers::start(work(gateway.port, 2_000));
    publishers.allow(1_000);
    publishers.reach(1_000).await;
    let ballast = disk.fill();
    publishers.allow(2_000);
    let seen = ["the disk is short", "the disk is full: new records wait", "offers are refused or dropped"];
    until_true("the disk is seen to be full", PATIENCE, || seen.iter().any(|said| gateway.log().contains(said))).await;
    // Who has nothing to do with the link is served, and the gateway lives.
    publish_once(gateway.port, "free", "elsewhere", b"x".to_vec()).await.expect("served");
    if held_up {
        assert!(publishers.acknowledged() < 2_000, "{when_full}: acknowledged without room");
    } else {
        // What had been let in when the disk turned out to be full is dropped like what comes then: nobody waits.
        publishers.reach(2_000).await;
    }
    let status = gateway.status().await;
    assert!(status.ready, "{status:?}");
    fs::remove_file(ballast).unwrap();
    publishers.reach(2_000).await;
    proxy.set(Mode::Pass).await;
    let acknowledged = publishers.finish().await;
    let link = gateway.wait_until_drained("far").await;
    let delivered = usize::try_from(link.ledger["delivered"]).unwrap();
    until_true("what was delivered arrives", PATIENCE, || far.count() >= delivered).await;
    let ledger = Ledger::compare(acknowledged, &far.arrived());
    assert_eq!(ledger.duplicates, 0, "{when_full}");
    assert!(gateway.terminate().await.success());
    Some((ledger.lost.len(), link))
}

fn dropped(link: &LinkStatus) -> usize {
    let counts = link.ledger.iter().filter(|(name, _)| name.starts_with("dropped_"));
    usize::try_from(counts.map(|(_, count)| count).sum::<u64>()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_full_disk_with_drop_oldest_loses_only_what_is_counted() {
    if left_out(&["mosquitto"]) {
        return;
    }
    // Once there is nothing left to drop, publishers are refused: so some wait.
    let Some((lost, link)) = full_disk("drop_oldest", true).await else { return };
    assert!(lost > 0 && lost <= dropped(&link), "{lost} lost, {:?}", link.ledger);
    assert_eq!(link.ledger["dropped_min_free"], dropped(&link) as u64, "{:?}", link.ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_full_disk_with_drop_newest_loses_only_what_is_counted() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some((lost, link)) = full_disk("drop_newest", false).await else { return };
    assert!(lost > 0, "{:?}", link.ledger);
    assert_eq!(lost, dropped(&link), "{:?}", link.ledger);
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_full_disk_with_block_holds_publishers_up_and_loses_nothing() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some((lost, link)) = full_disk("block", true).await else { return };
    assert_eq!((lost, dropped(&link)), (0, 0), "{:?}", link.ledger);
}
