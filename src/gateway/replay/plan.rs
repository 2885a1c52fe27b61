//! What a replay reads, where it sends it, and under which names: from what the operator asked for, or a sentence about what is wrong
//! with it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::{Link, Orphan, Parts, Shared};
use super::ReplayError;
use crate::buffer::{Buffer, Lane, Lanes, Offset, Record};
use crate::clock::Clock;
use crate::hub::Hub;
use crate::links::{self, Kind, Pick, Picked, Replay, ReplayKeeper, ReplayProgress};
use crate::message::{Envelope, headers};
use crate::router::{Captures, FIELDS, Pattern, Subject, Template, View};
use crate::telemetry::replay::{ReplayCounts, ReplayLane, ReplayPoint, ReplayRequest, ReplayStatus};

/// Records read at once for a count.
const COUNT_RECORDS: usize = 1_024;
const COUNT_BYTES: usize = 1 << 20;

/// A checked request.
pub(super) struct Plan {
    pub(super) request: ReplayRequest,
    /// Not empty.
    stretches: Vec<Stretch>,
    /// What the operator should know of it.
    pub(super) note: Option<String>,
    /// The link that it goes to.
    pub(super) config: links::Config,
    source: Lanes,
    target: Lanes,
    choice: Choice,
}

/// What is read of one lane.
#[derive(Clone, Copy)]
struct Stretch {
    lane: Lane,
    from: Offset,
    until: Offset,
}

/// Which records, and under which names.
#[derive(Clone)]
struct Choice {
    pattern: Option<Pattern>,
    name: Name,
    appended: (Option<u64>, Option<u64>),
    expired: bool,
}

/// What a record's destination is.
#[derive(Clone)]
enum Name {
    /// The one that its route gave it.
    Recorded,
    /// The topic that it was published to.
    Topic,
    Template(Template),
}

impl Plan {
    /// Checks a new request.
    pub(super) fn of(shared: &Shared, request: ReplayRequest) -> Result<Self, ReplayError> {
        let mut plan = Self::resolve(shared, request)?;
        let request = &plan.request;
        let lanes = chosen_lanes(&plan.source, request)?;
        let by_offset = [request.from, request.until].into_iter().flatten().any(|point| is_offset(&point));
        if by_offset && lanes.len() > 1 {
            let names: Vec<_> = lanes.iter().map(|(lane, _)| lane.name()).collect();
            let words = format!(
                "each lane of `{}` counts its own offsets: say which with --lane {}",
                request.link,
                names.join("|")
            );
            return Err(ReplayError::Refused(words));
        }
        let to_itself = plan.is_to_itself();
        let of_lanes = lanes.iter().map(|(lane, buffer)| stretch(*lane, buffer, request, to_itself));
        let stretches: Vec<_> = of_lanes.collect();
        if let (Some(ReplayPoint::Offset(offset)), Some((_, buffer))) = (request.from, lanes.first()) {
            let first = buffer.stats().first.0;
            plan.note = (offset < first).then(|| format!("records before {first} are not there any more"));
        }
        plan.stretches = stretches;
        Ok(plan)
    }

    /// Goes on with one that was checked before.
    pub(super) fn again(shared: &Shared, status: &ReplayStatus, at: (Lane, u64)) -> Result<Self, ReplayError> {
        let mut plan = Self::resolve(shared, status.request.clone())?;
        let (lane, position) = at;
        let mut stretches = Vec::new();
        for kept in status.lanes.iter().skip_while(|kept| kept.lane != lane.name()) {
            let known = Lane::named(&kept.lane).filter(|lane| plan.source.iter().any(|(own, _)| own == *lane));
            let lane = known.ok_or_else(|| no_lane(&plan.source, &status.request.link, &kept.lane))?;
            stretches.push(Stretch { lane, from: Offset(kept.from), until: Offset(kept.until) });
        }
        match stretches.first_mut() {
            Some(first) => first.from = Offset(position),
            // Kept before there were lanes.
            None => stretches.push(Stretch { lane, from: Offset(position), until: Offset(status.until) }),
        }
        plan.stretches = stretches;
        Ok(plan)
    }

