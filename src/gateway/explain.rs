//! Questions about a configuration's routes, for `tidegate explain` and `tidegate test`: nothing runs, nothing is opened.

use std::sync::Arc;

use super::Config;
use crate::clock;
use crate::hub::{self, Source};
use crate::links::{self, Kind};
use crate::message::Envelope;
use crate::router::{Endpoint, From, LinkId, Pattern, Route, Table};

pub use crate::hub::{Arrived, Explanation, Output, Question, Said, Step, WrongMessage};

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// No message is like that.
    #[error(transparent)]
    Message(#[from] WrongMessage),
    /// A link that the file does not have.
    #[error("there is no link `{link}`; there are: {known}")]
    NoLink {
        /// As asked.
        link: String,
        /// All.
        known: String,
    },
    /// A queue or Kafka topic is missing, or is one too many.
    #[error("{0}")]
    From(String),
}

/// In a hint; of thousands of routes nobody reads all.
const BEGINNINGS_MAX: usize = 20;

/// The routes of one configuration, ready to be asked.
#[derive(Debug)]
pub struct Routes {
    config: Config,
    table: Table,
}

impl Routes {
    /// Those of `config`.
    #[must_use]
    pub fn of(config: Config) -> Self {
        let table = Table::new(config.routes.clone());
        Self { config, table }
    }

    /// The names of the file's links.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.config.links.iter().map(|link| link.id.as_str())
    }

    /// The names of its routes.
    pub fn routes(&self) -> impl Iterator<Item = &str> {
        self.config.routes.iter().map(|route| &*route.name)
    }

    /// Forgets which messages were asked about: for the gates of routes the next one is the first.
    pub fn forget(&self) {
        self.table.forget();
    }

    /// What would become of a message, behind those that were asked about before.
    ///
    /// # Errors
    /// [`QuestionError`]: the question itself is wrong.
    pub fn explain(&self, question: &Question) -> Result<Explanation, QuestionError> {
        let source = self.source(question.from.as_deref())?;
        // What comes from a queue or a Kafka topic has no client.
        let mut question = question.clone();
        question.client_id = question.client_id.filter(|_| source.channel.is_none());
        let message = question.message(&self.config.site, clock::wall())?;
        let judge = |link: &LinkId, envelope: Envelope| match self.link(link.as_str()) {
            Some(link) => link.kind.judge(envelope, &self.config.site),
            None => Ok(envelope.destination.into()),
        };
        let mut explanation = hub::explain(&self.config.site, &self.table, &source, &message, &judge);
        explanation.outputs.iter_mut().for_each(|output| self.say_qos(output));
        if !explanation.is_taken() && explanation.stopped.is_none() {
            explanation.hints = self.hints(&source, &question.topic);
        }
        Ok(explanation)
    }

    /// What a question may have meant that no route takes.
    fn hints(&self, source: &Source, topic: &str) -> Vec<String> {
        let here = |from: &From| from.endpoint == source.from && from.channel.as_deref() == source.channel.as_deref();
        let begins = self.config.routes.iter().flat_map(|route| route.from.iter().map(move |from| (route, from)));
        if topic.starts_with('$') {
            let there = begins.filter(|(_, from)| here(from));
            return vec![not_by_wildcards(
                topic,
                there.filter_map(|(route, from)| Some((route, from.pattern.as_ref()?))),
            )];
        }
        if source.from == Endpoint::Broker {
            let (first, rest) = topic.split_once('/').unwrap_or_default();
            let is_link = self.links().any(|link| link == first);
            return match first {
                "broker" => vec![format!(
                    "the topic is taken as `{topic}`: `broker/` is where it comes from, ask about `{rest}`"
                )],
                _ if is_link => vec![format!(
                    "this is asked of the built-in broker: what comes from the link `{first}` is asked with `--from {first}`"
                )],
                _ => Vec::new(),
            };
        }
        if source.channel.is_none() || begins.clone().any(|(_, from)| here(from)) {
            return Vec::new();
        }
        let others = begins.filter(|(_, from)| from.endpoint == source.from);
        let told = others.take(BEGINNINGS_MAX).map(|(route, from)| {
            let channel = from.channel.as_deref().unwrap_or_default();
            format!("`{}` begins with {}/{channel}", route.name, from.endpoint)
        });
        told.collect()
    }

    fn link(&self, name: &str) -> Option<&links::Config> {
        self.config.links.iter().find(|link| link.id.as_str() == name)
    }

    /// The QoS that an MQTT link publishes with.
    fn say_qos(&self, output: &mut Output) {
        if let Some(Kind::Mqtt(mqtt)) = self.link(&output.target).map(|link| &link.kind) {
            output.qos = output.qos.clamp(1, mqtt.qos.bits());
        }
    }

    fn source(&self, from: Option<&str>) -> Result<Source, QuestionError> {
        let (name, channel) =
            from.unwrap_or("broker").split_once('/').map_or((from, None), |(a, b)| (Some(a), Some(b)));
        let name = name.unwrap_or("broker");
        if name == "broker" {
            return Ok(Source { from: Endpoint::Broker, channel: None, takes_copies: false });
        }
        let Some(link) = self.link(name) else {
            let known: Vec<_> = self.config.links.iter().map(|link| link.id.as_str()).chain(["broker"]).collect();
            return Err(QuestionError::NoLink { link: name.to_owned(), known: known.join(", ") });
        };
        let channel = match (&link.kind, channel) {
            (Kind::Mqtt(_), None) => None,
            (Kind::Mqtt(_), Some(_)) => {
                return Err(QuestionError::From(format!("from an MQTT link a message has its topic alone: `{name}`")));
            }
            (Kind::Rabbitmq(_) | Kind::Kafka(_), Some(channel)) => Some(Arc::from(channel)),
            (Kind::Rabbitmq(_) | Kind::Kafka(_), None) => match link.sources.as_slice() {
                [only] => Some(Arc::from(only.as_str())),
                _ => {
                    let words = format!("say which queue or Kafka topic of `{name}`: `{name}/NAME`");
                    return Err(QuestionError::From(words));
                }
            },
        };
        Ok(Source { from: Endpoint::Link(LinkId::new(name)), channel, takes_copies: false })
    }
}

/// Why no route takes a topic that begins with `$`. `there`: the patterns of those that begin where it comes from.
fn not_by_wildcards<'r>(topic: &str, there: impl Iterator<Item = (&'r Route, &'r Pattern)>) -> String {
    let first = topic.split('/').next().unwrap_or_default();
    let names_it = |pattern: &Pattern| pattern.as_str().split('/').next() == Some(first);
    let named = there.filter(|(_, pattern)| names_it(pattern)).take(BEGINNINGS_MAX);
    let named: Vec<_> = named.map(|(route, pattern)| format!("`{}` ({pattern})", route.name)).collect();
    let found = match named.as_slice() {
        [] => "and none does".to_owned(),
        named => format!("and there {} does not take this one", named.join(", ")),
    };
    format!(
        "a topic that begins with `$` goes only through routes whose `from` names its first level (`{first}/#`): wildcards leave it out; {found}"
    )
}
