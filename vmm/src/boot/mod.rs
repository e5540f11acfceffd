//! Loads a Linux kernel, its initramfs and what it is told about the machine into guest RAM: [`arm64`] and [`x86_64`].

mod acpi;
pub mod arm64;
mod devicetree;
mod vmlinux;
pub mod x86_64;

use std::fs::File;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::{self, GuestRam};

const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {what} {path}: {source}")]
    Read { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("kernel {path} is not {wanted}: {found}")]
    ForeignKernel { path: PathBuf, wanted: &'static str, found: &'static str },
    #[error("kernel {path} is truncated: {bytes} bytes are shorter than the header of {wanted}")]
    TruncatedKernel { path: PathBuf, wanted: &'static str, bytes: u64 },
    #[error("kernel {path} does not fit: {reason}")]
    UnfitKernel { path: PathBuf, reason: String },
    #[error("{what} {path} of {bytes} bytes does not fit guest RAM of {ram} bytes beside the kernel")]
    TooLarge { what: &'static str, path: PathBuf, bytes: u64, ram: u64 },
    #[error("kernel command line has {0} bytes; the kernel takes at most {CMDLINE_BYTES_MAX}, without NUL")]
    Cmdline(usize),
    #[error("cannot write {what} to guest RAM")]
    Ram { what: &'static str, source: vm_memory::GuestMemoryError },
    #[error("cannot write the device tree")]
    DeviceTree(#[source] vm_fdt::Error),
}

/// Linux's COMMAND_LINE_SIZE on both architectures; a longer line would be cut silently.
const CMDLINE_BYTES_MAX: usize = 2047;

/// Where the CPU starts, for [`crate::vcpu::Vcpu::set_boot_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootEntry {
    pub kernel: u64,
    /// Address of what the kernel is told: the device tree, or boot_params.
    pub parameters: u64,
}

fn check_cmdline(cmdline: &str) -> Result<(), BootError> {
    let fits = cmdline.len() <= CMDLINE_BYTES_MAX && !cmdline.contains('\0');
    fits.then_some(()).ok_or(BootError::Cmdline(cmdline.len()))
}

/// Puts the initramfs at the top of RAM; returns its first and one-past-last address.
fn load_initramfs(ram: &GuestRam, path: &Path, kernel_end: u64) -> Result<(u64, u64), BootError> {
    let what = "initramfs";
    let (base, size) = memory::extent(ram);
    let (mut file, bytes) = open(path).map_err(|source| BootError::Read { what, path: path.into(), source })?;
    let start = (base + size).checked_sub(bytes).map(|start| start & !(PAGE - 1)).filter(|start| *start >= kernel_end);
    let start = start.ok_or_else(|| BootError::TooLarge { what, path: path.into(), bytes, ram: size })?;
    copy(ram, what, path, &mut file, bytes, start)?;
    Ok((start, start + bytes))
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((file, metadata.len()))
}

fn copy(ram: &GuestRam, what: &'static str, path: &Path, file: &mut File, bytes: u64, to: u64) -> Result<(), BootError> {
    ram.read_exact_volatile_from(GuestAddress(to), file, bytes as usize).map_err(|error| match error {
        vm_memory::GuestMemoryError::IOError(source) => BootError::Read { what, path: path.into(), source },
        source => BootError::Ram { what, source },
    })
}
