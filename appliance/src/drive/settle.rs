//! Which of a guest's changes the phone must be told of: pure bookkeeping, time comes as an argument.
//!
//! Input goes to twin and phone alike, and both make the changes that follow from it. A guest's change is therefore held until input
//! has settled; what the phone has changed by itself meanwhile is dropped, and the rest is what the phone must be told.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use flash::{Before, GuestChange};
use sync_protocol::PhonePath;
use sync_protocol::event::FileOp;

/// Time without input or change after which the phone has done what it will do: programs on a phone answer a touch within a second.
const SETTLE: Duration = Duration::from_millis(2000);
/// Longest that a change is held while the operator goes on.
const HOLD_MAX: Duration = Duration::from_secs(15);
/// Changes held; beyond, they are sent at once.
const HELD_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Settling {
    held: Vec<Held>,
    first_at: Option<Instant>,
    last_at: Instant,
    /// Paths that the phone changed since the last release.
    by_phone: HashSet<PhonePath>,
}

/// A change to tell the phone of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) change: GuestChange,
    /// What was there before is not known from the guest, because several changes became one: the flash knows.
    pub(super) base_from_flash: bool,
}

impl Settling {
    pub(super) fn new(now: Instant) -> Settling {
        Settling { held: Vec::new(), first_at: None, last_at: now, by_phone: HashSet::new() }
    }

    pub(super) fn input(&mut self, now: Instant) {
        self.last_at = now;
    }

    pub(super) fn phone_changed(&mut self, path: &PhonePath, to: Option<&PhonePath>) {
        self.by_phone.insert(path.clone());
        self.by_phone.extend(to.cloned());
    }

    pub(super) fn guest_changed(&mut self, change: GuestChange, now: Instant) {
        self.last_at = now;
        self.first_at.get_or_insert(now);
        let path = &change.change.path;
        let earlier = self.held.iter().position(|held| held.change.change.path == *path);
        match (&change.change.op, earlier) {
            // Written twice: the last counts, over what was there before the first.
            (FileOp::Put(_), Some(at)) if is_put(&self.held[at]) => {
                let Held { change: first, base_from_flash } = self.held.remove(at);
                let change = GuestChange { before: first.before, ..change };
                self.held.push(Held { change, base_from_flash });
            }
            // Made and removed, such as a database's journal: nothing happened.
            (FileOp::Remove, Some(at)) if is_put(&self.held[at]) => {
                let Held { change: first, base_from_flash } = self.held.remove(at);
                if first.before != Before::Absent || base_from_flash {
                    let change = GuestChange { before: first.before, ..change };
                    self.held.push(Held { change, base_from_flash });
                }
            }
            // Written aside and moved into place: written in place.
            (FileOp::Rename { to }, Some(at)) if is_file(&self.held[at]) && self.held[at].change.before == Before::Absent => {
                let to = to.clone();
                let mut aside = self.held.remove(at);
                self.held.retain(|held| held.change.change.path != to);
                aside.change.change.path = to;
                aside.base_from_flash = true;
                self.held.push(aside);
            }
            _ => self.held.push(Held { change, base_from_flash: false }),
        }
    }

    /// When to call [`Settling::release`] next; `None`: nothing is held.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.first_at?;
        if self.held.len() > HELD_MAX {
            return Some(first);
        }
        Some((self.last_at + SETTLE).min(first + HOLD_MAX))
    }

    /// What the phone must be told of, in order, if it is time or `at_once`: the phone has not done it by itself.
    pub(super) fn release(&mut self, now: Instant, at_once: bool) -> Vec<Held> {
        if !at_once && self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.first_at = None;
        let by_phone = std::mem::take(&mut self.by_phone);
        let done = |held: &Held| match &held.change.change.op {
            FileOp::Rename { to } => by_phone.contains(to),
            _ => by_phone.contains(&held.change.change.path),
        };
        std::mem::take(&mut self.held).into_iter().filter(|held| !done(held)).collect()
    }
}

fn is_put(held: &Held) -> bool {
    matches!(held.change.change.op, FileOp::Put(_))
}

fn is_file(held: &Held) -> bool {
    use sync_protocol::event::Content;
    matches!(&held.change.change.op, FileOp::Put(node) if matches!(node.content, Content::Regular { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_protocol::Hash;
    use sync_protocol::event::{Content, FileChange, Node};

    fn path(text: &str) -> PhonePath {
        PhonePath::new(text).expect("path")
    }

    fn put(at: &str, mode: u32, before: Before) -> GuestChange {
        let content = Content::Regular { size: 0, chunks: Vec::new() };
        let node = Node { mode, uid: 0, gid: 0, mtime_ns: 0, content };
        GuestChange { change: FileChange { path: path(at), op: FileOp::Put(node) }, before }
    }

    fn remove(at: &str) -> GuestChange {
        GuestChange { change: FileChange { path: path(at), op: FileOp::Remove }, before: Before::Any }
    }

    fn rename(from: &str, to: &str) -> GuestChange {
        let op = FileOp::Rename { to: path(to) };
        GuestChange { change: FileChange { path: path(from), op }, before: Before::Any }
    }

    fn base() -> Before {
        Before::Entry(Hash::of(b"base"))
    }

    #[test]
    fn what_the_phone_does_by_itself_is_not_sent() {
        let start = Instant::now();
        let mut settling = Settling::new(start);
        settling.guest_changed(put("/a", 1, base()), start);
        settling.guest_changed(put("/b", 1, base()), start);
        settling.phone_changed(&path("/a"), None);
        assert!(settling.release(start + SETTLE / 2, false).is_empty());
        let released = settling.release(start + SETTLE, false);
        assert_eq!(released, [Held { change: put("/b", 1, base()), base_from_flash: false }]);
        assert_eq!(settling.due(), None);
        // What the phone did before does not count for what comes after.
        settling.guest_changed(put("/a", 2, base()), start + SETTLE);
        assert_eq!(settling.release(start + SETTLE * 2, false).len(), 1);
    }

    #[test]
    fn input_holds_changes_back_but_not_for_ever() {
        let start = Instant::now();
        let mut settling = Settling::new(start);
        settling.guest_changed(put("/a", 1, base()), start);
        settling.input(start + Duration::from_millis(1500));
        assert!(settling.release(start + SETTLE, false).is_empty());
        settling.input(start + HOLD_MAX);
        assert_eq!(settling.release(start + HOLD_MAX, false).len(), 1);
        settling.guest_changed(put("/a", 1, base()), start);
        assert_eq!(settling.release(start, true).len(), 1);
    }

    #[test]
    fn several_changes_of_a_file_become_one() {
        let start = Instant::now();
        let mut settling = Settling::new(start);
        settling.guest_changed(put("/db", 1, base()), start);
        settling.guest_changed(put("/db-journal", 1, Before::Absent), start);
        settling.guest_changed(put("/db", 2, Before::Any), start);
        settling.guest_changed(remove("/db-journal"), start);
        settling.guest_changed(put("/note.tmp", 3, Before::Absent), start);
        settling.guest_changed(rename("/note.tmp", "/note"), start);
        let released = settling.release(start, true);
        let db = Held { change: put("/db", 2, base()), base_from_flash: false };
        let note = Held { change: put("/note", 3, Before::Absent), base_from_flash: true };
        assert_eq!(released, [db, note]);
    }
}
