//! Loading as a kernel would find it: bytes in guest RAM and a device tree parsed back.

use std::collections::BTreeMap;
use std::io::Write;

use super::*;
use crate::memory;

const MIB: u64 = 1 << 20;

fn image(text_offset: u64, image_size: u64, flags: u64, total: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; total];
    bytes[..64].fill(0);
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&flags.to_le_bytes());
    bytes[56..60].copy_from_slice(MAGIC);
    bytes
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn source<'a>(kernel: &'a Path, initramfs: Option<&'a Path>) -> BootSource<'a> {
    BootSource {
        kernel,
        initramfs,
        cmdline: "console=ttyAMA0 panic=-1",
        cpu_compatible: "arm,cortex-a53",
        virtio_slots: &[0, 3],
        rng_seed: [7; 64],
        kaslr_seed: None,
    }
}

fn load_bytes(kernel: &[u8]) -> Result<BootEntry, BootError> {
    load(&memory::anonymous(64 * MIB).unwrap(), &source(file(kernel).path(), None))
}

#[test]
fn loads_kernel_initramfs_and_device_tree() {
    let ram = memory::anonymous(64 * MIB).unwrap();
    let kernel = file(&image(0, 3 * MIB, 0xa, 4096));
    let initramfs = file(&[0x55; 5000]);
    let entry = load(&ram, &source(kernel.path(), Some(initramfs.path()))).unwrap();
    assert_eq!(entry, BootEntry { kernel: 0x4020_0000, parameters: 0x4000_0000 });
    assert_eq!(ram.read_obj::<u32>(GuestAddress(entry.kernel + 56)).unwrap(), 0x644d_5241);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(entry.kernel + 4095)).unwrap(), 0xaa);

    let tree = parse(&ram, entry.parameters);
    let be64 = |key: &str| u64::from_be_bytes(tree[key][..].try_into().unwrap());
    let (start, end) = (be64("/chosen/linux,initrd-start"), be64("/chosen/linux,initrd-end"));
    assert_eq!((start % 4096, end - start), (0, 5000));
    assert!(end <= 0x4400_0000);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(end - 1)).unwrap(), 0x55);
    assert_eq!(tree["/chosen/bootargs"], b"console=ttyAMA0 panic=-1\0");
    assert_eq!(tree["/chosen/stdout-path"], b"/pl011@9000000\0");
    assert_eq!(tree["/chosen/rng-seed"], [7; 64]);
    assert!(!tree.contains_key("/chosen/kaslr-seed"));
    assert_eq!(cells(&tree["/memory@40000000/reg"]), [0, 0x4000_0000, 0, 0x400_0000]);
}

#[test]
fn device_tree_names_the_machine() {
    let ram = memory::anonymous(64 * MIB).unwrap();
    let kernel = file(&image(0, MIB, 0xa, 4096));
    let entry = load(&ram, &BootSource { kaslr_seed: Some(5), ..source(kernel.path(), None) }).unwrap();
    let tree = parse(&ram, entry.parameters);
    assert_eq!(tree["/timer/interrupt-names"], b"phys\0");
    assert_eq!(cells(&tree["/timer/interrupts"]), [1, 14, 4], "only the non-secure physical timer, INTID 30");
    assert_eq!(tree["/psci/method"], b"hvc\0");
    assert!(tree["/psci/compatible"].starts_with(b"arm,psci-1.0\0"));
    assert_eq!(tree["/cpus/cpu@0/compatible"], b"arm,cortex-a53\0");
    assert_eq!(cells(&tree["/intc@8000000/reg"]), [0, 0x800_0000, 0, 0x1_0000, 0, 0x801_0000, 0, 0x1_0000]);
    assert_eq!(cells(&tree["/pl011@9000000/interrupts"]), [0, 1, 4]);
    assert!(!tree.contains_key("/pl031@9010000/interrupts"), "it has no alarm");
    assert_eq!(cells(&tree["/virtio_mmio@a000600/reg"]), [0, 0xa00_0600, 0, 0x200]);
    assert_eq!(cells(&tree["/virtio_mmio@a000600/interrupts"]), [0, 19, 4]);
    assert!(!tree.contains_key("/virtio_mmio@a000200/reg"), "empty slots are not named");
    assert_eq!(tree["/chosen/kaslr-seed"], 5u64.to_be_bytes());
    let clock = &tree["/apb-pclk/phandle"];
    assert_eq!(&tree["/pl011@9000000/clocks"][..4], &clock[..]);
}

