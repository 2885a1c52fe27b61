//! `routes.yaml`: what the operator wrote, checked as a whole, and turned into the `Config` structs of all parts.
//!
//! # Parts
//! - `raw`: the YAML as a tree in which every key and value knows its place.
//! - `resolve`: walks that tree once and reports every mistake of it, each with its place and a hint (R32).
//! - `suite`: files of tests for `tidegate test`, read in the same way.
//! - `sites`: several files at once, by what `resolve` made of each: routes that lead back, names that collide.
//! - `quotes`: text that YAML reads otherwise than it was meant. `unclosed`: brackets and quotes that lack their partner.
//! - `hidden`: where a file spells out secrets, which are shown nowhere.
//! - `keys`: all keys, as data: accepted ones, and those that later versions bring. `mosquitto`: what others' options are called here.
//! - [`mod@schema`]: the same keys for editors. [`render`]: how mistakes are shown.
//!
//! # Invariants
//! One run reports all mistakes. Nothing is ignored: an unknown key is an error. Behind this module nobody sees a string
//! that could still be wrong. Secrets get into the `Config` structs and nowhere else; diagnostics show values as the
//! file has them, and passwords that stand in the file are blotted out. Only [`load`] and [`Env::real`] touch the world.
//! No part but `cli` and `gateway` knows this module.

mod diagnostic;
mod env;
mod hidden;
mod keys;
mod mosquitto;
mod outline;
mod quotes;
mod raw;
mod resolve;
mod schema;
mod sites;
mod source;
mod suite;
mod unclosed;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use diagnostic::{Diagnostic, Hop, Severity, render, summary};
pub use env::{Env, Lookup};
pub use schema::schema;
pub use sites::Ties;
pub use suite::{Case, Expected, Given, Suite, suite};

use crate::gateway::Config;
use diagnostic::Mistakes;
use raw::{Node, Value};
use sites::{Meet, Sketch, Untied};
use source::{Place, Source};

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// In the order of the files; errors and warnings.
    pub diagnostics: Vec<Diagnostic>,
    /// There if nothing is an error and secrets were looked up.
    pub config: Option<Config>,
    /// Where the gateway of this file keeps its data. There also if something else in the file is wrong or a secret is not
    /// at hand: a running gateway can be asked all the same.
    pub data_dir: Option<PathBuf>,
    /// How many links the file names.
    pub links: usize,
    /// How many routes the file names.
    pub routes: usize,
}

impl Report {
    /// Whether the file cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Reads a file, or a folder of `*.yaml` files that are merged, and answers the configuration with its warnings.
///
/// # Errors
/// Every mistake of the file, warnings included.
pub fn load(path: &Path, env: &Env) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    let report = check(path, env);
    match report.config {
        Some(config) => Ok((config, report.diagnostics)),
        None => Err(report.diagnostics),
    }
}

/// What a check of several sites' files found.
#[derive(Debug)]
pub struct Together {
    /// Of each file or folder, as if it were alone.
    pub reports: Vec<Report>,
    /// What is wrong between those that have no errors.
    pub diagnostics: Vec<Diagnostic>,
    /// Where they meet: `the broker of hq: plant-7 (hq)`.
    pub meetings: Vec<String>,
}

/// Reads the files of several sites and reports what is wrong with each, and between them.
///
/// # Errors
/// A tie names what is neither a site nor an address of a file: that name.
pub fn check_together(paths: &[PathBuf], env: &Env, ties: &Ties) -> Result<Together, String> {
    let (reports, sketches): (Vec<_>, Vec<_>) = paths.iter().map(|path| examine(path, env)).unzip();
    let right = reports.iter().zip(&sketches).filter(|(report, _)| !report.has_errors());
    let sites: Vec<&Sketch> = right.filter_map(|(_, sketch)| sketch.as_ref()).collect();
    let mut meet = match Meet::of(&sites, ties) {
        Ok(meet) => meet,
        // A file with errors may have the name.
        Err(Untied(name)) if sites.len() == paths.len() => return Err(name),
        Err(Untied(_)) => return Ok(Together { reports, diagnostics: Vec::new(), meetings: Vec::new() }),
    };
    let mut mistakes = Mistakes::default();
    sites::check_all(&sites, &mut meet, &mut mistakes);
    Ok(Together { reports, diagnostics: mistakes.sorted(), meetings: meet.shown(&sites) })
}

/// Reads a file, or a folder, and reports what is wrong with it.
#[must_use]
pub fn check(path: &Path, env: &Env) -> Report {
    examine(path, env).0
}

