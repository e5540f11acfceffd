//! Notifications from the kernel: fanotify with directory file handles and names (Linux 5.9; renames with both names
//! since 5.17). nix has neither these flags nor these records, so this is our own binding, and the agent's only unsafe
//! code.
//!
//! A mark covers a whole file system; what is outside the roots is dropped by the reader. Notices of one name merge and
//! lose their order: they say where to look, not what happened.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sync_protocol::path::PhonePath;

use super::Notices;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Changed(PhonePath),
    Renamed(PhonePath, PhonePath),
    /// Notices were lost.
    Overflow,
}

/// Notices read at once: the size of a read.
const READ_BYTES: usize = 256 * 1024;
/// `MAX_HANDLE_SZ` of the kernel.
const HANDLE_BYTES_MAX: usize = 128;

const BASE_MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR;
const FAN_RENAME: u64 = 0x1000_0000;

const INFO_DFID_NAME: u8 = 2;
const INFO_DFID: u8 = 3;
const INFO_OLD_DFID_NAME: u8 = 10;
const INFO_NEW_DFID_NAME: u8 = 12;

pub(crate) struct Fanotify {
    group: File,
    /// Something on each marked file system, through which its handles are opened.
    mounts: Vec<(Fsid, OwnedFd)>,
    buffer: Vec<u8>,
}

type Fsid = [u8; 8];

