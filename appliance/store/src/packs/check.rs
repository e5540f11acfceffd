//! Reading all packs from end to end, to find blobs that decayed before anybody wants them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use super::{HEADER_BYTES, Location, MAGIC, PackBlobs, failed, find, pack_path};
use crate::{BLOB_BYTES_MAX, BlobHash, Blobs, CheckMark, Checked, Result, StoreError};

impl PackBlobs {
    pub(super) fn check_packs(&self, from: CheckMark, bytes_max: u64) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut at = from;
        while checked.bytes < bytes_max {
            let Some((pack, file, end)) = self.pack_from(at.pack)? else {
                return Ok(checked);
            };
            if pack != at.pack {
                at = CheckMark { pack, offset: 0 };
            }
            if at.offset >= end {
                at = CheckMark {
                    pack: pack + 1,
                    offset: 0,
                };
                continue;
            }
            at.offset = self.check_record(&file, at, end, &mut checked)?;
        }
        checked.next = Some(at);
        Ok(checked)
    }

    /// The first pack from number `pack` on, and up to where it is durable.
    fn pack_from(&self, pack: u32) -> Result<Option<(u32, std::sync::Arc<File>, u64)>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let found = files.iter().filter(|(number, _)| **number >= pack);
        let Some((number, file)) = found.min_by_key(|(number, _)| **number) else {
            return Ok(None);
        };
        let (number, file) = (*number, file.clone());
        let synced = self.shared.synced();
        let length = match number == synced.pack {
            true => synced.end,
            false => {
                let path = pack_path(&self.shared.dir, number);
                file.metadata().map_err(failed("looking at", &path))?.len()
            }
        };
        Ok(Some((number, file, length)))
    }

    /// Checks the record at `at`, and gives where the next begins.
    fn check_record(
        &self,
        file: &File,
        at: CheckMark,
        end: u64,
        checked: &mut Checked,
    ) -> Result<u64> {
        let path = pack_path(&self.shared.dir, at.pack);
        let mut header = [0; HEADER_BYTES];
        let is_whole = at.offset + HEADER_BYTES as u64 <= end;
        if is_whole {
            file.read_exact_at(&mut header, at.offset)
                .map_err(failed("reading", &path))?;
        }
        checked.bytes += HEADER_BYTES as u64;
        let known = is_whole.then(|| header_of(&header, at)).flatten();
        let known = known.filter(|(_, location)| location.end().end <= end);
        let Some((hash, location)) = known else {
            return self.past_damaged_header(file, at, end, checked);
        };
        let next = location.end().end;
        match self.location(&hash) {
            Some(indexed) if indexed == location => self.check_blob(&hash, checked)?,
            // A blob that was found damaged before was written anew elsewhere. What is left of it may have another length.
            Some(indexed) if indexed.offset != location.offset || indexed.pack != location.pack => {
                let mut mark = [0; MAGIC.len()];
                let is_end = next == end;
                if !is_end && (file.read_exact_at(&mut mark, next).is_err() || mark != *MAGIC) {
                    return self.past_damaged_header(file, at, end, checked);
                }
            }
            _ => return self.past_damaged_header(file, at, end, checked),
        }
        Ok(next)
    }

    fn check_blob(&self, hash: &BlobHash, checked: &mut Checked) -> Result<()> {
        let length = self.location(hash).map_or(0, |location| location.length);
        checked.blobs += 1;
        checked.bytes += u64::from(length);
        match self.get(hash) {
            Ok(_) => Ok(()),
            Err(StoreError::BlobDamaged(hash)) => {
                checked.damaged.push(hash);
                Ok(())
            }
            // A sector that cannot be read is damage, too.
            Err(StoreError::Io { .. }) => {
                self.damaged().insert(*hash);
                checked.damaged.push(*hash);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A header that decayed, or the remains of a write that a crash cut short: checks by the index what lies before the next
    /// header, and gives where that is.
    fn past_damaged_header(
        &self,
        file: &File,
        at: CheckMark,
        end: u64,
        checked: &mut Checked,
    ) -> Result<u64> {
        let path = pack_path(&self.shared.dir, at.pack);
        let mut next = at.offset + 1;
        let mut piece = vec![0; super::WRITE_BYTES];
        let found = loop {
            let length = usize::try_from(end.saturating_sub(next)).unwrap_or(usize::MAX);
            let length = length.min(piece.len());
            if length < MAGIC.len() {
                break end;
            }
            let piece = &mut piece[..length];
            file.read_exact_at(piece, next)
                .map_err(failed("reading", &path))?;
            match find(piece, MAGIC) {
                Some(found) => break next + found as u64,
                // The next piece begins with the last bytes of this one, which may begin a header.
                None if (length as u64) < end - next => next += (length - MAGIC.len() + 1) as u64,
                None => break end,
            }
        };
        let within: Vec<BlobHash> = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let is_within = |location: &Location| {
                location.pack == at.pack && (at.offset..found).contains(&location.offset)
            };
            let within = index.iter().filter(|(_, location)| is_within(location));
            within.map(|(hash, _)| *hash).collect()
        };
        for hash in within {
            self.check_blob(&hash, checked)?;
        }
        Ok(found)
    }
}

/// What the header at `at` says, if it looks like one.
fn header_of(header: &[u8; HEADER_BYTES], at: CheckMark) -> Option<(BlobHash, Location)> {
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let hash = BlobHash::try_from(&header[8..]).ok()?;
    let location = Location {
        pack: at.pack,
        offset: at.offset + HEADER_BYTES as u64,
        length,
    };
    let is_header = header.starts_with(MAGIC) && length as usize <= BLOB_BYTES_MAX;
    is_header.then_some((hash, location))
}
