//! Saved machines: one file that holds CPU, devices and RAM.
//!
//! ```text
//! 0    magic, 8 bytes           8  version, u32      12  length of the head, u32 (all little-endian)
//! 16   SHA-256 of the head, 32 bytes
//! 48   head: JSON, in it the build that saved, lengths and a digest of what follows
//!      CPU state, then each device's state
//!      padding to RAM_ALIGN; runs of RAM, one after the other, sparse: pages of zeros are holes
//! ```
//! A whole machine's file has all of its RAM in one run. A machine that was restored is saved as what differs from its *base*, the
//! whole machine that it, or the one that it was restored from, began with; such a file is of use only together with that base.
//! RAM is mapped copy-on-write from the files, so a restore costs milliseconds and machines restored from one file share
//! memory. Head and states are checked at each opening; RAM, which would have to be read for that, only by
//! [`Snapshot::verify_ram`]. No file may be written over while a machine that was restored from it lives.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestAddress};

use crate::board::BoardState;
use crate::memory::{self, GuestRam, MemoryError, PAGE, Pagemap, Run};

const MAGIC: &[u8; 8] = b"PLXTWIN\0";
/// Raise it whenever the meaning of anything in the file changes.
const VERSION: u32 = 3;
const PREFIX_BYTES: usize = 48;
/// The head is lists of lengths and runs, and three small devices.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// CPU context, and a screen's pixels among the devices: a few MiB.
const STATE_BYTES_MAX: u64 = 256 << 20;
const RAM_ALIGN: u64 = 2 << 20;
/// How much RAM is looked at at once.
const CHUNK: u64 = 1 << 20;
/// Each run becomes a mapping of its own, of which a process may have 65,530, and a few bytes of the head.
const RUNS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {operation} snapshot {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot write the saved machine: {0}")]
    Write(std::io::Error),
    #[error("{0} is not a saved machine")]
    Foreign(PathBuf),
    #[error("snapshot {path} is of format {found}; this build knows format {VERSION}: boot instead")]
    Version { path: PathBuf, found: u32 },
    #[error("snapshot {path} was saved by {found}; this is {ours}: boot instead")]
    OtherBuild { path: PathBuf, found: String, ours: String },
    #[error("snapshot {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("machine {path} was saved as what differs from a base snapshot, which {reason}: boot instead")]
    Base { path: PathBuf, reason: &'static str },
    #[error("cannot read guest RAM")]
    Ram(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A paused machine but for its RAM.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineState {
    pub run_time: Duration,
    pub board: BoardState,
    pub cpu: Vec<u8>,
    pub devices: Vec<DeviceBytes>,
}

/// One virtio device's state; names tell whether two machines have the same devices.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceBytes {
    pub name: String,
    pub bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    build: String,
    run_time: Duration,
    board: BoardState,
    cpu_len: u64,
    devices: Vec<(String, u64)>,
    states_sha256: String,
    ram_offset: u64,
    ram_base: u64,
    ram_size: u64,
    /// Of the stored pages that are not all zeros.
    ram_sha256: String,
    /// What is stored of RAM: ascending and apart.
    runs: Vec<Run>,
    /// The digest of the base's head, if what is not stored is there.
    base: Option<String>,
}

/// What a restored machine began with.
pub struct Origin {
    base: String,
    /// Differs from the base already.
    differs: Vec<Run>,
    pagemap: Pagemap,
}

/// Writes a saved machine to an open file, which is empty: only what differs from its base, if it has an `origin`. `build` is who can
/// restore it. When this returns, the file is complete and on disk, or of no use.
pub fn write(file: &File, build: &str, state: &MachineState, ram: &GuestRam, origin: Option<&Origin>) -> Result<(), SnapshotError> {
    let (ram_base, ram_size) = memory::extent(ram);
    let runs = match origin {
        Some(origin) => origin.differing(ram).map_err(SnapshotError::Write)?,
        None => vec![Run { at: 0, len: ram_size }],
    };
    let stored: u64 = runs.iter().map(|run| run.len).sum();
    let mut states = state.cpu.clone();
    state.devices.iter().for_each(|d| states.extend_from_slice(&d.bytes));
    let mut head = Head {
        build: build.into(),
        run_time: state.run_time,
        board: state.board.clone(),
        cpu_len: state.cpu.len() as u64,
        devices: state.devices.iter().map(|d| (d.name.clone(), d.bytes.len() as u64)).collect(),
        states_sha256: hex(&Sha256::digest(&states)),
        ram_offset: (HEAD_BYTES_MAX as u64 + states.len() as u64).next_multiple_of(RAM_ALIGN),
        ram_base,
        ram_size,
        ram_sha256: String::new(),
        runs,
        base: origin.map(|origin| origin.base.clone()),
    };
    file.set_len(head.ram_offset + stored).map_err(SnapshotError::Write)?;
    head.ram_sha256 = write_ram(ram, &head.runs, |bytes, at| file.write_all_at(bytes, head.ram_offset + at).map_err(SnapshotError::Write))?;

    let json = serde_json::to_vec(&head).expect("numbers and strings always serialise");
    assert!(PREFIX_BYTES + json.len() <= HEAD_BYTES_MAX, "a machine's head is small");
    let mut front = Vec::with_capacity(PREFIX_BYTES + json.len() + states.len());
    front.extend_from_slice(MAGIC);
    front.extend_from_slice(&VERSION.to_le_bytes());
    front.extend_from_slice(&(json.len() as u32).to_le_bytes());
    front.extend_from_slice(&Sha256::digest(&json));
    front.extend_from_slice(&json);
    front.extend_from_slice(&states);
    file.write_all_at(&front, 0).and_then(|()| file.sync_all()).map_err(SnapshotError::Write)
}

impl Origin {
    /// What differs from the base now, in few enough runs; small gaps between them, which do not, are taken in where need be.
    fn differing(&self, ram: &GuestRam) -> std::io::Result<Vec<Run>> {
        let mut pages = self.pagemap.written(ram)?;
        for run in &self.differs {
            pages[run.pages()].fill(true);
        }
        let mut gap = 0;
        loop {
            let runs = runs_of(&pages, gap);
            if runs.len() <= RUNS_MAX {
                return Ok(runs);
            }
            gap = 2 * gap + 1;
        }
    }
}

/// The runs of pages that are marked, joined where at most `gap` lie between.
fn runs_of(pages: &[bool], gap: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, _) in pages.iter().enumerate().filter(|(_, marked)| **marked) {
        let at = i as u64 * PAGE;
        match runs.last_mut() {
            Some(run) if at - run.end() <= gap as u64 * PAGE => run.len = at + PAGE - run.at,
            _ => runs.push(Run { at, len: PAGE }),
        }
    }
    runs
}

/// Cuts runs into pieces of at most [`CHUNK`], each with its place among all that is stored.
fn pieces(runs: &[Run]) -> impl Iterator<Item = (Run, u64)> {
    let mut stored = 0;
    let cut = |run: &Run| {
        let (at, end) = (run.at, run.end());
        (at..end).step_by(CHUNK as usize).map(move |at| Run { at, len: CHUNK.min(end - at) })
    };
    runs.iter().flat_map(cut).map(move |piece| {
        stored += piece.len;
        (piece, stored - piece.len)
    })
}

/// Hands every page of these runs that is not all zeros to `put`, in order, with its place among what is stored, and returns the
/// digest of these pages and their places in RAM.
fn write_ram(
    ram: &GuestRam,
    runs: &[Run],
    mut put: impl FnMut(&[u8], u64) -> Result<(), SnapshotError>,
) -> Result<String, SnapshotError> {
    let mut digest = RamDigest::default();
    let mut chunk = vec![0; CHUNK as usize];
    let base = memory::extent(ram).0;
    for (piece, stored) in pieces(runs) {
        let chunk = &mut chunk[..piece.len as usize];
        ram.read_slice(chunk, GuestAddress(base + piece.at))?;
        for (start, pages) in used_runs(chunk) {
            digest.add(piece.at + start, pages);
            put(pages, stored + start)?;
        }
    }
    Ok(digest.finish())
}

/// The runs of pages in a chunk that are not all zeros, each with its place in the chunk.
fn used_runs(chunk: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let is_used = |page: &[u8]| page.iter().any(|b| *b != 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = chunk[at..].chunks(PAGE as usize);
        let start = at + rest.take_while(|p| !is_used(p)).map(<[u8]>::len).sum::<usize>();
        at = start + chunk[start..].chunks(PAGE as usize).take_while(|p| is_used(p)).map(<[u8]>::len).sum::<usize>();
        (at > start).then(|| (start as u64, &chunk[start..at]))
    })
}

