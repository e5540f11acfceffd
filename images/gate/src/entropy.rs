//! The kernel's random numbers, made new (Linux, include/uapi/linux/random.h). nix names neither request, so this is our own
//! binding, and the gate's only unsafe code.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};

use crate::line::SEED_BYTES_MAX;

/// `struct rand_pool_info` with room for the longest seed.
#[repr(C)]
pub(crate) struct PoolInfo {
    entropy_bits: c_int,
    bytes: c_int,
    seed: [u8; SEED_BYTES_MAX],
}

// RNDADDENTROPY is declared with `int [2]`, the part of the structure before the seed.
nix::ioctl_write_ptr_bad!(
    add_entropy,
    nix::request_code_write!(b'R', 3, size_of::<[c_int; 2]>()),
    PoolInfo
);
nix::ioctl_none!(reseed_crng, b'R', 7);

/// Mixes `seed`, which counts in full, into the pool behind `device`, and has the generator take its next numbers from there at once.
pub(crate) fn reseed(device: &File, seed: &[u8]) -> Result<()> {
    ensure!(
        seed.len() <= SEED_BYTES_MAX,
        "a seed of {} bytes",
        seed.len()
    );
    let mut info = PoolInfo {
        entropy_bits: 8 * seed.len() as c_int,
        bytes: seed.len() as c_int,
        seed: [0; SEED_BYTES_MAX],
    };
    info.seed[..seed.len()].copy_from_slice(seed);
    // SAFETY: the descriptor is open; the structure has the kernel's layout, and as many bytes of seed as it says, which the
    // kernel reads during the call only.
    unsafe { add_entropy(device.as_raw_fd(), &info) }?;
    // SAFETY: the descriptor is open, and the request has no argument.
    unsafe { reseed_crng(device.as_raw_fd()) }?;
    Ok(())
}
