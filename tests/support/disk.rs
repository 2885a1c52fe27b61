//! Disks that are small.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::Room;
use super::wait::{PATIENCE, until_true};

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

/// An ext4 file system of its own on a loop device, whose power can be cut. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct PoweredDisk {
    at: PathBuf,
    image: PathBuf,
    _room: Room,
}

impl PoweredDisk {
    /// `None` where this user may not mount, or the machine has no loop devices, ext4 or Python.
    pub(crate) fn mount(mib: u64) -> Option<Self> {
        let room = Room::new("power");
        let (at, image) = (room.file("mounted"), room.file("image"));
        fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let disk = Self { at, image, _room: room };
        let tools = run("mkfs.ext4", &["-q".as_ref(), disk.image.as_ref()]) && run("python3", &["-V".as_ref()]);
        (tools && disk.plug_in()).then_some(disk)
    }

    fn plug_in(&self) -> bool {
        run("mount", &["-o".as_ref(), "loop".as_ref(), self.image.as_ref(), self.at.as_ref()])
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// From this moment nothing reaches the disk: what was not synced is gone, the journal's memory included (`EXT4_IOC_SHUTDOWN`
    /// with `EXT4_GOING_FLAGS_NOLOGFLUSH`).
    pub(crate) fn cut(&self) {
        let script = "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        assert!(run("python3", &["-c".as_ref(), script.as_ref(), self.at.as_ref()]), "the file system was shut down");
    }

    /// The machine starts again: the file system replays its journal. Whoever had files open there has ended.
    pub(crate) async fn power_on(&self) {
        until_true("nobody uses the disk", PATIENCE, || run("umount", &[self.at.as_ref()])).await;
        assert!(self.plug_in(), "it can be mounted again");
    }
}

impl Drop for PoweredDisk {
    fn drop(&mut self) {
        run("umount", &["-l".as_ref(), self.at.as_ref()]);
    }
}

/// Whether the tool is there and succeeds.
fn run(tool: &str, arguments: &[&OsStr]) -> bool {
    let mut command = Command::new(tool);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
