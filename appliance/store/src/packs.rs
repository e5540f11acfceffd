//! Blobs in pack files: appended one after the other, made durable together.
//!
//!     DIR/pack-000001         record...      the first pack; the last one is written to
//!     DIR/pack-000001.index   of a full pack: where its records are, so that opening need not read it
//!
//!     record = "PLXB", u32 length (little endian), hash (32), the blob
//!
//! One `fdatasync` settles what all writers have appended. (A file for each blob was tried: it needs two
//! syncs of the whole file system for a batch, which on a busy disk wait for everybody else's data.)
//!
//! What was not synced before a crash may be cut short or torn. Opening reads the last pack, keeps every
//! record whose hash is right, and cuts off the end behind the last of them. A record damaged before that
//! is skipped; its blob counts as missing until it is put again.

mod check;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::{BufMut, Bytes};

use crate::commit::GroupCommit;
use crate::embedded::{Space, create_dir};
use crate::limits::check_blob;
use crate::{BLOB_BYTES_MAX, BlobHash, Blobs, CheckMark, Checked, Result, StoreError};

const MAGIC: &[u8; 4] = b"PLXB";
const HEADER_BYTES: usize = 40;
/// A pack that has reached this is full. Each is held open: 256 GiB of blobs take 1024 descriptors.
pub(crate) const PACK_BYTES: u64 = 256 << 20;
/// Records are gathered to writes of about this size.
const WRITE_BYTES: usize = 1 << 20;
/// One entry of an index: hash, offset, length.
const INDEX_ENTRY_BYTES: usize = 32 + 8 + 4;

/// Where a blob is: the bytes behind its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Location {
    pack: u32,
    offset: u64,
    length: u32,
}

/// A place in the sequence of all packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    pack: u32,
    end: u64,
}

impl Location {
    fn end(&self) -> Mark {
        Mark {
            pack: self.pack,
            end: self.offset + u64::from(self.length),
        }
    }
}

/// What is written to.
struct Tail {
    mark: Mark,
    file: Arc<File>,
    /// What the pack holds, for its index.
    entries: Vec<(BlobHash, Location)>,
}

struct Shared {
    dir: PathBuf,
    tail: Mutex<Tail>,
    /// Everything up to here is durable.
    synced: Mutex<Mark>,
}

impl Shared {
    fn lock_tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self) -> Mark {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_synced(&self, mark: Mark) {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        *synced = mark.max(*synced);
    }

    /// Makes everything appended so far durable.
    fn sync(&self) -> std::io::Result<()> {
        let (mark, file) = {
            let tail = self.lock_tail();
            (tail.mark, tail.file.clone())
        };
        file.sync_data()?;
        self.has_synced(mark);
        Ok(())
    }
}

pub(crate) struct PackBlobs {
    shared: Arc<Shared>,
    index: RwLock<HashMap<BlobHash, Location>>,
    files: RwLock<HashMap<u32, Arc<File>>>,
    /// Found damaged: denied by `has_many`, and written anew when put again.
    damaged: Mutex<HashSet<BlobHash>>,
    commit: GroupCommit,
    space: Space,
    pack_bytes: u64,
    _lock: Arc<File>,
}

fn pack_path(dir: &Path, pack: u32) -> PathBuf {
    dir.join(format!("pack-{pack:06}"))
}

fn failed(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let action = format!("{action} {}", path.display());
    move |source| StoreError::io(action, source)
}

fn open_pack(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    file.map_err(failed("opening", path))
}

