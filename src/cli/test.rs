//! `tidegate test`: what messages should become, written down and checked, for users' CI. It asks the same plan as the
//! gateway follows.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::exit::{Exit, Failure, Outcome};
use super::tool::{self, plain};
use super::{explain, out, routes_of, unusable};
use crate::config::{self, Case, Expected, Given, Suite};
use crate::gateway::explain::{Arrived, Explanation, Output, Question, Routes, Said};

/// `tidegate test`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Files of tests
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// One test's outcome.
#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    name: String,
    passed: bool,
    /// What differs, one thing a line.
    differences: Vec<String>,
}

/// Runs all tests of all files; none where one of the files, or of those that they name, cannot be used: then each says why.
pub(crate) fn test(args: &Args, config: impl Fn() -> Result<PathBuf, Failure>) -> Outcome {
    let mut suites = Vec::new();
    let mut failure: Option<Failure> = None;
    for file in &args.files {
        match read(file, &config) {
            Ok((routes, suite)) => suites.push((file, routes, suite)),
            Err(wrong) => {
                for wrong in wrong {
                    match &mut failure {
                        Some(first) => first.note(format!("{:#}", wrong.error)),
                        None => failure = Some(wrong),
                    }
                }
            }
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let judged = |(file, routes, suite): &(&PathBuf, Routes, Suite)| {
        suite.tests.iter().map(|case| judge(file, case, routes)).collect::<Vec<_>>()
    };
    let verdicts: Vec<Verdict> = suites.iter().flat_map(judged).collect();
    let failed = verdicts.iter().filter(|verdict| !verdict.passed).count();
    if args.json {
        tool::print_json(&verdicts)?;
    } else {
        for verdict in &verdicts {
            let word = if verdict.passed { "ok" } else { "FAILED" };
            out::line(&plain(&format!("{word} {}: {}", verdict.file, verdict.name)));
            verdict.differences.iter().for_each(|line| out::line(&plain(&format!("    {line}"))));
        }
        out::line(&format!("passed {}", verdicts.len() - failed));
        out::line(&format!("failed {failed}"));
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::No })
}

/// A file of tests and its routes; else all that is wrong with both.
fn read(file: &Path, config: impl Fn() -> Result<PathBuf, Failure>) -> Result<(Routes, Suite), Vec<Failure>> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| vec![Failure::new(Exit::Io, anyhow::Error::new(error).context(file.display().to_string()))])?;
    let suite = config::suite(file, text);
    let beside = suite.config.as_ref().map(|beside| file.parent().unwrap_or_else(|| Path::new("")).join(beside));
    if let Some(beside) = &beside
        && let Err(error) = std::fs::metadata(beside)
    {
        return Err(vec![unusable(file, &suite.without_config(beside, &error))]);
    }
    match beside.map_or_else(config, Ok).and_then(|file| routes_of(&file)) {
        Ok(routes) => {
            let (links, names): (Vec<_>, Vec<_>) = (routes.links().collect(), routes.routes().collect());
            let mistakes = suite.mistakes(Some((&links, &names)));
            if mistakes.is_empty() { Ok((routes, suite)) } else { Err(vec![unusable(file, &mistakes)]) }
        }
        Err(wrong) => {
            let mistakes = suite.mistakes(None);
            let own = (!mistakes.is_empty()).then(|| unusable(file, &mistakes));
            Err(own.into_iter().chain([wrong]).collect())
        }
    }
}

fn judge(file: &Path, case: &Case, routes: &Routes) -> Verdict {
    routes.forget();
    let ask = |given: &Given| routes.explain(&question(given)).map_err(|error| error.to_string());
    let earlier = case.before.iter().map(ask).find_map(Result::err);
    let differences = match earlier.map_or_else(|| ask(&case.message), Err) {
        Ok(explained) => {
            let Explanation { arrivals, stopped, outputs, .. } = explained;
            let routed = outputs.into_iter().filter(|output| output.route.is_some());
            compare(&case.expect, routed.collect(), &arrivals, stopped.as_deref())
        }
        Err(error) => vec![error],
    };
    Verdict { file: file.display().to_string(), name: case.name.clone(), passed: differences.is_empty(), differences }
}

fn question(given: &Given) -> Question {
    let given = given.clone();
    Question {
        from: given.from,
        topic: given.topic,
        payload: given.payload.into(),
        qos: given.qos,
        retain: given.retain,
        client_id: given.client_id,
        user: given.user,
        time_ms: given.time,
        content_type: given.content_type,
        response_topic: given.response_topic,
        properties: given.properties,
    }
}

/// Each expectation takes one output: one that fits, else the one of its name, whose differences are told.
fn compare(expected: &[Expected], outputs: Vec<Output>, arrivals: &[Arrived], stopped: Option<&str>) -> Vec<String> {
    let mut left: Vec<Option<Output>> = outputs.into_iter().map(Some).collect();
    let mut take = |wanted: &dyn Fn(&Output) -> bool| {
        left.iter_mut().find(|output| output.as_ref().is_some_and(wanted)).and_then(Option::take)
    };
    // Those that fit as they are go first, so that an expectation that fails does not take the output of another.
    let failed: Vec<_> =
        expected.iter().filter(|one| take(&|output: &Output| differences(one, output).is_empty()).is_none()).collect();
    let mut told = Vec::new();
    for one in failed {
        match take(&|output: &Output| address(output) == one.to) {
            Some(output) => {
                told.extend(differences(one, &output).into_iter().map(|text| format!("{}: {text}", one.to)));
            }
            None => {
                told.push(format!("{}: expected, and nothing goes there", one.to));
                let reasons = stopped.map_or_else(|| reasons(one, arrivals), |why| vec![format!("stopped: {why}")]);
                told.extend(reasons.into_iter().map(|reason| format!("  {reason}")));
            }
        }
    }
    told.extend(left.into_iter().flatten().map(|output| {
        let by = output.route.as_deref().unwrap_or_default();
        match &output.failure {
            Some(reason) => format!("{}: not expected, {}: {reason}", address(&output), lost(&output)),
            None => format!("{}: not expected, by route `{by}`", address(&output)),
        }
    }));
    told
}

