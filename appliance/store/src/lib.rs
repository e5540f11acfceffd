//! What the appliance keeps: the phones' logs, small keyed records, and content-addressed blobs.
//!
//! Three traits, each with a memory and an embedded (sled and pack files) backend, all passing one
//! suite (`tests/suite.rs`):
//!
//! - [`Log`]: per phone, events in order, `seq` from 1 without gaps. Ground state.
//! - [`Kv`]: named buckets of small records, with compare-and-swap.
//! - [`Blobs`]: chunks and tree nodes, addressed by BLAKE3, verified whenever they are read.
//!
//! Promises: a call that changes something returns only when the change is durable, so whoever
//! acknowledges after the call never acknowledges what a crash can take back. Waiting for durability
//! is shared (group commit), so a hundred phones cost little more than one. All calls block; async
//! callers use `spawn_blocking`.
//!
//! Leaves out: the meaning of events, records and blobs, and their deletion by age.

mod commit;
mod embedded;
mod error;
mod hash;
mod limits;
mod memory;
mod packs;
mod phone;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

pub use embedded::EmbeddedOptions;
pub use error::StoreError;
pub use hash::{BlobHash, ParseBlobHashError};
pub use phone::{ParsePhoneIdError, PhoneId};

/// Largest single event. A file of 4 GiB in 16 KiB chunks lists 8 MiB of hashes; nothing honest is longer.
pub const EVENT_BYTES_MAX: usize = 16 << 20;
/// Most events in one append: a batch is held in memory several times over on its way to disk.
pub const BATCH_EVENTS_MAX: usize = 65_536;
/// Most bytes of events in one append.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// Largest value in a [`Kv`] bucket; what is larger belongs into [`Blobs`].
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Longest key in a [`Kv`] bucket and longest bucket name.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest blob: chunks are at most 64 KiB, but a directory of many thousand entries is one node.
pub const BLOB_BYTES_MAX: usize = 64 << 20;

/// Result of every call of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The phones' logs: for each phone its events, `seq` contiguous from 1.
///
/// An event is opaque bytes here. Appends of one phone are serialised; different phones do not wait
/// for each other except to share a flush.
pub trait Log: Send + Sync {
    /// Appends `events`, whose first has `first_seq`, and returns the phone's last durable seq.
    ///
    /// Events already stored are skipped, so a batch may be sent again after a broken connection; they
    /// are waited for until durable all the same. Fails with [`StoreError::Gap`] if `first_seq` leaves
    /// one (nothing is stored then), and with [`StoreError::TooLarge`] beyond the named limits.
    fn append_batch(&self, phone: &PhoneId, first_seq: u64, events: &[Bytes]) -> Result<u64>;

    /// Up to `max` durable events from `from_seq` on, in order, with their seqs. Empty past the end.
    fn read(&self, phone: &PhoneId, from_seq: u64, max: usize) -> Result<Vec<(u64, Bytes)>>;

    /// Seq of the last durable event; 0 when the phone has none.
    fn last_seq(&self, phone: &PhoneId) -> Result<u64>;

    /// Watches [`Log::last_seq`]: holds the value now, and wakes whenever more is durable.
    fn subscribe(&self, phone: &PhoneId) -> Result<watch::Receiver<u64>>;

    /// Every phone with at least one event, sorted.
    fn phones(&self) -> Result<Vec<PhoneId>>;
}

/// One change of a [`Kv::write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvChange {
    /// Sets a key.
    Put(Vec<u8>, Bytes),
    /// Removes a key; nothing happens if it is not there.
    Delete(Vec<u8>),
}

/// Named buckets of small records. Buckets appear when first written.
pub trait Kv: Send + Sync {
    /// The value of `key`, if any.
    fn get(&self, bucket: &str, key: &[u8]) -> Result<Option<Bytes>>;

    /// Applies all `changes` of one bucket or none of them.
    fn write(&self, bucket: &str, changes: &[KvChange]) -> Result<()>;