impl PackBlobs {
    pub(crate) fn open(dir: &Path, space: Space, lock: Arc<File>, pack_bytes: u64) -> Result<Self> {
        create_dir(dir)?;
        let mut packs = pack_numbers(dir)?;
        let last = packs.pop().unwrap_or(1);
        let (mut index, mut files) = (HashMap::new(), HashMap::new());
        for pack in packs {
            let path = pack_path(dir, pack);
            let file = open_pack(&path)?;
            let entries = match read_index(&path, pack) {
                Some(entries) => entries,
                None => scan(&file, &path, pack)?.0,
            };
            index.extend(entries);
            files.insert(pack, Arc::new(file));
        }
        let path = pack_path(dir, last);
        let file = Arc::new(open_pack(&path)?);
        let (entries, end) = scan(&file, &path, last)?;
        file.set_len(end).map_err(failed("cutting off", &path))?;
        index.extend(entries.iter().copied());
        files.insert(last, file.clone());
        let mark = Mark { pack: last, end };
        let tail = Tail {
            mark,
            file,
            entries,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            tail: Mutex::new(tail),
            synced: Mutex::new(Mark { pack: last, end: 0 }),
        });
        // What a killed process had appended counts as settled from here on.
        shared.sync().map_err(failed("syncing", &path))?;
        sync_dir(dir)?;
        let commit = GroupCommit::start("blob-flusher", {
            let shared = shared.clone();
            move || {
                shared
                    .sync()
                    .map_err(|error| format!("syncing a pack: {error}"))
            }
        })?;
        let (index, files) = (RwLock::new(index), RwLock::new(files));
        Ok(PackBlobs {
            shared,
            index,
            files,
            damaged: Mutex::default(),
            commit,
            space,
            pack_bytes,
            _lock: lock,
        })
    }

    /// Fails when nothing more can be written, or not `bytes` more.
    pub(crate) fn check_writable(&self, bytes: usize) -> Result<()> {
        self.commit.check()?;
        self.space.check(bytes)
    }

    fn location(&self, hash: &BlobHash) -> Option<Location> {
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .copied()
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<BlobHash>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends those of `blobs` that are not here.
    fn append(&self, blobs: &[(BlobHash, &Bytes)]) -> Result<()> {
        let mut tail = self.shared.lock_tail();
        let mut written = Vec::new();
        let (mut buffer, mut buffer_at) = (Vec::new(), tail.mark.end);
        let write = |buffer: &[u8], at: u64, file: &File| {
            file.write_all_at(buffer, at)
                .map_err(|source| match source.kind() {
                    std::io::ErrorKind::StorageFull => self.space.full(buffer.len()),
                    _ => StoreError::io("appending blobs", source),
                })
        };
        let is_damaged = |hash: &BlobHash| self.damaged().contains(hash);
        for (hash, blob) in blobs {
            // Looked up again: another writer may have had the same blob.
            if self.location(hash).is_some() && !is_damaged(hash) {
                continue;
            }
            put_header(&mut buffer, hash, blob.len());
            let offset = buffer_at + buffer.len() as u64;
            written.push((
                *hash,
                Location {
                    pack: tail.mark.pack,
                    offset,
                    length: blob.len() as u32,
                },
            ));
            buffer.extend_from_slice(blob);
            if buffer.len() >= WRITE_BYTES {
                write(&buffer, buffer_at, &tail.file)?;
                buffer_at += buffer.len() as u64;
                buffer.clear();
            }
        }
        // Until the end of the tail is moved, what was written does not count and is written over.
        write(&buffer, buffer_at, &tail.file)?;
        tail.mark.end = buffer_at + buffer.len() as u64;
        tail.entries.extend(written.iter().copied());
        {
            let mut damaged = self.damaged();
            for (hash, _) in &written {
                damaged.remove(hash);
            }
        }
        self.index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(written);
        if tail.mark.end >= self.pack_bytes {
            self.begin_pack(&mut tail)?;
        }
        Ok(())
    }

    /// Closes the full pack and begins the next.
    fn begin_pack(&self, tail: &mut Tail) -> Result<()> {
        let path = pack_path(&self.shared.dir, tail.mark.pack);
        tail.file.sync_data().map_err(failed("syncing", &path))?;
        self.shared.has_synced(tail.mark);
        write_index(&path, &tail.entries)?;
        let pack = tail.mark.pack + 1;
        let path = pack_path(&self.shared.dir, pack);
        let file = Arc::new(open_pack(&path)?);
        sync_dir(&self.shared.dir)?;
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pack, file.clone());
        *tail = Tail {
            mark: Mark { pack, end: 0 },
            file,
            entries: Vec::new(),
        };
        Ok(())
    }
}

