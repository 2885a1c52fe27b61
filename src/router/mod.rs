//! Where messages go: the routes of `routes.yaml` as a table that is asked once for each message.
//!
//! # Parts
//! - [`Pattern`] says which topics a route takes and what it captures of them; [`Template`] makes an address, or a
//!   Kafka key, out of what was captured and of the message.
//! - [`Subject`] is a message that routes are asked for: its payload is parsed at most once, and only if a route asks.
//! - [`From`] and [`To`] are the two sides of a [`Route`], read from addresses such as `broker/factory/{line}/#` (R29).
//! - [`Filter`] is a route's condition, [`Gate`] what it lets through of those that fulfil it, [`Change`] what it makes of the
//!   message itself.
//! - [`Table`] indexes all routes, so that asking costs what matches and not what exists, and nothing is allocated for a
//!   message that no route takes.
//! - [`can_reach`](Template::can_reach) tells whether what one route writes is what another reads, and [`Reach`] which topics
//!   get from route to route: the loop checks of `tidegate check`.
//!
//! # Invariants
//! PURE: no task, file, socket, clock or random number. The router does not know what a link's kind is or whether a link is
//! online. The table answers for one arrival; that what a route writes to the
//! broker is an arrival there again is the hub's business.

mod address;
mod batch;
mod change;
mod coding;
mod counts;
mod doc;
mod event;
mod filter;
mod gate;
mod json;
mod pattern;
mod protobuf;
mod reach;
mod sparkplug;
mod syntax;
mod table;
mod template;
mod view;

pub use address::Form;
pub use batch::{Batch, BatchForm};
pub use change::{Change, ChangeError, Decode, FieldPath, Given, Place, Told as StepTold};
pub use coding::{CONTENT_ENCODING, Coding, CodingError, UNPACKED_BYTES_MAX, Unpack};
pub use counts::{Counts, Held};
pub use event::{Binding, Event, Mode};
pub use filter::{Filter, FilterError, FilterProblem, Known, Mistake};
pub use gate::{Asked, Gate, Pass, TOPICS_MAX};
pub use pattern::{Captures, Pattern};
pub use reach::Reach;
pub use sparkplug::{Births, KNOWN_BYTES_MAX, SparkplugError};
pub use syntax::{Problem, SyntaxError};
pub use table::{Table, Taken, Told};
pub use template::{Template, Unfilled, is_level};
pub use view::{FIELDS, Subject, View};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A link's name in `routes.yaml`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(Arc<str>);

impl LinkId {
    /// As written.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// How urgent a route's records are: those of a higher priority never wait behind a link's backlog of lower ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Sent first.
    High,
    /// Unless said otherwise.
    #[default]
    Normal,
    /// Sent last, dropped first.
    Low,
}

/// One side of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The built-in broker.
    Broker,
    /// A link.
    Link(LinkId),
}

impl fmt::Display for Endpoint {
    /// As an address begins: `broker` or the link's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("broker"),
            Self::Link(link) => link.fmt(f),
        }
    }
}

/// What is asked of the table: a message, and where it came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'v, 'a> {
    /// Broker or link.
    pub from: &'v Endpoint,
    /// RabbitMQ queue or Kafka topic it was consumed from; `None` for the broker and for MQTT links.
    pub channel: Option<&'v str>,
    /// Its topic here. What a route wrote to the broker has another one than the message itself.
    pub topic: &'v str,
    /// The message.
    pub subject: &'v Subject<'a>,
}

/// What a route says to a message.
#[derive(Clone, Debug)]
pub enum Verdict<'v> {
    /// It takes it, with these captures.
    Taken(Captures<'v>),
    /// None of its `from`s is where the message came from.
    OtherSource,
    /// None of its patterns matches.
    OtherTopic,
    /// The pattern of its `except` at this place matches too.
    Excepted(usize),
    /// Its `where` is not true of it.
    Filtered(Captures<'v>),
}

/// Where a route begins (R29), parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// Broker or link.
    pub endpoint: Endpoint,
    /// RabbitMQ queue or Kafka topic; `None` for the broker and MQTT links.
    pub channel: Option<String>,
    /// On the message's topic; `None` (queues and Kafka topics without a pattern): any.
    pub pattern: Option<Pattern>,
    /// The group of an MQTT link's shared subscription.
    pub share: Option<String>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// Broker or link.
    pub endpoint: Endpoint,
    /// Makes the destination.
    pub template: Template,
    /// By whose names an event's attributes are called there.
    pub binding: Binding,
}

