//! The one place that reads a clock. Everything else takes time as an argument or through a [`Clock`].
//!
//! Two clocks matter to a gateway: a monotonic one that no operator and no NTP daemon can step (ages, timeouts),
//! and the wall clock that travels with messages (event time). What has to be aged by another process, perhaps after a
//! reboot, is stamped with a [`Moment`], which holds both; [`Moment::since`] says which of them decides (R8).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The kernel is asked again after this whether the wall clock is synchronised.
const SYNC_LOOK_MS: u64 = 1_000;

/// Milliseconds of the wall clock since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub u64);

impl WallMs {
    /// Time from `earlier` to `self`; zero where the clock has stepped back.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for WallMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A point in time by every clock that there is, so that its age can be told later, by another process, or after a reboot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Moment {
    /// The wall clock.
    pub wall: WallMs,
    /// Milliseconds since the machine was started, time in suspend included: no step of the wall clock changes it.
    pub up_ms: u64,
    /// Names the boot that `up_ms` counts from; 0: not known.
    pub boot: u32,
    /// Whether the wall clock was synchronised with a time source then.
    pub synced: bool,
}

impl Moment {
    /// How long ago `earlier` was, as far as that is certain; what is not certain does not count (R8):
    /// - within one boot by the boot clock, whatever became of the wall clock;
    /// - across boots by the wall clock, if it was synchronised both times;
    /// - else only the time since this boot began, since `earlier` was before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let ms = |later: u64, earlier: u64| Duration::from_millis(later.saturating_sub(earlier));
        let is_known = self.boot != 0 && earlier.boot != 0;
        if is_known && self.boot == earlier.boot {
            return ms(self.up_ms, earlier.up_ms);
        }
        let by_wall = if self.synced && earlier.synced { ms(self.wall.0, earlier.wall.0) } else { Duration::ZERO };
        by_wall.max(if is_known { ms(self.up_ms, 0) } else { Duration::ZERO })
    }

    /// `up_ms` and `synced` in one number, as files hold them: the milliseconds doubled, and 1 where it was synchronised.
    #[must_use]
    pub const fn packed(self) -> u64 {
        (self.up_ms << 1) | (self.synced as u64)
    }

    /// From what [`Moment::packed`] made.
    #[must_use]
    pub const fn unpacked(wall: WallMs, packed: u64, boot: u32) -> Self {
        Self { wall, up_ms: packed >> 1, boot, synced: packed & 1 == 1 }
    }
}

/// Where time comes from: the machine in production, a hand-set value in tests.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Wall-clock time.
    fn wall(&self) -> WallMs {
        self.moment().wall
    }
    /// Wall-clock time as the system's last tick left it: some milliseconds old, for a fifth of the price.
    fn wall_of_tick(&self) -> WallMs {
        self.wall()
    }
    /// Time by all clocks.
    fn moment(&self) -> Moment;
    /// How many seconds the local time zone is ahead of UTC at a moment.
    fn local_offset_s(&self, at: WallMs) -> i32 {
        local_offset_s(at)
    }
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        now()
    }

    fn wall(&self) -> WallMs {
        wall()
    }

    fn wall_of_tick(&self) -> WallMs {
        wall_of_tick()
    }

    fn moment(&self) -> Moment {
        moment()
    }
}

