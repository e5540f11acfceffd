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
use crate::codec::{Reader, chunk_list, put_attributes, put_chunks, put_short_bytes};
use crate::inode::{Attributes, Body, Contents, Ino, Inode, Name, ROOT_INO};
use crate::tree::{BaseTree, Digests, Tree};

const PAGE: u8 = 1;
const INDEX: u8 = 2;
/// Longest chunk list kept in the entry itself.
const INLINE_CHUNKS_MAX: usize = 8;
/// A page ends after a name whose hash has these bits clear: 256 names on average.
const PAGE_CUT_MASK: u8 = 0xff;
/// Deepest directory: paths have at most 4096 bytes, two for each name.
const DEPTH_MAX: usize = 2048;
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
    let root = writer
        .directory(tree, ROOT_INO)
        .and_then(|root| writer.flush().map(|()| root));
    let root = root.inspect_err(|_| tree.forget_nodes())?;
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

    fn directory(&mut self, tree: &mut Tree, ino: Ino) -> Result<BlobHash, FlashError> {
        if let Some(node) = tree.digests(ino).node {
            return Ok(node);
        }
        let entries = tree
            .get(ino)
            .and_then(|inode| inode.entries())
            .cloned()
            .unwrap_or_default();
        let mut pages = Vec::new();
        let mut page = vec![PAGE];
        for (name, child) in entries {
            let Some(inode) = tree.get(child).cloned() else {
                continue;
            };
            self.entry(tree, &inode, &mut page)?;
            if BlobHash::of(&name).as_bytes()[0] & PAGE_CUT_MASK == 0 {
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
        tree.learn_node(ino, node);
        Ok(node)
    }

    fn entry(
        &mut self,
        tree: &mut Tree,
        inode: &Inode,
        out: &mut Vec<u8>,
    ) -> Result<(), FlashError> {
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
                out.put_slice(self.directory(tree, inode.ino)?.as_bytes());
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
    };
    let entries = loader.directory(ROOT_INO, stored.root, 0)?;
    let body = Body::Directory(entries);
    let root = Inode {
        ino: ROOT_INO,
        parent: ROOT_INO,
        name: Name::default(),
        attributes: stored.root_attributes,
        body,
    };
    loader.tree.restore(
        root,
        Some(Digests {
            content: None,
            node: Some(stored.root),
        }),
    );
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
}

impl Loader<'_> {
    fn directory(
        &mut self,
        ino: Ino,
        node: BlobHash,
        depth: usize,
    ) -> Result<BTreeMap<Name, Ino>, FlashError> {
        let bytes = self.blobs.get(&node)?;
        let mut reader = Reader::new(&bytes, "a directory node");
        let mut entries = BTreeMap::new();
        self.loaded.push(ino);
        match reader.u8()? {
            _ if depth > DEPTH_MAX => return Err(reader.damaged().into()),
            PAGE => self.page(ino, reader, depth, &mut entries)?,
            INDEX => {
                while !reader.is_empty() {
                    let page = self.blobs.get(&BlobHash::from(reader.hash()?.0))?;
                    let mut reader = Reader::new(&page, "a page of a directory node");
                    if reader.u8()? != PAGE {
                        return Err(reader.damaged().into());
                    }
                    self.page(ino, reader, depth, &mut entries)?;
                }
            }
            _ => return Err(reader.damaged().into()),
        }
        Ok(entries)
    }

    fn page(
        &mut self,
        parent: Ino,
        mut reader: Reader<'_>,
        depth: usize,
        entries: &mut BTreeMap<Name, Ino>,
    ) -> Result<(), FlashError> {
        while !reader.is_empty() {
            let name: Name = reader.short_bytes()?.into();
            let ino = reader.u64()?;
            let attributes = reader.attributes()?;
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
                    digests = Some(same.copied().unwrap_or(Digests {
                        content: None,
                        node: Some(node),
                    }));
                    match same.and_then(|_| self.base.inodes.get(&ino)) {
                        Some(inode) => inode.body.clone(),
                        None => Body::Directory(self.directory(ino, node, depth + 1)?),
                    }
                }
                3 => Body::Symlink(reader.short_bytes()?.into()),
                4 => Body::Special {
                    format: reader.u32()?,
                    rdev: reader.u32()?,
                },
                _ => return Err(reader.damaged().into()),
            };
            self.seen.insert(ino);
            entries.insert(name.clone(), ino);
            let inode = Inode {
                ino,
                parent,
                name,
                attributes,
                body,
            };
            // A directory that was loaded has something changed beneath it, so the base's digests are wrong for it.
            let loaded = digests.is_some_and(|digests| digests.content.is_none());
            if loaded
                || !self
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
