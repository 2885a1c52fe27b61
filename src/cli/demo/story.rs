//! The story of the demo, step by step, and the loop that shows it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::MACHINES;
use super::machines::Machine;
use super::proxy::{Line, Proxy};
use super::receiver;
use super::screen::{Progress, Screen, View};
use super::site::{self, Site};
use super::tally::{Report, Tally};
use crate::cli::text::{grouped, ms};
use crate::clock;
use crate::telemetry::board::{LinkStatus, Status};
use crate::units::show_duration;

/// How long the line works at the beginning.
const NORMAL: Duration = Duration::from_secs(4);
/// How long it is cut.
const CUT: Duration = Duration::from_secs(6);
/// How long it is dead before the gateway is killed: longer than the link's `stall_after`.
const DEAD: Duration = Duration::from_secs(4);
/// How long the edge has no gateway.
const KILLED: Duration = Duration::from_millis(1_500);
/// How long the restarted gateway keeps messages before the line comes back.
const AFTER_RESTART: Duration = Duration::from_secs(3);
/// How long the machines go on after the second outage.
const LAST_MESSAGES: Duration = Duration::from_secs(2);
/// A drain that takes longer has failed.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for copies after everything has arrived: they count as duplicates.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// How long connecting may take at the start.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How often conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the screen is redrawn.
const DRAW_EVERY: Duration = Duration::from_millis(125);

const STEPS: [&str; 6] = [
    "The line works",
    "The line is cut",
    "The line is mended",
    "The line goes dead without a word",
    "The edge gateway is killed (SIGKILL)",
    "The line comes back",
];

/// Plays it all. An error is a demo that could not be played; lost messages are a report.
pub(crate) async fn play(root: &Path, messages_per_second: u32) -> anyhow::Result<Report> {
    let stage = Stage::build(root).await?;
    let scene = stage.scene.clone();
    let mut screen = Screen::new();
    let report = {
        let story = Box::pin(stage.play(messages_per_second));
        tokio::pin!(story);
        let mut draw = tokio::time::interval(DRAW_EVERY);
        loop {
            tokio::select! {
                report = &mut story => break report,
                _ = draw.tick() => {
                    scene.look().await;
                    screen.show(&scene.view());
                }
            }
        }
    };
    screen.show(&scene.view());
    report
}

/// What the screen and the story share.
#[derive(Clone, Debug)]
struct Scene {
    tally: Arc<Mutex<Tally>>,
    shared: Arc<Mutex<Shared>>,
    edge_data: PathBuf,
    line: watch::Receiver<Line>,
}

#[derive(Debug)]
struct Shared {
    steps: Vec<(&'static str, Progress)>,
    started: Option<Instant>,
    link: Option<LinkStatus>,
    /// The story is told: what the sites do from now on is no part of it.
    over: bool,
}

impl Scene {
    /// Asks the edge's gateway how its link is.
    async fn look(&self) {
        let asked = tokio::time::timeout(DRAW_EVERY, site::status(&self.edge_data)).await;
        let mut shared = self.shared.lock();
        if !shared.over {
            shared.link = asked.ok().flatten().and_then(cloud_link);
        }
    }

    fn view(&self) -> View {
        let shared = self.shared.lock();
        View {
            elapsed: shared.started.map_or(Duration::ZERO, |started| clock::now().saturating_duration_since(started)),
            now: clock::wall(),
            steps: shared.steps.clone(),
            figures: self.tally.lock().figures(),
            line: *self.line.borrow(),
            link: shared.link.clone(),
        }
    }

    fn begin(&self, step: usize) {
        self.set(step, Progress::Active);
    }

    fn end(&self, step: usize, note: String) {
        self.set(step, Progress::Done(note));
    }

