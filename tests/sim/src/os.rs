//! The ground that a run stands on, instead of the kernel's: its clocks, its randomness, and the order of its threads.
//!
//! These functions have the names of the C library's, so whatever is linked into this program calls them: tokio, SQLite, sled, the standard
//! library. That is the seam, and why nothing of the agent or the appliance has one for time, chance or disks. (MadSim does the same.
//! tokio's own paused clock is a feature that would be compiled into what is shipped, too.)
//!
//! **Time** stands still while anything can be done, and then jumps to the next timer. **Order**: the runtime has one thread, and one
//! more for blocking work, and never do both run: blocking work waits until the runtime has nothing left to do, and is done in the order
//! in which it was handed over. So a run is a function of its seed. Other threads - of the store - work only while one of these waits
//! for them.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_long, c_void};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use nix::sys::eventfd::EventFd;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::disk;

/// What clocks show when a run begins, in seconds since 1970: earlier than anything on a real disk, so that file times never look settled.
const EPOCH_S: i64 = 1_600_000_000;

static NOW_NS: AtomicU64 = AtomicU64::new(0);
static GATE: OnceLock<Gate> = OnceLock::new();

thread_local! {
    /// This thread belongs to the run.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// How far the wall clock of whoever runs on this thread is off.
    static SKEW_US: Cell<i64> = const { Cell::new(0) };
}

/// Milliseconds since the run began.
pub(crate) fn now_ms() -> u64 {
    NOW_NS.load(Relaxed) / 1_000_000
}

/// Takes this thread into the run, and gives it the one runtime. Only once in a process.
pub(crate) fn begin(seed: u64) -> Runtime {
    enter(seed);
    let blocking = Cell::new(Some(seed ^ 0x5bd1_e995));
    let blocking = Mutex::new(blocking);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .on_thread_start(move || {
            let seed = blocking.lock().unwrap_or_else(PoisonError::into_inner).take();
            enter(seed.expect("there is one thread for blocking work"));
        })
        .build()
        .expect("a runtime");
    let gate = Gate { runtime: runtime.handle().clone(), state: Mutex::default(), moved: Condvar::new() };
    assert!(GATE.set(gate).is_ok(), "one run in a process");
    GATE.get().expect("just set").close();
    runtime
}

fn enter(seed: u64) {
    INSIDE.set(true);
    RANDOM.set(seed);
}

/// Holds the blocking thread while the runtime's runs.
struct Gate {
    runtime: Handle,
    state: Mutex<GateState>,
    moved: Condvar,
}

#[derive(Default)]
struct GateState {
    /// Number of the gate that was put last into the blocking thread's queue,
    put: u64,
    /// of the one that it stands at,
    reached: u64,
    /// and of the last that is open.
    open: u64,
}

