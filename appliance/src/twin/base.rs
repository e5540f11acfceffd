//! Base snapshots: a machine of each image, saved while it waits at its gate, from which twins begin instead of booting.
//!
//! A base is a cache beside the image: the first twin that boots makes it on its way, each twin after that maps it, and whoever is
//! refused one boots as if it had not been there. Twins map it from memory, not from its file: a host may drop pages of files that nobody
//! has touched for a while, and an idle twin that is touched again would wait for a disk some thousand times. Promises: a base appears under its
//! name only when it is whole; its RAM is compared with its digest once in the life of this process; one that was refused is gone, so
//! that the next boot makes another.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image_builder::Image;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::{info, warn};

use super::control::{Control, ControlError};
use super::process::Saved;
use super::{gate, lock};

/// A guest that has not come to its gate by then is let on without being saved.
const AT_GATE_MAX: std::time::Duration = std::time::Duration::from_secs(50);
/// How the name of a base ends that is not whole yet, after its maker's process id.
const PARTIAL: &str = "new";
/// How much of a base is read at a time, and what of it is left out if it is all zeros.
const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// How much of the image's hash names the file: as much as names the image's folder.
const HASH_DIGITS: usize = 12;

#[derive(Default)]
pub(super) struct Bases {
    /// Found whole, or made, by this process.
    whole: Mutex<HashSet<Version>>,
    /// Being made.
    making: Mutex<HashSet<PathBuf>>,
    /// In memory; held while one is read, which none has to be twice.
    loaded: tokio::sync::Mutex<HashMap<PathBuf, (Version, Arc<File>)>>,
}

impl Bases {
    /// The base of `image`, if there is one.
    pub(super) fn find(&self, image: &Image) -> Option<Saved> {
        let path = path(image);
        let verify = !lock(&self.whole).contains(&Version::of(&path)?);
        Some(Saved { path, base: None, verify })
    }

    /// The base at `base` as a file in memory; none if it cannot be read or has no room there.
    pub(super) async fn in_memory(&self, base: &Path) -> Option<Arc<File>> {
        let version = Version::of(base)?;
        let mut loaded = self.loaded.lock().await;
        if let Some((of, file)) = loaded.get(base)
            && *of == version
        {
            return Some(file.clone());
        }
        let path = base.to_owned();
        let read = tokio::task::spawn_blocking(move || load(&path)).await.ok()?;
        let file = read.inspect_err(|error| warn!(base = %base.display(), %error, "twins map it from disk: it cannot be read into memory")).ok()?;
        let file = Arc::new(file);
        loaded.insert(base.to_owned(), (version, file.clone()));
        Some(file)
    }

    /// A machine has begun with it.
    pub(super) fn found_whole(&self, base: &Path) {
        if let Some(version) = Version::of(base) {
            lock(&self.whole).insert(version);
        }
    }

    /// No machine can begin with it.
    pub(super) fn refused(&self, base: &Path) {
        if let Err(error) = std::fs::remove_file(base) {
            warn!(base = %base.display(), %error, "cannot remove a base snapshot that is of no use");
        }
    }

    /// Waits until the guest, which boots, is at its gate, and saves it there if its image has no base yet. Fails only if the
    /// machine does not go on.
    pub(super) async fn make(&self, image: &Image, control: &Control) -> Result<(), ControlError> {
        let path = path(image);
        if path.exists() || !lock(&self.making).insert(path.clone()) {
            return Ok(());
        }
        let made = save(&path, control).await;
        lock(&self.making).remove(&path);
        if made? {
            // What was just written need not be read to be known.
            self.found_whole(&path);
        }
        Ok(())
    }
}

/// A file at one time: another may be put in its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Version {
    path: PathBuf,
    inode: u64,
    modified: (i64, i64),
}

