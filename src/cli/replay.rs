//! `tidegate replay`: sends again what a link's buffer still holds, through the running gateway.

use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::out;
use super::point::point;
use super::text::{self, grouped};
use super::tool::{self, plain};
use crate::clock::WallMs;
use crate::telemetry::replay::{ReplayCounts, ReplayPoint, ReplayRequest, ReplayState, ReplayStatus};
use crate::units::ByteSize;

/// `tidegate replay`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    start: Start,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// List the replays that run, and those that have ended
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// End a replay that runs
    Cancel {
        /// As `list` shows it
        id: String,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Start {
    /// The link whose buffer is read
    #[arg(required = true)]
    link: Option<String>,
    /// Only this lane of it (the routes' `priority`); by default all, high before normal before low
    #[arg(long, value_parser = ["high", "normal", "low"])]
    lane: Option<String>,
    /// Begin with this: an offset, a time such as `2026-11-26T08:00:00Z`, or how long ago, such as `2h`
    #[arg(long, value_name = "TIME|OFFSET", value_parser = point)]
    from: Option<ReplayPoint>,
    /// End before this: the same
    #[arg(long, value_name = "TIME|OFFSET", value_parser = point)]
    until: Option<ReplayPoint>,
    /// Only messages that were published to a topic that matches, such as `factory/+/press/#` or `factory/{line}/#`
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// To another link, and perhaps under another name, such as `lake/archive` or `hq/again/{topic}`
    #[arg(long, value_name = "LINK[/NAME]")]
    into: Option<String>,
    /// At most so many messages a second, such as `100/s`
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Send also messages that have expired, without an expiry
    #[arg(long)]
    expired: bool,
    /// Count what would be sent, and send nothing: exit code 1 if that is nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Asks the gateway with this data folder.
pub(crate) fn replay(args: &Args, data_dir: &Path) -> Outcome {
    match &args.verb {
        None => start(&args.start, data_dir),
        Some(Verb::List { json }) => {
            let replays: Vec<ReplayStatus> = tool::block_on(tool::ask(data_dir, "replay-list", &json!({})))?;
            if *json {
                tool::print_json(&replays)?;
            } else {
                replays.iter().for_each(|replay| out::line(&in_list(replay)));
                out::line(&format!("replays {}", replays.len()));
            }
            Ok(Exit::Done)
        }
        Some(Verb::Cancel { id }) => {
            let arguments = json!({ "id": id });
            let replay: ReplayStatus = tool::block_on(tool::ask(data_dir, "replay-cancel", &arguments))?;
            out::line(&in_list(&replay));
            Ok(Exit::Done)
        }
    }
}

fn start(start: &Start, data_dir: &Path) -> Outcome {
    let request = ReplayRequest {
        link: start.link.clone().unwrap_or_default(),
        lane: start.lane.clone(),
        from: start.from,
        until: start.until,
        topic: start.topic.clone(),
        into: start.into.clone(),
        rate: start.rate,
        expired: start.expired,
    };
    let arguments = serde_json::to_value(&request).map_err(|error| Failure::new(Exit::Bug, error))?;
    if start.dry_run {
        let counts: ReplayCounts = tool::block_on(tool::ask(data_dir, "replay-count", &arguments))?;
        if start.json {
            tool::print_json(&counts)?;
        } else {
            counted(&counts).iter().for_each(|line| out::line(line));
        }
        return Ok(if counts.records > 0 { Exit::Done } else { Exit::No });
    }
    let replay: ReplayStatus = tool::block_on(tool::ask(data_dir, "replay-start", &arguments))?;
    if start.json {
        tool::print_json(&replay)?;
    } else {
        out::line(&in_list(&replay));
        out::line(&format!("see: tidegate replay list    end: tidegate replay cancel {}", replay.id));
    }
    Ok(Exit::Done)
}

/// One figure a line.
fn counted(counts: &ReplayCounts) -> Vec<String> {
    let mut lines = vec![format!("records {}", counts.records), format!("bytes {}", counts.bytes)];
    let ends = [("first", counts.first_ms, counts.first_offset), ("last", counts.last_ms, counts.last_offset)];
    for (name, ms, offset) in ends {
        if let (Some(ms), Some(offset)) = (ms, offset) {
            lines.push(format!("{name}_time {}", text::utc(WallMs(ms))));
            lines.push(format!("{name}_offset {offset}"));
        }
    }
    let others = [("passed_over", counts.passed_over), ("expired", counts.expired), ("unsendable", counts.unsendable)];
    lines.extend(others.map(|(name, value)| format!("{name} {value}")));
    lines
}

/// A replay on one line.
pub(crate) fn in_list(replay: &ReplayStatus) -> String {
    let state = match replay.state {
        ReplayState::Running => "running",
        ReplayState::Done => "done",
        ReplayState::Cancelled => "cancelled",
        ReplayState::Failed => "failed",
    };
    let (through, all) = replay.passed();
    let several = replay.lanes.len() > 1;
    let of = replay.lanes.iter().map(|lane| {
        let name = if several { format!("{} ", plain(&lane.lane)) } else { String::new() };
        format!("{name}{} to {}", lane.from, lane.until)
    });
    let of = of.collect::<Vec<_>>().join(", ");
    let percent = if all == 0 { 100 } else { u128::from(through) * 100 / u128::from(all) };
    let mut line = format!(
        "replay {}  {state}  {}  {percent} % of offsets {of}  sent {} ({})",
        replay.id,
        plain(&replay.way()),
        grouped(replay.replayed),
        ByteSize(replay.bytes),
    );
    let counts = [
        ("passed over", replay.passed_over),
        ("expired", replay.expired),
        ("unsendable", replay.unsendable),
        ("refused", replay.refused),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        line += &format!("  {name} {}", grouped(count));
    }
    if let Some(note) = &replay.note {
        line += &format!("  note: {}", plain(note));
    }
    line
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        Ok(_) | Err(_) => Err("a number of messages a second, such as `100/s`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::replay::ReplayLane;

    #[test]
    fn a_rate_is_messages_a_second() {
        assert_eq!((rate("100/s"), rate("0.5")), (Ok(100.0), Ok(0.5)));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }

    #[test]
    fn a_replay_is_one_line() {
        let request = ReplayRequest { link: "cloud".into(), into: Some("lake/t".into()), ..ReplayRequest::default() };
        let replay = ReplayStatus {
            id: "7f3a91c2".into(),
            request,
            lanes: vec![ReplayLane { lane: "normal".into(), from: 100, until: 300 }],
            lane: "normal".into(),
            from: 100,
            until: 300,
            position: 250,
            replayed: 1_400,
            bytes: 2 << 10,
            refused: 2,
            note: Some("line one\nline two".into()),
            ..ReplayStatus::default()
        };
        let expected = "replay 7f3a91c2  running  cloud -> lake/t  75 % of offsets 100 to 300  sent 1,400 (2KiB)  refused 2  note: line one line two";
        assert_eq!(in_list(&replay), expected);
        let high = ReplayLane { lane: "high".into(), from: 0, until: 200 };
        let lanes = vec![high, replay.lanes[0].clone()];
        let of_lanes = in_list(&ReplayStatus { lanes, ..replay });
        assert!(of_lanes.contains("87 % of offsets high 0 to 200, normal 100 to 300  sent"), "{of_lanes}");
        assert_eq!(
            counted(&ReplayCounts::default()),
            ["records 0", "bytes 0", "passed_over 0", "expired 0", "unsendable 0"]
        );
    }
}
