//! What is to be done with a message: which local topics, which links. Pure.
//!
//! A route may lead to the built-in broker, and what is published there is matched against the routes that begin at the
//! broker, as a client's publish would be. That chain is followed at most [`CHAIN_MAX`] times, takes the very same on a local topic
//! once ([`locals`]), and never leads back to the link that the message came from: what a remote sent us is not echoed to it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::Source;
use super::locals::{self, Added, LocalTarget};
use super::ordinals::Ordinals;
use super::reused::Reused;
use crate::buffer::Lane;
use crate::message::{Head, Message};
use crate::router::{
    Arrival, Asked, Binding, Endpoint, Gate, Held, LinkId, Pass, Priority, Route, Subject, Table, Taken, To, Told,
    Unfilled, View,
};
use crate::topic::{LEVELS_MAX, TopicError, TopicName, is_too_deep};

/// Routes behind routes that are followed for one message. More than two levels are hard to follow for people too; a cycle
/// of templates that grow (`{rest}/x`) ends here. What would go on is counted ([`Held::TooFar`]).
pub(super) const CHAIN_MAX: usize = 8;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What to deliver to the broker's subscribers: a client's publish first.
    pub(super) locals: SmallVec<[LocalTarget; 1]>,
    /// Records to append.
    pub(super) links: Reused<Vec<LinkTarget>>,
    /// Where it was to be delivered locally, and is not.
    pub(super) bad_topics: Vec<BadTopic>,
    /// What a route could not make for it; among what is held too.
    pub(super) unmade: Vec<Unmade>,
    /// What routes held back or could not make, each with its place in the table.
    pub(super) held: SmallVec<[(usize, Held); 2]>,
    /// What has gone through gates, and is to be remembered there once it is accepted.
    pub(super) passes: SmallVec<[Pass; 1]>,
    /// Where routes lead whose gates hold the message back: what it is held back for went there before.
    pub(super) behind: SmallVec<[(LinkId, Lane); 1]>,
    /// And one of them to the broker.
    pub(super) is_behind_store: bool,
    /// What is to wait in samples.
    pub(super) sampled: Vec<Sampled>,
    /// The numbers of the records that it makes for links.
    pub(super) ordinals: Ordinals,
}

/// A message on its way into a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sampled {
    /// The route's name.
    pub(super) route: Arc<str>,
    /// The topic that it arrived on there.
    pub(super) topic: Arc<str>,
    /// How long it waits.
    pub(super) every: Duration,
    /// What a route before made of the message; `None`: the message as it came.
    pub(super) message: Option<Arc<Message>>,
    pub(super) source: Source,
    /// A route wrote it to the broker.
    pub(super) is_chained: bool,
    /// See [`Plan::ordinals`].
    pub(super) ordinals: Ordinals,
    /// How many samples it was in before: as with [`CHAIN_MAX`], a cycle ends.
    pub(super) round: usize,
}

impl Sampled {
    /// As it came to its route.
    fn arrival<'v, 'a>(&'v self, subject: &'v Subject<'a>) -> Arrival<'v, 'a> {
        let (from, channel) = if self.is_chained {
            (&Endpoint::Broker, None)
        } else {
            (&self.source.from, self.source.channel.as_deref())
        };
        Arrival { from, channel, topic: &self.topic, subject }
    }
}

/// What a route made for the built-in broker, and nobody may publish to there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadTopic {
    pub(super) route: Arc<str>,
    pub(super) topic: String,
    pub(super) why: NotLocal,
}

/// What a route could not make for the built-in broker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unmade {
    /// The route's place in the table.
    pub(super) by: usize,
    /// Its `to`, as it is written.
    pub(super) to: Arc<str>,
    pub(super) why: String,
}

/// Why nobody may publish there. Clients are held to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotLocal {
    #[error("{0}")]
    Topic(#[from] TopicError),
    #[error("a topic has at most {LEVELS_MAX} levels")]
    TooDeep,
    #[error("below `$SYS/` are the gateway's own values")]
    Own,
}

