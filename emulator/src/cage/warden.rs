//! The warden: the process that stays outside of the cage, for the caged one is process 1 of its PID namespace and must be
//! somebody's child. It holds no descriptor and hears no guest; it only waits.

use std::fs;
use std::io::{self, Write};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getegid, geteuid, getppid, pipe2};

use super::group::Group;
use super::{CageError, Cell, Strictness, failed, raw};

/// Who the caged process takes itself for: nobody.
const NOBODY: u32 = 65534;
/// A shell's way to tell which signal ended a program.
const ENDED_BY_SIGNAL: i32 = 128;

/// Which of the two processes this is.
pub enum Side {
    Warden(Warden),
    Caged(Cell),
}

/// The outer process.
pub struct Warden {
    caged: Pid,
    signals: SigSet,
    /// What the caged process sees close.
    _alive: std::os::fd::OwnedFd,
    /// Where that process is, and only it.
    _group: Option<Group>,
}

/// Forks, into new user and PID namespaces and, where there is one, a control group for a guest of `memory` bytes, translated code
/// included. Must be called before any other thread starts. SIGTERM and SIGINT are blocked on both sides.
pub fn fork_warden(strictness: Strictness, memory: u64) -> Result<Side, CageError> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block().map_err(failed("block signals"))?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
    let group = Group::make(memory);
    let group = group.inspect_err(|why| tracing::warn!("no control group limits what a guest that breaks out may take: {why}")).ok();
    let enter = |why| CageError::Failed { step: "enter its control group", why };
    let door = group.as_ref().map(Group::door).transpose().map_err(enter)?;
    let mut cell = Cell { strictness, missing: Vec::new(), memory, warden: ours };
    keeping_parent(|| {
        match become_nobody() {
            Ok(()) => {}
            Err(CageError::NotPermitted { part, why }) => cell.lacks(part, why)?,
            Err(error) => return Err(error),
        }
        cell.separate("PID namespace", CloneFlags::CLONE_NEWPID).map(drop)
    })?;
    match raw::fork().map_err(failed("fork"))? {
        ForkResult::Parent { child } => Ok(Side::Warden(Warden { caged: child, signals, _alive: theirs, _group: group })),
        ForkResult::Child => {
            // The warden's to remove.
            std::mem::forget(group);
            door.map_or(Ok(()), |mut door| door.write_all(b"0")).map_err(enter)?;
            Ok(Side::Caged(cell))
        }
    }
}

/// Does what takes away the wish of our own parent's that we die with it, and restores it.
fn keeping_parent(change: impl FnOnce() -> Result<(), CageError>) -> Result<(), CageError> {
    let (parent, wish) = (getppid(), prctl::get_pdeathsig().map_err(failed("look for the parent's wish"))?);
    change()?;
    if wish.is_some() {
        prctl::set_pdeathsig(wish).map_err(failed("keep the parent's wish"))?;
        if getppid() != parent {
            return Err(CageError::Orphaned);
        }
    }
    Ok(())
}

/// Enters a user namespace in which this process is nobody, and there is nobody else.
fn become_nobody() -> Result<(), CageError> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|why| CageError::NotPermitted { part: "user namespace", why })?;
    let write = |path: &str, text: String| match fs::write(path, text) {
        // Where a security module permits the namespace but not its use.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(CageError::NotPermitted { part: "user namespace", why: Errno::EPERM })
        }
        result => result.map_err(|why| CageError::Failed { step: "name the user", why }),
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{NOBODY} {user} 1"))?;
    write("/proc/self/gid_map", format!("{NOBODY} {group} 1"))
}

impl Warden {
    /// Waits for the caged process, to which it passes on SIGTERM and SIGINT; says in the log if it ended by a signal.
    /// Returns the exit code to end with: the caged process's own, or 128 and the signal's number.
    pub fn watch(self) -> i32 {
        loop {
            match self.signals.wait() {
                Ok(Signal::SIGCHLD) => {
                    if let Some(code) = self.ended() {
                        return code;
                    }
                }
                // Fails if it has just ended, of which we hear next.
                Ok(_) => drop(kill(self.caged, Signal::SIGTERM)),
                Err(error) => tracing::debug!(%error, "waiting for signals"),
            }
        }
    }

    fn ended(&self) -> Option<i32> {
        match waitpid(self.caged, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => {
                tracing::error!("the cage has ended the twin: it made a system call that a twin never makes (SIGSYS)");
                Some(ENDED_BY_SIGNAL + Signal::SIGSYS as i32)
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                tracing::error!("the twin was ended by {signal}");
                Some(ENDED_BY_SIGNAL + signal as i32)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::error!(%error, "cannot wait for the twin");
                Some(1)
            }
        }
    }
}
