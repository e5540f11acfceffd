//! The allow-lists of system calls (seccomp(2)), one for each kind of thread. A thread begins with the list of the one that
//! started it and can only shorten it. What is not on the list ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, apply_filter,
};

use super::CageError;

/// Kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All: what the others may do, and what it takes to start them and to save a machine.
    Any,
    /// Serves those who watch the screen: memory that holds code is not for it.
    Watcher,
    /// The vCPU's, once it is made. It starts the threads of devices when the guest's drivers are ready, and translates into the
    /// memory that it has.
    Vcpu,
    /// A device's outside half, or the timer.
    Device,
}

/// What any program does: memory, locks, signals to itself, time, its end.
const PLAIN: &[i64] = &[
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_close,
];

/// Talking through descriptors, and waiting for them.
const TALK: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// A disk's file.
const DISK: &[i64] = &[
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fdatasync,
];

/// Clients that come, and what they pass; the events of new devices; files' lengths.
const SERVE: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_rt_sigtimedwait,
    // Under an empty root they tell nothing but of what is open.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
];

/// Starting a thread, and its shorter list; there is no way to lengthen one.
const START: &[i64] = &[libc::SYS_clone3, libc::SYS_sched_getaffinity, libc::SYS_eventfd2, libc::SYS_seccomp];

/// Restricts the calling thread, and the threads that it will start, for good.
pub fn confine_thread(role: Role) -> Result<(), CageError> {
    let list = filter(role).map_err(|error| CageError::Syscalls(error.to_string()))?;
    let applied = apply_filter(&list).and_then(|()| match role {
        // The C library then uses clone, whose flags can be looked at.
        Role::Any => apply_filter(&without_clone3()?),
        _ => Ok(()),
    });
    applied.map_err(|error| CageError::Syscalls(error.to_string()))
}

fn filter(role: Role) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PLAIN.iter().chain(TALK).map(|call| (*call, Vec::new())).collect();
    // Signals to one's own threads.
    rules.insert(libc::SYS_tgkill, vec![is(0, u64::from(std::process::id()))?]);
    let mut allow = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    match role {
        Role::Any | Role::Watcher => {
            allow(DISK);
            allow(SERVE);
            rules.insert(libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?, of_kvm()?]);
        }
        Role::Vcpu => {
            allow(DISK);
            rules.insert(libc::SYS_ioctl, vec![of_kvm()?]);
        }
        Role::Device => {}
    }
    if role != Role::Device {
        rules.extend(START.iter().map(|call| (*call, Vec::new())));
        // Threads of this process, which are no new process.
        rules.insert(libc::SYS_clone, vec![with_bits(0, THREAD, THREAD)?]);
        // Copies of descriptors; names of threads.
        rules.insert(libc::SYS_fcntl, vec![is(1, libc::F_DUPFD_CLOEXEC as u64)?, is(1, libc::F_GETFD as u64)?]);
        rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u64)?, is(0, libc::PR_SET_NO_NEW_PRIVS as u64)?]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        // Translated code is memory that can be executed; its buffer is made once.
        let free = if role == Role::Any { Vec::new() } else { vec![with_bits(2, libc::PROT_EXEC as u64, 0)?] };
        rules.insert(call, free);
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch()?)?.try_into()
}

/// `clone` with all of these is pthread_create; none of them is in a fork.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch()?)?.try_into()
}

/// The argument at `index` is `value`, in its lower half: these calls take an int there.
fn is(index: u8, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![Condition::new(index, Len::Dword, Op::Eq, value)?])
}

/// An ioctl of KVM's (linux/kvm.h, `KVMIO`), to which only a descriptor of it listens: opened before the cage closes, if at all.
fn of_kvm() -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![Condition::new(1, Len::Dword, Op::MaskedEq(0xff00), 0xae00)?])
}

/// Of the argument at `index`, the bits of `mask` are as in `value`.
fn with_bits(index: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![Condition::new(index, Len::Qword, Op::MaskedEq(mask), value)?])
}

fn arch() -> Result<seccompiler::TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}
