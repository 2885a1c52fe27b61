//! A replay: what a log still holds → remote, on a connection of its own beside the link's sink.
//!
//! Live traffic stays in front: a replay has at most a quarter of the link's window, one record at a time while the link is
//! behind, and a rate of its own where one was asked for. What it sends counts in the link's `rate`, and outside of the link's `active` it
//! waits as the link does. It settles nothing in the log and makes no dead letters, since what it
//! sends is in the log anyway; what the remote refuses is counted and passed over. After twenty refusals in a row it waits, as
//! a sink does (R15).
//!
//! The lanes of a log (R14) are read one after the other, in the order in which the link serves them; each in its own order.
//!
//! Its position is behind everything that was confirmed without a gap. It is written when a window's worth of confirmations is unsaved and
//! synced each second, so a kill repeats at most two windows (R9).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::rate::{Pacer, SharedRate};
use super::super::refusal::{RefusalRun, Verdict};
use super::super::window::{Fate, Flight, InFlight, Window};
use super::super::{Answer, LinkError, Outgoing, Sent, Sink, SinkConnection};
use super::Common;
use crate::buffer::{History, Lane, Lanes, Offset, Place, Record};
use crate::message::Envelope;
use crate::telemetry::board::LinkState;

/// Of the link's window, this part.
const SHARE: usize = 4;
/// Records in flight at most, whatever the link's window is.
const WINDOW_MAX: usize = 256;
/// Bytes read from the log at once, and in flight at most.
const READ_BYTES_MAX: usize = 256 << 10;
const FLIGHT_BYTES_MAX: usize = 4 << 20;
/// How long a stopping replay waits for what is in flight, and for the good-bye.
const STOP_WAIT: Duration = Duration::from_secs(2);
const CLOSE_WAIT: Duration = Duration::from_millis(500);
/// A changed position is synced at the latest after this (R9).
const KEEP_SYNC: Duration = Duration::from_secs(1);
/// How often is looked whether the link is behind.
const LOOK_AT_LIVE: Duration = Duration::from_millis(100);
/// The pause while the client's own queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

/// How far a replay is, and what became of the records up to there. The lanes before `lane` are done, those behind it are not begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayProgress {
    /// The lane that is being read.
    pub lane: Lane,
    /// Everything of it below is done.
    pub position: u64,
    /// Everything of it below has been looked at and counted in `passed_over`, `expired` or `unsendable` where it belongs there.
    pub looked_at: u64,
    /// Confirmed by the remote.
    pub replayed: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Not of the topic or time that was asked for.
    pub passed_over: u64,
    /// Their expiry has lapsed.
    pub expired: u64,
    /// They have no form at this remote.
    pub unsendable: u64,
    /// Refused by the remote.
    pub refused: u64,
}

/// What is to become of a record.
#[derive(Debug)]
pub enum Picked {
    /// To be sent, with the seconds that are left of its expiry.
    Send(Box<Envelope>, Option<u32>),
    /// Not of the topic or time that was asked for.
    PassedOver,
    /// Its expiry has lapsed.
    Expired,
    /// It cannot be sent, and why.
    Unsendable(String),
}

/// Chooses among the records, and makes of each what is to be sent.
pub type Pick = Box<dyn FnMut(Record) -> Picked + Send + Sync>;

/// Where a replay's position is kept.
pub trait ReplayKeeper: Send + Sync + 'static {
    /// Keeps it across a kill, with `sync` also across a power cut. Called on a thread that may block.
    ///
    /// # Errors
    /// It was not kept: more may be sent twice.
    fn keep(&mut self, progress: ReplayProgress, sync: bool) -> io::Result<()>;
}

