//! The I/O APIC (Intel 82093AA): sends the interrupts of lines as messages to the local APIC.

use serde::{Deserialize, Serialize};

use crate::layout::x86_64::IOAPIC_PINS;

const PINS: usize = IOAPIC_PINS as usize;
const VERSION: u32 = 0x11 | (IOAPIC_PINS - 1) << 16;

const VECTOR: u64 = 0xff;
const DELIVERY: u64 = 7 << 8;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IoApic {
    select: u8,
    id: u32,
    lines: u32,
    entries: [u64; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self { select: 0, id: 0, lines: 0, entries: [MASKED; PINS] }
    }
}

/// An interrupt on its way to the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) vector: u8,
    pub(super) level: bool,
}

impl IoApic {
    /// Sets a pin; gives what is to be sent.
    pub(super) fn set_line(&mut self, pin: u32, asserted: bool) -> Option<Message> {
        let bit = 1 << pin;
        let rises = asserted && self.lines & bit == 0;
        self.lines = self.lines & !bit | u32::from(asserted) << pin;
        let entry = self.entries[pin as usize];
        if entry & LEVEL != 0 || rises { self.send(pin as usize) } else { None }
    }

    /// The guest is done with a level-triggered vector; gives what is to be sent again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry & LEVEL != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                again.extend(self.send_level(pin));
            }
        }
        again
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (0x00, select) => select.into(),
            (0x10, 0 | 2) => self.id,
            (0x10, 1) => VERSION,
            (0x10, select @ 0x10..) => {
                let entry = self.entries.get(usize::from(select - 0x10) / 2).copied().unwrap_or(0);
                if select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    /// Writes a register; gives what is to be sent.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match (offset, self.select) {
            (0x00, _) => self.select = value as u8,
            (0x10, 0) => self.id = value & 0x0f00_0000,
            (0x10, select @ 0x10..) => {
                let pin = usize::from(select - 0x10) / 2;
                let entry = self.entries.get_mut(pin)?;
                if select & 1 == 1 {
                    *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
                    return None;
                }
                *entry = *entry & (!0xffff_ffff | READ_ONLY) | u64::from(value) & !READ_ONLY;
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                return self.send_level(pin);
            }
            _ => {}
        }
        None
    }

    fn send_level(&mut self, pin: usize) -> Option<Message> {
        if self.entries[pin] & LEVEL != 0 { self.send(pin) } else { None }
    }

    /// Sends if the pin may: one CPU, so that destinations do not matter; fixed and lowest priority only.
    fn send(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.entries[pin];
        let level = *entry & LEVEL != 0;
        if *entry & MASKED != 0 || *entry & DELIVERY > 1 << 8 || level && (*entry & REMOTE_IRR != 0 || self.lines & 1 << pin == 0) {
            return None;
        }
        if level {
            *entry |= REMOTE_IRR;
        }
        Some(Message { vector: (*entry & VECTOR) as u8, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(apic: &mut IoApic, pin: u8, entry: u32) -> Option<Message> {
        apic.write(0, u32::from(0x10 + pin * 2));
        apic.write(0x10, entry)
    }

    #[test]
    fn edges_are_sent_once_and_lost_while_masked() {
        let mut apic = IoApic::default();
        assert_eq!(apic.set_line(4, true), None);
        assert_eq!(set(&mut apic, 4, 0x31), None);
        assert_eq!(apic.set_line(4, true), None, "no edge");
        apic.set_line(4, false);
        assert_eq!(apic.set_line(4, true), Some(Message { vector: 0x31, level: false }));
    }

    #[test]
    fn a_level_is_sent_again_after_each_end_while_it_is_high() {
        let mut apic = IoApic::default();
        apic.set_line(10, true);
        let message = Message { vector: 0x41, level: true };
        assert_eq!(set(&mut apic, 10, 0x8041), Some(message), "unmasked while high");
        assert_eq!(apic.set_line(10, true), None, "it is being served");
        assert_eq!(apic.read(0x10) & 1 << 14, 1 << 14);
        assert_eq!(apic.end_of_interrupt(0x41), [message]);
        apic.set_line(10, false);
        assert_eq!(apic.end_of_interrupt(0x41), []);
        assert_eq!(apic.set_line(10, true), Some(message));
    }

    #[test]
    fn says_how_many_pins_it_has() {
        let mut apic = IoApic::default();
        apic.write(0, 1);
        assert_eq!(apic.read(0x10), 0x0017_0011);
        apic.write(0, 0xff);
        assert_eq!(apic.read(0x10), 0);
        assert_eq!(apic.write(0x10, 0x8041), None);
    }
}
