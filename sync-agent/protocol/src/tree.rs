//! Tree hashes: the one definition, for phone and appliance, of what a file tree's hash is. `sync.proto` (TreeHash)
//! specifies the bytes.
//!
//! Equal roots mean equal names, kinds, permissions, owners, sizes and contents of everything captured. Modification
//! times are carried but not hashed.

use crate::chunking::Chunk;
use crate::hash::Hash;
use crate::path::PhonePath;

/// What a path is. The numbers are those of `wire::FileKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FileKind {
    Regular = 1,
    Directory = 2,
    Symlink = 3,
}

/// Everything about a path that is hashed, apart from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub kind: FileKind,
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a regular file or of a link's target; 0 of a directory.
    pub size: u64,
    /// [`file_content`], [`link_content`] or [`DirectoryHasher::finish`].
    pub content: Hash,
}

impl Entry {
    /// Hash of the entry by itself: what a change from the appliance names as its base.
    pub fn hash(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("pollux 2026-11 entry");
        self.update(&mut hasher);
        Hash(*hasher.finalize().as_bytes())
    }

    fn update(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&[self.kind as u8]);
        for number in [self.mode, self.uid, self.gid] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&self.size.to_le_bytes());
        hasher.update(self.content.as_bytes());
    }
}

/// Content hash of a regular file.
pub fn file_content(chunks: &[Chunk]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("pollux 2026-11 file");
    for chunk in chunks {
        hasher.update(&chunk.size.to_le_bytes());
        hasher.update(chunk.hash.as_bytes());
    }
    Hash(*hasher.finalize().as_bytes())
}

/// Content hash of a symbolic link.
pub fn link_content(target: &[u8]) -> Hash {
    Hash(
        *blake3::Hasher::new_derive_key("pollux 2026-11 link")
            .update(target)
            .finalize()
            .as_bytes(),
    )
}

/// Content hash of a directory, entry by entry.
pub struct DirectoryHasher {
    hasher: blake3::Hasher,
    last: Option<Vec<u8>>,
}

impl Default for DirectoryHasher {
    fn default() -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key("pollux 2026-11 directory"),
            last: None,
        }
    }
}

impl DirectoryHasher {
    /// Adds the next entry. Names must come sorted as bytes, each once.
    pub fn add(&mut self, name: &[u8], entry: &Entry) {
        assert!(
            self.last.as_deref().is_none_or(|last| last < name),
            "directory entries come sorted"
        );
        update_bytes(&mut self.hasher, name);
        entry.update(&mut self.hasher);
        self.last = Some(name.to_vec());
    }

    pub fn finish(self) -> Hash {
        Hash(*self.hasher.finalize().as_bytes())
    }
}

/// Content hash of a directory with these entries, sorted by name as bytes.
pub fn directory_content<'a>(entries: impl IntoIterator<Item = (&'a [u8], Entry)>) -> Hash {
    let mut hasher = DirectoryHasher::default();
    for (name, entry) in entries {
        hasher.add(name, &entry);
    }
    hasher.finish()
}

/// The hash of everything captured: the entries at the roots of a [`crate::scope::Scope`], which has them sorted.
pub fn root_hash<'a>(roots: impl IntoIterator<Item = (&'a PhonePath, Option<Entry>)>) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("pollux 2026-11 roots");
    let mut last: Option<&PhonePath> = None;
    for (path, entry) in roots {
        assert!(last.is_none_or(|last| last < path), "roots come sorted");
        last = Some(path);
        update_bytes(&mut hasher, path.as_bytes());
        match entry {
            Some(entry) => {
                hasher.update(&[1]);
                entry.update(&mut hasher);
            }
            None => {
                hasher.update(&[0]);
            }
        }
    }
    Hash(*hasher.finalize().as_bytes())
}

fn update_bytes(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("names and paths are at most 4096 bytes");
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes);
}

