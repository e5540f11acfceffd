//! What a guest sees of its phone's flash: the flash's files, its own writes over them, and who leads.
//!
//! In mirror ([`Lead::Mirror`]) the phone's changes replace what the guest wrote at the same path. In drive
//! ([`Lead::Drive`]) the guest's completed changes are announced; the phone's changes show too, except
//! where the guest is in the midst of writing.
//!
//! The operations are those of a file system without handles: a file is its number. They are in `ops.rs`,
//! `moves.rs` and `contents.rs`;
//! `fuse/` speaks the protocol.

mod contents;
mod drive;
mod layer;
mod moves;
mod ops;
mod paged;
mod save;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use sync_protocol::event::Origin;
use sync_protocol::scope::Scope;
use sync_protocol::{Hash, PhonePath, tree as hashing};

pub use drive::{Before, GuestChange, Lead};
pub(crate) use ops::now_ns;
pub use ops::{Caller, ListedName, Stat, StatChange, Statistics};

use crate::FlashError;
use crate::flash::Flash;
use crate::inode::{Ino, ROOT_INO};
use crate::tree::{Effect, Tree};
use drive::{Announcer, known};
use layer::{Layer, LayerBody, NameChange};

/// Most files a guest may have made or changed in its layer.
pub const LAYER_FILES_MAX: usize = 262_144;
/// Most bytes of pages in memory that a guest has written; more goes to the store as chunks.
pub const LAYER_PAGE_BYTES_MAX: usize = 64 << 20;
/// Most bytes that one view puts into the store for its guest's own writes. Then its disk is full.
pub const LAYER_STORED_BYTES_MAX: u64 = 4 << 30;
/// Largest file that a guest can write: what the phone could be told about.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

/// A guest's view of a flash. Cloning shares it.
#[derive(Clone)]
pub struct TwinView {
    shared: Arc<ViewShared>,
}

pub(crate) struct ViewShared {
    flash: Flash,
    read_only: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layer: Layer,
    lead: Lead,
    stored_bytes: u64,
    outbox: Vec<GuestChange>,
    listing: Option<ops::Listing>,
    /// Rises with every change that a listing could show.
    version: u64,
    /// When the guest last changed something.
    changed_at: Option<Instant>,
}

impl TwinView {
    /// A view of `flash` with an empty layer, in mirror.
    pub fn new(flash: Flash) -> Self {
        Self::with_state(flash, false, State::default())
    }

    /// A view that refuses to write.
    pub fn read_only(flash: Flash) -> Self {
        Self::with_state(flash, true, State::default())
    }

    fn with_state(flash: Flash, read_only: bool, state: State) -> Self {
        let shared = Arc::new(ViewShared {
            flash: flash.clone(),
            read_only,
            state: Mutex::new(state),
        });
        flash.attach(&shared);
        TwinView { shared }
    }

    /// The flash beneath.
    pub fn flash(&self) -> &Flash {
        &self.shared.flash
    }

    /// Hands the lead over. What the guest is in the midst of writing is completed under the old lead
    /// first; all else that it wrote stays as it is. Blocks while the channel of changes is full.
    pub fn set_lead(&self, lead: Lead) -> Result<(), FlashError> {
        self.complete()?;
        let mut state = self.shared.lock();
        if matches!(lead, Lead::Mirror) {
            state.layer.announced.clear();
        }
        state.lead = lead;
        Ok(())
    }

    /// When the guest last changed something; `None` if it never has, since it began or was restored.
    pub fn changed_at(&self) -> Option<Instant> {
        self.shared.lock().changed_at
    }

    /// Completes every file that the guest has written and not closed; in drive they are announced.
    pub fn complete(&self) -> Result<(), FlashError> {
        let completed = self.shared.with(|tree, state| {
            let written = state
                .layer
                .inodes
                .iter()
                .filter(|(_, inode)| inode.written.is_some());
            let written: Vec<Ino> = written.map(|(ino, _)| *ino).collect();
            written
                .into_iter()
                .try_for_each(|ino| self.shared.complete(tree, state, ino))
        });
        completed.map_err(|_| FlashError::Complete)
    }

