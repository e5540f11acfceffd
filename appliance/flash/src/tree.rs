//! A file tree as a table of inodes over a shared base, changed by the events of one phone.
//!
//! The base (an image's files) is loaded once and shared by all phones; a tree holds only what differs.
//! Changing a tree is total: every well-formed event has a meaning, whatever the tree, so that replaying
//! a log cannot get stuck.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use store::BlobHash;
use sync_protocol::event::{FileChange, FileOp, Node};
use sync_protocol::limits::PATH_BYTES_MAX;
use sync_protocol::scope::Scope;
use sync_protocol::tree::{self as hashing, Entry, FileKind};
use sync_protocol::{Hash, PhonePath};

use crate::inode::{Attributes, Body, Ino, Inode, Name, ROOT_INO};

/// Attributes of a directory that an event needs but nobody described.
const MADE_DIRECTORY_MODE: u32 = 0o755;

/// What many trees share: the files of an image.
#[derive(Debug)]
pub(crate) struct BaseTree {
    pub(crate) inodes: HashMap<Ino, Arc<Inode>>,
    pub(crate) digests: HashMap<Ino, Digests>,
    pub(crate) next_ino: Ino,
}

impl BaseTree {
    /// A tree with nothing but a root directory.
    pub(crate) fn empty() -> Self {
        let attributes = Attributes {
            mode: MADE_DIRECTORY_MODE,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
        };
        let body = Body::Directory(BTreeMap::new());
        let root = Inode {
            ino: ROOT_INO,
            parent: ROOT_INO,
            name: Name::default(),
            attributes,
            body,
        };
        let inodes = HashMap::from([(ROOT_INO, Arc::new(root))]);
        BaseTree {
            inodes,
            digests: HashMap::new(),
            next_ino: ROOT_INO + 1,
        }
    }
}

/// What is known about a directory with everything beneath it, until something there changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Digests {
    /// Content hash, as the phone computes it.
    pub(crate) content: Option<Hash>,
    /// Blob in which it is stored, see node.rs.
    pub(crate) node: Option<BlobHash>,
}

/// Where a file is: its directory and its name.
pub(crate) type Place = (Ino, Name);

/// What one change did to a tree: for twin layers and for whoever looks at the files.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// Places that now hold something else than before.
    pub(crate) places: Vec<Place>,
    /// The file that a put made or rewrote.
    pub(crate) put: Option<Ino>,
    /// Files that are gone, with their last state.
    pub(crate) removed: Vec<Arc<Inode>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Tree {
    base: Arc<BaseTree>,
    /// What differs from the base; `None`: removed.
    changed: HashMap<Ino, Option<Arc<Inode>>>,
    /// Digests of directories that are not, or no longer, as in the base. If one knows nothing, nor do
    /// those above it.
    digests: HashMap<Ino, Digests>,
    next_ino: Ino,
}

impl Tree {
    pub(crate) fn new(base: Arc<BaseTree>) -> Self {
        let next_ino = base.next_ino;
        Tree {
            base,
            changed: HashMap::new(),
            digests: HashMap::new(),
            next_ino,
        }
    }

