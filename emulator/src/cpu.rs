//! The vCPU on Unicorn: one arm64 CPU with its generic timer and PSCI, as [`vmm::vcpu::Vcpu`].
//!
//! It promises: the guest enters at EL1 as the arm64 boot protocol asks; its physical timer (and no other) raises
//! [`layout::TIMER_INTID`]; its counter stands still while it does not run; interrupts, stops and device writes from other
//! threads take effect between two blocks of guest code. It leaves out: other CPUs, EL2 and EL3 software, the virtual
//! timer's interrupt.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::time::Duration;

use unicorn_engine_sys::{Arm64CpuModel, BUILD_ID, RegisterARM64 as Register};
use vmm::alarm::Alarm;
use vmm::bus::Bus;
use vmm::layout;
use vmm::memory::{self, GuestRam};
use vmm::vcpu::{IrqChip, Vcpu, VcpuError, VcpuExit, VcpuHandle, saved};

use crate::engine::{Around, Engine, EngineError, Running, SystemRegister, Timer};
use crate::handle::Handle;
use crate::lull::Lull;
use crate::psci;
use crate::timer::{Clock, Output, monotonic_ns};

/// What the engine can be asked for: less does not hold the translation of one block, more cannot be counted.
pub(crate) const TCG_BUFFER_BYTES: std::ops::RangeInclusive<usize> = 1 << 20..=1 << 30;

/// Names the engine build, which alone understands the CPU states that it saved.
pub const ENGINE_BUILD: &str = BUILD_ID;

/// Implemented CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuModel {
    CortexA53,
    CortexA57,
    CortexA72,
}

impl CpuModel {
    pub const ALL: [CpuModel; 3] = [CpuModel::CortexA53, CpuModel::CortexA57, CpuModel::CortexA72];

    /// As in configuration and in the device tree after `arm,`.
    pub fn name(self) -> &'static str {
        match self {
            CpuModel::CortexA53 => "cortex-a53",
            CpuModel::CortexA57 => "cortex-a57",
            CpuModel::CortexA72 => "cortex-a72",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }

