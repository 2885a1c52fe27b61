//! Buffer → remote.
//!
//! What happens to a record that the remote does not take:
//!
//! | the remote says | the runner does |
//! |---|---|
//! | refused for good | a dead letter, synced before the cursor passes it (R15), at most twenty in a row without a success |
//! | refused, after twenty in a row | nothing is dead-lettered any more: the record stays, state `misconfigured`, one record at a time is tried each `misconfigured_delay`, from the first kept one on; the first confirmation ends this |
//! | not now | sending stops; when all in flight have been answered and a jittered pause has passed, everything from that record on is sent again, beginning with a window of one |
//! | connection lost | everything from the cursor on is sent again on the next connection; R16 finds a record that kills connections, which counts as refused; a connection that is lost with nothing in flight shows that it is the line |
//! | nothing, for `stall_after` | state `stalled`, the connection is cut, the next begins with a window of one (R23) |
//!
//! Records of a route with `batch` go several as one message: [`batching`].
//!
//! What the link cannot send as it is set up (a message too large for the peer or for our own limit, a topic that has no form there) counts as
//! refused: a limit that is too small says the same of a whole backlog. A record that does not decode is a fact about that record alone: a
//! dead letter whatever the run of refusals is.

mod batching;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::batching::{Batches, Part};
use super::super::backoff::Backoff;
use super::super::rate::{Pacer, SharedRate};
use super::super::refusal::{RefusalRun, Verdict};
use super::super::window::{Fate, InFlight, WHOLE, Window};
use super::super::{Answer, Drain, LinkError, Outgoing, Sent, Sink, SinkConnection};
use super::Common;
use super::streams::Streams;
use crate::buffer::{Buffer, DeadLetter, Lanes, Offset, Outcome, Place, Record, Refused};
use crate::clock::Moment;
use crate::hub::Hub;
use crate::message::Envelope;
use crate::telemetry::board::LinkState;
use crate::units::show_duration;

/// Bytes in flight, whatever the window: large messages must not multiply with a window of thousands.
const FLIGHT_BYTES_MAX: usize = 16 << 20;

/// How long a stopping sink waits for what is in flight (DESIGN.md section 9).
const STOP_WAIT: Duration = Duration::from_secs(2);

/// How long a good-bye may take.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// How often a waiting runner looks around without an event: for the buffer's health, and a client queue that was full.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// The same while the client's own queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

/// The outbound half of one link.
pub(super) struct SinkRunner<S: Sink> {
    common: Common,
    sink: S,
    /// Whose routes are asked for what they could not make when it came.
    hub: Option<Arc<Hub>>,
    streams: Streams,
    batches: Batches,
    in_flight_configured: Option<usize>,
    backoff: Backoff,
    window: Window,
    /// What a kill may repeat: a window of messages (R9), also where the remote allows fewer in flight. See [`Streams::ahead`].
    ahead_max: u64,
    refusals: RefusalRun,
    pacer: Pacer,
    /// The connection was cut because nothing moved, and nothing has moved since.
    stalled: bool,
    misconfigured: bool,
    on: OnConnection,
    shown: Option<Shown>,
}

/// What belongs to one connection and goes with it.
#[derive(Debug, Default)]
struct OnConnection {
    /// Refused, not yet in the dead-letter log; and of which stream.
    letters: VecDeque<(usize, DeadLetter)>,
    letters_blocked: Option<LettersBlocked>,
    rewind: Option<Rewind>,
    /// Nothing is sent until all in flight have been answered; then it is decided what is backlog.
    regroup: bool,
    /// The remote asked us to hold back.
    blocked: bool,
    /// The client's own queue is full until the next answer.
    queue_full: bool,
    /// Batches go when more of the cursor is saved (R9). It may be by now.
    waits_for_cursor: bool,
    /// R16: nothing is sent before, to see whether the connection lives without.
    idle_until: Option<Instant>,
    /// There is something to send, and the link's rate has no place for it before.
    held_until: Option<Instant>,
    /// When to see next whether the link is still to be up.
    active_look: Option<Instant>,
    progress: Option<Instant>,
}

/// The dead-letter log takes no more: tried again at `retry`.
#[derive(Debug)]
struct LettersBlocked {
    state: LinkState,
    words: String,
    retry: Instant,
}