/// One record for one link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkTarget {
    pub(super) link: LinkId,
    /// Empty where everything that the template uses was empty.
    pub(super) destination: Reused<String>,
    /// The filled-in `key`.
    pub(super) key: Option<Reused<String>>,
    /// How long the record is worth sending, by its route.
    pub(super) ttl: Option<Duration>,
    /// Which of its logs.
    pub(super) lane: Lane,
    /// Counts the records that one message makes for one link.
    pub(super) ordinal: u16,
    /// What the route made of the message; `None`: the message as it came.
    pub(super) message: Option<Arc<Message>>,
    /// The route's place in the table.
    pub(super) by: usize,
    /// The route, where its records are sent several as one.
    pub(super) batch: Option<Arc<str>>,
    /// Why the route cannot make of the message what it should: a dead letter (R28).
    pub(super) failure: Option<String>,
}

/// How the gates of routes are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gates {
    /// For which offer; without one they are open, samples excepted.
    pub(super) offer: Option<u64>,
    /// What comes to a sample waits there; else it goes on, as the last of its interval.
    pub(super) has_samples: bool,
}

impl Gates {
    /// As messages meet them.
    pub(super) const fn of(offer: u64) -> Self {
        Self { offer: Some(offer), has_samples: true }
    }

    /// Open for all but samples.
    pub(super) const OPEN: Self = Self { offer: None, has_samples: true };
}

/// Follows the routes for `message` from `source`.
pub(super) fn plan(table: &Table, source: &Source, message: &Message, gates: Gates) -> Plan {
    let mut plan = Plan::default();
    let asking = Asking { table, source, message, gates, round: 0 };
    if source.from == Endpoint::Broker {
        plan.locals.push(LocalTarget { topic: message.topic.clone(), message: None, by: None, behind: None });
    }
    let subject = Subject::new(message);
    let topic = message.topic.as_str();
    let first = Arrival { from: &source.from, channel: source.channel.as_deref(), topic, subject: &subject };
    let next = plan.locals.len();
    asking.follow(&first, None, &mut plan);
    asking.follow_chain(next, &subject, &mut plan);
    plan
}

/// How long what a sample holds for a route waits by the route as it is now. `None`: that does not take it, since its name has come to mean
/// another, or samples no more.
pub(super) fn still_waits(table: &Table, held: &Sampled, message: &Message) -> Option<Duration> {
    let (_, route) = table.named(&held.route)?;
    let subject = Subject::new(message);
    route.captures(&held.arrival(&subject))?;
    sample_of(route)
}

/// The interval of a route that samples.
pub(super) fn sample_of(route: &Route) -> Option<Duration> {
    match &route.gate {
        Some(Gate::Sample(every)) => Some(*every),
        Some(Gate::Throttle(_) | Gate::NewIds | Gate::Changes { .. }) | None => None,
    }
}

/// The name of the first route that samples what a sample holds, as its own did, which is no more: that may have another name now. One
/// that did so among the routes before has had the message itself.
pub(super) fn sampler(table: &Table, before: Option<&Table>, held: &Sampled, message: &Message) -> Option<Arc<str>> {
    let subject = Subject::new(message);
    let arrival = held.arrival(&subject);
    let has_had = |name: &str| {
        let route = before.and_then(|before| before.named(name)).map(|(_, route)| route);
        route.is_some_and(|route| sample_of(route).is_some() && route.captures(&arrival).is_some())
    };
    let mut found = None;
    table.route(&arrival, |told| {
        if let Told::Taken(Taken { route, .. }) = told
            && found.is_none()
            && sample_of(route).is_some()
            && !has_had(&route.name)
        {
            found = Some(Arc::clone(&route.name));
        }
    });
    found
}