/// One pass over a whole tree in depth-first order, for those who hold it as a flat list of paths.
///
/// Feed every path beneath the roots, and the roots themselves, in the order of [`PhonePath`]. Directories' `content` is
/// ignored and computed.
pub struct TreeHasher {
    open: Vec<(PhonePath, Entry, DirectoryHasher)>,
    done: Vec<(PhonePath, Entry)>,
}

impl Default for TreeHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeHasher {
    pub fn new() -> Self {
        Self {
            open: Vec::new(),
            done: Vec::new(),
        }
    }

    pub fn add(&mut self, path: &PhonePath, entry: Entry) {
        while self
            .open
            .last()
            .is_some_and(|(directory, ..)| !path.is_within(directory))
        {
            self.close();
        }
        match entry.kind {
            FileKind::Directory => {
                self.open
                    .push((path.clone(), entry, DirectoryHasher::default()))
            }
            _ => self.place(path.clone(), entry),
        }
    }

    /// The entries of the topmost paths, directories now with their content.
    pub fn finish(mut self) -> Vec<(PhonePath, Entry)> {
        while !self.open.is_empty() {
            self.close();
        }
        self.done
    }

    fn close(&mut self) {
        if let Some((path, entry, hasher)) = self.open.pop() {
            self.place(
                path,
                Entry {
                    content: hasher.finish(),
                    ..entry
                },
            );
        }
    }

    fn place(&mut self, path: PhonePath, entry: Entry) {
        match (self.open.last_mut(), path.name()) {
            (Some((directory, _, hasher)), Some(name)) => {
                assert_eq!(
                    path.parent().as_ref(),
                    Some(&*directory),
                    "every directory on the way is fed"
                );
                hasher.add(name, &entry);
            }
            _ => self.done.push((path, entry)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &[u8]) -> Entry {
        let chunks: Vec<Chunk> = crate::chunking::cut(contents)
            .map(|(chunk, _)| chunk)
            .collect();
        let size = contents.len() as u64;
        Entry {
            kind: FileKind::Regular,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size,
            content: file_content(&chunks),
        }
    }

    fn directory(content: Hash) -> Entry {
        Entry {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 1,
            gid: 2,
            size: 0,
            content,
        }
    }

    #[test]
    fn a_flat_walk_and_nested_hashing_agree() {
        let path = |text: &str| PhonePath::new(text).unwrap();
        let inner = directory(directory_content([(&b"c"[..], file(b"three"))]));
        let outer = directory(directory_content([
            (&b"b"[..], inner),
            (&b"b-"[..], file(b"four")),
            (b"z", file(b"")),
        ]));

        let none = directory(Hash([0; 32]));
        let mut walk = TreeHasher::new();
        walk.add(&path("/r"), none);
        walk.add(&path("/r/b"), none);
        walk.add(&path("/r/b/c"), file(b"three"));
        walk.add(&path("/r/b-"), file(b"four"));
        walk.add(&path("/r/z"), file(b""));
        assert_eq!(walk.finish(), [(path("/r"), outer)]);
    }

    #[test]
    fn everything_but_the_time_counts() {
        let base = file(b"text");
        let others = [
            Entry {
                mode: 0o600,
                ..base
            },
            Entry { uid: 9, ..base },
            Entry { gid: 9, ..base },
            Entry {
                kind: FileKind::Symlink,
                ..base
            },
            Entry { size: 9, ..base },
            file(b"texT"),
        ];
        for other in others {
            assert_ne!(base.hash(), other.hash());
        }
        assert_ne!(
            directory_content([(&b"a"[..], base)]),
            directory_content([(&b"b"[..], base)])
        );
    }

    /// The contract: hashes of another agent, written from the specification, must come out the same.
    #[test]
    fn known_hash() {
        let path = PhonePath::new("/r").unwrap();
        let entry = directory(directory_content([(&b"a"[..], file(b"hello"))]));
        assert_eq!(
            root_hash([(&path, Some(entry))]).to_string(),
            "5ee45564f5a8d26d04b5c0f1c8b16501a1c18b38ea3bbe99d8ad1bda1470309f"
        );
    }
}
