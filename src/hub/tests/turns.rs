//! What is accepted in turns.

use super::*;

/// A broker whose turn ends with each message, and costs more than all of the budget.
#[derive(Debug, Default)]
struct Tired {
    delivered: Mutex<Vec<String>>,
}

impl Local for Tired {
    fn deliver(&self, batch: &[LocalDelivery<'_>]) -> Turn {
        let turn = batch.iter().skip(1).take_while(|delivery| !delivery.begins).count() + 1;
        assert!(batch[0].begins, "what one message brings is of one turn");
        self.delivered.lock().extend(batch[..turn].iter().map(|delivery| delivery.topic.to_string()));
        Turn { stored: vec![Stored::Nothing; turn], cost: 129 }
    }

    fn keep_copies(&self, _changes: KeptChanges) -> bool {
        true
    }

    fn staged(&self) -> Option<(Mark, u64)> {
        None
    }

    fn hold(&self, _row: HeldRow, _gave_way: Option<String>) -> Stored {
        Stored::Nothing
    }

    fn unhold(&self, _route: &Arc<str>, _topic: &Arc<str>, _id: String) {}
}

#[tokio::test]
async fn a_batch_that_costs_much_is_accepted_in_turns_in_order_and_others_have_theirs_between() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(dir.path(), "lake", WhenFull::DropOldest, BIG, SyncMode::Group);
    let route = |(from, to): (&str, &str)| {
        Route::new(from, vec![From::parse(from, Form::Topic).unwrap()], vec![To::parse(to).unwrap()])
    };
    let routes = [("broker/a/#", "broker/b/{rest}"), ("broker/a/#", "lake/t")].map(route);
    let logs = vec![(LinkId::new("lake"), lake.clone().into())];
    let hub = Arc::new(Hub::new(IdSource::new("test".into(), 1), Table::new(routes.into()), logs, clock::system()));
    let tired = Arc::<Tired>::default();
    hub.attach(Arc::<Tired>::clone(&tired) as _);
    let batch: Vec<_> = (0..10).map(|n| publication(&format!("a/{n}"), b"x")).collect();
    let answers = Arc::new(Answers::default());
    let (to, offering) = (Arc::clone(&answers), Arc::clone(&hub));
    #[expect(clippy::disallowed_methods, reason = "a test holds the handle")]
    let offer = tokio::spawn(async move { offering.offer_each(&from_broker(), batch, &to).await });
    let (mut turns, mut seen, mut answered) = (0, 0, Vec::new());
    while !offer.is_finished() {
        tokio::task::yield_now().await;
        let now = tired.delivered.lock().len();
        turns += usize::from(now > seen);
        seen = now;
        // What was done has its answer, and is in the log.
        answered.extend(answers.take().into_iter().map(|(at, answer)| answer.map(|_receipt| at).unwrap()));
        assert_eq!((answered.len(), lake.stats().next.0), (seen / 2, seen as u64 / 2));
    }
    offer.await.unwrap();
    assert_eq!((turns, answered), (10, (0..10).collect()));
    let expected: Vec<_> = (0..10).flat_map(|n| [format!("a/{n}"), format!("b/{n}")]).collect();
    assert_eq!(*tired.delivered.lock(), expected);
}