    pub(crate) fn next_ino(&self) -> Ino {
        self.next_ino
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<&Arc<Inode>> {
        match self.changed.get(&ino) {
            Some(inode) => inode.as_ref(),
            None => self.base.inodes.get(&ino),
        }
    }

    pub(crate) fn root(&self) -> &Arc<Inode> {
        self.get(ROOT_INO).expect("nothing removes the root")
    }

    pub(crate) fn child(&self, directory: Ino, name: &[u8]) -> Option<Ino> {
        self.get(directory)?.entries()?.get(name).copied()
    }

    /// The file at `path`. Links are not followed.
    pub(crate) fn resolve(&self, path: &PhonePath) -> Option<&Arc<Inode>> {
        let ino = path
            .components()
            .try_fold(ROOT_INO, |directory, name| self.child(directory, name))?;
        self.get(ino)
    }

    /// Makes the tree as `change` says. `wall_ns` is when: directories are given it.
    pub(crate) fn apply(&mut self, change: &FileChange, wall_ns: i64) -> Effect {
        let mut effect = Effect::default();
        match &change.op {
            FileOp::Put(node) => self.put(&change.path, node, wall_ns, &mut effect),
            FileOp::Remove => self.remove(&change.path, wall_ns, &mut effect),
            FileOp::Rename { to } => self.rename(&change.path, to, wall_ns, &mut effect),
        }
        effect
    }

    fn put(&mut self, path: &PhonePath, node: &Node, wall_ns: i64, effect: &mut Effect) {
        let (attributes, body) = (Attributes::of_node(node), Body::of_node(node));
        if path.name().is_none() && !body.is_directory() {
            // The root is a directory, whatever is said about it.
            return;
        }
        let ino = self.set_at(path, attributes, body, wall_ns, effect);
        effect.put = Some(ino);
    }

    /// Makes the file at `path` this one; a directory keeps what is in it. Directories on the way take
    /// the file's time.
    pub(crate) fn set(
        &mut self,
        path: &PhonePath,
        attributes: Attributes,
        body: Body,
        effect: &mut Effect,
    ) -> Ino {
        self.set_at(path, attributes, body, attributes.mtime_ns, effect)
    }

    fn set_at(
        &mut self,
        path: &PhonePath,
        attributes: Attributes,
        body: Body,
        wall_ns: i64,
        effect: &mut Effect,
    ) -> Ino {
        let Some(name) = path.name() else {
            self.edit(ROOT_INO).attributes = attributes;
            self.invalidate(ROOT_INO);
            return ROOT_INO;
        };
        let directory = self.make_parents(path, wall_ns, effect);
        let same_kind = |ino: &Ino| {
            self.get(*ino)
                .is_some_and(|inode| inode.body.same_kind(&body))
        };
        let ino = match self.child(directory, name).filter(same_kind) {
            Some(ino) => {
                let inode = self.edit(ino);
                inode.attributes = attributes;
                if !body.is_directory() {
                    inode.body = body;
                }
                self.invalidate(ino);
                ino
            }
            // A number stands for one kind of file: kernels take an inode that changes it for corruption.
            None => self.insert(directory, name.into(), attributes, body, wall_ns, effect),
        };
        effect.places.push((directory, name.into()));
        ino
    }

    /// Sets a file's time.
    pub(crate) fn set_mtime(&mut self, ino: Ino, mtime_ns: i64) {
        if self.get(ino).is_some() {
            self.edit(ino).attributes.mtime_ns = mtime_ns;
            self.invalidate(ino);
        }
    }

    fn remove(&mut self, path: &PhonePath, wall_ns: i64, effect: &mut Effect) {
        let Some((directory, name)) = self.place_of(path) else {
            return;
        };
        self.unlink(directory, &name, wall_ns, effect);
        effect.places.push((directory, name));
    }

    fn rename(&mut self, from: &PhonePath, to: &PhonePath, wall_ns: i64, effect: &mut Effect) {
        if to.is_within(from) || from.is_within(to) {
            return;
        }
        let Some((old_directory, old_name)) = self.place_of(from) else {
            return;
        };
        let Some(ino) = self.child(old_directory, &old_name) else {
            return;
        };
        let Some(new_name) = to.name() else { return };
        let new_directory = self.make_parents(to, wall_ns, effect);
        self.unlink(new_directory, new_name, wall_ns, effect);
        self.edit_entries(old_directory, wall_ns).remove(&old_name);
        self.invalidate(old_directory);
        self.edit_entries(new_directory, wall_ns)
            .insert(new_name.into(), ino);
        let inode = self.edit(ino);
        inode.parent = new_directory;
        inode.name = new_name.into();
        self.invalidate(new_directory);
        self.drop_overlong(ino, to, wall_ns, effect);
        effect.places.push((old_directory, old_name));
        effect.places.push((new_directory, new_name.into()));
    }

    /// Removes what lies beneath the moved `ino` at paths that no event could name any more: phones do
    /// not capture them, and it keeps trees from growing deeper with every rename.
    fn drop_overlong(&mut self, ino: Ino, path: &PhonePath, wall_ns: i64, effect: &mut Effect) {
        let mut pending = vec![(ino, path.as_bytes().len())];
        while let Some((directory, length)) = pending.pop() {
            let Some(entries) = self.get(directory).and_then(|inode| inode.entries()) else {
                continue;
            };
            let children: Vec<_> = entries
                .iter()
                .map(|(name, child)| (name.clone(), *child, length + 1 + name.len()))
                .collect();
            for (name, child, length) in children {
                match length > PATH_BYTES_MAX {
                    true => self.unlink(directory, &name, wall_ns, effect),
                    false => pending.push((child, length)),
                }
            }
        }
    }

    /// The place at `path` if there is a file.
    fn place_of(&self, path: &PhonePath) -> Option<Place> {
        let inode = self.resolve(path)?;
        (inode.ino != ROOT_INO).then(|| (inode.parent, inode.name.clone()))
    }

    /// The directory in which `path` lies, made if missing; what stands in its way goes.
    fn make_parents(&mut self, path: &PhonePath, wall_ns: i64, effect: &mut Effect) -> Ino {
        let mut names: Vec<&[u8]> = path.components().collect();
        names.pop();
        let mut directory = ROOT_INO;
        for name in names {
            let next = self.child(directory, name);
            let is_directory = |ino: &Ino| {
                self.get(*ino)
                    .is_some_and(|inode| inode.body.is_directory())
            };
            directory = match next.filter(is_directory) {
                Some(next) => next,
                None => {
                    effect.places.push((directory, name.into()));
                    let attributes = Attributes {
                        mode: MADE_DIRECTORY_MODE,
                        uid: 0,
                        gid: 0,
                        mtime_ns: wall_ns,
                    };
                    let body = Body::Directory(BTreeMap::new());
                    self.insert(directory, name.into(), attributes, body, wall_ns, effect)
                }
            };
        }
        directory
    }

    /// Adds a new file, replacing what has the name.
    fn insert(
        &mut self,
        directory: Ino,
        name: Name,
        attributes: Attributes,
        body: Body,
        wall_ns: i64,
        effect: &mut Effect,
    ) -> Ino {
        self.unlink(directory, &name, wall_ns, effect);
        let ino = self.next_ino;
        self.next_ino += 1;
        if body.is_directory() {
            self.digests.insert(ino, Digests::default());
        }
        self.edit_entries(directory, wall_ns)
            .insert(name.clone(), ino);
        self.changed.insert(
            ino,
            Some(Arc::new(Inode {
                ino,
                parent: directory,
                name,
                attributes,
                body,
            })),
        );
        self.invalidate(directory);
        ino
    }

    /// Puts a stored inode back into the table, as node.rs reads it.
    pub(crate) fn restore(&mut self, inode: Inode, digests: Option<Digests>) {
        self.next_ino = self.next_ino.max(inode.ino + 1);
        if let Some(digests) = digests {
            self.digests.insert(inode.ino, digests);
        }
        self.changed.insert(inode.ino, Some(Arc::new(inode)));
    }

    /// Marks a base's file, and what is beneath it there, as removed, except for what was `seen` elsewhere.
    pub(crate) fn bury(&mut self, ino: Ino, seen: &HashSet<Ino>) {
        let mut doomed = vec![ino];
        while let Some(ino) = doomed.pop() {
            if seen.contains(&ino) || self.changed.get(&ino).is_some_and(Option::is_none) {
                continue;
            }
            let entries = self.base.inodes.get(&ino).and_then(|inode| inode.entries());
            doomed.extend(entries.into_iter().flat_map(BTreeMap::values));
            self.changed.insert(ino, None);
        }
    }

    pub(crate) fn reserve_inos(&mut self, next_ino: Ino) {
        self.next_ino = self.next_ino.max(next_ino);
    }

    /// Removes a file, and everything beneath it.
    fn unlink(&mut self, directory: Ino, name: &[u8], wall_ns: i64, effect: &mut Effect) {
        let Some(ino) = self.child(directory, name) else {
            return;
        };
        self.edit_entries(directory, wall_ns).remove(name);
        self.invalidate(directory);
        let mut doomed = vec![ino];
        while let Some(ino) = doomed.pop() {
            let Some(inode) = self.get(ino).cloned() else {
                continue;
            };
            doomed.extend(inode.entries().into_iter().flat_map(BTreeMap::values));
            self.digests.remove(&ino);
            match self.base.inodes.contains_key(&ino) {
                true => self.changed.insert(ino, None),
                false => self.changed.remove(&ino),
            };
            effect.removed.push(inode);
        }
    }

    /// The inode, ours to change. It must exist.
    fn edit(&mut self, ino: Ino) -> &mut Inode {
        let from_base = self.base.inodes.get(&ino);
        let slot = self
            .changed
            .entry(ino)
            .or_insert_with(|| from_base.cloned());
        Arc::make_mut(slot.as_mut().expect("callers have looked the inode up"))
    }

    /// The entries of a directory, which must be one, about to be changed at `wall_ns`.
    fn edit_entries(&mut self, ino: Ino, wall_ns: i64) -> &mut BTreeMap<Name, Ino> {
        let inode = self.edit(ino);
        // Rises even if the phone's clock went back: kernels see by it that their listing is old.
        inode.attributes.mtime_ns = wall_ns.max(inode.attributes.mtime_ns.saturating_add(1));
        match &mut inode.body {
            Body::Directory(entries) => entries,
            _ => unreachable!("callers have checked that this is a directory"),
        }
    }

    /// Forgets the digests of everything from `ino` up to the root.
    fn invalidate(&mut self, mut ino: Ino) {
        loop {
            let Some(inode) = self.get(ino) else { return };
            let (parent, is_directory) = (inode.parent, inode.body.is_directory());
            if is_directory {
                let known = self.digests.insert(ino, Digests::default());
                if known.is_some_and(|known| known.content.is_none() && known.node.is_none()) {
                    return;
                }
            }
            if ino == ROOT_INO {
                return;
            }
            ino = parent;
        }
    }

    pub(crate) fn digests(&self, directory: Ino) -> Digests {
        let known = self
            .digests
            .get(&directory)
            .or_else(|| self.base.digests.get(&directory));
        known.copied().unwrap_or_default()
    }

    pub(crate) fn learn_node(&mut self, directory: Ino, node: BlobHash) {
        let mut digests = self.digests(directory);
        digests.node = Some(node);
        self.digests.insert(directory, digests);
    }

    /// Forgets what is stored, because storing failed halfway.
    pub(crate) fn forget_nodes(&mut self) {
        self.digests
            .values_mut()
            .for_each(|digests| digests.node = None);
    }

    /// The whole tree as a base for others; digests are completed first.
    pub(crate) fn into_base(mut self) -> BaseTree {
        self.entry(ROOT_INO);
        let mut inodes = self.base.inodes.clone();
        for (ino, inode) in self.changed {
            match inode {
                Some(inode) => inodes.insert(ino, inode),
                None => inodes.remove(&ino),
            };
        }
        let mut digests = self.base.digests.clone();
        digests.extend(self.digests);
        BaseTree {
            inodes,
            digests,
            next_ino: self.next_ino,
        }
    }

    /// Directories at and beneath `ino` that are not `known`, each before those in it: in reverse, an
    /// order in which they can be computed. No recursion: phones decide how deep a tree is.
    fn unknown_directories(&self, ino: Ino, known: impl Fn(&Digests) -> bool) -> Vec<Arc<Inode>> {
        let mut unknown = Vec::new();
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            let Some(inode) = self.get(ino) else { continue };
            let Some(entries) = inode.entries() else {
                continue;
            };
            if !known(&self.digests(ino)) {
                pending.extend(entries.values());
                unknown.push(inode.clone());
            }
        }
        unknown
    }

