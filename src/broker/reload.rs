//! Files that are read again while the broker runs: when they change, and when the operator says so (SIGHUP). What is new counts for
//! what comes next; a new file that is wrong leaves the old in force, and says so in the log and in `status` until it is right.
//!
//! Changes are found by looking, not by the kernel's notices: these do not come from network file systems, nor through the
//! symbolic links that secrets are mounted by.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. A change is taken up when it has stood still from one look to the next: a certificate and its key
/// are two files, and neither is written in an instant.
const LOOK: Duration = Duration::from_secs(2);

/// Files that have changed and are in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reread {
    /// Those of a listener's TLS, by where it is bound.
    Certificates(String),
    /// `users`, `rules`, or `keys for tokens`.
    Logins(&'static str),
}

/// What is made of files.
pub(super) trait Reloadable: Send + Sync {
    /// For the log and `status`: "the certificates of 0.0.0.0:8883".
    fn name(&self) -> String;

    /// What has been read again, once it has.
    fn reread(&self) -> Reread;

    /// All that it is made of.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads them. On an error what was before stays.
    fn reload(&self) -> Result<(), String>;
}

/// What is looked at again and again.
pub(super) trait Part: Send + Sync {
    /// Reads what has changed and stands still; all, if it `is_asked`.
    fn look(&self, is_asked: bool);

    /// What is not in force, and why.
    fn errors(&self) -> Vec<String>;

    /// What has changed and is in force since this was asked last.
    fn take_news(&self) -> Vec<Reread>;

    /// Whether somebody still goes by it.
    fn is_used(&self) -> bool {
        true
    }
}

/// All that can be read again.
#[derive(Default)]
pub(super) struct Reloader {
    parts: Mutex<Vec<Arc<dyn Part>>>,
    /// Held by who reads: what is older must not come behind what is newer.
    reading: Mutex<()>,
}

/// Files, and whether they are others than those that were read last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Of the files that are in force, or that have been found wrong.
    taken: Vec<Stamp>,
    /// At the last look.
    seen: Vec<Stamp>,
    /// They were others than those before when they were read last.
    has_news: bool,
}

/// What tells one state of a file from another; none: it cannot be looked at.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

fn stamps<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<Stamp> {
    files.into_iter().map(stamp).collect()
}

impl Watch {
    /// Of files that have been read just now.
    pub(super) fn taken<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let taken = stamps(files);
        Self { seen: taken.clone(), taken, has_news: false }
    }

    /// Whether they are to be read now: they are others and stand still, or that `is_asked`. The stamps are older than what is read then:
    /// a change in between is read once more.
    pub(super) fn is_due<'a>(&mut self, files: impl IntoIterator<Item = &'a Path>, is_asked: bool) -> bool {
        let now = stamps(files);
        let stands_still = std::mem::replace(&mut self.seen, now.clone()) == now;
        let is_due = is_asked || (now != self.taken && stands_still);
        if is_due {
            // Before the first reading there was nothing that could be another.
            self.has_news |= !self.taken.is_empty() && now != self.taken;
            self.taken = now;
        }
        is_due
    }

    /// Whether what was read since this was asked last is another than what was before.
    pub(super) const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.has_news, false)
    }
}

impl Reloader {
    /// Watches what has been read just now, for as long as somebody goes by it.
    pub(super) fn watch(&self, part: &Arc<dyn Reloadable>) {
        let watch = Watch::taken(part.files().iter().map(PathBuf::as_path));
        let part = Arc::downgrade(part);
        self.add(Arc::new(Watched { part, state: Mutex::new(State { watch, error: None }) }));
    }

    /// Looks after what watches its own files.
    pub(super) fn add(&self, part: Arc<dyn Part>) {
        let mut parts = self.parts.lock();
        parts.retain(|part| part.is_used());
        parts.push(part);
    }

    /// What has changed and is in force since this was asked last.
    pub(super) fn take_news(&self) -> Vec<Reread> {
        self.parts.lock().iter().flat_map(|part| part.take_news()).collect()
    }

    /// What is not in force, and why.
    pub(super) fn errors(&self) -> Vec<String> {
        self.parts.lock().iter().flat_map(|part| part.errors()).collect()
    }