impl Version {
    /// None if there is none.
    pub(super) fn of(path: &Path) -> Option<Version> {
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(Version { path: path.to_owned(), inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn path(image: &Image) -> PathBuf {
    let hash = &image.manifest().hash;
    image.dir().join(format!("gate-{}.snapshot", hash.get(..HASH_DIGITS).unwrap_or(hash)))
}

/// Reads a file into memory, where nothing changes it. Pages of zeros take none. Blocks.
fn load(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    let memory = File::from(memfd_create("base snapshot", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    let length = file.metadata()?.len();
    memory.set_len(length)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    for at in (0..length).step_by(CHUNK_BYTES) {
        let chunk = &mut chunk[..CHUNK_BYTES.min((length - at) as usize)];
        file.read_exact_at(chunk, at)?;
        for (page, at) in chunk.chunks(PAGE_BYTES).zip((at..).step_by(PAGE_BYTES)) {
            if page.iter().any(|byte| *byte != 0) {
                memory.write_all_at(page, at)?;
            }
        }
    }
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

/// Whether there is a base now.
async fn save(path: &Path, control: &Control) -> Result<bool, ControlError> {
    if !control.port_wait(gate::PORT, AT_GATE_MAX).await? {
        warn!("the guest does not come to its gate; its image has no base snapshot");
        return Ok(false);
    }
    clear_partial(path);
    // Another appliance may share the image.
    let partial = path.with_extension(format!("{}.{PARTIAL}", std::process::id()));
    control.pause().await?;
    let saved = control.save(&partial, true).await;
    control.resume().await?;
    match saved.map_err(|e| e.to_string()).and_then(|_| std::fs::rename(&partial, path).map_err(|e| e.to_string())) {
        Ok(()) => {
            info!(base = %path.display(), "base snapshot made");
            Ok(true)
        }
        Err(error) => {
            warn!(base = %path.display(), error, "no base snapshot was made; twins boot");
            // It may not be there.
            let _ = std::fs::remove_file(&partial);
            Ok(false)
        }
    }
}

/// Removes what appliances left of `path` that were killed while they made it.
fn clear_partial(path: &Path) {
    let Some((folder, stem)) = path.parent().zip(path.file_stem().and_then(|stem| stem.to_str())) else { return };
    let stale = |name: &str| {
        let middle = name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(PARTIAL)?;
        let maker: u32 = middle.strip_suffix('.')?.parse().ok()?;
        (!Path::new("/proc").join(maker.to_string()).exists()).then_some(())
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().and_then(stale).is_some()) {
        info!(partial = %entry.path().display(), "removing what is left of a base snapshot that was not finished");
        // If it cannot be removed, the next one that makes a base tries again.
        let _ = std::fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_in_memory_is_what_it_was_on_disk_and_cannot_be_changed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("base");
        // A page of zeros between two that are not, and a piece of one at the end, beyond a whole chunk.
        let mut bytes = vec![0; CHUNK_BYTES + 3 * PAGE_BYTES + 7];
        for at in [1, 2 * PAGE_BYTES, CHUNK_BYTES + 3 * PAGE_BYTES] {
            bytes[at] = 9;
        }
        std::fs::write(&path, &bytes).expect("file");
        let memory = load(&path).expect("loaded");
        let mut read = vec![1; bytes.len()];
        memory.read_exact_at(&mut read, 0).expect("read");
        assert!(read == bytes && memory.metadata().expect("metadata").len() == bytes.len() as u64);
        assert_eq!(memory.metadata().expect("metadata").blocks() * 512, 3 * PAGE_BYTES as u64, "zeros take no memory");
        assert!(memory.write_all_at(&[1], 0).is_err());
        assert!(memory.set_len(1).is_err());
    }

    #[test]
    fn what_a_killed_appliance_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let base = folder.path().join("gate-0123.snapshot");
        // No process has this id: it is above what the kernel gives (Linux, admin-guide/sysctl/kernel.rst, pid_max).
        let gone = u32::MAX;
        let (left, ours) = (format!("gate-0123.{gone}.new"), format!("gate-0123.{}.new", std::process::id()));
        let stay = ["gate-0123.snapshot".into(), ours, format!("gate-4567.{gone}.new"), "gate-0123.x.new".into()];
        for name in stay.iter().chain([&left]) {
            std::fs::write(folder.path().join(name), "").expect("file");
        }
        clear_partial(&base);
        assert!(!folder.path().join(left).exists());
        assert!(stay.iter().all(|name| folder.path().join(name).exists()));
    }
}