    fn resolve(shared: &Shared, request: ReplayRequest) -> Result<Self, ReplayError> {
        let parts = shared.parts();
        let source = parts.replayable(&request.link)?;
        let into = request.into.clone().unwrap_or_else(|| request.link.clone());
        let (name, template) = into.split_once('/').map_or((into.as_str(), None), |(name, text)| (name, Some(text)));
        let link = target(&parts, &request, name)?;
        let Some(target) = link.lanes.clone() else {
            let words = format!("no route leads to `{name}`: a replay needs a link with a buffer, where it is counted");
            return Err(ReplayError::Refused(words));
        };
        let pattern = request.topic.as_deref().map(Pattern::parse).transpose();
        let pattern = pattern.map_err(|error| ReplayError::Refused(format!("--topic: {error}")))?;
        let name = match template {
            Some(text) => Name::Template(read_template(text, pattern.as_ref(), &link.config.kind)?),
            None => recorded_or_topic(&parts, &request.link, &link.config)?,
        };
        if request.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(ReplayError::Refused("--rate: more than nothing, such as `100/s`".to_owned()));
        }
        let time = |point: Option<ReplayPoint>| match point {
            Some(ReplayPoint::TimeMs(ms)) => Some(ms),
            Some(ReplayPoint::Offset(_)) | None => None,
        };
        let appended = (time(request.from), time(request.until));
        let choice = Choice { pattern, name, appended, expired: request.expired };
        let config = link.config.clone();
        Ok(Self { request, stretches: Vec::new(), note: None, config, source, target, choice })
    }

    /// Which log, for ever.
    pub(super) fn reads(&self) -> &str {
        self.source.id()
    }

    fn is_to_itself(&self) -> bool {
        self.config.id.as_str() == self.request.link
    }

    /// What is looked through, for who shows it.
    pub(super) fn lanes(&self) -> Vec<ReplayLane> {
        let shown = |stretch: &Stretch| ReplayLane {
            lane: stretch.lane.name().to_owned(),
            from: stretch.from.0,
            until: stretch.until.0,
        };
        self.stretches.iter().map(shown).collect()
    }

    /// Where it begins.
    pub(super) fn begin(&self) -> (Lane, u64) {
        self.stretches.first().map_or_else(Default::default, |first| (first.lane, first.from.0))
    }

    /// Looks through all of it and sends nothing.
    pub(super) async fn count(self, shared: &Shared) -> Result<ReplayCounts, ReplayError> {
        let mut pick = self.choice.clone().pick("", Arc::clone(&shared.clock), Arc::clone(&shared.hub));
        let mut counts = ReplayCounts::default();
        for stretch in &self.stretches {
            self.count_stretch(stretch, &mut pick, &mut counts).await?;
        }
        if self.stretches.len() > 1 {
            // Offsets of several lanes say nothing together.
            (counts.first_offset, counts.last_offset) = (None, None);
        }
        Ok(counts)
    }

    async fn count_stretch(
        &self,
        stretch: &Stretch,
        pick: &mut Pick,
        counts: &mut ReplayCounts,
    ) -> Result<(), ReplayError> {
        let mut history = self.source.lane(stretch.lane).history(stretch.from, stretch.until);
        loop {
            let records = history.next(COUNT_RECORDS, COUNT_BYTES).await;
            let records = records.map_err(|error| ReplayError::Io(format!("the log cannot be read: {error}")))?;
            if records.is_empty() {
                return Ok(());
            }
            for record in records {
                let (offset, appended) = (record.offset.0, record.appended.0);
                match pick(record) {
                    Picked::Send(envelope, _) => {
                        counts.records += 1;
                        counts.bytes += u64::try_from(envelope.message.payload.len()).unwrap_or(u64::MAX);
                        counts.first_ms = Some(counts.first_ms.map_or(appended, |first| first.min(appended)));
                        counts.last_ms = counts.last_ms.max(Some(appended));
                        counts.first_offset.get_or_insert(offset);
                        counts.last_offset = Some(offset);
                    }
                    Picked::PassedOver => counts.passed_over += 1,
                    Picked::Expired => counts.expired += 1,
                    Picked::Unsendable(_) => counts.unsendable += 1,
                }
            }
            // Other tasks of this thread come between, however much lies in memory.
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn into_replay(
        self,
        id: &Arc<str>,
        keeper: Box<dyn ReplayKeeper>,
        progress: Arc<Mutex<ReplayProgress>>,
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
    ) -> Replay {
        let read =
            |stretch: &Stretch| (stretch.lane, self.source.lane(stretch.lane).history(stretch.from, stretch.until));
        let mut later: VecDeque<_> = self.stretches.iter().map(read).collect();
        let nothing = || self.source.lane(Lane::Normal).history(Offset(0), Offset(0));
        Replay {
            id: Arc::clone(id),
            history: later.pop_front().map_or_else(nothing, |(_, history)| history),
            later,
            source_id: self.source.id().to_owned(),
            target: self.target,
            rate: self.request.rate,
            pick: self.choice.pick(id, clock, hub),
            keeper: Some(keeper),
            progress,
        }
    }
}

impl Parts {
    /// What the log with that [`Lanes::id`] is called; `last` where a copy of it has another name.
    pub(super) fn name_of(&self, log: &str, last: &str) -> Option<String> {
        let links = self.links.iter().filter_map(|link| Some((link.config.id.as_str(), link.lanes.as_ref()?)));
        let orphans = self.orphans.iter().filter_map(|orphan| Some((&*orphan.name, orphan.lanes.as_ref().ok()?)));
        let named: Vec<&str> =
            links.chain(orphans).filter(|(_, lanes)| lanes.id() == log).map(|(name, _)| name).collect();
        let same = named.iter().find(|name| **name == last).or_else(|| named.first());
        same.map(|name| (*name).to_owned())
    }

    /// The lanes of a link, or of one that `routes.yaml` has no more (R34).
    fn replayable(&self, link: &str) -> Result<Lanes, ReplayError> {
        let own =
            self.links.iter().find(|known| known.config.id.as_str() == link).and_then(|known| known.lanes.clone());
        let opened = |orphan: &Arc<Orphan>| orphan.lanes.clone().ok();
        let orphaned = || self.orphans.iter().find(|orphan| orphan.name == link).and_then(opened);
        own.or_else(orphaned).ok_or_else(|| {
            let named = self.links.iter().filter(|link| link.lanes.is_some()).map(|link| link.config.id.to_string());
            let all: Vec<_> = named.chain(self.orphans.iter().map(|orphan| orphan.name.clone())).collect();
            ReplayError::NotThere(format!("there is no link `{link}` with a buffer; there are: {}", all.join(", ")))
        })
    }
}

const fn is_offset(point: &ReplayPoint) -> bool {
    matches!(point, ReplayPoint::Offset(_))
}

/// The lanes that are asked for, in the order in which they are read.
fn chosen_lanes<'l>(source: &'l Lanes, request: &ReplayRequest) -> Result<Vec<(Lane, &'l Buffer)>, ReplayError> {
    let Some(wanted) = &request.lane else { return Ok(source.iter().collect()) };
    let chosen: Vec<_> = source.iter().filter(|(lane, _)| lane.name() == wanted).collect();
    if chosen.is_empty() { Err(no_lane(source, &request.link, wanted)) } else { Ok(chosen) }
}