/// What is to be done with what a sample lets go: by its route alone, and on from there. `None`: there is no such route any more, or it takes
/// nothing from there.
pub(super) fn plan_held(table: &Table, held: &Sampled, message: &Arc<Message>, gates: Gates) -> Option<Plan> {
    let (at, route) = table.named(&held.route)?;
    let subject = Subject::new(message);
    let arrival = held.arrival(&subject);
    let captures = route.captures(&arrival)?;
    let mut plan = Plan { ordinals: held.ordinals, ..Plan::default() };
    let asking = Asking { table, source: &held.source, message, gates, round: held.round + 1 };
    // Its topic is one that was delivered to the broker before.
    let topic = TopicName::new(&held.topic).ok()?;
    let local = LocalTarget { topic, message: Some(Arc::clone(message)), by: None, behind: None };
    let chained = held.is_chained.then_some(Chained { local: &local, at: None });
    asking.take(&Taken { at, route, captures }, &arrival, chained, &mut plan);
    asking.follow_chain(0, &subject, &mut plan);
    Some(plan)
}

impl Asking<'_> {
    /// Routes on what routes wrote to the broker, from the local at `next` on. `subject`: the message as it came.
    fn follow_chain(self, next: usize, subject: &Subject<'_>, plan: &mut Plan) {
        self.follow_locals(next, subject, plan);
        let goes_at_once = !plan.links.is_empty();
        let shares = plan.ordinals.shares(plan.sampled.len(), goes_at_once);
        plan.sampled.iter_mut().zip(shares).for_each(|(sampled, share)| sampled.ordinals = share);
    }

    fn follow_locals(self, mut next: usize, subject: &Subject<'_>, plan: &mut Plan) {
        for _ in 0..CHAIN_MAX {
            let new: SmallVec<[LocalTarget; 1]> = plan.locals.iter().skip(next).cloned().collect();
            if new.is_empty() {
                return;
            }
            for (at, local) in (next..).zip(&new) {
                let chained = Chained { local, at: Some(at) };
                chained.arrive(subject, |arrival| self.follow(arrival, Some(chained), plan));
            }
            next += new.len();
        }
        self.stop(next, subject, plan);
    }

    /// What the last routes that are followed wrote goes no further. That is told of each route that would have made something new of
    /// it; where a circle ends here anyway nothing is lacking.
    fn stop(self, next: usize, subject: &Subject<'_>, plan: &mut Plan) {
        if next == plan.locals.len() {
            return;
        }
        let open = Self { gates: Gates { offer: None, has_samples: false }, ..self };
        let mut known = plan.locals.clone();
        for (at, local) in plan.locals.iter().enumerate().skip(next) {
            let chained = Chained { local, at: Some(at) };
            chained.arrive(subject, |arrival| {
                self.table.route(arrival, |told| {
                    let Told::Taken(taken) = told else { return };
                    let mut beyond = Plan { locals: std::mem::take(&mut known), ..Plan::default() };
                    open.take(&taken, arrival, Some(chained), &mut beyond);
                    known = std::mem::take(&mut beyond.locals);
                    if known.len() > plan.locals.len() || !beyond.is_nothing() {
                        known.truncate(plan.locals.len());
                        plan.held.push((taken.at, Held::TooFar));
                    }
                });
            });
        }
    }
}

impl LinkTarget {
    /// What stands before the message in its record.
    pub(super) fn head(&self) -> Head<'_> {
        Head {
            destination: &self.destination,
            key: self.key.as_ref().map(|key| key.as_str()),
            ordinal: self.ordinal,
            failure: self.failure.as_deref(),
            batch: self.batch.as_deref(),
        }
    }
}

/// Where records of this priority go.
const fn lane(priority: Priority) -> Lane {
    match priority {
        Priority::High => Lane::High,
        Priority::Normal => Lane::Normal,
        Priority::Low => Lane::Low,
    }
}

