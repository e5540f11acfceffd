//! What other threads leave for the CPU: its interrupt input, a request to stop, RAM that devices wrote.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmm::vcpu::VcpuHandle;

use crate::engine::Kick;
use crate::timer::{Clock, monotonic_ns};

/// Ranges kept apart before they are merged into one: a device writes few buffers per interrupt.
const WRITTEN_RANGES_MAX: usize = 256;

/// Guest physical first address and length.
pub(crate) type Range = (u64, u64);

/// The handle. The CPU takes up what lies here when it is kicked, between two blocks of guest code.
pub(crate) struct Handle {
    pending: Mutex<Pending>,
    /// Notified when an idle CPU has to look.
    wake: Condvar,
    /// Notified when the guest's clock has come to where it was asked to be.
    arrived: Condvar,
    /// Devices that are outside for the guest.
    errands: AtomicUsize,
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
    /// The guest's clock, once the CPU has told.
    clock: Option<Clock>,
    /// In nanoseconds of that clock: until then, idle time is passed over.
    pass_until: Option<u64>,
    /// An idle CPU has to look at this anew.
    look: bool,
    /// The rest that lasts, and how long those before were.
    rest: Option<Rest>,
    rested: Duration,
    /// The progress at which `irq` was asserted.
    asserted_at: Option<Duration>,
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
        Arc::new(Self { pending: Mutex::default(), wake: Condvar::new(), arrived: Condvar::new(), errands: AtomicUsize::new(0), kick, cpu_time: cpu_time_of_this_thread() })
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

    /// Blocks an idle CPU until an interrupt or a stop is pending, or `timeout` is over; `None` waits for ever. True if it only has to look
    /// how far its clock may be put forward.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut pending = self.lock();
        pending.lie_down(timeout, true);
        let sleeping = |pending: &mut Pending| !pending.irq && !pending.stop && !pending.look;
        let poisoned = "nothing panics while it holds this lock";
        let mut pending = match timeout {
            Some(timeout) => self.wake.wait_timeout_while(pending, timeout, sleeping).expect(poisoned).0,
            None => self.wake.wait_while(pending, sleeping).expect(poisoned),
        };
        pending.get_up();
        std::mem::take(&mut pending.look) && !pending.irq && !pending.stop
    }

    /// The guest's clock is this now.
    pub(crate) fn set_clock(&self, clock: Clock) {
        self.lock().clock = Some(clock);
    }

    /// How much is left until the clock, which shows `elapsed_ns`, is where it was asked to be; whoever asked hears if it is.
    pub(crate) fn left(&self, elapsed_ns: u64) -> Option<Duration> {
        let mut pending = self.lock();
        let until = pending.pass_until?;
        if elapsed_ns < until {
            return Some(Duration::from_nanos(until - elapsed_ns));
        }
        pending.pass_until = None;
        self.arrived.notify_all();
        None
    }

    /// By how much the clock of an idle guest, which shows `elapsed_ns`, may be put forward; at most to its timer's time, `due` from now.
    pub(crate) fn pass_over(&self, elapsed_ns: u64, due: Option<Duration>) -> Option<Duration> {
        let left = self.left(elapsed_ns)?;
        let pending = self.lock();
        let awaited = pending.irq || pending.stop || self.errands.load(Ordering::Acquire) > 0;
        (!awaited).then(|| due.map_or(left, |due| left.min(due)))
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

    /// How long the CPU has had nothing to do, all in all; what the host kept it from doing is not in it.
    pub(crate) fn rested(&self) -> Duration {
        self.lock().rested
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
        pending.asserted_at = if asserted { self.progress_of(&pending) } else { None };
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
        self.progress_of(&self.lock())
    }

    fn deaf_for(&self) -> Duration {
        let pending = self.lock();
        let since = pending.asserted_at.zip(self.progress_of(&pending));
        since.map_or(Duration::ZERO, |(asserted_at, now)| now.saturating_sub(asserted_at))
    }

    fn errand(&self, begins: bool) {
        if begins {
            self.errands.fetch_add(1, Ordering::AcqRel);
        } else if self.errands.fetch_sub(1, Ordering::AcqRel) == 1 {
            // What it brought may come without an interrupt.
            self.look();
        }
    }

    fn guest_time(&self) -> Option<Duration> {
        self.lock().guest_time()
    }

    fn pass_idle(&self, until: Duration, patience: Duration) -> Option<Duration> {
        let give_up = Instant::now().checked_add(patience);
        let until_ns = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let mut pending = self.lock();
        let now = pending.guest_time()?;
        if now >= until {
            return Some(now);
        }
        pending.pass_until = Some(until_ns);
        drop(pending);
        self.look();
        self.kick.send();
        let mut pending = self.lock();
        while pending.pass_until == Some(until_ns) {
            let left = give_up.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                pending.pass_until = None;
                break;
            }
            pending = self.arrived.wait_timeout(pending, left).expect("nothing panics while it holds this lock").0;
        }
        pending.guest_time()
    }
}

impl Handle {
    fn progress_of(&self, pending: &Pending) -> Option<Duration> {
        let rested = pending.rested + pending.rest.map_or(Duration::ZERO, |rest| rest.length(Instant::now()));
        // Fails when the thread has ended: then there is no more progress to be told of.
        Some(rested + Duration::from(clock_gettime(self.cpu_time).ok()?))
    }

    /// Has an idle CPU look how far its clock may be put forward.
    fn look(&self) {
        let mut pending = self.lock();
        if pending.pass_until.is_some() {
            pending.look = true;
            self.wake.notify_one();
        }
    }
}

impl Pending {
    fn guest_time(&self) -> Option<Duration> {
        self.clock.map(|clock| Duration::from_nanos(clock.elapsed_ns(monotonic_ns())))
    }

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
