//! `tidegate test`: what messages should become, written down and checked, for users' CI. It asks the same plan as the
//! gateway follows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::exit::{Exit, Failure, Outcome};
use super::tool::{self, plain};
use super::{out, routes_of};
use crate::gateway::explain::{Output, Question, Routes};

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

/// A file of tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// The routes, from the folder of this file; else `-c`.
    config: Option<PathBuf>,
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Messages that come first, for `throttle` and `dedup`; what becomes of them is not looked at.
    #[serde(default)]
    before: Vec<Given>,
    message: Given,
    /// All that leaves, in any order; what local clients get of the message as it was published does not count.
    expect: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    topic: String,
    from: Option<String>,
    /// A text as it is; anything else as JSON.
    payload: Option<Value>,
    /// One that is no text, in base64.
    payload_base64: Option<String>,
    qos: Option<u8>,
    #[serde(default)]
    retain: bool,
    client_id: Option<String>,
    user: Option<String>,
    /// Milliseconds since 1970; without it now.
    time: Option<u64>,
    content_type: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

/// What is not named is not looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// `LINK/DESTINATION`, `broker/TOPIC`.
    to: String,
    route: Option<String>,
    key: Option<String>,
    payload: Option<Value>,
    /// Parts of the payload.
    #[serde(default)]
    contains: Parts,
    qos: Option<u8>,
    retain: Option<bool>,
    priority: Option<String>,
    content_type: Option<String>,
    /// A part of how it is sent together with others.
    batch: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    /// A part of the reason of the dead letter that it becomes.
    dead_letter: Option<String>,
}

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Parts {
    One(String),
    Several(Vec<String>),
}

