//! The initramfs container: cpio in the "newc" format (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written uncompressed: unpacking gzip on an emulated CPU costs more than reading the larger file.

use std::io::{self, Write};

use crate::tree::{Node, Tree};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes `tree`; inode numbers count up from 1, so equal trees make equal bytes.
pub(crate) fn write(tree: &Tree, mut out: impl Write, mtime: u64) -> io::Result<()> {
    let mtime = u32::try_from(mtime).map_err(|_| io::Error::other("newc cpio has 32-bit times"))?;
    for (index, (path, entry)) in tree.iter().enumerate() {
        let (kind, contents, device) = match &entry.node {
            Node::Directory => (S_IFDIR, [].as_slice(), (0, 0)),
            Node::File(contents) => (S_IFREG, contents.as_slice(), (0, 0)),
            Node::Symlink(target) => (S_IFLNK, target.as_bytes(), (0, 0)),
            Node::CharDevice { major, minor } => (S_IFCHR, [].as_slice(), (*major, *minor)),
        };
        let fields = [
            index as u32 + 1,
            kind | entry.mode,
            entry.uid,
            entry.gid,
            1,
            mtime,
        ];
        write_member(&mut out, path, fields, contents, device)?;
    }
    write_member(&mut out, TRAILER, [0, 0, 0, 0, 1, 0], &[], (0, 0))?;
    out.flush()
}

fn write_member(
    out: &mut impl Write,
    path: &str,
    fields: [u32; 6],
    contents: &[u8],
    device: (u32, u32),
) -> io::Result<()> {
    let size = u32::try_from(contents.len())
        .map_err(|_| io::Error::other("newc cpio has 32-bit sizes"))?;
    let mut header = MAGIC.to_owned();
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    for field in
        fields
            .into_iter()
            .chain([size, 0, 0, device.0, device.1, path.len() as u32 + 1, 0])
    {
        header.push_str(&format!("{field:08x}"));
    }
    header.push_str(path);
    header.push('\0');
    write_padded(out, header.as_bytes())?;
    write_padded(out, contents)
}

fn write_padded(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    #[test]
    fn members_are_laid_out_as_newc_prescribes() {
        let mut tree = Tree::default();
        tree.insert("init", Entry::file(0o755, "hello"));
        let mut out = Vec::new();
        write(&tree, &mut out, 0x10).unwrap();
        let expected = "070701\
            00000001000081ed000000000000000000000001000000100000000500000000000000000000000000000000\
            0000000500000000init\0\0hello\0\0\0";
        // Header (110) + name (5) padded to 116, contents padded to 8.
        assert_eq!(&out[..116], &expected.replace(' ', "").as_bytes()[..116]);
        assert_eq!(&out[116..124], b"hello\0\0\0");
        assert!(String::from_utf8_lossy(&out[124..]).contains("TRAILER!!!"));
        assert_eq!(out.len() % 4, 0);
    }
}
