//! One request of a guest's kernel to one reply: bytes in, bytes out, no input or output of its own.
//!
//! Stateless: a node id is an inode number and there are no handles, so that machines can be saved,
//! restored and moved with their file systems attached.

use nix::errno::Errno;

use super::wire::{self, InHeader, Malformed, Request, SetAttr, SetTime, Validity};
use crate::inode::{Ino, Name};
use crate::view::{Caller, ListedName, Stat, StatChange, TwinView};

/// Serves a view.
pub(super) struct Server {
    view: TwinView,
    /// What a kernel may believe of files that change only by its own doing.
    validity: Validity,
}

/// Whether there is something to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Reply,
    NoReply,
}

impl Server {
    /// `validity_s`: how long kernels may believe what they are told.
    pub(super) fn new(view: TwinView, validity_s: u64) -> Self {
        Server {
            view,
            validity: Validity(validity_s),
        }
    }

    /// Handles one whole message and leaves the reply in `out`. An error means that there is not even a
    /// header to reply to.
    pub(super) fn handle(&self, message: &[u8], out: &mut Vec<u8>) -> Result<Outcome, Malformed> {
        let (header, arguments) = wire::parse_header(message)?;
        wire::begin_reply(out, header.unique);
        let errno = match wire::parse_request(header.opcode, arguments) {
            Ok(Request::Forget { count }) => {
                self.view.forget(header.nodeid, count);
                return Ok(Outcome::NoReply);
            }
            Ok(Request::BatchForget { pairs }) => {
                pairs
                    .into_iter()
                    .for_each(|(ino, count)| self.view.forget(ino, count));
                return Ok(Outcome::NoReply);
            }
            Ok(Request::Interrupt) => return Ok(Outcome::NoReply),
            Ok(request) => self.answer(&header, request, out).err(),
            Err(error) => {
                tracing::warn!(%error, "malformed FUSE request");
                // A malformed FORGET is a FORGET still: nobody waits for an answer.
                if matches!(header.opcode, 2 | 42) {
                    return Ok(Outcome::NoReply);
                }
                Some(Errno::EINVAL)
            }
        };
        if let Some(errno) = errno {
            wire::fail_reply(out, errno as i32);
        }
        wire::end_reply(out);
        Ok(Outcome::Reply)
    }

    fn answer(
        &self,
        header: &InHeader,
        request: Request<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let view = &self.view;
        let ino = header.nodeid;
        let caller = Caller {
            uid: header.uid,
            gid: header.gid,
        };
        match request {
            Request::Lookup { name } => match view.lookup(ino, name) {
                Err(Errno::ENOENT) if self.validity.0 > 0 => {
                    wire::put_no_entry_out(out, self.validity)
                }
                found => self.put_entry(out, &found?),
            },
            Request::GetAttr => wire::put_attr_out(out, &view.stat(ino)?, self.validity),
            Request::SetAttr(change) => {
                wire::put_attr_out(
                    out,
                    &view.set_stat(ino, &stat_change(&change))?,
                    self.validity,
                );
            }
            Request::ReadLink => out.extend_from_slice(&view.read_link(ino)?),
            Request::SymLink { name, target } => {
                self.put_entry(out, &view.make_link(ino, name, target, caller)?);
            }
            Request::MkNod { name, mode, rdev } => {
                self.put_entry(out, &view.make(ino, name, mode, rdev, false, caller)?);
            }
            Request::MkDir { name, mode } => {
                let mode = libc::S_IFDIR | (mode & 0o7777);
                self.put_entry(out, &view.make(ino, name, mode, 0, false, caller)?);
            }
            Request::Unlink { name } => view.unlink(ino, name)?,
            Request::RmDir { name } => view.remove_directory(ino, name)?,
            Request::Rename {
                name,
                new_directory,
                new_name,
                flags,
            } => {
                view.rename((ino, name), (new_directory, new_name), flags)?;
            }
            Request::Link { old, new_name } => self.put_entry(out, &view.link(old, ino, new_name)?),
            Request::Open { flags } => {
                let writes = flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
                let truncates = flags as i32 & libc::O_TRUNC != 0;
                let keeps_cache = view.open(ino, writes, truncates)?;
                wire::put_open_out(
                    out,
                    if keeps_cache {
                        wire::FOPEN_KEEP_CACHE
                    } else {
                        0
                    },
                );
            }
            Request::Read { offset, size } => {
                let size = size.min(wire::IO_BYTES_MAX);
                view.read_into(ino, offset, size as usize, out)?;
            }
            Request::Write { offset, data } => {
                view.write(ino, offset, data)?;
                wire::put_write_out(out, data.len());
            }
            Request::StatFs => wire::put_statfs_out(out, &view.statistics()),
            Request::Complete => view.flush(ino)?,
            Request::Init {
                major,
                minor,
                max_readahead,
                flags,
            } => {
                if major < wire::MAJOR {
                    return Err(Errno::EPROTO);
                }
                view.guest_restarted();
                wire::put_init_out(out, minor, max_readahead, flags);
            }
            Request::OpenDir => {
                view.list(ino)?;
                wire::put_open_out(out, 0);
            }
            Request::ReadDir { offset, size, plus } => {
                let room = wire::OUT_HEADER_BYTES + size.min(wire::IO_BYTES_MAX) as usize;
                self.read_directory(ino, offset, room, plus, out)?;
            }
            Request::Create { name, mode } => {
                let mode = libc::S_IFREG | (mode & 0o7777);
                self.put_entry(out, &view.make(ino, name, mode, 0, true, caller)?);
                wire::put_open_out(out, wire::FOPEN_KEEP_CACHE);
            }
            Request::Allocate {
                offset,
                length,
                mode,
            } => {
                view.allocate(ino, mode as i32, offset, length)?;
            }
            Request::Nothing => {}
            Request::Unknown => return Err(Errno::ENOSYS),
            Request::Forget { .. } | Request::BatchForget { .. } | Request::Interrupt => {
                unreachable!("the caller has handled what is not answered")
            }
        }
        Ok(())
    }

