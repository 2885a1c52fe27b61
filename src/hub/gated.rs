//! What of a publication has gone through routes' gates, until it is accepted or not.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::router::{Pass, Table};

/// Entered where every target has room. Dropped without [`Gated::settle`] it is taken back: the publication was refused, and comes
/// again from its publisher.
#[derive(Debug, Default)]
pub(super) struct Gated {
    table: Option<Arc<Table>>,
    passes: SmallVec<[Pass; 1]>,
}

impl Gated {
    pub(super) fn enter(table: &Arc<Table>, passes: SmallVec<[Pass; 1]>) -> Self {
        passes.iter().for_each(|pass| table.enter(pass));
        Self { table: (!passes.is_empty()).then(|| Arc::clone(table)), passes }
    }

    /// It is in the logs.
    pub(super) fn settle(mut self) {
        if let Some(table) = self.table.take() {
            self.passes.iter().for_each(|pass| table.settle(pass));
        }
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        if let Some(table) = &self.table {
            self.passes.iter().for_each(|pass| table.withdraw(pass));
        }
    }
}
