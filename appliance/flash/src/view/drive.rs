//! Who leads, and what the guest's writes become when help-desk does.
//!
//! In drive, every change that the guest completes - a file closed or synced after writing, a name made,
//! taken or moved - is announced as a [`GuestChange`], in order. The appliance logs it as an event of ours
//! and applies it to the flash, which then shows what the guest already sees.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;

use sync_protocol::chunking::{Chunk, cut_stream};
use sync_protocol::event::{Content, FileChange, FileOp, Node};
use sync_protocol::limits::FILE_CHUNKS_MAX;
use sync_protocol::scope::Scope;
use sync_protocol::tree::{Entry, FileKind, directory_content};
use sync_protocol::{Hash, PhonePath};
use tokio::sync::mpsc;

use crate::chunks::Chunks;
use crate::inode::{Attributes, Contents, Ino, Inode, Name};
use crate::tree::{Place, Tree};
use crate::view::layer::{Layer, LayerBody, LayerInode, Seen};
use crate::view::paged::PagedFile;

/// Chunks of a completed file are given to the store when there are this many bytes of them.
const BATCH_BYTES: usize = 16 << 20;
/// Places announced but not applied; more are not remembered. Far beyond what an operator can do.
const ANNOUNCED_MAX: usize = 100_000;

/// Who is followed.
#[derive(Debug, Clone, Default)]
pub enum Lead {
    /// The twin follows the phone: the guest's own writes stay with the twin.
    #[default]
    Mirror,
    /// The phone follows the twin.
    Drive {
        /// Paths whose changes are announced; others stay with the twin.
        scope: Scope,
        /// Where they go. When it is full the guest waits; when it is closed nothing is announced.
        changes: mpsc::Sender<GuestChange>,
    },
}

/// A change that the guest completed in drive. Its chunks are in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestChange {
    /// What to log and to apply.
    pub change: FileChange,
    /// What the guest made the change to: the phone having something else there is a conflict.
    pub before: Before,
}

/// What was at a path before the guest changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Absent,
    /// A file with this entry hash; of a directory with everything beneath it.
    Entry(Hash),
    /// It does not matter.
    Any,
}

/// What is known to be at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Absent,
    Leaf(Hash),
    Other,
}

impl From<Known> for Before {
    fn from(known: Known) -> Self {
        match known {
            Known::Absent => Before::Absent,
            Known::Leaf(hash) => Before::Entry(hash),
            Known::Other => Before::Any,
        }
    }
}

/// What the flash has at a place.
pub(crate) fn known(tree: &Tree, (directory, name): &Place) -> Known {
    match tree.child(*directory, name).and_then(|ino| tree.get(ino)) {
        None => Known::Absent,
        Some(inode) => inode
            .leaf_entry()
            .map_or(Known::Other, |entry| Known::Leaf(entry.hash())),
    }
}

/// What is at a place once all that was announced has been applied.
pub(crate) fn expected(layer: &Layer, tree: &Tree, place: &Place) -> Known {
    layer
        .announced
        .get(place)
        .copied()
        .unwrap_or_else(|| known(tree, place))
}

/// Cuts a written file into chunks and stores them.
pub(crate) fn store_file(file: &PagedFile, chunks: &Chunks) -> Result<Arc<Contents>, Errno> {
    if let Some(contents) = file.contents() {
        return Ok(contents.clone());
    }
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a file written by the guest cannot be stored");
        Errno::EIO
    };
    let mut list: Vec<Chunk> = Vec::new();
    let mut batch: Vec<Bytes> = Vec::new();
    let mut batch_bytes = 0;
    for piece in cut_stream(file.reader(chunks)) {
        let (chunk, bytes) = piece.map_err(|error| failed(&error))?;
        batch_bytes += bytes.len();
        list.push(chunk);
        batch.push(bytes.into());
        if batch_bytes > BATCH_BYTES {
            chunks
                .blobs()
                .put_many(&std::mem::take(&mut batch))
                .map_err(|error| failed(&error))?;
            batch_bytes = 0;
        }
    }
    chunks
        .blobs()
        .put_many(&batch)
        .map_err(|error| failed(&error))?;
    Ok(Arc::new(Contents::new(list)))
}

