//! Doing it: from what runs to what shall run, or back.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::super::build::{BuildError, bind_admin, open_lanes, open_orphan};
use super::super::crew::Hand;
use super::super::heir::Holds;
use super::super::rename::{self, Carried, Moves, Rename};
use super::super::replay::Paused;
use super::super::{Config, Link, Orphan, Parts, Shared, files};
use super::steps::{Obstacle, Step, Steps, There, Why};
use super::{Hands, Running, Trouble};
use crate::buffer::{Lanes, OpenError};
use crate::links;
use crate::router::{LinkId, Table};
use crate::telemetry::board::LinkState;

/// How long a half of a link may take to end: as its own stages, and a little more.
const HALF_LIMIT: Duration = Duration::from_secs(5);
/// How long what has room in a buffer may keep it from being closed: a QoS 2 message waits for the broker's store, a dead letter that is
/// sent again for its disk.
const SEAL_LIMIT: Duration = Duration::from_secs(10);
/// How long what is in flight of a buffer that is to give way may take to be confirmed, while offers to it wait.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const SETTLE_LOOK: Duration = Duration::from_millis(10);

/// Logs that were opened, or why one could not be, and what was done until then.
#[derive(Default)]
struct Opened {
    /// By the new link.
    lanes: HashMap<LinkId, Option<Lanes>>,
    moved: Moves,
    carried: Vec<Carried>,
    /// Folders that were not there before.
    made: Vec<PathBuf>,
    error: Option<BuildError>,
}

/// What had to end for a reload.
struct Ended {
    /// Links with the halves that were ended.
    halves: Vec<(LinkId, bool, bool)>,
    replays: Vec<Paused>,
}

impl Shared {
    /// Puts `config` in force, or leaves everything as it was.
    /// Answers which buffers have got another name.
    pub(super) async fn apply(
        self: &Arc<Self>,
        running: &mut Running,
        config: Config,
    ) -> Result<Vec<Carried>, Trouble> {
        self.try_orphans_again().await;
        let parts = self.parts();
        let there = there(&parts, &config.links);
        let steps = Steps::of(&there, &config.links).map_err(|obstacle| self.refused(&parts, obstacle))?;
        let page = if config.admin == running.config.admin {
            None
        } else {
            let bound = bind_admin(config.admin).await;
            Some(bound.map_err(|error| Trouble::of(&error))?)
        };
        let broker = if config.broker == running.config.broker {
            None
        } else {
            let prepared = self.broker.prepare(config.broker.clone()).await.map_err(BuildError::from);
            Some(prepared.map_err(|error| Trouble::of(&error))?)
        };
        self.let_settle(&parts, &steps).await.map_err(|obstacle| self.refused(&parts, obstacle))?;
        let ended = self.end(running, &parts, &steps).await;
        let (links, orphans, carried) = match self.exchange(&parts, &steps).await {
            Ok(next) => next,
            Err((trouble, back)) => {
                self.publish(Parts { links: back.0, orphans: back.1, ..parts.as_it_is() }, None);
                self.begin(running, &ended.halves);
                self.go_on_with_replays(ended.replays, |_same| None);
                return Err(trouble);
            }
        };
        let mut next = Parts { links, orphans, ..parts.as_it_is() };
        let page = page.map(|page| {
            next.admin = page.as_ref().and_then(|listener| listener.local_addr().ok());
            std::mem::replace(&mut running.admin, page.map(|listener| self.serve_page(listener)))
        });
        let table = (running.config.routes != config.routes).then(|| Table::new(config.routes.clone()));
        self.publish(next, table);
        if let Some(prepared) = broker {
            files::allow(&config.broker);
            self.broker.change(prepared).await;
            self.parts.store(Arc::new(Parts { listeners: self.broker.listening(), ..self.parts().as_it_is() }));
        }
        let begin = steps.links.iter().map(|step| (step.config.id.clone(), step.does.sink, step.does.source));
        self.begin(running, &begin.collect::<Vec<_>>());
        self.go_on_with_replays(ended.replays, |id| steps.new_name(id).cloned());
        if let Some(Some(hand)) = page {
            hand.stop(HALF_LIMIT).await;
        }
        self.links_changed.notify_one();
        self.hub.memory().limit_to(config.max_memory);
        running.config = config;
        Ok(carried)
    }

