//! Interrupt controllers and interval timers in software, wired as on a PC: what the kernel has where KVM runs the guest.
//!
//! ```text
//! lines ──┬──▶ 8259 pair ──▶ LINT0 ─┐
//!         └──▶ I/O APIC ───────────▶ local APIC ──▶ CPU
//! 8254 ─ line 0 (pin 2) ▲              └ timer
//! ```
//! All are under one lock. Timers go by the guest's clock; an alarm looks at them when the next is due, and they stand still
//! while that clock does. Order of locks: device, chips, vCPU handle.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ioapic::{IoApic, Message};
use super::lapic::LocalApic;
use super::pic::PicPair;
use super::pit::Pit;
use super::whole;
use crate::alarm::Alarm;
use crate::bus::{Bus, MmioDevice, Overlap};
use crate::clock::GuestClock;
use crate::layout::Region;
use crate::layout::x86_64::{self as layout, IOAPIC_PINS};
use crate::vcpu::{IrqChip, VcpuHandle};

/// Line of the 8254, and the pin to which a PC wires it.
const PIT_LINE: u32 = 0;
const PIT_PIN: u32 = 2;
/// The alarm looks at the timers no more often, so that a guest that sets one to a nanosecond gets no CPU of the host's for it;
/// as in KVM (min_timer_period_us).
const LOOK_GAP_NS: u64 = 200_000;
/// Port 0x61: gate of channel 2, speaker, refresh (which toggles), output of channel 2.
const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_WRITABLE: u8 = 3;
const SPEAKER_OUTPUT: u8 = 1 << 5;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsState {
    pic: PicPair,
    ioapic: IoApic,
    lapic: LocalApic,
    pit: Pit,
    /// When the 8254 last interrupted, or was looked at.
    pit_seen_ns: u64,
    speaker: u8,
    /// Level of each line.
    lines: u32,
}

/// Share it: as [`IrqChip`] with devices, and with the vCPU.
pub struct Chips {
    inner: Mutex<Inner>,
    clock: Arc<GuestClock>,
    alarm: OnceLock<Alarm>,
}

#[derive(Default)]
struct Inner {
    state: ChipsState,
    /// When the alarm last looked at the timers.
    looked_ns: u64,
    output: bool,
    cpu: Option<Arc<dyn VcpuHandle>>,
}

impl Chips {
    pub fn new(clock: Arc<GuestClock>) -> std::io::Result<Arc<Self>> {
        let chips = Arc::new(Self { inner: Mutex::default(), clock, alarm: OnceLock::new() });
        let weak: Weak<Self> = Arc::downgrade(&chips);
        let alarm = Alarm::new(move || {
            if let Some(chips) = weak.upgrade() {
                chips.lock().looked_ns = chips.clock.now_ns();
                chips.with(|_, _| ());
            }
        })?;
        let set = chips.alarm.set(alarm);
        assert!(set.is_ok(), "set once");
        Ok(chips)
    }

    /// Joins the output to the CPU's interrupt input, and drives it with the present level.
    pub fn connect(&self, cpu: Arc<dyn VcpuHandle>) {
        let mut inner = self.lock();
        cpu.set_irq(inner.output);
        inner.cpu = Some(cpu);
    }

    /// The guest's clock has begun to run: timers that are due by it fire, and the others are waited for.
    pub fn started(&self) {
        self.with(|_, _| ());
    }

    /// The CPU takes an interrupt: its vector, unless there is none any more.
    pub fn acknowledge(&self) -> Option<u8> {
        self.with(|state, _| {
            let vector = state.lapic.acknowledge();
            vector.or_else(|| (state.lapic.accepts_pic() && state.pic.output()).then(|| state.pic.acknowledge()))
        })
    }

    /// The local APIC's task priority as CR8 has it: its high four bits.
    pub fn task_priority(&self) -> u8 {
        self.lock().state.lapic.task_priority() >> 4
    }

    pub fn set_task_priority(&self, priority: u8) {
        self.with(|state, _| state.lapic.set_task_priority(priority << 4));
    }

    pub fn save(&self) -> ChipsState {
        self.lock().state.clone()
    }

    /// Takes up a saved state; the guest's clock has been restored already.
    pub fn restore(&self, state: ChipsState) {
        let mut inner = self.lock();
        inner.state = ChipsState { lapic: state.lapic.restored(), ..state };
        inner.output = inner.state.output();
        if let Some(cpu) = &inner.cpu {
            cpu.set_irq(inner.output);
        }
    }

    /// Puts the memory-mapped chips on the bus.
    pub(crate) fn populate(self: &Arc<Self>, bus: &mut Bus) -> Result<(), Overlap> {
        bus.insert(layout::LAPIC, self.part(Access::Lapic))?;
        bus.insert(layout::IOAPIC, self.part(Access::IoApic))
    }

    /// Puts those with ports on the bus of ports.
    pub(crate) fn populate_ports(self: &Arc<Self>, ports: &mut Bus) -> Result<(), Overlap> {
        let byte = |base, size| (Region { base, size }, self.part(Access::Port { base }));
        for (region, device) in [byte(0x20, 2), byte(0xa0, 2), byte(0x4d0, 2), byte(0x40, 4), byte(0x61, 1)] {
            ports.insert(region, device)?;
        }
        Ok(())
    }

    fn part(self: &Arc<Self>, access: Access) -> Arc<Mutex<Part>> {
        Arc::new(Mutex::new(Part { chips: self.clone(), access }))
    }

