//! What the cage needs of the kernel and nobody offers as a safe call: the only unsafe code of it.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::ForkResult;

/// Forks. For a process of one thread, which is what [`super::fork_warden`] asks for.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: with one thread, nobody else can hold a lock that the child would wait for.
    unsafe { nix::unistd::fork() }
}

/// Gives up all capabilities, for good.
pub(super) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        process: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let (header, none) = (Header { version: VERSION_3, process: 0 }, [[0_u32; 3]; 2]);
    // SAFETY: of version 3, capset(2) reads the header and two triples of words; both live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the allocator share a few heaps among all threads. Without a number, glibc counts processors for it, in a file, as soon as
/// some threads have allocated; and each heap of a thread's own keeps memory for itself. A heap that shrinks makes it read another file
/// (malloc/arena.c, shrink_heap), so none does; what is large has mappings of its own, which go when it is freed.
pub(super) fn share_heaps() -> bool {
    const SETTINGS: [(libc::c_int, libc::c_int); 3] =
        [(libc::M_ARENA_MAX, 4), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX), (libc::M_MMAP_THRESHOLD, 128 << 10)];
    // SAFETY: no other thread allocates, for there is none yet.
    SETTINGS.iter().all(|(setting, value)| unsafe { libc::mallopt(*setting, *value) == 1 })
}

/// Reads from a Unix socket, and takes the last descriptor that came along (SCM_RIGHTS); of those with one message, the kernel drops what is
/// beyond two.
pub fn receive(from: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut passed = Vec::new();
    // Fails where there was more than there is space for; what was left out is closed already.
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
            passed.extend(descriptors.into_iter().map(|received| unsafe { OwnedFd::from_raw_fd(received) }));
        }
    }
    Ok((message.bytes, passed.pop()))
}
