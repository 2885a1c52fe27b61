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
    seen: Mutex<Option<Stamp>>,
}

/// What tells one state of a file from the next. A file that is replaced has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Watched {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text, if the file is another than at the last call, or `always`. A file that cannot be read is an error once, until it is
    /// another.
    pub(super) fn read(&self, always: bool) -> Option<io::Result<String>> {
        // The stamp is older than the text: what changes in between is read once more.
        let stamp = stamp(&self.path);
        let mut seen = self.seen.lock();
        let known = stamp.as_ref().ok().copied();
        if !always && *seen == known && (known.is_some() || stamp.is_err()) {
            return None;
        }
        *seen = known;
        Some(stamp.and_then(|_stamp| fs::read_to_string(&self.path)))
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
        assert_eq!(read(false), Some(Some("a".to_owned())));
        assert_eq!(read(false), None);
        assert_eq!(read(true), Some(Some("a".to_owned())));
        fs::write(folder.path().join("new"), "b").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(read(false), Some(Some("b".to_owned())));
        fs::remove_file(&path).unwrap();
        assert_eq!(read(false), Some(None), "it is gone");
        assert_eq!(read(false), None, "which is said once");
        fs::write(&path, "c").unwrap();
        assert_eq!(read(false), Some(Some("c".to_owned())));
    }
}
