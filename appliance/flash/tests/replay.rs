//! A flash is a function of its log: against a model, across checkpoints, and at every position.

use std::collections::BTreeMap;

use bytes::Bytes;
use flash::{Flash, Flashes};
use proptest::prelude::*;
use store::{PhoneId, Store};
use sync_protocol::chunking::cut;
use sync_protocol::event::{Content, Event, FileChange, FileOp, Kind, Node, Origin};
use sync_protocol::scope::Scope;
use sync_protocol::tree::{Entry, TreeHasher, root_hash};
use sync_protocol::{Hash, PhonePath};

type Model = BTreeMap<PhonePath, Node>;

fn path(text: &str) -> PhonePath {
    PhonePath::new(text).unwrap()
}

/// What the contract says of a change, on a flat list of paths.
fn apply_to_model(model: &mut Model, change: &FileChange) {
    match &change.op {
        FileOp::Put(node) => {
            make_parents(model, &change.path);
            let keeps = matches!(node.content, Content::Directory)
                && matches!(
                    model.get(&change.path).map(|node| &node.content),
                    Some(Content::Directory)
                );
            if !keeps {
                model.retain(|other, _| !other.is_within(&change.path));
            }
            model.insert(change.path.clone(), node.clone());
        }
        FileOp::Remove => model.retain(|other, _| !other.is_within(&change.path)),
        FileOp::Rename { to } => {
            if !model.contains_key(&change.path) {
                return;
            }
            make_parents(model, to);
            model.retain(|other, _| !other.is_within(to));
            let within: Vec<_> = model
                .keys()
                .filter(|other| other.is_within(&change.path))
                .cloned()
                .collect();
            for old in within {
                let node = model.remove(&old).unwrap();
                model.insert(old.moved(&change.path, to).unwrap().unwrap(), node);
            }
        }
    }
}

fn make_parents(model: &mut Model, path: &PhonePath) {
    let mut above: Vec<PhonePath> =
        std::iter::successors(path.parent(), PhonePath::parent).collect();
    above.pop();
    for parent in above.into_iter().rev() {
        if !matches!(
            model.get(&parent).map(|node| &node.content),
            Some(Content::Directory)
        ) {
            model.retain(|other, _| !other.is_within(&parent));
            let node = Node {
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime_ns: 0,
                content: Content::Directory,
            };
            model.insert(parent, node);
        }
    }
}

/// The root hash as an agent makes it, from its flat journal.
fn model_root(model: &Model, scope: &Scope) -> Hash {
    let mut hasher = TreeHasher::new();
    let mut captured: Vec<(&PhonePath, &Node)> = model
        .iter()
        .filter(|(path, _)| scope.contains(path))
        .collect();
    captured.sort_by(|a, b| a.0.components().cmp(b.0.components()));
    captured
        .into_iter()
        .for_each(|(path, node)| hasher.add(path, node.entry()));
    let entries: BTreeMap<PhonePath, Entry> = hasher.finish().into_iter().collect();
    root_hash(
        scope
            .roots()
            .iter()
            .map(|root| (root, entries.get(root).copied())),
    )
}

fn any_path() -> impl Strategy<Value = PhonePath> {
    // Few names, so that changes meet; none below /x is a root.
    let name = prop::sample::select(vec!["a", "b", "c", "skip"]);
    (
        prop::sample::select(vec!["r", "s", "x"]),
        prop::collection::vec(name, 0..4),
    )
        .prop_map(|(root, names)| {
            path(format!("/{root}/{}", names.join("/")).trim_end_matches('/'))
        })
}

