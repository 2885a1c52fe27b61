//! What a run may do: drawn from its seed before it begins.

use std::time::Duration;

use super::super::super::*;
use super::super::bench::{WINDOW, config, dir};
use super::super::disk::Dice;
use crate::units::ByteSize;

#[derive(Debug)]
pub(super) struct Plan {
    /// Of each lane, but for its folder.
    pub(super) config: Config,
    /// In the order in which they are read.
    pub(super) lanes: Vec<Lane>,
    pub(super) steps: u64,
    /// Bytes of a body at most.
    pub(super) body_max: u64,
    /// Bits flip, pages turn to zeros. Not where records are dropped without a number, so that the ledger could not be told.
    pub(super) damage: bool,
    /// Calls fail.
    pub(super) failures: bool,
    /// The disk fills up, and has room again.
    pub(super) full: bool,
    /// The wall clock is right and said to be so; otherwise it steps at will and nobody says that it is right.
    pub(super) good_clock: bool,
}

impl Plan {
    pub(super) fn of(dice: &mut Dice) -> Self {
        let when_full = match dice.roll(5) {
            0 | 1 => WhenFull::DropOldest,
            2 => WhenFull::DropNewest,
            3 => WhenFull::Reject,
            _ => WhenFull::Block,
        };
        let sync = match dice.roll(10) {
            0 => SyncMode::Interval(Duration::from_millis(300)),
            1 => SyncMode::Never,
            2 | 3 => SyncMode::Spill(Duration::from_millis(500 + dice.roll(2_000))),
            _ => SyncMode::Group,
        };
        let lanes = match dice.roll(12) {
            0 => vec![Lane::High, Lane::Normal],
            1 => vec![Lane::Normal, Lane::Low],
            2 => Lane::ALL.to_vec(),
            _ => vec![Lane::Normal],
        };
        let max_size = 16 << 10 << dice.roll(4);
        // `sync: spill` has nothing to keep.
        let is_kept = dice.roll(4) == 0 && !matches!(sync, SyncMode::Spill(_));
        let keep_delivered = is_kept.then(|| Keep {
            age: (dice.roll(3) > 0).then(|| Duration::from_secs(1 + dice.roll(9))),
            size: (dice.roll(3) > 0).then(|| ByteSize(max_size >> dice.roll(4))),
        });
        let config = Config {
            max_size: ByteSize(max_size),
            max_age: (dice.roll(4) == 0).then(|| Duration::from_secs(1 + dice.roll(9))),
            when_full,
            sync,
            min_free: Some(ByteSize(if dice.roll(4) == 0 { 10_000 } else { 0 })),
            compress: match dice.roll(4) {
                0 => Compression::Zstd,
                1 => Compression::Lz4,
                _ => Compression::None,
            },
            keep_delivered,
            ..config()
        };
        let group = config.sync == SyncMode::Group;
        let (failures, full) = (dice.roll(3) == 0, dice.roll(3) == 0);
        let unnumbered = drops_unnumbered(when_full, lanes.len());
        Self {
            lanes,
            steps: 8 + dice.roll(30),
            body_max: 8 + dice.roll(800),
            // Without syncs the log itself cannot tell a torn tail from damage (module `recovery`).
            damage: group && dice.roll(4) == 0 && !unnumbered,
            failures,
            // A sync that fails while the disk is full may cost what an interval acknowledged ahead of it (R1).
            full: full && (group || !failures),
            good_clock: dice.roll(3) == 0,
            config,
        }
    }

    /// Of one lane.
    pub(super) fn config_of(&self, lane: Lane) -> Config {
        Config { dir: lane.folder(dir()), ..self.config.clone() }
    }

    /// Confirmations of a lane that may be unsaved.
    pub(super) fn window(&self) -> usize {
        lanes::part_of(WINDOW, self.lanes.len())
    }

    /// Whether records may be dropped without a number.
    pub(super) fn drops_unnumbered(&self) -> bool {
        drops_unnumbered(self.config.when_full, self.lanes.len())
    }

    /// Whether an acknowledgement may come before the sync (R1).
    pub(super) const fn acknowledges_ahead(&self) -> bool {
        matches!(self.config.sync, SyncMode::Interval(_) | SyncMode::Never)
    }

    pub(super) const fn spills(&self) -> bool {
        matches!(self.config.sync, SyncMode::Spill(_))
    }

    /// Whether room may be needed for other reasons than `max_size`.
    pub(super) fn may_be_short(&self) -> bool {
        self.full || self.config.min_free.is_some_and(|size| size.0 > 0)
    }
}

/// A new record of a low lane is dropped where higher ones fill the quota (R14).
fn drops_unnumbered(when_full: WhenFull, lanes: usize) -> bool {
    when_full == WhenFull::DropNewest || (when_full == WhenFull::DropOldest && lanes > 1)
}
