//! `routes.yaml` changes again and again under load while its routes sample, throttle, hold back copies and pack: what is acknowledged is
//! delivered or counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rumqttc_v5::QoS;
use tidegate::telemetry::board::Status;

use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::dice::dice;
use crate::support::gateway::{Gateway, link, run};
use crate::support::ledger::{Delivery, Mark};
use crate::support::remote::{Mosquitto, left_out};
use crate::support::wait::{PATIENCE, until};

const ROUNDS: usize = 20;
const EACH: usize = 160;
const PUBLISHERS: usize = 8;

/// What a round of the loop has.
struct Scene {
    port: u16,
    main: usize,
    /// Its name in the round before.
    was: Option<usize>,
    sample: &'static str,
    count: usize,
    extra: Option<usize>,
    next: usize,
}

impl Scene {
    /// Something else than in the round before.
    fn change(&mut self, random: &mut StdRng) {
        self.was = None;
        let fresh = self.next;
        match random.random_range(0..5) {
            0 => (self.was, self.main) = (Some(self.main), fresh),
            1 => self.sample = if self.sample == "20ms" { "1h" } else { "20ms" },
            2 => self.count = if self.count == 7 { 20 } else { 7 },
            3 => self.extra = if self.extra.is_some() { None } else { Some(fresh) },
            // The same link and route by other names.
            _ => self.extra = self.extra.map(|_| fresh),
        }
        self.next += 1;
    }

    fn text(&self) -> String {
        let Self { main, sample, count, port, .. } = self;
        let far = |number: usize, more: &str| {
            format!(
                "  l{number}: {{ mqtt: {{ url: \"mqtt://127.0.0.1:{port}\" }}, retry: {{ min: 10ms, max: 100ms }}{more} }}\n"
            )
        };
        let mut text = "links:\n".to_owned();
        text.push_str(&far(*main, &self.was.map_or_else(String::new, |was| format!(", renamed_from: l{was}"))));
        text.extend(self.extra.map(|extra| far(extra, "")));
        write!(
            text,
            r#"routes:
  - {{ name: sampled, from: [ broker/line/0, broker/line/1 ], sample: {sample}, to: "l{main}/sampled/{{topic}}" }}
  - {{ name: first, from: [ broker/line/2, broker/line/3 ], throttle: 1h, to: "l{main}/first/{{topic}}" }}
  - {{ name: new, from: [ broker/line/4, broker/line/5 ], dedup: payload, to: "l{main}/new/{{topic}}" }}
  - {{ name: packed, from: [ broker/line/6, broker/line/7 ], batch: {{ format: json, count: {count}, linger: 50ms }}, to: l{main}/packed }}
"#
        )
        .unwrap();
        if let Some(extra) = self.extra {
            writeln!(text, "  - {{ from: broker/line/0, sample: 20ms, to: \"l{extra}/extra/{{topic}}\" }}").unwrap();
        }
        text
    }
}

fn suppressed(status: &Status, name: &str) -> u64 {
    status.routes.iter().find(|route| route.name == name).map_or(0, |route| route.suppressed)
}

/// The marks that arrived on each topic, as they came.
fn by_topic(arrived: &[Delivery]) -> BTreeMap<&str, Vec<Mark>> {
    let mut by_topic: BTreeMap<&str, Vec<Mark>> = BTreeMap::new();
    for delivery in arrived {
        let marks = by_topic.entry(&delivery.topic).or_default();
        if delivery.topic == "packed" {
            let parts: Vec<String> = serde_json::from_slice(&delivery.payload).unwrap();
            marks.extend(parts.iter().map(|part| Mark::read(part.as_bytes()).unwrap()));
        } else {
            marks.push(delivery.mark());
        }
    }
    by_topic
}

