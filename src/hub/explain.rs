//! What would become of a message, told and not done: the plan that an offer would follow, and what each route says (R33).

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value as Json;

use super::Source;
use super::locals::{LOCALS_MAX, depth};
use super::looped::looped;
use super::plan::{self, CHAIN_MAX, Gates, LinkTarget, Plan};
use crate::clock::{Moment, WallMs};
use crate::message::{Envelope, Message, MessageId, Origin, Properties, Qos, headers};
use crate::router::{Arrival, Captures, Endpoint, Gate, Held, LinkId, Route, Subject, Table, Unpack, Verdict, View};
use crate::topic::{TopicError, TopicName};
use crate::units::show_duration;

/// A message that routes are asked about.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// `broker` (also without it), an MQTT link, `LINK/QUEUE` or `LINK/KAFKA-TOPIC`.
    pub from: Option<String>,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether it is to be kept.
    pub retain: bool,
    /// Who published it.
    pub client_id: Option<String>,
    /// That one's user name.
    pub user: Option<String>,
    /// When it was taken; without it now.
    pub time_ms: Option<u64>,
    /// MQTT 5's Content Type.
    pub content_type: Option<String>,
    /// MQTT 5's Response Topic.
    pub response_topic: Option<String>,
    /// User properties or headers.
    pub properties: Vec<(String, String)>,
}

/// Why no message is as a question says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongMessage {
    /// Not a topic that a message can have.
    #[error("`{0}`: {1}")]
    Topic(String, TopicError),
    /// Not 0, 1 or 2.
    #[error("a QoS is 0, 1 or 2, not {0}")]
    Qos(u8),
}

impl Question {
    /// The message as a gateway of `site` would have it: what its properties say for other gateways holds.
    ///
    /// # Errors
    /// There is none like that.
    pub fn message(&self, site: &Arc<str>, now: WallMs) -> Result<Message, WrongMessage> {
        let topic = TopicName::new(&self.topic).map_err(|error| WrongMessage::Topic(self.topic.clone(), error))?;
        let text = |text: &Option<String>| text.as_deref().map(Arc::from);
        let mut message = Message {
            id: MessageId { site: Arc::clone(site), run: 0, counter: 1 },
            topic,
            payload: self.payload.clone(),
            qos: Qos::from_bits(self.qos).ok_or(WrongMessage::Qos(self.qos))?,
            retain: self.retain,
            time: self.time_ms.map_or(now, WallMs),
            time_unsync: false,
            expiry_s: None,
            // Gates count by it.
            accepted: Moment { wall: now, up_ms: self.time_ms.unwrap_or(now.0), ..Moment::default() },
            origin: Origin {
                site: Arc::clone(site),
                client_id: text(&self.client_id),
                user: text(&self.user),
                ..Origin::default()
            },
            properties: Properties {
                content_type: self.content_type.as_deref().map(Into::into),
                response_topic: self.response_topic.as_deref().map(Into::into),
                user: self.properties.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
                ..Properties::default()
            },
        };
        headers::adopt(&mut message);
        Ok(message)
    }
}

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The first is the message's own; the others are what routes write to the built-in broker, where it is routed on.
    pub arrivals: Vec<Arrived>,
    /// Why it is taken by nobody, whatever routes say: it came round (R12).
    pub stopped: Option<String>,
    /// What leaves: records for links, messages for local clients.
    pub outputs: Vec<Output>,
    /// Where nothing is taken: what the question may have meant.
    pub hints: Vec<String>,
}

/// A message where it is routed.
#[derive(Clone, Debug, Serialize)]
pub struct Arrived {
    /// `broker/TOPIC`, `LINK/QUEUE`.
    pub at: String,
    /// What each route says that begins there.
    pub routes: Vec<Said>,
    /// How many routes begin elsewhere.
    pub elsewhere: usize,
}

