//! The cage of a `pollux-twin` process: what a guest that has broken out of its machine finds.
//!
//! ```text
//! fork_warden:  warden ───── waits for the caged process, passes signals on, tells how it ended
//!                 └─ caged   in new user and PID namespaces (as process 1), and dies with its warden
//!                      │     opens files, connects and binds sockets: all that it will ever have
//!                    close   mount, network and IPC namespaces; an empty, read-only root; no capabilities; limits; the
//!                      │     allow-list of system calls, for every thread to come
//!                    confine_thread    a shorter list for the machine's own threads
//! ```
//! Promises: after [`Cell::close`] the process opens, connects to, executes, traces and forks nothing; it has its descriptors,
//! and those that a client of its control socket passes to it. A system call that is not on the list ends the process.
//! The user stays the one who started it, without any capability.
//!
//! What the kernel does not permit makes no cage, and is an error: but for [`Strictness::Partial`], which leaves out
//! namespaces that are not permitted and tells which. Limits, `no_new_privs` and the allow-list need nobody's permission. Limits of
//! the whole process by a control group ([`group`]) are there where the host has handed us one, and the log says if not.

mod group;
mod raw;
mod syscalls;
mod warden;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{chdir, pivot_root};
use serde::Deserialize;

pub use raw::receive;
pub use syscalls::{Role, confine_thread};
pub use warden::{Side, Warden, fork_warden};

/// Descriptors at once: two listeners, 32 clients with three each, disks, ports, and an event for each device.
const DESCRIPTORS_MAX: rlim_t = 512;
/// Beyond guest and translated code: stacks of some 60 threads, the heap's arenas (64 MiB of addresses each), programs.
const ADDRESSES_BEYOND_GUEST: rlim_t = 8 << 30;
/// Beyond the guest in a saved machine: its head, its devices, the screen; and what the console log may have.
const FILE_BEYOND_RAM: rlim_t = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CageError {
    #[error("cannot build the cage: no {part} ({why}); where the host cannot permit it, say cage = \"partial\" in the configuration")]
    NotPermitted { part: &'static str, why: Errno },
    #[error("cannot build the cage: {step}: {why}")]
    Failed { step: &'static str, why: std::io::Error },
    #[error("cannot build the cage: the allow-list of system calls: {0}")]
    Syscalls(String),
    #[error("whoever started this process is gone")]
    Orphaned,
}

/// What to do where the host does not permit all of the cage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strictness {
    /// Do not run.
    #[default]
    Whole,
    /// Run in what is left of it, and say so.
    Partial,
}

/// The parts of a cage that is being built, in the caged process. Only one thread may exist until it is closed.
pub struct Cell {
    strictness: Strictness,
    missing: Vec<String>,
    /// What the guest and its translated code take, in bytes.
    memory: u64,
    /// Closes when the warden ends.
    warden: OwnedFd,
}

impl Cell {
    /// Closes the cage: what is not open by now never will be, and no file can be written beyond `file_bytes` (or what a saved machine
    /// takes, if that is more). Tells what is missing of it, nothing when it is [`Strictness::Whole`].
    pub fn close(mut self, file_bytes: u64) -> Result<Vec<String>, CageError> {
        if self.separate("mount namespace", CloneFlags::CLONE_NEWNS)?
            && let Err((part, why)) = empty_root()
        {
            self.lacks(part, why)?;
        }
        self.separate("network namespace", CloneFlags::CLONE_NEWNET)?;
        self.separate("IPC namespace", CloneFlags::CLONE_NEWIPC)?;
        limit(self.memory, file_bytes)?;
        raw::drop_capabilities().map_err(|why| CageError::Failed { step: "drop capabilities", why })?;
        // Last of what changes the process's rights, which would undo it.
        die_with(&self.warden)?;
        prctl::set_no_new_privs().map_err(failed("renounce new privileges"))?;
        quiet_panics();
        if !raw::share_heaps() {
            return Err(CageError::Failed { step: "share heaps", why: std::io::ErrorKind::Unsupported.into() });
        }
        confine_thread(Role::Any)?;
        Ok(self.missing)
    }

    /// Leaves the host's namespace of this kind; false if that is not permitted and need not be.
    fn separate(&mut self, part: &'static str, flag: CloneFlags) -> Result<bool, CageError> {
        let Err(why) = unshare(flag) else { return Ok(true) };
        self.lacks(part, why)?;
        Ok(false)
    }

    fn lacks(&mut self, part: &'static str, why: Errno) -> Result<(), CageError> {
        if self.strictness == Strictness::Whole {
            return Err(CageError::NotPermitted { part, why });
        }
        self.missing.push(format!("no {part}: {why}"));
        Ok(())
    }
}

/// Puts an empty, read-only root in the place of the host's. An error names what cannot be had.
fn empty_root() -> Result<(), (&'static str, Errno)> {
    // Any folder will do to mount it on, and /proc is there: user namespaces are set up through it.
    const PLACE: &str = "/proc";
    let cannot = |part| move |error| (part, error);
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(cannot("mounts of its own"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("size=4k,nr_inodes=1,mode=0500");
    mount(Some("cage"), PLACE, Some("tmpfs"), flags, options).map_err(cannot("empty file system"))?;
    chdir(PLACE).map_err(cannot("empty file system"))?;
    // The old root then lies on top of the new one (pivot_root(2), NOTES), and goes.
    pivot_root(".", ".").map_err(cannot("empty root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(cannot("end of the host's root"))?;
    chdir("/").map_err(cannot("empty root"))
}

fn limit(memory: u64, file_bytes: u64) -> Result<(), CageError> {
    let addresses = memory.saturating_add(ADDRESSES_BEYOND_GUEST);
    let file = memory.saturating_add(FILE_BEYOND_RAM).max(file_bytes);
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
        (Resource::RLIMIT_FSIZE, file),
        (Resource::RLIMIT_AS, addresses),
    ] {
        setrlimit(resource, most, most).map_err(failed("set a limit"))?;
    }
    Ok(())
}

/// Has the kernel kill this process when the warden ends, even if it has ended already.
fn die_with(warden: &OwnedFd) -> Result<(), CageError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("die with the warden"))?;
    let mut ends = [PollFd::new(warden.as_fd(), PollFlags::empty())];
    poll(&mut ends, PollTimeout::ZERO).map_err(failed("look for the warden"))?;
    if ends[0].any() == Some(true) { Err(CageError::Orphaned) } else { Ok(()) }
}

/// Traces of a panic would be read from files, which ends the process; the panic alone does not, even if it cannot be told.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| drop(writeln!(std::io::stderr(), "{panic}"))));
}

fn failed(step: &'static str) -> impl Fn(Errno) -> CageError {
    move |error| CageError::Failed { step, why: error.into() }
}
