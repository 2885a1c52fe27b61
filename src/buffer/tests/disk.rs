//! A disk in memory with the faults that must be survived: writes that a power cut loses, tears or reorders; folder
//! entries that were not synced; syncs that fail (and, as Linux does, forget what was dirty); calls that fail; a disk
//! that is full, and has room again; bits that flip.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::storage::{Filled, Handle, Space, Storage};

#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    inodes: Vec<Inode>,
    /// As a process sees the folder, and as a power cut leaves it.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    locked: BTreeSet<PathBuf>,
    /// Handles of earlier lives do nothing.
    life: u64,
    capacity: Option<u64>,
    faults: Faults,
    /// What was called, in order, once somebody has asked.
    calls: Option<Vec<String>>,
    /// Bytes of segments that were read.
    read_bytes: u64,
    /// What other threads do while a file of this name is being synced, once.
    meanwhile: Option<(&'static str, Meanwhile)>,
}

struct Meanwhile(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// So many changing calls (write, cut, sync, create, remove, folder sync) succeed, then `failing` fail.
    pub(super) after: Option<usize>,
    pub(super) failing: usize,
    /// So many syncs of segments fail.
    pub(super) syncs: usize,
    /// So many calls that change nothing (read, open, list, length) succeed, then `reads_failing` fail.
    pub(super) reads_after: Option<usize>,
    pub(super) reads_failing: usize,
    /// So many deletions are not allowed.
    pub(super) removes: usize,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Change>,
    /// What cannot be read until it is written again.
    broken: Option<Range<u64>>,
    /// Behind it is a hole, which takes no room.
    hole: u64,
    durable_hole: u64,
}

impl Inode {
    /// It is durable.
    fn reach(&mut self, change: &Change) {
        apply(&mut self.durable, change);
        self.durable_hole = match change {
            Change::Write(pos, bytes) => self.durable_hole.max(pos + bytes.len() as u64),
            Change::Len(len) => self.durable_hole.min(*len),
        };
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

/// Random numbers of a seed (splitmix64): one seed is one run.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides.max(1)
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(pos, new) => {
            let (from, to) = (*pos as usize, *pos as usize + new.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(new);
        }
        Change::Len(len) => bytes.resize(*len as usize, 0),
    }
}

impl SimDisk {
    pub(super) fn faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    pub(super) fn capacity(&self, capacity: Option<u64>) {
        self.0.lock().capacity = capacity;
    }

    pub(super) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.0.lock().calls.replace(Vec::new()).unwrap_or_default()
    }

    /// Bytes of segments that were read since this was asked last.
    pub(super) fn bytes_read(&self) -> u64 {
        std::mem::take(&mut self.0.lock().read_bytes)
    }

    /// Does this in the middle of the next sync of `file`.
    pub(super) fn while_syncing(&self, file: &'static str, what: impl FnOnce() + Send + 'static) {
        self.0.lock().meanwhile = Some((file, Meanwhile(Box::new(what))));
    }

    /// What was written to a file, without a hole at its end.
    pub(super) fn read(&self, path: &Path) -> Vec<u8> {
        let world = self.0.lock();
        let inode = &world.inodes[world.names[path]];
        inode.cached[..inode.hole as usize].to_vec()
    }

    /// The bytes of a file that take room.
    pub(super) fn len(&self, path: &Path) -> u64 {
        let world = self.0.lock();
        world.inodes[world.names[path]].hole
    }

    /// The length of a file as a folder shows it.
    pub(super) fn shown_len(&self, path: &Path) -> u64 {
        let world = self.0.lock();
        world.inodes[world.names[path]].cached.len() as u64
    }