    /// The guest's machine starts anew: it holds no file any more.
    pub fn guest_restarted(&self) {
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        let known: Vec<(Ino, u64)> = state
            .layer
            .lookups
            .iter()
            .map(|(ino, count)| (*ino, *count))
            .collect();
        for (ino, count) in known {
            state.layer.forget(&head.tree, ino, count);
        }
    }

    /// Drops the guest's own writes: it sees its phone's files.
    pub fn clear_layer(&self) {
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        let layer = std::mem::take(&mut state.layer);
        // Numbers are not given twice, and files that the guest still holds are not pulled away.
        state.layer.made = layer.made;
        state.layer.lookups = layer.lookups;
        state.layer.aliases = layer.aliases;
        for (ino, inode) in layer.inodes {
            if head.tree.get(ino).is_none() && state.layer.is_known_to_guest(ino) {
                state.layer.inodes.insert(ino, inode);
            }
        }
        state.layer.page_count = state
            .layer
            .inodes
            .values()
            .map(|inode| inode.page_count())
            .sum();
        state.version += 1;
    }

    /// The hash of everything in `scope` as the guest sees it, to be compared with [`Flash::root`].
    /// Files that the guest is writing count as they are now.
    pub fn root(&self, scope: &Scope) -> Result<Hash, FlashError> {
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        self.shared
            .store_pages(&mut state)
            .map_err(|_| FlashError::Complete)?;
        let layer = &state.layer;
        let entries = scope.roots().iter().map(|root| {
            let ino = root
                .components()
                .try_fold(ROOT_INO, |ino, name| layer.child(&head.tree, ino, name));
            (
                root,
                ino.and_then(|ino| drive::entry(layer, &head.tree, Some(scope), ino, root)),
            )
        });
        Ok(hashing::root_hash(entries.collect::<Vec<_>>()))
    }

    /// Paths at which the guest sees something else than the phone has, up to `max`, in no order.
    pub fn differences(&self, max: usize) -> Result<Vec<PhonePath>, FlashError> {
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        self.shared
            .store_pages(&mut state)
            .map_err(|_| FlashError::Complete)?;
        let (layer, tree) = (&state.layer, &head.tree);
        let named = layer.names.iter().flat_map(|(directory, names)| {
            names.keys().map(move |name| (*directory, name.clone()))
        });
        let copied = layer.inodes.keys().flat_map(|ino| layer.places(tree, *ino));
        let mut differing: Vec<_> = named
            .chain(copied)
            .filter(|place| !layer.agrees(tree, place))
            .collect();
        differing.sort();
        differing.dedup();
        let paths = differing.into_iter().filter_map(|(directory, name)| {
            layer
                .path(tree, directory)
                .and_then(|path| path.join(&name).ok())
        });
        Ok(paths.take(max).collect())
    }
}

