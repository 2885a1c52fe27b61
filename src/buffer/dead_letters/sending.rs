//! What the operator does with a letter: send it again, or drop it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::super::scan::FrameScan;
use super::super::state::{Shared, Verdict};
use super::super::storage::Storage;
use super::super::{Buffer, Offset, Permit, Refused, WhenFull};
use super::row::Fate;
use super::{DeadLetter, DeadLetters};
use crate::buffer::format::decode_record;

/// The cursor is synced each second while it changes; one that takes longer than this is not saved at all.
const CURSOR_SAVED_WITHIN: Duration = Duration::from_secs(10);

/// Why a letter was not sent again, or not dropped. It is where it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No such letter.
    #[error("there is no dead letter {0}")]
    NotThere(u64),
    /// The cursor has not passed its record, or that is not saved yet: after a kill the record would be refused once more.
    #[error("letter {0} is not settled yet: records before it are still owed; try again when they are delivered")]
    NotSettled(u64),
    /// The buffer has no room for it.
    #[error("the buffer is full: letter {0} stays; try again when there is room")]
    Full(u64),
    /// It does not read back.
    #[error("letter {0} cannot be read: {1}; it stays, and can be dropped")]
    Damaged(u64, Arc<str>),
    /// The log or the dead-letter log cannot be written.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Buffer {
    /// Sends a letter again: its record is appended to the log, durable when this returns, and is owed once more (R7); it
    /// arrives late (R10), and does not expire any more, since somebody decided that it is worth sending. Answers its new offset.
    /// Once begun it should be awaited to its end: what is dropped in between is finished by the next start.
    ///
    /// # Errors
    /// [`SendError`]: the letter stays.
    pub async fn send_letter(&self, id: Offset) -> Result<Offset, SendError> {
        let letters = &self.inner.dead_letters;
        let _one_at_a_time = letters.sending.lock().await;
        let letter = letters.with(move |letters| Ok(letters.get(id).map_err(|error| error.to_string()))).await?;
        let letter =
            letter.map_err(|error| SendError::Damaged(id.0, error.into()))?.ok_or(SendError::NotThere(id.0))?;
        let closing = || SendError::Refused(Refused::Closed);
        letters.closing.run_until_cancelled(self.is_settled(id)).await.ok_or_else(closing)??;
        let room =
            letters.closing.run_until_cancelled(self.room_for(letter.body.len())).await.ok_or_else(closing)??;
        let permit = room.ok_or(SendError::Full(id.0))?;
        let from = self.inner.shared.state.lock().next;
        letters.with(move |letters| letters.note(Fate::Sending { letter: id, from })).await?;
        let offset = self.append(permit, &[&letter.body], None);
        // Where it does not pass, whether it is in the log is not known here; the next start looks.
        let passed = letters.closing.run_until_cancelled(self.mark().passed(offset.0)).await.ok_or_else(closing)?;
        passed.map_err(|rejected| SendError::Refused(Refused::Failed(rejected.0)))?;
        let shared = Arc::clone(&self.inner.shared);
        letters
            .with(move |letters| {
                letters.note(Fate::Sent { letter: id, offset: offset.0 })?;
                shared.account_sent(letters.index.sent);
                Ok(())
            })
            .await?;
        Ok(offset)
    }

    /// Drops a letter for good: counted, and its record stays in `dead_lettered`.
    ///
    /// # Errors
    /// [`SendError`]: the letter stays.
    pub async fn drop_letter(&self, id: Offset) -> Result<(), SendError> {
        let letters = &self.inner.dead_letters;
        let _one_at_a_time = letters.sending.lock().await;
        if !letters.offsets().contains(&id) {
            return Err(SendError::NotThere(id.0));
        }
        let closing = || SendError::Refused(Refused::Closed);
        letters.closing.run_until_cancelled(self.is_settled(id)).await.ok_or_else(closing)??;
        letters.with(move |letters| letters.note(Fate::Dropped { letter: id })).await?;
        Ok(())
    }

    /// Waits until the synced cursor has passed `id`: before, a kill would bring the record, and so the letter, back.
    pub(super) async fn is_settled(&self, id: Offset) -> Result<(), SendError> {
        let shared = &self.inner.shared;
        if !shared.state.lock().tracker.has_passed(id.0) {
            return Err(SendError::NotSettled(id.0));
        }
        let mut saved = shared.saved.subscribe();
        let waited =
            tokio::time::timeout(CURSOR_SAVED_WITHIN, saved.wait_for(|passed| passed.covers(id.0, id.0 + 1))).await;
        match waited {
            Ok(Ok(_passed)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(SendError::NotSettled(id.0)),
        }
    }

    /// Room for a letter. It waits for the writer, and never makes room by dropping records. `None`: full.
    async fn room_for(&self, bytes: usize) -> Result<Option<Permit>, SendError> {
        let shared = &self.inner.shared;
        let mut room = shared.room.subscribe();
        loop {
            match shared.judge_by(WhenFull::Reject, bytes) {
                Verdict::Granted(need) => return Ok(Some(Permit { shared: Some(Arc::clone(shared)), need })),
                Verdict::DroppedNewest | Verdict::Refused(Refused::Full) => return Ok(None),
                Verdict::Refused(refused) => return Err(SendError::Refused(refused)),
                Verdict::Wait => {}
            }
            if room.changed().await.is_err() {
                return Err(SendError::Refused(Refused::Closed));
            }
        }
    }
}

impl DeadLetters {
    /// At the start: finishes or takes back what a kill interrupted, and lets the ledger know what was sent again.
    pub(in crate::buffer) fn resume(&self, storage: &dyn Storage, shared: &Shared) -> io::Result<()> {
        let mut letters = self.letters.lock();
        if let Some((id, from)) = letters.index.sending {
            let letter = letters.get(id).ok().flatten();
            let found = match &letter {
                Some(letter) => find(storage, shared, from, letter)?,
                None => None,
            };
            let fate = found.map_or(Fate::Kept { letter: id }, |offset| Fate::Sent { letter: id, offset });
            if let Err(error) = letters.note(fate) {
                tracing::warn!(letter = id.0, %error, "a letter that was being sent again at the kill is looked at with the next start");
            }
        }
        let returned = shared.state.lock().tracker.returned();
        // A log that was lost counts on from what the ledger knows.
        letters.index.sent = letters.index.sent.max(returned);
        shared.account_sent(letters.index.sent);
        Ok(())
    }
}

/// The record of a letter in the log, at `from` or later.
fn find(storage: &dyn Storage, shared: &Shared, from: u64, letter: &DeadLetter) -> io::Result<Option<u64>> {
    let segments: Vec<_> = shared.state.lock().segments.iter().filter(|s| s.next > from).cloned().collect();
    for segment in segments {
        let file = storage.open_to_read(&segment.path)?;
        let (_, pos) = segment.start_for(from);
        let mut scan = FrameScan::new(file, segment.salt, pos, segment.data_end);
        while let Some(found) = scan.next()? {
            let Some(frame) = found.frame() else { continue };
            let mut at = 0;
            for number in frame.base..frame.next() {
                let Some(record) = decode_record(&frame.body, at) else { break };
                at = record.end;
                if number >= from && record.body == letter.body {
                    return Ok(Some(number));
                }
            }
        }
    }
    Ok(None)
}