impl Fanotify {
    /// A group without marks. Needs root.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME;
        // SAFETY: fanotify_init takes two numbers and returns a new descriptor or -1.
        let group = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and belongs to nobody else.
        let group = unsafe { File::from_raw_fd(group) };
        Ok(Self {
            group,
            mounts: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Watches the file system that holds `path`, which must exist. Doing it twice is harmless.
    pub(crate) fn watch(&mut self, path: &Path) -> io::Result<()> {
        let mount = open(
            path,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY,
            Mode::empty(),
        )?;
        // Before 5.17 there is no FAN_RENAME, and a rename is two notices.
        self.mark(&mount, BASE_MASK | FAN_RENAME).or_else(|_| {
            self.mark(
                &mount,
                BASE_MASK | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO,
            )
        })?;
        let fsid = fsid(&mount)?;
        if !self.mounts.iter().any(|(known, _)| *known == fsid) {
            self.mounts.push((fsid, mount));
        }
        Ok(())
    }

    fn mark(&self, mount: &OwnedFd, mask: u64) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        // SAFETY: both descriptors are open; the path is a NUL-terminated literal, "." beneath `mount`.
        let result = unsafe {
            libc::fanotify_mark(
                self.group.as_raw_fd(),
                flags,
                mask,
                mount.as_raw_fd(),
                c".".as_ptr(),
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn read_group(&mut self) -> io::Result<Vec<Notice>> {
        let length = match self.group.read(&mut self.buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut notices = Vec::new();
        let mut last = None;
        for record in parse(&self.buffer[..length]) {
            match record {
                Record::Overflow => notices.push(Notice::Overflow),
                Record::Name(name) => {
                    notices.extend(self.locate(&mut last, name).map(Notice::Changed))
                }
                Record::Rename(from, to) => {
                    match (self.locate(&mut last, from), self.locate(&mut last, to)) {
                        (Some(from), Some(to)) => notices.push(Notice::Renamed(from, to)),
                        (one, other) => notices.extend(one.or(other).map(Notice::Changed)),
                    }
                }
            }
        }
        Ok(notices)
    }

    /// Where a name is now. Directories repeat a lot within one read: the last is remembered.
    fn locate<'a>(
        &self,
        last: &mut Option<(Directory<'a>, Option<PhonePath>)>,
        name: Name<'a>,
    ) -> Option<PhonePath> {
        let directory = match last.take() {
            Some((directory, path)) if directory == name.directory => path,
            _ => self.resolve(name.directory),
        };
        let located = match name.name {
            b"." | b"" => directory.clone(),
            name => directory
                .as_ref()
                .and_then(|directory| directory.join(name).ok()),
        };
        *last = Some((name.directory, directory));
        located
    }

    /// Where a directory is now; none if it is gone, which its own parent's notice tells.
    fn resolve(&self, directory: Directory<'_>) -> Option<PhonePath> {
        let (_, mount) = self
            .mounts
            .iter()
            .find(|(fsid, _)| fsid == directory.fsid)?;
        let opened = File::from(open_by_handle(mount, directory)?);
        if opened.metadata().ok()?.nlink() == 0 {
            return None;
        }
        let link = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
        PhonePath::new(OsString::from(link).into_vec()).ok()
    }
}

impl Notices for Fanotify {
    fn read(&mut self) -> io::Result<Vec<Notice>> {
        self.read_group()
    }

    fn wakes(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Directory<'a> {
    fsid: &'a Fsid,
    handle_type: i32,
    handle: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    directory: Directory<'a>,
    name: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
enum Record<'a> {
    Name(Name<'a>),
    Rename(Name<'a>, Name<'a>),
    Overflow,
}

/// Reads `struct fanotify_event_metadata` and the information records behind each (fanotify(7)). What is cut short ends
/// the reading.
fn parse(mut buffer: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    while let Some((event, rest)) = split_event(buffer) {
        buffer = rest;
        let (Some(metadata_length), Some(mask)) = (number::<2>(event, 6), number::<8>(event, 8))
        else {
            break;
        };
        if u64::from_ne_bytes(mask) & libc::FAN_Q_OVERFLOW != 0 {
            records.push(Record::Overflow);
            continue;
        }
        let mut infos = event
            .get(usize::from(u16::from_ne_bytes(metadata_length))..)
            .unwrap_or(&[]);
        let (mut from, mut to) = (None, None);
        while let Some((kind, info, rest)) = split_info(infos) {
            infos = rest;
            match (kind, parse_name(info)) {
                (INFO_DFID_NAME | INFO_DFID, Some(name)) => records.push(Record::Name(name)),
                (INFO_OLD_DFID_NAME, name) => from = name,
                (INFO_NEW_DFID_NAME, name) => to = name,
                _ => {}
            }
        }
        match (from, to) {
            (Some(from), Some(to)) => records.push(Record::Rename(from, to)),
            (Some(name), None) | (None, Some(name)) => records.push(Record::Name(name)),
            (None, None) => {}
        }
    }
    records
}

fn split_event(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(number(buffer, 0)?) as usize;
    if length < mem::size_of::<libc::fanotify_event_metadata>() {
        return None;
    }
    buffer.split_at_checked(length)
}

fn split_info(infos: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let kind = *infos.first()?;
    let length = usize::from(u16::from_ne_bytes(number(infos, 2)?));
    let (info, rest) = infos.split_at_checked(length)?;
    Some((kind, info.get(4..)?, rest))
}

/// `__kernel_fsid_t`, `struct file_handle`, then a NUL-terminated name, absent in a record without name.
fn parse_name(info: &[u8]) -> Option<Name<'_>> {
    let fsid = info.first_chunk::<8>()?;
    let handle_length = u32::from_ne_bytes(number(info, 8)?) as usize;
    let handle_type = i32::from_ne_bytes(number(info, 12)?);
    if handle_length > HANDLE_BYTES_MAX {
        return None;
    }
    let (handle, name) = info.get(16..)?.split_at_checked(handle_length)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Some(Name {
        directory: Directory {
            fsid,
            handle_type,
            handle,
        },
        name,
    })
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn open_by_handle(mount: &OwnedFd, directory: Directory<'_>) -> Option<OwnedFd> {
    /// `struct file_handle` with room for the largest handle.
    #[repr(C)]
    struct FileHandle {
        length: u32,
        kind: i32,
        bytes: [u8; HANDLE_BYTES_MAX],
    }
    let mut handle = FileHandle {
        length: u32::try_from(directory.handle.len()).ok()?,
        kind: directory.handle_type,
        bytes: [0; HANDLE_BYTES_MAX],
    };
    handle
        .bytes
        .get_mut(..directory.handle.len())?
        .copy_from_slice(directory.handle);
    // SAFETY: `handle` has the layout of struct file_handle, and `length` bytes of handle follow its header, which the
    // slice above made sure of. The kernel reads it during the call only.
    let descriptor = unsafe {
        let handle = (&raw mut handle).cast();
        libc::open_by_handle_at(mount.as_raw_fd(), handle, libc::O_PATH | libc::O_CLOEXEC)
    };
    // SAFETY: a descriptor that is not negative was just created and belongs to nobody else.
    (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn fsid(mount: &OwnedFd) -> io::Result<Fsid> {
    let mut statfs = mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open, and the structure is large enough for what the kernel writes.
    if unsafe { libc::fstatfs(mount.as_raw_fd(), statfs.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid statfs, and the kernel has filled it. fsid_t is two ints whose fields libc keeps
    // private: the same 8 bytes as __kernel_fsid_t in the records.
    unsafe {
        Ok(mem::transmute::<libc::fsid_t, Fsid>(
            statfs.assume_init().f_fsid,
        ))
    }
}

/// The nearest directory at or above `path` that exists: what to watch for a root that is not there yet.
pub(crate) fn nearest_directory(path: &PhonePath) -> PhonePath {
    let mut nearest = path.clone();
    while !nearest.as_path().is_dir() {
        match nearest.parent() {
            Some(parent) => nearest = parent,
            None => break,
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One event as the kernel writes it.
    fn event(mask: u64, infos: &[u8]) -> Vec<u8> {
        let mut bytes = ((24 + infos.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([3, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0xff; 4]);
        bytes.extend([0; 4]);
        bytes.extend(infos);
        bytes
    }

    fn info(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = [
            [7; 8].as_slice(),
            &(handle.len() as u32).to_ne_bytes(),
            &1i32.to_ne_bytes(),
            handle,
            name,
        ]
        .concat();
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        [
            &[kind, 0][..],
            &(body.len() as u16 + 4).to_ne_bytes(),
            &body,
        ]
        .concat()
    }

    fn name<'a>(handle: &'a [u8], name: &'a [u8]) -> Name<'a> {
        Name {
            directory: Directory {
                fsid: &[7; 8],
                handle_type: 1,
                handle,
            },
            name,
        }
    }

    #[test]
    fn records_of_every_kind() {
        let rename = [
            info(INFO_OLD_DFID_NAME, b"abcd", b"old\n\xff"),
            info(INFO_NEW_DFID_NAME, b"efgh", b"new"),
        ]
        .concat();
        let bytes = [
            event(libc::FAN_CREATE, &info(INFO_DFID_NAME, b"abcd", b"x")),
            event(FAN_RENAME, &rename),
            event(libc::FAN_Q_OVERFLOW, &[]),
        ]
        .concat();
        let expected = [
            Record::Name(name(b"abcd", b"x")),
            Record::Rename(name(b"abcd", b"old\n\xff"), name(b"efgh", b"new")),
            Record::Overflow,
        ];
        assert_eq!(parse(&bytes), expected);
        for length in 0..bytes.len() {
            parse(&bytes[..length]);
        }
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        let mut short = event(0, &[]);
        short[0] = 3;
        assert_eq!(parse(&short), []);
        let mut info = info(INFO_DFID_NAME, b"abcd", b"x");
        info[12] = 0xff;
        assert_eq!(parse(&event(0, &info)), []);
        info[2] = 0xff;
        assert_eq!(parse(&event(0, &info)), []);
    }
}
