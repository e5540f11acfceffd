//! The contents of a file that the guest writes: pages over what the file was.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use store::StoreError;

use crate::chunks::Chunks;
use crate::inode::Contents;

/// Unit of what is kept of a guest's writes: databases write such pages.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// Chunks, and pages that lie over them.
#[derive(Debug, Clone)]
pub(crate) struct PagedFile {
    base: Arc<Contents>,
    /// The base counts up to here: what a truncation cut off does not come back.
    base_end: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
    size: u64,
}

impl PagedFile {
    pub(crate) fn new(base: Arc<Contents>) -> Self {
        let size = base.size();
        PagedFile {
            base,
            base_end: size,
            pages: BTreeMap::new(),
            size,
        }
    }

    pub(crate) fn empty() -> Self {
        PagedFile::new(Arc::new(Contents::new(Vec::new())))
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// The contents as chunks, if nothing lies over them.
    pub(crate) fn contents(&self) -> Option<&Arc<Contents>> {
        let is_base =
            self.pages.is_empty() && self.size == self.base.size() && self.base_end == self.size;
        is_base.then_some(&self.base)
    }

    /// Bytes `offset..offset + length`, less where the file ends before.
    pub(crate) fn read(
        &self,
        chunks: &Chunks,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, StoreError> {
        let end = offset.saturating_add(length as u64).min(self.size);
        let mut out = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let (index, within) = (at / PAGE, (at % PAGE) as usize);
            if let Some(page) = self.pages.get(&index) {
                let length = (PAGE_BYTES - within).min((end - at) as usize);
                out.extend_from_slice(&page[within..within + length]);
            } else {
                let next_page = self
                    .pages
                    .range(index..)
                    .next()
                    .map_or(end, |(next, _)| next * PAGE);
                let length = (next_page.min(end) - at) as usize;
                let from_base = self.base_end.saturating_sub(at).min(length as u64) as usize;
                let begun = out.len();
                chunks.read(&self.base, at, from_base, &mut out)?;
                out.resize(begun + length, 0);
            }
            at = offset + out.len() as u64;
        }
        Ok(out)
    }

    /// Writes `data` at `offset`, which together stay within the caller's limit of a file's size.
    pub(crate) fn write(
        &mut self,
        chunks: &Chunks,
        offset: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, within) = (at / PAGE, (at % PAGE) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - within));
            if now.len() == PAGE_BYTES {
                self.pages.insert(index, now.into());
            } else {
                self.page_mut(chunks, index)?[within..within + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
        self.size = self.size.max(at);
        Ok(())
    }

    fn page_mut(&mut self, chunks: &Chunks, index: u64) -> Result<&mut [u8], StoreError> {
        if !self.pages.contains_key(&index) {
            let mut page = self.read(chunks, index * PAGE, PAGE_BYTES)?;
            page.resize(PAGE_BYTES, 0);
            self.pages.insert(index, page.into());
        }
        Ok(self
            .pages
            .get_mut(&index)
            .expect("it has just been inserted"))
    }

    /// Cuts the file off, or extends it with zeros.
    pub(crate) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.pages.split_off(&size.div_ceil(PAGE));
            if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
                page[(size % PAGE) as usize..].fill(0);
            }
            self.base_end = self.base_end.min(size);
        }
        self.size = size;
    }

    /// Makes zeros of a range, without changing the size.
    pub(crate) fn zero(
        &mut self,
        chunks: &Chunks,
        offset: u64,
        length: u64,
    ) -> Result<(), StoreError> {
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        while at < end {
            let length = (PAGE - at % PAGE).min(end - at);
            self.write(chunks, at, &[0; PAGE_BYTES][..length as usize])?;
            at += length;
        }
        Ok(())
    }

    /// Reads the file from its start.
    pub(crate) fn reader<'a>(&'a self, chunks: &'a Chunks) -> impl Read + 'a {
        FileReader {
            file: self,
            chunks,
            at: 0,
        }
    }
}

struct FileReader<'a> {
    file: &'a PagedFile,
    chunks: &'a Chunks,
    at: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self
            .file
            .read(self.chunks, self.at, buffer.len())
            .map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use store::Store;
    use sync_protocol::chunking::cut;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, usize),
        Truncate(u64),
        Zero(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..60_000, 1usize..20_000).prop_map(|(offset, length)| Op::Write(offset, length)),
            (0u64..60_000).prop_map(Op::Truncate),
            (0u64..60_000, 0u64..20_000).prop_map(|(offset, length)| Op::Zero(offset, length)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn like_a_vector_of_bytes(base in 0usize..50_000, ops in prop::collection::vec(op(), 0..12)) {
            let store = Store::memory();
            let mut model: Vec<u8> = (0..base).map(|at| (at * 31 % 251) as u8).collect();
            let (list, blobs): (Vec<_>, Vec<_>) =
                cut(&model).map(|(chunk, bytes)| (chunk, bytes::Bytes::copy_from_slice(bytes))).unzip();
            store.blobs.put_many(&blobs).unwrap();
            let chunks = Chunks::new(store.blobs, 100_000);
            let mut file = PagedFile::new(Arc::new(Contents::new(list)));
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Write(offset, length) => {
                        let data = vec![number as u8 + 1; length];
                        file.write(&chunks, offset, &data).unwrap();
                        let end = offset as usize + length;
                        model.resize(model.len().max(end), 0);
                        model[offset as usize..end].copy_from_slice(&data);
                    }
                    Op::Truncate(size) => {
                        file.truncate(size);
                        model.resize(size as usize, 0);
                    }
                    Op::Zero(offset, length) => {
                        file.zero(&chunks, offset, length).unwrap();
                        let end = ((offset + length) as usize).min(model.len());
                        if let Some(range) = model.get_mut(offset as usize..end) { range.fill(0); }
                    }
                }
                prop_assert_eq!(file.size(), model.len() as u64);
            }
            let mut whole = Vec::new();
            file.reader(&chunks).read_to_end(&mut whole).unwrap();
            prop_assert_eq!(&whole, &model);
            for (offset, length) in [(0, 1), (4095, 2), (4096, 4096), (10_000, 100_000), (70_000, 10)] {
                let expected: Vec<u8> = model.iter().skip(offset).take(length).copied().collect();
                prop_assert_eq!(file.read(&chunks, offset as u64, length).unwrap(), expected);
            }
        }
    }
}
