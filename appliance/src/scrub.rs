//! The scrub: reads everything that is stored, slowly and for ever, to find what decayed before anybody wants it.
//!
//! ```text
//!   waits ─▶ reads packs in slices, each followed by a pause ─▶ all read ─▶ what is damaged is placed and mended ─▶ waits
//! ```
//!
//! **Where it comes from again.** Files of an image come from the image. The nodes of a flash's tree are made again from the tree. Contents
//! of a phone's file come from the phone, which is asked to send it again ([`Commands::rescan`]): when it is connected next, if it still
//! has it. What no phone has at present belongs to earlier positions only; it is counted, and stays lost.
//!
//! Promises: no more than the named share of the disk's time; goes on where it was after a restart; what was found is told in the phone's
//! log. Leaves out: logs and records, whose store checks itself.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use store::{BlobHash, CheckMark, Checked, PhoneId, Store, StoreError};
use sync_protocol::PhonePath;
use sync_protocol::event::{Control, ControlKind, Kind};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::chain::Chain;
use crate::commands::{CommandError, Commands};
use crate::config::ScrubConfig;
use crate::flashes::{Flashes, FlashesError};
use crate::log::{LogError, PhoneLogs};
use crate::phones::{Phone, Phones, now_us};
use crate::records::{RecordError, Table};

/// Read between two pauses.
const SLICE_BYTES: u64 = 4 << 20;
/// Read between two notes of how far it has come.
const KEPT_EVERY_BYTES: u64 = 1 << 30;
/// Damaged blobs remembered in one pass: with more, the disk is lost, and the rest is found when these are mended.
const DAMAGED_MAX: usize = 4096;
/// Files that are asked for again in one pass.
const ASKED_MAX: usize = 1000;
/// Of their paths, that are kept with the pass; the phones' logs have all.
const PATH_BYTES_MAX: usize = 64 * 1024;
/// Files taken from a tree at a time.
const PAGE_FILES: usize = 512;
/// After a failure of the store, before the pass goes on.
const RETRY: Duration = Duration::from_secs(60);
/// The one record.
const KEY: &str = "scrub";

#[derive(Debug, thiserror::Error)]
enum ScrubError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error("interrupted")]
    Interrupted,
}

/// How far a pass has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    pub begun_us: u64,
    /// Absent while it goes on.
    pub ended_us: Option<u64>,
    /// Where it goes on: pack and offset.
    mark: (u32, u64),
    pub bytes: u64,
    pub blobs: u64,
    /// Found damaged.
    damaged: BTreeSet<BlobHash>,
    /// Files that a phone has now, and of which a part is damaged, or missing.
    pub asked: usize,
    /// The first of them.
    pub files: Vec<DecayedFile>,
    /// Damaged, mended from an image or a tree.
    pub mended: usize,
    /// Damaged, and of earlier positions only.
    pub lost: usize,
}

impl Pass {
    pub fn damaged(&self) -> usize {
        self.damaged.len()
    }
}

/// A phone's file that could not be read whole any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecayedFile {
    pub phone: PhoneId,
    pub path: Vec<u8>,
    /// The first of its damaged chunks, in hex.
    pub chunk: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    running: Option<Pass>,
    last: Option<Pass>,
}

/// What the scrub works on.
pub struct ScrubParts {
    pub store: Store,
    pub phones: Phones,
    pub flashes: Flashes,
    pub logs: PhoneLogs,
    pub commands: Commands,
    pub kv: Arc<dyn store::Kv>,
    pub config: ScrubConfig,
    pub stop: CancellationToken,
}

/// Cloning shares it.
#[derive(Clone)]
pub struct Scrub {
    inner: Arc<Inner>,
}

struct Inner {
    parts: ScrubParts,
    table: Table<Kept>,
    kept: Mutex<Kept>,
    wanted: Notify,
}

