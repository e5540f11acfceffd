//! A twin's own writes, over its phone's flash.
//!
//! The layer goes by inode, not by path: it holds inodes that the guest made or changed, and per
//! directory the names that it gave or took. So a directory that the phone renames takes along what the
//! guest did in it.
//!
//! Three kinds of numbers: a flash's own (below [`LAYER_INO_FIRST`]), the layer's own (from there on), and
//! *aliases*: when a file that the guest made appears in the flash (the phone made it too), the guest goes
//! on knowing it by the layer's number, which from then on stands for the flash's.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sync_protocol::PhonePath;
use sync_protocol::tree::{self as hashing, Entry as TreeEntry, FileKind};

use crate::inode::{Attributes, Body, Ino, Inode, Name, ROOT_INO};
use crate::tree::{Place, Tree};
use crate::view::drive::Known;
use crate::view::paged::PagedFile;

/// First number of the files that guests make: no flash counts that far.
pub(crate) const LAYER_INO_FIRST: Ino = 1 << 48;

/// A file that the guest made or changed, or one that the flash has lost while the guest holds it open.
#[derive(Debug, Clone)]
pub(crate) struct LayerInode {
    pub(crate) attributes: Attributes,
    pub(crate) ctime_ns: i64,
    pub(crate) body: LayerBody,
    /// Written and not completed since. `Known`: what had been at its place before.
    pub(crate) written: Option<Known>,
}

#[derive(Debug, Clone)]
pub(crate) enum LayerBody {
    Regular(PagedFile),
    Directory,
    Symlink(Arc<[u8]>),
    Special { format: u32, rdev: u32 },
}

impl LayerBody {
    fn of(body: &Body) -> Self {
        match body {
            Body::Regular(contents) => LayerBody::Regular(PagedFile::new(contents.clone())),
            Body::Directory(_) => LayerBody::Directory,
            Body::Symlink(target) => LayerBody::Symlink(target.clone()),
            Body::Special { format, rdev } => LayerBody::Special {
                format: *format,
                rdev: *rdev,
            },
        }
    }

    pub(crate) fn format(&self) -> u32 {
        match self {
            LayerBody::Regular(_) => libc::S_IFREG,
            LayerBody::Directory => libc::S_IFDIR,
            LayerBody::Symlink(_) => libc::S_IFLNK,
            LayerBody::Special { format, .. } => *format,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            LayerBody::Regular(file) => file.size(),
            LayerBody::Symlink(target) => target.len() as u64,
            LayerBody::Directory | LayerBody::Special { .. } => 0,
        }
    }
}

impl LayerInode {
    pub(crate) fn of(inode: &Inode) -> Self {
        LayerInode {
            attributes: inode.attributes,
            ctime_ns: inode.attributes.mtime_ns,
            body: LayerBody::of(&inode.body),
            written: None,
        }
    }

    pub(crate) fn page_count(&self) -> usize {
        match &self.body {
            LayerBody::Regular(file) => file.page_count(),
            _ => 0,
        }
    }

    /// The entry as it is hashed, if this is a link or a file without loose pages.
    pub(crate) fn leaf_entry(&self) -> Option<TreeEntry> {
        let (kind, content) = match &self.body {
            LayerBody::Regular(file) => (FileKind::Regular, file.contents()?.hash()),
            LayerBody::Symlink(target) => (FileKind::Symlink, hashing::link_content(target)),
            LayerBody::Directory | LayerBody::Special { .. } => return None,
        };
        Some(self.attributes.entry(kind, self.body.size(), content))
    }
}

/// What the guest did to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameChange {
    /// It stands for this file.
    Here(Ino),
    /// It is gone, whatever the flash has.
    Gone,
}

