//! Durability has one voice: a [`Mark`] says how far a log is durable, and all who wait for it wake as it moves.
//!
//! The broker's store uses the same type (through `hub`), so that a receipt waits for both in one way.
//!
//! Thousands of publishers wait for one log, and a commit settles a part of them. Those who wait stand in a queue by position, so a
//! commit wakes whom it settles, each once, and nobody else. A tokio task that is woken from a thread outside of the runtime
//! goes through a queue with a lock, and wakes a worker; so where there are many the writer has one task of the runtime wake them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// So many are woken by the one who moves the mark, which begins at once; more are woken by a task, which costs less for each
/// (docs/performance.md has both).
const WAKE_DIRECTLY: usize = 256;

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
pub struct MarkSender {
    line: Arc<Line>,
    changes: watch::Sender<()>,
    runtime: Option<Handle>,
}

/// A waiter's end. Cheap to clone: each message that waits for the log has one.
#[derive(Clone, Debug)]
pub struct Mark {
    line: Arc<Line>,
}

/// The end of one who is told of each move of the mark.
#[derive(Clone, Debug)]
pub struct Watcher {
    line: Arc<Line>,
    changes: watch::Receiver<()>,
}

/// What both ends share.
#[derive(Debug)]
struct Line {
    /// Written under the lock of `queue`; read without it.
    done: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    failed: Option<Arc<str>>,
    /// By position; those with the same one in the order in which they came.
    waiting: VecDeque<Waiter>,
    /// Names the next waiter.
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    position: u64,
    name: u64,
    waker: Waker,
}

impl Queue {
    fn rejected(&self) -> Option<Rejected> {
        self.failed.clone().map(Rejected)
    }

    /// Adds one who waits; answers its name.
    fn add(&mut self, position: u64, waker: Waker) -> u64 {
        let name = self.next;
        self.next += 1;
        let waiter = Waiter { position, name, waker };
        if self.waiting.back().is_none_or(|last| last.position <= position) {
            self.waiting.push_back(waiter);
        } else {
            let at = self.waiting.partition_point(|other| other.position <= position);
            self.waiting.insert(at, waiter);
        }
        name
    }

    fn place(&self, position: u64, name: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&(position, name), |waiter| (waiter.position, waiter.name)).ok()
    }

    /// Takes out who waits below `done`.
    fn settled(&mut self, done: u64) -> Wakers {
        let settled = self.waiting.partition_point(|waiter| waiter.position < done);
        Wakers(self.waiting.drain(..settled).map(|waiter| waiter.waker).collect())
    }
}

/// Those who are to be woken, and will be, also by a task that its runtime drops without having run it.
#[derive(Debug)]
struct Wakers(Vec<Waker>);

impl Drop for Wakers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl MarkSender {
    /// A mark at `done`. Made within a tokio runtime it wakes by a task of that one.
    #[must_use]
    pub fn new(done: u64) -> Self {
        let line = Arc::new(Line { done: AtomicU64::new(done), queue: Mutex::default() });
        Self { line, changes: watch::Sender::new(()), runtime: Handle::try_current().ok() }
    }

    /// Moves the mark; it never goes back.
    pub fn advance(&self, done: u64) {
        drop(self.step(done));
    }

