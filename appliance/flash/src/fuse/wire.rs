//! The FUSE protocol's messages as typed values: numbers and layouts of `linux/fuse.h`, version 7.31.
//!
//! A request is parsed once and is right from then on: its lengths fit, its names are names of bytes
//! without NUL. What cannot be parsed is an error for the sender, never a panic.

use bytes::BufMut;

use crate::view::{ListedName, Stat, Statistics};

/// Version of the protocol spoken. Kernels speak any older minor version.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 31;
pub(super) const IN_HEADER_BYTES: usize = 40;
pub(super) const OUT_HEADER_BYTES: usize = 16;
/// Most bytes read or written by one request.
pub(super) const IO_BYTES_MAX: u32 = 1 << 20;
/// Largest message either way: the most data, and room for headers.
pub(super) const MESSAGE_BYTES_MAX: usize = (1 << 20) + 8192;

/// The message is not as the protocol has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request with opcode {opcode} is cut short or has a bad name")]
pub(super) struct Malformed {
    pub(super) opcode: u32,
}

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy)]
pub(super) struct InHeader {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A request's arguments, as far as they matter here.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget {
        pairs: Vec<(u64, u64)>,
    },
    GetAttr,
    SetAttr(SetAttr),
    ReadLink,
    SymLink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
    },
    MkDir {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_directory: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        old: u64,
        new_name: &'a [u8],
    },
    Open {
        flags: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    StatFs,
    /// RELEASE, FLUSH, FSYNC: what was written is complete.
    Complete,
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    OpenDir,
    ReadDir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    Create {
        name: &'a [u8],
        mode: u32,
    },
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    /// RELEASEDIR, FSYNCDIR, SYNCFS, DESTROY: nothing to do, but to be answered.
    Nothing,
    /// INTERRUPT: no request here takes long enough to be interrupted. Not answered.
    Interrupt,
    /// Whatever else: kernels take ENOSYS as "do without".
    Unknown,
}

/// `fuse_setattr_in`, decoded by its `valid` bits.
#[derive(Debug, Default)]
pub(super) struct SetAttr {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<SetTime>,
    pub(super) has_handle: bool,
}

#[derive(Debug)]
pub(super) enum SetTime {
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

struct Arguments<'a> {
    rest: &'a [u8],
    opcode: u32,
}

impl<'a> Arguments<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let split = self.rest.split_at_checked(length);
        let (bytes, rest) = split.ok_or(Malformed {
            opcode: self.opcode,
        })?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let opcode = self.opcode;
        self.bytes(N)?.try_into().map_err(|_| Malformed { opcode })
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.bytes(length).map(|_| ())
    }

    /// Bytes up to a NUL.
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or(Malformed {
            opcode: self.opcode,
        })?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }
}

/// Splits a whole message into header and arguments.
pub(super) fn parse_header(message: &[u8]) -> Result<(InHeader, &[u8]), Malformed> {
    let mut header = Arguments {
        rest: message,
        opcode: 0,
    };
    header.skip(4)?;
    header.opcode = header.u32()?;
    let (unique, nodeid) = (header.u64()?, header.u64()?);
    let (uid, gid) = (header.u32()?, header.u32()?);
    header.skip(8)?;
    Ok((
        InHeader {
            opcode: header.opcode,
            unique,
            nodeid,
            uid,
            gid,
        },
        header.rest,
    ))
}

