//! The virtual CPU on Unicorn, and the process around one machine (`pollux-twin`).
//!
//! GPL-2.0-only, because it links Unicorn. Nothing else of Pollux links this crate: the appliance reaches a machine over
//! its control socket.

pub mod cage;
pub mod config;
pub mod cpu;
mod engine;
mod handle;
mod lull;
pub mod processor;
mod psci;
mod timer;
pub mod x86;