#[derive(Debug, Default)]
pub(crate) struct Layer {
    pub(crate) inodes: HashMap<Ino, LayerInode>,
    pub(crate) names: HashMap<Ino, BTreeMap<Name, NameChange>>,
    /// The inverse of `names`' `Here`.
    here: HashMap<Ino, BTreeSet<Place>>,
    /// Number known to the guest -> the flash's number.
    pub(crate) aliases: HashMap<Ino, Ino>,
    /// The flash's number -> the alias that new lookups are told.
    shown_as: HashMap<Ino, Ino>,
    /// How often the guest was told a number and has not forgotten it.
    pub(crate) lookups: HashMap<Ino, u64>,
    /// What places will hold when what was announced has been applied.
    pub(crate) announced: HashMap<Place, Known>,
    /// Files whose contents the flash changed since the guest last opened them.
    stale: HashSet<Ino>,
    /// How many files the guest has made: numbers are not given twice.
    pub(crate) made: u64,
    /// Pages in memory of all files here.
    pub(crate) page_count: usize,
}

/// A file as the guest sees it.
pub(crate) enum Seen<'a> {
    Flash(&'a Arc<Inode>),
    Layer(&'a LayerInode),
}

impl Seen<'_> {
    pub(crate) fn is_directory(&self) -> bool {
        match self {
            Seen::Flash(inode) => inode.body.is_directory(),
            Seen::Layer(inode) => matches!(inode.body, LayerBody::Directory),
        }
    }

    pub(crate) fn attributes(&self) -> &Attributes {
        match self {
            Seen::Flash(inode) => &inode.attributes,
            Seen::Layer(inode) => &inode.attributes,
        }
    }

    pub(crate) fn format(&self) -> u32 {
        match self {
            Seen::Flash(inode) => inode.body.format(),
            Seen::Layer(inode) => inode.body.format(),
        }
    }
}

impl Layer {
    /// The number by which flash and layer know what the guest calls `ino`.
    pub(crate) fn canonical(&self, ino: Ino) -> Ino {
        self.aliases.get(&ino).copied().unwrap_or(ino)
    }

    /// The number that the guest is told.
    pub(crate) fn shown(&self, ino: Ino) -> Ino {
        self.shown_as.get(&ino).copied().unwrap_or(ino)
    }

    pub(crate) fn shown_as(&self) -> &HashMap<Ino, Ino> {
        &self.shown_as
    }

    pub(crate) fn set_shown_as(&mut self, shown_as: HashMap<Ino, Ino>) {
        self.shown_as = shown_as;
    }

    fn remove_inode(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.remove(&ino) {
            self.page_count -= inode.page_count();
        }
    }

    pub(crate) fn next_ino(&mut self) -> Ino {
        self.made += 1;
        LAYER_INO_FIRST + self.made
    }

    pub(crate) fn seen<'a>(&'a self, tree: &'a Tree, ino: Ino) -> Option<Seen<'a>> {
        match self.inodes.get(&ino) {
            Some(inode) => Some(Seen::Layer(inode)),
            None => tree.get(ino).map(Seen::Flash),
        }
    }

    /// The file called `name` in `directory`.
    pub(crate) fn child(&self, tree: &Tree, directory: Ino, name: &[u8]) -> Option<Ino> {
        match self.names.get(&directory).and_then(|names| names.get(name)) {
            Some(NameChange::Here(ino)) => Some(*ino),
            Some(NameChange::Gone) => None,
            None => tree.child(directory, name),
        }
    }

    /// The files in `directory`, sorted by name.
    pub(crate) fn children(&self, tree: &Tree, directory: Ino) -> Vec<(Name, Ino)> {
        let flash = tree.get(directory).and_then(|inode| inode.entries());
        let flash = flash.into_iter().flatten();
        let Some(changes) = self.names.get(&directory) else {
            return flash.map(|(name, ino)| (name.clone(), *ino)).collect();
        };
        let kept = flash
            .filter(|(name, _)| !changes.contains_key(*name))
            .map(|(name, ino)| (name, *ino));
        let here = changes.iter().filter_map(|(name, change)| match change {
            NameChange::Here(ino) => Some((name, *ino)),
            NameChange::Gone => None,
        });
        let mut children: Vec<_> = kept
            .chain(here)
            .map(|(name, ino)| (name.clone(), ino))
            .collect();
        children.sort();
        children
    }

