//! The binding to the engine as an x86-64 CPU, shaped like [`crate::engine`].

use std::ffi::{c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use unicorn_engine_sys as sys;
use vm_memory::{GuestMemory, GuestMemoryRegion};
use vmm::layout::Region;
use vmm::memory::{self, GuestRam};

use crate::engine::{EngineError, Kick, check};

/// What surrounds the CPU. Called on the CPU's thread, while it runs. A panic in here ends the process: the engine's
/// frames cannot be unwound.
pub(super) trait Around {
    /// Somebody kicked: take up what was left for the CPU.
    fn attend(&self, cpu: &Running<'_>);
    /// The guest halts. Returns true when an interrupt is pending that it can take, false to be attended first.
    fn idle(&self, interruptible: bool) -> bool;
    /// The CPU takes an interrupt: its vector, unless there is none any more.
    fn acknowledge(&self) -> Option<u8>;
    /// Access to a port, of 1, 2 or 4 bytes, little-endian.
    fn read_port(&self, port: u64, data: &mut [u8]);
    fn write_port(&self, cpu: &Running<'_>, port: u64, data: &[u8]);
    /// CR8, 0 to 15.
    fn priority(&self) -> u8;
    fn set_priority(&self, priority: u8);
    /// A triple fault: the run ends.
    fn shutdown(&self);
    /// Access to what is not RAM; addresses are guest physical, data little-endian.
    fn read(&self, address: u64, data: &mut [u8]);
    fn write(&self, address: u64, data: &[u8]);
}

/// Physical addresses that page tables can name: the model's 40 bits. All of them are mapped, because the engine ends a run
/// at an access to what is not.
const ADDRESS_END: u64 = 1 << 40;

/// One CPU and the RAM it runs on.
pub(super) struct Engine<A: Around> {
    uc: *mut sys::uc_engine,
    /// What the callbacks get; made by `Box::into_raw`, freed on drop.
    around: *mut Surroundings<A>,
    kick: Arc<Kick>,
    /// The engine holds plain pointers into it.
    _ram: GuestRam,
}

struct Surroundings<A> {
    around: A,
    holes: Region,
}

impl<A: Around> Engine<A> {
    /// Makes a CPU of a model with all of `ram`, which begins at 0, and `around` answering for all other addresses.
    pub(super) fn new(model: sys::X86CpuModel, tcg_buffer_bytes: u32, ram: GuestRam, around: A) -> Result<Self, EngineError> {
        let mut uc = ptr::null_mut();
        // SAFETY: `uc` is where the new engine's address goes.
        check("open the engine", unsafe { sys::uc_open(sys::Arch::X86, sys::Mode::MODE_64, &mut uc) })?;
        let (base, size) = memory::extent(&ram);
        assert_eq!(base, 0, "an x86-64 machine's RAM begins at 0");
        let holes = Region { base: size, size: ADDRESS_END - size };
        let around = Box::into_raw(Box::new(Surroundings { around, holes }));
        // From here on, dropping `engine` closes and frees.
        let engine = Self { uc, around, kick: Kick::new(uc, sys::uc_x86_machine_kick), _ram: ram.clone() };
        engine.control("choose the CPU model", sys::ControlType::CPU_MODEL, model as u32)?;
        engine.control("set the translation buffer", sys::ControlType::TCG_BUFFER_SIZE, tcg_buffer_bytes)?;
        engine.control("leave out exit addresses", sys::ControlType::UC_USE_EXITS, 1)?;
        for region in ram.iter() {
            let all = sys::Prot::ALL.0;
            // SAFETY: the mapping is as long as the region says and lives as long as the engine, which owns `_ram`.
            // The guest's accesses race with those of devices as on real hardware; all go through plain pointers.
            check("map RAM", unsafe {
                sys::uc_mem_map_ptr(uc, region.start_addr().0, region.len(), all, region.as_ptr().cast())
            })?;
        }
        let opaque = around.cast::<c_void>();
        // SAFETY: the callbacks take `opaque` for what it is, a `Surroundings<A>` that lives as long as the engine.
        check("map devices", unsafe {
            sys::uc_mmio_map(uc, holes.base, holes.size, Some(on_read::<A>), opaque, Some(on_write::<A>), opaque)
        })?;
        let machine = sys::uc_x86_machine {
            attend: Some(on_attend::<A>),
            idle: Some(on_idle::<A>),
            acknowledge: Some(on_acknowledge::<A>),
            port_read: Some(on_port_read::<A>),
            port_write: Some(on_port_write::<A>),
            priority: Some(on_priority::<A>),
            set_priority: Some(on_set_priority::<A>),
            shutdown: Some(on_shutdown::<A>),
            opaque,
        };
        // SAFETY: as above; the structure is copied.
        check("attach the machine", unsafe { sys::uc_x86_machine_attach(uc, &machine) })?;
        Ok(engine)
    }

    /// Writes one of the engine's options, which take an `int`.
    fn control(&self, operation: &'static str, option: sys::ControlType, value: u32) -> Result<(), EngineError> {
        const ONE_ARGUMENT: c_uint = 1 << 26;
        const WRITE: c_uint = 1 << 30;
        let control = sys::ControlType(option.0 | ONE_ARGUMENT | WRITE);
        // SAFETY: the engine is open, and reads one int for a control so encoded.
        check(operation, unsafe { sys::uc_ctl(self.uc, control, value) })
    }

    pub(super) fn around(&self) -> &A {
        // SAFETY: the box lives until `self` is dropped, and only shared references to it are ever made.
        unsafe { &(*self.around).around }
    }

    pub(super) fn kick(&self) -> Arc<Kick> {
        self.kick.clone()
    }

    /// Runs from the current RIP until [`Running::stop`] or a shutdown.
    pub(super) fn run(&mut self) -> Result<(), EngineError> {
        let rip = self.register(sys::RegisterX86::RIP);
        // SAFETY: the engine is open and not running (`&mut self`); its callbacks only share `around`.
        check("run the guest", unsafe { sys::uc_emu_start(self.uc, rip, 0, 0, 0) })
    }

    pub(super) fn register(&self, register: sys::RegisterX86) -> u64 {
        let mut value = 0_u64;
        // SAFETY: none of the registers that this crate names is wider than 64 bits.
        let error = unsafe { sys::uc_reg_read(self.uc, register as i32, (&raw mut value).cast()) };
        debug_assert_eq!(error, sys::uc_error::OK);
        value
    }

    /// Puts the CPU at the entry of a 64-bit kernel.
    pub(super) fn enter(&mut self, page_tables: u64, segments: u64, rip: u64, rsi: u64) {
        // SAFETY: the engine is open and does not run.
        unsafe { sys::uc_x86_machine_enter(self.uc, page_tables, segments, rip, rsi) }
    }

    /// The time stamp counter reads CLOCK_MONOTONIC - origin, in ns.
    pub(super) fn set_clock(&mut self, origin_ns: i64) {
        // SAFETY: the engine is open and does not run.
        unsafe { sys::uc_x86_machine_set_clock(self.uc, origin_ns) }
    }

    /// The CPU's registers, readable only by the same build with the same model.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut state = vec![0; self.state_bytes()];
        // SAFETY: the buffer is as long as the engine asks for.
        unsafe { sys::uc_x86_machine_save(self.uc, state.as_mut_ptr().cast()) };
        state
    }

    /// Takes up saved registers; gives `false`, and does nothing, if there are not as many as there must be.
    pub(super) fn restore(&mut self, state: &[u8]) -> bool {
        if state.len() != self.state_bytes() {
            return false;
        }
        // SAFETY: the buffer is as long as the engine reads; it holds plain numbers, any of which the CPU can stand;
        // the engine does not run.
        unsafe { sys::uc_x86_machine_restore(self.uc, state.as_ptr().cast()) };
        true
    }

    fn state_bytes(&self) -> usize {
        // SAFETY: the engine is open.
        unsafe { sys::uc_x86_machine_state_size(self.uc) }
    }
}

impl<A: Around> Drop for Engine<A> {
    fn drop(&mut self) {
        self.kick.release();
        // SAFETY: nobody else has the address any more: `Running`s end with a run, and `Kick` has just let go of it.
        // After closing, no callback comes, so that nothing refers to the surroundings.
        unsafe {
            sys::uc_close(self.uc);
            drop(Box::from_raw(self.around));
        }
    }
}

/// The engine as a callback sees it.
pub(super) struct Running<'a>(*mut sys::uc_engine, PhantomData<&'a ()>);

impl Running<'_> {
    /// Level of the CPU's interrupt input. Only when attending.
    pub(super) fn set_irq(&self, asserted: bool) {
        // SAFETY: we are in a callback, on the CPU's thread.
        unsafe { sys::uc_x86_machine_set_irq(self.0, asserted) }
    }

    /// Drops code translated from this guest physical range. Only when attending.
    pub(super) fn invalidate(&self, address: u64, len: u64) {
        // SAFETY: as above; addresses that are not RAM are skipped.
        unsafe { sys::uc_x86_machine_invalidate(self.0, address, len) }
    }

    /// Ends the run before the next block.
    pub(super) fn stop(&self) {
        // SAFETY: as above; the engine only sets flags.
        unsafe { sys::uc_emu_stop(self.0) };
    }
}

