//! A device's interrupt line together with the registers that explain it (virtio 1.2, 4.2.2: InterruptStatus, Status,
//! ConfigGeneration), because a device's threads change them as much as the driver does.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::guest::{GuestAccess, lock};

/// InterruptStatus, bit 0: the device used a buffer.
const USED_BUFFER: u32 = 1;
/// InterruptStatus, bit 1: the device's configuration changed.
const CONFIG_CHANGED: u32 = 2;

/// Device status bits (virtio 1.2, 2.1).
pub(super) const DRIVER_OK: u32 = 4;
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const DEVICE_NEEDS_RESET: u32 = 64;

/// Cloning shares the line.
#[derive(Clone)]
pub struct Interrupt(Arc<Line>);

struct Line {
    guest: Arc<GuestAccess>,
    intid: u32,
    registers: Mutex<Registers>,
}

/// What the driver sees of the line.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) interrupt_status: u32,
    pub(super) device_status: u32,
    pub(super) config_generation: u32,
}

impl Interrupt {
    pub(super) fn new(guest: Arc<GuestAccess>, intid: u32) -> Self {
        Self(Arc::new(Line { guest, intid, registers: Mutex::default() }))
    }

    /// Tells the driver that the device's configuration space reads differently now.
    pub fn config_changed(&self) {
        self.change(|r| {
            r.config_generation = r.config_generation.wrapping_add(1);
            r.interrupt_status |= CONFIG_CHANGED;
        });
    }

    /// Tells the driver that a queue holds used buffers.
    pub(super) fn used_buffer(&self) {
        self.change(|r| r.interrupt_status |= USED_BUFFER);
    }

    /// Tells the driver that the device cannot go on until it is reset (2.1.2).
    pub(super) fn needs_reset(&self) {
        self.change(|r| {
            r.device_status |= DEVICE_NEEDS_RESET;
            if r.device_status & DRIVER_OK != 0 {
                r.interrupt_status |= CONFIG_CHANGED;
            }
        });
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.change(|r| r.interrupt_status &= !bits);
    }

    pub(super) fn set_device_status(&self, status: u32) {
        self.change(|r| r.device_status = status | (r.device_status & DEVICE_NEEDS_RESET));
    }

    pub(super) fn reset(&self) {
        self.change(|r| *r = Registers { config_generation: r.config_generation, ..Registers::default() });
    }

    pub(super) fn registers(&self) -> Registers {
        *lock(&self.0.registers)
    }

    pub(super) fn restore(&self, registers: Registers) {
        self.change(|r| *r = registers);
    }

    /// Changes registers and line as one step, so that no rise is lost to a concurrent acknowledgement.
    fn change(&self, change: impl FnOnce(&mut Registers)) {
        let mut registers = lock(&self.0.registers);
        change(&mut registers);
        self.0.guest.irq_chip().set_level(self.0.intid, registers.interrupt_status != 0);
    }
}
