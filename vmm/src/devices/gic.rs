//! Arm Generic Interrupt Controller, architecture version 2 (GICv2), for one CPU: distributor and CPU interface.
//!
//! What it promises: SGIs, PPIs and SPIs with enable, pending, active, priority, group, target and level or edge
//! configuration; priority masking and preemption; acknowledge, end of interrupt and separate deactivation, as in the
//! Arm GIC Architecture Specification (IHI 0048B), without the Security Extensions. What it leaves out: FIQ (both
//! groups are signalled as IRQ), the virtualisation extensions, and interrupt bypass.
//!
//! Locks: a device calls [`Gic::set_level`] holding its own lock, the vCPU's thread reaches the registers through the
//! bus, and the controller calls nothing but [`VcpuHandle::set_irq`]. So the order is always
//! device, controller, vCPU handle; a handle's `set_irq` must not call back.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{put_register, register_write};
use crate::bus::MmioDevice;
use crate::layout::INTID_COUNT;
use crate::vcpu::{IrqChip, VcpuHandle};

const WORDS: usize = INTID_COUNT as usize / 32;
const SGI_COUNT: u32 = 16;
const PRIVATE_COUNT: u32 = 32;
/// Read from IAR: nothing to acknowledge; and a Group 1 interrupt that this view may not acknowledge.
const SPURIOUS: u32 = 1023;
const WRONG_GROUP: u32 = 1022;
/// Running priority when nothing is active: lower than every priority.
const IDLE_PRIORITY: u8 = 0xff;

const GICD_CTLR: u64 = 0x000;
const GICD_TYPER: u64 = 0x004;
const GICD_IIDR: u64 = 0x008;
const GICD_SGIR: u64 = 0xf00;
/// IHI 0048B names the registers from 0xfd0 on; these values say GICv2 by Arm.
const GICD_IDS: u64 = 0xfd0;
const GICD_ID_BYTES: [u8; 12] = [0x04, 0, 0, 0, 0x90, 0xb4, 0x2b, 0, 0x0d, 0xf0, 0x05, 0xb1];
const IIDR_ARM: u32 = 0x43b;

const GICC_CTLR: u64 = 0x00;
const GICC_PMR: u64 = 0x04;
const GICC_BPR: u64 = 0x08;
const GICC_IAR: u64 = 0x0c;
const GICC_EOIR: u64 = 0x10;
const GICC_RPR: u64 = 0x14;
const GICC_HPPIR: u64 = 0x18;
const GICC_ABPR: u64 = 0x1c;
const GICC_AIAR: u64 = 0x20;
const GICC_AEOIR: u64 = 0x24;
const GICC_AHPPIR: u64 = 0x28;
const GICC_APR: u64 = 0xd0;
const GICC_IIDR: u64 = 0xfc;
const GICC_DIR: u64 = 0x1000;

const CTLR_ENABLE_GROUP0: u32 = 1 << 0;
const CTLR_ENABLE_GROUP1: u32 = 1 << 1;
const CTLR_ACK_GROUP1: u32 = 1 << 2;
const CTLR_COMMON_BPR: u32 = 1 << 4;
const CTLR_EOI_MODE: u32 = 1 << 9;
const BINARY_POINT_MASK: u8 = 7;
const GICC_CTLR_MASK: u32 = CTLR_ENABLE_GROUP0 | CTLR_ENABLE_GROUP1 | CTLR_ACK_GROUP1 | CTLR_COMMON_BPR | CTLR_EOI_MODE;

/// Everything the controller remembers; bit `n % 32` of word `n / 32` is interrupt `n`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicState {
    distributor_control: u32,
    enabled: [u32; WORDS],
    /// Made pending by an edge, by software, or as an SGI.
    latched: [u32; WORDS],
    /// Level of the input lines.
    lines: [u32; WORDS],
    active: [u32; WORDS],
    /// Edge-triggered; otherwise level-sensitive.
    edge: [u32; WORDS],
    group1: [u32; WORDS],
    /// Forwarded to the CPU (bit 0 of the target).
    targeted: [u32; WORDS],
    priority: [[u8; 32]; WORDS],
    cpu_control: u32,
    priority_mask: u8,
    binary_point: u8,
    aliased_binary_point: u8,
    /// GICC_APRn: a bit for each group priority (priority / 2) that is being handled.
    active_priorities: [u32; 4],
}