/// What `opaque` stands for.
///
/// # Safety
/// `opaque` must be the pointer that [`Engine::new`] gave to the engine, and the engine open.
unsafe fn surroundings<'a, A>(opaque: *mut c_void) -> &'a Surroundings<A> {
    // SAFETY: the caller's promise; only shared references to it are ever made.
    unsafe { &*opaque.cast::<Surroundings<A>>() }
}

// SAFETY, for all callbacks: the engine calls them with the pointer given to it in `Engine::new`, while it is open.

unsafe extern "C" fn on_attend<A: Around>(uc: *mut sys::uc_engine, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.attend(&Running(uc, PhantomData));
}

unsafe extern "C" fn on_idle<A: Around>(_: *mut sys::uc_engine, interruptible: bool, opaque: *mut c_void) -> bool {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.idle(interruptible)
}

unsafe extern "C" fn on_acknowledge<A: Around>(_: *mut sys::uc_engine, opaque: *mut c_void) -> c_int {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.acknowledge().map_or(-1, c_int::from)
}

unsafe extern "C" fn on_port_read<A: Around>(_: *mut sys::uc_engine, port: u32, size: u32, opaque: *mut c_void) -> u32 {
    let mut data = [0; 4];
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.read_port(port.into(), &mut data[..size.min(4) as usize]);
    u32::from_le_bytes(data)
}

