//! The contract of a link, written once and held against every kind at its real server, through a proxy that breaks the line in every
//! way that lines break, while publishers publish:
//!
//! - nothing that was acknowledged to a publisher is missing at the remote, and nothing became a dead letter;
//! - a topic's last copies are in order (R10);
//! - each connection that was lost repeats at most the window that was in flight on it (R9), and a line that is only slow or far loses
//!   none;
//! - what the link says of itself is so at every moment (R22, [`watcher`]);
//! - it comes back by itself, and is `online` when all is well again.
//!
//! `TIDEGATE_CONTRACT_SEEDS` raises the number of random mixes of each kind; `TIDEGATE_CONTRACT_SEED` runs that one alone.

mod far;
mod sources;
mod watcher;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rumqttc_v5::QoS;
use tidegate::telemetry::board::{LinkState, LinkStatus};

use self::far::{Far, Kind, Version};
use self::watcher::{Rule, Watcher};
use crate::support::client::{Publishers, Work, publish_once};
use crate::support::gateway::Gateway;
use crate::support::ledger::{Ledger, Mark};
use crate::support::proxy::{Mode, Way};
use crate::support::remote::{Ending, left_out};
use crate::support::wait::{PATIENCE, until_true};

/// Records in flight on the link.
const WINDOW: usize = 50;

const PUBLISHERS: usize = 4;

/// What publishers publish around one fault.
const LOAD: usize = 400;

/// Faults of one random mix, and what is published around each.
const MIX: usize = 8;
const MIX_LOAD: usize = 200;

/// There and back in two seconds, less than `stall_after`.
const FAR: Duration = Duration::from_secs(1);

/// Eight times what 1 KiB a second carries in a second: longer under way than `stall_after`.
const LARGE: usize = 8 * 1024;

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuse,
    Reset,
    /// Within a frame, one way.
    ResetWithin(Way),
    BlackHole,
    HalfOpen,
    Mute,
    Slow,
    Far,
    Server(Ending),
}

/// Those that every server can be behind.
const LINE: [Fault; 9] = [
    Fault::Refuse,
    Fault::Reset,
    Fault::ResetWithin(Way::ToServer),
    Fault::ResetWithin(Way::ToClient),
    Fault::BlackHole,
    Fault::HalfOpen,
    Fault::Mute,
    Fault::Far,
    Fault::Slow,
];

const RESTART: Fault = Fault::Server(Ending::Asked);
const KILL: Fault = Fault::Server(Ending::Killed);