fn no_lane(source: &Lanes, link: &str, wanted: &str) -> ReplayError {
    let there: Vec<_> = source.iter().map(|(lane, _)| lane.name()).collect();
    ReplayError::NotThere(format!("link `{link}` has no lane `{wanted}`; there are: {}", there.join(", ")))
}

/// What is read of a lane.
fn stretch(lane: Lane, buffer: &Buffer, request: &ReplayRequest, to_itself: bool) -> Stretch {
    let wall = |point: Option<ReplayPoint>| match point {
        Some(ReplayPoint::TimeMs(ms)) => Some(crate::clock::WallMs(ms)),
        Some(ReplayPoint::Offset(_)) | None => None,
    };
    let (mut from, mut until) = buffer.between(wall(request.from), wall(request.until));
    if let Some(ReplayPoint::Offset(offset)) = request.from {
        from = Offset(offset);
    }
    if let Some(ReplayPoint::Offset(offset)) = request.until {
        until = Offset(offset);
    }
    let stats = buffer.stats();
    // What is still owed to the same link goes there anyway.
    let until = until.min(if to_itself { stats.cursor } else { stats.durable });
    Stretch { lane, from: from.max(stats.first).min(until), until }
}

/// The link that is sent to.
fn target<'p>(parts: &'p Parts, request: &ReplayRequest, name: &str) -> Result<&'p Link, ReplayError> {
    let found = parts.links.iter().find(|link| link.config.id.as_str() == name);
    found.map(|link| &**link).ok_or_else(|| {
        let words = if request.into.is_none() {
            format!("link `{name}` is orphaned: routes.yaml has no such link, so name another with --into")
        } else {
            let all: Vec<_> = parts.links.iter().map(|link| link.config.id.to_string()).collect();
            format!("--into: there is no link `{name}`; there are: {}", all.join(", "))
        };
        ReplayError::NotThere(words)
    })
}

