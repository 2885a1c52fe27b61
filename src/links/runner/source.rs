//! Remote → hub.
//!
//! One publication is offered at a time and the next only when it was taken, so that order holds even where a target
//! refuses for a while (`when_full: reject` behaves as `block` here, R5). Receipts are waited for in the order of arrival:
//! every kind acknowledges a contiguous low-water mark anyway (R24). While an offer waits, the connection's upkeep and the
//! acknowledgements go on (R6). So they do while the link's `rate` holds the next offer back: nothing more is received then, and the
//! remote keeps what it has.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::rate::{Pacer, SharedRate};
use super::super::{LinkError, Received, Source, SourceConnection};
use super::{Common, Intake, origin};
use crate::hub::{OfferError, Publication, Receipt, Rejected, Source as Origin};
use crate::telemetry::board::LinkState;
use crate::units::show_duration;

/// Unsettled messages of one connection at most; more are not received meanwhile. Covers a sync of the buffers at the
/// rates that the kinds reach (about 100,000 messages a second, 20 ms a sync), and bounds the memory.
const UNSETTLED_MAX: usize = 4096;

/// Pauses between offers of the same publication to a full target (R5).
const FULL_PAUSE_MIN: Duration = Duration::from_millis(20);
const FULL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// R6: a source whose offer waits for so long gives its connection up, before the remote takes offence (RabbitMQ ends a
/// consumer that does not acknowledge), and comes back later.
const BLOCKED_MAX: Duration = Duration::from_secs(300);

/// How often a receiving connection is given time for its upkeep: acknowledgements are due 50 ms after the last (R24).
const UPKEEP_EACH: Duration = Duration::from_millis(20);

/// The same while nothing was acknowledged for a while.
const UPKEEP_EACH_IDLE: Duration = Duration::from_millis(250);

/// How long one slice of upkeep may take while messages wait to be received.
const UPKEEP_SLICE: Duration = Duration::from_millis(2);

/// R36: while memory is short, so long nothing more is received behind what has come.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// How long a stopping source waits for open receipts (DESIGN.md section 9).
const STOP_WAIT: Duration = Duration::from_secs(2);

/// How long a good-bye may take.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// The inbound half of one link.
pub(super) struct SourceRunner<S: Source, H: Intake> {
    common: Common,
    source: S,
    hub: Arc<H>,
    backoff: Backoff,
    pacer: Pacer,
    misconfigured: bool,
    pub(super) blocked_max: Duration,
}

/// What belongs to one connection and goes with it.
struct Session<C: SourceConnection> {
    connection: C,
    /// Received, not yet offered.
    backlog: VecDeque<Received<C::Token>>,
    offering: Option<Offering<C::Token>>,
    /// Accepted by the hub, not yet durable, in order of arrival.
    unsettled: VecDeque<Unsettled<C::Token>>,
    origin: Arc<Origin>,
    settled_at: Option<Instant>,
    attended_at: Instant,
    /// The link's rate has no place for the next before.
    held_until: Option<Instant>,
    /// When to see next whether the link is still to be up.
    active_look: Option<Instant>,
    /// Memory is short: nothing more is received before.
    paused_until: Option<Instant>,
    refused: Option<String>,
    trouble: Option<String>,
}

/// The publication that the hub has been asked to take.
struct Offering<Token> {
    token: Token,
    bytes: u64,
    once: bool,
    again: Publication,
    pause: Duration,
    give_up: Instant,
    answer: Pin<Box<dyn Future<Output = Result<Receipt, OfferError>> + Send>>,
}

struct Unsettled<Token> {
    token: Token,
    bytes: u64,
    receipt: Receipt,
}

/// What can wake the runner while it is online.
enum Event<Token> {
    Stop,
    Received(Result<Vec<Received<Token>>, LinkError>),
    Offered(Result<Receipt, OfferError>),
    Settled(Result<(), Rejected>),
    Blocked,
    Upkeep(Result<(), LinkError>),
    Look,
}

enum End {
    Stop,
    Outside,
    Lost(LinkError),
}

enum Next<C> {
    Connect,
    Online(C),
    BackOff(LinkError),
    Pause,
    Stop,
}

impl<S: Source, H: Intake> SourceRunner<S, H> {
    pub(super) fn new(common: Common, source: S, hub: Arc<H>) -> Self {
        let backoff = Backoff::new(common.timing.retry_delay_min, common.timing.retry_delay_max);
        let pacer = SharedRate::default().pacer();
        Self { common, source, hub, backoff, pacer, misconfigured: false, blocked_max: BLOCKED_MAX }
    }