/// What stays the same along a message's way through the routes.
#[derive(Clone, Copy)]
struct Asking<'t> {
    table: &'t Table,
    source: &'t Source,
    /// As it came.
    message: &'t Message,
    gates: Gates,
    /// See [`Sampled::round`].
    round: usize,
}

/// What a route wrote to the broker, and goes on from there.
#[derive(Clone, Copy)]
struct Chained<'l> {
    local: &'l LocalTarget,
    /// Its place in [`Plan::locals`]; `None`: another plan brought it there.
    at: Option<usize>,
}

impl Chained<'_> {
    /// It arrives at the broker. `subject`: the message as it came, whose payload is parsed once for all of the chain.
    fn arrive(self, subject: &Subject<'_>, follow: impl FnOnce(&Arrival<'_, '_>)) {
        let (from, channel, topic) = (&Endpoint::Broker, None, self.local.topic.as_str());
        match &self.local.message {
            None => follow(&Arrival { from, channel, topic, subject }),
            Some(changed) => follow(&Arrival { from, channel, topic, subject: &Subject::new(changed) }),
        }
    }
}

impl Asking<'_> {
    /// Applies the routes that match one arrival. `chained`: it is what a route wrote to the broker.
    fn follow(self, arrival: &Arrival<'_, '_>, chained: Option<Chained<'_>>, plan: &mut Plan) {
        self.table.route(arrival, |told| {
            let taken = match told {
                Told::Taken(taken) => taken,
                Told::Held(at, held) => return plan.held.push((at, held)),
            };
            match self.ask(&taken, arrival) {
                Asked::Free => {}
                Asked::Passes(pass) => plan.passes.push(pass),
                Asked::Held => return self.suppress(&taken, arrival, chained, plan),
                Asked::Waits(every) => return self.sample(&taken, arrival, every, chained, plan),
            }
            self.take(&taken, arrival, chained, plan);
        });
    }

    fn ask(self, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>) -> Asked {
        match (&taken.route.gate, self.gates) {
            (None, _) | (Some(Gate::Sample(_)), Gates { has_samples: false, .. }) => Asked::Free,
            (Some(Gate::Sample(every)), _) => Asked::Waits(*every),
            (Some(_), Gates { offer: Some(offer), .. }) => self.table.ask(taken, arrival, offer),
            (Some(_), Gates { offer: None, .. }) => Asked::Free,
        }
    }

    /// A gate holds the message back. What it is held back for went where the route leads, and from the broker on to where others lead.
    fn suppress(self, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>, chained: Option<Chained<'_>>, plan: &mut Plan) {
        plan.held.push((taken.at, Held::Suppressed));
        let links = taken.route.to.iter().filter_map(|to| match &to.endpoint {
            Endpoint::Link(link) => Some((link.clone(), lane(taken.route.priority))),
            Endpoint::Broker => None,
        });
        let before = plan.behind.len();
        plan.behind.extend(links);
        if plan.behind.len() - before < taken.route.to.len() {
            plan.is_behind_store = true;
            let mut went = Plan::default();
            let open = Self { gates: Gates { offer: None, has_samples: false }, ..self };
            // It is a plan of its own, with its own places.
            let chained = chained.map(|chained| Chained { at: None, ..chained });
            open.take(taken, arrival, chained, &mut went);
            open.follow_locals(0, arrival.subject, &mut went);
            plan.behind.extend(went.links.iter().map(|target| (target.link.clone(), target.lane)));
        }
    }

    /// What a sample takes is made something of when it goes, so that what it gives up costs little.
    fn sample(
        self,
        taken: &Taken<'_, '_>,
        arrival: &Arrival<'_, '_>,
        every: Duration,
        chained: Option<Chained<'_>>,
        plan: &mut Plan,
    ) {
        if self.round >= CHAIN_MAX {
            return plan.held.push((taken.at, Held::Suppressed));
        }
        let sampled = Sampled {
            route: Arc::clone(&taken.route.name),
            topic: arrival.topic.into(),
            every,
            message: chained.and_then(|chained| chained.local.message.clone()),
            source: self.source.clone(),
            is_chained: chained.is_some(),
            ordinals: Ordinals::default(),
            round: self.round,
        };
        // Of a topic the last one is held, of what routes made of one message too. They have one id: the store could not tell their rows apart.
        match plan.sampled.iter_mut().find(|one| one.route == sampled.route && one.topic == sampled.topic) {
            Some(before) => {
                *before = sampled;
                plan.held.push((taken.at, Held::Suppressed));
            }
            None => plan.sampled.push(sampled),
        }
    }

    /// What a route makes of a message that it takes, and its gate lets through.
    fn take(self, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>, chained: Option<Chained<'_>>, plan: &mut Plan) {
        match self.table.unpack(taken.route, arrival, None) {
            Ok(None) => self.lead(taken, arrival, MadeFor::new(chained), plan),
            Ok(Some(plain)) => {
                let Arrival { from, channel, topic, .. } = *arrival;
                let unpacked = Arrival { from, channel, topic, subject: &Subject::new(&plain) };
                self.lead(taken, &unpacked, MadeFor::new(chained), plan);
            }
            Err(error) => {
                let made = MadeFor { failure: Some(failure(taken.route, &error)), ..MadeFor::new(chained) };
                self.lead(taken, arrival, made, plan);
            }
        }
    }

    /// To all targets of a route that takes the message; `arrival` has it unpacked.
    fn lead(self, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>, mut made: MadeFor<'_>, plan: &mut Plan) {
        let chained = made.chained;
        for to in &taken.route.to {
            let made = made.target(to.binding, taken, arrival);
            match &to.endpoint {
                Endpoint::Broker => self.deliver(taken, to, arrival, made, chained, plan),
                Endpoint::Link(_) if is_echo(self.source, to, chained.is_some()) => {}
                Endpoint::Link(link) => plan.send(taken, to, link, arrival, made),
            }
        }
    }
}

