//! A vCPU's registers and the kernel's part of its machine: as a kernel is entered, and saved and restored.
//!
//! Saved are, one after the other, the structures in the order in which they must be restored: the local APIC needs the segment registers'
//! APIC base, the deadline timer's register needs the local APIC, and pending events come last.

use super::sys::{self, Descriptor, Get, Many, Plain, Set};
use super::{MSR_TSC, VcpuError, cannot};

const PIC_MASTER: u32 = 0;
const IRQCHIPS: std::ops::Range<u32> = PIC_MASTER..3;

/// Puts the CPU where the 64-bit boot protocol wants it: flat segments of a GDT with code at 0x10 and data at 0x18, paging on, interrupts off.
pub(super) fn enter_long_mode(vcpu: &Descriptor, page_tables: u64, gdt: u64, rip: u64, rsi: u64) -> Result<(), VcpuError> {
    const CR0_PROTECTED_PAGED: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LONG_MODE_ACTIVE: u64 = 1 << 8 | 1 << 10;
    const RFLAGS_RESERVED: u64 = 1 << 1;
    let mut special = vcpu.get(&sys::GET_SREGS).map_err(cannot("read segments"))?;
    let data = sys::kvm_segment { base: 0, limit: u32::MAX, selector: 0x18, type_: 3, present: 1, s: 1, db: 1, g: 1, ..special.ds };
    special.cs = sys::kvm_segment { selector: 0x10, type_: 11, db: 0, l: 1, ..data };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    (special.gdt.base, special.gdt.limit) = (gdt, 31);
    (special.cr0, special.cr3, special.cr4, special.efer) = (CR0_PROTECTED_PAGED, page_tables, CR4_PAE, EFER_LONG_MODE_ACTIVE);
    vcpu.set(&sys::SET_SREGS, &special).map_err(cannot("set segments"))?;
    let mut registers = sys::kvm_regs::zeroed();
    (registers.rip, registers.rsi, registers.rflags) = (rip, rsi, RFLAGS_RESERVED);
    vcpu.set(&sys::SET_REGS, &registers).map_err(cannot("set registers"))?;
    Ok(())
}

/// What a guest's clocks show: its time stamp counter, and KVM's own clock in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clocks {
    tsc: u64,
    kvm_ns: u64,
}

impl Clocks {
    pub(super) fn get(vcpu: &Descriptor, vm: &Descriptor) -> Result<Self, VcpuError> {
        let tsc = read_msr(vcpu, MSR_TSC).ok_or_else(|| VcpuError::Engine("KVM: cannot read the time stamp counter".into()))?;
        let clock = vm.get(&sys::GET_CLOCK).map_err(cannot("read its clock"))?;
        Ok(Self { tsc, kvm_ns: clock.clock })
    }

    /// Makes the clocks go on from here.
    pub(super) fn set(self, vcpu: &Descriptor, vm: &Descriptor) -> Result<(), VcpuError> {
        if !write_msr(vcpu, MSR_TSC, self.tsc) {
            return Err(VcpuError::Engine("KVM: cannot set the time stamp counter".into()));
        }
        let mut clock = sys::kvm_clock_data::zeroed();
        clock.clock = self.kvm_ns;
        vm.set(&sys::SET_CLOCK, &clock).map_err(cannot("set its clock"))?;
        Ok(())
    }
}

pub(super) fn read_msr(vcpu: &Descriptor, index: u32) -> Option<u64> {
    let mut one = Many::zeroed();
    let header: &mut sys::kvm_msrs = &mut one.header;
    header.nmsrs = 1;
    let entries: &mut [sys::kvm_msr_entry; sys::MSRS_MAX] = &mut one.entries;
    entries[0].index = index;
    (vcpu.exchange(&sys::GET_MSRS, &mut one) == Ok(1)).then_some(one.entries[0].data)
}

fn write_msr(vcpu: &Descriptor, index: u32, data: u64) -> bool {
    let mut one = Many::zeroed();
    let header: &mut sys::kvm_msrs = &mut one.header;
    header.nmsrs = 1;
    let entries: &mut [sys::kvm_msr_entry; sys::MSRS_MAX] = &mut one.entries;
    (entries[0].index, entries[0].data) = (index, data);
    vcpu.set(&sys::SET_MSRS, &one) == Ok(1)
}