#[test]
fn kernel_goes_to_its_text_offset() {
    let entry = load_bytes(&image(0x8_0000, MIB, 0, 4096)).unwrap();
    assert_eq!(entry.kernel, 0x4028_0000);
}

#[test]
fn missing_kernel_is_named() {
    let ram = memory::anonymous(64 * MIB).unwrap();
    let error = load(&ram, &source(Path::new("/no/such/Image"), None)).unwrap_err();
    assert!(error.to_string().starts_with("cannot read kernel /no/such/Image: No such file"), "{error}");
    let error = load(&ram, &source(Path::new("/"), None)).unwrap_err();
    assert!(error.to_string().ends_with("it is not a regular file"), "{error}");
    let kernel = file(&image(0, MIB, 0, 4096));
    let error = load(&ram, &source(kernel.path(), Some(Path::new("/no/such/cpio")))).unwrap_err();
    assert!(error.to_string().starts_with("cannot read initramfs /no/such/cpio"), "{error}");
}

#[test]
fn foreign_and_damaged_kernels_are_told_apart() {
    let says = |bytes: &[u8], text: &str| {
        let error = load_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(text), "{error} does not say {text}");
    };
    let padded = |start: &[u8]| [start, &[0; 100]].concat();
    says(b"", "0 bytes are shorter");
    says(&image(0, MIB, 0, 64)[..63], "63 bytes are shorter");
    says(&padded(b"\x1f\x8b\x08"), "gzip");
    says(&padded(b"MZ\0\0zimg"), "zboot");
    says(&padded(b"MZ"), "another architecture");
    says(&padded(b"\x7fELF"), "ELF");
    says(&padded(b"hello"), "no arm64 magic");
    says(&image(0, MIB, 1, 64), "big-endian");
    says(&image(0, 4095, 0, 4096), "4096 bytes, but");
    says(&image(0x20_0000, MIB, 0, 4096), "text offset");
    says(&image(0, u64::MAX, 0, 4096), "does not fit guest RAM");
    says(&image(0, 64 * MIB, 0, 4096), "does not fit guest RAM");
    says(&image(u64::MAX, MIB, 0, 4096), "text offset");
}

#[test]
fn initramfs_must_leave_room_for_the_kernel() {
    let ram = memory::anonymous(64 * MIB).unwrap();
    let kernel = file(&image(0, 61 * MIB, 0, 4096));
    let initramfs = file(&vec![0; 2 * MIB as usize]);
    let error = load(&ram, &source(kernel.path(), Some(initramfs.path()))).unwrap_err();
    assert!(matches!(error, BootError::TooLarge { what: "initramfs", .. }), "{error}");
}

#[test]
fn overlong_command_line_is_refused() {
    let ram = memory::anonymous(64 * MIB).unwrap();
    let kernel = file(&image(0, MIB, 0, 4096));
    let cmdline = "x".repeat(2048);
    let error = load(&ram, &BootSource { cmdline: &cmdline, ..source(kernel.path(), None) }).unwrap_err();
    assert!(matches!(error, BootError::Cmdline(2048)), "{error}");
}

fn cells(value: &[u8]) -> Vec<u32> {
    value.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect()
}

/// Reads a flattened device tree (Devicetree Specification 5) into path -> value.
fn parse(ram: &GuestRam, at: u64) -> BTreeMap<String, Vec<u8>> {
    let word = |offset: u64| u32::from_be(ram.read_obj(GuestAddress(at + offset)).unwrap());
    assert_eq!(word(0), 0xd00d_feed);
    let (structure, strings) = (u64::from(word(8)), u64::from(word(12)));
    let string = |mut from: u64| {
        let mut text = String::new();
        while let byte @ 1.. = ram.read_obj::<u8>(GuestAddress(at + from)).unwrap() {
            text.push(byte as char);
            from += 1;
        }
        text
    };
    let (mut path, mut found, mut offset) = (Vec::new(), BTreeMap::new(), structure);
    loop {
        offset += 4;
        match word(offset - 4) {
            1 => {
                let name = string(offset);
                offset += (name.len() as u64 + 4) & !3;
                path.push(name);
            }
            2 => drop(path.pop()),
            3 => {
                let (len, name) = (word(offset) as usize, string(strings + u64::from(word(offset + 4))));
                let mut value = vec![0; len];
                ram.read_slice(&mut value, GuestAddress(at + offset + 8)).unwrap();
                found.insert(format!("{}/{name}", path.join("/")), value);
                offset += 8 + ((len as u64 + 3) & !3);
            }
            4 => {}
            9 => return found,
            token => panic!("token {token} in a device tree"),
        }
    }
}