    fn for_engine(self) -> Arm64CpuModel {
        match self {
            CpuModel::CortexA53 => Arm64CpuModel::A53,
            CpuModel::CortexA57 => Arm64CpuModel::A57,
            CpuModel::CortexA72 => Arm64CpuModel::A72,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    pub model: CpuModel,
    /// Room for translated code, from 1 MiB to 1 GiB; when full it is emptied. Used pages only count as memory.
    pub tcg_buffer_bytes: usize,
}

/// One virtual CPU. Not `Send`: it stays on the thread that made it.
pub struct UnicornCpu {
    engine: Engine<Surroundings>,
    handle: Arc<Handle>,
    model: CpuModel,
}

impl UnicornCpu {
    /// Makes a CPU that has all of `ram`, reaches devices in [`layout::MMIO`] through `bus`, and drives its timer's line of
    /// `irq_chip`.
    pub fn new(ram: GuestRam, bus: Arc<Bus>, irq_chip: Arc<dyn IrqChip>, config: CpuConfig) -> Result<Self, VcpuError> {
        let tcg_buffer_bytes = u32::try_from(config.tcg_buffer_bytes).ok().filter(|b| TCG_BUFFER_BYTES.contains(&(*b as usize)));
        let tcg_buffer_bytes = tcg_buffer_bytes
            .ok_or_else(|| VcpuError::Engine(format!("translation buffer of {} bytes: give 1 MiB to 1 GiB", config.tcg_buffer_bytes)))?;
        let surroundings = Surroundings {
            bus,
            irq_chip,
            ram: ram.clone(),
            wiring: OnceCell::new(),
            clock: Cell::new(Clock::Stopped { elapsed_ns: 0 }),
            timer: Cell::new(Timer::default()),
            timer_line: Cell::new(false),
            lull: Lull::default(),
            forgetting: Cell::new(false),
            paged_out: Cell::new(false),
            exit: Cell::new(None),
        };
        let engine = Engine::new(config.model.for_engine(), tcg_buffer_bytes, ram, layout::MMIO, surroundings)?;
        let handle = Handle::new(engine.kick());
        let rung = handle.clone();
        let alarm = Alarm::new(move || rung.attention()).map_err(|e| VcpuError::Engine(format!("cannot start its timer's thread: {e}")))?;
        let wired = engine.around().wiring.set(Wiring { handle: handle.clone(), alarm });
        assert!(wired.is_ok(), "set once");
        Ok(Self { engine, handle, model: config.model })
    }

    /// What a saved state must have been written by.
    fn identity(&self) -> String {
        format!("{BUILD_ID}/{}", self.model.name())
    }
}

impl From<EngineError> for VcpuError {
    fn from(error: EngineError) -> Self {
        VcpuError::Engine(error.to_string())
    }
}

/// EL1 with SP_EL1, all interrupts masked.
const PSTATE_BOOT: u64 = 0x3c5;
const SCR_EL3: SystemRegister = SystemRegister { op0: 3, op1: 6, crn: 1, crm: 1, op2: 0 };
const SCR_NS: u64 = 1 << 0;
const SCR_HCE: u64 = 1 << 8;
const SCR_RW: u64 = 1 << 10;
const HCR_EL2: SystemRegister = SystemRegister { op0: 3, op1: 4, crn: 1, crm: 1, op2: 0 };
const HCR_RW: u64 = 1 << 31;
const CNTHCTL_EL2: SystemRegister = SystemRegister { op0: 3, op1: 4, crn: 14, crm: 1, op2: 0 };
/// EL1 may use the physical counter and timer.
const CNTHCTL_EL1PCTEN_EL1PCEN: u64 = 0b11;

impl Vcpu for UnicornCpu {
    fn set_boot_state(&mut self, entry: u64, parameters: u64) -> Result<(), VcpuError> {
        self.engine.set_register(Register::PSTATE, PSTATE_BOOT)?;
        self.engine.set_system_register(SCR_EL3, SCR_NS | SCR_HCE | SCR_RW)?;
        self.engine.set_system_register(HCR_EL2, HCR_RW)?;
        self.engine.set_system_register(CNTHCTL_EL2, CNTHCTL_EL1PCTEN_EL1PCEN)?;
        self.engine.set_register(Register::X0, parameters)?;
        for zero in [Register::X1, Register::X2, Register::X3] {
            self.engine.set_register(zero, 0)?;
        }
        self.engine.set_register(Register::PC, entry)?;
        Ok(())
    }

    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        let origin_ns = self.engine.around().start();
        self.engine.set_clock(origin_ns);
        // Whatever was left while it did not run.
        self.handle.attention();
        let run = self.engine.run();
        let exit = self.engine.around().end();
        let fault = |reason: String| VcpuError::Fault { pc: self.engine.pc(), reason };
        run.map_err(|error| fault(error.to_string()))?;
        exit.ok_or_else(|| fault("the engine ended its run without a reason".into()))
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }

    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        let elapsed_ns = self.engine.around().clock.get().elapsed_ns(monotonic_ns());
        Ok(saved::encode(&self.identity(), elapsed_ns, &self.engine.save()))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError> {
        let (elapsed_ns, registers) = saved::decode(&self.identity(), state)?;
        if !self.engine.restore(registers) {
            return Err(VcpuError::DamagedState(format!("{} bytes of registers are not what this engine has", registers.len())));
        }
        let around = self.engine.around();
        around.set_clock(Clock::Stopped { elapsed_ns });
        around.timer.set(self.engine.timer());
        Ok(())
    }
}

/// What lies around the CPU; everything here is used on its thread only.
struct Surroundings {
    bus: Arc<Bus>,
    irq_chip: Arc<dyn IrqChip>,
    ram: GuestRam,
    /// Made after the engine, from its kick.
    wiring: OnceCell<Wiring>,
    clock: Cell<Clock>,
    timer: Cell<Timer>,
    /// Level of the timer's interrupt line, as the distributor knows it.
    timer_line: Cell<bool>,
    lull: Lull,
    /// Translated code is to be forgotten, and RAM that was only read.
    forgetting: Cell<bool>,
    /// Such RAM is not in memory.
    paged_out: Cell<bool>,
    /// Why the run ends.
    exit: Cell<Option<VcpuExit>>,
}

struct Wiring {
    handle: Arc<Handle>,
    alarm: Alarm,
}

impl Surroundings {
    fn wiring(&self) -> &Wiring {
        self.wiring.get().expect("the guest runs only on a finished CPU")
    }