impl Default for GicState {
    fn default() -> Self {
        let mut state = Self {
            distributor_control: 0,
            enabled: [0; WORDS],
            latched: [0; WORDS],
            lines: [0; WORDS],
            active: [0; WORDS],
            edge: [0; WORDS],
            group1: [0; WORDS],
            targeted: [0; WORDS],
            priority: [[0; 32]; WORDS],
            cpu_control: 0,
            priority_mask: 0,
            binary_point: 0,
            aliased_binary_point: 1,
            active_priorities: [0; 4],
        };
        state.enabled[0] = (1 << SGI_COUNT) - 1;
        state.edge[0] = (1 << SGI_COUNT) - 1;
        state.targeted[0] = u32::MAX;
        state
    }
}

/// The controller. Share it; put [`Gic::distributor`] and [`Gic::cpu_interface`] on the bus and [`Gic::connect`] it to
/// the vCPU before that runs.
pub struct Gic {
    inner: Mutex<Inner>,
}

struct Inner {
    state: GicState,
    output: bool,
    cpu: Option<Arc<dyn VcpuHandle>>,
}

impl Gic {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { state: GicState::default(), output: false, cpu: None }) })
    }

    /// Joins the controller's output to the CPU's interrupt input, and drives it with the present level.
    pub fn connect(&self, cpu: Arc<dyn VcpuHandle>) {
        let mut inner = self.lock();
        cpu.set_irq(inner.output);
        inner.cpu = Some(cpu);
    }

    /// The distributor's registers, for the bus.
    pub fn distributor(self: &Arc<Self>) -> impl MmioDevice + 'static {
        Distributor(self.clone())
    }

    /// The CPU interface's registers, for the bus.
    pub fn cpu_interface(self: &Arc<Self>) -> impl MmioDevice + 'static {
        CpuInterface(self.clone())
    }

    pub fn save(&self) -> GicState {
        self.lock().state.clone()
    }

    /// Takes up a saved state and drives the CPU's interrupt input, which may have been restored to another level.
    pub fn restore(&self, state: GicState) {
        let mut inner = self.lock();
        // As if the guest had written it.
        inner.state = GicState {
            cpu_control: state.cpu_control & GICC_CTLR_MASK,
            binary_point: state.binary_point & BINARY_POINT_MASK,
            aliased_binary_point: (state.aliased_binary_point & BINARY_POINT_MASK).max(1),
            ..state
        };
        inner.update();
        if let Some(cpu) = &inner.cpu {
            cpu.set_irq(inner.output);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the interrupt controller does not panic while it holds its lock")
    }
}

impl IrqChip for Gic {
    fn set_level(&self, intid: u32, asserted: bool) {
        // SGIs have no line; other numbers out of range would be a mistake of ours that must not stop a guest.
        if !(SGI_COUNT..INTID_COUNT).contains(&intid) {
            return;
        }
        let mut inner = self.lock();
        if inner.state.set_line(intid, asserted) {
            inner.update();
        }
    }
}

impl Inner {
    /// Drives the CPU's interrupt input with what the state now says.
    fn update(&mut self) {
        let output = self.state.deliverable().is_some();
        if output != self.output {
            self.output = output;
            if let Some(cpu) = &self.cpu {
                cpu.set_irq(output);
            }
        }
    }
}

struct Distributor(Arc<Gic>);

impl MmioDevice for Distributor {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = self.0.lock().state.read_distributor(offset & !3);
        put_register(value, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut inner = self.0.lock();
        match (offset, data) {
            // Priorities and targets are byte-accessible (IHI 0048B 4.1.4).
            (0x400..0xc00, [value]) => inner.state.write_distributor_byte(offset, *value),
            _ => {
                if let (4, Some(value)) = (data.len(), register_write(offset, data)) {
                    inner.state.write_distributor(offset, value);
                }
            }
        }
        inner.update();
    }
}

struct CpuInterface(Arc<Gic>);

