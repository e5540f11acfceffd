//! The whole agent against a fake appliance, over real TLS and real file systems.
//!
//! Files are watched with fanotify, which needs root: tests that need it say so by name when they cannot run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod breaks;
mod enrolment;
mod fake_appliance;
mod files;
mod harness;
mod trouble;
