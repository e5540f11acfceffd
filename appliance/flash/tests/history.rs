//! Looking back: what changed between two positions, and all files in order.

use std::collections::BTreeMap;

use bytes::Bytes;
use flash::{Change, Flash, Flashes, Listed};
use proptest::prelude::*;
use store::{PhoneId, Store};
use sync_protocol::PhonePath;
use sync_protocol::chunking::cut;
use sync_protocol::event::{Content, Event, FileChange, FileOp, Kind, Node, Origin};
use sync_protocol::tree::Entry;

fn path(text: &str) -> PhonePath {
    PhonePath::new(text).unwrap()
}

fn put(mode: u32, content: Content) -> FileOp {
    FileOp::Put(Node {
        mode,
        uid: 0,
        gid: 0,
        mtime_ns: 5,
        content,
    })
}

fn file(text: &str) -> FileOp {
    let chunks = cut(text.as_bytes()).map(|(chunk, _)| chunk).collect();
    let size = text.len() as u64;
    put(0o644, Content::Regular { size, chunks })
}

fn rename(to: &str) -> FileOp {
    FileOp::Rename { to: path(to) }
}

/// A log of one phone, and its flash at any position.
struct Phone {
    store: Store,
    flashes: Flashes,
    id: PhoneId,
}

impl Phone {
    fn new(changes: &[FileChange]) -> Phone {
        let store = Store::memory();
        let id: PhoneId = "p".parse().unwrap();
        let events = (1..).zip(changes).map(|(seq, change)| {
            let kind = Kind::File(change.clone());
            let event = Event {
                seq,
                wall_us: seq as i64,
                mono_us: seq,
                origin: Origin::Phone,
                kind,
            };
            Bytes::from(event.encode())
        });
        store
            .log
            .append_batch(&id, 1, &events.collect::<Vec<_>>())
            .unwrap();
        let flashes = Flashes::new(store.clone(), 0);
        Phone { store, flashes, id }
    }

    fn at(&self, position: u64) -> Flash {
        self.flashes
            .at(&self.id, None, position, &*self.store.log)
            .unwrap()
    }

    fn changes(&self, from: u64, to: u64) -> Vec<Change> {
        let before = self.at(from);
        let after = before.later(&*self.store.log, to).unwrap();
        assert_eq!((before.position(), after.position()), (from, to));
        let (changes, more) = before.changes(&after, 10_000);
        assert!(!more);
        changes
    }
}

fn changes(list: &[(&str, FileOp)]) -> Vec<FileChange> {
    let change = |(at, op): &(&str, FileOp)| FileChange {
        path: path(at),
        op: op.clone(),
    };
    list.iter().map(change).collect()
}

/// `+` new, `-` gone, `*` changed, `>` moved from.
fn told(changes: &[Change]) -> Vec<String> {
    let tell = |change: &Change| {
        let at = &change.path;
        match (&change.before, &change.after, &change.moved_from) {
            (_, _, Some(from)) => format!("{from} > {at}"),
            (None, Some(_), None) => format!("+ {at}"),
            (Some(_), None, None) => format!("- {at}"),
            _ => format!("* {at}"),
        }
    };
    changes.iter().map(tell).collect()
}

#[test]
fn additions_removals_changes_and_moves_are_told_apart() {
    let phone = Phone::new(&changes(&[
        ("/r/a", file("one")),
        ("/r/b", file("two")),
        ("/r/d/e/f", file("deep")),
        ("/r/d/e/g", file("deep, too")),
        ("/same/x", file("same")),
        // From here on it changes.
        ("/r/a", file("another")),
        ("/r/b", FileOp::Remove),
        ("/r/new", file("new")),
        ("/r/d", rename("/r/moved")),
        ("/r/moved/e/g", FileOp::Remove),
        ("/r/moved/e/h", file("made there")),
        ("/same/x", file("same")),
    ]));
    assert_eq!(told(&phone.changes(5, 5)), Vec::<String>::new());
    assert_eq!(
        told(&phone.changes(5, 12)),
        [
            "* /r/a",
            "- /r/b",
            "- /r/d/e/g",
            "/r/d > /r/moved",
            "+ /r/moved/e/h",
            "+ /r/new"
        ]
    );
    // One cut short says so.
    let before = phone.at(5);
    let (some, more) = before.changes(&phone.at(12), 2);
    assert_eq!((some.len(), more), (2, true));
}

