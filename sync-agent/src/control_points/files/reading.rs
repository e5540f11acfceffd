//! Reading what is at a path, whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use nix::dir::Dir;
use sync_protocol::chunking::cut_stream;
use sync_protocol::event::{Content, Node};
use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::tree::FileKind;

use crate::beneath::{self, Stat};

/// What came of reading a regular file.
pub(crate) enum Reading {
    /// It did not change while it was read.
    Stable(Node, Stat),
    Changed,
    Absent,
    Unreadable(io::Error),
}

/// Reads a regular file; its chunks go to `keep`, whose error ends the reading.
pub(crate) fn regular<E>(
    path: &PhonePath,
    mut keep: impl FnMut(Hash, Vec<u8>) -> Result<(), E>,
) -> Result<Reading, E> {
    let (file, before) = match open(path) {
        Ok(opened) => opened,
        Err(error) if beneath::is_absence(&error) => return Ok(Reading::Absent),
        Err(error) => return Ok(Reading::Unreadable(error)),
    };
    if before.kind != Some(FileKind::Regular) {
        return Ok(Reading::Changed);
    }
    let mut chunks = Vec::new();
    let mut size = 0;
    // One byte more than it should have: enough to see that it grew, and never endless.
    for piece in cut_stream((&file).take(before.size + 1)) {
        match piece {
            Ok((chunk, bytes)) => {
                size += u64::from(chunk.size);
                chunks.push(chunk);
                keep(chunk.hash, bytes)?;
            }
            Err(error) => return Ok(Reading::Unreadable(error)),
        }
    }
    match beneath::stat_of(&file) {
        Ok(after) if after == before && size == before.size => Ok(Reading::Stable(
            node(&before, Content::Regular { size, chunks }),
            before,
        )),
        Ok(_) => Ok(Reading::Changed),
        Err(error) => Ok(Reading::Unreadable(error)),
    }
}

fn open(path: &PhonePath) -> io::Result<(File, Stat)> {
    let file = beneath::open_file(path)?;
    let stat = beneath::stat_of(&file)?;
    Ok((file, stat))
}

pub(crate) fn directory(stat: &Stat) -> Node {
    node(stat, Content::Directory)
}

pub(crate) fn link(path: &PhonePath, stat: &Stat) -> io::Result<Node> {
    Ok(node(
        stat,
        Content::Symlink {
            target: beneath::read_link(path)?,
        },
    ))
}

/// The names in a directory.
pub(crate) fn names(directory: &PhonePath) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut opened = Dir::from_fd(beneath::open_directory(directory)?)?;
    let mut names = BTreeSet::new();
    for entry in opened.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.insert(name);
        }
    }
    Ok(names)
}

fn node(stat: &Stat, content: Content) -> Node {
    Node {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime_ns: stat.mtime_ns,
        content,
    }
}