impl Asking<'_> {
    /// Adds what is for the broker, if it is new there.
    fn deliver(
        self,
        taken: &Taken<'_, '_>,
        to: &To,
        arrival: &Arrival<'_, '_>,
        made: &Made,
        chained: Option<Chained<'_>>,
        plan: &mut Plan,
    ) {
        let Taken { at, route, captures } = taken;
        let filled = to.template.fill(View::new(arrival.subject, captures)).map_err(|error| failure(route, &error));
        let destination = match made.failure.clone().map_or(filled, Err) {
            Ok(destination) => destination,
            Err(error) => {
                tracing::debug!(error, "not delivered locally");
                plan.held.push((*at, Held::Failed));
                return plan.unmade.push(Unmade { by: *at, to: to.template.as_str().into(), why: error });
            }
        };
        match local_topic(&destination) {
            Ok(topic) => {
                let behind = chained.and_then(|chained| chained.at);
                let local = LocalTarget { topic, message: made.message.clone(), by: Some(*at), behind };
                match locals::add(&mut plan.locals, local, self.message) {
                    Added::New | Added::Known => {}
                    Added::TooMany => plan.held.push((*at, Held::TooMany)),
                }
            }
            // A capture of a valid topic in a checked template can still become too long, too deep, or one of our own.
            Err(why) => {
                let (route, topic) = (Arc::clone(&route.name), destination.into_owned());
                plan.bad_topics.push(BadTopic { route, topic, why });
            }
        }
    }
}

/// Whether the message came from this target, and routes wrote it to the broker since: it is not sent back there. A route straight from a
/// link to that link sends.
pub(super) fn is_echo(source: &Source, to: &To, is_chained: bool) -> bool {
    is_chained && to.endpoint != Endpoint::Broker && source.from == to.endpoint
}

/// What a route makes of a message, once for all its targets that get the same.
struct MadeFor<'c> {
    made: SmallVec<[(Binding, Made); 1]>,
    /// See [`Asking::follow`].
    chained: Option<Chained<'c>>,
    /// Why nothing can be made for any of them.
    failure: Option<String>,
}

