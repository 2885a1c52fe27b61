//! `tidegate dead-letters`: what a remote refused for good: seen, sent again, or dropped.

use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::text::{self, grouped};
use super::tool::{self, plain};
use super::{load, out};
use crate::buffer::Lane;
use crate::clock::WallMs;
use crate::gateway::{Letter, LetterList, SettledLetter, ShownMessage, UnreadLetter};

/// `tidegate dead-letters`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// List the letters of a link: id (LINK/LANE ID where lanes have letters), time, attempts, topic, bytes, reason
    List {
        /// The link, all its lanes; or LINK/LANE
        link: String,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show letters with their messages
    Show(Which),
    /// Send letters again: their records are owed once more, at the end of the line, and do not expire
    Send(Which),
    /// Drop letters for good: their records stay counted as dead_lettered
    Drop(Which),
}

#[derive(Clone, Debug, clap::Args)]
struct Which {
    /// The link; LINK/high, LINK/normal or LINK/low where several of its lanes have these ids
    link: String,
    /// The letters' ids, as `list` shows them
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<u64>,
    /// All letters of the link
    #[arg(long)]
    all: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Which {
    fn ids(&self) -> Option<Vec<u64>> {
        (!self.all).then(|| self.ids.clone())
    }
}

/// Reads or changes the log on the files, or asks the gateway that has them.
pub(crate) fn dead_letters(args: &Args, config: &Path) -> Outcome {
    let config = load(config)?.0;
    match &args.verb {
        Verb::List { link, json } => {
            let list = read(&config.data_dir, link, None, "list")?;
            if *json {
                tool::print_json(&list.letters)?;
            } else {
                let has_lanes = list.letters.iter().any(|letter| letter.lane != Lane::Normal.name());
                let log = |letter: &Letter| format!("{}/{} ", Lane::split(link).0, letter.lane);
                let log = |letter: &Letter| if has_lanes { log(letter) } else { String::new() };
                list.letters.iter().for_each(|letter| out::line(&in_list(letter, &log(letter))));
                out::line(&format!("dead_letters {}", list.letters.len()));
            }
            Ok(name_damaged(&list))
        }
        Verb::Show(which) => {
            let list = read(&config.data_dir, &which.link, which.ids(), "show")?;
            if which.json {
                tool::print_json(&list.letters)?;
            } else {
                list.letters.iter().flat_map(in_full).for_each(|line| out::line(&line));
            }
            Ok(name_damaged(&list))
        }
        Verb::Send(which) => settle(&config, which, true),
        Verb::Drop(which) => settle(&config, which, false),
    }
}

fn read(data_dir: &Path, link: &str, ids: Option<Vec<u64>>, verb: &str) -> Result<LetterList, Failure> {
    match tool::lock(data_dir)? {
        Some(locked) => Ok(locked.letters(link, ids.as_deref(), verb == "show")?),
        None => {
            let arguments = json!({ "link": link, "verb": verb, "ids": ids });
            tool::block_on(tool::ask(data_dir, "dead-letters", &arguments))
        }
    }
}

fn settle(config: &crate::gateway::Config, which: &Which, send: bool) -> Outcome {
    let done: Vec<SettledLetter> = match tool::lock(&config.data_dir)? {
        Some(locked) => {
            tool::block_on(async { Ok(locked.settle_letters(config, &which.link, send, which.ids()).await?) })?
        }
        None => {
            let verb = if send { "send" } else { "drop" };
            let arguments = json!({ "link": which.link, "verb": verb, "ids": which.ids() });
            tool::block_on(tool::ask(&config.data_dir, "dead-letters", &arguments))?
        }
    };
    let damaged = done.iter().filter(|settled| settled.error.is_some()).count();
    if which.json {
        tool::print_json(&done)?;
    } else {
        for settled in &done {
            let id = named(&settled.lane, settled.id);
            match (settled.offset, &settled.error) {
                (_, Some(error)) => out::complain(&plain(&format!("tidegate: {error}"))),
                (Some(offset), None) => out::line(&format!("letter {id} sent again, as record {offset}")),
                (None, None) => out::line(&format!("letter {id} dropped")),
            }
        }
        out::line(&format!("{} {}", if send { "sent" } else { "dropped" }, done.len() - damaged));
        if damaged > 0 {
            out::line(&format!("damaged {damaged}"));
        }
    }
    Ok(if damaged == 0 { Exit::Done } else { Exit::No })
}

/// A letter by its id, and its lane where that is not the normal one.
fn named(lane: &str, id: u64) -> String {
    if lane == "normal" { id.to_string() } else { format!("{lane} {id}") }
}

/// Letters that do not read back are not to be overlooked.
fn name_damaged(list: &LetterList) -> Exit {
    for UnreadLetter { lane, id, text } in &list.damaged {
        let which = id.map_or_else(|| format!("a letter of lane {lane}"), |id| format!("letter {}", named(lane, id)));
        out::complain(&plain(&format!("tidegate: {which} cannot be read: {text}")));
    }
    if list.damaged.is_empty() { Exit::Done } else { Exit::No }
}

/// One line: `ID  TIME  attempts N  TOPIC -> DESTINATION  N bytes  REASON`. `log`: as the other commands take it, where the id
/// alone could be of several lanes.
fn in_list(letter: &Letter, log: &str) -> String {
    let ShownMessage { topic, destination, payload_bytes, .. } = &letter.message;
    let (id, time, attempts) = (letter.id, text::utc(WallMs(letter.time_ms)), letter.attempts);
    let reason = &letter.reason;
    plain(&format!("{log}{id}  {time}  attempts {attempts}  {topic} -> {destination}  {payload_bytes} bytes  {reason}"))
}

fn in_full(letter: &Letter) -> Vec<String> {
    let mut lines = vec![
        format!("lane {}", plain(&letter.lane)),
        format!("id {}", letter.id),
        format!("refused {}", text::utc(WallMs(letter.time_ms))),
        format!("attempts {}", letter.attempts),
        format!("reason {}", plain(&letter.reason)),
    ];
    lines.extend(message(&letter.message));
    lines.push(String::new());
    lines
}

/// A message, one part a line.
pub(crate) fn message(message: &ShownMessage) -> Vec<String> {
    if let Some(error) = &message.error {
        return vec![format!("message unreadable: {}", plain(error)), format!("record {}", plain(&message.payload))];
    }
    let mut lines = vec![
        format!("message {}", message.id),
        format!("topic {}", message.topic),
        format!("destination {}", message.destination),
        format!("qos {}", message.qos),
        format!("time {}", text::utc(WallMs(message.time_ms))),
        format!("site {}", message.site),
    ];
    let optional = [("key", &message.key), ("client", &message.client_id), ("content_type", &message.content_type)];
    lines.extend(optional.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))));
    if message.retain {
        lines.push("retain yes".to_owned());
    }
    lines.extend(message.properties.iter().map(|(name, value)| format!("property {name}={value}")));
    let cut = if message.payload_is_cut { ", cut" } else { "" };
    let (bytes, how) = (grouped(message.payload_bytes), &message.payload_as);
    lines.push(format!("payload ({bytes} bytes, {how}{cut}) {}", message.payload));
    lines.iter().map(|line| plain(line)).collect()
}