    /// Keeps to this rate.
    pub(super) fn paced(mut self, rate: &SharedRate) -> Self {
        self.pacer = rate.pacer();
        self
    }

    /// Until cancelled.
    pub(super) async fn run(mut self) {
        let mut next = Next::Connect;
        loop {
            next = match next {
                Next::Connect => self.connect().await,
                Next::Online(connection) => Box::pin(self.online(connection)).await,
                Next::BackOff(error) => self.back_off(error).await,
                Next::Pause => self.wait_outside().await,
                Next::Stop => return,
            };
        }
    }

    /// Ends with a connection, an error, or the cancellation.
    async fn connect(&mut self) -> Next<S::Connection> {
        if self.common.is_outside() {
            return Next::Pause;
        }
        if !self.misconfigured {
            self.show(LinkState::Connecting, None, None);
        }
        let timeout = self.common.timing.connect_timeout;
        let token = self.common.token.clone();
        tokio::select! {
            biased;
            () = token.cancelled() => Next::Stop,
            made = tokio::time::timeout(timeout, self.source.connect()) => match made {
                Ok(Ok(connection)) => Next::Online(connection),
                Ok(Err(error)) => Next::BackOff(error),
                Err(_elapsed) => Next::BackOff(LinkError::Transient(format!("no connection within {timeout:?}"))),
            },
        }
    }

    /// Waits for the next try.
    async fn back_off(&mut self, error: LinkError) -> Next<S::Connection> {
        self.misconfigured = matches!(error, LinkError::Misconfigured(_));
        let (state, pause) = if self.misconfigured {
            (LinkState::Misconfigured, self.common.timing.misconfigured_delay)
        } else {
            (LinkState::BackingOff, self.backoff.next(rand::random()))
        };
        tracing::warn!(link = %self.common.link, direction = "in", %error, next_try = show_duration(pause), "not connected");
        self.show(state, Some(error.to_string()), Some(self.common.wall_in(pause)));
        tokio::select! {
            () = self.common.token.cancelled() => Next::Stop,
            () = tokio::time::sleep(pause) => Next::Connect,
        }
    }

    /// Outside of the times to be up.
    async fn wait_outside(&mut self) -> Next<S::Connection> {
        self.misconfigured = false;
        if self.common.pause_until_active().await { Next::Connect } else { Next::Stop }
    }

    /// Ends when the connection does.
    async fn online(&mut self, connection: S::Connection) -> Next<S::Connection> {
        let since = self.common.now();
        self.misconfigured = false;
        self.common.board.connected();
        self.show(LinkState::Online, None, None);
        tracing::info!(link = %self.common.link, direction = "in", "connected");
        let mut session = Session {
            connection,
            backlog: VecDeque::new(),
            offering: None,
            unsettled: VecDeque::new(),
            origin: origin(&self.common, None),
            settled_at: None,
            attended_at: since,
            held_until: None,
            active_look: self.common.active.is_some().then_some(since),
            paused_until: None,
            refused: None,
            trouble: None,
        };
        let end = loop {
            self.show_trouble(&mut session);
            self.offer_next(&mut session);
            self.common.board.set_in_flight(session.in_flight());
            if self.common.has_left_its_times(&mut session.active_look) {
                break End::Outside;
            }
            let event = session.next_event(&self.common).await;
            if let ControlFlow::Break(end) = self.apply(&mut session, event) {
                break end;
            }
        };
        if self.common.now().duration_since(since) >= self.common.timing.retry_delay_max {
            self.backoff.reset();
        }
        self.count_drops(&mut session);
        let next = match end {
            End::Stop => {
                self.stop(session).await;
                Next::Stop
            }
            End::Outside => {
                self.stop(session).await;
                Next::Pause
            }
            End::Lost(error) => Next::BackOff(error),
        };
        self.common.board.set_in_flight(0);
        self.common.board.set_held_by_rate(false);
        next
    }

