//! What has to be done to the links of a running gateway to make them those of another configuration. Pure.

use super::super::heir::{Heir, Holds};
use crate::links::{self, Config};
use crate::router::LinkId;

/// A buffer that is there.
#[derive(Clone, Debug)]
pub(super) struct There<'a> {
    pub(super) id: LinkId,
    /// The kind of link that it was made for, where that is known.
    pub(super) kind: Option<&'a str>,
    /// Its link; none: it is orphaned.
    pub(super) config: Option<&'a Config>,
    /// Whether there is a log.
    pub(super) has_log: bool,
    /// Whether it could be opened.
    pub(super) is_readable: bool,
    /// What that holds.
    pub(super) holds: Holds,
    /// What it owes is no more than what its remote is just confirming.
    pub(super) may_settle: bool,
    /// Whether the log has all the lanes that the new link of this name uses.
    pub(super) has_lanes: bool,
}

/// What becomes of one link of the new configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Does {
    /// Its log is opened, after that of `adopt` or its own was closed.
    pub(super) opens: bool,
    /// Its outbound half begins anew.
    pub(super) sink: bool,
    /// Its inbound half begins anew.
    pub(super) source: bool,
}

/// The same, with the link.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    pub(super) config: &'a Config,
    /// The link that it was, whose figures go on.
    pub(super) before: Option<LinkId>,
    /// The log of this name becomes its own (R34), unless it turns out, when both are closed, that nothing waits in it.
    pub(super) adopts: Option<LinkId>,
    pub(super) does: Does,
}

/// What has to be done.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    /// In the order of the new configuration.
    pub(super) links: Vec<Step<'a>>,
    /// Links that are no more.
    pub(super) gone: Vec<LinkId>,
}

/// The log of `old` cannot become that of `link`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) link: LinkId,
    pub(super) old: LinkId,
    pub(super) why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Both hold what is owed.
    Conflict,
    /// It could not be opened.
    Unreadable,
    /// What is in it was named for another kind of link.
    OtherKind { was: String, is: &'static str },
}

impl<'a> Steps<'a> {
    pub(super) fn of(there: &[There<'a>], new: &'a [Config]) -> Result<Self, Obstacle> {
        let links = new.iter().map(|config| step(there, config)).collect::<Result<Vec<_>, _>>()?;
        let is_gone = |own: &&There<'_>| own.config.is_some() && new.iter().all(|config| config.id != own.id);
        let gone = there.iter().filter(is_gone).map(|own| own.id.clone()).collect();
        Ok(Self { links, gone })
    }

    /// Logs that are closed: of what is gone, moved or opened anew.
    pub(super) fn closes(&self, id: &LinkId) -> bool {
        let is_moved = |step: &Step<'_>| step.does.opens && (step.config.id == *id || step.adopts.as_ref() == Some(id));
        self.gone.contains(id) || self.links.iter().any(is_moved)
    }

    /// Links, and orphaned logs, that something is done to.
    pub(super) fn touches(&self, id: &LinkId) -> bool {
        self.closes(id) || self.links.iter().any(|step| step.config.id == *id && step.does.sink)
    }

    /// Which halves of a link that runs have to end.
    pub(super) fn ends(&self, id: &LinkId) -> (bool, bool) {
        if self.gone.contains(id) {
            return (true, true);
        }
        let does = self.links.iter().find(|step| step.config.id == *id).map(|step| step.does);
        does.map_or((false, false), |does| (does.sink, does.source))
    }

    /// What a link is called now.
    pub(super) fn new_name(&self, id: &LinkId) -> Option<&LinkId> {
        let adopts = self.links.iter().find(|step| step.adopts.as_ref() == Some(id));
        let is = || self.links.iter().find(|step| step.before.as_ref() == Some(id));
        adopts.or_else(is).map(|step| &step.config.id)
    }
}

fn step<'a>(there: &[There<'_>], config: &'a Config) -> Result<Step<'a>, Obstacle> {
    let find = |id: &LinkId| there.iter().find(|own| own.id == *id);
    let own = find(&config.id);
    let own_log = own.filter(|own| own.has_log);
    let old = config.renamed_from.as_ref().and_then(find).filter(|old| old.has_log);
    let said_before = own.and_then(|own| own.config).and_then(|was| was.renamed_from.as_ref());
    let is_new = said_before != config.renamed_from.as_ref();
    let obstacle = |old: &There<'_>, why| Obstacle { link: config.id.clone(), old: old.id.clone(), why };
    let heir = match old {
        Some(old) if is_heir(old, config, own_log, is_new).map_err(|why| obstacle(old, why))? => Some(old),
        Some(_) | None => None,
    };
    let before = own.filter(|own| own.config.is_some());
    let was = config.renamed_from.as_ref().and_then(find).filter(|was| was.config.is_some());
    let before = before.or(was);
    let does = match (own.and_then(|own| own.config.map(|old| (own, old))), heir) {
        (Some((own, old)), None) => differs(own, old, config),
        (None, _) | (_, Some(_)) => Does { opens: true, sink: true, source: true },
    };
    Ok(Step { config, before: before.map(|own| own.id.clone()), adopts: heir.map(|heir| heir.id.clone()), does })
}

