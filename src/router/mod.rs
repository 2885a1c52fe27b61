//! CONTRACT (the router's builder replaces the bodies; the public names and meanings stay). PURE.

use std::fmt;
use std::sync::Arc;

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

/// One side of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The built-in broker.
    Broker,
    /// A link.
    Link(LinkId),
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
    /// The filled-in template: an MQTT topic, routing key (with `/`), Kafka topic.
    pub destination: String,
    /// The filled-in `key`.
    pub key: Option<String>,
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
    /// At least one.
    pub from: Vec<From>,
    /// At least one.
    pub to: Vec<To>,
    /// Kafka key.
    pub key: Option<Template>,
}

/// A topic pattern with `+`, `#`, `{name}` and `{rest}` captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {/* private: router's builder */}

/// A `to` or `key` template with `{captures}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {/* private: router's builder */}

/// All routes, indexed.
#[derive(Debug, Default)]
pub struct Table {/* private: router's builder */}

impl Table {
    /// Indexes the routes.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        let _ = routes;
        unimplemented!()
    }

    /// What is to be done with a message that arrived thus, in the order of the routes and their targets.
    #[must_use]
    pub fn route(&self, arrival: Arrival<'_>) -> Vec<Decision> {
        let _ = arrival;
        unimplemented!()
    }
}
