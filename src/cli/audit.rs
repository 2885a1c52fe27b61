//! `tidegate audit`: promise 3, proved from the files.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::tool::{self, plain};
use super::{out, text};
use crate::buffer::Lane;
use crate::buffer::offline::{AuditReport, Finding, LinkAudit};
use crate::clock::WallMs;

/// `tidegate audit`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this link's buffer
    #[arg(long, value_name = "LINK")]
    link: Option<String>,
    /// Say that what is wrong is known: from now on only what is new makes the exit code 1
    #[arg(long)]
    accept: bool,
    /// Print the figures and findings as JSON
    #[arg(long)]
    json: bool,
}

/// Audits on the files, or asks the gateway that has them.
pub(crate) fn audit(args: &Args, data_dir: &Path) -> Outcome {
    let report = report(data_dir, args.link.as_deref(), args.accept)?;
    if args.json {
        tool::print_json(&report)?;
    } else {
        lines(&report).iter().for_each(|line| out::line(line));
    }
    Ok(if report.ok { Exit::Done } else { Exit::No })
}

/// The audit of all links, or of one.
pub(crate) fn report(data_dir: &Path, link: Option<&str>, accept: bool) -> Result<AuditReport, Failure> {
    match tool::lock(data_dir)? {
        Some(locked) => Ok(locked.audit(link, accept)?),
        None => tool::block_on(tool::ask(data_dir, "audit", &json!({ "link": link, "accept": accept }))),
    }
}

/// One figure a line: `LINK FIGURE VALUE`.
fn lines(report: &AuditReport) -> Vec<String> {
    let mut lines: Vec<_> = report.links.iter().flat_map(of_link).collect();
    // A link with lanes has several logs, each with figures of its own.
    let links: BTreeSet<_> = report.links.iter().map(|audit| Lane::split(&audit.link).0).collect();
    lines.push(format!("audit links {}", links.len()));
    lines.push(format!("audit logs {}", report.links.len()));
    lines.push(format!("audit ok {}", yes(report.ok)));
    lines
}

fn of_link(audit: &LinkAudit) -> Vec<String> {
    let (link, ledger) = (&audit.link, &audit.ledger);
    let figures = [
        ("accepted", ledger.accepted),
        ("delivered", ledger.delivered),
        ("buffered", ledger.buffered),
        ("found", audit.found),
        ("in_memory", audit.in_memory),
        ("missing", audit.missing),
        ("dropped_when_full", ledger.dropped_when_full),
        ("dropped_age", ledger.dropped_age),
        ("dropped_min_free", ledger.dropped_min_free),
        ("dropped_damaged", ledger.dropped_damaged),
        ("accepted_damaged", audit.accepted_damaged),
        ("expired", ledger.expired),
        ("dead_lettered", ledger.dead_lettered),
        ("replayed", ledger.replayed),
        ("dead_letters", audit.dead_letters),
        ("dead_letters_dropped", audit.dead_letters_dropped),
        ("dead_letters_sent", audit.dead_letters_sent),
        ("records", audit.records),
        ("frames", audit.frames),
        ("segments", audit.segments),
        ("segment_bytes", audit.segment_bytes),
        ("damaged_bytes", audit.damaged_bytes),
        ("torn_bytes", audit.torn_bytes),
        ("put_aside", audit.put_aside),
    ];
    let mut lines: Vec<_> = figures.iter().map(|(name, value)| format!("{link} {name} {value}")).collect();
    lines.push(format!("{link} gap {}", audit.gap));
    lines.extend(audit.findings.iter().map(|found| format!("{link} finding {}", finding(found))));
    if let Some(at) = audit.accepted_at_ms {
        lines.push(format!("{link} accepted_at {}", text::utc(WallMs(at))));
    }
    lines.push(format!("{link} ok {}", yes(audit.ok)));
    lines
}

pub(crate) fn finding(finding: &Finding) -> String {
    let mut line = String::new();
    if let Some(file) = &finding.file {
        line.push_str(&format!("{file}: "));
    }
    line.push_str(&finding.text);
    if let Some((first, last)) = finding.records {
        line.push_str(&format!("; records {first} to {last}"));
    }
    line.push_str(if finding.accepted { " (known)" } else { "" });
    plain(&line)
}

const fn yes(ok: bool) -> &'static str {
    if ok { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Ledger;

    #[test]
    fn r33_each_figure_stands_on_a_line_of_its_own() {
        let ledger = Ledger { accepted: 20, buffered: 17, dropped_damaged: 3, ..Ledger::default() };
        let link = LinkAudit { link: "far".to_owned(), ledger, found: 17, ok: true, ..LinkAudit::default() };
        let lane = LinkAudit { link: "far/high".to_owned(), ok: true, ..LinkAudit::default() };
        let lines = lines(&AuditReport::of(vec![link, lane]));
        for line in [
            "far accepted 20",
            "far found 17",
            "far dropped_damaged 3",
            "far gap 0",
            "far ok yes",
            "audit links 1",
            "audit logs 2",
            "audit ok yes",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} in {lines:?}");
        }
    }
}