    /// Damage to what was written to a file; a hole behind it stays.
    pub(super) fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.0.lock();
        let at = world.names[path];
        let inode = &mut world.inodes[at];
        let shown = inode.cached.len();
        inode.cached.truncate(inode.hole as usize);
        change(&mut inode.cached);
        inode.hole = inode.cached.len() as u64;
        let len = inode.cached.len().max(shown);
        inode.cached.resize(len, 0);
        inode.durable = inode.cached.clone();
        inode.durable_hole = inode.hole;
        inode.dirty.clear();
    }

    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut world = self.0.lock();
        let at = world.inodes.len();
        let hole = bytes.len() as u64;
        world.inodes.push(Inode {
            cached: bytes.to_vec(),
            durable: bytes.to_vec(),
            hole,
            durable_hole: hole,
            ..Inode::default()
        });
        world.names.insert(path.to_owned(), at);
        world.durable_names.insert(path.to_owned(), at);
    }

    /// Bytes of a file that cannot be read any more.
    pub(super) fn break_sectors(&self, path: &Path, range: Range<u64>) {
        let mut world = self.0.lock();
        let at = world.names[path];
        world.inodes[at].broken = Some(range);
    }

    /// Another disk with the same files, as they are durable.
    pub(super) fn copy(&self) -> Self {
        let world = self.0.lock();
        let copy = Self::default();
        for (path, inode) in &world.names {
            let inode = &world.inodes[*inode];
            copy.put(path, &inode.durable);
            let mut world = copy.0.lock();
            let put = world.names[path];
            (world.inodes[put].hole, world.inodes[put].durable_hole) = (inode.durable_hole, inode.durable_hole);
        }
        copy
    }

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let world = self.0.lock();
        world.names.keys().filter(|path| path.extension().is_some_and(|end| end == "seg")).cloned().collect()
    }

    /// The process ends: what was written stays.
    pub(super) fn kill(&self) {
        let mut world = self.0.lock();
        world.life += 1;
        world.locked.clear();
        world.faults = Faults::default();
    }

    /// The machine ends: of what was not synced, any part may be there, also torn.
    pub(super) fn cut_power(&self, dice: &mut Dice) {
        self.kill();
        let mut world = self.0.lock();
        let world = &mut *world;
        for inode in &mut world.inodes {
            let ordered = dice.roll(2) == 0;
            let keep = dice.roll(inode.dirty.len() as u64 + 1) as usize;
            for (n, change) in std::mem::take(&mut inode.dirty).into_iter().enumerate() {
                match change {
                    _ if ordered && n > keep => {}
                    Change::Write(pos, bytes) if (ordered && n == keep) || dice.roll(2) == 0 => {
                        let torn = dice.roll(bytes.len() as u64 + 1) as usize;
                        inode.reach(&Change::Write(pos, bytes[..torn].to_vec()));
                    }
                    whole => inode.reach(&whole),
                }
            }
            inode.cached = inode.durable.clone();
            inode.hole = inode.durable_hole;
        }
        let paths: BTreeSet<PathBuf> = world.names.keys().chain(world.durable_names.keys()).cloned().collect();
        for path in paths {
            let (now, durable) = (world.names.get(&path).copied(), world.durable_names.get(&path).copied());
            let left = if now == durable || dice.roll(2) == 0 { durable } else { now };
            for names in [&mut world.names, &mut world.durable_names] {
                match left {
                    Some(inode) => names.insert(path.clone(), inode),
                    None => names.remove(&path),
                };
            }
        }
    }
}

impl World {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].hole).sum()
    }

    fn read_call(&mut self) -> io::Result<()> {
        failing(&mut self.faults.reads_after, &mut self.faults.reads_failing)
    }

    fn call(&mut self, what: &str, path: &Path) -> io::Result<()> {
        if let Some(calls) = &mut self.calls {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            calls.push(format!("{what} {name}"));
        }
        failing(&mut self.faults.after, &mut self.faults.failing)
    }
}

