//! Saved machines: one file that holds CPU, devices and RAM.
//!
//! ```text
//! 0    magic, 8 bytes           8  version, u32      12  length of the head, u32 (all little-endian)
//! 16   SHA-256 of the head, 32 bytes
//! 48   head: JSON, in it the build that saved, lengths and a digest of what follows
//!      CPU state, then each device's state
//!      padding to RAM_ALIGN; RAM, sparse: pages of zeros are holes
//! ```
//! RAM is mapped copy-on-write from the file, so a restore costs milliseconds and machines restored from one file share
//! memory. Head and states are checked at each opening; RAM, which would have to be read for that, only by
//! [`Snapshot::verify_ram`]. A file appears under its name only when it is complete and on disk.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestAddress};

use crate::board::BoardState;
use crate::memory::{self, GuestRam, MemoryError};

const MAGIC: &[u8; 8] = b"PLXTWIN\0";
/// Raise it whenever the meaning of anything in the file changes.
const VERSION: u32 = 2;
const PREFIX_BYTES: usize = 48;
/// The head is a list of lengths and three small devices.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// CPU context, and a screen's pixels among the devices: a few MiB.
const STATE_BYTES_MAX: u64 = 256 << 20;
const RAM_ALIGN: u64 = 2 << 20;
const PAGE: usize = 4096;
/// How much RAM is looked at at once.
const CHUNK: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {operation} snapshot {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0} is not a saved machine")]
    Foreign(PathBuf),
    #[error("snapshot {path} is of format {found}; this build knows format {VERSION}: boot instead")]
    Version { path: PathBuf, found: u32 },
    #[error("snapshot {path} was saved by {found}; this is {ours}: boot instead")]
    OtherBuild { path: PathBuf, found: String, ours: String },
    #[error("snapshot {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
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
    ram_sha256: String,
}

/// Writes a saved machine to `path`, replacing what was there. `build` is who can restore it.
pub fn write(path: &Path, build: &str, state: &MachineState, ram: &GuestRam) -> Result<(), SnapshotError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let result = write_file(&partial, build, state, ram).and_then(|()| {
        std::fs::rename(&partial, path).map_err(|source| SnapshotError::Io { operation: "name", path: path.into(), source })
    });
    if result.is_err() {
        // What remains is of no use; that it cannot be removed changes nothing for the caller.
        let _ = std::fs::remove_file(&partial);
    }
    result
}

fn write_file(path: &Path, build: &str, state: &MachineState, ram: &GuestRam) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::Io { operation: "write", path: path.into(), source };
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    let (ram_base, ram_size) = memory::extent(ram);
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
    };
    file.set_len(head.ram_offset + ram_size).map_err(failed)?;
    head.ram_sha256 = write_ram(ram, |bytes, at| file.write_all_at(bytes, head.ram_offset + at).map_err(failed))?;

    let json = serde_json::to_vec(&head).expect("numbers and strings always serialise");
    assert!(PREFIX_BYTES + json.len() <= HEAD_BYTES_MAX, "a machine's head is small");
    let mut front = Vec::with_capacity(PREFIX_BYTES + json.len() + states.len());
    front.extend_from_slice(MAGIC);
    front.extend_from_slice(&VERSION.to_le_bytes());
    front.extend_from_slice(&(json.len() as u32).to_le_bytes());
    front.extend_from_slice(&Sha256::digest(&json));
    front.extend_from_slice(&json);
    front.extend_from_slice(&states);
    (&file).write_all(&front).and_then(|()| file.sync_all()).map_err(failed)
}

/// Hands every page that is not all zeros to `put`, in order, and returns the digest of these pages and their places.
fn write_ram(
    ram: &GuestRam,
    mut put: impl FnMut(&[u8], u64) -> Result<(), SnapshotError>,
) -> Result<String, SnapshotError> {
    let mut digest = RamDigest::default();
    let mut chunk = vec![0; CHUNK];
    let (base, size) = memory::extent(ram);
    for at in (0..size).step_by(CHUNK) {
        ram.read_slice(&mut chunk, GuestAddress(base + at))?;
        for (start, pages) in used_runs(&chunk) {
            digest.add(at + start, pages);
            put(pages, at + start)?;
        }
    }
    Ok(digest.finish())
}

