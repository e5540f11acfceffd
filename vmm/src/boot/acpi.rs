//! The ACPI tables that tell an x86-64 kernel what the machine has (ACPI 6.4): RSDP, XSDT, FADT, FACS, DSDT, MADT.
//!
//! The DSDT holds the sleep type of \_S5 and one device for each virtio-mmio slot in use, in AML put together by hand.

use crate::layout::x86_64 as layout;
use crate::layout::x86_64::{FIRMWARE, IOAPIC, LAPIC, PM_BASE, SCI_LINE, SLEEP_TYPE_OFF};

const HEADER_BYTES: usize = 36;
/// The FACS must lie on a 64-byte boundary.
const ALIGN: usize = 64;
/// Line 0, the interval timer's, is wired to pin 2.
const TIMER_PIN: u32 = 2;
/// Flags of an interrupt source override: active high and level-triggered.
const LEVEL_HIGH: u16 = 0b1101;
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;
const CENTURY_REGISTER: u8 = 0x32;
/// IA-PC boot architecture flags: devices at their old places, no VGA, no MSI. No keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// WBINVD works, C1 works, no power and no sleep button, no RTC wake status, 32-bit timer, reset register.
const FIXED_FEATURES: u32 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;

/// The tables as they lie from [`FIRMWARE`] on; the RSDP is first.
pub(super) fn tables(virtio_slots: &[usize]) -> Vec<u8> {
    let mut out = vec![0; ALIGN];
    let mut put = |table: &[u8]| {
        let address = FIRMWARE + out.len() as u64;
        out.extend_from_slice(table);
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        address
    };
    let facs = put(&facs());
    let dsdt = put(&dsdt(virtio_slots));
    let fadt = put(&fadt(facs, dsdt));
    let madt = put(&madt());
    let pointers = [fadt, madt].map(u64::to_le_bytes).concat();
    let xsdt = put(&table(b"XSDT", 1, &pointers));
    let rsdp = rsdp(xsdt);
    out[..rsdp.len()].copy_from_slice(&rsdp);
    out
}

/// The byte that makes all sum up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0POLLUX\x02".to_vec();
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&36_u32.to_le_bytes());
    bytes.extend_from_slice(&xsdt.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// A table with its header.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&((HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(b"POLLUXTWIN    \x01\0\0\0PLUX\x01\0\0\0");
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 2;
    bytes
}

/// A generic address: a port of so many bytes.
fn port(address: u64, bytes: u8) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&[1, bytes * 8, 0, bytes.min(4).trailing_zeros() as u8 + 1]);
    out[4..].copy_from_slice(&address.to_le_bytes());
    out
}

fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut body = [0; 276 - HEADER_BYTES];
    // Offsets as in the specification, from the table's beginning.
    let mut put = |at: usize, bytes: &[u8]| body[at - HEADER_BYTES..][..bytes.len()].copy_from_slice(bytes);
    let (event, control, timer) = (PM_BASE, PM_BASE + 4, PM_BASE + 8);
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &(SCI_LINE as u16).to_le_bytes());
    for (at, block) in [(56, event), (64, control), (76, timer)] {
        put(at, &u32::from(block).to_le_bytes());
    }
    put(88, &[4, 2, 0, 4]);
    // Latencies that say: no C2, no C3.
    put(96, &0xfff_u16.to_le_bytes());
    put(98, &0xfff_u16.to_le_bytes());
    put(108, &[CENTURY_REGISTER]);
    put(109, &BOOT_ARCHITECTURE.to_le_bytes());
    put(112, &FIXED_FEATURES.to_le_bytes());
    put(116, &port(RESET_PORT, 1));
    put(128, &[RESET_VALUE]);
    put(140, &dsdt.to_le_bytes());
    put(148, &port(event.into(), 4));
    put(172, &port(control.into(), 2));
    put(208, &port(timer.into(), 4));
    table(b"FACP", 6, &body)
}

