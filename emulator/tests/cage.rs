//! The cage from inside: each row of [`TRIES`] and [`FORBIDDEN`] is done by a process of its own in a real cage, as a guest would that
//! has broken out of its machine. Has its own `main`, because a process that enters a cage has one thread. Arguments choose rows by part of their names.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Output};

use emulator::cage::{self, Role, Side, Strictness, confine_thread};
use nix::sys::signal::Signal;
use vm_memory::MmapRegion;

/// Present where this program is to enter a cage and do what it says.
const DO: &str = "POLLUX_CAGE_TEST_DO";
/// How strict that cage is.
const PARTIAL: &str = "POLLUX_CAGE_TEST_PARTIAL";
const MEMORY: u64 = 64 << 20;
const FILE_BYTES: u64 = 1 << 30;

/// What must come of it.
enum Outcome {
    /// The kernel ends the process, and the warden says why.
    Killed,
    /// It goes on, and says this.
    Says(&'static str),
}
use Outcome::{Killed, Says};

struct Try {
    name: &'static str,
    act: fn(&mut Given) -> String,
    outcome: Outcome,
}

/// What is open when the cage is closed.
struct Given {
    file: File,
    pair: (UnixStream, UnixStream),
}

const TRIES: &[Try] = &[
    // What a twin does.
    Try { name: "works_with_what_it_has", act: works, outcome: Says("works") },
    Try { name: "panics_and_goes_on", act: panics, outcome: Says("caught") },
    // What no thread may, of calls that it needs.
    Try { name: "signals_another_process", act: |_| bare(libc::SYS_tgkill, [2, 2, 9]), outcome: Killed },
    Try { name: "forks_by_clone", act: |_| bare(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0]), outcome: Killed },
    Try { name: "makes_a_namespace_by_clone", act: |_| bare(libc::SYS_clone, [i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0]), outcome: Killed },
    Try { name: "forks_by_clone3", act: |_| bare(libc::SYS_clone3, [0, 0, 0]), outcome: Says("Function not implemented") },
    Try { name: "injects_input_to_a_terminal", act: |_| bare(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0]), outcome: Killed },
    Try { name: "sets_an_owner_of_a_descriptor", act: |_| bare(libc::SYS_fcntl, [0, i64::from(libc::F_SETOWN), 1]), outcome: Killed },
    Try { name: "may_be_traced", act: |_| bare(libc::SYS_prctl, [i64::from(libc::PR_SET_DUMPABLE), 1, 0]), outcome: Killed },
    Try { name: "outlives_its_warden", act: |_| bare(libc::SYS_prctl, [i64::from(libc::PR_SET_PDEATHSIG), 0, 0]), outcome: Killed },
    // What some threads may not.
    Try { name: "device_starts_a_thread", act: |_| as_role(Role::Device, || said(std::thread::Builder::new().spawn(|| {}))), outcome: Killed },
    Try { name: "vcpu_starts_a_program", act: |_| as_role(Role::Vcpu, || said(Command::new("/bin/true").spawn())), outcome: Killed },
    Try { name: "vcpu_takes_a_descriptor", act: |given| as_role(Role::Vcpu, || said(cage::receive(&given.pair.0, &mut [0]))), outcome: Killed },
    Try { name: "vcpu_maps_more_code", act: |_| as_role(Role::Vcpu, || map(1 << 20, libc::PROT_EXEC)), outcome: Killed },
    Try { name: "watcher_maps_code", act: |_| as_role(Role::Watcher, || map(1 << 20, libc::PROT_EXEC)), outcome: Killed },
    Try { name: "device_writes_to_a_disk", act: |given| as_role(Role::Device, || said(given.file.set_len(1))), outcome: Killed },
    Try { name: "device_gets_the_first_list_again", act: |_| as_role(Role::Device, || said(confine_thread(Role::Any))), outcome: Killed },
    // What is limited.
    Try { name: "opens_descriptors_without_end", act: descriptors, outcome: Says("Too many open files") },
    Try { name: "takes_memory_without_end", act: |_| map(64 << 30, libc::PROT_READ), outcome: Says("Cannot allocate memory") },
    Try { name: "fills_a_file", act: |given| said(given.file.set_len(1 << 40)), outcome: Says("File too large") },
];

