//! The answers to an offer, as they come. Whoever offered a batch takes them at any time, also when it has given the offer up: an
//! answer that was given is never lost, since its message may be in a log already.

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{OfferError, Receipt};

/// What has become of one publication: its receipt, or why it was refused.
pub type Answer = Result<Receipt, OfferError>;

/// See the module.
#[derive(Debug, Default)]
pub struct Answers {
    given: Mutex<Vec<(usize, Answer)>>,
    more: Notify,
}

impl Answers {
    /// Returns when the offer waits, and has given answers before. Its end is the future's own. Cancel safe.
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// Gives the one answer of an offer that somebody else has made.
    pub fn give(&self, answer: Answer) {
        self.given.lock().push((0, answer));
    }

    /// Takes those that were given since the last time, each with its publication's place in the batch.
    pub fn take(&self) -> Vec<(usize, Answer)> {
        std::mem::take(&mut self.given.lock())
    }

    /// Takes all of a batch of `count`. What has no answer was given up.
    pub(super) fn in_order(&self, count: usize) -> Vec<Answer> {
        let mut all: Vec<Option<Answer>> = Vec::new();
        all.resize_with(count, || None);
        for (slot, answer) in self.take() {
            if let Some(place) = all.get_mut(slot) {
                *place = Some(answer);
            }
        }
        all.into_iter().map(|answer| answer.unwrap_or(Err(OfferError::Stopping))).collect()
    }
}

/// Answers on their way: one lock for many of them. Shown at the latest when it is dropped.
pub(super) struct Given<'a> {
    answers: &'a Answers,
    held: Vec<(usize, Answer)>,
}

impl<'a> Given<'a> {
    /// For `count` of them at most.
    pub(super) fn new(answers: &'a Answers, count: usize) -> Self {
        Self { answers, held: Vec::with_capacity(count) }
    }

    pub(super) fn give(&mut self, slot: usize, answer: Answer) {
        self.held.push((slot, answer));
    }

    /// Before a wait: what is known so far can be acted on meanwhile.
    pub(super) fn show(&mut self) {
        if self.hand_over() {
            self.answers.more.notify_one();
        }
    }

    /// Whether there were some.
    fn hand_over(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let mut given = self.answers.given.lock();
        if given.is_empty() {
            std::mem::swap(&mut *given, &mut self.held);
        } else {
            given.append(&mut self.held);
        }
        true
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.hand_over();
    }
}
