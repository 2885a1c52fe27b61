//! The file, or folder, that a gateway runs by, read as often as it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::{self, Diagnostic, Env};
use crate::gateway::{Config, Loaded, Origin};

/// See the module.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    /// What the last load has read beside the file: secrets, certificates, users.
    named: BTreeSet<PathBuf>,
    /// Of that load.
    taken: Vec<Stamp>,
    /// At the last look.
    seen: Vec<Stamp>,
}

/// A file, and what tells one state of it from another; none: it cannot be looked at.
type Stamp = (PathBuf, Option<(u64, u64, i64, i64, u64)>);

impl File {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), looks: Mutex::default() }
    }

    /// Reads it, and remembers what state of which files that was.
    fn load_by(&self, real: Env) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        let read: Arc<Mutex<BTreeMap<PathBuf, Stamp>>> = Arc::default();
        let note = Arc::clone(&read);
        // Each stamp is older than what is read: a change in between is read once more.
        let file = move |path: &Path| {
            note.lock().entry(path.to_owned()).or_insert_with(|| stamp(path.to_owned()));
            (real.file)(path)
        };
        let env = Env { file: Box::new(file), ..real };
        let mut taken: Vec<_> = config::files(&self.path).into_iter().map(stamp).collect();
        let loaded = config::load(&self.path, &env);
        let (named, stamps): (BTreeSet<_>, Vec<_>) = std::mem::take(&mut *read.lock()).into_iter().unzip();
        taken.extend(stamps);
        *self.looks.lock() = Looks { named, seen: taken.clone(), taken };
        loaded
    }

    /// Symbolic links are followed: secrets and configurations are mounted by them, and what changes is the link.
    fn stamps(&self, named: &BTreeSet<PathBuf>) -> Vec<Stamp> {
        let mut files = config::files(&self.path);
        files.extend(named.iter().cloned());
        files.into_iter().map(stamp).collect()
    }
}

fn stamp(path: PathBuf) -> Stamp {
    let state = fs::metadata(&path).ok();
    let state = state.map(|file| (file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()));
    (path, state)
}

impl Origin for File {
    fn load(&self) -> Result<Loaded, String> {
        match self.load_by(Env::real()) {
            Ok((config, warnings)) => Ok(Loaded { config, warnings: config::render(&warnings) }),
            Err(mistakes) => Err(format!("{}{}", config::render(&mistakes), config::summary(&mistakes))),
        }
    }

    fn is_due(&self) -> bool {
        let mut looks = self.looks.lock();
        let now = self.stamps(&looks.named);
        let stands_still = std::mem::replace(&mut looks.seen, now.clone()) == now;
        stands_still && now != looks.taken
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const TEXT: &str = "site: a\nlinks: { hq: { mqtt: { url: \"mqtts://u:${file:secret}@h\" } } }\nroutes: [ { from: broker/a, to: hq/a } ]\n";

    fn is_due(file: &File) -> [bool; 2] {
        [file.is_due(), file.is_due()]
    }

    #[test]
    fn a_change_of_the_file_or_of_a_secret_is_due_when_it_stands_still_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("routes.yaml");
        fs::write(folder.path().join("secret"), "hunter2").unwrap();
        fs::write(&path, TEXT).unwrap();
        let file = File::new(&path);
        assert_eq!(file.load().unwrap().config.site.as_ref(), "a");
        assert_eq!(is_due(&file), [false, false]);
        fs::write(&path, TEXT.replace("site: a", "site: bb")).unwrap();
        assert_eq!(is_due(&file), [false, true]);
        assert_eq!(file.load().unwrap().config.site.as_ref(), "bb");
        assert_eq!(is_due(&file), [false, false]);
        fs::write(folder.path().join("secret"), "hunter22").unwrap();
        assert_eq!(is_due(&file), [false, true]);
        fs::write(&path, "nonsense: [").unwrap();
        let told = file.load().unwrap_err();
        assert!(told.contains("error") && !told.contains("hunter"), "{told}");
        assert_eq!(is_due(&file), [false, false], "a bad one is told of once");
        fs::remove_file(&path).unwrap();
        assert_eq!(is_due(&file), [false, true]);
    }

    #[test]
    fn a_secret_that_changes_while_it_is_read_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("routes.yaml");
        fs::write(folder.path().join("secret"), "hunter2").unwrap();
        fs::write(&path, TEXT).unwrap();
        let file = File::new(&path);
        let read = |path: &Path| {
            let text = (Env::real().file)(path);
            if path.ends_with("secret") {
                fs::write(path, "another one").unwrap();
            }
            text
        };
        file.load_by(Env { file: Box::new(read), ..Env::real() }).unwrap();
        assert_eq!(is_due(&file), [false, true]);
    }

    #[test]
    fn a_mounted_folder_whose_link_is_swapped_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, site) in [("..v1", "a"), ("..v2", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("routes.yaml"), format!("site: {site}\n")).unwrap();
        }
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/routes.yaml", at("routes.yaml")).unwrap();
        for path in [at("routes.yaml"), folder.path().to_owned()] {
            drop(fs::remove_file(at("..data")));
            symlink("..v1", at("..data")).unwrap();
            let file = File::new(&path);
            assert_eq!(file.load().unwrap().config.site.as_ref(), "a");
            symlink("..v2", at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            assert_eq!(is_due(&file), [false, true]);
            assert_eq!(file.load().unwrap().config.site.as_ref(), "b");
        }
    }
}