#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_mqtt_5_keeps_the_contract() {
    if !left_out(&["mosquitto"]) {
        keeps_the_contract(Kind::Mqtt(Version::V5), &[&LINE[..], &[RESTART]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_mqtt_3_1_1_keeps_the_contract() {
    if !left_out(&["mosquitto"]) {
        keeps_the_contract(Kind::Mqtt(Version::V311), &[&LINE[..], &[RESTART]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_another_gateway_as_the_remote_may_be_killed() {
    for version in [Version::V5, Version::V311] {
        keeps_the_contract(Kind::Tidegate(version), &[Fault::Reset, RESTART, KILL]).await;
    }
}

/// Each start of HiveMQ takes ten seconds and more: what all brokers have in common is shown at Mosquitto.
#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_hivemq_keeps_the_contract() {
    if !left_out(&["hivemq"]) {
        let within = [Fault::ResetWithin(Way::ToServer), Fault::ResetWithin(Way::ToClient)];
        let faults = [&within[..], &[Fault::Mute, RESTART]].concat();
        tokio::join!(
            keeps_the_contract(Kind::Hivemq(Version::V5), &faults),
            keeps_the_contract(Kind::Hivemq(Version::V311), &within),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_rabbitmq_keeps_the_contract() {
    if !left_out(&["rabbitmq"]) {
        keeps_the_contract(Kind::Rabbitmq, &[&LINE[..], &[RESTART, KILL]].concat()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_r23_kafka_keeps_the_contract() {
    if !left_out(&["kafka"]) {
        keeps_the_contract(Kind::Kafka, &[&LINE[..], &[RESTART, KILL]].concat()).await;
    }
}

/// The seeds of the random mixes: one, unless more are asked for.
fn seeds() -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
    };
    match (number("TIDEGATE_CONTRACT_SEED"), number("TIDEGATE_CONTRACT_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (0..count.unwrap_or(1)).map(|_| rand::random_range(0..1_000_000)).collect(),
    }
}

async fn keeps_the_contract(kind: Kind, faults: &[Fault]) {
    let seeds = seeds();
    let mut run = Run::start(kind, faults.len() * LOAD + seeds.len() * MIX * MIX_LOAD).await;
    for fault in faults {
        run.under(*fault).await;
    }
    for seed in seeds {
        run.under_a_mix(seed).await;
    }
    run.finish().await;
}

/// A gateway with its publishers, and the remote.
struct Run {
    far: Far,
    gateway: Gateway,
    publishers: Publishers,
    watcher: Watcher,
    allowed: usize,
    /// Published besides.
    large: Vec<Mark>,
    ended: usize,
}

/// What the link's outbound half has counted.
#[derive(Clone, Copy, Debug)]
struct Counts {
    connects: u64,
    resent: u64,
}

impl Run {
    async fn start(kind: Kind, messages: usize) -> Self {
        let far = Far::start(kind).await;
        let gateway = Gateway::start(&format!(
            r#"
links:
  far:
    {}
    in_flight: {WINDOW}
    retry: {{ min: 50ms, max: 500ms }}
    stall_after: 3s
    connect_timeout: 20s
routes:
  - {{ name: far, from: "broker/line/#", to: "{}" }}
"#,
            far.link(),
            far.to()
        ))
        .await;
        let work = Work {
            port: gateway.port,
            publishers: PUBLISHERS,
            messages,
            qos: QoS::AtLeastOnce,
            window: 20,
            topic: "line".into(),
        };
        let watcher = Watcher::start(gateway.data(), "far", WINDOW as u64);
        gateway.wait_for_state("far", LinkState::Online).await;
        let publishers = Publishers::start(work);
        Self { far, gateway, publishers, watcher, allowed: 0, large: Vec::new(), ended: 0 }
    }

    fn allow(&mut self, more: usize) {
        self.allowed += more;
        self.publishers.allow(self.allowed);
    }

    /// Lets publishers publish more, and returns when all of it is in the buffer.
    async fn load(&mut self, more: usize) {
        self.allow(more);
        self.publishers.reach(self.allowed).await;
    }

    /// Lets publishers publish, and returns in the middle of it.
    async fn begin_load(&mut self, more: usize) {
        let before = self.allowed;
        self.allow(more);
        self.publishers.reach(before + more / 4).await;
    }

    async fn counts(&self) -> Counts {
        let status = self.gateway.status().await;
        counts(&status.links[0])
    }

    /// One fault, from fair weather to fair weather.
    async fn under(&mut self, fault: Fault) {
        eprintln!("{:?}: {fault:?}", self.far.kind);
        let before = self.well().await;
        self.watcher.rule(Rule::Changing);
        if !matches!(fault, Fault::Slow) {
            self.begin_load(LOAD / 2).await;
        }
        match fault {
            Fault::Refuse => self.away(Mode::Refuse).await,
            Fault::BlackHole => self.away(Mode::BlackHole).await,
            Fault::Mute => self.away(Mode::Mute).await,
            Fault::Reset | Fault::ResetWithin(_) | Fault::HalfOpen => self.cut(fault, before).await,
            Fault::Far => {
                self.far.proxy.set(Mode::Far(FAR)).await;
                self.gateway.wait_until_drained("far").await;
                self.watcher.rule(Rule::Online);
                self.load(LOAD / 2).await;
            }
            Fault::Slow => self.slow(before).await,
            Fault::Server(ending) => self.without_server(ending).await,
        }
        let after = self.well().await;
        self.assert_repeated_little(fault, before, after);
        self.watcher.assert_truthful(&format!("{:?}, {fault:?}", self.far.kind));
    }

    /// Nothing passes; seen, said, and over.
    async fn away(&mut self, mode: Mode) {
        self.far.proxy.set(mode).await;
        self.load(LOAD / 2).await;
        let away = [LinkState::Stalled, LinkState::BackingOff, LinkState::Connecting];
        self.gateway.wait_for_link("far", "seen to be away", |link| away.contains(&link.state)).await;
        self.watcher.rule(Rule::Away);
        self.look_on().await;
        self.watcher.rule(Rule::Changing);
        self.far.proxy.set(Mode::Pass).await;
    }

    /// Connections are cut, and new ones welcome.
    async fn cut(&mut self, fault: Fault, before: Counts) {
        match fault {
            Fault::ResetWithin(Way::ToServer) => self.far.proxy.cut_after(Way::ToServer, 1_777),
            // Some acknowledgements and a piece of one.
            Fault::ResetWithin(Way::ToClient) => self.far.proxy.cut_after(Way::ToClient, 33),
            Fault::HalfOpen => self.far.proxy.half_open(),
            Fault::Reset
            | Fault::Refuse
            | Fault::BlackHole
            | Fault::Mute
            | Fault::Slow
            | Fault::Far
            | Fault::Server(_) => self.far.proxy.cut(),
        }
        self.load(LOAD / 2).await;
        if self.far.kind != Kind::Kafka {
            self.gateway.wait_for_link("far", "made anew", |link| counts(link).connects > before.connects).await;
        }
    }

    /// R23: what moves is not stalled, however long one answer takes.
    async fn slow(&mut self, before: Counts) {
        let accepted = self.far.proxy.accepted();
        self.far.proxy.set(Mode::Slow).await;
        if self.far.kind != Kind::Kafka {
            self.gateway.wait_for_link("far", "made anew", |link| counts(link).connects > before.connects).await;
            self.gateway.wait_for_state("far", LinkState::Online).await;
            self.watcher.rule(Rule::Online);
        }
        let mark = Mark { publisher: PUBLISHERS, number: self.large.len() };
        publish_once(self.gateway.port, "large", "line/large", mark.payload(LARGE)).await.unwrap();
        self.large.push(mark);
        self.load(PUBLISHERS).await;
        self.gateway.wait_until_drained("far").await;
        self.watcher.rule(Rule::Changing);
        let after = self.counts().await;
        if self.far.kind != Kind::Kafka {
            assert_eq!(after.connects, before.connects + 1, "a slow line was cut, though it moved");
            assert_eq!(after.resent, before.resent, "sent again over a slow line");
        }
        assert!(self.far.proxy.accepted() > accepted);
        self.far.proxy.set(Mode::Pass).await;
        self.far.proxy.cut();
        self.load(LOAD - PUBLISHERS).await;
    }

    async fn without_server(&mut self, ending: Ending) {
        self.ended += 1;
        self.far.end(ending).await;
        self.load(LOAD / 2).await;
        self.gateway.wait_for_link("far", "seen to be away", |link| link.state != LinkState::Online).await;
        self.watcher.rule(Rule::Away);
        self.look_on().await;
        self.watcher.rule(Rule::Changing);
        self.far.start_again().await;
    }

    /// Some looks under the present rule.
    async fn look_on(&self) {
        let until = self.watcher.looks() + 50;
        until_true("fifty looks", PATIENCE, || self.watcher.looks() >= until).await;
    }

    /// Fair weather: drained, online, and it stays so.
    async fn well(&self) -> Counts {
        let drained = self.gateway.wait_until_drained("far").await;
        assert_eq!((drained.dead_letters, drained.ledger["dead_lettered"]), (0, 0), "weather refuses nothing");
        let seen = self.gateway.wait_for_state("far", LinkState::Online).await;
        self.watcher.rule(Rule::Online);
        counts(&seen)
    }

    fn assert_repeated_little(&self, fault: Fault, before: Counts, after: Counts) {
        let kind = self.far.kind;
        let (connects, resent) = (after.connects - before.connects, after.resent - before.resent);
        eprintln!("{kind:?}: {fault:?}: {connects} connections, {resent} sent again");
        assert!(
            resent <= connects * WINDOW as u64,
            "{kind:?}, {fault:?}: {resent} sent again on {connects} connections"
        );
        if fault == Fault::Far {
            assert_eq!((connects, resent), (0, 0), "{kind:?}: a far line loses no connection");
        }
    }

    /// Faults at random moments, over before or after they are seen, one into the other.
    async fn under_a_mix(&mut self, seed: u64) {
        let kind = self.far.kind;
        eprintln!("{kind:?}: TIDEGATE_CONTRACT_SEED={seed}");
        let before = self.well().await;
        self.watcher.rule(Rule::Changing);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..MIX {
            self.allow(MIX_LOAD);
            let early = self.allowed - random.random_range(0..MIX_LOAD);
            self.publishers.reach(early).await;
            let fault = LINE[random.random_range(0..7)];
            eprintln!("{kind:?}: {fault:?}");
            match fault {
                Fault::Refuse => self.far.proxy.set(Mode::Refuse).await,
                Fault::BlackHole => self.far.proxy.set(Mode::BlackHole).await,
                Fault::Mute => self.far.proxy.set(Mode::Mute).await,
                Fault::HalfOpen => self.far.proxy.half_open(),
                Fault::ResetWithin(way) => self.far.proxy.cut_after(way, random.random_range(1..200)),
                Fault::Reset | Fault::Slow | Fault::Far | Fault::Server(_) => self.far.proxy.cut(),
            }
            self.publishers.reach(self.allowed).await;
            if random.random_bool(0.5) {
                let away = |link: &LinkStatus| link.state != LinkState::Online || link.depth == 0;
                self.gateway.wait_for_link("far", "seen, or over", away).await;
            }
            self.far.proxy.set(Mode::Pass).await;
            if random.random_bool(0.5) {
                self.gateway.wait_for_state("far", LinkState::Online).await;
            }
        }
        let after = self.well().await;
        let (connects, resent) = (after.connects - before.connects, after.resent - before.resent);
        eprintln!("{kind:?}: {connects} connections, {resent} sent again");
        assert!(
            resent <= connects * WINDOW as u64,
            "{kind:?}, seed {seed}: {resent} sent again on {connects} connections"
        );
        self.watcher.assert_truthful(&format!("{kind:?}, seed {seed}"));
    }

    async fn finish(self) {
        let kind = self.far.kind;
        let mut acknowledged = self.publishers.finish().await;
        acknowledged.extend(&self.large);
        let link = self.gateway.wait_until_drained("far").await;
        let arrived = self.far.receive(&acknowledged).await;
        let ledger = Ledger::compare(acknowledged, &arrived);
        let resent = usize::try_from(counts(&link).resent).unwrap();
        eprintln!("{kind:?}: {} copies at the remote, {resent} sent again", ledger.duplicates);
        ledger.assert_kept(&format!("{kind:?}"), resent + self.ended * self.far.own_copies_max());
        assert!(!self.far.carries_ids() || ledger.published_again == 0, "nobody published anything twice");
        self.watcher.assert_truthful(&format!("{kind:?}, at the end"));
        assert!(!self.gateway.log().contains("dead letter"), "{}", self.gateway.log());
    }
}

fn counts(link: &LinkStatus) -> Counts {
    let sink = link.sink.as_ref().expect("it has a sink");
    Counts { connects: sink.connects, resent: sink.resent }
}
