//! What other threads leave for the CPU: its interrupt input, a request to stop, RAM that devices wrote.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmm::vcpu::VcpuHandle;

use crate::engine::Kick;

/// Ranges kept apart before they are merged into one: a device writes few buffers per interrupt.
const WRITTEN_RANGES_MAX: usize = 256;

/// Guest physical first address and length.
pub(crate) type Range = (u64, u64);

/// The handle. The CPU takes up what lies here when it is kicked, between two blocks of guest code.
pub(crate) struct Handle {
    pending: Mutex<Pending>,
    /// Notified when an idle CPU has to look.
    wake: Condvar,
    kick: Arc<Kick>,
    /// Counts while the CPU's thread is on one of the host's processors.
    cpu_time: ClockId,
}

#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) irq: bool,
    pub(crate) stop: bool,
    pub(crate) written: Vec<Range>,
    idle: bool,
    /// The rest that lasts, and how long those before were.
    rest: Option<Rest>,
    rested: Duration,
}

/// An idle CPU's rest: over as soon as it has something to do, whenever the host then lets it.
#[derive(Clone, Copy)]
struct Rest {
    since: Instant,
    /// Its timer's time.
    until: Option<Instant>,
    /// An interrupt ends it.
    by_irq: bool,
}

impl Rest {
    fn length(self, now: Instant) -> Duration {
        self.until.map_or(now, |until| now.min(until)).saturating_duration_since(self.since)
    }
}

impl Handle {
    /// To be called on the CPU's thread.
    pub(crate) fn new(kick: Arc<Kick>) -> Arc<Self> {
        Arc::new(Self { pending: Mutex::default(), wake: Condvar::new(), kick, cpu_time: cpu_time_of_this_thread() })
    }

    /// Takes what is pending: the interrupt level stays, the rest is handed out once.
    pub(crate) fn take(&self) -> Pending {
        let mut pending = self.lock();
        Pending {
            irq: pending.irq,
            stop: std::mem::take(&mut pending.stop),
            written: std::mem::take(&mut pending.written),
            ..Pending::default()
        }
    }

    /// Blocks an idle CPU until an interrupt or a stop is pending, or `timeout` is over; `None` waits for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut pending = self.lock();
        pending.lie_down(timeout, true);
        let sleeping = |pending: &mut Pending| !pending.irq && !pending.stop;
        let poisoned = "nothing panics while it holds this lock";
        let mut pending = match timeout {
            Some(timeout) => self.wake.wait_timeout_while(pending, timeout, sleeping).expect(poisoned).0,
            None => self.wake.wait_while(pending, sleeping).expect(poisoned),
        };
        pending.get_up();
    }

    /// Blocks a halted CPU until a stop is pending, or an interrupt if it can take one; true for an interrupt alone.
    pub(crate) fn wait_halted(&self, interruptible: bool) -> bool {
        let mut pending = self.lock();
        pending.lie_down(None, interruptible);
        let halted = |pending: &mut Pending| !pending.stop && !(interruptible && pending.irq);
        let mut pending = self.wake.wait_while(pending, halted).expect("nothing panics while it holds this lock");
        pending.get_up();
        !pending.stop
    }

    /// Has the CPU look at its timer.
    pub(crate) fn attention(&self) {
        self.kick.send();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("nothing panics while it holds this lock")
    }
}

impl VcpuHandle for Handle {
    fn set_irq(&self, asserted: bool) {
        let mut pending = self.lock();
        if pending.irq == asserted {
            return;
        }
        pending.irq = asserted;
        if asserted && pending.rest.is_some_and(|rest| rest.by_irq) {
            pending.end_rest();
        }
        if pending.idle {
            self.wake.notify_one();
        }
        drop(pending);
        self.kick.send();
    }

    fn stop(&self) {
        let mut pending = self.lock();
        pending.stop = true;
        pending.end_rest();
        if pending.idle {
            self.wake.notify_one();
        }
        drop(pending);
        self.kick.send();
    }

    fn written(&self, address: u64, len: u64) {
        let mut pending = self.lock();
        pending.add_written(address, len);
        drop(pending);
        self.kick.send();
    }

    fn progress(&self) -> Option<Duration> {
        let pending = self.lock();
        let rested = pending.rested + pending.rest.map_or(Duration::ZERO, |rest| rest.length(Instant::now()));
        drop(pending);
        // Fails when the thread has ended: then there is no more progress to be told of.
        Some(rested + Duration::from(clock_gettime(self.cpu_time).ok()?))
    }
}

