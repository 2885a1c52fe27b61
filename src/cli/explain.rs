//! `tidegate explain`: what would become of a message, and why (R33). Nothing runs and nothing is sent.

use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, Outcome};
use super::point::moment;
use super::tool::{self, plain};
use super::{out, routes_of};
use crate::gateway::explain::{Arrived, Explanation, Output, Question, Said};

/// `tidegate explain`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The message's topic
    topic: String,
    /// Where it comes from: an MQTT link, LINK/QUEUE, LINK/KAFKA-TOPIC [default: the built-in broker]
    #[arg(long, value_name = "LINK")]
    from: Option<String>,
    /// A file with its payload; `-` is standard input
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// A user property or header, NAME=VALUE; may be repeated
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Its QoS
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// It is to be kept as the topic's last value
    #[arg(long)]
    retain: bool,
    /// Who published it
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// That one's user name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// When it was taken: RFC 3339, or milliseconds since 1970 [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<u64>,
    /// Its content type
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Its response topic
    #[arg(long, value_name = "TOPIC")]
    response_topic: Option<String>,
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
}

fn property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "a property is NAME=VALUE".to_owned())
}

fn time(text: &str) -> Result<u64, String> {
    let ms = text.parse().ok().or_else(|| moment(text));
    ms.ok_or_else(|| "a time is such as `2026-11-26T08:00:00Z` or `2026-11-26`, or milliseconds since 1970".to_owned())
}

/// Explains a message by the routes of `file`.
pub(crate) fn explain(args: &Args, file: &Path) -> Outcome {
    let payload = match &args.payload {
        None => Vec::new(),
        Some(path) if path == Path::new("-") => read(path, || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
        })?,
        Some(path) => read(path, || std::fs::read(path))?,
    };
    let question = Question {
        from: args.from.clone(),
        topic: args.topic.clone(),
        payload: payload.into(),
        qos: args.qos,
        retain: args.retain,
        client_id: args.client_id.clone(),
        user: args.user.clone(),
        time_ms: args.time,
        content_type: args.content_type.clone(),
        response_topic: args.response_topic.clone(),
        properties: args.properties.clone(),
    };
    let explained = routes_of(file)?.explain(&question).map_err(|error| Failure::new(Exit::Usage, error))?;
    if args.json {
        tool::print_json(&explained)?;
    } else {
        lines(&explained).iter().for_each(|line| out::line(&plain(line)));
    }
    Ok(if explained.is_taken() { Exit::Done } else { Exit::No })
}

fn read(path: &Path, read: impl FnOnce() -> std::io::Result<Vec<u8>>) -> Result<Vec<u8>, Failure> {
    let error = |error| anyhow::Error::new(error).context(format!("--payload {}", path.display()));
    read().map_err(|why| Failure::new(Exit::Io, error(why)))
}

/// One thing a line; the last two lines are figures.
fn lines(explained: &Explanation) -> Vec<String> {
    let mut lines: Vec<String> = explained.arrivals.iter().flat_map(arrived).collect();
    lines.extend(explained.stopped.iter().map(|why| format!("  stopped: {why}")));
    lines.extend(explained.outputs.iter().flat_map(output));
    let taken = explained.arrivals.iter().flat_map(|arrived| &arrived.routes).filter(|said| said.verdict == "taken");
    lines.extend(explained.hints.iter().map(|hint| format!("hint: {hint}")));
    lines.push(format!("taken {}", taken.count()));
    lines.push(format!("outputs {}", explained.outputs.len()));
    lines
}

fn arrived(arrived: &Arrived) -> Vec<String> {
    let mut lines = vec![arrived.at.clone()];
    for route in &arrived.routes {
        lines.push(said(route));
        lines.extend(not_sent_back(route, "     "));
        lines.extend(route.steps.iter().map(|step| {
            let makes = if step.makes.is_empty() { "nothing new".to_owned() } else { step.makes.join(", ") };
            format!("      {}: {makes}", step.step)
        }));
    }
    if arrived.elsewhere > 0 {
        lines.push(format!("  {} more begin elsewhere", arrived.elsewhere));
    }
    lines
}

/// What a route says, on one line.
pub(super) fn said(said: &Said) -> String {
    let Said { route, because, .. } = said;
    let seen = said.looks_at.iter().map(|(name, value)| match value {
        Some(value) => format!("{name} is {value}"),
        None => format!("there is no {name}"),
    });
    let seen = seen.collect::<Vec<_>>().join(", ");
    let captured: String = said.captures.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    match said.verdict {
        "taken" if because.is_empty() => format!("  + {route}{captured}"),
        "taken" => format!("  + {route}{captured}: {because} ({seen})"),
        "filtered" => format!("  - {route}{captured}: not {because} ({seen})"),
        "suppressed" => format!("  - {route}{captured}: held back by {because}"),
        "too_far" | "too_many" => format!("  - {route}{captured}: not followed, {because}"),
        "echo" => format!("  - {route}{captured}: not sent back to {}, {because}", said.not_sent_back.join(", ")),
        "excepted" => format!("  - {route}: except {because}"),
        _ => format!("  - {route}: the topic does not match {because}"),
    }
}

/// Which targets of a route that takes the message do not get it, since it came from there.
pub(super) fn not_sent_back(said: &Said, at: &str) -> Vec<String> {
    let targets = said.not_sent_back.iter().filter(|_| said.verdict == "taken");
    targets
        .map(|to| format!("{at} not sent back to {to}: by the broker nothing goes back to the link that it came from"))
        .collect()
}

/// What becomes of what is not sent.
pub(super) fn lost(output: &Output) -> &'static str {
    if output.target == "broker" { "not delivered" } else { "dead letter" }
}

fn output(output: &Output) -> Vec<String> {
    let Output { target, destination, qos, .. } = output;
    let by =
        output.route.as_deref().map_or_else(|| "to local clients, as published".to_owned(), |by| format!("by {by}"));
    let mut head = format!("> {target}/{destination}  {by}, qos {qos}");
    if output.retain {
        head.push_str(", retained");
    }
    if let Some(priority) = output.priority.filter(|priority| *priority != "normal") {
        head.push_str(&format!(", priority {priority}"));
    }
    if let Some(ttl) = output.ttl_s {
        head.push_str(&format!(", ttl {ttl}s"));
    }
    let mut lines = vec![head];
    if let Some(batch) = &output.batch {
        lines.push(format!("    batch: {batch}"));
    }
    if let Some(failure) = &output.failure {
        lines.push(format!("    {}: {failure}", lost(output)));
        return lines;
    }
    lines.extend(output.key.iter().map(|key| format!("    key {key}")));
    lines.extend(output.content_type.iter().map(|text| format!("    content type {text}")));
    lines.extend(output.properties.iter().map(|(name, value)| format!("    property {name}={value}")));
    lines.extend(output.response_topic.iter().map(|topic| format!("    response topic {topic}")));
    match &output.decompressed {
        Some(plain) => lines.push(format!("    payload, decompressed: {plain}")),
        None if output.payload.is_empty() => {}
        None => lines.push(format!("    payload {}", output.payload)),
    }
    lines
}
