//! Everything that the broker keeps by key: sessions, subscriptions, retained messages, what kept sessions are owed,
//! inbound QoS 2 exchanges, which messages of other gateways have come, what samples hold. The one module behind which that state lives (DESIGN.md section 10), on SQLite.
//!
//! **Why SQLite.** Measured on this pattern, many small group commits (`docs`: the table of the buffer's evidence): 7 MB
//! of memory, 69–84k messages/s at batches of 16, 4 ms to open with ten million rows after a kill. redb writes eleven
//! times what it stores and needs 1 GB at open; fjall holds 157 MB. Memory and start-up decide on an edge machine.
//! What SQLite does not give is a checksum of its rows, so each body carries one (`codec`).
//!
//! **Group commit.** Whoever changes state stages a *unit*, all operations of one delivery, under a short lock
//! ([`Store::stage`]). One thread takes all that is staged, applies it in one transaction (WAL, `synchronous=FULL`) and
//! moves a [`MarkSender`]: a unit's number is the position that its publisher's receipt waits for. A commit that fails is
//! tried once more; then the mark fails, and with it everything that waits for the store now or later.
//!
//! **A full disk** is no failure (R4). The store gives up its `reserve`, a file of 8 MiB beside it: what was accepted commits, and
//! what sessions are owed goes on being delivered and settled, while [`Unit::has_room`] says no to everything new. Settled rows
//! give their pages back to the disk; when there is room the reserve is made anew, and the store takes all again. Only if the
//! reserve does not suffice does what is staged wait, tried again until there is room.
//!
//! **Invariants.**
//! - Units commit in the order of staging, each wholly or not at all.
//! - A sequence number is given out inside `stage`, so a row becomes visible no later than any row with a higher number.
//! - A read that is asked for sees everything that was staged before it.
//! - One row that does not read back is skipped, counted and logged; a file that is no database is moved aside.
//!   Neither keeps the broker from starting.
//!
//! It knows nothing of packets, connections and subscriptions' meaning: it must not name `wire`, `session` or tokio's
//! network.

mod apply;
mod codec;
mod load;
mod reserve;
mod schema;
#[cfg(test)]
mod tests;
mod thread;

pub(super) use load::{Loaded, OwedRow, SessionRow, SubscriptionRow};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use self::reserve::Reserve;
use crate::hub::{HeldRow, KeptChanges, Mark, MarkSender, Watcher};
use crate::message::{Message, Qos};
use crate::telemetry::board::BrokerBoard;

/// What may wait for the thread, in bytes of bodies: beyond it deliveries that must be stored are refused, so that a disk
/// that hangs does not fill the memory. At 100 µs a commit it is never seen.
const STAGED_BYTES_MAX: usize = 64 << 20;

/// The same, in operations.
const STAGED_OPS_MAX: usize = 200_000;

/// A session's number: what all rows refer to. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// One change. A body is what [`encode_body`] made.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Inserts or replaces a session's own row.
    Session(Box<SessionRow>),
    /// Removes a session and all that is kept for it.
    SessionGone(SessionId),
    /// Inserts or replaces a subscription.
    Subscribe(SessionId, SubscriptionRow),
    /// Removes one.
    Unsubscribe(SessionId, Arc<str>),
    /// Sets a topic's retained message.
    Retain(Arc<str>, Bytes),
    /// Clears it.
    Unretain(Arc<str>),
    /// A message owed to a session.
    Owe(OweOp),
    /// It got its packet id and is about to be sent.
    Assign(u64, u16),
    /// Its PUBREC came.
    Received(u64),
    /// It is delivered, or dropped.
    Settle(u64),
    /// Drops the oldest messages owed to a session that have no packet id yet: one, and as many as make so many bytes.
    DropOldest(SessionId, u64, Arc<Dropped>),
    /// An inbound QoS 2 exchange begins: the message is delivered locally, and links may still lack it (R18). The text is
    /// [`crate::hub::Tails::encode`]'s.
    Inbound(SessionId, u16, Bytes, String),
    /// It is durable everywhere; PUBREC goes.
    InboundFinished(SessionId, u16),
    /// PUBREL came, or the exchange ended with an error.
    InboundGone(SessionId, u16),
    /// What is known of messages that have come (R12).
    Copies(Box<KeptChanges>),
    /// What a sample holds of a topic, and the id of what gave way to it.
    Hold(Box<HeldRow>, Option<String>),
    /// It has gone; route, topic, id.
    Unhold(Arc<str>, Arc<str>, String),
}

