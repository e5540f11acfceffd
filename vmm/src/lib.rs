//! The machine: memory, buses, devices, boot, snapshots, and the trait that a virtual CPU implements.
//!
//! It knows no phone, no server and no Unicorn: a vCPU is handed in by whoever builds a machine, and everything
//! outside the machine (disk files, sockets, the screen's readers) arrives as a descriptor or a channel.

pub mod alarm;
pub mod board;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod devices;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod layout;
pub mod log_limit;
pub mod machine;
pub mod memory;
pub mod snapshot;
pub mod threads;
pub mod vcpu;
pub mod virtio;
