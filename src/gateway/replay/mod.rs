//! Replays: started, listed and cancelled by the operator; each has a file of its own in `data_dir/replays`, so that it goes on
//! after a kill or a restart.
//!
//! A file is a [`SlotFile`] with JSON: [`Kept`].

mod plan;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::plan::Plan;
use super::Shared;
use super::rename::Carried;
use crate::admin::CommandError;
use crate::buffer::{self, SlotFile};
use crate::links::{self, Identity, ReplayEnd, ReplayKeeper, ReplayProgress};
use crate::router::LinkId;
use crate::telemetry::board::{HalfBoard, LinkState};
use crate::telemetry::replay::{ReplayCounts, ReplayLane, ReplayRequest, ReplayState, ReplayStatus};

/// Version of [`Kept`].
const VERSION: u16 = 1;
/// Replays that run at once at most: each has a connection of its own.
const RUNNING_MAX: usize = 8;
/// Ended ones that are still listed.
const ENDED_MAX: usize = 32;

/// Why a replay was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplayError {
    /// What it names is not there.
    #[error("{0}")]
    NotThere(String),
    /// It makes no sense, or there are too many.
    #[error("{0}")]
    Refused(String),
    /// Its file.
    #[error("{0}")]
    Io(String),
}

/// What the file of a replay holds.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u16,
    status: ReplayStatus,
    progress: ReplayProgress,
    /// [`Lanes::id`](crate::buffer::Lanes::id) of what it reads, whatever that is called. None: an earlier version wrote it.
    #[serde(default)]
    reads: Option<String>,
}

/// All replays that are known.
pub(super) struct Replays {
    dir: PathBuf,
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One replay.
struct Job {
    /// Without what [`ReplayProgress`] holds.
    status: Mutex<ReplayStatus>,
    progress: Arc<Mutex<ReplayProgress>>,
    /// See [`Kept::reads`].
    reads: Mutex<Option<String>>,
    board: Arc<HalfBoard>,
    cancel: CancellationToken,
    file: Mutex<Option<SlotFile>>,
    /// While it runs.
    task: Mutex<Option<JoinHandle<()>>>,
}

/// A replay that was stopped for a reload, and goes on after it.
pub(super) struct Paused {
    id: String,
}

impl Job {
    fn new(
        status: ReplayStatus,
        progress: ReplayProgress,
        reads: Option<String>,
        file: Option<SlotFile>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            status: Mutex::new(status),
            progress: Arc::new(Mutex::new(progress)),
            reads: Mutex::new(reads),
            board: Arc::default(),
            cancel: stop.child_token(),
            file: Mutex::new(file),
            task: Mutex::default(),
        }
    }

    fn is_running(&self) -> bool {
        self.status.lock().state == ReplayState::Running
    }

    fn shown(&self) -> ReplayStatus {
        let status = self.status.lock().clone();
        let progress = *self.progress.lock();
        let half = self.board.snapshot();
        let waits = half.state != LinkState::Online && status.state == ReplayState::Running;
        let told = half.last_error.filter(|_| waits || progress.unsendable + progress.refused > 0);
        let note = told.or_else(|| status.note.clone());
        with_progress(ReplayStatus { note, ..status }, progress)
    }

    /// Writes its file.
    fn keep(&self, progress: ReplayProgress, sync: bool) -> io::Result<()> {
        let status = with_progress(self.status.lock().clone(), progress);
        let reads = self.reads.lock().clone();
        let kept = serde_json::to_vec(&Kept { version: VERSION, status, progress, reads }).map_err(io::Error::other)?;
        match &mut *self.file.lock() {
            Some(file) => file.save(&kept, sync),
            None => Ok(()),
        }
    }
}

fn with_progress(mut status: ReplayStatus, progress: ReplayProgress) -> ReplayStatus {
    let ReplayProgress { lane, position, looked_at: _, replayed, bytes, passed_over, expired, unsendable, refused } =
        progress;
    if status.lanes.is_empty() {
        // Kept before there were lanes.
        let name = lane.name().to_owned();
        status.lanes.push(ReplayLane { lane: name, from: status.from, until: status.until });
    }
    let stretch = status.lanes.iter().find(|stretch| stretch.lane == lane.name());
    let (from, until) = stretch.map_or((status.from, status.until), |stretch| (stretch.from, stretch.until));
    let lane = lane.name().to_owned();
    ReplayStatus { lane, from, until, position, replayed, bytes, passed_over, expired, unsendable, refused, ..status }
}

/// Keeps a running replay's position in its file.
struct Keeper(Arc<Job>);

impl ReplayKeeper for Keeper {
    fn keep(&mut self, progress: ReplayProgress, sync: bool) -> io::Result<()> {
        self.0.keep(progress, sync)
    }
}

