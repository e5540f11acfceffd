//! Where the agent taps the phone: the control points of US 8,340,633 (306 for the man-machine interface, 310 for the
//! file system). Each is a thread that turns what the kernel reports into events in the journal.

pub(crate) mod files;
pub(crate) mod mmi;