#[test]
fn what_was_moved_onto_something_equal_is_gone_from_where_it_was() {
    let phone = Phone::new(&changes(&[
        ("/r/a", file("one")),
        ("/s/b", file("one")),
        ("/r/a", rename("/s/b")),
    ]));
    assert_eq!(told(&phone.changes(2, 3)), ["- /r/a"]);
}

fn any_change() -> impl Strategy<Value = FileChange> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let any_path = prop::collection::vec(name, 1..4).prop_map(|names| path(&format!("/{}", names.join("/"))));
    let content = prop_oneof![
        3 => prop::sample::select(vec!["one", "two"]).prop_map(file),
        2 => prop::sample::select(vec![0o755, 0o700]).prop_map(|mode| put(mode, Content::Directory)),
        1 => Just(FileOp::Remove),
        2 => any_path.clone().prop_map(|to| FileOp::Rename { to }),
    ];
    (any_path, content).prop_filter_map("a rename into itself is no event", |(path, op)| {
        match &op {
            FileOp::Rename { to } if to.is_within(&path) || path.is_within(to) => None,
            _ => Some(FileChange { path, op }),
        }
    })
}

/// Every path with what is hashed of it; of a directory, of itself alone.
fn flat(flash: &Flash) -> BTreeMap<PhonePath, (u32, Option<Entry>)> {
    let described = |(path, listed): (PhonePath, Listed)| {
        let entry = flash
            .entry(&path)
            .filter(|_| listed.format != libc::S_IFDIR);
        let mode = listed.format | listed.attributes.mode;
        (path, (mode, entry))
    };
    flash
        .files_after(None, usize::MAX)
        .into_iter()
        .map(described)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_differs_is_told_and_nothing_else(log in prop::collection::vec(any_change(), 2..24), cut in any::<prop::sample::Index>()) {
        let phone = Phone::new(&log);
        let (from, to) = (cut.index(log.len()) as u64, log.len() as u64);
        let (before, after) = (flat(&phone.at(from)), flat(&phone.at(to)));
        let changes = phone.changes(from, to);
        let moves: Vec<(&PhonePath, &PhonePath)> =
            changes.iter().filter_map(|change| Some((change.moved_from.as_ref()?, &change.path))).collect();
        for at in before.keys().chain(after.keys()).filter(|at| before.get(at) != after.get(at)) {
            let is_told = changes.iter().any(|change| change.path == *at);
            let moved = moves.iter().any(|(from, to)| at.is_within(from) || at.is_within(to));
            prop_assert!(is_told || moved, "{} differs; told: {:?}", at, told(&changes));
        }
        for change in &changes {
            let differs = before.get(&change.path) != after.get(&change.path);
            let moved = moves.iter().any(|(from, to)| change.path.is_within(from) || change.path.is_within(to));
            prop_assert!(differs || moved, "{} does not differ; told: {:?}", change.path, told(&changes));
        }
    }

    #[test]
    fn files_come_in_order_from_anywhere(log in prop::collection::vec(any_change(), 0..24), page in 1usize..4) {
        let phone = Phone::new(&log);
        let flash = phone.at(log.len() as u64);
        let all: Vec<PhonePath> = flash.files_after(None, usize::MAX).into_iter().map(|(path, _)| path).collect();
        prop_assert!(all.is_sorted());
        let mut paged: Vec<PhonePath> = Vec::new();
        loop {
            let files = flash.files_after(paged.last(), page);
            if files.is_empty() {
                break;
            }
            paged.extend(files.into_iter().map(|(path, _)| path));
        }
        prop_assert_eq!(&paged, &all);
        // A path that is not there stands where it would be.
        let beyond = path("/a/bb");
        let after: Vec<PhonePath> = flash.files_after(Some(&beyond), usize::MAX).into_iter().map(|(path, _)| path).collect();
        prop_assert!(after.iter().eq(all.iter().filter(|path| **path > beyond)));
    }
}
