//! Reading files from their chunks, with a bounded cache shared by everything that reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use store::{BlobHash, Blobs, StoreError};
use sync_protocol::chunking::Chunk;

use crate::inode::Contents;

/// The chunks of a store, recently read ones in memory.
pub(crate) struct Chunks {
    blobs: Arc<dyn Blobs>,
    cache: Mutex<Generations>,
    generation_bytes_max: usize,
}

/// Two generations stand for an order by last use: what is used moves to the young one, and when that is
/// half of the cache, the old one goes and the young becomes old.
#[derive(Default)]
struct Generations {
    young: HashMap<BlobHash, Bytes>,
    young_bytes: usize,
    old: HashMap<BlobHash, Bytes>,
}

impl Generations {
    fn insert(&mut self, hash: BlobHash, chunk: Bytes, generation_bytes_max: usize) {
        if self.young_bytes + chunk.len() > generation_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += chunk.len();
        if let Some(twice) = self.young.insert(hash, chunk) {
            self.young_bytes -= twice.len();
        }
    }

    fn get(&mut self, hash: &BlobHash, generation_bytes_max: usize) -> Option<Bytes> {
        if let Some(chunk) = self.young.get(hash) {
            return Some(chunk.clone());
        }
        let chunk = self.old.remove(hash)?;
        self.insert(*hash, chunk.clone(), generation_bytes_max);
        Some(chunk)
    }
}

impl Chunks {
    /// Reads from `blobs`, keeping up to `cache_bytes_max` of them.
    pub(crate) fn new(blobs: Arc<dyn Blobs>, cache_bytes_max: usize) -> Self {
        Chunks {
            blobs,
            cache: Mutex::default(),
            generation_bytes_max: cache_bytes_max / 2,
        }
    }

    pub(crate) fn blobs(&self) -> &dyn Blobs {
        &*self.blobs
    }

    /// The bytes of one chunk.
    pub(crate) fn get(&self, chunk: &Chunk) -> Result<Bytes, StoreError> {
        let hash = BlobHash::from(chunk.hash.0);
        let max = self.generation_bytes_max;
        let cached = self
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&hash, max);
        if let Some(bytes) = cached {
            return Ok(bytes);
        }
        let bytes = self.blobs.get(&hash)?;
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hash, bytes.clone(), max);
        Ok(bytes)
    }

    /// Appends bytes `offset..offset + length` of the file to `out`, less where the file ends before.
    pub(crate) fn read(
        &self,
        contents: &Contents,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let end = offset.saturating_add(length as u64).min(contents.size());
        for (start, chunk) in contents.chunks_from(offset) {
            if start >= end {
                break;
            }
            let bytes = self.get(chunk)?;
            if bytes.len() != chunk.size as usize {
                return Err(StoreError::BlobDamaged(BlobHash::from(chunk.hash.0)));
            }
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(u64::from(chunk.size)) as usize;
            out.extend_from_slice(&bytes[from..to]);
        }
        Ok(())
    }
}