fn failing(after: &mut Option<usize>, failing: &mut usize) -> io::Result<()> {
    match after {
        Some(0) if *failing > 0 => {
            *failing -= 1;
            Err(io::Error::from_raw_os_error(5))
        }
        Some(0) | None => Ok(()),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: usize,
    life: u64,
}

impl SimFile {
    fn alive(&self, world: &World) -> io::Result<()> {
        if world.life == self.life { Ok(()) } else { Err(io::Error::other("of an earlier life")) }
    }
}

impl Handle for SimFile {
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let mut world = self.disk.0.lock();
        world.read_call()?;
        let to = pos.saturating_add(buf.len() as u64);
        if world.inodes[self.inode].broken.as_ref().is_some_and(|broken| broken.start < to && pos < broken.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let bytes = world.inodes[self.inode].cached.get(pos as usize..).unwrap_or_default();
        let len = bytes.len().min(buf.len());
        buf[..len].copy_from_slice(&bytes[..len]);
        if self.path.extension().is_some_and(|end| end == "seg") {
            world.read_bytes += len as u64;
        }
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], pos: u64) -> io::Result<()> {
        let mut world = self.disk.0.lock();
        self.alive(&world)?;
        if let Err(error) = world.call("write", &self.path) {
            // It fails half-way.
            let change = Change::Write(pos, bytes[..bytes.len() / 2].to_vec());
            let inode = &mut world.inodes[self.inode];
            apply(&mut inode.cached, &change);
            inode.hole = inode.hole.max(pos + bytes.len() as u64 / 2);
            inode.dirty.push(change);
            return Err(error);
        }
        let grows = (pos + bytes.len() as u64).saturating_sub(world.inodes[self.inode].hole);
        let room = world.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(world.used()));
        let fits = bytes.len() - grows.saturating_sub(room) as usize;
        let change = Change::Write(pos, bytes[..fits].to_vec());
        let inode = &mut world.inodes[self.inode];
        // The disk has spare sectors.
        inode.broken.take_if(|broken| broken.start >= pos && broken.end <= pos + fits as u64);
        apply(&mut inode.cached, &change);
        inode.hole = inode.hole.max(pos + fits as u64);
        inode.dirty.push(change);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.disk.0.lock();
        self.alive(&world)?;
        world.call("cut", &self.path)?;
        let inode = &mut world.inodes[self.inode];
        apply(&mut inode.cached, &Change::Len(len));
        inode.hole = inode.hole.min(len);
        inode.dirty.push(Change::Len(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.0.lock();
        self.alive(&world)?;
        let segment = self.path.extension().is_some_and(|end| end == "seg");
        let mut called = world.call("sync", &self.path);
        if segment && world.faults.syncs > 0 {
            world.faults.syncs -= 1;
            called = Err(io::Error::from_raw_os_error(5));
        }
        let inode = &mut world.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        // Linux marks pages clean after a failed write-back: a later sync succeeds and writes nothing.
        called?;
        dirty.iter().for_each(|change| inode.reach(change));
        let meanwhile = world.meanwhile.take_if(|(file, _)| self.path.file_name().is_some_and(|name| name == *file));
        drop(world);
        if let Some((_, Meanwhile(what))) = meanwhile {
            what();
        }
        Ok(())
    }

    fn filled(&self) -> io::Result<Filled> {
        let mut world = self.disk.0.lock();
        world.read_call()?;
        Ok(Filled { end: world.inodes[self.inode].hole, unit: 1 })
    }

    fn len(&self) -> io::Result<u64> {
        let mut world = self.disk.0.lock();
        world.read_call()?;
        Ok(world.inodes[self.inode].cached.len() as u64)
    }
}

#[derive(Debug)]
struct SimLock(SimDisk, PathBuf, u64);

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut world = self.0.0.lock();
        if world.life == self.2 {
            world.locked.remove(&self.1);
        }
    }
}

impl Storage for SimDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut world = self.0.lock();
        world.read_call()?;
        let files = world.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(files.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let mut world = self.0.lock();
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.call("create", path)?;
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.names.insert(path.to_owned(), inode);
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), inode, life: world.life }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let mut world = self.0.lock();
        world.read_call()?;
        let inode = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), inode, life: world.life }))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.call("remove", path)?;
        if world.faults.removes > 0 {
            world.faults.removes -= 1;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        world.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.call("rename", from)?;
        let inode = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.call("syncdir", dir)?;
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let world = self.0.lock();
        let total = world.capacity.unwrap_or(1 << 40);
        Ok(Space { free: total.saturating_sub(world.used()), total })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut world = self.0.lock();
        if !world.locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock(self.clone(), path.to_owned(), world.life)))
    }
}
