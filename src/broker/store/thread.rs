//! The store's thread: takes all that is staged, commits it, moves the mark, answers reads, and keeps house meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::reserve::{RESERVE, Reserve};
use super::schema::{self, Kept};
use super::{Op, Read, Room, Shared, What, apply, load};
use crate::clock;
use crate::units::ByteSize;

/// How often a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(250);
/// How long after a commit free pages are looked for, so that a busy store does so once in that time.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// Pages that are given back to the disk at once: 1 MiB, some milliseconds.
const TIDIED_PAGES: i64 = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    connection: Connection,
    reserve: Reserve,
    /// When to keep house; `None`: nothing to do.
    tidy_at: Option<Instant>,
}

/// What was staged.
struct Taken {
    ops: Vec<Op>,
    reads: Vec<Read>,
    /// The first unit that is not part of it.
    upto: u64,
    closing: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, connection: Connection, reserve: Reserve) -> Self {
        Self { shared, connection, reserve, tidy_at: Some(clock::now() + TIDY_AFTER) }
    }

    /// Until the store is closed.
    pub(super) fn run(mut self) {
        loop {
            let Taken { ops, reads, upto, closing } = self.take();
            if !ops.is_empty() && self.shared.mark.progress().failed.is_none() {
                match self.commit(&ops) {
                    Ok(()) => self.shared.mark.advance(upto),
                    Err(error) => self.fail(&error),
                }
            }
            reads.into_iter().for_each(|read| self.answer(read));
            if closing {
                schema::finish(&self.connection);
                return;
            }
            if self.tidy_at.is_some_and(|at| at <= clock::now()) {
                self.tidy();
            }
        }
    }

    /// Waits for something to do.
    fn take(&self) -> Taken {
        let mut staged = self.shared.staged.lock();
        #[cfg(test)]
        {
            staged.is_idle = true;
        }
        while staged.ops.is_empty() && staged.reads.is_empty() && !staged.closing {
            match self.tidy_at {
                None => self.shared.wake.wait(&mut staged),
                Some(at) if self.shared.wake.wait_until(&mut staged, at).timed_out() => break,
                Some(_) => {}
            }
        }
        #[cfg(test)]
        {
            staged.is_idle = false;
        }
        staged.bytes = 0;
        Taken {
            ops: std::mem::take(&mut staged.ops),
            reads: std::mem::take(&mut staged.reads),
            upto: staged.next_unit,
            closing: staged.closing,
        }
    }

    /// Commits, out of the reserve where the disk is full, and however long that is. Only the end of the store cuts it short.
    fn commit(&mut self, ops: &[Op]) -> rusqlite::Result<()> {
        loop {
            let done = commit_twice(&mut self.connection, ops);
            if !done.as_ref().is_err_and(is_no_space) {
                if self.set_room(Room::Nothing, Room::Reserve) {
                    tracing::info!("the broker's store goes on with what it has");
                }
                self.tidy_at.get_or_insert_with(|| clock::now() + TIDY_AFTER);
                return done;
            }
            if self.reserve.give_up() {
                self.live_on_reserve();
                continue;
            }
            if self.set_room(Room::Reserve, Room::Nothing) {
                tracing::error!(
                    "the disk is full, and the reserve of the broker's store used up: the broker's store waits"
                );
            }
            if self.pause() {
                return done;
            }
        }
    }

    fn live_on_reserve(&mut self) {
        self.set_room(Room::Enough, Room::Reserve);
        tracing::error!(
            reserve = %ByteSize(RESERVE),
            "the disk is full: the broker's store lives on its reserve; QoS 1 and 2 publishers that need it are refused, what sessions are owed goes on"
        );
        // The log's own room is used anew from its beginning, before it grows into what was set free.
        if let Err(error) = schema::checkpoint(&self.connection) {
            tracing::warn!(%error, "the broker's store could not be checkpointed");
        }
        self.tidy_at = Some(clock::now() + FULL_PAUSE);
    }

    /// Whether it was `from`, and is `to` now.
    fn set_room(&self, from: Room, to: Room) -> bool {
        let mut staged = self.shared.staged.lock();
        let changes = staged.room == from;
        if changes {
            staged.room = to;
        }
        changes
    }

    /// Waits a moment. Answers whether the store is closing.
    fn pause(&self) -> bool {
        let until = clock::now() + FULL_PAUSE;
        let mut staged = self.shared.staged.lock();
        while !staged.closing && !self.shared.wake.wait_until(&mut staged, until).timed_out() {}
        staged.closing
    }

    fn fail(&self, error: &rusqlite::Error) {
        tracing::error!(%error, "the broker's store cannot commit: QoS 1 and 2 publishers are refused from now on");
        self.shared.mark.fail(&format!("the broker's store cannot commit: {error}"));
    }

    fn answer(&self, read: Read) {
        let page = match read.what {
            What::InFlight => load::in_flight(&self.connection, read.session),
            What::Waiting(after, count) => load::waiting(&self.connection, read.session, after, count),
            What::Shared(count) => load::shared(&self.connection, read.session, count),
        };
        match page {
            // The connection that asked may be gone.
            Ok(page) => drop(read.answer.send(page)),
            Err(error) => tracing::error!(%error, "messages owed to a session cannot be read"),
        }
    }

    /// Gives free pages back to the disk, and makes the reserve anew when there is room for it.
    fn tidy(&mut self) {
        let kept = if self.reserve.is_held() { Kept::ForReuse } else { Kept::Nothing };
        let more = schema::give_back(&self.connection, kept, TIDIED_PAGES).and_then(|more| {
            if kept == Kept::Nothing {
                schema::checkpoint(&self.connection)?;
            }
            Ok(more)
        });
        let more = more.unwrap_or_else(|error| {
            tracing::warn!(%error, "the broker's store could not give free pages back to the disk");
            false
        });
        if !self.reserve.is_held() && self.reserve.make() {
            self.set_room(Room::Reserve, Room::Enough);
            tracing::info!("the disk has room again: the broker's store takes all");
        }
        self.tidy_at = match (self.reserve.is_held(), more) {
            (false, _) => Some(clock::now() + FULL_PAUSE),
            (true, true) => Some(clock::now() + TIDY_AFTER),
            (true, false) => None,
        };
    }
}

/// SQLite has two words for it: the second where its shared index cannot grow.
pub(super) fn is_no_space(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}

fn commit_twice(connection: &mut Connection, ops: &[Op]) -> rusqlite::Result<()> {
    let once = apply::commit(connection, ops);
    match once {
        Err(error) if !is_no_space(&error) => {
            tracing::warn!(%error, "the broker's store could not commit; trying once more");
            apply::commit(connection, ops)
        }
        other => other,
    }
}