/// What one route says.
#[derive(Clone, Debug, Serialize)]
pub struct Said {
    /// Its name.
    pub route: String,
    /// `taken`, `other_topic`, `excepted`, `filtered`, `suppressed`; `too_far`, `too_many`: it matches, and a limit ends it; `echo`: all
    /// that it leads to is the link that the message came from.
    pub verdict: &'static str,
    /// The pattern, the condition, the gate or the limit that decides.
    pub because: String,
    /// What is captured, where the pattern matches.
    pub captures: Vec<(String, String)>,
    /// What the condition looks at, and finds there.
    pub looks_at: Vec<(String, Option<String>)>,
    /// Where it leads and does not send the message, which came from that link, as they are written.
    pub not_sent_back: Vec<String>,
    /// What it makes of the message, step by step, as its first target gets it.
    pub steps: Vec<Step>,
}

/// One step of what a route makes of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its key in the file.
    pub step: &'static str,
    /// What is another than before, one thing each: `payload ..`, `payload.FIELD VALUE`, `no payload.FIELD`, `property NAME=VALUE`,
    /// `content type ..`.
    pub makes: Vec<String>,
}

/// One message that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    /// By which route; none for a client's own publish to the clients of the built-in broker.
    pub route: Option<String>,
    /// `broker`, or the link's name.
    pub target: String,
    /// As the target names it: a topic, a routing key, a Kafka topic. Of what is not sent as the route has it.
    pub destination: String,
    /// The Kafka key, where the route names one.
    pub key: Option<String>,
    /// As the target sees it.
    pub qos: u8,
    /// As the target sees it.
    pub retain: bool,
    /// The route's, in seconds.
    pub ttl_s: Option<u64>,
    /// The lane.
    pub priority: Option<&'static str>,
    /// As text; bytes that are none are replaced.
    pub payload: String,
    /// The same, taken out of what its `content-encoding` says; none where it is not compressed.
    pub decompressed: Option<String>,
    /// User properties.
    pub properties: Vec<(String, String)>,
    /// MQTT 5's Content Type.
    pub content_type: Option<String>,
    /// MQTT 5's Response Topic.
    pub response_topic: Option<String>,
    /// How it is sent together with others; the payload is that of one.
    pub batch: Option<String>,
    /// Why it is not sent: it becomes a dead letter (R28); for the broker, why it is not delivered.
    pub failure: Option<String>,
}

impl Explanation {
    /// Whether a route takes the message.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.arrivals.iter().any(|arrived| arrived.routes.iter().any(|said| said.verdict == "taken"))
    }
}

/// What a link makes of a record: how its remote names the destination; or why it can never be sent, the reason of its dead letter.
pub type Judge<'j> = dyn Fn(&LinkId, Envelope) -> Result<String, String> + 'j;

/// What an offer of `message` from `source` would do at this site, by the plan that it would follow. The gates of `table` remember it.
#[must_use]
pub fn explain(site: &Arc<str>, table: &Table, source: &Source, message: &Message, judge: &Judge<'_>) -> Explanation {
    if let Some(looped) = looped(message, site) {
        let place = source.channel.as_deref().unwrap_or(message.topic.as_str());
        let here = Arrived { at: format!("{}/{place}", source.from), routes: Vec::new(), elsewhere: 0 };
        let (arrivals, stopped) = (vec![here], Some(looped.to_string()));
        return Explanation { arrivals, stopped, outputs: Vec::new(), hints: Vec::new() };
    }
    let plan = plan::plan(table, source, message, Gates { offer: Some(0), has_samples: false });
    for pass in &plan.passes {
        table.enter(pass);
        table.settle(pass);
    }
    let subject = Subject::new(message);
    let topic = message.topic.as_str();
    let first = Arrival { from: &source.from, channel: source.channel.as_deref(), topic, subject: &subject };
    let mut arrivals = vec![arrived(table, source, &plan, &first, None)];
    // A client's own publish is the first arrival itself.
    for (at, local) in plan.locals.iter().enumerate().filter(|(_, local)| local.by.is_some()) {
        let subject = Subject::new(local.message.as_deref().unwrap_or(message));
        let topic = local.topic.as_str();
        let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic, subject: &subject };
        arrivals.push(arrived(table, source, &plan, &arrival, Some(at)));
    }
    Explanation { arrivals, stopped: None, outputs: outputs(table, &plan, message, judge), hints: Vec::new() }
}

