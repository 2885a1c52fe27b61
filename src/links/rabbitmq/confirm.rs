//! Publisher confirms in flight, and whose return is whose.
//!
//! RabbitMQ sends the `basic.return` of an unroutable message before its ack, but lapin hands the oldest return that
//! it holds to *whichever* confirm is resolved next, and resolves a `multiple` ack in no order. So a return says by
//! its `message_id` whom it means, and a bare ack is not trusted before all returns have been looked at that came in by
//! then. What follows from how lapin pairs them:
//!
//! - A confirm that carries nothing: lapin held no return at that moment, so its own, if there was one, is on a confirm that was
//!   resolved earlier. One pass over all that are in flight, made after this one was seen, finds it.
//! - A confirm that carries the return of another: its own may still be held, and comes with a later confirm. It is
//!   trusted when a confirm that was certainly resolved later carries nothing, or when nothing is in flight any more.
//!
//! A pass polls those that have called since the one before: lapin wakes a confirm's future when it has resolved it, on the thread that
//! resolves all of them one after the other, so what was resolved before a confirm that a pass sees is seen by then as well. To poll
//! all that are in flight each time was most of what a record cost.
//!
//! Pure but for the futures that it polls.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::buffer::Place;
use crate::links::LinkError;

/// What a confirm's future resolves to.
pub(super) type Confirming = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What came of a publish.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Taken, with any return that lapin attached to it.
    Ack(Option<Returned>),
    /// Not taken.
    Nack(Option<Returned>),
    /// The channel or the connection ended.
    Lost(LinkError),
}

/// A message that no queue took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Returned {
    /// Whose.
    pub(super) message_id: String,
    /// `312 NO_ROUTE`.
    pub(super) words: String,
}

/// What is known of a published record.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) place: Place,
    pub(super) message_id: String,
    pub(super) routing_key: String,
    pub(super) payload_bytes: usize,
}

/// The oldest record's fate.
#[derive(Debug)]
pub(super) enum Verdict {
    Confirmed(Published),
    Unroutable(Published, String),
    Nacked(Published),
    /// The connection is over; this and all behind it are open.
    Lost(LinkError),
}

/// See the module.
#[derive(Default)]
pub(super) struct Confirms {
    entries: VecDeque<Entry>,
    /// The number of the oldest entry; the others count on from it.
    first: u64,
    calls: Arc<Calls>,
    /// Returns that were seen on another's confirm. The same id may be in flight twice (a record that is sent again).
    returned: HashMap<String, Vec<String>>,
    pass: u64,
    /// The latest pass in which a confirm carried nothing.
    bare_pass: u64,
}

struct Entry {
    published: Published,
    state: State,
}

/// Who has something to tell.
#[derive(Default)]
struct Calls(Mutex<Called>);

#[derive(Default)]
struct Called {
    numbers: Vec<u64>,
    /// Who waits for the next call.
    waits: Option<Waker>,
}

impl Calls {
    fn call(&self, number: u64) {
        let waits = {
            let mut called = self.0.lock();
            called.numbers.push(number);
            called.waits.take()
        };
        if let Some(waits) = waits {
            waits.wake();
        }
    }

    /// All numbers since the last time; the next call wakes `waits`.
    fn take(&self, waits: &Waker) -> Vec<u64> {
        let mut called = self.0.lock();
        if !called.waits.as_ref().is_some_and(|before| before.will_wake(waits)) {
            called.waits = Some(waits.clone());
        }
        std::mem::take(&mut called.numbers)
    }
}

/// One entry's waker.
struct Caller {
    number: u64,
    calls: Arc<Calls>,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.calls.call(self.number);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.calls.call(self.number);
    }
}

enum State {
    Open(Confirming, Waker),
    /// With the pass in which it was seen.
    Seen(Outcome, u64),
}

impl Confirms {
    /// One more, sent behind all others. It is polled once, which queues its frames. Only an end of the channel is known at once; it is
    /// found with the next pass.
    pub(super) fn push(&mut self, published: Published, mut confirming: Confirming) {
        let number = self.first + u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        let caller = Waker::from(Arc::new(Caller { number, calls: Arc::clone(&self.calls) }));
        let confirming = match confirming.as_mut().poll(&mut Context::from_waker(&caller)) {
            Poll::Pending => confirming,
            Poll::Ready(outcome) => {
                self.calls.call(number);
                Box::pin(std::future::ready(outcome))
            }
        };
        self.entries.push_back(Entry { published, state: State::Open(confirming, caller) });
    }

    /// The records that the broker has not answered, oldest first.
    pub(super) fn open(&self) -> impl Iterator<Item = &Published> {
        let open = |entry: &&Entry| matches!(entry.state, State::Open(..) | State::Seen(Outcome::Lost(_), _));
        self.entries.iter().filter(open).map(|entry| &entry.published)
    }

