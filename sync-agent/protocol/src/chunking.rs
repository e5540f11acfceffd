//! Cutting files into chunks by their contents, so that a small change to a large file costs a few chunks, and packing
//! chunks for the wire.
//!
//! FastCDC of 2020 over the whole file from its start: equal files have equal chunks wherever they were cut, which
//! tree hashes rely on. Never cut only the changed part of a file.

use std::io::{self, Read};

use crate::hash::Hash;
use crate::limits::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use crate::wire;

/// A piece of a file: its bytes are wherever chunks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub hash: Hash,
    /// 1 to [`CHUNK_BYTES_MAX`].
    pub size: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk {hash} does not decompress")]
    Compression { hash: Hash, source: io::Error },
    #[error("chunk {0} is empty or larger than {CHUNK_BYTES_MAX} bytes")]
    Size(Hash),
    #[error("chunk {0} holds something else")]
    Contents(Hash),
    #[error("a chunk has no hash")]
    Hash(#[from] crate::hash::NotAHash),
}

/// Cuts `data`; the pieces come with their bytes.
pub fn cut(data: &[u8]) -> impl Iterator<Item = (Chunk, &[u8])> {
    fastcdc::v2020::FastCDC::new(data, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX).map(
        move |piece| {
            let bytes = &data[piece.offset..piece.offset + piece.length];
            (describe(bytes), bytes)
        },
    )
}

/// Cuts what `source` yields, holding only one chunk at a time. Ends after the first error.
pub fn cut_stream<R: Read>(source: R) -> impl Iterator<Item = io::Result<(Chunk, Vec<u8>)>> {
    let pieces = fastcdc::v2020::StreamCDC::new(
        source,
        CHUNK_BYTES_MIN,
        CHUNK_BYTES_AVERAGE,
        CHUNK_BYTES_MAX,
    );
    pieces.map(|piece| match piece {
        Ok(piece) => Ok((describe(&piece.data), piece.data)),
        Err(error) => Err(error.into()),
    })
}

fn describe(bytes: &[u8]) -> Chunk {
    Chunk {
        hash: Hash::of(bytes),
        size: u32::try_from(bytes.len()).expect("a chunk is at most CHUNK_BYTES_MAX"),
    }
}

/// Compresses one chunk for the wire.
pub fn pack(hash: Hash, bytes: &[u8]) -> wire::ChunkData {
    let zstd = zstd::bulk::compress(bytes, ZSTD_LEVEL)
        .expect("compressing memory to memory does not fail");
    wire::ChunkData {
        hash: hash.to_vec(),
        zstd,
    }
}

/// Decompresses one chunk from the wire, within bounds, and verifies its hash.
pub fn unpack(data: &wire::ChunkData) -> Result<(Hash, Vec<u8>), ChunkError> {
    let hash = Hash::try_from(data.hash.as_slice())?;
    let bytes = zstd::bulk::decompress(&data.zstd, CHUNK_BYTES_MAX as usize)
        .map_err(|source| ChunkError::Compression { hash, source })?;
    if bytes.is_empty() {
        return Err(ChunkError::Size(hash));
    }
    if Hash::of(&bytes) != hash {
        return Err(ChunkError::Contents(hash));
    }
    Ok((hash, bytes))
}

/// Fast enough for a phone; higher levels gain little on pieces of 16 KiB.
pub(crate) const ZSTD_LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random but are the same everywhere.
    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new()
            .update(b"noise")
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    #[test]
    fn memory_and_stream_are_cut_alike_and_nothing_is_lost() {
        for length in [0, 1, 4096, 100_000, 1 << 20] {
            let data = noise(length);
            let whole: Vec<Chunk> = cut(&data).map(|(chunk, _)| chunk).collect();
            let mut joined = Vec::new();
            let mut streamed = Vec::new();
            for piece in cut_stream(data.as_slice()) {
                let (chunk, bytes) = piece.unwrap();
                joined.extend(bytes);
                streamed.push(chunk);
            }
            assert_eq!(whole, streamed);
            assert_eq!(joined, data);
        }
    }

    /// The contract: a new version of the chunking crate must not move the cuts.
    #[test]
    fn cuts_are_where_they_always_were() {
        let sizes: Vec<u32> = cut(&noise(200_000)).map(|(chunk, _)| chunk.size).collect();
        let always = [
            10930, 4527, 18623, 6065, 9589, 24342, 12035, 4699, 12277, 19227, 9052, 24050, 19333,
            20211, 5040,
        ];
        assert_eq!(sizes, always);
    }

    #[test]
    fn an_insertion_moves_few_chunks() {
        let data = noise(1 << 20);
        let mut changed = data.clone();
        changed.insert(500_000, 7);
        let before: std::collections::HashSet<Hash> =
            cut(&data).map(|(chunk, _)| chunk.hash).collect();
        let new = cut(&changed)
            .filter(|(chunk, _)| !before.contains(&chunk.hash))
            .count();
        assert!((1..=4).contains(&new), "{new} new chunks");
    }

    #[test]
    fn packed_chunks_are_verified() {
        let data = noise(5000);
        let packed = pack(Hash::of(&data), &data);
        assert_eq!(unpack(&packed).unwrap(), (Hash::of(&data), data.clone()));
        let mut truncated = packed.clone();
        truncated.zstd.pop();
        assert!(matches!(
            unpack(&truncated),
            Err(ChunkError::Compression { .. })
        ));
        let other = wire::ChunkData {
            hash: Hash::of(b"x").to_vec(),
            ..packed
        };
        assert!(matches!(unpack(&other), Err(ChunkError::Contents(_))));
        let bomb = pack(Hash::of(b"bomb"), &vec![0; 1 << 24]);
        assert!(matches!(unpack(&bomb), Err(ChunkError::Compression { .. })));
        assert!(unpack(&pack(Hash::of(b""), b"")).is_err());
    }
}