/// What is to be sent again.
pub struct Replay {
    /// For the log.
    pub id: Arc<str>,
    /// Of the lane of `progress`, from the position on.
    pub history: History,
    /// The lanes that are read after it, in this order.
    pub later: VecDeque<(Lane, History)>,
    /// The first part of `tg-seq`: the id of the log that is read.
    pub source_id: String,
    /// The lanes of the link that it goes to: there `replayed` is counted, and there live traffic is looked at.
    pub target: Lanes,
    /// Records a second.
    pub rate: Option<f64>,
    /// See [`Pick`].
    pub pick: Pick,
    /// See [`ReplayKeeper`]; away while it is at work on another thread.
    pub keeper: Option<Box<dyn ReplayKeeper>>,
    /// Shared with who shows it.
    pub progress: Arc<Mutex<ReplayProgress>>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayEnd {
    /// Everything was sent and answered.
    Done,
    /// It was told to stop.
    Stopped,
}

/// Evens out what is sent to a rate; a tenth of a second's worth may come at once.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Option<Duration>,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<f64>, now: Instant) -> Self {
        let interval =
            rate.filter(|rate| rate.is_finite() && *rate > 0.0).map(|rate| Duration::from_secs_f64(1.0 / rate));
        Self { interval, next: now }
    }

    /// When the next may go, if not now.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        (self.interval.is_some() && self.next > now).then_some(self.next)
    }

    pub(super) fn sent(&mut self, now: Instant) {
        if let Some(interval) = self.interval {
            let burst = Duration::from_millis(100).max(interval) - interval;
            let earliest = now.checked_sub(burst).unwrap_or(now);
            self.next = self.next.max(earliest) + interval;
        }
    }
}

/// Runs one replay until it is done or told to stop.
pub(super) struct ReplayRunner<S: Sink> {
    common: Common,
    sink: S,
    replay: Replay,
    backoff: Backoff,
    link_window: usize,
    window: Window,
    refusals: RefusalRun,
    pace: Pace,
    pacer: Pacer,
    on: OnConnection,
    live_behind: bool,
    live_looked: Option<Instant>,
    /// Confirmations since the position was written, and when it was synced.
    unsaved: u64,
    synced: Instant,
    changed: bool,
}

#[derive(Debug, Default)]
struct OnConnection {
    flight: Flight,
    unsent: VecDeque<Ready>,
    rewind: Option<(Offset, Instant)>,
    blocked: bool,
    queue_full: bool,
    /// The link's rate has no place for the next before.
    held_until: Option<Instant>,
    active_look: Option<Instant>,
    progress: Option<Instant>,
}

/// Chosen, and not sent yet.
#[derive(Debug)]
struct Ready {
    outgoing: Outgoing,
    payload_bytes: u64,
    body: bytes::Bytes,
}

enum End {
    Done,
    Stop,
    Outside,
    Lost(LinkError),
}

enum Event {
    Stop,
    Answer(Result<Answer, LinkError>),
    Records(io::Result<Vec<Record>>),
    Look,
}

impl<S: Sink> ReplayRunner<S> {
    pub(super) fn new(common: Common, sink: S, replay: Replay, in_flight_configured: Option<usize>) -> Self {
        let link_window = in_flight_configured.unwrap_or_else(|| sink.window()).max(1);
        let now = common.now();
        Self {
            backoff: Backoff::new(common.timing.retry_delay_min, common.timing.retry_delay_max),
            window: Window::new((link_window / SHARE).clamp(1, WINDOW_MAX)),
            pace: Pace::new(replay.rate, now),
            pacer: SharedRate::default().pacer(),
            common,
            sink,
            replay,
            link_window,
            refusals: RefusalRun::default(),
            on: OnConnection::default(),
            live_behind: false,
            live_looked: None,
            unsaved: 0,
            synced: now,
            changed: true,
        }
    }

    /// Keeps to this rate.
    pub(super) fn paced(mut self, rate: &SharedRate) -> Self {
        self.pacer = rate.pacer();
        self
    }