unsafe extern "C" fn on_port_write<A: Around>(uc: *mut sys::uc_engine, port: u32, size: u32, value: u32, opaque: *mut c_void) {
    let data = &value.to_le_bytes()[..size.min(4) as usize];
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.write_port(&Running(uc, PhantomData), port.into(), data);
}

unsafe extern "C" fn on_priority<A: Around>(_: *mut sys::uc_engine, opaque: *mut c_void) -> u32 {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.priority().into()
}

unsafe extern "C" fn on_set_priority<A: Around>(_: *mut sys::uc_engine, priority: u32, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.set_priority((priority & 15) as u8);
}

unsafe extern "C" fn on_shutdown<A: Around>(_: *mut sys::uc_engine, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.shutdown();
}

unsafe extern "C" fn on_read<A: Around>(_: *mut sys::uc_engine, offset: u64, size: c_uint, opaque: *mut c_void) -> u64 {
    // SAFETY: see above.
    let surroundings = unsafe { surroundings::<A>(opaque) };
    let mut data = [0; 8];
    surroundings.around.read(surroundings.holes.base + offset, &mut data[..size.min(8) as usize]);
    u64::from_le_bytes(data)
}

unsafe extern "C" fn on_write<A: Around>(_: *mut sys::uc_engine, offset: u64, size: c_uint, value: u64, opaque: *mut c_void) {
    // SAFETY: see above.
    let surroundings = unsafe { surroundings::<A>(opaque) };
    surroundings.around.write(surroundings.holes.base + offset, &value.to_le_bytes()[..size.min(8) as usize]);
}
