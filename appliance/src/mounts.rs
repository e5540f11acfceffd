//! Flashes mounted on this host, read-only, for people with tools of their own.
//!
//! Promises: at most [`MOUNTS_MAX`]; none is left when the appliance ends. Only the appliance's own command line may ask: a
//! directory of this host is named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flash::fuse::{Mount, mount};

use crate::flashes::{Flashes, FlashesError};
use crate::phones::Phone;

/// Mounts at once: each has threads of its own.
const MOUNTS_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{MOUNTS_MAX} flashes are mounted already")]
    TooMany,
    #[error("{0} is not an absolute path of a directory")]
    Directory(PathBuf),
    #[error("there is no mount {0}")]
    Unknown(u64),
    #[error("cannot mount: {0}")]
    Mount(#[source] flash::FlashError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
}

/// The register of mounts. All calls block.
#[derive(Clone)]
pub struct Mounts {
    flashes: Flashes,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    mounts: BTreeMap<u64, Mount>,
    count: u64,
}

impl Mounts {
    pub fn new(flashes: Flashes) -> Mounts {
        Mounts { flashes, state: Arc::default() }
    }

    /// Mounts the phone's flash as of `position` (without one: following the phone) on `directory`; gives the mount's number.
    pub fn add(&self, phone: &Phone, position: Option<u64>, directory: &Path) -> Result<u64, MountError> {
        if !directory.is_absolute() || !directory.is_dir() {
            return Err(MountError::Directory(directory.to_owned()));
        }
        if self.state().mounts.len() >= MOUNTS_MAX {
            return Err(MountError::TooMany);
        }
        let view = self.flashes.view(phone, position)?;
        let mounted = mount(view, directory, position.is_none()).map_err(MountError::Mount)?;
        let mut state = self.state();
        state.count += 1;
        let number = state.count;
        state.mounts.insert(number, mounted);
        Ok(number)
    }

    pub fn remove(&self, number: u64) -> Result<(), MountError> {
        // Dropped outside the lock: unmounting waits for whoever reads.
        let mounted = self.state().mounts.remove(&number).ok_or(MountError::Unknown(number))?;
        drop(mounted);
        Ok(())
    }

    pub fn remove_all(&self) {
        let mounts = std::mem::take(&mut self.state().mounts);
        drop(mounts);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
