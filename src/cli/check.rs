//! `tidegate check`: every mistake of a file of routes in one run (R32), and of several sites' files together.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::{self, Diagnostic, Env, Report, Severity, Ties, Together};

/// The file can be used.
const EXIT_OK: u8 = 0;
/// Wrong configuration.
const EXIT_CONFIG: u8 = 65;

/// How mistakes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: each with its line drawn.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// How strict a check is, and how it tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// See [`Format`].
    pub format: Format,
    /// Warnings are as bad as errors.
    pub deny_warnings: bool,
}

/// Why several files were not checked together.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// They cannot be written about.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// A tie names what none of them has.
    #[error("--same: `{0}` is neither the site of one of these files nor an address, HOST:PORT, of one of their links")]
    Untied(String),
}

/// The same as [`check`], with options.
///
/// # Errors
/// `out` cannot be written to.
pub fn check_with(file: &Path, env: &Env, options: Options, out: &mut dyn Write) -> io::Result<u8> {
    let report = config::check(file, env);
    heard(match options.format {
        Format::Text => write_text(file, &report, (false, options), out),
        Format::Json => writeln!(out, "{:#}", as_json(file, &report, options)),
    })?;
    Ok(exit(&report.diagnostics, options))
}

/// Checks the files of several sites, each alone and then all together. Answers the exit code, as [`check`] does.
///
/// # Errors
/// [`CheckError`].
pub fn check_together(
    files: &[PathBuf],
    env: &Env,
    ties: &Ties,
    options: Options,
    out: &mut dyn Write,
) -> Result<u8, CheckError> {
    let together = config::check_together(files, env, ties).map_err(CheckError::Untied)?;
    let all: Vec<Diagnostic> =
        together.reports.iter().flat_map(|report| &report.diagnostics).chain(&together.diagnostics).cloned().collect();
    heard(match options.format {
        Format::Text => {
            let mut each = files.iter().zip(&together.reports);
            each.try_for_each(|(file, report)| write_text(file, report, (true, options), out))
                .and_then(|()| write_together(&together, options, out))
        }
        Format::Json => {
            let reports = files.iter().zip(&together.reports).map(|(file, report)| as_json(file, report, options));
            let answer = json!({
                "ok": exit(&all, options) == EXIT_OK,
                "errors": count(&all, Severity::Error),
                "warnings": count(&all, Severity::Warning),
                "files": reports.collect::<Vec<_>>(),
                "meetings": together.meetings,
                "diagnostics": together.diagnostics.iter().map(shown).collect::<Vec<_>>(),
            });
            writeln!(out, "{answer:#}")
        }
    })?;
    Ok(exit(&all, options))
}

/// Checks `file`, or a folder of files, and writes what is wrong with it. The last line sums it up: `3 errors, 1 warning`
/// or `FILE: ok, 2 links, 4 routes, listens on 127.0.0.1:1883`. Answers the exit code: 0, or 65 if there are errors.
///
/// # Errors
/// `out` cannot be written to.
pub fn check(file: &Path, env: &Env, out: &mut dyn Write) -> io::Result<u8> {
    check_with(file, env, Options::default(), out)
}

/// A reader that has gone away (`tidegate check | head -1`) is no failure: what was found is in the exit code.
fn heard(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn exit(diagnostics: &[Diagnostic], options: Options) -> u8 {
    let is_bad = count(diagnostics, Severity::Error) > 0 || (options.deny_warnings && !diagnostics.is_empty());
    if is_bad { EXIT_CONFIG } else { EXIT_OK }
}

fn write_text(
    file: &Path,
    report: &Report,
    (is_one_of_several, options): (bool, Options),
    out: &mut dyn Write,
) -> io::Result<()> {
    write!(out, "{}", config::render(&report.diagnostics))?;
    if report.has_errors() {
        let file = if is_one_of_several { format!("{}: ", file.display()) } else { String::new() };
        return writeln!(out, "{file}{}", config::summary(&report.diagnostics));
    }
    if exit(&report.diagnostics, options) != EXIT_OK {
        return writeln!(out, "{}: {}", file.display(), refused(&report.diagnostics));
    }
    let (links, routes) = (plural(report.links, "link"), plural(report.routes, "route"));
    let listens = report.config.as_ref().map_or_else(String::new, |config| {
        let listeners: Vec<String> = config.broker.listeners.iter().map(ToString::to_string).collect();
        format!(", listens on {}", listeners.join(", "))
    });
    writeln!(out, "{}: ok, {links}, {routes}{listens}{}", file.display(), warned(&report.diagnostics))
}

/// Behind what is said of each file.
fn write_together(together: &Together, options: Options, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    write!(out, "{}", config::render(&together.diagnostics))?;
    for meeting in &together.meetings {
        writeln!(out, "{meeting}")?;
    }
    if together.meetings.is_empty() {
        writeln!(out, "no remote is known to be shared: `--same SITE=HOST:PORT` says whose an address is")?;
    }
    let sites = together.reports.iter().filter(|report| !report.has_errors()).count();
    let left_out = match together.reports.len() - sites {
        0 => String::new(),
        count => format!(", {} with errors left out", plural(count, "file")),
    };
    if count(&together.diagnostics, Severity::Error) > 0 {
        return writeln!(
            out,
            "{} together: {}{left_out}",
            plural(sites, "site"),
            config::summary(&together.diagnostics)
        );
    }
    if exit(&together.diagnostics, options) != EXIT_OK {
        return writeln!(out, "{} together: {}{left_out}", plural(sites, "site"), refused(&together.diagnostics));
    }
    writeln!(out, "{} together: ok{}{left_out}", plural(sites, "site"), warned(&together.diagnostics))
}

fn as_json(file: &Path, report: &Report, options: Options) -> Value {
    json!({
        "file": file,
        "ok": exit(&report.diagnostics, options) == EXIT_OK,
        "errors": count(&report.diagnostics, Severity::Error),
        "warnings": count(&report.diagnostics, Severity::Warning),
        "links": report.links,
        "routes": report.routes,
        "diagnostics": report.diagnostics.iter().map(shown).collect::<Vec<_>>(),
    })
}

fn shown(found: &Diagnostic) -> Value {
    let hops = found.hops.iter();
    let hops = hops.map(|hop| json!({ "file": hop.file, "line": hop.line, "column": hop.col, "text": hop.text }));
    json!({
        "severity": found.severity.name(),
        "file": found.file,
        "line": found.line,
        "column": found.col,
        "span": { "start": found.span.start, "end": found.span.end },
        "text": found.text,
        "hint": found.hint,
        "hops": hops.collect::<Vec<_>>(),
    })
}

fn count(diagnostics: &[Diagnostic], severity: Severity) -> usize {
    diagnostics.iter().filter(|found| found.severity == severity).count()
}

fn warned(diagnostics: &[Diagnostic]) -> String {
    if diagnostics.is_empty() { String::new() } else { format!(", {}", plural(diagnostics.len(), "warning")) }
}

/// Of warnings alone that are as bad as errors.
fn refused(diagnostics: &[Diagnostic]) -> String {
    format!("{}, refused by --deny-warnings", plural(diagnostics.len(), "warning"))
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
