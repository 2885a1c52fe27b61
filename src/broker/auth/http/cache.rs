//! Answers that are remembered for a while, so that a site whose machines all reconnect does not ask for each of them.
//!
//! What was asked is kept as a keyed hash, under a key that lives as long as the process: no password can be read, or
//! guessed, from memory. Yes and no have rooms of their own: a flood of wrong passwords pushes out no right one.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::hmac;

use super::Answer;
use crate::clock::WallMs;

/// Answers of one kind that are remembered at most: as many as there are connections.
const ANSWERS_MAX: usize = 10_000;

/// A question's hash.
pub(super) type QuestionKey = [u8; 32];

/// See the module.
pub(super) struct Cache {
    keep: Duration,
    salt: hmac::Key,
    rooms: Mutex<Rooms>,
}

#[derive(Default)]
struct Rooms {
    yes: HashMap<QuestionKey, (Answer, Instant)>,
    no: HashMap<QuestionKey, (Answer, Instant)>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl Cache {
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
    pub(super) fn get(&self, key: &QuestionKey, now: Instant, wall: WallMs) -> Option<Answer> {
        let rooms = self.rooms.lock();
        let (answer, since) = rooms.yes.get(key).or_else(|| rooms.no.get(key))?;
        let is_over = match answer {
            Answer::Allow(grant) => grant.expires.is_some_and(|expires| wall >= expires),
            Answer::Unknown | Answer::Deny(_) | Answer::Away(_) => false,
        };
        (!is_over && now.saturating_duration_since(*since) < self.keep).then(|| answer.clone())
    }

    /// Remembers an answer that decides.
    pub(super) fn put(&self, key: QuestionKey, answer: &Answer, now: Instant) {
        let mut rooms = self.rooms.lock();
        let rooms = &mut *rooms;
        let (room, other) = match answer {
            Answer::Away(_) => return,
            Answer::Allow(_) => (&mut rooms.yes, &mut rooms.no),
            Answer::Unknown | Answer::Deny(_) => (&mut rooms.no, &mut rooms.yes),
        };
        other.remove(&key);
        if room.len() >= ANSWERS_MAX {
            room.retain(|_, (_, since)| now.saturating_duration_since(*since) < self.keep);
        }
        if room.len() >= ANSWERS_MAX {
            // Any: the order of a map with a random seed is nobody's to choose.
            let gone = room.keys().next().copied();
            gone.and_then(|gone| room.remove(&gone));
        }
        room.insert(key, (answer.clone(), now));
    }

    /// Answers that are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let rooms = self.rooms.lock();
        rooms.yes.len() + rooms.no.len()
    }
}
