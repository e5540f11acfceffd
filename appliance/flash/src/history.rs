//! One flash at two positions, and all its files in order: what looking back in time needs.
//!
//! Two copies of a flash that were made one from the other share what did not change between them, and their hashes tell
//! where that is: neither contents nor what lies beneath equal directories is looked at.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::{Arc, RwLock};

use store::Log;
use sync_protocol::PhonePath;

use crate::FlashError;
use crate::flash::{Flash, FlashShared, Head, Listed};
use crate::inode::{Body, Ino, Inode, Name, ROOT_INO};
use crate::tree::Tree;

/// A path that is not the same at two positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it is, or was.
    pub path: PhonePath,
    /// What it was at the first position; none: it is new.
    pub before: Option<Listed>,
    /// What it is at the second; none: it is gone.
    pub after: Option<Listed>,
    /// Where it was, if it was moved here.
    pub moved_from: Option<PhonePath>,
}

impl Flash {
    /// A copy of its own, at `position` of `log`, which must not be before this one's. Reads nothing but the log between.
    pub fn later(&self, log: &dyn Log, position: u64) -> Result<Flash, FlashError> {
        let FlashShared {
            phone,
            base,
            store,
            chunks,
            head,
        } = &*self.shared;
        let head = head.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let head = Head {
            tree: head.tree.clone(),
            position: head.position,
            views: Vec::new(),
        };
        let shared = FlashShared {
            phone: phone.clone(),
            base: *base,
            store: store.clone(),
            chunks: chunks.clone(),
            head: RwLock::new(head),
        };
        let later = Flash {
            shared: Arc::new(shared),
        };
        later.catch_up(log, position)?;
        Ok(later)
    }

    /// What is not the same in `later`, by path, up to `max` changes, and whether there are more.
    ///
    /// Times alone do not count, as they do not in tree hashes. What was moved is one change, with what changed in it.
    pub fn changes(&self, later: &Flash, max: usize) -> (Vec<Change>, bool) {
        if Arc::ptr_eq(&self.shared, &later.shared) {
            return (Vec::new(), false);
        }
        let (mut before, mut after) = (self.shared.write(), later.shared.write());
        let mut walk = Walk {
            before: &mut before.tree,
            after: &mut after.tree,
            changes: Vec::new(),
            max,
            moved: HashSet::new(),
            left: Some(Vec::new()),
        };
        walk.compare_all(vec![(PhonePath::root(), Some(ROOT_INO), Some(ROOT_INO))]);
        let left = walk.left.take().unwrap_or_default();
        walk.compare_all(left);
        let mut changes = walk.changes;
        let more = changes.len() > max;
        changes.truncate(max);
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        (changes, more)
    }

    /// Up to `max` files after `after`, or from the first, each directory before what is in it.
    pub fn files_after(&self, after: Option<&PhonePath>, max: usize) -> Vec<(PhonePath, Listed)> {
        let head = self.shared.read();
        let mut pending = Vec::new();
        let (mut directory, mut at) = (ROOT_INO, PhonePath::root());
        // On the way down to `after`, what comes after it on each level; then what is in it.
        for name in after.into_iter().flat_map(PhonePath::components) {
            push_entries(&head.tree, directory, &at, Bound::Excluded(name), &mut pending);
            let next = head.tree.child(directory, name).zip(at.join(name).ok());
            let Some(next) = next else {
                (directory, at) = (0, PhonePath::root());
                break;
            };
            (directory, at) = next;
        }
        push_entries(&head.tree, directory, &at, Bound::Unbounded, &mut pending);
        let mut files = Vec::new();
        while files.len() < max
            && let Some((path, ino)) = pending.pop()
        {
            push_entries(&head.tree, ino, &path, Bound::Unbounded, &mut pending);
            if let Some(inode) = head.tree.get(ino) {
                files.push((path, Listed::of(inode)));
            }
        }
        files
    }
}

/// Puts the entries of a directory from `from` on onto a stack, so that the first comes off first. Nothing if it is no directory.
fn push_entries(
    tree: &Tree,
    directory: Ino,
    at: &PhonePath,
    from: Bound<&[u8]>,
    pending: &mut Vec<(PhonePath, Ino)>,
) {
    let Some(entries) = tree.get(directory).and_then(|inode| inode.entries()) else {
        return;
    };
    let entries = entries.range::<[u8], _>((from, Bound::Unbounded)).rev();
    // A path too long for the contract was never captured.
    pending.extend(entries.filter_map(|(name, ino)| Some((at.join(name).ok()?, *ino))));
}

/// A path, and the file there before and after.
type Pair = (PhonePath, Option<Ino>, Option<Ino>);

struct Walk<'a> {
    before: &'a mut Tree,
    after: &'a mut Tree,
    changes: Vec<Change>,
    max: usize,
    /// What was told as moved.
    moved: HashSet<Ino>,
    /// What is gone from its place but lives elsewhere: gone all the same if it is not told there, because something equal stood
    /// there before. None once that is decided.
    left: Option<Vec<Pair>>,
}

