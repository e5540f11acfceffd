//! The local APIC (Intel Software Developer's Manual, volume 3, chapter 11) of the only CPU, in xAPIC mode.
//!
//! One CPU: every message is for it, and those for others vanish. Left out: x2APIC, TSC deadline, and the local
//! interrupts other than the timer and LINT0's connection to the 8259, which have no source here.

use serde::{Deserialize, Serialize};

const VERSION: u32 = 0x14 | 5 << 16;
const SPURIOUS_ENABLED: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_EXTINT: u32 = 7 << 8;
const TIMER_PERIODIC: u32 = 1 << 17;
/// The timer's clock, before its divider.
const NS_PER_TICK: u64 = 1;

/// Indices of the local vector table, from register 0x320 on.
const TIMER: usize = 0;
const LINT0: usize = 3;
const LINT1: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalApic {
    id: u32,
    task_priority: u8,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    in_service: [u32; 8],
    trigger: [u32; 8],
    requested: [u32; 8],
    error: u32,
    command: [u32; 2],
    local_vectors: [u32; 6],
    divide: u32,
    initial_count: u32,
    /// When the timer was last set or began a period, in guest time.
    started_ns: u64,
    /// A one-shot timer has fired, or was never set.
    expired: bool,
}

impl Default for LocalApic {
    fn default() -> Self {
        let mut local_vectors = [LVT_MASKED; 6];
        // As firmware leaves it: the 8259's interrupts pass through.
        local_vectors[LINT0] = LVT_EXTINT;
        local_vectors[LINT1] = 4 << 8;
        Self {
            id: 0,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            in_service: [0; 8],
            trigger: [0; 8],
            requested: [0; 8],
            error: 0,
            command: [0; 2],
            local_vectors,
            divide: 0,
            initial_count: 0,
            started_ns: 0,
            expired: true,
        }
    }
}

fn highest(bits: &[u32; 8]) -> Option<u8> {
    let word = bits.iter().rposition(|word| *word != 0)?;
    Some((word * 32 + 31 - bits[word].leading_zeros() as usize) as u8)
}

fn place(vector: u8) -> (usize, u32) {
    (usize::from(vector) / 32, 1 << (vector % 32))
}

impl LocalApic {
    /// A state that was saved, as it can be: no period is zero.
    pub(super) fn restored(self) -> Self {
        Self { expired: self.expired || self.initial_count == 0, ..self }
    }

