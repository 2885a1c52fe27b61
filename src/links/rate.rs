//! What a half of a link may move at most: messages and bytes in a time.
//!
//! A [`SharedRate`] belongs to one direction of one link; everything that goes that way (the sink and its replays) has a
//! [`Pacer`] on it, so that all of it together keeps to the limit. Before each message one asks [`Pacer::wait`], and after
//! it one says what it was ([`Pacer::spend`]).
//!
//! A message costs one cell, and its bytes whole KiB of cells, what is left over carried on: cells of single bytes come out
//! wrong at high rates (a nanosecond is the smallest step). The bytes are paid after the message, in parts that fit: so one that is
//! larger than a whole burst passes as well, and what follows it waits the longer.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::units::Rate;

/// Bytes that one cell stands for.
const CELL_BYTES: u64 = 1 << 10;

/// `rate` of a link, for each of its directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Messages at most.
    pub messages: Option<Rate>,
    /// Bytes of payload, topic and properties at most.
    pub bytes: Option<Rate>,
    /// What that brings in so long may come at once.
    pub burst: Duration,
}

impl RateLimit {
    /// Where `routes.yaml` says none.
    pub const BURST_DEFAULT: Duration = Duration::from_secs(1);
}

/// The limit of one direction of one link, and how much of it is used. Without one, nothing ever waits.
#[derive(Clone, Debug, Default)]
pub struct SharedRate(Option<Arc<Limits>>);

impl SharedRate {
    /// Unused so far. Its time is `clock`'s.
    #[must_use]
    pub fn new(limit: Option<&RateLimit>, clock: &Arc<dyn Clock>) -> Self {
        Self(limit.map(|limit| Arc::new(Limits::new(limit, clock))))
    }

    /// One more who keeps to it.
    pub(super) fn pacer(&self) -> Pacer {
        Pacer { limits: self.0.clone(), in_hand: false, owed_bytes: 0 }
    }
}

/// See the module. Not to be used by two at once.
#[derive(Debug)]
pub(super) struct Pacer {
    limits: Option<Arc<Limits>>,
    /// The next message is paid for.
    in_hand: bool,
    /// Bytes that went and are not paid for.
    owed_bytes: u64,
}

impl Pacer {
    /// How long to wait before the next message; `None`: it may go now, and its place is kept until [`Pacer::spend`].
    pub(super) fn wait(&mut self) -> Option<Duration> {
        let limits = self.limits.as_ref()?;
        if let Some(bytes) = &limits.bytes
            && let Err(wait) = bytes.pay(&mut self.owed_bytes)
        {
            return Some(wait);
        }
        if let (Some(messages), false) = (&limits.messages, self.in_hand) {
            match messages.take(NonZeroU32::MIN) {
                Ok(()) => self.in_hand = true,
                Err(wait) => return Some(wait),
            }
        }
        None
    }

    /// A message of so many bytes goes.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.in_hand = false;
        if self.limits.as_ref().is_some_and(|limits| limits.bytes.is_some()) {
            self.owed_bytes = self.owed_bytes.saturating_add(bytes);
        }
    }
}

#[derive(Debug)]
struct Limits {
    messages: Option<Cells>,
    bytes: Option<Cells>,
}

impl Limits {
    fn new(limit: &RateLimit, clock: &Arc<dyn Clock>) -> Self {
        let cells = |rate: Option<Rate>, each: u64| Some(Cells::new(rate?.time_of(each), limit.burst, clock));
        Self { messages: cells(limit.messages, 1), bytes: cells(limit.bytes, CELL_BYTES) }
    }
}

/// One limit of governor's.
struct Cells {
    limiter: RateLimiter<NotKeyed, InMemoryState, OurClock, NoOpMiddleware<Duration>>,
    clock: OurClock,
    /// So many fit into a burst; at least one.
    burst: NonZeroU32,
}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells").field("burst", &self.burst).finish_non_exhaustive()
    }
}

impl Cells {
    fn new(each: Duration, burst: Duration, clock: &Arc<dyn Clock>) -> Self {
        let clock = OurClock { began: clock.now(), clock: Arc::clone(clock) };
        // Faster than a cell a nanosecond is no limit to anybody.
        let each = each.max(Duration::from_nanos(1));
        let cells = u32::try_from(burst.as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
        let burst = NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(each).unwrap_or_else(|| Quota::per_second(NonZeroU32::MAX)).allow_burst(burst);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, burst }
    }

    /// Takes so many cells, at most a burst of them, or says when they are there.
    fn take(&self, cells: NonZeroU32) -> Result<(), Duration> {
        match self.limiter.check_n(cells) {
            Ok(Ok(())) | Err(_) => Ok(()),
            // A zero would be asked again at once, for ever.
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now()).max(Duration::from_nanos(1))),
        }
    }

    /// Pays all whole cells of `owed` bytes, or as many as there are and says when the next come.
    fn pay(&self, owed: &mut u64) -> Result<(), Duration> {
        while let Some(cells) = NonZeroU32::new(u32::try_from(*owed / CELL_BYTES).unwrap_or(u32::MAX)) {
            let part = cells.min(self.burst);
            self.take(part)?;
            *owed = owed.saturating_sub(u64::from(part.get()) * CELL_BYTES);
        }
        Ok(())
    }
}

/// The gateway's clock, as governor wants one.
#[derive(Clone, Debug)]
struct OurClock {
    began: Instant,
    clock: Arc<dyn Clock>,
}

