//! What leaves, when, in which order, and under which id.

use proptest::prelude::*;

use super::*;
use crate::message::tests_support::message;

const NOW: Moment = Moment { wall: crate::clock::WallMs(1_000), up_ms: 1_000, boot: 1, synced: false };

fn outbound(messages: usize) -> Outbound {
    Outbound::new(Window { messages, bytes: usize::MAX })
}

fn entry(qos: Qos, seq: Option<u64>, ready: Option<u64>) -> Entry {
    let message = Arc::new(message("a/b", b"x"));
    Entry { topic: message.topic.clone(), message, qos, retain: false, ids: SmallVec::new(), seq, ready, share: None }
}

/// What a transmit looks like, without its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Publish(u16, bool),
    Pubrel(u16),
    Expired,
}

fn send_all(outbound: &mut Outbound, durable: u64, now: Moment) -> Vec<Seen> {
    while outbound.poll_assign(None, now).is_some() {}
    let mut seen = Vec::new();
    while let Some(transmit) = outbound.poll_send(durable, now, |_| false) {
        seen.push(match transmit {
            Transmit::Publish { id, dup, .. } => Seen::Publish(id, dup),
            Transmit::Pubrel(id) => Seen::Pubrel(id),
            Transmit::Expired(_) => Seen::Expired,
            Transmit::Barred(_) => panic!("nothing is barred here"),
        });
    }
    seen
}

#[test]
fn the_window_of_the_peer_holds_messages_back_until_one_is_acknowledged() {
    let mut outbound = outbound(2);
    for _ in 0..3 {
        outbound.push(entry(Qos::AtLeastOnce, None, None));
    }
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(1, false), Seen::Publish(2, false)]);
    assert!(outbound.handle_puback(1).is_some());
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(3, false)]);
    assert!(outbound.handle_puback(1).is_none(), "an id that is not in flight");
}

#[test]
fn r17_a_delivery_to_a_kept_session_leaves_only_after_the_commit_and_holds_back_later_ones() {
    let mut outbound = outbound(10);
    outbound.push(entry(Qos::AtLeastOnce, Some(1), Some(5)));
    outbound.push(entry(Qos::AtLeastOnce, None, None));
    assert_eq!(send_all(&mut outbound, 5, NOW), []);
    assert!(outbound.waits_for_store(5));
    assert_eq!(send_all(&mut outbound, 6, NOW), [Seen::Publish(1, false), Seen::Publish(2, false)]);
}

#[test]
fn r17_a_qos_2_packet_id_is_durable_before_it_is_used_and_a_pubrec_before_its_pubrel() {
    let mut outbound = outbound(10);
    outbound.push(entry(Qos::ExactlyOnce, Some(1), Some(5)));
    assert_eq!(outbound.poll_assign(Some(8), NOW), Some(Assigned::Id(1, Some(1))));
    assert_eq!(send_all(&mut outbound, 8, NOW), []);
    assert_eq!(send_all(&mut outbound, 9, NOW), [Seen::Publish(1, false)]);
    assert_eq!(outbound.handle_pubrec(1, false), Pubrec::Release(Some(1)));
    outbound.release(1, Some(12));
    assert_eq!(send_all(&mut outbound, 12, NOW), []);
    assert_eq!(send_all(&mut outbound, 13, NOW), [Seen::Pubrel(1)]);
    assert!(outbound.handle_pubcomp(1).is_some());
    assert_eq!(outbound.in_flight(), 0);
}

#[test]
fn after_a_resume_a_publish_comes_with_dup_and_an_owed_pubrel_with_its_id_in_the_order_of_sending() {
    let mut outbound = outbound(10);
    for qos in [Qos::ExactlyOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        outbound.push(entry(qos, None, None));
    }
    send_all(&mut outbound, 0, NOW);
    assert_eq!(outbound.handle_pubrec(1, false), Pubrec::Release(None));
    outbound.handle_connect(10);
    outbound.push(entry(Qos::AtLeastOnce, None, None));
    let expected = [Seen::Pubrel(1), Seen::Publish(2, true), Seen::Publish(3, true), Seen::Publish(4, false)];
    assert_eq!(send_all(&mut outbound, 0, NOW), expected);
    assert!(outbound.handle_pubcomp(1).is_some());
}

#[test]
fn what_the_store_held_in_flight_is_sent_again_under_its_ids() {
    let mut outbound = outbound(10);
    outbound.restore(40, entry(Qos::ExactlyOnce, Some(1), None), true);
    outbound.restore(41, entry(Qos::AtLeastOnce, Some(2), None), false);
    outbound.push(entry(Qos::AtLeastOnce, Some(3), None));
    outbound.handle_connect(10);
    let expected = [Seen::Pubrel(40), Seen::Publish(41, true), Seen::Publish(42, false)];
    assert_eq!(send_all(&mut outbound, 0, NOW), expected);
}

