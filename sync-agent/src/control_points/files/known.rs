//! The phone's files as the journal's events describe them so far.
//!
//! Everything the files control point does is a comparison of this tree with the disk: a difference becomes an event and
//! enters the tree. So a lost or merged notification costs nothing once a scan passes by, and what the agent itself
//! writes for the appliance makes no event, because it enters the tree with the deed.

use std::collections::BTreeMap;
use std::ops::Bound;

use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::scope::Scope;
use sync_protocol::tree::{self, Entry, FileKind, TreeHasher};

use crate::beneath::Stat;

/// One path as last described, and how the disk looked then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Of a directory the content is not kept here but computed, see [`KnownTree::entry`].
    pub(crate) entry: Entry,
    pub(crate) mtime_ns: i64,
    /// With `inode`, tells without reading that nothing happened.
    pub(crate) ctime_ns: i64,
    pub(crate) inode: u64,
}

impl Known {
    /// What was observed at `wall_us`.
    pub(crate) fn new(entry: Entry, stat: &Stat, wall_us: i64) -> Self {
        // Within one tick of the kernel's clock a file can change again without its ctime moving: what was observed so
        // soon after a change has to be read again when asked about.
        let is_settled = wall_us.saturating_sub(stat.ctime_ns / 1000) > CLOCK_TICK_US;
        let ctime_ns = if is_settled { stat.ctime_ns } else { i64::MIN };
        Self {
            entry,
            mtime_ns: stat.mtime_ns,
            ctime_ns,
            inode: stat.inode,
        }
    }

    /// Whether the disk looks exactly as it did. Any write, rename over it or change of attributes moves the ctime.
    pub(crate) fn is_still(&self, stat: &Stat) -> bool {
        Some(self.entry.kind) == stat.kind
            && self.inode == stat.inode
            && self.ctime_ns == stat.ctime_ns
            && self.mtime_ns == stat.mtime_ns
            && (self.entry.mode, self.entry.uid, self.entry.gid) == (stat.mode, stat.uid, stat.gid)
            && (self.entry.size == stat.size || self.entry.kind == FileKind::Directory)
    }
}

/// Twice the coarsest tick of file times (HZ=100).
const CLOCK_TICK_US: i64 = 20_000;

/// A step by which the tree changes, to be made in the database as well.
#[derive(Clone, Debug)]
pub(crate) enum KnownChange {
    Set(PhonePath, Known),
    /// With everything beneath it.
    Forget(PhonePath),
    /// With everything beneath it, replacing what was there.
    Move(PhonePath, PhonePath),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct KnownTree {
    paths: BTreeMap<PhonePath, Known>,
}

impl KnownTree {
    pub(crate) fn get(&self, path: &PhonePath) -> Option<&Known> {
        self.paths.get(path)
    }

    pub(crate) fn insert(&mut self, path: PhonePath, known: Known) {
        self.paths.insert(path, known);
    }

    /// Forgets a path and everything beneath it.
    pub(crate) fn forget(&mut self, path: &PhonePath) {
        let gone: Vec<PhonePath> = self.subtree(path).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.paths.remove(&path);
        }
    }

    pub(crate) fn rename(&mut self, from: &PhonePath, to: &PhonePath) {
        self.forget(to);
        let moving: Vec<(PhonePath, Known)> = self
            .subtree(from)
            .map(|(path, known)| (path.clone(), *known))
            .collect();
        for (path, known) in moving {
            self.paths.remove(&path);
            // A path that grows too long by the move cannot be described; a later scan says so.
            if let Some(Ok(moved)) = path.moved(from, to) {
                self.paths.insert(moved, known);
            }
        }
    }