    /// Directories whose node is not stored, each after those in it.
    pub(crate) fn unstored_directories(&self) -> Vec<Arc<Inode>> {
        let mut unstored = self.unknown_directories(ROOT_INO, |digests| digests.node.is_some());
        unstored.reverse();
        unstored
    }

    /// The entry of a file with everything beneath it; none for special files and for nothing.
    pub(crate) fn entry(&mut self, ino: Ino) -> Option<Entry> {
        for inode in self
            .unknown_directories(ino, |digests| digests.content.is_some())
            .iter()
            .rev()
        {
            let entries = inode.entries().into_iter().flatten();
            let entries =
                entries.filter_map(|(name, child)| Some((&**name, self.known_entry(*child)?)));
            let content = Some(hashing::directory_content(entries.collect::<Vec<_>>()));
            self.digests.insert(
                inode.ino,
                Digests {
                    content,
                    ..self.digests(inode.ino)
                },
            );
        }
        self.known_entry(ino)
    }

    /// The entry of a file, or of a directory whose content is known.
    fn known_entry(&self, ino: Ino) -> Option<Entry> {
        let inode = self.get(ino)?;
        match &inode.body {
            Body::Directory(_) => Some(inode.attributes.entry(
                FileKind::Directory,
                0,
                self.digests(ino).content?,
            )),
            _ => inode.leaf_entry(),
        }
    }