/// See [`Op::Owe`].
#[derive(Clone, Debug)]
pub(super) struct OweOp {
    /// The row's number, from [`Unit::next_seq`].
    pub(super) seq: u64,
    /// To whom.
    pub(super) session: SessionId,
    /// To deliver with.
    pub(super) qos: Qos,
    /// To deliver with.
    pub(super) retain: bool,
    /// Subscription identifiers.
    pub(super) ids: Vec<u32>,
    /// If it goes out at once.
    pub(super) packet_id: Option<u16>,
    /// The shared subscription that brought it, as its client wrote it.
    pub(super) share: Option<Arc<str>>,
    /// What it counts for in the session's limit of bytes.
    pub(super) bytes: u64,
    /// To deliver on.
    pub(super) topic: Arc<str>,
    /// The message.
    pub(super) body: Bytes,
    /// The row that it takes the place of: a body which that shares with others, it shares.
    pub(super) of: Option<u64>,
}

/// Where the store says what it dropped, once that is committed.
#[derive(Debug)]
pub(super) struct Dropped {
    board: Arc<BrokerBoard>,
    done: Mutex<DroppedRows>,
}

/// See [`Dropped`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DroppedRows {
    /// How often it was asked.
    pub(super) asks: u64,
    /// For how many bytes in all.
    pub(super) asked_bytes: u64,
    /// What went.
    pub(super) rows: u64,
    /// What that had counted for.
    pub(super) bytes: u64,
}

impl Dropped {
    pub(super) fn new(board: Arc<BrokerBoard>) -> Self {
        Self { board, done: Mutex::default() }
    }

    /// One request is done.
    pub(super) fn report(&self, asked_bytes: u64, rows: u64, bytes: u64) {
        self.board.dropped_many("session_full", rows);
        let mut done = self.done.lock();
        done.asks += 1;
        done.asked_bytes = done.asked_bytes.saturating_add(asked_bytes);
        done.rows += rows;
        done.bytes += bytes;
    }

    /// What was done since the last time.
    pub(super) fn take(&self) -> DroppedRows {
        std::mem::take(&mut self.done.lock())
    }
}

/// What is owed, in order, from a point on.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The rows that read back.
    pub(super) rows: Vec<OwedRow>,
    /// The numbers of those that did not, and what each counts for in bytes.
    pub(super) damaged: Vec<(u64, u64)>,
    /// The highest number looked at, damaged rows included; the next page begins behind it.
    pub(super) last: Option<u64>,
    /// Whether there may be more.
    pub(super) more: bool,
}

/// Why the store is not there.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or folder cannot be used.
    #[error("the broker's store {path} cannot be opened: {source}; the folder must exist and be writable")]
    Open {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Written by a later program (R36).
    #[error("the broker's store {path} has format {found}; this program reads up to {known}: start the newer program")]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The thread cannot be started.
    #[error("the broker's store thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Makes the bytes of a message that [`Op`]s carry: once for all rows.
pub(super) fn encode_body(message: &Message) -> Bytes {
    codec::seal(&message.encode())
}

/// Why the store takes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It lives on its reserve, and takes all again by itself.
    #[error("the broker's store takes nothing new: its disk is full; what it has goes on")]
    OnReserve,
    /// The reserve is used up: it waits for room, and goes on by itself.
    #[error("the broker's store waits: its disk is full")]
    Full,
    /// Until the gateway is started anew.
    #[error("{0}")]
    Failed(Arc<str>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    staged: Mutex<Staged>,
    wake: Condvar,
    mark: MarkSender,
}

/// What the disk has left for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Room {
    /// Enough.
    #[default]
    Enough,
    /// The reserve is given up: for what there is, for nothing new.
    Reserve,
    /// Nothing: what is staged waits.
    Nothing,
}

#[derive(Debug, Default)]
struct Staged {
    /// The number of the next unit.
    next_unit: u64,
    next_seq: u64,
    ops: Vec<Op>,
    bytes: usize,
    reads: Vec<Read>,
    room: Room,
    closing: bool,
    /// The thread waits: it does not commit, and does not keep house either.
    #[cfg(test)]
    is_idle: bool,
    /// A test says that there is no room.
    #[cfg(test)]
    is_full: bool,
}

