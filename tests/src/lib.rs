//! What tests share: machines and peers to run against.

pub mod qemu;
