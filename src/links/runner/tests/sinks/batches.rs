//! `batch`: what goes together, what an answer means for the parts, and what is found guilty.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::message::{IdSource, MessageId};
use crate::router::{Batch, BatchForm, Form, From, Route, Table, To};

const BY_COUNT: Batch = Batch {
    form: BatchForm::Json,
    count: 4,
    bytes: ByteSize(1 << 20),
    linger: Duration::from_secs(3_600),
    compress: None,
};

/// What came, and under which id.
type Sent = Arc<Mutex<Vec<(String, String, MessageId, u16)>>>;

fn remote(mut script: impl FnMut(u64, &Outgoing) -> Reaction + Send + 'static) -> (Arc<Remote>, Sent) {
    let sent = Sent::default();
    let seen = Arc::clone(&sent);
    let remote = Remote::new(move |connection, record| {
        let Envelope { destination, ordinal, message, .. } = &record.envelope;
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        seen.lock().push((destination.to_string(), payload, message.id.clone(), *ordinal));
        script(connection, record)
    });
    (remote, sent)
}

fn payloads(sent: &Sent) -> Vec<String> {
    sent.lock().iter().map(|(_, payload, ..)| payload.clone()).collect()
}

fn start(remote: &Arc<Remote>, timing: Timing, batch: Option<Batch>) -> Running {
    let from = vec![From::parse("broker/a", Form::Topic).unwrap()];
    let route = Route { batch, ..Route::new("r", from, vec![To::parse("hq/a").unwrap()]) };
    let ids = IdSource::new("test".into(), 1);
    let hub = Arc::new(Hub::new(ids, Table::new(vec![route]), Vec::new(), crate::clock::system()));
    let (sink, drain) = (FakeSink(Arc::clone(remote)), Drain::Fifo);
    Running::start_made(sink, common(timing), &SharedRate::default(), drain, &[], |runner| runner.remade_by(&hub))
}

impl Running {
    async fn append_part(&self, destination: &str, payload: &str) {
        let mut message = message("a", b"");
        message.payload = Bytes::copy_from_slice(payload.as_bytes());
        let head = Envelope::encode_batched_head(destination, None, 0, "r");
        self.append_bytes(&[&head, &message.encode()], None).await;
    }

    async fn append_parts(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.append_part("a", &number.to_string()).await;
        }
    }
}

const PATIENT: Timing = Timing { stall_after: Duration::from_secs(60), ..TIMING };

#[tokio::test]
async fn r28_so_many_go_together_their_answer_is_for_all_and_the_rest_goes_when_the_link_stops() {
    let (remote, sent) = remote(|_, _| Reaction::Silence);
    let running = start(&remote, PATIENT, Some(BY_COUNT));
    running.append_parts(0..10).await;
    eventually("two batches", || sent.lock().len() == 2).await;
    assert_eq!(payloads(&sent), ["[0,1,2,3]", "[4,5,6,7]"]);
    assert_eq!(remote.sent(), [3, 7], "by the places of their last parts");
    remote.give(Answer::Confirmed(at(7)));
    remote.give(Answer::Confirmed(at(3)));
    eventually("the cursor passes all parts", || running.buffer.stats().cursor == Offset(8)).await;
    assert_eq!(sent.lock().len(), 2, "the others wait");
    let seen = Arc::clone(&remote);
    let answer = async {
        eventually("the rest", || seen.sent().len() == 3).await;
        seen.give(Answer::Confirmed(at(9)));
    };
    let (buffer, ()) = tokio::join!(running.stop(), answer);
    assert_eq!(payloads(&sent)[2..], ["[8,9]"]);
    assert_eq!((buffer.stats().ledger.delivered, buffer.stats().ledger.buffered), (10, 0));
}