/// Everything that is not settled is to be sent again, not before `after`.
#[derive(Debug)]
struct Rewind {
    after: Instant,
    next_try_ms: u64,
    words: String,
}

/// What the board was last told.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    state: LinkState,
    words: Option<String>,
    next_try_ms: Option<u64>,
}

/// What can wake the runner while it is online.
enum Event {
    Stop,
    Answer(Result<Answer, LinkError>),
    Records(usize, Result<Vec<Record>, Refused>),
    /// The cursor that batches wait for is saved.
    Saved,
    Look,
}

/// Why a connection ended.
enum End {
    Stop,
    Outside,
    Lost(LinkError),
    Cut,
    BufferFailed(String),
}

/// The state to enter next.
enum Next<C> {
    Connect,
    Online(C),
    BackOff(LinkError),
    BufferFailed(String),
    Pause,
    Stop,
}

/// Returns when enough of this log's cursor is saved; without one never. Cancel safe.
async fn saved(buffer: Option<&Buffer>) {
    match buffer {
        Some(buffer) => buffer.saved().await,
        None => std::future::pending().await,
    }
}

/// What so many messages count for.
fn weight_of(messages: usize) -> u64 {
    u64::try_from(messages).unwrap_or(u64::MAX).saturating_mul(WHOLE)
}

impl<S: Sink> SinkRunner<S> {
    pub(super) fn new(
        common: Common,
        sink: S,
        lanes: &Lanes,
        drain: Drain,
        in_flight_configured: Option<usize>,
    ) -> Self {
        let limit = in_flight_configured.unwrap_or_else(|| sink.window());
        Self {
            backoff: Backoff::new(common.timing.retry_delay_min, common.timing.retry_delay_max),
            common,
            sink,
            hub: None,
            streams: Streams::new(lanes, drain),
            batches: Batches::default(),
            in_flight_configured,
            window: Window::new(limit),
            ahead_max: weight_of(limit),
            refusals: RefusalRun::default(),
            pacer: SharedRate::default().pacer(),
            stalled: false,
            misconfigured: false,
            on: OnConnection::default(),
            shown: None,
        }
    }

    /// Keeps to this rate.
    pub(super) fn paced(mut self, rate: &SharedRate) -> Self {
        self.pacer = rate.pacer();
        self
    }

    /// Has the routes of today make what they could not make when it came.
    pub(super) fn remade_by(mut self, hub: &Arc<Hub>) -> Self {
        self.hub = Some(Arc::clone(hub));
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
                Next::BufferFailed(reason) => self.buffer_failed(reason).await,
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
        if !(self.stalled || self.misconfigured) {
            self.show(LinkState::Connecting, None, None);
        }
        let timeout = self.common.timing.connect_timeout;
        let token = self.common.token.clone();
        tokio::select! {
            biased;
            () = token.cancelled() => Next::Stop,
            made = tokio::time::timeout(timeout, self.sink.connect()) => match made {
                Ok(Ok(connection)) => Next::Online(connection),
                Ok(Err(error)) => Next::BackOff(error),
                Err(_elapsed) => Next::BackOff(LinkError::Transient(format!("no connection within {timeout:?}"))),
            },
        }
    }

    /// Waits for the next try.
    async fn back_off(&mut self, error: LinkError) -> Next<S::Connection> {
        self.stalled = false;
        self.misconfigured = matches!(error, LinkError::Misconfigured(_));
        let (state, pause) = if self.misconfigured {
            (LinkState::Misconfigured, self.common.timing.misconfigured_delay)
        } else {
            (LinkState::BackingOff, self.backoff.next(rand::random()))
        };
        tracing::warn!(link = %self.common.link, direction = "out", %error, next_try = show_duration(pause), "not connected");
        self.show(state, Some(error.to_string()), Some(self.common.wall_in(pause)));
        self.pause(pause).await
    }

    /// Outside of the times to be up.
    async fn wait_outside(&mut self) -> Next<S::Connection> {
        (self.stalled, self.misconfigured, self.shown) = (false, false, None);
        if self.common.pause_until_active().await { Next::Connect } else { Next::Stop }
    }