    /// Sets `key` to `new` (or removes it when `None`) if its value is `expected` (`None`: absent).
    /// Returns whether it did.
    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool>;

    /// Every record whose key begins with `prefix`, in key order.
    fn scan_prefix(&self, bucket: &str, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>>;

    /// Of the records whose key begins with `prefix`, the one with the greatest key not above `key`,
    /// which itself must begin with `prefix`.
    fn last_at_most(
        &self,
        bucket: &str,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>>;

    /// Sets `key`.
    fn put(&self, bucket: &str, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(
            bucket,
            &[KvChange::Put(key.to_vec(), Bytes::copy_from_slice(value))],
        )
    }

    /// Removes `key`; nothing happens if it is not there.
    fn delete(&self, bucket: &str, key: &[u8]) -> Result<()> {
        self.write(bucket, &[KvChange::Delete(key.to_vec())])
    }
}

/// Content-addressed blobs.
pub trait Blobs: Send + Sync {
    /// Stores every blob not yet there; all are durable on return. Returns their hashes in order.
    fn put_many(&self, blobs: &[Bytes]) -> Result<Vec<BlobHash>>;

    /// The blob, verified against its hash: [`StoreError::BlobMissing`] or
    /// [`StoreError::BlobDamaged`] name the hash otherwise. A blob found damaged counts as missing
    /// from then on, until it is put again.
    fn get(&self, hash: &BlobHash) -> Result<Bytes>;

    /// For each hash, whether its blob is stored. Contents are not verified.
    fn has_many(&self, hashes: &[BlobHash]) -> Result<Vec<bool>>;

    /// Reads and verifies blobs in the order in which they lie on the disk, from a mark on, until `bytes_max` were read: more by at
    /// most one blob. What is found damaged counts as missing from then on, as by [`Blobs::get`].
    fn check(&self, from: CheckMark, bytes_max: u64) -> Result<Checked>;

    /// Bytes that a check of everything reads.
    fn stored_bytes(&self) -> Result<u64>;

    /// Stores one blob.
    fn put(&self, blob: &[u8]) -> Result<BlobHash> {
        let hashes = self.put_many(&[Bytes::copy_from_slice(blob)])?;
        Ok(hashes[0])
    }

    /// Whether one blob is stored.
    fn has(&self, hash: &BlobHash) -> Result<bool> {
        Ok(self.has_many(std::slice::from_ref(hash))?[0])
    }
}

/// How far a check of all blobs has come. Begin with the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckMark {
    /// Number of a pack.
    pub pack: u32,
    /// Of a record in it.
    pub offset: u64,
}

/// What a part of a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Where the next part begins; none: everything was checked.
    pub next: Option<CheckMark>,
    /// How many.
    pub blobs: u64,
    /// Read from the disk.
    pub bytes: u64,
    /// Not what they were.
    pub damaged: Vec<BlobHash>,
}

/// The three parts of one store. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    /// The phones' logs.
    pub log: Arc<dyn Log>,
    /// Small records.
    pub kv: Arc<dyn Kv>,
    /// Chunks and nodes.
    pub blobs: Arc<dyn Blobs>,
    /// What every write asks first.
    writable: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

impl Store {
    /// A store that lives as long as the process: for tests and for views of nothing.
    pub fn memory() -> Self {
        Store {
            log: Arc::new(memory::MemoryLog::default()),
            kv: Arc::new(memory::MemoryKv::default()),
            blobs: Arc::new(memory::MemoryBlobs::default()),
            writable: Arc::new(|| Ok(())),
        }
    }

    /// Fails as the next write would, however small: with [`StoreError::DiskFull`], or for good with
    /// [`StoreError::Failed`].
    pub fn check_writable(&self) -> Result<()> {
        (self.writable)()
    }

    /// Opens or creates the embedded store in `dir`: sled for log and records, pack files for blobs.
    ///
    /// Fails with [`StoreError::Locked`] when another process has it open. The lock is released when
    /// the last clone is dropped.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self> {
        embedded::open(dir, options)
    }
}
