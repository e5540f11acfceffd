//! The data session layer: how a machine reaches a network [seed 610].
//!
//! A machine's network card is a Unix stream of Ethernet frames. [`nat`] stands at its other end as the machine's whole
//! network: address server, gateway and translator in user space, so that no privilege is needed and nothing passes
//! that the machine's [`nat::Reach`] does not name. It leaves out name service and inbound connections.

mod connection;
pub mod dhcp;
mod ethernet;
pub mod nat;
#[cfg(test)]
mod raw_guest;
mod stack;
mod wire;
