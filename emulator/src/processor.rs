//! Which processors a twin may have, and which of the ways to run one this host offers.
//!
//! It promises: what a host cannot run is refused, or replaced by the slow way, before there is a machine, with the reason. It
//! is the only place that knows both Unicorn and KVM.

use std::sync::Arc;

use serde::Deserialize;
use vmm::board::arm64::Arm64;
use vmm::board::x86_64::X86;
use vmm::boot::{self, BootEntry, BootError};
use vmm::bus::Bus;
use vmm::clock::HostClock;
use vmm::devices::uart::UartSink;
use vmm::machine::{MachineBuilder, MachineError};
use vmm::memory::{self, GuestRam, MemoryError};
use vmm::vcpu::{IrqChip, Vcpu, VcpuError};

use crate::cpu::{CpuConfig, CpuModel, UnicornCpu};
use crate::x86::UnicornX86Cpu;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use hardware::Hardware;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
use no_hardware::Hardware;

/// A processor as a configuration asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Model {
    /// An arm64 one, emulated.
    Arm64(CpuModel),
    /// `x86-64`: the host's own by KVM where that runs guests, and otherwise `qemu64`.
    X86,
    /// `qemu64`: an x86-64 one, emulated.
    Qemu64,
    /// `host`: the host's own by KVM.
    Host,
}

impl Model {
    const X86_NAMES: [(&str, Model); 3] = [("x86-64", Model::X86), ("qemu64", Model::Qemu64), ("host", Model::Host)];
}

impl TryFrom<String> for Model {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let x86 = Self::X86_NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, model)| model);
        CpuModel::by_name(&name).map(Model::Arm64).or(x86).ok_or_else(|| {
            let known = CpuModel::ALL.map(CpuModel::name).into_iter().chain(Self::X86_NAMES.map(|(known, _)| known));
            format!("CPU model {name:?}; there are {}", known.collect::<Vec<_>>().join(", "))
        })
    }
}

/// What to boot, on any processor.
#[derive(Clone, Debug)]
pub struct BootSource<'a> {
    pub kernel: &'a std::path::Path,
    pub initramfs: Option<&'a std::path::Path>,
    pub cmdline: &'a str,
    /// Which virtio-mmio slots have a device.
    pub virtio_slots: &'a [usize],
    pub rng_seed: [u8; 64],
}

/// Makes a machine's CPU, on the thread where it will live.
pub type MakeCpu = Box<dyn FnOnce(GuestRam, Arc<Bus>, Arc<dyn IrqChip>) -> Result<Box<dyn Vcpu>, VcpuError> + Send>;

/// A processor that this host can run, and how.
pub struct Processor(Kind);

enum Kind {
    Arm64(CpuModel),
    /// With the reason why not by KVM.
    Qemu64(String),
    Host(Hardware),
}

impl Processor {
    /// Finds out how to run `model` here. Fails, with the reason, only if it is [`Model::Host`].
    pub fn choose(model: Model) -> Result<Self, String> {
        Ok(Self(match model {
            Model::Arm64(model) => Kind::Arm64(model),
            Model::Qemu64 => Kind::Qemu64("chosen by the configuration".into()),
            Model::Host => Kind::Host(Hardware::open()?),
            Model::X86 => Hardware::open().map_or_else(Kind::Qemu64, Kind::Host),
        }))
    }

    /// Whether this host's KVM runs guests, or why not.
    pub fn probe_kvm() -> Result<(), String> {
        Hardware::open().map(drop)
    }

    /// Architecture, and who executes it, for people; if that is slow, why.
    pub fn describe(&self) -> String {
        match &self.0 {
            Kind::Arm64(model) => format!("arm64, emulated ({})", model.name()),
            Kind::Qemu64(reason) => format!("x86-64, emulated (slow): {reason}"),
            Kind::Host(_) => "x86-64, KVM".into(),
        }
    }

    /// Empty RAM where this processor's machine has it.
    pub fn ram(&self, bytes: u64) -> Result<GuestRam, MemoryError> {
        match self.0 {
            Kind::Arm64(_) => memory::anonymous(bytes),
            Kind::Qemu64(_) | Kind::Host(_) => memory::anonymous_x86(bytes),
        }
    }

