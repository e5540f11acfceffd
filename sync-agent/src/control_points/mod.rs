//! Where the agent taps the phone: the control points of US 8,340,633 (306 for the man-machine interface, 310 for the
//! file system, 314 for the protocol stack). Each is a thread that turns what the phone reports into events in the journal.

pub(crate) mod files;
pub(crate) mod mmi;
pub(crate) mod stack;
