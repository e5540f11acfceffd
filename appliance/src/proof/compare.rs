//! Finding where two trees part: pure, on the entries of one directory at a time.

use sync_protocol::path::is_name;
use sync_protocol::tree::{Entry, FileKind};
use sync_protocol::wire::{FileKind as WireKind, ListedEntry};
use sync_protocol::Hash;

/// Entries of one directory, sorted by name.
pub(super) type Entries = Vec<(Box<[u8]>, Entry)>;

/// The first name in which two directories differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parting {
    pub(super) name: Box<[u8]>,
    /// What the phone has there, if anything.
    pub(super) phone: Option<Entry>,
    /// What the flash has.
    pub(super) flash: Option<Entry>,
}

impl Parting {
    /// Both have a directory here, and the difference is in it.
    pub(super) fn is_beneath(&self) -> bool {
        let (Some(phone), Some(flash)) = (self.phone, self.flash) else { return false };
        phone.kind == FileKind::Directory && Entry { content: flash.content, ..phone } == flash
    }
}

/// The first name in which a page of the phone's entries differs from the flash's entries of the same range. `more`: the phone has
/// others after this page, so that what the flash has beyond its last name is not of this page.
pub(super) fn first_parting(phone: &Entries, flash: &Entries, more: bool) -> Option<Parting> {
    let last = phone.last().filter(|_| more).map(|(name, _)| name);
    let (mut phone, mut flash) = (phone.iter().peekable(), flash.iter().peekable());
    loop {
        let ours = flash.peek().copied().filter(|(name, _)| last.is_none_or(|last| name <= last));
        let theirs = phone.peek().copied();
        let parting = |name: &[u8], phone, flash| Some(Parting { name: name.into(), phone, flash });
        match (theirs, ours) {
            (None, None) => return None,
            (Some((name, entry)), None) => return parting(name, Some(*entry), None),
            (None, Some((name, entry))) => return parting(name, None, Some(*entry)),
            (Some((theirs, entry)), Some((ours, _))) if theirs < ours => return parting(theirs, Some(*entry), None),
            (Some((theirs, _)), Some((ours, entry))) if theirs > ours => return parting(ours, None, Some(*entry)),
            (Some((name, theirs)), Some((_, ours))) if theirs != ours => return parting(name, Some(*theirs), Some(*ours)),
            _ => {
                phone.next();
                flash.next();
            }
        }
    }
}

/// The entries that a phone listed after `after`, if they keep to the contract: names, sorted, each once.
pub(super) fn listed(entries: Vec<ListedEntry>, after: &[u8]) -> Option<Entries> {
    let mut last = after.to_vec();
    let entry = |listed: ListedEntry| {
        let kind = match listed.kind() {
            WireKind::Regular => FileKind::Regular,
            WireKind::Directory => FileKind::Directory,
            WireKind::Symlink => FileKind::Symlink,
            WireKind::Unspecified => return None,
        };
        if !is_name(&listed.name) || listed.name <= last {
            return None;
        }
        last.clone_from(&listed.name);
        let content = Hash::try_from(listed.content.as_slice()).ok()?;
        let entry = Entry { kind, mode: listed.mode, uid: listed.uid, gid: listed.gid, size: listed.size, content };
        Some((listed.name.into(), entry))
    };
    entries.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: FileKind, what: &str) -> Entry {
        Entry { kind, mode: 0o644, uid: 1, gid: 1, size: 0, content: Hash::of(what.as_bytes()) }
    }

    fn files(names: &[(&str, &str)]) -> Entries {
        names.iter().map(|(name, what)| (name.as_bytes().into(), entry(FileKind::Regular, what))).collect()
    }

    /// Name, and who has it: the phone, the flash.
    fn parting(phone: &[(&str, &str)], flash: &[(&str, &str)], more: bool) -> Option<(String, bool, bool)> {
        let found = first_parting(&files(phone), &files(flash), more)?;
        Some((String::from_utf8_lossy(&found.name).into_owned(), found.phone.is_some(), found.flash.is_some()))
    }

    #[test]
    fn the_first_name_that_differs_is_found() {
        let all = [("a", "1"), ("b", "1"), ("c", "1")];
        assert_eq!(parting(&all, &all, false), None);
        assert_eq!(parting(&[], &[], false), None);
        assert_eq!(parting(&all[1..], &all, false), Some(("a".into(), false, true)));
        assert_eq!(parting(&all, &[all[0], all[2]], false), Some(("b".into(), true, false)));
        assert_eq!(parting(&all, &[all[0], ("b", "2"), all[2]], false), Some(("b".into(), true, true)));
        assert_eq!(parting(&all[..2], &all, false), Some(("c".into(), false, true)));
        assert_eq!(parting(&all, &all[..2], false), Some(("c".into(), true, false)));
    }

    #[test]
    fn what_lies_beyond_a_page_is_not_of_it() {
        let all = [("a", "1"), ("b", "1"), ("c", "1")];
        assert_eq!(parting(&all[..2], &all, true), None);
        assert_eq!(parting(&[all[1]], &all, true), Some(("a".into(), false, true)));
        // The flash's list may end early only where it has nothing more.
        assert_eq!(parting(&all, &all[..1], true), Some(("b".into(), true, false)));
    }

    #[test]
    fn only_equal_directories_are_looked_into() {
        let found = |phone, flash| Parting { name: (*b"x").into(), phone: Some(phone), flash: Some(flash) };
        let (one, other) = (entry(FileKind::Directory, "1"), entry(FileKind::Directory, "2"));
        assert!(found(one, other).is_beneath());
        assert!(!found(one, Entry { mode: 0o700, ..other }).is_beneath());
        assert!(!found(entry(FileKind::Regular, "1"), entry(FileKind::Regular, "2")).is_beneath());
        assert!(!Parting { flash: None, ..found(one, other) }.is_beneath());
    }

    #[test]
    fn lists_that_break_the_contract_are_refused() {
        let entry = |name: &str| ListedEntry {
            name: name.into(),
            kind: WireKind::Regular.into(),
            content: vec![1; 32],
            ..Default::default()
        };
        assert!(listed(vec![entry("a"), entry("b")], b"").is_some());
        assert!(listed(vec![entry("b"), entry("a")], b"").is_none());
        assert!(listed(vec![entry("a"), entry("a")], b"").is_none());
        assert!(listed(vec![entry("a")], b"a").is_none());
        assert!(listed(vec![entry("a/b")], b"").is_none() && listed(vec![entry("..")], b"").is_none());
        assert!(listed(vec![ListedEntry { content: vec![1], ..entry("a") }], b"").is_none());
        assert!(listed(vec![ListedEntry { kind: 0, ..entry("a") }], b"").is_none());
    }
}
