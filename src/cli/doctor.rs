//! `tidegate doctor`: whether every remote can be reached as configured, and what to do where one cannot.

use serde::Serialize;

use super::exit::{Exit, Failure, Outcome};
use super::{out, tool};
use crate::clock;
use crate::gateway::Config;
use crate::links::doctor::{self, Cause, Finding, Request, Step};
use crate::links::{self, Identity, Kind};
use crate::router::Endpoint;

/// `tidegate doctor`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this link
    link: Option<String>,
    /// Publish one message there, and wait for its confirmation: an MQTT topic, a routing key, a Kafka topic. Who receives
    /// from there gets it, so nothing is published without this
    #[arg(long, value_name = "DESTINATION", requires = "link")]
    probe: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was found of one link.
#[derive(Debug, Serialize)]
struct Examined<'a> {
    link: &'a str,
    kind: &'static str,
    steps: Vec<Step>,
}

/// Examines one link or all of them, one after the other.
pub(crate) fn doctor(args: &Args, config: &Config) -> Outcome {
    let is_meant = |link: &&links::Config| args.link.as_deref().is_none_or(|name| link.id.as_str() == name);
    let meant: Vec<_> = config.links.iter().filter(is_meant).collect();
    if let (Some(name), true) = (&args.link, meant.is_empty()) {
        let known: Vec<_> = config.links.iter().map(|link| link.id.as_str()).collect();
        let wrong = anyhow::anyhow!("there is no link `{name}`; there are: {}", known.join(", "));
        return Err(Failure::new(Exit::Usage, wrong));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Io, anyhow::Error::new(error).context("cannot start threads")))?;
    let clock = clock::system();
    let mut examined = Vec::new();
    for link in meant {
        let identity = Identity { site: config.site.clone(), link: link.id.clone() };
        let request = Request { topics: topics(config, link), probe: args.probe.clone() };
        let steps = runtime.block_on(Box::pin(doctor::examine(link, &identity, &request, &*clock)));
        let found = Examined { link: link.id.as_str(), kind: link.kind.name(), steps };
        if !args.json {
            lines(&found).iter().for_each(|line| out::line(line));
        }
        examined.push(found);
    }
    // A client that still closes holds up nobody.
    runtime.shutdown_background();
    if args.json {
        tool::print_json(&examined)?;
    }
    Ok(examined.iter().flat_map(|link| &link.steps).find_map(exit).unwrap_or(Exit::Done))
}

/// Kafka topics that routes name; where a capture is a part of the name, it depends on the messages.
fn topics(config: &Config, link: &links::Config) -> Vec<String> {
    if !matches!(link.kind, Kind::Kafka(_)) {
        return Vec::new();
    }
    let targets = config.routes.iter().flat_map(|route| &route.to);
    let own =
        targets.filter(|to| to.endpoint == Endpoint::Link(link.id.clone()) && to.template.uses().next().is_none());
    let mut topics: Vec<String> = own.map(|to| to.template.as_str().to_owned()).collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

fn lines(examined: &Examined<'_>) -> Vec<String> {
    let mut lines = vec![format!("{} ({})", examined.link, examined.kind)];
    for Step { step, finding } in &examined.steps {
        match finding {
            Finding::Ok { found } => lines.push(format!("  ok    {step:<9} {}", tool::plain(found))),
            Finding::Failed { error, advice, .. } => {
                lines.push(format!("  FAIL  {step:<9} {}", tool::plain(error)));
                lines.push(format!("        {:<9} {advice}", "to do"));
            }
        }
    }
    lines
}

/// DESIGN.md section 5; the first failure decides.
const fn exit(step: &Step) -> Option<Exit> {
    match &step.finding {
        Finding::Ok { .. } => None,
        Finding::Failed { cause: Cause::Remote, .. } => Some(Exit::Unavailable),
        Finding::Failed { cause: Cause::Permission, .. } => Some(Exit::NotPermitted),
        Finding::Failed { cause: Cause::Configuration, .. } => Some(Exit::Config),
        Finding::Failed { cause: Cause::Probe, .. } => Some(Exit::No),
    }
}
