//! What a program or a directory said of a login, remembered for a while: so a site whose machines all reconnect does not ask for
//! each of them.
//!
//! What was asked is kept as a keyed hash, under a key that lives as long as the process: no password can be read, or
//! guessed, from memory. Yes and no have rooms of their own: a flood of wrong passwords pushes out no right one.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::hmac;

use crate::clock::WallMs;

/// Answers of one kind that are remembered at most: as many as there are connections.
const ANSWERS_MAX: usize = 10_000;

/// Bytes of answers of one kind that are remembered at most: rules for each client may be long.
const ANSWERS_BYTES_MAX: usize = 32 << 20;

/// What an answer costs beside what it says.
const ANSWER_BYTES: usize = 256;

/// What is remembered of a login.
pub(super) trait Remembered: Clone {
    /// Whether it is a yes; `None`: nobody could be asked, which is not remembered.
    fn is_yes(&self) -> Option<bool>;

    /// Whether it does not hold any more at `wall`.
    fn is_over(&self, wall: WallMs) -> bool;

    /// Bytes of what it says, beside itself.
    fn bytes(&self) -> usize;
}

/// A question's hash.
pub(super) type QuestionKey = [u8; 32];

/// See the module.
pub(super) struct Cache<A> {
    keep: Duration,
    salt: hmac::Key,
    rooms: Mutex<Rooms<A>>,
}

struct Rooms<A> {
    yes: Room<A>,
    no: Room<A>,
}

/// Answers of one kind.
struct Room<A> {
    known: HashMap<QuestionKey, Known<A>>,
    bytes: usize,
}

struct Known<A> {
    answer: A,
    since: Instant,
    bytes: usize,
}

impl<A> Default for Rooms<A> {
    fn default() -> Self {
        let room = || Room { known: HashMap::new(), bytes: 0 };
        Self { yes: room(), no: room() }
    }
}

impl<A: Remembered> Room<A> {
    fn has_room(&self, bytes: usize) -> bool {
        self.known.len() < ANSWERS_MAX && self.bytes + bytes <= ANSWERS_BYTES_MAX
    }

    fn forget(&mut self, key: &QuestionKey) {
        self.bytes -= self.known.remove(key).map_or(0, |known| known.bytes);
    }

    fn put(&mut self, key: QuestionKey, answer: &A, now: Instant, keep: Duration) {
        self.forget(&key);
        let bytes = answer.bytes() + ANSWER_BYTES;
        if !self.has_room(bytes) {
            self.known.retain(|_, known| now.saturating_duration_since(known.since) < keep);
            self.bytes = self.known.values().map(|known| known.bytes).sum();
        }
        while !self.has_room(bytes) {
            // Any: the order of a map with a random seed is nobody's to choose.
            let Some(gone) = self.known.keys().next().copied() else { return };
            self.forget(&gone);
        }
        self.bytes += bytes;
        self.known.insert(key, Known { answer: answer.clone(), since: now, bytes });
    }
}

impl<A> fmt::Debug for Cache<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl<A: Remembered> Cache<A> {
    /// Zero: nothing is remembered.
    pub(super) fn new(keep: Duration) -> Self {
        let salt = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>());
        Self { keep, salt, rooms: Mutex::default() }
    }

    /// The hash of a question; `None` where nothing is remembered.
    pub(super) fn key(&self, question: &[u8]) -> Option<QuestionKey> {
        if self.keep.is_zero() {
            return None;
        }
        let mut key = [0; 32];
        key.copy_from_slice(hmac::sign(&self.salt, question).as_ref());
        Some(key)
    }

    /// What was answered, if that still holds.
    pub(super) fn get(&self, key: &QuestionKey, now: Instant, wall: WallMs) -> Option<A> {
        let rooms = self.rooms.lock();
        let Known { answer, since, .. } = rooms.yes.known.get(key).or_else(|| rooms.no.known.get(key))?;
        (!answer.is_over(wall) && now.saturating_duration_since(*since) < self.keep).then(|| answer.clone())
    }

    /// Remembers an answer that decides.
    pub(super) fn put(&self, key: QuestionKey, answer: &A, now: Instant) {
        let Some(is_yes) = answer.is_yes() else { return };
        let mut rooms = self.rooms.lock();
        let rooms = &mut *rooms;
        let (room, other) = if is_yes { (&mut rooms.yes, &mut rooms.no) } else { (&mut rooms.no, &mut rooms.yes) };
        other.forget(&key);
        room.put(key, answer, now, self.keep);
    }

    /// What the answers count for that are held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let rooms = self.rooms.lock();
        rooms.yes.bytes + rooms.no.bytes
    }

    /// Answers that are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let rooms = self.rooms.lock();
        rooms.yes.known.len() + rooms.no.known.len()
    }
}
