//! Segments that cannot be read, on a real disk: what is in them is counted, all else is delivered, and the gateway starts and runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rumqttc_v5::QoS;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::{Gateway, run};
use crate::support::ledger::Delivery;
use crate::support::proxy::{Mode, Proxy};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until_true};

/// Some segments of 128 KiB, the least there are with this `max_size`.
const MESSAGES: usize = 3_200;

fn routes(port: u16) -> String {
    format!(
        r#"
links:
  far:
    mqtt: {{ url: "mqtt://127.0.0.1:{port}" }}
    buffer: {{ max_size: 1MiB }}
    retry: {{ min: 50ms, max: 200ms }}
routes:
  - {{ name: far, from: "broker/line/#", to: "far/line/{{rest}}" }}
"#
    )
}

fn segments(gateway: &Gateway) -> Vec<PathBuf> {
    let entries = fs::read_dir(gateway.data().join("links/far")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    segments.sort();
    segments
}

/// The first number in a segment.
fn base(segment: &Path) -> u64 {
    segment.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_what_cannot_be_read_is_counted_and_all_else_is_delivered() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "line/#", QoS::AtLeastOnce).await;
    let mut proxy = Proxy::start(mosquitto.port).await;
    proxy.set(Mode::Refuse).await;
    let mut gateway = Gateway::start(&routes(proxy.port())).await;
    let (port, qos) = (gateway.port, QoS::AtLeastOnce);
    let work = Work { port, publishers: 2, messages: MESSAGES, qos, window: 50, topic: "line".into() };
    let acknowledged = Publishers::start(work).finish().await;
    assert!(gateway.terminate().await.success());
    let all = segments(&gateway);
    assert!(all.len() >= 6, "{all:?}");

    // Before a start: nothing of a segment can be read (its name leads to a folder), and one is empty.
    let whole = |at: usize| base(&all[at + 1]) - base(&all[at]);
    fs::remove_file(&all[1]).unwrap();
    fs::create_dir(&all[1]).unwrap();
    fs::write(&all[2], []).unwrap();
    gateway.start_again().await;
    // While it runs, before it comes to it: one loses its second half.
    let len = fs::metadata(&all[4]).unwrap().len();
    fs::File::options().write(true).open(&all[4]).unwrap().set_len(len / 2).unwrap();
    proxy.set(Mode::Pass).await;
    let end = gateway.wait_until_drained("far").await;
    let lost = end.ledger["dropped_damaged"];
    assert_eq!(end.ledger["accepted"], MESSAGES as u64);
    assert_eq!(end.ledger["delivered"] + lost, MESSAGES as u64, "{:?}", end.ledger);
    let (least, most) = (whole(1) + whole(2), whole(1) + whole(2) + whole(4));
    assert!(lost > least && lost < most, "{lost} lost; two segments hold {least}, and half of the third goes");
    assert!(gateway.log().contains("damage"), "said");
    // Each one that is missing is counted.
    let missing = || {
        let arrived: BTreeSet<_> = far.arrived().iter().map(Delivery::mark).collect();
        acknowledged.iter().filter(|mark| !arrived.contains(mark)).count() as u64
    };
    until_true("all but what was lost arrive", PATIENCE, || missing() == lost).await;

    let config = gateway.config();
    let audit = run(&["-c", config.to_str().unwrap(), "audit"]).await;
    let figures = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(figures.lines().any(|line| line == "far gap 0"), "{figures}");
}
