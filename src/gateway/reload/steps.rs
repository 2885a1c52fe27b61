//! What has to be done to the links of a running gateway to make them those of another configuration. Pure.

use super::super::heir::{Heir, Holds};
use crate::links::{self, Config};
use crate::router::LinkId;

/// A buffer that is there.
#[derive(Clone, Debug)]
pub(super) struct There<'a> {
    pub(super) id: LinkId,
    /// Its link; none: it is orphaned.
    pub(super) config: Option<&'a Config>,
    /// Whether there is a log.
    pub(super) has_log: bool,
    /// What that holds. What is only in flight is no more owed.
    pub(super) holds: Holds,
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
    /// The log of this name becomes its own (R34).
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

/// Two logs that both hold what is owed cannot become one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) link: LinkId,
    pub(super) old: LinkId,
}

impl<'a> Steps<'a> {
    pub(super) fn of(there: &[There<'a>], new: &'a [Config]) -> Result<Self, Conflict> {
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

    /// What a link, or a log, is called now.
    pub(super) fn new_name(&self, id: &LinkId) -> Option<&LinkId> {
        let adopts = self.links.iter().find(|step| step.adopts.as_ref() == Some(id));
        let is = || self.links.iter().find(|step| step.before.as_ref() == Some(id));
        adopts.or_else(is).map(|step| &step.config.id)
    }

    /// Whether the link's own log gives way to another one.
    pub(super) fn gives_way(&self, id: &LinkId) -> bool {
        self.links.iter().any(|step| step.config.id == *id && step.adopts.is_some())
    }
}

fn step<'a>(there: &[There<'_>], config: &'a Config) -> Result<Step<'a>, Conflict> {
    let find = |id: &LinkId| there.iter().find(|own| own.id == *id);
    let own = find(&config.id);
    let own_log = own.filter(|own| own.has_log);
    let heir = config.renamed_from.as_ref().and_then(find).filter(|heir| heir.has_log);
    let meets = |heir: &&There<'_>| Heir::of(heir.holds, own_log.map(|own| own.holds));
    if let Some(heir) = heir.filter(|heir| meets(heir) == Heir::Conflict) {
        return Err(Conflict { link: config.id.clone(), old: heir.id.clone() });
    }
    let heir = heir.filter(|heir| meets(heir).takes());
    let before = own.filter(|own| own.config.is_some());
    let was = config.renamed_from.as_ref().and_then(find).filter(|was| was.config.is_some());
    let before = before.or(was);
    let does = match (own.and_then(|own| own.config.map(|old| (own, old))), heir) {
        (Some((own, old)), None) => differs(own, old, config),
        (None, _) | (_, Some(_)) => Does { opens: true, sink: true, source: true },
    };
    Ok(Step { config, before: before.map(|own| own.id.clone()), adopts: heir.map(|heir| heir.id.clone()), does })
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
        old.buffer != new.buffer || links::window(old) != links::window(new) || !own.has_lanes
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::{self, Lane};
    use crate::links::{Active, Drain, Kind, RateLimit, Timing, kafka};
    use crate::units::ByteSize;

    fn config(name: &str) -> Config {
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

    fn runs(config: &Config, holds: Holds) -> There<'_> {
        There { id: config.id.clone(), config: Some(config), has_log: config.has_sink, holds, has_lanes: true }
    }

    fn orphan(name: &str, holds: Holds) -> There<'static> {
        There { id: LinkId::new(name), config: None, has_log: true, holds, has_lanes: true }
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
        let changes: [Case; 15] = [
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
        let conflict = Err(Conflict { link: LinkId::new("b"), old: LinkId::new("a") });
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
        assert_eq!(of(&[runs(&renamed, Holds::Owed), orphan("a", Holds::Owed)]), conflict);
        assert_eq!(of(&[runs(&renamed, Holds::Settled), orphan("a", Holds::Settled)]), Ok(None));
        let there = [runs(&renamed, Holds::Settled), orphan("a", Holds::Owed)];
        let steps = Steps::of(&there, &new).unwrap();
        assert_eq!(steps.links[0].does, ALL);
        assert!(steps.gives_way(&LinkId::new("b")) && steps.closes(&LinkId::new("a")));
        assert_eq!(steps.new_name(&a.id), Some(&LinkId::new("b")), "a replay of it goes on");
        assert_eq!(steps.links[0].before, Some(LinkId::new("b")), "the figures are the link's own");
        let there = [runs(&a, Holds::Owed)];
        let steps = Steps::of(&there, &new).unwrap();
        assert_eq!(steps.new_name(&a.id), Some(&LinkId::new("b")));
        assert_eq!(steps.gone, [LinkId::new("a")]);
    }
}
