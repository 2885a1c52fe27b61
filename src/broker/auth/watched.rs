//! A file that is read again when it has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// See the module.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Of what was read.
    taken: Option<Stamp>,
    /// At the last look. A change is read when it has stood still from one look to the next: mosquitto_passwd, for one, empties a file
    /// before it fills it.
    last: Option<Stamp>,
}

/// What tells one state of a file from the next. A file that is replaced has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Watched {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text, if the file is another than the one that was read and stands still, or `always`. A file that cannot be read is an
    /// error once, until it is another.
    pub(super) fn read(&self, always: bool) -> Option<io::Result<String>> {
        // The stamp is older than the text: what changes in between is read once more.
        let now = stamp(&self.path).ok();
        let mut seen = self.seen.lock();
        let stands_still = std::mem::replace(&mut seen.last, now) == now;
        if !always && (now == seen.taken || !stands_still) {
            return None;
        }
        seen.taken = now;
        Some(fs::read_to_string(&self.path))
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok(Stamp { inode: meta.ino(), bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
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
