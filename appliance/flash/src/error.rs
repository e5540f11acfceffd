//! Why a call on a flash failed.

use std::io;

use store::{BlobHash, StoreError};
use sync_protocol::PhonePath;
use sync_protocol::event::EventError;

use crate::codec::Damaged;

/// Failure of a call on a flash.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stored bytes cannot be decoded.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// A stored record was written by another version.
    #[error("a stored record has version {found}; this program knows version {known}")]
    RecordVersion {
        /// Its version.
        found: u8,
        /// Ours.
        known: u8,
    },
    /// An archive cannot be read.
    #[error("base archive: {what}")]
    Tar {
        /// Which file or entry.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// An archive holds something that no image has.
    #[error("base archive: {path}: {why}")]
    BadTar {
        /// Which entry.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// An archive holds too many files.
    #[error("base archive: more than {files_max} files")]
    BaseTooLarge {
        /// The limit.
        files_max: usize,
    },
    /// No base tree was imported under this hash.
    #[error("base tree {0} has not been imported")]
    UnknownBase(BlobHash),
    /// An event came after one with the same or a later position.
    #[error("position {position} comes after position {at} has been applied")]
    PositionPassed {
        /// Position offered.
        position: u64,
        /// Position reached.
        at: u64,
    },
    /// The log does not reach a position.
    #[error("position {position} is not in the log, which ends at {last}")]
    PositionAhead {
        /// Position asked for.
        position: u64,
        /// Last position of the log.
        last: u64,
    },
    /// A record of the log cannot be decoded.
    #[error("event at position {position}")]
    Event {
        /// Where.
        position: u64,
        /// Why.
        source: EventError,
    },
    /// There is no regular file at a path.
    #[error("{0} is not a file")]
    NotAFile(PhonePath),
    /// What a guest wrote could not be stored; the trace says why.
    #[error("what the guest wrote cannot be stored")]
    Complete,
    /// A file system could not be mounted, or its channel is unusable.
    #[error("{action}")]
    Fuse {
        /// Which operation on which thing.
        action: String,
        /// Its error.
        source: io::Error,
    },
}
