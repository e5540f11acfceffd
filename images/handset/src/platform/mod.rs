//! The kernel's side: display (KMS), input (evdev), file changes (inotify, poke port), and the loop.
//!
//! One thread, asleep in `poll` unless something happens: no timer runs but the one for the next
//! minute and, after typing, the one that ends in saving.

pub mod decode;
mod devices;
mod display;
mod run;
mod watch;

pub use run::run;