impl Gate {
    /// Puts a closed gate behind all work handed over so far.
    fn close(&'static self) -> u64 {
        let mut state = self.lock();
        state.put += 1;
        let number = state.put;
        drop(state);
        self.runtime.spawn_blocking(move || {
            let mut state = self.lock();
            state.reached = number;
            self.moved.notify_all();
            while state.open < number {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        });
        number
    }

    /// Lets all work handed over so far be done.
    fn pass(&'static self) {
        let number = self.close();
        let mut state = self.lock();
        state.open = number - 1;
        self.moved.notify_all();
        while state.reached < number {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future whose wall clock is off by so many microseconds.
pub(crate) struct Skewed<F> {
    inner: Pin<Box<F>>,
    skew_us: Arc<AtomicI64>,
}

impl<F: Future> Skewed<F> {
    pub(crate) fn new(skew_us: Arc<AtomicI64>, future: F) -> Self {
        Skewed { inner: Box::pin(future), skew_us }
    }
}

impl<F: Future> Future for Skewed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        SKEW_US.set(self.skew_us.load(Relaxed));
        let polled = self.inner.as_mut().poll(context);
        SKEW_US.set(0);
        polled
    }
}

/// Runs `child` in a process of its own, whose exit status is what it gives; the child's process id.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> nix::Result<nix::unistd::Pid> {
    // SAFETY: this process has no other thread, so the child finds every lock free.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child),
        nix::unistd::ForkResult::Child => {
            let status = child();
            // SAFETY: ends the process without running what its other threads still use.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Waits for an eventfd.
pub(crate) fn watched(file: Arc<EventFd>) -> AsyncFd<Arc<EventFd>> {
    // SAFETY: whoever has it keeps the descriptor open, and shared as it is, it is not exchanged for another.
    unsafe { AsyncFd::register(file) }.expect("an eventfd can be waited for")
}

fn fail(errno: c_int) -> c_int {
    nix::errno::Errno::from_raw(errno).set();
    -1
}

/// See clock_gettime(2).
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let virtual_ns = match clock {
        _ if !INSIDE.get() => None,
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(
            EPOCH_S * 1_000_000_000 + NOW_NS.load(Relaxed).cast_signed() + SKEW_US.get() * 1000,
        ),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_BOOTTIME => {
            Some(1_000_000_000 + NOW_NS.load(Relaxed).cast_signed())
        }
        _ => None,
    };
    match virtual_ns {
        Some(ns) => {
            let told = libc::timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
            // SAFETY: the caller's own pointer, as clock_gettime(2) has it.
            unsafe { time.write(told) };
            0
        }
        // SAFETY: the caller's arguments, passed on.
        None => unsafe { libc::syscall(libc::SYS_clock_gettime, clock as c_long, time) as c_int },
    }
}

/// See epoll_wait(2): here time passes.
#[unsafe(no_mangle)]
extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, max: c_int, timeout_ms: c_int) -> c_int {
    let wait = |timeout_ms: c_int| {
        // SAFETY: the caller's arguments, passed on; without a signal mask.
        unsafe {
            let none = std::ptr::null::<c_void>();
            libc::syscall(libc::SYS_epoll_pwait, epoll as c_long, events, max as c_long, timeout_ms as c_long, none, 8) as c_int
        }
    };
    let gate = GATE.get().filter(|_| INSIDE.get() && timeout_ms != 0);
    let Some(gate) = gate else { return wait(timeout_ms) };
    let ready = wait(0);
    if ready != 0 {
        return ready;
    }
    gate.pass();
    let ready = wait(0);
    if ready != 0 {
        return ready;
    }
    assert!(timeout_ms > 0, "nothing is left that could happen");
    NOW_NS.fetch_add(timeout_ms.unsigned_abs() as u64 * 1_000_000, Relaxed);
    0
}

/// See getrandom(2).
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: std::ffi::c_uint) -> isize {
    if !INSIDE.get() {
        // SAFETY: the caller's arguments, passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags as c_long) as isize };
    }
    for index in 0..length {
        // SAFETY: within the caller's buffer, as getrandom(2) has it.
        unsafe { buffer.cast::<u8>().add(index).write((random() >> 32) as u8) };
    }
    length.cast_signed()
}

/// The next number of this thread's sequence (SplitMix64).
fn random() -> u64 {
    let state = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// See fsync(2).
#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    fdatasync(file)
}

/// See fdatasync(2).
#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    match disk::sync(file) {
        Some(Err(errno)) => fail(errno),
        Some(Ok(())) => 0,
        // SAFETY: the caller's argument, passed on.
        None => unsafe { libc::syscall(libc::SYS_fdatasync, file as c_long) as c_int },
    }
}

/// See write(2).
#[unsafe(no_mangle)]
extern "C" fn write(file: c_int, bytes: *const c_void, length: usize) -> isize {
    match disk::write(file) {
        Err(errno) => fail(errno) as isize,
        // SAFETY: the caller's arguments, passed on.
        Ok(()) => unsafe { libc::syscall(libc::SYS_write, file as c_long, bytes, length) as isize },
    }
}

/// See pwrite(2).
#[unsafe(no_mangle)]
extern "C" fn pwrite64(file: c_int, bytes: *const c_void, length: usize, offset: i64) -> isize {
    match disk::write(file) {
        Err(errno) => fail(errno) as isize,
        // SAFETY: the caller's arguments, passed on.
        Ok(()) => unsafe { libc::syscall(libc::SYS_pwrite64, file as c_long, bytes, length, offset) as isize },
    }
}

/// See pwrite(2).
#[unsafe(no_mangle)]
extern "C" fn pwrite(file: c_int, bytes: *const c_void, length: usize, offset: i64) -> isize {
    pwrite64(file, bytes, length, offset)
}

/// See statvfs(3).
#[unsafe(no_mangle)]
extern "C" fn statvfs(path: *const c_char, status: *mut libc::statvfs) -> c_int {
    // SAFETY: a NUL-terminated path, as statvfs(3) has it.
    let path = unsafe { std::ffi::CStr::from_ptr(path) };
    let free = if disk::is_full(path) { 0 } else { 1 << 30 };
    // SAFETY: all zeroes is a value of this plain structure.
    let mut told: libc::statvfs = unsafe { std::mem::zeroed() };
    (told.f_bsize, told.f_frsize, told.f_blocks) = (4096, 4096, 1 << 30);
    (told.f_bfree, told.f_bavail) = (free, free);
    // SAFETY: the caller's own pointer.
    unsafe { status.write(told) };
    0
}

/// See statvfs(3).
#[unsafe(no_mangle)]
extern "C" fn statvfs64(path: *const c_char, status: *mut libc::statvfs) -> c_int {
    statvfs(path, status)
}