impl Scrub {
    /// Blocks.
    pub fn open(parts: ScrubParts) -> Result<Scrub, RecordError> {
        let table = Table::new(parts.kv.clone(), "scrub");
        let kept = Mutex::new(table.get(KEY)?.unwrap_or_default());
        Ok(Scrub { inner: Arc::new(Inner { parts, table, kept, wanted: Notify::new() }) })
    }

    /// Begins a pass now, if none runs.
    pub fn begin(&self) {
        self.inner.wanted.notify_one();
    }

    /// The pass that runs, if one does, and the last that ended.
    pub fn passes(&self) -> (Option<Pass>, Option<Pass>) {
        let kept = self.inner.kept();
        (kept.running.clone(), kept.last.clone())
    }

    /// Bytes that a pass reads. Blocks for a moment.
    pub fn stored_bytes(&self) -> Result<u64, StoreError> {
        self.inner.parts.store.blobs.stored_bytes()
    }

    /// Scrubs until the appliance stops.
    pub async fn run(self) {
        let stop = self.inner.parts.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.inner.run() => {}
        }
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: &Arc<Self>) {
        loop {
            if self.kept().running.is_none() {
                self.wait().await;
                let begun = Pass { begun_us: now_us(), ..Pass::default() };
                self.kept().running = Some(begun);
            }
            while let Err(error) = self.pass().await {
                warn!(error = %Chain(&error), "the scrub waits");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Until the next pass is due, or wanted.
    async fn wait(&self) {
        let ScrubConfig { share_percent, every } = self.parts.config;
        let ended_us = self.kept().last.as_ref().and_then(|pass| pass.ended_us);
        let since = Duration::from_micros(now_us().saturating_sub(ended_us.unwrap_or(0)));
        let due = async {
            match share_percent {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(every.saturating_sub(since)).await,
            }
        };
        tokio::select! {
            () = due => {}
            () = self.wanted.notified() => {}
        }
    }

    async fn pass(self: &Arc<Self>) -> Result<(), ScrubError> {
        let mut kept_at = 0;
        loop {
            let begun = Instant::now();
            let this = self.clone();
            let more = blocking(move || this.slice()).await?;
            let bytes = self.kept().running.as_ref().map_or(0, |pass| pass.bytes);
            if !more {
                break;
            }
            if bytes >= kept_at + KEPT_EVERY_BYTES {
                kept_at = bytes;
                let this = self.clone();
                blocking(move || this.keep()).await?;
            }
            // Asked for by hand, it runs even where it never does by itself.
            let share = self.parts.config.share_percent.clamp(1, 100);
            tokio::time::sleep(begun.elapsed() * (100 - share) / share).await;
        }
        let this = self.clone();
        blocking(move || this.finish()).await
    }

    /// Checks some more; false if everything was. Blocks.
    fn slice(&self) -> Result<bool, ScrubError> {
        let (pack, offset) = self.kept().running.as_ref().map(|pass| pass.mark).unwrap_or_default();
        let checked = self.parts.store.blobs.check(CheckMark { pack, offset }, SLICE_BYTES)?;
        let Checked { next, blobs, bytes, damaged } = checked;
        let mut kept = self.kept();
        let pass = kept.running.get_or_insert_default();
        pass.blobs += blobs;
        pass.bytes += bytes;
        let room = DAMAGED_MAX.saturating_sub(pass.damaged.len());
        pass.damaged.extend(damaged.into_iter().take(room));
        if let Some(mark) = next {
            pass.mark = (mark.pack, mark.offset);
        }
        Ok(next.is_some())
    }

    /// Blocks.
    fn keep(&self) -> Result<(), ScrubError> {
        let kept = self.kept().clone();
        Ok(self.table.put(KEY, &kept)?)
    }

    /// Mends what was found, and ends the pass. Blocks.
    fn finish(&self) -> Result<(), ScrubError> {
        let mut pass = self.kept().running.clone().unwrap_or_default();
        let phones = self.parts.phones.list();
        if !pass.damaged.is_empty() {
            warn!(blobs = pass.damaged.len(), "stored blobs have decayed");
            for phone in &phones {
                self.store_again(phone);
            }
        }
        let damaged: Vec<BlobHash> = pass.damaged.iter().copied().collect();
        let mut missing: HashSet<BlobHash> = HashSet::new();
        for (hash, is_there) in damaged.iter().zip(self.parts.store.blobs.has_many(&damaged)?) {
            if !is_there {
                missing.insert(*hash);
            }
        }
        pass.mended = damaged.len() - missing.len();
        // Also what was lost otherwise: blobs that are not stored at all are damaged nowhere.
        for phone in &phones {
            self.place(phone, &mut missing, &mut pass.files, &mut pass.asked)?;
        }
        pass.lost = missing.len();
        pass.ended_us = Some(now_us());
        info!(blobs = pass.blobs, bytes = pass.bytes, damaged = damaged.len(), files = pass.asked, lost = pass.lost, "scrubbed");
        *self.kept() = Kept { running: None, last: Some(pass) };
        if let Err(error) = self.keep() {
            warn!(error = %Chain(&error), "what the scrub found is not kept");
        }
        Ok(())
    }

    /// Makes again what needs no phone: the files of its image, and the nodes of its tree.
    fn store_again(&self, phone: &Phone) {
        if let Err(error) = self.parts.flashes.store_again(phone) {
            // Its files are asked for all the same.
            warn!(phone = %phone.id, error = %Chain(&error), "a flash cannot be stored again");
        }
    }

    /// Finds the files that lack a chunk, and asks the phone for them. What was placed is no longer `missing`.
    fn place(
        &self,
        phone: &Phone,
        missing: &mut HashSet<BlobHash>,
        files: &mut Vec<DecayedFile>,
        asked: &mut usize,
    ) -> Result<(), ScrubError> {
        let flash = match self.parts.flashes.still(phone, None) {
            Ok(flash) => flash,
            Err(error) => {
                warn!(phone = %phone.id, error = %Chain(&error), "a flash cannot be checked");
                return Ok(());
            }
        };
        let mut after: Option<PhonePath> = None;
        loop {
            let page = flash.files_after(after.as_ref(), PAGE_FILES);
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (path, listed) in page {
                if listed.format != libc::S_IFREG {
                    continue;
                }
                let Some(node) = flash.node(&path) else { continue };
                let hashes: Vec<BlobHash> = node.chunks().iter().map(|chunk| BlobHash::from(chunk.hash.0)).collect();
                let there = self.parts.store.blobs.has_many(&hashes)?;
                let lacking: Vec<BlobHash> = hashes.iter().zip(there).filter(|(_, there)| !there).map(|(hash, _)| *hash).collect();
                let Some(first) = lacking.first() else { continue };
                for hash in &lacking {
                    missing.remove(hash);
                }
                if *asked == ASKED_MAX {
                    continue;
                }
                *asked += 1;
                self.ask_for(&phone.id, &path, first)?;
                let told: usize = files.iter().map(|file| file.path.len()).sum();
                if told + path.as_bytes().len() <= PATH_BYTES_MAX {
                    files.push(DecayedFile { phone: phone.id.clone(), path: path.to_vec(), chunk: first.to_string() });
                }
            }
        }
    }

    fn ask_for(&self, phone: &PhoneId, path: &PhonePath, chunk: &BlobHash) -> Result<(), ScrubError> {
        let text = format!("chunk {chunk} is not what it was; the phone is asked to send the file again");
        let told = Control { kind: ControlKind::StoreRotten, text, path: Some(path.clone()), count: 0 };
        self.parts.logs.append_ours(phone, |_| vec![Kind::Control(told)])?;
        self.parts.commands.rescan(phone, path.as_bytes())?;
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ScrubError> + Send + 'static,
) -> Result<T, ScrubError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ScrubError::Interrupted)?
}