fn put_header(out: &mut Vec<u8>, hash: &BlobHash, length: usize) {
    out.put_slice(MAGIC);
    out.put_u32_le(u32::try_from(length).expect("blobs are at most BLOB_BYTES_MAX"));
    out.put_slice(hash.as_bytes());
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("syncing", dir))
}

/// Numbers of the packs in `dir`, sorted.
fn pack_numbers(dir: &Path) -> Result<Vec<u32>> {
    let mut packs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed("listing", dir))? {
        let name = entry.map_err(failed("listing", dir))?.file_name();
        packs.extend(
            name.to_str()
                .and_then(|name| name.strip_prefix("pack-")?.parse::<u32>().ok()),
        );
    }
    packs.sort_unstable();
    Ok(packs)
}

/// The records of a pack, and where the last whole one ends.
fn scan(file: &File, path: &Path, pack: u32) -> Result<(Vec<(BlobHash, Location)>, u64)> {
    let mut bytes = Vec::new();
    let mut reader = file;
    std::io::Read::read_to_end(&mut reader, &mut bytes).map_err(failed("reading", path))?;
    let (mut entries, mut end, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = find(&bytes[at..], MAGIC) {
        let offset = at + found + HEADER_BYTES;
        match whole_record(&bytes[at + found..]) {
            Some((hash, length)) => {
                let location = Location {
                    pack,
                    offset: offset as u64,
                    length: length as u32,
                };
                entries.push((hash, location));
                at = offset + length;
                end = at;
            }
            None => at += found + 1,
        }
    }
    if end < bytes.len() {
        tracing::warn!(path = %path.display(), bytes = bytes.len() - end, "cut off after the last whole blob");
    }
    Ok((entries, end as u64))
}

fn find(bytes: &[u8], what: &[u8; 4]) -> Option<usize> {
    // Nearly always at once: records follow each other.
    bytes.windows(what.len()).position(|window| window == what)
}

/// Hash and length of the record at the start of `bytes`, if it is whole.
fn whole_record(bytes: &[u8]) -> Option<(BlobHash, usize)> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let hash = BlobHash::try_from(&header[8..]).ok()?;
    (length <= BLOB_BYTES_MAX && BlobHash::of(rest.get(..length)?) == hash)
        .then_some((hash, length))
}

fn index_path(pack: &Path) -> PathBuf {
    pack.with_extension("index")
}

fn write_index(pack: &Path, entries: &[(BlobHash, Location)]) -> Result<()> {
    let mut bytes = Vec::with_capacity(entries.len() * INDEX_ENTRY_BYTES + 32);
    for (hash, location) in entries {
        bytes.put_slice(hash.as_bytes());
        bytes.put_u64_le(location.offset);
        bytes.put_u32_le(location.length);
    }
    let checksum = BlobHash::of(&bytes);
    bytes.put_slice(checksum.as_bytes());
    // Not synced: one that is cut short is noticed, and the pack is read instead.
    std::fs::write(index_path(pack), bytes).map_err(failed("writing the index of", pack))
}

/// The index of a full pack, if it is there and whole.
fn read_index(path: &Path, pack: u32) -> Option<Vec<(BlobHash, Location)>> {
    let bytes = std::fs::read(index_path(path)).ok()?;
    let (entries, checksum) = bytes.split_last_chunk::<32>()?;
    if BlobHash::of(entries).as_bytes() != checksum || entries.len() % INDEX_ENTRY_BYTES != 0 {
        tracing::warn!(path = %path.display(), "index damaged: reading the pack");
        return None;
    }
    let entries = entries.chunks_exact(INDEX_ENTRY_BYTES).map(|entry| {
        let offset = u64::from_le_bytes(entry[32..40].try_into().ok()?);
        let length = u32::from_le_bytes(entry[40..].try_into().ok()?);
        Some((
            BlobHash::try_from(&entry[..32]).ok()?,
            Location {
                pack,
                offset,
                length,
            },
        ))
    });
    entries.collect()
}