    /// Until it is done or cancelled.
    pub(super) async fn run(mut self) -> ReplayEnd {
        loop {
            if !self.common.pause_until_active().await {
                return self.stopped().await;
            }
            let error = match self.connect().await {
                None => return self.stopped().await,
                Some(Err(error)) => error,
                Some(Ok(connection)) => match Box::pin(self.online(connection)).await {
                    End::Done => return ReplayEnd::Done,
                    End::Stop => return ReplayEnd::Stopped,
                    End::Outside => {
                        self.on = OnConnection::default();
                        continue;
                    }
                    End::Lost(error) => {
                        self.on = OnConnection::default();
                        error
                    }
                },
            };
            let (state, pause) = match error {
                LinkError::Misconfigured(_) => (LinkState::Misconfigured, self.common.timing.misconfigured_delay),
                LinkError::Transient(_) => (LinkState::BackingOff, self.backoff.next(rand::random())),
            };
            tracing::warn!(link = %self.common.link, replay = %self.replay.id, %error, next_try = ?pause, "a replay waits");
            self.show(state, Some(error.to_string()), Some(self.common.wall_in(pause)));
            self.keep(true).await;
            tokio::select! {
                () = self.common.token.cancelled() => return self.stopped().await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// `None`: told to stop.
    async fn connect(&mut self) -> Option<Result<S::Connection, LinkError>> {
        let timeout = self.common.timing.connect_timeout;
        let token = self.common.token.clone();
        tokio::select! {
            biased;
            () = token.cancelled() => None,
            made = tokio::time::timeout(timeout, self.sink.connect()) => Some(made.unwrap_or_else(|_elapsed| {
                Err(LinkError::Transient(format!("no connection within {timeout:?}")))
            })),
        }
    }

    async fn online(&mut self, mut connection: S::Connection) -> End {
        self.on = OnConnection::default();
        let most = (self.link_window / SHARE).clamp(1, WINDOW_MAX);
        self.window.set_limit(connection.window_max().map_or(most, |limit| limit.min(most)));
        let position = self.replay.progress.lock().position;
        self.replay.history.seek(Offset(position));
        self.show(LinkState::Online, None, None);
        loop {
            match self.turn(&mut connection).await {
                Ok(None) => {}
                Ok(Some(End::Done)) => {
                    self.keep(true).await;
                    self.say_good_bye(connection).await;
                    return End::Done;
                }
                Ok(Some(end)) => {
                    self.drain(&mut connection).await;
                    self.keep(true).await;
                    self.say_good_bye(connection).await;
                    return end;
                }
                Err(error) => return End::Lost(error),
            }
        }
    }

    /// Does all that can be done now, then waits for one event and applies it.
    async fn turn(&mut self, connection: &mut S::Connection) -> Result<Option<End>, LinkError> {
        if self.common.has_left_its_times(&mut self.on.active_look) {
            return Ok(Some(End::Outside));
        }
        self.rewind_if_due();
        self.look_at_live();
        self.fill(connection)?;
        self.note_position();
        self.keep_if_due().await;
        if self.is_done() {
            return Ok(if self.next_lane() { None } else { Some(End::Done) });
        }
        match self.next_event(connection).await {
            Event::Stop => return Ok(Some(End::Stop)),
            Event::Answer(answer) => self.answered(answer?),
            Event::Records(Ok(records)) => records.into_iter().for_each(|record| self.pick(record)),
            Event::Records(Err(error)) => {
                return Err(LinkError::Misconfigured(format!("the log cannot be read: {error}")));
            }
            Event::Look => self.on.queue_full = false,
        }
        self.check_stall()
    }

    async fn next_event(&mut self, connection: &mut S::Connection) -> Event {
        let history = &self.replay.history;
        let read = self.on.unsent.is_empty() && self.on.rewind.is_none() && history.position() < history.end();
        let read = read && self.room() > 0;
        let look = self.next_look();
        let (room, Self { replay, common, .. }) = (self.room(), self);
        tokio::select! {
            biased;
            () = common.token.cancelled() => Event::Stop,
            answer = connection.answer() => Event::Answer(answer),
            records = replay.history.next(room.max(1), READ_BYTES_MAX), if read => Event::Records(records),
            () = tokio::time::sleep_until(look) => Event::Look,
        }
    }

    fn next_look(&self) -> Instant {
        let now = self.common.now();
        let idle = now + if self.on.queue_full { QUEUE_FULL_PAUSE } else { KEEP_SYNC };
        let rewind = self.on.rewind.filter(|_| self.on.flight.open() == 0).map(|(_, after)| after);
        let paced = self.pace.due(now).filter(|_| !self.on.unsent.is_empty());
        let keep = self.changed.then_some(self.synced + KEEP_SYNC);
        let dues = [self.stall_due(), rewind, paced, keep, self.on.held_until];
        dues.into_iter().flatten().fold(idle, Instant::min)
    }

    fn stall_due(&self) -> Option<Instant> {
        let waiting = self.on.flight.open() > 0 && !self.on.blocked;
        let patience = self.sink.cut_after(self.common.timing.stall_after);
        self.on.progress.filter(|_| waiting).map(|progress| progress + patience)
    }

    fn check_stall(&mut self) -> Result<Option<End>, LinkError> {
        if self.stall_due().is_some_and(|due| due <= self.common.now()) {
            self.window.restart();
            let patience = self.common.timing.stall_after;
            return Err(LinkError::Transient(format!("connected, but no answer for {patience:?}")));
        }
        Ok(None)
    }

    // Sending.

    /// How many more records may be put on their way.
    fn room(&self) -> usize {
        let on = &self.on;
        let held = on.blocked || on.queue_full || on.rewind.is_some();
        if held || on.flight.bytes() >= FLIGHT_BYTES_MAX {
            return 0;
        }
        let one = self.refusals.is_suspicious() || self.live_behind;
        let size = if one { 1 } else { self.window.size() };
        size.saturating_sub(on.flight.span())
    }

    /// Live traffic goes first: while the link has more than two windows to send, one replayed record at a time is in flight.
    fn look_at_live(&mut self) {
        let now = self.common.now();
        if self.live_looked.is_some_and(|looked| now.duration_since(looked) < LOOK_AT_LIVE) {
            return;
        }
        self.live_looked = Some(now);
        let owed = usize::try_from(self.replay.target.ledger().buffered).unwrap_or(usize::MAX);
        self.live_behind = owed > self.link_window.saturating_mul(2);
    }

    fn pick(&mut self, record: Record) {
        let (offset, body) = (record.offset, record.body.clone());
        let picked = (self.replay.pick)(record);
        let mut progress = self.replay.progress.lock();
        let place = Place { lane: progress.lane, offset };
        let first_time = offset.0 >= progress.looked_at;
        progress.looked_at = progress.looked_at.max(offset.0 + 1);
        match picked {
            Picked::Send(envelope, expiry_left_s) => {
                let seq = format!("{}-{}-{}", self.replay.source_id, place.lane.number(), offset.0);
                let payload_bytes = u64::try_from(envelope.message.payload.len()).unwrap_or(u64::MAX);
                let outgoing =
                    Outgoing { place, seq, backfill: false, envelope: *envelope, expiry_left_s, expired_before: 0 };
                self.on.unsent.push_back(Ready { outgoing, payload_bytes, body });
            }
            Picked::PassedOver if first_time => progress.passed_over += 1,
            Picked::Expired if first_time => progress.expired += 1,
            Picked::Unsendable(reason) if first_time => {
                progress.unsendable += 1;
                drop(progress);
                self.not_sent(offset, &reason);
            }
            Picked::PassedOver | Picked::Expired | Picked::Unsendable(_) => {}
        }
    }

    fn fill(&mut self, connection: &mut S::Connection) -> Result<(), LinkError> {
        self.on.held_until = None;
        while self.room() > 0 && self.pace.due(self.common.now()).is_none() && !self.on.unsent.is_empty() {
            if let Some(wait) = self.pacer.wait() {
                self.on.held_until = Some(self.common.now() + wait);
                break;
            }
            let Some(ready) = self.on.unsent.pop_front() else { break };
            let Ready { outgoing, payload_bytes, body } = ready;
            let offset = outgoing.place.offset;
            match connection.send(outgoing)? {
                Sent::Queued => {
                    let now = self.common.now();
                    if self.on.flight.open() == 0 {
                        self.on.progress = Some(now);
                    }
                    self.pace.sent(now);
                    self.pacer.spend(u64::try_from(body.len()).unwrap_or(u64::MAX));
                    self.on.flight.push(InFlight::new(offset, body, payload_bytes));
                }
                Sent::Full(outgoing) => {
                    self.on.queue_full = true;
                    self.on.unsent.push_front(Ready { outgoing: *outgoing, payload_bytes, body });
                }
                Sent::Refused(reason) => {
                    self.replay.progress.lock().unsendable += 1;
                    self.not_sent(offset, &reason);
                }
            }
        }
        Ok(())
    }

    fn not_sent(&mut self, offset: Offset, reason: &str) {
        tracing::warn!(link = %self.common.link, replay = %self.replay.id, offset = offset.0, reason, "not replayed");
        self.show(self.common.board.state(), Some(format!("record {}: {reason}", offset.0)), None);
        self.changed = true;
    }

    // Answers.

    fn answered(&mut self, answer: Answer) {
        self.on.queue_full = false;
        self.on.progress = Some(self.common.now());
        match answer {
            Answer::Confirmed(place) => {
                let Some(offset) = self.of_this_lane(place) else { return };
                if self.on.flight.answer(offset, Fate::Delivered).is_some() {
                    self.refusals.confirmed();
                    self.window.confirmed();
                    if self.on.rewind.is_none() {
                        self.backoff.reset();
                    }
                    self.settle();
                }
            }
            Answer::Refused(place, reason) => {
                if let Some(offset) = self.of_this_lane(place) {
                    self.refused(offset, reason);
                }
            }
            Answer::Retry(place, reason) => {
                let Some(offset) = self.of_this_lane(place) else { return };
                if self.on.flight.answer(offset, Fate::Again).is_some() {
                    let pause = self.backoff.next(rand::random());
                    self.send_again_from(offset, pause, reason);
                }
            }
            Answer::Blocked(blocked) => self.on.blocked = blocked,
            Answer::Alive => {}
        }
    }

    /// What the lane before left open, it has answered for already.
    fn of_this_lane(&self, place: Place) -> Option<Offset> {
        (place.lane == self.replay.progress.lock().lane).then_some(place.offset)
    }

    fn refused(&mut self, offset: Offset, reason: String) {
        let fate = if self.refusals.is_suspicious() { Fate::Again } else { Fate::Elsewhere };
        if self.on.flight.answer(offset, fate).is_none() {
            return;
        }
        match self.refusals.refused() {
            Verdict::DeadLetter => {
                self.replay.progress.lock().refused += 1;
                self.not_sent(offset, &reason);
            }
            Verdict::Keep => self.send_again_from(offset, self.common.timing.misconfigured_delay, reason),
        }
        self.settle();
    }

    /// Counts what is confirmed with all before it.
    fn settle(&mut self) {
        while let Some(record) = self.on.flight.next_delivered() {
            let mut progress = self.replay.progress.lock();
            progress.replayed += 1;
            progress.bytes += record.payload_bytes;
            drop(progress);
            self.common.board.done(record.payload_bytes);
            self.unsaved += 1;
        }
    }

    fn send_again_from(&mut self, offset: Offset, pause: Duration, words: String) {
        let to = self.on.rewind.map_or(offset, |(to, _)| to.min(offset));
        self.window.restart();
        self.on.rewind = Some((to, self.common.now() + pause));
        self.show(LinkState::BackingOff, Some(words), Some(self.common.wall_in(pause)));
    }

    fn rewind_if_due(&mut self) {
        let now = self.common.now();
        let due = self.on.rewind.take_if(|(_, after)| *after <= now && self.on.flight.open() == 0);
        if let Some((to, _)) = due {
            self.on.flight.clear();
            self.on.unsent.clear();
            self.replay.history.seek(to);
            self.show(LinkState::Online, None, None);
        }
    }

    // The position.

    fn note_position(&mut self) {
        let on = &self.on;
        let open = [
            on.rewind.map(|(to, _)| to),
            on.flight.front(),
            on.unsent.front().map(|ready| ready.outgoing.place.offset),
        ];
        let position = open.into_iter().flatten().fold(self.replay.history.position(), Offset::min).0;
        let mut progress = self.replay.progress.lock();
        if position > progress.position {
            progress.position = position;
            self.changed = true;
        }
        self.common.board.set_in_flight(u64::try_from(on.flight.open()).unwrap_or(u64::MAX));
    }

    fn is_done(&self) -> bool {
        let (on, history) = (&self.on, &self.replay.history);
        let idle = on.unsent.is_empty() && on.rewind.is_none() && on.flight.front().is_none();
        idle && history.position() >= history.end()
    }

    /// A lane is done: on with the next. `false`: there is none.
    fn next_lane(&mut self) -> bool {
        let Some((lane, history)) = self.replay.later.pop_front() else { return false };
        let mut progress = self.replay.progress.lock();
        (progress.lane, progress.position, progress.looked_at) = (lane, history.position().0, 0);
        drop(progress);
        self.replay.history = history;
        self.on.flight.clear();
        self.changed = true;
        true
    }

    async fn keep_if_due(&mut self) {
        let sync = self.changed && self.common.now().duration_since(self.synced) >= KEEP_SYNC;
        let window = u64::try_from(self.window.limit()).unwrap_or(u64::MAX);
        if sync || self.unsaved >= window {
            self.keep(sync).await;
        }
    }

    async fn keep(&mut self, sync: bool) {
        let Some(mut keeper) = self.replay.keeper.take() else { return };
        let progress = *self.replay.progress.lock();
        // With the position, and not one by one: each wakes the log's writer.
        self.replay.target.count_replayed(std::mem::take(&mut self.unsaved));
        self.changed &= !sync;
        if sync {
            self.synced = self.common.now();
        }
        let kept = tokio::task::spawn_blocking(move || {
            let kept = keeper.keep(progress, sync);
            (keeper, kept)
        });
        let Ok((keeper, kept)) = kept.await else { return };
        self.replay.keeper = Some(keeper);
        if let Err(error) = kept {
            tracing::error!(replay = %self.replay.id, %error, "a replay's position was not saved; records may be sent again");
        }
    }

    // Ends.

    /// Takes the answers that still come, for a moment.
    async fn drain(&mut self, connection: &mut S::Connection) {
        let deadline = self.common.now() + STOP_WAIT;
        while self.on.flight.open() > 0 {
            match tokio::time::timeout_at(deadline, connection.answer()).await {
                Ok(Ok(answer)) => self.answered(answer),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.note_position();
    }

    async fn say_good_bye(&self, connection: S::Connection) {
        if tokio::time::timeout(CLOSE_WAIT, connection.close()).await.is_err() {
            tracing::debug!(link = %self.common.link, "the remote did not take our good-bye");
        }
    }

    async fn stopped(&mut self) -> ReplayEnd {
        self.keep(true).await;
        ReplayEnd::Stopped
    }

    fn show(&self, state: LinkState, words: Option<String>, next_try_ms: Option<u64>) {
        self.common.board.enter(state, words, next_try_ms, self.common.clock.wall());
    }
}
