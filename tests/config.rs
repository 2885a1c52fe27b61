//! `routes.yaml`, good and bad: what the shipped files say, and every diagnostic as the operator sees it.

use std::path::Path;

use tidegate::cli::check::check;
use tidegate::config::{self, Env};

#[test]
fn the_shipped_files_are_free_of_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> =
        std::fs::read_dir(root.join("routes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for folder in std::fs::read_dir(root.join("examples")).unwrap() {
        let entries = std::fs::read_dir(folder.unwrap().path()).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")));
    }
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let mut out = Vec::new();
        let code = check(&file, &Env::real(), &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(code, 0, "{out}");
        assert!(out.lines().count() == 1 && out.contains(": ok, "), "{out}");
        assert!(config::load(&file, &Env::real()).is_ok());
    }
}
