//! Tasks that run until they are told to stop. One that ends before its time, or panics, is seen at once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one stage.
#[derive(Debug)]
pub(super) struct Crew {
    tasks: TaskTracker,
    /// Cancelled, it ends all of them.
    pub(super) stop: CancellationToken,
    aborts: Mutex<Vec<AbortHandle>>,
    lost: Arc<Lost>,
}

/// The first task that ended before its time.
#[derive(Debug, Default)]
pub(super) struct Lost {
    name: Mutex<Option<String>>,
    told: Notify,
}

/// One task.
#[derive(Debug)]
pub(super) struct Hand {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Tells of its task's end, however that comes.
struct Watch {
    name: String,
    stop: CancellationToken,
    lost: Arc<Lost>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            self.lost.name.lock().get_or_insert_with(|| std::mem::take(&mut self.name));
            self.lost.told.notify_one();
        }
    }
}

impl Lost {
    /// Returns when there is one. Cancel safe.
    pub(super) async fn first(&self) -> String {
        loop {
            if let Some(name) = self.name.lock().take() {
                return name;
            }
            self.told.notified().await;
        }
    }
}

impl Crew {
    pub(super) fn new(lost: &Arc<Lost>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tasks, stop, aborts: Mutex::default(), lost: Arc::clone(lost) }
    }

    /// Begins a task that ends when the token that it is given is cancelled.
    pub(super) fn spawn<F>(&self, name: String, work: impl FnOnce(CancellationToken) -> F) -> Hand
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.child_token();
        let watch = Watch { name, stop: stop.clone(), lost: Arc::clone(&self.lost) };
        let work = work(stop.clone());
        let task = self.tasks.spawn(async move {
            let _watch = watch;
            work.await;
        });
        let mut aborts = self.aborts.lock();
        aborts.retain(|abort| !abort.is_finished());
        aborts.push(task.abort_handle());
        Hand { stop, task }
    }

    /// Tells all to end and waits for them; ends by force what does not end within `limit`. `false`: there was such.
    pub(super) async fn finish(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let in_time = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        if !in_time {
            self.aborts.lock().iter().for_each(AbortHandle::abort);
        }
        in_time
    }
}

impl Hand {
    /// Tells it to end and waits; ends it by force after `limit`.
    pub(super) async fn stop(mut self, limit: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            // It is gone when this returns.
            drop(self.task.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_task_that_ends_or_panics_unasked_is_told_of_and_one_that_was_told_to_is_not() {
        let lost = Arc::new(Lost::default());
        let crew = Crew::new(&lost);
        let good = crew.spawn("good".to_owned(), |stop| async move { stop.cancelled().await });
        good.stop(LONG).await;
        let deaf = crew.spawn("deaf".to_owned(), |_stop| std::future::pending());
        deaf.stop(Duration::from_millis(1)).await;
        assert!(lost.name.lock().is_none());
        let _early = crew.spawn("early".to_owned(), |_stop| async {});
        assert_eq!(tokio::time::timeout(LONG, lost.first()).await.unwrap(), "early");
        let _bad = crew.spawn("bad".to_owned(), |_stop| async { panic!("a bug") });
        assert_eq!(tokio::time::timeout(LONG, lost.first()).await.unwrap(), "bad");
        assert!(crew.finish(LONG).await);
    }
}