    /// The log cannot be read: looked at again slowly.
    async fn buffer_failed(&mut self, reason: String) -> Next<S::Connection> {
        let pause = self.common.timing.misconfigured_delay;
        tracing::error!(link = %self.common.link, %reason, "the link's buffer failed");
        self.show(LinkState::BufferFailed, Some(reason), Some(self.common.wall_in(pause)));
        self.pause(pause).await
    }

    async fn pause(&mut self, pause: Duration) -> Next<S::Connection> {
        tokio::select! {
            () = self.common.token.cancelled() => Next::Stop,
            () = tokio::time::sleep(pause) => Next::Connect,
        }
    }

    /// Ends when the connection does.
    async fn online(&mut self, mut connection: S::Connection) -> Next<S::Connection> {
        let since = self.common.now();
        self.misconfigured = false;
        self.on = OnConnection::default();
        let limit = self.in_flight_configured.unwrap_or_else(|| self.sink.window());
        self.window.set_limit(connection.window_max().map_or(limit, |most| most.min(limit)));
        self.ahead_max = weight_of(limit);
        if let Err(error) = self.streams.settle_below(&connection.confirmed_below(&self.streams.id)).await {
            drop(connection);
            return Next::BackOff(error);
        }
        self.forget_batches();
        self.streams.begin(self.window.limit());
        // As long as the shortest pause between connections, and as much again: a line that lives so long gets a record through.
        let idle = self.common.timing.retry_delay_min.saturating_mul(2);
        self.on.idle_until = self.streams.suspects().then(|| since + idle);
        self.common.board.connected();
        tracing::info!(link = %self.common.link, direction = "out", "connected");
        let end = loop {
            if let ControlFlow::Break(end) = self.turn(&mut connection).await {
                break end;
            }
        };
        if self.common.now().duration_since(since) >= self.common.timing.retry_delay_max {
            self.backoff.reset();
        }
        match end {
            End::Stop => {
                self.stop(connection).await;
                Next::Stop
            }
            End::Outside => {
                self.stop(connection).await;
                Next::Pause
            }
            End::Lost(error) => {
                drop(connection);
                Next::BackOff(self.lost(error).await)
            }
            End::Cut => {
                drop(connection);
                self.window.restart();
                self.forget();
                Next::Connect
            }
            End::BufferFailed(reason) => {
                self.forget();
                Next::BufferFailed(reason)
            }
        }
    }

    /// Does all that can be done now, then waits for one event and applies it.
    async fn turn(&mut self, connection: &mut S::Connection) -> ControlFlow<End> {
        if self.common.has_left_its_times(&mut self.on.active_look) {
            return ControlFlow::Break(End::Outside);
        }
        self.write_letters().await;
        self.note_routes();
        self.rewind_if_due();
        if let Err(error) = self.fill(connection) {
            return ControlFlow::Break(End::Lost(error));
        }
        if !self.on.letters.is_empty() && self.on.letters_blocked.is_none() {
            return ControlFlow::Continue(());
        }
        if self.stalled && self.streams.is_empty() {
            self.stalled = false;
        }
        self.common.board.set_in_flight(u64::try_from(self.streams.open()).unwrap_or(u64::MAX));
        self.show_online();
        let event = self.next_event(connection).await;
        self.apply(event)
    }

    async fn next_event(&mut self, connection: &mut S::Connection) -> Event {
        let room = self.room();
        let (look, unsaved) = (self.next_look(), self.on.waits_for_cursor);
        let buffer = self.streams.any().cloned().filter(|_| unsaved);
        let Self { streams, common, .. } = self;
        tokio::select! {
            biased;
            () = common.token.cancelled() => Event::Stop,
            answer = connection.answer() => Event::Answer(answer),
            (at, records) = streams.read(room), if room > 0 => Event::Records(at, records),
            () = saved(buffer.as_ref()), if unsaved => Event::Saved,
            () = tokio::time::sleep_until(look) => Event::Look,
        }
    }