/// All of it. The machine must not run.
pub(super) fn save(vcpu: &Descriptor, vm: &Descriptor, msrs: &[u32], clocks: &Clocks) -> Result<Vec<u8>, VcpuError> {
    let mut saving = Saving(Vec::new());
    saving.piece(vcpu, &sys::GET_MP_STATE, "save whether it halts")?;
    saving.piece(vcpu, &sys::GET_REGS, "save registers")?;
    saving.piece(vcpu, &sys::GET_SREGS, "save segments")?;
    saving.piece(vcpu, &sys::GET_XSAVE, "save vector registers")?;
    saving.piece(vcpu, &sys::GET_XCRS, "save which vector registers are on")?;
    saving.piece(vcpu, &sys::GET_DEBUGREGS, "save debug registers")?;
    saving.piece(vcpu, &sys::GET_LAPIC, "save the local APIC")?;
    for chip_id in IRQCHIPS {
        let mut chip = sys::kvm_irqchip::zeroed();
        chip.chip_id = chip_id;
        vm.exchange(&sys::GET_IRQCHIP, &mut chip).map_err(cannot("save an interrupt controller"))?;
        saving.0.extend_from_slice(chip.bytes());
    }
    saving.piece(vm, &sys::GET_PIT2, "save the interval timer")?;
    for index in msrs {
        // One that cannot be read is not there.
        let data = if *index == MSR_TSC { Some(clocks.tsc) } else { read_msr(vcpu, *index) };
        saving.0.extend_from_slice(&u64::from(data.is_some()).to_le_bytes());
        saving.0.extend_from_slice(&data.unwrap_or(0).to_le_bytes());
    }
    saving.0.extend_from_slice(&clocks.kvm_ns.to_le_bytes());
    saving.piece(vcpu, &sys::GET_VCPU_EVENTS, "save pending events")?;
    Ok(saving.0)
}

/// Takes up what [`save`] gave, on a like host, and tells what the clocks shall show.
pub(super) fn restore(vcpu: &Descriptor, vm: &Descriptor, msrs: &[u32], state: &[u8]) -> Result<Clocks, VcpuError> {
    let mut restoring = Restoring(state);
    restoring.piece(vcpu, &sys::SET_MP_STATE, "restore whether it halts")?;
    restoring.piece(vcpu, &sys::SET_REGS, "restore registers")?;
    restoring.piece(vcpu, &sys::SET_SREGS, "restore segments")?;
    restoring.piece(vcpu, &sys::SET_XSAVE, "restore vector registers")?;
    restoring.piece(vcpu, &sys::SET_XCRS, "restore which vector registers are on")?;
    restoring.piece(vcpu, &sys::SET_DEBUGREGS, "restore debug registers")?;
    restoring.piece(vcpu, &sys::SET_LAPIC, "restore the local APIC")?;
    for _ in IRQCHIPS {
        restoring.piece(vm, &sys::SET_IRQCHIP, "restore an interrupt controller")?;
    }
    restoring.piece(vm, &sys::SET_PIT2, "restore the interval timer")?;
    let mut tsc = 0;
    for index in msrs {
        let (is_there, data): (u64, u64) = (restoring.take()?, restoring.take()?);
        if *index == MSR_TSC {
            tsc = data;
        // Some can only be read.
        } else if is_there != 0 && !write_msr(vcpu, *index, data) && read_msr(vcpu, *index) != Some(data) {
            return Err(VcpuError::Engine(format!("KVM: cannot restore register {index:#x}")));
        }
    }
    let kvm_ns = restoring.take()?;
    restoring.piece(vcpu, &sys::SET_VCPU_EVENTS, "restore pending events")?;
    if !restoring.0.is_empty() {
        return Err(VcpuError::DamagedState("it is too long".into()));
    }
    Ok(Clocks { tsc, kvm_ns })
}

struct Saving(Vec<u8>);

impl Saving {
    fn piece<T: Plain>(&mut self, of: &Descriptor, call: &Get<T>, doing: &'static str) -> Result<(), VcpuError> {
        let piece = of.get(call).map_err(cannot(doing))?;
        self.0.extend_from_slice(piece.bytes());
        Ok(())
    }
}

struct Restoring<'a>(&'a [u8]);

impl Restoring<'_> {
    fn take<T: Plain>(&mut self) -> Result<T, VcpuError> {
        let (bytes, rest) = self.0.split_at_checked(size_of::<T>()).ok_or_else(|| VcpuError::DamagedState("it is too short".into()))?;
        self.0 = rest;
        let mut piece = T::zeroed();
        piece.bytes_mut().copy_from_slice(bytes);
        Ok(piece)
    }

    fn piece<T: Plain>(&mut self, of: &Descriptor, call: &Set<T>, doing: &'static str) -> Result<(), VcpuError> {
        let piece = self.take()?;
        of.set(call, &piece).map_err(cannot(doing))?;
        Ok(())
    }
}
