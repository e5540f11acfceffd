//! Why a call on the store failed.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{BlobHash, PhoneId};

/// Failure of a store call. Nothing of a failed write may be acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A batch would leave seqs unassigned.
    #[error(
        "log of phone {phone} ends at seq {last_seq}: a batch from seq {first_seq} leaves a gap"
    )]
    Gap {
        /// Whose log.
        phone: PhoneId,
        /// Seq of the last event there.
        last_seq: u64,
        /// Seq of the first event offered.
        first_seq: u64,
    },
    /// Seqs begin at 1.
    #[error("seq 0 was offered, but a log begins at seq 1")]
    ZeroSeq,
    /// Input beyond a named limit of this crate.
    #[error("{what} has {size}, but at most {max} are accepted")]
    TooLarge {
        /// What was too large, with its unit.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// No blob has this hash.
    #[error("blob {0} is missing")]
    BlobMissing(BlobHash),
    /// The stored bytes no longer have the hash they are filed under.
    #[error("blob {0} is damaged: its contents no longer match its hash")]
    BlobDamaged(BlobHash),
    /// A stored log record cannot be decoded.
    #[error("log of phone {phone} is damaged at seq {seq}: {why}")]
    LogDamaged {
        /// Whose log.
        phone: PhoneId,
        /// First seq of the record.
        seq: u64,
        /// What was wrong.
        why: &'static str,
    },
    /// Another process has the store open.
    #[error("the store in {0} is in use by another process")]
    Locked(PathBuf),
    /// Too little space is left to write safely. The store works again once there is more.
    #[error("disk full: {free_bytes} bytes free in {dir}, {needed_bytes} needed")]
    DiskFull {
        /// Where the store is.
        dir: PathBuf,
        /// Bytes free for us.
        free_bytes: u64,
        /// Bytes that must be free, reserve included.
        needed_bytes: u64,
    },
    /// A flush failed earlier, so what is on disk is uncertain: open the store anew.
    #[error("the store stopped accepting writes: {0}")]
    Failed(String),
    /// The operating system refused.
    #[error("{action}: {source}")]
    Io {
        /// Which operation on which thing.
        action: String,
        /// Its error.
        source: Arc<std::io::Error>,
    },
    /// The database refused.
    #[error("{action}: {source}")]
    Database {
        /// Which operation on which thing.
        action: &'static str,
        /// Its error.
        source: sled::Error,
    },
}

impl StoreError {
    pub(crate) fn io(action: impl Into<String>, source: std::io::Error) -> Self {
        StoreError::Io {
            action: action.into(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn database(action: &'static str, source: sled::Error) -> Self {
        StoreError::Database { action, source }
    }
}