/// Whether the two are to be closed, so that [`rename`](super::super::rename) decides by what they hold then. A `renamed_from` that was in
/// the file before is in no reload's way: where it cannot be done both stay as they are.
fn is_heir(old: &There<'_>, config: &Config, own: Option<&There<'_>>, is_new: bool) -> Result<bool, Why> {
    let refused = |why| if is_new { Err(why) } else { Ok(false) };
    if !old.is_readable {
        return refused(Why::Unreadable);
    }
    let is = config.kind.name();
    if let Some(was) = old.kind.filter(|was| *was != is && old.holds != Holds::Nothing) {
        return refused(Why::OtherKind { was: was.to_owned(), is });
    }
    let soon = |own: &There<'_>| if is_new && own.may_settle { Holds::Settled } else { own.holds };
    match Heir::of(old.holds, own.map(soon)) {
        Heir::Takes | Heir::Replaces | Heir::SetsAside => Ok(true),
        // Of a link that runs nobody knows yet: it takes records, and has them confirmed, until it is closed.
        Heir::Stays => Ok(old.config.is_some()),
        Heir::Conflict if is_new && old.may_settle => Ok(true),
        Heir::Conflict => refused(Why::Conflict),
    }
}

fn differs(own: &There<'_>, old: &Config, new: &Config) -> Does {
    // All but what is looked at by itself: a key that is added later begins both halves anew.
    let alike = Config {
        buffer: old.buffer.clone(),
        lanes: old.lanes.clone(),
        has_sink: old.has_sink,
        sources: old.sources.clone(),
        renamed_from: old.renamed_from.clone(),
        drain: old.drain,
        in_flight: old.in_flight,
        ..new.clone()
    };
    let remote = alike != *old || old.uses_both_halves() != new.uses_both_halves();
    let opens = if own.has_log {
        let is_other = old.buffer != new.buffer || old.kind.name() != new.kind.name();
        is_other || links::window(old) != links::window(new) || !own.has_lanes
    } else {
        new.has_sink
    };
    let sends = old.drain != new.drain || old.in_flight != new.in_flight;
    Does {
        opens,
        sink: opens || remote || sends,
        source: remote || old.sources != new.sources || old.takes_copies != new.takes_copies,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::{self, Lane};
    use crate::links::{Active, Drain, Kind, RateLimit, Timing, Tls, kafka, rabbitmq};
    use crate::units::ByteSize;

    pub(in super::super) fn config(name: &str) -> Config {
        let remote = kafka::Config::of(&["k:9092"]);
        Config {
            id: LinkId::new(name),
            kind: Kind::Kafka(remote),
            buffer: buffer::Config {
                dir: format!("/data/links/{name}").into(),
                max_size: ByteSize(1 << 30),
                max_age: None,
                when_full: buffer::WhenFull::DropOldest,
                sync: buffer::SyncMode::Group,
                min_free: None,
                compress: buffer::Compression::None,
                keep_delivered: None,
            },
            lanes: vec![Lane::Normal],
            has_sink: true,
            sources: Vec::new(),
            timing: Timing::default(),
            rate: None,
            active: None,
            takes_copies: false,
            drain: Drain::Fifo,
            in_flight: None,
            renamed_from: None,
        }
    }

    fn rabbit() -> rabbitmq::Config {
        rabbitmq::Config {
            url: "amqp://r".to_owned(),
            exchange: "x".to_owned(),
            declare: None,
            queues: Vec::new(),
            mandatory: true,
            unroutable: rabbitmq::Unroutable::DeadLetter,
            prefetch: 1,
            topic_escape: false,
            tls: Tls::default(),
            streams: std::collections::BTreeMap::new(),
            positions: None,
        }
    }

    fn runs(config: &Config, holds: Holds) -> There<'_> {
        let (id, is_readable, may_settle) = (config.id.clone(), true, false);
        let (kind, has_log) = (Some(config.kind.name()), config.has_sink);
        There { id, kind, config: Some(config), has_log, is_readable, holds, may_settle, has_lanes: true }
    }

    fn orphan(name: &str, holds: Holds) -> There<'static> {
        let (id, is_readable, may_settle) = (LinkId::new(name), true, false);
        There { id, kind: None, config: None, has_log: true, is_readable, holds, may_settle, has_lanes: true }
    }

    const NO_RATE: RateLimit = RateLimit { messages: None, bytes: None, burst: Duration::ZERO };
    const NOTHING: Does = Does { opens: false, sink: false, source: false };
    const ALL: Does = Does { opens: true, sink: true, source: true };
    const SINK: Does = Does { sink: true, ..NOTHING };
    const BUFFER: Does = Does { opens: true, sink: true, source: false };

    #[test]
    fn each_change_of_a_link_touches_what_it_has_to_and_no_more() {
        let old = config("a");
        type Case = (&'static str, fn(&mut Config), Does);
        let changes: [Case; 16] = [
            ("nothing", |_| {}, NOTHING),
            ("renamed_from of none", |c| c.renamed_from = Some(LinkId::new("z")), NOTHING),
            ("size", |c| c.buffer.max_size = ByteSize(2 << 30), BUFFER),
            ("when_full", |c| c.buffer.when_full = buffer::WhenFull::Block, BUFFER),
            ("drain", |c| c.drain = Drain::LiveFirst { share: 25 }, SINK),
            ("in_flight", |c| c.in_flight = Some(7), BUFFER),
            ("in_flight as it is", |c| c.in_flight = Some(links::window(&config("a"))), SINK),
            ("rate", |c| c.rate = Some(NO_RATE), Does { opens: false, ..ALL }),
            ("active", |c| c.active = Active::new(vec!["sat".parse().unwrap()]), Does { opens: false, ..ALL }),
            ("copies", |c| c.takes_copies = true, Does { opens: false, ..ALL }),
            ("timing", |c| c.timing.stall_after = Duration::from_secs(1), Does { opens: false, ..ALL }),
            (
                "remote",
                |c| {
                    if let Kind::Kafka(kafka) = &mut c.kind {
                        kafka.acks = "1".to_owned();
                    }
                },
                Does { opens: false, ..ALL },
            ),
            ("another kind", |c| c.kind = Kind::Rabbitmq(rabbit()), ALL),
            ("a route begins there", |c| c.sources = vec!["t".to_owned()], Does { opens: false, ..ALL }),
            ("no route leads there", |c| c.has_sink = false, NOTHING),
            ("lanes", |c| c.lanes = vec![Lane::High, Lane::Normal], NOTHING),
        ];
        for (what, change, expected) in changes {
            let mut new = vec![config("a")];
            change(&mut new[0]);
            let there = [runs(&old, Holds::Owed)];
            let steps = Steps::of(&there, &new).unwrap();
            assert_eq!((steps.links[0].does, &steps.links[0].adopts), (expected, &None), "{what}");
            assert_eq!((steps.gone.len(), steps.closes(&old.id)), (0, expected.opens), "{what}");
        }
        let there = [There { has_lanes: false, ..runs(&old, Holds::Owed) }];
        assert_eq!(Steps::of(&there, &[config("a")]).unwrap().links[0].does, BUFFER, "a lane more");
    }

    #[test]
    fn r34_a_buffer_that_makes_room_gets_no_name_that_a_link_has_or_takes_over() {
        let x = Config { renamed_from: Some(LinkId::new("new_1")), ..config("x") };
        let names = super::super::super::rename::names(&[config("new"), x]);
        assert_eq!(names, ["new", "x", "new_1"].map(LinkId::new));
    }

    #[test]
    fn links_come_and_go_and_find_what_an_earlier_one_left() {
        let (a, b) = (config("a"), config("b"));
        let there = [runs(&a, Holds::Owed), orphan("b", Holds::Owed)];
        let new = [b];
        let steps = Steps::of(&there, &new).unwrap();
        assert_eq!(steps.gone, [LinkId::new("a")]);
        assert_eq!((steps.links[0].does, &steps.links[0].adopts), (ALL, &None));
        assert!(steps.closes(&LinkId::new("a")) && steps.closes(&LinkId::new("b")));
        assert_eq!(steps.ends(&LinkId::new("a")), (true, true));
    }

    #[test]
    fn r34_a_renamed_link_takes_its_buffer_with_it_unless_both_hold_what_is_owed() {
        let (a, mut b) = (config("a"), config("b"));
        b.renamed_from = Some(LinkId::new("a"));
        let new = [b];
        let of = |there: &[There<'_>]| {
            let steps = Steps::of(there, &new)?;
            Ok(steps.links[0].adopts.as_ref().map(ToString::to_string))
        };
        let adopts = Ok(Some("a".to_owned()));
        let obstacle = |why| Err(Obstacle { link: LinkId::new("b"), old: LinkId::new("a"), why });
        let (conflict, unreadable) = (obstacle(Why::Conflict), obstacle(Why::Unreadable));
        assert_eq!(of(&[runs(&a, Holds::Nothing)]), adopts);
        assert_eq!(of(&[orphan("a", Holds::Owed)]), adopts);
        assert_eq!(of(&[orphan("a", Holds::Owed), orphan("b", Holds::Nothing)]), adopts);
        assert_eq!(of(&[orphan("a", Holds::Nothing), orphan("b", Holds::Owed)]), Ok(None));
        assert_eq!(of(&[runs(&a, Holds::Owed), orphan("b", Holds::Owed)]), conflict);
        assert_eq!(of(&[orphan("a", Holds::Owed), orphan("b", Holds::Settled)]), adopts);
        assert_eq!(of(&[orphan("a", Holds::Settled), orphan("b", Holds::Owed)]), Ok(None));
        assert_eq!(of(&[orphan("a", Holds::Settled), orphan("b", Holds::Settled)]), Ok(None));
        let renamed = new[0].clone();
        assert_eq!(of(&[runs(&renamed, Holds::Owed)]), Ok(None), "it is done");
        assert_eq!(
            of(&[runs(&renamed, Holds::Owed), orphan("a", Holds::Owed)]),
            Ok(None),
            "no reload is refused for it"
        );
        assert_eq!(of(&[runs(&renamed, Holds::Settled), orphan("a", Holds::Settled)]), Ok(None));
        let unnamed = config("b");
        assert_eq!(of(&[runs(&unnamed, Holds::Owed), orphan("a", Holds::Owed)]), conflict);
        assert_eq!(of(&[runs(&unnamed, Holds::Settled), orphan("a", Holds::Owed)]), adopts);
        assert_eq!(of(&[runs(&unnamed, Holds::Settled), orphan("a", Holds::Settled)]), Ok(None));
        let moving = |there| There { may_settle: true, ..there };
        assert_eq!(of(&[moving(runs(&unnamed, Holds::Owed)), orphan("a", Holds::Owed)]), adopts, "it is waited for");
        assert_eq!(of(&[moving(runs(&renamed, Holds::Owed)), orphan("a", Holds::Owed)]), Ok(None), "not each time");
        for own in [Holds::Nothing, Holds::Settled] {
            for moves in [false, true] {
                let old = There { may_settle: moves, ..runs(&a, Holds::Owed) };
                assert_eq!(of(&[old, orphan("b", own)]), adopts, "what waits is never left behind");
            }
        }
        assert_eq!(of(&[moving(runs(&a, Holds::Owed)), orphan("b", Holds::Owed)]), adopts, "it is waited for");
        for own in [Holds::Settled, Holds::Owed] {
            assert_eq!(of(&[runs(&a, Holds::Settled), orphan("b", own)]), adopts, "more may come until it is closed");
        }
        let shut = || There { is_readable: false, ..orphan("a", Holds::Owed) };
        assert_eq!((of(&[shut()]), of(&[runs(&unnamed, Holds::Settled), shut()])), (unreadable.clone(), unreadable));
        assert_eq!(of(&[runs(&renamed, Holds::Settled), shut()]), Ok(None));
        let made_for = |kind, holds| There { kind: Some(kind), ..orphan("a", holds) };
        let other_kind = || obstacle(Why::OtherKind { was: "mqtt".to_owned(), is: "kafka" });
        assert_eq!(of(&[made_for("mqtt", Holds::Owed)]), other_kind());
        assert_eq!(of(&[made_for("mqtt", Holds::Settled)]), other_kind());
        assert_eq!(of(&[made_for("mqtt", Holds::Nothing)]), adopts);
        assert_eq!(of(&[made_for("kafka", Holds::Owed)]), adopts);
        assert_eq!(of(&[runs(&renamed, Holds::Settled), made_for("mqtt", Holds::Owed)]), Ok(None), "it stays");
        let there = [runs(&renamed, Holds::Settled), orphan("a", Holds::Owed)];
        let steps = Steps::of(&there, &new).unwrap();
        assert_eq!(steps.links[0].does, ALL);
        assert!(steps.closes(&LinkId::new("b")) && steps.closes(&LinkId::new("a")));
        assert_eq!(steps.new_name(&a.id), Some(&LinkId::new("b")), "a replay of it goes on");
        assert_eq!(steps.links[0].before, Some(LinkId::new("b")), "the figures are the link's own");
        let there = [runs(&a, Holds::Owed)];
        let steps = Steps::of(&there, &new).unwrap();
        assert_eq!(steps.new_name(&a.id), Some(&LinkId::new("b")));
        assert_eq!(steps.gone, [LinkId::new("a")]);
    }
}