    fn put_entry(&self, out: &mut Vec<u8>, stat: &Stat) {
        wire::put_entry_out(out, stat, self.validity);
    }

    /// The names from `offset` on. Offsets are stable: 1 and 2 come after `.` and `..`, and after a file
    /// comes its number plus 2, in the order of numbers. Files with the same number come together.
    fn read_directory(
        &self,
        directory: Ino,
        offset: u64,
        room: usize,
        plus: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let names = self.view.list(directory)?;
        let dots = [
            (0, &b"."[..], directory),
            (1, b"..", self.view.parent(directory)?),
        ];
        for (at, name, ino) in dots {
            let listed = ListedName {
                ino,
                format: libc::S_IFDIR,
                name: Name::from(name),
            };
            // READDIRPLUS counts no lookup for these; a node id of 0 says that nothing is told.
            let stat = self.view.stat(ino).map(|stat| Stat { ino: 0, ..stat });
            let plus = if plus { Some(stat?) } else { None };
            let plus = plus.as_ref().map(|stat| (stat, Validity(0)));
            if offset <= at && !wire::put_dirent(out, room, &listed, at + 1, plus) {
                return Ok(());
            }
        }
        let first = names.partition_point(|listed| listed.ino + 2 <= offset);
        let mut rest = &names[first..];
        while let Some(listed) = rest.first() {
            let same = rest
                .iter()
                .take_while(|other| other.ino == listed.ino)
                .count();
            let before = out.len();
            let (group, others) = rest.split_at(same);
            let mut told = 0;
            for listed in group {
                let stat = match plus {
                    true => match self.view.lookup(directory, &listed.name) {
                        Ok(stat) => Some(stat),
                        // It went meanwhile.
                        Err(_) => continue,
                    },
                    false => None,
                };
                told += u64::from(stat.is_some());
                let plus = stat.as_ref().map(|stat| (stat, self.validity));
                if !wire::put_dirent(out, room, listed, listed.ino + 2, plus) {
                    out.truncate(before);
                    self.view.forget(listed.ino, told);
                    return Ok(());
                }
            }
            rest = others;
        }
        Ok(())
    }
}

fn stat_change(change: &SetAttr) -> StatChange {
    let mtime_ns = change.mtime.as_ref().map(|time| match time {
        SetTime::Now => crate::view::now_ns(),
        SetTime::At {
            seconds,
            nanoseconds,
        } => seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(*nanoseconds)),
    });
    StatChange {
        mode: change.mode,
        uid: change.uid,
        gid: change.gid,
        size: change.size,
        mtime_ns,
        open: change.has_handle,
    }
}