/// The machine's clocks behind the trait.
#[must_use]
pub fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// Monotonic time, now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time, now. A clock before 1970 reads as zero.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
pub fn wall() -> WallMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(target_os = "linux")]
fn wall_of_tick() -> WallMs {
    let tick = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE).map(Duration::from);
    tick.map_or_else(|_| wall(), |tick| WallMs(u64::try_from(tick.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(not(target_os = "linux"))]
fn wall_of_tick() -> WallMs {
    wall()
}

/// Time by all clocks, now.
#[must_use]
pub fn moment() -> Moment {
    let up_ms = up_ms();
    Moment { wall: wall(), up_ms, boot: boot(), synced: is_synced(up_ms) }
}

/// How many seconds the machine's time zone (`TZ`, `/etc/localtime`) is ahead of UTC at a moment; zero where it is not known. The
/// zone is read once.
#[must_use]
#[cfg(unix)]
#[expect(unsafe_code, reason = "no crate of our tree wraps this call; it writes one plain struct that we own")]
pub fn local_offset_s(at: WallMs) -> i32 {
    let Ok(seconds) = libc::time_t::try_from(at.0 / 1_000) else { return 0 };
    let mut local = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to values of our own, and zeroes are a value of `tm`, whose one pointer is not followed. The call
    // reads `TZ`, which nothing in this process writes.
    let (known, local) =
        unsafe { (!libc::localtime_r(&raw const seconds, local.as_mut_ptr()).is_null(), local.assume_init()) };
    if known { i32::try_from(local.tm_gmtoff).unwrap_or_default() } else { 0 }
}

/// See above: UTC.
#[must_use]
#[cfg(not(unix))]
pub fn local_offset_s(_at: WallMs) -> i32 {
    0
}

/// Since the machine was started; where that cannot be told, since this process first asked.
fn up_ms() -> u64 {
    let up = boot_clock().unwrap_or_else(|| {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        now().saturating_duration_since(*FIRST.get_or_init(now))
    });
    u64::try_from(up.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(target_os = "linux")]
fn boot_clock() -> Option<Duration> {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

#[cfg(not(target_os = "linux"))]
fn boot_clock() -> Option<Duration> {
    None
}

/// Names the boot. Where the system has no name for it, each process counts as one.
fn boot() -> u32 {
    static BOOT: OnceLock<u32> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = boot_clock().and_then(|_| std::fs::read("/proc/sys/kernel/random/boot_id").ok());
        id.map_or_else(rand::random::<u32>, |id| crc32c::crc32c(&id)).max(1)
    })
}

/// Whether the kernel says that something keeps the wall clock right. A system call, so the answer holds for a second.
fn is_synced(up_ms: u64) -> bool {
    static KNOWN: AtomicU64 = AtomicU64::new(u64::MAX);
    let known = KNOWN.load(Ordering::Relaxed);
    if known != u64::MAX && up_ms.saturating_sub(known >> 1) < SYNC_LOOK_MS {
        return known & 1 == 1;
    }
    let synced = kernel_says_synced();
    KNOWN.store((up_ms << 1) | u64::from(synced), Ordering::Relaxed);
    synced
}

/// What NTP daemons (chrony with `rtcsync`, ntpd, systemd-timesyncd) tell the kernel, and what setting the clock by hand takes
/// back: `STA_UNSYNC` of adjtimex(2).
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no crate of our tree wraps this call; it writes one plain struct that we own")]
fn kernel_says_synced() -> bool {
    let mut timex = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all fields of `timex` are integers, so zeroes are a value of it; `modes` 0 only reads.
    let (answer, timex) = unsafe { (libc::adjtimex(timex.as_mut_ptr()), timex.assume_init()) };
    answer >= 0 && timex.status & libc::STA_UNSYNC == 0
}

#[cfg(not(target_os = "linux"))]
fn kernel_says_synced() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, up_ms: u64, boot: u32, synced: bool) -> Moment {
        Moment { wall: WallMs(wall), up_ms, boot, synced }
    }

    #[test]
    fn r08_within_a_boot_no_step_of_the_wall_clock_changes_an_age() {
        let appended = at(1_000, 5_000, 1, false);
        for (wall, synced) in [(1_000, false), (0, false), (1_800_000_000_000, true)] {
            assert_eq!(at(wall, 7_500, 1, synced).since(appended), Duration::from_millis(2_500));
        }
    }

    #[test]
    fn r08_across_boots_the_wall_clock_counts_only_if_both_were_synchronised() {
        for (then, now) in [(false, false), (false, true), (true, false)] {
            let age = at(90_000_000, 4_000, 2, now).since(at(1_000, 900_000, 1, then));
            assert_eq!(age, Duration::from_secs(4), "it is older than this boot, and more is not certain");
        }
        let age = at(90_001_000, 4_000, 2, true).since(at(1_000, 900_000, 1, true));
        assert_eq!(age, Duration::from_secs(90_000));
        let stepped_back = at(500, 4_000, 2, true).since(at(1_000, 900_000, 1, true));
        assert_eq!(stepped_back, Duration::from_secs(4));
    }

    #[test]
    fn r08_of_an_unknown_boot_nothing_is_certain() {
        assert_eq!(at(5_000, 4_000, 2, false).since(at(1_000, 0, 0, true)), Duration::ZERO);
        assert_eq!(at(5_000, 4_000, 2, true).since(at(1_000, 0, 0, true)), Duration::from_secs(4));
    }

    #[test]
    fn the_machine_s_moments_follow_each_other_in_one_boot() {
        let (first, second) = (moment(), moment());
        assert_eq!((first.boot, first.boot != 0), (second.boot, true));
        assert!(first.up_ms > 0 && second.since(first) < Duration::from_secs(60));
        assert_eq!(Moment::unpacked(first.wall, first.packed(), first.boot), first);
    }
}
