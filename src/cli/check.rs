//! `tidegate check`: every mistake of a file of routes in one run (R32).

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::config::{self, Env, Severity};

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

/// The same as [`check`], with options.
///
/// # Errors
/// `out` cannot be written to.
pub fn check_with(file: &Path, env: &Env, options: Options, out: &mut dyn Write) -> io::Result<u8> {
    let code = match options.format {
        Format::Text => check(file, env, out)?,
        Format::Json => check_as_json(file, env, out)?,
    };
    let warned = options.deny_warnings && code == EXIT_OK && !config::check(file, env).diagnostics.is_empty();
    Ok(if warned { EXIT_CONFIG } else { code })
}

fn check_as_json(file: &Path, env: &Env, out: &mut dyn Write) -> io::Result<u8> {
    let report = config::check(file, env);
    let shown = report.diagnostics.iter().map(|found| {
        json!({
            "severity": found.severity.name(),
            "file": found.file,
            "line": found.line,
            "column": found.col,
            "span": { "start": found.span.start, "end": found.span.end },
            "text": found.text,
            "hint": found.hint,
        })
    });
    let count = |severity| report.diagnostics.iter().filter(|found| found.severity == severity).count();
    let answer = json!({
        "file": file,
        "ok": !report.has_errors(),
        "errors": count(Severity::Error),
        "warnings": count(Severity::Warning),
        "links": report.links,
        "routes": report.routes,
        "diagnostics": shown.collect::<Vec<_>>(),
    });
    writeln!(out, "{answer:#}")?;
    Ok(if report.has_errors() { EXIT_CONFIG } else { EXIT_OK })
}

/// Checks `file`, or a folder of files, and writes what is wrong with it. The last line sums it up: `3 errors, 1 warning`
/// or `FILE: ok, 2 links, 4 routes, listens on 127.0.0.1:1883`. Answers the exit code: 0, or 65 if there are errors.
///
/// # Errors
/// `out` cannot be written to.
pub fn check(file: &Path, env: &Env, out: &mut dyn Write) -> io::Result<u8> {
    let report = config::check(file, env);
    write!(out, "{}", config::render(&report.diagnostics))?;
    if report.has_errors() {
        writeln!(out, "{}", config::summary(&report.diagnostics))?;
        return Ok(EXIT_CONFIG);
    }
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (links, routes) = (plural(report.links, "link"), plural(report.routes, "route"));
    let warnings = match report.diagnostics.len() {
        0 => String::new(),
        count => format!(", {}", plural(count, "warning")),
    };
    let listens = report.config.as_ref().map_or_else(String::new, |config| {
        let listeners: Vec<String> = config.broker.listeners.iter().map(ToString::to_string).collect();
        format!(", listens on {}", listeners.join(", "))
    });
    writeln!(out, "{}: ok, {links}, {routes}{listens}{warnings}", file.display())?;
    Ok(EXIT_OK)
}
