//! Doing it: from what runs to what shall run, or back.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::super::build::{BuildError, bind_admin, open_lanes, open_orphan};
use super::super::crew::Hand;
use super::super::heir::Holds;
use super::super::rename::{self, Carried, Moves, Rename};
use super::super::replay::{Paused, aside};
use super::super::{Config, Link, Orphan, Parts, Shared};
use super::steps::{Conflict, Step, Steps, There};
use super::{Hands, Running, Trouble};
use crate::buffer::Lanes;
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
        let parts = self.parts();
        let there = there(&parts, &config.links);
        let steps = Steps::of(&there, &config.links).map_err(|conflict| self.conflict(conflict))?;
        let page = if config.admin == running.config.admin {
            None
        } else {
            let bound = bind_admin(config.admin).await;
            Some(bound.map_err(|error| Trouble { code: error.exit_code(), text: told(&error) })?)
        };
        let broker = if config.broker == running.config.broker {
            None
        } else {
            let prepared = self.broker.prepare(config.broker.clone()).await.map_err(BuildError::from);
            Some(prepared.map_err(|error| Trouble { code: error.exit_code(), text: told(&error) })?)
        };
        self.let_settle(&parts, &steps).await.map_err(|conflict| self.conflict(conflict))?;
        let ended = self.end(running, &parts, &steps).await;
        let (links, orphans, carried) = match self.exchange(&parts, &steps).await {
            Ok(next) => next,
            Err((trouble, back)) => {
                self.publish(Parts { links: back.0, orphans: back.1, ..parts.as_it_is() }, None);
                self.begin(running, &ended.halves);
                self.go_on_with_replays(ended.replays, |_same| None, |_same| None);
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
            self.broker.change(prepared).await;
            self.parts.store(Arc::new(Parts { listeners: self.broker.listening(), ..self.parts().as_it_is() }));
        }
        let begin = steps.links.iter().map(|step| (step.config.id.clone(), step.does.sink, step.does.source));
        self.begin(running, &begin.collect::<Vec<_>>());
        let new_name = |id: &LinkId| steps.new_name(id).cloned();
        self.go_on_with_replays(ended.replays, |id| aside(&carried, id).or_else(|| new_name(id)), new_name);
        if let Some(Some(hand)) = page {
            hand.stop(HALF_LIMIT).await;
        }
        self.links_changed.notify_one();
        self.hub.memory().limit_to(config.max_memory);
        running.config = config;
        Ok(carried)
    }

    /// Has what is in flight of buffers that give way confirmed, while offers to them wait; they stay sealed. What is not confirmed in
    /// time is owed.
    async fn let_settle(&self, parts: &Parts, steps: &Steps<'_>) -> Result<(), Conflict> {
        let giving = parts.links.iter().filter(|link| steps.gives_way(&link.config.id));
        let giving: Vec<(&LinkId, &Lanes)> =
            giving.filter_map(|link| Some((&link.config.id, link.lanes.as_ref()?))).collect();
        if giving.is_empty() {
            return Ok(());
        }
        self.hub.announce();
        let settled = async {
            for (_, lanes) in &giving {
                lanes.seal().await;
                while rename::holds(lanes) == Holds::Owed {
                    tokio::time::sleep(SETTLE_LOOK).await;
                }
            }
        };
        if tokio::time::timeout(SETTLE_LIMIT, settled).await.is_ok() {
            return Ok(());
        }
        giving.iter().for_each(|(_, lanes)| lanes.unseal());
        self.publish(parts.as_it_is(), None);
        let owes = giving.iter().find(|(_, lanes)| rename::holds(lanes) == Holds::Owed).or_else(|| giving.first());
        let step = steps.links.iter().find(|step| owes.is_some_and(|(id, _)| step.config.id == **id));
        let found = step.and_then(|step| Some(Conflict { link: step.config.id.clone(), old: step.adopts.clone()? }));
        found.map_or(Ok(()), Err)
    }

    fn conflict(&self, Conflict { link, old }: Conflict) -> Trouble {
        let folder = |id: &LinkId| self.data_dir.join("links").join(id.as_str());
        let (from, to) = (folder(&old), folder(&link));
        let error = BuildError::Renamed { link, old, from, to };
        Trouble { code: error.exit_code(), text: told(&error) }
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
            return Err((Trouble { code: 69, text }, (parts.links.clone(), parts.orphans.clone())));
        }
        let left = parts.orphans.iter().filter(|orphan| steps.closes(&LinkId::new(&orphan.name)));
        let orphaned = left.filter_map(|orphan| orphan.lanes.as_ref().ok());
        join_all(logs.iter().copied().chain(orphaned).map(Lanes::close)).await;
        let (folder, clock) = (self.data_dir.join("links"), Arc::clone(&self.clock));
        let wanted: Vec<_> = steps.links.iter().filter(|step| step.does.opens).map(Wanted::of).collect();
        let names: Vec<_> = steps.links.iter().map(|step| step.config.id.clone()).collect();
        let open = move || open_all(&Rename { folder: &folder, names: &names, clock: &clock }, wanted);
        let opened = tokio::task::spawn_blocking(open).await;
        let mut opened = opened.unwrap_or_else(|panic| Opened::failed(&panic.to_string()));
        if let Some(error) = opened.error.take() {
            let trouble = Trouble { code: error.exit_code(), text: told(&error) };
            return Err((trouble, self.restore(parts, steps, opened).await));
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

    /// Orphans that nobody has taken up, the buffers of links that are no more, and those that have given way.
    async fn orphans_after(&self, parts: &Parts, steps: &Steps<'_>, carried: &[Carried]) -> Vec<Arc<Orphan>> {
        let stays = |orphan: &&Arc<Orphan>| !steps.closes(&LinkId::new(&orphan.name));
        let mut orphans: Vec<_> = parts.orphans.iter().filter(stays).map(Arc::clone).collect();
        let left = steps.gone.iter().chain(carried.iter().filter_map(|carried| carried.aside.as_ref()));
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

/// Moves all folders, then opens all logs; up to the first that fails.
fn open_all(rename: &Rename<'_>, wanted: Vec<Wanted>) -> Opened {
    let mut opened = Opened::default();
    for Wanted { config, adopts } in &wanted {
        let Some(old) = adopts else { continue };
        match rename.carry(&config.id, old, &mut opened.moved) {
            Ok(carried) => opened.carried.extend(carried),
            Err(error) => {
                opened.error = Some(error);
                return opened;
            }
        }
    }
    for Wanted { config, .. } in wanted {
        if !config.buffer.dir.exists() {
            opened.made.push(config.buffer.dir.clone());
        }
        match open_lanes(&config, rename.clock) {
            Ok(lanes) => drop(opened.lanes.insert(config.id.clone(), lanes)),
            Err(error) => {
                opened.error = Some(error);
                return opened;
            }
        }
    }
    opened
}

fn told(error: &BuildError) -> String {
    format!("{error}; nothing was changed")
}

/// The buffers of links and orphans as they are.
fn there<'p>(parts: &'p Parts, new: &[links::Config]) -> Vec<There<'p>> {
    let links = parts.links.iter().map(|link| There {
        id: link.config.id.clone(),
        config: Some(&link.config),
        has_log: link.lanes.is_some(),
        holds: link.lanes.as_ref().map_or(Holds::Nothing, |lanes| holds(link, lanes)),
        has_lanes: link.lanes.as_ref().is_some_and(|lanes| {
            let next = new.iter().find(|next| next.id == link.config.id);
            next.is_none_or(|next| lanes.has_all(&next.lanes))
        }),
    });
    // What an orphan that does not open holds is not known: it is as if something were owed.
    let orphans = parts.orphans.iter().map(|orphan| There {
        id: LinkId::new(&orphan.name),
        config: None,
        has_log: true,
        holds: orphan.lanes.as_ref().map_or(Holds::Owed, rename::holds),
        has_lanes: true,
    });
    links.chain(orphans).collect()
}

/// What a running link's buffer holds: what its remote is just confirming counts as settled, see [`Shared::let_settle`].
fn holds(link: &Link, lanes: &Lanes) -> Holds {
    let holds = rename::holds(lanes);
    let is_moving = link.sink.as_ref().is_some_and(|sink| sink.state() == LinkState::Online);
    let few = u64::try_from(links::window(&link.config)).unwrap_or(u64::MAX);
    let letters = rename::has_letters(lanes);
    let passes = is_moving && !letters && lanes.ledger().buffered <= few;
    if holds == Holds::Owed && passes { Holds::Settled } else { holds }
}
