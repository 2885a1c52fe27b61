//! The way of a message that no route changes, from [`Hub::offer`] into the logs of its links, costs one allocation, the message's own,
//! however many links there are. Counted on the offering thread: what the logs' writers do is theirs.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::path::Path;

use futures_util::FutureExt;
use tidegate::buffer::{Buffer, Compression, Config, SyncMode, WhenFull};
use tidegate::clock;
use tidegate::hub::{Hub, Publication, Source};
use tidegate::message::{IdSource, Properties, Qos};
use tidegate::router::{Endpoint, Form, From, LinkId, Route, Table, Template, To};
use tidegate::topic::TopicName;
use tidegate::units::ByteSize;

/// Offers before anything is counted, and those of which the one counts that needed least.
const ROUNDS: usize = 200;

fn open(dir: &Path, name: &str) -> Buffer {
    let config = Config {
        dir: dir.join(name),
        max_size: ByteSize(1 << 30),
        max_age: None,
        when_full: WhenFull::Block,
        sync: SyncMode::Never,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    };
    Buffer::open(config, 16, clock::system()).unwrap().0
}

fn hub(dir: &Path, to: &[&str]) -> Hub {
    let routes = to.iter().map(|to| Route {
        key: Some(Template::parse("{line}/{machine}").unwrap()),
        ..Route::new(
            to,
            vec![From::parse("broker/factory/{line}/{machine}/#", Form::Topic).unwrap()],
            vec![To::parse(to).unwrap()],
        )
    });
    let links = to.iter().map(|to| to.split('/').next().unwrap());
    let logs = links.map(|link| (LinkId::new(link), open(dir, link).into())).collect();
    Hub::new(IdSource::new("plant-7".into(), 1), Table::new(routes.collect()), logs, clock::system())
}

fn publication() -> Publication {
    Publication {
        topic: TopicName::new("factory/a/press-7/telemetry/temperature").unwrap(),
        payload: vec![b'x'; 256].into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        expiry_s: None,
        time_ms: None,
        properties: Properties::default(),
        client_id: Some("press-7".into()),
        user: None,
        packet_id: None,
        id: None,
    }
}

/// Of one offer of so many messages, where no log needs more room for what it has staged: that grows with its first writes, and is used again.
fn allocations(hub: &Hub, messages: usize) -> u64 {
    let source = Source { from: Endpoint::Broker, channel: None, takes_copies: false };
    let offer = |_| {
        let batch: Vec<_> = (0..messages).map(|_| publication()).collect();
        let mut answers = None;
        let counted = allocation_counter::measure(|| answers = hub.offer(&source, batch).now_or_never());
        for answer in answers.unwrap() {
            assert!(answer.is_ok());
        }
        counted.count_total
    };
    // What the first ones need is used again.
    (0..2 * ROUNDS).map(offer).skip(ROUNDS).min().unwrap()
}

#[test]
fn a_message_that_no_route_changes_costs_its_own_allocation_and_a_link_none() {
    for to in [&["hq/{topic}"][..], &["hq/up/plant-7/{topic}"], &["hq/{topic}", "lake/up/{rest}", "far/telemetry"]] {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path(), to);
        let (one, nine) = (allocations(&hub, 1), allocations(&hub, 9));
        // Its own, and five lists of the offer, whatever there is in it.
        assert_eq!((one, nine), (1 + 5, 9 + 5), "{to:?}");
    }
}
