//! The thread of a device's outside half: waits for its channels, for kicks and for its hour, then lets the device work
//! inside the gate.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::guest::GuestAccess;
use crate::threads;

/// Stack of a worker: poll, a few small frames, no recursion.
const STACK_BYTES: usize = 128 << 10;

/// What a worker works for.
pub(super) trait Outside: Send + Sync + 'static {
    /// The channels, and what to wait for on each: nothing at all leaves a channel alone, even if it is closed.
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;
    /// How soon to work though nothing happens; `None`: not before something does. Asked before each wait.
    fn due(&self) -> Option<Duration> {
        None
    }
    /// A channel became ready, or somebody kicked. Runs inside the gate, so it may touch guest RAM. Must not block.
    fn work(&self);
}

/// Stops and joins its thread on drop.
pub(super) struct Worker {
    kick: Kick,
    stop: Arc<AtomicBool>,
    guest: Arc<GuestAccess>,
    thread: Option<JoinHandle<()>>,
}

/// Wakes a worker; any thread may.
#[derive(Clone)]
pub(super) struct Kick(Arc<EventFd>);

impl Kick {
    /// Fails where the process has no file descriptors left.
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    pub(super) fn kick(&self) {
        // Fails only when 2^64 - 2 kicks are waiting: then the worker wakes anyway.
        let _ = self.0.write(1);
    }

    fn clear(&self) {
        // Fails only when nothing is to be cleared.
        let _ = self.0.read();
    }
}

impl Worker {
    /// Starts the thread. `None`, said in the log, where the host has no threads left: the device then hears nothing
    /// from outside.
    pub(super) fn start(
        name: &'static str,
        outside: Arc<impl Outside>,
        kick: Kick,
        guest: Arc<GuestAccess>,
    ) -> Option<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (kick_there, stop_there, guest_there) = (kick.clone(), stop.clone(), guest.clone());
        let work = move || run(outside.as_ref(), &kick_there, &stop_there, &guest_there);
        let thread = threads::spawn(format!("virtio-{name}"), STACK_BYTES, work)
            .inspect_err(|error| {
                // The guest may try again without end.
                if guest.may_log() {
                    tracing::error!(device = name, %error, "cannot start a virtio device's thread");
                }
            })
            .ok()?;
        Some(Self { kick, stop, guest, thread })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.kick.kick();
        self.guest.wake_gate();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a virtio device's thread had panicked");
        }
    }
}

fn run(outside: &impl Outside, kick: &Kick, stop: &AtomicBool, guest: &GuestAccess) {
    loop {
        if wait(outside, kick) {
            kick.clear();
        }
        let Some(_pass) = guest.enter(stop) else { return };
        outside.work();
    }
}

/// Waits for a kick, a channel or the time; says whether it was a kick. A failing poll (out of kernel memory) is a wake-up too
/// many, no more.
fn wait(outside: &impl Outside, kick: &Kick) -> bool {
    let mut fds = vec![PollFd::new(kick.0.as_fd(), PollFlags::POLLIN)];
    let wanted = outside.interests().into_iter().filter(|(_, flags)| !flags.is_empty());
    fds.extend(wanted.map(|(fd, flags)| PollFd::new(fd, flags)));
    // Up to the next millisecond, or it would wake before its time and wait anew.
    let timeout = outside.due().map_or(PollTimeout::NONE, |due| {
        PollTimeout::try_from(due.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    });
    if let Err(error) = nix::poll::poll(&mut fds, timeout) {
        tracing::debug!(%error, "poll");
    }
    fds[0].any().unwrap_or(false)
}
