//! The contract between a phone's agent and the appliance.
//!
//! [`wire`] is generated from `proto/sync.proto`, which is the specification. The other modules are what both sides must
//! do alike: checking what came in ([`event`]), packing events ([`batch`]), cutting files into chunks ([`chunking`]),
//! hashing trees ([`tree`]), deciding which paths are captured ([`scope`]), and giving one device's input to others
//! ([`seat`]). No I/O, no clock, no randomness.

/// Code generated from `proto/sync.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod wire {
    tonic::include_proto!("pollux.sync.v1");
}

pub mod batch;
pub mod chunking;
pub mod event;
pub mod hash;
pub mod limits;
pub mod path;
pub mod scope;
pub mod seat;
pub mod stack;
pub mod tree;

pub use hash::Hash;
pub use path::PhonePath;

/// The version of the contract that this crate describes.
pub const PROTOCOL_VERSION: u32 = 1;

/// The DNS name in the appliance's certificate, whatever address it is reached at. It sets the appliance's certificate
/// apart from those of phones, which the same CA issues.
pub const APPLIANCE_SERVER_NAME: &str = "appliance.pollux";