/// `local`: its place among the plan's, where a route wrote it.
fn arrived(table: &Table, source: &Source, plan: &Plan, arrival: &Arrival<'_, '_>, local: Option<usize>) -> Arrived {
    let place = arrival.channel.unwrap_or(arrival.topic);
    let is_last = local.is_some_and(|at| depth(&plan.locals, at) >= CHAIN_MAX);
    let held = |at: usize| {
        let reasons = [(Held::TooFar, is_last), (Held::Suppressed, !is_last), (Held::TooMany, !is_last)];
        let held = reasons.into_iter().find(|(held, may_be)| *may_be && plan.held.contains(&(at, *held)));
        held.map(|(held, _)| held)
    };
    let own = |(at, route)| {
        let mut said = said(table, route, held(at), arrival)?;
        say_echoes(&mut said, source, route, local.is_some());
        Some(said)
    };
    let said: Vec<_> = (0..).zip(table.routes()).filter_map(own).collect();
    let elsewhere = table.routes().len() - said.len();
    Arrived { at: format!("{}/{place}", arrival.from), routes: said, elsewhere }
}

/// `None`: it does not begin there. `held`: its gate, or a limit, holds the message back.
fn said(table: &Table, route: &Route, held: Option<Held>, arrival: &Arrival<'_, '_>) -> Option<Said> {
    let own = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    let patterns = || {
        let begins = route.from.iter().filter(|from| from.endpoint == *arrival.from);
        let patterns = begins.filter_map(|from| from.pattern.as_ref());
        patterns.map(|pattern| pattern.as_str()).collect::<Vec<_>>().join(", ")
    };
    let condition = route.filter.as_ref().map(|filter| filter.as_str()).unwrap_or_default();
    let (verdict, because, captures) = match route.judge(arrival) {
        Verdict::OtherSource => return None,
        Verdict::OtherTopic => ("other_topic", patterns(), None),
        Verdict::Excepted(at) => {
            let except = route.except.get(at).map(|pattern| pattern.as_str().to_owned());
            ("excepted", except.unwrap_or_default(), None)
        }
        Verdict::Filtered(captures) => ("filtered", condition.to_owned(), Some(captures)),
        Verdict::Taken(captures) => {
            let (verdict, because) = match held {
                Some(Held::Suppressed) => {
                    ("suppressed", route.gate.as_ref().map(ToString::to_string).unwrap_or_default())
                }
                Some(Held::TooFar) => {
                    ("too_far", format!("by the broker at most {CHAIN_MAX} routes behind the first are followed"))
                }
                Some(Held::TooMany) => ("too_many", format!("the broker gets at most {LOCALS_MAX} messages of one")),
                Some(Held::Filtered | Held::Failed) | None => ("taken", taken_by(route, arrival, &captures)),
            };
            (verdict, because, Some(captures))
        }
    };
    let looks_at = captures
        .as_ref()
        .zip(route.filter.as_ref())
        .map(|(captures, filter)| filter.looks_at(View::new(arrival.subject, captures)));
    Some(Said {
        route: route.name.to_string(),
        verdict,
        because,
        captures: captures.iter().flat_map(|captures| captures.all().map(own)).collect(),
        looks_at: looks_at.unwrap_or_default(),
        not_sent_back: Vec::new(),
        steps: captures
            .filter(|_| verdict == "taken")
            .map_or_else(Vec::new, |captures| steps(table, route, arrival, &captures)),
    })
}

