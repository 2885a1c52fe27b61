//! `tidegate retained`: what the broker has retained: seen, or dropped, also while no client is let in for want of memory.

use std::path::Path;

use serde_json::json;

use super::exit::{Exit, Failure, Outcome};
use super::out;
use super::text::grouped;
use super::tool::{self, plain};
use crate::gateway::RetainedList;
use crate::topic::TopicFilter;

/// `tidegate retained`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// List topics with a retained message: bytes of its payload, topic
    List {
        /// Those that this filter matches
        #[arg(default_value = "#")]
        filter: String,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop retained messages for good; subscribers are not told: exit code 1 where there is none
    Drop {
        /// Those that this filter matches: `a/b`, `a/#`, `#` for all
        filter: String,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Asks the gateway that runs.
pub(crate) fn retained(args: &Args, data_dir: &Path) -> Outcome {
    let (verb, filter, json) = match &args.verb {
        Verb::List { filter, json } => ("list", filter, *json),
        Verb::Drop { filter, json } => ("drop", filter, *json),
    };
    if let Err(error) = TopicFilter::new(filter) {
        return Err(Failure::new(Exit::Usage, anyhow::anyhow!("`{}` is no topic filter: {error}", plain(filter))));
    }
    let arguments = json!({ "verb": verb, "filter": filter });
    let list: RetainedList = tool::block_on(tool::ask(data_dir, "retained", &arguments))?;
    if json {
        tool::print_json(&list)?;
    } else if verb == "list" {
        for one in &list.topics {
            out::line(&plain(&format!("{:>12}  {}", grouped(one.payload_bytes), one.topic)));
        }
        out::line(&format!("retained {}", list.topics.len()));
        out::line(&format!("payload_bytes {}", list.topics.iter().map(|one| one.payload_bytes).sum::<u64>()));
    } else {
        out::line(&format!("dropped {}", list.dropped));
    }
    Ok(if verb == "drop" && list.dropped == 0 { Exit::No } else { Exit::Done })
}