impl MmioDevice for CpuInterface {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset & 3 != 0 || data.len() != 4 {
            data.fill(0);
            return;
        }
        let mut inner = self.0.lock();
        let value = inner.state.read_cpu_interface(offset);
        inner.update();
        put_register(value, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (4, Some(value)) = (data.len(), register_write(offset, data)) {
            let mut inner = self.0.lock();
            inner.state.write_cpu_interface(offset, value);
            inner.update();
        }
    }
}

fn place(intid: u32) -> (usize, u32) {
    (intid as usize / 32, 1 << (intid % 32))
}

/// Distributor.
impl GicState {
    /// Notes a line's level; false if nothing changed.
    fn set_line(&mut self, intid: u32, asserted: bool) -> bool {
        let (word, bit) = place(intid);
        let was = self.lines[word] & bit != 0;
        if was == asserted {
            return false;
        }
        self.lines[word] ^= bit;
        if asserted && self.edge[word] & bit != 0 {
            self.latched[word] |= bit;
        }
        true
    }

    fn pending(&self, word: usize) -> u32 {
        self.latched[word] | (self.lines[word] & !self.edge[word])
    }

    fn read_distributor(&self, offset: u64) -> u32 {
        let word = (offset as usize & 0x7f) / 4;
        match offset {
            GICD_CTLR => self.distributor_control,
            GICD_TYPER => INTID_COUNT / 32 - 1,
            GICD_IIDR => IIDR_ARM,
            0x080..0x100 => self.group1.get(word).copied().unwrap_or(0),
            0x100..0x200 => self.enabled.get(word).copied().unwrap_or(0),
            0x200..0x300 if word < WORDS => self.pending(word),
            0x300..0x400 => self.active.get(word).copied().unwrap_or(0),
            0x400..0x800 => self.gather_bytes(offset - 0x400, |s, intid| s.priority[intid / 32][intid % 32]),
            0x800..0xc00 => self.gather_bytes(offset - 0x800, |s, intid| (s.targeted[intid / 32] >> (intid % 32) & 1) as u8),
            0xc00..0xd00 => self.read_config((offset - 0xc00) as usize / 4),
            0xf10..0xf30 => self.gather_bytes(offset & 0xf, |s, intid| (s.latched[0] >> intid & 1) as u8),
            GICD_IDS..0x1000 => u32::from(GICD_ID_BYTES[(offset - GICD_IDS) as usize / 4]),
            _ => 0,
        }
    }

