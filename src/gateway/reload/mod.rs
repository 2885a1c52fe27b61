//! `routes.yaml` read again while the gateway runs: at SIGHUP, at `tidegate reload`, and with `reload: watch` when its files change.
//!
//! One reload goes through these steps, one after the other, and at most one goes at a time:
//!
//! 1. **Read and check** the file, as `tidegate check` does. A mistake, or a change that needs a restart, ends it: nothing is
//!    touched, the log and `status` say so.
//! 2. **Compare** with what runs ([`steps`], pure): which halves of which links have to go, which buffers to be opened anew, which
//!    listeners. What is the same is not touched: it keeps its connections and its place in the buffer.
//! 3. **Get** what may not be had: addresses. One that cannot be bound ends it, and all that were bound are let go (R34).
//! 4. **End** the halves that have to go, in order: what is in flight gets a moment.
//! 5. **Seal, close, move and open** buffers. Offers to them wait meanwhile, those to others do not. What cannot be opened ends it: all
//!    goes back to where it was.
//! 6. **Publish** routes and buffers as one ([`Hub::replace`](crate::hub::Hub::replace)); offers that waited are planned by them.
//! 7. **Start** the halves that are new or others.
//!
//! Files that parts read by themselves (certificates, users, rules) are read again at each reload, whatever came of it.

mod apply;
mod steps;
mod told;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::crew::Hand;
use super::{Change, Config, Entry, ReloadWhen, Shared};
use crate::links;
use crate::router::LinkId;

/// How often the files are looked at with `reload: watch`.
const LOOK: Duration = Duration::from_secs(1);
/// With `reload: watch` a file that was refused for what may pass by itself, such as an address that is in use or a buffer in which something waits, is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// Lines of a refusal that are logged; `status` and `tidegate reload` have all.
const LINES_LOGGED: usize = 20;

/// Where the configuration comes from.
pub trait Origin: Send + Sync {
    /// Reads and checks it as it is now.
    ///
    /// # Errors
    /// All mistakes, as `tidegate check` writes them.
    fn load(&self) -> Result<Loaded, String>;

    /// Whether its files are others than those of the last [`Origin::load`], and were so at the last look: they stand still.
    fn is_due(&self) -> bool;
}

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// It.
    pub config: Config,
    /// What its check warns of, as text; may be empty.
    pub warnings: String,
}

/// What came of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// DESIGN.md section 5's exit code; 0: the file is in force.
    pub code: u8,
    /// What is another now.
    pub changes: Vec<Change>,
    /// Why the file is not in force.
    pub problem: Option<String>,
    /// What its check warns of.
    pub warnings: String,
    /// It was refused for what may pass by itself, not for what the file says.
    #[serde(skip)]
    may_pass_later: bool,
}

/// What a reload changes.
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) hands: HashMap<LinkId, Hands>,
    /// Serves the status page.
    pub(super) admin: Option<Hand>,
}

/// The tasks of a link.
#[derive(Debug, Default)]
pub(super) struct Hands {
    pub(super) sink: Option<Hand>,
    pub(super) source: Option<Hand>,
}

/// Why a reload ended before its end. Nothing has changed.
struct Trouble {
    code: u8,
    text: String,
    /// It may do so by itself.
    passes: bool,
}

impl Trouble {
    /// The file says something that cannot be.
    fn file(text: impl Into<String>) -> Self {
        Self { code: 65, text: text.into(), passes: false }
    }
}

/// Reloads when it is asked to, and with `reload: watch` when files change, until `stop`.
pub(super) async fn follow(shared: Arc<Shared>, stop: CancellationToken) {
    let mut again = None;
    loop {
        let by = tokio::select! {
            () = stop.cancelled() => return,
            () = shared.asked.notified() => Some("SIGHUP"),
            () = tokio::time::sleep(LOOK) => shared.by_itself(again).await,
        };
        // Not within the select: a reload that was begun is brought to its end.
        if let Some(by) = by {
            let report = shared.reload(by).await;
            again = report.may_pass_later.then(|| shared.clock.now() + AGAIN);
        }
    }
}

