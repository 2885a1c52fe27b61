//! What the process holds in memory, and whether that is too much (R36).
//!
//! The measure is the kernel's own, the resident memory of the process: it counts everything, what libraries and the allocator
//! hold included, which no sum of our own would. It is looked at the more often the nearer it is to the limit: after a time
//! ([`Memory::next_look`]), and by who has brought so much that it may have become too much ([`Memory::brought`]). Whoever takes
//! something in asks [`Memory::is_short`]: one read of a flag.
//!
//! Memory is short from seven eighths of the limit on, until it has come down to three quarters. What is between the first and
//! the limit is for what comes before everybody has noticed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// The least that may be set: an idle gateway takes half of it.
pub const LEAST: ByteSize = ByteSize(64 << 20);

/// So much may come in a second, as far as [`Memory::next_look`] goes: what two cores copy into fresh pages.
const GROWTH_BYTES_S: u64 = 4 << 30;

/// Not sooner than after so many bytes is it looked at because of them: a look takes some 50 µs.
const BROUGHT_MIN: u64 = 1 << 20;

/// However near the limit is, and however far.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// See the module. Until a limit is set nothing is ever short.
#[derive(Debug, Default)]
pub struct Memory {
    limit: AtomicU64,
    used: AtomicU64,
    is_short: AtomicBool,
    shortages: AtomicU64,
    /// What was brought since the last look.
    brought: AtomicU64,
    /// When that is so much there is another.
    look_after: AtomicU64,
}

/// What a look has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Memory is short from now on.
    Short,
    /// It is not any more.
    Relieved,
}

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Resident, in bytes; 0 where it cannot be told.
    pub used_bytes: u64,
    /// `max_memory`; 0: none.
    pub limit_bytes: u64,
    /// Whether publishers are held back for it.
    pub short: bool,
    /// How often that has begun since the start.
    pub shortages: u64,
}

impl Memory {
    /// What the process may take.
    pub fn limit_to(&self, limit: ByteSize) {
        self.limit.store(limit.0, Ordering::Relaxed);
    }

    /// Whether less is to be taken in.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Notes what is resident now.
    pub fn note(&self, used: u64) -> Option<Change> {
        self.used.store(used, Ordering::Relaxed);
        self.brought.store(0, Ordering::Relaxed);
        self.look_after.store((self.left() / 4).max(BROUGHT_MIN), Ordering::Relaxed);
        let (limit, is_short) = (self.limit.load(Ordering::Relaxed), self.is_short());
        let over = |eighths: u64| limit > 0 && used >= limit / 8 * eighths;
        if !is_short && over(7) && !self.is_short.swap(true, Ordering::Relaxed) {
            self.shortages.fetch_add(1, Ordering::Relaxed);
            return Some(Change::Short);
        }
        if is_short && !over(6) && self.is_short.swap(false, Ordering::Relaxed) {
            return Some(Change::Relieved);
        }
        None
    }

    /// So many bytes have been taken in, or copied for a client. They may be gone again; where they could be too much it is looked at.
    pub fn brought(&self, bytes: u64) {
        let before = self.brought.fetch_add(bytes, Ordering::Relaxed);
        let is_limited = self.limit.load(Ordering::Relaxed) > 0;
        if is_limited
            && before.saturating_add(bytes) >= self.look_after.load(Ordering::Relaxed)
            && let Some(used) = resident_bytes()
        {
            self.note(used);
        }
    }

