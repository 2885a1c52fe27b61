//! What a source knows again by itself.

use super::*;
use crate::message::MessageId;

/// Not this run's id, as that of an earlier start of the gateway.
fn known_as(counter: u64) -> Publication {
    Publication { id: Some(MessageId { site: "here".into(), run: 0xAB, counter }), ..publication("a", b"1") }
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
async fn r12_what_too_many_bridges_of_hivemq_have_passed_goes_no_further() {
    let bench = bench(&[("broker/#", "lake/t")], &[("lake", WhenFull::DropOldest, BIG)], false);
    for count in ["1", "15", "16", "99999999999", "x"] {
        let mut publication = publication("a", b"1");
        publication.properties.user = vec![(headers::HMQ_HOPS.into(), count.into())];
        bench.hub.offer(&from_broker(), vec![publication]).await.remove(0).unwrap().settled().await.unwrap();
    }
    assert_eq!((bench.hub.loops_stopped(), bench.buffers[0].end().0), (1, 4));
}