    /// Where the guest sees a file; more than one place if it is linked.
    pub(crate) fn places(&self, tree: &Tree, ino: Ino) -> Vec<Place> {
        let mut places: Vec<Place> = self.here.get(&ino).into_iter().flatten().cloned().collect();
        if let Some(inode) = tree.get(ino).filter(|inode| inode.ino != ROOT_INO) {
            let overridden = self
                .names
                .get(&inode.parent)
                .is_some_and(|names| names.contains_key(&inode.name));
            if !overridden {
                places.push((inode.parent, inode.name.clone()));
            }
        }
        places
    }

    /// A path at which the guest sees a file.
    pub(crate) fn path(&self, tree: &Tree, ino: Ino) -> Option<PhonePath> {
        let mut names = Vec::new();
        let mut at = ino;
        let mut length = 0;
        while at != ROOT_INO {
            let (directory, name) = self.places(tree, at).into_iter().next()?;
            length += 1 + name.len();
            if length > sync_protocol::limits::PATH_BYTES_MAX {
                return None;
            }
            names.push(name);
            at = directory;
        }
        names
            .iter()
            .rev()
            .try_fold(PhonePath::root(), |path, name| path.join(name))
            .ok()
    }

    /// Records what the guest did to a name; `None`: it is as in the flash.
    pub(crate) fn set_name(&mut self, directory: Ino, name: &[u8], change: Option<NameChange>) {
        let names = self.names.entry(directory).or_default();
        let before = match change {
            Some(change) => names.insert(name.into(), change),
            None => names.remove(name),
        };
        if names.is_empty() {
            self.names.remove(&directory);
        }
        let place = (directory, Name::from(name));
        if let Some(NameChange::Here(ino)) = before
            && let Some(places) = self.here.get_mut(&ino)
        {
            places.remove(&place);
            if places.is_empty() {
                self.here.remove(&ino);
            }
        }
        if let Some(NameChange::Here(ino)) = change {
            self.here.entry(ino).or_default().insert(place);
        }
    }

    /// Takes a name away, leaving a trace only if the flash has it or `announced` says that it will.
    pub(crate) fn take_name(&mut self, tree: &Tree, directory: Ino, name: &[u8]) {
        let hide = tree.child(directory, name).is_some()
            || self.announced.contains_key(&(directory, Name::from(name)));
        self.set_name(directory, name, hide.then_some(NameChange::Gone));
    }

    /// The guest's own copy of a file, made if it has none.
    pub(crate) fn edit(&mut self, tree: &Tree, ino: Ino) -> Option<&mut LayerInode> {
        match self.inodes.entry(ino) {
            Entry::Occupied(inode) => Some(inode.into_mut()),
            Entry::Vacant(slot) => Some(slot.insert(LayerInode::of(tree.get(ino)?))),
        }
    }

    pub(crate) fn count_lookup(&mut self, shown: Ino) {
        *self.lookups.entry(shown).or_default() += 1;
    }

    /// The guest forgot `count` of the times it was told `shown`.
    pub(crate) fn forget(&mut self, tree: &Tree, shown: Ino, count: u64) {
        let Some(known) = self.lookups.get_mut(&shown) else {
            return;
        };
        *known = known.saturating_sub(count);
        if *known > 0 {
            return;
        }
        self.lookups.remove(&shown);
        let ino = self.canonical(shown);
        if ino != shown {
            self.aliases.remove(&shown);
            if self.shown_as.get(&ino) == Some(&shown) {
                self.shown_as.remove(&ino);
            }
        }
        if !self.is_known_to_guest(ino) {
            self.stale.remove(&ino);
        }
        self.free_if_unreachable(tree, ino);
    }

    /// Remembers that what the guest may have read of a file is no longer so.
    pub(crate) fn mark_stale(&mut self, ino: Ino) {
        if self.is_known_to_guest(ino) {
            self.stale.insert(ino);
        }
    }

