//! An x86-64 kernel that is unpacked already: `vmlinux`, an ELF file (System V ABI, chapters 4 and 5).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{BootError, copy};
use crate::memory::GuestRam;

pub(super) const MAGIC: &[u8; 4] = b"\x7fELF";
const WANTED: &str = "an ELF file for x86-64";
const FILE_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Linux has five segments.
const SEGMENTS_MAX: usize = 16;
const MACHINE_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const MIB: u64 = 1 << 20;

/// Puts the segments into RAM of `ram_size` bytes; returns the entry and the first address after all of them.
pub(super) fn load(ram: &GuestRam, path: &Path, file: &mut File, ram_size: u64) -> Result<(u64, u64), BootError> {
    let failed = |source| BootError::Read { what: "kernel", path: path.into(), source };
    let foreign = |found| BootError::ForeignKernel { path: path.into(), wanted: WANTED, found };
    let unfit = |reason: String| BootError::UnfitKernel { path: path.into(), reason };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes < FILE_HEADER_BYTES as u64 {
        return Err(BootError::TruncatedKernel { path: path.into(), wanted: WANTED, bytes });
    }
    let mut header = [0; FILE_HEADER_BYTES];
    file.rewind().and_then(|()| file.read_exact(&mut header)).map_err(failed)?;
    // 64 bits, little-endian.
    if &header[..4] != MAGIC || header[4..6] != [2, 1] || number::<2>(&header, 18) != MACHINE_X86_64 {
        return Err(foreign("it is an ELF file for another machine"));
    }
    let (entry, table, count) = (number::<8>(&header, 24), number::<8>(&header, 32), number::<2>(&header, 56) as usize);
    if number::<2>(&header, 54) as usize != PROGRAM_HEADER_BYTES || !(1..=SEGMENTS_MAX).contains(&count) {
        return Err(unfit(format!("it has {count} segments")));
    }
    let mut segments = vec![0; count * PROGRAM_HEADER_BYTES];
    file.seek(SeekFrom::Start(table)).and_then(|_| file.read_exact(&mut segments)).map_err(failed)?;
    let mut end = 0;
    let mut holds_entry = false;
    for segment in segments.chunks(PROGRAM_HEADER_BYTES) {
        if number::<4>(segment, 0) != PT_LOAD {
            continue;
        }
        let [offset, address, in_file, in_memory] = [8, 24, 32, 40].map(|at| number::<8>(segment, at));
        let last = address.checked_add(in_memory).filter(|last| address >= MIB && *last <= ram_size);
        let last = last.ok_or_else(|| BootError::TooLarge { what: "kernel", path: path.into(), bytes: in_memory, ram: ram_size })?;
        if in_file > in_memory || offset.checked_add(in_file).is_none_or(|end| end > bytes) {
            return Err(unfit(format!("a segment has {in_file} bytes from {offset:#x} on, of a file of {bytes}")));
        }
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        // What is not in the file is zero, as fresh RAM is.
        copy(ram, "kernel", path, file, in_file, address)?;
        end = end.max(last);
        holds_entry |= (address..last).contains(&entry);
    }
    if holds_entry { Ok((entry, end)) } else { Err(unfit(format!("its entry {entry:#x} is in none of its segments"))) }
}

/// A little-endian number of N bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
