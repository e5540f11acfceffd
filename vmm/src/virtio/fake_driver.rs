//! A guest driver for tests and fuzzing: lays out queues in guest RAM and drives a device through its register bytes,
//! as a guest would, or as no guest should.
//!
//! It panics when the device does something that a driver could not live with: it is no part of a machine.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::guest::lock;
use super::{GuestAccess, MmioTransport, Transport, VirtioDevice};
use crate::bus::MmioDevice;
use crate::layout::RAM_BASE;
use crate::memory::{self, GuestRam};
use crate::vcpu::{IrqChip, VcpuHandle};

/// The smallest machine there is.
pub const RAM_BYTES: u64 = 64 << 20;
/// How long a device's thread may take to answer before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

const INTID: u32 = 48;
const QUEUE_SIZE_MAX: u16 = 64;

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// Registers (virtio 1.2, 4.2.2), as the driver knows them.
pub mod reg {
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

pub const STATUS_NEEDS_RESET: u32 = 64;
const STATUS_READY_FOR_FEATURES: u32 = 1 | 2;
const STATUS_FEATURES_OK: u32 = STATUS_READY_FOR_FEATURES | 8;
const STATUS_DRIVER_OK: u32 = STATUS_FEATURES_OK | 4;
const F_EVENT_IDX: u64 = 1 << 29;

/// A buffer of a chain.
pub enum Part<'a> {
    /// Bytes for the device.
    Out(&'a [u8]),
    /// Room for the device's answer.
    In(u32),
}

/// What the device gave back.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    /// The writable buffers' contents, as far as the device says it wrote.
    pub data: Vec<u8>,
}

/// Stands for both ends of the interrupt and for the vCPU; remembers what it is told.
#[derive(Default)]
pub struct Witness {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    level: bool,
    rises: u64,
    written: Vec<(u64, u64)>,
    reports_while_raised: u64,
    progress: Option<Duration>,
}

impl Witness {
    /// The guest's CPU has run for so long. Without it, the guest's time is the host's.
    pub fn pass(&self, time: Duration) {
        let mut seen = lock(&self.seen);
        seen.progress = Some(seen.progress.unwrap_or_default() + time);
    }
}

impl IrqChip for Witness {
    fn set_level(&self, intid: u32, asserted: bool) {
        assert_eq!(intid, INTID);
        let mut seen = lock(&self.seen);
        seen.rises += u64::from(asserted && !seen.level);
        seen.level = asserted;
        self.changed.notify_all();
    }
}

impl VcpuHandle for Witness {
    fn set_irq(&self, _asserted: bool) {}
    fn stop(&self) {}
    fn written(&self, address: u64, len: u64) {
        let mut seen = lock(&self.seen);
        seen.reports_while_raised += u64::from(seen.level);
        seen.written.push((address, len));
    }
    fn progress(&self) -> Option<Duration> {
        lock(&self.seen).progress
    }
}

struct Queue {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    free: Vec<u16>,
    next_available: u16,
    next_used: u16,
    /// By head.
    lent: Vec<Option<Lent>>,
}

/// A chain that the device has: its descriptors, and address and length of its writable buffers.
struct Lent {
    descriptors: Vec<u16>,
    writable: Vec<(u64, u32)>,
}

pub struct FakeDriver<D> {
    pub transport: MmioTransport<D>,
    pub guest: Arc<GuestAccess>,
    pub witness: Arc<Witness>,
    ram: GuestRam,
    queues: Vec<Queue>,
    features: u64,
    next_free: u64,
}

impl<D: VirtioDevice> FakeDriver<D> {
    /// A machine with this one device; nothing has been negotiated.
    pub fn new(device: D) -> Self {
        let ram = memory::anonymous(RAM_BYTES).expect("64 MiB of address space");
        Self::on(ram, device)
    }