/// What one of them gets.
struct Made {
    message: Option<Arc<Message>>,
    failure: Option<String>,
}

impl<'c> MadeFor<'c> {
    const fn new(chained: Option<Chained<'c>>) -> Self {
        Self { made: SmallVec::new_const(), chained, failure: None }
    }

    fn target(&mut self, binding: Binding, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>) -> &Made {
        let binding = if taken.route.change.is_by_binding() { binding } else { Binding::default() };
        let at = self.made.iter().position(|(known, _)| *known == binding).unwrap_or_else(|| {
            let made = self.make(binding, taken, arrival);
            self.made.push((binding, made));
            self.made.len() - 1
        });
        self.made.get(at).map_or(&Made::NOTHING, |(_, made)| made)
    }

    fn make(&self, binding: Binding, taken: &Taken<'_, '_>, arrival: &Arrival<'_, '_>) -> Made {
        let unchanged = self.chained.and_then(|chained| chained.local.message.clone());
        if taken.route.change.is_nothing() || self.failure.is_some() {
            return Made { message: unchanged, failure: self.failure.clone() };
        }
        match taken.route.change.make(View::new(arrival.subject, &taken.captures), binding) {
            Ok(message) => Made { message: Some(Arc::new(message)), failure: None },
            Err(error) => Made { message: unchanged, failure: Some(failure(taken.route, &error)) },
        }
    }
}

impl Made {
    const NOTHING: Self = Self { message: None, failure: None };
}

/// Only Kafka has keys: a message without the parts of one is no worse for the other targets.
/// What deletes a retained message goes without a key that cannot be made of it, with its topic in its place (R21).
pub(super) fn key_of(route: &Route, to: &To, view: View<'_, '_>) -> Result<Option<Reused<String>>, Unfilled> {
    let Some(key) = route.key.as_ref().filter(|_| to.binding == Binding::Kafka) else { return Ok(None) };
    match Reused::text(|text| key.fill_text_into(view, text)) {
        Err(_) if route.change.deletes(view.message()) => Ok(None),
        filled => filled.map(Some),
    }
}

impl Plan {
    /// No route takes it, nobody holds it back, and it is no client's publish.
    pub(super) fn is_nothing(&self) -> bool {
        let Self { locals, links, bad_topics, unmade, held, passes, behind, is_behind_store, sampled, ordinals: _ } =
            self;
        let goes_nowhere = locals.is_empty() && links.is_empty() && bad_topics.is_empty() && unmade.is_empty();
        let is_gated = !passes.is_empty() || !behind.is_empty() || *is_behind_store || !sampled.is_empty();
        goes_nowhere && held.is_empty() && !is_gated
    }

    /// Adds a record. One that cannot be made is added all the same, with the reason: it becomes a dead letter. As its key that has the topic
    /// on which the message arrived at its route, where another route wrote it there.
    fn send(&mut self, taken: &Taken<'_, '_>, to: &To, link: &LinkId, arrival: &Arrival<'_, '_>, made: &Made) {
        let Taken { at, route, captures } = taken;
        let view = View::new(arrival.subject, captures);
        let earlier = self.links.iter().filter(|target| target.link == *link).count();
        let filled = || -> Result<(Reused<String>, Option<Reused<String>>), Unfilled> {
            let key = key_of(route, to, view)?;
            Ok((Reused::text(|text| to.template.fill_into(view, text))?, key))
        };
        let filled = filled().map_err(|error| failure(route, &error));
        let (filled, failure) = match made.failure.clone().map_or(filled, Err) {
            Ok(filled) => (filled, None),
            // Under the name that it has here, so that whoever looks at dead letters knows it.
            Err(reason) => {
                self.held.push((*at, Held::Failed));
                let is_chained = arrival.topic != arrival.subject.message().topic.as_str();
                let arrived_on = is_chained.then(|| arrival.topic.to_owned().into());
                ((to.template.as_str().to_owned().into(), arrived_on), Some(reason))
            }
        };
        let (destination, key) = filled;
        self.links.push(LinkTarget {
            link: link.clone(),
            destination,
            key,
            ttl: route.ttl,
            lane: lane(route.priority),
            ordinal: self.ordinals.nth(earlier),
            message: made.message.clone(),
            by: *at,
            batch: route.batch.map(|_| Arc::clone(&route.name)),
            failure,
        });
    }
}