    /// Until it is short.
    fn left(&self) -> u64 {
        let (limit, used) = (self.limit.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        (limit / 8 * 7).saturating_sub(used)
    }

    /// One part of the limit of so many; all there is where there is none.
    #[must_use]
    pub fn part(&self, parts: u64) -> u64 {
        match self.limit.load(Ordering::Relaxed) {
            0 => u64::MAX,
            limit => limit / parts,
        }
    }

    /// How far it is above where it is not short any more.
    #[must_use]
    pub fn excess(&self) -> u64 {
        let MemoryStatus { used_bytes, limit_bytes, .. } = self.snapshot();
        used_bytes.saturating_sub(limit_bytes / 8 * 6)
    }

    /// When to look again: before it can have become short.
    #[must_use]
    pub fn next_look(&self) -> Duration {
        Duration::from_millis(self.left() / (GROWTH_BYTES_S / 1_000)).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// As it is now.
    #[must_use]
    pub fn snapshot(&self) -> MemoryStatus {
        MemoryStatus {
            used_bytes: self.used.load(Ordering::Relaxed),
            limit_bytes: self.limit.load(Ordering::Relaxed),
            short: self.is_short(),
            shortages: self.shortages.load(Ordering::Relaxed),
        }
    }
}

/// What of this process is in memory, as the kernel counts it; `None` where it does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The memory of this machine, or what the control groups that this process is in leave it of that, if it is less. `None` where
/// nobody can tell.
#[must_use]
pub fn machine_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let all = of_status(&read("/proc/meminfo")?, "MemTotal:")?;
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    Some(limits_of(&groups, read).into_iter().fold(all, u64::min))
}

/// `VmRSS:     26012 kB`
fn of_status(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The limits of the control groups in `/proc/self/cgroup` and of all above them, both versions. In a container the own group is the
/// root that it sees.
fn limits_of(groups: &str, read: impl Fn(&str) -> Option<String>) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            // `max`: no limit.
            limits.extend(read(&format!("{root}{path}/{file}")).and_then(|text| text.trim().parse::<u64>().ok()));
            let Some((above, _)) = path.rsplit_once('/') else { break };
            path = above;
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r36_memory_is_short_from_seven_eighths_of_the_limit_until_three_quarters() {
        let memory = Memory::default();
        assert_eq!((memory.note(u64::MAX), memory.is_short()), (None, false), "nothing is set");
        memory.limit_to(ByteSize(800));
        for (used, change, is_short) in [
            (699, None, false),
            (700, Some(Change::Short), true),
            (900, None, true),
            (600, None, true),
            (599, Some(Change::Relieved), false),
            (699, None, false),
            (10_000, Some(Change::Short), true),
        ] {
            assert_eq!((memory.note(used), memory.is_short()), (change, is_short), "{used}");
        }
        let expected = MemoryStatus { used_bytes: 10_000, limit_bytes: 800, short: true, shortages: 2 };
        assert_eq!(memory.snapshot(), expected);
    }

    #[test]
    fn it_is_looked_at_before_it_can_have_become_short() {
        let memory = Memory::default();
        memory.limit_to(ByteSize(8 << 30));
        for (used, look) in [(0, LOOK_MAX), (7 << 30, LOOK_MIN), (8 << 30, LOOK_MIN)] {
            memory.note(used);
            assert_eq!(memory.next_look(), look);
        }
        memory.note((7 << 30) - (400 << 20));
        let look = memory.next_look();
        assert!(look > Duration::from_millis(90) && look < Duration::from_millis(110), "{look:?}");
    }

    #[test]
    fn who_has_brought_a_quarter_of_what_is_left_looks() {
        let memory = Memory::default();
        memory.brought(u64::MAX);
        assert_eq!(memory.snapshot(), MemoryStatus::default(), "nothing is set");
        memory.limit_to(ByteSize(8 << 30));
        memory.note(6 << 30);
        memory.brought((256 << 20) - 1);
        assert_eq!(memory.snapshot().used_bytes, 6 << 30);
        memory.brought(1);
        let used = memory.snapshot().used_bytes;
        assert!(used > 0 && used < 6 << 30, "{used}");
    }

    #[test]
    fn the_smallest_limit_of_all_control_groups_above_counts() {
        let groups = "12:cpu,cpuacct:/a\n3:memory:/docker/x\n0::/system.slice/tidegate.service\n";
        let files = [
            ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n"),
            ("/sys/fs/cgroup/system.slice/tidegate.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "5000\n"),
        ];
        let read = |path: &str| Some(files.iter().find(|(name, _)| *name == path)?.1.to_owned());
        assert_eq!(limits_of(groups, read), [9_223_372_036_854_771_712, 7_000, 5_000]);
        let in_container = |path: &str| (path == "/sys/fs/cgroup/memory.max").then(|| "6000\n".to_owned());
        assert_eq!(limits_of("0::/\n", in_container), [6_000]);
    }

    #[test]
    fn the_kernel_tells_both() {
        let (used, all) = (resident_bytes().unwrap(), machine_bytes().unwrap());
        assert!(used > 1 << 20 && used < all, "{used} {all}");
    }
}
