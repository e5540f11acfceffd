//! The disk of a machine that may lose its power: a folder of real files, of which it is known what was flushed.
//!
//! What a crash leaves: what was flushed, and of what was written since, by sectors, all, nothing or a part - so writes are lost, torn and
//! reordered. A killed process loses nothing that it had written. A file that was never flushed may be gone.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Files by their paths in the folder.
pub(crate) type Image = BTreeMap<PathBuf, Vec<u8>>;

static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// Disks on which a write may fail. Others need not be looked for.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Disk {
    root: PathBuf,
    state: Mutex<State>,
    dead: AtomicBool,
    /// Told when it crashes.
    pub(crate) died: Notify,
}

struct State {
    random: SmallRng,
    /// As flushed last.
    flushed: Image,
    /// Writes and flushes until it crashes.
    crash_in: Option<u32>,
    left: Option<Image>,
    full: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// A disk in the folder `root`, which holds `image`, flushed.
    pub(crate) fn new(root: &Path, image: &Image, seed: u64) -> Arc<Disk> {
        for (path, bytes) in image {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("in the folder")).expect("a folder");
            std::fs::write(path, bytes).expect("written");
        }
        std::fs::create_dir_all(root).expect("a folder");
        let random = SmallRng::seed_from_u64(seed);
        let state = State { random, flushed: image.clone(), crash_in: None, left: None, full: false };
        let disk = Arc::new(Disk {
            root: root.to_owned(),
            state: Mutex::new(state),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        });
        WATCHED.fetch_add(1, SeqCst);
        lock(&DISKS).push(disk.clone());
        disk
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(SeqCst)
    }

    /// Crashes the machine at the `count`th write or flush from now on.
    pub(crate) fn crash_in(&self, count: u32) {
        lock(&self.state).crash_in = Some(count);
    }

    pub(crate) fn set_full(&self, full: bool) {
        lock(&self.state).full = full;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        let mut state = lock(&self.state);
        (state.crash_in, state.full) = (None, false);
    }

    /// A bit of a blob decays; whether there was one.
    pub(crate) fn decay(&self, seed: u64) -> bool {
        let path = self.root.join("blobs/pack-000001");
        let mut random = SmallRng::seed_from_u64(seed);
        let Ok(mut bytes) = std::fs::read(&path) else { return false };
        if bytes.is_empty() || self.is_dead() {
            return false;
        }
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        // Decay is no write: it needs no room, and nothing crashes at it.
        let mut state = lock(&self.state);
        let (full, crash_in) = (std::mem::take(&mut state.full), state.crash_in.take());
        drop(state);
        std::fs::write(&path, bytes).expect("decayed");
        let mut state = lock(&self.state);
        (state.full, state.crash_in) = (full, crash_in);
        true
    }

    /// Crashes the machine now, if it has not crashed before, and gives what is left on the disk.
    pub(crate) fn crash(&self) -> Image {
        let mut state = lock(&self.state);
        self.die(&mut state);
        state.left.clone().expect("it has crashed")
    }

    /// The machine and its files are gone.
    pub(crate) fn remove(self: Arc<Disk>) {
        let mut disks = lock(&DISKS);
        let before = disks.len();
        disks.retain(|disk| !Arc::ptr_eq(disk, &self));
        WATCHED.fetch_sub(before - disks.len(), SeqCst);
        drop(disks);
        // What still holds a file open does not mind.
        let _ = std::fs::remove_dir_all(&self.root);
    }

    fn die(&self, state: &mut State) {
        if self.dead.swap(true, SeqCst) {
            return;
        }
        let mut written = Image::new();
        collect(&self.root, &self.root, &mut written);
        // Of ten crashes, so many are kills, and lose nothing, and so many lose all that was not flushed.
        let way = state.random.random_range(0..10);
        let mut left = Image::new();
        for (path, bytes) in written {
            let flushed = state.flushed.get(&path);
            let kept = match way {
                0..3 => Some(bytes),
                // The database flushes these itself, by another call, before anything refers to them.
                _ if path.starts_with("sled") && !path.ends_with("db") => Some(bytes),
                3..5 => flushed.cloned(),
                _ => torn(flushed, &bytes, &mut state.random),
            };
            left.extend(kept.map(|bytes| (path, bytes)));
        }
        state.left = Some(left);
        self.died.notify_one();
    }

    /// A write or a flush: whether the machine crashes at it.
    fn crashes(&self, state: &mut State) -> bool {
        let crash = match &mut state.crash_in {
            Some(0) => true,
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        };
        if crash {
            self.die(state);
        }
        crash
    }
}

