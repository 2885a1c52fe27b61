//! The contract of a link's inbound half, held against every kind at its real server, while the line breaks, the server ends and the
//! gateway is killed at random moments:
//!
//! - nothing that the remote had acknowledged to its publishers is missing at the gateway's side: so the gateway never acknowledged to the
//!   remote what was not yet safe (its kept session's store, and the log of a link that is away);
//! - a topic's last copies are in order (R10), and what comes twice is at most the windows that were open (R9);
//! - what the link says of itself is so (R22).

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use super::far::{Far, Kind, Version};
use super::watcher::{Rule, Watcher};
use super::{Fault, KILL, RESTART, seeds};
use crate::support::client::{Publishers, Subscriber, Work};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::process::free_port;
use crate::support::proxy::{Mode, Way};
use crate::support::remote::left_out;
use crate::support::wait::{PATIENCE, until_true};

const PUBLISHERS: usize = 4;

/// What publishers publish around one fault.
const LOAD: usize = 400;

/// Kills of the gateway.
const KILLS: usize = 4;

/// What a source and the edge's subscriber may have open, so much may come again each time: Kafka's source has the most.
const WINDOWS: usize = 4_096 + 256;

const LINE: [Fault; 5] = [
    Fault::Refuse,
    Fault::Reset,
    Fault::ResetWithin(Way::ToServer),
    Fault::ResetWithin(Way::ToClient),
    Fault::HalfOpen,
];

/// What takes as long to be seen as two heartbeats, or keep-alives.
const SILENT: [Fault; 2] = [Fault::BlackHole, Fault::Mute];

