//! A batch may lead to thousands of subscribers, and how much that is only the broker sees. So what is admitted is accepted in turns, some
//! messages wholly and then others, and what a turn costs is taken from the budget that tokio gives a task: others have their turns
//! between them.

use super::answers::Given;
use super::{Admitted, Hub, LocalDelivery, Stored, Tails, Turn};

/// The broker is shown so many messages at a time: its turn may end behind any of them.
const SHOWN_MAX: usize = 256;

impl Hub {
    /// Steps 4 to 6 for all that were admitted, in their order and in turns. Answers what the last turn cost.
    pub(super) async fn accept(&self, ready: &mut Vec<Admitted>, given: &mut Given<'_>) -> u32 {
        let mut accepted = std::mem::take(ready);
        loop {
            let Turn { stored, cost } = self.deliver(&accepted);
            let count = turn_of(&accepted, stored.len());
            let mut stored = stored.into_iter();
            for admitted in accepted.drain(..count) {
                self.accept_one(admitted, &mut stored, given).await;
            }
            if accepted.is_empty() {
                return cost;
            }
            given.show();
            give_way(cost).await;
        }
    }

    /// One turn of the broker's; one answer for each local topic of each message of it, in order.
    fn deliver(&self, accepted: &[Admitted]) -> Turn {
        let shown = accepted.len().min(SHOWN_MAX);
        let mut deliveries = Vec::with_capacity(shown);
        for one in accepted.iter().take(shown) {
            for (nth, local) in one.placed.locals.iter().enumerate() {
                // Only the first is the client's own publish; the others are what routes made of it.
                let own = nth == 0;
                let packet_id = one.packet_id.filter(|_| own);
                let mut tails = Tails::default();
                for append in one.placed.appends.iter().filter(|_| packet_id.is_some()) {
                    tails.note(append.target.link.clone(), append.target.lane, &append.buffer);
                }
                let client_id = one.client_id.as_ref().filter(|_| own);
                let message = local.message.as_ref().unwrap_or(&one.message);
                deliveries.push(LocalDelivery {
                    topic: &local.topic,
                    message,
                    client_id,
                    packet_id,
                    tails,
                    begins: own,
                });
            }
        }
        match self.local.get() {
            Some(local) if !deliveries.is_empty() => local.deliver(&deliveries),
            _ => deliveries.iter().map(|_| Stored::Nothing).collect::<Vec<_>>().into(),
        }
    }
}

/// How many messages have their `answers`.
fn turn_of(accepted: &[Admitted], answers: usize) -> usize {
    let mut left = answers;
    let has_all = |one: &&Admitted| {
        let after = left.checked_sub(one.placed.locals.len());
        left = after.unwrap_or(0);
        after.is_some()
    };
    // A turn has one at least.
    accepted.iter().take_while(has_all).count().max(1).min(accepted.len())
}

/// What was done so far has cost so much: others have their turns where that is more than the rest of this one.
pub(super) async fn give_way(cost: u32) {
    for _ in 0..cost {
        tokio::task::consume_budget().await;
    }
}
