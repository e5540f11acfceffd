//! What a virtual CPU must do, whoever executes it.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod saved;
#[cfg(any(test, feature = "testing"))]
pub mod suite;

use std::sync::Arc;
use std::time::Duration;

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// [`VcpuHandle::stop`] was called; the vCPU stands at an instruction boundary and may be saved or run again.
    Stopped,
    /// The guest powered the machine off (PSCI SYSTEM_OFF; ACPI S5).
    PowerOff,
    /// The guest asked for a reset (PSCI SYSTEM_RESET; port 0xcf9, triple fault).
    Reset,
}

#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("the guest's CPU cannot go on at {pc:#x}: {reason}")]
    Fault { pc: u64, reason: String },
    #[error("saved CPU state is of another engine build ({found}, this is {expected}): boot instead")]
    ForeignState { found: String, expected: String },
    #[error("saved CPU state is damaged: {0}")]
    DamagedState(String),
    #[error("virtual CPU: {0}")]
    Engine(String),
}

/// One virtual CPU. It lives on one thread from creation to drop, and reaches devices through the [`crate::bus::Bus`]
/// it was made with. An idle guest (WFI, HLT) blocks inside [`Vcpu::run`] without using the host's CPU.
pub trait Vcpu {
    /// Sets the state of a machine about to enter the kernel as the architecture's boot protocol asks. `parameters` is the
    /// address of what the kernel is told: on arm64 the device tree, in `x0`; on x86-64 boot_params, in `rsi`.
    fn set_boot_state(&mut self, entry: u64, parameters: u64) -> Result<(), VcpuError>;
    /// Runs the guest until something outside the vCPU must act.
    fn run(&mut self) -> Result<VcpuExit, VcpuError>;
    /// The handle by which other threads reach this vCPU.
    fn handle(&self) -> Arc<dyn VcpuHandle>;
    /// Registers, timer and identity of the engine build, for a snapshot. Only while not running.
    fn save(&mut self) -> Result<Vec<u8>, VcpuError>;
    /// Takes up what [`Vcpu::save`] returned. The guest's counter goes on from where it stood. Only before running.
    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError>;
}

/// A vCPU of whichever kind.
impl Vcpu for Box<dyn Vcpu> {
    fn set_boot_state(&mut self, entry: u64, parameters: u64) -> Result<(), VcpuError> {
        (**self).set_boot_state(entry, parameters)
    }

    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        (**self).run()
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        (**self).handle()
    }

    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        (**self).save()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError> {
        (**self).restore(state)
    }
}

/// What any thread may do to a vCPU, at any time, running or not.
pub trait VcpuHandle: Send + Sync {
    /// Level of the CPU's interrupt input (the interrupt controller's output). Wakes an idle guest when raised.
    fn set_irq(&self, asserted: bool);
    /// Makes [`Vcpu::run`] return [`VcpuExit::Stopped`] soon; a stop before the run counts for the next run.
    fn stop(&self);
    /// Tells that a device wrote `len` bytes of guest RAM at `address`: code translated from there is dropped before
    /// the guest next takes an interrupt. Call it before raising the interrupt that announces the data.
    fn written(&self, address: u64, len: u64);
    /// For how long the guest could make progress: the time for which its CPU ran or rested, but not that for which the host
    /// let it wait, or had stopped it. Counts from any moment. `None`: this vCPU does not know.
    fn progress(&self) -> Option<Duration> {
        None
    }
    /// For how much of [`VcpuHandle::progress`] the interrupt input has been asserted without pause: a guest that takes none for long hangs.
    fn deaf_for(&self) -> Duration {
        Duration::ZERO
    }
    /// Tells that a device has gone outside for something that the guest waits for, or (`false`) that it is back. Until all are back, an
    /// idle guest is not one whose time may be passed over.
    fn errand(&self, _begins: bool) {}
    /// What the guest's clock shows: for how long it has run, and what was passed over. `None`: this vCPU does not tell.
    fn guest_time(&self) -> Option<Duration> {
        None
    }
    /// Has the guest's clock jump from one of its timers to the next while it is idle, until it shows `until`; gives what it shows then, or
    /// after `patience`. Whoever asks later is the one who is heeded. `None`: this vCPU's time cannot be passed over.
    fn pass_idle(&self, _until: Duration, _patience: Duration) -> Option<Duration> {
        None
    }
}

/// Where a level-triggered interrupt of the machine goes: the distributor of a GIC, or a PC's
/// controllers. `intid` as in [`crate::layout`].
pub trait IrqChip: Send + Sync {
    fn set_level(&self, intid: u32, asserted: bool);
}