    fn apply(&mut self, event: Event) -> ControlFlow<End> {
        match event {
            Event::Stop | Event::Records(_, Err(Refused::Closed)) => return ControlFlow::Break(End::Stop),
            Event::Answer(Ok(answer)) => self.answered(answer),
            Event::Answer(Err(error)) => return ControlFlow::Break(End::Lost(error)),
            Event::Records(at, Ok(records)) => self.streams.took(at, records),
            Event::Records(_, Err(error @ (Refused::Failed(_) | Refused::Full))) => {
                return ControlFlow::Break(End::BufferFailed(error.to_string()));
            }
            Event::Saved => {}
            Event::Look => self.on.queue_full = false,
        }
        self.on.idle_until = self.on.idle_until.filter(|until| *until > self.common.now());
        self.check_stall()
    }

    /// When to look around next without any event: the nearest of all that is due.
    fn next_look(&self) -> Instant {
        let now = self.common.now();
        let idle = now + if self.on.queue_full { QUEUE_FULL_PAUSE } else { LOOK_AROUND };
        let rewind = self.on.rewind.as_ref().filter(|_| self.may_begin()).map(|rewind| rewind.after);
        let letters = self.on.letters_blocked.as_ref().map(|blocked| blocked.retry);
        let dues = [self.stall_due(), rewind, letters, self.on.idle_until, self.on.held_until, self.batches.due()];
        dues.into_iter().flatten().fold(idle, Instant::min)
    }

    /// When the connection counts as stalled, or, once it does, when it is cut.
    fn stall_due(&self) -> Option<Instant> {
        let waiting = self.streams.open() > 0 && !self.on.blocked;
        let patience = self.common.timing.stall_after;
        let patience = if self.stalled { self.sink.cut_after(patience) } else { patience };
        self.on.progress.filter(|_| waiting).map(|progress| progress + patience)
    }

    fn check_stall(&mut self) -> ControlFlow<End> {
        let now = self.common.now();
        while self.stall_due().is_some_and(|due| due <= now) {
            if self.stalled {
                return ControlFlow::Break(End::Cut);
            }
            self.stalled = true;
            let (stall_after, open) = (self.common.timing.stall_after, self.streams.open());
            tracing::warn!(link = %self.common.link, in_flight = open, "stalled: nothing back for {stall_after:?}");
            self.show_online();
        }
        ControlFlow::Continue(())
    }

    // Sending.

    /// How many more messages may be put on their way now.
    fn slots(&self) -> usize {
        let on = &self.on;
        let held = on.blocked || on.queue_full || on.rewind.is_some() || on.regroup || on.idle_until.is_some();
        if held || !on.letters.is_empty() { 0 } else { self.size().saturating_sub(self.streams.span()) }
    }

    /// How many more records may be taken now.
    fn room(&self) -> usize {
        if self.batches.is_ready() || self.streams.bytes() >= FLIGHT_BYTES_MAX {
            return 0;
        }
        let left = self.ahead_max.saturating_sub(self.streams.ahead()).div_ceil(WHOLE);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        // What was sent before is no more for being sent again.
        self.slots().min(if left == 0 && self.batches.is_restoring() { 1 } else { left })
    }

    /// The window, or one at a time.
    fn size(&self) -> usize {
        let one = self.refusals.is_suspicious() || self.streams.one_at_a_time();
        if one { 1 } else { self.window.size() }
    }

    fn fill(&mut self, connection: &mut S::Connection) -> Result<(), LinkError> {
        let now = self.common.clock.moment();
        let mut held_until = None;
        loop {
            self.send_ready(connection)?;
            if self.room() == 0 || !self.streams.has_unsent() {
                break;
            }
            if let Some(wait) = self.pacer.wait() {
                held_until = Some(self.common.now() + wait);
                break;
            }
            let Some((at, record)) = self.streams.pop(self.size()) else { break };
            self.send(connection, at, record, now)?;
            self.press();
        }
        self.held(held_until);
        self.let_go_due(false);
        self.send_ready(connection)
    }

    /// Each wait is told once, however often the runner looks around meanwhile.
    fn held(&mut self, until: Option<Instant>) {
        let before = std::mem::replace(&mut self.on.held_until, until);
        let is_new = before.is_none_or(|before| before <= self.common.now());
        if until.is_none() || is_new {
            self.common.board.set_held_by_rate(until.is_some());
        }
    }

