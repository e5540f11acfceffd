//! How the devices of one machine reach its guest: RAM, the vCPU that must hear of what they write there, and the
//! gate that keeps their threads out while the machine is paused.
//!
//! Lock order, from the outside in: gate, transport, device, queue, interrupt, distributor. The vCPU thread does not
//! pass the gate: a paused machine's vCPU is not running.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crate::clock::RunTime;
use crate::log_limit::LogLimit;
use crate::memory::GuestRam;
use crate::vcpu::{IrqChip, VcpuHandle};

/// Shared by all virtio devices of one machine.
pub struct GuestAccess {
    ram: GuestRam,
    irq_chip: Arc<dyn IrqChip>,
    vcpu: OnceLock<Arc<dyn VcpuHandle>>,
    gate: Mutex<Gate>,
    gate_changed: Condvar,
    log_limit: LogLimit,
}

struct Gate {
    closed: bool,
    inside: usize,
    /// For how long it has been open.
    open_time: RunTime,
}

impl GuestAccess {
    pub fn new(ram: GuestRam, irq_chip: Arc<dyn IrqChip>) -> Arc<Self> {
        let mut open_time = RunTime::default();
        open_time.start(Instant::now());
        let gate = Mutex::new(Gate { closed: false, inside: 0, open_time });
        Arc::new(Self { ram, irq_chip, vcpu: OnceLock::new(), gate, gate_changed: Condvar::new(), log_limit: LogLimit::default() })
    }

    /// Names the vCPU that runs on this RAM. Devices are made before it is; until then nothing can be stale in it.
    /// The first call counts.
    pub fn connect(&self, vcpu: Arc<dyn VcpuHandle>) {
        let _already_connected = self.vcpu.set(vcpu);
    }

    /// Keeps device threads away from guest RAM and interrupts, and returns when none is there any more. Call it when
    /// the vCPU has stopped; devices go on receiving, as far as their bounded buffers reach.
    pub fn close_gate(&self) {
        let mut gate = lock(&self.gate);
        gate.closed = true;
        gate.open_time.stop(Instant::now());
        while gate.inside > 0 {
            gate = self.gate_changed.wait(gate).expect(UNPOISONED);
        }
    }

    /// Lets device threads work again.
    pub fn open_gate(&self) {
        let mut gate = lock(&self.gate);
        gate.closed = false;
        gate.open_time.start(Instant::now());
        drop(gate);
        self.gate_changed.notify_all();
    }

    /// A clock for devices that wait for what programs of the guest do: it stands still while the machine is paused, and, if
    /// the vCPU knows, while the host is too busy to let it run.
    pub(super) fn guest_time(&self) -> Duration {
        let progress = self.vcpu.get().and_then(|vcpu| vcpu.progress());
        progress.unwrap_or_else(|| lock(&self.gate).open_time.at(Instant::now()))
    }

    /// Waits until the gate is open, and keeps it from closing until the pass is dropped. `None` as soon as `stop`
    /// is set, provided that [`GuestAccess::wake_gate`] is called after setting it.
    pub(super) fn enter(&self, stop: &AtomicBool) -> Option<Pass<'_>> {
        let mut gate = lock(&self.gate);
        while gate.closed && !stop.load(Ordering::Acquire) {
            gate = self.gate_changed.wait(gate).expect(UNPOISONED);
        }
        if stop.load(Ordering::Acquire) {
            return None;
        }
        gate.inside += 1;
        Some(Pass(self))
    }

    /// Makes threads that wait at the gate look at their stop flags.
    pub(super) fn wake_gate(&self) {
        let _synchronise = lock(&self.gate);
        self.gate_changed.notify_all();
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Whether one more line that this guest caused may be logged.
    pub(super) fn may_log(&self) -> bool {
        self.log_limit.allows()
    }

    pub(super) fn irq_chip(&self) -> &dyn IrqChip {
        self.irq_chip.as_ref()
    }

    /// A device goes outside for something that the guest waits for; it is back when what this gives is dropped.
    pub(super) fn errand(self: &Arc<Self>) -> Errand {
        if let Some(vcpu) = self.vcpu.get() {
            vcpu.errand(true);
        }
        Errand(self.clone())
    }

    /// Reports a device's write to the vCPU, see [`VcpuHandle::written`].
    pub(super) fn written(&self, address: u64, len: u64) {
        if let Some(vcpu) = self.vcpu.get() {
            vcpu.written(address, len);
        }
    }
}

/// While it lives, the gate does not close.
pub(super) struct Pass<'a>(&'a GuestAccess);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        lock(&self.0.gate).inside -= 1;
        self.0.gate_changed.notify_all();
    }
}

/// While it lives, a device is outside for the guest.
pub(super) struct Errand(Arc<GuestAccess>);

impl Drop for Errand {
    fn drop(&mut self) {
        if let Some(vcpu) = self.0.vcpu.get() {
            vcpu.errand(false);
        }
    }
}

const UNPOISONED: &str = "no device panics while it holds a lock";

/// Locks what devices share. Poison means that a device panicked, which is our bug: the machine must not go on.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(UNPOISONED)
}