#[tokio::test]
async fn r28_a_batch_goes_when_its_first_part_has_waited_or_the_window_or_its_bytes_are_full() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { linger: Duration::from_millis(20), count: 1_000, ..BY_COUNT }));
    running.append_parts(0..3).await;
    running.drained().await;
    let together = payloads(&sent).join("").replace("][", ",");
    assert_eq!(together, "[0,1,2]");
    running.stop().await;

    let (remote, sent) = self::remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { count: 1_000, ..BY_COUNT }));
    running.append_parts(0..64).await;
    running.drained().await;
    assert_eq!(sent.lock().len(), 1, "64 may be in flight");
    running.stop().await;

    let (remote, sent) = self::remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { count: 1_000, bytes: ByteSize(10), ..BY_COUNT }));
    for payload in ["1234", "12345", "12", "12345678901", "7"] {
        running.append_part("a", payload).await;
    }
    eventually("what is full", || sent.lock().len() == 3).await;
    running.stop().await;
    assert_eq!(payloads(&sent).concat(), "[1234,12345][12][12345678901][7]");
}

#[tokio::test]
async fn r28_each_destination_has_batches_of_its_own_and_what_is_no_part_passes_them() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, Some(Batch { count: 2, ..BY_COUNT }));
    for (destination, payload) in [("a", "1"), ("b", "2")] {
        running.append_part(destination, payload).await;
    }
    running.append(&message("x", b"single")).await;
    for (destination, payload) in [("b", "3"), ("a", "4")] {
        running.append_part(destination, payload).await;
    }
    running.drained().await;
    let sent: Vec<_> = sent.lock().iter().map(|(to, payload, ..)| format!("{to} {payload}")).collect();
    assert_eq!(sent, ["a single", "b [2,3]", "a [1,4]"]);
    running.stop().await;
}

#[tokio::test]
async fn r28_of_a_batch_that_is_refused_only_the_guilty_part_becomes_a_dead_letter() {
    for reaction in [Reaction::Refuse, Reaction::TooLarge] {
        let (remote, sent) = remote(move |_, record| {
            let is_guilty = record.envelope.message.payload.contains(&b'5');
            if is_guilty { reaction.clone() } else { Reaction::Confirm }
        });
        let running = start(&remote, PATIENT, Some(BY_COUNT));
        running.append_parts(0..8).await;
        running.drained().await;
        let letters: Vec<_> = running.letters().iter().map(|letter| letter.offset.0).collect();
        assert_eq!(letters, [5]);
        assert_eq!(payloads(&sent), ["[0,1,2,3]", "[4,5,6,7]", "[4]", "[5]", "[6]", "[7]"]);
        let letter = Envelope::decode(running.letters()[0].body.clone()).unwrap();
        assert_eq!(
            (letter.batch.as_deref(), &letter.message.payload[..]),
            (Some("r"), &b"5"[..]),
            "sent again it is a part"
        );
        running.append_parts(8..12).await;
        running.drained().await;
        assert_eq!(payloads(&sent).last().unwrap(), "[8,9,10,11]");
        running.stop().await;
    }
}

#[tokio::test]
async fn r11_a_batch_that_is_cut_differently_when_it_is_sent_again_has_another_id_and_nothing_is_lost() {
    let (remote, sent) = remote(|connection, record| match (connection, record.place.offset.0) {
        (1, 7) => Reaction::Die,
        (1, _) => Reaction::Silence,
        (2, 3) => Reaction::Retry,
        _ => Reaction::Confirm,
    });
    let running = start(&remote, PATIENT, Some(Batch { linger: Duration::from_millis(5), ..BY_COUNT }));
    running.append_parts(0..8).await;
    running.drained().await;
    running.stop().await;
    let sent = sent.lock();
    let mut by_id = std::collections::HashMap::new();
    for (_, payload, id, ordinal) in sent.iter() {
        let known = by_id.entry((id.clone(), *ordinal)).or_insert(payload);
        assert_eq!(*known, payload, "one id, one batch");
    }
    let last: Vec<_> = sent.iter().rev().take_while(|(_, payload, ..)| !payload.starts_with("[0")).collect();
    assert!(last.len() < sent.len() && sent.iter().any(|(_, payload, ..)| payload.contains('7')));
}

#[tokio::test]
async fn r28_where_the_route_sends_no_batches_any_more_parts_go_as_they_are() {
    let (remote, sent) = remote(|_, _| Reaction::Confirm);
    let running = start(&remote, PATIENT, None);
    running.append_parts(0..2).await;
    running.drained().await;
    assert_eq!(payloads(&sent), ["0", "1"]);
    running.stop().await;
}
