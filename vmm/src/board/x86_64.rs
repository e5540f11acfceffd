//! The x86-64 board: a PC without PCI. A 16550, the CMOS clock, ACPI's power registers, and interrupt controllers and timers,
//! which are ours or, with KVM, the kernel's. ACPI tables name what the kernel cannot know.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{Board, BoardState};
use crate::bus::{Bus, Overlap};
use crate::clock::{GuestClock, WallClock};
use crate::devices::uart::{UartInput, UartSink};
use crate::devices::x86::chips::{Chips, ChipsState};
use crate::devices::x86::cmos::{Cmos, CmosState};
use crate::devices::x86::power::{POWER_PORTS, Power, PowerState, PowerSwitch, ResetPort};
use crate::devices::x86::uart::{Uart16550, Uart16550State};
use crate::layout::{Region, x86_64 as layout};
use crate::vcpu::{IrqChip, VcpuHandle};

/// The board, and what its vCPU needs of it.
pub struct X86 {
    irq_chip: Arc<dyn IrqChip>,
    /// Absent where the kernel has them.
    chips: Option<Arc<Chips>>,
    parts: Parts,
    uart: Arc<Mutex<Uart16550>>,
    cmos: Arc<Mutex<Cmos>>,
    power: Arc<Mutex<Power>>,
}

/// What a vCPU for this board is made with, beside RAM and bus.
#[derive(Clone)]
pub struct Parts {
    pub ports: Arc<Bus>,
    /// To be looked at after each write to a port.
    pub power: Arc<PowerSwitch>,
    /// The vCPU starts and stops it, and its time stamp counter goes by it.
    pub clock: Arc<GuestClock>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct X86State {
    uart: Uart16550State,
    cmos: CmosState,
    power: PowerState,
    chips: Option<ChipsState>,
}

impl X86 {
    /// A board with chips in software. The serial port prints to `console`.
    pub fn new(clock: Arc<dyn WallClock>, console: Box<dyn UartSink>) -> std::io::Result<Box<Self>> {
        let guest_clock = Arc::new(GuestClock::default());
        let chips = Chips::new(guest_clock.clone())?;
        Ok(Self::assemble(chips.clone(), Some(chips), guest_clock, clock, console))
    }

    /// A board whose interrupt controllers and interval timer are elsewhere, behind `irq_chip`.
    pub fn without_chips(irq_chip: Arc<dyn IrqChip>, clock: Arc<dyn WallClock>, console: Box<dyn UartSink>) -> Box<Self> {
        Self::assemble(irq_chip, None, Arc::default(), clock, console)
    }

    fn assemble(
        irq_chip: Arc<dyn IrqChip>,
        chips: Option<Arc<Chips>>,
        guest_clock: Arc<GuestClock>,
        clock: Arc<dyn WallClock>,
        console: Box<dyn UartSink>,
    ) -> Box<Self> {
        let switch = Arc::new(PowerSwitch::default());
        let uart = Arc::new(Mutex::new(Uart16550::new(irq_chip.clone(), layout::UART_LINE, console)));
        let cmos = Arc::new(Mutex::new(Cmos::new(clock)));
        let power = Arc::new(Mutex::new(Power::new(guest_clock.clone(), switch.clone())));
        let mut ports = Bus::default();
        let mut put = |region, device| ports.insert(region, device).expect("the ports of the layout do not overlap");
        put(layout::UART, uart.clone() as _);
        put(layout::CMOS, cmos.clone() as _);
        put(Region { base: POWER_PORTS.0, size: POWER_PORTS.1 }, power.clone() as _);
        for (port, value) in ResetPort::PORTS {
            put(Region { base: port, size: 1 }, Arc::new(Mutex::new(ResetPort::new(value, switch.clone()))) as _);
        }
        if let Some(chips) = &chips {
            chips.populate_ports(&mut ports).expect("the ports of the layout do not overlap");
        }
        let parts = Parts { ports: Arc::new(ports), power: switch, clock: guest_clock };
        Box::new(Self { irq_chip, chips, parts, uart, cmos, power })
    }

    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }

    /// The chips in software, for a vCPU that takes its interrupts from them.
    pub fn chips(&self) -> Option<Arc<Chips>> {
        self.chips.clone()
    }
}

impl Board for X86 {
    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        self.irq_chip.clone()
    }

    fn populate(&self, bus: &mut Bus) -> Result<(), Overlap> {
        self.chips.as_ref().map_or(Ok(()), |chips| chips.populate(bus))
    }

    fn virtio_slot(&self, slot: usize) -> (Region, u32) {
        (layout::virtio_slot(slot), layout::virtio_line(slot))
    }

    fn connect(&self, vcpu: Arc<dyn VcpuHandle>) {
        if let Some(chips) = &self.chips {
            chips.connect(vcpu);
        }
    }

    fn uart_input(&self) -> UartInput {
        lock(&self.uart).input()
    }

    fn save(&self) -> BoardState {
        BoardState::X86(Box::new(X86State {
            uart: lock(&self.uart).save(),
            cmos: lock(&self.cmos).save(),
            power: lock(&self.power).save(),
            chips: self.chips.as_ref().map(|chips| chips.save()),
        }))
    }

    fn restore(&self, state: BoardState) -> Result<(), &'static str> {
        let BoardState::X86(state) = state else { return Err("an arm64 machine") };
        match (&self.chips, state.chips) {
            (Some(chips), Some(saved)) => chips.restore(saved),
            (None, None) => {}
            (Some(_), None) => return Err("a machine on KVM"),
            (None, Some(_)) => return Err("a machine without KVM"),
        }
        lock(&self.uart).restore(state.uart);
        lock(&self.cmos).restore(state.cmos);
        lock(&self.power).restore(state.power);
        Ok(())
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().expect("no device panics while it holds its lock")
}
