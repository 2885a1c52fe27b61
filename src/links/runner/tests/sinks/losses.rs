//! Connections that are lost: what is sent again, which record is at fault (R16), and when it is the line.

use super::*;

#[tokio::test]
async fn r16_the_record_that_kills_connections_is_found_and_the_others_are_delivered() {
    let remote = Remote::new(|_, record| if record.place.offset.0 == 7 { Reaction::Die } else { Reaction::Confirm });
    let running = Running::start(&remote, TIMING);
    running.append_many(30).await;
    running.drained().await;
    let letters = running.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].offset, Offset(7));
    assert!(letters[0].reason.starts_with("connection lost at this message 3 times"), "{}", letters[0].reason);
    let sent = remote.sent().iter().filter(|offset| **offset == 7).count();
    assert_eq!(usize::try_from(letters[0].attempts), Ok(sent), "as often as it was put on its way");
    assert_eq!(running.buffer.stats().ledger.delivered, 29);
    running.stop().await;
}

#[tokio::test]
async fn r16_a_line_that_breaks_time_and_again_accuses_no_record() {
    for records in [1, 100] {
        let mut remote = Remote::new(|_, _| Reaction::Confirm);
        Arc::get_mut(&mut remote).unwrap().breaking = 20;
        let pause = Duration::from_millis(30);
        let running = Running::start(&remote, Timing { retry_delay_min: pause, retry_delay_max: pause, ..TIMING });
        running.append_many(records).await;
        running.drained().await;
        assert_eq!((running.letters().len(), running.buffer.stats().ledger.delivered), (0, records));
        running.stop().await;
    }
}

#[tokio::test]
async fn r15_a_remote_that_hangs_up_at_everything_is_misconfigured_and_eats_no_backlog() {
    let open = Arc::new(Mutex::new(false));
    let gate = Arc::clone(&open);
    let remote = Remote::new(move |_, _| if *gate.lock() { Reaction::Confirm } else { Reaction::Die });
    let timing = Timing { retry_delay_max: Duration::from_millis(4), ..TIMING };
    let running = Running::start(&remote, timing);
    running.append_many(100).await;
    running.state(LinkState::Misconfigured).await;
    let words = "connection lost at this message 3 times: reset by peer";
    eventually(words, || status(&running.common.board).last_error.as_deref() == Some(words)).await;
    let probes = remote.sent().len();
    eventually("slow probes", || remote.sent().len() >= probes + 4).await;
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.buffered), (20, 80));
    *open.lock() = true;
    running.drained().await;
    running.state(LinkState::Online).await;
    assert_eq!((running.letters().len(), running.buffer.stats().ledger.delivered), (20, 80));
    running.stop().await;
}

#[tokio::test]
async fn a_lost_connection_repeats_what_was_open_and_nothing_that_was_settled_otherwise() {
    let remote = Remote::new(|connection, record| match (connection, record.place.offset.0) {
        (_, 2) => Reaction::Refuse,
        (1, 1) => Reaction::Silence,
        (1, 9) => Reaction::Die,
        _ => Reaction::Confirm,
    });
    let running = Running::start(&remote, Timing { stall_after: Duration::from_secs(60), ..TIMING });
    running.append_many(10).await;
    running.drained().await;
    let second = remote.sent.lock().iter().filter(|sent| sent.0 == 2).map(|sent| sent.1).collect::<Vec<_>>();
    assert_eq!((second.first(), second.last()), (Some(&1), Some(&9)), "{second:?}");
    assert!(second.is_sorted() && !second.contains(&2), "{second:?}");
    let ledger = running.buffer.stats().ledger;
    assert_eq!((ledger.delivered, ledger.dead_lettered), (9, 1));
    assert_eq!(status(&running.common.board).messages, 9, "each counts once");
    running.stop().await;
}

#[tokio::test]
async fn r16_a_backlog_record_that_kills_connections_is_found_although_live_ones_flow() {
    let die = |record: &Outgoing| if record.place.offset.0 == 5 { Reaction::Die } else { Reaction::Confirm };
    let (_remote, running, _told) = after_an_outage(100, die).await;
    for _ in 0..2_000 {
        running.append_retained(1).await;
        if !running.letters().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.drained().await;
    assert_eq!(running.letters().iter().map(|letter| letter.offset).collect::<Vec<_>>(), [Offset(5)]);
    running.stop().await;
}
