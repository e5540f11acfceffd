//! The x86-64 vCPU on Unicorn: the slow fallback for machines where KVM cannot run guests.
//!
//! It promises: the guest enters in 64-bit mode as the boot protocol asks; interrupts come from the board's chips; its time
//! stamp counter, at 1 GHz, stands still while it does not run; interrupts, stops and device writes from other threads take
//! effect between two blocks of guest code. It leaves out: other CPUs, SMM, and what QEMU 5's TCG leaves out, AVX foremost.

mod engine;

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use unicorn_engine_sys::{BUILD_ID, RegisterX86, X86CpuModel};
use vmm::board::x86_64::Parts;
use vmm::bus::Bus;
use vmm::devices::x86::chips::Chips;
use vmm::layout::x86_64 as layout;
use vmm::memory::GuestRam;
use vmm::vcpu::{Vcpu, VcpuError, VcpuExit, VcpuHandle, saved};

use crate::cpu::TCG_BUFFER_BYTES;
use crate::handle::Handle;
use engine::{Around, Engine, Running};

/// The implemented model, QEMU's generic one: an AMD CPU, so that Linux does not isolate its page tables.
const MODEL: X86CpuModel = X86CpuModel::QEMU64;
const MODEL_NAME: &str = "qemu64";

/// One virtual CPU. Not `Send`: it stays on the thread that made it.
pub struct UnicornX86Cpu {
    engine: Engine<Surroundings>,
    handle: Arc<Handle>,
}

impl UnicornX86Cpu {
    /// Makes a CPU that has all of `ram`, which begins at 0, and reaches devices through `bus` and the board's `parts` and
    /// `chips`.
    pub fn new(ram: GuestRam, bus: Arc<Bus>, parts: Parts, chips: Arc<Chips>, tcg_buffer_bytes: usize) -> Result<Self, VcpuError> {
        let size = u32::try_from(tcg_buffer_bytes).ok().filter(|bytes| TCG_BUFFER_BYTES.contains(&(*bytes as usize)));
        let size = size.ok_or_else(|| VcpuError::Engine(format!("translation buffer of {tcg_buffer_bytes} bytes: give 1 MiB to 1 GiB")))?;
        let surroundings = Surroundings { bus, parts, chips, handle: OnceCell::new(), exit: Cell::new(None) };
        let engine = Engine::new(MODEL, size, ram, surroundings)?;
        let handle = Handle::new(engine.kick());
        let set = engine.around().handle.set(handle.clone());
        assert!(set.is_ok(), "set once");
        Ok(Self { engine, handle })
    }

    /// What a saved state must have been written by.
    fn identity() -> String {
        format!("{BUILD_ID}/x86-64 {MODEL_NAME}")
    }
}

impl Vcpu for UnicornX86Cpu {
    fn set_boot_state(&mut self, entry: u64, parameters: u64) -> Result<(), VcpuError> {
        self.engine.enter(layout::PAGE_TABLES, layout::GDT, entry, parameters);
        Ok(())
    }

    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        let around = self.engine.around();
        around.exit.set(None);
        let origin_ns = around.parts.clock.start();
        around.chips.started();
        self.engine.set_clock(origin_ns);
        // Whatever was left while it did not run.
        self.handle.attention();
        let run = self.engine.run();
        let around = self.engine.around();
        around.parts.clock.stop();
        let fault = |reason: String| VcpuError::Fault { pc: self.engine.register(RegisterX86::RIP), reason };
        run.map_err(|error| fault(error.to_string()))?;
        around.exit.take().ok_or_else(|| fault("the engine ended its run without a reason".into()))
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }

    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        let elapsed_ns = self.engine.around().parts.clock.now_ns();
        Ok(saved::encode(&Self::identity(), elapsed_ns, &self.engine.save()))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError> {
        let (elapsed_ns, registers) = saved::decode(&Self::identity(), state)?;
        if !self.engine.restore(registers) {
            return Err(VcpuError::DamagedState(format!("{} bytes of registers are not what this engine has", registers.len())));
        }
        self.engine.around().parts.clock.set(elapsed_ns);
        Ok(())
    }
}

/// What lies around the CPU; everything here is used on its thread only.
struct Surroundings {
    bus: Arc<Bus>,
    parts: Parts,
    chips: Arc<Chips>,
    /// Made after the engine, from its kick.
    handle: OnceCell<Arc<Handle>>,
    /// Why the run ends.
    exit: Cell<Option<VcpuExit>>,
}

impl Surroundings {
    fn handle(&self) -> &Handle {
        self.handle.get().expect("the guest runs only on a finished CPU")
    }
}

impl Around for Surroundings {
    fn attend(&self, cpu: &Running<'_>) {
        let pending = self.handle().take();
        for (address, len) in pending.written {
            cpu.invalidate(address, len);
        }
        cpu.set_irq(pending.irq);
        if pending.stop {
            self.exit.set(Some(VcpuExit::Stopped));
            cpu.stop();
        }
    }

    fn idle(&self, interruptible: bool) -> bool {
        self.handle().wait_halted(interruptible)
    }

    fn acknowledge(&self) -> Option<u8> {
        self.chips.acknowledge()
    }

    fn read_port(&self, port: u64, data: &mut [u8]) {
        self.parts.ports.read(port, data);
    }

    fn write_port(&self, cpu: &Running<'_>, port: u64, data: &[u8]) {
        self.parts.ports.write(port, data);
        if let Some(exit) = self.parts.power.take() {
            self.exit.set(Some(exit));
            cpu.stop();
        }
    }

    fn priority(&self) -> u8 {
        self.chips.task_priority()
    }

    fn set_priority(&self, priority: u8) {
        self.chips.set_task_priority(priority);
    }

    fn shutdown(&self) {
        self.exit.set(Some(VcpuExit::Reset));
    }

    fn read(&self, address: u64, data: &mut [u8]) {
        self.bus.read(address, data);
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.bus.write(address, data);
    }
}
