//! The device tree that tells an arm64 kernel what the machine has: made from the address map in [`crate::layout`].
//!
//! Two choices matter. The timer node names only the non-secure physical timer, because that is the one whose accesses
//! the emulated CPU traps; the kernel then uses it and no other. And there is no `kaslr-seed` unless asked for: with
//! one, the kernel is randomised and therefore isolates its page tables (KPTI), which makes system calls several times
//! slower on an emulated CPU.

use vm_fdt::{FdtWriter, FdtWriterResult};

use crate::layout::{self, Region};

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
/// Interrupt specifier: type SPI or PPI, number within the type, flags.
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The UART's reference clock, as on QEMU's `virt`; it means nothing to an emulated UART but must be there.
const APB_CLOCK_HZ: u32 = 24_000_000;

/// What varies between machines.
#[derive(Clone, Debug)]
pub(crate) struct Description<'a> {
    pub ram_size: u64,
    pub cpu_compatible: &'a str,
    pub cmdline: &'a str,
    /// First and one-past-last guest physical address.
    pub initramfs: Option<(u64, u64)>,
    /// Which virtio-mmio slots have a device.
    pub virtio_slots: &'a [usize],
    /// Entropy for the guest's random number generator.
    pub rng_seed: [u8; 64],
    pub kaslr_seed: Option<u64>,
}

/// Writes the flattened device tree.
pub(crate) fn write(description: &Description) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "Pollux virtual machine")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
    chosen(&mut fdt, description)?;
    let memory = fdt.begin_node(&format!("memory@{:x}", layout::RAM_BASE))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM_BASE, description.ram_size])?;
    fdt.end_node(memory)?;
    cpu(&mut fdt, description.cpu_compatible)?;
    timer(&mut fdt)?;
    gic(&mut fdt)?;
    prime_cells(&mut fdt)?;
    for slot in description.virtio_slots {
        virtio(&mut fdt, *slot)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, description: &Description) -> FdtWriterResult<()> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", description.cmdline)?;
    fdt.property_string("stdout-path", &format!("/pl011@{:x}", layout::UART.base))?;
    if let Some((start, end)) = description.initramfs {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.property("rng-seed", &description.rng_seed)?;
    if let Some(seed) = description.kaslr_seed {
        fdt.property_u64("kaslr-seed", seed)?;
    }
    fdt.end_node(chosen)
}

fn cpu(fdt: &mut FdtWriter, compatible: &str) -> FdtWriterResult<()> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    let cpu = fdt.begin_node("cpu@0")?;
    fdt.property_string("device_type", "cpu")?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_string("enable-method", "psci")?;
    fdt.property_u32("reg", 0)?;
    fdt.end_node(cpu)?;
    fdt.end_node(cpus)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)
}

/// `interrupt-names` lets a kernel (since 5.13) find a timer by name rather than by its place in the list of four.
fn timer(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let timer = fdt.begin_node("timer")?;
    fdt.property_string_list("compatible", vec!["arm,armv8-timer".into()])?;
    fdt.property_array_u32("interrupts", &[PPI, layout::TIMER_INTID - 16, LEVEL_HIGH])?;
    fdt.property_string("interrupt-names", "phys")?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)
}

fn gic(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let gic = fdt.begin_node(&format!("intc@{:x}", layout::GIC_DIST.base))?;
    fdt.property_string("compatible", "arm,cortex-a15-gic")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 0)?;
    let (dist, cpu) = (layout::GIC_DIST, layout::GIC_CPU);
    fdt.property_array_u64("reg", &[dist.base, dist.size, cpu.base, cpu.size])?;
    fdt.property_phandle(GIC_PHANDLE)?;
    fdt.end_node(gic)
}

/// Serial port and clock. The clock has no interrupt: see [`crate::devices::rtc`].
fn prime_cells(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", APB_CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(clock)?;

    let uart = begin_device(fdt, "pl011", layout::UART)?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u32("interrupts", &[SPI, layout::UART_INTID - layout::SPI_BASE, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(uart)?;

    let rtc = begin_device(fdt, "pl031", layout::RTC)?;
    fdt.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE])?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(rtc)
}

fn virtio(fdt: &mut FdtWriter, slot: usize) -> FdtWriterResult<()> {
    let node = begin_device(fdt, "virtio_mmio", layout::virtio_slot(slot))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    let interrupt = layout::virtio_intid(slot) - layout::SPI_BASE;
    fdt.property_array_u32("interrupts", &[SPI, interrupt, LEVEL_HIGH])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

fn begin_device(fdt: &mut FdtWriter, name: &str, region: Region) -> FdtWriterResult<vm_fdt::FdtWriterNode> {
    let node = fdt.begin_node(&format!("{name}@{:x}", region.base))?;
    fdt.property_array_u64("reg", &[region.base, region.size])?;
    Ok(node)
}