/// The runs of pages in a chunk that are not all zeros, each with its place in the chunk.
fn used_runs(chunk: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let is_used = |page: &[u8]| page.iter().any(|b| *b != 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = chunk[at..].chunks(PAGE);
        let start = at + rest.take_while(|p| !is_used(p)).map(<[u8]>::len).sum::<usize>();
        at = start + chunk[start..].chunks(PAGE).take_while(|p| is_used(p)).map(<[u8]>::len).sum::<usize>();
        (at > start).then(|| (start as u64, &chunk[start..at]))
    })
}

/// Digest over the used pages, each with its place, so that it does not depend on how they were grouped.
#[derive(Default)]
struct RamDigest(Sha256);

impl RamDigest {
    fn add(&mut self, at: u64, pages: &[u8]) {
        for (i, page) in pages.chunks(PAGE).enumerate() {
            self.0.update((at + (i * PAGE) as u64).to_le_bytes());
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
    states: Vec<u8>,
}

impl Snapshot {
    /// Opens `path`; `build` must be what [`write`] was given.
    pub fn open(path: &Path, build: &str) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Io { operation: "read", path: path.into(), source };
        let damaged = |reason: &str| SnapshotError::Damaged { path: path.into(), reason: reason.into() };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut prefix = [0; PREFIX_BYTES];
        if length < PREFIX_BYTES as u64 {
            return Err(SnapshotError::Foreign(path.into()));
        }
        (&file).read_exact(&mut prefix).map_err(failed)?;
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
        (&file).read_exact(&mut json).map_err(failed)?;
        if Sha256::digest(&json)[..] != prefix[16..] {
            return Err(damaged("the checksum of its head is wrong"));
        }
        let head: Head = serde_json::from_slice(&json).map_err(|e| damaged(&e.to_string()))?;
        if head.build != build {
            return Err(SnapshotError::OtherBuild { path: path.into(), found: head.build, ours: build.into() });
        }
        if head.ram_offset.checked_add(head.ram_size) != Some(length) {
            return Err(damaged("it is cut short"));
        }
        memory::check_size(head.ram_size)?;
        let sizes = head.devices.iter().map(|(_, len)| *len);
        let states_len = sizes.fold(head.cpu_len, u64::saturating_add);
        if states_len > STATE_BYTES_MAX || (PREFIX_BYTES + json_len) as u64 + states_len > head.ram_offset {
            return Err(damaged("its parts overlap"));
        }
        let mut states = vec![0; states_len as usize];
        (&file).read_exact(&mut states).map_err(failed)?;
        if hex(&Sha256::digest(&states)) != head.states_sha256 {
            return Err(damaged("the checksum of CPU and devices is wrong"));
        }
        Ok(Self { path: path.into(), file, head, states })
    }

    /// Maps the saved RAM copy-on-write.
    pub fn ram(&self) -> Result<GuestRam, SnapshotError> {
        let file = self.file.try_clone();
        let file = file.map_err(|source| SnapshotError::Io { operation: "map", path: self.path.clone(), source })?;
        Ok(memory::from_snapshot(file, self.head.ram_offset, self.head.ram_base, self.head.ram_size)?)
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

    /// Reads all of the saved RAM and compares its digest.
    pub fn verify_ram(&self) -> Result<(), SnapshotError> {
        let mut digest = RamDigest::default();
        let mut chunk = vec![0; CHUNK];
        for at in (0..self.head.ram_size).step_by(CHUNK) {
            self.file
                .read_exact_at(&mut chunk, self.head.ram_offset + at)
                .map_err(|source| SnapshotError::Io { operation: "read", path: self.path.clone(), source })?;
            used_runs(&chunk).for_each(|(start, pages)| digest.add(at + start, pages));
        }
        if digest.finish() != self.head.ram_sha256 {
            let reason = "the checksum of RAM is wrong".into();
            return Err(SnapshotError::Damaged { path: self.path.clone(), reason });
        }
        Ok(())
    }
}

/// The file of a saved machine with this head and these states, whatever they are, so that a fuzzer's get past the checksums;
/// and how long the file must be for its RAM.
#[cfg(any(test, feature = "fake-driver"))]
pub(crate) fn sealed(head: &[u8], states: &[u8]) -> (Vec<u8>, u64) {
    let mut json: serde_json::Value = serde_json::from_slice(head).unwrap_or_default();
    let number = |json: &serde_json::Value, key: &str| json.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let ram_end = number(&json, "ram_offset").saturating_add(number(&json, "ram_size"));
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