#[test]
fn an_id_that_was_given_since_is_not_given_again_when_what_is_in_flight_comes_back_from_the_store() {
    for (first, next) in [(1, 3), (u16::MAX - 1, 1), (u16::MAX, 2)] {
        let mut outbound = outbound(10);
        let second = if first == u16::MAX { 1 } else { first + 1 };
        outbound.restore(first, entry(Qos::AtLeastOnce, Some(1), None), false);
        outbound.restore(second, entry(Qos::AtLeastOnce, Some(2), None), false);
        outbound.clear();
        // The second has lapsed meanwhile.
        outbound.restore(first, entry(Qos::AtLeastOnce, Some(1), None), false);
        outbound.push(entry(Qos::AtLeastOnce, Some(3), None));
        outbound.handle_connect(10);
        let expected = [Seen::Publish(first, true), Seen::Publish(next, false)];
        assert_eq!(send_all(&mut outbound, 0, NOW), expected);
    }
}

#[test]
fn a_resume_with_a_smaller_window_sends_no_more_than_it() {
    let mut outbound = outbound(4);
    for _ in 0..4 {
        outbound.push(entry(Qos::AtLeastOnce, None, None));
    }
    send_all(&mut outbound, 0, NOW);
    outbound.handle_connect(2);
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(1, true), Seen::Publish(2, true)]);
    assert!(outbound.handle_puback(3).is_none(), "not sent on this connection");
    assert!(outbound.handle_puback(1).is_some());
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(3, true)]);
}

#[test]
fn an_error_pubrec_ends_the_exchange_without_pubrel() {
    let mut outbound = outbound(4);
    outbound.push(entry(Qos::ExactlyOnce, Some(9), None));
    send_all(&mut outbound, 0, NOW);
    assert_eq!(outbound.handle_pubrec(1, true), Pubrec::Ended(Some(Row { seq: 9, bytes: 132 })));
    assert_eq!(send_all(&mut outbound, 0, NOW), []);
    assert_eq!(outbound.handle_pubrec(1, false), Pubrec::Unknown);
}

#[test]
fn r8_expiry_drops_what_waits_but_never_a_qos_2_exchange_that_was_begun() {
    let late = Moment { up_ms: 100_000, ..NOW };
    let expiring = |qos| {
        let mut entry = entry(qos, None, None);
        let mut message = (*entry.message).clone();
        message.expiry_s = Some(10);
        entry.message = Arc::new(message);
        entry
    };
    let mut outbound = outbound(4);
    outbound.push(expiring(Qos::AtLeastOnce));
    assert_eq!(outbound.poll_assign(None, late), Some(Assigned::Expired(None)));
    outbound.push(expiring(Qos::ExactlyOnce));
    outbound.push(expiring(Qos::ExactlyOnce));
    outbound.push(expiring(Qos::AtLeastOnce));
    assert_eq!(send_all(&mut outbound, 0, NOW).len(), 3);
    outbound.handle_pubrec(1, false);
    outbound.handle_connect(4);
    assert_eq!(send_all(&mut outbound, 0, late), [Seen::Pubrel(1), Seen::Publish(2, true), Seen::Expired]);
}

#[test]
fn a_pubcomp_without_a_pubrec_and_a_puback_for_qos_2_change_nothing() {
    let mut outbound = outbound(4);
    outbound.push(entry(Qos::ExactlyOnce, None, None));
    send_all(&mut outbound, 0, NOW);
    assert!(outbound.handle_pubcomp(1).is_none());
    assert!(outbound.handle_puback(1).is_none());
    assert_eq!(outbound.in_flight(), 1);
}

