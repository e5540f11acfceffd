//! What tests share: machines and peers to run against.

pub mod appliance;
mod console;
pub mod control;
pub mod demo;
pub mod fake_phone;
pub mod foreign;
pub mod hand;
pub mod machine;
pub mod qemu;
pub mod targets;
