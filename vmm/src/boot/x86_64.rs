//! Loads an x86-64 Linux kernel, its initramfs, boot_params, page tables and ACPI tables into guest RAM.
//!
//! The kernel is a bzImage with a 64-bit entry, as in Linux's `Documentation/x86/boot.rst`, which unpacks itself, or the ELF file that
//! it unpacks, which spares an emulated CPU the work. Where things lie is drawn in [`crate::layout::x86_64`].

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::{BootEntry, BootError, acpi, check_cmdline, copy, load_initramfs, open, vmlinux};
use crate::layout::x86_64 as layout;
use crate::memory::{self, GuestRam};

const WANTED: &str = "a bzImage with a 64-bit entry";
/// As much of the file as the header's fields that we read.
const HEADER_BYTES: usize = 0x268;
const SECTOR: u64 = 512;
/// The oldest protocol that has all these fields: 2.12, Linux 3.8.
const PROTOCOL_MIN: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry lies this far into the kernel.
const ENTRY_64: u64 = 0x200;
const LOADER_UNKNOWN: u8 = 0xff;
/// boot_params is one page; the header lies in it where it lies in the file.
const BOOT_PARAMS_BYTES: usize = 4096;
const HEADER_START: usize = 0x1f1;
const SETUP_RNG_SEED: u32 = 9;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// RAM that a PC's firmware keeps below the hole at 640 KiB.
const EXTENDED_BIOS: u64 = 0x9_fc00;
const MIB: u64 = 1 << 20;

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootSource<'a> {
    pub kernel: &'a Path,
    pub initramfs: Option<&'a Path>,
    pub cmdline: &'a str,
    /// Which virtio-mmio slots have a device.
    pub virtio_slots: &'a [usize],
    pub rng_seed: [u8; 64],
}

/// Puts all that the kernel needs into fresh guest RAM.
pub fn load(ram: &GuestRam, source: &BootSource) -> Result<BootEntry, BootError> {
    check_cmdline(source.cmdline)?;
    let (_, ram_size) = memory::extent(ram);
    let (entry, kernel_end, header) = load_kernel(ram, source.kernel, ram_size)?;
    let initramfs = source.initramfs.map(|path| load_initramfs(ram, path, kernel_end)).transpose()?;

    let put = |what, bytes: &[u8], at| ram.write_slice(bytes, GuestAddress(at)).map_err(|source| BootError::Ram { what, source });
    put("the command line", &[source.cmdline.as_bytes(), &[0]].concat(), layout::COMMAND_LINE)?;
    put_flat_memory(ram)?;
    put("the ACPI tables", &acpi::tables(source.virtio_slots), layout::FIRMWARE)?;
    put("the seed", &seed(&source.rng_seed), layout::SETUP_DATA)?;
    put("boot_params", &boot_params(&header, initramfs, ram_size), layout::BOOT_PARAMS)?;
    Ok(BootEntry { kernel: entry, parameters: layout::BOOT_PARAMS })
}

/// Puts page tables and segments that [`crate::vcpu::Vcpu::set_boot_state`] expects: the first 4 GiB, each address mapped to itself.
pub fn put_flat_memory(ram: &GuestRam) -> Result<(), BootError> {
    let put = |what, bytes: &[u8], at| ram.write_slice(bytes, GuestAddress(at)).map_err(|source| BootError::Ram { what, source });
    put("the page tables", &page_tables(), layout::PAGE_TABLES)?;
    put("the segments", &segments(), layout::GDT)
}

