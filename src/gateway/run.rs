//! Running, and ending in the order of DESIGN.md section 9.
//!
//! Every task is in a [`Crew`]: one that ends before its time, or panics, is seen at once. A link's end is that link's
//! alone and its task does not end by an error; the broker's or the admin page's early end stops the gateway, in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::crew::{Crew, Hand};
use super::reload::{Hands, Running};
use super::{Gateway, Link, Shared, announce, memory, reload};
use crate::admin;
use crate::buffer::Lanes;
use crate::links::{self, Identity};

/// How long a stage of stopping may take. Stopping is safe at any point, since what was acknowledged is on disk: the limits only
/// keep an operator from waiting for a dead remote (systemd would kill after 90 s).
const STAGE_LIMIT: Duration = Duration::from_secs(10);

/// How long a reload that is under way may take to end: it waits for halves of links to end.
const RELOAD_LIMIT: Duration = Duration::from_secs(20);

/// How often a reading is taken of what each link has moved, for its rate; and how much a kill forgets of what is a copy (R12).
const RATE_EVERY: Duration = Duration::from_secs(1);

/// How often samples are looked at without an event: a machine that slept has passed their intervals.
const SAMPLES_LOOK: Duration = Duration::from_secs(60);

/// Why a gateway ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task that should run as long as the gateway ended first: our bug.
    #[error("{0} ended unexpectedly; the gateway was stopped in order")]
    Ended(String),
    /// The admin socket.
    #[error("admin socket {path}: {error}")]
    Socket {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// No thread can be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl RunError {
    /// DESIGN.md section 5's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Ended(_) => 70,
            Self::Socket { .. } | Self::Thread(_) => 74,
        }
    }
}

impl Gateway {
    /// Runs until `shutdown` is cancelled, then ends everything in order.
    ///
    /// # Errors
    /// [`RunError`] where a part ended first; the gateway was ended in order all the same.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Self { shared, bound, admin, config, carried, _lock } = self;
        serve_socket(&shared)?;
        let clock = Arc::clone(&shared.clock);
        let _watch = memory::Watch::start(Arc::clone(shared.hub.memory()), clock).map_err(RunError::Thread)?;
        let crews = &shared.crews;
        let sampled = Arc::clone(&shared);
        crews.admin.spawn("the rates".to_owned(), |stop| sample_rates(sampled, stop));
        let admin = admin.map(|listener| shared.serve_page(listener));
        let parts = shared.parts();
        let hands =
            parts.links.iter().map(|link| (link.config.id.clone(), shared.start_link(link, true, true))).collect();
        crews.intake.spawn("the broker".to_owned(), |stop| bound.serve(stop));
        shared.resume_replays(&carried);
        let announcer = Arc::clone(&shared);
        let samples = Arc::clone(&shared);
        crews.intake.spawn("the samples".to_owned(), |stop| let_samples_go(samples, stop));
        crews.intake.spawn("the announcements below $SYS".to_owned(), |stop| announce::run(announcer, stop));
        *shared.running.lock().await = Some(Running { config, hands, admin });
        let follower = Arc::clone(&shared);
        crews.admin.spawn("the reloads".to_owned(), |stop| reload::follow(follower, stop));
        shared.ready.store(true, Ordering::Release);
        let listeners: Vec<String> = parts.listeners.iter().map(|listener| listener.address().to_string()).collect();
        tracing::info!(site = %shared.site, ?listeners, links = parts.links.len(), "ready");
        drop(parts);

        let lost = tokio::select! {
            () = shutdown.cancelled() => None,
            name = crews.lost.first() => Some(name),
        };
        stop(&shared).await;
        lost.map_or(Ok(()), |name| Err(RunError::Ended(name)))
    }
}

fn serve_socket(shared: &Arc<Shared>) -> Result<(), RunError> {
    let path = shared.data_dir.join("admin.sock");
    let control: Arc<dyn admin::Control> = Arc::<Shared>::clone(shared);
    let socket = admin::UnixSocket::bind(&path).map_err(|error| RunError::Socket { path, error })?;
    let name = "the admin socket";
    shared.crews.admin.spawn(name.to_owned(), |stop| async move { ended(name, socket.serve(control, stop).await) });
    Ok(())
}