/// What no thread may call, whatever the arguments.
const FORBIDDEN: &[(&str, i64)] = &[
    ("openat", libc::SYS_openat), ("openat2", libc::SYS_openat2), ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("getdents64", libc::SYS_getdents64), ("readlinkat", libc::SYS_readlinkat), ("unlinkat", libc::SYS_unlinkat),
    ("renameat2", libc::SYS_renameat2), ("linkat", libc::SYS_linkat), ("mkdirat", libc::SYS_mkdirat), ("mknodat", libc::SYS_mknodat),
    ("chdir", libc::SYS_chdir), ("fchdir", libc::SYS_fchdir), ("truncate", libc::SYS_truncate), ("fchmod", libc::SYS_fchmod),
    ("fchown", libc::SYS_fchown), ("inotify_init1", libc::SYS_inotify_init1), ("fanotify_init", libc::SYS_fanotify_init),
    ("socket", libc::SYS_socket), ("socketpair", libc::SYS_socketpair), ("connect", libc::SYS_connect), ("bind", libc::SYS_bind),
    ("listen", libc::SYS_listen), ("sendmsg", libc::SYS_sendmsg), ("sendmmsg", libc::SYS_sendmmsg), ("pipe2", libc::SYS_pipe2),
    ("execve", libc::SYS_execve), ("execveat", libc::SYS_execveat), ("memfd_create", libc::SYS_memfd_create),
    ("memfd_secret", libc::SYS_memfd_secret), ("wait4", libc::SYS_wait4), ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv), ("process_vm_writev", libc::SYS_process_vm_writev), ("kcmp", libc::SYS_kcmp),
    ("pidfd_open", libc::SYS_pidfd_open), ("pidfd_getfd", libc::SYS_pidfd_getfd), ("kill", libc::SYS_kill), ("tkill", libc::SYS_tkill),
    ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo), ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("prlimit64", libc::SYS_prlimit64), ("setrlimit", libc::SYS_setrlimit), ("sched_setaffinity", libc::SYS_sched_setaffinity),
    ("sched_setscheduler", libc::SYS_sched_setscheduler), ("setpriority", libc::SYS_setpriority), ("mlockall", libc::SYS_mlockall),
    ("setuid", libc::SYS_setuid), ("setresuid", libc::SYS_setresuid), ("setresgid", libc::SYS_setresgid),
    ("setgroups", libc::SYS_setgroups), ("capset", libc::SYS_capset), ("personality", libc::SYS_personality),
    ("unshare", libc::SYS_unshare), ("setns", libc::SYS_setns), ("chroot", libc::SYS_chroot), ("pivot_root", libc::SYS_pivot_root),
    ("mount", libc::SYS_mount), ("umount2", libc::SYS_umount2), ("fsopen", libc::SYS_fsopen), ("open_tree", libc::SYS_open_tree),
    ("move_mount", libc::SYS_move_mount), ("mount_setattr", libc::SYS_mount_setattr), ("bpf", libc::SYS_bpf),
    ("io_uring_setup", libc::SYS_io_uring_setup), ("perf_event_open", libc::SYS_perf_event_open),
    ("userfaultfd", libc::SYS_userfaultfd), ("keyctl", libc::SYS_keyctl), ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key), ("io_setup", libc::SYS_io_setup), ("shmget", libc::SYS_shmget),
    ("msgget", libc::SYS_msgget), ("semget", libc::SYS_semget), ("mq_open", libc::SYS_mq_open), ("syslog", libc::SYS_syslog),
    ("init_module", libc::SYS_init_module), ("finit_module", libc::SYS_finit_module), ("kexec_load", libc::SYS_kexec_load),
    ("reboot", libc::SYS_reboot), ("swapon", libc::SYS_swapon), ("acct", libc::SYS_acct), ("clock_settime", libc::SYS_clock_settime),
    #[cfg(target_arch = "x86_64")]
    ("open", libc::SYS_open),
    #[cfg(target_arch = "x86_64")]
    ("creat", libc::SYS_creat),
    #[cfg(target_arch = "x86_64")]
    ("fork", libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    ("vfork", libc::SYS_vfork),
    #[cfg(target_arch = "x86_64")]
    ("modify_ldt", libc::SYS_modify_ldt),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    // The same numbers by another door (x32).
    #[cfg(target_arch = "x86_64")]
    ("read by x32", 0x4000_0000),
    ("of later kernels", 1_000_000),
];

fn said<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "done".into())
}

fn works(given: &mut Given) -> String {
    let (mut here, mut there) = (given.pair.0.try_clone().unwrap(), given.pair.1.try_clone().unwrap());
    let echo = std::thread::spawn(move || {
        let mut word = [0; 5];
        there.read_exact(&mut word).unwrap();
        there.write_all(&word).unwrap();
    });
    here.write_all(b"works").unwrap();
    let mut word = [0; 5];
    here.read_exact(&mut word).unwrap();
    echo.join().unwrap();
    given.file.write_all(&word).unwrap();
    given.file.sync_all().unwrap();
    String::from_utf8_lossy(&word).into_owned()
}

fn panics(_: &mut Given) -> String {
    std::thread::spawn(|| panic!("on purpose")).join().map_or("caught".into(), |()| "no panic".into())
}

/// Makes a system call as it is, past the C library. Its errors are said.
fn bare(number: i64, arguments: [i64; 3]) -> String {
    let [first, second, third] = arguments;
    // SAFETY: what is called here is refused or ends the process; where it would not be, no argument is an address of ours.
    let result = unsafe { libc::syscall(number, first, second, third) };
    if result < 0 { std::io::Error::last_os_error().to_string() } else { "done".into() }
}

