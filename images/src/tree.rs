//! A file tree in memory, with owners and modes of its own, written out the same way every time.
//!
//! Promises: output depends on the entries and the time given, never on the host's clock, user or directory order.
//! Paths are relative and follow Debian's merged /usr: what a package puts under `bin`, `sbin` or `lib` lands under
//! `usr`. Leaves out: device nodes other than character devices, hard links, extended attributes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

const MERGED_INTO_USR: &[&str] = &["bin", "sbin", "lib"];

#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Permission bits, set-id bits included.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) node: Node,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    CharDevice { major: u32, minor: u32 },
}

impl Entry {
    pub(crate) fn directory(mode: u32) -> Entry {
        Entry {
            mode,
            uid: 0,
            gid: 0,
            node: Node::Directory,
        }
    }

    pub(crate) fn file(mode: u32, contents: impl Into<Vec<u8>>) -> Entry {
        Entry {
            mode,
            uid: 0,
            gid: 0,
            node: Node::File(contents.into()),
        }
    }

    pub(crate) fn symlink(target: &str) -> Entry {
        Entry {
            mode: 0o777,
            uid: 0,
            gid: 0,
            node: Node::Symlink(target.to_owned()),
        }
    }

    pub(crate) fn owned_by(self, uid: u32) -> Entry {
        Entry {
            uid,
            gid: uid,
            ..self
        }
    }
}

/// `./bin/busybox` of a package is `usr/bin/busybox` in the tree.
pub(crate) fn merged_usr(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED_INTO_USR.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

impl Tree {
    /// Puts an entry in place of what was there; missing parents become directories of root, mode 755.
    pub(crate) fn insert(&mut self, path: &str, entry: Entry) {
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            self.entries
                .entry(above.to_owned())
                .or_insert_with(|| Entry::directory(0o755));
            parent = above;
        }
        self.entries.insert(path.to_owned(), entry);
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Entries in byte order of their paths, so a directory comes before what it holds.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// The first file whose name is `name`, wherever it lies.
    pub(crate) fn find_file(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .find_map(|(path, entry)| match &entry.node {
                Node::File(contents) if path.rsplit('/').next() == Some(name) => {
                    Some(contents.as_slice())
                }
                _ => None,
            })
    }

    /// Writes the tree as a tar file (ustar, numeric owners).
    pub(crate) fn write_tar(&self, out: impl Write, mtime: u64) -> io::Result<()> {
        let mut builder = tar::Builder::new(out);
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_ustar();
            header.set_mode(entry.mode);
            header.set_uid(entry.uid.into());
            header.set_gid(entry.gid.into());
            header.set_mtime(mtime);
            header.set_size(0);
            match &entry.node {
                Node::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Node::File(contents) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(contents.len() as u64);
                    builder.append_data(&mut header, path, contents.as_slice())?;
                }
                Node::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, path, target)?;
                }
                Node::CharDevice { major, minor } => {
                    header.set_entry_type(tar::EntryType::Char);
                    header.set_device_major(*major)?;
                    header.set_device_minor(*minor)?;
                    builder.append_data(&mut header, path, io::empty())?;
                }
            }
        }
        builder.finish()
    }

    /// Lays the tree out below `dir`, which must be empty. Owners are set when run as root; character devices are left
    /// out (the guest mounts devtmpfs).
    pub(crate) fn unpack(&self, dir: &Path, as_root: bool) -> io::Result<()> {
        for (path, entry) in &self.entries {
            let target = dir.join(path);
            match &entry.node {
                Node::Directory => fs::create_dir(&target)?,
                Node::File(contents) => fs::write(&target, contents)?,
                Node::Symlink(link) => symlink(link, &target)?,
                Node::CharDevice { .. } => continue,
            }
            let is_symlink = matches!(entry.node, Node::Symlink(_));
            if as_root {
                let set_owner = if is_symlink { lchown } else { chown };
                set_owner(&target, Some(entry.uid), Some(entry.gid))?;
            }
            if !is_symlink {
                fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_paths_follow_merged_usr() {
        assert_eq!(merged_usr("./bin/busybox"), "usr/bin/busybox");
        assert_eq!(merged_usr("./usr/bin/env"), "usr/bin/env");
        assert_eq!(merged_usr("./library/x"), "library/x");
        assert_eq!(merged_usr("./"), "");
    }

    #[test]
    fn tar_is_the_same_whatever_the_order_of_insertion() {
        let entries = [
            ("a/b", Entry::file(0o644, "x")),
            ("a", Entry::directory(0o700)),
            ("c", Entry::symlink("a/b")),
        ];
        let write = |order: &[usize]| {
            let mut tree = Tree::default();
            for &index in order {
                let (path, entry) = entries[index].clone();
                tree.insert(path, entry);
            }
            let mut out = Vec::new();
            tree.write_tar(&mut out, 1).unwrap();
            out
        };
        assert_eq!(write(&[0, 1, 2]), write(&[2, 1, 0]));
        let tar = write(&[0, 1, 2]);
        let paths: Vec<_> = tar::Archive::new(tar.as_slice())
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        assert_eq!(paths, ["a/", "a/b", "c"]);
    }
}
