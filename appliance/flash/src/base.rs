//! Base trees: an image's files, imported from its `base.tar` once and shared by all phones of that image.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use store::{BlobHash, Blobs};
use sync_protocol::PhonePath;
use sync_protocol::chunking::{Chunk, cut_stream};
use tar::EntryType;

use crate::FlashError;
use crate::inode::{Attributes, Body, Contents, Ino};
use crate::tree::{BaseTree, Effect, Tree};

/// Most files in a base tree: a complete Linux phone has a tenth of it.
const FILES_MAX: usize = 2_000_000;
/// Chunks are given to the store when there are this many bytes of them.
const BATCH_BYTES: usize = 16 << 20;

/// Reads a tar archive into a tree, its files' chunks into `blobs`.
///
/// Hard links become files of their own with the same chunks. Paths must be relative or absolute
/// without `..`; a parent that comes after its children is given its attributes then. Inode numbers
/// follow the order of the archive, so equal archives give equal trees.
pub(crate) fn import(tar: impl Read, blobs: &dyn Blobs) -> Result<Tree, FlashError> {
    let mut import = Import {
        tree: Tree::new(Arc::new(BaseTree::empty())),
        blobs,
        batch: Vec::new(),
        batch_bytes: 0,
        times: HashMap::new(),
    };
    let read = |source| FlashError::Tar {
        what: "reading the archive".into(),
        source,
    };
    let mut archive = tar::Archive::new(tar);
    for (count, entry) in archive.entries().map_err(read)?.enumerate() {
        if count >= FILES_MAX {
            return Err(FlashError::BaseTooLarge {
                files_max: FILES_MAX,
            });
        }
        import.entry(entry.map_err(read)?)?;
    }
    import.finish()
}

struct Import<'a> {
    tree: Tree,
    blobs: &'a dyn Blobs,
    batch: Vec<Bytes>,
    batch_bytes: usize,
    /// Directories' times, to be set when nothing moves them any more.
    times: HashMap<Ino, i64>,
}

impl Import<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), FlashError> {
        let name = entry.path_bytes().into_owned();
        let path = normal_path(&name)?;
        let failed = |source| FlashError::Tar {
            what: path.to_string(),
            source,
        };
        let header = entry.header();
        let number = |number: std::io::Result<u64>| {
            number
                .and_then(|number| u32::try_from(number).map_err(std::io::Error::other))
                .map_err(failed)
        };
        let attributes = Attributes {
            mode: header.mode().map_err(failed)? & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            mtime_ns: i64::try_from(header.mtime().map_err(failed)?)
                .unwrap_or(0)
                .saturating_mul(1_000_000_000),
        };
        let device = || {
            let numbers = (
                header.device_major().map_err(failed)?,
                header.device_minor().map_err(failed)?,
            );
            let (major, minor) = (numbers.0.unwrap_or(0), numbers.1.unwrap_or(0));
            // The kernel's 32-bit encoding (new_encode_dev).
            Ok::<u32, FlashError>((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
        };
        let link = entry.link_name_bytes().map(|target| target.into_owned());
        let link = link.ok_or(FlashError::BadTar {
            path: path.to_string(),
            why: "a link has no target",
        });
        let body = match header.entry_type() {
            EntryType::Directory => Body::Directory(BTreeMap::new()),
            EntryType::Symlink => Body::Symlink(link?.into()),
            EntryType::Link => {
                let target = self
                    .tree
                    .resolve(&normal_path(&link?)?)
                    .map(|inode| inode.body.clone());
                let is_file = target.filter(|body| matches!(body, Body::Regular(_)));
                let why = "a hard link leads to no file before it";
                is_file.ok_or(FlashError::BadTar {
                    path: path.to_string(),
                    why,
                })?
            }
            EntryType::Fifo => Body::Special {
                format: libc::S_IFIFO,
                rdev: 0,
            },
            EntryType::Char => Body::Special {
                format: libc::S_IFCHR,
                rdev: device()?,
            },
            EntryType::Block => Body::Special {
                format: libc::S_IFBLK,
                rdev: device()?,
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                Body::Regular(Arc::new(Contents::new(self.contents(&mut entry, &path)?)))
            }
            // Extended headers are read by the tar crate; others of this kind carry no file.
            EntryType::XGlobalHeader => return Ok(()),
            _ => {
                return Err(FlashError::BadTar {
                    path: path.to_string(),
                    why: "an unknown kind of entry",
                });
            }
        };
        let is_directory = body.is_directory();
        let ino = self
            .tree
            .set(&path, attributes, body, &mut Effect::default());
        if is_directory {
            self.times.insert(ino, attributes.mtime_ns);
        }
        Ok(())
    }

    fn contents(
        &mut self,
        file: &mut impl Read,
        path: &PhonePath,
    ) -> Result<Vec<Chunk>, FlashError> {
        let mut chunks = Vec::new();
        for piece in cut_stream(file) {
            let (chunk, bytes) = piece.map_err(|source| FlashError::Tar {
                what: path.to_string(),
                source,
            })?;
            chunks.push(chunk);
            self.batch_bytes += bytes.len();
            self.batch.push(bytes.into());
            if self.batch_bytes > BATCH_BYTES {
                self.flush()?;
            }
        }
        Ok(chunks)
    }

    fn flush(&mut self) -> Result<(), FlashError> {
        self.batch_bytes = 0;
        self.blobs.put_many(&std::mem::take(&mut self.batch))?;
        Ok(())
    }

    fn finish(mut self) -> Result<Tree, FlashError> {
        self.flush()?;
        for (directory, mtime_ns) in std::mem::take(&mut self.times) {
            self.tree.set_mtime(directory, mtime_ns);
        }
        Ok(self.tree)
    }
}

/// `./usr/bin/`, `usr/bin` and `/usr/bin` are the same place.
fn normal_path(name: &[u8]) -> Result<PhonePath, FlashError> {
    let names = name
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    PhonePath::new(path).map_err(|_| FlashError::BadTar {
        path: name.escape_ascii().to_string(),
        why: "not a path within",
    })
}

/// BLAKE3 of a file: what a base tree is known by.
pub(crate) fn hash_file(path: &Path) -> Result<BlobHash, FlashError> {
    let failed = |source| FlashError::Tar {
        what: path.display().to_string(),
        source,
    };
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(std::fs::File::open(path).map_err(failed)?)
        .map_err(failed)?;
    Ok(BlobHash::from(hasher.finalize()))
}
