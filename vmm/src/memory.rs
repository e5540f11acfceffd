//! Guest RAM: one contiguous host mapping, shared by vCPU and devices.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Guest RAM as devices see it; cloning shares the mapping.
pub type GuestRam = Arc<GuestMemoryMmap<()>>;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("guest RAM of {0} bytes: give a multiple of 2 MiB, at least 64 MiB and at most 8 GiB")]
    Size(u64),
    #[error("cannot map {size} bytes of guest RAM")]
    Map { size: u64, source: vm_memory::mmap::MmapRegionError },
    #[error("guest RAM does not fit the address space: {0}")]
    Region(String),
}

/// Checks a RAM size in bytes against what the layout can hold.
pub fn check_size(size: u64) -> Result<(), MemoryError> {
    let fits = size.is_multiple_of(2 << 20) && (64 << 20..=layout::RAM_SIZE_MAX).contains(&size);
    fits.then_some(()).ok_or(MemoryError::Size(size))
}

/// Maps `size` bytes of zeroed guest RAM at [`layout::RAM_BASE`].
pub fn anonymous(size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    map(size, None, flags)
}

/// Maps guest RAM copy-on-write from `file`, which holds `size` bytes from `offset` on. Machines restored from one
/// file share the pages that none of them has written.
pub fn from_snapshot(file: File, offset: u64, size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    map(size, Some(FileOffset::new(file, offset)), libc::MAP_PRIVATE | libc::MAP_NORESERVE)
}

fn map(size: u64, file: Option<FileOffset>, flags: i32) -> Result<GuestRam, MemoryError> {
    let region = MmapRegion::build(file, size as usize, libc::PROT_READ | libc::PROT_WRITE, flags)
        .map_err(|source| MemoryError::Map { size, source })?;
    let region = GuestRegionMmap::new(region, GuestAddress(layout::RAM_BASE))
        .ok_or_else(|| MemoryError::Region("the region wraps around".into()))?;
    let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(|e| MemoryError::Region(e.to_string()))?;
    Ok(Arc::new(memory))
}
