//! Reading Debian packages: the files a .deb carries, without running its maintainer scripts.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tree::{Entry, Node, Tree};
use crate::{BuildError, Result};

/// The largest single file taken from a package; a kernel image is 33 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads the files of `deb` for whose path (relative, as packaged) `keep` holds.
///
/// Directories come along only as parents of what is kept.
pub(crate) fn read(deb: &Path, keep: impl Fn(&str) -> bool) -> Result<Tree> {
    let failed = |what: String| BuildError::Package {
        path: deb.to_owned(),
        what,
    };
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| BuildError::tool("dpkg-deb", source))?;
    let stdout = child.stdout.take().expect("stdout was piped");
    let tree = read_tar(stdout, keep);
    let status = child
        .wait()
        .map_err(|source| BuildError::tool("dpkg-deb", source))?;
    let tree = tree.map_err(|source| failed(format!("its file archive is damaged: {source}")))?;
    if !status.success() {
        return Err(failed(format!("dpkg-deb could not read it ({status})")));
    }
    Ok(tree)
}

fn read_tar(stream: impl Read, keep: impl Fn(&str) -> bool) -> std::io::Result<Tree> {
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(stream);
    for member in archive.entries()? {
        let mut member = member?;
        let path = String::from_utf8_lossy(&member.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        if !keep(&path) {
            continue;
        }
        let header = member.header();
        let (mode, uid, gid) = (
            header.mode()? & 0o7777,
            header.uid()? as u32,
            header.gid()? as u32,
        );
        let kind = header.entry_type();
        let node = match kind {
            tar::EntryType::Regular => {
                if member.size() > FILE_BYTES_MAX {
                    return Err(std::io::Error::other(format!(
                        "{path} is larger than {FILE_BYTES_MAX} bytes"
                    )));
                }
                let mut contents = Vec::with_capacity(member.size() as usize);
                member.read_to_end(&mut contents)?;
                Node::File(contents)
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target = member.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                if kind == tar::EntryType::Link {
                    // A hard link becomes a copy: its target came earlier in the archive.
                    let target = target.trim_start_matches("./").to_owned();
                    match tree.get(&target).map(|entry| entry.node.clone()) {
                        Some(node) => node,
                        None => {
                            return Err(std::io::Error::other(format!(
                                "{path} is a hard link to {target}, which is not kept"
                            )));
                        }
                    }
                } else {
                    Node::Symlink(target)
                }
            }
            _ => continue,
        };
        tree.insert(
            &path,
            Entry {
                mode,
                uid,
                gid,
                node,
            },
        );
    }
    // Drain the pipe, or dpkg-deb dies of a broken one.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
    Ok(tree)
}
