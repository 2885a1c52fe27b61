//! `tidegate reload`: has the running gateway read its configuration again, and shows what that changes.

use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::{out, tool};
use crate::gateway::ReloadReport;

/// `tidegate reload`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The answer as JSON
    #[arg(long)]
    json: bool,
}

/// Answers 0 if the file is in force, changed or not.
pub(crate) fn reload(args: &Args, data_dir: &Path) -> Outcome {
    let report: ReloadReport = tool::block_on(tool::ask(data_dir, "reload", &json!({})))?;
    if args.json {
        tool::print_json(&report)?;
    } else if report.problem.is_none() {
        show(&report);
    }
    match (&report.problem, args.json) {
        (None, _) => Ok(Exit::Done),
        (Some(problem), false) => Err(Failure::with_code(report.code, anyhow::anyhow!("not reloaded\n{problem}"))),
        (Some(_), true) => Err(Failure::with_code(report.code, anyhow::anyhow!("not reloaded"))),
    }
}

fn show(report: &ReloadReport) {
    if !report.warnings.is_empty() {
        out::complain(report.warnings.trim_end());
    }
    report.changes.iter().for_each(|change| out::line(&tool::plain(&change.to_string())));
    let count = report.changes.len();
    out::line(&match count {
        0 => "reloaded: nothing has changed".to_owned(),
        1 => "reloaded: 1 change".to_owned(),
        _ => format!("reloaded: {count} changes"),
    });
}
