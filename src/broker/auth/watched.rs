//! A file that is read again when it has changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::broker::reload::Watch;

/// See the module.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    watch: Watch,
    /// Why the file as it is now is not in force.
    error: Option<String>,
}

impl Watched {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text, if the file is another than the one that was read and stands still, or `always`. A file that cannot be read is an
    /// error once, until it is another.
    pub(super) fn read(&self, always: bool) -> Option<io::Result<String>> {
        let is_due = self.state.lock().watch.is_due([self.path()], always);
        is_due.then(|| fs::read_to_string(&self.path))
    }

    /// Notes what came of it.
    pub(super) fn note(&self, error: Option<String>) {
        let mut state = self.state.lock();
        if error.is_some() {
            // What is not in force is no news.
            state.watch.take_news();
        }
        state.error = error;
    }

    /// Whether another file is in force than when this was asked last.
    pub(super) fn take_news(&self) -> bool {
        self.state.lock().watch.take_news()
    }

    /// Why the file as it is now is not in force.
    pub(super) fn error(&self) -> Option<String> {
        self.state.lock().error.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_is_another_than_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        fs::write(&path, "a").unwrap();
        let watched = Watched::new(path.clone());
        let read = |always| watched.read(always).map(|text| text.ok());
        let text = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(read(true), text("a"));
        assert_eq!(read(false), None);
        assert_eq!(read(true), text("a"));
        fs::write(folder.path().join("new"), "b").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(read(false), None, "it may still be written to");
        fs::write(&path, "bb").unwrap();
        assert_eq!(read(false), None, "it was");
        assert_eq!((read(false), read(false)), (text("bb"), None));
        fs::remove_file(&path).unwrap();
        assert_eq!((read(false), read(false)), (None, Some(None)), "it is gone");
        assert_eq!(read(false), None, "which is said once");
        fs::write(&path, "c").unwrap();
        assert_eq!((read(false), read(false)), (None, text("c")));
    }
}
