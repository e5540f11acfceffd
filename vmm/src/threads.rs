//! The threads of a machine. Whoever cages the process may give each kind fewer rights as it starts.

use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

/// Kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the guest. Begins once the vCPU is made, which takes more than running it: memory for code, a timer's thread.
    Vcpu,
    /// The outside half of a device, or the timer.
    Device,
}

static BEGIN: OnceLock<fn(Role)> = OnceLock::new();

/// Has each thread call `begin` before it touches what the guest says. Only the first call counts.
pub fn at_begin(begin: fn(Role)) {
    // Two who want different things of one process: the first is as good as the second.
    let _ = BEGIN.set(begin);
}

/// The calling thread begins.
pub(crate) fn begin(role: Role) {
    if let Some(begin) = BEGIN.get() {
        begin(role);
    }
}

/// Starts a device's thread; there is none for a fuzzer.
pub(crate) fn spawn(name: String, stack_bytes: usize, run: impl FnOnce() + Send + 'static) -> std::io::Result<Option<JoinHandle<()>>> {
    if cfg!(feature = "unthreaded") {
        return Ok(None);
    }
    let thread = Builder::new().name(name).stack_size(stack_bytes).spawn(move || {
        begin(Role::Device);
        run();
    });
    thread.map(Some)
}
