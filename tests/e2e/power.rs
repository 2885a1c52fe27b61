//! The power cut under load, on a real file system: what was acknowledged is on the disk, not only with the kernel.

use std::fs::{self, File};
use std::io::Write;

use rumqttc_v5::QoS;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::disk::PoweredDisk;
use crate::support::gateway::Gateway;
use crate::support::ledger::Ledger;
use crate::support::process::did_not_run;
use crate::support::remote::{Mosquitto, left_out};

/// What a publisher has unacknowledged at most.
const PUBLISHER_WINDOW: usize = 20;
const PUBLISHERS: usize = 4;
/// Acknowledgements between two cuts, at least.
const STRIDE: usize = 300;

fn routes(port: u16) -> String {
    // Small segments, and a window so small that a backlog is there at each cut: both files and what they are named are at stake.
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}" }}
    buffer: {{ max_size: 8MiB, min_free: 1MiB, when_full: block }}
    in_flight: 5
    retry: {{ min: 10ms, max: 200ms }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    )
}

/// Cuts it, and shows that it was one: of two files, only what was synced is there afterwards.
async fn cut(disk: &PoweredDisk, gateway: &mut Gateway, round: usize) {
    let (synced, loose) = (disk.path().join(format!("synced{round}")), disk.path().join(format!("loose{round}")));
    let mut file = File::create(&synced).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    drop(file);
    File::open(disk.path()).unwrap().sync_all().unwrap();
    fs::write(&loose, b"not synced").unwrap();
    disk.cut();
    gateway.kill_9();
    disk.power_on().await;
    assert_eq!(fs::read(&synced).unwrap(), b"synced");
    assert!(fs::read(&loose).map_or(true, |found| found != b"not synced"), "this was no power cut");
}

/// `TIDEGATE_KILLS` raises their number.
#[tokio::test(flavor = "multi_thread")]
async fn r01_power_cuts_under_load_lose_nothing_that_was_acknowledged() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let Some(disk) = PoweredDisk::mount(128) else {
        return did_not_run("this user may not mount a disk whose power can be cut (ext4 on a loop device)");
    };
    let cuts = std::env::var("TIDEGATE_KILLS").map_or(12, |text| text.parse().expect("TIDEGATE_KILLS is a number"));
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let mut gateway = Gateway::start_at(&disk.path().join("data"), &routes(mosquitto.port)).await;
    let messages = (cuts + 1) * 2 * STRIDE;
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: PUBLISHERS,
        messages,
        qos: QoS::AtLeastOnce,
        window: PUBLISHER_WINDOW,
        topic: "line".into(),
    });
    for round in 0..cuts {
        let next = (publishers.acknowledged() + STRIDE).min(messages);
        publishers.allow((next + STRIDE).min(messages));
        publishers.reach(next).await;
        cut(&disk, &mut gateway, round).await;
        gateway.start_again().await;
    }
    let acknowledged = publishers.finish().await;
    gateway.wait_until_drained("far").await;
    let ledger = Ledger::compare(acknowledged.clone(), &far.receive(&acknowledged).await);
    eprintln!(
        "{cuts} cuts, {messages} messages: {} duplicates, {} published again",
        ledger.duplicates, ledger.published_again
    );
    // A cut forgets a second of confirmations (R9), and with them at most what came between two cuts.
    ledger.assert_kept("after the cuts", messages);
    assert!(ledger.published_again <= cuts * PUBLISHERS * PUBLISHER_WINDOW, "{}", ledger.published_again);
    assert!(!gateway.log().contains("damaged"), "a cut damages nothing: {}", gateway.log());
    assert!(gateway.terminate().await.success());
}
