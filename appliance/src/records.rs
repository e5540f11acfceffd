//! Typed records over the store's keyed buckets: one JSON document a key.
//!
//! Promises: what is written is durable on return, and a damaged record is an error that names it, never skipped.
//! All calls block on the disk.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{Kv, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{action} {bucket}/{key}: {source}")]
    Store { action: &'static str, bucket: &'static str, key: String, source: StoreError },
    #[error("the record {bucket}/{key} is damaged: {source}")]
    Damaged { bucket: &'static str, key: String, source: serde_json::Error },
}

/// All records of one kind.
pub struct Table<T> {
    kv: Arc<dyn Kv>,
    bucket: &'static str,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Table { kv: self.kv.clone(), bucket: self.bucket, kind: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    pub fn new(kv: Arc<dyn Kv>, bucket: &'static str) -> Table<T> {
        Table { kv, bucket, kind: PhantomData }
    }

    #[cfg(test)]
    pub(crate) fn in_memory(bucket: &'static str) -> Table<T> {
        Table::new(store::Store::memory().kv, bucket)
    }

    pub fn get(&self, key: &str) -> Result<Option<T>, RecordError> {
        let value = self.kv.get(self.bucket, key.as_bytes()).map_err(|e| self.store_error("read", key, e))?;
        value.map(|bytes| self.decode(key, &bytes)).transpose()
    }

    pub fn put(&self, key: &str, record: &T) -> Result<(), RecordError> {
        let bytes = serde_json::to_vec(record)
            .map_err(|source| RecordError::Damaged { bucket: self.bucket, key: key.into(), source })?;
        self.kv.put(self.bucket, key.as_bytes(), &bytes).map_err(|e| self.store_error("write", key, e))
    }

    pub fn delete(&self, key: &str) -> Result<(), RecordError> {
        self.kv.delete(self.bucket, key.as_bytes()).map_err(|e| self.store_error("delete", key, e))
    }

    /// Every record, in key order.
    pub fn list(&self) -> Result<Vec<T>, RecordError> {
        self.list_under("")
    }

    /// Every record whose key begins with `prefix`, in key order.
    pub fn list_under(&self, prefix: &str) -> Result<Vec<T>, RecordError> {
        let records = self
            .kv
            .scan_prefix(self.bucket, prefix.as_bytes())
            .map_err(|e| self.store_error("list", prefix, e))?;
        records.iter().map(|(key, value)| self.decode(&String::from_utf8_lossy(key), value)).collect()
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<T, RecordError> {
        serde_json::from_slice(bytes)
            .map_err(|source| RecordError::Damaged { bucket: self.bucket, key: key.to_owned(), source })
    }

    fn store_error(&self, action: &'static str, key: &str, source: StoreError) -> RecordError {
        RecordError::Store { action, bucket: self.bucket, key: key.to_owned(), source }
    }
}
