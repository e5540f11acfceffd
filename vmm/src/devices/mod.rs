//! The devices that are not virtio. Those of the arm64 machine: interrupt controller, serial port, clock; those of the x86-64
//! machine are in [`x86`].
//!
//! Powering off and resetting are not devices on arm64: the guest asks by PSCI, which the vCPU answers.

pub mod gic;
pub mod rtc;
pub mod uart;
pub mod x86;

/// Puts a register's value into an access of 1, 2 or 4 bytes at `offset`, whose low two bits choose the byte lane.
/// Wider accesses than the register get zeros above it.
fn put_register(value: u32, offset: u64, data: &mut [u8]) {
    let bytes = value.to_le_bytes();
    let lane = (offset & 3) as usize;
    data.fill(0);
    for (to, from) in data.iter_mut().zip(&bytes[lane..]) {
        *to = *from;
    }
}

/// The value of an aligned write to a 32-bit register; `None` for an access that no such register takes.
/// Narrow writes (a driver may store a byte or a half-word) are zero-extended.
fn register_write(offset: u64, data: &[u8]) -> Option<u32> {
    if offset & 3 != 0 || !matches!(data.len(), 1 | 2 | 4) {
        return None;
    }
    let mut bytes = [0; 4];
    bytes[..data.len()].copy_from_slice(data);
    Some(u32::from_le_bytes(bytes))
}
