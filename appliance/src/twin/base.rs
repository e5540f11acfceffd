//! Base snapshots: a machine of each image, saved while it waits at its gate, from which twins begin instead of booting.
//!
//! A base is a cache beside the image: the first twin that boots makes it on its way, each twin after that maps it, and whoever is
//! refused one boots as if it had not been there. Promises: a base appears under its name only when it is whole; its RAM is compared
//! with its digest once in the life of this process; one that was refused is gone, so that the next boot makes another.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image_builder::Image;
use tracing::{info, warn};

use super::control::{Control, ControlError};
use super::process::Saved;
use super::{gate, lock};

/// A guest that has not come to its gate by then is let on without being saved.
const AT_GATE_MAX: std::time::Duration = std::time::Duration::from_secs(50);
/// How the name of a base ends that is not whole yet, after its maker's process id.
const PARTIAL: &str = "new";
/// How much of the image's hash names the file: as much as names the image's folder.
const HASH_DIGITS: usize = 12;

#[derive(Default)]
pub(super) struct Bases {
    /// Found whole, or made, by this process.
    whole: Mutex<HashSet<Version>>,
    /// Being made.
    making: Mutex<HashSet<PathBuf>>,
}

impl Bases {
    /// The base of `image`, if there is one.
    pub(super) fn find(&self, image: &Image) -> Option<Saved> {
        let path = path(image);
        let verify = !lock(&self.whole).contains(&Version::of(&path)?);
        Some(Saved { path, base: None, verify })
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
