//! The MMIO bus: which device answers at which guest physical address.

use std::sync::{Arc, Mutex};

use crate::layout::Region;

/// A device with memory-mapped registers, or on x86-64 with ports, which have a bus of their own. Called on the vCPU thread, which is paused meanwhile; so a device never
/// blocks here. `offset` is relative to the device's base. Accesses of odd sizes or places must be harmless:
/// they read as zero and write nothing.
pub trait MmioDevice: Send {
    /// Reads `data.len()` bytes (1, 2, 4 or 8), little-endian.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data.len()` bytes (1, 2, 4 or 8), little-endian.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Routes accesses to devices. Built once, before the machine runs; shared by reference with the vCPU.
#[derive(Default)]
pub struct Bus {
    devices: Vec<(Region, Arc<Mutex<dyn MmioDevice>>)>,
}

#[derive(Debug, thiserror::Error)]
#[error("device at {new:#x?} overlaps one at {old:#x?}")]
pub struct Overlap {
    new: Region,
    old: Region,
}

impl Bus {
    /// Adds a device; regions must not overlap.
    pub fn insert(&mut self, region: Region, device: Arc<Mutex<dyn MmioDevice>>) -> Result<(), Overlap> {
        let clash = self.devices.iter().find(|(r, _)| r.base < region.base + region.size && region.base < r.base + r.size);
        if let Some((old, _)) = clash {
            return Err(Overlap { new: region, old: *old });
        }
        let at = self.devices.partition_point(|(r, _)| r.base < region.base);
        self.devices.insert(at, (region, device));
        Ok(())
    }

    /// Reads at a guest physical address. Where no device is, zeros.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).read(offset, data);
        }
    }

    /// Writes at a guest physical address. Where no device is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &Mutex<dyn MmioDevice>)> {
        let at = self.devices.partition_point(|(r, _)| r.base <= address).checked_sub(1)?;
        let (region, device) = &self.devices[at];
        let offset = address - region.base;
        (offset + len as u64 <= region.size).then_some((offset, device.as_ref()))
    }
}

/// A poisoned lock means that a device panicked, which is our bug: the machine must not go on.
fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().expect("no device panics while it holds its lock")
}