/// Digest over the used pages, each with its place, so that it does not depend on how they were grouped.
#[derive(Default)]
struct RamDigest(Sha256);

impl RamDigest {
    fn add(&mut self, at: u64, pages: &[u8]) {
        for (i, page) in pages.chunks(PAGE as usize).enumerate() {
            self.0.update((at + i as u64 * PAGE).to_le_bytes());
            self.0.update(page);
        }
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// A saved machine, opened and checked.
pub struct Snapshot {
    path: PathBuf,
    file: File,
    head: Head,
    /// Of the head, in hex.
    digest: String,
    states: Vec<u8>,
}

impl Snapshot {
    /// Opens `path`; `build` must be what [`write`] was given.
    pub fn open(path: &Path, build: &str) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(|source| SnapshotError::Io { operation: "read", path: path.into(), source })?;
        Self::of(file, path, build)
    }

    /// The same of a file that is open, and called `path`. Others may read it meanwhile.
    pub fn of(file: File, path: &Path, build: &str) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Io { operation: "read", path: path.into(), source };
        let damaged = |reason: &str| SnapshotError::Damaged { path: path.into(), reason: reason.into() };
        let length = file.metadata().map_err(failed)?.len();
        let mut prefix = [0; PREFIX_BYTES];
        if length < PREFIX_BYTES as u64 {
            return Err(SnapshotError::Foreign(path.into()));
        }
        file.read_exact_at(&mut prefix, 0).map_err(failed)?;
        if &prefix[..8] != MAGIC {
            return Err(SnapshotError::Foreign(path.into()));
        }
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| prefix[at + i]));
        if word(8) != VERSION {
            return Err(SnapshotError::Version { path: path.into(), found: word(8) });
        }
        let json_len = word(12) as usize;
        if json_len > HEAD_BYTES_MAX || (PREFIX_BYTES + json_len) as u64 > length {
            return Err(damaged("it is cut short"));
        }
        let mut json = vec![0; json_len];
        file.read_exact_at(&mut json, PREFIX_BYTES as u64).map_err(failed)?;
        if Sha256::digest(&json)[..] != prefix[16..] {
            return Err(damaged("the checksum of its head is wrong"));
        }
        let head: Head = serde_json::from_slice(&json).map_err(|e| damaged(&e.to_string()))?;
        if head.build != build {
            return Err(SnapshotError::OtherBuild { path: path.into(), found: head.build, ours: build.into() });
        }
        memory::check_size(head.ram_size)?;
        let stored = stored(&head).ok_or_else(|| damaged("its runs of RAM make no sense"))?;
        if head.ram_offset.checked_add(stored) != Some(length) || !head.ram_offset.is_multiple_of(PAGE) {
            return Err(damaged("it is cut short"));
        }
        let sizes = head.devices.iter().map(|(_, len)| *len);
        let states_len = sizes.fold(head.cpu_len, u64::saturating_add);
        if states_len > STATE_BYTES_MAX || (PREFIX_BYTES + json_len) as u64 + states_len > head.ram_offset {
            return Err(damaged("its parts overlap"));
        }
        let mut states = vec![0; states_len as usize];
        file.read_exact_at(&mut states, (PREFIX_BYTES + json_len) as u64).map_err(failed)?;
        if hex(&Sha256::digest(&states)) != head.states_sha256 {
            return Err(damaged("the checksum of CPU and devices is wrong"));
        }
        Ok(Self { path: path.into(), file, head, digest: hex(&prefix[16..]), states })
    }

    /// Maps the saved RAM copy-on-write; `base` is what it was saved as the difference from, if it was.
    pub fn ram(&self, base: Option<&Snapshot>) -> Result<GuestRam, SnapshotError> {
        let file = |of: &Self| of.file.try_clone().map_err(|source| of.failed("map", source));
        let Head { ram_offset, ram_base, ram_size, .. } = self.head;
        let Some(wanted) = &self.head.base else {
            return Ok(memory::from_snapshot(file(self)?, ram_offset, ram_base, ram_size)?);
        };
        let unfit = |reason| SnapshotError::Base { path: self.path.clone(), reason };
        let base = base.ok_or_else(|| unfit("is not given"))?;
        if base.digest != *wanted {
            return Err(unfit("is another than this"));
        }
        if base.head.base.is_some() || (base.head.ram_base, base.head.ram_size) != (ram_base, ram_size) {
            return Err(unfit("does not fit it"));
        }
        let ram = base.ram(None)?;
        memory::overlay(&ram, &self.file, ram_offset, &self.head.runs).map_err(|source| self.failed("map", source))?;
        Ok(ram)
    }

    /// What a machine begins with that is restored from this; to save it again as what differs.
    pub fn origin(&self) -> Result<Origin, SnapshotError> {
        let pagemap = Pagemap::open().map_err(|source| self.failed("tell pages of", source))?;
        Ok(match &self.head.base {
            Some(base) => Origin { base: base.clone(), differs: self.head.runs.clone(), pagemap },
            None => Origin { base: self.digest.clone(), differs: Vec::new(), pagemap },
        })
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> SnapshotError {
        SnapshotError::Io { operation, path: self.path.clone(), source }
    }

    /// What [`crate::machine::Machine::restore`] takes.
    pub fn state(&self) -> MachineState {
        let (cpu, mut rest) = self.states.split_at(self.head.cpu_len as usize);
        let devices = self.head.devices.iter().map(|(name, len)| {
            let (bytes, after) = rest.split_at(*len as usize);
            rest = after;
            DeviceBytes { name: name.clone(), bytes: bytes.to_vec() }
        });
        MachineState {
            devices: devices.collect(),
            run_time: self.head.run_time,
            board: self.head.board.clone(),
            cpu: cpu.to_vec(),
        }
    }

    /// Reads all of the RAM that is stored and compares its digest.
    pub fn verify_ram(&self) -> Result<(), SnapshotError> {
        let mut digest = RamDigest::default();
        let mut chunk = vec![0; CHUNK as usize];
        for (piece, stored) in pieces(&self.head.runs) {
            let chunk = &mut chunk[..piece.len as usize];
            self.file.read_exact_at(chunk, self.head.ram_offset + stored).map_err(|source| self.failed("read", source))?;
            used_runs(chunk).for_each(|(start, pages)| digest.add(piece.at + start, pages));
        }
        if digest.finish() != self.head.ram_sha256 {
            let reason = "the checksum of RAM is wrong".into();
            return Err(SnapshotError::Damaged { path: self.path.clone(), reason });
        }
        Ok(())
    }
}

