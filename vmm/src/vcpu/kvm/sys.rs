//! The kernel's interface to KVM (`Documentation/virt/kvm/api.rst`): its structures from its own header, its calls with their
//! types, and the page through which a vCPU tells why it stopped. All of KVM's unsafe code is here.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, MutexGuard};
use std::sync::atomic::{AtomicU8, Ordering};

use libc::c_ulong;
use nix::errno::Errno;

use super::Stop;

#[allow(nonstandard_style, dead_code, clippy::all, clippy::undocumented_unsafe_blocks, unreachable_pub, unsafe_op_in_unsafe_fn)]
mod header {
    include!(concat!(env!("OUT_DIR"), "/kvm.rs"));
}
pub(super) use header::*;

const KVMIO: u8 = 0xae;

/// Structures of plain numbers, for which any bytes, and so zeros, will do.
///
/// # Safety
/// Only for such.
pub(super) unsafe trait Plain: Sized {
    fn zeroed() -> Self {
        // SAFETY: the implementation's promise.
        unsafe { std::mem::zeroed() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `self` is readable for as long as it is, and made from zeros by `zeroed`, so that its padding, too, is initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; any bytes will do.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Self>()) }
    }
}

macro_rules! plain {
    ($($of:ty),* $(,)?) => {
        $(
            // SAFETY: C structures of numbers and arrays of numbers.
            unsafe impl Plain for $of {}
        )*
    };
}
plain!(
    u64, kvm_regs, kvm_sregs, kvm_xsave, kvm_xcrs, kvm_vcpu_events, kvm_mp_state, kvm_debugregs, kvm_lapic_state, kvm_irqchip,
    kvm_pit_state2, kvm_pit_config, kvm_cpuid_entry2, kvm_clock_data, kvm_irq_level, kvm_userspace_memory_region,
    Many<kvm_cpuid2, kvm_cpuid_entry2, CPUID_ENTRIES_MAX>,
    Many<kvm_msrs, kvm_msr_entry, MSRS_MAX>,
    Many<kvm_msr_list, u32, MSRS_MAX>,
);

/// As many as KVM takes (`KVM_MAX_CPUID_ENTRIES`).
pub(super) const CPUID_ENTRIES_MAX: usize = 256;
/// As many as KVM takes at once (`MAX_IO_MSRS`).
pub(super) const MSRS_MAX: usize = 256;

/// A structure that ends in an array whose length it tells, and room for that.
#[repr(C)]
pub(super) struct Many<H, E, const MAX: usize> {
    pub(super) header: H,
    pub(super) entries: [E; MAX],
}

/// A call that answers with a `T`.
pub(super) struct Get<T>(c_ulong, PhantomData<T>);
/// A call that takes a `T`.
pub(super) struct Set<T>(c_ulong, PhantomData<T>);
/// A call that takes a `T` and answers in it.
pub(super) struct Exchange<T>(c_ulong, PhantomData<T>);
/// A call that takes a number.
pub(super) struct Number(c_ulong);

/// The size in a call's number is that of `H`: of a [`Many`], its header's.
const fn get<T, H>(number: u8) -> Get<T> {
    Get(nix::request_code_read!(KVMIO, number, size_of::<H>()) as c_ulong, PhantomData)
}
const fn set<T, H>(number: u8) -> Set<T> {
    Set(nix::request_code_write!(KVMIO, number, size_of::<H>()) as c_ulong, PhantomData)
}
const fn exchange<T, H>(number: u8) -> Exchange<T> {
    Exchange(nix::request_code_readwrite!(KVMIO, number, size_of::<H>()) as c_ulong, PhantomData)
}
const fn number(number: u8) -> Number {
    Number(nix::request_code_none!(KVMIO, number) as c_ulong)
}

type Cpuid = Many<kvm_cpuid2, kvm_cpuid_entry2, CPUID_ENTRIES_MAX>;
type Msrs = Many<kvm_msrs, kvm_msr_entry, MSRS_MAX>;
type MsrList = Many<kvm_msr_list, u32, MSRS_MAX>;

