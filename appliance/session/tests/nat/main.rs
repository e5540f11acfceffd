//! A machine on the network, played by smoltcp at the other end of the real stream, and real sockets of the host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;
mod traffic;