    /// The same on RAM that exists, as after a restore.
    pub fn on(ram: GuestRam, device: D) -> Self {
        let witness = Arc::new(Witness::default());
        let guest = GuestAccess::new(ram.clone(), witness.clone());
        guest.connect(witness.clone());
        let transport = MmioTransport::new(device, guest.clone(), INTID);
        Self { transport, guest, witness, ram, queues: Vec::new(), features: 0, next_free: RAM_BASE }
    }

    /// A machine with a driver that has accepted every feature and set up every queue.
    pub fn started(device: D) -> Self {
        let mut driver = Self::new(device);
        driver.start(u64::MAX);
        driver
    }

    /// The standard initialisation (virtio 1.2, 3.1.1), accepting the offered features in `mask`.
    pub fn start(&mut self, mask: u64) {
        self.write32(reg::STATUS, 0);
        self.write32(reg::STATUS, STATUS_READY_FOR_FEATURES);
        self.features = self.device_features() & mask;
        self.accept(self.features);
        self.write32(reg::STATUS, STATUS_FEATURES_OK);
        assert_eq!(self.read32(reg::STATUS), STATUS_FEATURES_OK, "the device refuses its own features");
        self.queues.clear();
        self.next_free = RAM_BASE;
        while self.set_up_queue() {}
        self.write32(reg::STATUS, STATUS_DRIVER_OK);
    }

    pub fn device_features(&mut self) -> u64 {
        let half = |this: &mut Self, page| {
            this.write32(reg::DEVICE_FEATURES_SEL, page);
            u64::from(this.read32(reg::DEVICE_FEATURES))
        };
        half(self, 0) | half(self, 1) << 32
    }

    pub fn accept(&mut self, features: u64) {
        for (page, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write32(reg::DRIVER_FEATURES_SEL, page);
            self.write32(reg::DRIVER_FEATURES, half);
        }
    }

    /// Sets up the next queue, if the device has one more.
    fn set_up_queue(&mut self) -> bool {
        let index = self.queues.len();
        self.write32(reg::QUEUE_SEL, index as u32);
        let size = (self.read32(reg::QUEUE_NUM_MAX) as u16).min(QUEUE_SIZE_MAX);
        if size == 0 {
            return false;
        }
        let n = u64::from(size);
        let (descriptors, available, used) =
            (self.allocate(16 * n), self.allocate(6 + 2 * n), self.allocate(6 + 8 * n));
        self.write32(reg::QUEUE_NUM, u32::from(size));
        for (register, value) in
            [(reg::QUEUE_DESC, descriptors), (reg::QUEUE_DRIVER, available), (reg::QUEUE_DEVICE, used)]
        {
            self.write64(register, value);
        }
        self.write32(reg::QUEUE_READY, 1);
        assert_eq!(self.read32(reg::QUEUE_READY), 1, "queue {index} is refused");
        let free = (0..size).rev().collect();
        let lent = (0..size).map(|_| None).collect();
        self.queues.push(Queue { size, descriptors, available, used, free, next_available: 0, next_used: 0, lent });
        true
    }

    /// Moves a queue that is set up, as no driver does while it runs: to so many entries, a power of two, and to these addresses of
    /// descriptors, available and used ring. The device may refuse that; this driver goes on there all the same.
    pub fn place_queue(&mut self, queue: usize, size: u16, [descriptors, available, used]: [u64; 3]) {
        self.write32(reg::QUEUE_SEL, queue as u32);
        self.write32(reg::QUEUE_READY, 0);
        self.write32(reg::QUEUE_NUM, u32::from(size));
        for (register, value) in [(reg::QUEUE_DESC, descriptors), (reg::QUEUE_DRIVER, available), (reg::QUEUE_DEVICE, used)] {
            self.write64(register, value);
        }
        self.write32(reg::QUEUE_READY, 1);
        let q = &mut self.queues[queue];
        (q.size, q.descriptors, q.available, q.used) = (size, descriptors, available, used);
    }

    pub fn queue_size(&self, queue: usize) -> u16 {
        self.queues[queue].size
    }

    /// Where the available ring lies.
    pub fn available_ring(&self, queue: usize) -> u64 {
        self.queues[queue].available
    }

