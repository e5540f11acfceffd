//! The address map of the arm64 machine.
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