impl ViewShared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation of the guest, then announces what it completed, with nothing locked.
    fn with<T>(
        &self,
        operation: impl FnOnce(&Tree, &mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let (result, outbox, lead) = {
            let head = self.flash.shared.read();
            let mut state = self.lock();
            let result = operation(&head.tree, &mut state);
            let outbox = std::mem::take(&mut state.outbox);
            // Cloned only when needed: this is on the way of every operation.
            let lead = if outbox.is_empty() {
                Lead::Mirror
            } else {
                state.lead.clone()
            };
            (result, outbox, lead)
        };
        if let Lead::Drive { changes, .. } = lead {
            for change in outbox {
                if let Err(error) = changes.blocking_send(change) {
                    tracing::error!(path = %error.0.change.path, "nobody takes the guest's change");
                }
            }
        }
        result
    }

    /// Ends the guest's writing of a file: in drive it is announced.
    fn complete(&self, tree: &Tree, state: &mut State, ino: Ino) -> Result<(), Errno> {
        let Some(inode) = state.layer.inodes.get_mut(&ino) else {
            return Ok(());
        };
        let Some(before) = inode.written.take() else {
            return Ok(());
        };
        if matches!(state.lead, Lead::Mirror) {
            return Ok(());
        }
        let pages_before = inode.page_count();
        let announced = state.announce(&self.flash.shared.chunks, tree, |announcer, layer| {
            announcer.put(layer, ino, Some(before))
        });
        if let Some(inode) = state.layer.inodes.get_mut(&ino) {
            if announced.is_err() {
                inode.written = Some(before);
            }
            let pages = inode.page_count();
            state.layer.page_count = state.layer.page_count + pages - pages_before;
        }
        announced
    }

    /// Turns the pages of all written files into chunks in the store.
    fn store_pages(&self, state: &mut State) -> Result<(), Errno> {
        for inode in state.layer.inodes.values_mut() {
            if let LayerBody::Regular(file) = &mut inode.body
                && file.contents().is_none()
            {
                state.stored_bytes += file.page_count() as u64 * paged::PAGE_BYTES as u64;
                *file = paged::PagedFile::new(drive::store_file(file, &self.flash.shared.chunks)?);
            }
        }
        state.layer.page_count = 0;
        Ok(())
    }

    /// Brings the layer in line with a change of the flash, which `tree` already has.
    pub(crate) fn flash_changed(&self, tree: &Tree, effect: &Effect, origin: Origin) {
        let mut state = self.lock();
        let drives = matches!(state.lead, Lead::Drive { .. });
        state.version += 1;
        let layer = &mut state.layer;
        for place in &effect.places {
            if layer.announced.get(place) == Some(&known(tree, place)) {
                layer.announced.remove(place);
            }
            let keep = match (drives, origin) {
                // The guest has gone on since it announced this change.
                (true, Origin::Helpdesk) => !layer.agrees(tree, place),
                (true, _) => layer.is_being_written(tree, place),
                (false, _) => false,
            };
            if keep {
                continue;
            }
            if !drives || origin != Origin::Helpdesk {
                show_way_to(layer, tree, place.0);
            }
            layer.drop_place(tree, place.0, &place.1);
            if let Some(ino) = tree
                .child(place.0, &place.1)
                .filter(|ino| effect.put == Some(*ino))
            {
                layer.drop_copy(tree, ino);
                layer.mark_stale(ino);
            }
        }
        if effect.put == Some(ROOT_INO) {
            layer.drop_copy(tree, ROOT_INO);
        }
        for inode in &effect.removed {
            layer.keep_removed(tree, inode);
        }
    }
}

/// Lets a directory of the flash show at its place, and those above it: something was put in it.
fn show_way_to(layer: &mut Layer, tree: &Tree, mut directory: Ino) {
    while let Some(inode) = tree.get(directory).filter(|inode| inode.ino != ROOT_INO) {
        let change = layer
            .names
            .get(&inode.parent)
            .and_then(|names| names.get(&inode.name))
            .copied();
        if change.is_some_and(|change| change != NameChange::Here(directory)) {
            layer.drop_place(tree, inode.parent, &inode.name);
        }
        directory = inode.parent;
    }
}

impl State {
    /// Runs `announce` if help-desk leads.
    fn announce(
        &mut self,
        chunks: &crate::chunks::Chunks,
        tree: &Tree,
        announce: impl FnOnce(&mut Announcer<'_>, &mut Layer) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match &self.lead {
            Lead::Mirror => Ok(()),
            Lead::Drive { scope, .. } => {
                let mut announcer = Announcer {
                    tree,
                    chunks,
                    scope,
                    outbox: &mut self.outbox,
                };
                announce(&mut announcer, &mut self.layer)
            }
        }
    }
}