/// All files beneath `folder`; not those by which processes find each other, which a crash leaves nothing of.
fn collect(root: &Path, folder: &Path, into: &mut Image) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => collect(root, &path, into),
            false if path.to_string_lossy().ends_with("-shm") => {}
            false => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                into.insert(path.strip_prefix(root).expect("beneath").to_owned(), bytes);
            }
        }
    }
}

/// What may be left of a file: of each sector that was written since it was flushed, the one or the other; none if it is gone.
fn torn(flushed: Option<&Vec<u8>>, written: &[u8], random: &mut SmallRng) -> Option<Vec<u8>> {
    if flushed.is_none() && random.random_bool(0.3) {
        return None;
    }
    let flushed = flushed.map_or(&[][..], Vec::as_slice);
    let (short, long) = (flushed.len().min(written.len()), flushed.len().max(written.len()));
    let length = if random.random_bool(0.5) { written.len() } else { random.random_range(short..=long) };
    let keeps = random.random_range(0.1..0.9);
    let mut left = vec![0; length];
    for (index, sector) in left.chunks_mut(SECTOR_BYTES).enumerate() {
        let at = index * SECTOR_BYTES;
        let source = if random.random_bool(keeps) { written } else { flushed };
        let source = source.get(at..).unwrap_or_default();
        let count = source.len().min(sector.len());
        sector[..count].copy_from_slice(&source[..count]);
    }
    Some(left)
}

/// The disk that a file is on, and its path there.
fn disk_of(file: i32) -> Option<(Arc<Disk>, PathBuf)> {
    let path = std::fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
    let disks = lock(&DISKS);
    let disk = disks.iter().find(|disk| path.starts_with(&disk.root))?;
    Some((disk.clone(), path.strip_prefix(&disk.root).ok()?.to_owned()))
}

/// Flushes a file, if it is on a disk of the run; or fails with an errno.
pub(crate) fn sync(file: i32) -> Option<Result<(), i32>> {
    let (disk, path) = disk_of(file)?;
    let mut state = lock(&disk.state);
    // The database does not survive being told of a failure, and what it does after the crash reaches nobody.
    let dead = if path.starts_with("sled") { Ok(()) } else { Err(libc::EIO) };
    if disk.is_dead() {
        return Some(dead);
    }
    let crashes_before = state.random.random_bool(0.5);
    if crashes_before && disk.crashes(&mut state) {
        return Some(dead);
    }
    if let Ok(bytes) = std::fs::read(disk.root.join(&path)) {
        state.flushed.insert(path, bytes);
    }
    if !crashes_before && disk.crashes(&mut state) {
        return Some(dead);
    }
    Some(Ok(()))
}

/// Whether a file may be written to; or fails with an errno.
pub(crate) fn write(file: i32) -> Result<(), i32> {
    if WATCHED.load(SeqCst) == 0 || file < 3 {
        return Ok(());
    }
    let Some((disk, path)) = disk_of(file) else { return Ok(()) };
    // The database writes from threads of its own, whenever it likes.
    if path.starts_with("sled") {
        return Ok(());
    }
    let mut state = lock(&disk.state);
    if disk.is_dead() || disk.crashes(&mut state) {
        return Err(libc::EIO);
    }
    if state.full { Err(libc::ENOSPC) } else { Ok(()) }
}

pub(crate) fn is_full(path: &CStr) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    lock(&DISKS).iter().any(|disk| path.starts_with(&disk.root) && lock(&disk.state).full)
}