proptest! {
    /// Whatever the client acknowledges and however often it comes back: no id is in flight twice, the window holds,
    /// first sends are in order, and in the end everything is delivered.
    #[test]
    fn every_message_is_delivered_once_and_in_order(steps in prop::collection::vec((0_u8..6, any::<u16>()), 1..300)) {
        let mut outbound = outbound(5);
        let mut pushed = 0_u64;
        let mut done = Vec::new();
        let mut first_sends = Vec::new();
        for (step, pick) in steps.into_iter().chain((0..400_u16).map(|n| (3 + u8::try_from(n % 3).unwrap(), n))) {
            match step {
                0 | 1 => {
                    let qos = if pick % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
                    outbound.push(entry(qos, Some(pushed), None));
                    pushed += 1;
                }
                2 => outbound.handle_connect(1 + usize::from(pick % 8)),
                _ => {}
            }
            while outbound.poll_assign(None, NOW).is_some() {}
            while let Some(transmit) = outbound.poll_send(u64::MAX, NOW, |_| false) {
                if let Transmit::Publish { dup: false, entry, .. } = transmit {
                    first_sends.push(entry.seq.unwrap());
                }
            }
            let mut ids = outbound.flights.iter().map(|flight| flight.id).collect::<Vec<_>>();
            prop_assert!(outbound.sent <= outbound.window.messages);
            let sent = ids.iter().copied().take(outbound.sent).collect::<Vec<_>>();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), outbound.flights.len());
            prop_assert!(!ids.contains(&0));
            if sent.is_empty() { continue; }
            let id = sent[usize::from(pick) % sent.len()];
            match step {
                3 => done.extend(outbound.handle_puback(id).and_then(|entry| entry.seq)),
                4 => if let Pubrec::Release(_) = outbound.handle_pubrec(id, false) { outbound.release(id, None) },
                5 => done.extend(outbound.handle_pubcomp(id).and_then(|entry| entry.seq)),
                _ => {}
            }
        }
        prop_assert!(first_sends.windows(2).all(|pair| pair[0] < pair[1]));
        while outbound.in_flight() + outbound.queued() > 0 {
            while outbound.poll_assign(None, NOW).is_some() {}
            while outbound.poll_send(u64::MAX, NOW, |_| false).is_some() {}
            let id = outbound.flights[0].id;
            done.extend(outbound.handle_puback(id).and_then(|entry| entry.seq));
            if let Pubrec::Release(_) = outbound.handle_pubrec(id, false) { outbound.release(id, None) }
            done.extend(outbound.handle_pubcomp(id).and_then(|entry| entry.seq));
        }
        done.sort_unstable();
        prop_assert_eq!(done, (0..pushed).collect::<Vec<_>>());
    }
}

#[test]
fn ids_of_messages_in_flight_are_never_given_twice() {
    let now = crate::clock::moment();
    let mut outbound = outbound(3);
    let mut open = VecDeque::new();
    // More than there are ids; the first one stays open all the time.
    for _ in 0..70_000 {
        outbound.push(entry(Qos::AtLeastOnce, None, None));
        for seen in send_all(&mut outbound, 0, now) {
            let Seen::Publish(id, false) = seen else { panic!("{seen:?}") };
            assert!(id != 0 && !open.contains(&id), "{id} is in flight");
            open.push_back(id);
        }
        if open.len() == 3 {
            outbound.handle_puback(open.remove(1).unwrap()).unwrap();
        }
    }
}

#[test]
fn what_a_client_may_not_have_any_more_is_given_up_unless_it_may_hold_its_id() {
    let barred = |outbound: &mut Outbound| {
        let mut given_up = 0;
        while let Some(transmit) = outbound.poll_send(0, NOW, |_| true) {
            given_up += u32::from(matches!(transmit, Transmit::Barred(_)));
        }
        given_up
    };
    let mut outbound = outbound(9);
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        outbound.push(entry(qos, None, None));
    }
    assert_eq!(send_all(&mut outbound, 0, NOW).len(), 2);
    outbound.push(entry(Qos::ExactlyOnce, None, None));
    assert!(outbound.poll_assign(None, NOW).is_some());
    outbound.handle_connect(9);
    assert_eq!((barred(&mut outbound), outbound.in_flight()), (2, 1));
}

#[test]
fn what_is_in_flight_is_bounded_in_bytes_too_and_one_message_always_may_be() {
    let mut outbound = Outbound::new(Window { messages: 100, bytes: 2 * entry(Qos::AtLeastOnce, None, None).bytes() });
    for _ in 0..4 {
        outbound.push(entry(Qos::AtLeastOnce, None, None));
    }
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(1, false), Seen::Publish(2, false)]);
    assert_eq!((outbound.queued(), outbound.can_assign()), (2, false));
    assert!(outbound.handle_puback(2).is_some());
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(3, false)]);
    for id in [1, 3] {
        assert!(outbound.handle_puback(id).is_some());
    }
    assert_eq!(send_all(&mut outbound, 0, NOW), [Seen::Publish(4, false)]);
    assert!(outbound.handle_puback(4).is_some());
    assert_eq!(outbound.in_flight_bytes(), 0, "nothing is left behind");
    let mut narrow = Outbound::new(Window { messages: 100, bytes: 1 });
    narrow.push(entry(Qos::ExactlyOnce, None, None));
    narrow.push(entry(Qos::ExactlyOnce, None, None));
    assert_eq!(send_all(&mut narrow, 0, NOW), [Seen::Publish(1, false)], "larger than all that may be");
}