    fn write_distributor(&mut self, offset: u64, value: u32) {
        let word = (offset as usize & 0x7f) / 4;
        match offset {
            GICD_CTLR => self.distributor_control = value & 3,
            GICD_SGIR => self.send_sgi(value),
            0xc00..0xd00 => self.write_config((offset - 0xc00) as usize / 4, value),
            0x400..0xc00 | 0xf10..0xf30 => {
                for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
                    self.write_distributor_byte(offset + i as u64, byte);
                }
            }
            0x080..0x400 if word < WORDS => self.write_bits(offset, word, value),
            _ => {}
        }
    }

    fn write_bits(&mut self, offset: u64, word: usize, value: u32) {
        let sgis = if word == 0 { (1 << SGI_COUNT) - 1 } else { 0 };
        match offset {
            0x080..0x100 => self.group1[word] = value,
            0x100..0x180 => self.enabled[word] |= value,
            // SGIs are always enabled; they are made pending and cleared by their own registers only.
            0x180..0x200 => self.enabled[word] &= !value | sgis,
            0x200..0x280 => self.latched[word] |= value & !sgis,
            0x280..0x300 => self.latched[word] &= !value | sgis,
            0x300..0x380 => self.active[word] |= value,
            _ => self.active[word] &= !value,
        }
    }

    fn write_distributor_byte(&mut self, offset: u64, value: u8) {
        match offset {
            0x400..0x800 => {
                let intid = offset as usize - 0x400;
                if intid < INTID_COUNT as usize {
                    self.priority[intid / 32][intid % 32] = value;
                }
            }
            0x800..0xc00 => {
                let intid = offset as u32 - 0x800;
                // Targets of private interrupts are read-only.
                if (PRIVATE_COUNT..INTID_COUNT).contains(&intid) {
                    let (word, bit) = place(intid);
                    self.targeted[word] = (self.targeted[word] & !bit) | if value & 1 != 0 { bit } else { 0 };
                }
            }
            // A bit for each CPU that sent the SGI: only ours.
            0xf10..0xf20 if value & 1 != 0 => self.latched[0] &= !(1 << (offset - 0xf10)),
            0xf20..0xf30 if value & 1 != 0 => self.latched[0] |= 1 << (offset - 0xf20),
            _ => {}
        }
    }

    /// GICD_SGIR: the list, "all but me" (nobody here) or "me".
    fn send_sgi(&mut self, value: u32) {
        let to_this_cpu = match value >> 24 & 3 {
            0 => value >> 16 & 1 != 0,
            2 => true,
            _ => false,
        };
        if to_this_cpu {
            self.latched[0] |= 1 << (value & 0xf);
        }
    }

    /// ICFGR: two bits each, of which the upper says edge.
    fn read_config(&self, register: usize) -> u32 {
        let Some(word) = self.edge.get(register / 2) else { return 0 };
        let half = word >> (16 * (register % 2));
        (0..16).fold(0, |value, i| value | (half >> i & 1) << (2 * i + 1))
    }

    fn write_config(&mut self, register: usize, value: u32) {
        let Some(word) = self.edge.get_mut(register / 2) else { return };
        let half = (0..16).fold(0, |half, i| half | (value >> (2 * i + 1) & 1) << i);
        let shift = 16 * (register % 2);
        *word = (*word & !(0xffff << shift)) | half << shift;
        // SGIs are edge-triggered whatever is written.
        self.edge[0] |= (1 << SGI_COUNT) - 1;
    }

    fn gather_bytes(&self, first: u64, byte: impl Fn(&Self, usize) -> u8) -> u32 {
        let bytes: [u8; 4] = std::array::from_fn(|i| {
            let intid = first as usize + i;
            if intid < INTID_COUNT as usize { byte(self, intid) } else { 0 }
        });
        u32::from_le_bytes(bytes)
    }
}

/// CPU interface.
impl GicState {
    fn read_cpu_interface(&mut self, offset: u64) -> u32 {
        match offset {
            GICC_CTLR => self.cpu_control,
            GICC_PMR => u32::from(self.priority_mask),
            GICC_BPR => u32::from(self.binary_point),
            GICC_ABPR => u32::from(self.aliased_binary_point),
            GICC_IAR => self.acknowledge(false),
            GICC_AIAR => self.acknowledge(true),
            GICC_RPR => u32::from(self.running_priority()),
            GICC_HPPIR => self.highest_pending_id(false),
            GICC_AHPPIR => self.highest_pending_id(true),
            GICC_APR..0xe0 => self.active_priorities[(offset - GICC_APR) as usize / 4],
            GICC_IIDR => 2 << 16 | IIDR_ARM,
            _ => 0,
        }
    }

    fn write_cpu_interface(&mut self, offset: u64, value: u32) {
        match offset {
            GICC_CTLR => self.cpu_control = value & GICC_CTLR_MASK,
            GICC_PMR => self.priority_mask = value as u8,
            GICC_BPR => self.binary_point = value as u8 & BINARY_POINT_MASK,
            GICC_ABPR => self.aliased_binary_point = (value as u8 & BINARY_POINT_MASK).max(1),
            GICC_EOIR | GICC_AEOIR => self.end_of_interrupt(value & 0x3ff),
            GICC_APR..0xe0 => self.active_priorities[(offset - GICC_APR) as usize / 4] = value,
            GICC_DIR if self.cpu_control & CTLR_EOI_MODE != 0 => self.deactivate(value & 0x3ff),
            _ => {}
        }
    }

