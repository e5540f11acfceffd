//! The x86-64 vCPU on KVM, with the kernel's interrupt controllers and interval timer.
//!
//! It promises: the guest enters in 64-bit mode as the boot protocol asks; its time stamp counter and KVM's clock stand still while it
//! does not run; a stop from another thread takes effect within an instruction, or an interrupt's delivery. What of the machine lies in the
//! kernel - the controllers, the timer - is saved and restored with the vCPU. It leaves out: other CPUs, and nested guests.
//!
//! Of the counter there is one exception: hosts' KVM takes a value that is within a second of the running one for an attempt to
//! synchronise CPUs, and lets it run on. So a pause of less than a second may show in it.
//!
//! A `/dev/kvm` that answers may still be unable to run real guests: see [`probe`].

mod probe;
mod state;
mod sys;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use sha2::{Digest, Sha256};
use vm_memory::{GuestMemory, GuestMemoryRegion};

use super::{IrqChip, Vcpu, VcpuError, VcpuExit, VcpuHandle, saved};
use crate::board::x86_64::Parts;
use crate::bus::Bus;
use crate::layout::x86_64 as layout;
use crate::memory::GuestRam;
pub use probe::{Unable, probe};
use sys::{Descriptor, Exit, Exits, Many, Plain, RunPage};

/// Three pages that Intel's processors want for real mode, and one for its page table: in the hole under the firmware's usual place.
const TSS_ADDRESS: u64 = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// What this vCPU cannot do without.
const NEEDED: [(u32, &str); 7] = [
    (sys::KVM_CAP_IRQCHIP, "interrupt controllers"),
    (sys::KVM_CAP_USER_MEMORY, "memory of the process"),
    (sys::KVM_CAP_EXT_CPUID, "CPUID"),
    (sys::KVM_CAP_PIT2, "the interval timer"),
    (sys::KVM_CAP_XSAVE, "saving vector registers"),
    (sys::KVM_CAP_IMMEDIATE_EXIT, "immediate exits"),
    (sys::KVM_CAP_ADJUST_CLOCK, "setting its clock"),
];
const PAGE_BYTES: u64 = 4096;
const MSR_TSC: u32 = 0x10;

