//! The address map of the arm64 machine; that of the x86-64 machine is in [`x86_64`].
//!
//! ```text
//! 0x0800_0000  GICv2 distributor      64 KiB
//! 0x0801_0000  GICv2 CPU interface    64 KiB
//! 0x0900_0000  PL011 UART              4 KiB   SPI 1
//! 0x0901_0000  PL031 RTC               4 KiB   SPI 2
//! 0x0a00_0000  virtio-mmio slots, 512 bytes each, VIRTIO_SLOTS of them   SPI 16 + slot
//! 0x4000_0000  RAM                     up to RAM_SIZE_MAX
//!              +0         device tree (2 MiB reserved)
//!              +2 MiB     kernel Image (2 MiB aligned, plus its text_offset)
//!              top        initramfs, page aligned, ending at the top of RAM
//! ```
//! It follows QEMU's `virt` machine where that helps comparison.

/// A guest physical range: first byte and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub base: u64,
    pub size: u64,
}

pub const GIC_DIST: Region = Region { base: 0x0800_0000, size: 0x1_0000 };
pub const GIC_CPU: Region = Region { base: 0x0801_0000, size: 0x1_0000 };
pub const UART: Region = Region { base: 0x0900_0000, size: 0x1000 };
pub const RTC: Region = Region { base: 0x0901_0000, size: 0x1000 };
pub const VIRTIO_BASE: u64 = 0x0a00_0000;
pub const VIRTIO_SLOT_SIZE: u64 = 0x200;
/// How many virtio-mmio slots a machine has; 16 leaves room beyond the devices of a phone.
pub const VIRTIO_SLOTS: usize = 16;
/// All device registers lie in this range; the vCPU maps it once as MMIO.
pub const MMIO: Region = Region { base: 0x0800_0000, size: 0x0300_0000 };

pub const RAM_BASE: u64 = 0x4000_0000;
/// The largest guest RAM: phones of this size exist, and a greater figure in a manifest is a mistake.
pub const RAM_SIZE_MAX: u64 = 8 << 30;

/// Interrupt numbers as the GIC's INTID: SGIs 0-15, PPIs 16-31, SPIs from 32.
pub const SPI_BASE: u32 = 32;
pub const UART_INTID: u32 = SPI_BASE + 1;
pub const RTC_INTID: u32 = SPI_BASE + 2;
pub const VIRTIO_INTID_BASE: u32 = SPI_BASE + 16;
/// Non-secure EL1 physical timer, PPI 14 (Arm BSA): the only timer named in our device tree, see EMULATOR.md.
pub const TIMER_INTID: u32 = 30;
/// Interrupt lines of the distributor, SGIs and PPIs included.
pub const INTID_COUNT: u32 = 96;
/// Frequency of the generic timer's system counter in Hz (16 ns per tick, as on QEMU's `virt`).
pub const COUNTER_HZ: u64 = 62_500_000;

/// Where the registers of a virtio-mmio slot are.
pub const fn virtio_slot(slot: usize) -> Region {
    Region { base: VIRTIO_BASE + slot as u64 * VIRTIO_SLOT_SIZE, size: VIRTIO_SLOT_SIZE }
}

/// The interrupt of a virtio-mmio slot.
pub const fn virtio_intid(slot: usize) -> u32 {
    VIRTIO_INTID_BASE + slot as u32
}

/// The address map of the x86-64 machine.
///
/// ```text
/// 0x0000_0000  RAM                     up to RAM_SIZE_MAX
///              0x0_0500  GDT, 0x0_7000 boot_params, 0x0_8000 setup_data, 0x0_9000 page tables, 0x2_0000 command line
///              0xe_0000  ACPI tables, reserved up to 1 MiB
///              16 MiB    kernel (where it prefers to be)
///              top       initramfs, page aligned, ending at the top of RAM
/// 0xd000_0000  virtio-mmio slots, 512 bytes each
/// 0xfec0_0000  I/O APIC   4 KiB
/// 0xfee0_0000  local APIC 4 KiB
/// ```
/// Ports: the 8259 pair at 0x20 and 0xa0 (ELCR 0x4d0), 8254 at 0x40 with 0x61, CMOS at 0x70, 16550 at 0x3f8 (line 4), ACPI's
/// PM registers at 0x600, reset at 0xcf9 and 0x64. Lines are ACPI's global system interrupts: pins of the I/O APIC.
pub mod x86_64 {
    use super::{Region, VIRTIO_SLOT_SIZE};

    /// Below the holes that a PC has under 4 GiB, so that RAM is one piece.
    pub const RAM_SIZE_MAX: u64 = 3 << 30;

    pub const GDT: u64 = 0x500;
    pub const BOOT_PARAMS: u64 = 0x7000;
    pub const SETUP_DATA: u64 = 0x8000;
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// Where firmware's memory begins, to be kept out of the kernel's way: from here to 1 MiB.
    pub const FIRMWARE: u64 = 0xe_0000;

    pub const VIRTIO_BASE: u64 = 0xd000_0000;
    pub const IOAPIC: Region = Region { base: 0xfec0_0000, size: 0x1000 };
    pub const LAPIC: Region = Region { base: 0xfee0_0000, size: 0x1000 };
    pub const IOAPIC_PINS: u32 = 24;

    pub const UART: Region = Region { base: 0x3f8, size: 8 };
    pub const UART_LINE: u32 = 4;
    pub const CMOS: Region = Region { base: 0x70, size: 2 };
    pub const PM_BASE: u16 = 0x600;
    /// ACPI's own interrupt; nothing raises it.
    pub const SCI_LINE: u32 = 9;
    /// Sleep type of \_S5 in PM1a_CNT.
    pub const SLEEP_TYPE_OFF: u8 = 5;

    /// Where the registers of a virtio-mmio slot are.
    pub const fn virtio_slot(slot: usize) -> Region {
        Region { base: VIRTIO_BASE + slot as u64 * VIRTIO_SLOT_SIZE, size: VIRTIO_SLOT_SIZE }
    }

    /// The line of a virtio-mmio slot: 10 to 23, then 5 and 6, which nothing else has.
    pub const fn virtio_line(slot: usize) -> u32 {
        if slot < 14 { 10 + slot as u32 } else { slot as u32 - 9 }
    }
}
