//! A client's rates: its own by its listener, and those that it shares with the other connections of its user.
//!
//! Who is ahead of its rate is not read for that long: TCP holds it back, and nothing is lost. With `over_rate: refuse` it is read on
//! and told of each message that is too many; with `disconnect` it is ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::time::Sleep;

use super::{Connection, End, Outcome, READ_BYTES_MIN};
use crate::broker::limits::usage::Levels;
use crate::broker::limits::{OverRate, Rates, UserLimits};
use crate::telemetry::limited::Limited;
use crate::telemetry::shown::Shown;
use crate::wire::ReasonCode;

/// How often the log says that clients are held back.
static HELD_BACK: Limited = Limited::new(Duration::from_secs(10));

/// While memory is short a publisher is held back for so long at a time, and so many times more.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u8 = 7;

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    limits: SmallVec<[(Rates, Arc<Levels>); 2]>,
    /// While it is there, the client is not read.
    pause: Option<Pin<Box<Sleep>>>,
    /// So many times more the pause begins anew if memory is still short at its end.
    looks: u8,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It is taken, perhaps with a pause behind it.
    Fits,
    /// It is told to be too many.
    TooMany,
}

impl Throttle {
    /// `None`: nothing is limited.
    pub(super) fn new(limits: impl IntoIterator<Item = (Rates, Arc<Levels>)>) -> Option<Box<Self>> {
        let is_one = |rates: &Rates| rates.messages.is_some() || rates.bytes.is_some();
        let limits: SmallVec<[_; 2]> = limits.into_iter().filter(|(rates, _)| is_one(rates)).collect();
        (!limits.is_empty()).then(|| Box::new(Self { limits, pause: None, looks: 0 }))
    }

    /// For one whose rates are not limited.
    const fn unlimited() -> Self {
        Self { limits: SmallVec::new_const(), pause: None, looks: 0 }
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Ready when the pause is over, never without one.
    pub(super) fn poll_rested(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.pause.as_mut().map_or(Poll::Pending, |pause| pause.as_mut().poll(context))
    }

    fn spend_bytes(&self, count: u64, now: Instant) {
        for (rates, levels) in &self.limits {
            if let Some(rate) = rates.bytes {
                levels.bytes.lock().spend(rate, count, now);
            }
        }
    }

    fn take_message(&self, now: Instant) -> Pace {
        for (rates, levels) in &self.limits {
            let refuses = rates.over == OverRate::Refuse;
            let is_ahead = rates.bytes.is_some() && levels.bytes.lock().wait(rates.burst, now).is_some();
            let mut level = levels.messages.lock();
            let fits = match rates.messages {
                Some(rate) if refuses => !is_ahead && level.admit(rate, 1, rates.burst, now),
                Some(rate) => {
                    level.spend(rate, 1, now);
                    true
                }
                None => !is_ahead,
            };
            if refuses && !fits {
                return Pace::TooMany;
            }
        }
        Pace::Fits
    }

    /// How far it is ahead, by which limit, and what follows.
    fn ahead(&self, now: Instant) -> Option<(Duration, &'static str, OverRate)> {
        let waits =
            self.limits.iter().filter(|(rates, _)| rates.over != OverRate::Refuse).flat_map(|(rates, levels)| {
                let messages = rates.messages.and_then(|_| levels.messages.lock().wait(rates.burst, now));
                let bytes = rates.bytes.and_then(|_| levels.bytes.lock().wait(rates.burst, now));
                let over = rates.over;
                [messages.map(|wait| (wait, "message_rate", over)), bytes.map(|wait| (wait, "byte_rate", over))]
            });
        waits.flatten().max_by_key(|(wait, ..)| *wait)
    }
}

impl Connection {
    /// From now on its listener's rates count for it alone, and its user's for all connections of that user together.
    pub(super) fn limit_rates(&mut self, limits: Option<&UserLimits>) {
        let own = (self.peer.listener.limits.rates, Arc::default());
        let users = limits.map(|limits| (limits.rates, self.broker.users.levels(self.user.as_ref())));
        self.throttle = Throttle::new([Some(own), users].into_iter().flatten());
    }

