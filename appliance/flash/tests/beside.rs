//! Random operations through a mounted view and on a directory of this machine: the same outcomes, the
//! same tree. Needs root and `/dev/fuse`; says so by name where they are missing.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flash::fuse::mount;
use flash::{Flashes, TwinView};
use proptest::prelude::*;
use store::Store;

#[derive(Debug, Clone)]
enum Op {
    Write(String, u64, usize),
    Append(String, usize),
    Truncate(String, u64),
    Create(String),
    MakeDirectory(String),
    Symlink(String, String),
    HardLink(String, String),
    Remove(String),
    RemoveDirectory(String),
    Rename(String, String),
    Mode(String, u32),
    Read(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), 0u64..200_000, 1usize..70_000).prop_map(|(p, at, length)| Op::Write(p, at, length)),
        2 => (path(), 1usize..9000).prop_map(|(p, length)| Op::Append(p, length)),
        2 => (path(), 0u64..200_000).prop_map(|(p, size)| Op::Truncate(p, size)),
        2 => path().prop_map(Op::Create),
        4 => path().prop_map(Op::MakeDirectory),
        1 => (path(), path()).prop_map(|(target, p)| Op::Symlink(target, p)),
        2 => (path(), path()).prop_map(|(old, new)| Op::HardLink(old, new)),
        2 => path().prop_map(Op::Remove),
        1 => path().prop_map(Op::RemoveDirectory),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (path(), 0u32..0o1000).prop_map(|(p, mode)| Op::Mode(p, mode)),
        2 => path().prop_map(Op::Read),
    ]
}

/// Runs an operation under `root`; the outcome is an errno or something read.
fn run(root: &Path, op: &Op, number: usize) -> Result<u64, i32> {
    let at = |path: &String| root.join(path);
    let byte = number as u8 + 1;
    let outcome: io::Result<u64> = (|| {
        match op {
            Op::Write(path, offset, length) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(at(path))?;
                file.write_all_at(&vec![byte; *length], *offset)?;
            }
            Op::Append(path, length) => {
                let mut file = OpenOptions::new().append(true).open(at(path))?;
                io::Write::write_all(&mut file, &vec![byte; *length])?;
            }
            Op::Truncate(path, size) => OpenOptions::new()
                .write(true)
                .open(at(path))?
                .set_len(*size)?,
            Op::Create(path) => drop(
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(at(path))?,
            ),
            Op::MakeDirectory(path) => fs::create_dir(at(path))?,
            Op::Symlink(target, path) => symlink(target, at(path))?,
            Op::HardLink(old, new) => fs::hard_link(at(old), at(new))?,
            Op::Remove(path) => fs::remove_file(at(path))?,
            Op::RemoveDirectory(path) => fs::remove_dir(at(path))?,
            Op::Rename(from, to) => fs::rename(at(from), at(to))?,
            Op::Mode(path, mode) => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?
            }
            Op::Read(path) => {
                return Ok(fs::read(at(path))?
                    .iter()
                    .map(|byte| u64::from(*byte))
                    .sum());
            }
        }
        Ok(0)
    })();
    outcome.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut line = format!("{:o}", metadata.mode());
        if metadata.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            line += &format!(" size {} links {}", metadata.size(), metadata.nlink());
        }
        if metadata.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if metadata.is_file() {
            line += &format!(" {}", blake3::hash(&fs::read(&path).unwrap()));
        }
        if path != root {
            seen.insert(path.strip_prefix(root).unwrap().to_owned(), line);
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn like_the_file_system_of_this_machine(ops in prop::collection::vec(op(), 1..60)) {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("like_the_file_system_of_this_machine: NOT RUN, it needs root and /dev/fuse");
            return Ok(());
        }
        let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let flash = Flashes::new(Store::memory(), 1 << 20).open(&"p".parse().unwrap(), None).unwrap();
        let mounted = mount(TwinView::new(flash), dir.path(), true).unwrap();
        for (number, op) in ops.iter().enumerate() {
            let expected = run(host.path(), op, number);
            let found = run(dir.path(), op, number);
            prop_assert_eq!(expected, found, "{}: {:?}", number, op);
        }
        prop_assert_eq!(describe(host.path()), describe(dir.path()));
        drop(mounted);
    }
}