/// Parses the arguments of a request.
pub(super) fn parse_request(opcode: u32, arguments: &[u8]) -> Result<Request<'_>, Malformed> {
    let mut arguments = Arguments {
        rest: arguments,
        opcode,
    };
    let a = &mut arguments;
    Ok(match opcode {
        1 => Request::Lookup { name: a.name()? },
        2 => Request::Forget { count: a.u64()? },
        3 => Request::GetAttr,
        4 => Request::SetAttr(parse_set_attr(a)?),
        5 => Request::ReadLink,
        6 => Request::SymLink {
            name: a.name()?,
            target: a.name()?,
        },
        8 => {
            let (mode, rdev) = (a.u32()?, a.u32()?);
            a.skip(8)?;
            Request::MkNod {
                name: a.name()?,
                mode,
                rdev,
            }
        }
        9 => {
            let mode = a.u32()?;
            a.skip(4)?;
            Request::MkDir {
                name: a.name()?,
                mode,
            }
        }
        10 => Request::Unlink { name: a.name()? },
        11 => Request::RmDir { name: a.name()? },
        12 => {
            let new_directory = a.u64()?;
            Request::Rename {
                name: a.name()?,
                new_directory,
                new_name: a.name()?,
                flags: 0,
            }
        }
        13 => Request::Link {
            old: a.u64()?,
            new_name: a.name()?,
        },
        14 => Request::Open { flags: a.u32()? },
        15 => {
            a.skip(8)?;
            Request::Read {
                offset: a.u64()?,
                size: a.u32()?,
            }
        }
        16 => {
            a.skip(8)?;
            let (offset, size) = (a.u64()?, a.u32()?);
            a.skip(20)?;
            Request::Write {
                offset,
                data: a.bytes(size as usize)?,
            }
        }
        17 => Request::StatFs,
        18 | 20 | 25 => Request::Complete,
        26 => Request::Init {
            major: a.u32()?,
            minor: a.u32()?,
            max_readahead: a.u32()?,
            flags: a.u32()?,
        },
        27 => Request::OpenDir,
        28 | 44 => {
            a.skip(8)?;
            Request::ReadDir {
                offset: a.u64()?,
                size: a.u32()?,
                plus: opcode == 44,
            }
        }
        29 | 30 | 38 | 50 => Request::Nothing,
        35 => {
            a.skip(4)?;
            let mode = a.u32()?;
            a.skip(8)?;
            Request::Create {
                name: a.name()?,
                mode,
            }
        }
        36 => Request::Interrupt,
        42 => {
            let count = a.u32()? as usize;
            a.skip(4)?;
            let pairs = a.bytes(count.saturating_mul(16))?.chunks_exact(16);
            let pair = |pair: &[u8]| {
                let mut pair = Arguments { rest: pair, opcode };
                Ok((pair.u64()?, pair.u64()?))
            };
            Request::BatchForget {
                pairs: pairs.map(pair).collect::<Result<_, _>>()?,
            }
        }
        43 => {
            a.skip(8)?;
            Request::Allocate {
                offset: a.u64()?,
                length: a.u64()?,
                mode: a.u32()?,
            }
        }
        45 => {
            let (new_directory, flags) = (a.u64()?, a.u32()?);
            a.skip(4)?;
            Request::Rename {
                name: a.name()?,
                new_directory,
                new_name: a.name()?,
                flags,
            }
        }
        _ => Request::Unknown,
    })
}

fn parse_set_attr(a: &mut Arguments<'_>) -> Result<SetAttr, Malformed> {
    let valid = a.u32()?;
    a.skip(12)?;
    let size = a.u64()?;
    a.skip(16)?;
    let mtime_seconds = a.u64()? as i64;
    a.skip(12)?;
    let nanoseconds = a.u32()?;
    a.skip(4)?;
    let mode = a.u32()?;
    a.skip(4)?;
    let (uid, gid) = (a.u32()?, a.u32()?);
    let has = |bit: u32| valid & (1 << bit) != 0;
    let mtime = match (has(5), has(8)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At {
            seconds: mtime_seconds,
            nanoseconds,
        }),
        (false, false) => None,
    };
    Ok(SetAttr {
        mode: has(0).then_some(mode),
        uid: has(1).then_some(uid),
        gid: has(2).then_some(gid),
        size: has(3).then_some(size),
        mtime,
        has_handle: has(6),
    })
}

/// How long a kernel may believe what it is told, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity(pub(super) u64);

/// Begins a reply; [`end_reply`] completes it.
pub(super) fn begin_reply(out: &mut Vec<u8>, unique: u64) {
    out.clear();
    out.put_u32_le(0);
    out.put_i32_le(0);
    out.put_u64_le(unique);
}

/// Fills in the length.
pub(super) fn end_reply(out: &mut [u8]) {
    let length = u32::try_from(out.len()).expect("replies are at most MESSAGE_BYTES_MAX");
    out[..4].copy_from_slice(&length.to_le_bytes());
}

/// Makes the reply an error.
pub(super) fn fail_reply(out: &mut Vec<u8>, errno: i32) {
    out.truncate(OUT_HEADER_BYTES);
    out[4..8].copy_from_slice(&(-errno).to_le_bytes());
}

fn split_time(time_ns: i64) -> (u64, u32) {
    const SECOND_NS: i64 = 1_000_000_000;
    (
        time_ns.div_euclid(SECOND_NS) as u64,
        time_ns.rem_euclid(SECOND_NS) as u32,
    )
}

/// `fuse_attr`.
fn put_attr(out: &mut Vec<u8>, stat: &Stat) {
    let (mtime, mtime_ns) = split_time(stat.mtime_ns);
    let (ctime, ctime_ns) = split_time(stat.ctime_ns);
    out.put_u64_le(stat.ino);
    out.put_u64_le(stat.size);
    out.put_u64_le(stat.size.div_ceil(512));
    // Reading is not recorded: the access time is the modification time.
    [mtime, mtime, ctime]
        .into_iter()
        .for_each(|seconds| out.put_u64_le(seconds));
    [mtime_ns, mtime_ns, ctime_ns]
        .into_iter()
        .for_each(|nanoseconds| out.put_u32_le(nanoseconds));
    [
        stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev, 4096, 0,
    ]
    .into_iter()
    .for_each(|n| out.put_u32_le(n));
}

