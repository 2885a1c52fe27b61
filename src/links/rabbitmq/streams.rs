//! How far streams were read. AMQP 0-9-1 keeps no position for who reads a stream: it is asked for when reading begins. So it is ours to
//! keep, in a file of the link's folder.
//!
//! Beside them stands which vhost of which broker they are of: by the same names another has other streams, where a number says something
//! else, or nothing that has been written yet. There reading begins anew.
//!
//! It is written at most each [`SAVE_EACH`] and at a good-bye, so that a kill reads again what was settled in the last second, and what was
//! in flight.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Config, StreamStart};
use crate::router::LinkId;

/// How often the positions are written at most.
const SAVE_EACH: Duration = Duration::from_secs(1);

/// The consumer's argument, and the header of each delivery.
const OFFSET: &str = "x-stream-offset";

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Of {
        /// `HOST:PORT/VHOST`.
        of: String,
        next: BTreeMap<String, u64>,
    },
    /// As earlier versions wrote it.
    Of01(BTreeMap<String, u64>),
}

/// The next offset to read of each stream.
#[derive(Debug, Default)]
pub(super) struct Positions {
    path: Option<PathBuf>,
    /// Where the streams are.
    of: String,
    next: BTreeMap<Arc<str>, u64>,
    /// When what is not written yet is to be.
    due: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Positions {
    /// What was written by an earlier start. A file that cannot be read, or is of streams elsewhere, is as good as none: the streams begin
    /// where the link says. `of`: where they are.
    pub(super) fn open(path: Option<&Path>, of: &str) -> Self {
        let mut positions = Self { path: path.map(Path::to_owned), of: of.to_owned(), ..Self::default() };
        let Some(path) = path else { return positions };
        match read(path) {
            Ok(Some(Kept::Of { of: others, next })) if others != of => {
                tracing::warn!(path = %path.display(), kept = others, ?next, now = of, "the streams' positions are those of another broker or vhost: reading begins where `streams` says; where it is the same under another name, write its number there");
            }
            Ok(Some(Kept::Of { next, .. } | Kept::Of01(next))) => {
                positions.next = next.into_iter().map(|(name, next)| (name.into(), next)).collect();
            }
            Ok(None) => {}
            Err(error) => tracing::error!(path = %path.display(), %error, "the streams' positions cannot be read"),
        }
        positions
    }

    /// With what a stream is read from where we are; nothing for a queue.
    pub(super) fn arguments(&self, config: &Config, queue: &str) -> FieldTable {
        let mut table = FieldTable::default();
        let Some(start) = config.streams.get(queue) else { return table };
        let number = |offset: u64| AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX));
        let word = |word: &str| AMQPValue::LongString(word.into());
        let from = match (self.next.get(queue), start) {
            (Some(next), _) => number(*next),
            (None, StreamStart::First) => word("first"),
            (None, StreamStart::Last) => word("last"),
            (None, StreamStart::Next) => word("next"),
            (None, StreamStart::Offset(offset)) => number(*offset),
            (None, StreamStart::Time(seconds)) => AMQPValue::Timestamp(*seconds),
        };
        table.insert(OFFSET.into(), from);
        table
    }

    /// Everything of this stream up to `offset` has settled.
    pub(super) fn passed(&mut self, queue: &Arc<str>, offset: u64, now: Instant) {
        let next = self.next.entry(Arc::clone(queue)).or_default();
        if offset >= *next {
            *next = offset + 1;
            self.due.get_or_insert(now + SAVE_EACH);
        }
    }

    /// Whether a delivery lies before what has settled: a stream hands out whole chunks.
    pub(super) fn has_passed(&self, queue: &str, offset: u64) -> bool {
        self.next.get(queue).is_some_and(|next| offset < *next)
    }

    /// When [`Positions::save`] is to be called.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what is new, on a thread that may block. Answers who waits for it may await.
    pub(super) fn save(&mut self, now: Instant) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            // The one after it would not be kept back.
            self.due = self.due.map(|_| now + SAVE_EACH);
            return;
        }
        let (Some(_), Some(path)) = (self.due.take(), self.path.clone()) else { return };
        let next = self.next.iter().map(|(name, next)| (name.to_string(), *next)).collect();
        let kept = Kept::Of { of: self.of.clone(), next };
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&path, &kept) {
                tracing::error!(path = %path.display(), %error, "the streams' positions cannot be written: a start would read again from the last");
            }
        }));
    }

    /// Who writes now, if anybody does.
    pub(super) const fn take_writing(&mut self) -> Option<JoinHandle<()>> {
        self.writing.take()
    }
}