    /// Puts all that the kernel needs into fresh RAM.
    pub fn load(&self, ram: &GuestRam, source: &BootSource) -> Result<BootEntry, BootError> {
        let BootSource { kernel, initramfs, cmdline, virtio_slots, rng_seed } = *source;
        match self.0 {
            Kind::Arm64(model) => boot::arm64::load(ram, &boot::arm64::BootSource {
                kernel,
                initramfs,
                cmdline,
                cpu_compatible: &format!("arm,{}", model.name()),
                virtio_slots,
                rng_seed,
                kaslr_seed: None,
            }),
            Kind::Qemu64(_) | Kind::Host(_) => {
                boot::x86_64::load(ram, &boot::x86_64::BootSource { kernel, initramfs, cmdline, virtio_slots, rng_seed })
            }
        }
    }

    /// Begins a machine around `ram`: its board, whose serial port prints to `console`, and how its CPU will be made. A buffer for
    /// translated code, in bytes, is used by those that translate.
    pub fn machine(&self, ram: GuestRam, console: Box<dyn UartSink>, tcg_buffer_bytes: usize) -> Result<(MachineBuilder, MakeCpu), MachineError> {
        let clock = Arc::new(HostClock);
        match &self.0 {
            Kind::Arm64(model) => {
                let config = CpuConfig { model: *model, tcg_buffer_bytes };
                let make = move |ram, bus, irq_chip| Ok(Box::new(UnicornCpu::new(ram, bus, irq_chip, config)?) as _);
                Ok((MachineBuilder::new(ram, Arm64::new(clock, console))?, Box::new(make)))
            }
            Kind::Qemu64(_) => {
                let board = X86::new(clock, console).map_err(|error| VcpuError::Engine(format!("the chips' timer does not start: {error}")))?;
                let (parts, chips) = (board.parts(), board.chips().expect("made with chips"));
                let make = move |ram, bus, _| Ok(Box::new(UnicornX86Cpu::new(ram, bus, parts, chips, tcg_buffer_bytes)?) as _);
                Ok((MachineBuilder::new(ram, board)?, Box::new(make)))
            }
            Kind::Host(hardware) => hardware.machine(ram, clock, console),
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod hardware {
    use vmm::clock::WallClock;
    use vmm::vcpu::kvm::{self, Kvm, KvmCpu};

    use super::*;

    /// KVM of which a trial has shown that it runs guests.
    pub(super) struct Hardware(Kvm);

    impl Hardware {
        pub(super) fn open() -> Result<Self, String> {
            let kvm = Kvm::open().map_err(|error| error.to_string())?;
            kvm::probe(&kvm).map_err(|error| error.to_string())?;
            Ok(Self(kvm))
        }

        pub(super) fn machine(
            &self,
            ram: GuestRam,
            clock: Arc<dyn WallClock>,
            console: Box<dyn UartSink>,
        ) -> Result<(MachineBuilder, MakeCpu), MachineError> {
            let machine = self.0.machine(ram.clone()).map_err(VcpuError::from)?;
            let board = X86::without_chips(machine.clone(), clock, console);
            let parts = board.parts();
            let make = move |_, bus, _| Ok(Box::new(KvmCpu::new(machine, bus, parts)?) as _);
            Ok((MachineBuilder::new(ram, board)?, Box::new(make)))
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod no_hardware {
    use vmm::clock::WallClock;

    use super::*;

    /// There is none of it.
    pub(super) enum Hardware {}

    impl Hardware {
        pub(super) fn open() -> Result<Self, String> {
            Err("this host is no x86-64 machine".into())
        }

        pub(super) fn machine(&self, _: GuestRam, _: Arc<dyn WallClock>, _: Box<dyn UartSink>) -> Result<(MachineBuilder, MakeCpu), MachineError> {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_cannot_run_is_replaced_or_refused_with_the_reason() {
        let auto = Processor::choose(Model::X86).expect("there is always a way").describe();
        match Processor::choose(Model::Host) {
            Ok(host) => assert_eq!((auto, host.describe()), ("x86-64, KVM".into(), "x86-64, KVM".into())),
            Err(reason) => assert_eq!(auto, format!("x86-64, emulated (slow): {reason}")),
        }
        assert!(Processor::choose(Model::Qemu64).unwrap().describe().contains("chosen by the configuration"));
    }
}