    /// The same, and whom it settles is woken when the answer is dropped: for one who moves the mark under a lock that those who
    /// wake want next.
    #[must_use = "those who wait are woken when it is dropped"]
    pub(super) fn step(&self, done: u64) -> Step<'_> {
        let mut queue = self.line.queue.lock();
        let moved = done > self.line.done.load(Ordering::Relaxed);
        if moved {
            self.line.done.store(done, Ordering::Release);
        }
        Step(moved.then(|| (self, queue.settled(done))))
    }

    /// Says that nothing more will be durable.
    pub fn fail(&self, reason: &str) {
        let all = {
            let mut queue = self.line.queue.lock();
            queue.failed.get_or_insert_with(|| reason.into());
            queue.settled(u64::MAX)
        };
        self.wake(all);
    }

    fn wake(&self, wakers: Wakers) {
        self.changes.send_replace(());
        if wakers.0.len() > WAKE_DIRECTLY
            && let Some(runtime) = &self.runtime
        {
            runtime.spawn(async move { drop(wakers) });
        }
    }

    /// For one who waits.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { line: Arc::clone(&self.line) }
    }

    /// For one who follows it.
    #[must_use]
    pub fn watch(&self) -> Watcher {
        Watcher { line: Arc::clone(&self.line), changes: self.changes.subscribe() }
    }

    /// Everything below is durable.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.line.done.load(Ordering::Acquire)
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.line.progress()
    }
}

/// A move of the mark. Those who wait for it are woken when this is dropped.
#[derive(Debug)]
pub(super) struct Step<'a>(Option<(&'a MarkSender, Wakers)>);

/// So many come to a lock at once without being in each other's way.
const FEW: usize = 64;

impl Step<'_> {
    /// Whether it wakes few.
    pub(super) fn wakes_few(&self) -> bool {
        self.0.as_ref().is_none_or(|(_, wakers)| wakers.0.len() <= FEW)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some((sender, wakers)) = self.0.take() {
            sender.wake(wakers);
        }
    }
}

impl Drop for MarkSender {
    fn drop(&mut self) {
        self.fail("the log was closed first");
    }
}

impl Line {
    fn progress(&self) -> Progress {
        let failed = self.queue.lock().failed.clone();
        Progress { done: self.done.load(Ordering::Acquire), failed }
    }
}

impl Mark {
    /// Whether `position` is decided: `Some(Ok)` durable, `Some(Err)` never, `None` not yet.
    #[must_use]
    pub fn decided(&self, position: u64) -> Option<Result<(), Rejected>> {
        if self.line.done.load(Ordering::Acquire) > position {
            return Some(Ok(()));
        }
        let queue = self.line.queue.lock();
        if self.line.done.load(Ordering::Acquire) > position {
            return Some(Ok(()));
        }
        queue.rejected().map(Err)
    }

    /// Waits until `position` is decided. Cancel safe. A log that is gone rejects (a receipt that is dropped undecided
    /// counts as rejected, never as stored).
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn passed(&self, position: u64) -> Result<(), Rejected> {
        Passed { line: &self.line, position, name: None }.await
    }

    /// Everything below is durable.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.line.done.load(Ordering::Acquire)
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.line.progress()
    }
}

impl Watcher {
    /// Everything below is durable.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.line.done.load(Ordering::Acquire)
    }

    /// Waits for any change since this was last asked. `false` when the log is gone.
    pub async fn changed(&mut self) -> bool {
        self.changes.changed().await.is_ok()
    }

    /// Where it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.line.progress()
    }
}

/// See [`Mark::passed`].
struct Passed<'a> {
    line: &'a Line,
    position: u64,
    /// In the queue, until it is woken.
    name: Option<u64>,
}