/// A report, and what other files are compared with.
fn examine(path: &Path, env: &Env) -> (Report, Option<Sketch>) {
    let mut mistakes = Mistakes::default();
    let read = sources(path, &mut mistakes);
    let mut trees = Vec::new();
    for source in read.iter().flatten() {
        match raw::parse(source) {
            Ok(tree) => trees.push(tree),
            Err(error) => mistakes.error(&error.place, error.text, error.hint),
        }
    }
    let Some(first) = read.iter().flatten().next().filter(|_| !trees.is_empty()) else {
        let data_dir = data_dir_by_lines(&read);
        let report = Report { diagnostics: mistakes.sorted(), config: None, data_dir, links: 0, routes: 0 };
        return (report, None);
    };
    let whole = Place { source: Arc::clone(first), span: 0..0 };
    // What stands in a file that cannot be read is not known: the others' references to it would look wrong.
    let is_whole = trees.len() == read.len();
    let root = raw::merged(trees, whole);
    let (links, routes) = (count(&root, "links"), count(&root, "routes"));
    let by_lines = || if is_whole { None } else { data_dir_by_lines(&read) };
    let data_dir = resolve::data_dir(&root, is_whole, env).or_else(by_lines);
    let resolve::Resolved { config, mut mistakes, sketch } = resolve::resolve(&root, is_whole, env, mistakes);
    if let Some(sketch) = &sketch {
        sites::check_one(sketch, &mut mistakes);
    }
    let sketch = sketch.map(|sketch| Sketch { path: path.to_owned(), ..sketch });
    // The outline knows secrets by a sum of each, so it looks them up.
    let config = config.filter(|_| !env.no_secrets);
    let config = config.map(|config| Config { outline: outline::of(&root, env), ..config });
    let mut report = Report { diagnostics: mistakes.sorted(), config, data_dir, links, routes };
    if report.has_errors() {
        report.config = None;
    }
    (report, sketch)
}

/// The files that [`load`] reads, in the order of their names; that of `path` alone where there is no such folder.
#[must_use]
pub fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { files_in(path).unwrap_or_default() } else { vec![path.to_owned()] }
}

/// The files to read, in the order of their names; `None` in the place of one that cannot be read.
fn sources(path: &Path, mistakes: &mut Mistakes) -> Vec<Option<Arc<Source>>> {
    let mut unreadable = |path: &Path, error: &io::Error| {
        let place = Place { source: Arc::new(Source::named(path)), span: 0..0 };
        mistakes.error(&place, format!("cannot be read: {error}"), None);
    };
    let files = if path.is_dir() {
        match files_in(path) {
            Ok(files) if files.is_empty() => {
                unreadable(path, &io::Error::other("the folder holds no *.yaml file"));
                return Vec::new();
            }
            Ok(files) => files,
            Err(error) => {
                unreadable(path, &error);
                return Vec::new();
            }
        }
    } else {
        vec![path.to_owned()]
    };
    let read = files.into_iter().map(|file| match std::fs::read_to_string(&file) {
        Ok(text) => Some(Arc::new(Source::new(file, text))),
        Err(error) => {
            unreadable(&file, &error);
            None
        }
    });
    read.collect()
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The data folder as files say that are no YAML: by the line that begins with `data_dir:`, or without one the default.
fn data_dir_by_lines(read: &[Option<Arc<Source>>]) -> Option<PathBuf> {
    let sources: Vec<&Arc<Source>> = read.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let place = |source: &Arc<Source>| Place { source: Arc::clone(source), span: 0..0 };
    let line_of =
        |source: &&Arc<Source>| source.text.lines().find_map(|line| line.strip_prefix("data_dir:").map(str::to_owned));
    let Some((source, line)) = sources.iter().find_map(|source| Some((source, line_of(source)?))) else {
        return sources.first().map(|first| resolve::default_data_dir(&place(first)));
    };
    let value = line.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(|c| matches!(c, '"' | '\''));
    let is_plain = !value.is_empty() && !value.contains("${");
    is_plain.then(|| resolve::beside(&place(source), Path::new(value)))
}

fn count(root: &Node, key: &str) -> usize {
    let Value::Map(entries) = &root.value else { return 0 };
    let section = entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value.value);
    match section {
        Some(Value::Map(entries)) => entries.len(),
        Some(Value::List(items)) => items.len(),
        Some(Value::Null | Value::Scalar(_)) | None => 0,
    }
}
