//! Loads an arm64 Linux kernel, its initramfs and a device tree into guest RAM.
//!
//! The kernel is a raw `Image` as in Linux's `Documentation/arm64/booting.rst`; a compressed or foreign one is refused
//! with an error that says what it is. Where things lie is drawn in [`crate::layout`].

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::devicetree::{self, Description};
use super::{BootEntry, BootError, PAGE, check_cmdline, copy, load_initramfs, open};
use crate::layout;
use crate::memory::{self, GuestRam};

/// Length of the header that begins every arm64 Image.
const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"ARM\x64";
/// RAM before the kernel, kept for the device tree.
const DEVICE_TREE_AREA: u64 = 2 << 20;
/// The kernel wants its `text_offset` counted from a 2 MiB boundary.
const KERNEL_BASE: u64 = layout::RAM_BASE + DEVICE_TREE_AREA;
/// Kernels before 3.17 leave `image_size` zero; then this much is kept free, as the booting document asks.
const OLD_KERNEL_MARGIN: u64 = 16 << 20;
const WANTED: &str = "a raw arm64 Image";

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootSource<'a> {
    pub kernel: &'a Path,
    pub initramfs: Option<&'a Path>,
    pub cmdline: &'a str,
    /// The device tree's name for the CPU, such as `arm,cortex-a53`.
    pub cpu_compatible: &'a str,
    /// Which virtio-mmio slots have a device.
    pub virtio_slots: &'a [usize],
    pub rng_seed: [u8; 64],
    /// Randomises the kernel's addresses; slow, see [`super::devicetree`].
    pub kaslr_seed: Option<u64>,
}

/// Puts kernel, initramfs and device tree into fresh guest RAM.
pub fn load(ram: &GuestRam, source: &BootSource) -> Result<BootEntry, BootError> {
    check_cmdline(source.cmdline)?;
    let (_, ram_size) = memory::extent(ram);
    let ram_end = layout::RAM_BASE + ram_size;
    let (entry, kernel_end) = load_kernel(ram, source.kernel, ram_end)?;
    let initramfs = source.initramfs.map(|path| load_initramfs(ram, path, kernel_end)).transpose()?;
    let tree = devicetree::write(&Description {
        ram_size,
        cpu_compatible: source.cpu_compatible,
        cmdline: source.cmdline,
        initramfs,
        virtio_slots: source.virtio_slots,
        rng_seed: source.rng_seed,
        kaslr_seed: source.kaslr_seed,
    })
    .map_err(BootError::DeviceTree)?;
    // Sixteen slots and a 2 KiB command line make a tree of a few KiB.
    assert!(tree.len() as u64 <= DEVICE_TREE_AREA, "the device tree fits the RAM kept for it");
    let device_tree = layout::RAM_BASE;
    ram.write_slice(&tree, GuestAddress(device_tree)).map_err(|source| BootError::Ram { what: "the device tree", source })?;
    Ok(BootEntry { kernel: entry, parameters: device_tree })
}

/// The fields of the Image header that matter to a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageHeader {
    text_offset: u64,
    /// Memory the kernel takes, its BSS included; 0 in very old kernels.
    image_size: u64,
    flags: u64,
}

/// Parses the header, or says what the file is instead.
fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Result<ImageHeader, &'static str> {
    if &bytes[56..60] != MAGIC {
        return Err(match bytes {
            [0x1f, 0x8b, ..] => "it is compressed with gzip; unpack it first",
            [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is compressed with xz; unpack it first",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd; unpack it first",
            [b'M', b'Z', _, _, b'z', b'i', b'm', b'g', ..] => "it is a compressed EFI image (zboot); unpack it first",
            [0x7f, b'E', b'L', b'F', ..] => "it is an ELF file (a vmlinux?)",
            [b'M', b'Z', ..] => "it is an EFI program or a kernel of another architecture",
            _ => "it has no arm64 magic number",
        });
    }
    let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let header = ImageHeader { text_offset: field(8), image_size: field(16), flags: field(24) };
    if header.flags & 1 != 0 {
        return Err("it is a big-endian kernel");
    }
    Ok(header)
}

/// Returns the entry point and the first address after the memory that the kernel takes.
fn load_kernel(ram: &GuestRam, path: &Path, ram_end: u64) -> Result<(u64, u64), BootError> {
    let failed = |source| BootError::Read { what: "kernel", path: path.into(), source };
    let (mut file, bytes) = open(path).map_err(failed)?;
    if bytes < HEADER_BYTES as u64 {
        return Err(BootError::TruncatedKernel { path: path.into(), wanted: WANTED, bytes });
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
    let header = parse_header(&header).map_err(|found| BootError::ForeignKernel { path: path.into(), wanted: WANTED, found })?;

    let unfit = |reason| BootError::UnfitKernel { path: path.into(), reason };
    let taken = if header.image_size == 0 { bytes.saturating_add(OLD_KERNEL_MARGIN) } else { header.image_size };
    if header.text_offset >= DEVICE_TREE_AREA || header.text_offset % PAGE != 0 {
        return Err(unfit(format!("its text offset {:#x} is not below 2 MiB and page aligned", header.text_offset)));
    }
    if bytes > taken {
        return Err(unfit(format!("the file has {bytes} bytes, but its header says that the kernel takes {taken}")));
    }
    let entry = KERNEL_BASE + header.text_offset;
    let end = entry.checked_add(taken).filter(|end| *end <= ram_end);
    let end = end.ok_or_else(|| BootError::TooLarge { what: "kernel", path: path.into(), bytes: taken, ram: ram_end - layout::RAM_BASE })?;
    copy(ram, "kernel", path, &mut file, bytes, entry)?;
    Ok((entry, end))
}

#[cfg(test)]
#[path = "arm64_tests.rs"]
mod tests;