    /// The hash of everything in `scope`: what the phone computes of its own files.
    pub(crate) fn root_hash(&mut self, scope: &Scope) -> Hash {
        let entries = scope.roots().iter().map(|root| {
            let ino = self.resolve(root).map(|inode| inode.ino);
            (
                root,
                ino.and_then(|ino| self.entry_in_scope(ino, root, scope)),
            )
        });
        let entries: Vec<_> = entries.collect();
        hashing::root_hash(entries)
    }

    /// The entry of a file at `path` with what of everything beneath it is not excluded; none if it is itself.
    pub(crate) fn entry_in_scope(
        &mut self,
        ino: Ino,
        path: &PhonePath,
        scope: &Scope,
    ) -> Option<Entry> {
        if scope.is_excluded(path) {
            return None;
        }
        if !scope
            .excludes()
            .iter()
            .any(|exclude| exclude.is_within(path))
        {
            return self.entry(ino);
        }
        let inode = self.get(ino)?.clone();
        let Body::Directory(entries) = &inode.body else {
            return inode.leaf_entry();
        };
        let mut hasher = hashing::DirectoryHasher::default();
        for (name, child) in entries {
            // A path too long for the contract was never captured.
            let Ok(path) = path.join(name) else { continue };
            if let Some(entry) = self.entry_in_scope(*child, &path, scope) {
                hasher.add(name, &entry);
            }
        }
        Some(
            inode
                .attributes
                .entry(FileKind::Directory, 0, hasher.finish()),
        )
    }
}
