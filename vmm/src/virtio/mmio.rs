//! The memory-mapped transport (virtio 1.2, 4.2.2), version 2 only: register block to [`VirtioDevice`].
//!
//! What the driver writes is checked here: features are a subset of the offered and include VERSION_1, queues lie in
//! RAM, registers that are not for now change nothing. A driver that breaks the rules finds DEVICE_NEEDS_RESET in its
//! status.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::guest::GuestAccess;
use super::interrupt::{DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK, Interrupt, Registers};
use super::queue::{Progress, QueueLayout, VirtQueue};
use super::{Activation, DeviceState, RestoreError, VirtioDevice};
use crate::bus::MmioDevice;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"PLUX");
/// Shared memory regions: none, which reads as this length and base (4.2.2, SHMLen).
const NO_REGION: u32 = u32::MAX;

const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What the machine does with every device, whichever it is.
pub trait Transport: MmioDevice {
    /// The vCPU has stopped: waits, at most so long, until no request is with somebody outside.
    fn quiesce(&mut self, timeout: Duration);
    /// Registers, queues and device, while the machine is paused.
    fn save(&self) -> Vec<u8>;
    /// Takes up what `save` returned; guest RAM is already in place, and the device has never been used.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError>;
}

/// A device behind its registers.
pub struct MmioTransport<D> {
    device: D,
    guest: Arc<GuestAccess>,
    interrupt: Interrupt,
    queues: Vec<VirtQueue>,
    driver: Driver,
}

