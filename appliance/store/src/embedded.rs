//! The embedded backend: sled for log and records, pack files for blobs, one directory, one process.
//!
//!     DIR/LOCK     held while open
//!     DIR/sled/    tree `log`: batches of events; trees `kv/BUCKET`: records
//!     DIR/blobs/   see packs.rs
//!
//! A log record holds a run of events: key `phone 00 first-seq(8, big-endian)`, value per event
//! `length(4, little-endian) bytes`. Runs rather than single events: sled's cost is per record.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::watch;

use crate::commit::GroupCommit;
use crate::limits::{check_batch, check_record};
use crate::packs::{PACK_BYTES, PackBlobs, sync_dir};
use crate::{Kv, KvChange, Log, PhoneId, Result, Store, StoreError};

/// A record takes further events until it has this many bytes.
const RECORD_BYTES_TARGET: usize = 16 << 10;

/// Settings of the embedded store.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Memory for sled's page cache.
    pub cache_bytes: u64,
    /// Writes fail with [`StoreError::DiskFull`] when less than this would stay free: sled itself
    /// does not survive a full disk.
    pub reserve_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            cache_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}

pub(crate) fn open(dir: &Path, options: EmbeddedOptions) -> Result<Store> {
    create_dir(dir)?;
    let lock = lock_dir(dir)?;
    let space = Space::new(dir, options.reserve_bytes);
    let sled = sled::Config::new()
        .path(dir.join("sled"))
        .cache_capacity(options.cache_bytes)
        // We flush ourselves, before every acknowledgement.
        .flush_every_ms(None)
        .open()
        .map_err(|source| StoreError::database("opening the database", source))?;
    // sled's flush ends with sync_file_range(2), which leaves the file's length and the disk's own cache
    // alone: enough for a killed process, not for a power cut.
    let file = File::open(dir.join("sled").join("db"))
        .and_then(|file| file.sync_all().map(|()| file))
        .map_err(|source| StoreError::io("syncing the database", source))?;
    for made in [dir.join("sled").as_path(), dir] {
        sync_dir(made)?;
    }
    let commit = GroupCommit::start("store-flusher", {
        let sled = sled.clone();
        move || {
            sled.flush().map_err(|error| error.to_string())?;
            file.sync_data()
                .map_err(|error| format!("syncing the database: {error}"))
        }
    })?;
    let database = Arc::new(Database {
        sled,
        commit,
        space: space.clone(),
        _lock: lock.clone(),
    });
    let log = database.open_tree("log")?;
    let blobs = Arc::new(PackBlobs::open(
        &dir.join("blobs"),
        space,
        lock,
        PACK_BYTES,
    )?);
    let writable = {
        let (database, blobs) = (database.clone(), blobs.clone());
        move || {
            database.check_writable(0)?;
            blobs.check_writable(0)
        }
    };
    Ok(Store {
        log: Arc::new(EmbeddedLog {
            database: database.clone(),
            log,
            phones: Mutex::default(),
        }),
        kv: Arc::new(EmbeddedKv { database }),
        blobs,
        writable: Arc::new(writable),
    })
}

pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)
        .map_err(|source| StoreError::io(format!("creating {}", dir.display()), source))
}

