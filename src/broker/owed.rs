//! What a kept session is owed, in rows and bytes, without a list of them: the rows lie in the store, which says afterwards how many
//! it dropped when it was asked to drop the oldest.

use std::sync::Arc;

use super::session::Row;
use super::store::{Dropped, Op, SessionId, Unit};
use crate::telemetry::board::BrokerBoard;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Owed {
    rows: u64,
    bytes: u64,
    /// Asked of the store, and not done yet.
    asked_rows: u64,
    /// The same, in bytes.
    asked_bytes: u64,
    /// Where the store says what it did; none for a session that has never been full.
    dropped: Option<Arc<Dropped>>,
}

impl Owed {
    /// What the store held at start.
    pub(super) const fn restored(rows: u64, bytes: u64) -> Self {
        Self { rows, bytes, asked_rows: 0, asked_bytes: 0, dropped: None }
    }

    /// Rows owed.
    pub(super) fn rows(&mut self) -> u64 {
        self.absorb();
        self.rows.saturating_sub(self.asked_rows)
    }

    /// Whether there are any, or were until what was asked to be dropped is.
    pub(super) const fn has_rows(&self) -> bool {
        self.rows > 0
    }

    /// What they count for.
    pub(super) fn bytes(&mut self) -> u64 {
        self.absorb();
        self.bytes.saturating_sub(self.asked_bytes)
    }

    /// One more.
    pub(super) const fn add(&mut self, bytes: u64) {
        self.rows += 1;
        self.bytes += bytes;
    }

    /// One is delivered, or given up.
    pub(super) const fn settle(&mut self, row: Row) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.bytes);
    }

    /// Has the store drop the oldest rows that have no packet id: one, and as many as make `bytes`. It counts them.
    pub(super) fn ask(&mut self, session: SessionId, bytes: u64, unit: &mut Unit<'_>, board: &Arc<BrokerBoard>) {
        let dropped = self.dropped.get_or_insert_with(|| Arc::new(Dropped::new(Arc::clone(board))));
        unit.push(Op::DropOldest(session, bytes, Arc::clone(dropped)));
        self.asked_rows += 1;
        self.asked_bytes += bytes;
    }

    fn absorb(&mut self) {
        let Some(done) = self.dropped.as_ref().map(|dropped| dropped.take()) else { return };
        self.rows = self.rows.saturating_sub(done.rows);
        self.bytes = self.bytes.saturating_sub(done.bytes);
        self.asked_rows = self.asked_rows.saturating_sub(done.asks);
        self.asked_bytes = self.asked_bytes.saturating_sub(done.asked_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_was_asked_to_drop_counts_as_gone_until_it_says_what_it_did() {
        let board = Arc::<BrokerBoard>::default();
        let dropped = Arc::new(Dropped::new(Arc::clone(&board)));
        let mut owed = Owed { dropped: Some(Arc::clone(&dropped)), ..Owed::restored(10, 1_000) };
        (owed.asked_rows, owed.asked_bytes) = (2, 250);
        assert_eq!((owed.rows(), owed.bytes()), (8, 750));
        dropped.report(250, 3, 300);
        assert_eq!((owed.rows(), owed.bytes()), (6, 700), "three went; one more is asked for");
        dropped.report(0, 0, 0);
        assert_eq!((owed.rows(), owed.bytes()), (7, 700), "it had none without a packet id");
        assert_eq!(board.snapshot().dropped["session_full"], 3);
        owed.settle(Row { seq: 1, bytes: 100 });
        owed.add(7);
        assert_eq!((owed.rows(), owed.bytes()), (7, 607));
    }
}