impl Replays {
    pub(super) fn new(data_dir: &Path) -> Self {
        let dir = data_dir.join("replays");
        Self { dir, jobs: Mutex::default(), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// All of them, the newest first.
    pub(super) fn list(&self) -> Vec<ReplayStatus> {
        let mut all: Vec<_> = self.jobs.lock().values().map(|job| job.shown()).collect();
        all.sort_by_key(|status| std::cmp::Reverse(status.started_ms));
        all
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<ReplayStatus> {
        let mut all = self.list();
        all.retain(|status| status.state == ReplayState::Running);
        all
    }

    /// Begins no more, and waits until those that run have saved their positions.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Forgets the oldest of those that have ended.
    fn forget_old(&self) {
        let mut ended: Vec<_> = self.list().into_iter().filter(|status| status.state != ReplayState::Running).collect();
        for old in ended.drain(ENDED_MAX.min(ended.len())..) {
            self.jobs.lock().remove(&old.id);
            if let Err(error) = fs::remove_file(self.path(&old.id)) {
                tracing::warn!(replay = old.id, %error, "the file of an ended replay was not removed");
            }
        }
    }
}

/// `replay-cancel`.
#[derive(Debug, Deserialize)]
struct CancelArguments {
    id: String,
}

impl From<ReplayError> for CommandError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::NotThere(words) => Self::NotThere(words),
            ReplayError::Refused(words) => Self::Refused(words),
            ReplayError::Io(words) => Self::Failed(words),
        }
    }
}

impl Shared {
    /// What `tidegate replay` asks for.
    pub(super) async fn obey_replay(&self, name: &str, arguments: Value) -> Result<Value, CommandError> {
        match name {
            "replay-count" => to_json(&self.count_replay(from_json(arguments)?).await?),
            "replay-start" => to_json(&self.start_replay(from_json(arguments)?).await?),
            "replay-list" => to_json(&self.replays.list()),
            "replay-cancel" => {
                let CancelArguments { id } = from_json(arguments)?;
                to_json(&self.cancel_replay(&id)?)
            }
            _ => Err(CommandError::Unknown(name.to_owned())),
        }
    }

    /// What a replay would send.
    async fn count_replay(&self, request: ReplayRequest) -> Result<ReplayCounts, ReplayError> {
        Plan::of(self, request)?.count(self).await
    }

    /// Begins a replay, which goes on after a restart.
    async fn start_replay(&self, request: ReplayRequest) -> Result<ReplayStatus, ReplayError> {
        let replays = &self.replays;
        if replays.running().len() >= RUNNING_MAX {
            let words = format!("{RUNNING_MAX} replays run already: cancel one, or wait until it is done");
            return Err(ReplayError::Refused(words));
        }
        // A reload that is under way may close what is planned here; one that comes waits until the replay is known to it.
        let _no_reload = self.running.lock().await;
        let plan = Plan::of(self, request)?;
        let id = format!("{:08x}", rand::random::<u32>());
        let status = ReplayStatus {
            id: id.clone(),
            request: plan.request.clone(),
            lanes: plan.lanes(),
            started_ms: self.clock.wall().0,
            note: plan.note.clone(),
            ..ReplayStatus::default()
        };
        let (lane, position) = plan.begin();
        let progress = ReplayProgress { lane, position, ..ReplayProgress::default() };
        let reads = Some(plan.reads().to_owned());
        let (dir, path, stop) = (replays.dir.clone(), replays.path(&id), replays.stop.clone());
        let made = tokio::task::spawn_blocking(move || {
            buffer::make_dir(&dir)?;
            let (file, _) = SlotFile::open(&path)?;
            let job = Arc::new(Job::new(status, progress, reads, Some(file), &stop));
            job.keep(progress, true)?;
            Ok(job)
        });
        let job = made.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let job = job.map_err(|error: io::Error| ReplayError::Io(format!("the replay's file: {error}")))?;
        replays.jobs.lock().insert(id.clone(), Arc::clone(&job));
        replays.forget_old();
        let shown = job.shown();
        tracing::info!(replay = id, way = shown.way(), lanes = ?shown.lanes, "a replay begins");
        self.run_replay(plan, job);
        Ok(shown)
    }

    /// Ends a replay that runs.
    fn cancel_replay(&self, id: &str) -> Result<ReplayStatus, ReplayError> {
        let job = self.replays.jobs.lock().get(id).cloned();
        let job = job.ok_or_else(|| {
            ReplayError::NotThere(format!("there is no replay `{id}`: `tidegate replay list` shows those there are"))
        })?;
        if !job.is_running() {
            return Err(ReplayError::Refused(format!("the replay `{id}` has ended already")));
        }
        job.status.lock().state = ReplayState::Cancelled;
        job.cancel.cancel();
        Ok(job.shown())
    }