pub(super) const GET_API_VERSION: Number = number(0x00);
pub(super) const CREATE_VM: Number = number(0x01);
pub(super) const GET_MSR_INDEX_LIST: Exchange<MsrList> = exchange::<_, kvm_msr_list>(0x02);
pub(super) const CHECK_EXTENSION: Number = number(0x03);
pub(super) const GET_VCPU_MMAP_SIZE: Number = number(0x04);
pub(super) const GET_SUPPORTED_CPUID: Exchange<Cpuid> = exchange::<_, kvm_cpuid2>(0x05);

pub(super) const CREATE_VCPU: Number = number(0x41);
const GET_DIRTY_LOG: Set<kvm_dirty_log> = set::<_, kvm_dirty_log>(0x42);
pub(super) const SET_USER_MEMORY_REGION: Set<kvm_userspace_memory_region> = set::<_, kvm_userspace_memory_region>(0x46);
pub(super) const SET_TSS_ADDR: Number = number(0x47);
pub(super) const SET_IDENTITY_MAP_ADDR: Set<u64> = set::<_, u64>(0x48);
pub(super) const CREATE_IRQCHIP: Number = number(0x60);
pub(super) const IRQ_LINE: Set<kvm_irq_level> = set::<_, kvm_irq_level>(0x61);
pub(super) const GET_IRQCHIP: Exchange<kvm_irqchip> = exchange::<_, kvm_irqchip>(0x62);
/// That its number says the contrary is a mistake that cannot be mended any more.
pub(super) const SET_IRQCHIP: Set<kvm_irqchip> =
    Set(nix::request_code_read!(KVMIO, 0x63, size_of::<kvm_irqchip>()) as c_ulong, PhantomData);
pub(super) const CREATE_PIT2: Set<kvm_pit_config> = set::<_, kvm_pit_config>(0x77);
pub(super) const SET_CLOCK: Set<kvm_clock_data> = set::<_, kvm_clock_data>(0x7b);
pub(super) const GET_CLOCK: Get<kvm_clock_data> = get::<_, kvm_clock_data>(0x7c);
pub(super) const GET_PIT2: Get<kvm_pit_state2> = get::<_, kvm_pit_state2>(0x9f);
pub(super) const SET_PIT2: Set<kvm_pit_state2> = set::<_, kvm_pit_state2>(0xa0);

pub(super) const RUN: Number = number(0x80);
pub(super) const GET_REGS: Get<kvm_regs> = get::<_, kvm_regs>(0x81);
pub(super) const SET_REGS: Set<kvm_regs> = set::<_, kvm_regs>(0x82);
pub(super) const GET_SREGS: Get<kvm_sregs> = get::<_, kvm_sregs>(0x83);
pub(super) const SET_SREGS: Set<kvm_sregs> = set::<_, kvm_sregs>(0x84);
pub(super) const GET_MSRS: Exchange<Msrs> = exchange::<_, kvm_msrs>(0x88);
pub(super) const SET_MSRS: Set<Msrs> = set::<_, kvm_msrs>(0x89);
pub(super) const GET_LAPIC: Get<kvm_lapic_state> = get::<_, kvm_lapic_state>(0x8e);
pub(super) const SET_LAPIC: Set<kvm_lapic_state> = set::<_, kvm_lapic_state>(0x8f);
pub(super) const SET_CPUID2: Set<Cpuid> = set::<_, kvm_cpuid2>(0x90);
pub(super) const GET_MP_STATE: Get<kvm_mp_state> = get::<_, kvm_mp_state>(0x98);
pub(super) const SET_MP_STATE: Set<kvm_mp_state> = set::<_, kvm_mp_state>(0x99);
pub(super) const GET_VCPU_EVENTS: Get<kvm_vcpu_events> = get::<_, kvm_vcpu_events>(0x9f);
pub(super) const SET_VCPU_EVENTS: Set<kvm_vcpu_events> = set::<_, kvm_vcpu_events>(0xa0);
pub(super) const GET_DEBUGREGS: Get<kvm_debugregs> = get::<_, kvm_debugregs>(0xa1);
pub(super) const SET_DEBUGREGS: Set<kvm_debugregs> = set::<_, kvm_debugregs>(0xa2);
pub(super) const GET_XSAVE: Get<kvm_xsave> = get::<_, kvm_xsave>(0xa4);
pub(super) const SET_XSAVE: Set<kvm_xsave> = set::<_, kvm_xsave>(0xa5);
pub(super) const GET_XCRS: Get<kvm_xcrs> = get::<_, kvm_xcrs>(0xa6);
pub(super) const SET_XCRS: Set<kvm_xcrs> = set::<_, kvm_xcrs>(0xa7);

