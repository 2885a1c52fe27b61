//! R34: the buffer of a link that has another name now. It moves by one rename of its folder, made durable before anything is
//! opened; so after a kill at any moment it is there under one of the two names, whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Config;
use super::build::{BuildError, keeping};
use crate::buffer::{Direct, Lane};
use crate::clock::Clock;
use crate::router::LinkId;

/// Does it for every link with `renamed_from`, under the data folder's lock.
pub(super) fn carry(config: &Config, clock: &Arc<dyn Clock>) -> Result<(), BuildError> {
    let links = config.data_dir.join("links");
    for link in &config.links {
        let Some(old) = &link.renamed_from else { continue };
        carry_one(&links, &link.id, old, clock)?;
    }
    Ok(())
}

/// Answers whether the folder was moved.
pub(super) fn carry_one(links: &Path, link: &LinkId, old: &LinkId, clock: &Arc<dyn Clock>) -> Result<bool, BuildError> {
    let (from, to) = (links.join(old.as_str()), links.join(link.as_str()));
    if !from.is_dir() {
        tracing::info!(%link, %old, "nothing is buffered under the old name: `renamed_from` can go");
        return Ok(false);
    }
    if to.is_dir() {
        let has_taken = |dir: &Path| has_taken_records(dir, link, clock);
        if !has_taken(&from)? {
            tracing::info!(%link, %old, folder = %from.display(), "the buffer of the old name never held a record; it stays where it is");
            return Ok(false);
        }
        if has_taken(&to)? {
            return Err(BuildError::Renamed { link: link.clone(), old: old.clone(), from, to });
        }
        let removed = fs::remove_dir_all(&to);
        removed.map_err(|error| BuildError::Data { path: to.clone(), error })?;
    }
    let moved = fs::rename(&from, &to).and_then(|()| sync(links));
    moved.map_err(|error| BuildError::Data { path: from, error })?;
    tracing::info!(%link, %old, "the buffer of the old name is this link's now");
    Ok(true)
}

/// Whether one of the link's logs ever took a record. One that is delivered counts too: the ledger remembers it.
fn has_taken_records(dir: &Path, link: &LinkId, clock: &Arc<dyn Clock>) -> Result<bool, BuildError> {
    for (_, folder) in Lane::found_in(dir) {
        let opened = Direct::open(&keeping(&folder), 1, Arc::clone(clock));
        let (log, _) = opened.map_err(|error| BuildError::Buffer { link: link.clone(), error })?;
        let taken = log.stats().ledger.accepted > 0;
        log.close();
        if taken {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn put(dir: &Path, records: u64) {
        let (mut log, _) = Direct::open(&keeping(dir), 1, clock::system()).unwrap();
        for n in 0..records {
            log.append(&[&n.to_le_bytes()], None).unwrap();
        }
        log.commit().unwrap();
        log.close();
    }

    fn buffered(dir: &Path) -> u64 {
        let (log, recovery) = Direct::open(&keeping(dir), 1, clock::system()).unwrap();
        log.close();
        recovery.buffered
    }

    fn carry(links: &Path) -> Result<bool, BuildError> {
        carry_one(links, &LinkId::new("new"), &LinkId::new("old"), &clock::system())
    }

    #[test]
    fn r34_the_buffer_of_the_old_name_is_the_new_ones_and_stays_so() {
        let links = tempfile::tempdir().unwrap();
        assert!(!carry(links.path()).unwrap());
        put(&links.path().join("old"), 3);
        for moves in [true, false] {
            assert_eq!(carry(links.path()).unwrap(), moves);
            assert!(!links.path().join("old").exists());
            assert_eq!(buffered(&links.path().join("new")), 3);
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
        assert!(said.contains("both hold records: keep a link `old`"), "{said}");
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
}
