//! `tidegate buffer`: what a link's buffer holds, whether it is sound, mending it, and carrying it elsewhere.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::point::point;
use super::text::{self, grouped};
use super::tool::{self, plain};
use super::{load, out};
use crate::buffer::Offset;
use crate::buffer::offline::{self, BufferList, Start, Trouble};
use crate::clock::WallMs;
use crate::gateway::offline::{link_folders, log_folder};
use crate::gateway::{Config, ShownRecord};
use crate::telemetry::replay::ReplayPoint;
use crate::topic::{TopicFilter, TopicName};

/// Bytes of a payload that `peek` shows unless told.
const PAYLOAD_SHOWN: usize = 256;

/// `tidegate buffer`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// List the links' buffers: segments, sizes, depth, oldest record
    Ls {
        /// Only this link's
        link: Option<String>,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a buffer's segments, or the frames of one segment
    Inspect {
        /// The link
        link: String,
        /// The segment: its file's name, or its first record
        segment: Option<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show messages that a buffer holds
    Peek(Peek),
    /// Verify every checksum: exit code 1 on any damage
    Verify {
        /// Only this link's
        link: Option<String>,
        /// Print what is damaged as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what mending a buffer's files would do; with --yes, do it. The gateway must be stopped
    Repair {
        /// The link
        link: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Write what a buffer owes to a file, to be carried to another gateway; it stays in the buffer
    Export {
        /// The link
        link: String,
        /// The file
        file: PathBuf,
        /// Begin here: an offset, a time such as `2026-11-26T08:00:00Z`, or how long ago, such as `2h`
        #[arg(long, value_name = "TIME|OFFSET", value_parser = point)]
        from: Option<ReplayPoint>,
        /// Replace FILE if it is there
        #[arg(long)]
        force: bool,
    },
    /// Take an exported file into a link's buffer; what was taken before is not taken again. The gateway must be stopped
    Import {
        /// The file
        file: PathBuf,
        /// The link; default: the one that it was exported from
        #[arg(long)]
        link: Option<String>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Peek {
    /// The link, all its lanes; or LINK/LANE
    link: String,
    /// Begin here: an offset, a time such as `2026-11-26T08:00:00Z`, or how long ago, such as `2h`; default: the first record that
    /// is owed
    #[arg(long, value_name = "TIME|OFFSET", value_parser = point)]
    from: Option<ReplayPoint>,
    /// So many messages at most
    #[arg(short = 'n', long, default_value_t = 10)]
    count: usize,
    /// Only messages whose topic this filter takes
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// So many bytes of each payload
    #[arg(long, default_value_t = PAYLOAD_SHOWN)]
    payload: usize,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the tools.
pub(crate) fn buffer(args: &Args, config: &Path) -> Outcome {
    let config = load(config)?.0;
    match &args.verb {
        Verb::Ls { link, json } => ls(&config, link.as_deref(), *json),
        Verb::Inspect { link, segment, json } => inspect(&config, link, segment.as_deref(), *json),
        Verb::Peek(args) => peek(&config, args),
        Verb::Verify { link, json } => verify(&config, link.as_deref(), *json),
        Verb::Repair { link, yes } => repair(&config, link, *yes),
        Verb::Export { link, file, from, force } => export(&config, link, file, *from, *force),
        Verb::Import { file, link } => import(&config, file, link.as_deref()),
    }
}

fn ls(config: &Config, link: Option<&str>, json: bool) -> Outcome {
    let folders = link_folders(&config.data_dir, link)?;
    let lists: Vec<_> =
        folders.iter().map(|(_, dir)| offline::list(dir)).collect::<Result<_, _>>().map_err(io_failure)?;
    if json {
        tool::print_json(&lists)?;
    } else {
        lists.iter().flat_map(in_list).for_each(|line| out::line(&line));
        out::line(&format!("buffers {}", lists.len()));
    }
    Ok(Exit::Done)
}

/// One figure a line: `LINK FIGURE VALUE`.
fn in_list(list: &BufferList) -> Vec<String> {
    let link = &list.link;
    let mut lines = vec![
        format!("{link} depth {}", list.ledger.buffered),
        format!("{link} cursor {}", list.cursor),
        format!("{link} next {}", list.next),
        format!("{link} segments {}", list.segments.len()),
        format!("{link} bytes {}", list.bytes),
        format!("{link} put_aside {}", list.aside.len()),
    ];
    lines.extend(list.oldest_ms.map(|at| format!("{link} oldest {}", text::utc(WallMs(at)))));
    lines
}

fn inspect(config: &Config, link: &str, segment: Option<&str>, json: bool) -> Outcome {
    let dir = folder(config, link)?;
    let Some(segment) = segment else {
        let list = offline::list(&dir).map_err(io_failure)?;
        if json {
            tool::print_json(&list)?;
        } else {
            in_full(&list).iter().for_each(|line| out::line(line));
        }
        return Ok(Exit::Done);
    };
    let frames = offline::frames(&dir, segment).map_err(io_failure)?;
    let frames = frames.ok_or_else(|| {
        let error =
            anyhow::anyhow!("link `{link}` has no segment `{segment}`: `tidegate buffer inspect {link}` lists them");
        Failure::new(Exit::Usage, error)
    })?;
    if json {
        tool::print_json(&frames)?;
    } else {
        for frame in &frames {
            let at = text::utc(WallMs(frame.wall_ms));
            out::line(&format!(
                "frame at {} bytes {} records {} from {} skipped {} durable {} time {at}",
                frame.pos, frame.bytes, frame.count, frame.base, frame.skipped, frame.durable
            ));
        }
        out::line(&format!("frames {}", frames.len()));
    }
    Ok(Exit::Done)
}

fn in_full(list: &BufferList) -> Vec<String> {
    let closed = if list.clean { "in good order" } else { "not: in use, or killed" };
    let mut lines = vec![
        format!("buffer {}", list.id),
        format!("epoch {}", list.epoch),
        format!("closed {closed}"),
        format!("cursor {}", list.cursor),
        format!("durable {}", list.durable),
        format!("next {}", list.next),
    ];
    for segment in &list.segments {
        let epoch = segment.epoch.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
        let state = match (segment.readable, segment.sealed) {
            (false, _) => "damaged header",
            (true, true) => "closed",
            (true, false) => "open",
        };
        lines.push(format!(
            "segment {} records {}..{} bytes {} frames {} epoch {epoch} {state} unreadable {}",
            segment.file, segment.base, segment.next, segment.bytes, segment.frames, segment.unreadable_bytes
        ));
    }
    lines.extend(list.aside.iter().map(|file| format!("put_aside {file}")));
    lines
}

fn peek(config: &Config, args: &Peek) -> Outcome {
    // An offset is of one log.
    let logs = match args.from {
        Some(ReplayPoint::Offset(_)) => vec![log_folder(&config.data_dir, &args.link)?],
        Some(ReplayPoint::TimeMs(_)) | None => link_folders(&config.data_dir, Some(&args.link))?,
    };
    let filter = args.topic.as_deref().map(TopicFilter::new).transpose();
    let filter = filter.map_err(|error| Failure::new(Exit::Usage, anyhow::anyhow!("--topic: {error}")))?;
    let (mut shown, mut more, mut damaged) = (Vec::new(), false, Vec::new());
    for (lane, dir) in &logs {
        let lane = (logs.len() > 1).then(|| lane.name().to_owned());
        let lost = offline::records(dir, start(args.from), |record| {
            let record = ShownRecord { lane: lane.clone(), ..ShownRecord::of(&record, args.payload) };
            let topic = TopicName::new(&record.message.topic).ok();
            let wanted = filter.as_ref().is_none_or(|filter| topic.is_some_and(|topic| filter.matches(&topic)));
            if !wanted {
                return ControlFlow::Continue(());
            }
            if shown.len() >= args.count {
                more = true;
                return ControlFlow::Break(());
            }
            if args.json {
                shown.push(record);
            } else {
                // One by one: what is shown is not held.
                lines_of(&record).iter().for_each(|line| out::line(line));
                shown.push(ShownRecord::default());
            }
            ControlFlow::Continue(())
        });
        damaged.extend(lost.map_err(io_failure)?);
    }
    if args.json {
        tool::print_json(&shown)?;
    } else {
        out::line(&format!("messages {}{}", shown.len(), if more { ", and more: -n shows more" } else { "" }));
    }
    for (first, last) in &damaged {
        out::complain(&format!(
            "tidegate: records {} to {} are owed, and lost to damage of the files",
            first.0, last.0
        ));
    }
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::No })
}

fn lines_of(record: &ShownRecord) -> Vec<String> {
    let mut lines: Vec<_> = record.lane.iter().map(|lane| format!("lane {lane}")).collect();
    lines.push(format!("offset {}", record.offset));
    lines.push(format!("appended {}", text::utc(WallMs(record.appended_ms))));
    lines.extend(record.expires_ms.map(|at| format!("expires {}", text::utc(WallMs(at)))));
    lines.extend(super::dead_letters::message(&record.message));
    lines.push(String::new());
    lines
}

fn verify(config: &Config, link: Option<&str>, json: bool) -> Outcome {
    let report = super::audit::report(&config.data_dir, link, false)?;
    let damaged: Vec<_> = report
        .links
        .iter()
        .flat_map(|audit| audit.findings.iter().map(|finding| (&audit.link, finding)))
        .filter(|(_, finding)| finding.trouble == Trouble::Damaged)
        .collect();
    if json {
        let damaged: Vec<_> =
            damaged.iter().map(|(link, finding)| json!({ "link": link, "finding": finding })).collect();
        tool::print_json(&damaged)?;
    } else {
        for audit in &report.links {
            let (link, segments, frames) = (&audit.link, audit.segments, audit.frames);
            out::line(&format!("{link} segments {segments}"));
            out::line(&format!("{link} frames {frames}"));
            out::line(&format!("{link} records {}", audit.records));
            out::line(&format!("{link} damaged_bytes {}", audit.damaged_bytes));
        }
        for (link, finding) in &damaged {
            out::line(&format!("{link} damaged {}", super::audit::finding(finding)));
        }
        out::line(&format!("damaged {}", damaged.len()));
    }
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::No })
}

fn repair(config: &Config, link: &str, yes: bool) -> Outcome {
    let locked = tool::lock_or_refuse(&config.data_dir, "repair")?;
    let dir = locked.log(link)?;
    let done = offline::repair(&dir, !yes).map_err(io_failure)?;
    for line in &done {
        out::line(&plain(line));
    }
    let verb = if yes { "repaired" } else { "to_repair" };
    out::line(&format!("{verb} {}", done.len()));
    if !yes && !done.is_empty() {
        out::line("nothing was changed: --yes does it");
        return Ok(Exit::No);
    }
    Ok(Exit::Done)
}

fn export(config: &Config, link: &str, file: &Path, from: Option<ReplayPoint>, force: bool) -> Outcome {
    let dir = folder(config, link)?;
    if !force && file.symlink_metadata().is_ok() {
        // It may hold what another site's gateway has exported.
        let words =
            anyhow::anyhow!("{} is there already: choose another name, or replace it with --force", file.display());
        return Err(Failure::new(Exit::Io, words));
    }
    let manifest = offline::export(&dir, &config.site, start(from), file).map_err(carry_failure)?;
    out::line(&format!("exported {}", manifest.records));
    if let Some((first, last)) = manifest.range {
        out::line(&format!("first {}", first.0));
        out::line(&format!("last {}", last.0));
    }
    out::line(&format!("missing {}", manifest.missing));
    // The file has what is sound; that it is not all is not to be overlooked.
    Ok(if manifest.missing == 0 { Exit::Done } else { Exit::No })
}

fn import(config: &Config, file: &Path, link: Option<&str>) -> Outcome {
    let locked = tool::lock_or_refuse(&config.data_dir, "import")?;
    let imported = locked.import(config, file, link)?;
    out::line(&format!("imported {}", imported.taken));
    out::line(&format!("there_already {}", imported.before));
    out::line(&format!("in_file {}", grouped(imported.manifest.records)));
    out::line(&format!("missing {}", imported.manifest.missing));
    out::line(&format!("from_site {}", plain(&imported.manifest.site)));
    Ok(Exit::Done)
}

fn folder(config: &Config, link: &str) -> Result<PathBuf, Failure> {
    Ok(log_folder(&config.data_dir, link)?.1)
}

/// Where to begin reading; unless told, with the first record that is owed.
fn start(from: Option<ReplayPoint>) -> Start {
    match from {
        None => Start::Cursor,
        Some(ReplayPoint::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(ReplayPoint::TimeMs(ms)) => Start::Time(WallMs(ms)),
    }
}

fn io_failure(error: crate::buffer::OpenError) -> Failure {
    Failure::new(Exit::Io, error)
}

fn carry_failure(error: offline::CarryError) -> Failure {
    crate::gateway::offline::ToolError::from(error).into()
}
