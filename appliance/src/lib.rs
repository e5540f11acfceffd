//! The appliance: everything of Pollux that is not on a phone and not a running machine.
//!
//! [`app::Appliance`] starts and stops it; `main.rs` is its command line. Layers, each knowing only those below:
//! `app` (wiring) over `http` (the only code that knows axum) over the services (`sync`, `replay`, `twin`, `drive`,
//! `quarantine`, `proof`, `search`, `scrub`, `commands`, `flashes`, `health`, `log`, `phones`, `identity`) over the store.

pub mod app;
mod chain;
pub mod cli;
pub mod commands;
pub mod config;
pub mod demo;
pub mod drive;
pub mod flashes;
pub mod health;
pub mod http;
pub mod identity;
pub mod input;
pub mod intelligence;
pub mod live;
pub mod log;
pub mod mounts;
pub mod phones;
pub mod proof;
pub mod quarantine;
mod records;
pub mod replay;
mod rfb;
pub mod scrub;
pub mod search;
pub mod sync;
mod tls;
pub mod twin;