/// Why the route that is named does not take the message; without a name, why those do not whose topic it has.
fn reasons(expected: &Expected, arrivals: &[Arrived]) -> Vec<String> {
    let all = || arrivals.iter().flat_map(|arrived| arrived.routes.iter().map(move |said| (arrived, said)));
    let is_meant = |said: &Said| match &expected.route {
        Some(route) => *route == said.route,
        None => !matches!(said.verdict, "other_topic"),
    };
    let meant = all().filter(|(_, said)| said.verdict != "taken" && is_meant(said));
    let mut reasons: Vec<_> = meant.map(|(arrived, said)| format!("{}:{}", arrived.at, explain::said(said))).collect();
    let back = all().filter(|(_, said)| said.verdict == "taken" && is_meant(said));
    reasons.extend(back.flat_map(|(arrived, said)| explain::not_sent_back(said, &arrived.at)));
    if reasons.is_empty() && !all().any(|(_, said)| said.verdict == "taken") {
        reasons.extend(arrivals.iter().map(|arrived| format!("no route takes {}", arrived.at)));
    }
    reasons
}

/// The words of [`explain::lost`] in a sentence.
fn lost(output: &Output) -> String {
    let article = if output.target == "broker" { "" } else { "a " };
    format!("{article}{}", explain::lost(output))
}

fn address(output: &Output) -> String {
    format!("{}/{}", output.target, output.destination)
}

/// What an output has that was not expected of it, one thing each.
fn differences(expected: &Expected, output: &Output) -> Vec<String> {
    let mut told = Vec::new();
    if address(output) != expected.to {
        told.push(format!("goes to {}", address(output)));
    }
    // Nothing else of it says anything: it is not sent.
    if let (None, Some(reason)) = (&expected.dead_letter, &output.failure) {
        told.push(format!("{}, which is not expected: {reason}", lost(output)));
        return told;
    }
    let mut differ = |what: &str, wanted: Option<String>, found: Option<String>| {
        if wanted.is_some() && wanted != found {
            let shown = |text: Option<String>| text.unwrap_or_else(|| "nothing".to_owned());
            told.push(format!("{what} is {}, not {}", shown(found), shown(wanted)));
        }
    };
    differ("route", expected.route.clone(), output.route.clone());
    differ("key", expected.key.clone(), output.key.clone());
    differ("qos", expected.qos.map(|qos| qos.to_string()), Some(output.qos.to_string()));
    differ("retain", expected.retain.map(|retain| retain.to_string()), Some(output.retain.to_string()));
    differ("priority", expected.priority.map(str::to_owned), output.priority.map(str::to_owned));
    differ("content_type", expected.content_type.clone(), output.content_type.clone());
    differ("response_topic", expected.response_topic.clone(), output.response_topic.clone());
    for (name, wanted) in &expected.properties {
        let found = output.properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        differ(&format!("property {name}"), Some(wanted.clone()), found);
    }
    if let Some(wanted) = &expected.dead_letter
        && !output.failure.as_deref().is_some_and(|found| found.contains(wanted.as_str()))
    {
        differ("dead_letter", Some(wanted.clone()), output.failure.clone());
    }
    if let Some(wanted) = &expected.batch
        && !output.batch.as_deref().is_some_and(|found| found.contains(wanted.as_str()))
    {
        differ("batch", Some(wanted.clone()), output.batch.clone());
    }
    let plain = output.decompressed.as_ref().unwrap_or(&output.payload);
    for part in expected.contains.iter().filter(|part| !plain.contains(part.as_str())) {
        differ("payload", Some(format!("one with {part}")), Some(plain.clone()));
    }
    told.extend(payload_differences(expected, output));
    told
}

fn payload_differences(expected: &Expected, output: &Output) -> Vec<String> {
    let mut told = Vec::new();
    let encoding = output.properties.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-encoding"));
    match (&expected.payload, &output.decompressed) {
        (Some(wanted), Some(plain)) if !same_payload(wanted, &output.payload) => {
            let by = encoding.map(|(_, name)| name.as_str()).unwrap_or_default();
            let wanted = text_of(wanted);
            told.push(format!(
                "payload is compressed ({by}), not {wanted}: `decompressed` looks into it, and it is {plain}"
            ));
        }
        (Some(wanted), None) if !same_payload(wanted, &output.payload) => {
            told.push(format!("payload is {}, not {}", output.payload, text_of(wanted)));
        }
        (Some(_) | None, _) => {}
    }
    if let Some(wanted) = &expected.decompressed
        && !output.decompressed.as_ref().is_some_and(|found| same_payload(wanted, found))
    {
        let found = output.decompressed.as_deref().unwrap_or("nothing");
        told.push(format!("payload, decompressed, is {found}, not {}", text_of(wanted)));
    }
    told
}

/// A text is compared as it is, anything else as JSON.
fn same_payload(wanted: &Value, found: &str) -> bool {
    match wanted {
        Value::String(text) => text == found,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            serde_json::from_str::<Value>(found).is_ok_and(|found| found == *wanted)
        }
    }
}

fn text_of(payload: &Value) -> String {
    match payload {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => payload.to_string(),
    }
}