    /// Whether what the guest has read of a file still holds; once it has been told, it does.
    pub(crate) fn is_cache_good(&mut self, ino: Ino) -> bool {
        !self.stale.remove(&ino)
    }

    pub(crate) fn is_known_to_guest(&self, ino: Ino) -> bool {
        self.lookups.contains_key(&ino)
            || self
                .shown_as
                .get(&ino)
                .is_some_and(|shown| self.lookups.contains_key(shown))
    }

    /// Drops what is kept of a file that has no name and that the guest does not hold.
    pub(crate) fn free_if_unreachable(&mut self, tree: &Tree, ino: Ino) {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            if ino == ROOT_INO || self.is_known_to_guest(ino) || !self.places(tree, ino).is_empty()
            {
                continue;
            }
            self.remove_inode(ino);
            if tree.get(ino).is_none() {
                pending.extend(self.drop_names(ino));
            }
        }
    }

    /// Forgets all name changes in a directory that is gone; returns the files that had them.
    fn drop_names(&mut self, directory: Ino) -> Vec<Ino> {
        let names = self.names.get(&directory).cloned().unwrap_or_default();
        let dropped = names.into_iter().filter_map(|(name, change)| {
            self.set_name(directory, &name, None);
            match change {
                NameChange::Here(ino) => Some(ino),
                NameChange::Gone => None,
            }
        });
        dropped.collect()
    }

    /// Lets the flash's version of a place show, keeping the guest's number for it if it has one.
    pub(crate) fn drop_place(&mut self, tree: &Tree, directory: Ino, name: &[u8]) {
        let mut pending: Vec<Place> = vec![(directory, name.into())];
        let mut replaced: Vec<(Ino, Option<Ino>)> = Vec::new();
        loop {
            if let Some(place) = pending.pop() {
                let (ours, theirs) = self.show_place(tree, &place);
                // A directory has one place: where the phone has it, not where the guest moved it.
                if let Some(theirs) = theirs.filter(|theirs| is_directory(tree, *theirs)) {
                    pending.extend(self.here.get(&theirs).into_iter().flatten().cloned());
                }
                replaced.extend(ours.map(|ours| (ours, theirs)));
            } else if let Some((ours, theirs)) = replaced.pop() {
                // Only now is it certain that what the guest had there shows nowhere else.
                if let Some(theirs) = theirs
                    && self.can_give_way(tree, ours, theirs)
                {
                    let both_have = |(_, name): &Place| tree.child(theirs, name).is_some();
                    pending.extend(self.hand_over(ours, theirs).into_iter().filter(both_have));
                }
                self.free_if_unreachable(tree, ours);
            } else {
                return;
            }
        }
    }

    /// Forgets what the guest did to a place. Returns the file that it had there, and the flash's.
    fn show_place(&mut self, tree: &Tree, place: &Place) -> (Option<Ino>, Option<Ino>) {
        self.announced.remove(place);
        let (directory, name) = place;
        let change = self
            .names
            .get(directory)
            .and_then(|names| names.get(name))
            .copied();
        self.set_name(*directory, name, None);
        let theirs = tree.child(*directory, name);
        match change {
            Some(NameChange::Here(ours)) if Some(ours) != theirs => (Some(ours), theirs),
            _ => (None, theirs),
        }
    }

    /// Whether the flash's `theirs` can take over from `ours`, which the guest had at the same place.
    fn can_give_way(&self, tree: &Tree, ours: Ino, theirs: Ino) -> bool {
        let same_format = match (self.seen(tree, ours), tree.get(theirs)) {
            (Some(ours), Some(theirs)) => ours.format() == theirs.body.format(),
            _ => false,
        };
        same_format && self.places(tree, ours).is_empty()
    }

    /// Moves to `theirs` what the guest did in `ours`, and returns the places there. If the guest made
    /// `ours`, its number goes on as an alias.
    fn hand_over(&mut self, ours: Ino, theirs: Ino) -> Vec<Place> {
        if ours >= LAYER_INO_FIRST {
            self.remove_inode(ours);
            self.aliases.insert(ours, theirs);
            self.shown_as.insert(theirs, ours);
        }
        self.mark_stale(theirs);
        let announced: Vec<Place> = self
            .announced
            .keys()
            .filter(|place| place.0 == ours)
            .cloned()
            .collect();
        for place in announced {
            if let Some(known) = self.announced.remove(&place) {
                self.announced.insert((theirs, place.1), known);
            }
        }
        let names = self.names.get(&ours).cloned().unwrap_or_default();
        let moved = names.into_iter().map(|(name, change)| {
            self.set_name(ours, &name, None);
            self.set_name(theirs, &name, Some(change));
            (theirs, name)
        });
        moved.collect()
    }

    /// Lets the flash's version of a file's own contents and attributes show.
    pub(crate) fn drop_copy(&mut self, tree: &Tree, ino: Ino) {
        if tree.get(ino).is_some() {
            self.remove_inode(ino);
        }
    }

    /// Keeps the last state of a file that the flash lost, if the guest can still see or hold it.
    pub(crate) fn keep_removed(&mut self, tree: &Tree, inode: &Inode) {
        let ino = inode.ino;
        self.here_in_removed(tree, ino);
        let reachable = self.is_known_to_guest(ino) || self.here.contains_key(&ino);
        if reachable {
            self.inodes
                .entry(ino)
                .or_insert_with(|| LayerInode::of(inode));
        } else {
            self.remove_inode(ino);
        }
    }

    /// Drops the guest's names in a directory that the flash lost, unless the guest has it elsewhere.
    fn here_in_removed(&mut self, tree: &Tree, directory: Ino) {
        if self.here.contains_key(&directory) {
            return;
        }
        for ino in self.drop_names(directory) {
            self.free_if_unreachable(tree, ino);
        }
    }

    /// Whether the flash's version of a place is what the guest sees there.
    pub(crate) fn agrees(&self, tree: &Tree, place: &Place) -> bool {
        let (directory, name) = place;
        let theirs = tree.child(*directory, name);
        match self.names.get(directory).and_then(|names| names.get(name)) {
            None => theirs.is_none_or(|theirs| self.copy_agrees(tree, theirs)),
            Some(NameChange::Gone) => theirs.is_none(),
            Some(NameChange::Here(ours)) if theirs == Some(*ours) => self.copy_agrees(tree, *ours),
            Some(NameChange::Here(ours)) => {
                theirs.is_some_and(|theirs| self.equal(tree, *ours, theirs))
            }
        }
    }

    /// Whether the guest's copy of a file, if any, is as the flash has the file.
    pub(crate) fn copy_agrees(&self, tree: &Tree, ino: Ino) -> bool {
        !self.inodes.contains_key(&ino) || self.equal(tree, ino, ino)
    }

    /// Whether a file as the guest sees it is as the flash has another; of directories only they
    /// themselves.
    fn equal(&self, tree: &Tree, ours: Ino, theirs: Ino) -> bool {
        let (Some(ours), Some(theirs)) = (self.seen(tree, ours), tree.get(theirs)) else {
            return false;
        };
        if ours.is_directory() {
            return theirs.body.is_directory() && ours.attributes().same_owner(&theirs.attributes);
        }
        let ours = match ours {
            Seen::Flash(inode) => inode.leaf_entry(),
            Seen::Layer(inode) if inode.written.is_some() => return false,
            Seen::Layer(inode) => inode.leaf_entry(),
        };
        ours.is_some() && ours == theirs.leaf_entry()
    }

    /// Whether the guest is in the midst of changing what is at a place.
    pub(crate) fn is_being_written(&self, tree: &Tree, place: &Place) -> bool {
        let child = self.child(tree, place.0, &place.1);
        child
            .and_then(|ino| self.inodes.get(&ino))
            .is_some_and(|inode| inode.written.is_some())
    }
}

fn is_directory(tree: &Tree, ino: Ino) -> bool {
    tree.get(ino).is_some_and(|inode| inode.body.is_directory())
}