    /// Lets timers fire that are due, does something, and brings output and alarm up to date. The something gets the guest's
    /// time in nanoseconds.
    fn with<R>(&self, something: impl FnOnce(&mut ChipsState, u64) -> R) -> R {
        let mut inner = self.lock();
        let now_ns = self.clock.now_ns();
        inner.state.tick(now_ns);
        let result = something(&mut inner.state, now_ns);
        let output = inner.state.output();
        if output != inner.output {
            inner.output = output;
            if let Some(cpu) = &inner.cpu {
                cpu.set_irq(output);
            }
        }
        let wait = inner.wait(now_ns).filter(|_| self.clock.is_running());
        self.alarm.get().expect("made with the chips").set(wait);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the chips do not panic while they hold their lock")
    }
}

impl Inner {
    /// How long after `now_ns` the alarm is to look at the timers.
    fn wait(&self, now_ns: u64) -> Option<Duration> {
        let due_ns = self.state.due_ns(now_ns)?.max(self.looked_ns.saturating_add(LOOK_GAP_NS));
        Some(Duration::from_nanos(due_ns.saturating_sub(now_ns)))
    }
}

impl IrqChip for Chips {
    fn set_level(&self, line: u32, asserted: bool) {
        // Another number would be a mistake of ours that must not stop a guest.
        if line < IOAPIC_PINS && line != PIT_LINE && line != PIT_PIN {
            self.with(|state, _| state.set_line(line, asserted));
        }
    }
}

impl ChipsState {
    fn set_line(&mut self, line: u32, asserted: bool) {
        if self.lines >> line & 1 == u32::from(asserted) {
            return;
        }
        self.lines ^= 1 << line;
        if line < 16 {
            self.pic.set_line(line as u8, asserted);
        }
        let message = self.ioapic.set_line(line, asserted);
        self.deliver(message);
    }

    fn deliver(&mut self, messages: impl IntoIterator<Item = Message>) {
        messages.into_iter().for_each(|Message { vector, level }| self.lapic.request(vector, level));
    }

    fn output(&self) -> bool {
        self.lapic.deliverable().is_some() || self.lapic.accepts_pic() && self.pic.output()
    }

    fn tick(&mut self, now_ns: u64) {
        self.lapic.tick(now_ns);
        if self.pit.next_interrupt(self.pit_seen_ns).is_some_and(|due_ns| due_ns <= now_ns) {
            for asserted in [false, true] {
                self.pic.set_line(PIT_LINE as u8, asserted);
                let message = self.ioapic.set_line(PIT_PIN, asserted);
                self.deliver(message);
            }
        }
        self.pit_seen_ns = now_ns;
    }

    /// When a timer next does something.
    fn due_ns(&self, now_ns: u64) -> Option<u64> {
        self.lapic.due_ns().into_iter().chain(self.pit.next_interrupt(now_ns)).min()
    }

    fn read_port(&mut self, port: u64, now_ns: u64) -> u8 {
        match port {
            0x40..=0x43 => self.pit.read(port, now_ns),
            0x61 => {
                // Refresh toggles every 15 microseconds.
                let refresh = (now_ns / 15_000 & 1) as u8;
                let output = if self.pit.speaker_output(now_ns) { SPEAKER_OUTPUT } else { 0 };
                self.speaker | refresh << 4 | output
            }
            0x4d0 | 0x4d1 => *self.pic.level_mask(port & 1 == 1),
            _ => self.pic.read(port),
        }
    }

    fn write_port(&mut self, port: u64, value: u8, now_ns: u64) {
        match port {
            0x40..=0x43 => self.pit.write(port, value, now_ns),
            0x61 => {
                if value & !self.speaker & SPEAKER_GATE != 0 {
                    self.pit.raise_gate(now_ns);
                }
                self.speaker = value & SPEAKER_WRITABLE;
            }
            0x4d0 | 0x4d1 => *self.pic.level_mask(port & 1 == 1) = value,
            _ => self.pic.write(port, value),
        }
    }
}

/// One chip as a bus sees it.
struct Part {
    chips: Arc<Chips>,
    access: Access,
}

#[derive(Clone, Copy)]
enum Access {
    Lapic,
    IoApic,
    Port { base: u64 },
}

impl MmioDevice for Part {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (self.access, data) {
            (Access::Lapic, [a, b, c, d]) => {
                let value = self.chips.with(|state, now_ns| state.lapic.read(offset, now_ns));
                [*a, *b, *c, *d] = value.to_le_bytes();
            }
            (Access::IoApic, [a, b, c, d]) => [*a, *b, *c, *d] = self.chips.lock().state.ioapic.read(offset).to_le_bytes(),
            (Access::Port { base }, [byte]) => *byte = self.chips.with(|state, now_ns| state.read_port(base + offset, now_ns)),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.chips.with(|state, now_ns| match (self.access, whole(data), data) {
            (Access::Lapic, Some(value), _) => {
                if let Some(vector) = state.lapic.write(offset, value, now_ns) {
                    let again = state.ioapic.end_of_interrupt(vector);
                    state.deliver(again);
                }
            }
            (Access::IoApic, Some(value), _) => {
                let message = state.ioapic.write(offset, value);
                state.deliver(message);
            }
            (Access::Port { base }, _, [byte]) => state.write_port(base + offset, *byte, now_ns),
            _ => {}
        });
    }
}

#[cfg(test)]
#[path = "chips_tests.rs"]
mod tests;