    fn send(
        &mut self,
        connection: &mut S::Connection,
        at: usize,
        record: Record,
        now: Moment,
    ) -> Result<(), LinkError> {
        let Some(stream) = self.streams.get(at) else { return Ok(()) };
        let before = self.streams.tries(at, record.offset);
        let mut envelope = match Envelope::decode(record.body.clone()) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.dead_letter(at, record.offset, record.body, format!("damaged record: {error}"), before);
                return Ok(());
            }
        };
        if let Some(reason) = &envelope.failure {
            // Its route may have been mended since.
            let made = self
                .hub
                .as_ref()
                .map_or_else(|| Err(reason.to_string()), |hub| hub.remake(&self.common.link, &envelope));
            match made {
                Ok(made) => envelope = made,
                Err(reason) => {
                    self.dead_letter(at, record.offset, record.body, reason, before);
                    return Ok(());
                }
            }
        }
        let place = Place { lane: stream.lane, offset: record.offset };
        // By the record, not by the message: the route may have given it a shorter life than its publisher.
        let expiry_left_s = record.expiry_left_s(envelope.message.accepted, now);
        if expiry_left_s == Some(0) && !connection.has_taken(place) {
            self.streams.has_expired(at, record.offset);
            return Ok(());
        }
        // It would take the place of the newer value that live records may have set (R13).
        envelope.message.retain &= !stream.backfill;
        let payload_bytes = u64::try_from(envelope.message.payload.len()).unwrap_or(u64::MAX);
        let backfill = stream.backfill;
        if let Some(route) = envelope.batch.as_deref() {
            if let Some(batch) = self.batch_of(route) {
                self.gather(Part { at, place, backfill, envelope, expiry_left_s }, record, batch);
                return Ok(());
            }
            if self.batches.let_go_of(route) {
                self.streams.put_back(at, record);
                return Ok(());
            }
        }
        let outgoing = Outgoing {
            place,
            seq: format!("{}-{}-{}", self.streams.id, place.lane.number(), record.offset.0),
            backfill,
            expiry_left_s,
            envelope,
            expired_before: self.streams.expired_before(at, record.offset),
        };
        match connection.send(outgoing)? {
            Sent::Queued => self.sent(at, record, payload_bytes),
            Sent::Full(_same) => {
                self.on.queue_full = true;
                self.streams.put_back(at, record);
            }
            Sent::Refused(reason) => self.unsendable(at, place, record, reason, before),
        }
        Ok(())
    }

    /// R15: once the run is long, it has to be known whether it is one: records that were sent before this one may still be confirmed.
    fn unsendable(&mut self, at: usize, place: Place, record: Record, reason: String, attempts: u32) {
        if self.refusals.is_suspicious() && self.streams.open() > 0 {
            self.on.regroup = true;
            return self.streams.put_back(at, record);
        }
        match self.refusals.refused() {
            Verdict::DeadLetter => self.dead_letter(at, record.offset, record.body, reason, attempts),
            Verdict::Keep => {
                self.streams.put_back(at, record);
                self.send_again_from(place, self.common.timing.misconfigured_delay, reason);
            }
        }
    }

    fn sent(&mut self, at: usize, record: Record, payload_bytes: u64) {
        self.pacer.spend(u64::try_from(record.body.len()).unwrap_or(u64::MAX));
        if self.streams.open() == 0 {
            self.on.progress = Some(self.common.now());
        }
        if self.streams.sent(at, InFlight::new(record.offset, record.body, payload_bytes)) {
            self.common.board.again();
        }
    }

    // Answers.

    fn answered(&mut self, answer: Answer) {
        self.on.queue_full = false;
        self.on.progress = Some(self.common.now());
        match answer {
            Answer::Confirmed(place) => self.confirmed(place),
            Answer::Refused(place, reason) => match self.streams.cut_at(place) {
                Some(cut) => self.batch_refused(place, &cut, &reason),
                None => self.refused(place, reason),
            },
            Answer::Retry(place, reason) => {
                if let Some((_, message)) = self.streams.answer(place, Fate::Again) {
                    let place = Place { offset: message.first(), ..place };
                    let pause = self.backoff.next(rand::random());
                    self.send_again_from(place, pause, reason);
                }
            }
            Answer::Blocked(blocked) => {
                // What came meanwhile may be a backlog.
                self.on.regroup |= self.on.blocked && !blocked && self.streams.is_far_behind(self.window.limit());
                self.on.blocked = blocked;
            }
            Answer::Alive => {}
        }
    }

    fn confirmed(&mut self, place: Place) {
        if self.streams.answer(place, Fate::Delivered).is_none() {
            return;
        }
        self.stalled = false;
        self.refusals.confirmed();
        self.window.confirmed();
        if self.on.rewind.is_none() {
            self.backoff.reset();
        }
        self.settle_delivered();
    }

    fn refused(&mut self, place: Place, reason: String) {
        let fate = if self.refusals.is_suspicious() { Fate::Again } else { Fate::Elsewhere };
        let Some((at, record)) = self.streams.answer(place, fate) else { return };
        self.stalled = false;
        match self.refusals.refused() {
            Verdict::DeadLetter => {
                let attempts = self.streams.tries(at, place.offset) + 1;
                self.dead_letter(at, place.offset, record.body, reason, attempts);
            }
            Verdict::Keep => {
                let pause = self.common.timing.misconfigured_delay;
                self.send_again_from(place, pause, reason);
            }
        }
        self.settle_delivered();
    }

    fn settle_delivered(&mut self) {
        let Self { streams, common, .. } = self;
        streams.settle_delivered(|bytes| common.board.done(bytes));
    }

    /// Nothing more is sent until all in flight have been answered and the pause has passed; then everything from
    /// `place` on in its stream goes again, so that the last copies are in order (R10), beginning with one at a time.
    fn send_again_from(&mut self, place: Place, pause: Duration, words: String) {
        let (lane, offset) = (place.lane.name(), place.offset.0);
        tracing::warn!(link = %self.common.link, lane, offset, reason = %words, ?pause, "not taken, to be sent again");
        let (after, next_try_ms) = (self.common.now() + pause, self.common.wall_in(pause));
        self.window.restart();
        self.on.rewind = Some(Rewind { after, next_try_ms, words });
    }

    /// Whether all that was sent is decided.
    fn may_begin(&self) -> bool {
        self.streams.open() == 0 && self.on.letters.is_empty()
    }

    fn rewind_if_due(&mut self) {
        let now = self.common.now();
        if !self.may_begin() {
            return;
        }
        let due = self.on.rewind.take_if(|rewind| rewind.after <= now).is_some();
        if due || (self.on.regroup && self.on.rewind.is_none()) {
            self.on.regroup = false;
            self.forget_batches();
            self.streams.begin(self.window.limit());
        }
    }

    // Dead letters.

    fn dead_letter(&mut self, at: usize, offset: Offset, body: bytes::Bytes, reason: String, attempts: u32) {
        tracing::warn!(link = %self.common.link, offset = offset.0, %reason, "dead letter");
        self.common.board.dead_letter(&reason);
        let letter = DeadLetter { offset, time: self.common.clock.wall(), reason, attempts, body };
        self.on.letters.push_back((at, letter));
    }

    /// Stores the letters in order; a full log stops the link until there is room.
    async fn write_letters(&mut self) {
        if self.on.letters_blocked.as_ref().is_some_and(|blocked| blocked.retry > self.common.now()) {
            return;
        }
        self.on.letters_blocked = None;
        while let Some((at, letter)) = self.on.letters.front().cloned() {
            let Some(buffer) = self.streams.get(at).map(|stream| stream.buffer.clone()) else { return };
            let offset = letter.offset;
            if let Err(error) = buffer.dead_letters().put(letter).await {
                let retry = self.common.now() + self.common.timing.misconfigured_delay;
                let (state, words) = match error {
                    Refused::Full => {
                        (LinkState::DeadLettersFull, "the dead-letter log, or its disk, is full".to_owned())
                    }
                    Refused::Failed(_) | Refused::Closed => (LinkState::BufferFailed, error.to_string()),
                };
                tracing::error!(link = %self.common.link, error = %words, "the link stops at a dead letter");
                self.on.letters_blocked = Some(LettersBlocked { state, words, retry });
                return;
            }
            self.on.letters.pop_front();
            buffer.settle(offset, Outcome::DeadLettered);
        }
    }

    // Ends of a connection.

    /// R16: looks for the record that kills connections. One that does counts as refused (R15): a remote that hangs up at
    /// whatever it is sent makes the link misconfigured, and does not turn a backlog into dead letters. Answers what to tell.
    async fn lost(&mut self, error: LinkError) -> LinkError {
        let guilty = if matches!(error, LinkError::Transient(_)) { self.streams.lost() } else { None };
        let suspects = self.streams.suspect_batches();
        self.forget();
        suspects.into_iter().for_each(|(lane, cut)| self.batches.go_alone(lane, cut.offsets()));
        let Some((at, head)) = guilty else { return error };
        if head.several().is_some() {
            self.streams.acquit(at, head.first());
            return error;
        }
        let reason = format!("connection lost at this message 3 times: {error}");
        match self.refusals.refused() {
            Verdict::Keep => return LinkError::Misconfigured(reason),
            Verdict::DeadLetter => {}
        }
        let attempts = self.streams.tries(at, head.offset);
        self.dead_letter(at, head.offset, head.body, reason, attempts);
        self.write_letters().await;
        self.streams.acquit(at, head.offset);
        self.window.restart();
        error
    }

    /// What was in flight is unknown now: it is sent again from the cursor on the next connection.
    fn forget(&mut self) {
        self.on = OnConnection::default();
        self.forget_batches();
        self.streams.forget();
        self.common.board.set_in_flight(0);
        self.common.board.set_held_by_rate(false);
    }

    /// Takes the answers that still come, for a moment, and says good-bye.
    async fn stop(&mut self, mut connection: S::Connection) {
        let deadline = self.common.now() + STOP_WAIT;
        self.write_letters().await;
        self.let_go_due(true);
        loop {
            // What is lost with the connection comes again.
            drop(self.send_ready(&mut connection));
            let unsaved = self.on.waits_for_cursor;
            if self.streams.open() == 0 && !unsaved {
                break;
            }
            let buffer = self.streams.any().cloned().filter(|_| unsaved);
            let event = async {
                tokio::select! {
                    answer = connection.answer() => Some(answer),
                    () = saved(buffer.as_ref()) => None,
                }
            };
            match tokio::time::timeout_at(deadline, event).await {
                Ok(Some(Ok(answer))) => self.answered(answer),
                Ok(None) => {}
                Ok(Some(Err(_))) | Err(_) => break,
            }
        }
        self.write_letters().await;
        self.forget();
        if tokio::time::timeout(CLOSE_WAIT, connection.close()).await.is_err() {
            tracing::debug!(link = %self.common.link, "the remote did not take our good-bye");
        }
    }

    // The board.

    /// The state while connected, the worst first.
    fn show_online(&mut self) {
        let (state, words, next) = if let Some(reason) = self.streams.failed() {
            (LinkState::BufferFailed, Some(reason), None)
        } else if let Some(blocked) = &self.on.letters_blocked {
            (blocked.state, Some(blocked.words.clone()), None)
        } else if self.refusals.is_suspicious() {
            let rewind = self.on.rewind.as_ref();
            let words = rewind.map(|rewind| rewind.words.clone());
            (LinkState::Misconfigured, words, rewind.map(|rewind| rewind.next_try_ms))
        } else if self.on.blocked {
            (LinkState::Blocked, Some("the remote asked us to hold back".to_owned()), None)
        } else if self.stalled {
            let (stall_after, open) = (self.common.timing.stall_after, self.streams.open());
            let words = (open > 0).then(|| format!("connected, but no answer for {stall_after:?}"));
            (LinkState::Stalled, words, None)
        } else if let Some(rewind) = &self.on.rewind {
            (LinkState::BackingOff, Some(rewind.words.clone()), Some(rewind.next_try_ms))
        } else {
            (LinkState::Online, None, None)
        };
        self.show(state, words, next);
    }

    fn show(&mut self, state: LinkState, words: Option<String>, next_try_ms: Option<u64>) {
        let show = Shown { state, words, next_try_ms };
        if self.shown.as_ref() != Some(&show) {
            self.common.board.enter(show.state, show.words.clone(), show.next_try_ms, self.common.clock.wall());
            self.shown = Some(show);
        }
    }
}
