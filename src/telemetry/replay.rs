//! What the operator's tools and the gateway say to each other about replays, and what `status` shows of them.

use serde::{Deserialize, Serialize};

/// `tidegate replay LINK ..`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayRequest {
    /// The link whose log is read; also one that `routes.yaml` has no more.
    pub link: String,
    /// Only this lane of it; `None`: all, in the order in which the link serves them.
    pub lane: Option<String>,
    /// Where to begin; `None`: with the oldest record that is still there.
    pub from: Option<ReplayPoint>,
    /// Where to end, exclusive; `None`: with what is there now.
    pub until: Option<ReplayPoint>,
    /// A filter (or pattern with captures) on the topic that a message was published to.
    pub topic: Option<String>,
    /// `LINK` or `LINK/TEMPLATE`; `None`: the same link.
    pub into: Option<String>,
    /// Records a second.
    pub rate: Option<f64>,
    /// Send also what has expired, without an expiry.
    pub expired: bool,
}

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayPoint {
    /// A record's number.
    Offset(u64),
    /// When a record was appended, milliseconds since the epoch.
    TimeMs(u64),
}

/// What a replay would send: `--dry-run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayCounts {
    /// Records that would be sent.
    pub records: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// When the first of them was appended (wall ms).
    pub first_ms: Option<u64>,
    /// The last.
    pub last_ms: Option<u64>,
    /// Its offset, of the first; where one lane was looked through.
    pub first_offset: Option<u64>,
    /// Of the last.
    pub last_offset: Option<u64>,
    /// Looked at, and not of the topic or time.
    pub passed_over: u64,
    /// Their expiry has lapsed.
    pub expired: u64,
    /// They have no form there.
    pub unsendable: u64,
}

/// What a replay is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// It sends, or waits for its remote.
    #[default]
    Running,
    /// Everything was sent and confirmed.
    Done,
    /// By the operator.
    Cancelled,
    /// It cannot go on: `note` says why.
    Failed,
}

/// A stretch of one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayLane {
    /// `high`, `normal` or `low`.
    pub lane: String,
    /// The first offset.
    pub from: u64,
    /// The end.
    pub until: u64,
}

/// A replay, as it is shown and kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplayStatus {
    /// What its messages are marked with (`tg-replay`).
    pub id: String,
    /// What was asked for.
    pub request: ReplayRequest,
    /// See [`ReplayState`].
    pub state: ReplayState,
    /// What is looked through, one lane after the other.
    pub lanes: Vec<ReplayLane>,
    /// The lane that is being looked through.
    pub lane: String,
    /// The first offset of its stretch.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// Everything of it below is done.
    pub position: u64,
    /// Confirmed by the remote.
    pub replayed: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Not of the topic or time that was asked for.
    pub passed_over: u64,
    /// Their expiry had lapsed.
    pub expired: u64,
    /// They have no form at this remote.
    pub unsendable: u64,
    /// Refused by the remote.
    pub refused: u64,
    /// When it was asked for (wall ms).
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// What is wrong, in the remote's own words where it is the remote.
    pub note: Option<String>,
}

impl ReplayStatus {
    /// How many offsets have been passed in all lanes, and how many there are.
    #[must_use]
    pub fn passed(&self) -> (u64, u64) {
        let length = |lane: &ReplayLane| lane.until.saturating_sub(lane.from);
        let all = self.lanes.iter().map(length).sum();
        let before = self.lanes.iter().take_while(|lane| lane.lane != self.lane).map(length).sum::<u64>();
        (before.saturating_add(self.position.saturating_sub(self.from)).min(all), all)
    }

    /// `LINK` or `LINK -> INTO`.
    #[must_use]
    pub fn way(&self) -> String {
        let ReplayRequest { link, into, .. } = &self.request;
        into.as_ref().map_or_else(|| link.clone(), |into| format!("{link} -> {into}"))
    }
}
