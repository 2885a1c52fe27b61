//! A record that its route could not make of a message, made by that route as it is now (R28).

use crate::message::{Envelope, MessageId};
use crate::router::{Arrival, Batch, Captures, Endpoint, LinkId, Route, Subject, To, View};

use super::{Hub, plan};

impl Hub {
    /// What the route of the same name makes today of a message that it could not make anything of when it came: the route was mended, and the
    /// dead letter sent again. Its `where` and its gate are not asked: somebody decided that it is worth sending. The
    /// message keeps its id and ordinal.
    ///
    /// # Errors
    /// Why it cannot be made today either: the reason of its dead letter.
    pub fn remake(&self, link: &LinkId, failed: &Envelope) -> Result<Envelope, String> {
        let reason = failed.failure.as_deref().unwrap_or_default();
        let targets = self.targets.load_full();
        let of_reason = targets.table.routes().iter().filter(|route| plan::is_failure_of(route, reason));
        let route = of_reason.max_by_key(|route| route.name.len());
        // Behind another route it has arrived on what that one made of its topic.
        let topic = failed.key.as_deref().unwrap_or(failed.message.topic.as_str());
        let found = route.and_then(|route| Some((route, captured(route, topic)?, target(route, link, failed)?)));
        let Some((route, captures, to)) = found else { return Err(reason.to_owned()) };
        let subject = Subject::new(&failed.message);
        let arrival = Arrival { from: &Endpoint::Broker, channel: None, topic, subject: &subject };
        let unpacked = targets.table.unpack(route, &arrival, None).map_err(|error| plan::failure(route, &error))?;
        let plain = unpacked.as_ref().unwrap_or(&failed.message);
        let subject = Subject::new(plain);
        let view = View::new(&subject, &captures);
        let message = if route.change.is_nothing() {
            plain.clone()
        } else {
            route.change.make(view, to.binding).map_err(|error| plan::failure(route, &error))?
        };
        let key = plan::key_of(route, to, view).map_err(|error| plan::failure(route, &error))?;
        let key = key.map(|key| key.as_str().into());
        let destination = to.template.fill(view).map_err(|error| plan::failure(route, &error))?.into();
        let batch = route.batch.map(|_| (*route.name).into());
        Ok(Envelope { destination, key, ordinal: failed.ordinal, failure: None, batch, message })
    }

    /// How records of the route of this name are sent together, as routes are now.
    #[must_use]
    pub fn batch(&self, route: &str) -> Option<Batch> {
        self.targets.load().table.batch(route)
    }

    /// How often routes have changed: what [`Hub::batch_to`] says may be another thing then.
    #[must_use]
    pub fn route_changes(&self) -> u64 {
        self.targets.load().change
    }

    /// The same for records to this link, if the route leads there.
    #[must_use]
    pub fn batch_to(&self, route: &str, link: &LinkId) -> Option<Batch> {
        let targets = self.targets.load();
        let (_, route) = targets.table.named(route)?;
        let leads_there = |to: &To| matches!(&to.endpoint, Endpoint::Link(name) if name == link);
        route.batch.filter(|_| route.to.iter().any(leads_there))
    }

    /// An id of this run for a message that is made here.
    #[must_use]
    pub fn new_id(&self) -> MessageId {
        self.ids.next()
    }

    /// A record as it is sent without others: a batch of one where its route sends batches.
    #[must_use]
    pub fn alone(&self, envelope: Envelope) -> Envelope {
        let Some(batch) = envelope.batch.as_deref().and_then(|route| self.batch(route)) else { return envelope };
        let id = envelope.message.id.clone();
        batch.pack(std::slice::from_ref(&envelope), id).unwrap_or(envelope)
    }
}

/// By the first `from` that the topic matches; where the message came from is not kept.
fn captured<'r>(route: &'r Route, topic: &'r str) -> Option<Captures<'r>> {
    route.from.iter().find_map(|from| match &from.pattern {
        Some(pattern) => pattern.captures(topic),
        None => Some(Captures::of(topic)),
    })
}

/// The one that is written as it was; else the only one that leads to the link.
fn target<'r>(route: &'r Route, link: &LinkId, failed: &Envelope) -> Option<&'r To> {
    let here = |to: &&To| matches!(&to.endpoint, Endpoint::Link(name) if name == link);
    let mut all = route.to.iter().filter(here);
    let same = route.to.iter().filter(here).find(|to| to.template.as_str() == &*failed.destination);
    same.or_else(|| all.next().filter(|_| all.next().is_none()))
}