#[tokio::test(flavor = "multi_thread")]
async fn r24_an_mqtt_5_source_keeps_the_contract() {
    if !left_out(&["mosquitto"]) {
        keeps_the_contract(Kind::Mqtt(Version::V5), &[&LINE[..], &SILENT, &[RESTART]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_an_mqtt_3_1_1_source_keeps_the_contract() {
    if !left_out(&["mosquitto"]) {
        keeps_the_contract(Kind::Mqtt(Version::V311), &[&LINE[..], &SILENT, &[RESTART]].concat()).await;
    }
}

/// With QoS 2, so that exchanges are kept.
#[tokio::test(flavor = "multi_thread")]
async fn r24_a_hivemq_source_keeps_the_contract() {
    if !left_out(&["hivemq"]) {
        keeps_the_contract(Kind::Hivemq(Version::V5), &[&LINE[..], &[RESTART]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_rabbitmq_source_keeps_the_contract() {
    if !left_out(&["rabbitmq"]) {
        keeps_the_contract(Kind::Rabbitmq, &[&LINE[..], &SILENT, &[RESTART, KILL]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_kafka_source_keeps_the_contract() {
    if !left_out(&["kafka"]) {
        keeps_the_contract(Kind::Kafka, &[&LINE[..4], &[RESTART, KILL]].concat()).await;
    }
}

async fn keeps_the_contract(kind: Kind, faults: &[Fault]) {
    let seeds = seeds();
    let loads = faults.len() + seeds.len() * KILLS;
    let mut run = Run::start(kind, loads * LOAD).await;
    for fault in faults {
        run.under(*fault).await;
    }
    for seed in seeds {
        run.killed_at_random(seed).await;
    }
    run.finish().await;
}

/// Who publishes at the remote.
enum Feed {
    /// At an MQTT broker, as it is told.
    Publishers(Publishers),
    /// Where messages are given to the server as they are.
    Marks(Vec<Mark>),
}

struct Run {
    far: Far,
    gateway: Gateway,
    machine: Subscriber,
    feed: Feed,
    watcher: Watcher,
    /// What the remote has acknowledged.
    published: usize,
    /// How often what was open may have come again.
    broken: usize,
}

impl Run {
    async fn start(kind: Kind, messages: usize) -> Self {
        let far = Far::start(kind).await;
        far.prepare_source().await;
        let (link, from, to) = far.source();
        // A link that is away has its log all the same: what comes in is safe only once it is there, and in the session's store.
        let gateway = Gateway::start(&format!(
            r#"
links:
  far:
    {link}
    retry: {{ min: 50ms, max: 500ms }}
    connect_timeout: 20s
  away: {{ mqtt: {{ url: "mqtt://127.0.0.1:{}" }} }}
routes:
  - {{ name: far, from: "{from}", to: [ "{to}", away/all ] }}
"#,
            free_port()
        ))
        .await;
        let machine = Subscriber::start(gateway.port, "machine", "cmd/#", QoS::AtLeastOnce).await;
        gateway.wait_for_state("far", LinkState::Online).await;
        let feed = match far.mqtt_port() {
            Some(port) => {
                let (qos, topic) = (QoS::AtLeastOnce, "up".into());
                let work = Work { port, publishers: PUBLISHERS, messages, qos, window: 20, topic };
                Feed::Publishers(Publishers::start(work))
            }
            None => Feed::Marks(Vec::new()),
        };
        let watcher = Watcher::start(gateway.data(), "far", u64::MAX);
        Self { far, gateway, machine, feed, watcher, published: 0, broken: 0 }
    }

    /// Returns when the remote has acknowledged so many more.
    async fn load(&mut self, more: usize) {
        let before = self.published / PUBLISHERS;
        self.published += more;
        match &mut self.feed {
            Feed::Publishers(publishers) => {
                publishers.allow(self.published);
                publishers.reach(self.published).await;
            }
            Feed::Marks(marks) => {
                let numbers = before..self.published / PUBLISHERS;
                let more: Vec<_> = numbers
                    .flat_map(|number| (0..PUBLISHERS).map(move |publisher| Mark { publisher, number }))
                    .collect();
                self.far.publish(&more).await;
                marks.extend(more);
            }
        }
    }

    async fn under(&mut self, fault: Fault) {
        let kind = self.far.kind;
        eprintln!("{kind:?} as a source: {fault:?}");
        self.well().await;
        self.broken += 1;
        self.watcher.rule(Rule::Changing);
        self.load(LOAD / 2).await;
        let connects = self.connects().await;
        match fault {
            Fault::Refuse => self.away(Mode::Refuse).await,
            Fault::BlackHole => self.away(Mode::BlackHole).await,
            Fault::Mute => self.away(Mode::Mute).await,
            Fault::Server(ending) => {
                self.far.end(ending).await;
                self.seen_away().await;
                self.far.start_again().await;
                self.gateway.wait_for_state("far", LinkState::Online).await;
                self.load(LOAD / 2).await;
            }
            Fault::ResetWithin(Way::ToServer) => self.far.proxy.cut_after(Way::ToServer, 37),
            Fault::ResetWithin(Way::ToClient) => self.far.proxy.cut_after(Way::ToClient, 1_777),
            Fault::HalfOpen => self.far.proxy.half_open(),
            Fault::Reset | Fault::Slow | Fault::Far => self.far.proxy.cut(),
        }
        if matches!(fault, Fault::ResetWithin(_) | Fault::HalfOpen | Fault::Reset) {
            self.load(LOAD / 2).await;
            if kind != Kind::Kafka {
                let anew = |link: &LinkStatus| link.source.as_ref().is_some_and(|source| source.connects > connects);
                self.gateway.wait_for_link("far", "made anew", anew).await;
            }
        }
        self.well().await;
        self.watcher.assert_truthful(&format!("{kind:?} as a source, {fault:?}"));
    }

    async fn connects(&self) -> u64 {
        self.gateway.status().await.links[0].source.as_ref().map_or(0, |source| source.connects)
    }

    async fn away(&mut self, mode: Mode) {
        self.far.proxy.set(mode).await;
        self.load(LOAD / 2).await;
        self.seen_away().await;
        self.far.proxy.set(Mode::Pass).await;
    }

    /// It says that it is away, and goes on to say so.
    async fn seen_away(&self) {
        self.gateway.wait_for_link("far", "seen to be away", |link| link.state != LinkState::Online).await;
        self.watcher.rule(Rule::Away);
        let until = self.watcher.looks() + 20;
        until_true("twenty looks", PATIENCE, || self.watcher.looks() >= until).await;
        self.watcher.rule(Rule::Changing);
    }

    /// SIGKILL, while messages come in.
    async fn killed_at_random(&mut self, seed: u64) {
        let kind = self.far.kind;
        eprintln!("{kind:?} as a source: TIDEGATE_CONTRACT_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..KILLS {
            self.well().await;
            self.watcher.rule(Rule::Changing);
            self.broken += 1;
            let moment = self.machine.count() + random.random_range(0..LOAD / 2);
            let published = self.published;
            eprintln!("{kind:?} as a source: killed at {moment} of {published}");
            match &mut self.feed {
                Feed::Publishers(publishers) => publishers.allow(published + LOAD),
                Feed::Marks(_) => self.load(LOAD).await,
            }
            until_true(&format!("{moment} at the machine"), PATIENCE, || self.machine.count() >= moment).await;
            self.gateway.kill_9();
            self.gateway.start_again().await;
            if matches!(self.feed, Feed::Publishers(_)) {
                self.load(LOAD).await;
            }
        }
    }

    /// All that was published is here, acknowledged, and the link is online.
    async fn well(&self) {
        let done = |link: &LinkStatus| {
            link.state == LinkState::Online && link.source.as_ref().is_some_and(|source| source.in_flight == 0)
        };
        self.gateway.wait_for_link("far", "online, and all acknowledged", done).await;
        let (count, published) = (|| self.machine.count(), self.published);
        until_true(&format!("{published} at the machine"), PATIENCE, || count() >= published).await;
        self.watcher.rule(Rule::Online);
    }

    async fn finish(mut self) {
        let kind = self.far.kind;
        self.well().await;
        self.watcher.rule(Rule::Changing);
        let acknowledged = match self.feed {
            Feed::Publishers(publishers) => publishers.finish().await,
            Feed::Marks(marks) => marks,
        };
        assert_eq!(acknowledged.len(), self.published);
        let ledger = Ledger::compare(acknowledged.iter().copied(), &self.machine.receive(&acknowledged).await);
        let copies = ledger.duplicates + ledger.published_again;
        eprintln!("{kind:?} as a source: {copies} copies over {} breaks", self.broken);
        ledger.assert_kept(&format!("{kind:?} as a source"), self.broken * WINDOWS);
        let accepted = self.gateway.status().await.links[1].ledger["accepted"];
        assert!(accepted >= self.published as u64, "{accepted} in the log of {}", self.published);
        assert!(self.gateway.terminate().await.success());
        assert_eq!(self.far.left(self.published).await, 0, "all of it was acknowledged to the remote");
        self.watcher.assert_truthful(&format!("{kind:?} as a source, at the end"));
    }
}
