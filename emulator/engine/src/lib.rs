//! Unicorn's C API as the crate of this name on crates.io offers it, plus `uc_machine_*` of our patches.
//!
//! The engine is built by `build.rs` from the pristine upstream crate and `patches/`; each patch says its reason in
//! its first lines. Only the targets arm64 and x86-64 are built. What the added functions promise is said in `unicorn.h`
//! (patches 0006 and 0100).

include!(concat!(env!("OUT_DIR"), "/upstream.rs"));

/// Identifies this build of the engine: saved CPU state is understood only by the build that wrote it.
pub const BUILD_ID: &str = env!("UNICORN_BUILD_ID");
