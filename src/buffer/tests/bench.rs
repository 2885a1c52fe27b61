//! The log's core on the simulated disk, driven by hand: no thread, no real time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;

use super::super::log::Log;
use super::super::state::{Shared, Verdict};
use super::super::*;
use super::disk::SimDisk;
use crate::clock::Clock;

/// A clock that is set by hand.
#[derive(Debug)]
pub(super) struct HandClock(Mutex<(Instant, Moment)>);

impl HandClock {
    pub(super) fn new() -> Arc<Self> {
        let start = Moment { wall: WallMs(1_000_000), up_ms: 5_000, boot: 1, synced: false };
        Arc::new(Self(Mutex::new((crate::clock::now(), start))))
    }

    pub(super) fn pass(&self, time: Duration) {
        let mut now = self.0.lock();
        now.0 += time;
        now.1.wall.0 += time.as_millis() as u64;
        now.1.up_ms += time.as_millis() as u64;
    }

    pub(super) fn step_wall(&self, ms: i64) {
        let wall = &mut self.0.lock().1.wall.0;
        *wall = wall.saturating_add_signed(ms);
    }

    /// From now on the wall clock is said to be right, or not.
    pub(super) fn synced(&self, synced: bool) {
        self.0.lock().1.synced = synced;
    }

    /// The machine has been off for `away` and has just come up again; nobody has said what time it is.
    pub(super) fn reboot(&self, away: Duration) {
        self.pass(away);
        let now = &mut self.0.lock().1;
        *now = Moment { up_ms: 0, boot: now.boot + 1, synced: false, ..*now };
    }
}

impl Clock for HandClock {
    fn now(&self) -> Instant {
        self.0.lock().0
    }

    fn moment(&self) -> Moment {
        self.0.lock().1
    }
}

#[derive(Debug)]
pub(super) struct Bench {
    pub(super) disk: SimDisk,
    pub(super) clock: Arc<HandClock>,
    pub(super) config: Config,
    pub(super) log: Log,
    pub(super) shared: Arc<Shared>,
    pub(super) recovery: Recovery,
}

pub(super) fn config() -> Config {
    Config {
        dir: PathBuf::from("/log"),
        max_size: ByteSize(64 << 10),
        max_age: None,
        when_full: WhenFull::DropOldest,
        sync: SyncMode::Group,
        min_free: Some(ByteSize(0)),
        compress: Compression::None,
        keep_delivered: None,
    }
}

/// Confirmations that may be unsaved.
pub(super) const WINDOW: usize = 8;

pub(super) fn try_open(
    disk: &SimDisk,
    clock: &Arc<HandClock>,
    config: &Config,
    window: usize,
) -> Result<(Log, Recovery), OpenError> {
    let clock: Arc<dyn Clock> = Arc::<HandClock>::clone(clock);
    recovery::open(Arc::new(disk.clone()), config, window, clock)
}

impl Bench {
    pub(super) fn new(config: Config) -> Self {
        Self::open(SimDisk::default(), HandClock::new(), config)
    }

    pub(super) fn open(disk: SimDisk, clock: Arc<HandClock>, config: Config) -> Self {
        Self::open_lane(disk, clock, config, WINDOW)
    }

    /// One of a link's lanes, which may have so many confirmations unsaved.
    pub(super) fn open_lane(disk: SimDisk, clock: Arc<HandClock>, config: Config, window: usize) -> Self {
        let (log, recovery) = try_open(&disk, &clock, &config, window).unwrap();
        let shared = Arc::clone(&log.shared);
        Self { disk, clock, config, log, shared, recovery }
    }

    pub(super) fn put(&self, body: &[u8]) -> Result<u64, Verdict> {
        match self.shared.judge(body.len()) {
            Verdict::Granted(need) => Ok(self.shared.append(need, &[body], None).0),
            other => Err(other),
        }
    }

    /// Stages and does what the writer thread would do, until it is taken or refused.
    pub(super) fn put_patiently(&mut self, body: &[u8]) -> Result<u64, Verdict> {
        for _ in 0..20 {
            match self.put(body) {
                Err(Verdict::Wait) => self.turn(),
                decided => return decided,
            }
        }
        Err(Verdict::Wait)
    }

    /// One turn of the writer thread.
    pub(super) fn turn(&mut self) {
        self.log.commit();
        self.log.tend();
    }

    pub(super) fn put_all(&mut self, from: u64, to: u64) {
        for n in from..to {
            self.put_patiently(&body(n)).unwrap();
            self.log.commit();
        }
    }

    pub(super) fn durable(&self) -> u64 {
        self.shared.mark.progress().done
    }

    pub(super) fn settle(&self, offsets: impl IntoIterator<Item = u64>) {
        for offset in offsets {
            self.shared.settle(Offset(offset), Outcome::Delivered);
        }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared), Arc::new(self.disk.clone()))
    }

    /// Everything that can be read now.
    pub(super) fn read_all(&self) -> Vec<Record> {
        let mut reader = self.reader();
        let mut records = Vec::new();
        while let Some(read) = reader.read(7, 1 << 20).now_or_never() {
            match read {
                Ok(read) => records.extend(read),
                // Behind what is durable there will be no more.
                Err(Refused::Failed(_)) if self.shared.stats().failed.is_some() => break,
                Err(refused) => panic!("{refused}"),
            }
        }
        records
    }

    pub(super) fn offsets(&self) -> Vec<u64> {
        self.read_all().iter().map(|record| record.offset.0).collect()
    }

    pub(super) fn ledger(&self) -> Ledger {
        let ledger = self.shared.stats().ledger;
        assert!(ledger.balances(), "{ledger:?}");
        ledger
    }

    pub(super) fn reopen(self) -> Self {
        let Self { disk, clock, config, log, .. } = self;
        drop(log);
        Self::open(disk, clock, config)
    }

    pub(super) fn close_and_reopen(self) -> Self {
        let Self { disk, clock, config, log, .. } = self;
        log.finish();
        Self::open(disk, clock, config)
    }

    pub(super) fn kill_and_reopen(self) -> Self {
        self.disk.kill();
        self.reopen()
    }
}

/// A body that names its record.
pub(super) fn body(n: u64) -> Vec<u8> {
    let mut body = format!("record {n} ").into_bytes();
    body.resize(100, b'.');
    body
}

pub(super) fn dir() -> &'static Path {
    Path::new("/log")
}