impl Shared {
    /// Why to reload without having been asked. `again`: what was refused is to be tried then.
    async fn by_itself(&self, again: Option<Instant>) -> Option<&'static str> {
        let watches = self.running.lock().await.as_ref().is_some_and(|own| own.config.reload == ReloadWhen::Changed);
        let origin = self.origin.clone().filter(|_| watches)?;
        if again.is_some_and(|again| self.clock.now() >= again) {
            return Some("another try");
        }
        let is_due = tokio::task::spawn_blocking(move || origin.is_due()).await.unwrap_or(false);
        is_due.then_some("a change of its files")
    }

    /// Reads the configuration again and puts it in force, or says why not.
    pub(super) async fn reload(self: &Arc<Self>, by: &str) -> ReloadReport {
        let mut running = self.running.lock().await;
        let report = match running.as_mut().filter(|_| !self.is_stopping()) {
            Some(running) => self.reload_into(running).await,
            None => {
                let problem = Some("the gateway is starting or stopping: nothing was changed".to_owned());
                ReloadReport { code: 69, problem, may_pass_later: true, ..ReloadReport::default() }
            }
        };
        drop(running);
        if report.problem.is_some() {
            self.read_files_again().await;
        }
        self.note(by, &report);
        report
    }

    async fn reload_into(self: &Arc<Self>, running: &mut Running) -> ReloadReport {
        let refused = |trouble: Trouble| ReloadReport {
            code: trouble.code,
            may_pass_later: trouble.passes,
            problem: Some(trouble.text),
            ..ReloadReport::default()
        };
        let Some(origin) = self.origin.clone() else {
            return refused(Trouble::file("this gateway was not started from a file"));
        };
        let loaded = match tokio::task::spawn_blocking(move || origin.load()).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(mistakes)) => return refused(Trouble::file(mistakes)),
            Err(panic) => return refused(Trouble { code: 70, text: panic.to_string(), passes: true }),
        };
        let Loaded { config, warnings } = loaded;
        if let Some(why) = needs_restart(&running.config, &config) {
            return refused(Trouble::file(why));
        }
        let (outline, before) = (running.config.outline.clone(), self.parts());
        let others = others(&running.config, &config);
        match self.apply(running, config).await {
            Ok(carried) => {
                self.read_files_again().await;
                let (mut notes, not_done) = told::of(&before, &self.parts(), &carried);
                told::add_files(&self.broker.take_reread(), &mut notes);
                let changes = outline.changes(&running.config.outline, &others, &notes);
                ReloadReport { changes, warnings: warnings + &not_done, ..ReloadReport::default() }
            }
            Err(trouble) => refused(trouble),
        }
    }

    /// The files that parts read by themselves.
    async fn read_files_again(&self) {
        let broker = Arc::clone(&self.broker);
        if tokio::task::spawn_blocking(move || broker.reload()).await.is_err() {
            tracing::error!("reading files again panicked");
        }
    }

    /// For the log and `status`.
    fn note(&self, by: &str, report: &ReloadReport) {
        let mut status = self.reloads.lock();
        status.last_ms = Some(self.clock.wall().0);
        status.error.clone_from(&report.problem);
        match &report.problem {
            None => status.taken += 1,
            Some(_) => status.refused += 1,
        }
        drop(status);
        if let Some(problem) = &report.problem {
            tracing::error!(by, "routes.yaml was read again and is not in force; nothing has changed:");
            problem.lines().filter(|line| !line.trim().is_empty()).take(LINES_LOGGED).for_each(|line| {
                tracing::error!("{line}");
            });
            return;
        }
        tracing::info!(by, changes = report.changes.len(), "routes.yaml was read again and is in force");
        report.changes.iter().for_each(|change| tracing::info!("{change}"));
        report.warnings.lines().filter(|line| line.contains(": warning: ")).for_each(|line| tracing::warn!("{line}"));
    }
}

/// What cannot change while the gateway runs.
fn needs_restart(old: &Config, new: &Config) -> Option<String> {
    let told = |key: &str, old: String, new: String| {
        format!("`{key}` is `{old}` and would be `{new}`: that needs a restart; nothing was changed")
    };
    if old.site != new.site {
        return Some(told("site", old.site.to_string(), new.site.to_string()));
    }
    if old.data_dir != new.data_dir {
        return Some(told("data_dir", old.data_dir.display().to_string(), new.data_dir.display().to_string()));
    }
    None
}

/// What is another by its values, however it is written.
fn others(old: &Config, new: &Config) -> Vec<Entry> {
    let is_same = |a: &links::Config, b: &links::Config| a.kind == b.kind;
    let links = new.links.iter().filter(|link| {
        let before = old.links.iter().find(|old| old.id == link.id);
        before.is_some_and(|before| !is_same(before, link))
    });
    let broker = (old.broker.auth != new.broker.auth).then_some(Entry::Broker);
    links.map(|link| Entry::Link(link.id.to_string())).chain(broker).collect()
}
