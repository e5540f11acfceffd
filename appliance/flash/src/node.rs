//! Trees in the blob store: a directory is a node, addressed by its content, that names the nodes of its
//! subdirectories; so positions share what did not change between them, and phones what their base has.
//!
//! Unlike the hashes compared with phones, nodes carry inode numbers and times. A node is one page, or an
//! index of pages when the directory is large, cut where names fall so that one new name changes one page:
//!
//!     node    = u8 1, entry...  |  u8 2, page hash...
//!     entry   = u16 name length, name, u64 ino, u32 mode, u32 uid, u32 gid, i64 mtime_ns, u8 kind, body
//!     body    = 1 (file):    u32 chunk count, then the chunks (u32 size, hash) or, if many, the hash of their list
//!               2 (dir):     hash of its node
//!               3 (link):    u16 length, target
//!               4 (special): u32 format, u32 rdev

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use store::{BlobHash, Blobs};

use crate::FlashError;
use crate::codec::{Damaged, Reader, chunk_list, put_attributes, put_chunks, put_short_bytes};
use crate::inode::{Attributes, Body, Contents, Ino, Inode, Name, ROOT_INO};
use crate::tree::{BaseTree, Digests, Tree};

const PAGE: u8 = 1;
const INDEX: u8 = 2;
/// Longest chunk list kept in the entry itself.
const INLINE_CHUNKS_MAX: usize = 8;
/// A page ends after a name whose hash has these bits clear: 256 names on average.
const PAGE_CUT_MASK: u8 = 0xff;
/// Blobs are given to the store when there are this many bytes of them.
const BATCH_BYTES: usize = 8 << 20;

/// Where a tree is stored: enough to load it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredTree {
    pub(crate) root: BlobHash,
    pub(crate) root_attributes: Attributes,
    pub(crate) next_ino: Ino,
}

/// Stores what is not stored of `tree`.
pub(crate) fn store_tree(tree: &mut Tree, blobs: &dyn Blobs) -> Result<StoredTree, FlashError> {
    let mut writer = Writer {
        blobs,
        batch: Vec::new(),
        batch_bytes: 0,
    };
    let unstored = tree.unstored_directories();
    let mut stored = unstored
        .iter()
        .try_for_each(|directory| writer.directory(tree, directory));
    stored = stored.and_then(|()| writer.flush());
    stored.inspect_err(|_| tree.forget_nodes())?;
    let root = tree
        .digests(ROOT_INO)
        .node
        .ok_or(Damaged("the root, just stored"))?;
    Ok(StoredTree {
        root,
        root_attributes: tree.root().attributes,
        next_ino: tree.next_ino(),
    })
}

