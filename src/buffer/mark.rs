//! Durability has one voice: a [`Mark`] says how far a log is durable, and all who wait for it wake as it moves.
//!
//! The broker's store uses the same type (through `hub`), so that a receipt waits for both in one way.

use std::sync::Arc;

use tokio::sync::watch;

/// How far a log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything below this position is durable.
    pub done: u64,
    /// Set once, when the log failed for good: nothing at or above `done` will ever be durable.
    pub failed: Option<Arc<str>>,
}

/// It will never be durable; its publisher must not be acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not stored: {0}")]
pub struct Rejected(pub Arc<str>);

/// The log's own end.
#[derive(Debug)]
pub struct MarkSender(watch::Sender<Progress>);

/// A waiter's end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mark(watch::Receiver<Progress>);

impl MarkSender {
    /// A mark at `done`.
    #[must_use]
    pub fn new(done: u64) -> Self {
        Self(watch::Sender::new(Progress { done, failed: None }))
    }

    /// Moves the mark; it never goes back.
    pub fn advance(&self, done: u64) {
        self.0.send_if_modified(|progress| {
            let moved = done > progress.done;
            progress.done = progress.done.max(done);
            moved
        });
    }

    /// Says that nothing more will be durable.
    pub fn fail(&self, reason: &str) {
        self.0.send_modify(|progress| {
            progress.failed.get_or_insert_with(|| reason.into());
        });
    }

    /// For one who waits.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.0.subscribe())
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.borrow().clone()
    }
}

impl Mark {
    /// Whether `position` is decided: `Some(Ok)` durable, `Some(Err)` never, `None` not yet.
    #[must_use]
    pub fn decided(&self, position: u64) -> Option<Result<(), Rejected>> {
        let progress = self.0.borrow();
        if progress.done > position {
            return Some(Ok(()));
        }
        progress.failed.as_ref().map(|reason| Err(Rejected(Arc::clone(reason))))
    }

    /// Waits until `position` is decided. Cancel safe. A log that is gone rejects (a receipt that is dropped undecided
    /// counts as rejected, never as stored).
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn passed(&mut self, position: u64) -> Result<(), Rejected> {
        let waited = self.0.wait_for(|progress| progress.done > position || progress.failed.is_some()).await;
        match waited {
            Ok(progress) if progress.done > position => Ok(()),
            Ok(progress) => Err(Rejected(progress.failed.clone().unwrap_or_else(|| "failed".into()))),
            Err(_sender_gone) => Err(Rejected("the log was closed first".into())),
        }
    }

    /// Everything below is durable.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.0.borrow().done
    }

    /// Waits for any change since this was last asked. `false` when the log is gone.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.borrow().clone()
    }
}
