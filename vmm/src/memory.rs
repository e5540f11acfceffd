//! Guest RAM: one contiguous host mapping, shared by vCPU and devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Of guest RAM, and of our mappings of it.
pub(crate) const PAGE: u64 = 4096;

/// A run of pages of guest RAM: bytes from its beginning, and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub at: u64,
    pub len: u64,
}

impl Run {
    pub(crate) fn end(self) -> u64 {
        self.at + self.len
    }

    pub(crate) fn pages(self) -> std::ops::Range<usize> {
        (self.at / PAGE) as usize..(self.end() / PAGE) as usize
    }
}

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

/// Maps `runs`, copy-on-write, from `file`, which holds them one after the other from `offset` on, over what `ram` has there. Nobody else uses
/// `ram` yet.
pub(crate) fn overlay(ram: &GuestRam, file: &File, mut offset: u64, runs: &[Run]) -> io::Result<()> {
    let region = ram.iter().next().expect("RAM has a region");
    for run in runs {
        assert!(run.end() <= region.len(), "runs lie in RAM");
        let place = region.as_ptr().wrapping_add(run.at as usize);
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED);
        let file_offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range lies in a mapping of ours, as asserted, which nobody uses yet; it stays mapped, as memory that can be read and
        // written, and is unmapped with the rest.
        let mapped = unsafe { libc::mmap(place.cast(), run.len as usize, access, flags, file.as_raw_fd(), file_offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        offset += run.len;
    }
    Ok(())
}

/// Has the host take back what it can read again from the files that RAM was mapped from, if no other machine shares it. Of what was written,
/// only a host with swap space takes anything.
pub fn page_out(ram: &GuestRam) {
    advise(ram, libc::MADV_PAGEOUT);
}

/// Has the host begin to read what it took back, all of it at once: one page after the other, as the guest comes to it, would take a disk a
/// hundred times as long.
pub fn page_in(ram: &GuestRam) {
    advise(ram, libc::MADV_WILLNEED);
}

fn advise(ram: &GuestRam, advice: libc::c_int) {
    for region in ram.iter() {
        // SAFETY: the range is that of a mapping of ours, whose contents this advice does not change.
        let advised = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
        if advised != 0 {
            // A kernel that does not know it: more memory, or more time, no more.
            tracing::debug!(advice, error = %io::Error::last_os_error(), "the host does not take advice on guest RAM");
        }
    }
}

// Of an entry of a pagemap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Tells which pages of RAM that was mapped from files were written since (Linux, admin-guide/mm/pagemap.rst).
pub(crate) struct Pagemap(File);

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// For each page whether it was written. Whoever writes meanwhile may be missed.
    pub(crate) fn written(&self, ram: &GuestRam) -> io::Result<Vec<bool>> {
        let written = |entry: &u64| entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0;
        Ok(self.entries(ram)?.iter().map(written).collect())
    }

    /// How many pages are in memory.
    #[cfg(test)]
    fn present(&self, ram: &GuestRam) -> io::Result<usize> {
        Ok(self.entries(ram)?.iter().filter(|entry| **entry & PRESENT != 0).count())
    }

    fn entries(&self, ram: &GuestRam) -> io::Result<Vec<u64>> {
        const ENTRY: usize = size_of::<u64>();
        let region = ram.iter().next().expect("RAM has a region");
        let mut entries = vec![0; (region.len() / PAGE) as usize * ENTRY];
        self.0.read_exact_at(&mut entries, region.as_ptr() as u64 / PAGE * ENTRY as u64)?;
        Ok(entries.as_chunks::<ENTRY>().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
    }
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
    advise(&ram, libc::MADV_HUGEPAGE);
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
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_was_read_is_taken_back_and_what_was_written_stays() {
        const SIZE: u64 = 64 << 20;
        // Not in memory, as /tmp may be.
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(SIZE).unwrap();
        let page = |i: u64| i * 64 * PAGE;
        (0..100).for_each(|i| file.write_all_at(&[i as u8], page(i)).unwrap());
        // Only what is on disk can be taken back.
        file.sync_all().unwrap();
        let ram = from_snapshot(file, 0, 0, SIZE).unwrap();
        let read = |i: u64| ram.read_obj::<u8>(GuestAddress(page(i))).unwrap();
        (0..100).for_each(|i| assert_eq!(read(i), i as u8));
        ram.write_obj(0xff_u8, GuestAddress(page(7))).unwrap();
        let pagemap = Pagemap::open().unwrap();
        let before = pagemap.present(&ram).unwrap();
        page_out(&ram);
        let after = pagemap.present(&ram).unwrap();
        assert!(before >= 100 && after < before / 2, "{before} pages, {after} pages");
        page_in(&ram);
        (0..100).for_each(|i| assert_eq!(read(i), if i == 7 { 0xff } else { i as u8 }));
    }

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