fn read_template(text: &str, pattern: Option<&Pattern>, kind: &Kind) -> Result<Template, ReplayError> {
    let wrong = |words: String| ReplayError::Refused(format!("--into: {words}"));
    let template = Template::parse(text).map_err(|error| wrong(error.to_string()))?;
    for (name, _) in template.uses() {
        let known = FIELDS.contains(&name) || pattern.is_some_and(|pattern| pattern.names().any(|known| known == name));
        if !known {
            let hint = "it is captured by --topic, such as `--topic 'factory/{line}/#'`";
            return Err(wrong(format!("nothing captures `{{{name}}}`: {hint}")));
        }
    }
    let levels = matches!(kind, Kind::Rabbitmq(rabbit) if !rabbit.exchange.is_empty());
    Ok(if levels { template.with_dots_as_levels() } else { template })
}

/// Without a template: between links of one kind a record keeps its name; else its topic is its name, where that can be one.
fn recorded_or_topic(parts: &Parts, source: &str, target: &links::Config) -> Result<Name, ReplayError> {
    let own = parts.links.iter().find(|link| link.config.id.as_str() == source).map(|link| link.config.kind.name());
    // Of a link that is gone it is kept beside its buffer, unless an earlier version made that.
    let orphan = || parts.orphans.iter().find(|orphan| orphan.name == source)?.kind.as_deref();
    if own.or_else(orphan) == Some(target.kind.name()) {
        return Ok(Name::Recorded);
    }
    let id = &target.id;
    match &target.kind {
        Kind::Mqtt(_) => Ok(Name::Topic),
        Kind::Rabbitmq(rabbit) if !rabbit.exchange.is_empty() => Ok(Name::Topic),
        Kind::Rabbitmq(_) => Err(ReplayError::Refused(format!("--into: name the queue: `--into {id}/QUEUE`"))),
        Kind::Kafka(_) => Err(ReplayError::Refused(format!("--into: name the Kafka topic: `--into {id}/TOPIC`"))),
    }
}

impl Choice {
    fn pick(self, id: &str, clock: Arc<dyn Clock>, hub: Arc<Hub>) -> Pick {
        let id = id.to_owned();
        Box::new(move |record| self.pick_one(record, &id, &*clock, &hub))
    }

    fn pick_one(&self, record: Record, id: &str, clock: &dyn Clock, hub: &Hub) -> Picked {
        let (from, until) = self.appended;
        let appended = record.appended.0;
        if from.is_some_and(|from| appended < from) || until.is_some_and(|until| appended >= until) {
            return Picked::PassedOver;
        }
        let mut envelope = match Envelope::decode(record.body.clone()) {
            Ok(envelope) => envelope,
            Err(error) => return Picked::Unsendable(format!("damaged record: {error}")),
        };
        if let Some(reason) = envelope.failure {
            return Picked::Unsendable(reason.into());
        }
        let topic = envelope.message.topic.clone();
        let captures = match &self.pattern {
            Some(pattern) => pattern.captures(topic.as_str()),
            None => Some(Captures::of(topic.as_str())),
        };
        let Some(captures) = captures else { return Picked::PassedOver };
        let left = record.expiry_left_s(envelope.message.accepted, clock.moment());
        if left == Some(0) && !self.expired {
            return Picked::Expired;
        }
        match &self.name {
            Name::Recorded => {}
            Name::Topic => envelope.destination = topic.as_str().into(),
            Name::Template(template) => {
                let subject = Subject::new(&envelope.message);
                let filled = template.fill(View::new(&subject, &captures)).map(Into::into);
                envelope.destination = match filled {
                    Ok(destination) => destination,
                    Err(error) => return Picked::Unsendable(format!("--into: {error}")),
                };
            }
        }
        // Where its route sends batches it is one of one.
        envelope = hub.alone(envelope);
        // What is sent again must not take the place of a newer value.
        envelope.message.retain = false;
        headers::mark_replay(&mut envelope.message, id);
        Picked::Send(Box::new(envelope), left.filter(|left| *left > 0))
    }
}
