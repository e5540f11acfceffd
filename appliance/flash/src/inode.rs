//! What a flash holds: files, directories, links, and the rare special file of a base tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use sync_protocol::Hash;
use sync_protocol::chunking::Chunk;
use sync_protocol::event::{Content, Node, SYMLINK_MODE};
use sync_protocol::tree::{self, Entry, FileKind};

/// Number of a file for as long as it lives; 0 is none.
pub type Ino = u64;

/// The root directory of every tree.
pub const ROOT_INO: Ino = 1;

/// A file's name in its directory.
pub type Name = Box<[u8]>;

/// One file of a tree. In a flash every file has exactly one place.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    /// Its number.
    pub(crate) ino: Ino,
    /// The directory it is in; the root is in itself.
    pub(crate) parent: Ino,
    /// Its name there; empty for the root.
    pub(crate) name: Name,
    /// Permissions, owner and time.
    pub(crate) attributes: Attributes,
    /// What it is.
    pub(crate) body: Body,
}

/// Permissions, owner and time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
}

/// What a file is.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// A regular file.
    Regular(Arc<Contents>),
    /// A directory and the files in it.
    Directory(BTreeMap<Name, Ino>),
    /// A symbolic link to these bytes.
    Symlink(Arc<[u8]>),
    /// A pipe, socket or device node: `S_IFMT` bits and device number. Not hashed, not captured.
    Special {
        /// File type as in `st_mode`.
        format: u32,
        /// Device number as the kernel encodes it in 32 bits; 0 for pipes and sockets.
        rdev: u32,
    },
}

impl Body {
    /// Whether both are of the same kind, so that one can take over the other's number.
    pub(crate) fn same_kind(&self, other: &Body) -> bool {
        match (self, other) {
            (Body::Special { format: ours, .. }, Body::Special { format: theirs, .. }) => {
                ours == theirs
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// Whether this is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Body::Directory(_))
    }

    /// The file type bits of `st_mode`.
    pub(crate) fn format(&self) -> u32 {
        match self {
            Body::Regular(_) => libc::S_IFREG,
            Body::Directory(_) => libc::S_IFDIR,
            Body::Symlink(_) => libc::S_IFLNK,
            Body::Special { format, .. } => *format,
        }
    }

    /// Size as in `st_size`.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Body::Regular(contents) => contents.size(),
            Body::Symlink(target) => target.len() as u64,
            Body::Directory(_) | Body::Special { .. } => 0,
        }
    }

    /// The body that an event describes, without the entries of a directory.
    pub(crate) fn of_node(node: &Node) -> Body {
        match &node.content {
            Content::Regular { chunks, .. } => {
                Body::Regular(Arc::new(Contents::new(chunks.clone())))
            }
            Content::Directory => Body::Directory(BTreeMap::new()),
            Content::Symlink { target } => Body::Symlink(target.as_slice().into()),
        }
    }
}

impl Attributes {
    /// The attributes that an event describes.
    pub(crate) fn of_node(node: &Node) -> Attributes {
        let mode = match node.content {
            // As the contract reads it back from a log.
            Content::Symlink { .. } => SYMLINK_MODE,
            _ => node.mode,
        };
        Attributes {
            mode,
            uid: node.uid,
            gid: node.gid,
            mtime_ns: node.mtime_ns,
        }
    }

    /// Whether permissions and owner, which are hashed, are the same.
    pub(crate) fn same_owner(&self, other: &Attributes) -> bool {
        (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
    }

    /// The tree entry of a file with these attributes, as it is hashed.
    pub(crate) fn entry(&self, kind: FileKind, size: u64, content: Hash) -> Entry {
        Entry {
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size,
            content,
        }
    }
}

impl Inode {
    /// The entry as it is hashed, if this is a file or a link: directories need their tree, special
    /// files have none.
    pub(crate) fn leaf_entry(&self) -> Option<Entry> {
        let (kind, content) = match &self.body {
            Body::Regular(contents) => (FileKind::Regular, contents.hash()),
            Body::Symlink(target) => (FileKind::Symlink, tree::link_content(target)),
            Body::Directory(_) | Body::Special { .. } => return None,
        };
        Some(self.attributes.entry(kind, self.body.size(), content))
    }

    /// The entries, if this is a directory.
    pub(crate) fn entries(&self) -> Option<&BTreeMap<Name, Ino>> {
        match &self.body {
            Body::Directory(entries) => Some(entries),
            _ => None,
        }
    }
}

/// A file's bytes as a list of chunks.
#[derive(Debug)]
pub(crate) struct Contents {
    chunks: Vec<Chunk>,
    /// Where each chunk ends in the file.
    ends: Vec<u64>,
    hash: Hash,
}

impl Contents {
    /// A file of these chunks, one after the other.
    pub(crate) fn new(chunks: Vec<Chunk>) -> Self {
        let mut end = 0;
        let ends = chunks.iter().map(|chunk| {
            end += u64::from(chunk.size);
            end
        });
        let ends = ends.collect();
        let hash = tree::file_content(&chunks);
        Contents { chunks, ends, hash }
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The content hash, as in tree hashes.
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }

    /// The chunks in order.
    pub(crate) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunks from the one that holds byte `offset` on, each with where it begins in the file.
    pub(crate) fn chunks_from(&self, offset: u64) -> impl Iterator<Item = (u64, &Chunk)> {
        let first = self.ends.partition_point(|end| *end <= offset);
        let ends = &self.ends[first..];
        self.chunks[first..]
            .iter()
            .zip(ends)
            .map(|(chunk, end)| (end - u64::from(chunk.size), chunk))
    }
}
