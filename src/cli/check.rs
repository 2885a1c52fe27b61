//! `tidegate check`: every mistake of a file of routes in one run (R32).

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Env};

/// The file can be used.
const EXIT_OK: u8 = 0;
/// Wrong configuration.
const EXIT_CONFIG: u8 = 65;

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
