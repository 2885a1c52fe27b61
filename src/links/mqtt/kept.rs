//! A link's QoS 2 exchanges as they are kept (R25): in the file `exchanges`, beside the cursor of its buffer.

use std::io;
use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::exchanges::Exchanges;
use super::written::{Held, Written};
use crate::buffer::{Lane, Lanes, Offset};

/// A link's exchanges, their file and their logs. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    written: Written<Exchanges>,
    lanes: Lanes,
}

impl Kept {
    /// Of the link with these logs, in whose folder `path` lies.
    pub(super) fn new(path: PathBuf, lanes: &Lanes) -> Self {
        Self { written: Written::new(path, Exchanges::default()), lanes: lanes.clone() }
    }

    /// The exchanges. Not to be held across an `.await`.
    pub(super) fn exchanges(&self) -> Held<'_, Exchanges> {
        self.written.table()
    }

    /// Names the link's buffer.
    pub(super) fn buffer(&self) -> &str {
        self.lanes.id()
    }

    /// How far each lane's cursor is.
    pub(super) fn floors(&self) -> Vec<(Lane, Offset)> {
        let floor = |(lane, buffer): (Lane, &crate::buffer::Buffer)| {
            let streams = buffer.streams(None);
            (lane, streams.backlog.map_or(streams.live, |(from, _)| from))
        };
        self.lanes.iter().map(floor).collect()
    }

    /// Reads, once, what an earlier process left.
    ///
    /// # Errors
    /// See [`Written::read`].
    pub(super) async fn read(&self) -> io::Result<()> {
        let ends: Vec<(Lane, Offset)> = self.lanes.iter().map(|(lane, buffer)| (lane, buffer.end())).collect();
        // At once: soon other records have these numbers.
        self.written.read(move |found| found.forget_beyond(&ends)).await
    }

    /// Writes down the exchanges as they are now: see [`Written::save`].
    pub(super) fn save(&self) -> JoinHandle<io::Result<()>> {
        self.exchanges().pass(&self.floors());
        self.written.save()
    }
}
