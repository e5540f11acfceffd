//! The FUSE server with a real kernel on the other side: `/dev/fuse`, mounted, used by real programs.
//!
//! Needs root and `/dev/fuse`; says so by name where they are missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use flash::fuse::{Mount, mount};
use flash::{Flash, Flashes, TwinView};
use store::Store;
use sync_protocol::PhonePath;
use sync_protocol::chunking::cut;
use sync_protocol::event::{Content, FileChange, FileOp, Node, Origin};
use tempfile::TempDir;

/// What a kernel's `/dev/fuse` needs; a test that lacks it says so.
fn can_mount(test: &str) -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("{test}: NOT RUN, it needs root and /dev/fuse");
    }
    can
}

struct Mounted {
    store: Store,
    flash: Flash,
    view: TwinView,
    mount: Option<Mount>,
    dir: TempDir,
}

impl Mounted {
    fn new(base: Option<&Path>) -> Self {
        let store = Store::memory();
        let flashes = Flashes::new(store.clone(), 32 << 20);
        let base = base.map(|tar| flashes.import_base(tar).unwrap());
        let flash = flashes.open(&"phone".parse().unwrap(), base).unwrap();
        let view = TwinView::new(flash.clone());
        let dir = tempfile::tempdir().unwrap();
        let mount = mount(view.clone(), dir.path(), true).unwrap();
        Mounted {
            store,
            flash,
            view,
            mount: Some(mount),
            dir,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The phone puts a file.
    fn put(&self, path: &str, contents: &[u8]) {
        let (chunks, blobs): (Vec<_>, Vec<_>) = cut(contents)
            .map(|(chunk, bytes)| (chunk, bytes::Bytes::copy_from_slice(bytes)))
            .unzip();
        self.store.blobs.put_many(&blobs).unwrap();
        let content = Content::Regular {
            size: contents.len() as u64,
            chunks,
        };
        let node = Node {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_ns: 1,
            content,
        };
        self.apply(path, FileOp::Put(node));
    }

    fn apply(&self, path: &str, op: FileOp) {
        let change = FileChange {
            path: PhonePath::new(path).unwrap(),
            op,
        };
        self.flash
            .apply(self.flash.position() + 1, 1, Origin::Phone, &change)
            .unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Before its directory goes.
        drop(self.mount.take());
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Everything that can be seen of a tree.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut line = format!(
            "{:o} {}:{}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid()
        );
        if metadata.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            let (mtime, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            line += &format!(
                " size {} rdev {} at {mtime}.{nanoseconds}",
                metadata.size(),
                metadata.rdev()
            );
        }
        if metadata.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if metadata.is_file() {
            line += &format!(" {}", blake3::hash(&fs::read(&path).unwrap()));
        }
        seen.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    seen
}

/// A tree with what file systems get wrong.
fn make_source(root: &Path) {
    fs::create_dir_all(root.join("usr/bin/deep/er")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..3000 {
        fs::write(root.join(format!("many/file {number}")), number.to_string()).unwrap();
    }
    let large: Vec<u8> = (0..5_000_000u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(root.join("large"), large).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("zeros"), vec![0; 300_000]).unwrap();
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"bad \xff\xfe\nname")),
        b"strange",
    )
    .unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    symlink("../large", root.join("usr/link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    run("mkfifo", &[root.join("pipe").to_str().unwrap()]);
    run(
        "mknod",
        &[root.join("null").to_str().unwrap(), "c", "1", "3"],
    );
    fs::copy("/bin/sleep", root.join("usr/bin/sleep")).unwrap();
    fs::set_permissions(
        root.join("usr/bin/sleep"),
        fs::Permissions::from_mode(0o4755),
    )
    .unwrap();
    run(
        "chown",
        &["1000:1001", root.join("empty").to_str().unwrap()],
    );
}

fn tar(source: &Path, dir: &Path) -> PathBuf {
    let tar = dir.join("base.tar");
    let arguments = [
        "--format=gnu",
        "-cf",
        tar.to_str().unwrap(),
        "-C",
        source.to_str().unwrap(),
        ".",
    ];
    run("tar", &arguments);
    tar
}

#[test]
fn a_base_tree_is_seen_as_it_was_packed() {
    if !can_mount("a_base_tree_is_seen_as_it_was_packed") {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let tar_dir = tempfile::tempdir().unwrap();
    make_source(source.path());
    let mounted = Mounted::new(Some(&tar(source.path(), tar_dir.path())));
    // tar keeps whole seconds.
    let seconds = |tree: BTreeMap<PathBuf, String>| -> BTreeMap<PathBuf, String> {
        let cut = |line: String| match line.split_once(" at ") {
            Some((head, rest)) => {
                let (second, rest) = rest.split_once('.').unwrap();
                format!(
                    "{head} {second} {}",
                    rest.trim_start_matches(|c: char| c.is_ascii_digit())
                )
            }
            None => line,
        };
        tree.into_iter()
            .map(|(path, line)| (path, cut(line)))
            .collect()
    };
    let (expected, found) = (
        seconds(describe(source.path())),
        seconds(describe(mounted.dir.path())),
    );
    assert_eq!(expected.len(), found.len());
    for (path, line) in expected {
        assert_eq!(found.get(&path), Some(&line), "{path:?}");
    }
    assert!(
        fs::metadata(mounted.path("null"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    // Executed: read by mmap.
    run(mounted.path("usr/bin/sleep").to_str().unwrap(), &["0"]);
}

#[test]
fn copies_and_finds() {
    if !can_mount("copies_and_finds") {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    make_source(source.path());
    let mounted = Mounted::new(None);
    let copy = mounted.path("copy");
    run(
        "cp",
        &[
            "-a",
            source.path().to_str().unwrap(),
            copy.to_str().unwrap(),
        ],
    );
    assert_eq!(describe(source.path()), describe(&copy));
    let found = run("find", &[copy.to_str().unwrap(), "-name", "file *"]);
    assert_eq!(found.lines().count(), 3000);
    run("rm", &["-rf", copy.join("many").to_str().unwrap()]);
    assert!(!copy.join("many").exists());
    run(
        "mv",
        &[
            copy.join("usr").to_str().unwrap(),
            copy.join("moved").to_str().unwrap(),
        ],
    );
    assert!(copy.join("moved/bin/sleep").exists() && !copy.join("usr").exists());
    run("rm", &["-rf", copy.to_str().unwrap()]);
    assert_eq!(fs::read_dir(mounted.dir.path()).unwrap().count(), 0);
}

#[test]
fn files_removed_while_open_live_on() {
    if !can_mount("files_removed_while_open_live_on") {
        return;
    }
    let mounted = Mounted::new(None);
    mounted.put("/of the phone", b"phone");
    fs::write(mounted.path("own"), b"own").unwrap();
    let mut own = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("own"))
        .unwrap();
    let mut phones = fs::File::open(mounted.path("of the phone")).unwrap();
    fs::remove_file(mounted.path("own")).unwrap();
    mounted.apply("/of the phone", FileOp::Remove);
    assert!(!mounted.path("own").exists() && !mounted.path("of the phone").exists());
    own.write_all(b"OWN and more").unwrap();
    let mut text = String::new();
    let mut bytes = [0; 12];
    own.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"OWN and more");
    phones.read_to_string(&mut text).unwrap();
    assert_eq!(text, "phone");
    assert_eq!(own.metadata().unwrap().nlink(), 0);
}

#[test]
fn what_the_phone_changes_is_seen_at_the_next_open_under_the_same_number() {
    if !can_mount("what_the_phone_changes_is_seen_at_the_next_open_under_the_same_number") {
        return;
    }
    let mounted = Mounted::new(None);
    mounted.put("/d/file", b"one");
    let path = mounted.path("d/file");
    let ino = fs::metadata(&path).unwrap().ino();
    // Read by different means, so that it is cached; same size and same time after each change.
    for text in [b"two", b"TWO", b"six"] {
        mounted.put("/d/file", text);
        assert_eq!(fs::read(&path).unwrap(), text);
        assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
    }
    mounted.put("/d/another", b"new");
    assert_eq!(fs::read_dir(mounted.path("d")).unwrap().count(), 2);
    mounted.apply(
        "/d/file",
        FileOp::Rename {
            to: PhonePath::new("/d/renamed").unwrap(),
        },
    );
    assert!(!path.exists());
    assert_eq!(fs::metadata(mounted.path("d/renamed")).unwrap().ino(), ino);
    // In mirror, the phone's version replaces the guest's.
    fs::write(mounted.path("d/renamed"), b"by the guest").unwrap();
    fs::write(mounted.path("d/made"), b"by the guest").unwrap();
    let made = fs::metadata(mounted.path("d/made")).unwrap().ino();
    mounted.put("/d/renamed", b"by the phone");
    mounted.put("/d/made", b"by the phone");
    assert_eq!(
        fs::read(mounted.path("d/renamed")).unwrap(),
        b"by the phone"
    );
    assert_eq!(fs::read(mounted.path("d/made")).unwrap(), b"by the phone");
    assert_eq!(fs::metadata(mounted.path("d/made")).unwrap().ino(), made);
}

#[test]
fn sqlite_works_in_every_journal_mode() {
    if !can_mount("sqlite_works_in_every_journal_mode") {
        return;
    }
    let mounted = Mounted::new(None);
    for mode in ["delete", "truncate", "persist", "wal"] {
        let database = mounted.path(mode);
        let connection = rusqlite::Connection::open(&database).unwrap();
        connection
            .pragma_update(None, "journal_mode", mode)
            .unwrap();
        connection
            .pragma_update(None, "mmap_size", 1 << 20)
            .unwrap();
        connection
            .execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
            .unwrap();
        for number in 0..200 {
            connection
                .execute(
                    "INSERT INTO t (b) VALUES (?1)",
                    [format!("{number}").repeat(50)],
                )
                .unwrap();
        }
        let other = rusqlite::Connection::open(&database).unwrap();
        other.execute_batch("BEGIN; UPDATE t SET b = 'x' WHERE a % 2; DELETE FROM t WHERE a % 3 = 0; COMMIT; VACUUM").unwrap();
        let count: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        let check: String = other
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!((count, check.as_str()), (134, "ok"), "{mode}");
    }
}

#[test]
fn renames_exchange_or_refuse() {
    if !can_mount("renames_exchange_or_refuse") {
        return;
    }
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let mounted = Mounted::new(None);
    mounted.put("/a/x", b"x");
    fs::create_dir(mounted.path("b")).unwrap();
    fs::write(mounted.path("b/y"), b"y").unwrap();
    let rename = |from: &str, to: &str, flags| {
        renameat2(
            AT_FDCWD,
            &mounted.path(from),
            AT_FDCWD,
            &mounted.path(to),
            flags,
        )
    };
    rename("a", "b", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(mounted.path("b/x")).unwrap(), b"x");
    assert_eq!(fs::read(mounted.path("a/y")).unwrap(), b"y");
    use nix::errno::Errno;
    assert_eq!(
        rename("a", "b", RenameFlags::RENAME_NOREPLACE),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        rename("a", "b", RenameFlags::empty()),
        Err(Errno::ENOTEMPTY)
    );
    assert_eq!(rename("a", "a/y/z", RenameFlags::empty()).is_err(), true);
    assert_eq!(rename("a", "a/z", RenameFlags::empty()), Err(Errno::EINVAL));
    fs::hard_link(mounted.path("a/y"), mounted.path("linked")).unwrap();
    assert_eq!(fs::metadata(mounted.path("linked")).unwrap().nlink(), 2);
    fs::write(mounted.path("a/y"), b"both").unwrap();
    assert_eq!(fs::read(mounted.path("linked")).unwrap(), b"both");
}

#[test]
fn a_view_survives_being_saved() {
    if !can_mount("a_view_survives_being_saved") {
        return;
    }
    let mut mounted = Mounted::new(None);
    mounted.put("/kept", b"kept");
    mounted.put("/gone", b"gone");
    fs::write(mounted.path("own"), vec![7; 100_000]).unwrap();
    fs::create_dir(mounted.path("dir")).unwrap();
    symlink("target", mounted.path("dir/link")).unwrap();
    fs::remove_file(mounted.path("gone")).unwrap();
    let before = describe(mounted.dir.path());
    let saved = mounted.view.save().unwrap();
    drop(mounted.mount.take());
    let flashes = Flashes::new(mounted.store.clone(), 1 << 20);
    mounted.flash.checkpoint().unwrap();
    let log = &*mounted.store.log;
    let early = flashes.at(mounted.flash.phone(), None, 0, log).unwrap();
    assert!(matches!(
        flashes.restore_view(&early, &saved, log),
        Err(flash::FlashError::PositionPassed { position: 0, .. })
    ));
    let flash = flashes.open(mounted.flash.phone(), None).unwrap();
    mounted.view = flashes
        .restore_view(&flash, &saved, &*mounted.store.log)
        .unwrap();
    mounted.mount = Some(mount(mounted.view.clone(), mounted.dir.path(), true).unwrap());
    assert_eq!(describe(mounted.dir.path()), before);
}
