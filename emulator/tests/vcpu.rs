//! The vCPUs on Unicorn pass the suite of all vCPUs.

use std::sync::Arc;

use emulator::cpu::{CpuConfig, CpuModel, UnicornCpu};
use emulator::x86::UnicornX86Cpu;
use vmm::board::Board;
use vmm::board::arm64::Arm64;
use vmm::board::x86_64::X86;
use vmm::bus::Bus;
use vmm::clock::HostClock;
use vmm::devices::uart::Unheard;
use vmm::memory::GuestRam;
use vmm::vcpu::Vcpu;
use vmm::vcpu::suite::{self, Guest, Subject};

const TCG_BUFFER_BYTES: usize = 4 << 20;

struct OnArm64;

impl Subject for OnArm64 {
    type Cpu = UnicornCpu;

    fn guest() -> &'static Guest {
        &suite::ARM64
    }

    fn cpu(ram: GuestRam, bus: Bus) -> UnicornCpu {
        let board = Arm64::new(Arc::new(HostClock), Box::new(Unheard));
        let config = CpuConfig { model: CpuModel::CortexA53, tcg_buffer_bytes: TCG_BUFFER_BYTES };
        let cpu = UnicornCpu::new(ram, Arc::new(bus), board.irq_chip(), config).unwrap();
        board.connect(cpu.handle());
        cpu
    }
}

struct OnX86;

impl Subject for OnX86 {
    type Cpu = UnicornX86Cpu;

    fn guest() -> &'static Guest {
        &suite::X86_64
    }

    fn cpu(ram: GuestRam, bus: Bus) -> UnicornX86Cpu {
        let board = X86::new(Arc::new(HostClock), Box::new(Unheard)).unwrap();
        let chips = board.chips().unwrap();
        let cpu = UnicornX86Cpu::new(ram, Arc::new(bus), board.parts(), chips, TCG_BUFFER_BYTES).unwrap();
        board.connect(cpu.handle());
        cpu
    }
}

mod arm64 {
    vmm::vcpu_suite!(super::OnArm64);
}

mod x86_64 {
    vmm::vcpu_suite!(super::OnX86);
}