    /// Stops those that read or fill the buffer of a link that is `touched`; their positions are saved.
    pub(super) async fn pause_replays(&self, touched: impl Fn(&LinkId) -> bool) -> Vec<Paused> {
        let is_meant = |job: &&Arc<Job>| {
            let status = job.status.lock();
            let (from, into) = ends_of(&status.request);
            status.state == ReplayState::Running && (touched(&LinkId::new(from)) || touched(&LinkId::new(into)))
        };
        let jobs: Vec<Arc<Job>> = self.replays.jobs.lock().values().filter(is_meant).cloned().collect();
        let mut paused = Vec::new();
        for job in jobs {
            job.cancel.cancel();
            let task = job.task.lock().take();
            if let Some(task) = task {
                drop(task.await);
            }
            // It may have ended, or been cancelled, meanwhile.
            if job.is_running() {
                paused.push(Paused { id: job.status.lock().id.clone() });
            }
        }
        paused
    }

    /// Goes on with them, under the names that what they read and what they fill have now; `target` knows those that are filled.
    pub(super) fn go_on_with_replays(&self, paused: Vec<Paused>, target: impl Fn(&LinkId) -> Option<LinkId>) {
        for Paused { id } in paused {
            let Some(job) = self.replays.jobs.lock().remove(&id) else { continue };
            let (mut status, progress) = (job.status.lock().clone(), *job.progress.lock());
            rename(&mut status.request, |_id| None, &target);
            let (reads, file) = (job.reads.lock().clone(), job.file.lock().take());
            self.go_on(Job::new(status, progress, reads, file, &self.replays.stop));
        }
    }

    /// Goes on with what ran when the gateway ended. `carried`: buffers that have got another name with this start.
    pub(super) fn resume_replays(&self, carried: &[Carried]) {
        let parts = self.parts();
        let target = |id: &LinkId| {
            let heir = parts.links.iter().filter(|_| parts.links.iter().all(|link| link.config.id != *id));
            let mut heir = heir.filter(|link| link.config.renamed_from.as_ref() == Some(id));
            heir.next().map(|link| link.config.id.clone())
        };
        // For what an earlier version wrote, which knows no more than the name.
        let is_left = |id: &LinkId| parts.orphans.iter().any(|orphan| orphan.name == id.as_str());
        let source = |id: &LinkId| aside(carried, id).or_else(|| target(id).filter(|_| !is_left(id)));
        let replays = &self.replays;
        let Ok(entries) = fs::read_dir(&replays.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let job = match load(&path, &replays.stop) {
                Ok(job) => job,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the state of a replay cannot be read; it does not go on");
                    continue;
                }
            };
            if job.is_running() {
                let by_name = |id: &LinkId| if job.reads.lock().is_none() { source(id) } else { None };
                rename(&mut job.status.lock().request, by_name, target);
            }
            self.go_on(job);
        }
    }

    fn go_on(&self, job: Job) {
        let job = Arc::new(job);
        let id = job.status.lock().id.clone();
        self.replays.jobs.lock().insert(id, Arc::clone(&job));
        if !job.is_running() {
            return;
        }
        let ReplayProgress { lane, position, .. } = *job.progress.lock();
        let reads = job.reads.lock().clone();
        let found = self.find_source(&job, reads.as_deref());
        let status = job.status.lock().clone();
        match found.and_then(|()| Plan::again(self, &status, (lane, position))) {
            Ok(plan) => {
                *job.reads.lock() = Some(plan.reads().to_owned());
                // Under which name that is goes by what was there when it was written, should a kill come.
                let progress = *job.progress.lock();
                if let Err(error) = job.keep(progress, true) {
                    tracing::warn!(replay = status.id, %error, "the names that a replay goes on with are not saved yet");
                }
                let (replay, way) = (&status.id, status.way());
                tracing::info!(replay, way, lane = lane.name(), position, "a replay goes on");
                self.run_replay(plan, job);
            }
            Err(error) => {
                tracing::error!(replay = status.id, %error, "a replay cannot go on");
                self.replay_ended(&job, ReplayState::Failed, Some(error.to_string()));
            }
        }
    }

    /// Has the job go on with the buffer that it has read, by the name which that has now.
    fn find_source(&self, job: &Job, reads: Option<&str>) -> Result<(), ReplayError> {
        let Some(reads) = reads else { return Ok(()) };
        let request = job.status.lock().request.clone();
        let Some(name) = self.parts().name_of(reads, &request.link) else {
            let words = format!(
                "the buffer that it reads, `{}` when it was last seen, is not there or cannot be opened: what is in the place of that is another",
                request.link
            );
            return Err(ReplayError::NotThere(words));
        };
        rename(&mut job.status.lock().request, |_old| Some(LinkId::new(&name)), |_same| None);
        Ok(())
    }

    fn run_replay(&self, plan: Plan, job: Arc<Job>) {
        let id: Arc<str> = job.status.lock().id.as_str().into();
        let identity = Identity { site: Arc::clone(&self.site), link: plan.config.id.clone() };
        let config = plan.config.clone();
        let parts = self.parts();
        let link = parts.links.iter().find(|link| link.config.id == config.id);
        let rate = link.map(|link| link.rate.clone()).unwrap_or_default();
        let (progress, board, token) = (Arc::clone(&job.progress), Arc::clone(&job.board), job.cancel.clone());
        let keeper = Box::new(Keeper(Arc::clone(&job)));
        let replay = plan.into_replay(&id, keeper, progress, Arc::clone(&self.clock), Arc::clone(&self.hub));
        let (clock, tasks) = (Arc::clone(&self.clock), self.replays.tasks.clone());
        let own = Arc::clone(&job);
        let task = tasks.spawn(async move {
            let end = links::run_replay(config, replay, rate, identity, board, Arc::clone(&clock), token).await;
            let state = job.status.lock().state;
            match (end, state) {
                (ReplayEnd::Done, _) => ended(job, ReplayState::Done, None, clock.wall().0).await,
                (ReplayEnd::Stopped, ReplayState::Cancelled) => {
                    ended(job, ReplayState::Cancelled, None, clock.wall().0).await;
                }
                // The gateway stops, or reads its file again: it goes on after that.
                (ReplayEnd::Stopped, _) => {}
            }
        });
        *own.task.lock() = Some(task);
    }

    fn replay_ended(&self, job: &Arc<Job>, state: ReplayState, note: Option<String>) {
        let (job, now) = (Arc::clone(job), self.clock.wall().0);
        self.replays.tasks.spawn(ended(job, state, note, now));
    }
}

