//! Checks of passwords run on blocking threads, a few at a time: each costs milliseconds of a processor and megabytes, and a
//! flood of logins must take neither from those who are in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Logins that wait for their turn; beyond it clients are told that the server is busy, and come again.
const WAITING_MAX: usize = 256;

/// Checks at a time at most.
const WORKERS_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Hashing {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hashing {
    /// For this machine: half of its processors stay free.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { turns: Arc::new(Semaphore::new((processors / 2).clamp(1, WORKERS_MAX))), waiting: AtomicUsize::new(0) }
    }

    /// Runs `work` when its turn comes. Cancel safe: work that has begun keeps its turn until it ends.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(Busy);
        }
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_closed| Busy)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        let done = done.await.map_err(|_panicked| Busy);
        drop(waiting);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_flood_is_turned_away_and_what_waits_is_done() {
        let hashing = Hashing { turns: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) };
        let (go, gate) = mpsc::channel::<()>();
        let first = hashing.run(move || gate.recv().is_ok());
        tokio::pin!(first);
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        let mut others: Vec<_> = (1..WAITING_MAX).map(|n| Box::pin(hashing.run(move || n))).collect();
        for other in &mut others {
            assert!(futures_util::poll!(other.as_mut()).is_pending());
        }
        assert_eq!(hashing.run(|| 0).await, Err(Busy));
        others.truncate(100);
        go.send(()).unwrap();
        assert_eq!(first.await, Ok(true));
        for (n, other) in others.into_iter().enumerate() {
            assert_eq!(other.await, Ok(n + 1));
        }
        assert_eq!(hashing.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(hashing.run(|| 7).await, Ok(7));
    }
}
