//! `rate` and `active`.

use std::time::Instant;

use super::*;

/// A remote that notes when what came.
fn noting(reaction: Reaction) -> (Arc<Remote>, Arc<Mutex<Vec<Instant>>>) {
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let noting = Arc::clone(&times);
    let remote = Remote::new(move |_, _| {
        noting.lock().push(crate::clock::now());
        reaction.clone()
    });
    (remote, times)
}

#[tokio::test]
async fn what_goes_out_keeps_to_the_rate_and_the_rest_waits_in_the_buffer() {
    let (remote, times) = noting(Reaction::Confirm);
    let rate = rate(200, Duration::from_millis(50));
    let sink = FakeSink(Arc::clone(&remote));
    let running = Running::start_with(sink, common(TIMING), &rate, Drain::Fifo, &[]);
    running.append_many(60).await;
    eventually("told", || status(&running.common.board).held_by_rate).await;
    assert_eq!(running.common.board.state(), LinkState::Online);
    running.drained().await;
    assert_eq!(remote.sent(), (0..60).collect::<Vec<_>>());
    assert_no_faster(200, 10, &times.lock());
    eventually("no more", || !status(&running.common.board).held_by_rate).await;
    let shown = status(&running.common.board);
    assert!((1..=60).contains(&shown.rate_waits), "{shown:?}");
    assert_eq!(shown.resent, 0);
    running.stop().await;
}

#[tokio::test]
async fn what_is_sent_again_counts_again() {
    let (remote, times) = noting(Reaction::Retry);
    let rate = rate(100, Duration::ZERO);
    let running = Running::start_with(FakeSink(Arc::clone(&remote)), common(TIMING), &rate, Drain::Fifo, &[]);
    running.append_many(1).await;
    eventually("tried again and again", || remote.sent().len() >= 20).await;
    assert_no_faster(100, 1, &times.lock());
    running.stop().await;
}

#[tokio::test]
async fn r22_outside_of_its_times_a_link_is_paused_and_its_buffer_goes_on() {
    let (remote, _) = noting(Reaction::Confirm);
    let clock = SetClock::at(12);
    let sink = FakeSink(Arc::clone(&remote));
    let running = Running::start_with(sink, at_night(&clock), &SharedRate::default(), Drain::Fifo, &[]);
    let shown = running.state(LinkState::Paused).await;
    assert_eq!(shown.reason.as_deref(), Some("outside of `active: 22:00-06:00`"));
    assert_eq!((shown.next_try_ms, shown.last_error), (Some(1_000 * 86_400_000 + 22 * 3_600_000), None));
    running.append_many(10).await;
    assert_eq!((*remote.connections.lock(), running.lanes.ledger().buffered), (0, 10));
    clock.set(23);
    running.drained().await;
    let shown = running.state(LinkState::Online).await;
    assert_eq!((shown.reason, shown.next_try_ms), (None, None));
    clock.set(6);
    running.state(LinkState::Paused).await;
    running.append_many(10).await;
    clock.set(5);
    running.drained().await;
    assert_eq!(remote.sent(), (0..20).collect::<Vec<_>>());
    clock.set(12);
    running.state(LinkState::Paused).await;
    running.stop().await;
}

#[tokio::test]
async fn what_is_in_flight_at_the_end_of_its_times_is_waited_for() {
    let (remote, _) = noting(Reaction::Silence);
    let clock = SetClock::at(23);
    let sink = FakeSink(Arc::clone(&remote));
    let patient = Common { timing: Timing { stall_after: Duration::from_secs(60), ..TIMING }, ..at_night(&clock) };
    let running = Running::start_with(sink, patient, &SharedRate::default(), Drain::Fifo, &[]);
    running.append_many(3).await;
    eventually("all in flight", || remote.sent().len() == 3).await;
    clock.set(6);
    (0..2).for_each(|offset| remote.give(Answer::Confirmed(at(offset))));
    let shown = running.state(LinkState::Paused).await;
    assert_eq!((running.lanes.ledger().delivered, running.lanes.ledger().buffered, shown.in_flight), (2, 1, 0));
    running.stop().await;
}