    /// Starts the guest's clock; gives its origin on the host's.
    fn start(&self) -> i64 {
        let now_ns = monotonic_ns();
        let clock = self.clock.get().started(now_ns);
        self.set_clock(clock);
        self.exit.set(None);
        // After a restore the distributor may have the line as it was.
        let high = self.timer.get().output(clock.elapsed_ns(now_ns)) == Output::High;
        self.timer_line.set(!high);
        self.update_timer();
        match clock {
            Clock::Running { origin_ns } => origin_ns,
            Clock::Stopped { .. } => unreachable!("it was started above"),
        }
    }

    /// Stops the guest's clock; gives why the run ended.
    fn end(&self) -> Option<VcpuExit> {
        self.set_clock(self.clock.get().stopped(monotonic_ns()));
        self.wiring().alarm.set(None);
        self.exit.take()
    }

    fn set_clock(&self, clock: Clock) {
        self.clock.set(clock);
        self.wiring().handle.set_clock(clock);
    }

    /// Puts the timer's output on its line, and has it looked at again when that will change, or somebody waits for the time.
    fn update_timer(&self) {
        let elapsed_ns = self.clock.get().elapsed_ns(monotonic_ns());
        let output = self.timer.get().output(elapsed_ns);
        let high = output == Output::High;
        if self.timer_line.replace(high) != high {
            self.irq_chip.set_level(layout::TIMER_INTID, high);
        }
        let awaited = self.wiring().handle.left(elapsed_ns);
        if let Some(delay) = [output.delay(), awaited].into_iter().flatten().min() {
            self.wiring().alarm.set(Some(delay));
        }
    }
}

impl Around for Surroundings {
    fn attend(&self, cpu: &Running<'_>) {
        self.update_timer();
        if self.forgetting.replace(false) {
            cpu.forget();
            memory::page_out(&self.ram);
            self.paged_out.set(true);
        }
        let pending = self.wiring().handle.take();
        for (address, len) in pending.written {
            cpu.invalidate(address, len);
        }
        cpu.set_irq(pending.irq);
        if pending.stop {
            self.exit.set(Some(VcpuExit::Stopped));
            cpu.stop();
        }
    }

    fn idle(&self, cpu: &Running<'_>) {
        let handle = &self.wiring().handle;
        loop {
            let elapsed_ns = self.clock.get().elapsed_ns(monotonic_ns());
            let output = self.timer.get().output(elapsed_ns);
            if output == Output::High {
                break;
            }
            if let Some(by) = handle.pass_over(elapsed_ns, output.delay()) {
                let (clock, origin_ns) = self.clock.get().put_forward(by);
                self.set_clock(clock);
                cpu.set_clock(origin_ns);
                continue;
            }
            if self.lull.ends(cpu.code_bytes(), Duration::from_nanos(monotonic_ns().unsigned_abs()), || handle.rested()) {
                // An idle CPU is still within translated code.
                self.forgetting.set(true);
                handle.attention();
            }
            if !handle.wait(output.delay()) {
                break;
            }
        }
        self.update_timer();
        // More than the ticks of an idle guest: somebody wants something of it.
        if !self.timer_line.get() && self.paged_out.replace(false) {
            memory::page_in(&self.ram);
        }
    }

    fn firmware(&self, cpu: &Running<'_>, args: [u64; 4]) -> u64 {
        let exit = match psci::decode(args[0], args[1]) {
            psci::Call::Return(value) => return value,
            psci::Call::SystemOff => VcpuExit::PowerOff,
            psci::Call::SystemReset => VcpuExit::Reset,
        };
        self.exit.set(Some(exit));
        cpu.stop();
        0
    }

    fn timer(&self, timer: Timer) {
        self.timer.set(timer);
        self.update_timer();
    }

    fn read(&self, address: u64, data: &mut [u8]) {
        self.bus.read(address, data);
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.bus.write(address, data);
    }
}

#[cfg(test)]
#[path = "cpu_tests.rs"]
mod tests;