/// What the reason of such a dead letter begins with; the route's name and "`: " follow.
const FAILURE: &str = "transform: route `";

/// The reason of the dead letter (R28).
pub(super) fn failure(route: &Route, error: &impl Display) -> String {
    format!("{FAILURE}{}`: {error}", route.name)
}

/// Whether it tells of this route.
pub(super) fn is_failure_of(route: &Route, reason: &str) -> bool {
    let behind = reason.strip_prefix(FAILURE).and_then(|rest| rest.strip_prefix(&*route.name));
    behind.is_some_and(|rest| rest.starts_with("`: "))
}

fn local_topic(text: &str) -> Result<TopicName, NotLocal> {
    let topic = TopicName::new(text)?;
    if is_too_deep(text) {
        Err(NotLocal::TooDeep)
    } else if topic.is_own() {
        Err(NotLocal::Own)
    } else {
        Ok(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests_support::message;
    use crate::router::{Change, Form, From, Template};

    fn table(routes: &[(&str, &[&str])]) -> Table {
        let route = |(from, to): &(&str, &[&str])| {
            let to = to.iter().map(|to| To::parse(to).unwrap()).collect();
            Route::new(from, vec![From::parse(from, Form::Topic).unwrap()], to)
        };
        Table::new(routes.iter().map(route).collect())
    }

    fn ask(table: &Table, from: &str, topic: &str) -> (Vec<String>, Vec<String>) {
        let from = Endpoint::of_address(&format!("{from}/x")).unwrap();
        let plan = plan(table, &Source { from, channel: None, takes_copies: false }, &message(topic, b""), Gates::OPEN);
        let links = plan.links.iter().map(|to| format!("{}/{}.{}", to.link, *to.destination, to.ordinal));
        (plan.locals.iter().map(|local| local.topic.to_string()).collect(), links.collect())
    }

    #[test]
    fn a_clients_publish_is_delivered_locally_and_to_every_target() {
        let table = table(&[("broker/a/#", &["cloud/x/{rest}", "lake/t", "broker/copy/{rest}"])]);
        let (local, links) = ask(&table, "broker", "a/b");
        assert_eq!(local, ["a/b", "copy/b"]);
        assert_eq!(links, ["cloud/x/b.0", "lake/t.0"]);
    }

    #[test]
    fn r11_records_of_one_message_for_one_link_are_told_apart_by_their_ordinal() {
        let table = table(&[("broker/a/#", &["lake/raw"]), ("broker/#", &["lake/all"])]);
        assert_eq!(ask(&table, "broker", "a/b").1, ["lake/raw.0", "lake/all.1"]);
    }

    #[test]
    fn what_a_link_brings_into_the_broker_takes_the_brokers_routes_too_but_is_not_echoed() {
        let table = table(&[("hq/cmd/#", &["broker/cmd/{rest}"]), ("broker/#", &["hq/up/{topic}", "lake/t"])]);
        let (local, links) = ask(&table, "hq", "cmd/7");
        assert_eq!(local, ["cmd/7"]);
        assert_eq!(links, ["lake/t.0"]);
        assert_eq!(ask(&table, "broker", "cmd/7").1, ["hq/up/cmd/7.0", "lake/t.1"].map(|s| s.replace("t.1", "t.0")));
    }

    #[test]
    fn routes_lead_nowhere_that_clients_may_not_publish_to() {
        let table =
            table(&[("hq/#", &["broker/{topic}", "broker/up/{rest}", "lake/t"]), ("hq/$SYS/#", &["broker/{topic}"])]);
        let bad = |topic: &str| {
            let source = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: false };
            let plan = plan(&table, &source, &message(topic, b""), Gates::OPEN);
            let bad: Vec<_> = plan.bad_topics.iter().map(|bad| bad.why).collect();
            (plan.locals.len(), plan.links.len(), bad)
        };
        assert_eq!(bad("a"), (2, 1, vec![]));
        assert_eq!(bad("$SYS/broker/uptime"), (0, 0, vec![NotLocal::Own]));
        assert_eq!(bad(&"a/".repeat(LEVELS_MAX - 2)), (2, 1, vec![]));
        assert_eq!(bad(&"a/".repeat(LEVELS_MAX - 1)), (1, 1, vec![NotLocal::TooDeep]), "`up/` makes it so");
        assert_eq!(bad(&"a/".repeat(LEVELS_MAX)), (0, 1, vec![NotLocal::TooDeep; 2]));
        let long = vec![NotLocal::Topic(TopicError::TooLong)];
        assert_eq!(bad(&"x".repeat(crate::topic::TOPIC_BYTES_MAX)), (1, 1, long));
    }

    #[test]
    fn what_a_route_makes_of_a_message_goes_to_its_own_targets_and_on_with_the_chain() {
        let route = |name: &str, from: &str, to: &[&str], change| Route {
            change,
            ..Route::new(
                name,
                vec![From::parse(from, Form::Topic).unwrap()],
                to.iter().map(|to| To::parse(to).unwrap()).collect(),
            )
        };
        let celsius = Change { payload: Some(Template::parse("{payload.c} C").unwrap()), ..Change::default() };
        let table = Table::new(vec![
            route("all", "broker/a", &["lake/raw"], Change::default()),
            route("text", "broker/a", &["lake/text", "broker/text"], celsius),
            route("on", "broker/text", &["hq/{payload}"], Change { retain: Some(true), ..Change::default() }),
        ]);
        let told = |payload: &'static [u8]| {
            let source = Source { from: Endpoint::Broker, channel: None, takes_copies: false };
            let plan = plan(&table, &source, &message("a", payload), Gates::OPEN);
            let payload = |made: &Option<Arc<Message>>| {
                made.as_ref().map(|made| (String::from_utf8(made.payload.to_vec()).unwrap(), made.retain))
            };
            let links =
                plan.links.iter().map(|to| (to.destination.to_string(), payload(&to.message), to.failure.is_some()));
            let locals = plan.locals.iter().map(|to| (to.topic.to_string(), payload(&to.message), false));
            (links.chain(locals).collect::<Vec<_>>(), plan.held.to_vec())
        };
        let made = |retain| Some(("21.5 C".to_owned(), retain));
        let line = |name: &str, made, failed| (name.to_owned(), made, failed);
        let expected = vec![
            line("raw", None, false),
            line("text", made(false), false),
            line("21.5 C", made(true), false),
            line("a", None, false),
            line("text", made(false), false),
        ];
        assert_eq!(told(br#"{"c":21.5}"#), (expected, vec![]));
        let expected = vec![line("raw", None, false), line("text", None, true), line("a", None, false)];
        assert_eq!(told(b"x"), (expected, vec![(1, Held::Failed), (1, Held::Failed)]));
    }

    #[test]
    fn a_cycle_of_local_routes_ends() {
        let ring = table(&[("broker/a", &["broker/b"]), ("broker/b", &["broker/a"])]);
        assert_eq!(ask(&ring, "broker", "a").0, ["a", "b"]);
        let growing = table(&[("broker/{x}/#", &["broker/{x}/{rest}/y"])]);
        assert_eq!(ask(&growing, "broker", "a").0.len(), 2 + CHAIN_MAX);
    }
}