/// Where a route that takes the message does not send it, since it came from there.
fn say_echoes(said: &mut Said, source: &Source, route: &Route, is_chained: bool) {
    if said.verdict != "taken" {
        return;
    }
    let echoes = route.to.iter().filter(|to| plan::is_echo(source, to, is_chained));
    said.not_sent_back = echoes.map(|to| format!("{}/{}", to.endpoint, to.template)).collect();
    if said.not_sent_back.len() == route.to.len() {
        said.verdict = "echo";
        said.because = format!("by the broker nothing goes back to the link that it came from, `{}`", source.from);
        said.steps.clear();
    }
}

/// The condition; without its payload it decides nothing of a message that deletes a retained one.
fn taken_by(route: &Route, arrival: &Arrival<'_, '_>, captures: &Captures<'_>) -> String {
    let Some(filter) = &route.filter else { return String::new() };
    let passes = filter.passes(route.view(arrival, captures));
    let why = if passes { ", which what deletes a retained message passes" } else { "" };
    format!("{}{why}", filter.as_str())
}

fn steps(table: &Table, route: &Route, arrival: &Arrival<'_, '_>, captures: &Captures<'_>) -> Vec<Step> {
    let binding = route.to.first().map(|to| to.binding).unwrap_or_default();
    let says = |gate: &Gate| match gate {
        Gate::Sample(every) => {
            let every = show_duration(*every);
            format!("lets it go when {every} are over, unless another of its topic comes before")
        }
        Gate::Throttle(_) | Gate::NewIds | Gate::Changes { .. } => "lets it through".to_owned(),
    };
    let gate = route.gate.iter().map(|gate| Step { step: gate.key(), makes: vec![says(gate)] });
    let mut steps: Vec<_> = gate.collect();
    let mut before = arrival.subject.message().clone();
    let mut told = |step: &'static str, after: &Message| {
        steps.push(Step { step, makes: differences(step, &before, after) });
        before = after.clone();
    };
    // Why a step cannot be made stands with what leaves.
    let Ok(plain) = table.unpack(route, arrival, Some(&mut told)) else { return steps };
    let made = match &plain {
        None => route.change.make_in_steps(View::new(arrival.subject, captures), binding, Some(&mut told)),
        Some(plain) => route.change.make_in_steps(View::new(&Subject::new(plain), captures), binding, Some(&mut told)),
    };
    drop(made);
    steps
}

fn differences(step: &str, before: &Message, after: &Message) -> Vec<String> {
    let mut makes = Vec::new();
    if before.payload != after.payload {
        // These change single fields, the other steps the whole of it.
        let by_field =
            matches!(step, "pick" | "drop" | "set").then(|| fields(&before.payload, &after.payload)).flatten();
        makes.extend(by_field.unwrap_or_else(|| vec![format!("payload {}", shown(&after.payload))]));
    }
    let (old, new) = (&before.properties, &after.properties);
    let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_owned();
    if old.content_type != new.content_type {
        makes.push(format!("content type {}", text(&new.content_type)));
    }
    if old.response_topic != new.response_topic {
        makes.push(format!("response topic {}", text(&new.response_topic)));
    }
    let is_new = |property: &&(Box<str>, Box<str>)| !old.user.contains(property);
    makes.extend(new.user.iter().filter(is_new).map(|(name, value)| format!("property {name}={value}")));
    let is_gone = |(name, _): &&(Box<str>, Box<str>)| !new.user.iter().any(|(known, _)| known == name);
    makes.extend(old.user.iter().filter(is_gone).map(|(name, _)| format!("no property {name}")));
    makes
}

/// What is another in a JSON payload, field by field: `payload.unit "C"`, `no payload.raw`. `None`: it is no section.
fn fields(before: &Bytes, after: &Bytes) -> Option<Vec<String>> {
    let section = |bytes: &Bytes| serde_json::from_slice::<serde_json::Map<String, Json>>(bytes).ok();
    let mut makes = Vec::new();
    fields_below("payload", &section(before)?, &section(after)?, &mut makes);
    Some(makes).filter(|makes| !makes.is_empty())
}

