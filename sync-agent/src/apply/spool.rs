//! Chunks of a command, kept on disk until the change they belong to is made.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sync_protocol::hash::Hash;

/// Bytes spooled for one command: the largest file, and some.
const SPOOL_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A nameless file of chunks, gone with its last handle.
pub(crate) struct Spool {
    file: File,
    length: u64,
    chunks: HashMap<Hash, (u64, usize)>,
}

impl Spool {
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(directory)?;
        Ok(Self {
            file,
            length: 0,
            chunks: HashMap::new(),
        })
    }

    pub(crate) fn put(&mut self, hash: Hash, bytes: &[u8]) -> io::Result<()> {
        if self.has(hash) {
            return Ok(());
        }
        if self.length + bytes.len() as u64 > SPOOL_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)?;
        self.chunks.insert(hash, (self.length, bytes.len()));
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn has(&self, hash: Hash) -> bool {
        self.chunks.contains_key(&hash)
    }

    pub(crate) fn get(&self, hash: Hash) -> io::Result<Vec<u8>> {
        let (offset, length) = *self.chunks.get(&hash).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}