    /// How many chains the device has given back, as it says.
    pub fn used_index(&self, queue: usize) -> u16 {
        let index = self.read_ram(self.queues[queue].used + 2, 2);
        u16::from_le_bytes([index[0], index[1]])
    }

    /// The features that were accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Takes over queues that another driver set up on the same RAM, as a restored guest does.
    pub fn inherit(&mut self, other: Self) {
        self.queues = other.queues;
        self.next_free = other.next_free;
        self.features = other.features;
    }

    pub fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    /// Guest memory that nothing else uses, zeroed, 4 KiB aligned.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let address = self.next_free;
        self.next_free = (address + len).next_multiple_of(4096);
        assert!(self.next_free <= RAM_BASE + RAM_BYTES, "the fake driver is out of memory");
        self.write_ram(address, &vec![0; len as usize]);
        address
    }

    pub fn write_ram(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).expect("the test writes inside RAM");
    }

    pub fn read_ram(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).expect("the test reads inside RAM");
        bytes
    }

    pub fn read32(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write32(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub fn write64(&mut self, register: u64, value: u64) {
        self.write32(register, value as u32);
        self.write32(register + 4, (value >> 32) as u32);
    }

    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (i, chunk) in bytes.chunks_mut(1).enumerate() {
            self.transport.read(reg::CONFIG + offset + i as u64, chunk);
        }
        bytes
    }

    pub fn write_config(&mut self, offset: u64, byte: u8) {
        self.transport.write(reg::CONFIG + offset, &[byte]);
    }

    pub fn needs_reset(&mut self) -> bool {
        self.read32(reg::STATUS) & STATUS_NEEDS_RESET != 0
    }

    /// Makes a chain available and notifies the device if it wants that, as Linux does (virtio 1.2, 2.7.10).
    pub fn send(&mut self, queue: usize, parts: &[Part<'_>]) -> u16 {
        let head = self.add(queue, parts);
        fence(Ordering::SeqCst);
        let q = &self.queues[queue];
        let (used, size, new) = (q.used, u64::from(q.size), q.next_available);
        let half = |address| u16::from_le_bytes(self.read_ram(address, 2).try_into().expect("2 bytes"));
        let wanted = match self.features & F_EVENT_IDX {
            0 => half(used) & 1 == 0,
            _ => half(used + 4 + 8 * size) == new.wrapping_sub(1),
        };
        if wanted {
            self.kick(queue);
        }
        head
    }

    /// Makes a chain available.
    pub fn add(&mut self, queue: usize, parts: &[Part<'_>]) -> u16 {
        let mut chain = Vec::new();
        let mut writable = Vec::new();
        for part in parts {
            let index = self.queues[queue].free.pop().expect("the test keeps within the queue");
            let (address, len, flags) = match part {
                Part::Out(bytes) => {
                    let address = self.allocate(bytes.len() as u64);
                    self.write_ram(address, bytes);
                    (address, bytes.len() as u32, 0)
                }
                Part::In(len) => {
                    let address = self.allocate(u64::from(*len));
                    writable.push((address, *len));
                    (address, *len, F_WRITE)
                }
            };
            chain.push((index, address, len, flags));
        }
        for (at, &(index, address, len, flags)) in chain.iter().enumerate() {
            let next = chain.get(at + 1).map(|c| c.0);
            let flags = flags | if next.is_some() { F_NEXT } else { 0 };
            self.raw_descriptor(queue, index, address, len, flags, next.unwrap_or(0));
        }
        let head = chain[0].0;
        let descriptors = chain.iter().map(|c| c.0).collect();
        self.queues[queue].lent[usize::from(head)] = Some(Lent { descriptors, writable });
        self.offer(queue, head);
        head
    }

    /// Writes one descriptor as it is, sense or nonsense.
    pub fn raw_descriptor(&mut self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.queues[queue].descriptors + 16 * u64::from(index);
        self.write_ram(at, &descriptor_bytes(address, len, flags, next));
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let q = &mut self.queues[queue];
        let slot = q.available + 4 + 2 * u64::from(q.next_available % q.size);
        q.next_available = q.next_available.wrapping_add(1);
        let (index_at, index) = (q.available + 2, q.next_available);
        self.write_ram(slot, &head.to_le_bytes());
        self.write_ram(index_at, &index.to_le_bytes());
    }

    /// Writes the available ring's index as it is.
    pub fn set_available_index(&mut self, queue: usize, index: u16) {
        let at = self.queues[queue].available + 2;
        self.write_ram(at, &index.to_le_bytes());
    }

    pub fn kick(&mut self, queue: usize) {
        self.write32(reg::QUEUE_NOTIFY, queue as u32);
    }

    /// What the device has used next, if anything.
    pub fn used(&mut self, queue: usize) -> Option<Used> {
        let (used, size, next) = {
            let q = &self.queues[queue];
            (q.used, q.size, q.next_used)
        };
        let index = u16::from_le_bytes(self.read_ram(used + 2, 2).try_into().expect("2 bytes"));
        if index == next {
            return None;
        }
        let element = self.read_ram(used + 4 + 8 * u64::from(next % size), 8);
        let (head, len) = element.split_at(4);
        let head = u32::from_le_bytes(head.try_into().expect("4 bytes")) as u16;
        let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
        let q = &mut self.queues[queue];
        q.next_used = next.wrapping_add(1);
        let lent = q.lent[usize::from(head)].take();
        let Lent { descriptors, writable } = lent.expect("the device uses a chain that it was lent");
        q.free.extend(descriptors);
        let used_event = (q.available + 4 + 2 * u64::from(size), q.next_used);
        if self.features & F_EVENT_IDX != 0 {
            self.write_ram(used_event.0, &used_event.1.to_le_bytes());
        }
        let mut data: Vec<u8> = writable.iter().flat_map(|&(a, l)| self.read_ram(a, l as usize)).collect();
        assert!(len <= data.len(), "the device says it wrote {len} of {} bytes", data.len());
        data.truncate(len);
        Some(Used { head, data })
    }

    /// Waits for the device's thread to use a buffer, by its interrupts.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = lock(&self.witness.seen).rises;
            let pending = self.read32(reg::INTERRUPT_STATUS);
            self.write32(reg::INTERRUPT_ACK, pending);
            if let Some(used) = self.used(queue) {
                return used;
            }
            self.wait_interrupt(before, deadline);
        }
    }

    fn wait_interrupt(&self, rises_before: u64, deadline: Instant) {
        let seen = lock(&self.witness.seen);
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no interrupt came");
        let unchanged = |seen: &mut Seen| seen.rises == rises_before && !seen.level;
        drop(self.witness.changed.wait_timeout_while(seen, left, unchanged).expect("no test panics with it"));
    }

    /// Sends a request and waits for the answer.
    pub fn transact(&mut self, queue: usize, parts: &[Part<'_>]) -> Vec<u8> {
        let head = self.send(queue, parts);
        let used = self.wait_used(queue);
        assert_eq!(used.head, head);
        used.data
    }

    /// Ranges of guest RAM that the device reported since the last call.
    pub fn reported_writes(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut lock(&self.witness.seen).written)
    }

    /// Writes that were reported while the interrupt was already raised: for a single request, too late.
    pub fn late_reports(&self) -> u64 {
        lock(&self.witness.seen).reports_while_raised
    }

    pub fn interrupt_level(&self) -> bool {
        lock(&self.witness.seen).level
    }

    /// Saves the device and drops the machine but for its RAM; gives a machine with `device` restored in its place.
    pub fn moved_to(mut self, device: D) -> Self {
        self.transport.quiesce(PATIENCE);
        self.guest.close_gate();
        let state = self.transport.save();
        let mut there = Self::on(self.ram.clone(), device);
        there.inherit(self);
        there.transport.restore(&state).expect("a saved device can be restored");
        there
    }
}

/// A descriptor as it lies in RAM.
pub fn descriptor_bytes(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