/// What the driver wrote.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Driver {
    features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queue: u32,
    layouts: Vec<QueueLayout>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    device_id: u32,
    driver: Driver,
    registers: Registers,
    ready: Vec<bool>,
    progress: Vec<Progress>,
    device: serde_json::Value,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind registers; it interrupts on `intid`.
    pub fn new(device: D, guest: Arc<GuestAccess>, intid: u32) -> Self {
        let interrupt = Interrupt::new(guest.clone(), intid);
        let mut transport = Self { device, guest, interrupt, queues: Vec::new(), driver: Driver::default() };
        transport.renew_queues();
        transport
    }

    /// The device behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Gives the device and the driver fresh queues; a device's thread may still hold the old ones for a moment.
    fn renew_queues(&mut self) {
        self.queues.iter().for_each(VirtQueue::set_unready);
        let sizes = self.device.queue_sizes();
        let layout = |size: &u16| QueueLayout { size: u32::from(*size), ..QueueLayout::default() };
        self.driver = Driver { layouts: sizes.iter().map(layout).collect(), ..Driver::default() };
        let name = |index| format!("{}.{index}", self.device.name());
        let queue =
            |(index, size)| VirtQueue::new(self.guest.clone(), self.interrupt.clone(), name(index), size);
        self.queues = sizes.into_iter().enumerate().map(queue).collect();
    }

    fn offered(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    fn status(&self) -> u32 {
        self.interrupt.registers().device_status
    }

    fn is_active(&self) -> bool {
        self.status() & DRIVER_OK != 0
    }

    fn selected(&self) -> Option<(&VirtQueue, &QueueLayout)> {
        let index = self.driver.queue as usize;
        Some((self.queues.get(index)?, self.driver.layouts.get(index)?))
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => page(self.offered(), self.driver.device_features_page),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |(q, _)| u32::from(q.size_max())),
            VIRTIO_MMIO_QUEUE_READY => self.selected().is_some_and(|(q, _)| q.is_ready()).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.registers().interrupt_status,
            VIRTIO_MMIO_STATUS => self.status(),
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.registers().config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.driver.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver.driver_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status() & FEATURES_OK == 0 => {
                set_page(&mut self.driver.features, self.driver.driver_features_page, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.driver.queue = value,
            VIRTIO_MMIO_QUEUE_NUM..=VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW..=VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_queue_register(offset, value),
            VIRTIO_MMIO_QUEUE_NOTIFY if self.is_active() && (value as usize) < self.queues.len() => {
                self.device.notify(value as usize);
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => {}
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let event_idx = self.driver.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let index = self.driver.queue as usize;
        let (Some(queue), Some(layout)) = (self.queues.get(index), self.driver.layouts.get_mut(index)) else {
            return;
        };
        match (offset, queue.is_ready()) {
            (VIRTIO_MMIO_QUEUE_READY, true) if value == 0 => queue.set_unready(),
            (VIRTIO_MMIO_QUEUE_READY, false) if value & 1 == 1 => {
                if let Err(error) = queue.set_ready(*layout, event_idx) {
                    queue.break_down(&error);
                }
            }
            (VIRTIO_MMIO_QUEUE_NUM, false) => layout.size = value,
            (VIRTIO_MMIO_QUEUE_DESC_LOW, false) => set_page(&mut layout.descriptors, 0, value),
            (VIRTIO_MMIO_QUEUE_DESC_HIGH, false) => set_page(&mut layout.descriptors, 1, value),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, false) => set_page(&mut layout.available, 0, value),
            (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, false) => set_page(&mut layout.available, 1, value),
            (VIRTIO_MMIO_QUEUE_USED_LOW, false) => set_page(&mut layout.used, 0, value),
            (VIRTIO_MMIO_QUEUE_USED_HIGH, false) => set_page(&mut layout.used, 1, value),
            _ => {}
        }
    }

    /// Status only grows, except for a reset, which is the writing of zero (2.1.1).
    fn write_status(&mut self, value: u32) {
        let old = self.status();
        if value == 0 {
            return self.reset();
        }
        let mut new = (old | value) & !DEVICE_NEEDS_RESET;
        let features_fit =
            self.driver.features & !self.offered() == 0 && self.driver.features & (1 << VIRTIO_F_VERSION_1) != 0;
        if new & FEATURES_OK != 0 && old & FEATURES_OK == 0 && !features_fit {
            new &= !FEATURES_OK;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.interrupt.set_device_status(new);
        if new & DRIVER_OK != 0 && old & DRIVER_OK == 0 {
            self.activate();
            // Buffers may have been made available, and notified, before.
            (0..self.queues.len()).for_each(|index| self.device.notify(index));
        }
    }

    fn activate(&mut self) {
        self.device.activate(Activation {
            queues: self.queues.clone(),
            features: self.driver.features,
            interrupt: self.interrupt.clone(),
            guest: self.guest.clone(),
        });
    }

    fn reset(&mut self) {
        self.device.reset();
        self.renew_queues();
        self.interrupt.reset();
    }

    fn damaged(&self, reason: impl ToString) -> RestoreError {
        RestoreError::damaged(self.device.name(), reason)
    }
}

impl<D: VirtioDevice> MmioDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config_offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(config_offset, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(config_offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.write_config(config_offset, data);
        } else if let (true, Ok(bytes)) = (offset.is_multiple_of(4), data.try_into()) {
            self.write_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }
}

impl<D: VirtioDevice> Transport for MmioTransport<D> {
    fn quiesce(&mut self, timeout: Duration) {
        self.device.quiesce(timeout);
    }

    /// Layout: length of the JSON part as u32 little-endian, JSON, the device's bytes.
    fn save(&self) -> Vec<u8> {
        let device = self.device.save();
        let saved = Saved {
            device_id: self.device.device_id(),
            driver: self.driver.clone(),
            registers: self.interrupt.registers(),
            ready: self.queues.iter().map(VirtQueue::is_ready).collect(),
            progress: self.queues.iter().map(VirtQueue::progress).collect(),
            device: device.fields,
        };
        let json = serde_json::to_vec(&saved).expect("numbers and strings always serialise");
        let len = u32::try_from(json.len()).expect("device state is bounded far below 4 GiB");
        [&len.to_le_bytes(), json.as_slice(), &device.blob].concat()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let (json, blob) = split_saved(state).ok_or_else(|| self.damaged("it is cut short"))?;
        let saved: Saved = serde_json::from_slice(json).map_err(|e| self.damaged(e))?;
        if saved.device_id != self.device.device_id() {
            let found = format!("virtio device {}", saved.device_id);
            return Err(RestoreError::OtherDevice { found, expected: format!("virtio {}", self.device.name()) });
        }
        self.reset();
        let count = self.queues.len();
        if [saved.driver.layouts.len(), saved.ready.len(), saved.progress.len()] != [count; 3] {
            return Err(self.damaged("it has another number of queues"));
        }
        // Before they are accepted, a driver may have written anything.
        let accepted = saved.registers.device_status & (FEATURES_OK | DRIVER_OK) != 0;
        if accepted && saved.driver.features & !self.offered() != 0 {
            return Err(self.damaged("its driver uses features that this device does not have"));
        }
        self.driver = saved.driver;
        let event_idx = self.driver.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for (index, queue) in self.queues.iter().enumerate() {
            if saved.ready[index] {
                queue.set_ready(self.driver.layouts[index], event_idx).map_err(|e| self.damaged(e))?;
            }
            queue.restore_progress(saved.progress[index]);
        }
        self.interrupt.restore(saved.registers);
        if self.is_active() {
            self.activate();
        }
        self.device.restore(DeviceState { fields: saved.device, blob: blob.to_vec() })?;
        if self.is_active() {
            (0..count).for_each(|index| self.device.notify(index));
        }
        Ok(())
    }
}

fn split_saved(state: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = state.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// One 32-bit half of a 64-bit register.
fn page(value: u64, index: u32) -> u32 {
    match index {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_page(register: &mut u64, index: u32, value: u32) {
    match index {
        0 => *register = *register & !0xffff_ffff | u64::from(value),
        1 => *register = *register & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
