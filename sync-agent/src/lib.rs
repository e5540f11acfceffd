//! The agent on the phone: captures input, file operations and what its modems do, keeps them in a journal until the appliance has them for
//! good, and does on the phone what an operator did on its twin.
//!
//! Data flows one way: control points append to the [`journal`], the [`link`] sends what is there and trims what was
//! acknowledged. Commands come back over the link and are carried out by [`apply`]. [`agent`] is the only wiring.
//!
//! Promises: an event that was journalled is sent until it is acknowledged, once, in order, whatever breaks; what
//! happened to files while the agent was down or could not write is found by a scan. Leaves out: the port control
//! point, traffic, extended attributes, hard links as such, special files.

pub mod agent;
mod apply;
mod beneath;
mod clock;
pub mod config;
mod control_points;
pub mod identity;
mod journal;
mod link;

/// The agent's parts, for whoever puts them together in other surroundings than a phone: a simulator.
pub mod parts {
    pub use crate::agent::report_start;
    pub use crate::apply::drive::DriveHandle;
    pub use crate::apply::input::InputSink;
    pub use crate::clock::Stamp;
    pub use crate::control_points::files::{FilesControlPoint, FilesHandle, Notice, Notices, Request, Watch};
    pub use crate::control_points::mmi::MmiHandle;
    pub use crate::journal::{Draft, Journal, JournalError, JournalHandle, Limits, Origination};
    pub use crate::link::{Appliance, CallError, Connection, Ends, LinkError, rules_in_force, run as link};
}