    /// So many bytes have been read.
    pub(super) fn note_bytes(&self, count: usize) {
        if let Some(throttle) = &self.throttle {
            throttle.spend_bytes(count as u64, self.broker.clock.now());
        }
    }

    /// A PUBLISH has come.
    pub(super) fn note_message(&mut self) -> Result<Pace, End> {
        let Some(throttle) = &self.throttle else { return Ok(Pace::Fits) };
        let pace = throttle.take_message(self.broker.clock.now());
        if pace == Pace::TooMany {
            self.broker.board.limited("over_rate");
        }
        self.slow_down().map(|()| pace)
    }

    /// R36: memory is short, and it publishes. It is not read until there is memory again, and otherwise a little every two seconds:
    /// so nobody is shut out for good, and what keep-alives and acknowledgements it sends is seen.
    pub(super) fn hold_back(&mut self) {
        self.broker.board.limited("max_memory");
        self.read_bytes = READ_BYTES_MIN;
        let throttle = self.throttle.get_or_insert_with(|| Box::new(Throttle::unlimited()));
        if !throttle.is_paused() {
            throttle.pause = Some(Box::pin(tokio::time::sleep(LOOK)));
        }
        throttle.looks = LOOKS;
    }

    /// A pause is over.
    pub(super) fn go_on_reading(&mut self) {
        let Some(throttle) = &mut self.throttle else { return };
        if throttle.looks > 0 && self.broker.is_short_of_memory() {
            throttle.looks -= 1;
            throttle.pause = Some(Box::pin(tokio::time::sleep(LOOK)));
            return;
        }
        (throttle.pause, throttle.looks) = (None, 0);
        self.throttle.take_if(|throttle| throttle.limits.is_empty());
    }

    /// Ends it, or begins a pause, if it is over a rate.
    pub(super) fn slow_down(&mut self) -> Outcome {
        let now = self.broker.clock.now();
        let Some(throttle) = &mut self.throttle else { return Ok(()) };
        if throttle.is_paused() {
            return Ok(());
        }
        let Some((wait, limit, over)) = throttle.ahead(now) else { return Ok(()) };
        self.broker.board.limited(limit);
        if over == OverRate::Disconnect {
            return Err(End::Told(ReasonCode::MessageRateTooHigh, format!("it is over its {limit}")));
        }
        throttle.pause = Some(Box::pin(tokio::time::sleep(wait)));
        if let Some(held_back) = HELD_BACK.pass(now) {
            let client = Shown(&self.attached.client.name);
            tracing::warn!(%client, limit, wait_ms = wait.as_millis(), held_back, "a client is over its rate: it is read more slowly");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Rate;

    #[test]
    fn the_longest_wait_of_all_limits_counts_and_what_refuses_does_not_pause() {
        let now = crate::clock::now();
        let rates = |messages: &str, over| Rates {
            messages: Rate::parse_count(messages).ok(),
            bytes: Rate::parse_bytes("1KiB/s").ok(),
            over,
            ..Rates::default()
        };
        let one = Throttle::new([
            (rates("10/s", OverRate::Delay), Arc::default()),
            (rates("2/s", OverRate::Delay), Arc::default()),
        ])
        .unwrap();
        for _ in 0..2 {
            assert_eq!(one.take_message(now), Pace::Fits);
        }
        assert_eq!(one.ahead(now), None);
        assert_eq!(one.take_message(now), Pace::Fits);
        assert_eq!(one.ahead(now), Some((Duration::from_millis(500), "message_rate", OverRate::Delay)));
        one.spend_bytes(3 << 10, now);
        assert_eq!(one.ahead(now), Some((Duration::from_secs(2), "byte_rate", OverRate::Delay)));
        let strict = Throttle::new([(rates("2/s", OverRate::Refuse), Arc::default())]).unwrap();
        let paces: Vec<_> = (0..3).map(|_| strict.take_message(now)).collect();
        assert_eq!(paces, [Pace::Fits, Pace::Fits, Pace::TooMany]);
        strict.spend_bytes(3 << 10, now);
        let later = now + Duration::from_secs(1);
        assert_eq!((strict.take_message(later), strict.ahead(later)), (Pace::TooMany, None), "its bytes are ahead");
        assert!(Throttle::new([(Rates::default(), Arc::default())]).is_none());
    }
}
