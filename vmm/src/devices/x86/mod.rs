//! The devices of the x86-64 machine that are not virtio.
//!
//! With KVM the kernel has the interrupt controllers and the interval timer; all others are the same whoever executes
//! the guest. Addresses, ports and interrupt lines are in [`crate::layout::x86_64`].

pub mod chips;
pub mod cmos;
mod ioapic;
mod lapic;
mod pic;
mod pit;
pub mod power;
pub mod uart;

/// The value of an access to a 32-bit register that must be read or written whole.
fn whole(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_le_bytes)
}
