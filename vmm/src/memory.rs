//! Guest RAM: one contiguous host mapping, shared by vCPU and devices.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Guest RAM as devices see it; cloning shares the mapping.
pub type GuestRam = Arc<GuestMemoryMmap<()>>;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("guest RAM of {0} bytes: give a multiple of 2 MiB, at least 64 MiB and at most 8 GiB")]
    Size(u64),
    #[error("guest RAM of {0} bytes: an x86-64 machine has at most 3 GiB")]
    SizeX86(u64),
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

/// Maps `size` bytes of zeroed guest RAM where the arm64 machine has it, at [`layout::RAM_BASE`].
pub fn anonymous(size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    map_anonymous(layout::RAM_BASE, size)
}

/// Maps `size` bytes of zeroed guest RAM where the x86-64 machine has it, at 0.
pub fn anonymous_x86(size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    if size > layout::x86_64::RAM_SIZE_MAX {
        return Err(MemoryError::SizeX86(size));
    }
    map_anonymous(0, size)
}

/// Maps guest RAM, at guest physical `base`, copy-on-write from `file`, which holds `size` bytes from `offset` on. Machines restored from one
/// file share the pages that none of them has written.
pub fn from_snapshot(file: File, offset: u64, base: u64, size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    map(base, size, Some(FileOffset::new(file, offset)), libc::MAP_PRIVATE | libc::MAP_NORESERVE)
}

/// The guest physical address of the first byte of RAM, and how many bytes there are.
pub fn extent(ram: &GuestRam) -> (u64, u64) {
    let base = ram.iter().map(|region| region.start_addr().0).min().expect("RAM has a region");
    (base, ram.last_addr().0 - base + 1)
}

/// In huge pages where the host has them: a guest's accesses are spread over all of its RAM, and each small page costs the host a fault
/// and a place in its own TLB.
fn map_anonymous(base: u64, size: u64) -> Result<GuestRam, MemoryError> {
    let ram = map(base, size, None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
    for region in ram.iter() {
        // SAFETY: the range is that of a mapping of ours, whose contents the advice does not change.
        let advised = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
        if advised != 0 {
            // A kernel without them: slower, no more.
            tracing::debug!(error = %std::io::Error::last_os_error(), "guest RAM has small pages");
        }
    }
    Ok(ram)
}

fn map(base: u64, size: u64, file: Option<FileOffset>, flags: i32) -> Result<GuestRam, MemoryError> {
    let region = MmapRegion::build(file, size as usize, libc::PROT_READ | libc::PROT_WRITE, flags)
        .map_err(|source| MemoryError::Map { size, source })?;
    let region = GuestRegionMmap::new(region, GuestAddress(base))
        .ok_or_else(|| MemoryError::Region("the region wraps around".into()))?;
    let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(|e| MemoryError::Region(e.to_string()))?;
    Ok(Arc::new(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_in_huge_pages_where_the_host_has_them() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("not tested: this kernel has no transparent huge pages");
            return;
        }
        let ram = anonymous(64 << 20).unwrap();
        let address = ram.iter().next().unwrap().as_ptr() as u64;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The mapping may have been joined to another.
        let holds = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
            range.contains(&address).then_some(())
        };
        let flags = maps.lines().skip_while(|line| holds(line).is_none()).find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "hg"), "{flags}");
    }
}