impl Walk<'_> {
    fn compare_all(&mut self, mut pending: Vec<Pair>) {
        while let Some((path, before, after)) = pending.pop() {
            if self.changes.len() > self.max {
                return;
            }
            pending.extend(self.compare(path, before, after).into_iter().rev());
        }
    }

    /// Notes how a path differs; gives what is to be compared beneath it.
    fn compare(&mut self, path: PhonePath, before: Option<Ino>, after: Option<Ino>) -> Vec<Pair> {
        match (before, after) {
            (None, Some(ino)) => match self.place(ino, Side::Before).filter(|from| *from != path) {
                Some(from) => {
                    self.moved.insert(ino);
                    self.both(path, ino, ino, Some(from))
                }
                None => self.one_sided(path, ino, Side::After),
            },
            (Some(ino), None) => {
                let lives_elsewhere = self.after.get(ino).is_some();
                match &mut self.left {
                    _ if lives_elsewhere && self.moved.contains(&ino) => Vec::new(),
                    Some(left) if lives_elsewhere => {
                        left.push((path, before, None));
                        Vec::new()
                    }
                    // In a directory that was moved it is told where it was.
                    _ => {
                        let was = self.place(ino, Side::Before).unwrap_or(path);
                        self.one_sided(was, ino, Side::Before)
                    }
                }
            }
            (Some(before), Some(after)) => self.both(path, before, after, None),
            (None, None) => Vec::new(),
        }
    }

    fn one_sided(&mut self, path: PhonePath, ino: Ino, side: Side) -> Vec<Pair> {
        let tree = match side {
            Side::Before => &*self.before,
            Side::After => &*self.after,
        };
        let Some(inode) = tree.get(ino).cloned() else {
            return Vec::new();
        };
        let listed = Some(Listed::of(&inode));
        let (before, after) = match side {
            Side::Before => (listed, None),
            Side::After => (None, listed),
        };
        let beneath = inode.entries().into_iter().flatten();
        let beneath = beneath.filter_map(|(name, child)| {
            let child = match side {
                Side::Before => (Some(*child), None),
                Side::After => (None, Some(*child)),
            };
            Some((path.join(name).ok()?, child.0, child.1))
        });
        let beneath = beneath.collect();
        self.note(path, before, after, None);
        beneath
    }

    fn both(
        &mut self,
        path: PhonePath,
        before: Ino,
        after: Ino,
        moved_from: Option<PhonePath>,
    ) -> Vec<Pair> {
        let (Some(old), Some(new)) = (self.before.get(before).cloned(), self.after.get(after).cloned())
        else {
            return Vec::new();
        };
        let are_directories = old.body.is_directory() && new.body.is_directory();
        let differ_themselves = match are_directories {
            true => !old.attributes.same_owner(&new.attributes),
            false => !same_file(&old, &new),
        };
        let became_another = old.body.is_directory() != new.body.is_directory();
        if differ_themselves || moved_from.is_some() {
            let (before, after) = (Some(Listed::of(&old)), Some(Listed::of(&new)));
            self.note(path.clone(), before, after, moved_from);
        }
        let is_same = are_directories && self.before.entry(before) == self.after.entry(after);
        // A special file has no hash: one that changed in an equal directory is not seen, and phones have none.
        if is_same || !(are_directories || became_another) {
            return Vec::new();
        }
        let names = |inode: &Inode| -> Vec<Name> {
            inode.entries().into_iter().flat_map(|entries| entries.keys().cloned()).collect()
        };
        let mut all = names(&old);
        all.extend(names(&new));
        all.sort();
        all.dedup();
        let child = |inode: &Inode, name: &Name| inode.entries().and_then(|entries| entries.get(name)).copied();
        let pair = |name: Name| Some((path.join(&name).ok()?, child(&old, &name), child(&new, &name)));
        all.into_iter().filter_map(pair).collect()
    }

    fn note(
        &mut self,
        path: PhonePath,
        before: Option<Listed>,
        after: Option<Listed>,
        moved_from: Option<PhonePath>,
    ) {
        // One more than wanted tells that there are more.
        if self.changes.len() <= self.max {
            self.changes.push(Change {
                path,
                before,
                after,
                moved_from,
            });
        }
    }

    /// Where a file is on one side, if it is there.
    fn place(&self, ino: Ino, side: Side) -> Option<PhonePath> {
        let tree = match side {
            Side::Before => &*self.before,
            Side::After => &*self.after,
        };
        let mut names = Vec::new();
        let mut inode = tree.get(ino)?;
        while inode.ino != ROOT_INO {
            names.push(&*inode.name);
            inode = tree.get(inode.parent)?;
        }
        let path = names.iter().rev().try_fold(PhonePath::root(), |path, name| path.join(name));
        path.ok()
    }
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

fn same_file(old: &Inode, new: &Inode) -> bool {
    match (&old.body, &new.body) {
        (
            Body::Special { format, rdev },
            Body::Special {
                format: new_format,
                rdev: new_rdev,
            },
        ) => (format, rdev) == (new_format, new_rdev) && old.attributes.same_owner(&new.attributes),
        _ => old.leaf_entry().is_some() && old.leaf_entry() == new.leaf_entry(),
    }
}