impl Blobs for PackBlobs {
    fn put_many(&self, blobs: &[Bytes]) -> Result<Vec<BlobHash>> {
        blobs.iter().try_for_each(check_blob)?;
        let hashes: Vec<BlobHash> = blobs.iter().map(|blob| BlobHash::of(blob)).collect();
        let present = self.has_many(&hashes)?;
        let mut seen = HashSet::new();
        let numbered = hashes.iter().copied().zip(blobs).zip(present);
        let missing = numbered.filter(|((hash, _), present)| !present && seen.insert(*hash));
        let missing: Vec<(BlobHash, &Bytes)> = missing.map(|(blob, _)| blob).collect();
        if !missing.is_empty() {
            self.check_writable(
                missing
                    .iter()
                    .map(|(_, blob)| blob.len() + HEADER_BYTES)
                    .sum(),
            )?;
            self.append(&missing)?;
            self.commit.wait()?;
        }
        Ok(hashes)
    }

    fn get(&self, hash: &BlobHash) -> Result<Bytes> {
        let location = self.location(hash).ok_or(StoreError::BlobMissing(*hash))?;
        let file = self
            .files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&location.pack)
            .cloned();
        let file = file.ok_or(StoreError::BlobMissing(*hash))?;
        let mut blob = vec![0; location.length as usize];
        let read = file.read_exact_at(&mut blob, location.offset);
        let cut_short = read
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof);
        if cut_short || (read.is_ok() && BlobHash::of(&blob) != *hash) {
            self.damaged().insert(*hash);
            return Err(StoreError::BlobDamaged(*hash));
        }
        read.map_err(|source| StoreError::io(format!("reading blob {hash}"), source))?;
        Ok(blob.into())
    }

    fn has_many(&self, hashes: &[BlobHash]) -> Result<Vec<bool>> {
        let synced = self.shared.synced();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let damaged = self.damaged();
        // Whoever is told "yes" may acknowledge an event that refers to the blob, so what is appended
        // but not synced does not count.
        let durable = |location: &Location| location.end() <= synced;
        Ok(hashes
            .iter()
            .map(|hash| index.get(hash).is_some_and(durable) && !damaged.contains(hash))
            .collect())
    }

    fn check(&self, from: CheckMark, bytes_max: u64) -> Result<Checked> {
        self.check_packs(from, bytes_max)
    }

    fn stored_bytes(&self) -> Result<u64> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let lengths = files.values().map(|file| Ok(file.metadata()?.len()));
        lengths
            .sum::<std::io::Result<u64>>()
            .map_err(|source| StoreError::io("looking at the packs", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> PackBlobs {
        let lock = Arc::new(File::create(dir.join("LOCK")).unwrap());
        let space = Space::new(dir, 0);
        PackBlobs::open(&dir.join("blobs"), space, lock, 10_000).unwrap()
    }

    fn blobs(numbers: std::ops::Range<u32>) -> Vec<Bytes> {
        // Some hold what looks like the start of a record.
        numbers
            .map(|number| Bytes::from(format!("PLXB{number}").repeat(1 + number as usize % 90)))
            .collect()
    }

    fn check(store: &PackBlobs, blobs: &[Bytes]) {
        let hashes: Vec<_> = blobs.iter().map(|blob| BlobHash::of(blob)).collect();
        assert!(store.has_many(&hashes).unwrap().into_iter().all(|has| has));
        hashes
            .iter()
            .zip(blobs)
            .for_each(|(hash, blob)| assert_eq!(store.get(hash).unwrap(), blob));
    }

    #[test]
    fn many_packs_with_and_without_their_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let all = blobs(0..400);
        let store = open(dir.path());
        all.chunks(7)
            .for_each(|some| drop(store.put_many(some).unwrap()));
        check(&store, &all);
        drop(store);
        let packs = pack_numbers(&dir.path().join("blobs")).unwrap();
        assert!(packs.len() > 5);
        check(&open(dir.path()), &all);
        std::fs::remove_file(index_path(&pack_path(&dir.path().join("blobs"), 2))).unwrap();
        std::fs::write(
            index_path(&pack_path(&dir.path().join("blobs"), 3)),
            b"torn",
        )
        .unwrap();
        check(&open(dir.path()), &all);
    }

    #[test]
    fn a_torn_end_is_cut_off_and_a_damaged_middle_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let all = blobs(0..20);
        let store = open(dir.path());
        store.put_many(&all).unwrap();
        drop(store);
        let path = pack_path(&dir.path().join("blobs"), 1);
        let whole = std::fs::read(&path).unwrap();
        for torn in [1, 39, 40, 41, 200] {
            std::fs::write(&path, [&whole, &whole[..torn]].concat()).unwrap();
            check(&open(dir.path()), &all);
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let store = open(dir.path());
        check(&store, &all[..19]);
        assert!(matches!(
            store.get(&BlobHash::of(&all[19])),
            Err(StoreError::BlobMissing(_))
        ));
        drop(store);
        let mut rotten = whole.clone();
        rotten[HEADER_BYTES + 1] ^= 1;
        std::fs::write(&path, &rotten).unwrap();
        let store = open(dir.path());
        check(&store, &all[1..]);
        store.put_many(&all).unwrap();
        check(&store, &all);
        drop(store);
        check(&open(dir.path()), &all);
    }

    /// Checks everything in steps of `bytes`; gives how many blobs were checked, and those found damaged.
    fn check_all(store: &PackBlobs, bytes: u64) -> (u64, Vec<BlobHash>) {
        let (mut blobs, mut damaged, mut from) = (0, Vec::new(), Some(CheckMark::default()));
        while let Some(mark) = from {
            let checked = store.check(mark, bytes).unwrap();
            assert!(checked.next.is_none_or(|next| next > mark));
            blobs += checked.blobs;
            damaged.extend(checked.damaged);
            from = checked.next;
        }
        (blobs, damaged)
    }

    #[test]
    fn decay_is_found_wherever_it_is_and_mended_by_putting_again() {
        let dir = tempfile::tempdir().unwrap();
        let all = blobs(0..400);
        let store = open(dir.path());
        store.put_many(&all).unwrap();
        store.put_many(&blobs(400..401)).unwrap();
        for bytes in [1, 5_000, u64::MAX] {
            assert_eq!(check_all(&store, bytes), (401, Vec::new()));
        }
        let location = |number: usize| store.location(&BlobHash::of(&all[number])).unwrap();
        let flip = |location: Location, at: u64| {
            let file = open_pack(&pack_path(&dir.path().join("blobs"), location.pack)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        };
        // In blobs, in a header's length and mark, and in the hash of one, none of which lose their blobs.
        for number in [3, 250] {
            flip(location(number), location(number).offset + 1);
        }
        for (number, before) in [(40, 36), (41, 40), (90, 5)] {
            flip(location(number), location(number).offset - before);
        }
        let (checked, mut damaged) = check_all(&store, 5_000);
        damaged.sort();
        let mut expected = [3, 250].map(|number| BlobHash::of(&all[number]));
        expected.sort();
        assert_eq!((checked, damaged), (401, expected.to_vec()));
        assert!(!store.has(&expected[0]).unwrap());
        store.put_many(&all).unwrap();
        assert_eq!(check_all(&store, 5_000), (401, Vec::new()));
        check(&store, &all);
    }
}
