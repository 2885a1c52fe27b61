//! `tidegate replay`: sends again what a link's buffer still holds, through the running gateway.

use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::out;
use super::text::{self, grouped};
use super::tool::{self, plain};
use crate::clock::{self, WallMs};
use crate::telemetry::replay::{ReplayCounts, ReplayPoint, ReplayRequest, ReplayState, ReplayStatus};
use crate::units::{ByteSize, parse_duration};

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

fn point(text: &str) -> Result<ReplayPoint, String> {
    if let Ok(offset) = text.parse() {
        return Ok(ReplayPoint::Offset(offset));
    }
    if let Ok(ago) = parse_duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(ReplayPoint::TimeMs(clock::wall().0.saturating_sub(ago)));
    }
    moment(text).map(ReplayPoint::TimeMs).ok_or_else(|| {
        "an offset such as `1200`, a time such as `2026-11-26T08:00:00Z` or `2026-11-26`, or how long ago, such as `2h`"
            .to_owned()
    })
}

/// RFC 3339, in milliseconds since the epoch; a date alone is its midnight in UTC.
fn moment(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let days = days_since_epoch(date)?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let hour = two_digits(parts.next()?, 23)?;
    let minute = two_digits(parts.next()?, 59)?;
    // 60 is a leap second.
    let second = parts.next().map_or(Some(0), |text| two_digits(text, 60))?;
    if parts.next().is_some() || fraction.is_empty() || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let local = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + ms;
    u64::try_from(local - zone_minutes(zone)? * 60_000).ok()
}

/// `Z`, `+01:00`.
fn zone_minutes(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let (hours, minutes) = rest.split_once(':')?;
    let minutes = two_digits(hours, 23)? * 60 + two_digits(minutes, 59)?;
    Some(if sign == "-" { -minutes } else { minutes })
}

fn two_digits(text: &str, most: i64) -> Option<i64> {
    let is_number = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number <= most)
}

/// Of `2026-11-26`.
fn days_since_epoch(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let year: i64 = parts.next().filter(|year| year.len() == 4).and_then(|year| year.parse().ok())?;
    let month = two_digits(parts.next()?, 12).filter(|month| *month >= 1)?;
    let day = two_digits(parts.next()?, 31).filter(|day| *day >= 1)?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month - 1).ok()?;
    if parts.next().is_some() || day > *lengths.get(before)? || year < 1_970 {
        return None;
    }
    let past = year - 1;
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let days = (year - 1_970) * 365 + leaps(past) - leaps(1_969);
    Some(days + lengths.iter().take(before).sum::<i64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::replay::ReplayLane;

    #[test]
    fn moments_are_read_as_they_are_written() {
        for ms in [0, 951_782_400_000, 1_709_251_199_000, 1_798_761_600_000, 4_107_542_400_000, 13_574_563_200_000] {
            assert_eq!(moment(&text::utc(WallMs(ms))), Some(ms), "{}", text::utc(WallMs(ms)));
        }
        for (text, ms) in [
            ("2026-11-26", 1_795_651_200_000),
            ("2026-11-26T01:30:00.25+01:30", 1_795_651_200_250),
            ("2026-11-25 19:00-05:00", 1_795_651_200_000),
        ] {
            assert_eq!(moment(text), Some(ms), "{text}");
        }
        for text in
            ["", "yesterday", "2026-13-01", "2026-02-29", "2026-11-26T25:00:00Z", "2026-11-26T10:00:00", "1969-01-01"]
        {
            assert_eq!(moment(text), None, "{text}");
        }
    }

    #[test]
    fn a_point_is_an_offset_a_time_or_how_long_ago() {
        assert_eq!(point("17"), Ok(ReplayPoint::Offset(17)));
        assert_eq!(point("2026-11-26"), Ok(ReplayPoint::TimeMs(1_795_651_200_000)));
        let Ok(ReplayPoint::TimeMs(ms)) = point("2h") else { panic!() };
        assert!(clock::wall().0 - ms >= 7_200_000);
        assert!(point("2 moons").unwrap_err().contains("how long ago"));
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