fn lock_dir(dir: &Path) -> Result<Arc<File>> {
    let path = dir.join("LOCK");
    let failed = |source| StoreError::io(format!("locking {}", path.display()), source);
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Watches over free space.
#[derive(Clone)]
pub(crate) struct Space {
    dir: PathBuf,
    reserve_bytes: u64,
}

impl Space {
    pub(crate) fn new(dir: &Path, reserve_bytes: u64) -> Self {
        Space {
            dir: dir.to_owned(),
            reserve_bytes,
        }
    }

    /// The error of a write of `bytes` for which there was no room after all.
    pub(crate) fn full(&self, bytes: usize) -> StoreError {
        let dir = self.dir.clone();
        self.check(bytes).err().unwrap_or(StoreError::DiskFull {
            dir,
            free_bytes: 0,
            needed_bytes: bytes as u64,
        })
    }

    /// Fails when writing `bytes` would eat into the reserve.
    pub(crate) fn check(&self, bytes: usize) -> Result<()> {
        let status = nix::sys::statvfs::statvfs(&self.dir).map_err(|errno| {
            StoreError::io(
                format!("free space of {}", self.dir.display()),
                errno.into(),
            )
        })?;
        let free_bytes = status
            .blocks_available()
            .saturating_mul(status.fragment_size());
        let needed_bytes = self.reserve_bytes.saturating_add(bytes as u64);
        if free_bytes < needed_bytes {
            return Err(StoreError::DiskFull {
                dir: self.dir.clone(),
                free_bytes,
                needed_bytes,
            });
        }
        Ok(())
    }
}

struct Database {
    sled: sled::Db,
    commit: GroupCommit,
    space: Space,
    _lock: Arc<File>,
}

impl Database {
    fn open_tree(&self, name: &str) -> Result<sled::Tree> {
        self.sled
            .open_tree(name)
            .map_err(|source| StoreError::database("opening a tree", source))
    }

    /// Fails when nothing more can be written, or not `bytes` more.
    fn check_writable(&self, bytes: usize) -> Result<()> {
        self.commit.check()?;
        self.space.check(bytes)
    }

    /// After a failed write sled's state is as uncertain as after a failed flush.
    fn write_failed(&self, action: &'static str, source: sled::Error) -> StoreError {
        self.commit.fail(source.to_string());
        StoreError::database(action, source)
    }
}

struct PhoneLog {
    /// Seq of the last event given to sled.
    accepted: Mutex<u64>,
    /// Seq of the last event known to be on disk: what readers see.
    durable: watch::Sender<u64>,
}

struct EmbeddedLog {
    database: Arc<Database>,
    log: sled::Tree,
    phones: Mutex<HashMap<PhoneId, Arc<PhoneLog>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record_key(phone: &PhoneId, first_seq: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(phone.as_str().len() + 9);
    key.extend_from_slice(phone.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&first_seq.to_be_bytes());
    key
}

fn record_phone(key: &[u8]) -> Option<(PhoneId, u64)> {
    let (phone, seq) = key.split_at_checked(key.len().checked_sub(9)?)?;
    let phone = std::str::from_utf8(phone).ok()?.parse().ok()?;
    Some((phone, u64::from_be_bytes(seq[1..].try_into().ok()?)))
}

/// The events of a record, or why it is damaged.
fn record_events(record: &sled::IVec) -> std::result::Result<Vec<Bytes>, &'static str> {
    let mut rest = Bytes::copy_from_slice(record);
    let mut events = Vec::new();
    while rest.has_remaining() {
        if rest.remaining() < 4 {
            return Err("a length is cut short");
        }
        let length = rest.get_u32_le() as usize;
        if rest.remaining() < length {
            return Err("an event is cut short");
        }
        events.push(rest.split_to(length));
    }
    if events.is_empty() {
        Err("a record has no event")
    } else {
        Ok(events)
    }
}

impl EmbeddedLog {
    fn phone(&self, phone: &PhoneId) -> Result<Arc<PhoneLog>> {
        let mut phones = lock(&self.phones);
        if let Some(log) = phones.get(phone) {
            return Ok(log.clone());
        }
        let last_seq = self.stored_last_seq(phone)?;
        let log = Arc::new(PhoneLog {
            accepted: Mutex::new(last_seq),
            durable: watch::Sender::new(last_seq),
        });
        phones.insert(phone.clone(), log.clone());
        Ok(log)
    }

    fn stored_last_seq(&self, phone: &PhoneId) -> Result<u64> {
        let all = record_key(phone, 0)..=record_key(phone, u64::MAX);
        let Some(last) = self.log.range(all).next_back() else {
            return Ok(0);
        };
        let (key, record) =
            last.map_err(|source| StoreError::database("reading the log", source))?;
        let (first_seq, events) = decode(phone, &key, &record)?;
        Ok(first_seq + events.len() as u64 - 1)
    }

    /// Gives sled the events that it does not have, and says which seq is now the last.
    fn insert(
        &self,
        phone: &PhoneId,
        log: &PhoneLog,
        first_seq: u64,
        events: &[Bytes],
    ) -> Result<u64> {
        let mut accepted = lock(&log.accepted);
        let next_seq = *accepted + 1;
        let stored = next_seq
            .checked_sub(first_seq)
            .ok_or_else(|| StoreError::Gap {
                phone: phone.clone(),
                last_seq: *accepted,
                first_seq,
            })?;
        let new = events
            .get(usize::try_from(stored).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        if new.is_empty() {
            return Ok(*accepted);
        }
        self.database
            .check_writable(new.iter().map(|event| event.len() + 4).sum())?;
        let mut batch = sled::Batch::default();
        let mut record = Vec::new();
        let mut record_seq = next_seq;
        for (seq, event) in (next_seq..).zip(new) {
            if !record.is_empty() && record.len() + event.len() > RECORD_BYTES_TARGET {
                batch.insert(record_key(phone, record_seq), std::mem::take(&mut record));
                record_seq = seq;
            }
            record.put_u32_le(event.len() as u32);
            record.put_slice(event);
        }
        batch.insert(record_key(phone, record_seq), record);
        let applied = self.log.apply_batch(batch);
        applied.map_err(|source| self.database.write_failed("appending to the log", source))?;
        *accepted += new.len() as u64;
        Ok(*accepted)
    }
}

fn decode(phone: &PhoneId, key: &[u8], record: &sled::IVec) -> Result<(u64, Vec<Bytes>)> {
    let first_seq = record_phone(key).map_or(0, |(_, seq)| seq);
    let damaged = |why| StoreError::LogDamaged {
        phone: phone.clone(),
        seq: first_seq,
        why,
    };
    if first_seq == 0 {
        return Err(damaged("a key has no seq"));
    }
    Ok((first_seq, record_events(record).map_err(damaged)?))
}

impl Log for EmbeddedLog {
    fn append_batch(&self, phone: &PhoneId, first_seq: u64, events: &[Bytes]) -> Result<u64> {
        check_batch(first_seq, events)?;
        let log = self.phone(phone)?;
        let last_seq = self.insert(phone, &log, first_seq, events)?;
        if *log.durable.borrow() < last_seq {
            self.database.commit.wait()?;
            log.durable.send_if_modified(|durable| {
                let newer = *durable < last_seq;
                *durable = last_seq.max(*durable);
                newer
            });
        }
        Ok(last_seq)
    }

    fn read(&self, phone: &PhoneId, from_seq: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        let durable = *self.phone(phone)?.durable.borrow();
        let from_seq = from_seq.max(1);
        let mut events = Vec::new();
        if from_seq > durable || max == 0 {
            return Ok(events);
        }
        let failed = |source| StoreError::database("reading the log", source);
        // The record that holds `from_seq` begins at or before it.
        let before = record_key(phone, 0)..=record_key(phone, from_seq);
        let first = self
            .log
            .range(before)
            .next_back()
            .transpose()
            .map_err(failed)?;
        let Some((first_key, _)) = first else {
            return Ok(events);
        };
        for record in self
            .log
            .range(first_key..=record_key(phone, durable).into())
        {
            let (key, record) = record.map_err(failed)?;
            let (first_seq, run) = decode(phone, &key, &record)?;
            for (seq, event) in (first_seq..).zip(run) {
                if seq > durable || events.len() == max {
                    return Ok(events);
                }
                if seq >= from_seq {
                    events.push((seq, event));
                }
            }
        }
        Ok(events)
    }

    fn last_seq(&self, phone: &PhoneId) -> Result<u64> {
        Ok(*self.phone(phone)?.durable.borrow())
    }

    fn subscribe(&self, phone: &PhoneId) -> Result<watch::Receiver<u64>> {
        Ok(self.phone(phone)?.durable.subscribe())
    }

    fn phones(&self) -> Result<Vec<PhoneId>> {
        let mut phones = Vec::new();
        let mut next = Vec::new();
        while let Some(record) = self.log.range(next..).next() {
            let (key, _) =
                record.map_err(|source| StoreError::database("reading the log", source))?;
            let Some((phone, _)) = record_phone(&key) else {
                break;
            };
            // Skips the phone's other records: 01 is the first byte after the separator.
            next = phone.as_str().as_bytes().to_vec();
            next.push(1);
            phones.push(phone);
        }
        Ok(phones)
    }
}

struct EmbeddedKv {
    database: Arc<Database>,
}

impl EmbeddedKv {
    fn bucket(&self, bucket: &str) -> Result<sled::Tree> {
        check_record(bucket, &[], &[])?;
        self.database.open_tree(&format!("kv/{bucket}"))
    }
}

fn to_bytes(value: &sled::IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

impl Kv for EmbeddedKv {
    fn get(&self, bucket: &str, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.bucket(bucket)?.get(key);
        let value = value.map_err(|source| StoreError::database("reading a record", source))?;
        Ok(value.as_ref().map(to_bytes))
    }

    fn write(&self, bucket: &str, changes: &[KvChange]) -> Result<()> {
        let mut batch = sled::Batch::default();
        let mut bytes = 0;
        for change in changes {
            match change {
                KvChange::Put(key, value) => {
                    check_record(bucket, key, value)?;
                    bytes += key.len() + value.len();
                    batch.insert(&key[..], &value[..]);
                }
                KvChange::Delete(key) => {
                    check_record(bucket, key, &[])?;
                    batch.remove(&key[..]);
                }
            }
        }
        self.database.check_writable(bytes)?;
        let applied = self.bucket(bucket)?.apply_batch(batch);
        applied.map_err(|source| self.database.write_failed("writing records", source))?;
        self.database.commit.wait()
    }

    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool> {
        check_record(bucket, key, new.unwrap_or_default())?;
        self.database.check_writable(new.map_or(0, <[u8]>::len))?;
        let swapped = self.bucket(bucket)?.compare_and_swap(key, expected, new);
        let swapped =
            swapped.map_err(|source| self.database.write_failed("swapping a record", source))?;
        self.database.commit.wait()?;
        Ok(swapped.is_ok())
    }

    fn scan_prefix(&self, bucket: &str, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>> {
        let records = self.bucket(bucket)?.scan_prefix(prefix).map(|record| {
            let (key, value) = record?;
            Ok((to_bytes(&key), to_bytes(&value)))
        });
        records
            .collect::<sled::Result<_>>()
            .map_err(|source| StoreError::database("reading records", source))
    }

    fn last_at_most(
        &self,
        bucket: &str,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>> {
        let last = self
            .bucket(bucket)?
            .range(prefix..=key)
            .next_back()
            .transpose();
        let last = last.map_err(|source| StoreError::database("reading a record", source))?;
        Ok(last
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (to_bytes(&key), to_bytes(&value))))
    }
}
