//! Who leads: in drive the flash becomes what the guest sees, whatever the delay; in mirror the phone's
//! version shows; and nothing a guest does breaks the view.

use bytes::Bytes;
use flash::{Before, Caller, Flash, Flashes, GuestChange, Lead, ROOT_INO, StatChange, TwinView};
use nix::errno::Errno;
use proptest::prelude::*;
use store::Store;
use sync_protocol::PhonePath;
use sync_protocol::chunking::cut;
use sync_protocol::event::{Content, FileChange, FileOp, Node, Origin};
use sync_protocol::scope::Scope;
use tokio::sync::mpsc;

fn path(text: &str) -> PhonePath {
    PhonePath::new(text).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Write(String, u64, u8, bool),
    Truncate(String, u64),
    Close(String),
    MakeDirectory(String),
    MakeLink(String),
    Mode(String, u32),
    Remove(String),
    Rename(String, String, u32),
    Link(String, String),
    /// The appliance takes this many announced changes.
    Take(usize),
    /// The guest's kernel drops what it does not use.
    Forget(String),
    /// The phone puts a file.
    PhonePut(String, u8),
    PhoneRemove(String),
    PhoneRename(String, String),
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let top = prop::sample::select(vec!["r", "r", "r", "out"]);
    (top, prop::collection::vec(name, 0..3)).prop_map(|(top, names)| {
        let mut path = format!("/{top}");
        names.iter().for_each(|name| path += &format!("/{name}"));
        path
    })
}

fn guest_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (any_path(), 0u64..9000, any::<u8>(), any::<bool>()).prop_map(|(p, at, byte, close)| Op::Write(p, at, byte, close)),
        1 => (any_path(), 0u64..9000).prop_map(|(p, size)| Op::Truncate(p, size)),
        2 => any_path().prop_map(Op::Close),
        3 => any_path().prop_map(Op::MakeDirectory),
        1 => any_path().prop_map(Op::MakeLink),
        1 => (any_path(), 0u32..0o1000).prop_map(|(p, mode)| Op::Mode(p, mode)),
        2 => any_path().prop_map(Op::Remove),
        4 => (any_path(), any_path(), 0u32..3).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        1 => (any_path(), any_path()).prop_map(|(old, new)| Op::Link(old, new)),
        4 => (0usize..4).prop_map(Op::Take),
        2 => any_path().prop_map(Op::Forget),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => guest_op(),
        3 => (any_path(), any::<u8>()).prop_map(|(p, byte)| Op::PhonePut(p, byte)),
        1 => any_path().prop_map(Op::PhoneRemove),
        1 => (any_path(), any_path()).prop_map(|(from, to)| Op::PhoneRename(from, to)),
    ]
}

struct Twin {
    store: Store,
    flash: Flash,
    view: TwinView,
    changes: Option<mpsc::Receiver<GuestChange>>,
}

impl Twin {
    fn new() -> Self {
        let store = Store::memory();
        let flash = Flashes::new(store.clone(), 1 << 20)
            .open(&"p".parse().unwrap(), None)
            .unwrap();
        let twin = Twin {
            store,
            view: TwinView::new(flash.clone()),
            flash,
            changes: None,
        };
        let directory = Node {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            content: Content::Directory,
        };
        for top in ["/r", "/out", "/r/a"] {
            twin.phone(top, FileOp::Put(directory.clone()));
        }
        twin.phone_put("/r/b", 1);
        twin.phone_put("/r/a/c", 2);
        twin
    }

    fn drive(&mut self) {
        let (sender, receiver) = mpsc::channel(10_000);
        self.view
            .set_lead(Lead::Drive {
                scope: scope(),
                changes: sender,
            })
            .unwrap();
        self.changes = Some(receiver);
    }

    fn apply(&self, origin: Origin, change: &FileChange) {
        self.flash
            .apply(self.flash.position() + 1, 0, origin, change)
            .unwrap();
    }

    fn phone(&self, at: &str, op: FileOp) {
        self.apply(Origin::Phone, &FileChange { path: path(at), op });
    }

