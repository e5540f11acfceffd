//! What other threads leave for the CPU: its interrupt input, a request to stop, RAM that devices wrote.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

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
}

#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) irq: bool,
    pub(crate) stop: bool,
    pub(crate) written: Vec<Range>,
    idle: bool,
}

impl Handle {
    pub(crate) fn new(kick: Arc<Kick>) -> Arc<Self> {
        Arc::new(Self { pending: Mutex::default(), wake: Condvar::new(), kick })
    }

    /// Takes what is pending: the interrupt level stays, the rest is handed out once.
    pub(crate) fn take(&self) -> Pending {
        let mut pending = self.lock();
        Pending {
            irq: pending.irq,
            stop: std::mem::take(&mut pending.stop),
            written: std::mem::take(&mut pending.written),
            idle: false,
        }
    }

    /// Blocks an idle CPU until an interrupt or a stop is pending, or `timeout` is over; `None` waits for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut pending = self.lock();
        pending.idle = true;
        let sleeping = |pending: &mut Pending| !pending.irq && !pending.stop;
        let poisoned = "nothing panics while it holds this lock";
        let mut pending = match timeout {
            Some(timeout) => self.wake.wait_timeout_while(pending, timeout, sleeping).expect(poisoned).0,
            None => self.wake.wait_while(pending, sleeping).expect(poisoned),
        };
        pending.idle = false;
    }

    /// Blocks a halted CPU until a stop is pending, or an interrupt if it can take one; true for an interrupt alone.
    pub(crate) fn wait_halted(&self, interruptible: bool) -> bool {
        let mut pending = self.lock();
        pending.idle = true;
        let halted = |pending: &mut Pending| !pending.stop && !(interruptible && pending.irq);
        let mut pending = self.wake.wait_while(pending, halted).expect("nothing panics while it holds this lock");
        pending.idle = false;
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
        if pending.idle {
            self.wake.notify_one();
        }
        drop(pending);
        self.kick.send();
    }

    fn stop(&self) {
        let mut pending = self.lock();
        pending.stop = true;
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
}

impl Pending {
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

#[cfg(test)]
mod tests {
    use super::*;

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