/// The links that it reads and fills.
fn ends_of(request: &ReplayRequest) -> (&str, &str) {
    let into = request.into.as_deref().unwrap_or(&request.link);
    (&request.link, into.split_once('/').map_or(into, |(link, _)| link))
}

/// What a link's own buffer is called since it made room for another one.
fn aside(carried: &[Carried], link: &LinkId) -> Option<LinkId> {
    carried.iter().find(|carried| carried.link == *link)?.aside.clone()
}

/// The same request, by the names that what it reads and what it fills have now.
fn rename(
    request: &mut ReplayRequest,
    source: impl Fn(&LinkId) -> Option<LinkId>,
    target: impl Fn(&LinkId) -> Option<LinkId>,
) {
    let new = |name: &str| target(&LinkId::new(name)).map_or_else(|| name.to_owned(), |new| new.to_string());
    let into = request.into.clone().unwrap_or_else(|| request.link.clone());
    let into = match into.split_once('/') {
        Some((link, template)) => format!("{}/{template}", new(link)),
        None => new(&into),
    };
    let link = source(&LinkId::new(&request.link)).map_or_else(|| request.link.clone(), |new| new.to_string());
    request.into = Some(into).filter(|into| *into != link);
    request.link = link;
}

fn from_json<T: for<'a> Deserialize<'a>>(arguments: Value) -> Result<T, CommandError> {
    serde_json::from_value(arguments).map_err(|error| CommandError::Refused(format!("not understood: {error}")))
}

fn to_json<T: Serialize>(value: &T) -> Result<Value, CommandError> {
    serde_json::to_value(value).map_err(|error| CommandError::Failed(error.to_string()))
}

async fn ended(job: Arc<Job>, state: ReplayState, note: Option<String>, now_ms: u64) {
    {
        let mut status = job.status.lock();
        status.state = state;
        status.ended_ms = Some(now_ms);
        status.note = note.or_else(|| status.note.take());
    }
    let shown = job.shown();
    tracing::info!(
        replay = shown.id,
        ?state,
        replayed = shown.replayed,
        position = shown.position,
        "a replay has ended"
    );
    let kept = tokio::task::spawn_blocking(move || {
        let progress = *job.progress.lock();
        job.keep(progress, true)
    });
    if let Ok(Err(error)) = kept.await {
        tracing::error!(replay = shown.id, %error, "the end of a replay was not saved: it goes on after a restart");
    }
}

fn load(path: &Path, stop: &CancellationToken) -> io::Result<Job> {
    let (file, kept) = SlotFile::open(path)?;
    let kept = kept.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "nothing was saved"))?;
    let Kept { version, status, progress, reads } = serde_json::from_slice(&kept)?;
    if version > VERSION {
        let words = format!("written by a later version (format {version}; this program knows {VERSION})");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(Job::new(status, progress, reads, Some(file), stop))
}