/// One operation's view of the state, in drive.
pub(crate) struct Announcer<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) chunks: &'a Chunks,
    pub(crate) scope: &'a Scope,
    pub(crate) outbox: &'a mut Vec<GuestChange>,
}

impl Announcer<'_> {
    fn announce(&mut self, layer: &mut Layer, place: Place, after: Known, change: GuestChange) {
        if layer.announced.len() < ANNOUNCED_MAX {
            layer.announced.insert(place, after);
        }
        self.outbox.push(change);
    }

    /// The path of a place, if changes there are announced.
    pub(crate) fn path_in_scope(
        &self,
        layer: &Layer,
        (directory, name): &Place,
    ) -> Option<PhonePath> {
        let path = layer.path(self.tree, *directory)?.join(name).ok()?;
        self.scope.contains(&path).then_some(path)
    }

    /// Announces a file at all its places as it is now. Special files are not announced.
    pub(crate) fn put(
        &mut self,
        layer: &mut Layer,
        ino: Ino,
        before: Option<Known>,
    ) -> Result<(), Errno> {
        for place in layer.places(self.tree, ino) {
            if let Some(path) = self.path_in_scope(layer, &place) {
                let before = before.unwrap_or_else(|| expected(layer, self.tree, &place));
                self.put_at(layer, ino, place, path, before)?;
            }
        }
        Ok(())
    }

    fn put_at(
        &mut self,
        layer: &mut Layer,
        ino: Ino,
        place: Place,
        path: PhonePath,
        before: Known,
    ) -> Result<(), Errno> {
        let node = match layer.inodes.get_mut(&ino) {
            Some(inode) => layer_node(inode, self.chunks)?,
            None => self.tree.get(ino).and_then(|inode| flash_node(inode)),
        };
        let Some(node) = node else { return Ok(()) };
        if node.chunks().len() > FILE_CHUNKS_MAX {
            tracing::warn!(%path, "a file written by the guest is too large for the phone");
            return Ok(());
        }
        let (after, before) = match node.content {
            Content::Directory => (Known::Other, Before::Any),
            _ => (Known::Leaf(node.entry().hash()), before.into()),
        };
        let change = FileChange {
            path,
            op: FileOp::Put(node),
        };
        self.announce(layer, place, after, GuestChange { change, before });
        Ok(())
    }

    /// Announces a file and everything beneath it, as when it comes into scope by a move.
    pub(crate) fn put_all(&mut self, layer: &mut Layer, ino: Ino) -> Result<(), Errno> {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            self.put(layer, ino, None)?;
            pending.extend(
                layer
                    .children(self.tree, ino)
                    .into_iter()
                    .map(|(_, child)| child),
            );
        }
        Ok(())
    }

    /// Announces that a place was emptied. To be called before it is.
    pub(crate) fn remove(&mut self, layer: &mut Layer, place: Place) {
        let Some(path) = self.path_in_scope(layer, &place) else {
            return;
        };
        let before = match expected(layer, self.tree, &place) {
            // Made and removed without ever having been announced.
            Known::Absent => return,
            Known::Leaf(hash) => Before::Entry(hash),
            Known::Other => self.entry_at(layer, &place, &path),
        };
        let change = FileChange {
            path,
            op: FileOp::Remove,
        };
        self.announce(layer, place, Known::Absent, GuestChange { change, before });
    }

    /// Announces a move within scope. To be called before it is made.
    pub(crate) fn rename(
        &mut self,
        layer: &mut Layer,
        from: Place,
        to: Place,
        paths: (PhonePath, PhonePath),
    ) {
        let known = expected(layer, self.tree, &from);
        let before = match known {
            Known::Absent => Before::Absent,
            Known::Leaf(hash) => Before::Entry(hash),
            Known::Other => self.entry_at(layer, &from, &paths.0),
        };
        let change = FileChange {
            path: paths.0,
            op: FileOp::Rename { to: paths.1 },
        };
        self.announce(layer, from, Known::Absent, GuestChange { change, before });
        if layer.announced.len() < ANNOUNCED_MAX {
            layer.announced.insert(to, known);
        }
    }

    /// The entry that the guest sees at a place, with everything beneath it.
    fn entry_at(&self, layer: &Layer, (directory, name): &Place, path: &PhonePath) -> Before {
        let ino = layer.child(self.tree, *directory, name);
        let entry = ino.and_then(|ino| entry(layer, self.tree, Some(self.scope), ino, path));
        entry.map_or(Before::Any, |entry| Before::Entry(entry.hash()))
    }
}

