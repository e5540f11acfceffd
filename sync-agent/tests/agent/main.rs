//! The whole agent against a fake appliance, over real TLS and real file systems.
//!
//! Files are watched with fanotify, which needs root; modems are ModemManager's. Tests that need either say so by name when
//! they cannot run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod breaks;
mod daemons;
mod enrolment;
mod fake_appliance;
mod files;
mod harness;
mod modem;
mod stack;
mod trouble;