    fn set(&self, step: usize, progress: Progress) {
        if let Some((_, shown)) = self.shared.lock().steps.get_mut(step) {
            *shown = progress;
        }
    }
}

/// Everything that plays a part.
#[derive(Debug)]
struct Stage {
    scene: Scene,
    line: watch::Sender<Line>,
    edge: Site,
    cloud: Site,
    edge_port: u16,
    /// The proxy and the receiver: neither ends by itself.
    helpers: JoinSet<anyhow::Result<()>>,
    machines: JoinSet<()>,
    enough: CancellationToken,
}

impl Stage {
    /// Starts both sites, the line between them, and the receiver.
    async fn build(root: &Path) -> anyhow::Result<Self> {
        let (edge_port, cloud_port) = (site::free_port()?, site::free_port()?);
        let (line, watched) = watch::channel(Line::Open);
        let proxy = Proxy::bind(cloud_port, watched.clone()).await?;
        let mut cloud = Site::new(root, "cloud", &site::cloud_routes(cloud_port))?;
        let mut edge = Site::new(root, "edge", &site::edge_routes(edge_port, proxy.port()))?;
        cloud.start().await?;
        edge.start().await?;
        let tally = Arc::new(Mutex::new(Tally::new(MACHINES)));
        let mut helpers = JoinSet::new();
        helpers.spawn(proxy.serve());
        let (told, subscribed) = oneshot::channel();
        let counted = tally.clone();
        helpers.spawn(async move {
            receiver::run(cloud_port, site::ARRIVING, counted, told).await;
            Ok(())
        });
        tokio::time::timeout(CONNECT_WITHIN, subscribed)
            .await
            .context("the receiver could not subscribe at the cloud's broker")??;
        let shared = Shared {
            steps: STEPS.into_iter().map(|title| (title, Progress::Pending)).collect(),
            started: None,
            link: None,
            over: false,
        };
        let shared = Arc::new(Mutex::new(shared));
        let scene = Scene { tally, shared, edge_data: edge.data_dir(), line: watched };
        let (machines, enough) = (JoinSet::new(), CancellationToken::new());
        Ok(Self { scene, line, edge, cloud, edge_port, helpers, machines, enough })
    }

    async fn play(mut self, messages_per_second: u32) -> anyhow::Result<Report> {
        self.start_machines(messages_per_second);
        self.normal().await?;
        self.cut().await?;
        self.mended().await?;
        self.dead().await?;
        self.killed().await?;
        let drained = self.back().await?;
        tokio::time::sleep(STRAGGLERS).await;
        let report = self.scene.tally.lock().report(drained);
        // The last screen stays: it shows the end of the story, not gateways that are being stopped.
        self.scene.look().await;
        self.scene.shared.lock().over = true;
        // The edge first: its link says good-bye to a cloud that is still there.
        self.edge.stop().await?;
        self.cloud.stop().await?;
        Ok(report)
    }

    fn start_machines(&mut self, messages_per_second: u32) {
        let machines = f64::from(u32::try_from(MACHINES).unwrap_or(1));
        for index in 0..MACHINES {
            let machine = Machine {
                index,
                port: self.edge_port,
                rate: f64::from(messages_per_second) / machines,
                tally: self.scene.tally.clone(),
                enough: self.enough.clone(),
            };
            self.machines.spawn(machine.run());
        }
        self.scene.shared.lock().started = Some(clock::now());
    }

    async fn normal(&mut self) -> anyhow::Result<()> {
        self.scene.begin(0);
        self.pause(NORMAL).await?;
        let delivered = self.scene.tally.lock().figures().delivered;
        if delivered == 0 {
            bail!("nothing arrived at the cloud while the line worked: {}", self.link_words().await);
        }
        self.scene.end(0, format!("{} delivered", grouped(delivered)));
        Ok(())
    }

    async fn cut(&mut self) -> anyhow::Result<()> {
        self.scene.begin(1);
        self.line.send_replace(Line::Cut);
        self.pause(CUT).await?;
        let note = self.kept().await;
        self.scene.end(1, note);
        Ok(())
    }

    async fn mended(&mut self) -> anyhow::Result<()> {
        self.scene.begin(2);
        self.line.send_replace(Line::Open);
        self.drain(2).await?;
        self.pause(LAST_MESSAGES).await
    }

    async fn dead(&mut self) -> anyhow::Result<()> {
        self.scene.begin(3);
        self.line.send_replace(Line::Dead);
        self.pause(DEAD).await?;
        let note = self.kept().await;
        self.scene.end(3, note);
        Ok(())
    }