impl GovernorClock for OurClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.began)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::clock::Moment;

    /// Stands until it is moved.
    #[derive(Debug)]
    struct Hand(Mutex<Instant>);

    impl Clock for Hand {
        fn now(&self) -> Instant {
            *self.0.lock()
        }

        fn moment(&self) -> Moment {
            Moment::default()
        }
    }

    fn scene(messages: Option<&str>, bytes: Option<&str>, burst_ms: u64) -> (Arc<Hand>, SharedRate) {
        let limit = RateLimit {
            messages: messages.map(|text| Rate::parse_count(text).unwrap()),
            bytes: bytes.map(|text| Rate::parse_bytes(text).unwrap()),
            burst: Duration::from_millis(burst_ms),
        };
        let hand = Arc::new(Hand(Mutex::new(crate::clock::now())));
        let clock: Arc<dyn Clock> = Arc::<Hand>::clone(&hand);
        (hand, SharedRate::new(Some(&limit), &clock))
    }

    /// How long it takes to move so many of this size, by a clock that does nothing but wait as it is told.
    fn time_of(hand: &Hand, pacer: &mut Pacer, count: u64, bytes: u64) -> Duration {
        let start = hand.now();
        for _ in 0..count {
            while let Some(wait) = pacer.wait() {
                *hand.0.lock() += wait;
            }
            pacer.spend(bytes);
        }
        hand.now() - start
    }

    #[test]
    fn so_much_passes_as_the_rate_and_one_burst_give() {
        let ms = Duration::from_millis;
        for (messages, bytes, burst_ms, count, size, expected) in [
            (Some("100/s"), None, 0, 101, 10, ms(1_000)),
            (Some("100/s"), None, 1_000, 200, 10, ms(1_000)),
            (Some("6/m"), None, 0, 3, 10, ms(20_000)),
            (Some("1/h"), None, 60_000, 2, 10, ms(3_600_000)),
            (None, Some("1KiB/s"), 1_000, 5, 1 << 10, ms(3_000)),
            // The slower of the two decides.
            (Some("1/s"), Some("1KiB/s"), 0, 4, 2 << 10, ms(5_000)),
            (Some("1/s"), Some("1MiB/s"), 0, 4, 2 << 10, ms(3_000)),
            // One that is larger than a burst passes, and the next waits for all of it.
            (None, Some("10KiB/s"), 1_000, 2, 100 << 10, ms(9_000)),
            // Small ones are not rounded up.
            (None, Some("10KiB/s"), 0, 10_241, 1, ms(900)),
        ] {
            let (hand, rate) = scene(messages, bytes, burst_ms);
            let took = time_of(&hand, &mut rate.pacer(), count, size);
            assert_eq!(took, expected, "{messages:?} {bytes:?} {burst_ms}: {count} of {size}");
        }
    }

    #[test]
    fn two_who_share_a_rate_keep_to_it_together() {
        let (hand, rate) = scene(Some("100/s"), Some("100KiB/s"), 0);
        let (mut sink, mut replay) = (rate.pacer(), rate.pacer());
        let start = hand.now();
        for _ in 0..100 {
            time_of(&hand, &mut sink, 1, 1 << 10);
            time_of(&hand, &mut replay, 1, 1 << 10);
        }
        let took = hand.now() - start;
        assert!((1_980..2_010).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn who_asks_and_sends_nothing_loses_nothing_and_saves_nothing_up() {
        let (hand, rate) = scene(Some("10/s"), None, 0);
        let mut pacer = rate.pacer();
        assert_eq!([pacer.wait(), pacer.wait(), pacer.wait()], [None; 3]);
        *hand.0.lock() += Duration::from_secs(60);
        pacer.spend(1);
        assert_eq!(pacer.wait(), None);
        pacer.spend(1);
        assert!(pacer.wait().is_some());
    }

    #[test]
    fn without_a_limit_nothing_waits_and_at_the_ends_of_the_scale_nothing_breaks() {
        let mut free = SharedRate::default().pacer();
        for _ in 0..10_000 {
            assert_eq!(free.wait(), None);
            free.spend(u64::MAX);
        }
        let (hand, rate) = scene(Some("99999999999/s"), Some("16000TiB/s"), 3_600_000);
        assert_eq!(time_of(&hand, &mut rate.pacer(), 1_000, 1 << 20), Duration::ZERO);
        let (_, rate) = scene(Some("1/h"), Some("1B/h"), 0);
        let mut pacer = rate.pacer();
        assert_eq!(pacer.wait(), None);
        pacer.spend(u64::MAX);
        assert!(pacer.wait().is_some());
    }

    proptest::proptest! {
        /// From any moment on no more passes than the rate and one burst give, however it comes.
        #[test]
        fn no_more_passes_than_the_rate_and_one_burst(
            steps in proptest::collection::vec((0..50_u64, 1..4_000_u64), 1..300),
            per_s in 1..200_u64,
            kib_per_s in 1..64_u64,
            burst_ms in 0..2_000_u64,
        ) {
            let (messages, bytes) = (format!("{per_s}/s"), format!("{kib_per_s}KiB/s"));
            let (hand, rate) = scene(Some(&messages), Some(&bytes), burst_ms);
            let (mut pacer, start) = (rate.pacer(), hand.now());
            let (mut count, mut sum, mut largest) = (0, 0, 0);
            for (after_ms, size) in steps {
                *hand.0.lock() += Duration::from_millis(after_ms);
                if pacer.wait().is_none() {
                    pacer.spend(size);
                    (count, sum, largest) = (count + 1, sum + size, largest.max(size));
                }
                let ms = u64::try_from((hand.now() - start).as_millis()).unwrap();
                let most = |per_s: u64| per_s * (ms + burst_ms) / 1_000 + 1;
                proptest::prop_assert!(count <= most(per_s) + 1, "{} in {} ms", count, ms);
                let bytes = most(kib_per_s) * CELL_BYTES + largest + 2 * CELL_BYTES;
                proptest::prop_assert!(sum <= bytes, "{} bytes in {} ms", sum, ms);
            }
        }
    }
}
