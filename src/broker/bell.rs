//! What calls a connection's task from outside: somebody pushed a message to its session, or wants it to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// One task waits, any may ring. A ring while nobody waits is kept for the next wait, and many count as one: what there is to do
/// stands in the session, not here. Ringing again before the task has come wakes nobody.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Wakes the one who waits. What it is to see must be written before.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Ready once for all rings since the last time.
    pub(super) fn poll_rung(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_ring_without_a_waiter_is_kept_and_two_are_one() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        assert_eq!(poll_fn(|context| bell.poll_rung(context)).now_or_never(), Some(()));
        assert_eq!(poll_fn(|context| bell.poll_rung(context)).now_or_never(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost_between_two_tasks() {
        let (there, back) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let (mine, other) = (Arc::clone(&there), Arc::clone(&back));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            for _ in 0..10_000 {
                poll_fn(|context| mine.poll_rung(context)).await;
                other.ring();
            }
        });
        for _ in 0..10_000 {
            there.ring();
            let mut wait = pin!(poll_fn(|context| back.poll_rung(context)));
            wait.as_mut().await;
        }
        tasks.join_next().await.unwrap().unwrap();
    }
}