    fn apply(
        &mut self,
        session: &mut Session<S::Connection>,
        event: Event<<S::Connection as SourceConnection>::Token>,
    ) -> ControlFlow<End> {
        self.common.board.dropped("unreadable", session.connection.take_unreadable());
        let done = match event {
            Event::Stop => return ControlFlow::Break(End::Stop),
            Event::Received(Ok(batch)) => {
                batch.iter().filter(|received| received.again).for_each(|_| self.common.board.again());
                session.backlog.extend(batch);
                let is_short = self.hub.is_short_of_memory();
                session.paused_until = is_short.then(|| self.common.now() + SHORT_PAUSE);
                Ok(())
            }
            Event::Received(Err(error)) => Err(error),
            Event::Offered(answer) => return self.offered(session, answer),
            Event::Settled(Ok(())) => self.settle(session),
            Event::Settled(Err(rejected)) => Err(LinkError::Transient(rejected.to_string())),
            Event::Blocked => {
                let words = session.refused.take().unwrap_or_else(|| "a target's buffer is full".to_owned());
                Err(LinkError::Transient(format!("{words}, for {:?}", self.blocked_max)))
            }
            Event::Upkeep(done) => done,
            Event::Look => Ok(()),
        };
        done.map_or_else(|error| ControlFlow::Break(End::Lost(error)), ControlFlow::Continue)
    }

    /// A part of the connection that is wrong is said when it begins, and when it is over.
    fn show_trouble(&self, session: &mut Session<S::Connection>) {
        let trouble = session.connection.trouble();
        if trouble == session.trouble {
            return;
        }
        match &trouble {
            Some(words) => {
                tracing::warn!(link = %self.common.link, direction = "in", error = %words, "a part of it cannot be read");
            }
            None => tracing::info!(link = %self.common.link, direction = "in", "all of it is read"),
        }
        if session.refused.is_none() {
            self.show(LinkState::Online, trouble.clone(), None);
        }
        session.trouble = trouble;
    }

    /// Asks the hub to take the next message, if none is being offered and the link's rate has a place for it.
    fn offer_next(&mut self, session: &mut Session<S::Connection>) {
        if session.offering.is_some() || self.is_held(session) {
            return;
        }
        let Some(received) = session.backlog.pop_front() else { return };
        self.pacer.spend(size_of(&received.publication));
        if received.channel != session.origin.channel {
            session.origin = origin(&self.common, received.channel);
        }
        let bytes = u64::try_from(received.publication.payload.len()).unwrap_or(u64::MAX);
        let again = received.publication.clone();
        let answer = Arc::clone(&self.hub).offer(Arc::clone(&session.origin), received.publication);
        session.offering = Some(Offering {
            token: received.token,
            bytes,
            once: received.once,
            again,
            pause: FULL_PAUSE_MIN,
            give_up: self.common.now() + self.blocked_max,
            answer: Box::pin(answer),
        });
    }

    /// Each wait is told once, however often the runner looks around meanwhile.
    fn is_held(&mut self, session: &mut Session<S::Connection>) -> bool {
        let now = self.common.now();
        if session.held_until.is_some_and(|until| until > now) {
            return true;
        }
        let wait = if session.backlog.is_empty() { None } else { self.pacer.wait() };
        let before = std::mem::replace(&mut session.held_until, wait.map(|wait| now + wait));
        if before.is_some() || wait.is_some() {
            self.common.board.set_held_by_rate(wait.is_some());
        }
        wait.is_some()
    }

    fn offered(&self, session: &mut Session<S::Connection>, answer: Result<Receipt, OfferError>) -> ControlFlow<End> {
        let Some(mut offering) = session.offering.take() else { return ControlFlow::Continue(()) };
        match answer {
            Ok(receipt) => {
                if session.refused.take().is_some() {
                    self.show(LinkState::Online, session.trouble.clone(), None);
                }
                session.unsettled.push_back(Unsettled { token: offering.token, bytes: offering.bytes, receipt });
            }
            Err(error @ (OfferError::Full { .. } | OfferError::StoreFull | OfferError::RetainedFull)) => {
                let words = error.to_string();
                if session.refused.as_ref() != Some(&words) {
                    tracing::warn!(link = %self.common.link, error = %words, "a source waits");
                    self.show(LinkState::Online, Some(words.clone()), None);
                    session.refused = Some(words);
                }
                let pause = offering.pause;
                let answer = Arc::clone(&self.hub).offer(Arc::clone(&session.origin), offering.again.clone());
                offering.answer = Box::pin(async move {
                    tokio::time::sleep(pause).await;
                    answer.await
                });
                offering.pause = (pause * 2).min(FULL_PAUSE_MAX);
                session.offering = Some(offering);
            }
            Err(OfferError::Stopping) => {
                session.offering = Some(offering);
                return ControlFlow::Break(End::Stop);
            }
            Err(error @ OfferError::Failed { .. }) => {
                self.common.board.dropped("not_stored", u64::from(offering.once));
                return ControlFlow::Break(End::Lost(LinkError::Transient(error.to_string())));
            }
        }
        ControlFlow::Continue(())
    }

