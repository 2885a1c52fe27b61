//! A file of tests for routes, as `tidegate test` reads it: what messages should become, checked as a whole like the routes themselves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::diagnostic::{Diagnostic, Mistakes};
use super::keys::nearest;
use super::source::{Place, Source};
use super::{Env, raw, resolve};

/// A file of tests.
#[derive(Clone, Debug, Default)]
pub struct Suite {
    /// The routes, from the folder of this file; else what the command says.
    pub config: Option<PathBuf>,
    /// In the order of the file; those with mistakes are not among them.
    pub tests: Vec<Case>,
    /// Where `config` stands.
    pub(super) config_place: Option<Place>,
    /// What is wrong with the file itself.
    pub(super) mistakes: Vec<Diagnostic>,
    /// The links and routes that it names, to be compared with those that there are.
    pub(super) names: Vec<Named>,
}

/// A name of something in the routes.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) what: What,
    pub(super) name: String,
    pub(super) place: Place,
}

/// What a name is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A link, or the broker.
    Link,
    Route,
}

impl Suite {
    /// Every mistake of it, where the links and routes that it names can be compared with these; in the order of the file.
    #[must_use]
    pub fn mistakes(&self, known: Option<(&[&str], &[&str])>) -> Vec<Diagnostic> {
        let strangers = known.map(|(links, routes)| self.strangers(links, routes));
        in_order(self.mistakes.iter().cloned().chain(strangers.into_iter().flatten()).collect())
    }

    /// The same where its `config` cannot be read.
    #[must_use]
    pub fn without_config(&self, path: &Path, error: &io::Error) -> Vec<Diagnostic> {
        let mut mistakes = Mistakes::default();
        if let Some(place) = &self.config_place {
            let hint = "`config` is looked for from the folder of this file";
            mistakes.error(place, format!("{} cannot be read: {error}", path.display()), hint.to_owned());
        }
        in_order(self.mistakes.iter().cloned().chain(mistakes.sorted()).collect())
    }

    /// What it names and these routes do not have.
    fn strangers(&self, links: &[&str], routes: &[&str]) -> Vec<Diagnostic> {
        let mut mistakes = Mistakes::default();
        for Named { what, name, place } in &self.names {
            let (word, mut known) = match what {
                What::Link => ("link", links.to_vec()),
                What::Route => ("route", routes.to_vec()),
            };
            if *what == What::Link && !known.contains(&"broker") {
                known.push("broker");
            }
            if known.contains(&name.as_str()) {
                continue;
            }
            let hint = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known: {}", resolve::listed(known.iter().take(KNOWN_MAX))),
            };
            mistakes.error(place, format!("there is no {word} `{name}`"), hint);
        }
        mistakes.sorted()
    }
}

fn in_order(mut mistakes: Vec<Diagnostic>) -> Vec<Diagnostic> {
    mistakes.sort_by_key(|mistake| (mistake.span.start, mistake.severity));
    mistakes
}

/// Names in a hint; of thousands of routes nobody reads all.
const KNOWN_MAX: usize = 20;

/// A test.
#[derive(Clone, Debug)]
pub struct Case {
    /// For people.
    pub name: String,
    /// Messages that come first, for `throttle` and `dedup`; what becomes of them is not looked at.
    pub before: Vec<Given>,
    /// The message.
    pub message: Given,
    /// All that leaves, in any order; what local clients get of the message as it was published does not count.
    pub expect: Vec<Expected>,
}

/// A message.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// One that a message can have.
    pub topic: String,
    /// `broker`, LINK, `LINK/QUEUE`, `LINK/KAFKA-TOPIC`; without it the broker.
    pub from: Option<String>,
    /// As it comes.
    pub payload: Vec<u8>,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether it is to be kept.
    pub retain: bool,
    /// Who published it.
    pub client_id: Option<String>,
    /// That one's user name.
    pub user: Option<String>,
    /// Milliseconds since 1970; without it now.
    pub time: Option<u64>,
    /// As in MQTT 5.
    pub content_type: Option<String>,
    /// As in MQTT 5.
    pub response_topic: Option<String>,
    /// User properties or headers.
    pub properties: Vec<(String, String)>,
}

/// Something that leaves. What is not named is not looked at.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// `LINK/DESTINATION`, `broker/TOPIC`.
    pub to: String,
    /// The name of the route.
    pub route: Option<String>,
    /// The Kafka key.
    pub key: Option<String>,
    /// A text as it is; anything else as JSON.
    pub payload: Option<Json>,
    /// The payload, taken out of what its `content-encoding` says.
    pub decompressed: Option<Json>,
    /// Parts of the payload, decompressed where it is compressed.
    pub contains: Vec<String>,
    /// As the target sees it.
    pub qos: Option<u8>,
    /// As the target sees it.
    pub retain: Option<bool>,
    /// `high`, `normal`, `low`.
    pub priority: Option<&'static str>,
    /// As in MQTT 5.
    pub content_type: Option<String>,
    /// As in MQTT 5.
    pub response_topic: Option<String>,
    /// A part of how it is sent together with others.
    pub batch: Option<String>,
    /// User properties or headers.
    pub properties: Vec<(String, String)>,
    /// A part of the reason of the dead letter that it becomes.
    pub dead_letter: Option<String>,
}

/// Reads the text of a file of tests; [`Suite::mistakes`] says what is wrong with it.
#[must_use]
pub fn suite(path: &Path, text: String) -> Suite {
    let mut mistakes = Mistakes::default();
    let source = Arc::new(Source::new(path.to_owned(), text));
    let root = match raw::parse(&source) {
        Ok(root) => root,
        Err(error) => {
            mistakes.error(&error.place, error.text, error.hint);
            return Suite { mistakes: mistakes.sorted(), ..Suite::default() };
        }
    };
    // Where nothing stands at all the beginning is pointed at.
    let root = raw::Node { place: Place { source, span: root.place.span }, value: root.value };
    let (suite, mistakes) = resolve::suite(&root, &Env::real());
    Suite { mistakes: mistakes.sorted(), ..suite }
}