    async fn killed(&mut self) -> anyhow::Result<()> {
        self.scene.begin(4);
        self.edge.kill().await?;
        self.pause(KILLED).await?;
        let began = clock::now();
        self.edge.start().await?;
        let took = show_duration(clock::now().saturating_duration_since(began));
        let found = self.link_status().await.map_or(0, |link| link.depth);
        self.scene.end(4, format!("ready in {took}; {} found on disk", grouped(found)));
        self.pause(AFTER_RESTART).await
    }

    /// Whether everything drained.
    async fn back(&mut self) -> anyhow::Result<bool> {
        self.scene.begin(5);
        self.line.send_replace(Line::Open);
        self.drain(5).await?;
        self.pause(LAST_MESSAGES).await?;
        self.enough.cancel();
        let finished = tokio::time::timeout(DRAIN_WITHIN, async {
            while let Some(ended) = self.machines.join_next().await {
                ended.context("a machine failed")?;
            }
            anyhow::Ok(())
        });
        let acknowledged = match finished.await {
            Ok(ended) => ended.map(|()| true)?,
            Err(_) => false,
        };
        let tally = self.scene.tally.clone();
        let arrived = self.wait_until(|| tally.lock().figures().owed == 0).await?;
        let emptied = self.wait_for_empty_buffer().await?;
        Ok(acknowledged && arrived && emptied)
    }

    /// Waits until what was kept has arrived, and ends the step. The machines go on meanwhile, so the buffer is never
    /// quite empty: what counts is what was acknowledged when the line came back.
    async fn drain(&mut self, step: usize) -> anyhow::Result<()> {
        let began = clock::now();
        let before = self.scene.tally.lock().figures();
        let tally = self.scene.tally.clone();
        let drained = self.wait_until(|| tally.lock().figures().delivered >= before.acknowledged).await?;
        let took = show_duration(clock::now().saturating_duration_since(began));
        let backlog = grouped(before.owed);
        let note = if drained { format!("{backlog} drained in {took}") } else { format!("not drained in {took}") };
        self.scene.end(step, note);
        Ok(())
    }

    /// Lets time pass; ends early when a helper has failed.
    async fn pause(&mut self, length: Duration) -> anyhow::Result<()> {
        tokio::select! {
            () = tokio::time::sleep(length) => Ok(()),
            Some(ended) = self.helpers.join_next() => ended.context("a part of the demo failed")?,
        }
    }

    /// Waits for a condition; `false` when it does not come in [`DRAIN_WITHIN`].
    async fn wait_until(&mut self, condition: impl Fn() -> bool) -> anyhow::Result<bool> {
        let deadline = clock::now() + DRAIN_WITHIN;
        while !condition() {
            if clock::now() > deadline {
                return Ok(false);
            }
            self.pause(LOOK_EVERY).await?;
        }
        Ok(true)
    }

    /// The receiver has everything; the last confirmations reach the edge's buffer a moment later.
    async fn wait_for_empty_buffer(&mut self) -> anyhow::Result<bool> {
        let deadline = clock::now() + DRAIN_WITHIN;
        loop {
            if self.link_status().await.is_some_and(|link| link.depth == 0 && link.balanced) {
                return Ok(true);
            }
            if clock::now() > deadline {
                return Ok(false);
            }
            self.pause(LOOK_EVERY).await?;
        }
    }

    async fn link_status(&self) -> Option<LinkStatus> {
        site::status(&self.scene.edge_data).await.and_then(cloud_link)
    }

    async fn kept(&self) -> String {
        self.link_status().await.map_or_else(
            || "the edge gateway does not answer".to_owned(),
            |link| {
                let oldest = ms(link.oldest_age_ms.unwrap_or_default());
                let state = crate::cli::text::state(link.state);
                format!("{state}; {} kept on disk, oldest {oldest}", grouped(link.depth))
            },
        )
    }

    async fn link_words(&self) -> String {
        let link = self.link_status().await;
        let state = link.as_ref().map_or("unknown", |link| crate::cli::text::state(link.state));
        let error = link.and_then(|link| link.sink).and_then(|sink| sink.last_error).unwrap_or_default();
        format!("the edge's link is {state} {error}")
    }
}

fn cloud_link(status: Status) -> Option<LinkStatus> {
    status.links.into_iter().find(|link| link.name == "cloud")
}
