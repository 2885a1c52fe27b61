//! R34: the buffer of a link that has another name now. It moves by a rename of its folder, made durable before anything is
//! opened; so after a kill at any moment it is there under one of the two names, whole.
//!
//! Where the link has a buffer of its own already, [`Heir`] says which of the two it has then. One that gives way is deleted only if it
//! holds nothing at all; else it is kept, under the first free name of `LINK_1`, `LINK_2`, .. It moves first: a kill between the
//! two renames leaves the link without a buffer, and the next start goes on with the second. A buffer that cannot be opened is not moved.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use super::build::{BuildError, keeping, kept_kind};
use super::heir::Heir;
pub(super) use super::heir::Holds;
use crate::buffer::{Lanes, Ledger, OpenError};
use crate::clock::Clock;
use crate::links;
use crate::router::LinkId;

/// A buffer that a link has taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) link: LinkId,
    pub(super) old: LinkId,
    /// What the link's own is called now.
    pub(super) aside: Option<LinkId>,
}

/// Folders that were moved: from, to.
pub(super) type Moves = Vec<(PathBuf, PathBuf)>;

/// Where, and among whom.
pub(super) struct Rename<'a> {
    /// `data_dir/links`.
    pub(super) folder: &'a Path,
    /// See [`names`].
    pub(super) names: &'a [LinkId],
    pub(super) clock: &'a Arc<dyn Clock>,
}

/// What a buffer that makes room is not called: names that links of the file have, or had before.
pub(super) fn names<'l>(links: impl IntoIterator<Item = &'l links::Config>) -> Vec<LinkId> {
    links.into_iter().flat_map(|link| [Some(link.id.clone()), link.renamed_from.clone()]).flatten().collect()
}

/// Does it for every link with `renamed_from`, under the data folder's lock. What cannot become one is said and stays as it is: a gateway
/// that does not start, for a key that was left in the file, would be worse.
pub(super) fn carry(config: &Config, clock: &Arc<dyn Clock>) -> Result<Vec<Carried>, BuildError> {
    let folder = config.data_dir.join("links");
    let names = names(&config.links);
    let rename = Rename { folder: &folder, names: &names, clock };
    let mut carried = Vec::new();
    for link in &config.links {
        let Some(old) = &link.renamed_from else { continue };
        if folder.join(old.as_str()).is_dir() {
            match rename.carry(link, old, &mut Moves::new()) {
                Ok(done) => carried.extend(done),
                Err(error @ (BuildError::Renamed { .. } | BuildError::Heir { .. } | BuildError::OtherKind { .. })) => {
                    tracing::error!(link = %link.id, %old, "the buffer of the old name stays where it is, as an orphan: {error}");
                }
                Err(error) => return Err(error),
            }
        } else if link.buffer.dir.is_dir() {
            tracing::info!(link = %link.id, %old, "nothing is buffered under the old name: `renamed_from` can go");
        } else if link.has_sink {
            let without_a_link = rename.strays(&config.links);
            tracing::warn!(link = %link.id, %old, ?without_a_link, "`renamed_from`: no buffer has the old name, so none is taken over");
        }
    }
    Ok(carried)
}