    /// Where a buffer is to become that of a link that has one of its own: has what is in flight of both confirmed, while offers to them
    /// wait, until one of them owes nothing; they stay sealed, so that it is known then what becomes of them.
    async fn let_settle(&self, parts: &Parts, steps: &Steps<'_>) -> Result<(), Obstacle> {
        let both = |step: &Step<'_>| {
            let old = step.adopts.clone()?;
            let (own, gives) = (parts.log(&step.config.id)?, parts.log(&old)?);
            Some((Obstacle { link: step.config.id.clone(), old, why: Why::Conflict }, [own, gives]))
        };
        let pairs: Vec<(Obstacle, [&Lanes; 2])> = steps.links.iter().filter_map(both).collect();
        let runs = |lanes: &&Lanes| {
            parts.links.iter().any(|link| link.lanes.as_ref().is_some_and(|own| own.id() == lanes.id()))
        };
        let running: Vec<&Lanes> = pairs.iter().flat_map(|(_, both)| *both).filter(runs).collect();
        if running.is_empty() {
            return Ok(());
        }
        self.hub.announce();
        let owe = |both: &[&Lanes; 2]| both.iter().all(|lanes| rename::holds(lanes) == Holds::Owed);
        let settled = async {
            join_all(running.iter().map(|lanes| lanes.seal())).await;
            while pairs.iter().any(|(_, both)| owe(both)) {
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        if tokio::time::timeout(SETTLE_LIMIT, settled).await.is_ok() {
            return Ok(());
        }
        running.iter().for_each(|lanes| lanes.unseal());
        self.publish(parts.as_it_is(), None);
        let owes = pairs.iter().find(|(_, both)| owe(both)).or_else(|| pairs.first());
        owes.map_or(Ok(()), |(obstacle, _)| Err(obstacle.clone()))
    }

    fn refused(&self, parts: &Parts, Obstacle { link, old, why }: Obstacle) -> Trouble {
        let folder = |id: &LinkId| self.data_dir.join("links").join(id.as_str());
        match why {
            Why::Conflict => {
                let (from, to) = (folder(&old), folder(&link));
                Trouble::of(&BuildError::Renamed { link, old, from, to })
            }
            Why::Unreadable => {
                let orphan = parts.orphans.iter().find(|orphan| orphan.name == old.as_str());
                let error = orphan.and_then(|orphan| orphan.lanes.as_ref().err());
                let error = std::io::Error::other(error.map_or("it is closed", String::as_str).to_owned());
                let error = OpenError::Io { path: folder(&old), error };
                Trouble::of(&BuildError::Heir { link, old, error })
            }
            Why::OtherKind { was, is } => Trouble::of(&BuildError::OtherKind { link, old, was, is }),
        }
    }

    /// What could not be opened may have been made good.
    async fn try_orphans_again(&self) {
        let parts = self.parts();
        if parts.orphans.iter().all(|orphan| orphan.lanes.is_ok()) {
            return;
        }
        let (orphans, folder, clock) = (parts.orphans.clone(), self.data_dir.join("links"), Arc::clone(&self.clock));
        let again = move |orphan: Arc<Orphan>| match &orphan.lanes {
            Err(_) if folder.join(&orphan.name).is_dir() => Arc::new(open_orphan(&folder.join(&orphan.name), &clock)),
            Ok(_) | Err(_) => orphan,
        };
        let opened = tokio::task::spawn_blocking(move || orphans.into_iter().map(again).collect());
        if let Ok(orphans) = opened.await {
            self.parts.store(Arc::new(Parts { orphans, ..parts.as_it_is() }));
        }
    }

    /// Ends the halves of links that go or begin anew, and stops the replays that read or fill their buffers.
    async fn end(&self, running: &mut Running, parts: &Parts, steps: &Steps<'_>) -> Ended {
        let mut ending: Vec<Hand> = Vec::new();
        let mut halves = Vec::new();
        for link in &parts.links {
            let id = &link.config.id;
            let (sink, source) = steps.ends(id);
            let Some(hands) = running.hands.get_mut(id).filter(|_| sink || source) else { continue };
            ending.extend(hands.sink.take_if(|_| sink));
            ending.extend(hands.source.take_if(|_| source));
            halves.push((id.clone(), sink, source));
        }
        let halted = join_all(ending.into_iter().map(|hand| hand.stop(HALF_LIMIT)));
        let (_ended, replays) = tokio::join!(halted, self.pause_replays(|id| steps.touches(id)));
        Ended { halves, replays }
    }

    /// Starts halves of links as they are now.
    fn begin(&self, running: &mut Running, halves: &[(LinkId, bool, bool)]) {
        let parts = self.parts();
        running.hands.retain(|id, _| parts.links.iter().any(|link| link.config.id == *id));
        for (id, sink, source) in halves {
            let Some(link) = parts.links.iter().find(|link| link.config.id == *id) else { continue };
            let Hands { sink, source } = self.start_link(link, *sink, *source);
            let own = running.hands.entry(id.clone()).or_default();
            own.sink = sink.or_else(|| own.sink.take());
            own.source = source.or_else(|| own.source.take());
        }
    }

    /// Offers, `status` and tools see these from now on.
    fn publish(&self, parts: Parts, table: Option<Table>) {
        let logs = parts.links.iter().filter_map(|link| Some((link.config.id.clone(), link.lanes.clone()?)));
        self.hub.replace(table, logs.collect());
        parts.links.iter().for_each(|link| link.report_to(&self.links_changed));
        self.parts.store(Arc::new(parts));
    }

    /// Closes, moves and opens buffers. Answers the links and orphans that there are then; on an error those that were, opened again.
    async fn exchange(&self, parts: &Parts, steps: &Steps<'_>) -> Result<Exchanged, (Trouble, LinksAndOrphans)> {
        let closing: Vec<&Arc<Link>> = parts.links.iter().filter(|link| steps.closes(&link.config.id)).collect();
        let logs: Vec<&Lanes> = closing.iter().filter_map(|link| link.lanes.as_ref()).collect();
        if !logs.is_empty() {
            // On each way from here offers see the links that there are then.
            self.hub.announce();
        }
        let sealed = join_all(logs.iter().map(|lanes| lanes.seal()));
        if tokio::time::timeout(SEAL_LIMIT, sealed).await.is_err() {
            logs.iter().for_each(|lanes| lanes.unseal());
            let names: Vec<_> = closing.iter().map(|link| format!("`{}`", link.config.id)).collect();
            let text = format!(
                "messages that have room in a buffer ({}) have not come into it: the broker's store or a disk is too slow; nothing was changed",
                names.join(", ")
            );
            return Err((Trouble { code: 69, text, passes: true }, (parts.links.clone(), parts.orphans.clone())));
        }
        let left = parts.orphans.iter().filter(|orphan| steps.closes(&LinkId::new(&orphan.name)));
        let orphaned = left.filter_map(|orphan| orphan.lanes.as_ref().ok());
        join_all(logs.iter().copied().chain(orphaned).map(Lanes::close)).await;
        let (folder, clock) = (self.data_dir.join("links"), Arc::clone(&self.clock));
        let wanted: Vec<_> = steps.links.iter().filter(|step| step.does.opens).map(Wanted::of).collect();
        let names = rename::names(steps.links.iter().map(|step| step.config));
        let open = move || open_all(&Rename { folder: &folder, names: &names, clock: &clock }, &wanted);
        let opened = tokio::task::spawn_blocking(open).await;
        let mut opened = opened.unwrap_or_else(|ended| Opened::failed(&ended.to_string()));
        if let Some(error) = opened.error.take() {
            return Err((Trouble::of(&error), self.restore(parts, steps, opened).await));
        }
        let links = steps.links.iter().map(|step| {
            let before = step.before.as_ref().and_then(|id| parts.links.iter().find(|link| link.config.id == *id));
            let kept = || before.and_then(|link| link.lanes.clone());
            let lanes = opened.lanes.remove(&step.config.id).unwrap_or_else(kept);
            Arc::new(Link::new(step.config.clone(), lanes, before.map(|link| &**link), &self.clock))
        });
        let links: Vec<_> = links.collect();
        let orphans = self.orphans_after(parts, steps, &opened.carried).await;
        Ok((links, orphans, opened.carried))
    }

    /// Orphans that were not touched, and what else is there now that no link has: orphans that were closed and have stayed all the same, the
    /// buffers of links that are no more, and those that have given way.
    async fn orphans_after(&self, parts: &Parts, steps: &Steps<'_>, carried: &[Carried]) -> Vec<Arc<Orphan>> {
        let (closed, mut orphans): (Vec<_>, Vec<_>) =
            parts.orphans.iter().cloned().partition(|orphan| steps.closes(&LinkId::new(&orphan.name)));
        let closed: Vec<_> = closed.iter().map(|orphan| LinkId::new(&orphan.name)).collect();
        let left = steps.gone.iter().chain(&closed).chain(carried.iter().filter_map(|carried| carried.aside.as_ref()));
        let left = left.filter(|id| steps.links.iter().all(|step| step.config.id != **id));
        let folders = left.map(|id| self.data_dir.join("links").join(id.as_str()));
        let folders: Vec<PathBuf> = folders.filter(|folder| folder.is_dir()).collect();
        let clock = Arc::clone(&self.clock);
        let open = move || folders.iter().map(|folder| Arc::new(open_orphan(folder, &clock))).collect::<Vec<_>>();
        orphans.extend(tokio::task::spawn_blocking(open).await.unwrap_or_default());
        orphans
    }

    /// Undoes what was done to folders, and opens again what was closed.
    async fn restore(&self, parts: &Parts, steps: &Steps<'_>, opened: Opened) -> LinksAndOrphans {
        let Opened { lanes, moved, carried: _, made, error: _ } = opened;
        join_all(lanes.values().flatten().map(Lanes::close)).await;
        drop(lanes);
        let clock = Arc::clone(&self.clock);
        let was = |id: &LinkId| steps.closes(id);
        let links: Vec<(Arc<Link>, bool)> =
            parts.links.iter().map(|link| (Arc::clone(link), was(&link.config.id) && link.lanes.is_some())).collect();
        let folder = self.data_dir.join("links");
        let orphans: Vec<(Arc<Orphan>, bool)> =
            parts.orphans.iter().map(|orphan| (Arc::clone(orphan), was(&LinkId::new(&orphan.name)))).collect();
        let kept = (parts.links.clone(), parts.orphans.clone());
        let reopen = move || {
            for made in made {
                drop(fs::remove_dir_all(made));
            }
            for (from, to) in moved.iter().rev() {
                if let Err(error) = fs::rename(to, from) {
                    tracing::error!(%error, folder = %to.display(), "a buffer could not be moved back");
                }
            }
            if !moved.is_empty()
                && let Err(error) = rename::sync(&folder)
            {
                tracing::warn!(%error, folder = %folder.display(), "that buffers were moved back is not synced");
            }
            let links = links.into_iter().map(|(link, is_closed)| {
                if !is_closed {
                    return link;
                }
                Arc::new(match open_lanes(&link.config, &clock) {
                    Ok(lanes) => Link::new(link.config.clone(), lanes, Some(&link), &clock),
                    Err(error) => {
                        tracing::error!(%error, "a buffer could not be opened again: its offers are refused until a reload or a restart can open it");
                        Link::without_buffer(&link, &error, &clock)
                    }
                })
            });
            let links: Vec<_> = links.collect();
            let again = |(orphan, is_closed): (Arc<Orphan>, bool)| {
                if is_closed { Arc::new(open_orphan(&folder.join(&orphan.name), &clock)) } else { orphan }
            };
            (links, orphans.into_iter().map(again).collect())
        };
        tokio::task::spawn_blocking(reopen).await.unwrap_or(kept)
    }
}

type LinksAndOrphans = (Vec<Arc<Link>>, Vec<Arc<Orphan>>);
/// The same, and what has got another name.
type Exchanged = (Vec<Arc<Link>>, Vec<Arc<Orphan>>, Vec<Carried>);

impl Parts {
    /// The open log of a link, or of one that is no more.
    fn log(&self, id: &LinkId) -> Option<&Lanes> {
        let own = self.links.iter().find(|link| link.config.id == *id).and_then(|link| link.lanes.as_ref());
        let orphan = || self.orphans.iter().find(|orphan| orphan.name == id.as_str())?.lanes.as_ref().ok();
        own.or_else(orphan)
    }