impl Shared {
    /// Serves the status page.
    pub(super) fn serve_page(self: &Arc<Self>, listener: tokio::net::TcpListener) -> Hand {
        let control: Arc<dyn admin::Control> = Arc::<Self>::clone(self);
        let name = "the admin page";
        let serve = |stop| async move { ended(name, admin::serve_listener(listener, control, stop).await) };
        self.crews.admin.spawn(name.to_owned(), serve)
    }

    /// Starts the halves of a link that are asked for, as far as it has them.
    pub(super) fn start_link(&self, link: &Link, sink: bool, source: bool) -> Hands {
        let id = link.config.id.clone();
        let identity = Identity { site: Arc::clone(&self.site), link: id.clone() };
        let sink = link.lanes.clone().zip(link.sink.clone()).filter(|_| sink).map(|(lanes, board)| {
            let (config, identity, clock) = (link.config.clone(), identity.clone(), Arc::clone(&self.clock));
            let outflow = links::Outflow { lanes, rate: link.rate.clone(), hub: Arc::clone(&self.hub) };
            let run = |stop| links::run_sink(config, outflow, identity, board, clock, stop);
            self.crews.sinks.spawn(format!("the sink of link `{id}`"), run)
        });
        let source = link.source.clone().filter(|_| source).map(|board| {
            let (config, hub, clock) = (link.config.clone(), Arc::clone(&self.hub), Arc::clone(&self.clock));
            let run = |stop| links::run_source(config, hub, identity, board, clock, stop);
            self.crews.intake.spawn(format!("the source of link `{id}`"), run)
        });
        Hands { sink, source }
    }
}

/// A rate that is only looked at now and then is still that of the last seconds. What has come of other gateways is kept as often.
async fn sample_rates(shared: Arc<Shared>, stop: CancellationToken) {
    let mut beat = tokio::time::interval(RATE_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(beat.tick()).await.is_some() {
        let now = shared.clock.now();
        let parts = shared.parts();
        let halves = parts.links.iter().flat_map(|link| [&link.sink, &link.source]);
        halves.flatten().for_each(|half| half.sample(now));
        shared.hub.keep_copies();
    }
}

/// Sends on what samples hold, when their intervals are over.
async fn let_samples_go(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let next = shared.hub.let_go().unwrap_or(SAMPLES_LOOK).min(SAMPLES_LOOK);
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.hub.due_sooner() => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// What ends with an error says so; that it ended is told by its crew.
fn ended(part: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "{part} ended");
    }
}

/// DESIGN.md section 9: intake, receipts and clients, buffers, sinks, store, admin. The logs are synced before the sinks end, so
/// that what sinks still confirm is saved by the close.
async fn stop(shared: &Shared) {
    shared.stopping.store(true, Ordering::Release);
    // A reload that is under way ends first, and none begins.
    if let Ok(mut running) = tokio::time::timeout(RELOAD_LIMIT, shared.running.lock()).await {
        *running = None;
    }
    tracing::info!("stopping: listeners and sources");
    let parts = shared.parts();
    // No publisher's last receipt waits for a remote.
    parts.links.iter().filter_map(|link| link.lanes.as_ref()).for_each(Lanes::hurry);
    finish("listeners and sources", &shared.crews.intake).await;
    shared.hub.let_all_go();
    shared.hub.stop();
    tracing::info!("stopping: sinks and buffers");
    finish("sinks", &shared.crews.sinks).await;
    if tokio::time::timeout(STAGE_LIMIT, shared.replays.stop()).await.is_err() {
        tracing::warn!("a replay did not end in time and was cut off; it goes on after the next start");
    }
    // A reload that took longer than its limit may have published others.
    let parts = shared.parts();
    for link in &parts.links {
        if let Some(lanes) = &link.lanes {
            lanes.close().await;
        }
    }
    for lanes in parts.orphans.iter().filter_map(|orphan| orphan.lanes.as_ref().ok()) {
        lanes.close().await;
    }
    shared.hub.keep_copies();
    if tokio::time::timeout(STAGE_LIMIT, shared.hub.samples_settled()).await.is_err() {
        tracing::warn!(
            "the broker's store is too slow: some of what samples held is kept, and may come twice after the next start"
        );
    }
    shared.hub.keep_samples();
    shared.broker.close().await;
    finish("admin", &shared.crews.admin).await;
    tracing::info!("stopped");
}

async fn finish(stage: &str, crew: &Crew) {
    if !crew.finish(STAGE_LIMIT).await {
        tracing::warn!(stage, "did not end in time and was cut off; what was acknowledged is on disk");
    }
}
