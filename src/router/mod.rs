//! Where messages go: the routes of `routes.yaml` as a table that is asked once for each message.
//!
//! # Parts
//! - [`Pattern`] says which topics a route takes and what it captures of them; [`Template`] makes an address, or a
//!   Kafka key, out of what was captured.
//! - [`From`] and [`To`] are the two sides of a [`Route`], read from addresses such as `broker/factory/{line}/#` (R29).
//! - [`Table`] indexes all routes, so that asking costs what matches and not what exists, and nothing is allocated for a
//!   message that no route takes.
//! - [`can_reach`](Template::can_reach) tells whether what one route writes is what another reads: the loop check of
//!   `tidegate check`.
//!
//! # Invariants
//! PURE: no task, file, socket, clock or random number. The router does not know what a link's kind is, what a message
//! holds beyond its topic, or whether a link is online. The table answers for one arrival; that what a route writes to the
//! broker is an arrival there again is the hub's business.

mod address;
mod pattern;
mod syntax;
mod table;
mod template;

pub use address::Form;
pub use pattern::{Captures, Pattern};
pub use syntax::{Problem, SyntaxError};
pub use table::Table;
pub use template::Template;

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

/// What is asked of the table: where a message came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Broker or link.
    pub from: &'a Endpoint,
    /// RabbitMQ queue or Kafka topic it was consumed from; `None` for the broker and for MQTT links.
    pub channel: Option<&'a str>,
    /// The message's topic.
    pub topic: &'a str,
}

/// One thing to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The route's name.
    pub route: Arc<str>,
    /// Where to.
    pub target: Endpoint,
    /// The filled-in template: an MQTT topic, routing key (with `/`), Kafka topic. Empty where everything that the
    /// template uses was empty.
    pub destination: String,
    /// The filled-in `key`.
    pub key: Option<String>,
    /// The route's [`Route::ttl`].
    pub ttl: Option<Duration>,
    /// The route's [`Route::priority`].
    pub priority: Priority,
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
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// Broker or link.
    pub endpoint: Endpoint,
    /// Makes the destination.
    pub template: Template,
}

/// A route, parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique.
    pub name: Arc<str>,
    /// At least one. A message that several of them match takes the route once, with the captures of the first.
    pub from: Vec<From>,
    /// At least one.
    pub to: Vec<To>,
    /// Kafka key.
    pub key: Option<Template>,
    /// How long after its acceptance a message is still worth sending to a link, whatever its publisher said.
    pub ttl: Option<Duration>,
    /// Which of a link's lanes.
    pub priority: Priority,
}