    fn as_it_is(&self) -> Self {
        let (links, orphans) = (self.links.clone(), self.orphans.clone());
        Self { links, orphans, listeners: self.listeners.clone(), admin: self.admin }
    }
}

/// A log to be opened, apart from what it is borrowed from.
struct Wanted {
    config: links::Config,
    adopts: Option<LinkId>,
}

impl Wanted {
    fn of(step: &Step<'_>) -> Self {
        Self { config: step.config.clone(), adopts: step.adopts.clone() }
    }
}

impl Opened {
    fn failed(text: &str) -> Self {
        let error = std::io::Error::other(text.to_owned());
        Self { error: Some(BuildError::Data { path: PathBuf::from("links"), error }), ..Self::default() }
    }
}

/// Moves all folders, then opens all logs; up to the first that fails. What was done until then is known also after a panic.
fn open_all(rename: &Rename<'_>, wanted: &[Wanted]) -> Opened {
    let mut opened = Opened::default();
    let error = match catch_unwind(AssertUnwindSafe(|| open_each(rename, wanted, &mut opened))) {
        Ok(done) => done.err(),
        Err(_panic) => Opened::failed("opening the buffers has failed; the log has more").error,
    };
    Opened { error, ..opened }
}

fn open_each(rename: &Rename<'_>, wanted: &[Wanted], opened: &mut Opened) -> Result<(), BuildError> {
    for Wanted { config, adopts } in wanted {
        let Some(old) = adopts else { continue };
        opened.carried.extend(rename.carry(config, old, &mut opened.moved)?);
    }
    for Wanted { config, .. } in wanted {
        if !config.buffer.dir.exists() {
            opened.made.push(config.buffer.dir.clone());
        }
        let lanes = open_lanes(config, rename.clock)?;
        opened.lanes.insert(config.id.clone(), lanes);
    }
    Ok(())
}

impl Trouble {
    fn of(error: &BuildError) -> Self {
        let code = error.exit_code();
        // 65 is what the file says; but that both owe something passes when one of them is delivered.
        let passes = code != 65 || matches!(error, BuildError::Renamed { .. });
        Self { code, text: format!("{error}; nothing was changed"), passes }
    }
}

/// The buffers of links and orphans as they are.
fn there<'p>(parts: &'p Parts, new: &[links::Config]) -> Vec<There<'p>> {
    let links = parts.links.iter().map(|link| There {
        id: link.config.id.clone(),
        kind: Some(link.config.kind.name()),
        config: Some(&link.config),
        has_log: link.lanes.is_some(),
        is_readable: true,
        holds: link.lanes.as_ref().map_or(Holds::Nothing, rename::holds),
        may_settle: link.lanes.as_ref().is_some_and(|lanes| may_settle(link, lanes)),
        has_lanes: link.lanes.as_ref().is_some_and(|lanes| {
            let next = new.iter().find(|next| next.id == link.config.id);
            next.is_none_or(|next| lanes.has_all(&next.lanes))
        }),
    });
    // What an orphan that does not open holds is not known: it is as if something were owed.
    let orphans = parts.orphans.iter().map(|orphan| There {
        id: LinkId::new(&orphan.name),
        kind: orphan.kind.as_deref(),
        config: None,
        has_log: true,
        is_readable: orphan.lanes.is_ok(),
        holds: orphan.lanes.as_ref().map_or(Holds::Owed, rename::holds),
        may_settle: false,
        has_lanes: true,
    });
    links.chain(orphans).collect()
}

