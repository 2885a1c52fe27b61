//! What a source knows again by itself.

use super::*;
use crate::message::MessageId;

/// Not this run's id, as that of an earlier start of the gateway.
fn known_as(counter: u64) -> Publication {
    Publication { id: Some(id(counter).into()), ..publication("a", b"1") }
}

fn id(counter: u64) -> MessageId {
    MessageId { site: "here".into(), run: 0xAB, counter }
}

#[tokio::test]
async fn r25_what_a_source_knows_again_has_its_id_and_is_taken_once_also_where_copies_are_kept() {
    for takes_copies in [false, true] {
        let bench = bench(&[("hq/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
        let hq = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies };
        for counter in [1, 2, 1] {
            bench.hub.offer(&hq, vec![known_as(counter)]).await.remove(0).unwrap().settled().await.unwrap();
        }
        let ids: Vec<_> =
            records(&bench.buffers[0], 2).await.into_iter().map(|one| one.message.id.to_string()).collect();
        assert_eq!(ids, ["here-00000000000000ab-1", "here-00000000000000ab-2"]);
        assert_eq!((bench.hub.copies_dropped(), bench.buffers[0].stats().ledger.accepted), (1, 2));
    }
}

#[tokio::test]
async fn r25_after_a_kill_what_comes_again_goes_only_to_the_logs_that_lack_it() {
    let routes = [("hq/#", "lake/t"), ("hq/#", "cloud/x")];
    let links = [("lake", WhenFull::DropOldest, BIG), ("cloud", WhenFull::DropOldest, BIG)];
    let bench = bench(&routes, &links, false);
    let hq = Source { from: Endpoint::Link(LinkId::new("hq")), channel: None, takes_copies: false };
    let offer_to = async |hub: &Hub, one| hub.offer(&hq, vec![one]).await.remove(0).unwrap().settled().await.unwrap();
    let ends = || bench.buffers.iter().map(|buffer| buffer.end().0).collect::<Vec<_>>();
    offer_to(&bench.hub, known_as(1)).await;
    let mut tails = bench.hub.tails();
    offer_to(&bench.hub, known_as(2)).await;
    // Each log is looked into from where it was when that was noted first.
    tails.add(&bench.hub.tails());
    // The memory of copies goes with the process; what is routed may be other than before.
    let hub = |routes: &[(&str, &str)]| {
        let route = |(from, to): &(&str, &str)| {
            Route::new(to, vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
        };
        let logs = links.iter().zip(&bench.buffers).map(|((name, ..), log)| (LinkId::new(name), log.clone().into()));
        let table = Table::new(routes.iter().map(route).collect());
        Hub::new(IdSource::new("test".into(), 2), table, logs.collect(), clock::system())
    };
    let more = [&routes[..], &[("hq/#", "cloud/y")]].concat();
    for (routes, counter, then) in
        [(&routes[..], 2, [2, 2]), (&more, 2, [2, 3]), (&routes, 3, [3, 4]), (&routes, 1, [4, 5])]
    {
        let hub = hub(routes);
        let logged = Some(Arc::new(hub.find(&[(id(2), tails.clone()), (id(3), Tails::default())]).await));
        let known_as = Some(KnownAs { id: id(counter), logged });
        offer_to(&hub, Publication { id: known_as, ..publication("a", b"1") }).await;
        assert_eq!((ends(), hub.unrouted()), (then.to_vec(), 0), "{counter}");
    }
}

#[tokio::test]
async fn r12_what_too_many_bridges_of_hivemq_have_passed_goes_no_further() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
    for count in ["1", "15", "16", "99999999999", "x"] {
        let mut publication = publication("a", b"1");
        publication.properties.user = vec![(headers::HMQ_HOPS.into(), count.into())];
        bench.hub.offer(&from_broker(), vec![publication]).await.remove(0).unwrap().settled().await.unwrap();
    }
    assert_eq!((bench.hub.loops_stopped(), bench.buffers[0].end().0), (1, 4));
}