/// R34: the positions of a link that has another name now become those at `path`, unless some of the same streams are there. Its source
/// has ended by then: it wrote them last.
pub(super) fn take_over(path: &Path, old: &LinkId, of: &str) {
    let from = path.with_file_name(format!("{old}.json"));
    if !from.exists() {
        return;
    }
    let is_elsewhere = |path: &Path| matches!(read(path), Ok(Some(Kept::Of { of: others, .. })) if others != of);
    if path.exists() && (!is_elsewhere(path) || is_elsewhere(&from)) {
        tracing::warn!(path = %path.display(), %old, left = %from.display(), "the link has positions in its streams already and goes on by them: those of the old name are left");
        return;
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    match fs::rename(&from, path).and_then(|()| File::open(folder)?.sync_all()) {
        Ok(()) => {
            tracing::info!(path = %path.display(), %old, "the streams' positions of the old name are this link's now");
        }
        Err(error) => {
            tracing::error!(path = %from.display(), %error, "the streams' positions of the old name cannot be taken over");
        }
    }
}

/// `None`: there is none.
fn read(path: &Path) -> io::Result<Option<Kept>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Beside, synced, and then in its place.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_data()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// Where in its stream a delivery is; `None` for one of a queue.
pub(super) fn offset_of(properties: &BasicProperties) -> Option<u64> {
    let value = properties.headers().as_ref()?.inner().get(OFFSET)?;
    if let AMQPValue::LongLongInt(offset) = value { u64::try_from(*offset).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_goes_on_where_it_was_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link").join("streams.json");
        let (events, now) = (Arc::<str>::from("events"), crate::clock::now());
        let mut positions = Positions::open(Some(&path), HERE);
        positions.passed(&events, 6, now);
        positions.passed(&events, 7, now);
        positions.passed(&events, 3, now);
        assert_eq!(positions.due(), Some(now + SAVE_EACH));
        positions.save(now);
        positions.take_writing().unwrap().await.unwrap();
        assert_eq!(positions.due(), None);
        let again = Positions::open(Some(&path), HERE);
        assert!(again.has_passed("events", 7) && !again.has_passed("events", 8) && !again.has_passed("other", 0));
        fs::write(&path, "{").unwrap();
        assert!(!Positions::open(Some(&path), HERE).has_passed("events", 0), "a damaged file is none");
        fs::write(&path, r#"{"events":8}"#).unwrap();
        assert!(Positions::open(Some(&path), HERE).has_passed("events", 7), "of an earlier version");
    }

    #[tokio::test]
    async fn a_stream_of_another_broker_or_vhost_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link.json");
        write(&path, &kept(HERE, 8)).unwrap();
        for elsewhere in ["rmq:5672/other", "rmq:5673//", "other:5672//"] {
            let (mut positions, now) = (Positions::open(Some(&path), elsewhere), crate::clock::now());
            assert!(!positions.has_passed("events", 0), "{elsewhere}");
            positions.passed(&"events".into(), 2, now);
            positions.save(now);
            positions.take_writing().unwrap().await.unwrap();
            let again = Positions::open(Some(&path), elsewhere);
            assert!(again.has_passed("events", 2) && !again.has_passed("events", 3), "{elsewhere}");
        }
    }

    /// Where the streams of these tests are.
    const HERE: &str = "rmq:5672//";

    fn kept(of: &str, next: u64) -> Kept {
        Kept::Of { of: of.to_owned(), next: BTreeMap::from([("events".to_owned(), next)]) }
    }

    #[tokio::test]
    async fn r34_the_positions_of_the_old_name_are_the_new_ones_and_stay_so() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let old = LinkId::new("old");
        take_over(&at("new.json"), &old, HERE);
        assert!(!at("new.json").exists(), "there is nothing to take over");
        write(&at("old.json"), &kept(HERE, 8)).unwrap();
        for _ in 0..2 {
            take_over(&at("new.json"), &old, HERE);
            assert!(Positions::open(Some(&at("new.json")), HERE).has_passed("events", 7) && !at("old.json").exists());
        }
        write(&at("old.json"), &kept(HERE, 3)).unwrap();
        take_over(&at("new.json"), &old, HERE);
        assert!(Positions::open(Some(&at("new.json")), HERE).has_passed("events", 7), "its own stay");
        write(&at("new.json"), &kept("elsewhere:5672//", 8)).unwrap();
        take_over(&at("new.json"), &old, HERE);
        let taken = Positions::open(Some(&at("new.json")), HERE);
        assert!(taken.has_passed("events", 2) && !taken.has_passed("events", 7), "but what is of elsewhere");
    }
}