/// Whether what waits in a running link's buffer is what its remote is just confirming, see [`Shared::let_settle`].
fn may_settle(link: &Link, lanes: &Lanes) -> bool {
    let is_moving = link.sink.as_ref().is_some_and(|sink| sink.state() == LinkState::Online);
    let few = u64::try_from(links::window(&link.config)).unwrap_or(u64::MAX);
    is_moving && !rename::has_letters(lanes) && lanes.ledger().buffered <= few
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread::{self, ThreadId};
    use std::time::Instant;

    use super::super::super::build::keeping;
    use super::super::steps::tests::config;
    use super::*;
    use crate::clock::{self, Clock, Moment};

    /// A clock that panics on this thread once the folder is there.
    #[derive(Debug)]
    struct Trap {
        folder: PathBuf,
        thread: ThreadId,
    }

    impl Clock for Trap {
        fn now(&self) -> Instant {
            assert!(thread::current().id() != self.thread || !self.folder.exists(), "the trap of a test");
            clock::now()
        }

        fn moment(&self) -> Moment {
            clock::moment()
        }
    }

    fn wanted(folder: &Path, name: &str, adopts: Option<&str>) -> Wanted {
        let buffer = keeping(&folder.join(name));
        Wanted { config: links::Config { buffer, ..config(name) }, adopts: adopts.map(LinkId::new) }
    }

    #[test]
    fn r34_what_was_done_before_a_panic_is_known_and_can_be_undone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let (logs, _) = Lanes::open(&keeping(&folder.join("old")), 16, &[], &clock::system()).unwrap();
        logs.close_here();
        let clock: Arc<dyn Clock> = Arc::new(Trap { folder: folder.join("third"), thread: thread::current().id() });
        let rename = Rename { folder, names: &[], clock: &clock };
        let all = [wanted(folder, "new", Some("old")), wanted(folder, "second", None), wanted(folder, "third", None)];
        let Opened { lanes, moved, carried, made, error } = open_all(&rename, &all);
        assert!(error.is_some_and(|error| error.to_string().contains("opening the buffers has failed")));
        assert_eq!(moved, [(folder.join("old"), folder.join("new"))]);
        assert_eq!(carried.iter().map(|carried| carried.old.as_str()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(made, [folder.join("second"), folder.join("third")]);
        let mut opened: Vec<_> = lanes.keys().map(LinkId::as_str).collect();
        opened.sort_unstable();
        assert_eq!(opened, ["new", "second"]);
        // They can be closed, and opened again by those who had them.
        lanes.values().flatten().for_each(Lanes::close_here);
        for name in ["new", "second", "third"] {
            let (logs, _) = Lanes::open(&keeping(&folder.join(name)), 16, &[], &clock::system()).unwrap();
            logs.close_here();
        }
    }
}
