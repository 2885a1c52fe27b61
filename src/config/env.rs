//! What `routes.yaml` may ask of the world outside of it, as functions that are passed in: so `resolve` stays pure.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::clock::{self, WallMs};
use crate::telemetry::memory;

/// A question to the world.
pub type Lookup<Question, Answer> = Box<dyn Fn(&Question) -> Answer + Send + Sync>;

/// See the module.
pub struct Env {
    /// The value of an environment variable: `${env:NAME}`.
    pub variable: Lookup<str, Option<String>>,
    /// The text of a file: `${file:PATH}`. Also asked whether certificates can be read.
    pub file: Lookup<Path, io::Result<String>>,
    /// By which certificates are valid or not.
    pub now: WallMs,
    /// The bytes of the file system that holds, or will hold, a folder; `None` where nobody can tell.
    pub disk_bytes: Lookup<Path, Option<u64>>,
    /// The memory of this machine, or what a control group leaves the gateway of it; `None` where nobody can tell.
    pub memory_bytes: Option<u64>,
    /// Whether a socket on `[::]` leaves IPv4 alone.
    pub v6_only: bool,
    /// Whether every user of the machine may read a file.
    pub is_public: Lookup<Path, bool>,
    /// What `site:` is without the key.
    pub host_name: String,
    /// `check --no-secrets` (R30): variables and files are not looked up, and what hangs on them is not checked.
    pub no_secrets: bool,
}

impl Env {
    /// This process and this machine.
    #[must_use]
    pub fn real() -> Self {
        Self {
            variable: Box::new(|name| std::env::var(name).ok()),
            file: Box::new(|path| std::fs::read_to_string(path)),
            now: clock::wall(),
            disk_bytes: Box::new(disk_bytes),
            memory_bytes: memory::machine_bytes(),
            v6_only: std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|text| text.trim() == "1"),
            is_public: Box::new(is_public),
            host_name: host_name(),
            no_secrets: false,
        }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("no_secrets", &self.no_secrets).finish_non_exhaustive()
    }
}

/// Of the nearest ancestor that exists: the folder itself is made by the first run.
fn disk_bytes(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let existing = folder.ancestors().find(|folder| folder.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let (blocks, block_bytes) = (stat.blocks(), stat.fragment_size());
    #[expect(clippy::useless_conversion, reason = "these are 32 bits wide on some platforms")]
    u64::from(blocks).checked_mul(u64::from(block_bytes))
}

fn is_public(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    // The short name, with nothing in it that `site:` would refuse.
    let short = name.trim().split('.').next().unwrap_or_default();
    let clean: String = short.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if clean.is_empty() { "site".to_owned() } else { clean }
}