/// How many bytes of RAM are stored, if the runs are as [`write`] makes them.
fn stored(head: &Head) -> Option<u64> {
    let whole = [Run { at: 0, len: head.ram_size }];
    if head.runs.len() > RUNS_MAX || head.base.is_none() && head.runs != whole {
        return None;
    }
    let mut end = 0;
    for run in &head.runs {
        let fits = run.at >= end && run.len > 0 && run.at.is_multiple_of(PAGE) && run.len.is_multiple_of(PAGE);
        end = run.at.checked_add(run.len).filter(|end| fits && *end <= head.ram_size)?;
    }
    Some(head.runs.iter().map(|run| run.len).sum())
}

/// The file of a saved machine with this head and these states, whatever they are, so that a fuzzer's get past the checksums;
/// and how long the file must be for its RAM.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn sealed(head: &[u8], states: &[u8]) -> (Vec<u8>, u64) {
    let mut json: serde_json::Value = serde_json::from_slice(head).unwrap_or_default();
    let number = |json: &serde_json::Value, key: &str| json.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let runs = json.get("runs").and_then(serde_json::Value::as_array);
    let stored = runs.into_iter().flatten().fold(0u64, |sum, run| sum.saturating_add(number(run, "len")));
    let ram_end = number(&json, "ram_offset").saturating_add(stored);
    if let Some(digest) = json.get_mut("states_sha256") {
        *digest = hex(&Sha256::digest(states)).into();
    }
    let head = if json.is_object() { json.to_string().into_bytes() } else { head.to_vec() };
    let digest = Sha256::digest(&head);
    let file = [MAGIC, &VERSION.to_le_bytes()[..], &(head.len() as u32).to_le_bytes(), &digest, &head, states].concat();
    let length = file.len() as u64;
    // A length that no file can have is as good as any that is wrong.
    (file, ram_end.max(length).min(1 << 40))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
