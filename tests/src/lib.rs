//! What tests share: machines and peers to run against.

pub mod appliance;
pub mod demo;
pub mod qemu;
pub mod targets;
