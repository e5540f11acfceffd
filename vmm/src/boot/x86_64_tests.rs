//! Loading as a kernel would find it: bytes in guest RAM.

use std::io::Write;

use super::*;

const KERNEL_AT: u64 = 16 * MIB;

fn image(edit: impl FnOnce(&mut Vec<u8>)) -> tempfile::NamedTempFile {
    let mut bytes = vec![0; 2 * SECTOR as usize];
    bytes[0x1f1] = 1;
    bytes[0x201] = 0x66;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x258..0x260].copy_from_slice(&KERNEL_AT.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&(4 * MIB as u32).to_le_bytes());
    bytes.extend_from_slice(&[0x90; 3000]);
    edit(&mut bytes);
    file(&bytes)
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn source<'a>(kernel: &'a Path, initramfs: Option<&'a Path>) -> BootSource<'a> {
    BootSource { kernel, initramfs, cmdline: "console=ttyS0", virtio_slots: &[0, 3], rng_seed: [7; 64] }
}

fn error(edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let kernel = image(edit);
    load(&memory::anonymous_x86(64 * MIB).unwrap(), &source(kernel.path(), None)).unwrap_err().to_string()
}

#[test]
fn loads_all_that_the_kernel_looks_for() {
    let ram = memory::anonymous_x86(64 * MIB).unwrap();
    let (kernel, initramfs) = (image(|_| ()), file(&[0x55; 5000]));
    let entry = load(&ram, &source(kernel.path(), Some(initramfs.path()))).unwrap();
    assert_eq!(entry, BootEntry { kernel: KERNEL_AT + 0x200, parameters: layout::BOOT_PARAMS });
    let u64_at = |at: u64| ram.read_obj::<u64>(GuestAddress(at)).unwrap();
    let u32_at = |at: u64| ram.read_obj::<u32>(GuestAddress(at)).unwrap();
    assert_eq!(u64_at(KERNEL_AT), 0x9090_9090_9090_9090);

    let params = layout::BOOT_PARAMS;
    assert_eq!(u32_at(params + 0x202), u32::from_le_bytes(*b"HdrS"));
    let (start, length) = (u32_at(params + 0x218), u32_at(params + 0x21c));
    assert_eq!((start % 4096, length, ram.read_obj::<u8>(GuestAddress(u64::from(start + length - 1))).unwrap()), (0, 5000, 0x55));
    let mut line = [0; 14];
    ram.read_slice(&mut line, GuestAddress(u32_at(params + 0x228).into())).unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
    assert_eq!(u64_at(u64_at(params + 0x70)), u64::from_le_bytes(*b"RSD PTR "));
    let data = u64_at(params + 0x250);
    assert_eq!((u32_at(data + 8), u32_at(data + 12), u64_at(data + 16)), (SETUP_RNG_SEED, 64, 0x0707_0707_0707_0707));
    let last = params + 0x2d0 + 3 * 20;
    assert_eq!((u64_at(last), u64_at(last + 8), u32_at(last + 16)), (MIB, 63 * MIB, E820_RAM));
}

#[test]
fn four_gib_are_mapped_to_themselves() {
    let tables = page_tables();
    let read = |address: u64| {
        let at = (address - layout::PAGE_TABLES) as usize;
        u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
    };
    for address in [0, 0x20_0000, KERNEL_AT, 0xfee0_0000_u64] {
        let level3 = read(layout::PAGE_TABLES) & !0xfff;
        let level2 = read(level3 + (address >> 30) * 8) & !0xfff;
        assert_eq!(read(level2 + (address >> 21 & 511) * 8), address & !0x1f_ffff | 0x83);
    }
}