/// Collects blobs for the store.
struct Writer<'a> {
    blobs: &'a dyn Blobs,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl Writer<'_> {
    fn flush(&mut self) -> Result<(), FlashError> {
        self.batch_bytes = 0;
        self.blobs.put_many(&std::mem::take(&mut self.batch))?;
        Ok(())
    }

    fn put(&mut self, blob: impl Into<Bytes>) -> Result<BlobHash, FlashError> {
        let blob = blob.into();
        let hash = BlobHash::of(&blob);
        self.batch_bytes += blob.len();
        self.batch.push(blob);
        if self.batch_bytes > BATCH_BYTES {
            self.flush()?;
        }
        Ok(hash)
    }

    /// Stores one directory; those in it have been stored.
    fn directory(&mut self, tree: &mut Tree, directory: &Inode) -> Result<(), FlashError> {
        let mut pages = Vec::new();
        let mut page = vec![PAGE];
        for (name, child) in directory.entries().into_iter().flatten() {
            let Some(inode) = tree.get(*child) else {
                continue;
            };
            self.entry(tree, inode, &mut page)?;
            if BlobHash::of(name).as_bytes()[0] & PAGE_CUT_MASK == 0 {
                pages.push(self.put(std::mem::replace(&mut page, vec![PAGE]))?);
            }
        }
        let node = if pages.is_empty() {
            self.put(page)?
        } else {
            pages.push(self.put(page)?);
            let mut index = vec![INDEX];
            pages
                .iter()
                .for_each(|page| index.extend_from_slice(page.as_bytes()));
            self.put(index)?
        };
        tree.learn_node(directory.ino, node);
        Ok(())
    }

    fn entry(&mut self, tree: &Tree, inode: &Inode, out: &mut Vec<u8>) -> Result<(), FlashError> {
        put_short_bytes(out, &inode.name);
        out.put_u64_le(inode.ino);
        put_attributes(out, &inode.attributes);
        match &inode.body {
            Body::Regular(contents) => {
                let chunks = contents.chunks();
                out.put_u8(1);
                out.put_u32_le(
                    u32::try_from(chunks.len()).expect("files have at most FILE_CHUNKS_MAX chunks"),
                );
                match chunks.len() > INLINE_CHUNKS_MAX {
                    true => out.put_slice(self.put(chunk_list(chunks))?.as_bytes()),
                    false => put_chunks(out, chunks),
                }
            }
            Body::Directory(_) => {
                out.put_u8(2);
                let node = tree
                    .digests(inode.ino)
                    .node
                    .ok_or(Damaged("a directory stored after its parent"))?;
                out.put_slice(node.as_bytes());
            }
            Body::Symlink(target) => {
                out.put_u8(3);
                put_short_bytes(out, target);
            }
            Body::Special { format, rdev } => {
                out.put_u8(4);
                out.put_u32_le(*format);
                out.put_u32_le(*rdev);
            }
        }
        Ok(())
    }
}

/// Loads a stored tree, taking from `base` whatever is the same there.
pub(crate) fn load_tree(
    base: &Arc<BaseTree>,
    stored: &StoredTree,
    blobs: &dyn Blobs,
) -> Result<Tree, FlashError> {
    let mut loader = Loader {
        base,
        blobs,
        tree: Tree::new(base.clone()),
        seen: HashSet::new(),
        loaded: Vec::new(),
        pending: Vec::new(),
    };
    let root = Inode {
        ino: ROOT_INO,
        parent: ROOT_INO,
        name: Name::default(),
        attributes: stored.root_attributes,
        body: Body::Directory(BTreeMap::new()),
    };
    loader.pending.push((root, stored.root));
    while let Some((directory, node)) = loader.pending.pop() {
        loader.directory(directory, node)?;
    }
    let Loader {
        mut tree,
        seen,
        loaded,
        ..
    } = loader;
    for directory in loaded {
        let was = base
            .inodes
            .get(&directory)
            .and_then(|inode| inode.entries());
        for child in was.into_iter().flat_map(BTreeMap::values) {
            tree.bury(*child, &seen);
        }
    }
    tree.reserve_inos(stored.next_ino);
    Ok(tree)
}

struct Loader<'a> {
    base: &'a BaseTree,
    blobs: &'a dyn Blobs,
    tree: Tree,
    /// Files that were met, other than those in directories that are as in the base.
    seen: HashSet<Ino>,
    /// Directories that are not as in the base.
    loaded: Vec<Ino>,
    /// Directories to be loaded: their entries are missing.
    pending: Vec<(Inode, BlobHash)>,
}