    fn phone_put(&self, at: &str, byte: u8) {
        let bytes = vec![byte; 5000];
        let (chunks, blobs): (Vec<_>, Vec<_>) = cut(&bytes)
            .map(|(chunk, bytes)| (chunk, Bytes::copy_from_slice(bytes)))
            .unzip();
        self.store.blobs.put_many(&blobs).unwrap();
        let content = Content::Regular { size: 5000, chunks };
        self.phone(
            at,
            FileOp::Put(Node {
                mode: 0o600,
                uid: 5,
                gid: 5,
                mtime_ns: 1,
                content,
            }),
        );
    }

    /// Applies up to `count` of what the guest announced; returns how many there were.
    fn take(&mut self, count: usize) -> Vec<GuestChange> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(change) = self
                .changes
                .as_mut()
                .and_then(|changes| changes.try_recv().ok())
        {
            for chunk in match &change.change.op {
                FileOp::Put(node) => node.chunks(),
                _ => &[],
            } {
                assert!(
                    self.store.blobs.has(&chunk.hash.0.into()).unwrap(),
                    "announced before its chunks are stored"
                );
            }
            self.apply(Origin::Helpdesk, &change.change);
            taken.push(change);
        }
        taken
    }

    fn resolve(&self, at: &str) -> Result<u64, Errno> {
        path(at)
            .components()
            .try_fold(ROOT_INO, |ino, name| Ok(self.view.lookup(ino, name)?.ino))
    }

    fn parent(&self, at: &str) -> Result<(u64, Vec<u8>), Errno> {
        let path = path(at);
        let (parent, name) = (path.parent().unwrap(), path.name().unwrap());
        Ok((self.resolve(&parent.to_string())?, name.to_vec()))
    }

    fn run(&mut self, op: &Op) -> Result<(), Errno> {
        let view = self.view.clone();
        let caller = Caller { uid: 1, gid: 2 };
        match op {
            Op::Write(at, offset, byte, close) => {
                let ino = match self.resolve(at) {
                    Err(Errno::ENOENT) => {
                        let (directory, name) = self.parent(at)?;
                        view.make(directory, &name, libc::S_IFREG | 0o644, 0, true, caller)?
                            .ino
                    }
                    found => found?,
                };
                view.write(ino, *offset, &vec![*byte; 3000])?;
                if *close {
                    view.flush(ino)?
                }
            }
            Op::Truncate(at, size) => {
                view.set_stat(
                    self.resolve(at)?,
                    &StatChange {
                        size: Some(*size),
                        ..Default::default()
                    },
                )?;
            }
            Op::Close(at) => view.flush(self.resolve(at)?)?,
            Op::MakeDirectory(at) => {
                let (directory, name) = self.parent(at)?;
                view.make(directory, &name, libc::S_IFDIR | 0o755, 0, false, caller)?;
            }
            Op::MakeLink(at) => {
                let (directory, name) = self.parent(at)?;
                view.make_link(directory, &name, b"target", caller)?;
            }
            Op::Mode(at, mode) => {
                view.set_stat(
                    self.resolve(at)?,
                    &StatChange {
                        mode: Some(*mode),
                        ..Default::default()
                    },
                )?;
            }
            Op::Remove(at) => {
                let (directory, name) = self.parent(at)?;
                match view.unlink(directory, &name) {
                    Err(Errno::EISDIR) => view.remove_directory(directory, &name)?,
                    other => other?,
                }
            }
            Op::Rename(from, to, flags) => {
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                view.rename((from.0, &from.1), (to.0, &to.1), *flags)?;
            }
            Op::Link(old, new) => {
                let (directory, name) = self.parent(new)?;
                view.link(self.resolve(old)?, directory, &name)?;
            }
            Op::Take(count) => drop(self.take(*count)),
            Op::Forget(at) => view.forget(self.resolve(at)?, u64::MAX),
            Op::PhonePut(at, byte) => self.phone_put(at, *byte),
            Op::PhoneRemove(at) => self.phone(at, FileOp::Remove),
            Op::PhoneRename(from, to) => {
                if !path(from).is_within(&path(to)) && !path(to).is_within(&path(from)) {
                    self.phone(from, FileOp::Rename { to: path(to) });
                }
            }
        }
        Ok(())
    }

    /// Every file that the guest sees can be described, read and listed, and its parts agree.
    fn check(&self) {
        let mut pending = vec![ROOT_INO];
        while let Some(directory) = pending.pop() {
            for listed in self.view.list(directory).unwrap().iter() {
                let stat = self.view.lookup(directory, &listed.name).unwrap();
                assert_eq!(
                    (stat.ino, stat.mode & libc::S_IFMT),
                    (listed.ino, listed.format)
                );
                match stat.mode & libc::S_IFMT {
                    libc::S_IFDIR => {
                        assert_eq!(self.view.parent(stat.ino).unwrap(), directory);
                        pending.push(stat.ino);
                    }
                    libc::S_IFREG => {
                        let bytes = self.view.read(stat.ino, 0, usize::MAX).unwrap();
                        assert_eq!(bytes.len() as u64, stat.size);
                        assert!(stat.nlink >= 1);
                    }
                    _ => assert_eq!(&*self.view.read_link(stat.ino).unwrap(), b"target"),
                }
            }
        }
    }
}

