//! Disks that are small.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::Room;

/// A file system of its own in memory; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    at: PathBuf,
    _room: Room,
}

impl SmallDisk {
    /// `None` where this user may not mount.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let room = Room::new("disk");
        let at = room.file("mounted");
        fs::create_dir(&at).unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then_some(Self { at, _room: room })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Fills it to the last byte with a file of ours.
    pub(crate) fn fill(&self) -> PathBuf {
        let ballast = self.at.join("ballast");
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", ballast.display())).arg("bs=64k").stderr(Stdio::null());
        assert!(!dd.status().unwrap().success(), "dd ends because the disk is full");
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what still has files open there keeps them until it ends.
        drop(Command::new("umount").arg("-l").arg(&self.at).status());
    }
}