fn madt() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(LAPIC.base as u32).to_le_bytes());
    // There is an 8259 pair as well.
    body.extend_from_slice(&1_u32.to_le_bytes());
    // The processor, enabled.
    body.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend_from_slice(&[1, 12, 1, 0]);
    body.extend_from_slice(&(IOAPIC.base as u32).to_le_bytes());
    body.extend_from_slice(&0_u32.to_le_bytes());
    for (line, pin, flags) in [(0_u8, TIMER_PIN, 0), (SCI_LINE as u8, SCI_LINE, LEVEL_HIGH)] {
        body.extend_from_slice(&[2, 10, 0, line]);
        body.extend_from_slice(&pin.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    table(b"APIC", 5, &body)
}

fn dsdt(virtio_slots: &[usize]) -> Vec<u8> {
    let devices: Vec<u8> = virtio_slots.iter().flat_map(|slot| virtio_device(*slot)).collect();
    // Scope (\_SB) { devices }
    let mut aml = aml_package(&[0x10], &[b"\\_SB_".to_vec(), devices].concat());
    // Name (\_S5, Package { off, off, 0, 0 })
    let sleep = aml_package(&[0x12], &[4, 0x0a, SLEEP_TYPE_OFF, 0x0a, SLEEP_TYPE_OFF, 0, 0]);
    aml.extend_from_slice(b"\x08\\_S5_");
    aml.extend_from_slice(&sleep);
    table(b"DSDT", 2, &aml)
}

/// A virtio-mmio device as Linux knows it.
fn virtio_device(slot: usize) -> Vec<u8> {
    let region = layout::virtio_slot(slot);
    let mut resources = Vec::new();
    // Memory32Fixed (ReadWrite, base, size)
    resources.extend_from_slice(&[0x86, 9, 0, 1]);
    resources.extend_from_slice(&(region.base as u32).to_le_bytes());
    resources.extend_from_slice(&(region.size as u32).to_le_bytes());
    // Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { line }
    resources.extend_from_slice(&[0x89, 6, 0, 1, 1]);
    resources.extend_from_slice(&layout::virtio_line(slot).to_le_bytes());
    resources.extend_from_slice(&[0x79, 0]);

    let mut body = format!("VR{slot:02X}").into_bytes();
    body.extend_from_slice(b"\x08_HID\x0dLNRO0005\0");
    body.extend_from_slice(b"\x08_UID\x0a");
    body.push(slot as u8);
    // Buffer (length) { resources }
    let buffer = aml_package(&[0x11], &[vec![0x0a, resources.len() as u8], resources].concat());
    body.extend_from_slice(b"\x08_CRS");
    body.extend_from_slice(&buffer);
    aml_package(&[0x5b, 0x82], &body)
}

/// An opcode with the length of what belongs to it (20.2.4: the length counts itself).
fn aml_package(opcode: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = opcode.to_vec();
    match body.len() {
        len if len + 1 < 1 << 6 => out.push(len as u8 + 1),
        len if len + 2 < 1 << 12 => out.extend_from_slice(&[0x40 | ((len + 2) & 15) as u8, ((len + 2) >> 4) as u8]),
        len => out.extend_from_slice(&[0x80 | ((len + 3) & 15) as u8, ((len + 3) >> 4) as u8, ((len + 3) >> 12) as u8]),
    }
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table at this address, its checksum verified.
    fn at(tables: &[u8], address: u64) -> &[u8] {
        let rest = &tables[(address - FIRMWARE) as usize..];
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        assert_eq!(checksum(&rest[..length]), 0, "{}", String::from_utf8_lossy(&rest[..4]));
        &rest[..length]
    }

    fn pointer(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_first() {
        let tables = tables(&[0, 1, 15]);
        assert_eq!((checksum(&tables[..20]), checksum(&tables[..36])), (0, 0));
        let xsdt = at(&tables, pointer(&tables, 24));
        let fadt = at(&tables, pointer(xsdt, 36));
        let madt = at(&tables, pointer(xsdt, 44));
        assert_eq!((&fadt[..4], &madt[..4], fadt.len(), madt.len()), (&b"FACP"[..], &b"APIC"[..], 276, 84));
        let dsdt = at(&tables, pointer(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
        assert_eq!((facs % 64, &tables[(u64::from(facs) - FIRMWARE) as usize..][..4]), (0, &b"FACS"[..]));
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 3);
    }

    #[test]
    fn package_lengths_count_themselves() {
        assert_eq!(aml_package(&[0x10], &[0; 10])[..2], [0x10, 11]);
        assert_eq!(aml_package(&[0x10], &[0; 63])[..3], [0x10, 0x41, 4]);
        assert_eq!(aml_package(&[0x10], &[0; 5000])[..4], [0x10, 0x8b, 0x38, 1]);
    }
}