fn any_change() -> impl Strategy<Value = FileChange> {
    let attributes = (
        prop::sample::select(vec![0o644, 0o755, 0o4711]),
        0u32..3,
        0u32..3,
    );
    let content = prop_oneof![
        3 => (0u8..4, 0usize..3).prop_map(|(seed, chunks)| {
            let bytes = vec![seed; chunks * 70_000 + usize::from(seed)];
            let chunks: Vec<_> = cut(&bytes).map(|(chunk, _)| chunk).collect();
            Content::Regular { size: bytes.len() as u64, chunks }
        }),
        2 => Just(Content::Directory),
        1 => prop::sample::select(vec!["t", "../u"]).prop_map(|target| Content::Symlink { target: target.into() }),
    ];
    let put = (attributes, content).prop_map(|((mode, uid, gid), content)| {
        // Links have no mode of their own.
        let mode = if matches!(content, Content::Symlink { .. }) {
            0o777
        } else {
            mode
        };
        FileOp::Put(Node {
            mode,
            uid,
            gid,
            mtime_ns: 5,
            content,
        })
    });
    let rename = any_path().prop_map(|to| FileOp::Rename { to });
    let op = prop_oneof![4 => put, 1 => Just(FileOp::Remove), 2 => rename];
    (any_path(), op).prop_filter_map("a rename into itself is no event", |(path, op)| match &op {
        FileOp::Rename { to } if to.is_within(&path) || path.is_within(to) => None,
        _ => Some(FileChange { path, op }),
    })
}

fn event(seq: u64, change: &FileChange) -> Event {
    let kind = Kind::File(change.clone());
    Event {
        seq,
        wall_us: 1_000_000 + seq as i64,
        mono_us: seq,
        origin: Origin::Phone,
        kind,
    }
}

/// Everything about a flash that later events and guests depend on: paths, numbers, attributes, hashes.
fn whole(flash: &Flash) -> Vec<(PhonePath, u64, i64, Option<Entry>)> {
    let mut seen = Vec::new();
    let mut pending = vec![PhonePath::root()];
    while let Some(path) = pending.pop() {
        let listed = flash.stat(&path).unwrap();
        for child in flash.list(&path).unwrap_or_default() {
            pending.push(path.join(&child.name).unwrap());
        }
        seen.push((
            path.clone(),
            listed.ino,
            listed.attributes.mtime_ns,
            flash.entry(&path),
        ));
    }
    seen
}

fn base_tar(dir: &std::path::Path) -> std::path::PathBuf {
    let tar_path = dir.join("base.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&tar_path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_mtime(7);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o755);
    for (path, kind, data) in [
        ("./", tar::EntryType::Directory, &b""[..]),
        ("./r/", tar::EntryType::Directory, b""),
        ("./r/a/", tar::EntryType::Directory, b""),
        ("./r/a/b", tar::EntryType::Regular, b"of the base"),
        ("./r/a/c/", tar::EntryType::Directory, b""),
        ("./r/a/c/a", tar::EntryType::Regular, b"deeper"),
        ("./usr/", tar::EntryType::Directory, b""),
        ("./usr/bin", tar::EntryType::Regular, b"program"),
    ] {
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data).unwrap();
    }
    tar.finish().unwrap();
    tar_path
}