fn as_role(role: Role, act: impl FnOnce() -> String) -> String {
    confine_thread(role).unwrap();
    act()
}

fn map(bytes: usize, protection: i32) -> String {
    said(MmapRegion::<()>::build(None, bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS))
}

fn descriptors(given: &mut Given) -> String {
    let mut files = Vec::new();
    loop {
        match given.file.try_clone() {
            Ok(file) if files.len() < 10_000 => files.push(file),
            other => return said(other),
        }
    }
}

/// In a process of its own: enters a cage and does what it is told.
fn inside(name: &str) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let strictness = if std::env::var_os(PARTIAL).is_some() { Strictness::Partial } else { Strictness::Whole };
    let cell = match cage::fork_warden(strictness, MEMORY) {
        Ok(Side::Warden(warden)) => return ExitCode::from(u8::try_from(warden.watch()).unwrap()),
        Ok(Side::Caged(cell)) => cell,
        Err(error) => return refuse(&error),
    };
    let mut given = Given { file: tempfile::tempfile().unwrap(), pair: UnixStream::pair().unwrap() };
    let missing = match cell.close(FILE_BYTES) {
        Ok(missing) => missing,
        Err(error) => return refuse(&error),
    };
    println!("missing: {}", missing.join("; "));
    let row = TRIES.iter().find(|row| row.name == name);
    let forbidden = FORBIDDEN.iter().find(|(call, _)| *call == name);
    println!("{}", match (row, forbidden) {
        (Some(row), _) => (row.act)(&mut given),
        (None, Some((_, number))) => bare(*number, [0; 3]),
        (None, None) => panic!("no row {name}"),
    });
    ExitCode::SUCCESS
}

fn refuse(error: &cage::CageError) -> ExitCode {
    println!("{error}");
    ExitCode::FAILURE
}

fn enter(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(DO, name);
    command
}

fn check(name: &str, outcome: &Outcome) -> Result<(), String> {
    let output = enter(name).output().unwrap();
    let (printed, log) = texts(&output);
    let as_wanted = match *outcome {
        Killed => {
            let sigsys = 128 + Signal::SIGSYS as i32;
            output.status.code() == Some(sigsys) && log.contains("the cage has ended the twin") && printed == "missing: \n"
        }
        Says(text) => output.status.success() && printed.starts_with("missing: \n") && printed.contains(text),
    };
    if as_wanted { Ok(()) } else { Err(format!("{}: it printed {printed:?} and said {log:?}", output.status)) }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A host that permits no user or network namespaces: there is no whole cage, and a partial one says what it lacks.
fn a_host_that_permits_less() -> Result<(), String> {
    const LESS: &str = "echo 0 >/proc/sys/user/max_user_namespaces && echo 0 >/proc/sys/user/max_net_namespaces && exec \"$0\"";
    let run = |partial: bool| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", LESS]).arg(std::env::current_exe().unwrap()).env(DO, "works_with_what_it_has");
        if partial {
            command.env(PARTIAL, "1");
        }
        command.output().unwrap()
    };
    let whole = run(false);
    let (printed, log) = texts(&whole);
    if whole.status.success() || !printed.contains("no user namespace") || !printed.contains("cage = \"partial\"") {
        return Err(format!("whole: it printed {printed:?} and said {log:?}"));
    }
    let partial = run(true);
    let (printed, log) = texts(&partial);
    let first = printed.lines().next().unwrap_or_default();
    let lacks = first.contains("no user namespace") && first.contains("no network namespace") && !first.contains("PID");
    if !partial.status.success() || !lacks || !printed.contains("works") {
        return Err(format!("partial: it printed {printed:?} and said {log:?}"));
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(DO) {
        return inside(&name);
    }
    if std::env::var_os("POLLUX_CAGE").is_some_and(|cage| cage == "partial") {
        println!("SKIPPED: POLLUX_CAGE=partial says that this host does not permit a whole cage");
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(part.as_str()));
    let calls = FORBIDDEN.iter().map(|(call, _)| (*call, &Killed));
    let rows = TRIES.iter().map(|row| (row.name, &row.outcome)).chain(calls).filter(|(name, _)| is_chosen(name));
    let rows = rows.map(|(name, outcome)| (name, check(name, outcome)));
    let mut failed = 0;
    let mut tell = |name: &str, result: Result<(), String>| match result {
        Ok(()) => println!("test {name} ... ok"),
        Err(why) => {
            println!("test {name} ... FAILED: {why}");
            failed += 1;
        }
    };
    rows.for_each(|(name, result)| tell(name, result));
    let name = "a_host_that_permits_less";
    if is_chosen(name) {
        tell(name, a_host_that_permits_less());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