/// KVM itself, a virtual machine, or a vCPU.
pub(super) struct Descriptor(OwnedFd);

impl Descriptor {
    pub(super) fn of(file: File) -> Self {
        Self(file.into())
    }

    pub(super) fn get<T: Plain>(&self, call: &Get<T>) -> nix::Result<T> {
        let mut value = T::zeroed();
        // SAFETY: the call writes one T.
        unsafe { self.call(call.0, (&raw mut value) as c_ulong) }.map(|_| value)
    }

    pub(super) fn set<T: Plain>(&self, call: &Set<T>, value: &T) -> nix::Result<usize> {
        // SAFETY: the call reads one T; a [`Many`] has room for as many entries as its header may tell, which KVM bounds likewise.
        unsafe { self.call(call.0, std::ptr::from_ref(value) as c_ulong) }
    }

    /// Gives what the call returns: of MSRs, how many it went through.
    pub(super) fn exchange<T: Plain>(&self, call: &Exchange<T>, value: &mut T) -> nix::Result<usize> {
        // SAFETY: the call reads and writes one T; see `set`.
        unsafe { self.call(call.0, std::ptr::from_mut(value) as c_ulong) }
    }

    pub(super) fn number(&self, call: &Number, number: u64) -> nix::Result<usize> {
        // SAFETY: the call takes no pointer. A guest that it runs writes only to memory which its machine keeps mapped.
        unsafe { self.call(call.0, number) }
    }

    /// A call that makes a descriptor.
    pub(super) fn make(&self, call: &Number, number: u64) -> nix::Result<Descriptor> {
        let made = self.number(call, number)?;
        // SAFETY: the kernel made it just now, for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(made as i32) }))
    }

    /// The pages of a slot that were written since the last call, one bit each. `bits` must have one for each page of the slot.
    pub(super) fn dirty_log(&self, slot: u32, bits: &mut [u64]) -> nix::Result<()> {
        let mut log: kvm_dirty_log = {
            // SAFETY: numbers and a pointer that is set below.
            unsafe { std::mem::zeroed() }
        };
        log.slot = slot;
        log.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
        // SAFETY: the call writes one bit for each page of the slot, for which `bits` has room.
        unsafe { self.call(GET_DIRTY_LOG.0, (&raw mut log) as c_ulong) }.map(drop)
    }

    /// # Safety
    /// `argument` must be what the call takes.
    unsafe fn call(&self, number: c_ulong, argument: c_ulong) -> nix::Result<usize> {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number as _, argument) };
        Errno::result(result).map(|value| value as usize)
    }
}

/// The page that a vCPU shares with the kernel, as any thread may use it.
pub(super) struct RunPage {
    page: NonNull<kvm_run>,
    bytes: usize,
}

// SAFETY: through it threads reach only `immediate_exit`, as an atomic; for the rest see [`Exits`].
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// What the vCPU's thread alone reads and writes of the page, between runs.
pub(super) struct Exits(Arc<RunPage>);