impl Loader<'_> {
    /// Loads a directory, whose entries are still missing, from its node.
    fn directory(&mut self, mut directory: Inode, node: BlobHash) -> Result<(), FlashError> {
        let bytes = self.blobs.get(&node)?;
        let mut reader = Reader::new(&bytes, "a directory node");
        let mut entries = BTreeMap::new();
        match reader.u8()? {
            PAGE => self.page(directory.ino, reader, &mut entries)?,
            INDEX => {
                while !reader.is_empty() {
                    let page = self.blobs.get(&BlobHash::from(reader.hash()?.0))?;
                    let mut reader = Reader::new(&page, "a page of a directory node");
                    if reader.u8()? != PAGE {
                        return Err(reader.damaged().into());
                    }
                    self.page(directory.ino, reader, &mut entries)?;
                }
            }
            _ => return Err(reader.damaged().into()),
        }
        self.loaded.push(directory.ino);
        directory.body = Body::Directory(entries);
        self.tree.restore(
            directory,
            Some(Digests {
                content: None,
                node: Some(node),
            }),
        );
        Ok(())
    }

    fn page(
        &mut self,
        parent: Ino,
        mut reader: Reader<'_>,
        entries: &mut BTreeMap<Name, Ino>,
    ) -> Result<(), FlashError> {
        while !reader.is_empty() {
            let name: Name = reader.short_bytes()?.into();
            let ino = reader.u64()?;
            let attributes = reader.attributes()?;
            entries.insert(name.clone(), ino);
            if !self.seen.insert(ino) {
                // A number has one place; twice would let a damaged node lead in circles.
                return Err(reader.damaged().into());
            }
            let mut digests = None;
            let body = match reader.u8()? {
                1 => Body::Regular(self.contents(ino, &mut reader)?),
                2 => {
                    let node = BlobHash::from(reader.hash()?.0);
                    let same = self
                        .base
                        .digests
                        .get(&ino)
                        .filter(|known| known.node == Some(node));
                    digests = same.copied();
                    match same.and_then(|_| self.base.inodes.get(&ino)) {
                        Some(inode) => inode.body.clone(),
                        None => {
                            let body = Body::Directory(BTreeMap::new());
                            self.pending.push((
                                Inode {
                                    ino,
                                    parent,
                                    name,
                                    attributes,
                                    body,
                                },
                                node,
                            ));
                            continue;
                        }
                    }
                }
                3 => Body::Symlink(reader.short_bytes()?.into()),
                4 => Body::Special {
                    format: reader.u32()?,
                    rdev: reader.u32()?,
                },
                _ => return Err(reader.damaged().into()),
            };
            let inode = Inode {
                ino,
                parent,
                name,
                attributes,
                body,
            };
            if !self
                .base
                .inodes
                .get(&ino)
                .is_some_and(|base| is_same(base, &inode))
            {
                self.tree.restore(inode, digests);
            }
        }
        Ok(())
    }

    fn contents(&self, ino: Ino, reader: &mut Reader<'_>) -> Result<Arc<Contents>, FlashError> {
        let count = reader.u32()?;
        let chunks = if count as usize > INLINE_CHUNKS_MAX {
            let list = self.blobs.get(&BlobHash::from(reader.hash()?.0))?;
            Reader::new(&list, "a chunk list").chunks(count)?
        } else {
            reader.chunks(count)?
        };
        let contents = Contents::new(chunks);
        match self.base.inodes.get(&ino).map(|inode| &inode.body) {
            Some(Body::Regular(base)) if base.hash() == contents.hash() => Ok(base.clone()),
            _ => Ok(Arc::new(contents)),
        }
    }
}

/// Whether a loaded inode needs no entry beside the base's.
fn is_same(base: &Inode, loaded: &Inode) -> bool {
    let same_body = match (&base.body, &loaded.body) {
        (Body::Regular(base), Body::Regular(loaded)) => Arc::ptr_eq(base, loaded),
        (Body::Directory(base), Body::Directory(loaded)) => base == loaded,
        (Body::Symlink(base), Body::Symlink(loaded)) => base == loaded,
        (
            Body::Special { format, rdev },
            Body::Special {
                format: loaded_format,
                rdev: loaded_rdev,
            },
        ) => (format, rdev) == (loaded_format, loaded_rdev),
        _ => false,
    };
    same_body
        && base.attributes == loaded.attributes
        && base.parent == loaded.parent
        && base.name == loaded.name
}
