//! Moving files, in all the ways of `renameat2`.

use nix::errno::Errno;
use sync_protocol::PhonePath;

use crate::chunks::Chunks;
use crate::inode::{Ino, ROOT_INO};
use crate::tree::{Place, Tree};
use crate::view::drive::{Announcer, Known, expected};
use crate::view::layer::{Layer, NameChange};
use crate::view::ops::{OpResult, check_name, now_ns};
use crate::view::{LAYER_FILES_MAX, Lead, State, TwinView};

impl TwinView {
    /// Moves a file. `flags` are those of renameat2: `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> OpResult<()> {
        check_name(to.1)?;
        let exchange = flags == libc::RENAME_EXCHANGE;
        let no_replace = flags == libc::RENAME_NOREPLACE;
        if flags != 0 && !exchange && !no_replace {
            return Err(Errno::EINVAL);
        }
        self.change(|tree, state| {
            let from: Place = (state.directory(tree, from.0)?, from.1.into());
            let to: Place = (state.directory(tree, to.0)?, to.1.into());
            let moved = state.child(tree, from.0, &from.1)?;
            let replaced = state.layer.child(tree, to.0, &to.1);
            if replaced.is_none() && exchange {
                return Err(Errno::ENOENT);
            }
            if replaced.is_some() && no_replace {
                return Err(Errno::EEXIST);
            }
            if replaced == Some(moved) {
                return Ok(());
            }
            state.check_room()?;
            let both = replaced.filter(|_| exchange);
            if is_within(&state.layer, tree, to.0, moved)
                || both.is_some_and(|other| is_within(&state.layer, tree, from.0, other))
            {
                return Err(Errno::EINVAL);
            }
            if let Some(replaced) = replaced.filter(|_| !exchange) {
                self.check_replaceable(tree, state, moved, replaced)?;
            }
            let written: Vec<Ino> = match state.lead {
                Lead::Mirror => Vec::new(),
                // What is announced before the move is announced at its old path.
                Lead::Drive { .. } => {
                    let written = state
                        .layer
                        .inodes
                        .iter()
                        .filter(|(_, inode)| inode.written.is_some());
                    written.map(|(ino, _)| *ino).collect()
                }
            };
            for ino in written {
                self.shared.complete(tree, state, ino)?;
            }
            let now = now_ns();
            let arrivals = state.move_name(self.chunks(), tree, &from, &to, moved, both)?;
            if let Some(replaced) = replaced.filter(|_| !exchange) {
                state.layer.free_if_unreachable(tree, replaced);
            }
            state.announce(self.chunks(), tree, |announcer, layer| {
                arrivals
                    .into_iter()
                    .try_for_each(|ino| announcer.put_all(layer, ino))
            })?;
            state.touch(tree, from.0, now)?;
            state.touch(tree, to.0, now)
        })
    }

    fn check_replaceable(
        &self,
        tree: &Tree,
        state: &State,
        moved: Ino,
        replaced: Ino,
    ) -> OpResult<()> {
        match (
            state.seen(tree, moved)?.is_directory(),
            state.seen(tree, replaced)?.is_directory(),
        ) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !state.layer.children(tree, replaced).is_empty() => {
                Err(Errno::ENOTEMPTY)
            }
            _ => Ok(()),
        }
    }
}

/// Whether `directory` is `ancestor` or beneath it.
fn is_within(layer: &Layer, tree: &Tree, directory: Ino, ancestor: Ino) -> bool {
    let mut at = directory;
    // Deeper than any tree: if there were a circle, nothing may be moved into it.
    for _ in 0..LAYER_FILES_MAX {
        if at == ancestor {
            return true;
        }
        match layer.places(tree, at).into_iter().next() {
            Some((parent, _)) if at != ROOT_INO => at = parent,
            _ => return false,
        }
    }
    true
}

impl State {
    /// Moves or exchanges names, announcing what stays in scope; returns files that came into scope.
    fn move_name(
        &mut self,
        chunks: &Chunks,
        tree: &Tree,
        from: &Place,
        to: &Place,
        moved: Ino,
        exchanged: Option<Ino>,
    ) -> OpResult<Vec<Ino>> {
        let mut arrivals = Vec::new();
        let place_exchanged = exchanged.is_some();
        self.announce(chunks, tree, |announcer, layer| {
            let paths = (
                announcer.path_in_scope(layer, from),
                announcer.path_in_scope(layer, to),
            );
            match paths {
                // An exchange is no single event: both are told anew.
                _ if place_exchanged => {
                    arrivals.extend([Some(moved), exchanged].into_iter().flatten())
                }
                (Some(old), Some(new)) if announcer.can_rename(layer, from, &old, &new) => {
                    announcer.rename(layer, from.clone(), to.clone(), (old, new));
                }
                (old, Some(_)) => {
                    if old.is_some() {
                        announcer.remove(layer, from.clone());
                    }
                    arrivals.push(moved);
                }
                (Some(_), None) => announcer.remove(layer, from.clone()),
                (None, None) => {}
            }
            if place_exchanged {
                announcer.remove(layer, from.clone());
                announcer.remove(layer, to.clone());
            }
            Ok(())
        })?;
        match exchanged {
            Some(other) => self
                .layer
                .set_name(from.0, &from.1, Some(NameChange::Here(other))),
            None => self.layer.take_name(tree, from.0, &from.1),
        }
        self.layer
            .set_name(to.0, &to.1, Some(NameChange::Here(moved)));
        Ok(arrivals)
    }
}

impl Announcer<'_> {
    /// Whether a move is one event: the appliance has, or will have, something to move, and all of it is
    /// captured at its new place as at its old one.
    fn can_rename(&self, layer: &Layer, from: &Place, old: &PhonePath, new: &PhonePath) -> bool {
        let mut excludes = self.scope.excludes().iter();
        expected(layer, self.tree, from) != Known::Absent
            && !excludes.any(|exclude| exclude.is_within(old) || exclude.is_within(new))
    }
}