/// Maps the page of a vCPU; `bytes` is what KVM says that it has.
pub(super) fn map_run_page(vcpu: &Descriptor, bytes: usize) -> nix::Result<(Arc<RunPage>, Exits)> {
    if bytes < size_of::<kvm_run>() {
        return Err(Errno::EINVAL);
    }
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, wherever the kernel likes, of a descriptor that is open.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, vcpu.0.as_raw_fd(), 0) };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let page = NonNull::new(page.cast()).ok_or(Errno::EFAULT)?;
    let page = Arc::new(RunPage { page, bytes });
    Ok((page.clone(), Exits(page)))
}

impl RunPage {
    /// Whether the next run, or one that begins at this moment, ends at once.
    pub(super) fn leave_at_once(&self, leave: bool) {
        // SAFETY: the byte lies in the mapping, which lives as long as `self`, and is only used as an atomic.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.page.as_ptr()).immediate_exit) };
        flag.store(leave.into(), Ordering::SeqCst);
    }
}

impl Exits {
    /// Why the last run ended.
    pub(super) fn last(&mut self) -> Exit<'_> {
        let (page, bytes) = (self.0.page.as_ptr(), self.0.bytes);
        // SAFETY: the mapping lives as long as `self`. The kernel writes it only during runs; there is one `Exits` for each page, and it is
        // borrowed for as long as what is given here. Which member of the union counts is told by the reason; all are numbers.
        unsafe {
            match (*page).exit_reason {
                KVM_EXIT_IO => {
                    let io = (*page).__bindgen_anon_1.io;
                    let len = usize::from(io.size) * io.count as usize;
                    let offset = io.data_offset as usize;
                    if io.size == 0 || offset.checked_add(len).is_none_or(|end| end > bytes) {
                        return Exit::Other(KVM_EXIT_IO);
                    }
                    let data = std::slice::from_raw_parts_mut(page.cast::<u8>().add(offset), len);
                    Exit::Port { port: io.port.into(), write: u32::from(io.direction) == KVM_EXIT_IO_OUT, each: io.size.into(), data }
                }
                KVM_EXIT_MMIO => {
                    let mmio = &mut (*page).__bindgen_anon_1.mmio;
                    let len = (mmio.len as usize).min(mmio.data.len());
                    Exit::Memory { address: mmio.phys_addr, write: mmio.is_write != 0, data: &mut mmio.data[..len] }
                }
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_INTR => Exit::Interrupted,
                KVM_EXIT_INTERNAL_ERROR => Exit::Internal((*page).__bindgen_anon_1.internal.suberror),
                KVM_EXIT_FAIL_ENTRY => Exit::NoEntry((*page).__bindgen_anon_1.fail_entry.hardware_entry_failure_reason),
                other => Exit::Other(other),
            }
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; nobody refers to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.bytes) };
    }
}

/// Why a run ended.
pub(super) enum Exit<'a> {
    /// Accesses to one port, of `each` bytes, one after the other.
    Port { port: u64, write: bool, each: usize, data: &'a mut [u8] },
    /// An access to what is not RAM.
    Memory { address: u64, write: bool, data: &'a mut [u8] },
    /// A triple fault.
    Shutdown,
    Interrupted,
    /// KVM could not go on, with `suberror`.
    Internal(u32),
    /// The processor did not enter the guest.
    NoEntry(u64),
    Other(u32),
}

/// Lets the kernel interrupt a thread's call with `signal`: its handler does nothing.
pub(super) fn make_harmless(signal: libc::c_int) -> nix::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: numbers and a pointer; zeros are an action without flags, so that calls are interrupted and not begun anew.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, and so nothing that a handler must not do.
    Errno::result(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) }).map(drop)
}

pub(super) fn this_thread() -> libc::pthread_t {
    // SAFETY: it only tells.
    unsafe { libc::pthread_self() }
}

/// Interrupts what the CPU's thread waits for in the kernel, if it runs.
pub(super) fn interrupt(stop: &MutexGuard<'_, Stop>, signal: libc::c_int) {
    if let Some(thread) = stop.running {
        // SAFETY: while it runs a guest the thread has not ended, and to end its run it must take the lock that is held here. The call fails
        // for no signal that exists.
        unsafe { libc::pthread_kill(thread, signal) };
    }
}
