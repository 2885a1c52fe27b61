//! Running, and ending in the order of DESIGN.md section 9.
//!
//! Every task is in one `JoinSet`: one that ends before its time, or panics, is seen at once. A link's end is that link's
//! alone and its task does not end by an error; the broker's or the admin page's early end stops the gateway, in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Gateway, Shared};
use crate::admin;
use crate::buffer::Lanes;
use crate::links::{self, Identity};

/// How long a stage of stopping may take. Stopping is safe at any point, since what was acknowledged is on disk: the limits only
/// keep an operator from waiting for a dead remote (systemd would kill after 90 s).
const STAGE_LIMIT: Duration = Duration::from_secs(10);

/// How often a reading is taken of what each link has moved, for its rate.
const RATE_EVERY: Duration = Duration::from_secs(1);

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
}

impl RunError {
    /// DESIGN.md section 5's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Ended(_) => 70,
            Self::Socket { .. } => 74,
        }
    }
}

/// The stages' tokens, in the order in which they end.
#[derive(Default)]
struct Stages {
    /// Listeners and sources: nothing new is taken.
    intake: CancellationToken,
    /// Sinks.
    sinks: CancellationToken,
    /// The status page: last, so that the end can be watched.
    admin: CancellationToken,
}

impl Gateway {
    /// Runs until `shutdown` is cancelled, then ends everything in order.
    ///
    /// # Errors
    /// [`RunError`] where a part ended first; the gateway was ended in order all the same.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Self { shared, bound, admin, _lock } = self;
        let stages = Stages::default();
        let mut pages = JoinSet::new();
        serve_admin(&shared, admin, &stages, &mut pages)?;
        pages.spawn(sample_rates(Arc::clone(&shared), stages.admin.clone()));
        let mut sinks = JoinSet::new();
        let mut intake = JoinSet::new();
        for link in &shared.links {
            start_link(&shared, link, &stages, &mut sinks, &mut intake);
        }
        let token = stages.intake.clone();
        intake.spawn(async move {
            bound.serve(token).await;
            "the broker".to_owned()
        });
        shared.resume_replays();
        let (announcer, token) = (Arc::clone(&shared), stages.intake.clone());
        intake.spawn(async move {
            super::announce::run(announcer, token).await;
            "the announcements below $SYS".to_owned()
        });
        shared.ready.store(true, Ordering::Release);
        let listeners: Vec<String> = shared.listeners.iter().map(|listener| listener.address().to_string()).collect();
        tracing::info!(site = %shared.site, ?listeners, links = shared.links.len(), "ready");

        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            Some(task) = intake.join_next() => Some(task),
            Some(task) = sinks.join_next() => Some(task),
            Some(task) = pages.join_next() => Some(task),
        };
        stop(&shared, stages, intake, sinks, pages).await;
        match ended {
            None => Ok(()),
            Some(Ok(name)) => Err(RunError::Ended(name)),
            Some(Err(panic)) => Err(RunError::Ended(panic.to_string())),
        }
    }
}

fn serve_admin(
    shared: &Arc<Shared>,
    tcp: Option<tokio::net::TcpListener>,
    stages: &Stages,
    pages: &mut JoinSet<String>,
) -> Result<(), RunError> {
    let path = shared.data_dir.join("admin.sock");
    let control: Arc<dyn admin::Control> = Arc::<Shared>::clone(shared);
    let socket = admin::UnixSocket::bind(&path).map_err(|error| RunError::Socket { path, error })?;
    let (page, token) = (Arc::clone(&control), stages.admin.clone());
    pages.spawn(async move { ended("the admin socket", socket.serve(page, token).await) });
    if let Some(listener) = tcp {
        let token = stages.admin.clone();
        pages.spawn(async move { ended("the admin page", admin::serve_listener(listener, control, token).await) });
    }
    Ok(())
}

/// A rate that is only looked at now and then is still that of the last seconds.
async fn sample_rates(shared: Arc<Shared>, stop: CancellationToken) -> String {
    let mut beat = tokio::time::interval(RATE_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(beat.tick()).await.is_some() {
        let now = shared.clock.now();
        let halves = shared.links.iter().flat_map(|link| [&link.sink, &link.source]);
        halves.flatten().for_each(|half| half.sample(now));
    }
    "the rates".to_owned()
}

/// A part's name and, where it has one, the reason of its end.
fn ended(part: &str, result: std::io::Result<()>) -> String {
    result.map_or_else(|error| format!("{part} ({error})"), |()| part.to_owned())
}

fn start_link(
    shared: &Arc<Shared>,
    link: &super::Link,
    stages: &Stages,
    sinks: &mut JoinSet<String>,
    intake: &mut JoinSet<String>,
) {
    let identity = Identity { site: Arc::clone(&shared.site), link: link.config.id.clone() };
    if let (Some(lanes), Some(board)) = (&link.lanes, &link.sink) {
        let (config, lanes, board) = (link.config.clone(), lanes.clone(), Arc::clone(board));
        let (identity, clock, token) = (identity.clone(), Arc::clone(&shared.clock), stages.sinks.clone());
        sinks.spawn(async move {
            let name = format!("the sink of link `{}`", config.id);
            links::run_sink(config, lanes, identity, board, clock, token).await;
            name
        });
    }
    if let Some(board) = &link.source {
        let (config, hub, board) = (link.config.clone(), Arc::clone(&shared.hub), Arc::clone(board));
        let (clock, token) = (Arc::clone(&shared.clock), stages.intake.clone());
        intake.spawn(async move {
            let name = format!("the source of link `{}`", config.id);
            links::run_source(config, hub, identity, board, clock, token).await;
            name
        });
    }
}

/// DESIGN.md section 9: intake, receipts and clients, buffers, sinks, store, admin. The logs are synced before the sinks end, so
/// that what sinks still confirm is saved by the close.
async fn stop(
    shared: &Shared,
    stages: Stages,
    intake: JoinSet<String>,
    sinks: JoinSet<String>,
    pages: JoinSet<String>,
) {
    shared.stopping.store(true, Ordering::Release);
    tracing::info!("stopping: listeners and sources");
    // No publisher's last receipt waits for a remote.
    shared.links.iter().filter_map(|link| link.lanes.as_ref()).for_each(Lanes::hurry);
    stages.intake.cancel();
    finish("listeners and sources", intake).await;
    shared.hub.stop();
    tracing::info!("stopping: sinks and buffers");
    stages.sinks.cancel();
    finish("sinks", sinks).await;
    if tokio::time::timeout(STAGE_LIMIT, shared.replays.stop()).await.is_err() {
        tracing::warn!("a replay did not end in time and was cut off; it goes on after the next start");
    }
    for link in &shared.links {
        if let Some(lanes) = &link.lanes {
            lanes.close().await;
        }
    }
    for lanes in shared.orphans.iter().filter_map(|orphan| orphan.lanes.as_ref().ok()) {
        lanes.close().await;
    }
    shared.broker.close().await;
    stages.admin.cancel();
    finish("admin", pages).await;
    tracing::info!("stopped");
}

/// Waits for a stage's tasks, and ends by force what does not end by itself.
async fn finish(stage: &str, mut tasks: JoinSet<String>) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(STAGE_LIMIT, all).await.is_err() {
        tracing::warn!(stage, "did not end in time and was cut off; what was acknowledged is on disk");
        tasks.shutdown().await;
    }
}