    /// The verdict on the oldest, in the order of sending. Pending also when nothing is in flight.
    pub(super) fn poll_oldest(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        loop {
            match self.oldest_seen() {
                // Trusting it needs a pass that began after it was seen; nothing is waited for in between.
                Some(seen) if seen < self.pass => {
                    if let Some(verdict) = self.judge() {
                        return Poll::Ready(verdict);
                    }
                    if !self.look(cx) {
                        return Poll::Pending;
                    }
                }
                Some(_) => {
                    self.look(cx);
                }
                None => {
                    self.look(cx);
                    if self.oldest_seen().is_none() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn oldest_seen(&self) -> Option<u64> {
        match self.entries.front()?.state {
            State::Seen(_, pass) => Some(pass),
            State::Open(..) => None,
        }
    }

    /// One pass over all that have called. Whether anything new was seen.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        self.pass += 1;
        let mut any = false;
        for number in self.calls.take(cx.waker()) {
            let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) else { continue };
            let State::Open(confirming, caller) = &mut entry.state else { continue };
            let Poll::Ready(mut outcome) = confirming.as_mut().poll(&mut Context::from_waker(caller)) else {
                continue;
            };
            any = true;
            match &mut outcome {
                Outcome::Ack(returned) | Outcome::Nack(returned) => match returned {
                    None => self.bare_pass = self.pass,
                    Some(other) if other.message_id != entry.published.message_id => {
                        self.returned.entry(other.message_id.clone()).or_default().push(other.words.clone());
                    }
                    Some(_own) => {}
                },
                Outcome::Lost(_) => {}
            }
            entry.state = State::Seen(outcome, self.pass);
        }
        any
    }

    /// The front's verdict, if what has been seen suffices; takes it out.
    fn judge(&mut self) -> Option<Verdict> {
        let front = self.entries.front()?;
        let State::Seen(outcome, seen) = &front.state else { return None };
        let id = &front.published.message_id;
        match outcome {
            Outcome::Lost(error) => return Some(Verdict::Lost(error.clone())),
            Outcome::Ack(Some(other))
                if other.message_id != *id && !self.returned.contains_key(id) && !self.nothing_held_after(*seen) =>
            {
                return None;
            }
            Outcome::Ack(_) | Outcome::Nack(_) => {}
        }
        let Entry { published, state: State::Seen(outcome, _) } = self.entries.pop_front()? else { return None };
        self.first += 1;
        Some(match outcome {
            Outcome::Ack(Some(own)) | Outcome::Nack(Some(own)) if own.message_id == published.message_id => {
                Verdict::Unroutable(published, own.words)
            }
            Outcome::Ack(_) => match self.take_return(&published.message_id) {
                Some(words) => Verdict::Unroutable(published, words),
                None => Verdict::Confirmed(published),
            },
            Outcome::Nack(_) => Verdict::Nacked(published),
            Outcome::Lost(error) => Verdict::Lost(error),
        })
    }

    /// Whether lapin certainly held no return at some moment after pass `seen`. A confirm that a pass saw open was resolved after
    /// that pass began; two passes later it was certainly resolved after the one in question.
    fn nothing_held_after(&self, seen: u64) -> bool {
        self.bare_pass >= seen + 2 || self.entries.iter().all(|entry| matches!(entry.state, State::Seen(..)))
    }

    fn take_return(&mut self, message_id: &str) -> Option<String> {
        let words = self.returned.get_mut(message_id)?;
        let first = words.pop();
        if words.is_empty() {
            self.returned.remove(message_id);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::buffer::Offset;

    struct Publisher {
        confirms: Confirms,
        resolvers: Vec<Option<oneshot::Sender<Outcome>>>,
    }

    impl Publisher {
        fn with(count: u64) -> Self {
            let mut publisher = Self { confirms: Confirms::default(), resolvers: Vec::new() };
            for n in 0..count {
                let (resolver, outcome) = oneshot::channel();
                let published = Published {
                    place: Place { offset: Offset(n), ..Place::default() },
                    message_id: format!("m{n}"),
                    routing_key: format!("k{n}"),
                    payload_bytes: 1,
                };
                publisher.confirms.push(published, Box::pin(async move { outcome.await.unwrap() }));
                publisher.resolvers.push(Some(resolver));
            }
            publisher
        }

        /// The broker acks `n`, and lapin attaches the return of `whose`.
        fn ack(&mut self, n: usize, whose: Option<usize>) {
            let returned =
                whose.map(|whose| Returned { message_id: format!("m{whose}"), words: "312 NO_ROUTE".to_owned() });
            self.resolvers[n].take().unwrap().send(Outcome::Ack(returned)).unwrap();
        }

        /// `+n`: confirmed; `-n`: unroutable; `!n`: nacked.
        fn verdicts(&mut self) -> Vec<String> {
            let mut cx = Context::from_waker(Waker::noop());
            let mut out = Vec::new();
            while let Poll::Ready(verdict) = self.confirms.poll_oldest(&mut cx) {
                out.push(match verdict {
                    Verdict::Confirmed(published) => format!("+{}", published.place.offset.0),
                    Verdict::Unroutable(published, _) => format!("-{}", published.place.offset.0),
                    Verdict::Nacked(published) => format!("!{}", published.place.offset.0),
                    Verdict::Lost(error) => {
                        out.push(error.to_string());
                        break;
                    }
                });
            }
            out
        }
    }

    #[test]
    fn verdicts_come_in_the_order_of_sending() {
        let mut publisher = Publisher::with(3);
        publisher.ack(1, None);
        assert_eq!(publisher.verdicts(), Vec::<String>::new());
        publisher.ack(0, None);
        assert_eq!(publisher.verdicts(), ["+0", "+1"]);
        publisher.ack(2, Some(2));
        assert_eq!(publisher.verdicts(), ["-2"]);
    }

    #[test]
    fn a_return_on_a_later_record_s_confirm_is_found_before_the_bare_ack_is_trusted() {
        let mut publisher = Publisher::with(3);
        // lapin resolves a multiple ack in the order of a hash map: 2 first takes the return of 0.
        publisher.ack(2, Some(0));
        publisher.ack(0, None);
        publisher.ack(1, None);
        assert_eq!(publisher.verdicts(), ["-0", "+1", "+2"]);
    }

    #[test]
    fn returns_that_are_crossed_reach_their_owners() {
        let mut publisher = Publisher::with(2);
        publisher.ack(0, Some(1));
        // Its own return may still be held by lapin.
        assert_eq!(publisher.verdicts(), Vec::<String>::new());
        publisher.ack(1, Some(0));
        assert_eq!(publisher.verdicts(), ["-0", "-1"]);
    }

    #[test]
    fn a_record_with_a_foreign_return_is_trusted_once_a_later_confirm_is_bare() {
        let mut publisher = Publisher::with(5);
        publisher.ack(0, Some(1));
        assert_eq!(publisher.verdicts(), Vec::<String>::new());
        publisher.ack(2, None);
        publisher.ack(3, None);
        assert_eq!(publisher.verdicts(), ["+0"]);
        publisher.ack(1, None);
        publisher.ack(4, None);
        assert_eq!(publisher.verdicts(), ["-1", "+2", "+3", "+4"]);
    }

    #[test]
    fn a_pass_asks_only_those_that_have_called_and_a_call_wakes_who_waits() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let mut confirms = Confirms::default();
        let polls = Arc::new(AtomicUsize::new(0));
        let mut resolvers = Vec::new();
        for n in 0..100 {
            let (resolver, mut outcome) = oneshot::channel();
            let counted = Arc::clone(&polls);
            let confirming = std::future::poll_fn(move |cx| {
                counted.fetch_add(1, Ordering::Relaxed);
                Pin::new(&mut outcome).poll(cx).map(Result::unwrap)
            });
            let published = Published {
                place: Place { offset: Offset(n), ..Place::default() },
                message_id: format!("m{n}"),
                routing_key: String::new(),
                payload_bytes: 1,
            };
            confirms.push(published, Box::pin(confirming));
            resolvers.push(resolver);
        }
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(confirms.poll_oldest(&mut cx).is_pending());
        assert_eq!(polls.load(Ordering::Relaxed), 100, "each once, when it was sent");
        for resolver in resolvers.drain(..10) {
            woken.0.store(false, Ordering::Relaxed);
            resolver.send(Outcome::Ack(None)).unwrap();
            assert!(woken.0.load(Ordering::Relaxed), "who waits is woken");
            assert!(matches!(confirms.poll_oldest(&mut cx), Poll::Ready(Verdict::Confirmed(_))));
            assert!(confirms.poll_oldest(&mut cx).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 110, "those that called, once more");
    }

    #[test]
    fn what_was_confirmed_before_the_channel_ended_is_told_first() {
        let mut publisher = Publisher::with(2);
        publisher.ack(0, None);
        let lost = LinkError::Transient("gone".to_owned());
        publisher.resolvers[1].take().unwrap().send(Outcome::Lost(lost)).unwrap();
        assert_eq!(publisher.verdicts(), ["+0", "gone"]);
        assert_eq!(publisher.confirms.open().count(), 1);
    }
}