fn scope() -> Scope {
    Scope::new([path("/r")], [path("/r/c/c")]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn in_drive_the_flash_becomes_what_the_guest_sees(ops in prop::collection::vec(guest_op(), 1..40)) {
        let mut twin = Twin::new();
        twin.drive();
        for op in &ops {
            // Operations on what is not there fail, as they should.
            let _ = twin.run(op);
        }
        twin.view.complete().unwrap();
        twin.take(usize::MAX);
        twin.check();
        let scope = scope();
        prop_assert_eq!(twin.flash.root(&scope), twin.view.root(&scope).unwrap());
        let differing = twin.view.differences(100).unwrap();
        let in_scope: Vec<_> = differing.into_iter().filter(|path| scope.contains(path)).collect();
        prop_assert_eq!(in_scope, Vec::<PhonePath>::new());
    }

    #[test]
    fn in_mirror_nothing_breaks_and_the_phone_prevails(
        ops in prop::collection::vec(any_op(), 1..40),
        last in (any_path(), any::<u8>()),
    ) {
        let mut twin = Twin::new();
        for op in &ops {
            let _ = twin.run(op);
            twin.check();
        }
        twin.phone_put(&last.0, last.1);
        let stat = twin.view.stat(twin.resolve(&last.0).unwrap()).unwrap();
        prop_assert_eq!((stat.mode, stat.uid, stat.size), (libc::S_IFREG | 0o600, 5, 5000));
        prop_assert_eq!(twin.view.read(stat.ino, 0, 9000).unwrap(), vec![last.1; 5000]);
        twin.view.clear_layer();
        twin.check();
        let scope = Scope::new([PhonePath::root()], []).unwrap();
        prop_assert_eq!(twin.flash.root(&scope), twin.view.root(&scope).unwrap());
    }

    #[test]
    fn in_drive_phone_and_guest_together_break_nothing(ops in prop::collection::vec(any_op(), 1..40)) {
        let mut twin = Twin::new();
        twin.drive();
        for op in &ops {
            let _ = twin.run(op);
            twin.check();
        }
        twin.view.set_lead(Lead::Mirror).unwrap();
        twin.check();
    }
}

fn ops(twin: &mut Twin, ops: &[Op]) {
    ops.iter().for_each(|op| twin.run(op).unwrap());
}

#[test]
fn a_save_by_rename_is_announced_as_it_happens() {
    let mut twin = Twin::new();
    twin.drive();
    let before = twin.flash.entry(&path("/r/b")).unwrap().hash();
    ops(
        &mut twin,
        &[
            Op::Write("/r/tmp".into(), 0, 7, true),
            Op::Rename("/r/tmp".into(), "/r/b".into(), 0),
        ],
    );
    let changes = twin.take(9);
    assert!(
        matches!(&changes[0].change, FileChange { path: at, op: FileOp::Put(_) } if *at == path("/r/tmp"))
    );
    assert_eq!(changes[0].before, Before::Absent);
    assert_eq!(
        changes[1].change,
        FileChange {
            path: path("/r/tmp"),
            op: FileOp::Rename { to: path("/r/b") }
        }
    );
    assert_eq!(changes.len(), 2);
    assert_eq!(
        twin.flash.read(&path("/r/b"), 0, 9999).unwrap(),
        vec![7; 3000]
    );
    // A write in place says what it was made to.
    ops(&mut twin, &[Op::Write("/r/b".into(), 0, 8, true)]);
    let now = twin.flash.entry(&path("/r/b")).unwrap().hash();
    assert_ne!(now, before);
    assert_eq!(twin.take(9)[0].before, Before::Entry(now));
}

#[test]
fn what_the_phone_changed_meanwhile_is_recognisable() {
    let mut twin = Twin::new();
    twin.drive();
    let before = twin.flash.entry(&path("/r/b")).unwrap().hash();
    ops(&mut twin, &[Op::Write("/r/b".into(), 0, 7, false)]);
    twin.phone_put("/r/b", 9);
    ops(&mut twin, &[Op::Close("/r/b".into())]);
    assert_eq!(
        twin.changes.as_mut().unwrap().try_recv().unwrap().before,
        Before::Entry(before)
    );
    assert_eq!(
        twin.flash.read(&path("/r/b"), 0, 1).unwrap(),
        [9],
        "the phone's version is in the flash"
    );
}

#[test]
fn moves_over_the_edge_of_the_scope() {
    let mut twin = Twin::new();
    twin.drive();
    let put = |change: &GuestChange| matches!(change.change.op, FileOp::Put(_));
    ops(
        &mut twin,
        &[
            Op::MakeDirectory("/out/d".into()),
            Op::Write("/out/d/f".into(), 0, 1, true),
        ],
    );
    assert_eq!(twin.take(9), []);
    ops(&mut twin, &[Op::Rename("/out/d".into(), "/r/d".into(), 0)]);
    let changes = twin.take(9);
    assert!(changes.iter().all(put));
    assert_eq!(
        changes
            .iter()
            .map(|change| change.change.path.to_string())
            .collect::<Vec<_>>(),
        ["/r/d", "/r/d/f"]
    );
    ops(&mut twin, &[Op::Rename("/r/d".into(), "/out/d".into(), 0)]);
    assert_eq!(
        twin.take(9)[0].change,
        FileChange {
            path: path("/r/d"),
            op: FileOp::Remove
        }
    );
}

#[test]
fn limits_are_the_guests_errors() {
    let twin = Twin::new();
    let file = twin.resolve("/r/b").unwrap();
    assert_eq!(
        twin.view.write(file, flash::FILE_BYTES_MAX, b"x"),
        Err(Errno::EFBIG)
    );
    assert_eq!(twin.view.write(file, u64::MAX, b"x"), Err(Errno::EFBIG));
    let size = StatChange {
        size: Some(u64::MAX),
        ..Default::default()
    };
    assert_eq!(twin.view.set_stat(file, &size), Err(Errno::EFBIG));
    assert_eq!(
        twin.view.allocate(file, 0, u64::MAX, u64::MAX),
        Err(Errno::EFBIG)
    );
    let make = |name: &[u8]| {
        twin.view
            .make(ROOT_INO, name, libc::S_IFREG, 0, false, Caller::default())
    };
    assert_eq!(make(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        assert_eq!(make(name), Err(Errno::EINVAL));
    }
    assert_eq!(twin.view.stat(1 << 60), Err(Errno::ESTALE));
    // More than memory may hold of a guest's writes goes to the store.
    let block = vec![3; 1 << 20];
    for number in 0..80 {
        twin.view.write(file, number << 20, &block).unwrap();
    }
    assert_eq!(twin.view.read(file, 79 << 20, 1 << 20).unwrap(), block);
    assert_eq!(twin.view.read(file, 1, 1 << 20).unwrap(), block);
}

#[test]
fn only_what_the_guest_changes_ends_its_quiet() {
    let mut twin = Twin::new();
    twin.phone_put("/r/b", 9);
    twin.view.lookup(ROOT_INO, b"r").unwrap();
    assert_eq!(twin.view.changed_at(), None);
    ops(&mut twin, &[Op::Write("/r/b".into(), 0, 7, false)]);
    let changed = twin.view.changed_at().unwrap();
    twin.phone_put("/r/b", 8);
    assert_eq!(twin.view.changed_at(), Some(changed));
}
