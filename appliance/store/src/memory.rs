//! The memory backend: what the suite holds the others against. Durable as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::limits::{check_batch, check_blob, check_record};
use crate::{BlobHash, Blobs, CheckMark, Checked, Kv, KvChange, Log, PhoneId, Result, StoreError};

/// Every update under these locks is complete or not begun, so a poisoned one still holds good data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct PhoneLog {
    events: Vec<Bytes>,
    last_seq: watch::Sender<u64>,
}

impl Default for PhoneLog {
    fn default() -> Self {
        PhoneLog {
            events: Vec::new(),
            last_seq: watch::Sender::new(0),
        }
    }
}

#[derive(Default)]
pub(crate) struct MemoryLog {
    phones: Mutex<BTreeMap<PhoneId, PhoneLog>>,
}

impl Log for MemoryLog {
    fn append_batch(&self, phone: &PhoneId, first_seq: u64, events: &[Bytes]) -> Result<u64> {
        check_batch(first_seq, events)?;
        let mut phones = lock(&self.phones);
        let log = phones.entry(phone.clone()).or_default();
        let last_seq = log.events.len() as u64;
        let stored = (last_seq + 1)
            .checked_sub(first_seq)
            .ok_or_else(|| StoreError::Gap {
                phone: phone.clone(),
                last_seq,
                first_seq,
            })?;
        log.events
            .extend(events.iter().skip(stored as usize).cloned());
        let last_seq = log.events.len() as u64;
        log.last_seq
            .send_if_modified(|seq| std::mem::replace(seq, last_seq) != last_seq);
        Ok(last_seq)
    }

    fn read(&self, phone: &PhoneId, from_seq: u64, max: usize) -> Result<Vec<(u64, Bytes)>> {
        let phones = lock(&self.phones);
        let events = phones.get(phone).map_or(&[][..], |log| &log.events);
        let from_seq = from_seq.max(1);
        let numbered = (1..).zip(events).skip((from_seq - 1) as usize).take(max);
        Ok(numbered.map(|(seq, event)| (seq, event.clone())).collect())
    }

    fn last_seq(&self, phone: &PhoneId) -> Result<u64> {
        Ok(lock(&self.phones)
            .get(phone)
            .map_or(0, |log| log.events.len() as u64))
    }

    fn subscribe(&self, phone: &PhoneId) -> Result<watch::Receiver<u64>> {
        Ok(lock(&self.phones)
            .entry(phone.clone())
            .or_default()
            .last_seq
            .subscribe())
    }

    fn phones(&self) -> Result<Vec<PhoneId>> {
        let phones = lock(&self.phones);
        Ok(phones
            .iter()
            .filter(|(_, log)| !log.events.is_empty())
            .map(|(phone, _)| phone.clone())
            .collect())
    }
}

type Bucket = BTreeMap<Vec<u8>, Bytes>;

#[derive(Default)]
pub(crate) struct MemoryKv {
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Kv for MemoryKv {
    fn get(&self, bucket: &str, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(lock(&self.buckets)
            .get(bucket)
            .and_then(|records| records.get(key))
            .cloned())
    }

    fn write(&self, bucket: &str, changes: &[KvChange]) -> Result<()> {
        for change in changes {
            match change {
                KvChange::Put(key, value) => check_record(bucket, key, value)?,
                KvChange::Delete(key) => check_record(bucket, key, &[])?,
            }
        }
        let mut buckets = lock(&self.buckets);
        let records = buckets.entry(bucket.to_owned()).or_default();
        for change in changes {
            match change {
                KvChange::Put(key, value) => records.insert(key.clone(), value.clone()),
                KvChange::Delete(key) => records.remove(key),
            };
        }
        Ok(())
    }

    fn compare_and_swap(
        &self,
        bucket: &str,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool> {
        check_record(bucket, key, new.unwrap_or_default())?;
        let mut buckets = lock(&self.buckets);
        let records = buckets.entry(bucket.to_owned()).or_default();
        if records.get(key).map(|value| &value[..]) != expected {
            return Ok(false);
        }
        match new {
            Some(value) => records.insert(key.to_vec(), Bytes::copy_from_slice(value)),
            None => records.remove(key),
        };
        Ok(true)
    }

    fn scan_prefix(&self, bucket: &str, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>> {
        let buckets = lock(&self.buckets);
        let Some(records) = buckets.get(bucket) else {
            return Ok(Vec::new());
        };
        let from_prefix = records
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix));
        Ok(from_prefix
            .map(|(key, value)| (Bytes::copy_from_slice(key), value.clone()))
            .collect())
    }

    fn last_at_most(
        &self,
        bucket: &str,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>> {
        let buckets = lock(&self.buckets);
        let last = buckets
            .get(bucket)
            .and_then(|records| records.range(..=key.to_vec()).next_back());
        Ok(last
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())))
    }
}

#[derive(Default)]
pub(crate) struct MemoryBlobs {
    blobs: Mutex<HashMap<BlobHash, Bytes>>,
}

impl Blobs for MemoryBlobs {
    fn put_many(&self, blobs: &[Bytes]) -> Result<Vec<BlobHash>> {
        blobs.iter().try_for_each(check_blob)?;
        let mut stored = lock(&self.blobs);
        let hashes = blobs.iter().map(|blob| {
            let hash = BlobHash::of(blob);
            stored
                .entry(hash)
                .or_insert_with(|| Bytes::copy_from_slice(blob));
            hash
        });
        Ok(hashes.collect())
    }

    fn get(&self, hash: &BlobHash) -> Result<Bytes> {
        lock(&self.blobs)
            .get(hash)
            .cloned()
            .ok_or(StoreError::BlobMissing(*hash))
    }

    fn has_many(&self, hashes: &[BlobHash]) -> Result<Vec<bool>> {
        let stored = lock(&self.blobs);
        Ok(hashes
            .iter()
            .map(|hash| stored.contains_key(hash))
            .collect())
    }

    fn check(&self, _: CheckMark, _: u64) -> Result<Checked> {
        // Memory is taken to hold what it was given.
        let stored = lock(&self.blobs);
        let bytes = stored.values().map(|blob| blob.len() as u64).sum();
        Ok(Checked {
            blobs: stored.len() as u64,
            bytes,
            ..Checked::default()
        })
    }

    fn stored_bytes(&self) -> Result<u64> {
        let stored = lock(&self.blobs);
        Ok(stored.values().map(|blob| blob.len() as u64).sum())
    }
}
