//! Opening paths without ever following a symbolic link, in any component.
//!
//! The agent is root and the paths belong to the phone's user, who could otherwise make it read or write elsewhere by
//! swapping a directory for a link at the right moment. `openat2` with `RESOLVE_NO_SYMLINKS` (Linux 5.6) decides it
//! atomically; a path that leads through a link is, for the agent, not there.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use sync_protocol::path::PhonePath;
use sync_protocol::tree::FileKind;

/// What the kernel says about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// None for sockets, pipes and devices.
    pub(crate) kind: Option<FileKind>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    pub(crate) inode: u64,
}

impl From<FileStat> for Stat {
    fn from(stat: FileStat) -> Self {
        let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Some(FileKind::Regular),
            SFlag::S_IFDIR => Some(FileKind::Directory),
            SFlag::S_IFLNK => Some(FileKind::Symlink),
            _ => None,
        };
        let nanoseconds = |seconds: i64, fraction: i64| {
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(fraction)
        };
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
        }
    }
}

/// What is at `path`; none if nothing is, or a link leads there.
pub(crate) fn stat(path: &PhonePath) -> io::Result<Option<Stat>> {
    match open(path, OFlag::O_PATH) {
        Ok(handle) => Ok(Some(fstat(&handle)?.into())),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error of this module says that nothing is there.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    let codes = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP].map(|code| code as i32);
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Opens a regular file for reading. Never blocks, should it have become a pipe meanwhile.
pub(crate) fn open_file(path: &PhonePath) -> io::Result<File> {
    Ok(File::from(open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?))
}

pub(crate) fn open_directory(path: &PhonePath) -> io::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Opens the directory that holds `path`, and gives the name in it.
pub(crate) fn open_parent(path: &PhonePath) -> io::Result<(OwnedFd, CString)> {
    let (Some(parent), Some(name)) = (path.parent(), path.name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    Ok((open_directory(&parent)?, CString::new(name)?))
}

pub(crate) fn read_link(path: &PhonePath) -> io::Result<Vec<u8>> {
    let link = open(path, OFlag::O_PATH)?;
    Ok(std::os::unix::ffi::OsStringExt::into_vec(readlinkat(
        &link, "",
    )?))
}

pub(crate) fn stat_of(file: &File) -> io::Result<Stat> {
    Ok(fstat(file)?.into())
}

fn open(path: &PhonePath, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(AT_FDCWD, path.as_path(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_seen_but_never_followed() {
        let directory = tempfile::tempdir().unwrap();
        let base = PhonePath::try_from(directory.path().canonicalize().unwrap().as_path()).unwrap();
        let at = |name: &str| base.join(name.as_bytes()).unwrap();
        std::fs::create_dir(at("real")).unwrap();
        std::fs::write(at("real").join(b"file").unwrap(), "x").unwrap();
        symlink("real", at("link")).unwrap();

        assert_eq!(
            stat(&at("link")).unwrap().unwrap().kind,
            Some(FileKind::Symlink)
        );
        assert_eq!(read_link(&at("link")).unwrap(), b"real");
        assert!(stat(&at("real").join(b"file").unwrap()).unwrap().is_some());
        assert_eq!(stat(&at("link").join(b"file").unwrap()).unwrap(), None);
        assert!(is_absence(&open_file(&at("link")).unwrap_err()));
        assert!(open_parent(&at("link").join(b"new").unwrap()).is_err());
        assert_eq!(stat(&at("nothing")).unwrap(), None);
    }
}
