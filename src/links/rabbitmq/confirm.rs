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
//! Pure but for the futures that it polls.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

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

enum State {
    Open(Confirming),
    /// With the pass in which it was seen.
    Seen(Outcome, u64),
}

impl Confirms {
    /// One more, sent behind all others.
    pub(super) fn push(&mut self, published: Published, confirming: Confirming) {
        self.entries.push_back(Entry { published, state: State::Open(confirming) });
    }

    /// The records that the broker has not answered, oldest first.
    pub(super) fn open(&self) -> impl Iterator<Item = &Published> {
        let open = |entry: &&Entry| matches!(entry.state, State::Open(_) | State::Seen(Outcome::Lost(_), _));
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
            State::Open(_) => None,
        }
    }

    /// One pass over all that is open. Whether anything new was seen.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        self.pass += 1;
        let mut any = false;
        for entry in &mut self.entries {
            let State::Open(confirming) = &mut entry.state else { continue };
            let Poll::Ready(mut outcome) = confirming.as_mut().poll(cx) else { continue };
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
    use std::task::Waker;

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
    fn what_was_confirmed_before_the_channel_ended_is_told_first() {
        let mut publisher = Publisher::with(2);
        publisher.ack(0, None);
        let lost = LinkError::Transient("gone".to_owned());
        publisher.resolvers[1].take().unwrap().send(Outcome::Lost(lost)).unwrap();
        assert_eq!(publisher.verdicts(), ["+0", "gone"]);
        assert_eq!(publisher.confirms.open().count(), 1);
    }
}
