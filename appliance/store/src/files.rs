//! Blobs as files: `DIR/ab/cdef...`, named by their hash.
//!
//! A blob is written to `DIR/tmp`, made durable, renamed, and its directory made durable, so a file
//! under its final name is always whole. Both waits are group commits of the whole file system
//! (`syncfs`): one for all writers, however many files each brings.
//!
//! A blob whose rename is not durable yet is *unsettled*: readable, but `has_many` denies it, because
//! whoever is told "yes" may acknowledge an event that refers to it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::commit::GroupCommit;
use crate::embedded::{Space, create_dir};
use crate::limits::check_blob;
use crate::{BLOB_BYTES_MAX, BlobHash, Blobs, Result, StoreError};

pub(crate) struct FileBlobs {
    dir: PathBuf,
    space: Space,
    commit: GroupCommit,
    unsettled: Mutex<HashSet<BlobHash>>,
    /// Found damaged: denied by `has_many`, and replaced when put again.
    damaged: Mutex<HashSet<BlobHash>>,
    temporaries: AtomicU64,
    _lock: Arc<File>,
}

/// A blob on its way to its place.
struct Pending {
    hash: BlobHash,
    temporary: PathBuf,
}

impl FileBlobs {
    pub(crate) fn open(dir: &Path, space: Space, lock: Arc<File>) -> Result<Self> {
        create_dir(dir)?;
        for shard in 0..=255u8 {
            create_dir(&dir.join(format!("{shard:02x}")))?;
        }
        let temporary = dir.join("tmp");
        let failed = |source| StoreError::io(format!("clearing {}", temporary.display()), source);
        match std::fs::remove_dir_all(&temporary) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(failed(source)),
            _ => create_dir(&temporary)?,
        }
        let file = File::open(dir).map_err(failed)?;
        let sync = move || nix::unistd::syncfs(&file).map_err(|errno| format!("syncfs: {errno}"));
        let commit = GroupCommit::start("blob-flusher", sync)?;
        // What a killed process had renamed counts as settled from here on.
        commit.wait()?;
        Ok(FileBlobs {
            dir: dir.to_owned(),
            space,
            commit,
            unsettled: Mutex::default(),
            damaged: Mutex::default(),
            temporaries: AtomicU64::new(0),
            _lock: lock,
        })
    }

    fn lock<'a>(&self, set: &'a Mutex<HashSet<BlobHash>>) -> MutexGuard<'a, HashSet<BlobHash>> {
        set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_damaged(&self, hash: &BlobHash) -> StoreError {
        self.lock(&self.damaged).insert(*hash);
        StoreError::BlobDamaged(*hash)
    }

    fn path(&self, hash: &BlobHash) -> PathBuf {
        let name = hash.to_string();
        self.dir.join(&name[..2]).join(&name[2..])
    }

    fn write_temporary(&self, hash: BlobHash, blob: &Bytes) -> Result<Pending> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join("tmp").join(number.to_string());
        let written = File::create_new(&temporary).and_then(|mut file| file.write_all(blob));
        written.map_err(|source| {
            // The write's failure is what counts; a left-over goes at the next open.
            let _ = std::fs::remove_file(&temporary);
            StoreError::io(format!("writing blob {hash}"), source)
        })?;
        Ok(Pending { hash, temporary })
    }

    fn write_pending(&self, missing: &[(BlobHash, &Bytes)]) -> Result<Vec<Pending>> {
        let mut pending = Vec::with_capacity(missing.len());
        for (hash, blob) in missing {
            match self.write_temporary(*hash, blob) {
                Ok(written) => pending.push(written),
                Err(error) => {
                    discard(&pending);
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.commit.wait() {
            discard(&pending);
            return Err(error);
        }
        Ok(pending)
    }

    /// Moves the blobs to their places, except those that have been settled there meanwhile: their
    /// entry must not become uncertain again.
    fn rename(&self, pending: Vec<Pending>) -> Result<Vec<Pending>> {
        let (renamed, superfluous): (Vec<_>, Vec<_>) = {
            let mut unsettled = self.lock(&self.unsettled);
            let damaged = self.lock(&self.damaged);
            let split = pending.into_iter().partition(|Pending { hash, .. }| {
                unsettled.contains(hash) || damaged.contains(hash) || !self.path(hash).exists()
            });
            let (renamed, _): &(Vec<Pending>, Vec<Pending>) = &split;
            unsettled.extend(renamed.iter().map(|pending| pending.hash));
            split
        };
        discard(&superfluous);
        for (done, Pending { hash, temporary }) in renamed.iter().enumerate() {
            if let Err(source) = std::fs::rename(temporary, self.path(hash)) {
                discard(&renamed[done..]);
                return Err(StoreError::io(format!("renaming blob {hash}"), source));
            }
        }
        Ok(renamed)
    }
}

fn discard(pending: &[Pending]) {
    for Pending { temporary, .. } in pending {
        // A left-over goes at the next open.
        let _ = std::fs::remove_file(temporary);
    }
}

impl Blobs for FileBlobs {
    fn put_many(&self, blobs: &[Bytes]) -> Result<Vec<BlobHash>> {
        blobs.iter().try_for_each(check_blob)?;
        let hashes: Vec<BlobHash> = blobs.iter().map(|blob| BlobHash::of(blob)).collect();
        let present = self.has_many(&hashes)?;
        let mut seen = HashSet::new();
        let missing: Vec<(BlobHash, &Bytes)> = hashes
            .iter()
            .zip(blobs)
            .zip(present)
            .filter(|((hash, _), present)| !present && seen.insert(**hash))
            .map(|((hash, blob), _)| (*hash, blob))
            .collect();
        if missing.is_empty() {
            return Ok(hashes);
        }
        self.commit.check()?;
        self.space
            .check(missing.iter().map(|(_, blob)| blob.len()).sum())?;
        let renamed = self.rename(self.write_pending(&missing)?)?;
        self.commit.wait()?;
        let settled: HashSet<BlobHash> = renamed.iter().map(|pending| pending.hash).collect();
        self.lock(&self.unsettled)
            .retain(|hash| !settled.contains(hash));
        self.lock(&self.damaged)
            .retain(|hash| !settled.contains(hash));
        Ok(hashes)
    }

    fn get(&self, hash: &BlobHash) -> Result<Bytes> {
        let failed = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => StoreError::BlobMissing(*hash),
            _ => StoreError::io(format!("reading blob {hash}"), source),
        };
        let mut file = File::open(self.path(hash)).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size > BLOB_BYTES_MAX as u64 {
            return Err(self.is_damaged(hash));
        }
        let mut blob = Vec::with_capacity(size as usize);
        file.read_to_end(&mut blob).map_err(failed)?;
        if BlobHash::of(&blob) != *hash {
            return Err(self.is_damaged(hash));
        }
        Ok(blob.into())
    }

    fn has_many(&self, hashes: &[BlobHash]) -> Result<Vec<bool>> {
        // The file first: a name that appears after this look has not been acknowledged to anyone, and
        // one that was there is in `unsettled` until its rename is durable.
        let present = hashes
            .iter()
            .map(|hash| self.path(hash).exists())
            .collect::<Vec<_>>();
        let (unsettled, damaged) = (self.lock(&self.unsettled), self.lock(&self.damaged));
        let usable = |hash| !unsettled.contains(hash) && !damaged.contains(hash);
        Ok(hashes
            .iter()
            .zip(present)
            .map(|(hash, present)| present && usable(hash))
            .collect())
    }
}