    /// Looks, again and again, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let reloader = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || reloader.look(false)).await.is_err() {
                tracing::error!("reading files again panicked");
            }
        }
    }

    /// Reads what has changed and stands still; everything, if it `is_asked`. Not for a thread of the runtime.
    pub(super) fn look(&self, is_asked: bool) {
        let _alone = self.reading.lock();
        // A copy: who asks for the errors meanwhile does not wait for the files.
        let parts = self.parts.lock().clone();
        parts.iter().for_each(|part| part.look(is_asked));
    }
}

struct Watched {
    part: Weak<dyn Reloadable>,
    state: Mutex<State>,
}

struct State {
    watch: Watch,
    /// Why the files as they are now are not in force.
    error: Option<String>,
}

impl Part for Watched {
    fn look(&self, is_asked: bool) {
        let Some(part) = self.part.upgrade() else { return };
        let mut state = self.state.lock();
        if !state.watch.is_due(part.files().iter().map(PathBuf::as_path), is_asked) {
            return;
        }
        state.error = match part.reload() {
            Ok(()) => {
                tracing::info!("{} have been read again and count from the next connection on", part.name());
                None
            }
            Err(error) => {
                state.watch.take_news();
                tracing::error!("{} have changed and cannot be used; they stay as they were: {error}", part.name());
                Some(error)
            }
        };
    }

    fn errors(&self) -> Vec<String> {
        let Some(part) = self.part.upgrade() else { return Vec::new() };
        let state = self.state.lock();
        let error = state.error.iter();
        error.map(|error| format!("{} are as they were: {error}", part.name())).collect()
    }

    fn take_news(&self) -> Vec<Reread> {
        let Some(part) = self.part.upgrade() else { return Vec::new() };
        self.state.lock().watch.take_news().then(|| part.reread()).into_iter().collect()
    }

    fn is_used(&self) -> bool {
        self.part.strong_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number in a file.
    struct Number {
        file: PathBuf,
        value: Mutex<u32>,
    }

    impl Reloadable for Number {
        fn name(&self) -> String {
            "the numbers".to_owned()
        }

        fn reread(&self) -> Reread {
            Reread::Logins("numbers")
        }

        fn files(&self) -> Vec<PathBuf> {
            vec![self.file.clone()]
        }

        fn reload(&self) -> Result<(), String> {
            let text = fs::read_to_string(&self.file).map_err(|error| error.to_string())?;
            *self.value.lock() = text.parse().map_err(|_not| format!("`{text}` is no number"))?;
            Ok(())
        }
    }

    #[test]
    fn what_changed_counts_when_it_has_stood_still_and_what_is_wrong_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let number = Arc::new(Number { file: file.clone(), value: Mutex::new(1) });
        let reloader = Reloader::default();
        reloader.watch(&(Arc::clone(&number) as Arc<dyn Reloadable>));
        let news = || reloader.take_news().len();
        let look = |is_asked| {
            reloader.look(is_asked);
            (*number.value.lock(), reloader.errors().len())
        };
        assert_eq!(look(false), (1, 0));
        assert_eq!((look(true), news()), ((1, 0), 0), "it is read, and is none other");
        fs::write(&file, "22").unwrap();
        assert_eq!(look(false), (1, 0), "it may still be written to");
        fs::write(&file, "333").unwrap();
        assert_eq!(look(false), (1, 0), "it was");
        assert_eq!((look(false), news()), ((333, 0), 1), "also where nobody asked");
        assert_eq!(news(), 0, "it is told once");
        fs::write(&file, "four").unwrap();
        assert_eq!((look(false), look(false)), ((333, 0), (333, 1)));
        assert_eq!(reloader.errors(), ["the numbers are as they were: `four` is no number"]);
        assert_eq!(news(), 0, "what is not in force is no news");
        fs::write(&file, "55555").unwrap();
        assert_eq!(look(true), (55_555, 0), "asked, it does not wait");
        assert_eq!(news(), 1);
        fs::remove_file(&file).unwrap();
        assert_eq!((look(false), look(false)), ((55_555, 0), (55_555, 1)));
    }
}
