//! What routes write to the broker goes on there.

use std::sync::atomic::Ordering;

use super::*;

#[tokio::test]
async fn r28_what_a_chain_of_routes_does_not_bring_to_its_end_is_counted_for_the_route_that_lacks_it() {
    let names: Vec<_> = (1..=11).map(|at| (format!("broker/c{at}"), format!("broker/c{}", at + 1))).collect();
    let routes: Vec<(&str, &str)> = names.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let bench = bench(&routes, &[], false);
    for count in 1..=2 {
        assert!(bench.hub.offer(&from_broker(), vec![publication("c1", b"")]).await.remove(0).is_ok());
        let failed: Vec<_> = bench.hub.route_counts().iter().map(|(_, counts)| counts.failed).collect();
        assert_eq!(failed, [0, 0, 0, 0, 0, 0, 0, 0, 0, count, 0]);
    }
    assert_eq!(bench.local.delivered.lock().last().unwrap(), "c10");
    assert_eq!(bench.hub.bad_topics.load(Ordering::Relaxed), 0);
}