    /// The pending interrupt of highest priority that distributor and CPU interface let through, whatever the CPU
    /// is now doing: its number and priority.
    fn highest_pending(&self) -> Option<(u32, u8)> {
        let mut best: Option<(u32, u8)> = None;
        for word in 0..WORDS {
            let groups = self.forwarded_groups(word);
            let mut candidates = self.enabled[word] & self.targeted[word] & !self.active[word] & self.pending(word) & groups;
            while candidates != 0 {
                let bit = candidates.trailing_zeros();
                candidates &= candidates - 1;
                let priority = self.priority[word][bit as usize];
                if best.is_none_or(|(_, p)| priority < p) {
                    best = Some((word as u32 * 32 + bit, priority));
                }
            }
        }
        best.filter(|(_, priority)| *priority < self.priority_mask)
    }

    /// Which interrupts of a word are in a group that is enabled in distributor and CPU interface.
    fn forwarded_groups(&self, word: usize) -> u32 {
        let enabled = self.distributor_control & self.cpu_control;
        let group0 = if enabled & CTLR_ENABLE_GROUP0 != 0 { !self.group1[word] } else { 0 };
        let group1 = if enabled & CTLR_ENABLE_GROUP1 != 0 { self.group1[word] } else { 0 };
        group0 | group1
    }

    /// What is signalled to the CPU now: the highest pending interrupt, if it preempts what is being handled.
    fn deliverable(&self) -> Option<(u32, u8)> {
        let (intid, priority) = self.highest_pending()?;
        (self.group_priority(intid, priority) < self.running_priority()).then_some((intid, priority))
    }

    /// The part of a priority that decides preemption (IHI 0048B 3.3.3).
    fn group_priority(&self, intid: u32, priority: u8) -> u8 {
        let low_bits = if self.is_group1(intid) && self.cpu_control & CTLR_COMMON_BPR == 0 {
            self.aliased_binary_point
        } else {
            self.binary_point + 1
        };
        (u32::from(priority) >> low_bits << low_bits) as u8
    }

    fn is_group1(&self, intid: u32) -> bool {
        let (word, bit) = place(intid);
        self.group1[word] & bit != 0
    }

    fn running_priority(&self) -> u8 {
        let word = self.active_priorities.iter().position(|w| *w != 0);
        word.map_or(IDLE_PRIORITY, |w| ((w as u32 * 32 + self.active_priorities[w].trailing_zeros()) * 2) as u8)
    }

    /// What a read of HPPIR or AHPPIR tells.
    fn highest_pending_id(&self, aliased: bool) -> u32 {
        self.highest_pending().map_or(SPURIOUS, |(intid, _)| self.seen_through(intid, aliased))
    }

    /// The number under which a view (ours, or the aliased one for Group 1) reports an interrupt.
    fn seen_through(&self, intid: u32, aliased: bool) -> u32 {
        match (self.is_group1(intid), aliased) {
            (true, true) | (false, false) => intid,
            (true, false) if self.cpu_control & CTLR_ACK_GROUP1 != 0 => intid,
            (true, false) => WRONG_GROUP,
            (false, true) => SPURIOUS,
        }
    }

    /// IAR: pending becomes active, and its priority is the running one.
    fn acknowledge(&mut self, aliased: bool) -> u32 {
        let Some((intid, priority)) = self.deliverable() else { return SPURIOUS };
        let seen = self.seen_through(intid, aliased);
        if seen == intid {
            let (word, bit) = place(intid);
            self.latched[word] &= !bit;
            self.active[word] |= bit;
            let level = usize::from(self.group_priority(intid, priority) / 2);
            self.active_priorities[level / 32] |= 1 << (level % 32);
        }
        seen
    }

    /// EOIR: drops the running priority and, unless deactivation is separate, ends the interrupt.
    fn end_of_interrupt(&mut self, intid: u32) {
        if intid >= INTID_COUNT {
            return;
        }
        if let Some(word) = self.active_priorities.iter_mut().find(|w| **w != 0) {
            *word &= *word - 1;
        }
        if self.cpu_control & CTLR_EOI_MODE == 0 {
            self.deactivate(intid);
        }
    }

    fn deactivate(&mut self, intid: u32) {
        if intid < INTID_COUNT {
            let (word, bit) = place(intid);
            self.active[word] &= !bit;
        }
    }
}

#[cfg(test)]
#[path = "gic_tests.rs"]
mod tests;