fn fields_below(
    path: &str,
    before: &serde_json::Map<String, Json>,
    after: &serde_json::Map<String, Json>,
    makes: &mut Vec<String>,
) {
    for (name, value) in after {
        match (before.get(name), value) {
            (Some(same), value) if same == value => {}
            (Some(Json::Object(before)), Json::Object(after)) => {
                fields_below(&format!("{path}.{name}"), before, after, makes);
            }
            (_, value) => makes.push(format!("{path}.{name} {value}")),
        }
    }
    makes.extend(before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("no {path}.{name}")));
}

/// A payload for people to read.
fn shown(payload: &Bytes) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{} bytes that are no text", payload.len()),
    }
}

fn outputs(table: &Table, plan: &Plan, message: &Message, judge: &Judge<'_>) -> Vec<Output> {
    let name = |at: usize| table.routes().get(at).map(|route| route.name.to_string());
    let local = plan.locals.iter().map(|local| Output {
        route: local.by.and_then(name),
        target: "broker".to_owned(),
        destination: local.topic.to_string(),
        ..output(local.message.as_deref().unwrap_or(message))
    });
    let refused = |route: Option<String>, topic: &str, why: String| Output {
        route,
        target: "broker".to_owned(),
        destination: topic.to_owned(),
        failure: Some(why),
        ..output(message)
    };
    let bad_topics =
        plan.bad_topics.iter().map(|bad| refused(Some(bad.route.to_string()), &bad.topic, bad.why.to_string()));
    let unmade = plan.unmade.iter().map(|unmade| refused(name(unmade.by), &unmade.to, unmade.why.clone()));
    let links = plan.links.iter().map(|target| {
        let message = target.message.as_deref().unwrap_or(message);
        let judged = target.failure.clone().map_or_else(|| judge(&target.link, envelope(target, message)), Err);
        let (destination, failure) = match judged {
            Ok(destination) => (destination, None),
            Err(reason) => (target.destination.to_string(), Some(reason)),
        };
        Output {
            route: name(target.by),
            target: target.link.to_string(),
            destination,
            key: target.key.as_ref().map(|key| key.to_string()),
            ttl_s: target.ttl.map(|ttl| ttl.as_secs()),
            priority: Some(target.lane.name()),
            batch: target.batch.as_deref().and_then(|route| Some(table.batch(route)?.to_string())),
            failure,
            ..output(message)
        }
    });
    local.chain(bad_topics).chain(unmade).chain(links).collect()
}

fn envelope(target: &LinkTarget, message: &Message) -> Envelope {
    Envelope {
        destination: target.destination.to_string().into(),
        key: target.key.as_ref().map(|key| key.to_string().into()),
        ordinal: target.ordinal,
        failure: None,
        batch: target.batch.as_deref().map(Into::into),
        message: message.clone(),
    }
}

fn output(message: &Message) -> Output {
    let own = |(name, value): &(Box<str>, Box<str>)| (name.to_string(), value.to_string());
    Output {
        route: None,
        target: String::new(),
        destination: String::new(),
        key: None,
        qos: message.qos.bits(),
        retain: message.retain,
        ttl_s: None,
        priority: None,
        payload: String::from_utf8_lossy(&message.payload).into_owned(),
        decompressed: decompressed(message),
        properties: message.properties.user.iter().map(own).collect(),
        content_type: message.properties.content_type.as_deref().map(str::to_owned),
        response_topic: message.properties.response_topic.as_deref().map(str::to_owned),
        batch: None,
        failure: None,
    }
}

/// What a receiver that knows `content-encoding` takes out of the payload.
fn decompressed(message: &Message) -> Option<String> {
    let plain = Unpack::AsTold.plain(&message.payload, &message.properties).ok()??;
    Some(String::from_utf8_lossy(&plain).into_owned())
}
