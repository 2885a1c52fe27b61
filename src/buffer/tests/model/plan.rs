//! What a run may do: drawn from its seed before it begins.

use std::time::Duration;

use super::super::super::*;
use super::super::bench::config;
use super::super::disk::Dice;
use crate::units::ByteSize;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: Config,
    pub(super) steps: u64,
    /// Bytes of a body at most.
    pub(super) body_max: u64,
    /// Bits flip, pages turn to zeros. Not with `drop_newest`: what it drops has no number, so the ledger could not be told.
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
        let sync = match dice.roll(8) {
            0 => SyncMode::Interval(Duration::from_millis(300)),
            1 => SyncMode::Never,
            _ => SyncMode::Group,
        };
        let config = Config {
            max_size: ByteSize(16 << 10 << dice.roll(4)),
            max_age: (dice.roll(4) == 0).then(|| Duration::from_secs(1 + dice.roll(9))),
            when_full,
            sync,
            min_free: Some(ByteSize(if dice.roll(4) == 0 { 10_000 } else { 0 })),
            compress: match dice.roll(4) {
                0 => Compression::Zstd,
                1 => Compression::Lz4,
                _ => Compression::None,
            },
            ..config()
        };
        let group = config.sync == SyncMode::Group;
        let (failures, full) = (dice.roll(3) == 0, dice.roll(3) == 0);
        Self {
            steps: 8 + dice.roll(30),
            body_max: 8 + dice.roll(800),
            // Without syncs the log itself cannot tell a torn tail from damage (module `recovery`).
            damage: group && dice.roll(4) == 0 && when_full != WhenFull::DropNewest,
            failures,
            // A sync that fails while the disk is full may cost what an interval acknowledged ahead of it (R1).
            full: full && (group || !failures),
            good_clock: dice.roll(3) == 0,
            config,
        }
    }
}
