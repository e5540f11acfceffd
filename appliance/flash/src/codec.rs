//! Bytes of stored nodes and saved layers: little endian, lengths before what they count.

use bytes::{BufMut, Bytes};

use sync_protocol::Hash;
use sync_protocol::chunking::Chunk;

use crate::inode::Attributes;

/// The bytes are not what this version wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes of {0} are damaged")]
pub struct Damaged(pub &'static str);

/// Reads what the `put_*` functions wrote.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Reader { rest: bytes, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn damaged(&self) -> Damaged {
        Damaged(self.what)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Damaged(self.what))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let what = self.what;
        self.bytes(N)?.try_into().map_err(|_| Damaged(what))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Damaged> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Damaged> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Damaged> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Damaged> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    pub(crate) fn hash(&mut self) -> Result<Hash, Damaged> {
        Ok(Hash(self.array()?))
    }

    /// A name or link target.
    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let length = self.u16()?;
        self.bytes(length.into())
    }

    pub(crate) fn attributes(&mut self) -> Result<Attributes, Damaged> {
        Ok(Attributes {
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            mtime_ns: self.i64()?,
        })
    }

    pub(crate) fn chunks(&mut self, count: u32) -> Result<Vec<Chunk>, Damaged> {
        (0..count)
            .map(|_| {
                Ok(Chunk {
                    size: self.u32()?,
                    hash: self.hash()?,
                })
            })
            .collect()
    }
}

/// Writes a name or link target.
pub(crate) fn put_short_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16_le(
        u16::try_from(bytes.len()).expect("names and targets are shorter than 4096 bytes"),
    );
    out.put_slice(bytes);
}

pub(crate) fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    out.put_u32_le(attributes.mode);
    out.put_u32_le(attributes.uid);
    out.put_u32_le(attributes.gid);
    out.put_i64_le(attributes.mtime_ns);
}

pub(crate) fn put_chunks(out: &mut Vec<u8>, chunks: &[Chunk]) {
    for chunk in chunks {
        out.put_u32_le(chunk.size);
        out.put_slice(chunk.hash.as_bytes());
    }
}

/// A finished list of chunks as a blob of its own.
pub(crate) fn chunk_list(chunks: &[Chunk]) -> Bytes {
    let mut out = Vec::with_capacity(chunks.len() * 36);
    put_chunks(&mut out, chunks);
    out.into()
}