    /// A message has come for this CPU. Vectors below 16 are illegal.
    pub(super) fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 || self.spurious & SPURIOUS_ENABLED == 0 {
            return;
        }
        let (word, bit) = place(vector);
        self.requested[word] |= bit;
        self.trigger[word] = self.trigger[word] & !bit | if level { bit } else { 0 };
    }

    /// The vector that the CPU may be interrupted by now.
    pub(super) fn deliverable(&self) -> Option<u8> {
        let vector = highest(&self.requested)?;
        (self.spurious & SPURIOUS_ENABLED != 0 && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The CPU takes that vector.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        let (word, bit) = place(vector);
        self.requested[word] &= !bit;
        self.in_service[word] |= bit;
        Some(vector)
    }

    /// The guest is done with the interrupt in service; gives its vector if it was level-triggered.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = highest(&self.in_service)?;
        let (word, bit) = place(vector);
        self.in_service[word] &= !bit;
        (self.trigger[word] & bit != 0).then_some(vector)
    }

    /// Whether the 8259's output reaches the CPU.
    pub(super) fn accepts_pic(&self) -> bool {
        self.local_vectors[LINT0] & (LVT_MASKED | 7 << 8) == LVT_EXTINT
    }

    pub(super) fn task_priority(&self) -> u8 {
        self.task_priority
    }

    pub(super) fn set_task_priority(&mut self, priority: u8) {
        self.task_priority = priority;
    }

    fn processor_priority(&self) -> u8 {
        let serving = highest(&self.in_service).unwrap_or(0) & 0xf0;
        if self.task_priority >> 4 >= serving >> 4 { self.task_priority } else { serving }
    }

    pub(super) fn read(&self, offset: u64, now_ns: u64) -> u32 {
        let word = (offset >> 4 & 7) as usize;
        match offset {
            0x020 => self.id,
            0x030 => VERSION,
            0x080 => self.task_priority.into(),
            0x0a0 => self.processor_priority().into(),
            0x0d0 => self.logical_destination,
            0x0e0 => self.destination_format,
            0x0f0 => self.spurious,
            0x100..0x180 => self.in_service[word],
            0x180..0x200 => self.trigger[word],
            0x200..0x280 => self.requested[word],
            0x280 => self.error,
            0x300 => self.command[0],
            0x310 => self.command[1],
            0x320..0x380 => self.local_vectors[(offset >> 4) as usize - 0x32],
            0x380 => self.initial_count,
            0x390 => self.current_count(now_ns),
            0x3e0 => self.divide,
            _ => 0,
        }
    }

    /// Writes a register; gives the level-triggered vector that the guest is done with.
    pub(super) fn write(&mut self, offset: u64, value: u32, now_ns: u64) -> Option<u8> {
        match offset {
            0x020 => self.id = value & 0xff00_0000,
            0x080 => self.task_priority = value as u8,
            0x0b0 => return self.end_of_interrupt(),
            0x0d0 => self.logical_destination = value & 0xff00_0000,
            0x0e0 => self.destination_format = value | 0x0fff_ffff,
            0x0f0 => self.spurious = value & 0x1ff,
            0x280 => self.error = 0,
            0x300 => {
                self.command[0] = value & !(1 << 12);
                self.send(value);
            }
            0x310 => self.command[1] = value & 0xff00_0000,
            0x320..0x380 => self.local_vectors[(offset >> 4) as usize - 0x32] = value & 0x3_a7ff,
            0x380 => {
                self.initial_count = value;
                self.started_ns = now_ns;
                self.expired = value == 0;
            }
            0x3e0 => self.divide = value & 0xb,
            _ => {}
        }
        None
    }

    /// An interprocessor interrupt: of those only fixed ones to ourselves mean something.
    fn send(&mut self, command: u32) {
        let ours = match command >> 18 & 3 {
            0 => self.command[1] >> 24 == self.id >> 24 || self.command[1] >> 24 == 0xff || command & 1 << 11 != 0,
            1 | 2 => true,
            _ => false,
        };
        if ours && command >> 8 & 7 <= 1 {
            self.request(command as u8, false);
        }
    }

    fn tick_ns(&self) -> u64 {
        // 0b000 divides by 2, ... 0b110 by 128, 0b111 by 1; bit 3 of the register is the highest.
        let code = self.divide & 3 | self.divide >> 1 & 4;
        NS_PER_TICK << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial_count) * self.tick_ns()
    }

    fn is_periodic(&self) -> bool {
        self.local_vectors[TIMER] & TIMER_PERIODIC != 0
    }

    fn current_count(&self, now_ns: u64) -> u32 {
        if self.expired {
            return 0;
        }
        let passed = now_ns.saturating_sub(self.started_ns) / self.tick_ns();
        let count = u64::from(self.initial_count);
        if self.is_periodic() { (count - passed % count) as u32 } else { count.saturating_sub(passed) as u32 }
    }

    /// When the timer fires next.
    pub(super) fn due_ns(&self) -> Option<u64> {
        (!self.expired && self.local_vectors[TIMER] & LVT_MASKED == 0).then(|| self.started_ns.saturating_add(self.period_ns()))
    }

    /// Fires the timer if it is due. Periods that were missed altogether are not made up for.
    pub(super) fn tick(&mut self, now_ns: u64) {
        if self.expired || now_ns < self.started_ns.saturating_add(self.period_ns()) {
            return;
        }
        if self.is_periodic() {
            self.started_ns += (now_ns - self.started_ns) / self.period_ns() * self.period_ns();
        } else {
            self.expired = true;
        }
        let vector = self.local_vectors[TIMER];
        if vector & LVT_MASKED == 0 {
            self.request(vector as u8, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> LocalApic {
        let mut apic = LocalApic::default();
        apic.write(0xf0, 0x1ff, 0);
        apic
    }

    #[test]
    fn higher_classes_interrupt_lower_ones() {
        let mut apic = enabled();
        apic.request(0x41, false);
        apic.request(0x4f, true);
        assert_eq!(apic.acknowledge(), Some(0x4f));
        assert_eq!(apic.deliverable(), None, "same class");
        apic.request(0x52, false);
        assert_eq!(apic.acknowledge(), Some(0x52));
        assert_eq!(apic.write(0xb0, 0, 0), None, "an edge");
        assert_eq!(apic.write(0xb0, 0, 0), Some(0x4f), "a level");
        assert_eq!(apic.acknowledge(), Some(0x41));
    }

    #[test]
    fn task_priority_holds_back() {
        let mut apic = enabled();
        apic.request(0x41, false);
        apic.write(0x80, 0x40, 0);
        assert_eq!(apic.deliverable(), None);
        apic.write(0x80, 0x3f, 0);
        assert_eq!(apic.deliverable(), Some(0x41));
        apic.write(0xf0, 0xff, 0);
        assert_eq!(apic.deliverable(), None, "disabled by software");
    }

    #[test]
    fn interrupts_itself_and_nobody_else() {
        let mut apic = enabled();
        apic.write(0x310, 5 << 24, 0);
        apic.write(0x300, 0x61, 0);
        assert_eq!(apic.deliverable(), None);
        apic.write(0x300, 1 << 18 | 0x61, 0);
        assert_eq!(apic.acknowledge(), Some(0x61));
    }

    #[test]
    fn the_timer_fires_once_or_again_and_again() {
        let mut apic = enabled();
        apic.write(0x3e0, 3, 0);
        apic.write(0x320, 0xec, 0);
        apic.write(0x380, 100, 1_000);
        assert_eq!(apic.due_ns(), Some(2_600), "divided by 16");
        assert_eq!(apic.read(0x390, 1_800), 50);
        apic.tick(2_599);
        assert_eq!(apic.deliverable(), None);
        apic.tick(2_600);
        assert_eq!(apic.acknowledge(), Some(0xec));
        assert_eq!((apic.due_ns(), apic.read(0x390, 9_000)), (None, 0));
        apic.write(0xb0, 0, 0);

        apic.write(0x320, TIMER_PERIODIC | 0xec, 0);
        apic.write(0x380, 100, 10_000);
        apic.tick(15_000);
        assert_eq!(apic.acknowledge(), Some(0xec));
        assert_eq!(apic.due_ns(), Some(16_400));
    }
}