/// The entry of a file as the guest sees it; written files count as they were last completed.
pub(crate) fn entry(
    layer: &Layer,
    tree: &Tree,
    scope: Option<&Scope>,
    ino: Ino,
    path: &PhonePath,
) -> Option<Entry> {
    if scope.is_some_and(|scope| scope.is_excluded(path)) {
        return None;
    }
    // No recursion: guests decide how deep a tree is. Each directory comes before those in it.
    let mut directories: Vec<(Ino, Vec<(Name, Ino)>)> = Vec::new();
    let mut pending = vec![(ino, path.clone())];
    while let Some((ino, path)) = pending.pop() {
        if !layer.seen(tree, ino)?.is_directory() {
            continue;
        }
        let mut children = Vec::new();
        for (name, child) in layer.children(tree, ino) {
            // What has too long a path cannot be captured.
            let Ok(path) = path.join(&name) else { continue };
            if !scope.is_some_and(|scope| scope.is_excluded(&path)) {
                children.push((name, child));
                pending.push((child, path));
            }
        }
        directories.push((ino, children));
    }
    let mut contents: HashMap<Ino, Hash> = HashMap::new();
    let known = |contents: &HashMap<Ino, Hash>, ino: Ino| match layer.seen(tree, ino)? {
        Seen::Flash(inode) if !inode.body.is_directory() => inode.leaf_entry(),
        Seen::Layer(inode) if !matches!(inode.body, LayerBody::Directory) => inode.leaf_entry(),
        directory => Some(directory.attributes().entry(
            FileKind::Directory,
            0,
            *contents.get(&ino)?,
        )),
    };
    for (directory, children) in directories.iter().rev() {
        let entries = children.iter();
        let entries =
            entries.filter_map(|(name, child)| Some((&**name, known(&contents, *child)?)));
        let content = directory_content(entries.collect::<Vec<_>>());
        contents.insert(*directory, content);
    }
    known(&contents, ino)
}

fn node(attributes: &Attributes, content: Content) -> Node {
    let Attributes {
        mode,
        uid,
        gid,
        mtime_ns,
    } = *attributes;
    Node {
        mode,
        uid,
        gid,
        mtime_ns,
        content,
    }
}

fn regular(contents: &Contents) -> Content {
    Content::Regular {
        size: contents.size(),
        chunks: contents.chunks().to_vec(),
    }
}

/// What an event says of a file of the layer, whose pages become chunks; none for special files.
fn layer_node(inode: &mut LayerInode, chunks: &Chunks) -> Result<Option<Node>, Errno> {
    let content = match &mut inode.body {
        LayerBody::Regular(file) => {
            let contents = store_file(file, chunks)?;
            *file = PagedFile::new(contents.clone());
            regular(&contents)
        }
        LayerBody::Directory => Content::Directory,
        LayerBody::Symlink(target) => Content::Symlink {
            target: target.to_vec(),
        },
        LayerBody::Special { .. } => return Ok(None),
    };
    Ok(Some(node(&inode.attributes, content)))
}

fn flash_node(inode: &Inode) -> Option<Node> {
    use crate::inode::Body;
    let content = match &inode.body {
        Body::Regular(contents) => regular(contents),
        Body::Directory(_) => Content::Directory,
        Body::Symlink(target) => Content::Symlink {
            target: target.to_vec(),
        },
        Body::Special { .. } => return None,
    };
    Some(node(&inode.attributes, content))
}