#[test]
fn foreign_and_damaged_kernels_are_named() {
    assert!(error(|bytes| bytes[0x202] = 0).contains("no x86 boot header"));
    assert!(error(|bytes| bytes[0x207] = 1).contains("older than 2.12"));
    assert!(error(|bytes| bytes[0x236] = 0).contains("no 64-bit entry"));
    assert!(error(|bytes| bytes.truncate(100)).contains("100 bytes are shorter"));
    assert!(error(|bytes| bytes[0x1f1] = 200).contains("ends before"));
    assert!(error(|bytes| bytes[0x263] = 0xff).contains("does not fit guest RAM"));
    assert!(error(|bytes| bytes[0x25b] = 0x7f).contains("does not fit guest RAM"));
    assert!(error(|bytes| bytes.resize(5 << 20, 0)).contains("it has"));
    let arm64 = |bytes: &mut Vec<u8>| {
        bytes[0x202] = 0;
        bytes[56..60].copy_from_slice(b"ARM\x64");
    };
    assert!(error(arm64).contains("an arm64 kernel"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let ram = memory::anonymous_x86(64 * MIB).unwrap();
    let (kernel, initramfs) = (image(|_| ()), file(&vec![1; 45 << 20]));
    let error = load(&ram, &source(kernel.path(), Some(initramfs.path()))).unwrap_err();
    assert!(matches!(error, BootError::TooLarge { what: "initramfs", .. }));
    let long = "x".repeat(2048);
    let error = load(&ram, &BootSource { cmdline: &long, ..source(kernel.path(), None) }).unwrap_err();
    assert!(matches!(error, BootError::Cmdline(2048)));
    assert!(memory::anonymous_x86(4 << 30).is_err());
}

/// A vmlinux of one segment of 3000 bytes and as many zeros, and one that is not loaded.
fn unpacked(edit: impl FnOnce(&mut Vec<u8>)) -> tempfile::NamedTempFile {
    let mut bytes = vec![0; 64 + 2 * 56];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes[24..32].copy_from_slice(&(KERNEL_AT + 16).to_le_bytes());
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 2;
    bytes[64] = 1;
    for (at, value) in [(8, 64 + 2 * 56_u64), (24, KERNEL_AT), (32, 3000), (40, 6000)] {
        bytes[64 + at..64 + at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[120] = 4;
    bytes.extend_from_slice(&[0x90; 3000]);
    edit(&mut bytes);
    file(&bytes)
}

#[test]
fn an_unpacked_kernel_is_entered_where_it_says() {
    let ram = memory::anonymous_x86(64 * MIB).unwrap();
    let kernel = unpacked(|_| ());
    let entry = load(&ram, &source(kernel.path(), None)).unwrap();
    assert_eq!(entry, BootEntry { kernel: KERNEL_AT + 16, parameters: layout::BOOT_PARAMS });
    let byte = |at: u64| ram.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!([KERNEL_AT, KERNEL_AT + 2999, KERNEL_AT + 3000].map(byte), [0x90, 0x90, 0]);
    let params = layout::BOOT_PARAMS;
    assert_eq!(ram.read_obj::<u32>(GuestAddress(params + 0x202)).unwrap(), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(ram.read_obj::<u32>(GuestAddress(params + 0x228)).unwrap(), layout::COMMAND_LINE as u32);
}

#[test]
fn foreign_and_damaged_unpacked_kernels_are_named() {
    let error = |edit: fn(&mut Vec<u8>)| {
        let kernel = unpacked(edit);
        load(&memory::anonymous_x86(64 * MIB).unwrap(), &source(kernel.path(), None)).unwrap_err().to_string()
    };
    assert!(error(|bytes| bytes[18] = 183).contains("another machine"));
    assert!(error(|bytes| bytes[56] = 0).contains("0 segments"));
    assert!(error(|bytes| bytes[57] = 1).contains("258 segments"));
    assert!(error(|bytes| bytes[39] = 0xff).contains("cannot read kernel"));
    assert!(error(|bytes| bytes[64 + 31] = 0xff).contains("does not fit guest RAM"));
    assert!(error(|bytes| bytes[64 + 27] = 0).contains("does not fit guest RAM"));
    assert!(error(|bytes| bytes[64 + 45] = 1).contains("does not fit guest RAM"));
    assert!(error(|bytes| bytes[64 + 15] = 0xff).contains("a segment has"));
    assert!(error(|bytes| bytes[64 + 34] = 1).contains("a segment has"));
    assert!(error(|bytes| bytes[27] = 2).contains("in none of its segments"));
    assert!(error(|bytes| bytes[64] = 4).contains("in none of its segments"));
}