#[derive(Debug)]
struct Read {
    session: SessionId,
    what: What,
    answer: oneshot::Sender<Page>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Everything with a packet id.
    InFlight,
    /// Without one, behind a number, at most so many.
    Waiting(u64, usize),
    /// What another member of a shared subscription may get, at most so many.
    Shared(usize),
}

/// A unit being staged.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    staged: &'a mut Staged,
    /// What the last row had: the next one of the same message holds no more of it, neither in memory nor on the disk.
    body: Option<Bytes>,
    /// Where its operations begin.
    begin: usize,
}

impl Unit<'_> {
    /// Adds an operation.
    pub(super) fn push(&mut self, op: Op) {
        // What every operation costs besides its body, about.
        self.staged.bytes += 64;
        if let Op::Owe(OweOp { body, .. }) | Op::Retain(_, body) | Op::Inbound(_, _, body, _) = &op
            && !self.body.as_ref().is_some_and(|last| apply::is_same(last, body))
        {
            self.staged.bytes += body.len();
            self.body = Some(body.clone());
        }
        if let Op::Owe(OweOp { ids, .. }) = &op {
            self.staged.bytes += size_of_val(&**ids);
        }
        if let Op::Copies(changes) = &op {
            self.staged.bytes += changes.pages.iter().map(|page| page.bits.len()).sum::<usize>();
        }
        if let Op::Hold(row, _) = &op {
            self.staged.bytes += row.body.len();
        }
        self.staged.ops.push(op);
    }

    /// The row that was added takes the place of the row `of`, which is to be settled behind it.
    pub(super) fn moves(&mut self, of: u64) {
        if let Some(Op::Owe(row)) = self.staged.ops.get_mut(self.begin..).and_then(<[Op]>::last_mut) {
            row.of = Some(of);
        }
    }

    /// The number of the next row owed.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.staged.next_seq += 1;
        self.staged.next_seq
    }

    /// The position that is durable when this unit is.
    pub(super) fn position(&self) -> u64 {
        self.staged.next_unit
    }

    /// Whether there is room for more that must be stored.
    pub(super) fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    /// The same, for so many operations at once. What is more than all of the room waits until it can have that.
    pub(super) fn has_room_for(&self, ops: usize) -> bool {
        #[cfg(test)]
        if self.staged.is_full {
            return false;
        }
        self.staged.room == Room::Enough
            && self.staged.bytes < STAGED_BYTES_MAX
            && (self.staged.ops.is_empty() || self.staged.ops.len() + ops <= STAGED_OPS_MAX)
    }
}

impl Store {
    /// Opens or makes the store in `dir`, and reads what the broker needs at start: all but what sessions are owed.
    pub(super) fn open(dir: &Path) -> Result<(Self, Loaded), StoreError> {
        let mut reserve = Reserve::beside(dir);
        let connection = open_database(dir, &mut reserve)?;
        let loaded = load::all(&connection);
        let room = if reserve.make() { Room::Enough } else { Room::Reserve };
        if room == Room::Reserve {
            tracing::error!(
                "the disk has no room for the reserve of the broker's store: it takes nothing new until it has"
            );
        }
        let shared = Arc::new(Shared {
            staged: Mutex::new(Staged { next_seq: loaded.last_seq, room, ..Staged::default() }),
            wake: Condvar::new(),
            mark: MarkSender::new(0),
        });
        let keeper = thread::Keeper::new(Arc::clone(&shared), connection, reserve);
        let thread = std::thread::Builder::new()
            .name("broker-store".into())
            .spawn(move || keeper.run())
            .map_err(StoreError::Thread)?;
        Ok((Self { shared, thread: Mutex::new(Some(thread)) }, loaded))
    }