impl Default for Parts {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
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

/// Runs all tests of all files.
pub(crate) fn test(args: &Args, config: impl Fn() -> Result<PathBuf, Failure>) -> Outcome {
    let mut verdicts = Vec::new();
    for file in &args.files {
        let suite = read(file)?;
        let routes = match &suite.config {
            Some(beside) => routes_of(&file.parent().unwrap_or_else(|| Path::new("")).join(beside))?,
            None => routes_of(&config()?)?,
        };
        verdicts.extend(suite.tests.iter().map(|case| judge(file, case, &routes)));
    }
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

fn read(file: &Path) -> Result<Suite, Failure> {
    let named = |error: anyhow::Error| error.context(file.display().to_string());
    let text = std::fs::read_to_string(file).map_err(|error| Failure::new(Exit::Io, named(error.into())))?;
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| Failure::new(Exit::Config, named(anyhow::anyhow!("{error}"))))
}

fn judge(file: &Path, case: &Case, routes: &Routes) -> Verdict {
    routes.forget();
    let question = |given| question(given).map_err(|error| format!("payload_base64: {error}"));
    let ask = |given| question(given).and_then(|question| routes.explain(&question).map_err(|error| error.to_string()));
    let earlier = case.before.iter().map(ask).find_map(Result::err);
    let differences = match earlier.map_or_else(|| ask(&case.message), Err) {
        Ok(explained) => {
            let routed = explained.outputs.into_iter().filter(|output| output.route.is_some());
            compare(&case.expect, routed.collect())
        }
        Err(error) => vec![error],
    };
    Verdict { file: file.display().to_string(), name: case.name.clone(), passed: differences.is_empty(), differences }
}

fn question(given: &Given) -> Result<Question, base64::DecodeError> {
    let bytes = given.payload_base64.as_ref().map(|text| BASE64_STANDARD.decode(text)).transpose()?;
    Ok(Question {
        from: given.from.clone(),
        topic: given.topic.clone(),
        payload: bytes.or_else(|| given.payload.as_ref().map(bytes_of)).unwrap_or_default().into(),
        qos: given.qos.unwrap_or(1),
        retain: given.retain,
        client_id: given.client_id.clone(),
        user: given.user.clone(),
        time_ms: given.time,
        content_type: given.content_type.clone(),
        properties: given.properties.clone().into_iter().collect(),
    })
}

/// Each expectation takes one output: one that fits, else the one of its name, whose differences are told.
fn compare(expected: &[Expected], outputs: Vec<Output>) -> Vec<String> {
    let mut left: Vec<Option<Output>> = outputs.into_iter().map(Some).collect();
    let mut take = |wanted: &dyn Fn(&Output) -> bool| {
        left.iter_mut().find(|output| output.as_ref().is_some_and(wanted)).and_then(Option::take)
    };
    // Those that fit as they are go first, so that an expectation that fails does not take the output of another.
    let failed: Vec<_> =
        expected.iter().filter(|one| take(&|output: &Output| one.differences(output).is_empty()).is_none()).collect();
    let mut told = Vec::new();
    for one in failed {
        match take(&|output: &Output| address(output) == one.to) {
            Some(output) => told.extend(one.differences(&output).into_iter().map(|text| format!("{}: {text}", one.to))),
            None => told.push(format!("{}: expected, and nothing goes there", one.to)),
        }
    }
    told.extend(left.into_iter().flatten().map(|output| {
        let by = output.route.as_deref().unwrap_or_default();
        format!("{}: not expected, by route `{by}`", address(&output))
    }));
    told
}

fn address(output: &Output) -> String {
    format!("{}/{}", output.target, output.destination)
}

impl Expected {
    fn differences(&self, output: &Output) -> Vec<String> {
        let mut told = Vec::new();
        if address(output) != self.to {
            told.push(format!("goes to {}", address(output)));
        }
        let mut differ = |what: &str, wanted: Option<String>, found: Option<String>| {
            if wanted.is_some() && wanted != found {
                let shown = |text: Option<String>| text.unwrap_or_else(|| "nothing".to_owned());
                told.push(format!("{what} is {}, not {}", shown(found), shown(wanted)));
            }
        };
        differ("route", self.route.clone(), output.route.clone());
        differ("key", self.key.clone(), output.key.clone());
        differ("qos", self.qos.map(|qos| qos.to_string()), Some(output.qos.to_string()));
        differ("retain", self.retain.map(|retain| retain.to_string()), Some(output.retain.to_string()));
        differ("priority", self.priority.clone(), output.priority.map(str::to_owned));
        differ("content_type", self.content_type.clone(), output.content_type.clone());
        for (name, wanted) in &self.properties {
            let found = output.properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            differ(&format!("property {name}"), Some(wanted.clone()), found);
        }
        match (&self.dead_letter, &output.failure) {
            (Some(wanted), Some(found)) if found.contains(wanted.as_str()) => {}
            (None, None) => {}
            (_, found) => differ(
                "dead_letter",
                Some(self.dead_letter.clone().unwrap_or_else(|| "nothing".to_owned())),
                Some(found.clone().unwrap_or_else(|| "nothing".to_owned())),
            ),
        }
        if let Some(wanted) = &self.batch
            && !output.batch.as_deref().is_some_and(|found| found.contains(wanted.as_str()))
        {
            differ("batch", Some(wanted.clone()), output.batch.clone());
        }
        let parts = match &self.contains {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Several(parts) => parts,
        };
        for part in parts.iter().filter(|part| !output.payload.contains(part.as_str())) {
            differ("payload", Some(format!("one with {part}")), Some(output.payload.clone()));
        }
        if let Some(wanted) = &self.payload
            && !same_payload(wanted, &output.payload)
        {
            differ(
                "payload",
                Some(String::from_utf8_lossy(&bytes_of(wanted)).into_owned()),
                Some(output.payload.clone()),
            );
        }
        told
    }
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

fn bytes_of(payload: &Value) -> Vec<u8> {
    match payload {
        Value::String(text) => text.clone().into_bytes(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            payload.to_string().into_bytes()
        }
    }
}
