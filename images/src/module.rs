//! Kernel modules that load quickly on an emulated CPU.
//!
//! A module as packaged carries what costs far more than the module itself: a signature (hashing 4.5 MB of modules takes
//! 1.3 s at 250 million instructions a second; the image's own hash vouches for them), and tables for tracing and BTF
//! (0.1 s for what a phone never uses). The signature is cut off, the tables are declared empty; code and data stay as
//! Debian built them. The kernel notes that its modules are unsigned, and loads them.

use std::ops::Range;

/// Ends a signed module (Linux include/linux/module_signature.h).
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`: its last four bytes are the signature's length, big-endian.
const SIGNATURE_INFO_BYTES: usize = 12;

/// Tables that the kernel goes through at load; empty ones are as good as none.
const EMPTIED: &[&[u8]] = &[
    b"__patchable_function_entries",
    b"_ftrace_events",
    b"_ftrace_eval_map",
    b".BTF",
];

// Offsets of ELF64 (System V ABI, chapter 4) in the file header and in a section header.
const E_SHOFF: usize = 0x28;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SECTION_HEADER_BYTES: usize = 64;
const SH_NAME: usize = 0;
const SH_OFFSET: usize = 24;
const SH_SIZE: usize = 32;

/// Returns `module` without signature and with its tracing tables empty, or what is wrong with it.
pub(crate) fn quicken(module: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut module = unsigned(module)?.to_vec();
    if !module.starts_with(b"\x7fELF\x02\x01") {
        return Err("no magic number");
    }
    let sections = number(&module, E_SHOFF, 8)?;
    let count = number(&module, E_SHNUM, 2)?;
    let header = |index: usize| {
        sections
            .checked_add(index * SECTION_HEADER_BYTES)
            .ok_or("a table too far")
    };
    let names = number(
        &module,
        header(number(&module, E_SHSTRNDX, 2)?)?.saturating_add(SH_OFFSET),
        8,
    )?;
    for index in 0..count {
        let header = header(index)?;
        if module.len() < header.saturating_add(SECTION_HEADER_BYTES) {
            return Err("a table beyond its end");
        }
        let name = names
            .checked_add(number(&module, header + SH_NAME, 4)?)
            .ok_or("a name too far")?;
        let name = module
            .get(name..)
            .and_then(|tail| tail.split(|byte| *byte == 0).next())
            .ok_or("a name too far")?;
        // Relocations of a table go with it.
        if EMPTIED.contains(&name.strip_prefix(b".rela").unwrap_or(name)) {
            module[header + SH_SIZE..header + SH_SIZE + 8].fill(0);
        }
    }
    Ok(module)
}

fn unsigned(module: &[u8]) -> Result<&[u8], &'static str> {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else {
        return Ok(module);
    };
    let info = signed
        .len()
        .checked_sub(SIGNATURE_INFO_BYTES)
        .ok_or("too short for its signature")?;
    let length: [u8; 4] = signed[signed.len() - 4..]
        .try_into()
        .map_err(|_| "too short for its signature")?;
    let end = info
        .checked_sub(u32::from_be_bytes(length) as usize)
        .ok_or("too short for its signature")?;
    Ok(&signed[..end])
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], offset: usize, size: usize) -> Result<usize, &'static str> {
    let range: Range<usize> = offset..offset.checked_add(size).ok_or("a table too far")?;
    let field = bytes.get(range).ok_or("a table beyond its end")?;
    Ok(field
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three sections: none, `_ftrace_events` of 16 bytes, and the names.
    fn sample() -> Vec<u8> {
        let names = b"\0.rela_ftrace_events\0.shstrtab\0";
        let mut module = vec![0; 64];
        module[..6].copy_from_slice(b"\x7fELF\x02\x01");
        module.extend(names);
        let sections = module.len();
        module[E_SHOFF..E_SHOFF + 8].copy_from_slice(&(sections as u64).to_le_bytes());
        module[E_SHNUM] = 3;
        module[E_SHSTRNDX] = 2;
        for (name, offset, size) in [(0u32, 0u64, 0u64), (6, 0, 16), (21, 64, names.len() as u64)] {
            let mut header = [0; SECTION_HEADER_BYTES];
            header[SH_NAME..SH_NAME + 4].copy_from_slice(&name.to_le_bytes());
            header[SH_OFFSET..SH_OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
            header[SH_SIZE..SH_SIZE + 8].copy_from_slice(&size.to_le_bytes());
            module.extend(header);
        }
        module
    }

    #[test]
    fn signature_is_cut_and_tracing_emptied() {
        let plain = sample();
        let mut signed = plain.clone();
        signed.extend(b"sig");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        signed.extend(SIGNATURE_MAGIC);
        let quick = quicken(&signed).unwrap();
        assert_eq!(quick.len(), plain.len());
        let header = quick.len() - 2 * SECTION_HEADER_BYTES;
        assert_eq!(number(&quick, header + SH_SIZE, 8), Ok(0));
        assert_ne!(
            number(&quick, header + SECTION_HEADER_BYTES + SH_SIZE, 8),
            Ok(0)
        );
    }

    #[test]
    fn damaged_modules_are_refused() {
        assert!(quicken(b"").is_err());
        assert!(quicken(SIGNATURE_MAGIC).is_err());
        let module = sample();
        for length in 0..module.len() {
            assert!(quicken(&module[..length]).is_err(), "{length}");
        }
    }
}