    /// Stages what `fill` adds as one unit. The answer holds its position, or `None` if nothing was added.
    ///
    /// Lock order: this lock comes before any session's. `fill` must not wait.
    pub(super) fn stage<R>(&self, fill: impl FnOnce(&mut Unit<'_>) -> R) -> (R, Option<u64>) {
        let mut staged = self.shared.staged.lock();
        let before = staged.ops.len();
        let answer = fill(&mut Unit { staged: &mut staged, body: None, begin: before });
        if staged.ops.len() == before {
            return (answer, None);
        }
        let position = staged.next_unit;
        staged.next_unit += 1;
        if before == 0 {
            self.shared.wake.notify_one();
        }
        (answer, Some(position))
    }

    /// Stages one operation; its position.
    pub(super) fn stage_one(&self, op: Op) -> u64 {
        self.stage(|unit| {
            let position = unit.position();
            unit.push(op);
            position
        })
        .0
    }

    /// The position of what was staged last, if anything was.
    pub(super) fn last_staged(&self) -> Option<u64> {
        self.shared.staged.lock().next_unit.checked_sub(1)
    }

    /// What has been committed.
    pub(super) fn mark(&self) -> Mark {
        self.shared.mark.mark()
    }

    /// The same, for one who follows it.
    pub(super) fn watch(&self) -> Watcher {
        self.shared.mark.watch()
    }

    /// The first position that is not durable yet.
    pub(super) fn durable(&self) -> u64 {
        self.shared.mark.done()
    }

    /// Whether the store has failed for good.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.mark.progress().failed.is_some()
    }

    /// Why what must be stored is refused, if it is: in words for people.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        if let Some(reason) = self.shared.mark.progress().failed {
            return Some(Trouble::Failed(reason));
        }
        match self.shared.staged.lock().room {
            Room::Enough => None,
            Room::Reserve => Some(Trouble::OnReserve),
            Room::Nothing => Some(Trouble::Full),
        }
    }

    /// Whether there is room for more that must be stored.
    pub(super) fn has_room(&self) -> bool {
        Unit { staged: &mut self.shared.staged.lock(), body: None, begin: 0 }.has_room()
    }

    /// Asks for what a session has in flight: rows with a packet id, oldest first.
    pub(super) fn in_flight(&self, session: SessionId) -> oneshot::Receiver<Page> {
        self.read(session, What::InFlight)
    }

    /// Asks for at most `count` rows without a packet id, numbered above `after`, oldest first; fewer where they are large.
    pub(super) fn waiting(&self, session: SessionId, after: u64, count: usize) -> oneshot::Receiver<Page> {
        self.read(session, What::Waiting(after, count))
    }

    /// Asks for at most `count` rows that another member of a shared subscription may get, oldest first.
    pub(super) fn shared(&self, session: SessionId, count: usize) -> oneshot::Receiver<Page> {
        self.read(session, What::Shared(count))
    }

    fn read(&self, session: SessionId, what: What) -> oneshot::Receiver<Page> {
        let (answer, receiver) = oneshot::channel();
        let mut staged = self.shared.staged.lock();
        staged.reads.push(Read { session, what, answer });
        self.shared.wake.notify_one();
        receiver
    }

    /// Waits until the thread has committed, and read, all that it was asked for so far.
    pub(super) async fn caught_up(&self) {
        // A read sees what was staged before it, and reads are answered in their order. There is no such session.
        let _nothing = self.in_flight(SessionId(u64::MAX >> 1)).await;
    }

    /// Runs `look` at a moment when nothing writes to the files, not even to give pages back: what a SIGKILL would leave then.
    #[cfg(test)]
    pub(super) fn frozen<R>(&self, look: impl Fn() -> R) -> R {
        loop {
            let staged = self.shared.staged.lock();
            if staged.is_idle && self.shared.mark.progress().done == staged.next_unit {
                return look();
            }
            drop(staged);
            std::thread::yield_now();
        }
    }

    /// As if as much were staged as may be; or not any more.
    #[cfg(test)]
    pub(super) fn fill(&self, is_full: bool) {
        self.shared.staged.lock().is_full = is_full;
    }

    /// Commits what is staged and ends the thread. Blocks until then; called a second time it does nothing.
    pub(super) fn close(&self) {
        self.shared.staged.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the broker's store thread panicked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// A disk that is full to the last byte keeps SQLite from opening its files: that is what the reserve is for.
fn open_database(dir: &Path, reserve: &mut Reserve) -> Result<rusqlite::Connection, StoreError> {
    match schema::open(dir) {
        Err(StoreError::Open { source, .. }) if thread::is_no_space(&source) && reserve.give_up() => schema::open(dir),
        other => other,
    }
}
