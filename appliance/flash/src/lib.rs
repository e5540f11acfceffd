//! A phone's storage as a versioned file tree, as its twin sees it, and as a file system.
//!
//! - [`Flashes`] opens the [`Flash`] of a phone: a function of its image's files and its log. Contents and
//!   directories are chunks and nodes in the blob store, shared by positions and phones; the root hash is
//!   the one that the phone's agent computes, so that equal means in sync.
//! - [`TwinView`] is what a twin's guest sees: the flash and, over it, the guest's own writes. Who leads,
//!   and so whose version of a path counts, is [`Lead`].
//! - [`fuse`] serves a view: to pollux-twin over a socket, or as a mount.
//!
//! Promises: applying a log's events gives the same files whenever and in however many steps it is done;
//! files keep their inode numbers for life, also across replacement by the phone; a guest cannot make the
//! host grow beyond the named limits of `view`.
//!
//! Leaves out: which events a phone may send (sync-protocol), and when to checkpoint (the appliance).

mod base;
mod chunks;
mod codec;
mod error;
mod flash;
pub mod fuse;
mod history;
mod inode;
mod node;
mod tree;
mod view;

pub use error::FlashError;
pub use flash::{Applied, BaseId, Flash, Flashes, Listed};
pub use history::Change;
pub use inode::{Attributes, Ino, Name, ROOT_INO};
pub use view::{
    Before, Caller, FILE_BYTES_MAX, GuestChange, LAYER_FILES_MAX, LAYER_PAGE_BYTES_MAX,
    LAYER_STORED_BYTES_MAX, Lead, ListedName, Stat, StatChange, Statistics, TwinView,
};