    /// A path and everything beneath it, as a walk.
    pub(crate) fn subtree<'a>(
        &'a self,
        path: &'a PhonePath,
    ) -> impl Iterator<Item = (&'a PhonePath, &'a Known)> {
        self.paths
            .range(path..)
            .take_while(|(beneath, _)| beneath.is_within(path))
    }

    /// The names in a directory.
    pub(crate) fn names(&self, directory: &PhonePath) -> Vec<Vec<u8>> {
        let depth = directory.components().count() + 1;
        let children = self
            .subtree(directory)
            .filter(|(path, _)| path.components().count() == depth);
        children
            .filter_map(|(path, _)| path.name().map(<[u8]>::to_vec))
            .collect()
    }

    /// All paths outside `scope`; only the topmost of each subtree.
    pub(crate) fn outside(&self, scope: &Scope) -> Vec<PhonePath> {
        let mut outside: Vec<PhonePath> = Vec::new();
        for path in self.paths.keys().filter(|path| !scope.contains(path)) {
            if !outside.last().is_some_and(|outer| path.is_within(outer)) {
                outside.push(path.clone());
            }
        }
        outside
    }

    /// The entry of a path, of a directory with the hash of everything beneath it.
    pub(crate) fn entry(&self, path: &PhonePath) -> Option<Entry> {
        let mut hasher = TreeHasher::new();
        for (path, known) in self.subtree(path) {
            hasher.add(path, known.entry);
        }
        hasher
            .finish()
            .into_iter()
            .find(|(top, _)| top == path)
            .map(|(_, entry)| entry)
    }

    /// Up to `max` entries of a directory whose names come after `after`, sorted by name; and whether there are more.
    ///
    /// Costs no more than what lies beneath those that it gives.
    pub(crate) fn entries(
        &self,
        directory: &PhonePath,
        after: &[u8],
        max: usize,
    ) -> (Vec<(Vec<u8>, Entry)>, bool) {
        // What is no name comes after nothing.
        let last = directory.join(after).ok();
        let from = last.clone().unwrap_or_else(|| directory.clone());
        let rest = self.paths.range((Bound::Excluded(&from), Bound::Unbounded));
        let mut hasher = TreeHasher::new();
        let (mut count, mut child, mut more) = (0, None, false);
        for (path, known) in rest.take_while(|(path, _)| path.is_within(directory)) {
            if last.as_ref().is_some_and(|last| path.is_within(last)) {
                continue;
            }
            if !child.is_some_and(|child: &PhonePath| path.is_within(child)) {
                if count == max {
                    more = true;
                    break;
                }
                (count, child) = (count + 1, Some(path));
            }
            hasher.add(path, known.entry);
        }
        let named = |(path, entry): (PhonePath, Entry)| Some((path.name()?.to_vec(), entry));
        (hasher.finish().into_iter().filter_map(named).collect(), more)
    }

    pub(crate) fn root_hash(&self, scope: &Scope) -> Hash {
        tree::root_hash(scope.roots().iter().map(|root| (root, self.entry(root))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PhonePath {
        PhonePath::new(text).unwrap()
    }

    fn known(kind: FileKind, inode: u64) -> Known {
        let entry = Entry {
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            content: Hash([0; 32]),
        };
        Known {
            entry,
            mtime_ns: 0,
            ctime_ns: 0,
            inode,
        }
    }

    fn sample() -> KnownTree {
        let mut tree = KnownTree::default();
        for (index, text) in ["/r", "/r/a", "/r/a/x", "/r/a-", "/r/b"]
            .into_iter()
            .enumerate()
        {
            let kind = if matches!(text, "/r" | "/r/a") {
                FileKind::Directory
            } else {
                FileKind::Regular
            };
            tree.insert(path(text), known(kind, index as u64));
        }
        tree
    }

    #[test]
    fn subtrees_move_and_go_as_a_whole() {
        let mut tree = sample();
        assert_eq!(tree.names(&path("/r")), [&b"a"[..], b"a-", b"b"]);
        tree.rename(&path("/r/a"), &path("/r/b"));
        assert_eq!(tree.get(&path("/r/b/x")).unwrap().inode, 2);
        assert!(tree.get(&path("/r/a/x")).is_none() && tree.get(&path("/r/a-")).is_some());
        tree.forget(&path("/r/b"));
        assert_eq!(tree.names(&path("/r")), [b"a-"]);
    }

    #[test]
    fn entries_hash_what_is_beneath() {
        let mut tree = sample();
        let before = tree.entry(&path("/r")).unwrap();
        let (listed, more) = tree.entries(&path("/r"), b"", 9);
        assert!(!more);
        assert_eq!(
            tree::directory_content(listed.iter().map(|(name, entry)| (name.as_slice(), *entry))),
            before.content
        );
        tree.forget(&path("/r/a/x"));
        assert_ne!(tree.entry(&path("/r")).unwrap(), before);
    }

    #[test]
    fn entries_come_in_pages_that_join_up() {
        let tree = sample();
        let (all, _) = tree.entries(&path("/r"), b"", 9);
        for max in 1..=3 {
            let (mut paged, mut after) = (Vec::new(), Vec::new());
            loop {
                let (page, more) = tree.entries(&path("/r"), &after, max);
                assert!(page.len() <= max && (page.len() == max || !more));
                paged.extend(page);
                if !more {
                    break;
                }
                after = paged.last().unwrap().0.clone();
            }
            assert_eq!(paged, all);
        }
        // A name that is not there stands where it would be.
        let (after, more) = tree.entries(&path("/r"), b"a+", 9);
        assert_eq!((after, more), (all[1..].to_vec(), false));
        assert_eq!(tree.entries(&path("/none"), b"", 9), (Vec::new(), false));
    }
}