fn base_model() -> Model {
    let node = |content| Node {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 7_000_000_000,
        content,
    };
    let file = |data: &[u8]| {
        let chunks = cut(data).map(|(chunk, _)| chunk).collect();
        node(Content::Regular {
            size: data.len() as u64,
            chunks,
        })
    };
    Model::from([
        (path("/r"), node(Content::Directory)),
        (path("/r/a"), node(Content::Directory)),
        (path("/r/a/b"), file(b"of the base")),
        (path("/r/a/c"), node(Content::Directory)),
        (path("/r/a/c/a"), file(b"deeper")),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_function_of_the_log(
        changes in prop::collection::vec((any_change(), prop::bool::weighted(0.2)), 1..40),
        with_base: bool,
        asked in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::memory();
        let phone: PhoneId = "p".parse().unwrap();
        let scope = Scope::new([path("/r"), path("/s/a")], [path("/r/skip"), path("/r/a/skip"), path("/s/a/b")]).unwrap();
        let flashes = Flashes::new(store.clone(), 1 << 20);
        let base = with_base.then(|| flashes.import_base(&base_tar(dir.path())).unwrap());
        let flash = flashes.open(&phone, base).unwrap();
        let mut model = if with_base { base_model() } else { Model::new() };
        let asked = asked.index(changes.len()) as u64 + 1;
        let mut at_asked = Vec::new();
        for (seq, (change, checkpoint)) in (1..).zip(&changes) {
            let event = event(seq, change);
            store.log.append_batch(&phone, seq, &[Bytes::from(event.clone().encode())]).unwrap();
            flash.apply_event(seq, &event).unwrap();
            apply_to_model(&mut model, change);
            prop_assert_eq!(flash.root(&scope), model_root(&model, &scope), "after {:?}", change);
            if *checkpoint {
                flash.checkpoint().unwrap();
            }
            if seq == asked {
                at_asked = whole(&flash);
            }
        }
        prop_assert_eq!(whole(&flashes.at(&phone, base, asked, &*store.log).unwrap()), at_asked);

        // Nothing in memory: the last checkpoint, and the log after it.
        let last = whole(&flash);
        drop(flash);
        let flashes = Flashes::new(store.clone(), 1 << 20);
        let again = flashes.open(&phone, base).unwrap();
        again.catch_up(&*store.log, u64::MAX).unwrap();
        prop_assert_eq!(whole(&again), last);
        prop_assert_eq!(again.root(&scope), model_root(&model, &scope));
    }
}

#[test]
fn numbers_last_for_a_files_life() {
    let store = Store::memory();
    let flash = Flashes::new(store, 0)
        .open(&"p".parse().unwrap(), None)
        .unwrap();
    let mut position = 0;
    let mut apply = |path_text: &str, op| {
        position += 1;
        let change = FileChange {
            path: path(path_text),
            op,
        };
        flash.apply(position, 0, Origin::Phone, &change).unwrap();
    };
    let node = |content| {
        FileOp::Put(Node {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            content,
        })
    };
    let file = |text: &str| {
        let chunks = cut(text.as_bytes()).map(|(chunk, _)| chunk).collect();
        node(Content::Regular {
            size: text.len() as u64,
            chunks,
        })
    };
    let ino = |text: &str| flash.stat(&path(text)).unwrap().ino;
    apply("/d/f", file("one"));
    let (directory, number) = (ino("/d"), ino("/d/f"));
    apply("/d/f", file("two"));
    assert_eq!(ino("/d/f"), number);
    apply("/d", FileOp::Rename { to: path("/e") });
    assert_eq!((ino("/e"), ino("/e/f")), (directory, number));
    apply(
        "/e/f",
        node(Content::Symlink {
            target: b"x".to_vec(),
        }),
    );
    assert_ne!(ino("/e/f"), number, "another kind is another file");
    apply("/e/f", FileOp::Remove);
    apply("/e/f", file("three"));
    assert_ne!(ino("/e/f"), number);
}

#[test]
fn positions_rise_and_exist() {
    let store = Store::memory();
    let flashes = Flashes::new(store.clone(), 0);
    let phone: PhoneId = "p".parse().unwrap();
    let flash = flashes.open(&phone, None).unwrap();
    let change = FileChange {
        path: path("/a"),
        op: FileOp::Remove,
    };
    flash.apply(3, 0, Origin::Phone, &change).unwrap();
    assert!(flash.apply(3, 0, Origin::Phone, &change).is_err());
    assert!(flash.skip_to(2).is_err());
    assert!(flashes.at(&phone, None, 9, &*store.log).is_err());
    assert!(
        flashes
            .open(&phone, Some(store::BlobHash::of(b"no such base")))
            .is_err()
    );
}

#[test]
fn moves_cannot_make_a_tree_deeper_than_any_path() {
    let store = Store::memory();
    let flash = Flashes::new(store, 0)
        .open(&"p".parse().unwrap(), None)
        .unwrap();
    let deep = format!("/a{}", "/n".repeat(1500));
    let directory = FileOp::Put(Node {
        mode: 0,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        content: Content::Directory,
    });
    for round in 0..5 {
        let apply = |number: u64, text: &str, op: FileOp| {
            let change = FileChange {
                path: path(text),
                op,
            };
            flash
                .apply(round * 10 + number, 0, Origin::Phone, &change)
                .unwrap();
        };
        apply(1, &deep, directory.clone());
        apply(2, "/a", FileOp::Rename { to: path("/b") });
        apply(3, &deep, directory.clone());
        apply(
            4,
            "/b",
            FileOp::Rename {
                to: path(&format!("{deep}/b")),
            },
        );
        apply(5, "/a", FileOp::Rename { to: path("/b") });
    }
    assert!(flash.entry(&PhonePath::root()).is_some());
    flash.checkpoint().unwrap();
}