    /// Acknowledges from the front all that is durable.
    fn settle(&mut self, session: &mut Session<S::Connection>) -> Result<(), LinkError> {
        while let Some(front) = session.unsettled.front() {
            match front.receipt.decided() {
                None => break,
                Some(Err(rejected)) => return Err(LinkError::Transient(rejected.to_string())),
                Some(Ok(())) => {
                    let Some(front) = session.unsettled.pop_front() else { break };
                    session.connection.settled(front.token)?;
                    self.common.board.done(front.bytes);
                    self.backoff.reset();
                    session.settled_at = Some(self.common.now());
                }
            }
        }
        Ok(())
    }

    /// What will not come again ends with its connection.
    fn count_drops(&self, session: &mut Session<S::Connection>) {
        let offered = session.offering.iter().filter(|offering| offering.once).count();
        let waiting = session.backlog.iter().filter(|received| received.once).count();
        self.common.board.dropped("connection_ended", (offered + waiting) as u64);
        self.common.board.dropped("unreadable", session.connection.take_unreadable());
    }

    /// Open receipts get a deadline; what is not offered yet is left to the remote, which sends it again.
    async fn stop(&mut self, mut session: Session<S::Connection>) {
        let deadline = self.common.now() + STOP_WAIT;
        session.offering = None;
        while let Some(front) = session.unsettled.front_mut() {
            match tokio::time::timeout_at(deadline, front.receipt.settled()).await {
                Ok(Ok(())) if self.settle(&mut session).is_ok() => {}
                Ok(_) | Err(_) => break,
            }
        }
        if tokio::time::timeout(CLOSE_WAIT, session.connection.close()).await.is_err() {
            tracing::debug!(link = %self.common.link, "the remote did not take our good-bye");
        }
    }

    fn show(&self, state: LinkState, words: Option<String>, next_try_ms: Option<u64>) {
        self.common.board.enter(state, words, next_try_ms, self.common.clock.wall());
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What counts for the link's rate.
fn size_of(publication: &Publication) -> u64 {
    let user = publication.properties.user.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let bytes = publication.payload.len() + publication.topic.as_str().len() + user;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl<C: SourceConnection> Session<C> {
    fn in_flight(&self) -> u64 {
        let offering = usize::from(self.offering.is_some());
        u64::try_from(self.unsettled.len() + self.backlog.len() + offering).unwrap_or(u64::MAX)
    }

    async fn next_event(&mut self, common: &Common) -> Event<C::Token> {
        let now = common.now();
        if now.duration_since(self.attended_at) >= UPKEEP_EACH {
            // However busy the rest is, upkeep gets its turn: one poll, since it mostly finds nothing due.
            self.attended_at = now;
            tokio::select! {
                biased;
                done = self.connection.upkeep() => return Event::Upkeep(done),
                () = tokio::task::yield_now() => {}
            }
        }
        let receiving = self.offering.is_none() && self.backlog.is_empty() && self.unsettled.len() < UNSETTLED_MAX;
        let paused_until = self.paused_until.filter(|until| receiving && now < *until);
        let busy = self.settled_at.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1));
        let slice = if busy { UPKEEP_EACH } else { UPKEEP_EACH_IDLE };
        let look = self.held_until.into_iter().chain(self.active_look).min();
        let Self { connection, offering, unsettled, .. } = self;
        let attend = async {
            if let Some(until) = paused_until {
                let upkeep = tokio::time::timeout_at(until, connection.upkeep()).await;
                return Event::Upkeep(upkeep.unwrap_or(Ok(())));
            }
            if !receiving {
                return Event::Upkeep(connection.upkeep().await);
            }
            match tokio::time::timeout(slice, connection.receive()).await {
                Ok(received) => Event::Received(received),
                Err(_elapsed) => {
                    let upkeep = tokio::time::timeout(UPKEEP_SLICE, connection.upkeep()).await;
                    Event::Upkeep(upkeep.unwrap_or(Ok(())))
                }
            }
        };
        let offered = async {
            match offering {
                Some(Offering { answer, give_up, .. }) => {
                    let answer = tokio::time::timeout_at(*give_up, answer.as_mut()).await;
                    answer.map_or(Event::Blocked, Event::Offered)
                }
                None => std::future::pending().await,
            }
        };
        let settled = async {
            match unsettled.front_mut() {
                Some(front) => front.receipt.settled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = common.token.cancelled() => Event::Stop,
            settled = settled => Event::Settled(settled),
            event = offered => event,
            () = sleep_until(look), if look.is_some() => Event::Look,
            event = attend => event,
        }
    }
}