/// `fuse_attr_out`.
pub(super) fn put_attr_out(out: &mut Vec<u8>, stat: &Stat, validity: Validity) {
    out.put_u64_le(validity.0);
    out.put_u64_le(0);
    put_attr(out, stat);
}

/// `fuse_entry_out`. Numbers are never reused, so the generation is always 0.
pub(super) fn put_entry_out(out: &mut Vec<u8>, stat: &Stat, validity: Validity) {
    out.put_u64_le(stat.ino);
    out.put_u64_le(0);
    out.put_u64_le(validity.0);
    out.put_u64_le(validity.0);
    out.put_u64_le(0);
    put_attr(out, stat);
}

/// `fuse_entry_out` of a name that does not exist, to be remembered as such.
pub(super) fn put_no_entry_out(out: &mut Vec<u8>, validity: Validity) {
    out.put_u64_le(0);
    out.put_u64_le(0);
    out.put_u64_le(validity.0);
    out.put_bytes(0, 16 + 88);
}

/// Cached pages of the file stay.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// `fuse_open_out`: no handle, only flags.
pub(super) fn put_open_out(out: &mut Vec<u8>, flags: u32) {
    out.put_u64_le(0);
    out.put_u32_le(flags);
    out.put_u32_le(0);
}

/// `fuse_write_out`.
pub(super) fn put_write_out(out: &mut Vec<u8>, size: usize) {
    out.put_u32_le(size as u32);
    out.put_u32_le(0);
}

/// `fuse_statfs_out`.
pub(super) fn put_statfs_out(out: &mut Vec<u8>, statistics: &Statistics) {
    const BLOCK_BYTES: u64 = 4096;
    let Statistics {
        bytes,
        bytes_free,
        files,
        files_free,
    } = *statistics;
    for number in [
        bytes / BLOCK_BYTES,
        bytes_free / BLOCK_BYTES,
        bytes_free / BLOCK_BYTES,
        files,
        files_free,
    ] {
        out.put_u64_le(number);
    }
    [BLOCK_BYTES as u32, 255, BLOCK_BYTES as u32, 0]
        .into_iter()
        .for_each(|number| out.put_u32_le(number));
    out.put_bytes(0, 24);
}

const ASYNC_READ: u32 = 1 << 0;
const ATOMIC_O_TRUNC: u32 = 1 << 3;
const BIG_WRITES: u32 = 1 << 5;
const AUTO_INVAL_DATA: u32 = 1 << 12;
const PARALLEL_DIROPS: u32 = 1 << 18;
const MAX_PAGES: u32 = 1 << 22;

/// `fuse_init_out`. Asks for no writeback cache, no READDIRPLUS (what it tells would have to be asked
/// again at once), no locks (the guest keeps its own).
pub(super) fn put_init_out(out: &mut Vec<u8>, minor: u32, max_readahead: u32, flags: u32) {
    const WANTED: u32 =
        ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | AUTO_INVAL_DATA | PARALLEL_DIROPS | MAX_PAGES;
    out.put_u32_le(MAJOR);
    out.put_u32_le(minor.min(MINOR));
    out.put_u32_le(max_readahead);
    out.put_u32_le(flags & WANTED);
    // max_background, congestion_threshold
    out.put_u16_le(64);
    out.put_u16_le(48);
    out.put_u32_le(IO_BYTES_MAX);
    // time_gran: nanoseconds
    out.put_u32_le(1);
    out.put_u16_le((IO_BYTES_MAX / 4096) as u16);
    out.put_bytes(0, 2 + 32);
}

/// `fuse_dirent`, with `fuse_entry_out` before it in READDIRPLUS. Returns whether it fitted.
pub(super) fn put_dirent(
    out: &mut Vec<u8>,
    room: usize,
    listed: &ListedName,
    next_offset: u64,
    plus: Option<(&Stat, Validity)>,
) -> bool {
    let entry_bytes = if plus.is_some() { 128 } else { 0 };
    let bytes = entry_bytes + (24 + listed.name.len()).next_multiple_of(8);
    if out.len() + bytes > room {
        return false;
    }
    let end = out.len() + bytes;
    if let Some((stat, validity)) = plus {
        put_entry_out(out, stat, validity);
    }
    out.put_u64_le(listed.ino);
    out.put_u64_le(next_offset);
    out.put_u32_le(listed.name.len() as u32);
    out.put_u32_le(listed.format >> 12);
    out.put_slice(&listed.name);
    out.resize(end, 0);
    true
}