impl Rename<'_> {
    /// Answers what was moved, if anything was; `moves` has it also after an error.
    pub(super) fn carry(
        &self,
        config: &links::Config,
        old: &LinkId,
        moves: &mut Moves,
    ) -> Result<Option<Carried>, BuildError> {
        let (link, is) = (&config.id, config.kind.name());
        let (from, to) = (self.folder.join(old.as_str()), self.folder.join(link.as_str()));
        if !from.is_dir() {
            return Ok(None);
        }
        let held = self.holds(&from);
        let held = held.map_err(|error| BuildError::Heir { link: link.clone(), old: old.clone(), error })?;
        if let Some(was) = kept_kind(&from).filter(|was| *was != is && held != Holds::Nothing) {
            return Err(BuildError::OtherKind { link: link.clone(), old: old.clone(), was, is });
        }
        let own = to.is_dir().then(|| self.holds(&to)).transpose();
        let own = own.map_err(|error| BuildError::Buffer { link: link.clone(), error })?;
        let heir = Heir::of(held, own);
        let mut aside = None;
        match heir {
            Heir::Takes => {}
            Heir::Replaces => {
                let removed = fs::remove_dir_all(&to);
                removed.map_err(|error| BuildError::Data { path: to.clone(), error })?;
            }
            Heir::SetsAside => {
                let name = self.free_name(link);
                self.relocate(&to, self.folder.join(name.as_str()), moves)?;
                tracing::warn!(%link, %old, aside = %name, "nothing waits in the link's own buffer: it makes room for that of the old name, and is kept");
                aside = Some(name);
            }
            Heir::Stays => {
                tracing::info!(%link, %old, folder = %from.display(), "nothing waits in the buffer of the old name, and the link has one of its own: both stay");
                return Ok(None);
            }
            Heir::Conflict => {
                return Err(BuildError::Renamed { link: link.clone(), old: old.clone(), from, to });
            }
        }
        self.relocate(&from, to, moves)?;
        tracing::info!(%link, %old, "the buffer of the old name is this link's now");
        Ok(Some(Carried { link: link.clone(), old: old.clone(), aside }))
    }

    fn relocate(&self, from: &Path, to: PathBuf, moves: &mut Moves) -> Result<(), BuildError> {
        let data = |error| BuildError::Data { path: from.to_owned(), error };
        fs::rename(from, &to).map_err(data)?;
        moves.push((from.to_owned(), to));
        sync(self.folder).map_err(data)
    }

    /// What the buffer in `dir` holds, all lanes together.
    fn holds(&self, dir: &Path) -> Result<Holds, OpenError> {
        let (lanes, _) = Lanes::open(&keeping(dir), 1, &[], self.clock)?;
        let holds = holds(&lanes);
        lanes.close_here();
        Ok(holds)
    }

    /// That no folder and no link has, and that no link takes over.
    fn free_name(&self, link: &LinkId) -> LinkId {
        let mut names = (1_u64..).map(|n| LinkId::new(&format!("{link}_{n}")));
        let is_free = |name: &LinkId| !self.names.contains(name) && !self.folder.join(name.as_str()).exists();
        names.find(is_free).unwrap_or_else(|| link.clone())
    }

    /// Buffers of no link.
    fn strays(&self, links: &[links::Config]) -> Vec<String> {
        let entries = fs::read_dir(self.folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut strays: Vec<_> = names.filter(|name| links.iter().all(|link| link.id.as_str() != *name)).collect();
        strays.sort();
        strays
    }
}

/// What the buffer holds.
pub(super) fn holds(lanes: &Lanes) -> Holds {
    let ledger = lanes.ledger();
    if ledger.buffered > 0 || has_letters(lanes) {
        Holds::Owed
    } else if ledger != Ledger::default() || lanes.iter().any(|(_, buffer)| buffer.put_aside() > 0) {
        Holds::Settled
    } else {
        Holds::Nothing
    }
}

pub(super) fn has_letters(lanes: &Lanes) -> bool {
    lanes.iter().any(|(_, buffer)| !buffer.dead_letters().is_empty())
}

pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Direct, Lane, Outcome};
    use crate::clock;

    fn put(dir: &Path, records: u64) {
        let (mut log, _) = Direct::open(&keeping(dir), 1, clock::system()).unwrap();
        for n in 0..records {
            log.append(&[&n.to_le_bytes()], None).unwrap();
        }
        log.commit().unwrap();
        log.close();
    }

    /// With records that are delivered, and kept.
    fn settle(dir: &Path, replayed: u64) {
        let (lanes, _) = Lanes::open(&keeping(dir), 16, &[], &clock::system()).unwrap();
        for (_, buffer) in lanes.iter() {
            let stats = buffer.stats();
            (stats.cursor.0..stats.next.0).for_each(|n| buffer.settle(crate::buffer::Offset(n), Outcome::Delivered));
        }
        lanes.count_replayed(replayed);
        lanes.close_here();
    }

    /// A letter that its remote refused.
    fn refuse(dir: &Path) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (lanes, _) = Lanes::open(&keeping(dir), 16, &[], &clock::system()).unwrap();
            let buffer = lanes.lane(Lane::Normal);
            let offset = buffer.stats().cursor;
            let time = clock::system().moment().wall;
            let letter = crate::buffer::DeadLetter { offset, time, attempts: 1, reason: "x".into(), body: "x".into() };
            buffer.dead_letters().put(letter).await.unwrap();
            buffer.settle(offset, Outcome::DeadLettered);
            lanes.close().await;
        });
    }

    /// Buffered, delivered and replayed.
    fn figures(dir: &Path) -> (u64, u64, u64) {
        let (lanes, _) = Lanes::open(&keeping(dir), 1, &[], &clock::system()).unwrap();
        let ledger = lanes.ledger();
        lanes.close_here();
        assert!(ledger.balances(), "{ledger:?}");
        (ledger.buffered, ledger.delivered, ledger.replayed)
    }

    fn buffered(dir: &Path) -> u64 {
        figures(dir).0
    }

    #[test]
    fn r34_a_buffer_that_cannot_be_opened_is_not_moved_also_where_there_is_room() {
        for own in [false, true] {
            let links = tempfile::tempdir().unwrap();
            let at = |name: &str| links.path().join(name);
            put(&at("old"), 3);
            if own {
                put(&at("new"), 2);
            }
            fs::rename(at("old/meta"), at("old/meta.x")).unwrap();
            fs::create_dir(at("old/meta")).unwrap();
            let error = carry(links.path()).unwrap_err();
            let said = error.to_string();
            assert!(error.exit_code() == 74 && said.contains("the buffer of `old` cannot be opened"), "{said}");
            assert_eq!((at("old").exists(), at("new").exists()), (true, own));
        }
    }

    fn kafka(name: &str) -> links::Config {
        links::Config {
            id: LinkId::new(name),
            kind: links::Kind::Kafka(links::kafka::Config::of(&["k:9092"])),
            buffer: keeping(Path::new("unused")),
            lanes: vec![Lane::Normal],
            has_sink: true,
            sources: Vec::new(),
            timing: links::Timing::default(),
            rate: None,
            active: None,
            takes_copies: false,
            drain: links::Drain::Fifo,
            in_flight: None,
            renamed_from: None,
        }
    }

    fn carry_all(links: &Path) -> Result<Option<Carried>, BuildError> {
        let names = [LinkId::new("new"), LinkId::new("new_1")];
        let rename = Rename { folder: links, names: &names, clock: &clock::system() };
        rename.carry(&kafka("new"), &LinkId::new("old"), &mut Moves::new())
    }

    #[test]
    fn r34_what_was_named_for_another_kind_of_link_is_not_taken_over() {
        for (records, kind, taken) in [(1, "mqtt", false), (1, "kafka", true), (0, "mqtt", true)] {
            let links = tempfile::tempdir().unwrap();
            put(&links.path().join("old"), records);
            fs::write(links.path().join("old").join(crate::buffer::KIND), kind).unwrap();
            let done = carry(links.path());
            assert_eq!(links.path().join("new").exists(), taken, "{records} of {kind}: {done:?}");
            if !taken {
                let error = done.unwrap_err();
                assert_eq!(error.exit_code(), 65);
                let said = error.to_string();
                assert!(said.contains("named for a mqtt link, and `new` is kafka"), "{said}");
                assert!(said.contains("`tidegate replay old --into new`"), "{said}");
            }
        }
    }

    fn carry(links: &Path) -> Result<bool, BuildError> {
        Ok(carry_all(links)?.is_some())
    }

    #[test]
    fn r34_the_buffer_of_the_old_name_is_the_new_ones_and_stays_so() {
        let links = tempfile::tempdir().unwrap();
        assert!(!carry(links.path()).unwrap());
        put(&links.path().join("old"), 2);
        settle(&links.path().join("old"), 5);
        put(&links.path().join("old"), 3);
        for moves in [true, false] {
            assert_eq!(carry(links.path()).unwrap(), moves);
            assert!(!links.path().join("old").exists());
            assert_eq!(figures(&links.path().join("new")), (3, 2, 5), "with its ledger");
        }
    }

    #[test]
    fn r34_a_buffer_that_never_held_a_record_gives_way_also_where_a_kill_left_half_of_it() {
        for half in [false, true] {
            let links = tempfile::tempdir().unwrap();
            put(&links.path().join("old"), 3);
            put(&links.path().join("new"), 0);
            if half {
                fs::remove_file(links.path().join("new/meta")).unwrap();
            }
            assert!(carry(links.path()).unwrap());
            assert_eq!(buffered(&links.path().join("new")), 3);
        }
    }

    #[test]
    fn r34_an_old_buffer_that_never_held_a_record_takes_nothing_away() {
        let links = tempfile::tempdir().unwrap();
        put(&links.path().join("old"), 0);
        put(&links.path().join("new"), 2);
        assert!(!carry(links.path()).unwrap());
        assert_eq!(buffered(&links.path().join("new")), 2);
    }

    #[test]
    fn r34_two_buffers_with_records_are_refused_and_left_as_they_are() {
        let links = tempfile::tempdir().unwrap();
        put(&links.path().join("old"), 3);
        put(&links.path().join("new"), 2);
        let error = carry(links.path()).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        let said = error.to_string();
        assert!(said.contains("both hold what is not delivered: take `renamed_from` away"), "{said}");
        assert_eq!((buffered(&links.path().join("old")), buffered(&links.path().join("new"))), (3, 2));
    }

    #[test]
    fn r34_a_record_in_any_lane_counts() {
        let links = tempfile::tempdir().unwrap();
        put(&links.path().join("old"), 3);
        put(&links.path().join("new"), 0);
        put(&links.path().join("new/high"), 1);
        carry(links.path()).unwrap_err();
        assert_eq!(buffered(&links.path().join("new/high")), 1);
    }

    #[test]
    fn r34_a_buffer_of_which_nothing_waits_is_kept_under_a_free_name_where_it_gives_way() {
        let links = tempfile::tempdir().unwrap();
        let at = |name: &str| links.path().join(name);
        put(&at("old"), 3);
        put(&at("new"), 2);
        settle(&at("new"), 7);
        let carried = carry_all(links.path()).unwrap().unwrap();
        // `new_1` is a link of the file.
        assert_eq!(carried.aside, Some(LinkId::new("new_2")));
        assert_eq!((figures(&at("new")), figures(&at("new_2"))), ((3, 0, 0), (0, 2, 7)));
        assert!(!at("old").exists());
        // The key stays in the file; another buffer of the old name comes and goes the same way.
        assert_eq!(carry_all(links.path()).unwrap(), None);
        settle(&at("new"), 0);
        put(&at("old"), 1);
        assert_eq!(carry_all(links.path()).unwrap().unwrap().aside, Some(LinkId::new("new_3")));
        assert_eq!((buffered(&at("new")), figures(&at("new_3"))), (1, (0, 3, 0)));
    }

    #[test]
    fn r34_a_kill_between_the_two_renames_is_made_good_by_the_next_start() {
        let links = tempfile::tempdir().unwrap();
        let at = |name: &str| links.path().join(name);
        put(&at("old"), 3);
        put(&at("new"), 2);
        settle(&at("new"), 0);
        fs::rename(at("new"), at("new_2")).unwrap();
        assert!(carry(links.path()).unwrap());
        assert_eq!((buffered(&at("new")), figures(&at("new_2"))), (3, (0, 2, 0)));
        assert!(!at("old").exists() && !at("new_3").exists());
    }

    #[test]
    fn r34_an_old_buffer_of_which_nothing_waits_stays_beside_one_that_was_used() {
        for owed in [0, 4] {
            let links = tempfile::tempdir().unwrap();
            let at = |name: &str| links.path().join(name);
            put(&at("old"), 3);
            settle(&at("old"), 1);
            put(&at("new"), 2);
            settle(&at("new"), 0);
            put(&at("new"), owed);
            assert!(!carry(links.path()).unwrap());
            assert_eq!((figures(&at("old")), figures(&at("new"))), ((0, 3, 1), (owed, 2, 0)));
        }
    }

    #[test]
    fn r34_what_only_replays_went_through_is_not_deleted_with_its_count() {
        let links = tempfile::tempdir().unwrap();
        let at = |name: &str| links.path().join(name);
        put(&at("old"), 3);
        put(&at("new"), 0);
        settle(&at("new"), 9);
        assert_eq!(carry_all(links.path()).unwrap().unwrap().aside, Some(LinkId::new("new_2")));
        assert_eq!((figures(&at("new")), figures(&at("new_2"))), ((3, 0, 0), (0, 0, 9)));
    }

    #[test]
    fn r34_what_was_put_aside_as_damaged_is_not_deleted_with_a_buffer_that_holds_nothing_else() {
        let links = tempfile::tempdir().unwrap();
        let at = |name: &str| links.path().join(name);
        put(&at("old"), 3);
        put(&at("new"), 0);
        fs::write(at("new").join("00000000000000000000.seg.damaged"), b"what was it").unwrap();
        assert_eq!(carry_all(links.path()).unwrap().unwrap().aside, Some(LinkId::new("new_2")));
        assert_eq!(fs::read(at("new_2").join("00000000000000000000.seg.damaged")).unwrap(), b"what was it");
    }

    #[test]
    fn r34_a_dead_letter_is_owed() {
        let links = tempfile::tempdir().unwrap();
        let at = |name: &str| links.path().join(name);
        put(&at("old"), 3);
        put(&at("new"), 1);
        refuse(&at("new"));
        assert_eq!(buffered(&at("new")), 0);
        carry(links.path()).unwrap_err();
        assert!(at("old").exists() && at("new").exists());
    }
}
