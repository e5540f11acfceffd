//! The arm64 board: GICv2, PL011 and PL031, at the addresses of [`crate::layout`]; a device tree names them.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{Board, BoardState};
use crate::bus::{Bus, Overlap};
use crate::clock::WallClock;
use crate::devices::gic::{Gic, GicState};
use crate::devices::rtc::{Rtc, RtcState};
use crate::devices::uart::{Uart, UartInput, UartSink, UartState};
use crate::layout::{self, Region};
use crate::vcpu::{IrqChip, VcpuHandle};

pub struct Arm64 {
    gic: Arc<Gic>,
    uart: Arc<Mutex<Uart>>,
    uart_input: UartInput,
    rtc: Arc<Mutex<Rtc>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm64State {
    gic: GicState,
    uart: UartState,
    rtc: RtcState,
}

impl Arm64 {
    /// The serial port prints to `console`.
    pub fn new(clock: Arc<dyn WallClock>, console: Box<dyn UartSink>) -> Box<Self> {
        let gic = Gic::new();
        let uart = Uart::new(gic.clone(), layout::UART_INTID, console);
        let uart_input = uart.input();
        Box::new(Self { gic, uart: Arc::new(Mutex::new(uart)), uart_input, rtc: Arc::new(Mutex::new(Rtc::new(clock))) })
    }
}

impl Board for Arm64 {
    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        self.gic.clone()
    }

    fn populate(&self, bus: &mut Bus) -> Result<(), Overlap> {
        bus.insert(layout::GIC_DIST, Arc::new(Mutex::new(self.gic.distributor())))?;
        bus.insert(layout::GIC_CPU, Arc::new(Mutex::new(self.gic.cpu_interface())))?;
        bus.insert(layout::UART, self.uart.clone())?;
        bus.insert(layout::RTC, self.rtc.clone())
    }

    fn virtio_slot(&self, slot: usize) -> (Region, u32) {
        (layout::virtio_slot(slot), layout::virtio_intid(slot))
    }

    fn connect(&self, vcpu: Arc<dyn VcpuHandle>) {
        self.gic.connect(vcpu);
    }

    fn uart_input(&self) -> UartInput {
        self.uart_input.clone()
    }

    fn save(&self) -> BoardState {
        BoardState::Arm64(Arm64State { gic: self.gic.save(), uart: lock(&self.uart).save(), rtc: lock(&self.rtc).save() })
    }

    fn restore(&self, state: BoardState) -> Result<(), &'static str> {
        let BoardState::Arm64(state) = state else { return Err("an x86-64 machine") };
        self.gic.restore(state.gic);
        lock(&self.uart).restore(state.uart);
        lock(&self.rtc).restore(state.rtc);
        Ok(())
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().expect("no device panics while it holds its lock")
}
