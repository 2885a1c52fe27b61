//! Who may be connected at a time. A connection has a place among those that have not ended their handshakes, of which each listener
//! has some of its own, until it is let in; only then it takes one of the places that clients have. So who opens connections and says
//! nothing keeps no client out that is there, and no other listener's clients out either.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Refused clients of one listener that are given time to read why; others are closed at once.
const FAREWELLS_MAX: usize = 64;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) handshakes: Pool,
    /// Of this listener alone, where it has a limit of its own.
    own: Option<Arc<Semaphore>>,
    /// Of all listeners together.
    all: Arc<Semaphore>,
    farewells: Arc<Semaphore>,
}

/// One connection's. What it holds is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    unfinished: Option<OwnedSemaphorePermit>,
    own: Option<OwnedSemaphorePermit>,
    all: Option<OwnedSemaphorePermit>,
}

/// Places of which there may be more or fewer later.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) places: Arc<Semaphore>,
    size: Mutex<Size>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    wanted: usize,
    there: usize,
}

impl Pool {
    pub(super) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { places: places(most), size: Mutex::new(Size { wanted: most, there: most }) }
    }

    /// From now on there are so many. What is taken beyond goes when it is given back, see [`Pool::settle`].
    pub(super) fn resize(&self, most: usize) {
        self.size.lock().wanted = most.min(Semaphore::MAX_PERMITS);
        self.settle();
    }

    /// To be called now and then.
    pub(super) fn settle(&self) {
        let mut size = self.size.lock();
        if size.there > size.wanted {
            size.there -= self.places.forget_permits(size.there - size.wanted);
        } else if size.there < size.wanted {
            self.places.add_permits(size.wanted - size.there);
            size.there = size.wanted;
        }
    }
}

/// So many places.
pub(super) fn places(most: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
}

impl Places {
    /// For a listener with a limit of its own, or without (`own`); `all` is shared by all listeners.
    pub(super) fn new(handshakes_max: usize, own: Option<usize>, all: Arc<Semaphore>) -> Self {
        Self { handshakes: Pool::new(handshakes_max), own: own.map(places), all, farewells: places(FAREWELLS_MAX) }
    }

    /// Waits for a place for one more that has not said anything yet, and until clients may be let in at all: beyond the limits they
    /// wait in the system's queue.
    pub(super) async fn one_more(self: &Arc<Self>) -> Place {
        // The semaphores are never closed.
        let unfinished = Arc::clone(&self.handshakes.places).acquire_owned().await.ok();
        for places in self.own.iter().chain([&self.all]) {
            drop(places.acquire().await);
        }
        Place { places: Arc::clone(self), unfinished, own: None, all: None }
    }
}

impl Place {
    /// It is let in: takes a place among the clients. Another may have been faster; then it waits for one who leaves, until `deadline`.
    /// `false`: there is none.
    pub(super) async fn enter(&mut self, deadline: Instant) -> bool {
        let Places { own, all, .. } = &*self.places;
        let both = async {
            // The listener's own comes first: who waits for it must not keep others out.
            let own = match own {
                Some(own) => Arc::clone(own).acquire_owned().await.ok(),
                None => None,
            };
            (own, Arc::clone(all).acquire_owned().await.ok())
        };
        let Ok(taken) = tokio::time::timeout_at(deadline, both).await else { return false };
        (self.own, self.all) = taken;
        self.unfinished = None;
        true
    }

    /// It is refused: another may come in its place. What it is told holds one of the places for that; `None`: there is none left, and
    /// it is closed at once.
    pub(super) fn leave(&mut self) -> Option<OwnedSemaphorePermit> {
        let farewell = Arc::clone(&self.places.farewells).try_acquire_owned().ok();
        if farewell.is_some() {
            (self.unfinished, self.own, self.all) = (None, None, None);
        }
        farewell
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn listener(handshakes_max: usize, own: Option<usize>, all: &Arc<Semaphore>) -> Arc<Places> {
        Arc::new(Places::new(handshakes_max, own, Arc::clone(all)))
    }

    #[tokio::test]
    async fn those_who_say_nothing_keep_out_neither_clients_nor_other_listeners() {
        let all = places(2);
        let (one, two) = (listener(3, None, &all), listener(3, None, &all));
        let silent: Vec<_> = [one.one_more().await, one.one_more().await].into();
        let mut client = one.one_more().await;
        assert!(one.one_more().now_or_never().is_none(), "one listener's are all taken");
        assert!(client.enter(Instant::now()).await);
        let mut other = two.one_more().await;
        assert!(other.enter(Instant::now()).await);
        // Now the clients' places are taken: nobody is accepted any more, and who is under way waits.
        assert!(two.one_more().now_or_never().is_none());
        let mut late = silent.into_iter().next().unwrap();
        assert!(!late.enter(Instant::now()).await);
        let far = Instant::now() + Duration::from_secs(3_600);
        let waiting = late.enter(far);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(client);
        assert!(waiting.await);
        assert_eq!((all.available_permits(), one.handshakes.places.available_permits()), (0, 3));
    }

    #[tokio::test]
    async fn a_listener_s_own_limit_leaves_the_others_theirs() {
        let all = places(3);
        let (one, two) = (listener(3, Some(1), &all), listener(3, None, &all));
        let mut client = one.one_more().await;
        assert!(client.enter(Instant::now()).await);
        assert!(one.one_more().now_or_never().is_none());
        assert!(two.one_more().await.enter(Instant::now()).await);
        drop(client);
        assert!(one.one_more().now_or_never().is_some());
        assert_eq!(all.available_permits(), 3);
    }

    #[tokio::test]
    async fn who_is_refused_makes_room_and_few_are_given_time_for_it() {
        let all = places(1);
        let one = listener(FAREWELLS_MAX + 1, None, &all);
        let mut refused = Vec::new();
        for _ in 0..=FAREWELLS_MAX {
            let mut place = one.one_more().await;
            let farewell = place.leave();
            refused.push((place, farewell));
        }
        assert!(refused.pop().unwrap().1.is_none());
        assert!(refused.iter().all(|(_, farewell)| farewell.is_some()));
        assert_eq!(one.handshakes.places.available_permits(), FAREWELLS_MAX + 1);
    }

    #[test]
    fn places_become_more_at_once_and_fewer_as_they_are_given_back() {
        let pool = Pool::new(2);
        let taken = [(); 2].map(|()| Arc::clone(&pool.places).try_acquire_owned().unwrap());
        pool.resize(3);
        assert_eq!(pool.places.available_permits(), 1);
        pool.resize(1);
        assert_eq!(pool.places.available_permits(), 0);
        drop(taken);
        pool.settle();
        assert_eq!(pool.places.available_permits(), 1);
    }
}