/// Checks the header, or says what the file is instead.
fn check_header(header: &[u8; HEADER_BYTES]) -> Result<(), &'static str> {
    if &header[0x202..0x206] != b"HdrS" {
        return Err(match header {
            [0x1f, 0x8b, ..] => "it is compressed with gzip; unpack it first",
            _ if &header[56..60] == b"ARM\x64" => "it is an arm64 kernel",
            [b'M', b'Z', ..] => "it is an EFI program or a kernel of another architecture",
            _ => "it has no x86 boot header",
        });
    }
    if u16_at(header, 0x206) < PROTOCOL_MIN {
        return Err("its boot protocol is older than 2.12");
    }
    if u16_at(header, 0x236) & XLF_KERNEL_64 == 0 {
        return Err("it has no 64-bit entry");
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Returns where the kernel is entered, the first address after the memory that it takes, and its header.
fn load_kernel(ram: &GuestRam, path: &Path, ram_size: u64) -> Result<(u64, u64, [u8; HEADER_BYTES]), BootError> {
    let failed = |source| BootError::Read { what: "kernel", path: path.into(), source };
    let (mut file, bytes) = open(path).map_err(failed)?;
    if bytes < HEADER_BYTES as u64 {
        return Err(BootError::TruncatedKernel { path: path.into(), wanted: WANTED, bytes });
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).map_err(failed)?;
    if header.starts_with(vmlinux::MAGIC) {
        let (entry, end) = vmlinux::load(ram, path, &mut file, ram_size)?;
        return Ok((entry, end, unpacked_header()));
    }
    check_header(&header).map_err(|found| BootError::ForeignKernel { path: path.into(), wanted: WANTED, found })?;

    // A file from before setup_sects was written has four.
    let setup_sectors = if header[0x1f1] == 0 { 4 } else { u64::from(header[0x1f1]) };
    let setup_bytes = (setup_sectors + 1) * SECTOR;
    let preferred = u64::from_le_bytes(std::array::from_fn(|i| header[0x258 + i]));
    let taken = u64::from(u32_at(&header, 0x260));
    let unfit = |reason| BootError::UnfitKernel { path: path.into(), reason };
    let length = bytes.checked_sub(setup_bytes).ok_or_else(|| unfit("it ends before its 64-bit part".into()))?;
    if preferred < MIB || length > taken {
        return Err(unfit(format!("it has {length} bytes, takes {taken} and wants to be at {preferred:#x}")));
    }
    let end = preferred.checked_add(taken).filter(|end| *end <= ram_size);
    let end = end.ok_or_else(|| BootError::TooLarge { what: "kernel", path: path.into(), bytes: taken, ram: ram_size })?;
    file.seek(SeekFrom::Start(setup_bytes)).map_err(failed)?;
    copy(ram, "kernel", path, &mut file, length, preferred)?;
    Ok((preferred + ENTRY_64, end, header))
}

/// What a kernel that was unpacked before looks at in the header that it no longer has.
fn unpacked_header() -> [u8; HEADER_BYTES] {
    const LOADED_HIGH: u8 = 1;
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1fe, &[0x55, 0xaa]);
    // A jump over all of it.
    put(0x200, &[0xeb, (HEADER_BYTES - 0x202) as u8]);
    put(0x202, b"HdrS");
    put(0x206, &PROTOCOL_MIN.to_le_bytes());
    put(0x211, &[LOADED_HIGH]);
    header
}

/// boot_params, the "zero page" (`Documentation/x86/zero-page.rst`).
fn boot_params(header: &[u8; HEADER_BYTES], initramfs: Option<(u64, u64)>, ram_size: u64) -> [u8; BOOT_PARAMS_BYTES] {
    let mut page = [0; BOOT_PARAMS_BYTES];
    // The header ends where the jump over it leads.
    let header_end = (0x202 + usize::from(header[0x201])).min(HEADER_BYTES);
    page[HEADER_START..header_end].copy_from_slice(&header[HEADER_START..header_end]);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x070, &layout::FIRMWARE.to_le_bytes());
    put(0x210, &[LOADER_UNKNOWN]);
    if let Some((start, end)) = initramfs {
        put(0x218, &(start as u32).to_le_bytes());
        put(0x21c, &((end - start) as u32).to_le_bytes());
    }
    put(0x228, &(layout::COMMAND_LINE as u32).to_le_bytes());
    put(0x250, &layout::SETUP_DATA.to_le_bytes());
    let map = [
        (0, EXTENDED_BIOS, E820_RAM),
        (EXTENDED_BIOS, 0xa_0000, E820_RESERVED),
        (layout::FIRMWARE, MIB, E820_RESERVED),
        (MIB, ram_size, E820_RAM),
    ];
    put(0x1e8, &[map.len() as u8]);
    for (index, (start, end, kind)) in map.into_iter().enumerate() {
        let entry = [&start.to_le_bytes()[..], &(end - start).to_le_bytes(), &kind.to_le_bytes()].concat();
        put(0x2d0 + index * 20, &entry);
    }
    page
}

/// Entropy for the guest's random number generator, as a list of one setup_data.
fn seed(seed: &[u8; 64]) -> Vec<u8> {
    [&0_u64.to_le_bytes()[..], &SETUP_RNG_SEED.to_le_bytes(), &(seed.len() as u32).to_le_bytes(), seed].concat()
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB: one table of the fourth level, one of the third, four of the second.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |index: u64| layout::PAGE_TABLES + index * 4096;
    let mut entries = vec![0_u64; 6 * 512];
    entries[0] = table(1) | PRESENT_WRITABLE;
    for gib in 0..4 {
        entries[512 + gib] = table(2 + gib as u64) | PRESENT_WRITABLE;
    }
    for (page, entry) in entries[1024..].iter_mut().enumerate() {
        *entry = (page as u64) << 21 | PRESENT_WRITABLE | LARGE;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Flat segments, as the boot protocol asks: code at 0x10, data at 0x18.
fn segments() -> Vec<u8> {
    [0, 0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff].into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
#[path = "x86_64_tests.rs"]
mod tests;
