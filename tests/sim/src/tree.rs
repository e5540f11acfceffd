//! What a phone's user does to files; and whether a flash has the same.

use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use pollux::flashes::{FileKind, Flashes};
use pollux::phones::Phone as Registered;
use rand::Rng;
use rand::rngs::SmallRng;
use sync_agent::parts::Notice;
use sync_protocol::PhonePath;

use crate::os::now_ms;

/// Names in a directory: few, so that one thing happens to the same path again and again.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d ", b"e\xff", b"f.db"];
const DEPTH_MAX: usize = 3;
const FILE_BYTES_MAX: usize = 200_000;

/// What was done, as the kernel would tell it; and what a power cut might undo.
pub(crate) struct Done {
    pub(crate) notices: Vec<Notice>,
    pub(crate) undo: Option<(PathBuf, Option<Vec<u8>>)>,
}

/// A path in `home` that may be there or not.
pub(crate) fn some_path(home: &Path, random: &mut SmallRng) -> PathBuf {
    let mut path = home.to_owned();
    for _ in 0..random.random_range(1..=DEPTH_MAX) {
        path.push(std::ffi::OsStr::from_bytes(NAMES[random.random_range(0..NAMES.len())]));
        if !path.is_dir() {
            break;
        }
    }
    path
}

pub(crate) fn some_bytes(random: &mut SmallRng) -> Vec<u8> {
    let most = if random.random_bool(0.1) { FILE_BYTES_MAX } else { 2000 };
    let mut bytes = vec![0; random.random_range(0..most)];
    // Half of it compresses.
    let half = bytes.len() / 2;
    random.fill(&mut bytes[..half]);
    bytes
}

/// One change by the phone's user, or as much of it as can be made where it would be.
pub(crate) fn change(home: &Path, random: &mut SmallRng) -> Done {
    let path = some_path(home, random);
    let mut done = Done { notices: vec![changed(&path)], undo: None };
    // Whatever does not fit what is there fails, as it does for a user.
    let _ = make(home, path, random, &mut done);
    done
}

fn make(home: &Path, path: PathBuf, random: &mut SmallRng, done: &mut Done) -> io::Result<()> {
    let is_directory = path.symlink_metadata().is_ok_and(|stat| stat.is_dir());
    match random.random_range(0..12) {
        0..4 => {
            let before = std::fs::read(&path).ok();
            std::fs::write(&path, some_bytes(random))?;
            stamp(&path);
            done.undo = Some((path, before));
        }
        4 => {
            let before = std::fs::read(&path)?;
            std::fs::OpenOptions::new().append(true).open(&path)?.write_all(&some_bytes(random))?;
            stamp(&path);
            done.undo = Some((path, Some(before)));
        }
        5 => {
            let mode = [0o600, 0o644, 0o755, 0o4711][random.random_range(0..4)];
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode | if is_directory { 0o700 } else { 0 }))?;
        }
        6 | 7 => std::fs::create_dir(&path)?,
        8 => {
            std::os::unix::fs::symlink(format!("/nowhere/{}", "x".repeat(random.random_range(1..50))), &path)?;
            stamp(&path);
        }
        9 if is_directory => std::fs::remove_dir_all(&path)?,
        9 => std::fs::remove_file(&path)?,
        // Written aside and moved into place, as editors do.
        10 => {
            let aside = path.with_file_name("aside");
            done.notices.push(changed(&aside));
            std::fs::OpenOptions::new().create(true).write(true).mode(0o640).open(&aside)?.write_all(&some_bytes(random))?;
            stamp(&aside);
            std::fs::rename(&aside, &path)?;
            done.notices = vec![changed(&aside), renamed(&aside, &path)];
        }
        _ => {
            let to = some_path(home, random);
            std::fs::rename(&path, &to)?;
            done.notices = vec![renamed(&path, &to)];
        }
    }
    Ok(())
}

fn protocol_path(path: &Path) -> PhonePath {
    PhonePath::try_from(path).expect("a path")
}

fn changed(path: &Path) -> Notice {
    Notice::Changed(protocol_path(path))
}

fn renamed(from: &Path, to: &Path) -> Notice {
    Notice::Renamed(protocol_path(from), protocol_path(to))
}

/// Gives a file the time of the run.
fn stamp(path: &Path) {
    let time = TimeSpec::milliseconds(now_ms().cast_signed() + 1_600_000_000_000);
    // It may be gone.
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
}

/// A power cut undoes a write that was not flushed, or leaves the file empty.
pub(crate) fn undo((path, before): &(PathBuf, Option<Vec<u8>>), random: &mut SmallRng) {
    if !path.symlink_metadata().is_ok_and(|stat| stat.is_file()) {
        return;
    }
    let undone = match before {
        Some(bytes) if random.random_bool(0.7) => std::fs::write(path, bytes),
        None if random.random_bool(0.7) => std::fs::remove_file(path),
        _ => std::fs::write(path, b""),
    };
    undone.expect("undone");
    stamp(path);
}

/// What is not the same in `folder` and in the flash.
pub(crate) fn differences(flashes: &Flashes, phone: &Registered, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let entries = match flashes.list(phone, folder.as_os_str().as_bytes(), None) {
        Ok((_, entries)) => entries,
        Err(error) => return vec![format!("{}: {error}", folder.display())],
    };
    let mut names: Vec<Vec<u8>> = entries.iter().map(|entry| entry.name.clone()).collect();
    let there = std::fs::read_dir(folder).expect("the phone's folder");
    names.extend(there.map(|entry| entry.expect("an entry").file_name().into_vec()));
    names.sort();
    names.dedup();
    for name in names {
        let path = folder.join(std::ffi::OsStr::from_bytes(&name));
        let (ours, theirs) = (entries.iter().find(|entry| entry.name == name), path.symlink_metadata().ok());
        let (Some(ours), Some(theirs)) = (ours, theirs.as_ref()) else {
            found.push(format!("{}: the flash {}, the phone {}", path.display(), has(ours.is_some()), has(theirs.is_some())));
            continue;
        };
        let kind = match theirs.file_type() {
            kind if kind.is_dir() => FileKind::Directory,
            kind if kind.is_symlink() => FileKind::Link,
            _ => FileKind::File,
        };
        let attributes = (ours.kind, ours.mode & 0o7777, ours.uid, ours.gid);
        let expected = (kind, theirs.mode() & 0o7777, theirs.uid(), theirs.gid());
        if attributes != expected && (kind != FileKind::Link || ours.kind != kind) {
            found.push(format!("{}: the flash has {attributes:?}, the phone {expected:?}", path.display()));
        }
        let told = match kind {
            FileKind::Directory => {
                found.extend(differences(flashes, phone, &path));
                continue;
            }
            FileKind::Link => Ok(ours.target.clone().unwrap_or_default()),
            _ => flashes
                .open(phone, path.as_os_str().as_bytes(), None)
                .and_then(|file| file.read(0, file.size() as usize))
                .map(|bytes| bytes.to_vec()),
        };
        let is = match kind {
            FileKind::Link => std::fs::read_link(&path).map(|target| target.into_os_string().into_vec()),
            _ => std::fs::read(&path),
        };
        match (told, is.expect("the phone's file")) {
            (Ok(told), is) if told == is => {}
            (Ok(told), is) => found.push(format!("{}: the flash has {} bytes, the phone others, {}", path.display(), told.len(), is.len())),
            (Err(error), _) => found.push(format!("{}: {error}", path.display())),
        }
    }
    found
}

fn has(it: bool) -> &'static str {
    if it { "has it" } else { "has nothing" }
}