#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("{path} cannot be opened: is the module kvm_intel or kvm_amd loaded, and may this user read and write it?")]
    Open { path: String, source: std::io::Error },
    #[error("KVM speaks version {0}, not 12")]
    Version(usize),
    #[error("this kernel's KVM lacks {0}")]
    Lacks(&'static str),
    #[error("KVM: cannot {doing}")]
    Call { doing: &'static str, source: Errno },
}

impl From<KvmError> for VcpuError {
    fn from(error: KvmError) -> Self {
        match error {
            KvmError::Call { doing, source } => VcpuError::Engine(format!("KVM: cannot {doing}: {source}")),
            KvmError::Open { ref source, .. } => VcpuError::Engine(format!("{error}: {source}")),
            other => VcpuError::Engine(other.to_string()),
        }
    }
}

fn cannot(doing: &'static str) -> impl FnOnce(Errno) -> KvmError {
    move |source| KvmError::Call { doing, source }
}

/// The host's KVM.
pub struct Kvm(Descriptor);

impl Kvm {
    pub const PATH: &str = "/dev/kvm";

    /// Opens [`Kvm::PATH`].
    pub fn open() -> Result<Self, KvmError> {
        let file = File::options().read(true).write(true).open(Path::new(Self::PATH));
        Self::of(file.map_err(|source| KvmError::Open { path: Self::PATH.into(), source })?)
    }

    /// Uses a descriptor of it, which somebody else opened.
    pub fn of(file: File) -> Result<Self, KvmError> {
        let kvm = Self(Descriptor::of(file));
        let version = kvm.0.number(&sys::GET_API_VERSION, 0).map_err(cannot("ask for its version"))?;
        if version != sys::KVM_API_VERSION as usize {
            return Err(KvmError::Version(version));
        }
        for (capability, name) in NEEDED {
            if kvm.0.number(&sys::CHECK_EXTENSION, capability.into()).map_err(cannot("ask what it can do"))? == 0 {
                return Err(KvmError::Lacks(name));
            }
        }
        Ok(kvm)
    }

    /// Makes a machine around guest RAM, which begins at 0.
    pub fn machine(&self, ram: GuestRam) -> Result<Arc<KvmMachine>, KvmError> {
        let vm = self.0.make(&sys::CREATE_VM, 0).map_err(cannot("make a machine"))?;
        vm.set(&sys::SET_IDENTITY_MAP_ADDR, &IDENTITY_MAP_ADDRESS).map_err(cannot("place the identity map"))?;
        vm.number(&sys::SET_TSS_ADDR, TSS_ADDRESS).map_err(cannot("place the task state"))?;
        vm.number(&sys::CREATE_IRQCHIP, 0).map_err(cannot("make interrupt controllers"))?;
        let mut pit = sys::kvm_pit_config::zeroed();
        // The kernel answers for the speaker's port, by which Linux measures time.
        pit.flags = sys::KVM_PIT_SPEAKER_DUMMY;
        vm.set(&sys::CREATE_PIT2, &pit).map_err(cannot("make an interval timer"))?;
        let machine = KvmMachine { vm, ram, run_bytes: self.run_bytes()?, cpuid: self.cpuid()?, msrs: self.msrs()? };
        machine.track_writes(false)?;
        Ok(Arc::new(machine))
    }

    fn run_bytes(&self) -> Result<usize, KvmError> {
        self.0.number(&sys::GET_VCPU_MMAP_SIZE, 0).map_err(cannot("ask for the size of a vCPU's page"))
    }

    /// All that guests can have of this host's CPU; where in the host it lies is left out, which differs from call to call.
    fn cpuid(&self) -> Result<Many<sys::kvm_cpuid2, sys::kvm_cpuid_entry2, { sys::CPUID_ENTRIES_MAX }>, KvmError> {
        let mut cpuid = Many::zeroed();
        let header: &mut sys::kvm_cpuid2 = &mut cpuid.header;
        header.nent = sys::CPUID_ENTRIES_MAX as u32;
        self.0.exchange(&sys::GET_SUPPORTED_CPUID, &mut cpuid).map_err(cannot("ask what the CPU can do"))?;
        let entries: &mut [sys::kvm_cpuid_entry2] = &mut cpuid.entries;
        for entry in entries {
            match entry.function {
                // Bits 31 to 24 are the APIC's number, 23 to 16 how many share the package.
                0x1 => entry.ebx = entry.ebx & 0xffff | 1 << 16,
                0xb | 0x1f => entry.edx = 0,
                0x8000_001e => entry.eax = 0,
                _ => {}
            }
        }
        Ok(cpuid)
    }

    /// The model-specific registers that make up a guest's state.
    fn msrs(&self) -> Result<Vec<u32>, KvmError> {
        let mut list = Many::zeroed();
        let header: &mut sys::kvm_msr_list = &mut list.header;
        header.nmsrs = sys::MSRS_MAX as u32;
        self.0.exchange(&sys::GET_MSR_INDEX_LIST, &mut list).map_err(cannot("ask which registers to save"))?;
        Ok(list.entries[..(list.header.nmsrs as usize).min(sys::MSRS_MAX)].to_vec())
    }
}

/// What of a machine is in the kernel. As [`IrqChip`] it takes the interrupts of the board's devices.
pub struct KvmMachine {
    vm: Descriptor,
    /// The guest writes here.
    ram: GuestRam,
    run_bytes: usize,
    cpuid: Many<sys::kvm_cpuid2, sys::kvm_cpuid_entry2, { sys::CPUID_ENTRIES_MAX }>,
    msrs: Vec<u32>,
}

impl KvmMachine {
    /// Begins, or ends, to note which pages the guest writes.
    pub fn track_writes(&self, track: bool) -> Result<(), KvmError> {
        for (slot, region) in self.ram.iter().enumerate() {
            let slot = sys::kvm_userspace_memory_region {
                slot: slot as u32,
                flags: if track { sys::KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            self.vm.set(&sys::SET_USER_MEMORY_REGION, &slot).map_err(cannot("give it memory"))?;
        }
        Ok(())
    }

    /// Guest physical addresses of the pages that the guest's CPU wrote since tracking began or this was last asked. What devices
    /// wrote is not among them.
    pub fn written_pages(&self) -> Result<Vec<u64>, KvmError> {
        let mut pages = Vec::new();
        for (slot, region) in self.ram.iter().enumerate() {
            let mut bits = vec![0_u64; region.len().div_ceil(PAGE_BYTES).div_ceil(64) as usize];
            self.vm.dirty_log(slot as u32, &mut bits).map_err(cannot("ask for written pages"))?;
            for (word, mut left) in bits.into_iter().enumerate() {
                while left != 0 {
                    pages.push(region.start_addr().0 + (word as u64 * 64 + u64::from(left.trailing_zeros())) * PAGE_BYTES);
                    left &= left - 1;
                }
            }
        }
        Ok(pages)
    }

    /// What a saved state must have been written by: a KVM that offers the same CPU.
    fn identity(&self) -> String {
        let entries = &self.cpuid.entries[..self.cpuid.header.nent as usize];
        let mut hash = Sha256::new();
        for entry in entries {
            hash.update(entry.bytes());
        }
        format!("kvm/x86-64 {:x} {}", hash.finalize(), self.msrs.len())
    }
}

impl IrqChip for KvmMachine {
    fn set_level(&self, intid: u32, asserted: bool) {
        let mut level = sys::kvm_irq_level::zeroed();
        level.__bindgen_anon_1.irq = intid;
        level.level = asserted.into();
        // It fails for no line of the layout.
        if let Err(error) = self.vm.set(&sys::IRQ_LINE, &level) {
            tracing::error!(intid, %error, "KVM takes no interrupt");
        }
    }
}

/// One virtual CPU. It runs on the thread that made it.
pub struct KvmCpu {
    machine: Arc<KvmMachine>,
    vcpu: Descriptor,
    exits: Exits,
    bus: Arc<Bus>,
    parts: Parts,
    handle: Arc<Handle>,
    /// What its clocks showed when it last stopped.
    stopped: Option<state::Clocks>,
}

impl KvmCpu {
    /// Makes the machine's CPU. It reaches devices through `bus` and the board's `parts`.
    pub fn new(machine: Arc<KvmMachine>, bus: Arc<Bus>, parts: Parts) -> Result<Self, VcpuError> {
        let vcpu = machine.vm.make(&sys::CREATE_VCPU, 0).map_err(cannot("make a CPU"))?;
        vcpu.set(&sys::SET_CPUID2, &machine.cpuid).map_err(cannot("choose the CPU model"))?;
        let (page, exits) = sys::map_run_page(&vcpu, machine.run_bytes).map_err(cannot("map a CPU's page"))?;
        let signal = stop_signal();
        sys::make_harmless(signal).map_err(cannot("handle a signal"))?;
        let handle = Arc::new(Handle { page, signal, stop: Mutex::default() });
        Ok(Self { machine, vcpu, exits, bus, parts, handle, stopped: None })
    }

    fn run_until_exit(&mut self) -> Result<VcpuExit, VcpuError> {
        loop {
            match self.vcpu.number(&sys::RUN, 0) {
                Ok(_) => {}
                Err(Errno::EINTR | Errno::EAGAIN) => match self.handle.take_stop() {
                    true => return Ok(VcpuExit::Stopped),
                    false => continue,
                },
                Err(error) => return Err(self.fault(format!("KVM does not run it: {error}"))),
            }
            let reason = match self.exits.last() {
                Exit::Memory { address, write: false, data } => {
                    self.bus.read(address, data);
                    continue;
                }
                Exit::Memory { address, write: true, data } => {
                    self.bus.write(address, data);
                    continue;
                }
                Exit::Port { port, write: false, each, data } => {
                    data.chunks_mut(each).for_each(|data| self.parts.ports.read(port, data));
                    continue;
                }
                Exit::Port { port, write: true, each, data } => {
                    data.chunks(each).for_each(|data| self.parts.ports.write(port, data));
                    match self.parts.power.take() {
                        Some(exit) => return Ok(exit),
                        None => continue,
                    }
                }
                Exit::Interrupted => continue,
                Exit::Shutdown => return Ok(VcpuExit::Reset),
                Exit::Internal(kind) => match kind {
                    sys::KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".into(),
                    sys::KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM cannot deliver an interrupt or an exception".into(),
                    other => format!("KVM failed within itself (suberror {other})"),
                },
                Exit::NoEntry(reason) => format!("the processor refuses the guest's state ({reason:#x})"),
                Exit::Other(reason) => format!("KVM stopped for a reason that is not handled ({reason})"),
            };
            return Err(self.fault(reason));
        }
    }

    fn fault(&self, reason: String) -> VcpuError {
        VcpuError::Fault { pc: self.vcpu.get(&sys::GET_REGS).map_or(0, |registers| registers.rip), reason }
    }
}

impl Vcpu for KvmCpu {
    fn set_boot_state(&mut self, entry: u64, parameters: u64) -> Result<(), VcpuError> {
        state::enter_long_mode(&self.vcpu, layout::PAGE_TABLES, layout::GDT, entry, parameters)
    }

    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        if let Some(clocks) = self.stopped.take() {
            clocks.set(&self.vcpu, &self.machine.vm)?;
        }
        self.parts.clock.start();
        self.handle.begin();
        let exit = self.run_until_exit();
        self.handle.end();
        self.parts.clock.stop();
        self.stopped = Some(state::Clocks::get(&self.vcpu, &self.machine.vm)?);
        exit
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }

    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        if self.stopped.is_none() {
            self.stopped = Some(state::Clocks::get(&self.vcpu, &self.machine.vm)?);
        }
        let clocks = self.stopped.as_ref().expect("set above");
        let registers = state::save(&self.vcpu, &self.machine.vm, &self.machine.msrs, clocks)?;
        Ok(saved::encode(&self.machine.identity(), self.parts.clock.now_ns(), &registers))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError> {
        let (elapsed_ns, registers) = saved::decode(&self.machine.identity(), state)?;
        let clocks = state::restore(&self.vcpu, &self.machine.vm, &self.machine.msrs, registers)?;
        self.stopped = Some(clocks);
        self.parts.clock.set(elapsed_ns);
        Ok(())
    }
}

/// How other threads reach the CPU.
struct Handle {
    page: Arc<RunPage>,
    signal: libc::c_int,
    stop: Mutex<Stop>,
}

#[derive(Default)]
struct Stop {
    requested: bool,
    /// The thread on which it runs, while it does.
    running: Option<libc::pthread_t>,
}

impl Handle {
    fn begin(&self) {
        let mut stop = self.lock();
        self.page.leave_at_once(stop.requested);
        stop.running = Some(sys::this_thread());
    }

    fn end(&self) {
        self.lock().running = None;
    }

    /// Whether the run is to end. The request is fulfilled with that.
    fn take_stop(&self) -> bool {
        let mut stop = self.lock();
        self.page.leave_at_once(false);
        std::mem::take(&mut stop.requested)
    }

    fn lock(&self) -> MutexGuard<'_, Stop> {
        self.stop.lock().expect("nothing panics while it holds this lock")
    }
}

impl VcpuHandle for Handle {
    /// The kernel's controllers raise its interrupts: see [`KvmMachine`].
    fn set_irq(&self, _: bool) {}

    fn stop(&self) {
        let mut stop = self.lock();
        stop.requested = true;
        // For a run that has not come to the kernel yet; the signal is for one that is there.
        self.page.leave_at_once(true);
        sys::interrupt(&stop, self.signal);
    }

    /// The processor sees what devices write.
    fn written(&self, _: u64, _: u64) {}
}

/// A signal that nothing else uses.
fn stop_signal() -> libc::c_int {
    libc::SIGRTMIN()
}