/// A route, parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique.
    pub name: Arc<str>,
    /// At least one. A message that several of them match takes the route once, with the captures of the first.
    pub from: Vec<From>,
    /// Topics that it does not take all the same, whatever matches.
    pub except: Vec<Pattern>,
    /// What has to be true of a message.
    pub filter: Option<Filter>,
    /// What it lets through of those.
    pub gate: Option<Gate>,
    /// At least one.
    pub to: Vec<To>,
    /// Kafka key.
    pub key: Option<Template>,
    /// How long after its acceptance a message is still worth sending to a link, whatever its publisher said.
    pub ttl: Option<Duration>,
    /// Which of a link's lanes.
    pub priority: Priority,
    /// What its targets get in place of the message as it came.
    pub change: Change,
    /// How a link's sink sends several of its records as one (R28).
    pub batch: Option<Batch>,
}

impl Route {
    /// One that only leads somewhere, with everything else as it is without its key.
    #[must_use]
    pub fn new(name: &str, from: Vec<From>, to: Vec<To>) -> Self {
        let (except, filter, gate, key, ttl, priority, change, batch) = Default::default();
        Self { name: name.into(), from, except, filter, gate, to, key, ttl, priority, change, batch }
    }

    /// What it says to a message that may come by any of its `from`s: the first that matches counts.
    #[must_use]
    pub fn judge<'v>(&'v self, arrival: &Arrival<'v, '_>) -> Verdict<'v> {
        let mut verdict = Verdict::OtherSource;
        for at in 0..self.from.len() {
            match self.judge_from(at, arrival) {
                Verdict::OtherSource => {}
                Verdict::OtherTopic => verdict = Verdict::OtherTopic,
                decided @ (Verdict::Taken(_) | Verdict::Excepted(_) | Verdict::Filtered(_)) => return decided,
            }
        }
        verdict
    }

    /// What its patterns capture of a message that it took before: neither `except` nor `where` is asked again.
    #[must_use]
    pub fn captures<'v>(&'v self, arrival: &Arrival<'v, '_>) -> Option<Captures<'v>> {
        let from = self
            .from
            .iter()
            .filter(|from| from.endpoint == *arrival.from && from.channel.as_deref() == arrival.channel);
        from.into_iter().find_map(|from| match &from.pattern {
            Some(pattern) => pattern.captures(arrival.topic),
            None => Some(Captures::of(arrival.topic)),
        })
    }

    /// The message as its `where` and its gate see it.
    #[must_use]
    pub fn view<'v, 'a>(&self, arrival: &Arrival<'v, 'a>, captures: &'v Captures<'v>) -> View<'v, 'a> {
        View::new(arrival.subject, captures).deleting(self.change.deletes(arrival.subject.message()))
    }

    /// [`Route::judge`] for one of its `from`s.
    fn judge_from<'v>(&'v self, at: usize, arrival: &Arrival<'v, '_>) -> Verdict<'v> {
        let Some(from) = self.from.get(at) else { return Verdict::OtherSource };
        if from.endpoint != *arrival.from || from.channel.as_deref() != arrival.channel {
            return Verdict::OtherSource;
        }
        let captures = match &from.pattern {
            Some(pattern) => pattern.captures(arrival.topic),
            None => Some(Captures::of(arrival.topic)),
        };
        let Some(captures) = captures else { return Verdict::OtherTopic };
        if let Some(at) = self.except.iter().position(|except| except.matches(arrival.topic)) {
            return Verdict::Excepted(at);
        }
        match &self.filter {
            Some(filter) if !filter.takes(self.view(arrival, &captures)) => Verdict::Filtered(captures),
            Some(_) | None => Verdict::Taken(captures),
        }
    }
}