impl Pending {
    fn lie_down(&mut self, timeout: Option<Duration>, by_irq: bool) {
        let since = Instant::now();
        self.idle = true;
        // With something to do already, it does not even close its eyes.
        let is_awake = self.stop || by_irq && self.irq;
        self.rest = (!is_awake).then(|| Rest { since, until: timeout.and_then(|timeout| since.checked_add(timeout)), by_irq });
    }

    fn end_rest(&mut self) {
        if let Some(rest) = self.rest.take() {
            self.rested += rest.length(Instant::now());
        }
    }

    fn get_up(&mut self) {
        self.end_rest();
        self.idle = false;
    }

    fn add_written(&mut self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        if let Some((last, last_len)) = self.written.last_mut()
            && *last + *last_len == address
        {
            *last_len += len;
            return;
        }
        if self.written.len() == WRITTEN_RANGES_MAX {
            let start = self.written.iter().map(|r| r.0).min().unwrap_or(address);
            let end = self.written.iter().map(|r| r.0 + r.1).max().unwrap_or(address);
            self.written.clear();
            self.written.push((start, end - start));
        }
        self.written.push((address, len));
    }
}

/// As `pthread_getcpuclockid` makes it: see `MAKE_THREAD_CPUCLOCK` in Linux's `posix-timers.h`.
fn cpu_time_of_this_thread() -> ClockId {
    const PER_THREAD: i32 = 4;
    const SCHEDULED: i32 = 2;
    ClockId::from_raw((!nix::unistd::gettid().as_raw() << 3) | PER_THREAD | SCHEDULED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Arc<Handle> {
        Handle::new(Kick::of_nobody())
    }

    /// Lets time pass without progress of this thread's CPU time being of any account.
    fn pass(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::thread::yield_now();
        }
    }

    const SOME: Duration = Duration::from_millis(5);

    #[test]
    fn a_guest_makes_progress_while_it_rests_and_while_it_runs() {
        let handle = handle();
        let before = handle.progress().unwrap();
        handle.wait(Some(SOME));
        let rested = handle.progress().unwrap();
        assert!(rested >= before + SOME);
        while handle.progress().unwrap() < rested + SOME {}
        // The timer's interrupt, or a stop, ends a wait that has no end of its own.
        let waker = handle.clone();
        let woken = std::thread::spawn(move || {
            pass(SOME);
            waker.set_irq(true);
        });
        let before = handle.progress().unwrap();
        handle.wait(None);
        assert!(handle.progress().unwrap() > before);
        woken.join().unwrap();
        // With an interrupt pending it does not rest at all.
        let rested = handle.lock().rested;
        handle.wait(Some(Duration::from_secs(3600)));
        assert_eq!(handle.lock().rested, rested);
    }

    #[test]
    fn what_the_host_lets_it_wait_for_is_no_rest() {
        let handle = handle();
        // Its timer's time has passed, but it has not come to a processor.
        handle.lock().lie_down(Some(SOME), true);
        pass(3 * SOME);
        handle.lock().get_up();
        assert_eq!(handle.lock().rested, SOME);
        // An interrupt came meanwhile.
        handle.lock().lie_down(None, true);
        handle.set_irq(true);
        let rested = handle.lock().rested;
        pass(SOME);
        handle.lock().get_up();
        assert_eq!(handle.lock().rested, rested);
        // One that it does not listen to ends no rest, a stop does.
        handle.set_irq(false);
        handle.lock().lie_down(None, false);
        handle.set_irq(true);
        assert!(handle.lock().rest.is_some());
        handle.stop();
        assert!(handle.lock().rest.is_none());
        handle.lock().get_up();
    }

    #[test]
    fn written_ranges_are_joined_and_bounded() {
        let mut pending = Pending::default();
        pending.add_written(0x1000, 0x100);
        pending.add_written(0x1100, 0x100);
        assert_eq!(pending.written, [(0x1000, 0x200)]);
        for page in 0..1000 {
            pending.add_written(0x10_0000 + page * 0x2000, 0x10);
        }
        assert!(pending.written.len() <= WRITTEN_RANGES_MAX + 1);
        let covered = |at: u64| pending.written.iter().any(|(start, len)| (*start..start + len).contains(&at));
        assert!(covered(0x1000) && covered(0x10_0000) && covered(0x10_0000 + 999 * 0x2000 + 0xf));
    }
}