/// Whether what the routes owe the remote has arrived there.
fn owed(arrived: &[Delivery], acknowledged: &[Mark]) -> Result<(), String> {
    let last =
        |publisher: usize| acknowledged.iter().filter(|mark| mark.publisher == publisher).max().copied().unwrap();
    let of = |publishers: [usize; 2]| -> BTreeSet<Mark> {
        acknowledged.iter().filter(|mark| publishers.contains(&mark.publisher)).copied().collect()
    };
    let arrived = by_topic(arrived);
    let on = |topic: &str| arrived.get(topic).cloned().unwrap_or_default();
    for publisher in [0, 1] {
        let topic = format!("sampled/line/{publisher}");
        let expected = last(publisher);
        if on(&topic).last() != Some(&expected) {
            return Err(format!("{topic}: {:?} is the last, not {expected}", on(&topic).last()));
        }
    }
    for publisher in [2, 3] {
        let topic = format!("first/line/{publisher}");
        if on(&topic).first() != Some(&Mark { publisher, number: 0 }) {
            return Err(format!("{topic}: {:?}", on(&topic)));
        }
    }
    let new: BTreeSet<_> = [on("new/line/4"), on("new/line/5")].concat().into_iter().collect();
    let packed: BTreeSet<_> = on("packed").into_iter().collect();
    for (what, there, expected) in [("new", new, of([4, 5])), ("packed", packed, of([6, 7]))] {
        if there != expected {
            return Err(format!("{what}: {} of {}", there.len(), expected.len()));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_of_routes_with_gates_lose_nothing_and_account_for_all() {
    if left_out(&["mosquitto"]) {
        return;
    }
    let mut random = dice("TIDEGATE_RELOAD_SEED");
    let mosquitto = Mosquitto::start().await;
    let far = Subscriber::start(mosquitto.port, "far", "#", QoS::AtLeastOnce).await;
    let mut scene =
        Scene { port: mosquitto.port, main: 0, was: None, sample: "20ms", count: 7, extra: Some(1), next: 2 };
    let gateway = Gateway::start(&scene.text()).await;
    let local = Subscriber::start(gateway.port, "local", "line/#", QoS::AtLeastOnce).await;
    let publishers = Publishers::start(Work {
        port: gateway.port,
        publishers: PUBLISHERS,
        messages: (ROUNDS + 1) * EACH,
        qos: QoS::AtLeastOnce,
        window: 20,
        topic: "line".into(),
    });
    for round in 1..=ROUNDS {
        publishers.allow(round * EACH);
        scene.change(&mut random);
        gateway.reload_to(&scene.text()).await;
    }
    let acknowledged = publishers.finish().await;
    // What waits for an hour goes soon by the last file.
    (scene.sample, scene.was) = ("20ms", None);
    gateway.reload_to(&scene.text()).await;

    // Each is in the link's log, or was held back.
    let main = format!("l{}", scene.main);
    let published = acknowledged.len() as u64;
    until("all is accounted for", PATIENCE, async || {
        let status = gateway.status().await;
        let held: Vec<_> = ["sampled", "first", "new", "packed"].map(|name| suppressed(&status, name)).into();
        let accepted = link(&status, &main).ledger["accepted"];
        let all = accepted + held.iter().sum::<u64>();
        if all == published { Ok(()) } else { Err(format!("{accepted} + {held:?} of {published}")) }
    })
    .await;
    gateway.wait_until_drained(&main).await;
    until("all that is owed arrives", PATIENCE, async || owed(&far.arrived(), &acknowledged)).await;
    // The gates have kept what they know through all of it, and the samples have held back.
    let arrived = far.arrived();
    let firsts: BTreeSet<_> =
        arrived.iter().filter(|one| one.topic.starts_with("first/")).map(Delivery::mark).collect();
    assert!(firsts.len() <= 4, "the first of each topic; two at the same moment may both be: {firsts:?}");
    let status = gateway.status().await;
    assert!(suppressed(&status, "sampled") > 0);
    assert_eq!((status.reload.taken, status.reload.refused), (ROUNDS as u64 + 1, 0));
    assert!(status.links.iter().all(|link| link.balanced), "{status:?}");
    assert_eq!(local.sessions(), 1, "nobody was disconnected");
    assert_eq!(local.receive(&acknowledged).await.len(), acknowledged.len(), "once each, so no publisher came again");
    let audit = run(&["audit", "-c", gateway.config().to_str().unwrap()]).await;
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
}
