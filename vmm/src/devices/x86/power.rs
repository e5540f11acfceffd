//! Power: ACPI's fixed PM1 registers, the PM timer, and the reset ports.
//!
//! The guest powers off by SLP_EN with the sleep type of \_S5, and resets through port 0xcf9 (which the FADT names) or the
//! keyboard controller's pulse. There is no power button, so that the event registers never have an event.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::clock::GuestClock;
use crate::layout::x86_64::{PM_BASE, SLEEP_TYPE_OFF};
use crate::vcpu::VcpuExit;

const PM1_ENABLE: u64 = 2;
const PM1_CONTROL: u64 = 4;
const PM_TIMER: u64 = 8;
const PM_TIMER_HZ: u64 = 3_579_545;
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;

const RESET_PORT: u64 = 0xcf9;
const RESET_CPU: u8 = 1 << 2;
const KEYBOARD_PORT: u64 = 0x64;
const KEYBOARD_PULSE_RESET: u8 = 0xfe;

/// What the guest asked for, for the vCPU to take after each write to a port.
#[derive(Default)]
pub struct PowerSwitch(Mutex<Option<VcpuExit>>);

impl PowerSwitch {
    pub fn take(&self) -> Option<VcpuExit> {
        self.0.lock().expect("nothing panics while it holds the switch").take()
    }

    fn press(&self, exit: VcpuExit) {
        *self.0.lock().expect("nothing panics while it holds the switch") = Some(exit);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    enable: u16,
    control: u16,
}

/// The PM1 registers and timer.
pub struct Power {
    state: PowerState,
    clock: Arc<GuestClock>,
    switch: Arc<PowerSwitch>,
}

impl Power {
    pub fn new(clock: Arc<GuestClock>, switch: Arc<PowerSwitch>) -> Self {
        // Already in ACPI mode: there is no other.
        Self { state: PowerState { enable: 0, control: SCI_ENABLE }, clock, switch }
    }

    pub fn save(&self) -> PowerState {
        self.state.clone()
    }

    pub fn restore(&mut self, state: PowerState) {
        self.state = state;
    }
}

impl MmioDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let timer = (u128::from(self.clock.now_ns()) * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u32;
        let value = match offset {
            PM1_ENABLE => self.state.enable.into(),
            PM1_CONTROL => self.state.control.into(),
            PM_TIMER => timer,
            _ => 0,
        };
        data.fill(0);
        let len = data.len().min(4);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u16::from_le_bytes) else { return };
        match offset {
            PM1_ENABLE => self.state.enable = value,
            PM1_CONTROL => {
                self.state.control = value & !SLEEP_ENABLE | SCI_ENABLE;
                if value & SLEEP_ENABLE != 0 && value >> 10 & 7 == u16::from(SLEEP_TYPE_OFF) {
                    self.switch.press(VcpuExit::PowerOff);
                }
            }
            _ => {}
        }
    }
}

/// One of the ports by which a PC resets itself.
pub struct ResetPort {
    value: u8,
    switch: Arc<PowerSwitch>,
}

impl ResetPort {
    /// The reset control register at 0xcf9, and the keyboard controller's command port.
    pub(crate) const PORTS: [(u64, u8); 2] = [(RESET_PORT, RESET_CPU), (KEYBOARD_PORT, KEYBOARD_PULSE_RESET)];

    /// A port that resets when these bits are written.
    pub(crate) fn new(value: u8, switch: Arc<PowerSwitch>) -> Self {
        Self { value, switch }
    }
}

impl MmioDevice for ResetPort {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if matches!(data, [byte] if byte & self.value == self.value) {
            self.switch.press(VcpuExit::Reset);
        }
    }
}

/// First port of [`Power`] and how many there are.
pub(crate) const POWER_PORTS: (u64, u64) = (PM_BASE as u64, 0x0c);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sleep_type_of_s5_powers_off() {
        let switch = Arc::new(PowerSwitch::default());
        let mut power = Power::new(Arc::default(), switch.clone());
        power.write(PM1_CONTROL, &[0, 0x20]);
        assert_eq!(switch.take(), None, "another sleep type");
        let off = SLEEP_ENABLE | u16::from(SLEEP_TYPE_OFF) << 10;
        power.write(PM1_CONTROL, &off.to_le_bytes());
        assert_eq!((switch.take(), switch.take()), (Some(VcpuExit::PowerOff), None));
        let mut control = [0; 2];
        power.read(PM1_CONTROL, &mut control);
        assert_eq!(u16::from_le_bytes(control) & (SLEEP_ENABLE | SCI_ENABLE), SCI_ENABLE);
    }

    #[test]
    fn the_timer_goes_by_the_guests_clock() {
        let clock = Arc::new(GuestClock::default());
        let mut power = Power::new(clock.clone(), Arc::default());
        clock.set(2_000_000_000);
        let mut timer = [0; 4];
        power.read(PM_TIMER, &mut timer);
        assert_eq!(u32::from_le_bytes(timer), 7_159_090);
    }

    #[test]
    fn both_ports_reset() {
        for (port, value) in ResetPort::PORTS {
            let switch = Arc::new(PowerSwitch::default());
            let mut reset = ResetPort::new(value, switch.clone());
            reset.write(0, &[0]);
            assert_eq!(switch.take(), None, "{port:#x}");
            reset.write(0, &[value]);
            assert_eq!(switch.take(), Some(VcpuExit::Reset));
        }
    }
}