impl Future for Passed<'_> {
    type Output = Result<(), Rejected>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let line = self.line;
        if line.done.load(Ordering::Acquire) > self.position {
            return Poll::Ready(Ok(()));
        }
        let mut queue = line.queue.lock();
        // Whoever moves the mark holds the lock, so it cannot move between this look and the place in the queue.
        if line.done.load(Ordering::Acquire) > self.position {
            return Poll::Ready(Ok(()));
        }
        if let Some(rejected) = queue.rejected() {
            return Poll::Ready(Err(rejected));
        }
        let place = self.name.and_then(|name| queue.place(self.position, name));
        match place.and_then(|at| queue.waiting.get_mut(at)) {
            Some(waiter) => waiter.waker.clone_from(cx.waker()),
            None => self.name = Some(queue.add(self.position, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name
            && self.line.done.load(Ordering::Acquire) <= self.position
        {
            let mut queue = self.line.queue.lock();
            if let Some(at) = queue.place(self.position, name) {
                queue.waiting.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn poll(self: &Arc<Self>, passed: &mut Passed<'_>) -> Poll<Result<(), Rejected>> {
            Pin::new(passed).poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
        }

        fn woken(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn passed(mark: &Mark, position: u64) -> Passed<'_> {
        Passed { line: &mark.line, position, name: None }
    }

    #[test]
    fn a_move_wakes_whom_it_settles_once_and_nobody_else() {
        let sender = MarkSender::new(0);
        let mark = sender.mark();
        // Out of order, and two for one position.
        let positions = [3, 1, 7, 0, 3, 5];
        let counts: Vec<Arc<Count>> = positions.iter().map(|_| Arc::default()).collect();
        let mut waiting: Vec<_> = positions.iter().map(|position| passed(&mark, *position)).collect();
        for (waiter, count) in waiting.iter_mut().zip(&counts) {
            assert!(count.poll(waiter).is_pending());
            assert!(count.poll(waiter).is_pending(), "asked again: still one place in the queue");
        }
        assert_eq!(mark.line.queue.lock().waiting.len(), 6);
        let woken = |counts: &[Arc<Count>]| counts.iter().map(|count| count.woken()).collect::<Vec<_>>();
        sender.advance(4);
        assert_eq!(woken(&counts), [1, 1, 0, 1, 1, 0]);
        sender.advance(2);
        sender.advance(6);
        assert_eq!(woken(&counts), [1, 1, 0, 1, 1, 1]);
        assert!(counts[0].poll(&mut waiting[0]).is_ready());
        sender.fail("disk");
        assert_eq!(woken(&counts), [1, 1, 1, 1, 1, 1]);
        assert_eq!(counts[2].poll(&mut waiting[2]), Poll::Ready(Err(Rejected("disk".into()))));
        assert_eq!(mark.decided(5), Some(Ok(())), "what was durable before stays so");
    }

    #[test]
    fn one_who_gives_up_leaves_the_queue() {
        let sender = MarkSender::new(0);
        let mark = sender.mark();
        let count = Arc::<Count>::default();
        let (mut stays, mut goes) = (passed(&mark, 4), passed(&mark, 4));
        assert!(count.poll(&mut stays).is_pending() && count.poll(&mut goes).is_pending());
        drop(goes);
        assert_eq!(mark.line.queue.lock().waiting.len(), 1);
        sender.advance(5);
        assert_eq!((count.woken(), count.poll(&mut stays)), (1, Poll::Ready(Ok(()))));
    }

    #[tokio::test]
    async fn many_are_woken_by_the_runtime() {
        let sender = MarkSender::new(0);
        let mut tasks = tokio::task::JoinSet::new();
        for position in 0..500 {
            let mark = sender.mark();
            tasks.spawn(async move { mark.passed(position).await });
        }
        while sender.line.queue.lock().waiting.len() < 500 {
            tokio::task::yield_now().await;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| sender.advance(400));
        });
        for _ in 0..400 {
            assert_eq!(tasks.join_next().await.unwrap().unwrap(), Ok(()));
        }
        drop(sender);
        while let Some(rejected) = tasks.join_next().await {
            assert_eq!(rejected.unwrap(), Err(Rejected("the log was closed first".into())));
        }
    }

    #[test]
    fn many_are_woken_although_their_runtime_is_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sender = runtime.block_on(async { MarkSender::new(0) });
        drop(runtime);
        let mark = sender.mark();
        let counts: Vec<Arc<Count>> = (0..=WAKE_DIRECTLY).map(|_| Arc::default()).collect();
        let mut waiting: Vec<_> = counts.iter().map(|_| passed(&mark, 0)).collect();
        for (waiter, count) in waiting.iter_mut().zip(&counts) {
            assert!(count.poll(waiter).is_pending());
        }
        sender.advance(1);
        assert!(counts.iter().all(|count| count.woken() == 1));
    }
}
